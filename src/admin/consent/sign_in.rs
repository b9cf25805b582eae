//! Sign-in of an operator on a page, to begin an authorization without a link.

use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::pages::Page;
use super::visit::Visit;
use crate::admin::users::{AuthenticatedUser, USER_UNKNOWN, delay_after_wrong_token};
use crate::admin::{Admin, auth, record, session};
use crate::model::Role;

/// Signs the browser in with the token from the form.
pub async fn sign_in(admin: &Admin, visit: &Visit, token: &str) -> Result<Response, Page> {
    let Some(user) = admin.access.user_with_token(token.trim()) else {
        delay_after_wrong_token().await;
        let denied = (None, USER_UNKNOWN, StatusCode::UNAUTHORIZED);
        record::denial(admin, visit.from(), &Method::POST, visit.uri.path(), denied);
        let page = Page::new(StatusCode::UNAUTHORIZED, "Sign in").text("No user has this token. Try again.");
        return Err(page.token_form());
    };
    let session = session::begin(admin, &user, &visit.headers, visit.addrs)
        .map_err(|_| Page::new(StatusCode::INTERNAL_SERVER_ERROR, "Sign-in failed").text("Try again."))?;
    tracing::info!(user = %user.name, from = %visit.from(), "signed in");
    // Not an HTTP redirect: the policy `form-action` of the page with the form applies to it.
    let page = Page::new(StatusCode::OK, "Signed in")
        .text(&format!("You are signed in as {}.", user.name))
        .refresh(0, &visit.here())
        .link(&visit.here(), "Continue");
    Ok(([(header::SET_COOKIE, session.cookie)], page).into_response())
}

/// The operator or manager who is signed in with this browser.
pub fn signed_in(admin: &Admin, visit: &Visit) -> Result<AuthenticatedUser, Page> {
    match auth::authenticate(admin, &Method::GET, &visit.headers, visit.addrs) {
        Some(user) if user.role >= Role::Operator => Ok(user),
        Some(user) => Err(Page::new(StatusCode::FORBIDDEN, "Not permitted")
            .text(&format!("{} may view connections, but not connect them.", user.name))
            .note("Sign in as an operator or a manager.")
            .token_form()),
        None => Err(Page::new(StatusCode::UNAUTHORIZED, "Sign in")
            .text("All callers of this connection will use the account that you connect here.")
            .text("This requires the admin token of an operator or a manager.")
            .token_form()),
    }
}
