//! Tokens of operators, as settings have them: hashes.

use std::fmt;

use caje_admin_api::Scope;
use subtle::{Choice, ConstantTimeEq};
use toml::de::DeValue;

use super::value::{Read, Wrong, text};

/// Fewer characters than this are guessed sooner or later.
pub const MIN_TOKEN: usize = 20;

const PREFIX: &str = "blake3:";

/// `[[admin.token]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub name: String,
    pub hash: TokenHash,
    pub scopes: Vec<Scope>,
}

/// BLAKE3 of a token. A token is 256 random bits, so that no salt and no slow hash are needed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    pub fn of(token: &str) -> TokenHash {
        TokenHash(*blake3::hash(token.as_bytes()).as_bytes())
    }

    /// In a time that does not depend on the hashes.
    pub fn is(&self, other: &TokenHash) -> Choice {
        self.0.ct_eq(&other.0)
    }

    fn parse(text: &str) -> Option<TokenHash> {
        let hash = blake3::Hash::from_hex(text.strip_prefix(PREFIX)?).ok()?;
        Some(TokenHash(*hash.as_bytes()))
    }
}

/// As settings have it.
impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

/// A token of the environment that anybody could guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooShort;

/// Its hash: the token itself is not kept.
pub(super) fn of_environment(token: &str) -> Result<TokenHash, TooShort> {
    match token.len() >= MIN_TOKEN {
        true => Ok(TokenHash::of(token)),
        false => Err(TooShort),
    }
}

pub(super) fn hash(value: &DeValue) -> Read<TokenHash> {
    let make = "make one with `caje-node token new --name NAME --scope read`";
    TokenHash::parse(text(value)?).ok_or_else(|| {
        let wrong = Wrong::new("this is no token's hash: `blake3:` and 64 hexadecimal digits");
        wrong.hint(make)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_read_as_it_is_written() {
        let hash = TokenHash::of("caje_0123456789abcdef");
        assert_eq!(TokenHash::parse(&hash.to_string()), Some(hash));
        assert!(bool::from(hash.is(&TokenHash::of("caje_0123456789abcdef"))));
        assert!(!bool::from(
            hash.is(&TokenHash::of("caje_0123456789abcdeg"))
        ));
        for text in ["", "blake3:", "blake3:zz", "sha256:00"] {
            assert_eq!(TokenHash::parse(text), None, "{text}");
        }
        assert!(!format!("{hash:?}").contains(&hash.to_string()[8..]));
    }
}
