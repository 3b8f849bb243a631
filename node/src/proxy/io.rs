//! A client's connection: one socket that two sides of an exchange use at once, with deadlines.
//!
//! The request's body may still be read while the response is being written, by another part of the
//! program; both borrow the socket for one poll at a time, on one thread.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::cache::may_lend;
use crate::proxy::lend::Pipe;
use crate::telemetry::Metrics;

/// What one read asks the socket for, in bytes.
const READ_SIZE: usize = 8 << 10;

/// Read ahead of a request that is being answered, in bytes: pipelined requests wait in the kernel.
const PIPELINE_READ_AHEAD: usize = 16 << 10;

/// Parts of a body from this size on are sent without a copy where they can be, in bytes: below it
/// the copy is cheaper than two more calls to the kernel.
const LEND_BYTES: usize = 32 << 10;

/// What a connection brings before it is counted, in bytes.
const COUNTED_BYTES: u64 = 16 << 10;

/// How long an answer is still prepared for a peer that has ended its side: it may have gone, or only
/// have nothing more to say.
const HALF_CLOSE_GRACE: Duration = Duration::from_secs(1);

/// The slowest that a peer may be before its connection is closed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// How long nothing at all may move.
    pub stall: Duration,
    /// Bytes per second that must be reached, measured over each `stall`.
    pub min_rate: u64,
}

impl Pace {
    /// Bytes that each `stall` must bring.
    pub fn least(&self) -> u64 {
        ((self.min_rate as f64 * self.stall.as_secs_f64()) as u64).max(1)
    }
}

/// A deadline that is moved with every request but only seldom re-armed.
struct Deadline {
    until: Cell<Option<Instant>>,
    sleep: RefCell<Pin<Box<Sleep>>>,
}

impl Deadline {
    fn new() -> Deadline {
        let far = Instant::now() + Duration::from_secs(86_400);
        Deadline {
            until: Cell::new(None),
            sleep: RefCell::new(Box::pin(tokio::time::sleep_until(far))),
        }
    }

    fn set(&self, until: Option<Instant>) {
        self.until.set(until);
        if let Some(until) = until {
            let mut sleep = self.sleep.borrow_mut();
            if until < sleep.deadline() {
                sleep.as_mut().reset(until);
            }
        }
    }

    fn poll_expired(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(until) = self.until.get() else {
            return Poll::Pending;
        };
        let mut sleep = self.sleep.borrow_mut();
        loop {
            ready!(sleep.as_mut().poll(cx));
            if Instant::now() >= until {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(until);
        }
    }
}

/// Progress in one direction, held against a [`Pace`].
struct Progress {
    pace: Pace,
    deadline: Deadline,
    moved: Cell<u64>,
}

impl Progress {
    fn new(pace: Pace) -> Progress {
        Progress {
            pace,
            deadline: Deadline::new(),
            moved: Cell::new(0),
        }
    }

    fn start(&self) {
        self.moved.set(0);
        self.deadline.set(Some(Instant::now() + self.pace.stall));
    }

    fn start_if_stopped(&self) {
        if self.deadline.until.get().is_none() {
            self.start();
        }
    }

    fn stop(&self) {
        self.deadline.set(None);
    }

    fn moved(&self, bytes: usize) {
        self.moved.set(self.moved.get() + bytes as u64);
    }

    /// At the end of each window: enough has moved, and the next begins, or the peer is too slow. A
    /// window at whose end the peer was not waited for says nothing about it.
    fn poll_too_slow(&self, cx: &mut Context<'_>, waited: bool) -> Poll<io::Error> {
        loop {
            ready!(self.deadline.poll_expired(cx));
            if waited && self.moved.get() < self.pace.least() {
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            self.start();
        }
    }
}

/// What a connection has brought, given to the counter many bytes at a time: a small request costs
/// no shared write.
pub struct Received {
    metrics: Arc<Metrics>,
    uncounted: Cell<u64>,
}

impl Received {
    /// `first`: bytes that were read before.
    pub fn new(metrics: Arc<Metrics>, first: usize) -> Received {
        Received {
            metrics,
            uncounted: Cell::new(first as u64),
        }
    }

    pub fn add(&self, bytes: usize) {
        let uncounted = self.uncounted.get() + bytes as u64;
        self.uncounted.set(uncounted);
        if uncounted >= COUNTED_BYTES {
            self.count();
        }
    }

    fn count(&self) {
        self.metrics.request_bytes.add((), self.uncounted.take());
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.count();
    }
}

pub struct ClientIo {
    io: RefCell<TcpStream>,
    pipe: Option<Rc<Pipe>>,
    inbox: RefCell<BytesMut>,
    /// Bytes that must go out before any others: `100 Continue` and other interim heads.
    outbox: RefCell<BytesMut>,
    received: Received,
    reading: Progress,
    writing: Progress,
    head_deadline: Deadline,
    /// When a request's body must have come whole.
    body_deadline: Deadline,
    /// More of a body was asked for, and has not come.
    awaits_body: Cell<bool>,
    at_end: Cell<bool>,
}

impl ClientIo {
    pub fn new(
        io: TcpStream,
        pipe: Option<Rc<Pipe>>,
        inbox: BytesMut,
        received: Received,
        read_pace: Pace,
        write_pace: Pace,
    ) -> ClientIo {
        ClientIo {
            received,
            io: RefCell::new(io),
            pipe,
            inbox: RefCell::new(inbox),
            outbox: RefCell::new(BytesMut::new()),
            reading: Progress::new(read_pace),
            writing: Progress::new(write_pace),
            head_deadline: Deadline::new(),
            body_deadline: Deadline::new(),
            awaits_body: Cell::new(false),
            at_end: Cell::new(false),
        }
    }

    /// What was read and not yet used.
    pub fn inbox(&self) -> &RefCell<BytesMut> {
        &self.inbox
    }

    /// Reads more into the inbox; `0` is the peer's end.
    pub fn poll_fill(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox.borrow_mut();
        inbox.reserve(READ_SIZE);
        let mut io = self.io.borrow_mut();
        let read = ready!(pin!(io.read_buf(&mut *inbox)).poll(cx))?;
        self.reading.moved(read);
        self.received.add(read);
        if read == 0 {
            self.at_end.set(true);
        }
        Poll::Ready(Ok(read))
    }

    /// Reads more of a head, until `deadline`.
    pub async fn fill_until(&self, deadline: Instant) -> io::Result<usize> {
        self.head_deadline.set(Some(deadline));
        let read = poll_fn(|cx| {
            if let Poll::Ready(read) = self.poll_fill(cx) {
                return Poll::Ready(read);
            }
            ready!(self.head_deadline.poll_expired(cx));
            Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
        })
        .await;
        self.head_deadline.set(None);
        read
    }

    /// Reads more of a body, at no less than the reading pace.
    pub fn poll_fill_paced(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(read) = self.poll_fill(cx) {
            self.awaits_body.set(false);
            return Poll::Ready(read);
        }
        let waited = self.awaits_body.replace(true);
        if self.body_deadline.poll_expired(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let error = ready!(self.reading.poll_too_slow(cx, waited));
        Poll::Ready(Err(error))
    }

    /// A body begins, which must have come whole within `limit`.
    pub fn start_reading_body(&self, limit: Duration) {
        self.reading.start();
        self.awaits_body.set(false);
        self.body_deadline.set(Some(Instant::now() + limit));
    }

    pub fn stop_reading_body(&self) {
        self.reading.stop();
        self.body_deadline.set(None);
    }

    /// Completes when the peer has gone. Pipelined requests are kept, up to a bound; beyond it nothing
    /// is read, and a peer that goes then is noticed by the next write.
    pub async fn gone(&self) {
        let ended = poll_fn(|cx| {
            while !self.at_end.get() {
                if self.inbox.borrow().len() >= PIPELINE_READ_AHEAD {
                    return Poll::Pending;
                }
                if let Err(error) = ready!(self.poll_fill(cx)) {
                    return Poll::Ready(Err(error));
                }
            }
            Poll::Ready(Ok(()))
        })
        .await;
        if ended.is_ok() {
            tokio::time::sleep(HALF_CLOSE_GRACE).await;
        }
    }

    /// Puts bytes before whatever is written next, and sends what the socket takes of them at once.
    pub fn push_interim(&self, cx: &mut Context<'_>, head: &[u8]) -> io::Result<()> {
        self.outbox.borrow_mut().extend_from_slice(head);
        match self.poll_outbox(cx) {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }

    fn poll_outbox(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut outbox = self.outbox.borrow_mut();
        let mut io = self.io.borrow_mut();
        while !outbox.is_empty() {
            match ready!(Pin::new(&mut *io).poll_write(cx, &outbox))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => outbox.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes `head`, `body` and `tail`, in as few calls to the kernel as it takes.
    pub async fn write(
        &self,
        head: &mut BytesMut,
        body: &mut Bytes,
        tail: &mut Bytes,
    ) -> io::Result<()> {
        // Asked once for each, however many calls it takes: to be sent twice is what makes them known.
        let lend = [self.lends(body), self.lends(tail)];
        let written = poll_fn(|cx| {
            ready!(self.poll_outbox(cx))?;
            while head.has_remaining() || body.has_remaining() || tail.has_remaining() {
                let mut written = match self.poll_send(cx, head, body, tail, lend) {
                    Poll::Ready(result) => result?,
                    Poll::Pending => {
                        // Most writes are taken at once and need no deadline.
                        self.writing.start_if_stopped();
                        let error = ready!(self.writing.poll_too_slow(cx, true));
                        return Poll::Ready(Err(error));
                    }
                };
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.writing.moved(written);
                for part in [head as &mut dyn Advance, body, tail] {
                    written -= part.advance_up_to(written);
                }
            }
            Poll::Ready(Ok(()))
        })
        .await;
        self.writing.stop();
        written
    }

    fn lends(&self, part: &[u8]) -> bool {
        part.len() >= LEND_BYTES && self.pipe.is_some() && may_lend(part)
    }

    /// Sends the first part that is lent, or all that comes before it. `lend` is of `body` and `tail`.
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        head: &[u8],
        body: &[u8],
        tail: &[u8],
        lend: [bool; 2],
    ) -> Poll<io::Result<usize>> {
        let mut io = self.io.borrow_mut();
        let lend = [lend[0] && !body.is_empty(), lend[1] && !tail.is_empty()];
        let (before, lent) = match (lend, &self.pipe) {
            ([true, _], Some(pipe)) => ([head, &[], &[]], Some((pipe, body))),
            ([false, true], Some(pipe)) => ([head, body, &[]], Some((pipe, tail))),
            _ => ([head, body, tail], None),
        };
        let is_gone = before.iter().all(|part| part.is_empty());
        match lent {
            Some((pipe, part)) if is_gone => poll_writable(&io, cx, || pipe.send(part, &io)),
            Some(_) => {
                let parts = before.map(IoSlice::new);
                // More follows at once: nothing leaves before it, as far as it fits.
                poll_writable(&io, cx, || {
                    SockRef::from(&*io).send_vectored_with_flags(&parts, nix::libc::MSG_MORE)
                })
            }
            None if body.is_empty() && tail.is_empty() => Pin::new(&mut *io).poll_write(cx, head),
            None => Pin::new(&mut *io).poll_write_vectored(cx, &before.map(IoSlice::new)),
        }
    }

    /// Says that nothing more will be sent.
    pub async fn shutdown(&self) -> io::Result<()> {
        poll_fn(|cx| {
            ready!(self.poll_outbox(cx))?;
            Pin::new(&mut *self.io.borrow_mut()).poll_shutdown(cx)
        })
        .await
    }
}

impl ClientIo {
    /// Makes the end of the connection a reset: where only the end of the connection ends a body, an
    /// orderly one would make a whole of what was cut.
    pub fn reset_at_end(&self) {
        let _ = SockRef::from(&*self.io.borrow()).set_linger(Some(Duration::ZERO));
    }
}

/// Calls `send` when the socket takes bytes, until it has taken some.
fn poll_writable(
    io: &TcpStream,
    cx: &mut Context<'_>,
    send: impl Fn() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(io.poll_write_ready(cx))?;
        match io.try_io(Interest::WRITABLE, &send) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
    }
}

trait Advance {
    fn advance_up_to(&mut self, count: usize) -> usize;
}

impl<B: Buf> Advance for B {
    fn advance_up_to(&mut self, count: usize) -> usize {
        let taken = count.min(self.remaining());
        self.advance(taken);
        taken
    }
}
