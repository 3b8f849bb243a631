//! The commands: each asks, and shows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use caje_admin_api::{self as api, Tier, Verdict, path};
use clap::{Args, Subcommand};

use crate::client::Client;
use crate::failure::{Code, Failure, plain};
use crate::follow::{Followed, follow};
use crate::http::encode;
use crate::output::{Format, bytes, parse_rate, parse_secs, seconds, table};
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
    Coverage {
        #[arg(long, default_value = "node", value_parser = ["node", "region", "origin", "prefix"])]
        by: String,
    },
    /// All nodes
    Nodes {
        #[command(subcommand)]
        command: Option<NodesCommand>,
    },
    /// Whether all is well
    Status,
    /// Counters since the start
    Stats(Stats),
    /// Empty a node's cache
    Clear(Clear),
    /// Settings
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Origins: how they answered, whether they answer now, whether they are asked
    Origins {
        #[command(subcommand)]
        command: Option<OriginsCommand>,
    },
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
        /// The node, if it is not the one that is asked; the same as --node
        #[arg(value_name = "NODE", conflicts_with_all = ["node", "region"])]
        name: Option<String>,
        /// Put it back
        #[arg(long)]
        undo: bool,
    },
    /// What stands in the way on the node's machine
    Doctor,
    /// All that nodes tell of themselves, without secrets, as JSON for who helps
    SupportDump,
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
    /// Ask no origin, which is what is done unless told otherwise
    #[arg(long, conflicts_with = "live")]
    dry_run: bool,
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
    /// Wait until all nodes have answered, which is what is done in any case
    #[arg(long)]
    wait: bool,
}

#[derive(Args)]
pub struct Stats {
    /// Once, which is what is done in any case
    #[arg(short = '1', long)]
    once: bool,
    /// Only the last while, such as 1h or 30m; a day at the most
    #[arg(long, value_name = "TIME", value_parser = parse_secs)]
    since: Option<u64>,
    /// Sums for each region, of all nodes unless told otherwise
    #[arg(long, default_value = "node", value_parser = ["node", "region"])]
    by: String,
}

#[derive(Subcommand)]
pub enum OriginsCommand {
    List,
    /// Ask an origin, or all, once
    Check {
        name: Option<String>,
        /// From all nodes
        #[arg(long)]
        all: bool,
    },
    /// Ask an origin no more, as if it could not be reached: what is stored is served, also stale where that is allowed
    Disable {
        name: String,
        /// By all nodes
        #[arg(long)]
        all: bool,
    },
    /// Ask an origin again
    Enable {
        name: String,
        /// By all nodes
        #[arg(long)]
        all: bool,
    },
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
    Show {
        /// Defaults included, which is what is done in any case
        #[arg(long)]
        effective: bool,
    },
    /// Check a file, and change nothing
    Validate { file: PathBuf },
    /// What a file, or the node's own, would change of what is in force
    Diff { file: Option<PathBuf> },
    /// Read the node's file again
    Reload,
    /// Print a file of settings to begin with
    Init,
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
        /// Then populate, so that what was damaged is fetched again at once
        #[arg(long, conflicts_with = "detach")]
        repair: bool,
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
        Command::Coverage { by } => coverage(&by, client),
        Command::Nodes { command } => match command.unwrap_or(NodesCommand::List) {
            NodesCommand::List => nodes(client),
            NodesCommand::Forget { name } => forget(&name, client),
        },
        Command::Status => status(client),
        Command::Stats(wanted) => stats(&wanted, client),
        Command::Clear(clear) => cleared(&clear, client),
        Command::Config { command } => config(command, client),
        Command::Origins { command } => match command.unwrap_or(OriginsCommand::List) {
            OriginsCommand::List => origins(client),
            OriginsCommand::Check { name, all } => checked(name, all, client),
            OriginsCommand::Disable { name, all } => {
                switched(path::ORIGIN_DISABLE, &name, all, client)
            }
            OriginsCommand::Enable { name, all } => {
                switched(path::ORIGIN_ENABLE, &name, all, client)
            }
        },
        Command::Storage { command } => match command {
            Some(StorageCommand::Verify { repair, detach }) => {
                let begun: Begun = client.post_text(path::STORAGE_VERIFY, "")?;
                let code = begun.go_on(detach, client)?;
                if !repair {
                    return Ok(code);
                }
                let ask = api::JobRequest {
                    kind: "populate".to_owned(),
                    ..api::JobRequest::default()
                };
                let begun: Begun = client.post(path::JOBS, &ask)?;
                // What was damaged and is here again is well.
                begun.go_on(false, client)
            }
            _ => storage(client),
        },
        Command::Jobs { command } => jobs(command, client),
        Command::Drain { name, undo } => drain(name.as_deref(), undo, client),
        Command::Doctor => doctor(client),
        Command::SupportDump => {
            let all: api::SupportDump = client.get(path::SUPPORT_DUMP)?;
            match client.format {
                Format::Table => print(&format!("{}\n", as_json(&all))),
                _ => client.show(&all, &all.nodes, String::new),
            }
            Ok(None)
        }
        Command::Healthcheck => {
            let answer = client.ask("GET", path::READYZ, None)?;
            let status = answer.status;
            let text = answer.text()?;
            if status == 503 {
                let what = format!("the node takes no traffic: {}", text.trim());
                let remedy =
                    "`caje status` says why; `caje drain --undo` puts it back into rotation";
                return Err(Failure::error(what, remedy));
            }
            if status != 200 {
                let what = format!("what answers is no node of caje: status {status}");
                return Err(Failure::error(
                    what,
                    "point --endpoint to a node's admin listener",
                ));
            }
            let mut parts = text.lines();
            let state = parts.next().unwrap_or_default();
            let parts = parts.filter_map(|line| line.split_once(": "));
            let all: BTreeMap<&str, &str> = [("state", state)].into_iter().chain(parts).collect();
            client.show(&all, &[&all], || plain(&text, true));
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
            object.hits.to_string(),
            object.status.to_string(),
            object.url.clone(),
        ]
    };
    let rows: Vec<_> = objects.iter().map(row).collect();
    table(
        &["STATE", "TTL", "SIZE", "HERE", "HITS", "STATUS", "URL"],
        &rows,
    )
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
        || ask.files.len() as u64 > MANY
        || !(ask.tags.is_empty() && ask.prefixes.is_empty() && ask.hosts.is_empty());
    if purge.dry_run || !client.yes && names_sets {
        let report = send_purge(&ask, client)?;
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
    let report = send_purge(&ask, client)?;
    Ok(show_purge(report, client))
}

/// URLs of one request, and their bytes: a node takes more of neither than about twice that.
const URLS_AT_ONCE: usize = 5000;
const URL_BYTES_AT_ONCE: usize = 512 << 10;

/// In several requests, where there are many URLs.
fn send_purge(ask: &api::PurgeRequest, client: &Client) -> Result<api::PurgeReport, Failure> {
    let mut left = ask.files.as_slice();
    let mut sum: Option<api::PurgeReport> = None;
    loop {
        let mut bytes = 0;
        let fits = |url: &&String| {
            bytes += url.len() + 4;
            bytes <= URL_BYTES_AT_ONCE
        };
        let count = left.iter().take(URLS_AT_ONCE).take_while(fits).count();
        let (files, rest) = left.split_at(count.max(1).min(left.len()));
        let part = match &sum {
            None => api::PurgeRequest {
                files: files.to_vec(),
                ..ask.clone()
            },
            Some(_) => api::PurgeRequest {
                files: files.to_vec(),
                soft: ask.soft,
                dry_run: ask.dry_run,
                ..api::PurgeRequest::default()
            },
        };
        let report: api::PurgeReport = client.post(path::PURGE, &part)?;
        match &mut sum {
            None => sum = Some(report),
            Some(sum) => {
                for node in report.nodes {
                    match sum.nodes.iter_mut().find(|known| known.node == node.node) {
                        Some(known) => {
                            known.matched += node.matched;
                            known.done &= node.done;
                            known.error = known.error.take().or(node.error);
                        }
                        None => sum.nodes.push(node),
                    }
                }
            }
        }
        left = rest;
        if let Some(sum) = sum.take_if(|_| left.is_empty()) {
            return Ok(sum);
        }
    }
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

/// Counters as rows: name and value.
fn counters(node: &api::NodeStats) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
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
    rows
}

fn stats(wanted: &Stats, client: &Client) -> Ended {
    let mut target = path::STATS.to_owned();
    let by_region = wanted.by == "region";
    let mut asked = Vec::new();
    asked.extend(wanted.since.map(|secs| format!("since_secs={secs}")));
    if by_region && client.node.is_none() && client.region.is_none() {
        asked.push("scope=cluster".to_owned());
    }
    if !asked.is_empty() {
        target = format!("{target}?{}", asked.join("&"));
    }
    let all: api::Stats = client.get(&target)?;
    if !by_region {
        client.show(&all, &all.nodes, || {
            let of_node = |node: &api::NodeStats| {
                let cells = counters(node).into_iter();
                let name = node.node.clone();
                cells.map(move |(counter, value)| vec![name.clone(), counter, value])
            };
            let rows: Vec<_> = all.nodes.iter().flat_map(of_node).collect();
            table(&["NODE", "COUNTER", "VALUE"], &rows)
        });
        return Ok(None);
    }
    let mut regions: BTreeMap<String, (u64, api::NodeStats)> = BTreeMap::new();
    for node in &all.nodes {
        let region = node.region.clone().unwrap_or_else(|| "-".to_owned());
        let (count, sum) = regions.entry(region).or_default();
        *count += 1;
        add(sum, node);
    }
    let row = |(region, (nodes, sum)): (&String, &(u64, api::NodeStats))| {
        let mut row = serde_json::to_value(sum).unwrap_or_default();
        if let Some(row) = row.as_object_mut() {
            row.remove("node");
            row.insert("region".to_owned(), region.as_str().into());
            row.insert("nodes".to_owned(), (*nodes).into());
        }
        row
    };
    let rows: Vec<serde_json::Value> = regions.iter().map(row).collect();
    let shown = serde_json::json!({"regions": rows, "unanswered": all.unanswered});
    client.show(&shown, &rows, || {
        let of_region = |(region, (_, sum)): (&String, &(u64, api::NodeStats))| {
            let region = region.clone();
            let cells = counters(sum).into_iter();
            cells.map(move |(counter, value)| vec![region.clone(), counter, value])
        };
        let rows: Vec<_> = regions.iter().flat_map(of_region).collect();
        table(&["REGION", "COUNTER", "VALUE"], &rows)
    });
    Ok(None)
}

/// Adds a node's counters to a sum.
fn add(sum: &mut api::NodeStats, node: &api::NodeStats) {
    let more = |sum: &mut BTreeMap<String, u64>, counts: &BTreeMap<String, u64>| {
        for (name, count) in counts {
            *sum.entry(name.clone()).or_default() += count;
        }
    };
    more(&mut sum.by_cache, &node.by_cache);
    more(&mut sum.by_class, &node.by_class);
    more(&mut sum.uncacheable, &node.uncacheable);
    sum.since_ms = match sum.since_ms {
        0 => node.since_ms,
        first => first.min(node.since_ms),
    };
    sum.at_ms = sum.at_ms.max(node.at_ms);
    // Of what each has not made up itself.
    let asked = |requests: u64, by_cache: &BTreeMap<String, u64>| {
        requests.saturating_sub(by_cache.get("synthetic").copied().unwrap_or(0)) as f64
    };
    let own = asked(node.requests, &node.by_cache);
    let hits = node.hit_ratio.unwrap_or(0.0) * own;
    sum.requests += node.requests;
    let whole = asked(sum.requests, &sum.by_cache);
    let before = sum.hit_ratio.unwrap_or(0.0) * (whole - own);
    sum.hit_ratio = (whole > 0.0).then(|| (before + hits) / whole);
    sum.response_bytes += node.response_bytes;
    sum.origin_requests += node.origin_requests;
    sum.origin_response_bytes += node.origin_response_bytes;
    sum.fills_started += node.fills_started;
    sum.fills_joined += node.fills_joined;
    sum.fills_failed += node.fills_failed;
    sum.evictions += node.evictions;
}

fn cleared(clear: &Clear, client: &Client) -> Ended {
    if clear.manifest && (client.node.is_some() || client.region.is_some()) {
        let what = "the manifest is all nodes', not one's";
        let remedy = "leave --node and --region out; `--disk` and `--memory` are a node's own";
        return Err(Failure::usage(what, remedy));
    }
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
    let target = over_all(path::JOBS.to_owned(), populate.all, client)?;
    let begun: Begun = client.post(&target, &ask)?;
    begun.go_on(populate.detach, client)
}

/// How much of something is whole, in percent.
fn share(whole: u64, all: u64) -> String {
    let share = (whole * 100).checked_div(all);
    share.map_or("-".to_owned(), |share| format!("{share} %"))
}

/// Of groups of resources, by node; or of the nodes of a region together.
fn grouped(by: &str, client: &Client) -> Ended {
    let target = match by {
        "region" => path::COVERAGE.to_owned(),
        by => format!("{}?by={by}", path::COVERAGE),
    };
    let all: api::Coverage = client.get(&target)?;
    let mut groups: BTreeMap<(String, String), api::CoverageGroup> = BTreeMap::new();
    for node in all.nodes.iter().filter(|node| node.error.is_none()) {
        let own = api::CoverageGroup {
            name: node.region.clone().unwrap_or_else(|| "-".to_owned()),
            resources: node.resources,
            present: node.present,
            stale: node.stale,
            partial: node.partial,
            missing: node.missing,
        };
        let (name, parts) = match by {
            "region" => (String::new(), vec![own]),
            _ => (node.node.clone(), node.groups.clone()),
        };
        for part in parts {
            let sum = groups.entry((name.clone(), part.name.clone())).or_default();
            sum.name = part.name;
            sum.resources += part.resources;
            sum.present += part.present;
            sum.stale += part.stale;
            sum.partial += part.partial;
            sum.missing += part.missing;
        }
    }
    let row = |((node, _), group): (&(String, String), &api::CoverageGroup)| {
        let mut row = serde_json::to_value(group).unwrap_or_default();
        if let Some(row) = row.as_object_mut() {
            let name = row.remove("name").unwrap_or_default();
            row.insert(by.to_owned(), name);
            if !node.is_empty() {
                row.insert("node".to_owned(), node.as_str().into());
            }
        }
        row
    };
    let rows: Vec<serde_json::Value> = groups.iter().map(row).collect();
    client.show(&serde_json::json!({"groups": rows}), &rows, || {
        let cells = |((node, _), group): (&(String, String), &api::CoverageGroup)| {
            let mut cells = vec![group.name.clone()];
            if by != "region" {
                cells.insert(0, node.clone());
            }
            cells.extend([
                group.resources.to_string(),
                share(group.present + group.stale, group.resources),
                group.present.to_string(),
                group.stale.to_string(),
                group.partial.to_string(),
                group.missing.to_string(),
            ]);
            cells
        };
        let rows: Vec<_> = groups.iter().map(cells).collect();
        let heading = by.to_uppercase();
        let mut names = vec![heading.as_str()];
        if by != "region" {
            names.insert(0, "NODE");
        }
        names.extend([
            "RESOURCES",
            "WHOLE",
            "PRESENT",
            "STALE",
            "PARTIAL",
            "MISSING",
        ]);
        table(&names, &rows)
    });
    let fails = all.nodes.iter().any(|node| node.error.is_some());
    Ok(fails.then_some(Code::Partial))
}

fn coverage(by: &str, client: &Client) -> Ended {
    if by != "node" {
        return grouped(by, client);
    }
    let all: api::Coverage = client.get(path::COVERAGE)?;
    client.show(&all, &all.nodes, || {
        let row = |node: &api::NodeCoverage| {
            let whole = node.present + node.stale;
            let blocked = node
                .blocked
                .iter()
                .map(|(reason, count)| format!("{reason}: {count}"));
            let blocked: Vec<String> = blocked.collect();
            vec![
                node.node.clone(),
                node.region.clone().unwrap_or_else(|| "-".into()),
                node.resources.to_string(),
                share(whole, node.resources),
                node.present.to_string(),
                node.stale.to_string(),
                node.partial.to_string(),
                node.missing.to_string(),
                node.extra.to_string(),
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
            "EXTRA",
            "WAITING",
            "LEFT ALONE",
        ];
        table(&names, &rows)
    });
    let fails = all.nodes.iter().any(|node| node.error.is_some());
    Ok(fails.then_some(Code::Partial))
}

fn settings_file(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|error| {
        let what = format!("{} cannot be read: {error}", file.display());
        Failure::usage(what, "give a file of settings")
    })
}

fn config(command: ConfigCommand, client: &Client) -> Ended {
    match command {
        ConfigCommand::Init => {
            print(include_str!("../../docs/caje.example.toml"));
            Ok(None)
        }
        ConfigCommand::Diff { file } => {
            let text = file.map(|file| settings_file(&file)).transpose()?;
            let all: api::SettingsDiff =
                client.post_text(path::CONFIG_DIFF, &text.unwrap_or_default())?;
            client.show(&all, &all.nodes, || {
                let mut rows = Vec::new();
                for node in &all.nodes {
                    let value = |value: &Option<serde_json::Value>| {
                        value.as_ref().map_or("-".to_owned(), ToString::to_string)
                    };
                    rows.extend(node.changes.iter().map(|change| {
                        let (now, then) = (value(&change.now), value(&change.then));
                        vec![node.node.clone(), change.key.clone(), now, then]
                    }));
                }
                match rows.is_empty() {
                    true => "the file says what is in force\n".to_owned(),
                    false => table(&["NODE", "SETTING", "IN FORCE", "IN THE FILE"], &rows),
                }
            });
            Ok(None)
        }
        ConfigCommand::Show { .. } => {
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
            let text = settings_file(&file)?;
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

/// About all nodes, if that is said; or those that --node and --region name.
fn over_all(target: String, all: bool, client: &Client) -> Result<String, Failure> {
    match (all, client.node.is_some() || client.region.is_some()) {
        (true, true) => {
            let what = "--all is all nodes, and --node or --region some of them";
            Err(Failure::usage(what, "leave one of them out"))
        }
        (true, false) => Ok(format!("{target}?scope=cluster")),
        (false, _) => Ok(target),
    }
}

fn switched(path: &str, name: &str, all: bool, client: &Client) -> Ended {
    let target = over_all(path.replace("{id}", &encode(name)), all, client)?;
    let all: api::Origins = client.post_text(&target, "")?;
    show_origins(&all, client);
    Ok(None)
}

fn checked(name: Option<String>, all: bool, client: &Client) -> Ended {
    let names = match name {
        Some(name) => vec![name],
        None => {
            let known: api::Origins = client.get(path::ORIGINS)?;
            let names = known.nodes.into_iter().flat_map(|node| node.origins);
            let names: BTreeSet<String> = names.map(|origin| origin.name).collect();
            names.into_iter().collect()
        }
    };
    let mut found = api::OriginChecks {
        nodes: Vec::new(),
        unanswered: Vec::new(),
    };
    for name in names {
        let target = path::ORIGIN_CHECK.replace("{id}", &encode(&name));
        let one: api::OriginChecks = client.post_text(&over_all(target, all, client)?, "")?;
        found.nodes.extend(one.nodes);
        found.unanswered = one.unanswered;
    }
    client.show(&found, &found.nodes, || {
        let row = |check: &api::OriginCheck| {
            vec![
                check.node.clone(),
                check.origin.clone(),
                check.url.clone(),
                check
                    .status
                    .map_or("-".to_owned(), |status| status.to_string()),
                format!("{} ms", check.took_ms),
                check.error.clone().unwrap_or_default(),
            ]
        };
        let rows: Vec<_> = found.nodes.iter().map(row).collect();
        table(&["NODE", "ORIGIN", "URL", "STATUS", "TOOK", ""], &rows)
    });
    let fails = found.nodes.iter().filter(|check| check.error.is_some());
    Ok(match fails.count() {
        0 => None,
        some if some < found.nodes.len() => Some(Code::Partial),
        _ => Some(Code::Error),
    })
}

fn origins(client: &Client) -> Ended {
    let all: api::Origins = client.get(path::ORIGINS)?;
    show_origins(&all, client);
    Ok(None)
}

fn show_origins(all: &api::Origins, client: &Client) {
    client.show(all, &all.nodes, || {
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
                    if origin.disabled { "off" } else { "on" }.to_owned(),
                    bytes(origin.response_bytes),
                    counts.collect::<Vec<_>>().join(", "),
                ]);
            }
        }
        table(
            &[
                "NODE", "ORIGIN", "URL", "FOR", "STATE", "RECEIVED", "ANSWERS",
            ],
            &rows,
        )
    });
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

fn as_json(all: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(all).unwrap_or_default()
}

fn drain(name: Option<&str>, undo: bool, client: &Client) -> Ended {
    let target = match name {
        Some(name) => format!("{}?node={}", path::DRAIN, encode(name)),
        None => path::DRAIN.to_owned(),
    };
    let all: api::Drain = match undo {
        true => client.delete(&target)?,
        false => client.post_text(&target, "")?,
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
