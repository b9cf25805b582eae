//! `keybearer secret`: the secrets that `{store: NAME}` means.
//!
//! Holds: while no instance runs, the store is opened here; while one does, it is asked, for it alone may write. A secret
//! comes from standard input and is never printed.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::ask::{self, AskArguments, Failed};
use super::{MISCONFIGURED, store};
use crate::config;
use crate::model::secret::Secret;
use crate::store::{EmbeddedStore, OpenError, Store as _, StoreError};

#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Put a secret there; its value is read from standard input
    Set(NamedArguments),
    /// Show the names of all secrets
    List(AskArguments),
    /// Take a secret away
    Remove(NamedArguments),
}

#[derive(Debug, Args)]
pub struct NamedArguments {
    /// Its name: letters, digits and `._-/`
    name: String,
    #[command(flatten)]
    ask: AskArguments,
}

pub fn secret(command: &SecretCommand) -> ExitCode {
    match command {
        SecretCommand::List(ask) => {
            let answer = carry_out(
                ask,
                |store| Box::pin(async { Ok(json!({ "items": store.secret_names().await? })) }),
                || ask.ask(Method::GET, &["secrets"], None),
            );
            finish(ask, answer, |answer| {
                let names = answer["items"].as_array().into_iter().flatten().filter_map(Value::as_str);
                names.collect::<Vec<_>>().join("\n")
            })
        }
        SecretCommand::Set(NamedArguments { name, ask }) => {
            if !config::is_stored_name(name) {
                return ask::fail(ask, Failed::Said("a name is 1 to 200 letters, digits and `._-/`".to_owned()));
            }
            let value = match ask::read_secret("the secret") {
                Ok(value) => value,
                Err(text) => return ask::fail(ask, Failed::Said(text)),
            };
            let answer = carry_out(
                ask,
                |store| Box::pin(set(store, name, value.clone())),
                || ask.ask(Method::PUT, &["secrets", name], Some(json!({ "value": value.expose() }))),
            );
            finish(ask, answer, |_| format!("{name} is in the store; refer to it as {{store: {name}}}"))
        }
        SecretCommand::Remove(NamedArguments { name, ask }) => {
            let answer = carry_out(
                ask,
                |store| Box::pin(remove(store, name)),
                || ask.ask(Method::DELETE, &["secrets", name], None),
            );
            finish(ask, answer, |_| format!("{name} is removed"))
        }
    }
}

async fn set(store: &EmbeddedStore, name: &str, value: Secret) -> Result<Value, StoreError> {
    store.put_secret(name, value).await?;
    Ok(json!({ "name": name }))
}

async fn remove(store: &EmbeddedStore, name: &str) -> Result<Value, StoreError> {
    let removed = store.remove_secret(name).await?;
    Ok(if removed { json!({ "name": name }) } else { Value::Null })
}

type Done<'a> = std::pin::Pin<Box<dyn Future<Output = Result<Value, StoreError>> + 'a>>;

/// Why nothing was done.
enum NotDone {
    Asked(Failed),
    Misconfigured(ExitCode),
}

/// On the store itself, or through the instance that has it open.
fn carry_out(
    ask: &AskArguments,
    here: impl for<'a> FnOnce(&'a EmbeddedStore) -> Done<'a>,
    there: impl FnOnce() -> Result<Value, Failed>,
) -> Result<Value, NotDone> {
    let said = |text: String| NotDone::Asked(Failed::Said(text));
    if ask.names_instance() {
        return there().map_err(NotDone::Asked);
    }
    match store::open(&ask.config_path()) {
        Ok((runtime, store)) => match runtime.block_on(here(&store)) {
            Ok(Value::Null) => Err(said("the store has no secret of this name".to_owned())),
            done => done.map_err(|error| said(error.to_string())),
        },
        Err(store::NotOpen::Store(OpenError::InUse { .. })) => there().map_err(NotDone::Asked),
        Err(store::NotOpen::Store(error)) => Err(said(error.to_string())),
        Err(store::NotOpen::Said(text)) => Err(said(text)),
        Err(store::NotOpen::Misconfigured) => Err(NotDone::Misconfigured(ExitCode::from(MISCONFIGURED))),
    }
}

fn finish(ask: &AskArguments, answer: Result<Value, NotDone>, show: impl FnOnce(&Value) -> String) -> ExitCode {
    match answer {
        Ok(answer) => ask::finish(ask, Ok(answer), show),
        Err(NotDone::Asked(failed)) => ask::finish(ask, Err(failed), show),
        Err(NotDone::Misconfigured(code)) => {
            let _ = std::io::stdout().flush();
            code
        }
    }
}
