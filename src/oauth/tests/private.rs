//! Private hosts that files open to definitions made over the API.

use super::server::*;
use super::*;

/// A definition made over the API reaches a private host that files name only at the ports that files name.
#[tokio::test]
async fn a_file_opens_its_hosts_to_the_api_only_at_its_ports() {
    for (is_file, is_named, reached) in [(true, false, 1), (false, true, 1), (false, false, 0)] {
        for key in ["token", "issuer", "proxy"] {
            let server = Server::start(vec![reply("400 Bad Request", "{}")], None).await;
            // `localhost` needs no entry under `hosts`, which would open all ports.
            let url: Url = format!("http://localhost:{}", server.port).parse().unwrap();
            let port = if is_named { server.port } else { 1 };
            let file = format!(
                "connections: [{{name: own, client_id: id, token_url: \"https://as.test/t\", routes: [{{host: \
                 \"localhost:{port}\", upstream_tls: false}}]}}]"
            );
            let model = crate::config::load_text(&file, std::path::Path::new("a.yaml")).unwrap().model;
            let definition = reaching(key, url, is_file);
            let policy = AddressPolicy::new(&model, &[]);
            let settings = NetworkSettings { hosts: &[], policy, egress_proxy: None };
            let dialer = Dialer::new(settings, &Tasks::default(), None);
            let clients = HttpClients::new(Trust::new(&Roots::from([])), dialer);
            let endpoint = TokenEndpoint::new(Arc::new(definition), &clients).unwrap();
            assert!(endpoint.first_grant(TokenRequestContext::default()).await.is_err());
            assert_eq!(server.count(), reached, "file: {is_file}, named: {is_named}, {key}");
        }
    }
}
