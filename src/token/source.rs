//! The source of tokens: a token endpoint, or a fake in tests.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::model::token::{RefreshToken, TokenSet};
use crate::oauth::{Failure, TokenEndpoint, TokenRequestContext};

/// Outcome of a token request.
pub type TokenFuture<'a> = Pin<Box<dyn Future<Output = Result<TokenSet, Failure>> + Send + 'a>>;

/// Outcome of a revocation request.
pub type RevocationFuture<'a> = Pin<Box<dyn Future<Output = Result<Revocation, Failure>> + Send + 'a>>;

/// Outcome of a revocation request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revocation {
    /// The server accepted the request; it does so for an unknown token, too (RFC 7009 §2.2).
    Revoked,
    /// The server has no revocation endpoint.
    NoEndpoint,
}

/// Issues, refreshes and revokes tokens.
pub trait TokenSource: Send + Sync {
    /// Requests a token with the connection's own grant.
    fn first_grant<'a>(&'a self, context: TokenRequestContext<'a>) -> TokenFuture<'a>;

    /// Spends a refresh token (RFC 6749 §6).
    fn refresh<'a>(&'a self, token: &'a RefreshToken, context: TokenRequestContext<'a>) -> TokenFuture<'a>;

    /// Revokes one token (RFC 7009).
    fn revoke<'a>(&'a self, token: &'a str, hint: &'static str) -> RevocationFuture<'a>;
}

impl TokenSource for Arc<TokenEndpoint> {
    fn first_grant<'a>(&'a self, context: TokenRequestContext<'a>) -> TokenFuture<'a> {
        Box::pin(TokenEndpoint::first_grant(self, context))
    }

    fn refresh<'a>(&'a self, token: &'a RefreshToken, context: TokenRequestContext<'a>) -> TokenFuture<'a> {
        Box::pin(TokenEndpoint::refresh(self, token, context))
    }

    fn revoke<'a>(&'a self, token: &'a str, hint: &'static str) -> RevocationFuture<'a> {
        Box::pin(async move {
            let had_endpoint = TokenEndpoint::revoke(self, token, hint).await?;
            Ok(if had_endpoint { Revocation::Revoked } else { Revocation::NoEndpoint })
        })
    }
}
