//! Bodies between nodes: who is asked before the origin, who is believed, and what never crosses.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use caje_node::cache::purge::Selector;
use caje_node::clock::{self, Stamp};
use caje_node::config::Cidr;
use caje_node::peer::seal::{Opener, Sealer};
use caje_node::peer::secret::Nonce;
use caje_node::peer::{self, Mode, Secret, Stamps, Teller, Told};
use caje_node::semantics::key::Scheme;
use caje_node::telemetry::{PeerAnswer, PeerOutcome};
use caje_tests::{CANARY, End, Folder, Gate, Node, Origin, OriginAnswer, PATIENCE, until, within};
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const SIZE: u64 = 700_000;
/// One block of a body.
const BLOCK: u64 = 256 << 10;

/// A node of the cluster that waits for others as long as a play does.
async fn node(origin: &Origin, name: &str, mode: Mode) -> Node {
    patient(origin, name, mode, PATIENCE).await
}

async fn patient(origin: &Origin, name: &str, mode: Mode, patience: Duration) -> Node {
    Node::with(origin, |config| in_cluster(config, name, mode, patience)).await
}

fn in_cluster(config: &mut caje_node::Config, name: &str, mode: Mode, patience: Duration) {
    config.node.name = name.to_owned();
    config.node.pseudonym = name.to_owned();
    config.node.cdn_id = "cluster".to_owned();
    config.cluster.secret = Some(Secret::new(SECRET));
    for origin in &mut config.origins {
        origin.peer = mode;
        origin.peer_timeout = patience;
    }
}

fn told(id: &str, address: SocketAddr) -> Told {
    Told {
        id: id.to_owned(),
        data: format!("http://{address}"),
    }
}

/// Tells a node of others; those it does not ask are given back.
fn tell(node: &Node, others: &[Told]) -> Vec<String> {
    node.inner().peers().set(Teller::Nodes, others.to_vec())
}

/// Tells each of the others, and of itself.
fn introduce(nodes: &[(&str, &Node)]) {
    let all: Vec<Told> = nodes
        .iter()
        .map(|(id, node)| told(id, node.address()))
        .collect();
    for (_, node) in nodes {
        assert_eq!(tell(node, &all), Vec::<String>::new());
    }
}

/// Two nodes that know each other.
async fn two(origin: &Origin, mode: Mode) -> (Node, Node) {
    let (a, b) = (node(origin, "a", mode).await, node(origin, "b", mode).await);
    introduce(&[("a", &a), ("b", &b)]);
    (a, b)
}

fn asked(node: &Node, outcome: PeerOutcome) -> u64 {
    node.metrics().peer_requests.get(outcome)
}

fn answered(node: &Node, outcome: PeerAnswer) -> u64 {
    node.metrics().peer_answers.get(outcome)
}

fn fresh(size: u64) -> OriginAnswer {
    OriginAnswer::ok()
        .generated(size)
        .etag("\"v0\"")
        .cache_control("max-age=600")
        .ranges(true)
}

fn url(target: &str) -> Selector {
    Selector::Url {
        scheme: Scheme::Http,
        authority: "a.example".into(),
        target: Bytes::copy_from_slice(target.as_bytes()),
    }
}

/// On this node alone, as if the others had not heard of it yet.
async fn purge(node: &Node, selector: Selector, soft: bool) {
    let purged = within("a purge", node.inner().purge_here(selector, soft)).await;
    assert!(purged.is_durable);
}

fn now() -> Stamp {
    let since = clock::now().duration_since(UNIX_EPOCH);
    Stamp((since.expect("after 1970").as_millis() as u64) << 16)
}

/// What a node would answer that asked the origin for it just now.
fn just_now() -> Stamps {
    Stamps {
        filled: now(),
        validated: now(),
        now: now(),
    }
}

/// The answer of a node that knows `secret` to this request, byte for byte. A body that is shorter than its
/// `content-length` says breaks off.
fn signed(
    secret: &str,
    request: &slow_server::Request,
    stamps: Option<Stamps>,
    fields: &str,
    body: &[u8],
) -> Vec<u8> {
    let asked = request.header("caje-peer").expect("a question of a node");
    let nonce = asked.split(';').nth(2).expect("a nonce");
    let nonce = u64::from_str_radix(nonce, 16)
        .expect("hexadecimal")
        .to_be_bytes();
    let mut sealed = Vec::new();
    let status = match stamps {
        Some(_) => StatusCode::OK,
        None => StatusCode::GATEWAY_TIMEOUT,
    };
    let mut headers = HeaderMap::new();
    for line in fields.lines() {
        let (name, value) = line.split_once(": ").expect("a field");
        let name = http::HeaderName::try_from(name).expect("a name");
        headers.append(name, HeaderValue::try_from(value).expect("a value"));
    }
    if let Some(stamps) = stamps {
        headers.insert(peer::ASKED, stamps.to_header());
        let length = headers.remove("content-length").expect("a length");
        let is_whole = length == body.len().to_string();
        headers.insert(peer::LENGTH, length);
        let mut sealer = Sealer::new(&Secret::new(secret), nonce);
        let mut left = Bytes::copy_from_slice(body);
        while !left.is_empty() {
            sealed.extend_from_slice(&sealer.seal(&mut left));
        }
        if is_whole {
            sealed.extend_from_slice(&sealer.end());
        }
    }
    let proof = Secret::new(secret).answer(nonce, status, &peer::proven_fields(&headers));
    headers.insert(peer::secret::PROOF, proof);
    let mut head = format!("HTTP/1.1 {} X\r\n", status.as_u16());
    for (name, value) in &headers {
        head += &format!("{name}: {}\r\n", value.to_str().expect("text"));
    }
    [
        head.as_bytes(),
        b"cache-status: x; hit\r\n\r\n",
        &sealed[..],
    ]
    .concat()
}

/// The body of a node's answer to the question of this nonce.
fn opened(sealed: Bytes, nonce: Nonce) -> Vec<u8> {
    let mut opener = Opener::new(&Secret::new(SECRET), nonce);
    let mut proven = VecDeque::new();
    opener.open(sealed, &mut proven).expect("a proven body");
    assert!(opener.is_over());
    proven.iter().flatten().copied().collect()
}

/// Stands between nodes: passes on what they say, but changes a byte of the first body, so far behind its head.
async fn man_in_the_middle(node: SocketAddr, at: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((asker, _)) = listener.accept().await {
            let answerer = TcpStream::connect(node).await.expect("connect");
            let (mut questions, mut answers) = asker.into_split();
            let (mut from, mut to) = answerer.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut questions, &mut to).await });
            tokio::spawn(async move {
                let mut said = Vec::new();
                let mut sent = 0;
                let mut is_changed = false;
                while from.read_buf(&mut said).await.is_ok_and(|bytes| bytes > 0) {
                    let head = said.windows(4).position(|window| window == b"\r\n\r\n");
                    let meant = head.map(|head| head + 4 + at).unwrap_or(usize::MAX);
                    if !is_changed && meant < said.len() {
                        said[meant] ^= 1;
                        is_changed = true;
                    }
                    // Not beyond what is to be changed.
                    let until = if is_changed {
                        said.len()
                    } else {
                        said.len().min(meant)
                    };
                    if answers.write_all(&said[sent..until]).await.is_err() {
                        return;
                    }
                    sent = until;
                }
            });
        }
    });
    address
}

/// A body that another node holds comes from there, and the origin is asked once.
#[tokio::test]
async fn a_miss_is_filled_from_who_holds_it() {
    let origin = Origin::start().await;
    let answer = fresh(SIZE)
        .header("age", "50")
        .header("surrogate-key", "blue")
        .header("cache-status", "another; hit");
    origin.get("/a").answer(answer);
    let (a, b) = two(&origin, Mode::Nearest).await;
    a.get("/a").await.is_whole("/a", SIZE);
    a.at_rest().await;
    let got = b.get("/a").await.is_whole("/a", SIZE);
    let status = got.head.cache_status();
    assert!(status.contains("fwd=uri-miss"), "{status}");
    assert!(
        status.contains("detail=peer:a") || status.contains("detail=\"peer:a\""),
        "{status}"
    );
    assert!(got.head.is_stored(), "{status}");
    let age: u64 = got
        .head
        .get("age")
        .expect("an age")
        .parse()
        .expect("digits");
    assert!((50..60).contains(&age), "{age}");
    b.at_rest().await;
    let hit = b.get("/a").await.is_whole("/a", SIZE);
    assert!(hit.head.is_hit());
    for head in [&got.head, &hit.head] {
        assert!(
            !head.text.to_ascii_lowercase().contains("caje-peer"),
            "{}",
            head.text
        );
        assert!(!head.has("surrogate-key"));
        assert_eq!(head.all("cache-status").len(), 2, "{}", head.text);
    }
    assert_eq!(origin.requests("/a"), 1);
    assert_eq!(asked(&b, PeerOutcome::Filled), 1);
    assert_eq!(answered(&a, PeerAnswer::Held), 1);
    assert_eq!(b.metrics().peer_response_bytes.get(()), SIZE);
    // What it is purged by has come along.
    purge(&b, Selector::Tag("blue".into()), false).await;
    assert!(!b.get("/a").await.is_whole("/a", SIZE).head.is_hit());
    assert_eq!(origin.requests("/a"), 2);
}

/// Who does not hold it says so at once, on a connection that is kept.
#[tokio::test]
async fn what_nobody_holds_comes_from_the_origin() {
    let origin = Origin::start().await;
    origin.prefix("/").answer(fresh(SIZE));
    let (a, b) = two(&origin, Mode::Nearest).await;
    for n in 0..6 {
        let target = format!("/{n}");
        b.get(&target).await.is_whole(&target, SIZE);
        assert_eq!(origin.requests(&target), 1);
    }
    assert_eq!(asked(&b, PeerOutcome::Absent), 6);
    assert_eq!(answered(&a, PeerAnswer::Absent), 6);
    let connections = a.metrics().client_connections_accepted.get(());
    assert!(connections <= 2, "one of each data thread: {connections}");
}

/// A dead node costs one failure, and no more until it has rested.
#[tokio::test]
async fn a_dead_node_is_not_waited_for() {
    let origin = Origin::start().await;
    origin.prefix("/").answer(fresh(SIZE));
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = gone.local_addr().expect("an address");
    drop(gone);
    for mode in [Mode::Nearest, Mode::Shield] {
        let b = node(&origin, "b", mode).await;
        tell(&b, &[told("a", address)]);
        let began = Instant::now();
        for n in 0..20 {
            let target = format!("/{mode:?}/{n}");
            b.get(&target).await.is_whole(&target, SIZE);
        }
        let failed = asked(&b, PeerOutcome::Failed);
        assert!((1..=tries(began)).contains(&failed), "{mode:?}: {failed}");
    }
}

/// How often a node may have been tried that fails each time: its rests are a second and more.
fn tries(began: Instant) -> u64 {
    1 + began.elapsed().as_secs()
}

/// One that takes a question and says nothing is waited for once, and no longer than `peer_timeout`.
#[tokio::test]
async fn a_slow_node_is_waited_for_once() {
    let origin = Origin::start().await;
    origin.prefix("/").answer(fresh(SIZE));
    let slow = Origin::start().await;
    slow.prefix("/").gated();
    let b = patient(&origin, "b", Mode::Nearest, Duration::from_millis(50)).await;
    tell(&b, &[told("slow", slow.addr())]);
    let began = Instant::now();
    for n in 0..5 {
        let target = format!("/{n}");
        b.get(&target).await.is_whole(&target, SIZE);
    }
    let late = asked(&b, PeerOutcome::Timeout);
    assert!((1..=tries(began)).contains(&late), "{late}");
}

/// The other of two is asked at the same time: the slow one costs nothing.
#[tokio::test]
async fn the_faster_of_two_answers() {
    let origin = Origin::start().await;
    origin.get("/a").answer(fresh(SIZE));
    let slow = Origin::start().await;
    let gate = slow.prefix("/").gated();
    let (a, b) = (
        node(&origin, "a", Mode::Nearest).await,
        node(&origin, "b", Mode::Nearest).await,
    );
    a.get("/a").await.is_whole("/a", SIZE);
    a.at_rest().await;
    tell(&b, &[told("slow", slow.addr()), told("a", a.address())]);
    b.get("/a").await.is_whole("/a", SIZE);
    gate.reached().await;
    assert_eq!(asked(&b, PeerOutcome::Filled), 1);
    assert_eq!(asked(&b, PeerOutcome::Outpaced), 1);
    assert_eq!(origin.requests("/a"), 1);
}

/// Nothing is taken from who does not prove itself, nor from who says what cannot be.
#[tokio::test]
async fn a_liar_is_not_believed() {
    type Lie = fn(&slow_server::Request) -> Vec<u8>;
    const FIELDS: &str = "cache-control: max-age=600\ncontent-length: 4";
    let proven: Lie = |request| signed(SECRET, request, Some(just_now()), FIELDS, b"lies");
    let lies: [(&str, Lie, PeerOutcome); 7] = [
        (
            "no proof",
            |_| {
                b"HTTP/1.1 200 OK\r\ncache-control: max-age=600\r\ncontent-length: 4\r\n\r\nlies"
                    .to_vec()
            },
            PeerOutcome::Untrusted,
        ),
        (
            "another secret",
            |request| {
                let other = "another secret of thirty-two characters";
                signed(other, request, Some(just_now()), FIELDS, b"lies")
            },
            PeerOutcome::Untrusted,
        ),
        (
            "a changed stamp",
            |request| {
                let answer = signed(SECRET, request, Some(just_now()), FIELDS, b"lies");
                let text = String::from_utf8_lossy(&answer);
                let changed = text.replacen("caje-peer-sealed: 1", "caje-peer-sealed: 2", 1);
                assert_ne!(text, changed);
                changed.into_bytes()
            },
            PeerOutcome::Untrusted,
        ),
        (
            "stamps that cannot be",
            |request| {
                let stamps = Stamps {
                    filled: Stamp(9),
                    validated: Stamp(8),
                    now: Stamp(7),
                };
                signed(SECRET, request, Some(stamps), FIELDS, b"lies")
            },
            PeerOutcome::Unfit,
        ),
        (
            "a stale answer",
            |request| {
                let fields = "cache-control: max-age=600\nage: 700\ncontent-length: 4";
                signed(SECRET, request, Some(just_now()), fields, b"lies")
            },
            PeerOutcome::Unfit,
        ),
        (
            "what is private",
            |request| {
                let fields = "cache-control: private, max-age=600\ncontent-length: 4";
                signed(SECRET, request, Some(just_now()), fields, b"lies")
            },
            PeerOutcome::Unfit,
        ),
        (
            "a part that was not asked for",
            |request| {
                let fields =
                    "cache-control: max-age=600\ncontent-range: bytes 0-3/9\ncontent-length: 4";
                signed(SECRET, request, Some(just_now()), fields, b"lies")
            },
            PeerOutcome::Unfit,
        ),
    ];
    let origin = Origin::start().await;
    origin.get("/a").answer(fresh(SIZE));
    for (what, lie, outcome) in lies {
        let liar = Origin::start().await;
        liar.prefix("/")
            .respond_with(move |request| OriginAnswer::ok().raw(lie(request)));
        let b = node(&origin, "b", Mode::Nearest).await;
        tell(&b, &[told("liar", liar.addr())]);
        b.get("/a").await.is_whole("/a", SIZE);
        assert_eq!(liar.requests("/a"), 1, "{what}");
        assert_eq!(asked(&b, outcome), 1, "{what}");
    }
    // The same without a lie is taken.
    let honest = Origin::start().await;
    honest
        .prefix("/")
        .respond_with(move |request| OriginAnswer::ok().raw(proven(request)));
    let b = node(&origin, "b", Mode::Nearest).await;
    tell(&b, &[told("honest", honest.addr())]);
    b.get("/a").await.says("lies");
}

/// A body that a node breaks off goes on from the origin where a strong validator allows it, and is cut otherwise.
#[tokio::test]
async fn a_body_that_breaks_off_goes_on_from_the_origin() {
    let half = (SIZE / 2) as usize;
    for (validator, is_whole) in [("etag: \"v0\"\n", true), ("", false)] {
        let origin = Origin::start().await;
        origin.get("/a").answer(fresh(SIZE));
        let cut = Origin::start().await;
        cut.prefix("/").respond_with(move |request| {
            let fields = format!("{validator}cache-control: max-age=600\ncontent-length: {SIZE}");
            let body = slow_server::body_bytes("/a", 0..half as u64);
            OriginAnswer::ok().raw(signed(SECRET, request, Some(just_now()), &fields, &body))
        });
        let b = node(&origin, "b", Mode::Nearest).await;
        tell(&b, &[told("cut", cut.addr())]);
        let got = b.get("/a").await;
        assert_eq!(asked(&b, PeerOutcome::Filled), 1);
        if is_whole {
            got.is_whole("/a", SIZE);
            let range = origin.last_request("/a").header("range").map(str::to_owned);
            assert_eq!(range, Some(format!("bytes={BLOCK}-{}", SIZE - 1)));
        } else {
            assert_eq!(got.end, End::Cut, "{}", got.head.text);
            assert_eq!(origin.requests("/a"), 0);
        }
        b.at_rest().await;
        // It rests: the next question is the origin's.
        let began = Instant::now();
        b.get("/a").await;
        assert!(cut.requests("/a") <= tries(began));
    }
}

/// Who can change bytes between nodes changes none that a client gets, or that is kept: the body goes on from the
/// origin where that is possible, and is cut otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_that_was_changed_on_the_way_is_found_out() {
    for (is_strong, at) in [
        (true, 30),
        (true, 400_000),
        (true, SIZE as usize),
        (false, 30),
        (false, 400_000),
        (false, SIZE as usize),
    ] {
        let origin = Origin::start().await;
        origin.get("/a").answer(match is_strong {
            true => fresh(SIZE),
            false => OriginAnswer::ok()
                .generated(SIZE)
                .etag("W/\"v0\"")
                .cache_control("max-age=600"),
        });
        let a = node(&origin, "a", Mode::Nearest).await;
        a.get("/a").await.is_whole("/a", SIZE);
        a.at_rest().await;
        let b = node(&origin, "b", Mode::Nearest).await;
        tell(&b, &[told("a", man_in_the_middle(a.address(), at).await)]);
        let got = b.get("/a").await;
        assert_eq!(asked(&b, PeerOutcome::Filled), 1);
        // Before the first byte has come, nothing was promised: the answer is another one.
        let is_whole = is_strong || at == 30;
        if is_whole {
            got.is_whole("/a", SIZE);
        } else {
            assert_eq!(got.end, End::Cut, "{at}: {}", got.head.text);
            let right = slow_server::body_bytes("/a", 0..got.body.len() as u64);
            assert_eq!(got.body, right, "{at}");
            assert!((got.body.len() as u64) < SIZE);
        }
        b.at_rest().await;
        assert_eq!(b.metrics().fills_completed.total(), u64::from(is_whole));
        b.get("/a").await.is_whole("/a", SIZE);
        // What cannot be joined is asked for in vain, once.
        let most = if is_strong { 2 } else { 3 };
        let requests = origin.requests("/a");
        assert!((2..=most).contains(&requests), "{at}: {requests}");
    }
}

/// A body that its origin is slow to send comes through a shield as it arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shield_passes_on_what_has_come() {
    let origin = Origin::start().await;
    let gate = Gate::new();
    origin.prefix("/").answer(fresh(SIZE).gate_at(1000, &gate));
    let (a, b) = two(&origin, Mode::Shield).await;
    let mut under_way = Vec::new();
    // Of some of them the other node is the shield.
    for n in 0..8 {
        let target = format!("/{n}");
        let mut answer = b.get(&target).open().await;
        let first = within("the first bytes", answer.take(1000)).await;
        assert_eq!(first, slow_server::body_bytes(&target, 0..1000));
        under_way.push((target, answer));
    }
    gate.open();
    for (target, answer) in under_way {
        let rest = answer.rest().await;
        assert_eq!(rest.end, End::Whole);
        assert_eq!(origin.requests(&target), 1);
    }
    assert!(answered(&a, PeerAnswer::Filled) > 0);
}

/// Of many keys on many nodes, the origin sees each once.
#[tokio::test]
async fn a_shield_asks_the_origin_for_all() {
    let origin = Origin::start().await;
    origin.prefix("/").answer(fresh(10_000));
    let (a, b, c) = (
        node(&origin, "a", Mode::Shield).await,
        node(&origin, "b", Mode::Shield).await,
        node(&origin, "c", Mode::Shield).await,
    );
    introduce(&[("a", &a), ("b", &b), ("c", &c)]);
    let targets: Vec<String> = (0..60).map(|n| format!("/{n}")).collect();
    let mut under_way = Vec::new();
    for target in &targets {
        for node in [&a, &b, &c] {
            under_way.push((target, node.get(target).start()));
        }
    }
    for (target, got) in under_way {
        got.await.expect("an answer").is_whole(target, 10_000);
    }
    for target in &targets {
        assert_eq!(origin.requests(target), 1, "{target}");
    }
    // Each is the shield of some.
    for node in [&a, &b, &c] {
        assert!(answered(node, PeerAnswer::Filled) + answered(node, PeerAnswer::Held) > 0);
    }
    // The clients of a shield itself may have been first with all of those: with these only one node has clients.
    for n in 0..20 {
        let target = format!("/one/{n}");
        a.get(&target).await.is_whole(&target, 10_000);
    }
    let log = origin.requests_log();
    for request in &log {
        let names = request.header_lines("cdn-loop");
        assert!((1..=2).contains(&names.len()), "{names:?}");
        assert!(
            request.header("caje-peer").is_none() && request.header("caje-peer-mode").is_none()
        );
    }
    // Who was asked for another's client says so, and who that is.
    let shielded = log.iter().find(|r| r.header_lines("cdn-loop").len() == 2);
    let shielded = shielded.expect("a request of a shield");
    assert_eq!(
        shielded
            .header_lines("via")
            .join(", ")
            .matches("1.1 ")
            .count(),
        2
    );
    let clients = shielded.header("x-forwarded-for").expect("clients");
    assert_eq!(clients, "127.0.0.1, 127.0.0.1");
}

/// Nodes that all point at one another, and all lack it: one question to the origin, and an end.
#[tokio::test]
async fn nodes_that_point_at_one_another_make_no_loop() {
    let origin = Origin::start().await;
    origin.prefix("/").answer(fresh(10_000));
    for mode in [Mode::Nearest, Mode::Shield] {
        let (a, b, c) = (
            node(&origin, "a", mode).await,
            node(&origin, "b", mode).await,
            node(&origin, "c", mode).await,
        );
        introduce(&[("a", &a), ("b", &b), ("c", &c)]);
        for n in 0..10 {
            let target = format!("/{mode:?}/{n}");
            a.get(&target).await.is_whole(&target, 10_000);
            assert_eq!(origin.requests(&target), 1);
        }
        let total = |outcome| answered(&b, outcome) + answered(&c, outcome);
        match mode {
            Mode::Nearest => assert_eq!(total(PeerAnswer::Absent), 20),
            _ => assert!(total(PeerAnswer::Filled) > 0 && answered(&a, PeerAnswer::Filled) == 0),
        }
        let by_others: u64 = [&b, &c]
            .map(|node| node.metrics().peer_requests.total())
            .iter()
            .sum();
        assert_eq!(by_others, 0, "who is asked asks nobody");
    }
}

/// A loop of requests is refused, also when it comes by way of a node.
#[tokio::test]
async fn a_loop_through_a_node_is_refused() {
    let origin = Origin::start().await;
    origin.get("/a").answer(fresh(SIZE));
    let (a, b) = two(&origin, Mode::Nearest).await;
    a.get("/a").await.is_whole("/a", SIZE);
    a.at_rest().await;
    b.get("/a").header("cdn-loop", "cluster").await.expect(508);
    b.get("/a")
        .header("cdn-loop", "other")
        .await
        .is_whole("/a", SIZE);
    assert_eq!(asked(&b, PeerOutcome::Filled), 1);
}

/// A client that says it is a node gets what clients get, and the origin hears nothing of it.
#[tokio::test]
async fn a_client_that_forges_a_proof_gets_nothing_special() {
    let origin = Origin::start().await;
    let answer = fresh(SIZE)
        .header("surrogate-key", "blue")
        .header("caje-peer-sealed", "1,2,3")
        .header("caje-peer-proof", "00");
    origin.get("/a").answer(answer);
    let (a, _b) = two(&origin, Mode::Nearest).await;
    let forged = format!(
        "b;{};0011223344556677;{}",
        clock::now_secs(),
        "ab".repeat(32)
    );
    for n in 1..4 {
        let ask = a
            .get("/a")
            .header("caje-peer", &forged)
            .header("caje-peer-mode", "shield");
        let got = ask.await.is_whole("/a", SIZE);
        assert!(!got.head.has("surrogate-key"), "{}", got.head.text);
        assert!(
            !got.head.text.to_ascii_lowercase().contains("caje-peer"),
            "{}",
            got.head.text
        );
        assert_eq!(answered(&a, PeerAnswer::Refused), n);
    }
    let request = origin.last_request("/a");
    assert!(request.header("caje-peer").is_none() && request.header("caje-peer-mode").is_none());
    // Also what goes by the cache.
    origin
        .post("/a")
        .answer(OriginAnswer::ok().header("caje-peer-proof", "00"));
    let got = a
        .post("/a")
        .header("caje-peer", &forged)
        .body("x")
        .await
        .expect(200);
    assert!(!got.head.has("caje-peer-proof"));
    assert!(origin.last_request("/a").header("caje-peer").is_none());
    assert_eq!(origin.malformed(), Vec::<String>::new());
}

/// A proof is of one request: sent again for another, or by way of a node that has no secret, it is a stranger's.
#[tokio::test]
async fn a_proof_is_of_one_request() {
    let origin = Origin::start().await;
    origin
        .prefix("/")
        .answer(fresh(1000).header("surrogate-key", "blue"));
    let a = node(&origin, "a", Mode::Nearest).await;
    a.get("/a").await.is_whole("/a", 1000);
    a.get("/b").await.is_whole("/b", 1000);
    a.at_rest().await;
    let proof = Secret::new(SECRET).ask(
        "b",
        clock::now(),
        [7; 8],
        &http::Method::GET,
        "a.example",
        "/a",
        b"",
    );
    let proof = proof.to_str().expect("text");
    let got = a.get("/a").header("caje-peer", proof).await.expect(200);
    let body = slow_server::body_bytes("/a", 0..1000);
    assert_eq!(opened(got.body, [7; 8]), body);
    assert!(got.head.has("surrogate-key") && got.head.has("caje-peer-proof"));
    let got = a
        .get("/b")
        .header("caje-peer", proof)
        .await
        .is_whole("/b", 1000);
    assert!(!got.head.has("surrogate-key") && !got.head.has("caje-peer-proof"));
    let twice = a
        .get("/a")
        .header("caje-peer", proof)
        .header("caje-peer", proof);
    assert!(!twice.await.is_whole("/a", 1000).head.has("caje-peer-proof"));
}

/// Addresses that nodes are not at are not connected to, however a row names them.
#[tokio::test]
async fn a_forged_row_leads_nowhere() {
    let origin = Origin::start().await;
    origin.prefix("/").answer(fresh(1000));
    let inner = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind");
    let port = inner.local_addr().expect("an address").port();
    let b = Node::with(&origin, |config| {
        config.node.name = "b".to_owned();
        config.cluster.secret = Some(Secret::new(SECRET));
        config.cluster.allow = vec![Cidr::parse("127.0.0.9/32").expect("a network")];
        for origin in &mut config.origins {
            origin.peer_timeout = PATIENCE;
        }
    })
    .await;
    for (n, host) in [
        "127.0.0.1",
        "localhost",
        "[::ffff:127.0.0.1]",
        "[::1]",
        "0.0.0.0",
    ]
    .iter()
    .enumerate()
    {
        let row = Told {
            id: format!("forged-{n}"),
            data: format!("http://{host}:{port}"),
        };
        assert_eq!(tell(&b, &[row]), Vec::<String>::new());
        let target = format!("/{n}");
        b.get(&target).await.is_whole(&target, 1000);
        assert_eq!(asked(&b, PeerOutcome::Failed), n as u64 + 1, "{host}");
    }
    let rows = [
        "http://127.0.0.9:25",
        "https://127.0.0.9:8443",
        "http://u@127.0.0.9:8080",
        "http://127.0.0.9:8080/admin",
        "file:///etc/passwd",
        "169.254.169.254",
    ];
    let rows: Vec<Told> = rows
        .iter()
        .map(|url| Told {
            id: (*url).to_owned(),
            data: (*url).to_owned(),
        })
        .collect();
    assert_eq!(tell(&b, &rows).len(), rows.len());
    b.get("/last").await.is_whole("/last", 1000);
    // Nobody has come: what comes now is ours, and the first.
    let own = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("connect");
    let (_, from) = within("a connection", inner.accept())
        .await
        .expect("accept");
    assert_eq!(from, own.local_addr().expect("an address"));
    // Link-local addresses are never permitted, whatever the settings say.
    let everything = caje_node::origin::Permits::new(|_| true);
    for address in [
        "169.254.169.254",
        "fe80::1",
        "::ffff:169.254.169.254",
        "0.0.0.0",
        "::",
    ] {
        assert!(
            !everything.allows(address.parse().expect("an address")),
            "{address}"
        );
    }
}

/// What was purged or invalidated here does not come back from a node that has not heard of it.
#[tokio::test]
async fn a_purged_body_does_not_come_back() {
    for how in ["hard", "soft", "tag", "everything", "invalidated"] {
        let origin = Origin::start().await;
        origin
            .get("/a")
            .answer(fresh(SIZE).header("surrogate-key", "blue"));
        let (a, b) = two(&origin, Mode::Nearest).await;
        a.get("/a").await.is_whole("/a", SIZE);
        a.at_rest().await;
        match how {
            "hard" => purge(&b, url("/a"), false).await,
            "soft" => purge(&b, url("/a"), true).await,
            "tag" => purge(&b, Selector::Tag("blue".into()), false).await,
            "everything" => purge(&b, Selector::Everything, false).await,
            _ => {
                origin.post("/a").answer(OriginAnswer::ok());
                b.post("/a").body("x").await.expect(200);
            }
        }
        let before = origin.requests("/a");
        origin
            .get("/a")
            .answer(fresh(SIZE).version(1).etag("\"v1\""));
        b.get("/a").await.is_version("/a", 1, SIZE);
        assert_eq!(asked(&b, PeerOutcome::Unfit), 1, "{how}");
        assert_eq!(origin.requests("/a"), before + 1, "{how}");
        b.at_rest().await;
        // What is newer than the purge is given and taken.
        assert!(
            b.get("/a").await.is_version("/a", 1, SIZE).head.is_hit(),
            "{how}"
        );
        let c = node(&origin, "c", Mode::Nearest).await;
        tell(&c, &[told("b", b.address())]);
        c.get("/a").await.is_version("/a", 1, SIZE);
        assert_eq!(asked(&c, PeerOutcome::Filled), 1, "{how}");
    }
}

/// A purge that is applied while another node is being asked wins.
#[tokio::test]
async fn a_purge_overtakes_the_answer_of_a_node() {
    let origin = Origin::start().await;
    origin.get("/a").answer(fresh(SIZE).version(1));
    let old = Origin::start().await;
    let gate = Gate::new();
    let held = gate.clone();
    old.prefix("/").respond_with(move |request| {
        let fields = format!("etag: \"v0\"\ncache-control: max-age=600\ncontent-length: {SIZE}");
        let body = slow_server::body_bytes("/a", 0..SIZE);
        // Asked for long ago, by a clock that is an hour ahead.
        let ahead = |ms: u64| Stamp(now().0 + ((3_600_000 + ms) << 16));
        let stamps = Stamps {
            filled: ahead(0),
            validated: ahead(0),
            now: ahead(5),
        };
        let answer = signed(SECRET, request, Some(stamps), &fields, &body);
        OriginAnswer::ok().gate(&held).raw(answer)
    });
    let b = node(&origin, "b", Mode::Nearest).await;
    tell(&b, &[told("old", old.addr())]);
    let first = b.get("/a").start();
    gate.reached().await;
    purge(&b, Selector::Tag("none".into()), false).await;
    purge(&b, Selector::Host("a.example".into()), false).await;
    gate.open();
    first.await.expect("an answer").is_version("/a", 1, SIZE);
    assert_eq!(asked(&b, PeerOutcome::Unfit), 1);
    b.get("/a").await.is_version("/a", 1, SIZE);
}

/// The part that a client wants is asked of who holds it, and what it does not hold of the origin.
#[tokio::test]
async fn a_range_is_filled_from_who_holds_it() {
    let origin = Origin::start().await;
    let size = 5 * BLOCK;
    origin.prefix("/").answer(fresh(size));
    let (a, b) = two(&origin, Mode::Nearest).await;
    a.get("/whole").await.is_whole("/whole", size);
    a.get("/part")
        .range("0-9")
        .await
        .is_part("/part", 0..10, size);
    a.at_rest().await;
    let middle = 2 * BLOCK + 5..3 * BLOCK + 5;
    let text = format!("{}-{}", middle.start, middle.end - 1);
    let got = b.get("/whole").range(&text).await;
    got.is_part("/whole", middle.clone(), size);
    b.at_rest().await;
    assert_eq!(origin.requests("/whole"), 1);
    assert_eq!(b.metrics().peer_response_bytes.get(()), 2 * BLOCK);
    // The last bytes, by a suffix; the rest of it comes from the origin.
    b.get("/whole").await.is_whole("/whole", size);
    b.get("/part")
        .range("0-9")
        .await
        .is_part("/part", 0..10, size);
    assert_eq!(origin.requests("/part"), 1);
    let c = node(&origin, "c", Mode::Nearest).await;
    tell(&c, &[told("a", a.address())]);
    c.get("/part")
        .range(&text)
        .await
        .is_part("/part", middle, size);
    assert_eq!(asked(&c, PeerOutcome::Absent), 1);
    assert_eq!(origin.requests("/part"), 2);
    c.get("/whole")
        .range("-7")
        .await
        .is_part("/whole", size - 7..size, size);
    assert_eq!(asked(&c, PeerOutcome::Filled), 1);
}

/// The variant that a client names is the one that comes.
#[tokio::test]
async fn variants_are_kept_apart() {
    let origin = Origin::start().await;
    for (path, field) in [("/language", "accept-language"), ("/cookie", "cookie")] {
        origin.get(path).respond_with(move |request| {
            let value = request.header(field).unwrap_or("none").to_owned();
            OriginAnswer::ok()
                .body(value)
                .vary(field)
                .cache_control("max-age=600")
        });
    }
    let (a, b) = two(&origin, Mode::Nearest).await;
    a.get("/language")
        .header("accept-language", "de")
        .await
        .says("de");
    a.get("/cookie").await.says("none");
    a.at_rest().await;
    b.get("/language")
        .header("accept-language", "fr")
        .await
        .says("fr");
    b.get("/language")
        .header("accept-language", "de")
        .await
        .says("de");
    assert_eq!(asked(&b, PeerOutcome::Filled), 1);
    // A cookie is no other node's to know.
    b.get("/cookie").header("cookie", "mine").await.says("mine");
    assert_eq!(asked(&b, PeerOutcome::Unfit), 1);
    assert_eq!(origin.requests("/language"), 2);
}

/// Two users: what is one's never reaches the other through another node, and a node is never told who asks.
#[tokio::test]
async fn private_answers_never_cross() {
    let origin = Origin::start().await;
    for (path, control) in [
        ("/private", "private, max-age=600"),
        ("/no-store", "no-store"),
        ("/no-cache", "no-cache"),
        ("/authorised", "max-age=600"),
    ] {
        origin.get(path).respond_with(move |request| {
            let user = ["cookie", "authorization"]
                .iter()
                .find_map(|name| request.header(name));
            let body = user.unwrap_or("nobody").to_owned();
            OriginAnswer::ok().body(body).cache_control(control)
        });
    }
    let listener = Origin::start().await;
    listener.prefix("/").respond_with(|request| {
        OriginAnswer::ok().raw(signed(SECRET, request, None, "content-length: 0", b""))
    });
    for mode in [Mode::Nearest, Mode::Shield] {
        let (a, b) = two(&origin, mode).await;
        let c = node(&origin, "c", mode).await;
        tell(&c, &[told("listener", listener.addr())]);
        for path in ["/private", "/no-store", "/no-cache", "/authorised"] {
            let field = if path == "/authorised" {
                "authorization"
            } else {
                "cookie"
            };
            for ask in [a.get(path), c.get(path)] {
                ask.header(field, CANARY).await.says(CANARY);
            }
            a.at_rest().await;
            for node in [&b, &a] {
                node.get(path).header(field, "mine").await.says("mine");
                let nobody = node.get(path).await.expect(200);
                assert!(!nobody.text().contains(CANARY), "{mode:?} {path}");
            }
        }
    }
    assert!(listener.requests_total() > 0);
    for request in listener.requests_log() {
        assert!(request.header("cookie").is_none() && request.header("authorization").is_none());
        assert_ne!(request.path(), "/authorised");
    }
}

/// Who stands in the manifest's node table is known, and what is said there of one that has gone does no harm.
#[tokio::test]
async fn nodes_find_one_another_in_the_manifest() {
    let origin = Origin::start().await;
    origin.prefix("/").answer(fresh(SIZE));
    let folder = Folder::new();
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        let change = |config: &mut caje_node::Config| {
            in_cluster(config, name, Mode::Nearest, PATIENCE);
            config.manifest.dir = Some(folder.join("shared"));
        };
        nodes.push(Node::with(&origin, change).await);
    }
    for node in &nodes {
        let known = || node.inner().peers().nodes().len();
        until(
            || format!("two others; there are {}", known()),
            || known() == 2,
        )
        .await;
    }
    // Each has been asked how fast it answers, before a client's question needed it.
    for node in &nodes {
        let peers = || node.inner().peers().nodes();
        let probed = || peers().iter().all(|peer| peer.latency().is_some());
        until(|| format!("answers of {:?}", peers()), probed).await;
        assert_eq!(node.metrics().peer_requests.total(), 0);
    }
    nodes[0].get("/a").await.is_whole("/a", SIZE);
    nodes[0].at_rest().await;
    for node in &nodes[1..] {
        node.get("/a").await.is_whole("/a", SIZE);
        node.at_rest().await;
    }
    assert_eq!(origin.requests("/a"), 1);
    nodes.remove(0).drain().await;
    let began = Instant::now();
    for n in 0..5 {
        let target = format!("/{n}");
        nodes[0].get(&target).await.is_whole(&target, SIZE);
    }
    assert!(asked(&nodes[0], PeerOutcome::Failed) <= tries(began));
}

/// Without a secret nobody is asked, and nobody is answered as a node.
#[tokio::test]
async fn without_a_secret_nodes_do_not_talk() {
    let origin = Origin::start().await;
    origin.get("/a").answer(fresh(1000));
    let a = node(&origin, "a", Mode::Nearest).await;
    let b = Node::start(&origin).await;
    tell(&a, &[told("b", b.address())]);
    tell(&b, &[told("a", a.address())]);
    b.get("/a").await.is_whole("/a", 1000);
    b.at_rest().await;
    assert_eq!(b.metrics().peer_requests.total(), 0);
    a.get("/a").await.is_whole("/a", 1000);
    assert_eq!(asked(&a, PeerOutcome::Untrusted), 1);
    assert_eq!(origin.requests("/a"), 2);
}
