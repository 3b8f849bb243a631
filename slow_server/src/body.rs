//! Bodies as a function of the URL.
//!
//! - Byte `n` of a body depends on the path, the version and `n` alone, so any range can be made,
//!   or checked, without the bytes before it and without keeping anything.
//! - Two paths, or two versions of one path, differ in nearly every byte: a block of one that turns
//!   up in the other is found by checking any few bytes of it.
//! - The query is no part of the function: the options of an answer do not change its body.
//!
//! Eight bytes at a time come from SplitMix64 at position `offset / 8`, little-endian.

use std::fmt;
use std::ops::Range;

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The body of one path and version. Hashing the path happens once, here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyFn {
    seed: u64,
}

/// The first byte at which a received body is not what its URL says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Offset in the whole body.
    pub offset: u64,
    pub expected: u8,
    pub found: u8,
}

/// The bytes `range` of the body of `path`.
#[must_use]
pub fn body_bytes(path: &str, range: Range<u64>) -> Vec<u8> {
    BodyFn::new(path).bytes(range)
}

/// The bytes `range` of the body of `path` in its given version (`v=` in a URL). Version 0 is the
/// default one.
#[must_use]
pub fn body_bytes_of_version(path: &str, version: u64, range: Range<u64>) -> Vec<u8> {
    BodyFn::of_version(path, version).bytes(range)
}

/// Fills `out` with the body of `path` from `offset` on.
pub fn fill_body(path: &str, offset: u64, out: &mut [u8]) {
    BodyFn::new(path).fill(offset, out);
}

/// Whether `bytes` are the body of `path` from `offset` on.
///
/// # Errors
/// The first byte that differs.
pub fn verify_body(path: &str, offset: u64, bytes: &[u8]) -> Result<(), Mismatch> {
    BodyFn::new(path).verify(offset, bytes)
}

impl BodyFn {
    /// The body of `path`, up to its `?` if it has one.
    #[must_use]
    pub fn new(path: &str) -> BodyFn {
        BodyFn::of_version(path, 0)
    }

    #[must_use]
    pub fn of_version(path: &str, version: u64) -> BodyFn {
        let path = path.split('?').next().unwrap_or_default();
        let seed = mix(hash(path.as_bytes()) ^ mix(version.wrapping_mul(GAMMA)));
        BodyFn { seed }
    }

    /// Fills `out` with the bytes from `offset` on.
    pub fn fill(self, offset: u64, out: &mut [u8]) {
        let skip = (offset % 8) as usize;
        let mut word = offset / 8;
        let mut rest = out;
        if skip != 0 {
            let bytes = self.word(word);
            let (head, tail) = rest.split_at_mut(rest.len().min(8 - skip));
            head.copy_from_slice(&bytes[skip..skip + head.len()]);
            rest = tail;
            word += 1;
        }
        let mut words = rest.chunks_exact_mut(8);
        for out in &mut words {
            out.copy_from_slice(&self.word(word));
            word += 1;
        }
        let last = words.into_remainder();
        let bytes = self.word(word);
        last.copy_from_slice(&bytes[..last.len()]);
    }

    /// The bytes of `range`.
    #[must_use]
    pub fn bytes(self, range: Range<u64>) -> Vec<u8> {
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut out = vec![0; length];
        self.fill(range.start, &mut out);
        out
    }

    /// Whether `bytes` are the body from `offset` on.
    ///
    /// # Errors
    /// The first byte that differs.
    pub fn verify(self, offset: u64, bytes: &[u8]) -> Result<(), Mismatch> {
        let mut expected = [0; 4096];
        let mut at = offset;
        for found in bytes.chunks(expected.len()) {
            let expected = &mut expected[..found.len()];
            self.fill(at, expected);
            if expected != found {
                let first = expected
                    .iter()
                    .zip(found)
                    .position(|(a, b)| a != b)
                    .unwrap_or(0);
                return Err(Mismatch {
                    offset: at + first as u64,
                    expected: expected[first],
                    found: found[first],
                });
            }
            at += found.len() as u64;
        }
        Ok(())
    }

    /// A value that names this body: what a strong entity tag is made of.
    #[must_use]
    pub fn fingerprint(self) -> u64 {
        mix(self.seed ^ GAMMA)
    }

    #[inline]
    fn word(self, index: u64) -> [u8; 8] {
        mix(self.seed.wrapping_add(index.wrapping_mul(GAMMA))).to_le_bytes()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch {
            offset,
            expected,
            found,
        } = self;
        write!(f, "byte {offset} is {found:#04x}, not {expected:#04x}")
    }
}

impl std::error::Error for Mismatch {}

/// FNV-1a: what names a received request body in `/echo` and in the log.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    hash_on(HASH_START, bytes)
}

pub(crate) const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

/// Goes on with a hash over further bytes.
pub(crate) fn hash_on(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[inline]
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(GAMMA);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_equals_that_part_of_the_whole() {
        let whole = body_bytes("/bytes/100", 0..100);
        for start in 0..100 {
            for end in start..=100 {
                assert_eq!(
                    body_bytes("/bytes/100", start..end),
                    whole[start as usize..end as usize]
                );
            }
        }
    }

    #[test]
    fn paths_and_versions_differ_and_queries_do_not() {
        let a = body_bytes("/bytes/64/a", 0..64);
        assert_ne!(a, body_bytes("/bytes/64/b", 0..64));
        assert_ne!(a, body_bytes_of_version("/bytes/64/a", 1, 0..64));
        assert_eq!(a, body_bytes("/bytes/64/a?delay=5", 0..64));
    }

    #[test]
    fn verify_finds_the_first_wrong_byte() {
        let mut bytes = body_bytes("/x", 3..20_000);
        assert_eq!(verify_body("/x", 3, &bytes), Ok(()));
        bytes[9_000] ^= 1;
        assert_eq!(
            verify_body("/x", 3, &bytes).map_err(|wrong| wrong.offset),
            Err(9_003)
        );
    }
}
