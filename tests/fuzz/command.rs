//! `ringpost-fuzz`: a libFuzzer program if it was built as one (`run.sh` does), otherwise the
//! command that writes seeds and dictionaries and runs single inputs. Does not know what they mean.
#![cfg_attr(feature = "libfuzzer", no_main)]

/// The target, by the variable that `run.sh` sets: libFuzzer owns the command line.
#[cfg(feature = "libfuzzer")]
mod fuzzer {
    use std::sync::OnceLock;

    use ringpost_fuzz::Target;

    static TARGET: OnceLock<Target> = OnceLock::new();

    libfuzzer_sys::fuzz_target!(
        init: {
            let name = std::env::var("RINGPOST_FUZZ_TARGET").expect("the variable names a target");
            let target = Target::from_name(&name).expect("there is a target of that name");
            TARGET.set(target).expect("it is begun once");
            if let Some(folder) = std::env::var_os("RINGPOST_FUZZ_SEEDS") {
                ringpost_fuzz::seeds::write(target, folder.as_ref()).expect("seeds are written");
                std::process::exit(0);
            }
        },
        |bytes: &[u8]| TARGET.get().expect("it was begun").run(bytes)
    );
}

#[cfg(not(feature = "libfuzzer"))]
fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match plain::run(&words.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(not(feature = "libfuzzer"))]
mod plain {
    use std::fs;
    use std::path::Path;

    use ringpost_fuzz::{Target, seeds};

    const HELP: &str = "\
ringpost-fuzz targets             their names
ringpost-fuzz seeds TARGET DIR    writes the seeds of a target, and DIR.dict
ringpost-fuzz run TARGET FILE...  runs inputs, the same way the fuzzer does";

    /// Does what `words` say.
    pub fn run(words: &[&str]) -> Result<(), String> {
        match words {
            ["targets"] => {
                for target in Target::ALL {
                    println!("{}", target.name());
                }
            }
            ["seeds", target, folder] => {
                seeds::write(find(target)?, Path::new(folder))
                    .map_err(|error| error.to_string())?;
            }
            ["run", target, files @ ..] if !files.is_empty() => {
                let target = find(target)?;
                for file in files {
                    let bytes = fs::read(file).map_err(|error| format!("{file}: {error}"))?;
                    println!("{file}: {} bytes", bytes.len());
                    target.run(&bytes);
                }
            }
            _ => return Err(HELP.to_owned()),
        }
        Ok(())
    }

    fn find(name: &str) -> Result<Target, String> {
        Target::from_name(name).ok_or_else(|| format!("no target {name}\n\n{HELP}"))
    }
}
