//! `keybearer store`: export, import and reseal.
//!
//! Invariants: a file is opened only while no instance uses it; an export contains sealed records only.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};
use tokio::runtime::Runtime;

use super::{ConfigArguments, MISCONFIGURED, run};
use crate::clock::Clock;
use crate::config;
use crate::model::StoreKind;
use crate::store::transfer::Records;
use crate::store::{EmbeddedStore, OpenError, RedisStore, Store, StoreOpener, transfer};
use crate::tasks::Tasks;

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Export every record to a file, still sealed
    Export(FileArguments),
    /// Import an export; newer records are kept unless --overwrite is given
    Import(ImportArguments),
    /// Reseal every record with the first seal key
    Reseal(ResealArguments),
}

#[derive(Debug, Args)]
pub struct FileArguments {
    /// File of the export
    file: PathBuf,
    #[command(flatten)]
    config: ConfigArguments,
}

#[derive(Debug, Args)]
pub struct ImportArguments {
    #[command(flatten)]
    file: FileArguments,
    /// Replace existing records, including newer ones
    #[arg(long)]
    overwrite: bool,
}

#[derive(Debug, Args)]
pub struct ResealArguments {
    #[command(flatten)]
    config: ConfigArguments,
}

/// Why a store could not be opened.
pub enum NotOpen {
    Store(OpenError),
    Other(String),
    /// The problems have been printed.
    Misconfigured,
}

/// An operation on an open store, which returns the message to print.
type Work<'a> = Box<dyn FnOnce(&dyn Records) -> Result<String, String> + 'a>;

pub fn store(command: &StoreCommand) -> ExitCode {
    let (config, work): (_, Work<'_>) = match command {
        StoreCommand::Export(arguments) => (&arguments.config, {
            Box::new(|store| {
                let count = transfer::export(store, &arguments.file, &mut progress("exported"));
                Ok(format!("{} records exported to {}", count.map_err(text)?, arguments.file.display()))
            })
        }),
        StoreCommand::Import(arguments) => (&arguments.file.config, {
            Box::new(|store| {
                let file = &arguments.file.file;
                let done =
                    transfer::import(store, file, arguments.overwrite, &mut progress("imported")).map_err(text)?;
                Ok(format!("{} records imported, {} unchanged", done.written, done.kept))
            })
        }),
        StoreCommand::Reseal(arguments) => (&arguments.config, {
            Box::new(|store| {
                let done = transfer::reseal(store, &mut progress("sealed")).map_err(text)?;
                Ok(format!("{} records resealed with the first key; the other keys can be removed", done.written))
            })
        }),
    };
    match open(&config.path()) {
        Ok(open) => match work(&*open.records()) {
            Ok(message) => {
                println!("{message}");
                ExitCode::SUCCESS
            }
            Err(message) => failed(&message),
        },
        Err(NotOpen::Store(error @ OpenError::InUse { .. })) => failed(&format!("{error}; stop the instance first")),
        Err(NotOpen::Store(error)) => failed(&error.to_string()),
        Err(NotOpen::Other(message)) => failed(&message),
        Err(NotOpen::Misconfigured) => ExitCode::from(MISCONFIGURED),
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn failed(message: &str) -> ExitCode {
    eprintln!("{message}");
    ExitCode::FAILURE
}

/// Prints progress; on a terminal, in one line that is overwritten.
fn progress(verb: &'static str) -> impl FnMut(u64, u64) {
    let terminal = std::io::stderr().is_terminal();
    move |done, total| {
        let mut stderr = std::io::stderr().lock();
        // A closed pipe must not stop the operation.
        let _ = match terminal {
            true if done == total => writeln!(stderr, "\r{done} of {total} {verb}"),
            true => write!(stderr, "\r{done} of {total} {verb}").and_then(|()| stderr.flush()),
            false => writeln!(stderr, "{done} of {total} {verb}"),
        };
    }
}

/// An open store, with a runtime to use it on.
pub struct Open {
    pub runtime: Runtime,
    kind: Kind,
}

enum Kind {
    Embedded(Arc<EmbeddedStore>),
    Redis(Arc<RedisStore>),
}

impl Open {
    pub fn store(&self) -> &dyn Store {
        match &self.kind {
            Kind::Embedded(store) => &**store,
            Kind::Redis(store) => &**store,
        }
    }

    fn records(&self) -> Arc<dyn Records> {
        match &self.kind {
            Kind::Embedded(store) => store.clone(),
            Kind::Redis(store) => Arc::new(store.records(self.runtime.handle().clone())),
        }
    }
}

/// Opens the store of the configuration at `path`.
pub fn open(path: &Path) -> Result<Open, NotOpen> {
    let (settings, state_dir) = config::store_of(path).map_err(|problems| {
        eprintln!("{problems}");
        super::refuse(path, &problems);
        NotOpen::Misconfigured
    })?;
    let runtime = run::control_runtime().map_err(|error| NotOpen::Other(format!("cannot start threads: {error}")))?;
    let opener = StoreOpener::new(Clock::system(), Tasks::default());
    let kind = match &settings.kind {
        StoreKind::Memory => {
            return Err(NotOpen::Other(
                "the configured store is in memory, so there are no records outside the running process".to_owned(),
            ));
        }
        StoreKind::Embedded { path } => {
            Kind::Embedded(opener.embedded(path, &settings, &state_dir).map_err(NotOpen::Store)?)
        }
        StoreKind::Redis(redis) => {
            let _in = runtime.enter();
            Kind::Redis(opener.redis(redis, &settings, &state_dir).map_err(NotOpen::Store)?)
        }
    };
    Ok(Open { runtime, kind })
}
