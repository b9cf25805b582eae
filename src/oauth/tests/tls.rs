//! TLS: server certificates of token endpoints, and our client certificate.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::*;
use crate::tls::read_client_certificate;

/// A self-signed certificate for `localhost`, valid until 2120, and its key.
const CERTIFICATE: &str = "MIIBMDCB16ADAgECAgEBMAoGCCqGSM49BAMCMBQxEjAQBgNVBAMMCWxvY2FsaG9zdDAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEw\
    MTAwMDAwMFowFDESMBAGA1UEAwwJbG9jYWxob3N0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAES5G42iXedMUR+c/0y1R6ZT2w\
    4FzQpeLln7fwoDjVTW+BeCTqaKB/PYUi8lK/YZz5S+Kykq7wigLDqNyUH4OTlKMYMBYwFAYDVR0RBA0wC4IJbG9jYWxob3N0MAoG\
    CCqGSM49BAMCA0gAMEUCIDQXgI08tKmxUpCAueVZHMUH9Mru792b4/HG+yeICVKQAiEAhYnIGuqr1IgLaEqIqYu+4S8yRjSgYVch\
    Pf2q/IR4yWI=";
const KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgXMxM0LUFX+Nw84ds82LxbReZWzSVhhnImkBSZ1ndkYuhRANCAARL\
    kbjaJd50xRH5z/TLVHplPbDgXNCl4uWft/CgONVNb4F4JOpooH89hSLyUr9hnPlL4rKSrvCKAsOo3JQfg5OU";

#[tokio::test]
async fn certificates_are_checked_against_the_roots_of_the_connection() {
    let certificate = CertificateDer::from(BASE64_STANDARD.decode(CERTIFICATE).unwrap());
    let key = PrivatePkcs8KeyDer::from(BASE64_STANDARD.decode(KEY).unwrap());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_no_client_auth().with_single_cert(vec![certificate.clone()], key.into()).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let roots = Roots::from([certificate]);
    for (host, trust, expected) in [
        ("localhost", Some(roots.clone()), None),
        ("localhost", None, Some("tls")),
        ("other.test", Some(roots), Some("tls")),
    ] {
        let server = Server::start(vec![reply("200 OK", GOOD)], Some(acceptor.clone())).await;
        let endpoint = endpoint(&format!("https://{host}:{}/", server.port), body_auth(), trust);
        let failure = endpoint.first_grant(TokenRequestContext::default()).await.err().map(name);
        assert_eq!(failure.as_deref(), expected);
    }
    let plain = Server::start(vec![reply("200 OK", GOOD)], None).await;
    let endpoint = endpoint(&format!("https://localhost:{}/", plain.port), body_auth(), None);
    assert_eq!(
        name(endpoint.first_grant(TokenRequestContext::default()).await.unwrap_err()),
        "timeout",
        "the cleartext server waits for a request head"
    );
}

#[test]
fn each_set_of_trust_anchors_has_one_client() {
    let clients = clients();
    let certificate = CertificateDer::from(BASE64_STANDARD.decode(CERTIFICATE).unwrap());
    for _ in 0..2 {
        let server =
            |trust| AuthorizationServer { trust, proxy: ServerProxy::Inherit, timeout: Duration::from_secs(1) };
        clients.get(&server(None), None).unwrap();
        clients.get(&server(Some(Roots::from([certificate.clone()]))), None).unwrap();
    }
    assert_eq!(clients.count(), 2);
}

/// A server that requires the client certificate.
fn acceptor_with_client_auth() -> (tokio_rustls::TlsAcceptor, Roots, ClientCertificate) {
    let certificate = CertificateDer::from(BASE64_STANDARD.decode(CERTIFICATE).unwrap());
    let key = PrivatePkcs8KeyDer::from(BASE64_STANDARD.decode(KEY).unwrap());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let pem = |kind: &str, text: &str| format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n");
    let own = (pem("CERTIFICATE", CERTIFICATE), Secret::new(pem("PRIVATE KEY", KEY)));
    let shown = read_client_certificate(own.0.as_bytes(), own.1).unwrap();
    let mut known = rustls::RootCertStore::empty();
    known.add_parsable_certificates(shown.chain.iter().cloned());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(known), provider.clone());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_client_cert_verifier(verifier.build().unwrap());
    let config = builder.with_single_cert(vec![certificate.clone()], key.into()).unwrap();
    (tokio_rustls::TlsAcceptor::from(Arc::new(config)), Roots::from([certificate]), shown)
}

#[tokio::test]
async fn a_client_certificate_is_presented_at_both_endpoints_with_any_method() {
    let (acceptor, roots, shown) = acceptor_with_client_auth();
    for with in [true, false] {
        let replies = vec![reply("200 OK", GOOD), reply("200 OK", "")];
        let server = Server::start(replies, Some(acceptor.clone())).await;
        let url = format!("https://localhost:{}/", server.port);
        let mut connection = connection(&url, body_auth(), Some(roots.clone()));
        connection.endpoints.revocation = Some(format!("{url}revoke").parse().unwrap());
        connection.mutual_tls = with.then(|| shown.clone());
        let endpoint = TokenEndpoint::new(Arc::new(connection), &clients()).unwrap();
        let granted = endpoint.first_grant(TokenRequestContext::default()).await;
        if !with {
            assert_eq!(granted.err().map(name).as_deref(), Some("tls"));
            continue;
        }
        assert_eq!(granted.unwrap().access_token.expose(), "t0ken");
        assert_eq!(endpoint.revoke("t0ken", "access_token").await, Ok(true));
        let revocation = server.request(1);
        assert_eq!(revocation.line, "POST /revoke HTTP/1.1");
        let expected =
            [("token", "t0ken"), ("token_type_hint", "access_token"), ("client_id", "id:7"), ("client_secret", CANARY)];
        assert_eq!(revocation.fields(), expected);
    }
}
