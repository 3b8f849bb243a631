//! Addresses, URLs, host patterns and networks, as settings write them.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use thiserror::Error;

/// What is wrong with a text that should be an address, and what would do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct BadAddress(pub(super) String);

/// An address to listen on: a host, which may be a name such as `fly-local-6pn`, and a port; 0 is
/// any free one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Without brackets.
    pub host: String,
    pub port: u16,
}

impl Address {
    /// `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080`, or `:8080` for all of IPv4.
    pub fn parse(text: &str) -> Result<Address, BadAddress> {
        let wrong = || {
            BadAddress(format!(
                "`{text}` is no address: it needs a host and a port, such as `0.0.0.0:8080`"
            ))
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let host = match host {
            "" => "0.0.0.0",
            bracketed if bracketed.starts_with('[') => {
                let inner = bracketed
                    .strip_prefix('[')
                    .and_then(|rest| rest.strip_suffix(']'));
                inner
                    .filter(|inner| inner.parse::<Ipv6Addr>().is_ok())
                    .ok_or_else(wrong)?
            }
            name if is_host(name) => name,
            _ => return Err(wrong()),
        };
        Ok(Address {
            host: host.to_owned(),
            port,
        })
    }

    /// The socket address to bind: the first one a name stands for. Blocks while a name is looked
    /// up.
    pub fn resolve(&self) -> io::Result<SocketAddr> {
        if let Ok(ip) = self.host.parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, self.port));
        }
        (self.host.as_str(), self.port)
            .to_socket_addrs()?
            .next()
            .ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("`{}` has no address", self.host),
                )
            })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// Where an origin is. It has no path: a request's target goes to the origin as the client sent it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OriginUrl {
    pub scheme: Scheme,
    /// In lower case, without brackets.
    pub host: String,
    pub port: u16,
}

impl OriginUrl {
    pub fn parse(text: &str) -> Result<OriginUrl, BadAddress> {
        let wrong = |reason: &str| BadAddress(format!("`{text}` is no origin: {reason}"));
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(wrong("it needs a scheme, such as `https://example.com`"));
        };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(wrong("its scheme must be `http` or `https`")),
        };
        let (authority, path) = match rest.find(['/', '?', '#']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if !matches!(path, "" | "/") {
            return Err(wrong(
                "it may have no path: targets are passed on as they come",
            ));
        }
        if authority.contains('@') {
            return Err(wrong("it may have no user name"));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest
                    .split_once(']')
                    .ok_or_else(|| wrong("`]` is missing"))?;
                host.parse::<Ipv6Addr>()
                    .map_err(|_| wrong("its host is no IPv6 address"))?;
                (
                    host,
                    port.strip_prefix(':').or(port.is_empty().then_some("")),
                )
            }
            None => match authority.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, Some("")),
            },
        };
        let port = match port {
            Some("") if !authority.ends_with(':') => scheme.default_port(),
            Some(port) => match port.parse() {
                Ok(port) if port != 0 => port,
                _ => return Err(wrong("its port must be a number from 1 to 65535")),
            },
            None => return Err(wrong("what follows `]` must be a port")),
        };
        if !authority.starts_with('[') && !is_host(host) {
            return Err(wrong("its host is no name and no address"));
        }
        Ok(OriginUrl {
            scheme,
            host: host.to_ascii_lowercase(),
            port,
        })
    }

    /// Host and port as a `Host` field has them: with brackets, without the scheme's default port.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        if self.port == self.scheme.default_port() {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

impl fmt::Display for OriginUrl {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())
    }
}

/// A registered name or IPv4 address: labels of letters, digits, `-` and `_`.
pub(super) fn is_host(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        })
}

/// Which hosts an origin answers for. In lower case, without a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// `example.com`, `192.0.2.1`, `[2001:db8::1]`
    Exact(String),
    /// `*.example.com`: any host below `example.com`, at any depth, and not `example.com`. Holds
    /// `.example.com`.
    Below(String),
    /// `*`
    Any,
}

impl HostPattern {
    pub fn parse(text: &str) -> Result<HostPattern, BadAddress> {
        let wrong = |reason: &str| BadAddress(format!("`{text}` is no host: {reason}"));
        let lower = text.to_ascii_lowercase();
        if lower == "*" {
            return Ok(HostPattern::Any);
        }
        let lower = lower.strip_suffix('.').unwrap_or(&lower);
        if lower.contains("://") || lower.contains('/') {
            return Err(wrong("only the host is meant, without scheme and path"));
        }
        if let Some(inner) = lower.strip_prefix('[') {
            return match inner.strip_suffix(']').map(str::parse::<Ipv6Addr>) {
                Some(Ok(_)) => Ok(HostPattern::Exact(lower.to_owned())),
                _ => Err(wrong("it is no IPv6 address in brackets")),
            };
        }
        if lower.contains(':') {
            return Err(wrong("a host is matched without its port"));
        }
        if let Some(suffix) = lower.strip_prefix("*.") {
            return match is_host(suffix) {
                true => Ok(HostPattern::Below(format!(".{suffix}"))),
                false => Err(wrong("what follows `*.` must be a name")),
            };
        }
        if lower.contains('*') {
            return Err(wrong(
                "`*` stands alone or as the whole first label, as in `*.example.com`",
            ));
        }
        match is_host(lower) {
            true => Ok(HostPattern::Exact(lower.to_owned())),
            false => Err(wrong("it is neither a name nor an address")),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            HostPattern::Exact(host) => f.write_str(host),
            HostPattern::Below(suffix) => write!(f, "*{suffix}"),
            HostPattern::Any => f.write_str("*"),
        }
    }
}

/// A network: an address and how many of its leading bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    network: IpAddr,
    bits: u8,
}

impl Cidr {
    /// `10.0.0.0/8`, `fd00::/8`, or a single address.
    pub fn parse(text: &str) -> Result<Cidr, BadAddress> {
        let wrong = |reason: &str| BadAddress(format!("`{text}` is no network: {reason}"));
        let (network, bits) = match text.split_once('/') {
            Some((network, bits)) => (network, Some(bits)),
            None => (text, None),
        };
        let network: IpAddr = network
            .parse()
            .map_err(|_| wrong("it needs an IP address, as in `10.0.0.0/8`"))?;
        let width = if network.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => width,
            Some(bits) => match bits.parse() {
                Ok(bits) if bits <= width => bits,
                _ => {
                    return Err(wrong(&format!(
                        "what follows `/` must be a number up to {width}"
                    )));
                }
            },
        };
        let cidr = Cidr { network, bits };
        if cidr.masked(network) != cidr.bits_of(network) {
            return Err(wrong(&format!("it has bits set behind the first {bits}")));
        }
        Ok(cidr)
    }

    /// An IPv4 address that came in as an IPv6 one (`::ffff:192.0.2.1`) is taken as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.network.is_ipv4()
            && self.masked(address) == self.bits_of(self.network)
    }

    fn bits_of(&self, address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(address) => u128::from(Ipv4Addr::to_bits(address)) << 96,
            IpAddr::V6(address) => Ipv6Addr::to_bits(address),
        }
    }

    fn masked(&self, address: IpAddr) -> u128 {
        let mask = u128::MAX
            .checked_shl(128 - u32::from(self.bits))
            .unwrap_or(0);
        self.bits_of(address) & mask
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let check = |text: &str, expected: Option<&str>| {
            let parsed = Address::parse(text).ok().map(|address| address.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text}");
        };
        check("127.0.0.1:80", Some("127.0.0.1:80"));
        check(":8080", Some("0.0.0.0:8080"));
        check("[::]:0", Some("[::]:0"));
        check("fly-local-6pn:9180", Some("fly-local-6pn:9180"));
        for wrong in [
            "",
            "8080",
            "host",
            "::1:80",
            "[::1]",
            "[x]:80",
            "h:65536",
            "h:-1",
            "a b:80",
            "http://h:80",
        ] {
            check(wrong, None);
        }
        let local = Address::parse("localhost:1").unwrap().resolve().unwrap();
        assert!(local.ip().is_loopback());
    }

    #[test]
    fn origin_urls() {
        let check = |text: &str, expected: Option<&str>| {
            let parsed = OriginUrl::parse(text).ok().map(|url| url.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text}");
        };
        check("http://Example.com", Some("http://example.com"));
        check("HTTPS://example.com:443/", Some("https://example.com"));
        check("https://example.com:80", Some("https://example.com:80"));
        check("http://[::1]:3000", Some("http://[::1]:3000"));
        check("http://[::1]", Some("http://[::1]"));
        check("http://a_b:1", Some("http://a_b:1"));
        for wrong in [
            "example.com",
            "ftp://h",
            "http://",
            "http://h/p",
            "http://h?q",
            "http://u@h",
            "http://h:0",
            "http://h:",
            "http://h:x",
            "http://[::1",
            "http://[::1]x",
            "http://[1.2.3.4]",
            "http://a b",
            "http://::1",
            "http://-a",
        ] {
            check(wrong, None);
        }
    }

    #[test]
    fn host_patterns() {
        let check = |text: &str, expected: Option<&str>| {
            let parsed = HostPattern::parse(text)
                .ok()
                .map(|pattern| pattern.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text}");
        };
        check("Example.COM.", Some("example.com"));
        check("*.example.com", Some("*.example.com"));
        check("*", Some("*"));
        check("[::1]", Some("[::1]"));
        check("10.0.0.1", Some("10.0.0.1"));
        for wrong in [
            "", "a.*.b", "*a.b", "*.", "a:80", "http://a", "a/b", "a..b", "::1",
        ] {
            check(wrong, None);
        }
    }

    #[test]
    fn networks() {
        let check = |network: &str, address: &str, expected: bool| {
            let network = Cidr::parse(network).unwrap();
            assert_eq!(
                network.contains(address.parse().unwrap()),
                expected,
                "{network} {address}"
            );
        };
        check("10.0.0.0/8", "10.255.0.1", true);
        check("10.0.0.0/8", "11.0.0.1", false);
        check("10.0.0.0/8", "::ffff:10.0.0.1", true);
        check("0.0.0.0/0", "192.0.2.1", true);
        check("0.0.0.0/0", "::1", false);
        check("192.0.2.1", "192.0.2.1", true);
        check("192.0.2.1", "192.0.2.2", false);
        check("::/0", "2001:db8::1", true);
        check("fd00::/8", "fdaa::3", true);
        check("fd00::/8", "fe80::3", false);
        for wrong in [
            "",
            "x",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "fd00::/129",
            "10/8",
            "10.0.0.0/",
        ] {
            assert!(Cidr::parse(wrong).is_err(), "{wrong}");
        }
    }
}
