//! How a body is cut into blocks: the pieces that are fetched, kept on disk and given up.
//!
//! ```text
//! body     0 ────────────────────────────────────────── length
//! blocks   |   0   |   1   |   2   |   3   |  4 |          every block is full, but the last
//! ```
//!
//! Kept true here: no input makes an operation panic or wrap. Offsets behind the last block that an
//! index can name belong to that block, and lengths are clipped.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Names one body of the store, for as long as its index row lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BodyId(pub u64);

impl fmt::Display for BodyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Place of a block in its body, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockIndex(pub u32);

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bytes in a full block: a power of two from 4 KiB to 4 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct BlockSize {
    shift: u8,
}

impl BlockSize {
    pub const MIN: BlockSize = BlockSize { shift: 12 };
    pub const MAX: BlockSize = BlockSize { shift: 22 };

    /// `None` unless `bytes` is a power of two within [`BlockSize::MIN`] and [`BlockSize::MAX`].
    pub const fn new(bytes: u32) -> Option<BlockSize> {
        if !bytes.is_power_of_two() {
            return None;
        }
        let shift = bytes.trailing_zeros() as u8;
        if shift < Self::MIN.shift || shift > Self::MAX.shift {
            return None;
        }
        Some(BlockSize { shift })
    }

    pub const fn get(self) -> u32 {
        1 << self.shift
    }

    /// The block that holds the byte at `offset`.
    pub const fn index_of(self, offset: u64) -> BlockIndex {
        let index = offset >> self.shift;
        if index > u32::MAX as u64 {
            BlockIndex(u32::MAX)
        } else {
            BlockIndex(index as u32)
        }
    }

    /// Offset of a block's first byte.
    pub const fn start(self, block: BlockIndex) -> u64 {
        (block.0 as u64) << self.shift
    }

    /// Offsets of a block's bytes in a body of `length`; empty for a block behind its end.
    pub fn bytes(self, block: BlockIndex, length: u64) -> Range<u64> {
        let start = self.start(block).min(length);
        start..(self.start(block) + u64::from(self.get())).min(length)
    }

    /// How many blocks a body of `length` bytes has.
    pub fn count(self, length: u64) -> u32 {
        let count = length.div_ceil(u64::from(self.get()));
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// The blocks that hold any of these bytes; empty for an empty range.
    pub fn span(self, bytes: Range<u64>) -> Range<u32> {
        let first = self.index_of(bytes.start).0;
        if bytes.start >= bytes.end {
            return first..first;
        }
        first..self.count(bytes.end).max(first)
    }

    /// The start of the block that holds `offset`.
    pub const fn floor(self, offset: u64) -> u64 {
        offset & !(self.get() as u64 - 1)
    }

    /// `offset` itself at the start of a block, else the start of the next one. The start of the
    /// last possible block for offsets behind it.
    pub const fn ceil(self, offset: u64) -> u64 {
        match offset.checked_add(self.get() as u64 - 1) {
            Some(above) => self.floor(above),
            None => self.floor(u64::MAX),
        }
    }
}

impl Default for BlockSize {
    /// 256 KiB.
    fn default() -> BlockSize {
        BlockSize { shift: 18 }
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl From<BlockSize> for u32 {
    fn from(size: BlockSize) -> u32 {
        size.get()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a block is a power of two from 4096 to 4194304 bytes, not {0}")]
pub struct BadBlockSize(pub u32);

impl TryFrom<u32> for BlockSize {
    type Error = BadBlockSize;

    fn try_from(bytes: u32) -> Result<BlockSize, BadBlockSize> {
        BlockSize::new(bytes).ok_or(BadBlockSize(bytes))
    }
}

/// A set of blocks of one body: a bitmap that grows with the highest block in it.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(from = "Vec<u64>", into = "Vec<u64>")]
pub struct BlockSet {
    words: Vec<u64>,
    len: u32,
}

const WORD_BITS: u32 = u64::BITS;

impl BlockSet {
    pub const fn new() -> BlockSet {
        BlockSet {
            words: Vec::new(),
            len: 0,
        }
    }

    /// Whether the block was not yet in the set.
    pub fn insert(&mut self, block: BlockIndex) -> bool {
        let (word, bit) = place(block);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let was_absent = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.len += u32::from(was_absent);
        was_absent
    }

    /// Whether the block was in the set.
    pub fn remove(&mut self, block: BlockIndex) -> bool {
        let (word, bit) = place(block);
        let Some(word) = self.words.get_mut(word).filter(|word| **word & bit != 0) else {
            return false;
        };
        *word &= !bit;
        self.len -= 1;
        true
    }

    pub fn contains(&self, block: BlockIndex) -> bool {
        let (word, bit) = place(block);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    pub fn len(&self) -> u32 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the first `count` blocks are all in the set.
    pub fn is_complete(&self, count: u32) -> bool {
        self.first_missing(BlockIndex(0)).0 >= count
    }

    /// The first block from `from` on that is not in the set.
    pub fn first_missing(&self, from: BlockIndex) -> BlockIndex {
        let mut block = from.0;
        loop {
            let word = self
                .words
                .get((block / WORD_BITS) as usize)
                .copied()
                .unwrap_or(0);
            let bit = block % WORD_BITS;
            let absent = !word >> bit;
            if absent != 0 {
                return BlockIndex(block.saturating_add(absent.trailing_zeros()));
            }
            match block.checked_add(WORD_BITS - bit) {
                Some(next) => block = next,
                None => return BlockIndex(u32::MAX),
            }
        }
    }

    /// The blocks in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = BlockIndex> + '_ {
        self.words.iter().zip(0u32..).flat_map(|(&word, at)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                if rest == 0 {
                    return None;
                }
                let bit = rest.trailing_zeros();
                rest &= rest - 1;
                Some(BlockIndex(at * WORD_BITS + bit))
            })
        })
    }

    /// Runs of absent blocks within `blocks`. Two runs with at most `max_gap` present blocks
    /// between them are one.
    pub fn missing_runs(&self, blocks: Range<u32>, max_gap: u32) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        let mut at = blocks.start;
        while at < blocks.end {
            let start = self.first_missing(BlockIndex(at)).0;
            if start >= blocks.end {
                break;
            }
            let end = self.first_present(start).min(blocks.end);
            match runs.last_mut() {
                Some(last) if start - last.end <= max_gap => last.end = end,
                _ => runs.push(start..end),
            }
            at = end;
        }
        runs
    }

    fn first_present(&self, from: u32) -> u32 {
        let first = (from / WORD_BITS) as usize;
        for (at, &word) in self.words.iter().enumerate().skip(first) {
            let word = if at == first {
                word & (u64::MAX << (from % WORD_BITS))
            } else {
                word
            };
            if word != 0 {
                return at as u32 * WORD_BITS + word.trailing_zeros();
            }
        }
        u32::MAX
    }
}

fn place(block: BlockIndex) -> (usize, u64) {
    ((block.0 / WORD_BITS) as usize, 1 << (block.0 % WORD_BITS))
}

impl From<Vec<u64>> for BlockSet {
    fn from(mut words: Vec<u64>) -> BlockSet {
        words.truncate((u32::MAX / WORD_BITS) as usize + 1);
        let len = words
            .iter()
            .fold(0u32, |sum, word| sum.saturating_add(word.count_ones()));
        BlockSet { words, len }
    }
}

impl From<BlockSet> for Vec<u64> {
    fn from(set: BlockSet) -> Vec<u64> {
        set.words
    }
}

impl PartialEq for BlockSet {
    fn eq(&self, other: &BlockSet) -> bool {
        self.len == other.len && self.words.iter().zip(&other.words).all(|(a, b)| a == b)
    }
}

impl Eq for BlockSet {}

impl fmt::Debug for BlockSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(|block| block.0))
            .finish()
    }
}

impl FromIterator<BlockIndex> for BlockSet {
    fn from_iter<I: IntoIterator<Item = BlockIndex>>(blocks: I) -> BlockSet {
        let mut set = BlockSet::new();
        for block in blocks {
            set.insert(block);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    #[test]
    fn sizes_are_powers_of_two_within_bounds() {
        for (bytes, accepted) in [
            (0, false),
            (2048, false),
            (4096, true),
            (5000, false),
            (256 * 1024, true),
            (4 << 20, true),
            (8 << 20, false),
            (1 << 31, false),
            (u32::MAX, false),
        ] {
            assert_eq!(
                BlockSize::new(bytes).map(BlockSize::get),
                accepted.then_some(bytes)
            );
        }
        assert_eq!(u64::from(BlockSize::default().get()), 256 * KIB);
    }

    #[test]
    fn offsets_and_blocks() {
        let size = BlockSize::MIN;
        for (offset, index, floor, ceil) in [
            (0, 0, 0, 0),
            (1, 0, 0, 4 * KIB),
            (4 * KIB - 1, 0, 0, 4 * KIB),
            (4 * KIB, 1, 4 * KIB, 4 * KIB),
            (4 * KIB + 1, 1, 4 * KIB, 8 * KIB),
        ] {
            assert_eq!(size.index_of(offset).0, index, "{offset}");
            assert_eq!(size.floor(offset), floor, "{offset}");
            assert_eq!(size.ceil(offset), ceil, "{offset}");
        }
        assert_eq!(size.index_of(u64::MAX), BlockIndex(u32::MAX));
        assert_eq!(size.ceil(u64::MAX), u64::MAX - (4 * KIB - 1));
        assert_eq!(size.bytes(BlockIndex(1), 10 * KIB), 4 * KIB..8 * KIB);
        assert_eq!(size.bytes(BlockIndex(2), 10 * KIB), 8 * KIB..10 * KIB);
        assert_eq!(size.bytes(BlockIndex(3), 10 * KIB), 10 * KIB..10 * KIB);
        assert!(BlockSize::MAX.bytes(BlockIndex(u32::MAX), u64::MAX).start > 0);
    }

    #[test]
    fn counts_and_spans() {
        let size = BlockSize::MIN;
        for (length, count) in [
            (0, 0),
            (1, 1),
            (4 * KIB, 1),
            (4 * KIB + 1, 2),
            (u64::MAX, u32::MAX),
        ] {
            assert_eq!(size.count(length), count, "{length}");
        }
        for (bytes, span) in [
            (0..1, 0..1),
            (0..4 * KIB, 0..1),
            (4 * KIB - 1..4 * KIB + 1, 0..2),
            (8 * KIB..8 * KIB, 2..2),
            (5..u64::MAX, 0..u32::MAX),
        ] {
            assert_eq!(size.span(bytes.clone()), span, "{bytes:?}");
        }
        #[expect(
            clippy::reversed_empty_ranges,
            reason = "a reversed range is what is tested"
        )]
        let reversed = size.span(9..3);
        assert_eq!(reversed, 0..0);
    }

    fn set(blocks: &[u32]) -> BlockSet {
        blocks.iter().copied().map(BlockIndex).collect()
    }

    #[test]
    fn a_set_holds_what_was_put_in() {
        let mut blocks = set(&[0, 63, 64, 200]);
        assert_eq!(blocks.len(), 4);
        assert!(!blocks.insert(BlockIndex(63)));
        assert!(blocks.remove(BlockIndex(200)));
        assert!(!blocks.remove(BlockIndex(200)));
        assert!(!blocks.remove(BlockIndex(u32::MAX)));
        assert_eq!(blocks, set(&[0, 63, 64]));
        assert_eq!(
            blocks.iter().map(|block| block.0).collect::<Vec<_>>(),
            [0, 63, 64]
        );
        assert!(!blocks.is_complete(2) && blocks.is_complete(1) && blocks.is_complete(0));
        assert!(
            (0..130)
                .map(BlockIndex)
                .collect::<BlockSet>()
                .is_complete(130)
        );
        let bytes = postcard::to_stdvec(&blocks).unwrap();
        assert_eq!(postcard::from_bytes::<BlockSet>(&bytes).unwrap(), blocks);
    }

    #[test]
    fn missing_runs_merge_over_small_gaps() {
        for (present, within, max_gap, runs) in [
            (&[][..], 0..4, 0, &[(0, 4)][..]),
            (&[], 4..4, 0, &[]),
            (&[0, 1, 2, 3], 0..4, 9, &[]),
            (&[1], 0..4, 0, &[(0, 1), (2, 4)]),
            (&[1], 0..4, 1, &[(0, 4)]),
            (&[1, 2], 0..4, 1, &[(0, 1), (3, 4)]),
            (&[0, 3], 0..4, 5, &[(1, 3)]),
            (
                &[63, 64, 128],
                62..130,
                0,
                &[(62, 63), (65, 128), (129, 130)],
            ),
            (&[2], 100..103, 0, &[(100, 103)]),
        ] {
            let found = set(present).missing_runs(within.clone(), max_gap);
            let found: Vec<_> = found.iter().map(|run| (run.start, run.end)).collect();
            assert_eq!(found, runs, "{present:?} in {within:?}");
        }
        let far = set(&[1]).missing_runs(u32::MAX - 2..u32::MAX, 0);
        assert_eq!(far.first(), Some(&(u32::MAX - 2..u32::MAX)));
        assert_eq!(far.len(), 1);
    }
}
