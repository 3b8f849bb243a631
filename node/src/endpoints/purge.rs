//! Takes away what is stored: purges by what they name, and clears a tier.

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use caje_admin_api::{ClearReport, NodeClear, NodePurge, PurgeReport, PurgeRequest, Tier, path};
use http::{Method, StatusCode};

use super::access::FromNode;
use super::objects::{Filter, key_of};
use super::refusal::{Answer, Ask, Asked, Refusal, Told};
use super::{Node, Shared, over};
use crate::cache::purge::{NodePurged, Selector};
use crate::clock;
use crate::semantics::key::CacheKey;
use crate::talk::{Applied, Peer, Reply, Silence, Words};

/// Things that one request may name.
const MAX_NAMED: usize = 10_000;

pub(super) async fn purge(
    State(node): State<Node>,
    from: Option<Extension<FromNode>>,
    Ask(ask): Ask<PurgeRequest>,
) -> Answer<PurgeReport> {
    let wanted = Wanted::new(&ask)?;
    let nodes = match (ask.dry_run, from) {
        (true, Some(_)) => vec![counted(&node, wanted).await?],
        (true, None) => {
            let (own, others) =
                tokio::join!(counted(&node, wanted), counted_elsewhere(&node, &ask));
            let mut nodes = vec![own?];
            nodes.extend(others);
            nodes
        }
        (false, Some(_)) => {
            return Err(Refusal::new(
                StatusCode::FORBIDDEN,
                "scope",
                "a node tells another of its purges elsewhere",
                "send it with a token",
            ));
        }
        (false, None) => {
            let purged = node.control.talk.order(wanted.selectors, ask.soft).await;
            purged.into_iter().map(shown).collect()
        }
    };
    Ok(Told(PurgeReport {
        soft: ask.soft,
        dry_run: ask.dry_run,
        nodes,
    }))
}

fn shown(purged: NodePurged) -> NodePurge {
    NodePurge {
        node: purged.node,
        matched: purged.matched,
        done: purged.error.is_none(),
        error: purged.error,
    }
}

async fn counted(node: &Node, wanted: Wanted) -> Result<NodePurge, Refusal> {
    let matched = node.apart(move |shared| wanted.count(shared)).await?;
    Ok(NodePurge {
        node: node.name(),
        matched,
        done: true,
        error: None,
    })
}

async fn counted_elsewhere(node: &Node, ask: &PurgeRequest) -> Vec<NodePurge> {
    let talk = &node.control.talk;
    let body: Bytes = serde_json::to_vec(ask).unwrap_or_default().into();
    let replies = talk.ask_all(talk.peers(), &Method::POST, path::PURGE, &body, true);
    let counted = |(peer, reply): (Peer, Result<Reply, Silence>)| {
        let said = reply
            .map_err(|silence| silence.to_string())
            .and_then(|reply| {
                let report = serde_json::from_slice::<PurgeReport>(&reply.body);
                let node = report
                    .ok()
                    .and_then(|report| report.nodes.into_iter().next());
                node.ok_or_else(|| format!("it answers with {}", reply.status))
            });
        said.unwrap_or_else(|error| NodePurge {
            node: peer.name(),
            matched: 0,
            done: false,
            error: Some(error),
        })
    };
    replies.await.into_iter().map(counted).collect()
}

/// Another node's purges.
pub(super) async fn hear(
    State(node): State<Node>,
    from: Option<Extension<FromNode>>,
    Ask(words): Ask<Words>,
) -> Answer<Applied> {
    let is_own = |author: &String| from.as_ref().is_none_or(|from| from.0.0.node == *author);
    if !words.purges.iter().all(|told| is_own(&told.author)) {
        return Err(Refusal::bad(
            "a node tells of its own purges only",
            "the log tells of all others'",
        ));
    }
    let applied = node.control.talk.hear(words).await;
    applied.map(Told).ok_or_else(Refusal::internal)
}

/// Who answers is said by the proof of the answer.
pub(super) async fn hello(State(node): State<Node>) -> Told<serde_json::Value> {
    Told(serde_json::json!({"node": node.control.talk.id()}))
}

pub(super) async fn invalidate(
    node: State<Node>,
    from: Option<Extension<FromNode>>,
    Ask(ask): Ask<PurgeRequest>,
) -> Answer<PurgeReport> {
    purge(node, from, Ask(PurgeRequest { soft: true, ..ask })).await
}

/// What a request names.
struct Wanted {
    selectors: Vec<Selector>,
    /// The same, as a walk over all that is stored counts it.
    filters: Vec<Filter>,
    urls: Vec<CacheKey>,
}

impl Wanted {
    fn new(ask: &PurgeRequest) -> Result<Wanted, Refusal> {
        let named = ask.files.len() + ask.tags.len() + ask.prefixes.len() + ask.hosts.len();
        if named == 0 && !ask.purge_everything {
            let remedy = "name something in `files`, `tags`, `prefixes` or `hosts`, or set `purge_everything`";
            return Err(Refusal::bad("the request names nothing to purge", remedy));
        }
        if named > MAX_NAMED {
            let message =
                format!("one request names {MAX_NAMED} things at the most, this one {named}");
            return Err(Refusal::bad(message, "send several requests"));
        }
        let mut selectors = Vec::with_capacity(named);
        let mut filters = Vec::new();
        let urls: Result<Vec<CacheKey>, Refusal> =
            ask.files.iter().map(|url| key_of(url)).collect();
        let urls = urls?;
        selectors.extend(urls.iter().map(|key| Selector::Url {
            scheme: key.scheme(),
            authority: key.authority().into(),
            target: key.target().to_vec().into(),
        }));
        for tag in &ask.tags {
            if tag.is_empty() {
                let message = "a tag is empty";
                return Err(Refusal::bad(message, "leave it out, or name a tag"));
            }
            selectors.push(Selector::Tag(tag.clone().into()));
            filters.push(Filter::of_tag(tag));
        }
        for prefix in &ask.prefixes {
            let (filter, scheme, key) = Filter::of_prefix(prefix)?;
            selectors.push(Selector::Prefix {
                scheme,
                authority: key.authority().into(),
                path: key.target().to_vec().into(),
            });
            filters.push(filter);
        }
        for host in &ask.hosts {
            if host.contains(['/', '?', '#', '@']) {
                let message = format!("`{}` is more than a host", host.escape_default());
                let remedy = "name a host, with its port if it has one; what has a path is a prefix, or one of the files";
                return Err(Refusal::bad(message, remedy));
            }
            // The scheme decides only which port is left out.
            let key = key_of(&format!("http://{host}/"))?;
            selectors.push(Selector::Host(key.authority().into()));
            filters.push(Filter::of_host(key.authority()));
        }
        if ask.purge_everything {
            selectors.push(Selector::Everything);
            filters.push(Filter::default());
        }
        Ok(Wanted {
            selectors,
            filters,
            urls,
        })
    }

    fn count(&self, shared: &Shared) -> u64 {
        let residency = &shared.control.cache.residency;
        let now = clock::now();
        let mut matched = 0;
        residency.for_each(|stored| {
            let by_url = || self.urls.contains(&stored.key);
            let by_set = self.filters.iter().any(|filter| filter.takes(stored, now));
            matched += u64::from(by_set || by_url());
        });
        matched
    }
}

pub(super) async fn clear(
    State(node): State<Node>,
    Path(id): Path<String>,
    Asked(asked): Asked<Vec<(String, String)>>,
) -> Result<Response, Refusal> {
    let tier = match asked
        .iter()
        .find(|(name, _)| name == "tier")
        .map(|(_, tier)| tier.as_str())
    {
        Some("disk") => Tier::Disk,
        Some("memory") => Tier::Memory,
        _ => {
            let remedy = "add `?tier=disk` for all that is stored, or `?tier=memory`";
            return Err(Refusal::bad("it is not said what to clear", remedy));
        }
    };
    let talk = &node.control.talk;
    if id == node.name() || id == talk.id() {
        return cleared(&node, tier).await.map(IntoResponse::into_response);
    }
    let peers = talk.peers();
    let known = peers.iter().map(Peer::name).collect();
    let Some(peer) = peers.into_iter().find(|peer| peer.name() == id) else {
        return Err(over::unknown(&id, &node.name(), known));
    };
    let name = if tier == Tier::Disk { "disk" } else { "memory" };
    let target = path::NODE_CACHE.replace("{id}", &id);
    let target = format!("{target}?tier={name}");
    let reply = talk.ask(&peer, &Method::DELETE, &target, Bytes::new(), false);
    let reply = reply.await.map_err(|silence| over::silent(&id, &silence))?;
    Ok(over::as_it_is(reply))
}

pub(super) async fn clear_disk(State(node): State<Node>) -> Answer<ClearReport> {
    cleared(&node, Tier::Disk).await
}

async fn cleared(node: &Node, tier: Tier) -> Answer<ClearReport> {
    let cleared = node.apart(move |shared| match tier {
        Tier::Disk => clear_all(shared),
        Tier::Memory => (0, shared.control.cache.store.clear_memory()),
    });
    let (objects, bytes) = cleared.await?;
    let own = NodeClear {
        node: node.name(),
        tier,
        objects,
        bytes,
    };
    Ok(Told(ClearReport {
        nodes: vec![own],
        unanswered: Vec::new(),
    }))
}

/// Removes what is here now. What is on its way stays: it is as new as what would come after.
fn clear_all(shared: &Shared) -> (u64, u64) {
    let cache = &shared.control.cache;
    let (mut objects, mut bytes) = (0, 0);
    let mut keys = Vec::new();
    cache.residency.for_each(|stored| {
        bytes += stored.body.object.present_bytes();
        keys.push(stored.key.clone());
    });
    for key in keys {
        objects += cache.invalidate(&key) as u64;
    }
    (objects, bytes)
}
