//! An operator signs in on a page, to begin an authorization that no link opens.

use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::pages::Page;
use super::visit::Visit;
use crate::admin::users::{Asker, USER_UNKNOWN, after_wrong_token};
use crate::admin::{Admin, auth, record, session};
use crate::model::Role;

/// Takes the token of the form, and gives the browser a session for it.
pub async fn sign_in(admin: &Admin, visit: &Visit, token: &str) -> Result<Response, Page> {
    let Some(user) = admin.access.holder_of(token.trim()) else {
        after_wrong_token().await;
        let denied = (None, USER_UNKNOWN, StatusCode::UNAUTHORIZED);
        record::denial(admin, visit.from, &Method::POST, visit.uri.path(), denied);
        let page = Page::new(StatusCode::UNAUTHORIZED, "Sign in").says("No user has this token. Try again.");
        return Err(page.asks_for_token());
    };
    let made = session::begin(admin, &user, &visit.headers)
        .map_err(|_| Page::new(StatusCode::INTERNAL_SERVER_ERROR, "Signing in failed").says("Try again."))?;
    tracing::info!(user = %user.name, from = %visit.from, "signed in");
    // A redirect would be part of the form's way, which the policy of its page confines to this site.
    let page = Page::new(StatusCode::OK, "Signed in")
        .says(&format!("You are signed in as {}.", user.name))
        .goes_on(0, &visit.here())
        .link(&visit.here(), "Go on");
    Ok(([(header::SET_COOKIE, made.cookie)], page).into_response())
}

/// The operator or manager who has signed in with this browser.
pub fn signed_in(admin: &Admin, visit: &Visit) -> Result<Asker, Page> {
    match auth::asker(admin, &Method::GET, &visit.headers, visit.from) {
        Some(asker) if asker.role >= Role::Operator => Ok(asker),
        Some(asker) => Err(Page::new(StatusCode::FORBIDDEN, "Not permitted")
            .says(&format!("{} may look at connections, not connect them.", asker.name))
            .notes("Sign in as an operator or a manager.")
            .asks_for_token()),
        None => Err(Page::new(StatusCode::UNAUTHORIZED, "Sign in")
            .says("Everybody who may use this connection will use the account that is connected here.")
            .says("So an operator's or manager's admin token is needed to begin.")
            .asks_for_token()),
    }
}
