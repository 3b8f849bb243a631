//! What is asked.

use serde::{Deserialize, Serialize};

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// See everything but secrets.
    Read,
    /// Remove stored responses, or make them stale.
    Purge,
    /// Everything else that changes a node: clear, drain, reload, jobs.
    Admin,
    /// What nodes ask of one another.
    Node,
}

impl Scope {
    pub const ALL: [Scope; 4] = [Scope::Read, Scope::Purge, Scope::Admin, Scope::Node];

    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Purge => "purge",
            Scope::Admin => "admin",
            Scope::Node => "node",
        }
    }
}

/// Which stored responses, and in which order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectsQuery {
    /// Only those of this host, with its port where it is not the scheme's own.
    pub host: Option<String>,
    /// Only URLs that begin so: `https://example.com/video/`, or `/video/` for any host.
    pub prefix: Option<String>,
    /// Only those with this tag.
    pub tag: Option<String>,
    /// `fresh`, `stale` or `missing`.
    pub state: Option<State>,
    pub sort: Sort,
    /// Most objects of the answer: 100 unless told, 1000 at the most.
    pub limit: Option<usize>,
    /// `next` of the page before.
    pub cursor: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Fresh,
    /// To be validated before its next use, or used stale where that is allowed.
    Stale,
    /// The manifest has it and the node does not.
    Missing,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Fresh => "fresh",
            State::Stale => "stale",
            State::Missing => "missing",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// By host, then target.
    #[default]
    Url,
    /// The largest first.
    Size,
    /// The first to become stale first.
    Ttl,
    /// The last used first.
    Used,
    /// What has answered most first.
    Hits,
}

/// A request and, if at hand, the origin's answer to it: what would a node do, and why?
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    pub url: String,
    /// `GET` unless told.
    #[serde(default)]
    pub method: Option<String>,
    /// Fields of the request: name and value.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// What the origin answers.
    #[serde(default)]
    pub response: Option<ExplainResponse>,
    /// Ask the origin now, once, and judge its answer. Nothing is stored.
    #[serde(default)]
    pub live: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainResponse {
    pub status: u16,
    #[serde(default)]
    pub headers: Vec<(String, String)>,
}

/// What to purge: whatever any of the lists names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PurgeRequest {
    /// URLs, with all their variants.
    pub files: Vec<String>,
    pub tags: Vec<String>,
    /// `https://example.com/video/`, or `example.com/video/` for any scheme.
    pub prefixes: Vec<String>,
    pub hosts: Vec<String>,
    pub purge_everything: bool,
    /// Make stale instead of removing.
    pub soft: bool,
    /// Count what would be matched, and do nothing.
    pub dry_run: bool,
}

/// What of a node's cache to clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// All stored responses, on disk and in memory.
    Disk,
    /// What is on disk too.
    Memory,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobRequest {
    /// `verify` reads all blocks and compares their checksums; `populate` fetches what the manifest has and this node
    /// lacks.
    pub kind: String,
    /// For `populate`: only URLs that begin so, such as `https://example.com/video/`. One of `prefix`, `host` and `tag`.
    pub prefix: Option<String>,
    /// Only those of this host, with its port where it is not the scheme's own.
    pub host: Option<String>,
    pub tag: Option<String>,
    /// Try again what has failed too often.
    pub retry: bool,
    /// Only count.
    pub dry_run: bool,
    /// Most requests in flight of this run, to all origins together. More than `populate.max_in_flight` it is never.
    pub concurrency: Option<u64>,
    /// Most bytes per second of this run. More than `populate.max_rate` it is never.
    pub rate_bytes: Option<u64>,
}

/// How coverage is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoverageQuery {
    /// `origin`, or `prefix`: scheme, host and the first segment of the path.
    pub by: Option<CoverageBy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CoverageBy {
    Origin,
    Prefix,
}

/// Which time counters are about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StatsQuery {
    /// The last so many seconds, or a little more; a day at the most. All since the start unless told.
    pub since_secs: Option<u64>,
}

/// What `GET /_caje/list` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListQuery {
    /// Only URLs that begin so, such as `https://example.com/video/`.
    pub prefix: Option<String>,
    /// Most of each kind: 100 unless told, 1000 at the most.
    pub limit: Option<usize>,
    /// `next` of the page before.
    pub cursor: Option<String>,
    /// `next_row` of the page before.
    pub row_cursor: Option<String>,
}
