//! Where things are. Braces stand for one segment.

/// All that a node keeps for its operators lies below it.
pub const RESERVED: &str = "/_caje";

pub const OBJECTS: &str = "/_caje/v1/objects";
pub const INSPECT: &str = "/_caje/v1/inspect";
pub const EXPLAIN: &str = "/_caje/v1/explain";
pub const PURGE: &str = "/_caje/v1/purge";
pub const INVALIDATE: &str = "/_caje/v1/invalidate";
pub const NODES: &str = "/_caje/v1/nodes";
pub const NODE: &str = "/_caje/v1/nodes/{id}";
pub const NODE_CACHE: &str = "/_caje/v1/nodes/{id}/cache";
pub const MANIFEST: &str = "/_caje/v1/manifest";
pub const STATUS: &str = "/_caje/v1/status";
pub const COVERAGE: &str = "/_caje/v1/coverage";
pub const STATS: &str = "/_caje/v1/stats";
pub const STATS_HISTORY: &str = "/_caje/v1/stats/history";
pub const CONFIG: &str = "/_caje/v1/config";
pub const CONFIG_VALIDATE: &str = "/_caje/v1/config/validate";
pub const CONFIG_DIFF: &str = "/_caje/v1/config/diff";
pub const CONFIG_RELOAD: &str = "/_caje/v1/config/reload";
pub const ORIGINS: &str = "/_caje/v1/origins";
pub const ORIGIN_CHECK: &str = "/_caje/v1/origins/{id}/check";
pub const ORIGIN_DISABLE: &str = "/_caje/v1/origins/{id}/disable";
pub const ORIGIN_ENABLE: &str = "/_caje/v1/origins/{id}/enable";
pub const STORAGE: &str = "/_caje/v1/storage";
pub const STORAGE_VERIFY: &str = "/_caje/v1/storage/verify";
pub const DRAIN: &str = "/_caje/v1/drain";
pub const DOCTOR: &str = "/_caje/v1/doctor";
pub const SUPPORT_DUMP: &str = "/_caje/v1/support-dump";
pub const JOBS: &str = "/_caje/v1/jobs";
pub const JOB: &str = "/_caje/v1/jobs/{id}";
pub const JOB_RESUME: &str = "/_caje/v1/jobs/{id}/resume";
pub const JOB_EVENTS: &str = "/_caje/v1/jobs/{id}/events";

pub const OPENAPI: &str = "/_caje/openapi.json";
pub const HEALTHZ: &str = "/_caje/healthz";
pub const READYZ: &str = "/_caje/readyz";

// Names of the first version.
pub const LIST: &str = "/_caje/list";
pub const CLEAR_FS: &str = "/_caje/clear_fs";
pub const CLEAR_DB: &str = "/_caje/clear_db";
pub const POPULATE: &str = "/_caje/populate";
pub const AUTH: &str = "/_caje/auth";
