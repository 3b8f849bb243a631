//! A process for plays of LiteFS: takes HALT locks and writes, as its standard input says, and answers each
//! line with one. SIGTERM releases what is held and ends it.
//!
//! | order | answer |
//! |---|---|
//! | `create DB` | `done`, or `failed KIND` |
//! | `halt DB` | `held MILLISECONDS`, or `failed KIND MILLISECONDS` |
//! | `release` | `done`, or `failed KIND` |
//! | `write DB COUNT` | `committed POSITION`, or `failed CODE`: as many rows, each a transaction |
//! | `count DB` | `rows COUNT`, or `failed CODE` |
//! | `read DB` | `reading`: a read transaction that stays open |
//! | `open DB` | `done`: a descriptor of the lock file, for the next |
//! | `fcntl setlk\|setlkw read\|write\|unlock START LENGTH` | `done`, or the name of the error |
//! | `child` | `done`: another process came and went |

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use litefs::{HaltError, HaltGuard, MountError};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use rusqlite::{Connection, ErrorCode, OpenFlags};

type Held = Arc<Mutex<Option<HaltGuard>>>;

#[derive(Default)]
struct Hand {
    held: Held,
    reader: Option<Connection>,
    lock: Option<File>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let mut hand = Hand::default();
    let held = Arc::clone(&hand.held);
    std::thread::spawn(move || {
        signals.wait().expect("wait for a signal");
        let guard = held.lock().expect("the lock's owner").take();
        let released = guard.is_none_or(|guard| guard.release().is_ok());
        std::process::exit(if released { 0 } else { 1 });
    });
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let answer = hand.obey(&words).unwrap_or_else(|failure| failure);
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{answer}")?;
        stdout.flush()?;
    }
    Ok(())
}

impl Hand {
    fn obey(&mut self, words: &[&str]) -> Result<String, String> {
        let done = "done".to_owned();
        match *words {
            ["create", database] => {
                litefs::create_database(database)
                    .map_err(|error| format!("failed {}", mount_kind(&error)))?;
                Ok(done)
            }
            ["halt", database] => {
                let since = Instant::now();
                let guard = litefs::halt(database).map_err(|error| {
                    let waited = since.elapsed().as_millis();
                    format!("failed {} {waited}", halt_kind(&error))
                })?;
                let waited = guard.waited().as_millis();
                *self.held.lock().expect("the lock's owner") = Some(guard);
                Ok(format!("held {waited}"))
            }
            ["release"] => {
                let guard = self.held.lock().expect("the lock's owner").take();
                match guard.map(HaltGuard::release) {
                    Some(Err(error)) => Err(format!("failed {}", halt_kind(&error))),
                    Some(Ok(())) | None => Ok(done),
                }
            }
            ["write", database, count] => {
                write(database, count.parse().expect("a number")).map_err(sqlite_code)?;
                let position = litefs::position(database);
                let position =
                    position.map_err(|error| format!("failed {}", mount_kind(&error)))?;
                Ok(format!("committed {position}"))
            }
            ["count", database] => count(database)
                .map(|rows| format!("rows {rows}"))
                .map_err(sqlite_code),
            ["read", database] => {
                let reader = read(database).map_err(sqlite_code)?;
                self.reader = Some(reader);
                Ok("reading".to_owned())
            }
            ["open", database] => {
                let path = format!("{database}-lock");
                let file = OpenOptions::new().read(true).write(true).open(path);
                self.lock = Some(file.map_err(|error| error.to_string())?);
                Ok(done)
            }
            ["fcntl", command, kind, start, length] => {
                let lock = self.lock.as_ref().expect("`open` first");
                let number = |text: &str| text.parse().expect("a number");
                let range = flock(kind, number(start), number(length));
                let command = match command {
                    "setlk" => FcntlArg::F_OFD_SETLK(&range),
                    _ => FcntlArg::F_OFD_SETLKW(&range),
                };
                fcntl(lock, command).map_err(|errno| format!("{errno:?}"))?;
                Ok(done)
            }
            ["child"] => {
                let status = std::process::Command::new("/bin/true").status();
                assert!(status.expect("run a child").success());
                Ok(done)
            }
            _ => panic!("no such order: {words:?}"),
        }
    }
}

fn flock(kind: &str, start: i64, length: i64) -> libc::flock {
    let kind = match kind {
        "read" => libc::F_RDLCK,
        "write" => libc::F_WRLCK,
        _ => libc::F_UNLCK,
    };
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

fn connect(database: &str) -> rusqlite::Result<Connection> {
    let connection = Connection::open(Path::new(database))?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "TRUNCATE")?;
    Ok(connection)
}

fn write(database: &str, count: u32) -> rusqlite::Result<()> {
    let connection = connect(database)?;
    for _ in 0..count {
        connection.execute_batch(
            "BEGIN IMMEDIATE;
             CREATE TABLE IF NOT EXISTS written (value TEXT);
             INSERT INTO written VALUES (hex(randomblob(16)));
             COMMIT",
        )?;
    }
    Ok(())
}

fn count(database: &str) -> rusqlite::Result<i64> {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.query_one("SELECT count(*) FROM written", [], |row| row.get(0))
}

fn read(database: &str) -> rusqlite::Result<Connection> {
    let connection = connect(database)?;
    connection.execute_batch("BEGIN")?;
    connection.query_one("SELECT count(*) FROM written", [], |_| Ok(()))?;
    Ok(connection)
}

fn sqlite_code(error: rusqlite::Error) -> String {
    let code = error.sqlite_error_code().unwrap_or(ErrorCode::Unknown);
    format!("failed {code:?}")
}

fn halt_kind(error: &HaltError) -> &'static str {
    match error {
        HaltError::Mount(error) => mount_kind(error),
        HaltError::NoPrimary { .. } => "NoPrimary",
        HaltError::OutOfStep { .. } => "OutOfStep",
        HaltError::TimedOut { .. } => "TimedOut",
        HaltError::AlreadyHeld { .. } => "AlreadyHeld",
        HaltError::TooFewDescriptors => "TooFewDescriptors",
        HaltError::Io { .. } => "Io",
    }
}

fn mount_kind(error: &MountError) -> &'static str {
    match error {
        MountError::NotMounted { .. } => "NotMounted",
        MountError::NotLiteFs { .. } => "NotLiteFs",
        MountError::NoSuchDatabase { .. } => "NoSuchDatabase",
        MountError::Io { .. } => "Io",
    }
}
