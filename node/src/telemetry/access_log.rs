//! The access log: one line per answer, written by a thread of its own.
//!
//! ```text
//! data thread 1 ── push ─► shard ┐ (copied bytes,       ┌─► combined or JSON ─► one write(2)
//! data thread 2 ── push ─► shard ┤  bounded)   swapped ─┤
//! data thread 3 ── push ─► shard ┘             by the writer thread, some 20 times a second
//! ```
//!
//! Kept true here:
//! - `push` never waits for the writer: its lock is held for a copy of some hundred bytes, or for a
//!   swap of two vectors. It allocates nothing once the shard has grown, and keeps no reference to
//!   the request's buffers.
//! - A full shard loses the new line and counts it; memory is bounded by [`MAX_SHARD_BYTES`] and
//!   [`MAX_SHARD_LINES`].
//! - Every line is one line, whatever a client has sent: control characters, quotes and bytes that
//!   are no UTF-8 are escaped, and long texts are cut.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::clock::CachedSecond;
use super::label::{CacheResult, Dropped, Label};
use super::metrics::Metrics;
use super::sharded;

/// Lines one shard holds between two writes.
pub const MAX_SHARD_LINES: usize = 32 * 1024;
/// Bytes of text one shard holds between two writes.
pub const MAX_SHARD_BYTES: usize = 8 * 1024 * 1024;
/// What is kept of a single text, such as a target; the rest is cut and `…` stands for it.
pub const MAX_TEXT_BYTES: usize = 2048;
/// How long lines wait for company.
const BATCH: Duration = Duration::from_millis(50);
/// How long the end waits for a writer that cannot write.
const LAST_WRITE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Apache's and nginx's combined format, followed by the `Cache-Status` and `rt=` with
    /// microseconds.
    Combined,
    /// One flat object per line.
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    Stdout,
    /// Appended to, and created when absent. [`AccessLog::reopen`] after a rotation.
    File(PathBuf),
}

/// Everything the log says of one answer, or of a request that got none. Only borrowed: `push` copies what it keeps.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// When the request's head had arrived.
    pub time: SystemTime,
    pub client: IpAddr,
    /// Empty, as the three that follow, when the request could not be understood.
    pub method: &'a str,
    /// As the client sent it.
    pub target: &'a [u8],
    /// `HTTP/1.1`, `HTTP/2.0`, …
    pub protocol: &'a str,
    pub host: &'a [u8],
    /// `None` when the client left before there was one; written as 499, as nginx does.
    pub status: Option<u16>,
    /// Bytes of the answer's body.
    pub body_bytes: u64,
    pub referer: Option<&'a [u8]>,
    pub user_agent: Option<&'a [u8]>,
    /// The value of `Cache-Status` as sent.
    pub cache_status: Option<&'a [u8]>,
    /// `None` when the client left before that was known.
    pub cache: Option<CacheResult>,
    /// The name of the origin the request was routed to.
    pub origin: Option<&'a str>,
    /// From the head's last byte to the answer's first.
    pub first_byte: Option<Duration>,
    /// From the head's last byte to the answer's last.
    pub duration: Duration,
    /// The client got all of the answer.
    pub complete: bool,
}

/// A handle to the log; cheap to clone. When the last one goes, what was pushed is written and the
/// thread ends.
#[derive(Clone)]
pub struct AccessLog {
    inner: Option<Arc<Inner>>,
}

struct Inner {
    shared: Arc<Shared>,
    writer: Mutex<Option<(JoinHandle<()>, mpsc::Receiver<()>)>>,
    thread: Thread,
}

struct Shared {
    shards: Box<[Padded]>,
    /// The writer has found nothing and waits to be woken.
    idle: AtomicBool,
    /// A shard is half full: the writer should not wait for more.
    hurry: AtomicBool,
    reopen: AtomicBool,
    stop: AtomicBool,
    metrics: Arc<Metrics>,
}

#[repr(align(128))]
struct Padded(Mutex<Shard>);

/// Lines that wait for the writer: fixed parts in `lines`, and their texts one after the other in
/// `texts`.
#[derive(Default)]
struct Shard {
    lines: Vec<Line>,
    texts: Vec<u8>,
}

struct Line {
    /// Microseconds since 1970.
    time: i64,
    client: IpAddr,
    status: Option<u16>,
    body_bytes: u64,
    cache: Option<CacheResult>,
    first_byte_micros: Option<u64>,
    duration_micros: u64,
    complete: bool,
    /// Length of each text, in the order of [`Text`]; [`ABSENT`] where there is none.
    lengths: [u16; TEXTS],
}

#[derive(Clone, Copy)]
enum Text {
    Method,
    Target,
    Protocol,
    Host,
    Referer,
    UserAgent,
    CacheStatus,
    Origin,
}

const TEXTS: usize = Text::Origin as usize + 1;
const ABSENT: u16 = u16::MAX;
const CUT: &[u8] = "…".as_bytes();
const _: () = assert!(MAX_TEXT_BYTES + CUT.len() < ABSENT as usize);

impl AccessLog {
    /// Opens the sink and starts the writer. `node` and `region` are written into every JSON line.
    pub fn start(
        format: Format,
        sink: Sink,
        node: &str,
        region: Option<&str>,
        metrics: Arc<Metrics>,
    ) -> io::Result<AccessLog> {
        let out = open(&sink)?;
        let mut shards = Vec::new();
        shards.resize_with(sharded::slot_count(), || Padded(Mutex::default()));
        let shared = Arc::new(Shared {
            shards: shards.into_boxed_slice(),
            idle: AtomicBool::new(false),
            hurry: AtomicBool::new(false),
            reopen: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            metrics,
        });
        let formatter = Formatter::new(format, node, region);
        let (done, has_ended) = mpsc::sync_channel(1);
        let writer = Writer {
            shared: Arc::clone(&shared),
            sink,
            out,
            formatter,
        };
        let handle = thread::Builder::new()
            .name("access-log".into())
            .spawn(move || {
                writer.run();
                // Nobody may be waiting any more.
                let _ = done.send(());
            })?;
        let thread = handle.thread().clone();
        let writer = Mutex::new(Some((handle, has_ended)));
        Ok(AccessLog {
            inner: Some(Arc::new(Inner {
                shared,
                writer,
                thread,
            })),
        })
    }

    /// A log that keeps nothing.
    pub fn off() -> AccessLog {
        AccessLog { inner: None }
    }

    /// Whether anybody reads what is pushed: callers may spare themselves a record.
    pub fn is_on(&self) -> bool {
        self.inner.is_some()
    }

    /// Takes over a copy of the record. Never waits for the disk; see the module's head.
    pub fn push(&self, record: &Record) {
        let Some(inner) = &self.inner else { return };
        let shared = &*inner.shared;
        let slot = sharded::thread_slot() % shared.shards.len();
        let fill = shared.shards[slot].0.lock().push(record);
        match fill {
            Fill::Lost => shared.metrics.access_log_dropped.increment(Dropped::Full),
            Fill::Room => {}
            Fill::HalfFull => {
                if !shared.hurry.swap(true, Ordering::AcqRel) {
                    inner.thread.unpark();
                }
            }
        }
        if shared.idle.load(Ordering::Acquire) && shared.idle.swap(false, Ordering::AcqRel) {
            inner.thread.unpark();
        }
    }

    /// Opens the file anew, after whoever rotates logs has moved it away. A failure leaves the old
    /// one in use.
    pub fn reopen(&self) {
        if let Some(inner) = &self.inner {
            inner.shared.reopen.store(true, Ordering::Release);
            inner.wake();
        }
    }

    /// Writes what was pushed and ends the thread; waits two seconds at the most. Later pushes are
    /// lost.
    pub fn close(&self) {
        if let Some(inner) = &self.inner {
            inner.close();
        }
    }
}

impl Inner {
    fn wake(&self) {
        self.shared.idle.store(false, Ordering::Release);
        self.thread.unpark();
    }

    fn close(&self) {
        let Some((handle, has_ended)) = self.writer.lock().take() else {
            return;
        };
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        if has_ended.recv_timeout(LAST_WRITE).is_ok() {
            // A panic of the writer has been reported by its thread.
            let _ = handle.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

enum Fill {
    Room,
    HalfFull,
    Lost,
}

impl Shard {
    fn push<'a>(&mut self, record: &Record<'a>) -> Fill {
        if self.lines.len() >= MAX_SHARD_LINES || self.texts.len() >= MAX_SHARD_BYTES {
            return Fill::Lost;
        }
        let mut lengths = [ABSENT; TEXTS];
        let mut text = |which: Text, value: Option<&[u8]>| {
            let Some(value) = value else { return };
            let before = self.texts.len();
            if value.len() <= MAX_TEXT_BYTES {
                self.texts.extend_from_slice(value);
            } else {
                self.texts.extend_from_slice(&value[..MAX_TEXT_BYTES]);
                self.texts.extend_from_slice(CUT);
            }
            lengths[which as usize] = (self.texts.len() - before) as u16;
        };
        let given = |value: &'a [u8]| Some(value).filter(|value| !value.is_empty());
        text(Text::Method, given(record.method.as_bytes()));
        text(Text::Target, given(record.target));
        text(Text::Protocol, given(record.protocol.as_bytes()));
        text(Text::Host, given(record.host));
        text(Text::Referer, record.referer);
        text(Text::UserAgent, record.user_agent);
        text(Text::CacheStatus, record.cache_status);
        text(Text::Origin, record.origin.map(str::as_bytes));
        self.lines.push(Line {
            time: micros_since_1970(record.time),
            client: record.client,
            status: record.status,
            body_bytes: record.body_bytes,
            cache: record.cache,
            first_byte_micros: record.first_byte.map(micros),
            duration_micros: micros(record.duration),
            complete: record.complete,
            lengths,
        });
        if self.lines.len() > MAX_SHARD_LINES / 2 || self.texts.len() > MAX_SHARD_BYTES / 2 {
            Fill::HalfFull
        } else {
            Fill::Room
        }
    }

    fn clear(&mut self) {
        self.lines.clear();
        self.texts.clear();
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn micros_since_1970(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
        Err(before) => {
            i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros)
        }
    }
}

enum Out {
    Stdout(io::Stdout),
    File(File),
}

fn open(sink: &Sink) -> io::Result<Out> {
    match sink {
        Sink::Stdout => Ok(Out::Stdout(io::stdout())),
        Sink::File(path) => OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map(Out::File),
    }
}

impl Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Out::Stdout(stdout) => {
                let mut stdout = stdout.lock();
                stdout.write_all(bytes)?;
                stdout.flush()
            }
            Out::File(file) => file.write_all(bytes),
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    sink: Sink,
    out: Out,
    formatter: Formatter,
}

impl Writer {
    fn run(mut self) {
        let mut spare = Shard::default();
        let mut buffer = Vec::new();
        let mut failing = false;
        loop {
            // Read first: what was pushed before the end was asked for is in the shards by now.
            let stopping = self.shared.stop.load(Ordering::Acquire);
            self.shared.hurry.store(false, Ordering::Release);
            if self.shared.reopen.swap(false, Ordering::AcqRel) {
                self.reopen();
            }
            let mut lines = 0;
            for shard in &self.shared.shards {
                std::mem::swap(&mut *shard.0.lock(), &mut spare);
                lines += spare.lines.len();
                self.formatter.lines(&spare, &mut buffer);
                spare.clear();
                if !buffer.is_empty() {
                    let result = self.out.write(&buffer);
                    let count = buffer.iter().filter(|&&byte| byte == b'\n').count();
                    failing = self.note(result, count as u64, failing);
                    buffer.clear();
                }
            }
            if stopping {
                return;
            }
            if lines > 0 {
                thread::park_timeout(BATCH);
            } else {
                self.wait_for_a_line();
            }
        }
    }

    fn wait_for_a_line(&self) {
        self.shared.idle.store(true, Ordering::SeqCst);
        // A line pushed after the last look and before `idle` was set wakes nobody: look once more.
        let empty = self
            .shared
            .shards
            .iter()
            .all(|shard| shard.0.lock().lines.is_empty());
        if !empty {
            self.shared.idle.store(false, Ordering::Release);
        }
        while self.shared.idle.load(Ordering::Acquire) {
            thread::park();
        }
        if !self.shared.stop.load(Ordering::Acquire) {
            thread::park_timeout(BATCH);
        }
    }

    fn reopen(&mut self) {
        match open(&self.sink) {
            Ok(out) => self.out = out,
            Err(error) => {
                tracing::error!(%error, "cannot reopen the access log; the old file stays in use")
            }
        }
    }

    /// Counts lines that were refused, and reports the first refusal and the recovery.
    fn note(&self, result: io::Result<()>, lines: u64, failing: bool) -> bool {
        match result {
            Ok(()) => {
                if failing {
                    tracing::info!("the access log can be written again");
                }
                false
            }
            Err(error) => {
                self.shared
                    .metrics
                    .access_log_dropped
                    .add(Dropped::Write, lines);
                if !failing {
                    tracing::error!(%error, "cannot write the access log; lines are lost and counted");
                }
                true
            }
        }
    }
}

struct Formatter {
    format: Format,
    second: CachedSecond,
    number: itoa::Buffer,
    /// `,"node":"…","region":"…"`
    node: Vec<u8>,
}

impl Formatter {
    fn new(format: Format, name: &str, region: Option<&str>) -> Formatter {
        let mut node = b",\"node\":\"".to_vec();
        escape_json(name.as_bytes(), &mut node);
        node.push(b'"');
        if let Some(region) = region {
            node.extend_from_slice(b",\"region\":\"");
            escape_json(region.as_bytes(), &mut node);
            node.push(b'"');
        }
        Formatter {
            format,
            second: CachedSecond::default(),
            number: itoa::Buffer::new(),
            node,
        }
    }

    fn lines(&mut self, shard: &Shard, out: &mut Vec<u8>) {
        let mut at = 0;
        for line in &shard.lines {
            let mut texts: [Option<&[u8]>; TEXTS] = [None; TEXTS];
            for (text, &length) in texts.iter_mut().zip(&line.lengths) {
                if length != ABSENT {
                    let end = at + usize::from(length);
                    *text = Some(&shard.texts[at..end]);
                    at = end;
                }
            }
            match self.format {
                Format::Combined => self.combined(line, &texts, out),
                Format::Json => self.json(line, &texts, out),
            }
            out.push(b'\n');
        }
    }

    fn combined(&mut self, line: &Line, texts: &[Option<&[u8]>; TEXTS], out: &mut Vec<u8>) {
        let text = |which: Text| texts[which as usize];
        write_ip(line.client, out);
        out.extend_from_slice(b" - - [");
        let second = line.time.div_euclid(1_000_000);
        out.extend_from_slice(self.second.combined(second).as_bytes());
        out.extend_from_slice(b"] \"");
        match text(Text::Method) {
            Some(method) => {
                escape_combined(method, out);
                out.push(b' ');
                escape_combined(text(Text::Target).unwrap_or_default(), out);
                out.push(b' ');
                escape_combined(text(Text::Protocol).unwrap_or_default(), out);
            }
            None => out.push(b'-'),
        }
        out.extend_from_slice(b"\" ");
        self.number(u64::from(line.status.unwrap_or(CLIENT_GONE)), out);
        out.push(b' ');
        self.number(line.body_bytes, out);
        for which in [Text::Referer, Text::UserAgent, Text::CacheStatus] {
            out.extend_from_slice(b" \"");
            escape_combined(text(which).unwrap_or(b"-"), out);
            out.push(b'"');
        }
        out.extend_from_slice(b" rt=");
        self.number(line.duration_micros, out);
    }

    fn json(&mut self, line: &Line, texts: &[Option<&[u8]>; TEXTS], out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"timestamp\":\"");
        out.extend_from_slice(self.second.iso(line.time.div_euclid(1_000_000)).as_bytes());
        let fraction = line.time.rem_euclid(1_000_000);
        // Writing to a vector does not fail.
        let _ = write!(out, ".{fraction:06}Z\",\"client_ip\":\"{}\"", line.client);
        for (name, which) in [
            (&b",\"request_method\":\""[..], Text::Method),
            (b",\"host\":\"", Text::Host),
            (b",\"url\":\"", Text::Target),
            (b",\"request_protocol\":\"", Text::Protocol),
            (b",\"request_referer\":\"", Text::Referer),
            (b",\"request_user_agent\":\"", Text::UserAgent),
            (b",\"cache_status\":\"", Text::CacheStatus),
            (b",\"origin\":\"", Text::Origin),
        ] {
            if let Some(value) = texts[which as usize] {
                out.extend_from_slice(name);
                escape_json(value, out);
                out.push(b'"');
            }
        }
        if let Some(cache) = line.cache {
            out.extend_from_slice(b",\"response_state\":\"");
            out.extend_from_slice(cache.as_str().as_bytes());
            out.push(b'"');
        }
        out.extend_from_slice(b",\"response_status\":");
        self.number(u64::from(line.status.unwrap_or(CLIENT_GONE)), out);
        out.extend_from_slice(b",\"response_body_size\":");
        self.number(line.body_bytes, out);
        out.extend_from_slice(b",\"response_complete\":");
        out.extend_from_slice(if line.complete { b"true" } else { b"false" });
        if let Some(first_byte) = line.first_byte_micros {
            out.extend_from_slice(b",\"time_to_first_byte_us\":");
            self.number(first_byte, out);
        }
        out.extend_from_slice(b",\"time_elapsed_us\":");
        self.number(line.duration_micros, out);
        out.extend_from_slice(&self.node);
        out.push(b'}');
    }

    fn number(&mut self, number: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(self.number.format(number).as_bytes());
    }
}

/// nginx's number for a client that left before its answer began.
const CLIENT_GONE: u16 = 499;

fn write_ip(ip: IpAddr, out: &mut Vec<u8>) {
    // Writing to a vector does not fail.
    let _ = write!(out, "{ip}");
}

/// Printable ASCII that stands for itself in both formats.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') & (byte != b'"') & (byte != b'\\')
}

/// Looks at all of it, so that many bytes are looked at at a time.
fn all_plain(text: &[u8]) -> bool {
    text.iter().fold(true, |all, &byte| all & is_plain(byte))
}

/// As Apache does it: `\"`, `\\`, and `\xhh` for every byte that is not printable ASCII.
fn escape_combined(text: &[u8], out: &mut Vec<u8>) {
    if all_plain(text) {
        return out.extend_from_slice(text);
    }
    let mut plain = 0;
    for (at, &byte) in text.iter().enumerate() {
        if is_plain(byte) {
            continue;
        }
        out.extend_from_slice(&text[plain..at]);
        plain = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            _ => out.extend_from_slice(&[b'\\', b'x', hex(byte >> 4), hex(byte)]),
        }
    }
    out.extend_from_slice(&text[plain..]);
}

/// RFC 8259 section 7. Bytes that are no UTF-8 become U+FFFD; characters that could move the cursor
/// of a terminal or turn the direction of its text are escaped too.
pub(crate) fn escape_json(text: &[u8], out: &mut Vec<u8>) {
    if all_plain(text) {
        return out.extend_from_slice(text);
    }
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '\t' => out.extend_from_slice(b"\\t"),
                '\0'..='\u{1f}'
                | '\u{7f}'..='\u{9f}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}' => {
                    let code = character as u32 as u16;
                    let [high, low] = code.to_be_bytes();
                    let digits = [hex(high >> 4), hex(high), hex(low >> 4), hex(low)];
                    out.extend_from_slice(b"\\u");
                    out.extend_from_slice(&digits);
                }
                other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

fn hex(digit: u8) -> u8 {
    b"0123456789abcdef"[usize::from(digit & 0xf)]
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::Ipv4Addr;
    use std::time::Instant;

    use super::*;

    fn record() -> Record<'static> {
        Record {
            time: UNIX_EPOCH + Duration::from_micros(971_186_136_000_042),
            client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
            method: "GET",
            target: b"/a?b=c",
            protocol: "HTTP/1.1",
            host: b"example.com",
            status: Some(200),
            body_bytes: 512,
            referer: None,
            user_agent: Some(b"curl/8"),
            cache_status: Some(b"\"caje/lhr\"; hit"),
            cache: Some(CacheResult::Hit),
            origin: Some("main"),
            first_byte: Some(Duration::from_micros(80)),
            duration: Duration::from_micros(123),
            complete: true,
        }
    }

    fn format(format: Format, record: &Record) -> String {
        let mut shard = Shard::default();
        shard.push(record);
        let mut out = Vec::new();
        Formatter::new(format, "n1", Some("lhr")).lines(&shard, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn combined_lines() {
        assert_eq!(
            format(Format::Combined, &record()),
            "192.0.2.7 - - [10/Oct/2000:13:55:36 +0000] \"GET /a?b=c HTTP/1.1\" 200 512 \"-\" \"curl/8\" \
             \"\\\"caje/lhr\\\"; hit\" rt=123\n"
        );
    }

    #[test]
    fn json_lines() {
        assert_eq!(
            format(Format::Json, &record()),
            "{\"timestamp\":\"2000-10-10T13:55:36.000042Z\",\"client_ip\":\"192.0.2.7\",\"request_method\":\"GET\",\
             \"host\":\"example.com\",\"url\":\"/a?b=c\",\"request_protocol\":\"HTTP/1.1\",\
             \"request_user_agent\":\"curl/8\",\"cache_status\":\"\\\"caje/lhr\\\"; hit\",\"origin\":\"main\",\
             \"response_state\":\"hit\",\"response_status\":200,\"response_body_size\":512,\
             \"response_complete\":true,\"time_to_first_byte_us\":80,\"time_elapsed_us\":123,\"node\":\"n1\",\
             \"region\":\"lhr\"}\n"
        );
    }

    #[test]
    fn whatever_a_client_sends_stays_in_its_field() {
        let hostile = b"x\"\r\n192.0.2.9 - - \\\x1b[2J\x00\xff\xc3\xa9\xe2\x80\xae\xc2\x9b";
        let hostile = Record {
            user_agent: Some(hostile),
            ..record()
        };
        let line = format(Format::Combined, &hostile);
        assert_eq!(line.matches('\n').count(), 1);
        let agent = r#""x\"\x0d\x0a192.0.2.9 - - \\\x1b[2J\x00\xff\xc3\xa9\xe2\x80\xae\xc2\x9b""#;
        assert!(line.contains(agent), "{line}");
        let line = format(Format::Json, &hostile);
        assert_eq!(line.matches('\n').count(), 1);
        let agent = r#""x\"\r\n192.0.2.9 - - \\\u001b[2J\u0000�é\u202e\u009b""#;
        assert!(line.contains(agent), "{line}");
    }

    #[test]
    fn a_long_target_is_cut_even_within_a_character() {
        let long = "é".repeat(MAX_TEXT_BYTES);
        let line = format(
            Format::Json,
            &Record {
                target: &long.as_bytes()[1..],
                ..record()
            },
        );
        assert!(line.len() < MAX_TEXT_BYTES + 600);
        assert!(line.contains("…\""), "{line}");
    }

    #[test]
    fn a_client_that_left_is_499() {
        let line = format(
            Format::Combined,
            &Record {
                status: None,
                ..record()
            },
        );
        assert!(line.contains("\" 499 "), "{line}");
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let unknown = Record {
            method: "",
            target: b"",
            protocol: "",
            host: b"",
            cache: None,
            ..record()
        };
        let line = format(Format::Combined, &unknown);
        assert!(line.contains("] \"-\" 200 "), "{line}");
        let line = format(Format::Json, &unknown);
        for field in [
            "request_method",
            "url",
            "request_protocol",
            "host",
            "response_state",
        ] {
            assert!(!line.contains(&format!("\"{field}\"")), "{line}");
        }
    }

    #[test]
    fn all_lines_of_all_threads_arrive_and_rotation_starts_a_new_file() {
        let directory = tempdir("access-log");
        let path = directory.join("access.log");
        let metrics = Arc::new(Metrics::new());
        let sink = Sink::File(path.clone());
        let log =
            AccessLog::start(Format::Combined, sink, "n1", None, Arc::clone(&metrics)).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5000).for_each(|_| log.push(&record())));
            }
        });
        wait_until(|| lines(&path) == 20_000);
        let old = directory.join("access.log.1");
        fs::rename(&path, &old).unwrap();
        log.reopen();
        wait_until(|| path.exists());
        log.push(&record());
        log.close();
        log.push(&record());
        assert_eq!((lines(&old), lines(&path)), (20_000, 1));
        assert_eq!(metrics.access_log_dropped.total(), 0);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_writer_that_cannot_write_costs_lines_and_nothing_else() {
        let metrics = Arc::new(Metrics::new());
        let sink = Sink::File("/dev/full".into());
        let log = AccessLog::start(Format::Json, sink, "n1", None, Arc::clone(&metrics)).unwrap();
        for _ in 0..100 {
            log.push(&record());
        }
        log.close();
        assert_eq!(metrics.access_log_dropped.get(Dropped::Write), 100);
    }

    #[test]
    fn a_full_shard_loses_the_new_line() {
        let mut shard = Shard::default();
        for _ in 0..MAX_SHARD_LINES {
            assert!(!matches!(shard.push(&record()), Fill::Lost));
        }
        assert!(matches!(shard.push(&record()), Fill::Lost));
        assert_eq!(shard.lines.len(), MAX_SHARD_LINES);
    }

    fn lines(path: &std::path::Path) -> usize {
        fs::read(path).map_or(0, |bytes| {
            bytes.iter().filter(|&&byte| byte == b'\n').count()
        })
    }

    fn wait_until(mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(20), "waited in vain");
            thread::yield_now();
        }
    }

    fn tempdir(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("caje-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }
}
