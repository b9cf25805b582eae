//! `keybearer secret`: the secrets that `{store: NAME}` refers to.
//!
//! Invariants: the store is opened directly only while no instance runs; a running instance is its only writer, so the
//! command goes to its API. A secret comes from standard input and is never printed.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::instance::{self, CallError, InstanceArguments};
use super::store::{self, NotOpen};
use super::{MISCONFIGURED, table};
use crate::config;
use crate::model::secret::Secret;
use crate::store::{OpenError, Store, StoreError};

#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Store a secret, read from standard input
    Set(NamedArguments),
    /// List the names of all secrets
    List(InstanceArguments),
    /// Remove a secret
    Remove(NamedArguments),
}

#[derive(Debug, Args)]
pub struct NamedArguments {
    /// Name of the secret: letters, digits and `._-/`
    name: String,
    #[command(flatten)]
    instance: InstanceArguments,
}

/// An action on the store, run here or by the instance that has the store open.
enum Action<'a> {
    List,
    Set(&'a str, Secret),
    Remove(&'a str),
}

pub fn secret(command: &SecretCommand) -> ExitCode {
    let (action, instance) = match command {
        SecretCommand::List(instance) => (Action::List, instance),
        SecretCommand::Remove(NamedArguments { name, instance }) => (Action::Remove(name), instance),
        SecretCommand::Set(NamedArguments { name, instance }) => {
            if !config::is_stored_name(name) {
                return instance::fail(
                    instance,
                    CallError::Local("a secret's name is 1 to 200 letters, digits and `._-/`".to_owned()),
                );
            }
            match instance::read_secret("the secret") {
                Ok(value) => (Action::Set(name, value), instance),
                Err(text) => return instance::fail(instance, CallError::Local(text)),
            }
        }
    };
    let failed = |text: String| Err(CallError::Local(text));
    let response = match instance.has_address() {
        true => action.run_on_instance(instance),
        false => match store::open(&instance.config_path()) {
            Ok(open) => match open.runtime.block_on(action.run_on_store(open.store())) {
                Ok(Value::Null) => failed("the store has no secret with this name".to_owned()),
                Ok(response) => Ok(response),
                Err(error) => failed(error.to_string()),
            },
            Err(NotOpen::Store(OpenError::InUse { .. })) => action.run_on_instance(instance),
            Err(NotOpen::Store(error)) => failed(error.to_string()),
            Err(NotOpen::Other(text)) => failed(text),
            Err(NotOpen::Misconfigured) => return ExitCode::from(MISCONFIGURED),
        },
    };
    instance::finish(instance, response, |response| action.describe(response))
}

impl Action<'_> {
    /// Runs on an open store. `null`: there is no such secret.
    async fn run_on_store(&self, store: &dyn Store) -> Result<Value, StoreError> {
        match self {
            Action::List => Ok(json!({ "items": store.secret_names().await? })),
            Action::Set(name, value) => {
                store.put_secret(name, value.clone()).await?;
                Ok(json!({ "name": name }))
            }
            Action::Remove(name) => {
                let removed = store.remove_secret(name).await?;
                Ok(if removed { json!({ "name": name }) } else { Value::Null })
            }
        }
    }

    /// Runs through the API of an instance.
    fn run_on_instance(&self, instance: &InstanceArguments) -> Result<Value, CallError> {
        match self {
            Action::List => instance.call(Method::GET, &["secrets"], None),
            Action::Set(name, value) => {
                instance.call(Method::PUT, &["secrets", name], Some(json!({ "value": value.expose() })))
            }
            Action::Remove(name) => instance.call(Method::DELETE, &["secrets", name], None),
        }
    }

    fn describe(&self, response: &Value) -> String {
        match self {
            Action::List => {
                let names = response["items"].as_array().into_iter().flatten().filter_map(Value::as_str);
                names.map(table::clean).collect::<Vec<_>>().join("\n")
            }
            Action::Set(name, _) => format!("{name} stored; refer to it as {{store: {name}}}"),
            Action::Remove(name) => format!("{name} removed"),
        }
    }
}
