//! How the node is, and what steers it as a whole.

use std::collections::BTreeMap;
use std::path::Path;

use axum::extract::State;
use caje_admin_api as api;
use http::StatusCode;

use super::objects::millis;
use super::refusal::{Answer, Asked, Refusal, Text, Told};
use super::{Control, Node, ReloadError, Shared};
use crate::clock;
use crate::cluster::Role;
use crate::config::{Config, Environment};
use crate::doctor;
use crate::manifest;
use crate::store::DiskHealth;
use crate::telemetry::label::Label;
use crate::telemetry::{CacheResult, NodeState, StatusClass, Uncacheable};

pub(super) fn info(shared: &Shared) -> api::NodeInfo {
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
pub(super) fn counted<L: Label>(count: impl Fn(&str) -> u64) -> BTreeMap<String, u64> {
    let counts = L::VALUES
        .iter()
        .map(|&value| (value.to_owned(), count(value)));
    counts.filter(|(_, count)| *count > 0).collect()
}

pub(super) async fn stats(
    State(node): State<Node>,
    Asked(query): Asked<api::StatsQuery>,
) -> Told<api::Stats> {
    let mut own = counters(&node);
    if let Some(since) = query.since_secs {
        own = node.history.since(own, since);
    }
    Told(api::Stats {
        nodes: vec![own],
        unanswered: Vec::new(),
    })
}

/// The hit ratio of what was not made up by the node itself.
pub(super) fn hit_ratio(requests: u64, by_cache: &BTreeMap<String, u64>) -> Option<f64> {
    let of = |names: &[&str]| -> u64 { names.iter().filter_map(|name| by_cache.get(*name)).sum() };
    let all = requests.saturating_sub(of(&["synthetic"]));
    let hits = of(&["hit", "stale", "updating", "revalidated", "collapsed"]);
    (all > 0).then(|| hits as f64 / all as f64)
}

/// All that was counted since the start.
pub(super) fn counters(node: &Shared) -> api::NodeStats {
    let config = node.control.config.load();
    let at_ms = millis(clock::now());
    let uptime_ms = u64::try_from(clock::uptime().as_millis()).unwrap_or(u64::MAX);
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
    let requests = metrics.requests.total();
    api::NodeStats {
        node: node.name(),
        region: config.node.region.clone(),
        since_ms: at_ms.saturating_sub(uptime_ms),
        at_ms,
        requests,
        hit_ratio: hit_ratio(requests, &by_cache),
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
    }
}

pub(super) fn load(counter: &std::sync::atomic::AtomicU64) -> u64 {
    counter.load(std::sync::atomic::Ordering::Relaxed)
}

pub(super) async fn config(State(node): State<Node>) -> Answer<api::Settings> {
    Ok(Told(api::Settings {
        nodes: vec![settings(&node)?],
        unanswered: Vec::new(),
    }))
}

/// The settings in force.
pub(super) fn settings(node: &Shared) -> Result<api::NodeSettings, Refusal> {
    let config = node.control.config.load();
    let table = config.to_table();
    let toml = toml::to_string(&table).map_err(|_| Refusal::internal())?;
    let settings = serde_json::to_value(&table).map_err(|_| Refusal::internal())?;
    Ok(api::NodeSettings {
        node: config.node.name.clone(),
        toml,
        settings,
    })
}

/// What a file of settings would change here. Without a text it is the node's own file.
pub(super) async fn diff(State(node): State<Node>, Text(text): Text) -> Answer<api::SettingsDiff> {
    let changes = node.apart(move |shared| {
        let environment = Environment::of_process();
        let then = match (text.trim().is_empty(), (shared.control.file)()) {
            (false, _) => Config::parse(&text, Path::new("caje.toml"), &environment),
            (true, Some(path)) => Config::load(&path),
            (true, None) => return Err(no_file()),
        };
        let then = then.map_err(|errors| {
            let remedy = "repair the file; `caje config validate FILE` checks it";
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            Refusal::new(status, "bad-settings", errors.to_string(), remedy)
        })?;
        let flat = |config: &Config| -> Result<BTreeMap<String, serde_json::Value>, Refusal> {
            let table = serde_json::to_value(config.to_table());
            let mut flat = BTreeMap::new();
            flatten("", table.map_err(|_| Refusal::internal())?, &mut flat);
            Ok(flat)
        };
        let mut now = flat(&shared.control.config.load())?;
        let mut changes = Vec::new();
        for (key, then) in flat(&then)? {
            let now = now.remove(&key);
            if now.as_ref() != Some(&then) {
                let then = Some(then);
                changes.push(api::SettingChange { key, now, then });
            }
        }
        changes.extend(now.into_iter().map(|(key, now)| api::SettingChange {
            key,
            now: Some(now),
            then: None,
        }));
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(changes)
    });
    let own = api::NodeDiff {
        node: node.name(),
        changes: changes.await??,
    };
    Ok(Told(api::SettingsDiff {
        nodes: vec![own],
        unanswered: Vec::new(),
    }))
}

/// Settings by their dotted names; those of lists of sections by the name that each section has.
fn flatten(key: &str, value: serde_json::Value, flat: &mut BTreeMap<String, serde_json::Value>) {
    use serde_json::Value;
    let below = |name: &str| match key {
        "" => name.to_owned(),
        key => format!("{key}.{name}"),
    };
    match value {
        Value::Object(table) => {
            for (name, value) in table {
                flatten(&below(&name), value, flat);
            }
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            for (place, value) in list.into_iter().enumerate() {
                let name = value.get("name").and_then(Value::as_str);
                let name = name.map_or_else(|| place.to_string(), str::to_owned);
                flatten(&below(&name), value, flat);
            }
        }
        value => drop(flat.insert(key.to_owned(), value)),
    }
}

fn no_file() -> Refusal {
    Refusal::new(
        StatusCode::CONFLICT,
        "no-file",
        ReloadError::NoFile.to_string(),
        "start it with `caje-node run --config FILE`",
    )
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
        ReloadError::NoFile => no_file(),
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

pub(super) async fn storage(State(node): State<Node>) -> Told<api::Storage> {
    Told(api::Storage {
        nodes: vec![disk(&node)],
        unanswered: Vec::new(),
    })
}

pub(super) fn disk(node: &Shared) -> api::NodeStorage {
    let config = node.control.config.load();
    let store = &node.control.cache.store;
    let (usage, health, metrics) = (store.usage(), store.health(), store.metrics());
    let (disk, reason) = match health.disk {
        DiskHealth::Ok => ("ok", None),
        DiskHealth::Degraded { reason } => ("degraded", Some(reason)),
        DiskHealth::Off { reason } => ("off", Some(reason)),
    };
    api::NodeStorage {
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
    }
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
    let own = node.apart(examined).await?;
    Ok(Told(api::Doctor {
        nodes: vec![own],
        unanswered: Vec::new(),
    }))
}

/// What stands in the way. BLOCKING.
pub(super) fn examined(shared: &Shared) -> api::NodeDoctor {
    let checks = doctor::examine(&shared.control.config.load_full());
    api::NodeDoctor {
        node: shared.name(),
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
    }
}
