//! `GET tokens`: the state of a connection's tokens, in memory and in the store, with pagination.
//!
//! Invariants: profiles are in configuration order, subjects in the order of the store; a cursor names the last token
//! of a page.
//! Not here: the JSON of a token (`view`).

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;

use super::Admin;
use super::connections::Page;
use super::extract::{Path, Query};
use super::problem::{Problem, bad_request, bound, definition, store_unavailable};
use super::view::{self, TOKEN_STATES, Token};
use crate::model::Name;
use crate::model::connection::Connection;
use crate::model::token::{Subject, TokenKey};
use crate::snapshot::{BoundConnection, BoundDefinition};
use crate::store::{StoreError, StoredToken};
use crate::token::Slots;
use crate::token::slot::TokenSlot;

/// Default number of items on a page.
const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1000;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokensQuery {
    /// The profile of the tokens; absent: all.
    #[schemars(regex(pattern = Name::PATTERN))]
    profile: Option<String>,
    /// The subject of the tokens; absent: all.
    #[schemars(regex(pattern = Subject::PATTERN))]
    subject: Option<String>,
    /// The state of the tokens.
    #[schemars(extend("enum" = TOKEN_STATES))]
    state: Option<String>,
    /// Items on the page; absent: 100.
    #[schemars(range(min = 1, max = LIMIT_MAX))]
    limit: Option<usize>,
    /// The cursor of the previous page.
    #[schemars(regex(pattern = Cursor::PATTERN))]
    cursor: Option<String>,
}

/// A token with its key.
type TokenItem = (TokenKey, Token);

/// `profile`, or `profile/subject`.
struct Cursor {
    profile: String,
    subject: Option<Subject>,
}

impl Cursor {
    const PATTERN: &str = "^[a-z0-9][a-z0-9_-]{0,62}(/[A-Za-z0-9._@:+-]{1,128})?$";

    fn parse(text: &str, bound: &BoundConnection) -> Option<Cursor> {
        let (profile, subject) = match text.split_once('/') {
            Some((profile, subject)) => (profile, Some(Subject::parse(subject)?)),
            None => (text, None),
        };
        let slots = bound.definition(profile)?.slots.as_ref()?;
        (slots.shared().is_some() == subject.is_none()).then(|| Cursor { profile: profile.to_owned(), subject })
    }

    fn after(key: &TokenKey) -> String {
        let TokenKey { profile, subject, .. } = key;
        subject.as_ref().map_or_else(|| profile.to_string(), |subject| format!("{profile}/{subject}"))
    }
}

pub async fn list(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(filter): Query<TokensQuery>,
) -> Result<Json<Page<Token>>, Problem> {
    let limit = filter.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(bad_request(format!("`limit` must be between 1 and {LIMIT_MAX}")));
    }
    if filter.state.as_deref().is_some_and(|state| !TOKEN_STATES.contains(&state)) {
        return Err(bad_request(format!("`state` must be one of {}", TOKEN_STATES.join(", "))));
    }
    let subject = |text: &str| {
        Subject::parse(text).ok_or_else(|| bad_request("`subject` is 1 to 128 letters, digits and `._@:+-`".to_owned()))
    };
    let subject = filter.subject.as_deref().map(subject).transpose()?;
    let snapshot = admin.snapshot.load_full();
    let bound = bound(&snapshot, &name)?;
    let wanted = filter.profile.as_deref().map(|profile| definition(bound, Some(profile))).transpose()?;
    let cursor = |text: &str| {
        let cursor = Cursor::parse(text, bound).filter(|_| subject.is_none());
        cursor.ok_or_else(|| bad_request("`cursor` does not belong to this list; start again without it".to_owned()))
    };
    let mut cursor = filter.cursor.as_deref().map(cursor).transpose()?;
    let mut found: Vec<TokenItem> = Vec::new();
    for definition in &bound.definitions {
        let profile = definition.connection.profile.as_str();
        let after = match cursor.take_if(|cursor| cursor.profile == profile) {
            Some(Cursor { subject: None, .. }) => continue,
            Some(Cursor { subject, .. }) => subject,
            // The page begins with a later profile.
            None if cursor.is_some() => continue,
            None => None,
        };
        if wanted.is_some_and(|wanted| wanted.connection.profile != definition.connection.profile) {
            continue;
        }
        // One more than the page holds, to learn whether there is a next page.
        let rest = limit + 1 - found.len();
        found.extend(tokens(&admin, definition, subject.as_ref(), after, rest).await?);
        if found.len() > limit {
            break;
        }
    }
    let more = found.len() > limit;
    found.truncate(limit);
    let cursor = found.last().filter(|_| more).map(|last| Cursor::after(&last.0));
    let wanted = |token: &Token| filter.state.as_deref().is_none_or(|state| token.state == state);
    Ok(Json(Page { items: found.into_iter().map(|(_, token)| token).filter(wanted).collect(), cursor }))
}

/// At most `limit` tokens of one definition: that of `subject`, or those of all subjects after `after`.
async fn tokens(
    admin: &Admin,
    definition: &BoundDefinition,
    subject: Option<&Subject>,
    after: Option<Subject>,
    limit: usize,
) -> Result<Vec<TokenItem>, Problem> {
    let (connection, now) = (&definition.connection, admin.clock.now());
    let in_memory = |slot: &Arc<TokenSlot>| (slot.key.clone(), view::token(slot, now));
    Ok(match (&definition.slots, subject) {
        (Some(Slots::Shared(slot)), None) => vec![in_memory(slot)],
        // A shared token has no subject.
        (Some(Slots::Shared(_)), Some(_)) | (None, _) => Vec::new(),
        (Some(Slots::PerSubject(_)), None) => of_subjects(admin, connection, after, limit).await?,
        (Some(Slots::PerSubject(_)), Some(subject)) => {
            let key = connection.token_key(Some(subject.clone()));
            if let Some(slot) = admin.cache.get(&key) {
                return Ok(vec![in_memory(&slot)]);
            }
            let record = admin.cache.store().load(&key).await.transpose();
            record.map(|record| stored(connection, key, &record)).into_iter().collect()
        }
        // Tokens exchanged for callers' own tokens are only in memory.
        (Some(Slots::PerCallerToken(_)), subject) => {
            let is_wanted = |slot: &Arc<TokenSlot>| {
                let key = &slot.key;
                let of = key.subject.as_ref();
                let is_of_definition = key.connection == connection.name && key.profile == connection.profile;
                is_of_definition && of.is_some() && of > after.as_ref() && (subject.is_none() || of == subject)
            };
            let mut slots: Vec<_> = admin.cache.list().into_iter().filter(is_wanted).collect();
            slots.sort_by(|one, other| one.key.cmp(&other.key));
            slots.iter().take(limit).map(in_memory).collect()
        }
    })
}

async fn of_subjects(
    admin: &Admin,
    connection: &Connection,
    after: Option<Subject>,
    limit: usize,
) -> Result<Vec<TokenItem>, Problem> {
    let now = admin.clock.now();
    // A key without a subject sorts before all others of the profile.
    let after = connection.token_key(after);
    let page = admin
        .cache
        .store()
        .list(&connection.name, Some(&after), limit)
        .await
        .map_err(|error| store_unavailable(&error))?;
    let of_profile = page.into_iter().take_while(|(key, _)| key.profile == connection.profile);
    let found = of_profile.map(|(key, record)| match admin.cache.get(&key) {
        Some(slot) => (key, view::token(&slot, now)),
        None => stored(connection, key, &record),
    });
    Ok(found.collect())
}

fn stored(connection: &Connection, key: TokenKey, record: &Result<StoredToken, StoreError>) -> TokenItem {
    let shown = view::stored(connection, &key, record);
    (key, shown)
}
