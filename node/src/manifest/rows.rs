//! What the manifest's rows say, and how they are written: a key of bytes, and a value in JSON.
//!
//! A reader passes over fields that it does not know and takes a default for those that are missing, so nodes of
//! different versions read one another. Rows of a kind that this version does not know are merged unread.
//!
//! Rows of others are believed only as far as [`check`] goes: they are hints, and never say what a client may see.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::Stamp;
pub use crate::semantics::key::Scheme;

/// Longest key and longest value of a row, in bytes.
pub const MAX_KEY_BYTES: usize = 64 << 10;
pub const MAX_VALUE_BYTES: usize = 256 << 10;

/// Tags of a resource, at the most.
pub const MAX_TAGS: usize = 128;

/// Request fields that never stand in a row: they belong to one user.
const PRIVATE_FIELDS: [&str; 4] = ["authorization", "cookie", "cookie2", "proxy-authorization"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Resource,
    Purge,
    Node,
    Setting,
}

impl Kind {
    pub(super) const fn number(self) -> i64 {
        match self {
            Kind::Resource => 1,
            Kind::Purge => 2,
            Kind::Node => 3,
            Kind::Setting => 4,
        }
    }

    pub(super) fn of(number: i64) -> Option<Kind> {
        [Kind::Resource, Kind::Purge, Kind::Node, Kind::Setting]
            .into_iter()
            .find(|kind| kind.number() == number)
    }
}

/// A response that every node should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub id: ResourceId,
    pub about: About,
}

/// Which response: a cache key, and which variant of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId {
    /// Of `semantics::key`.
    pub cache_key: Bytes,
    /// Names, in lower case, and values of the request fields that `Vary` nominated, by name.
    pub variant: Vec<(String, String)>,
}

/// What is known of a [`Resource`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    pub url: String,
    /// The name of the origin in the settings.
    pub origin: String,
    /// The `ETag`, or the `Last-Modified`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validator: Option<String>,
    /// Bytes of the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Tells the variants of one cache key apart in the store's index; 0 where the response does not vary.
    pub variant: i64,
    /// Seconds since 1970.
    pub fresh_until: u64,
    /// What has more of it is given up later.
    pub priority: u8,
    /// Why it was recorded, for the operator.
    pub why: String,
}

/// A later end of freshness alone is told again after this many seconds.
const FRESHNESS_STEP_SECS: u64 = 3600;

impl About {
    /// Whether there is nothing to tell to who knows `known`.
    pub(super) fn is_told_by(&self, known: &About) -> bool {
        let same = About {
            fresh_until: known.fresh_until,
            why: known.why.clone(),
            ..self.clone()
        };
        same == *known && self.fresh_until < known.fresh_until.saturating_add(FRESHNESS_STEP_SECS)
    }
}

/// Which stored responses a purge is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Selector {
    Url {
        scheme: Scheme,
        authority: String,
        #[serde(with = "latin1")]
        target: Bytes,
    },
    Prefix {
        scheme: Option<Scheme>,
        authority: String,
        #[serde(with = "latin1")]
        path: Bytes,
    },
    Host {
        authority: String,
    },
    Tag {
        #[serde(with = "latin1")]
        tag: Bytes,
    },
    Everything,
}

/// A purge, as its author has decided it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    pub selector: Selector,
    /// Makes stale instead of removing.
    #[serde(default)]
    pub soft: bool,
}

/// A purge that stands in the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurgeRow {
    pub author: String,
    /// Counted by its author, from 1.
    pub number: u64,
    pub stamp: Stamp,
    pub purge: Purge,
}

/// A node, as it says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeRow {
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// URL at which other nodes reach what clients connect to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// URL of its admin listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<String>,
    pub version: String,
    /// Seconds since 1970.
    pub started: u64,
}

/// A row as it is written, of any author.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub kind: i64,
    pub key: Vec<u8>,
    pub stamp: Stamp,
    pub author: String,
    /// `None` is a tombstone.
    pub value: Option<String>,
}

/// Why a row is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("its key or value is too long")]
    TooLong,
    #[error("its stamp is beyond all clocks")]
    Stamp,
    #[error("it cannot be read")]
    Malformed,
    #[error("it names a field that belongs to one user")]
    Private,
    #[error("its URL is none of http or https")]
    Url,
    #[error("it has too many tags")]
    Tags,
}

impl ResourceId {
    /// BLAKE3 of the whole id: the same on every node.
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(&self.encode()).as_bytes()
    }

    /// The row's key: each part behind its length, so that none reaches into another.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.cache_key.len() + 8);
        let mut part = |bytes: &[u8]| {
            key.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            key.extend_from_slice(bytes);
        };
        part(&self.cache_key);
        for (name, value) in &self.variant {
            part(name.as_bytes());
            part(value.as_bytes());
        }
        key
    }

    pub(super) fn decode(key: &[u8]) -> Option<ResourceId> {
        let mut rest = key;
        let mut part = || {
            let (length, tail) = rest.split_first_chunk::<4>()?;
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            let (bytes, tail) = tail.split_at_checked(length)?;
            rest = tail;
            Some(bytes)
        };
        let cache_key = Bytes::copy_from_slice(part()?);
        let mut variant = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        while let Some(name) = part() {
            variant.push((text(name)?, text(part()?)?));
        }
        let id = ResourceId { cache_key, variant };
        (id.encode() == key).then_some(id)
    }
}

impl Resource {
    /// The row, unless it may not be one.
    pub(super) fn encode(&self) -> Result<(Vec<u8>, String), Unfit> {
        let value = to_json(&self.about)?;
        let key = self.id.encode();
        check(Kind::Resource.number(), &key, Stamp(0), Some(&value))?;
        Ok((key, value))
    }
}

pub(super) fn to_json(value: &impl Serialize) -> Result<String, Unfit> {
    serde_json::to_string(value).map_err(|_| Unfit::Malformed)
}

pub(super) fn purge_key(instance: &str, number: u64) -> Vec<u8> {
    format!("{instance}/{number:020}").into_bytes()
}

pub(super) fn purge_number(key: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(key).ok()?;
    text.rsplit_once('/')?.1.parse().ok()
}

/// What of a live row is looked up.
#[derive(Default)]
pub(super) struct Columns {
    pub(super) url: Option<String>,
    pub(super) cache_key: Option<Vec<u8>>,
    pub(super) variant: Option<i64>,
    pub(super) tags: Vec<String>,
}

/// Whether a row may be merged, and by what it is then found.
pub(super) fn check(
    kind: i64,
    key: &[u8],
    stamp: Stamp,
    value: Option<&str>,
) -> Result<Columns, Unfit> {
    if key.len() > MAX_KEY_BYTES || value.is_some_and(|value| value.len() > MAX_VALUE_BYTES) {
        return Err(Unfit::TooLong);
    }
    if stamp > Stamp::MAX {
        return Err(Unfit::Stamp);
    }
    let Some(value) = value else {
        return Ok(Columns::default());
    };
    match Kind::of(kind) {
        Some(Kind::Resource) => check_resource(key, value),
        Some(Kind::Purge) => {
            purge_number(key).ok_or(Unfit::Malformed)?;
            read::<Purge>(value).map(|_| Columns::default())
        }
        Some(Kind::Node) => read::<NodeRow>(value).map(|_| Columns::default()),
        Some(Kind::Setting) => read::<String>(value).map(|_| Columns::default()),
        None => Ok(Columns::default()),
    }
}

pub(super) fn read<'a, T: Deserialize<'a>>(value: &'a str) -> Result<T, Unfit> {
    serde_json::from_str(value).map_err(|_| Unfit::Malformed)
}

fn check_resource(key: &[u8], value: &str) -> Result<Columns, Unfit> {
    let id = ResourceId::decode(key).ok_or(Unfit::Malformed)?;
    let about: About = read(value)?;
    let is_private = |name: &str| {
        let mut private = PRIVATE_FIELDS.iter();
        private.any(|field| field.eq_ignore_ascii_case(name))
    };
    if id.variant.iter().any(|(name, _)| is_private(name)) {
        return Err(Unfit::Private);
    }
    if !about.url.starts_with("http://") && !about.url.starts_with("https://") {
        return Err(Unfit::Url);
    }
    if about.tags.len() > MAX_TAGS {
        return Err(Unfit::Tags);
    }
    Ok(Columns {
        url: Some(about.url),
        cache_key: Some(id.cache_key.to_vec()),
        variant: Some(about.variant),
        tags: about.tags,
    })
}

/// Any bytes as text, a character for each.
mod latin1 {
    use super::{Bytes, Deserialize};
    use serde::de::Error;
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(from)?;
        let bytes: Result<Vec<u8>, _> = text.chars().map(u8::try_from).collect();
        bytes.map(Bytes::from).map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn resource(path: &str) -> Resource {
        Resource {
            id: ResourceId {
                cache_key: Bytes::from(format!("key of {path}")),
                variant: Vec::new(),
            },
            about: About {
                url: format!("https://example.com{path}"),
                origin: "main".into(),
                ..About::default()
            },
        }
    }

    fn with_variant(name: &str) -> Resource {
        let mut resource = resource("/a");
        resource.id.variant = vec![(name.into(), "x".into())];
        resource
    }

    #[test]
    fn ids_are_read_as_written_and_no_other_way() {
        for id in [
            resource("/a").id,
            with_variant("accept-language").id,
            ResourceId {
                cache_key: Bytes::new(),
                variant: vec![("".into(), "".into()), ("b".into(), "ü".into())],
            },
        ] {
            let key = id.encode();
            assert_eq!(ResourceId::decode(&key), Some(id));
            assert_eq!(ResourceId::decode(&key[..key.len() - 1]), None);
            assert_eq!(ResourceId::decode(&[&key[..], b"x"].concat()), None);
        }
        assert_eq!(ResourceId::decode(b""), None);
        assert_eq!(ResourceId::decode(&[0xff; 12]), None);
    }

    #[test]
    fn what_belongs_to_one_user_is_no_row() {
        let unfit = |resource: Resource| resource.encode().err();
        assert_eq!(unfit(with_variant("accept-language")), None);
        for name in ["cookie", "Cookie", "authorization", "proxy-authorization"] {
            assert_eq!(unfit(with_variant(name)), Some(Unfit::Private), "{name}");
        }
        let mut elsewhere = resource("/a");
        elsewhere.about.url = "file:///etc/passwd".into();
        assert_eq!(unfit(elsewhere), Some(Unfit::Url));
        let mut tagged = resource("/a");
        tagged.about.tags = vec!["t".into(); MAX_TAGS + 1];
        assert_eq!(unfit(tagged), Some(Unfit::Tags));
        let mut long = resource("/a");
        long.about.why = "x".repeat(MAX_VALUE_BYTES);
        assert_eq!(unfit(long), Some(Unfit::TooLong));
    }

    #[test]
    fn rows_of_other_versions_are_read() {
        let key = resource("/a").id.encode();
        let taken = |kind, key: &[u8], value| check(kind, key, Stamp(1), Some(value)).is_ok();
        assert!(taken(1, &key, r#"{"url":"https://a/","later":[1]}"#));
        assert!(!taken(1, &key, r#"{"url":"https://a/","size":"big"}"#));
        assert!(!taken(1, b"no id", r#"{"url":"https://a/"}"#));
        assert!(taken(77, b"anything", "not even JSON"));
        assert!(!taken(
            2,
            b"i/00000000000000000001",
            r#"{"selector":{"by":"moon"}}"#
        ));
        assert!(check(1, &key, Stamp(u64::MAX), None).is_err());
    }

    #[test]
    fn purges_are_read_as_written() {
        for selector in [
            Selector::Url {
                scheme: Scheme::Https,
                authority: "a.example".into(),
                target: Bytes::from_static(b"/\xff?q"),
            },
            Selector::Prefix {
                scheme: None,
                authority: "a.example".into(),
                path: Bytes::from_static(b"/p"),
            },
            Selector::Host {
                authority: "a.example".into(),
            },
            Selector::Tag {
                tag: Bytes::from_static(b"\xe9t"),
            },
            Selector::Everything,
        ] {
            let purge = Purge {
                selector,
                soft: true,
            };
            let json = to_json(&purge).unwrap();
            assert_eq!(read::<Purge>(&json), Ok(purge), "{json}");
        }
        assert_eq!(purge_number(&purge_key("ab", 7)), Some(7));
    }
}
