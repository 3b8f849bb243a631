//! The writer thread: finds room for blocks, writes them, and evicts.
//!
//! What it keeps true:
//! - At most [`WRITES`] writes are in flight; what waits before them is bounded by the dirty budget.
//! - Eviction begins when usage crosses the high mark and ends below the low one; it is driven by
//!   what is put and published, never by a clock. Room is looked for in this order: pages with disk
//!   space, more disk space, holes between blocks of other sizes, other objects' pages.
//! - A block that finds no room stays in memory, and those behind it do not wait for the same room.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};

use super::index::Message;
use super::io::{self, FrozenBlock, GrowingBlock, PAGE_BYTES, Segment};
use super::layout::{AREA_PAGES, Extent, PageMap, block_crc, pages_for, segment_header};
use super::object::{Object, Slot};
use super::recover::segment_path;
use super::{DirtyBytes, Disk, DiskHealth, FULL_PAUSE, GROWTH_PAUSE, Metrics, Shared};
use crate::block::BlockIndex;

/// Writes in flight at once.
const WRITES: usize = 32;

/// Disk space is reserved in steps of 64 MiB.
const GROWTH_PAGES: u32 = 16 * AREA_PAGES;

/// Usage, in percent of the limit, at which eviction begins.
const HIGH_PERCENT: u64 = 95;

/// Usage at which it ends.
const LOW_PERCENT: u64 = 92;

/// How long a block waits for the pages of evicted objects: for a commit of the index, and for
/// readers to let go.
const ROOM_PATIENCE: Duration = Duration::from_millis(500);

/// How often one block may make others go.
const ROOM_ROUNDS: usize = 8;

pub(super) enum Job {
    Write(Write),
    Evict,
    Stop { discard: bool },
}

/// A block to be written.
pub(super) struct Write {
    pub object: Arc<Object>,
    pub block: BlockIndex,
    pub frozen: FrozenBlock,
    /// What readers are given meanwhile; tells this block from a later one at the same place.
    pub kept: Bytes,
    #[expect(
        dead_code,
        reason = "counts the block as dirty until the write is dropped"
    )]
    pub dirty: DirtyBytes,
}

/// The writer thread: until told to stop.
pub(super) fn run(shared: Arc<Shared>, jobs: mpsc::UnboundedReceiver<Job>) {
    let rings = shared
        .disk
        .as_ref()
        .is_some_and(|disk| disk.io.uses_rings());
    if rings && io::ring_available().is_ok() {
        return tokio_uring::start(async move {
            let _ring = io::attach_ring();
            serve(shared, jobs).await;
        });
    }
    match tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
    {
        Ok(runtime) => runtime.block_on(serve(shared, jobs)),
        Err(error) => shared.give_up_disk(&format!("no runtime for the writer: {error}")),
    }
}

async fn serve(shared: Arc<Shared>, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let writes = Arc::new(Semaphore::new(WRITES));
    while let Some(job) = jobs.recv().await {
        match job {
            Job::Write(write) => shared.write(write, &writes).await,
            Job::Evict => {
                shared.evict_asked.store(false, Ordering::Release);
                shared.evict_surplus();
            }
            Job::Stop { discard } => {
                if discard {
                    return;
                }
                break;
            }
        }
    }
    // No operation is left behind. The semaphore is never closed.
    drop(writes.acquire_many(WRITES as u32).await);
}

impl Shared {
    async fn write(self: &Arc<Self>, write: Write, writes: &Arc<Semaphore>) {
        let Ok(permit) = writes.clone().acquire_owned().await else {
            return;
        };
        let Some(disk) = &self.disk else {
            return self.keep_in_memory(&write);
        };
        if write.object.is_gone() || disk.writes_off.load(Ordering::Relaxed) {
            return self.keep_in_memory(&write);
        }
        let bytes = write.frozen.len() as u32;
        let crc = block_crc(write.object.id().0, write.block.0, write.frozen.as_slice());
        let Some(page) = self.find_room(disk, pages_for(bytes)).await else {
            Metrics::add(&self.metrics.enospc, 1);
            return self.keep_in_memory(&write);
        };
        let extent = Extent { page, bytes, crc };
        let Some((segment, offset)) = disk.locate(page) else {
            self.free_extent(disk, extent);
            return self.keep_in_memory(&write);
        };
        let shared = self.clone();
        let frozen = write.frozen.clone();
        disk.io.write(segment, offset, &frozen, move |outcome| {
            shared.written(write, extent, outcome);
            drop(permit);
        });
    }

    /// A write has ended.
    fn written(&self, write: Write, extent: Extent, outcome: std::io::Result<()>) {
        let Some(disk) = &self.disk else { return };
        if let Err(error) = outcome {
            self.write_failed(disk, &error);
            self.free_extent(disk, extent);
            return self.keep_in_memory(&write);
        }
        Metrics::add(&self.metrics.writes, 1);
        Metrics::add(&self.metrics.write_bytes, extent.bytes.into());
        disk.succeeded();
        self.disk_has_room(disk);
        let mut state = write.object.state.lock();
        if write.object.is_gone() || !is_waiting(&write, state.slots.get(write.block.0)) {
            drop(state);
            // Nobody can know of these pages yet.
            self.free_extent(disk, extent);
            return self.keep_in_memory(&write);
        }
        write
            .object
            .set_slot(&mut state, write.block.0, Slot::Disk(extent));
        write.object.queue_row(&mut state);
        drop(state);
    }

    /// The block will not be written: the memory tier has it as long as it has room.
    pub(super) fn keep_in_memory(&self, write: &Write) {
        write.object.set_without_place();
        let mut state = write.object.state.lock();
        if is_waiting(write, state.slots.get(write.block.0)) {
            let bytes = write.frozen.len() as u32;
            write
                .object
                .set_slot(&mut state, write.block.0, Slot::Memory { bytes });
        }
    }

    fn free_extent(&self, disk: &Disk, extent: Extent) {
        disk.map.lock().free(extent.page, extent.pages());
        disk.freed.notify_waiters();
    }

    fn write_failed(&self, disk: &Disk, error: &std::io::Error) {
        if is_full(error) {
            Metrics::add(&self.metrics.enospc, 1);
            return self.disk_is_full(disk, error);
        }
        Metrics::add(&self.metrics.write_errors, 1);
        tracing::warn!(%error, "a write to disk failed");
        if error.raw_os_error() == Some(nix::libc::EROFS) {
            self.stop_writing("the file system is read-only");
        } else {
            self.set_health(DiskHealth::Degraded {
                reason: format!("a write failed: {error}"),
            });
            self.count_error(disk, error);
        }
    }

    fn disk_is_full(&self, disk: &Disk, error: &std::io::Error) {
        let first = disk
            .full_until
            .lock()
            .replace(Instant::now() + FULL_PAUSE)
            .is_none();
        if first {
            tracing::warn!(%error, "the disk is full; new blocks may live in memory only");
        }
        self.set_health(DiskHealth::Degraded {
            reason: format!("the disk is full: {error}"),
        });
    }

    /// A write has gone well: what was wrong before is over, but for what writes do not show.
    fn disk_has_room(&self, disk: &Disk) {
        let mut full = disk.full_until.lock();
        if full.is_some_and(|until| Instant::now() >= until) {
            *full = None;
        }
        let is_full = full.is_some();
        drop(full);
        if !is_full {
            self.set_well(disk);
        }
    }

    async fn find_room(&self, disk: &Disk, pages: u32) -> Option<u32> {
        self.keep_below_mark(disk);
        let patience = Instant::now() + ROOM_PATIENCE;
        for round in 0..ROOM_ROUNDS {
            let mut freed = std::pin::pin!(disk.freed.notified());
            freed.as_mut().enable();
            if let Some(page) = disk.map.lock().allocate(pages) {
                return Some(page);
            }
            if self.grow(disk) {
                continue;
            }
            if let Some(page) = disk.map.lock().allocate_anywhere(pages) {
                return Some(page);
            }
            let share = u64::from(disk.map.lock().grown() / 64).max(pages.into());
            let doomed = disk.doomed.load(Ordering::Acquire);
            if round > 0 || doomed < share {
                // What is spared goes only where nothing else will become free.
                let may_take_spared = doomed == 0 && self.is_full_of_spared(disk);
                self.evict_pages(disk, share, may_take_spared);
            }
            if disk.doomed.load(Ordering::Acquire) == 0 {
                // Nothing to evict: there is nothing, or it belongs to bodies that are not published yet.
                return None;
            }
            disk.index.send(Message::Hurry);
            let left = patience.saturating_duration_since(Instant::now());
            if disk.is_without_room() || tokio::time::timeout(left, freed).await.is_err() {
                // Readers hold what was evicted. The next blocks shall not wait as long.
                disk.full_until
                    .lock()
                    .get_or_insert_with(|| Instant::now() + FULL_PAUSE);
                return None;
            }
        }
        None
    }

    /// Reserves more disk space; false when there is none to be had.
    fn grow(&self, disk: &Disk) -> bool {
        let (grown, limit) = {
            let map = disk.map.lock();
            (map.grown(), map.limit())
        };
        let paused = disk
            .no_growth_until
            .lock()
            .is_some_and(|until| Instant::now() < until);
        if grown >= limit || paused {
            return false;
        }
        let number = grown / disk.segment_pages;
        let first = number * disk.segment_pages;
        let end = first.saturating_add(disk.segment_pages).min(limit);
        let target = grown.saturating_add(GROWTH_PAGES).min(end);
        match self.reserve(disk, number, target - first) {
            Ok(()) => {
                disk.map.lock().grow(target);
                if disk.no_growth_until.lock().take().is_some() {
                    tracing::info!("more of the disk can be used again");
                }
                true
            }
            Err(error) => {
                let until = Instant::now() + GROWTH_PAUSE;
                let first = disk.no_growth_until.lock().replace(until).is_none();
                if first {
                    let bytes = u64::from(grown) * PAGE_BYTES as u64;
                    tracing::warn!(%error, bytes, "no more of the disk can be reserved than this");
                }
                if is_full(&error) {
                    let reason = format!("the disk is full: {error}");
                    self.set_health(DiskHealth::Degraded { reason });
                } else {
                    self.write_failed(disk, &error);
                }
                false
            }
        }
    }

    /// Gives a segment its first `pages` pages; makes the file when it is new.
    fn reserve(&self, disk: &Disk, number: u32, pages: u32) -> std::io::Result<()> {
        let existing = disk.segments.read().get(number as usize).cloned();
        let is_new = existing.is_none();
        let segment = match existing {
            Some(segment) => segment,
            None => Arc::new(Segment::open(&segment_path(&disk.dir, number))?),
        };
        if is_new && !segment.is_direct() {
            tracing::warn!("the file system refuses O_DIRECT; blocks go through the page cache");
        }
        disk.io
            .reserve(&segment, u64::from(pages) * PAGE_BYTES as u64)?;
        if is_new {
            let mut header = GrowingBlock::with_capacity(PAGE_BYTES);
            header.append(&segment_header(disk.store_id, number));
            segment.write_blocking(0, &header.freeze().source())?;
            disk.segments.write().push(segment);
        }
        Ok(())
    }

    /// Begins to evict when usage has crossed the high mark, and goes on to the low one; with what is spared only to the
    /// high one.
    fn keep_below_mark(&self, disk: &Disk) {
        let (used, room) = {
            let map = disk.map.lock();
            (u64::from(map.used()), u64::from(disk.reach(&map)))
        };
        let high = room * HIGH_PERCENT / 100;
        let stays = || used.saturating_sub(disk.doomed.load(Ordering::Acquire));
        if stays() > high {
            self.evict_pages(disk, stays() - room * LOW_PERCENT / 100, false);
            if self.is_full_of_spared(disk) {
                self.evict_pages(disk, stays().saturating_sub(high), true);
            }
        }
    }

    /// Whether what is spared takes so much that there is no room without it. Where it does not, the rest is being
    /// written or becomes free.
    fn is_full_of_spared(&self, disk: &Disk) -> bool {
        let room = u64::from(disk.reach(&disk.map.lock()));
        let spared = self.spared_pages.load(Ordering::Relaxed);
        u64::try_from(spared).unwrap_or_default() > room * LOW_PERCENT / 100
    }

    /// Evicts objects until so many more pages will become free, or all will be. What lives in memory
    /// only has no pages to give, and stays.
    fn evict_pages(&self, disk: &Disk, pages: u64, may_take_spared: bool) {
        let used = u64::from(disk.map.lock().used());
        let target = used.min(disk.doomed.load(Ordering::Acquire) + pages);
        while disk.doomed.load(Ordering::Acquire) < target && self.evict_one(may_take_spared) {}
    }

    /// Evicts while there are too many objects, or too much in memory that is nowhere else.
    fn evict_surplus(&self) {
        let objects = self.queue.lock().len();
        if objects > self.max_objects {
            let low = self.max_objects - self.max_objects / 50;
            (low..objects).all(|_| self.evict_one(true));
        }
        while self.memory_is_over() && self.evict_one(true) {}
    }

    fn evict_one(&self, may_take_spared: bool) -> bool {
        let victim = self.queue.lock().evict(may_take_spared);
        let Some(victim) = victim else {
            return false;
        };
        let bytes = victim.state.lock().bytes;
        if self.doom(&victim) {
            Metrics::add(&self.metrics.evictions, 1);
            Metrics::add(&self.metrics.evicted_bytes, bytes);
            (self.events.on_evicted)(&victim);
        }
        true
    }
}

impl Disk {
    /// Whether the disk had no more to reserve when last asked.
    pub(super) fn cannot_grow(&self) -> bool {
        self.no_growth_until.lock().is_some()
    }

    /// Pages that there may be as far as is known: all, unless the disk had no more to reserve.
    pub(super) fn reach(&self, map: &PageMap) -> u32 {
        if self.cannot_grow() {
            map.grown()
        } else {
            map.limit()
        }
    }

    /// Whether an attempt to get room has failed only just now.
    fn is_without_room(&self) -> bool {
        self.full_until
            .lock()
            .is_some_and(|until| Instant::now() < until)
    }
}

/// Whether the block's place still waits for this very write.
fn is_waiting(write: &Write, slot: Option<&Slot>) -> bool {
    matches!(slot, Some(Slot::Unwritten(bytes)) if bytes.as_ptr() == write.kept.as_ptr())
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::ENOSPC | nix::libc::EDQUOT | nix::libc::EFBIG)
    )
}
