//! Where a route puts its tokens, and what becomes of the credential that the caller sent there.

use std::borrow::Cow;

use http::HeaderName;
use http::header::AUTHORIZATION;

use super::Route;
use crate::model::Name;

/// The query parameter that carries a bearer token (RFC 6750 §2.3).
pub const ACCESS_TOKEN: &str = "access_token";

/// Where the token is put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inject {
    /// `<header>: <scheme> <token>`; an empty scheme is the token alone.
    Header { header: HeaderName, scheme: String },
    /// `?<name>=<token>`, for APIs that take it nowhere else.
    Query { name: String },
    /// A route that forwards without a token.
    Nothing,
}

/// A token of another connection, and where it is put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherToken {
    pub connection: Name,
    pub inject: Inject,
}

/// What becomes of what the caller sent in the token's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    #[default]
    Overwrite,
    Keep,
    Refuse,
}

/// The other way in which a caller may send a bearer token of its own: a request carries one (RFC 6750 §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherBearer {
    /// `Authorization: Bearer`, where the route's token goes into the query parameter.
    Header,
    /// `?access_token=`
    Parameter,
}

impl Route {
    /// Where its tokens go: the connection's own first.
    pub fn injection_points(&self) -> impl Iterator<Item = &Inject> {
        let all = std::iter::once(&self.inject).chain(self.others.iter().map(|other| &other.inject));
        all.filter(|inject| **inject != Inject::Nothing)
    }

    /// The bearer token that would travel beside the route's; it counts as sent in the place of the route's first token.
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

/// A header's name in lower case as lenient servers compare it: they read `X_Api_Key` as `X-Api-Key`.
pub fn canonical_header(name: &str) -> Cow<'_, str> {
    match name.contains('_') {
        true => name.trim_end_matches('_').replace('_', "-").into(),
        false => name.into(),
    }
}

#[cfg(test)]
impl Route {
    /// All requests for a host, for the tests of other rooms.
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
