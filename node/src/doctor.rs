//! `caje-node doctor`: looks at the machine with the node's settings in hand, and says what stands
//! in the way.
//!
//! Every check ends on its own, whatever is broken, and leaves nothing behind. A check fails when
//! the node could not do its work, and warns when it would do it worse.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;

use crate::clock;
use crate::config::{Address, Config, Engine, Io, Origin};
use crate::store;
use crate::telemetry::access_log::escape_json;

/// What one look has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: String,
    pub status: Status,
    /// One line: how it is.
    pub finding: String,
    /// One line: what to do. Only where there is something to do.
    pub advice: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    Ok,
    Warn,
    Fail,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "fail",
        }
    }
}

/// The longest an origin is waited for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const PAGE_BYTES: usize = 4096;

/// Makes all checks. Blocks, for some seconds when an origin does not answer.
pub fn examine(config: &Config) -> Vec<Check> {
    thread::scope(|scope| {
        let origins: Vec<_> = config
            .origins
            .iter()
            .map(|origin| scope.spawn(|| origin_reachable(origin)))
            .collect();
        let mut checks = vec![ring(config), descriptors(config), locked_memory()];
        checks.extend(directory(&config.store.dir, config.store.size_bytes));
        checks.push(memory(config));
        checks.push(wall_clock());
        checks.push(fuse());
        checks.push(manifest(config));
        checks.extend(cluster(config));
        checks.extend(
            config
                .node
                .listen
                .iter()
                .map(|address| listen("listen", address)),
        );
        checks.push(listen("admin listen", &config.admin.listen));
        for origin in origins {
            checks.extend(origin.join());
        }
        checks
    })
}

/// The worst of all; [`Status::Ok`] of none.
pub fn worst(checks: &[Check]) -> Status {
    checks
        .iter()
        .map(|check| check.status)
        .max()
        .unwrap_or(Status::Ok)
}

/// For people: one line per check, and the advice below it.
pub fn table(checks: &[Check]) -> String {
    let width = checks
        .iter()
        .map(|check| check.name.chars().count())
        .max()
        .unwrap_or(0);
    let mut out = String::new();
    for Check {
        name,
        status,
        finding,
        advice,
    } in checks
    {
        let status = status.as_str();
        out.push_str(&format!("{status:<4}  {name:<width$}  {finding}\n"));
        if let Some(advice) = advice {
            out.push_str(&format!("{:<4}  {:<width$}  try: {advice}\n", "", ""));
        }
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let (warnings, failures) = (count(Status::Warn), count(Status::Fail));
    out.push_str(&format!(
        "{} checks, {warnings} warnings, {failures} failures\n",
        checks.len()
    ));
    out
}

/// For programs: one object with a list of checks.
pub fn json(checks: &[Check]) -> String {
    let mut out = format!("{{\"status\":\"{}\",\"checks\":[", worst(checks).as_str()).into_bytes();
    for (at, check) in checks.iter().enumerate() {
        out.extend_from_slice(if at == 0 { b"{" } else { b",{" });
        let advice = check.advice.as_deref().map(|advice| ("advice", advice));
        let fields = [
            ("name", check.name.as_str()),
            ("status", check.status.as_str()),
            ("finding", check.finding.as_str()),
        ];
        for (at, (key, value)) in fields.into_iter().chain(advice).enumerate() {
            out.extend_from_slice(if at == 0 { b"\"" } else { b",\"" });
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(b"\":\"");
            escape_json(value.as_bytes(), &mut out);
            out.push(b'"');
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"]}\n");
    String::from_utf8_lossy(&out).into_owned()
}

fn ok(name: impl Into<String>, finding: impl Into<String>) -> Check {
    Check {
        name: name.into(),
        status: Status::Ok,
        finding: finding.into(),
        advice: None,
    }
}

fn warn(name: impl Into<String>, finding: impl Into<String>, advice: impl Into<String>) -> Check {
    let advice = Some(advice.into());
    Check {
        name: name.into(),
        status: Status::Warn,
        finding: finding.into(),
        advice,
    }
}

fn fail(name: impl Into<String>, finding: impl Into<String>, advice: impl Into<String>) -> Check {
    Check {
        status: Status::Fail,
        ..warn(name, finding, advice)
    }
}

fn ring(config: &Config) -> Check {
    const NAME: &str = "io_uring";
    let Err(error) = store::ring_available() else {
        return ok(NAME, "a ring can be set up");
    };
    let finding = format!("no ring: {error}; files are read by threads");
    let advice = match fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
        Ok(level) if level.trim() != "0" => "sysctl kernel.io_uring_disabled=0".to_owned(),
        _ => "allow io_uring in the container's seccomp profile (docker: --security-opt seccomp=unconfined), or set \
              store.io = \"blocking\" to say that this is meant"
            .to_owned(),
    };
    match config.store.io {
        Io::Blocking => ok(NAME, format!("not used; and {finding}")),
        Io::Auto | Io::Uring => warn(NAME, finding, advice),
    }
}

const OPEN_FILES: &str = "open files";

fn descriptors(config: &Config) -> Check {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) => open_files(config, soft, hard),
        Err(error) => warn(
            OPEN_FILES,
            format!("the limit cannot be read: {error}"),
            "see /proc/self/limits",
        ),
    }
}

fn open_files(config: &Config, soft: u64, hard: u64) -> Check {
    let needed = config.descriptors();
    let finding = format!(
        "{} allowed, up to {}; all connections need {needed}",
        shown(soft),
        shown(hard)
    );
    if hard >= needed {
        ok(OPEN_FILES, finding)
    } else {
        let advice = format!(
            "LimitNOFILE={needed} (systemd), --ulimit nofile={needed} (docker), or lower limits.max_connections"
        );
        let room = config.client_room(hard);
        let finding = format!(
            "{finding}, and {room} clients fit beside origins: limits.max_connections is {}",
            config.limits.max_connections
        );
        warn(OPEN_FILES, finding, advice)
    }
}

fn shown(limit: u64) -> String {
    if limit == nix::sys::resource::RLIM_INFINITY {
        "any number".into()
    } else {
        limit.to_string()
    }
}

fn locked_memory() -> Check {
    const NAME: &str = "locked memory";
    const ENOUGH: u64 = 8 << 20;
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Err(error) => warn(
            NAME,
            format!("the limit cannot be read: {error}"),
            "see /proc/self/limits",
        ),
        Ok((soft, _)) if soft >= ENOUGH => ok(NAME, format!("{} bytes allowed", shown(soft))),
        Ok((soft, _)) => warn(
            NAME,
            format!("{soft} bytes allowed; kernels before 5.12 count rings against it"),
            "LimitMEMLOCK=infinity (systemd), --ulimit memlock=-1 (docker)",
        ),
    }
}

/// The data directory: permissions, who uses it, `O_DIRECT`, room.
fn directory(dir: &Path, size_bytes: u64) -> Vec<Check> {
    let Some(base) = dir.ancestors().find(|path| path.is_dir()) else {
        let finding = format!("{} has no parent directory", dir.display());
        return vec![fail(
            "directory",
            finding,
            "set store.dir to an absolute path",
        )];
    };
    let in_the_way = dir.ancestors().find(|path| path.exists());
    if let Some(file) = in_the_way.filter(|path| *path != base) {
        let finding = format!("{} is no directory", file.display());
        return vec![fail("directory", finding, "choose another store.dir")];
    }
    // A scratch directory in it: no name in a cache directory is anybody's but the store's.
    let scratch = base.join(format!(".caje-doctor-{}", std::process::id()));
    if let Err(error) = DirBuilder::new().mode(0o700).create(&scratch) {
        let finding = format!("{} cannot be written: {error}", base.display());
        let advice = match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => {
                "remount it for writing, or choose another store.dir"
            }
            _ => "let the node's user own it, or choose another store.dir",
        };
        return vec![fail("directory", finding, advice)];
    }
    let direct = direct_io(&scratch);
    // What is left of it, if this fails, is empty and says whose it was.
    let _ = fs::remove_dir_all(&scratch);
    vec![
        permissions(dir, base),
        in_use(dir),
        direct,
        room(dir, base, size_bytes),
    ]
}

fn permissions(dir: &Path, base: &Path) -> Check {
    const NAME: &str = "directory";
    if dir != base {
        return ok(NAME, format!("{} will be made", dir.display()));
    }
    match fs::metadata(dir).map(|metadata| metadata.permissions().mode() & 0o777) {
        Err(error) => fail(NAME, format!("{}: {error}", dir.display()), "see the error"),
        Ok(mode) if mode & 0o022 != 0 => warn(
            NAME,
            format!(
                "{} can be written by other users (mode {mode:o})",
                dir.display()
            ),
            format!("chmod 700 {}", dir.display()),
        ),
        Ok(_) => ok(NAME, format!("{} can be written", dir.display())),
    }
}

/// Whether a process holds the store's lock. Nothing is created or changed.
fn in_use(dir: &Path) -> Check {
    const NAME: &str = "lock";
    let Ok(file) = File::open(dir.join("lock")) else {
        return ok(NAME, "nobody uses the directory");
    };
    match file.try_lock_shared() {
        Ok(()) => ok(NAME, "nobody uses the directory"),
        Err(TryLockError::WouldBlock) => warn(
            NAME,
            "another process uses the directory",
            "fine if that is this node; a second one needs a store.dir of its own",
        ),
        Err(TryLockError::Error(error)) => fail(
            NAME,
            format!("the file system has no locks: {error}"),
            "choose a store.dir on a local file system",
        ),
    }
}

/// Writes a page past the page cache and reads it back, as the store does.
fn direct_io(scratch: &Path) -> Check {
    const NAME: &str = "O_DIRECT";
    let path = scratch.join("page");
    let mut memory = vec![0_u8; 2 * PAGE_BYTES];
    let start = memory.as_ptr().align_offset(PAGE_BYTES);
    let page = &mut memory[start..start + PAGE_BYTES];
    let mut round_trip = || -> io::Result<bool> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(OFlag::O_DIRECT.bits())
            .open(&path)?;
        page.fill(0xca);
        file.write_all(page)?;
        file.sync_data()?;
        page.fill(0);
        file.rewind()?;
        file.read_exact(page)?;
        Ok(page.iter().all(|&byte| byte == 0xca))
    };
    match round_trip() {
        Ok(true) => ok(NAME, "a page was written and read past the page cache"),
        Ok(false) => fail(
            NAME,
            "a page came back changed",
            "replace the disk, or choose another store.dir",
        ),
        Err(error) => warn(
            NAME,
            format!("not on this file system: {error}"),
            "choose a store.dir on ext4 or xfs: bodies are kept in memory twice here",
        ),
    }
}

fn room(dir: &Path, base: &Path, size_bytes: u64) -> Check {
    const NAME: &str = "disk space";
    let free = match statvfs(base) {
        Ok(stat) => stat.blocks_available() * stat.fragment_size(),
        Err(error) => {
            return warn(
                NAME,
                format!("{}: {error}", base.display()),
                "see the error",
            );
        }
    };
    let held = bytes_below(dir);
    let missing = size_bytes.saturating_sub(held);
    let finding = format!(
        "{} free, {} in use by the cache, store.size is {}",
        mib(free),
        mib(held),
        mib(size_bytes)
    );
    if free >= missing {
        ok(NAME, finding)
    } else {
        warn(
            NAME,
            finding,
            format!(
                "lower store.size to {} or make room",
                mib((held + free) / 100 * 95)
            ),
        )
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// What the files of a directory use of the disk; those that cannot be read count nothing.
fn bytes_below(dir: &Path) -> u64 {
    let mut total = 0;
    let mut pending: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => pending.push(entry.path()),
                Ok(metadata) => total += metadata.blocks() * 512,
                Err(_) => {}
            }
        }
    }
    total
}

fn memory(config: &Config) -> Check {
    const NAME: &str = "memory";
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    let Some(available) = available.map(|kibibytes| kibibytes * 1024) else {
        return ok(NAME, "unknown");
    };
    let wanted = config.store.memory_bytes;
    let finding = format!(
        "{} available, store.memory is {}",
        mib(available),
        mib(wanted)
    );
    if wanted <= available / 4 * 3 {
        ok(NAME, finding)
    } else {
        warn(
            NAME,
            finding,
            format!("lower store.memory to {} or less", mib(available / 4 * 3)),
        )
    }
}

fn wall_clock() -> Check {
    const NAME: &str = "clock";
    // 2026-01-01 and 2100-01-01: outside of them it has not been set.
    const PLAUSIBLE: std::ops::Range<u64> = 1_767_225_600..4_102_444_800;
    let now = clock::now();
    let seconds = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let finding = httpdate::fmt_http_date(now);
    if PLAUSIBLE.contains(&seconds) {
        ok(NAME, finding)
    } else {
        fail(
            NAME,
            format!("it says {finding}"),
            "set it, and keep it set with chrony or systemd-timesyncd",
        )
    }
}

fn fuse() -> Check {
    const NAME: &str = "/dev/fuse";
    match OpenOptions::new().read(true).write(true).open(NAME) {
        Ok(_) => ok(NAME, "can be used by LiteFS"),
        Err(error) => ok(NAME, format!("{error}; needed by LiteFS only")),
    }
}

/// A folder of files that nobody serves any more may keep whoever looks at it for good.
const FOLDER_TIMEOUT: Duration = Duration::from_secs(3);

fn manifest(config: &Config) -> Check {
    const NAME: &str = "manifest";
    let dir = match (config.manifest.engine, &config.manifest.dir) {
        (Engine::Local, None) => return ok(NAME, "this node's own, in the data directory"),
        (Engine::Local, Some(dir)) if !dir.exists() => {
            return ok(NAME, format!("{} will be made", dir.display()));
        }
        (_, dir) => dir.clone().unwrap_or_else(|| "/litefs".into()),
    };
    let shown = dir.display().to_string();
    let engine = match config.manifest_engine() {
        Ok(engine) => engine,
        Err(error) => {
            return warn(
                NAME,
                error.to_string(),
                "make it a folder of this node's user",
            );
        }
    };
    let (tell, told) = mpsc::channel();
    let look = move || {
        // Who waited for it may have gone.
        let _ = tell.send(engine.authors().map(|authors| authors.len()));
    };
    if thread::Builder::new().spawn(look).is_err() {
        return warn(
            NAME,
            "no thread could be started",
            "look at the limit of processes",
        );
    }
    match told.recv_timeout(FOLDER_TIMEOUT) {
        Ok(Ok(authors)) => ok(
            NAME,
            format!("{shown}, with the databases of {authors} nodes"),
        ),
        Ok(Err(error)) => warn(
            NAME,
            error.to_string(),
            "look at the log of LiteFS; the node serves without",
        ),
        Err(_) => warn(
            NAME,
            format!("{shown} does not answer"),
            "restart LiteFS; the node serves without",
        ),
    }
}

/// What keeps nodes from talking to each other, where there may be several.
fn cluster(config: &Config) -> Option<Check> {
    const NAME: &str = "cluster";
    let cluster = &config.cluster;
    let is_shared = config.manifest.engine == Engine::LiteFs || config.manifest.dir.is_some();
    let is_wildcard = |address: &Address| ["0.0.0.0", "::"].contains(&address.host.as_str());
    let is_unreachable = cluster.advertise.is_none()
        && config.node.listen.first().is_none_or(is_wildcard)
        || cluster.advertise_admin.is_none() && is_wildcard(&config.admin.listen);
    match (&cluster.secret, is_shared) {
        (None, false) => None,
        (None, true) => Some(warn(
            NAME,
            "no secret: nodes share the manifest and do not talk to each other",
            "set CAJE_CLUSTER_SECRET, the same on all nodes",
        )),
        (Some(_), _) if is_unreachable => Some(warn(
            NAME,
            "other nodes do not know where to reach this one: it listens at no address of its own",
            "set CAJE_ADVERTISE_HOST, or cluster.advertise and cluster.advertise_admin",
        )),
        (Some(_), _) => Some(ok(NAME, "nodes talk to each other")),
    }
}

fn listen(name: &str, address: &Address) -> Check {
    let name = format!("{name} {address}");
    let resolved = match address.resolve() {
        Ok(resolved) => resolved,
        Err(error) => return fail(name, error.to_string(), "use an address of this machine"),
    };
    match TcpListener::bind(resolved) {
        Ok(_) => ok(name, "free"),
        Err(error) => match error.kind() {
            io::ErrorKind::AddrInUse => warn(
                name,
                "in use",
                "fine if that is this node; else choose another port",
            ),
            io::ErrorKind::PermissionDenied => fail(
                name,
                error.to_string(),
                "use a port above 1023, or grant CAP_NET_BIND_SERVICE",
            ),
            _ => fail(name, error.to_string(), "use an address of this machine"),
        },
    }
}

fn origin_reachable(origin: &Origin) -> Check {
    let name = format!("origin {}", origin.name);
    let url = &origin.url;
    let addresses: Vec<SocketAddr> = match (url.host.as_str(), url.port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            let finding = format!("{url}: the name was not resolved: {error}");
            return fail(
                name,
                finding,
                "check the host in `url` and this machine's DNS",
            );
        }
    };
    let timeout = origin.connect_timeout.min(CONNECT_TIMEOUT) / addresses.len().clamp(1, 4) as u32;
    let mut last = "the name has no address".to_owned();
    for address in addresses.iter().take(4) {
        let start = Instant::now();
        match TcpStream::connect_timeout(address, timeout) {
            Ok(_) => {
                let took = start.elapsed().as_millis();
                return ok(name, format!("{url}: connected to {address} in {took} ms"));
            }
            Err(error) => last = format!("{address}: {error}"),
        }
    }
    fail(
        name,
        format!("{url}: {last}"),
        "check `url`, the origin, and the firewalls between",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(origin: &str, dir: &Path) -> Config {
        Config::proxy("127.0.0.1:0", origin, Some(dir)).unwrap()
    }

    fn find<'c>(checks: &'c [Check], name: &str) -> &'c Check {
        let is_it = |check: &&Check| {
            check
                .name
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        checks.iter().find(is_it).unwrap()
    }

    #[test]
    fn a_manifest_and_other_nodes_are_looked_for() {
        let dir = std::env::temp_dir().join(format!("caje-doctor-manifest-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mut config = config("http://127.0.0.1:1", &dir);
        assert_eq!(manifest(&config).status, Status::Ok);
        assert_eq!(cluster(&config), None);
        config.manifest.engine = Engine::LiteFs;
        config.manifest.dir = Some(dir.join("nothing"));
        assert_eq!(manifest(&config).status, Status::Warn);
        let told = cluster(&config).unwrap();
        assert!(told.finding.starts_with("no secret"), "{told:?}");
        config.cluster.secret = Some(crate::config::Secret::new(
            "0123456789abcdef0123456789abcdef",
        ));
        assert_eq!(cluster(&config).unwrap().status, Status::Ok);
        config.admin.listen.host = "0.0.0.0".to_owned();
        assert_eq!(cluster(&config).unwrap().status, Status::Warn);
        config.cluster.advertise_admin =
            crate::config::OriginUrl::parse("http://10.0.0.1:9180").ok();
        assert_eq!(cluster(&config).unwrap().status, Status::Ok);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_machine_that_works_and_an_origin_that_does_not() {
        let dir = std::env::temp_dir().join(format!("caje-doctor-test-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut config = config(&format!("http://127.0.0.1:{port}"), &dir);
        config.admin.listen = Address::parse("127.0.0.1:0").unwrap();
        let checks = examine(&config);
        assert_eq!(find(&checks, "origin").status, Status::Ok);
        assert_eq!(find(&checks, "directory").status, Status::Ok);
        assert_eq!(find(&checks, "lock").status, Status::Ok);
        assert_eq!(find(&checks, "clock").status, Status::Ok);
        assert_eq!(find(&checks, "listen").status, Status::Ok);
        assert_eq!(
            fs::read_dir(&dir).unwrap().count(),
            0,
            "something was left behind"
        );

        let lock = File::create(dir.join("lock")).unwrap();
        lock.lock().unwrap();
        drop(listener);
        let checks = examine(&config);
        assert_eq!(find(&checks, "origin").status, Status::Fail);
        assert_eq!(find(&checks, "lock").status, Status::Warn);
        assert_eq!(worst(&checks), Status::Fail);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn fewer_clients_fit_where_few_files_may_be_open() {
        let config = config("http://127.0.0.1:1", Path::new("/tmp/caje"));
        assert_eq!(open_files(&config, 1024, 1 << 20).status, Status::Ok);
        let check = open_files(&config, 1024, 1024);
        assert_eq!(check.status, Status::Warn);
        let room = config.client_room(1024);
        assert!((1..1024 - 512).contains(&room), "{room}");
        assert!(
            check.finding.contains(&format!("{room} clients")),
            "{}",
            check.finding
        );
        // Origins leave at least half to clients.
        assert!((1..64).contains(&config.client_room(200)));
        assert_eq!(config.client_room(0), 1);
    }

    #[test]
    fn a_directory_that_cannot_be_written() {
        for dir in ["/proc/caje/cache", "/dev/null", "/dev/null/cache"] {
            let checks = directory(Path::new(dir), 1 << 30);
            assert_eq!(checks.len(), 1, "{dir}");
            assert_eq!(checks[0].status, Status::Fail, "{dir}");
        }
    }

    #[test]
    fn shown_to_people_and_to_programs() {
        let checks = [ok("clock", "now"), warn("a \"b\"", "so\nso", "x")];
        assert_eq!(
            table(&checks),
            "ok    clock  now\nwarn  a \"b\"  so\nso\n             try: x\n2 checks, 1 warnings, 0 failures\n"
        );
        assert_eq!(
            json(&checks),
            "{\"status\":\"warn\",\"checks\":[{\"name\":\"clock\",\"status\":\"ok\",\"finding\":\"now\"},\
             {\"name\":\"a \\\"b\\\"\",\"status\":\"warn\",\"finding\":\"so\\nso\",\"advice\":\"x\"}]}\n"
        );
    }
}
