//! The wish to end, for everybody who waits for something.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use parking_lot::{Condvar, Mutex};
use tokio::signal::unix::{SignalKind, signal};

/// Between two looks at a counter of another process.
const LOOK: Duration = Duration::from_millis(10);

/// Set once, by the first SIGINT, SIGTERM or SIGHUP.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    shared: Arc<(Mutex<bool>, Condvar)>,
}

impl Stop {
    pub fn on_signals() -> anyhow::Result<Stop> {
        let stop = Stop::default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("watching for signals")?;
        let streams = {
            let _inside = runtime.enter();
            let watch = |kind| signal(kind).context("watching for signals");
            (
                watch(SignalKind::interrupt())?,
                watch(SignalKind::terminate())?,
                watch(SignalKind::hangup())?,
            )
        };
        let setter = stop.clone();
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let (mut interrupt, mut terminate, mut hangup) = streams;
                runtime.block_on(async {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hangup.recv() => {}
                    }
                });
                setter.set();
            })
            .context("watching for signals")?;
        Ok(stop)
    }

    fn set(&self) {
        *self.shared.0.lock() = true;
        self.shared.1.notify_all();
    }

    pub fn is_set(&self) -> bool {
        *self.shared.0.lock()
    }

    /// Waits for the wish to end, and no longer than `limit`. Whether it came.
    pub fn wait(&self, limit: Duration) -> bool {
        let mut set = self.shared.0.lock();
        let deadline = Instant::now() + limit;
        while !*set {
            if self.shared.1.wait_until(&mut set, deadline).timed_out() {
                break;
            }
        }
        *set
    }

    /// Fails when everything is to end.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.is_set(), "interrupted");
        Ok(())
    }

    /// Looks until `look` has found something; fails when `limit` has passed, naming `what`.
    pub fn until<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            anyhow::ensure!(Instant::now() < deadline, "waited {limit:?} for {what}");
            anyhow::ensure!(!self.wait(LOOK), "interrupted");
        }
    }
}
