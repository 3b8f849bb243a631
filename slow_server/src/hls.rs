//! The HLS presentation: real segments, playlists written here.
//!
//! `/hls/vod/` is on demand. `/hls/live/` moves on by itself, a segment each two seconds since the
//! start of the server; `/hls/manual/` is live too and moves on only when it is told to. A live
//! presentation plays the ten segments again and again, under running numbers.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::answer::Answer;
use crate::body::hash;
use crate::http1::plain;

macro_rules! segments {
    ($variant:literal) => {
        [
            include_bytes!(concat!("../hls/", $variant, "/0.ts")),
            include_bytes!(concat!("../hls/", $variant, "/1.ts")),
            include_bytes!(concat!("../hls/", $variant, "/2.ts")),
            include_bytes!(concat!("../hls/", $variant, "/3.ts")),
            include_bytes!(concat!("../hls/", $variant, "/4.ts")),
            include_bytes!(concat!("../hls/", $variant, "/5.ts")),
            include_bytes!(concat!("../hls/", $variant, "/6.ts")),
            include_bytes!(concat!("../hls/", $variant, "/7.ts")),
            include_bytes!(concat!("../hls/", $variant, "/8.ts")),
            include_bytes!(concat!("../hls/", $variant, "/9.ts")),
        ]
    };
}

const SEGMENTS: u64 = 10;
const SEGMENT: Duration = Duration::from_secs(2);
/// Segments in a live playlist.
const WINDOW: u64 = 5;

static LOW: [&[u8]; SEGMENTS as usize] = segments!("low");
static HIGH: [&[u8]; SEGMENTS as usize] = segments!("high");

const MASTER: &str = "#EXTM3U
#EXT-X-VERSION:3
#EXT-X-STREAM-INF:BANDWIDTH=130000,RESOLUTION=160x90,CODECS=\"avc1.42c00a,mp4a.40.2\"
low/index.m3u8
#EXT-X-STREAM-INF:BANDWIDTH=380000,RESOLUTION=320x180,CODECS=\"avc1.42c00c,mp4a.40.2\"
high/index.m3u8
";

/// The bytes of a segment: of `/hls/vod/low/3.ts`, or under `live` or `manual` and `high`. None for
/// what is no segment.
#[must_use]
pub fn hls_body(path: &str) -> Option<&'static [u8]> {
    let path = path.split('?').next().unwrap_or_default();
    let mut parts = path.strip_prefix("/hls/")?.split('/');
    let (show, variant, name) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let number: u64 = name.strip_suffix(".ts")?.parse().ok()?;
    let within = match show {
        "vod" => number < SEGMENTS,
        "live" | "manual" => true,
        _ => false,
    };
    let segment = (number % SEGMENTS) as usize;
    match variant {
        "low" if within => Some(LOW[segment]),
        "high" if within => Some(HIGH[segment]),
        _ => None,
    }
}

/// Where the live presentations are.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    ticks: AtomicU64,
}

impl Clock {
    pub(crate) fn new() -> Clock {
        Clock {
            started: Instant::now(),
            ticks: AtomicU64::new(0),
        }
    }

    pub(crate) fn tick(&self, n: u64) {
        self.ticks.fetch_add(n, Relaxed);
    }

    /// How many segments have left the window.
    fn passed(&self, show: &str) -> Option<u64> {
        match show {
            "live" => Some(self.started.elapsed().as_secs() / SEGMENT.as_secs()),
            "manual" => Some(self.ticks.load(Relaxed)),
            _ => None,
        }
    }

    /// Answers what is below `/hls/`.
    pub(crate) fn answer(&self, path: &str) -> Answer {
        let unknown = || plain(404, "no such part of the presentation\n");
        let Some((show, rest)) = path
            .strip_prefix("/hls/")
            .and_then(|rest| rest.split_once('/'))
        else {
            return unknown();
        };
        let passed = self.passed(show);
        if passed.is_none() && show != "vod" {
            return unknown();
        }
        if let Some(bytes) = hls_body(path) {
            let number = rest
                .rsplit('/')
                .next()
                .and_then(|name| name.strip_suffix(".ts")?.parse().ok())
                .unwrap_or(0);
            return match passed {
                Some(passed) if number >= passed + WINDOW => {
                    plain(404, "this segment is still to come\n")
                }
                _ => segment(bytes, number, show == "vod"),
            };
        }
        match rest {
            "master.m3u8" => playlist(MASTER.to_owned(), "max-age=60"),
            "low/index.m3u8" | "high/index.m3u8" => match passed {
                None => playlist(media(0, SEGMENTS, true), "max-age=60"),
                Some(passed) => playlist(media(passed, WINDOW, false), "max-age=1"),
            },
            _ => unknown(),
        }
    }
}

fn segment(bytes: &'static [u8], number: u64, ends: bool) -> Answer {
    let answer = Answer::ok()
        .body(Bytes::from_static(bytes))
        .header("content-type", "video/mp2t")
        .cache_control("public, max-age=31536000, immutable")
        .etag(&format!("\"{:016x}\"", hash(bytes)))
        .ranges(true);
    if ends && number + 1 >= SEGMENTS {
        return answer;
    }
    answer.header(
        "link",
        format!("<{}.ts>; rel=prefetch; as=video", number + 1),
    )
}

fn playlist(text: String, cache_control: &str) -> Answer {
    let etag = format!("\"{:016x}\"", hash(text.as_bytes()));
    Answer::ok()
        .body(text)
        .header("content-type", "application/vnd.apple.mpegurl")
        .header("access-control-allow-origin", "*")
        .cache_control(cache_control)
        .etag(&etag)
}

/// A media playlist of `count` segments from number `first` on.
fn media(first: u64, count: u64, ends: bool) -> String {
    let mut text = format!(
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:{}\n#EXT-X-MEDIA-SEQUENCE:{first}\n",
        SEGMENT.as_secs()
    );
    if ends {
        text.push_str("#EXT-X-PLAYLIST-TYPE:VOD\n");
    } else {
        // How many breaks have left the window: one before each multiple of ten but the first.
        let _ = writeln!(
            text,
            "#EXT-X-DISCONTINUITY-SEQUENCE:{}",
            first.saturating_sub(1) / SEGMENTS
        );
    }
    for number in first..first + count {
        if number > 0 && number.is_multiple_of(SEGMENTS) {
            text.push_str("#EXT-X-DISCONTINUITY\n");
        }
        let _ = writeln!(text, "#EXTINF:{:.3},\n{number}.ts", SEGMENT.as_secs_f64());
    }
    if ends {
        text.push_str("#EXT-X-ENDLIST\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_transport_streams_and_small() {
        let all: Vec<_> = LOW.iter().chain(&HIGH).collect();
        assert!(
            all.iter()
                .all(|segment| segment[0] == 0x47 && segment.len() % 188 == 0)
        );
        assert!(all.iter().map(|segment| segment.len()).sum::<usize>() < 3_000_000);
        assert_eq!(hls_body("/hls/live/low/13.ts"), Some(LOW[3]));
        assert_eq!(hls_body("/hls/vod/low/13.ts"), None);
        assert_eq!(hls_body("/hls/vod/low/index.m3u8"), None);
    }

    #[test]
    fn a_live_playlist_slides() {
        let text = media(8, 5, false);
        assert!(text.contains("#EXT-X-MEDIA-SEQUENCE:8\n#EXT-X-DISCONTINUITY-SEQUENCE:0\n"));
        assert!(text.contains("9.ts\n#EXT-X-DISCONTINUITY\n#EXTINF:2.000,\n10.ts\n"));
        assert!(media(11, 5, false).contains("#EXT-X-DISCONTINUITY-SEQUENCE:1\n"));
        assert!(media(10, 5, false).contains("#EXT-X-DISCONTINUITY-SEQUENCE:0\n"));
    }
}
