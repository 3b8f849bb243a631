//! What is shown: a table for people; JSON, lines of JSON or CSV for programs.

use std::fmt::Write as _;

use serde_json::Value;

use crate::failure::plain;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Table,
    Json,
    /// One line of JSON for each row.
    Ndjson,
    Csv,
}

/// What a command has found: the answer itself, and how people see it.
pub struct Shown {
    pub json: Value,
    /// Where in `json` the rows are; the whole is one row where this is empty.
    pub rows: Vec<Value>,
    pub table: String,
}

impl Shown {
    pub fn text(&self, format: Format) -> String {
        match format {
            Format::Table => self.table.clone(),
            Format::Json => lines([serde_json::to_string_pretty(&self.json).unwrap_or_default()]),
            Format::Ndjson => lines(self.rows.iter().map(Value::to_string)),
            Format::Csv => csv(&self.rows),
        }
    }
}

fn lines(lines: impl IntoIterator<Item = String>) -> String {
    lines.into_iter().map(|line| line + "\n").collect()
}

/// The columns are those of the first row.
fn csv(rows: &[Value]) -> String {
    let Some(first) = rows.first().and_then(Value::as_object) else {
        return String::new();
    };
    let names: Vec<&String> = first.keys().collect();
    let line = |cells: Vec<String>| cells.join(",");
    let head = line(names.iter().map(|name| quoted(name)).collect());
    let cell = |row: &Value, name: &str| match row.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => quoted(text),
        Some(other) => quoted(&other.to_string()),
    };
    let body = rows
        .iter()
        .map(|row| line(names.iter().map(|name| cell(row, name)).collect()));
    lines([head].into_iter().chain(body))
}

/// RFC 4180. What a spreadsheet would take for a formula is made text.
fn quoted(text: &str) -> String {
    let text = match text.starts_with(['=', '+', '@', '\t', '\r'])
        || text.starts_with('-') && text.parse::<f64>().is_err()
    {
        true => format!("'{text}"),
        false => text.to_owned(),
    };
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    }
}

/// Columns for a terminal. The last one may be as wide as it is.
pub fn table(names: &[&str], rows: &[Vec<String>]) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| plain(cell, false)).collect())
        .collect();
    let width = |column: usize| {
        let own = cells.iter().filter_map(|row: &Vec<String>| row.get(column));
        let widest = own.map(|cell| cell.chars().count()).max().unwrap_or(0);
        widest.max(names[column].len())
    };
    let widths: Vec<usize> = (0..names.len()).map(width).collect();
    let mut out = String::new();
    let mut line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            // Writing into a string does not fail.
            let _ = write!(text, "{cell:<width$}  ");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(names.to_vec());
    for row in &cells {
        line(row.iter().map(String::as_str).collect());
    }
    out
}

pub fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB"].into_iter().peekable();
    let mut unit = units.next().unwrap_or_default();
    while value >= 1024.0 && units.peek().is_some() {
        value /= 1024.0;
        unit = units.next().unwrap_or_default();
    }
    match unit {
        "B" => format!("{bytes} B"),
        unit => format!("{value:.1} {unit}"),
    }
}

/// Bytes per second: `50mb/s`, `512KiB/s`, `1000000`. Units of powers of 1024 have an `i`.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let wrong = || "a rate is a whole number and a unit, such as 50mb/s or 512KiB/s".to_owned();
    let lower = text.trim().to_ascii_lowercase();
    let rate = lower.strip_suffix("/s").unwrap_or(&lower);
    let digits = rate.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let factor = match rate[digits.len()..].trim() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    match number.checked_mul(factor) {
        None => Err("this is too much".to_owned()),
        Some(0) => Err("0 bytes a second bring nothing".to_owned()),
        Some(rate) => Ok(rate),
    }
}

/// Seconds: `1h`, `30m`, `90s`, `1d`.
pub fn parse_secs(text: &str) -> Result<u64, String> {
    let wrong = || "a time is a whole number and s, m, h or d, such as 1h".to_owned();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let factor = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let secs = number.checked_mul(factor).ok_or_else(wrong)?;
    match secs {
        1..=86_400 => Ok(secs),
        _ => Err("a day is remembered: 1s to 1d".to_owned()),
    }
}

pub fn seconds(secs: i64) -> String {
    let sign = if secs < 0 { "-" } else { "" };
    let secs = secs.unsigned_abs();
    match secs {
        0..120 => format!("{sign}{secs}s"),
        120..7200 => format!("{sign}{}m", secs / 60),
        7200..172_800 => format!("{sign}{}h", secs / 3600),
        _ => format!("{sign}{}d", secs / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec!["a".into(), "long one".into()],
            vec!["bcd".into(), "\u{1b}".into()],
        ];
        assert_eq!(
            table(&["N", "TEXT"], &rows),
            "N    TEXT\na    long one\nbcd  \\u{1b}\n"
        );
    }

    #[test]
    fn rows_for_programs() {
        let rows = vec![
            json!({"a": 1, "b": "x,\"y\""}),
            json!({"a": -2, "b": "=1+1"}),
        ];
        let shown = Shown {
            json: json!({"rows": rows}),
            rows,
            table: String::new(),
        };
        assert_eq!(
            shown.text(Format::Csv),
            "a,b\n1,\"x,\"\"y\"\"\"\n-2,'=1+1\n"
        );
        assert_eq!(shown.text(Format::Ndjson).lines().count(), 2);
    }

    #[test]
    fn times() {
        for (text, secs) in [
            ("1h", Some(3600)),
            ("90", Some(90)),
            ("1d", Some(86_400)),
            ("2d", None),
            ("0s", None),
            ("h", None),
            ("1w", None),
        ] {
            assert_eq!(parse_secs(text).ok(), secs, "{text}");
        }
    }

    #[test]
    fn rates() {
        for (text, rate) in [
            ("50mb/s", Some(50_000_000)),
            ("512KiB/s", Some(512 << 10)),
            ("1 g", Some(1_000_000_000)),
            ("7", Some(7)),
            ("0", None),
            ("", None),
            ("mb", None),
            ("5 mbit/s", None),
            ("-5mb", None),
            ("99999999999gb", None),
        ] {
            assert_eq!(parse_rate(text).ok(), rate, "{text}");
        }
    }

    #[test]
    fn sizes_and_times() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(seconds(-90), "-90s");
        assert_eq!(seconds(7200), "2h");
    }
}
