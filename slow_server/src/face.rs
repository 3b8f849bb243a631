//! The URL face: what an origin answers where no route says otherwise.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderName, HeaderValue, Method};

use crate::answer::{Answer, Framing, Ranges};
use crate::body::BodyFn;
use crate::counts::Counts;
use crate::http1::plain;
use crate::lie::Lie;
use crate::origin::Shared;
use crate::request::Request;

const HELP: &str = "slow_server: an origin for tests, demos and benchmarks

GET  /                      this text
GET  /fast  /slow           an answer after 1 s, after 5 s
GET  /bytes/SIZE[/ANY]?…    SIZE bytes (1000, 64k, 1m, 5g), a function of the path
any  /echo                  what was received, in JSON
any  /upload                the body's length and hash, in JSON
any  /mirror                the body, while it arrives
any  /upgrade               101 and every byte back
GET  /lies                  every lie with its sentence
GET  /hls/vod/master.m3u8   HLS on demand;  /hls/live/… live;  /hls/manual/… live by hand
POST /hls/manual/_tick?n=1  moves it on
GET  /_count[?path=/x]      counters in JSON
POST /_reset                forgets them
POST /_gate/open?name=x     opens a gate;  /_gate/one lets one pass;  /_gate/close;  GET /_gate?name=x

Options of /bytes (also of /echo, /upload, /mirror and /hls):
  delay=MS              waits before the head
  throttle=BYTES        of body in a second
  gate=NAME             holds the head until the gate is opened
  gateat=N,NAME         holds the body before byte N
  status=CODE           type=CONTENT-TYPE
  cc=VALUE              Cache-Control (/bytes: max-age=3600; empty: none)
  h=NAME:VALUE          any header, repeatable
  etag=strong|weak|none|VALUE      lm=none|SECONDS|DATE      v=N (another body, another ETag)
  ranges=on|off|lie     chunked     chunk=BYTES     close     http10
  set-cookie=VALUE      vary=VALUE  age=SECONDS
  hint=LINK             a 103 with this Link, repeatable
  trailer=NAME:VALUE    early (answers before it reads)      mirror
  lie=NAME              see /lies
";

/// `Last-Modified` of generated bodies: 2026-01-01.
const MODIFIED_SECONDS: u64 = 1_767_225_600;

/// Whether this path is an order to the origin itself, or a question about it.
pub(crate) fn is_order(path: &str) -> bool {
    path.starts_with("/_") || path == "/hls/manual/_tick"
}

/// The answer to a request that no route is for.
pub(crate) fn answer(shared: &Arc<Shared>, request: &Request) -> Answer {
    let path = request.path();
    let options = Options::parse(request.query());
    let posted = request.method == Method::POST;
    let base = match path {
        "/" => Answer::ok().body(HELP).cache_control("max-age=60"),
        "/fast" => Answer::ok()
            .body("fast\n")
            .delay(Duration::from_secs(1))
            .cache_control("max-age=60"),
        "/slow" => Answer::ok()
            .body("slow\n")
            .delay(Duration::from_secs(5))
            .cache_control("max-age=60"),
        "/echo" => Answer::ok()
            .echo()
            .header("content-type", "application/json")
            .cache_control("no-store"),
        "/upload" => Answer::ok()
            .echo()
            .header("content-type", "application/json")
            .cache_control("no-store"),
        "/mirror" => Answer::ok().mirror().cache_control("no-store"),
        "/upgrade" => return Answer::ok().upgrade(),
        "/lies" => return plain(200, lies()),
        "/_count" => return json(&count(shared, &options)),
        "/_reset" if posted => {
            shared.reset();
            return plain(200, "forgotten\n");
        }
        "/_gate" | "/_gate/open" | "/_gate/one" | "/_gate/close" => {
            return gate(shared, path, posted, &options);
        }
        "/hls/manual/_tick" if posted => {
            shared
                .hls
                .tick(options.get("n").and_then(|n| n.parse().ok()).unwrap_or(1));
            return plain(200, "moved on\n");
        }
        _ if path.starts_with("/hls/") => shared.hls.answer(path),
        _ => match path
            .strip_prefix("/bytes/")
            .and_then(|rest| size(rest.split('/').next()?))
        {
            Some(size) => bytes(path, size, &options),
            None => return plain(404, "nothing here; / lists what there is\n"),
        },
    };
    match options.apply(base, shared) {
        Ok(answer) => answer,
        Err(reason) => plain(400, format!("{reason}\n")),
    }
}

fn bytes(path: &str, size: u64, options: &Options) -> Answer {
    let version = options.get("v").and_then(|v| v.parse().ok()).unwrap_or(0);
    let fingerprint = BodyFn::of_version(path, version).fingerprint();
    let answer = Answer::ok().generated(size).version(version).ranges(true);
    let answer = match options.get("etag") {
        Some(_) => answer,
        None => answer.etag(&format!("\"{fingerprint:016x}-{size}\"")),
    };
    let answer = match options.get("lm") {
        Some(_) => answer,
        None => answer.last_modified(UNIX_EPOCH + Duration::from_secs(MODIFIED_SECONDS + version)),
    };
    match options.get("cc") {
        Some(_) => answer,
        None => answer.cache_control("max-age=3600"),
    }
}

/// `1000`, `64k`, `1m`, `5g`: binary units.
fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// The options of a query, in order.
struct Options(Vec<(String, String)>);

impl Options {
    fn parse(query: &str) -> Options {
        let pairs = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode(name), decode(value))
            });
        Options(pairs.collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// Applies every option to `answer`; names that are none are left alone: they make cache keys
    /// differ.
    fn apply(&self, mut answer: Answer, shared: &Shared) -> Result<Answer, String> {
        for (name, value) in &self.0 {
            let number = || {
                value
                    .parse::<u64>()
                    .map_err(|_| format!("{name}={value}: not a number"))
            };
            answer = match name.as_str() {
                "delay" => answer.delay(Duration::from_millis(number()?)),
                "throttle" => answer
                    .throttle(size(value).ok_or_else(|| format!("{name}={value}: not a size"))?),
                "gate" => answer.gate(&shared.gate(value)),
                "gateat" => {
                    let parts = value
                        .split_once(',')
                        .and_then(|(at, gate)| Some((size(at)?, gate)));
                    let (at, gate) = parts.ok_or_else(|| format!("{name}={value}: not N,NAME"))?;
                    answer.gate_at(at, &shared.gate(gate))
                }
                "status" => {
                    let status = number()?;
                    if !(200..1000).contains(&status) {
                        return Err(format!("{name}={value}: not a final status"));
                    }
                    answer.with_status(status as u16)
                }
                "type" => replaced(answer, "content-type", value)?,
                "cc" if value.is_empty() => {
                    answer.headers.retain(|(n, _)| n != "cache-control");
                    answer
                }
                "cc" => replaced(answer, "cache-control", value)?,
                "h" => {
                    let (name, value) = pair(value)?;
                    header(answer, name, value)?
                }
                "set-cookie" | "vary" | "age" => header(answer, name, value)?,
                "etag" => match value.as_str() {
                    "none" => answer,
                    "strong" => answer.etag("\"strong\""),
                    "weak" => answer.etag("W/\"weak\""),
                    value if value.contains('"') => answer.etag(value),
                    value => answer.etag(&format!("\"{value}\"")),
                },
                "lm" => match (value.as_str(), value.parse::<u64>()) {
                    ("none", _) => answer,
                    (_, Ok(seconds)) => {
                        answer.last_modified(UNIX_EPOCH + Duration::from_secs(seconds))
                    }
                    (date, _) => answer.last_modified(self::date(date)?),
                },
                "ranges" => {
                    answer.ranges = match value.as_str() {
                        "on" => Ranges::On,
                        "off" => Ranges::Off,
                        "lie" => Ranges::Lie,
                        _ => return Err(format!("ranges={value}: not on, off or lie")),
                    };
                    answer
                }
                "chunked" => answer.chunked(),
                "chunk" => answer.chunk_size(usize::try_from(number()?).unwrap_or(usize::MAX)),
                "close" => {
                    answer.framing = Framing::Close;
                    answer.close()
                }
                "http10" => answer.http10(),
                "hint" => answer.early_hints(&[("link", value)]),
                "trailer" => {
                    let (name, value) = pair(value)?;
                    answer.trailer(name, value)
                }
                "early" => answer.early(),
                "mirror" => answer.mirror(),
                "lie" => answer.lie(
                    value
                        .parse::<Lie>()
                        .map_err(|unknown| unknown.to_string())?,
                ),
                _ => answer,
            };
        }
        Ok(answer)
    }
}

fn date(text: &str) -> Result<SystemTime, String> {
    httpdate::parse_http_date(text)
        .map_err(|_| format!("lm={text}: not none, seconds or an HTTP date"))
}

fn pair(value: &str) -> Result<(&str, &str), String> {
    let (name, value) = value
        .split_once(':')
        .ok_or_else(|| format!("{value}: not Name:Value"))?;
    Ok((name.trim(), value.trim()))
}

fn header(answer: Answer, name: &str, value: &str) -> Result<Answer, String> {
    let sound =
        HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok();
    match sound {
        true => Ok(answer.header(name, value)),
        false => Err(format!("{name}: {value}: no header")),
    }
}

fn replaced(mut answer: Answer, name: &str, value: &str) -> Result<Answer, String> {
    answer.headers.retain(|(n, _)| n != name);
    header(answer, name, value)
}

/// Percent-decoding; a plus is a space.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', ..) => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn gate(shared: &Shared, path: &str, posted: bool, options: &Options) -> Answer {
    let Some(name) = options.get("name") else {
        return plain(400, "which gate? name=…\n");
    };
    let gate = shared.gate(name);
    match path {
        "/_gate/open" if posted => gate.open(),
        "/_gate/one" if posted => gate.open_one(),
        "/_gate/close" if posted => gate.close(),
        "/_gate" => {}
        _ => return plain(405, "POST it\n"),
    }
    json(&format!(
        "{{\"gate\":{},\"open\":{},\"arrivals\":{}}}\n",
        json_string(name),
        gate.is_open(),
        gate.arrivals()
    ))
}

fn count(shared: &Shared, options: &Options) -> String {
    let counts = match options.get("path") {
        Some(path) => shared.board.counts(path),
        None => shared.board.total(),
    };
    let Counts {
        requests,
        get,
        head,
        post,
        other,
        conditional,
        range,
        ..
    } = counts;
    let Counts {
        bytes,
        uploaded,
        not_modified,
        partial,
        finished,
        abandoned,
        ..
    } = counts;
    format!(
        "{{\"requests\":{requests},\"get\":{get},\"head\":{head},\"post\":{post},\"other\":{other},\
         \"conditional\":{conditional},\"range\":{range},\"bytes\":{bytes},\"uploaded\":{uploaded},\
         \"not_modified\":{not_modified},\"partial\":{partial},\"finished\":{finished},\"abandoned\":{abandoned}}}\n"
    )
}

fn json(text: &str) -> Answer {
    plain(200, text.to_owned()).header("content-type", "application/json")
}

fn lies() -> String {
    let mut text = String::new();
    for lie in Lie::ALL {
        let class = format!("{:?}", lie.class()).to_lowercase();
        let _ = writeln!(text, "{:<28} {class:<10} {}", lie.name(), lie.about());
    }
    text
}

/// A string literal of JSON.
pub(crate) fn json_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if u32::from(c) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_queries() {
        assert_eq!(size("64k"), Some(65_536));
        assert_eq!(size("5g"), Some(5 << 30));
        assert_eq!(size("5x"), None);
        assert_eq!(size(""), None);
        assert_eq!(size("99999999999999999999"), None);
        let options = Options::parse("cc=max-age%3D60,+public&close&h=a:b");
        assert_eq!(options.get("cc"), Some("max-age=60, public"));
        assert_eq!(options.get("close"), Some(""));
        assert_eq!(decode("%zz%4"), "%zz%4");
    }
}
