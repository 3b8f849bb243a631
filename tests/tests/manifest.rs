//! What nodes say to one another through the manifest: on a shared folder, and on real LiteFS.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use caje_node::clock::HybridClock;
use caje_node::cluster::{Engine, Event as ClusterEvent, Freshness, Local};
use caje_node::manifest::{
    About, Cursor, Filter, Held, Manifest, NodeRow, OpenError, Purge, PurgeCursor, Resource,
    ResourceId, Selector, Settings, Status, Trouble,
};
use caje_node::semantics::key::CacheKey;
use caje_tests::{
    Fault, Faults, Folder, HAND_PATIENCE, Hand, LiteFs, Node, Origin, Watch, publication, until,
    within,
};
use litefs::{Event, Role};
use nix::sys::signal::Signal;

fn resource(target: &str) -> Resource {
    Resource {
        id: ResourceId {
            cache_key: target.to_owned().into(),
            variant: Vec::new(),
        },
        about: About {
            url: format!("https://example.com{target}"),
            origin: "main".to_owned(),
            ..About::default()
        },
    }
}

fn purge(tag: &'static str) -> Purge {
    Purge {
        selector: Selector::Tag { tag: tag.into() },
        soft: false,
    }
}

fn open(engine: Arc<dyn Engine>, folder: &Folder, node: &str) -> Manifest {
    let settings = Settings::new(folder.join(node), node);
    Manifest::open(settings, engine, Arc::new(HybridClock::new())).expect("open a manifest")
}

fn resources(manifest: &Manifest) -> u64 {
    let reader = manifest.reader().expect("a reader");
    reader.count().expect("count resources")
}

/// Waits for changes until there are so many resources.
async fn reach(manifest: &Manifest, wanted: u64) {
    let mut watch = manifest.watch();
    let reached = async {
        loop {
            watch.mark_unchanged();
            if resources(manifest) == wanted {
                return;
            }
            watch.changed().await.expect("a manifest that runs");
        }
    };
    let what = format!("{wanted} resources; {:?}", manifest.status());
    within(&what, reached).await;
}

async fn settled(manifest: &Manifest, holds: impl Fn(&Status) -> bool) {
    until(
        || format!("{:?}", manifest.status()),
        || holds(&manifest.status()),
    )
    .await;
}

/// Three nodes that record equal and different things at once end with the same merge, without a row twice.
#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_end_with_the_same_merge() {
    let folder = Folder::new();
    let nodes: Vec<Manifest> = ["a", "b", "c"]
        .iter()
        .map(|node| {
            let engine = Local::open(&folder.join("shared")).expect("a folder");
            open(Arc::new(engine), &folder, node)
        })
        .collect();
    let mut threads = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        let node = node.clone();
        threads.push(std::thread::spawn(move || {
            for number in 0..300 {
                node.record(resource(&format!("/own/{at}/{number}")))
                    .expect("a row");
                node.record(resource(&format!("/shared/{number}")))
                    .expect("a row");
            }
        }));
    }
    for thread in threads {
        thread.join().expect("a node");
    }
    for (at, node) in nodes.iter().enumerate() {
        let region = Some(format!("r{at}"));
        let id = format!("n{at}");
        let row = NodeRow {
            id,
            region,
            ..NodeRow::default()
        };
        node.announce(&row).expect("a row");
        let purged = within("a purge", node.record_purge(purge("t"))).await;
        assert_eq!(purged.expect("durable").number, 1);
    }
    for node in &nodes {
        reach(node, 4 * 300).await;
        settled(node, |status| status.outbox == 0).await;
    }
    let all = |node: &Manifest| node.reader().and_then(|reader| reader.all_rows());
    until(
        || "the same merge on all nodes".to_owned(),
        || {
            let first = all(&nodes[0]).expect("read");
            first.len() == 4 * 300 + 6
                && nodes[1..]
                    .iter()
                    .all(|node| all(node).expect("read") == first)
        },
    )
    .await;
    let reader = nodes[2].reader().expect("a reader");
    assert_eq!(reader.nodes().expect("nodes").len(), 3);
    let purges = reader.purges_since(&PurgeCursor::default(), 10);
    assert_eq!(purges.expect("purges").rows.len(), 3);
    let own = Filter::Prefix("https://example.com/own/1/".into());
    let list = reader.resources(&own, &Cursor::default(), 1000);
    assert_eq!(list.expect("a list").items.len(), 300);
    nodes[0].forget(&resource("/shared/0").id);
    for node in &nodes {
        reach(node, 4 * 300 - 1).await;
    }
    nodes.iter().for_each(Manifest::close);
}

/// A name, and a folder, belong to one process.
#[test]
fn an_author_is_one_process() {
    let folder = Folder::new();
    let engine = || Arc::new(Local::open(&folder.join("shared")).expect("a folder"));
    let first = open(engine(), &folder, "a");
    let clock = Arc::new(HybridClock::new());
    let again = |dir: &str| {
        Manifest::open(
            Settings::new(folder.join(dir), "a"),
            engine(),
            clock.clone(),
        )
    };
    assert!(matches!(again("a"), Err(OpenError::InUse(_))));
    let other = again("elsewhere").err().expect("refused");
    assert!(other.to_string().contains("try: "), "{other}");
    let named = Manifest::open(
        Settings::new(folder.join("x"), "a/b"),
        engine(),
        clock.clone(),
    );
    assert!(matches!(named, Err(OpenError::Name(_))));
    first.close();
    again("elsewhere").expect("free again").close();
}

/// What fails is done again, whatever the failure has left behind; nothing is lost, nothing is there twice.
#[tokio::test(flavor = "multi_thread")]
async fn publications_that_fail_are_done_again() {
    let folder = Folder::new();
    let engine = Faults::open(&folder.join("shared"));
    let writer = open(engine.clone(), &folder, "a");
    let local = Local::open(&folder.join("shared")).expect("a folder");
    let reader = open(Arc::new(local), &folder, "b");
    let mut recorded = 0;
    for round in 0..3 {
        for fault in [
            None,
            Some(Fault::Before),
            Some(Fault::After),
            Some(Fault::Undone),
            Some(Fault::UndoneInSilence),
        ] {
            if let Some(fault) = fault {
                engine.fail(fault);
            }
            for _ in 0..5 {
                let target = format!("/{round}/{recorded}");
                writer.record(resource(&target)).expect("a row");
                recorded += 1;
            }
            let engine = engine.clone();
            until(|| "the fault".to_owned(), || engine.is_without_faults()).await;
        }
        // What was undone in silence shows at the next word.
        writer.record(resource("/last/word")).expect("a row");
        reach(&reader, recorded + 1).await;
        settled(&writer, |status| {
            status.outbox == 0 && status.error.is_none()
        })
        .await;
        writer.forget(&resource("/last/word").id);
        reach(&reader, recorded).await;
    }
    settled(&writer, |status| status.outbox == 0).await;
    assert!(writer.status().rows_lost > 0, "{:?}", writer.status());
    writer.close();
    reader.close();
    // All of it stands in the author's database itself, not only where it was merged before it was undone.
    let local = Local::open(&folder.join("shared")).expect("a folder");
    let later = open(Arc::new(local), &folder, "c");
    reach(&later, recorded).await;
    later.close();
}

/// What a change of role or a gap may have undone is looked after, without a word from anybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_role_is_a_doubt() {
    let folder = Folder::new();
    let engine = Faults::open(&folder.join("shared"));
    let writer = open(engine.clone(), &folder, "a");
    until(|| "the first look".to_owned(), || engine.publications() > 0).await;
    engine.fail(Fault::UndoneInSilence);
    writer.record(resource("/a")).expect("a row");
    until(|| "the fault".to_owned(), || engine.is_without_faults()).await;
    settled(&writer, |status| status.outbox == 0).await;
    engine.tell(ClusterEvent::Role(engine.role()));
    settled(&writer, |status| {
        status.rows_lost == 1 && status.outbox == 0
    })
    .await;
    writer.close();
}

/// While the folder stands still, a purge is durable at once and nobody waits; afterwards everything arrives.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_folder_that_stands_still() {
    let folder = Folder::new();
    let engine = Faults::open(&folder.join("shared"));
    let writer = open(engine.clone(), &folder, "a");
    let local = Local::open(&folder.join("shared")).expect("a folder");
    let reader = open(Arc::new(local), &folder, "b");
    let go = engine.stand_still();
    writer.record(resource("/first")).expect("a row");
    until(|| "the wait".to_owned(), || engine.is_without_faults()).await;
    let since = Instant::now();
    for number in 0..2000 {
        writer
            .record(resource(&format!("/{number}")))
            .expect("a row");
    }
    let queued = since.elapsed();
    let row = within("a purge", writer.record_purge(purge("t"))).await;
    assert_eq!(row.expect("durable").number, 1);
    reach(&writer, 2001).await;
    assert_eq!(resources(&reader), 0);
    assert!(queued.as_secs() < 1, "2,000 rows took {queued:?}");
    drop(go);
    reach(&reader, 2001).await;
    settled(&writer, |status| {
        status.outbox == 0 && status.error.is_none()
    })
    .await;
    writer.close();
    reader.close();
}

/// Events that were cut off are made up for when they come again.
#[tokio::test(flavor = "multi_thread")]
async fn lost_events_are_made_up_for() {
    let folder = Folder::new();
    let engine = Faults::open(&folder.join("shared"));
    let reader = open(engine.clone(), &folder, "b");
    let local = Local::open(&folder.join("shared")).expect("a folder");
    let writer = open(Arc::new(local), &folder, "a");
    writer.record(resource("/1")).expect("a row");
    reach(&reader, 1).await;
    engine.cut_events(true);
    writer.record(resource("/2")).expect("a row");
    settled(&writer, |status| {
        status.rows_published == 2 && status.outbox == 0
    })
    .await;
    assert_eq!(resources(&reader), 1);
    engine.cut_events(false);
    reach(&reader, 2).await;
    writer.close();
    reader.close();
}

/// What a node had said that is gone for good goes with it, and nothing that others say.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_for_good_is_forgotten() {
    let folder = Folder::new();
    let engine = || Arc::new(Local::open(&folder.join("shared")).expect("a folder"));
    let (gone, a, b) = (
        open(engine(), &folder, "gone"),
        open(engine(), &folder, "a"),
        open(engine(), &folder, "b"),
    );
    a.record(resource("/both")).expect("a row");
    reach(&gone, 1).await;
    let mut later = resource("/both");
    later.about.validator = Some("\"2\"".to_owned());
    gone.record(later).expect("a row");
    gone.record(resource("/gone")).expect("a row");
    for node in [&a, &b] {
        reach(node, 2).await;
    }
    gone.close();
    a.forget_author("gone");
    for node in [&a, &b] {
        reach(node, 1).await;
        let both = resource("/both").id;
        let found = node.reader().and_then(|reader| reader.resource(&both));
        let found = found.expect("read").expect("a row");
        assert_eq!(found.author, "a");
    }
    // Back under its name, it takes its database again and publishes what it has.
    let back = open(engine(), &folder, "gone");
    back.record(resource("/again")).expect("a row");
    for node in [&a, &b, &back] {
        reach(node, 3).await;
        let both = resource("/both").id;
        let found = node.reader().and_then(|reader| reader.resource(&both));
        assert_eq!(found.expect("read").expect("a row").author, "gone");
    }
    for node in [back, a, b] {
        node.close();
    }
}

/// What a forgotten node had taken out stays out, and what it had purged is heard of by who was away meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_forgotten_node_took_away_stays_away() {
    let folder = Folder::new();
    let engine = || Arc::new(Local::open(&folder.join("shared")).expect("a folder"));
    let (gone, a) = (
        open(engine(), &folder, "gone"),
        open(engine(), &folder, "a"),
    );
    a.record(resource("/out")).expect("a row");
    a.record(resource("/in")).expect("a row");
    reach(&gone, 2).await;
    let purge = Purge {
        selector: Selector::Everything,
        soft: false,
    };
    gone.record_purge(purge).await.expect("on the disk");
    gone.forget(&resource("/out").id);
    reach(&a, 1).await;
    gone.close();
    a.forget_author("gone");
    let says = || a.reader().and_then(|reader| reader.author("gone"));
    until(|| format!("{:?}", says()), || says() == Ok(None)).await;
    let late = open(engine(), &folder, "late");
    settled(&late, |status| status.caught_up).await;
    for node in [&a, &late] {
        reach(node, 1).await;
        let log = node
            .reader()
            .and_then(|reader| reader.purges_since(&PurgeCursor::default(), 10));
        let log = log.expect("read");
        assert_eq!((log.rows.len(), log.rows[0].author.as_str()), (1, "gone"));
    }
    for node in [late, a] {
        node.close();
    }
}

/// A database that nobody can read holds up neither what others say nor what one says oneself; a node that has read all
/// others has not caught up, until that one is forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_read_holds_up_no_other() {
    let folder = Folder::new();
    let shared = folder.join("shared");
    let engine = || Arc::new(Local::open(&shared).expect("a folder"));
    drop(engine());
    fs::write(shared.join("m-broken.db"), [b'x'; 8192]).expect("write a file");
    let (a, b) = (open(engine(), &folder, "a"), open(engine(), &folder, "b"));
    let tells_of_it = |status: &Status| {
        let error = status.error.as_deref();
        error.is_some_and(|error| error.contains("what broken says"))
    };
    settled(&b, tells_of_it).await;
    let agree = async {
        for number in 0..40 {
            let (one, other) = if number % 2 == 0 { (&a, &b) } else { (&b, &a) };
            one.record(resource(&format!("/{number}"))).expect("a row");
            reach(other, number + 1).await;
        }
    };
    within("40 rows, one after the other", agree).await;
    assert!(tells_of_it(&b.status()) && !b.status().caught_up);
    b.forget_author("broken");
    for node in [&a, &b] {
        settled(node, |status| status.caught_up && status.error.is_none()).await;
    }
    a.close();
    b.close();
}

/// A damaged database of one's own is made anew, also where the damage shows only when it is read through.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_database_of_one_s_own_is_made_anew() {
    const ROWS: u64 = 3000;
    let folder = Folder::new();
    let shared = folder.join("shared");
    let engine = || Arc::new(Local::open(&shared).expect("a folder"));
    let a = open(engine(), &folder, "a");
    for number in 0..ROWS {
        a.record(resource(&format!("/{number}"))).expect("a row");
    }
    settled(&a, |status| status.rows_published == ROWS).await;
    a.close();
    let database = shared.join("m-a.db");
    let mut bytes = fs::read(&database).expect("read a database");
    let third = bytes.len() / 3;
    bytes[third..2 * third].fill(0xff);
    fs::write(&database, bytes).expect("write a database");
    let a = open(engine(), &folder, "a");
    settled(&a, |status| status.rows_lost == ROWS && status.outbox == 0).await;
    let b = open(engine(), &folder, "b");
    reach(&b, ROWS).await;
    settled(&a, |status| status.error.is_none()).await;
    a.close();
    b.close();
}

/// No row is published without the lock.
#[tokio::test(flavor = "multi_thread")]
async fn no_row_is_published_without_the_lock() {
    let folder = Folder::new();
    let engine = Faults::open(&folder.join("shared"));
    let writer = open(engine.clone(), &folder, "a");
    for number in 0..5 {
        writer
            .record(resource(&format!("/{number}")))
            .expect("a row");
        settled(&writer, |status| status.rows_published == number + 1).await;
    }
    writer.close();
    assert!(engine.publications() >= 5);
    assert_eq!(engine.unlocked(), 0);
}

/// A node has caught up once others' databases are known to be up to date and have been read then, and not before.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_has_caught_up_when_it_has_read_what_was_there() {
    let folder = Folder::new();
    let local = Local::open(&folder.join("shared")).expect("a folder");
    let writer = open(Arc::new(local), &folder, "a");
    settled(&writer, |status| status.caught_up).await;
    writer.record(resource("/1")).expect("a row");
    settled(&writer, |status| status.rows_published == 1).await;

    let engine = Faults::open(&folder.join("shared"));
    engine.set_freshness(Freshness::Unknown);
    let reader = open(engine.clone(), &folder, "b");
    reach(&reader, 1).await;
    assert!(!reader.status().caught_up);
    // What comes later, as a primary brings it, without an event that is heard.
    engine.cut_events(true);
    writer.record(resource("/2")).expect("a row");
    settled(&writer, |status| {
        status.rows_published == 2 && status.outbox == 0
    })
    .await;
    engine.set_freshness(Freshness::AsOf(Duration::from_secs(60)));
    settled(&reader, |status| status.position_behind.is_some()).await;
    assert!(!reader.status().caught_up);
    let trouble = reader.status().trouble().expect("trouble");
    assert!(matches!(trouble, Trouble::Behind(lag) if lag.as_secs() == 60));
    engine.set_freshness(Freshness::AsOf(Duration::from_secs(1)));
    settled(&reader, |status| status.caught_up).await;
    assert_eq!(resources(&reader), 2);
    assert_eq!(reader.status().trouble(), None);
    // It stays so; what comes to stand still later is trouble.
    engine.set_freshness(Freshness::Unknown);
    engine.tell(ClusterEvent::Role(engine.role()));
    assert!(reader.status().caught_up);
    writer.close();
    reader.close();
}

/// Publications that fail one after another are trouble, and none any more when one has succeeded.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_refused_three_times_is_trouble() {
    let folder = Folder::new();
    let engine = Faults::open(&folder.join("shared"));
    let writer = open(engine.clone(), &folder, "a");
    settled(&writer, |status| status.caught_up).await;
    assert_eq!(writer.status().trouble(), None);
    for _ in 0..3 {
        engine.fail(Fault::Before);
    }
    let go = engine.stand_still();
    writer.record(resource("/1")).expect("a row");
    settled(&writer, |status| status.halt_failures == 3).await;
    let trouble = writer.status().trouble().expect("trouble");
    assert_eq!(trouble, Trouble::NotPublished(3));
    assert!(trouble.to_string().contains("try: "), "{trouble}");
    // The fourth attempt waits.
    settled(&writer, |status| status.busy.is_some()).await;
    drop(go);
    settled(&writer, |status| {
        status.outbox == 0 && status.halt_failures == 0 && status.busy.is_none()
    })
    .await;
    assert_eq!(writer.status().trouble(), None);
    let still = Status {
        busy: Some(Duration::from_secs(31)),
        ..Status::default()
    };
    assert!(matches!(still.trouble(), Some(Trouble::StandsStill(_))));
    writer.close();
}

/// However long a publication has failed: with another role it is tried again soon, also after one more failure.
#[tokio::test(flavor = "multi_thread")]
async fn another_role_ends_long_pauses() {
    let folder = Folder::new();
    let engine = Faults::open(&folder.join("shared"));
    let writer = open(engine.clone(), &folder, "a");
    settled(&writer, |status| status.caught_up).await;
    // The pauses between them are three seconds in all, and the next is as long.
    for _ in 0..6 {
        engine.fail(Fault::Before);
    }
    writer.record(resource("/1")).expect("a row");
    settled(&writer, |status| status.halt_failures == 6).await;
    engine.fail(Fault::Before);
    let since = Instant::now();
    engine.tell(ClusterEvent::Role(engine.role()));
    settled(&writer, |status| {
        status.outbox == 0 && status.error.is_none()
    })
    .await;
    let took = since.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    writer.close();
}

/// A lock that is granted and of no use is trouble at once, until one is of use.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_of_no_use_is_trouble() {
    let folder = Folder::new();
    let engine = Faults::open(&folder.join("shared"));
    let writer = open(engine.clone(), &folder, "a");
    settled(&writer, |status| status.caught_up).await;
    engine.fail(Fault::OutOfStep);
    let go = engine.stand_still();
    writer.record(resource("/1")).expect("a row");
    settled(&writer, |status| {
        status.trouble() == Some(Trouble::OutOfStep)
    })
    .await;
    drop(go);
    settled(&writer, |status| {
        status.outbox == 0 && status.trouble().is_none()
    })
    .await;
    writer.close();
}

/// What the node's own index holds of the manifest: whole, in part, out of date, or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn coverage_joins_the_manifest_and_the_disk() {
    let origin = Origin::start().await;
    let answer = |target: &str| {
        origin
            .get(target)
            .cache_control("max-age=600")
            .etag("\"1\"")
    };
    answer("/whole").generated(5000);
    answer("/part").generated(2 << 20).ranges(true);
    answer("/gone").generated(5000);
    let node = Node::start(&origin).await;
    node.get("/whole").await.is_whole("/whole", 5000);
    let part = node.get("/part").range("0-99").await;
    part.is_part("/part", 0..100, 2 << 20);
    node.get("/gone").await.is_whole("/gone", 5000);
    within("the index", node.inner().store().flush()).await;

    let index = node.config().store.dir.join("index.db");
    let keys = {
        let index = rusqlite::Connection::open(&index).expect("the index");
        let mut rows = index.prepare("SELECT key FROM object").expect("a table");
        let keys = rows.query_map([], |row| row.get::<_, Vec<u8>>(0));
        let keys = keys.expect("rows").map(|key| key.expect("a key"));
        keys.collect::<Vec<_>>()
    };
    assert_eq!(keys.len(), 3);
    let folder = Folder::new();
    let local = Local::open(&folder.join("shared")).expect("a folder");
    let manifest = open(Arc::new(local), &folder, "a");
    for key in keys {
        let parts = CacheKey::from_bytes(&key).expect("a key");
        let target = String::from_utf8_lossy(parts.target()).into_owned();
        let mut row = resource(&target);
        row.id.cache_key = key.into();
        manifest.record(row).expect("a row");
    }
    manifest.record(resource("/absent")).expect("a row");
    reach(&manifest, 4).await;
    let mut reader = manifest.reader().expect("a reader");
    reader.attach_index(&index).expect("the index");
    let now = caje_node::clock::now_secs();
    let held = |now| {
        let list = reader.coverage(&Filter::All, &Cursor::default(), 10, now);
        let items = list.expect("a list").items.into_iter();
        items.map(|item| item.held).collect::<Vec<_>>()
    };
    // /absent, /gone, /part, /whole
    let (missing, partial, stale, present) =
        (Held::Missing, Held::Partial, Held::Stale, Held::Present);
    assert_eq!(held(now), [missing, present, partial, present]);
    assert_eq!(held(now + 601), [missing, stale, partial, stale]);
    // An unsafe request takes the stored response away.
    origin.post("/gone").body("done");
    node.post("/gone").await.expect(200);
    within("the index", node.inner().store().flush()).await;
    assert_eq!(held(now), [missing, missing, partial, present]);
    manifest.close();
}

fn hand(arguments: &[&str]) -> Hand {
    let mut hand = Hand::start_with(env!("CARGO_BIN_EXE_manifest_hand"), arguments);
    assert_eq!(hand.answer(), "ready");
    hand
}

/// Asks all until they give the same answer.
pub(crate) fn agree(hands: &mut [Hand], order: &str, wanted: Option<&str>) -> String {
    let since = Instant::now();
    loop {
        let answers: Vec<String> = hands.iter_mut().map(|hand| hand.does(order, &[])).collect();
        let first = &answers[0];
        let is_wanted = wanted.is_none_or(|wanted| first == wanted);
        if is_wanted && answers.iter().all(|answer| answer == first) {
            return first.clone();
        }
        if since.elapsed() >= HAND_PATIENCE {
            let statuses = hands.iter_mut().map(|hand| hand.does("status", &[]));
            let statuses: Vec<String> = statuses.collect();
            panic!("{order}: {answers:?}\n{}", statuses.join("\n"));
        }
        std::thread::yield_now();
    }
}

/// For what has no event.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < HAND_PATIENCE, "waited for {what}");
        std::thread::yield_now();
    }
}

/// A writer that is killed in the middle of its batches loses nothing that it had acknowledged.
#[test]
fn kill_9_loses_no_acknowledged_row() {
    let folder = Folder::new();
    let shared = folder.join("shared").display().to_string();
    let data = |node: &str| folder.join(node).display().to_string();
    let mut reader = hand(&["local", &shared, &data("b"), "b"]);
    let mut acknowledged = 0;
    for round in 0..6 {
        let mut writer = hand(&["local", &shared, &data("a"), "a"]);
        for number in 0..4 + round {
            let prefix = format!("/{round}/{number}/");
            assert_eq!(writer.does("record", &[&prefix, &700]), "done");
            let answer = writer.does("purge", &[&"t"]);
            let number = answer.split(' ').nth(1).expect("a number");
            acknowledged += 1;
            assert_eq!(number, acknowledged.to_string(), "{answer}");
        }
        writer.signal(Signal::SIGKILL);
        writer.ended();
    }
    // The acknowledged row is written with those that were queued before it, so all of them are there.
    let mut writer = hand(&["local", &shared, &data("a"), "a"]);
    let rows: u32 = (0..6).map(|round| (4 + round) * 700).sum();
    assert_eq!(writer.does("resources", &[]), format!("resources {rows}"));
    assert_eq!(reader.does("reach", &[&rows]), format!("resources {rows}"));
    assert_eq!(agree(&mut [writer, reader], "outbox", None), "outbox 0");
}

/// Manifests on the mounts of a cluster.
pub(crate) fn cluster(nodes: &[LiteFs], folder: &Folder) -> Vec<Hand> {
    let nodes = nodes.iter().enumerate();
    nodes.map(|(at, node)| on_node(at, node, folder)).collect()
}

/// The manifest of node `n<at>`, again if there was one.
pub(crate) fn on_node(at: usize, node: &LiteFs, folder: &Folder) -> Hand {
    let mount = node.mount_dir().display().to_string();
    let data = folder.join(&format!("n{at}")).display().to_string();
    hand(&["litefs", &mount, node.http_addr(), &data, &format!("n{at}")])
}

/// All agree on that many resources and have nothing left to say; every copy of every database is sound, and what is
/// there of batches that were cut is whole or nothing, and the same everywhere.
pub(crate) fn agree_on(hands: &mut [Hand], resources: u32) {
    let resources = format!("resources {resources}");
    agree(hands, "resources", Some(&resources));
    agree(hands, "outbox", Some("outbox 0"));
    agree(hands, "rows", None);
    for author in 0..hands.len() {
        let half = agree(hands, &format!("half n{author}"), None);
        assert!(
            ["half 0 ok", "half 200 ok"].contains(&half.as_str()),
            "n{author}: {half}"
        );
    }
}

/// Each node records its own and what all record; waits until all have all.
pub(crate) fn record(hands: &mut [Hand], round: &str, count: u32, total: u32) {
    for (at, hand) in hands.iter_mut().enumerate() {
        hand.order("record", &[&format!("/{round}/own/{at}/"), &count]);
        assert_eq!(hand.answer(), "done");
        assert_eq!(
            hand.does("record", &[&format!("/{round}/all/"), &count]),
            "done"
        );
        hand.order("reach", &[&total]);
    }
    for hand in hands.iter_mut() {
        assert_eq!(hand.answer(), format!("resources {total}"));
    }
}

/// On real LiteFS three nodes agree; so they do when the primary was killed and came back, and when a replica was
/// paused. Purges are durable meanwhile.
#[test]
fn nodes_on_litefs_agree_whatever_happens_to_it() {
    let Ok(mut nodes) = LiteFs::cluster(3) else {
        return;
    };
    let folder = Folder::new();
    let mut hands = cluster(&nodes, &folder);
    record(&mut hands, "quiet", 50, 200);
    agree(&mut hands, "outbox", Some("outbox 0"));
    agree(&mut hands, "rows", None);

    nodes[0].kill();
    for hand in &mut hands {
        assert_eq!(hand.does("record", &[&"/orphaned/", &20]), "done");
        assert!(hand.does("purge", &[&"t"]).starts_with("recorded 1 "));
        assert_eq!(hand.does("resources", &[]), "resources 220");
    }
    nodes[0].restart();
    agree(&mut hands, "outbox", Some("outbox 0"));
    agree(&mut hands, "resources", Some("resources 220"));

    nodes[2].pause();
    assert!(hands[2].does("purge", &[&"t"]).starts_with("recorded 2 "));
    record(&mut hands[..2], "paused", 10, 250);
    assert_eq!(hands[2].does("record", &[&"/late/", &5]), "done");
    nodes[2].resume();
    agree(&mut hands, "resources", Some("resources 255"));
    agree(&mut hands, "outbox", Some("outbox 0"));
    let rows = agree(&mut hands, "rows", None);
    assert!(rows.starts_with("rows 259 "), "{rows}");
    for hand in &mut hands {
        assert_eq!(hand.does("close", &[]), "done");
        assert!(hand.ended().success());
    }
    drop(nodes);
}

/// Whenever LiteFS is stopped, also while rows are published and read: a purge is durable at once, and what is recorded
/// can be looked up. SQLite's one lock for all files of a process must not be held by who waits for LiteFS.
#[test]
fn a_litefs_that_is_stopped_at_any_moment_holds_up_no_purge() {
    let Ok(nodes) = LiteFs::cluster(2) else {
        return;
    };
    let folder = Folder::new();
    let mut hands = cluster(&nodes, &folder);
    record(&mut hands, "before", 20, 60);
    let mut slowest = Duration::ZERO;
    for round in 1..=400 {
        for hand in &mut hands {
            assert_eq!(hand.does("record", &[&format!("/{round}/"), &3]), "done");
        }
        // Somewhere in what follows from it.
        let number = hands[0].does("purge", &[&"t"]);
        assert!(
            number.starts_with(&format!("recorded {round} ")),
            "{number}"
        );
        nodes[1].pause();
        let since = Instant::now();
        let number = hands[1].does("purge", &[&"t"]);
        assert!(
            number.starts_with(&format!("recorded {round} ")),
            "{number}"
        );
        assert_ne!(hands[1].does("resources", &[]), "resources 0");
        slowest = slowest.max(since.elapsed());
        nodes[1].resume();
    }
    agree(&mut hands, "resources", Some("resources 1260"));
    agree(&mut hands, "rows", None);
    println!("slowest of 400: {slowest:?}");
    drop(hands);
    drop(nodes);
}

/// All write for as long as `CAJE_SOAK_SECONDS` says, three without it: the same merge everywhere, no row lost.
#[test]
fn nodes_on_litefs_agree_after_writing_all_the_time() {
    let Ok(nodes) = LiteFs::cluster(3) else {
        return;
    };
    let seconds = std::env::var("CAJE_SOAK_SECONDS").ok();
    let seconds: u32 = seconds.map_or(3, |text| text.parse().expect("a number"));
    let folder = Folder::new();
    let mut hands = cluster(&nodes, &folder);
    for hand in &mut hands {
        hand.order("soak", &[&seconds]);
    }
    let (mut batches, mut rows, mut most) = (0, 0, 0);
    for hand in &mut hands {
        let answer = hand.answer_within(HAND_PATIENCE + Duration::from_secs(seconds.into()));
        let words: Vec<&str> = answer.split(' ').collect();
        let number = |at: usize| words[at].parse::<u32>().expect("a number");
        assert_eq!(words[0], "soaked", "{answer}");
        batches += number(1);
        rows += number(2);
        most = most.max(number(2));
    }
    println!(
        "{} batches/s, {rows} rows and {most} shared",
        batches / seconds
    );
    agree(
        &mut hands,
        "resources",
        Some(&format!("resources {}", rows + most)),
    );
    agree(&mut hands, "outbox", Some("outbox 0"));
    agree(&mut hands, "rows", None);
    for (at, node) in nodes.iter().enumerate() {
        let database = node.database(&format!("m-n{at}.db"));
        let database = rusqlite::Connection::open_with_flags(
            database,
            rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
        );
        let sound = database.and_then(|database| {
            database.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0))
        });
        assert_eq!(sound.expect("a check"), "ok");
    }
    drop(hands);
    drop(nodes);
}

/// What a publication meets, what it is told, and whether it was written.
const ANSWERS: [(&str, &str); 8] = [
    ("a lock that is free", "published written"),
    ("and again", "published written"),
    ("no primary", "NoPrimary unwritten"),
    ("a primary that is back", "published written"),
    ("a lock that is not granted", "TimedOut unwritten"),
    ("a lock that is lost in silence", "published failed"),
    ("a mount that is gone", "Gone unwritten"),
    ("a mount that is back", "published written"),
];

/// The engine that fails on demand answers as LiteFS does.
#[test]
fn faults_answer_as_litefs_does() {
    let folder = Folder::new();
    let engine = Faults::open(&folder.join("shared"));
    for (situation, answer) in ANSWERS {
        match situation {
            "no primary" => engine.fail(Fault::Before),
            "a lock that is not granted" => drop(engine.stand_still()),
            "a lock that is lost in silence" => engine.fail(Fault::Unlocked),
            "a mount that is gone" => engine.fail(Fault::Gone),
            _ => {}
        }
        let got = publication(&*engine, "x", || {});
        assert_eq!(got, answer, "{situation}");
    }

    let Ok(mut nodes) = LiteFs::cluster(2) else {
        return;
    };
    // Nobody is killed on the primary while its database is empty: LiteFS would not start again.
    let mut replica = cluster(&nodes[1..], &folder).pop().expect("one");
    let mut on_primary = Hand::start(env!("CARGO_BIN_EXE_litefs_hand"));
    for (situation, answer) in ANSWERS {
        match situation {
            "no primary" => nodes[0].kill(),
            "a primary that is back" => {
                let mut watch = Watch::on(&nodes[1]);
                nodes[0].restart();
                watch.until("a primary", |event| {
                    let Event::PrimaryChange(role) = event else {
                        return false;
                    };
                    matches!(role, Role::Replica { .. })
                });
            }
            "a lock that is not granted" => {
                let stands = |node: &LiteFs| litefs::position(node.database("m-x.db")).ok();
                wait_until("the same", || stands(&nodes[0]) == stands(&nodes[1]));
                let database = nodes[0].database("m-x.db").display().to_string();
                assert_eq!(on_primary.does("read", &[&database]), "reading");
            }
            "a lock that is lost in silence" => on_primary.signal(Signal::SIGKILL),
            "a mount that is gone" => nodes[1].kill(),
            "a mount that is back" => {
                nodes[1].restart();
                assert_eq!(replica.does("joined", &[]), "joined");
            }
            _ => {}
        }
        let order = match situation {
            "a lock that is lost in silence" => "publication-with-child",
            _ => "publication",
        };
        assert_eq!(replica.does(order, &[&"x"]), answer, "{situation}");
    }
    drop((replica, on_primary));
    drop(nodes);
}

/// A writer on a replica that is killed holds up nobody but itself, and has lost nothing when it is back.
#[test]
fn a_killed_writer_on_a_replica_comes_back_whole() {
    let Ok(nodes) = LiteFs::cluster(2) else {
        return;
    };
    let folder = Folder::new();
    let mut hands = cluster(&nodes, &folder);
    record(&mut hands, "before", 20, 60);
    let replica = &mut hands[1];
    assert_eq!(replica.does("record", &[&"/killed/", &500]), "done");
    assert!(replica.does("purge", &[&"t"]).starts_with("recorded 1 "));
    replica.signal(Signal::SIGKILL);
    replica.ended();
    assert_eq!(hands[0].does("record", &[&"/alone/", &5]), "done");
    hands[1] = on_node(1, &nodes[1], &folder);
    assert!(hands[1].does("purge", &[&"t"]).starts_with("recorded 2 "));
    // A lock that nobody released is honoured for 30 seconds, unless LiteFS saw its owner go.
    agree(&mut hands, "resources", Some("resources 565"));
    agree(&mut hands, "outbox", Some("outbox 0"));
    agree(&mut hands, "rows", None);
}

/// A node that starts before LiteFS has a primary knows that it has not caught up, and has all when it says that it has.
#[test]
fn a_node_on_litefs_knows_when_it_has_caught_up() {
    let Ok(mut nodes) = LiteFs::cluster(2) else {
        return;
    };
    let folder = Folder::new();
    let mut first = cluster(&nodes[..1], &folder).pop().expect("one");
    assert_eq!(first.does("caught-up", &[]), "caught up with 0");
    nodes[1].kill();
    assert_eq!(first.does("record", &[&"/while/away/", &300]), "done");
    assert_eq!(first.does("reach", &[&300]), "resources 300");
    agree(std::slice::from_mut(&mut first), "outbox", Some("outbox 0"));
    nodes[0].kill();
    nodes[1].restart_unsynced();
    let mut second = on_node(1, &nodes[1], &folder);
    assert_eq!(second.does("record", &[&"/own/", &1]), "done");
    assert_eq!(second.does("reach", &[&1]), "resources 1");
    let status = second.does("status", &[]);
    assert!(status.contains("caught_up: false"), "{status}");
    assert!(status.contains("role: Unknown"), "{status}");
    nodes[0].restart();
    assert_eq!(second.does("caught-up", &[]), "caught up with 301");
    drop((first, second));
    drop(nodes);
}

/// LiteFS brings a new database back to its author, and stops for good if that comes while its author holds the lock
/// again: it is waited for.
#[test]
fn new_authors_on_litefs_write_at_once_and_again() {
    let Ok(nodes) = LiteFs::cluster(2) else {
        return;
    };
    let folder = Folder::new();
    let mut replica = cluster(&nodes[1..], &folder).pop().expect("one");
    for number in 0..50 {
        let author = format!("x{number}");
        for time in 0..2 {
            let answer = replica.does("publication", &[&author]);
            assert_eq!(answer, "published written", "{author}, {time}");
        }
    }
    drop(replica);
    drop(nodes);
}

/// Three plays that wait for LiteFS's clocks, side by side.
#[test]
fn locks_that_nobody_releases_end_by_themselves() {
    if LiteFs::available().is_err() {
        return;
    }
    std::thread::scope(|scope| {
        scope.spawn(a_holder_that_is_killed_or_sleeps_comes_back_whole);
        scope.spawn(an_answer_that_is_lost_ends_with_a_restart);
        scope.spawn(a_mount_that_goes_and_comes_back);
    });
}

/// Who is killed with -9 in the middle of a batch, or sleeps through the life of its lock, holds up its own database
/// and nobody else; it comes back whole, by itself.
#[expect(
    clippy::disallowed_methods,
    reason = "LiteFS's clock ends a lock, and nobody tells of it"
)]
fn a_holder_that_is_killed_or_sleeps_comes_back_whole() {
    const ASLEEP: Duration = Duration::from_secs(40);
    let Ok(nodes) = LiteFs::cluster(3) else {
        return;
    };
    let folder = Folder::new();
    let mut hands = cluster(&nodes, &folder);
    record(&mut hands, "before", 20, 80);
    agree(&mut hands, "outbox", Some("outbox 0"));
    for hand in &mut hands[1..] {
        assert_eq!(hand.does("hold", &[]), "holding");
    }
    let since = Instant::now();
    hands[1].signal(Signal::SIGKILL);
    hands[1].ended();
    hands[2].signal(Signal::SIGSTOP);
    hands[1] = on_node(1, &nodes[1], &folder);
    assert_eq!(hands[1].does("record", &[&"/after/killed/", &5]), "done");
    assert!(hands[1].does("purge", &[&"t"]).starts_with("recorded 1 "));
    // The others go on meanwhile.
    assert_eq!(hands[0].does("record", &[&"/alone/", &5]), "done");
    assert_eq!(hands[1].does("reach", &[&90]), "resources 90");
    let alone = since.elapsed();
    agree(&mut hands[1..2], "outbox", Some("outbox 0"));
    let killed = since.elapsed();
    std::thread::sleep(ASLEEP.saturating_sub(since.elapsed()));
    hands[2].signal(Signal::SIGCONT);
    let woken = Instant::now();
    hands[2].order("go", &[]);
    let answer = hands[2].answer();
    assert!(answer.starts_with("let go "), "{answer}");
    assert!(answer.contains("Lost"), "it cannot know: {answer}");
    assert_eq!(hands[2].does("record", &[&"/after/sleep/", &5]), "done");
    agree_on(&mut hands, 95);
    println!(
        "the others went on after {alone:?}; killed: published again after {killed:?}; slept: {:?} after it woke; {answer}",
        woken.elapsed()
    );
    drop(hands);
    drop(nodes);
}

/// SIGTERM in the middle of a batch: what was recorded is published, and the lock released, before the node ends.
#[test]
fn sigterm_in_the_middle_of_a_batch_leaves_the_primary_writable() {
    let Ok(nodes) = LiteFs::cluster(2) else {
        return;
    };
    let folder = Folder::new();
    let mut hands = cluster(&nodes, &folder);
    record(&mut hands, "before", 20, 60);
    for round in 0..3 {
        let mut watch = Watch::on(&nodes[0]);
        hands[1].order("soak", &[&60]);
        watch.until(
            "batches",
            |event| matches!(event, Event::Tx { database, .. } if database == "m-n1.db"),
        );
        hands[1].signal(Signal::SIGTERM);
        assert!(hands[1].ended().success());
        let since = Instant::now();
        let mut on_primary = Hand::start(env!("CARGO_BIN_EXE_litefs_hand"));
        let database = nodes[0].database("m-n1.db").display().to_string();
        // It waits for five seconds at the most, and a lock that is left lives for thirty.
        let written = on_primary.does("write", &[&database, &1]);
        assert!(written.starts_with("committed "), "{written}");
        println!("round {round}: written again after {:?}", since.elapsed());
        // A lock that is taken while the primary's word comes stops the replica for good.
        let stands = |node: &LiteFs| litefs::position(node.database("m-n1.db")).ok();
        wait_until("the same", || stands(&nodes[0]) == stands(&nodes[1]));
        hands[1] = on_node(1, &nodes[1], &folder);
        assert_eq!(hands[1].does("outbox", &[]), "outbox 0");
    }
    let resources = hands[1].does("resources", &[]);
    agree(&mut hands, "resources", Some(&resources));
    agree(&mut hands, "rows", None);
    drop(hands);
    drop(nodes);
}

/// The primary is killed while a replica is in the middle of a batch: what was said is there when it is back.
#[test]
fn a_primary_that_is_killed_in_the_middle_of_a_batch_loses_nothing() {
    let Ok(mut nodes) = LiteFs::cluster(2) else {
        return;
    };
    let folder = Folder::new();
    let mut hands = cluster(&nodes, &folder);
    record(&mut hands, "before", 20, 60);
    agree(&mut hands, "outbox", Some("outbox 0"));
    for round in 1..=3 {
        assert_eq!(hands[1].does("hold", &[]), "holding");
        nodes[0].kill();
        let since = Instant::now();
        let answer = hands[1].does("go", &[]);
        let failed = since.elapsed();
        assert!(answer.starts_with("let go Err("), "{answer}");
        assert_eq!(
            hands[1].does("record", &[&format!("/{round}/"), &5]),
            "done"
        );
        let purged = hands[1].does("purge", &[&"t"]);
        assert!(
            purged.starts_with(&format!("recorded {round} ")),
            "{purged}"
        );
        nodes[0].restart();
        let back = Instant::now();
        agree_on(&mut hands, 60 + round * 5);
        println!(
            "refused after {failed:?}, all there {:?} after its start",
            back.elapsed()
        );
    }
    assert_eq!(agree(&mut hands, "half n1", None), "half 0 ok");
    drop(hands);
    drop(nodes);
}

/// A mount that has gone, dead and then altogether: nothing is written beside it, the node says so, and all arrives when
/// it is back.
fn a_mount_that_goes_and_comes_back() {
    let Ok(mut nodes) = LiteFs::cluster(2) else {
        return;
    };
    let folder = Folder::new();
    let mut hands = cluster(&nodes, &folder);
    record(&mut hands, "before", 20, 60);
    agree(&mut hands, "outbox", Some("outbox 0"));
    let gone = "trouble nobody serves the manifest's folder";
    for (round, is_dead) in [(1, true), (2, false)] {
        nodes[1].kill();
        if !is_dead {
            nodes[1].unmount();
        }
        assert_eq!(
            hands[1].does("record", &[&format!("/{round}/"), &5]),
            "done"
        );
        let purged = hands[1].does("purge", &[&"t"]);
        assert!(
            purged.starts_with(&format!("recorded {round} ")),
            "{purged}"
        );
        wait_until(gone, || hands[1].does("trouble", &[]).starts_with(gone));
        if !is_dead {
            let left = std::fs::read_dir(nodes[1].mount_dir()).expect("a folder");
            assert_eq!(left.count(), 0, "written where nothing is mounted");
        }
        nodes[1].restart();
        let back = Instant::now();
        agree_on(&mut hands, 60 + round * 5);
        wait_until("no trouble", || {
            hands[1].does("trouble", &[]) == "trouble none"
        });
        println!("all there {:?} after its start", back.elapsed());
    }
    drop(hands);
    drop(nodes);
}

/// The answer to a commit is lost: the rows are there, and the author's own copy stands still until the restart that
/// the node asks for.
fn an_answer_that_is_lost_ends_with_a_restart() {
    let Ok((mut nodes, wire)) = LiteFs::cluster_on_a_wire(2) else {
        return;
    };
    let folder = Folder::new();
    let mut hands = cluster(&nodes, &folder);
    record(&mut hands, "before", 20, 60);
    agree(&mut hands, "outbox", Some("outbox 0"));
    assert_eq!(hands[1].does("hold", &[]), "holding");
    let mut watch = Watch::on(&nodes[0]);
    wire.mute();
    hands[1].order("go", &[]);
    watch.until(
        "the commit",
        |event| matches!(event, Event::Tx { database, .. } if database == "m-n1.db"),
    );
    wire.cut();
    let since = Instant::now();
    let answer = hands[1].answer();
    assert!(answer.starts_with("let go Err("), "{answer}");
    assert_eq!(hands[1].does("record", &[&"/after/", &5]), "done");
    assert!(hands[1].does("purge", &[&"t"]).starts_with("recorded 1 "));
    let mut trouble = String::new();
    wait_until("trouble", || {
        trouble = hands[1].does("trouble", &[]);
        trouble.contains("try: restart LiteFS")
    });
    let asked = since.elapsed();
    nodes[1].restart();
    let back = Instant::now();
    agree_on(&mut hands, 65);
    assert_eq!(agree(&mut hands, "half n1", None), "half 200 ok");
    println!(
        "{trouble:?} after {asked:?}; all there {:?} after the restart",
        back.elapsed()
    );
    drop(hands);
    drop(nodes);
}

/// A disk that is full under LiteFS's data, a replica's and the primary's: nothing that was said is lost, and all arrives
/// when there is room again and LiteFS, if it has ended, was started.
#[test]
fn a_disk_that_is_full_loses_nothing() {
    let Ok(mut nodes) = LiteFs::cluster(2) else {
        return;
    };
    let folder = Folder::new();
    nodes.iter_mut().for_each(|node| node.limit_disk(16 << 20));
    let mut hands = cluster(&nodes, &folder);
    record(&mut hands, "before", 20, 60);
    agree(&mut hands, "outbox", Some("outbox 0"));
    for (round, full) in [(1, 1), (2, 0)] {
        let filler = nodes[full].data_dir().join("filler");
        let mut file = std::fs::File::create(&filler).expect("a file");
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
        drop(file);
        for hand in &mut hands {
            assert_eq!(
                hand.does("record", &[&format!("/full/{round}/"), &50]),
                "done"
            );
            let purged = hand.does("purge", &[&"t"]);
            assert!(
                purged.starts_with(&format!("recorded {round} ")),
                "{purged}"
            );
        }
        let is_told = |line: &String| line.contains("no space left on device");
        wait_until("a full disk", || nodes[full].log().iter().any(is_told));
        if full == 0 {
            for hand in &mut hands {
                let fails = |text: &str| text.contains("publications have failed in a row");
                wait_until("trouble", || fails(&hand.does("trouble", &[])));
            }
        }
        std::fs::remove_file(&filler).expect("remove a file");
        let room = Instant::now();
        let has_ended = nodes[full].has_ended();
        if has_ended {
            nodes[full].restart();
        }
        agree_on(&mut hands, 60 + round * 50);
        println!(
            "node {full}: LiteFS ended: {has_ended}; all there {:?} after there was room",
            room.elapsed()
        );
    }
    drop(hands);
    drop(nodes);
}
