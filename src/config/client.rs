//! How the client proves who it is, and how the authorization server is reached: from marks to the checked model.

use std::path::Path;

use super::endpoint;
use super::file::{AuthorizationServerFile, ClientAssertionFile, ConnectionFile, ForwardProxyFile, MutualTlsFile};
use super::problem::Sink;
use super::spot::{Field, Keys, Spot, Unit};
use super::value::Fault;
use super::{pem, reference, value};
use crate::jwt::SigningKey;
use crate::model::connection::*;
use crate::model::secret::Secret;
use crate::tls;

const ENDPOINT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq)]
enum Send {
    Body,
    Basic,
    PrivateKeyJwt,
    ClientSecretJwt,
    Tls,
    None,
}

impl Send {
    const WORDS: [(&str, Send); 6] = [
        ("body", Send::Body),
        ("basic", Send::Basic),
        ("private_key_jwt", Send::PrivateKeyJwt),
        ("client_secret_jwt", Send::ClientSecretJwt),
        ("tls", Send::Tls),
        ("none", Send::None),
    ];

    fn name(self) -> &'static str {
        Send::WORDS.iter().find(|(_, send)| *send == self).map_or("", |(name, _)| name)
    }

    fn has_secret(self) -> bool {
        match self {
            Send::Body | Send::Basic | Send::ClientSecretJwt => true,
            Send::PrivateKeyJwt | Send::Tls | Send::None => false,
        }
    }

    fn has_assertion(self) -> bool {
        match self {
            Send::PrivateKeyJwt | Send::ClientSecretJwt => true,
            Send::Body | Send::Basic | Send::Tls | Send::None => false,
        }
    }
}

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
        None if secret.is_some() => Some(Send::Body),
        None => Some(Send::None),
        Some(spot) => spot.choice(sink, &Send::WORDS),
    };
    let encodings = [("form", BasicEncoding::Form), ("raw", BasicEncoding::Raw)];
    let encoding = unit.get(keys.basic_encoding).and_then(|spot| {
        if send.is_some_and(|send| send != Send::Basic) {
            spot.problem(sink, "`basic_encoding` goes with `send_credentials: basic` alone", "remove one of the two");
        }
        spot.choice(sink, &encodings)
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
        Send::None => Some(ClientAuth::None),
        Send::Tls if !has_certificate => {
            let hint = "write mutual_tls: {certificate: PATH, key: {file: PATH}}";
            unit.at("mutual_tls").problem(sink, "`mutual_tls` is missing for `send_credentials: tls`", hint);
            None
        }
        Send::Tls => Some(ClientAuth::Tls),
        Send::Body => Some(ClientAuth::Body(secrets??)),
        Send::Basic => Some(ClientAuth::Basic(secrets??, encoding.unwrap_or_default())),
        Send::PrivateKeyJwt => {
            let Some(spot) = assertion else {
                let hint = "write client_assertion: {key: {file: PATH}, algorithm: RS256}";
                unit.at("client_assertion").problem(sink, "`client_assertion` is missing", hint);
                return None;
            };
            let unit = spot.unit::<ClientAssertionFile>(sink)?;
            let audience = audience(unit.get(unit.keys.audience), has_issuer, sink);
            let ClientAssertionFile { key, algorithm, key_id, certificate, thumbprint, .. } = unit.keys;
            let marks = KeyMarks { key, algorithm, key_id, certificate, thumbprint };
            Some(ClientAuth::PrivateKeyJwt(assertion_key(&unit, marks, sink)?, audience?))
        }
        Send::ClientSecretJwt => {
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
    for spot in [keys.key, keys.certificate, keys.thumbprint].into_iter().filter_map(|field| unit.get(field)) {
        spot.problem(sink, "goes with `private_key_jwt`: here the secret is the key", "remove it");
    }
    let words: Vec<_> = Algorithm::ALL.into_iter().filter(|one| one.is_symmetric()).map(word).collect();
    let algorithm = unit.get(keys.algorithm).map_or(Some(Algorithm::HS256), |spot| spot.choice(sink, &words));
    let audience = audience(unit.get(keys.audience), has_issuer, sink);
    Some((algorithm?, audience?))
}

fn word(algorithm: Algorithm) -> (&'static str, Algorithm) {
    (algorithm.as_str(), algorithm)
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

/// The keys of a map that describe a signing key.
pub struct KeyMarks {
    pub key: super::spot::Field,
    pub algorithm: super::spot::Field,
    pub key_id: super::spot::Field,
    pub certificate: super::spot::Field,
    pub thumbprint: super::spot::Field,
}

/// A private key that fits its algorithm, and its certificate if one is named.
pub fn assertion_key<T: super::spot::Keys>(
    unit: &Unit<'_, T>,
    marks: KeyMarks,
    sink: &mut Sink,
) -> Option<AssertionKey> {
    let words: Vec<_> = Algorithm::ALL.into_iter().filter(|one| !one.is_symmetric()).map(word).collect();
    let algorithm = unit.get(marks.algorithm).map_or(Some(Algorithm::RS256), |spot| spot.choice(sink, &words));
    let key_id = unit.get(marks.key_id).map(|spot| spot.line(sink));
    let at = unit.require(marks.key, "key", "write key: {file: PATH} of a private key in PEM", sink);
    let pem = at.as_ref().and_then(|spot| pem::key(spot, sink));
    let thumbprint = thumbprint(unit.get(marks.certificate), unit.get(marks.thumbprint), sink);
    let (algorithm, at, pem) = (algorithm?, at?, pem?);
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
    let kinds = [("x5t", Thumbprint::Sha1), ("x5t#S256", Thumbprint::Sha256)];
    let Some(certificate) = certificate else {
        if let Some(kind) = kind {
            kind.problem(sink, "goes with `certificate`", "name the certificate's file, or remove the key");
        }
        return Some(None);
    };
    let kind = kind.map_or(Some(Thumbprint::Sha256), |spot| spot.choice(sink, &kinds));
    let path = certificate.file(sink)?;
    let pem = reference::pem(&certificate, &path, sink)?;
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
        return reference::secret(spot, sink).map(|secret| vec![secret]);
    }
    let items = spot.items(sink)?;
    if items.is_empty() {
        spot.problem(sink, "the list holds no secret", "write {file: PATH} or {env: NAME}");
    }
    let secrets: Vec<_> = items.iter().map(|item| reference::secret(item, sink)).collect();
    secrets.into_iter().collect::<Option<Vec<_>>>().filter(|secrets| !secrets.is_empty())
}

/// A certificate with its chain and the key that belongs to it.
pub fn mutual_tls(spot: &Spot<'_>, sink: &mut Sink) -> Option<ClientCertificate> {
    let unit = spot.unit::<MutualTlsFile>(sink)?;
    certificate(&unit, (unit.keys.certificate, unit.keys.key), sink)
}

/// The same of the two keys of some map.
pub fn certificate<K: Keys>(
    unit: &Unit<'_, K>,
    (certificate, key): (Field, Field),
    sink: &mut Sink,
) -> Option<ClientCertificate> {
    let hint = "name the PEM file of the certificate, its chain behind it";
    let at = unit.require(certificate, "certificate", hint, sink);
    let pem = at.as_ref().and_then(|at| {
        let path = at.file(sink)?;
        Some((reference::pem(at, &path, sink)?, path))
    });
    let hint = "write key: {file: PATH} of the private key in PEM";
    let key_at = unit.require(key, "key", hint, sink);
    let key = key_at.as_ref().and_then(|spot| pem::key(spot, sink));
    let ((pem, path), at, key) = (pem?, at?, key?);
    match tls::read_client_certificate(&pem, key) {
        Ok(certificate) => {
            reference::warn_of_expired(&certificate.chain[..1], &at, &path, sink);
            Some(certificate)
        }
        Err(error) => {
            report_certificate(&error, (&at, &path), &key_at?, sink);
            None
        }
    }
}

fn report_certificate(
    error: &tls::ClientCertificateError,
    (at, path): (&Spot<'_>, &Path),
    key_at: &Spot<'_>,
    sink: &mut Sink,
) {
    match error {
        tls::ClientCertificateError::Certificate(error) => {
            let hint = match error {
                tls::RootsError::Version1 => {
                    "have it issued again as version 3: with `openssl x509 -req`, give it `-extfile` with an extension, \
                     such as `extendedKeyUsage = clientAuth`"
                }
                _ => "give a PEM file of the certificate and its chain",
            };
            at.problem(sink, format!("{} {error}", path.display()), hint);
        }
        error => key_at.problem(sink, format!("the key {error}"), "give the certificate's own private key in PEM"),
    }
}

pub fn authorization_server(spot: Option<Spot<'_>>, sink: &mut Sink) -> AuthorizationServer {
    let mut server = AuthorizationServer { trust: None, proxy: ServerProxy::Inherit, timeout: ENDPOINT_TIMEOUT };
    let Some(unit) = spot.and_then(|spot| spot.unit::<AuthorizationServerFile>(sink)) else { return server };
    server.trust = unit.get(unit.keys.trust).and_then(|spot| reference::own_roots(&spot, sink));
    server.proxy = match unit.get(unit.keys.proxy) {
        None => ServerProxy::Inherit,
        Some(spot) if spot.written() == Some("inherit") => ServerProxy::Inherit,
        Some(spot) if spot.written() == Some("none") => ServerProxy::Direct,
        Some(spot) => proxy(&spot, sink).map_or(ServerProxy::Inherit, ServerProxy::Own),
    };
    if let Some(timeout) = unit.get(unit.keys.timeout).and_then(|spot| spot.parse(sink, value::wait)) {
        server.timeout = timeout;
    }
    server
}

/// A URL, or a map with one.
pub fn proxy(spot: &Spot<'_>, sink: &mut Sink) -> Option<ForwardProxy> {
    if !spot.is_map() {
        let url = spot.secretive(sink, endpoint::proxy)?;
        return Some(ForwardProxy { url, credentials: None, trust: None });
    }
    let unit = spot.unit::<ForwardProxyFile>(sink)?;
    let keys = &unit.keys;
    let url = unit.require(keys.url, "url", "write the proxy's URL, such as http://proxy:3128", sink);
    let url = url.and_then(|spot| spot.secretive(sink, endpoint::proxy));
    let trust = unit.get(keys.trust).and_then(|spot| reference::own_roots(&spot, sink));
    let credentials = match (unit.get(keys.username), unit.get(keys.password)) {
        (None, None) => None,
        (Some(username), Some(password)) => {
            let username = username.parse(sink, |text| match text.contains(':') {
                true => Err(Fault::new("holds a colon, which Basic cannot carry", "write another user name")),
                false => Ok(text.to_owned()),
            });
            username.zip(reference::secret(&password, sink))
        }
        (Some(one), None) | (None, Some(one)) => {
            one.problem(sink, "`username` and `password` go together", "write both, or neither");
            None
        }
    };
    Some(ForwardProxy { url: url?, credentials, trust })
}
