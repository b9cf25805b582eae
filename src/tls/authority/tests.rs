//! What is made, as another library reads it.

use std::collections::HashSet;

use x509_parser::prelude::*;

use super::*;
use crate::clock::Clock;
use crate::model::secret::Secret;
use crate::model::time::WallTime;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn wall() -> WallTime {
    // Certificates tell whole seconds.
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
fn a_ca_signs_leaves_alone() {
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
    let told = |trees: &Option<Vec<GeneralSubtree<'_>>>| {
        trees.iter().flatten().map(|tree| tree.base.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(told(&constraints.value.permitted_subtrees), permitted);
    assert_eq!(told(&constraints.value.excluded_subtrees), excluded);
}

#[test]
fn a_constrained_ca_names_its_hosts() {
    // An address and its mask.
    let every_address = [4, 16].map(|bytes| format!("IPAddress({})", vec!["00"; 2 * bytes].join(":")));
    let every_address = every_address.each_ref().map(String::as_str);
    check_constraints(&["api.acme.test", "b.test"], &["DNSName(api.acme.test)", "DNSName(b.test)"], &every_address);
    check_constraints(&["a.test", "10.1.2.3"], &["DNSName(a.test)", "IPAddress(0a:01:02:03:ff:ff:ff:ff)"], &[]);
    check_constraints(&["10.1.2.3"], &["IPAddress(0a:01:02:03:ff:ff:ff:ff)"], &["DNSName()"]);
}

#[test]
fn a_leaf_names_its_host_and_nothing_else() {
    let now = wall();
    let made = ca(now - DAY);
    let maker = Authority::new(&made).unwrap().maker;
    let (_, ca) = parse_x509_certificate(&made.chain[0]).unwrap();
    let mut serials = HashSet::new();
    for (name, expected) in [
        ("api.acme.test", GeneralName::DNSName("api.acme.test")),
        ("under_score.test", GeneralName::DNSName("under_score.test")),
        ("10.1.2.3", GeneralName::IPAddress(&[10, 1, 2, 3])),
        ("[::1]", GeneralName::IPAddress(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])),
    ] {
        let leaf = maker.leaf(&host(name), now, now + DAY).unwrap();
        let (_, leaf) = parse_x509_certificate(&leaf).unwrap();
        assert_eq!(leaf.subject().iter().count(), 0, "{name}");
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        // RFC 5280 §4.2.1.6: the only name there is.
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
async fn a_leaf_ends_in_a_week_or_with_its_ca_and_is_made_anew_before() {
    let now = wall();
    let (authority, tasks, name) = (Authority::new(&ca(now)).unwrap(), Tasks::default(), host("a.test"));
    let first = authority.server_config(&tasks, &name, now).await.unwrap();
    let life = 7 * DAY - CLOCK_SKEW;
    for (after, same) in [(Duration::ZERO, true), (life - DAY - Duration::from_secs(1), true), (life - DAY, false)] {
        let again = authority.server_config(&tasks, &name, now + after).await.unwrap();
        assert_eq!(Arc::ptr_eq(&first, &again), same, "{after:?}");
    }
    let maker = &authority.maker;
    assert_eq!(maker.make(&name, now).unwrap().renew_at, now + life - DAY);
    let ends = maker.ends;
    assert_eq!(maker.make(&name, ends - DAY / 2).unwrap().renew_at, ends, "never longer than the CA");
    assert!(matches!(authority.server_config(&tasks, &name, ends).await, Err(AuthorityError::Ended)));
}

#[tokio::test]
async fn ten_thousand_names_leave_a_thousand() {
    let now = wall();
    let (authority, tasks) = (Authority::new(&ca(now)).unwrap(), Tasks::default());
    let first = authority.server_config(&tasks, &host("n0.test"), now).await.unwrap();
    for number in 1..10_000 {
        authority.server_config(&tasks, &host(&format!("n{number}.test")), now).await.unwrap();
    }
    assert_eq!(authority.made.lock().unwrap().len(), MADE_MAX.get());
    let again = authority.server_config(&tasks, &host("n0.test"), now).await.unwrap();
    assert!(!Arc::ptr_eq(&first, &again), "the least recently used have left");
}

#[tokio::test]
async fn many_who_ask_at_once_get_one() {
    let (authority, tasks, name) = (Authority::new(&ca(wall())).unwrap(), Tasks::default(), host("a.test"));
    let asked = (0..50).map(|_| authority.server_config(&tasks, &name, wall()));
    let got = futures_util::future::join_all(asked).await;
    let first = got[0].as_ref().unwrap();
    assert!(got.iter().all(|made| Arc::ptr_eq(made.as_ref().unwrap(), first)));
}

#[test]
fn what_is_no_ca_is_refused_and_no_key_is_shown() {
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
    let told = format!("{made:?} {:?}", Authority::new(&made).unwrap());
    let line = key_pem.expose().lines().nth(1).unwrap();
    assert!(!told.contains(line) && !told.contains("PRIVATE"), "{told}");
}
