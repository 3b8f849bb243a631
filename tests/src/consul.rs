//! As much of Consul as LiteFS asks for: sessions that expire, and keys that one session may hold. Plays decide who may
//! become primary, and when a session ends.
//!
//! Kept true here, as Consul has it:
//! - A session ends when it was not renewed for *twice* its time to live, or is destroyed; with it go the keys that it
//!   holds, if it says `delete`, and nobody acquires them before its lock-delay is over.
//! - A key that was released is free at once.
//! - What the holder writes without `acquire` leaves the lock as it is.
//!
//! Unlike Consul it takes sessions of less than ten seconds (there `session_ttl_min`), and answers no blocking queries, of
//! which LiteFS makes none.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Of a session that names none.
const LOCK_DELAY: Duration = Duration::from_secs(15);

/// A server on loopback. It ends when it is dropped.
pub struct Consul {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// A key has changed, or a session has ended.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    sessions: HashMap<String, Session>,
    keys: HashMap<String, Key>,
    /// Until when nobody acquires a key.
    delayed: HashMap<String, Instant>,
    /// Values that hold one of these words may not be acquired.
    barred: HashSet<String>,
    index: u64,
    is_silent: bool,
    has_ended: bool,
}

struct Session {
    time_to_live: Duration,
    lock_delay: Duration,
    deletes: bool,
    renewed: Instant,
}

struct Key {
    value: Vec<u8>,
    session: Option<String>,
    created: u64,
    modified: u64,
}

impl Session {
    fn end(&self) -> Instant {
        self.renewed + 2 * self.time_to_live
    }
}

impl State {
    fn next_index(&mut self) -> u64 {
        self.index += 1;
        self.index
    }

    /// Ends a session.
    fn invalidate(&mut self, id: &str) {
        let Some(session) = self.sessions.remove(id) else {
            return;
        };
        let held = |key: &Key| key.session.as_deref() == Some(id);
        let names: Vec<String> = self
            .keys
            .iter()
            .filter(|(_, key)| held(key))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            if session.deletes {
                self.keys.remove(&name);
            } else if let Some(key) = self.keys.get_mut(&name) {
                key.session = None;
            }
            self.delayed
                .insert(name, Instant::now() + session.lock_delay);
        }
    }

    /// Ends what nobody has renewed.
    fn expire(&mut self) {
        let now = Instant::now();
        let over: Vec<String> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.end() <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in over {
            self.invalidate(&id);
        }
    }

    /// The session that holds a key, and what the key says.
    fn holder(&self) -> Option<(&str, String)> {
        self.keys.values().find_map(|key| {
            let value = String::from_utf8_lossy(&key.value).into_owned();
            Some((key.session.as_deref()?, value))
        })
    }

    fn acquire(&mut self, name: &str, session: &str, value: Vec<u8>) -> bool {
        let text = String::from_utf8_lossy(&value);
        let is_barred = self.barred.iter().any(|word| text.contains(word));
        let until = self.delayed.get(name);
        let is_delayed = until.is_some_and(|until| Instant::now() < *until);
        let holder = self.keys.get(name).and_then(|key| key.session.clone());
        let is_free = holder.is_none_or(|holder| holder == session);
        if is_barred || is_delayed || !is_free {
            return false;
        }
        self.put(name, value, Some(session.to_owned()));
        true
    }

    fn release(&mut self, name: &str, session: &str) -> bool {
        let modified = self.next_index();
        match self.keys.get_mut(name) {
            Some(key) if key.session.as_deref() == Some(session) => {
                // LiteFS sends no value, and so takes away what it said.
                key.value.clear();
                key.session = None;
                key.modified = modified;
                true
            }
            _ => false,
        }
    }

    fn put(&mut self, name: &str, value: Vec<u8>, session: Option<String>) {
        let modified = self.next_index();
        let key = self.keys.entry(name.to_owned()).or_insert(Key {
            value: Vec::new(),
            session: None,
            created: modified,
            modified,
        });
        key.value = value;
        key.modified = modified;
        key.session = session.or(key.session.take());
    }

    /// Status and body.
    fn answer(&mut self, method: &str, target: &str, body: Vec<u8>) -> (u16, String) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let argument = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name));
        if self.is_silent {
            return (500, "No cluster leader".to_owned());
        }
        if (method, path) == ("PUT", "/v1/catalog/register") {
            return (200, "true".to_owned());
        }
        if (method, path) == ("PUT", "/v1/session/create") {
            return self.create_session(&body);
        }
        if let Some(id) = path.strip_prefix("/v1/session/renew/") {
            let Some(session) = self.sessions.get_mut(id) else {
                return (404, format!("Session id '{id}' not found"));
            };
            session.renewed = Instant::now();
            let ttl = format!("{}ms", session.time_to_live.as_millis());
            return (200, json!([{ "ID": id, "TTL": ttl }]).to_string());
        }
        if let Some(id) = path.strip_prefix("/v1/session/destroy/") {
            self.invalidate(id);
            return (200, "true".to_owned());
        }
        let Some(name) = path.strip_prefix("/v1/kv/") else {
            return (404, String::new());
        };
        match method {
            "GET" => match self.keys.get(name) {
                None => (404, String::new()),
                Some(key) => (200, shown(name, key).to_string()),
            },
            "PUT" => {
                let done = match (argument("acquire="), argument("release=")) {
                    (Some(id), _) if !self.sessions.contains_key(id) => {
                        return (500, format!("invalid session \"{id}\""));
                    }
                    (Some(id), _) => self.acquire(name, id, body),
                    (None, Some(id)) => self.release(name, id),
                    (None, None) => {
                        self.put(name, body, None);
                        true
                    }
                };
                (200, done.to_string())
            }
            _ => (405, String::new()),
        }
    }

    fn create_session(&mut self, body: &[u8]) -> (u16, String) {
        let asked: Value = serde_json::from_slice(body).unwrap_or_default();
        let duration = |name: &str| asked[name].as_str().map(go_duration);
        let number = self.next_index();
        let id = format!("00000000-0000-4000-8000-{number:012}");
        let session = Session {
            time_to_live: duration("TTL").expect("LiteFS gives its sessions an end"),
            lock_delay: duration("LockDelay").unwrap_or(LOCK_DELAY),
            deletes: asked["Behavior"] == "delete",
            renewed: Instant::now(),
        };
        self.sessions.insert(id.clone(), session);
        (200, json!({ "ID": id }).to_string())
    }
}

/// As Go writes them: `1m30s`, `1.5s`, `100ms`.
fn go_duration(text: &str) -> Duration {
    let mut whole = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let unit = rest.find(|byte: char| byte != '.' && !byte.is_ascii_digit());
        let (number, after) = rest.split_at(unit.expect("a unit"));
        let end = after.find(|byte: char| byte.is_ascii_digit());
        let (unit, left) = after.split_at(end.unwrap_or(after.len()));
        let seconds = match unit {
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => panic!("no duration: {text}"),
        };
        let number: f64 = number.parse().expect("a number");
        whole += Duration::from_secs_f64(number * seconds);
        rest = left;
    }
    whole
}

fn shown(name: &str, key: &Key) -> Value {
    let mut shown = json!({
        "Key": name,
        "Value": base64(&key.value),
        "Flags": 0,
        "LockIndex": 0,
        "CreateIndex": key.created,
        "ModifyIndex": key.modified,
    });
    if let Some(session) = &key.session {
        shown["Session"] = session.as_str().into();
    }
    json!([shown])
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let mut bits = [0; 4];
        bits[1..=three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes(bits);
        for place in 0..4 {
            let sextet = (bits >> (18 - 6 * place)) as usize & 63;
            text.push(match place {
                place if place > three.len() => '=',
                _ => ALPHABET[sextet] as char,
            });
        }
    }
    text
}

impl Consul {
    /// # Panics
    /// When there is no port.
    pub fn start() -> Consul {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address");
        let shared = Arc::<Shared>::default();
        let server = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if server.lock().has_ended {
                    break;
                }
                let server = server.clone();
                // Whoever is there no more needs no answer.
                std::thread::spawn(move || server.serve(stream).ok());
            }
        });
        Consul { addr, shared }
    }

    /// For `lease.consul.url`.
    pub fn url(&self) -> String {
        format!("http://{}/play", self.addr)
    }

    /// Nodes whose name or address contains this word do not become primary from now on.
    pub fn bar(&self, word: &str) {
        self.shared.lock().barred.insert(word.to_owned());
    }

    /// They may again.
    pub fn admit(&self, word: &str) {
        self.shared.lock().barred.remove(word);
    }

    /// Ends the session of the primary, as if it had not been heard of for long enough, and its lock-delay with it.
    pub fn expire_primary(&self) {
        let mut state = self.shared.lock();
        let holder = state.holder().map(|(session, _)| session.to_owned());
        state.invalidate(&holder.expect("a primary"));
        state.delayed.clear();
        drop(state);
        self.shared.changed.notify_all();
    }

    /// From now on there is no answer but 500, or there is again.
    pub fn silence(&self, is_silent: bool) {
        self.shared.lock().is_silent = is_silent;
    }

    /// What the primary says of itself: JSON with its name and address. `None` where there is none.
    pub fn primary(&self) -> Option<String> {
        let mut state = self.shared.lock();
        state.expire();
        state.holder().map(|(_, value)| value)
    }

    /// Waits until there is a primary that says this word, or one that does not.
    ///
    /// # Panics
    /// When there is none within `limit`.
    pub fn until_primary(&self, limit: Duration, wanted: impl Fn(&str) -> bool) {
        let until = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            state.expire();
            let holder = state.holder().map(|(_, value)| value);
            if holder.as_deref().is_some_and(&wanted) {
                return;
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "waited {limit:?} for a primary; it is {holder:?}"
            );
            let woken = self.shared.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Consul {
    fn drop(&mut self) {
        self.shared.lock().has_ended = true;
        // Wakes who accepts.
        let _ = TcpStream::connect(self.addr);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut writer = stream;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let mut words = line.split(' ');
            let mut word = || words.next().unwrap_or_default().to_owned();
            let (method, target) = (word(), word());
            let mut length = 0;
            loop {
                let mut field = String::new();
                reader.read_line(&mut field)?;
                let field = field.trim().to_ascii_lowercase();
                if field.is_empty() {
                    break;
                }
                if let Some(value) = field.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap_or(0);
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            let mut state = self.lock();
            if state.has_ended {
                return Ok(());
            }
            state.expire();
            let (status, answer) = state.answer(&method, &target, body);
            drop(state);
            self.changed.notify_all();
            let head = format!(
                "HTTP/1.1 {status} -\r\ncontent-type: application/json\r\n\
                 x-consul-index: 1\r\nx-consul-lastcontact: 0\r\nx-consul-knownleader: true\r\n\
                 content-length: {}\r\n\r\n",
                answer.len()
            );
            writer.write_all((head + &answer).as_bytes())?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{base64, go_duration};
    use std::time::Duration;

    #[test]
    fn what_go_writes_is_understood() {
        assert_eq!(go_duration("1m30s"), Duration::from_secs(90));
        assert_eq!(go_duration("1.5s"), Duration::from_millis(1500));
        assert_eq!(go_duration("100ms"), Duration::from_millis(100));
    }

    #[test]
    fn values_are_coded_as_rfc_4648_has_it() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
