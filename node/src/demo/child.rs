//! One child process of the demo, and the pipe that ties its life to the demo's.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::stop::Stop;

/// From its start to the line that says where a child listens.
const START_LIMIT: Duration = Duration::from_secs(20);

/// For a child to finish what it does, once it has been told to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Between two looks at whether everything is to end.
const LOOK: Duration = Duration::from_millis(50);

/// Lines of a child's log that a message about its end shows.
const SHOWN_LINES: usize = 8;

/// A running child. Dropping it kills it.
pub struct Child {
    name: String,
    process: std::process::Child,
    /// What it prints. Ends when the child does.
    lines: mpsc::Receiver<String>,
    log: PathBuf,
    end: End,
}

/// How a child is asked to end.
#[derive(Clone, Copy)]
enum End {
    /// Its standard input ends.
    Input,
    /// SIGTERM.
    Signal,
}

impl Child {
    /// Starts this executable with other arguments; its standard error goes to the end of `log`.
    pub fn start(name: &str, arguments: &[&OsStr], log: &Path) -> anyhow::Result<Child> {
        // The file this process runs, even if a build has replaced it meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("caje-node")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(end_of(log)?);
        let mut process = spawn(name, &mut command)?;
        let stdout = process.stdout.take().context("a child without output")?;
        let lines = follow(name, stdout, None)?;
        Ok(Child::new(name, process, End::Input, lines, log))
    }

    /// Starts another program; all that it prints goes to the end of `log` too. It has no pipe that ties it to the
    /// demo, and must have its own way to find out that the demo has gone.
    pub fn start_program(
        name: &str,
        program: &Path,
        arguments: &[&OsStr],
        log: &Path,
    ) -> anyhow::Result<Child> {
        let (output, input) = io::pipe().context("making a pipe")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            // It reads nothing. But its last words, once the demo has gone, must not meet a pipe that nobody can
            // read: that would kill it before it has cleaned up.
            .stdin(output.try_clone().context("making a pipe")?)
            .stdout(input.try_clone().context("making a pipe")?)
            .stderr(input);
        let process = spawn(name, &mut command)?;
        // With it the demo's own ends of the pipe, or the output would never end.
        drop(command);
        let lines = follow(name, output, Some(end_of(log)?))?;
        Ok(Child::new(name, process, End::Signal, lines, log))
    }

    fn new(
        name: &str,
        process: std::process::Child,
        end: End,
        lines: mpsc::Receiver<String>,
        log: &Path,
    ) -> Child {
        Child {
            name: name.to_owned(),
            process,
            lines,
            log: log.to_owned(),
            end,
        }
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The address in the next line that begins with `before`.
    pub fn address(&mut self, before: &str, stop: &Stop) -> anyhow::Result<SocketAddr> {
        let line = self.says(stop, |line| line.starts_with(before))?;
        let address = line.strip_prefix(before).unwrap_or_default().parse();
        address.with_context(|| format!("{} printed `{line}`", self.name))
    }

    /// Waits for the next line that is `wanted`.
    pub fn says(&mut self, stop: &Stop, wanted: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            stop.check()?;
            match self.lines.recv_timeout(LOOK) {
                Ok(line) if wanted(&line) => return Ok(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "{} is not ready after {START_LIMIT:?}{}",
                        self.name,
                        self.last_words()
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.process.wait().context("waiting for a child")?;
                    bail!(
                        "{} ended at once ({status}){}",
                        self.name,
                        self.last_words()
                    )
                }
            }
        }
    }

    /// How the child ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// Tells the child to finish what it does and to end. Returns at once.
    pub fn ask_to_end(&mut self) {
        match self.end {
            End::Input => drop(self.process.stdin.take()),
            End::Signal => {
                // Once somebody has waited for its end, its id may be another's.
                if self.ended().is_none() {
                    let id = Pid::from_raw(self.process.id() as i32);
                    let _ = kill(id, Signal::SIGTERM);
                }
            }
        }
    }

    /// Waits for the end of a child that was asked to end, or kills it.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.ask_to_end();
        let deadline = Instant::now() + END_LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "{} did not end in {END_LIMIT:?}{}",
                        self.name,
                        self.last_words()
                    )
                }
            }
        }
        let status = self.process.wait().context("waiting for a child")?;
        anyhow::ensure!(
            status.success(),
            "{} ended with {status}{}",
            self.name,
            self.last_words()
        );
        Ok(())
    }

    /// The end of the child's log, for a message about it: indented, each line behind a line break.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
        let mut words = String::new();
        for line in shown {
            words.push_str("\n    ");
            words.push_str(line);
        }
        words
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Fails for a child that has ended; then there is nothing to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(name: &str, command: &mut Command) -> anyhow::Result<std::process::Child> {
    command
        // Ctrl-C goes to the demo alone, which ends its children in order.
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {name}"))
}

fn end_of(log: &Path) -> anyhow::Result<File> {
    File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("writing {}", log.display()))
}

/// The lines that somebody prints, also into `log`.
fn follow(
    name: &str,
    output: impl Read + Send + 'static,
    mut log: Option<File>,
) -> anyhow::Result<mpsc::Receiver<String>> {
    let (tell, lines) = mpsc::channel();
    thread::Builder::new()
        .name(format!("output of {name}"))
        .spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // Read on when nobody listens, or nothing can be written: a full pipe would hold the child up.
                if let Some(log) = &mut log {
                    let _ = writeln!(log, "{line}");
                }
                let _ = tell.send(line);
            }
        })
        .context("reading a child's output")?;
    Ok(lines)
}

/// Completes when standard input ends, where it is `watched`: the other side of [`Child`]'s pipe.
pub async fn parent_gone(watched: bool) {
    if !watched {
        return std::future::pending().await;
    }
    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    let reader = thread::Builder::new().name("parent".into()).spawn(move || {
        // An input that cannot be read is as good as ended.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        drop(tell);
    });
    if reader.is_ok() {
        // Nothing is ever sent: the sender's end is the message.
        let _ = told.await;
    }
}
