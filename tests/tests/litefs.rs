//! What the crate `litefs` says of LiteFS, held against the real one.

use std::fs;
use std::time::{Duration, Instant};

use caje_tests::{HAND_PATIENCE, Hand, LiteFs, Watch};
use litefs::{Event, HttpError, MountError, Position, Role};
use nix::sys::signal::Signal;

fn hand() -> Hand {
    Hand::start(env!("CARGO_BIN_EXE_litefs_hand"))
}

/// The path of a database, as an order has it.
fn path(node: &LiteFs, name: &str) -> String {
    node.database(name).display().to_string()
}

/// A database of a row, made and written by this node under HALT; where it then stands. LiteFS brings it back to its
/// author once, and a lock that is taken before stops the replica for good: that is waited for.
fn written(hand: &mut Hand, node: &LiteFs, name: &str) -> Position {
    let database = path(node, name);
    let mut watch = Watch::on(node);
    assert_eq!(hand.does("create", &[&database]), "done");
    assert!(hand.does("halt", &[&database]).starts_with("held "));
    let committed = hand.does("write", &[&database, &1]);
    assert_eq!(hand.does("release", &[]), "done");
    let position = committed.strip_prefix("committed ");
    let position = position.unwrap_or_else(|| panic!("{committed}"));
    let position = position.parse().expect("a position");
    watch.until_at(name, position);
    if litefs::primary(node.mount_dir())
        .expect("a mount")
        .is_some()
    {
        watch.until_at(name, position);
    }
    position
}

/// Waits until this node's copy stands there.
fn arrives(node: &LiteFs, name: &str, wanted: Position) {
    let since = Instant::now();
    while litefs::position(node.database(name)).ok() != Some(wanted) {
        assert!(since.elapsed() < HAND_PATIENCE, "{name} is not at {wanted}");
        std::thread::yield_now();
    }
}

/// `failed KIND MILLISECONDS`
fn failure(answer: &str) -> (&str, Duration) {
    let words: Vec<&str> = answer.split(' ').collect();
    match words[..] {
        ["failed", kind, millis] => (
            kind,
            Duration::from_millis(millis.parse().expect("a number")),
        ),
        _ => panic!("not refused: {answer}"),
    }
}

fn follows_primary() -> Role {
    Role::Replica {
        of: "primary".to_owned(),
    }
}

/// A lock lets a replica write, and nothing else does; a database that is not there yet can be made.
#[test]
fn a_replica_writes_under_the_lock_and_not_without_it() {
    let Ok(nodes) = LiteFs::cluster(2) else {
        return;
    };
    let [primary, replica] = &nodes[..] else {
        unreachable!()
    };
    let database = path(replica, "a.db");
    let mut hand = hand();
    let refused = hand.does("halt", &[&database]);
    assert_eq!(failure(&refused).0, "NoSuchDatabase");
    assert!(matches!(
        litefs::position(&database),
        Err(MountError::NoSuchDatabase { .. })
    ));

    let mut watch = Watch::on(primary);
    let position = written(&mut hand, replica, "a.db");
    assert_eq!(litefs::position(&database).expect("a position"), position);
    watch.until_at("a.db", position);
    let there = litefs::position(primary.database("a.db"));
    assert_eq!(there.expect("a position"), position);

    // Made twice is made once.
    assert_eq!(hand.does("create", &[&database]), "done");
    assert_eq!(hand.does("count", &[&database]), "rows 1");

    assert_eq!(hand.does("write", &[&database, &1]), "failed ReadOnly");
    assert_eq!(hand.does("count", &[&database]), "rows 1");
}

/// The one call that takes the lock, and those that look as if they did.
#[test]
fn only_one_call_takes_the_lock() {
    let Ok(nodes) = LiteFs::cluster(2) else {
        return;
    };
    let [primary, replica] = &nodes[..] else {
        unreachable!()
    };
    let database = path(replica, "a.db");
    let mut first = hand();
    written(&mut first, replica, "a.db");
    assert_eq!(first.does("open", &[&database]), "done");
    for (call, answer) in [
        ("fcntl setlk write 72 1", "ENOSYS"),
        ("fcntl setlkw read 72 1", "ENOSYS"),
        ("fcntl setlkw write 71 1", "EINVAL"),
        ("fcntl setlkw write 72 2", "EINVAL"),
        ("fcntl setlkw write 72 1", "done"),
        ("fcntl setlkw write 72 1", "ENOLCK"),
        ("fcntl setlkw unlock 72 1", "done"),
        ("fcntl setlkw write 72 1", "done"),
        ("fcntl setlkw unlock 72 1", "done"),
    ] {
        assert_eq!(first.does(call, &[]), answer, "{call}");
    }

    // On the primary it is granted to everybody at once.
    let database = path(primary, "a.db");
    let mut second = hand();
    assert!(first.does("halt", &[&database]).starts_with("held "));
    assert!(second.does("halt", &[&database]).starts_with("held "));
    assert!(
        second
            .does("write", &[&database, &1])
            .starts_with("committed ")
    );
}

/// A child process releases the lock. Without one, the same order of things commits.
#[test]
fn a_child_process_releases_the_lock() {
    let Ok(nodes) = LiteFs::cluster(2) else {
        return;
    };
    let [_, replica] = &nodes[..] else {
        unreachable!()
    };
    let database = path(replica, "a.db");
    let mut hand = hand();
    written(&mut hand, replica, "a.db");
    assert!(hand.does("halt", &[&database]).starts_with("held "));
    assert!(
        hand.does("write", &[&database, &1])
            .starts_with("committed ")
    );
    assert_eq!(hand.does("child", &[]), "done");
    assert_eq!(hand.does("write", &[&database, &1]), "failed ReadOnly");
    // The guard does not know, and its end does no harm.
    assert_eq!(hand.does("release", &[]), "done");
    assert!(hand.does("halt", &[&database]).starts_with("held "));
    assert!(
        hand.does("write", &[&database, &1])
            .starts_with("committed ")
    );
}

/// A holder that releases on SIGTERM leaves the primary writable at once; a lock that is left to expire
/// would stop it for half a minute.
#[test]
fn a_lock_released_on_sigterm_leaves_the_primary_writable() {
    let Ok(nodes) = LiteFs::cluster(2) else {
        return;
    };
    let [primary, replica] = &nodes[..] else {
        unreachable!()
    };
    let (here, there) = (path(primary, "a.db"), path(replica, "a.db"));
    let (mut holder, mut writer) = (hand(), hand());
    let mut watch = Watch::on(primary);
    let position = written(&mut holder, replica, "a.db");
    watch.until_at("a.db", position);
    assert!(holder.does("halt", &[&there]).starts_with("held "));
    holder.signal(Signal::SIGTERM);
    assert!(holder.ended().success());
    // It waits for five seconds at the most.
    assert!(writer.does("write", &[&here, &1]).starts_with("committed "));
}

/// Another holder, and somebody who reads on the primary: both refuse after ten seconds, with the same error.
#[test]
fn a_lock_that_another_holds_is_refused_after_ten_seconds() {
    let Ok(nodes) = LiteFs::cluster(3) else {
        return;
    };
    let [primary, one, other] = &nodes[..] else {
        unreachable!()
    };
    let (mut holder, mut reader) = (hand(), hand());
    let mut watches = [Watch::on(primary), Watch::on(other)];
    for name in ["held.db", "read.db"] {
        let position = written(&mut holder, one, name);
        for watch in &mut watches {
            watch.until_at(name, position);
        }
    }
    let held = holder.does("halt", &[&path(one, "held.db")]);
    assert!(held.starts_with("held "), "{held}");
    assert_eq!(reader.does("read", &[&path(primary, "read.db")]), "reading");
    let mut waiting = [hand(), hand()];
    waiting[0].order("halt", &[&path(other, "held.db")]);
    waiting[1].order("halt", &[&path(other, "read.db")]);
    for hand in &mut waiting {
        let answer = hand.answer();
        let (kind, waited) = failure(&answer);
        assert_eq!(kind, "TimedOut");
        assert!(waited >= Duration::from_secs(9), "{waited:?}");
        assert!(waited < Duration::from_secs(15), "{waited:?}");
    }
}

/// A signal interrupts LiteFS's wait; it is taken up again, and the lock is granted once.
#[test]
fn a_signal_does_not_end_the_wait() {
    let Ok(nodes) = LiteFs::cluster(3) else {
        return;
    };
    let [_, one, other] = &nodes[..] else {
        unreachable!()
    };
    let (mut holder, mut waiting) = (hand(), hand());
    let (here, there) = (path(one, "a.db"), path(other, "a.db"));
    let mut watch = Watch::on(other);
    let position = written(&mut holder, one, "a.db");
    watch.until_at("a.db", position);
    assert!(holder.does("halt", &[&here]).starts_with("held "));
    waiting.order("halt", &[&there]);
    for _ in 0..3 {
        waiting.waits_for_a_lock();
        waiting.interrupt();
    }
    waiting.waits_for_a_lock();
    assert_eq!(holder.does("release", &[]), "done");
    assert!(waiting.answer().starts_with("held "));
    let written = waiting.does("write", &[&there, &1]);
    assert!(written.starts_with("committed "), "{written}");
}

/// A lock that is granted while this node's copy is held up is refused, and told from one that another holds. LiteFS does
/// not forget it: what the primary has for that database then stops the replica for good, whatever is brought after it.
/// Only a restart helps.
#[test]
fn a_lock_that_is_of_no_use_has_a_name_of_its_own() {
    let Ok(mut nodes) = LiteFs::cluster(2) else {
        return;
    };
    let [primary, replica] = &mut nodes[..] else {
        unreachable!()
    };
    let (mut holder, mut writer, mut reader) = (hand(), hand(), hand());
    for name in ["a.db", "b.db"] {
        let position = written(&mut holder, replica, name);
        arrives(primary, name, position);
    }
    let mut write = |name: &str| {
        let committed = writer.does("write", &[&path(primary, name), &1]);
        let position = committed.strip_prefix("committed ").expect("a commit");
        position.parse::<Position>().expect("a position")
    };
    let refused = |hand: &mut Hand, database: &str| {
        let answer = hand.does("halt", &[&database]);
        let (kind, waited) = failure(&answer);
        assert_eq!(kind, "OutOfStep", "{database}");
        assert!(waited >= Duration::from_secs(9), "{waited:?}");
    };
    // Nothing is applied on the replica while somebody reads what comes first.
    assert_eq!(reader.does("read", &[&path(replica, "b.db")]), "reading");
    let read = write("b.db");
    write("a.db");
    refused(&mut holder, &path(replica, "a.db"));
    drop(reader);
    arrives(replica, "b.db", read);

    write("b.db");
    refused(&mut holder, &path(replica, "b.db"));
    replica.restart();
    let mut holder = hand();
    for name in ["a.db", "b.db"] {
        let now = litefs::position(primary.database(name)).expect("a position");
        arrives(replica, name, now);
        let held = holder.does("halt", &[&path(replica, name)]);
        assert!(held.starts_with("held "), "{name}: {held}");
        assert_eq!(holder.does("release", &[]), "done");
    }
}

/// Without a primary the lock is refused at once and the role is unknown; both heal when it is back.
#[test]
fn without_a_primary_nobody_gets_a_lock() {
    let Ok(mut nodes) = LiteFs::cluster(2) else {
        return;
    };
    let [primary, replica] = &mut nodes[..] else {
        unreachable!()
    };
    let database = path(replica, "a.db");
    let mut hand = hand();
    written(&mut hand, replica, "a.db");
    let mut watch = Watch::on(replica);
    let role = || litefs::info(replica.http_addr()).expect("an answer").role;
    let primary_file = || litefs::primary(replica.mount_dir()).expect("a mount");
    assert_eq!(role(), follows_primary());
    assert_eq!(primary_file().as_deref(), Some("primary"));
    let first = litefs::info(primary.http_addr()).expect("an answer");
    assert_eq!((first.role, first.candidate), (Role::Primary, true));
    assert_eq!(first.data_dir, primary.data_dir());
    // The file is absent on a primary too.
    assert_eq!(litefs::primary(primary.mount_dir()).expect("a mount"), None);

    primary.kill();
    watch.until("the primary's end", |event| {
        matches!(event, Event::PrimaryChange(Role::Unknown))
    });
    assert_eq!(role(), Role::Unknown);
    assert_eq!(primary_file(), None);
    let answer = hand.does("halt", &[&database]);
    let (kind, waited) = failure(&answer);
    assert_eq!(kind, "NoPrimary");
    assert!(waited < Duration::from_secs(5), "{waited:?}");

    primary.restart();
    watch.until(
        "the primary's return",
        |event| matches!(event, Event::PrimaryChange(role) if *role == follows_primary()),
    );
    assert_eq!(role(), follows_primary());
    assert!(hand.does("halt", &[&database]).starts_with("held "));
    assert!(
        hand.does("write", &[&database, &1])
            .starts_with("committed ")
    );
}

/// A mount whose LiteFS has died says so; the stream of events begins anew when it is back, and what was
/// missed is read from the positions.
#[test]
fn events_begin_anew_after_litefs_has_died() {
    let Ok(mut nodes) = LiteFs::cluster(2) else {
        return;
    };
    let [primary, replica] = &mut nodes[..] else {
        unreachable!()
    };
    let (here, there) = (path(primary, "a.db"), path(replica, "a.db"));
    let (mut hand, mut writer) = (hand(), hand());
    let mut watch = Watch::on(primary);
    let position = written(&mut hand, replica, "a.db");
    watch.until_at("a.db", position);
    let mut watch = Watch::on(replica);

    replica.kill();
    watch.until("the gap", |event| matches!(event, Event::Gap(_)));
    let refused = hand.does("halt", &[&there]);
    assert_eq!(failure(&refused).0, "NotMounted");
    let mount = replica.mount_dir();
    for refused in [
        litefs::position(&there).map(drop),
        litefs::lag(&mount).map(drop),
        litefs::primary(&mount).map(drop),
        litefs::create_database(&there),
    ] {
        match refused {
            Err(MountError::NotMounted { mount: named }) => assert_eq!(named, mount),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(
        litefs::info(replica.http_addr()),
        Err(HttpError::Unreachable { .. })
    ));

    // Nobody tells of this one.
    assert!(writer.does("write", &[&here, &1]).starts_with("committed "));
    let missed = litefs::position(&here).expect("a position");
    assert_ne!(missed, position);
    replica.restart();
    watch.until("a new beginning", |event| matches!(event, Event::Init(_)));
    assert_eq!(litefs::position(&there).expect("a position"), missed);
    assert!(litefs::lag(&mount).expect("a lag").is_some());

    let answer = writer.does("write", &[&here, &1]);
    let next = answer.strip_prefix("committed ").expect("a commit");
    watch.until_at("a.db", next.parse().expect("a position"));
}

/// Every node writes a database of its own; the others hear of each transaction, and end at its position.
#[test]
fn positions_and_events_follow_the_writes_of_other_nodes() {
    const WRITES: u64 = 20;
    let Ok(nodes) = LiteFs::cluster(3) else {
        return;
    };
    let mut watches: Vec<Watch> = nodes.iter().map(Watch::on).collect();
    let mut hands: Vec<Hand> = nodes.iter().map(|_| hand()).collect();
    let name = |author: usize| format!("author-{author}.db");
    for (author, hand) in hands.iter_mut().enumerate() {
        written(hand, &nodes[author], &name(author));
    }
    for _ in 0..WRITES {
        for (author, hand) in hands.iter_mut().enumerate() {
            let database = path(&nodes[author], &name(author));
            hand.order("halt", &[&database]);
            hand.order("write", &[&database, &1]);
            hand.order("release", &[]);
        }
        for hand in &mut hands {
            assert!(hand.answer().starts_with("held "));
            assert!(hand.answer().starts_with("committed "));
            assert_eq!(hand.answer(), "done");
        }
    }
    for author in 0..nodes.len() {
        let own = litefs::position(nodes[author].database(&name(author)));
        let own = own.expect("a position");
        for (node, hand) in nodes.iter().zip(&mut hands) {
            arrives(node, &name(author), own);
            assert_eq!(
                hand.does("count", &[&path(node, &name(author))]),
                format!("rows {}", WRITES + 1)
            );
            let position = litefs::position(node.database(&name(author)));
            assert_eq!(position.expect("a position"), own);
        }
    }
    // Of one author after the other, as their events are not in an order.
    for (node, watch) in watches.iter_mut().enumerate() {
        let author = (node + 1) % nodes.len();
        let own = litefs::position(nodes[author].database(&name(author)));
        watch.until_at(&name(author), own.expect("a position"));
    }
    assert_eq!(
        litefs::lag(nodes[0].mount_dir()).expect("a lag"),
        Some(Duration::ZERO)
    );
}

/// SIGTERM unmounts; what is then below the path is a plain folder, and told apart.
#[test]
fn a_mount_ends_with_its_litefs() {
    let Ok(mut nodes) = LiteFs::cluster(1) else {
        return;
    };
    let node = &mut nodes[0];
    let mount = node.mount_dir();
    let mounted = |mount: &str| {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read the mounts");
        mounts.lines().any(|line| line.contains(mount))
    };
    let shown = mount.display().to_string();
    assert!(mounted(&shown));
    assert!(node.shutdown().success(), "{:?}", node.log());
    assert!(!mounted(&shown));
    assert!(matches!(
        litefs::lag(&mount),
        Err(MountError::NotLiteFs { .. })
    ));
    node.restart();
    assert!(litefs::lag(&mount).is_ok());
    node.kill();
    drop(nodes);
    assert!(!mounted(&shown));
    assert!(!mount.exists());
}
