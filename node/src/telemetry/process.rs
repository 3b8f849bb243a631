//! What the kernel knows of this process, under the names every Prometheus client uses.

use std::fs;

use super::metrics::Sampled;

pub(super) struct ProcessMetrics {
    /// In microseconds; the exposition divides.
    pub(super) cpu_seconds: Sampled<()>,
    pub(super) open_fds: Sampled<()>,
    pub(super) max_fds: Sampled<()>,
    pub(super) resident_memory_bytes: Sampled<()>,
    pub(super) start_time_seconds: Sampled<()>,
}

/// Of the times in `/proc/*/stat`: fixed by the kernel's interface to user space.
const TICKS_PER_SECOND: u64 = 100;

impl ProcessMetrics {
    /// Copies what `/proc` says. What it does not say stays as it was.
    pub(super) fn sample(&self) {
        if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
            // One of them is this listing's own.
            self.open_fds
                .set((), (descriptors.count() as u64).saturating_sub(1));
        }
        if let Ok((soft, _)) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        {
            self.max_fds.set((), soft);
        }
        if let Some(kibibytes) = number_after(&read("/proc/self/status"), "VmRSS:") {
            self.resident_memory_bytes.set((), kibibytes * 1024);
        }
        let stat = read("/proc/self/stat");
        // The second field is the program's name in parentheses, which may hold spaces.
        let fields: Vec<&str> = stat
            .rsplit_once(") ")
            .map(|(_, rest)| rest.split(' ').collect())
            .unwrap_or_default();
        let field = |number: usize| {
            fields
                .get(number - 3)
                .and_then(|text| text.parse::<u64>().ok())
        };
        if let (Some(user), Some(system)) = (field(14), field(15)) {
            self.cpu_seconds
                .set((), (user + system) * (1_000_000 / TICKS_PER_SECOND));
        }
        if let (Some(start), Some(boot)) = (field(22), number_after(&read("/proc/stat"), "btime "))
        {
            self.start_time_seconds
                .set((), boot + start / TICKS_PER_SECOND);
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn number_after(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}
