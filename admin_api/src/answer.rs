//! What is answered.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Scope, State, Tier};

/// Every answer of 400 and above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: Fault,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// For programs: lower case, with hyphens.
    pub code: String,
    /// What is wrong, and why.
    pub message: String,
    /// What to do about it.
    #[serde(rename = "try")]
    pub remedy: String,
}

/// A node that was asked and has not answered as it should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unanswered {
    pub node: String,
    pub error: String,
    /// When it was last heard of, in milliseconds since 1970; null if never since the asked node started.
    pub heard_ms: Option<u64>,
}

/// Whose token it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub name: String,
    pub scopes: Vec<Scope>,
}

/// One stored response on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    pub node: String,
    pub url: String,
    pub status: u16,
    pub state: State,
    pub age_secs: u64,
    /// How long it stays fresh; negative since it is not.
    pub ttl_secs: i64,
    /// Whether its lifetime is the node's guess or setting.
    pub heuristic: bool,
    /// Of the whole body. Null while it arrives with unknown length.
    pub size_bytes: Option<u64>,
    /// What of the body is here.
    pub present_bytes: u64,
    /// Milliseconds since 1970; null when it was not used since it was stored.
    pub used_ms: Option<u64>,
    /// Requests that it has answered without the origin, since the node started: about, beyond 64.
    #[serde(default)]
    pub hits: u32,
    pub tags: Vec<String>,
    /// The request fields that select it.
    pub vary: Vec<String>,
    pub etag: Option<String>,
    pub content_type: Option<String>,
    /// BLAKE3 of the cache key.
    pub key: String,
}

/// A page of objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objects {
    pub objects: Vec<Object>,
    /// For the next page; null at the end.
    pub next: Option<String>,
}

/// What every node holds of a URL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    pub url: String,
    pub nodes: Vec<NodeInspection>,
    /// Nodes of which nothing is told here, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInspection {
    pub node: String,
    pub region: Option<String>,
    pub variants: Vec<Variant>,
    /// Where to look instead, if nothing is here.
    pub hint: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    pub object: Object,
    /// Whether the request fields that were given select it.
    pub selected: bool,
    /// As they were received.
    pub headers: Vec<(String, String)>,
}

/// What a node does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Answered from what is stored.
    Hit,
    /// Answered stale, and validated behind the client's back.
    Stale,
    /// The origin is asked whether what is stored is still right.
    Validate,
    /// Fetched and stored: the next one is a hit.
    Store,
    /// Fetched for this client alone.
    NotStored,
    /// Fetched; what is answered decides about storing, and is not known here.
    Fetch,
    /// Passed on: the cache has no part in it.
    Bypass,
    /// Answered by the node itself.
    Refused,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Hit => "hit",
            Verdict::Stale => "stale",
            Verdict::Validate => "validate",
            Verdict::Store => "store",
            Verdict::NotStored => "not-stored",
            Verdict::Fetch => "fetch",
            Verdict::Bypass => "bypass",
            Verdict::Refused => "refused",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub node: String,
    pub url: String,
    pub verdict: Verdict,
    /// One sentence.
    pub summary: String,
    /// In the order in which the node decides.
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What is asked.
    pub question: String,
    pub answer: String,
    /// Whether this step settled it.
    pub decides: bool,
    /// The setting, directive or field that the answer rests on.
    pub rule: Option<String>,
    /// Where it is written, such as `RFC 9111 §3.5`.
    pub rfc: Option<String>,
    /// What to change for another answer.
    pub hint: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeReport {
    pub soft: bool,
    pub dry_run: bool,
    pub nodes: Vec<NodePurge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePurge {
    pub node: String,
    /// Stored responses that were matched.
    pub matched: u64,
    /// Whether none of them is served any more (for a dry run: would be).
    pub done: bool,
    /// Why it is not done.
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClearReport {
    pub nodes: Vec<NodeClear>,
    /// Nodes of which nothing is told here, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeClear {
    pub node: String,
    pub tier: Tier,
    /// Stored responses removed.
    pub objects: u64,
    /// Bytes they had in the tier.
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Nodes {
    pub nodes: Vec<NodeInfo>,
    /// Nodes of which nothing is told here, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeInfo {
    pub node: String,
    pub region: Option<String>,
    pub version: String,
    /// `serving` or `draining`.
    pub state: String,
    pub uptime_secs: u64,
    /// Where clients connect.
    pub listen: Vec<String>,
    pub objects: u64,
    pub disk_bytes: u64,
    pub disk_limit_bytes: u64,
    pub memory_bytes: u64,
    pub memory_limit_bytes: u64,
    pub connections: i64,
    /// Fills in flight.
    pub fills: i64,
    /// What it is where the manifest is kept: `primary`, `replica of` whom, `unknown`; null without a manifest.
    #[serde(default)]
    pub role: Option<String>,
    /// Whether it has read all that the others had said before it started, purges above all.
    #[serde(default)]
    pub caught_up: bool,
    /// How old what others say is here, where that is longer than it should be.
    #[serde(default)]
    pub behind_ms: Option<u64>,
    /// Rows that it has not published yet.
    #[serde(default)]
    pub outbox_rows: Option<u64>,
    /// What an operator should look at, in sentences.
    #[serde(default)]
    pub findings: Vec<String>,
}

/// Whether all is well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// `ok`, `degraded` or `draining`.
    pub state: String,
    /// What an operator should look at, in sentences.
    pub findings: Vec<String>,
    pub nodes: Vec<NodeInfo>,
    /// Nodes of which nothing is told here, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    pub nodes: Vec<NodeStats>,
    /// Nodes of which nothing is told here, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

/// Counted from `since_ms` to `at_ms`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeStats {
    pub node: String,
    #[serde(default)]
    pub region: Option<String>,
    /// Milliseconds since 1970. The node's start, unless a time was asked for.
    #[serde(default)]
    pub since_ms: u64,
    #[serde(default)]
    pub at_ms: u64,
    pub requests: u64,
    /// Requests by what the cache did for them.
    pub by_cache: BTreeMap<String, u64>,
    /// Requests by class of status.
    pub by_class: BTreeMap<String, u64>,
    /// Of what was not made up by the node itself; null before the first.
    pub hit_ratio: Option<f64>,
    pub response_bytes: u64,
    pub origin_requests: u64,
    pub origin_response_bytes: u64,
    pub fills_started: u64,
    pub fills_joined: u64,
    pub fills_failed: u64,
    pub evictions: u64,
    /// Responses that were not stored, by the reason.
    pub uncacheable: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatsHistory {
    pub nodes: Vec<NodeHistory>,
    /// Nodes of which nothing is told here, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeHistory {
    pub node: String,
    pub region: Option<String>,
    /// All counted since the start; the oldest first: one of each ten minutes of a day, then one of each minute of the
    /// last hour.
    pub samples: Vec<NodeStats>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub nodes: Vec<NodeSettings>,
    /// Nodes of which nothing is told here, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

/// What is in force, defaults included and secrets left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeSettings {
    pub node: String,
    /// As a file of settings.
    pub toml: String,
    /// The same as JSON.
    pub settings: serde_json::Value,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validation {
    pub valid: bool,
    /// Every error with its line, as text.
    pub errors: Option<String>,
}

/// What would change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SettingsDiff {
    pub nodes: Vec<NodeDiff>,
    /// Nodes of which nothing is told here, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeDiff {
    pub node: String,
    pub changes: Vec<SettingChange>,
}

/// A setting that is otherwise in the file than in force. Defaults count; hashes of tokens are not compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SettingChange {
    /// `store.size`, `origin.main.url`.
    pub key: String,
    /// In force.
    pub now: Option<serde_json::Value>,
    /// In the file.
    pub then: Option<serde_json::Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    pub nodes: Vec<NodeReload>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReload {
    pub node: String,
    /// Sections that changed and take effect only after a restart.
    pub needs_restart: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origins {
    pub nodes: Vec<NodeOrigins>,
    /// Nodes of which nothing is told here, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeOrigins {
    pub node: String,
    pub origins: Vec<Origin>,
    /// Connections to all of them.
    pub connections: u64,
    /// Requests that wait for a connection.
    pub waiting: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub name: String,
    pub url: String,
    /// Empty: any host.
    pub hosts: Vec<String>,
    pub path_prefix: String,
    /// An operator has switched it off: it is treated as one that cannot be reached.
    #[serde(default)]
    pub disabled: bool,
    /// Requests by class of status or kind of failure, since the node started.
    pub requests: BTreeMap<String, u64>,
    pub response_bytes: u64,
}

/// What an origin says now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginChecks {
    pub nodes: Vec<OriginCheck>,
    /// Nodes of which nothing is told here, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginCheck {
    pub node: String,
    pub origin: String,
    /// What was asked for.
    pub url: String,
    /// Of its answer to HEAD: any shows that it is there.
    pub status: Option<u16>,
    /// To the head of the answer, with a connection of its own.
    pub took_ms: u64,
    /// Why there is no answer.
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    pub nodes: Vec<NodeStorage>,
    /// Nodes of which nothing is told here, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStorage {
    pub node: String,
    pub dir: String,
    /// `ok`, `degraded` or `off`.
    pub disk: String,
    pub reason: Option<String>,
    /// `io_uring` or `threads`.
    pub io: String,
    pub objects: u64,
    pub disk_bytes: u64,
    pub disk_limit_bytes: u64,
    pub memory_bytes: u64,
    pub memory_limit_bytes: u64,
    /// Received and not yet on disk.
    pub unwritten_bytes: u64,
    pub block_bytes: u32,
    pub evictions: u64,
    pub checksum_errors: u64,
    pub read_errors: u64,
    pub write_errors: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    pub nodes: Vec<NodeDrain>,
    /// Nodes of which nothing is told here, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDrain {
    pub node: String,
    pub draining: bool,
    pub connections: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doctor {
    pub nodes: Vec<NodeDoctor>,
    /// Nodes of which nothing is told here, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDoctor {
    pub node: String,
    /// `ok`, `warn` or `fail`: the worst of all checks.
    pub worst: String,
    pub checks: Vec<Check>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub status: String,
    pub finding: String,
    #[serde(rename = "try")]
    pub remedy: Option<String>,
}

/// All that nodes tell of themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SupportDump {
    pub nodes: Vec<NodeDump>,
    /// Nodes of which nothing is told here, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

/// What there is no answer to is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeDump {
    pub node: String,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub info: NodeInfo,
    pub stats: NodeStats,
    pub settings: NodeSettings,
    pub origins: NodeOrigins,
    pub storage: NodeStorage,
    pub doctor: Option<NodeDoctor>,
    pub coverage: Option<NodeCoverage>,
    pub jobs: Vec<Job>,
    /// As `/metrics` has it.
    pub metrics: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jobs {
    pub jobs: Vec<Job>,
    /// Nodes of which nothing is told here, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

/// Work that goes on after the answer that began it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub id: String,
    pub node: String,
    pub kind: String,
    pub state: JobState,
    pub started_ms: u64,
    pub ended_ms: Option<u64>,
    /// Items that are over, the failed ones included.
    pub done: u64,
    pub total: u64,
    pub failed: u64,
    pub bytes: u64,
    /// Of those that failed, how many are left alone for each reason: a status, or what went wrong without one.
    #[serde(default)]
    pub blocked: BTreeMap<String, u64>,
    /// Items that failed and are tried again after a pause.
    #[serde(default)]
    pub waiting: u64,
    /// One sentence about the end.
    pub message: Option<String>,
}

/// What of the manifest every node holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    pub nodes: Vec<NodeCoverage>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCoverage {
    pub node: String,
    pub region: Option<String>,
    /// Resources of the manifest, as this node knows it.
    pub resources: u64,
    /// Whole and fresh.
    pub present: u64,
    /// Whole, and to be validated before its next use.
    pub stale: u64,
    pub partial: u64,
    pub missing: u64,
    /// Of those that are lacking, how many populate leaves alone for each reason.
    pub blocked: BTreeMap<String, u64>,
    /// Of those that are lacking, how many failed and are tried again after a pause.
    pub waiting: u64,
    /// Stored, and not in the manifest.
    #[serde(default)]
    pub extra: u64,
    /// The same by origin or prefix, if asked for; `*` stands for all beyond a thousand.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<CoverageGroup>,
    /// Why nothing is known.
    pub error: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoverageGroup {
    pub name: String,
    pub resources: u64,
    pub present: u64,
    pub stale: u64,
    pub partial: u64,
    pub missing: u64,
}

/// What a node holds of a resource of the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Held {
    Present,
    Stale,
    Partial,
    Missing,
}

/// One resource that every node should hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRow {
    pub url: String,
    pub held: Held,
    /// The request fields that select the variant.
    pub vary: Vec<(String, String)>,
    pub size_bytes: Option<u64>,
    /// Milliseconds since 1970.
    pub fresh_until_ms: u64,
    pub tags: Vec<String>,
    /// The node that has recorded it last.
    pub author: String,
    pub why: String,
}

/// What the first version listed: stored responses, and rows of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    pub objects: Vec<Object>,
    /// For the next page of objects; null at the end.
    pub next: Option<String>,
    pub manifest: Vec<ManifestRow>,
    /// For the next page of rows; null at the end.
    pub next_row: Option<String>,
    /// Why there are no rows.
    pub manifest_error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestClear {
    /// Resources that were taken out, for all nodes.
    pub removed: u64,
}

/// Nothing more will be told of a job: an event of several jobs' events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobLost {
    pub id: String,
    /// The node that had it, if that is known.
    pub node: Option<String>,
    pub error: String,
}

/// A node that is gone for good, and is told of no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    pub node: String,
    /// Resources of the manifest of which it had the last word. What others list too stays listed.
    pub resources: u64,
    /// Why it is taken for gone.
    pub silence: Option<String>,
    /// What an operator should look at, in sentences.
    pub findings: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    Running,
    Done,
    Failed,
    Cancelled,
}

impl JobState {
    pub fn is_over(self) -> bool {
        self != JobState::Running
    }

    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Running => "running",
            JobState::Done => "done",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }
}
