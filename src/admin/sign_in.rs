//! Sign-in at the OpenID provider, on the admin listener: `/sign-in` sends the browser there, `/sign-in/callback` begins
//! the session.
//!
//! Invariants: state, nonce and PKCE verifier are in a cookie of the browser that began, sealed, for ten minutes and one
//! callback; the redirect URL comes from the configuration or the listener, never from Host; without a role there is no
//! session; attempts are limited per address.
//! Not here: the ID token (`oauth`), sessions (`session`), the confirmation of a link (`consent`).

mod attempt;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::any;

use super::consent::pages::Page;
use super::consent::refusal::{internal_error, not_allowed};
use super::consent::visit::Visit;
use super::sign_in_limiter::too_many_attempts;
use super::{Admin, auth, consent, host, record, session};
use crate::model::Name;
use crate::model::secret::{Secret, SecretDigest};
use crate::model::token::{Subject, TokenKey, default_profile};
use crate::oauth::{Identity, OpenIdClient, SignInError, sanitize_error};
use attempt::Attempt;

/// A longer code is refused.
const CODE_BYTES_MAX: usize = 8 * 1024;
/// Denial of a person without a role, and of a sign-in that failed.
const NO_ROLE: &str = "role_missing";
const SIGN_IN_FAILED: &str = "sign_in_failed";
/// Characters of a display name that become part of a user's name.
const DISPLAY_CHARS_MAX: usize = 40;

/// The router of the pages, for the admin listener alone.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/sign-in", any(begin))
        .route("/sign-in/callback", any(callback))
        .route("/sign-in/result", any(result))
        .route("/sign-in/connect/{name}", any(consent::hand_over))
        .layer(from_fn_with_state(admin.clone(), consent::guard))
        .with_state(admin)
}

async fn begin(State(admin): State<Admin>, request: Request) -> Response {
    let visit = Visit::of(&request);
    match visit.method {
        Method::GET => redirect_to_provider(&admin, &visit).await.unwrap_or_else(Page::into_response),
        _ => not_allowed("GET"),
    }
}

async fn redirect_to_provider(admin: &Admin, visit: &Visit) -> Result<Response, Page> {
    let provider = provider(admin)?;
    let target = target(visit)?;
    // The callback needs the cookie, so the browser has to begin at the host to which the provider returns it.
    if !host::names_host_of(Some(&provider.redirect_url), &visit.headers) && visit.query("moved")?.is_none() {
        let url = format!("{}&moved=1", provider.sign_in_url(target.as_ref()));
        return Ok(see_other(&url)?.into_response());
    }
    count_attempt(admin, visit)?;
    let attempt = Attempt::new(target).ok_or_else(internal_error)?;
    let start =
        provider.start(&attempt.state, &attempt.nonce).await.map_err(|failure| provider_failed(&failure.into()))?;
    let cookie = attempt.with_verifier(start.verifier).cookie(admin, visit).ok_or_else(internal_error)?;
    let mut response = see_other(start.url.as_str())?.into_response();
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    Ok(response)
}

/// The token that the person wants to connect after signing in.
fn target(visit: &Visit) -> Result<Option<TokenKey>, Page> {
    let invalid = || Page::refused("This address is invalid").text("It names no valid connection, profile or subject.");
    let Some(connection) = visit.query("connect")? else { return Ok(None) };
    let profile = visit.query("profile")?.map(|text| Name::parse(&text).ok_or_else(invalid)).transpose()?;
    let subject = visit.query("subject")?.map(|text| Subject::parse(&text).ok_or_else(invalid)).transpose()?;
    let (connection, profile) =
        (Name::parse(&connection).ok_or_else(invalid)?, profile.unwrap_or_else(default_profile));
    Ok(Some(TokenKey { connection, profile, subject }))
}

async fn callback(State(admin): State<Admin>, request: Request) -> Response {
    let visit = Visit::of(&request);
    match visit.method {
        Method::GET => handle_return(&admin, &visit).await.unwrap_or_else(Page::into_response),
        _ => not_allowed("GET"),
    }
}

async fn handle_return(admin: &Admin, visit: &Visit) -> Result<Response, Page> {
    let provider = provider(admin)?;
    let (code, error) = (visit.query("code")?, visit.query("error")?);
    let (state, issuer) = (visit.query("state")?, visit.query("iss")?);
    let attempt = Attempt::of(admin, visit).filter(|attempt| attempt.is_named_by(state.as_deref()));
    let Some(attempt) = attempt else {
        record_denial(admin, visit, SIGN_IN_FAILED, StatusCode::BAD_REQUEST);
        return Err(Page::refused("This sign-in is unknown")
            .text("It was begun in another browser, more than ten minutes ago, or it has already ended.")
            .link("../sign-in", "Sign in again"));
    };
    // From here on the attempt has ended, whatever its outcome.
    let ended = |response: Response| Attempt::remove_cookie(admin, visit, response);
    if let Err(page) = count_attempt(admin, visit) {
        return Ok(ended(page.into_response()));
    }
    let identity = match (code, error) {
        (Some(code), None) if (1..=CODE_BYTES_MAX).contains(&code.len()) => {
            let code = Secret::new(code);
            provider.finish(&code, &attempt.verifier, &attempt.nonce, issuer.as_deref()).await
        }
        (None, Some(error)) => {
            let (error, description) = sanitize_error(&error, visit.query("error_description")?.as_deref());
            tracing::warn!(from = %visit.from(), error, description, "OpenID provider returned the browser with an error");
            let page = Page::refused("Sign-in was declined").text(&format!("The provider reported: {error}"));
            let page = description.iter().fold(page, |page, text| page.text(text)).link("../sign-in", "Try again");
            return Ok(ended(page.into_response()));
        }
        _ => {
            let page = Page::refused("This response is invalid").text("It has neither a code nor an error, or both.");
            return Ok(ended(page.into_response()));
        }
    };
    let outcome = identity.map_err(|error| {
        tracing::warn!(from = %visit.from(), %error, "sign-in at the OpenID provider failed");
        record_denial(admin, visit, SIGN_IN_FAILED, StatusCode::BAD_GATEWAY);
        provider_failed(&error)
    });
    let begun = outcome.and_then(|identity| begin_session(admin, visit, &provider, &identity, attempt.target.as_ref()));
    Ok(ended(begun.unwrap_or_else(Page::into_response)))
}

fn begin_session(
    admin: &Admin,
    visit: &Visit,
    provider: &OpenIdClient,
    identity: &Identity,
    target: Option<&TokenKey>,
) -> Result<Response, Page> {
    let user = user_name(&provider.settings.issuer, identity).ok_or_else(internal_error)?;
    let Some(role) = identity.role else {
        tracing::warn!(%user, subject = identity.subject, from = %visit.from(), "sign-in refused: no group has a role");
        record_denial(admin, visit, NO_ROLE, StatusCode::FORBIDDEN);
        let name = identity.display_name.as_deref().unwrap_or(&identity.subject);
        return Err(Page::new(StatusCode::FORBIDDEN, "No role")
            .text(&format!("You are {name} at the provider, but none of your groups has a role here."))
            .note("An administrator can add one of your groups to `admin.sign_in.roles`, or you to a group that is there."));
    };
    let cookie = session::begin_for_person(admin, (&user, role), provider, (&visit.headers, visit.addrs))
        .ok_or_else(internal_error)?;
    tracing::info!(%user, subject = identity.subject, role = role.as_str(), from = %visit.from(), "signed in");
    let mut response = see_other(&next_url(admin, visit, target))?.into_response();
    response.headers_mut().append(header::SET_COOKIE, cookie);
    Ok(response)
}

/// Where a person goes after signing in: to the link, directly if its host gets the session cookie too.
fn next_url(admin: &Admin, visit: &Visit, target: Option<&TokenKey>) -> String {
    let Some(key) = target else { return "result".to_owned() };
    let snapshot = admin.snapshot.load();
    let direct = snapshot.links.operator(key).filter(|url| host::names_host(url, &visit.headers));
    direct.map(String::from).unwrap_or_else(|| {
        let query = key.selection().map(|query| format!("?{query}")).unwrap_or_default();
        format!("connect/{}{query}", key.connection)
    })
}

async fn result(State(admin): State<Admin>, request: Request) -> Response {
    let visit = Visit::of(&request);
    match auth::authenticate(&admin, &Method::GET, &visit.headers, visit.addrs) {
        Some(user) => Page::new(StatusCode::OK, "Signed in").text(&format!(
            "You are signed in as {}, with the role {}.",
            user.name,
            user.role.as_str()
        )),
        None => Page::new(StatusCode::UNAUTHORIZED, "Not signed in").link("../sign-in", "Sign in"),
    }
    .into_response()
}

/// The user name of a person: readable, and unique by issuer and subject. No configured user can have the same one.
fn user_name(issuer: &str, identity: &Identity) -> Option<Name> {
    let display = identity.display_name.as_deref().unwrap_or(&identity.subject).to_lowercase();
    let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
    let display: String = display.chars().take(DISPLAY_CHARS_MAX).map(plain).collect();
    let digest = SecretDigest::of(format!("{issuer}\n{}", identity.subject).as_bytes());
    let unique: String = digest.as_bytes()[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    Name::parse(format!("{}-{unique}", display.trim_matches('-')).trim_start_matches('-'))
}

fn provider(admin: &Admin) -> Result<Arc<OpenIdClient>, Page> {
    admin.snapshot.load().sign_in.clone().ok_or_else(|| {
        Page::new(StatusCode::NOT_FOUND, "No sign-in here")
            .text("No OpenID provider is configured.")
            .note("An administrator can configure one under `admin.sign_in`.")
    })
}

fn count_attempt(admin: &Admin, visit: &Visit) -> Result<(), Page> {
    let limited = admin.sign_in_limiter.admit(visit.from().ip(), admin.clock.now().boot);
    limited.map_err(|wait| Page::too_many(wait, too_many_attempts()))
}

fn record_denial(admin: &Admin, visit: &Visit, code: &'static str, status: StatusCode) {
    record::denial(admin, visit.from(), &visit.method, visit.uri.path(), (None, code, status));
}

fn provider_failed(error: &SignInError) -> Page {
    Page::new(StatusCode::BAD_GATEWAY, "Sign-in failed")
        .text(&match error {
            SignInError::IdToken(error) => format!("The provider's ID token was refused: it {error}."),
            SignInError::OtherIssuer => "The response came from another provider than the configured one.".to_owned(),
            SignInError::Provider(failure) => format!("The provider did not complete the sign-in: {failure}"),
        })
        .link("../sign-in", "Try again")
        .note("If it keeps failing, ask an administrator to check `admin.sign_in`; the log has the reason.")
}

fn see_other(url: &str) -> Result<impl IntoResponse + use<>, Page> {
    let location = HeaderValue::try_from(url).map_err(|_| internal_error())?;
    Ok((StatusCode::SEE_OTHER, [(header::LOCATION, location)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_persons_user_name_is_valid_readable_and_unique() {
        let name = |display: Option<&str>, subject: &str, issuer: &str| {
            let identity =
                Identity { subject: subject.to_owned(), display_name: display.map(str::to_owned), role: None };
            user_name(issuer, &identity).unwrap().to_string()
        };
        let ann = name(Some("Ann.Smith@acme.test"), "1", "https://a.test");
        assert!(ann.starts_with("ann-smith-acme-test-") && ann.len() == 32, "{ann}");
        assert_ne!(ann, name(Some("Ann.Smith@acme.test"), "2", "https://a.test"));
        assert_ne!(ann, name(Some("Ann.Smith@acme.test"), "1", "https://b.test"));
        assert!(name(None, "ann", "i").starts_with("ann-"));
        for odd in ["", "é", "---", &"x".repeat(300), "\r\n"] {
            assert!(name(Some(odd), odd, "i").len() <= 63);
        }
    }
}
