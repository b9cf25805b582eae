//! Issued certificates, parsed by another library.

use std::collections::HashSet;

use x509_parser::prelude::*;

use super::ca::NewCa;
use super::*;
use crate::clock::Clock;
use crate::model::secret::Secret;
use crate::model::time::WallTime;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn wall() -> WallTime {
    // Certificates have a resolution of seconds.
    WallTime::from_secs(Clock::system().now().wall.as_secs())
}

fn ca(at: WallTime) -> Interception {
    let NewCa { certificate_pem, key_pem } = make_ca("Test CA", &[], at).unwrap();
    read_ca(certificate_pem.as_bytes(), key_pem).unwrap()
}

fn host(text: &str) -> Host {
    Host::parse(text).unwrap()
}

fn seconds(time: ASN1Time) -> WallTime {
    WallTime::from_secs(time.timestamp().try_into().unwrap())
}

#[test]
fn a_ca_may_sign_leaf_certificates_only() {
    let now = wall();
    let made = ca(now);
    let (_, ca) = parse_x509_certificate(&made.chain[0]).unwrap();
    let constraints = ca.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let usage = ca.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
    assert!(!usage.value.digital_signature() && ca.name_constraints().unwrap().is_none());
    assert_eq!(seconds(ca.validity().not_after), now + 3650 * DAY);
    assert_eq!(ca.subject().to_string(), "CN=Test CA");
    assert_ne!(
        make_ca("Test CA", &[], now).unwrap().certificate_pem,
        make_ca("Test CA", &[], now).unwrap().certificate_pem
    );
}

#[track_caller]
fn check_constraints(hosts: &[&str], permitted: &[&str], excluded: &[&str]) {
    let hosts: Vec<_> = hosts.iter().map(|name| host(name)).collect();
    let made = make_ca("x", &hosts, wall()).unwrap();
    let made = read_ca(made.certificate_pem.as_bytes(), made.key_pem).unwrap();
    let (_, ca) = parse_x509_certificate(&made.chain[0]).unwrap();
    let constraints = ca.name_constraints().unwrap().unwrap();
    assert!(constraints.critical);
    let text = |trees: &Option<Vec<GeneralSubtree<'_>>>| {
        trees.iter().flatten().map(|tree| tree.base.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(text(&constraints.value.permitted_subtrees), permitted);
    assert_eq!(text(&constraints.value.excluded_subtrees), excluded);
}

#[test]
fn a_constrained_ca_permits_its_hosts_only() {
    // An address and its mask.
    let every_address = [4, 16].map(|bytes| format!("IPAddress({})", vec!["00"; 2 * bytes].join(":")));
    let every_address = every_address.each_ref().map(String::as_str);
    check_constraints(&["api.acme.test", "b.test"], &["DNSName(api.acme.test)", "DNSName(b.test)"], &every_address);
    check_constraints(&["a.test", "10.1.2.3"], &["DNSName(a.test)", "IPAddress(0a:01:02:03:ff:ff:ff:ff)"], &[]);
    check_constraints(&["10.1.2.3"], &["IPAddress(0a:01:02:03:ff:ff:ff:ff)"], &["DNSName()"]);
}

#[test]
fn a_leaf_names_only_its_host() {
    let now = wall();
    let made = ca(now - DAY);
    let leaf_issuer = Authority::new(&made).unwrap().leaf_issuer;
    let (_, ca) = parse_x509_certificate(&made.chain[0]).unwrap();
    let mut serials = HashSet::new();
    for (name, expected) in [
        ("api.acme.test", GeneralName::DNSName("api.acme.test")),
        ("under_score.test", GeneralName::DNSName("under_score.test")),
        ("10.1.2.3", GeneralName::IPAddress(&[10, 1, 2, 3])),
        ("[::1]", GeneralName::IPAddress(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])),
    ] {
        let leaf = leaf_issuer.sign_leaf(&host(name), now, now + DAY).unwrap();
        let (_, leaf) = parse_x509_certificate(&leaf).unwrap();
        assert_eq!(leaf.subject().iter().count(), 0, "{name}");
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        // RFC 5280 §4.2.1.6: critical, since the subject is empty.
        assert!(names.critical, "{name}");
        assert_eq!(names.value.general_names, [expected], "{name}");
        let usage = leaf.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.key_encipherment(), "{name}");
        let extended = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && !extended.client_auth && !extended.any, "{name}");
        assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca, "{name}");
        assert_eq!(leaf.issuer(), ca.subject(), "{name}");
        assert!(serials.insert(leaf.raw_serial().to_vec()) && leaf.raw_serial().len() == 16, "{name}");
    }
}

#[tokio::test]
async fn a_leaf_expires_in_a_week_or_with_its_ca_and_is_reissued_before() {
    let now = wall();
    let (authority, tasks, name) = (Authority::new(&ca(now)).unwrap(), Tasks::default(), host("a.test"));
    let first = authority.server_config(&tasks, &name, now).await.unwrap();
    let life = 7 * DAY - CLOCK_SKEW;
    for (after, same) in [(Duration::ZERO, true), (life - DAY - Duration::from_secs(1), true), (life - DAY, false)] {
        let again = authority.server_config(&tasks, &name, now + after).await.unwrap();
        assert_eq!(Arc::ptr_eq(&first, &again), same, "{after:?}");
    }
    let leaf_issuer = &authority.leaf_issuer;
    assert_eq!(leaf_issuer.issue(&name, now).unwrap().reissue_at, now + life - DAY);
    let expires_at = leaf_issuer.expires_at;
    assert_eq!(
        leaf_issuer.issue(&name, expires_at - DAY / 2).unwrap().reissue_at,
        expires_at,
        "a leaf never outlives its CA"
    );
    assert!(matches!(authority.server_config(&tasks, &name, expires_at).await, Err(AuthorityError::Expired)));
}

#[tokio::test]
async fn the_leaf_cache_evicts_the_least_recently_used() {
    let now = wall();
    let (authority, tasks) = (Authority::new(&ca(now)).unwrap(), Tasks::default());
    let first = authority.server_config(&tasks, &host("n0.test"), now).await.unwrap();
    for number in 1..10_000 {
        authority.server_config(&tasks, &host(&format!("n{number}.test")), now).await.unwrap();
    }
    assert_eq!(authority.leaves.lock().unwrap().len(), LEAVES_MAX.get());
    let again = authority.server_config(&tasks, &host("n0.test"), now).await.unwrap();
    assert!(!Arc::ptr_eq(&first, &again), "the least recently used leaf was evicted");
}

#[tokio::test]
async fn concurrent_requests_for_a_host_share_one_leaf() {
    let (authority, tasks, name) = (Authority::new(&ca(wall())).unwrap(), Tasks::default(), host("a.test"));
    let requests = (0..50).map(|_| authority.server_config(&tasks, &name, wall()));
    let leaves = futures_util::future::join_all(requests).await;
    let first = leaves[0].as_ref().unwrap();
    assert!(leaves.iter().all(|made| Arc::ptr_eq(made.as_ref().unwrap(), first)));
}

#[test]
fn an_invalid_ca_is_rejected_and_debug_output_redacts_the_key() {
    let NewCa { certificate_pem, key_pem } = make_ca("x", &[], wall()).unwrap();
    let read = |pem: &str, key: &Secret| read_ca(pem.as_bytes(), key.clone()).map(drop);
    assert_eq!(read("", &key_pem), Err(CaError::Certificate));
    assert_eq!(
        read("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &key_pem),
        Err(CaError::Certificate)
    );
    assert_eq!(read(include_str!("../../config/tests/expired.pem"), &key_pem), Err(CaError::NotCa));
    assert_eq!(read(&certificate_pem, &Secret::new("x")), Err(CaError::Key));
    assert_eq!(read(&certificate_pem, &make_ca("x", &[], wall()).unwrap().key_pem), Err(CaError::Pair));
    let made = read_ca(certificate_pem.as_bytes(), key_pem.clone()).unwrap();
    let text = format!("{made:?} {:?}", Authority::new(&made).unwrap());
    let line = key_pem.expose().lines().nth(1).unwrap();
    assert!(!text.contains(line) && !text.contains("PRIVATE"), "{text}");
}
