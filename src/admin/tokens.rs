//! `GET tokens`: the state of a connection's tokens, in memory and in the store, with pagination.
//!
//! Invariants: profiles are in configuration order, subjects in the order of the store; a cursor names the last token of a
//! page.
//! Not here: the JSON of a token (`view`).

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::problem::{Problem, bad_request, bound, definition, store_unavailable};
use super::{Admin, view};
use crate::model::connection::Connection;
use crate::model::token::{Subject, TokenKey};
use crate::snapshot::{BoundConnection, BoundDefinition};
use crate::store::{StoreError, StoredToken};
use crate::token::Slots;
use crate::token::slot::TokenSlot;

/// Default number of items on a page.
const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokensQuery {
    profile: Option<String>,
    subject: Option<String>,
    state: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// A token's key and its JSON.
type TokenItem = (TokenKey, Value);

/// `profile`, or `profile/subject`.
struct Cursor {
    profile: String,
    subject: Option<Subject>,
}

impl Cursor {
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
    filter: Result<Query<TokensQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(filter) = filter.map_err(|error| bad_request(error.body_text()))?;
    let limit = filter.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(bad_request(format!("`limit` must be between 1 and {LIMIT_MAX}")));
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
        cursor.ok_or_else(|| bad_request("`cursor` is not one of this list".to_owned()))
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
    let wanted = |item: &Value| filter.state.as_deref().is_none_or(|state| item["state"] == state);
    let items: Vec<Value> = found.into_iter().map(|(_, item)| item).filter(wanted).collect();
    Ok(Json(json!({ "items": items, "cursor": cursor })))
}

/// At most `limit` tokens of one definition: that of `subject`, or those of all subjects after `after`.
async fn tokens(
    admin: &Admin,
    definition: &BoundDefinition,
    subject: Option<&Subject>,
    after: Option<Subject>,
    limit: usize,
) -> Result<Vec<TokenItem>, Problem> {
    let (own, now) = (&definition.connection, admin.clock.now());
    let in_memory = |slot: &Arc<TokenSlot>| (slot.key.clone(), view::token(slot, now));
    Ok(match (&definition.slots, subject) {
        (Some(Slots::Shared(slot)), None) => vec![in_memory(slot)],
        // A shared token has no subject.
        (Some(Slots::Shared(_)), Some(_)) | (None, _) => Vec::new(),
        (Some(Slots::PerSubject(_)), None) => of_subjects(admin, own, after, limit).await?,
        (Some(Slots::PerSubject(_)), Some(subject)) => {
            let key = own.token_key(Some(subject.clone()));
            if let Some(slot) = admin.cache.get(&key) {
                return Ok(vec![in_memory(&slot)]);
            }
            let record = admin.cache.store().load(&key).await.transpose();
            record.map(|record| stored(own, key, &record)).into_iter().collect()
        }
        // Tokens exchanged for callers' own tokens are only in memory.
        (Some(Slots::PerCallerToken(_)), subject) => {
            let is_wanted = |slot: &Arc<TokenSlot>| {
                let TokenKey { connection, profile, subject: of } = &slot.key;
                let is_own = *connection == own.name && *profile == own.profile;
                is_own && of.is_some() && of.as_ref() > after.as_ref() && (subject.is_none() || of.as_ref() == subject)
            };
            let mut slots: Vec<_> = admin.cache.list().into_iter().filter(is_wanted).collect();
            slots.sort_by(|one, other| one.key.cmp(&other.key));
            slots.iter().take(limit).map(in_memory).collect()
        }
    })
}

async fn of_subjects(
    admin: &Admin,
    own: &Connection,
    after: Option<Subject>,
    limit: usize,
) -> Result<Vec<TokenItem>, Problem> {
    let now = admin.clock.now();
    // A key without a subject sorts before all others of the profile.
    let after = own.token_key(after);
    let page =
        admin.cache.store().list(&own.name, Some(&after), limit).await.map_err(|error| store_unavailable(&error))?;
    let of_profile = page.into_iter().take_while(|(key, _)| key.profile == own.profile);
    let found = of_profile.map(|(key, record)| match admin.cache.get(&key) {
        Some(slot) => (key, view::token(&slot, now)),
        None => stored(own, key, &record),
    });
    Ok(found.collect())
}

fn stored(own: &Connection, key: TokenKey, record: &Result<StoredToken, StoreError>) -> TokenItem {
    let shown = view::stored(own, &key, record);
    (key, shown)
}
