//! HLS.

use super::*;

const CASES: &[Case] = &[
    Case {
        what: "on demand",
        rules: "",
        list: "#EXTM3U
            #EXT-X-VERSION:3
            #EXT-X-TARGETDURATION:6
            #EXT-X-PLAYLIST-TYPE:VOD
            #EXTINF:6.006,title, with a comma
            0.ts

            #EXTINF:6,
            # a comment
            sub/1.ts?a=b
            #EXTINF:3,
            /w/2.ts
            #EXT-X-ENDLIST",
        expected: &["seg 0 /v/0.ts", "seg 1 /v/sub/1.ts?a=b", "seg 2 /w/2.ts"],
    },
    Case {
        what: "live, from the middle",
        rules: "",
        list: "#EXTM3U
            #EXT-X-TARGETDURATION:4
            #EXT-X-MEDIA-SEQUENCE:2680
            #EXTINF:4,
            2680.ts
            #EXT-X-DISCONTINUITY
            #EXTINF:4,
            2681.ts",
        expected: &["seg 2680 /v/2680.ts", "seg 2681 /v/2681.ts"],
    },
    Case {
        what: "absolute references, allowed and not",
        rules: "",
        list: "#EXTM3U
            #EXTINF:4,
            http://a.example/1.ts
            #EXTINF:4,
            https://cdn.example/ok/2.ts
            #EXTINF:4,
            https://cdn.example/secret/3.ts
            #EXTINF:4,
            http://169.254.169.254/4.ts
            #EXTINF:4,
            //evil.example/5.ts
            #EXTINF:4,
            6.ts",
        expected: &[
            "seg 0 /1.ts",
            "seg 1 https://cdn.example/ok/2.ts",
            "seg 5 /v/6.ts",
            "refused https://cdn.example/secret/3.ts Reference(Prefix)",
            "refused http://169.254.169.254/4.ts Reference(Origin)",
            "refused //evil.example/5.ts Reference(Origin)",
        ],
    },
    Case {
        what: "byte ranges, with and without offsets",
        rules: "",
        list: "#EXTM3U
            #EXT-X-VERSION:4
            #EXTINF:10,
            #EXT-X-BYTERANGE:75232@0
            video.ts
            #EXT-X-BYTERANGE:82112
            #EXTINF:10,
            video.ts
            #EXTINF:10,
            #EXT-X-BYTERANGE:100
            other.ts
            #EXTINF:10,
            #EXT-X-BYTERANGE:10@500
            video.ts
            #EXTINF:10,
            #EXT-X-BYTERANGE:x@y
            video.ts
            #EXTINF:10,
            #EXT-X-BYTERANGE:18446744073709551615@2
            video.ts
            #EXTINF:10,
            #EXT-X-BYTERANGE:0@2
            video.ts",
        expected: &[
            "seg 0 /v/video.ts 0-75231",
            "seg 1 /v/video.ts 75232-157343",
            "seg 3 /v/video.ts 500-509",
            "refused other.ts Range",
            "refused video.ts Range",
            "refused video.ts Range",
            "refused video.ts Range",
        ],
    },
    Case {
        what: "initialisations, whole and as ranges",
        rules: "",
        list: "#EXTM3U
            #EXT-X-MAP:URI=\"init.mp4\"
            #EXTINF:4,
            0.m4s
            #EXT-X-DISCONTINUITY
            #EXT-X-MAP:URI=\"main.mp4\",BYTERANGE=\"560@100\"
            #EXTINF:4,
            #EXT-X-BYTERANGE:1000@660
            main.mp4
            #EXT-X-MAP:BYTERANGE=\"50\",URI=\"ad.mp4\"
            #EXTINF:4,
            ad1.m4s
            #EXT-X-MAP:URI=\"init.mp4\"
            #EXTINF:4,
            3.m4s",
        expected: &[
            "init /v/init.mp4",
            "seg 0 /v/0.m4s",
            "init /v/main.mp4 100-659",
            "seg 1 /v/main.mp4 660-1659",
            "init /v/ad.mp4 0-49",
            "seg 2 /v/ad1.m4s",
            "seg 3 /v/3.m4s",
        ],
    },
    Case {
        what: "keys: fetched once each, and only over HTTP",
        rules: "",
        list: "#EXTM3U
            #EXT-X-KEY:METHOD=AES-128,URI=\"key?id=1,2\",IV=0x10
            #EXTINF:4,
            0.ts
            #EXT-X-KEY:METHOD=NONE
            #EXTINF:4,
            1.ts
            #EXT-X-KEY:METHOD=SAMPLE-AES,URI=\"skd://asset\",KEYFORMAT=\"com.apple.streamingkeydelivery\"
            #EXT-X-KEY:METHOD=SAMPLE-AES,URI=\"data:text/plain;base64,AAAA\"
            #EXT-X-KEY:METHOD=AES-128,URI=\"https://keys.example/k\"
            #EXT-X-KEY:METHOD=AES-128,URI=\"key?id=1,2\"
            #EXTINF:4,
            2.ts",
        expected: &[
            "key /v/key?id=1,2",
            "seg 0 /v/0.ts",
            "seg 1 /v/1.ts",
            "seg 2 /v/2.ts",
            "refused https://keys.example/k Reference(Origin)",
        ],
    },
    Case {
        what: "I-frames of segments, as ranges",
        rules: "",
        list: "#EXTM3U
            #EXT-X-I-FRAMES-ONLY
            #EXT-X-MAP:URI=\"0.ts\",BYTERANGE=\"376@0\"
            #EXTINF:2.002,
            #EXT-X-BYTERANGE:9400@376
            0.ts
            #EXTINF:2.002,
            #EXT-X-BYTERANGE:7144@47000
            0.ts
            #EXTINF:2.002,
            #EXT-X-BYTERANGE:10340@376
            1.ts",
        expected: &[
            "init /v/0.ts 0-375",
            "seg 0 /v/0.ts 376-9775",
            "seg 1 /v/0.ts 47000-54143",
            "seg 2 /v/1.ts 376-10715",
        ],
    },
    Case {
        what: "low latency",
        rules: "",
        list: "#EXTM3U
            #EXT-X-TARGETDURATION:4
            #EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK=1.0
            #EXT-X-PART-INF:PART-TARGET=0.33334
            #EXT-X-MEDIA-SEQUENCE:266
            #EXTINF:4.00008,
            266.mp4
            #EXT-X-PART:DURATION=0.33334,URI=\"267.0.mp4\",INDEPENDENT=YES
            #EXT-X-PART:DURATION=0.33334,URI=\"267.1.mp4\"
            #EXTINF:4,
            267.mp4
            #EXT-X-PART:DURATION=0.33334,URI=\"268.0.mp4\"
            #EXT-X-PART:DURATION=0.33334,URI=\"gone.mp4\",GAP=YES
            #EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"268.2.mp4\"
            #EXT-X-RENDITION-REPORT:URI=\"../1M/waitForMSN.php\",LAST-MSN=268,LAST-PART=0",
        expected: &[
            "seg 266 /v/266.mp4",
            "part 267 /v/267.0.mp4",
            "part 267 /v/267.1.mp4",
            "seg 267 /v/267.mp4",
            "part 268 /v/268.0.mp4",
            "hint 268 /v/268.2.mp4",
            "report /1M/waitForMSN.php",
        ],
    },
    Case {
        what: "low latency by byte ranges",
        rules: "",
        list: "#EXTM3U
            #EXT-X-MEDIA-SEQUENCE:8
            #EXT-X-PART:DURATION=0.5,URI=\"8.mp4\",BYTERANGE=\"20000@0\"
            #EXT-X-PART:DURATION=0.5,URI=\"8.mp4\",BYTERANGE=\"23000\"
            #EXT-X-PART:DURATION=0.5,URI=\"8.mp4\",BYTERANGE=\"18000\"
            #EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"8.mp4\",BYTERANGE-START=61000
            #EXT-X-PRELOAD-HINT:TYPE=MAP,URI=\"init2.mp4\",BYTERANGE-START=0,BYTERANGE-LENGTH=500
            #EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"9.mp4\",BYTERANGE-LENGTH=x",
        expected: &[
            "part 8 /v/8.mp4 0-19999",
            "part 8 /v/8.mp4 20000-42999",
            "part 8 /v/8.mp4 43000-60999",
            "hint 8 /v/8.mp4 61000-",
            "hint 8 /v/init2.mp4 0-499",
            "refused 9.mp4 Range",
        ],
    },
    Case {
        what: "a delta update",
        rules: "",
        list: "#EXTM3U
            #EXT-X-VERSION:9
            #EXT-X-MEDIA-SEQUENCE:100
            #EXT-X-SKIP:SKIPPED-SEGMENTS=20,RECENTLY-REMOVED-DATERANGES=\"1\"
            #EXTINF:4,
            120.m4s
            #EXTINF:4,
            121.m4s",
        expected: &["seg 120 /v/120.m4s", "seg 121 /v/121.m4s"],
    },
    Case {
        what: "gaps keep their number and are not asked for",
        rules: "",
        list: "#EXTM3U
            #EXTINF:4,
            0.ts
            #EXT-X-GAP
            #EXTINF:4,
            1.ts
            #EXTINF:4,
            2.ts",
        expected: &["seg 0 /v/0.ts", "seg 2 /v/2.ts"],
    },
    Case {
        what: "variables",
        rules: "",
        list: "#EXTM3U
            #EXT-X-DEFINE:NAME=\"path\",VALUE=\"x/y\"
            #EXT-X-DEFINE:NAME=\"both\",VALUE=\"{$path}/z\"
            #EXT-X-DEFINE:NAME=\"path\",VALUE=\"second\"
            #EXT-X-DEFINE:QUERYPARAM=\"token\"
            #EXT-X-DEFINE:QUERYPARAM=\"absent\"
            #EXT-X-DEFINE:IMPORT=\"nothing\"
            #EXT-X-MAP:URI=\"{$both}/init.mp4\"
            #EXTINF:4,
            {$path}/0.m4s?t={$token}
            #EXTINF:4,
            {$absent}/1.m4s
            #EXTINF:4,
            {$nothing}.m4s
            #EXTINF:4,
            {path}/{$ no}.m4s",
        expected: &[
            "init /v/x/y/z/init.mp4",
            "seg 0 /v/x/y/0.m4s?t=x&y",
            "seg 3 /v/%7Bpath%7D/%7B$%20no%7D.m4s",
            "refused {$absent}/1.m4s Variable",
            "refused {$nothing}.m4s Variable",
        ],
    },
    Case {
        what: "a variable cannot lead elsewhere",
        rules: "",
        list: "#EXTM3U
            #EXT-X-DEFINE:NAME=\"h\",VALUE=\"http://evil.example\"
            #EXTINF:4,
            {$h}/0.ts",
        expected: &["refused http://evil.example/0.ts Reference(Origin)"],
    },
    Case {
        what: "the first seconds",
        rules: "first=10",
        list: "#EXTM3U
            #EXT-X-MAP:URI=\"init.mp4\"
            #EXTINF:4,
            0.ts
            #EXTINF:4,
            1.ts
            #EXTINF:4,
            2.ts
            #EXT-X-KEY:METHOD=AES-128,URI=\"late\"
            #EXTINF:4,
            3.ts
            #EXT-X-ENDLIST",
        expected: &["init /v/init.mp4", "seg 0 /v/0.ts", "seg 1 /v/1.ts", "seg 2 /v/2.ts"],
    },
    Case {
        what: "the same segment twice",
        rules: "",
        list: "#EXTM3U
            #EXTINF:4,
            ad.ts
            #EXTINF:4,
            1.ts
            #EXTINF:4,
            ad.ts",
        expected: &["seg 0 /v/ad.ts", "seg 1 /v/1.ts"],
    },
    Case {
        what: "other line ends, and what stands in addresses otherwise",
        rules: "",
        list: "#EXTM3U\r\n#EXTINF:4,\r\na b.ts\r\n#EXTINF:nonsense,\r\nü.ts#frag\r\n#EXTINF:4,\r\n12:30.ts\r\n",
        expected: &["seg 0 /v/a%20b.ts", "seg 1 /v/%C3%BC.ts", "seg 2 /v/12:30.ts"],
    },
    Case {
        what: "a multivariant playlist, all of it",
        rules: "",
        list: MULTIVARIANT,
        expected: &[
            "list /v/low.m3u8",
            "list /v/mid.m3u8",
            "list /v/high.m3u8",
            "list /v/en.m3u8",
            "list /v/de.m3u8",
            "list /v/en-hd.m3u8",
            "list /v/subs-fr.m3u8",
            "list /v/low-i.m3u8",
            "list /v/high-i.m3u8",
            "key /v/session",
        ],
    },
    Case {
        what: "by bandwidth: groups of other variants are left out",
        rules: "bandwidth=2000000",
        list: MULTIVARIANT,
        expected: &[
            "list /v/low.m3u8",
            "list /v/mid.m3u8",
            "list /v/en.m3u8",
            "list /v/de.m3u8",
            "list /v/subs-fr.m3u8",
            "list /v/low-i.m3u8",
            "key /v/session",
        ],
    },
    Case {
        what: "by height",
        rules: "height=360",
        list: MULTIVARIANT,
        expected: &[
            "list /v/low.m3u8",
            "list /v/en.m3u8",
            "list /v/de.m3u8",
            "list /v/subs-fr.m3u8",
            "list /v/low-i.m3u8",
            "key /v/session",
        ],
    },
    Case {
        what: "by language",
        rules: "languages=de height=720",
        list: MULTIVARIANT,
        expected: &[
            "list /v/low.m3u8",
            "list /v/mid.m3u8",
            "list /v/de.m3u8",
            "list /v/low-i.m3u8",
            "key /v/session",
        ],
    },
    Case {
        what: "by a language that there is not: sound in the usual one",
        rules: "languages=ja height=720",
        list: MULTIVARIANT,
        expected: &[
            "list /v/low.m3u8",
            "list /v/mid.m3u8",
            "list /v/en.m3u8",
            "list /v/low-i.m3u8",
            "key /v/session",
        ],
    },
    Case {
        what: "nothing small enough: the smallest",
        rules: "bandwidth=1",
        list: MULTIVARIANT,
        expected: &[
            "list /v/low.m3u8",
            "list /v/en.m3u8",
            "list /v/de.m3u8",
            "list /v/subs-fr.m3u8",
            "key /v/session",
        ],
    },
    Case {
        what: "a multivariant playlist that is malformed in places",
        rules: "",
        list: "#EXTM3U
            #EXT-X-STREAM-INF
            none.m3u8
            #EXT-X-STREAM-INF:BANDWIDTH=x,RESOLUTION=y,CODECS=\"open
            odd.m3u8
            #EXT-X-STREAM-INF:BANDWIDTH=1,AUDIO=\"absent\"

            # between
            blank.m3u8
            #EXT-X-STREAM-INF:BANDWIDTH=2
            #EXT-X-STREAM-INF:BANDWIDTH=3
            second.m3u8
            orphan.m3u8
            #EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"unused\",URI=\"unused.m3u8\"
            #EXT-X-MEDIA:TYPE=CLOSED-CAPTIONS,GROUP-ID=\"cc\",INSTREAM-ID=\"CC1\"
            #EXT-X-STREAM-INF:BANDWIDTH=4
            //evil.example/x.m3u8
            #EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=1
            #EXT-X-STREAM-INF:BANDWIDTH=4
            {$x}.m3u8",
        expected: &[
            "list /v/none.m3u8",
            "list /v/odd.m3u8",
            "list /v/blank.m3u8",
            "list /v/second.m3u8",
            "refused {$x}.m3u8 Variable",
            "refused //evil.example/x.m3u8 Reference(Origin)",
        ],
    },
];

const MULTIVARIANT: &str = "#EXTM3U
    #EXT-X-INDEPENDENT-SEGMENTS
    #EXT-X-SESSION-KEY:METHOD=AES-128,URI=\"session\"
    #EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"aac\",LANGUAGE=\"en\",NAME=\"English\",DEFAULT=YES,URI=\"en.m3u8\"
    #EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"aac\",LANGUAGE=\"de-AT\",NAME=\"Deutsch, österreichisch\",URI=\"de.m3u8\"
    #EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"hd\",LANGUAGE=\"en\",NAME=\"English\",DEFAULT=YES,URI=\"en-hd.m3u8\"
    #EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"hd\",LANGUAGE=\"fr\",NAME=\"within\"
    #EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID=\"subs\",LANGUAGE=\"fr\",NAME=\"Français\",URI=\"subs-fr.m3u8\"
    #EXT-X-STREAM-INF:BANDWIDTH=800000,RESOLUTION=640x360,AUDIO=\"aac\",SUBTITLES=\"subs\",CODECS=\"a,b\"
    low.m3u8
    #EXT-X-STREAM-INF:AVERAGE-BANDWIDTH=1,BANDWIDTH=2000000,RESOLUTION=1280x720,AUDIO=\"aac\",SUBTITLES=\"subs\"
    mid.m3u8
    #EXT-X-STREAM-INF:BANDWIDTH=6000000,RESOLUTION=1920x1080,AUDIO=\"hd\",SUBTITLES=\"subs\"
    high.m3u8
    #EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=100000,RESOLUTION=640x360,URI=\"low-i.m3u8\"
    #EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=3000000,RESOLUTION=1920x1080,URI=\"high-i.m3u8\"";

#[test]
fn playlists_come_to_urls_and_ranges() {
    check(CASES, |text, selection| {
        playlist(text, selection).unwrap().expansion
    });
}

#[test]
fn what_is_no_playlist() {
    for text in [
        "",
        "#EXTM3",
        "\n#EXTM3U",
        "<MPD/>",
        "#EXTM3U8",
        "a\n#EXTM3U",
    ] {
        let found = playlist(text, &Selection::default());
        assert_eq!(found, Err(Unreadable::Other("HLS playlist")), "{text:?}");
    }
    let found = playlist("\u{feff}#EXTM3U", &Selection::default()).unwrap();
    assert_eq!(
        found.expansion,
        Expansion {
            again: found.expansion.again,
            ..Expansion::default()
        }
    );
}

#[test]
fn live_playlists_say_when_they_change() {
    let again = |text: &str| {
        playlist(text, &Selection::default())
            .unwrap()
            .expansion
            .again
    };
    assert_eq!(
        again("#EXTM3U\n#EXT-X-TARGETDURATION:4\n"),
        Some(Duration::from_secs(4))
    );
    assert_eq!(
        again("#EXTM3U\n#EXT-X-PLAYLIST-TYPE:EVENT"),
        Some(Duration::from_secs(6))
    );
    assert_eq!(again("#EXTM3U\n#EXT-X-ENDLIST\n"), None);
    assert_eq!(again("#EXTM3U\n#EXT-X-PLAYLIST-TYPE:VOD\n"), None);
    assert_eq!(
        again("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\na.m3u8"),
        None
    );
}

#[test]
fn media_playlists_import_variables() {
    let master = "#EXTM3U\n#EXT-X-DEFINE:NAME=\"auth\",VALUE=\"s3cret\"\n\
                  #EXT-X-STREAM-INF:BANDWIDTH=1\na.m3u8?{$auth}\n";
    let master = playlist(master, &Selection::default()).unwrap();
    assert_eq!(master.sort, hls::Sort::Multivariant);
    assert_eq!(lines(&master.expansion), ["list /v/a.m3u8?s3cret"]);
    let media = "#EXTM3U\n#EXT-X-DEFINE:IMPORT=\"auth\"\n#EXTINF:1,\n0.ts?{$auth}\n";
    let media = read(&Selection::default(), Limits::default(), |reading| {
        hls::expand(media.as_bytes(), reading, &master.variables)
    });
    let media = media.unwrap();
    assert_eq!(media.sort, hls::Sort::Media);
    assert_eq!(lines(&media.expansion), ["seg 0 /v/0.ts?s3cret"]);
}

#[test]
fn the_next_segments() {
    let text = "#EXTM3U\n#EXT-X-MAP:URI=\"i1\"\n#EXTINF:4,\n0\n#EXTINF:4,\n1\n#EXT-X-MAP:URI=\"i2\"\n#EXTINF:4,\n2\n\
        #EXT-X-PART:DURATION=1,URI=\"3.0\"\n#EXT-X-PART:DURATION=1,URI=\"3.1\"\n#EXTINF:4,\n3\n\
        #EXT-X-PART:DURATION=1,URI=\"4.0\"\n#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"4.1\"\n#EXT-X-MAP:URI=\"i3\"";
    let found = playlist(text, &Selection::default()).unwrap().expansion;
    let after = |name: &str, count| {
        let target = Target::parse(format!("http://a.example/v/{name}").as_bytes()).unwrap();
        let items = found.after(&target, None, count);
        items
            .iter()
            .map(|item| shown(item))
            .collect::<Vec<_>>()
            .join(", ")
    };
    for (name, count, expected) in [
        ("0", 1, "seg 1 /v/1"),
        ("0", 2, "seg 1 /v/1, init /v/i2, seg 2 /v/2"),
        ("1", 1, "init /v/i2, seg 2 /v/2"),
        ("2", 2, "seg 3 /v/3"),
        ("3", 2, "part 4 /v/4.0, hint 4 /v/4.1"),
        ("3.0", 1, "part 3 /v/3.1"),
        ("3.1", 2, "part 4 /v/4.0, hint 4 /v/4.1"),
        ("4.0", 5, "hint 4 /v/4.1"),
        ("4.1", 1, ""),
        ("i1", 1, ""),
        ("5", 1, ""),
        ("0", 0, ""),
    ] {
        assert_eq!(after(name, count), expected, "{name} {count}");
    }
}

#[test]
fn the_next_range() {
    let text = "#EXTM3U\n#EXTINF:4,\n#EXT-X-BYTERANGE:10@0\na\n#EXTINF:4,\n#EXT-X-BYTERANGE:10\na\n#EXTINF:4,\nb\n";
    let found = playlist(text, &Selection::default()).unwrap().expansion;
    let target = Target::parse(b"http://a.example/v/a").unwrap();
    let after = |start| {
        found
            .after(&target, start, 1)
            .first()
            .map(|item| shown(item))
    };
    assert_eq!(after(Some(0)).as_deref(), Some("seg 1 /v/a 10-19"));
    assert_eq!(after(Some(10)).as_deref(), Some("seg 2 /v/b"));
    assert_eq!(after(Some(5)), None);
    assert_eq!(after(None), None);
}
