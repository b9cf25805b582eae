//! Client authentication: one token request that tells a wrong secret from a client that works.
//!
//! Invariant: only a grant that costs no person anything is sent for real; for all others, the code or the refresh token
//! is made up, so that a server which accepts the client refuses the grant (RFC 6749 §5.2: `invalid_grant`).

use super::{Check, described};
use crate::model::connection::{Connection, GrantKind, Pkce, Tokens};
use crate::model::secret::Secret;
use crate::model::token::{RefreshToken, TokenSet};
use crate::oauth::failure::{Failure, Refusal};
use crate::oauth::{ConsentGrant, TokenEndpoint, TokenRequestContext};

pub const NAME: &str = "client";
const REDIRECT_DEFAULT: &str = "http://localhost/oauth/callback";
const BOGUS_PREFIX: &str = "keybearer-preflight-";
/// RFC 7636 §4.1: 43 to 128 characters.
const BOGUS_VERIFIER_CHARS: usize = 43;

/// Error codes that refuse the client: those of OAuth, and of Salesforce, GitHub and Slack.
const CLIENT_REFUSED: [&str; 6] = [
    "invalid_client",
    "http_401",
    "invalid_client_id",
    "incorrect_client_credentials",
    "bad_client_secret",
    "bad_client_id",
];
/// Error codes that refuse only the made-up code or token, after the client was accepted.
const GRANT_REFUSED: [&str; 7] = [
    "invalid_grant",
    "expired_token",
    "bad_verification_code",
    "invalid_code",
    "invalid_refresh_token",
    "bad_refresh_token",
    "expired_refresh_token",
];

/// What the token request presents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    RealGrant,
    BogusCode,
    BogusDeviceCode,
    BogusRefreshToken,
}

impl Probe {
    fn of(connection: &Connection) -> Probe {
        match connection.grant.kind() {
            GrantKind::ClientCredentials => Probe::RealGrant,
            // An assertion for a subject needs the subject.
            GrantKind::JwtBearer if connection.tokens == Tokens::Shared => Probe::RealGrant,
            GrantKind::AuthorizationCode => Probe::BogusCode,
            GrantKind::DeviceCode => Probe::BogusDeviceCode,
            // A password may lock the account, a signed assertion may work only once.
            GrantKind::Password | GrantKind::JwtBearer | GrantKind::Saml2Bearer | GrantKind::TokenExchange => {
                Probe::BogusRefreshToken
            }
        }
    }

    fn what(self) -> &'static str {
        match self {
            Probe::RealGrant => "the grant",
            Probe::BogusCode => "a bogus code",
            Probe::BogusDeviceCode => "a bogus device code",
            Probe::BogusRefreshToken => "a bogus refresh token",
        }
    }
}

pub async fn check(endpoint: &TokenEndpoint, callback: Option<&str>) -> Check {
    let (connection, probe) = (&endpoint.connection, Probe::of(&endpoint.connection));
    let bogus = || Secret::new(format!("{BOGUS_PREFIX}{}", random(24)));
    let with = |grant: &ConsentGrant| {
        let grant = grant.clone();
        async move {
            let context = TokenRequestContext { consent_grant: Some(&grant), ..TokenRequestContext::default() };
            endpoint.first_grant(context).await
        }
    };
    let result = match probe {
        Probe::RealGrant => endpoint.first_grant(TokenRequestContext::default()).await,
        Probe::BogusCode => {
            let redirect_uri = connection.authorization.redirect_url.as_deref().or(callback);
            let grant = ConsentGrant::Code {
                code: bogus(),
                verifier: match connection.authorization.pkce {
                    Pkce::None => None,
                    Pkce::S256 | Pkce::Plain => Some(Secret::new(random(BOGUS_VERIFIER_CHARS))),
                },
                redirect_uri: redirect_uri.unwrap_or(REDIRECT_DEFAULT).to_owned(),
            };
            with(&grant).await
        }
        Probe::BogusDeviceCode => with(&ConsentGrant::Device { device_code: bogus() }).await,
        Probe::BogusRefreshToken => {
            let Some(token) = RefreshToken::parse(bogus().expose()) else {
                return Check::skipped(NAME, "no bogus refresh token could be made");
            };
            endpoint.refresh(&token, TokenRequestContext::default()).await
        }
    };
    judge(connection, probe, &result)
}

fn random(count: usize) -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(count).collect()
}

fn judge(connection: &Connection, probe: Probe, result: &Result<TokenSet, Failure>) -> Check {
    let what = probe.what();
    match result {
        Ok(_) if probe == Probe::RealGrant => Check::ok(NAME, "the server issued a token"),
        Ok(_) => Check::failed(
            NAME,
            format!("the server accepts {what}: it issued a token for it"),
            "check that the URLs are those of the real authorization server; this one issues tokens for anything",
        ),
        Err(Failure::Permanent(refusal)) => refused(connection, probe, refusal),
        Err(Failure::Script { message, .. }) => {
            Check::failed(NAME, format!("the script failed: {message}"), "correct the connection's `script`")
        }
        Err(failure) if failure.may_be_client_refusal() => client_refused(connection, &described(failure)),
        Err(failure) if failure.is_wrong_endpoint() => {
            let detail = format!("the token URL is not that of a token endpoint ({})", described(failure));
            Check::failed(NAME, detail, "correct `token_url`")
        }
        Err(failure) => {
            let detail = format!("the token endpoint sent no usable response ({})", described(failure));
            Check::failed(NAME, detail, "check `token_url`, and the server")
        }
    }
}

fn refused(connection: &Connection, probe: Probe, refusal: &Refusal) -> Check {
    let (what, grant) = (probe.what(), connection.grant.as_str());
    let own_grant = probe != Probe::BogusRefreshToken;
    match refusal.error.as_str() {
        code if CLIENT_REFUSED.contains(&code) => client_refused(connection, &refusal.to_string()),
        code if probe != Probe::RealGrant && GRANT_REFUSED.contains(&code) => {
            Check::ok(NAME, format!("the server accepts the client, and refuses {what} ({code})"))
        }
        // RFC 6749 §5.2: the client is authenticated.
        "unauthorized_client" if !own_grant => {
            Check::ok(NAME, "the server accepts the client, and refuses it refresh tokens (unauthorized_client)")
        }
        "unauthorized_client" | "unsupported_grant_type" if own_grant => Check::failed(
            NAME,
            format!("the server refuses the client the grant {grant}: {refusal}"),
            "have the grant permitted for this client at the server, or set another `grant`",
        ),
        "invalid_scope" if probe == Probe::RealGrant => Check::failed(
            NAME,
            format!("the server refuses the scopes: {refusal}"),
            "correct `scopes`, or have them permitted for this client at the server",
        ),
        _ if probe == Probe::RealGrant => Check::failed(
            NAME,
            format!("the server refuses the grant {grant}: {refusal}"),
            "correct the connection, or the client's registration at the server",
        ),
        _ => Check::warning(
            NAME,
            format!("the server refuses {what} in a way that leaves open whether the client works: {refusal}"),
            "connect an account, or compare the error with the server's documentation",
        ),
    }
}

fn client_refused(connection: &Connection, why: &str) -> Check {
    let method = connection.client_auth.as_str();
    Check::failed(
        NAME,
        format!("the server does not accept the client: {why}"),
        format!(
            "correct `client_id` and the client's secret or key, or how they are sent (`send_credentials: {method}`)"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::super::CheckOutcome;
    use super::*;

    #[test]
    fn an_error_of_the_server_is_judged_by_what_was_sent() {
        let check = |probe: Probe, code: &str, outcome: CheckOutcome| {
            let result = Err(Failure::Permanent(Refusal::from_code(code)));
            let found = judge(&Connection::sample("crm"), probe, &result);
            assert_eq!(found.outcome, outcome, "{probe:?} {code}: {found:?}");
        };
        use CheckOutcome::{Failed, Ok, Warning};
        for probe in [Probe::BogusCode, Probe::BogusDeviceCode, Probe::BogusRefreshToken] {
            check(probe, "invalid_grant", Ok);
            check(probe, "invalid_request", Warning);
        }
        check(Probe::RealGrant, "invalid_grant", Failed);
        check(Probe::RealGrant, "invalid_scope", Failed);
        for probe in [Probe::RealGrant, Probe::BogusCode, Probe::BogusDeviceCode, Probe::BogusRefreshToken] {
            check(probe, "invalid_client", Failed);
        }
        check(Probe::BogusCode, "unauthorized_client", Failed);
        check(Probe::BogusRefreshToken, "unauthorized_client", Ok);
        check(Probe::BogusRefreshToken, "unsupported_grant_type", Warning);
    }
}
