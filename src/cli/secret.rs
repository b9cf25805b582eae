//! `keybearer secret`: the secrets that `{store: NAME}` means.
//!
//! Holds: while no instance runs, the store is opened here; while one does, it is asked, for it alone may write. A secret
//! comes from standard input and is never printed.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::ask::{self, AskArguments, Failed};
use super::store::{self, NotOpen};
use super::{MISCONFIGURED, table};
use crate::config;
use crate::model::secret::Secret;
use crate::store::{OpenError, Store, StoreError};

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

/// What is to be done, here or by the instance that has the store open.
enum Wish<'a> {
    List,
    Set(&'a str, Secret),
    Remove(&'a str),
}

pub fn secret(command: &SecretCommand) -> ExitCode {
    let (wish, ask) = match command {
        SecretCommand::List(ask) => (Wish::List, ask),
        SecretCommand::Remove(NamedArguments { name, ask }) => (Wish::Remove(name), ask),
        SecretCommand::Set(NamedArguments { name, ask }) => {
            if !config::is_stored_name(name) {
                return ask::fail(ask, Failed::Said("a name is 1 to 200 letters, digits and `._-/`".to_owned()));
            }
            match ask::read_secret("the secret") {
                Ok(value) => (Wish::Set(name, value), ask),
                Err(text) => return ask::fail(ask, Failed::Said(text)),
            }
        }
    };
    let said = |text: String| Err(Failed::Said(text));
    let answer = match ask.names_instance() {
        true => wish.there(ask),
        false => match store::open(&ask.config_path()) {
            Ok(open) => match open.runtime.block_on(wish.here(open.store())) {
                Ok(Value::Null) => said("the store has no secret of this name".to_owned()),
                Ok(answer) => Ok(answer),
                Err(error) => said(error.to_string()),
            },
            Err(NotOpen::Store(OpenError::InUse { .. })) => wish.there(ask),
            Err(NotOpen::Store(error)) => said(error.to_string()),
            Err(NotOpen::Said(text)) => said(text),
            Err(NotOpen::Misconfigured) => return ExitCode::from(MISCONFIGURED),
        },
    };
    ask::finish(ask, answer, |answer| wish.shown(answer))
}

impl Wish<'_> {
    /// `null`: there is no such secret.
    async fn here(&self, store: &dyn Store) -> Result<Value, StoreError> {
        match self {
            Wish::List => Ok(json!({ "items": store.secret_names().await? })),
            Wish::Set(name, value) => {
                store.put_secret(name, value.clone()).await?;
                Ok(json!({ "name": name }))
            }
            Wish::Remove(name) => {
                let removed = store.remove_secret(name).await?;
                Ok(if removed { json!({ "name": name }) } else { Value::Null })
            }
        }
    }

    fn there(&self, ask: &AskArguments) -> Result<Value, Failed> {
        match self {
            Wish::List => ask.ask(Method::GET, &["secrets"], None),
            Wish::Set(name, value) => {
                ask.ask(Method::PUT, &["secrets", name], Some(json!({ "value": value.expose() })))
            }
            Wish::Remove(name) => ask.ask(Method::DELETE, &["secrets", name], None),
        }
    }

    fn shown(&self, answer: &Value) -> String {
        match self {
            Wish::List => {
                let names = answer["items"].as_array().into_iter().flatten().filter_map(Value::as_str);
                names.map(table::clean).collect::<Vec<_>>().join("\n")
            }
            Wish::Set(name, _) => format!("{name} is in the store; refer to it as {{store: {name}}}"),
            Wish::Remove(name) => format!("{name} is removed"),
        }
    }
}
