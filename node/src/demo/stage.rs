//! What the demo plays with: an origin, three nodes, what they share, and a folder for all that is kept.
//!
//! ```text
//! FOLDER/lock                 held while a demo runs in a folder that stays
//!        origin.log
//!        manifest/            what the nodes share, if it is a plain folder
//!        lhr/caje.toml        written at each start; the node reads it again when somebody edits it
//!            node.log         what the node has to say
//!            access.log
//!            cache/           segment files, index, and what the node has recorded
//!            litefs.yml       with --litefs
//!            litefs.log
//!            litefs/          what LiteFS keeps of the mount
//!            mount/           where the node finds what all share
//! ```

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::child::Child;
use super::client::Client;
use super::litefs::{Installed, LiteFs};
use super::stop::Stop;
use crate::config::TokenHash;

pub const REGIONS: [&str; 3] = ["cdg", "lhr", "ewr"];

/// The host that all nodes serve, and of which each is to hold everything.
pub const EVERYWHERE: &str = "everywhere.example";

/// The first choice of ports; a busy one is replaced by any that is free.
const ORIGIN_PORT: u16 = 8080;
const CLIENTS_PORT: u16 = 8081;
const ADMIN_PORT: u16 = 9181;

/// Names tried for a temporary folder before giving up.
const MAX_FOLDERS: u32 = 100;

pub struct Stage {
    pub client: Client,
    pub origin: SocketAddr,
    origin_child: Option<Child>,
    pub nodes: Vec<Node>,
    /// Below each node, in their order; or nothing, and a plain folder is what they share.
    pub litefs: Vec<LiteFs>,
    /// Lets whoever has it see and change everything on the nodes.
    pub token: String,
    /// What nodes know one another by.
    secret: String,
    stop: Stop,
    // The last to go: the children write into it.
    folder: Folder,
}

pub struct Node {
    pub region: &'static str,
    /// Where it serves clients.
    pub clients: SocketAddr,
    /// Where it serves metrics and health.
    pub admin: SocketAddr,
    child: Option<Child>,
}

impl Stage {
    /// Starts everything. Returns when all of it serves.
    pub fn set(
        keep: Option<&Path>,
        installed: Option<&Installed>,
        stop: &Stop,
    ) -> anyhow::Result<Stage> {
        let folder = Folder::new(keep)?;
        let (origin_child, origin) =
            on_free_ports(|free| start_origin(&folder, loopback(free.port(ORIGIN_PORT)), stop))?;
        let mut stage = Stage {
            client: Client::new(stop.clone()),
            origin,
            origin_child: Some(origin_child),
            nodes: Vec::new(),
            litefs: Vec::new(),
            token: format!("caje_{}", random_digits()?),
            secret: random_digits()?,
            stop: stop.clone(),
            folder,
        };
        if let Some(installed) = installed {
            for (place, region) in REGIONS.iter().enumerate() {
                let folder = stage.folder.path.join(region);
                let litefs = LiteFs::start(installed, region, &folder, place, stop)?;
                stage.litefs.push(litefs);
            }
        }
        for place in 0..REGIONS.len() {
            let node = on_free_ports(|free| {
                let clients = loopback(free.port(CLIENTS_PORT + place as u16));
                let admin = loopback(free.port(ADMIN_PORT + place as u16));
                stage.start_node(place, clients, admin)
            })?;
            stage.nodes.push(node);
        }
        Ok(stage)
    }

    pub fn folder(&self) -> &Path {
        &self.folder.path
    }

    /// The folder, if it stays.
    pub fn kept(&self) -> Option<PathBuf> {
        self.folder.stays.then(|| self.folder.path.clone())
    }

    pub fn node(&self, region: &str) -> anyhow::Result<&Node> {
        Ok(&self.nodes[self.place(region)?])
    }

    pub fn origin_id(&self) -> Option<u32> {
        self.origin_child.as_ref().map(Child::id)
    }

    /// Ends the origin as a crash would: in the middle of whatever it does.
    pub fn crash_origin(&mut self) {
        self.origin_child = None;
    }

    /// Starts the origin again where it was.
    pub fn start_origin(&mut self) -> anyhow::Result<()> {
        let (child, address) = start_origin(&self.folder, self.origin, &self.stop)?;
        (self.origin_child, self.origin) = (Some(child), address);
        Ok(())
    }

    /// Drains a node, and starts it again where it was.
    pub fn restart_node(&mut self, region: &str) -> anyhow::Result<()> {
        let place = self.place(region)?;
        if let Some(child) = self.nodes[place].child.take() {
            child.end()?;
        }
        self.start_again(region)
    }

    /// kill -9 for a node, and nothing is left of its disk.
    pub fn lose_node(&mut self, region: &str) -> anyhow::Result<()> {
        let place = self.place(region)?;
        self.nodes[place].child = None;
        let cache = self.folder.path.join(region).join("cache");
        fs::remove_dir_all(&cache).with_context(|| format!("removing {}", cache.display()))
    }

    /// Starts a node that has ended where it was.
    pub fn start_again(&mut self, region: &str) -> anyhow::Result<()> {
        let place = self.place(region)?;
        let (clients, admin) = (self.nodes[place].clients, self.nodes[place].admin);
        self.nodes[place] = self.start_node(place, clients, admin)?;
        Ok(())
    }

    fn place(&self, region: &str) -> anyhow::Result<usize> {
        let found = self.nodes.iter().position(|node| node.region == region);
        found.with_context(|| format!("there is no node in {region}"))
    }

    /// The end of each node's log, for whoever has to find out what went wrong.
    pub fn last_words(&self) -> String {
        let words = self.nodes.iter().filter_map(|node| {
            let words = node.child.as_ref()?.last_words();
            (!words.is_empty()).then(|| format!("  the log of {} ends with{words}\n", node.region))
        });
        words.collect()
    }

    /// Ends everything in order: nodes finish what they do and flush their index. Fails when one of
    /// them does not end well; all the others have ended then too.
    pub fn end(mut self) -> anyhow::Result<()> {
        let nodes = self.nodes.iter_mut().filter_map(|node| node.child.as_mut());
        nodes.for_each(Child::ask_to_end);
        let mut result = Ok(());
        for node in &mut self.nodes {
            if let Some(child) = node.child.take() {
                result = result.and(child.end());
            }
        }
        // Its mount is busy for as long as a node runs. The primary last: the others would miss it.
        while let Some(litefs) = self.litefs.pop() {
            result = result.and(litefs.end());
        }
        // The origin may have been killed, to see what the nodes do then.
        if let Some(mut origin) = self.origin_child.take()
            && origin.ended().is_none()
        {
            result = result.and(origin.end());
        }
        result
    }

    fn start_node(
        &self,
        place: usize,
        clients: SocketAddr,
        admin: SocketAddr,
    ) -> anyhow::Result<Node> {
        let region = REGIONS[place];
        let folder = self.folder.path.join(region);
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let settings = folder.join("caje.toml");
        let text = self.settings(place, clients, admin, &folder)?;
        fs::write(&settings, text).with_context(|| format!("writing {}", settings.display()))?;
        let arguments: [&OsStr; 4] = [
            "run".as_ref(),
            "--exit-with-stdin".as_ref(),
            "--config".as_ref(),
            settings.as_ref(),
        ];
        let name = format!("the node {region}");
        let mut child = Child::start(&name, &arguments, &folder.join("node.log"))?;
        let clients = child.address("listening http://", &self.stop)?;
        let admin = child.address("admin http://", &self.stop)?;
        Ok(Node {
            region,
            clients,
            admin,
            child: Some(child),
        })
    }

    fn settings(
        &self,
        place: usize,
        clients: SocketAddr,
        admin: SocketAddr,
        folder: &Path,
    ) -> anyhow::Result<String> {
        let region = REGIONS[place];
        let (origin, secret) = (self.origin, &self.secret);
        let cache = toml_path(&folder.join("cache"))?;
        let access_log = toml_path(&folder.join("access.log"))?;
        let manifest = match self.litefs.get(place) {
            Some(litefs) => {
                let mount = toml_path(&litefs.mount)?;
                format!(
                    "engine = \"litefs\"\ndir = {mount}\nlitefs = \"{}\"",
                    litefs.addr
                )
            }
            None => {
                let dir = toml_path(&self.folder.path.join("manifest"))?;
                format!("engine = \"local\"\ndir = {dir}")
            }
        };
        let hash = TokenHash::of(&self.token);
        Ok(format!(
            r#"# Written by `caje-node demo` when it starts this node.
# Edit it while the demo runs: the node takes new settings into use at once.

[node]
name = "demo-{region}"
region = "{region}"
listen = "{clients}"
threads = 2

[admin]
listen = "{admin}"

[[admin.token]]
name = "demo"
hash = "{hash}"
scopes = ["read", "purge", "admin"]

[store]
dir = {cache}
size = "256MiB"
memory = "32MiB"

# What every node should hold, as all nodes say.
[manifest]
{manifest}

# Nodes ask each other for bodies, and tell each other of purges.
[cluster]
secret = "{secret}"

[limits]
drain_timeout = "2s"

[log]
access = "combined"
path = {access_log}

[[origin]]
name = "slow_server"
url = "http://{origin}"
record = "off"
peer = "off"

# What is asked for under this name, every node is to hold.
[[origin]]
name = "everywhere"
url = "http://{origin}"
hosts = ["{EVERYWHERE}"]
honor_client_cache_control = true
record = "all"
"#
        ))
    }
}

impl Node {
    /// Why there is no answer from this node, if there is a reason.
    pub fn ended(&mut self) -> Option<String> {
        match &mut self.child {
            Some(child) => child.ended().map(|status| status.to_string()),
            None => Some("ended".to_owned()),
        }
    }

    /// Where the node writes what it has to say.
    pub fn log(&self, stage_folder: &Path) -> PathBuf {
        stage_folder.join(self.region).join("node.log")
    }
}

fn start_origin(
    folder: &Folder,
    listen: SocketAddr,
    stop: &Stop,
) -> anyhow::Result<(Child, SocketAddr)> {
    let listen = listen.to_string();
    let arguments: [&OsStr; 4] = [
        "slow-server".as_ref(),
        "--exit-with-stdin".as_ref(),
        "--listen".as_ref(),
        listen.as_ref(),
    ];
    let mut child = Child::start("the origin", &arguments, &folder.path.join("origin.log"))?;
    let address = child.address("listening http://", stop)?;
    Ok((child, address))
}

/// 256 random bits.
fn random_digits() -> anyhow::Result<String> {
    let mut random = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut random))
        .context("reading /dev/urandom")?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn toml_path(path: &Path) -> anyhow::Result<toml::Value> {
    let text = path
        .to_str()
        .with_context(|| format!("{} is no UTF-8", path.display()))?;
    Ok(toml::Value::from(text))
}

/// Which ports to ask for.
enum Ports {
    /// The first choice, unless it is busy.
    Preferred,
    /// Any.
    Any,
}

impl Ports {
    fn port(&self, preferred: u16) -> u16 {
        match self {
            Ports::Preferred if TcpListener::bind(loopback(preferred)).is_ok() => preferred,
            _ => 0,
        }
    }
}

/// A port that was free may be taken before the child asks for it: then any will do.
fn on_free_ports<T>(mut start: impl FnMut(Ports) -> anyhow::Result<T>) -> anyhow::Result<T> {
    start(Ports::Preferred).or_else(|_| start(Ports::Any))
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Removed on drop, unless it stays.
struct Folder {
    path: PathBuf,
    stays: bool,
    /// One demo at a time; the settings that it writes are its own.
    _lock: Option<File>,
}

impl Folder {
    fn new(keep: Option<&Path>) -> anyhow::Result<Folder> {
        match keep {
            Some(path) => {
                fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
                let path = path.canonicalize().context("finding the folder to keep")?;
                let lock = path.join("lock");
                let lock =
                    File::create(&lock).with_context(|| format!("writing {}", lock.display()))?;
                if let Err(TryLockError::WouldBlock) = lock.try_lock() {
                    anyhow::bail!("another demo runs in {}", path.display());
                }
                Ok(Folder {
                    path,
                    stays: true,
                    _lock: Some(lock),
                })
            }
            None => Folder::temporary(),
        }
    }

    fn temporary() -> anyhow::Result<Folder> {
        let place = std::env::temp_dir();
        for number in 0..MAX_FOLDERS {
            let path = place.join(format!("caje-demo-{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    return Ok(Folder {
                        path,
                        stays: false,
                        _lock: None,
                    });
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("creating {}", path.display()));
                }
            }
        }
        anyhow::bail!("no name for a folder is free in {}", place.display())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.stays {
            // What cannot be removed from a folder for temporary files is the system's to remove.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
