//! Memory that can be lent to the kernel: large buffers lie in one mapping, in pages of 2 MiB where the
//! system has them, and go into a socket without a copy.
//!
//! ```text
//!  mapping   │ granule 0 │ 1 │ 2 │ 3 │ …          64 KiB each, reserved sparsely
//!            └── range of one buffer ──┘           pages exist once written
//! ```
//!
//! What it keeps true:
//! - Pages that were lent may stand in a socket's queue long after the buffer was freed. Such a range is
//!   never written again before its pages have been given back to the system: the queue keeps the
//!   old pages, the range gets new ones.
//! - Bytes are copied the first time they are sent, and lent from then on: what is streamed once costs
//!   no new pages.
//!
//! Where there is no such mapping (limits of the process), buffers come from the allocator and are
//! copied.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};
use parking_lot::Mutex;

/// The unit in which ranges are handed out, in bytes.
const GRANULE: usize = 64 << 10;

/// Address space of the mapping: more than memory, for a range of one size is not reused for another.
/// In bytes.
const RESERVED: usize = 64 << 30;

const GRANULES: usize = RESERVED / GRANULE;

/// A large page, in bytes: the mapping begins at one.
const LARGE_PAGE: usize = 2 << 20;

/// What became of a granule's bytes since its buffer was made.
const UNSENT: u8 = 0;
const COPIED: u8 = 1;
const LENT: u8 = 2;

struct Arena {
    base: NonNull<u8>,
    /// One for each granule. Never written memory of it costs nothing.
    sent: Box<[AtomicU8]>,
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    /// First granules of ranges without pages, by their length in granules.
    ranges: HashMap<usize, Vec<usize>>,
    /// The first granule that was never handed out.
    next: usize,
}

// SAFETY: `base` is an address of a mapping that lives as long as the process; what may be read and
// written there is the business of those who hold its ranges.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

static ARENA: OnceLock<Option<Arena>> = OnceLock::new();

fn arena() -> Option<&'static Arena> {
    ARENA.get_or_init(Arena::new).as_ref()
}

/// A range of the arena. Not given back by itself.
#[derive(Clone, Copy)]
pub(super) struct Place {
    granule: usize,
    granules: usize,
}

impl Place {
    /// Memory for `bytes`. `None`: the allocator has to do.
    pub(super) fn take(bytes: usize) -> Option<(Place, NonNull<u8>)> {
        let arena = arena()?;
        let granules = bytes.div_ceil(GRANULE);
        let mut free = arena.free.lock();
        let granule = match free.ranges.get_mut(&granules).and_then(Vec::pop) {
            Some(granule) => granule,
            None if free.next + granules <= GRANULES => {
                free.next += granules;
                free.next - granules
            }
            None => return None,
        };
        drop(free);
        let place = Place { granule, granules };
        place.forget_sent();
        Some((place, place.pointer(arena)))
    }

    fn pointer(self, arena: &Arena) -> NonNull<u8> {
        // SAFETY: `granule < GRANULES`, so that the offset lies within the mapping.
        unsafe { arena.base.add(self.granule * GRANULE) }
    }

    /// Whether its pages may be on their way to somebody.
    pub(super) fn was_lent(self) -> bool {
        self.sent()
            .iter()
            .any(|sent| sent.load(Ordering::Relaxed) == LENT)
    }

    /// For another use of the same pages.
    pub(super) fn forget_sent(self) {
        for sent in self.sent() {
            sent.store(UNSENT, Ordering::Relaxed);
        }
    }

    /// Gives the pages back to the system and the range to the arena. Nobody may look at it any more.
    pub(super) fn release(self) {
        let Some(arena) = arena() else { return };
        let range = self.pointer(arena).cast();
        // SAFETY: the range is the caller's alone, and nothing reads it before it is written anew.
        let emptied = unsafe { madvise(range, self.granules * GRANULE, MmapAdvise::MADV_DONTNEED) };
        // What cannot be emptied is not handed out again: better lost than written under a reader.
        if let Err(error) = emptied {
            tracing::warn!(%error, "memory could not be given back");
            return;
        }
        let mut free = arena.free.lock();
        free.ranges
            .entry(self.granules)
            .or_default()
            .push(self.granule);
    }

    fn sent(self) -> &'static [AtomicU8] {
        let all = arena().map_or(&[][..], |arena| &arena.sent);
        all.get(self.granule..self.granule + self.granules)
            .unwrap_or_default()
    }
}

/// Whether the pages of `bytes` may be lent to the kernel: known for bytes of large blocks that were
/// sent before. After a yes they may be lent for as long as the caller holds them.
pub fn may_lend(bytes: &[u8]) -> bool {
    let Some(Some(arena)) = ARENA.get() else {
        return false;
    };
    let address = bytes.as_ptr().addr();
    let Some(offset) = address.checked_sub(arena.base.addr().get()) else {
        return false;
    };
    let covered = offset / GRANULE..(offset + bytes.len()).div_ceil(GRANULE);
    let Some([first, rest @ ..]) = arena.sent.get(covered) else {
        return false;
    };
    if first.load(Ordering::Relaxed) == UNSENT {
        first.store(COPIED, Ordering::Relaxed);
        return false;
    }
    for sent in std::iter::once(first).chain(rest) {
        // Mostly so already, and then no other processor's copy of the line is taken from it.
        if sent.load(Ordering::Relaxed) != LENT {
            sent.store(LENT, Ordering::Relaxed);
        }
    }
    true
}

impl Arena {
    fn new() -> Option<Arena> {
        let length = NonZeroUsize::new(RESERVED + LARGE_PAGE)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice, which is never unmapped.
        let mapping = match unsafe { mmap_anonymous(None, length, protection, flags) } {
            Ok(mapping) => mapping.cast::<u8>(),
            Err(error) => {
                tracing::info!(%error, "blocks are copied into sockets");
                return None;
            }
        };
        let skipped = mapping.as_ptr().align_offset(LARGE_PAGE);
        // SAFETY: the mapping is longer by one large page than what is used of it.
        let base = unsafe { mapping.add(skipped) };
        for advice in [MmapAdvise::MADV_HUGEPAGE, MmapAdvise::MADV_DONTDUMP] {
            // SAFETY: neither changes what is read or written. Where it is refused, all works as well.
            let _ = unsafe { madvise(base.cast(), RESERVED, advice) };
        }
        // Asked for as zeroes, which the system has at no cost until they are written.
        let sent = Box::into_raw(vec![UNSENT; GRANULES].into_boxed_slice());
        // SAFETY: an `AtomicU8` has the size and alignment of a `u8`, and this is the only pointer.
        let sent = unsafe { Box::from_raw(sent as *mut [AtomicU8]) };
        Some(Arena {
            base,
            sent,
            free: Mutex::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read};
    use std::net::{TcpListener, TcpStream};

    use nix::fcntl::{SpliceFFlags, splice, vmsplice};
    use nix::unistd::pipe;

    use super::*;
    use crate::store::GrowingBlock;

    const LENGTH: usize = 2 * GRANULE;

    fn block_of(byte: u8) -> GrowingBlock {
        let mut block = GrowingBlock::with_capacity(LENGTH);
        assert_eq!(block.append(&[byte; LENGTH]), LENGTH);
        block
    }

    /// What stands in a socket's queue stays as it was when it was sent, whatever becomes of the buffer.
    #[test]
    fn what_was_lent_never_changes() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binding");
        let address = listener.local_addr().expect("its address");
        let mut client = TcpStream::connect(address).expect("connecting");
        let (server, _) = listener.accept().expect("accepting");
        let (out, into) = pipe().expect("a pipe");
        let mut addresses = Vec::new();
        for byte in 0..20 {
            let block = block_of(byte);
            let bytes = block.reader().slice(0..LENGTH);
            assert!(!may_lend(&bytes), "the first time it is copied");
            assert!(may_lend(&bytes), "outside of strict limits");
            addresses.push(bytes.as_ptr().addr());
            // Nobody reads meanwhile: the bytes stand in the queues.
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let none = SpliceFFlags::empty();
                let mut lent = vmsplice(&into, &[IoSlice::new(rest)], none).expect("lending");
                rest = &rest[lent..];
                while lent > 0 {
                    lent -= splice(&out, None, &server, None, lent, none).expect("sending");
                }
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        assert!(addresses.len() < 20, "ranges are handed out again");
        for byte in 0..20 {
            let mut got = vec![0xff; LENGTH];
            client.read_exact(&mut got).expect("reading");
            assert!(got.iter().all(|got| *got == byte), "block {byte} changed");
        }
    }

    #[test]
    fn what_is_sent_once_is_reused_as_it_is() {
        let block = block_of(1);
        let bytes = block.reader().slice(0..LENGTH);
        assert!(!may_lend(&bytes));
        let buffer = bytes.as_ptr().addr();
        drop((block, bytes));
        let again = block_of(2);
        let bytes = again.reader().slice(0..LENGTH);
        if bytes.as_ptr().addr() == buffer {
            assert!(!may_lend(&bytes), "its counting begins anew");
        }
    }

    #[test]
    fn small_blocks_and_foreign_bytes_are_not_lent() {
        let mut block = GrowingBlock::with_capacity(4096);
        block.append(&[1; 4096]);
        let bytes = block.reader().slice(0..4096);
        for bytes in [&bytes[..], &[0; 100], &[]] {
            assert!(!may_lend(bytes));
            assert!(!may_lend(bytes));
        }
    }
}
