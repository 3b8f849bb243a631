//! Real LiteFS below the nodes: one process and one mount for each, the first the primary.
//!
//! Kept true here: whatever way a mount's owner goes, its process has ended and its mount is gone afterwards. If the
//! demo itself is killed, each LiteFS ends within a second or two: its own child waits for the demo, and LiteFS ends
//! with its child.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use litefs::Role;
use nix::mount::{MntFlags, umount2};

use super::child::Child;
use super::stop::Stop;
use crate::config::Programs;

/// A line of LiteFS's log: it is primary, or has all that its primary had.
const READY: &str = "connected to cluster, ready";

const PORT: u16 = 20_202;

/// LiteFS, on a machine that has all it needs.
#[derive(Debug)]
pub struct Installed(PathBuf);

/// What `demo --litefs` needs and has not, a line for each.
#[derive(Debug)]
pub struct Missing(Vec<String>);

impl std::error::Error for Missing {}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`demo --litefs` cannot mount LiteFS here:")?;
        self.0
            .iter()
            .try_for_each(|line| write!(f, "\n  - {line}"))?;
        f.write_str(
            "\nWithout --litefs the nodes share a plain folder instead, which needs nothing.",
        )
    }
}

impl Installed {
    /// # Errors
    /// All that is missing, and what to do about it.
    pub fn find(programs: &Programs) -> Result<Installed, Missing> {
        let mut missing = Vec::new();
        let litefs = programs.litefs().map_err(|error| {
            missing.push(format!(
                "LiteFS: {error}; try: https://github.com/superfly/litefs/releases (0.5.14), then CAJE_LITEFS_BIN=/path/to/litefs"
            ));
        });
        if programs.find("fusermount3").is_none() {
            missing.push(
                "fusermount3: not on the path; try: apt-get install fuse3, or your system's package of FUSE 3"
                    .to_owned(),
            );
        }
        if !Path::new("/dev/fuse").exists() {
            missing.push(
                "/dev/fuse: not there; try: modprobe fuse; in a container, --device /dev/fuse --cap-add SYS_ADMIN"
                    .to_owned(),
            );
        }
        let user = nix::unistd::geteuid();
        if !user.is_root() {
            missing.push(format!(
                "root: LiteFS mounts a file system, and the demo runs as user {user}; try: sudo"
            ));
        }
        match litefs {
            Ok(litefs) if missing.is_empty() => Ok(Installed(litefs)),
            _ => Err(Missing(missing)),
        }
    }
}

/// A running LiteFS and its mount. Dropping it ends both.
pub struct LiteFs {
    /// Host and port of its HTTP server, on loopback.
    pub addr: String,
    /// Where its databases are.
    pub mount: PathBuf,
    child: Option<Child>,
}

impl LiteFs {
    /// Where the LiteFS at this place among the nodes answers: addresses that belong to the demo's process, on a port
    /// that the kernel gives to nobody, so that they can be told before anybody listens.
    pub fn address(place: usize) -> String {
        let [_, _, high, low] = std::process::id().to_be_bytes();
        format!("127.{high}.{low}.{}:{PORT}", place + 1)
    }

    /// Mounts below `folder`, and waits until it has all that its primary has.
    pub fn start(
        installed: &Installed,
        name: &str,
        folder: &Path,
        place: usize,
        stop: &Stop,
    ) -> anyhow::Result<LiteFs> {
        let mut this = LiteFs {
            addr: LiteFs::address(place),
            mount: folder.join("mount"),
            child: None,
        };
        // Of a demo that was killed, in a folder that stays.
        this.unmount();
        fs::create_dir_all(&this.mount)
            .with_context(|| format!("creating {}", this.mount.display()))?;
        let settings = folder.join("litefs.yml");
        fs::write(&settings, this.settings(folder, place))
            .with_context(|| format!("writing {}", settings.display()))?;
        let name = format!("LiteFS of {name}");
        let arguments = ["mount".as_ref(), "-config".as_ref(), settings.as_os_str()];
        let log = folder.join("litefs.log");
        let child = Child::start_program(&name, &installed.0, &arguments, &log)?;
        this.child
            .insert(child)
            .says(stop, |line| line.contains(READY))?;
        Ok(this)
    }

    fn settings(&self, folder: &Path, place: usize) -> String {
        format!(
            r#"# Written by `caje-node demo --litefs`.
fuse:
  dir: {:?}
data:
  dir: {:?}
# Ends when the demo has gone, and LiteFS with it.
exec: "tail --pid={} -f /dev/null"
exit-on-error: true
http:
  addr: "{}"
lease:
  type: "static"
  hostname: "primary"
  advertise-url: "http://{}"
  candidate: {}
"#,
            self.mount,
            folder.join("litefs"),
            std::process::id(),
            self.addr,
            LiteFs::address(0),
            place == 0,
        )
    }

    /// What it says of itself.
    pub fn role(&self) -> String {
        match litefs::info(&self.addr).map(|info| info.role) {
            Ok(Role::Primary) => "primary".to_owned(),
            Ok(Role::Replica { of }) => format!("replica of {of}"),
            Ok(Role::Unknown) => "without a primary".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    /// Ends it and its mount.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.stop()
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        let ended = self.child.take().map_or(Ok(()), Child::end);
        self.unmount();
        ended
    }

    /// Takes the mount away at once, even if somebody has a file of it open.
    fn unmount(&self) {
        // Several may lie on top of each other.
        while umount2(&self.mount, MntFlags::MNT_DETACH).is_ok() {}
    }
}

impl Drop for LiteFs {
    fn drop(&mut self) {
        // Whoever had to know has called `end`.
        let _ = self.stop();
    }
}
