//! What a link to `/connect/{name}` opens: which token, on whose behalf, and whether the link is still good.
//!
//! Invariants: reading a link changes nothing. A subject's link is sealed to it, a link of the API has a secret; without
//! either, an operator signs in.

use axum::http::StatusCode;

use super::browser::Browser;
use super::definition::Definition;
use super::flow::{self, FlowId, FlowKey, Status};
use super::pages::Page;
use super::refusal::{busy, changed, no_store, over, taken};
use super::sign_in::signed_in;
use super::visit::Visit;
use crate::admin::Admin;
use crate::admin::problem::bound;
use crate::model::Name;
use crate::model::connection::ConsentFlow;
use crate::model::token::{Subject, TokenKey, default_profile};
use crate::snapshot::Snapshot;

/// What a link is for.
pub struct Opened {
    pub key: TokenKey,
    pub link: Link,
    /// The user who made the link, or signed in.
    pub by: Option<Name>,
    pub definition: Definition,
    pub consent_flow: ConsentFlow,
    pub flow_key: FlowKey,
}

pub enum Link {
    /// An operator's own visit.
    Operator,
    /// Sealed to a subject; its digest.
    Sealed(String),
    /// For an authorization that the API began; the digest of its secret.
    Begun(FlowId, String),
}

impl Link {
    /// `None`: the link is no secret.
    pub fn digest(&self) -> Option<&str> {
        match self {
            Link::Operator => None,
            Link::Sealed(digest) | Link::Begun(_, digest) => Some(digest),
        }
    }
}

/// Reads the link of this visit, and checks that it is still good.
pub async fn open(admin: &Admin, name: &str, visit: &Visit) -> Result<Opened, Page> {
    let snapshot = admin.snapshot.load_full();
    let Ok(bound) = bound(&snapshot, name) else {
        return Err(Page::new(StatusCode::NOT_FOUND, "No such connection")
            .says("No connection has the name in this address.")
            .notes("It may have been renamed or removed; an administrator knows."));
    };
    let own = bound.connection.name.clone();
    let (key, link, by) = match (visit.query("flow")?, visit.query("for")?) {
        (Some(secret), _) => by_secret(admin, &own, &secret).await?,
        (None, Some(sealed)) => by_seal(admin, &snapshot, &own, &sealed)?,
        (None, None) => by_operator(admin, &own, visit)?,
    };
    let definition = Definition::of(bound, &key).ok_or_else(unconnectable)?;
    if definition.slot(&key).is_none() {
        return Err(whose_account());
    }
    let consent_flow = definition.connection.grant.consent_flow().ok_or_else(|| {
        Page::new(StatusCode::CONFLICT, "No one needs to connect")
            .says("This connection gets its tokens without a person; there is nothing to connect.")
    })?;
    let flow_key = FlowKey::of(consent_flow, &key);
    let opened = Opened { key, link, by, definition, consent_flow, flow_key };
    check(admin, &opened, visit).await?;
    Ok(opened)
}

/// Is the link still good?
async fn check(admin: &Admin, opened: &Opened, visit: &Visit) -> Result<(), Page> {
    let wall = admin.clock.now().wall;
    let found = flow::latest(&**admin.cache.store(), &opened.flow_key).await.map_err(|error| no_store(&error))?;
    let Some((flow, _)) = found else { return Ok(()) };
    match &opened.link {
        Link::Begun(..) if !flow.is_of(&opened.definition.connection) => Err(changed()),
        Link::Begun(..) if flow.is_bound_elsewhere(Browser::digest_of(admin, visit).as_deref()) => Err(taken()),
        Link::Sealed(digest) if flow.was_connected_by(digest) => Err(over(&Status::Connected).unwrap_or_else(changed)),
        Link::Sealed(_) | Link::Operator if flow.is_exchanging(wall) => Err(busy()),
        _ => Ok(()),
    }
}

fn unconnectable() -> Page {
    Page::new(StatusCode::CONFLICT, "Not in use")
        .says("The connection is switched off, or has no such profile.")
        .notes("An administrator can switch it on, or give the right link.")
}

fn whose_account() -> Page {
    Page::refused("Whose account?")
        .says(
            "This connection has an account for each person, or one for everybody, and the address does not fit that.",
        )
        .notes("Use the link of the error that named it, or add ?subject=NAME for a person's account.")
}

type Meant = (TokenKey, Link, Option<Name>);

async fn by_secret(admin: &Admin, own: &Name, text: &str) -> Result<Meant, Page> {
    let unknown = || {
        Page::refused("This link is not known")
            .says("It is not complete, or too old.")
            .notes("Ask its sender for a new one.")
    };
    let (store, wall) = (&**admin.cache.store(), admin.clock.now().wall);
    let (id, _) = text.split_once('.').ok_or_else(unknown)?;
    let id = FlowId::parse(id).ok_or_else(unknown)?;
    let digest = flow::digest(text);
    let found = flow::outcome(store, &id, Some(&digest), wall).await.map_err(|error| no_store(&error))?;
    let outcome = found.filter(|outcome| outcome.key.connection == *own).ok_or_else(unknown)?;
    if let Some(page) = over(&outcome.status) {
        return Err(page);
    }
    Ok((outcome.key, Link::Begun(id, digest), outcome.by))
}

fn by_seal(admin: &Admin, snapshot: &Snapshot, own: &Name, sealed: &str) -> Result<Meant, Page> {
    let key = snapshot.links.open(sealed, admin.clock.now().wall).filter(|key| key.connection == *own);
    let key = key.ok_or_else(|| {
        Page::refused("This link has expired")
            .says("A link is good for ten minutes, and only as it was given.")
            .notes("Repeat the request that named it: its error has a new one.")
    })?;
    Ok((key, Link::Sealed(flow::digest(sealed)), None))
}

fn by_operator(admin: &Admin, own: &Name, visit: &Visit) -> Result<Meant, Page> {
    let asker = signed_in(admin, visit)?;
    let profile = visit.query("profile")?.map(|text| Name::parse(&text).ok_or_else(unconnectable)).transpose()?;
    let subject = visit.query("subject")?.map(|text| Subject::parse(&text).ok_or_else(whose_account)).transpose()?;
    let key = TokenKey { connection: own.clone(), profile: profile.unwrap_or_else(default_profile), subject };
    Ok((key, Link::Operator, Some(asker.name)))
}
