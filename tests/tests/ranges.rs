//! Ranges by block: what is asked of the origin, what the client gets, and what stays behind.

use caje_tests::{End, Got, Lie, Node, Origin, OriginAnswer};

const BLOCK: u64 = 256 << 10;
/// Twenty blocks and a bit.
const SIZE: u64 = 20 * BLOCK + 1000;

/// An origin with ranges, and a node without read-ahead or gaps to merge.
async fn stage() -> (Origin, Node) {
    staged(0, 0).await
}

async fn staged(read_ahead: u64, merge_gap: u64) -> (Origin, Node) {
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .generated(SIZE)
        .etag("\"1\"")
        .ranges(true)
        .cache_control("max-age=60");
    let node = Node::with(&origin, |config| {
        config.origins[0].read_ahead_bytes = read_ahead;
        config.origins[0].merge_gap_bytes = merge_gap;
    })
    .await;
    (origin, node)
}

/// The ranges that the origin was asked for, in order.
fn asked(origin: &Origin) -> Vec<String> {
    let log = origin.requests_log();
    log.iter()
        .map(|request| request.header("range").unwrap_or("all").to_owned())
        .collect()
}

fn span(first_block: u64, blocks: u64) -> String {
    let start = first_block * BLOCK;
    format!("bytes={}-{}", start, (start + blocks * BLOCK).min(SIZE) - 1)
}

/// What a client of this range of `/a` must get.
async fn part(node: &Node, from: u64, to: u64) -> Got {
    let got = node.get("/a").range(&format!("{from}-{}", to - 1)).await;
    got.is_part("/a", from..to, SIZE)
}

#[tokio::test]
async fn a_range_on_an_absent_body_asks_for_its_blocks() {
    let (origin, node) = stage().await;
    part(&node, 5 * BLOCK + 10, 5 * BLOCK + 20).await;
    assert_eq!(asked(&origin), [span(5, 1)]);
    node.at_rest().await;
    // The whole block is here now.
    assert!(part(&node, 5 * BLOCK, 6 * BLOCK).await.head.is_hit());
    assert_eq!(origin.requests("/a"), 1);
    assert_eq!(origin.counts("/a").bytes, BLOCK);
}

#[tokio::test]
async fn a_range_over_several_blocks_asks_for_them_in_one() {
    let (origin, node) = stage().await;
    part(&node, 3 * BLOCK - 1, 6 * BLOCK + 1).await;
    assert_eq!(asked(&origin), [span(2, 5)]);
}

/// A partly present body: only what is missing is asked for.
#[tokio::test]
async fn only_what_is_missing_is_asked_for() {
    let (origin, node) = stage().await;
    part(&node, 2 * BLOCK, 3 * BLOCK).await;
    part(&node, 6 * BLOCK, 7 * BLOCK).await;
    node.at_rest().await;
    part(&node, 0, 8 * BLOCK).await;
    node.at_rest().await;
    assert_eq!(
        asked(&origin),
        [span(2, 1), span(6, 1), span(0, 2), span(3, 3), span(7, 1)]
    );
    assert_eq!(origin.last_request("/a").header("if-range"), Some("\"1\""));
    assert_eq!(origin.counts("/a").bytes, 8 * BLOCK);
    // And the whole is made of it.
    node.get("/a").await.is_whole("/a", SIZE);
    assert_eq!(origin.counts("/a").bytes, SIZE);
}

#[tokio::test]
async fn small_gaps_are_merged_into_one_request() {
    let (origin, node) = staged(0, BLOCK).await;
    part(&node, 2 * BLOCK, 3 * BLOCK).await;
    part(&node, 6 * BLOCK, 8 * BLOCK).await;
    node.at_rest().await;
    part(&node, 0, 10 * BLOCK).await;
    node.at_rest().await;
    // One present block between is fetched along; two are not.
    assert_eq!(
        asked(&origin),
        [span(2, 1), span(6, 2), span(0, 6), span(8, 2)]
    );
}

#[tokio::test]
async fn the_last_block_is_short() {
    let (origin, node) = stage().await;
    part(&node, SIZE - 5, SIZE).await;
    node.at_rest().await;
    assert!(part(&node, 20 * BLOCK, SIZE).await.head.is_hit());
    assert_eq!(origin.counts("/a").bytes, SIZE - 20 * BLOCK);
}

/// `bytes=-n` on an absent body: the node does not know the length, and still asks for little.
#[tokio::test]
async fn a_suffix_range_asks_for_the_end() {
    let (origin, node) = stage().await;
    let got = node.get("/a").range("-100").await;
    got.is_part("/a", SIZE - 100..SIZE, SIZE);
    assert!(
        origin.counts("/a").bytes <= 2 * BLOCK,
        "{:?}",
        asked(&origin)
    );
    node.at_rest().await;
    let got = node
        .get("/a")
        .range("-100")
        .await
        .is_part("/a", SIZE - 100..SIZE, SIZE);
    assert!(got.head.is_hit(), "{}", got.head.text);
    assert!(part(&node, SIZE - 10, SIZE).await.head.is_hit());
    assert_eq!(origin.requests("/a"), 1);
}

#[tokio::test]
async fn an_open_range_reaches_the_end() {
    let (origin, node) = stage().await;
    let got = node.get("/a").range(&format!("{}-", 18 * BLOCK + 1)).await;
    got.is_part("/a", 18 * BLOCK + 1..SIZE, SIZE);
    node.at_rest().await;
    assert_eq!(origin.counts("/a").bytes, SIZE - 18 * BLOCK);
    let got = node.get("/a").range("0-").await;
    got.is_part("/a", 0..SIZE, SIZE);
    node.at_rest().await;
    assert_eq!(origin.counts("/a").bytes, SIZE);
}

/// A range beyond the end is cut; one wholly beyond is refused.
#[tokio::test]
async fn the_end_cuts_a_range() {
    let (_origin, node) = stage().await;
    let got = node
        .get("/a")
        .range(&format!("{}-{}", SIZE - 10, SIZE + 100))
        .await;
    got.is_part("/a", SIZE - 10..SIZE, SIZE);
}

#[tokio::test]
async fn an_unsatisfiable_range_is_416() {
    let (origin, node) = stage().await;
    for state in ["absent", "stored"] {
        for range in [
            format!("{SIZE}-"),
            format!("{}-{}", SIZE + 5, SIZE + 9),
            "-0".to_owned(),
        ] {
            let got = node.get("/a").range(&range).await;
            assert_eq!(got.status(), 416, "{state} {range}: {}", got.head.text);
            assert_eq!(
                got.head.get("content-range"),
                Some(format!("bytes */{SIZE}").as_str()),
                "{state} {range}"
            );
        }
        node.get("/a").await.is_whole("/a", SIZE);
        node.at_rest().await;
    }
    assert!(origin.malformed().is_empty());
}

/// What is no range is the whole.
#[tokio::test]
async fn a_malformed_range_is_no_range() {
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .generated(1000)
        .etag("\"1\"")
        .ranges(true)
        .cache_control("max-age=60");
    let node = Node::start(&origin).await;
    for range in [
        "bytes=",
        "bytes=a-b",
        "bytes=5-1",
        "bytes",
        "lines=0-1",
        "bytes=0-1-2",
        "bytes=--1",
        "bytes 0-1",
        "bytes=0x1-2",
    ] {
        node.get("/a")
            .header("range", range)
            .await
            .is_whole("/a", 1000);
        node.at_rest().await;
    }
    assert_eq!(origin.requests("/a"), 1);
    // Two lines are no range either.
    node.get("/a")
        .range("0-1")
        .range("2-3")
        .await
        .is_whole("/a", 1000);
    // A range of a HEAD means nothing.
    let got = node.head("/a").range("0-1").await.expect(200);
    assert_eq!(got.head.length(), Some(1000));
}

/// After the client's range the fill goes on as far as configured, and no further.
#[tokio::test]
async fn read_ahead_is_exact() {
    let (origin, node) = staged(2 * BLOCK, 0).await;
    part(&node, 3 * BLOCK, 4 * BLOCK).await;
    node.at_rest().await;
    assert_eq!(asked(&origin), [span(3, 3)]);
    assert_eq!(origin.counts("/a").bytes, 3 * BLOCK);
    // The next one is here; what lies behind it is fetched when it is missing for a client.
    assert!(part(&node, 4 * BLOCK, 5 * BLOCK).await.head.is_hit());
    assert!(part(&node, 5 * BLOCK, 6 * BLOCK).await.head.is_hit());
    part(&node, 5 * BLOCK, 7 * BLOCK).await;
    node.at_rest().await;
    assert_eq!(asked(&origin)[1..], [span(6, 3)]);
    // At the end there is nothing ahead.
    part(&node, SIZE - 1, SIZE).await;
    node.at_rest().await;
    assert_eq!(asked(&origin)[2..], [span(20, 1)]);
}

/// The client's range is whole though it did not wait for the read-ahead.
#[tokio::test]
async fn nobody_waits_for_the_read_ahead() {
    let (origin, node) = staged(4 * BLOCK, 0).await;
    let gate = origin.change("/a").gated_at(BLOCK);
    part(&node, 0, BLOCK).await;
    gate.reached().await;
    gate.open();
    node.at_rest().await;
    assert_eq!(asked(&origin), [span(0, 5)]);
    assert!(part(&node, 4 * BLOCK, 5 * BLOCK).await.head.is_hit());
}

/// The first byte goes out as soon as it is here.
#[tokio::test]
async fn a_range_streams_as_it_arrives() {
    let (origin, node) = stage().await;
    let from = 5 * BLOCK + 100;
    let gate = origin.change("/a").gated_at(from + 1);
    let mut answer = node
        .get("/a")
        .range(&format!("{from}-{}", 7 * BLOCK))
        .open()
        .await;
    assert_eq!(answer.head.status, 206);
    assert_eq!(
        slow_server::verify_body("/a", from, &answer.take(1).await),
        Ok(())
    );
    gate.open();
    let rest = answer.rest().await;
    assert_eq!(rest.end, End::Whole);
    assert_eq!(slow_server::verify_body("/a", from + 1, &rest.body), Ok(()));
}

/// Two clients want the same absent range: one question.
#[tokio::test]
async fn ranges_are_collapsed() {
    let (origin, node) = stage().await;
    let gate = origin.change("/a").gated_at(5 * BLOCK);
    let mut first = node
        .get("/a")
        .range(&format!("{}-{}", 5 * BLOCK, 6 * BLOCK - 1))
        .start();
    gate.reached().await;
    let second = node
        .get("/a")
        .range(&format!("{}-{}", 5 * BLOCK + 7, 6 * BLOCK - 1))
        .open()
        .await;
    assert!(!first.is_finished());
    gate.open();
    (&mut first)
        .await
        .expect("the first")
        .is_part("/a", 5 * BLOCK..6 * BLOCK, SIZE);
    second
        .rest()
        .await
        .is_part("/a", 5 * BLOCK + 7..6 * BLOCK, SIZE);
    assert_eq!(asked(&origin), [span(5, 1)]);
}

/// A range far ahead of a fill in flight does not wait for it.
#[tokio::test]
async fn a_deep_range_does_not_wait_for_the_fill() {
    let (origin, node) = stage().await;
    let gate = origin.change("/a").gated_at(BLOCK);
    let mut whole = node.get("/a").open().await;
    whole.take(BLOCK as usize).await;
    part(&node, 15 * BLOCK, 16 * BLOCK).await;
    assert!(!gate.is_open());
    assert_eq!(asked(&origin), ["all".to_owned(), span(15, 1)]);
    gate.open();
    let rest = whole.rest().await;
    assert_eq!(rest.end, End::Whole);
    assert_eq!(slow_server::verify_body("/a", BLOCK, &rest.body), Ok(()));
    assert_eq!(rest.body.len() as u64, SIZE - BLOCK);
}

/// A range near behind a fill in flight takes its bytes from there.
#[tokio::test]
async fn a_near_range_joins_the_fill() {
    let (origin, node) = stage().await;
    let gate = origin.change("/a").gated_at(BLOCK / 2);
    let mut whole = node.get("/a").open().await;
    whole.take(BLOCK as usize / 2).await;
    let near = node
        .get("/a")
        .range("1000-1999")
        .await
        .is_part("/a", 1000..2000, SIZE);
    assert!(
        near.head.cache_status().contains("collapsed") || near.head.is_hit(),
        "{}",
        near.head.text
    );
    let mut next = node
        .get("/a")
        .range(&format!("{}-{}", BLOCK / 2 - 1, BLOCK - 1))
        .open()
        .await;
    next.take(1).await;
    gate.open();
    let next = next.rest().await;
    assert_eq!(
        slow_server::verify_body("/a", BLOCK / 2, &next.body),
        Ok(())
    );
    assert_eq!(next.end, End::Whole);
    whole.rest().await;
    assert_eq!(origin.requests("/a"), 1);
}

fn parts(got: &Got) -> Vec<(String, Vec<u8>)> {
    let kind = got.head.get("content-type").expect("a type");
    let boundary = kind
        .strip_prefix("multipart/byteranges; boundary=")
        .expect("a multipart type");
    let dash = format!("--{}", boundary.trim_matches('"'));
    let body = &got.body[..];
    let places: Vec<usize> = (0..body.len())
        .filter(|at| body[*at..].starts_with(dash.as_bytes()))
        .collect();
    assert!(body[*places.last().expect("an end")..].starts_with(format!("{dash}--").as_bytes()));
    let mut parts = Vec::new();
    for pair in places.windows(2) {
        let part = &body[pair[0] + dash.len() + 2..pair[1] - 2];
        let end = part
            .windows(4)
            .position(|bytes| bytes == b"\r\n\r\n")
            .expect("a part's head");
        let head = String::from_utf8_lossy(&part[..end]).to_ascii_lowercase();
        let range = head
            .lines()
            .find_map(|line| line.strip_prefix("content-range: "))
            .expect("a range");
        parts.push((range.to_owned(), part[end + 4..].to_vec()));
    }
    parts
}

#[tokio::test]
async fn several_ranges_come_as_multipart() {
    let (origin, node) = stage().await;
    for state in ["absent", "stored"] {
        let got = node
            .get("/a")
            .range(&format!("0-9,{}-{},-5", 5 * BLOCK, 5 * BLOCK + 9))
            .await
            .expect(206);
        assert_eq!(got.head.length(), Some(got.body.len() as u64), "{state}");
        assert!(!got.head.has("content-range"));
        let parts = parts(&got);
        let spans = [0..10, 5 * BLOCK..5 * BLOCK + 10, SIZE - 5..SIZE];
        assert_eq!(parts.len(), 3, "{state}");
        for ((range, bytes), span) in parts.iter().zip(spans) {
            assert_eq!(
                *range,
                format!("bytes {}-{}/{SIZE}", span.start, span.end - 1),
                "{state}"
            );
            assert_eq!(*bytes, slow_server::body_bytes("/a", span), "{state}");
        }
        node.get("/a").await.is_whole("/a", SIZE);
        node.at_rest().await;
    }
    // The origin never hears of several ranges.
    assert!(
        asked(&origin).iter().all(|range| !range.contains(',')),
        "{:?}",
        asked(&origin)
    );
}

#[tokio::test]
async fn ranges_that_touch_become_one() {
    let (_origin, node) = stage().await;
    node.get("/a")
        .range("0-9,10-19,5-12")
        .await
        .is_part("/a", 0..20, SIZE);
}

/// RangeAmp: many or overlapping ranges cost no more than the whole.
#[tokio::test]
async fn too_many_ranges_get_the_whole() {
    let (origin, node) = stage().await;
    let many: Vec<String> = (0..200)
        .map(|n| format!("{}-{}", n * 10, n * 10 + 1))
        .collect();
    let got = node.get("/a").range(&many.join(",")).await;
    match got.status() {
        416 => {}
        _ => drop(got.is_whole("/a", SIZE)),
    }
    let same: Vec<String> = (0..10).map(|_| "0-".to_owned()).collect();
    let got = node.get("/a").range(&same.join(",")).await;
    assert!(
        got.body.len() as u64 <= SIZE + 1000,
        "{} bytes",
        got.body.len()
    );
    node.at_rest().await;
    assert!(origin.counts("/a").bytes <= 2 * SIZE);
}

/// A small range of a large body does not cost the origin the whole.
#[tokio::test]
async fn a_small_range_costs_the_origin_a_block() {
    let origin = Origin::start().await;
    let node = Node::start(&origin).await;
    let got = node.get("/bytes/5g/x").range("4000000000-4000000009").await;
    got.is_part("/bytes/5g/x", 4_000_000_000..4_000_000_010, 5 << 30);
    node.at_rest().await;
    assert_eq!(origin.counts("/bytes/5g/x").bytes, BLOCK);
}

#[tokio::test]
async fn if_range_decides_between_part_and_whole() {
    let origin = Origin::start().await;
    let modified = "Mon, 02 Jan 2006 15:04:05 GMT";
    let answer = OriginAnswer::ok()
        .generated(1000)
        .etag("\"1\"")
        .ranges(true)
        .cache_control("max-age=60");
    origin
        .get("/a")
        .answer(answer.header("last-modified", modified));
    for stored in [false, true] {
        let node = Node::start(&origin).await;
        if stored {
            node.get("/a").await.is_whole("/a", 1000);
            node.at_rest().await;
        }
        for (validator, holds) in [
            ("\"1\"", true),
            ("\"2\"", false),
            ("W/\"1\"", false),
            (modified, true),
            ("Tue, 03 Jan 2006 15:04:05 GMT", false),
        ] {
            let got = node
                .get("/a")
                .range("10-19")
                .header("if-range", validator)
                .await;
            if holds {
                got.is_part("/a", 10..20, 1000);
            } else {
                got.is_whole("/a", 1000);
            }
        }
    }
}

/// An origin without ranges: streamed whole, stored whole, and ranges are served from that.
#[tokio::test]
async fn an_origin_without_ranges_is_stored_whole() {
    for etag in [false, true] {
        let origin = Origin::start().await;
        let route = origin.get("/a").generated(SIZE).cache_control("max-age=60");
        let _ = if etag { route.etag("\"1\"") } else { route };
        let node = Node::start(&origin).await;
        part(&node, 3 * BLOCK + 1, 3 * BLOCK + 100).await;
        node.at_rest().await;
        assert!(part(&node, 10, 20).await.head.is_hit());
        assert!(node.get("/a").await.is_whole("/a", SIZE).head.is_hit());
        assert_eq!(origin.requests("/a"), 1);
    }
}

/// The same while the body still arrives: the client gets its first byte without waiting for the end.
#[tokio::test]
async fn a_range_of_an_origin_without_ranges_does_not_wait_for_the_end() {
    let origin = Origin::start().await;
    let gate = origin
        .get("/a")
        .generated(SIZE)
        .cache_control("max-age=60")
        .gated_at(5 * BLOCK);
    let node = Node::start(&origin).await;
    part(&node, 3 * BLOCK, 4 * BLOCK).await;
    assert!(!gate.is_open());
    gate.open();
}

/// Another ETag throws the old bytes away: nobody gets a mixture.
#[tokio::test]
async fn another_tag_throws_the_old_bytes_away() {
    let (origin, node) = stage().await;
    part(&node, 0, 2 * BLOCK).await;
    node.at_rest().await;
    let _ = origin.change("/a").version(2).etag("\"2\"");
    let got = node.get("/a").range(&format!("0-{}", 4 * BLOCK - 1)).await;
    // Its first blocks are old: the answer is cut, or all new, never both.
    let old = slow_server::BodyFn::new("/a").verify(0, &got.body).is_ok();
    let new = slow_server::BodyFn::of_version("/a", 2)
        .verify(0, &got.body)
        .is_ok();
    assert!(old != new, "a mixture, or neither");
    assert!(
        new || got.end == End::Cut,
        "{} bytes, {:?}",
        got.body.len(),
        got.end
    );
    node.at_rest().await;
    let got = node
        .get("/a")
        .range(&format!("0-{}", 4 * BLOCK - 1))
        .await
        .expect(206);
    assert_eq!(
        slow_server::BodyFn::of_version("/a", 2).verify(0, &got.body),
        Ok(())
    );
    node.get("/a").await.is_version("/a", 2, SIZE);
}

/// The missing part alone is asked for, and the origin has changed: the client gets all of the new one.
#[tokio::test]
async fn a_changed_body_is_started_over() {
    let (origin, node) = stage().await;
    part(&node, 0, 2 * BLOCK).await;
    node.at_rest().await;
    let _ = origin.change("/a").version(2).etag("\"2\"");
    let got = node
        .get("/a")
        .range(&format!("{}-{}", 10 * BLOCK, 10 * BLOCK + 9))
        .await
        .expect(206);
    assert_eq!(
        slow_server::BodyFn::of_version("/a", 2).verify(10 * BLOCK, &got.body),
        Ok(())
    );
    node.get("/a").await.is_version("/a", 2, SIZE);
}

/// A weak validator joins nothing: a part is passed on and not kept.
#[tokio::test]
async fn parts_without_a_strong_validator_are_not_joined() {
    for weak in [true, false] {
        let origin = Origin::start().await;
        let route = origin
            .get("/a")
            .generated(SIZE)
            .ranges(true)
            .cache_control("max-age=60");
        let _ = if weak { route.etag("W/\"1\"") } else { route };
        let node = Node::start(&origin).await;
        part(&node, 0, BLOCK).await;
        part(&node, 5 * BLOCK, 6 * BLOCK).await;
        node.at_rest().await;
        let _ = origin.change("/a").version(2);
        node.get("/a").await.is_version("/a", 2, SIZE);
    }
}

/// A range of a stored response that varies is cut from the right variant.
#[tokio::test]
async fn ranges_know_their_variant() {
    let origin = Origin::start().await;
    origin.get("/a").respond_with(|request| {
        let version = request
            .header("x-v")
            .unwrap_or("0")
            .parse()
            .expect("a number");
        let answer = OriginAnswer::ok()
            .generated(SIZE)
            .version(version)
            .etag(&format!("\"{version}\""));
        answer.ranges(true).vary("x-v").cache_control("max-age=60")
    });
    let node = Node::start(&origin).await;
    for _ in 0..2 {
        for version in [1, 2] {
            let got = node
                .get("/a")
                .header("x-v", &version.to_string())
                .range("300000-300009")
                .await
                .expect(206);
            assert_eq!(
                slow_server::BodyFn::of_version("/a", version).verify(300_000, &got.body),
                Ok(())
            );
        }
    }
    assert_eq!(origin.requests("/a"), 2);
}

/// A stale part is validated together with what is asked for.
#[tokio::test]
async fn a_stale_part_is_validated() {
    let origin = Origin::start().await;
    let answer = OriginAnswer::ok()
        .generated(SIZE)
        .etag("\"1\"")
        .ranges(true)
        .cache_control("max-age=60");
    origin.get("/a").answer(answer.clone().header("age", "61"));
    let node = Node::start(&origin).await;
    part(&node, 0, BLOCK).await;
    node.at_rest().await;
    origin.get("/a").answer(answer);
    part(&node, 0, BLOCK).await;
    part(&node, 3 * BLOCK, 4 * BLOCK).await;
    node.at_rest().await;
    assert_eq!(origin.counts("/a").bytes, 2 * BLOCK);
    node.get("/a").await.is_whole("/a", SIZE);
}

/// Ranges of answers that are not stored are the origin's own.
#[tokio::test]
async fn an_uncacheable_range_is_right_too() {
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .generated(SIZE)
        .etag("\"1\"")
        .ranges(true)
        .cache_control("no-store");
    let node = Node::start(&origin).await;
    for _ in 0..2 {
        part(&node, 3 * BLOCK + 5, 3 * BLOCK + 50).await;
        node.get("/a")
            .range("-7")
            .await
            .is_part("/a", SIZE - 7..SIZE, SIZE);
        part(&node, 0, 1).await;
        let got = node.get("/a").range("0-1,5-6").await;
        assert!(matches!(got.status(), 200 | 206));
    }
    let got = node.get("/a").range(&format!("{SIZE}-")).await;
    assert_eq!(got.status(), 416, "{}", got.head.text);
}

/// A lie about a range never reaches a client as bytes of another place.
#[tokio::test]
async fn lies_about_ranges_are_found_out() {
    for lie in [
        Lie::RangeShifted,
        Lie::RangeMisnamed,
        Lie::RangeShorter,
        Lie::RangeLonger,
        Lie::RangeTruncated,
    ] {
        let (origin, node) = stage().await;
        let _ = origin.change("/a").lie(lie);
        let got = node
            .get("/a")
            .range(&format!("{}-{}", 3 * BLOCK, 5 * BLOCK - 1))
            .await;
        if got.status() == 206 && lie != Lie::RangeMisnamed {
            assert_eq!(
                slow_server::verify_body("/a", 3 * BLOCK, &got.body),
                Ok(()),
                "{lie}"
            );
        }
        node.at_rest().await;
        let _ = origin
            .get("/a")
            .generated(SIZE)
            .etag("\"1\"")
            .ranges(true)
            .cache_control("max-age=60");
        node.get("/a").await.is_whole("/a", SIZE);
    }
}

/// What is partly here says so, and is no hit.
#[tokio::test]
async fn a_range_that_has_to_be_asked_for_is_partial() {
    let (_origin, node) = stage().await;
    part(&node, 0, BLOCK).await;
    node.at_rest().await;
    for range in [format!("{}-{}", 5 * BLOCK, 5 * BLOCK + 9), "-10".to_owned()] {
        let got = node.get("/a").range(&range).await.expect(206);
        assert!(
            got.head.cache_status().contains("fwd=partial"),
            "{range}: {}",
            got.head.text
        );
        node.at_rest().await;
        assert!(node.get("/a").range(&range).await.expect(206).head.is_hit());
    }
}

/// The origin has gone: what is here is served, what is not is a clear answer, and nothing hangs.
#[tokio::test]
async fn a_missing_block_without_an_origin_is_an_error() {
    let (origin, node) = stage().await;
    part(&node, 0, BLOCK).await;
    node.at_rest().await;
    origin.refuse().await;
    origin.kill_connections();
    origin.wait_open_connections(0).await;
    assert!(part(&node, 0, BLOCK).await.head.is_hit());
    let got = node
        .get("/a")
        .range(&format!("{}-{}", 5 * BLOCK, 6 * BLOCK))
        .await;
    assert!(matches!(got.status(), 502 | 504), "{}", got.head.text);
    assert!(
        got.head.cache_status().contains("detail="),
        "{}",
        got.head.text
    );
    // The whole begins with what is here; it cannot end well.
    let got = node.get("/a").await;
    assert_ne!((got.status(), got.end), (200, End::Whole));
    origin.resume().await;
    node.get("/a").await.is_whole("/a", SIZE);
}

/// A HEAD of a body that is here in part knows the whole length.
#[tokio::test]
async fn head_of_a_part_tells_the_whole() {
    let (origin, node) = stage().await;
    part(&node, BLOCK, 2 * BLOCK).await;
    node.at_rest().await;
    let got = node.head("/a").await.expect(200);
    assert_eq!(got.head.length(), Some(SIZE));
    assert!(!got.head.has("content-range"), "{}", got.head.text);
    assert_eq!(origin.requests("/a"), 1);
}

/// A body whose length the origin does not tell: a part is right as soon as the length is known, and the whole before.
#[tokio::test]
async fn a_range_of_a_body_of_unknown_length_is_right() {
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .generated(SIZE)
        .chunked()
        .cache_control("max-age=60");
    let node = Node::start(&origin).await;
    for range in ["1000-1999", "-100", "1000-"] {
        let got = node.get("/a").range(range).await;
        match (got.status(), range) {
            (200, _) => drop(got.is_whole("/a", SIZE)),
            (_, "1000-1999") => drop(got.is_part("/a", 1000..2000, SIZE)),
            (_, "-100") => drop(got.is_part("/a", SIZE - 100..SIZE, SIZE)),
            _ => drop(got.is_part("/a", 1000..SIZE, SIZE)),
        }
        node.at_rest().await;
    }
    part(&node, 1000, 2000).await;
    assert_eq!(origin.requests("/a"), 1);
}

/// Ranges of a stale body that may be served while it is validated.
#[tokio::test]
async fn a_range_of_a_stale_body_is_served_while_it_is_validated() {
    let origin = Origin::start().await;
    let answer = OriginAnswer::ok()
        .generated(SIZE)
        .etag("\"1\"")
        .ranges(true)
        .header("age", "61");
    origin
        .get("/a")
        .answer(answer.cache_control("max-age=60, stale-while-revalidate=600"));
    let node = Node::start(&origin).await;
    node.get("/a").await.is_whole("/a", SIZE);
    node.at_rest().await;
    let gate = origin.change("/a").gated();
    part(&node, 1000, 2000).await;
    gate.reached().await;
    part(&node, 5 * BLOCK, 6 * BLOCK).await;
    gate.open();
    origin.wait_finished("/a", 2).await;
    assert_eq!(origin.counts("/a").bytes, SIZE);
}

/// A range over the border of two blocks that are both here is a hit, and the origin hears nothing of it.
#[tokio::test]
async fn a_range_over_two_held_blocks_is_a_hit() {
    let (origin, node) = stage().await;
    node.get("/a").await.is_whole("/a", SIZE);
    node.at_rest().await;
    for (from, to) in [
        (BLOCK - 1, BLOCK + 1),
        (BLOCK - 1000, BLOCK + 70_000),
        (0, BLOCK + 1),
        (BLOCK - 1, 2 * BLOCK),
        (19 * BLOCK + 5, SIZE),
        (BLOCK - 1, 2 * BLOCK + 1),
    ] {
        assert!(part(&node, from, to).await.head.is_hit());
    }
    assert_eq!(origin.requests("/a"), 1);
}

const LARGE: u64 = 8 << 20;

/// 32 blocks, of which the first half is held, of an origin that answers every range with the whole.
async fn half_held() -> (Origin, Node) {
    let origin = Origin::start().await;
    let answer = || {
        OriginAnswer::ok()
            .generated(LARGE)
            .etag("\"1\"")
            .cache_control("max-age=60")
    };
    origin.get("/a").sequence([
        answer().lie(Lie::Truncated),
        OriginAnswer::status(503),
        answer(),
    ]);
    let node = Node::start(&origin).await;
    assert_eq!(node.get("/a").await.end, End::Cut);
    node.at_rest().await;
    assert_eq!(origin.requests("/a"), 2);
    let _ = origin.get("/a").answer(answer());
    (origin, node)
}

/// Twenty ranges, most of them of the half that is not held, at all distances.
fn all_over() -> impl Iterator<Item = std::ops::Range<u64>> {
    (0..20)
        .map(|n| (n * 7 % 20) * 400_000 + 123)
        .map(|from| from..from + 300_000)
}

/// Twenty clients ask all over a body that is partly held, and the origin answers a range with the
/// whole: they all read from that one transfer, however far ahead their bytes are.
#[tokio::test]
async fn distant_readers_share_the_whole_of_an_origin_without_ranges() {
    let (origin, node) = half_held().await;
    let gate = origin.change("/a").gated_at(LARGE / 2 + 3 * BLOCK);
    let from = LARGE / 2 + 10;
    node.get("/a")
        .range(&format!("{from}-{}", from + 99))
        .await
        .is_part("/a", from..from + 100, LARGE);
    let mut clients = Vec::new();
    for span in all_over() {
        let range = format!("{}-{}", span.start, span.end - 1);
        clients.push((span, node.get("/a").range(&range).open().await));
    }
    assert!(!gate.is_open());
    gate.open();
    for (span, client) in clients {
        client.rest().await.is_part("/a", span, LARGE);
    }
    assert_eq!(origin.requests("/a"), 3);
}

/// The same when nobody knows yet how the origin answers ranges: they wait for the first answer.
#[tokio::test]
async fn distant_readers_wait_to_learn_whether_an_origin_has_ranges() {
    let (origin, node) = half_held().await;
    let gate = origin.change("/a").gated();
    let from = LARGE - 10;
    let first = node.get("/a").range(&format!("{from}-")).start();
    gate.reached().await;
    let clients: Vec<_> = all_over()
        .map(|span| {
            let range = format!("{}-{}", span.start, span.end - 1);
            (span, node.get("/a").range(&range).start())
        })
        .collect();
    node.joined_fills(20).await;
    gate.open();
    first
        .await
        .expect("the first")
        .is_part("/a", from..LARGE, LARGE);
    for (span, client) in clients {
        client.await.expect("a client").is_part("/a", span, LARGE);
    }
    assert_eq!(origin.requests("/a"), 3);
}

/// Of an origin with ranges, what was asked for at first does not hold up the others: once its head is
/// here, each asks for its own.
#[tokio::test]
async fn distant_readers_of_an_origin_with_ranges_ask_for_their_own() {
    let (origin, node) = half_held().await;
    let gate = origin.change("/a").ranges(true).gated();
    let blocks = [17, 23, 29];
    let clients: Vec<_> = blocks
        .iter()
        .map(|block| {
            let span = block * BLOCK..(block + 1) * BLOCK;
            let range = format!("{}-{}", span.start, span.end - 1);
            (span, node.get("/a").range(&range).start())
        })
        .collect();
    gate.reached().await;
    gate.open();
    for (span, client) in clients {
        client.await.expect("a client").is_part("/a", span, LARGE);
    }
    assert!(origin.counts("/a").bytes < LARGE);
}

/// A 416 answers the range that was asked for: it is not what is stored under the key, however long the
/// origin says that it is fresh.
#[tokio::test]
async fn a_416_is_not_kept_for_others() {
    let origin = Origin::start().await;
    origin.get("/a").respond_with(|request| {
        let answer = match request.header("range") {
            Some(_) => OriginAnswer::status(416).header("content-range", format!("bytes */{SIZE}")),
            None => OriginAnswer::ok().generated(SIZE).etag("\"1\""),
        };
        answer.cache_control("max-age=3600")
    });
    let node = Node::start(&origin).await;
    let got = node.get("/a").range(&format!("{}-", SIZE + 1)).await;
    assert_eq!(got.status(), 416, "{}", got.head.text);
    node.get("/a").await.is_whole("/a", SIZE);
}

/// A range whose block begins within reach of a fill in flight, and whose first byte does not.
#[tokio::test]
async fn a_range_at_the_edge_of_the_join_distance_arrives() {
    let (origin, node) = stage().await;
    let gate = origin.change("/a").gated_at(100_000);
    let mut whole = node.get("/a").open().await;
    whole.take(100_000).await;
    let span = (1 << 20) + 200_000..(1 << 20) + 201_425;
    let range = format!("{}-{}", span.start, span.end - 1);
    let edge = node.get("/a").range(&range).open().await;
    gate.open();
    edge.rest().await.is_part("/a", span, SIZE);
    assert_eq!(whole.rest().await.end, End::Whole);
}

/// What one client is refused says nothing about what is stored for all.
#[tokio::test]
async fn a_refusal_of_a_missing_part_removes_nothing() {
    for status in [401, 403, 408, 429, 500, 503] {
        let (origin, node) = stage().await;
        part(&node, 0, BLOCK).await;
        node.at_rest().await;
        let held = OriginAnswer::ok()
            .generated(SIZE)
            .etag("\"1\"")
            .ranges(true)
            .cache_control("max-age=60");
        let refusal = OriginAnswer::status(status);
        origin.get("/a").answer(refusal);
        let far = format!("{}-{}", 9 * BLOCK, 9 * BLOCK + 9);
        let got = node.get("/a").range(&far).await;
        assert_eq!(got.status(), 502, "{status}: {}", got.head.text);
        node.at_rest().await;
        origin.get("/a").answer(held);
        assert!(part(&node, 10, 20).await.head.is_hit(), "{status}");
        part(&node, 9 * BLOCK, 9 * BLOCK + 10).await;
    }
}

/// Several ranges, the last of them first, of a body that no disk keeps: no part waits for another one
/// that is still to come.
#[tokio::test]
async fn parts_of_a_body_that_is_not_kept_do_not_wait_for_one_another() {
    let origin = Origin::start().await;
    let size = 12 * BLOCK;
    let gate = origin
        .get("/a")
        .generated(size)
        .etag("\"1\"")
        .ranges(true)
        .cache_control("max-age=60")
        .gated_at(100_000);
    let node = Node::with(&origin, |config| {
        config.store.dir = "/dev/full/store".into();
        config.store.memory_bytes = 8 << 20;
    })
    .await;
    let mut whole = node.get("/a").open().await;
    whole.take(100_000).await;
    let ranges = format!("{}-{},{}-{}", 4 * BLOCK, size - 1, BLOCK, BLOCK + 9);
    let several = node.get("/a").range(&ranges).open().await;
    gate.open();
    let (several, whole) = tokio::join!(several.rest(), whole.rest());
    assert_eq!(whole.end, End::Whole);
    let parts = parts(&several.expect(206));
    let spans = [4 * BLOCK..size, BLOCK..BLOCK + 10];
    assert_eq!(parts.len(), spans.len());
    for ((_, bytes), span) in parts.iter().zip(spans) {
        assert_eq!(*bytes, slow_server::body_bytes("/a", span));
    }
}
