//! Sitemaps, feeds and plain lists.

use super::*;

fn sitemap(text: &str, selection: &Selection) -> Expansion {
    read(selection, Limits::default(), |reading| {
        sitemap::expand(text.as_bytes(), reading)
    })
    .unwrap()
}

fn feed(text: &str, newest: usize) -> Result<Expansion, Unreadable> {
    read(&Selection::default(), Limits::default(), |reading| {
        feed::expand(text.as_bytes(), reading, newest)
    })
}

const SITEMAPS: &[Case] = &[
    Case {
        what: "pages, without images and videos",
        rules: "",
        list: r#"<?xml version="1.0" encoding="UTF-8"?>
            <urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9" xmlns:image="http://www.google.com/schemas/sitemap-image/1.1">
              <url><loc>http://a.example/</loc><lastmod>2026-01-01</lastmod>
                <image:image><image:loc>http://a.example/image.png</image:loc></image:image></url>
              <url><image:loc>http://a.example/not.png</image:loc><loc>
                http://a.example/b?x=1&amp;y=2&z=3
              </loc></url>
              <url><loc><![CDATA[http://a.example/c]]></loc><loc>http://a.example/second</loc></url>
              <url><lastmod>2026-01-01</lastmod></url>
              <url><loc>http://evil.example/</loc></url>
              <url><loc>http://a.example/</loc></url>
            </urlset>"#,
        expected: &[
            "page /",
            "page /b?x=1&y=2&z=3",
            "page /c",
            "refused http://evil.example/ Reference(Origin)",
        ],
    },
    Case {
        what: "an index",
        rules: "",
        list: r#"<s:sitemapindex xmlns:s="http://www.sitemaps.org/schemas/sitemap/0.9">
              <s:sitemap><s:loc>http://a.example/s1.xml.gz</s:loc></s:sitemap>
              <s:sitemap><s:loc>s2.xml</s:loc></s:sitemap><s:url><s:loc>no</s:loc></s:url>
            </s:sitemapindex>"#,
        expected: &["list /s1.xml.gz", "list /v/s2.xml"],
    },
    Case {
        what: "nothing",
        rules: "",
        list: "<urlset/>",
        expected: &[],
    },
];

#[test]
fn sitemaps_come_to_pages() {
    check(SITEMAPS, sitemap);
    let limits = Limits {
        max_items: 2,
        ..Limits::default()
    };
    let many = format!(
        "<urlset>{}</urlset>",
        (0..9)
            .map(|at| format!("<url><loc>{at}</loc></url>"))
            .collect::<String>()
    );
    let found = read(&Selection::default(), limits, |reading| {
        sitemap::expand(many.as_bytes(), reading)
    });
    let found = found.unwrap();
    assert!(found.is_cut);
    assert_eq!(lines(&found), ["page /v/0", "page /v/1"]);
}

const LISTS: &[Case] = &[Case {
    what: "addresses, comments, blanks",
    rules: "",
    list: "# a list
        http://a.example/1

           2.ts\t
        #3
        //cdn.example/ok/4#x
        ftp://a.example/5",
    expected: &[
        "page /1",
        "page /v/2.ts",
        "page http://cdn.example/ok/4",
        "refused ftp://a.example/5 Reference(Scheme)",
    ],
}];

#[test]
fn plain_lists_come_to_pages() {
    check(LISTS, |text, selection| {
        read(selection, Limits::default(), |reading| {
            list::expand(text.as_bytes(), reading)
        })
        .unwrap()
    });
}

#[test]
fn feeds_come_to_their_newest_entries() {
    const RSS: &str = r#"<?xml version="1.0"?><rss version="2.0" xmlns:media="http://search.yahoo.com/mrss/"><channel>
        <link>http://a.example/home</link>
        <item><title>old</title><link>http://a.example/old</link><pubDate>Mon, 02 Nov 2026 10:00:00 GMT</pubDate></item>
        <item><link>http://a.example/page</link><pubDate>Sun, 22 Nov 2026 10:00:00 +0100</pubDate>
          <enclosure url="http://a.example/e.mp4" length="1" type="video/mp4"/>
          <media:group><media:content url="m.m3u8"/></media:group></item>
        <item><link>http://a.example/mid?a=1&amp;b=2</link><pubDate>Tue, 10 Nov 2026 10:00:00 GMT</pubDate></item>
        </channel></rss>"#;
    const ATOM: &str = r#"<feed xmlns="http://www.w3.org/2005/Atom" xml:base="http://a.example/base/">
        <link rel="self" href="feed"/><updated>2026-11-22T00:00:00Z</updated>
        <entry><link rel="edit" href="edit"/><link href="second"/><link href="third"/>
          <published>2026-11-20T00:00:00Z</published><updated>2026-11-22T00:00:00Z</updated></entry>
        <entry xml:base="sub/"><link rel="alternate" href="first"/><updated>2026-11-21T00:00:00Z</updated></entry>
        <entry><link rel="enclosure" href="sound.mp3"/><link href="no"/><updated>2026-11-19T00:00:00Z</updated></entry>
        </feed>"#;
    const RDF: &str = r#"<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><channel><link>x</link></channel>
        <item><link>1</link></item><item><link>2</link></item></rdf:RDF>"#;
    const JSON: &str = r#"{"version": "https://jsonfeed.org/version/1.1", "items": [
        {"id": "1", "url": "http://a.example/1", "date_published": "2026-11-20T00:00:00Z"},
        {"id": "2", "external_url": "http://a.example/2", "date_modified": "2026-11-21T00:00:00+01:00"},
        {"id": "3", "url": 5},
        {"id": "4", "url": "x", "date_published": "2026-11-01T00:00:00Z", "attachments": [{"url": "4.mp4"}, {"url": "5.mp4"}]}]}"#;
    const MIXED: &str = r#"<rss><channel><item><link>1</link></item><item><link>2</link>
        <pubDate>Sun, 22 Nov 2026 10:00:00 GMT</pubDate></item></channel></rss>"#;
    #[rustfmt::skip]
    let cases: &[(&str, usize, &[&str])] = &[
        (RSS, 9, &["page /e.mp4", "page /v/m.m3u8", "page /mid?a=1&b=2", "page /old"]),
        (RSS, 1, &["page /e.mp4", "page /v/m.m3u8"]),
        (RSS, 0, &[]),
        (ATOM, 9, &["page /base/sub/first", "page /base/second", "page /base/sound.mp3"]),
        // Without the dates of all, in the order of the feed.
        (RDF, 1, &["page /v/1"]),
        (MIXED, 1, &["page /v/1"]),
        (JSON, 9, &["page /2", "page /1", "page /v/4.mp4", "page /v/5.mp4"]),
        (JSON, 2, &["page /2", "page /1"]),
        ("{\"items\": []}", 9, &[]),
        ("<feed/>", 9, &[]),
    ];
    for (text, newest, expected) in cases {
        assert_eq!(lines(&feed(text, *newest).unwrap()), *expected, "{text}");
    }
    for text in ["", "{}", "{\"items\": 5}", "<html/>", "[]"] {
        assert!(matches!(feed(text, 9), Err(Unreadable::Other(_))), "{text}");
    }
    let nested = format!(
        "{{\"items\": {}{}}}",
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    assert!(feed(&nested, 9).is_err());
}
