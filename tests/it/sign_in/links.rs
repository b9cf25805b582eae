//! A consent link that needs an operator leads to the sign-in on the admin listener, and back.

use serde_json::json;

use crate::rig::browser::Browser;
use crate::rig::peers::{AuthorizationServer, Peers};
use crate::rig::sidecar::Sidecar;

const SECRET: &str = "p-web-secret-0123456789abcdef0123456789abcdef";

fn unused_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port()
}

async fn start(server: &AuthorizationServer, top: &str, public: &str) -> Sidecar {
    let issuer = server.issuer();
    let config = format!(
        "listeners: {{proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"{public}}}\n{top}trust: [\"{}\"]\n\
         admin: {{sign_in: {{issuer: \"{issuer}\", client_id: p-web, client_secret: {SECRET}, roles: {{ops: operator}}}}}}\n\
         connections:\n- {{name: crm, issuer: \"{issuer}\", grant: authorization_code, client_id: p-web, client_secret: {SECRET}, \
         send_credentials: basic, profiles: [{{name: other}}], routes: [{{host: api.test}}]}}\n",
        Peers::certs().ca.display()
    );
    Sidecar::spawn(&config, &[]).await
}

#[tokio::test]
async fn an_operator_signs_in_and_returns_to_the_link() {
    let server = AuthorizationServer::op(json!({"groups": {"ann": ["ops"]}})).await;
    let port = unused_port();
    let certs = Peers::certs().leaf("server");
    let public = format!(
        ", public: {{address: \"127.0.0.1:{port}\", tls: {{certificate: \"{}\", key: {{file: \"{}\"}}}}}}",
        certs.0.display(),
        certs.1.display()
    );
    let (here, elsewhere) = (start(&server, "", "").await, format!("https://api.test:{port}"));
    let other = start(&server, &format!("public_url: \"{elsewhere}\"\n"), &public).await;
    let browser = Browser::start().await;
    let local = format!("http://localhost:{}", here.admin().port());
    for (context, base, sidecar) in [("a", &local, &here), ("b", &elsewhere, &other)] {
        let tab = browser.tab(context, "1");
        let page = tab.open(&format!("{base}/connect/crm?profile=other")).await;
        assert_eq!((page.status(), page.title()), (401, "Sign in · Keybearer"), "{}", page.text());
        tab.click("a[href*='/sign-in']").await;
        tab.wait_until(&server.issuer(), "Continue").await;
        tab.sign_in("ann").await;
        tab.wait_until(&server.issuer(), "ann, may").await;
        tab.approve().await;
        if context == "b" {
            // The session's cookie is not sent to the other host: the operator gets a one-time link there.
            let page = tab.wait_until("/sign-in/connect/crm?profile=other", "Continue to the link?").await;
            assert!(page.url().starts_with("http://localhost:"), "{}", page.url());
            tab.click("#confirm").await;
        }
        let page = tab.wait_until(&format!("{base}/connect/crm"), "Connect an account?").await;
        assert!(page.text().contains("other") && page.text().contains("ann-"), "{}\n{}", page.text(), sidecar.log());
    }
}
