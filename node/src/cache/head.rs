//! The head of a stored response: what was received, what it means for caching, and how it goes out.

use std::time::SystemTime;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

use crate::clock::Stamp;
use crate::semantics::conditional::Validators;
use crate::semantics::freshness::Freshness;
use crate::semantics::tags::Tags;
use crate::semantics::vary::{VariantKey, VarySpec};
use crate::store::Facts;

/// First bytes of an encoded head; another version is not read, and its response is a miss.
const FORMAT: [u8; 4] = *b"cjh3";

/// The version before, without [`Asked::vouched`].
const FORMAT_2: [u8; 4] = *b"cjh2";

/// The one before that, without [`Asked`]: read as asked for before anything else happened.
const FORMAT_1: [u8; 4] = *b"cjh1";

/// When an origin was asked for what is stored, by the node's hybrid clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// For the bytes, the oldest if they came from several exchanges.
    pub filled: Stamp,
    /// For the fields: later than `filled` when it was validated since.
    pub validated: Stamp,
    /// When an origin, or another node that knew of all purges, was last asked and said that it may be used: what was
    /// purged before without word of it here was not this.
    pub vouched: Stamp,
}

impl Asked {
    /// Both in one exchange.
    pub fn at(stamp: Stamp) -> Asked {
        Asked {
            filled: stamp,
            validated: stamp,
            vouched: stamp,
        }
    }

    /// The same bytes, confirmed or added to by a question at `stamp`.
    pub fn again(self, stamp: Stamp) -> Asked {
        Asked {
            filled: self.filled.min(stamp),
            validated: stamp,
            vouched: stamp,
        }
    }
}

pub struct Head {
    pub status: StatusCode,
    /// End-to-end fields as they will be sent, without framing, `Age` and the fields meant for us alone.
    pub headers: HeaderMap,
    pub freshness: Freshness,
    pub validators: Validators,
    pub vary: VarySpec,
    pub variant: VariantKey,
    pub asked: Asked,
    /// What it can be purged by, besides its URL.
    pub tags: Tags,
    /// The delivered fields as HTTP/1 lines, each ended by CRLF.
    lines: Bytes,
}

/// The same for the same variant on every node, and 0 for a response that does not vary: how the manifest and the
/// index name it.
pub fn variant_number(vary: &VarySpec, variant: &VariantKey) -> i64 {
    if vary.is_empty() {
        return 0;
    }
    let mut hasher = blake3::Hasher::new();
    for field in vary.fields() {
        hasher.update(field.as_bytes());
        hasher.update(b",");
    }
    hasher.update(&[0]);
    hasher.update(variant.as_bytes());
    let mut number = [0; 8];
    hasher.finalize_xof().fill(&mut number);
    i64::from_le_bytes(number)
}

/// What stands in the index: postcard after [`FORMAT`], followed by [`Asked`], guarded by the row's own
/// checksum.
#[derive(Serialize, Deserialize)]
struct Record {
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    freshness: Freshness,
    vary: VarySpec,
    variant: VariantKey,
}

impl Head {
    pub fn new(
        status: StatusCode,
        headers: HeaderMap,
        freshness: Freshness,
        vary: VarySpec,
        variant: VariantKey,
        asked: Asked,
    ) -> Head {
        Head {
            status,
            lines: encode_lines(&headers),
            validators: Validators::from_headers(&headers),
            tags: Tags::from_headers(&headers),
            headers,
            freshness,
            vary,
            variant,
            asked,
        }
    }

    /// Whether later bytes may be joined to those held (RFC 9111 §3.4).
    pub fn is_joinable(&self) -> bool {
        self.status == StatusCode::OK && self.validators.is_strong()
    }

    pub fn selects(&self, request: &HeaderMap) -> bool {
        self.vary.matches(&self.variant, request)
    }

    pub fn same_variant(&self, other: &Head) -> bool {
        self.vary == other.vary && self.variant == other.variant
    }

    /// The fields of every answer from this response, ready for the wire.
    pub fn lines(&self) -> &Bytes {
        &self.lines
    }

    /// Stored for what they mean here, never sent: fields for the cache alone (RFC 9213 §2.2, the
    /// Surrogate ones), and what is computed anew for each answer.
    pub const UNDELIVERED: [HeaderName; 5] = [
        HeaderName::from_static("surrogate-control"),
        HeaderName::from_static("surrogate-key"),
        HeaderName::from_static("caje-cdn-cache-control"),
        header::AGE,
        header::CONTENT_LENGTH,
    ];

    pub fn delivers(name: &HeaderName) -> bool {
        !Head::UNDELIVERED.contains(name)
    }

    /// What the index says of it in the open.
    pub fn facts(&self, now: SystemTime) -> Facts {
        let now_secs = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        Facts {
            stale_at: now_secs.saturating_add_signed(self.freshness.ttl(now)),
            variant: variant_number(&self.vary, &self.variant),
        }
    }

    pub fn encode(&self) -> Box<[u8]> {
        let record = Record {
            status: self.status.as_u16(),
            headers: self
                .headers
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
                .collect(),
            freshness: self.freshness.clone(),
            vary: self.vary.clone(),
            variant: self.variant.clone(),
        };
        // Serialising plain owned data into memory has no way to fail; an empty head is refused on reading.
        postcard::to_extend(&record, FORMAT.to_vec())
            .and_then(|bytes| postcard::to_extend(&self.asked, bytes))
            .unwrap_or_default()
            .into_boxed_slice()
    }

    pub fn decode(bytes: &[u8]) -> Option<Head> {
        let (record, asked): (Record, Asked) = match bytes.split_first_chunk()? {
            (&FORMAT, rest) => postcard::from_bytes(rest).ok()?,
            (&FORMAT_2, rest) => {
                let (record, filled, validated) = postcard::from_bytes(rest).ok()?;
                let vouched = validated;
                let asked = Asked {
                    filled,
                    validated,
                    vouched,
                };
                (record, asked)
            }
            (&FORMAT_1, rest) => (postcard::from_bytes(rest).ok()?, Asked::default()),
            _ => return None,
        };
        let mut headers = HeaderMap::with_capacity(record.headers.len());
        for (name, value) in record.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            headers.append(name, HeaderValue::from_bytes(&value).ok()?);
        }
        Some(Head::new(
            StatusCode::from_u16(record.status).ok()?,
            headers,
            record.freshness,
            record.vary,
            record.variant,
            asked,
        ))
    }

    /// Seconds since the response was generated, by RFC 9111 §4.2.3.
    pub fn age_secs(&self, now: SystemTime) -> u64 {
        self.freshness.age(now).as_secs()
    }
}

fn encode_lines(headers: &HeaderMap) -> Bytes {
    let mut lines = BytesMut::with_capacity(32 * headers.len());
    for (name, value) in headers {
        if !Head::delivers(name) {
            continue;
        }
        lines.put_slice(name.as_str().as_bytes());
        lines.put_slice(b": ");
        lines.put_slice(value.as_bytes());
        lines.put_slice(b"\r\n");
    }
    lines.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::freshness::{Rules, storable};

    fn head(asked: Asked) -> Head {
        let mut headers = HeaderMap::new();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=9"));
        headers.insert("surrogate-key", HeaderValue::from_static("a b"));
        let request = HeaderMap::new();
        let now = crate::clock::now();
        let freshness = storable(
            &http::Method::GET,
            &request,
            StatusCode::OK,
            &headers,
            &Rules::default(),
            now,
            now,
        );
        let freshness = freshness.expect("a storable answer");
        let vary = VarySpec::from_headers(&headers);
        let variant = vary.key_for(&request);
        Head::new(StatusCode::OK, headers, freshness, vary, variant, asked)
    }

    #[test]
    fn when_it_was_asked_for_survives() {
        let asked = Asked::at(Stamp(5)).again(Stamp(7));
        let read = Head::decode(&head(asked).encode()).expect("a head");
        assert_eq!(read.asked, asked);
        assert_eq!(read.tags.tags.len(), 2);
    }

    /// As the version before wrote it: the record, and nothing of when.
    #[test]
    fn an_older_head_was_asked_for_before_all_else() {
        let written = head(Asked::default()).encode();
        let record = &written[FORMAT.len()..written.len() - 3];
        let read = Head::decode(&[&FORMAT_1, record].concat()).expect("a head");
        assert_eq!(read.asked, Asked::default());
        let read = Head::decode(&[&FORMAT_2, record, &[5, 7]].concat()).expect("a head");
        let (filled, validated) = (Stamp(5), Stamp(7));
        let vouched = validated;
        assert_eq!(
            read.asked,
            Asked {
                filled,
                validated,
                vouched
            }
        );
        assert_eq!(read.tags.tags.len(), 2);
        assert!(Head::decode(&[b"cjh0", record].concat()).is_none());
    }
}
