//! The origin as a program: for curl, for the demo and for benchmarks.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use slow_server::Origin;

/// An origin whose bodies are a function of their URL, with delays, gates, validators, counters,
/// HLS and lies.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Where to listen for plain HTTP; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where to listen for HTTPS (HTTP/2 and HTTP/1.1 by ALPN), with a certificate made at start.
    #[arg(long)]
    tls_listen: Option<SocketAddr>,
    /// Serve HTTP/2 with prior knowledge on the plain listener too.
    #[arg(long)]
    h2c: bool,
    /// Write the certificate authority of the HTTPS listener to this file, in PEM.
    #[arg(long)]
    ca_out: Option<PathBuf>,
    /// Keep the log of requests in memory (the last 100,000).
    #[arg(long)]
    keep_log: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut builder = Origin::builder()
        .listen(args.listen)
        .h2c(args.h2c)
        .keep_log(args.keep_log);
    if let Some(addr) = args.tls_listen {
        builder = builder.tls_listen(addr);
    }
    let origin = builder
        .start()
        .await
        .with_context(|| format!("listen on {}", args.listen))?;
    if let Some(path) = &args.ca_out {
        std::fs::write(path, origin.ca_pem())
            .with_context(|| format!("write {}", path.display()))?;
    }
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening {}", origin.url())?;
    if args.tls_listen.is_some() {
        writeln!(stdout, "listening {}", origin.tls_url())?;
    }
    stdout.flush()?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        ended = tokio::signal::ctrl_c() => ended?,
        _ = terminate.recv() => {}
    }
    origin.shutdown().await;
    Ok(())
}
