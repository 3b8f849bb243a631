//! Prometheus's text format, version 0.0.4.

use std::fmt::Write;

use super::label::OriginNames;
use super::metrics::{BUCKETS, Family, HISTOGRAM_CELLS, Kind};

pub(super) fn render(families: &[Family], origins: &OriginNames) -> String {
    let mut out = String::with_capacity(32 * 1024);
    for family in families {
        push(
            &mut out,
            format_args!("# HELP {} {}\n", family.name, family.help),
        );
        push(
            &mut out,
            format_args!("# TYPE {} {}\n", family.name, family.kind.as_str()),
        );
        for series in 0..family.series {
            let Some(values) = (family.values)(series, origins) else {
                continue;
            };
            let labels = Labels {
                names: &family.labels,
                values: &values,
            };
            match family.kind {
                Kind::Histogram => histogram(&mut out, family, series, &labels),
                Kind::Counter | Kind::Gauge => {
                    let value = family.cells.sum(series) as i64;
                    let value = Value {
                        value,
                        unit: family.unit,
                    };
                    push(
                        &mut out,
                        format_args!("{}{} {value}\n", family.name, labels.with(None)),
                    );
                }
            }
        }
    }
    out
}

fn histogram(out: &mut String, family: &Family, series: usize, labels: &Labels) {
    let name = family.name;
    let first = series * HISTOGRAM_CELLS;
    let mut count = 0;
    for (at, bound) in BUCKETS.iter().copied().chain([f64::INFINITY]).enumerate() {
        count += family.cells.sum(first + at);
        push(
            out,
            format_args!("{name}_bucket{} {count}\n", labels.with(Some(bound))),
        );
    }
    let sum = family.cells.sum(first + HISTOGRAM_CELLS - 1) as i64;
    let sum = Value {
        value: sum,
        unit: family.unit,
    };
    push(out, format_args!("{name}_sum{} {sum}\n", labels.with(None)));
    push(
        out,
        format_args!("{name}_count{} {count}\n", labels.with(None)),
    );
}

fn push(out: &mut String, text: std::fmt::Arguments) {
    out.write_fmt(text)
        .expect("writing to a string does not fail");
}

struct Value {
    value: i64,
    unit: f64,
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        if self.unit == 1.0 {
            write!(f, "{}", self.value)
        } else {
            // Microseconds as seconds, exactly.
            let text = format!("{}.{:06}", self.value / 1_000_000, self.value % 1_000_000);
            f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
        }
    }
}

struct Labels<'a> {
    names: &'a [&'static str],
    values: &'a [&'a str],
}

struct WithBound<'a> {
    labels: &'a Labels<'a>,
    bound: Option<f64>,
}

impl Labels<'_> {
    fn with(&self, bound: Option<f64>) -> WithBound<'_> {
        WithBound {
            labels: self,
            bound,
        }
    }
}

impl std::fmt::Display for WithBound<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        if self.labels.names.is_empty() && self.bound.is_none() {
            return Ok(());
        }
        let mut separator = '{';
        for (name, value) in self.labels.names.iter().zip(self.labels.values) {
            write!(f, "{separator}{name}=\"")?;
            for character in value.chars() {
                match character {
                    '\\' => f.write_str("\\\\")?,
                    '"' => f.write_str("\\\"")?,
                    '\n' => f.write_str("\\n")?,
                    other => f.write_char(other)?,
                }
            }
            f.write_char('"')?;
            separator = ',';
        }
        match self.bound {
            None => {}
            Some(bound) if bound.is_infinite() => write!(f, "{separator}le=\"+Inf\"")?,
            Some(bound) => write!(f, "{separator}le=\"{bound}\"")?,
        }
        f.write_char('}')
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use crate::telemetry::{CacheResult, Metrics, OriginOutcome, StatusClass};

    #[test]
    fn a_scrape_is_well_formed() {
        let metrics = Metrics::new();
        let origin = metrics.origins.intern("odd \"name\"\\\n");
        metrics
            .origin_requests
            .increment((origin, OriginOutcome::Timeout));
        metrics
            .requests
            .add((StatusClass::Successful, CacheResult::Hit), 7);
        metrics.client_connections.add((), -1);
        let text = metrics.render();

        let mut types = HashMap::new();
        let mut series = HashMap::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(types.insert(name, kind), None, "{name} twice");
            } else if !line.starts_with("# HELP ") {
                let (name, value) = line.rsplit_once(' ').unwrap();
                value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
                assert_eq!(series.insert(name, value), None, "{name} twice");
                let family = name.split('{').next().unwrap();
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|suffix| family.strip_suffix(suffix))
                    .unwrap_or(family);
                assert!(types.contains_key(family), "{line} before its type");
            }
        }
        assert_eq!(
            series["caje_requests_total{class=\"2xx\",cache=\"hit\"}"],
            "7"
        );
        assert_eq!(series["caje_client_connections"], "-1");
        let escaped = r#"caje_origin_requests_total{origin="odd \"name\"\\\n",outcome="timeout"}"#;
        assert_eq!(series[escaped], "1");
        assert!(series["process_open_fds"].parse::<u64>().unwrap() > 2);
        assert!(
            series["process_resident_memory_bytes"]
                .parse::<u64>()
                .unwrap()
                > 100_000
        );
        assert_eq!(
            series[format!(
                "caje_build_info{{version=\"{}\"}}",
                env!("CARGO_PKG_VERSION")
            )
            .as_str()],
            "1"
        );
    }
}
