//! What the nodes and the origin count, read through the doors that everybody has.

use std::net::SocketAddr;

use anyhow::{Context, ensure};

use super::client::Client;

/// Results of a request (the label `cache`) that spared the origin the body.
const HITS: [&str; 5] = ["hit", "stale", "updating", "revalidated", "collapsed"];

/// One look at a node's `/metrics`.
pub struct Numbers(Vec<Sample>);

struct Sample {
    name: String,
    labels: String,
    value: f64,
}

impl Numbers {
    pub fn of(client: &Client, admin: SocketAddr) -> anyhow::Result<Numbers> {
        let answer = client.get(admin, "/metrics")?;
        ensure!(
            answer.head.status == 200,
            "/metrics answers {}",
            answer.head.status
        );
        Ok(Numbers::parse(&String::from_utf8(answer.body)?))
    }

    fn parse(text: &str) -> Numbers {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            Some(Sample {
                name: name.to_owned(),
                labels: labels.trim_end_matches('}').to_owned(),
                value: value.parse().ok()?,
            })
        };
        Numbers(samples.filter_map(sample).collect())
    }

    /// The sum of a metric over all its series.
    pub fn total(&self, name: &str) -> u64 {
        self.sum(name, |_| true)
    }

    fn sum(&self, name: &str, counts: impl Fn(&Sample) -> bool) -> u64 {
        let samples = self.0.iter().filter(|sample| sample.name == name);
        let sum: f64 = samples.filter(|s| counts(s)).map(|s| s.value).sum();
        sum as u64
    }

    /// Requests that the cache could have had a part in.
    pub fn requests(&self) -> u64 {
        self.sum("caje_requests_total", |sample| !sample.is_of("synthetic"))
    }

    /// Those of them that were answered from what was stored, or was being stored for another.
    pub fn hits(&self) -> u64 {
        let is_hit = |sample: &Sample| HITS.iter().any(|result| sample.is_of(result));
        self.sum("caje_requests_total", is_hit)
    }

    pub fn origin_requests(&self) -> u64 {
        self.total("caje_origin_requests_total")
    }
}

impl Sample {
    fn is_of(&self, result: &str) -> bool {
        let wanted = format!("cache=\"{result}\"");
        self.labels.split(',').any(|label| label == wanted)
    }
}

/// One look at what the origin counts for a target.
#[derive(Clone, Debug)]
pub struct Counts(String);

impl Counts {
    pub fn of(client: &Client, origin: SocketAddr, target: &str) -> anyhow::Result<Counts> {
        let path = escaped(target);
        let answer = client.get(origin, &format!("/_count?path={path}"))?;
        ensure!(
            answer.head.status == 200,
            "/_count answers {}",
            answer.head.status
        );
        Ok(Counts(String::from_utf8(answer.body)?))
    }

    /// A counter by its name: `requests`, `bytes`, `not_modified`.
    pub fn get(&self, name: &str) -> anyhow::Result<u64> {
        number(&self.0, name)
    }
}

/// The number in `"name":123` of a flat JSON object.
pub fn number(json: &str, name: &str) -> anyhow::Result<u64> {
    let found = json.split_once(&format!("\"{name}\":"));
    let (_, rest) = found.with_context(|| format!("there is no {name} in {json}"))?;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    let digits = &rest[..end.unwrap_or(rest.len())];
    digits
        .parse()
        .with_context(|| format!("{name} is no number in {json}"))
}

/// A target as the value of a query's option.
pub fn escaped(target: &str) -> String {
    let mut out = String::with_capacity(target.len());
    for byte in target.bytes() {
        match byte {
            b'%' | b'&' | b'+' | b'#' => out.push_str(&format!("%{byte:02X}")),
            _ => out.push(char::from(byte)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hit_ratio_leaves_out_what_the_node_made_up() {
        let numbers = Numbers::parse(
            "# TYPE caje_requests_total counter\n\
             caje_requests_total{class=\"2xx\",cache=\"hit\"} 6\n\
             caje_requests_total{class=\"2xx\",cache=\"collapsed\"} 2\n\
             caje_requests_total{class=\"2xx\",cache=\"miss\"} 1\n\
             caje_requests_total{class=\"4xx\",cache=\"synthetic\"} 5\n\
             caje_origin_requests_total{origin=\"a\",outcome=\"2xx\"} 1\n\
             caje_fills 0\n",
        );
        assert_eq!((numbers.requests(), numbers.hits()), (9, 8));
        assert_eq!(numbers.origin_requests(), 1);
        assert_eq!(numbers.total("caje_none"), 0);
    }

    #[test]
    fn counters_are_found_by_name() {
        let json = "{\"requests\":12,\"bytes\":5000000000}\n";
        assert_eq!(number(json, "requests").unwrap(), 12);
        assert_eq!(number(json, "bytes").unwrap(), 5_000_000_000);
        assert!(number(json, "range").is_err());
        assert_eq!(escaped("/a?cc=x&b=%20"), "/a?cc=x%26b=%2520");
    }
}
