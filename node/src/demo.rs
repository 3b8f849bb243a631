//! Three nodes and an origin on this machine.
/// What `caje-node demo` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Play the tour, check every answer, and end
    #[arg(long)]
    pub script: bool,
}
pub fn run(_arguments: Arguments) -> anyhow::Result<()> { anyhow::bail!("not yet") }
