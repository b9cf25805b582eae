//! A grant's form: what oauth2 builds of the standard ones, and what it does not know.
//!
//! Not here: client authentication (`client_auth`); oauth2 knows no secret and its form is taken apart again.
//! Holds: scope, audience and resource are left out when there is nothing to say (some servers refuse an empty `scope=`).

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use oauth2::basic::BasicClient;
use oauth2::{
    AuthType, AuthorizationCode, ClientId, EndpointNotSet, EndpointSet, PkceCodeVerifier, RedirectUrl,
    RefreshToken as SentRefreshToken, ResourceOwnerPassword, ResourceOwnerUsername, Scope, TokenUrl,
};
use url::{Url, form_urlencoded};

use crate::model::connection::{Connection, Grant, SubjectToken, TokenExchange};
use crate::model::secret::Secret;
use crate::model::token::RefreshToken;

use super::{Consented, Courier, Failed, Whose};

pub type Client = BasicClient<EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

/// Names and values of a form, in order.
pub type Fields = Vec<(String, String)>;

/// `url` has to be there for oauth2; where the request goes is ours to say.
pub fn client(client_id: &str, url: &Url) -> Client {
    BasicClient::new(ClientId::new(client_id.to_owned()))
        .set_auth_type(AuthType::RequestBody)
        .set_token_uri(TokenUrl::from_url(url.clone()))
}

/// The grants that oauth2 knows: delivered by `courier`. `None`: it is none of them.
pub async fn standard(client: &Client, connection: &Connection, courier: &Courier<'_>) -> Option<Result<(), Failed>> {
    let outcome = match &connection.grant {
        Grant::ClientCredentials => {
            let request = client.exchange_client_credentials().add_scopes(scopes(connection));
            let request =
                extras(connection).fold(request, |request, (name, value)| request.add_extra_param(name, value));
            request.request_async(courier).await.map(drop)
        }
        Grant::Password { username, password } => {
            let username = ResourceOwnerUsername::new(username.clone());
            let password = ResourceOwnerPassword::new(password.expose().to_owned());
            let request = client.exchange_password(&username, &password).add_scopes(scopes(connection));
            let request =
                extras(connection).fold(request, |request, (name, value)| request.add_extra_param(name, value));
            request.request_async(courier).await.map(drop)
        }
        Grant::AuthorizationCode => {
            let Some(Consented::Code { code, verifier, redirect_uri }) = courier.whose.consented else { return None };
            let request = client
                .exchange_code(AuthorizationCode::new(code.expose().to_owned()))
                .set_redirect_uri(Cow::Owned(RedirectUrl::new(redirect_uri.clone()).ok()?));
            let request = match verifier {
                Some(verifier) => request.set_pkce_verifier(PkceCodeVerifier::new(verifier.expose().to_owned())),
                None => request,
            };
            let request =
                extras(connection).fold(request, |request, (name, value)| request.add_extra_param(name, value));
            request.request_async(courier).await.map(drop)
        }
        Grant::JwtBearer(_) | Grant::Saml2Bearer { .. } | Grant::TokenExchange(_) | Grant::DeviceCode => return None,
    };
    Some(outcome)
}

pub async fn refresh(
    client: &Client,
    connection: &Connection,
    token: &RefreshToken,
    courier: &Courier<'_>,
) -> Result<(), Failed> {
    let token = SentRefreshToken::new(token.expose().to_owned());
    let request = client.exchange_refresh_token(&token);
    let request = extras(connection).fold(request, |request, (name, value)| request.add_extra_param(name, value));
    request.request_async(courier).await.map(drop)
}

/// RFC 7521 §4.1: the grants of an assertion.
pub fn of_assertion(connection: &Connection, assertion: &str) -> Fields {
    with_extras(connection, vec![field("assertion", assertion)])
}

/// RFC 7522 §2.1: base64url of the XML; what is no XML has been encoded already.
pub fn saml2_assertion(assertion: &Secret) -> Secret {
    let text = assertion.expose().trim();
    Secret::new(if text.starts_with('<') { BASE64_URL_SAFE_NO_PAD.encode(text) } else { text.to_owned() })
}

/// RFC 8693 §2.1; `None`: the token is the caller's, and there is none.
pub fn of_exchange(connection: &Connection, exchange: &TokenExchange, whose: Whose<'_>) -> Option<Fields> {
    let subject_token = match &exchange.subject_token {
        SubjectToken::Given(token) => token,
        SubjectToken::OfCaller => whose.token?,
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
pub fn of_device(connection: &Connection, device_code: &Secret) -> Fields {
    let mut fields =
        vec![field("grant_type", Grant::DeviceCode.wire_name()), field("device_code", device_code.expose())];
    fields.extend(extras(connection).map(|(name, value)| field(name, value)));
    fields
}

fn with_extras(connection: &Connection, mut fields: Fields) -> Fields {
    fields.insert(0, field("grant_type", connection.grant.wire_name()));
    if !connection.scopes.is_empty() {
        fields.push(field("scope", &connection.scopes.join(" ")));
    }
    fields.extend(extras(connection).map(|(name, value)| field(name, value)));
    fields
}

pub fn field(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
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

/// The fields of a form less what `client_auth` says in its own way.
pub fn fields(form: &[u8]) -> Fields {
    form_urlencoded::parse(form)
        .filter(|(name, _)| name != "client_id" && name != "client_secret")
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect()
}
