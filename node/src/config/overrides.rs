//! What a command line may say over the defaults of the one-line proxy, and settings for commands
//! that have no file.

use std::ffi::OsString;
use std::path::PathBuf;

use toml::de::DeValue;

use super::network::{Address, BadAddress};
use super::{AccessFormat, Config, Environment, prefetch, schema, value};

/// Settings given on a command line; what is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Overrides<'a> {
    /// `admin.listen`
    pub admin: Option<&'a str>,
    /// `store.memory`
    pub memory: Option<&'a str>,
    /// `node.name`
    pub name: Option<&'a str>,
    /// `node.region`
    pub region: Option<&'a str>,
    /// `[origin.prefetch]`, with its defaults
    pub prefetch: bool,
    /// `log.access = "off"`
    pub no_access_log: bool,
}

impl Config {
    /// These settings with some of them replaced. The values are held to the same rules as a file's.
    pub fn with_overrides(mut self, overrides: &Overrides<'_>) -> Result<Config, BadAddress> {
        if let Some(admin) = overrides.admin {
            self.admin.listen = Address::parse(admin)?;
        }
        if let Some(memory) = overrides.memory {
            let least = 4 * u64::from(self.store.block_size_bytes);
            let size = value::size_within(least, 16 << 40);
            self.store.memory_bytes = read("memory", memory, size)?;
        }
        if let Some(name) = overrides.name {
            self.node.name = read("name", name, value::name)?;
            self.node.cdn_id =
                schema::default_cdn_id(&self.node.name, &self.node.listen, &self.store.dir);
        }
        if let Some(region) = overrides.region {
            self.node.region = Some(read("region", region, value::name)?);
        }
        if overrides.prefetch {
            for origin in &mut self.origins {
                origin.prefetch = Some(prefetch::Rules::default());
            }
        }
        if overrides.no_access_log {
            self.log.access = AccessFormat::Off;
        }
        Ok(self)
    }

    /// The defaults of this machine, without an origin: to examine the machine by.
    pub fn for_doctor() -> Config {
        schema::defaults(&Environment::of_process())
    }
}

fn read<T>(
    option: &str,
    text: &str,
    reader: impl Fn(&DeValue) -> value::Read<T>,
) -> Result<T, BadAddress> {
    reader(&DeValue::String(text.into())).map_err(|wrong| {
        let hint = wrong.hint.map(|hint| format!(" ({hint})"));
        let reason = wrong.reason;
        BadAddress(format!(
            "--{option} {text}: {reason}{}",
            hint.unwrap_or_default()
        ))
    })
}

/// What a terminal is willing to show, if standard output is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// Text, line after line.
    Dumb,
    /// The cursor may be moved, but colours are unwelcome (`NO_COLOR`, see no-color.org).
    Plain,
    Coloured,
}

impl Terminal {
    #[expect(
        clippy::disallowed_methods,
        reason = "config reads the environment, and nobody else does"
    )]
    pub fn of_process() -> Terminal {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        match (variable("TERM"), variable("NO_COLOR")) {
            (None, _) => Terminal::Dumb,
            (Some(term), _) if term == "dumb" => Terminal::Dumb,
            (Some(_), Some(_)) => Terminal::Plain,
            (Some(_), None) => Terminal::Coloured,
        }
    }
}

/// Other programs on this machine. Only the demo starts any.
#[derive(Debug)]
pub struct Programs {
    /// `PATH`.
    path: OsString,
    /// `CAJE_LITEFS_BIN`.
    litefs: Option<PathBuf>,
}

impl Programs {
    #[expect(
        clippy::disallowed_methods,
        reason = "config reads the environment, and nobody else does"
    )]
    pub fn of_process() -> Programs {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Programs {
            path: variable("PATH").unwrap_or_default(),
            litefs: variable("CAJE_LITEFS_BIN").map(PathBuf::from),
        }
    }

    /// The file of that name that comes first on the path.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        std::env::split_paths(&self.path)
            .map(|folder| folder.join(name))
            .find(|file| file.is_file())
    }

    /// `CAJE_LITEFS_BIN`, or `litefs` on the path.
    ///
    /// # Errors
    /// Where it is not.
    pub fn litefs(&self) -> Result<PathBuf, String> {
        match &self.litefs {
            Some(file) if file.is_file() => Ok(file.clone()),
            Some(file) => Err(format!("CAJE_LITEFS_BIN is no file: {}", file.display())),
            None => self
                .find("litefs")
                .ok_or_else(|| "there is no `litefs` on the path".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy() -> Config {
        Config::proxy("127.0.0.1:0", "http://127.0.0.1:3000", None).unwrap()
    }

    #[test]
    fn options_stand_over_defaults() {
        let overrides = Overrides {
            admin: Some("127.0.0.1:0"),
            memory: Some("64MiB"),
            name: Some("edge-1"),
            region: Some("lhr"),
            prefetch: true,
            no_access_log: true,
        };
        let before = proxy();
        let after = before.clone().with_overrides(&overrides).unwrap();
        assert_eq!(after.admin.listen.port, 0);
        assert_eq!(after.store.memory_bytes, 64 << 20);
        assert_eq!(after.node.name, "edge-1");
        assert_eq!(after.node.region.as_deref(), Some("lhr"));
        assert_eq!(after.log.access, AccessFormat::Off);
        assert_ne!(after.node.cdn_id, before.node.cdn_id);
        let same = before.clone().with_overrides(&Overrides::default());
        assert_eq!(same.unwrap(), before);
    }

    #[test]
    fn bad_options_say_what_would_do() {
        let wrong = |overrides: Overrides| {
            let refused = proxy().with_overrides(&overrides);
            refused.unwrap_err().to_string()
        };
        let memory = Overrides {
            memory: Some("64mb"),
            ..Overrides::default()
        };
        assert_eq!(
            wrong(memory),
            "--memory 64mb: `64mb` is no size (did you mean \"64MB\"?)"
        );
        let region = Overrides {
            region: Some("l hr"),
            ..Overrides::default()
        };
        assert!(wrong(region).starts_with("--region l hr: "));
    }

    #[test]
    fn the_readme_shows_a_good_file() {
        let readme = include_str!("../../../README.md");
        let (_, rest) = readme.split_once("```toml\n").unwrap();
        let (text, _) = rest.split_once("```").unwrap();
        let environment = Environment::of_process();
        let config = Config::parse(text, "README.md".as_ref(), &environment).unwrap();
        assert_eq!(config.origins.len(), 2);
    }

    #[test]
    fn the_doctor_needs_no_file() {
        assert!(Config::for_doctor().origins.is_empty());
    }
}
