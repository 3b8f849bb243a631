//! Origins that lie: no lie yields a wrong whole body, now or on the next request, and the node stays up.

use std::time::Duration;

use caje_node::config::Http2;
use caje_tests::{End, Got, Lie, LieClass, Node, Origin, OriginAnswer};
use slow_server::BodyFn;

const SIZE: u64 = 100_000;

/// Lies told at the same time.
const AT_ONCE: usize = 12;

/// Versions of a body that a lie may bring, one for each request of a play.
const VERSIONS: u64 = 12;

/// Lies that no cache can see through: the same strong validator stands over other bytes each time.
const UNDETECTABLE: &[Lie] = &[
    Lie::RangeOtherBody,
    Lie::BodyPerRequest,
    Lie::LengthPerRequest,
];

fn versions(path: &str) -> impl Iterator<Item = BodyFn> + use<'_> {
    (0..VERSIONS).map(|version| BodyFn::of_version(path, version))
}

/// Whether what came is of one version of the body, and whole only if it is all of it.
fn judge(lie: Lie, path: &str, got: &Got, over_http2: bool) -> Result<(), String> {
    let length = got.body.len() as u64;
    let told = || {
        format!(
            "{lie} at {path}: {} {:?}, {length} bytes\n{}",
            got.status(),
            got.end,
            got.head.text
        )
    };
    if got.status() == 206 || got.end == End::Broken {
        return Err(told());
    }
    if got.status() != 200 {
        return Ok(());
    }
    if !versions(path).any(|version| version.verify(0, &got.body).is_ok()) {
        return Err(format!("wrong bytes: {}", told()));
    }
    let may_be = match lie {
        // Over HTTP/2 these cannot be told, and the origin sends a whole empty body instead.
        _ if length == 0 && over_http2 && is_untellable(lie) => true,
        Lie::LengthPerRequest => length > SIZE - VERSIONS,
        // By its framing it ends there, whatever stands behind it.
        Lie::ChunkZeroEarly => length == SIZE / 2 || length == SIZE,
        _ => length == SIZE,
    };
    if got.end == End::Whole && !may_be {
        Err(told())
    } else {
        Ok(())
    }
}

/// Lies about the bytes of HTTP/1.
fn is_untellable(lie: Lie) -> bool {
    use LieClass::{Chunk, Cut, Interim, Stall};
    matches!(lie.class(), Chunk | Cut | Interim | Stall) || lie == Lie::TlsAnswer
}

fn judge_part(lie: Lie, path: &str, from: u64, got: &Got, over_http2: bool) -> Result<(), String> {
    if got.status() != 206 {
        return judge(lie, path, got, over_http2);
    }
    match versions(path).any(|version| version.verify(from, &got.body).is_ok()) {
        true => Ok(()),
        false => Err(format!("{lie} at {path}: wrong part\n{}", got.head.text)),
    }
}

fn lying(origin: &Origin, path: &str, lie: Lie) {
    let answer = OriginAnswer::ok()
        .generated(SIZE)
        .etag("\"1\"")
        .ranges(true)
        .cache_control("max-age=60");
    origin.get(path).answer(answer.lie(lie));
}

fn honest(origin: &Origin, path: &str) {
    let answer = OriginAnswer::ok()
        .generated(SIZE)
        .etag("\"honest\"")
        .ranges(true)
        .cache_control("max-age=60");
    origin.get(path).answer(answer);
}

/// One lie, asked for whole, and by its head, and in part.
async fn told(origin: &Origin, node: &Node, lie: Lie, over_http2: bool) -> Result<(), String> {
    let whole = format!("/whole/{lie}");
    lying(origin, &whole, lie);
    if lie == Lie::DripBody {
        // An endless trickle: what has come is right, and leaving ends it.
        let mut answer = node.get(&whole).open().await;
        if answer.head.status != 200 {
            // An origin that is too slow for its deadline is no origin.
            return Ok(());
        }
        let first = answer.take(2).await;
        answer.leave();
        return BodyFn::new(&whole)
            .verify(0, &first)
            .map_err(|error| error.to_string());
    }
    let head = node.head(&whole).await;
    if !head.body.is_empty() {
        return Err(format!("{lie}: HEAD has a body"));
    }
    for _ in 0..2 {
        judge(lie, &whole, &node.get(&whole).await, over_http2)?;
    }
    let got = node.get(&whole).range("50000-59999").await;
    if !UNDETECTABLE.contains(&lie) {
        judge_part(lie, &whole, 50_000, &got, over_http2)?;
    }
    // The part comes first, and the whole is to be made from it.
    let part = format!("/part/{lie}");
    lying(origin, &part, lie);
    for _ in 0..2 {
        let got = node.get(&part).range("70000-79999").await;
        if !UNDETECTABLE.contains(&lie) {
            judge_part(lie, &part, 70_000, &got, over_http2)?;
        }
    }
    let got = node.get(&part).await;
    if !UNDETECTABLE.contains(&lie) {
        judge(lie, &part, &got, over_http2)?;
    }
    // Once the origin is honest again, nothing of the lie is left but what may be fresh.
    for path in [&whole, &part] {
        honest(origin, path);
        let got = node.get(path).await;
        if !UNDETECTABLE.contains(&lie) {
            judge(lie, path, &got, over_http2).map_err(|error| format!("afterwards: {error}"))?;
        }
    }
    Ok(())
}

async fn all_lies(origin: Origin, http2: Http2) {
    let over_http2 = http2 == Http2::PriorKnowledge;
    let node = Node::with(&origin, |config| {
        let settings = &mut config.origins[0];
        settings.http2 = http2;
        settings.first_byte_timeout = Duration::from_millis(700);
        settings.read_timeout = Duration::from_millis(700);
        config.store.block_size_bytes = 16 << 10;
        config.limits.linger = Duration::from_millis(10);
    })
    .await;
    let mut found = Vec::new();
    for some in Lie::ALL.chunks(AT_ONCE) {
        let mut plays: Vec<_> = some
            .iter()
            .map(|lie| Box::pin(told(&origin, &node, *lie, over_http2)))
            .collect();
        let mut left = plays.len();
        let mut done = vec![false; left];
        std::future::poll_fn(|cx| {
            for (play, done) in plays.iter_mut().zip(&mut done).filter(|(_, done)| !**done) {
                if let std::task::Poll::Ready(outcome) = play.as_mut().poll(cx) {
                    *done = true;
                    left -= 1;
                    found.extend(outcome.err());
                }
            }
            if left == 0 {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        })
        .await;
    }
    assert!(
        found.is_empty(),
        "{} lies went through:\n{}",
        found.len(),
        found.join("\n")
    );
    // The node is well.
    let _ = origin
        .get("/honest")
        .generated(SIZE)
        .cache_control("max-age=60");
    node.get("/honest").await.is_whole("/honest", SIZE);
    node.at_rest().await;
    assert!(
        node.get("/honest")
            .await
            .is_whole("/honest", SIZE)
            .head
            .is_hit()
    );
    assert_eq!(origin.malformed(), Vec::<String>::new());
}

#[tokio::test]
async fn no_lie_yields_a_wrong_whole_body() {
    all_lies(Origin::start().await, Http2::Off).await;
}

#[tokio::test]
async fn no_lie_yields_a_wrong_whole_body_over_http2() {
    let origin = Origin::builder()
        .h2c(true)
        .start()
        .await
        .expect("start an origin");
    all_lies(origin, Http2::PriorKnowledge).await;
}

/// What an origin says about itself is not what this node says.
#[tokio::test]
async fn a_forged_cache_status_is_only_the_origin_s_word() {
    let origin = Origin::start().await;
    let _ = origin.get("/a").body("x").lie(Lie::CacheStatusForged);
    let node = Node::start(&origin).await;
    let got = node.get("/a").await.says("x");
    let all = got.head.all("cache-status").join(", ");
    assert!(
        all.rsplit(", ")
            .next()
            .is_some_and(|own| own.contains("fwd=")),
        "{all}"
    );
}

/// A field that cannot be a field reaches nobody.
#[tokio::test]
async fn split_heads_are_refused() {
    for lie in [
        Lie::BareLf,
        Lie::BareCr,
        Lie::NulInValue,
        Lie::NulInName,
        Lie::ObsFold,
        Lie::SpaceBeforeColon,
        Lie::LengthAndChunked,
        Lie::TwoLengths,
        Lie::UnknownCoding,
    ] {
        let origin = Origin::start().await;
        let _ = origin.get("/a").body("x").lie(lie);
        let node = Node::start(&origin).await;
        let got = node.get("/a").await.expect(502);
        assert!(
            got.head.cache_status().contains("detail="),
            "{lie}: {}",
            got.head.text
        );
    }
}

/// A 101 that nobody asked for opens no tunnel.
#[tokio::test]
async fn an_unasked_101_is_refused() {
    for lie in [Lie::SwitchUnasked, Lie::ThousandHints, Lie::EndlessContinue] {
        let origin = Origin::start().await;
        let _ = origin.get("/a").body("x").lie(lie);
        let node = Node::start(&origin).await;
        node.get("/a").await.expect(502);
    }
}
