//! A body as its readers see it: bytes that are here, bytes that are arriving, bytes to be asked for.
//!
//! ```text
//!            ┌ memory tier ┐   ┌ disk ┐   ┌ a fill in flight ┐   ┌ nowhere ┐
//!   Reader ──┤ Store::cached├──┤ read ├───┤  Fill::step      ├───┤ refill  ├── next bytes, in order
//!            └─────────────┘   └──────┘   └──────────────────┘   └─────────┘
//! ```
//!
//! Kept true here:
//! - A reader never polls: it sleeps on the fill that will bring its next byte, and is woken by every
//!   piece that arrives and by the end.
//! - A reader never slows a fill whose bytes the store keeps: a slow reader takes them from there. Where
//!   it does not (an object given up while it fills, no disk), the fill keeps a few blocks itself and
//!   goes at the pace of its slowest reader.
//! - Without a disk, the blocks of a small body that could not be asked for again are held for those
//!   who read it, by the fill as they arrive and by the reader where they are here already, as far as
//!   the store has room for that.
//! - A body whose length is unknown ends where its fill ended *well*; a fill that failed never looks
//!   like an end.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::block::{BlockIndex, BlockSize};
use crate::cache::fill::Refill;
use crate::cache::prefetch::Use;
use crate::cache::record::Answers;
use crate::clock;
use crate::store::{BlockReader, GrowingBlock, Hold, Object, Store};

/// How far ahead of a fill a reader still waits for it rather than asking for its own range, in bytes.
const JOIN_DISTANCE: u64 = 1 << 20;

/// Blocks that a fill keeps for slow readers where the store does not.
const MAX_KEPT_BLOCKS: usize = 4;

/// How long a reader that takes nothing may keep others waiting for such a fill.
const KEPT_PATIENCE: Duration = Duration::from_secs(5);

/// How long a fill whose blocks are held waits for the first who reads them.
const FIRST_READER_PATIENCE: Duration = Duration::from_secs(1);

/// How often in a row a block that is here may turn out unreadable, before it is an error.
const MAX_UNREADABLE: u8 = 3;

/// How often one reader asks for the rest of a body whose fill was cut off.
const MAX_RESUMES: u8 = 3;

/// The first buffer of a body whose length is not known, in bytes; it grows by fours.
const UNKNOWN_LENGTH_CAPACITY: usize = 16 << 10;

/// Why the bytes of a body stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the upstream ended the body early")]
    Truncated,
    #[error("the upstream sent more than it announced")]
    Overlong,
    #[error("the upstream stopped sending")]
    Timeout,
    #[error("the upstream broke its framing")]
    Protocol,
    #[error("the upstream now has another representation")]
    Changed,
    #[error("the upstream could not be reached")]
    Unreachable,
    #[error("nobody was left to read it")]
    Abandoned,
    #[error("the bytes are held nowhere and cannot be asked for")]
    Missing,
}

impl BodyError {
    /// The token for logs, metrics and `Cache-Status: …; detail=`.
    pub fn token(self) -> &'static str {
        match self {
            BodyError::Truncated => "body-truncated",
            BodyError::Overlong => "body-overlong",
            BodyError::Timeout => "body-timeout",
            BodyError::Protocol => "body-protocol",
            BodyError::Changed => "body-changed",
            BodyError::Unreachable => "body-unreachable",
            BodyError::Abandoned => "abandoned",
            BodyError::Missing => "body-missing",
        }
    }
}

/// The bytes of one stored response and the fills that are bringing more of them.
pub struct Body {
    pub object: Arc<Object>,
    /// A strong validator stands in the head, so bytes of a later exchange may join those held.
    pub joinable: bool,
    pub used: Use,
    pub answers: Answers,
    /// A [`RangeSupport`].
    ranges: AtomicU8,
    fills: Mutex<Vec<Arc<Fill>>>,
}

/// How the origin answered the last request for a range of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeSupport {
    /// None was asked for.
    Unknown = 0,
    /// 206.
    Honoured = 1,
    /// 200: each request brings the whole.
    Ignored = 2,
}

/// Who brings bytes that are missing.
pub enum Bringer {
    /// A fill that was just registered: whoever asked has to run it.
    New(Arc<Fill>),
    /// One in flight.
    Fill(Arc<Fill>),
    /// Perhaps one in flight: whether it brings a range or the whole shows with its head.
    Undecided(Arc<Fill>),
}

impl Body {
    pub fn new(object: Arc<Object>, joinable: bool) -> Arc<Body> {
        Arc::new(Body {
            object,
            joinable,
            used: Use::default(),
            answers: Answers::default(),
            ranges: AtomicU8::new(RangeSupport::Unknown as u8),
            fills: Mutex::new(Vec::new()),
        })
    }

    /// An answer to a request for a range has come.
    pub fn learn_ranges(&self, support: RangeSupport) {
        self.ranges.store(support as u8, Ordering::Relaxed);
    }

    fn has_ranges(&self, support: RangeSupport) -> bool {
        self.ranges.load(Ordering::Relaxed) == support as u8
    }

    /// Whether every byte is here, on its way, or can be asked for and joined to the others.
    pub fn is_whole_or_arriving(&self) -> bool {
        let completable = self.joinable && self.object.length().is_some();
        self.object.is_complete() || completable || self.has_fill()
    }

    pub fn has_fill(&self) -> bool {
        !self.fills.lock().is_empty()
    }

    /// Registers a fill of `span`, unless a fill in flight will bring its first byte soon: then that
    /// one. The new fill ends where another in flight has begun.
    pub fn fill_for(&self, span: Range<u64>, block_size: BlockSize) -> (Arc<Fill>, bool) {
        let mut fills = self.fills.lock();
        match Self::covering(&fills, span.start, self.join_distance()) {
            Some(fill) => (fill, false),
            None => (Self::register(&mut fills, span, block_size), true),
        }
    }

    /// The same for a range that would have to be asked for. With `may_wait`, an origin that may answer
    /// it with the whole is not asked while another such request has no answer.
    pub fn refill_for(&self, span: Range<u64>, block_size: BlockSize, may_wait: bool) -> Bringer {
        let mut fills = self.fills.lock();
        if let Some(fill) = Self::covering(&fills, span.start, self.join_distance()) {
            return Bringer::Fill(fill);
        }
        let may_wait = may_wait && !self.has_ranges(RangeSupport::Honoured);
        if may_wait && let Some(fill) = fills.iter().find(|fill| fill.is_asking()) {
            return Bringer::Undecided(fill.clone());
        }
        Bringer::New(Self::register(&mut fills, span, block_size))
    }

    fn register(
        fills: &mut Vec<Arc<Fill>>,
        mut span: Range<u64>,
        block_size: BlockSize,
    ) -> Arc<Fill> {
        let starts = fills.iter().map(|fill| fill.span().start);
        if let Some(next) = starts.filter(|start| *start > span.start).min() {
            // The other may begin inside a block, which neither of them would then bring whole.
            span.end = span.end.min(block_size.ceil(next));
        }
        let fill = Arc::new(Fill::new(span));
        fills.push(fill.clone());
        fill
    }

    /// Whether a fill in flight other than `fill`, whose head has come, will bring byte `at`.
    pub fn is_brought_by_another(&self, fill: &Arc<Fill>, at: u64) -> bool {
        let fills = self.fills.lock();
        let mut others = fills.iter().filter(|other| !Arc::ptr_eq(other, fill));
        others.any(|other| !other.is_asking() && other.will_bring(at, u64::MAX))
    }

    /// Whether the body may be so long, as another exchange with the same strong validator says. A
    /// length that was not known is known from now on, unless a fill in flight is still to say it.
    pub fn agree_on_length(&self, length: u64) -> bool {
        if let Some(known) = self.object.length() {
            return known == length;
        }
        let fills = self.fills.lock();
        if !fills.iter().any(|fill| fill.span().end == u64::MAX) {
            self.object.set_length(length);
        }
        true
    }

    /// The fill in flight that will bring byte `at` within `distance`.
    fn fill_covering(&self, at: u64, distance: u64) -> Option<Arc<Fill>> {
        Self::covering(&self.fills.lock(), at, distance)
    }

    /// A fill in flight for a span around `at`, whether or not it has passed that already.
    fn fill_around(&self, at: u64) -> Option<Arc<Fill>> {
        let fills = self.fills.lock();
        fills.iter().find(|fill| fill.span().contains(&at)).cloned()
    }

    /// The fill in flight that will bring byte `at`, however long that takes; while the length is not known, the
    /// one that will tell it.
    pub fn fill_towards(&self, at: u64) -> Option<Arc<Fill>> {
        let fills = self.fills.lock();
        match self.object.length() {
            Some(_) => Self::covering(&fills, at, u64::MAX),
            None => fills.first().cloned(),
        }
    }

    fn covering(fills: &[Arc<Fill>], at: u64, distance: u64) -> Option<Arc<Fill>> {
        let near = |fill: &&Arc<Fill>| fill.will_bring(at, distance);
        fills.iter().find(near).cloned()
    }

    /// Bytes that cannot be asked for by themselves are worth any wait.
    fn join_distance(&self) -> u64 {
        if self.joinable && !self.has_ranges(RangeSupport::Ignored) {
            JOIN_DISTANCE
        } else {
            u64::MAX
        }
    }

    fn forget(&self, fill: &Arc<Fill>) {
        self.fills.lock().retain(|other| !Arc::ptr_eq(other, fill));
    }
}

/// One exchange with an upstream that brings a contiguous span of a body.
///
/// `Asking → Streaming → Ended`. Dropping the [`FillWriter`] before [`FillWriter::finish`] ends it as
/// [`BodyError::Truncated`], so no reader waits for a task that has gone.
pub struct Fill {
    state: Mutex<FillState>,
    changed: Notify,
    /// A reader has moved on or left.
    reader_moved: Notify,
}

struct FillState {
    /// Bytes of the body that it was asked to bring, and once its head is here those that it brings;
    /// the end is `u64::MAX` while the length is unknown.
    span: Range<u64>,
    /// Everything of the span before this offset has arrived.
    position: u64,
    /// The block being written, and the offset in the body of its first byte.
    open: Option<(u64, BlockReader)>,
    /// Closed blocks that nobody but this fill keeps, and the offset of each one's first byte.
    kept: VecDeque<Kept>,
    /// Everybody who reads from here, and up to where.
    readers: Vec<(ReaderId, u64)>,
    /// 0 until somebody has joined.
    last_reader: ReaderId,
    end: Option<Result<(), BodyError>>,
    /// The upstream's head has come and fits: bytes will follow.
    accepted: bool,
}

type ReaderId = u64;

/// Where one stands who holds a fill and wants none of its bytes.
const ALL_READ: u64 = u64::MAX;

struct Kept {
    start: u64,
    block: BlockReader,
    /// Without it, the fill waits for its readers.
    hold: Option<Hold>,
}

impl Kept {
    fn end(&self) -> u64 {
        self.start + self.block.written() as u64
    }
}

/// Where a block is that was just closed.
enum Keeping {
    /// The store has it.
    Store,
    /// Perhaps only in the memory tier, which may drop it before it was read.
    Hold,
    /// Soon nowhere: readers have to come near.
    Window,
}

impl FillState {
    /// Bytes at `at` that this fill still holds.
    fn held(&self, at: u64, end: u64) -> Option<Bytes> {
        let open = self.open.iter().map(|(start, block)| (*start, block));
        let kept = self.kept.iter().rev().map(|kept| (kept.start, &kept.block));
        let (start, block) = open.chain(kept).find(|(start, _)| at >= *start)?;
        let from = (at - start) as usize;
        let to = (end.min(self.position) - start) as usize;
        (from < block.written()).then(|| block.slice(from..to.min(block.written())))
    }

    /// Waits no longer for readers that are still in the oldest kept block, if others have read all
    /// there is: they may ask for it again.
    fn leave_slowest(&mut self) {
        let others_wait = self.readers.iter().any(|(_, at)| *at >= self.position);
        if others_wait && let Some(oldest) = self.kept.front() {
            let end = oldest.end();
            self.readers.retain(|(_, at)| *at >= end);
        }
    }

    /// Drops kept blocks that every reader has passed.
    fn forget_passed(&mut self) {
        let slowest = self.readers.iter().map(|(_, at)| *at).min();
        let slowest = slowest.unwrap_or(u64::MAX);
        while self.kept.front().is_some_and(|kept| kept.end() <= slowest) {
            self.kept.pop_front();
        }
    }
}

/// What a reader at some offset finds in a fill.
enum Step {
    Bytes(Bytes),
    /// Not yet here.
    Wait,
    /// Already passed on to the store.
    Passed,
    Ended(Result<(), BodyError>),
}

impl Fill {
    fn new(span: Range<u64>) -> Fill {
        Fill {
            state: Mutex::new(FillState {
                position: span.start,
                span,
                open: None,
                kept: VecDeque::new(),
                readers: Vec::new(),
                last_reader: 0,
                end: None,
                accepted: false,
            }),
            changed: Notify::new(),
            reader_moved: Notify::new(),
        }
    }

    pub fn span(&self) -> Range<u64> {
        self.state.lock().span.clone()
    }

    /// Whether the upstream's head is still to come.
    fn is_asking(&self) -> bool {
        let state = self.state.lock();
        !state.accepted && state.end.is_none()
    }

    fn step(&self, reader: ReaderId, at: u64, end: u64) -> Step {
        let mut state = self.state.lock();
        let mut left = None;
        if let Some(known) = state.readers.iter_mut().find(|(id, _)| *id == reader) {
            left = Some(std::mem::replace(&mut known.1, at));
        }
        if let Some(oldest) = state.kept.front().map(Kept::end) {
            let has_ended = state.end.is_some();
            if has_ended && left.is_some_and(|left| left < oldest && oldest <= at) {
                state.forget_passed();
            }
            self.reader_moved.notify_waiters();
        }
        if at < state.position {
            return match state.held(at, end) {
                Some(bytes) => Step::Bytes(bytes),
                None => Step::Passed,
            };
        }
        match state.end {
            Some(end) => Step::Ended(end),
            None => Step::Wait,
        }
    }

    /// Whether byte `at` can be read here, or will be once at most `distance` bytes have come.
    fn will_bring(&self, at: u64, distance: u64) -> bool {
        let state = self.state.lock();
        if at < state.position {
            return state.held(at, at + 1).is_some();
        }
        let going_on = match state.end {
            None => true,
            Some(Ok(()) | Err(BodyError::Abandoned)) => false,
            Some(Err(_)) => true,
        };
        going_on && state.span.contains(&at) && at - state.position <= distance
    }

    /// Waits until the upstream's head was accepted or the fill ended.
    pub async fn accepted(&self) -> Result<(), BodyError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let state = self.state.lock();
                match state.end {
                    Some(Err(error)) => return Err(error),
                    _ if state.accepted => return Ok(()),
                    Some(Ok(())) => return Ok(()),
                    None => {}
                }
            }
            changed.await;
        }
    }

    /// Waits for the end. Until then the fill is not abandoned, though nobody reads it.
    pub async fn held_to_end(self: &Arc<Self>) -> Result<(), BodyError> {
        let _held = Joined::new(self.clone(), ALL_READ);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(end) = self.state.lock().end {
                return end;
            }
            changed.await;
        }
    }

    /// Whether somebody reads from this fill.
    pub fn is_watched(&self) -> bool {
        let state = self.state.lock();
        state.readers.iter().any(|(_, at)| *at != ALL_READ)
    }

    /// Completes as soon as somebody reads from this fill.
    pub async fn watched(&self) {
        loop {
            let moved = self.reader_moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.is_watched() {
                return;
            }
            moved.await;
        }
    }

    /// Completes once nobody has read from this fill for `linger`.
    pub async fn abandoned(&self, linger: Duration) {
        loop {
            let moved = self.reader_moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.is_read() {
                moved.await;
                continue;
            }
            // A reader that came and went in between starts the time anew.
            if tokio::time::timeout(linger, moved).await.is_err() && !self.is_read() {
                return;
            }
        }
    }

    fn is_read(&self) -> bool {
        !self.state.lock().readers.is_empty()
    }
}

/// A reader's hold on a fill: while one lives, the fill is not abandoned.
struct Joined {
    fill: Arc<Fill>,
    id: ReaderId,
}

impl Joined {
    fn new(fill: Arc<Fill>, at: u64) -> Joined {
        let mut state = fill.state.lock();
        state.last_reader += 1;
        let id = state.last_reader;
        state.readers.push((id, at));
        drop(state);
        fill.reader_moved.notify_waiters();
        Joined { fill, id }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let mut state = self.fill.state.lock();
        state.readers.retain(|(id, _)| *id != self.id);
        if state.end.is_some() {
            state.forget_passed();
        }
        drop(state);
        self.fill.reader_moved.notify_waiters();
    }
}

/// The writing end of a [`Fill`]: takes the upstream's bytes and leaves whole blocks in the store.
pub struct FillWriter {
    store: Store,
    body: Arc<Body>,
    fill: Arc<Fill>,
    block_size: BlockSize,
    /// Next offset to be written.
    position: u64,
    /// Where the upstream announced to end; `u64::MAX` where it did not.
    limit: u64,
    /// The largest body that the store has room for.
    largest: u64,
    open: Option<OpenBlock>,
    finished: bool,
}

struct OpenBlock {
    index: BlockIndex,
    /// Offset in the body of the buffer's first byte: the block's start, save in the first block of a
    /// span that begins inside one. Such a block is read from, never stored.
    start: u64,
    /// Offset in the body where the block ends.
    end: u64,
    buffer: GrowingBlock,
}

impl FillWriter {
    pub fn new(store: Store, body: Arc<Body>, fill: Arc<Fill>) -> FillWriter {
        let block_size = store.block_size();
        let largest = store.largest_body();
        let position = fill.span().start;
        FillWriter {
            store,
            body,
            fill,
            block_size,
            position,
            limit: u64::MAX,
            largest,
            open: None,
            finished: false,
        }
    }

    pub fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }

    /// The upstream's head fits what was asked for, and announces these bytes of the body.
    pub fn accept(&mut self, announced: Range<u64>) {
        self.position = announced.start;
        self.limit = announced.end;
        let mut state = self.fill.state.lock();
        state.position = announced.start;
        state.span = announced;
        state.accepted = true;
        drop(state);
        self.fill.changed.notify_waiters();
    }

    /// Appends bytes; waits only while the store has more unwritten blocks than its budget.
    pub async fn write(&mut self, mut data: Bytes) -> Result<(), BodyError> {
        if data.len() as u64 > self.limit - self.position {
            return Err(BodyError::Overlong);
        }
        while data.has_remaining() {
            let mut position = self.position;
            let open = match &mut self.open {
                Some(open) => open,
                None => self.open_block(),
            };
            let room = (open.end - position) as usize;
            let taken = open.buffer.append(&data[..data.len().min(room)]);
            data.advance(taken);
            position += taken as u64;
            let is_full = position == open.end;
            self.position = position;
            self.fill.state.lock().position = self.position;
            if is_full {
                self.fill.changed.notify_waiters();
                self.close_block().await;
            } else if taken == 0 {
                self.grow_block();
            }
        }
        self.fill.changed.notify_waiters();
        Ok(())
    }

    fn open_block(&mut self) -> &mut OpenBlock {
        let index = self.block_size.index_of(self.position);
        let start = self.position;
        let block_end = self.block_size.start(index) + self.block_size.get() as u64;
        let end = block_end.min(self.limit);
        let capacity = if self.limit == u64::MAX && self.position == 0 {
            UNKNOWN_LENGTH_CAPACITY
        } else {
            (end - start) as usize
        };
        let buffer = GrowingBlock::with_capacity(capacity);
        self.fill.state.lock().open = Some((start, buffer.reader()));
        self.open.insert(OpenBlock {
            index,
            start,
            end,
            buffer,
        })
    }

    /// Moves the open block to a larger buffer; readers of the old one keep what they hold.
    fn grow_block(&mut self) {
        let Some(open) = &mut self.open else { return };
        let whole = (open.end - open.start) as usize;
        let held = open.buffer.written();
        let capacity = (held.max(UNKNOWN_LENGTH_CAPACITY) * 4).min(whole);
        let mut buffer = GrowingBlock::with_capacity(capacity);
        buffer.append(&open.buffer.reader().slice(0..held));
        self.fill.state.lock().open = Some((open.start, buffer.reader()));
        open.buffer = buffer;
    }

    /// The store first, then out of sight here: a reader finds the bytes in one or the other.
    async fn close_block(&mut self) {
        let Some(open) = self.open.take() else { return };
        let object = &self.body.object;
        if self.limit == u64::MAX && self.position > self.store.largest_body() {
            // It has no end that would leave room for others: read from here on, not kept.
            self.store.remove(object);
        }
        let whole = match object.length() {
            Some(length) => self.block_size.bytes(open.index, length),
            None => self.block_size.bytes(open.index, u64::MAX),
        };
        if whole == (open.start..self.position) {
            // A body that is being filled is in use, whoever else wants its room.
            self.store.touch(object, clock::now());
            let (start, block) = (open.start, open.buffer.reader());
            self.store.put(object, open.index, open.buffer).await;
            let hold = match self.keeping() {
                Keeping::Store => None,
                Keeping::Hold => Some(self.store.hold(block.written())),
                Keeping::Window => Some(None),
            };
            if let Some(hold) = hold {
                self.keep(Kept { start, block, hold }).await;
            }
            if self.limit == u64::MAX && self.position > self.largest {
                // Outgrown: from here on it is only passed through, to those who read it already.
                self.store.remove(&self.body.object);
            }
        }
        self.fill.state.lock().open = None;
    }

    fn keeping(&self) -> Keeping {
        let object = &self.body.object;
        let length = object.length().unwrap_or(self.position);
        // Before it is given up its readers must have come near.
        let outgrows = self.limit == u64::MAX && self.position > self.largest / 2;
        let is_large = length > self.store.memory_limit() / 8;
        if outgrows || object.is_gone() {
            Keeping::Window
        } else if self.store.is_durable() && !object.is_without_place() {
            Keeping::Store
        } else if is_large {
            Keeping::Window
        } else {
            // Also what could be asked for again: the memory tier may drop it as often as it comes.
            Keeping::Hold
        }
    }

    /// Keeps a closed block for its readers; without a hold, waits until they are near enough.
    async fn keep(&self, block: Kept) {
        let waits = block.hold.is_none();
        self.fill.state.lock().kept.push_back(block);
        if !waits {
            return;
        }
        let mut patience = Instant::now() + KEPT_PATIENCE;
        loop {
            let moved = self.fill.reader_moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            {
                let mut state = self.fill.state.lock();
                state.forget_passed();
                if state.kept.len() < MAX_KEPT_BLOCKS {
                    return;
                }
            }
            if timeout_at(patience, moved).await.is_err() {
                self.fill.state.lock().leave_slowest();
                patience = Instant::now() + KEPT_PATIENCE;
            }
        }
    }

    /// Nobody reads, and nothing that comes will be kept.
    pub fn is_in_vain(&self) -> bool {
        self.body.object.is_gone() && !self.fill.is_read()
    }

    /// Ends the fill. `Ok` from the upstream is only believed if the bytes are as many as announced.
    pub async fn finish(mut self, outcome: Result<(), BodyError>) -> Result<(), BodyError> {
        let outcome = match outcome {
            Ok(()) => self.complete().await,
            Err(error) => Err(error),
        };
        self.await_first_reader().await;
        self.end(outcome);
        outcome
    }

    /// What is held here is for the client that asked, too, which may not have begun to read.
    async fn await_first_reader(&self) {
        let patience = Instant::now() + FIRST_READER_PATIENCE;
        loop {
            let moved = self.fill.reader_moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            {
                let state = self.fill.state.lock();
                let is_held = state.kept.front().is_some_and(|kept| kept.hold.is_some());
                if !is_held || state.last_reader > 0 {
                    return;
                }
            }
            if timeout_at(patience, moved).await.is_err() {
                return;
            }
        }
    }

    async fn complete(&mut self) -> Result<(), BodyError> {
        if self.limit != u64::MAX {
            let whole = self.position == self.limit;
            return whole.then_some(()).ok_or(BodyError::Truncated);
        }
        self.body.object.set_length(self.position);
        self.close_block().await;
        Ok(())
    }

    fn end(&mut self, outcome: Result<(), BodyError>) {
        self.finished = true;
        self.body.forget(&self.fill);
        let mut state = self.fill.state.lock();
        state.end = Some(outcome);
        if outcome.is_ok() {
            state.open = None;
        }
        // What was held for those who might join is held only for those who have.
        state.forget_passed();
        drop(state);
        self.fill.changed.notify_waiters();
    }
}

impl Drop for FillWriter {
    fn drop(&mut self) {
        if !self.finished {
            self.end(Err(BodyError::Truncated));
        }
    }
}

/// Reads one span of a body in order, from wherever its bytes are.
pub struct Reader {
    store: Store,
    /// Blocks that were here when it began and might not be when their turn comes.
    held: VecDeque<(BlockIndex, Bytes, Hold)>,
    body: Arc<Body>,
    at: u64,
    /// First offset that is not wanted; `u64::MAX` means to the end.
    end: u64,
    joined: Option<Joined>,
    refill: Option<Rc<Refill>>,
    /// Offset at which the last refill of ours began: two from the same place have brought nothing.
    refilled_at: Option<u64>,
    /// Times that a fill may fail on the way before the reader gives up.
    resumes_left: u8,
    /// Times in a row that a block was here and could not be read.
    unreadable: u8,
    begins_with_fill: bool,
    /// It has waited for the head of another's fill.
    has_waited: bool,
}

impl Reader {
    /// `refill` says how absent bytes are asked for; without it they are an error.
    pub fn new(
        store: Store,
        body: Arc<Body>,
        span: Range<u64>,
        refill: Option<Rc<Refill>>,
    ) -> Reader {
        // Held from the start and to the end of the fill, also while its bytes are read from the store:
        // a fill with one slow reader is not abandoned.
        let joined = body.fill_around(span.start);
        let joined = joined.map(|fill| Joined::new(fill, span.start));
        // After it has joined: what comes from now on is kept there.
        let held = match store.is_memory_only() && !body.joinable {
            true => hold_blocks(&store, &body, &span),
            false => VecDeque::new(),
        };
        Reader {
            store,
            held,
            body,
            at: span.start,
            end: span.end,
            joined,
            refill,
            refilled_at: None,
            resumes_left: MAX_RESUMES,
            unreadable: 0,
            begins_with_fill: false,
            has_waited: false,
        }
    }

    /// Holds no fill until it is read from: nothing may wait for a reader whose turn has not come.
    pub fn defer(&mut self) {
        self.joined = None;
    }

    fn end(&self) -> u64 {
        self.end.min(self.body.object.length().unwrap_or(u64::MAX))
    }

    /// Makes sure that the first byte is here or certain to be of this representation, before a head
    /// that promises it is sent. Bytes read from disk are checked on the way.
    pub async fn prime(&mut self) -> Result<(), BodyError> {
        if self.at >= self.end() {
            return Ok(());
        }
        let index = self.store.block_size().index_of(self.at);
        if self.store.cached(&self.body.object, index).is_some()
            || self.store.read(&self.body.object, index).await.is_ok()
        {
            return Ok(());
        }
        loop {
            match self.source() {
                Source::Fill(fill) => {
                    self.begins_with_fill = true;
                    match fill.accepted().await {
                        Err(BodyError::Abandoned) if self.may_ask_again() => {}
                        accepted => return accepted,
                    }
                }
                Source::Undecided(fill) => {
                    self.begins_with_fill = true;
                    self.await_head(&fill).await?;
                }
                Source::Store => return Ok(()),
                Source::Nowhere => return Err(BodyError::Missing),
            }
        }
    }

    /// Whether the first byte was not here when [`Reader::prime`] looked.
    pub fn begins_with_fill(&self) -> bool {
        self.begins_with_fill
    }

    /// Whether this reader began that fill.
    pub fn has_asked(&self) -> bool {
        self.refilled_at.is_some()
    }

    /// The next bytes in order: `None` at the end of the span. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        loop {
            if self.at >= self.end() {
                self.joined = None;
                // Said only after more than that had come.
                let is_beyond = self.body.object.length().is_some_and(|end| self.at > end);
                return is_beyond.then_some(Err(BodyError::Changed));
            }
            if let Some(bytes) = self.held().await {
                self.at += bytes.len() as u64;
                self.unreadable = 0;
                return Some(Ok(bytes));
            }
            let fill = match self.source() {
                Source::Fill(fill) => fill,
                Source::Undecided(fill) => match self.await_head(&fill).await {
                    Ok(()) => continue,
                    Err(error) => return Some(Err(error)),
                },
                Source::Store if self.unreadable < MAX_UNREADABLE => {
                    self.unreadable += 1;
                    continue;
                }
                Source::Store => return Some(Err(BodyError::Missing)),
                Source::Nowhere => {
                    tracing::debug!(
                        at = self.at,
                        end = self.end,
                        asked = self.refilled_at,
                        may_ask = self.refill.is_some(),
                        resumes = self.resumes_left,
                        "bytes are to be had nowhere"
                    );
                    return Some(Err(BodyError::Missing));
                }
            };
            match self.await_fill(&fill).await {
                Some(Ok(bytes)) => {
                    self.at += bytes.len() as u64;
                    return Some(Ok(bytes));
                }
                Some(Err(error)) if !self.may_resume(error) => {
                    tracing::debug!(
                        %error,
                        at = self.at,
                        asked = self.refilled_at,
                        may_ask = self.refill.is_some(),
                        resumes = self.resumes_left,
                        "a reader cannot go on"
                    );
                    return Some(Err(error));
                }
                Some(Err(_)) => self.joined = None,
                // It is in the store by now, or has to be asked for again.
                None => {}
            }
        }
    }

    /// Bytes at `at` from the block being filled, the memory tier or the disk.
    async fn held(&mut self) -> Option<Bytes> {
        if let Some(Joined { fill, id }) = &self.joined
            && let Step::Bytes(bytes) = fill.step(*id, self.at, self.end)
        {
            return Some(bytes);
        }
        let block_size = self.store.block_size();
        let index = block_size.index_of(self.at);
        let object = &self.body.object;
        while self.held.front().is_some_and(|(held, ..)| *held < index) {
            self.held.pop_front();
        }
        let held = self.held.front().filter(|(held, ..)| *held == index);
        let held = held.map(|(_, block, _)| block.clone());
        let block = match held.or_else(|| self.store.cached(object, index)) {
            Some(block) => block,
            None if object.contains(index) => self.store.read(object, index).await.ok()?,
            None => return None,
        };
        let from = (self.at - block_size.start(index)) as usize;
        let to = (self.end - block_size.start(index)).min(block.len() as u64) as usize;
        (from < to).then(|| block.slice(from..to))
    }

    /// What will bring byte `at`, which was not here a moment ago. Asks for it if nothing will.
    fn source(&mut self) -> Source {
        // A refill begins at the start of the block: a fill that is near enough to that must not be
        // too far from the byte itself.
        let block_bytes = u64::from(self.store.block_size().get());
        let distance = self.body.join_distance().saturating_add(block_bytes);
        // What was asked for is waited for: an origin without ranges begins again at the first byte.
        let patience = match self.refilled_at == Some(self.at) {
            true => u64::MAX,
            false => distance,
        };
        if let Some(Joined { fill, .. }) = &self.joined
            && fill.will_bring(self.at, patience)
        {
            return Source::Fill(fill.clone());
        }
        let found = self.body.fill_covering(self.at, distance);
        let fill = match (found, &self.refill) {
            (Some(fill), _) => fill,
            // A fill may have left the block in the store between the two looks.
            _ if self.is_here() => return Source::Store,
            (None, Some(refill)) if self.refilled_at != Some(self.at) => {
                match refill.start(&self.body, self.at..self.end(), !self.has_waited) {
                    Bringer::New(fill) | Bringer::Fill(fill) => {
                        self.refilled_at = Some(self.at);
                        fill
                    }
                    Bringer::Undecided(fill) => return Source::Undecided(fill),
                }
            }
            (None, _) => return Source::Nowhere,
        };
        self.joined = Some(Joined::new(fill.clone(), self.at));
        Source::Fill(fill)
    }

    fn is_here(&self) -> bool {
        let index = self.store.block_size().index_of(self.at);
        self.body.object.contains(index)
    }

    /// Whether the rest may be asked for again after a fill that failed on the way.
    fn may_resume(&mut self, error: BodyError) -> bool {
        let transient = matches!(error, BodyError::Truncated | BodyError::Timeout);
        // A fill begins before the byte that is waited for, and may have been cut before it: that
        // counts as bad luck once.
        let has_moved = self.refilled_at != Some(self.at) || self.resumes_left == MAX_RESUMES;
        let may = transient
            && self.body.joinable
            && self.refill.is_some()
            && self.resumes_left > 0
            && has_moved;
        if may {
            self.resumes_left -= 1;
            self.refilled_at = None;
        }
        may
    }

    /// Waits for the head of a fill that may or may not bring what is wanted here, once: after that
    /// this reader asks for itself. An error is final.
    async fn await_head(&mut self, fill: &Fill) -> Result<(), BodyError> {
        self.has_waited = true;
        match fill.accepted().await {
            Err(BodyError::Changed) => Err(BodyError::Changed),
            // What the other's question came to says nothing else about this one.
            _ => Ok(()),
        }
    }

    /// Whether to ask once more after a fill that gave way to another one.
    fn may_ask_again(&mut self) -> bool {
        let may = self.resumes_left > 0;
        if may {
            self.resumes_left -= 1;
            self.refilled_at = None;
        }
        may
    }

    /// Waits for the fill. `None`: look elsewhere again.
    async fn await_fill(&self, fill: &Arc<Fill>) -> Option<Result<Bytes, BodyError>> {
        loop {
            let changed = fill.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let id = self.joined.as_ref().map_or(0, |joined| joined.id);
            match fill.step(id, self.at, self.end) {
                Step::Bytes(bytes) => return Some(Ok(bytes)),
                Step::Passed | Step::Ended(Ok(()) | Err(BodyError::Abandoned)) => return None,
                Step::Ended(Err(error)) => return Some(Err(error)),
                Step::Wait => changed.await,
            }
        }
    }
}

/// The blocks of `span` that are in memory one after the other, as far as they may be held.
fn hold_blocks(
    store: &Store,
    body: &Body,
    span: &Range<u64>,
) -> VecDeque<(BlockIndex, Bytes, Hold)> {
    let end = span.end.min(body.object.length().unwrap_or(u64::MAX));
    let blocks = store.block_size().span(span.start..end.max(span.start));
    let mut held = VecDeque::new();
    for index in (blocks.start..blocks.end).map(BlockIndex) {
        let Some(block) = store.cached(&body.object, index) else {
            break;
        };
        let Some(hold) = store.hold(block.len()) else {
            break;
        };
        held.push_back((index, block, hold));
    }
    held
}

/// Where the next byte will come from.
enum Source {
    Fill(Arc<Fill>),
    /// Perhaps from this one.
    Undecided(Arc<Fill>),
    Store,
    Nowhere,
}
