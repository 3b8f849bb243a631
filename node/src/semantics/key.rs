//! The cache key of a resource: scheme, authority and target, byte for byte as they are forwarded.
//!
//! ```text
//! scheme (0 http, 1 https)   authority length   authority      target length   target
//! u8                         u32 little-endian  lower case     u32 LE          exact bytes
//! ```
//!
//! Kept true here: two requests share a key only if all three parts are equal. No part is decoded,
//! and parts are length-prefixed, so that none can reach into another. The whole key is compared,
//! not its hash alone.

use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::net::Ipv6Addr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest host that is taken, in bytes: what DNS can name.
const MAX_HOST: usize = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub const fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    pub const fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which resource a request is for. Cheap to clone.
#[derive(Clone)]
pub struct CacheKey {
    hash: [u8; 32],
    authority_length: usize,
    bytes: Arc<[u8]>,
}

/// Bytes before the authority: scheme and length.
const AUTHORITY_AT: usize = 5;
/// Bytes of a length.
const LENGTH: usize = 4;

impl CacheKey {
    /// `authority` as [`normalize_authority`] gives it, `target` as it goes upstream.
    pub fn new(scheme: Scheme, authority: &str, target: &[u8]) -> CacheKey {
        let length = AUTHORITY_AT + authority.len() + LENGTH + target.len();
        let mut small = [0; 512];
        let mut large = Vec::new();
        let bytes = match small.get_mut(..length) {
            Some(bytes) => bytes,
            None => {
                large.resize(length, 0);
                &mut large[..]
            }
        };
        let (prefix, rest) = bytes.split_at_mut(AUTHORITY_AT);
        prefix[0] = scheme as u8;
        prefix[1..].copy_from_slice(&(authority.len() as u32).to_le_bytes());
        let (name, rest) = rest.split_at_mut(authority.len());
        name.copy_from_slice(authority.as_bytes());
        let (prefix, path) = rest.split_at_mut(LENGTH);
        prefix.copy_from_slice(&(target.len() as u32).to_le_bytes());
        path.copy_from_slice(target);
        CacheKey {
            hash: *blake3::hash(bytes).as_bytes(),
            authority_length: authority.len(),
            bytes: Arc::from(&*bytes),
        }
    }

    /// Reads what [`CacheKey::as_bytes`] gave; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<CacheKey> {
        let (&scheme, rest) = bytes.split_first()?;
        let (authority, rest) = split_prefixed(rest)?;
        let (_, rest) = split_prefixed(rest)?;
        if scheme > Scheme::Https as u8 || !rest.is_empty() {
            return None;
        }
        Some(CacheKey {
            hash: *blake3::hash(bytes).as_bytes(),
            authority_length: std::str::from_utf8(authority).ok()?.len(),
            bytes: Arc::from(bytes),
        })
    }

    /// BLAKE3 of the whole key: the same on every node and after every start.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn scheme(&self) -> Scheme {
        match self.bytes.first() {
            Some(&scheme) if scheme == Scheme::Https as u8 => Scheme::Https,
            _ => Scheme::Http,
        }
    }

    pub fn authority(&self) -> &str {
        let authority = &self.bytes[AUTHORITY_AT..AUTHORITY_AT + self.authority_length];
        std::str::from_utf8(authority).unwrap_or_default()
    }

    pub fn target(&self) -> &[u8] {
        &self.bytes[AUTHORITY_AT + self.authority_length + LENGTH..]
    }
}

fn split_prefixed(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

impl PartialEq for CacheKey {
    fn eq(&self, other: &CacheKey) -> bool {
        self.hash == other.hash && self.bytes == other.bytes
    }
}

impl Eq for CacheKey {}

impl std::hash::Hash for CacheKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

/// Hashes what is a digest already: eight of its bytes, mixed with a secret of this process, so that
/// nobody can choose keys that meet in a table.
#[derive(Clone)]
pub struct DigestHashing {
    secret: u64,
}

impl Default for DigestHashing {
    fn default() -> DigestHashing {
        let secret = std::hash::RandomState::new().hash_one(0_u64);
        DigestHashing { secret }
    }
}

impl BuildHasher for DigestHashing {
    type Hasher = DigestHasher;

    fn build_hasher(&self) -> DigestHasher {
        DigestHasher { state: self.secret }
    }
}

pub struct DigestHasher {
    state: u64,
}

impl Hasher for DigestHasher {
    fn write(&mut self, digest: &[u8]) {
        let first = digest.first_chunk().copied().map_or(0, u64::from_le_bytes);
        // Both halves of the product depend on every bit of the factors.
        let product = u128::from(first ^ self.state) * 0x9e37_79b9_7f4a_7c15;
        self.state = (product >> 64) as u64 ^ product as u64;
    }

    /// The length before the digest, which is always the same.
    fn write_usize(&mut self, _length: usize) {}

    fn finish(&self) -> u64 {
        self.state
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.target().escape_ascii();
        write!(f, "{}://{}{target}", self.scheme(), self.authority())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAuthority {
    #[error("the host is empty")]
    Empty,
    #[error("the host is longer than 255 bytes")]
    TooLong,
    #[error("a host cannot hold this byte")]
    Byte,
    #[error("user information has no place in an authority")]
    UserInformation,
    #[error("the address in brackets is no IPv6 address")]
    Address,
    #[error("the port is no number up to 65535")]
    Port,
}

/// The authority in its one form: lower case, IPv6 by RFC 5952, no empty or default port.
///
/// Strict about RFC 3986 §3.2: host names are a reg-name, user information is refused (RFC 9110
/// §4.2.4).
pub fn normalize_authority(authority: &[u8], scheme: Scheme) -> Result<Box<str>, BadAuthority> {
    if authority.contains(&b'@') {
        return Err(BadAuthority::UserInformation);
    }
    let (mut host, port) = match authority.strip_prefix(b"[") {
        Some(rest) => {
            let end = memchr::memchr(b']', rest).ok_or(BadAuthority::Address)?;
            let port = match &rest[end + 1..] {
                [] => None,
                [b':', port @ ..] => Some(port),
                _ => return Err(BadAuthority::Byte),
            };
            let address: Ipv6Addr = std::str::from_utf8(&rest[..end])
                .ok()
                .and_then(|address| address.parse().ok())
                .ok_or(BadAuthority::Address)?;
            (format!("[{address}]"), port)
        }
        None => match memchr::memchr(b':', authority) {
            Some(colon) => (
                host_name(&authority[..colon])?,
                Some(&authority[colon + 1..]),
            ),
            None => (host_name(authority)?, None),
        },
    };
    if let Some(port) = parse_port(port.unwrap_or_default())?
        && port != scheme.default_port()
    {
        host.push(':');
        host.push_str(itoa::Buffer::new().format(port));
    }
    Ok(host.into_boxed_str())
}

fn host_name(host: &[u8]) -> Result<String, BadAuthority> {
    if host.is_empty() {
        return Err(BadAuthority::Empty);
    }
    if host.len() > MAX_HOST {
        return Err(BadAuthority::TooLong);
    }
    let mut name = String::with_capacity(host.len() + ":65535".len());
    let mut rest = host.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'%' => {
                let escaped = rest.as_slice().get(..2).unwrap_or_default();
                if escaped.len() < 2 || !escaped.iter().all(u8::is_ascii_hexdigit) {
                    return Err(BadAuthority::Byte);
                }
            }
            b'-' | b'.' | b'_' | b'~' => {}
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' => {}
            byte if byte.is_ascii_alphanumeric() => {}
            _ => return Err(BadAuthority::Byte),
        }
        name.push(byte.to_ascii_lowercase() as char);
    }
    Ok(name)
}

fn parse_port(digits: &[u8]) -> Result<Option<u16>, BadAuthority> {
    if digits.is_empty() {
        return Ok(None);
    }
    if digits.len() > 5 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(BadAuthority::Port);
    }
    let port = digits
        .iter()
        .fold(0u32, |port, digit| port * 10 + u32::from(digit - b'0'));
    u16::try_from(port)
        .map(Some)
        .map_err(|_| BadAuthority::Port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_have_one_form() {
        use BadAuthority::*;
        for (given, normal) in [
            ("example.com", Ok("example.com")),
            ("EXAMPLE.com:80", Ok("example.com")),
            ("example.com:", Ok("example.com")),
            ("example.com:0080", Ok("example.com")),
            ("example.com:443", Ok("example.com:443")),
            ("example.com.", Ok("example.com.")),
            ("a_b.example:8080", Ok("a_b.example:8080")),
            ("127.0.0.1:8080", Ok("127.0.0.1:8080")),
            ("[::1]:8080", Ok("[::1]:8080")),
            ("[2001:DB8:0:0:0:0:0:1]", Ok("[2001:db8::1]")),
            ("%41.example", Ok("%41.example")),
            ("", Err(Empty)),
            (":80", Err(Empty)),
            ("a@b", Err(UserInformation)),
            ("a b", Err(Byte)),
            ("a/b", Err(Byte)),
            ("a?b", Err(Byte)),
            ("a#b", Err(Byte)),
            ("a\\b", Err(Byte)),
            ("a\0", Err(Byte)),
            ("%4", Err(Byte)),
            ("é", Err(Byte)),
            ("[::1", Err(Address)),
            ("[::1%25eth0]", Err(Address)),
            ("[v1.a]", Err(Address)),
            ("[::1]x", Err(Byte)),
            ("::1", Err(Empty)),
            ("a:80:80", Err(Port)),
            ("a:65536", Err(Port)),
            ("a:-1", Err(Port)),
            ("a:999999", Err(Port)),
        ] {
            let found = normalize_authority(given.as_bytes(), Scheme::Http);
            assert_eq!(found.as_deref(), normal.as_ref().copied(), "{given:?}");
        }
        let long = vec![b'a'; 256];
        assert_eq!(normalize_authority(&long, Scheme::Http), Err(TooLong));
        let https = normalize_authority(b"A:443", Scheme::Https).unwrap();
        assert_eq!(&*https, "a");
    }

    #[test]
    fn parts_do_not_reach_into_each_other() {
        let keys = [
            CacheKey::new(Scheme::Http, "a", b"/b"),
            CacheKey::new(Scheme::Https, "a", b"/b"),
            CacheKey::new(Scheme::Http, "a/", b"b"),
            CacheKey::new(Scheme::Http, "a", b"/B"),
            CacheKey::new(Scheme::Http, "a", b"/%62"),
            CacheKey::new(Scheme::Http, "a:80", b"/b"),
            CacheKey::new(Scheme::Http, "", b""),
            CacheKey::new(Scheme::Http, "long", &[b'x'; 3000]),
        ];
        for (at, key) in keys.iter().enumerate() {
            for (other_at, other) in keys.iter().enumerate() {
                assert_eq!(key == other, at == other_at);
                assert_eq!(key.hash() == other.hash(), at == other_at);
            }
            let read = CacheKey::from_bytes(key.as_bytes()).unwrap();
            assert_eq!(&read, key);
            assert_eq!(read.scheme(), key.scheme());
            assert_eq!(read.authority(), key.authority());
            assert_eq!(read.target(), key.target());
        }
        assert_eq!(keys[1].scheme(), Scheme::Https);
        assert_eq!(keys[1].authority(), "a");
        assert_eq!(keys[1].target(), b"/b");
        assert_eq!(keys[1].to_string(), "https://a/b");
    }

    #[test]
    fn only_whole_keys_are_read() {
        let key = CacheKey::new(Scheme::Https, "example.com", b"/");
        let bytes = key.as_bytes();
        for end in 0..bytes.len() {
            assert!(CacheKey::from_bytes(&bytes[..end]).is_none(), "{end}");
        }
        assert!(CacheKey::from_bytes(&[bytes, b"x"].concat()).is_none());
        let mut other_scheme = bytes.to_vec();
        other_scheme[0] = 2;
        assert!(CacheKey::from_bytes(&other_scheme).is_none());
        let mut huge = bytes.to_vec();
        huge[1..5].fill(0xff);
        assert!(CacheKey::from_bytes(&huge).is_none());
    }
}
