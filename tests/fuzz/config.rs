//! Settings: a file and environment variables, whatever they hold, give a configuration inside its
//! bounds or sentences that say what is wrong. Does not start a broker with it.

use ringpost::budget::{Budget, Demand};
use ringpost::config::value::{bytes_from, bytes_text, span_from, span_text};
use ringpost::config::{Config, ConfigErrors, Sources};

/// Lines up to one of two dashes are the file; the others are environment variables.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (file, environment) = text.split_once("\n--\n").unwrap_or((&text, ""));
    let environment: Vec<(String, String)> = environment
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let sources = Sources {
        file: Some(("ringpost.toml".into(), file.to_owned())),
        environment,
        flags: Vec::new(),
    };
    match Config::resolve(&sources) {
        Ok(config) => accepted(&config, &sources),
        Err(ConfigErrors(errors)) => {
            assert!(!errors.is_empty(), "no configuration and no reason");
            for error in errors {
                assert!(
                    !error.to_string().trim().is_empty(),
                    "{error:?} says nothing"
                );
            }
        }
    }
    for line in text.lines().take(16) {
        units(line);
    }
}

fn accepted(config: &Config, sources: &Sources) {
    let cores = config.core_count(4);
    assert!(u32::from(cores) <= config.partitions && cores > 0);
    assert!(config.insecure_listen || config.listen.ip().is_loopback());
    // The same texts as flags say the same, and win.
    let flags: Vec<(&'static str, String)> = Config::SETTINGS
        .iter()
        .filter_map(|setting| {
            let variable = setting.variable();
            let mut given = sources.environment.iter();
            let (_, text) = given.find(|(key, _)| *key == variable)?;
            Some((setting.name, text.clone()))
        })
        .collect();
    let as_flags = Sources {
        file: sources.file.clone(),
        environment: Vec::new(),
        flags,
    };
    let again = Config::resolve(&as_flags).expect("the same texts fit as flags");
    assert_eq!(
        again, *config,
        "a flag says something else than its variable"
    );
    // Any accepted figure is divided without a rest that nobody owns, or refused in words.
    let demand = Demand {
        machine: Some(64 << 30),
        ..Demand::of(config, 4)
    };
    match Budget::derive(demand) {
        Ok(budget) => {
            assert!(budget.sum() <= config.memory);
            assert!(!budget.table().is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// What can be read as a size or a time is written so that it reads the same.
fn units(text: &str) {
    if let Some(bytes) = bytes_from(text) {
        assert_eq!(bytes_from(&bytes_text(bytes)), Some(bytes), "{text}");
    }
    if let Some(span) = span_from(text) {
        assert_eq!(span_from(&span_text(span)), Some(span), "{text}");
    }
}
