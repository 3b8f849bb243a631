//! The demo: an origin and three nodes on this machine, to look at or to play by itself.
//!
//! ```text
//!  caje-node demo ─┬─ caje-node slow-server        the origin
//!                  ├─ caje-node run (cdg) ─┐
//!                  ├─ caje-node run (lhr) ─┼─► the origin
//!                  └─ caje-node run (ewr) ─┘
//! ```
//!
//! The nodes share a folder, in which each says what every node should hold; with `--litefs` each has its own mount
//! instead, and LiteFS, three more children, brings to all what one has written.
//!
//! Kept true here:
//! - Nothing outlives the demo. Each child holds the reading end of a pipe and ends when nobody holds
//!   the writing end any more: also when the demo itself is killed.
//! - What the demo shows it has got through the doors that everybody has: HTTP, `/metrics`, files of
//!   settings. What the tour checks it checks with a client and a body function that the node knows
//!   nothing of.

mod child;
mod client;
mod litefs;
mod numbers;
mod origin;
mod screen;
mod stage;
mod stop;
mod tour;

use std::path::PathBuf;

pub use child::parent_gone;
pub use litefs::Missing;
pub use origin::{OriginArguments, serve_origin};

use litefs::Installed;
use screen::Screen;
use stage::Stage;
use stop::Stop;

use crate::config::Programs;

/// What `caje-node demo` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Play the tour, check every answer, and end: 0 if all was right
    #[arg(long)]
    script: bool,
    /// Keep state and logs in this folder; another demo with it begins with what is cached there
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Let the nodes share through three real LiteFS mounts; needs root, /dev/fuse, fusermount3 and LiteFS
    #[arg(long)]
    litefs: bool,
}

/// Runs the demo to its end: that of the tour, or Ctrl-C.
///
/// # Errors
/// [`Missing`], before anything was started, where this machine cannot do what was asked for.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let installed = match arguments.litefs {
        true => Some(Installed::find(&Programs::of_process())?),
        false => None,
    };
    let stop = Stop::on_signals()?;
    let screen = Screen::of_stdout();
    let stage = Stage::set(arguments.keep.as_deref(), installed.as_ref(), &stop)?;
    match arguments.script {
        true => tour::play(stage, &screen, &stop),
        false => show(stage, &screen, &stop),
    }
}

/// Shows what there is, and then what happens, until Ctrl-C.
fn show(mut stage: Stage, screen: &Screen, stop: &Stop) -> anyhow::Result<()> {
    screen.introduce(&stage);
    let mut lines = screen.live();
    loop {
        lines.show(&mut stage);
        if stop.wait(screen::REFRESH) {
            break;
        }
    }
    lines.finish();
    let kept = stage.kept();
    stage.end()?;
    screen.say(&match kept {
        Some(folder) => format!("All ended. State and logs are in {}", folder.display()),
        None => "All ended; nothing is left.".to_owned(),
    });
    Ok(())
}
