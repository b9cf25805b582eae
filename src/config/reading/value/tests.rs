//! Accepted and rejected values.

use super::*;

#[track_caller]
fn check<T: std::fmt::Debug + PartialEq>(got: Result<T, Fault>, expected: Result<T, &str>) {
    match (got, expected) {
        (Ok(got), Ok(expected)) => assert_eq!(got, expected),
        (Err(got), Err(expected)) => assert!(got.message.contains(expected) && !got.hint.is_empty(), "{got:?}"),
        (got, expected) => panic!("{got:?} is not {expected:?}"),
    }
}

#[test]
fn durations_are_integers_with_units() {
    check(duration("0s"), Ok(Duration::ZERO));
    check(duration("1h30m"), Ok(Duration::from_secs(5400)));
    check(duration("1d2h3m4s5ms"), Ok(Duration::from_millis(93_784_005)));
    check(duration("250ms"), Ok(Duration::from_millis(250)));
    check(duration("3650d"), Ok(DURATION_MAX));
    for bare in ["5", "0", "99999999999999999999999"] {
        check(duration(bare), Err("no unit"));
    }
    for bad in ["", "s", "1.5s", "-1s", "1 s", "1S", "5s3", "1w", "1h m", "+1s", "٣s"] {
        check(duration(bad), Err("not a duration"));
    }
    for long in ["3651d", "99999999999999999999d", "18446744073709551615h", "3650d1ms"] {
        check(duration(long), Err("ten years"));
    }
    check(positive_duration("0ms0s"), Err("zero"));
}

#[test]
fn sizes_are_integers_with_binary_units() {
    check(size("64KiB", 0..=usize::MAX), Ok(65536));
    check(size("2GiB", 0..=usize::MAX), Ok(2 << 30));
    check(size("7B", 1..=7), Ok(7));
    check(size("8B", 1..=7), Err("out of range"));
    check(size("18446744073709551615GiB", 0..=usize::MAX), Err("out of range"));
    check(size("64", 0..=usize::MAX), Err("no unit"));
    for bad in ["", "KiB", "64KB", "64kib", "1.5MiB", "-1B"] {
        check(size(bad, 0..=usize::MAX), Err("not a size"));
    }
}

#[test]
fn integers_are_digits() {
    check(integer("64", 1..=64), Ok(64));
    for bad in ["0", "65", "+1", "1e1", "", "0x1", " 1"] {
        check(integer(bad, 1..=64), Err("not an integer from 1 to 64"));
    }
}

#[test]
fn networks_have_a_prefix_length_and_no_host_bits() {
    check(network("10.0.0.0/8"), Ok("10.0.0.0/8".parse().unwrap()));
    check(network("10.0.0.1"), Err("no prefix length"));
    check(network("10.0.0.1/8"), Err("host bits"));
    check(network("10/8"), Err("not a network"));
    check(network("10.0.0.0/33"), Err("not a network"));
}

#[test]
fn addresses_are_ip_addresses_not_names() {
    check(listen_address("[::1]:0"), Ok("[::1]:0".parse().unwrap()));
    check(listen_address("unix:/run/k.sock"), Err("only a proxy listener can use"));
    for bad in ["localhost:80", ":80", "127.0.0.1", "8080", "127.1:80"] {
        check(listen_address(bad), Err("not an address"));
    }
    let local = "127.0.0.1".parse().unwrap();
    check(dial_address("127.0.0.1"), Ok((local, None)));
    check(dial_address("127.0.0.1:9443"), Ok((local, Some(9443))));
    check(dial_address("[::1]:1"), Ok(("::1".parse().unwrap(), Some(1))));
    check(dial_address("[::1]"), Ok(("::1".parse().unwrap(), None)));
    check(dial_address("::1"), Ok(("::1".parse().unwrap(), None)));
    for bad in ["127.0.0.1:0", "a.test", "", "127.0.0.1:", "[127.0.0.1]"] {
        check(dial_address(bad), Err("not an address"));
    }
}
