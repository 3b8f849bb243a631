//! The store from the outside: what was put comes back or is absent, whatever happens in between.
//! Every byte is a function of the object's name and the place, so that every byte is checked.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use super::*;

const BLOCK: u64 = 16 << 10;

/// A directory that goes with the test.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("caje-store-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn settings(&self) -> Settings {
        Settings {
            block_size: BlockSize::new(BLOCK as u32).unwrap(),
            segment_bytes: AREA_BYTES,
            index_delay: Duration::from_millis(5),
            ..Settings::new(self.0.join("cache"), 16 << 20, 8 << 20)
        }
    }

    /// Hardly any memory, so that reads come from the disk.
    fn cold_settings(&self) -> Settings {
        Settings {
            memory_bytes: 1,
            dirty_bytes: 1 << 20,
            ..self.settings()
        }
    }

    fn segment(&self, number: u32) -> fs::File {
        let path = self.0.join(format!("cache/segment-{number:04}"));
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap()
    }

    fn index(&self) -> PathBuf {
        self.0.join("cache/index.db")
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn open(settings: Settings) -> (Store, Vec<Recovered>) {
    Store::open(settings, StoreEvents::default()).unwrap()
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// On a ring where there is one.
fn ring_on<F: Future>(future: F) -> F::Output {
    if ring_available().is_err() {
        return block_on(future);
    }
    tokio_uring::start(async {
        let _ring = attach_ring();
        future.await
    })
}

fn bytes_of(name: u64, range: std::ops::Range<u64>) -> Vec<u8> {
    let seed = name.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    range
        .map(|at| (seed.wrapping_add(at.wrapping_mul(31)) >> (at % 23)) as u8)
        .collect()
}

fn block_bytes(name: u64, block: u32, length: u64) -> Vec<u8> {
    let start = u64::from(block) * BLOCK;
    bytes_of(name, start..(start + BLOCK).min(length))
}

fn growing(bytes: &[u8]) -> GrowingBlock {
    let mut block = GrowingBlock::with_capacity(BLOCK as usize);
    assert_eq!(block.append(bytes), bytes.len());
    block
}

fn block_count(length: u64) -> u32 {
    length.div_ceil(BLOCK) as u32
}

async fn store_body(store: &Store, name: u64, length: u64) -> Arc<Object> {
    let object = store.create();
    object.set_length(length);
    for block in 0..block_count(length) {
        let bytes = block_bytes(name, block, length);
        store.put(&object, BlockIndex(block), growing(&bytes)).await;
    }
    store.publish(
        &object,
        &name.to_le_bytes(),
        Box::from(&b"head"[..]),
        Facts::default(),
    );
    object
}

fn missing(object: &Object, range: std::ops::Range<u32>, max_gap: u32) -> Vec<(u32, u32)> {
    let runs = object.missing_runs(range, max_gap);
    runs.into_iter().map(|run| (run.start, run.end)).collect()
}

fn name_of(recovered: &Recovered) -> u64 {
    u64::from_le_bytes(recovered.key[..].try_into().unwrap())
}

async fn check_body(store: &Store, object: &Arc<Object>, name: u64) {
    let length = object.length().unwrap();
    assert!(object.is_complete());
    for block in 0..block_count(length) {
        let read = store.read(object, BlockIndex(block)).await.unwrap();
        assert!(
            read == block_bytes(name, block, length),
            "object {name}, block {block}"
        );
    }
}

fn survives_a_restart(settings: Settings) {
    let lengths = [0, 1, 1024, BLOCK, BLOCK + 1, 10 * BLOCK - 7];
    ring_on(async {
        let (store, recovered) = open(settings.clone());
        assert!(recovered.is_empty());
        for (name, length) in lengths.into_iter().enumerate() {
            let object = store_body(&store, name as u64, length).await;
            assert_eq!(object.present_bytes(), length);
            check_body(&store, &object, name as u64).await;
        }
        store.touch(&store.create(), SystemTime::UNIX_EPOCH);
        store.flush().await;
    });
    ring_on(async {
        let (store, recovered) = open(settings.clone());
        assert_eq!(recovered.len(), lengths.len());
        for found in &recovered {
            let name = name_of(found);
            assert_eq!(found.object.length(), Some(lengths[name as usize]));
            assert_eq!(&found.head[..], b"head");
            check_body(&store, &found.object, name).await;
        }
        let page = PAGE_BYTES as u64;
        let pages: u64 = lengths.iter().map(|length| length.div_ceil(page)).sum();
        assert_eq!(store.usage().disk_bytes, pages * page);
        assert_eq!(
            store.metrics().reads.load(Ordering::Relaxed),
            1 + 1 + 1 + 2 + 10
        );
        assert!(store.create().id().0 > recovered.last().unwrap().object.id().0);
    });
}

#[test]
fn bodies_survive_a_restart() {
    survives_a_restart(TempDir::new().settings());
}

#[test]
fn bodies_survive_a_restart_with_blocking_threads() {
    let dir = TempDir::new();
    let settings = Settings {
        io: IoMode::Blocking,
        ..dir.settings()
    };
    survives_a_restart(settings.clone());
    let (store, _) = open(settings);
    assert_eq!(
        store.health(),
        Health {
            disk: DiskHealth::Ok,
            io: "threads"
        }
    );
}

#[test]
fn bodies_survive_a_restart_where_o_direct_is_refused() {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() {
        let dir = TempDir(shm.join(format!("caje-store-{}", std::process::id())));
        survives_a_restart(dir.settings());
    }
}

#[test]
fn dropping_the_store_writes_everything() {
    let dir = TempDir::new();
    let (store, _) = open(dir.settings());
    block_on(store_body(&store, 7, 5 * BLOCK));
    drop(store);
    let (store, recovered) = open(dir.settings());
    block_on(check_body(&store, &recovered[0].object, 7));
}

#[test]
fn a_second_process_is_refused() {
    let dir = TempDir::new();
    let (store, _) = open(dir.settings());
    let second = Store::open(dir.settings(), StoreEvents::default());
    let Err(OpenError::Locked { dir: refused }) = second else {
        panic!("opened twice")
    };
    assert_eq!(refused, dir.settings().dir);
    let held = store.create();
    drop(store);
    open(dir.settings());
    drop(held);
}

#[test]
fn the_directory_is_private() {
    let dir = TempDir::new();
    let path = dir.settings().dir;
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let (_store, _) = open(dir.settings());
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o700
    );
}

#[test]
fn blocks_are_visible_at_once_and_only_whole() {
    let dir = TempDir::new();
    let (store, _) = open(dir.settings());
    let object = store.create();
    let put = |block, bytes: usize| {
        drop(store.put(&object, BlockIndex(block), growing(&vec![3; bytes])));
        object.contains(BlockIndex(block))
    };
    assert!(!put(0, 100), "the end cannot be known");
    assert!(put(0, BLOCK as usize));
    object.set_length(2 * BLOCK + 10);
    assert!(!put(2, 9));
    assert!(!put(2, 11));
    assert!(!put(3, 10));
    assert!(put(2, 10));
    assert_eq!(store.cached(&object, BlockIndex(2)).unwrap().len(), 10);
    assert_eq!(missing(&object, 0..3, 0), [(1, 2)]);
    assert!(!object.is_complete());
    assert!(put(1, BLOCK as usize));
    assert!(object.is_complete());
    assert_eq!(store.metrics().refused_blocks.load(Ordering::Relaxed), 4);
    // The length was not what it seemed: what does not fit goes.
    object.set_length(BLOCK + 5);
    assert_eq!(missing(&object, 0..3, 0), [(1, 3)]);
    assert_eq!(object.present_bytes(), BLOCK);
}

#[test]
fn missing_runs_join_over_small_gaps() {
    let dir = TempDir::new();
    let (store, _) = open(dir.settings());
    let object = store.create();
    for block in [2, 5, 6] {
        drop(store.put(&object, BlockIndex(block), growing(&[1; BLOCK as usize])));
    }
    assert_eq!(missing(&object, 0..10, 0), [(0, 2), (3, 5), (7, 10)]);
    assert_eq!(missing(&object, 0..10, 1), [(0, 5), (7, 10)]);
    assert_eq!(missing(&object, 0..10, 2), [(0, 10)]);
    assert_eq!(missing(&object, 2..3, 9), []);
    assert_eq!(missing(&object, 5..9, 9), [(7, 9)]);
    assert_eq!(missing(&object, 4..4, 9), []);
}

#[test]
fn a_small_body_costs_little_memory() {
    let dir = TempDir::new();
    let (store, _) = open(dir.settings());
    block_on(async {
        for name in 0..100 {
            store_body(&store, name, 1024).await;
        }
    });
    assert!(store.usage().memory_bytes < 100 * 2048);
    assert_eq!(store.health().disk, DiskHealth::Ok);
}

#[test]
fn a_changed_byte_on_disk_is_never_given_out() {
    let dir = TempDir::new();
    ring_on(async {
        let (store, _) = open(dir.cold_settings());
        let object = store_body(&store, 1, 4 * BLOCK).await;
        store.flush().await;
        let Some(Slot::Disk(extent)) = object.state.lock().slots.get(2).map(|slot| match slot {
            Slot::Disk(extent) => Slot::Disk(*extent),
            _ => panic!("not written"),
        }) else {
            panic!("absent")
        };
        let offset = u64::from(extent.page) * PAGE_BYTES as u64 + 4711;
        let mut byte = [0];
        dir.segment(0).read_exact_at(&mut byte, offset).unwrap();
        byte[0] ^= 4;
        dir.segment(0).write_all_at(&byte, offset).unwrap();
        assert_eq!(
            store.read(&object, BlockIndex(2)).await,
            Err(ReadError::Corrupt)
        );
        assert_eq!(
            store.read(&object, BlockIndex(2)).await,
            Err(ReadError::Absent)
        );
        assert_eq!(missing(&object, 0..4, 0), [(2, 3)]);
        assert_eq!(store.metrics().crc_errors.load(Ordering::Relaxed), 1);
        // It can be had again.
        store
            .put(
                &object,
                BlockIndex(2),
                growing(&block_bytes(1, 2, 4 * BLOCK)),
            )
            .await;
        store.flush().await;
        check_body(&store, &object, 1).await;
    });
    let (store, recovered) = open(dir.settings());
    block_on(check_body(&store, &recovered[0].object, 1));
}

#[test]
fn a_read_error_is_a_miss() {
    let dir = TempDir::new();
    let settings = dir.cold_settings();
    let faults = settings.faults.clone();
    ring_on(async {
        let (store, _) = open(settings);
        let object = store_body(&store, 1, 3 * BLOCK).await;
        store.flush().await;
        faults.read.store(nix::libc::EIO, Ordering::Relaxed);
        let error = store.read(&object, BlockIndex(1)).await;
        assert_eq!(
            error,
            Err(ReadError::Io {
                errno: nix::libc::EIO
            })
        );
        faults.read.store(0, Ordering::Relaxed);
        assert!(!object.contains(BlockIndex(1)));
        assert!(store.read(&object, BlockIndex(2)).await.is_ok());
        assert_eq!(store.health().disk, DiskHealth::Ok);
    });
}

#[test]
fn errors_in_a_row_end_the_use_of_the_disk() {
    let dir = TempDir::new();
    let settings = dir.settings();
    let faults = settings.faults.clone();
    block_on(async {
        let (store, _) = open(settings);
        faults.write.store(nix::libc::EIO, Ordering::Relaxed);
        let object = store_body(&store, 1, 2 * u64::from(IO_ERRORS) * BLOCK).await;
        store.flush().await;
        assert!(matches!(store.health().disk, DiskHealth::Off { .. }));
        faults.write.store(0, Ordering::Relaxed);
        // Memory goes on.
        check_body(&store, &object, 1).await;
        let other = store_body(&store, 2, 2 * BLOCK).await;
        store.flush().await;
        check_body(&store, &other, 2).await;
        assert_eq!(store.usage().disk_bytes, 0);
    });
}

#[test]
fn a_full_disk_degrades_and_recovers() {
    for fault in ["write", "reserve"] {
        let dir = TempDir::new();
        let settings = dir.settings();
        let faults = settings.faults.clone();
        let fault = if fault == "write" {
            &faults.write
        } else {
            &faults.reserve
        };
        block_on(async {
            let (store, _) = open(settings);
            fault.store(nix::libc::ENOSPC, Ordering::Relaxed);
            let object = store_body(&store, 1, 3 * BLOCK).await;
            store.flush().await;
            assert!(matches!(store.health().disk, DiskHealth::Degraded { .. }));
            assert!(store.metrics().enospc.load(Ordering::Relaxed) > 0);
            check_body(&store, &object, 1).await;
            fault.store(0, Ordering::Relaxed);
            // Time passes.
            let disk = store.shared().disk.as_ref().unwrap();
            for until in [&disk.full_until, &disk.no_growth_until] {
                if let Some(until) = until.lock().as_mut() {
                    *until = Instant::now();
                }
            }
            let object = store_body(&store, 2, 3 * BLOCK).await;
            store.flush().await;
            assert_eq!(store.health().disk, DiskHealth::Ok);
            assert_eq!(store.usage().disk_bytes, 3 * BLOCK);
            check_body(&store, &object, 2).await;
        });
        let (store, recovered) = open(dir.settings());
        let complete: Vec<_> = recovered
            .iter()
            .filter(|found| found.object.is_complete())
            .map(name_of)
            .collect();
        assert_eq!(complete, [2]);
        assert_eq!(store.usage().disk_bytes, 3 * BLOCK);
    }
}

/// Where the disk has nothing to give, nothing that lives in memory is evicted to make room there.
#[test]
fn a_disk_without_room_leaves_what_is_in_memory() {
    let dir = TempDir::new();
    let settings = dir.settings();
    settings
        .faults
        .reserve
        .store(nix::libc::ENOSPC, Ordering::Relaxed);
    block_on(async {
        let (store, _) = open(settings);
        let mut objects = Vec::new();
        for seed in 0..5 {
            objects.push(store_body(&store, seed, 3 * BLOCK).await);
            store.flush().await;
        }
        assert_eq!(store.metrics().evictions.load(Ordering::Relaxed), 0);
        for (seed, object) in (0..).zip(&objects) {
            check_body(&store, object, seed).await;
        }
    });
}

#[test]
fn a_read_only_file_system_still_serves() {
    let dir = TempDir::new();
    let settings = dir.cold_settings();
    let faults = settings.faults.clone();
    block_on(async {
        let (store, _) = open(settings);
        let object = store_body(&store, 1, 3 * BLOCK).await;
        store.flush().await;
        faults.write.store(nix::libc::EROFS, Ordering::Relaxed);
        store_body(&store, 2, BLOCK).await;
        store.flush().await;
        let DiskHealth::Degraded { reason } = store.health().disk else {
            panic!("not noticed")
        };
        assert!(reason.contains("read-only"));
        check_body(&store, &object, 1).await;
    });
}

#[test]
fn an_index_that_cannot_be_written_ends_the_writes() {
    let dir = TempDir::new();
    let settings = dir.settings();
    let faults = settings.faults.clone();
    block_on(async {
        let (store, _) = open(settings);
        let first = store_body(&store, 1, 2 * BLOCK).await;
        store.flush().await;
        faults.index.store(1, Ordering::Relaxed);
        store_body(&store, 2, 2 * BLOCK).await;
        for _ in 0..5 {
            store.flush().await;
        }
        assert!(matches!(store.health().disk, DiskHealth::Degraded { .. }));
        faults.index.store(0, Ordering::Relaxed);
        check_body(&store, &first, 1).await;
    });
    let (store, recovered) = open(dir.settings());
    assert_eq!(recovered.iter().map(name_of).collect::<Vec<_>>(), [1]);
    block_on(check_body(&store, &recovered[0].object, 1));
}

/// It is written before the rows, and not with them.
#[test]
fn a_purge_does_not_wait_for_rows() {
    let dir = TempDir::new();
    let (store, _) = open(dir.settings());
    let beside = rusqlite::Connection::open(dir.index()).unwrap();
    beside.execute_batch("DROP TABLE object").unwrap();
    block_on(async {
        store_body(&store, 1, 2 * BLOCK).await;
        let row = PurgeRow {
            selector: Box::from(&b"a tag"[..]),
            hard: 1,
            soft: 0,
        };
        assert!(store.record_purges(vec![row]).await);
    });
    let purges = beside.query_row("SELECT count(*) FROM purge", [], |row| row.get::<_, u32>(0));
    assert_eq!(purges, Ok(1));
}

/// A disk that is full for a while costs nothing: what waits for the index is written when there is room.
#[test]
fn an_index_without_room_is_written_later() {
    let dir = TempDir::new();
    let settings = dir.settings();
    let faults = settings.faults.clone();
    block_on(async {
        let (store, _) = open(settings);
        store_body(&store, 1, 2 * BLOCK).await;
        store.flush().await;
        faults.index_full.store(1, Ordering::Relaxed);
        store_body(&store, 2, 2 * BLOCK).await;
        for _ in 0..8 {
            store.flush().await;
            let row = PurgeRow {
                selector: (*b"x").into(),
                hard: 7,
                soft: 0,
            };
            assert!(!store.record_purges(vec![row]).await, "it has no room");
        }
        assert!(matches!(store.health().disk, DiskHealth::Degraded { .. }));
        assert!(!store.is_memory_only());
        faults.index_full.store(0, Ordering::Relaxed);
        store.flush().await;
        assert_eq!(store.health().disk, DiskHealth::Ok);
        store_body(&store, 3, 2 * BLOCK).await;
    });
    let (store, recovered) = open(dir.settings());
    let mut names: Vec<_> = recovered.iter().map(name_of).collect();
    names.sort_unstable();
    assert_eq!(names, [1, 2, 3]);
    assert_eq!(store.take_purges().len(), 1);
}

#[test]
fn a_directory_that_cannot_be_used_leaves_memory() {
    let dir = TempDir::new();
    fs::write(dir.0.join("cache"), "a file").unwrap();
    block_on(async {
        let (store, recovered) = open(dir.settings());
        assert!(recovered.is_empty());
        assert!(matches!(store.health().disk, DiskHealth::Off { .. }));
        for name in 0..100 {
            let object = store_body(&store, name, 20 * BLOCK).await;
            assert!(object.missing_runs(0..20, 0).len() <= 20);
            for block in 0..20 {
                if let Ok(read) = store.read(&object, BlockIndex(block)).await {
                    assert!(read == block_bytes(name, block, 20 * BLOCK));
                }
            }
            store.flush().await;
        }
        assert!(store.usage().memory_bytes <= store.usage().memory_limit);
        // Two barriers through the writer's queue: the evictions asked for are over.
        assert!(store.metrics().evictions.load(Ordering::Relaxed) > 0);
    });
}

#[test]
fn damaged_and_later_indexes_are_set_aside() {
    let damages: [fn(&Path); 4] = [
        |path| fs::write(path, vec![b'x'; 8192]).unwrap(),
        |path| {
            let connection = rusqlite::Connection::open(path).unwrap();
            connection.pragma_update(None, "user_version", 99).unwrap();
        },
        |path| {
            let connection = rusqlite::Connection::open(path).unwrap();
            connection.execute("DROP TABLE object", []).unwrap();
        },
        |path| {
            // Pages behind the first two.
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            let length = file.metadata().unwrap().len();
            file.write_all_at(&vec![0xa5; (length - 8192) as usize], 8192)
                .unwrap();
        },
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let dir = TempDir::new();
        let (store, _) = open(dir.settings());
        block_on(store_body(&store, 1, 3 * BLOCK));
        drop(store);
        damage(&dir.index());
        let (store, recovered) = open(dir.settings());
        assert!(recovered.is_empty(), "damage {number}");
        assert_eq!(store.health().disk, DiskHealth::Ok);
        assert_eq!(store.usage().disk_bytes, 0);
        assert!(dir.0.join("cache/index.db.bad").exists());
        block_on(store_body(&store, 2, 3 * BLOCK));
        drop(store);
        let (store, recovered) = open(dir.settings());
        block_on(check_body(&store, &recovered[0].object, 2));
    }
}

#[test]
fn another_block_size_starts_empty() {
    let dir = TempDir::new();
    let (store, _) = open(dir.settings());
    block_on(store_body(&store, 1, 3 * BLOCK));
    drop(store);
    let settings = Settings {
        block_size: BlockSize::new(8192).unwrap(),
        ..dir.settings()
    };
    assert!(open(settings).1.is_empty());
}

#[test]
fn rows_that_share_pages_are_dropped() {
    let dir = TempDir::new();
    let (store, _) = open(dir.settings());
    block_on(async {
        for name in 1..=3 {
            store_body(&store, name, 2 * BLOCK).await;
        }
    });
    drop(store);
    let connection = rusqlite::Connection::open(dir.index()).unwrap();
    // The second says that its blocks are where the first one's are.
    let stored: Vec<u8> = connection
        .query_row("SELECT blocks FROM object WHERE body = 1", [], |row| {
            row.get(0)
        })
        .unwrap();
    let mut writer = layout::GroupWriter::new(0, 2);
    layout::read_group(1, 0, &stored)
        .unwrap()
        .for_each(|(block, extent)| writer.push(block, extent));
    let forged = writer.finish(2);
    connection
        .execute("UPDATE object SET blocks = ?1 WHERE body = 2", [forged])
        .unwrap();
    drop(connection);
    for _ in 0..2 {
        let (store, recovered) = open(dir.settings());
        assert_eq!(recovered.iter().map(name_of).collect::<Vec<_>>(), [3]);
        assert_eq!(store.usage().disk_bytes, 2 * BLOCK);
        block_on(check_body(&store, &recovered[0].object, 3));
    }
}

#[test]
fn rows_with_a_flipped_bit_are_dropped() {
    let dir = TempDir::new();
    let (store, _) = open(dir.settings());
    block_on(async {
        for name in 1..=4 {
            store_body(&store, name, 2 * BLOCK).await;
        }
    });
    drop(store);
    let connection = rusqlite::Connection::open(dir.index()).unwrap();
    connection
        .execute("UPDATE object SET head = X'00' WHERE body = 1", [])
        .unwrap();
    connection
        .execute(
            "UPDATE object SET key = X'0000000000000000' WHERE body = 2",
            [],
        )
        .unwrap();
    connection
        .execute("UPDATE object SET blocks = X'0102' WHERE body = 3", [])
        .unwrap();
    drop(connection);
    let (store, recovered) = open(dir.settings());
    assert_eq!(recovered.iter().map(name_of).collect::<Vec<_>>(), [4]);
    assert_eq!(store.metrics().dropped_objects.load(Ordering::Relaxed), 3);
}

#[test]
fn a_segment_of_another_store_is_not_read() {
    let (dir, other) = (TempDir::new(), TempDir::new());
    for (dir, name) in [(&dir, 1), (&other, 2)] {
        let (store, _) = open(dir.settings());
        block_on(store_body(&store, name, 3 * BLOCK));
    }
    fs::copy(
        other.0.join("cache/segment-0000"),
        dir.0.join("cache/segment-0000"),
    )
    .unwrap();
    let (store, recovered) = open(dir.settings());
    assert!(recovered.is_empty());
    block_on(store_body(&store, 3, 3 * BLOCK));
    drop(store);
    assert_eq!(open(dir.settings()).1.len(), 1);
}

#[test]
fn a_lower_limit_gives_space_back() {
    let dir = TempDir::new();
    let (store, _) = open(dir.settings());
    block_on(async {
        for name in 0..100 {
            store_body(&store, name, 6 * BLOCK).await;
        }
    });
    drop(store);
    let settings = Settings {
        size_bytes: 6 << 20,
        ..dir.settings()
    };
    let (store, recovered) = open(settings);
    assert!(
        recovered.len() > 30 && recovered.len() < 70,
        "{}",
        recovered.len()
    );
    block_on(async {
        for found in &recovered {
            check_body(&store, &found.object, name_of(found)).await;
        }
    });
    assert_eq!(dir.segment(1).metadata().unwrap().len(), 2 << 20);
    assert!(!dir.0.join("cache/segment-0002").exists());
}

#[test]
fn eviction_keeps_below_the_limit_and_spares_what_is_used() {
    let dir = TempDir::new();
    let evicted: Arc<Mutex<Vec<BodyId>>> = Arc::default();
    let events = StoreEvents {
        on_evicted: Box::new({
            let evicted = evicted.clone();
            move |object| evicted.lock().push(object.id())
        }),
        ..StoreEvents::default()
    };
    let (store, _) = Store::open(dir.cold_settings(), events).unwrap();
    ring_on(async {
        let hot = store_body(&store, 0, 10 * BLOCK).await;
        let mut objects = HashMap::new();
        // Six times the size.
        for name in 1..=600 {
            store.touch(&hot, SystemTime::UNIX_EPOCH + Duration::from_secs(name));
            let object = store_body(&store, name, 10 * BLOCK).await;
            objects.insert(object.id(), (name, Arc::downgrade(&object)));
            let usage = store.usage();
            assert!(usage.disk_bytes <= usage.disk_limit);
        }
        store.flush().await;
        assert!(!hot.is_gone());
        check_body(&store, &hot, 0).await;
        let evicted = evicted.lock().clone();
        assert_eq!(
            store.metrics().evictions.load(Ordering::Relaxed),
            evicted.len() as u64
        );
        for id in evicted {
            objects.remove(&id);
        }
        assert!(objects.len() > 50, "{} are left", objects.len());
        for (name, object) in objects.values() {
            let object = object.upgrade().unwrap();
            if object.is_complete() {
                check_body(&store, &object, *name).await;
            }
        }
    });
    let left = store.usage().objects;
    drop(store);
    let (store, recovered) = open(dir.settings());
    assert_eq!(recovered.len() as u64, left);
    assert!(store.usage().disk_bytes <= store.usage().disk_limit);
}

#[test]
fn what_is_spared_is_given_up_last() {
    let dir = TempDir::new();
    let (store, _) = open(dir.cold_settings());
    ring_on(async {
        let mut spared = Vec::new();
        for name in 0..5 {
            let object = store_body(&store, name, 10 * BLOCK).await;
            store.spare(&object, true);
            spared.push(object);
        }
        store.flush().await;
        assert_eq!(store.usage().spared_bytes, 50 * BLOCK);
        for name in 5..300 {
            store_body(&store, name, 10 * BLOCK).await;
        }
        store.flush().await;
        assert!(store.metrics().evictions.load(Ordering::Relaxed) > 100);
        assert!(spared.iter().all(|object| !object.is_gone()));
        // One that is spared no more goes as any other; where all are spared, some go.
        store.spare(&spared[0], false);
        assert_eq!(store.usage().spared_bytes, 40 * BLOCK);
        for name in 300..600 {
            let object = store_body(&store, name, 10 * BLOCK).await;
            store.spare(&object, name >= 400);
        }
        store.flush().await;
        assert!(spared[0].is_gone());
        let usage = store.usage();
        assert!(usage.disk_bytes <= usage.disk_limit);
        assert!(usage.spared_bytes > 0 && usage.spared_bytes <= usage.disk_bytes);
    });
}

#[test]
fn what_is_removed_can_be_read_by_those_who_hold_it() {
    let dir = TempDir::new();
    ring_on(async {
        let (store, _) = open(dir.cold_settings());
        let object = store_body(&store, 1, 10 * BLOCK).await;
        store.flush().await;
        store.remove(&object);
        store.remove(&object);
        assert!(object.is_gone());
        store.flush().await;
        for name in 2..20 {
            store_body(&store, name, 20 * BLOCK).await;
        }
        store.flush().await;
        check_body(&store, &object, 1).await;
        let before = store.usage().disk_bytes;
        drop(object);
        assert_eq!(store.usage().disk_bytes, before - 10 * BLOCK);
    });
    drop(open(dir.settings()));
}

#[test]
fn an_object_that_was_never_published_leaves_nothing() {
    let dir = TempDir::new();
    block_on(async {
        let (store, _) = open(dir.settings());
        let object = store.create();
        store
            .put(&object, BlockIndex(0), growing(&[1; BLOCK as usize]))
            .await;
        store.flush().await;
        assert_eq!(store.usage().disk_bytes, BLOCK);
        drop(object);
        assert_eq!(
            store.usage(),
            Usage {
                memory_bytes: 0,
                disk_bytes: 0,
                ..store.usage()
            }
        );
    });
    assert!(open(dir.settings()).1.is_empty());
}

#[test]
fn too_many_objects_are_evicted() {
    let dir = TempDir::new();
    let (store, _) = open(Settings {
        max_objects: 100,
        ..dir.settings()
    });
    block_on(async {
        for name in 0..300 {
            store_body(&store, name, 0).await;
            // Through the writer's queue.
            store_body(&store, name + 1000, 10).await;
            store.flush().await;
        }
    });
    assert!(store.usage().objects <= 102, "{}", store.usage().objects);
}

#[test]
fn concurrent_reads_share_one_operation() {
    let dir = TempDir::new();
    ring_on(async {
        let (store, _) = open(dir.cold_settings());
        let object = store_body(&store, 1, 2 * BLOCK).await;
        store.flush().await;
        let reads: Vec<_> = (0..50)
            .map(|_| tokio::task::spawn_local(store.read(&object, BlockIndex(1))))
            .collect();
        let left: Vec<_> = (0..50)
            .map(|_| tokio::task::spawn_local(store.read(&object, BlockIndex(0))))
            .collect();
        for read in reads {
            assert!(read.await.unwrap().unwrap() == block_bytes(1, 1, 2 * BLOCK));
        }
        // These leave before their block arrives, or after.
        left.into_iter().for_each(|read| read.abort());
        assert!(store.read(&object, BlockIndex(0)).await.is_ok());
        let reads = store.metrics().reads.load(Ordering::Relaxed);
        assert!((2..=3).contains(&reads), "{reads} reads");
    });
}

#[test]
fn readers_that_leave_cost_no_descriptors() {
    let dir = TempDir::new();
    ring_on(async {
        let (store, _) = open(dir.cold_settings());
        let object = store_body(&store, 1, 50 * BLOCK).await;
        store.flush().await;
        assert!(store.read(&object, BlockIndex(0)).await.is_ok());
        let segment = dir
            .settings()
            .dir
            .canonicalize()
            .unwrap()
            .join("segment-0000");
        let open_files = || {
            let open = fs::read_dir("/proc/self/fd").unwrap();
            open.filter(|fd| {
                let target = fs::read_link(fd.as_ref().unwrap().path());
                target.is_ok_and(|target| target == segment)
            })
            .count()
        };
        let before = open_files();
        for round in 0..20 {
            for block in 0..50 {
                let mut read = std::pin::pin!(store.read(&object, BlockIndex(block)));
                let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                drop(read.as_mut().poll(&mut context));
            }
            assert!(store.read(&object, BlockIndex(round)).await.is_ok());
        }
        assert_eq!(open_files(), before);
        check_body(&store, &object, 1).await;
    });
}

#[test]
fn threads_without_a_ring_and_with_one_read_the_same_store() {
    let dir = TempDir::new();
    let (store, _) = open(dir.cold_settings());
    let object = block_on(store_body(&store, 1, 40 * BLOCK));
    block_on(store.flush());
    std::thread::scope(|scope| {
        for ring in [true, false, true, false] {
            let (store, object) = (store.clone(), object.clone());
            scope.spawn(move || {
                let reads = async { check_body(&store, &object, 1).await };
                if ring {
                    ring_on(reads)
                } else {
                    block_on(reads)
                }
            });
        }
    });
}

/// The index says in the open what is on disk, also of rows from before it did.
#[test]
fn what_is_held_stands_in_the_index() {
    let dir = TempDir::new();
    let length = 300 * BLOCK + 3;
    let held = || -> Vec<(Option<i64>, i64, i64, i64)> {
        let index = rusqlite::Connection::open(dir.index()).unwrap();
        let mut rows = index
            .prepare("SELECT length, held, stale_at, variant FROM object ORDER BY body")
            .unwrap();
        rows.query_map([], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
    };
    let whole = (Some(length as i64), length as i64, 0, 0);
    ring_on(async {
        let (store, _) = open(dir.cold_settings());
        store_body(&store, 1, length).await;
        let part = store.create();
        part.set_length(length);
        let facts = Facts {
            stale_at: 7,
            variant: -8,
        };
        store.publish(&part, &2u64.to_le_bytes(), Box::default(), facts);
        store.flush().await;
        assert_eq!(held(), [whole, (Some(length as i64), 0, 7, -8)]);
        let bytes = block_bytes(2, 299, length);
        store.put(&part, BlockIndex(299), growing(&bytes)).await;
        store.flush().await;
        assert_eq!(held()[1], (Some(length as i64), BLOCK as i64, 7, -8));
    });
    let before = held();
    let index = rusqlite::Connection::open(dir.index()).unwrap();
    index
        .execute_batch(
            "DROP INDEX object_key;
             ALTER TABLE object DROP COLUMN held;
             ALTER TABLE object DROP COLUMN stale_at;
             ALTER TABLE object DROP COLUMN variant;
             PRAGMA user_version = 2",
        )
        .unwrap();
    drop(index);
    let (_store, rows) = open(dir.cold_settings());
    assert_eq!(rows.len(), 2);
    let after: Vec<_> = held().into_iter().map(|row| (row.0, row.1)).collect();
    let before: Vec<_> = before.into_iter().map(|row| (row.0, row.1)).collect();
    assert_eq!(after, before);
}

#[test]
fn a_long_body_has_several_groups() {
    let dir = TempDir::new();
    let length = 700 * BLOCK + 3;
    ring_on(async {
        let (store, _) = open(dir.cold_settings());
        let object = store.create();
        object.set_length(length);
        store.publish(
            &object,
            &1u64.to_le_bytes(),
            Box::from(&b"head"[..]),
            Facts::default(),
        );
        for block in (0..701).rev().step_by(2).chain((1..700).step_by(2)) {
            let bytes = block_bytes(1, block, length);
            store.put(&object, BlockIndex(block), growing(&bytes)).await;
        }
        store.publish(
            &object,
            &1u64.to_le_bytes(),
            Box::from(&b"new head"[..]),
            Facts::default(),
        );
        store.flush().await;
        check_body(&store, &object, 1).await;
    });
    let (store, recovered) = open(dir.settings());
    assert_eq!(&recovered[0].head[..], b"new head");
    block_on(check_body(&store, &recovered[0].object, 1));
}

#[test]
fn the_time_of_use_survives() {
    let dir = TempDir::new();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let (store, _) = open(dir.settings());
    let object = block_on(store_body(&store, 1, 10));
    block_on(store.flush());
    store.touch(&object, time);
    drop(object);
    drop(store);
    let (_store, recovered) = open(dir.settings());
    assert_eq!(recovered[0].last_use, time);
}

/// A small generator, so that a failing run can be repeated from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// What the test believes of one object.
struct Believed {
    object: Arc<Object>,
    length: u64,
}

/// Any operations, restarts, kills, faults and rotten bits: a block that is given out is right, and
/// what was flushed is there after a restart unless it was evicted or spoilt.
fn random_operations(seed: u64, steps: usize) {
    println!("seed {seed}");
    let dir = TempDir::new();
    let mut random = Random(seed | 1);
    let mut settings = dir.settings();
    settings.memory_bytes = 1 << 20;
    settings.size_bytes = 4 << 20;
    let mut names = 0;
    let mut counted = [0; 4];
    let (mut store, _) = open(settings.clone());
    let mut live: BTreeMap<u64, Believed> = BTreeMap::new();
    let mut spoilt = false;
    let rots = random.below(2) == 0;
    for _ in 0..steps {
        if random.below(4) > 0 {
            // Else what is evicted is held on to, and its pages with it.
            live.retain(|_, believed| !believed.object.is_gone());
        }
        let some = live
            .keys()
            .copied()
            .nth(random.below(live.len() as u64 + 1) as usize);
        match random.below(100) {
            0..=14 => {
                names += 1;
                let lengths = [
                    0,
                    1 + random.below(4096),
                    random.below(40 * BLOCK),
                    20 * BLOCK,
                ];
                let length = lengths[random.below(4) as usize];
                let object = store.create();
                object.set_length(length);
                store.publish(
                    &object,
                    &u64::to_le_bytes(names),
                    length.to_le_bytes().into(),
                    Facts::default(),
                );
                live.insert(names, Believed { object, length });
            }
            15..=49 => {
                let Some(name) = some else { continue };
                let Believed { object, length } = &live[&name];
                for block in 0..block_count(*length) {
                    if random.below(8) > 0 {
                        let bytes = block_bytes(name, block, *length);
                        block_on(store.put(object, BlockIndex(block), growing(&bytes)));
                    }
                }
            }
            50..=84 => {
                let Some(name) = some else { continue };
                let Believed { object, length } = &live[&name];
                let reads = async {
                    for block in 0..block_count(*length) {
                        let here = object.contains(BlockIndex(block));
                        match store.read(object, BlockIndex(block)).await {
                            Ok(bytes) => {
                                counted[0] += 1;
                                assert!(
                                    bytes == block_bytes(name, block, *length),
                                    "seed {seed}: a wrong byte in {name}, block {block}"
                                );
                            }
                            Err(error) => assert!(
                                !here || spoilt || object.is_gone() || error == ReadError::Absent,
                                "seed {seed}: {error} in {name}, block {block}"
                            ),
                        }
                        store.touch(object, SystemTime::UNIX_EPOCH);
                    }
                };
                if random.below(2) == 0 {
                    ring_on(reads)
                } else {
                    block_on(reads)
                }
            }
            85..=87 => {
                let Some(name) = some else { continue };
                store.remove(&live.remove(&name).unwrap().object);
            }
            88..=89 => {
                let Some(name) = some else { continue };
                // Evicted or not, the test forgets it; a published object lives on.
                live.remove(&name);
            }
            90 if rots => {
                if let Ok(file) = fs::OpenOptions::new()
                    .write(true)
                    .open(dir.0.join("cache/segment-0000"))
                {
                    let offset = 4096 + random.below((4 << 20) - 8192);
                    file.write_all_at(&[random.below(256) as u8; 600], offset)
                        .unwrap();
                    spoilt = true;
                }
            }
            91 => {
                let error = [nix::libc::ENOSPC, nix::libc::EIO][random.below(2) as usize];
                settings.faults.write.store(error, Ordering::Relaxed);
            }
            90..=95 => settings.faults.write.store(0, Ordering::Relaxed),
            96 => block_on(store.flush()),
            kind => {
                let flushed: Vec<(u64, Vec<u32>)> = if kind == 97 {
                    Vec::new()
                } else {
                    block_on(store.flush());
                    let usable = store.health().disk == DiskHealth::Ok;
                    let there = live
                        .iter()
                        .filter(|(_, believed)| usable && !spoilt && !believed.object.is_gone());
                    there
                        .map(|(name, believed)| {
                            let state = believed.object.state.lock();
                            let on_disk = state.slots.iter().filter_map(|(block, slot)| {
                                matches!(slot, Slot::Disk(_)).then_some(block)
                            });
                            (*name, on_disk.collect())
                        })
                        .collect()
                };
                live.clear();
                let metrics = store.metrics();
                counted[1] += metrics.reads.load(Ordering::Relaxed);
                counted[2] += metrics.evictions.load(Ordering::Relaxed);
                counted[3] += metrics.crc_errors.load(Ordering::Relaxed);
                if kind < 99 {
                    store.kill()
                } else {
                    drop(store)
                }
                settings.faults.write.store(0, Ordering::Relaxed);
                let recovered;
                (store, recovered) = open(settings.clone());
                for found in recovered {
                    let length = u64::from_le_bytes(found.head[..].try_into().unwrap());
                    assert_eq!(found.object.length(), Some(length), "seed {seed}");
                    live.insert(
                        name_of(&found),
                        Believed {
                            object: found.object,
                            length,
                        },
                    );
                }
                for (name, blocks) in flushed {
                    let found = live.get(&name);
                    let found = found.unwrap_or_else(|| panic!("seed {seed}: {name} is lost"));
                    for block in blocks {
                        assert!(
                            found.object.contains(BlockIndex(block)),
                            "seed {seed}: block {block} of {name} is lost"
                        );
                    }
                }
            }
        }
        let usage = store.usage();
        assert!(usage.disk_bytes <= usage.disk_limit, "seed {seed}");
    }
    let [right, reads, evictions, spoilt] = counted;
    println!("{right} right blocks, {reads} disk reads, {evictions} evictions, {spoilt} spoilt");
    drop(live);
    store.shared().queue.lock().members().for_each(|object| {
        let state = object.state.lock();
        let bytes: u64 = state
            .slots
            .iter()
            .map(|(_, slot)| u64::from(slot.bytes()))
            .sum();
        assert_eq!(state.bytes, bytes, "seed {seed}");
    });
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "a seed to repeat a failing run with"
)]
fn random_operations_never_give_a_wrong_byte() {
    if let Some(seed) = std::env::var("CAJE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
    {
        return random_operations(seed, 600);
    }
    use std::hash::{BuildHasher, RandomState};
    random_operations(1, 600);
    for round in 0..3 {
        random_operations(RandomState::new().hash_one(round), 600);
    }
}
