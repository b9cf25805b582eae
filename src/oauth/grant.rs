//! A grant as oauth2 builds it, and the fields of the form that comes out.
//!
//! Not here: client authentication (`client_auth`); oauth2 knows no secret and its form is taken apart again.
//! Holds: scope, audience and resource are left out when there is nothing to say (some servers refuse an empty `scope=`).

use oauth2::basic::{BasicClient, BasicErrorResponse, BasicTokenResponse};
use oauth2::{AuthType, ClientCredentialsTokenRequest, ClientId, EndpointNotSet, EndpointSet, Scope, TokenUrl};
use url::{Url, form_urlencoded};

use crate::model::connection::Connection;

/// oauth2's client with a token endpoint and nothing else.
pub type Client = BasicClient<EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

/// Names and values of a form, in order.
pub type Fields = Vec<(String, String)>;

type ClientCredentials<'a> = ClientCredentialsTokenRequest<'a, BasicErrorResponse, BasicTokenResponse>;

pub fn client(client_id: &str, token_url: &Url) -> Client {
    BasicClient::new(ClientId::new(client_id.to_owned()))
        .set_auth_type(AuthType::RequestBody)
        .set_token_uri(TokenUrl::from_url(token_url.clone()))
}

/// RFC 6749 §4.4, with RFC 8707's `resource`.
pub fn client_credentials<'a>(client: &'a Client, connection: &'a Connection) -> ClientCredentials<'a> {
    let request = client.exchange_client_credentials().add_scopes(scopes(connection));
    extras(connection).fold(request, |request, (name, value)| request.add_extra_param(name, value))
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
