//! Lists and the exact URLs and ranges that they come to.

mod pages;
mod playlists;
mod presentations;
mod properties;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::hls::Variables;
use super::*;
use crate::semantics::reference::Allowed;

/// Where every list of these tests was found.
const AT: &str = "http://a.example/v/list?token=x%26y";

/// 2026-11-22T01:00:00Z.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_309_200)
}

fn confinement() -> Confinement {
    Confinement {
        allowed: [Allowed::parse("cdn.example/ok/").unwrap()].into(),
        ..Confinement::default()
    }
}

/// One line for an item: kind, number, URL (without the scheme and host of the list), range.
fn shown(item: &Item) -> String {
    let kind = match item.kind {
        Kind::Page => "page",
        Kind::List => "list",
        Kind::Report => "report",
        Kind::Initialization => "init",
        Kind::Index => "index",
        Kind::Key => "key",
        Kind::Segment => "seg",
        Kind::Part => "part",
        Kind::Hint => "hint",
    };
    let mut line = kind.to_owned();
    if let Some(sequence) = item.sequence {
        line.push_str(&format!(" {sequence}"));
    }
    let url = item.target.to_string();
    line.push_str(&format!(
        " {}",
        url.strip_prefix("http://a.example").unwrap_or(&url)
    ));
    match item.range {
        Some(RangeSpec::Span(first, Some(end))) => line.push_str(&format!(" {first}-{}", end - 1)),
        Some(RangeSpec::Span(first, None)) => line.push_str(&format!(" {first}-")),
        Some(RangeSpec::Suffix(bytes)) => line.push_str(&format!(" -{bytes}")),
        None => {}
    }
    line
}

fn lines(expansion: &Expansion) -> Vec<String> {
    let refused = expansion.refused.iter();
    let refused = refused.map(|one| format!("refused {} {:?}", one.reference, one.reason));
    expansion.items.iter().map(shown).chain(refused).collect()
}

fn read<T>(selection: &Selection, limits: Limits, expand: impl FnOnce(Reading<'_>) -> T) -> T {
    let at = Target::parse(AT.as_bytes()).unwrap();
    expand(Reading {
        home: &at,
        at: &at,
        confinement: &confinement(),
        selection,
        limits,
    })
}

fn playlist(text: &str, selection: &Selection) -> Result<hls::Playlist, Unreadable> {
    read(selection, Limits::default(), |reading| {
        hls::expand(text.as_bytes(), reading, &Variables::default())
    })
}

fn presentation(text: &str, selection: &Selection) -> Result<dash::Presentation, Unreadable> {
    read(selection, Limits::default(), |reading| {
        dash::expand(text.as_bytes(), reading, now())
    })
}

/// `bandwidth=1000 height=720 languages=en,de first=10`.
fn selection(text: &str) -> Selection {
    let mut selection = Selection::default();
    for word in text.split_whitespace() {
        let (name, value) = word.split_once('=').unwrap();
        match name {
            "bandwidth" => selection.max_bandwidth = Some(value.parse().unwrap()),
            "height" => selection.max_height = Some(value.parse().unwrap()),
            "languages" => selection.languages = value.split(',').map(Box::from).collect(),
            "first" => selection.first = Some(Duration::from_secs_f64(value.parse().unwrap())),
            other => panic!("no rule `{other}`"),
        }
    }
    selection
}

struct Case {
    what: &'static str,
    rules: &'static str,
    list: &'static str,
    expected: &'static [&'static str],
}

/// Expands each list, without its indentation, and compares what comes of it and what is refused.
fn check(cases: &[Case], expand: impl Fn(&str, &Selection) -> Expansion) {
    for case in cases {
        let unindented: Vec<&str> = case.list.lines().map(str::trim_start).collect();
        let expansion = expand(unindented.join("\n").trim_start(), &selection(case.rules));
        assert_eq!(lines(&expansion), case.expected, "{}", case.what);
    }
}

#[test]
fn languages_are_ranges() {
    for (wanted, language, taken) in [
        ("en", Some("en"), true),
        ("en", Some("EN-gb"), true),
        ("en-GB", Some("en"), false),
        ("en", Some("eng"), false),
        ("de,en", Some("en"), true),
        ("de", Some("en"), false),
        ("de", None, true),
    ] {
        let selection = selection(&format!("languages={wanted}"));
        assert_eq!(
            selection.takes_language(language),
            taken,
            "{wanted} {language:?}"
        );
    }
}

#[test]
fn lists_are_bounded() {
    let long = "#EXTM3U\n".to_owned() + &"#EXTINF:1,\na.ts\n".repeat(10);
    let limits = Limits {
        max_bytes: 40,
        max_items: 2,
    };
    let found = read(&Selection::default(), limits, |reading| {
        hls::expand(long.as_bytes(), reading, &Variables::default())
    });
    assert_eq!(found, Err(Unreadable::TooLong(40)));
    let limits = Limits {
        max_items: 2,
        ..Limits::default()
    };
    let urls = "1\n2\n3\n";
    let found = read(&Selection::default(), limits, |reading| {
        list::expand(urls.as_bytes(), reading)
    });
    let found = found.unwrap();
    assert!(found.is_cut);
    assert_eq!(lines(&found), ["page /v/1", "page /v/2"]);
    // Naming the same again is work, too.
    let limits = Limits {
        max_bytes: 1000,
        max_items: 100,
    };
    let same = "a\n".repeat(500);
    let found = read(&Selection::default(), limits, |reading| {
        list::expand(same.as_bytes(), reading)
    });
    let found = found.unwrap();
    assert!(found.is_cut);
    assert_eq!(lines(&found), ["page /v/a"]);
    let refused = "//evil.example/\n".repeat(500);
    let found = read(&Selection::default(), Limits::default(), |reading| {
        list::expand(refused.as_bytes(), reading)
    });
    let found = found.unwrap();
    assert_eq!(
        (found.refused.len(), found.refused_count),
        (MAX_REFUSED, 500)
    );
    let found = read(&Selection::default(), Limits::default(), |reading| {
        list::expand(b"\xff", reading)
    });
    assert_eq!(found, Err(Unreadable::Encoding));
}

/// What is confined is confined to the operator's URL, whatever the list's own URL and its bases are.
#[test]
fn lists_elsewhere_make_nothing_allowed() {
    let home = Target::parse(AT.as_bytes()).unwrap();
    let at = Target::parse(b"http://cdn.example/ok/x/list").unwrap();
    let selection = Selection::default();
    let confinement = confinement();
    let reading = Reading {
        home: &home,
        at: &at,
        confinement: &confinement,
        selection: &selection,
        limits: Limits::default(),
    };
    let found = list::expand(
        b"1\n../2\n../../3\n/4\n//a.example/5\n//evil.example/6\n",
        reading,
    );
    assert_eq!(
        lines(&found.unwrap()),
        [
            "page http://cdn.example/ok/x/1",
            "page http://cdn.example/ok/2",
            "page /5",
            "refused ../../3 Reference(Prefix)",
            "refused /4 Reference(Prefix)",
            "refused //evil.example/6 Reference(Origin)",
        ]
    );
}
