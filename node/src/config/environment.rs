//! What settings default to on this machine: the environment's variables, the host's name and its
//! memory.

use std::fs;
use std::path::{Path, PathBuf};

use super::token::{self, TokenHash, TooShort};
use crate::peer::secret::{MIN_SECRET, Secret};

/// Defaults that depend on the machine. Everything else has the same default everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// `FLY_MACHINE_ID`, else the host's name.
    pub node_name: String,
    /// `FLY_REGION`.
    pub region: Option<String>,
    /// `FLY_VM_MEMORY_MB`, else the smaller of the machine's and the control group's memory.
    pub memory_bytes: u64,
    /// `CACHE_DIRECTORY` (systemd's), else `/data/cache` on Fly.io, where `/data` is the volume, else
    /// `/var/cache/caje`.
    pub cache_dir: PathBuf,
    /// `$XDG_CACHE_HOME/caje`, else `~/.cache/caje`, else [`Environment::cache_dir`].
    pub user_cache_dir: PathBuf,
    /// Cores this process may use.
    pub threads: usize,
    /// `CAJE_LOG`: wins over the file's `log.level`.
    pub log_level: Option<String>,
    /// `CAJE_CONFIG`: the file of settings, when the command line names none.
    pub config_path: Option<PathBuf>,
    /// Where the admin listener is: the private network on Fly.io (`FLY_PRIVATE_IP` is set), else this
    /// host alone.
    pub admin_host: String,
    /// `CAJE_ADVERTISE_HOST`, else this node's name in Fly.io's DNS (of `FLY_APP_NAME` and `FLY_MACHINE_ID`): by which
    /// others, who learn it by the manifest's node table, reach its listeners.
    pub advertise_host: Option<String>,
    /// `CAJE_ADMIN_TOKEN`: a token for everything but what nodes ask of one another.
    pub admin_token: Option<Result<TokenHash, TooShort>>,
    /// `CAJE_CLUSTER_SECRET`: wins over the file's.
    pub cluster_secret: Option<Result<Secret, TooShort>>,
}

/// A Machine's name in Fly.io's private DNS, 6PN. It answers with an IPv6 address, which changes when the Machine
/// moves; the name stays. `None` unless both are names that DNS takes.
fn machine_host(app: &str, id: &str) -> Option<String> {
    let is_label = |name: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&name.len()) && name.bytes().all(plain)
    };
    (is_label(app) && is_label(id)).then(|| format!("{id}.vm.{app}.internal"))
}

impl Environment {
    /// Of this process, here and now.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the environment"
    )]
    pub fn of_process() -> Environment {
        Environment::from(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from(variable: impl Fn(&str) -> Option<String>) -> Environment {
        let machine = variable("FLY_MACHINE_ID");
        let usual_cache_dir = match machine {
            Some(_) => "/data/cache",
            None => "/var/cache/caje",
        };
        // systemd lists several directories with colons.
        let cache_dir = variable("CACHE_DIRECTORY")
            .and_then(|list| list.split(':').next().map(PathBuf::from))
            .unwrap_or_else(|| usual_cache_dir.into());
        let user_cache_dir = variable("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache")))
            .map_or_else(|| cache_dir.clone(), |base| base.join("caje"));
        let fly_memory = variable("FLY_VM_MEMORY_MB")
            .and_then(|text| text.parse::<u64>().ok())
            .map(|mebibytes| mebibytes << 20);
        let machine_host = variable("FLY_APP_NAME")
            .zip(machine.as_deref())
            .and_then(|(app, id)| machine_host(&app, id));
        // A name in the Machine's /etc/hosts: its address in 6PN.
        let admin_host = match variable("FLY_PRIVATE_IP") {
            Some(_) => "fly-local-6pn",
            None => "127.0.0.1",
        };
        Environment {
            node_name: machine.or_else(host_name).unwrap_or_else(|| "caje".into()),
            region: variable("FLY_REGION"),
            memory_bytes: fly_memory.unwrap_or_else(usable_memory),
            cache_dir,
            user_cache_dir,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            log_level: variable("CAJE_LOG"),
            config_path: variable("CAJE_CONFIG").map(PathBuf::from),
            admin_host: admin_host.to_owned(),
            advertise_host: variable("CAJE_ADVERTISE_HOST").or(machine_host),
            admin_token: variable("CAJE_ADMIN_TOKEN")
                .map(|token| token::of_environment(token.trim())),
            cluster_secret: variable("CAJE_CLUSTER_SECRET").map(|secret| {
                let secret = secret.trim();
                let is_long = secret.len() >= MIN_SECRET;
                is_long.then(|| Secret::new(secret)).ok_or(TooShort)
            }),
        }
    }
}

fn host_name() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(text.trim().to_owned()).filter(|name| !name.is_empty())
}

/// The machine's memory or the control group's share, whichever is less; 1 GiB when neither can be
/// read.
fn usable_memory() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes * 1024)
    });
    let group = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]
    .iter()
    .find_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    machine.into_iter().chain(group).min().unwrap_or(1 << 30)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::config::Config;

    fn from(variables: &[(&str, &str)]) -> Environment {
        let variables: HashMap<_, _> = variables.iter().copied().collect();
        Environment::from(|name| variables.get(name).map(|value| (*value).to_owned()))
    }

    /// What a Machine of the app `edge` finds, among others.
    const MACHINE: &[(&str, &str)] = &[
        ("FLY_APP_NAME", "edge"),
        ("FLY_MACHINE_ID", "3d8d9e"),
        ("FLY_REGION", "lhr"),
        ("FLY_PRIVATE_IP", "fdaa:0:18:a7b:196:e274:9ce1:2"),
        ("FLY_VM_MEMORY_MB", "1024"),
        ("PRIMARY_REGION", "cdg"),
        ("HOME", "/root"),
    ];

    #[test]
    fn a_fly_machine_needs_no_settings() {
        let environment = from(MACHINE);
        assert_eq!(environment.node_name, "3d8d9e");
        assert_eq!(environment.region.as_deref(), Some("lhr"));
        assert_eq!(environment.memory_bytes, 1 << 30);
        assert_eq!(environment.cache_dir, Path::new("/data/cache"));
        assert_eq!(environment.admin_host, "fly-local-6pn");
        assert_eq!(environment.user_cache_dir, Path::new("/root/.cache/caje"));
        let host = environment.advertise_host;
        assert_eq!(host.as_deref(), Some("3d8d9e.vm.edge.internal"));
    }

    #[test]
    fn settings_of_a_fly_machine() {
        let text = "[[origin]]\nname = 'a'\nurl = 'http://a'";
        let path = Path::new("caje.toml");
        let config = Config::parse(text, path, &from(MACHINE)).unwrap();
        assert_eq!(config.node.name, "3d8d9e");
        assert_eq!(config.cache_name(), "caje/lhr");
        assert_eq!(config.admin.listen.to_string(), "fly-local-6pn:9180");
        assert_eq!(config.store.dir, Path::new("/data/cache"));
        assert_eq!(config.store.memory_bytes, 256 << 20);
        // The file wins.
        let text = format!(
            "[admin]\nlisten = '127.0.0.1:1'\n[node]\nregion = 'x'\n[store]\ndir = '/d'\nmemory = '64MiB'\n{text}"
        );
        let config = Config::parse(&text, path, &from(MACHINE)).unwrap();
        assert_eq!(config.admin.listen.to_string(), "127.0.0.1:1");
        assert_eq!(config.node.region.as_deref(), Some("x"));
        assert_eq!(config.store.dir, Path::new("/d"));
        assert_eq!(config.store.memory_bytes, 64 << 20);
    }

    #[test]
    fn a_machine_has_a_name_that_dns_takes() {
        let host = |app, id| from(&[("FLY_APP_NAME", app), ("FLY_MACHINE_ID", id)]).advertise_host;
        assert!(host("edge", "3d8d9e").is_some());
        for (app, id) in [
            ("edge", "a.b"),
            ("e d", "a"),
            ("e\n", "a"),
            ("", "a"),
            ("edge", ""),
        ] {
            assert_eq!(host(app, id), None, "{app:?} {id:?}");
        }
        let long = "a".repeat(64);
        assert_eq!(host(&long, "a"), None);
    }

    #[test]
    fn a_bare_machine_has_a_name_and_memory_too() {
        let environment = from(&[("CACHE_DIRECTORY", "/var/cache/a:/var/cache/b")]);
        assert!(!environment.node_name.is_empty());
        assert!(environment.memory_bytes >= 64 << 20);
        assert_eq!(environment.cache_dir, Path::new("/var/cache/a"));
        assert_eq!(environment.user_cache_dir, Path::new("/var/cache/a"));
        assert_eq!(environment.admin_host, "127.0.0.1");
        assert_eq!(environment.advertise_host, None);
        assert_eq!(from(&[]).cache_dir, Path::new("/var/cache/caje"));
        // A region alone, such as deploy/compose.yml gives, makes no Machine.
        assert_eq!(from(&[("FLY_REGION", "lhr")]).admin_host, "127.0.0.1");
    }
}
