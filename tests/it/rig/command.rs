//! Runs commands of the program with the configuration of a directory.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::manager::MANAGER;
use super::sidecar::program;

const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs a command with the configuration in `dir`, with `input` on stdin.
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
    // The command may exit without reading stdin.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes()).await;
    timeout(TIMEOUT, child.wait_with_output()).await.expect("exits before the timeout").expect("output")
}

/// Stdout and stderr of a command.
pub fn output_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
