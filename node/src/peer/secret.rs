//! The proof by which nodes of a cluster know one another: a keyed BLAKE3 of what is asked and of what is answered.
//!
//! ```text
//! Caje-Peer: <node>;<seconds since 1970>;<nonce>;<mac>         of the request: method, authority, target, body
//! Caje-Peer-Proof: <mac>                                       of the answer: the request's nonce, status, fields
//! ```
//!
//! Kept true here:
//! - The secret itself is never sent, so that a forged row of the node table gains nothing by being asked.
//! - An answer's proof belongs to one request. It vouches for the head; each part of the body has its own
//!   ([`seal`](super::seal)).
//! - Macs are compared in constant time.

use std::fmt;
use std::time::{Duration, SystemTime};

use http::header::{CONNECTION, HeaderName, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use subtle::ConstantTimeEq;

/// The field of a request.
pub const ASK: HeaderName = HeaderName::from_static("caje-peer");
/// The field of an answer.
pub const PROOF: HeaderName = HeaderName::from_static("caje-peer-proof");

/// Fewer characters than this are guessed sooner or later.
pub const MIN_SECRET: usize = 32;

/// How far the clocks of two nodes may be apart.
pub const MAX_SKEW: Duration = Duration::from_secs(60);

/// Longest name of a node, in bytes.
const MAX_NODE: usize = 64;

/// Marks one question, and its answer.
pub type Nonce = [u8; 8];

/// What all nodes of a cluster know.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The node that asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    pub node: String,
    pub nonce: Nonce,
    /// Seconds since 1970, by its clock.
    pub at: u64,
}

/// Why a request is a stranger's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAPeer {
    #[error("its proof cannot be read")]
    Malformed,
    #[error(
        "its clock is more than a minute away from ours, or it is an old one that was sent again"
    )]
    Time,
    #[error("its proof is wrong: another secret, or another request")]
    Wrong,
}

impl Secret {
    /// `secret` has at least [`MIN_SECRET`] characters of chance.
    pub fn new(secret: &str) -> Secret {
        Secret(blake3::derive_key("caje 2026 cluster", secret.as_bytes()))
    }

    /// The field that proves a request. `node` is the name of who asks, `authority` and `target` are as they are
    /// sent.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part of what is proven"
    )]
    pub fn ask(
        &self,
        node: &str,
        now: SystemTime,
        nonce: Nonce,
        method: &Method,
        authority: &str,
        target: &str,
        body: &[u8],
    ) -> HeaderValue {
        let at = seconds(now);
        let mac = self.of_request(node, at, nonce, method, authority, target, body);
        let text = format!("{node};{at};{};{}", hex(&nonce), mac.to_hex());
        // Names of nodes are letters, digits and a few marks.
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// Who has sent a request. That a nonce is used once is for the caller to see to, where it matters.
    ///
    /// # Errors
    /// [`NotAPeer`].
    pub fn check(
        &self,
        field: &HeaderValue,
        now: SystemTime,
        method: &Method,
        authority: &str,
        target: &str,
        body: &[u8],
    ) -> Result<Asker, NotAPeer> {
        let text = field.to_str().map_err(|_| NotAPeer::Malformed)?;
        let mut parts = text.split(';');
        let (Some(node), Some(at), Some(nonce), Some(mac), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(NotAPeer::Malformed);
        };
        let at: u64 = at.parse().map_err(|_| NotAPeer::Malformed)?;
        let nonce = unhex(nonce).ok_or(NotAPeer::Malformed)?;
        let mac = blake3::Hash::from_hex(mac).map_err(|_| NotAPeer::Malformed)?;
        if node.is_empty() || node.len() > MAX_NODE {
            return Err(NotAPeer::Malformed);
        }
        let right = self.of_request(node, at, nonce, method, authority, target, body);
        if !is_equal(&right, &mac) {
            return Err(NotAPeer::Wrong);
        }
        if at.abs_diff(seconds(now)) > MAX_SKEW.as_secs() {
            return Err(NotAPeer::Time);
        }
        Ok(Asker {
            node: node.to_owned(),
            nonce,
            at,
        })
    }

    /// The field that proves the head of an answer to the request of that nonce.
    pub fn answer(&self, nonce: Nonce, status: StatusCode, fields: &HeaderMap) -> HeaderValue {
        let mac = self.of_answer(nonce, status, fields).to_hex();
        HeaderValue::try_from(mac.as_str()).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// Whether a head is the answer of a node to the request of that nonce.
    pub fn is_answer(&self, nonce: Nonce, status: StatusCode, fields: &HeaderMap) -> bool {
        let mut proofs = fields.get_all(PROOF).iter();
        let (Some(proof), None) = (proofs.next(), proofs.next()) else {
            return false;
        };
        let proof = proof
            .to_str()
            .ok()
            .and_then(|text| blake3::Hash::from_hex(text).ok());
        proof.is_some_and(|proof| is_equal(&self.of_answer(nonce, status, fields), &proof))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part of what is proven"
    )]
    fn of_request(
        &self,
        node: &str,
        at: u64,
        nonce: Nonce,
        method: &Method,
        authority: &str,
        target: &str,
        body: &[u8],
    ) -> blake3::Hash {
        let mut mac = Mac::new(self, b"request");
        mac.part(node.as_bytes());
        mac.part(&at.to_le_bytes());
        mac.part(&nonce);
        mac.part(method.as_str().as_bytes());
        mac.part(authority.as_bytes());
        mac.part(target.as_bytes());
        mac.part(blake3::hash(body).as_bytes());
        mac.0.finalize()
    }

    fn of_answer(&self, nonce: Nonce, status: StatusCode, fields: &HeaderMap) -> blake3::Hash {
        let mut mac = Mac::new(self, b"answer");
        mac.part(&nonce);
        mac.part(&status.as_u16().to_le_bytes());
        // What belongs to the connection may differ at its other end.
        let mut proven: Vec<(&str, &[u8])> = fields
            .iter()
            .filter(|(name, _)| ![PROOF, CONNECTION, TRANSFER_ENCODING, KEEP_ALIVE].contains(name))
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        // Lines of one field keep their order.
        proven.sort_by_key(|(name, _)| *name);
        for (name, value) in proven {
            mac.part(name.as_bytes());
            mac.part(value);
        }
        mac.0.finalize()
    }
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Each part behind its length, so that none reaches into another.
pub(super) struct Mac(blake3::Hasher);

impl Mac {
    pub(super) fn new(secret: &Secret, what: &[u8]) -> Mac {
        let mut mac = Mac(blake3::Hasher::new_keyed(&secret.0));
        mac.part(what);
        mac
    }

    pub(super) fn part(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    pub(super) fn finish(&self) -> blake3::Hash {
        self.0.finalize()
    }
}

fn is_equal(one: &blake3::Hash, other: &blake3::Hash) -> bool {
    bool::from(one.as_bytes().ct_eq(other.as_bytes()))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn hex(nonce: &Nonce) -> String {
    format!("{:016x}", u64::from_be_bytes(*nonce))
}

fn unhex(text: &str) -> Option<Nonce> {
    let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = is_hex.then(|| u64::from_str_radix(text, 16).ok())??;
    Some(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const NONCE: Nonce = [1, 2, 3, 4, 5, 6, 7, 255];

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn asked(secret: &Secret) -> HeaderValue {
        secret.ask("lhr-1", now(), NONCE, &Method::GET, "e.com", "/a?b", b"")
    }

    #[test]
    fn a_request_is_proven_as_it_was_sent() {
        let secret = Secret::new(SECRET);
        let field = asked(&secret);
        let check = |field: &HeaderValue, now, method, authority, target, body: &[u8]| {
            secret.check(field, now, method, authority, target, body)
        };
        let get = &Method::GET;
        let asker = check(&field, now(), get, "e.com", "/a?b", b"").expect("a peer");
        assert_eq!((asker.node.as_str(), asker.nonce), ("lhr-1", NONCE));
        for other in [
            check(&field, now(), &Method::POST, "e.com", "/a?b", b""),
            check(&field, now(), get, "e.comx", "/a?b", b""),
            check(&field, now(), get, "e.com", "/a?c", b""),
            check(&field, now(), get, "e.com", "/a?b", b"x"),
            Secret::new("another").check(&field, now(), get, "e.com", "/a?b", b""),
        ] {
            assert_eq!(other, Err(NotAPeer::Wrong));
        }
        for late in [now() + MAX_SKEW * 2, now() - MAX_SKEW * 2] {
            let other = check(&field, late, get, "e.com", "/a?b", b"");
            assert_eq!(other, Err(NotAPeer::Time));
        }
    }

    #[test]
    fn a_changed_field_proves_nothing() {
        let secret = Secret::new(SECRET);
        let field = asked(&secret);
        let text = field.to_str().expect("text");
        for changed in [
            text.replacen("lhr-1", "lhr-2", 1),
            text.replacen("1800000000", "1800000001", 1),
            text.replacen("ff;", "fe;", 1),
            format!("{text};"),
            text[..text.len() - 1].to_owned(),
            String::new(),
            ";;;".to_owned(),
        ] {
            let field = HeaderValue::try_from(changed).expect("a value");
            let checked = secret.check(&field, now(), &Method::GET, "e.com", "/a?b", b"");
            assert!(checked.is_err(), "{field:?}");
        }
    }

    #[test]
    fn an_answer_belongs_to_its_request() {
        let secret = Secret::new(SECRET);
        let mut fields = HeaderMap::new();
        fields.append("vary", HeaderValue::from_static("a"));
        fields.append("etag", HeaderValue::from_static("\"x\""));
        fields.append("vary", HeaderValue::from_static("b"));
        let proof = secret.answer(NONCE, StatusCode::OK, &fields);
        fields.insert(PROOF, proof.clone());
        fields.insert(CONNECTION, HeaderValue::from_static("close"));
        assert!(secret.is_answer(NONCE, StatusCode::OK, &fields));
        assert!(!secret.is_answer([0; 8], StatusCode::OK, &fields));
        assert!(!secret.is_answer(NONCE, StatusCode::NOT_FOUND, &fields));
        let mut another = fields.clone();
        another.insert("etag", HeaderValue::from_static("\"y\""));
        assert!(!secret.is_answer(NONCE, StatusCode::OK, &another));
        fields.append(PROOF, proof);
        assert!(!secret.is_answer(NONCE, StatusCode::OK, &fields));
    }
}
