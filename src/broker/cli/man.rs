//! `ringpost man`: manual pages, made from the command line itself.

use std::path::{Path, PathBuf};

use clap_mangen::Man;

use super::{Failure, output};

const EXAMPLES: &str = "\
Examples:
  ringpost man | man -l -
  ringpost man --dir /usr/local/share/man/man1";

/// Print the manual page, or write one for every command
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Write ringpost.1, ringpost-serve.1 and so on into this directory, made if it is not there
    #[arg(long, value_name = "path")]
    dir: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    let mut command = super::command();
    command.build();
    match args.dir {
        None => {
            let mut page = Vec::new();
            Man::new(command).render(&mut page)?;
            output::write_all(&page)
        }
        Some(directory) => write_pages(&command, "ringpost", &directory),
    }
}

/// Writes the page of `command` and of all under it; they nest two deep.
fn write_pages(command: &clap::Command, name: &str, directory: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(directory).map_err(|error| {
        Failure::failed(format!("cannot make {}: {error}", directory.display()))
    })?;
    let mut pending = vec![(command.clone(), name.to_owned())];
    while let Some((command, name)) = pending.pop() {
        let mut page = Vec::new();
        Man::new(command.clone())
            .title(name.clone())
            .render(&mut page)?;
        let path = directory.join(format!("{name}.1"));
        std::fs::write(&path, page).map_err(|error| {
            Failure::failed(format!("cannot write {}: {error}", path.display()))
        })?;
        let below = command
            .get_subcommands()
            .filter(|below| below.get_name() != "help");
        pending.extend(below.map(|below| (below.clone(), format!("{name}-{}", below.get_name()))));
    }
    Ok(())
}
