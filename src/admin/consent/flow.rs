//! An authorization that waits for a person, as it is kept sealed in the store, so that any replica may finish it.
//!
//! Not here: its name (`id`), how it is read and written (`notes`).
//! Holds: of what opens it (state, cookie, link) the digests alone are kept; a token has one that is pending or being
//! exchanged, and a few that have ended; one that has ended never changes; it ends ten minutes after it began.

mod id;
mod notes;

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
use crate::model::time::WallTime;
use crate::model::token::{Subject, TokenKey};

pub use id::{FlowId, FlowKey};
pub use notes::{begin, change, devices, latest, load, outcome, put};

pub const LIFE: Duration = Duration::from_secs(10 * 60);
/// How long its outcome can be asked for.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Of the same token, authorizations that have ended and are remembered; the oldest is forgotten.
const EARLIER_MAX: usize = 8;

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
    pub fn new(id: FlowId, key: &TokenKey, connection: &Connection, ends: WallTime, kind: Kind) -> Flow {
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
    pub fn status_at(&self, wall: WallTime) -> Status {
        match &self.status {
            Status::Pending if wall >= WallTime::from_secs(self.ends) => Status::Expired,
            Status::Exchanging { until } if wall >= WallTime::from_secs(*until) => {
                let description = "Keybearer ended while the token was obtained".to_owned();
                Status::Failed { error: "interrupted".to_owned(), description: Some(description) }
            }
            status => status.clone(),
        }
    }

    pub fn is_exchanging(&self, wall: WallTime) -> bool {
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
    pub fn advance(&mut self, to: Status, wall: WallTime) -> Result<(), Status> {
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
    fn remembered(&self, wall: WallTime) -> Vec<Ended> {
        let status = match self.status_at(wall) {
            Status::Pending => Status::Replaced,
            status => status,
        };
        let last = Ended { id: self.id.clone(), ends: self.ends, link: self.link.clone(), status };
        let all = self.earlier.iter().cloned().chain([last]);
        let mut all: Vec<_> = all.filter(|one| wall < WallTime::from_secs(one.ends) + REMEMBERED).collect();
        all.drain(..all.len().saturating_sub(EARLIER_MAX));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::connection::ConsentFlow;

    const WALL: WallTime = WallTime::from_secs(5000);

    fn flow(kind: Kind) -> Flow {
        let connection = Connection::sample("crm");
        let key = TokenKey::of_connection(connection.name.clone());
        let id = FlowId::random(&FlowKey::of(ConsentFlow::AuthorizationCode, &key)).unwrap();
        Flow::new(id, &key, &connection, WALL + LIFE, kind)
    }

    #[test]
    fn what_has_ended_never_changes_and_keeps_nothing_that_opens_it() {
        let ends = [
            Status::Connected,
            Status::Denied,
            Status::Expired,
            Status::Replaced,
            Status::Failed { error: "e".to_owned(), description: None },
        ];
        let (until, late) = ((WALL + LIFE).as_secs() + 60, WALL + LIFE + Duration::from_secs(59));
        let exchanging = Status::Exchanging { until };
        for end in &ends {
            let verifier = Some(Secret::new("v"));
            let attempt = Attempt { state: "s".to_owned(), verifier, redirect_uri: String::new() };
            let mut flow = flow(Kind::Code(Some(attempt)));
            assert_eq!(flow.advance(exchanging.clone(), WALL), Ok(()));
            assert!(flow.attempt("s").is_some_and(|attempt| attempt.verifier.is_none()));
            for again in [Status::Pending, exchanging.clone()] {
                assert_eq!(flow.advance(again, WALL), Err(exchanging.clone()));
            }
            // An exchange may end after the ten minutes.
            assert_eq!(flow.advance(end.clone(), late), Ok(()));
            for other in ends.iter().chain([&Status::Pending, &exchanging]) {
                assert_eq!(flow.advance(other.clone(), late), Err(end.clone()));
            }
            assert_eq!(flow.status_at(late + REMEMBERED), *end);
        }
    }

    #[test]
    fn time_ends_what_nobody_ends() {
        let mut flow = flow(Kind::Code(None));
        let end = WALL + LIFE;
        assert_eq!(flow.status_at(end - Duration::from_secs(1)), Status::Pending);
        assert_eq!(flow.status_at(end), Status::Expired);
        assert_eq!(flow.advance(Status::Connected, end), Err(Status::Expired));
        let until = end.as_secs() + 60;
        assert_eq!(flow.advance(Status::Exchanging { until }, end - Duration::from_secs(1)), Ok(()));
        assert!(flow.is_exchanging(end) && !flow.is_exchanging(WallTime::from_secs(until)));
        let Err(Status::Failed { error, .. }) = flow.advance(Status::Connected, WallTime::from_secs(until)) else {
            panic!("it was reported as failed");
        };
        assert_eq!(error, "interrupted");
    }

    #[test]
    fn only_the_browser_that_confirmed_is_the_one() {
        let mut flow = flow(Kind::Code(None));
        assert!(!flow.is_bound_elsewhere(None) && !flow.is_bound_to(None) && !flow.is_bound_to(Some("a")));
        flow.bind("a".to_owned());
        assert!(flow.is_bound_to(Some("a")) && !flow.is_bound_to(Some("b")) && !flow.is_bound_to(None));
        assert!(
            !flow.is_bound_elsewhere(Some("a")) && flow.is_bound_elsewhere(Some("b")) && flow.is_bound_elsewhere(None)
        );
    }
}
