//! The audit records, and their form in a file.
//!
//! Invariant: a record is one line; untrusted text appears in it only as [`Clean`].

use std::fmt::Display;
use std::net::SocketAddr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;

use crate::model::Name;
use crate::model::time::{WallTime, rfc3339_ms};
use crate::telemetry::Clean;

/// Kind of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request served by a route, or a test or a preflight run by a person.
    Use,
    Denial,
    /// A request to a token endpoint.
    Refresh,
    /// A reload that was applied or refused, or a token revoked by a person.
    Change,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Use, Kind::Denial, Kind::Refresh, Kind::Change];

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Use => "use",
            Kind::Denial => "denial",
            Kind::Refresh => "refresh",
            Kind::Change => "change",
        }
    }
}

/// A person who acts on the admin side. `from`: the peer address, if the person sent a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// `None`: the holder of a connect link.
    pub user: Option<Name>,
    pub from: Option<SocketAddr>,
}

/// Cause of a token request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// There was no token yet, or the connection has changed.
    Start,
    /// A scheduled refresh or retry is due.
    Due,
    /// A request is waiting.
    Demand,
    /// The upstream rejected the token.
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

/// A request to the proxy or to the admin side.
#[derive(Debug, Clone, Serialize, JsonSchema)]
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
    /// Subject of the token, for a per-subject connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<&'a str>,
    #[schemars(with = "String")]
    pub method: Clean<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub host: Option<Clean<'a>>,
    #[schemars(with = "String")]
    pub path: Clean<'a>,
    pub status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'a str>,
    /// A token was to be injected into the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub injected: Option<bool>,
    /// The whole response was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub complete: Option<bool>,
}

impl<'a> Request<'a> {
    /// A record without its optional fields.
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

/// A request to a token endpoint, including all client secrets that were tried.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Refresh<'a> {
    pub connection: &'a str,
    pub profile: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<&'a str>,
    pub grant: &'a str,
    /// As in `keybearer_token_requests_total`.
    pub outcome: &'a str,
    /// The server's error code, or our name for the failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
    pub cause: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub from: Option<SocketAddr>,
}

/// A reload.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Change<'a> {
    /// `applied`, `refused` or `failed`.
    pub outcome: &'a str,
    /// `signal`, `file`, `store` or `api`.
    pub cause: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub from: Option<SocketAddr>,
    /// Names of connections.
    pub added: &'a [String],
    pub changed: &'a [String],
    pub removed: &'a [String],
    /// The top-level keys that differ after a change over the API; of several definitions, each as `NAME.KEY`.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub fields: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub restart_required: &'a [&'static str],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problems: Option<usize>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{T}Record")]
struct Line<'a, T> {
    #[schemars(extend("format" = "date-time"))]
    time: String,
    #[schemars(extend("enum" = Kind::ALL.map(Kind::as_str)))]
    event: &'a str,
    #[serde(flatten)]
    record: T,
}

/// The schema of every record.
pub fn record_schema(generator: &mut SchemaGenerator) -> Schema {
    let schemas = [
        generator.subschema_for::<Line<'_, Request<'_>>>(),
        generator.subschema_for::<Line<'_, Refresh<'_>>>(),
        generator.subschema_for::<Line<'_, Change<'_>>>(),
    ];
    json_schema!({ "anyOf": schemas })
}

/// Formats a record as a line of the file, with its line break.
pub fn line(at: WallTime, event: &str, record: impl Serialize) -> String {
    // Maps with text keys: this cannot fail.
    let mut text = serde_json::to_string(&Line { time: rfc3339_ms(at), event, record }).unwrap_or_default();
    text.push('\n');
    text
}
