//! Settings as they are in force, for operators: a file that says the same, without secrets.

use std::time::Duration;

use toml::{Table, Value};

use super::value::show_size;
use super::{
    AccessFormat, Admin, Cluster, Config, Engine, Glob, HostHeader, Http2, Io, Limits, Log,
    Manifest, Node, Origin, Populate, Record, Scheme, Store, prefetch,
};
use crate::peer::Mode;

impl Config {
    /// All settings, defaults included, in the form of a file. Hashes of tokens are left out.
    pub fn to_table(&self) -> Table {
        let origins = self
            .origins
            .iter()
            .map(|origin| Value::Table(of_origin(origin)));
        let mut table = Table::new();
        table.insert("node".into(), of_node(&self.node).into());
        table.insert("admin".into(), of_admin(&self.admin).into());
        table.insert("store".into(), of_store(&self.store).into());
        table.insert("manifest".into(), of_manifest(&self.manifest).into());
        table.insert("cluster".into(), of_cluster(&self.cluster).into());
        table.insert("populate".into(), of_populate(&self.populate).into());
        table.insert("limits".into(), of_limits(&self.limits).into());
        table.insert("log".into(), of_log(&self.log).into());
        table.insert("origin".into(), Value::Array(origins.collect()));
        table
    }
}

/// Settings that have no value are left out, as in a file.
fn table<const N: usize>(settings: [(&str, Option<Value>); N]) -> Table {
    settings
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect()
}

fn text(text: impl ToString) -> Option<Value> {
    Some(Value::String(text.to_string()))
}

fn texts<T: ToString>(list: &[T]) -> Option<Value> {
    Some(
        list.iter()
            .map(|item| Value::String(item.to_string()))
            .collect::<Vec<_>>()
            .into(),
    )
}

fn number(number: usize) -> Option<Value> {
    Some(Value::Integer(i64::try_from(number).unwrap_or(i64::MAX)))
}

fn size(bytes: u64) -> Option<Value> {
    text(show_size(bytes))
}

fn switch(on: bool) -> Option<Value> {
    Some(Value::Boolean(on))
}

/// The largest unit that tells it exactly.
fn duration(duration: Duration) -> Option<Value> {
    let micros = duration.as_micros();
    let units = [
        (86_400_000_000, "d"),
        (3_600_000_000, "h"),
        (60_000_000, "m"),
        (1_000_000, "s"),
        (1000, "ms"),
    ];
    let unit = units
        .into_iter()
        .find(|(length, _)| micros > 0 && micros.is_multiple_of(*length));
    match unit {
        Some((length, unit)) => text(format!("{}{unit}", micros / length)),
        None if micros == 0 => text("0s"),
        None => text(format!("{micros}us")),
    }
}

fn of_node(node: &Node) -> Table {
    table([
        ("name", text(&node.name)),
        ("region", node.region.as_ref().and_then(text)),
        ("threads", number(node.threads.get())),
        ("listen", texts(&node.listen)),
        ("pseudonym", text(&node.pseudonym)),
        ("cdn_id", text(&node.cdn_id)),
        ("trust_forwarded", texts(&node.trust_forwarded)),
    ])
}

fn of_admin(admin: &Admin) -> Table {
    let token = |token: &super::Token| {
        let scopes: Vec<&str> = token.scopes.iter().map(|scope| scope.as_str()).collect();
        Value::Table(table([
            ("name", text(&token.name)),
            ("scopes", texts(&scopes)),
        ]))
    };
    let tokens: Vec<Value> = admin.tokens.iter().map(token).collect();
    table([
        ("listen", text(&admin.listen)),
        ("public", switch(admin.public)),
        ("hosts", texts(&admin.hosts)),
        ("token", (!tokens.is_empty()).then(|| tokens.into())),
    ])
}

fn of_store(store: &Store) -> Table {
    let io = match store.io {
        Io::Auto => "auto",
        Io::Uring => "uring",
        Io::Blocking => "blocking",
    };
    table([
        ("dir", text(store.dir.display())),
        ("size", size(store.size_bytes)),
        ("memory", size(store.memory_bytes)),
        ("block_size", size(store.block_size_bytes.into())),
        ("max_objects", number(store.max_objects)),
        ("io", text(io)),
    ])
}

fn of_manifest(manifest: &Manifest) -> Table {
    let engine = match manifest.engine {
        Engine::Local => "local",
        Engine::LiteFs => "litefs",
    };
    table([
        ("engine", text(engine)),
        (
            "dir",
            manifest.dir.as_ref().and_then(|dir| text(dir.display())),
        ),
        ("litefs", text(&manifest.litefs)),
        ("node", manifest.node.as_ref().and_then(text)),
        ("max_rows", number(manifest.max_rows)),
        ("exit_after", manifest.exit_after.and_then(duration)),
    ])
}

/// Without the secret.
fn of_cluster(cluster: &Cluster) -> Table {
    table([
        ("advertise", cluster.advertise.as_ref().and_then(text)),
        (
            "advertise_admin",
            cluster.advertise_admin.as_ref().and_then(text),
        ),
        ("peers", texts(&cluster.peers)),
        ("allow", texts(&cluster.allow)),
        ("timeout", duration(cluster.timeout)),
    ])
}

fn of_populate(populate: &Populate) -> Table {
    let limits = &populate.limits;
    let default = ("default".to_owned(), limits.default);
    let by_kind = limits.by_kind.clone().into_iter().chain([default]);
    let limits: Table = by_kind
        .map(|(kind, limit)| (kind, Value::Integer(limit.into())))
        .collect();
    table([
        ("enabled", switch(populate.enabled)),
        ("max_in_flight", number(populate.max_in_flight)),
        (
            "max_in_flight_per_origin",
            number(populate.max_in_flight_per_origin),
        ),
        ("max_rate", size(populate.max_rate.unwrap_or(0))),
        ("retry_after", duration(populate.retry_after)),
        ("backoff", duration(populate.backoff.0)),
        ("backoff_max", duration(populate.backoff.1)),
        ("limits", Some(limits.into())),
    ])
}

fn of_prefetch(rules: &prefetch::Rules) -> Value {
    let confinement = &rules.confinement;
    Value::Table(table([
        ("links", texts(&rules.links)),
        ("cmcd", switch(rules.cmcd)),
        ("cmsd", switch(rules.cmsd)),
        (
            "query",
            text(match rules.query {
                prefetch::Query::Skip => "skip",
                prefetch::Query::Keep => "keep",
                prefetch::Query::Copy => "copy",
            }),
        ),
        ("depth", Some(Value::Integer(rules.depth.into()))),
        ("prefix", confinement.prefix.as_ref().and_then(text)),
        ("hosts", texts(&confinement.allowed)),
        ("max_in_flight", number(rules.max_in_flight)),
        ("max_rate", size(rules.max_rate.unwrap_or(0))),
        ("max_size", size(rules.max_size)),
        ("max_waste", Some(Value::Integer(rules.max_waste.into()))),
    ]))
}

fn of_record(record: &Record) -> Option<Value> {
    let Some(hits) = record.min_hits else {
        return text("off");
    };
    let paths: Vec<&str> = record.paths.iter().map(Glob::as_str).collect();
    Some(Value::Table(table([
        ("min_hits", Some(Value::Integer(hits.into()))),
        ("min_bytes", size(record.min_bytes)),
        ("paths", texts(&paths)),
    ])))
}

fn of_limits(limits: &Limits) -> Table {
    table([
        ("first_byte_timeout", duration(limits.first_byte_timeout)),
        ("header_timeout", duration(limits.header_timeout)),
        ("idle_timeout", duration(limits.idle_timeout)),
        ("request_timeout", duration(limits.request_timeout)),
        ("write_timeout", duration(limits.write_timeout)),
        ("body_rate", size(limits.body_rate)),
        ("max_drained_body", size(limits.max_drained_body)),
        ("max_header_bytes", size(limits.max_header_bytes as u64)),
        ("max_headers", number(limits.max_headers)),
        ("max_uri", size(limits.max_uri_bytes as u64)),
        ("max_connections", number(limits.max_connections)),
        (
            "max_connections_per_address",
            number(limits.max_connections_per_address),
        ),
        ("max_streams", number(limits.max_streams as usize)),
        ("max_ranges", number(limits.max_ranges)),
        ("linger", duration(limits.linger)),
        ("drain_timeout", duration(limits.drain_timeout)),
    ])
}

fn of_log(log: &Log) -> Table {
    let access = match log.access {
        AccessFormat::Combined => "combined",
        AccessFormat::Json => "json",
        AccessFormat::Off => "off",
    };
    table([
        ("access", text(access)),
        (
            "path",
            log.path.as_ref().and_then(|path| text(path.display())),
        ),
        ("level", text(&log.level)),
    ])
}

fn of_origin(origin: &Origin) -> Table {
    let http2 = match origin.http2 {
        Http2::Off => "off",
        Http2::Auto => "auto",
        Http2::PriorKnowledge => "prior_knowledge",
    };
    let host_header = match &origin.host_header {
        HostHeader::Client => "client",
        HostHeader::Origin => "origin",
        HostHeader::Literal(host) => host,
    };
    let rules = &origin.rules;
    table([
        ("name", text(&origin.name)),
        ("url", text(&origin.url)),
        ("hosts", texts(&origin.hosts)),
        ("path_prefix", text(&origin.path_prefix)),
        ("host_header", text(host_header)),
        ("http2", text(http2)),
        ("connect_timeout", duration(origin.connect_timeout)),
        ("first_byte_timeout", duration(origin.first_byte_timeout)),
        ("read_timeout", duration(origin.read_timeout)),
        ("write_timeout", duration(origin.write_timeout)),
        ("idle_timeout", duration(origin.idle_timeout)),
        ("queue_timeout", duration(origin.queue_timeout)),
        ("max_connections", number(origin.max_connections)),
        ("max_header_bytes", size(origin.max_header_bytes as u64)),
        ("max_interim", number(origin.max_interim)),
        // Where there is no TLS the file would be refused for it.
        (
            "tls_insecure",
            switch(origin.tls_insecure).filter(|_| origin.url.scheme == Scheme::Https),
        ),
        (
            "tls_ca",
            origin.tls_ca.as_ref().and_then(|path| text(path.display())),
        ),
        ("tls_name", origin.tls_name.as_ref().and_then(text)),
        ("default_ttl", rules.default_ttl.and_then(duration)),
        ("heuristic", switch(rules.heuristic)),
        ("heuristic_max", duration(rules.heuristic_max)),
        (
            "stale_while_revalidate",
            rules.stale_while_revalidate.and_then(duration),
        ),
        ("stale_if_error", rules.stale_if_error.and_then(duration)),
        (
            "serve_stale_when_unreachable",
            switch(rules.serve_stale_when_unreachable),
        ),
        ("store_set_cookie", switch(rules.store_set_cookie)),
        ("store_authorized", switch(rules.store_authorized)),
        (
            "honor_client_cache_control",
            switch(rules.honor_client_cache_control),
        ),
        ("read_ahead", size(origin.read_ahead_bytes)),
        ("merge_gap", size(origin.merge_gap_bytes)),
        ("record", of_record(&origin.record)),
        ("prefetch", origin.prefetch.as_ref().map(of_prefetch)),
        (
            "peer",
            text(match origin.peer {
                Mode::Off => "off",
                Mode::Nearest => "nearest",
                Mode::Shield => "shield",
            }),
        ),
        ("peer_timeout", duration(origin.peer_timeout)),
    ])
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    /// What is shown is what is read: every setting is there, with the value it has.
    #[test]
    fn what_is_shown_can_be_read_back() {
        let environment = schema::tests::environment();
        let text = "[node]\nregion='lhr'\n[limits]\nlinger='1500ms'\n[log]\npath='/l'\n[[origin]]\nname='a'\n\
                    url='https://a.example'\nhosts=['a.example','*.b.example']\nhost_header='origin'\n\
                    default_ttl='90m'\ntls_name='c'\nread_ahead='3MiB'\n\
                    record={min_hits=3,paths=['/a/**']}\npeer='shield'\n\
                    [cluster]\npeers=['http://10.0.0.2:9180']\nallow=['10.0.0.0/8']\n\
                    [populate]\nmax_rate='5MiB'\n[populate.limits]\n418=7\ntls=1\n";
        let config = Config::parse(text, "a".as_ref(), &environment).unwrap();
        let shown = toml::to_string(&config.to_table()).unwrap();
        let again = Config::parse(&shown, "b".as_ref(), &environment)
            .unwrap_or_else(|errors| panic!("{errors}\n{shown}"));
        assert_eq!(config, again);
    }

    #[test]
    fn hashes_are_not_shown() {
        let hash = super::super::TokenHash::of("caje_0123456789abcdef0123456789");
        let text = format!(
            "[[admin.token]]\nname='ci'\nhash='{hash}'\nscopes='read'\n[[origin]]\nname='a'\nurl='http://a'\n"
        );
        let config = Config::parse(&text, "a".as_ref(), &schema::tests::environment()).unwrap();
        let shown = toml::to_string(&config.to_table()).unwrap();
        assert!(shown.contains("ci") && !shown.contains("blake3"), "{shown}");
    }
}
