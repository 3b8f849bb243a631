//! How each lie is told: some before the request's conditions and ranges are applied, most on the
//! finished reply.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::Method;

use crate::answer::{Answer, Body, CHUNK_BYTES, Framing, Interim, Ranges};
use crate::lie::{Lie, LieClass};
use crate::reply::{End, Reply, Source, Step, content_range};
use crate::request::Request;

/// A lie that spells out its body works on this much of it at most.
const SPELT_BYTES: u64 = 16 * 1024 * 1024;
const MEBIBYTE: usize = 1024 * 1024;
const ENDLESS_BYTES: usize = 64 * MEBIBYTE;
const DRIP: Duration = Duration::from_millis(100);
const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The reply with its lie. `nth` numbers the requests of this path, from 1.
pub(crate) fn lying_reply(lie: Lie, answer: &Answer, request: &Request, nth: u64) -> Reply {
    let mut reply = Reply::new(&prepared(lie, answer, request, nth), request);
    match lie.class() {
        LieClass::Cut => cut(lie, &mut reply),
        LieClass::Length => length(lie, &mut reply, request),
        LieClass::Chunk => chunk(lie, &mut reply),
        LieClass::Head => head(lie, &mut reply),
        LieClass::Interim => interim(lie, &mut reply),
        LieClass::Range => range(lie, &mut reply, request, nth),
        LieClass::Validator => validator(lie, &mut reply, request),
        LieClass::Stall => stall(lie, &mut reply),
        LieClass::Freshness | LieClass::Poison => {}
    }
    if request.method == Method::HEAD && lie != Lie::BodyOnHead {
        reply.body.clear();
        reply.after.clear();
        reply.last_chunk = false;
    }
    reply
}

/// What is a matter of the answer: its version, its validators, its fields.
fn prepared(lie: Lie, answer: &Answer, request: &Request, nth: u64) -> Answer {
    let mut answer = answer.clone();
    let ranged = request.headers.contains_key("range");
    if lie.class() == LieClass::Range {
        answer.ranges = Ranges::On;
    }
    let future = || httpdate::fmt_http_date(SystemTime::now() + TEN_YEARS);
    match lie {
        Lie::RangeIgnored => answer.ranges = Ranges::Lie,
        Lie::RangeOtherBody if ranged => other_body(&mut answer, 1),
        Lie::RangeOtherTag if ranged => {
            other_body(&mut answer, nth);
            answer.etag = Some(format!("\"range-{nth}\""));
            answer.ignore_if_range = true;
        }
        Lie::RangeNoTag if ranged => {
            answer.etag = None;
            answer.last_modified = None;
            answer.ignore_if_range = true;
        }
        Lie::RangeWeakTag if ranged => {
            answer.etag = answer.etag.map(|etag| format!("W/{etag}"));
            answer.ignore_if_range = true;
        }
        Lie::RangeIfRangeIgnored => answer.ignore_if_range = true,
        Lie::TagPerRequest => answer.etag = Some(format!("\"tag-{nth}\"")),
        Lie::BodyPerRequest => {
            other_body(&mut answer, nth);
            answer.etag = Some("\"same\"".to_owned());
        }
        Lie::TagWeakBytes => {
            other_body(&mut answer, nth);
            answer.etag = Some("W/\"same\"".to_owned());
        }
        Lie::BothPerRequest => {
            other_body(&mut answer, nth);
            answer.etag = Some(format!("\"tag-{nth}\""));
        }
        Lie::LengthPerRequest => {
            let less = nth - 1;
            match &mut answer.body {
                Body::Generated(size) => *size = size.saturating_sub(less),
                Body::Fixed(bytes) => bytes.truncate(bytes.len().saturating_sub(less as usize)),
            }
        }
        Lie::TagUnquoted => answer.etag = Some("unquoted".to_owned()),
        Lie::TagOpen => answer.etag = Some("\"open".to_owned()),
        Lie::TagTwice => answer = answer.etag("\"one\"").header("etag", "\"two\""),
        Lie::TagEmpty => answer.etag = Some("\"\"".to_owned()),
        Lie::TagHuge => answer.etag = Some(format!("\"{}\"", "a".repeat(64 * 1024))),
        Lie::ConditionIgnored => answer.conditional = false,
        Lie::ModifiedInFuture => answer.last_modified = Some(SystemTime::now() + TEN_YEARS),
        Lie::ModifiedGarbage => {
            answer.last_modified = None;
            answer = answer.header("last-modified", "yesterday");
        }
        Lie::HeadOtherTag if request.method == Method::HEAD => {
            answer.etag = Some("\"head\"".to_owned())
        }

        Lie::DateInFuture => replace(&mut answer, "date", future()),
        Lie::DateLongAgo => replace(&mut answer, "date", "Mon, 01 Jan 1990 00:00:00 GMT"),
        Lie::DateBeforeEpoch => replace(&mut answer, "date", "Fri, 01 Jan 1960 00:00:00 GMT"),
        Lie::DateGarbage => replace(&mut answer, "date", "now"),
        Lie::DateMissing => {
            remove(&mut answer, "date");
            answer = answer.no_date();
        }
        Lie::DateTwice => {
            replace(&mut answer, "date", future());
            answer = answer.header("date", "Mon, 01 Jan 1990 00:00:00 GMT");
        }
        Lie::AgeHuge => replace(&mut answer, "age", "99999999999999999999"),
        Lie::AgeNegative => replace(&mut answer, "age", "-3600"),
        Lie::AgeGarbage => replace(&mut answer, "age", "old"),
        Lie::AgeTwice => {
            replace(&mut answer, "age", "0");
            answer = answer.header("age", "86400");
        }
        Lie::AgeFromFuture => {
            replace(&mut answer, "date", future());
            replace(&mut answer, "age", "60");
        }
        Lie::MaxAgeHuge => answer = answer.cache_control("max-age=99999999999999999999"),
        Lie::MaxAgeNegative => answer = answer.cache_control("max-age=-1"),
        Lie::MaxAgeGarbage => answer = answer.cache_control("max-age=long"),
        Lie::MaxAgeTwice => answer = answer.cache_control("max-age=3600, max-age=0"),
        Lie::MaxAgeQuoted => answer = answer.cache_control("max-age=\"3600\""),
        Lie::MaxAgeSpaced => answer = answer.cache_control("max-age = 3600"),
        Lie::ExpiresGarbage => answer = without_freshness(answer).header("expires", "0"),
        Lie::ExpiresTwice => {
            answer = without_freshness(answer)
                .header("expires", "Mon, 01 Jan 1990 00:00:00 GMT")
                .header("expires", future());
        }
        Lie::DirectiveCase => answer = answer.cache_control("No-STORE, Max-Age=3600"),
        Lie::DirectiveInQuotes => {
            answer = answer.cache_control("ext=\"no-store, private\", max-age=3600")
        }
        Lie::DirectiveOpenQuote => {
            answer = answer.cache_control("max-age=3600, private=\"set-cookie")
        }
        Lie::DirectiveBomb => {
            let many: String = (0..10_000).map(|n| format!("x{n}={n}, ")).collect();
            answer = answer.cache_control(&format!("max-age=3600, {many}no-store"));
        }
        Lie::TargetedInvalid => {
            answer = answer
                .cache_control("no-store")
                .header("cdn-cache-control", "max-age=3600,, =;");
        }
        Lie::PragmaOnly => answer = without_freshness(answer).header("pragma", "no-cache"),

        Lie::CookieWithPublic => {
            answer = answer
                .cache_control("public, max-age=3600")
                .header("set-cookie", format!("session={nth}; Path=/"));
        }
        Lie::VaryStar => answer = answer.cache_control("max-age=3600").vary("*"),
        Lie::VaryBomb => {
            let many: Vec<_> = (0..1_000).map(|n| format!("x-vary-{n}")).collect();
            answer = answer.cache_control("max-age=3600").vary(&many.join(", "));
        }
        Lie::VaryFlips => {
            answer = answer
                .cache_control("max-age=3600")
                .vary(&format!("x-vary-{nth}"))
        }
        Lie::VaryInvalid => answer = answer.cache_control("max-age=3600").vary("@, accept"),
        Lie::EncodingFalse => answer = answer.header("content-encoding", "gzip"),
        Lie::EncodingUnknown => answer = answer.header("content-encoding", "rot13"),
        Lie::LinkBomb => {
            for n in 0..10_000 {
                answer = answer.header("link", format!("</bytes/1k/link-{n}>; rel=prefetch"));
            }
        }
        Lie::LinkInside => {
            for target in [
                "http://169.254.169.254/latest/meta-data/",
                "http://localhost/",
                "//127.0.0.1/",
                "http://[::ffff:127.0.0.1]/",
                "http://0x7f.1/",
                "file:///etc/passwd",
            ] {
                answer = answer.header("link", format!("<{target}>; rel=prefetch"));
            }
        }
        Lie::LocationOther => {
            answer = answer
                .cache_control("max-age=3600")
                .header("location", "http://other.example/a")
                .header("content-location", "http://other.example/b");
        }
        Lie::LocationSplit => answer = answer.header("location", "/a%0d%0aset-cookie:%20split=1"),
        Lie::ErrorCacheable => answer = answer.with_status(500).cache_control("max-age=3600"),
        Lie::StatusFlips if nth.is_multiple_of(2) => answer = answer.with_status(503),
        Lie::LoopSelf => answer = answer.header("via", "1.1 caje").header("cdn-loop", "caje"),
        Lie::CacheStatusForged => {
            answer = answer.header("cache-status", "\"caje/lhr\"; hit; ttl=999")
        }
        Lie::TypeTwice => {
            remove(&mut answer, "content-type");
            answer = answer
                .header("content-type", "text/plain")
                .header("content-type", "text/html");
        }
        Lie::TypeMissing => {
            remove(&mut answer, "content-type");
            answer.content_type = false;
        }
        _ => {}
    }
    answer
}

/// Another body: another version of a generated one, other bytes of a fixed one.
fn other_body(answer: &mut Answer, by: u64) {
    match &mut answer.body {
        Body::Generated(_) => answer.version = answer.version.wrapping_add(by),
        Body::Fixed(bytes) => {
            *bytes = bytes
                .iter()
                .map(|byte| byte.wrapping_add(by as u8))
                .collect();
        }
    }
}

fn without_freshness(mut answer: Answer) -> Answer {
    for name in ["cache-control", "expires", "age"] {
        remove(&mut answer, name);
    }
    answer
}

fn remove(answer: &mut Answer, name: &str) {
    answer
        .headers
        .retain(|(n, _)| !n.eq_ignore_ascii_case(name));
}

fn replace(answer: &mut Answer, name: &str, value: impl AsRef<[u8]>) {
    remove(answer, name);
    answer
        .headers
        .push((name.to_owned(), value.as_ref().to_vec()));
}

fn cut(lie: Lie, reply: &mut Reply) {
    let whole = reply.body_length();
    reply.end = End::Close;
    match lie {
        Lie::Truncated => {
            length_framed(reply);
            keep(reply, whole / 2);
        }
        Lie::TruncatedReset => {
            length_framed(reply);
            keep(reply, whole / 2);
            reply.end = End::Reset;
        }
        Lie::TruncatedByOne => {
            length_framed(reply);
            keep(reply, whole.saturating_sub(1));
        }
        Lie::TruncatedChunked => {
            chunk_framed(reply);
            keep(reply, whole / 2);
            reply.last_chunk = false;
        }
        Lie::TruncatedInChunk => {
            let half = content(reply).slice(..(whole.min(SPELT_BYTES) / 2) as usize);
            let mut wire = format!("{whole:x}\r\n").into_bytes();
            wire.extend_from_slice(&half);
            spelt_chunks(reply, wire);
        }
        Lie::TruncatedBeforeLastCrlf => {
            chunk_framed(reply);
            reply.last_chunk = false;
            reply.after.push(Step::Raw(Bytes::from_static(b"0\r\n")));
        }
        Lie::TruncatedCloseReset => {
            unframed(reply);
            keep(reply, whole / 2);
            reply.end = End::Reset;
        }
        Lie::TruncatedHead => half_head(reply),
        Lie::HeadOnly => {
            length_framed(reply);
            reply.body.clear();
        }
        Lie::EmptyReply => nothing(reply),
        Lie::ResetReply => {
            nothing(reply);
            reply.end = End::Reset;
        }
        Lie::KeepAliveClosed => reply.set("connection", "keep-alive"),
        Lie::CloseKept => {
            reply.set("connection", "close");
            reply.end = End::Hold;
        }
        _ => {}
    }
}

fn length(lie: Lie, reply: &mut Reply, request: &Request) {
    let whole = reply.body_length();
    let extra = || Step::Raw(Bytes::from(vec![b'+'; 100]));
    match lie {
        Lie::OverLong => {
            length_framed(reply);
            reply.after.push(extra());
        }
        Lie::OverLongClose => {
            length_framed(reply);
            reply.after.push(extra());
            reply.end = End::Close;
        }
        Lie::SecondResponse => {
            length_framed(reply);
            let second = "HTTP/1.1 200 OK\r\ncache-control: max-age=3600\r\ncontent-length: 9\r\n\r\npoisoned\n";
            reply.after.push(Step::Raw(second.into()));
        }
        Lie::BytesAfterChunks => {
            chunk_framed(reply);
            reply.after.push(extra());
        }
        Lie::BodyOnNoContent => {
            reply.status = 204;
            bare(reply);
        }
        Lie::BodyOnNotModified => reply.status = 304,
        Lie::BodyOnHead if request.method == Method::HEAD => {
            reply.body = vec![Step::Source(0..reply.source.length())];
        }
        Lie::LengthAndChunked => {
            chunk_framed(reply);
            reply.add("content-length", (whole / 2).to_string());
        }
        Lie::ChunkedAndLength => {
            bare(reply);
            reply
                .fields
                .insert(0, ("transfer-encoding".to_owned(), b"chunked".to_vec()));
            reply.add("content-length", whole.to_string());
        }
        Lie::TwoLengths => {
            length_framed(reply);
            reply.add("content-length", (whole / 2).to_string());
        }
        Lie::TwoLengthsSame => {
            length_framed(reply);
            reply.add("content-length", whole.to_string());
        }
        Lie::LengthList => declared(reply, format!("{whole}, {}", whole / 2)),
        Lie::LengthListSame => declared(reply, format!("{whole}, {whole}")),
        Lie::LengthNegative => declared(reply, format!("-{whole}")),
        Lie::LengthPlus => declared(reply, format!("+{whole}")),
        Lie::LengthHex => declared(reply, format!("0x{whole:x}")),
        Lie::LengthFraction => declared(reply, format!("{whole}.0")),
        Lie::LengthOverflow => declared(reply, (u128::from(whole) + (1 << 64)).to_string()),
        Lie::LengthHuge => {
            declared(reply, i64::MAX.to_string());
            reply.end = End::Hold;
        }
        Lie::LengthGarbage => declared(reply, "many".to_owned()),
        Lie::LengthEmpty => declared(reply, String::new()),
        Lie::LengthInnerSpace => {
            let digits = format!("{whole:02}");
            let (first, rest) = digits.split_at(1);
            declared(reply, format!("{first} {rest}"));
        }
        Lie::UnknownCoding => {
            unframed(reply);
            reply.add("transfer-encoding", "br");
        }
        Lie::IdentityCoding => {
            length_framed(reply);
            reply.add("transfer-encoding", "identity");
        }
        Lie::IdentityChunked => coded(reply, "identity, chunked"),
        Lie::ChunkedTwice => coded(reply, "chunked, chunked"),
        Lie::ChunkedNotLast => {
            unframed(reply);
            reply.add("transfer-encoding", "chunked, gzip");
        }
        Lie::GzipChunked => coded(reply, "gzip, chunked"),
        Lie::TwoCodingLines => {
            chunk_framed(reply);
            reply.add("transfer-encoding", "identity");
        }
        Lie::CodingMisspelt => coded(reply, "xchunked"),
        Lie::CodingVerticalTab => coded(reply, "\u{b}chunked"),
        Lie::ChunkedOnHttp10 => {
            chunk_framed(reply);
            reply.http10 = true;
            reply.end = End::Close;
        }
        Lie::ChunkedOnNoContent => {
            chunk_framed(reply);
            reply.status = 204;
            reply.body.clear();
        }
        _ => {}
    }
}

fn chunk(lie: Lie, reply: &mut Reply) {
    let body = content(reply);
    let (first, second) = body.split_at(body.len() / 2);
    let whole = |size_of: &dyn Fn(usize) -> String| {
        let mut wire = Vec::new();
        for piece in [first, second] {
            spell(&mut wire, &size_of(piece.len()), piece);
        }
        wire.extend_from_slice(b"0\r\n\r\n");
        wire
    };
    // The first chunk is right; the second one's size is this.
    let second_size = |size: &str| {
        let mut wire = Vec::new();
        spell(&mut wire, &format!("{:x}", first.len()), first);
        spell(&mut wire, size, second);
        wire.extend_from_slice(b"0\r\n\r\n");
        wire
    };
    let one = || {
        let mut wire = Vec::new();
        spell(&mut wire, &format!("{:x}", body.len()), &body);
        wire
    };
    let wire = match lie {
        Lie::ChunkSizeGarbage => second_size("ZZ"),
        Lie::ChunkSizeOverflow => second_size("10000000000000005"),
        Lie::ChunkSizeNegative => second_size("-5"),
        Lie::ChunkSizePrefix => second_size("0x5"),
        Lie::ChunkSizeSpace => whole(&|length| format!(" {length:x}")),
        Lie::ChunkSizeEmpty => second_size(""),
        Lie::ChunkBareLf => {
            let mut wire = format!("{:x}\n", body.len()).into_bytes();
            wire.extend_from_slice(&body);
            wire.extend_from_slice(b"\n0\n\n");
            wire
        }
        Lie::ChunkNoCrlf => {
            let mut wire = format!("{:x}\r\n", body.len()).into_bytes();
            wire.extend_from_slice(&body);
            wire.extend_from_slice(b"0\r\n\r\n");
            wire
        }
        Lie::ChunkTooLong => {
            let mut wire = Vec::new();
            let size = format!("{:x}", body.len().saturating_sub(3));
            spell(&mut wire, &size, &body);
            wire.extend_from_slice(b"0\r\n\r\n");
            wire
        }
        Lie::ChunkExtensionHuge => {
            let extension = "e".repeat(MEBIBYTE);
            whole(&|length| format!("{length:x};a={extension}"))
        }
        Lie::ChunkExtensionMany => {
            let extension = "e".repeat(4096);
            let mut wire = Vec::new();
            for byte in body.iter().take(16 * 1024) {
                spell(&mut wire, &format!("1;a={extension}"), &[*byte]);
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            wire
        }
        Lie::ChunkExtensionLf => whole(&|length| format!("{length:x};a\nb")),
        Lie::ChunkTrailerBomb => {
            let mut wire = one();
            wire.extend_from_slice(b"0\r\n");
            for n in 0..10_000 {
                wire.extend_from_slice(format!("x-trailer-{n}: {n}\r\n").as_bytes());
            }
            wire.extend_from_slice(b"\r\n");
            wire
        }
        Lie::ChunkTrailerHuge => {
            let mut wire = one();
            wire.extend_from_slice(
                format!("0\r\nx-trailer: {}\r\n\r\n", "t".repeat(MEBIBYTE)).as_bytes(),
            );
            wire
        }
        Lie::ChunkTrailerFraming => {
            let mut wire = one();
            wire.extend_from_slice(
                b"0\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\ncache-control: max-age=3600\r\nhost: other\r\n\r\n",
            );
            wire
        }
        Lie::ChunkTrailerBareLf => {
            let mut wire = one();
            wire.extend_from_slice(b"0\r\nx-trailer: 1\nx-more: 2\n\n");
            wire
        }
        Lie::ChunkOneByte => {
            let mut wire = Vec::with_capacity(body.len() * 6);
            for byte in &body {
                spell(&mut wire, "1", &[*byte]);
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            wire
        }
        Lie::ChunkZeroEarly => {
            let mut wire = Vec::new();
            spell(&mut wire, &format!("{:x}", first.len()), first);
            wire.extend_from_slice(b"0\r\n\r\n");
            spell(&mut wire, &format!("{:x}", second.len()), second);
            wire.extend_from_slice(b"0\r\n\r\n");
            wire
        }
        Lie::ChunkNever => {
            let mut wire = one();
            wire.extend_from_slice(b"1;");
            let line = Bytes::from(vec![b'e'; 64 * 1024]);
            let times = (ENDLESS_BYTES / line.len()) as u64;
            reply.after.push(Step::Repeat(line, times));
            reply.end = End::Close;
            wire
        }
        _ => return,
    };
    spelt_chunks(reply, wire);
    if !matches!(
        lie,
        Lie::ChunkExtensionHuge | Lie::ChunkExtensionMany | Lie::ChunkOneByte
    ) {
        reply.end = if reply.end == End::Next && !is_kept(lie) {
            End::Close
        } else {
            reply.end
        };
    }
}

/// Whether the connection is kept after this lie about chunks: where a reader that believes it
/// would go on.
fn is_kept(lie: Lie) -> bool {
    matches!(
        lie,
        Lie::ChunkTrailerBomb
            | Lie::ChunkTrailerHuge
            | Lie::ChunkTrailerFraming
            | Lie::ChunkZeroEarly
            | Lie::ChunkTooLong
            | Lie::ChunkExtensionLf
    )
}

fn head(lie: Lie, reply: &mut Reply) {
    let line = |version: &str, status: &str| Some(format!("{version} {status}").into_bytes());
    match lie {
        Lie::BareLf => reply.eol = b"\n",
        Lie::BareCr => reply.lines.push(b"x-cr: a\rb".to_vec()),
        Lie::NulInValue => reply.lines.push(b"x-nul: a\0b".to_vec()),
        Lie::NulInName => reply.lines.push(b"x-\0nul: a".to_vec()),
        Lie::ControlInValue => reply.lines.push(b"x-control: a\x01b".to_vec()),
        Lie::ObsFold => reply.lines.push(b"x-fold: a\r\n b".to_vec()),
        Lie::SpaceBeforeColon => reply.lines.push(b"x-space : a".to_vec()),
        Lie::SpaceBeforeFirst => reply.status_line = line("HTTP/1.1", "200 OK\r\n x-first: a"),
        Lie::NoColon => reply.lines.push(b"x-no-colon".to_vec()),
        Lie::EmptyName => reply.lines.push(b": a".to_vec()),
        Lie::SpaceInName => reply.lines.push(b"x name: a".to_vec()),
        Lie::ObsText => reply.lines.push(b"x-latin: caf\xe9".to_vec()),
        Lie::HeaderBomb => reply
            .lines
            .extend((0..10_000).map(|n| format!("x-bomb-{n}: {n}").into_bytes())),
        Lie::HeaderHuge => reply
            .lines
            .push(format!("x-huge: {}", "h".repeat(MEBIBYTE)).into_bytes()),
        Lie::HeaderEndless => {
            let line = Bytes::from(format!("x-endless: {}\r\n", "h".repeat(1000)));
            let times = (ENDLESS_BYTES / line.len()) as u64;
            reply
                .before
                .push(Step::Raw(Bytes::from_static(b"HTTP/1.1 200 OK\r\n")));
            reply.before.push(Step::Repeat(line, times));
            reply.status_line = Some(b"x-last: 1".to_vec());
        }
        Lie::StatusLineGarbage => reply.status_line = Some(b"all is well".to_vec()),
        Lie::StatusTwoDigits => reply.status_line = line("HTTP/1.1", "20 OK"),
        Lie::StatusFourDigits => reply.status_line = line("HTTP/1.1", "2000 OK"),
        Lie::Status999 => {
            reply.status = 999;
            reply.status_line = line("HTTP/1.1", "999 Odd");
        }
        Lie::Status000 => reply.status_line = line("HTTP/1.1", "000 Odd"),
        Lie::Version09 => {
            no_head(reply);
            reply.end = End::Close;
        }
        Lie::Version2 => reply.status_line = line("HTTP/2.0", "200 OK"),
        Lie::Version12 => reply.status_line = line("HTTP/1.2", "200 OK"),
        Lie::Version9 => reply.status_line = line("HTTP/9.9", "200 OK"),
        Lie::Icy => reply.status_line = line("ICY", "200 OK"),
        Lie::NoReason => reply.status_line = line("HTTP/1.1", "200"),
        Lie::ReasonHuge => {
            reply.status_line = line("HTTP/1.1", &format!("200 {}", "r".repeat(64 * 1024)))
        }
        Lie::ReasonControl => reply.status_line = line("HTTP/1.1", "200 O\0K"),
        Lie::BlankLinesFirst => reply
            .before
            .push(Step::Raw(Bytes::from_static(b"\r\n\r\n\r\n"))),
        Lie::GarbageFirst => {
            reply.before.push(Step::Raw(Bytes::from_static(
                b"\x00\xff\x13garbage\x7f\x80 5#\r\n",
            )));
        }
        Lie::TlsAnswer => {
            nothing(reply);
            reply.before.push(Step::Raw(Bytes::from_static(
                b"\x15\x03\x03\x00\x02\x02\x28",
            )));
            reply.end = End::Close;
        }
        Lie::HopFields => {
            for (name, value) in [
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("proxy-authenticate", "Basic"),
                ("te", "trailers"),
                ("trailer", "x-sum"),
            ] {
                reply.add(name, value);
            }
        }
        Lie::ConnectionNominates => {
            reply.set(
                "connection",
                "keep-alive, Content-Length, Cache-Control, ETag, Age, Date",
            );
        }
        Lie::ConnectionBomb => {
            let names: Vec<_> = (0..10_000).map(|n| format!("x-hop-{n}")).collect();
            reply.set("connection", names.join(", "));
        }
        _ => {}
    }
}

fn interim(lie: Lie, reply: &mut Reply) {
    let raw = |text: &'static str| Step::Raw(Bytes::from_static(text.as_bytes()));
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </hint.css>; rel=preload\r\n\r\n";
    match lie {
        Lie::ThousandHints => reply.before.push(Step::Repeat(Bytes::from_static(hints.as_bytes()), 1_000)),
        Lie::EndlessContinue => {
            let line = Bytes::from_static(b"HTTP/1.1 100 Continue\r\n\r\n");
            reply.before.push(Step::Repeat(line, 1_000_000));
        }
        Lie::ContinueUnasked => reply.before.push(raw("HTTP/1.1 100 Continue\r\n\r\n")),
        Lie::SwitchUnasked => {
            nothing(reply);
            reply.before.push(raw(
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\ngarbage",
            ));
            reply.end = End::Close;
        }
        Lie::SwitchOther => {
            nothing(reply);
            reply.before.push(raw(
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: something-else/9\r\nconnection: upgrade\r\n\r\n",
            ));
            reply.end = End::Close;
        }
        Lie::HintsWithLength => reply.before.push(raw("HTTP/1.1 103 Early Hints\r\ncontent-length: 5\r\n\r\n")),
        Lie::HintsWithChunked => {
            reply.before.push(raw("HTTP/1.1 103 Early Hints\r\ntransfer-encoding: chunked\r\n\r\n"));
        }
        Lie::HintsOnly => {
            nothing(reply);
            reply.before.push(raw(hints));
            reply.end = End::Close;
        }
        Lie::HintsHuge => {
            let text = format!("HTTP/1.1 103 Early Hints\r\nx-huge: {}\r\n\r\n", "h".repeat(MEBIBYTE));
            reply.before.push(Step::Raw(text.into()));
        }
        Lie::InterimUnknown => reply.interim.push(Interim { status: 199, headers: Vec::new() }),
        Lie::HintsPoison => reply.before.push(raw(
            "HTTP/1.1 103 Early Hints\r\nset-cookie: hint=1\r\ncache-control: public, max-age=3600\r\netag: \"hint\"\r\n\r\n",
        )),
        Lie::UpgradeOffered => {
            reply.set("upgrade", "h2c");
            reply.set("connection", "upgrade");
        }
        _ => {}
    }
}

fn range(lie: Lie, reply: &mut Reply, request: &Request, nth: u64) {
    let total = reply.source.length();
    let ranged = request.headers.contains_key("range") && request.method == Method::GET;
    match lie {
        Lie::PartialUnasked if !ranged => {
            return partial(reply, 0..total / 2, content_range(&(0..total / 2), total));
        }
        Lie::PartialUnaskedWhole if !ranged => {
            return partial(reply, 0..total, content_range(&(0..total), total));
        }
        Lie::RangeRefused | Lie::RangeRefusedShrunk if ranged => {
            let told = if lie == Lie::RangeRefused {
                total
            } else {
                total / 2
            };
            reply.status = 416;
            reply.replace_body(Bytes::new());
            length_framed(reply);
            return reply.set("content-range", format!("bytes */{told}"));
        }
        Lie::RangeServerError if ranged => {
            reply.status = 500;
            reply.remove("content-range");
            reply.replace_body(Bytes::from_static(b"no ranges today\n"));
            return length_framed(reply);
        }
        _ => {}
    }
    // What follows bends an honest single range.
    let (206, [Step::Source(asked)]) = (reply.status, reply.body.as_slice()) else {
        return;
    };
    let asked = asked.clone();
    let length = asked.end - asked.start;
    let named = |reply: &mut Reply, text: String| reply.set("content-range", text);
    match lie {
        Lie::RangeShifted => {
            let start = (asked.start + 1).min(total - 1);
            let shifted = start..(start + length).min(total);
            let text = content_range(&shifted, total);
            partial(reply, shifted, text);
        }
        Lie::RangeMisnamed => {
            let start = asked.start + length;
            named(
                reply,
                content_range(&(start..start + length), total + 2 * length),
            );
        }
        Lie::RangeLonger => {
            let longer = asked.start..total;
            let text = content_range(&longer, total);
            partial(reply, longer, text);
        }
        Lie::RangeShorter => {
            let shorter = asked.start..asked.start + length.div_ceil(2);
            let text = content_range(&shorter, total);
            partial(reply, shorter, text);
        }
        Lie::RangeWhole => partial(reply, 0..total, content_range(&(0..total), total)),
        Lie::RangeTotalWrong => named(reply, content_range(&asked, total + 1_000)),
        Lie::RangeTotalChanges => named(reply, content_range(&asked, total + nth * 1_000)),
        Lie::RangeTotalUnknown => {
            named(reply, format!("bytes {}-{}/*", asked.start, asked.end - 1))
        }
        Lie::RangeTotalShort => named(reply, content_range(&asked, asked.start + length / 2)),
        Lie::RangeBackwards => {
            named(
                reply,
                format!("bytes {}-{}/{total}", asked.end, asked.start),
            );
        }
        Lie::RangeUnnamed => reply.remove("content-range"),
        Lie::RangeGarbage => named(reply, "bytes many".to_owned()),
        Lie::RangeUnit => named(
            reply,
            content_range(&asked, total).replace("bytes", "lines"),
        ),
        Lie::RangeTwice => {
            let other = content_range(&(asked.start + 1..asked.end + 1), total + 1);
            reply.add("content-range", other);
        }
        Lie::RangeLength => {
            keep(reply, length / 2);
            length_framed(reply);
        }
        Lie::RangeOverflow => {
            let beyond = u128::from(u64::MAX) + 1;
            let (first, last) = (
                beyond + u128::from(asked.start),
                beyond + u128::from(asked.end) - 1,
            );
            named(reply, format!("bytes {first}-{last}/{}", beyond * 2));
        }
        Lie::RangeTruncated => {
            length_framed(reply);
            keep(reply, length / 2);
            reply.end = End::Close;
        }
        Lie::RangeMultipart => multipart(reply, &[asked], total),
        Lie::RangeMultipartBroken => {
            multipart(reply, &[asked], total);
            reply.set("content-type", "multipart/byteranges; boundary=another");
        }
        Lie::RangeMultipartOther => {
            let other = (asked.end % total)..total;
            multipart(reply, &[asked, other], total);
        }
        _ => {}
    }
}

fn validator(lie: Lie, reply: &mut Reply, request: &Request) {
    let conditional = request.is_conditional();
    match lie {
        Lie::NotModifiedUnasked => not_modified(reply),
        Lie::NotModifiedAlways if conditional => not_modified(reply),
        Lie::NotModifiedOther if conditional => {
            not_modified(reply);
            reply.set("etag", "\"another\"");
        }
        Lie::NotModifiedPoison if conditional => {
            not_modified(reply);
            for (name, value) in [
                ("content-length", "1"),
                ("content-encoding", "gzip"),
                ("content-range", "bytes 0-0/1"),
                ("content-type", "text/html"),
            ] {
                reply.set(name, value);
            }
        }
        Lie::NotModifiedBare if conditional => {
            not_modified(reply);
            reply.fields.clear();
        }
        Lie::PreconditionUnasked if !conditional => {
            reply.status = 412;
            reply.replace_body(Bytes::new());
            length_framed(reply);
        }
        Lie::HeadOtherLength if request.method == Method::HEAD => {
            let length = reply.source.length() + 1_000;
            reply.set("content-length", length.to_string());
        }
        _ => {}
    }
}

fn stall(lie: Lie, reply: &mut Reply) {
    let whole = reply.body_length();
    match lie {
        Lie::StallHead => {
            nothing(reply);
            reply.end = End::Hold;
        }
        Lie::StallInHead => {
            half_head(reply);
            reply.end = End::Hold;
        }
        Lie::StallBody => {
            keep(reply, whole / 2);
            reply.last_chunk = false;
            reply.end = End::Hold;
        }
        Lie::StallEnd => {
            chunk_framed(reply);
            reply.last_chunk = false;
            reply.end = End::Hold;
        }
        Lie::DripHead => reply.drip_head = Some(DRIP),
        Lie::DripBody => {
            length_framed(reply);
            reply.framing = Framing::Bare;
            let spelt = std::mem::take(&mut reply.body);
            for step in spelt {
                match step {
                    Step::Source(range) => {
                        for at in range.start..range.end.min(range.start + SPELT_BYTES / 64) {
                            reply.body.push(Step::Source(at..at + 1));
                            reply.body.push(Step::Pause(DRIP));
                        }
                    }
                    step => reply.body.push(step),
                }
            }
        }
        Lie::DripInterim => {
            let hints = Bytes::from_static(b"HTTP/1.1 103 Early Hints\r\n\r\n");
            for _ in 0..36_000 {
                reply.before.push(Step::Raw(hints.clone()));
                reply.before.push(Step::Pause(DRIP));
            }
            nothing(reply);
            reply.end = End::Hold;
        }
        _ => {}
    }
}

/// The body as it would be sent, as far as a lie can spell it out.
fn content(reply: &Reply) -> Bytes {
    let mut out = BytesMut::new();
    for step in &reply.body {
        let room = SPELT_BYTES - out.len() as u64;
        match step {
            Step::Text(bytes) => out.extend_from_slice(bytes),
            Step::Source(range) => reply
                .source
                .append(range.start..range.end.min(range.start + room), &mut out),
            _ => {}
        }
    }
    out.freeze()
}

/// One chunk, whatever its size is said to be.
fn spell(wire: &mut Vec<u8>, size: &str, data: &[u8]) {
    wire.extend_from_slice(size.as_bytes());
    wire.extend_from_slice(b"\r\n");
    wire.extend_from_slice(data);
    wire.extend_from_slice(b"\r\n");
}

/// `Transfer-Encoding: chunked` and these bytes.
fn spelt_chunks(reply: &mut Reply, wire: Vec<u8>) {
    bare(reply);
    reply.set("transfer-encoding", "chunked");
    reply.body = vec![Step::Raw(wire.into())];
}

/// No framing at all.
fn bare(reply: &mut Reply) {
    reply.remove("content-length");
    reply.remove("transfer-encoding");
    reply.trailers.clear();
    reply.framing = Framing::Bare;
}

/// The right `Content-Length` of what the body is now.
fn length_framed(reply: &mut Reply) {
    bare(reply);
    reply.framing = Framing::Length;
    let length = reply.body_length();
    reply.set("content-length", length.to_string());
}

/// This `Content-Length` over the plain body.
fn declared(reply: &mut Reply, length: String) {
    bare(reply);
    reply.set("content-length", length);
}

fn chunk_framed(reply: &mut Reply) {
    coded(reply, "chunked");
}

/// This `Transfer-Encoding` over a chunked body.
fn coded(reply: &mut Reply, coding: &str) {
    reply.remove("content-length");
    reply.set("transfer-encoding", coding);
    if !matches!(reply.framing, Framing::Chunked(_)) {
        reply.framing = Framing::Chunked(CHUNK_BYTES);
    }
}

/// The end of the connection ends the body.
fn unframed(reply: &mut Reply) {
    bare(reply);
    reply.framing = Framing::Close;
    reply.end = End::Close;
}

/// Keeps the first `length` bytes of the body; the head stays.
fn keep(reply: &mut Reply, length: u64) {
    let mut room = length;
    for step in &mut reply.body {
        match step {
            Step::Text(bytes) => {
                bytes.truncate(usize::try_from(room).unwrap_or(usize::MAX));
                room -= bytes.len() as u64;
            }
            Step::Source(range) => {
                range.end = range.end.min(range.start + room);
                room -= range.end - range.start;
            }
            _ => {}
        }
    }
}

fn no_head(reply: &mut Reply) {
    reply.status_line = Some(Vec::new());
    reply.fields.clear();
    reply.lines.clear();
    reply.eol = b"";
    reply.framing = Framing::Bare;
    reply.trailers.clear();
}

/// Neither head nor body.
fn nothing(reply: &mut Reply) {
    no_head(reply);
    reply.source = Source::Fixed(Bytes::new());
    reply.body.clear();
}

fn half_head(reply: &mut Reply) {
    let mut head = BytesMut::new();
    reply.head(&mut head);
    head.truncate(head.len() / 2);
    nothing(reply);
    reply.before.push(Step::Raw(head.freeze()));
}

/// 206 with these bytes under this name.
fn partial(reply: &mut Reply, bytes: Range<u64>, name: String) {
    reply.status = 206;
    if !reply.body.is_empty() {
        reply.body = vec![Step::Source(bytes)];
    }
    reply.set("content-range", name);
    length_framed(reply);
}

fn multipart(reply: &mut Reply, ranges: &[Range<u64>], total: u64) {
    reply.remove("content-range");
    reply.multipart(ranges, total);
    length_framed(reply);
}

fn not_modified(reply: &mut Reply) {
    reply.not_modified();
    bare(reply);
}
