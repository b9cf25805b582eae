//! Which connections need consent again: the stored token was granted for another definition, and only a person can get the
//! next one.
//!
//! Holds: the store is read and never changed. Where it cannot be read, a note says so; that is no problem of the
//! configuration.

use crate::cli::run::control_runtime;
use crate::model::Model;
use crate::model::connection::{Connection, Tokens};
use crate::model::token::default_profile;
use crate::store::{OpenError, Store, StoreError, StoreOpener};
use crate::token::slot::{NEEDS_CONSENT_AGAIN, needs_consent_again};

/// Records of subjects that are looked at for each connection: a changed definition fits none of them.
const SUBJECTS_MAX: usize = 1000;

pub fn notes(model: &Model, opener: &StoreOpener) -> Vec<String> {
    if !model.connections.iter().any(|connection| connection.needs_person()) {
        return Vec::new();
    }
    match outdated(model, opener) {
        Ok(found) => found,
        Err(why) => vec![format!("whether a connection needs consent again is not known: {why}")],
    }
}

fn outdated(model: &Model, opener: &StoreOpener) -> Result<Vec<String>, String> {
    let runtime = control_runtime().map_err(|error| format!("no threads can be started ({error})"))?;
    let _in_runtime = runtime.enter();
    let store = match opener.peek(&model.store, &model.state_dir) {
        Ok(Some(store)) => store,
        Ok(None) => return Ok(Vec::new()),
        Err(OpenError::InUse { path }) => {
            let path = path.display();
            return Err(format!(
                "a running instance has {path} open; after a reload its log and `keybearer connections` say so"
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

async fn note(own: &Connection, store: &dyn Store) -> Result<Option<String>, StoreError> {
    let key = own.token_key(None);
    let who = if own.profile == default_profile() { key.connection.to_string() } else { key.to_string() };
    if own.tokens == Tokens::Shared {
        let outdated = store.load(&key).await?.is_some_and(|token| !token.matches(own));
        return Ok(outdated.then(|| format!("{who} {}", needs_consent_again(&key))));
    }
    let page = store.list(&own.name, Some(&key), SUBJECTS_MAX).await?;
    let of_profile = page.iter().take_while(|(other, _)| other.profile == own.profile);
    let mut tokens = of_profile.filter_map(|(_, record)| record.as_ref().ok());
    Ok(tokens.any(|token| !token.matches(own)).then(|| format!("each subject of {who} {NEEDS_CONSENT_AGAIN}")))
}
