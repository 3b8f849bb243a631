//! The node's clock: wall time at start plus what the monotonic clock has counted since.
//!
//! Ages and lifetimes must not jump when the machine's wall clock is set (by minutes or by years), so
//! it is read once. A node that is started anew takes the wall clock as it then is.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

static START: LazyLock<(SystemTime, Instant)> = LazyLock::new(|| (wall_at_start(), Instant::now()));

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the wall clock"
)]
fn wall_at_start() -> SystemTime {
    SystemTime::now().max(UNIX_EPOCH)
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

/// A hybrid logical clock's reading: milliseconds since 1970 in the upper 48 bits, a counter in the
/// lower 16.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Stamp(pub u64);

impl Stamp {
    /// The wall time in it.
    pub fn time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0 >> 16)
    }
}

/// One per node: its readings only grow, also over a restart ([`HybridClock::witness`] what was
/// persisted) and beside nodes whose clocks are ahead.
#[derive(Debug, Default)]
pub struct HybridClock {
    last: AtomicU64,
}

impl HybridClock {
    pub fn new() -> HybridClock {
        HybridClock::default()
    }

    /// A reading that nobody has had: greater than all before and than all that were witnessed.
    pub fn tick(&self) -> Stamp {
        let since = now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = (since.as_millis() as u64) << 16;
        let next = |last: u64| wall.max(last.saturating_add(1));
        let before = self
            .last
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| Some(next(last)));
        Stamp(next(before.unwrap_or_else(|last| last)))
    }

    /// Readings from now on are greater than this one.
    pub fn witness(&self, seen: Stamp) {
        self.last.fetch_max(seen.0, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_only_grow() {
        let clock = HybridClock::new();
        let first = clock.tick();
        assert!(clock.tick() > first);
        let ahead = Stamp(first.0 + (3_600_000 << 16));
        clock.witness(ahead);
        assert!(clock.tick() > ahead);
        clock.witness(first);
        assert!(clock.tick() > ahead);
        let apart = first.time().duration_since(now()).unwrap_or_default();
        assert!(apart < Duration::from_secs(1));
    }
}
