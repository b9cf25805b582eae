//! Tells the program what it was built from, for `version` and `keybearer_build_info`.

#![allow(clippy::disallowed_methods, reason = "a build script is told everything by its environment")]

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-env-changed=KEYBEARER_REVISION");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let revision =
        std::env::var("KEYBEARER_REVISION").ok().or_else(|| line("git", &["rev-parse", "--short=12", "HEAD"]));
    println!("cargo:rustc-env=KEYBEARER_REVISION={}", revision.as_deref().unwrap_or("unknown"));
    println!("cargo:rustc-env=KEYBEARER_RUSTC={}", line(&rustc, &["--version"]).as_deref().unwrap_or("unknown"));
}

/// What a command prints, if it succeeds.
fn line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
