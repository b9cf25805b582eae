//! Identifying callers by credential and by connection.

use std::net::IpAddr;

use super::super::arrival::PeerAddress;
use super::*;
use crate::model::SubjectPattern;
use crate::model::san::San;

fn table() -> CallerTable {
    let caller = |name: &str, secret: Option<&str>, cidr: &[&str]| Caller {
        name: Name::parse(name).unwrap(),
        secret: secret.map(|secret| SecretDigest::of(secret.as_bytes())),
        cidr: cidr.iter().map(|net| net.parse().unwrap()).collect(),
        listeners: Vec::new(),
        unix_users: Vec::new(),
        certificate_names: Vec::new(),
        subjects: (name == "both").then(|| {
            let ann = Subject::parse("ann").unwrap();
            vec![SubjectPattern::Exact(ann), SubjectPattern::Prefix("team-".to_owned())]
        }),
    };
    CallerTable::new(vec![
        caller("billing", Some("s3cret"), &[]),
        caller("batch", None, &["10.1.0.0/16"]),
        caller("both", Some("other"), &["10.2.0.0/16"]),
    ])
}

const FIELD: &str = "proxy-authorization";

fn at(ip: &str) -> Arrival {
    let from = PeerAddress::Tcp((ip.parse::<IpAddr>().unwrap(), 40_000).into());
    Arrival { from, listener: Name::parse("proxy").unwrap(), local: None, server_name: None, certificate: None }
}

fn headers(credentials: &[String]) -> HeaderMap {
    credentials.iter().map(|text| (FIELD.parse().unwrap(), HeaderValue::try_from(text).unwrap())).collect()
}

#[track_caller]
fn check(address: &str, credential: Option<&str>, expected: Option<&str>) {
    let credential = credential.map(|text| match text.split_once(':') {
        Some(_) => format!("Basic {}", BASE64_STANDARD.encode(text)),
        None => text.to_owned(),
    });
    let table = table();
    let found = identify(&table, &at(address), &headers(credential.as_slice()), FIELD).ok().flatten();
    assert_eq!(found.and_then(|id| table.name(id)).map(Name::as_str), expected);
}

#[test]
fn a_credential_alone_identifies_the_caller() {
    check("192.0.2.1", Some("billing:s3cret"), Some("billing"));
    check("192.0.2.1", Some("Bearer s3cret"), Some("billing"));
    check("192.0.2.1", Some("basic YmlsbGluZzpzM2NyZXQ="), Some("billing"));
    for wrong in [
        "billing:",
        "billing:s3cre",
        "batch:s3cret",
        "batch:",
        "unknown:s3cret",
        "Bearer",
        "Bearer x",
        "Digest s3cret",
        "Basic !",
    ] {
        check("10.1.0.1", Some(wrong), None);
    }
}

#[test]
fn the_address_identifies_a_caller_without_a_credential() {
    check("10.1.0.1", None, Some("batch"));
    check("::ffff:10.1.0.1", None, Some("batch"));
    check("192.0.2.1", None, None);
    check("10.2.0.1", None, None);
}

#[test]
fn the_connection_identifies_a_caller_without_a_credential() {
    let caller = |name: &str| Caller {
        name: Name::parse(name).unwrap(),
        secret: None,
        cidr: Vec::new(),
        listeners: Vec::new(),
        unix_users: Vec::new(),
        certificate_names: Vec::new(),
        subjects: None,
    };
    let jobs = Name::parse("jobs").unwrap();
    let table = CallerTable::new(vec![
        Caller { unix_users: vec![1000, 1001], listeners: vec![jobs.clone()], ..caller("user") },
        Caller { certificate_names: vec![San::parse("billing.svc"), San::parse("10.9.0.1")], ..caller("certificate") },
        Caller { listeners: vec![jobs.clone()], cidr: vec!["10.0.0.0/8".parse().unwrap()], ..caller("listener") },
    ]);
    let check = |arrival: Arrival, expected: Option<&str>| {
        let found = identify(&table, &arrival, &headers(&[]), FIELD).ok().flatten();
        assert_eq!(found.and_then(|id| table.name(id)).map(Name::as_str), expected, "{}", arrival.from);
    };
    let other = Name::parse("other").unwrap();
    let by =
        |user, listener: &Name| Arrival { from: PeerAddress::Unix(user), listener: listener.clone(), ..at("10.0.0.1") };
    check(by(1001, &jobs), Some("user"));
    check(by(1002, &jobs), None);
    check(by(1001, &other), None);
    let presenting = |names: &[San]| Arrival { certificate: Some(names.to_vec()), ..at("10.0.0.1") };
    check(presenting(&[San::dns("x"), San::dns("BILLING.svc")]), Some("certificate"));
    check(presenting(&[San::Ip([10, 9, 0, 1].into())]), Some("certificate"));
    check(presenting(&[San::dns("a.billing.svc")]), None);
    check(presenting(&[San::Mail("billing.svc".to_owned()), San::Uri("billing.svc".to_owned())]), None);
    check(presenting(&[San::dns("10.9.0.1")]), None);
    check(Arrival { listener: jobs.clone(), ..at("10.0.0.1") }, Some("listener"));
    check(Arrival { listener: jobs, ..at("11.0.0.1") }, None);
}

#[test]
fn a_caller_must_meet_all_of_its_conditions() {
    check("10.2.0.1", Some("both:other"), Some("both"));
    check("10.3.0.1", Some("both:other"), None);
}

#[test]
fn a_caller_acts_for_itself_or_for_its_subjects() {
    #[track_caller]
    fn check(caller: Option<&str>, named: &[&str], expected: Result<&str, &str>) {
        let table = table();
        let id = caller.map(|name| table.named(name).unwrap().0);
        let headers = named
            .iter()
            .map(|text| ("keybearer-subject".parse().unwrap(), HeaderValue::from_bytes(text.as_bytes()).unwrap()));
        let found = subject(&table, id, &headers.collect());
        let found = found.as_ref().map(Subject::as_str).map_err(|error| error.code());
        assert_eq!(found, expected, "{caller:?} {named:?}");
    }
    check(Some("billing"), &[], Ok("billing"));
    check(Some("billing"), &["billing"], Ok("billing"));
    check(Some("billing"), &["ann"], Err("subject_not_allowed"));
    check(Some("both"), &["ann"], Ok("ann"));
    check(Some("both"), &["team-7"], Ok("team-7"));
    check(Some("both"), &["annx"], Err("subject_not_allowed"));
    check(Some("both"), &[], Err("subject_not_allowed"));
    check(None, &["ann@acme.test"], Ok("ann@acme.test"));
    check(None, &[], Err("subject_required"));
    for bad in ["", "a b", "a/b", "ä", &"x".repeat(129)] {
        check(None, &[bad], Err("subject_required"));
    }
    check(None, &["ann", "ann"], Err("subject_required"));
}

#[test]
fn a_request_names_a_connection_and_optionally_a_profile() {
    #[track_caller]
    fn check(values: &[&[u8]], expected: Result<Option<(&str, Option<&str>)>, &str>) {
        let value = |bytes: &&[u8]| (NAMED.parse().unwrap(), HeaderValue::from_bytes(bytes).unwrap());
        let headers: HeaderMap = values.iter().map(value).collect();
        let found =
            named_connection(&headers).map(|named| named.map(|Named { connection, profile }| (connection, profile)));
        assert_eq!(found.map_err(|error| error.code()), expected, "{values:?}");
    }
    const NAMED: &str = "keybearer-connection";
    check(&[], Ok(None));
    check(&[b"crm"], Ok(Some(("crm", None))));
    check(&[b"crm/read-only"], Ok(Some(("crm", Some("read-only")))));
    let bad: [&[u8]; 7] = [b"", b"crm/", b"/read", b"CRM", b"crm, erp", b"crm/a/b", "cr\u{e4}m".as_bytes()];
    for bad in bad {
        check(&[bad], Err("bad_request_target"));
    }
    check(&[b"crm", b"crm"], Err("bad_request_target"));
}

#[test]
fn without_configured_callers_every_peer_is_accepted() {
    let none = CallerTable::default();
    let from = at("192.0.2.1");
    assert_eq!(identify(&none, &from, &headers(&[]), FIELD), Ok(None));
    assert_eq!(identify(&none, &from, &headers(&["Bearer x".to_owned()]), FIELD), Err(UnknownCaller));
}

#[test]
fn the_caller_of_a_tunnel_is_never_mistaken_for_another() {
    #[track_caller]
    fn check(address: &str, opened_as: Option<&str>, now: &CallerTable, expected: Result<Option<&str>, UnknownCaller>) {
        let table = table();
        let proven = opened_as.map(|name| AuthenticatedCaller::of(table.named(name).unwrap().1));
        let found = identify_again(now, &at(address), proven.as_ref());
        assert_eq!(found.map(|id| id.and_then(|id| now.name(id)).map(Name::as_str)), expected, "{opened_as:?}");
    }
    let changed = |change: fn(&mut Vec<Caller>)| {
        let mut list: Vec<_> = table().iter().map(|(_, caller)| caller.clone()).collect();
        change(&mut list);
        CallerTable::new(list)
    };
    let (same, swapped) = (table(), changed(|list| list.reverse()));
    for now in [&same, &swapped] {
        check("10.2.0.1", Some("billing"), now, Ok(Some("billing")));
        check("10.2.0.1", Some("both"), now, Ok(Some("both")));
        check("10.1.0.1", Some("batch"), now, Ok(Some("batch")));
        check("10.1.0.1", None, now, Err(UnknownCaller));
    }
    check("10.1.0.1", Some("billing"), &changed(|list| drop(list.remove(0))), Err(UnknownCaller));
    check("10.1.0.1", Some("billing"), &changed(|list| list[0].secret = None), Err(UnknownCaller));
    check("10.1.0.1", Some("batch"), &changed(|list| list[1].secret = list[0].secret), Err(UnknownCaller));
    let rotated = changed(|list| list[0].secret = Some(SecretDigest::of(b"changed")));
    check("10.1.0.1", Some("billing"), &rotated, Err(UnknownCaller));
    check("10.1.0.1", Some("batch"), &changed(|list| list[1].cidr = list[2].cidr.clone()), Err(UnknownCaller));
    check("10.1.0.1", Some("batch"), &CallerTable::default(), Err(UnknownCaller));
    check("10.1.0.1", None, &CallerTable::default(), Ok(None));
}

#[test]
fn two_credentials_are_refused() {
    let both = headers(&["Bearer s3cret".to_owned(), "Bearer s3cret".to_owned()]);
    assert_eq!(identify(&table(), &at("10.1.0.1"), &both, FIELD), Err(UnknownCaller));
}
