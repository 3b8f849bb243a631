//! The stream of events: `GET /events`.

use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::http::{Body, HttpError, LIMIT, connect, get};
use crate::{Position, Role};

/// For the connection, the head and the first event; later ones may take any time.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Between two attempts to connect: from the first to the second value, doubled each time.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What a node's LiteFS has to tell.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A connection begins. What happened before is unknown: read the [`position`](crate::position()) of each
    /// database of interest now. LiteFS replays nothing, and reports everything from here on.
    Init(Role),
    /// A database has a new position on this node, whoever wrote it.
    Tx {
        /// Its name: the last part of its path.
        database: String,
        /// Where it stands now.
        position: Position,
        /// Its size, in pages.
        pages: u32,
    },
    /// Another primary, or none, or this node.
    PrimaryChange(Role),
    /// The connection was lost, or could not be made, for this reason: events may be missed, and the role is
    /// unknown. It comes once; the next event is [`Event::Init`], when LiteFS is there again.
    Gap(HttpError),
    /// An event of a kind that this crate does not know.
    Other {
        /// LiteFS's name of it.
        kind: String,
    },
}

/// The events of a node, without an end: an iterator that connects at its first `next`, and again whenever the
/// connection is lost.
///
/// ```no_run
/// use litefs::{Event, Events};
///
/// let events = Events::connect("localhost:20202");
/// let stopper = events.stopper(); // for another thread: `stopper.stop()` ends the loop
/// for event in events {
///     match event {
///         Event::Init(role) => println!("{role}; reading all positions"),
///         Event::Tx { database, position, .. } => println!("{database} is at {position}"),
///         Event::PrimaryChange(role) => println!("now {role}"),
///         Event::Gap(cause) => println!("something may be missed: {cause}"),
///         _ => {}
///     }
/// }
/// ```
///
/// BLOCKING: `next` waits for an event, without a limit. A thread of its own should read them, and do little
/// else: LiteFS cuts off a reader that is 1,024 events behind, which shows as a [`Event::Gap`].
///
/// LiteFS sends nothing while nothing happens. A machine that vanishes without closing its connections is
/// not noticed: read the events of the LiteFS on this machine.
pub struct Events {
    addr: String,
    lines: Option<BufReader<Body>>,
    role: Role,
    /// Whether the reader knows that nothing comes.
    gap: bool,
    backoff: Duration,
    shared: Arc<Shared>,
}

/// Ends an [`Events`] from another thread.
#[derive(Clone)]
pub struct Stopper(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Default)]
struct State {
    stopped: bool,
    /// The connection that may have to be cut.
    stream: Option<TcpStream>,
}

impl Events {
    /// Events of the LiteFS whose HTTP server is at `addr`, a host and a port: `localhost:20202` unless
    /// configured. Nothing is asked yet.
    pub fn connect(addr: impl Into<String>) -> Events {
        Events {
            addr: addr.into(),
            lines: None,
            role: Role::Unknown,
            gap: false,
            backoff: BACKOFF.0,
            shared: Arc::default(),
        }
    }

    /// The role that the last event told of.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// What ends this iterator from another thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.shared))
    }

    /// Connects, and leaves the stream where a stopper finds it. `None` when stopped.
    fn open(&self) -> Result<Option<BufReader<Body>>, HttpError> {
        let unreachable = |source| HttpError::Unreachable {
            addr: self.addr.clone(),
            source,
        };
        let stream = connect(&self.addr, TIMEOUT).map_err(unreachable)?;
        stream
            .set_read_timeout(Some(TIMEOUT))
            .map_err(unreachable)?;
        stream
            .set_write_timeout(Some(TIMEOUT))
            .map_err(unreachable)?;
        let handle = stream.try_clone().map_err(unreachable)?;
        {
            let mut state = self.shared.lock();
            if state.stopped {
                return Ok(None);
            }
            state.stream = Some(handle);
        }
        Ok(Some(BufReader::new(get(stream, &self.addr, "/events")?)))
    }

    /// The next event of the connection.
    fn read(&self, lines: &mut BufReader<Body>) -> Result<Event, HttpError> {
        let mut line = String::new();
        let malformed = |what| HttpError::Malformed {
            addr: self.addr.clone(),
            what,
        };
        match lines.take(LIMIT).read_line(&mut line) {
            Ok(_) if line.ends_with('\n') => {
                parse(&line).ok_or_else(|| malformed("an event that is not LiteFS's"))
            }
            Ok(got) if got as u64 == LIMIT => Err(malformed("an event that does not end")),
            Ok(_) => Err(HttpError::Ended {
                addr: self.addr.clone(),
            }),
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                Err(malformed("an event that is no text"))
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(HttpError::Ended {
                addr: self.addr.clone(),
            }),
            Err(source) => Err(HttpError::Unreachable {
                addr: self.addr.clone(),
                source,
            }),
        }
    }

    /// One event, connecting first if need be. `None` when stopped.
    fn advance(&mut self) -> Result<Option<Event>, HttpError> {
        let (mut lines, new) = match self.lines.take() {
            Some(lines) => (lines, false),
            None => match self.open()? {
                Some(lines) => (lines, true),
                None => return Ok(None),
            },
        };
        let event = self.read(&mut lines)?;
        if new {
            // Nothing may happen for days.
            let unlimited = lines.get_ref().set_read_timeout(None);
            unlimited.map_err(|source| HttpError::Unreachable {
                addr: self.addr.clone(),
                source,
            })?;
        }
        self.lines = Some(lines);
        Ok(Some(event))
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        loop {
            if self.gap && self.lines.is_none() && self.shared.stopped_within(self.backoff) {
                return None;
            }
            let event = self.advance();
            if self.shared.lock().stopped {
                return None;
            }
            match event {
                Ok(None) => return None,
                Ok(Some(event)) => {
                    self.gap = false;
                    self.backoff = BACKOFF.0;
                    if let Event::Init(role) | Event::PrimaryChange(role) = &event {
                        self.role = role.clone();
                    }
                    return Some(event);
                }
                Err(_) if self.gap => self.backoff = (self.backoff * 2).min(BACKOFF.1),
                Err(cause) => {
                    self.gap = true;
                    self.role = Role::Unknown;
                    return Some(Event::Gap(cause));
                }
            }
        }
    }
}

impl Stopper {
    /// Ends the iterator: a `next` that waits returns `None` at once, or after the 5 seconds that an
    /// attempt to connect may take. To stop again is no error.
    pub fn stop(&self) {
        let mut state = self.0.lock();
        state.stopped = true;
        if let Some(stream) = state.stream.take() {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.0.stopped.notify_all();
    }
}

impl Shared {
    /// No code panics while it holds this.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped_within(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.lock();
        while !state.stopped {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let woken = self.stopped.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

#[derive(Deserialize)]
struct RawEvent {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    db: String,
    #[serde(default)]
    data: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRole {
    is_primary: bool,
    #[serde(default)]
    hostname: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawTx {
    #[serde(rename = "txID")]
    txid: String,
    post_apply_checksum: String,
    commit: u32,
}

fn parse(line: &str) -> Option<Event> {
    let RawEvent { kind, db, data } = serde_json::from_str(line).ok()?;
    let role = |data| {
        let raw: RawRole = serde_json::from_value(data).ok()?;
        Some(Role::of(raw.is_primary, raw.hostname))
    };
    match kind.as_str() {
        "init" => role(data).map(Event::Init),
        "primaryChange" => role(data).map(Event::PrimaryChange),
        "tx" => {
            let raw: RawTx = serde_json::from_value(data).ok()?;
            Some(Event::Tx {
                database: db,
                position: Position::from_hex(&raw.txid, &raw.post_apply_checksum)?,
                pages: raw.commit,
            })
        }
        _ => Some(Event::Other { kind }),
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, Events, parse};
    use crate::Role;
    use crate::http::tests::server;
    use std::net::TcpListener;

    const INIT: &str = r#"{"type":"init","data":{"isPrimary":false,"hostname":"p"}}"#;
    const TX: &str = r#"{"type":"tx","db":"a.db","data":{"txID":"0000000000000002","postApplyChecksum":"e04fc44716e5272f","pageSize":4096,"commit":2,"timestamp":"2026-11-21T18:09:00.473Z"}}"#;

    fn stream(lines: &[&str]) -> Vec<u8> {
        let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for line in lines {
            let chunk = format!("{:x}\r\n{line}\n\r\n", line.len() + 1);
            answer.extend_from_slice(chunk.as_bytes());
        }
        answer
    }

    #[test]
    fn events_are_read() {
        let shown = |line| parse(line).map(|event| format!("{event:?}"));
        let table = [
            (INIT, r#"Init(Replica { of: "p" })"#),
            (
                r#"{"type":"init","data":{"isPrimary":true}}"#,
                "Init(Primary)",
            ),
            (
                r#"{"type":"primaryChange","data":{"isPrimary":false}}"#,
                "PrimaryChange(Unknown)",
            ),
            (
                TX,
                r#"Tx { database: "a.db", position: Position { txid: 2, checksum: 16163353397261838127 }, pages: 2 }"#,
            ),
            (r#"{"type":"later"}"#, r#"Other { kind: "later" }"#),
        ];
        for (line, expected) in table {
            assert_eq!(shown(line).as_deref(), Some(expected), "{line}");
        }
        for line in [
            "",
            "{}",
            r#"{"type":"init"}"#,
            r#"{"type":"tx","db":"a","data":{"txID":"2","postApplyChecksum":"1","commit":1}}"#,
        ] {
            assert!(parse(line).is_none(), "{line}");
        }
    }

    #[test]
    fn a_lost_connection_is_a_gap_and_then_a_new_beginning() {
        let (addr, thread) = server(vec![
            stream(&[INIT, TX]),
            b"HTTP/1.1 503 Later\r\n\r\n".to_vec(),
            stream(&[INIT]),
            stream(&["{}"]),
            stream(&[INIT]),
        ]);
        let mut events = Events::connect(addr);
        let mut next = || events.next().expect("an event");
        assert!(matches!(next(), Event::Init(_)));
        assert!(matches!(next(), Event::Tx { .. }));
        assert!(matches!(next(), Event::Gap(_)));
        assert!(matches!(next(), Event::Init(_)), "the 503 is the same gap");
        assert!(matches!(next(), Event::Gap(_)));
        assert!(
            matches!(next(), Event::Init(_)),
            "what is no event is the same gap"
        );
        assert_eq!(events.role(), &Role::Replica { of: "p".to_owned() });
        assert!(matches!(events.next(), Some(Event::Gap(_))));
        assert_eq!(events.role(), &Role::Unknown);
        thread.join().expect("the server");
    }

    #[test]
    fn a_stopper_ends_what_waits_for_an_event_and_what_waits_to_connect() {
        // Somebody who accepts, and says nothing.
        let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = silent.local_addr().expect("an address").to_string();
        let events = Events::connect(addr);
        let stopper = events.stopper();
        let reader = std::thread::spawn(move || events.count());
        let (held, _) = silent.accept().expect("a connection");
        stopper.stop();
        assert_eq!(reader.join().expect("the reader"), 0);
        drop(held);
        // Nobody at all.
        let addr = silent.local_addr().expect("an address").to_string();
        drop(silent);
        let mut events = Events::connect(addr);
        let stopper = events.stopper();
        assert!(matches!(events.next(), Some(Event::Gap(_))));
        let reader = std::thread::spawn(move || events.count());
        stopper.stop();
        stopper.stop();
        assert_eq!(reader.join().expect("the reader"), 0);
    }
}
