//! Which targets are the node's own: `/_caje` and all below it, however it is written.
//!
//! The origin behind a public port may decode, join slashes or resolve dots where the node does not. So a
//! target counts as reserved when any of these would lead to `/_caje`; such a target never reaches an
//! origin. What the node answers itself is compared byte for byte, without any of this.

/// Decoded so often at the most: `%255f` becomes `%5f`, then `_`.
const MAX_DECODINGS: usize = 3;

const NAME: &[u8] = b"_caje";

/// Whether a request target, in any of the forms of RFC 9112 §3.2, names the reserved folder or something
/// in it.
pub fn is_reserved(target: &[u8]) -> bool {
    // The underscore is there as itself or encoded: hardly any target gets further.
    let Some(first) = memchr::memchr2(b'_', b'%', target) else {
        return false;
    };
    let end = memchr::memchr2(b'?', b'#', target).unwrap_or(target.len());
    if first >= end {
        return false;
    }
    let path = &target[..end];
    if memchr::memchr(b'%', path).is_none() {
        return contains_name(path) && leads_to_name(without_authority(path));
    }
    let mut decoded = path.to_vec();
    for _ in 0..MAX_DECODINGS {
        if leads_to_name(without_authority(&decoded)) {
            return true;
        }
        let again = decode(&decoded);
        if again.len() == decoded.len() {
            return false;
        }
        decoded = again;
    }
    leads_to_name(without_authority(&decoded))
}

fn contains_name(path: &[u8]) -> bool {
    memchr::memchr_iter(b'_', path).any(|at| {
        path.get(at..at + NAME.len())
            .is_some_and(|name| name.eq_ignore_ascii_case(NAME))
    })
}

/// The path of an absolute-form target, or the path itself.
fn without_authority(path: &[u8]) -> &[u8] {
    if path.first() == Some(&b'/') {
        return path;
    }
    let Some(scheme) = memchr::memmem::find(path, b"://") else {
        return path;
    };
    let rest = &path[scheme + 3..];
    let authority = memchr::memchr(b'/', rest).unwrap_or(rest.len());
    &rest[authority..]
}

/// Whether the first segment is the name once empty ones, dots and parameters are taken away (RFC 3986
/// §5.2.4). A backslash separates too, as it does for some servers.
fn leads_to_name(path: &[u8]) -> bool {
    let mut depth = 0_usize;
    let mut is_name = false;
    for segment in path.split(|byte| matches!(byte, b'/' | b'\\')) {
        let end = memchr::memchr2(b';', 0, segment).unwrap_or(segment.len());
        let segment = segment[..end].trim_ascii();
        match segment {
            b"" | b"." => {}
            b".." => depth = depth.saturating_sub(1),
            _ => {
                if depth == 0 {
                    is_name = segment.eq_ignore_ascii_case(NAME);
                }
                depth += 1;
            }
        }
    }
    depth > 0 && is_name
}

/// Every `%` with two digits behind it becomes its byte, once.
fn decode(path: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|&byte| char::from(byte).to_digit(16));
    let mut out = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        let digits = (digit(path.get(at + 1)), digit(path.get(at + 2)));
        match (byte, digits) {
            (b'%', (Some(high), Some(low))) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::is_reserved;

    #[test]
    fn however_it_is_written() {
        for target in [
            "/_caje",
            "/_caje/",
            "/_caje/v1/purge",
            "/_caje?x",
            "/_CAJE/v1",
            "//_caje/list",
            "/./_caje/list",
            "/a/../_caje/list",
            "/../_caje",
            "/%5fcaje/list",
            "/%5F%63aje",
            "/%255fcaje/list",
            "/_caj%65",
            "/a/%2e%2e/_caje",
            "/a/..%2f_caje",
            "/%2f_caje",
            "/\\_caje",
            "/%5c_caje",
            "/_caje;a=b/list",
            "/_caje%00/list",
            "/_caje%20",
            "http://example.com/_caje/list",
            "http://example.com//x/../%5fcaje",
            "/_caje/x/../v1",
        ] {
            assert!(is_reserved(target.as_bytes()), "{target}");
        }
    }

    #[test]
    fn everything_else_is_the_origins() {
        for target in [
            "/",
            "*",
            "",
            "%",
            "/caje",
            "/_cajex",
            "/a/_caje",
            "/a?x=/_caje",
            "/_caje/../a",
            "/x%",
            "/my_file%20name",
            "/a/b_c",
            "http://_caje/x",
            "/?_caje",
        ] {
            assert!(!is_reserved(target.as_bytes()), "{target}");
        }
    }
}
