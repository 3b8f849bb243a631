//! Which origin a request goes to.

use std::collections::HashMap;

use super::{Config, HostPattern};

/// The origins by host and path. The most specific host that has a matching path wins
/// (`a.example.com` before `*.example.com` before `*`), within it the longest path prefix.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    exact: HashMap<String, Prefixes>,
    /// By suffix, `.example.com`.
    below: HashMap<String, Prefixes>,
    any: Prefixes,
}

/// Path prefixes and their origins' places, the longest prefix first.
type Prefixes = Vec<(String, usize)>;

impl Routes {
    pub fn new(config: &Config) -> Routes {
        let mut routes = Routes::default();
        for (at, origin) in config.origins.iter().enumerate() {
            let hosts = match origin.hosts.as_slice() {
                [] => &[HostPattern::Any],
                hosts => hosts,
            };
            for host in hosts {
                let prefixes = match host {
                    HostPattern::Exact(host) => routes.exact.entry(host.clone()).or_default(),
                    HostPattern::Below(suffix) => routes.below.entry(suffix.clone()).or_default(),
                    HostPattern::Any => &mut routes.any,
                };
                prefixes.push((origin.path_prefix.clone(), at));
            }
        }
        let lists = routes.exact.values_mut().chain(routes.below.values_mut());
        for prefixes in lists.chain([&mut routes.any]) {
            prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        }
        routes
    }

    /// The place in [`Config::origins`] of the origin for this host (in lower case, without port,
    /// IPv6 in brackets) and target. The target's bytes are compared as they are, nothing is
    /// decoded: what is forwarded is what was matched.
    pub fn find(&self, host: &str, target: &[u8]) -> Option<usize> {
        let host = host.strip_suffix('.').unwrap_or(host);
        if let Some(found) = self
            .exact
            .get(host)
            .and_then(|prefixes| first(prefixes, target))
        {
            return Some(found);
        }
        if !self.below.is_empty() {
            let dots = host.bytes().enumerate().filter(|&(_, byte)| byte == b'.');
            for (dot, _) in dots {
                let prefixes = self.below.get(&host[dot..]).filter(|_| dot > 0);
                if let Some(found) = prefixes.and_then(|prefixes| first(prefixes, target)) {
                    return Some(found);
                }
            }
        }
        first(&self.any, target)
    }
}

fn first(prefixes: &Prefixes, target: &[u8]) -> Option<usize> {
    prefixes
        .iter()
        .find(|(prefix, _)| is_below(target, prefix.as_bytes()))
        .map(|&(_, at)| at)
}

/// `/a` covers `/a`, `/a/b` and `/a?b`, but not `/ab`; `/a/` covers `/a/b`; `/` covers everything,
/// `*` included.
fn is_below(target: &[u8], prefix: &[u8]) -> bool {
    if prefix == b"/" {
        return true;
    }
    match target.strip_prefix(prefix) {
        Some(rest) => prefix.ends_with(b"/") || matches!(rest.first(), None | Some(b'/' | b'?')),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::schema::tests::environment;

    #[test]
    fn the_most_specific_host_wins_then_the_longest_path() {
        let text = r#"
            [[origin]]
            name = "rest"
            url = "http://rest"
            [[origin]]
            name = "example"
            url = "http://example"
            hosts = ["*.example.com", "example.com"]
            [[origin]]
            name = "deep"
            url = "http://deep"
            hosts = ["*.a.example.com"]
            [[origin]]
            name = "www"
            url = "http://www"
            hosts = ["www.example.com", "[::1]"]
            path_prefix = "/app"
            [[origin]]
            name = "media"
            url = "http://media"
            hosts = ["*.example.com"]
            path_prefix = "/media/"
        "#;
        let config = Config::parse(text, Path::new("caje.toml"), &environment()).unwrap();
        let routes = Routes::new(&config);
        let check = |host: &str, target: &str, expected: &str| {
            let found = routes
                .find(host, target.as_bytes())
                .map(|at| config.origins[at].name.as_str());
            assert_eq!(found, Some(expected), "{host} {target}");
        };
        check("other.org", "/", "rest");
        check("other.org", "*", "rest");
        check("example.com", "/media/x", "example");
        check("example.com.", "/", "example");
        check("www.example.com", "/app", "www");
        check("www.example.com", "/app/x", "www");
        check("www.example.com", "/app?x", "www");
        check("www.example.com", "/apple", "example");
        check("www.example.com", "/%61pp", "example");
        check("www.example.com", "/media/1", "media");
        check("x.example.com", "/media", "example");
        check("b.a.example.com", "/", "deep");
        check("b.a.example.com", "/media/1", "deep");
        check("c.b.a.example.com", "/", "deep");
        check("a.example.com", "/", "example");
        check(".example.com", "/", "rest");
        check("notexample.com", "/", "rest");
        check("[::1]", "/app/", "www");
    }

    #[test]
    fn no_origin_for_a_host_nobody_named() {
        let text = "[[origin]]\nname = 'a'\nurl = 'http://a'\nhosts = ['a.org']";
        let config = Config::parse(text, Path::new("caje.toml"), &environment()).unwrap();
        let routes = Routes::new(&config);
        assert_eq!(routes.find("b.org", b"/"), None);
        assert_eq!(routes.find("a.org", b"/"), Some(0));
    }
}
