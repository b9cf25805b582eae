//! An authorization that waits for a person, as it lies sealed in the store, so that any replica may finish it.
//!
//! Holds: of what opens it (state, cookie, link) the digests alone are kept; who writes over a version that somebody else
//! has replaced begins again; it ends ten minutes after it began.

use std::time::Duration;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::model::Name;
use crate::model::connection::{Connection, Identity};
use crate::model::secret::{Secret, SecretDigest};
use crate::model::token::{Subject, TokenKey};
use crate::store::{Store, StoreError};

pub const LIFE: Duration = Duration::from_secs(10 * 60);
/// How long its outcome can be asked for.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Browsers or tabs that may be on their way at once; the oldest gives way.
const ATTEMPTS_MAX: usize = 16;
/// Writers that may be quicker.
const ROUNDS_MAX: usize = 16;
const ID_CHARS: usize = 23;

/// `c` (code) or `d` (device) and 128 bits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FlowId(String);

impl FlowId {
    pub fn parse(text: &str) -> Option<FlowId> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let fits = text.len() == ID_CHARS && text.starts_with(['c', 'd']) && text.bytes().all(plain);
        fits.then(|| FlowId(text.to_owned()))
    }

    pub fn random(mark: char) -> Option<FlowId> {
        Some(FlowId(format!("{mark}{}", random::<16>()?.expose())))
    }

    /// The same for the same text.
    pub fn of(mark: char, text: &str) -> FlowId {
        let digest = SecretDigest::of(text.as_bytes());
        FlowId(format!("{mark}{}", BASE64_URL_SAFE_NO_PAD.encode(&digest.as_bytes()[..16])))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_device(&self) -> bool {
        self.0.starts_with('d')
    }

    fn note(&self) -> String {
        format!("{NOTES}{}", self.0)
    }
}

/// What the names of these notes begin with.
const NOTES: &str = "flow/";

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

#[derive(Serialize, Deserialize)]
pub struct Flow {
    connection: String,
    profile: String,
    subject: Option<String>,
    /// What the token will belong to.
    identity: [u8; 32],
    /// Seconds since the Unix epoch.
    pub ends: u64,
    /// The user who began it by the API.
    pub by: Option<String>,
    /// Of the link that opens it without signing in.
    pub link: Option<String>,
    pub status: Status,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Pending,
    /// A code has come back, and is being exchanged.
    Exchanging,
    Connected,
    Denied,
    /// The server says so.
    Expired,
    Failed {
        error: String,
        description: Option<String>,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Code { attempts: Vec<Attempt> },
    Device(Device),
}

/// One browser on its way to the authorization server and back.
#[derive(Clone, Serialize, Deserialize)]
pub struct Attempt {
    pub state: String,
    pub cookie: String,
    #[serde(with = "kept")]
    pub verifier: Option<Secret>,
    pub redirect_uri: String,
    /// The user whose browser it is, if one has signed in.
    pub by: Option<String>,
}

impl Attempt {
    /// One for each, so that two tabs do not take each other's away.
    pub fn cookie_name(&self) -> String {
        format!("keybearer_flow_{}", self.state.get(..12).unwrap_or_default())
    }
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
    pub fn new(key: &TokenKey, connection: &Connection, wall: Duration, life: Duration, kind: Kind) -> Flow {
        Flow {
            connection: key.connection.to_string(),
            profile: key.profile.to_string(),
            subject: key.subject.as_ref().map(Subject::to_string),
            identity: *connection.identity().as_bytes(),
            ends: (wall + life).as_secs(),
            by: None,
            link: None,
            status: Status::Pending,
            kind,
        }
    }

    /// Which token it is for.
    pub fn key(&self) -> Option<TokenKey> {
        let subject = match &self.subject {
            Some(subject) => Some(Subject::parse(subject)?),
            None => None,
        };
        Some(TokenKey { connection: Name::parse(&self.connection)?, profile: Name::parse(&self.profile)?, subject })
    }

    /// Would its token be one of the connection as it is now?
    pub fn is_of(&self, connection: &Connection) -> bool {
        connection.identity() == Identity::new(self.identity)
    }

    /// As it is at `wall`.
    pub fn status_at(&self, wall: Duration) -> Status {
        match &self.status {
            Status::Pending if wall >= Duration::from_secs(self.ends) => Status::Expired,
            status => status.clone(),
        }
    }

    pub fn attempt(&self, state: &str) -> Option<&Attempt> {
        match &self.kind {
            Kind::Code { attempts } => attempts.iter().find(|attempt| attempt.state == state),
            Kind::Device(_) => None,
        }
    }

    pub fn add(&mut self, attempt: Attempt) {
        if let Kind::Code { attempts } = &mut self.kind {
            attempts.push(attempt);
            let over = attempts.len().saturating_sub(ATTEMPTS_MAX);
            attempts.drain(..over);
        }
    }

    /// Nothing that opens anything is kept longer than needed.
    pub fn end(&mut self, status: Status) {
        match &mut self.kind {
            Kind::Code { attempts } => attempts.iter_mut().for_each(|attempt| attempt.verifier = None),
            Kind::Device(device) => device.device_code = None,
        }
        self.status = status;
    }

    fn text(&self) -> Result<Secret, StoreError> {
        let text = serde_json::to_string(self).map_err(|_| UNREADABLE)?;
        Ok(Secret::new(text))
    }

    fn forgotten(&self) -> Duration {
        Duration::from_secs(self.ends) + REMEMBERED
    }
}

const UNREADABLE: StoreError = StoreError::Unsupported("an authorization under way is not readable");

pub async fn load(store: &dyn Store, id: &FlowId) -> Result<Option<(Flow, u64)>, StoreError> {
    let Some(note) = store.note(&id.note()).await? else { return Ok(None) };
    let flow = serde_json::from_str(note.text.expose()).map_err(|_| UNREADABLE)?;
    Ok(Some((flow, note.version)))
}

/// In place of the version `over`, or of nothing; false: somebody was quicker.
pub async fn put(store: &dyn Store, id: &FlowId, flow: &Flow, over: Option<u64>) -> Result<bool, StoreError> {
    store.put_note(&id.note(), flow.text()?, flow.forgotten(), over).await
}

/// Changes what is kept, in one step for everybody else; `None`: there is nothing. What `change` refuses is not written.
pub async fn change<T, E>(
    store: &dyn Store,
    id: &FlowId,
    mut change: impl FnMut(&mut Flow) -> Result<T, E>,
) -> Result<Option<Result<T, E>>, StoreError> {
    for _ in 0..ROUNDS_MAX {
        let Some((mut flow, version)) = load(store, id).await? else { return Ok(None) };
        let value = match change(&mut flow) {
            Ok(value) => value,
            Err(refused) => return Ok(Some(Err(refused))),
        };
        if put(store, id, &flow, Some(version)).await? {
            return Ok(Some(Ok(value)));
        }
    }
    Err(StoreError::Unavailable("too many write the same authorization at once".to_owned()))
}

/// Every device authorization that is kept.
pub async fn devices(store: &dyn Store) -> Result<Vec<FlowId>, StoreError> {
    let names = store.note_names(&format!("{NOTES}d")).await?;
    Ok(names.iter().filter_map(|name| FlowId::parse(name.strip_prefix(NOTES)?)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    fn attempt(state: &str) -> Attempt {
        let verifier = Some(Secret::new("v"));
        Attempt { state: state.to_owned(), cookie: String::new(), verifier, redirect_uri: String::new(), by: None }
    }

    #[tokio::test]
    async fn whoever_claims_a_flow_first_has_it_alone() {
        let (store, wall) = (MemoryStore::default(), crate::clock::Clock::system().now().wall);
        let connection = Connection::sample("crm");
        let key = TokenKey::of_connection(connection.name.clone());
        let id = FlowId::random('c').unwrap();
        assert_eq!(FlowId::parse(id.as_str()), Some(id.clone()));
        let mut flow = Flow::new(&key, &connection, wall, LIFE, Kind::Code { attempts: Vec::new() });
        (0..20).for_each(|n| flow.add(attempt(&n.to_string())));
        assert!(flow.attempt("3").is_none() && flow.attempt("4").is_some());
        assert_eq!(put(&store, &id, &flow, None).await, Ok(true));
        assert_eq!(put(&store, &id, &flow, None).await, Ok(false));
        let claim = || {
            change(&store, &id, |flow: &mut Flow| match flow.status_at(wall) {
                Status::Pending => {
                    flow.end(Status::Exchanging);
                    Ok(())
                }
                other => Err(other),
            })
        };
        let both = tokio::join!(claim(), claim());
        assert_eq!(both, (Ok(Some(Ok(()))), Ok(Some(Err(Status::Exchanging)))));
        let (kept, _) = load(&store, &id).await.unwrap().unwrap();
        assert!(kept.key() == Some(key) && kept.is_of(&connection) && kept.attempt("4").unwrap().verifier.is_none());
    }

    #[test]
    fn a_flow_ends_after_ten_minutes() {
        let connection = Connection::sample("crm");
        let (key, wall) = (TokenKey::of_connection(connection.name.clone()), Duration::from_secs(5000));
        let flow = Flow::new(&key, &connection, wall, LIFE, Kind::Code { attempts: Vec::new() });
        assert_eq!(flow.status_at(wall + LIFE - Duration::from_secs(1)), Status::Pending);
        assert_eq!(flow.status_at(wall + LIFE), Status::Expired);
    }
}
