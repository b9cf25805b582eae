//! Client authentication, endpoints, formats of token requests and responses, scripts: valid and invalid values.

use super::files::Folder;
use super::*;
use crate::model::connection::*;
use crate::model::secret::Secret;

const RSA: &str = include_str!("../../jwt/tests/rsa-pkcs8.pem");
const EC: &str = include_str!("../../jwt/tests/p256-pkcs8.pem");
const CERTIFICATE: &str = include_str!("../../jwt/tests/rsa-certificate.pem");
/// Certificate of the EC key; expired in 2020.
const EXPIRED: &str = include_str!("expired.pem");
const SCRIPT: &str = "fn token_request(request, ctx) {\n    request\n}\n";
const TOKEN_URL: &str = "token_url: \"https://as.test/token\"";

pub(super) fn folder(keys: &str) -> Folder {
    folder_with("", keys)
}

/// The connection with `keys`, below the lines of `top`.
pub(super) fn folder_with(top: &str, keys: &str) -> Folder {
    let text = format!("{top}connections:\n- {{name: crm, client_id: id, {keys}}}\n");
    Folder::new(&[
        ("main.yaml", &text),
        ("rsa.key", RSA),
        ("ec.key", EC),
        ("cert.pem", CERTIFICATE),
        ("expired.pem", EXPIRED),
        ("a.xml", "<A/>"),
        ("s", "secret"),
        ("good.rhai", SCRIPT),
        ("bad.rhai", "fn token_request(request, ctx) {\n    let x = ;\n}\n"),
    ])
}

pub(super) fn connection(keys: &str) -> Arc<Connection> {
    folder(&format!("{TOKEN_URL}, {keys}")).accept().model.connections[0].clone()
}

/// Checks that there is one problem, whose line contains each text of `expected`.
#[track_caller]
pub(super) fn refused(keys: &str, expected: &[&str]) {
    let all = if keys.contains("token_url") || keys.contains("issuer: \"") {
        keys.to_owned()
    } else {
        format!("{TOKEN_URL}, {keys}")
    };
    let problems = folder(&all).problems();
    assert_eq!(problems.lines().count(), 1, "{keys}\n{problems}");
    assert!(expected.iter().all(|part| problems.contains(part)), "{keys}\n{problems} is not {expected:?}");
}

#[test]
fn client_authentication_needs_matching_keys() {
    let signed = connection(
        "send_credentials: private_key_jwt, client_assertion: {key: {file: rsa.key}, algorithm: PS256, certificate: cert.pem, thumbprint: x5t}",
    );
    let ClientAuth::PrivateKeyJwt(key, Audience::TokenUrl) = &signed.client_auth else { panic!("another method") };
    assert_eq!((key.algorithm, key.thumbprint.as_ref().unwrap().0), (Algorithm::PS256, Thumbprint::Sha1));
    let mac = connection(
        "client_secret: {file: s}, send_credentials: client_secret_jwt, client_assertion: {algorithm: HS384, audience: x}",
    );
    assert!(matches!(&mac.client_auth, ClientAuth::ClientSecretJwt(_, Algorithm::HS384, Audience::Text(_))));
    for (keys, path, message) in [
        ("send_credentials: private_key_jwt", "client_assertion", "`client_assertion` is missing"),
        (
            "client_assertion: {key: {file: rsa.key}}",
            "client_assertion",
            "applies only to `send_credentials: private_key_jwt`",
        ),
        (
            "send_credentials: private_key_jwt, client_secret: {file: s}, client_assertion: {key: {file: rsa.key}}",
            "client_secret",
            "there is a secret",
        ),
        ("send_credentials: client_secret_jwt", "client_secret", "`client_secret` is missing"),
        (
            "send_credentials: client_secret_jwt, client_secret: {file: s}, client_assertion: {key: {file: rsa.key}}",
            "client_assertion.key",
            "signs with the client secret",
        ),
        (
            "send_credentials: client_secret_jwt, client_secret: {file: s}, client_assertion: {algorithm: RS256}",
            "client_assertion.algorithm",
            "`RS256` is not a valid value",
        ),
        (
            "send_credentials: private_key_jwt, client_assertion: {key: {file: rsa.key}, thumbprint: x5t}",
            "client_assertion.thumbprint",
            "applies only with `certificate`",
        ),
        (
            "send_credentials: private_key_jwt, client_assertion: {key: {file: rsa.key}, certificate: s}",
            "client_assertion.certificate",
            "holds no certificate",
        ),
        (
            "send_credentials: private_key_jwt, client_assertion: {key: {file: rsa.key}, certificate: expired.pem}",
            "client_assertion.certificate",
            "the certificate does not belong to the key",
        ),
        ("send_credentials: tls", "mutual_tls", "`mutual_tls` is missing"),
        ("mutual_tls: {certificate: cert.pem}", "mutual_tls.key", "`key` is missing"),
        (
            "mutual_tls: {certificate: cert.pem, key: {file: ec.key}}",
            "mutual_tls.key",
            "does not belong to the certificate",
        ),
        ("mutual_tls: {certificate: s, key: {file: rsa.key}}", "mutual_tls.certificate", "holds no certificate"),
        ("basic_encoding: raw, send_credentials: none", "basic_encoding", "applies only to `send_credentials: basic`"),
        (
            "send_credentials: tls, client_secret: {file: s}, mutual_tls: {certificate: cert.pem, key: {file: rsa.key}}",
            "client_secret",
            "there is a secret, but `send_credentials` is tls",
        ),
        ("mutual_tls: {key: {file: rsa.key}}", "mutual_tls.certificate", "`certificate` is missing"),
        (
            "send_credentials: private_key_jwt, client_assertion: {key: {file: rsa.key}, algorithm: RSA}",
            "client_assertion.algorithm",
            "`RSA` is not a valid value",
        ),
        (
            "send_credentials: private_key_jwt, client_assertion: {key: {file: rsa.key}, algorithm: ES384}",
            "client_assertion.key",
            "ES384",
        ),
        (
            "routes: [{host: a.test, upstream_tls: {mutual_tls: true}}]",
            "routes[0].upstream_tls.mutual_tls",
            "has no `mutual_tls`",
        ),
    ] {
        refused(keys, &[&format!("connections[0].{path}: "), message]);
    }
}

#[test]
fn a_client_certificate_is_presented_where_configured_and_its_expiry_is_a_warning() {
    let connection = connection(
        "send_credentials: tls, mutual_tls: {certificate: cert.pem, key: {file: rsa.key}}, routes: [{host: a.test, \
         upstream_tls: {mutual_tls: true}}, {host: b.test, upstream_tls: {mutual_tls: false}}, {host: c.test}]",
    );
    assert_eq!(connection.client_auth, ClientAuth::Tls);
    let certificates: Vec<_> = connection.routes.iter().map(|route| route.tls.certificate.as_ref()).collect();
    assert_eq!(certificates, [connection.mutual_tls.as_ref(), None, None]);
    assert!(connection.mutual_tls.is_some());
    let expired =
        folder(&format!("{TOKEN_URL}, mutual_tls: {{certificate: expired.pem, key: {{file: ec.key}}}}")).accept();
    let warnings: Vec<_> = expired.warnings.iter().map(|warning| warning.to_string()).collect();
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    assert!(warning.contains("connections[0].mutual_tls.certificate: ") && warning.contains("expired on"), "{warning}");
}

#[test]
fn endpoints_and_their_proxy_are_checked() {
    let found = folder(
        "issuer: \"https://as.test/tenant\", revocation_url: \"https://as.test/revoke\", send_credentials: none",
    )
    .accept();
    let endpoints = &found.model.connections[0].endpoints;
    assert_eq!((endpoints.issuer.as_deref(), &endpoints.token), (Some("https://as.test/tenant"), &None));
    assert_eq!(endpoints.server.as_str(), "https://as.test/tenant");
    let proxied = connection(
        "authorization_server: {proxy: {url: \"https://proxy.test:3128\", username: u, password: {file: s}}}",
    );
    let ServerProxy::Own(own) = &proxied.authorization_server.proxy else { panic!("no own proxy") };
    assert_eq!(own.credentials.as_ref().unwrap().0, "u");
    for (keyword, expected) in [("inherit", ServerProxy::Inherit), ("none", ServerProxy::Direct)] {
        let connection = connection(&format!("authorization_server: {{proxy: {keyword}}}"));
        assert_eq!(connection.authorization_server.proxy, expected);
    }
    let signed = folder(
        "issuer: \"https://as.test\", send_credentials: private_key_jwt, client_assertion: {key: {file: rsa.key}, audience: issuer}",
    );
    let auth = signed.accept().model.connections[0].client_auth.clone();
    assert!(matches!(auth, ClientAuth::PrivateKeyJwt(_, Audience::Issuer)), "{auth:?}");
    for (keys, path, message) in [
        ("issuer: \"http://as.test\"", "issuer", "in the clear"),
        ("issuer: \"https://as.test?x\"", "issuer", "has a query or a fragment"),
        ("revocation_url: \"http://as.test/r\"", "revocation_url", "in the clear"),
        ("authorization_server: {proxy: \"http://p.test/x\"}", "authorization_server.proxy", "has a path or a query"),
        (
            "authorization_server: {proxy: {url: \"http://p.test\", username: u}}",
            "authorization_server.proxy.username",
            "must be set together",
        ),
        (
            "authorization_server: {proxy: {url: \"http://p.test\", password: {file: s}}}",
            "authorization_server.proxy.password",
            "must be set together",
        ),
        (
            "authorization_server: {proxy: {url: \"http://p.test\", username: \"a:b\", password: {file: s}}}",
            "authorization_server.proxy.username",
            "contains a colon",
        ),
        (
            "authorization_server: {proxy: \"http://u:p@p.test:3128\"}",
            "authorization_server.proxy",
            "has a user name; write {url: http://HOST:PORT, username: NAME",
        ),
        ("authorization_server: {proxy: corp}", "authorization_server.proxy", "is malformed; write http://HOST:PORT"),
        ("authorization_server: {proxy: {trust: [cert.pem]}}", "authorization_server.proxy.url", "`url` is missing"),
    ] {
        refused(keys, &[&format!("connections[0].{path}: "), message]);
    }
    let problems = folder("scopes: a").problems();
    assert!(problems.contains("token_url: `token_url` is missing"), "{problems}");
}

#[test]
fn formats_of_requests_and_responses_are_checked() {
    let formatted = connection(
        "token_request: {encoding: json, headers: {X-A: \"1\", X-B: {file: s}}}, \
         token_response: {access_token: /a~1b/0, token_type: any, expires_in_unit: ms, expires_at: /end, failure: {pointer: /ok, equals: false}, \
         refresh_refused: [{status: 403, error: unauthorized_client, description_contains: refresh_token}, {error: 190}]}, \
         token_rejected: [{status: 200, pointer: /code, equals: 17}, {status: 401, header: X, contains: y}]",
    );
    assert_eq!((formatted.token_request.encoding, formatted.token_request.headers.len()), (RequestEncoding::Json, 2));
    let response = &formatted.token_response;
    assert_eq!(response.access_token.parts(), ["a/b", "0"]);
    assert!(response.token_type.is_none() && response.expires_at.is_some());
    assert_eq!(response.failure.as_ref().unwrap().equals, "false");
    let [atlassian, number] = &response.refresh_refused[..] else { panic!("two signs") };
    assert_eq!((atlassian.status.unwrap().as_u16(), atlassian.error.as_deref()), (403, Some("unauthorized_client")));
    assert_eq!(atlassian.description_contains.as_deref(), Some("refresh_token"));
    assert_eq!((number.status, number.error.as_deref()), (None, Some("190")));
    assert_eq!(formatted.token_rejected.len(), 2);
    for (keys, path, message) in [
        ("token_request: {encoding: xml}", "token_request.encoding", "`xml` is not a valid value"),
        (
            "token_request: {headers: {Content-Length: 1}}",
            "token_request.headers.Content-Length",
            "is set by the HTTP client",
        ),
        ("token_request: {headers: {\"a b\": 1}}", "token_request.headers[\"a b\"]", "is not a header name"),
        ("token_request: {headers: {X-A: 1, x-a: 2}}", "token_request.headers.x-a", "`x-a` is set twice"),
        (
            "client_secret: {file: s}, send_credentials: basic, token_request: {headers: {Authorization: x}}",
            "token_request",
            "sets Authorization itself",
        ),
        ("token_request: {headers: {X: \"a\\nb\"}}", "token_request.headers.X", "a line break"),
        ("token_response: {access_token: data}", "token_response.access_token", "is not a JSON pointer"),
        ("token_response: {failure: {pointer: /ok}}", "token_response.failure.equals", "`equals` is missing"),
        (
            "token_response: {refresh_refused: [{}]}",
            "token_response.refresh_refused[0]",
            "matches every response; write `status`, `error` or `description_contains`",
        ),
        (
            "token_response: {refresh_refused: [{status: 200}]}",
            "token_response.refresh_refused[0].status",
            "`200` is not an integer from 400 to 599",
        ),
        (
            "token_response: {refresh_refused: [{status: 200, error: \"\"}]}",
            "token_response.refresh_refused[0].error",
            "is empty",
        ),
        (
            "token_response: {refresh_refused: [{status: 403, description: x}]}",
            "token_response.refresh_refused[0].description",
            "unknown key `description`; remove it",
        ),
        ("token_response: {refresh_refused: 403}", "token_response.refresh_refused", "must be a list"),
        ("token_rejected: [{status: 302}]", "token_rejected[0].status", "`302` is not an integer"),
        ("token_rejected: [{status: 200, pointer: /a}]", "token_rejected[0].pointer", "must be set together"),
    ] {
        refused(keys, &[&format!("connections[0].{path}: "), message]);
    }
}

#[test]
fn a_script_is_compiled_and_its_errors_have_a_position() {
    let with_script = connection("script: {file: good.rhai}, variables: {a: b}");
    assert!(with_script.script.as_ref().unwrap().text.starts_with("fn token_request"));
    assert_eq!(with_script.variables, [("a".to_owned(), Secret::new("b"))]);
    let problems = folder(&format!("{TOKEN_URL}, script: {{file: bad.rhai}}")).problems();
    assert!(
        problems.contains("bad.rhai:2:13: connections[0].script.file: the script")
            && problems.contains("; fix the script"),
        "{problems}"
    );
    refused("script: {file: gone.rhai}", &["connections[0].script.file: ", "cannot be read (no such file)"]);
    let two = "script: {file: good.rhai, source: \"fn token_request(request, ctx) { request }\"}";
    refused(two, &["main.yaml:2:", "connections[0].script: ", "exactly one source"]);
    let inline = "script: {source: \"fn token_request(request, ctx) { let x = ; }\"}";
    refused(inline, &["main.yaml:2:", "connections[0].script.source: the script", "(line 1, column 42 of the script)"]);
    refused("script: {}", &["connections[0].script: ", "exactly one source"]);
    refused("script: {source: \"fn other() { 1 }\"}", &["connections[0].script.source: the script"]);
    refused("variables: {a: b}", &["connections[0].variables: ", "variables have no effect without `script`"]);
}
