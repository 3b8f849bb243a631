//! Lists of what should be held, expanded: playlists (HLS, DASH), sitemaps, feeds and plain lists of URLs.
//!
//! Kept true here: nothing does I/O or reads a clock. Whatever a list says, expanding it ends, in time and
//! memory in proportion to [`Limits`]. What of a list cannot be read or is not allowed is told in
//! [`Expansion::refused`] and costs only itself. Every target is exact and was confined
//! ([`crate::semantics::reference`]).
//!
//! It does not know how lists are fetched, decoded or decompressed, nor what is held already.

pub mod dash;
pub mod feed;
pub mod hls;
pub mod list;
pub mod sitemap;

mod date;
mod xml;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::time::Duration;

use crate::semantics::range::RangeSpec;
use crate::semantics::reference::{self, Confinement, Refusal, Target};

/// Refusals that are told, at most; all are counted.
pub const MAX_REFUSED: usize = 100;

/// Work for each byte that a list may have: this many bytes of references are resolved.
const WORK_PER_BYTE: usize = 4;

/// What resolving a reference costs beside its bytes and those of its base.
const WORK_PER_REFERENCE: usize = 64;

/// What a refused reference is shown by, at most, in bytes.
const MAX_SHOWN_BYTES: usize = 200;

/// How much of one list is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the list itself; a longer one is not read at all.
    pub max_bytes: usize,
    /// Of the list's expansion; it is cut there.
    pub max_items: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_bytes: 8 << 20,
            max_items: 20_000,
        }
    }
}

/// What of a presentation is wanted. What has no attribute to be judged by is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Bits per second, of a variant or representation; where all have more, the one with the least is taken.
    pub max_bandwidth: Option<u64>,
    /// Lines of video; where all have more, the one with the least bandwidth is taken.
    pub max_height: Option<u32>,
    /// As in RFC 4647 §3.3.1: `en` is also `en-GB`. All, where there is none. Sound that is in none of them is
    /// taken in the language that the list puts first, so that no video is left mute.
    pub languages: Box<[Box<str>]>,
    /// From the start of the list on; a segment that begins before is taken whole.
    pub first: Option<Duration>,
}

/// Where a list was found, and what is wanted of it.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// Whose list it is, in the end: the URL that an operator wrote down. What counts as its own origin.
    pub home: &'a Target,
    /// The list's own URL, after redirects: what references are relative to.
    pub at: &'a Target,
    pub confinement: &'a Confinement,
    pub selection: &'a Selection,
    pub limits: Limits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Named by a list of URLs, a sitemap or a feed: anything.
    Page,
    /// A list of the same sort, which is to be expanded in turn.
    List,
    /// The media playlist of another rendition, mentioned by a live one: not a part of it.
    Report,
    /// What a decoder needs first (`EXT-X-MAP`, `Initialization`).
    Initialization,
    /// Where segments lie in their file (`indexRange`, `RepresentationIndex`, `SegmentURL@index`).
    Index,
    Key,
    Segment,
    /// A piece of a segment, of a low-latency playlist.
    Part,
    /// What a low-latency playlist says will come next: it may not be there yet.
    Hint,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub target: Target,
    /// The bytes of it that are meant, where not all.
    pub range: Option<RangeSpec>,
    pub kind: Kind,
    pub duration: Option<Duration>,
    /// The number of the segment that it is, or is a part of.
    pub sequence: Option<u64>,
    /// Tells the renditions of one list apart, over all of its periods.
    pub rendition: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// As it was written, shortened.
    pub reference: Box<str>,
    pub reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Reason {
    #[error("{0}")]
    Reference(#[from] Refusal),
    #[error("a variable in it is not defined")]
    Variable,
    #[error("its byte range cannot be known")]
    Range,
    #[error("its template cannot be filled in")]
    Template,
    #[error("it stands in another document, which is not fetched")]
    Remote,
}

/// What a list comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expansion {
    /// Each once, in the order in which they are played.
    pub items: Vec<Item>,
    /// No more than [`MAX_REFUSED`].
    pub refused: Vec<Refused>,
    pub refused_count: usize,
    /// The list goes on behind [`Limits::max_items`].
    pub is_cut: bool,
    /// A live list: how long it stays as it is. None for one that is whole.
    pub again: Option<Duration>,
}

impl Expansion {
    /// What is played after `target`, or after the range of it that begins at `start`: `count` segments of the
    /// same rendition, with the keys and initialisations that begin to hold in between. After a part come
    /// parts; after the last segment come the parts of the next. Empty at the end of the list.
    pub fn after(&self, target: &Target, start: Option<u64>, count: usize) -> Vec<&Item> {
        let Some(at) = self.place(target, start) else {
            return Vec::new();
        };
        let known = &self.items[at];
        let later = self.items[at + 1..]
            .iter()
            .filter(|item| item.rendition == known.rendition);
        let is_played = |kind: Kind| match known.kind {
            Kind::Segment => kind == Kind::Segment,
            _ => matches!(kind, Kind::Part | Kind::Hint),
        };
        let found = following(later.clone(), is_played, count);
        match found.is_empty() && known.kind == Kind::Segment {
            true => following(later, |kind| matches!(kind, Kind::Part | Kind::Hint), count),
            false => found,
        }
    }

    fn place(&self, target: &Target, start: Option<u64>) -> Option<usize> {
        self.items.iter().position(|item| {
            let is_asked = match item.range {
                None => true,
                Some(RangeSpec::Span(first, _)) => start == Some(first),
                Some(RangeSpec::Suffix(_)) => false,
            };
            matches!(item.kind, Kind::Segment | Kind::Part) && is_asked && item.target == *target
        })
    }
}

fn following<'a>(
    later: impl Iterator<Item = &'a Item>,
    is_played: impl Fn(Kind) -> bool,
    count: usize,
) -> Vec<&'a Item> {
    let mut found = Vec::new();
    let mut length = 0;
    let mut played = 0;
    for item in later {
        if played == count {
            break;
        }
        if is_played(item.kind) {
            played += 1;
            found.push(item);
            length = found.len();
        } else if matches!(item.kind, Kind::Initialization | Kind::Key) {
            found.push(item);
        }
    }
    // What only segments further on need can wait.
    found.truncate(length);
    found
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("it is longer than {0} bytes")]
    TooLong(usize),
    #[error("it is not in UTF-8")]
    Encoding,
    #[error("it is no {0}")]
    Other(&'static str),
    #[error("it is malformed near byte {0}")]
    Malformed(u64),
    #[error("it has a document type definition, which is not read")]
    Doctype,
    #[error("it is nested too deeply")]
    TooDeep,
}

/// The text of a list, if it may be read.
fn text<'a>(bytes: &'a [u8], limits: &Limits) -> Result<&'a str, Unreadable> {
    if bytes.len() > limits.max_bytes {
        return Err(Unreadable::TooLong(limits.max_bytes));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Unreadable::Encoding)?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Gathers the items of one list.
struct Collector<'a> {
    reading: Reading<'a>,
    expansion: Expansion,
    seen: HashSet<(Target, Option<RangeSpec>)>,
    /// Bytes of references that may still be resolved: many may be refused, or name the same.
    work: usize,
}

impl<'a> Collector<'a> {
    fn new(reading: Reading<'a>) -> Collector<'a> {
        Collector {
            work: reading.limits.max_bytes.saturating_mul(WORK_PER_BYTE),
            reading,
            expansion: Expansion::default(),
            seen: HashSet::new(),
        }
    }

    fn is_full(&self) -> bool {
        self.work == 0 || self.expansion.items.len() >= self.reading.limits.max_items
    }

    /// Whether there is so much work left to be done.
    fn charge(&mut self, cost: usize) -> bool {
        let left = self.work.checked_sub(cost);
        self.work = left.unwrap_or(0);
        left.is_some()
    }

    fn resolve(&self, base: &Target, reference: &str) -> Result<Target, Refusal> {
        let target = reference::resolve(base, reference.trim_ascii().as_bytes())?;
        self.reading.confinement.admit(self.reading.home, target)
    }

    /// Adds an item that has not been named before.
    fn add(&mut self, item: Item) {
        if self.seen.insert((item.target.clone(), item.range)) {
            self.expansion.items.push(item);
        }
    }

    /// Adds what `reference` leads to.
    fn add_reference(&mut self, base: &Target, reference: &str, make: impl FnOnce(Target) -> Item) {
        let cost = base.path_and_query().len() + reference.len() + WORK_PER_REFERENCE;
        if self.is_full() || !self.charge(cost) {
            self.expansion.is_cut = true;
            return;
        }
        match self.resolve(base, reference) {
            Ok(target) => self.add(make(target)),
            Err(refusal) => self.refuse(reference, refusal.into()),
        }
    }

    fn refuse(&mut self, reference: &str, reason: Reason) {
        self.expansion.refused_count += 1;
        if self.expansion.refused.len() < MAX_REFUSED {
            let mut end = reference.len().min(MAX_SHOWN_BYTES);
            while !reference.is_char_boundary(end) {
                end -= 1;
            }
            self.expansion.refused.push(Refused {
                reference: reference[..end].into(),
                reason,
            });
        }
    }
}

/// A page: neither played nor numbered.
fn page(target: Target, kind: Kind) -> Item {
    Item {
        target,
        range: None,
        kind,
        duration: None,
        sequence: None,
        rendition: 0,
    }
}

impl Selection {
    fn takes_bandwidth(&self, bandwidth: Option<u64>) -> bool {
        self.max_bandwidth
            .is_none_or(|max| bandwidth.is_none_or(|bandwidth| bandwidth <= max))
    }

    fn takes_height(&self, height: Option<u32>) -> bool {
        self.max_height
            .is_none_or(|max| height.is_none_or(|height| height <= max))
    }

    fn takes_language(&self, language: Option<&str>) -> bool {
        let Some(language) = language.filter(|_| !self.languages.is_empty()) else {
            return true;
        };
        self.languages.iter().any(|wanted| {
            let Some((prefix, rest)) = language.split_at_checked(wanted.len()) else {
                return false;
            };
            prefix.eq_ignore_ascii_case(wanted) && (rest.is_empty() || rest.starts_with('-'))
        })
    }

    /// Whether something that begins `elapsed` after the start is wanted.
    fn takes_time(&self, elapsed: Duration) -> bool {
        self.first.is_none_or(|first| elapsed < first)
    }

    /// Of several of the same content, the places of those that are wanted.
    fn choose(&self, offered: &[(Option<u64>, Option<u32>)]) -> Vec<usize> {
        let fits = |&at: &usize| {
            let (bandwidth, height) = offered[at];
            self.takes_bandwidth(bandwidth) && self.takes_height(height)
        };
        let chosen: Vec<usize> = (0..offered.len()).filter(fits).collect();
        if !chosen.is_empty() {
            return chosen;
        }
        let least = (0..offered.len()).min_by_key(|&at| offered[at].0.unwrap_or(u64::MAX));
        least.into_iter().collect()
    }
}
