//! Dates and durations as lists write them: RFC 3339 and `xs:dateTime`, RFC 5322, `xs:duration`.

use std::time::Duration;

/// Nanoseconds since 1970, UTC.
pub type Nanos = i128;

const NANOS: Nanos = 1_000_000_000;

/// `2026-01-31T12:00:00.5+01:00`, or a day alone; without a zone it is UTC.
pub fn parse_date_time(text: &str) -> Option<Nanos> {
    let text = text.trim_ascii();
    let (day, time) = match text.split_once(['T', 't', ' ']) {
        Some((day, time)) => (day, Some(time)),
        None => (text, None),
    };
    let mut parts = day.splitn(3, '-');
    let (year, month, day) = (
        digits(parts.next()?)?,
        digits(parts.next()?)?,
        digits(parts.next()?)?,
    );
    let midnight = days_from_civil(year, month, day)? * 86_400 * NANOS;
    let Some(time) = time else {
        return Some(midnight);
    };
    let (time, offset) = match time.find(['Z', 'z', '+', '-']) {
        Some(at) => (&time[..at], parse_zone(&time[at..])?),
        None => (time, 0),
    };
    Some(midnight + parse_clock(time)? - offset * NANOS)
}

/// `Sat, 31 Jan 2026 12:00:00 +0100`; the day of the week and the seconds may be missing.
pub fn parse_mail_date(text: &str) -> Option<Nanos> {
    const MONTHS: [&str; 12] = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ];
    let text = text.split_once(',').map_or(text, |(_, rest)| rest);
    let mut words = text.split_ascii_whitespace();
    let day = digits(words.next()?)?;
    let month = words.next()?.get(..3)?.to_ascii_lowercase();
    let month = MONTHS.iter().position(|known| *known == month)? as i128 + 1;
    let year = match digits(words.next()?)? {
        year @ 0..50 => 2000 + year,
        year @ 50..100 => 1900 + year,
        year => year,
    };
    let midnight = days_from_civil(year, month, day)? * 86_400 * NANOS;
    let clock = parse_clock(words.next()?)?;
    let offset = parse_zone(words.next().unwrap_or("Z"))?;
    Some(midnight + clock - offset * NANOS)
}

/// `P1DT2H3M4.5S`; a year counts as 365 days and a month as 30.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (days, time) = match text.trim_ascii().strip_prefix('P')?.split_once('T') {
        Some((days, time)) => (days, time),
        None => (text.trim_ascii().strip_prefix('P')?, ""),
    };
    let units = [
        ('Y', 365 * 86_400),
        ('M', 30 * 86_400),
        ('W', 7 * 86_400),
        ('D', 86_400),
    ];
    let total = sum(days, &units)?.checked_add(sum(time, &[('H', 3600), ('M', 60), ('S', 1)])?)?;
    u64::try_from(total).ok().map(Duration::from_nanos)
}

/// Numbers with their units, in nanoseconds.
fn sum(text: &str, units: &[(char, i128)]) -> Option<Nanos> {
    let mut total: Nanos = 0;
    let mut rest = text;
    while let Some(end) = rest.find(|c: char| !c.is_ascii_digit() && c != '.') {
        let unit = rest[end..].chars().next()?;
        let (_, seconds) = units.iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(decimal(&rest[..end])?.checked_mul(*seconds)?)?;
        rest = &rest[end + unit.len_utf8()..];
    }
    rest.is_empty().then_some(total)
}

/// `12:30` or `12:30:01.5`.
fn parse_clock(text: &str) -> Option<Nanos> {
    let mut parts = text.splitn(3, ':');
    let (hour, minute) = (digits(parts.next()?)?, digits(parts.next()?)?);
    let seconds = decimal(parts.next().unwrap_or("0"))?;
    let is_valid = hour <= 24 && minute < 60 && seconds < 61 * NANOS;
    is_valid.then_some((hour * 3600 + minute * 60) * NANOS + seconds)
}

/// Seconds east of Greenwich: `Z`, `+01:00`, `-0130`, or a name of RFC 5322 §4.3.
fn parse_zone(text: &str) -> Option<i128> {
    let hours = match text.to_ascii_uppercase().as_str() {
        "Z" | "UT" | "UTC" | "GMT" => 0,
        "EDT" => -4,
        "EST" | "CDT" => -5,
        "CST" | "MDT" => -6,
        "MST" | "PDT" => -7,
        "PST" => -8,
        _ => {
            let east = match text.chars().next()? {
                '+' => 1,
                '-' => -1,
                _ => return None,
            };
            let offset: String = text[1..].chars().filter(|&c| c != ':').collect();
            let (hours, minutes) = (
                digits(offset.get(..2)?)?,
                digits(offset.get(2..4).unwrap_or("0"))?,
            );
            let is_valid = offset.len() <= 4 && hours < 24 && minutes < 60;
            return is_valid.then_some(east * (hours * 3600 + minutes * 60));
        }
    };
    Some(hours * 3600)
}

fn digits(text: &str) -> Option<i128> {
    let is_number = (1..=9).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

/// A number with up to nine decimals that count, times 10⁹.
fn decimal(text: &str) -> Option<Nanos> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole = if whole.is_empty() && !fraction.is_empty() {
        0
    } else {
        digits(whole)?
    };
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction = &fraction[..fraction.len().min(9)];
    let scale = 10_i128.pow(9 - fraction.len() as u32);
    let fraction = if fraction.is_empty() {
        0
    } else {
        digits(fraction)? * scale
    };
    Some(whole * NANOS + fraction)
}

/// Days since 1970 of a day of the Gregorian calendar.
fn days_from_civil(year: i128, month: i128, day: i128) -> Option<i128> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year > 9999 {
        return None;
    }
    // Years begin in March, so that the leap day is their last.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1970-01-01", Some(0)),
            ("1970-01-01T00:00:00", Some(0)),
            ("2000-02-29T00:00:00Z", Some(951_782_400)),
            ("2026-11-22T01:02:03.999Z", Some(1_795_309_323)),
            ("2026-11-22T02:02:03+01:00", Some(1_795_309_323)),
            ("2026-11-21T23:32-0130", Some(1_795_309_320)),
            ("1969-12-31T23:59:59Z", Some(-1)),
            ("2026-13-01", None),
            ("2026-11-22T25:00:00Z", None),
            ("99999-01-01", None),
            ("x", None),
            ("", None),
        ] {
            let found = parse_date_time(text).map(|nanos| nanos.div_euclid(NANOS));
            assert_eq!(found, seconds, "{text}");
        }
        for (text, seconds) in [
            ("Sun, 22 Nov 2026 01:02:03 GMT", Some(1_795_309_323)),
            ("22 Nov 2026 02:02:03 +0100", Some(1_795_309_323)),
            ("Sat, 21 Nov 26 20:02 EST", Some(1_795_309_320)),
            ("Sun, 22 November 2026 01:02:03", Some(1_795_309_323)),
            ("Sun, 22 Foo 2026 01:02:03 GMT", None),
            ("x é", None),
        ] {
            let found = parse_mail_date(text).map(|nanos| nanos.div_euclid(NANOS));
            assert_eq!(found, seconds, "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, millis) in [
            ("PT0S", Some(0)),
            ("PT1.5S", Some(1500)),
            ("PT0H9M56.46S", Some(596_460)),
            ("P1DT2H", Some(93_600_000)),
            ("P1Y", Some(31_536_000_000)),
            ("P1M", Some(2_592_000_000)),
            ("PT1M", Some(60_000)),
            ("PT1.0000000001S", Some(1000)),
            ("1S", None),
            ("PT1", None),
            ("PT1X", None),
            ("-PT1S", None),
            ("PTS", None),
            ("P999999999Y", None),
        ] {
            let found = parse_duration(text).map(|duration| duration.as_millis());
            assert_eq!(found, millis, "{text}");
        }
    }
}
