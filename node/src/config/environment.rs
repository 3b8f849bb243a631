//! What settings default to on this machine: the environment's variables, the host's name and its
//! memory.

use std::fs;
use std::path::{Path, PathBuf};

/// Defaults that depend on the machine. Everything else has the same default everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// `FLY_MACHINE_ID`, else the host's name.
    pub node_name: String,
    /// `FLY_REGION`.
    pub region: Option<String>,
    /// `FLY_VM_MEMORY_MB`, else the smaller of the machine's and the control group's memory.
    pub memory_bytes: u64,
    /// `CACHE_DIRECTORY` (systemd's), else `/var/cache/caje`.
    pub cache_dir: PathBuf,
    /// `$XDG_CACHE_HOME/caje`, else `~/.cache/caje`, else [`Environment::cache_dir`].
    pub user_cache_dir: PathBuf,
    /// Cores this process may use.
    pub threads: usize,
    /// `CAJE_LOG`: wins over the file's `log.level`.
    pub log_level: Option<String>,
    /// `CAJE_CONFIG`: the file of settings, when the command line names none.
    pub config_path: Option<PathBuf>,
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
        // systemd lists several directories with colons.
        let cache_dir = variable("CACHE_DIRECTORY")
            .and_then(|list| list.split(':').next().map(PathBuf::from))
            .unwrap_or_else(|| "/var/cache/caje".into());
        let user_cache_dir = variable("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache")))
            .map_or_else(|| cache_dir.clone(), |base| base.join("caje"));
        let fly_memory = variable("FLY_VM_MEMORY_MB")
            .and_then(|text| text.parse::<u64>().ok())
            .map(|mebibytes| mebibytes << 20);
        Environment {
            node_name: variable("FLY_MACHINE_ID")
                .or_else(host_name)
                .unwrap_or_else(|| "caje".into()),
            region: variable("FLY_REGION"),
            memory_bytes: fly_memory.unwrap_or_else(usable_memory),
            cache_dir,
            user_cache_dir,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            log_level: variable("CAJE_LOG"),
            config_path: variable("CAJE_CONFIG").map(PathBuf::from),
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

    fn from(variables: &[(&str, &str)]) -> Environment {
        let variables: HashMap<_, _> = variables.iter().copied().collect();
        Environment::from(|name| variables.get(name).map(|value| (*value).to_owned()))
    }

    #[test]
    fn a_fly_machine_needs_no_settings() {
        let environment = from(&[
            ("FLY_MACHINE_ID", "3d8d9e"),
            ("FLY_REGION", "lhr"),
            ("FLY_VM_MEMORY_MB", "1024"),
            ("HOME", "/root"),
        ]);
        assert_eq!(environment.node_name, "3d8d9e");
        assert_eq!(environment.region.as_deref(), Some("lhr"));
        assert_eq!(environment.memory_bytes, 1 << 30);
        assert_eq!(environment.user_cache_dir, Path::new("/root/.cache/caje"));
    }

    #[test]
    fn a_bare_machine_has_a_name_and_memory_too() {
        let environment = from(&[("CACHE_DIRECTORY", "/var/cache/a:/var/cache/b")]);
        assert!(!environment.node_name.is_empty());
        assert!(environment.memory_bytes >= 64 << 20);
        assert_eq!(environment.cache_dir, Path::new("/var/cache/a"));
        assert_eq!(environment.user_cache_dir, Path::new("/var/cache/a"));
    }
}
