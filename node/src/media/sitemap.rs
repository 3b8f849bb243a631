//! Sitemaps (sitemaps.org 0.9): pages, or an index of further sitemaps.

use super::xml::Walker;
use super::{Collector, Expansion, Kind, Reading, Unreadable, page, text};

/// The pages of a sitemap, or, of an index, its sitemaps as lists. Addresses of the extensions for images and
/// videos are not pages and are left out.
pub fn expand(bytes: &[u8], reading: Reading<'_>) -> Result<Expansion, Unreadable> {
    let text = text(bytes, &reading.limits)?;
    let mut walker = Walker::new(text);
    let root = walker.root()?;
    let (entry, kind) = match root.as_ref().map(|root| root.name()) {
        Some("urlset") => ("url", Kind::Page),
        Some("sitemapindex") => ("sitemap", Kind::List),
        _ => return Err(Unreadable::Other("sitemap")),
    };
    let mut collector = Collector::new(reading);
    walker.children(|walker, element| {
        if element.name() != entry {
            return Ok(());
        }
        if collector.is_full() {
            collector.expansion.is_cut = true;
            return Ok(());
        }
        let prefix = element.prefix().to_owned();
        let mut address = None;
        walker.children(|walker, element| {
            if element.name() == "loc" && element.prefix() == prefix && address.is_none() {
                address = Some(walker.text()?);
            }
            Ok(())
        })?;
        if let Some(address) = address {
            collector.add_reference(reading.at, &address, |target| page(target, kind));
        }
        Ok(())
    })?;
    Ok(collector.expansion)
}
