//! `caje-node`: runs a node, checks its configuration, examines its machine, plays the demo.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use caje_node::config::{Config, Environment, Overrides, TokenHash};
use caje_node::manifest::Trouble;
use caje_node::node::ReloadError;
use caje_node::telemetry::diagnostics;
use caje_node::{Ender, Node, StartError, demo, doctor};
use clap::{Parser, Subcommand};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Bad configuration or usage: starting again will not help.
const EXIT_USAGE: u8 = 2;

#[derive(Parser)]
#[command(
    name = "caje-node",
    version,
    about = "A CDN node: a shared HTTP cache that streams while it fills"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node from a configuration file
    Run {
        #[command(flatten)]
        config: ConfigFile,
        /// Drain and end when standard input ends
        #[arg(long, hide = true)]
        exit_with_stdin: bool,
    },
    /// Run a node in front of one origin, without a file
    Proxy {
        /// Where to serve clients, such as 127.0.0.1:8080 or :8080
        #[arg(long, value_name = "ADDR")]
        listen: String,
        /// Where the content comes from, such as http://127.0.0.1:3000
        #[arg(long, value_name = "URL")]
        origin: String,
        /// Where bodies are kept; by default a folder of its own in the user's cache directory
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
        /// Where metrics and health are served; port 0 picks one
        #[arg(long, value_name = "ADDR")]
        admin: Option<String>,
        /// How much memory to use for bodies, such as 256MiB
        #[arg(long, value_name = "SIZE")]
        memory: Option<String>,
        /// The node's name in logs
        #[arg(long)]
        name: Option<String>,
        /// Where the node is; Cache-Status shows it
        #[arg(long, value_name = "NAME")]
        region: Option<String>,
        /// Fetch what `Link: rel=next` names before it is asked for
        #[arg(long)]
        prefetch: bool,
        /// Write no access log
        #[arg(long)]
        no_access_log: bool,
    },
    /// Check a configuration file: every error with its line
    Check {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Examine this machine: io_uring, disk, limits, origins
    Doctor {
        #[command(flatten)]
        config: OptionalConfigFile,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a token for an operator
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Three nodes and an origin on this machine, to try everything
    Demo(demo::Arguments),
    /// The demo's origin alone
    #[command(hide = true)]
    SlowServer(demo::OriginArguments),
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Print a new token, and the settings that let it in. It is shown this once
    New {
        /// Whose it is; logs of the node show it
        #[arg(long)]
        name: String,
        /// What it allows; several times for several
        #[arg(long, value_name = "SCOPE", required = true, value_delimiter = ',', value_parser = ["read", "purge", "admin", "node"])]
        scope: Vec<String>,
    },
}

#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration file [default: $CAJE_CONFIG, or caje.toml]
    #[arg(short, long = "config", value_name = "FILE")]
    path: Option<PathBuf>,
}

#[derive(clap::Args)]
struct OptionalConfigFile {
    /// The configuration file
    #[arg(short, long = "config", value_name = "FILE")]
    path: Option<PathBuf>,
}

impl ConfigFile {
    fn path(&self) -> PathBuf {
        let from_environment = || Environment::of_process().config_path;
        self.path
            .clone()
            .or_else(from_environment)
            .unwrap_or_else(|| PathBuf::from("caje.toml"))
    }
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run {
            config,
            exit_with_stdin,
        } => {
            let path = config.path();
            // Before the file is read: what changes after that is seen.
            let changes = Changes::watch(Some(&path));
            match Config::load(&path) {
                Ok(config) => run(config, changes, exit_with_stdin),
                Err(errors) => usage_error(&errors),
            }
        }
        Command::Proxy {
            listen,
            origin,
            data_dir,
            admin,
            memory,
            name,
            region,
            prefetch,
            no_access_log,
        } => {
            let overrides = Overrides {
                admin: admin.as_deref(),
                memory: memory.as_deref(),
                name: name.as_deref(),
                region: region.as_deref(),
                prefetch,
                no_access_log,
            };
            let config = Config::proxy(&listen, &origin, data_dir.as_deref())
                .and_then(|config| config.with_overrides(&overrides));
            match config {
                Ok(config) => run(config, Changes::watch(None), false),
                Err(error) => usage_error(&error),
            }
        }
        Command::Check { config } => check(&config.path()),
        Command::Doctor { config, json } => examine(config.path.as_deref(), json),
        Command::Token {
            command: TokenCommand::New { name, scope },
        } => exit_code(print_token(&name, &scope)),
        Command::Demo(arguments) => match demo::run(arguments) {
            Err(error) if error.is::<demo::Missing>() => usage_error(&format!("error: {error}")),
            result => exit_code(result),
        },
        Command::SlowServer(arguments) => exit_code(demo::serve_origin(&arguments)),
    }
}

/// 256 random bits, and the hash of what is printed of them.
fn print_token(name: &str, scopes: &[String]) -> anyhow::Result<()> {
    let mut random = [0; 32];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let filled = provider.secure_random.fill(&mut random);
    filled.map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let token = format!("caje_{digits}");
    let hash = TokenHash::of(&token);
    println!("{token}\n");
    println!("[[admin.token]]\nname = {name:?}\nhash = \"{hash}\"\nscopes = {scopes:?}");
    Ok(())
}

fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage_error(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(EXIT_USAGE)
}

fn check(path: &Path) -> ExitCode {
    match Config::load(path) {
        Ok(config) => {
            println!("{}: ok, {} origin(s)", path.display(), config.origins.len());
            ExitCode::SUCCESS
        }
        Err(errors) => usage_error(&errors),
    }
}

fn examine(path: Option<&Path>, json: bool) -> ExitCode {
    let config = match path {
        Some(path) => Config::load(path),
        None => Ok(Config::for_doctor()),
    };
    let config = match config {
        Ok(config) => config,
        Err(errors) => return usage_error(&errors),
    };
    let checks = doctor::examine(&config);
    match json {
        true => println!("{}", doctor::json(&checks)),
        false => print!("{}", doctor::table(&checks)),
    }
    match doctor::worst(&checks) {
        doctor::Status::Fail => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn run(config: Config, changes: anyhow::Result<Changes>, exit_with_stdin: bool) -> ExitCode {
    let mut changes = match changes {
        Ok(changes) => changes,
        Err(error) => return exit_code(Err(error)),
    };
    let level = match diagnostics::start(&config.log.level) {
        Ok(level) => level,
        Err(error) => return usage_error(&error),
    };
    raise_descriptor_limit();
    let node = match Node::start(config) {
        Ok(node) => node,
        Err(error) => {
            eprintln!("error: {error}");
            return match error {
                StartError::Origin(_) => ExitCode::from(EXIT_USAGE),
                _ => ExitCode::FAILURE,
            };
        }
    };
    // Who has read the addresses may signal.
    let mut end = match changes.watch_for_end() {
        Ok(end) => end,
        Err(error) => return exit_code(Err(error)),
    };
    if let Some(path) = &changes.path {
        node.read_from(path, level);
    }
    for address in node.addresses() {
        println!("listening http://{address}");
    }
    println!("admin http://{}", node.admin_address());
    let trouble = changes.supervise(&node, &mut end, exit_with_stdin);
    tracing::info!("draining");
    end_at_once_when_told_again(node.ender());
    node.drain();
    match trouble {
        Some(_) => ExitCode::FAILURE,
        None => ExitCode::SUCCESS,
    }
}

/// What makes a node read its settings again, seen from the moment this is made: SIGHUP, and a change
/// of the file.
struct Changes {
    runtime: tokio::runtime::Runtime,
    path: Option<PathBuf>,
    file: Option<FileWatch>,
    hangup: Signal,
}

/// Until it is made these signals end the process at once, as they should while a start hangs.
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl Changes {
    fn watch(path: Option<&Path>) -> anyhow::Result<Changes> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting the control loop")?;
        let hangup = {
            let _entered = runtime.enter();
            signal(SignalKind::hangup()).context("watching for SIGHUP")?
        };
        Ok(Changes {
            runtime,
            path: path.map(Path::to_owned),
            file: path.map(FileWatch::new).transpose()?,
            hangup,
        })
    }

    fn watch_for_end(&self) -> anyhow::Result<EndSignals> {
        let _entered = self.runtime.enter();
        Ok(EndSignals {
            terminate: signal(SignalKind::terminate()).context("watching for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("watching for SIGINT")?,
        })
    }

    /// Reloads at each change, until the node is to end. Returns the trouble that ends it, if it is one.
    fn supervise(
        &mut self,
        node: &Node,
        end: &mut EndSignals,
        exit_with_stdin: bool,
    ) -> Option<Trouble> {
        self.runtime.block_on(async {
            let mut stuck = std::pin::pin!(node.stuck());
            let mut parent_gone = std::pin::pin!(demo::parent_gone(exit_with_stdin));
            loop {
                tokio::select! {
                    _ = end.terminate.recv() => return None,
                    _ = end.interrupt.recv() => return None,
                    () = &mut parent_gone => return None,
                    trouble = &mut stuck => {
                        tracing::error!(%trouble, "the manifest is stuck: this node ends");
                        return Some(trouble);
                    }
                    _ = self.hangup.recv() => {
                        node.reopen_log();
                        reload(node);
                    }
                    () = FileWatch::changed(&mut self.file) => reload(node),
                }
            }
        })
    }
}

/// How long a process that was told twice to end may take to flush its index.
const LAST_FLUSH: Duration = Duration::from_secs(5);

/// A drain takes as long as it may; who signals twice will not wait for it. Returns when a second
/// signal will be heard.
fn end_at_once_when_told_again(ender: Ender) {
    let (listens, has_begun) = std::sync::mpsc::sync_channel(1);
    let wait = move || -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            // It is waited for.
            let _ = listens.send(());
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::warn!("told again: ending at once");
            ender.end_now();
            // The process ends before that, unless its disk hangs.
            tokio::time::sleep(LAST_FLUSH).await;
            tracing::error!("the index could not be flushed in time");
            std::process::exit(1)
        })
    };
    // Without it a drain is only as long as configured.
    let _ = std::thread::Builder::new()
        .name("second-signal".into())
        .spawn(wait);
    let _ = has_begun.recv();
}

/// A bad file changes nothing, and says why.
fn reload(node: &Node) {
    match node.reload_file() {
        Ok(sections) if sections.is_empty() => tracing::info!("configuration reloaded"),
        Ok(sections) => tracing::warn!(
            ?sections,
            "configuration reloaded; these sections need a restart"
        ),
        // The one-line proxy has no file, and is told to open its log again.
        Err(ReloadError::NoFile) => {}
        Err(error) => tracing::error!("the configuration was not reloaded:\n{error}"),
    }
}

/// Tells when a file was written or replaced. The folder is watched: editors replace files.
struct FileWatch(mpsc::Receiver<()>);

impl FileWatch {
    fn new(path: &Path) -> anyhow::Result<FileWatch> {
        let path = std::path::absolute(path).context("finding the configuration file")?;
        let folder = path
            .parent()
            .context("finding the configuration file's folder")?;
        let name = path.file_name().map(ToOwned::to_owned);
        let inotify =
            Inotify::init(InitFlags::IN_CLOEXEC).context("watching the configuration file")?;
        let events = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
        inotify
            .add_watch(folder, events)
            .context("watching the configuration file's folder")?;
        // One change that nobody has looked at yet stands for all later ones.
        let (tell, told) = mpsc::channel(1);
        // Sleeps in the kernel for as long as the process lives.
        let watch = move || {
            while let Ok(events) = inotify.read_events() {
                let is_ours = events.iter().any(|event| event.name == name);
                if is_ours && tell.try_send(()).is_err() && tell.is_closed() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("config-watch".into())
            .spawn(watch)
            .context("starting a thread")?;
        Ok(FileWatch(told))
    }

    /// Never completes without a file to watch.
    async fn changed(watch: &mut Option<FileWatch>) {
        let told = match watch {
            Some(FileWatch(told)) => told.recv().await,
            None => None,
        };
        if told.is_none() {
            std::future::pending().await
        }
    }
}

/// Every client and every origin is a descriptor: as many as the system allows.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}
