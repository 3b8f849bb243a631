//! `caje`: the operator's command. Asks a node's admin listener, and shows what it answers.
//!
//! Exit codes: 0 done, 1 error, 2 bad usage or settings, 3 some nodes did it and others did not, 4 not found.

mod client;
mod command;
mod failure;
mod follow;
mod http;
mod output;

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::client::Client;
use crate::command::Command;
use crate::failure::{Code, Failure, plain};
use crate::http::Endpoint;
use crate::output::Format;

#[derive(Parser)]
#[command(
    name = "caje",
    version,
    about = "See and steer caje's nodes",
    propagate_version = true
)]
pub struct Arguments {
    /// A node's admin listener
    #[arg(
        long,
        global = true,
        env = "CAJE_ENDPOINT",
        default_value = "http://127.0.0.1:9180",
        value_name = "URL"
    )]
    endpoint: String,
    /// What lets you in; better given as CAJE_TOKEN, which no list of processes shows
    #[arg(
        long,
        global = true,
        env = "CAJE_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    token: Option<String>,
    /// Print JSON: short for -o json
    #[arg(short, long, global = true)]
    json: bool,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: Format,
    /// Only this node
    #[arg(long, global = true, value_name = "NAME")]
    node: Option<String>,
    /// Only the nodes of this region
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "node")]
    region: Option<String>,
    /// Ask nothing
    #[arg(short, long, global = true)]
    yes: bool,
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.code as u8)
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    if let Command::Completions { shell } = arguments.command {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Arguments::command(), "caje", &mut text);
        print(&String::from_utf8_lossy(&text));
        return Ok(ExitCode::SUCCESS);
    }
    let client = Client {
        endpoint: Endpoint::parse(&arguments.endpoint)?,
        token: arguments.token.filter(|token| !token.is_empty()),
        node: arguments.node,
        region: arguments.region,
        unanswered: RefCell::default(),
        format: if arguments.json {
            Format::Json
        } else {
            arguments.output
        },
        yes: arguments.yes,
    };
    let code = command::run(arguments.command, &client)?;
    let unanswered = client.unanswered.take();
    for silent in &unanswered {
        let (node, error) = (plain(&silent.node, false), plain(&silent.error, false));
        eprintln!("{node} has not answered: {error}");
    }
    let code = match code {
        // Who is silent may have it.
        None | Some(Code::NotFound) if !unanswered.is_empty() => Some(Code::Partial),
        code => code,
    };
    Ok(code.map_or(ExitCode::SUCCESS, |code| ExitCode::from(code as u8)))
}

/// Whoever closes the pipe has seen enough.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Asks before what cannot be undone.
pub fn confirm(what: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        let what = format!("{what}, and nobody is here to be asked");
        return Err(Failure::usage(what, "add --yes if that is meant"));
    }
    eprint!("{what}. Go on? [y/N] ");
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    match (read, answer.trim()) {
        (Ok(_), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::new(
            Code::Error,
            "nothing was done",
            "answer y, or add --yes",
        )),
    }
}
