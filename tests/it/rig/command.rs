//! Commands of the program over the configuration in a directory.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::manager::MANAGER;
use super::sidecar::program;

const PATIENCE: Duration = Duration::from_secs(20);

/// A command of the program over the configuration in `dir`.
pub async fn run(dir: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = program()
        .args(arguments)
        .arg("--config")
        .arg(dir.join("keybearer.yaml"))
        .env("STATE_DIRECTORY", dir.join("state"))
        .env("KEYBEARER_ADMIN_TOKEN", MANAGER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // It may have ended without reading.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes()).await;
    timeout(PATIENCE, child.wait_with_output()).await.expect("it ends in time").expect("output")
}

/// Everything that a command has printed.
pub fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
