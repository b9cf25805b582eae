//! Sign-in of an operator on a page, to begin an authorization without a link.

use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use url::Url;

use super::pages::Page;
use super::visit::Visit;
use crate::admin::sign_in_limiter::too_many_attempts;
use crate::admin::users::{AuthenticatedUser, USER_UNKNOWN, delay_after_wrong_token};
use crate::admin::{Admin, auth, record, session};
use crate::model::Role;
use crate::model::token::TokenKey;

/// Signs the browser in with the token from the form.
pub async fn sign_in(admin: &Admin, visit: &Visit, token: &str) -> Result<Response, Page> {
    let limited = admin.sign_in_limiter.admit(visit.from().ip(), admin.clock.now().boot);
    limited.map_err(|wait| Page::too_many(wait, too_many_attempts()))?;
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

/// The operator or manager who is signed in with this browser. `key`: the token to connect.
pub fn signed_in(admin: &Admin, visit: &Visit, key: &TokenKey) -> Result<AuthenticatedUser, Page> {
    match auth::authenticate(admin, &Method::GET, &visit.headers, visit.addrs) {
        Some(user) if user.role >= Role::Operator => Ok(user),
        Some(user) => Err(Page::new(StatusCode::FORBIDDEN, "Not permitted")
            .text(&format!("{} may view connections, but not connect them.", user.name))
            .note("Sign in as an operator or a manager."))
        .map_err(|page| sign_in_forms(admin, page, key)),
        None => Err(Page::new(StatusCode::UNAUTHORIZED, "Sign in")
            .text("All callers of this connection will use the account that you connect here.")
            .text("This requires an operator or a manager."))
        .map_err(|page| sign_in_forms(admin, page, key)),
    }
}

/// The ways to sign in: at the OpenID provider, on the admin listener, or here with a token.
fn sign_in_forms(admin: &Admin, page: Page, key: &TokenKey) -> Page {
    let snapshot = admin.snapshot.load();
    let page = snapshot.sign_in.iter().fold(page, |page, provider| {
        let at = Url::parse(&provider.settings.issuer).ok();
        let host = at.as_ref().and_then(Url::host_str).unwrap_or("the provider");
        page.link(provider.sign_in_url(Some(key)).as_str(), &format!("Sign in with {host}"))
    });
    page.token_form()
}
