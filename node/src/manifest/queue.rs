//! What waits to be recorded: bounded, and nobody who puts something in ever waits.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::local::Change;
use super::rows::PurgeRow;

/// Changes that wait, at the most.
pub(super) const MAX_WAITING: usize = 8192;

/// Purges that wait to be on the disk, at the most.
const MAX_DURABLE: usize = 1024;

/// Tells the number of what is on the disk, or goes.
pub(super) type Ack = oneshot::Sender<PurgeRow>;

#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Default)]
struct State {
    /// By priority, then in the order in which they came: the first is the least wanted and oldest.
    waiting: BTreeMap<(u8, u64), Change>,
    durable: Vec<(Change, Ack)>,
    next: u64,
    dropped: u64,
    stopped: bool,
}

/// What is recorded next.
pub(super) struct Batch {
    /// In the order in which they came; purges first.
    pub changes: Vec<Change>,
    /// For the purges, in order.
    pub acks: Vec<Ack>,
    /// Of the others, in order: where they had waited.
    places: Vec<(u8, u64)>,
}

impl Queue {
    /// Takes a change, in the place of the least wanted and oldest if there is no room. Says whether none was dropped.
    pub(super) fn push(&self, priority: u8, change: Change) -> bool {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        state.waiting.insert((priority, number), change);
        let fits = state.waiting.len() <= MAX_WAITING;
        if !fits {
            state.waiting.pop_first();
            state.dropped += 1;
        }
        drop(state);
        self.grown.notify_one();
        fits
    }

    /// Takes a change that is told of when it is on the disk. Without room `ack` goes at once.
    pub(super) fn push_durable(&self, change: Change, ack: Ack) {
        let mut state = self.state.lock();
        if state.stopped || state.durable.len() >= MAX_DURABLE {
            return;
        }
        state.durable.push((change, ack));
        drop(state);
        self.grown.notify_one();
    }

    /// Takes back what could not be recorded, save the purges: who asked for those is told. At the end nothing is taken
    /// back.
    pub(super) fn put_back(&self, batch: Batch) {
        let mut state = self.state.lock();
        if state.stopped {
            return;
        }
        let others = batch.changes.into_iter().skip(batch.acks.len());
        state.waiting.extend(batch.places.into_iter().zip(others));
        while state.waiting.len() > MAX_WAITING {
            state.waiting.pop_first();
            state.dropped += 1;
        }
    }

    /// Waits for so long, unless somebody waits for a change, or the end comes.
    pub(super) fn rest(&self, pause: Duration) {
        let until = std::time::Instant::now() + pause;
        let mut state = self.state.lock();
        while state.durable.is_empty() && !state.stopped {
            if self.grown.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.state.lock().dropped
    }

    /// Lets `next` end when it has given out everything.
    pub(super) fn stop(&self) {
        self.state.lock().stopped = true;
        self.grown.notify_all();
    }

    /// Waits for changes, and for more of them up to `collect`, unless somebody waits for one. `None` is the end.
    pub(super) fn next(&self, collect: Duration) -> Option<Batch> {
        let mut state = self.state.lock();
        while state.waiting.is_empty() && state.durable.is_empty() {
            if state.stopped {
                return None;
            }
            self.grown.wait(&mut state);
        }
        let until = std::time::Instant::now() + collect;
        while state.durable.is_empty() && !state.stopped && state.waiting.len() < MAX_WAITING / 2 {
            if self.grown.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        let (mut changes, acks): (Vec<Change>, Vec<Ack>) =
            std::mem::take(&mut state.durable).into_iter().unzip();
        let mut waiting: Vec<_> = std::mem::take(&mut state.waiting).into_iter().collect();
        drop(state);
        waiting.sort_by_key(|((_, number), _)| *number);
        let (places, others): (Vec<(u8, u64)>, Vec<Change>) = waiting.into_iter().unzip();
        changes.extend(others);
        Some(Batch {
            changes,
            acks,
            places,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::rows::Kind;

    fn change(name: usize) -> Change {
        Change::Remove {
            kind: Kind::Resource,
            key: name.to_string().into_bytes(),
        }
    }

    fn names(batch: &Batch) -> Vec<String> {
        let key = |change: &Change| match change {
            Change::Remove { key, .. } => String::from_utf8(key.clone()).unwrap(),
            _ => String::new(),
        };
        batch.changes.iter().map(key).collect()
    }

    #[test]
    fn what_is_put_back_goes_out_first() {
        let queue = Queue::default();
        let (ack, _acked) = oneshot::channel();
        queue.push_durable(change(9), ack);
        for name in [0, 1] {
            assert!(queue.push(1, change(name)));
        }
        let failed = queue.next(Duration::ZERO).unwrap();
        assert_eq!(names(&failed), ["9", "0", "1"]);
        assert!(queue.push(1, change(2)));
        queue.put_back(failed);
        let again = queue.next(Duration::ZERO).unwrap();
        assert_eq!(names(&again), ["0", "1", "2"]);
        queue.stop();
        queue.rest(Duration::from_secs(3600));
        queue.put_back(again);
        assert!(queue.next(Duration::ZERO).is_none());
    }

    #[test]
    fn a_full_queue_drops_the_least_wanted_and_oldest() {
        let queue = Queue::default();
        assert!(queue.push(0, change(0)));
        for name in 1..MAX_WAITING {
            assert!(queue.push(1, change(name)));
        }
        assert!(!queue.push(1, change(MAX_WAITING)));
        // Less wanted than all that wait: it goes itself.
        assert!(!queue.push(0, change(MAX_WAITING + 1)));
        assert!(!queue.push(2, change(MAX_WAITING + 2)));
        assert_eq!(queue.dropped(), 3);
        queue.stop();
        let names = names(&queue.next(Duration::ZERO).unwrap());
        assert_eq!(names.len(), MAX_WAITING);
        assert_eq!(names[0], "2", "what came first goes out first");
        assert_eq!(names.last().unwrap(), &(MAX_WAITING + 2).to_string());
        assert!(queue.next(Duration::ZERO).is_none());
    }
}
