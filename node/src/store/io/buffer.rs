//! Page-aligned memory that blocks live in from the first byte received to the last byte sent.
//!
//! What it keeps true:
//! - The part of a buffer that readers may see is written before it is published and never again:
//!   one writer appends behind the published length, readers stay in front of it.
//! - A buffer handed to the kernel is kept alive by its operation (threat K10).
//! - Freed buffers are reused through a bounded pool, so that a stream of blocks costs no page
//!   faults; the pool holds at most [`POOL_BYTES`].

use std::alloc::{self, Layout};
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::arena::Place;

/// Bytes in a page: the unit of disk space, of `O_DIRECT` and of buffer capacity.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Most bytes that idle buffers may hold.
const POOL_BYTES: usize = 8 << 20;

/// Smaller buffers are left to the allocator, which is good at them.
const POOL_MIN_CAPACITY: usize = 64 << 10;

static POOL: Mutex<Idle> = Mutex::new(Idle {
    buffers: Vec::new(),
    bytes: 0,
});

struct Idle {
    /// Oldest first.
    buffers: Vec<Raw>,
    bytes: usize,
}

/// An allocation without an owner: never dropped by itself.
struct Raw {
    pointer: NonNull<u8>,
    capacity: usize,
    /// In the arena. Else the allocator's.
    place: Option<Place>,
}

// SAFETY: a `Raw` is the only handle to its allocation.
unsafe impl Send for Raw {}

impl Raw {
    fn layout(capacity: usize) -> Layout {
        // Capacities come from `Pages::new`, which rounds up to pages; the largest block is 4 MiB.
        Layout::from_size_align(capacity, PAGE_BYTES).expect("a capacity far below isize::MAX")
    }

    fn allocate(capacity: usize) -> Self {
        if capacity >= POOL_MIN_CAPACITY
            && let Some((place, pointer)) = Place::take(capacity)
        {
            return Self {
                pointer,
                capacity,
                place: Some(place),
            };
        }
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero (`Pages::new` rounds up to at least one page).
        let pointer = unsafe { alloc::alloc(layout) };
        let Some(pointer) = NonNull::new(pointer) else {
            alloc::handle_alloc_error(layout)
        };
        Self {
            pointer,
            capacity,
            place: None,
        }
    }

    fn release(self) {
        if let Some(place) = self.place {
            return place.release();
        }
        // SAFETY: allocated by `allocate` with the same layout, and `self` is the only handle.
        unsafe { alloc::dealloc(self.pointer.as_ptr(), Self::layout(self.capacity)) }
    }
}

/// An owned, page-aligned, possibly uninitialised allocation.
struct Pages(Raw);

// SAFETY: `Pages` owns its memory; the types below say who may touch which part of it when.
unsafe impl Send for Pages {}
// SAFETY: as above; nothing is read or written through `&Pages` itself.
unsafe impl Sync for Pages {}

impl Pages {
    fn new(bytes: usize) -> Self {
        let capacity = round_up(bytes.max(1));
        if capacity >= POOL_MIN_CAPACITY {
            let mut idle = POOL.lock();
            if let Some(at) = idle
                .buffers
                .iter()
                .rposition(|raw| raw.capacity == capacity)
            {
                let raw = idle.buffers.remove(at);
                idle.bytes -= capacity;
                raw.place.inspect(|place| place.forget_sent());
                return Self(raw);
            }
        }
        Self(Raw::allocate(capacity))
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let raw = Raw {
            pointer: self.0.pointer,
            capacity: self.0.capacity,
            place: self.0.place,
        };
        // Pages that may still stand in a socket's queue must not be written again.
        let is_on_its_way = raw.place.is_some_and(Place::was_lent);
        let is_pooled = (POOL_MIN_CAPACITY..=POOL_BYTES / 2).contains(&raw.capacity);
        if is_on_its_way || !is_pooled {
            return raw.release();
        }
        let mut idle = POOL.lock();
        let mut surplus = None;
        if idle.bytes + raw.capacity > POOL_BYTES {
            // The oldest goes, so that sizes nobody asks for any more do not stay.
            let oldest = idle.buffers.remove(0);
            idle.bytes -= oldest.capacity;
            surplus = Some(oldest);
        }
        if idle.bytes + raw.capacity <= POOL_BYTES {
            idle.bytes += raw.capacity;
            idle.buffers.push(raw);
            drop(idle);
        } else {
            drop(idle);
            raw.release();
        }
        if let Some(surplus) = surplus {
            surplus.release();
        }
    }
}

/// The memory of one block and how much of it may be read.
pub(crate) struct Buffer {
    pages: Pages,
    /// Bytes from the start that are initialised and will not change any more. Only grows.
    published: AtomicUsize,
}

impl Buffer {
    fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            pages: Pages::new(bytes),
            published: AtomicUsize::new(0),
        })
    }

    fn pointer(&self) -> *mut u8 {
        self.pages.0.pointer.as_ptr()
    }

    fn capacity(&self) -> usize {
        self.pages.0.capacity
    }

    fn readable(&self, range: Range<usize>) -> &[u8] {
        let published = self.published.load(Ordering::Acquire);
        let end = range.end.min(published);
        let start = range.start.min(end);
        // SAFETY: `[0, published)` is inside the allocation, was initialised before `published`
        // was stored with Release, and is never written again.
        unsafe { std::slice::from_raw_parts(self.pointer().add(start), end - start) }
    }
}

/// A block that is being received: one writer appends, any number of [`BlockReader`]s read what
/// has been appended, without copies and without waiting for the end.
pub struct GrowingBlock {
    /// Readers hold clones; only this handle writes.
    buffer: Arc<Buffer>,
}

impl GrowingBlock {
    /// A block that can take `bytes` bytes, rounded up to whole pages of 4 KiB.
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            buffer: Buffer::new(bytes),
        }
    }

    /// Appends as much of `data` as fits and publishes it to the readers; returns how many bytes
    /// that was.
    pub fn append(&mut self, data: &[u8]) -> usize {
        let written = self.written();
        let taken = data.len().min(self.buffer.capacity() - written);
        // SAFETY: `written + taken` is within the allocation; `data` cannot overlap it, because
        // references to the part behind `published` do not exist, and `&mut self` of the only
        // writer excludes a second append.
        unsafe {
            ptr::copy_nonoverlapping(data.as_ptr(), self.buffer.pointer().add(written), taken);
        }
        self.buffer
            .published
            .store(written + taken, Ordering::Release);
        taken
    }

    /// Bytes appended so far.
    pub fn written(&self) -> usize {
        // Only this handle stores, so that its own loads need no ordering.
        self.buffer.published.load(Ordering::Relaxed)
    }

    /// Bytes that fit in all.
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Bytes that still fit.
    pub fn remaining(&self) -> usize {
        self.capacity() - self.written()
    }

    pub fn is_full(&self) -> bool {
        self.remaining() == 0
    }

    /// A handle that reads what is appended, now and later.
    pub fn reader(&self) -> BlockReader {
        BlockReader {
            buffer: self.buffer.clone(),
        }
    }

    /// Ends the writing. The last page is filled up with zeroes, for `O_DIRECT` writes whole pages.
    pub(crate) fn freeze(self) -> FrozenBlock {
        let bytes = self.written();
        let tail = round_up(bytes) - bytes;
        // SAFETY: the range lies behind the published length and inside the allocation (the
        // capacity is whole pages); `self` is the only writer, and it is consumed.
        unsafe { ptr::write_bytes(self.buffer.pointer().add(bytes), 0, tail) };
        FrozenBlock {
            buffer: self.buffer,
            bytes,
        }
    }
}

/// Reads a [`GrowingBlock`] while it grows and after it has been put into the store.
#[derive(Clone)]
pub struct BlockReader {
    buffer: Arc<Buffer>,
}

impl BlockReader {
    /// Bytes that can be read now.
    pub fn written(&self) -> usize {
        self.buffer.published.load(Ordering::Acquire)
    }

    /// The bytes of `range` that have been written, without a copy: empty or shorter than the
    /// range when the writer has not got that far.
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        let end = range.end.min(self.written());
        let start = range.start.min(end);
        if start == end {
            return Bytes::new();
        }
        Bytes::from_owner(Part {
            buffer: self.buffer.clone(),
            range: start..end,
        })
    }
}

struct Part {
    buffer: Arc<Buffer>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        self.buffer.readable(self.range.clone())
    }
}

/// A block nobody writes any more. The bytes up to the next page boundary are initialised.
#[derive(Clone)]
pub(crate) struct FrozenBlock {
    buffer: Arc<Buffer>,
    bytes: usize,
}

impl FrozenBlock {
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Bytes of memory behind it.
    pub(crate) fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.buffer.readable(0..self.bytes)
    }

    /// All of it without a copy; the memory lives as long as the `Bytes` and its clones.
    pub(crate) fn into_bytes(self) -> Bytes {
        let range = 0..self.bytes;
        Bytes::from_owner(Part {
            buffer: self.buffer,
            range,
        })
    }

    /// A copy in memory of the right size, when this one was allocated for more.
    pub(crate) fn shrunk(&self) -> Self {
        let mut copy = GrowingBlock::with_capacity(self.bytes);
        copy.append(self.as_slice());
        copy.freeze()
    }

    pub(crate) fn source(&self) -> Source {
        Source {
            buffer: self.buffer.clone(),
            bytes: round_up(self.bytes),
        }
    }
}

/// Whole pages on their way to the disk. Keeps the memory alive.
#[derive(Clone)]
pub(crate) struct Source {
    buffer: Arc<Buffer>,
    bytes: usize,
}

impl Source {
    pub(super) fn buffer(&self) -> Arc<Buffer> {
        self.buffer.clone()
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: `freeze` initialised everything up to this page boundary, and nobody has
        // written since: a `Source` comes only from a `FrozenBlock`.
        unsafe { std::slice::from_raw_parts(self.buffer.pointer(), self.bytes) }
    }
}

// SAFETY: the memory does not move (it is behind an `Arc` that the operation owns), and
// `[0, bytes)` is initialised and immutable, see `as_slice`.
unsafe impl tokio_uring::buf::IoBuf for Source {
    fn stable_ptr(&self) -> *const u8 {
        self.buffer.pointer()
    }

    fn bytes_init(&self) -> usize {
        self.bytes
    }

    fn bytes_total(&self) -> usize {
        self.bytes
    }
}

/// Memory that one read from the disk fills. Nobody sees it before [`Target::finish`].
pub(crate) struct Target {
    buffer: Arc<Buffer>,
    /// Whole pages to read.
    bytes: usize,
    filled: usize,
}

impl Target {
    /// Memory for a read of `bytes`, rounded up to whole pages.
    pub(crate) fn new(bytes: usize) -> Self {
        let bytes = round_up(bytes);
        Self {
            buffer: Buffer::new(bytes),
            bytes,
            filled: 0,
        }
    }

    /// A second owner that keeps the memory alive; it must not look at it.
    pub(super) fn buffer(&self) -> Arc<Buffer> {
        self.buffer.clone()
    }

    pub(super) fn filled(&self) -> usize {
        self.filled
    }

    /// Reads once at `offset + filled` of the file; returns the bytes read.
    pub(super) fn read_from(
        &mut self,
        file: &std::fs::File,
        offset: u64,
    ) -> std::io::Result<usize> {
        use std::os::fd::AsRawFd;
        let offset = i64::try_from(offset + self.filled as u64)
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
        // SAFETY: the range is inside the allocation, and `&mut self` is the only access to it.
        let read = unsafe {
            nix::libc::pread(
                file.as_raw_fd(),
                self.buffer.pointer().add(self.filled).cast(),
                self.bytes - self.filled,
                offset,
            )
        };
        let read = usize::try_from(read).map_err(|_| std::io::Error::last_os_error())?;
        self.filled += read;
        Ok(read)
    }

    /// The first `bytes` of what was read.
    ///
    /// # Panics
    /// When fewer were read, which the caller has checked.
    pub(super) fn finish(self, bytes: usize) -> FrozenBlock {
        assert!(
            bytes <= self.filled,
            "a block is as long as what was read of it"
        );
        self.buffer.published.store(bytes, Ordering::Release);
        FrozenBlock {
            buffer: self.buffer,
            bytes,
        }
    }
}

// SAFETY: the memory does not move; `[0, filled)` is initialised.
unsafe impl tokio_uring::buf::IoBuf for Target {
    fn stable_ptr(&self) -> *const u8 {
        self.buffer.pointer()
    }

    fn bytes_init(&self) -> usize {
        self.filled
    }

    fn bytes_total(&self) -> usize {
        self.bytes
    }
}

// SAFETY: as above; a `Target` is the only one to reach the memory until `finish`.
unsafe impl tokio_uring::buf::IoBufMut for Target {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.buffer.pointer()
    }

    unsafe fn set_init(&mut self, bytes: usize) {
        self.filled = self.filled.max(bytes);
    }
}

/// The next whole number of pages, in bytes.
pub(crate) const fn round_up(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_BYTES) * PAGE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_see_what_was_appended_and_nothing_more() {
        let mut block = GrowingBlock::with_capacity(5000);
        assert_eq!(block.capacity(), 8192);
        let reader = block.reader();
        assert!(reader.slice(0..10).is_empty());
        assert_eq!(block.append(b"hello"), 5);
        assert_eq!(&reader.slice(1..100)[..], b"ello");
        assert!(reader.slice(7..9).is_empty());
        assert_eq!(block.append(&[7; 10_000]), 8192 - 5);
        assert!(block.is_full());
        let frozen = block.freeze();
        assert_eq!(frozen.len(), 8192);
        assert_eq!(&reader.slice(0..6)[..], b"hello\x07");
    }

    #[test]
    fn a_reader_on_another_thread_reads_along() {
        let mut block = GrowingBlock::with_capacity(1 << 20);
        let reader = block.reader();
        let other = std::thread::spawn(move || {
            let mut seen = 0;
            while seen < 1 << 20 {
                let bytes = reader.slice(seen..1 << 20);
                for (at, byte) in bytes.iter().enumerate() {
                    assert_eq!(*byte, ((seen + at) % 251) as u8);
                }
                seen += bytes.len();
                std::thread::yield_now();
            }
        });
        let all: Vec<u8> = (0..1usize << 20).map(|at| (at % 251) as u8).collect();
        for part in all.chunks(1000) {
            assert_eq!(block.append(part), part.len());
        }
        other.join().unwrap();
    }

    #[test]
    fn a_frozen_block_ends_in_zeroes() {
        drop(GrowingBlock::with_capacity(65_536));
        let mut block = GrowingBlock::with_capacity(65_536);
        block.append(&[9; 100]);
        let frozen = block.freeze();
        let source = frozen.source();
        assert_eq!(source.as_slice().len(), PAGE_BYTES);
        assert!(source.as_slice()[100..].iter().all(|byte| *byte == 0));
        assert_eq!(frozen.shrunk().capacity(), PAGE_BYTES);
        assert_eq!(&frozen.into_bytes()[..], &[9; 100]);
    }
}
