//! Errors of a file of settings, all of them, in the order of its lines.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One thing that is wrong with a file of settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where, from 1; `None` when the file as a whole is meant.
    pub position: Option<Position>,
    /// What is wrong.
    pub reason: String,
    /// What would be right, as far as that can be told.
    pub hint: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: usize,
    /// In characters.
    pub column: usize,
    /// The line's text, and how many of its characters are meant.
    text: String,
    width: usize,
}

/// Everything that is wrong with a file of settings; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    pub path: PathBuf,
    pub errors: Vec<ConfigError>,
}

impl ConfigErrors {
    pub(super) fn of_file(path: &Path, reason: String) -> ConfigErrors {
        let error = ConfigError {
            position: None,
            reason,
            hint: None,
        };
        ConfigErrors {
            path: path.to_owned(),
            errors: vec![error],
        }
    }
}

impl Position {
    pub(super) fn of(source: &str, span: Range<usize>) -> Position {
        let start = floor_char_boundary(source, span.start);
        let line_start = source[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = source[start..]
            .find('\n')
            .map_or(source.len(), |at| start + at);
        let end = floor_char_boundary(source, span.end.clamp(start, line_end));
        let width = source[start..end].trim_end().chars().count().max(1);
        Position {
            line: source[..line_start].matches('\n').count() + 1,
            column: source[line_start..start].chars().count() + 1,
            text: source[line_start..line_end].trim_end().replace('\t', " "),
            width,
        }
    }
}

fn floor_char_boundary(source: &str, at: usize) -> usize {
    let mut at = at.min(source.len());
    while !source.is_char_boundary(at) {
        at -= 1;
    }
    at
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let path = self.path.display();
        for error in &self.errors {
            let ConfigError {
                position,
                reason,
                hint,
            } = error;
            match position {
                Some(Position {
                    line,
                    column,
                    text,
                    width,
                }) => {
                    let margin = " ".repeat(line.to_string().len());
                    let indent = " ".repeat(column - 1);
                    let marks = "^".repeat(*width);
                    writeln!(f, "{path}:{line}:{column}: {reason}")?;
                    writeln!(f, " {line} | {text}")?;
                    writeln!(f, " {margin} | {indent}{marks}")?;
                    if let Some(hint) = hint {
                        writeln!(f, " {margin} = {hint}")?;
                    }
                }
                None => {
                    writeln!(f, "{path}: {reason}")?;
                    if let Some(hint) = hint {
                        writeln!(f, "  = {hint}")?;
                    }
                }
            }
        }
        match self.errors.len() {
            1 => write!(f, "1 error"),
            count => write!(f, "{count} errors"),
        }
    }
}

impl std::error::Error for ConfigErrors {}
