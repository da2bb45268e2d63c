//! Flags for every setting of the broker, made from its table. Does not parse values.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{Arg, ArgMatches, Command, FromArgMatches};

use super::Failure;
use crate::config::value::Kind;
use crate::config::{Config, Setting, Sources};

/// Which data directory, for commands that need no other setting.
#[derive(clap::Args, Clone, Debug)]
pub struct DirectoryArgs {
    /// The data directory
    #[arg(
        long,
        value_name = "path",
        env = "RINGPOST_DATA_DIR",
        default_value = "./ringpost-data"
    )]
    pub data_dir: PathBuf,
}

/// `--config` and one flag a setting.
#[derive(Clone, Debug, Default)]
pub struct SettingsArgs {
    /// The configuration file.
    config: Option<PathBuf>,
    /// Texts by the name of the setting.
    flags: Vec<(&'static str, String)>,
}

impl SettingsArgs {
    /// The configuration from flags, environment and file.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn resolve(self) -> Result<Config, Failure> {
        let sources = Sources::of_process(self.config.as_deref(), self.flags);
        let config = sources.and_then(|sources| Config::resolve(&sources));
        config.map_err(|errors| Failure::usage(errors.to_string()))
    }
}

/// The flags' names; clap wants them for as long as the process lives.
static FLAGS: LazyLock<Vec<String>> =
    LazyLock::new(|| Config::SETTINGS.iter().map(Setting::flag).collect());

impl clap::Args for SettingsArgs {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("path")
            .env("RINGPOST_CONFIG")
            .value_parser(clap::value_parser!(PathBuf))
            .help("A TOML file with settings; the environment and flags win over it");
        let flags = Config::SETTINGS
            .iter()
            .zip(FLAGS.iter())
            .map(|(setting, flag)| {
                let summary = setting.doc.split_inclusive(". ").next().unwrap_or_default();
                let summary = summary.trim().trim_end_matches('.');
                let default = match setting.default {
                    "" => String::new(),
                    text => format!("[default: {text}] "),
                };
                let bounds = match setting.kind.bounds() {
                    text if text.is_empty() => text,
                    text => format!("[bounds: {text}] "),
                };
                let variable = setting.variable();
                let arg = Arg::new(setting.name)
                    .long(flag.as_str())
                    .value_name(value_name(&setting.kind))
                    .help_heading("Settings")
                    .help(format!("{summary} {default}").trim_end().to_owned())
                    .long_help(format!(
                        "{}\n{default}{bounds}[env: {variable}]",
                        setting.doc
                    ));
                match setting.kind {
                    Kind::Switch => arg
                        .num_args(0..=1)
                        .require_equals(true)
                        .default_missing_value("true"),
                    _ => arg,
                }
            });
        command.arg(config).args(flags)
    }

    fn augment_args_for_update(command: Command) -> Command {
        SettingsArgs::augment_args(command)
    }
}

/// What stands for the value in help texts.
fn value_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Address => "address:port",
        Kind::Addresses => "addresses",
        Kind::Path => "path",
        Kind::Bytes { .. } => "size",
        Kind::Span { .. } => "duration",
        Kind::Count { .. } | Kind::CountOrAuto { .. } => "count",
        Kind::Word(_) => "word",
        Kind::Cpus => "cpus",
        Kind::Hosts => "names",
        Kind::Switch => "true|false",
    }
}

impl FromArgMatches for SettingsArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let flags = Config::SETTINGS.iter().filter_map(|setting| {
            Some((
                setting.name,
                matches.get_one::<String>(setting.name)?.clone(),
            ))
        });
        Ok(SettingsArgs {
            config: matches.get_one::<PathBuf>("config").cloned(),
            flags: flags.collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = SettingsArgs::from_arg_matches(matches)?;
        Ok(())
    }
}
