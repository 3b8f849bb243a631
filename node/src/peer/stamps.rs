//! When a peer's origin was asked for what the peer gives, told so that purges hold on every node.

use http::HeaderValue;

use crate::clock::Stamp;

/// Readings of the answering node's clock.
///
/// ```text
/// Caje-Peer-Asked: <filled>,<validated>,<now>       decimal
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamps {
    /// When the origin was asked for the bytes.
    pub filled: Stamp,
    /// When it was asked for the fields, last.
    pub validated: Stamp,
    /// When this answer was made.
    pub now: Stamp,
}

impl Stamps {
    pub fn to_header(self) -> HeaderValue {
        let Stamps {
            filled,
            validated,
            now,
        } = self;
        let text = format!("{},{},{}", filled.0, validated.0, now.0);
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// `None` for what no node's clocks could have said.
    pub fn parse(field: &HeaderValue) -> Option<Stamps> {
        let mut parts = field.to_str().ok()?.split(',');
        let mut stamp = || {
            let part = parts.next()?;
            let is_number = part.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| part.parse().ok().map(Stamp))?
        };
        let stamps = Stamps {
            filled: stamp()?,
            validated: stamp()?,
            now: stamp()?,
        };
        let grows = stamps.filled <= stamps.validated && stamps.validated <= stamps.now;
        let is_believed = stamps.now <= Stamp::MAX && parts.next().is_none();
        (grows && is_believed).then_some(stamps)
    }

    /// When that was by the clock of the node that asked at `began`: as long before it as the other says it is past,
    /// and not later than the other's own reading. So a purge here is about it, however far the clocks are apart.
    pub fn as_of(self, began: Stamp) -> (Stamp, Stamp) {
        // Both readings lack up to a millisecond.
        let passed = |since: Stamp| (self.now.millis() - since.millis() + 1) << 16;
        let here = |since: Stamp| Stamp(began.0.saturating_sub(passed(since))).min(since);
        (here(self.filled), here(self.validated))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Stamp {
        Stamp(ms << 16)
    }

    #[test]
    fn what_is_said_is_read() {
        let stamps = Stamps {
            filled: at(5),
            validated: at(7),
            now: at(9),
        };
        assert_eq!(Stamps::parse(&stamps.to_header()), Some(stamps));
        for wrong in [
            "",
            "1",
            "1,2",
            "1,2,3,4",
            "2,1,3",
            "1,3,2",
            "1,2,+3",
            "1,2,x",
            "1,2,18446744073709551615",
            "1,2,99999999999999999999",
        ] {
            let field = HeaderValue::try_from(wrong).expect("a value");
            assert_eq!(Stamps::parse(&field), None, "{wrong}");
        }
    }

    /// The other's clock is ahead, behind, or right: what was asked for a second ago is a second old here.
    #[test]
    fn another_s_clock_does_not_outrun_a_purge() {
        for skew in [1_000, 1_000_000, 2_000_000_u64] {
            let began = at(1_000_000);
            let stamps = Stamps {
                filled: at(skew + 4_000),
                validated: at(skew + 5_000),
                now: at(skew + 6_000),
            };
            let (filled, validated) = stamps.as_of(began);
            assert!(filled < at(998_000) && validated < at(999_000), "{skew}");
            assert!(filled <= stamps.filled && filled <= validated, "{skew}");
        }
    }
}
