//! The words of keys whose value is one of a few.

use crate::config::reading::Words;
use crate::model::connection::*;

impl Words for GrantKind {
    fn words() -> Vec<(&'static str, GrantKind)> {
        GrantKind::ALL.iter().map(|kind| (kind.as_str(), *kind)).collect()
    }
}

#[derive(Clone, Copy, PartialEq)]
pub enum SendCredentials {
    Body,
    Basic,
    PrivateKeyJwt,
    ClientSecretJwt,
    Tls,
    None,
}

impl Words for SendCredentials {
    fn words() -> Vec<(&'static str, SendCredentials)> {
        vec![
            ("body", SendCredentials::Body),
            ("basic", SendCredentials::Basic),
            ("private_key_jwt", SendCredentials::PrivateKeyJwt),
            ("client_secret_jwt", SendCredentials::ClientSecretJwt),
            ("tls", SendCredentials::Tls),
            ("none", SendCredentials::None),
        ]
    }
}

impl SendCredentials {
    pub fn name(self) -> &'static str {
        Self::words().into_iter().find(|(_, send)| *send == self).map_or("", |(name, _)| name)
    }

    pub fn has_secret(self) -> bool {
        match self {
            Self::Body | Self::Basic | Self::ClientSecretJwt => true,
            Self::PrivateKeyJwt | Self::Tls | Self::None => false,
        }
    }

    pub fn has_assertion(self) -> bool {
        match self {
            Self::PrivateKeyJwt | Self::ClientSecretJwt => true,
            Self::Body | Self::Basic | Self::Tls | Self::None => false,
        }
    }
}

impl Words for BasicEncoding {
    fn words() -> Vec<(&'static str, BasicEncoding)> {
        vec![("form", BasicEncoding::Form), ("raw", BasicEncoding::Raw)]
    }
}

impl Words for Pkce {
    fn words() -> Vec<(&'static str, Pkce)> {
        vec![("S256", Pkce::S256), ("plain", Pkce::Plain), ("none", Pkce::None)]
    }
}

impl Words for RequestEncoding {
    fn words() -> Vec<(&'static str, RequestEncoding)> {
        vec![("form", RequestEncoding::Form), ("json", RequestEncoding::Json), ("query", RequestEncoding::Query)]
    }
}

impl Words for ResponseEncoding {
    fn words() -> Vec<(&'static str, ResponseEncoding)> {
        vec![("json", ResponseEncoding::Json), ("form", ResponseEncoding::Form)]
    }
}

impl Words for TimeUnit {
    fn words() -> Vec<(&'static str, TimeUnit)> {
        vec![("s", TimeUnit::Seconds), ("m", TimeUnit::Minutes), ("ms", TimeUnit::Milliseconds)]
    }
}

impl Words for Tokens {
    fn words() -> Vec<(&'static str, Tokens)> {
        vec![("shared", Tokens::Shared), ("per_subject", Tokens::PerSubject)]
    }
}

impl Words for Existing {
    fn words() -> Vec<(&'static str, Existing)> {
        vec![("overwrite", Existing::Overwrite), ("keep", Existing::Keep), ("refuse", Existing::Refuse)]
    }
}

impl Words for WithoutToken {
    fn words() -> Vec<(&'static str, WithoutToken)> {
        vec![("fail", WithoutToken::Fail), ("forward", WithoutToken::Forward)]
    }
}

impl Words for Thumbprint {
    fn words() -> Vec<(&'static str, Thumbprint)> {
        vec![("x5t", Thumbprint::Sha1), ("x5t#S256", Thumbprint::Sha256)]
    }
}

/// Beside the URL of a proxy.
impl Words for ServerProxy {
    fn words() -> Vec<(&'static str, ServerProxy)> {
        vec![("inherit", ServerProxy::Inherit), ("none", ServerProxy::Direct)]
    }
}

impl Words for Algorithm {
    fn words() -> Vec<(&'static str, Algorithm)> {
        Algorithm::ALL.into_iter().map(|algorithm| (algorithm.as_str(), algorithm)).collect()
    }
}

/// An algorithm that signs with a private key.
#[derive(Debug, Clone, Copy)]
pub struct SigningAlgorithm(pub Algorithm);

impl Words for SigningAlgorithm {
    fn words() -> Vec<(&'static str, SigningAlgorithm)> {
        let all = Algorithm::words().into_iter().filter(|(_, algorithm)| !algorithm.is_symmetric());
        all.map(|(word, algorithm)| (word, SigningAlgorithm(algorithm))).collect()
    }
}

/// An algorithm whose key is a secret that both sides have.
#[derive(Debug, Clone, Copy)]
pub struct MacAlgorithm(pub Algorithm);

impl Words for MacAlgorithm {
    fn words() -> Vec<(&'static str, MacAlgorithm)> {
        let all = Algorithm::words().into_iter().filter(|(_, algorithm)| algorithm.is_symmetric());
        all.map(|(word, algorithm)| (word, MacAlgorithm(algorithm))).collect()
    }
}

/// `subject_token: {from: caller}`
#[derive(Debug, Clone, Copy)]
pub struct FromCaller;

impl Words for FromCaller {
    fn words() -> Vec<(&'static str, FromCaller)> {
        vec![("caller", FromCaller)]
    }
}

/// `inject: none`
#[derive(Debug, Clone, Copy)]
pub struct Nowhere;

impl Words for Nowhere {
    fn words() -> Vec<(&'static str, Nowhere)> {
        vec![("none", Nowhere)]
    }
}

/// `strip: known`
#[derive(Debug, Clone, Copy)]
pub struct Known;

impl Words for Known {
    fn words() -> Vec<(&'static str, Known)> {
        vec![(KNOWN, Known)]
    }
}
