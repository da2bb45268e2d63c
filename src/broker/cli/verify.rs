//! `ringpost verify`: reads a data directory that no broker uses and names every damaged range.
//! Writes nothing there, not even a lock; can print what the queues hold. Does not know the format: the engine's
//! recovery does.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::message::to_hex;
use super::output::FormatArgs;
use super::settings::DirectoryArgs;
use super::{Exit, Failure, output};
use crate::offline::{self, OfflineError};

const EXAMPLES: &str = "\
Ends with 4 if something is lost or would not be served, and else with 0. A note
is damage that costs nothing: what it hit is known from elsewhere, or needed no
more. Nothing is written, so the disk may be mounted read-only.

Examples:
  ringpost verify --data-dir /var/lib/ringpost
  ringpost verify --data-dir /var/lib/ringpost --json
  ringpost verify --data-dir /var/lib/ringpost --messages messages.json";

/// Check a data directory, without writing to it
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    directory: DirectoryArgs,
    /// Also write every message of every queue to this file: JSON, one object a line
    #[arg(long, value_name = "path")]
    messages: Option<PathBuf>,
    #[command(flatten)]
    format: FormatArgs,
}

/// A message as a line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    tenant: &'a str,
    queue: &'a str,
    queue_sequence: u64,
    delivery_count: u32,
    /// As it was published: docs/protocol.md says what its bytes mean.
    message_hex: &'a str,
}

impl From<OfflineError> for Failure {
    fn from(error: OfflineError) -> Self {
        Failure::new(error.kind().into(), error.to_string())
    }
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    let survey = offline::verify(&args.directory.data_dir)?;
    let heads = ["range", "partition", "what is damaged"];
    if !survey.damage.is_empty() {
        output::rows(args.format, &heads, &survey.damage, |damage| {
            vec![
                damage.range.clone(),
                damage.partitions.clone(),
                damage.what.clone(),
            ]
        })?;
    }
    if !args.format.json {
        for note in &survey.notes {
            output::line(&format!("note: {note}"))?;
        }
    }
    if survey.damage.is_empty() {
        if let Some(path) = &args.messages {
            write_messages(&args.directory.data_dir, path)?;
        }
        if !args.format.json {
            let end = match survey.notes.len() {
                0 => "all is well".to_owned(),
                count => format!(
                    "{}, and nothing is lost",
                    output::counted(count as u64, "note")
                ),
            };
            output::line(&format!(
                "{}, {}, {}: {end}",
                output::counted(survey.files, "file"),
                output::counted(survey.blocks, "block"),
                output::counted(survey.bytes, "byte")
            ))?;
        }
        return Ok(());
    }
    let unwritten = match &args.messages {
        None => String::new(),
        Some(path) => format!("; until then no messages are written to {}", path.display()),
    };
    Err(Failure::new(
        Exit::Damaged,
        format!(
            "{}: restore from a copy, or give each up, as with `ringpost repair --data-dir '{}' \
             --accept-loss '{}'`{unwritten}",
            output::counted(survey.damage.len() as u64, "damaged range"),
            args.directory.data_dir.display(),
            survey.damage[0].range
        ),
    ))
}

fn write_messages(directory: &Path, path: &Path) -> Result<(), Failure> {
    let wrong = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    let file = File::create(path).map_err(|error| Failure::failed(wrong(error)))?;
    let mut output = BufWriter::with_capacity(256 << 10, file);
    offline::messages(directory, |found| {
        let line = Line {
            tenant: &String::from_utf8_lossy(found.tenant),
            queue: &String::from_utf8_lossy(found.queue),
            queue_sequence: found.sequence.0,
            delivery_count: found.delivery_count,
            message_hex: &to_hex(found.message),
        };
        let written = serde_json::to_writer(&mut output, &line).map_err(std::io::Error::from);
        written
            .and_then(|()| output.write_all(b"\n"))
            .map_err(wrong)
    })?;
    output
        .flush()
        .map_err(|error| Failure::failed(wrong(error)))
}
