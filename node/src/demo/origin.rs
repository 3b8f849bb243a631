//! `slow_server` as a command of this executable, since `cargo run` builds no other.

use std::io::Write;
use std::net::SocketAddr;

use anyhow::Context;
use slow_server::Origin;
use tokio::signal::unix::{SignalKind, signal};

/// What `caje-node slow-server` takes.
#[derive(Debug, clap::Args)]
pub struct OriginArguments {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// End when standard input ends
    #[arg(long, hide = true)]
    exit_with_stdin: bool,
}

/// Serves until SIGINT, SIGTERM, or the end of standard input where that was asked for.
pub fn serve_origin(arguments: &OriginArguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the origin")?;
    runtime.block_on(async {
        let builder = Origin::builder().listen(arguments.listen).keep_log(false);
        let origin = builder
            .start()
            .await
            .with_context(|| format!("cannot listen on {}", arguments.listen))?;
        let mut stdout = std::io::stdout();
        writeln!(stdout, "listening {}", origin.url())?;
        stdout.flush()?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = super::parent_gone(arguments.exit_with_stdin) => {}
        }
        origin.shutdown().await;
        Ok(())
    })
}
