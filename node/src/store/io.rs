//! Disk operations of the store, through the calling thread's ring or through blocking threads.
//!
//! What it keeps true: an operation that was begun is finished and reported exactly once, whatever
//! becomes of those who wait for it, and owns its memory until then. All `unsafe` of the crate lives
//! below this module. It knows neither blocks nor objects.

mod arena;
mod buffer;
mod pool;
mod priority;
mod ring;
mod segment;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use tokio::sync::Semaphore;

pub use arena::may_lend;
pub use buffer::{BlockReader, GrowingBlock};
pub(crate) use buffer::{FrozenBlock, PAGE_BYTES, round_up};
use pool::Pool;
pub use priority::be_gentle;
pub use ring::{RingGuard, attach_ring, ring_available};
pub(crate) use segment::Segment;

/// Errors to be injected into disk operations, for tests. An error number; 0 injects nothing.
#[derive(Debug, Default)]
pub struct Faults {
    /// Writes of blocks fail with it.
    pub write: AtomicI32,
    /// Reads of blocks fail with it.
    pub read: AtomicI32,
    /// Reserving disk space fails with it.
    pub reserve: AtomicI32,
    /// Commits of the index fail, whatever the number.
    pub index: AtomicI32,
    /// Commits of the index find no room, whatever the number.
    pub index_full: AtomicI32,
}

impl Faults {
    pub(crate) fn check(fault: &AtomicI32) -> io::Result<()> {
        match fault.load(Ordering::Relaxed) {
            0 => Ok(()),
            number => Err(io::Error::from_raw_os_error(number)),
        }
    }
}

pub(crate) struct Io {
    pool: Pool,
    uses_rings: bool,
    /// Pages that reads in flight may occupy, so that many readers do not take all memory.
    read_budget: Arc<Semaphore>,
    read_budget_pages: usize,
    faults: Arc<Faults>,
}

impl Io {
    pub(crate) fn new(uses_rings: bool, read_budget_bytes: u64, faults: Arc<Faults>) -> Self {
        let pages = usize::try_from(read_budget_bytes).unwrap_or(usize::MAX) / PAGE_BYTES;
        let read_budget_pages = pages.clamp(1, 1 << 20);
        Self {
            pool: Pool::new(),
            uses_rings,
            read_budget: Arc::new(Semaphore::new(read_budget_pages)),
            read_budget_pages,
            faults,
        }
    }

    pub(crate) fn uses_rings(&self) -> bool {
        self.uses_rings
    }

    /// Reads `bytes` bytes at `offset` and calls `done`, on this thread or on another. When the
    /// thread's runtime ends before that, `done` is dropped without having been called.
    pub(crate) fn read(
        &self,
        segment: Arc<Segment>,
        offset: u64,
        bytes: usize,
        done: impl FnOnce(io::Result<FrozenBlock>) + Send + 'static,
    ) {
        let faults = self.faults.clone();
        if !(self.uses_rings && ring::is_attached()) {
            return self.pool.run(move || {
                let injected = Faults::check(&faults.read);
                done(injected.and_then(|()| segment.read_blocking(offset, bytes)));
            });
        }
        let budget = self.read_budget.clone();
        let pages = (round_up(bytes) / PAGE_BYTES).min(self.read_budget_pages);
        ring::spawn(async move {
            let pages = u32::try_from(pages).unwrap_or(u32::MAX);
            let _permit = budget.acquire_many(pages).await;
            let outcome = match Faults::check(&faults.read) {
                Ok(()) => ring::read(&segment, offset, bytes).await,
                Err(error) => Err(error),
            };
            done(outcome);
        });
    }

    /// Writes the block's pages at `offset` and calls `done`; as [`Io::read`].
    pub(crate) fn write(
        &self,
        segment: Arc<Segment>,
        offset: u64,
        block: &FrozenBlock,
        done: impl FnOnce(io::Result<()>) + Send + 'static,
    ) {
        let faults = self.faults.clone();
        let source = block.source();
        if self.uses_rings && ring::is_attached() {
            ring::spawn(async move {
                let outcome = match Faults::check(&faults.write) {
                    Ok(()) => ring::write(&segment, offset, source).await,
                    Err(error) => Err(error),
                };
                done(outcome);
            });
        } else {
            self.pool.run(move || {
                let injected = Faults::check(&faults.write);
                done(injected.and_then(|()| segment.write_blocking(offset, &source)));
            });
        }
    }

    /// Reserves disk space; blocks.
    pub(crate) fn reserve(&self, segment: &Segment, bytes: u64) -> io::Result<()> {
        Faults::check(&self.faults.reserve)?;
        segment.reserve(bytes)
    }
}
