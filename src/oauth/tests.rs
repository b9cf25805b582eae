//! The OAuth client against a scripted raw HTTP server: bytes on the wire, and broken responses.

mod private;
mod scripts;
mod server;
mod tls;

use std::error::Error as _;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::net::TcpListener;

use super::*;
use crate::dial::{AddressPolicy, Dialer, NetworkSettings};
use crate::model::connection::{AuthorizationServer, BasicEncoding, ClientAuth, Endpoints, ServerProxy};
use crate::model::connection::{ClientCertificate, DefinedIn, ForwardProxy, Revision, WrittenDefinition};
use crate::model::origin::Host;
use crate::model::secret::Secret;
use crate::model::{HostOverride, Roots};
use crate::tasks::Tasks;
use crate::tls::Trust;
use server::{Reply, Request, Server, reply};

const CANARY: &str = "c4n4ry+S3cret/%";
const GOOD: &str = r#"{"access_token":"t0ken","token_type":"Bearer","expires_in":60,"scope":"a"}"#;

fn connection(token_url: &str, client_auth: ClientAuth, trust: Option<Roots>) -> Connection {
    Connection {
        client_id: "id:7".to_owned(),
        client_auth,
        endpoints: Endpoints::of_token_url(token_url.parse().unwrap()),
        authorization_server: AuthorizationServer {
            trust,
            proxy: ServerProxy::Inherit,
            timeout: Duration::from_millis(700),
        },
        scopes: vec!["a".to_owned(), "b/c".to_owned()],
        audience: Some("https://api.test".to_owned()),
        token_params: vec![("x".to_owned(), "1 & 2".to_owned())],
        ..Connection::sample("crm")
    }
}

fn clients() -> HttpClients {
    let names = ["idp.test", "other.test", "localhost"].map(|name| Host::parse(name).unwrap());
    let policy = names.iter().cloned().fold(AddressPolicy::default(), AddressPolicy::permitting_private);
    let hosts = names.map(|host| HostOverride { host, address: Ipv4Addr::LOCALHOST.into(), port: None });
    HttpClients::new(
        Trust::new(&Roots::from([])),
        Dialer::new(NetworkSettings { hosts: &hosts, policy, egress_proxy: None }, &Tasks::default(), None),
    )
}

fn endpoint(url: &str, auth: ClientAuth, trust: Option<Roots>) -> TokenEndpoint {
    TokenEndpoint::new(Arc::new(connection(url, auth, trust)), &clients()).unwrap()
}

impl Server {
    fn endpoint(&self, auth: ClientAuth) -> TokenEndpoint {
        endpoint(&format!("http://idp.test:{}/token?tenant=7", self.port), auth, None)
    }
}

fn body_auth() -> ClientAuth {
    ClientAuth::Body(vec![Secret::new(CANARY)])
}

/// The failure's name, after a check that it shows no secret.
#[track_caller]
fn name(failure: Failure) -> String {
    let shown = format!("{failure:?} {failure} {:?}", failure.source());
    for part in [CANARY, "c4n4ry", "S3cret", "t0ken", "api.test"] {
        assert!(!shown.contains(part), "{shown}");
    }
    match failure {
        Failure::Retryable { reason, .. } => reason.to_string(),
        Failure::Permanent(refusal) => format!("[{refusal}]"),
        Failure::Script { message, .. } => message,
    }
}

const GRANT_FIELDS: [(&str, &str); 4] =
    [("grant_type", "client_credentials"), ("scope", "a b/c"), ("audience", "https://api.test"), ("x", "1 & 2")];

async fn sent(auth: ClientAuth) -> Request {
    let server = Server::start(vec![reply("200 OK", GOOD)], None).await;
    let token = server.endpoint(auth).first_grant(TokenRequestContext::default()).await.unwrap();
    assert_eq!(token.access_token.expose(), "t0ken");
    assert_eq!((token.expires_in, token.scopes), (Some(Duration::from_secs(60)), Some(vec!["a".to_owned()])));
    let request = server.request(0);
    assert_eq!(request.line, "POST /token?tenant=7 HTTP/1.1");
    assert_eq!(request.headers["host"], format!("idp.test:{}", server.port));
    assert_eq!(request.headers["accept"], "application/json");
    assert_eq!(request.headers["content-type"], "application/x-www-form-urlencoded");
    assert_eq!(request.headers["user-agent"], concat!("keybearer/", env!("CARGO_PKG_VERSION")));
    assert_eq!(request.headers["accept-encoding"], "identity");
    request
}

/// The send deadline of a refresh token may pass while the connection is being established.
#[tokio::test]
async fn a_form_is_not_sent_after_its_deadline() {
    let boot = Clock::system().now().boot;
    let token = RefreshToken::parse("r3fresh").unwrap();
    for (send_deadline, outcome) in [(boot + Duration::from_secs(60), "sent"), (boot, "not_sent")] {
        let server = Server::start(vec![reply("200 OK", GOOD)], None).await;
        let context = TokenRequestContext { send_deadline: Some(send_deadline), ..TokenRequestContext::default() };
        let got = server.endpoint(body_auth()).refresh(&token, context).await;
        match got {
            Ok(_) => {
                assert_eq!(outcome, "sent");
                let request = server.request(0);
                assert!(request.headers.contains_key("content-length"), "a form has a known length");
                assert_eq!(request.fields[0], ("grant_type".to_owned(), "refresh_token".to_owned()));
            }
            Err(failure) => {
                assert!(!failure.may_have_been_granted());
                assert_eq!(name(failure), outcome);
                assert_eq!(server.count(), 0, "the server received no complete request");
            }
        }
    }
}

#[tokio::test]
async fn each_client_auth_method_is_sent_once() {
    let body = sent(body_auth()).await;
    let own = [("client_id", "id:7"), ("client_secret", CANARY)];
    assert_eq!(body.fields(), [&GRANT_FIELDS[..], &own].concat());
    assert!(!body.headers.contains_key("authorization"));

    let none = sent(ClientAuth::None).await;
    assert_eq!(none.fields(), [&GRANT_FIELDS[..], &own[..1]].concat());
    assert!(!none.headers.contains_key("authorization"));

    let codings = [(BasicEncoding::Form, "id%3A7:c4n4ry%2BS3cret%2F%25"), (BasicEncoding::Raw, "id:7:c4n4ry+S3cret/%")];
    for (encoding, credentials) in codings {
        let basic = sent(ClientAuth::Basic(vec![Secret::new(CANARY)], encoding)).await;
        assert_eq!(basic.fields(), GRANT_FIELDS);
        assert_eq!(basic.headers["authorization"], format!("Basic {}", BASE64_STANDARD.encode(credentials)));
    }
}

#[tokio::test]
async fn an_absent_setting_is_not_sent() {
    let server = Server::start(vec![reply("201 ", GOOD)], None).await;
    let url = format!("http://user:pass@idp.test:{}/token#x", server.port);
    let mut connection = connection(&url, ClientAuth::None, None);
    (connection.scopes, connection.audience, connection.token_params) = Default::default();
    connection.resource = Some("urn:r".to_owned());
    let endpoint = TokenEndpoint::new(Arc::new(connection), &clients()).unwrap();
    endpoint.first_grant(TokenRequestContext::default()).await.unwrap();
    let fields = [("grant_type", "client_credentials"), ("resource", "urn:r"), ("client_id", "id:7")];
    assert_eq!(server.request(0).fields(), fields);
    assert_eq!(server.request(0).line, "POST /token HTTP/1.1");
    assert!(!server.request(0).headers.contains_key("authorization"));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    for status in ["302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let other = Server::start(vec![reply("200 OK", GOOD)], None).await;
        let response = format!("HTTP/1.1 {status}\r\nLocation: http://evil.test:{}/\r\n", other.port);
        let response = Reply::Text(format!("{response}Content-Length: 0\r\n\r\n"));
        let server = Server::start(vec![response, reply("200 OK", GOOD)], None).await;
        let failure = server.endpoint(body_auth()).first_grant(TokenRequestContext::default()).await.unwrap_err();
        assert!(format!("{failure:?}").contains("set token_url to the final address"), "{failure:?}");
        assert!(!failure.is_permanent());
        assert_eq!((server.count(), other.count()), (1, 0));
    }
}

#[track_caller]
fn check(failure: Failure, expected: &str, outcome: Outcome) {
    assert_eq!(failure.outcome(), outcome, "{expected}");
    assert_eq!(name(failure), expected);
}

#[tokio::test]
async fn a_broken_response_is_bounded_in_size_and_time() {
    let large = reply("200 OK", &format!("{GOOD}{}", " ".repeat(2 << 20)));
    let heads = Reply::Text(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(4 << 20)));
    let gzip = Reply::Text("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nzip".to_owned());
    let short = Reply::Text("HTTP/1.1 200 OK\r\nContent-Length: 900\r\nConnection: close\r\n\r\n{".to_owned());
    for (reply, expected, outcome) in [
        (large, "too_large", Outcome::InvalidAnswer),
        (Reply::Endless, "too_large", Outcome::InvalidAnswer),
        (Reply::Trickle, "timeout", Outcome::Unavailable),
        (Reply::Reset, "connection_lost", Outcome::Unavailable),
        (short, "connection_lost", Outcome::Unavailable),
        (heads, "not_http", Outcome::InvalidAnswer),
        (Reply::Text("SSH-2.0-x\r\n\r\n".to_owned()), "not_http", Outcome::InvalidAnswer),
        (gzip, "not_json", Outcome::InvalidAnswer),
        (reply("200 OK", ""), "empty", Outcome::InvalidAnswer),
        (reply("503 Busy", "<html>"), "http_503", Outcome::Unavailable),
    ] {
        let server = Server::start(vec![reply], None).await;
        let start = Instant::now();
        let failure = server.endpoint(body_auth()).first_grant(TokenRequestContext::default()).await.unwrap_err();
        assert!(start.elapsed() < Duration::from_millis(1500), "{expected}");
        check(failure, expected, outcome);
        assert_eq!(server.count(), 1, "{expected}: no retry");
    }
}

#[tokio::test]
async fn a_closed_port_is_unreachable() {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
    let endpoint = endpoint(&format!("http://idp.test:{port}/"), body_auth(), None);
    check(endpoint.first_grant(TokenRequestContext::default()).await.unwrap_err(), "unreachable", Outcome::Unavailable);
}

#[tokio::test]
async fn the_next_secret_is_tried_only_when_the_client_is_refused() {
    let refused = || reply("401 No", r#"{"error":"invalid_client"}"#);
    let bare = reply("403 No", "");
    let good = || reply("200 OK", GOOD);
    let server = Server::start(vec![refused(), bare, good(), good(), refused(), refused(), refused()], None).await;
    let secrets = ["one", "two", "three"].map(Secret::new).to_vec();
    let endpoint = server.endpoint(ClientAuth::Body(secrets));
    endpoint.first_grant(TokenRequestContext::default()).await.unwrap();
    endpoint.first_grant(TokenRequestContext::default()).await.unwrap();
    check(
        endpoint.first_grant(TokenRequestContext::default()).await.unwrap_err(),
        "[invalid_client]",
        Outcome::Refused,
    );
    let used: Vec<_> = (0..server.count()).map(|i| server.request(i).fields.pop().unwrap().1).collect();
    assert_eq!(used, ["one", "two", "three", "three", "three", "one", "two"], "the secret accepted last comes first");

    // A bare 403 may come from a gateway: it does not rule a secret out.
    for (answers, expected, outcome) in [
        ([reply("403 No", ""), reply("403 No", "")], "http_403", Outcome::Unavailable),
        ([reply("403 No", "<html>"), refused()], "http_403", Outcome::Unavailable),
        ([refused(), reply("401 No", "")], "http_401", Outcome::Unavailable),
        ([refused(), refused()], "[invalid_client]", Outcome::Refused),
    ] {
        let server = Server::start(answers.into(), None).await;
        let endpoint = server.endpoint(ClientAuth::Body(["one", "two"].map(Secret::new).to_vec()));
        check(endpoint.first_grant(TokenRequestContext::default()).await.unwrap_err(), expected, outcome);
        assert_eq!(server.count(), 2, "{expected}");
    }

    for (response, expected) in [
        (reply("400 No", r#"{"error":"invalid_scope"}"#), "[invalid_scope]"),
        (reply("403 No", r#"{"error":"access_denied"}"#), "[access_denied]"),
        (reply("500 No", ""), "http_500"),
        (Reply::Reset, "connection_lost"),
    ] {
        let server = Server::start(vec![response, good()], None).await;
        let endpoint = server.endpoint(ClientAuth::Body(["one", "two"].map(Secret::new).to_vec()));
        assert_eq!(name(endpoint.first_grant(TokenRequestContext::default()).await.unwrap_err()), expected);
        assert_eq!(server.count(), 1);
    }
}

#[tokio::test]
async fn an_echo_of_the_request_is_redacted() {
    let basic = BASE64_STANDARD.encode("id%3A7:c4n4ry%2BS3cret%2F%25");
    for (echo, expected) in [
        ("secret c4n4ry+S3cret/% for app id:7", "[e]"),
        ("client_secret=c4n4ry%2BS3cret%2F%25", "[e]"),
        ("c4n4ry+S3", "[e]"),
        (basic.as_str(), "[e]"),
        ("no audience https://api.test", "[e (no audience ***)]"),
    ] {
        let body = format!(r#"{{"error":"e","error_description":"{echo}"}}"#);
        let server = Server::start(vec![reply("400 No", &body)], None).await;
        let auth = ClientAuth::Basic(vec![Secret::new(CANARY)], BasicEncoding::Form);
        assert_eq!(
            name(server.endpoint(auth).first_grant(TokenRequestContext::default()).await.unwrap_err()),
            expected,
            "{echo}"
        );
    }
}

#[test]
fn the_future_of_a_request_is_send() {
    fn check(_: impl Send) {}
    let endpoint = endpoint("http://localhost/", ClientAuth::None, None);
    check(endpoint.first_grant(TokenRequestContext::default()));
}

/// A definition of a file or of the API whose server is reached at `url`: as its token URL, its issuer or its proxy.
fn reaching(key: &str, url: Url, is_file: bool) -> Connection {
    let mut definition = connection("http://192.0.2.1/token", body_auth(), None);
    let defined_in = if is_file { definition.written.defined_in.clone() } else { DefinedIn::Api(Revision::random()) };
    definition.written = Arc::new(WrittenDefinition { defined_in, json: String::new(), lines: Vec::new() });
    match key {
        "token" => definition.endpoints = Endpoints::of_token_url(url),
        "proxy" => {
            let proxy = ForwardProxy { url, credentials: None, trust: None, may_be_private: is_file };
            definition.authorization_server.proxy = ServerProxy::Own(proxy);
        }
        _ => {
            definition.endpoints.token = None;
            definition.endpoints.issuer = Some(url.to_string());
        }
    }
    definition
}

/// Only files open private addresses, whether a definition names them literally or by a name.
#[tokio::test]
async fn no_url_of_a_definition_made_over_the_api_has_a_private_address() {
    let host = Host::parse("internal.test").unwrap();
    let hosts = [HostOverride { host, address: Ipv4Addr::LOCALHOST.into(), port: None }];
    for (is_file, reached) in [(true, 1), (false, 0)] {
        for (key, name) in
            [("token", "127.0.0.1"), ("issuer", "127.0.0.1"), ("proxy", "127.0.0.1"), ("proxy", "internal.test")]
        {
            let server = Server::start(vec![reply("400 Bad Request", "{}")], None).await;
            let url: Url = format!("http://{name}:{}", server.port).parse().unwrap();
            let definition = reaching(key, url, is_file);
            let settings = NetworkSettings { hosts: &hosts, policy: AddressPolicy::default(), egress_proxy: None };
            let dialer = Dialer::new(settings, &Tasks::default(), None);
            let clients = HttpClients::new(Trust::new(&Roots::from([])), dialer);
            let endpoint = TokenEndpoint::new(Arc::new(definition), &clients).unwrap();
            assert!(endpoint.first_grant(TokenRequestContext::default()).await.is_err());
            if !is_file {
                let checks = endpoint.preflight(None).await;
                assert!(checks.iter().any(|check| check.outcome == CheckOutcome::Failed), "{checks:?}");
            }
            assert_eq!(server.count(), reached, "file: {is_file}, {key} at {name}");
        }
    }
}
