//! The manifest as operators see it: what of it this node holds, what it lacks, and how to begin it anew.

use std::time::Duration;

use axum::extract::State as FromState;
use caje_admin_api::{
    Coverage, CoverageBy, CoverageGroup, CoverageQuery, Held, List, ListQuery, ManifestClear,
    ManifestRow, NodeCoverage, Object, Objects, ObjectsQuery, State,
};
use http::StatusCode;

use super::objects::{self, Prefix, limit};
use super::refusal::{Answer, Asked, Refusal, Told};
use super::{Node, Shared};
use crate::clock;
use crate::manifest::{self, Covered, Cursor, Filter, Manifest, Reader};
use crate::semantics::key::CacheKey;

/// Rows that are taken out of the manifest at a time.
const BATCH: usize = 1000;

/// Groups of coverage that are told apart.
const MAX_GROUPS: usize = 1000;

/// How long a batch may take to be recorded.
const BATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// The resources that are meant: one way to say it at a time.
pub(super) fn filter(
    host: Option<&str>,
    prefix: Option<&str>,
    tag: Option<&str>,
) -> Result<Filter, Refusal> {
    match (host, prefix, tag) {
        (None, None, None) => Ok(Filter::All),
        (Some(host), None, None) => Ok(Filter::Host(host.to_ascii_lowercase())),
        (None, Some(prefix), None) => Prefix::url(prefix).map(Filter::Prefix),
        (None, None, Some(tag)) => Ok(Filter::Tag(tag.to_owned())),
        _ => Err(Refusal::bad(
            "the manifest is looked through by one of `host`, `prefix` and `tag`",
            "leave the others out",
        )),
    }
}

fn no_manifest(shared: &Shared) -> Refusal {
    let why = (shared.control.manifest_failure)();
    let why = why.unwrap_or_else(|| "it is being opened".to_owned());
    Refusal::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "no-manifest",
        format!("there is no manifest: {why}"),
        "it is opened by itself as soon as it can be; `/_caje/readyz` says how it is",
    )
}

pub(super) fn unreadable(error: &rusqlite::Error) -> Refusal {
    Refusal::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "no-coverage",
        format!("what this node holds cannot be compared with the manifest: {error}"),
        "try again; `caje storage` says whether the disk is well",
    )
}

pub(super) fn open(shared: &Shared) -> Result<Manifest, Refusal> {
    let manifest = shared.control.cache.recorder.manifest();
    manifest
        .map(|manifest| (*manifest).clone())
        .ok_or_else(|| no_manifest(shared))
}

/// How long is waited for an index that is to be up to date.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Has the index, which is written behind, know what was cleared, purged and lost until now. A disk that takes its time
/// is not waited for.
pub(super) async fn settle(node: &Node) -> Result<(), Refusal> {
    let swept = node.apart(|shared| shared.control.cache.residency.sweep());
    swept.await?;
    let written = node.control.cache.store.write_index();
    let _ = tokio::time::timeout(SETTLE_TIMEOUT, written).await;
    Ok(())
}

/// A reader that has the store's index beside the manifest; where there is no disk, or none any more, it finds that all
/// is missing. BLOCKING.
fn reader(shared: &Shared) -> Result<Reader, Refusal> {
    let reader = open(shared)?.reader();
    let mut reader = reader.map_err(|error| unreadable(&error))?;
    if let Some(index) = shared.control.cache.store.index_path() {
        let attached = reader.attach_index(&index);
        attached.map_err(|error| unreadable(&error))?;
    }
    Ok(reader)
}

pub(super) async fn coverage(
    FromState(node): FromState<Node>,
    Asked(query): Asked<CoverageQuery>,
) -> Answer<Coverage> {
    settle(&node).await?;
    let own = node.apart(move |shared| own(shared, query.by)).await?;
    Ok(Told(Coverage { nodes: vec![own?] }))
}

/// What this node holds. BLOCKING.
///
/// # Errors
/// When the manifest or the disk is not there.
pub(super) fn own(shared: &Shared, by: Option<CoverageBy>) -> Result<NodeCoverage, Refusal> {
    let reader = reader(shared)?;
    let counts = reader.coverage_counts(clock::now_secs());
    let counts = counts.map_err(|error| unreadable(&error))?;
    let extra = reader.count_extra().map_err(|error| unreadable(&error))?;
    let groups = by.map(|by| {
        let name = |url: &str, origin: &str| match by {
            CoverageBy::Origin => origin.to_owned(),
            CoverageBy::Prefix => first_segment(url).to_owned(),
        };
        reader.coverage_groups(clock::now_secs(), MAX_GROUPS, name)
    });
    let groups = groups.transpose().map_err(|error| unreadable(&error))?;
    let group = |(name, counts): (String, manifest::Coverage)| CoverageGroup {
        name,
        resources: counts.present + counts.stale + counts.partial + counts.missing,
        present: counts.present,
        stale: counts.stale,
        partial: counts.partial,
        missing: counts.missing,
    };
    let told = shared.control.populate.watch().borrow().clone();
    let config = shared.control.config.load();
    let manifest::Coverage {
        present,
        stale,
        partial,
        missing,
    } = counts;
    Ok(NodeCoverage {
        node: config.node.name.clone(),
        region: config.node.region.clone(),
        resources: present + stale + partial + missing,
        present,
        stale,
        partial,
        missing,
        blocked: told.blocked.clone(),
        waiting: told.waiting,
        extra,
        groups: groups.unwrap_or_default().into_iter().map(group).collect(),
        error: None,
    })
}

/// Scheme, host and the first segment of the path, with the slash behind it if there is more.
fn first_segment(url: &str) -> &str {
    let path = url.find("://").map_or(0, |at| at + 3);
    let Some(root) = url[path..].find('/').map(|at| path + at + 1) else {
        return url;
    };
    let rest = url[root..].split(['?', '#']).next().unwrap_or_default();
    match rest.find('/') {
        Some(at) => &url[..=root + at],
        None => &url[..root],
    }
}

/// What the manifest has and this node lacks, as objects of which nothing, or not all, is here.
pub(super) async fn missing(node: &Node, query: &ObjectsQuery) -> Answer<Objects> {
    let wanted = filter(
        query.host.as_deref(),
        query.prefix.as_deref(),
        query.tag.as_deref(),
    )?;
    let after = cursor(query.cursor.as_deref())?;
    let limit = limit(query.limit);
    settle(node).await?;
    let page = node.apart(move |shared| {
        let list = reader(shared)?.lacking(&wanted, &after, limit);
        let list = list.map_err(|error| unreadable(&error))?;
        let name = shared.name();
        let object = |covered: &Covered| absent(shared, &name, covered);
        Ok(Objects {
            objects: list.items.iter().map(object).collect(),
            next: list.next.map(|next| next.write()),
        })
    });
    page.await?.map(Told)
}

fn cursor(text: Option<&str>) -> Result<Cursor, Refusal> {
    let Some(text) = text else {
        return Ok(Cursor::default());
    };
    Cursor::read(text).ok_or_else(|| {
        Refusal::bad(
            "the cursor is not one that a page has given",
            "begin again without it",
        )
    })
}

/// As the list of stored responses shows what is not one.
fn absent(shared: &Shared, node: &str, covered: &Covered) -> Object {
    let resource = &covered.listed.resource;
    let (id, about) = (&resource.id, &resource.about);
    let variants = CacheKey::from_bytes(&id.cache_key)
        .and_then(|key| shared.control.cache.residency.find(&key))
        .map(|resource| resource.variants())
        .unwrap_or_default();
    let variant = |head: &crate::cache::head::Head| {
        crate::cache::head::variant_number(&head.vary, &head.variant)
    };
    let part = variants
        .iter()
        .find(|stored| variant(&stored.head) == about.variant);
    let etag = about.validator.clone();
    Object {
        node: node.to_owned(),
        url: about.url.clone(),
        status: 0,
        state: State::Missing,
        age_secs: 0,
        ttl_secs: 0,
        heuristic: false,
        size_bytes: about.size,
        present_bytes: part.map_or(0, |part| part.body.object.present_bytes()),
        used_ms: None,
        hits: 0,
        tags: about.tags.clone(),
        vary: id.variant.iter().map(|(name, _)| name.clone()).collect(),
        etag: etag.filter(|text| text.ends_with('"')),
        content_type: None,
        key: blake3::hash(&id.cache_key).to_hex().to_string(),
    }
}

/// Stored responses and rows, each page by page.
pub(super) async fn list(
    FromState(node): FromState<Node>,
    Asked(query): Asked<ListQuery>,
) -> Answer<List> {
    let wanted = filter(None, query.prefix.as_deref(), None)?;
    let after = cursor(query.row_cursor.as_deref())?;
    let limit = limit(query.limit);
    settle(&node).await?;
    let rows = node.apart(move |shared| {
        let list = reader(shared)?.coverage(&wanted, &after, limit, clock::now_secs());
        list.map_err(|error| unreadable(&error))
    });
    let rows = rows.await?;
    let stored = ObjectsQuery {
        prefix: query.prefix,
        limit: query.limit,
        cursor: query.cursor,
        ..ObjectsQuery::default()
    };
    let Objects { objects, next } = objects::stored(&node, &stored).await?;
    let (manifest, next_row, manifest_error) = match rows {
        Ok(rows) => (
            rows.items.into_iter().map(row).collect(),
            rows.next.map(|next| next.write()),
            None,
        ),
        Err(refusal) => (Vec::new(), None, Some(refusal.message())),
    };
    Ok(Told(List {
        objects,
        next,
        manifest,
        next_row,
        manifest_error,
    }))
}

fn row(covered: Covered) -> ManifestRow {
    let (resource, author) = (covered.listed.resource, covered.listed.author);
    let about = resource.about;
    ManifestRow {
        url: about.url,
        held: match covered.held {
            manifest::Held::Present => Held::Present,
            manifest::Held::Stale => Held::Stale,
            manifest::Held::Partial => Held::Partial,
            manifest::Held::Missing => Held::Missing,
        },
        vary: resource.id.variant,
        size_bytes: about.size,
        fresh_until_ms: about.fresh_until.saturating_mul(1000),
        tags: about.tags,
        author,
        why: about.why,
    }
}

/// Takes all resources out of the manifest, for all nodes. What is stored stays.
pub(super) async fn clear(FromState(node): FromState<Node>) -> Answer<ManifestClear> {
    let manifest = open(&node)?;
    let mut changed = manifest.watch();
    let mut removed = 0;
    loop {
        changed.borrow_and_update();
        let page = node.apart(|shared| {
            let reader = open(shared)?.reader();
            let page =
                reader.and_then(|reader| reader.resources(&Filter::All, &Cursor::default(), BATCH));
            page.map_err(|error| unreadable(&error))
        });
        let page = page.await??;
        if page.items.is_empty() {
            return Ok(Told(ManifestClear { removed }));
        }
        removed += page.items.len() as u64;
        let last = page.items.last().map(|item| item.resource.id.clone());
        for item in page.items {
            manifest.forget(&item.resource.id);
        }
        // Until these are gone the next page would be the same.
        let gone = async {
            while let Some(id) = &last {
                let id = id.clone();
                let known = node.apart(move |shared| {
                    let found = open(shared)?
                        .reader()
                        .and_then(|reader| reader.resource(&id));
                    found.map_err(|error| unreadable(&error))
                });
                if known.await??.is_none() {
                    break;
                }
                changed.changed().await.map_err(|_| Refusal::internal())?;
            }
            Ok::<_, Refusal>(())
        };
        let in_time = tokio::time::timeout(BATCH_TIMEOUT, gone).await;
        in_time.map_err(|_| {
            Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "not-recorded",
                format!(
                    "{removed} resources were to be taken out, and that is not on the disk yet"
                ),
                "look at the disk of `store.dir`, and ask again: it goes on",
            )
        })??;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_way_to_say_what_is_meant() {
        let same = |found: Result<Filter, Refusal>, expected: Filter| {
            assert_eq!(found.ok(), Some(expected));
        };
        same(filter(None, None, None), Filter::All);
        same(
            filter(Some("A.example"), None, None),
            Filter::Host("a.example".into()),
        );
        let prefix = filter(None, Some("HTTPS://A.example/v/"), None);
        same(prefix, Filter::Prefix("https://a.example/v/".into()));
        same(filter(None, None, Some("t")), Filter::Tag("t".into()));
        assert!(filter(None, Some("/v/"), None).is_err());
        assert!(filter(None, Some("a.example/v"), None).is_err());
        assert!(filter(Some("a"), None, Some("t")).is_err());
    }

    #[test]
    fn where_a_url_belongs() {
        for (url, prefix) in [
            ("https://a.example/v/1/2", "https://a.example/v/"),
            ("https://a.example/v/", "https://a.example/v/"),
            ("https://a.example/v", "https://a.example/"),
            ("https://a.example/", "https://a.example/"),
            ("https://a.example/?x=/y/", "https://a.example/"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(first_segment(url), prefix, "{url}");
        }
    }

    #[test]
    fn cursors_are_read_as_written() {
        assert_eq!(cursor(None).ok(), Some(Cursor::default()));
        let written = Cursor::default().write();
        assert_eq!(cursor(Some(&written)).ok(), Some(Cursor::default()));
        for text in ["", "x", "zz.00", "0.", "é.é"] {
            let _ = cursor(Some(text));
        }
        assert!(cursor(Some("zz.00")).is_err());
    }
}
