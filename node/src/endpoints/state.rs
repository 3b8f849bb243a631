//! How the node is, and what steers it as a whole.

use std::collections::BTreeMap;
use std::path::Path;

use axum::extract::State;
use caje_admin_api as api;
use http::StatusCode;

use super::refusal::{Answer, Refusal, Text, Told};
use super::{Control, Node, ReloadError, Shared};
use crate::clock;
use crate::cluster::Role;
use crate::config::{Config, Environment};
use crate::doctor;
use crate::manifest;
use crate::store::DiskHealth;
use crate::telemetry::label::Label;
use crate::telemetry::{CacheResult, NodeState, OriginOutcome, StatusClass, Uncacheable};

fn info(shared: &Shared) -> api::NodeInfo {
    let control = &shared.control;
    let config = control.config.load();
    let usage = control.cache.store.usage();
    let manifest = control.cache.recorder.manifest();
    let status = manifest.map(|manifest| manifest.status());
    let role = |status: &manifest::Status| match &status.role {
        Role::Primary => "primary".to_owned(),
        Role::Replica { of } => format!("replica of {of}"),
        Role::Unknown => "unknown".to_owned(),
    };
    let behind = status.as_ref().and_then(|status| status.position_behind);
    api::NodeInfo {
        node: config.node.name.clone(),
        region: config.node.region.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: (control.stage)().as_str().to_owned(),
        uptime_secs: clock::uptime().as_secs(),
        listen: control.listen.iter().map(ToString::to_string).collect(),
        objects: usage.objects,
        disk_bytes: usage.disk_bytes,
        disk_limit_bytes: usage.disk_limit,
        memory_bytes: usage.memory_bytes,
        memory_limit_bytes: usage.memory_limit,
        connections: control.metrics.client_connections.get(()),
        fills: control.metrics.fills.get(()),
        role: status.as_ref().map(role),
        caught_up: status.as_ref().is_some_and(|status| status.caught_up),
        behind_ms: behind.map(|behind| u64::try_from(behind.as_millis()).unwrap_or(u64::MAX)),
        outbox_rows: status.map(|status| status.outbox),
        findings: findings(control),
    }
}

/// What is wrong with this node, apart from being out of rotation.
fn findings(control: &Control) -> Vec<String> {
    let mut findings = Vec::new();
    match &control.cache.store.health().disk {
        DiskHealth::Ok => {}
        DiskHealth::Degraded { reason } => findings.push(format!("the disk is degraded: {reason}")),
        DiskHealth::Off { reason } => findings.push(format!("there is no disk: {reason}")),
    }
    if let Some(failure) = (control.manifest_failure)() {
        findings.push(format!("the manifest: {failure}"));
    }
    if control.config.load().shares_manifest() && !control.talk.has_read_log() {
        findings.push(
            "the log of purges was not read yet: what was stored before the start is validated before it is used"
                .to_owned(),
        );
    }
    findings
}

pub(super) async fn nodes(State(node): State<Node>) -> Told<api::Nodes> {
    Told(api::Nodes {
        nodes: vec![info(&node)],
        unanswered: Vec::new(),
    })
}

pub(super) async fn status(State(node): State<Node>) -> Told<api::Status> {
    let own = info(&node);
    let name = &own.node;
    let said = own.findings.iter();
    let mut findings: Vec<String> = said.map(|finding| format!("{name}: {finding}")).collect();
    let is_well = findings.is_empty();
    let is_draining = (node.control.stage)() != NodeState::Serving;
    if is_draining {
        findings.push(format!(
            "{name} is out of rotation; `caje drain --undo` puts it back"
        ));
    }
    let state = match (is_draining, is_well) {
        (true, _) => "draining",
        (false, true) => "ok",
        (false, false) => "degraded",
    };
    Told(api::Status {
        state: state.to_owned(),
        findings,
        nodes: vec![own],
        unanswered: Vec::new(),
    })
}

/// The values of a label whose count is not 0.
fn counted<L: Label>(count: impl Fn(&str) -> u64) -> BTreeMap<String, u64> {
    let counts = L::VALUES
        .iter()
        .map(|&value| (value.to_owned(), count(value)));
    counts.filter(|(_, count)| *count > 0).collect()
}

pub(super) async fn stats(State(node): State<Node>) -> Told<api::Stats> {
    let metrics = &node.control.metrics;
    let requests = |class: StatusClass, cache: CacheResult| metrics.requests.get((class, cache));
    let classes = || {
        StatusClass::VALUES
            .iter()
            .filter_map(|class| StatusClass::named(class))
    };
    let results = || {
        CacheResult::VALUES
            .iter()
            .filter_map(|cache| CacheResult::named(cache))
    };
    let by_cache = counted::<CacheResult>(|cache| {
        let cache = CacheResult::named(cache);
        cache.map_or(0, |cache| {
            classes().map(|class| requests(class, cache)).sum()
        })
    });
    let by_class = counted::<StatusClass>(|class| {
        let class = StatusClass::named(class);
        class.map_or(0, |class| {
            results().map(|cache| requests(class, cache)).sum()
        })
    });
    let uncacheable = counted::<Uncacheable>(|reason| {
        Uncacheable::named(reason).map_or(0, |reason| metrics.uncacheable.get(reason))
    });
    let of = |names: &[&str]| -> u64 { names.iter().filter_map(|name| by_cache.get(*name)).sum() };
    let all = metrics.requests.total() - of(&["synthetic"]);
    let hits = of(&["hit", "stale", "updating", "revalidated", "collapsed"]);
    let own = api::NodeStats {
        node: node.name(),
        requests: metrics.requests.total(),
        hit_ratio: (all > 0).then(|| hits as f64 / all as f64),
        by_cache,
        by_class,
        response_bytes: metrics.response_bytes.total(),
        origin_requests: metrics.origin_requests.total(),
        origin_response_bytes: metrics.origin_response_bytes.total(),
        fills_started: metrics.fills_started.total(),
        fills_joined: metrics.fills_joined.total(),
        fills_failed: metrics.fills_failed.total(),
        evictions: load(&node.control.cache.store.metrics().evictions),
        uncacheable,
    };
    Told(api::Stats {
        nodes: vec![own],
        unanswered: Vec::new(),
    })
}

fn load(counter: &std::sync::atomic::AtomicU64) -> u64 {
    counter.load(std::sync::atomic::Ordering::Relaxed)
}

pub(super) async fn config(State(node): State<Node>) -> Answer<api::Settings> {
    let config = node.control.config.load();
    let table = config.to_table();
    let toml = toml::to_string(&table).map_err(|_| Refusal::internal())?;
    let settings = serde_json::to_value(&table).map_err(|_| Refusal::internal())?;
    let node = config.node.name.clone();
    Ok(Told(api::Settings {
        nodes: vec![api::NodeSettings {
            node,
            toml,
            settings,
        }],
        unanswered: Vec::new(),
    }))
}

pub(super) async fn validate(Text(text): Text) -> Told<api::Validation> {
    let path = Path::new("caje.toml");
    let errors = Config::parse(&text, path, &Environment::of_process()).err();
    let errors = errors.map(|errors| errors.to_string());
    Told(api::Validation {
        valid: errors.is_none(),
        errors,
    })
}

pub(super) async fn reload(State(node): State<Node>) -> Answer<api::Reload> {
    let reloaded = node.apart(|shared| (shared.control.reload)()).await?;
    let needs_restart = reloaded.map_err(|error| match error {
        ReloadError::NoFile => Refusal::new(
            StatusCode::CONFLICT,
            "no-file",
            error.to_string(),
            "start it with `caje-node run --config FILE`",
        ),
        ReloadError::Settings(_) => Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "bad-settings",
            format!("nothing has changed: {error}"),
            "repair the file; `caje config validate FILE` checks it",
        ),
    })?;
    let own = api::NodeReload {
        node: node.name(),
        needs_restart: needs_restart.into_iter().map(str::to_owned).collect(),
    };
    Ok(Told(api::Reload { nodes: vec![own] }))
}

pub(super) async fn origins(State(node): State<Node>) -> Told<api::Origins> {
    let metrics = &node.control.metrics;
    let config = node.control.config.load();
    let origin = |origin: &crate::config::Origin| {
        let id = metrics.origins.intern(&origin.name);
        api::Origin {
            name: origin.name.clone(),
            url: origin.url.to_string(),
            hosts: origin.hosts.iter().map(ToString::to_string).collect(),
            path_prefix: origin.path_prefix.clone(),
            requests: counted::<OriginOutcome>(|outcome| {
                let outcome = OriginOutcome::named(outcome);
                outcome.map_or(0, |outcome| metrics.origin_requests.get((id, outcome)))
            }),
            response_bytes: metrics.origin_response_bytes.get(id),
        }
    };
    let gauge = |gauge: &std::sync::atomic::AtomicI64| {
        gauge.load(std::sync::atomic::Ordering::Relaxed).max(0) as u64
    };
    let own = api::NodeOrigins {
        node: config.node.name.clone(),
        origins: config.origins.iter().map(origin).collect(),
        connections: gauge(&node.control.origins.open),
        waiting: gauge(&node.control.origins.waiting),
    };
    Told(api::Origins {
        nodes: vec![own],
        unanswered: Vec::new(),
    })
}

pub(super) async fn storage(State(node): State<Node>) -> Told<api::Storage> {
    let config = node.control.config.load();
    let store = &node.control.cache.store;
    let (usage, health, metrics) = (store.usage(), store.health(), store.metrics());
    let (disk, reason) = match health.disk {
        DiskHealth::Ok => ("ok", None),
        DiskHealth::Degraded { reason } => ("degraded", Some(reason)),
        DiskHealth::Off { reason } => ("off", Some(reason)),
    };
    let own = api::NodeStorage {
        node: config.node.name.clone(),
        dir: config.store.dir.display().to_string(),
        disk: disk.to_owned(),
        reason,
        io: health.io.to_owned(),
        objects: usage.objects,
        disk_bytes: usage.disk_bytes,
        disk_limit_bytes: usage.disk_limit,
        memory_bytes: usage.memory_bytes,
        memory_limit_bytes: usage.memory_limit,
        unwritten_bytes: usage.dirty_bytes,
        block_bytes: store.block_size().get(),
        evictions: load(&metrics.evictions),
        checksum_errors: load(&metrics.crc_errors),
        read_errors: load(&metrics.read_errors),
        write_errors: load(&metrics.write_errors),
    };
    Told(api::Storage {
        nodes: vec![own],
        unanswered: Vec::new(),
    })
}

pub(super) async fn drain(State(node): State<Node>) -> Told<api::Drain> {
    (node.control.set_drain)(true);
    drained(&node)
}

pub(super) async fn undrain(State(node): State<Node>) -> Told<api::Drain> {
    (node.control.set_drain)(false);
    drained(&node)
}

fn drained(node: &Node) -> Told<api::Drain> {
    let own = api::NodeDrain {
        node: node.name(),
        draining: (node.control.stage)() != NodeState::Serving,
        connections: node.control.metrics.client_connections.get(()),
    };
    Told(api::Drain {
        nodes: vec![own],
        unanswered: Vec::new(),
    })
}

pub(super) async fn doctor(State(node): State<Node>) -> Answer<api::Doctor> {
    let checks = node.apart(|shared| doctor::examine(&shared.control.config.load_full()));
    let checks = checks.await?;
    let own = api::NodeDoctor {
        node: node.name(),
        worst: doctor::worst(&checks).as_str().to_owned(),
        checks: checks
            .into_iter()
            .map(|check| api::Check {
                name: check.name,
                status: check.status.as_str().to_owned(),
                finding: check.finding,
                remedy: check.advice,
            })
            .collect(),
    };
    Ok(Told(api::Doctor {
        nodes: vec![own],
        unanswered: Vec::new(),
    }))
}
