//! Values: TOML's types made into sizes, durations and the like. Each reader says what it wanted
//! and what would do.

use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::network::{Address, BadAddress, Cidr, HostPattern, OriginUrl};

/// Why a value will not do.
#[derive(Debug, PartialEq)]
pub(super) struct Wrong {
    pub(super) reason: String,
    pub(super) hint: Option<String>,
}

impl Wrong {
    pub(super) fn new(reason: impl Into<String>) -> Wrong {
        Wrong {
            reason: reason.into(),
            hint: None,
        }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Wrong {
        Wrong {
            hint: Some(hint.into()),
            ..self
        }
    }

    fn kind(expected: &str, found: &DeValue) -> Wrong {
        Wrong::new(format!(
            "this must be {expected}, but is {}",
            kind_of(found)
        ))
    }
}

impl From<BadAddress> for Wrong {
    fn from(error: BadAddress) -> Wrong {
        Wrong::new(error.0)
    }
}

pub(super) type Read<T> = Result<T, Wrong>;

fn kind_of(value: &DeValue) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

pub(super) fn text<'v>(value: &'v DeValue) -> Read<&'v str> {
    match value {
        DeValue::String(text) => Ok(text),
        DeValue::Integer(number) => {
            Err(Wrong::kind("a string", value).hint(format!("did you mean \"{number}\"?")))
        }
        other => Err(Wrong::kind("a string", other)),
    }
}

pub(super) fn string(value: &DeValue) -> Read<String> {
    match text(value)? {
        "" => Err(Wrong::new("this may not be empty")),
        text => Ok(text.to_owned()),
    }
}

pub(super) fn path(value: &DeValue) -> Read<PathBuf> {
    string(value).map(PathBuf::from)
}

pub(super) fn boolean(value: &DeValue) -> Read<bool> {
    match value {
        DeValue::Boolean(value) => Ok(*value),
        DeValue::String(text) if matches!(&**text, "true" | "false") => {
            Err(Wrong::kind("true or false", value)
                .hint(format!("did you mean {text}, without quotes?")))
        }
        other => Err(Wrong::kind("true or false", other)),
    }
}

pub(super) fn integer(value: &DeValue) -> Read<u64> {
    match value {
        DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix())
            .map_err(|_| Wrong::new(format!("{number} is not in the range of this setting"))),
        DeValue::String(text) if text.parse::<u64>().is_ok() => {
            Err(Wrong::kind("a whole number", value)
                .hint(format!("did you mean {text}, without quotes?")))
        }
        other => Err(Wrong::kind("a whole number", other)),
    }
}

/// A whole number within bounds.
pub(super) fn count(min: u64, max: u64) -> impl Fn(&DeValue) -> Read<u64> {
    move |value| match integer(value)? {
        number if (min..=max).contains(&number) => Ok(number),
        number => Err(Wrong::new(format!(
            "{number} is out of range: {min} to {max}"
        ))),
    }
}

const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// `"64MiB"`, `"500B"`, `"10GB"`, or an integer of bytes.
pub(super) fn size(value: &DeValue) -> Read<u64> {
    const WANTED: &str = "a size, such as \"64MiB\"";
    if value.is_integer() {
        return integer(value);
    }
    let DeValue::String(text) = value else {
        return Err(Wrong::kind(WANTED, value));
    };
    // Nothing is nothing in any unit.
    if text == "0" {
        return Ok(0);
    }
    let wrong = || Wrong::new(format!("`{text}` is no size"));
    let (digits, unit) = split_number(text);
    if digits.is_empty() {
        return Err(wrong().hint("a size is a whole number and a unit, such as \"64MiB\""));
    }
    if let Some((_, factor)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) {
        let number = digits.parse::<u64>().ok();
        return number
            .and_then(|number| number.checked_mul(*factor))
            .ok_or_else(|| wrong().hint("it is too large"));
    }
    let guess = SIZE_UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
        .or_else(|| {
            let initial = unit.chars().next()?.to_ascii_uppercase();
            SIZE_UNITS
                .iter()
                .find(|(name, _)| unit.len() <= 2 && name.starts_with(initial))
        });
    Err(match guess {
        Some((unit, _)) => wrong().hint(format!("did you mean \"{digits}{unit}\"?")),
        None if unit.is_empty() => {
            wrong().hint(format!("did you mean \"{digits}B\" or \"{digits}MiB\"?"))
        }
        None => wrong()
            .hint("the units are B, KiB, MiB, GiB, TiB, KB, MB, GB, TB; the number is a whole one"),
    })
}

/// A size within bounds, which are powers of two.
pub(super) fn size_within(min: u64, max: u64) -> impl Fn(&DeValue) -> Read<u64> {
    move |value| match size(value)? {
        bytes if (min..=max).contains(&bytes) => Ok(bytes),
        _ => Err(Wrong::new(format!(
            "this is out of range: {} to {}",
            show_size(min),
            show_size(max)
        ))),
    }
}

/// In the largest unit that leaves a whole number.
pub(super) fn show_size(bytes: u64) -> String {
    let binary = &SIZE_UNITS[..5];
    let (unit, factor) = binary
        .iter()
        .rev()
        .find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor))
        .unwrap_or(&SIZE_UNITS[0]);
    format!("{}{unit}", bytes / factor)
}

const TIME_UNITS: [(&str, u64); 6] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
];

/// `"4s"`, `"500ms"`, `"1h30m"`.
pub(super) fn duration(value: &DeValue) -> Read<Duration> {
    const WANTED: &str = "a duration, such as \"4s\"";
    let text = match value {
        DeValue::String(text) => &**text,
        DeValue::Integer(number) => {
            return Err(Wrong::kind(WANTED, value).hint(format!("did you mean \"{number}s\"?")));
        }
        other => return Err(Wrong::kind(WANTED, other)),
    };
    let wrong = || Wrong::new(format!("`{text}` is no duration"));
    let mut rest = text.trim();
    let mut micros: u64 = 0;
    if rest.is_empty() {
        return Err(wrong().hint("a duration is a whole number and a unit, such as \"4s\""));
    }
    while !rest.is_empty() {
        let (digits, after) = split_number(rest);
        let unit_end = after
            .find(|c: char| !c.is_alphabetic())
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        if digits.is_empty() {
            return Err(wrong().hint("a duration is a whole number and a unit, such as \"4s\""));
        }
        let Some((_, factor)) = TIME_UNITS.iter().find(|(name, _)| *name == unit) else {
            let guess = match unit.to_ascii_lowercase().as_str() {
                "" if next.is_empty() => "s",
                "sec" | "secs" | "second" | "seconds" | "s" => "s",
                "min" | "mins" | "minute" | "minutes" => "m",
                "hour" | "hours" | "hr" | "hrs" | "h" => "h",
                "day" | "days" | "d" => "d",
                "msec" | "millis" | "milliseconds" | "ms" => "ms",
                _ => {
                    return Err(
                        wrong().hint("the units are us, ms, s, m, h, d; the number is a whole one")
                    );
                }
            };
            return Err(wrong().hint(format!("did you mean \"{digits}{guess}\"?")));
        };
        micros = digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(*factor))
            .and_then(|part| micros.checked_add(part))
            .ok_or_else(|| wrong().hint("it is too long"))?;
        rest = next;
    }
    Ok(Duration::from_micros(micros))
}

/// A duration within bounds.
pub(super) fn duration_within(min: Duration, max: Duration) -> impl Fn(&DeValue) -> Read<Duration> {
    move |value| match duration(value)? {
        duration if (min..=max).contains(&duration) => Ok(duration),
        duration => Err(Wrong::new(format!(
            "{duration:?} is out of range: {min:?} to {max:?}"
        ))),
    }
}

fn split_number(text: &str) -> (&str, &str) {
    text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    )
}

/// One of a few words.
pub(super) fn one_of<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&DeValue) -> Read<T> {
    move |value| {
        let word = text(value)?;
        if let Some((_, found)) = words.iter().find(|(name, _)| *name == word) {
            return Ok(*found);
        }
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        let wrong = Wrong::new(format!("`{word}` is none of {}", names.join(", ")));
        Err(match nearest(word, names.iter().copied()) {
            Some(name) => wrong.hint(format!("did you mean \"{name}\"?")),
            None => wrong,
        })
    }
}

/// The name that was probably meant, if one is near enough.
pub(super) fn nearest<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let plain = |name: &str| name.to_ascii_lowercase().replace('-', "_");
    let word = plain(word);
    names
        .map(|name| (strsim::damerau_levenshtein(&word, &plain(name)), name))
        .filter(|(distance, name)| *distance <= 1 + name.len().min(word.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// A token (RFC 9110 section 5.6.2), as in `Via`.
pub(super) fn token(value: &DeValue) -> Read<String> {
    let text = string(value)?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.len() <= 64 && text.bytes().all(is_token) {
        Ok(text)
    } else {
        Err(Wrong::new(format!(
            "`{text}` is no token: up to 64 letters, digits, `-`, `_`, `.`"
        )))
    }
}

/// A name that goes into labels, logs and fields: letters, digits, `-`, `_`, `.`.
pub(super) fn name(value: &DeValue) -> Read<String> {
    let text = string(value)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.len() <= 64 && text.bytes().all(is_plain) {
        Ok(text)
    } else {
        Err(Wrong::new(format!(
            "`{text}` is no name: up to 64 letters, digits, `-`, `_`, `.`"
        )))
    }
}

pub(super) fn address(value: &DeValue) -> Read<Address> {
    Ok(Address::parse(text(value)?)?)
}

pub(super) fn origin_url(value: &DeValue) -> Read<OriginUrl> {
    Ok(OriginUrl::parse(text(value)?)?)
}

pub(super) fn host_pattern(value: &DeValue) -> Read<HostPattern> {
    Ok(HostPattern::parse(text(value)?)?)
}

pub(super) fn cidr(value: &DeValue) -> Read<Cidr> {
    Ok(Cidr::parse(text(value)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T>(
        reader: impl Fn(&DeValue) -> Read<T>,
        toml: &str,
    ) -> Result<T, (String, Option<String>)> {
        let value = DeValue::parse(toml).unwrap();
        reader(value.get_ref()).map_err(|wrong| (wrong.reason, wrong.hint))
    }

    #[test]
    fn sizes() {
        let check =
            |toml: &str, expected: u64| assert_eq!(read(size, toml), Ok(expected), "{toml}");
        check("\"64MiB\"", 64 << 20);
        check("\"10GB\"", 10_000_000_000);
        check("\"500B\"", 500);
        check("\"0B\"", 0);
        check("65_536", 65_536);
        check("0x1000", 4096);
        let check = |toml: &str, expected: &str| {
            let (_, hint) = read(size, toml).unwrap_err();
            assert_eq!(hint.as_deref(), Some(expected), "{toml}");
        };
        check("\"64M\"", "did you mean \"64MiB\"?");
        check("\"64mb\"", "did you mean \"64MB\"?");
        check("\"64mib\"", "did you mean \"64MiB\"?");
        check("\"64\"", "did you mean \"64B\" or \"64MiB\"?");
        check("\"99999999999GiB\"", "it is too large");
        check(
            "\"MiB\"",
            "a size is a whole number and a unit, such as \"64MiB\"",
        );
        check(
            "\"1.5GiB\"",
            "the units are B, KiB, MiB, GiB, TiB, KB, MB, GB, TB; the number is a whole one",
        );
        assert_eq!(
            read(size, "-1").unwrap_err().0,
            "-1 is not in the range of this setting"
        );
        assert_eq!(show_size(64 << 20), "64MiB");
        assert_eq!(show_size(1000), "1000B");
        assert_eq!(show_size(0), "0B");
    }

    #[test]
    fn durations() {
        let check = |toml: &str, millis: u64| {
            assert_eq!(
                read(duration, toml),
                Ok(Duration::from_millis(millis)),
                "{toml}"
            );
        };
        check("\"4s\"", 4_000);
        check("\"500ms\"", 500);
        check("\"1h30m\"", 5_400_000);
        check("\"0s\"", 0);
        check("\"2d\"", 172_800_000);
        let check = |toml: &str, expected: &str| {
            let (_, hint) = read(duration, toml).unwrap_err();
            assert_eq!(hint.as_deref(), Some(expected), "{toml}");
        };
        check("4", "did you mean \"4s\"?");
        check("\"4\"", "did you mean \"4s\"?");
        check(
            "\"4 s\"",
            "the units are us, ms, s, m, h, d; the number is a whole one",
        );
        check("\"5min\"", "did you mean \"5m\"?");
        check("\"5S\"", "did you mean \"5s\"?");
        check(
            "\"\"",
            "a duration is a whole number and a unit, such as \"4s\"",
        );
        check(
            "\"s\"",
            "a duration is a whole number and a unit, such as \"4s\"",
        );
        check("\"99999999999999d\"", "it is too long");
    }

    #[test]
    fn words_and_types() {
        let words = &[("combined", 1), ("json", 2), ("off", 3)];
        assert_eq!(read(one_of(words), "\"json\""), Ok(2));
        let (reason, hint) = read(one_of(words), "\"jsn\"").unwrap_err();
        assert_eq!(reason, "`jsn` is none of combined, json, off");
        assert_eq!(hint.as_deref(), Some("did you mean \"json\"?"));
        assert_eq!(read(one_of(words), "\"apache\"").unwrap_err().1, None);
        let hint = read(boolean, "\"true\"").unwrap_err().1;
        assert_eq!(hint.as_deref(), Some("did you mean true, without quotes?"));
        assert!(read(token, "\"a b\"").is_err());
        assert!(read(name, "\"\"").is_err());
        assert_eq!(
            read(string, "3").unwrap_err().1.as_deref(),
            Some("did you mean \"3\"?")
        );
    }
}
