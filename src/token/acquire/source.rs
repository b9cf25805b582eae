//! Where tokens come from.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::model::token::{RefreshToken, TokenSet};
use crate::oauth::{Failure, TokenEndpoint, Whose};

pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<TokenSet, Failure>> + Send + 'a>>;

pub type Ending<'a> = Pin<Box<dyn Future<Output = Result<bool, Failure>> + Send + 'a>>;

/// Source of tokens: a token endpoint, or a fake in tests.
pub trait TokenSource: Send + Sync {
    fn first_grant<'a>(&'a self, whose: Whose<'a>) -> Answer<'a>;

    fn refresh<'a>(&'a self, token: &'a RefreshToken, whose: Whose<'a>) -> Answer<'a>;

    /// Revokes one token; `false`: the server has no endpoint for that.
    fn revoke<'a>(&'a self, token: &'a str, hint: &'static str) -> Ending<'a>;
}

impl TokenSource for Arc<TokenEndpoint> {
    fn first_grant<'a>(&'a self, whose: Whose<'a>) -> Answer<'a> {
        Box::pin(TokenEndpoint::first_grant(self, whose))
    }

    fn refresh<'a>(&'a self, token: &'a RefreshToken, whose: Whose<'a>) -> Answer<'a> {
        Box::pin(TokenEndpoint::refresh(self, token, whose))
    }

    fn revoke<'a>(&'a self, token: &'a str, hint: &'static str) -> Ending<'a> {
        Box::pin(TokenEndpoint::revoke(self, token, hint))
    }
}
