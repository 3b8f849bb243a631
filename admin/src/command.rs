//! The commands: each asks, and shows.

use std::path::PathBuf;

use caje_admin_api::{self as api, Tier, Verdict, path};
use clap::{Args, Subcommand};

use crate::client::Client;
use crate::failure::{Code, Failure, plain};
use crate::follow::{Followed, follow};
use crate::http::encode;
use crate::output::{Format, bytes, parse_rate, seconds, table};
use crate::{confirm, print};

/// More stored responses than these are not purged without a question.
const MANY: u64 = 1000;

#[derive(Subcommand)]
pub enum Command {
    /// List what is stored
    Ls(Ls),
    /// What the nodes hold of a URL
    Inspect {
        url: String,
        /// A request field, such as 'accept-encoding: gzip', to tell which variant it selects
        #[arg(long, value_name = "FIELD")]
        vary: Vec<String>,
    },
    /// Why a URL is cached, or is not: the decision step by step
    Why(Why),
    /// Remove stored responses, or make them stale
    Purge(Purge),
    /// Fetch what the manifest has and nodes lack
    Populate(Populate),
    /// What of the manifest the nodes hold
    Coverage,
    /// All nodes
    Nodes {
        #[command(subcommand)]
        command: Option<NodesCommand>,
    },
    /// Whether all is well
    Status,
    /// Counters since the start
    Stats,
    /// Empty a node's cache
    Clear(Clear),
    /// Settings
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Origins and how they answered
    Origins,
    /// Disk and memory
    Storage {
        #[command(subcommand)]
        command: Option<StorageCommand>,
    },
    /// Work that goes on by itself
    Jobs {
        #[command(subcommand)]
        command: Option<JobsCommand>,
    },
    /// Take a node out of rotation: it is not ready any more, and serves what still comes
    Drain {
        /// Put it back
        #[arg(long)]
        undo: bool,
    },
    /// What stands in the way on the node's machine
    Doctor,
    /// A shell's completions
    Completions { shell: clap_complete::Shell },
    /// End with 0 if the node takes traffic, for HEALTHCHECK
    Healthcheck,
    /// The description of the interface
    Openapi,
}

#[derive(Args)]
pub struct Ls {
    /// Only this host
    #[arg(long)]
    host: Option<String>,
    /// Only URLs that begin so, such as https://example.com/video/ or /video/
    #[arg(long)]
    prefix: Option<String>,
    /// Only with this tag
    #[arg(long)]
    tag: Option<String>,
    #[arg(long, value_parser = ["fresh", "stale", "missing"])]
    state: Option<String>,
    #[arg(long, value_parser = ["url", "size", "ttl", "used", "hits"])]
    sort: Option<String>,
    /// At the most; 0 for all
    #[arg(long, default_value = "100")]
    limit: usize,
}

#[derive(Args)]
pub struct Why {
    url: String,
    #[arg(short = 'X', long, default_value = "GET")]
    method: String,
    /// A field of the request
    #[arg(short = 'H', long = "header", value_name = "FIELD")]
    headers: Vec<String>,
    /// Ask the origin now, and judge its answer
    #[arg(long, conflicts_with_all = ["response", "status"])]
    live: bool,
    /// A field of the origin's answer, to be judged instead
    #[arg(long, value_name = "FIELD")]
    response: Vec<String>,
    /// The status of that answer
    #[arg(long, value_name = "STATUS")]
    status: Option<u16>,
}

#[derive(Args)]
pub struct Purge {
    #[arg(long = "url", value_name = "URL")]
    urls: Vec<String>,
    /// A tag
    #[arg(long = "key", alias = "tag", value_name = "TAG")]
    tags: Vec<String>,
    #[arg(long = "prefix", value_name = "PREFIX")]
    prefixes: Vec<String>,
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
    /// A file with a URL on each line; - is standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Everything
    #[arg(long)]
    all: bool,
    /// Make stale instead of removing
    #[arg(long)]
    soft: bool,
    /// Count what would be matched
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
pub struct Populate {
    /// On all nodes, instead of the one that is asked; --node and --region choose others
    #[arg(long)]
    all: bool,
    /// Only URLs that begin so, such as https://example.com/video/
    #[arg(long, conflicts_with_all = ["tag", "host"])]
    prefix: Option<String>,
    /// Only with this tag
    #[arg(long, conflicts_with = "host")]
    tag: Option<String>,
    /// Only this host
    #[arg(long)]
    host: Option<String>,
    /// Try again what has failed too often
    #[arg(long)]
    retry: bool,
    /// Count what is lacking, and fetch nothing
    #[arg(long)]
    dry_run: bool,
    /// Requests in flight of this run on each node; never more than populate.max_in_flight
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    concurrency: Option<u64>,
    /// Bytes per second of this run on each node, such as 50mb/s; never more than populate.max_rate
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    rate: Option<u64>,
    /// Follow it to its end, which is what is done unless told otherwise
    #[arg(long, conflicts_with = "detach")]
    watch: bool,
    /// Begin it, and do not wait for its end
    #[arg(long)]
    detach: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Clear {
    /// All stored responses
    #[arg(long)]
    disk: bool,
    /// What is on disk too
    #[arg(long)]
    memory: bool,
    /// What all nodes should hold
    #[arg(long)]
    manifest: bool,
}

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// The settings in force, as a file
    Show,
    /// Check a file, and change nothing
    Validate { file: PathBuf },
    /// Read the node's file again
    Reload,
}

#[derive(Subcommand)]
pub enum NodesCommand {
    List,
    /// Take a node that is gone for good out of the manifest and the node table, for all nodes
    Forget {
        name: String,
    },
}

#[derive(Subcommand)]
pub enum StorageCommand {
    Status,
    /// Compare the checksums of all stored blocks; damaged ones are dropped
    Verify {
        /// Begin it, and do not wait for its end
        #[arg(long)]
        detach: bool,
    },
}

#[derive(Subcommand)]
pub enum JobsCommand {
    List,
    Show {
        id: String,
    },
    /// Follow jobs to their end
    Watch {
        #[arg(required = true)]
        ids: Vec<String>,
    },
    Cancel {
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Go on with those that were cancelled
    Resume {
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

type Ended = Result<Option<Code>, Failure>;

pub fn run(command: Command, client: &Client) -> Ended {
    match command {
        Command::Ls(ls) => list(&ls, client),
        Command::Inspect { url, vary } => inspect(&url, &vary, client),
        Command::Why(why) => explain(why, client),
        Command::Purge(purge) => purged(purge, client),
        Command::Populate(populate) => populated(populate, client),
        Command::Coverage => coverage(client),
        Command::Nodes { command } => match command.unwrap_or(NodesCommand::List) {
            NodesCommand::List => nodes(client),
            NodesCommand::Forget { name } => forget(&name, client),
        },
        Command::Status => status(client),
        Command::Stats => stats(client),
        Command::Clear(clear) => cleared(&clear, client),
        Command::Config { command } => config(command, client),
        Command::Origins => origins(client),
        Command::Storage { command } => match command {
            Some(StorageCommand::Verify { detach }) => {
                let begun: Begun = client.post_text(path::STORAGE_VERIFY, "")?;
                begun.go_on(detach, client)
            }
            _ => storage(client),
        },
        Command::Jobs { command } => jobs(command, client),
        Command::Drain { undo } => drain(undo, client),
        Command::Doctor => doctor(client),
        Command::Healthcheck => {
            let text = client.send("GET", path::READYZ, None)?.text()?;
            print(&text);
            Ok(None)
        }
        Command::Openapi => {
            let document: serde_json::Value = client.get(path::OPENAPI)?;
            print(&format!("{document:#}\n"));
            Ok(None)
        }
        // Answered without a node.
        Command::Completions { .. } => Ok(None),
    }
}

fn list(ls: &Ls, client: &Client) -> Ended {
    const PAGE: usize = 1000;
    let mut fixed = String::new();
    for (name, value) in [
        ("host", &ls.host),
        ("prefix", &ls.prefix),
        ("tag", &ls.tag),
        ("state", &ls.state),
        ("sort", &ls.sort),
    ] {
        if let Some(value) = value {
            fixed.push_str(&format!("&{name}={}", encode(value)));
        }
    }
    let mut left = if ls.limit == 0 { usize::MAX } else { ls.limit };
    let mut cursor = String::new();
    let mut all = api::Objects {
        objects: Vec::new(),
        next: None,
    };
    // Page by page: rows for programs go out as they come.
    loop {
        let target = format!("{}?limit={}{fixed}{cursor}", path::OBJECTS, left.min(PAGE));
        let mut page: api::Objects = client.get(&target)?;
        left = left.saturating_sub(page.objects.len());
        let next = page
            .next
            .take()
            .filter(|_| left > 0 && !page.objects.is_empty());
        match client.format {
            Format::Ndjson => client.show(&page, &page.objects, String::new),
            _ => all.objects.append(&mut page.objects),
        }
        match next {
            Some(next) => cursor = format!("&cursor={}", encode(&next)),
            None => break,
        }
    }
    if client.format != Format::Ndjson {
        client.show(&all, &all.objects, || objects_table(&all.objects));
    }
    Ok(None)
}

fn objects_table(objects: &[api::Object]) -> String {
    let row = |object: &api::Object| {
        let size = object.size_bytes.map_or("?".to_owned(), bytes);
        let here = match object.size_bytes {
            Some(size) if size == object.present_bytes => "all".to_owned(),
            Some(size) if size > 0 => format!("{} %", object.present_bytes * 100 / size),
            _ => bytes(object.present_bytes),
        };
        vec![
            object.state.as_str().to_owned(),
            seconds(object.ttl_secs),
            size,
            here,
            object.status.to_string(),
            object.url.clone(),
        ]
    };
    let rows: Vec<_> = objects.iter().map(row).collect();
    table(&["STATE", "TTL", "SIZE", "HERE", "STATUS", "URL"], &rows)
}

fn inspect(url: &str, vary: &[String], client: &Client) -> Ended {
    let mut target = format!("{}?url={}", path::INSPECT, encode(url));
    for field in vary {
        target.push_str(&format!("&vary={}", encode(field)));
    }
    let all: api::Inspection = client.get(&target)?;
    client.show(&all, &all.nodes, || inspection_text(&all));
    let found = all.nodes.iter().any(|node| !node.variants.is_empty());
    Ok((!found).then_some(Code::NotFound))
}

fn inspection_text(all: &api::Inspection) -> String {
    let mut out = format!("{}\n", plain(&all.url, false));
    for node in &all.nodes {
        let region = node
            .region
            .as_ref()
            .map_or(String::new(), |region| format!(" ({region})"));
        out.push_str(&format!("\n{}{region}\n", plain(&node.node, false)));
        if node.variants.is_empty() {
            out.push_str("  nothing is stored\n");
        }
        if let Some(hint) = &node.hint {
            out.push_str(&format!("  try: {}\n", plain(hint, false)));
        }
        for variant in &node.variants {
            let object = &variant.object;
            let size = object.size_bytes.map_or("?".to_owned(), bytes);
            let mark = if variant.selected {
                "selected by these fields"
            } else {
                "another variant"
            };
            out.push_str(&format!(
                "  {} {}, {} of {size}, age {}, ttl {} ({mark})\n",
                object.status,
                object.state.as_str(),
                bytes(object.present_bytes),
                seconds(object.age_secs as i64),
                seconds(object.ttl_secs),
            ));
            if !object.tags.is_empty() {
                out.push_str(&format!(
                    "    tags: {}\n",
                    plain(&object.tags.join(" "), false)
                ));
            }
            for (name, value) in &variant.headers {
                out.push_str(&format!(
                    "    {}: {}\n",
                    plain(name, false),
                    plain(value, false)
                ));
            }
        }
    }
    out
}

/// `name: value`.
fn field(text: &str) -> Result<(String, String), Failure> {
    let (name, value) = text.split_once(':').ok_or_else(|| {
        let what = format!("`{text}` is no field");
        Failure::usage(what, "write it as 'name: value'")
    })?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn explain(why: Why, client: &Client) -> Ended {
    let fields = |list: &[String]| {
        list.iter()
            .map(|text| field(text))
            .collect::<Result<Vec<_>, _>>()
    };
    let has_response = why.status.is_some() || !why.response.is_empty();
    let response = match has_response {
        false => None,
        true => Some(api::ExplainResponse {
            status: why.status.unwrap_or(200),
            headers: fields(&why.response)?,
        }),
    };
    let ask = api::ExplainRequest {
        headers: fields(&why.headers)?,
        url: why.url,
        method: Some(why.method),
        response,
        live: why.live,
    };
    let found: api::Explanation = client.post(path::EXPLAIN, &ask)?;
    client.show(&found, &found.steps, || explanation_text(&found));
    Ok(None)
}

fn explanation_text(found: &api::Explanation) -> String {
    let verdict = match found.verdict {
        Verdict::Hit | Verdict::Stale | Verdict::Store => "cached",
        Verdict::Validate => "cached, and validated",
        Verdict::Fetch => "not known yet",
        Verdict::NotStored | Verdict::Bypass | Verdict::Refused => "not cached",
    };
    let mut out = format!(
        "{}\n{verdict}: {}\n\n",
        plain(&found.url, false),
        plain(&found.summary, false)
    );
    for (at, step) in found.steps.iter().enumerate() {
        let mark = if step.decides { '>' } else { ' ' };
        out.push_str(&format!(
            "{mark} {}. {}\n",
            at + 1,
            plain(&step.question, false)
        ));
        out.push_str(&format!("     {}\n", plain(&step.answer, false)));
        let rule = [&step.rule, &step.rfc]
            .into_iter()
            .flatten()
            .map(|text| plain(text, false));
        let rule: Vec<String> = rule.collect();
        if !rule.is_empty() {
            out.push_str(&format!("     rule: {}\n", rule.join(", ")));
        }
        if let Some(hint) = &step.hint {
            out.push_str(&format!("     try: {}\n", plain(hint, false)));
        }
    }
    out
}

fn purged(purge: Purge, client: &Client) -> Ended {
    if client.node.is_some() || client.region.is_some() {
        let what = "a purge is about all nodes";
        let remedy =
            "leave --node and --region out; `caje clear --disk --node NAME` empties one node";
        return Err(Failure::usage(what, remedy));
    }
    let mut ask = api::PurgeRequest {
        files: purge.urls,
        tags: purge.tags,
        prefixes: purge.prefixes,
        hosts: purge.hosts,
        purge_everything: purge.all,
        soft: purge.soft,
        dry_run: true,
    };
    if let Some(file) = &purge.file {
        let text = match file.as_os_str() == "-" {
            true => std::io::read_to_string(std::io::stdin()),
            false => std::fs::read_to_string(file),
        };
        let text = text.map_err(|error| {
            let what = format!("{} cannot be read: {error}", file.display());
            Failure::usage(what, "give a file with a URL on each line")
        })?;
        let urls = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        ask.files.extend(urls.map(str::to_owned));
    }
    let counted =
        |report: &api::PurgeReport| report.nodes.iter().map(|node| node.matched).sum::<u64>();
    let names_sets = ask.purge_everything
        || !(ask.tags.is_empty() && ask.prefixes.is_empty() && ask.hosts.is_empty());
    if purge.dry_run || !client.yes && names_sets {
        let report: api::PurgeReport = client.post(path::PURGE, &ask)?;
        let matched = counted(&report);
        if purge.dry_run {
            return Ok(show_purge(report, client));
        }
        if ask.purge_everything || matched > MANY {
            confirm(
                &format!("This purges {matched} stored responses"),
                client.yes,
            )?;
        }
    }
    ask.dry_run = false;
    let report: api::PurgeReport = client.post(path::PURGE, &ask)?;
    Ok(show_purge(report, client))
}

fn show_purge(report: api::PurgeReport, client: &Client) -> Option<Code> {
    client.show(&report, &report.nodes, || {
        let row = |node: &api::NodePurge| {
            let done = match (&node.error, node.done, report.dry_run) {
                (Some(error), ..) => error.clone(),
                (None, _, true) => "not done: a dry run".to_owned(),
                (None, true, _) => "done".to_owned(),
                (None, false, _) => "not yet".to_owned(),
            };
            vec![node.node.clone(), node.matched.to_string(), done]
        };
        let rows: Vec<_> = report.nodes.iter().map(row).collect();
        table(&["NODE", "MATCHED", "STATE"], &rows)
    });
    let done = report.nodes.iter().filter(|node| node.done).count();
    match done {
        all if all == report.nodes.len() => None,
        0 => Some(Code::Error),
        _ => Some(Code::Partial),
    }
}

fn nodes(client: &Client) -> Ended {
    let all: api::Nodes = client.get(path::NODES)?;
    client.show(&all, &all.nodes, || {
        nodes_table(&all.nodes, &all.unanswered)
    });
    Ok(None)
}

fn forget(name: &str, client: &Client) -> Ended {
    let shown = plain(name, false);
    let what = format!(
        "This takes {shown}, which must be gone for good, out of the node table, and what it alone lists out of \
         the manifest, for all nodes"
    );
    confirm(&what, client.yes)?;
    let gone: api::Forgotten = client.delete(&path::NODE.replace("{id}", &encode(name)))?;
    client.show(&gone, &[&gone], || {
        let why = gone.silence.as_deref().unwrap_or("nobody answers for it");
        let mut out = format!(
            "{shown} is forgotten ({}); it had the last word of {} resources\n",
            plain(why, false),
            gone.resources
        );
        for finding in &gone.findings {
            out.push_str(&format!("  {}\n", plain(finding, false)));
        }
        out
    });
    Ok(None)
}

fn nodes_table(nodes: &[api::NodeInfo], unanswered: &[api::Unanswered]) -> String {
    let row = |node: &api::NodeInfo| {
        let others = match (node.caught_up, node.behind_ms) {
            (_, Some(behind)) => format!("{} old", seconds((behind / 1000) as i64)),
            (true, None) => "read".to_owned(),
            (false, None) => "not read".to_owned(),
        };
        vec![
            node.node.clone(),
            node.region.clone().unwrap_or_else(|| "-".into()),
            node.state.clone(),
            node.role.clone().unwrap_or_else(|| "-".into()),
            others,
            node.version.clone(),
            seconds(node.uptime_secs as i64),
            node.objects.to_string(),
            format!(
                "{} of {}",
                bytes(node.disk_bytes),
                bytes(node.disk_limit_bytes)
            ),
            format!(
                "{} of {}",
                bytes(node.memory_bytes),
                bytes(node.memory_limit_bytes)
            ),
            node.connections.to_string(),
            node.listen.join(" "),
        ]
    };
    let mut rows: Vec<_> = nodes.iter().map(row).collect();
    rows.extend(unanswered.iter().map(|silent| {
        let mut row = vec![silent.node.clone(), "-".to_owned(), "silent".to_owned()];
        let heard = silent.heard_ms.map(|ms| seconds(since(ms)));
        row.push(heard.map_or("never heard of".to_owned(), |ago| {
            format!("heard of {ago} ago")
        }));
        row
    }));
    let names = [
        "NODE",
        "REGION",
        "STATE",
        "ROLE",
        "OTHERS' ROWS",
        "VERSION",
        "UP",
        "OBJECTS",
        "DISK",
        "MEMORY",
        "CONNECTIONS",
        "LISTEN",
    ];
    table(&names, &rows)
}

/// Seconds since a time in milliseconds since 1970.
fn since(ms: u64) -> i64 {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    now.as_secs() as i64 - (ms / 1000) as i64
}

fn status(client: &Client) -> Ended {
    let all: api::Status = client.get(path::STATUS)?;
    client.show(&all, &all.nodes, || {
        let findings = all
            .findings
            .iter()
            .map(|finding| format!("  {}\n", plain(finding, false)));
        let findings: String = findings.collect();
        format!(
            "{}\n{findings}\n{}",
            plain(&all.state, false),
            nodes_table(&all.nodes, &all.unanswered)
        )
    });
    Ok(None)
}

fn stats(client: &Client) -> Ended {
    let all: api::Stats = client.get(path::STATS)?;
    client.show(&all, &all.nodes, || {
        let mut rows = Vec::new();
        for node in &all.nodes {
            let mut row = |name: &str, value: String| {
                rows.push(vec![node.node.clone(), name.to_owned(), value])
            };
            row("requests", node.requests.to_string());
            let ratio = node
                .hit_ratio
                .map(|ratio| format!("{:.1} %", ratio * 100.0));
            row("hit ratio", ratio.unwrap_or_else(|| "-".to_owned()));
            for (cache, count) in &node.by_cache {
                row(&format!("cache {cache}"), count.to_string());
            }
            for (class, count) in &node.by_class {
                row(&format!("status {class}"), count.to_string());
            }
            for (reason, count) in &node.uncacheable {
                row(&format!("not stored: {reason}"), count.to_string());
            }
            row("sent to clients", bytes(node.response_bytes));
            row("requests to origins", node.origin_requests.to_string());
            row("received by fills", bytes(node.origin_response_bytes));
            row("fills started", node.fills_started.to_string());
            row("fills joined", node.fills_joined.to_string());
            row("fills failed", node.fills_failed.to_string());
            row("evictions", node.evictions.to_string());
        }
        table(&["NODE", "COUNTER", "VALUE"], &rows)
    });
    Ok(None)
}

fn cleared(clear: &Clear, client: &Client) -> Ended {
    if clear.manifest {
        confirm("This empties the manifest of all nodes", client.yes)?;
        let report: api::ManifestClear = client.delete(path::MANIFEST)?;
        client.show(&report, &[&report], || {
            format!(
                "{} resources were taken out, for all nodes\n",
                report.removed
            )
        });
        return Ok(None);
    }
    let all: api::Nodes = client.get(path::NODES)?;
    let [node] = all.nodes.as_slice() else {
        let what = "there are several nodes, and it is not said which";
        return Err(Failure::usage(
            what,
            "add --node NAME; `caje nodes` lists them",
        ));
    };
    let (tier, what) = match clear.disk {
        true => (
            "disk",
            format!(
                "This removes all {} stored responses of {}",
                node.objects, node.node
            ),
        ),
        false => (
            "memory",
            format!("This empties the memory of {}", node.node),
        ),
    };
    confirm(&what, client.yes)?;
    let target = path::NODE_CACHE.replace("{id}", &encode(&node.node));
    let report: api::ClearReport = client.delete(&format!("{target}?tier={tier}"))?;
    client.show(&report, &report.nodes, || {
        let row = |node: &api::NodeClear| {
            let tier = if node.tier == Tier::Disk {
                "disk"
            } else {
                "memory"
            };
            vec![
                node.node.clone(),
                tier.to_owned(),
                node.objects.to_string(),
                bytes(node.bytes),
            ]
        };
        let rows: Vec<_> = report.nodes.iter().map(row).collect();
        table(&["NODE", "TIER", "OBJECTS", "BYTES"], &rows)
    });
    Ok(None)
}

/// Begun on one node, or on several.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Begun {
    Several(api::Jobs),
    One(Box<api::Job>),
}

impl Begun {
    fn jobs(&self) -> &[api::Job] {
        match self {
            Begun::Several(all) => &all.jobs,
            Begun::One(job) => std::slice::from_ref(job),
        }
    }

    /// Tells of it, and follows it unless it is left alone.
    fn go_on(self, detach: bool, client: &Client) -> Ended {
        let ids: Vec<String> = self.jobs().iter().map(|job| job.id.clone()).collect();
        let (list, next) = (ids.join(" "), "next: caje jobs watch");
        if detach {
            let shown = || {
                let table = jobs_table(self.jobs());
                format!("{table}\n{next} {list}, caje jobs cancel {list}\n")
            };
            match &self {
                Begun::Several(all) => client.show(all, &all.jobs, shown),
                Begun::One(job) => client.show(job, &[job], shown),
            }
            return Ok(None);
        }
        if client.format == Format::Table {
            eprintln!("{next} {list}, if this ends before they do");
        }
        watch(&ids, matches!(self, Begun::Several(_)), client)
    }
}

fn populated(populate: Populate, client: &Client) -> Ended {
    if populate.all && (client.node.is_some() || client.region.is_some()) {
        let what = "--all is all nodes, and --node or --region some of them";
        return Err(Failure::usage(what, "leave one of them out"));
    }
    let ask = api::JobRequest {
        kind: "populate".to_owned(),
        prefix: populate.prefix,
        host: populate.host,
        tag: populate.tag,
        retry: populate.retry,
        dry_run: populate.dry_run,
        concurrency: populate.concurrency,
        rate_bytes: populate.rate,
    };
    let target = match populate.all {
        true => format!("{}?scope=cluster", path::JOBS),
        false => path::JOBS.to_owned(),
    };
    let begun: Begun = client.post(&target, &ask)?;
    begun.go_on(populate.detach, client)
}

fn coverage(client: &Client) -> Ended {
    let all: api::Coverage = client.get(path::COVERAGE)?;
    client.show(&all, &all.nodes, || {
        let row = |node: &api::NodeCoverage| {
            let whole = node.present + node.stale;
            let share = (whole * 100).checked_div(node.resources);
            let blocked = node
                .blocked
                .iter()
                .map(|(reason, count)| format!("{reason}: {count}"));
            let blocked: Vec<String> = blocked.collect();
            vec![
                node.node.clone(),
                node.region.clone().unwrap_or_else(|| "-".into()),
                node.resources.to_string(),
                share.map_or("-".to_owned(), |share| format!("{share} %")),
                node.present.to_string(),
                node.stale.to_string(),
                node.partial.to_string(),
                node.missing.to_string(),
                node.waiting.to_string(),
                match &node.error {
                    Some(error) => error.clone(),
                    None => blocked.join(", "),
                },
            ]
        };
        let rows: Vec<_> = all.nodes.iter().map(row).collect();
        let names = [
            "NODE",
            "REGION",
            "RESOURCES",
            "WHOLE",
            "PRESENT",
            "STALE",
            "PARTIAL",
            "MISSING",
            "WAITING",
            "LEFT ALONE",
        ];
        table(&names, &rows)
    });
    let fails = all.nodes.iter().any(|node| node.error.is_some());
    Ok(fails.then_some(Code::Partial))
}

fn config(command: ConfigCommand, client: &Client) -> Ended {
    match command {
        ConfigCommand::Show => {
            let all: api::Settings = client.get(path::CONFIG)?;
            client.show(&all, &all.nodes, || {
                let text = |node: &api::NodeSettings| {
                    format!(
                        "# {}\n{}",
                        plain(&node.node, false),
                        plain(&node.toml, true)
                    )
                };
                all.nodes.iter().map(text).collect::<Vec<_>>().join("\n")
            });
            Ok(None)
        }
        ConfigCommand::Validate { file } => {
            let text = std::fs::read_to_string(&file).map_err(|error| {
                let what = format!("{} cannot be read: {error}", file.display());
                Failure::usage(what, "give a file of settings")
            })?;
            let found: api::Validation = client.post_text(path::CONFIG_VALIDATE, &text)?;
            client.show(&found, &[&found], || match &found.errors {
                None => format!("{}: ok\n", file.display()),
                Some(errors) => plain(errors, true) + "\n",
            });
            Ok((!found.valid).then_some(Code::Usage))
        }
        ConfigCommand::Reload => {
            let all: api::Reload = client.post_text(path::CONFIG_RELOAD, "")?;
            client.show(&all, &all.nodes, || {
                let row = |node: &api::NodeReload| {
                    let restart = match node.needs_restart.is_empty() {
                        true => "all of it is in force".to_owned(),
                        false => format!("restart the node for: {}", node.needs_restart.join(", ")),
                    };
                    vec![node.node.clone(), restart]
                };
                let rows: Vec<_> = all.nodes.iter().map(row).collect();
                table(&["NODE", "RELOADED"], &rows)
            });
            Ok(None)
        }
    }
}

fn origins(client: &Client) -> Ended {
    let all: api::Origins = client.get(path::ORIGINS)?;
    client.show(&all, &all.nodes, || {
        let mut rows = Vec::new();
        for node in &all.nodes {
            for origin in &node.origins {
                let counts = origin
                    .requests
                    .iter()
                    .map(|(outcome, count)| format!("{outcome} {count}"));
                let hosts = match origin.hosts.is_empty() {
                    true => "any".to_owned(),
                    false => origin.hosts.join(" "),
                };
                rows.push(vec![
                    node.node.clone(),
                    origin.name.clone(),
                    origin.url.clone(),
                    format!("{hosts} {}", origin.path_prefix),
                    bytes(origin.response_bytes),
                    counts.collect::<Vec<_>>().join(", "),
                ]);
            }
        }
        table(
            &["NODE", "ORIGIN", "URL", "FOR", "RECEIVED", "ANSWERS"],
            &rows,
        )
    });
    Ok(None)
}

fn storage(client: &Client) -> Ended {
    let all: api::Storage = client.get(path::STORAGE)?;
    client.show(&all, &all.nodes, || {
        let row = |node: &api::NodeStorage| {
            let disk = match &node.reason {
                Some(reason) => format!("{}: {reason}", node.disk),
                None => node.disk.clone(),
            };
            let errors = node.checksum_errors + node.read_errors + node.write_errors;
            vec![
                node.node.clone(),
                disk,
                node.io.clone(),
                node.objects.to_string(),
                format!(
                    "{} of {}",
                    bytes(node.disk_bytes),
                    bytes(node.disk_limit_bytes)
                ),
                format!(
                    "{} of {}",
                    bytes(node.memory_bytes),
                    bytes(node.memory_limit_bytes)
                ),
                bytes(node.unwritten_bytes),
                node.evictions.to_string(),
                errors.to_string(),
                node.dir.clone(),
            ]
        };
        let rows: Vec<_> = all.nodes.iter().map(row).collect();
        let names = [
            "NODE",
            "STATE",
            "IO",
            "OBJECTS",
            "DISK",
            "MEMORY",
            "UNWRITTEN",
            "EVICTIONS",
            "ERRORS",
            "DIR",
        ];
        table(&names, &rows)
    });
    Ok(None)
}

fn jobs(command: Option<JobsCommand>, client: &Client) -> Ended {
    let of = |id: &str| path::JOB.replace("{id}", &encode(id));
    let show = |all: Vec<api::Job>| match all.as_slice() {
        [job] => client.show(job, &[job], || jobs_table(&all)),
        _ => client.show(&all, &all, || jobs_table(&all)),
    };
    match command.unwrap_or(JobsCommand::List) {
        JobsCommand::List => {
            let target = match (&client.node, &client.region) {
                (None, None) => format!("{}?scope=cluster", path::JOBS),
                _ => path::JOBS.to_owned(),
            };
            let all: api::Jobs = client.get(&target)?;
            client.show(&all, &all.jobs, || jobs_table(&all.jobs));
        }
        JobsCommand::Show { id } => show(vec![client.get(&of(&id))?]),
        JobsCommand::Cancel { ids } => {
            let cancelled = ids.iter().map(|id| client.delete(&of(id)));
            show(cancelled.collect::<Result<_, _>>()?);
        }
        JobsCommand::Resume { ids } => {
            let target = |id: &String| path::JOB_RESUME.replace("{id}", &encode(id));
            let resumed = ids.iter().map(|id| client.post_text(&target(id), ""));
            show(resumed.collect::<Result<_, _>>()?);
        }
        JobsCommand::Watch { ids } => return watch(&ids, ids.len() > 1, client),
    }
    Ok(None)
}

fn jobs_table(jobs: &[api::Job]) -> String {
    let row = |job: &api::Job| {
        vec![
            job.id.clone(),
            job.node.clone(),
            job.state.as_str().to_owned(),
            format!("{} of {}", job.done, job.total),
            job.failed.to_string(),
            bytes(job.bytes),
            job.message.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = jobs.iter().map(row).collect();
    table(
        &["JOB", "NODE", "STATE", "DONE", "FAILED", "BYTES", ""],
        &rows,
    )
}

fn watch(ids: &[String], are_several: bool, client: &Client) -> Ended {
    let followed = follow(ids, client)?;
    let code = followed.code();
    let Followed { jobs, .. } = followed;
    if client.format != Format::Ndjson {
        match jobs.as_slice() {
            [job] if !are_several => client.show(job, &[job], || jobs_table(&jobs)),
            _ => {
                let unanswered = client.unanswered.borrow().clone();
                let all = api::Jobs { jobs, unanswered };
                client.show(&all, &all.jobs, || jobs_table(&all.jobs));
            }
        }
    }
    Ok(code)
}

fn drain(undo: bool, client: &Client) -> Ended {
    let all: api::Drain = match undo {
        true => client.delete(path::DRAIN)?,
        false => client.post_text(path::DRAIN, "")?,
    };
    client.show(&all, &all.nodes, || {
        let row = |node: &api::NodeDrain| {
            let state = if node.draining {
                "out of rotation"
            } else {
                "in rotation"
            };
            vec![
                node.node.clone(),
                state.to_owned(),
                node.connections.to_string(),
            ]
        };
        let rows: Vec<_> = all.nodes.iter().map(row).collect();
        table(&["NODE", "STATE", "CONNECTIONS"], &rows)
    });
    Ok(None)
}

fn doctor(client: &Client) -> Ended {
    let all: api::Doctor = client.get(path::DOCTOR)?;
    client.show(&all, &all.nodes, || {
        let mut rows = Vec::new();
        for node in &all.nodes {
            for check in &node.checks {
                let row = |status: &str, name: &str, text: String| {
                    vec![node.node.clone(), status.to_owned(), name.to_owned(), text]
                };
                rows.push(row(&check.status, &check.name, check.finding.clone()));
                if let Some(remedy) = &check.remedy {
                    rows.push(row("", "", format!("try: {remedy}")));
                }
            }
        }
        table(&["NODE", "", "CHECK", "FINDING"], &rows)
    });
    let fails = all.nodes.iter().any(|node| node.worst == "fail");
    Ok(fails.then_some(Code::Error))
}
