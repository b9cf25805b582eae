//! Reads client authentication, and how the authorization server is reached.

use super::file::{AuthorizationServerFile, ClientAssertionFile, ConnectionFile, MutualTlsFile};
use super::keywords::{MacAlgorithm, SendCredentials, SigningAlgorithm};
use crate::config::forward_proxy::forward_proxy;
use crate::config::reading::{Field, Keys, NodeRef, Section, Sink, pem, secret, shape, suggest, value};
use crate::jwt::{self, SigningKey};
use crate::model::Name;
use crate::model::connection::*;
use crate::model::secret::Secret;

const ENDPOINT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Reads the client authentication. `has_issuer`: an assertion's audience may be the issuer.
pub fn client_auth(
    section: &Section<'_, ConnectionFile>,
    has_certificate: bool,
    has_issuer: bool,
    sink: &mut Sink,
) -> Option<ClientAuth> {
    let keys = &section.keys;
    let secret = section.get(keys.client_secret);
    let secrets = secret.as_ref().map(|node| secrets(node, sink));
    let send = match section.get(keys.send_credentials) {
        None if secret.is_some() => Some(SendCredentials::Body),
        None => Some(SendCredentials::None),
        Some(node) => node.choice(sink),
    };
    let encoding = section.get(keys.basic_encoding).and_then(|node| {
        if send.is_some_and(|send| send != SendCredentials::Basic) {
            node.problem(sink, "`basic_encoding` applies only to `send_credentials: basic`", "remove one of the two");
        }
        node.choice(sink)
    });
    let assertion = section.get(keys.client_assertion);
    if let Some(node) = assertion.as_ref().filter(|_| send.is_some_and(|send| !send.has_assertion())) {
        let hint = "set `send_credentials: private_key_jwt`, or remove the key";
        node.problem(sink, "applies only to `send_credentials: private_key_jwt` or `client_secret_jwt`", hint);
    }
    let send = send?;
    if let Some(at) = secret.as_ref().filter(|_| !send.has_secret()) {
        let message = format!("there is a secret, but `send_credentials` is {}", send.name());
        at.problem(sink, message, "remove one of the two");
    }
    if send.has_secret() && secret.is_none() {
        let message = format!("`client_secret` is missing for `send_credentials: {}`", send.name());
        let hint = "give the secret as {file: PATH} or {env: NAME}";
        section.at("client_secret").problem(sink, message, hint);
        return None;
    }
    match send {
        SendCredentials::None => Some(ClientAuth::None),
        SendCredentials::Tls if !has_certificate => {
            let hint = "write `mutual_tls: {certificate: PATH, key: {file: PATH}}`";
            section.at("mutual_tls").problem(sink, "`mutual_tls` is missing for `send_credentials: tls`", hint);
            None
        }
        SendCredentials::Tls => Some(ClientAuth::Tls),
        SendCredentials::Body => Some(ClientAuth::Body(secrets??)),
        SendCredentials::Basic => Some(ClientAuth::Basic(secrets??, encoding.unwrap_or_default())),
        SendCredentials::PrivateKeyJwt => {
            let Some(node) = assertion else {
                let hint = "write `client_assertion: {key: {file: PATH}, algorithm: RS256}`";
                section.at("client_assertion").problem(sink, "`client_assertion` is missing", hint);
                return None;
            };
            let section = node.section::<ClientAssertionFile>(sink)?;
            let audience = audience(section.get(section.keys.audience), has_issuer, sink);
            let parts = KeyParts {
                algorithm: section.get(section.keys.algorithm),
                key_id: section.get(section.keys.key_id),
                certificate: section.get(section.keys.certificate),
                thumbprint: section.get(section.keys.thumbprint),
            };
            Some(ClientAuth::PrivateKeyJwt(assertion_key(&section, section.keys.key, parts, sink)?, audience?))
        }
        SendCredentials::ClientSecretJwt => {
            let (algorithm, audience) = match assertion {
                None => (Algorithm::HS256, Audience::default()),
                Some(node) => mac_assertion(&node, has_issuer, sink)?,
            };
            Some(ClientAuth::ClientSecretJwt(secrets??, algorithm, audience))
        }
    }
}

/// Reads `client_assertion` for `client_secret_jwt`, which signs with the client secret.
fn mac_assertion(node: &NodeRef<'_>, has_issuer: bool, sink: &mut Sink) -> Option<(Algorithm, Audience)> {
    let section = node.section::<ClientAssertionFile>(sink)?;
    let keys = &section.keys;
    for node in
        [section.get(keys.key), section.get(keys.certificate), section.get(keys.thumbprint)].into_iter().flatten()
    {
        node.problem(
            sink,
            "applies only to `private_key_jwt`; `client_secret_jwt` signs with the client secret",
            "remove it",
        );
    }
    let algorithm = section.get(keys.algorithm).map_or(Some(MacAlgorithm(Algorithm::HS256)), |node| node.choice(sink));
    let audience = audience(section.get(keys.audience), has_issuer, sink);
    Some((algorithm?.0, audience?))
}

/// Reads `token_url`, `issuer`, or any other text.
pub fn audience(node: Option<NodeRef<'_>>, has_issuer: bool, sink: &mut Sink) -> Option<Audience> {
    let Some(node) = node else { return Some(Audience::TokenUrl) };
    let text = node.line_without_placeholders(sink)?;
    match text.as_str() {
        "token_url" => Some(Audience::TokenUrl),
        "issuer" if !has_issuer => {
            node.problem(sink, "the connection has no `issuer`", "add `issuer`, or write the audience itself");
            None
        }
        "issuer" => Some(Audience::Issuer),
        _ => Some(Audience::Text(text)),
    }
}

/// Keys next to a signing key.
pub struct KeyParts<'a> {
    pub algorithm: Option<NodeRef<'a>>,
    pub key_id: Option<NodeRef<'a>>,
    pub certificate: Option<NodeRef<'a>>,
    pub thumbprint: Option<NodeRef<'a>>,
}

/// Reads a private key that fits its algorithm, and the thumbprint of its certificate, if any; they must match.
pub fn assertion_key<T: Keys>(
    section: &Section<'_, T>,
    key: Field<shape::Secret>,
    parts: KeyParts<'_>,
    sink: &mut Sink,
) -> Option<AssertionKey> {
    let algorithm = parts.algorithm.map_or(Some(SigningAlgorithm(Algorithm::RS256)), |node| node.choice(sink));
    let key_id = parts.key_id.map(|node| node.line(sink));
    let at = section.require(key, "key", "write `key: {file: PATH}` with a private key in PEM", sink);
    let pem = at.as_ref().and_then(|node| pem::key(node, sink));
    let key = algorithm.zip(at).zip(pem.as_ref()).and_then(|((SigningAlgorithm(algorithm), at), pem)| {
        let key = SigningKey::from_pem(pem, algorithm);
        if let Err(error) = &key {
            let hint = format!("use an unencrypted private key for {}, in PEM", algorithm.as_str());
            at.problem(sink, format!("the key {error}"), hint);
        }
        key.ok()
    });
    let thumbprint = thumbprint(parts.certificate, parts.thumbprint, key.as_ref(), sink);
    let (SigningAlgorithm(algorithm), pem, _) = (algorithm?, pem?, key?);
    Some(AssertionKey { pem, algorithm, key_id: key_id.flatten(), thumbprint: thumbprint? })
}

/// Reads the thumbprint of the certificate. `key`: the key that it must belong to; `None` if that is invalid.
fn thumbprint(
    certificate: Option<NodeRef<'_>>,
    kind: Option<NodeRef<'_>>,
    key: Option<&SigningKey>,
    sink: &mut Sink,
) -> Option<Option<(Thumbprint, String)>> {
    let Some(certificate) = certificate else {
        if let Some(kind) = kind {
            kind.problem(sink, "applies only with `certificate`", "add `certificate: PATH`, or remove `thumbprint`");
        }
        return Some(None);
    };
    let kind = kind.map_or(Some(Thumbprint::Sha256), |node| node.choice(sink));
    let path = certificate.file(sink)?;
    let pem = pem::file(&certificate, &path, sink)?;
    let belongs_to_key = key.map_or(Ok(true), |key| jwt::certificate_matches(key, &pem));
    match (kind?.of(&pem), belongs_to_key) {
        (Ok(thumbprint), Ok(true)) => Some(Some(thumbprint)),
        (Ok(_), Ok(false)) => {
            let hint = "use a PEM file that starts with the certificate of `key`";
            certificate.problem(sink, "the certificate does not belong to the key", hint);
            None
        }
        (Err(error), _) | (_, Err(error)) => {
            certificate.problem(sink, format!("{} {error}", path.display()), "use a PEM file of the certificate");
            None
        }
    }
}

/// Reads one secret, or a list during a rotation.
fn secrets(node: &NodeRef<'_>, sink: &mut Sink) -> Option<Vec<Secret>> {
    if !node.is_list() {
        return secret::secret(node, sink).map(|secret| vec![secret]);
    }
    let items = node.items(sink)?;
    if items.is_empty() {
        node.problem(sink, "is an empty list", "write {file: PATH} or {env: NAME}");
    }
    let secrets: Vec<_> = items.iter().map(|item| secret::secret(item, sink)).collect();
    secrets.into_iter().collect::<Option<Vec<_>>>().filter(|secrets| !secrets.is_empty())
}

/// Reads a certificate with its chain and its private key, or the name of one that the operator has published.
pub fn mutual_tls(node: &NodeRef<'_>, sink: &mut Sink) -> Option<ClientCertificate> {
    if node.written().is_some() {
        let name = node.parse(sink, value::name)?;
        let published = sink.published.clone()?;
        let Some(certificate) = published.mutual_tls.get(&name) else {
            let known = published.mutual_tls.keys().map(Name::as_str);
            let hint =
                suggest(name.as_str(), known, "add it under `mutual_tls_profiles`, or write its certificate and key");
            node.problem(sink, format!("no mutual TLS profile is named `{name}`"), hint);
            return None;
        };
        return certificate.clone();
    }
    let section = node.section::<MutualTlsFile>(sink)?;
    pem::certificate(&section, (section.keys.certificate, section.keys.key), sink)
}

pub fn authorization_server(node: Option<NodeRef<'_>>, sink: &mut Sink) -> AuthorizationServer {
    let mut server = AuthorizationServer { trust: None, proxy: ServerProxy::Inherit, timeout: ENDPOINT_TIMEOUT };
    let Some(section) = node.and_then(|node| node.section::<AuthorizationServerFile>(sink)) else { return server };
    server.trust = section.get(section.keys.trust).and_then(|node| pem::replacement_roots(&node, sink));
    server.proxy = match section.get(section.keys.proxy) {
        None => ServerProxy::Inherit,
        Some(node) if node.written() == Some("inherit") => ServerProxy::Inherit,
        Some(node) if node.written() == Some("none") => ServerProxy::Direct,
        Some(node) => forward_proxy(&node, sink).map_or(ServerProxy::Inherit, ServerProxy::Own),
    };
    if let Some(timeout) = section.get(section.keys.timeout).and_then(|node| node.parse(sink, value::positive_duration))
    {
        server.timeout = timeout;
    }
    server
}
