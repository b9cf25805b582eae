//! Finds connections that need consent again: the stored token was granted for another definition, and only a person
//! can obtain the next one.
//!
//! Invariant: the store is read and never changed. A store that cannot be read gets a note; it is not a problem of the
//! configuration.

use crate::cli::run::control_runtime;
use crate::model::Model;
use crate::model::connection::{Connection, Tokens};
use crate::model::token::default_profile;
use crate::store::{OpenError, Store, StoreError, StoreOpener};
use crate::token::slot::{NEEDS_CONSENT_AGAIN, needs_consent_again};

/// Maximum number of subjects checked per connection. A changed definition matches none of them, so a sample suffices.
const SUBJECTS_MAX: usize = 1000;

pub fn notes(model: &Model, opener: &StoreOpener) -> Vec<String> {
    if !model.connections.iter().any(|connection| connection.needs_person()) {
        return Vec::new();
    }
    match outdated(model, opener) {
        Ok(found) => found,
        Err(why) => vec![format!("cannot tell whether a connection needs consent again: {why}")],
    }
}

fn outdated(model: &Model, opener: &StoreOpener) -> Result<Vec<String>, String> {
    let runtime = control_runtime().map_err(|error| format!("cannot start threads ({error})"))?;
    let _in_runtime = runtime.enter();
    let store = match opener.peek(&model.store, &model.state_dir) {
        Ok(Some(store)) => store,
        Ok(None) => return Ok(Vec::new()),
        Err(OpenError::InUse { path }) => {
            let path = path.display();
            return Err(format!(
                "a running instance has {path} open; after a reload, its log and `keybearer connections` report it"
            ));
        }
        Err(error) => return Err(error.to_string()),
    };
    let definitions = model.connections.iter().flat_map(|connection| connection.definitions());
    let mut found = Vec::new();
    for definition in definitions.filter(|definition| definition.grant.needs_person()) {
        let note = runtime.block_on(note(definition, &*store)).map_err(|error| error.to_string())?;
        found.extend(note);
    }
    Ok(found)
}

async fn note(connection: &Connection, store: &dyn Store) -> Result<Option<String>, StoreError> {
    let key = connection.token_key(None);
    let who = if connection.profile == default_profile() { key.connection.to_string() } else { key.to_string() };
    if connection.tokens == Tokens::Shared {
        let outdated = store.load(&key).await?.is_some_and(|token| !token.matches(connection));
        return Ok(outdated.then(|| format!("{who} {}", needs_consent_again(&key))));
    }
    let page = store.list(&connection.name, Some(&key), SUBJECTS_MAX).await?;
    let of_profile = page.iter().take_while(|(other, _)| other.profile == connection.profile);
    let mut tokens = of_profile.filter_map(|(_, record)| record.as_ref().ok());
    Ok(tokens.any(|token| !token.matches(connection)).then(|| format!("each subject of {who} {NEEDS_CONSENT_AGAIN}")))
}
