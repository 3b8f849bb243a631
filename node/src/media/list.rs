//! A plain list of URLs: one on a line, with `#` before what is none.

use super::{Collector, Expansion, Kind, Reading, Unreadable, page, text};

/// The pages of a list. Blank lines and comments are skipped; references are relative to the list's URL.
pub fn expand(bytes: &[u8], reading: Reading<'_>) -> Result<Expansion, Unreadable> {
    let text = text(bytes, &reading.limits)?;
    let mut collector = Collector::new(reading);
    for line in text.lines().map(str::trim_ascii) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if collector.is_full() {
            collector.expansion.is_cut = true;
            break;
        }
        collector.add_reference(reading.at, line, |target| page(target, Kind::Page));
    }
    Ok(collector.expansion)
}
