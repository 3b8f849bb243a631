//! How often something is tried in vain, and how long it rests in between.
//!
//! Failures are counted under the name that they have (`404`, `503`, `connect`), and held against the limits by the
//! rule that is nearest to it: the status, its class, the kind, or the default, which counts all that no other rule
//! counts together.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cache::hold::Shortfall;

/// Attempts by status (`404`), class of status (`5xx`) or kind of failure (`connect`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub default: u32,
    pub by_kind: BTreeMap<String, u32>,
}

impl Limits {
    /// The rule for failures of this name: its own name, and how many are allowed.
    fn rule<'a>(&'a self, name: &'a str) -> (&'a str, u32) {
        if let Some((rule, limit)) = self.by_kind.get_key_value(name) {
            return (rule, *limit);
        }
        let of_class = |rule: &&String| match (rule.as_bytes(), name.as_bytes()) {
            ([class, b'x', b'x'], [digit, _, _]) => class == digit && digit.is_ascii_digit(),
            _ => false,
        };
        match self.by_kind.keys().find(of_class) {
            Some(rule) => (rule, self.by_kind[rule]),
            None => ("default", self.default),
        }
    }
}

/// Pauses after failures: the first, and the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub first: Duration,
    pub longest: Duration,
}

impl Backoff {
    /// After so many failures: doubled each time, and between half and all of that, as `seed` has it.
    pub fn pause(&self, failures: u32, seed: u64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let whole = self.first.saturating_mul(1 << doublings).min(self.longest);
        let fraction = (seed >> 11) as f64 / (1_u64 << 53) as f64;
        whole.mul_f64(0.5 + fraction / 2.0)
    }
}

/// What is remembered of attempts that came to nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    /// What they were about: another one is a new thing.
    pub stamp: u64,
    /// The last, in milliseconds since 1970.
    pub last_ms: u64,
    /// By name.
    pub counts: BTreeMap<String, u32>,
}

/// What may be done about something that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Try,
    /// Not before this, in milliseconds since 1970.
    Wait(u64),
    /// It has hit a limit with failures of this name, and rests until then.
    Blocked(String, u64),
}

impl Attempts {
    /// One more.
    pub fn note(&mut self, shortfall: Shortfall, now_ms: u64) {
        self.last_ms = now_ms;
        let count = self.counts.entry(name(shortfall)).or_default();
        *count = count.saturating_add(1);
    }

    fn total(&self) -> u32 {
        self.counts
            .values()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    pub fn judge(
        &self,
        limits: &Limits,
        backoff: Backoff,
        retry_after: Duration,
        seed: u64,
        now_ms: u64,
    ) -> Verdict {
        let failures = self.total();
        if failures == 0 {
            return Verdict::Try;
        }
        let mut by_rule: BTreeMap<&str, (u32, u32, &str)> = BTreeMap::new();
        for (name, count) in self.counts.iter().filter(|(name, _)| *name != AGAIN) {
            let (rule, limit) = limits.rule(name);
            let (sum, _, _) = by_rule.entry(rule).or_insert((0, limit, name));
            *sum = sum.saturating_add(*count);
        }
        let hit = by_rule.values().find(|(sum, limit, _)| sum >= limit);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        // A clock that was set back does not make anything rest for years.
        let last = self.last_ms.min(now_ms);
        match hit {
            Some((_, _, name)) => {
                let until = last.saturating_add(millis(retry_after));
                match until <= now_ms {
                    true => Verdict::Try,
                    false => Verdict::Blocked((*name).to_owned(), until),
                }
            }
            None => {
                let until = last.saturating_add(millis(backoff.pause(failures, seed)));
                match until <= now_ms {
                    true => Verdict::Try,
                    false => Verdict::Wait(until),
                }
            }
        }
    }

    /// Whether it has rested long enough after a limit to be begun anew.
    pub fn is_over(&self, limits: &Limits, retry_after: Duration, now_ms: u64) -> bool {
        let no_pause = Backoff {
            first: Duration::ZERO,
            longest: Duration::ZERO,
        };
        let is_blocked = |after| {
            let verdict = self.judge(limits, no_pause, after, 0, now_ms);
            matches!(verdict, Verdict::Blocked(..))
        };
        is_blocked(Duration::MAX) && !is_blocked(retry_after)
    }
}

/// What is nobody's fault: it has no limit.
const AGAIN: &str = "again";

/// What a failure is counted and shown as.
pub fn name(shortfall: Shortfall) -> String {
    match shortfall {
        Shortfall::Status(status) => return status.to_string(),
        Shortfall::Connect => "connect",
        Shortfall::Tls => "tls",
        Shortfall::Dns => "dns",
        Shortfall::Timeout => "timeout",
        Shortfall::Truncated => "truncated",
        Shortfall::Protocol => "protocol",
        Shortfall::Uncacheable => "uncacheable",
        Shortfall::Again => AGAIN,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        let of = [("404", 1), ("5xx", 5), ("503", 2), ("connect", 4)];
        Limits {
            default: 3,
            by_kind: of.map(|(name, limit)| (name.to_owned(), limit)).into(),
        }
    }

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_secs(1),
        longest: Duration::from_secs(8),
    };
    const HOUR: Duration = Duration::from_secs(3600);

    /// How many times each of these may fail, one after the other, before the limit is hit.
    fn until_blocked(failures: &[Shortfall]) -> Option<(usize, String)> {
        let mut attempts = Attempts::default();
        for (at, failure) in failures.iter().enumerate() {
            attempts.note(*failure, 1000);
            if let Verdict::Blocked(name, until) = attempts.judge(&limits(), BACKOFF, HOUR, 0, 1000)
            {
                assert_eq!(until, 1000 + 3_600_000);
                return Some((at + 1, name));
            }
        }
        None
    }

    #[test]
    fn each_failure_has_its_limit() {
        use Shortfall::*;
        type Case<'a> = (&'a [Shortfall], Option<(usize, &'a str)>);
        let cases: &[Case<'_>] = &[
            (&[Status(404); 9], Some((1, "404"))),
            (&[Status(500); 9], Some((5, "500"))),
            (&[Status(503); 9], Some((2, "503"))),
            // Of a class, all together; but not those with a rule of their own.
            (
                &[
                    Status(500),
                    Status(502),
                    Status(503),
                    Status(504),
                    Status(500),
                    Status(507),
                ],
                Some((6, "500")),
            ),
            (&[Status(418); 9], Some((3, "418"))),
            (&[Connect; 9], Some((4, "connect"))),
            // What no rule names counts together.
            (&[Status(418), Truncated, Timeout], Some((3, "418"))),
            (&[Again; 99], None),
            (
                &[Status(500), Connect, Status(500), Connect, Status(418)],
                None,
            ),
        ];
        for (failures, expected) in cases {
            let expected = expected.map(|(at, name)| (at, name.to_owned()));
            assert_eq!(until_blocked(failures), expected, "{failures:?}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_differ() {
        for failures in 1..40 {
            let whole = (1_000_u64 << (failures - 1).min(31)).min(8_000);
            let pause = |seed| BACKOFF.pause(failures, seed).as_millis() as u64;
            assert_eq!(pause(0), whole / 2);
            assert!(pause(u64::MAX) <= whole && pause(u64::MAX) > whole * 9 / 10);
            assert_eq!(pause(7 << 60), pause(7 << 60));
        }
    }

    #[test]
    fn what_was_blocked_is_tried_again_after_a_time() {
        let mut attempts = Attempts::default();
        attempts.note(Shortfall::Status(404), 5_000);
        let judge = |now| attempts.judge(&limits(), BACKOFF, HOUR, 0, now);
        let until = 5_000 + 3_600_000;
        assert_eq!(judge(until - 1), Verdict::Blocked("404".into(), until));
        assert_eq!(judge(until), Verdict::Try);
        assert!(!attempts.is_over(&limits(), HOUR, until - 1));
        assert!(attempts.is_over(&limits(), HOUR, until));
        // A wall clock that was set back.
        assert_eq!(
            judge(1_000),
            Verdict::Blocked("404".into(), 1_000 + 3_600_000)
        );
        let mut attempts = Attempts::default();
        attempts.note(Shortfall::Connect, 5_000);
        let judge = |now| attempts.judge(&limits(), BACKOFF, HOUR, 0, now);
        assert_eq!(judge(5_000), Verdict::Wait(5_500));
        assert_eq!(judge(5_500), Verdict::Try);
        assert!(!attempts.is_over(&limits(), HOUR, u64::MAX / 2));
    }
}
