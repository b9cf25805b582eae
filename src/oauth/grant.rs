//! The token requests: that of each grant, and a refresh.
//!
//! Not here: client authentication (`client_auth`); oauth2 gets no secret of the client. What a grant is (`model`).
//! Invariant: scope, audience and resource are left out where they are empty (some servers refuse an empty `scope=`).

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use oauth2::basic::BasicClient;
use oauth2::{
    AuthType, AuthorizationCode, ClientId, EndpointNotSet, EndpointSet, PkceCodeVerifier, RedirectUrl,
    RefreshToken as SentRefreshToken, ResourceOwnerPassword, ResourceOwnerUsername, Scope, TokenUrl,
};
use url::Url;

use super::assertion::Signer;
use super::courier::Courier;
use super::failure::Failure;
use super::form::{Fields, field};
use super::{CONSENT_REQUIRED, Consented, TokenEndpoint, TokenRequestKind, Whose, refused};
use crate::model::connection::{Connection, Grant, JwtAssertion, SubjectToken, TokenExchange};
use crate::model::secret::Secret;
use crate::model::token::{RefreshToken, Subject, TokenSet};

/// The grant needs the caller's own token, and there is none.
const NO_SUBJECT_TOKEN: &str = "subject_token_missing";

pub type Client = BasicClient<EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

/// oauth2 needs a token URL; `call` decides where a request goes.
pub fn client(client_id: &str, url: &Url) -> Client {
    BasicClient::new(ClientId::new(client_id.to_owned()))
        .set_auth_type(AuthType::RequestBody)
        .set_token_uri(TokenUrl::from_url(url.clone()))
}

/// What signs the assertion of the grant.
pub fn signer(grant: &Grant) -> Option<Signer> {
    match grant {
        Grant::JwtBearer(assertion) => Some(Signer::of_key(&assertion.key, &assertion.audience)),
        Grant::ClientCredentials
        | Grant::Password { .. }
        | Grant::Saml2Bearer { .. }
        | Grant::TokenExchange(_)
        | Grant::AuthorizationCode
        | Grant::DeviceCode => None,
    }
}

/// Requests a token by the connection's own grant. oauth2 builds the requests of RFC 6749.
pub async fn first(endpoint: &TokenEndpoint, whose: Whose<'_>) -> Result<TokenSet, Failure> {
    let connection = &endpoint.connection;
    let fields = match &connection.grant {
        Grant::ClientCredentials => return client_credentials(endpoint, whose).await,
        Grant::Password { username, password } => return with_password(endpoint, username, password, whose).await,
        Grant::AuthorizationCode => return authorization_code(endpoint, whose).await,
        Grant::JwtBearer(assertion) => return endpoint.in_time(jwt_bearer(endpoint, assertion, whose)).await,
        Grant::Saml2Bearer { assertion } => of_assertion(connection, saml2_assertion(assertion).expose()),
        Grant::TokenExchange(exchange) => {
            of_exchange(connection, exchange, whose).ok_or_else(|| refused(NO_SUBJECT_TOKEN))?
        }
        Grant::DeviceCode => match whose.consented {
            Some(Consented::Device { device_code }) => of_device(connection, device_code),
            Some(Consented::Code { .. }) | None => return Err(refused(CONSENT_REQUIRED)),
        },
    };
    endpoint.in_time(endpoint.ask(TokenRequestKind::FirstGrant, fields, whose)).await
}

/// RFC 6749 §4.4
async fn client_credentials(endpoint: &TokenEndpoint, whose: Whose<'_>) -> Result<TokenSet, Failure> {
    let courier = Courier::new(endpoint, TokenRequestKind::FirstGrant, whose);
    let request = endpoint.oauth.exchange_client_credentials().add_scopes(scopes(&endpoint.connection));
    let extras = extras(&endpoint.connection);
    let request = extras.fold(request, |request, (name, value)| request.add_extra_param(name, value));
    let outcome = request.request_async(&courier).await.map(drop);
    courier.delivered(outcome)
}

/// RFC 6749 §4.3
async fn with_password(
    endpoint: &TokenEndpoint,
    username: &str,
    password: &Secret,
    whose: Whose<'_>,
) -> Result<TokenSet, Failure> {
    let courier = Courier::new(endpoint, TokenRequestKind::FirstGrant, whose);
    let username = ResourceOwnerUsername::new(username.to_owned());
    let password = ResourceOwnerPassword::new(password.expose().to_owned());
    let request = endpoint.oauth.exchange_password(&username, &password).add_scopes(scopes(&endpoint.connection));
    let extras = extras(&endpoint.connection);
    let request = extras.fold(request, |request, (name, value)| request.add_extra_param(name, value));
    let outcome = request.request_async(&courier).await.map(drop);
    courier.delivered(outcome)
}

/// RFC 6749 §4.1.3, with the code that a person brought.
async fn authorization_code(endpoint: &TokenEndpoint, whose: Whose<'_>) -> Result<TokenSet, Failure> {
    let (code, verifier, redirect_uri) = match whose.consented {
        Some(Consented::Code { code, verifier, redirect_uri }) => (code, verifier, redirect_uri),
        Some(Consented::Device { .. }) | None => return Err(refused(CONSENT_REQUIRED)),
    };
    let courier = Courier::new(endpoint, TokenRequestKind::FirstGrant, whose);
    let redirect = RedirectUrl::new(redirect_uri.clone()).map_err(|_| refused("invalid_redirect_url"))?;
    let code = AuthorizationCode::new(code.expose().to_owned());
    let request = endpoint.oauth.exchange_code(code).set_redirect_uri(Cow::Owned(redirect));
    let request = match verifier {
        Some(verifier) => request.set_pkce_verifier(PkceCodeVerifier::new(verifier.expose().to_owned())),
        None => request,
    };
    let extras = extras(&endpoint.connection);
    let request = extras.fold(request, |request, (name, value)| request.add_extra_param(name, value));
    let outcome = request.request_async(&courier).await.map(drop);
    courier.delivered(outcome)
}

/// RFC 7523 §2.1: the audience may be the token URL, which has to be known first.
async fn jwt_bearer(endpoint: &TokenEndpoint, assertion: &JwtAssertion, whose: Whose<'_>) -> Result<TokenSet, Failure> {
    let connection = &endpoint.connection;
    let token_url = endpoint.token_url().await?;
    let signer = endpoint.signer.as_ref().ok_or_else(|| refused("assertion_not_signed"))?;
    let whom = (connection.client_id.as_str(), whose.subject.map(Subject::as_str));
    let signed = signer.grant_assertion(assertion, whom, &endpoint.moment(&token_url))?;
    endpoint.ask(TokenRequestKind::FirstGrant, of_assertion(connection, signed.expose()), whose).await
}

pub async fn refresh(endpoint: &TokenEndpoint, token: &RefreshToken, whose: Whose<'_>) -> Result<TokenSet, Failure> {
    let courier = Courier::new(endpoint, TokenRequestKind::Refresh, whose);
    let token = SentRefreshToken::new(token.expose().to_owned());
    let request = endpoint.oauth.exchange_refresh_token(&token);
    let extras = extras(&endpoint.connection);
    let request = extras.fold(request, |request, (name, value)| request.add_extra_param(name, value));
    let outcome = request.request_async(&courier).await.map(drop);
    courier.delivered(outcome)
}

/// RFC 7521 §4.1: the grants of an assertion.
fn of_assertion(connection: &Connection, assertion: &str) -> Fields {
    with_extras(connection, vec![field("assertion", assertion)])
}

/// RFC 7522 §2.1: base64url of the XML; what is no XML has been encoded already.
fn saml2_assertion(assertion: &Secret) -> Secret {
    let text = assertion.expose().trim();
    Secret::new(if text.starts_with('<') { BASE64_URL_SAFE_NO_PAD.encode(text) } else { text.to_owned() })
}

/// RFC 8693 §2.1; `None`: the token is the caller's, and there is none.
fn of_exchange(connection: &Connection, exchange: &TokenExchange, whose: Whose<'_>) -> Option<Fields> {
    let subject_token = match &exchange.subject_token {
        SubjectToken::Given(token) => token,
        SubjectToken::FromCaller => whose.token?,
    };
    let mut fields =
        vec![field("subject_token", subject_token.expose()), field("subject_token_type", &exchange.subject_token_type)];
    fields.extend(exchange.requested_token_type.as_ref().map(|requested| field("requested_token_type", requested)));
    if let Some(actor) = &exchange.actor {
        fields.push(field("actor_token", actor.token.expose()));
        fields.push(field("actor_token_type", &actor.token_type));
    }
    Some(with_extras(connection, fields))
}

/// RFC 8628 §3.4
fn of_device(connection: &Connection, device_code: &Secret) -> Fields {
    let mut fields =
        vec![field("grant_type", connection.grant.kind().wire_name()), field("device_code", device_code.expose())];
    fields.extend(extras(connection).map(|(name, value)| field(name, value)));
    fields
}

fn with_extras(connection: &Connection, mut fields: Fields) -> Fields {
    fields.insert(0, field("grant_type", connection.grant.kind().wire_name()));
    if !connection.scopes.is_empty() {
        fields.push(field("scope", &connection.scopes.join(" ")));
    }
    fields.extend(extras(connection).map(|(name, value)| field(name, value)));
    fields
}

fn scopes(connection: &Connection) -> impl Iterator<Item = Scope> {
    connection.scopes.iter().map(|scope| Scope::new(scope.clone()))
}

/// Audience and resource, which go with every request; then the token request's own.
fn extras(connection: &Connection) -> impl Iterator<Item = (&str, &str)> {
    let params = connection.token_params.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    whom(connection).chain(params)
}

/// For whom the token shall be.
pub fn whom(connection: &Connection) -> impl Iterator<Item = (&str, &str)> {
    let audience = connection.audience.iter().map(|value| ("audience", value.as_str()));
    audience.chain(connection.resource.iter().map(|value| ("resource", value.as_str())))
}
