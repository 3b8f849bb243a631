//! Counters as they were: every minute of the last hour, every ten minutes of the last day.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use axum::extract::State;
use caje_admin_api::{NodeHistory, NodeStats, StatsHistory};
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};

use super::Node;
use super::refusal::Told;
use super::state::{counters, hit_ratio};

/// Between two samples.
const STEP: Duration = Duration::from_secs(60);

/// Samples of each minute.
const MINUTES: usize = 60;

/// After so many of these one is kept for longer.
const LONG_STEP: u64 = 10;

/// Samples of every ten minutes.
const LONG: usize = 144;

/// Counters since the start, the oldest first.
#[derive(Default)]
pub(super) struct History(Mutex<Samples>);

#[derive(Default)]
struct Samples {
    taken: u64,
    minutes: VecDeque<NodeStats>,
    long: VecDeque<NodeStats>,
}

impl Samples {
    fn push(&mut self, sample: NodeStats) {
        if self.taken.is_multiple_of(LONG_STEP) {
            if self.long.len() >= LONG {
                self.long.pop_front();
            }
            self.long.push_back(sample.clone());
        }
        self.taken += 1;
        if self.minutes.len() >= MINUTES {
            self.minutes.pop_front();
        }
        self.minutes.push_back(sample);
    }

    fn all(&self) -> impl Iterator<Item = &NodeStats> {
        let first = self.minutes.front().map_or(u64::MAX, |sample| sample.at_ms);
        let long = self.long.iter();
        long.filter(move |sample| sample.at_ms < first)
            .chain(&self.minutes)
    }
}

impl History {
    /// What was counted in the last `secs` seconds, and since the sample before them. All, where there is none.
    pub(super) fn since(&self, now: NodeStats, secs: u64) -> NodeStats {
        let from = now.at_ms.saturating_sub(secs.saturating_mul(1000));
        let samples = self.0.lock();
        // Younger than that, or not remembered: what there is.
        let before = samples.all().filter(|sample| sample.at_ms <= from).last();
        match before.or_else(|| samples.all().next().filter(|_| now.since_ms < from)) {
            Some(before) => difference(now, before),
            None => now,
        }
    }
}

/// What came to be counted after `before`.
fn difference(now: NodeStats, before: &NodeStats) -> NodeStats {
    let less = |now: BTreeMap<String, u64>, before: &BTreeMap<String, u64>| {
        let left = now.into_iter().map(|(name, count)| {
            let count = count.saturating_sub(before.get(&name).copied().unwrap_or(0));
            (name, count)
        });
        left.filter(|(_, count)| *count > 0).collect()
    };
    let by_cache: BTreeMap<String, u64> = less(now.by_cache, &before.by_cache);
    let requests = now.requests.saturating_sub(before.requests);
    NodeStats {
        node: now.node,
        region: now.region,
        since_ms: before.at_ms,
        at_ms: now.at_ms,
        requests,
        hit_ratio: hit_ratio(requests, &by_cache),
        by_cache,
        by_class: less(now.by_class, &before.by_class),
        response_bytes: now.response_bytes.saturating_sub(before.response_bytes),
        origin_requests: now.origin_requests.saturating_sub(before.origin_requests),
        origin_response_bytes: now
            .origin_response_bytes
            .saturating_sub(before.origin_response_bytes),
        fills_started: now.fills_started.saturating_sub(before.fills_started),
        fills_joined: now.fills_joined.saturating_sub(before.fills_joined),
        fills_failed: now.fills_failed.saturating_sub(before.fills_failed),
        evictions: now.evictions.saturating_sub(before.evictions),
        uncacheable: less(now.uncacheable, &before.uncacheable),
    }
}

/// Takes the samples. Ends never.
pub(super) async fn keep(node: Node) {
    let mut steps = interval(STEP);
    steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        steps.tick().await;
        let sample = counters(&node);
        node.history.0.lock().push(sample);
    }
}

pub(super) async fn history(State(node): State<Node>) -> Told<StatsHistory> {
    let own = NodeHistory {
        node: node.name(),
        region: node.control.config.load().node.region.clone(),
        samples: node.history.0.lock().all().cloned().collect(),
    };
    Told(StatsHistory {
        nodes: vec![own],
        unanswered: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: u64) -> NodeStats {
        let requests = minute * 10;
        NodeStats {
            node: "a".to_owned(),
            at_ms: minute * 60_000,
            requests,
            by_cache: BTreeMap::from([("hit".to_owned(), minute * 5), ("miss".to_owned(), 7)]),
            ..NodeStats::default()
        }
    }

    #[test]
    fn the_last_while_is_what_came_since() {
        let history = History::default();
        for minute in 0..30 {
            history.0.lock().push(at(minute));
        }
        let hour = history.since(at(30), 10 * 60);
        assert_eq!((hour.requests, hour.since_ms), (100, 20 * 60_000));
        assert_eq!(hour.by_cache, BTreeMap::from([("hit".to_owned(), 50)]));
        assert_eq!(hour.hit_ratio, Some(0.5));
        // A time within a minute begins with the minute.
        assert_eq!(history.since(at(30), 90).requests, 20);
        // A node that is younger has counted all of it since.
        assert_eq!(history.since(at(30), 3600 * 24).requests, 300);
    }

    #[test]
    fn a_day_is_remembered_within_bounds() {
        let history = History::default();
        for minute in 0..5000 {
            history.0.lock().push(at(minute));
        }
        let samples = history.0.lock();
        assert_eq!((samples.minutes.len(), samples.long.len()), (MINUTES, LONG));
        let times: Vec<u64> = samples.all().map(|sample| sample.at_ms).collect();
        assert!(times.is_sorted_by(|a, b| a < b));
        assert_eq!(times[0], (4990 - 1430) * 60_000);
        drop(samples);
        let day = history.since(at(5000), 86_400);
        assert!(
            (1430..1450).contains(&(day.requests / 10)),
            "{}",
            day.requests
        );
    }
}
