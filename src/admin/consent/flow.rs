//! A flow: one authorization by a person, sealed in the store so that any replica can finish it.
//!
//! Invariants: the store has only digests of what opens a flow (state, cookie, link); a token has at most one flow that
//! is pending or being exchanged, and a few ended ones; an ended flow never changes; a pending one lasts ten minutes.
//! Not here: its ID (`id`), reading and writing it (`notes`).

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
pub use notes::{begin, change, devices, latest, load, put, summary};

/// Lifetime of a pending flow.
pub const FLOW_LIFETIME: Duration = Duration::from_secs(10 * 60);
/// Retention of the outcome of an ended flow.
const OUTCOME_RETENTION: Duration = Duration::from_secs(3600);
/// Ended flows that are remembered for a token; the oldest is dropped.
const EARLIER_MAX: usize = 8;

/// Random bytes in base64url.
pub fn random<const N: usize>() -> Option<Secret> {
    let mut bytes = Zeroizing::new([0; N]);
    rand::fill(&mut *bytes).ok()?;
    Some(Secret::new(BASE64_URL_SAFE_NO_PAD.encode(*bytes)))
}

/// Digest of a text that opens a flow; only this is stored.
pub fn digest(text: &str) -> String {
    SecretDigest::of(text.as_bytes()).text()
}

/// Compares digests or other secrets in constant time.
pub fn constant_time_eq(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Flow {
    pub id: FlowId,
    connection: String,
    profile: String,
    subject: Option<String>,
    /// The identity of the definition that the flow was begun for.
    identity: [u8; 32],
    /// Seconds since the Unix epoch.
    pub ends: u64,
    /// The user who began it.
    by: Option<String>,
    /// Digest of the link that opens it without signing in.
    link: Option<String>,
    /// Digest of the cookie of the browser that confirmed it.
    browser: Option<String>,
    status: Status,
    pub kind: Kind,
    earlier: Vec<Ended>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Pending,
    /// A request exchanges the code, or imports the device's token.
    Exchanging {
        /// Seconds since the Unix epoch; by then the exchange has ended or its process has died.
        until: u64,
    },
    Connected,
    Denied,
    /// After ten minutes, or as the server reports.
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

/// An authorization request that a browser carries.
#[derive(Clone, Serialize, Deserialize)]
pub struct Attempt {
    pub state: String,
    #[serde(with = "exposed")]
    pub verifier: Option<Secret>,
    pub redirect_uri: String,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Device {
    #[serde(with = "exposed")]
    pub device_code: Option<Secret>,
    pub user_code: String,
    pub verification_uri: String,
    pub verification_uri_complete: Option<String>,
    pub interval_ms: u64,
    /// Milliseconds since the Unix epoch.
    pub next_poll_ms: u64,
}

/// The part of a flow that is kept once the next one of its token has begun.
#[derive(Clone, Serialize, Deserialize)]
struct Ended {
    id: FlowId,
    ends: u64,
    link: Option<String>,
    status: Status,
}

/// The current state of a flow.
pub struct FlowSummary {
    pub key: TokenKey,
    pub status: Status,
    /// Seconds since the Unix epoch.
    pub ends: u64,
    /// The user who began it; `None` if a newer flow has replaced it.
    pub by: Option<Name>,
}

/// Serializes secrets as plain text, for a record that will be sealed.
mod exposed {
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

    /// Sets the user who begins it.
    pub fn begun_by(self, user: Option<&Name>) -> Flow {
        Flow { by: user.map(Name::to_string), ..self }
    }

    /// Sets the digest of the link that opens it.
    pub fn opened_by(self, link: Option<&str>) -> Flow {
        Flow { link: link.map(str::to_owned), ..self }
    }

    /// Binds it to the browser with this digest.
    pub fn bind(&mut self, browser: String) {
        self.browser = Some(browser);
    }

    /// True if a different browser has confirmed it.
    pub fn is_bound_elsewhere(&self, browser: Option<&str>) -> bool {
        self.browser.as_deref().is_some_and(|digest| !browser.is_some_and(|browser| constant_time_eq(digest, browser)))
    }

    /// True if this browser has confirmed it.
    pub fn is_bound_to(&self, browser: Option<&str>) -> bool {
        self.browser.as_deref().zip(browser).is_some_and(|(digest, browser)| constant_time_eq(digest, browser))
    }

    /// The key of its token.
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

    /// True if its token would belong to the current definition of the connection.
    pub fn is_for(&self, connection: &Connection) -> bool {
        connection.identity() == Identity::new(self.identity)
    }

    /// The status at `wall`, expiry included.
    pub fn status_at(&self, wall: WallTime) -> Status {
        match &self.status {
            Status::Pending if wall >= WallTime::from_secs(self.ends) => Status::Expired,
            Status::Exchanging { until } if wall >= WallTime::from_secs(*until) => {
                let description = "Keybearer stopped during the exchange".to_owned();
                Status::Failed { error: "interrupted".to_owned(), description: Some(description) }
            }
            status => status.clone(),
        }
    }

    pub fn is_exchanging(&self, wall: WallTime) -> bool {
        matches!(self.status_at(wall), Status::Exchanging { .. })
    }

    /// True if the link with this digest has connected an account.
    pub fn was_connected_by(&self, link: &str) -> bool {
        let mut earlier = self.earlier.iter().map(|ended| (&ended.link, &ended.status));
        let connected = |(digest, status): (&Option<String>, &Status)| {
            digest.as_deref() == Some(link) && *status == Status::Connected
        };
        connected((&self.link, &self.status)) || earlier.any(connected)
    }

    pub fn attempt(&self, state: &str) -> Option<&Attempt> {
        match &self.kind {
            Kind::Code(attempt) => attempt.as_ref().filter(|attempt| attempt.state == state),
            Kind::Device(_) => None,
        }
    }

    /// Changes the status; nothing else does. `Err`: the flow has ended, or another request exchanges its code.
    pub fn advance(&mut self, to: Status, wall: WallTime) -> Result<(), Status> {
        match (self.status_at(wall), &to) {
            (Status::Pending, _) => {}
            (Status::Exchanging { .. }, to) if !matches!(to, Status::Pending | Status::Exchanging { .. }) => {}
            (current, _) => return Err(current),
        }
        // Secrets are stored no longer than needed.
        match &mut self.kind {
            Kind::Code(attempt) => attempt.iter_mut().for_each(|attempt| attempt.verifier = None),
            Kind::Device(device) => device.device_code = None,
        }
        self.status = to;
        Ok(())
    }

    /// The ended flows that the next flow of the token remembers, this one included.
    fn remembered(&self, wall: WallTime) -> Vec<Ended> {
        let status = match self.status_at(wall) {
            Status::Pending => Status::Replaced,
            status => status,
        };
        let last = Ended { id: self.id.clone(), ends: self.ends, link: self.link.clone(), status };
        let all = self.earlier.iter().cloned().chain([last]);
        let mut all: Vec<_> = all.filter(|one| wall < WallTime::from_secs(one.ends) + OUTCOME_RETENTION).collect();
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
        Flow::new(id, &key, &connection, WALL + FLOW_LIFETIME, kind)
    }

    #[test]
    fn an_ended_flow_never_changes_and_holds_no_secret() {
        let ends = [
            Status::Connected,
            Status::Denied,
            Status::Expired,
            Status::Replaced,
            Status::Failed { error: "e".to_owned(), description: None },
        ];
        let (until, late) = ((WALL + FLOW_LIFETIME).as_secs() + 60, WALL + FLOW_LIFETIME + Duration::from_secs(59));
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
            // An exchange may end after the flow's lifetime.
            assert_eq!(flow.advance(end.clone(), late), Ok(()));
            for other in ends.iter().chain([&Status::Pending, &exchanging]) {
                assert_eq!(flow.advance(other.clone(), late), Err(end.clone()));
            }
            assert_eq!(flow.status_at(late + OUTCOME_RETENTION), *end);
        }
    }

    #[test]
    fn a_flow_expires_and_an_exchange_times_out() {
        let mut flow = flow(Kind::Code(None));
        let end = WALL + FLOW_LIFETIME;
        assert_eq!(flow.status_at(end - Duration::from_secs(1)), Status::Pending);
        assert_eq!(flow.status_at(end), Status::Expired);
        assert_eq!(flow.advance(Status::Connected, end), Err(Status::Expired));
        let until = end.as_secs() + 60;
        assert_eq!(flow.advance(Status::Exchanging { until }, end - Duration::from_secs(1)), Ok(()));
        assert!(flow.is_exchanging(end) && !flow.is_exchanging(WallTime::from_secs(until)));
        let Err(Status::Failed { error, .. }) = flow.advance(Status::Connected, WallTime::from_secs(until)) else {
            panic!("the exchange has timed out");
        };
        assert_eq!(error, "interrupted");
    }

    #[test]
    fn a_flow_is_bound_to_the_browser_that_confirmed_it() {
        let mut flow = flow(Kind::Code(None));
        assert!(!flow.is_bound_elsewhere(None) && !flow.is_bound_to(None) && !flow.is_bound_to(Some("a")));
        flow.bind("a".to_owned());
        assert!(flow.is_bound_to(Some("a")) && !flow.is_bound_to(Some("b")) && !flow.is_bound_to(None));
        assert!(
            !flow.is_bound_elsewhere(Some("a")) && flow.is_bound_elsewhere(Some("b")) && flow.is_bound_elsewhere(None)
        );
    }
}
