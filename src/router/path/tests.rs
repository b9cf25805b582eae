//! Readings as a table, and property tests against models of real servers.

use proptest::prelude::*;

use super::*;

fn all(path: &str) -> Vec<String> {
    match readings(path) {
        Readings::One => vec![path.to_owned()],
        Readings::Several(all) => all.iter().map(|reading| String::from_utf8_lossy(reading).into_owned()).collect(),
        Readings::TooMany => vec!["too many".to_owned()],
    }
}

#[track_caller]
fn check(path: &str, expected: &[&str]) {
    let mut found = all(path);
    found.sort_unstable();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected, "{path}");
}

#[test]
fn a_path_has_every_reading_that_real_servers_give_it() {
    check("/v1/a.b..c", &["/v1/a.b..c"]);
    check("/%61dm%69n", &["/admin"]);
    check("/.well-known/x", &["/.well-known/x"]);
    check("/a%20b", &["/a%20b", "/a b"]);
    check("/a%2Fb", &["/a%2Fb", "/a/b"]);
    check("/a%2fb", &["/a%2fb", "/a/b"]);
    check("/a%5Cb", &["/a%5Cb", "/a\\b", "/a/b"]);
    check("/a%252Fb", &["/a%252Fb", "/a%2Fb", "/a/b"]);
    check("/a/../b", &["/a/../b", "/b"]);
    check("/a/%2E%2e/b", &["/a/../b", "/b"]);
    check("/a/b/..", &["/a/b/..", "/a/"]);
    check("/../a", &["/../a", "/a"]);
    check("/./a", &["/./a", "/a"]);
    check("//a", &["//a", "/a"]);
    check("/a;x=1/b", &["/a;x=1/b", "/a/b"]);
    check("/a/..;/b", &["/a/..;/b", "/a/../b", "/b"]);
    check("/a%3bx", &["/a%3bx", "/a;x", "/a"]);
    check("/a%00b", &["/a%00b", "/a\0b", "/a"]);
    check("/a%3Fb", &["/a%3Fb", "/a?b", "/a"]);
    check("/a//../b", &["/a//../b", "/a/b", "/a/../b", "/b"]);
    check("/..%20/b", &["/..%20/b", "/.. /b", "/../b", "/b"]);
    check("/a%0A/b", &["/a%0A/b", "/a\n/b", "/a/b"]);
    check("/a%", &["/a%"]);
    check("/a%2", &["/a%2"]);
    check("/a%zz", &["/a%zz"]);
    check("*", &["*"]);
}

#[test]
fn overlong_utf8_is_also_read_as_ascii() {
    #[track_caller]
    fn check(path: &str, hidden: &str, expected: bool) {
        assert_eq!(all(path).iter().any(|reading| reading == hidden), expected, "{path}");
    }
    check("/%c0%ae%C0%AE/b", "/b", true);
    check("/a%c0%afb", "/a/b", true);
    check("/a%c1%9cb", "/a/b", true);
    check("/a%e0%80%afb", "/a/b", true);
    check("/a%f0%80%80%afb", "/a/b", true);
    check("/a%c0%a5%32%66b", "/a/b", true);
    check("/a%c2%afb", "/a/b", false);
    check("/a%e0%a0%afb", "/a/b", false);
    check("/a%c0", "/a", false);
}

#[test]
fn the_first_reading_is_the_normalized_path() {
    for (path, expected) in [("/%7Euser/%2F", "/~user/%2F"), ("/%41%2d", "/A-"), ("/x%", "/x%")] {
        assert_eq!(all(path)[0], expected, "{path}");
    }
}

#[test]
fn the_work_per_path_is_bounded() {
    let many = "/a//b;c/%255C..%252e%3B/%2500/../d\\..//%252F;/./%3f";
    assert_eq!(readings(many), Readings::TooMany);
    let long = format!("/v1/{}//..;/%252F", "x".repeat(60 * 1024));
    assert_eq!(readings(&long), Readings::TooMany);
    assert!(matches!(readings(&format!("/v1/{}%20", "x".repeat(60 * 1024))), Readings::Several(_)));
}

#[test]
fn the_rest_after_a_prefix_is_returned_as_written() {
    #[track_caller]
    fn check(prefix: &str, path: &str, expected: Option<&str>) {
        assert_eq!(rest(&PathPrefix::parse(prefix).unwrap(), path), expected, "{prefix} {path}");
    }
    check("/crm", "/crm/a%2Fb", Some("/a%2Fb"));
    check("/crm", "/%63rm/%61", Some("/%61"));
    check("/crm", "/cr%6D", Some(""));
    check("/crm", "/cr%6Dx", None);
    check("/crm", "/cr%6", None);
    check("/crm", "/crm%2Fx", None);
    check("/a~b", "/a%7eb/x", Some("/x"));
    check("/a:b", "/a%3Ab", None);
    check("/", "/x", Some("/x"));
}

/// Independent models of real servers: the path that each serves.
mod servers {
    fn decode(path: &str) -> String {
        let mut bytes = Vec::new();
        let mut rest = path;
        while let Some(first) = rest.chars().next() {
            let digits = rest.get(1..3).filter(|digits| first == '%' && digits.bytes().all(|b| b.is_ascii_hexdigit()));
            match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &rest[3..];
                }
                None => {
                    bytes.extend_from_slice(first.to_string().as_bytes());
                    rest = &rest[first.len_utf8()..];
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn resolve(path: &str) -> String {
        let mut kept: Vec<&str> = Vec::new();
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let is_dots = |segment: &str| segment == "." || segment == "..";
        for segment in &segments {
            match *segment {
                "." => {}
                ".." => drop(kept.pop()),
                name => kept.push(name),
            }
        }
        let end = if segments.last().is_some_and(|last| is_dots(last)) { "/" } else { "" };
        let joined = format!("/{}", kept.join("/"));
        if end.is_empty() || joined.ends_with('/') { joined } else { joined + end }
    }

    fn merge(path: &str) -> String {
        let mut merged = path.to_owned();
        while merged.contains("//") {
            merged = merged.replace("//", "/");
        }
        merged
    }

    fn strip(path: &str) -> String {
        path.split('/').map(|segment| segment.split(';').next().unwrap_or("")).collect::<Vec<_>>().join("/")
    }

    /// Decodes, merges slashes, resolves dot segments.
    pub fn nginx(path: &str) -> String {
        resolve(&merge(&decode(path)))
    }

    /// Drops parameters, decodes, treats `\` as `/`, merges slashes, resolves dot segments.
    pub fn tomcat(path: &str) -> String {
        resolve(&merge(&decode(&strip(path)).replace('\\', "/")))
    }

    /// Tomcat with a filter behind it that drops parameters once more.
    pub fn spring(path: &str) -> String {
        resolve(&strip(&decode(&strip(path))))
    }

    pub fn iis(path: &str) -> String {
        resolve(&decode(path).replace('\\', "/"))
    }

    /// A proxy that decodes and resolves, and a server that does so again.
    pub fn behind_a_decoding_proxy(path: &str) -> String {
        nginx(&nginx(path))
    }

    /// Redirects to the clean path: merged and resolved, not decoded.
    pub fn go(path: &str) -> String {
        resolve(&merge(path))
    }

    /// Routes on the raw path, decodes parameters later.
    pub fn express(path: &str) -> String {
        path.to_owned()
    }

    /// CGI in C: a decoded NUL ends the string.
    pub fn cgi(path: &str) -> String {
        let decoded = decode(path);
        resolve(decoded.split('\0').next().unwrap_or_default())
    }

    /// Decodes, then trims the white space of each segment.
    pub fn trimming(path: &str) -> String {
        let decoded = decode(path);
        resolve(&decoded.split('/').map(|segment| segment.trim_matches(|c| c <= ' ')).collect::<Vec<_>>().join("/"))
    }

    /// Decodes overlong UTF-8.
    pub fn lenient(path: &str) -> String {
        resolve(&decode(&path.replace("%c0%ae", ".").replace("%c0%af", "/")))
    }

    type Server = fn(&str) -> String;

    pub const ALL: [Server; 10] =
        [nginx, tomcat, spring, iis, behind_a_decoding_proxy, go, express, cgi, trimming, lenient];
}

fn path() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "/", "/", "/", "v1", "v1", "admin", "x", ".", "..", "%2e", "%2E%2e", "%2F", "%2f", "%5c", "\\", ";", ";a=b",
        "%3B", "%25", "%252e", "%252F", "%255c", "%00", "%61dmin", "%", "%2", "v%31", "%20", "%0a", "%c0%ae", "%c0%af",
    ]);
    prop::collection::vec(piece, 0..9).prop_map(|pieces| format!("/{}", pieces.concat()))
}

/// Longest prefix first.
fn rules() -> [PathPrefix; 3] {
    ["/v1/admin", "/v1/x", "/v1"].map(|text| PathPrefix::parse(text).unwrap())
}

fn rule_of(path: &[u8]) -> Option<usize> {
    rules().iter().position(|rule| rule.matches(path))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1024) })]

    #[test]
    fn no_server_reads_an_unambiguous_path_as_one_of_another_rule(path in path()) {
        let readings = match readings(&path) {
            Readings::One => vec![path.clone().into_bytes()],
            Readings::Several(all) => all,
            Readings::TooMany => return Ok(()),
        };
        let rule = rule_of(&readings[0]);
        if readings.iter().all(|reading| rule_of(reading) == rule) {
            for (number, server) in servers::ALL.iter().enumerate() {
                // Escaped unreserved characters are equivalent: they are decoded for servers that compare bytes.
                let normal = String::from_utf8(normalized(path.as_bytes())).unwrap();
                let read = server(&normal);
                prop_assert_eq!(rule_of(read.as_bytes()), rule, "server {} reads {} as {}", number, path, read);
            }
        }
    }

    #[test]
    fn a_plain_path_has_one_reading(path in "(/[a-z0-9_~!$&'()*+,=:@-][a-z0-9._~!$&'()*+,=:@-]{0,6}){0,4}/?") {
        prop_assert_eq!(readings(&path), Readings::One);
        let bytes = path.as_bytes().to_vec();
        let mut found = Collected { readings: Vec::new(), bytes: 0 };
        prop_assert!(found.collect(bytes.clone()).is_continue());
        prop_assert_eq!(found.readings, vec![bytes]);
    }

    #[test]
    fn a_path_that_stays_below_a_prefix_does_so_at_every_server(path in path()) {
        let base = PathPrefix::parse("/v1").unwrap();
        let mapped = format!("/v1{path}");
        if stays_below(&base, &mapped) {
            let normal = String::from_utf8(normalized(mapped.as_bytes())).unwrap();
            for server in servers::ALL {
                let read = server(&normal);
                prop_assert!(base.matches(read.as_bytes()), "{} is read as {}", mapped, read);
            }
        }
    }
}
