//! The store under a node: restarts, locks, disks that fail, and what does not fit.

use std::os::unix::fs::PermissionsExt;

use caje_node::config::Io;
use caje_node::telemetry::{DiskState, IoEngine};
use caje_tests::{Folder, Node, Origin, OriginAnswer, settings};
use slow_server::verify_body;

const SIZE: u64 = 300_000;

#[tokio::test]
async fn a_restart_keeps_the_cache() {
    let origin = Origin::start().await;
    let node = Node::start(&origin).await;
    let targets: Vec<String> = (0..50)
        .map(|n| format!("/bytes/{}/r{n}", 1 + n * 9000))
        .collect();
    for target in &targets {
        node.get(target).await.expect(200);
    }
    origin.get("/v").respond_with(|request| {
        let value = request.header("x-a").unwrap_or("none").to_owned();
        OriginAnswer::ok()
            .body(value)
            .vary("x-a")
            .cache_control("max-age=600")
    });
    for value in ["1", "2"] {
        node.get("/v").header("x-a", value).await.says(value);
    }
    node.at_rest().await;
    let asked = origin.requests_total();
    let node = node.restart().await;
    for (n, target) in (0..).zip(&targets) {
        let got = node.get(target).await.is_whole(target, 1 + n * 9000);
        assert!(got.head.is_hit(), "{}", got.head.text);
        assert!(
            got.head.has("etag") && got.head.has("age"),
            "{}",
            got.head.text
        );
    }
    for value in ["1", "2"] {
        assert!(
            node.get("/v")
                .header("x-a", value)
                .await
                .says(value)
                .head
                .is_hit()
        );
    }
    assert_eq!(origin.requests_total(), asked);
}

/// A body of which a part was here goes on being completed after a restart.
#[tokio::test]
async fn a_restart_keeps_parts() {
    let block = 256 << 10;
    let size = 10 * block;
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .generated(size)
        .etag("\"1\"")
        .ranges(true)
        .cache_control("max-age=600");
    let node = Node::start(&origin).await;
    let range = format!("{}-{}", 3 * block, 5 * block - 1);
    node.get("/a")
        .range(&range)
        .await
        .is_part("/a", 3 * block..5 * block, size);
    node.at_rest().await;
    let node = node.restart().await;
    assert!(
        node.get("/a")
            .range(&range)
            .await
            .is_part("/a", 3 * block..5 * block, size)
            .head
            .is_hit()
    );
    assert_eq!(origin.requests("/a"), 1);
    node.get("/a").await.is_whole("/a", size);
    node.at_rest().await;
    assert_eq!(origin.counts("/a").bytes, size);
}

/// A head that a 304 has updated is the updated one after a restart.
#[tokio::test]
async fn a_restart_keeps_updated_heads() {
    let origin = Origin::start().await;
    let answer = OriginAnswer::ok().generated(SIZE).etag("\"1\"");
    origin.get("/a").answer(
        answer
            .clone()
            .cache_control("max-age=60")
            .header("age", "61"),
    );
    let node = Node::start(&origin).await;
    node.get("/a").await.is_whole("/a", SIZE);
    node.at_rest().await;
    origin
        .get("/a")
        .answer(answer.cache_control("max-age=600").header("x-new", "1"));
    node.get("/a").await.is_whole("/a", SIZE);
    let node = node.restart().await;
    let got = node.get("/a").await.is_whole("/a", SIZE);
    assert!(
        got.head.is_hit() && got.head.has("x-new"),
        "{}",
        got.head.text
    );
}

/// What was invalidated stays so.
#[tokio::test]
async fn a_restart_brings_nothing_back() {
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .generated(SIZE)
        .cache_control("max-age=600");
    origin.post("/a").body("done");
    let node = Node::start(&origin).await;
    node.get("/a").await.is_whole("/a", SIZE);
    node.at_rest().await;
    node.post("/a").body("x").await.says("done");
    let node = node.restart().await;
    assert!(!node.get("/a").await.is_whole("/a", SIZE).head.is_hit());
}

#[tokio::test]
async fn a_second_node_on_the_folder_is_refused() {
    let origin = Origin::start().await;
    let node = Node::start(&origin).await;
    let refused = Node::launch(node.config()).await;
    let error = refused.err().expect("the second is refused");
    assert!(
        error.to_string().contains("in use") || error.to_string().contains("lock"),
        "{error}"
    );
    // The first has not noticed.
    let _ = origin.get("/a").generated(SIZE).cache_control("max-age=60");
    node.get("/a").await.is_whole("/a", SIZE);
    // And once it has gone, the folder is free.
    let node = node.restart().await;
    assert!(node.get("/a").await.is_whole("/a", SIZE).head.is_hit());
}

async fn works(origin: &Origin, node: &Node) {
    let _ = origin
        .get("/works")
        .generated(SIZE)
        .cache_control("max-age=60");
    node.get("/works").await.is_whole("/works", SIZE);
    node.at_rest().await;
    assert!(
        node.get("/works")
            .await
            .is_whole("/works", SIZE)
            .head
            .is_hit()
    );
}

async fn disk(node: &Node) -> DiskState {
    node.metrics().render();
    let states = [DiskState::Ok, DiskState::Degraded, DiskState::Off];
    let is = |state: &DiskState| node.metrics().disk_state.get(*state) == 1;
    states.into_iter().find(is).expect("a state")
}

#[tokio::test]
async fn threads_do_what_rings_do() {
    for (io, engine) in [
        (Io::Blocking, IoEngine::Threads),
        (Io::Auto, IoEngine::Uring),
    ] {
        let origin = Origin::start().await;
        let node = Node::with(&origin, |config| config.store.io = io).await;
        works(&origin, &node).await;
        let asked = origin.requests_total();
        let node = node.restart().await;
        // From disk.
        assert!(
            node.get("/works")
                .await
                .is_whole("/works", SIZE)
                .head
                .is_hit()
        );
        assert_eq!(origin.requests_total(), asked);
        node.metrics().render();
        if io == Io::Blocking {
            assert_eq!(node.metrics().io_engine.get(engine), 1);
        }
    }
}

/// A folder that cannot be made: the node serves, from memory alone, and says so.
#[tokio::test]
async fn a_broken_folder_leaves_a_node_that_serves() {
    let origin = Origin::start().await;
    let folder = Folder::new();
    std::fs::write(folder.join("file"), "no folder").expect("write a file");
    let mut config = settings(&origin, &folder);
    config.store.dir = folder.join("file").join("store");
    let node = Node::run(config, folder).await;
    works(&origin, &node).await;
    assert_eq!(disk(&node).await, DiskState::Off);
    let ready = node.admin("/_caje/readyz").await.expect(200).text();
    assert!(ready.contains("disk: off"), "{ready}");
}

/// An index that is no database: the node starts empty and serves.
#[tokio::test]
async fn a_broken_index_leaves_a_node_that_serves() {
    let origin = Origin::start().await;
    let folder = Folder::new();
    let config = settings(&origin, &folder);
    let store = folder.join("store");
    let node = Node::launch(config.clone()).await.expect("start");
    tokio::task::spawn_blocking(move || node.drain())
        .await
        .expect("drain");
    let mut broken = 0;
    for entry in std::fs::read_dir(&store).expect("read a folder") {
        let path = entry.expect("an entry").path();
        if path.is_file() && path.to_string_lossy().contains("index") {
            std::fs::write(&path, vec![b'x'; 9000]).expect("write a file");
            broken += 1;
        }
    }
    assert!(broken > 0, "no index in {}", store.display());
    let node = Node::run(config, folder).await;
    works(&origin, &node).await;
}

/// Bits that rot on disk are found out before the first of them is sent.
#[tokio::test]
async fn rotten_blocks_are_fetched_again() {
    let size = 3 << 20;
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .generated(size)
        .etag("\"1\"")
        .ranges(true)
        .cache_control("max-age=600");
    let _ = origin
        .get("/b")
        .generated(size)
        .cache_control("max-age=600");
    let folder = Folder::new();
    let config = settings(&origin, &folder);
    let node = Node::launch(config.clone()).await.expect("start");
    let address = node.addresses()[0];
    let mut connection = caje_tests::Connection::to(address).await;
    connection.get("/a").await.is_whole("/a", size);
    connection.get("/b").await.is_whole("/b", size);
    caje_tests::until(|| "fills".to_owned(), || node.metrics().fills.get(()) == 0).await;
    drop(connection);
    tokio::task::spawn_blocking(move || node.drain())
        .await
        .expect("drain");
    rot(&folder.join("store"));
    let node = Node::run(config, folder).await;
    for target in ["/a", "/b"] {
        let got = node.get(target).await;
        assert_eq!(
            slow_server::verify_body(target, 0, &got.body),
            Ok(()),
            "{target}"
        );
        node.at_rest().await;
        node.get(target).await.is_whole(target, size);
    }
    node.metrics().render();
    assert!(node.metrics().store_checksum_errors.get(()) > 0);
}

/// One wrong byte in every page of the segments in this folder that holds something.
pub fn rot(folder: &std::path::Path) {
    use std::io::{Read, Seek, SeekFrom, Write};
    let mut rotten = 0;
    for entry in std::fs::read_dir(folder).expect("read a folder") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if !name.starts_with("segment") {
            continue;
        }
        let mut file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .expect("open a segment");
        let mut page = vec![0; 4096];
        let mut at = 0;
        while at < 8 << 20 && file.read_exact(&mut page).is_ok() {
            if page.iter().any(|byte| *byte != 0) && at > 0 {
                file.seek(SeekFrom::Start(at + 100)).expect("seek");
                file.write_all(&[page[100] ^ 0x55]).expect("write");
                rotten += 1;
            }
            at += 4096;
            file.seek(SeekFrom::Start(at)).expect("seek");
        }
    }
    assert!(
        rotten > 0 || folder.join("index.db").exists(),
        "nothing to spoil in {}",
        folder.display()
    );
}

/// More than fits: old bodies make room, and whatever is served is right.
#[tokio::test]
async fn a_full_store_makes_room() {
    let origin = Origin::start().await;
    let node = Node::with(&origin, |config| {
        config.store.size_bytes = 16 << 20;
        config.store.memory_bytes = 4 << 20;
    })
    .await;
    for round in 0..2 {
        for n in 0..40 {
            let target = format!("/bytes/1m/{n}");
            node.get(&target).await.is_whole(&target, 1 << 20);
        }
        node.at_rest().await;
        assert!(round == 1 || node.metric("caje_store_evictions_total").await > 0.0);
    }
    assert!(node.metric("caje_store_bytes{tier=\"disk\"}").await <= 16_777_216.0);
    // The newest is here.
    assert!(
        node.get("/bytes/1m/39")
            .await
            .is_whole("/bytes/1m/39", 1 << 20)
            .head
            .is_hit()
    );
}

/// A body larger than the whole store goes through, right to its last byte.
#[tokio::test]
async fn a_body_larger_than_the_store_goes_through() {
    let origin = Origin::start().await;
    let node = Node::with(&origin, |config| {
        config.store.size_bytes = 8 << 20;
        config.store.memory_bytes = 4 << 20;
    })
    .await;
    for _ in 0..2 {
        node.get("/bytes/24m/x")
            .await
            .is_whole("/bytes/24m/x", 24 << 20);
        node.at_rest().await;
    }
    works(&origin, &node).await;
}

/// A read-only folder. Root is not held back by permissions, so the folder is made unusable another way there.
#[tokio::test]
async fn a_folder_without_permission_leaves_a_node_that_serves() {
    let origin = Origin::start().await;
    let folder = Folder::new();
    let closed = folder.join("closed");
    std::fs::create_dir(&closed).expect("make a folder");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o500))
        .expect("set permissions");
    let mut config = settings(&origin, &folder);
    config.store.dir = closed.join("store");
    let node = Node::run(config, folder).await;
    works(&origin, &node).await;
}

/// A place where no folder can ever be.
#[tokio::test]
async fn a_device_as_folder_leaves_a_node_that_serves() {
    let origin = Origin::start().await;
    let folder = Folder::new();
    let mut config = settings(&origin, &folder);
    config.store.dir = "/dev/full/store".into();
    let node = Node::run(config, folder).await;
    works(&origin, &node).await;
    assert_eq!(disk(&node).await, DiskState::Off);
}

/// Another block size: the old blocks are not misread.
#[tokio::test]
async fn another_block_size_starts_empty() {
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .generated(SIZE)
        .cache_control("max-age=600");
    let folder = Folder::new();
    let mut config = settings(&origin, &folder);
    for size in [256 << 10, 64 << 10] {
        config.store.block_size_bytes = size;
        let node = Node::launch(config.clone()).await.expect("start");
        let mut connection = caje_tests::Connection::to(node.addresses()[0]).await;
        assert!(
            !connection
                .get("/a")
                .await
                .is_whole("/a", SIZE)
                .head
                .is_hit()
        );
        caje_tests::until(|| "fills".to_owned(), || node.metrics().fills.get(()) == 0).await;
        assert!(
            connection
                .get("/a")
                .await
                .is_whole("/a", SIZE)
                .head
                .is_hit()
        );
        drop(connection);
        tokio::task::spawn_blocking(move || node.drain())
            .await
            .expect("drain");
    }
}

/// A body that is given up while somebody reads it: what they get is right, and whole or cut.
#[tokio::test]
async fn a_body_may_be_evicted_while_it_is_read() {
    let size = 6 << 20;
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .generated(size)
        .etag("\"1\"")
        .ranges(true)
        .cache_control("max-age=60");
    let node = Node::with(&origin, |config| {
        config.store.size_bytes = 16 << 20;
        config.store.memory_bytes = 4 << 20;
    })
    .await;
    node.get("/a").await.is_whole("/a", size);
    node.at_rest().await;
    let mut slow = caje_tests::Connection::narrow(node.address()).await;
    slow.send(node.get("/a").bytes()).await;
    let mut slow = slow.begin("GET").await;
    slow.take(1).await;
    for n in 0..40 {
        let target = format!("/bytes/1m/{n}");
        node.get(&target).await.is_whole(&target, 1 << 20);
    }
    let rest = slow.rest().await;
    assert_eq!(slow_server::verify_body("/a", 1, &rest.body), Ok(()));
    assert_eq!(
        rest.end,
        caje_tests::End::Whole,
        "{} bytes",
        rest.body.len()
    );
}

/// A disk that takes no more: the node serves, right to the last byte, and says so.
#[tokio::test]
async fn a_full_disk_leaves_a_node_that_serves() {
    let origin = Origin::start().await;
    let folder = Folder::new();
    let (store, url) = (folder.join("store").display().to_string(), origin.url());
    let arguments = [
        "proxy",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--memory",
        "16MiB",
    ];
    let arguments = [&arguments[..], &["--origin", &url, "--data-dir", &store]].concat();
    let program = caje_tests::Program::start_without_room(&arguments).await;
    for n in 0..40 {
        let target = format!("/bytes/1m/{n}");
        program.get(&target).await.is_whole(&target, 1 << 20);
        program
            .get(&target)
            .range("1000-1999")
            .await
            .is_part(&target, 1000..2000, 1 << 20);
    }
    program
        .get("/bytes/40m/x")
        .await
        .is_whole("/bytes/40m/x", 40 << 20);
    let deadline = tokio::time::Instant::now() + caje_tests::PATIENCE;
    loop {
        let ready = program.admin("/_caje/readyz").await.expect(200).text();
        if !ready.contains("disk: ok") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{ready}");
    }
    // From memory there are hits all the same.
    let target = "/bytes/100k/hot";
    program.get(target).await.is_whole(target, 102_400);
    let deadline = tokio::time::Instant::now() + caje_tests::PATIENCE;
    while !program
        .get(target)
        .await
        .is_whole(target, 102_400)
        .head
        .is_hit()
    {
        assert!(tokio::time::Instant::now() < deadline, "never a hit");
    }
}

/// Bodies are sent from the memory that they lie in, while others take it over: what stands in a
/// client's socket stays what was sent.
#[tokio::test]
async fn what_a_client_has_not_read_is_not_overwritten() {
    const LENGTH: u64 = 1 << 20;
    let origin = Origin::start().await;
    let node = Node::with(&origin, |config| {
        config.store.memory_bytes = 4 << 20;
    })
    .await;
    let target = |n: usize| format!("/bytes/1m/{n}");
    let mut unread = Vec::new();
    for round in 0..4 {
        for n in 0..12 {
            let target = target(n);
            node.get(&target).await.is_whole(&target, LENGTH);
            node.get(&target)
                .range("70000-139999")
                .await
                .is_part(&target, 70_000..140_000, LENGTH);
            // Its head is read and nothing else: the rest waits in the two sockets and in the node.
            unread.push((target.clone(), node.get(&target).open().await));
            if unread.len() > 16 {
                let (target, mut open) = unread.remove(round);
                let bytes = open.take(LENGTH as usize).await;
                verify_body(&target, 0, &bytes).expect("what was sent, unchanged");
            }
        }
    }
}
