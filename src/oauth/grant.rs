//! Token requests: one for each grant, and the refresh.
//!
//! Invariants: empty scope, audience and resource are left out (some servers refuse an empty `scope=`); oauth2 gets no
//! client secret.
//! Not here: client authentication (`client_auth`), the definition of a grant (`model`).

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
use super::failure::Failure;
use super::form::{Fields, field};
use super::oauth2_adapter::Oauth2Adapter;
use super::{CONSENT_REQUIRED, ConsentGrant, TokenEndpoint, TokenRequestContext, TokenRequestKind, refused};
use crate::model::connection::{Connection, Grant, JwtAssertion, SubjectToken, TokenExchange};
use crate::model::secret::Secret;
use crate::model::token::{RefreshToken, Subject, TokenSet};

/// Error code if the grant needs the caller's own token and the caller sent none.
const NO_SUBJECT_TOKEN: &str = "subject_token_missing";

pub type Client = BasicClient<EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

/// oauth2 needs a token URL; `call` decides where the request is sent.
pub fn client(client_id: &str, url: &Url) -> Client {
    BasicClient::new(ClientId::new(client_id.to_owned()))
        .set_auth_type(AuthType::RequestBody)
        .set_token_uri(TokenUrl::from_url(url.clone()))
}

/// Signer of the grant's assertion.
pub fn signer(grant: &Grant) -> Option<Signer> {
    match grant {
        Grant::JwtBearer(assertion) => Some(Signer::from_key(&assertion.key, &assertion.audience)),
        Grant::ClientCredentials
        | Grant::Password { .. }
        | Grant::Saml2Bearer { .. }
        | Grant::TokenExchange(_)
        | Grant::AuthorizationCode
        | Grant::DeviceCode => None,
    }
}

/// Requests a token by the connection's own grant. oauth2 builds the requests of RFC 6749.
pub async fn first(endpoint: &TokenEndpoint, context: TokenRequestContext<'_>) -> Result<TokenSet, Failure> {
    let connection = &endpoint.connection;
    let fields = match &connection.grant {
        Grant::ClientCredentials => return client_credentials(endpoint, context).await,
        Grant::Password { username, password } => return self::password(endpoint, username, password, context).await,
        Grant::AuthorizationCode => return authorization_code(endpoint, context).await,
        Grant::JwtBearer(assertion) => return endpoint.within_timeout(jwt_bearer(endpoint, assertion, context)).await,
        Grant::Saml2Bearer { assertion } => assertion_fields(connection, saml2_assertion(assertion).expose()),
        Grant::TokenExchange(exchange) => {
            exchange_fields(connection, exchange, context).ok_or_else(|| refused(NO_SUBJECT_TOKEN))?
        }
        Grant::DeviceCode => match context.consent_grant {
            Some(ConsentGrant::Device { device_code }) => device_fields(connection, device_code),
            Some(ConsentGrant::Code { .. }) | None => return Err(refused(CONSENT_REQUIRED)),
        },
    };
    endpoint.within_timeout(endpoint.request_token(TokenRequestKind::FirstGrant, fields, context)).await
}

/// RFC 6749 §4.4
async fn client_credentials(endpoint: &TokenEndpoint, context: TokenRequestContext<'_>) -> Result<TokenSet, Failure> {
    let adapter = Oauth2Adapter::new(endpoint, TokenRequestKind::FirstGrant, context);
    let request = endpoint.oauth.exchange_client_credentials().add_scopes(scopes(&endpoint.connection));
    let extra_params = extra_params(&endpoint.connection);
    let request = extra_params.fold(request, |request, (name, value)| request.add_extra_param(name, value));
    let outcome = request.request_async(&adapter).await.map(drop);
    adapter.into_token_set(outcome)
}

/// RFC 6749 §4.3
async fn password(
    endpoint: &TokenEndpoint,
    username: &str,
    password: &Secret,
    context: TokenRequestContext<'_>,
) -> Result<TokenSet, Failure> {
    let adapter = Oauth2Adapter::new(endpoint, TokenRequestKind::FirstGrant, context);
    let username = ResourceOwnerUsername::new(username.to_owned());
    let password = ResourceOwnerPassword::new(password.expose().to_owned());
    let request = endpoint.oauth.exchange_password(&username, &password).add_scopes(scopes(&endpoint.connection));
    let extra_params = extra_params(&endpoint.connection);
    let request = extra_params.fold(request, |request, (name, value)| request.add_extra_param(name, value));
    let outcome = request.request_async(&adapter).await.map(drop);
    adapter.into_token_set(outcome)
}

/// RFC 6749 §4.1.3
async fn authorization_code(endpoint: &TokenEndpoint, context: TokenRequestContext<'_>) -> Result<TokenSet, Failure> {
    let (code, verifier, redirect_uri) = match context.consent_grant {
        Some(ConsentGrant::Code { code, verifier, redirect_uri }) => (code, verifier, redirect_uri),
        Some(ConsentGrant::Device { .. }) | None => return Err(refused(CONSENT_REQUIRED)),
    };
    let adapter = Oauth2Adapter::new(endpoint, TokenRequestKind::FirstGrant, context);
    let redirect = RedirectUrl::new(redirect_uri.clone()).map_err(|_| refused("invalid_redirect_url"))?;
    let code = AuthorizationCode::new(code.expose().to_owned());
    let request = endpoint.oauth.exchange_code(code).set_redirect_uri(Cow::Owned(redirect));
    let request = match verifier {
        Some(verifier) => request.set_pkce_verifier(PkceCodeVerifier::new(verifier.expose().to_owned())),
        None => request,
    };
    let extra_params = extra_params(&endpoint.connection);
    let request = extra_params.fold(request, |request, (name, value)| request.add_extra_param(name, value));
    let outcome = request.request_async(&adapter).await.map(drop);
    adapter.into_token_set(outcome)
}

/// RFC 7523 §2.1. The audience may be the token URL, which has to be known before the assertion is signed.
async fn jwt_bearer(
    endpoint: &TokenEndpoint,
    assertion: &JwtAssertion,
    context: TokenRequestContext<'_>,
) -> Result<TokenSet, Failure> {
    let connection = &endpoint.connection;
    let token_url = endpoint.token_url().await?;
    let signer = endpoint.signer.as_ref().ok_or_else(|| refused("assertion_not_signed"))?;
    let names = (connection.client_id.as_str(), context.subject.map(Subject::as_str));
    let signed = signer.grant_assertion(assertion, names, &endpoint.assertion_context(&token_url))?;
    endpoint.request_token(TokenRequestKind::FirstGrant, assertion_fields(connection, signed.expose()), context).await
}

pub async fn refresh(
    endpoint: &TokenEndpoint,
    token: &RefreshToken,
    context: TokenRequestContext<'_>,
) -> Result<TokenSet, Failure> {
    let adapter = Oauth2Adapter::new(endpoint, TokenRequestKind::Refresh, context);
    let token = SentRefreshToken::new(token.expose().to_owned());
    let request = endpoint.oauth.exchange_refresh_token(&token);
    let extra_params = extra_params(&endpoint.connection);
    let request = extra_params.fold(request, |request, (name, value)| request.add_extra_param(name, value));
    let outcome = request.request_async(&adapter).await.map(drop);
    adapter.into_token_set(outcome)
}

/// RFC 7521 §4.1: both assertion grants.
fn assertion_fields(connection: &Connection, assertion: &str) -> Fields {
    grant_fields(connection, vec![field("assertion", assertion)])
}

/// RFC 7522 §2.1: base64url of the XML. Text that is not XML is assumed to be encoded already.
fn saml2_assertion(assertion: &Secret) -> Secret {
    let text = assertion.expose().trim();
    Secret::new(if text.starts_with('<') { BASE64_URL_SAFE_NO_PAD.encode(text) } else { text.to_owned() })
}

/// RFC 8693 §2.1; `None`: the subject token is the caller's own, and the caller sent none.
fn exchange_fields(
    connection: &Connection,
    exchange: &TokenExchange,
    context: TokenRequestContext<'_>,
) -> Option<Fields> {
    let subject_token = match &exchange.subject_token {
        SubjectToken::Given(token) => token,
        SubjectToken::FromCaller => context.caller_token?,
    };
    let mut fields =
        vec![field("subject_token", subject_token.expose()), field("subject_token_type", &exchange.subject_token_type)];
    fields.extend(exchange.requested_token_type.as_ref().map(|requested| field("requested_token_type", requested)));
    if let Some(actor) = &exchange.actor {
        fields.push(field("actor_token", actor.token.expose()));
        fields.push(field("actor_token_type", &actor.token_type));
    }
    Some(grant_fields(connection, fields))
}

/// RFC 8628 §3.4
fn device_fields(connection: &Connection, device_code: &Secret) -> Fields {
    let mut fields =
        vec![field("grant_type", connection.grant.kind().wire_name()), field("device_code", device_code.expose())];
    fields.extend(extra_params(connection).map(|(name, value)| field(name, value)));
    fields
}

fn grant_fields(connection: &Connection, mut fields: Fields) -> Fields {
    fields.insert(0, field("grant_type", connection.grant.kind().wire_name()));
    if !connection.scopes.is_empty() {
        fields.push(field("scope", &connection.scopes.join(" ")));
    }
    fields.extend(extra_params(connection).map(|(name, value)| field(name, value)));
    fields
}

fn scopes(connection: &Connection) -> impl Iterator<Item = Scope> {
    connection.scopes.iter().map(|scope| Scope::new(scope.clone()))
}

/// Audience and resource, which every request carries, then `token_params`.
fn extra_params(connection: &Connection) -> impl Iterator<Item = (&str, &str)> {
    let params = connection.token_params.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    audience_params(connection).chain(params)
}

/// The resource server that the token is for.
pub fn audience_params(connection: &Connection) -> impl Iterator<Item = (&str, &str)> {
    let audience = connection.audience.iter().map(|value| ("audience", value.as_str()));
    audience.chain(connection.resource.iter().map(|value| ("resource", value.as_str())))
}
