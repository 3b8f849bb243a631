//! The store: bytes of bodies on this node, in memory and on its own disk.
//!
//! ```text
//!   create ─► put blocks, in any order ─► publish ─► (restart) ─► read ─► evict or remove
//!
//!   put ─► memory tier ─► writer thread ─► segment files (O_DIRECT)
//!             ▲    │            └─► index thread ─► index.db
//!   cached ◄──┘    └──── read ◄── disk, checked against its checksum
//! ```
//!
//! What it keeps true:
//! - Never a wrong byte: a block comes back as it was put, or not at all. Checksums are compared
//!   before the first byte is given out (threat K3).
//! - Never the caller's fault: a full, broken, read-only or foreign disk makes blocks absent and
//!   shows in [`Store::health`]; only a second process on the directory is an error.
//! - Threads of the data path are never blocked: reads go to the calling thread's ring, writes and
//!   everything else that waits to threads of the store's own.
//!
//! It knows no HTTP: a key and a head are bytes, of which it promises the same as of a body's.
//!
//! What can be lost: with the process, what was put or published in the last quarter of a second
//! and whatever was still to be written; with the machine, a few seconds of rows more.

mod index;
mod io;
mod layout;
mod memory;
mod object;
mod recover;
#[cfg(test)]
mod tests;
mod usage;
mod writer;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, mpsc, oneshot};

use self::index::{Index, Message};
pub use self::io::{
    BlockReader, Faults, GrowingBlock, RingGuard, attach_ring, be_gentle, may_lend, ring_available,
};
use self::io::{FrozenBlock, Io, PAGE_BYTES, Segment};
use self::layout::{AREA_BYTES, AREA_PAGES, Extent, PageMap, block_crc};
pub use self::memory::Hold;
use self::memory::Memory;
pub use self::object::Object;
use self::object::{Flight, Slot};
use self::recover::{Directory, Geometry, RecoverError, Row};
use self::usage::Ranks;
use self::writer::Job;
use crate::block::{BlockIndex, BlockSize, BodyId};

/// Blocks up to this size are copied to memory of their exact size, so that a body of 1 KiB does
/// not keep a page.
const SMALL_BYTES: usize = 16 << 10;

/// I/O errors in a row after which the disk is given up until the next start.
const IO_ERRORS: u32 = 16;

/// Pause between attempts to write to a disk that was full.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// Pause between attempts to reserve more of a disk that had no more.
const GROWTH_PAUSE: Duration = Duration::from_secs(30);

/// How the store is set up.
#[derive(Clone)]
pub struct Settings {
    /// Everything is kept below it; made (mode 0700) when absent.
    pub dir: PathBuf,
    /// Most bytes of disk for blocks. Rounded to pages.
    pub size_bytes: u64,
    /// Most bytes of memory for blocks.
    pub memory_bytes: u64,
    pub block_size: BlockSize,
    pub io: IoMode,
    /// Size of a segment file; rounded up to 4 MiB. Fixed for the life of a directory, as the block
    /// size is: with another one the store starts empty.
    pub segment_bytes: u64,
    /// Bytes that may wait to be written before [`Store::put`] makes its caller wait. 0: a quarter of
    /// the memory, at most 32 MiB.
    pub dirty_bytes: u64,
    /// Most published objects.
    pub max_objects: usize,
    /// How long changes of the index are collected before they are committed together.
    pub index_delay: Duration,
    /// Errors to be injected, for tests.
    pub faults: Arc<Faults>,
}

impl Settings {
    pub fn new(dir: impl Into<PathBuf>, size_bytes: u64, memory_bytes: u64) -> Self {
        Self {
            dir: dir.into(),
            size_bytes,
            memory_bytes,
            block_size: BlockSize::default(),
            io: IoMode::Auto,
            segment_bytes: 1 << 30,
            dirty_bytes: 0,
            max_objects: 2_000_000,
            index_delay: Duration::from_millis(250),
            faults: Arc::default(),
        }
    }
}

/// How the disk is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoMode {
    /// io_uring where the kernel lets us, else threads, with a line in the log.
    #[default]
    Auto,
    /// As `Auto`; says that threads were not wanted.
    Uring,
    /// Threads.
    Blocking,
}

/// What the store tells its owner.
pub struct StoreEvents {
    /// An object has been evicted: nobody will find it any more. Called by a thread of the store's,
    /// with no lock held; not called for [`Store::remove`].
    /// It must not own a [`Store`], which would then never end.
    pub on_evicted: Box<OnEvicted>,
    /// Blocks that were on the disk are not to be had any more: one of them is damaged, or the disk is given up. Called by
    /// whichever thread has found that, with no lock held; it must not block, nor own a [`Store`].
    pub on_damaged: Box<OnDamaged>,
}

pub type OnEvicted = dyn Fn(&Arc<Object>) + Send + Sync;
pub type OnDamaged = dyn Fn() + Send + Sync;

impl Default for StoreEvents {
    fn default() -> Self {
        Self {
            on_evicted: Box::new(|_| {}),
            on_damaged: Box::new(|| {}),
        }
    }
}

/// An object found at the start, published before.
pub struct Recovered {
    pub object: Arc<Object>,
    /// As published.
    pub key: Box<[u8]>,
    /// As last published.
    pub head: Box<[u8]>,
    pub last_use: SystemTime,
}

/// What is known of a selector's purges, as bytes of which the store promises the same as of a key's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurgeRow {
    pub selector: Box<[u8]>,
    /// The stamps of its last hard and soft purge, 0 for none. With neither, the row is deleted.
    pub hard: u64,
    pub soft: u64,
}

/// What others look up in the index of an object, without its head. It means nothing here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Seconds since 1970 from which the response is stale.
    pub stale_at: u64,
    /// Tells the objects of one key apart; 0 where there is only one.
    pub variant: i64,
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the data directory {dir} is in use by another process; give each node its own")]
    Locked { dir: PathBuf },
}

/// Why a block could not be had. The caller treats each as a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("the block is not stored")]
    Absent,
    #[error("the block on disk fails its checksum")]
    Corrupt,
    #[error("the disk failed: {}", std::io::Error::from_raw_os_error(*errno))]
    Io {
        /// As of the operating system; 0 when it gave none.
        errno: i32,
    },
    #[error("the read was cut off, because its thread ends")]
    Interrupted,
}

/// What is used of what may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of pages that blocks occupy.
    pub disk_bytes: u64,
    pub disk_limit: u64,
    /// The same, or what could be reserved of it where the file system has no more.
    pub disk_reach: u64,
    /// Bytes of pages of objects that are spared.
    pub spared_bytes: u64,
    pub memory_bytes: u64,
    pub memory_limit: u64,
    /// Bytes put and not yet written.
    pub dirty_bytes: u64,
    /// Published objects.
    pub objects: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub disk: DiskHealth,
    /// `io_uring` or `threads`.
    pub io: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskHealth {
    Ok,
    /// Blocks on disk are read; new ones may live in memory only.
    Degraded {
        reason: String,
    },
    /// Memory only.
    Off {
        reason: String,
    },
}

/// Counters since the start. Relaxed: each is right, together they may be a moment apart.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Blocks read from disk.
    pub reads: AtomicU64,
    pub read_bytes: AtomicU64,
    /// Blocks that [`Store::cached`] found.
    pub memory_hits: Striped,
    /// Blocks written to disk.
    pub writes: AtomicU64,
    pub write_bytes: AtomicU64,
    /// Blocks on disk that failed their checksum and were given up.
    pub crc_errors: AtomicU64,
    pub read_errors: AtomicU64,
    /// Writes that failed for another reason than space.
    pub write_errors: AtomicU64,
    /// Blocks that found no room on disk.
    pub enospc: AtomicU64,
    /// Objects evicted.
    pub evictions: AtomicU64,
    /// Bytes of blocks of evicted objects.
    pub evicted_bytes: AtomicU64,
    /// Blocks that [`Store::put`] did not take because their length was wrong.
    pub refused_blocks: AtomicU64,
    pub index_commits: AtomicU64,
    pub index_errors: AtomicU64,
    /// Objects found at the start.
    pub recovered_objects: AtomicU64,
    /// Rows dropped at the start because they could not be believed.
    pub dropped_objects: AtomicU64,
}

/// A counter for the hot path: threads count in places of their own.
#[derive(Debug, Default)]
pub struct Striped {
    stripes: [Stripe; STRIPES],
}

const STRIPES: usize = 8;

/// Has a cache line to itself.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe(AtomicU64);

impl Striped {
    /// The sum; the ordering is that of an ordinary counter's `load`.
    pub fn load(&self, ordering: Ordering) -> u64 {
        self.stripes
            .iter()
            .map(|stripe| stripe.0.load(ordering))
            .sum()
    }

    #[inline]
    fn increment(&self) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        thread_local! {
            static STRIPE: usize = NEXT.fetch_add(1, Ordering::Relaxed) as usize % STRIPES;
        }
        STRIPE.with(|stripe| self.stripes[*stripe].0.fetch_add(1, Ordering::Relaxed));
    }
}

impl Metrics {
    fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}

/// A handle; clones are the same store. When the last one is dropped, everything is written, the
/// store's threads have ended, and the directory is free: this blocks, so do it at the end of
/// `main`, on no data thread.
#[derive(Clone)]
pub struct Store {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    index: Option<JoinHandle<()>>,
    /// Whether to end as a killed process would.
    killed: AtomicBool,
}

/// What handles, objects and the store's threads share.
struct Shared {
    block_size: BlockSize,
    memory: Arc<Memory>,
    metrics: Metrics,
    next_body: AtomicU64,
    /// Published objects. Lock order: an object's state, then this.
    queue: Mutex<Ranks<Object>>,
    max_objects: usize,
    disk: Option<Disk>,
    health: Mutex<DiskHealth>,
    /// Bytes put and not yet written.
    dirty: AtomicU64,
    dirty_limit: u64,
    dirty_freed: Notify,
    /// Bytes of present blocks that no disk holds.
    memory_only_bytes: AtomicU64,
    /// Pages of blocks of objects that are spared.
    spared_pages: AtomicI64,
    jobs: mpsc::UnboundedSender<Job>,
    /// Found at the start, until somebody takes them.
    purges: Mutex<Vec<PurgeRow>>,
    /// Whether the writer thread has been asked to evict and has not begun.
    evict_asked: AtomicBool,
    events: StoreEvents,
}

/// The disk's part of what is shared.
struct Disk {
    io: Io,
    dir: PathBuf,
    store_id: u64,
    segment_pages: u32,
    map: Mutex<PageMap>,
    segments: RwLock<Vec<Arc<Segment>>>,
    index: Index,
    /// Pages of objects that are gone but not yet dropped.
    doomed: AtomicU64,
    /// Told when pages become free.
    freed: Notify,
    /// When a disk that was full may be tried again.
    full_until: Mutex<Option<Instant>>,
    /// When to try again to reserve more; none while that goes well.
    no_growth_until: Mutex<Option<Instant>>,
    /// Errors since the last success.
    errors: AtomicU32,
    /// Whether the last commit failed.
    index_fails: AtomicBool,
    /// No more writes: read-only, or off.
    writes_off: AtomicBool,
    /// No more anything.
    off: AtomicBool,
    /// Holds the directory.
    lock: Mutex<Option<std::fs::File>>,
}

impl Store {
    /// Opens the directory and reads its index; blocks. Where the directory cannot be used, the
    /// store is one of memory only, and [`Store::health`] and the log say why.
    ///
    /// Objects are given in ascending order of body id: of two with one key, the later is the newer
    /// one, and the other is to be removed.
    ///
    /// # Errors
    /// [`OpenError::Locked`] when another process has the directory.
    pub fn open(
        settings: Settings,
        events: StoreEvents,
    ) -> Result<(Self, Vec<Recovered>), OpenError> {
        let geometry = geometry(&settings);
        let opened = Directory::open(&settings.dir, geometry)
            .and_then(|mut directory| directory.scan(geometry).map(|scan| (directory, scan)));
        match opened {
            Ok((directory, scan)) => {
                Ok(Self::start(settings, events, Some((directory, scan)), None))
            }
            Err(RecoverError::Locked) => Err(OpenError::Locked { dir: settings.dir }),
            Err(error) => {
                let reason = format!("{}: {error}", settings.dir.display());
                Ok((
                    Self::open_memory_only(settings, events, &reason),
                    Vec::new(),
                ))
            }
        }
    }

    /// A store without a disk.
    pub fn open_memory_only(settings: Settings, events: StoreEvents, reason: &str) -> Self {
        tracing::error!(reason, "the store works in memory only");
        Self::start(settings, events, None, Some(reason.to_owned())).0
    }

    fn start(
        settings: Settings,
        events: StoreEvents,
        opened: Option<(Directory, recover::Scan)>,
        off: Option<String>,
    ) -> (Self, Vec<Recovered>) {
        let block_bytes = u64::from(settings.block_size.get());
        let memory = Arc::new(Memory::new(settings.memory_bytes, block_bytes));
        let dirty_limit = match settings.dirty_bytes {
            0 => (settings.memory_bytes / 4)
                .min(32 << 20)
                .max(4 * block_bytes),
            bytes => bytes,
        };
        let (jobs, received_jobs) = mpsc::unbounded_channel();
        let (index, received_messages) = Index::channel();
        let mut rows = Vec::new();
        let mut dropped = 0;
        let mut last_body = 0u64;
        let mut purges = Vec::new();
        let mut connection = None;
        let disk = opened.map(|(directory, scan)| {
            rows = scan.rows;
            dropped = scan.dropped;
            last_body = scan.last_body;
            purges = scan.purges;
            connection = Some(directory.index);
            let read_budget = (settings.memory_bytes / 4).clamp(4 << 20, 64 << 20);
            Disk {
                io: Io::new(
                    uses_rings(settings.io),
                    read_budget,
                    settings.faults.clone(),
                ),
                dir: directory.path,
                store_id: directory.store_id,
                segment_pages: geometry(&settings).segment_pages,
                map: Mutex::new(scan.map),
                segments: RwLock::new(scan.segments),
                index,
                doomed: AtomicU64::new(0),
                freed: Notify::new(),
                full_until: Mutex::new(None),
                no_growth_until: Mutex::new(None),
                errors: AtomicU32::new(0),
                index_fails: AtomicBool::new(false),
                writes_off: AtomicBool::new(false),
                off: AtomicBool::new(false),
                lock: Mutex::new(Some(directory.lock)),
            }
        });
        let health = match off {
            Some(reason) => DiskHealth::Off { reason },
            None => DiskHealth::Ok,
        };
        let shared = Arc::new(Shared {
            block_size: settings.block_size,
            memory,
            metrics: Metrics::default(),
            next_body: AtomicU64::new(last_body.wrapping_add(1)),
            queue: Mutex::new(Ranks::new()),
            max_objects: settings.max_objects.max(1),
            disk,
            health: Mutex::new(health),
            dirty: AtomicU64::new(0),
            dirty_limit,
            dirty_freed: Notify::new(),
            memory_only_bytes: AtomicU64::new(0),
            spared_pages: AtomicI64::new(0),
            jobs,
            purges: Mutex::new(purges),
            evict_asked: AtomicBool::new(false),
            events,
        });
        let recovered = shared.restore(rows);
        Metrics::add(&shared.metrics.recovered_objects, recovered.len() as u64);
        Metrics::add(&shared.metrics.dropped_objects, dropped);
        let writer = {
            let shared = shared.clone();
            spawn_thread("store-write", move || writer::run(shared, received_jobs))
        };
        let index = connection.and_then(|connection| {
            let (shared, faults) = (shared.clone(), settings.faults.clone());
            let delay = settings.index_delay;
            spawn_thread("store-index", move || {
                index::run(connection, received_messages, shared, delay, faults);
            })
        });
        if writer.is_none() || (shared.disk.is_some() && index.is_none()) {
            shared.give_up_disk("its threads cannot be started");
        }
        let handle = Handle {
            shared,
            writer,
            index,
            killed: AtomicBool::new(false),
        };
        (
            Self {
                handle: Arc::new(handle),
            },
            recovered,
        )
    }

    pub fn block_size(&self) -> BlockSize {
        self.shared().block_size
    }

    /// A new object, of unknown length and without blocks. Nothing of it survives the process until
    /// it is published; when it is dropped before that, all of it is.
    pub fn create(&self) -> Arc<Object> {
        let shared = &self.handle.shared;
        shared.new_object(BodyId(shared.next_body.fetch_add(1, Ordering::Relaxed)))
    }

    /// The block, when it can be had without the disk.
    #[inline]
    pub fn cached(&self, object: &Object, block: BlockIndex) -> Option<Bytes> {
        let shared = self.shared();
        let found = shared
            .memory
            .get(object.id(), block)
            .or_else(|| object.unwritten(block))?;
        shared.metrics.memory_hits.increment();
        Some(found)
    }

    /// The block, from memory or disk. Reads of the same block share one operation. On a thread with
    /// a ring (see [`attach_ring`]) it is that ring's. Dropping the future is safe at any time: the
    /// operation goes on, and what it reads goes to the memory tier.
    ///
    /// # Errors
    /// After [`ReadError::Corrupt`] and [`ReadError::Io`] the block is absent.
    pub fn read(
        &self,
        object: &Arc<Object>,
        block: BlockIndex,
    ) -> impl Future<Output = Result<Bytes, ReadError>> + Send + use<> {
        let cached = self.cached(object, block);
        let missed = match &cached {
            Some(_) => None,
            None => Some((self.handle.shared.clone(), object.clone())),
        };
        async move {
            if let Some(bytes) = cached {
                return Ok(bytes);
            }
            let Some((shared, object)) = missed else {
                return Err(ReadError::Absent);
            };
            match shared.begin_read(&object, block) {
                Begun::Found(bytes) => Ok(bytes),
                Begun::Absent => Err(ReadError::Absent),
                Begun::Reading(flight) => flight.outcome.wait().await.clone(),
            }
        }
    }

    /// Takes a block over. It can be read from now on, and is written to disk behind the caller's
    /// back. A block that is present already is left as it is. A block that is shorter than the block
    /// size is taken only at the end of a body whose length has been set.
    ///
    /// The future ends as soon as not too much waits to be written; dropping it loses nothing.
    /// Never fails: what cannot be written stays in memory as long as that has room.
    pub fn put(
        &self,
        object: &Arc<Object>,
        block: BlockIndex,
        bytes: GrowingBlock,
    ) -> impl Future<Output = ()> + Send + use<> {
        self.shared().accept(object, block, bytes);
        let shared = self.handle.shared.clone();
        async move { shared.room_to_write().await }
    }

    /// Gives the object a row in the index, or a new head: from now on what is written of it is
    /// found after a restart. The row follows within [`Settings::index_delay`].
    pub fn publish(&self, object: &Arc<Object>, key: &[u8], head: Box<[u8]>, facts: Facts) {
        self.shared().publish(object, key.into(), head, facts);
    }

    /// The purges that were recorded before the start. Given out once.
    pub fn take_purges(&self) -> Vec<PurgeRow> {
        std::mem::take(&mut *self.shared().purges.lock())
    }

    /// Writes rows about purges, in the place of those with the same selectors. They are on their way when
    /// this returns; the future tells whether they reached the disk itself, not only the machine's memory.
    /// Without a disk they do not.
    pub fn record_purges(&self, rows: Vec<PurgeRow>) -> impl Future<Output = bool> + Send + use<> {
        let disk = self.shared().disk.as_ref();
        let answered = disk.map(|disk| disk.index.record_purges(rows));
        async move {
            match answered {
                Some(answered) => answered.await.unwrap_or(false),
                None => false,
            }
        }
    }

    /// Has the index say what is so by now, within the time that a commit takes.
    pub async fn write_index(&self) {
        if let Some(disk) = &self.shared().disk {
            let (answer, answered) = oneshot::channel();
            disk.index.send(Message::Write(answer));
            // No answer: the index thread has ended, and there is nothing to wait for.
            drop(answered.await);
        }
    }

    /// Notes a use, for eviction.
    #[inline]
    pub fn touch(&self, object: &Object, now: SystemTime) {
        object.touch(now);
    }

    /// Whether the object is given up only after all that are not spared. The store forgets it at its end.
    pub fn spare(&self, object: &Arc<Object>, is_spared: bool) {
        self.shared().spare(object, is_spared);
    }

    /// Takes the object out of the store. Those who hold it can read on; its space is free when the
    /// last of them has let go.
    pub fn remove(&self, object: &Arc<Object>) {
        self.shared().doom(object);
    }

    /// Whether blocks that are put now go to a disk, as far as one can tell.
    pub fn is_durable(&self) -> bool {
        self.shared().disk.as_ref().is_some_and(|disk| {
            !disk.writes_off.load(Ordering::Relaxed) && disk.full_until.lock().is_none()
        })
    }

    /// Whether what the memory tier drops is lost.
    pub fn is_memory_only(&self) -> bool {
        let disk = self.shared().disk.as_ref();
        disk.is_none_or(|disk| disk.writes_off.load(Ordering::Relaxed))
    }

    /// The right to hold a block of this size beside the memory tier; `None` if too many are held.
    pub fn hold(&self, bytes: usize) -> Option<Hold> {
        self.shared().memory.hold(bytes as u64)
    }

    /// Bytes of the memory tier.
    pub fn memory_limit(&self) -> u64 {
        self.shared().memory.limit_bytes()
    }

    /// The largest body that has a place here beside others, in bytes.
    pub fn largest_body(&self) -> u64 {
        let limit = match &self.shared().disk {
            Some(disk) => u64::from(disk.map.lock().limit()) * PAGE_BYTES as u64,
            None => self.memory_limit(),
        };
        limit / 2
    }

    /// Empties the memory tier of what is on disk too, and, where there is no disk, of everything. Gives the
    /// bytes it had.
    pub fn clear_memory(&self) -> u64 {
        self.shared().memory.clear()
    }

    pub fn usage(&self) -> Usage {
        let shared = self.shared();
        let page = PAGE_BYTES as u64;
        let (used, limit, reach) = match &shared.disk {
            Some(disk) => {
                let map = disk.map.lock();
                (map.used(), map.limit(), disk.reach(&map))
            }
            None => (0, 0, 0),
        };
        let spared = shared.spared_pages.load(Ordering::Relaxed);
        Usage {
            disk_bytes: u64::from(used) * page,
            disk_limit: u64::from(limit) * page,
            disk_reach: u64::from(reach) * page,
            spared_bytes: u64::try_from(spared).unwrap_or_default() * page,
            memory_bytes: shared.memory.bytes(),
            memory_limit: shared.memory.limit_bytes(),
            dirty_bytes: shared.dirty.load(Ordering::Relaxed),
            objects: shared.queue.lock().len() as u64,
        }
    }

    pub fn health(&self) -> Health {
        let shared = self.shared();
        let rings = shared
            .disk
            .as_ref()
            .is_some_and(|disk| disk.io.uses_rings());
        Health {
            disk: shared.health.lock().clone(),
            io: if rings { "io_uring" } else { "threads" },
        }
    }

    /// Where others can look up what is on the disk; `None` without one. Its rows follow within
    /// [`Settings::index_delay`].
    pub fn index_path(&self) -> Option<PathBuf> {
        let disk = self.shared().disk.as_ref();
        let disk = disk.filter(|disk| !disk.off.load(Ordering::Relaxed));
        disk.map(|disk| disk.dir.join(recover::INDEX))
    }

    pub fn metrics(&self) -> &Metrics {
        &self.shared().metrics
    }

    /// Waits until everything that was put and published before is on disk, as far as the disk takes
    /// it.
    pub async fn flush(&self) {
        let shared = &self.handle.shared;
        shared.all_written().await;
        if let Some(disk) = &shared.disk {
            let (answer, answered) = oneshot::channel();
            disk.index.send(Message::Flush(answer));
            // No answer: the index thread has ended, and there is nothing to wait for.
            drop(answered.await);
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// Ends the store as a killed process would: nothing more is written.
    #[cfg(test)]
    fn kill(self) {
        self.handle.killed.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("usage", &self.usage())
            .finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let discard = self.killed.load(Ordering::Relaxed);
        drop(self.shared.jobs.send(Job::Stop { discard }));
        if let Some(thread) = self.writer.take() {
            join(thread);
        }
        if let Some(disk) = &self.shared.disk {
            disk.index.send(Message::Stop { discard });
            if let Some(thread) = self.index.take() {
                join(thread);
            }
            // Objects may still be held; the directory is not.
            disk.writes_off.store(true, Ordering::Relaxed);
            drop(disk.lock.lock().take());
        }
        // The queue and its objects refer to each other through the weak handle only, but objects
        // free their pages when dropped: let them, while there is a map.
        let members: Vec<_> = self.shared.queue.lock().members().cloned().collect();
        *self.shared.queue.lock() = Ranks::new();
        drop(members);
    }
}

fn join(thread: JoinHandle<()>) {
    // The last handle may be dropped by an event; that thread will end by itself.
    let is_self = thread.thread().id() == std::thread::current().id();
    if !is_self && thread.join().is_err() {
        tracing::error!("a thread of the store panicked");
    }
}

fn spawn_thread(name: &str, body: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
    let spawned = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body);
    spawned
        .map_err(|error| tracing::error!(name, %error, "cannot start a thread"))
        .ok()
}

fn uses_rings(mode: IoMode) -> bool {
    if mode == IoMode::Blocking {
        return false;
    }
    match ring_available() {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "io_uring cannot be used; disk I/O goes through threads");
            false
        }
    }
}

fn geometry(settings: &Settings) -> Geometry {
    let pages = |bytes: u64| u32::try_from(bytes / PAGE_BYTES as u64).unwrap_or(u32::MAX);
    let segment_bytes = settings.segment_bytes.clamp(AREA_BYTES, 1 << 40);
    Geometry {
        block_bytes: u64::from(settings.block_size.get()),
        segment_pages: pages(segment_bytes.next_multiple_of(AREA_BYTES)),
        // The last area of the number range stays unused, so that sums do not overflow.
        limit_pages: pages(settings.size_bytes).min(u32::MAX - AREA_PAGES),
    }
}

enum Begun {
    Found(Bytes),
    Absent,
    Reading(Arc<Flight>),
}

impl Shared {
    fn new_object(self: &Arc<Self>, id: BodyId) -> Arc<Object> {
        let shared = Arc::downgrade(self);
        Arc::new(Object::new(
            id,
            self.block_size,
            self.memory.clone(),
            shared,
        ))
    }

    /// Makes objects of rows, the least recently used first in the queue.
    fn restore(self: &Arc<Self>, rows: Vec<Row>) -> Vec<Recovered> {
        let mut recovered = Vec::with_capacity(rows.len());
        for row in rows {
            let object = self.new_object(BodyId(row.body));
            object.restore_length(row.length);
            object.restore_use(row.last_use);
            let mut state = object.state.lock();
            for (block, extent) in row.blocks {
                object.set_slot(&mut state, block, Slot::Disk(extent));
            }
            state.published = true;
            state.dirty_groups.clear();
            drop(state);
            let last_use = object.last_use();
            recovered.push(Recovered {
                object,
                key: row.key,
                head: row.head,
                last_use,
            });
        }
        let mut by_use: Vec<&Arc<Object>> = recovered.iter().map(|found| &found.object).collect();
        by_use.sort_by_key(|object| object.last_use());
        let mut queue = self.queue.lock();
        for object in by_use {
            // Nobody else knows the object yet: the lock order does not matter here.
            object.state.lock().place = Some(queue.insert(object.clone(), false));
        }
        drop(queue);
        recovered
    }

    fn begin_read(self: &Arc<Self>, object: &Arc<Object>, block: BlockIndex) -> Begun {
        let Some(disk) = &self.disk else {
            return match self.memory.get(object.id(), block) {
                Some(bytes) => Begun::Found(bytes),
                None => Begun::Absent,
            };
        };
        let mut state = object.state.lock();
        let extent = match state.slots.get(block.0) {
            None => return Begun::Absent,
            Some(Slot::Unwritten(bytes)) => return Begun::Found(bytes.as_ref().clone()),
            Some(Slot::Memory { .. }) => {
                return match self.memory.get(object.id(), block) {
                    Some(bytes) => Begun::Found(bytes),
                    None => {
                        object.give_up(&mut state, block.0);
                        Begun::Absent
                    }
                };
            }
            Some(Slot::Disk(extent)) => *extent,
        };
        if let Some(flight) = state.reading.get(&block.0) {
            return Begun::Reading(flight.clone());
        }
        // It may have landed between the look into the memory tier and here.
        if let Some(bytes) = self.memory.get(object.id(), block) {
            return Begun::Found(bytes);
        }
        let Some((segment, offset)) = disk.locate(extent.page) else {
            object.give_up(&mut state, block.0);
            object.queue_row(&mut state);
            return Begun::Absent;
        };
        let flight = Arc::new(Flight::default());
        state.reading.insert(block.0, flight.clone());
        drop(state);
        let landing = Landing {
            shared: self.clone(),
            object: object.clone(),
            block,
            extent,
            flight: flight.clone(),
        };
        disk.io
            .read(segment, offset, extent.bytes as usize, move |outcome| {
                landing.land(outcome)
            });
        Begun::Reading(flight)
    }

    /// Judges what was read.
    fn landed(
        &self,
        object: &Object,
        block: BlockIndex,
        extent: Extent,
        outcome: std::io::Result<FrozenBlock>,
    ) -> Result<FrozenBlock, ReadError> {
        let Some(disk) = &self.disk else {
            return Err(ReadError::Absent);
        };
        let read = match outcome {
            Ok(read) => read,
            Err(error) => {
                Metrics::add(&self.metrics.read_errors, 1);
                let errno = error.raw_os_error().unwrap_or_default();
                if errno == nix::libc::EAGAIN || errno == nix::libc::ENOMEM {
                    // The machine is short of something; the block is not to blame.
                    return Err(ReadError::Interrupted);
                }
                tracing::warn!(body = object.id().0, block = block.0, %error, "a read from disk failed");
                self.count_error(disk, &error);
                return Err(ReadError::Io { errno });
            }
        };
        Metrics::add(&self.metrics.reads, 1);
        Metrics::add(&self.metrics.read_bytes, read.len() as u64);
        disk.succeeded();
        if block_crc(object.id().0, block.0, read.as_slice()) != extent.crc {
            Metrics::add(&self.metrics.crc_errors, 1);
            tracing::warn!(
                body = object.id().0,
                block = block.0,
                page = extent.page,
                "a block on disk fails its checksum; it is given up"
            );
            return Err(ReadError::Corrupt);
        }
        Ok(read)
    }

    /// Puts a block into the memory tier, in the form that costs least.
    fn keep(&self, object: &Object, block: BlockIndex, frozen: &FrozenBlock) -> Bytes {
        let bytes = frozen.len();
        let (kept, capacity) = if bytes <= SMALL_BYTES {
            (Bytes::copy_from_slice(frozen.as_slice()), bytes)
        } else if frozen.capacity() - bytes > bytes / 4 {
            let shrunk = frozen.shrunk();
            let capacity = shrunk.capacity();
            (shrunk.into_bytes(), capacity)
        } else {
            (frozen.clone().into_bytes(), frozen.capacity())
        };
        self.memory
            .insert(object.id(), block, kept.clone(), capacity);
        kept
    }

    fn accept(self: &Arc<Self>, object: &Arc<Object>, block: BlockIndex, growing: GrowingBlock) {
        let frozen = growing.freeze();
        let bytes = u32::try_from(frozen.len()).unwrap_or(u32::MAX);
        let mut state = object.state.lock();
        if bytes == 0 || !object.fits(block.0, bytes) {
            drop(state);
            Metrics::add(&self.metrics.refused_blocks, 1);
            tracing::debug!(
                body = object.id().0,
                block = block.0,
                bytes,
                "a block is not whole"
            );
            return;
        }
        if object.is_present(&mut state, block.0) {
            return;
        }
        let kept = self.keep(object, block, &frozen);
        let writable = match &self.disk {
            Some(disk) => !disk.writes_off.load(Ordering::Relaxed) && !object.is_gone(),
            None => false,
        };
        if !writable {
            object.set_slot(&mut state, block.0, Slot::Memory { bytes });
            drop(state);
            return self.ask_to_evict();
        }
        object.set_slot(&mut state, block.0, Slot::Unwritten(Box::new(kept.clone())));
        drop(state);
        let size = u64::from(bytes);
        self.dirty.fetch_add(size, Ordering::AcqRel);
        let dirty = DirtyBytes {
            shared: self.clone(),
            bytes: size,
        };
        let write = writer::Write {
            object: object.clone(),
            block,
            frozen,
            kept,
            dirty,
        };
        if let Err(mpsc::error::SendError(Job::Write(write))) = self.jobs.send(Job::Write(write)) {
            self.keep_in_memory(&write);
        }
    }

    /// Ends when not too much waits to be written.
    async fn room_to_write(&self) {
        self.dirty_below(self.dirty_limit).await;
    }

    async fn all_written(&self) {
        self.dirty_below(0).await;
    }

    async fn dirty_below(&self, limit: u64) {
        while self.dirty.load(Ordering::Acquire) > limit {
            let mut freed = std::pin::pin!(self.dirty_freed.notified());
            freed.as_mut().enable();
            if self.dirty.load(Ordering::Acquire) <= limit {
                return;
            }
            freed.await;
        }
    }

    fn publish(
        self: &Arc<Self>,
        object: &Arc<Object>,
        key: Box<[u8]>,
        head: Box<[u8]>,
        facts: Facts,
    ) {
        let mut state = object.state.lock();
        if object.is_gone() {
            return;
        }
        if state.place.is_none() {
            let place = self.queue.lock().insert(object.clone(), state.spared);
            state.place = Some(place);
        }
        if let Some(disk) = &self.disk
            && !disk.writes_off.load(Ordering::Relaxed)
        {
            state.published = true;
            state.row_queued = true;
            disk.index.send(Message::Publish {
                object: object.clone(),
                key,
                head,
                facts,
            });
        }
        drop(state);
        self.ask_to_evict();
    }

    /// Takes an object out; false when it was out already. Its pages become free when its row is gone
    /// and nobody holds it.
    fn doom(&self, object: &Arc<Object>) -> bool {
        let mut state = object.state.lock();
        if object.is_gone() {
            return false;
        }
        object.set_gone();
        if let Some(disk) = &self.disk {
            state.doomed = state.pages;
            disk.doomed.fetch_add(state.doomed.into(), Ordering::AcqRel);
            if state.published {
                disk.index.send(Message::Delete(object.clone()));
            }
        }
        object.set_spared(&mut state, false);
        let place = state.place.take();
        drop(state);
        let member = place.and_then(|place| self.queue.lock().remove(place, object));
        drop(member);
        true
    }

    fn spare(&self, object: &Arc<Object>, is_spared: bool) {
        let mut state = object.state.lock();
        if object.is_gone() || !object.set_spared(&mut state, is_spared) {
            return;
        }
        if let Some(place) = state.place.take() {
            let mut queue = self.queue.lock();
            // Where it is not found, it is being evicted this moment.
            state.place = queue
                .remove(place, object)
                .map(|member| queue.insert(member, is_spared));
        }
    }

    /// Takes back the pages of an object that nobody holds any more.
    fn release(&self, extents: impl Iterator<Item = Extent>, doomed: u32) {
        let Some(disk) = &self.disk else { return };
        let mut extents = extents.peekable();
        if extents.peek().is_some() {
            let mut map = disk.map.lock();
            extents.for_each(|extent| map.free(extent.page, extent.pages()));
        }
        disk.doomed.fetch_sub(doomed.into(), Ordering::AcqRel);
        disk.freed.notify_waiters();
    }

    fn ask_to_evict(&self) {
        let over = self.queue.lock().len() > self.max_objects || self.memory_is_over();
        if over && !self.evict_asked.swap(true, Ordering::AcqRel) {
            drop(self.jobs.send(Job::Evict));
        }
    }

    /// Whether blocks that no disk holds, and their objects, have outgrown the memory tier.
    fn memory_is_over(&self) -> bool {
        self.memory_only_bytes.load(Ordering::Relaxed) > self.memory.limit_bytes()
    }

    fn index_changed(&self, object: &Arc<Object>) {
        if let Some(disk) = &self.disk {
            disk.index.send(Message::Changed(object.clone()));
        }
    }

    /// Objects used since the index was last told, with the second of their last use.
    fn unsaved_uses(&self) -> Vec<(u64, u32)> {
        let queue = self.queue.lock();
        queue
            .members()
            .filter_map(|object| Some((object.id().0, object.take_unsaved_use()?)))
            .collect()
    }

    fn index_failed(&self, error: &rusqlite::Error, for_good: bool) {
        tracing::warn!(%error, "the index cannot be written");
        let Some(disk) = &self.disk else { return };
        disk.index_fails.store(true, Ordering::Release);
        let reason = format!("the index cannot be written: {error}");
        if for_good {
            // Rows that cannot be deleted would point to pages that are given to others.
            self.stop_writing(&reason);
        } else {
            self.set_health(DiskHealth::Degraded { reason });
        }
    }

    fn index_written(&self) {
        if let Some(disk) = &self.disk
            && disk.index_fails.swap(false, Ordering::AcqRel)
        {
            self.set_well(disk);
        }
    }

    /// One cause of a degraded disk is over; perhaps it was the last.
    fn set_well(&self, disk: &Disk) {
        let is_well = !disk.writes_off.load(Ordering::Acquire)
            && !disk.index_fails.load(Ordering::Acquire)
            && !disk.cannot_grow();
        let mut health = self.health.lock();
        if is_well && *health != DiskHealth::Ok {
            tracing::info!("the disk can be written again");
            *health = DiskHealth::Ok;
        }
    }

    fn count_error(&self, disk: &Disk, error: &std::io::Error) {
        if disk.errors.fetch_add(1, Ordering::Relaxed) + 1 >= IO_ERRORS {
            self.give_up_disk(&format!("{IO_ERRORS} errors in a row, the last: {error}"));
        }
    }

    /// Nothing more is written; what is stored can be read.
    fn stop_writing(&self, reason: &str) {
        if let Some(disk) = &self.disk
            && !disk.writes_off.swap(true, Ordering::AcqRel)
        {
            tracing::error!(reason, "no more writes to the disk until the next start");
            self.set_health(DiskHealth::Degraded {
                reason: reason.to_owned(),
            });
        }
    }

    fn give_up_disk(&self, reason: &str) {
        if let Some(disk) = &self.disk {
            disk.writes_off.store(true, Ordering::Release);
            if !disk.off.swap(true, Ordering::AcqRel) {
                tracing::error!(reason, "the disk is given up until the next start");
                self.set_health(DiskHealth::Off {
                    reason: reason.to_owned(),
                });
                (self.events.on_damaged)();
            }
        }
    }

    fn set_health(&self, new: DiskHealth) {
        let mut health = self.health.lock();
        let is_worse = match (&*health, &new) {
            (DiskHealth::Off { .. }, _) => false,
            (DiskHealth::Degraded { .. }, DiskHealth::Degraded { .. }) => {
                // The first reason stays, unless it is the one that keeps the disk read-only.
                self.disk
                    .as_ref()
                    .is_some_and(|disk| disk.writes_off.load(Ordering::Relaxed))
            }
            _ => true,
        };
        if is_worse {
            *health = new;
        }
    }
}

impl Disk {
    /// Where a page lies; `None` when the disk is given up.
    fn locate(&self, page: u32) -> Option<(Arc<Segment>, u64)> {
        if self.off.load(Ordering::Acquire) {
            return None;
        }
        let segments = self.segments.read();
        let segment = segments.get((page / self.segment_pages) as usize)?.clone();
        Some((
            segment,
            u64::from(page % self.segment_pages) * PAGE_BYTES as u64,
        ))
    }

    fn succeeded(&self) {
        if self.errors.load(Ordering::Relaxed) != 0 {
            self.errors.store(0, Ordering::Relaxed);
        }
    }
}

/// A block on its way from the disk. However it ends, those who wait are told.
struct Landing {
    shared: Arc<Shared>,
    object: Arc<Object>,
    block: BlockIndex,
    extent: Extent,
    flight: Arc<Flight>,
}

impl Landing {
    fn land(self, outcome: std::io::Result<FrozenBlock>) {
        let outcome = self
            .shared
            .landed(&self.object, self.block, self.extent, outcome);
        self.end(outcome);
    }

    fn end(&self, outcome: Result<FrozenBlock, ReadError>) {
        let mut state = self.object.state.lock();
        state.reading.remove(&self.block.0);
        let slot = state.slots.get(self.block.0);
        let is_there = matches!(slot, Some(Slot::Disk(extent)) if *extent == self.extent);
        let mut is_lost = false;
        let outcome = match outcome {
            // Given up meanwhile: it does not belong to the body any more.
            Ok(_) if !is_there => Err(ReadError::Absent),
            Ok(read) => Ok(self.shared.keep(&self.object, self.block, &read)),
            Err(error) => {
                if is_there && error != ReadError::Interrupted {
                    self.object.give_up(&mut state, self.block.0);
                    self.object.queue_row(&mut state);
                    is_lost = true;
                }
                Err(error)
            }
        };
        drop(state);
        if is_lost {
            (self.shared.events.on_damaged)();
        }
        // Set once: `drop` comes second.
        drop(self.flight.outcome.set(outcome));
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if !self.flight.outcome.initialized() {
            self.end(Err(ReadError::Interrupted));
        }
    }
}

/// Bytes that wait to be written.
struct DirtyBytes {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Drop for DirtyBytes {
    fn drop(&mut self) {
        self.shared.dirty.fetch_sub(self.bytes, Ordering::AcqRel);
        self.shared.dirty_freed.notify_waiters();
    }
}
