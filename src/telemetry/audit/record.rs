//! What the audit records, and how a record stands in a file.
//!
//! Holds: a record is one line; text from outside is in it only as [`Clean`].

use std::fmt::Display;
use std::net::SocketAddr;

use serde::Serialize;

use crate::model::Name;
use crate::model::time::{WallTime, rfc3339_ms};
use crate::telemetry::Clean;

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request that a route took, or a test that a person made.
    Use,
    Denial,
    /// A request to a token endpoint.
    Refresh,
    /// A reload that was applied or refused, or a token that a person has revoked.
    Change,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Use => "use",
            Kind::Denial => "denial",
            Kind::Refresh => "refresh",
            Kind::Change => "change",
        }
    }
}

/// Who acts on the admin side, and where the request came from, if it is one of them that acts now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// `None`: whoever holds a link of ours.
    pub user: Option<Name>,
    pub from: Option<SocketAddr>,
}

/// What asked for a token request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// There has been no token yet, or the connection has changed.
    Start,
    /// Its time has come, also that of another try.
    Due,
    /// A request waits.
    Demand,
    /// The upstream refused the token.
    Rejected,
    Person(Person),
}

impl Cause {
    pub fn as_str(&self) -> &'static str {
        match self {
            Cause::Start => "start",
            Cause::Due => "due",
            Cause::Demand => "demand",
            Cause::Rejected => "rejected",
            Cause::Person(_) => "person",
        }
    }

    pub fn person(&self) -> Option<&Person> {
        match self {
            Cause::Person(person) => Some(person),
            _ => None,
        }
    }
}

/// A request to the proxy, or one of a person to the admin side.
#[derive(Debug, Clone, Serialize)]
pub struct Request<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<&'a str>,
    pub from: String,
    /// `admin` for a request to the admin side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<&'a str>,
    /// Whose token it was, of a connection with one for each subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<&'a str>,
    pub method: Clean<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Clean<'a>>,
    pub path: Clean<'a>,
    pub status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'a str>,
    /// The request was to carry a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub injected: Option<bool>,
    /// The answer reached its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub complete: Option<bool>,
}

impl<'a> Request<'a> {
    /// Without anything that may be absent.
    pub fn new(from: impl Display, method: &'a str, path: &'a str, status: u16) -> Request<'a> {
        Request {
            request_id: None,
            client_request_id: None,
            caller: None,
            user: None,
            from: from.to_string(),
            listener: None,
            connection: None,
            profile: None,
            subject: None,
            method: Clean(method),
            host: None,
            path: Clean(path),
            status,
            code: None,
            injected: None,
            complete: None,
        }
    }

    /// The record as a line of the file.
    pub fn line(&self, at: WallTime, kind: Kind) -> String {
        line(at, kind.as_str(), self)
    }
}

/// A request to a token endpoint, several client secrets that were tried in turn included.
#[derive(Debug, Clone, Serialize)]
pub struct Refresh<'a> {
    pub connection: &'a str,
    pub profile: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<&'a str>,
    pub grant: &'a str,
    /// As in the metrics of token requests.
    pub outcome: &'a str,
    /// The server's code, or our word for what went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
    pub cause: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<SocketAddr>,
}

/// A reload.
#[derive(Debug, Clone, Serialize)]
pub struct Change<'a> {
    /// `applied`, `refused` or `failed`.
    pub outcome: &'a str,
    /// `signal`, `file` or `api`.
    pub cause: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<SocketAddr>,
    /// Names of connections.
    pub added: &'a [String],
    pub changed: &'a [String],
    pub removed: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub restart_required: &'a [&'static str],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problems: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Line<'a, T> {
    time: String,
    event: &'a str,
    #[serde(flatten)]
    record: T,
}

/// A record as it stands in the file, with its line break.
pub fn line(at: WallTime, event: &str, record: impl Serialize) -> String {
    // Maps with text keys: this cannot fail.
    let mut text = serde_json::to_string(&Line { time: rfc3339_ms(at), event, record }).unwrap_or_default();
    text.push('\n');
    text
}
