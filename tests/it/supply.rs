//! Enforces `[bans]` of `deny.toml` without cargo-deny, which CI does not have.
//!
//! `Cargo.lock` also lists crates of disabled features (ring, through rustls-webpki), so a banned crate in it is looked up
//! in the actual build.
//! Not here: advisories, licences and sources, which need cargo-deny.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn no_banned_crate_is_built() {
    let lock = lock();
    let named = |ban: &Ban| !ban.one_version && !versions(&lock, &ban.name).is_empty();
    let suspects: Vec<Ban> = bans().into_iter().filter(named).collect();
    if suspects.is_empty() {
        return;
    }
    let built = built();
    let found: Vec<_> = suspects.iter().filter(|ban| built.contains(&ban.name)).collect();
    assert!(found.is_empty(), "banned by deny.toml; `cargo tree -i NAME` shows which crate depends on it: {found:#?}");
}

#[test]
fn hyper_reqwest_rustls_and_tokio_have_one_version() {
    let lock = lock();
    for ban in bans().iter().filter(|ban| ban.one_version) {
        let found = versions(&lock, &ban.name);
        assert_eq!(
            found.len(),
            1,
            "{ban:?}: Cargo.lock has versions {found:?}; `cargo tree -d` shows which crates depend on them"
        );
    }
}

#[test]
fn the_whole_ban_list_is_read() {
    let names = |one_version| -> Vec<String> {
        bans().into_iter().filter(|ban| ban.one_version == one_version).map(|ban| ban.name).collect()
    };
    assert_eq!(names(true), ["hyper", "reqwest", "rustls", "tokio"]);
    for name in ["ring", "openssl-sys", "rsa", "serde_yml", "serde_yaml"] {
        assert!(names(false).iter().any(|banned| banned == name), "{name} is missing from the list in deny.toml");
    }
}

#[test]
fn two_versions_of_a_crate_are_detected() {
    let lock = "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\n[[package]]\nname = \"a\"\nversion = \"2.0.0\"\n\n\
                [[package]]\nname = \"a-b\"\nversion = \"3.0.0\"\ndependencies = [\n \"a 1.0.0\",\n]\n";
    assert_eq!(versions(lock, "a"), ["1.0.0", "2.0.0"]);
    assert_eq!(versions(lock, "b"), [""; 0]);
}

/// An entry of `[bans] deny`.
#[derive(Debug)]
struct Ban {
    name: String,
    /// Only a second version is banned.
    one_version: bool,
}

fn bans() -> Vec<Ban> {
    let text = read("deny.toml");
    let (_, after) = text.split_once("\n[bans]\n").expect("deny.toml has [bans]");
    let (_, list) = after.split_once("\ndeny = [\n").expect("[bans] has `deny`, one entry per line");
    let (list, _) = list.split_once("\n]").expect("the list ends");
    let entry = |line: &str| {
        let (_, name) = line.split_once("crate = \"").unwrap_or_else(|| panic!("no `crate = \"…\"` in: {line}"));
        let (name, _) = name.split_once('"').expect("the name ends");
        Ban { name: name.into(), one_version: line.contains("deny-multiple-versions = true") }
    };
    list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(entry).collect()
}

fn lock() -> String {
    read("Cargo.lock")
}

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn versions<'a>(lock: &'a str, name: &str) -> Vec<&'a str> {
    let head = format!("name = \"{name}\"");
    let lines = || lock.lines();
    let version = |line: &'a str| line.strip_prefix("version = \"").and_then(|rest| rest.strip_suffix('"'));
    lines().zip(lines().skip(1)).filter(|(line, _)| *line == head).filter_map(|(_, next)| version(next)).collect()
}

/// The crates of the build and the tests on this platform, with all our features.
fn built() -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--all-features", "--prefix", "none", "--format", "{p}", "--color", "never"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    let found: BTreeSet<String> =
        text.lines().filter_map(|line| line.split_whitespace().next()).map(String::from).collect();
    assert!(found.contains("rustls"), "cargo tree shows no rustls, so its output is incomplete: {text}");
    found
}
