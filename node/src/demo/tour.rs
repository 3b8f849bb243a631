//! The tour: what a node does for its clients, one step after the other, each answer checked byte for
//! byte and each claim of a `Cache-Status` against what the origin has counted.
//!
//! Nothing here waits for time to pass but where time is the subject (a second of freshness); all else
//! waits for a gate of the origin or for a counter.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use caje_admin_api::{Inspection, PurgeReport};

use super::client::{Answer, Client, Head, Incoming, PATIENCE};
use super::numbers::{Counts, Numbers, escaped, number};
use super::screen::Screen;
use super::stage::{EVERYWHERE, REGIONS, Stage};
use super::stop::Stop;
use crate::clock;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The nodes' block size.
const BLOCK: u64 = 256 * KIB;

/// Of the site that every node is to hold.
const PAGES: usize = 12;

/// More of them, while a node is away.
const LATER_PAGES: usize = 4;

/// Plays everything, and ends what is on the stage. Fails at the first answer that is not as it should
/// be.
pub fn play(stage: Stage, screen: &Screen, stop: &Stop) -> anyhow::Result<()> {
    let began = Instant::now();
    screen.addresses(&stage);
    let mut tour = Tour {
        // Whatever an earlier demo has left in a kept folder, these URLs are new.
        number: clock::now_secs(),
        client: stage.client.clone(),
        stage,
        stop: stop.clone(),
    };
    for (name, step) in STEPS {
        match step(&mut tour) {
            Ok(seen) => {
                let mut lines = seen.lines();
                screen.tick(name, lines.next().unwrap_or_default());
                lines.for_each(|line| screen.note(line));
            }
            Err(error) => {
                if !stop.is_set() {
                    screen.cross(name);
                    screen.say(&tour.stage.last_words());
                }
                return Err(error.context(format!("the tour's step `{name}`")));
            }
        }
    }
    tour.stage.end().context("ending the nodes")?;
    let took = began.elapsed().as_secs_f64();
    let seen = format!("all three nodes drained and ended well; {took:.1} s in all");
    screen.tick("end", &seen);
    Ok(())
}

type Step = fn(&mut Tour) -> anyhow::Result<String>;

const STEPS: [(&str, Step); 11] = [
    ("miss", miss),
    ("hit", hit),
    ("collapsed", collapsed),
    ("range", range),
    ("revalidate", stale_while_revalidate),
    ("stale", stale),
    ("restart", restart),
    ("live", live),
    ("everywhere", everywhere),
    ("refilled", refilled),
    ("purged", purged),
];

struct Tour {
    stage: Stage,
    client: Client,
    stop: Stop,
    number: u64,
}

/// A URL of the tour: its body is a function of the path, its key differs from tour to tour.
struct Target {
    path: String,
    size: u64,
    text: String,
}

impl Tour {
    fn target(&self, size: u64, name: &str, options: &str) -> Target {
        let path = format!("/bytes/{size}/tour/{name}");
        let text = format!("{path}?tour={}{options}", self.number);
        Target { path, size, text }
    }

    fn node(&self, region: &str) -> anyhow::Result<SocketAddr> {
        Ok(self.stage.node(region)?.clients)
    }

    fn get(&self, region: &str, target: &Target) -> anyhow::Result<Answer> {
        self.client.get(self.node(region)?, &target.text)
    }

    /// Asks and checks that the whole body came, right in every byte.
    fn get_whole(&self, region: &str, target: &Target) -> anyhow::Result<Head> {
        let answer = self.get(region, target)?;
        whole(&answer, target)?;
        Ok(answer.head)
    }

    fn send(&self, region: &str, target: &Target) -> anyhow::Result<super::client::Sent> {
        self.client
            .send("GET", self.node(region)?, &target.text, &[])
    }

    fn counts(&self, target: &str) -> anyhow::Result<Counts> {
        Counts::of(&self.client, self.stage.origin, target)
    }

    fn expect_count(&self, target: &str, counter: &str, expected: u64) -> anyhow::Result<()> {
        let found = self.counts(target)?.get(counter)?;
        ensure!(
            found == expected,
            "the origin counts {found} {counter} of {target}, not {expected}"
        );
        Ok(())
    }

    /// Waits until the origin has sent `count` answers for `target` to their end.
    fn wait_finished(&self, target: &str, count: u64) -> anyhow::Result<()> {
        let what = format!("the origin to finish {count} answers for {target}");
        self.stop.until(&what, PATIENCE, || {
            let finished = self.counts(target)?.get("finished")?;
            Ok((finished >= count).then_some(()))
        })
    }

    fn gate(&self, order: &str, name: &str) -> anyhow::Result<()> {
        let path = format!("/_gate/{order}?name={name}");
        let answer = self.client.post(self.stage.origin, &path)?;
        ensure!(
            answer.head.status == 200,
            "{path} answers {}",
            answer.head.status
        );
        Ok(())
    }

    fn arrivals(&self, gate: &str) -> anyhow::Result<u64> {
        let path = format!("/_gate?name={gate}");
        let answer = self.client.get(self.stage.origin, &path)?;
        number(&String::from_utf8(answer.body)?, "arrivals")
    }

    fn wait_arrivals(&self, gate: &str, count: u64) -> anyhow::Result<()> {
        let what = format!("{count} answers at the origin's gate");
        self.stop.until(&what, PATIENCE, || {
            Ok((self.arrivals(gate)? >= count).then_some(()))
        })
    }

    /// Waits until no fill is in flight: what comes now is no part of one.
    fn settle(&self, region: &str) -> anyhow::Result<()> {
        self.stop.until("all fills to end", PATIENCE, || {
            Ok((self.numbers(region)?.total("caje_fills") == 0).then_some(()))
        })
    }

    fn numbers(&self, region: &str) -> anyhow::Result<Numbers> {
        Numbers::of(&self.client, self.stage.node(region)?.admin)
    }
}

/// Never asked for before: the origin is asked, the bytes stream through and are stored.
fn miss(tour: &mut Tour) -> anyhow::Result<String> {
    let target = tour.target(64 * KIB, "hello", "");
    let head = tour.get_whole("lhr", &target)?;
    let status = CacheStatus::of(&head)?;
    status.expect("\"caje/lhr\"; fwd=uri-miss; fwd-status=200; stored")?;
    tour.expect_count(&target.text, "requests", 1)?;
    Ok(format!(
        "64 KiB from the origin, through lhr and into its store\n{}",
        status.0
    ))
}

/// Asked for again: the origin is left alone. So it is when a client has the bytes already.
fn hit(tour: &mut Tour) -> anyhow::Result<String> {
    let target = tour.target(64 * KIB, "hello", "");
    tour.settle("lhr")?;
    let head = tour.get_whole("lhr", &target)?;
    let status = CacheStatus::of(&head)?;
    status.expect("\"caje/lhr\"; hit")?;
    let ttl = status.ttl()?;
    ensure!(
        (3500..=3600).contains(&ttl),
        "an hour of freshness became {ttl} s"
    );
    ensure!(head.field("age").is_some(), "a hit without Age");
    let etag = head.field("etag").context("the answer has no ETag")?;
    let fields = [("If-None-Match", etag)];
    let node = tour.node("lhr")?;
    let again = tour.client.get_with(node, &target.text, &fields)?;
    ensure!(
        again.head.status == 304 && again.body.is_empty(),
        "If-None-Match with the right ETag is answered with {}",
        again.head.status
    );
    tour.expect_count(&target.text, "requests", 1)?;
    Ok(format!(
        "the same from lhr alone; 304 for who has it already\n{}",
        status.0
    ))
}

/// Five clients want one body while the origin still makes it: two before its head has come, two when
/// half of the body is there. The origin is asked once, and nobody waits for the end.
fn collapsed(tour: &mut Tour) -> anyhow::Result<String> {
    let size = MIB;
    let half = (size / 2) as usize;
    let [head_gate, body_gate] = ["head", "body"].map(|at| format!("tour-{}-{at}", tour.number));
    let options = format!("&gate={head_gate}&gateat={half},{body_gate}");
    let target = tour.target(size, "popular", &options);
    let joined_before = tour.numbers("lhr")?.total("caje_fills_joined_total");

    let mut clients = vec![tour.send("lhr", &target)?];
    tour.wait_arrivals(&head_gate, 1)?;
    for _ in 0..2 {
        clients.push(tour.send("lhr", &target)?);
    }
    tour.stop
        .until("two requests to join the fill", PATIENCE, || {
            let joined = tour.numbers("lhr")?.total("caje_fills_joined_total");
            Ok((joined >= joined_before + 2).then_some(()))
        })?;
    tour.gate("open", &head_gate)?;

    let mut readers = Vec::new();
    for client in clients {
        readers.push(first_half(client.head()?, &target, half)?);
    }
    for _ in 0..2 {
        let client = tour.send("lhr", &target)?;
        readers.push(first_half(client.head()?, &target, half)?);
    }
    tour.gate("open", &body_gate)?;
    let mut joined = None;
    for (place, reader) in readers.into_iter().enumerate() {
        let answer = reader.rest()?;
        verify(&target.path, half as u64..size, &answer.body)?;
        let status = CacheStatus::of(&answer.head)?;
        let collapsed = status.has("collapsed");
        ensure!(
            collapsed == (place > 0),
            "client {place} of one fill is told `{}`",
            status.0
        );
        joined = Some(status);
    }
    tour.expect_count(&target.text, "requests", 1)?;
    let joined = joined.context("nobody joined")?;
    Ok(format!(
        "5 clients, 1 origin request; each had half of it while the origin held the rest\n{}",
        joined.0
    ))
}

fn first_half(mut incoming: Incoming, target: &Target, half: usize) -> anyhow::Result<Incoming> {
    ensure!(
        incoming.head.status == 200,
        "status {}",
        incoming.head.status
    );
    let bytes = incoming
        .take(half)
        .context("the first half, while the origin holds the second")?;
    verify(&target.path, 0..half as u64, &bytes)?;
    Ok(incoming)
}

/// A range deep inside a body of which nothing is here: the block around it is fetched, no more. The
/// next range is answered from that block, and one that reaches beyond it fetches the next block.
fn range(tour: &mut Tour) -> anyhow::Result<String> {
    let target = tour.target(GIB, "film", "");
    let block = 3433 * BLOCK;
    let inside = block + 59_648..block + 59_648 + 64 * KIB;
    let head = tour.get_range("ewr", &target, inside)?;
    let status = CacheStatus::of(&head)?;
    status.expect("\"caje/ewr\"; fwd=uri-miss; fwd-status=206; stored")?;
    tour.wait_finished(&target.text, 1)?;
    tour.settle("ewr")?;
    tour.expect_count(&target.text, "range", 1)?;
    tour.expect_count(&target.text, "bytes", BLOCK)?;

    let inside = block + 200_000..block + 210_000;
    let head = tour.get_range("ewr", &target, inside)?;
    CacheStatus::of(&head)?.expect("\"caje/ewr\"; hit")?;
    tour.expect_count(&target.text, "requests", 1)?;

    let across = block + BLOCK - 1000..block + BLOCK + 1000;
    tour.get_range("ewr", &target, across)?;
    tour.wait_finished(&target.text, 2)?;
    tour.expect_count(&target.text, "bytes", 2 * BLOCK)?;
    Ok(format!(
        "64 KiB at 900 MB of an absent 1 GiB: one block of 256 KiB was fetched\n{}",
        status.0
    ))
}

impl Tour {
    fn get_range(&self, region: &str, target: &Target, span: Range<u64>) -> anyhow::Result<Head> {
        let (from, last) = (span.start, span.end - 1);
        let wanted = format!("bytes={from}-{last}");
        let node = self.node(region)?;
        let fields = [("Range", wanted.as_str())];
        let answer = self.client.get_with(node, &target.text, &fields)?;
        let head = answer.head;
        ensure!(
            head.status == 206,
            "{wanted} is answered with {}",
            head.status
        );
        let expected = format!("bytes {from}-{last}/{}", target.size);
        let found = head.field("content-range").unwrap_or("nothing");
        ensure!(
            found == expected,
            "{wanted} is answered with Content-Range: {found}"
        );
        verify(&target.path, span, &answer.body)?;
        Ok(head)
    }
}

/// Past its second of freshness, within its minute of grace: clients get it at once, while the origin
/// takes its time to confirm it.
fn stale_while_revalidate(tour: &mut Tour) -> anyhow::Result<String> {
    let gate = format!("tour-{}-news", tour.number);
    let options = format!("&cc=max-age=1,stale-while-revalidate=60&gate={gate}");
    let target = tour.target(4 * KIB, "news", &options);
    tour.gate("one", &gate)?;
    tour.get_whole("lhr", &target)?;
    tour.settle("lhr")?;
    // Old enough once a request sends the node to the origin, where the gate now holds the answer.
    tour.stop.until("a validation", PATIENCE, || {
        let status = CacheStatus::of(&tour.get_whole("lhr", &target)?)?;
        status.expect("\"caje/lhr\"; hit")?;
        Ok((tour.arrivals(&gate)? >= 2).then_some(()))
    })?;
    let stale = CacheStatus::of(&tour.get_whole("lhr", &target)?)?;
    stale.expect("\"caje/lhr\"; hit")?;
    ensure!(stale.ttl()? <= 0, "`{}` while the origin is asked", stale.0);
    tour.gate("open", &gate)?;
    let what = "the validated response to be fresh again";
    let fresh = tour.stop.until(what, PATIENCE, || {
        let status = CacheStatus::of(&tour.get_whole("lhr", &target)?)?;
        Ok((status.ttl()? > 0).then_some(status))
    })?;
    // More than one, where this took longer than the second of freshness.
    let confirmed = tour.counts(&target.text)?.get("not_modified")?;
    ensure!(confirmed >= 1, "the origin has answered no 304");
    Ok(format!(
        "stale: served at once while the origin was still thinking; a 304 made it fresh\n{}  then  {}",
        stale.0, fresh.0
    ))
}

/// The origin dies. What is stored is served, stale; what is not is a 502 with its reason. The origin
/// comes back, and everything is fresh again.
fn stale(tour: &mut Tour) -> anyhow::Result<String> {
    let target = tour.target(32 * KIB, "old", "&cc=max-age=1");
    tour.get_whole("lhr", &target)?;
    tour.settle("lhr")?;
    tour.stage.crash_origin();
    let stale = tour.stop.until("a stale answer", PATIENCE, || {
        let status = CacheStatus::of(&tour.get_whole("lhr", &target)?)?;
        Ok((!status.has("hit")).then_some(status))
    })?;
    stale.expect("\"caje/lhr\"; fwd=stale")?;
    ensure!(stale.has("detail"), "`{}` does not say why", stale.0);

    let absent = tour.target(KIB, "never-seen", "");
    let answer = tour.get("lhr", &absent)?;
    let refused = CacheStatus::of(&answer.head)?;
    ensure!(
        answer.head.status == 502,
        "status {}: {}",
        answer.head.status,
        refused.0
    );
    refused.expect("\"caje/lhr\"; fwd=uri-miss")?;
    ensure!(refused.has("detail"), "`{}` does not say why", refused.0);

    tour.stage
        .start_origin()
        .context("starting the origin again")?;
    tour.stop.until("a fresh answer", PATIENCE, || {
        let status = CacheStatus::of(&tour.get_whole("lhr", &target)?)?;
        Ok(status.has("fwd-status").then_some(()))
    })?;
    tour.get_whole("lhr", &absent)?;
    Ok(format!(
        "origin killed: what is stored is served, the rest is 502; then it came back\n{}  and  {}",
        stale.0, refused.0
    ))
}

/// A node ends and starts again: what it had is served as before.
fn restart(tour: &mut Tour) -> anyhow::Result<String> {
    let target = tour.target(64 * KIB, "hello", "");
    tour.stage.restart_node("lhr")?;
    // Others may have purged meanwhile: until the node knows, it validates what it had.
    tour.stop.until("the log of purges", PATIENCE, || {
        let unread = tour.numbers("lhr")?.total("caje_purge_log_unread");
        Ok((unread == 0).then_some(()))
    })?;
    let status = CacheStatus::of(&tour.get_whole("lhr", &target)?)?;
    status.expect("\"caje/lhr\"; hit")?;
    // The origin was started after the tour's first step, and has not heard of this URL since.
    tour.expect_count(&target.text, "requests", 0)?;
    Ok(format!(
        "lhr was drained and started again: it still has the first step's body\n{}",
        status.0
    ))
}

/// Two players watch a live presentation: playlists stay up to date, and each segment leaves the origin
/// once.
fn live(tour: &mut Tour) -> anyhow::Result<String> {
    let node = tour.node("cdg")?;
    let show = "/hls/manual";
    let mark = format!("?tour={}", tour.number);
    let master = tour
        .client
        .get(node, &format!("{show}/master.m3u8{mark}"))?;
    let variant = playlist_lines(&master)?
        .into_iter()
        .next()
        .context("the presentation has no variants")?;
    let index = format!("{show}/{variant}");
    let folder = index
        .rsplit_once('/')
        .map_or("", |(folder, _)| folder)
        .to_owned();

    let mut played: Vec<String> = Vec::new();
    let mut bytes = 0;
    for moves in [0, 1, 2] {
        if moves > 0 {
            let path = format!("{show}/_tick?n={moves}");
            let moved = tour.client.post(tour.stage.origin, &path)?;
            ensure!(
                moved.head.status == 200,
                "{path} answers {}",
                moved.head.status
            );
        }
        // The origin's own word, past all caches.
        let truth = tour.client.get(tour.stage.origin, &index)?;
        let what = "the live playlist to move on";
        let playlist = tour.stop.until(what, PATIENCE, || {
            let answer = tour.client.get(node, &format!("{index}{mark}"))?;
            ensure!(
                answer.head.status == 200,
                "{index}: status {}",
                answer.head.status
            );
            Ok((answer.body == truth.body).then_some(answer))
        })?;
        for name in playlist_lines(&playlist)? {
            let path = format!("{folder}/{name}");
            if played.contains(&path) {
                continue;
            }
            let segment = format!("{path}{mark}");
            for player in ["the first", "the second"] {
                let answer = tour.client.get(node, &segment)?;
                let expected = slow_server::hls_body(&path);
                let expected = expected.with_context(|| format!("{path} is no segment"))?;
                ensure!(
                    answer.head.status == 200,
                    "{path}: status {}",
                    answer.head.status
                );
                ensure!(answer.body == expected, "{path} is not what the origin has");
                let status = CacheStatus::of(&answer.head)?;
                match player {
                    "the first" => status.expect("\"caje/cdg\"; fwd=uri-miss")?,
                    _ => ensure!(
                        status.has("hit") || status.has("collapsed"),
                        "{player} player gets {path} by `{}`",
                        status.0
                    ),
                }
                bytes += answer.body.len() as u64;
            }
            tour.expect_count(&segment, "requests", 1)?;
            played.push(path);
        }
    }
    ensure!(
        played.len() == 8,
        "{} segments in three windows of five",
        played.len()
    );
    Ok(format!(
        "HLS, 2 players: {} segments each, {} KiB; each segment left the origin once\nthe playlist moved on twice, and the node's copy with it",
        played.len(),
        bytes / KIB
    ))
}

/// What clients asked for in one region comes to the others, where nobody has asked for it.
fn everywhere(tour: &mut Tour) -> anyhow::Result<String> {
    tour.gate("open", &tour.page_gate())?;
    for place in 0..PAGES {
        let head = tour.get_shared("cdg", &tour.page(place))?;
        CacheStatus::of(&head)?.expect("\"caje/cdg\"; fwd=uri-miss; stored")?;
    }
    let since = Instant::now();
    let pages: Vec<Target> = (0..PAGES).map(|place| tour.page(place)).collect();
    let mut shown = Vec::new();
    for region in ["lhr", "ewr"] {
        shown.push(tour.wait_held(region, &pages)?.0);
    }
    let took = since.elapsed().as_millis();
    let asked = tour.requests_for(&pages)?;
    Ok(format!(
        "{PAGES} pages asked for in cdg alone: {took} ms later lhr and ewr had them too\n{}; the origin was asked {asked} times for them",
        shown.join("  and  ")
    ))
}

/// A node is killed and loses its disk; more is asked for elsewhere. Back again, it fetches all of it by itself.
fn refilled(tour: &mut Tour) -> anyhow::Result<String> {
    tour.stage.lose_node("ewr")?;
    for place in PAGES..PAGES + LATER_PAGES {
        tour.get_shared("lhr", &tour.page(place))?;
    }
    let since = Instant::now();
    tour.stage.start_again("ewr")?;
    let pages: Vec<Target> = (0..PAGES + LATER_PAGES)
        .map(|place| tour.page(place))
        .collect();
    let status = tour.wait_held("ewr", &pages)?;
    let took = since.elapsed().as_millis();
    Ok(format!(
        "ewr was killed and its disk emptied, {LATER_PAGES} more pages came up in lhr; {took} ms after its start it had all {}\n{}",
        pages.len(),
        status.0
    ))
}

/// Purged in one region, and gone in all: while the origin holds back new answers, no node has an old one.
fn purged(tour: &mut Tour) -> anyhow::Result<String> {
    let pages: Vec<Target> = (0..PAGES + LATER_PAGES)
        .map(|place| tour.page(place))
        .collect();
    for region in REGIONS {
        tour.wait_held(region, &pages)?;
    }
    let gate = tour.page_gate();
    tour.gate("close", &gate)?;
    let before = tour.requests_for(&pages)?;
    let ask = format!("{{\"tags\":[\"{}\"]}}", tour.page_tag());
    let admin = tour.stage.node("cdg")?.admin;
    let since = Instant::now();
    let answer = tour
        .client
        .order(admin, "/_caje/v1/purge", &tour.stage.token, &ask)?;
    let took = since.elapsed().as_millis();
    let text = String::from_utf8(answer.body)?;
    ensure!(
        answer.head.status == 200,
        "the purge is answered with {}: {text}",
        answer.head.status
    );
    let report: PurgeReport = serde_json::from_str(&text).context("reading the purge's answer")?;
    let done = report.nodes.iter().filter(|node| node.done).count();
    let matched: u64 = report.nodes.iter().map(|node| node.matched).sum();
    ensure!(
        done == REGIONS.len() && matched == (pages.len() * REGIONS.len()) as u64,
        "of three nodes with {} pages each, {text}",
        pages.len()
    );
    for region in REGIONS {
        for page in &pages {
            let left = tour.variants(region, page)?;
            ensure!(left == 0, "{region} has {left} of {} left", page.text);
        }
    }
    tour.gate("open", &gate)?;
    for region in REGIONS {
        tour.wait_held(region, &pages)?;
    }
    let again = tour.requests_for(&pages)? - before;
    ensure!(
        again >= pages.len() as u64,
        "the origin was asked {again} times for {} purged pages",
        pages.len()
    );
    Ok(format!(
        "a tag purged in cdg: {took} ms later {done} nodes said that {matched} responses were gone, and had none\nthen the origin let new ones out, and all nodes had them again"
    ))
}

impl Tour {
    /// One of the pages that every node is to hold.
    fn page(&self, place: usize) -> Target {
        let (tag, gate) = (self.page_tag(), self.page_gate());
        let options = format!("&h=surrogate-key:{tag}&gate={gate}");
        self.target(16 * KIB, &format!("page-{place}"), &options)
    }

    fn page_tag(&self) -> String {
        format!("tour-{}", self.number)
    }

    fn page_gate(&self) -> String {
        format!("tour-{}-pages", self.number)
    }

    /// Asks for a page of the site that all nodes serve.
    fn get_shared(&self, region: &str, target: &Target) -> anyhow::Result<Head> {
        let fields = [("Host", EVERYWHERE)];
        let answer = self
            .client
            .get_with(self.node(region)?, &target.text, &fields)?;
        whole(&answer, target)?;
        Ok(answer.head)
    }

    /// What a node answers from what it holds, if it does: it is not allowed to ask anybody else.
    fn held(&self, region: &str, target: &Target) -> anyhow::Result<Option<CacheStatus>> {
        let fields = [("Host", EVERYWHERE), ("Cache-Control", "only-if-cached")];
        let answer = self
            .client
            .get_with(self.node(region)?, &target.text, &fields)?;
        if answer.head.status == 504 {
            return Ok(None);
        }
        whole(&answer, target)?;
        let status = CacheStatus::of(&answer.head)?;
        if !status.has("hit") {
            // It came while it was asked for, or the node does not trust it yet.
            return Ok(None);
        }
        Ok(Some(status))
    }

    /// How much of this a node has stored, as it tells an operator.
    fn variants(&self, region: &str, target: &Target) -> anyhow::Result<usize> {
        let url = escaped(&format!("http://{EVERYWHERE}{}", target.text));
        let token = format!("Bearer {}", self.stage.token);
        let answer = self.client.get_with(
            self.stage.node(region)?.admin,
            &format!("/_caje/v1/inspect?url={url}"),
            &[("Authorization", &token)],
        )?;
        let text = String::from_utf8(answer.body)?;
        let told: Inspection = serde_json::from_str(&text).context("reading what is stored")?;
        let own = format!("demo-{region}");
        let own = told.nodes.into_iter().find(|node| node.node == own);
        let own = own.with_context(|| format!("{region} does not tell of itself: {text}"))?;
        Ok(own.variants.len())
    }

    /// Waits until a node holds all of these; what it says with the last.
    fn wait_held(&self, region: &str, targets: &[Target]) -> anyhow::Result<CacheStatus> {
        let mut last = None;
        for target in targets {
            let what = format!("{region} to hold {}", target.text);
            let held = || self.held(region, target);
            last = Some(self.stop.until(&what, PATIENCE, held)?);
        }
        last.context("nothing to hold")
    }

    /// How often the origin was asked for these.
    fn requests_for(&self, targets: &[Target]) -> anyhow::Result<u64> {
        let mut sum = 0;
        for target in targets {
            sum += self.counts(&target.text)?.get("requests")?;
        }
        Ok(sum)
    }
}

/// The lines of a playlist that name something.
fn playlist_lines(answer: &Answer) -> anyhow::Result<Vec<String>> {
    ensure!(
        answer.head.status == 200,
        "a playlist: status {}",
        answer.head.status
    );
    let kind = answer.head.field("content-type").unwrap_or_default();
    ensure!(
        kind == "application/vnd.apple.mpegurl",
        "a playlist of type `{kind}`"
    );
    let text = std::str::from_utf8(&answer.body).context("reading a playlist")?;
    ensure!(text.starts_with("#EXTM3U\n"), "no playlist: {text}");
    let names = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(names.map(str::to_owned).collect())
}

/// Status 200 and the whole body, right in every byte.
fn whole(answer: &Answer, target: &Target) -> anyhow::Result<()> {
    let status = answer.head.status;
    if status != 200 {
        let why = answer
            .head
            .field("cache-status")
            .unwrap_or("no Cache-Status");
        bail!("{}: status {status} ({why})", target.text);
    }
    verify(&target.path, 0..target.size, &answer.body)
}

/// Whether these are the bytes of `span` of the body of `path`.
fn verify(path: &str, span: Range<u64>, bytes: &[u8]) -> anyhow::Result<()> {
    let expected = span.end - span.start;
    ensure!(
        bytes.len() as u64 == expected,
        "{path}: {} bytes instead of {expected}",
        bytes.len()
    );
    match slow_server::verify_body(path, span.start, bytes) {
        Ok(()) => Ok(()),
        Err(mismatch) => bail!("{path}: {mismatch}"),
    }
}

/// The `Cache-Status` of an answer (RFC 9211), with one member.
struct CacheStatus(String);

impl CacheStatus {
    fn of(head: &Head) -> anyhow::Result<CacheStatus> {
        let text = head
            .field("cache-status")
            .context("an answer without Cache-Status")?;
        Ok(CacheStatus(text.to_owned()))
    }

    fn parameters(&self) -> impl Iterator<Item = &str> {
        self.0.split(';').map(str::trim)
    }

    /// Whether there is a parameter of this name.
    fn has(&self, name: &str) -> bool {
        let mut parameters = self.parameters().skip(1);
        parameters.any(|parameter| parameter.split('=').next() == Some(name))
    }

    fn ttl(&self) -> anyhow::Result<i64> {
        let found = self
            .parameters()
            .find_map(|parameter| parameter.strip_prefix("ttl="));
        let digits = found.with_context(|| format!("`{}` has no ttl", self.0))?;
        digits.parse().context("reading a ttl")
    }

    /// Checks that all these parameters are there, after the name of the node.
    fn expect(&self, expected: &str) -> anyhow::Result<()> {
        let missing = expected
            .split(';')
            .map(str::trim)
            .find(|wanted| !self.parameters().any(|parameter| parameter == *wanted));
        match missing {
            None => Ok(()),
            Some(missing) => bail!("Cache-Status: `{}` lacks `{missing}`", self.0),
        }
    }
}
