//! Resolved addresses against the policy, and the race of connection attempts.

use std::collections::VecDeque;
use std::sync::Mutex;

use futures_util::FutureExt;
use reqwest::dns::Resolve;
use tokio::net::TcpListener;

use super::*;
use crate::model::origin::{Authority, Scheme};

#[test]
fn address_families_alternate() {
    let parse = |list: &str| list.split(' ').map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>();
    let mut addresses = parse("[2001:db8::1]:1 [2001:db8::2]:1 192.0.2.1:1");
    interleave(&mut addresses);
    assert_eq!(addresses, parse("[2001:db8::1]:1 192.0.2.1:1 [2001:db8::2]:1"));
}

/// A dialer without rules, whose successive lookups return `lookups`.
fn resolving(lookups: impl IntoIterator<Item = Vec<IpAddr>>) -> Dialer {
    let tasks = Tasks::default();
    let reach = NetworkSettings { hosts: &[], policy: AddressPolicy::default(), egress_proxy: None };
    let lookups = Mutex::new(lookups.into_iter().collect::<VecDeque<_>>());
    let names = Names::with_resolver(&tasks, move |_| {
        let found = lookups.lock().unwrap().pop_front();
        Box::pin(async move { found.ok_or_else(|| io::Error::other("no more lookups")) })
    });
    Dialer { names, ..Dialer::new(reach, &tasks, None) }
}

fn is_private<T>(result: Result<T, DialError>) -> bool {
    matches!(result, Err(DialError::Denied { denied: Denied::Private, .. }))
}

#[tokio::test]
async fn a_name_with_a_public_and_a_private_address_is_not_dialled() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let authority = Authority::parse(&format!("mixed.test:{port}")).unwrap();
    let origin = Origin::new(Scheme::Http, authority);
    // 192.0.2.1 is public and assigned to no host (RFC 5737).
    let (public, private) = ("192.0.2.1".parse().unwrap(), "127.0.0.1".parse().unwrap());
    for addresses in [vec![public, private], vec![private, public], vec![public, public, private]] {
        let dialer = || resolving([addresses.clone()]);
        assert!(is_private(dialer().permit(&origin, &Turn::Own).await), "{addresses:?}");
        assert!(is_private(dialer().connect(&origin, &Turn::Own).await), "{addresses:?}");
        assert!(is_private(dialer().connect_for_requests(&origin, &Turn::Own).await), "{addresses:?}");
        let by_reqwest = Resolve::resolve(&dialer(), "mixed.test".parse().unwrap()).await;
        assert!(by_reqwest.is_err(), "{addresses:?}");
    }
    // DNS rebinding: public when checked, private when dialled.
    let rebound = resolving([vec![public], vec![private]]);
    assert!(rebound.permit(&origin, &Turn::Own).await.is_ok());
    rebound.names.forget("mixed.test");
    assert!(is_private(rebound.connect(&origin, &Turn::Own).await));
    assert!(listener.accept().now_or_never().is_none(), "the private address was dialled");
}

#[test]
fn hosts_may_map_a_name_to_our_own_listener() {
    let model_hosts = ["own.test 127.0.0.1 8080", "port.test 127.0.0.1 -", "other.test 127.0.0.1 9000"].map(|line| {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap();
        HostOverride { host: Host::parse(word()).unwrap(), address: word().parse().unwrap(), port: word().parse().ok() }
    });
    let own = ["127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.9:8080"].map(|text| text.parse().unwrap());
    let policy = AddressPolicy::with_own_listeners(own.to_vec());
    let dialer =
        Dialer::new(NetworkSettings { hosts: &model_hosts, policy, egress_proxy: None }, &Tasks::default(), None);
    let check = |authority: &str, local: Option<&str>, expected: OwnListener| {
        let origin = Origin::new(Scheme::Http, Authority::parse(authority).unwrap());
        let local = local.map(|text| text.parse().unwrap());
        assert_eq!(dialer.own_listener(&origin, local), expected, "{authority} {local:?}");
    };
    use OwnListener::*;
    let proxy = Some("127.0.0.1:8080");
    check("own.test", proxy, This);
    check("own.test:1", proxy, This);
    check("other.test:8080", proxy, No);
    check("port.test:8080", proxy, This);
    check("port.test:8081", proxy, Another);
    check("port.test", proxy, No);
    check("x.test:8080", proxy, Unknown);
    // Without an entry in `hosts`, only a literal or loopback authority shows it.
    check("127.0.0.1:8080", proxy, This);
    check("[::ffff:127.0.0.1]:8081", proxy, Another);
    check("localhost:8080", proxy, This);
    check("localhost:8081", proxy, Another);
    check("localhost:9", proxy, Unknown);
    check("127.0.0.9:8080", proxy, Another);
    check("127.0.0.1:8080", Some("127.0.0.9:8080"), Another);
    check("own.test", None, Another);
    check("127.0.0.1:8081", None, Another);
}

#[tokio::test]
async fn a_dead_address_does_not_hide_a_live_one() {
    let live = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let parallel = Semaphore::new(1);
    let stream = race(&[dead, live.local_addr().unwrap()], &parallel, TcpStream::connect).await.unwrap();
    assert_eq!(stream.peer_addr().unwrap(), live.local_addr().unwrap());
    assert!(race(&[dead], &parallel, TcpStream::connect).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_next_address_is_tried_after_a_failure_or_a_delay() {
    let address = |last| SocketAddr::from(([192, 0, 2, last], 1));
    // The last octet determines the outcome of an attempt.
    let connect = |to: SocketAddr| async move {
        match to.to_string().as_str() {
            "192.0.2.1:1" => std::future::pending().await,
            "192.0.2.2:1" => return Err(io::Error::other("refused")),
            "192.0.2.3:1" => tokio::time::sleep(ATTEMPT_DELAY + Duration::from_millis(50)).await,
            _ => {}
        }
        Ok(to)
    };
    for (parallel, tried, wins, after_ms) in [
        (8, &[4, 1][..], 4, 0),
        (8, &[1, 4], 4, 250),
        (8, &[2, 4], 4, 0),
        (8, &[1, 2, 4], 4, 250),
        (8, &[1, 1, 4], 4, 500),
        (8, &[3, 1, 4], 3, 300),
        (8, &[1, 3], 3, 550),
        // Without a permit for a parallel attempt, the slow one is abandoned.
        (0, &[3, 4], 4, 250),
        (1, &[3, 1, 4], 3, 300),
        (1, &[1, 1, 4], 4, 500),
        (1, &[1, 3], 3, 550),
    ] {
        let parallel = Semaphore::new(parallel);
        let started = tokio::time::Instant::now();
        let addresses: Vec<_> = tried.iter().map(|last| address(*last)).collect();
        assert_eq!(race(&addresses, &parallel, connect).await.unwrap(), address(wins), "{tried:?}");
        let took = started.elapsed().as_millis();
        // The timer has millisecond resolution.
        assert!((after_ms..after_ms + 5).contains(&took), "{tried:?}: {took} ms");
    }
}

#[test]
fn only_connections_of_files_open_private_addresses() {
    use std::path::Path;

    use crate::model::connection::{DefinedIn, Revision, WrittenDefinition};

    let text = "connections:\n- {name: own, client_id: id, token_url: \"https://login.internal/t\", revocation_url: \
                \"https://10.0.0.7/r\", issuer: \"https://issuer.internal\", routes: [{host: api.internal}, {host: \
                \"169.254.169.254:*\"}]}\n";
    let mut model = crate::config::load_text(text, Path::new("a.yaml")).unwrap().model;
    let by_file = AddressPolicy::new(&model, &[]);
    let written =
        WrittenDefinition { defined_in: DefinedIn::Api(Revision::random()), json: String::new(), lines: Vec::new() };
    Arc::make_mut(&mut model.connections[0]).written = Arc::new(written);
    let by_api = AddressPolicy::new(&model, &[]);
    for (host, address) in [
        ("login.internal", "10.0.0.1"),
        ("issuer.internal", "10.0.0.1"),
        ("api.internal", "10.0.0.1"),
        ("10.0.0.7", "10.0.0.7"),
        ("169.254.169.254", "169.254.169.254"),
    ] {
        let check = |policy: &AddressPolicy| {
            policy.check(&Host::parse(host).unwrap(), format!("{address}:443").parse().unwrap()).is_ok()
        };
        assert!(check(&by_file), "{host}");
        assert!(!check(&by_api), "{host}");
    }
    let public = by_api.check(&Host::parse("login.internal").unwrap(), "192.0.2.1:443".parse().unwrap());
    assert!(public.is_ok(), "public addresses need no permission");
}

/// Definitions made over the API reach a private host only at the ports that files name.
#[tokio::test]
async fn a_dialer_by_port_reaches_private_hosts_only_where_files_name_them() {
    use std::path::Path;

    let text = "egress: {allow_private: [10.1.0.0/16]}\nhosts: {mapped.internal: 10.0.0.9}\n\
                connections:\n- {name: own, client_id: id, token_url: \"https://login.internal/t\", revocation_url: \
                \"https://10.0.0.7/r\", routes: [{host: api.internal}, {host: \"db.internal:8443\"}, \
                {host: \"all.internal:*\"}, {mount: /m, upstream: \"https://up.internal:9443\"}]}\n";
    let model = crate::config::load_text(text, Path::new("a.yaml")).unwrap().model;
    let settings = NetworkSettings { hosts: &model.hosts, policy: AddressPolicy::new(&model, &[]), egress_proxy: None };
    let names = Names::with_resolver(&Tasks::default(), |name| {
        let last = if &*name == "allowed.internal" { [10, 1, 0, 1] } else { [10, 0, 0, 1] };
        Box::pin(async move { Ok(vec![IpAddr::from(last)]) })
    });
    let all = Dialer { names, ..Dialer::new(settings, &Tasks::default(), None) };
    let by_port = all.by_port();
    assert_ne!(by_port.number, all.number, "the dialers share no connections");
    for (authority, by_files, by_api) in [
        ("login.internal", true, true),
        ("login.internal:22", true, false),
        ("api.internal", true, true),
        ("api.internal:8443", true, false),
        ("db.internal:8443", true, true),
        ("db.internal", true, false),
        ("all.internal:5432", true, true),
        ("up.internal:9443", true, true),
        ("up.internal", true, false),
        ("10.0.0.7", true, true),
        ("10.0.0.7:8443", false, false),
        ("other.internal", false, false),
        ("mapped.internal:22", true, true),
        ("allowed.internal:22", true, true),
        ("192.0.2.2:22", true, true),
    ] {
        let origin = Origin::new(Scheme::Https, Authority::parse(authority).unwrap());
        assert_eq!(all.permit(&origin, &Turn::Own).await.is_ok(), by_files, "{authority}");
        assert_eq!(by_port.permit(&origin, &Turn::Own).await.is_ok(), by_api, "{authority}");
    }
}

#[tokio::test]
async fn a_dialer_without_connections_reaches_only_what_hosts_and_networks_permit() {
    use std::path::Path;

    let text = "egress: {allow_private: [10.1.0.0/16]}\nhosts: {mapped.test: 10.0.0.9, metadata.test: 169.254.169.254}\n\
                connections:\n- {name: own, client_id: id, token_url: \"https://10.0.0.7/t\", logo_url: \
                \"https://10.0.0.8/l.png\", routes: [{host: api.internal}, {host: \"169.254.169.254:*\"}]}\n";
    let model = crate::config::load_text(text, Path::new("a.yaml")).unwrap().model;
    let own = crate::model::Listener { address: "192.0.2.1:443".parse().unwrap(), ..model.listeners.admin.clone() };
    let policy = AddressPolicy::new(&model, &[own]);
    let settings = NetworkSettings { hosts: &model.hosts, policy, egress_proxy: None };
    let names = Names::with_resolver(&Tasks::default(), |name| {
        let last = if &*name == "allowed.internal" { [10, 1, 0, 1] } else { [10, 0, 0, 1] };
        Box::pin(async move { Ok(vec![IpAddr::from(last)]) })
    });
    let all = Dialer { names, ..Dialer::new(settings, &Tasks::default(), None) };
    let without = all.without_connections();
    for (authority, by_connections, by_itself) in [
        ("api.internal", true, false),
        ("10.0.0.7", true, false),
        ("10.0.0.8", false, false),
        ("169.254.169.254", true, false),
        ("metadata.test", false, false),
        ("other.internal", false, false),
        ("192.0.2.1", false, false),
        ("mapped.test", true, true),
        ("allowed.internal", true, true),
        ("192.0.2.2", true, true),
    ] {
        let origin = Origin::new(Scheme::Https, Authority::parse(authority).unwrap());
        assert_eq!(all.permit(&origin, &Turn::Own).await.is_ok(), by_connections, "{authority}");
        assert_eq!(without.permit(&origin, &Turn::Own).await.is_ok(), by_itself, "{authority}");
    }
}
