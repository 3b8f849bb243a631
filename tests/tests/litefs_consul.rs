//! Real LiteFS whose nodes agree on a primary by Consul: it is lost, hands over, and comes back.

use std::time::{Duration, Instant};

use caje_tests::{Consul, Folder, HAND_PATIENCE, Hand, LiteFs};

use crate::manifest::{agree, agree_on, cluster, on_node, record, wait_until};

/// Rows of its own that a node has published again, since its start.
fn lost(hand: &mut Hand) -> u32 {
    let answer = hand.does("lost", &[]);
    let rows = answer.strip_prefix("lost ").expect("a number");
    rows.parse().expect("a number")
}

/// Waits until all have so many resources, however long a lock lives that nobody releases.
fn reach(hands: &mut [Hand], wanted: u32) {
    for hand in hands.iter_mut() {
        hand.order("reach", &[&wanted]);
    }
    for hand in hands {
        assert_eq!(hand.answer(), format!("resources {wanted}"));
    }
}

/// The primary is killed with -9 while all write: another is elected when its session has ended, and nothing is lost;
/// not either when it comes back.
#[test]
fn a_primary_that_is_lost_is_replaced_and_loses_nothing() {
    let consul = Consul::start();
    let Ok(mut nodes) = LiteFs::elected_cluster(3, &consul) else {
        return;
    };
    let folder = Folder::new();
    let mut hands = cluster(&nodes, &folder);
    record(&mut hands, "before", 20, 80);
    for hand in &mut hands {
        hand.order("soak", &[&6]);
    }
    wait_until("batches", || {
        litefs::position(nodes[0].database("m-n2.db")).is_ok_and(|at| at.txid > 20)
    });
    nodes[0].kill();
    let since = Instant::now();
    consul.until_primary(HAND_PATIENCE, |primary| !primary.contains("\"l0\""));
    let elected = since.elapsed();
    let (mut rows, mut most) = (0, 0);
    for hand in &mut hands {
        let answer = hand.answer();
        let own: u32 = answer
            .rsplit(' ')
            .next()
            .and_then(|rows| rows.parse().ok())
            .expect("rows");
        rows += own;
        most = most.max(own);
    }
    agree(&mut hands[1..], "outbox", Some("outbox 0"));
    let alone = since.elapsed();
    nodes[0].restart();
    let back = Instant::now();
    agree_on(&mut hands, 80 + rows + most);
    println!(
        "elected after {elected:?}; the others had published all after {alone:?}; all there {:?} after its start; lost and published again: {:?}",
        back.elapsed(),
        hands.iter_mut().map(lost).collect::<Vec<_>>(),
    );
    drop(hands);
    drop(nodes);
}

/// A primary that is told to end gives its session back: another is elected at once.
#[test]
fn a_primary_that_is_told_to_end_is_replaced_at_once() {
    let consul = Consul::start();
    let Ok(mut nodes) = LiteFs::elected_cluster(3, &consul) else {
        return;
    };
    let folder = Folder::new();
    let mut hands = cluster(&nodes, &folder);
    record(&mut hands, "before", 20, 80);
    assert_eq!(hands[0].does("record", &[&"/last/", &5]), "done");
    assert_eq!(hands[0].does("close", &[]), "done");
    assert!(hands[0].ended().success());
    let since = Instant::now();
    assert!(nodes[0].shutdown().success());
    consul.until_primary(HAND_PATIENCE, |primary| !primary.contains("\"l0\""));
    let elected = since.elapsed();
    for (at, hand) in hands.iter_mut().enumerate().skip(1) {
        let prefix = format!("/without/{at}/");
        assert_eq!(hand.does("record", &[&prefix, &5]), "done");
    }
    reach(&mut hands[1..], 95);
    let alone = since.elapsed();
    nodes[0].restart();
    hands[0] = on_node(0, &nodes[0], &folder);
    let back = Instant::now();
    agree_on(&mut hands, 95);
    println!(
        "elected after {elected:?}; the others agree after {alone:?}; all {:?} after its start; lost and published again: {:?}",
        back.elapsed(),
        hands.iter_mut().map(lost).collect::<Vec<_>>(),
    );
    drop(hands);
    drop(nodes);
}

/// What only the lost primary and its author had: the author publishes it again, and so does a former primary that
/// comes back with what nobody else has.
#[test]
fn what_was_acknowledged_and_lost_with_the_primary_is_published_again() {
    let consul = Consul::start();
    let Ok(mut nodes) = LiteFs::elected_cluster(3, &consul) else {
        return;
    };
    let folder = Folder::new();
    let mut hands = cluster(&nodes, &folder);
    record(&mut hands, "before", 20, 80);
    agree(&mut hands, "outbox", Some("outbox 0"));
    // The next primary is away, and the third may not be one.
    consul.bar("\"l2\"");
    nodes[1].kill();
    for (at, prefix) in [(0, "/on/primary/"), (2, "/on/replica/")] {
        assert_eq!(hands[at].does("record", &[&prefix, &30]), "done");
    }
    for at in [0, 2] {
        assert_eq!(hands[at].does("reach", &[&140]), "resources 140");
    }
    nodes[0].kill();
    let since = Instant::now();
    nodes[1].restart();
    assert!(nodes[1].is_primary());
    let elected = since.elapsed();
    // Of the replica, to begin with.
    assert_eq!(hands[1].does("reach", &[&110]), "resources 110");
    let again = since.elapsed();
    assert!(lost(&mut hands[2]) >= 30);
    nodes[0].restart();
    let back = Instant::now();
    agree_on(&mut hands, 140);
    assert!(lost(&mut hands[0]) >= 30);
    println!(
        "elected after {elected:?}, published again after {again:?}; all there {:?} after the start of the former primary",
        back.elapsed()
    );
    // Each goes on writing.
    record(&mut hands, "after", 5, 160);
    agree_on(&mut hands, 160);
    drop(hands);
    drop(nodes);
}

/// A primary hands over while a node is in the middle of a batch, which counts or does not: nothing is lost. The lock
/// that the former primary had granted holds up that one until it expires, and nobody else.
#[test]
fn a_handover_in_the_middle_of_a_batch_loses_nothing() {
    let consul = Consul::start();
    let Ok(nodes) = LiteFs::elected_cluster(3, &consul) else {
        return;
    };
    let folder = Folder::new();
    let mut hands = cluster(&nodes, &folder);
    record(&mut hands, "before", 20, 80);
    agree(&mut hands, "outbox", Some("outbox 0"));
    assert_eq!(hands[2].does("hold", &[]), "holding");
    let since = Instant::now();
    nodes[1].promote().expect("a handover");
    let primary = since.elapsed();
    let answer = hands[2].does("go", &[]);
    assert!(answer.starts_with("let go "), "{answer}");
    let told = since.elapsed();
    for (at, hand) in hands.iter_mut().enumerate().skip(1) {
        assert_eq!(hand.does("record", &[&format!("/after/{at}/"), &5]), "done");
    }
    for hand in &mut hands[1..] {
        assert_eq!(hand.does("reach", &[&90]), "resources 90");
    }
    let others = since.elapsed();
    assert_eq!(hands[0].does("record", &[&"/after/0/", &5]), "done");
    reach(&mut hands, 95);
    println!(
        "primary after {primary:?}; the commit: {answer:?} after {told:?}; the others agree after {others:?}, all after {:?}",
        since.elapsed()
    );
    agree_on(&mut hands, 95);
    drop(hands);
    drop(nodes);
}

/// Primaries hand over one after another while all write: all that was acknowledged is there, also where LiteFS has
/// rolled it back.
#[test]
fn handovers_while_all_write_lose_nothing() {
    const ROUNDS: usize = 2;
    let consul = Consul::start();
    let Ok(nodes) = LiteFs::elected_cluster(3, &consul) else {
        return;
    };
    let folder = Folder::new();
    let mut hands = cluster(&nodes, &folder);
    record(&mut hands, "before", 20, 80);
    let (mut rows, mut slowest) = (80, Duration::ZERO);
    for round in 1..=ROUNDS {
        let stands = |at: usize| {
            let position =
                litefs::position(nodes[(round - 1) % 3].database(&format!("m-n{at}.db")));
            position.map_or(0, |at| at.txid)
        };
        let before: Vec<u64> = (0..3).map(stands).collect();
        let seconds = 2;
        for (at, hand) in hands.iter_mut().enumerate() {
            hand.order("write", &[&format!("/{round}/{at}/"), &seconds]);
        }
        wait_until("batches of two", || {
            (0..3).filter(|at| stands(*at) > before[*at] + 3).count() >= 2
        });
        let since = Instant::now();
        // Whoever is not connected is refused, and to whom a lock holds up it may come too late.
        let next = &nodes[round % 3];
        wait_until("a handover", || next.promote().is_ok());
        slowest = slowest.max(since.elapsed());
        for hand in &mut hands {
            let answer = hand.answer();
            let own: u32 = answer
                .strip_prefix("wrote ")
                .and_then(|rows| rows.parse().ok())
                .expect("rows");
            rows += own;
        }
    }
    let end = Instant::now();
    reach(&mut hands, rows);
    println!(
        "slowest of {ROUNDS} handovers: {slowest:?}; all {rows} rows are everywhere {:?} after the last; lost and published again: {:?}",
        end.elapsed(),
        hands.iter_mut().map(lost).collect::<Vec<_>>(),
    );
    agree_on(&mut hands, rows);
    drop(hands);
    drop(nodes);
}

/// A primary that stands still for longer than its session, and goes on then: its replicas stay with it meanwhile, as
/// their connections do, and all elect another when it finds that it is none any more.
#[test]
fn a_primary_that_slept_through_its_session_loses_nothing() {
    let consul = Consul::start();
    let Ok(nodes) = LiteFs::elected_cluster(3, &consul) else {
        return;
    };
    let folder = Folder::new();
    let mut hands = cluster(&nodes, &folder);
    record(&mut hands, "before", 20, 80);
    agree(&mut hands, "outbox", Some("outbox 0"));
    nodes[0].pause();
    for (at, hand) in hands.iter_mut().enumerate() {
        assert_eq!(
            hand.does("record", &[&format!("/asleep/{at}/"), &5]),
            "done"
        );
    }
    wait_until("the end of a session", || consul.primary().is_none());
    consul.bar("\"l0\"");
    nodes[0].resume();
    let back = Instant::now();
    consul.until_primary(HAND_PATIENCE, |primary| !primary.contains("\"l0\""));
    let elected = back.elapsed();
    reach(&mut hands, 95);
    println!(
        "elected {elected:?} after it went on, all there after {:?}; lost and published again: {:?}",
        back.elapsed(),
        hands.iter_mut().map(lost).collect::<Vec<_>>(),
    );
    drop(hands);
    drop(nodes);
}
