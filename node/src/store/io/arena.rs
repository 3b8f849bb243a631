//! Memory that the kernel can send from without a copy: the large buffers lie in one file in memory,
//! mapped into the process.
//!
//! ```text
//!  file, and mapping   │ granule 0 │ 1 │ 2 │ 3 │ …          64 KiB each, reserved sparsely
//!                      └── range of one buffer ──┘           pages exist once written
//! ```
//!
//! What it keeps true:
//! - Pages that were sent from the file may stand in a socket's queue long after the buffer was freed.
//!   Such a range is never written again before its pages have been given back to the system
//!   (a hole is punched): the queue keeps the old pages, the range gets new ones.
//! - Bytes are copied the first time they are sent, and sent from the file from then on: what is
//!   streamed once costs no hole.
//!
//! Where no such file can be had (limits of the process), buffers come from the allocator.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::resource::{Resource, getrlimit};
use parking_lot::Mutex;

/// The unit in which ranges are handed out, in bytes.
const GRANULE: usize = 64 << 10;

/// Address space of the mapping: far more than memory, for ranges of one size are not reused for
/// another. In bytes.
const RESERVED: usize = 256 << 30;

const GRANULES: usize = RESERVED / GRANULE;

/// How often a granule's bytes were sent since its buffer was made.
const UNSENT: u8 = 0;
const COPIED: u8 = 1;
const SENT_FROM_FILE: u8 = 2;

struct Arena {
    file: File,
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
        // SAFETY: `granule < GRANULES`, so that the offset lies within the mapping.
        let pointer = unsafe { arena.base.add(granule * GRANULE) };
        Some((place, pointer))
    }

    /// Whether the file's pages may be on their way to somebody.
    pub(super) fn was_sent_from(self) -> bool {
        self.sent()
            .iter()
            .any(|sent| sent.load(Ordering::Relaxed) == SENT_FROM_FILE)
    }

    /// For another use of the same pages.
    pub(super) fn forget_sent(self) {
        for sent in self.sent() {
            sent.store(UNSENT, Ordering::Relaxed);
        }
    }

    /// Gives the pages back to the system and the range to the arena.
    pub(super) fn release(self) {
        let Some(arena) = arena() else { return };
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let start = (self.granule * GRANULE) as i64;
        let length = (self.granules * GRANULE) as i64;
        // What cannot be emptied is not handed out again: better lost than written under a reader.
        if let Err(error) = fallocate(&arena.file, hole, start, length) {
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

/// Where bytes lie in a file that can be sent from.
pub struct InFile {
    pub file: BorrowedFd<'static>,
    pub offset: u64,
}

/// Where `bytes` can be sent from without a copy: known for bytes of large blocks that were sent
/// before. A caller that is told so must send them from there while it holds them.
pub fn in_file(bytes: &[u8]) -> Option<InFile> {
    let arena = ARENA.get()?.as_ref()?;
    let offset = bytes.as_ptr().addr().checked_sub(arena.base.addr().get())?;
    let covered: Range<usize> = offset / GRANULE..(offset + bytes.len()).div_ceil(GRANULE);
    let sent = arena.sent.get(covered)?;
    if sent.first()?.load(Ordering::Relaxed) == UNSENT {
        sent.first()?.store(COPIED, Ordering::Relaxed);
        return None;
    }
    for sent in sent {
        // Mostly so already, and then no other processor's copy of the line is taken from it.
        if sent.load(Ordering::Relaxed) != SENT_FROM_FILE {
            sent.store(SENT_FROM_FILE, Ordering::Relaxed);
        }
    }
    Some(InFile {
        file: arena.file.as_fd(),
        offset: offset as u64,
    })
}

impl Arena {
    fn new() -> Option<Arena> {
        // The system would end a process that makes a file longer than this.
        let (longest, _) = getrlimit(Resource::RLIMIT_FSIZE).ok()?;
        if longest < RESERVED as u64 {
            return None;
        }
        let file = File::from(memfd_create("caje-blocks", MFdFlags::MFD_CLOEXEC).ok()?);
        file.set_len(RESERVED as u64).ok()?;
        let length = RESERVED.try_into().ok()?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else maps the file, and
        // it is never unmapped.
        let base = unsafe { mmap(None, length, protection, flags, &file, 0) };
        let base = match base {
            Ok(base) => base.cast(),
            Err(error) => {
                tracing::info!(%error, "blocks are sent by copying");
                return None;
            }
        };
        // Asked for as zeroes, which the system has at no cost until they are written.
        let sent = Box::into_raw(vec![UNSENT; GRANULES].into_boxed_slice());
        // SAFETY: an `AtomicU8` has the size and alignment of a `u8`, and this is the only pointer.
        let sent = unsafe { Box::from_raw(sent as *mut [AtomicU8]) };
        Some(Arena {
            file,
            base,
            sent,
            free: Mutex::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::num::NonZeroUsize;

    use socket2::SockRef;

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
    fn what_was_sent_from_the_file_never_changes() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binding");
        let address = listener.local_addr().expect("its address");
        let mut client = TcpStream::connect(address).expect("connecting");
        let (server, _) = listener.accept().expect("accepting");
        let mut addresses = Vec::new();
        for byte in 0..20 {
            let block = block_of(byte);
            let bytes = block.reader().slice(0..LENGTH);
            assert!(in_file(&bytes).is_none(), "the first time it is copied");
            let place = in_file(&bytes).expect("a file to send from, outside of strict limits");
            addresses.push(bytes.as_ptr().addr());
            let length = NonZeroUsize::new(LENGTH);
            let sent = SockRef::from(&server).sendfile(&place.file, place.offset as usize, length);
            // Nobody reads meanwhile: the bytes stand in the queues.
            assert_eq!(sent.expect("sending"), LENGTH);
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
    fn what_is_sent_once_is_reused_without_a_hole() {
        let block = block_of(1);
        let bytes = block.reader().slice(0..LENGTH);
        assert!(in_file(&bytes).is_none());
        let buffer = bytes.as_ptr().addr();
        drop((block, bytes));
        let again = block_of(2);
        let bytes = again.reader().slice(0..LENGTH);
        if bytes.as_ptr().addr() == buffer {
            assert!(in_file(&bytes).is_none(), "its counting begins anew");
        }
    }

    #[test]
    fn small_blocks_and_foreign_bytes_have_no_file() {
        let mut block = GrowingBlock::with_capacity(4096);
        block.append(&[1; 4096]);
        let bytes = block.reader().slice(0..4096);
        for bytes in [&bytes[..], &[0; 100], &[]] {
            assert!(in_file(bytes).is_none());
            assert!(in_file(bytes).is_none());
        }
    }
}
