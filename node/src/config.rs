//! Settings: the only module that reads the file of settings and the environment.
//!
//! Kept true here:
//! - A [`Config`] that exists is valid: whoever holds one need not check it again.
//! - A bad file is refused whole, with every error in it, each with its line, its reason and, where
//!   there is one, what was probably meant. Nothing else happens then: at start the process ends,
//!   at reload the old settings stay.
//! - What the keys are is said once, in `schema`; `docs/configuration.md` and
//!   `docs/caje.example.toml` are tested against it.
//!
//! Lower modules have their own plain settings and know nothing of this one; `convert` makes theirs
//! out of these.

mod convert;
mod environment;
mod error;
mod network;
mod overrides;
mod read;
mod route;
mod schema;
mod show;
mod token;
mod value;

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use caje_admin_api::Scope;

pub use crate::cache::prefetch;
pub use crate::cache::record::{Glob, Record};
use crate::peer;
pub use crate::peer::secret::Secret;
pub use crate::semantics::freshness::Rules;
pub use environment::Environment;
pub use error::{ConfigError, ConfigErrors};
pub use network::{Address, BadAddress, Cidr, HostPattern, OriginUrl, Scheme};
pub use overrides::{Overrides, Programs, Terminal};
pub use route::Routes;
pub use token::{MIN_TOKEN, Token, TokenHash};

/// All settings of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub node: Node,
    pub admin: Admin,
    pub store: Store,
    pub manifest: Manifest,
    pub cluster: Cluster,
    pub populate: Populate,
    pub limits: Limits,
    pub log: Log,
    /// At least one, with different names. In the order of the file.
    pub origins: Vec<Origin>,
}

/// `[node]`
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub name: String,
    pub region: Option<String>,
    /// Data threads, each with its own listeners and ring.
    pub threads: NonZeroUsize,
    pub listen: Vec<Address>,
    /// What this proxy calls itself in `Via` and `Cache-Status`; a token.
    pub pseudonym: String,
    /// What stands for this node in `CDN-Loop` (RFC 8586); a token.
    pub cdn_id: String,
    /// Peers whose `X-Forwarded-*` and `Forwarded` are believed and extended instead of replaced.
    pub trust_forwarded: Vec<Cidr>,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    pub listen: Address,
    /// Whether `/_caje` is answered where clients connect too, to those who have a token.
    pub public: bool,
    /// Names by which the listener is reached, beside addresses and those that only a private network has.
    pub hosts: Vec<HostPattern>,
    /// None: nobody is let in.
    pub tokens: Vec<Token>,
}

/// `[store]`
#[derive(Clone, Debug, PartialEq)]
pub struct Store {
    pub dir: PathBuf,
    pub size_bytes: u64,
    pub memory_bytes: u64,
    /// A power of two, 4 KiB to 4 MiB.
    pub block_size_bytes: u32,
    pub max_objects: usize,
    pub io: Io,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// io_uring where the kernel allows it, else threads.
    Auto,
    Uring,
    Blocking,
}

/// `[manifest]`
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    pub engine: Engine,
    /// Where all nodes' databases are. `None`: in the store's directory, or LiteFS's usual mount.
    pub dir: Option<PathBuf>,
    /// The HTTP server of this machine's LiteFS.
    pub litefs: Address,
    /// This node's name as an author. `None`: the node's name.
    pub node: Option<String>,
    /// Resources that this node records.
    pub max_rows: usize,
    /// How long a trouble lasts that only a restart of LiteFS ends, before the node ends. `None`: it serves on.
    pub exit_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// A folder that the nodes of one host share, or that one has for itself.
    Local,
    LiteFs,
}

/// `[cluster]`: how nodes reach and know one another.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// `None`: nodes do not talk to each other.
    pub secret: Option<Secret>,
    /// Where other nodes reach what clients connect to. `None`: the listener's address, if it has one of its own.
    pub advertise: Option<OriginUrl>,
    /// Where other nodes reach the admin listener. `None`: likewise.
    pub advertise_admin: Option<OriginUrl>,
    /// Admin listeners of nodes to ask beside those of the manifest.
    pub peers: Vec<OriginUrl>,
    /// Addresses at which a node is believed to be.
    pub allow: Vec<Cidr>,
    /// For another node's answer.
    pub timeout: Duration,
}

/// `[populate]`: how this node fetches what it lacks.
#[derive(Clone, Debug, PartialEq)]
pub struct Populate {
    /// Whether it begins by itself.
    pub enabled: bool,
    pub max_in_flight: usize,
    pub max_in_flight_per_origin: usize,
    /// Bytes per second; `None`: no limit.
    pub max_rate: Option<u64>,
    /// What has hit its limit is tried again after this.
    pub retry_after: Duration,
    /// The first pause after a failure, and the longest.
    pub backoff: (Duration, Duration),
    pub limits: AttemptLimits,
}

/// `[populate.limits]`: how often a resource is asked for in vain, by how it failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptLimits {
    pub default: u32,
    /// By status (`404`), class of status (`5xx`) or another of [`AttemptLimits::KINDS`].
    pub by_kind: BTreeMap<String, u32>,
}

impl AttemptLimits {
    /// Failures without a status.
    pub const KINDS: [&str; 7] = [
        "connect",
        "tls",
        "dns",
        "timeout",
        "truncated",
        "protocol",
        "uncacheable",
    ];

    /// Of an answer with this status.
    pub fn of_status(&self, status: u16) -> u32 {
        let of = |kind: String| self.by_kind.get(&kind).copied();
        of(status.to_string())
            .or_else(|| of(format!("{}xx", status / 100)))
            .unwrap_or(self.default)
    }

    /// Of one of [`AttemptLimits::KINDS`].
    pub fn of_kind(&self, kind: &str) -> u32 {
        self.by_kind.get(kind).copied().unwrap_or(self.default)
    }
}

impl Default for AttemptLimits {
    fn default() -> AttemptLimits {
        let limits = [
            ("404", 1),
            ("410", 1),
            ("5xx", 5),
            ("connect", 5),
            ("uncacheable", 1),
        ];
        AttemptLimits {
            default: 3,
            by_kind: limits
                .into_iter()
                .map(|(kind, limit)| (kind.to_owned(), limit))
                .collect(),
        }
    }
}

/// `[limits]`: what a client may cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// From accept to the first byte of the first request.
    pub first_byte_timeout: Duration,
    /// From a request's first byte to the end of its head.
    pub header_timeout: Duration,
    /// Between two requests of one connection.
    pub idle_timeout: Duration,
    /// From a request's first byte to the end of its body.
    pub request_timeout: Duration,
    /// Without a byte of the answer being taken by the client.
    pub write_timeout: Duration,
    /// Bytes per second a request's body must bring on average, after [`Limits::header_timeout`].
    pub body_rate: u64,
    /// Bytes of an unwanted request body that are read and thrown away to keep the connection;
    /// longer ones cost it.
    pub max_drained_body: u64,
    pub max_header_bytes: usize,
    pub max_headers: usize,
    pub max_uri_bytes: usize,
    pub max_connections: usize,
    pub max_connections_per_address: usize,
    /// Concurrent streams of an HTTP/2 connection.
    pub max_streams: u32,
    /// Ranges of one request; more are answered with the whole.
    pub max_ranges: usize,
    /// How long a fill goes on that nobody reads any more.
    pub linger: Duration,
    /// From SIGTERM to the end of what still runs then.
    pub drain_timeout: Duration,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    pub access: AccessFormat,
    /// `None`: standard output.
    pub path: Option<PathBuf>,
    /// A level, or directives of `tracing_subscriber`'s `EnvFilter`.
    pub level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessFormat {
    Combined,
    Json,
    Off,
}

/// `[[origin]]`
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    pub name: String,
    pub url: OriginUrl,
    /// Empty: any host.
    pub hosts: Vec<HostPattern>,
    /// Begins with `/`.
    pub path_prefix: String,
    pub host_header: HostHeader,
    pub http2: Http2,
    pub connect_timeout: Duration,
    pub first_byte_timeout: Duration,
    /// Between two pieces of a body.
    pub read_timeout: Duration,
    /// Without a byte of the request being taken by the origin.
    pub write_timeout: Duration,
    /// Under four seconds: many origins close at five.
    pub idle_timeout: Duration,
    /// For a connection to become free, when all are busy.
    pub queue_timeout: Duration,
    /// Of the whole node, shared out evenly to its data threads.
    pub max_connections: usize,
    pub max_header_bytes: usize,
    /// Interim (1xx) responses before the final one.
    pub max_interim: usize,
    /// The certificate is not checked.
    pub tls_insecure: bool,
    /// PEM file of further roots.
    pub tls_ca: Option<PathBuf>,
    /// The name to ask for and to check in the TLS handshake, if not the URL's host.
    pub tls_name: Option<String>,
    pub rules: Rules,
    /// How far a fill goes on behind the end of a client's range.
    pub read_ahead_bytes: u64,
    /// Gaps up to this are fetched along with what is missing around them.
    pub merge_gap_bytes: u64,
    /// What every node should hold of it.
    pub record: Record,
    /// How what its answers name is fetched before it is asked for, if it is.
    pub prefetch: Option<prefetch::Rules>,
    /// Whether other nodes are asked before it.
    pub peer: peer::Mode,
    /// How long other nodes are waited for before it is asked.
    pub peer_timeout: Duration,
}

/// What is sent as `Host` to the origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostHeader {
    /// What the client sent.
    Client,
    /// The host of the origin's URL.
    Origin,
    Literal(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http2 {
    Off,
    /// HTTP/2 without negotiation, over TLS or not.
    PriorKnowledge,
    /// Negotiated with ALPN over TLS; HTTP/1.1 otherwise.
    Auto,
}

impl Config {
    /// Reads a file of settings, with defaults from this process's environment.
    pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
        let text = fs::read(path).map_err(|error| {
            ConfigErrors::of_file(path, format!("cannot read the configuration: {error}"))
        })?;
        let text = String::from_utf8(text).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            ConfigErrors::of_file(path, format!("the file is no UTF-8 text: see byte {at}"))
        })?;
        Config::parse(&text, path, &Environment::of_process())
    }

    /// Like [`Config::load`], of a text that stands for the file at `path`.
    pub fn parse(
        text: &str,
        path: &Path,
        environment: &Environment,
    ) -> Result<Config, ConfigErrors> {
        schema::parse(text, path, environment)
    }

    /// The settings of the one-line proxy: one origin for everything, the rest by default. An
    /// `https` origin is asked for its own host, an `http` one for the host the client asked for.
    /// Without `data_dir`, a directory for this origin in the user's cache directory.
    pub fn proxy(
        listen: &str,
        origin: &str,
        data_dir: Option<&Path>,
    ) -> Result<Config, BadAddress> {
        Config::proxy_in(listen, origin, data_dir, &Environment::of_process())
    }

    fn proxy_in(
        listen: &str,
        origin: &str,
        data_dir: Option<&Path>,
        environment: &Environment,
    ) -> Result<Config, BadAddress> {
        let listen = Address::parse(listen)?;
        let url = OriginUrl::parse(origin)?;
        let dir = data_dir.map_or_else(
            || {
                environment.user_cache_dir.join(format!(
                    "{}-{}",
                    url.host.replace(':', "_"),
                    url.port
                ))
            },
            Path::to_owned,
        );
        let mut config = schema::defaults(environment);
        config.node.listen = vec![listen];
        config.store.dir = dir;
        config.node.cdn_id =
            schema::default_cdn_id(&config.node.name, &config.node.listen, &config.store.dir);
        let host_header = match url.scheme {
            Scheme::Http => HostHeader::Client,
            Scheme::Https => HostHeader::Origin,
        };
        config.origins = vec![Origin {
            host_header,
            ..schema::default_origin("origin", url)
        }];
        Ok(config)
    }

    /// The dotted names of all keys a file may have, sorted; those of an origin begin with
    /// `origin.`.
    pub fn keys() -> Vec<String> {
        schema::keys()
    }

    /// Sections and settings of `new` that differ from these settings and take effect only in a new process. All
    /// others can be taken into use while the node runs.
    pub fn needs_restart(&self, new: &Config) -> Vec<&'static str> {
        let mut sections = Vec::new();
        if self.node != new.node {
            sections.push("node");
        }
        if self.admin.listen != new.admin.listen {
            sections.push("admin");
        }
        if self.store != new.store {
            sections.push("store");
        }
        if self.manifest != new.manifest {
            sections.push("manifest");
        }
        if self.cluster != new.cluster {
            sections.push("cluster");
        }
        let connections =
            |limits: &Limits| (limits.max_connections, limits.max_connections_per_address);
        if connections(&self.limits) != connections(&new.limits) {
            sections.push("limits.max_connections");
        }
        if (self.log.access, &self.log.path) != (new.log.access, &new.log.path) {
            sections.push("log");
        }
        sections
    }
}
