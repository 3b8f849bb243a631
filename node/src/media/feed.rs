//! Feeds: RSS 2.0 and 1.0, Atom (RFC 4287), JSON Feed 1.1.
//!
//! An entry comes to its enclosures, or, where it has none, to the page it links to.

use serde::Deserialize;

use super::date::{Nanos, parse_date_time, parse_mail_date};
use super::xml::{Element, Walker};
use super::{Collector, Expansion, Kind, Reading, Unreadable, page, text};
use crate::semantics::reference::{self, Target};

/// Addresses of one entry, at most.
const MAX_ADDRESSES: usize = 16;

#[derive(Default)]
struct Entry {
    date: Option<Nanos>,
    /// What `xml:base` makes of the feed's URL.
    base: Option<Target>,
    enclosures: Vec<Box<str>>,
    link: Option<Box<str>>,
}

/// The pages of the newest entries of a feed: by their dates where all have one, and else the first ones.
pub fn expand(bytes: &[u8], reading: Reading<'_>, newest: usize) -> Result<Expansion, Unreadable> {
    let text = text(bytes, &reading.limits)?;
    let mut entries = match text.trim_ascii_start().starts_with('{') {
        true => json_entries(text)?,
        false => xml_entries(text, reading)?,
    };
    if entries.iter().all(|entry| entry.date.is_some()) {
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.date));
    }
    let mut collector = Collector::new(reading);
    for entry in entries.into_iter().take(newest) {
        let base = entry.base.as_ref().unwrap_or(reading.at);
        let addresses = match entry.enclosures.is_empty() {
            true => entry.link.as_slice(),
            false => &entry.enclosures,
        };
        for address in addresses {
            collector.add_reference(base, address, |target| page(target, Kind::Page));
        }
    }
    Ok(collector.expansion)
}

fn xml_entries(text: &str, reading: Reading<'_>) -> Result<Vec<Entry>, Unreadable> {
    let mut walker = Walker::new(text);
    let root = walker.root()?;
    let Some(root) = root.filter(|root| matches!(root.name(), "rss" | "RDF" | "feed")) else {
        return Err(Unreadable::Other("feed"));
    };
    let base = based(reading.at, &root);
    let mut entries = Vec::new();
    let mut add = |walker: &mut Walker<'_>, element: &Element<'_>| {
        if matches!(element.name(), "item" | "entry") && entries.len() < reading.limits.max_items {
            entries.push(xml_entry(walker, element, &base)?);
        }
        Ok(())
    };
    walker.children(|walker, element| {
        if element.name() == "channel" {
            return walker.children(|walker, element| add(walker, &element));
        }
        add(walker, &element)
    })?;
    Ok(entries)
}

fn xml_entry(
    walker: &mut Walker<'_>,
    entry: &Element<'_>,
    base: &Target,
) -> Result<Entry, Unreadable> {
    let mut found = Entry {
        base: Some(based(base, entry)),
        ..Entry::default()
    };
    let mut published = None;
    let mut updated = None;
    walker.children(|walker, element| {
        match element.name() {
            "enclosure" | "content" => found.enclose(element.get("url")),
            "group" => walker.children(|_, element| {
                if element.name() == "content" {
                    found.enclose(element.get("url"));
                }
                Ok(())
            })?,
            "link" => match (element.get("href"), element.get("rel").as_deref()) {
                (Some(address), Some("enclosure")) => found.enclose(Some(address)),
                (Some(address), None | Some("alternate")) => {
                    found.link = found.link.take().or(Some(address));
                }
                (Some(_), Some(_)) => {}
                (None, _) => {
                    let address = walker.text()?;
                    if found.link.is_none() && !address.is_empty() {
                        found.link = Some(address.into());
                    }
                }
            },
            "pubDate" => published = parse_mail_date(&walker.text()?),
            "published" | "date" => published = parse_date_time(&walker.text()?),
            "updated" => updated = parse_date_time(&walker.text()?),
            _ => {}
        }
        Ok(())
    })?;
    found.date = published.or(updated);
    Ok(found)
}

/// What references below an element are relative to.
fn based(base: &Target, element: &Element<'_>) -> Target {
    let own = element.get("xml:base");
    let own = own.and_then(|own| reference::resolve(base, own.as_bytes()).ok());
    own.unwrap_or_else(|| base.clone())
}

impl Entry {
    fn enclose(&mut self, address: Option<Box<str>>) {
        if self.enclosures.len() < MAX_ADDRESSES {
            self.enclosures.extend(address);
        }
    }
}

#[derive(Deserialize)]
struct JsonFeed {
    items: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct JsonItem {
    url: Option<Box<str>>,
    external_url: Option<Box<str>>,
    date_published: Option<Box<str>>,
    date_modified: Option<Box<str>>,
    #[serde(default)]
    attachments: Vec<JsonAttachment>,
}

#[derive(Deserialize)]
struct JsonAttachment {
    url: Box<str>,
}

fn json_entries(text: &str) -> Result<Vec<Entry>, Unreadable> {
    let feed: JsonFeed = serde_json::from_str(text).map_err(|_| Unreadable::Other("JSON feed"))?;
    // An item of another form costs only itself.
    let items = feed.items.into_iter();
    let items = items.filter_map(|item| serde_json::from_value::<JsonItem>(item).ok());
    let entries = items.map(|item| {
        let mut entry = Entry::default();
        for attachment in item.attachments {
            entry.enclose(Some(attachment.url));
        }
        let dates = [item.date_published, item.date_modified];
        entry.date = dates
            .iter()
            .flatten()
            .find_map(|date| parse_date_time(date));
        entry.link = item.url.or(item.external_url);
        entry
    });
    Ok(entries.collect())
}
