//! Who is primary: `GET /info`.

use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::http::{HttpError, LIMIT, connect, get};

/// For the connection, and for each wait on it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What a node is, in its own eyes.
///
/// The mount alone cannot tell it: its `.primary` file is absent on the primary and also where nobody is
/// known to be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// This node takes writes and hands them to the others.
    Primary,
    /// This node follows another.
    Replica {
        /// The primary's host name, as that one's `litefs.yml` has it.
        of: String,
    },
    /// This node is not the primary, and connected to none: one is being elected, or is down.
    Unknown,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Primary, replica of whom, or unknown.
    pub role: Role,
    /// Whether this node may become primary.
    pub candidate: bool,
    /// The cluster's id, once this node has been in one.
    pub cluster_id: Option<String>,
    /// Where LiteFS keeps its data; not the mount.
    pub data_dir: PathBuf,
}

/// Asks a LiteFS what it is. `addr` is the host and port of its HTTP server, `localhost:20202` unless
/// configured.
///
/// BLOCKING: up to 5 seconds for the connection, and as long for each wait on it.
///
/// # Errors
/// [`HttpError`].
pub fn info(addr: &str) -> Result<Info, HttpError> {
    let unreachable = |source| HttpError::Unreachable {
        addr: addr.to_owned(),
        source,
    };
    let stream = connect(addr, TIMEOUT).map_err(unreachable)?;
    stream
        .set_read_timeout(Some(TIMEOUT))
        .map_err(unreachable)?;
    stream
        .set_write_timeout(Some(TIMEOUT))
        .map_err(unreachable)?;
    let mut text = Vec::new();
    let body = get(stream, addr, "/info")?;
    body.take(LIMIT)
        .read_to_end(&mut text)
        .map_err(unreachable)?;
    let raw: RawInfo = serde_json::from_slice(&text).map_err(|_| HttpError::Malformed {
        addr: addr.to_owned(),
        what: "an /info that is not LiteFS's",
    })?;
    Ok(Info {
        role: Role::of(raw.is_primary, raw.primary.hostname),
        candidate: raw.candidate,
        cluster_id: raw.cluster_id,
        data_dir: raw.path,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawInfo {
    #[serde(rename = "clusterID")]
    cluster_id: Option<String>,
    is_primary: bool,
    candidate: bool,
    path: PathBuf,
    primary: RawPrimary,
}

#[derive(Deserialize)]
struct RawPrimary {
    hostname: String,
}

impl Role {
    /// From LiteFS's two fields. A primary need not name itself.
    pub(crate) fn of(is_primary: bool, hostname: String) -> Role {
        match (is_primary, hostname) {
            (true, _) => Role::Primary,
            (false, of) if of.is_empty() => Role::Unknown,
            (false, of) => Role::Replica { of },
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Primary => f.write_str("primary"),
            Role::Replica { of } => write!(f, "replica of {of}"),
            Role::Unknown => f.write_str("unknown: no primary is known"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Role, info};
    use crate::HttpError;
    use crate::http::tests::server;

    fn role(json: &str) -> Result<Role, HttpError> {
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{json}",
            json.len()
        );
        let (addr, thread) = server(vec![answer.into_bytes()]);
        let got = info(&addr);
        thread.join().expect("the server");
        got.map(|info| info.role)
    }

    #[test]
    fn a_role_has_three_values() {
        let table = [
            (true, "p", Role::Primary),
            (true, "", Role::Primary),
            (false, "p", Role::Replica { of: "p".to_owned() }),
            (false, "", Role::Unknown),
        ];
        for (is_primary, hostname, expected) in table {
            let json = format!(
                r#"{{"isPrimary": {is_primary}, "candidate": true, "path": "/d", "primary": {{"hostname": "{hostname}"}}, "later": 1}}"#
            );
            assert_eq!(role(&json).expect("an answer"), expected);
        }
        assert!(matches!(role("{}"), Err(HttpError::Malformed { .. })));
    }
}
