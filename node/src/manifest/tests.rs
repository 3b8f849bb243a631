//! The merge, the outbox and the databases, without threads.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use super::author::{self, AuthorError, Owner, Page};
use super::local::{Change, Listing, Local, Outgoing, PAGE_ROWS};
use super::read::{Cursor, Filter, PurgeCursor, Reader};
use super::rows::tests::resource;
use super::rows::{Kind, Purge, Resource, Row, Selector, to_json};
use crate::clock::{HybridClock, Stamp};
use crate::cluster::Turn;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("caje-manifest-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn database(&self, author: &str) -> PathBuf {
        self.0.join(format!("m-{author}.db"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(dir: &Path, node: &str) -> Local {
    Local::open(dir, node, 1000, Arc::new(HybridClock::new())).unwrap()
}

fn record(resource: &Resource) -> Change {
    let (key, value) = resource.encode().unwrap();
    Change::Record {
        key,
        value,
        about: resource.about.clone(),
    }
}

fn forget(resource: &Resource) -> Change {
    Change::Remove {
        kind: Kind::Resource,
        key: resource.id.encode(),
    }
}

fn purge(tag: &'static str) -> Change {
    let purge = Purge {
        selector: Selector::Tag { tag: tag.into() },
        soft: false,
    };
    Change::Purge {
        value: to_json(&purge).unwrap(),
        purge,
    }
}

fn publish(local: &Local, database: &Path) -> usize {
    let rows = local.outbox(PAGE_ROWS).unwrap();
    author::write(
        &Turn::new(database),
        local.owner(),
        &HybridClock::new(),
        &rows,
    )
    .unwrap();
    local.published(&rows).unwrap();
    rows.len()
}

/// Reads all that is new in another's database.
fn follow(local: &Local, database: &Path, author: &str) {
    follow_by(local, database, author, 3);
}

fn follow_by(local: &Local, database: &Path, author: &str, rows: usize) {
    loop {
        let after = local.watermark(author).unwrap();
        let page = author::read(database, author, after, rows, true).unwrap();
        let merged = local.merge(author, &page).unwrap();
        if !merged.is_another && !page.has_more {
            return;
        }
    }
}

fn merged(local: &Local) -> Vec<Row> {
    Reader::open(local.path()).unwrap().all_rows().unwrap()
}

fn urls(local: &Local, filter: &Filter) -> Vec<String> {
    let reader = Reader::open(local.path()).unwrap();
    let mut after = Cursor::default();
    let mut urls = Vec::new();
    loop {
        let list = reader.resources(filter, &after, 2).unwrap();
        urls.extend(list.items.into_iter().map(|item| item.resource.about.url));
        match list.next {
            Some(next) => after = next,
            None => return urls,
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

fn seed() -> u64 {
    let time = std::time::Instant::now();
    let seed = std::ptr::from_ref(&time) as u64 ^ u64::from(std::process::id()) << 32 | 1;
    println!("seed {seed}");
    seed
}

/// Any order, any number of times, in any pieces: the same merge.
#[test]
fn merging_is_commutative_associative_and_idempotent() {
    let mut random = Random(seed());
    for _ in 0..12 {
        let mut rows = Vec::new();
        for number in 0..60 {
            let target = format!("/{}", random.below(7));
            let mut resource = resource(&target);
            resource.about.why = number.to_string();
            let (key, value) = resource.encode().unwrap();
            rows.push(Row {
                kind: 1,
                key,
                // Different authors say something at the same time.
                stamp: Stamp(random.below(12)),
                author: ["a", "b", "c"][random.below(3) as usize].into(),
                value: (random.below(3) > 0).then_some(value),
            });
        }
        let mut results = Vec::new();
        for _ in 0..3 {
            let folder = Folder::new();
            let local = open(&folder.0, "x");
            let mut order: Vec<usize> = (0..rows.len()).collect();
            for at in (1..order.len()).rev() {
                order.swap(at, random.below(at as u64 + 1) as usize);
            }
            // Some come again.
            order.extend((0..10).map(|_| random.below(rows.len() as u64) as usize));
            for piece in order.chunks(1 + random.below(9) as usize) {
                let page = Page {
                    instance: Some("i".into()),
                    rows: piece.iter().map(|at| rows[*at].clone()).collect(),
                    published: Stamp(1),
                    ..Page::default()
                };
                local.merge("any", &page).unwrap();
            }
            results.push(merged(&local));
        }
        assert_eq!(results[0], results[1]);
        assert_eq!(results[0], results[2]);
    }
}

#[test]
fn three_nodes_that_read_one_another_agree() {
    let shared = Folder::new();
    let folders = [Folder::new(), Folder::new(), Folder::new()];
    let names = ["a", "b", "c"];
    let locals: Vec<Local> = names
        .iter()
        .zip(&folders)
        .map(|(name, folder)| open(&folder.0, name))
        .collect();
    let mut random = Random(seed());
    for _ in 0..60 {
        let who = random.below(3) as usize;
        let target = resource(&format!("/{}", random.below(9)));
        let change = if random.below(4) == 0 {
            forget(&target)
        } else {
            record(&target)
        };
        locals[who].apply(&[change]).unwrap();
        if random.below(2) == 0 {
            publish(&locals[who], &shared.database(names[who]));
        }
        let other = random.below(3) as usize;
        if other != who {
            follow(&locals[other], &shared.database(names[who]), names[who]);
        }
    }
    for (name, local) in names.iter().zip(&locals) {
        publish(local, &shared.database(name));
    }
    for (at, local) in locals.iter().enumerate() {
        for name in names.iter().filter(|name| **name != names[at]) {
            follow(local, &shared.database(name), name);
        }
    }
    assert_eq!(merged(&locals[0]), merged(&locals[1]));
    assert_eq!(merged(&locals[0]), merged(&locals[2]));
}

#[test]
fn what_is_known_is_not_said_again() {
    let folder = Folder::new();
    let local = open(&folder.0, "a");
    let mut it = resource("/a");
    assert!(local.apply(&[record(&it)]).unwrap().to_publish);
    assert!(!local.apply(&[record(&it)]).unwrap().to_publish);
    it.about.fresh_until += 60;
    assert!(!local.apply(&[record(&it)]).unwrap().to_publish);
    it.about.fresh_until += 4000;
    assert!(local.apply(&[record(&it)]).unwrap().to_publish);
    it.about.validator = Some("\"2\"".into());
    assert!(local.apply(&[record(&it)]).unwrap().to_publish);
    assert!(local.apply(&[forget(&it)]).unwrap().to_publish);
    assert!(!local.apply(&[forget(&it)]).unwrap().to_publish);
    assert_eq!(local.outbox(10).unwrap().len(), 1, "one row for one key");
}

#[test]
fn beyond_the_bound_the_least_wanted_and_oldest_go() {
    let folder = Folder::new();
    let local = Local::open(&folder.0, "a", 3, Arc::new(HybridClock::new())).unwrap();
    let with = |path: &str, priority| {
        let mut resource = resource(path);
        resource.about.priority = priority;
        record(&resource)
    };
    local.apply(&[with("/wanted", 9), with("/1", 1)]).unwrap();
    local.apply(&[with("/2", 1), with("/3", 1)]).unwrap();
    let applied = local.apply(&[with("/4", 1), purge("t")]).unwrap();
    assert_eq!(applied.given_up, 1);
    let left: Vec<String> = ["/3", "/4", "/wanted"]
        .iter()
        .map(|path| format!("https://example.com{path}"))
        .collect();
    assert_eq!(urls(&local, &Filter::All), left);
    // Tombstones are bounded too, and the purge is none.
    let shared = Folder::new();
    for n in 5..20 {
        local.apply(&[with(&format!("/{n}"), 1)]).unwrap();
        publish(&local, &shared.database("a"));
    }
    publish(&local, &shared.database("a"));
    let rows = author::read(&shared.database("a"), "a", Stamp(0), 100, true).unwrap();
    let tombstones = rows.rows.iter().filter(|row| row.value.is_none()).count();
    assert!(tombstones <= 4, "{tombstones}");
    assert_eq!(urls(&local, &Filter::All).len(), 3);
}

#[test]
fn a_withdrawal_does_not_outdo_a_later_word() {
    let (here, there, shared) = (Folder::new(), Folder::new(), Folder::new());
    let a = Local::open(&here.0, "a", 1, Arc::new(HybridClock::new())).unwrap();
    let b = open(&there.0, "b");
    a.apply(&[record(&resource("/x"))]).unwrap();
    let mut again = resource("/x");
    again.about.validator = Some("\"2\"".into());
    b.apply(&[record(&again)]).unwrap();
    // Only now does `a` give it up for want of room.
    a.apply(&[record(&resource("/y"))]).unwrap();
    publish(&a, &shared.database("a"));
    follow(&b, &shared.database("a"), "a");
    assert_eq!(urls(&b, &Filter::All).len(), 2);
}

#[test]
fn lists_are_cut_by_prefix_host_and_tag() {
    let folder = Folder::new();
    let local = open(&folder.0, "a");
    let mut changes = Vec::new();
    for (url, tags) in [
        ("http://a.example/1", &["red", "blue"][..]),
        ("https://a.example/2", &["red"]),
        ("https://a.example.org/3", &[]),
        ("https://b.example/a/4", &["re"]),
        ("https://b.example/b/5", &[]),
    ] {
        let mut resource = resource(url);
        resource.about.url = url.into();
        resource.about.tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        changes.push(record(&resource));
    }
    local.apply(&changes).unwrap();
    let found = |filter| -> String {
        let urls = urls(&local, &filter);
        urls.iter().filter_map(|url| url.chars().last()).collect()
    };
    assert_eq!(found(Filter::All), "13245", "by URL, byte for byte");
    assert_eq!(found(Filter::Prefix("https://b.example/a".into())), "4");
    assert_eq!(found(Filter::Host("a.example".into())), "12");
    assert_eq!(found(Filter::Tag("red".into())), "12");
    assert_eq!(found(Filter::Tag("none".into())), "");
}

#[test]
fn a_lost_publication_is_published_again() {
    let (folder, shared) = (Folder::new(), Folder::new());
    let local = open(&folder.0, "a");
    let database = shared.database("a");
    for n in 0..5 {
        local.apply(&[record(&resource(&format!("/{n}")))]).unwrap();
    }
    publish(&local, &database);
    let backup = std::fs::read(&database).unwrap();
    local.apply(&[record(&resource("/later"))]).unwrap();
    local.apply(&[forget(&resource("/1"))]).unwrap();
    publish(&local, &database);
    let all = |database: &Path| {
        let page = author::read(database, "a", Stamp(0), 100, true).unwrap();
        let mut rows = page.rows;
        rows.sort_by(|a, b| a.key.cmp(&b.key));
        rows
    };
    let before = all(&database);
    std::fs::write(&database, backup).unwrap();
    assert_ne!(all(&database), before);
    let page = author::read_by_key(&database, "a", (i64::MIN, &[]), 100).unwrap();
    assert_eq!(local.compare((i64::MIN, &[]), &page, true).unwrap(), 2);
    assert_eq!(publish(&local, &database), 2);
    assert_eq!(all(&database), before);
}

/// What was undone, and done otherwise, is not read from the memory of a connection that was kept.
#[test]
fn a_kept_connection_reads_what_is_there() {
    let (folder, shared) = (Folder::new(), Folder::new());
    let database = shared.database("a");
    let local = open(&folder.0, "a");
    local.apply(&[record(&resource("/1"))]).unwrap();
    publish(&local, &database);
    let before = std::fs::read(&database).unwrap();
    let after = |path: &str| {
        std::fs::write(&database, &before).unwrap();
        local.apply(&[record(&resource(path))]).unwrap();
        publish(&local, &database);
        std::fs::read(&database).unwrap()
    };
    let (one, other) = (after("/2"), after("/3"));
    // What SQLite looks at to tell whether a file has changed.
    assert_eq!(one[24..40], other[24..40]);
    assert_ne!(one, other);
    let mut files = author::Files::kept();
    for (bytes, path) in [(&one, "/2"), (&other, "/3")] {
        std::fs::write(&database, bytes).unwrap();
        let page = files.read(&database, "a", Stamp(0), 10, false).unwrap();
        let wanted = resource(path).id.encode();
        assert_eq!(page.rows.len(), 2);
        assert!(page.rows.iter().any(|row| row.key == wanted), "{path}");
    }
}

/// A node that has lost its disk takes back what it had said, and nobody else can take its name.
#[test]
fn a_lost_disk_is_read_back() {
    let (first, second, shared) = (Folder::new(), Folder::new(), Folder::new());
    let database = shared.database("a");
    let local = open(&first.0, "a");
    local
        .apply(&[record(&resource("/1")), record(&resource("/2")), purge("t")])
        .unwrap();
    publish(&local, &database);

    let anew = open(&second.0, "a");
    anew.apply(&[record(&resource("/3"))]).unwrap();
    publish(&anew, &database);
    let page = author::read_by_key(&database, "a", (i64::MIN, &[]), 100).unwrap();
    assert_eq!(anew.compare((i64::MIN, &[]), &page, true).unwrap(), 0);
    assert_eq!(urls(&anew, &Filter::All).len(), 3);

    // The first one was alive after all: it finds out, and writes nothing.
    let first = open(&first.0, "a");
    first.apply(&[record(&resource("/4"))]).unwrap();
    let rows = first.outbox(10).unwrap();
    let turn = Turn::new(&database);
    let refused = author::write(&turn, first.owner(), &HybridClock::new(), &rows);
    assert!(
        matches!(refused, Err(AuthorError::Usurped(_))),
        "{refused:?}"
    );
}

#[test]
fn rows_survive_a_restart_and_stamps_go_on() {
    let folder = Folder::new();
    let ahead = HybridClock::new();
    ahead.witness(Stamp(u64::from(u32::MAX) << 29));
    let local = Local::open(&folder.0, "a", 10, Arc::new(ahead)).unwrap();
    local.apply(&[record(&resource("/1")), purge("t")]).unwrap();
    let last = local.outbox(10).unwrap().iter().map(|row| row.stamp).max();
    drop(local);
    let clock = Arc::new(HybridClock::new());
    let local = Local::open(&folder.0, "a", 10, clock.clone()).unwrap();
    assert_eq!(local.outbox(10).unwrap().len(), 2);
    assert!(Some(clock.tick()) > last);
    let applied = local.apply(&[purge("u")]).unwrap();
    assert_eq!(applied.purges[0].number, 2);
}

#[test]
fn a_damaged_local_db_is_set_aside() {
    let folder = Folder::new();
    drop(open(&folder.0, "a"));
    std::fs::write(
        folder.0.join("local.db"),
        "no database at all, and long enough",
    )
    .unwrap();
    let local = open(&folder.0, "a");
    local.apply(&[record(&resource("/1"))]).unwrap();
    assert!(folder.0.join("local.db.bad").exists());
}

#[test]
fn purges_come_once_and_in_order() {
    let (here, there, shared) = (Folder::new(), Folder::new(), Folder::new());
    let (a, b) = (open(&here.0, "a"), open(&there.0, "b"));
    b.apply(&[purge("own")]).unwrap();
    for tag in ["1", "2", "3"] {
        a.apply(&[purge(tag)]).unwrap();
        publish(&a, &shared.database("a"));
        follow(&b, &shared.database("a"), "a");
        follow(&b, &shared.database("a"), "a");
    }
    let reader = Reader::open(b.path()).unwrap();
    let all = reader.purges_since(&PurgeCursor::default(), 10).unwrap();
    assert!(!all.is_gapless, "nobody knows what was before");
    let heard: Vec<_> = all
        .rows
        .iter()
        .map(|row| (row.author.as_str(), row.number))
        .collect();
    assert_eq!(heard, [("b", 1), ("a", 1), ("a", 2), ("a", 3)]);
    let first = reader.purges_since(&PurgeCursor::default(), 2).unwrap();
    let rest = reader.purges_since(&first.cursor, 10).unwrap();
    assert!(rest.is_gapless);
    assert_eq!(rest.rows, all.rows[2..]);
    let none = reader.purges_since(&rest.cursor, 10).unwrap();
    assert!(none.rows.is_empty() && none.cursor == rest.cursor);
}

/// Rows that no node of ours would write are passed over, and the rest of the page is taken.
#[test]
fn forged_rows_are_not_merged() {
    let folder = Folder::new();
    let local = open(&folder.0, "a");
    let (key, value) = resource("/good").encode().unwrap();
    let mut private = resource("/private");
    private.id.variant = vec![("cookie".into(), "secret".into())];
    let row = |key: Vec<u8>, stamp, value: &str| Row {
        kind: 1,
        key,
        stamp: Stamp(stamp),
        author: "evil".into(),
        value: Some(value.into()),
    };
    let page = Page {
        instance: Some("i".into()),
        rows: vec![
            row(private.id.encode(), 1, &value),
            row(key.clone(), u64::MAX, &value),
            row(vec![1, 2, 3], 1, &value),
            row(key.clone(), 1, "{"),
            row(key.clone(), 1, r#"{"url":"file:///etc/passwd"}"#),
            row(key, 1, &value),
        ],
        published: Stamp(9),
        ..Page::default()
    };
    let merged = local.merge("evil", &page).unwrap();
    assert_eq!((merged.rows, merged.refused), (1, 5));
    assert_eq!(urls(&local, &Filter::All), ["https://example.com/good"]);
}

/// Whoever makes a database by himself may put anything into it: what is no row is passed over, and nothing too large is
/// read.
#[test]
fn what_is_no_row_is_passed_over() {
    let folder = Folder::new();
    let database = folder.database("evil");
    let made = rusqlite::Connection::open(&database).unwrap();
    let tables = "PRAGMA user_version = 1; CREATE TABLE owner (one, node, instance);
        INSERT INTO owner VALUES (1, 'evil', 'i');
        CREATE TABLE entry (kind, key, stamp, published, value);";
    made.execute_batch(tables).unwrap();
    let (key, value) = resource("/good").encode().unwrap();
    for (stamp, published, value) in [
        ("1", "1", "x'00ff'"),
        ("'soon'", "2", "'{}'"),
        ("1", "3", "printf('%.*c', 300000, 'x')"),
        ("1", "'later'", "'{}'"),
        ("1", "NULL", "'{}'"),
        ("1", "4", "1.5"),
        ("1", "5", "cast(x'ff' AS TEXT)"),
    ] {
        let insert = format!("INSERT INTO entry VALUES (1, ?1, {stamp}, {published}, {value})");
        made.execute(&insert, [&key]).unwrap();
    }
    let good = "INSERT INTO entry VALUES (1, ?1, 1, 9, ?2)";
    made.execute(good, rusqlite::params![key, value]).unwrap();
    let (mut after, mut unfit, mut rows) = (Stamp(0), 0, Vec::new());
    loop {
        let page = author::read(&database, "evil", after, 2, true).unwrap();
        unfit += page.unfit;
        rows.extend(page.rows);
        after = page.published;
        if !page.has_more {
            break;
        }
    }
    assert_eq!(unfit, 5);
    assert_eq!((rows.len(), rows[0].value.as_ref()), (1, Some(&value)));
    assert_eq!(after, Stamp(9));
}

/// A page ends before it is too large, and the next one goes on.
#[test]
fn a_page_has_a_size() {
    let folder = Folder::new();
    let (one, other) = (folder.0.join("one"), folder.0.join("other"));
    for dir in [&one, &other] {
        std::fs::create_dir(dir).unwrap();
    }
    let (local, reader) = (open(&one, "a"), open(&other, "b"));
    let large = |number: u32| {
        let mut large = resource(&format!("/{number}"));
        large.about.why = "x".repeat(200_000);
        record(&large)
    };
    let all: Vec<Change> = (0..60).map(large).collect();
    local.apply(&all).unwrap();
    let database = folder.database("a");
    publish(&local, &database);
    let page = author::read(&database, "a", Stamp(0), PAGE_ROWS, true).unwrap();
    assert!(page.has_more && (40..45).contains(&page.rows.len()));
    follow_by(&reader, &database, "a", PAGE_ROWS);
    assert_eq!(urls(&reader, &Filter::All).len(), 60);
}

#[test]
fn migrations_are_valid() {
    for migrations in [author::MIGRATIONS, super::local::MIGRATIONS] {
        rusqlite_migration::Migrations::from_slice(migrations)
            .validate()
            .unwrap();
    }
}

/// A database of a later version is read as far as it is understood, and not written.
#[test]
fn a_later_version_is_read_and_not_written() {
    let (folder, shared) = (Folder::new(), Folder::new());
    let local = open(&folder.0, "a");
    let database = shared.database("a");
    local.apply(&[record(&resource("/1"))]).unwrap();
    publish(&local, &database);
    let connection = rusqlite::Connection::open(&database).unwrap();
    connection
        .execute_batch(
            "ALTER TABLE entry ADD COLUMN later TEXT; CREATE TABLE later (x);
             PRAGMA user_version = 99",
        )
        .unwrap();
    drop(connection);
    let page = author::read(&database, "a", Stamp(0), 10, true).unwrap();
    assert_eq!(page.rows.len(), 1);
    let written = author::write(
        &Turn::new(&database),
        local.owner(),
        &HybridClock::new(),
        &[],
    );
    assert!(matches!(written, Err(AuthorError::Newer)), "{written:?}");
}

#[test]
fn what_is_no_database_yet_has_no_rows() {
    let shared = Folder::new();
    let database = shared.database("a");
    let rows = |database: &Path| author::read(database, "a", Stamp(0), 10, true);
    assert!(rows(&database).unwrap().rows.is_empty());
    std::fs::write(&database, "").unwrap();
    assert!(rows(&database).unwrap().rows.is_empty());
    std::fs::write(&database, [7; 4096]).unwrap();
    assert!(rows(&database).unwrap_err().is_damage());
}

/// Too late is not at all.
#[test]
fn a_turn_that_is_over_commits_nothing() {
    let shared = Folder::new();
    let database = shared.database("a");
    let owner = Owner {
        node: "a".into(),
        instance: "i".into(),
        is_new: true,
    };
    let (key, value) = resource("/1").encode().unwrap();
    let row = Outgoing {
        kind: 1,
        key,
        stamp: Stamp(1),
        value: Some(value),
        leaves: false,
    };
    let turn = Turn::over(&database);
    let written = author::write(&turn, &owner, &HybridClock::new(), &[row]);
    assert!(matches!(written, Err(AuthorError::Late)), "{written:?}");
    let page = author::read(&database, "a", Stamp(0), 10, true).unwrap();
    assert!(page.rows.is_empty());
}

/// A row of the store's index, as far as coverage looks.
struct Object {
    key: &'static str,
    length: Option<i64>,
    held: i64,
    stale_at: i64,
    variant: i64,
}

fn index_of(path: &Path, objects: &[Object]) {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE meta (name TEXT);
             CREATE TABLE object (key BLOB, length INTEGER, held INTEGER, stale_at INTEGER, variant INTEGER);",
        )
        .unwrap();
    for object in objects {
        let key = object.key.as_bytes();
        let row = rusqlite::params![
            key,
            object.length,
            object.held,
            object.stale_at,
            object.variant
        ];
        connection
            .execute("INSERT INTO object VALUES (?1, ?2, ?3, ?4, ?5)", row)
            .unwrap();
    }
}

#[test]
fn coverage_is_what_the_index_holds_of_the_merge() {
    use super::read::{Coverage, Held};
    let folder = Folder::new();
    let local = open(&folder.0, "a");
    let object = |key, length, held, stale_at| Object {
        key,
        length,
        held,
        stale_at,
        variant: 0,
    };
    let table = [
        ("key of /absent", None, Held::Missing),
        ("key of /begun", Some((Some(10), 0, 900)), Held::Missing),
        ("key of /endless", Some((None, 5, 900)), Held::Partial),
        ("key of /half", Some((Some(10), 9, 900)), Held::Partial),
        ("key of /old", Some((Some(10), 10, 500)), Held::Stale),
        ("key of /whole", Some((Some(10), 10, 501)), Held::Present),
        (
            "key of /without-bytes",
            Some((Some(0), 0, 900)),
            Held::Present,
        ),
    ];
    let mut objects = Vec::new();
    let mut changes = Vec::new();
    for (key, held, _) in &table {
        objects.extend(held.map(|(length, held, until)| object(key, length, held, until)));
        changes.push(record(&resource(key.strip_prefix("key of ").unwrap())));
    }
    // The best counts; what nobody recorded does not, and neither does another variant.
    objects.push(object("key of /whole", Some(10), 3, 0));
    objects.push(object("key of /unknown", Some(10), 10, 900));
    let mut varied = resource("/absent-variant");
    varied.about.variant = -7;
    changes.push(record(&varied));
    objects.push(object("key of /absent-variant", Some(1), 1, 900));
    let mut varied = resource("/x-variant");
    varied.about.variant = -7;
    changes.push(record(&varied));
    objects.push(Object {
        variant: -7,
        ..object("key of /x-variant", Some(1), 1, 900)
    });
    local.apply(&changes).unwrap();
    let index = folder.0.join("index.db");
    let mut reader = Reader::open(local.path()).unwrap();
    // Without an index nothing is here.
    let blind = reader.coverage_counts(0).unwrap();
    assert_eq!(blind.missing, reader.count().unwrap());
    assert_eq!(reader.count_lacking(&Filter::All).unwrap(), blind.missing);
    let lacking = reader.lacking(&Filter::All, &Cursor::default(), 100);
    assert_eq!(lacking.unwrap().items.len() as u64, blind.missing);
    assert_eq!(reader.count_extra(), Ok(0));
    let groups = reader.coverage_groups(0, 10, |_, _| "all".to_owned());
    assert_eq!(groups.unwrap()["all"], blind);
    assert!(reader.attach_index(&index).is_err(), "no index yet");
    index_of(&index, &objects);
    let mut reader = Reader::open(local.path()).unwrap();
    reader.attach_index(&index).unwrap();

    let mut expected: Vec<(String, Held)> = table
        .iter()
        .map(|(key, _, held)| (key.replace("key of ", "https://example.com"), *held))
        .collect();
    expected.push(("https://example.com/absent-variant".into(), Held::Missing));
    expected.push(("https://example.com/x-variant".into(), Held::Present));
    expected.sort();
    let mut found = Vec::new();
    let mut after = Cursor::default();
    loop {
        let list = reader.coverage(&Filter::All, &after, 4, 500).unwrap();
        let items = list.items.into_iter();
        found.extend(items.map(|item| (item.listed.resource.about.url, item.held)));
        match list.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(found, expected);
    let counts = reader.coverage_counts(500).unwrap();
    let (present, stale, partial, missing) = (3, 1, 2, 3);
    let all = Coverage {
        present,
        stale,
        partial,
        missing,
    };
    assert_eq!(counts, all);
}

/// Whoever follows what is listed has at each moment what the merge has.
#[test]
fn what_is_listed_is_told_as_it_changes() {
    let (a, b) = (Folder::new(), Folder::new());
    let (one, other) = (open(&a.0, "one"), open(&b.0, "other"));
    let known: Arc<Mutex<BTreeSet<Vec<u8>>>> = Arc::default();
    let follower = known.clone();
    one.apply(&[record(&resource("/a")), record(&resource("/b"))])
        .unwrap();
    one.tell_listed(Box::new(move |listing| {
        let mut known = follower.lock();
        match listing {
            Listing::Anew => known.clear(),
            Listing::Changed(changed) => {
                for named in changed {
                    match named.is_listed {
                        true => assert!(known.insert(named.cache_key)),
                        false => assert!(known.remove(&named.cache_key)),
                    }
                }
            }
            Listing::Whole => {}
        }
    }))
    .unwrap();
    let keys = |targets: &[&str]| -> BTreeSet<Vec<u8>> {
        let key = |target: &&str| resource(target).id.cache_key.to_vec();
        targets.iter().map(key).collect()
    };
    assert_eq!(*known.lock(), keys(&["/a", "/b"]));
    one.apply(&[record(&resource("/a")), forget(&resource("/b"))])
        .unwrap();
    assert_eq!(*known.lock(), keys(&["/a"]));
    other
        .apply(&[record(&resource("/c")), record(&resource("/a"))])
        .unwrap();
    let database = b.database("other");
    publish(&other, &database);
    follow(&one, &database, "other");
    assert_eq!(*known.lock(), keys(&["/a", "/c"]));
    other.apply(&[forget(&resource("/c"))]).unwrap();
    publish(&other, &database);
    follow(&one, &database, "other");
    assert_eq!(*known.lock(), keys(&["/a"]));
    // Another instance of the author: all that it had said is void.
    let c = Folder::new();
    let anew = open(&c.0, "other");
    anew.apply(&[record(&resource("/d"))]).unwrap();
    let database = c.database("other");
    publish(&anew, &database);
    follow(&one, &database, "other");
    let listed: BTreeSet<Vec<u8>> = {
        let reader = Reader::open(one.path()).unwrap();
        let list = reader.resources(&Filter::All, &Cursor::default(), 100);
        let items = list.unwrap().items.into_iter();
        items
            .map(|item| item.resource.id.cache_key.to_vec())
            .collect()
    };
    assert!(listed.is_superset(&keys(&["/d"])));
    assert_eq!(*known.lock(), listed);
}
