//! Takes away what is stored: purges by what they name, and clears a tier.

use axum::extract::{Path, State};
use caje_admin_api::{ClearReport, NodeClear, NodePurge, PurgeReport, PurgeRequest, Tier};
use http::StatusCode;

use super::objects::{Filter, key_of};
use super::refusal::{Answer, Ask, Asked, Refusal, Told};
use super::{Node, Shared};
use crate::cache::purge::Selector;
use crate::clock;
use crate::semantics::key::CacheKey;

/// Things that one request may name.
const MAX_NAMED: usize = 10_000;

pub(super) async fn purge(
    State(node): State<Node>,
    Ask(ask): Ask<PurgeRequest>,
) -> Answer<PurgeReport> {
    let wanted = Wanted::new(&ask)?;
    let (matched, is_durable) = match ask.dry_run {
        true => (node.apart(move |shared| wanted.count(shared)).await?, true),
        false => wanted.purge(&node, ask.soft).await,
    };
    let error = (!is_durable)
        .then(|| "it is not on disk: a restart of this node may bring it back".to_owned());
    let own = NodePurge {
        node: node.name(),
        matched,
        done: is_durable,
        error,
    };
    Ok(Told(PurgeReport {
        soft: ask.soft,
        dry_run: ask.dry_run,
        nodes: vec![own],
    }))
}

pub(super) async fn invalidate(
    node: State<Node>,
    Ask(ask): Ask<PurgeRequest>,
) -> Answer<PurgeReport> {
    purge(node, Ask(PurgeRequest { soft: true, ..ask })).await
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

    /// How many were matched, and whether all of it is on disk.
    async fn purge(self, node: &Node, soft: bool) -> (u64, bool) {
        let cache = &node.control.cache;
        let (mut matched, mut is_durable) = (0, true);
        for selector in self.selectors {
            let purged = cache.purge(selector, soft).await;
            matched += purged.matched;
            is_durable &= purged.is_durable;
        }
        (matched, is_durable)
    }
}

pub(super) async fn clear(
    State(node): State<Node>,
    Path(id): Path<String>,
    Asked(asked): Asked<Vec<(String, String)>>,
) -> Answer<ClearReport> {
    if id != node.name() {
        return Err(unknown_node(&node, &id));
    }
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
    cleared(&node, tier).await
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
    Ok(Told(ClearReport { nodes: vec![own] }))
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

pub(super) fn unknown_node(node: &Node, id: &str) -> Refusal {
    let (own, id) = (node.name(), id.escape_default());
    Refusal::new(
        StatusCode::NOT_FOUND,
        "unknown-node",
        format!("no node here is called `{id}`: this one is `{own}`"),
        format!("name `{own}`, or send the request to the other node"),
    )
}
