//! DASH presentations (ISO/IEC 23009-1): an MPD comes to the segments of the chosen representations.
//!
//! ```text
//! MPD ── Period ── AdaptationSet ── Representation      BaseURL, SegmentTemplate, SegmentList and
//!                                                       SegmentBase stand at any of them; a lower one
//!                                                       completes and overrides those above it
//! ```
//!
//! Of a dynamic presentation, the segments come that can be asked for at the time given: published, and
//! within the time shift buffer. Elements that stand in other documents (`xlink:href`) are not followed.

use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::date::{Nanos, parse_date_time, parse_duration};
use super::xml::{Element, Walker};
use super::{Collector, Expansion, Item, Kind, Reading, Reason, Unreadable, text};
use crate::semantics::range::RangeSpec;
use crate::semantics::reference::{self, Target};

/// How long a dynamic MPD stays as it is that does not say so.
const USUAL_UPDATE_PERIOD: Duration = Duration::from_secs(5);

/// An MPD that asks to be fetched all the time is fetched this often.
const LEAST_UPDATE_PERIOD: Duration = Duration::from_secs(1);

/// Longest reference that a template makes, in bytes.
const MAX_REFERENCE_BYTES: usize = 8 << 10;

/// Most digits that a template may pad a number to.
const MAX_WIDTH: usize = 32;

/// Elements and segments that are looked at for each item that may come of it.
const LOOKS_PER_ITEM: usize = 16;

/// Alternative bases of one level that are looked at.
const MAX_BASES: usize = 16;

/// Elements that are kept of a document for each item that may come of it.
const PARTS_PER_ITEM: usize = 4;

/// What `xlink:href` says of an element that is to be left out.
const RESOLVE_TO_ZERO: &str = "urn:mpeg:dash:resolve-to-zero:2013";

const NANOS: Nanos = 1_000_000_000;

/// What an MPD comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presentation {
    pub expansion: Expansion,
    /// Where to ask for the MPD the next time.
    pub location: Option<Target>,
}

/// Expands an MPD, as it is at `now`.
pub fn expand(
    bytes: &[u8],
    reading: Reading<'_>,
    now: SystemTime,
) -> Result<Presentation, Unreadable> {
    let text = text(bytes, &reading.limits)?;
    let mut collector = Collector::new(reading);
    let mpd = Mpd::parse(text, &mut collector)?;
    let mut renditions = Vec::new();
    let looks = reading.limits.max_items.saturating_mul(LOOKS_PER_ITEM);
    let mut walk = Walk {
        mpd: &mpd,
        collector,
        now: since_1970(now),
        renditions: &mut renditions,
        looks,
    };
    walk.periods();
    let mut collector = walk.collector;
    if mpd.is_dynamic {
        let period = mpd.minimum_update_period.unwrap_or(USUAL_UPDATE_PERIOD);
        collector.expansion.again = Some(period.max(LEAST_UPDATE_PERIOD));
    }
    let location = mpd.location.as_deref();
    let location = location.and_then(|location| collector.resolve(reading.at, location).ok());
    Ok(Presentation {
        expansion: collector.expansion,
        location,
    })
}

fn since_1970(now: SystemTime) -> Nanos {
    match now.duration_since(UNIX_EPOCH) {
        Ok(since) => nanos(since),
        Err(before) => -nanos(before.duration()),
    }
}

fn nanos(duration: Duration) -> Nanos {
    Nanos::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}

#[derive(Default)]
struct Mpd {
    is_dynamic: bool,
    availability_start: Option<Nanos>,
    duration: Option<Nanos>,
    time_shift_buffer: Option<Nanos>,
    minimum_update_period: Option<Duration>,
    location: Option<Box<str>>,
    bases: Vec<Box<str>>,
    periods: Vec<Period>,
}

#[derive(Default)]
struct Period {
    start: Option<Nanos>,
    duration: Option<Nanos>,
    bases: Vec<Box<str>>,
    segments: Addressing,
    sets: Vec<AdaptationSet>,
}

#[derive(Default)]
struct AdaptationSet {
    id: Option<Box<str>>,
    content: Option<Box<str>>,
    language: Option<Box<str>>,
    height: Option<u32>,
    bases: Vec<Box<str>>,
    segments: Addressing,
    representations: Vec<Representation>,
}

#[derive(Default)]
struct Representation {
    id: Box<str>,
    content: Option<Box<str>>,
    bandwidth: Option<u64>,
    height: Option<u32>,
    bases: Vec<Box<str>>,
    segments: Addressing,
}

/// How segments are addressed at one level.
#[derive(Default)]
struct Addressing {
    template: Option<Box<Segments>>,
    list: Option<Box<Segments>>,
    single: Option<Box<Segments>>,
}

#[derive(Clone, Copy)]
enum Manner {
    Template,
    List,
    Single,
}

/// `SegmentTemplate`, `SegmentList` or `SegmentBase`: what is not given is inherited.
#[derive(Clone, Default)]
struct Segments {
    media: Option<Rc<str>>,
    index: Option<Rc<str>>,
    initialization: Option<Rc<str>>,
    index_range: Option<Rc<str>>,
    timescale: Option<u64>,
    duration: Option<u64>,
    start_number: Option<u64>,
    end_number: Option<u64>,
    presentation_time_offset: Option<u64>,
    availability_time_offset: Option<Nanos>,
    timeline: Option<Rc<[Run]>>,
    urls: Option<Rc<[SegmentUrl]>>,
    /// Elements `Initialization` and `RepresentationIndex`.
    initialization_at: Option<Place>,
    index_at: Option<Place>,
}

/// `S` of a `SegmentTimeline`.
#[derive(Clone, Copy, Default)]
struct Run {
    time: Option<u64>,
    number: Option<u64>,
    duration: u64,
    repeat: i64,
}

#[derive(Default)]
struct SegmentUrl {
    media: Option<Box<str>>,
    media_range: Option<Box<str>>,
    index: Option<Box<str>>,
    index_range: Option<Box<str>>,
}

/// A URL and a range, each optional; without a URL the base is meant.
#[derive(Clone, Default)]
struct Place {
    url: Option<Rc<str>>,
    range: Option<Rc<str>>,
}

impl Mpd {
    fn parse(text: &str, collector: &mut Collector<'_>) -> Result<Mpd, Unreadable> {
        let mut walker = Walker::new(text);
        let root = walker.root()?;
        let mut parts = Parts {
            left: collector
                .reading
                .limits
                .max_items
                .saturating_mul(PARTS_PER_ITEM),
            collector,
        };
        let Some(root) = root.filter(|root| root.name() == "MPD") else {
            return Err(Unreadable::Other("DASH presentation"));
        };
        let mut mpd = Mpd {
            is_dynamic: root.get("type").as_deref() == Some("dynamic"),
            availability_start: root
                .get("availabilityStartTime")
                .and_then(|text| parse_date_time(&text)),
            duration: duration_of(&root, "mediaPresentationDuration").map(nanos),
            time_shift_buffer: duration_of(&root, "timeShiftBufferDepth").map(nanos),
            minimum_update_period: duration_of(&root, "minimumUpdatePeriod"),
            ..Mpd::default()
        };
        walker.children(|walker, element| {
            match element.name() {
                "BaseURL" if mpd.bases.len() < MAX_BASES => mpd.bases.push(walker.text()?.into()),
                "Location" if mpd.location.is_none() => mpd.location = Some(walker.text()?.into()),
                "Period" if parts.takes(&element) => {
                    mpd.periods
                        .push(Period::parse(walker, &element, &mut parts)?);
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(mpd)
    }
}

fn duration_of(element: &Element<'_>, name: &str) -> Option<Duration> {
    parse_duration(&element.get(name)?)
}

/// Counts the elements that are kept of a document.
struct Parts<'c, 'a> {
    left: usize,
    collector: &'c mut Collector<'a>,
}

impl Parts<'_, '_> {
    /// Whether an element is to be read: not one that stands in another document, and no more than there is
    /// room for. Whatever keeps it out is told.
    fn takes(&mut self, element: &Element<'_>) -> bool {
        if let Some(address) = element.get("xlink:href") {
            if *address != *RESOLVE_TO_ZERO {
                self.collector.refuse(&address, Reason::Remote);
            }
            return false;
        }
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => self.collector.expansion.is_cut = true,
        }
        !self.collector.expansion.is_cut
    }
}

impl Period {
    fn parse(
        walker: &mut Walker<'_>,
        element: &Element<'_>,
        parts: &mut Parts<'_, '_>,
    ) -> Result<Period, Unreadable> {
        let mut period = Period {
            start: duration_of(element, "start").map(nanos),
            duration: duration_of(element, "duration").map(nanos),
            ..Period::default()
        };
        walker.children(|walker, element| {
            match element.name() {
                "BaseURL" if period.bases.len() < MAX_BASES => {
                    period.bases.push(walker.text()?.into())
                }
                "AdaptationSet" if parts.takes(&element) => {
                    period
                        .sets
                        .push(AdaptationSet::parse(walker, &element, parts)?);
                }
                _ => period.segments.parse(walker, &element, parts)?,
            }
            Ok(())
        })?;
        Ok(period)
    }
}

impl AdaptationSet {
    fn parse(
        walker: &mut Walker<'_>,
        element: &Element<'_>,
        parts: &mut Parts<'_, '_>,
    ) -> Result<AdaptationSet, Unreadable> {
        let mut set = AdaptationSet {
            id: element.get("id"),
            content: element.get("contentType").or_else(|| content_of(element)),
            language: element.get("lang"),
            height: element.number("height"),
            ..AdaptationSet::default()
        };
        walker.children(|walker, element| {
            match element.name() {
                "BaseURL" if set.bases.len() < MAX_BASES => set.bases.push(walker.text()?.into()),
                "Representation" if parts.takes(&element) => {
                    let mut found = Representation {
                        id: element.get("id").unwrap_or_default(),
                        content: content_of(&element),
                        bandwidth: element.number("bandwidth"),
                        height: element.number("height"),
                        ..Representation::default()
                    };
                    walker.children(|walker, element| match element.name() {
                        "BaseURL" if found.bases.len() < MAX_BASES => {
                            found.bases.push(walker.text()?.into());
                            Ok(())
                        }
                        _ => found.segments.parse(walker, &element, parts),
                    })?;
                    set.representations.push(found);
                }
                _ => set.segments.parse(walker, &element, parts)?,
            }
            Ok(())
        })?;
        Ok(set)
    }

    fn content(&self) -> Option<&str> {
        let first = self.representations.first();
        let own = self.content.as_deref();
        own.or_else(|| first.and_then(|first| first.content.as_deref()))
    }
}

/// `video` of `mimeType="video/mp4"`.
fn content_of(element: &Element<'_>) -> Option<Box<str>> {
    let mime_type = element.get("mimeType")?;
    Some(mime_type.split('/').next().unwrap_or_default().into())
}

impl Addressing {
    /// Takes an element that says how segments are addressed; another is left alone.
    fn parse(
        &mut self,
        walker: &mut Walker<'_>,
        element: &Element<'_>,
        parts: &mut Parts<'_, '_>,
    ) -> Result<(), Unreadable> {
        let found = match element.name() {
            "SegmentTemplate" => &mut self.template,
            "SegmentList" => &mut self.list,
            "SegmentBase" => &mut self.single,
            _ => return Ok(()),
        };
        if parts.takes(element) {
            *found = Some(Segments::parse(walker, element, parts)?.into());
        }
        Ok(())
    }

    fn of(&self, manner: Manner) -> Option<&Segments> {
        match manner {
            Manner::Template => self.template.as_deref(),
            Manner::List => self.list.as_deref(),
            Manner::Single => self.single.as_deref(),
        }
    }

    /// What holds at the lowest of `levels` that says anything, completed from those above it.
    fn effective(levels: [&Addressing; 3]) -> Option<(Manner, Segments)> {
        const MANNERS: [Manner; 3] = [Manner::Template, Manner::List, Manner::Single];
        let said = |level: &&Addressing| {
            let manner = MANNERS.iter().find(|manner| level.of(**manner).is_some());
            manner.copied()
        };
        let manner = levels.iter().find_map(said)?;
        let parts = levels.iter().filter_map(|level| level.of(manner));
        Some((manner, parts.fold(Segments::default(), Segments::completed)))
    }
}

impl Segments {
    fn parse(
        walker: &mut Walker<'_>,
        element: &Element<'_>,
        parts: &mut Parts<'_, '_>,
    ) -> Result<Segments, Unreadable> {
        let offset = element.get("availabilityTimeOffset");
        let mut found = Segments {
            media: element.get("media").map(Rc::from),
            index: element.get("index").map(Rc::from),
            initialization: element.get("initialization").map(Rc::from),
            index_range: element.get("indexRange").map(Rc::from),
            timescale: element.number("timescale"),
            duration: element.number("duration"),
            start_number: element.number("startNumber"),
            end_number: element.number("endNumber"),
            presentation_time_offset: element.number("presentationTimeOffset"),
            availability_time_offset: offset.and_then(|text| match &*text {
                "INF" => Some(Nanos::from(i64::MAX)),
                text => Some(nanos(Duration::try_from_secs_f64(text.parse().ok()?).ok()?)),
            }),
            ..Segments::default()
        };
        let mut urls = Vec::new();
        walker.children(|walker, element| {
            match element.name() {
                "Initialization" => found.initialization_at = Some(Place::of(&element)),
                "RepresentationIndex" => found.index_at = Some(Place::of(&element)),
                "SegmentTimeline" => {
                    let mut runs = Vec::new();
                    walker.children(|_, element| {
                        if element.name() == "S" && parts.takes(&element) {
                            runs.extend(Run::of(&element));
                        }
                        Ok(())
                    })?;
                    found.timeline = Some(runs.into());
                }
                "SegmentURL" if parts.takes(&element) => urls.push(SegmentUrl {
                    media: element.get("media"),
                    media_range: element.get("mediaRange"),
                    index: element.get("index"),
                    index_range: element.get("indexRange"),
                }),
                _ => {}
            }
            Ok(())
        })?;
        if !urls.is_empty() {
            found.urls = Some(urls.into());
        }
        Ok(found)
    }

    fn completed(self, above: &Segments) -> Segments {
        let above = above.clone();
        Segments {
            media: self.media.or(above.media),
            index: self.index.or(above.index),
            initialization: self.initialization.or(above.initialization),
            index_range: self.index_range.or(above.index_range),
            timescale: self.timescale.or(above.timescale),
            duration: self.duration.or(above.duration),
            start_number: self.start_number.or(above.start_number),
            end_number: self.end_number.or(above.end_number),
            presentation_time_offset: self
                .presentation_time_offset
                .or(above.presentation_time_offset),
            availability_time_offset: self
                .availability_time_offset
                .or(above.availability_time_offset),
            timeline: self.timeline.or(above.timeline),
            urls: self.urls.or(above.urls),
            initialization_at: self.initialization_at.or(above.initialization_at),
            index_at: self.index_at.or(above.index_at),
        }
    }

    fn timescale(&self) -> u64 {
        self.timescale.filter(|&scale| scale > 0).unwrap_or(1)
    }

    /// Nanoseconds of so many ticks.
    fn nanos(&self, ticks: u64) -> Nanos {
        Nanos::from(ticks) * NANOS / Nanos::from(self.timescale())
    }
}

impl Run {
    fn of(element: &Element<'_>) -> Option<Run> {
        Some(Run {
            time: element.number("t"),
            number: element.number("n"),
            duration: element.number("d")?,
            repeat: element.number("r").unwrap_or(0),
        })
    }
}

impl Place {
    fn of(element: &Element<'_>) -> Place {
        Place {
            url: element.get("sourceURL").map(Rc::from),
            range: element.get("range").map(Rc::from),
        }
    }
}

/// One segment before its URL is made.
#[derive(Clone, Copy)]
struct Slot {
    number: u64,
    /// On the timeline of the media, in ticks.
    time: u64,
    /// In ticks.
    duration: Option<u64>,
}

/// The part of a period's own time whose segments can be asked for, in nanoseconds since its start.
#[derive(Clone, Copy)]
struct Window {
    /// Segments that end before it are gone.
    from: Option<Nanos>,
    /// Segments that end behind it are not there yet.
    until: Option<Nanos>,
    /// Where the period ends.
    end: Option<Nanos>,
}

struct Walk<'a> {
    mpd: &'a Mpd,
    collector: Collector<'a>,
    now: Nanos,
    /// Ids of adaptation sets and representations; the place is the number of the rendition.
    renditions: &'a mut Vec<(Box<str>, Box<str>)>,
    /// How much more is looked at.
    looks: usize,
}

impl<'a> Walk<'a> {
    fn periods(&mut self) {
        let mpd = self.mpd;
        let bases = self.based(self.collector.reading.at.clone(), &mpd.bases);
        let mut next_start = Some(0).filter(|_| !mpd.is_dynamic || mpd.periods.len() == 1);
        for (at, period) in mpd.periods.iter().enumerate() {
            // One whose time is not known yet is only announced.
            let Some(start) = period.start.or(next_start) else {
                continue;
            };
            let following = mpd.periods.get(at + 1).and_then(|next| next.start);
            let is_last = at + 1 == mpd.periods.len();
            let whole = mpd.duration.filter(|_| is_last);
            let end = period
                .duration
                .map(|duration| start.saturating_add(duration));
            let end = end.or(following).or(whole);
            next_start = end;
            let window = self.window(start, end.map(|end| end - start));
            let base = self.based(bases.clone(), &period.bases);
            self.period(period, &base, start, window);
        }
    }

    fn window(&self, start: Nanos, end: Option<Nanos>) -> Window {
        let published = self.mpd.availability_start.filter(|_| self.mpd.is_dynamic);
        let until = published.map(|published| self.now - published - start);
        let depth = self.mpd.time_shift_buffer;
        Window {
            from: until.and_then(|until| Some(until - depth?)),
            until,
            end,
        }
    }

    /// The base below one more level: the first alternative that may be used.
    fn based(&self, above: Target, bases: &[Box<str>]) -> Target {
        let is_usable = |base: &str| self.collector.resolve(&above, base).is_ok();
        let Some(base) = bases.iter().find(|base| is_usable(base)).or(bases.first()) else {
            return above;
        };
        reference::resolve(&above, base.as_bytes()).unwrap_or(above)
    }

    fn period(&mut self, period: &Period, base: &Target, start: Nanos, window: Window) {
        let selection = self.collector.reading.selection;
        let is_wanted = |set: &&AdaptationSet| selection.takes_language(set.language.as_deref());
        let is_audio = |set: &&AdaptationSet| set.content() == Some("audio");
        let mut sets: Vec<(usize, &AdaptationSet)> = Vec::new();
        let mute = !period
            .sets
            .iter()
            .any(|set| is_audio(&set) && is_wanted(&set));
        let first_audio = period.sets.iter().position(|set| is_audio(&set));
        for (at, set) in period.sets.iter().enumerate() {
            if is_wanted(&set) || (mute && first_audio == Some(at)) {
                sets.push((at, set));
            }
        }
        for (at, set) in sets {
            let base = self.based(base.clone(), &set.bases);
            let height = |one: &Representation| one.height.or(set.height);
            let offered: Vec<_> = set
                .representations
                .iter()
                .map(|one| (one.bandwidth, height(one)))
                .collect();
            for place in selection.choose(&offered) {
                if !self.look() {
                    return;
                }
                let one = &set.representations[place];
                let number = self.rendition(set, at, one, place);
                let has_base = [&self.mpd.bases, &period.bases, &set.bases, &one.bases]
                    .iter()
                    .any(|bases| !bases.is_empty());
                let base = self.based(base.clone(), &one.bases);
                let levels = [&one.segments, &set.segments, &period.segments];
                let addressing = Addressing::effective(levels);
                let mut track = Track {
                    one,
                    base: &base,
                    rendition: number,
                    start,
                    origin: (!self.mpd.is_dynamic).then_some(0),
                };
                match addressing {
                    Some((Manner::Template, segments)) => {
                        self.template(&mut track, &segments, window)
                    }
                    Some((Manner::List, segments)) => self.list(&mut track, &segments, window),
                    Some((Manner::Single, segments)) => self.single(&track, &segments),
                    None if has_base => self.single(&track, &Segments::default()),
                    None => {}
                }
            }
        }
    }

    /// The same for the same representation in each period.
    fn rendition(
        &mut self,
        set: &AdaptationSet,
        set_place: usize,
        one: &Representation,
        place: usize,
    ) -> u32 {
        let set: Box<str> = match &set.id {
            Some(id) => id.clone(),
            None => format!("#{set_place}").into(),
        };
        let id: Box<str> = match one.id.is_empty() {
            true => format!("#{place}").into(),
            false => one.id.clone(),
        };
        // Representations are found by the thousand only where somebody means harm.
        self.looks = self.looks.saturating_sub(self.renditions.len() / 64);
        let identity = (set, id);
        let known = self.renditions.iter().position(|known| *known == identity);
        let number = known.unwrap_or_else(|| {
            self.renditions.push(identity);
            self.renditions.len() - 1
        });
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// Whether more may be looked at.
    fn look(&mut self) -> bool {
        match self.looks.checked_sub(1) {
            Some(left) if !self.collector.is_full() => {
                self.looks = left;
                true
            }
            _ => {
                self.collector.expansion.is_cut = true;
                false
            }
        }
    }

    fn template(&mut self, track: &mut Track<'_>, segments: &Segments, window: Window) {
        if !self.look() {
            return;
        }
        match &segments.initialization {
            Some(template) => {
                let reference = track.fill(template, None);
                self.add(
                    track,
                    Kind::Initialization,
                    template,
                    reference,
                    None,
                    None,
                    None,
                );
            }
            None => self.place(track, Kind::Initialization, &segments.initialization_at),
        }
        self.place(track, Kind::Index, &segments.index_at);
        let Some(media) = &segments.media else {
            return;
        };
        self.slots(segments, window, |walk, slot| {
            if !track.takes(segments, slot, walk.collector.reading.selection) {
                return walk.mpd.is_dynamic;
            }
            if let Some(template) = &segments.index {
                let reference = track.fill(template, Some(slot));
                walk.add(
                    track,
                    Kind::Index,
                    template,
                    reference,
                    None,
                    Some(slot),
                    None,
                );
            }
            let reference = track.fill(media, Some(slot));
            let duration = slot.duration.map(|ticks| segments.nanos(ticks));
            walk.add(
                track,
                Kind::Segment,
                media,
                reference,
                None,
                Some(slot),
                duration,
            );
            true
        });
    }

    fn list(&mut self, track: &mut Track<'_>, segments: &Segments, window: Window) {
        self.place(track, Kind::Initialization, &segments.initialization_at);
        self.place(track, Kind::Index, &segments.index_at);
        let urls = segments.urls.clone().unwrap_or_default();
        let first = segments.start_number.unwrap_or(1);
        let named = |walk: &mut Walk<'_>, track: &mut Track<'_>, slot: Slot| {
            let place = slot.number.checked_sub(first);
            let place = place.and_then(|place| usize::try_from(place).ok());
            let Some(url) = place.and_then(|place| urls.get(place)) else {
                return false;
            };
            if !track.takes(segments, slot, walk.collector.reading.selection) {
                return walk.mpd.is_dynamic;
            }
            let of = |url: &Option<Box<str>>| url.clone().unwrap_or_default();
            if url.index.is_some() || url.index_range.is_some() {
                let index = of(&url.index.clone().or(url.media.clone()));
                let range = url.index_range.as_deref();
                let reference = Some(index.clone().into());
                walk.add(
                    track,
                    Kind::Index,
                    &index,
                    reference,
                    range,
                    Some(slot),
                    None,
                );
            }
            let media = of(&url.media);
            let range = url.media_range.as_deref();
            let duration = slot.duration.map(|ticks| segments.nanos(ticks));
            let reference = Some(media.clone().into());
            walk.add(
                track,
                Kind::Segment,
                &media,
                reference,
                range,
                Some(slot),
                duration,
            );
            true
        };
        if segments.timeline.is_some() {
            return self.slots(segments, window, |walk, slot| named(walk, track, slot));
        }
        // Each that is listed is there: the list says how many there are.
        for place in 0..urls.len() as u64 {
            let ticks = segments.duration.unwrap_or(0);
            let slot = Slot {
                number: first.saturating_add(place),
                time: place.saturating_mul(ticks),
                duration: segments.duration,
            };
            if !self.look() || !named(self, track, slot) {
                return;
            }
        }
    }

    /// One file: its initialisation, its index, and all of it.
    fn single(&mut self, track: &Track<'_>, segments: &Segments) {
        if !self.look() {
            return;
        }
        self.place(track, Kind::Initialization, &segments.initialization_at);
        match (&segments.index_at, &segments.index_range) {
            (Some(_), _) => self.place(track, Kind::Index, &segments.index_at),
            (None, Some(range)) => {
                let reference = Some(String::new());
                self.add(track, Kind::Index, "", reference, Some(range), None, None);
            }
            (None, None) => {}
        }
        self.add(
            track,
            Kind::Segment,
            "",
            Some(String::new()),
            None,
            None,
            None,
        );
    }

    fn place(&mut self, track: &Track<'_>, kind: Kind, place: &Option<Place>) {
        if let Some(place) = place {
            let url = place.url.as_deref().unwrap_or_default();
            self.add(
                track,
                kind,
                url,
                Some(url.to_owned()),
                place.range.as_deref(),
                None,
                None,
            );
        }
    }

    /// `reference` is what has come of `written`; an empty one is the base.
    #[expect(clippy::too_many_arguments, reason = "each is a field of the item")]
    fn add(
        &mut self,
        track: &Track<'_>,
        kind: Kind,
        written: &str,
        reference: Option<String>,
        range: Option<&str>,
        slot: Option<Slot>,
        duration: Option<Nanos>,
    ) {
        let Some(reference) = reference else {
            self.collector.charge(written.len());
            return self.collector.refuse(written, Reason::Template);
        };
        let range = match range.map(parse_range) {
            Some(None) => return self.collector.refuse(&reference, Reason::Range),
            Some(range) => range,
            None => None,
        };
        let duration = duration.and_then(|nanos| u64::try_from(nanos).ok());
        self.collector
            .add_reference(track.base, &reference, |target| Item {
                target,
                range,
                kind,
                duration: duration.map(Duration::from_nanos),
                sequence: slot.map(|slot| slot.number),
                rendition: track.rendition,
            });
    }

    /// Gives each segment that can be asked for to `take`, until it wants no more.
    fn slots(
        &mut self,
        segments: &Segments,
        window: Window,
        mut take: impl FnMut(&mut Walk<'a>, Slot) -> bool,
    ) {
        let first_number = segments.start_number.unwrap_or(1);
        let last_number = segments.end_number.unwrap_or(u64::MAX);
        let Some(timeline) = &segments.timeline else {
            return self.regular(segments, window, first_number, last_number, take);
        };
        let mut number = first_number;
        let mut time = 0_u64;
        for (at, run) in timeline.iter().enumerate() {
            time = run.time.unwrap_or(time);
            number = run.number.unwrap_or(number);
            let next = timeline.get(at + 1).and_then(|next| next.time);
            let count = count_of(run, time, next, segments, window);
            // What is gone is not counted out one by one.
            let gone = gone(run, time, count, segments, window);
            for step in gone..count {
                let slot = Slot {
                    number: number.saturating_add(step),
                    time: time.saturating_add(run.duration.saturating_mul(step)),
                    duration: Some(run.duration),
                };
                if slot.number > last_number || !self.look() || !take(self, slot) {
                    return;
                }
            }
            if !self.look() {
                return;
            }
            number = number.saturating_add(count);
            time = time.saturating_add(run.duration.saturating_mul(count));
        }
    }

    /// Segments that are all as long as `@duration`.
    fn regular(
        &mut self,
        segments: &Segments,
        window: Window,
        first_number: u64,
        last_number: u64,
        mut take: impl FnMut(&mut Walk<'a>, Slot) -> bool,
    ) {
        let offset = segments.presentation_time_offset.unwrap_or(0);
        let Some(duration) = segments.duration.filter(|&ticks| ticks > 0) else {
            // One segment, as long as the period.
            let slot = Slot {
                number: first_number,
                time: offset,
                duration: None,
            };
            if self.look() {
                take(self, slot);
            }
            return;
        };
        // In units of ticks times 10⁹, so that nothing is rounded.
        let scale = Nanos::from(segments.timescale());
        let length = Nanos::from(duration) * NANOS;
        let count = window
            .end
            .map(|end| div_ceil(end.saturating_mul(scale), length));
        let ahead = segments.availability_time_offset.unwrap_or(0);
        let published = window.until.map(|until| {
            until
                .saturating_add(ahead)
                .saturating_mul(scale)
                .div_euclid(length)
        });
        let count = match (count, published) {
            (Some(count), Some(published)) => count.min(published),
            (Some(count), None) | (None, Some(count)) => count,
            // Nobody knows where it ends.
            (None, None) => 0,
        };
        let numbers = last_number
            .checked_sub(first_number)
            .map_or(0, |last| last.saturating_add(1));
        let count = u64::try_from(count.max(0)).unwrap_or(u64::MAX).min(numbers);
        let gone = window
            .from
            .map_or(0, |from| from.saturating_mul(scale).div_euclid(length));
        let mut first = u64::try_from(gone.max(0)).unwrap_or(u64::MAX).min(count);
        let max_items = self.collector.reading.limits.max_items as u64;
        if self.mpd.is_dynamic && count - first > max_items {
            // Of a channel that has always been there, the newest.
            first = count - max_items;
            self.collector.expansion.is_cut = true;
        }
        for step in first..count {
            let slot = Slot {
                number: first_number.saturating_add(step),
                time: offset.saturating_add(duration.saturating_mul(step)),
                duration: Some(duration),
            };
            if !self.look() || !take(self, slot) {
                return;
            }
        }
    }
}

/// How many segments a run has; `@r` below 0 goes on to the next run, the period's end, or now.
fn count_of(run: &Run, time: u64, next: Option<u64>, segments: &Segments, window: Window) -> u64 {
    if let Ok(repeat) = u64::try_from(run.repeat) {
        return repeat.saturating_add(1);
    }
    if run.duration == 0 {
        return 1;
    }
    if let Some(next) = next {
        return next.saturating_sub(time).div_ceil(run.duration).max(1);
    }
    let scale = Nanos::from(segments.timescale());
    let offset = Nanos::from(segments.presentation_time_offset.unwrap_or(0));
    let begins = (Nanos::from(time) - offset) * NANOS;
    let length = Nanos::from(run.duration) * NANOS;
    let ahead = segments.availability_time_offset.unwrap_or(0);
    let end = window
        .end
        .map(|end| div_ceil(end.saturating_mul(scale).saturating_sub(begins), length));
    let until = window.until.map(|until| until.saturating_add(ahead));
    let until = until.map(|until| {
        until
            .saturating_mul(scale)
            .saturating_sub(begins)
            .div_euclid(length)
    });
    let count = match (end, until) {
        (Some(end), Some(until)) => end.min(until),
        (Some(count), None) | (None, Some(count)) => count,
        (None, None) => 1,
    };
    u64::try_from(count.max(0)).unwrap_or(u64::MAX)
}

/// How many segments of a run have left the time shift buffer.
fn gone(run: &Run, time: u64, count: u64, segments: &Segments, window: Window) -> u64 {
    let Some(from) = window.from.filter(|_| run.duration > 0) else {
        return 0;
    };
    let offset = Nanos::from(segments.presentation_time_offset.unwrap_or(0));
    let begins = (Nanos::from(time) - offset) * NANOS;
    let scale = Nanos::from(segments.timescale());
    let length = Nanos::from(run.duration) * NANOS;
    let gone = from
        .saturating_mul(scale)
        .saturating_sub(begins)
        .div_euclid(length);
    u64::try_from(gone.max(0)).unwrap_or(u64::MAX).min(count)
}

fn div_ceil(number: Nanos, by: Nanos) -> Nanos {
    number.div_euclid(by) + Nanos::from(number.rem_euclid(by) > 0)
}

/// A representation whose segments are gathered.
struct Track<'a> {
    one: &'a Representation,
    base: &'a Target,
    rendition: u32,
    /// Of its period.
    start: Nanos,
    /// What `first` is counted from: the presentation's start, or the first segment that can be asked for.
    origin: Option<Nanos>,
}

impl Track<'_> {
    /// Whether the segment begins early enough.
    fn takes(&mut self, segments: &Segments, slot: Slot, selection: &super::Selection) -> bool {
        let offset = segments.nanos(segments.presentation_time_offset.unwrap_or(0));
        let begins = self.start + segments.nanos(slot.time) - offset;
        let origin = *self.origin.get_or_insert(begins);
        let elapsed = u64::try_from((begins - origin).max(0)).unwrap_or(u64::MAX);
        selection.takes_time(Duration::from_nanos(elapsed))
    }

    /// A template with its identifiers filled in (ISO/IEC 23009-1 §5.3.9.4.4). None where one is not known, or
    /// has no value here.
    fn fill(&self, template: &str, slot: Option<Slot>) -> Option<String> {
        let mut filled = String::new();
        let mut parts = template.split('$');
        filled.push_str(parts.next()?);
        while let Some(identifier) = parts.next() {
            // Each identifier stands between two signs; without the second it is none.
            let behind = parts.next()?;
            let (name, width) = match identifier.split_once('%') {
                Some((name, format)) => (name, parse_width(format)?),
                None => (identifier, 1),
            };
            match name {
                "" if width == 1 => filled.push('$'),
                "RepresentationID" if width == 1 => filled.push_str(&self.one.id),
                "Number" => filled.push_str(&format!("{:0width$}", slot?.number)),
                "Time" => filled.push_str(&format!("{:0width$}", slot?.time)),
                "Bandwidth" => filled.push_str(&format!("{:0width$}", self.one.bandwidth?)),
                _ => return None,
            }
            filled.push_str(behind);
            if filled.len() > MAX_REFERENCE_BYTES {
                return None;
            }
        }
        Some(filled)
    }
}

/// `05d`: a width that zeros fill up.
fn parse_width(format: &str) -> Option<usize> {
    let digits = format.strip_suffix('d')?;
    let width = digits.strip_prefix('0').unwrap_or(digits);
    let width: usize = if width.is_empty() {
        1
    } else {
        width.parse().ok()?
    };
    (1..=MAX_WIDTH).contains(&width).then_some(width)
}

/// `first-last` or `first-`, as in a `Range`.
fn parse_range(text: &str) -> Option<RangeSpec> {
    let (first, last) = text.split_once('-')?;
    let first: u64 = first.trim_ascii().parse().ok()?;
    match last.trim_ascii() {
        "" => Some(RangeSpec::Span(first, None)),
        last => {
            let end = last.parse::<u64>().ok()?.checked_add(1)?;
            (first < end).then_some(RangeSpec::Span(first, Some(end)))
        }
    }
}
