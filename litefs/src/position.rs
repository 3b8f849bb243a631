//! Where a database stands.

use std::fmt;
use std::str::FromStr;

/// How far a database has come on one node: LiteFS's `-pos` file.
///
/// Two nodes have the same content if their positions are equal. The same transaction id with another
/// checksum means that one of them went a way of its own and will be rolled back.
///
/// It is written `<txid>/<checksum>`, both as 16 hexadecimal digits:
///
/// ```
/// let position: litefs::Position = "000000000000000c/e04fc44716e5272f".parse()?;
/// assert_eq!(position.txid, 12);
/// assert_eq!(position.to_string(), "000000000000000c/e04fc44716e5272f");
/// # Ok::<(), litefs::ParsePositionError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// The last transaction. It grows by one with each; 0 is a database without any.
    pub txid: u64,
    /// Checksum of the whole database after it.
    pub checksum: u64,
}

/// What was read is no position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no position: it would be two numbers of 16 hexadecimal digits with a slash in between"
)]
pub struct ParsePositionError(String);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}/{:016x}", self.txid, self.checksum)
    }
}

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Position, ParsePositionError> {
        text.split_once('/')
            .and_then(|(txid, checksum)| Position::from_hex(txid, checksum))
            .ok_or_else(|| ParsePositionError(text.chars().take(64).collect()))
    }
}

impl Position {
    pub(crate) fn from_hex(txid: &str, checksum: &str) -> Option<Position> {
        Some(Position {
            txid: number(txid)?,
            checksum: number(checksum)?,
        })
    }
}

/// Exactly 16 digits: `from_str_radix` alone would take a sign.
fn number(text: &str) -> Option<u64> {
    let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u64::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::Position;

    #[test]
    fn positions_are_read_strictly() {
        let table: &[(&str, Option<(u64, u64)>)] = &[
            ("0000000000000000/0000000000000000", Some((0, 0))),
            (
                "0000000000000002/e04fc44716e5272f",
                Some((2, 0xe04f_c447_16e5_272f)),
            ),
            ("FFFFFFFFFFFFFFFF/00000000000000aB", Some((u64::MAX, 0xab))),
            ("0000000000000002/e04fc44716e5272f\n", None),
            ("2/e04fc44716e5272f", None),
            ("+000000000000002/e04fc44716e5272f", None),
            ("0000000000000002e04fc44716e5272f", None),
            ("0000000000000002/e04fc44716e5272f/", None),
            ("", None),
        ];
        for (text, expected) in table {
            let got = text.parse::<Position>().ok();
            assert_eq!(got.map(|p| (p.txid, p.checksum)), *expected, "{text:?}");
        }
    }
}
