//! The HTTP client that oauth2 is given: sends each form of oauth2 through `call` and keeps the token set.
//!
//! Not here: the requests themselves (`grant`).

use std::pin::Pin;
use std::sync::OnceLock;

use oauth2::basic::BasicErrorResponse;
use oauth2::{AsyncHttpClient, HttpRequest, HttpResponse, RequestTokenError};

use super::failure::Failure;
use super::form::without_client;
use super::{TokenEndpoint, TokenRequestContext, TokenRequestKind, refused};
use crate::model::token::TokenSet;

/// The token response that oauth2 reads: a token that is never used. `response::read` has read the real one.
const PLACEHOLDER: &str = r#"{"access_token":"-","token_type":"bearer"}"#;

/// Serves one request.
pub struct Oauth2Adapter<'a> {
    endpoint: &'a TokenEndpoint,
    kind: TokenRequestKind,
    context: TokenRequestContext<'a>,
    token_set: OnceLock<TokenSet>,
}

/// How oauth2 reports a failed request.
pub type Oauth2Error = RequestTokenError<Failure, BasicErrorResponse>;

impl<'a> Oauth2Adapter<'a> {
    pub fn new(
        endpoint: &'a TokenEndpoint,
        kind: TokenRequestKind,
        context: TokenRequestContext<'a>,
    ) -> Oauth2Adapter<'a> {
        Oauth2Adapter { endpoint, kind, context, token_set: OnceLock::new() }
    }

    /// The token set, once oauth2 is done.
    pub fn into_token_set(self, outcome: Result<(), Oauth2Error>) -> Result<TokenSet, Failure> {
        if let Err(RequestTokenError::Request(failure)) = outcome {
            return Err(failure);
        }
        // Neither a token set nor a failure of ours: oauth2 could not build the request.
        self.token_set.into_inner().ok_or_else(|| refused("invalid_token_url"))
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, Failure> {
        let fields = without_client(request.body());
        let token = self.endpoint.within_timeout(self.endpoint.request_token(self.kind, fields, self.context)).await?;
        // An adapter serves one request, so the cell is empty.
        let _ = self.token_set.set(token);
        Ok(HttpResponse::new(PLACEHOLDER.into()))
    }
}

impl<'c> AsyncHttpClient<'c> for Oauth2Adapter<'_> {
    type Error = Failure;
    // Boxed: the compiler cannot see that a closure's future is `Send` for every lifetime.
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, Failure>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.send(request))
    }
}
