//! Settings: a file, environment variables and flags, whatever they hold, give a configuration inside
//! its bounds or sentences that say what is wrong, and a text means the same whoever says it. Does not
//! start a broker with it.

use std::collections::BTreeMap;

use ringpost::budget::{Budget, Demand};
use ringpost::config::value::{bytes_from, bytes_text, span_from, span_text};
use ringpost::config::{Config, ConfigError, ConfigErrors, Setting, Sources};

/// What ends the file, and the variables, in an input.
pub const SEPARATOR: &str = "\n--\n";

/// Lines up to the first line of two dashes are the file, those up to the second one environment
/// variables, the rest flags.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.splitn(3, SEPARATOR);
    let mut next = || parts.next().unwrap_or("");
    let input = Input::new(next(), next(), next());
    let outcome = outcome(&input.sources());
    match &outcome {
        Ok(config) => accepted(config),
        Err(sentences) => assert!(!sentences.is_empty(), "no configuration and no reason"),
    }
    precedence(&input, &outcome);
    forms(&input.winners());
    for line in text.lines().take(16) {
        units(line);
    }
}

/// Texts of settings by their number in [`Config::SETTINGS`].
type Texts = BTreeMap<usize, String>;

/// What an input says, apart from the file, is kept as which setting gets which text from where:
/// everything that is compared below is made of it, and nothing is read out of what was made.
struct Input {
    file: String,
    /// Variables that are no settings.
    strangers: BTreeMap<String, String>,
    variables: Texts,
    flags: Texts,
}

impl Input {
    /// A name that comes twice has its last text, as it has one for a process.
    fn new(file: &str, environment: &str, flags: &str) -> Self {
        let mut strangers = pairs(environment);
        let mut said = pairs(flags);
        let mut input = Self {
            file: file.to_owned(),
            strangers: BTreeMap::new(),
            variables: Texts::new(),
            flags: Texts::new(),
        };
        for (number, setting) in Config::SETTINGS.iter().enumerate() {
            let variable = strangers.remove(&setting.variable());
            input.variables.extend(variable.map(|text| (number, text)));
            let flag = said.remove(setting.name);
            input.flags.extend(flag.map(|text| (number, text)));
        }
        input.strangers = strangers;
        input
    }

    fn sources(&self) -> Sources {
        let mut environment: Vec<_> = self.strangers.clone().into_iter().collect();
        environment.extend(as_variables(&self.variables));
        Sources {
            file: Some(("ringpost.toml".into(), self.file.clone())),
            environment,
            flags: as_flags(&self.flags),
        }
    }

    /// The texts that hold over the file: a flag's, else a variable's. An empty variable counts as
    /// unset; an empty flag does not.
    fn winners(&self) -> Texts {
        let mut texts = self.variables.clone();
        texts.retain(|_, text| !text.is_empty());
        texts.extend(self.flags.clone());
        texts
    }
}

/// `name=text` a line.
fn pairs(lines: &str) -> BTreeMap<String, String> {
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .collect()
}

/// A configuration, or what is wrong, but for where it was said.
type Outcome = Result<Config, Vec<String>>;

fn outcome(sources: &Sources) -> Outcome {
    Config::resolve(sources).map_err(|ConfigErrors(errors)| {
        let sentence = |error: ConfigError| {
            let sentence = error.to_string();
            assert!(!sentence.trim().is_empty(), "{error:?} says nothing");
            match error {
                ConfigError::Unfit {
                    key, value, why, ..
                } => format!("{key} is {value:?}: {}", why.0),
                _ => sentence,
            }
        };
        errors.into_iter().map(sentence).collect()
    })
}

/// Flags win over variables, and these over the file: whoever says the winning texts as flags, beside
/// the same file, gets the same.
fn precedence(input: &Input, given: &Outcome) {
    let mut sources = input.sources();
    sources.environment = input.strangers.clone().into_iter().collect();
    sources.flags = as_flags(&input.winners());
    assert_eq!(outcome(&sources), *given, "another text has won");
}

/// A text means the same as a flag, in the file however it is quoted, and as a variable if it is not
/// empty.
fn forms(texts: &Texts) {
    if texts.is_empty() {
        return;
    }
    let of_flags = |texts: &Texts| {
        outcome(&Sources {
            flags: as_flags(texts),
            ..Sources::default()
        })
    };
    let of_file = |entry: fn(&str) -> String| {
        let line = |(number, text): (&usize, &String)| {
            format!("{} = {}\n", setting(*number).name, entry(text))
        };
        let file: String = texts.iter().map(line).collect();
        outcome(&Sources {
            file: Some(("ringpost.toml".into(), file)),
            ..Sources::default()
        })
    };
    let wanted = of_flags(texts);
    assert_eq!(of_file(quoted), wanted, "in the file");
    assert_eq!(of_file(bare), wanted, "in the file, without quotes");
    let mut said = texts.clone();
    said.retain(|_, text| !text.is_empty());
    let as_variables = Sources {
        environment: as_variables(&said),
        ..Sources::default()
    };
    assert_eq!(outcome(&as_variables), of_flags(&said), "as variables");
}

fn setting(number: usize) -> &'static Setting {
    &Config::SETTINGS[number]
}

fn as_flags(texts: &Texts) -> Vec<(&'static str, String)> {
    let texts = texts.iter();
    texts
        .map(|(number, text)| (setting(*number).name, text.clone()))
        .collect()
}

fn as_variables(texts: &Texts) -> Vec<(String, String)> {
    let texts = texts.iter();
    texts
        .map(|(number, text)| (setting(*number).variable(), text.clone()))
        .collect()
}

/// A string of TOML in which every character is escaped: none of them means anything else.
fn quoted(text: &str) -> String {
    let escaped = text.chars().map(|c| format!("\\U{:08x}", u32::from(c)));
    format!("\"{}\"", escaped.collect::<String>())
}

/// The same as a number, a switch or a list, where it reads as one.
fn bare(text: &str) -> String {
    let is_number = text
        .parse()
        .is_ok_and(|number: i64| number.to_string() == text);
    if is_number || text == "true" || text == "false" {
        text.to_owned()
    } else if text.contains(',') {
        let parts: Vec<_> = text.split(',').map(bare).collect();
        format!("[{}]", parts.join(", "))
    } else {
        quoted(text)
    }
}

/// What must hold of every configuration.
fn accepted(config: &Config) {
    let cores = config.core_count(4);
    assert!(u32::from(cores) <= config.partitions && cores > 0);
    assert!(config.insecure_listen || config.listen.ip().is_loopback());
    assert!(config.insecure_listen || config.admin_listen.ip().is_loopback());
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
