//! The node's clock: wall time at start plus what the monotonic clock has counted since.
//!
//! Ages and lifetimes must not jump when the machine's wall clock is set (by minutes or by years), so
//! it is read once. A node that is started anew takes the wall clock as it then is. Only the proofs between nodes
//! tell the wall clock's time of the moment: the monotonic clock stands while a machine is suspended, and nodes must
//! agree on the minute afterwards too.
//!
//! What nodes tell one another is stamped by a [`HybridClock`]: wall time as long as all clocks agree, and
//! in any case later than all that was seen before.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

static START: LazyLock<(SystemTime, Instant)> = LazyLock::new(|| (wall_at_start(), Instant::now()));

fn wall_at_start() -> SystemTime {
    wall().max(UNIX_EPOCH)
}

/// What the wall clock says at this moment: it may jump, so it is for those alone who compare it with another's.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the wall clock"
)]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// Now, never before an earlier call of this process.
pub fn now() -> SystemTime {
    at(Instant::now())
}

/// What [`now`] said at `instant`.
pub fn at(instant: Instant) -> SystemTime {
    let (wall, monotonic) = *START;
    wall + instant.saturating_duration_since(monotonic)
}

/// Since the clock was first read, which is about since the process began.
pub fn uptime() -> Duration {
    START.1.elapsed()
}

/// Whole seconds since 1970 of [`now`].
pub fn now_secs() -> u64 {
    now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A hybrid logical clock's reading: milliseconds since 1970 in the upper 48 bits, a counter in the lower 16.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Stamp(pub u64);

impl Stamp {
    /// No clock comes near it, and nobody's own readings are made later by one that is: the year 3084.
    const LAST_WITNESSED: Stamp = Stamp(1 << 61);

    /// Later ones are not believed. Who has witnessed the last that counts has billions of readings up to here: what
    /// one node forges must not make the words of all others unbelievable.
    pub const MAX: Stamp = Stamp((1 << 61) + (1 << 32));

    /// The wall time in it.
    pub fn time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.millis())
    }

    /// Milliseconds since 1970.
    pub fn millis(self) -> u64 {
        self.0 >> 16
    }
}

/// One per node: its readings only grow, also over a restart (`witness` what was persisted) and beside nodes
/// whose clocks are ahead.
#[derive(Debug, Default)]
pub struct HybridClock {
    last: AtomicU64,
}

impl HybridClock {
    pub fn new() -> Self {
        Self::default()
    }

    /// A reading that is later than all before it, and than all that was witnessed.
    pub fn tick(&self) -> Stamp {
        self.tick_at(now())
    }

    fn tick_at(&self, now: SystemTime) -> Stamp {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = u64::try_from(since.as_millis()).unwrap_or(u64::MAX) << 16;
        let next = |last: u64| wall.min(Stamp::LAST_WITNESSED.0).max(last + 1);
        let last = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(next(last))
            });
        // Both arms are the value before.
        Stamp(next(last.unwrap_or_else(|last| last)))
    }

    /// Readings from here on are later than `seen`, unless that is later than any clock could be.
    pub fn witness(&self, seen: Stamp) {
        if seen <= Stamp::LAST_WITNESSED {
            self.last.fetch_max(seen.0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{HybridClock, Stamp};
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn stamps_only_grow() {
        let clock = HybridClock::new();
        let at = |ms| UNIX_EPOCH + Duration::from_millis(ms);
        let first = clock.tick_at(at(5));
        assert_eq!(first, Stamp(5 << 16));
        // The same millisecond, and a wall clock that was set back.
        assert_eq!(clock.tick_at(at(5)), Stamp((5 << 16) + 1));
        assert_eq!(clock.tick_at(at(3)), Stamp((5 << 16) + 2));
        assert_eq!(clock.tick_at(at(6)).millis(), 6);
    }

    #[test]
    fn another_node_s_clock_may_be_ahead_but_not_without_end() {
        let clock = HybridClock::new();
        clock.witness(Stamp(9 << 16));
        assert_eq!(
            clock.tick_at(UNIX_EPOCH + Duration::from_millis(2)),
            Stamp((9 << 16) + 1)
        );
        clock.witness(Stamp(u64::MAX));
        assert_eq!(clock.tick_at(UNIX_EPOCH), Stamp((9 << 16) + 2));
        clock.witness(Stamp::MAX);
        assert_eq!(clock.tick_at(UNIX_EPOCH), Stamp((9 << 16) + 3));
        // Whatever was witnessed, others believe the readings that follow.
        clock.witness(Stamp::LAST_WITNESSED);
        let after = clock.tick();
        assert!(after > Stamp::LAST_WITNESSED && after < Stamp::MAX);
    }
}
