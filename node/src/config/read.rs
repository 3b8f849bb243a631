//! Walks a TOML document with its positions, and collects what is wrong instead of stopping at it.
//!
//! Which keys exist is learned from which keys are asked for, so that the schema stands in one
//! place: the code that reads it. Keys that nobody asked for are errors.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, ConfigErrors, Position};
use super::value::{Read, Wrong, nearest};

type Table<'t> = DeTable<'t>;

/// The errors found so far, and the keys asked for.
#[derive(Default)]
pub(super) struct Findings {
    errors: RefCell<Vec<(Range<usize>, Wrong)>>,
    /// By section, `""` for the top.
    asked: RefCell<BTreeMap<String, BTreeSet<&'static str>>>,
    /// Section, key and place of everything the document has.
    present: RefCell<Vec<(String, String, Range<usize>)>>,
}

impl Findings {
    pub(super) fn report(&self, span: Range<usize>, wrong: Wrong) {
        self.errors.borrow_mut().push((span, wrong));
    }

    /// How many errors there are so far.
    pub(super) fn count(&self) -> usize {
        self.errors.borrow().len()
    }

    /// The dotted names of all keys asked for.
    pub(super) fn keys(&self) -> Vec<String> {
        let asked = self.asked.borrow();
        let sections: Vec<&String> = asked.keys().collect();
        let dotted = asked.iter().flat_map(|(section, keys)| {
            keys.iter().map(move |key| match section.as_str() {
                "" => (*key).to_owned(),
                section => format!("{section}.{key}"),
            })
        });
        dotted.filter(|key| !sections.contains(&key)).collect()
    }

    /// All errors, those of unknown keys included, in the order of their lines.
    pub(super) fn into_errors(self, source: &str, path: &Path) -> Option<ConfigErrors> {
        self.note_unknown_keys();
        let mut errors = self.errors.into_inner();
        errors.sort_by_key(|(span, _)| (span.start, span.end));
        errors.dedup_by(|(later, later_wrong), (first, first_wrong)| {
            later == first && later_wrong == first_wrong
        });
        let errors: Vec<ConfigError> = errors
            .into_iter()
            .map(|(span, wrong)| ConfigError {
                position: (!source.is_empty()).then(|| Position::of(source, span)),
                reason: wrong.reason,
                hint: wrong.hint,
            })
            .collect();
        (!errors.is_empty()).then(|| ConfigErrors {
            path: path.to_owned(),
            errors,
        })
    }

    fn note_unknown_keys(&self) {
        let asked = self.asked.borrow();
        let none = BTreeSet::new();
        for (section, key, span) in self.present.borrow().iter() {
            let here = asked.get(section).unwrap_or(&none);
            if here.contains(key.as_str()) {
                continue;
            }
            let reason = match section.as_str() {
                "" => format!("there is no section `{key}`"),
                section => format!("there is no setting `{key}` in {}", heading(section)),
            };
            let elsewhere = || {
                let owner = asked.iter().find(|(_, keys)| keys.contains(key.as_str()));
                owner.map(|(section, _)| format!("`{key}` belongs in {}", heading(section)))
            };
            let near = nearest(key, here.iter().copied());
            let hint = near
                .map(|name| format!("did you mean `{name}`?"))
                .or_else(elsewhere);
            self.report(span.clone(), Wrong { reason, hint });
        }
    }
}

fn heading(section: &str) -> String {
    match section {
        "" => "the top of the file".to_owned(),
        "origin" | "admin.token" => format!("[[{section}]]"),
        section => format!("[{section}]"),
    }
}

/// A table of the document, or the absence of one: then every key is absent.
pub(super) struct Section<'f, 't> {
    findings: &'f Findings,
    name: &'static str,
    table: Option<&'t Table<'t>>,
    /// Where the table is.
    span: Range<usize>,
}

impl<'f, 't> Section<'f, 't> {
    pub(super) fn top(findings: &'f Findings, document: &'t Spanned<Table<'t>>) -> Section<'f, 't> {
        Section::new(findings, "", Some(document.get_ref()), document.span())
    }

    fn new(
        findings: &'f Findings,
        name: &'static str,
        table: Option<&'t Table<'t>>,
        span: Range<usize>,
    ) -> Section<'f, 't> {
        findings
            .asked
            .borrow_mut()
            .entry(name.to_owned())
            .or_default();
        for key in table.iter().flat_map(|table| table.keys()) {
            let found = (name.to_owned(), key.get_ref().to_string(), key.span());
            findings.present.borrow_mut().push(found);
        }
        Section {
            findings,
            name,
            table,
            span,
        }
    }

    fn find(&self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.findings
            .asked
            .borrow_mut()
            .entry(self.name.to_owned())
            .or_default()
            .insert(key);
        self.table?.get(key)
    }

    pub(super) fn section(&self, key: &'static str) -> Section<'f, 't> {
        let (table, span) = match self.find(key) {
            None => (None, self.span.clone()),
            Some(value) => match value.get_ref() {
                DeValue::Table(table) => (Some(table), value.span()),
                DeValue::Array(_) => {
                    let reason = format!("`{key}` is one section, not a list of them");
                    let hint = format!("write [{key}], once");
                    self.findings
                        .report(value.span(), Wrong::new(reason).hint(hint));
                    (None, value.span())
                }
                _ => {
                    let wrong = Wrong::new(format!("`{key}` is a section"));
                    self.findings.report(
                        value.span(),
                        wrong.hint(format!("write [{key}] and its settings below")),
                    );
                    (None, value.span())
                }
            },
        };
        Section::new(self.findings, key, table, span)
    }

    /// The tables of `[[key]]`. An absent list asks for the keys all the same, of an empty table.
    pub(super) fn sections(&self, key: &'static str) -> Vec<Section<'f, 't>> {
        self.sections_named(key, key)
    }

    /// Like [`Section::sections`], where their whole name is `name`.
    pub(super) fn sections_named(
        &self,
        key: &'static str,
        name: &'static str,
    ) -> Vec<Section<'f, 't>> {
        let Some(value) = self.find(key) else {
            return Vec::new();
        };
        let wrong = |span| {
            let wrong = Wrong::new(format!("`{key}` is a list of sections"));
            self.findings.report(
                span,
                wrong.hint(format!("write [[{name}]], with two brackets")),
            );
        };
        let DeValue::Array(array) = value.get_ref() else {
            wrong(value.span());
            // What the one table says is checked as if it were in the list.
            let table = value.get_ref().as_table();
            return vec![Section::new(self.findings, name, table, value.span())];
        };
        let tables = array.iter().filter_map(|element| {
            let table = element.get_ref().as_table();
            if table.is_none() {
                wrong(element.span());
            }
            table.map(|table| Section::new(self.findings, name, Some(table), element.span()))
        });
        tables.collect()
    }

    /// A section with nothing in it, so that its keys become known.
    pub(super) fn absent(findings: &'f Findings, name: &'static str) -> Section<'f, 't> {
        Section::new(findings, name, None, 0..0)
    }

    /// The value, when there is one that can be read; one that cannot is reported.
    pub(super) fn get<T>(
        &self,
        key: &'static str,
        read: impl Fn(&DeValue) -> Read<T>,
    ) -> Option<T> {
        let value = self.find(key)?;
        read(value.get_ref())
            .map_err(|wrong| self.findings.report(value.span(), wrong))
            .ok()
    }

    pub(super) fn or<T>(
        &self,
        key: &'static str,
        read: impl Fn(&DeValue) -> Read<T>,
        default: T,
    ) -> T {
        self.get(key, read).unwrap_or(default)
    }

    /// All values of a list that can be read. One value stands for a list of one.
    pub(super) fn list<T>(
        &self,
        key: &'static str,
        read: impl Fn(&DeValue) -> Read<T>,
    ) -> Option<Vec<T>> {
        let value = self.find(key)?;
        let read = |value: &Spanned<DeValue>| {
            read(value.get_ref())
                .map_err(|wrong| self.findings.report(value.span(), wrong))
                .ok()
        };
        Some(match value.get_ref() {
            DeValue::Array(array) => array.iter().filter_map(read).collect(),
            _ => read(value).into_iter().collect(),
        })
    }

    /// Whether the document has this section.
    pub(super) fn is_present(&self) -> bool {
        self.table.is_some()
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Reports what is wrong with a value whose type is right, or with its absence.
    pub(super) fn reject(&self, key: &str, wrong: Wrong) {
        let value = self.table.and_then(|table| table.get(key));
        let span = value.map_or(self.span.clone(), Spanned::span);
        self.findings.report(span, wrong);
    }
}
