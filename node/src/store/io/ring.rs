//! The ring of the calling thread.
//!
//! What it keeps true:
//! - No operation is dropped half-way while its runtime lives: each runs in a detached task, for
//!   tokio-uring 0.5 leaks a descriptor for every operation that is dropped (threat D8).
//! - The memory of an operation outlives the kernel's use of it even when the runtime itself is
//!   dropped: tokio-uring lets go of the buffers of unfinished operations *before* it has waited
//!   for them, so [`IN_FLIGHT`] holds each a second time, until the operation has ended (K10).

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;

use tokio_uring::buf::BoundedBuf;
use tokio_uring::fs::File;

use super::buffer::{Buffer, FrozenBlock, PAGE_BYTES, Source, Target};
use super::segment::Segment;

thread_local! {
    static RING: RefCell<Option<Ring>> = const { RefCell::new(None) };
    static IN_FLIGHT: RefCell<InFlight> = const { RefCell::new(InFlight { held: Vec::new(), free: Vec::new() }) };
}

struct Ring {
    /// This thread's own handles: a `tokio_uring` file belongs to one thread. By serial number.
    files: HashMap<u64, Rc<File>>,
}

struct InFlight {
    held: Vec<Option<Arc<Buffer>>>,
    free: Vec<usize>,
}

/// Held by a thread while its `tokio_uring` runtime may be used for disk reads.
pub struct RingGuard {
    _this_thread_only: PhantomData<*const ()>,
}

/// Says that the calling thread runs `tokio_uring`, so that its reads go to its own ring. Call it
/// first thing inside `tokio_uring::start`, and keep the guard until the end of that future.
#[must_use = "reads go to the ring only while the guard lives"]
pub fn attach_ring() -> RingGuard {
    RING.with_borrow_mut(|ring| {
        *ring = Some(Ring {
            files: HashMap::new(),
        })
    });
    RingGuard {
        _this_thread_only: PhantomData,
    }
}

impl Drop for RingGuard {
    fn drop(&mut self) {
        // Operations in flight hold their file themselves.
        let ring = RING.with_borrow_mut(Option::take);
        drop(ring);
    }
}

/// Whether a ring can be set up here.
///
/// # Errors
/// The kernel's: `EPERM` when a seccomp profile or `kernel.io_uring_disabled` forbids it, `ENOSYS`
/// on an old kernel, `ENOMEM` when `RLIMIT_MEMLOCK` is too small.
pub fn ring_available() -> io::Result<()> {
    tokio_uring::uring_builder().build(8).map(drop)
}

pub(super) fn is_attached() -> bool {
    RING.with_borrow(Option::is_some)
}

pub(super) fn spawn(task: impl Future<Output = ()> + 'static) {
    // Detached on purpose: whoever waits for the outcome may leave.
    drop(tokio_uring::spawn(task));
}

/// Reads `bytes` bytes at `offset`. To be awaited in a task of [`spawn`] only.
pub(super) async fn read(segment: &Segment, offset: u64, bytes: usize) -> io::Result<FrozenBlock> {
    let file = file(segment)?;
    let target = Target::new(bytes);
    let held = Held::new(target.buffer());
    let outcome = read_all(&file, offset, bytes, target).await;
    held.release();
    outcome
}

async fn read_all(
    file: &File,
    offset: u64,
    bytes: usize,
    mut target: Target,
) -> io::Result<FrozenBlock> {
    loop {
        let filled = target.filled();
        let (outcome, slice) = file
            .read_at(target.slice(filled..), offset + filled as u64)
            .await;
        target = slice.into_inner();
        match outcome {
            Ok(_) if target.filled() >= bytes => return Ok(target.finish(bytes)),
            // An unaligned rest cannot be asked for with `O_DIRECT`; it is the end of the file.
            Ok(read) if read == 0 || !target.filled().is_multiple_of(PAGE_BYTES) => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes all of `source` at `offset`. To be awaited in a task of [`spawn`] only.
pub(super) async fn write(segment: &Segment, offset: u64, source: Source) -> io::Result<()> {
    let file = file(segment)?;
    let held = Held::new(source.buffer());
    let outcome = write_all(&file, offset, source).await;
    held.release();
    outcome
}

async fn write_all(file: &File, offset: u64, source: Source) -> io::Result<()> {
    let total = source.as_slice().len();
    let mut written = 0;
    while written < total {
        let rest = source.clone().slice(written..);
        let (outcome, _) = file.write_at(rest, offset + written as u64).submit().await;
        match outcome {
            // After a short write, `O_DIRECT` can go on from a page boundary only.
            Ok(bytes) if bytes < PAGE_BYTES => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => written += bytes / PAGE_BYTES * PAGE_BYTES,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn file(segment: &Segment) -> io::Result<Rc<File>> {
    RING.with_borrow_mut(|ring| {
        let Some(ring) = ring else {
            return Err(io::Error::other("the thread has left its ring"));
        };
        if let Some(file) = ring.files.get(&segment.serial()) {
            return Ok(file.clone());
        }
        let file = Rc::new(File::from_std(segment.duplicate()?));
        ring.files.insert(segment.serial(), file.clone());
        Ok(file)
    })
}

/// The second hold on a buffer the kernel uses. When the task is dropped before its operation has
/// ended, it stays until the thread ends, which is after its runtime: memory held too long, instead
/// of memory the kernel writes to after it has been freed.
struct Held {
    at: usize,
}

impl Held {
    fn new(buffer: Arc<Buffer>) -> Self {
        IN_FLIGHT.with_borrow_mut(|in_flight| {
            let at = in_flight.free.pop().unwrap_or_else(|| {
                in_flight.held.push(None);
                in_flight.held.len() - 1
            });
            in_flight.held[at] = Some(buffer);
            Self { at }
        })
    }

    fn release(self) {
        let buffer = IN_FLIGHT.with_borrow_mut(|in_flight| {
            in_flight.free.push(self.at);
            in_flight.held[self.at].take()
        });
        drop(buffer);
    }
}
