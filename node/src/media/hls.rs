//! HLS playlists (RFC 8216, and its second edition for low latency and variables).
//!
//! A multivariant playlist comes to the playlists of the chosen variants and of their renditions, which are
//! fetched and expanded in turn; a media playlist to its segments, parts, keys and initialisations. Tags that
//! name nothing to be held are skipped, known or not.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use super::{Collector, Expansion, Item, Kind, Reading, Reason, Unreadable, text};
use crate::semantics::range::RangeSpec;
use crate::semantics::reference::{Refusal, Target, percent_decoded};

/// Variables of one playlist, at most.
pub const MAX_VARIABLES: usize = 64;

/// Longest text with variables, before and after they are filled in, in bytes.
const MAX_LINE_BYTES: usize = 16 << 10;

/// How long a live playlist stays as it is that does not say how long its segments are.
const USUAL_TARGET_DURATION: Duration = Duration::from_secs(6);

/// What a playlist comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Playlist {
    pub sort: Sort,
    pub expansion: Expansion,
    /// What its media playlists may import (`EXT-X-DEFINE`).
    pub variables: Variables,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Its items are playlists.
    Multivariant,
    Media,
}

/// The variables that a playlist defines (`EXT-X-DEFINE`), each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables(HashMap<Box<str>, Box<str>>);

/// Expands a playlist. `imported` are the variables of the multivariant playlist that it was named by.
pub fn expand(
    bytes: &[u8],
    reading: Reading<'_>,
    imported: &Variables,
) -> Result<Playlist, Unreadable> {
    let text = text(bytes, &reading.limits)?;
    let mut lines = text.lines().map(str::trim_end);
    if lines.next() != Some("#EXTM3U") {
        return Err(Unreadable::Other("HLS playlist"));
    }
    let is_multivariant = |line: &str| {
        tag(line, "#EXT-X-STREAM-INF").is_some()
            || tag(line, "#EXT-X-MEDIA").is_some()
            || tag(line, "#EXT-X-I-FRAME-STREAM-INF").is_some()
    };
    let sort = match lines.clone().any(is_multivariant) {
        true => Sort::Multivariant,
        false => Sort::Media,
    };
    let mut variables = Variables::default();
    let mut collector = Collector::new(reading);
    match sort {
        Sort::Multivariant => {
            let mut offer = Offer::default();
            for line in lines {
                offer.read(line, &mut variables, imported, &mut collector);
            }
            offer.choose(&mut collector);
        }
        Sort::Media => {
            let mut media = Media::default();
            for line in lines {
                media.read(line, &mut variables, imported, &mut collector);
            }
            collector.expansion.again = media.again();
        }
    }
    Ok(Playlist {
        sort,
        expansion: collector.expansion,
        variables,
    })
}

/// What stands behind a tag's colon; empty for a tag without one.
fn tag<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let rest = line.strip_prefix(name)?;
    match rest.strip_prefix(':') {
        Some(value) => Some(value),
        None => rest.is_empty().then_some(rest),
    }
}

/// Attributes of a tag (RFC 8216 §4.2): names with their values, without quotes.
#[derive(Clone, Copy)]
struct Attributes<'a>(&'a str);

impl<'a> Attributes<'a> {
    /// The first of that name.
    fn raw(self, name: &str) -> Option<&'a str> {
        let mut rest = self.0;
        loop {
            let (known, behind) = rest.split_once('=')?;
            let (value, behind) = match behind.strip_prefix('"') {
                Some(quoted) => {
                    let (value, behind) = quoted.split_once('"')?;
                    (value, behind.split_once(',').map(|(_, behind)| behind))
                }
                None => match behind.split_once(',') {
                    Some((value, behind)) => (value.trim_ascii(), Some(behind)),
                    None => (behind.trim_ascii(), None),
                },
            };
            if known.trim_ascii() == name {
                return Some(value);
            }
            rest = behind?;
        }
    }

    fn number<T: std::str::FromStr>(self, name: &str) -> Option<T> {
        self.raw(name)?.parse().ok()
    }

    fn is_yes(self, name: &str) -> bool {
        self.raw(name) == Some("YES")
    }
}

impl Variables {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| &**value)
    }

    /// `text` with its variables filled in (`{$name}`); none if one is not defined, or it gets too long.
    fn fill<'a>(&self, text: &'a str) -> Option<Cow<'a, str>> {
        if !text.contains("{$") {
            return Some(Cow::Borrowed(text));
        }
        if text.len() > MAX_LINE_BYTES {
            return None;
        }
        let mut filled = String::new();
        let mut rest = text;
        while let Some(start) = rest.find("{$") {
            filled.push_str(&rest[..start]);
            let behind = &rest[start + 2..];
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            let end = behind.find(|c| !is_name(c)).unwrap_or(behind.len());
            match behind[end..].strip_prefix('}') {
                Some(behind_name) if end > 0 => {
                    filled.push_str(self.get(&behind[..end])?);
                    rest = behind_name;
                }
                _ => {
                    filled.push_str("{$");
                    rest = behind;
                }
            }
            if filled.len() > MAX_LINE_BYTES {
                return None;
            }
        }
        filled.push_str(rest);
        Some(Cow::Owned(filled))
    }

    /// `EXT-X-DEFINE`. The first definition of a name counts.
    fn define(&mut self, attributes: Attributes<'_>, imported: &Variables, at: &Target) {
        let (name, value) = if let Some(name) = attributes.raw("NAME") {
            let value = attributes.raw("VALUE").and_then(|value| self.fill(value));
            (name, value.map(Cow::into_owned))
        } else if let Some(name) = attributes.raw("IMPORT") {
            (name, imported.get(name).map(str::to_owned))
        } else if let Some(name) = attributes.raw("QUERYPARAM") {
            (name, query_parameter(at, name))
        } else {
            return;
        };
        if let Some(value) = value
            && self.get(name).is_none()
            && self.0.len() < MAX_VARIABLES
        {
            self.0.insert(name.into(), value.into());
        }
    }
}

/// A parameter of the playlist's own URL, decoded.
fn query_parameter(at: &Target, name: &str) -> Option<String> {
    at.query()?.split('&').find_map(|parameter| {
        let (known, value) = parameter.split_once('=')?;
        let is_it = percent_decoded(known.as_bytes()) == name.as_bytes();
        let value = is_it.then(|| percent_decoded(value.as_bytes()))?;
        String::from_utf8(value).ok()
    })
}

/// `<n>[@<o>]`: how many bytes, and from where on.
fn parse_byte_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (length, offset) = match text.split_once('@') {
        Some((length, offset)) => (length, Some(offset.trim_ascii().parse().ok()?)),
        None => (text, None),
    };
    Some((length.trim_ascii().parse().ok()?, offset))
}

fn span(start: u64, length: u64) -> Option<RangeSpec> {
    let end = start.checked_add(length)?;
    (length > 0).then_some(RangeSpec::Span(start, Some(end)))
}

fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.trim_ascii().parse().ok()?).ok()
}

/// Where the last range of a resource ended: one without an offset begins there (RFC 8216 §4.3.2.2).
#[derive(Default)]
struct LastRange(Option<(Box<str>, u64)>);

impl LastRange {
    /// The range that `text` means for `uri`.
    fn next(&mut self, uri: &str, text: &str) -> Option<RangeSpec> {
        let (length, offset) = parse_byte_range(text)?;
        let start = match (offset, self.0.take()) {
            (Some(offset), _) => offset,
            (None, Some((last, end))) if *last == *uri => end,
            (None, _) => return None,
        };
        let range = span(start, length)?;
        self.0 = Some((uri.into(), start.checked_add(length)?));
        Some(range)
    }
}

/// What a multivariant playlist offers.
#[derive(Default)]
struct Offer {
    variants: Vec<Variant>,
    i_frames: Vec<Variant>,
    renditions: Vec<Rendition>,
    keys: Vec<Box<str>>,
    /// `EXT-X-STREAM-INF`, before its URI.
    pending: Option<Variant>,
}

struct Variant {
    uri: Box<str>,
    bandwidth: Option<u64>,
    height: Option<u32>,
    /// Of `AUDIO`, `VIDEO` and `SUBTITLES`.
    groups: [Option<Box<str>>; 3],
}

struct Rendition {
    /// Place in [`Variant::groups`].
    sort: usize,
    group: Box<str>,
    language: Option<Box<str>>,
    is_default: bool,
    /// None where it is in the variants' own segments.
    uri: Option<Box<str>>,
}

const GROUPS: [&str; 3] = ["AUDIO", "VIDEO", "SUBTITLES"];
const AUDIO: usize = 0;

impl Offer {
    fn read(
        &mut self,
        line: &str,
        variables: &mut Variables,
        imported: &Variables,
        collector: &mut Collector<'_>,
    ) {
        // Everything offered is looked at again when the choice is made.
        let offered = self.variants.len() + self.i_frames.len() + self.renditions.len();
        if offered + self.keys.len() >= collector.reading.limits.max_items {
            collector.expansion.is_cut = true;
            return;
        }
        let mut filled = |text: Option<&str>| -> Option<Box<str>> {
            let text = text?;
            let filled = variables.fill(text);
            if filled.is_none() {
                collector.refuse(text, Reason::Variable);
            }
            Some(filled?.into())
        };
        if !line.starts_with('#') {
            if let (Some(mut variant), false) =
                (self.pending.take_if(|_| !line.is_empty()), line.is_empty())
                && let Some(uri) = filled(Some(line))
            {
                variant.uri = uri;
                self.variants.push(variant);
            }
        } else if let Some(value) = tag(line, "#EXT-X-STREAM-INF") {
            self.pending = Some(Variant::new(Attributes(value), &mut filled));
        } else if let Some(value) = tag(line, "#EXT-X-I-FRAME-STREAM-INF") {
            let attributes = Attributes(value);
            if let Some(uri) = filled(attributes.raw("URI")) {
                let mut variant = Variant::new(attributes, &mut filled);
                variant.uri = uri;
                self.i_frames.push(variant);
            }
        } else if let Some(value) = tag(line, "#EXT-X-MEDIA") {
            let attributes = Attributes(value);
            let sort = GROUPS
                .iter()
                .position(|&sort| attributes.raw("TYPE") == Some(sort));
            let group = filled(attributes.raw("GROUP-ID"));
            if let (Some(sort), Some(group)) = (sort, group) {
                self.renditions.push(Rendition {
                    sort,
                    group,
                    language: filled(attributes.raw("LANGUAGE")),
                    is_default: attributes.is_yes("DEFAULT"),
                    uri: filled(attributes.raw("URI")),
                });
            }
        } else if let Some(value) = tag(line, "#EXT-X-SESSION-KEY") {
            self.keys.extend(filled(Attributes(value).raw("URI")));
        } else if let Some(value) = tag(line, "#EXT-X-DEFINE") {
            variables.define(Attributes(value), imported, collector.reading.at);
        }
    }

    fn choose(self, collector: &mut Collector<'_>) {
        let selection = collector.reading.selection;
        let offered: Vec<_> = self
            .variants
            .iter()
            .map(|v| (v.bandwidth, v.height))
            .collect();
        let mut rendition = 0;
        let mut add = |collector: &mut Collector<'_>, uri: &str, kind: Kind| {
            let at = collector.reading.at;
            collector.add_reference(at, uri, |target| Item {
                rendition,
                ..super::page(target, kind)
            });
            rendition += 1;
        };
        let chosen = selection.choose(&offered);
        for &place in &chosen {
            add(collector, &self.variants[place].uri, Kind::List);
        }
        let mut groups: Vec<(usize, &str)> = Vec::new();
        for &place in &chosen {
            for (sort, group) in self.variants[place].groups.iter().enumerate() {
                groups.extend(group.as_deref().map(|group| (sort, group)));
            }
        }
        groups.sort_unstable();
        groups.dedup();
        let mut members: HashMap<(usize, &str), Vec<&Rendition>> = HashMap::new();
        for rendition in &self.renditions {
            let group = members.entry((rendition.sort, &rendition.group));
            group.or_default().push(rendition);
        }
        for (sort, group) in groups {
            let Some(members) = members.get(&(sort, group)) else {
                continue;
            };
            let wanted =
                |rendition: &&&Rendition| selection.takes_language(rendition.language.as_deref());
            let mut taken: Vec<&Rendition> = members.iter().filter(wanted).copied().collect();
            if taken.is_empty() && sort == AUDIO {
                let usual = members.iter().find(|rendition| rendition.is_default);
                taken.extend(usual.or(members.first()));
            }
            for rendition in taken {
                if let Some(uri) = &rendition.uri {
                    add(collector, uri, Kind::List);
                }
            }
        }
        for variant in &self.i_frames {
            if selection.takes_bandwidth(variant.bandwidth)
                && selection.takes_height(variant.height)
            {
                add(collector, &variant.uri, Kind::List);
            }
        }
        for uri in &self.keys {
            add_key(collector, uri, 0);
        }
    }
}

impl Variant {
    fn new(
        attributes: Attributes<'_>,
        filled: &mut impl FnMut(Option<&str>) -> Option<Box<str>>,
    ) -> Variant {
        let height = |resolution: &str| resolution.split_once('x')?.1.parse().ok();
        Variant {
            uri: Box::default(),
            bandwidth: attributes.number("BANDWIDTH"),
            height: attributes.raw("RESOLUTION").and_then(height),
            groups: GROUPS.map(|sort| filled(attributes.raw(sort))),
        }
    }
}

/// A key that HTTP can fetch; others are between the player and its licence server.
fn add_key(collector: &mut Collector<'_>, uri: &str, rendition: u32) {
    let at = collector.reading.at;
    if collector.resolve(at, uri) == Err(Refusal::Scheme) {
        return;
    }
    collector.add_reference(at, uri, |target| Item {
        rendition,
        ..super::page(target, Kind::Key)
    });
}

/// A media playlist, while it is read.
#[derive(Default)]
struct Media {
    /// Media sequence number of the next segment.
    sequence: u64,
    elapsed: Duration,
    target_duration: Option<Duration>,
    is_ended: bool,
    is_vod: bool,
    /// Of the next segment: `EXTINF`, `EXT-X-BYTERANGE`, `EXT-X-GAP`.
    duration: Option<Duration>,
    byte_range: Option<Box<str>>,
    is_gap: bool,
    last_range: LastRange,
    last_part_range: LastRange,
}

impl Media {
    fn again(&self) -> Option<Duration> {
        let is_live = !self.is_ended && !self.is_vod;
        is_live.then(|| self.target_duration.unwrap_or(USUAL_TARGET_DURATION))
    }

    fn read(
        &mut self,
        line: &str,
        variables: &mut Variables,
        imported: &Variables,
        collector: &mut Collector<'_>,
    ) {
        if !line.starts_with('#') {
            if !line.is_empty() {
                self.read_segment(line, variables, collector);
            }
        } else if let Some(value) = tag(line, "#EXTINF") {
            self.duration = seconds(value.split(',').next().unwrap_or_default());
        } else if let Some(value) = tag(line, "#EXT-X-BYTERANGE") {
            self.byte_range = Some(value.into());
        } else if tag(line, "#EXT-X-GAP").is_some() {
            self.is_gap = true;
        } else if let Some(value) = tag(line, "#EXT-X-MEDIA-SEQUENCE") {
            self.sequence = value.trim_ascii().parse().unwrap_or(0);
        } else if let Some(value) = tag(line, "#EXT-X-SKIP") {
            let skipped: Option<u64> = Attributes(value).number("SKIPPED-SEGMENTS");
            self.sequence = self.sequence.saturating_add(skipped.unwrap_or(0));
        } else if let Some(value) = tag(line, "#EXT-X-TARGETDURATION") {
            self.target_duration = seconds(value);
        } else if let Some(value) = tag(line, "#EXT-X-PLAYLIST-TYPE") {
            self.is_vod = value.trim_ascii() == "VOD";
        } else if tag(line, "#EXT-X-ENDLIST").is_some() {
            self.is_ended = true;
        } else if let Some(value) = tag(line, "#EXT-X-DEFINE") {
            variables.define(Attributes(value), imported, collector.reading.at);
        } else {
            self.read_reference(line, variables, collector);
        }
    }

    /// A tag that names something beside segments.
    fn read_reference(&mut self, line: &str, variables: &Variables, collector: &mut Collector<'_>) {
        const TAGS: [(&str, Kind); 5] = [
            ("#EXT-X-MAP", Kind::Initialization),
            ("#EXT-X-KEY", Kind::Key),
            ("#EXT-X-PART", Kind::Part),
            ("#EXT-X-PRELOAD-HINT", Kind::Hint),
            ("#EXT-X-RENDITION-REPORT", Kind::Report),
        ];
        let known = |&(name, kind): &(&str, Kind)| Some((Attributes(tag(line, name)?), kind));
        let Some((attributes, kind)) = TAGS.iter().find_map(known) else {
            return;
        };
        let Some(uri) = attributes.raw("URI") else {
            return;
        };
        let Some(uri) = variables.fill(uri) else {
            return collector.refuse(uri, Reason::Variable);
        };
        let is_timed = matches!(kind, Kind::Part | Kind::Hint);
        if kind != Kind::Report && !collector.reading.selection.takes_time(self.elapsed) {
            return;
        }
        let range = match kind {
            Kind::Key if attributes.raw("METHOD") == Some("NONE") => return,
            Kind::Key => return add_key(collector, &uri, 0),
            Kind::Part if attributes.is_yes("GAP") => return,
            Kind::Part => attributes
                .raw("BYTERANGE")
                .map(|text| self.last_part_range.next(&uri, text)),
            Kind::Initialization => attributes.raw("BYTERANGE").map(|text| {
                let (length, offset) = parse_byte_range(text)?;
                span(offset.unwrap_or(0), length)
            }),
            Kind::Hint => hinted_range(attributes),
            _ => None,
        };
        let range = match range {
            Some(None) => return collector.refuse(&uri, Reason::Range),
            Some(range) => range,
            None => None,
        };
        let at = collector.reading.at;
        let item = |target| Item {
            target,
            range,
            kind,
            duration: attributes.raw("DURATION").and_then(seconds),
            sequence: is_timed.then_some(self.sequence),
            rendition: 0,
        };
        collector.add_reference(at, &uri, item);
    }

    fn read_segment(&mut self, line: &str, variables: &Variables, collector: &mut Collector<'_>) {
        let sequence = self.sequence;
        let begins = self.elapsed;
        let duration = self.duration.take();
        let byte_range = self.byte_range.take();
        let is_gap = std::mem::take(&mut self.is_gap);
        self.sequence = self.sequence.saturating_add(1);
        self.elapsed = self.elapsed.saturating_add(duration.unwrap_or_default());
        let Some(uri) = variables.fill(line) else {
            return collector.refuse(line, Reason::Variable);
        };
        let range = byte_range.map(|text| self.last_range.next(&uri, &text));
        if is_gap || !collector.reading.selection.takes_time(begins) {
            return;
        }
        let range = match range {
            Some(None) => return collector.refuse(&uri, Reason::Range),
            Some(range) => range,
            None => None,
        };
        let at = collector.reading.at;
        collector.add_reference(at, &uri, |target| Item {
            target,
            range,
            kind: Kind::Segment,
            duration,
            sequence: Some(sequence),
            rendition: 0,
        });
    }
}

/// `BYTERANGE-START` and `BYTERANGE-LENGTH`: open at its end where the length is not known yet.
fn hinted_range(attributes: Attributes<'_>) -> Option<Option<RangeSpec>> {
    let start = attributes.raw("BYTERANGE-START");
    let length = attributes.raw("BYTERANGE-LENGTH");
    if start.is_none() && length.is_none() {
        return None;
    }
    let Ok(start) = start.unwrap_or("0").parse() else {
        return Some(None);
    };
    Some(match length {
        Some(length) => length.parse().ok().and_then(|length| span(start, length)),
        None => Some(RangeSpec::Span(start, None)),
    })
}
