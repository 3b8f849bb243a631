//! Cells that many threads add to without sharing a cache line.
//!
//! Every thread has a slot, given out in order of first use and kept for the thread's life. Each
//! family of metrics holds one row of cells per slot; a row starts on a cache line of its own.
//! Threads beyond the number of slots share one (adds are atomic, so the sum stays right).

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// One cache line of cells, so that two threads' rows never meet in one.
#[derive(Default)]
#[repr(align(64))]
struct Line([AtomicU64; CELLS_PER_LINE]);

const CELLS_PER_LINE: usize = 8;
const _: () = assert!(size_of::<Line>() == 64);

pub(super) struct Sharded {
    lines: Box<[Line]>,
    lines_per_slot: usize,
    slot_mask: usize,
}

impl Sharded {
    /// `cells` cells, all zero, in as many rows as this machine usefully has threads.
    pub(super) fn new(cells: usize) -> Sharded {
        let slots = slot_count();
        let lines_per_slot = cells.div_ceil(CELLS_PER_LINE).max(1);
        let mut lines = Vec::new();
        lines.resize_with(slots * lines_per_slot, Line::default);
        Sharded {
            lines: lines.into_boxed_slice(),
            lines_per_slot,
            slot_mask: slots - 1,
        }
    }

    fn cell(&self, slot: usize, index: usize) -> &AtomicU64 {
        let line = slot * self.lines_per_slot + index / CELLS_PER_LINE;
        &self.lines[line].0[index % CELLS_PER_LINE]
    }

    /// Adds to the calling thread's row. Wraps, so that `add(1)` on one thread and `add(-1)` on
    /// another cancel.
    pub(super) fn add(&self, index: usize, amount: u64) {
        self.cell(thread_slot() & self.slot_mask, index)
            .fetch_add(amount, Relaxed);
    }

    /// The sum over all threads. Adds that race with it may or may not be in it.
    pub(super) fn sum(&self, index: usize) -> u64 {
        (0..=self.slot_mask)
            .map(|slot| self.cell(slot, index).load(Relaxed))
            .fold(0, u64::wrapping_add)
    }

    /// Replaces the value. Only for cells that nobody adds to.
    pub(super) fn set(&self, index: usize, value: u64) {
        self.cell(0, index).store(value, Relaxed);
    }
}

/// The calling thread's slot number, unbounded: callers mask or divide it.
pub(super) fn thread_slot() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SLOT: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    SLOT.with(|slot| {
        if slot.get() == usize::MAX {
            slot.set(NEXT.fetch_add(1, Relaxed));
        }
        slot.get()
    })
}

/// A power of two, somewhat above the number of cores: data threads, workers and the control
/// runtime.
pub(super) fn slot_count() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores + 4).next_power_of_two().clamp(8, 128)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_threads_and_lets_opposite_adds_cancel() {
        let cells = Sharded::new(20);
        std::thread::scope(|scope| {
            for _ in 0..40 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        cells.add(19, 1);
                        cells.add(3, 1);
                        cells.add(3, u64::MAX);
                    }
                });
            }
        });
        assert_eq!(cells.sum(19), 40_000);
        assert_eq!(cells.sum(3), 0);
        assert_eq!(cells.sum(0), 0);
    }
}
