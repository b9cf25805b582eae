//! An interception CA created by the program itself, once per test process.

use std::path::PathBuf;
use std::sync::OnceLock;

use super::peers::Peers;

/// Certificate and key of the interception CA.
pub fn interception_ca() -> &'static (PathBuf, PathBuf) {
    static CA: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    CA.get_or_init(|| make_ca("interception"))
}

pub fn make_ca(name: &str) -> (PathBuf, PathBuf) {
    let dir = &Peers::certs().dir;
    let (certificate, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_keybearer"));
    let output = command.args(["ca", "init", "--certificate"]).arg(&certificate).arg("--key").arg(&key).output();
    assert!(output.is_ok_and(|output| output.status.success()), "ca init");
    (certificate, key)
}

/// The `interception:` key with that CA.
pub fn interception() -> String {
    let (certificate, key) = interception_ca();
    format!(
        "interception: {{ca_certificate: \"{}\", ca_key: {{file: \"{}\"}}}}\n",
        certificate.display(),
        key.display()
    )
}
