//! Where blocks lie in the segment files, and the forms in which that is written down.
//!
//! ```text
//! segment-0000:  | header |  pages of 4 KiB, numbered on from the previous segment ...          |
//!                  page 0   1   2   3 ...
//!                |<-------- area: 1024 pages (4 MiB), all extents of one size class ----->| ... |
//! extent:        consecutive pages of one area; holds one block, its last page filled with zeroes
//! ```
//!
//! What it keeps true: no page belongs to two extents. Which pages are taken is not stored: the map
//! is rebuilt from the rows of the index. Extents of similar size share an area, so that the holes
//! that small bodies leave do not scatter the room for whole blocks.

use super::io::PAGE_BYTES;

/// Pages of an area: the largest block.
pub(crate) const AREA_PAGES: u32 = 1024;

/// Bytes of an area, of which segment sizes are multiples.
pub(crate) const AREA_BYTES: u64 = AREA_PAGES as u64 * PAGE_BYTES as u64;

const WORDS_PER_AREA: usize = AREA_PAGES as usize / 64;

/// Blocks described by one row of the index.
pub(crate) const GROUP_BLOCKS: u32 = 256;

/// Where a block lies and how to know it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Number of the first page, over all segments.
    pub page: u32,
    /// Bytes of the block.
    pub bytes: u32,
    /// CRC-32 over body id, block index and bytes.
    pub crc: u32,
}

impl Extent {
    pub(crate) fn pages(&self) -> u32 {
        pages_for(self.bytes)
    }
}

/// Pages that a block of so many bytes takes.
pub(crate) fn pages_for(bytes: u32) -> u32 {
    bytes.div_ceil(PAGE_BYTES as u32).max(1)
}

/// The checksum that ties a block's bytes to its body and place (threat K3).
pub(crate) fn block_crc(body: u64, block: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&body.to_le_bytes());
    hasher.update(&block.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// A group of blocks in its stored form: records of 13 bytes, and a CRC-32 over body, group and
/// records.
///
/// ```text
/// | index in group u8 | page u32 | bytes u32 | crc u32 | ... | crc u32 |    little-endian
/// ```
pub(crate) struct GroupWriter {
    out: Vec<u8>,
    group: u32,
}

const RECORD_BYTES: usize = 13;

impl GroupWriter {
    pub(crate) fn new(group: u32, blocks: usize) -> Self {
        Self {
            out: Vec::with_capacity(blocks * RECORD_BYTES + 4),
            group,
        }
    }

    pub(crate) fn push(&mut self, block: u32, extent: Extent) {
        debug_assert_eq!(block / GROUP_BLOCKS, self.group);
        self.out.push((block % GROUP_BLOCKS) as u8);
        self.out.extend_from_slice(&extent.page.to_le_bytes());
        self.out.extend_from_slice(&extent.bytes.to_le_bytes());
        self.out.extend_from_slice(&extent.crc.to_le_bytes());
    }

    pub(crate) fn finish(mut self, body: u64) -> Vec<u8> {
        let crc = group_crc(body, self.group, &self.out);
        self.out.extend_from_slice(&crc.to_le_bytes());
        self.out
    }
}

fn group_crc(body: u64, group: u32, records: &[u8]) -> u32 {
    // Not the checksum of a block: another prefix length.
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(b"group");
    hasher.update(&body.to_le_bytes());
    hasher.update(&group.to_le_bytes());
    hasher.update(records);
    hasher.finalize()
}

/// The blocks of a stored group; `None` when it is not what [`GroupWriter`] wrote for this body.
pub(crate) fn read_group(
    body: u64,
    group: u32,
    stored: &[u8],
) -> Option<impl Iterator<Item = (u32, Extent)>> {
    let (records, crc) = stored.split_last_chunk::<4>()?;
    if !records.len().is_multiple_of(RECORD_BYTES)
        || u32::from_le_bytes(*crc) != group_crc(body, group, records)
    {
        return None;
    }
    let first = group.checked_mul(GROUP_BLOCKS)?;
    let number = |record: &[u8], at: usize| {
        record[at..at + 4]
            .iter()
            .rev()
            .fold(0u32, |number, byte| number << 8 | u32::from(*byte))
    };
    Some(records.chunks_exact(RECORD_BYTES).map(move |record| {
        let extent = Extent {
            page: number(record, 1),
            bytes: number(record, 5),
            crc: number(record, 9),
        };
        (first + u32::from(record[0]), extent)
    }))
}

/// The first page of a segment says whose it is (threat K8).
///
/// ```text
/// | "cajesegm" | version u32 | segment u32 | store u64 | crc u32 | zeroes to 4096 |
/// ```
pub(crate) fn segment_header(store: u64, segment: u32) -> [u8; 28] {
    let mut header = [0; 28];
    header[..8].copy_from_slice(b"cajesegm");
    header[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&segment.to_le_bytes());
    header[16..24].copy_from_slice(&store.to_le_bytes());
    let crc = crc32fast::hash(&header[..24]);
    header[24..].copy_from_slice(&crc.to_le_bytes());
    header
}

const SEGMENT_VERSION: u32 = 1;

/// The map of pages: which are taken, over the part of the segments that has disk space.
pub(crate) struct PageMap {
    /// One bit a page, set when taken.
    bits: Vec<u64>,
    areas: Vec<Area>,
    segment_pages: u32,
    /// Pages that may ever be used.
    limit: u32,
    /// Pages that have disk space. Whole areas, but for the end.
    grown: u32,
    /// Pages taken by extents (headers not counted).
    used: u32,
    /// Where each class looks first.
    cursors: [usize; CLASSES],
}

#[derive(Clone, Copy)]
struct Area {
    free: u16,
    /// `CLASSES` when empty: anybody's.
    class: u8,
}

const CLASSES: usize = 4;

/// Extents of at most so many pages belong to the class; the rest to the last.
const CLASS_PAGES: [u32; CLASSES - 1] = [2, 8, 32];

fn class_of(pages: u32) -> usize {
    CLASS_PAGES
        .iter()
        .position(|most| pages <= *most)
        .unwrap_or(CLASSES - 1)
}

impl PageMap {
    /// `segment_pages` is a multiple of [`AREA_PAGES`].
    pub(crate) fn new(segment_pages: u32, limit: u32) -> Self {
        Self {
            bits: Vec::new(),
            areas: Vec::new(),
            segment_pages,
            limit,
            grown: 0,
            used: 0,
            cursors: [0; CLASSES],
        }
    }

    pub(crate) fn used(&self) -> u32 {
        self.used
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    pub(crate) fn grown(&self) -> u32 {
        self.grown
    }

    /// Takes note that pages up to `grown` have disk space.
    pub(crate) fn grow(&mut self, grown: u32) {
        let from = self.grown;
        let grown = grown.min(self.limit);
        if grown <= from {
            return;
        }
        let areas = grown.div_ceil(AREA_PAGES) as usize;
        while self.areas.len() < areas {
            // Taken until shown to have space.
            self.areas.push(Area {
                free: 0,
                class: CLASSES as u8,
            });
            self.bits.extend([u64::MAX; WORDS_PER_AREA]);
        }
        for page in from..grown {
            if !page.is_multiple_of(self.segment_pages) {
                self.clear(page);
            }
        }
        self.grown = grown;
    }

    /// Finds room; `None` when what has disk space has no run of so many pages.
    pub(crate) fn allocate(&mut self, pages: u32) -> Option<u32> {
        let class = class_of(pages);
        let at = self
            .find_area(pages, class as u8, self.cursors[class])
            // An area nobody uses.
            .or_else(|| self.find_area(pages, CLASSES as u8, self.cursors[class]))?;
        Some(self.take(at, pages, class))
    }

    /// As [`PageMap::allocate`], from areas of other classes too: for when there is nothing else.
    pub(crate) fn allocate_anywhere(&mut self, pages: u32) -> Option<u32> {
        (0..CLASSES as u8)
            .find_map(|class| self.find_area(pages, class, 0))
            .map(|at| self.take(at, pages, class_of(pages)))
    }

    fn find_area(&self, pages: u32, class: u8, cursor: usize) -> Option<(usize, usize)> {
        let areas = self.areas.len();
        let cursor = if cursor < areas { cursor } else { 0 };
        (cursor..areas).chain(0..cursor).find_map(|at| {
            let area = self.areas[at];
            let fits = area.class == class && u32::from(area.free) >= pages;
            let run = if fits {
                find_run(self.words(at), pages)
            } else {
                None
            };
            run.map(|run| (at, run))
        })
    }

    fn take(&mut self, (at, run): (usize, usize), pages: u32, class: usize) -> u32 {
        self.cursors[class] = at;
        if usize::from(self.areas[at].class) == CLASSES {
            self.areas[at].class = class as u8;
        }
        let first = at as u32 * AREA_PAGES + run as u32;
        for page in first..first + pages {
            self.set(page);
        }
        self.used += pages;
        first
    }

    /// Gives pages back that were allocated or claimed.
    pub(crate) fn free(&mut self, first: u32, pages: u32) {
        for page in first..first + pages {
            debug_assert!(self.is_taken(page));
            self.clear(page);
        }
        self.used -= pages;
    }

    /// Whether an extent of so many pages may lie there.
    pub(crate) fn admits(&self, first: u32, pages: u32) -> bool {
        let Some(end) = first.checked_add(pages) else {
            return false;
        };
        let one_area = pages > 0 && first / AREA_PAGES == (end - 1) / AREA_PAGES;
        one_area && end <= self.grown && !first.is_multiple_of(self.segment_pages)
    }

    /// Takes the pages of an extent found in the index; false when one is taken already.
    /// [`PageMap::admits`] must hold.
    pub(crate) fn claim(&mut self, first: u32, pages: u32) -> bool {
        let range = first..first + pages;
        if range.clone().any(|page| self.is_taken(page)) {
            return false;
        }
        let area = (first / AREA_PAGES) as usize;
        if usize::from(self.areas[area].class) == CLASSES {
            self.areas[area].class = class_of(pages) as u8;
        }
        range.for_each(|page| self.set(page));
        self.used += pages;
        true
    }

    fn words(&self, area: usize) -> &[u64] {
        &self.bits[area * WORDS_PER_AREA..(area + 1) * WORDS_PER_AREA]
    }

    fn is_taken(&self, page: u32) -> bool {
        self.bits[page as usize / 64] & 1 << (page % 64) != 0
    }

    fn set(&mut self, page: u32) {
        self.bits[page as usize / 64] |= 1 << (page % 64);
        self.areas[(page / AREA_PAGES) as usize].free -= 1;
    }

    fn clear(&mut self, page: u32) {
        let at = (page / AREA_PAGES) as usize;
        self.bits[page as usize / 64] &= !(1 << (page % 64));
        self.areas[at].free += 1;
        let has_header = (at as u32 * AREA_PAGES).is_multiple_of(self.segment_pages);
        let usable = AREA_PAGES - u32::from(has_header);
        if u32::from(self.areas[at].free) == usable {
            self.areas[at].class = CLASSES as u8;
        }
    }
}

/// The first run of `pages` clear bits.
fn find_run(words: &[u64], pages: u32) -> Option<usize> {
    let (mut start, mut run) = (0usize, 0u32);
    for (at, word) in words.iter().enumerate() {
        let mut bit = 0;
        while bit < 64 {
            let rest = word >> bit;
            if rest & 1 == 1 {
                run = 0;
                bit += (!rest).trailing_zeros().min(64 - bit);
                continue;
            }
            if run == 0 {
                start = at * 64 + bit as usize;
            }
            let clear = rest.trailing_zeros().min(64 - bit);
            run += clear;
            bit += clear;
            if run >= pages {
                return Some(start);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_across_words() {
        let mut words = [u64::MAX; 4];
        assert_eq!(find_run(&words, 1), None);
        words[0] = !(1 << 63);
        words[1] = !0b111;
        assert_eq!(find_run(&words, 1), Some(63));
        assert_eq!(find_run(&words, 4), Some(63));
        assert_eq!(find_run(&words, 5), None);
        words[2] = 0;
        words[3] = 0;
        assert_eq!(find_run(&words, 5), Some(128));
        assert_eq!(find_run(&words, 128), Some(128));
        assert_eq!(find_run(&words, 129), None);
    }

    #[test]
    fn areas_keep_sizes_apart_and_headers_are_never_given_away() {
        let mut map = PageMap::new(2 * AREA_PAGES, 4 * AREA_PAGES);
        assert_eq!(map.allocate(1), None);
        map.grow(4 * AREA_PAGES);
        assert_eq!(map.allocate(1), Some(1));
        assert_eq!(map.allocate(64), Some(AREA_PAGES));
        assert_eq!(map.allocate(2), Some(2));
        assert_eq!(map.allocate(1024), Some(3 * AREA_PAGES));
        assert_eq!(
            map.allocate(1024),
            None,
            "the header of the second segment is in the way"
        );
        assert_eq!(map.used(), 1 + 64 + 2 + 1024);
        map.free(AREA_PAGES, 64);
        assert_eq!(
            map.allocate(1024),
            Some(AREA_PAGES),
            "an empty area is anybody's"
        );
        assert!(!map.admits(2 * AREA_PAGES, 1));
        assert!(!map.admits(AREA_PAGES - 1, 2));
        assert!(!map.admits(u32::MAX, 2));
        assert!(map.claim(2 * AREA_PAGES + 5, 3));
        assert!(!map.claim(2 * AREA_PAGES + 7, 1));
    }

    #[test]
    fn an_area_with_a_partial_end_is_used_to_its_end() {
        let mut map = PageMap::new(AREA_PAGES, 100);
        map.grow(50);
        map.grow(500);
        assert_eq!((1..).map_while(|_| map.allocate(1)).count(), 99);
    }

    #[test]
    fn groups_are_read_as_written_and_only_for_their_body() {
        let extent = Extent {
            page: 0x01020304,
            bytes: 262_144,
            crc: 0xdead_beef,
        };
        let mut writer = GroupWriter::new(3, 2);
        writer.push(3 * 256 + 7, extent);
        writer.push(3 * 256 + 255, Extent { page: 9, ..extent });
        let stored = writer.finish(42);
        let read: Vec<_> = read_group(42, 3, &stored).unwrap().collect();
        assert_eq!(read, [(775, extent), (1023, Extent { page: 9, ..extent })]);
        assert!(read_group(43, 3, &stored).is_none());
        assert!(read_group(42, 2, &stored).is_none());
        assert!(read_group(42, 3, &stored[1..]).is_none());
        assert!(read_group(42, 3, b"").is_none());
    }
}
