//! Why a command has failed: what, why, and what to try. And the code that it ends with.

use std::fmt;

/// The process ends with it; scripts and service managers rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Error = 1,
    /// Bad configuration or usage: the same again will not help.
    Usage = 2,
    /// Some nodes did it, others did not.
    Partial = 3,
    NotFound = 4,
}

#[derive(Debug)]
pub struct Failure {
    pub code: Code,
    what: String,
    remedy: String,
}

impl Failure {
    pub fn new(code: Code, what: impl Into<String>, remedy: impl Into<String>) -> Failure {
        Failure {
            code,
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    pub fn error(what: impl Into<String>, remedy: impl Into<String>) -> Failure {
        Failure::new(Code::Error, what, remedy)
    }

    pub fn usage(what: impl Into<String>, remedy: impl Into<String>) -> Failure {
        Failure::new(Code::Usage, what, remedy)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "error: {}\ntry: {}",
            plain(&self.what, true),
            plain(&self.remedy, true)
        )
    }
}

/// Text of others for a terminal: control characters, which could move the cursor or worse, are shown as
/// what they are.
pub fn plain(text: &str, lines: bool) -> String {
    text.chars()
        .map(|c| match c {
            '\n' if lines => c.to_string(),
            c if c.is_control() || is_invisible(c) => c.escape_default().to_string(),
            c => c.to_string(),
        })
        .collect()
}

/// What turns the direction of text, or cannot be seen.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_as_a_command() {
        assert_eq!(
            plain("a\u{1b}[2Jb\u{202e}c\td", false),
            "a\\u{1b}[2Jb\\u{202e}c\\td"
        );
        assert_eq!(plain("a\nb", true), "a\nb");
        assert_eq!(plain("a\nb", false), "a\\nb");
    }
}
