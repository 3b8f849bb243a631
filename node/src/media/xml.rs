//! XML as lists use it: elements, attributes, text.
//!
//! Kept true here: no entity is expanded but XML's own five and those of characters, and a document that
//! declares others is not read. Nesting is bounded, and so is what is kept of an element.

use std::borrow::Cow;

use quick_xml::escape::{resolve_predefined_entity, unescape};
use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

use super::Unreadable;

/// Elements within one another, at most.
const MAX_DEPTH: usize = 48;

/// Attributes of one element that are looked at.
const MAX_ATTRIBUTES: usize = 64;

/// Longest value of an attribute, as it is written, in bytes.
const MAX_VALUE_BYTES: usize = 8 << 10;

/// Text of one element that is kept, in bytes.
const MAX_TEXT_BYTES: usize = 16 << 10;

/// Walks through a document, element by element.
pub struct Walker<'a> {
    reader: Reader<&'a [u8]>,
    depth: usize,
}

/// The start of an element.
pub struct Element<'a>(BytesStart<'a>);

enum Step<'a> {
    Start(Element<'a>),
    Text(Cow<'a, str>),
    End,
    Over,
}

impl<'a> Walker<'a> {
    pub fn new(text: &'a str) -> Walker<'a> {
        let mut reader = Reader::from_str(text);
        let config = reader.config_mut();
        config.expand_empty_elements = true;
        // Addresses are often written with bare ampersands.
        config.allow_dangling_amp = true;
        Walker { reader, depth: 0 }
    }

    /// The outermost element.
    pub fn root(&mut self) -> Result<Option<Element<'a>>, Unreadable> {
        loop {
            match self.step()? {
                Step::Start(element) => return Ok(Some(element)),
                Step::Over => return Ok(None),
                Step::Text(_) | Step::End => {}
            }
        }
    }

    /// Gives each child of the element that was started last to `read`, up to and with the element's end.
    /// What `read` leaves of a child is skipped.
    pub fn children(
        &mut self,
        mut read: impl FnMut(&mut Walker<'a>, Element<'a>) -> Result<(), Unreadable>,
    ) -> Result<(), Unreadable> {
        let own = self.depth;
        while self.depth >= own {
            if let Step::Start(element) = self.step()? {
                read(self, element)?;
                self.leave(own)?;
            }
        }
        Ok(())
    }

    /// The text of the element that was started last and of its children, up to and with its end.
    pub fn text(&mut self) -> Result<String, Unreadable> {
        let own = self.depth;
        let mut text = String::new();
        while self.depth >= own {
            if let Step::Text(more) = self.step()?
                && text.len() + more.len() <= MAX_TEXT_BYTES
            {
                text.push_str(&more);
            }
        }
        text.truncate(text.trim_ascii_end().len());
        let start = text.len() - text.trim_ascii_start().len();
        Ok(text.split_off(start))
    }

    /// Up to where `depth` elements are open.
    fn leave(&mut self, depth: usize) -> Result<(), Unreadable> {
        while self.depth > depth {
            self.step()?;
        }
        Ok(())
    }

    fn malformed(&self) -> Unreadable {
        Unreadable::Malformed(self.reader.buffer_position())
    }

    fn step(&mut self) -> Result<Step<'a>, Unreadable> {
        loop {
            let event = self.reader.read_event();
            return Ok(match event.map_err(|_| self.malformed())? {
                Event::Start(start) | Event::Empty(start) => {
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return Err(Unreadable::TooDeep);
                    }
                    Step::Start(Element(start))
                }
                Event::End(_) => {
                    self.depth = self.depth.checked_sub(1).ok_or_else(|| self.malformed())?;
                    Step::End
                }
                Event::Text(text) => Step::Text(text.into_inner()),
                Event::CData(text) => Step::Text(text.into_inner()),
                Event::GeneralRef(entity) => {
                    let character = entity.resolve_char_ref().ok().flatten();
                    let name = entity.into_inner();
                    Step::Text(match (character, resolve_predefined_entity(&name)) {
                        (Some(character), _) => Cow::Owned(character.to_string()),
                        (None, Some(text)) => Cow::Borrowed(text),
                        (None, None) => Cow::Owned(format!("&{name};")),
                    })
                }
                Event::DocType(declaration) => match declaration.into_inner().contains('[') {
                    true => return Err(Unreadable::Doctype),
                    false => continue,
                },
                Event::Eof if self.depth > 0 => return Err(self.malformed()),
                Event::Eof => Step::Over,
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => continue,
            });
        }
    }
}

impl Element<'_> {
    /// Without its prefix.
    pub fn name(&self) -> &str {
        let name = self.0.name().into_inner();
        name.rsplit(':').next().unwrap_or_default()
    }

    /// What stands before the colon of the name; empty where there is none.
    pub fn prefix(&self) -> &str {
        let name = self.0.name().into_inner();
        name.split_once(':').map_or("", |(prefix, _)| prefix)
    }

    /// The first attribute of that name, which has no prefix unless `name` has. One that is malformed, and all
    /// that follow it, are as if not there; so is one that is too long.
    pub fn get(&self, name: &str) -> Option<Box<str>> {
        let mut attributes = self.0.attributes();
        // The check for attributes of one name takes quadratic time.
        let attributes = attributes.with_checks(false).take(MAX_ATTRIBUTES);
        let mut known = attributes.map_while(Result::ok);
        let found = known.find(|attribute| attribute.key.into_inner() == name)?;
        if found.value.len() > MAX_VALUE_BYTES {
            return None;
        }
        let value = unescape(&found.value).ok()?;
        Some(value.trim_ascii().into())
    }

    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.get(name)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(document: &str) -> Result<Vec<String>, Unreadable> {
        let mut walker = Walker::new(document);
        let mut found = Vec::new();
        let Some(_) = walker.root()? else {
            return Ok(found);
        };
        walker.children(|walker, element| {
            let name = element.name().to_owned();
            if name != "skipped" {
                let value = element.get("a").unwrap_or_default();
                found.push(format!("{name} {value} {}", walker.text()?));
            }
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn documents() {
        for (document, expected) in [
            ("<r><x a='1'>t</x><y/></r>", Ok(vec!["x 1 t", "y  "])),
            (
                "<r><n:x n:a='0' a='&lt;&#65;'>&amp;<z>b</z><![CDATA[<c>]]></n:x></r>",
                Ok(vec!["x <A &b<c>"]),
            ),
            ("<r><skipped><x><y/></x></skipped><x/></r>", Ok(vec!["x  "])),
            (
                "<r><x>a?b=1&c=2&amp;d&unknown;</x></r>",
                Ok(vec!["x  a?b=1&c=2&d&unknown;"]),
            ),
            (
                "<?xml version='1.0'?><!-- x --><!DOCTYPE r SYSTEM 'x'><r><x/></r>",
                Ok(vec!["x  "]),
            ),
            (
                "<!DOCTYPE r [<!ENTITY a 'b'>]><r><x>&a;</x></r>",
                Err(Unreadable::Doctype),
            ),
            ("", Ok(vec![])),
            ("text", Ok(vec![])),
        ] {
            let found = texts(document);
            let expected =
                expected.map(|texts: Vec<&str>| texts.iter().map(ToString::to_string).collect());
            assert_eq!(found, expected, "{document}");
        }
        for document in ["<r>", "<r><x></r>", "<r></x></r>", "<r", "<r><x></x>"] {
            let found = texts(document);
            assert!(
                matches!(found, Err(Unreadable::Malformed(_))),
                "{document}: {found:?}"
            );
        }
        assert_eq!(texts(&"<x>".repeat(100)), Err(Unreadable::TooDeep));
    }

    #[test]
    fn one_element_is_bounded() {
        let attributes: String = (0..100_000).map(|at| format!(" a{at}='x'")).collect();
        let document = format!(
            "<r><x{attributes} a='1'>{}</x></r>",
            "t".repeat(MAX_TEXT_BYTES + 1)
        );
        assert_eq!(texts(&document).unwrap(), ["x  "]);
    }
}
