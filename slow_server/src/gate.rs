//! Gates: where an answer waits until a test lets it go on.

use std::time::Duration;

use tokio::sync::watch;

/// How long a test waits for anything before it fails with a message. Only a broken test waits that
/// long.
pub const WAIT_LIMIT: Duration = Duration::from_secs(20);

/// Holds every answer that comes to it until it is opened. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    arrivals: u64,
    /// How many arrivals may have passed while the gate stands closed.
    permits: u64,
    open: bool,
}

impl Default for Gate {
    fn default() -> Self {
        Gate::new()
    }
}

impl Gate {
    /// A closed gate.
    #[must_use]
    pub fn new() -> Gate {
        Gate {
            state: watch::Sender::new(State::default()),
        }
    }

    /// Returns once an answer waits, or has waited, at this gate.
    ///
    /// # Panics
    /// After [`WAIT_LIMIT`].
    pub async fn reached(&self) {
        self.reached_n(1).await;
    }

    /// Returns once `n` answers in all have come to this gate.
    ///
    /// # Panics
    /// After [`WAIT_LIMIT`].
    pub async fn reached_n(&self, n: u64) {
        let mut state = self.state.subscribe();
        let wait = state.wait_for(|state| state.arrivals >= n);
        if tokio::time::timeout(WAIT_LIMIT, wait).await.is_err() {
            panic!(
                "waited {WAIT_LIMIT:?} for {n} answers at a gate; {} came",
                self.arrivals()
            );
        }
    }

    /// Lets everything pass that waits, and everything that will come.
    pub fn open(&self) {
        self.state.send_modify(|state| state.open = true);
    }

    /// Lets one answer pass: the one that has waited longest, or else the next to come.
    pub fn open_one(&self) {
        self.state.send_modify(|state| state.permits += 1);
    }

    /// Holds what comes from now on. What waits goes on waiting.
    pub fn close(&self) {
        self.state.send_modify(|state| {
            if state.open {
                state.permits = state.permits.max(state.arrivals);
            }
            state.open = false;
        });
    }

    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state.borrow().open
    }

    /// How many answers have come to this gate, passed or not.
    #[must_use]
    pub fn arrivals(&self) -> u64 {
        self.state.borrow().arrivals
    }

    /// Arrives, and returns when the gate lets this arrival pass. Dropping the future gives the
    /// place up.
    pub(crate) async fn pass(&self) {
        let mut place = 0;
        self.state.send_modify(|state| {
            place = state.arrivals;
            state.arrivals += 1;
        });
        let mut state = self.state.subscribe();
        // The sender lives as long as `self`, so this can only end by the gate letting us pass.
        let _ = state
            .wait_for(|state| state.open || place < state.permits)
            .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_passes_and_then_all() {
        let gate = Gate::new();
        let first = tokio::spawn({
            let gate = gate.clone();
            async move { gate.pass().await }
        });
        gate.reached().await;
        let second = tokio::spawn({
            let gate = gate.clone();
            async move { gate.pass().await }
        });
        gate.reached_n(2).await;
        gate.open_one();
        first.await.expect("the first passes");
        assert!(!second.is_finished());
        gate.open();
        second.await.expect("the second passes");
    }
}
