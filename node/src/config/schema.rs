//! Every setting: its name, its type, its bounds, its default. Said here once.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::read::{Findings, Section};
use super::token::{self, MIN_TOKEN};
use super::value::{self, Read, Wrong, show_size};
use super::*;
use crate::origin::{Tls, TlsOptions};
use crate::peer;
use crate::peer::secret::MIN_SECRET;
use crate::semantics::reference::Allowed;
use crate::telemetry::diagnostics;

const MS: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(365 * 86_400);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) fn parse(
    text: &str,
    path: &Path,
    environment: &Environment,
) -> Result<Config, ConfigErrors> {
    let findings = Findings::default();
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    for error in &syntax_errors {
        let wrong = Wrong::new(format!(
            "this is no TOML: {}",
            error.message().trim().replace('\n', ", ")
        ));
        findings.report(error.span().unwrap_or(0..0), wrong);
    }
    // What was recovered after an error of syntax is a guess: complaints about it would be noise.
    if !syntax_errors.is_empty() {
        return Err(findings
            .into_errors(text, path)
            .expect("there is an error of syntax"));
    }
    let top = Section::top(&findings, &document);
    let config = read(&top, &findings, environment);
    match findings.into_errors(text, path) {
        None => Ok(config),
        Some(errors) => Err(errors),
    }
}

/// All defaults, and no origin yet.
pub(super) fn defaults(environment: &Environment) -> Config {
    let findings = Findings::default();
    let top = Section::absent(&findings, "");
    read(&top, &findings, environment)
}

pub(super) fn default_origin(name: &str, url: OriginUrl) -> Origin {
    let findings = Findings::default();
    let section = Section::absent(&findings, "origin");
    Origin {
        name: name.to_owned(),
        url,
        ..origin(&section)
    }
}

pub(super) fn keys() -> Vec<String> {
    let findings = Findings::default();
    let environment = Environment::of_process();
    read(&Section::absent(&findings, ""), &findings, &environment);
    origin(&Section::absent(&findings, "origin"));
    findings.keys()
}

/// Differs between nodes and stays over a restart; tells nobody the host's name.
pub(super) fn default_cdn_id(name: &str, listen: &[Address], dir: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(name.as_bytes());
    for address in listen {
        hasher.update(&[0]);
        hasher.update(address.to_string().as_bytes());
    }
    hasher.update(&[0]);
    hasher.update(dir.as_os_str().as_encoded_bytes());
    format!("caje-{}", &hasher.finalize().to_hex()[..12])
}

fn read(top: &Section, findings: &Findings, environment: &Environment) -> Config {
    let mut node = node(&top.section("node"), environment);
    let admin_section = top.section("admin");
    let admin = admin(&admin_section, findings, environment);
    let collides = |address: &&Address| shares_a_socket(address, &admin.listen);
    if let Some(address) = node.listen.iter().find(collides) {
        let wrong = Wrong::new(format!("clients already connect to {address}"));
        admin_section.reject("listen", wrong.hint("give the admin listener another port"));
    }
    let store = store(&top.section("store"), environment);
    let manifest = manifest(&top.section("manifest"));
    let cluster = cluster(&top.section("cluster"), &node, &admin, environment);
    let populate = populate(&top.section("populate"));
    let limits = limits(&top.section("limits"));
    let log = log(&top.section("log"), environment);
    if node.cdn_id.is_empty() {
        node.cdn_id = default_cdn_id(&node.name, &node.listen, &store.dir);
    }
    let sections = top.sections("origin");
    let mut origins: Vec<Origin> = Vec::new();
    for section in &sections {
        let errors_before = findings.count();
        let this = origin(section);
        if findings.count() > errors_before {
            // What stands in for its wrong values is not to be compared with the others.
            continue;
        }
        if origins.iter().any(|other| other.name == this.name) {
            section.reject(
                "name",
                Wrong::new(format!("there is another origin called `{}`", this.name)),
            );
        }
        if let Some(other) = origins.iter().find(|other| shares_a_route(other, &this)) {
            let key = if section.has("hosts") {
                "hosts"
            } else {
                "path_prefix"
            };
            let reason = format!(
                "origin `{}` already answers for the same host and path",
                other.name
            );
            section.reject(
                key,
                Wrong::new(reason).hint("set `hosts` or `path_prefix` to tell them apart"),
            );
        }
        origins.push(this);
    }
    if sections.is_empty() {
        // Its keys become known all the same, for "did you mean".
        origin(&Section::absent(findings, "origin"));
        let wrong = Wrong::new("there is no origin");
        top.reject("origin", wrong.hint("add [[origin]] with `name` and `url`"));
    }
    Config {
        node,
        admin,
        store,
        manifest,
        cluster,
        populate,
        limits,
        log,
        origins,
    }
}

fn node(section: &Section, environment: &Environment) -> Node {
    let listen = section.list("listen", value::address);
    if listen.as_ref().is_some_and(Vec::is_empty) {
        let wrong = Wrong::new("a node must listen somewhere");
        section.reject(
            "listen",
            wrong.hint("leave `listen` out for \"0.0.0.0:8080\""),
        );
    }
    let threads = section.or("threads", value::count(1, 1024), environment.threads as u64);
    Node {
        name: section.or("name", value::name, plain_name(&environment.node_name)),
        region: section
            .get("region", value::name)
            .or(environment.region.clone()),
        threads: NonZeroUsize::new(threads as usize).unwrap_or(NonZeroUsize::MIN),
        listen: listen.unwrap_or_else(|| {
            vec![Address {
                host: "0.0.0.0".into(),
                port: 8080,
            }]
        }),
        pseudonym: section.or("pseudonym", value::token, "caje".into()),
        cdn_id: section.or("cdn_id", value::token, String::new()),
        trust_forwarded: section
            .list("trust_forwarded", value::cidr)
            .unwrap_or_default(),
    }
}

/// A host's name made into one that [`value::name`] would take.
fn plain_name(name: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '-'
        }
    };
    name.chars().map(plain).take(64).collect()
}

/// Whether the second of two listeners could not be bound.
fn shares_a_socket(a: &Address, b: &Address) -> bool {
    let any = |address: &Address| ["0.0.0.0", "::"].contains(&address.host.as_str());
    a.port == b.port && a.port != 0 && (a.host == b.host || any(a) || any(b))
}

fn admin(section: &Section, findings: &Findings, environment: &Environment) -> Admin {
    let default = Address {
        host: environment.admin_host.clone(),
        port: 9180,
    };
    let listed = section.sections_named("token", "admin.token");
    if listed.is_empty() {
        // Its keys become known all the same, for "did you mean".
        admin_token(&Section::absent(findings, "admin.token"));
    }
    let mut tokens: Vec<Token> = Vec::new();
    for section in &listed {
        let errors_before = findings.count();
        let this = admin_token(section);
        if findings.count() > errors_before {
            continue;
        }
        if let Some(other) = tokens.iter().find(|other| other.name == this.name) {
            let reason = format!("there is another token called `{}`", other.name);
            section.reject("name", Wrong::new(reason));
        }
        tokens.push(this);
    }
    match environment.admin_token {
        Some(Ok(hash)) => tokens.push(Token {
            name: "CAJE_ADMIN_TOKEN".into(),
            hash,
            scopes: vec![Scope::Read, Scope::Purge, Scope::Admin],
        }),
        Some(Err(token::TooShort)) => {
            let reason = format!("CAJE_ADMIN_TOKEN has fewer than {MIN_TOKEN} characters");
            let wrong = Wrong::new(reason);
            section.reject(
                "token",
                wrong.hint(
                    "take the one that `caje-node token new --name NAME --scope admin` prints",
                ),
            );
        }
        None => {}
    }
    Admin {
        listen: section.or("listen", value::address, default),
        public: section.or("public", value::boolean, false),
        hosts: section
            .list("hosts", value::host_pattern)
            .unwrap_or_default(),
        tokens,
    }
}

fn admin_token(section: &Section) -> Token {
    for key in ["name", "hash", "scopes"] {
        if section.is_present() && !section.has(key) {
            let wrong = Wrong::new(format!("this token has no `{key}`"));
            section.reject(
                key,
                wrong.hint("make one with `caje-node token new --name NAME --scope read`"),
            );
        }
    }
    const SCOPES: &[(&str, Scope)] = &[
        ("read", Scope::Read),
        ("purge", Scope::Purge),
        ("admin", Scope::Admin),
        ("node", Scope::Node),
    ];
    Token {
        name: section.or("name", value::name, String::new()),
        hash: section.or("hash", token::hash, TokenHash::of("")),
        scopes: section
            .list("scopes", value::one_of(SCOPES))
            .unwrap_or_default(),
    }
}

fn store(section: &Section, environment: &Environment) -> Store {
    let block_size_bytes = section.or("block_size", block_size, 256 << 10);
    let default_memory = (environment.memory_bytes / 4 / MIB * MIB).clamp(16 * MIB, 64 * GIB);
    let store = Store {
        dir: section.or("dir", value::path, environment.cache_dir.clone()),
        size_bytes: section.or("size", value::size_within(MIB, 1024 * TIB), 10 * GIB),
        memory_bytes: section.or("memory", value::size_within(MIB, 16 * TIB), default_memory),
        block_size_bytes,
        max_objects: section.or("max_objects", value::count(1, 100_000_000), 2_000_000) as usize,
        io: section.or(
            "io",
            value::one_of(&[
                ("auto", Io::Auto),
                ("uring", Io::Uring),
                ("blocking", Io::Blocking),
            ]),
            Io::Auto,
        ),
    };
    for (key, bytes) in [("size", store.size_bytes), ("memory", store.memory_bytes)] {
        let least = 4 * u64::from(block_size_bytes);
        if bytes < least {
            let least = show_size(least);
            let reason =
                format!("this is too little for `block_size`: four blocks, {least}, must fit");
            section.reject(key, Wrong::new(reason));
        }
    }
    store
}

fn manifest(section: &Section) -> Manifest {
    let author = |value: &DeValue| {
        let name = value::name(value)?;
        if name.is_empty() {
            return Err(Wrong::new("a node needs a name of its own"));
        }
        Ok(name)
    };
    let engines = &[("local", Engine::Local), ("litefs", Engine::LiteFs)];
    Manifest {
        engine: section.or("engine", value::one_of(engines), Engine::Local),
        dir: section.get("dir", value::path),
        litefs: section.or(
            "litefs",
            value::address,
            Address {
                host: "localhost".into(),
                port: 20202,
            },
        ),
        node: section.get("node", author),
        max_rows: section.or("max_rows", value::count(1, 10_000_000), 100_000) as usize,
        exit_after: section.get("exit_after", value::duration_within(seconds(1), DAY)),
    }
}

fn cluster(section: &Section, node: &Node, admin: &Admin, environment: &Environment) -> Cluster {
    let secret = section.get("secret", |value| self::secret(value::text(value)?));
    let from_environment = match environment.cluster_secret {
        Some(Err(token::TooShort)) => {
            let wrong = Wrong::new(format!(
                "CAJE_CLUSTER_SECRET has fewer than {MIN_SECRET} characters"
            ));
            section.reject("secret", wrong.hint(MAKE_SECRET));
            None
        }
        Some(Ok(ref secret)) => Some(secret.clone()),
        None => None,
    };
    // The listeners' own addresses are known once they are bound; names before.
    let by_name = |address: Option<&Address>| {
        let host = environment.advertise_host.as_ref()?;
        OriginUrl::parse(&format!("http://{host}:{}", address?.port)).ok()
    };
    let url = |key, default| section.get(key, value::origin_url).or(default);
    Cluster {
        secret: from_environment.or(secret),
        advertise: url("advertise", by_name(node.listen.first())),
        advertise_admin: url("advertise_admin", by_name(Some(&admin.listen))),
        peers: section.list("peers", value::origin_url).unwrap_or_default(),
        allow: section
            .list("allow", value::cidr)
            .unwrap_or_else(private_networks),
        timeout: section.or(
            "timeout",
            value::duration_within(MS, seconds(60)),
            seconds(2),
        ),
    }
}

/// Networks that nobody reaches from elsewhere: RFC 1918, RFC 6598, RFC 4193, and this host.
fn private_networks() -> Vec<Cidr> {
    [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "::1/128",
        "fc00::/7",
    ]
    .iter()
    .filter_map(|network| Cidr::parse(network).ok())
    .collect()
}

const MAKE_SECRET: &str = "make one with `openssl rand -hex 32`, the same for all nodes";

fn secret(text: &str) -> Read<Secret> {
    if text.len() < MIN_SECRET {
        let wrong = Wrong::new(format!(
            "a cluster's secret has at least {MIN_SECRET} characters"
        ));
        return Err(wrong.hint(MAKE_SECRET));
    }
    Ok(Secret::new(text))
}

fn populate(section: &Section) -> Populate {
    let pause = |key, default| section.or(key, value::duration_within(MS, YEAR), default);
    let rate = section.or("max_rate", value::size_within(0, TIB), 0);
    let (first, longest) = (
        pause("backoff", seconds(1)),
        pause("backoff_max", seconds(300)),
    );
    if first > longest {
        section.reject("backoff", Wrong::new("this is more than `backoff_max`"));
    }
    let count = |key, default| section.or(key, value::count(1, 10_000), default) as usize;
    Populate {
        enabled: section.or("enabled", value::boolean, true),
        max_in_flight: count("max_in_flight", 8),
        max_in_flight_per_origin: count("max_in_flight_per_origin", 4),
        max_rate: (rate > 0).then_some(rate),
        retry_after: pause("retry_after", seconds(3600)),
        backoff: (first, longest.max(first)),
        limits: section.or("limits", attempt_limits, AttemptLimits::default()),
    }
}

/// Its keys are statuses, so there is no list of them to hold a key against.
fn attempt_limits(value: &DeValue) -> Read<AttemptLimits> {
    let Some(table) = value.as_table() else {
        let wrong = Wrong::new("this is a section: attempts by status, class of status or kind");
        return Err(wrong.hint("write [populate.limits], and `404 = 1` below"));
    };
    let mut limits = AttemptLimits::default();
    for (key, value) in table {
        let key: &str = key.get_ref();
        let attempts = value::count(1, 1_000_000)(value.get_ref())
            .map_err(|wrong| Wrong::new(format!("`{key}`: {}", wrong.reason)))?;
        let attempts = attempts as u32;
        let is_digit = |byte: &u8| byte.is_ascii_digit();
        match key.as_bytes() {
            b"default" => limits.default = attempts,
            [b'1'..=b'5', b'x', b'x'] => drop(limits.by_kind.insert(key.to_owned(), attempts)),
            [b'1'..=b'5', rest @ ..] if rest.len() == 2 && rest.iter().all(is_digit) => {
                limits.by_kind.insert(key.to_owned(), attempts);
            }
            _ if AttemptLimits::KINDS.contains(&key) => {
                limits.by_kind.insert(key.to_owned(), attempts);
            }
            _ => {
                let kinds = AttemptLimits::KINDS.iter().copied().chain(["default"]);
                let wrong = Wrong::new(format!(
                    "`{key}` is no status, class of status (`5xx`) or kind of failure"
                ));
                return Err(match value::nearest(key, kinds) {
                    Some(near) => wrong.hint(format!("did you mean `{near}`?")),
                    None => wrong,
                });
            }
        }
    }
    Ok(limits)
}

/// `[origin.prefetch]`: a table, or `true` for all defaults.
fn prefetch(value: &DeValue) -> Read<Option<prefetch::Rules>> {
    let Some(table) = value.as_table() else {
        return value::boolean(value).map(|is_on| is_on.then(prefetch::Rules::default));
    };
    let mut rules = prefetch::Rules::default();
    for (key, value) in table {
        let value = value.get_ref();
        let key: &str = key.get_ref();
        let of_key = |wrong: Wrong| Wrong::new(format!("`{key}`: {}", wrong.reason));
        let texts = || -> Read<Vec<&str>> {
            let DeValue::Array(items) = value else {
                return Err(Wrong::new(format!("`{key}` is a list of texts")));
            };
            let texts = items.iter().map(|item| value::text(item.get_ref()));
            texts.collect::<Read<_>>().map_err(of_key)
        };
        match key {
            "links" => {
                rules.links = texts()?
                    .into_iter()
                    .map(
                        |relation| match relation.contains(|c: char| c.is_ascii_whitespace()) {
                            false if !relation.is_empty() => Ok(relation.into()),
                            _ => Err(Wrong::new("`links` has one relation type in each text")),
                        },
                    )
                    .collect::<Read<_>>()?;
            }
            "cmcd" => rules.cmcd = value::boolean(value).map_err(of_key)?,
            "cmsd" => rules.cmsd = value::boolean(value).map_err(of_key)?,
            "query" => {
                const QUERIES: [(&str, prefetch::Query); 3] = [
                    ("skip", prefetch::Query::Skip),
                    ("keep", prefetch::Query::Keep),
                    ("copy", prefetch::Query::Copy),
                ];
                rules.query = value::one_of(&QUERIES)(value).map_err(of_key)?;
            }
            "depth" => rules.depth = value::count(1, 8)(value).map_err(of_key)? as u8,
            "prefix" => rules.confinement.prefix = Some(path_prefix(value).map_err(of_key)?.into()),
            "hosts" => {
                let allowed = texts()?.into_iter().map(|text| {
                    Allowed::parse(text).map_err(|refusal| {
                        let wrong = Wrong::new(format!("`{text}` is no host: {refusal}"));
                        wrong.hint("write `host`, `host:port`, `*.host`, or `https://host/prefix`")
                    })
                });
                rules.confinement.allowed = allowed.collect::<Read<_>>()?;
            }
            "max_in_flight" => {
                rules.max_in_flight = value::count(1, 32)(value).map_err(of_key)? as usize;
            }
            "max_rate" => {
                let rate = value::size_within(0, TIB)(value).map_err(of_key)?;
                rules.max_rate = (rate > 0).then_some(rate);
            }
            "max_size" => rules.max_size = value::size_within(1, TIB)(value).map_err(of_key)?,
            "max_waste" => rules.max_waste = value::count(0, 100)(value).map_err(of_key)? as u8,
            _ => {
                let known = "links, cmcd, cmsd, query, depth, prefix, hosts, max_in_flight, max_rate, max_size, max_waste";
                let wrong = Wrong::new(format!("there is no `{key}` in a rule for prefetching"));
                return Err(wrong.hint(format!("there are {known}")));
            }
        }
    }
    Ok(Some(rules))
}

fn record(value: &DeValue) -> Read<Record> {
    const FORMS: &str =
        "write \"off\", \"all\", or { min_hits = 2, min_bytes = 0, paths = [\"/**\"] }";
    let Some(table) = value.as_table() else {
        return match value::text(value)? {
            "off" => Ok(Record::OFF),
            "all" => Ok(Record {
                min_hits: Some(1),
                ..Record::default()
            }),
            other => Err(Wrong::new(format!("`{other}` is no rule")).hint(FORMS)),
        };
    };
    let mut record = Record::default();
    for (key, value) in table {
        let value = value.get_ref();
        let key: &str = key.get_ref();
        let of_key = |wrong: Wrong| Wrong::new(format!("`{key}`: {}", wrong.reason));
        match key {
            "min_hits" => {
                let hits = value::count(1, 1_000_000)(value).map_err(of_key)?;
                record.min_hits = Some(hits as u32);
            }
            "min_bytes" => record.min_bytes = value::size_within(0, TIB)(value).map_err(of_key)?,
            "paths" => {
                let DeValue::Array(patterns) = value else {
                    return Err(Wrong::new("`paths` is a list of patterns").hint(FORMS));
                };
                for pattern in patterns {
                    let text = value::text(pattern.get_ref()).map_err(of_key)?;
                    let glob = Glob::new(text).ok_or_else(|| {
                        let wrong = Wrong::new(format!("`{text}` is no pattern of paths"));
                        wrong.hint("it begins with `/`; `*` stands for a part of a segment, `**` for anything")
                    })?;
                    record.paths.push(glob);
                }
            }
            _ => {
                let wrong = Wrong::new(format!("there is no `{key}` in a rule for recording"));
                return Err(wrong.hint(FORMS));
            }
        }
    }
    Ok(record)
}

fn block_size(value: &DeValue) -> Read<u32> {
    let bytes = value::size_within(4 * KIB, 4 * MIB)(value)?;
    if bytes.is_power_of_two() {
        return Ok(bytes as u32);
    }
    let below = 1_u64 << bytes.ilog2();
    let hint = format!(
        "did you mean \"{}\" or \"{}\"?",
        show_size(below),
        show_size(2 * below)
    );
    Err(Wrong::new("a block's size must be a power of two").hint(hint))
}

fn limits(section: &Section) -> Limits {
    let timeout = |key, default| section.or(key, value::duration_within(MS, DAY), seconds(default));
    let size = |key, min, max, default| section.or(key, value::size_within(min, max), default);
    let count = |key, min, max, default| section.or(key, value::count(min, max), default) as usize;
    let limits = Limits {
        first_byte_timeout: timeout("first_byte_timeout", 10),
        header_timeout: timeout("header_timeout", 10),
        idle_timeout: timeout("idle_timeout", 60),
        request_timeout: timeout("request_timeout", 3600),
        write_timeout: timeout("write_timeout", 60),
        body_rate: size("body_rate", 0, GIB, 240),
        max_drained_body: size("max_drained_body", 0, MIB, 64 * KIB),
        max_header_bytes: size("max_header_bytes", KIB, MIB, 32 * KIB) as usize,
        max_headers: count("max_headers", 8, 256, 100),
        max_uri_bytes: size("max_uri", 64, MIB, 8 * KIB) as usize,
        max_connections: count("max_connections", 1, 10_000_000, 16_384),
        max_connections_per_address: count("max_connections_per_address", 1, 10_000_000, 4096),
        max_streams: count("max_streams", 1, 10_000, 100) as u32,
        max_ranges: count("max_ranges", 1, 1000, 16),
        linger: section.or(
            "linger",
            value::duration_within(Duration::ZERO, DAY),
            seconds(10),
        ),
        drain_timeout: section.or(
            "drain_timeout",
            value::duration_within(Duration::ZERO, DAY),
            seconds(30),
        ),
    };
    if limits.max_uri_bytes > limits.max_header_bytes {
        let wrong = Wrong::new(
            "a request's URI is part of its head, and this is more than `max_header_bytes`",
        );
        section.reject("max_uri", wrong);
    }
    limits
}

fn log(section: &Section, environment: &Environment) -> Log {
    let level = |value: &DeValue| {
        let level = value::string(value)?;
        diagnostics::check(&level).map_err(|error| Wrong::new(error.to_string()))?;
        Ok(level)
    };
    let formats = &[
        ("combined", AccessFormat::Combined),
        ("json", AccessFormat::Json),
        ("off", AccessFormat::Off),
    ];
    let from_file = section.or("level", level, "info".into());
    let from_environment = environment
        .log_level
        .clone()
        .filter(|level| diagnostics::check(level).is_ok());
    Log {
        access: section.or("access", value::one_of(formats), AccessFormat::Combined),
        path: section.get("path", value::path),
        level: from_environment.unwrap_or(from_file),
    }
}

fn origin(section: &Section) -> Origin {
    let required = |key| {
        if section.is_present() && !section.has(key) {
            section.reject(key, Wrong::new(format!("this origin has no `{key}`")));
        }
    };
    required("name");
    required("url");
    let timeout = |key, default| section.or(key, value::duration_within(MS, DAY), seconds(default));
    let span = |key| section.get(key, value::duration_within(Duration::ZERO, YEAR));
    let switch = |key, default| section.or(key, value::boolean, default);
    let placeholder = || OriginUrl {
        scheme: Scheme::Http,
        host: String::new(),
        port: 80,
    };
    let origin = Origin {
        name: section.or("name", value::name, String::new()),
        url: section
            .get("url", value::origin_url)
            .unwrap_or_else(placeholder),
        hosts: section
            .list("hosts", value::host_pattern)
            .unwrap_or_default(),
        path_prefix: section.or("path_prefix", path_prefix, "/".into()),
        host_header: section.or("host_header", host_header, HostHeader::Client),
        http2: section.or(
            "http2",
            value::one_of(&[
                ("off", Http2::Off),
                ("auto", Http2::Auto),
                ("prior_knowledge", Http2::PriorKnowledge),
            ]),
            Http2::Auto,
        ),
        connect_timeout: timeout("connect_timeout", 5),
        first_byte_timeout: timeout("first_byte_timeout", 30),
        read_timeout: timeout("read_timeout", 30),
        write_timeout: timeout("write_timeout", 30),
        idle_timeout: section.or("idle_timeout", pool_timeout, seconds(3)),
        queue_timeout: timeout("queue_timeout", 10),
        max_connections: section.or("max_connections", value::count(1, 100_000), 512) as usize,
        max_header_bytes: section.or("max_header_bytes", value::size_within(KIB, MIB), 64 * KIB)
            as usize,
        max_interim: section.or("max_interim", value::count(1, 1000), 16) as usize,
        tls_insecure: switch("tls_insecure", false),
        tls_ca: section.get("tls_ca", value::path),
        tls_name: section.get("tls_name", tls_name),
        rules: Rules {
            default_ttl: span("default_ttl"),
            heuristic: switch("heuristic", true),
            heuristic_max: section.or(
                "heuristic_max",
                value::duration_within(Duration::ZERO, YEAR),
                DAY,
            ),
            stale_while_revalidate: span("stale_while_revalidate"),
            stale_if_error: span("stale_if_error"),
            serve_stale_when_unreachable: switch("serve_stale_when_unreachable", true),
            store_set_cookie: switch("store_set_cookie", false),
            store_authorized: switch("store_authorized", false),
            honor_client_cache_control: switch("honor_client_cache_control", false),
        },
        read_ahead_bytes: section.or("read_ahead", value::size_within(0, GIB), 0),
        merge_gap_bytes: section.or("merge_gap", value::size_within(0, GIB), 256 * KIB),
        record: section.or("record", record, Record::default()),
        prefetch: section.get("prefetch", prefetch).flatten(),
        peer: section.or(
            "peer",
            value::one_of(&[
                ("off", peer::Mode::Off),
                ("nearest", peer::Mode::Nearest),
                ("shield", peer::Mode::Shield),
            ]),
            peer::Mode::Nearest,
        ),
        peer_timeout: section.or(
            "peer_timeout",
            value::duration_within(MS, seconds(60)),
            150 * MS,
        ),
    };
    if let Some(path) = &origin.tls_ca {
        let options = TlsOptions {
            extra_ca: Some(path.clone()),
            ..TlsOptions::default()
        };
        if let Err(error) = Tls::new(&options) {
            section.reject("tls_ca", Wrong::new(error.to_string()));
        }
    }
    if section.has("url") && origin.url.scheme == Scheme::Http {
        for key in ["tls_insecure", "tls_ca", "tls_name"] {
            if section.has(key) && !origin.url.host.is_empty() {
                let wrong = Wrong::new(format!("`{key}` has no meaning for an http origin"));
                section.reject(
                    key,
                    wrong.hint(format!(
                        "did you mean `url = \"https://{}\"`?",
                        origin.url.host
                    )),
                );
            }
        }
    }
    origin
}

fn path_prefix(value: &DeValue) -> Read<String> {
    let text = value::string(value)?;
    if !text.starts_with('/') {
        let hint = format!("did you mean \"/{text}\"?");
        return Err(Wrong::new("a path prefix begins with `/`").hint(hint));
    }
    match text
        .bytes()
        .find(|byte| !byte.is_ascii_graphic() || b"*?#".contains(byte))
    {
        None => Ok(text),
        Some(b'*') => Err(Wrong::new(
            "a path prefix has no `*`: it covers everything below it",
        )),
        Some(_) => Err(Wrong::new(
            "a path prefix has only printable ASCII characters, and no query",
        )),
    }
}

fn host_header(value: &DeValue) -> Read<HostHeader> {
    match value::text(value)? {
        "client" => Ok(HostHeader::Client),
        "origin" => Ok(HostHeader::Origin),
        text if text.contains(['.', ':']) => match OriginUrl::parse(&format!("http://{text}")) {
            Ok(url) => Ok(HostHeader::Literal(url.authority())),
            Err(_) => Err(Wrong::new(format!("`{text}` is no host"))),
        },
        text => Err(Wrong::new(format!(
            "`{text}` is neither \"client\", \"origin\" nor a host such as \"example.com\""
        ))),
    }
}

fn tls_name(value: &DeValue) -> Read<String> {
    match value::host_pattern(value)? {
        HostPattern::Exact(name) => Ok(name),
        _ => Err(Wrong::new("this must be one name, without `*`")),
    }
}

fn pool_timeout(value: &DeValue) -> Read<Duration> {
    let wrong = Wrong::new("an idle connection to an origin is kept for less than four seconds");
    match value::duration(value)? {
        duration if (MS..seconds(4)).contains(&duration) => Ok(duration),
        _ => {
            Err(wrong
                .hint("many origins close at five, and a request on a closed connection fails"))
        }
    }
}

fn shares_a_route(a: &Origin, b: &Origin) -> bool {
    let any = |origin: &Origin| origin.hosts.is_empty() || origin.hosts.contains(&HostPattern::Any);
    let same_host = (any(a) && any(b)) || a.hosts.iter().any(|host| b.hosts.contains(host));
    same_host && a.path_prefix == b.path_prefix
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::config) fn environment() -> Environment {
        Environment {
            node_name: "host1".into(),
            region: None,
            memory_bytes: 4 * GIB,
            cache_dir: "/var/cache/caje".into(),
            user_cache_dir: "/home/u/.cache/caje".into(),
            threads: 2,
            log_level: None,
            config_path: None,
            admin_host: "127.0.0.1".into(),
            admin_token: None,
            advertise_host: None,
            cluster_secret: None,
        }
    }

    fn load(text: &str) -> Result<Config, ConfigErrors> {
        parse(text, Path::new("caje.toml"), &environment())
    }

    /// `line:column reason = hint` of each error.
    fn errors(text: &str) -> Vec<String> {
        let Err(errors) = load(text) else {
            return Vec::new();
        };
        let line = |error: &ConfigError| {
            let place = error
                .position
                .as_ref()
                .map_or(String::new(), |at| format!("{}:{} ", at.line, at.column));
            let hint = error
                .hint
                .as_ref()
                .map_or(String::new(), |hint| format!(" = {hint}"));
            format!("{place}{}{hint}", error.reason)
        };
        errors.errors.iter().map(line).collect()
    }

    const ORIGIN: &str = "[[origin]]\nname = 'a'\nurl = 'http://a'\n";

    #[test]
    fn the_least_file_has_all_defaults() {
        let config = load(ORIGIN).unwrap();
        assert_eq!(config.node.listen[0].to_string(), "0.0.0.0:8080");
        assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9180");
        assert_eq!(config.store.memory_bytes, GIB);
        assert_eq!(config.node.name, "host1");
        assert!(config.node.cdn_id.starts_with("caje-"));
        let url = OriginUrl::parse("http://a").unwrap();
        assert_eq!(
            config,
            Config {
                origins: vec![default_origin("a", url)],
                ..defaults(&environment())
            }
        );
    }

    #[test]
    fn every_error_of_a_file_is_reported_with_its_place() {
        let text = "\
[node]
nmae = \"x\"
listen = [\"0.0.0.0:8080\", \"nowhere\"]
[limts]
[limits]
header_timeout = 4
max_uri = \"8k\"
region = \"lhr\"
[store]
block_size = \"300KiB\"
memory = \"64M\"
[[origin]]
name = \"a\"
url = \"example.com\"
idle_timeout = \"5s\"
[[origin]]
url = \"https://b\"
path_prefix = \"b\"
store_set_cookie = \"true\"
";
        assert_eq!(
            errors(text),
            [
                "2:1 there is no setting `nmae` in [node] = did you mean `name`?",
                "3:27 `nowhere` is no address: it needs a host and a port, such as `0.0.0.0:8080`",
                "4:2 there is no section `limts` = did you mean `limits`?",
                "6:18 this must be a duration, such as \"4s\", but is an integer = did you mean \"4s\"?",
                "7:11 `8k` is no size = did you mean \"8KiB\"?",
                "8:1 there is no setting `region` in [limits] = `region` belongs in [node]",
                "10:14 a block's size must be a power of two = did you mean \"256KiB\" or \"512KiB\"?",
                "11:10 `64M` is no size = did you mean \"64MiB\"?",
                "14:7 `example.com` is no origin: it needs a scheme, such as `https://example.com`",
                "15:16 an idle connection to an origin is kept for less than four seconds = many origins close at \
                 five, and a request on a closed connection fails",
                "16:1 this origin has no `name`",
                "18:15 a path prefix begins with `/` = did you mean \"/b\"?",
                "19:20 this must be true or false, but is a string = did you mean true, without quotes?",
            ]
        );
    }

    #[test]
    fn files_that_are_wrong_as_a_whole() {
        let check = |text: &str, expected: &[&str]| assert_eq!(errors(text), expected, "{text}");
        check(
            "",
            &["there is no origin = add [[origin]] with `name` and `url`"],
        );
        check(
            "[node]\n",
            &["1:1 there is no origin = add [[origin]] with `name` and `url`"],
        );
        check(
            &format!("{ORIGIN}[[node]]\n"),
            &["4:1 `node` is one section, not a list of them = write [node], once"],
        );
        check(
            "[origin]\nname = 'a'\nurl = 'http://a'\nurll = 1",
            &[
                "1:1 `origin` is a list of sections = write [[origin]], with two brackets",
                "4:1 there is no setting `urll` in [[origin]] = did you mean `url`?",
            ],
        );
        check(
            &format!("{ORIGIN}{ORIGIN}"),
            &[
                "4:1 origin `a` already answers for the same host and path = set `hosts` or `path_prefix` to tell them apart",
                "5:8 there is another origin called `a`",
            ],
        );
        check(
            &format!("{ORIGIN}[node]\nlisten=':81'\n[admin]\nlisten='127.0.0.1:81'"),
            &["7:8 clients already connect to 0.0.0.0:81 = give the admin listener another port"],
        );
        check(
            &format!("{ORIGIN}tls_insecure = true"),
            &[
                "4:16 `tls_insecure` has no meaning for an http origin = did you mean `url = \"https://a\"`?",
            ],
        );
        check(
            &format!("{ORIGIN}[store]\nmemory='1MiB'\nblock_size='4MiB'"),
            &["5:8 this is too little for `block_size`: four blocks, 16MiB, must fit"],
        );
    }

    #[test]
    fn all_errors_of_syntax_are_reported() {
        let found = errors("[node\nname = \n[store]\nsize = 1 2\nsize = 3");
        assert!(found.len() >= 3, "{found:?}");
        assert!(found[0].starts_with("1:"), "{found:?}");
        assert!(
            found.iter().all(|error| error.contains("this is no TOML")),
            "{found:?}"
        );
    }

    #[test]
    fn errors_show_the_line() {
        let shown = load("[limits]\nmax_ury = '8KiB' # é\n[[origin]]\nname='a'\nurl='http://a'")
            .unwrap_err();
        assert_eq!(
            shown.to_string(),
            "caje.toml:2:1: there is no setting `max_ury` in [limits]\n 2 | max_ury = '8KiB' # é\n   | ^^^^^^^\n   \
             = did you mean `max_uri`?\n1 error"
        );
    }

    /// Any prefix and any single change of the example is read without a panic.
    #[test]
    fn broken_files_are_refused_without_a_panic() {
        let example = example();
        for end in example.char_indices().map(|(at, _)| at).step_by(7) {
            if let Err(errors) = load(&example[..end]) {
                assert!(!errors.to_string().is_empty());
            }
        }
        for (at, _) in example.match_indices(['=', '[', '"', '\n']).step_by(2) {
            let changed = format!("{}é{}", &example[..at], &example[at + 1..]);
            if let Err(errors) = load(&changed) {
                assert!(!errors.to_string().is_empty());
            }
        }
    }

    #[test]
    fn tokens_of_operators() {
        let hash = TokenHash::of("caje_0123456789abcdef0123456789");
        let text =
            format!("{ORIGIN}[[admin.token]]\nname='ci'\nhash='{hash}'\nscopes=['read','purge']\n");
        let config = load(&text).unwrap();
        assert_eq!(config.admin.tokens[0].scopes, [Scope::Read, Scope::Purge]);
        let wrong = format!("{ORIGIN}[[admin.token]]\nname='ci'\nhsh='x'\nscopes=['reed']\n");
        assert_eq!(
            errors(&wrong),
            [
                "4:1 this token has no `hash` = make one with `caje-node token new --name NAME --scope read`",
                "6:1 there is no setting `hsh` in [[admin.token]] = did you mean `hash`?",
                "7:9 `reed` is none of read, purge, admin, node = did you mean \"read\"?",
            ]
        );
        let with = |token: &str| {
            let admin_token = Some(token::of_environment(token));
            let environment = Environment {
                admin_token,
                ..environment()
            };
            parse(ORIGIN, Path::new("caje.toml"), &environment)
        };
        assert!(
            with("secret")
                .unwrap_err()
                .to_string()
                .contains("CAJE_ADMIN_TOKEN")
        );
        let tokens = with("caje_0123456789abcdef0123456789")
            .unwrap()
            .admin
            .tokens;
        assert_eq!(tokens[0].hash, hash);
        assert!(!tokens[0].scopes.contains(&Scope::Node));
    }

    #[test]
    fn the_one_line_proxy() {
        let proxy = |listen, url, dir| Config::proxy_in(listen, url, dir, &environment());
        let config = proxy(":8080", "https://example.com", None).unwrap();
        assert_eq!(config.origins[0].host_header, HostHeader::Origin);
        assert_eq!(
            config.store.dir,
            Path::new("/home/u/.cache/caje/example.com-443")
        );
        let other = proxy(":8080", "http://127.0.0.1:3000", Some(Path::new("/d"))).unwrap();
        assert_eq!(other.origins[0].host_header, HostHeader::Client);
        assert_eq!(other.store.dir, Path::new("/d"));
        assert_ne!(config.node.cdn_id, other.node.cdn_id);
        assert!(proxy("8080", "http://a", None).is_err());
        assert!(proxy(":8080", "a:80", None).is_err());
    }

    #[test]
    fn what_needs_a_new_process() {
        let old = load(ORIGIN).unwrap();
        let new = load(&format!(
            "{ORIGIN}read_ahead='4MiB'\n[limits]\nlinger='1s'\n[admin]\nlisten=':1'\n[log]\nlevel='debug'"
        ))
        .unwrap();
        assert_eq!(old.needs_restart(&new), ["admin"]);
        assert_eq!(old.needs_restart(&old), [""; 0]);
    }

    fn docs(name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../docs")
            .join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn example() -> String {
        docs("caje.example.toml")
    }

    /// The example with the settings uncommented that it shows as `#key = value`.
    fn full_example() -> String {
        let uncomment = |line: &str| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with([' ', '#']) => format!("{setting}\n"),
            _ => format!("{line}\n"),
        };
        example().lines().map(uncomment).collect()
    }

    #[test]
    fn the_example_shows_the_defaults() {
        let config = load(&example()).unwrap_or_else(|errors| panic!("{errors}"));
        let origin = default_origin("main", OriginUrl::parse("https://www.example.com").unwrap());
        let expected = Config {
            origins: vec![origin],
            ..defaults(&environment())
        };
        assert_eq!(config, expected);
        // The only file that a setting names and that must be there.
        let full = full_example().replace("tls_ca = ", "#tls_ca = ");
        load(&full).unwrap_or_else(|errors| panic!("{errors}"));
    }

    #[test]
    fn every_key_is_documented_and_shown() {
        let page = docs("configuration.md");
        let documented: Vec<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .filter(|key| key.contains('.'))
            .collect();
        let keys = keys();
        for key in &keys {
            assert!(
                documented.contains(&key.as_str()),
                "docs/configuration.md does not tell of {key}"
            );
        }
        for key in documented {
            assert!(
                keys.iter().any(|known| known == key),
                "docs/configuration.md tells of {key}, which is not there"
            );
        }
        let example = full_example();
        let document = DeTable::parse(&example).unwrap();
        for key in &keys {
            let mut table = document.get_ref();
            let (sections, last) = key.rsplit_once('.').unwrap();
            for section in sections.split('.') {
                let value = table.get(section).unwrap().get_ref();
                let inner = value
                    .as_table()
                    .or_else(|| value.as_array()?.first()?.get_ref().as_table());
                table = inner.unwrap();
            }
            assert!(
                table.contains_key(last),
                "docs/caje.example.toml does not show {key}"
            );
        }
    }

    #[test]
    fn every_setting_of_the_example_is_explained_above_it() {
        let mut explained = false;
        for line in example().lines() {
            let is_setting =
                line.trim_start_matches('#')
                    .split_once(" = ")
                    .is_some_and(|(key, _)| {
                        !key.is_empty()
                            && key
                                .bytes()
                                .all(|byte| byte.is_ascii_lowercase() || b"_2".contains(&byte))
                    });
            assert!(!is_setting || explained, "{line}");
            explained = line.starts_with("# ");
        }
    }
}
