//! Keywords of the keys whose value is one of a fixed set.

use crate::config::reading::Keyword;
use crate::model::connection::*;

impl Keyword for GrantKind {
    fn keywords() -> Vec<(&'static str, GrantKind)> {
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

impl Keyword for SendCredentials {
    fn keywords() -> Vec<(&'static str, SendCredentials)> {
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
        Self::keywords().into_iter().find(|(_, send)| *send == self).map_or("", |(name, _)| name)
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

impl Keyword for BasicEncoding {
    fn keywords() -> Vec<(&'static str, BasicEncoding)> {
        vec![("form", BasicEncoding::Form), ("raw", BasicEncoding::Raw)]
    }
}

impl Keyword for Pkce {
    fn keywords() -> Vec<(&'static str, Pkce)> {
        vec![("S256", Pkce::S256), ("plain", Pkce::Plain), ("none", Pkce::None)]
    }
}

impl Keyword for RequestEncoding {
    fn keywords() -> Vec<(&'static str, RequestEncoding)> {
        vec![("form", RequestEncoding::Form), ("json", RequestEncoding::Json), ("query", RequestEncoding::Query)]
    }
}

impl Keyword for ResponseEncoding {
    fn keywords() -> Vec<(&'static str, ResponseEncoding)> {
        vec![("json", ResponseEncoding::Json), ("form", ResponseEncoding::Form)]
    }
}

impl Keyword for TimeUnit {
    fn keywords() -> Vec<(&'static str, TimeUnit)> {
        vec![("s", TimeUnit::Seconds), ("m", TimeUnit::Minutes), ("ms", TimeUnit::Milliseconds)]
    }
}

impl Keyword for Tokens {
    fn keywords() -> Vec<(&'static str, Tokens)> {
        vec![("shared", Tokens::Shared), ("per_subject", Tokens::PerSubject)]
    }
}

impl Keyword for Existing {
    fn keywords() -> Vec<(&'static str, Existing)> {
        vec![("overwrite", Existing::Overwrite), ("keep", Existing::Keep), ("refuse", Existing::Refuse)]
    }
}

impl Keyword for WithoutToken {
    fn keywords() -> Vec<(&'static str, WithoutToken)> {
        vec![("fail", WithoutToken::Fail), ("forward", WithoutToken::Forward)]
    }
}

impl Keyword for Thumbprint {
    fn keywords() -> Vec<(&'static str, Thumbprint)> {
        vec![("x5t", Thumbprint::Sha1), ("x5t#S256", Thumbprint::Sha256)]
    }
}

/// In addition to the URL of a proxy.
impl Keyword for ServerProxy {
    fn keywords() -> Vec<(&'static str, ServerProxy)> {
        vec![("inherit", ServerProxy::Inherit), ("none", ServerProxy::Direct)]
    }
}

impl Keyword for Algorithm {
    fn keywords() -> Vec<(&'static str, Algorithm)> {
        Algorithm::ALL.into_iter().map(|algorithm| (algorithm.as_str(), algorithm)).collect()
    }
}

/// An algorithm that signs with a private key.
#[derive(Debug, Clone, Copy)]
pub struct SigningAlgorithm(pub Algorithm);

impl Keyword for SigningAlgorithm {
    fn keywords() -> Vec<(&'static str, SigningAlgorithm)> {
        let all = Algorithm::keywords().into_iter().filter(|(_, algorithm)| !algorithm.is_symmetric());
        all.map(|(keyword, algorithm)| (keyword, SigningAlgorithm(algorithm))).collect()
    }
}

/// An algorithm whose key is a shared secret.
#[derive(Debug, Clone, Copy)]
pub struct MacAlgorithm(pub Algorithm);

impl Keyword for MacAlgorithm {
    fn keywords() -> Vec<(&'static str, MacAlgorithm)> {
        let all = Algorithm::keywords().into_iter().filter(|(_, algorithm)| algorithm.is_symmetric());
        all.map(|(keyword, algorithm)| (keyword, MacAlgorithm(algorithm))).collect()
    }
}

/// `subject_token: {from: caller}`
#[derive(Debug, Clone, Copy)]
pub struct FromCaller;

impl Keyword for FromCaller {
    fn keywords() -> Vec<(&'static str, FromCaller)> {
        vec![("caller", FromCaller)]
    }
}

/// `accessible_from: application`
#[derive(Debug, Clone, Copy)]
pub struct SameApplication;

impl Keyword for SameApplication {
    fn keywords() -> Vec<(&'static str, SameApplication)> {
        vec![("application", SameApplication)]
    }
}

/// `inject: none`
#[derive(Debug, Clone, Copy)]
pub struct Nowhere;

impl Keyword for Nowhere {
    fn keywords() -> Vec<(&'static str, Nowhere)> {
        vec![("none", Nowhere)]
    }
}

/// `strip: known`
#[derive(Debug, Clone, Copy)]
pub struct Known;

impl Keyword for Known {
    fn keywords() -> Vec<(&'static str, Known)> {
        vec![(KNOWN, Known)]
    }
}
