//! The injection points of a route, and what happens to a credential that the caller sent there.

use std::borrow::Cow;

use http::HeaderName;
use http::header::AUTHORIZATION;

use super::Route;
use crate::model::Name;

/// The query parameter that carries a bearer token (RFC 6750 §2.3).
pub const ACCESS_TOKEN: &str = "access_token";

/// An injection point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inject {
    /// `<header>: <scheme> <token>`; an empty scheme means only the token.
    Header { header: HeaderName, scheme: String },
    /// `?<name>=<token>`, for APIs that accept it only there.
    Query { name: String },
    /// None: the route forwards without a token.
    Nothing,
}

/// A token of another connection, with its injection point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherToken {
    pub connection: Name,
    pub inject: Inject,
}

/// What happens to a credential that the caller sent at an injection point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    #[default]
    Overwrite,
    Keep,
    Refuse,
}

/// The other way for a caller to send a bearer token. A request must use only one (RFC 6750 §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherBearer {
    /// `Authorization: Bearer`, if the route injects into the query parameter.
    Header,
    /// `?access_token=`
    Parameter,
}

impl Route {
    /// The injection points; the connection's own first.
    pub fn injection_points(&self) -> impl Iterator<Item = &Inject> {
        let all = std::iter::once(&self.inject).chain(self.others.iter().map(|other| &other.inject));
        all.filter(|inject| **inject != Inject::Nothing)
    }

    /// A bearer token of the caller's that would be sent in addition to the route's. It is treated as if it were sent
    /// at the route's first injection point.
    pub fn other_bearer(&self) -> Option<OtherBearer> {
        self.injection_points().next()?;
        let has = |point: fn(&Inject) -> bool| self.injection_points().any(point);
        let in_parameter = has(|inject| matches!(inject, Inject::Query { name } if name == ACCESS_TOKEN));
        let in_header = has(|inject| matches!(inject, Inject::Header { header, .. } if *header == AUTHORIZATION));
        match (in_parameter, in_header) {
            (false, _) => Some(OtherBearer::Parameter),
            (true, false) => Some(OtherBearer::Header),
            (true, true) => None,
        }
    }
}

/// Canonical form of a lower-case header name for lenient servers, which read `X_Api_Key` as `X-Api-Key`.
pub fn canonical_header(name: &str) -> Cow<'_, str> {
    match name.contains('_') {
        true => name.trim_end_matches('_').replace('_', "-").into(),
        false => name.into(),
    }
}

#[cfg(test)]
impl Route {
    /// A route without a token, for tests of other modules.
    pub fn sample(matches: super::RouteMatch) -> Route {
        Route {
            matches,
            path: super::PathPrefix::root(),
            methods: None,
            tls: super::UpstreamTls::default(),
            inject: Inject::Nothing,
            others: Vec::new(),
            set_headers: Vec::new(),
            existing: Existing::default(),
            strip: super::Strip::default(),
            without_token: super::WithoutToken::default(),
            profile: None,
            only_when_named: false,
            intercept: true,
        }
    }
}
