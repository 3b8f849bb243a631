//! The node's clock: wall time at start plus what the monotonic clock has counted since.
//!
//! Ages and lifetimes must not jump when the machine's wall clock is set (by minutes or by years), so
//! it is read once. A node that is started anew takes the wall clock as it then is.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

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

/// Whole seconds since 1970 of [`now`].
pub fn now_secs() -> u64 {
    now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
