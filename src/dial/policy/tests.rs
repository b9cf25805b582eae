//! The verdict of the policy on each kind of address.

use super::*;

fn policy() -> AddressPolicy {
    AddressPolicy {
        allow_private: vec!["10.1.0.0/16".parse().unwrap()],
        named: [(Host::parse("named.test").unwrap(), [Some(443)].into())].into(),
        by_port: false,
        routed: [
            ("169.254.1.1".parse().unwrap(), Some(80)),
            ("127.0.0.2".parse().unwrap(), None),
            ("127.0.0.1".parse().unwrap(), Some(8083)),
        ]
        .into(),
        endpoints: [("127.0.0.1".parse().unwrap(), 9000), ("127.0.0.1".parse().unwrap(), 8080)].into(),
        own_listeners: vec![
            "127.0.0.1:8080".parse().unwrap(),
            "0.0.0.0:8082".parse().unwrap(),
            "127.0.0.1:8083".parse().unwrap(),
        ],
    }
}

#[track_caller]
fn check(host: &str, address: &str, expected: Result<(), Denied>) {
    let host = Host::parse(host).unwrap();
    assert_eq!(policy().check(&host, address.parse().unwrap()), expected, "{host} {address}");
}

#[test]
fn a_private_address_needs_a_configured_host_or_network() {
    for private in ["127.0.0.1:1", "10.2.0.1:1", "172.16.0.1:1", "192.168.1.1:1", "100.64.0.1:1", "[::1]:1"] {
        check("other.test", private, Err(Denied::Private));
        check("named.test", private, Ok(()));
    }
    check("other.test", "[fc00::1]:1", Err(Denied::Private));
    check("other.test", "[::ffff:127.0.0.1]:1", Err(Denied::Private));
    check("other.test", "[64:ff9b::10.2.0.1]:1", Err(Denied::Private));
    check("other.test", "10.1.2.3:1", Ok(()));
    check("other.test", "192.0.2.1:443", Ok(()));
    check("other.test", "[2001:db8::1]:443", Ok(()));
    check("other.test", "100.128.0.1:443", Ok(()));
    check("other.test", "[64:ff9b:1::192.0.2.1]:1", Err(Denied::Private));
    check("named.test", "[64:ff9b:1::192.0.2.1]:1", Ok(()));
    check("other.test", "[64:ff9b:2::192.0.2.1]:1", Ok(()));
}

#[test]
fn an_address_is_judged_by_the_addresses_that_it_embeds() {
    // 10.2.0.1 is private, 10.1.0.1 is in allow_private, 192.0.2.1 is public; a Teredo client is written inverted.
    for (address, expected) in [
        ("[::ffff:192.0.2.1]:1", Ok(())),
        ("[::ffff:10.1.0.1]:1", Ok(())),
        ("[::ffff:10.2.0.1]:1", Err(Denied::Private)),
        ("[::ffff:168.63.129.16]:1", Err(Denied::Special)),
        ("[64:ff9b::192.0.2.1]:1", Ok(())),
        ("[64:ff9b::10.1.0.1]:1", Ok(())),
        ("[64:ff9b::127.0.0.1]:1", Err(Denied::Private)),
        ("[64:ff9b::100.100.100.200]:1", Err(Denied::Special)),
        ("[2002:c000:201::1]:1", Ok(())),
        ("[2002:a01:1:5::1]:1", Ok(())),
        ("[2002:a02:1::]:1", Err(Denied::Private)),
        ("[2002:7f00:1::]:1", Err(Denied::Private)),
        ("[2002:a9fe:a9fe::1]:1", Err(Denied::Special)),
        ("[2002:0:1::1]:1", Err(Denied::Special)),
        ("[2001:0:c000:201:0:f227:3fff:fdfe]:1", Ok(())),
        ("[2001:0:c000:201:0:f227:f5fd:fffe]:1", Err(Denied::Private)),
        ("[2001:0:c000:201:0:f227:f5fe:fffe]:1", Ok(())),
        ("[2001:0:a02:1:0:f227:3fff:fdfe]:1", Err(Denied::Private)),
        ("[2001:0:c000:201:0:f227:5601:5601]:1", Err(Denied::Special)),
        ("[2001:0:a9fe:a9fe:0:f227:3fff:fdfe]:1", Err(Denied::Special)),
        ("[2001:1:a02:1::1]:1", Ok(())),
    ] {
        check("other.test", address, expected);
    }
    check("named.test", "[2002:7f00:1::]:1", Ok(()));
    check("named.test", "[2002:7f00:1::]:8080", Err(Denied::OwnListener));
    check("named.test", "[2002:a9fe:a9fe::1]:1", Err(Denied::Special));
}

#[test]
fn a_special_address_needs_a_route_that_names_it() {
    let special = [
        "169.254.169.254:80",
        "0.0.0.0:80",
        "0.1.2.3:80",
        "224.0.0.1:80",
        "255.255.255.255:80",
        "[::]:80",
        "[fe80::1]:80",
        "[ff02::1]:80",
        "[fd00:ec2::254]:80",
        "[::ffff:169.254.169.254]:80",
        "[64:ff9b::a9fe:a9fe]:80",
        "[::127.0.0.1]:80",
        "168.63.129.16:80",
        "192.0.0.192:80",
        "100.100.100.200:80",
        "[fd20:ce::254]:80",
    ];
    for address in special {
        check("named.test", address, Err(Denied::Special));
    }
    check("169.254.1.1", "169.254.1.1:80", Ok(()));
    check("169.254.1.1", "169.254.1.1:81", Err(Denied::Special));
    check("named.test", "169.254.1.1:80", Err(Denied::Special));
    check("[::ffff:169.254.1.1]", "[::ffff:169.254.1.1]:80", Ok(()));
    check("[64:ff9b::169.254.1.1]", "[64:ff9b::169.254.1.1]:80", Err(Denied::Special));
    let policy = AddressPolicy {
        allow_private: vec!["100.64.0.0/10".parse().unwrap(), "fc00::/7".parse().unwrap()],
        routed: [("2002:a9fe:101::".parse().unwrap(), Some(80))].into(),
        ..AddressPolicy::default()
    };
    let check = |host: &str, address: &str| policy.check(&Host::parse(host).unwrap(), address.parse().unwrap());
    assert_eq!(check("[2002:a9fe:101::]", "[2002:a9fe:101::]:80"), Ok(()));
    assert_eq!(check("169.254.1.1", "169.254.1.1:80"), Err(Denied::Special));
    assert_eq!(
        check("a.test", "100.100.100.200:80"),
        Err(Denied::Special),
        "allow_private does not permit metadata addresses"
    );
    assert_eq!(check("a.test", "100.100.100.201:80"), Ok(()));
    assert_eq!(check("a.test", "[fd20:ce::254]:80"), Err(Denied::Special));
}

#[test]
fn a_configured_address_is_permitted_at_its_port_to_requests_that_name_it() {
    check("127.0.0.2", "127.0.0.2:1", Ok(()));
    check("[::ffff:127.0.0.2]", "[::ffff:127.0.0.2]:1", Ok(()));
    check("other.test", "127.0.0.2:1", Err(Denied::Private));
    check("127.0.0.1", "127.0.0.1:9000", Ok(()));
    check("127.0.0.1", "127.0.0.1:9001", Err(Denied::Private));
    check("other.test", "127.0.0.1:9000", Err(Denied::Private));
}

#[test]
fn our_own_listeners_are_denied() {
    check("named.test", "127.0.0.1:8080", Err(Denied::OwnListener));
    check("named.test", "127.0.0.1:8082", Err(Denied::OwnListener));
    check("named.test", "127.0.0.1:8081", Ok(()));
    check("other.test", "192.0.2.1:8082", Ok(()));
    check("127.0.0.1", "127.0.0.1:8080", Err(Denied::OwnListener));
    check("127.0.0.2", "127.0.0.2:8082", Err(Denied::OwnListener));
    check("127.0.0.1", "127.0.0.1:8083", Ok(()));
    check("named.test", "127.0.0.1:8083", Err(Denied::OwnListener));
}
