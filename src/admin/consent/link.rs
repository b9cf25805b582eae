//! Resolves a link to `/connect/{name}`: its token, the user who requested it, and whether the link is still valid.
//!
//! Invariants: resolving a link changes nothing. A subject's link is sealed to the subject, a one-time link of the API
//! has a secret; without either, an operator has to sign in.

use axum::http::StatusCode;

use super::browser::Browser;
use super::definition::Definition;
use super::flow::{self, FlowId, FlowKey, Status};
use super::pages::Page;
use super::refusal::{busy, changed, confirmed_elsewhere, ended, store_failed};
use super::sign_in::signed_in;
use super::visit::Visit;
use crate::admin::Admin;
use crate::admin::problem::bound;
use crate::model::Name;
use crate::model::connection::ConsentFlow;
use crate::model::token::{Subject, TokenKey, default_profile};
use crate::snapshot::Snapshot;

/// A resolved link.
pub struct OpenedLink {
    pub key: TokenKey,
    pub link: Link,
    /// The user who created the link or signed in.
    pub by: Option<Name>,
    pub definition: Definition,
    pub consent_flow: ConsentFlow,
    pub flow_key: FlowKey,
}

pub enum Link {
    /// No link: an operator who has signed in.
    Operator,
    /// Sealed to a subject, with the digest of the link.
    Sealed(String),
    /// A one-time link to a flow that the API began, with the digest of its secret.
    OneTime(FlowId, String),
}

impl Link {
    /// `None`: there is no secret in the link.
    pub fn digest(&self) -> Option<&str> {
        match self {
            Link::Operator => None,
            Link::Sealed(digest) | Link::OneTime(_, digest) => Some(digest),
        }
    }
}

/// Resolves the link of this visit and checks that it is still valid.
pub async fn open(admin: &Admin, name: &str, visit: &Visit) -> Result<OpenedLink, Page> {
    let snapshot = admin.snapshot.load_full();
    let Ok(bound) = bound(&snapshot, name) else {
        return Err(Page::new(StatusCode::NOT_FOUND, "No such connection")
            .text("No connection has the name in this address.")
            .note("It may have been renamed or removed; ask an administrator."));
    };
    let connection = bound.connection.name.clone();
    let (key, link, by) = match (visit.query("flow")?, visit.query("for")?) {
        (Some(secret), _) => by_secret(admin, &connection, &secret).await?,
        (None, Some(sealed)) => by_seal(admin, &snapshot, &connection, &sealed)?,
        (None, None) => by_operator(admin, &connection, visit)?,
    };
    let definition = Definition::of(bound, &key).ok_or_else(unconnectable)?;
    if definition.slot(&key).is_none() {
        return Err(whose_account());
    }
    let consent_flow = definition.connection.grant.consent_flow().ok_or_else(|| {
        Page::new(StatusCode::CONFLICT, "Nothing to connect").text("This connection gets its tokens without a person.")
    })?;
    let flow_key = FlowKey::of(consent_flow, &key);
    let opened = OpenedLink { key, link, by, definition, consent_flow, flow_key };
    check(admin, &opened, visit).await?;
    Ok(opened)
}

/// Checks that the link is still valid.
async fn check(admin: &Admin, opened: &OpenedLink, visit: &Visit) -> Result<(), Page> {
    let wall = admin.clock.now().wall;
    let found = flow::latest(&**admin.cache.store(), &opened.flow_key).await.map_err(|error| store_failed(&error))?;
    let Some((flow, _)) = found else { return Ok(()) };
    match &opened.link {
        Link::OneTime(..) if !flow.is_for(&opened.definition.connection) => Err(changed()),
        Link::OneTime(..) if flow.is_bound_elsewhere(Browser::digest_of(admin, visit).as_deref()) => {
            Err(confirmed_elsewhere())
        }
        Link::Sealed(digest) if flow.was_connected_by(digest) => Err(ended(&Status::Connected).unwrap_or_else(changed)),
        Link::Sealed(_) | Link::Operator if flow.is_exchanging(wall) => Err(busy()),
        _ => Ok(()),
    }
}

fn unconnectable() -> Page {
    Page::new(StatusCode::CONFLICT, "Not active")
        .text("The connection is inactive, or it has no such profile.")
        .note("An administrator can activate it, or give you the right link.")
}

fn whose_account() -> Page {
    Page::refused("Whose account?")
        .text(
            "Either this connection has one account for each subject and the address names none, or all callers share \
             one account and the address names a subject.",
        )
        .note("Use the link in the error message, or add ?subject=NAME for the account of a subject.")
}

type Resolved = (TokenKey, Link, Option<Name>);

async fn by_secret(admin: &Admin, connection: &Name, text: &str) -> Result<Resolved, Page> {
    let unknown = || {
        Page::refused("This link is unknown")
            .text("It is incomplete, or too old.")
            .note("Ask the sender for a new one.")
    };
    let (store, wall) = (&**admin.cache.store(), admin.clock.now().wall);
    let (id, _) = text.split_once('.').ok_or_else(unknown)?;
    let id = FlowId::parse(id).ok_or_else(unknown)?;
    let digest = flow::digest(text);
    let found = flow::summary(store, &id, Some(&digest), wall).await.map_err(|error| store_failed(&error))?;
    let summary = found.filter(|summary| summary.key.connection == *connection).ok_or_else(unknown)?;
    if let Some(page) = ended(&summary.status) {
        return Err(page);
    }
    Ok((summary.key, Link::OneTime(id, digest), summary.by))
}

fn by_seal(admin: &Admin, snapshot: &Snapshot, connection: &Name, sealed: &str) -> Result<Resolved, Page> {
    let key = snapshot.links.open(sealed, admin.clock.now().wall).filter(|key| key.connection == *connection);
    let key = key.ok_or_else(|| {
        Page::refused("This link has expired")
            .text("A link is valid for ten minutes, and only if it is complete and unchanged.")
            .note("Repeat the request whose error had the link: the new error has a new link.")
    })?;
    Ok((key, Link::Sealed(flow::digest(sealed)), None))
}

fn by_operator(admin: &Admin, connection: &Name, visit: &Visit) -> Result<Resolved, Page> {
    let profile = visit.query("profile")?.map(|text| Name::parse(&text).ok_or_else(unconnectable)).transpose()?;
    let subject = visit.query("subject")?.map(|text| Subject::parse(&text).ok_or_else(whose_account)).transpose()?;
    let key = TokenKey { connection: connection.clone(), profile: profile.unwrap_or_else(default_profile), subject };
    let user = signed_in(admin, visit, &key)?;
    Ok((key, Link::Operator, Some(user.name)))
}
