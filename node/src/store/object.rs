//! A body in the store: which of its blocks are present, and where.
//!
//! ```text
//! a block:  absent ──put──► unwritten ──written──► on disk ──bad checksum, I/O error──► absent
//!                 │            └──no room, disk off──► in memory only ──evicted──► absent
//!                 └──put, no disk──────────────────────────┘
//! ```
//!
//! What it keeps true:
//! - A block that is present is as long as it must be: a whole block, or the rest of a body whose
//!   length is known.
//! - Extents go back to the page map only when the row is gone *and* nobody holds the object, so
//!   that a reader never meets another body's bytes; the index thread holds it until the row's
//!   deletion is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::SetOnce;

use super::layout::{Extent, GROUP_BLOCKS, GroupWriter};
use super::memory::Memory;
use super::usage::{Place, Used};
use super::{ReadError, Shared};
use crate::block::{BlockIndex, BlockSize, BodyId};

const LENGTH_UNKNOWN: u64 = u64::MAX;

/// One stored body. Cheap to share; the bytes are reached through the store.
pub struct Object {
    id: BodyId,
    block_size: BlockSize,
    length: AtomicU64,
    gone: AtomicBool,
    used: AtomicBool,
    /// Seconds since 1970; 0 when never touched.
    last_use: AtomicU32,
    /// `last_use` as the index knows it.
    saved_use: AtomicU32,
    /// Blocks that wait to be written, so that the hot path need not look when there are none.
    unwritten: AtomicU32,
    /// A block of it found no place on the disk.
    without_place: AtomicBool,
    memory: Arc<Memory>,
    pub(super) shared: Weak<Shared>,
    pub(super) state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub slots: Slots,
    /// Reads from the disk that others can join, by block.
    pub reading: BTreeMap<u32, Arc<Flight>>,
    /// Bytes of all present blocks.
    pub bytes: u64,
    /// Pages of the extents of present blocks.
    pub pages: u32,
    /// How many slots are `Memory`.
    pub memory_only: u32,
    /// Whether there is or will be a row.
    pub published: bool,
    /// Whether the index thread has been told of the changes below.
    pub row_queued: bool,
    pub dirty_groups: BTreeSet<u32>,
    pub place: Option<Place>,
    /// Given up only after all that is not.
    pub spared: bool,
    /// Extents of blocks given up: not reused before the object goes.
    pub retired: Vec<Extent>,
    /// Pages that have been announced as soon to be free.
    pub doomed: u32,
}

/// Where a present block is.
pub(super) enum Slot {
    Disk(Extent),
    /// On its way to the disk.
    Unwritten(Box<Bytes>),
    /// In the memory tier, as long as that keeps it.
    Memory {
        bytes: u32,
    },
}

impl Slot {
    pub(super) fn bytes(&self) -> u32 {
        match self {
            Slot::Disk(extent) => extent.bytes,
            Slot::Unwritten(bytes) => bytes.len() as u32,
            Slot::Memory { bytes } => *bytes,
        }
    }
}

/// Slots by block. Most bodies have one block, which then costs no allocation.
#[derive(Default)]
pub(super) struct Slots {
    first: Option<Slot>,
    rest: BTreeMap<u32, Slot>,
}

impl Slots {
    pub(super) fn get(&self, block: u32) -> Option<&Slot> {
        if block == 0 {
            self.first.as_ref()
        } else {
            self.rest.get(&block)
        }
    }

    pub(super) fn insert(&mut self, block: u32, slot: Slot) -> Option<Slot> {
        if block == 0 {
            self.first.replace(slot)
        } else {
            self.rest.insert(block, slot)
        }
    }

    pub(super) fn remove(&mut self, block: u32) -> Option<Slot> {
        if block == 0 {
            self.first.take()
        } else {
            self.rest.remove(&block)
        }
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Slot)> {
        self.range(0..u32::MAX)
    }

    pub(super) fn range(&self, range: Range<u32>) -> impl Iterator<Item = (u32, &Slot)> {
        let first = if range.start == 0 && range.end > 0 {
            self.first.as_ref()
        } else {
            None
        };
        // An empty map costs nothing, and a range that is turned round must not panic.
        let rest = range.start..range.end.max(range.start);
        let rest = self.rest.range(rest).map(|(block, slot)| (*block, slot));
        first.map(|slot| (0, slot)).into_iter().chain(rest)
    }
}

/// A read from the disk and those who wait for it.
#[derive(Default)]
pub(super) struct Flight {
    pub outcome: SetOnce<Result<Bytes, ReadError>>,
}

impl Object {
    pub(super) fn new(
        id: BodyId,
        block_size: BlockSize,
        memory: Arc<Memory>,
        shared: Weak<Shared>,
    ) -> Self {
        Self {
            id,
            block_size,
            length: AtomicU64::new(LENGTH_UNKNOWN),
            gone: AtomicBool::new(false),
            used: AtomicBool::new(false),
            last_use: AtomicU32::new(0),
            saved_use: AtomicU32::new(0),
            unwritten: AtomicU32::new(0),
            without_place: AtomicBool::new(false),
            memory,
            shared,
            state: Mutex::new(State::default()),
        }
    }

    pub fn id(&self) -> BodyId {
        self.id
    }

    /// Bytes of the whole body, when known.
    pub fn length(&self) -> Option<u64> {
        let length = self.length.load(Ordering::Acquire);
        if length == LENGTH_UNKNOWN {
            None
        } else {
            Some(length)
        }
    }

    /// Says how long the body is. Present blocks that do not fit that length are given up.
    pub fn set_length(self: &Arc<Self>, length: u64) {
        if self.length() == Some(length) {
            return;
        }
        let mut state = self.state.lock();
        self.length.store(length, Ordering::Release);
        let misfits: Vec<u32> = state
            .slots
            .iter()
            .filter(|(block, slot)| !self.fits(*block, slot.bytes()))
            .map(|(block, _)| block)
            .collect();
        for block in misfits {
            self.give_up(&mut state, block);
            self.memory.remove(self.id, BlockIndex(block));
        }
        state.dirty_groups.insert(0);
        self.queue_row(&mut state);
    }

    /// Whether the block can be had from the store.
    pub fn contains(&self, block: BlockIndex) -> bool {
        self.is_present(&mut self.state.lock(), block.0)
    }

    /// Whether all of the body can be had from the store.
    pub fn is_complete(&self) -> bool {
        let Some(length) = self.length() else {
            return false;
        };
        let mut state = self.state.lock();
        self.settle(&mut state, 0..u32::MAX);
        state.slots.len() as u64 == u64::from(self.block_size.count(length))
    }

    /// The runs of absent blocks within `range`; two runs with at most `max_gap` present blocks
    /// between them are one.
    pub fn missing_runs(&self, range: Range<u32>, max_gap: u32) -> Vec<Range<u32>> {
        let mut state = self.state.lock();
        self.settle(&mut state, range.clone());
        let mut runs: Vec<Range<u32>> = Vec::new();
        let mut add = |run: Range<u32>| {
            if run.is_empty() {
                return;
            }
            match runs.last_mut() {
                Some(last) if run.start - last.end <= max_gap => last.end = run.end,
                _ => runs.push(run),
            }
        };
        let mut from = range.start;
        for (block, _) in state.slots.range(range.clone()) {
            add(from..block);
            from = block + 1;
        }
        add(from..range.end);
        runs
    }

    /// Removed or evicted: no longer to be found, though those who hold it may read on.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Whether a block of it found no place on the disk, and lives in memory as long as that has room.
    pub fn is_without_place(&self) -> bool {
        self.without_place.load(Ordering::Relaxed)
    }

    pub(super) fn set_without_place(&self) {
        self.without_place.store(true, Ordering::Relaxed);
    }

    /// Bytes of the body that are in the store.
    pub fn present_bytes(&self) -> u64 {
        let mut state = self.state.lock();
        self.settle(&mut state, 0..u32::MAX);
        state.bytes
    }

    /// When it was last touched; 1970 when never.
    pub fn last_use(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.last_use.load(Ordering::Relaxed).into())
    }

    pub(super) fn touch(&self, now: SystemTime) {
        let seconds = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
        // Stores only what is new: a hot object's cache line stays shared.
        if self.last_use.load(Ordering::Relaxed) != seconds {
            self.last_use.store(seconds, Ordering::Relaxed);
        }
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// `last_use` in seconds, when the index does not know it yet; supposes that it soon will.
    pub(super) fn take_unsaved_use(&self) -> Option<u32> {
        let last_use = self.last_use.load(Ordering::Relaxed);
        let saved = self.saved_use.swap(last_use, Ordering::Relaxed);
        if saved == last_use {
            None
        } else {
            Some(last_use)
        }
    }

    pub(super) fn restore_use(&self, seconds: u32) {
        self.last_use.store(seconds, Ordering::Relaxed);
        self.saved_use.store(seconds, Ordering::Relaxed);
    }

    pub(super) fn restore_length(&self, length: Option<u64>) {
        self.length
            .store(length.unwrap_or(LENGTH_UNKNOWN), Ordering::Relaxed);
    }

    /// Whether a block of so many bytes is whole at this place.
    pub(super) fn fits(&self, block: u32, bytes: u32) -> bool {
        let block = BlockIndex(block);
        let start = self.block_size.start(block);
        let full = u64::from(self.block_size.get());
        match self.length() {
            Some(length) => start < length && u64::from(bytes) == (length - start).min(full),
            None => u64::from(bytes) == full,
        }
    }

    pub(super) fn unwritten(&self, block: BlockIndex) -> Option<Bytes> {
        if self.unwritten.load(Ordering::Acquire) == 0 {
            return None;
        }
        match self.state.lock().slots.get(block.0) {
            Some(Slot::Unwritten(bytes)) => Some(bytes.as_ref().clone()),
            _ => None,
        }
    }

    /// Whether a block is present. A block that was in memory only may have been evicted unnoticed:
    /// then it is given up now.
    pub(super) fn is_present(&self, state: &mut State, block: u32) -> bool {
        match state.slots.get(block) {
            None => false,
            Some(Slot::Disk(_) | Slot::Unwritten(_)) => true,
            Some(Slot::Memory { .. }) => {
                let present = self.memory.contains(self.id, BlockIndex(block));
                if !present {
                    self.give_up(state, block);
                }
                present
            }
        }
    }

    fn settle(&self, state: &mut State, range: Range<u32>) {
        if state.memory_only == 0 {
            return;
        }
        let in_memory: Vec<u32> = state
            .slots
            .range(range)
            .filter(|(_, slot)| matches!(slot, Slot::Memory { .. }))
            .map(|(block, _)| block)
            .collect();
        for block in in_memory {
            self.is_present(state, block);
        }
    }

    /// Enters a block's place and keeps the sums.
    pub(super) fn set_slot(&self, state: &mut State, block: u32, slot: Slot) {
        self.clear_slot(state, block);
        state.bytes += u64::from(slot.bytes());
        match &slot {
            Slot::Disk(extent) => {
                state.pages += extent.pages();
                if state.spared {
                    self.count_spared(i64::from(extent.pages()));
                }
                state.dirty_groups.insert(block / GROUP_BLOCKS);
            }
            Slot::Unwritten(_) => {
                self.unwritten.fetch_add(1, Ordering::Release);
            }
            Slot::Memory { bytes } => {
                state.memory_only += 1;
                if let Some(shared) = self.shared.upgrade() {
                    shared
                        .memory_only_bytes
                        .fetch_add((*bytes).into(), Ordering::Relaxed);
                }
            }
        }
        state.slots.insert(block, slot);
    }

    fn clear_slot(&self, state: &mut State, block: u32) -> Option<Slot> {
        let slot = state.slots.remove(block)?;
        state.bytes -= u64::from(slot.bytes());
        match &slot {
            Slot::Disk(extent) => {
                state.pages -= extent.pages();
                if state.spared {
                    self.count_spared(-i64::from(extent.pages()));
                }
                state.dirty_groups.insert(block / GROUP_BLOCKS);
            }
            Slot::Unwritten(_) => {
                self.unwritten.fetch_sub(1, Ordering::Release);
            }
            Slot::Memory { bytes } => {
                state.memory_only -= 1;
                if let Some(shared) = self.shared.upgrade() {
                    shared
                        .memory_only_bytes
                        .fetch_sub((*bytes).into(), Ordering::Relaxed);
                }
            }
        }
        Some(slot)
    }

    /// Whether it is spared from now on; the caller sees to its place. False if nothing has changed.
    pub(super) fn set_spared(&self, state: &mut State, is_spared: bool) -> bool {
        if state.spared == is_spared {
            return false;
        }
        state.spared = is_spared;
        let pages = i64::from(state.pages);
        self.count_spared(if is_spared { pages } else { -pages });
        true
    }

    fn count_spared(&self, pages: i64) {
        if let Some(shared) = self.shared.upgrade() {
            let spared = &shared.spared_pages;
            spared.fetch_add(pages, Ordering::Relaxed);
        }
    }

    /// Makes a block absent. Its extent is not used again while the object lives.
    pub(super) fn give_up(&self, state: &mut State, block: u32) {
        if let Some(Slot::Disk(extent)) = self.clear_slot(state, block) {
            state.retired.push(extent);
        }
    }

    /// Tells the index thread that the row has changed, once until it has looked.
    pub(super) fn queue_row(self: &Arc<Self>, state: &mut State) {
        if !state.published || state.row_queued || self.is_gone() {
            return;
        }
        if let Some(shared) = self.shared.upgrade() {
            state.row_queued = true;
            shared.index_changed(self);
        }
    }

    /// The groups changed since the last call, for the index thread.
    pub(super) fn take_dirty_groups(&self) -> BTreeSet<u32> {
        let mut state = self.state.lock();
        state.row_queued = false;
        std::mem::take(&mut state.dirty_groups)
    }

    /// Bytes of the body on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        let state = self.state.lock();
        let on_disk = |slot: &Slot| match slot {
            Slot::Disk(extent) => u64::from(extent.bytes),
            _ => 0,
        };
        state.slots.iter().map(|(_, slot)| on_disk(slot)).sum()
    }

    /// A group of blocks as stored, or `None` when none of them is on disk.
    pub(super) fn encode_group(&self, group: u32) -> Option<Vec<u8>> {
        let state = self.state.lock();
        let first = group * GROUP_BLOCKS;
        let blocks = state.slots.range(first..first.saturating_add(GROUP_BLOCKS));
        let mut writer = GroupWriter::new(group, 1);
        let mut any = false;
        for (block, slot) in blocks {
            if let Slot::Disk(extent) = slot {
                writer.push(block, *extent);
                any = true;
            }
        }
        if any {
            Some(writer.finish(self.id.0))
        } else {
            None
        }
    }
}

impl Used for Object {
    fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let state = std::mem::take(self.state.get_mut());
        if state.spared {
            let pages = i64::from(state.pages);
            shared.spared_pages.fetch_sub(pages, Ordering::Relaxed);
        }
        let mut memory_only = 0;
        for (block, slot) in state.slots.iter() {
            self.memory.remove(self.id, BlockIndex(block));
            if let Slot::Memory { bytes } = slot {
                memory_only += u64::from(*bytes);
            }
        }
        shared
            .memory_only_bytes
            .fetch_sub(memory_only, Ordering::Relaxed);
        let on_disk = state.slots.iter().filter_map(|(_, slot)| match slot {
            Slot::Disk(extent) => Some(*extent),
            _ => None,
        });
        shared.release(on_disk.chain(state.retired.iter().copied()), state.doomed);
    }
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Object")
            .field("id", &self.id.0)
            .finish_non_exhaustive()
    }
}
