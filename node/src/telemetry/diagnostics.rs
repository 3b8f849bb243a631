//! The diagnostic log: what the operator should know, on standard error, one line each.

use std::io::{self, IsTerminal};

use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// Changes what the diagnostic log shows while the node runs.
#[derive(Clone)]
pub struct Level {
    filter: reload::Handle<EnvFilter, Registry>,
}

#[derive(Debug, Error)]
pub enum LevelError {
    #[error(
        "`{0}` is no log level: error, warn, info, debug, trace, or directives such as `info,caje_node::store=debug`"
    )]
    Malformed(String),
    #[error("the log has been set up already in this process")]
    AlreadySet,
}

/// Starts the diagnostic log of the process. To be called once, by `main`.
pub fn start(level: &str) -> Result<Level, LevelError> {
    let (filter, handle) = reload::Layer::new(parse(level)?);
    let lines = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|_| LevelError::AlreadySet)?;
    Ok(Level { filter: handle })
}

impl Level {
    /// Takes effect at once on all threads.
    pub fn set(&self, level: &str) -> Result<(), LevelError> {
        self.filter
            .reload(parse(level)?)
            .map_err(|_| LevelError::AlreadySet)
    }
}

/// Whether [`start`] and [`Level::set`] would take this.
pub fn check(level: &str) -> Result<(), LevelError> {
    parse(level).map(drop)
}

fn parse(level: &str) -> Result<EnvFilter, LevelError> {
    let malformed = || LevelError::Malformed(level.to_owned());
    // `EnvFilter` takes a word that is no level as the name of a target or a field, and then shows
    // nothing.
    for directive in level.split(',').map(str::trim) {
        let level = directive
            .rsplit_once('=')
            .map_or(directive, |(_, level)| level);
        if !directive.ends_with(']') && (level.is_empty() || level.parse::<LevelFilter>().is_err())
        {
            return Err(malformed());
        }
    }
    EnvFilter::builder().parse(level).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        assert!(check("info").is_ok());
        assert!(check("warn,caje_node::store=debug").is_ok());
        assert!(check("info,caje_node=loud").is_err());
        assert!(check("verbose").is_err());
        assert!(check("").is_err());
    }
}
