//! What a person sees: the table, the examples, the live lines and the tour's ticks.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write, stdout};
use std::time::Duration;

use super::numbers::Numbers;
use super::stage::{EVERYWHERE, Stage};
use crate::config::Terminal;

/// How often the live lines are made new.
pub const REFRESH: Duration = Duration::from_secs(1);

/// How standard output is written to.
#[derive(Clone, Copy)]
pub struct Screen {
    /// A person looks on.
    is_terminal: bool,
    /// What is written may be written over.
    redraws: bool,
    has_colours: bool,
}

#[derive(Clone, Copy)]
enum Ink {
    Bold,
    Dim,
    Green,
    Red,
}

impl Screen {
    pub fn of_stdout() -> Screen {
        let is_terminal = stdout().is_terminal();
        let terminal = Terminal::of_process();
        Screen {
            is_terminal,
            redraws: is_terminal && terminal != Terminal::Dumb,
            has_colours: is_terminal && terminal == Terminal::Coloured,
        }
    }

    /// Whoever no longer reads this misses it; that is no reason to end differently.
    fn write(&self, text: &str) {
        let mut stdout = stdout();
        let _ = stdout.write_all(text.as_bytes());
        let _ = stdout.flush();
    }

    pub fn say(&self, line: &str) {
        self.write(&format!("{line}\n"));
    }

    fn ink(&self, ink: Ink, text: &str) -> String {
        if !self.has_colours {
            return text.to_owned();
        }
        let code = match ink {
            Ink::Bold => 1,
            Ink::Dim => 2,
            Ink::Green => 32,
            Ink::Red => 31,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// A step of the tour that was right, and what was seen.
    pub fn tick(&self, name: &str, seen: &str) {
        let tick = self.ink(Ink::Green, "✓");
        let name = self.ink(Ink::Bold, &format!("{name:<10}"));
        self.say(&format!("  {tick} {name} {seen}"));
    }

    /// What else was seen, below a tick.
    pub fn note(&self, text: &str) {
        self.say(&self.ink(Ink::Dim, &format!("               {text}")));
    }

    /// A step of the tour that was wrong.
    pub fn cross(&self, name: &str) {
        let cross = self.ink(Ink::Red, "✗");
        self.say(&format!("  {cross} {}", self.ink(Ink::Bold, name)));
    }

    pub fn introduce(&self, stage: &Stage) {
        let mut text = String::new();
        self.table(&mut text, stage);
        self.examples(&mut text, stage);
        self.write(&text);
    }

    pub fn addresses(&self, stage: &Stage) {
        let mut text = String::new();
        self.table(&mut text, stage);
        self.say(&text);
    }

    fn table(&self, text: &mut String, stage: &Stage) {
        let head = format!("  {:<8} {:<26} {}", "", "for clients", "metrics and health");
        let _ = writeln!(text, "{}", self.ink(Ink::Bold, head.trim_end()));
        let origin = format!("http://{}", stage.origin);
        let _ = writeln!(text, "  {:<8} {origin:<26} {origin}/_count", "origin");
        for node in &stage.nodes {
            let clients = format!("http://{}", node.clients);
            let (region, admin) = (node.region, node.admin);
            let _ = writeln!(text, "  {region:<8} {clients:<26} http://{admin}/metrics");
        }
        for (node, litefs) in stage.nodes.iter().zip(&stage.litefs) {
            let (addr, role) = (&litefs.addr, litefs.role());
            let _ = writeln!(text, "  {:<8} {addr:<26} {}: {role}", "litefs", node.region);
        }
        let folder = stage.folder().display();
        let fate = match stage.kept() {
            Some(_) => "stays",
            None => "goes with the demo; --keep DIR keeps it",
        };
        let note = format!("  {:<8} {folder} ({fate})", "state");
        let _ = writeln!(text, "{}", self.ink(Ink::Dim, &note));
    }

    fn examples(&self, text: &mut String, stage: &Stage) {
        let [cdg, lhr, ewr] = [0, 1, 2].map(|place| {
            let node = stage.nodes.get(place);
            node.map_or_else(String::new, |node| format!("http://{}", node.clients))
        });
        let origin = format!("http://{}", stage.origin);
        let id = stage.origin_id().unwrap_or_default();
        let first = stage.nodes.first();
        let admin = first.map_or_else(String::new, |node| format!("http://{}", node.admin));
        let mut example = |what: &str, commands: &[String], expect: &[&str]| {
            let _ = writeln!(text, "\n  {}", self.ink(Ink::Bold, what));
            for command in commands {
                let _ = writeln!(text, "    {command}");
            }
            for line in expect {
                let _ = writeln!(text, "    {}", self.ink(Ink::Dim, &format!("→ {line}")));
            }
        };
        example(
            "Miss, then hit. Run it twice:",
            &[format!("curl -sD- -o /dev/null {lhr}/bytes/64k/hello")],
            &[
                "Cache-Status: \"caje/lhr\"; fwd=uri-miss; fwd-status=200; ttl=3600; stored",
                "the second time: \"caje/lhr\"; hit; ttl=3590, and an Age",
            ],
        );
        let site = format!("curl -sD- -o /dev/null -H 'Host: {EVERYWHERE}'");
        example(
            "What one region was asked for, all soon hold. Here, and a moment later there:",
            &[
                format!("{site} {cdg}/bytes/64k/page"),
                format!("{site} {ewr}/bytes/64k/page"),
            ],
            &["\"caje/ewr\"; hit, where nobody had asked for it; its disk was filled by itself"],
        );
        let bearer = format!("-H 'Authorization: Bearer {}'", stage.token);
        example(
            "And a purge reaches all of them:",
            &[format!(
                "curl {bearer} -H 'Content-Type: application/json' -d '{{\"files\":[\"http://{EVERYWHERE}/bytes/64k/page\"]}}' {admin}/_caje/v1/purge"
            )],
            &["what each node has matched, and that it is done"],
        );
        example(
            "A slow origin is slow once. Run it twice:",
            &[format!("curl -w '%{{time_total}} s\\n' {cdg}/slow")],
            &["5 s, then next to nothing; /slow is fresh for a minute"],
        );
        example(
            "Three clients, one body that takes ten seconds: the origin is asked once.",
            &[
                format!(
                    "for i in 1 2 3; do curl -s '{ewr}/bytes/10m?throttle=1m' | cksum & done; wait"
                ),
                format!("curl -s {origin}/_count?path=/bytes/10m"),
            ],
            &["three equal sums, \"requests\":1"],
        );
        example(
            "A range deep inside a body that nobody has: one block of it is fetched.",
            &[
                format!("curl -sr 4000000000-4000000099 {lhr}/bytes/5g/film | wc -c"),
                format!("curl -s {origin}/_count?path=/bytes/5g/film"),
            ],
            &["100 bytes for the client, \"bytes\":262144 from the origin"],
        );
        example(
            "Stale while revalidate. Run it now and then: only the first time takes 2 s.",
            &[format!(
                "curl -sD- -o /dev/null '{cdg}/bytes/1k/news?delay=2000&cc=max-age=5,stale-while-revalidate=600'"
            )],
            &["after 5 s: hit, with a ttl below 0, at once; 2 s later it is fresh again"],
        );
        example(
            "Video: a live HLS playlist that moves on every two seconds (also /hls/vod/master.m3u8).",
            &[format!("ffplay {ewr}/hls/live/master.m3u8")],
            &["playlists are asked for again each second, segments once"],
        );
        example(
            "Everything the origin can do, one node's health, and the operator's command (cargo build -p caje):",
            &[
                format!("curl {origin}/"),
                format!("curl {admin}/_caje/readyz"),
                format!(
                    "CAJE_ENDPOINT={admin} CAJE_TOKEN={} caje nodes",
                    stage.token
                ),
            ],
            &[],
        );
        example(
            "Last, since it ends the origin: what is stored is served on.",
            &[
                format!("curl -s -o /dev/null '{lhr}/bytes/1k/old?cc=max-age=1'"),
                format!("kill -9 {id}"),
                format!("curl -sD- -o /dev/null '{lhr}/bytes/1k/old?cc=max-age=1'"),
            ],
            &["200 with fwd=stale; what is not stored gets 502 and the reason"],
        );
        text.push('\n');
    }

    pub fn live(self) -> Live {
        Live {
            screen: self,
            shown: Vec::new(),
        }
    }
}

/// One line per node, made new in place on a terminal, and printed where it has changed elsewhere.
pub struct Live {
    screen: Screen,
    /// The lines as they stand on the screen.
    shown: Vec<String>,
}

impl Live {
    pub fn show(&mut self, stage: &mut Stage) {
        let folder = stage.folder().to_owned();
        let mut lines = Vec::new();
        for node in &mut stage.nodes {
            let line = match node.ended() {
                Some(how) => format!("ended ({how}), see {}", node.log(&folder).display()),
                None => match Numbers::of(&stage.client, node.admin) {
                    Ok(numbers) if self.screen.redraws => columns(&numbers),
                    Ok(numbers) => sentence(&numbers),
                    Err(error) => format!("gives no numbers: {error:#}"),
                },
            };
            lines.push(format!("  {:<8} {line}", node.region));
        }
        match self.screen.redraws {
            true => self.redraw(lines),
            false => self.append(lines),
        }
    }

    fn redraw(&mut self, lines: Vec<String>) {
        let mut text = String::new();
        match self.shown.len() {
            0 => {
                let [requests, ratio, origin] = COLUMNS;
                let head = format!("  {:<8} {}", "", row([&requests, &ratio, &origin]));
                let _ = writeln!(text, "{}", self.screen.ink(Ink::Bold, &head));
            }
            shown => {
                let _ = write!(text, "\x1b[{shown}F");
            }
        }
        // Without wrapping, a line is one line in a narrow terminal too.
        text.push_str("\x1b[?7l");
        for line in &lines {
            let _ = writeln!(text, "{line}\x1b[K");
        }
        let end = self.screen.ink(Ink::Dim, "  Ctrl-C ends everything.");
        let _ = writeln!(text, "{end}\x1b[K\x1b[?7h");
        self.screen.write(&text);
        self.shown = lines;
        self.shown.push(end);
    }

    fn append(&mut self, lines: Vec<String>) {
        if self.shown.is_empty() {
            self.screen.say("  Ctrl-C ends everything.\n");
        }
        for (place, line) in lines.iter().enumerate() {
            if self.shown.get(place) != Some(line) {
                self.screen.say(line);
            }
        }
        self.shown = lines;
    }

    /// Leaves the line in which the terminal has shown `^C`.
    pub fn finish(self) {
        if self.screen.is_terminal {
            self.screen.say("");
        }
    }
}

const COLUMNS: [&str; 3] = ["requests", "hit ratio", "origin requests"];

fn columns(numbers: &Numbers) -> String {
    let ratio = ratio(numbers);
    row([&numbers.requests(), &ratio, &numbers.origin_requests()])
}

fn row(cells: [&dyn std::fmt::Display; 3]) -> String {
    let [requests, ratio, origin] = cells.map(ToString::to_string);
    format!("{requests:>10} {ratio:>12} {origin:>18}")
}

fn sentence(numbers: &Numbers) -> String {
    let (requests, origin) = (numbers.requests(), numbers.origin_requests());
    let ratio = ratio(numbers);
    format!("requests: {requests}, hit ratio: {ratio}, origin requests: {origin}")
}

fn ratio(numbers: &Numbers) -> String {
    match numbers.requests() {
        0 => "-".to_owned(),
        requests => format!("{:.1} %", numbers.hits() as f64 * 100.0 / requests as f64),
    }
}
