//! DASH.

use super::*;

const CASES: &[Case] = &[
    Case {
        what: "by number, counted from the period's duration",
        rules: "",
        list: r#"<?xml version="1.0" encoding="UTF-8"?>
            <MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT9.5S">
              <Period><AdaptationSet mimeType="video/mp4">
                <SegmentTemplate timescale="1000" duration="4000" startNumber="7"
                    initialization="$RepresentationID$/init.mp4" media="$RepresentationID$/$Number%05d$.m4s"/>
                <Representation id="v1" bandwidth="1000"/>
              </AdaptationSet></Period>
            </MPD>"#,
        expected: &[
            "init /v/v1/init.mp4",
            "seg 7 /v/v1/00007.m4s",
            "seg 8 /v/v1/00008.m4s",
            "seg 9 /v/v1/00009.m4s",
        ],
    },
    Case {
        what: "a duration that is a whole number of segments",
        rules: "",
        list: r#"<MPD mediaPresentationDuration="PT30.03S"><Period><AdaptationSet>
            <SegmentTemplate timescale="30000" duration="300300" media="$Number$.m4s"/>
            <Representation id="a"/></AdaptationSet></Period></MPD>"#,
        expected: &["seg 1 /v/1.m4s", "seg 2 /v/2.m4s", "seg 3 /v/3.m4s"],
    },
    Case {
        what: "all identifiers",
        rules: "",
        list: r#"<MPD mediaPresentationDuration="PT2S"><Period><AdaptationSet>
            <SegmentTemplate duration="1" startNumber="0" presentationTimeOffset="100" initialization="i$$$Bandwidth%08d$"
                media="$RepresentationID$-$Bandwidth$-$Number%3d$-$Time%06d$-$$.m4s"/>
            <Representation id="a%20b" bandwidth="64000"/></AdaptationSet></Period></MPD>"#,
        expected: &[
            "init /v/i$00064000",
            "seg 0 /v/a%20b-64000-000-000100-$.m4s",
            "seg 1 /v/a%20b-64000-001-000101-$.m4s",
        ],
    },
    Case {
        what: "templates that cannot be filled in",
        rules: "",
        list: r#"<MPD mediaPresentationDuration="PT1S"><Period><AdaptationSet>
            <Representation id="a"><SegmentTemplate duration="1" initialization="$Number$" media="$Unknown$"/></Representation>
            <Representation id="b"><SegmentTemplate duration="1" media="$Number"/></Representation>
            <Representation id="c"><SegmentTemplate duration="1" media="$Number%99d$"/></Representation>
            <Representation id="d"><SegmentTemplate duration="1" media="$Number%5x$"/></Representation>
            <Representation id="e"><SegmentTemplate duration="1" media="$Bandwidth$"/></Representation>
            <Representation id="f"><SegmentTemplate duration="1" media="$RepresentationID%02d$"/></Representation>
            <Representation id="g"><SegmentTemplate duration="1" media="$Number$"/></Representation>
            </AdaptationSet></Period></MPD>"#,
        expected: &[
            "seg 1 /v/1",
            "refused $Number$ Template",
            "refused $Unknown$ Template",
            "refused $Number Template",
            "refused $Number%99d$ Template",
            "refused $Number%5x$ Template",
            "refused $Bandwidth$ Template",
            "refused $RepresentationID%02d$ Template",
        ],
    },
    Case {
        what: "by time, with repeats and gaps",
        rules: "",
        list: r#"<MPD><Period duration="PT100S"><AdaptationSet>
            <SegmentTemplate timescale="10" media="$Number$/$Time$.m4s" initialization="init"><SegmentTimeline>
              <S t="50" d="20" r="2"/><S d="15"/><S t="200" d="20" r="1"/>
            </SegmentTimeline></SegmentTemplate>
            <Representation id="a"/></AdaptationSet></Period></MPD>"#,
        expected: &[
            "init /v/init",
            "seg 1 /v/1/50.m4s",
            "seg 2 /v/2/70.m4s",
            "seg 3 /v/3/90.m4s",
            "seg 4 /v/4/110.m4s",
            "seg 5 /v/5/200.m4s",
            "seg 6 /v/6/220.m4s",
        ],
    },
    Case {
        what: "repeats up to the next entry and to the period's end",
        rules: "",
        list: r#"<MPD mediaPresentationDuration="PT10S"><Period><AdaptationSet>
            <SegmentTemplate media="$Time$"><SegmentTimeline>
              <S t="0" d="2" r="-1"/><S t="5" d="3" r="-1"/>
            </SegmentTimeline></SegmentTemplate>
            <Representation id="a"/></AdaptationSet></Period></MPD>"#,
        expected: &[
            "seg 1 /v/0",
            "seg 2 /v/2",
            "seg 3 /v/4",
            "seg 4 /v/5",
            "seg 5 /v/8",
        ],
    },
    Case {
        what: "numbers of a timeline's own, and the last one",
        rules: "",
        list: r#"<MPD mediaPresentationDuration="PT10S"><Period><AdaptationSet>
            <SegmentTemplate media="$Number$" startNumber="5" endNumber="11"><SegmentTimeline>
              <S t="0" d="2"/><S n="10" d="2" r="3"/>
            </SegmentTimeline></SegmentTemplate>
            <Representation id="a"/></AdaptationSet></Period></MPD>"#,
        expected: &["seg 5 /v/5", "seg 10 /v/10", "seg 11 /v/11"],
    },
    Case {
        what: "an end number without a timeline",
        rules: "",
        list: r#"<MPD mediaPresentationDuration="PT100S"><Period><AdaptationSet>
            <SegmentTemplate media="$Number$" duration="2" startNumber="3" endNumber="4"/>
            <Representation id="a"/></AdaptationSet></Period></MPD>"#,
        expected: &["seg 3 /v/3", "seg 4 /v/4"],
    },
    Case {
        what: "neither a duration nor a timeline: one segment",
        rules: "",
        list: r#"<MPD mediaPresentationDuration="PT100S"><Period><AdaptationSet mimeType="text/vtt">
            <SegmentTemplate media="all-$Number$.vtt"/>
            <Representation id="a"/></AdaptationSet></Period></MPD>"#,
        expected: &["seg 1 /v/all-1.vtt"],
    },
    Case {
        what: "bases at all levels",
        rules: "",
        list: r#"<MPD mediaPresentationDuration="PT1S"><BaseURL>/root/</BaseURL>
            <Period><BaseURL>period/</BaseURL>
              <AdaptationSet><BaseURL> set/ </BaseURL><SegmentTemplate duration="1" media="$Number$"/>
                <Representation id="a"><BaseURL>rep/</BaseURL></Representation>
                <Representation id="b"><BaseURL>../other/</BaseURL></Representation>
                <Representation id="c"><BaseURL>http://cdn.example/ok/c/</BaseURL></Representation>
                <Representation id="d"/>
            </AdaptationSet></Period></MPD>"#,
        expected: &[
            "seg 1 /root/period/set/rep/1",
            "seg 1 /root/period/other/1",
            "seg 1 http://cdn.example/ok/c/1",
            "seg 1 /root/period/set/1",
        ],
    },
    Case {
        what: "alternative bases: the first that may be used; a base decides nothing",
        rules: "",
        list: r#"<MPD mediaPresentationDuration="PT1S">
            <BaseURL>http://evil.example/</BaseURL><BaseURL>http://cdn.example/ok/</BaseURL><BaseURL>/x/</BaseURL>
            <Period><AdaptationSet><SegmentTemplate duration="1" media="$Number$" initialization="../init"/>
                <Representation id="a"/>
                <Representation id="b"><BaseURL>//169.254.169.254/</BaseURL></Representation>
            </AdaptationSet></Period></MPD>"#,
        expected: &[
            "seg 1 http://cdn.example/ok/1",
            "refused ../init Reference(Prefix)",
            "refused ../init Reference(Origin)",
            "refused 1 Reference(Origin)",
        ],
    },
    Case {
        what: "attributes from above, overridden below",
        rules: "",
        list: r#"<MPD mediaPresentationDuration="PT4S"><Period>
            <SegmentTemplate timescale="10" duration="20" startNumber="5" media="p-$Number$" initialization="p-init"/>
            <AdaptationSet><SegmentTemplate media="s-$Number$"/>
              <Representation id="a"><SegmentTemplate startNumber="0" initialization="a-init"/></Representation>
              <Representation id="b"><SegmentTemplate duration="40"/></Representation>
            </AdaptationSet>
            <AdaptationSet><Representation id="c"/></AdaptationSet>
            </Period></MPD>"#,
        expected: &[
            "init /v/a-init",
            "seg 0 /v/s-0",
            "seg 1 /v/s-1",
            "init /v/p-init",
            "seg 5 /v/s-5",
            "seg 5 /v/p-5",
            "seg 6 /v/p-6",
        ],
    },
    Case {
        what: "a lower level says it in another manner",
        rules: "",
        list: r#"<MPD mediaPresentationDuration="PT2S"><Period><SegmentTemplate duration="1" media="t-$Number$"/>
            <AdaptationSet><Representation id="a"><SegmentList duration="1"><SegmentURL media="l"/></SegmentList></Representation>
            <Representation id="b"><BaseURL>b.mp4</BaseURL><SegmentBase indexRange="10-19"/></Representation>
            </AdaptationSet></Period></MPD>"#,
        expected: &["seg 1 /v/l", "index /v/b.mp4 10-19", "seg /v/b.mp4"],
    },
    Case {
        what: "a list of segments, with ranges and indexes",
        rules: "",
        list: r#"<MPD mediaPresentationDuration="PT30S"><Period><AdaptationSet><Representation id="a">
            <BaseURL>a.mp4</BaseURL>
            <SegmentList timescale="1" duration="10" startNumber="4">
              <Initialization range="0-999"/><RepresentationIndex sourceURL="a.sidx" range="5-"/>
              <SegmentURL mediaRange="1000-1999" indexRange="1000-1100"/>
              <SegmentURL media="x.m4s" index="x.idx"/>
              <SegmentURL mediaRange="9-1"/>
              <SegmentURL mediaRange="2000-"/>
            </SegmentList></Representation></AdaptationSet></Period></MPD>"#,
        expected: &[
            "init /v/a.mp4 0-999",
            "index /v/a.sidx 5-",
            "index 4 /v/a.mp4 1000-1100",
            "seg 4 /v/a.mp4 1000-1999",
            "index 5 /v/x.idx",
            "seg 5 /v/x.m4s",
            "seg 7 /v/a.mp4 2000-",
            "refused  Range",
        ],
    },
    Case {
        what: "a list with a timeline",
        rules: "first=3",
        list: r#"<MPD mediaPresentationDuration="PT30S"><Period><AdaptationSet><Representation id="a">
            <SegmentList timescale="10"><Initialization sourceURL="init"/>
              <SegmentTimeline><S t="0" d="20" r="9"/></SegmentTimeline>
              <SegmentURL media="1"/><SegmentURL media="2"/><SegmentURL media="3"/>
            </SegmentList></Representation></AdaptationSet></Period></MPD>"#,
        expected: &["init /v/init", "seg 1 /v/1", "seg 2 /v/2"],
    },
    Case {
        what: "one file with an index",
        rules: "",
        list: r#"<MPD mediaPresentationDuration="PT30S"><Period><AdaptationSet mimeType="audio/mp4">
            <Representation id="a"><BaseURL>audio.mp4</BaseURL>
              <SegmentBase indexRange="862-1189"><Initialization range="0-861"/></SegmentBase></Representation>
            <Representation id="b"><BaseURL>b.mp4</BaseURL>
              <SegmentBase indexRange="1-2"><RepresentationIndex sourceURL="b.sidx"/></SegmentBase></Representation>
            </AdaptationSet></Period></MPD>"#,
        expected: &[
            "init /v/audio.mp4 0-861",
            "index /v/audio.mp4 862-1189",
            "seg /v/audio.mp4",
            "index /v/b.sidx",
            "seg /v/b.mp4",
        ],
    },
    Case {
        what: "one file without anything, and nothing at all",
        rules: "",
        list: r#"<MPD mediaPresentationDuration="PT30S"><Period>
            <AdaptationSet contentType="text"><Representation id="a"><BaseURL>subs.vtt</BaseURL></Representation></AdaptationSet>
            <AdaptationSet><Representation id="b"/></AdaptationSet>
            </Period></MPD>"#,
        expected: &["seg /v/subs.vtt"],
    },
    Case {
        what: "several periods",
        rules: "",
        list: r#"<MPD mediaPresentationDuration="PT10S">
            <Period id="1" duration="PT4S"><AdaptationSet><SegmentTemplate duration="2" media="p1-$Number$"/>
              <Representation id="a"/></AdaptationSet></Period>
            <Period id="2"><AdaptationSet><SegmentTemplate duration="2" media="p2-$Number$"/>
              <Representation id="a"/></AdaptationSet></Period>
            <Period id="3" start="PT7S"><AdaptationSet><SegmentTemplate duration="2" media="p3-$Number$"/>
              <Representation id="a"/></AdaptationSet></Period></MPD>"#,
        expected: &[
            "seg 1 /v/p1-1",
            "seg 2 /v/p1-2",
            "seg 1 /v/p2-1",
            "seg 2 /v/p2-2",
            "seg 1 /v/p3-1",
            "seg 2 /v/p3-2",
        ],
    },
    Case {
        what: "the first seconds, over periods",
        rules: "first=5",
        list: r#"<MPD mediaPresentationDuration="PT10S">
            <Period duration="PT4S"><AdaptationSet><SegmentTemplate duration="2" media="p1-$Number$"/>
              <Representation id="a"/></AdaptationSet></Period>
            <Period><AdaptationSet><SegmentTemplate timescale="10" presentationTimeOffset="500" media="p2-$Time$">
              <SegmentTimeline><S t="500" d="10" r="5"/></SegmentTimeline></SegmentTemplate>
              <Representation id="a"/></AdaptationSet></Period></MPD>"#,
        expected: &["seg 1 /v/p1-1", "seg 2 /v/p1-2", "seg 1 /v/p2-500"],
    },
    Case {
        what: "everything there is",
        rules: "",
        list: RENDITIONS,
        expected: &[
            "seg 1 /v/low",
            "seg 1 /v/mid",
            "seg 1 /v/high",
            "seg 1 /v/en",
            "seg 1 /v/de",
            "seg 1 /v/fr",
        ],
    },
    Case {
        what: "by bandwidth and language",
        rules: "bandwidth=3000 languages=de",
        list: RENDITIONS,
        expected: &["seg 1 /v/low", "seg 1 /v/mid", "seg 1 /v/de"],
    },
    Case {
        what: "by height, and sound in a language that there is not",
        rules: "height=400 languages=ja",
        list: RENDITIONS,
        expected: &["seg 1 /v/low", "seg 1 /v/en"],
    },
    Case {
        what: "nothing small enough: the smallest",
        rules: "bandwidth=1",
        list: RENDITIONS,
        expected: &["seg 1 /v/low", "seg 1 /v/en", "seg 1 /v/de", "seg 1 /v/fr"],
    },
    Case {
        what: "live, by number: what is published and not gone",
        rules: "",
        list: r#"<MPD type="dynamic" availabilityStartTime="2026-11-22T00:59:00Z" timeShiftBufferDepth="PT10S"
              minimumUpdatePeriod="PT2S"><Period start="PT0S"><AdaptationSet>
            <SegmentTemplate timescale="1000" duration="4000" startNumber="1" media="$Number$" initialization="init"/>
            <Representation id="a"/></AdaptationSet></Period></MPD>"#,
        expected: &[
            "init /v/init",
            "seg 13 /v/13",
            "seg 14 /v/14",
            "seg 15 /v/15",
        ],
    },
    Case {
        what: "live, a second period, published ahead in chunks",
        rules: "",
        list: r#"<MPD type="dynamic" availabilityStartTime="2026-11-22T00:59:00+00:00" timeShiftBufferDepth="PT4S">
            <Period start="PT51S"><AdaptationSet>
            <SegmentTemplate duration="4" availabilityTimeOffset="3.5" media="$Number$"/>
            <Representation id="a"/></AdaptationSet></Period></MPD>"#,
        expected: &["seg 2 /v/2", "seg 3 /v/3"],
    },
    Case {
        what: "live, not begun, and only announced",
        rules: "",
        list: r#"<MPD type="dynamic" availabilityStartTime="2026-11-22T02:00:00Z">
            <Period start="PT0S" duration="PT60S"><AdaptationSet><SegmentTemplate duration="4" media="$Number$"/>
            <Representation id="a"/></AdaptationSet></Period>
            <Period><AdaptationSet><SegmentTemplate duration="4" media="later-$Number$"/>
            <Representation id="a"/></AdaptationSet></Period>
            </MPD>"#,
        expected: &[],
    },
    Case {
        what: "live, by time: the timeline says what there is",
        rules: "",
        list: r#"<MPD type="dynamic" availabilityStartTime="1970-01-01T00:00:00Z" timeShiftBufferDepth="PT9S"
              minimumUpdatePeriod="PT0S"><Period id="1" start="PT0S"><AdaptationSet>
            <SegmentTemplate media="$Time$" startNumber="100"><SegmentTimeline>
              <S t="1795309180" d="4" r="4"/>
            </SegmentTimeline></SegmentTemplate>
            <Representation id="a"/></AdaptationSet></Period></MPD>"#,
        expected: &[
            "seg 102 /v/1795309188",
            "seg 103 /v/1795309192",
            "seg 104 /v/1795309196",
        ],
    },
    Case {
        what: "live, by time, with an open end since 1970",
        rules: "first=5",
        list: r#"<MPD type="dynamic" availabilityStartTime="1970-01-01T00:00:00Z" timeShiftBufferDepth="PT8S">
            <Period id="1" start="PT0S"><AdaptationSet>
            <SegmentTemplate media="$Time$"><SegmentTimeline><S t="0" d="4" r="-1"/></SegmentTimeline></SegmentTemplate>
            <Representation id="a"/></AdaptationSet></Period></MPD>"#,
        expected: &["seg 448827299 /v/1795309192", "seg 448827300 /v/1795309196"],
    },
    Case {
        what: "elements in other documents",
        rules: "",
        list: r#"<MPD mediaPresentationDuration="PT1S" xmlns:xlink="http://www.w3.org/1999/xlink">
            <Period xlink:href="http://ads.example/period.xml" xlink:actuate="onLoad"/>
            <Period xlink:href="urn:mpeg:dash:resolve-to-zero:2013"/>
            <Period start="PT0S"><AdaptationSet xlink:href="set.xml"/><AdaptationSet>
              <SegmentTemplate duration="1" media="$Number$"/><Representation id="a"/></AdaptationSet></Period></MPD>"#,
        expected: &[
            "seg 1 /v/1",
            "refused http://ads.example/period.xml Remote",
            "refused set.xml Remote",
        ],
    },
    Case {
        what: "prefixes, entities and unknown elements",
        rules: "",
        list: r#"<d:MPD xmlns:d="urn:mpeg:dash:schema:mpd:2011" mediaPresentationDuration="PT1S">
            <!-- <Period/> --><d:UTCTiming value="x"/><d:ProgramInformation><d:Title>BaseURL</d:Title></d:ProgramInformation>
            <d:Period><d:EventStream><d:Event>x</d:Event></d:EventStream><d:AdaptationSet>
              <d:ContentProtection schemeIdUri="urn:x"/><d:SegmentTemplate duration="1" media="a&amp;b-$Number$&#45;c"/>
              <d:Representation id="a"/></d:AdaptationSet></d:Period></d:MPD>"#,
        expected: &["seg 1 /v/a&b-1-c"],
    },
];

const RENDITIONS: &str = r#"<MPD mediaPresentationDuration="PT1S"><Period>
    <AdaptationSet contentType="video"><SegmentTemplate duration="1" media="$RepresentationID$"/>
      <Representation id="low" bandwidth="1000" height="360"/>
      <Representation id="mid" bandwidth="3000" height="720"/>
      <Representation id="high" bandwidth="9000" height="1080"/></AdaptationSet>
    <AdaptationSet mimeType="audio/mp4" lang="en"><SegmentTemplate duration="1" media="$RepresentationID$"/>
      <Representation id="en" bandwidth="128"/></AdaptationSet>
    <AdaptationSet lang="de-DE"><SegmentTemplate duration="1" media="$RepresentationID$"/>
      <Representation id="de" mimeType="audio/mp4" bandwidth="128"/></AdaptationSet>
    <AdaptationSet contentType="text" lang="fr"><SegmentTemplate duration="1" media="$RepresentationID$"/>
      <Representation id="fr" bandwidth="2"/></AdaptationSet>
    </Period></MPD>"#;

#[test]
fn presentations_come_to_urls_and_ranges() {
    check(CASES, |text, selection| {
        presentation(text, selection).unwrap().expansion
    });
}

#[test]
fn what_is_no_presentation() {
    for (text, error) in [
        ("", Unreadable::Other("DASH presentation")),
        ("#EXTM3U", Unreadable::Other("DASH presentation")),
        ("<html></html>", Unreadable::Other("DASH presentation")),
        (
            "<!DOCTYPE MPD [<!ENTITY a '&b;&b;'>]><MPD/>",
            Unreadable::Doctype,
        ),
        ("<MPD>", Unreadable::Malformed(5)),
        ("<MPD><Period></MPD>", Unreadable::Malformed(19)),
    ] {
        assert_eq!(
            presentation(text, &Selection::default()),
            Err(error),
            "{text}"
        );
    }
}

#[test]
fn dynamic_presentations_say_when_and_where_to_look_again() {
    let found = |text: &str| {
        let found = presentation(text, &Selection::default()).unwrap();
        (
            found.expansion.again,
            found.location.map(|target| target.to_string()),
        )
    };
    assert_eq!(found("<MPD/>"), (None, None));
    let text =
        r#"<MPD type="dynamic" minimumUpdatePeriod="PT2S"><Location>../new.mpd</Location></MPD>"#;
    assert_eq!(
        found(text),
        (
            Some(Duration::from_secs(2)),
            Some("http://a.example/new.mpd".into())
        )
    );
    let text = r#"<MPD type="dynamic" minimumUpdatePeriod="PT0S"><Location>//evil.example/</Location></MPD>"#;
    assert_eq!(found(text), (Some(Duration::from_secs(1)), None));
}

#[test]
fn the_next_segments_go_on_in_the_next_period() {
    let text = r#"<MPD mediaPresentationDuration="PT6S">
        <Period duration="PT4S"><AdaptationSet id="1">
          <SegmentTemplate duration="2" initialization="$RepresentationID$/init" media="$RepresentationID$/p1-$Number$"/>
          <Representation id="a"/><Representation id="b"/></AdaptationSet></Period>
        <Period><AdaptationSet id="1">
          <SegmentTemplate duration="2" initialization="$RepresentationID$/init2" media="$RepresentationID$/p2-$Number$"/>
          <Representation id="a"/><Representation id="b"/></AdaptationSet></Period></MPD>"#;
    let found = presentation(text, &Selection::default()).unwrap().expansion;
    let after = |name: &str, count| {
        let target = Target::parse(format!("http://a.example/v/{name}").as_bytes()).unwrap();
        let items = found.after(&target, None, count);
        items
            .iter()
            .map(|item| shown(item))
            .collect::<Vec<_>>()
            .join(", ")
    };
    assert_eq!(after("a/p1-1", 1), "seg 2 /v/a/p1-2");
    assert_eq!(after("a/p1-2", 1), "init /v/a/init2, seg 1 /v/a/p2-1");
    assert_eq!(
        after("b/p1-1", 2),
        "seg 2 /v/b/p1-2, init /v/b/init2, seg 1 /v/b/p2-1"
    );
    assert_eq!(after("b/p2-1", 1), "");
    let durations: Vec<_> = found
        .items
        .iter()
        .filter_map(|item| item.duration)
        .collect();
    assert_eq!(durations, [Duration::from_secs(2); 6]);
}

/// Times and scales as far from one another as they can be written.
#[test]
fn extreme_times_do_not_overflow() {
    const MOST: &str = "18446744073709551615";
    for (published, start) in [
        ("9999-12-31", "P500Y"),
        ("0000-01-01", "PT0S"),
        ("1970-01-01", "P584Y"),
    ] {
        for scale in ["1", MOST] {
            for run in [
                "t='0' d='1'",
                "t='18446744073709551615' d='1'",
                "t='0' d='18446744073709551615'",
            ] {
                for (length, inside) in [
                    (
                        "",
                        format!(
                            "<SegmentTimeline><S {run} r='-1'/><S {run} r='3'/></SegmentTimeline>"
                        ),
                    ),
                    ("duration='1'", String::new()),
                    ("duration='18446744073709551615'", String::new()),
                ] {
                    let text = format!(
                        "<MPD type='dynamic' availabilityStartTime='{published}' timeShiftBufferDepth='P584Y'>\
                         <Period start='{start}'><AdaptationSet><SegmentTemplate media='$Time$' timescale='{scale}' \
                         presentationTimeOffset='{MOST}' startNumber='{MOST}' availabilityTimeOffset='INF' {length}>{inside}\
                         </SegmentTemplate><Representation/></AdaptationSet></Period></MPD>"
                    );
                    let limits = Limits {
                        max_items: 100,
                        ..Limits::default()
                    };
                    let found = read(&Selection::default(), limits, |reading| {
                        dash::expand(text.as_bytes(), reading, now())
                    });
                    assert!(
                        found.is_ok_and(|found| found.expansion.items.len() <= 100),
                        "{text}"
                    );
                }
            }
        }
    }
}

/// What is written in a few bytes must not become unbounded work.
#[test]
fn small_documents_stay_small() {
    let bounded = |text: &str, max_items| {
        let limits = Limits {
            max_items,
            ..Limits::default()
        };
        let found = read(&Selection::default(), limits, |reading| {
            dash::expand(text.as_bytes(), reading, now())
        });
        found.unwrap().expansion
    };
    let expand = |text: &str| bounded(text, 100);
    let template = |attributes: &str, inside: &str| {
        format!(
            r#"<MPD mediaPresentationDuration="P99Y"><Period><AdaptationSet>
            <SegmentTemplate media="$Number$" {attributes}>{inside}</SegmentTemplate>
            <Representation id="a"/></AdaptationSet></Period></MPD>"#
        )
    };
    let timeline = |runs: &str| template("", &format!("<SegmentTimeline>{runs}</SegmentTimeline>"));
    for text in [
        template("duration='1' timescale='1000000000'", ""),
        template("duration='1' timescale='18446744073709551615'", ""),
        timeline("<S t='0' d='1' r='9223372036854775807'/>"),
        timeline("<S t='18446744073709551615' d='1' r='9223372036854775807'/>"),
        timeline("<S t='0' d='1' r='-1'/>"),
        timeline(&"<S d='1' r='1000000000'/>".repeat(1000)),
        timeline(&"<S d='0' r='1000000000'/>".repeat(1000)),
    ] {
        let found = expand(&text);
        assert!(found.is_cut && found.items.len() <= 100, "{text}");
    }
    // Each is refused, and each costs.
    let refused = template("duration='1'", "").replace("$Number$", "//evil.example/$Number$");
    let found = expand(&refused);
    assert!(found.is_cut && found.items.is_empty() && found.refused_count <= 2000);
    // Many representations of one long timeline, of which nothing is there any more.
    let representations: String = (0..3000)
        .map(|at| format!("<Representation id='{at}'/>"))
        .collect();
    let gone = format!(
        r#"<MPD type="dynamic" availabilityStartTime="1970-01-01T00:00:00Z" timeShiftBufferDepth="PT1S">
        <Period start="PT0S"><AdaptationSet><SegmentTemplate media="$Time$"><SegmentTimeline>{}</SegmentTimeline>
        </SegmentTemplate>{representations}</AdaptationSet></Period></MPD>"#,
        "<S d='1' r='1000'/>".repeat(1000)
    );
    let found = bounded(&gone, 2000);
    assert!(found.is_cut && found.items.is_empty());
    // More elements than are kept.
    for many in [
        "<Period/>",
        "<Period><AdaptationSet><Representation/></AdaptationSet></Period>",
    ] {
        let found = expand(&format!("<MPD>{}</MPD>", many.repeat(1000)));
        assert!(found.is_cut && found.items.is_empty());
    }
    // A channel that has always been there: the newest.
    let old = r#"<MPD type="dynamic" availabilityStartTime="1970-01-01T00:00:00Z"><Period start="PT0S"><AdaptationSet>
        <SegmentTemplate media="$Number$" duration="1"/><Representation id="a"/></AdaptationSet></Period></MPD>"#;
    let found = expand(old);
    assert!(found.is_cut);
    assert_eq!(
        found.items.last().and_then(|item| item.sequence),
        Some(1_795_309_200)
    );
}
