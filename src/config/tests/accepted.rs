//! Valid files and their models.

use super::*;
use crate::model::ListenAt;
use crate::model::connection::*;
use crate::model::egress::Unmatched;
use crate::model::{LogFormat, LogLevel, LogRequests, Role, Timeouts, Tracing};

const COMPLETE: &str = "\
listeners:
  proxy: [127.0.0.1:8080, {name: fleet, address: 0.0.0.0:8443}, 127.0.0.1:0]
  admin: {address: 0.0.0.0:9090, open: true}
  telemetry: 0.0.0.0:8082
workers: 3
readiness: {wait_for_tokens: 0s}
hosts: {API.acme.test: \"127.0.0.1:9443\"}
egress: {unmatched: deny, allow_private: true}
callers:
  - {name: billing, secret: {sha256: ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad}, cidr: [10.1.0.0/16]}
store: {memory: {}}
timeouts: {idle: 1h30m}
limits: {head: 8KiB, tunnels: 7}
log: {level: debug, format: json, requests: all}
tracing: {otlp: \"https://collector.test\", sample: 0.5}
connections:
  - name: crm
    active: false
    comments: |
      Billing's
      own
    grant: client_credentials
    client_id: id
    client_secret: [one, two]
    send_credentials: basic
    basic_encoding: raw
    token_url: https://login.acme.test:8443/token?x=1
    authorization_server: {timeout: 3s}
    scopes: \"a, b\\tc b\"
    audience: aud
    resource: res
    token_params: {x: \"1\", y: \"$${z}\", n: }
    default_token_lifetime: 2h
    refresh_ahead: 1m
    usable_margin: 0s
    token_rejected: [{status: 401}, {status: 403}, {status: 401}]
    accessible_from: [billing]
    routes:
      - {host: \"*.acme.test\", path: /services/, methods: [GET, POST, GET], upstream_tls: {server_name: x.test}}
      - {host: localhost, inject: {header: X-Token, scheme: \"\"}, existing: refuse, without_token: forward}
      - {mount: /, upstream: \"http://127.0.0.1:81/base\", inject: none}
  - {name: b, client_id: id, token_url: \"http://localhost/t\", scopes: [\"x y\", z], accessible_from: [], audience: ~}
";

#[test]
fn a_file_with_every_top_level_key_is_read() {
    let loaded = accept(COMPLETE);
    let model = &loaded.model;
    let proxies: Vec<_> = model.listeners.proxy.iter().map(|l| format!("{} {}", l.name, l.at)).collect();
    assert_eq!(proxies, ["proxy 127.0.0.1:8080", "fleet 0.0.0.0:8443", "proxy-3 127.0.0.1:0"]);
    assert_eq!(model.listeners.admin.address, "0.0.0.0:9090".parse().unwrap());
    assert_eq!(model.listeners.telemetry.as_ref().unwrap().name.as_str(), "telemetry");
    let collector = "https://collector.test/v1/traces".parse().unwrap();
    assert_eq!(model.tracing, Some(Tracing { collector, sample: 0.5 }));
    assert_eq!((model.workers, model.readiness_wait), (3, Duration::ZERO));
    assert_eq!((model.hosts[0].host.to_string().as_str(), model.hosts[0].port), ("api.acme.test", Some(9443)));
    assert_eq!((model.egress.unmatched, model.egress.allow_private.len()), (Unmatched::Deny, 7));
    assert_eq!(model.callers[0].secret, Some(crate::model::secret::SecretDigest::of(b"abc")));
    assert_eq!(model.timeouts, Timeouts { idle: Duration::from_secs(5400), ..Timeouts::default() });
    assert_eq!((model.limits.head_bytes, model.limits.tunnels, model.limits.per_upstream), (8192, 7, 1024));
    assert_eq!(
        (model.log.level, model.log.format, model.log.requests),
        (LogLevel::Debug, LogFormat::Json, LogRequests::All)
    );
    let warnings: Vec<_> = loaded.warnings.iter().map(|w| (w.line, w.path.as_str())).collect();
    assert_eq!(warnings, [(24, "connections[0].client_secret[0]"), (24, "connections[0].client_secret[1]")]);
    assert!(loaded.files.is_empty());
}

#[test]
fn every_key_of_a_connection_is_read() {
    let model = accept(COMPLETE).model;
    let crm = &model.connections[0];
    assert_eq!((crm.active, crm.comments.as_deref(), crm.client_id.as_str()), (false, Some("Billing's\nown\n"), "id"));
    let ClientAuth::Basic(secrets, BasicEncoding::Raw) = &crm.client_auth else { panic!("{:?}", crm.client_auth) };
    assert_eq!(secrets.iter().map(|secret| secret.expose()).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(crm.endpoints.token.as_ref().unwrap().as_str(), "https://login.acme.test:8443/token?x=1");
    assert_eq!(
        (crm.authorization_server.timeout, crm.authorization_server.trust.is_none()),
        (Duration::from_secs(3), true)
    );
    assert_eq!(crm.scopes, ["a", "b", "c"]);
    assert_eq!((crm.audience.as_deref(), crm.resource.as_deref()), (Some("aud"), Some("res")));
    assert_eq!(crm.token_params, [("x".to_owned(), "1".to_owned()), ("y".to_owned(), "${z}".to_owned())]);
    let seconds = Duration::from_secs;
    let lifetimes = Lifetimes {
        refresh_token: None,
        default_token_lifetime: seconds(7200),
        refresh_ahead: seconds(60),
        usable_margin: seconds(0),
        keep_warm: None,
    };
    assert_eq!(crm.lifetimes, lifetimes);
    let statuses: Vec<_> = crm.token_rejected.iter().map(|sign| sign.status.as_u16()).collect();
    assert_eq!(statuses, [401, 403]);
    assert_eq!(crm.accessible_from.as_ref().unwrap()[0].as_str(), "billing");
    let b = &model.connections[1];
    assert!(matches!(b.client_auth, ClientAuth::None) && b.audience.is_none() && b.active);
    assert_eq!(
        (b.scopes.as_slice(), b.accessible_from.as_deref()),
        (&["x y".to_owned(), "z".to_owned()][..], Some(&[][..]))
    );
    assert_eq!(
        (b.lifetimes, b.token_rejected.as_slice()),
        (Lifetimes::default(), &[RejectionSign::of_status(http::StatusCode::UNAUTHORIZED)][..])
    );
}

#[test]
fn every_key_of_a_route_is_read() {
    let model = accept(COMPLETE).model;
    let [below, local, mount] = &model.connections[0].routes[..] else { panic!("three routes") };
    assert!(
        matches!(&below.matches, RouteMatch::Host { pattern: HostPattern::Subdomains(h), port: PortRule::Default } if h.to_string() == "acme.test")
    );
    assert_eq!((below.path.as_str(), below.methods.as_ref().unwrap().len()), ("/services", 2));
    assert_eq!((below.tls.upgrade, below.tls.server_name.as_ref().unwrap().to_string().as_str()), (true, "x.test"));
    assert!(
        matches!(&below.inject, Inject::Header { header, scheme } if header == "authorization" && scheme == "Bearer")
    );
    assert!(matches!(&local.inject, Inject::Header { header, scheme } if header == "x-token" && scheme.is_empty()));
    assert_eq!(
        (local.existing, local.without_token, local.tls.upgrade),
        (Existing::Refuse, WithoutToken::Forward, false)
    );
    let RouteMatch::Mount { prefix, upstream, base } = &mount.matches else { panic!("{:?}", mount.matches) };
    assert_eq!(
        (prefix.is_root(), upstream.to_string().as_str(), base.as_str()),
        (true, "http://127.0.0.1:81", "/base")
    );
    assert_eq!((mount.tls.upgrade, &mount.inject), (false, &Inject::Nothing));
}

#[test]
fn an_empty_file_means_all_defaults() {
    for text in ["", "# nothing\n", "---\n", "~", "{}", "connections:\n", "connections: []"] {
        let loaded = accept(text);
        assert_eq!(loaded.model.listeners.proxy[0].at, ListenAt::Address("127.0.0.1:8080".parse().unwrap()));
        assert_eq!(loaded.model.listeners.admin.address, "127.0.0.1:8081".parse().unwrap());
        assert!((1..=4).contains(&loaded.model.workers) && loaded.model.listeners.telemetry.is_none());
        assert_eq!(loaded.warnings[0].message, "no connections are configured");
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the expected value of the reference")]
fn aliases_and_references_are_resolved() {
    let shared = "connections:\n  - {name: a, client_id: &id \"x-${env:PATH}\", token_url: &u \"https://a.test/t\"}\n  - {name: b, client_id: *id, token_url: *u}\n";
    let model = accept(shared).model;
    let path = std::env::var("PATH").unwrap();
    assert_eq!(
        (model.connections[1].client_id.clone(), model.connections[0].client_id.clone()),
        (format!("x-{path}"), format!("x-{path}"))
    );
}

#[test]
fn a_large_file_is_read_in_less_than_a_second_of_work() {
    let mut text = "connections:\n".to_owned();
    for index in 0..10_000 {
        let good = GOOD.replace("crm", &format!("c{index}"));
        text +=
            &format!("  - {{{good}, scopes: [a, b], routes: [{{host: \"h{index}.test\", methods: [GET, PUT]}}]}}\n");
    }
    let start = cpu_time();
    assert_eq!(accept(&text).model.connections.len(), 10_000);
    assert!(cpu_time() - start < Duration::from_secs(1));
    let start = cpu_time();
    assert!(load_text(&text.replace("name: c", "name: C"), Path::new("a.yaml")).is_err());
    assert!(cpu_time() - start < Duration::from_secs(1));
}

#[test]
fn admin_users_are_read_and_permit_listening_beyond_loopback() {
    use crate::model::Role;
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let loaded = accept(&format!(
        "listeners: {{admin: 0.0.0.0:8081}}\nstate_dir: kept\nadmin:\n  hosts: [Keys.test, \"[::1]:80\"]\n  users: [{{name: a, \
         role: operator, token: {{sha256: {digest}}}}}, {{name: b, role: viewer, token: x}}]\n"
    ));
    let admin = &loaded.model.admin;
    let users: Vec<_> = admin.users.iter().map(|user| (user.name.as_str(), user.role)).collect();
    assert_eq!(users, [("a", Role::Operator), ("b", Role::Viewer)]);
    assert_eq!(admin.users[0].token, crate::model::secret::SecretDigest::of(b"abc"));
    let hosts: Vec<_> = admin.hosts.iter().map(|host| (host.host.to_string(), host.port)).collect();
    assert_eq!(hosts, [("keys.test".to_owned(), None), ("[::1]".to_owned(), Some(80))]);
    assert_eq!(loaded.model.state_dir, Path::new("kept"));
    let warnings: Vec<_> = loaded.warnings.iter().map(|warning| warning.path.as_str()).collect();
    assert_eq!(warnings, ["connections", "admin.users[1].token"]);
}

#[test]
fn an_instance_is_located_without_its_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    let text = "listeners: {admin: \"0.0.0.0:9\", telemetry: \"[::]:8\"}\nstate_dir: s\n\
                connections: [{name: a, client_secret: {file: gone}}]\n";
    std::fs::write(&file, text).unwrap();
    let found = locate_instance(&file);
    assert_eq!(
        (found.admin.address, found.health.address),
        ("127.0.0.1:9".parse().unwrap(), "[::1]:8".parse().unwrap())
    );
    assert!(!found.admin.secure && found.trust.is_empty());
    assert_eq!(found.state_dir, dir.path().join("s"));
    assert_eq!(locate_instance(Path::new("/nowhere/a.yaml")).admin.address, "127.0.0.1:8081".parse().unwrap());
}

#[test]
fn sign_in_has_defaults_and_counts_as_users() {
    let text = "listeners: {admin: \"0.0.0.0:1\"}\nadmin: {sign_in: {issuer: https://op.test/x, client_id: kb, scopes: \"email,groups\", \
                claim: /realm/roles, roles: {a b: viewer, ops: operator, all: manager}, \
                redirect_url: https://keys.test/kb/sign-in/callback, session: 30m}}\n";
    let sign_in = accept(text).model.admin.sign_in.unwrap();
    assert_eq!(sign_in.scopes, ["openid", "email", "groups"]);
    assert_eq!((sign_in.claim.parts().join("|").as_str(), sign_in.session), ("realm|roles", Duration::from_secs(1800)));
    assert_eq!(sign_in.role(["ops", "x", "a b"]), Some(Role::Operator));
    assert_eq!((sign_in.role(["x"]), sign_in.role([])), (None, None));
    let short = "admin: {sign_in: {issuer: http://127.0.0.1:1, client_id: kb, claim: \"https://acme.test/g\", roles: {a: viewer}}}\n";
    let model = accept(short).model;
    let short = model.admin.sign_in.unwrap();
    assert_eq!(
        (short.scopes.join(" ").as_str(), short.claim.parts()),
        ("openid", &["https://acme.test/g".to_owned()][..])
    );
    assert_eq!((short.session, short.redirect_url.is_none()), (Duration::from_secs(8 * 3600), true));
    assert_ne!(short.digest(), sign_in.digest());
}
