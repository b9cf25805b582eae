//! Client authentication, and how the authorization server is reached.

use super::file::{AuthorizationServerFile, ClientAssertionFile, ConnectionFile, MutualTlsFile};
use super::words::{MacAlgorithm, SendCredentials, SigningAlgorithm};
use crate::config::forward_proxy::forward_proxy;
use crate::config::reading::{Field, Keys, Sink, Spot, Unit, pem, secret, shape, value};
use crate::jwt::SigningKey;
use crate::model::connection::*;
use crate::model::secret::Secret;

const ENDPOINT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// `has_issuer`: an assertion may be made for it.
pub fn client_auth(
    unit: &Unit<'_, ConnectionFile>,
    has_certificate: bool,
    has_issuer: bool,
    sink: &mut Sink,
) -> Option<ClientAuth> {
    let keys = &unit.keys;
    let secret = unit.get(keys.client_secret);
    let secrets = secret.as_ref().map(|spot| secrets(spot, sink));
    let send = match unit.get(keys.send_credentials) {
        None if secret.is_some() => Some(SendCredentials::Body),
        None => Some(SendCredentials::None),
        Some(spot) => spot.choice(sink),
    };
    let encoding = unit.get(keys.basic_encoding).and_then(|spot| {
        if send.is_some_and(|send| send != SendCredentials::Basic) {
            spot.problem(sink, "`basic_encoding` goes with `send_credentials: basic` alone", "remove one of the two");
        }
        spot.choice(sink)
    });
    let assertion = unit.get(keys.client_assertion);
    if let Some(spot) = assertion.as_ref().filter(|_| send.is_some_and(|send| !send.has_assertion())) {
        let hint = "set `send_credentials: private_key_jwt`, or remove the key";
        spot.problem(sink, "goes with `send_credentials: private_key_jwt` or client_secret_jwt", hint);
    }
    let send = send?;
    if let Some(at) = secret.as_ref().filter(|_| !send.has_secret()) {
        let message = format!("a secret is given, but `send_credentials` is {}", send.name());
        at.problem(sink, message, "remove one of the two");
    }
    if send.has_secret() && secret.is_none() {
        let hint = "give the secret as {file: PATH} or {env: NAME}";
        unit.at("client_secret").problem(sink, "`client_secret` is missing for this `send_credentials`", hint);
        return None;
    }
    match send {
        SendCredentials::None => Some(ClientAuth::None),
        SendCredentials::Tls if !has_certificate => {
            let hint = "write mutual_tls: {certificate: PATH, key: {file: PATH}}";
            unit.at("mutual_tls").problem(sink, "`mutual_tls` is missing for `send_credentials: tls`", hint);
            None
        }
        SendCredentials::Tls => Some(ClientAuth::Tls),
        SendCredentials::Body => Some(ClientAuth::Body(secrets??)),
        SendCredentials::Basic => Some(ClientAuth::Basic(secrets??, encoding.unwrap_or_default())),
        SendCredentials::PrivateKeyJwt => {
            let Some(spot) = assertion else {
                let hint = "write client_assertion: {key: {file: PATH}, algorithm: RS256}";
                unit.at("client_assertion").problem(sink, "`client_assertion` is missing", hint);
                return None;
            };
            let unit = spot.unit::<ClientAssertionFile>(sink)?;
            let audience = audience(unit.get(unit.keys.audience), has_issuer, sink);
            let parts = KeyParts {
                algorithm: unit.get(unit.keys.algorithm),
                key_id: unit.get(unit.keys.key_id),
                certificate: unit.get(unit.keys.certificate),
                thumbprint: unit.get(unit.keys.thumbprint),
            };
            Some(ClientAuth::PrivateKeyJwt(assertion_key(&unit, unit.keys.key, parts, sink)?, audience?))
        }
        SendCredentials::ClientSecretJwt => {
            let (algorithm, audience) = match assertion {
                None => (Algorithm::HS256, Audience::default()),
                Some(spot) => mac(&spot, has_issuer, sink)?,
            };
            Some(ClientAuth::ClientSecretJwt(secrets??, algorithm, audience))
        }
    }
}

/// `client_assertion` where the secret is the key.
fn mac(spot: &Spot<'_>, has_issuer: bool, sink: &mut Sink) -> Option<(Algorithm, Audience)> {
    let unit = spot.unit::<ClientAssertionFile>(sink)?;
    let keys = &unit.keys;
    for spot in [unit.get(keys.key), unit.get(keys.certificate), unit.get(keys.thumbprint)].into_iter().flatten() {
        spot.problem(sink, "goes with `private_key_jwt`: here the secret is the key", "remove it");
    }
    let algorithm = unit.get(keys.algorithm).map_or(Some(MacAlgorithm(Algorithm::HS256)), |spot| spot.choice(sink));
    let audience = audience(unit.get(keys.audience), has_issuer, sink);
    Some((algorithm?.0, audience?))
}

/// `token_url`, `issuer`, or a text of its own.
pub fn audience(spot: Option<Spot<'_>>, has_issuer: bool, sink: &mut Sink) -> Option<Audience> {
    let Some(spot) = spot else { return Some(Audience::TokenUrl) };
    let text = spot.filled_line(sink)?;
    match text.as_str() {
        "token_url" => Some(Audience::TokenUrl),
        "issuer" if !has_issuer => {
            spot.problem(sink, "the connection names no `issuer`", "add the key `issuer`, or write the audience out");
            None
        }
        "issuer" => Some(Audience::Issuer),
        _ => Some(Audience::Text(text)),
    }
}

/// What a map holds beside a signing key.
pub struct KeyParts<'a> {
    pub algorithm: Option<Spot<'a>>,
    pub key_id: Option<Spot<'a>>,
    pub certificate: Option<Spot<'a>>,
    pub thumbprint: Option<Spot<'a>>,
}

/// A private key that fits its algorithm, and its certificate if one is named.
pub fn assertion_key<T: Keys>(
    unit: &Unit<'_, T>,
    key: Field<shape::Secret>,
    parts: KeyParts<'_>,
    sink: &mut Sink,
) -> Option<AssertionKey> {
    let algorithm = parts.algorithm.map_or(Some(SigningAlgorithm(Algorithm::RS256)), |spot| spot.choice(sink));
    let key_id = parts.key_id.map(|spot| spot.line(sink));
    let at = unit.require(key, "key", "write key: {file: PATH} of a private key in PEM", sink);
    let pem = at.as_ref().and_then(|spot| pem::key(spot, sink));
    let thumbprint = thumbprint(parts.certificate, parts.thumbprint, sink);
    let (SigningAlgorithm(algorithm), at, pem) = (algorithm?, at?, pem?);
    let key = SigningKey::from_pem(&pem, algorithm);
    if let Err(error) = &key {
        let hint = format!("give a private key for {} in PEM, unencrypted", algorithm.as_str());
        at.problem(sink, format!("the key {error}"), hint);
    }
    key.ok()?;
    Some(AssertionKey { pem, algorithm, key_id: key_id.flatten(), thumbprint: thumbprint? })
}

fn thumbprint(
    certificate: Option<Spot<'_>>,
    kind: Option<Spot<'_>>,
    sink: &mut Sink,
) -> Option<Option<(Thumbprint, String)>> {
    let Some(certificate) = certificate else {
        if let Some(kind) = kind {
            kind.problem(sink, "goes with `certificate`", "name the certificate's file, or remove the key");
        }
        return Some(None);
    };
    let kind = kind.map_or(Some(Thumbprint::Sha256), |spot| spot.choice(sink));
    let path = certificate.file(sink)?;
    let pem = pem::file(&certificate, &path, sink)?;
    match kind?.of(&pem) {
        Ok(thumbprint) => Some(Some(thumbprint)),
        Err(error) => {
            certificate.problem(sink, format!("{} {error}", path.display()), "give a PEM file of the certificate");
            None
        }
    }
}

/// One secret, or a list while one is being rotated.
fn secrets(spot: &Spot<'_>, sink: &mut Sink) -> Option<Vec<Secret>> {
    if !spot.is_list() {
        return secret::secret(spot, sink).map(|secret| vec![secret]);
    }
    let items = spot.items(sink)?;
    if items.is_empty() {
        spot.problem(sink, "the list holds no secret", "write {file: PATH} or {env: NAME}");
    }
    let secrets: Vec<_> = items.iter().map(|item| secret::secret(item, sink)).collect();
    secrets.into_iter().collect::<Option<Vec<_>>>().filter(|secrets| !secrets.is_empty())
}

/// A certificate with its chain and the key that belongs to it.
pub fn mutual_tls(spot: &Spot<'_>, sink: &mut Sink) -> Option<ClientCertificate> {
    let unit = spot.unit::<MutualTlsFile>(sink)?;
    pem::certificate(&unit, (unit.keys.certificate, unit.keys.key), sink)
}

pub fn authorization_server(spot: Option<Spot<'_>>, sink: &mut Sink) -> AuthorizationServer {
    let mut server = AuthorizationServer { trust: None, proxy: ServerProxy::Inherit, timeout: ENDPOINT_TIMEOUT };
    let Some(unit) = spot.and_then(|spot| spot.unit::<AuthorizationServerFile>(sink)) else { return server };
    server.trust = unit.get(unit.keys.trust).and_then(|spot| pem::own_roots(&spot, sink));
    server.proxy = match unit.get(unit.keys.proxy) {
        None => ServerProxy::Inherit,
        Some(spot) if spot.written() == Some("inherit") => ServerProxy::Inherit,
        Some(spot) if spot.written() == Some("none") => ServerProxy::Direct,
        Some(spot) => forward_proxy(&spot, sink).map_or(ServerProxy::Inherit, ServerProxy::Own),
    };
    if let Some(timeout) = unit.get(unit.keys.timeout).and_then(|spot| spot.parse(sink, value::wait)) {
        server.timeout = timeout;
    }
    server
}
