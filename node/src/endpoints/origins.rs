//! Origins: how they answered, whether they answer now, and whether they are asked at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use bytes::Bytes;
use caje_admin_api as api;
use http::header::{HeaderValue, USER_AGENT};
use http::{Method, StatusCode};

use super::refusal::{Answer, Refusal, Told};
use super::state::counted;
use super::{Node, Shared};
use crate::config::{Config, HostPattern, Origin};
use crate::origin::{Counters, OriginPool, UpstreamRequest};
use crate::telemetry::OriginOutcome;

/// For an origin's answer, the connection included.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn list(State(node): State<Node>) -> Told<api::Origins> {
    all(&node)
}

fn all(node: &Node) -> Told<api::Origins> {
    Told(api::Origins {
        nodes: vec![own(node)],
        unanswered: Vec::new(),
    })
}

pub(super) fn own(shared: &Shared) -> api::NodeOrigins {
    let control = &shared.control;
    let metrics = &control.metrics;
    let config = control.config.load();
    let origin = |origin: &Origin| {
        let id = metrics.origins.intern(&origin.name);
        api::Origin {
            name: origin.name.clone(),
            url: origin.url.to_string(),
            hosts: origin.hosts.iter().map(ToString::to_string).collect(),
            path_prefix: origin.path_prefix.clone(),
            disabled: control.cache.switches.is_off(&origin.name),
            requests: counted::<OriginOutcome>(|outcome| {
                let outcome = OriginOutcome::named(outcome);
                outcome.map_or(0, |outcome| metrics.origin_requests.get((id, outcome)))
            }),
            response_bytes: metrics.origin_response_bytes.get(id),
        }
    };
    let gauge = |gauge: &AtomicI64| gauge.load(Ordering::Relaxed).max(0).unsigned_abs();
    api::NodeOrigins {
        node: config.node.name.clone(),
        origins: config.origins.iter().map(origin).collect(),
        connections: gauge(&control.origins.open),
        waiting: gauge(&control.origins.waiting),
    }
}

fn find<'a>(config: &'a Config, name: &str) -> Result<&'a Origin, Refusal> {
    let found = config.origins.iter().find(|origin| origin.name == name);
    found.ok_or_else(|| {
        let known: Vec<&str> = config.origins.iter().map(|one| one.name.as_str()).collect();
        Refusal::new(
            StatusCode::NOT_FOUND,
            "unknown-origin",
            format!("no origin here is called `{}`", name.escape_default()),
            format!("take one of: {}", known.join(", ")),
        )
    })
}

pub(super) async fn disable(
    State(node): State<Node>,
    Path(name): Path<String>,
) -> Answer<api::Origins> {
    switch(&node, &name, true)
}

pub(super) async fn enable(
    State(node): State<Node>,
    Path(name): Path<String>,
) -> Answer<api::Origins> {
    switch(&node, &name, false)
}

fn switch(node: &Node, name: &str, is_off: bool) -> Answer<api::Origins> {
    find(&node.control.config.load(), name)?;
    node.control.cache.switches.set(name, is_off);
    tracing::info!(origin = name, is_off, "an origin is switched");
    Ok(all(node))
}

/// Asks once, whether it is switched off or not.
pub(super) async fn check(
    State(node): State<Node>,
    Path(name): Path<String>,
) -> Answer<api::OriginChecks> {
    let own = node.apart(move |shared| asked(shared, &name)).await??;
    Ok(Told(api::OriginChecks {
        nodes: vec![own],
        unanswered: Vec::new(),
    }))
}

fn asked(shared: &Shared, name: &str) -> Result<api::OriginCheck, Refusal> {
    let config = shared.control.config.load_full();
    let origin = find(&config, name)?;
    let target = match origin.path_prefix.as_str() {
        "" => "/",
        prefix => prefix,
    };
    let began = Instant::now();
    let answered = ask(shared, &config, origin, target);
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (status, error) = match answered {
        Ok(status) => (Some(status.as_u16()), None),
        Err(error) => (None, Some(error)),
    };
    Ok(api::OriginCheck {
        node: config.node.name.clone(),
        origin: origin.name.clone(),
        url: format!("{}{target}", origin.url.to_string().trim_end_matches('/')),
        status,
        took_ms,
        error,
    })
}

/// On a connection of its own, made for it. BLOCKING.
fn ask(
    shared: &Shared,
    config: &Config,
    origin: &Origin,
    target: &str,
) -> Result<StatusCode, String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let settings = origin
        .upstream_settings(1)
        .map_err(|error| failed(&error))?;
    let rules = config.origin_rules(&shared.control.metrics);
    let rules = rules.map_err(|error| failed(&error))?;
    let client = origin.hosts.iter().find_map(|host| match host {
        HostPattern::Exact(host) => Some(host.as_str()),
        _ => None,
    });
    let rule = rules.iter().find(|rule| *rule.name == *origin.name);
    let authority = rule.map_or_else(
        || "".into(),
        |rule| rule.authority_for(client.unwrap_or("")),
    );
    let target = Bytes::copy_from_slice(target.as_bytes());
    let mut request = UpstreamRequest::new(Method::HEAD, target, authority);
    let agent = concat!("caje/", env!("CARGO_PKG_VERSION"), " (check)");
    request
        .headers
        .insert(USER_AGENT, HeaderValue::from_static(agent));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(&error))?;
    let pool = OriginPool::new(Arc::new(Counters::default()));
    let answered = tokio::task::LocalSet::new().block_on(&runtime, async {
        let settings = Arc::new(settings);
        let mut interim = |_, _| {};
        let sent = pool.send(&settings, request, &mut interim);
        tokio::time::timeout(PATIENCE, sent).await
    });
    match answered {
        Ok(Ok(response)) => Ok(response.status),
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}
