//! An authorization that waits for a person, as it is kept sealed in the store, so that any replica may finish it.
//!
//! Not here: its name (`id`).
//! Holds: of what opens it (state, cookie, link) the digests alone are kept; a token has one that is pending or being
//! exchanged, and a few that have ended; one that has ended never changes; it ends ten minutes after it began.

mod id;

use std::time::Duration;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::model::Name;
use crate::model::connection::{Connection, Identity};
use crate::model::secret::{Secret, SecretDigest};
use crate::model::token::{Subject, TokenKey};
use crate::store::{Store, StoreError};
pub use id::{FlowId, FlowKey};

pub const LIFE: Duration = Duration::from_secs(10 * 60);
/// How long its outcome can be asked for.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Of the same token, authorizations that have ended and are remembered; the oldest is forgotten.
const EARLIER_MAX: usize = 8;
/// Writers that may be quicker.
const ROUNDS_MAX: usize = 16;

/// Random bytes in base64url.
pub fn random<const N: usize>() -> Option<Secret> {
    let mut bytes = Zeroizing::new([0; N]);
    rand::fill(&mut *bytes).ok()?;
    Some(Secret::new(BASE64_URL_SAFE_NO_PAD.encode(*bytes)))
}

/// What is kept of something that opens a flow.
pub fn digest(text: &str) -> String {
    SecretDigest::of(text.as_bytes()).text()
}

/// Compares digests, or other texts that open something, in constant time.
pub fn same(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Flow {
    pub id: FlowId,
    connection: String,
    profile: String,
    subject: Option<String>,
    /// What the token will belong to.
    identity: [u8; 32],
    /// Seconds since the Unix epoch.
    pub ends: u64,
    /// The user who began it.
    by: Option<String>,
    /// Of the link that opens it without signing in.
    link: Option<String>,
    /// Of the browser that has confirmed it.
    browser: Option<String>,
    status: Status,
    pub kind: Kind,
    earlier: Vec<Ended>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Pending,
    /// A code or a device's token has come back and becomes ours.
    Exchanging {
        /// Seconds since the Unix epoch; later than that nobody does it any more.
        until: u64,
    },
    Connected,
    Denied,
    /// The server says so, or the ten minutes are over.
    Expired,
    /// A newer authorization of the same token has replaced it.
    Replaced,
    Failed {
        error: String,
        description: Option<String>,
    },
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `None`: no browser has confirmed it yet.
    Code(Option<Attempt>),
    Device(Device),
}

/// A browser on its way to the authorization server and back.
#[derive(Clone, Serialize, Deserialize)]
pub struct Attempt {
    pub state: String,
    #[serde(with = "kept")]
    pub verifier: Option<Secret>,
    pub redirect_uri: String,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Device {
    #[serde(with = "kept")]
    pub device_code: Option<Secret>,
    pub user_code: String,
    pub verification_uri: String,
    pub verification_uri_complete: Option<String>,
    pub interval_ms: u64,
    /// Milliseconds since the Unix epoch.
    pub next_poll_ms: u64,
}

/// What is left of an authorization once another one of its token has begun.
#[derive(Clone, Serialize, Deserialize)]
struct Ended {
    id: FlowId,
    ends: u64,
    link: Option<String>,
    status: Status,
}

/// How an authorization stands.
pub struct Outcome {
    pub key: TokenKey,
    pub status: Status,
    /// Seconds since the Unix epoch.
    pub ends: u64,
    /// The user who began it, while no newer one has replaced it.
    pub by: Option<Name>,
}

/// Secrets within what will be sealed.
mod kept {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Secret;

    pub fn serialize<S: Serializer>(secret: &Option<Secret>, serializer: S) -> Result<S::Ok, S::Error> {
        secret.as_ref().map(Secret::expose).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
        Ok(Option::<String>::deserialize(deserializer)?.map(Secret::new))
    }
}

impl Flow {
    pub fn new(id: FlowId, key: &TokenKey, connection: &Connection, ends: Duration, kind: Kind) -> Flow {
        Flow {
            id,
            connection: key.connection.to_string(),
            profile: key.profile.to_string(),
            subject: key.subject.as_ref().map(Subject::to_string),
            identity: *connection.identity().as_bytes(),
            ends: ends.as_secs(),
            by: None,
            link: None,
            browser: None,
            status: Status::Pending,
            kind,
            earlier: Vec::new(),
        }
    }

    /// The user who begins it.
    pub fn begun_by(self, user: Option<&Name>) -> Flow {
        Flow { by: user.map(Name::to_string), ..self }
    }

    /// Opened by the link with this digest.
    pub fn opened_by(self, link: Option<&str>) -> Flow {
        Flow { link: link.map(str::to_owned), ..self }
    }

    /// Goes on in the browser with this digest alone.
    pub fn bind(&mut self, browser: String) {
        self.browser = Some(browser);
    }

    /// Has another browser than this one confirmed it?
    pub fn is_bound_elsewhere(&self, browser: Option<&str>) -> bool {
        self.browser.as_deref().is_some_and(|own| !browser.is_some_and(|browser| same(own, browser)))
    }

    /// Has this browser confirmed it?
    pub fn is_bound_to(&self, browser: Option<&str>) -> bool {
        self.browser.as_deref().zip(browser).is_some_and(|(own, browser)| same(own, browser))
    }

    /// Which token it is for.
    pub fn key(&self) -> Option<TokenKey> {
        let subject = match &self.subject {
            Some(subject) => Some(Subject::parse(subject)?),
            None => None,
        };
        Some(TokenKey { connection: Name::parse(&self.connection)?, profile: Name::parse(&self.profile)?, subject })
    }

    /// The user who began it.
    pub fn user(&self) -> Option<Name> {
        self.by.as_deref().and_then(Name::parse)
    }

    /// Would its token be one of the connection as it is now?
    pub fn is_of(&self, connection: &Connection) -> bool {
        connection.identity() == Identity::new(self.identity)
    }

    /// As it is at `wall`.
    pub fn status_at(&self, wall: Duration) -> Status {
        match &self.status {
            Status::Pending if wall >= Duration::from_secs(self.ends) => Status::Expired,
            Status::Exchanging { until } if wall >= Duration::from_secs(*until) => {
                let description = "Keybearer ended while the token was obtained".to_owned();
                Status::Failed { error: "interrupted".to_owned(), description: Some(description) }
            }
            status => status.clone(),
        }
    }

    pub fn is_exchanging(&self, wall: Duration) -> bool {
        matches!(self.status_at(wall), Status::Exchanging { .. })
    }

    /// Has `link`, given as its digest, connected an account?
    pub fn was_connected_by(&self, link: &str) -> bool {
        let mut earlier = self.earlier.iter().map(|ended| (&ended.link, &ended.status));
        let connected =
            |(own, status): (&Option<String>, &Status)| own.as_deref() == Some(link) && *status == Status::Connected;
        connected((&self.link, &self.status)) || earlier.any(connected)
    }

    pub fn attempt(&self, state: &str) -> Option<&Attempt> {
        match &self.kind {
            Kind::Code(attempt) => attempt.as_ref().filter(|attempt| attempt.state == state),
            Kind::Device(_) => None,
        }
    }

    /// The only way from one status to the next; `Err`: it has ended, or another request exchanges its code.
    pub fn advance(&mut self, to: Status, wall: Duration) -> Result<(), Status> {
        match (self.status_at(wall), &to) {
            (Status::Pending, _) => {}
            (Status::Exchanging { .. }, to) if !matches!(to, Status::Pending | Status::Exchanging { .. }) => {}
            (now, _) => return Err(now),
        }
        // Nothing that opens anything is kept longer than needed.
        match &mut self.kind {
            Kind::Code(attempt) => attempt.iter_mut().for_each(|attempt| attempt.verifier = None),
            Kind::Device(device) => device.device_code = None,
        }
        self.status = to;
        Ok(())
    }

    /// What the next authorization of the same token remembers.
    fn remembered(&self, wall: Duration) -> Vec<Ended> {
        let status = match self.status_at(wall) {
            Status::Pending => Status::Replaced,
            status => status,
        };
        let last = Ended { id: self.id.clone(), ends: self.ends, link: self.link.clone(), status };
        let all = self.earlier.iter().cloned().chain([last]);
        let mut all: Vec<_> = all.filter(|one| wall < Duration::from_secs(one.ends) + REMEMBERED).collect();
        all.drain(..all.len().saturating_sub(EARLIER_MAX));
        all
    }
}

const UNREADABLE: StoreError = StoreError::Unsupported("an authorization under way is not readable");

/// The latest authorization of a token, and its version.
pub async fn latest(store: &dyn Store, key: &FlowKey) -> Result<Option<(Flow, u64)>, StoreError> {
    let Some(note) = store.note(&key.note()).await? else { return Ok(None) };
    let flow = serde_json::from_str(note.text.expose()).map_err(|_| UNREADABLE)?;
    Ok(Some((flow, note.version)))
}

/// This very authorization, unless a newer one has replaced it.
pub async fn load(store: &dyn Store, id: &FlowId) -> Result<Option<Flow>, StoreError> {
    Ok(latest(store, &id.key()).await?.map(|(flow, _)| flow).filter(|flow| flow.id == *id))
}

/// How an authorization stands at `wall`, whether or not a newer one has replaced it. `link`: its link has this digest.
pub async fn outcome(
    store: &dyn Store,
    id: &FlowId,
    link: Option<&str>,
    wall: Duration,
) -> Result<Option<Outcome>, StoreError> {
    let Some((flow, _)) = latest(store, &id.key()).await? else { return Ok(None) };
    let last = Ended { id: flow.id.clone(), ends: flow.ends, link: flow.link.clone(), status: flow.status_at(wall) };
    let by = flow.user().filter(|_| flow.id == *id);
    let fits = |own: &Option<String>| match link {
        Some(link) => own.as_ref().is_some_and(|own| same(own, link)),
        None => true,
    };
    let mut all = flow.earlier.iter().cloned().chain([last]);
    let found = all.find(|one| one.id == *id && fits(&one.link)).zip(flow.key());
    Ok(found.map(|(Ended { status, ends, .. }, key)| Outcome { key, status, ends, by }))
}

/// In place of the version `over`, or of nothing; false: another writer was quicker.
pub async fn put(store: &dyn Store, flow: &Flow, over: Option<u64>) -> Result<bool, StoreError> {
    let text = Secret::new(serde_json::to_string(flow).map_err(|_| UNREADABLE)?);
    store.put_note(&flow.id.key().note(), text, Duration::from_secs(flow.ends) + REMEMBERED, over).await
}

/// Keeps a new authorization, which replaces the pending one of the same token; false: that one is being exchanged.
pub async fn begin(store: &dyn Store, flow: &Flow, wall: Duration) -> Result<bool, StoreError> {
    for _ in 0..ROUNDS_MAX {
        let (mut flow, mut over) = (flow.clone(), None);
        if let Some((before, version)) = latest(store, &flow.id.key()).await? {
            if before.is_exchanging(wall) {
                return Ok(false);
            }
            (flow.earlier, over) = (before.remembered(wall), Some(version));
        }
        if put(store, &flow, over).await? {
            return Ok(true);
        }
    }
    Err(too_many_writers())
}

/// Changes what is kept, in one step for everybody else; `None`: it is gone, or a newer one has replaced it. What `change`
/// refuses is not written.
pub async fn change<T, E>(
    store: &dyn Store,
    id: &FlowId,
    mut change: impl FnMut(&mut Flow) -> Result<T, E>,
) -> Result<Option<Result<T, E>>, StoreError> {
    for _ in 0..ROUNDS_MAX {
        let Some((mut flow, version)) = latest(store, &id.key()).await? else { return Ok(None) };
        if flow.id != *id {
            return Ok(None);
        }
        let value = match change(&mut flow) {
            Ok(value) => value,
            Err(refused) => return Ok(Some(Err(refused))),
        };
        if put(store, &flow, Some(version)).await? {
            return Ok(Some(Ok(value)));
        }
    }
    Err(too_many_writers())
}

fn too_many_writers() -> StoreError {
    StoreError::Unavailable("too many write the same authorization at once".to_owned())
}

/// The tokens for which device authorizations are kept.
pub async fn devices(store: &dyn Store) -> Result<Vec<FlowKey>, StoreError> {
    let names = store.note_names(&id::device_notes()).await?;
    Ok(names.iter().filter_map(|name| FlowKey::of_note(name)).collect())
}
