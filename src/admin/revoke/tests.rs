//! Revocation of all tokens of a connection, at a server that records what it receives.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Mutex;

use axum::Router;
use axum::routing::post;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use url::form_urlencoded;

use super::all::{forget_all, revoke_all};
use super::*;
use crate::admin::{self, Access, BoundListener};
use crate::clock::Clock;
use crate::config;
use crate::model::token::{AccessToken, RefreshToken, Subject};
use crate::model::{Name, Role};
use crate::reload::{Parts, Wiring};
use crate::store::{self, MemoryStore, Refresh, RefreshLife, StoredToken};
use crate::sync::lock;
use crate::tasks::Tasks;
use crate::telemetry::audit::Audit;
use crate::telemetry::events::Events;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;
use crate::token::TokenCache;

const SECOND: Duration = Duration::from_secs(1);

/// An authorization server's revocation endpoint.
struct Server {
    address: SocketAddr,
    /// The tokens that it was asked to revoke.
    revoked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(responds: bool) -> Server {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (address, revoked) = (socket.local_addr().unwrap(), Arc::<Mutex<Vec<String>>>::default());
        let seen = revoked.clone();
        let revoke = post(async move |body: String| {
            let token = form_urlencoded::parse(body.as_bytes()).find(|(name, _)| name == "token");
            lock(&seen).extend(token.map(|(_, token)| token.into_owned()));
            if !responds {
                std::future::pending::<()>().await;
            }
        });
        let router = Router::new().route("/revoke", revoke);
        admin::serve(&Tasks::default(), BoundListener { socket, tls: None }, router, 100).unwrap();
        Server { address, revoked }
    }

    fn revoked(&self) -> Vec<String> {
        let mut revoked = lock(&self.revoked).clone();
        revoked.sort();
        revoked
    }

    /// The keys of a connection whose client and endpoints are at this server.
    fn keys(&self, name: &str) -> String {
        let address = self.address;
        format!(
            "name: {name}, client_id: a, client_secret: b, token_url: \"http://{address}/token\", \
             revocation_url: \"http://{address}/revoke\""
        )
    }
}

fn admin_of(connections: &[String]) -> Admin {
    let connections: String = connections.iter().map(|connection| format!("- {{{connection}}}\n")).collect();
    let top =
        "store: {memory: {}}\nadmin: {users: [{name: ops, role: manager, token: a-token-of-this-test-0123456789}]}\n";
    let loaded = config::load_text(&format!("{top}connections:\n{connections}"), Path::new("/none/keybearer.yaml"));
    let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}"));
    let model = &loaded.model;
    let (clock, tasks, metrics) = (Clock::system(), Tasks::default(), Metrics::new().unwrap());
    let (events, audit, health) = (Events::default(), Audit::default(), Arc::<Health>::default());
    let store = Arc::new(MemoryStore::default());
    let cache = TokenCache::new(store, clock.clone(), tasks.clone(), metrics.clone(), events.clone(), audit.clone());
    let (cache, access) = (Arc::new(cache), Arc::new(Access::new(model)));
    let seal = Arc::new(store::sealer(model).unwrap());
    let parts = Parts {
        clock: clock.clone(),
        tasks: tasks.clone(),
        metrics: metrics.clone(),
        health: health.clone(),
        cache: cache.clone(),
        access: access.clone(),
        events: events.clone(),
        audit: audit.clone(),
        seal: seal.clone(),
        logos: Arc::default(),
        listeners: Vec::new(),
    };
    let (wiring, _) = Wiring::start(parts, &loaded).unwrap();
    Admin {
        health,
        metrics,
        cache,
        clock,
        snapshot: wiring.snapshot.clone(),
        access,
        events,
        audit,
        activity: Arc::default(),
        sign_in_limiter: Arc::default(),
        event_streams: Arc::new(Semaphore::new(1)),
        preflights: Arc::new(Semaphore::new(1)),
        seal,
        logos: Arc::default(),
        tasks,
        device_notifier: Default::default(),
        reload: None,
    }
}

impl Admin {
    /// The definition of a connection by one of its profiles.
    fn connection(&self, name: &str, profile: &str) -> Arc<Connection> {
        let snapshot = self.snapshot.load();
        admin::problem::definition(bound(&snapshot, name).unwrap(), Some(profile)).unwrap().connection.clone()
    }

    /// Stores a token with a refresh token for `key`; both end with `text`.
    async fn keep(&self, connection: &Connection, key: &TokenKey, text: &str) {
        let token = StoredToken {
            identity: connection.identity(),
            origins: Arc::new(connection.origins()),
            access_token: AccessToken::parse(&format!("access-{text}")).unwrap(),
            obtained: self.clock.now(),
            lifetime: 3600 * SECOND,
            scopes: None,
            refresh: Refresh::Token(RefreshToken::parse(&format!("refresh-{text}")).unwrap()),
            refresh_life: RefreshLife::default(),
            version: 0,
        };
        let lease = self.cache.store().lease(key, SECOND, SECOND).await.unwrap();
        self.cache.store().save(key, token, &*lease).await.unwrap();
        lease.release(true).await;
    }

    /// The keys of the tokens that are in the store.
    async fn stored(&self, name: &str) -> Vec<String> {
        let page = self.cache.store().list(&Name::parse(name).unwrap(), None, usize::MAX).await.unwrap();
        page.into_iter().map(|(key, _)| key.to_string()).collect()
    }

    async fn revoke_all(&self, name: &str) -> Value {
        let snapshot = self.snapshot.load_full();
        let user = user();
        let revoked = revoke_all(self, bound(&snapshot, name).unwrap(), &user);
        is_send(&revoked);
        json!(revoked.await.unwrap().report())
    }
}

/// Handlers must be `Send`.
fn is_send(_: &impl Send) {}

fn user() -> AuthenticatedUser {
    AuthenticatedUser {
        name: Name::parse("ops").unwrap(),
        role: Role::Manager,
        from: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
    }
}

fn subject(text: &str) -> Option<Subject> {
    Some(Subject::parse(text).unwrap())
}

#[track_caller]
fn assert_counts(report: &Value, revoked: usize, not_revoked: usize, failed: usize) {
    let counts = ["revoked", "not_revoked", "failed"].map(|name| report[name].as_u64().unwrap() as usize);
    assert_eq!(counts, [revoked, not_revoked, failed], "{report}");
}

/// The listed token of a profile and subject.
fn listed<'r>(report: &'r Value, profile: &str, subject: Option<&str>) -> &'r Value {
    let tokens = report["tokens"].as_array().unwrap();
    let found = tokens.iter().find(|token| token["profile"] == profile && token["subject"].as_str() == subject);
    found.unwrap_or_else(|| panic!("{profile} {subject:?}: {report}"))
}

#[tokio::test]
async fn every_token_is_revoked_wherever_it_is_and_no_record_remains() {
    let server = Server::start(true);
    let profiles =
        ", grant: password, username: u, password: p, tokens: per_subject, profiles: [{name: read, scopes: r}]";
    let admin = admin_of(&[server.keys("crm") + profiles, server.keys("crm-2") + ", tokens: per_subject"]);
    let (default, read) = (admin.connection("crm", "default"), admin.connection("crm", "read"));
    // More than a page, and those of two profiles.
    for number in 0..300 {
        let subject = subject(&format!("s{number:03}"));
        admin.keep(&default, &default.token_key(subject.clone()), &format!("d{number:03}")).await;
    }
    admin.keep(&read, &read.token_key(subject("ann")), "r").await;
    // A profile that the connection no longer has, a shared token from an earlier definition, and another client.
    let gone = TokenKey { profile: Name::parse("gone").unwrap(), ..default.token_key(subject("ann")) };
    admin.keep(&default, &gone, "gone").await;
    admin.keep(&default, &default.token_key(None), "shared").await;
    let stranger = Connection { client_id: "other".to_owned(), ..(*default).clone() };
    admin.keep(&stranger, &default.token_key(subject("stranger")), "stranger").await;
    let other = admin.connection("crm-2", "default");
    admin.keep(&other, &other.token_key(subject("ann")), "other").await;
    // One is in use.
    let snapshot = admin.snapshot.load_full();
    let slots = bound(&snapshot, "crm").unwrap().definitions[0].slots.clone().unwrap();
    let slot = slots.slot(subject("s007").as_ref()).unwrap();
    slot.token(&admin.clock, Instant::now() + 10 * SECOND).await.unwrap();

    let report = admin.revoke_all("crm").await;
    assert_counts(&report, 303, 0, 1);
    assert_eq!(report["complete"], true);
    assert_eq!(report["tokens"].as_array().unwrap().len(), 100);
    let stranger = &report["tokens"][0];
    assert_eq!((&stranger["subject"], &stranger["forgotten"]), (&"stranger".into(), &true.into()), "{report}");
    assert!(stranger["refresh_token"]["reason"].as_str().unwrap().contains("earlier definition"), "{report}");
    assert_eq!(admin.stored("crm").await, [""; 0]);
    assert_eq!(admin.stored("crm-2").await, ["crm-2/default/ann"]);
    assert!(slot.fresh(admin.clock.now()).is_none());
    let revoked = server.revoked();
    assert_eq!(revoked.len(), 2 * 303);
    for text in ["access-d007", "refresh-d007", "access-d299", "refresh-r", "access-gone", "refresh-shared"] {
        assert!(revoked.iter().any(|token| token == text), "{text}");
    }
    assert_counts(&admin.revoke_all("crm").await, 0, 0, 0);
}

#[tokio::test]
async fn profiles_that_share_a_grant_are_revoked_and_another_connections_grant_is_not() {
    for has_twin in [false, true] {
        let server = Server::start(true);
        let person = ", grant: authorization_code, authorization_url: \"https://as.test/a\"";
        let profiles = ", profiles: [{name: read, scopes: r}]";
        let admin = admin_of(&[server.keys("crm") + person + profiles, server.keys("twin") + person]);
        for (name, profile, is_there) in
            [("crm", "default", true), ("crm", "read", true), ("twin", "default", has_twin)]
        {
            let connection = admin.connection(name, profile);
            if is_there {
                admin.keep(&connection, &connection.token_key(None), &format!("{name}-{profile}")).await;
            }
        }
        let report = admin.revoke_all("crm").await;
        if has_twin {
            assert_counts(&report, 0, 2, 0);
            let reason = &listed(&report, "read", None)["refresh_token"]["reason"];
            assert_eq!(reason, "the connection twin uses the same grant at the server");
            assert_eq!(server.revoked(), [""; 0]);
        } else {
            assert_counts(&report, 2, 0, 0);
            let tokens = ["access-crm-default", "access-crm-read", "refresh-crm-default", "refresh-crm-read"];
            assert_eq!(server.revoked(), tokens);
        }
        assert_eq!((admin.stored("crm").await.len(), admin.stored("twin").await.len()), (0, usize::from(has_twin)));
    }
}

#[tokio::test]
async fn the_tokens_of_an_inactive_connection_are_revoked() {
    let server = Server::start(true);
    let admin = admin_of(&[server.keys("off") + ", active: false, tokens: per_subject"]);
    let connection = admin.connection("off", "default");
    admin.keep(&connection, &connection.token_key(subject("ann")), "ann").await;
    let report = admin.revoke_all("off").await;
    assert_counts(&report, 1, 0, 0);
    assert_eq!(listed(&report, "default", Some("ann"))["access_token"]["outcome"], "revoked");
    assert_eq!(server.revoked(), ["access-ann", "refresh-ann"]);
    assert_eq!(admin.stored("off").await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_respond_delays_the_outcome_for_less_than_45_seconds() {
    let server = Server::start(false);
    let admin = admin_of(&[server.keys("crm") + ", tokens: per_subject"]);
    let connection = admin.connection("crm", "default");
    for number in 0..150 {
        admin.keep(&connection, &connection.token_key(subject(&format!("s{number}"))), &number.to_string()).await;
    }
    let started = Instant::now();
    let report = admin.revoke_all("crm").await;
    assert!(started.elapsed() < 45 * SECOND, "{:?}", started.elapsed());
    assert_counts(&report, 0, 0, 150);
    assert!(report["tokens"].as_array().unwrap().iter().all(|token| token["forgotten"] == true), "{report}");
    assert_eq!(report["complete"], true);
    assert_eq!(admin.stored("crm").await, [""; 0]);
}

#[tokio::test]
async fn tokens_are_forgotten_without_a_request_even_if_the_connection_is_unknown() {
    let server = Server::start(true);
    let admin = admin_of(&[server.keys("crm")]);
    let crm = admin.connection("crm", "default");
    let (aside, name) = (Name::parse("aside").unwrap(), Name::parse("crm").unwrap());
    admin.keep(&crm, &crm.token_key(None), "crm").await;
    admin.keep(&crm, &TokenKey::of_subject(aside.clone(), subject("ann").unwrap()), "ann").await;
    for name in [&aside, &name] {
        let report = json!(forget_all(&admin, name, &user()).await.unwrap().report());
        assert_counts(&report, 0, 1, 0);
        assert_eq!(report["tokens"][0]["refresh_token"]["reason"], "only forgotten, as requested");
        assert_eq!(admin.stored(name.as_str()).await, [""; 0]);
    }
    assert_eq!(server.revoked(), [""; 0]);
}
