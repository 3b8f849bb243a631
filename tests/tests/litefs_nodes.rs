//! Nodes on real LiteFS: no request waits for it, whatever happens to it, and it loses nothing by them.

use std::fs;
use std::time::{Duration, Instant};

use caje_admin_api::{PurgeReport, path};
use caje_tests::{Hand, LiteFsNode, Origin, OriginAnswer};
use nix::sys::signal::Signal;

use crate::cluster::{answer_with_tags, measure_tags};

/// Of a body of the plays.
const SIZE: u64 = 4096;

/// What no request may take, even on a machine that does much else. LiteFS's own waits are ten seconds and more.
const TOO_LONG: Duration = Duration::from_secs(5);

/// Nodes that share what they record, and nothing else.
const QUIET: &str = "peer = 'off'\n[populate]\nenabled = false";

/// What happens to LiteFS.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    None,
    /// Each LiteFS is stopped: whoever touches a mount stands still.
    Frozen,
    PrimaryKilled,
    /// On one node: the folder is there, and is empty.
    MountGone,
}

impl Trouble {
    fn begin(self, nodes: &mut [LiteFsNode]) {
        match self {
            Trouble::None => {}
            Trouble::Frozen => nodes.iter().for_each(|node| node.litefs.pause()),
            Trouble::PrimaryKilled => nodes[0].litefs.kill(),
            Trouble::MountGone => nodes[2].litefs.lose_mount(),
        }
    }

    fn end(self, nodes: &mut [LiteFsNode]) {
        match self {
            Trouble::None => {}
            Trouble::Frozen => nodes.iter().for_each(|node| node.litefs.resume()),
            Trouble::PrimaryKilled => nodes[0].litefs.restart(),
            Trouble::MountGone => nodes[2].litefs.restart(),
        }
    }
}

/// How long misses and hits took.
#[derive(Default)]
struct Took {
    misses: Vec<Duration>,
    hits: Vec<Duration>,
}

/// Asks each node for `count` bodies of its own, twice each.
async fn load(nodes: &[LiteFsNode], name: &str, count: usize, took: &mut Took) -> Vec<String> {
    let mut targets = Vec::new();
    for number in 0..count {
        for (place, node) in nodes.iter().enumerate() {
            let target = format!("/bytes/{SIZE}/{name}/{place}/{number}");
            for times in [&mut took.misses, &mut took.hits] {
                let since = Instant::now();
                node.get(&target).await.is_whole(&target, SIZE);
                times.push(since.elapsed());
            }
            targets.push(target);
        }
    }
    targets
}

/// Clients wait neither for a LiteFS that stands still, nor for a primary or a mount that is gone; what was recorded
/// meanwhile is on all nodes afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_waits_for_litefs() {
    let origin = Origin::start().await;
    let Ok(mut nodes) = LiteFsNode::cluster(&origin, 3, QUIET).await else {
        return;
    };
    let mut took = Took::default();
    let mut targets = load(&nodes, "before", 5, &mut took).await;
    for trouble in [Trouble::Frozen, Trouble::PrimaryKilled, Trouble::MountGone] {
        trouble.begin(&mut nodes);
        let mut took = Took::default();
        targets.extend(load(&nodes, &format!("{trouble:?}"), 20, &mut took).await);
        let slowest = took.misses.iter().chain(&took.hits).max();
        let slowest = slowest.expect("requests");
        assert!(*slowest < TOO_LONG, "{trouble:?}: {slowest:?}");
        trouble.end(&mut nodes);
        for node in &mut nodes {
            node.all_published_at_last().await;
        }
    }
    for node in &nodes {
        node.until_recorded(targets.len()).await;
    }
}

fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort();
    times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3
}

/// Prints what stands in docs/performance.md: hits and misses with each trouble and without, by turns.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo test --release -p caje-tests what_requests_take -- --ignored --nocapture"]
async fn what_requests_take_while_litefs_is_in_trouble() {
    const ROUNDS: usize = 8;
    const COUNT: usize = 100;
    let origin = Origin::start().await;
    let Ok(mut nodes) = LiteFsNode::cluster(&origin, 3, QUIET).await else {
        return;
    };
    let all = [
        Trouble::None,
        Trouble::Frozen,
        Trouble::None,
        Trouble::PrimaryKilled,
        Trouble::None,
        Trouble::MountGone,
    ];
    let mut took: Vec<Took> = all.iter().map(|_| Took::default()).collect();
    for round in 0..ROUNDS {
        for (place, trouble) in all.into_iter().enumerate() {
            trouble.begin(&mut nodes);
            let name = format!("{round}/{place}");
            load(&nodes, &name, COUNT, &mut took[place]).await;
            trouble.end(&mut nodes);
            for node in &mut nodes {
                node.all_published_at_last().await;
            }
        }
    }
    println!("| LiteFS | hit p50 | p99 | miss p50 | p99 | of each |");
    for (trouble, took) in all.iter().zip(&mut took) {
        let [a, b] = [50, 99].map(|percent| percentile(&mut took.hits, percent));
        let [c, d] = [50, 99].map(|percent| percentile(&mut took.misses, percent));
        let count = took.hits.len();
        println!("| {trouble:?} | {a:.2} ms | {b:.2} ms | {c:.2} ms | {d:.2} ms | {count} |");
    }
}

/// How long a tag's purge takes on real LiteFS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: cargo test --release -p caje-tests a_tag_of_ten_thousand -- --ignored --nocapture"]
async fn a_tag_of_ten_thousand_on_litefs() {
    let origin = Origin::start().await;
    answer_with_tags(&origin);
    let settings = format!("record = 'off'\n{QUIET}");
    let Ok(nodes) = LiteFsNode::cluster(&origin, 3, &settings).await else {
        return;
    };
    let addresses: Vec<_> = nodes.iter().map(|node| node.program().address()).collect();
    measure_tags(&addresses, async |place, wish| {
        let got = nodes[place].order("POST", path::PURGE, &wish).await;
        serde_json::from_slice(&got.body).expect("a report")
    })
    .await;
}

/// What the kernel knows of the children that a process has waited for: their page faults, of which each has had
/// some. And those that it has not waited for.
fn children(id: u32) -> (u64, String) {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).expect("a process");
    // Behind the name, which is in brackets and may contain anything.
    let (_, fields) = stat.rsplit_once(") ").expect("a name");
    let field = |number: usize| -> u64 {
        let text = fields.split(' ').nth(number - 3).expect("a field");
        text.parse().expect("a number")
    };
    let mut living = String::new();
    for thread in fs::read_dir(format!("/proc/{id}/task")).expect("threads") {
        let path = thread.expect("a thread").path().join("children");
        // The thread may have ended.
        living += &fs::read_to_string(path).unwrap_or_default();
    }
    (field(11) + field(13), living)
}

/// Whether it has ever had a child.
fn has_had_children(id: u32) -> bool {
    // Who ignores it has its children waited for by the kernel, which then counts nothing.
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("a process");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = u64::from_str_radix(ignored.expect("a line").trim(), 16).expect("a number");
    let child_ended = 1 << (Signal::SIGCHLD as u64 - 1);
    assert_eq!(ignored & child_ended, 0, "SIGCHLD is ignored");
    children(id) != (0, String::new())
}

/// A child would release the lock that a publication holds.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_no_child() {
    let hand = env!("CARGO_BIN_EXE_litefs_hand");
    let mut parent = Hand::start(hand);
    assert!(!has_had_children(parent.id()));
    assert_eq!(parent.does("child", &[]), "done");
    assert!(has_had_children(parent.id()), "a child goes unseen");

    let origin = Origin::start().await;
    let Ok(mut nodes) = LiteFsNode::cluster(&origin, 2, "").await else {
        return;
    };
    let mut took = Took::default();
    let targets = load(&nodes, "a", 20, &mut took).await;
    for node in &nodes {
        node.until_recorded(targets.len()).await;
        node.program().signal(Signal::SIGHUP);
        node.until_metric("caje_config_reloads_total{result=\"ok\"}", 1.0)
            .await;
        let tag = "{\"tags\":[\"none\"]}";
        node.order("POST", "/_caje/v1/purge", tag).await.expect(200);
        node.order("GET", "/_caje/v1/doctor", "").await.expect(200);
    }
    nodes[0].litefs.restart();
    load(&nodes, "b", 5, &mut took).await;
    for node in &nodes {
        node.all_published().await;
        assert!(!has_had_children(node.program().id()));
    }
    drop(nodes);
}

/// A node that is told to end while it publishes, or waits for its turn, leaves nobody waiting for its lock.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_in_the_middle_of_a_batch_leaves_the_primary_writable() {
    let origin = Origin::start().await;
    let Ok(mut nodes) = LiteFsNode::cluster(&origin, 3, QUIET).await else {
        return;
    };
    let mut took = Took::default();
    let mut targets = load(&nodes, "before", 2, &mut took).await;
    for node in &nodes {
        node.all_published().await;
    }
    let hand = || Hand::start(env!("CARGO_BIN_EXE_litefs_hand"));
    let (mut on_primary, mut elsewhere) = (hand(), hand());
    let database = |node: &LiteFsNode| node.litefs.database("m-n1.db").display().to_string();
    for round in 0..6 {
        let waits = round % 2 == 0;
        if waits {
            // A node that has just connected asks for no lock before it has the primary's word.
            let batches = nodes[1].metric("caje_manifest_batches_total").await;
            let name = format!("round-{round}-first");
            targets.extend(load(&nodes[1..2], &name, 1, &mut took).await);
            nodes[1].until_published_more_than(batches).await;
            nodes[1].all_published().await;
            nodes[0].litefs.pause();
        }
        let batches = nodes[1].metric("caje_manifest_batches_total").await;
        let name = format!("round-{round}");
        targets.extend(load(&nodes[1..2], &name, 10, &mut took).await);
        if waits {
            nodes[1].waits_for_a_lock().await;
        } else {
            nodes[1].until_published_more_than(batches).await;
        }
        nodes[1].program().signal(Signal::SIGTERM);
        if waits {
            nodes[0].litefs.resume();
        }
        assert_eq!(nodes[1].ended().await, Some(0), "{}", nodes[1].log());

        let since = Instant::now();
        let held = elsewhere.does("halt", &[&database(&nodes[2])]);
        assert!(held.starts_with("held "), "{held}");
        assert_eq!(elsewhere.does("release", &[]), "done");
        let written = on_primary.does("write", &[&database(&nodes[0]), &1]);
        assert!(written.starts_with("committed "), "{written}");
        assert!(since.elapsed() < TOO_LONG, "{:?}", since.elapsed());
        // A lock that is taken while the primary's word comes stops the replica for good.
        let stands = |node: &LiteFsNode| litefs::position(database(node)).ok();
        caje_tests::until_within(
            caje_tests::LITEFS_PATIENCE,
            || "the same on the replica".to_owned(),
            || stands(&nodes[0]) == stands(&nodes[1]),
        )
        .await;
        nodes[1].start().await;
        nodes[1].all_published().await;
    }
    for node in &nodes {
        node.until_recorded(targets.len()).await;
    }
}

/// A node starts and serves whose mount is not there, says so, and takes part as soon as it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_its_mount_serves_and_says_so() {
    let origin = Origin::start().await;
    let Ok(mut nodes) = LiteFsNode::cluster(&origin, 2, QUIET).await else {
        return;
    };
    nodes[1].shutdown().await;
    assert!(nodes[1].litefs.shutdown().success());
    nodes[1].start().await;
    let mut took = Took::default();
    let mut targets = load(&nodes, "without", 5, &mut took).await;
    nodes[1].until_metric("caje_manifest_failing", 1.0).await;
    let ready = nodes[1].readyz().await;
    assert!(ready.starts_with("ready"), "{ready}");
    let line = ready
        .lines()
        .find(|line| line.starts_with("manifest: failing: "));
    assert!(line.is_some_and(|line| line.contains("; try: ")), "{ready}");
    let mount = nodes[1].litefs.mount_dir().display().to_string();
    let log = nodes[1].log();
    assert!(log.contains(&mount), "{log}");
    // Nothing was written where no mount is.
    let beneath = fs::read_dir(nodes[1].litefs.mount_dir()).expect("a folder");
    assert_eq!(beneath.count(), 0);

    nodes[1].litefs.restart();
    targets.extend(load(&nodes, "with", 5, &mut took).await);
    for node in &nodes {
        node.all_published().await;
        node.until_recorded(targets.len()).await;
    }
}

/// A node and its LiteFS are gone for good: another one takes over what it said, whichever is the primary. If it comes
/// all the same, it says it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_litefs_is_forgotten() {
    let origin = Origin::start().await;
    let Ok(mut nodes) = LiteFsNode::cluster(&origin, 3, QUIET).await else {
        return;
    };
    let mut took = Took::default();
    load(&nodes, "a", 5, &mut took).await;
    for node in &nodes {
        node.until_recorded(15).await;
    }
    let target = "/_caje/v1/nodes/n2";
    let got = nodes[1].order("DELETE", target, "").await;
    assert_eq!(got.status(), 409);
    assert_eq!(nodes[2].shutdown().await, Some(0));
    // By a replica, so that it has to take the lock.
    let got = nodes[1].order("DELETE", target, "").await;
    let got = got.expect(200).text();
    assert!(got.contains("\"resources\":5"), "{got}");
    for node in &nodes[..2] {
        node.until_recorded(10).await;
        node.all_published().await;
    }
    nodes[2].start().await;
    for node in &nodes {
        node.until_recorded(15).await;
        node.all_published().await;
    }
}

/// Of each kind in the play of purges.
const OF_A_KIND: usize = 10;

/// What bears this tag, and what it says.
fn tagged(origin: &Origin, tag: &str, said: &'static str) -> Vec<String> {
    let answer = OriginAnswer::ok()
        .cache_control("max-age=600, stale-if-error=600")
        .header("surrogate-key", tag)
        .body(said);
    let targets = (0..OF_A_KIND).map(|number| format!("/{tag}/{number}"));
    targets
        .inspect(|target| drop(origin.get(target).answer(answer.clone())))
        .collect()
}

/// Purges a tag: which of the nodes were reached.
async fn purge(node: &LiteFsNode, tag: &str) -> Vec<(String, bool)> {
    let order = format!("{{\"tags\":[\"{tag}\"]}}");
    let got = node.order("POST", "/_caje/v1/purge", &order).await;
    let report: PurgeReport = serde_json::from_slice(&got.body).expect("a report");
    let mut reached: Vec<_> = report
        .nodes
        .into_iter()
        .map(|node| (node.node, node.done))
        .collect();
    reached.sort();
    reached
}

/// Asks for all of them, which say nothing else.
async fn say(node: &LiteFsNode, targets: &[String], said: &str) {
    for target in targets {
        node.get(target).await.says(said);
    }
}

/// A node that was down during a purge, with its LiteFS, never serves what was purged: not before it has read the log,
/// whether its mount is there or not and its origin answers or not; and not afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_down_never_serves_what_was_purged_meanwhile() {
    let origin = Origin::start().await;
    let Ok(mut nodes) = LiteFsNode::cluster(&origin, 3, QUIET).await else {
        return;
    };
    let kept = tagged(&origin, "kept", "as ever");
    let all = |done| {
        [("n0", true), ("n1", true), ("n2", done)].map(|(node, done)| (node.to_owned(), done))
    };
    for (tag, mount_is_there) in [("red", true), ("blue", false)] {
        let purged = tagged(&origin, tag, "old");
        for node in &nodes {
            node.until_metric("caje_purge_log_unread", 0.0).await;
            say(node, &purged, "old").await;
            say(node, &kept, "as ever").await;
        }
        for node in &nodes {
            node.all_published().await;
        }
        assert_eq!(nodes[2].shutdown().await, Some(0));
        assert!(nodes[2].litefs.shutdown().success());
        assert_eq!(purge(&nodes[0], tag).await, all(false));
        tagged(&origin, tag, "new");
        for node in &nodes[..2] {
            node.all_published().await;
            say(node, &purged, "new").await;
        }

        if mount_is_there {
            nodes[2].litefs.restart();
        }
        origin.refuse().await;
        origin.kill_connections();
        nodes[2].start().await;
        // From its first moment on, and nothing else to be had.
        for target in &purged {
            let got = nodes[2].get(target).await;
            assert_ne!(got.text(), "old", "{tag}: {}", got.head.text);
        }
        origin.resume().await;
        say(&nodes[2], &purged[1..], "new").await;
        if !mount_is_there {
            assert_eq!(nodes[2].metric("caje_purge_log_unread").await, 1.0);
            let asked = origin.requests(&kept[0]);
            say(&nodes[2], &kept[..1], "as ever").await;
            assert_eq!(origin.requests(&kept[0]), asked + 1, "used unvalidated");
            let ready = nodes[2].readyz().await;
            assert!(
                ready.contains("purges: the log was not read yet"),
                "{ready}"
            );
            nodes[2].litefs.restart();
        }
        nodes[2].until_metric("caje_purge_log_unread", 0.0).await;
        say(&nodes[2], &purged, "new").await;
        // What was not purged is trusted again.
        for target in &kept {
            let got = nodes[2].get(target).await.says("as ever");
            assert!(got.head.is_hit(), "{}", got.head.text);
        }
        nodes[1].until_knows(3).await;
        assert_eq!(purge(&nodes[1], tag).await, all(true));
    }
}
