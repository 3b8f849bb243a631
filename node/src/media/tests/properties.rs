//! Lists that somebody has damaged, by chance or on purpose.

use super::*;

/// A repeatable stream of numbers.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

const SOUND: [&str; 6] = [
    "#EXTM3U\n#EXT-X-DEFINE:NAME=\"a\",VALUE=\"b\"\n#EXT-X-MEDIA-SEQUENCE:7\n#EXT-X-TARGETDURATION:4\n\
     #EXT-X-KEY:METHOD=AES-128,URI=\"k\"\n#EXT-X-MAP:URI=\"i\",BYTERANGE=\"10@5\"\n#EXTINF:4.5,x\n\
     #EXT-X-BYTERANGE:100@0\n{$a}.ts\n#EXT-X-BYTERANGE:100\n#EXTINF:4,\n{$a}.ts\n\
     #EXT-X-PART:DURATION=0.5,URI=\"p\",BYTERANGE=\"5@6\"\n#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"h\",BYTERANGE-START=5\n\
     #EXT-X-SKIP:SKIPPED-SEGMENTS=3\n#EXT-X-ENDLIST\n",
    "#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"g\",LANGUAGE=\"en\",URI=\"a\"\n\
     #EXT-X-STREAM-INF:BANDWIDTH=5,RESOLUTION=640x360,AUDIO=\"g\"\nv\n#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=1,URI=\"f\"\n",
    "<MPD type='dynamic' availabilityStartTime='2026-11-22T00:59:00Z' timeShiftBufferDepth='PT30S'><BaseURL>b/</BaseURL>\
     <Period start='PT0S'><AdaptationSet lang='en'><SegmentTemplate timescale='10' duration='20' startNumber='3' \
     media='$RepresentationID$-$Number%05d$-$Time$' initialization='i'/><Representation id='a' bandwidth='5'/>\
     <Representation id='b'><SegmentTemplate media='$Time$'><SegmentTimeline><S t='0' d='20' r='-1'/><S t='400' d='9' r='3'/>\
     </SegmentTimeline></SegmentTemplate></Representation></AdaptationSet></Period></MPD>",
    "<MPD mediaPresentationDuration='PT60S'><Period duration='PT20S'><AdaptationSet><Representation id='a'>\
     <SegmentList duration='5'><Initialization range='0-9'/><SegmentURL media='x' mediaRange='5-9'/><SegmentURL media='y'/>\
     </SegmentList></Representation><Representation id='b'><BaseURL>b</BaseURL><SegmentBase indexRange='1-5'/>\
     </Representation></AdaptationSet></Period></MPD>",
    "<urlset><url><loc>http://a.example/&amp;</loc></url><url><loc><![CDATA[x]]></loc></url></urlset>",
    "<rss><channel><item><link>x</link><pubDate>Sun, 22 Nov 2026 10:00:00 GMT</pubDate><enclosure url='e'/></item></channel></rss>",
];

/// What numbers and words are likely to be handled badly.
const SPLINTERS: [&str; 24] = [
    "0",
    "-1",
    "18446744073709551615",
    "9223372036854775807",
    "1e308",
    "\"",
    "'",
    "<",
    ">",
    "&",
    "$",
    "%",
    "\n",
    ",",
    "=",
    "@",
    "é",
    "//evil.example/",
    "../",
    "PT1S",
    "]]>",
    "<!--",
    "\u{0}",
    "{$a}",
];

fn damaged(numbers: &mut Numbers) -> Vec<u8> {
    let mut text = SOUND[numbers.below(SOUND.len())].as_bytes().to_vec();
    for _ in 0..=numbers.below(6) {
        let at = numbers.below(text.len() + 1);
        let end = (at + numbers.below(12)).min(text.len());
        let splinter = SPLINTERS[numbers.below(SPLINTERS.len())].as_bytes();
        match numbers.below(5) {
            0 => drop(text.drain(at..end)),
            1 => drop(text.splice(at..end, splinter.iter().copied())),
            2 => text.truncate(at.max(8)),
            3 => {
                // A number in the text becomes another.
                let digit = (at..text.len()).find(|&place| text[place].is_ascii_digit());
                if let Some(place) = digit {
                    let end = (place..text.len()).find(|&end| !text[end].is_ascii_digit());
                    drop(text.splice(place..end.unwrap_or(text.len()), splinter.iter().copied()));
                }
            }
            _ => {
                let piece = text[at..end].to_vec();
                let to = numbers.below(text.len() + 1);
                drop(text.splice(to..to, piece));
            }
        }
    }
    text
}

/// No damage makes it panic, work without end, or lead elsewhere.
#[test]
fn damaged_lists_are_borne() {
    let limits = Limits {
        max_items: 50,
        ..Limits::default()
    };
    let rules = [
        Selection::default(),
        selection("bandwidth=3 height=100 languages=en,de first=6.5"),
    ];
    let mut items = 0;
    for seed in 0..2000 {
        let mut numbers = Numbers(seed);
        let text = damaged(&mut numbers);
        for rule in &rules {
            let found: Vec<Expansion> = read(rule, limits, |reading| {
                let playlist = hls::expand(&text, reading, &Variables::default());
                let presentation = dash::expand(&text, reading, now());
                let others = [
                    sitemap::expand(&text, reading),
                    feed::expand(&text, reading, 5),
                    list::expand(&text, reading),
                ];
                let playlist = playlist.map(|playlist| playlist.expansion);
                let presentation = presentation.map(|presentation| presentation.expansion);
                let others = others.into_iter().chain([playlist, presentation]);
                others.filter_map(Result::ok).collect()
            });
            for expansion in found {
                assert!(expansion.items.len() <= 50, "seed {seed}");
                assert!(expansion.refused.len() <= MAX_REFUSED, "seed {seed}");
                items += expansion.items.len();
                for item in &expansion.items {
                    let url = item.target.to_string();
                    let is_inside = url.starts_with("http://a.example/")
                        || url.starts_with("http://cdn.example/ok/");
                    assert!(is_inside, "seed {seed}: {url}");
                    if let Some(RangeSpec::Span(first, Some(end))) = item.range {
                        assert!(first < end, "seed {seed}");
                    }
                    assert!(expansion.after(&item.target, None, 3).len() <= 50);
                }
            }
        }
    }
    assert!(items > 3000, "{items}: little was left to look at");
}
