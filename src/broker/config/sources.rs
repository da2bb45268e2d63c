//! Where the texts of settings come from: the file, the environment, flags. Does not know what they
//! become.

use std::path::{Path, PathBuf};

use super::error::{ConfigError, ConfigErrors, Origin};
use super::value::Unfit;
use super::{Config, Setting};

/// Environment variables of settings begin with this; the rest is the key in capitals.
pub const ENVIRONMENT_PREFIX: &str = "RINGPOST_";

/// Variables with the prefix that are not settings: they belong to the command line.
const ENVIRONMENT_OTHERS: [&str; 4] = [
    "RINGPOST_CONFIG",
    "RINGPOST_BROKER",
    "RINGPOST_TENANT",
    "RINGPOST_ADMIN",
];
/// Kubernetes sets variables like these in every pod beside a service called `ringpost`.
const ENVIRONMENT_FOREIGN: [&str; 2] = ["RINGPOST_SERVICE_", "RINGPOST_PORT"];

/// A text and where it came from.
pub(super) struct Given {
    /// The text.
    pub text: String,
    /// From where.
    pub origin: Origin,
}

/// Everything that settings are gathered from. Built by the command line, or by hand in tests.
#[derive(Clone, Default, Debug)]
pub struct Sources {
    /// Path and content of the configuration file, if there is one.
    pub file: Option<(PathBuf, String)>,
    /// The environment variables of the process, all of them.
    pub environment: Vec<(String, String)>,
    /// Values of flags, by the name of the setting.
    pub flags: Vec<(&'static str, String)>,
}

impl Sources {
    /// The environment of this process and the file at `path`, if given.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn of_process(
        path: Option<&Path>,
        flags: Vec<(&'static str, String)>,
    ) -> Result<Self, ConfigErrors> {
        let file = match path {
            None => None,
            Some(path) => match std::fs::read_to_string(path) {
                Ok(text) => Some((path.to_owned(), text)),
                Err(error) => {
                    let file = path.to_owned();
                    return Err(ConfigErrors(vec![ConfigError::FileUnreadable {
                        file,
                        error,
                    }]));
                }
            },
        };
        let environment = std::env::vars_os()
            .filter_map(|(key, text)| Some((key.into_string().ok()?, text.into_string().ok()?)))
            .collect();
        Ok(Sources {
            file,
            environment,
            flags,
        })
    }
}

/// The file's settings by index, each as text.
pub(super) fn read_file(
    path: &Path,
    text: &str,
    errors: &mut Vec<ConfigError>,
) -> Vec<(usize, String)> {
    let table = match text.parse::<toml::Table>() {
        Ok(table) => table,
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            let before = &text.as_bytes()[..at.min(text.len())];
            let line_start = before.iter().rposition(|byte| *byte == b'\n');
            errors.push(ConfigError::FileMalformed {
                file: path.to_owned(),
                line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
                column: before.len() - line_start.map_or(0, |newline| newline + 1) + 1,
                error: error.message().replace('\n', ", "),
            });
            return Vec::new();
        }
    };
    let mut settings = Vec::new();
    for (key, entry) in table {
        let origin = || Origin::File(path.to_owned());
        let Some(idx) = Config::SETTINGS
            .iter()
            .position(|setting| setting.name == key)
        else {
            errors.push(ConfigError::KeyUnknown {
                key,
                origin: origin(),
            });
            continue;
        };
        match text_of(&entry) {
            Some(text) => settings.push((idx, text)),
            None => {
                let Setting {
                    name: key, kind, ..
                } = Config::SETTINGS[idx];
                let why = Unfit(format!(
                    "must be a {}, in quotes or as a number",
                    kind.unit()
                ));
                let value = entry.to_string();
                errors.push(ConfigError::Unfit {
                    key,
                    value,
                    origin: origin(),
                    why,
                });
            }
        }
    }
    settings
}

/// The text of a TOML value that may be a setting.
fn text_of(entry: &toml::Value) -> Option<String> {
    match entry {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(switch) => Some(switch.to_string()),
        toml::Value::Array(entries) => {
            let texts: Option<Vec<_>> = entries
                .iter()
                .map(|entry| {
                    if entry.is_array() {
                        None
                    } else {
                        text_of(entry)
                    }
                })
                .collect();
            texts.map(|texts| texts.join(","))
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

/// The environment's settings by index.
pub(super) fn read_environment(
    environment: &[(String, String)],
    errors: &mut Vec<ConfigError>,
) -> Vec<(usize, String)> {
    let mut settings = Vec::new();
    for (variable, text) in environment {
        let Some(name) = variable.strip_prefix(ENVIRONMENT_PREFIX) else {
            continue;
        };
        // Empty is as good as unset, as it is for the variables of the command line.
        if text.is_empty() {
            continue;
        }
        let name = name.to_ascii_lowercase();
        if let Some(idx) = Config::SETTINGS
            .iter()
            .position(|setting| setting.variable() == *variable)
        {
            settings.push((idx, text.clone()));
        } else if !ENVIRONMENT_OTHERS.contains(&variable.as_str())
            && !ENVIRONMENT_FOREIGN
                .iter()
                .any(|foreign| variable.starts_with(foreign))
        {
            let origin = Origin::Environment(variable.clone());
            errors.push(ConfigError::KeyUnknown { key: name, origin });
        }
    }
    settings
}
