//! Which nodes are asked for a key.

use std::cmp::Reverse;
use std::sync::Arc;

use super::node::{Pass, PeerNode};

/// Nodes that are asked at a time.
const MOST_ASKED: usize = 2;

/// Those that answer fastest, of those that may be asked. Who is not known to be fast or slow counts as average;
/// among equals, each key has its own order.
pub(super) fn nearest(nodes: &[Arc<PeerNode>], key: &[u8; 32]) -> Vec<Pass> {
    let known: Vec<u64> = nodes.iter().filter_map(|node| micros(node)).collect();
    let average = known.iter().sum::<u64>() / (known.len() as u64).max(1);
    let mut order: Vec<&Arc<PeerNode>> = nodes.iter().filter(|node| !node.rests()).collect();
    order.sort_by_cached_key(|node| {
        (
            micros(node).unwrap_or(average),
            Reverse(weight(node.id(), key)),
        )
    });
    let passes = order.into_iter().filter_map(PeerNode::admit);
    passes.take(MOST_ASKED).collect()
}

fn micros(node: &PeerNode) -> Option<u64> {
    node.latency().map(|latency| latency.as_micros() as u64)
}

/// The node that asks the origin for this key: rendezvous hashing over those that do not rest, and `me`. `None`: this
/// one, or nobody that may be asked.
pub(super) fn shield(nodes: &[Arc<PeerNode>], me: &str, key: &[u8; 32]) -> Option<Pass> {
    let live = nodes.iter().filter(|node| !node.rests());
    let first = live.max_by_key(|node| weight(node.id(), key))?;
    let is_other = weight(first.id(), key) > weight(me, key);
    is_other.then(|| first.admit())?
}

/// Each node's weight for a key is as good as chance, and the same on all nodes.
fn weight(id: &str, key: &[u8; 32]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(key);
    hasher.update(id.as_bytes());
    let mut weight = [0; 8];
    hasher.finalize_xof().fill(&mut weight);
    u64::from_le_bytes(weight)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Teller, Told};
    use super::*;
    use crate::origin::Permits;
    use crate::peer::Peers;

    fn peers(me: &str, others: &[&str]) -> Arc<Vec<Arc<PeerNode>>> {
        let told: Vec<Told> = others
            .iter()
            .map(|id| Told {
                id: (*id).to_owned(),
                data: "http://127.0.0.1:8080".to_owned(),
            })
            .collect();
        let peers = Peers::new(me, None, Permits::new(|_| true));
        assert!(peers.set(Teller::Nodes, told).is_empty());
        peers.nodes()
    }

    fn ids(passes: &[Pass]) -> Vec<&str> {
        passes.iter().map(|pass| pass.node.id()).collect()
    }

    fn key(n: u32) -> [u8; 32] {
        *blake3::hash(&n.to_le_bytes()).as_bytes()
    }

    #[test]
    fn the_fastest_two_are_asked_and_who_is_unknown_is_average() {
        let nodes = peers("me", &["a", "b", "c", "d"]);
        for (node, ms) in nodes.iter().zip([40, 1, 9]) {
            let pass = node.admit().expect("a pass");
            pass.answered(Some(Duration::from_millis(ms)));
        }
        assert_eq!(ids(&nearest(&nodes, &key(0))), ["b", "c"]);
        nodes[1].admit().expect("a pass").failed();
        // The average of the three is 16 ms.
        assert_eq!(ids(&nearest(&nodes, &key(0))), ["c", "d"]);
    }

    /// Whoever is asked, the same node is meant, and keys are shared out.
    #[test]
    fn all_nodes_mean_the_same_shield() {
        let names = ["a", "b", "c", "d"];
        let views: Vec<_> = names.iter().map(|me| (*me, peers(me, &names))).collect();
        let mut counts = std::collections::BTreeMap::new();
        for n in 0..400 {
            let chosen: Vec<String> = views
                .iter()
                .map(|(me, nodes)| match shield(nodes, me, &key(n)) {
                    Some(pass) => pass.node.id().to_owned(),
                    None => (*me).to_owned(),
                })
                .collect();
            assert!(chosen.iter().all(|id| *id == chosen[0]), "{chosen:?}");
            *counts.entry(chosen[0].clone()).or_insert(0) += 1;
        }
        assert!(
            counts.len() == 4 && counts.values().all(|n| *n > 50),
            "{counts:?}"
        );
    }

    #[test]
    fn a_dead_shield_s_keys_go_to_the_others() {
        let nodes = peers("a", &["b", "c"]);
        let to_b = |n: &u32| shield(&nodes, "a", &key(*n)).is_some_and(|p| p.node.id() == "b");
        let of_b: Vec<u32> = (0..100).filter(to_b).collect();
        nodes[0].admit().expect("a pass").failed();
        let next = |n: &u32| shield(&nodes, "a", &key(*n)).map(|pass| pass.node.id().to_owned());
        let now: Vec<_> = of_b.iter().map(next).collect();
        assert!(now.iter().all(|id| id.as_deref() != Some("b")));
        assert!(now.contains(&None) && now.contains(&Some("c".to_owned())));
    }
}
