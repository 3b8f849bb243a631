//! The memory tier: whole blocks within a budget of bytes, in quick_cache's variant of S3-FIFO.
//!
//! A block weighs what its memory takes, not what it holds. Losing a block here loses nothing that
//! is on disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use crate::block::{BlockIndex, BodyId};

/// Bytes that an entry costs besides its block: table slot, owner and reference count.
const ENTRY_BYTES: usize = 160;

/// A shard holds at least this many whole blocks, for one bigger than its shard is never kept.
const BLOCKS_PER_SHARD: u64 = 16;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    body: u64,
    block: u32,
}

#[derive(Clone)]
struct Held {
    bytes: Bytes,
    weight: u32,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Place, Held> for ByBytes {
    fn weight(&self, _: &Place, held: &Held) -> u64 {
        u64::from(held.weight)
    }
}

pub(crate) struct Memory {
    cache: Cache<Place, Held, ByBytes>,
    limit_bytes: u64,
    /// What [`Hold`]s stand for.
    on_hold_bytes: AtomicU64,
}

/// The right to hold a block that the memory tier may drop, until this is dropped.
pub struct Hold {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.memory
            .on_hold_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Memory {
    pub(crate) fn new(limit_bytes: u64, block_bytes: u64) -> Self {
        let shards = (limit_bytes / (block_bytes * BLOCKS_PER_SHARD)).clamp(1, 64);
        let shards = if shards.is_power_of_two() {
            shards
        } else {
            shards.next_power_of_two() / 2
        };
        // Blocks of small bodies are common: between the extremes of 1 KiB and of whole blocks.
        let items = (limit_bytes / (16 << 10)).clamp(shards * 32, 1 << 20);
        let options = OptionsBuilder::new()
            .shards(usize::try_from(shards).unwrap_or(1))
            .estimated_items_capacity(usize::try_from(items).unwrap_or(1 << 10))
            .weight_capacity(limit_bytes)
            .build()
            .expect("capacity and weight are set");
        let cache = Cache::with_options(
            options,
            ByBytes,
            DefaultHashBuilder::default(),
            DefaultLifecycle::default(),
        );
        Self {
            cache,
            limit_bytes,
            on_hold_bytes: AtomicU64::new(0),
        }
    }

    /// `None` where so much is held that a quarter of the tier would stand for it.
    pub(crate) fn hold(self: &Arc<Self>, bytes: u64) -> Option<Hold> {
        let limit = self.limit_bytes / 4;
        let held = &self.on_hold_bytes;
        let more = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= limit);
        held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()?;
        Some(Hold {
            memory: self.clone(),
            bytes,
        })
    }

    pub(crate) fn get(&self, body: BodyId, block: BlockIndex) -> Option<Bytes> {
        self.cache
            .get(&Place {
                body: body.0,
                block: block.0,
            })
            .map(|held| held.bytes)
    }

    /// Without counting as a use.
    pub(crate) fn contains(&self, body: BodyId, block: BlockIndex) -> bool {
        self.cache.contains_key(&Place {
            body: body.0,
            block: block.0,
        })
    }

    /// Keeps `bytes`, which occupy `capacity` bytes of memory, as long as there is room.
    pub(crate) fn insert(&self, body: BodyId, block: BlockIndex, bytes: Bytes, capacity: usize) {
        let weight = u32::try_from(capacity + ENTRY_BYTES).unwrap_or(u32::MAX);
        self.cache.insert(
            Place {
                body: body.0,
                block: block.0,
            },
            Held { bytes, weight },
        );
    }

    pub(crate) fn remove(&self, body: BodyId, block: BlockIndex) {
        self.cache.remove(&Place {
            body: body.0,
            block: block.0,
        });
    }

    /// Lets go of everything. Gives the bytes it had.
    pub(crate) fn clear(&self) -> u64 {
        let bytes = self.cache.weight();
        self.cache.clear();
        bytes
    }

    /// Bytes held now.
    pub(crate) fn bytes(&self) -> u64 {
        self.cache.weight()
    }

    pub(crate) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }
}
