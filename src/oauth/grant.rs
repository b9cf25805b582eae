//! A grant as oauth2 builds it, and the fields of the form that comes out.
//!
//! Not here: client authentication (`client_auth`); oauth2 knows no secret and its form is taken apart again.
//! Holds: scope, audience and resource are left out when there is nothing to say (some servers refuse an empty `scope=`).

use oauth2::basic::BasicClient;
use oauth2::{
    AuthType, ClientId, EndpointNotSet, EndpointSet, RefreshToken as SentRefreshToken, ResourceOwnerPassword,
    ResourceOwnerUsername, Scope, TokenUrl,
};
use url::{Url, form_urlencoded};

use crate::model::connection::{Connection, Grant};
use crate::model::token::RefreshToken;

use super::{Courier, Failed};

/// oauth2's client with a token endpoint and nothing else.
pub type Client = BasicClient<EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

/// Names and values of a form, in order.
pub type Fields = Vec<(String, String)>;

pub fn client(client_id: &str, token_url: &Url) -> Client {
    BasicClient::new(ClientId::new(client_id.to_owned()))
        .set_auth_type(AuthType::RequestBody)
        .set_token_uri(TokenUrl::from_url(token_url.clone()))
}

/// The connection's own grant, with RFC 8707's `resource`. `None`: only a person can begin it.
pub async fn first(client: &Client, connection: &Connection, courier: &Courier<'_>) -> Option<Result<(), Failed>> {
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
        Grant::AuthorizationCode => return None,
    };
    Some(outcome)
}

/// RFC 6749 §6: the scopes stay as they were granted, so none are named.
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

fn scopes(connection: &Connection) -> impl Iterator<Item = Scope> {
    connection.scopes.iter().map(|scope| Scope::new(scope.clone()))
}

fn extras(connection: &Connection) -> impl Iterator<Item = (&str, &str)> {
    let audience = connection.audience.iter().map(|value| ("audience", value.as_str()));
    let resource = connection.resource.iter().map(|value| ("resource", value.as_str()));
    let params = connection.token_params.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    audience.chain(resource).chain(params)
}

/// oauth2's form as fields. The client's own fields are left out: `client_auth` alone says who the client is.
pub fn fields(form: &[u8]) -> Fields {
    form_urlencoded::parse(form)
        .filter(|(name, _)| name != "client_id" && name != "client_secret")
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect()
}
