//! Audit records of the admin API and the pages.

use std::net::SocketAddr;

use axum::http::{Method, StatusCode};

use super::Admin;
use super::users::AuthenticatedUser;
use crate::model::Name;
use crate::model::token::{Subject, TokenKey};
use crate::telemetry::audit::{self, Kind};

/// Records a request that was not permitted.
pub fn denial(
    admin: &Admin,
    from: SocketAddr,
    method: &Method,
    path: &str,
    (user, code, status): (Option<&Name>, &str, StatusCode),
) {
    let record = audit::Request {
        user: user.map(Name::as_str),
        listener: Some("admin"),
        code: Some(code),
        ..audit::Request::new(from, method.as_str(), path, status.as_u16())
    };
    admin.audit.now().admin(admin.clock.now().wall, Kind::Denial, &record);
}

/// Records an operation of a user on a connection that changes nothing.
pub fn operation(
    admin: &Admin,
    user: &AuthenticatedUser,
    (method, path): (&Method, &str),
    key: &TokenKey,
    status: StatusCode,
) {
    let record = audit::Request {
        user: Some(user.name.as_str()),
        listener: Some("admin"),
        connection: Some(key.connection.as_str()),
        profile: Some(key.profile.as_str()),
        ..audit::Request::new(user.from, method.as_str(), path, status.as_u16())
    };
    admin.audit.now().admin(admin.clock.now().wall, Kind::Use, &record);
}

/// Records a change of a token by a user or by a person with a link; `code`: why it failed.
pub fn change(
    admin: &Admin,
    (user, from): (Option<&Name>, SocketAddr),
    (method, path): (&Method, &str),
    key: &TokenKey,
    (status, code): (StatusCode, Option<&str>),
) {
    let record = audit::Request {
        user: user.map(Name::as_str),
        listener: Some("admin"),
        connection: Some(key.connection.as_str()),
        profile: Some(key.profile.as_str()),
        subject: key.subject.as_ref().map(Subject::as_str),
        code,
        ..audit::Request::new(from, method.as_str(), path, status.as_u16())
    };
    admin.audit.now().admin(admin.clock.now().wall, Kind::Change, &record);
}
