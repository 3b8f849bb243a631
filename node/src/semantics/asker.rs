//! Who asks, as far as the fields of a request tell.
//!
//! An origin that wants to be asked each time (`no-cache`, `max-age=0`) may look at who asks without
//! saying so by `private` or `Vary`. Such an answer is shared only among requests that nothing sets
//! apart.
//!
//! Kept true here: a field that is not known to be impersonal tells askers apart. The address is not
//! looked at.

use http::HeaderMap;

/// Fields that say what is asked for, how, or by which program.
const IMPERSONAL: [&str; 25] = [
    "cache-control",
    "cdn-loop",
    "connection",
    "content-length",
    "dnt",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "max-forwards",
    "origin",
    "pragma",
    "priority",
    "range",
    "referer",
    "save-data",
    "te",
    "traceparent",
    "tracestate",
    "upgrade-insecure-requests",
    "user-agent",
    "via",
    "x-real-ip",
    "x-request-id",
    "x-requested-with",
];

const IMPERSONAL_FAMILIES: [&str; 4] = ["accept", "if-", "sec-", "x-forwarded-"];

/// BLAKE3 of all lines of all fields that may be somebody's. Requests of the same value may share an
/// answer that its origin wanted to be asked for each time.
pub fn asker(request: &HeaderMap) -> [u8; 32] {
    let mut names: Vec<&str> = request
        .keys()
        .map(|name| name.as_str())
        .filter(|name| !is_impersonal(name))
        .collect();
    names.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for name in names {
        let values = request.get_all(name);
        part(name.as_bytes());
        part(&(values.iter().count() as u64).to_le_bytes());
        for value in values {
            part(value.as_bytes());
        }
    }
    *hasher.finalize().as_bytes()
}

fn is_impersonal(name: &str) -> bool {
    IMPERSONAL.contains(&name)
        || IMPERSONAL_FAMILIES
            .iter()
            .any(|family| name.starts_with(family))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    fn request(lines: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines.lines().filter_map(|line| line.split_once(": ")) {
            let name = HeaderName::try_from(name).expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn askers_are_told_apart() {
        for (one, other, same) in [
            (
                "",
                "user-agent: curl\naccept: */*\nif-none-match: \"1\"",
                true,
            ),
            ("", "x-forwarded-for: 192.0.2.1\nsec-fetch-mode: cors", true),
            ("cookie: a=1\nx-a: 1", "x-a: 1\ncookie: a=1", true),
            ("", "cookie: a=1", false),
            ("cookie: a=1", "cookie: a=2", false),
            ("cookie: a=1", "authorization: a=1", false),
            ("x-api-key: 1", "x-api-key: 2", false),
            ("x-a: 1", "x-a: 1\nx-a: 1", false),
            ("x-a: 12", "x-a: 1\nx-a: 2", false),
            ("x-a: 1\nx-b: 2", "x-a: 2\nx-b: 1", false),
        ] {
            let found = asker(&request(one)) == asker(&request(other));
            assert_eq!(found, same, "{one:?} and {other:?}");
        }
    }
}
