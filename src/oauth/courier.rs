//! The HTTP client that oauth2 gets: it takes the form that oauth2 built, sends it our way and keeps the token.
//!
//! Not here: the requests themselves (`grant`).

use std::pin::Pin;
use std::sync::OnceLock;

use oauth2::basic::BasicErrorResponse;
use oauth2::{AsyncHttpClient, HttpRequest, HttpResponse, RequestTokenError};

use super::failure::Failure;
use super::form::without_client;
use super::{TokenEndpoint, TokenRequestKind, Whose, refused};
use crate::model::token::TokenSet;

/// What oauth2 reads in place of the token response, which `response::read` has taken: a token that is never used.
const PLACEHOLDER: &str = r#"{"access_token":"-","token_type":"bearer"}"#;

/// Serves one request.
pub struct Courier<'a> {
    endpoint: &'a TokenEndpoint,
    asked: TokenRequestKind,
    whose: Whose<'a>,
    delivered: OnceLock<TokenSet>,
}

/// How oauth2 reports a failed request.
pub type Failed = RequestTokenError<Failure, BasicErrorResponse>;

impl<'a> Courier<'a> {
    pub fn new(endpoint: &'a TokenEndpoint, asked: TokenRequestKind, whose: Whose<'a>) -> Courier<'a> {
        Courier { endpoint, asked, whose, delivered: OnceLock::new() }
    }

    /// The token, once oauth2 is done.
    pub fn delivered(self, outcome: Result<(), Failed>) -> Result<TokenSet, Failure> {
        if let Err(RequestTokenError::Request(failure)) = outcome {
            return Err(failure);
        }
        // Nothing delivered and no failure of ours: oauth2 could not even put the request together.
        self.delivered.into_inner().ok_or_else(|| refused("invalid_token_url"))
    }

    async fn carry(&self, request: HttpRequest) -> Result<HttpResponse, Failure> {
        let fields = without_client(request.body());
        let token = self.endpoint.in_time(self.endpoint.ask(self.asked, fields, self.whose)).await?;
        // A courier serves one request, so the cell is empty.
        let _ = self.delivered.set(token);
        Ok(HttpResponse::new(PLACEHOLDER.into()))
    }
}

impl<'c> AsyncHttpClient<'c> for Courier<'_> {
    type Error = Failure;
    // Boxed: the compiler cannot see that a closure's future is `Send` for every lifetime.
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, Failure>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.carry(request))
    }
}
