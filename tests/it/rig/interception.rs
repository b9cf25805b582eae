//! An interception CA that the program itself has made, once in a test process.

use std::path::PathBuf;
use std::sync::OnceLock;

use super::peers::Peers;

/// Certificate and key of an interception CA, made once.
pub fn interception_ca() -> &'static (PathBuf, PathBuf) {
    static MADE: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    MADE.get_or_init(|| make_ca("interception"))
}

pub fn make_ca(name: &str) -> (PathBuf, PathBuf) {
    let dir = &Peers::certs().dir;
    let (certificate, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_keybearer"));
    let output = command.args(["ca", "init", "--certificate"]).arg(&certificate).arg("--key").arg(&key).output();
    assert!(output.is_ok_and(|output| output.status.success()), "ca init");
    (certificate, key)
}

/// `interception: …` with that CA.
pub fn interception() -> String {
    let (certificate, key) = interception_ca();
    format!(
        "interception: {{ca_certificate: \"{}\", ca_key: {{file: \"{}\"}}}}\n",
        certificate.display(),
        key.display()
    )
}
