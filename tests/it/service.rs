//! The program under a service manager and in a container.

use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use crate::rig::scripted::Scripted;
use crate::rig::sidecar::{Sidecar, program, unused_state};

/// The next notification, its lines joined by spaces.
fn notification(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let count = socket.recv(&mut buffer).expect("a notification in time");
    String::from_utf8_lossy(&buffer[..count]).trim().replace('\n', " ")
}

#[tokio::test]
async fn the_service_manager_is_notified_of_readiness_reloads_and_the_stop() {
    let dir = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let server = Scripted::tokens(600).await;
    let path = dir.path().join("keybearer.yaml");
    let config = format!(
        "listeners: {{proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}}\nconnections: [{{name: crm, client_id: a, token_url: \"http://{}/t\"}}]\n",
        server.address
    );
    std::fs::write(&path, config).unwrap();
    let mut command = program();
    command.args(["run", "--config"]).arg(&path).env("NOTIFY_SOCKET", dir.path().join("notify"));
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let signal = |name: &str| {
        let pid = child.id().expect("a running child").to_string();
        assert!(std::process::Command::new("kill").args([name, &pid]).status().unwrap().success());
    };
    let socket = tokio::task::spawn_blocking(move || {
        assert_eq!(notification(&socket), "READY=1");
        socket
    });
    let socket = socket.await.unwrap();
    signal("-HUP");
    let socket = tokio::task::spawn_blocking(move || {
        let reloading = notification(&socket);
        assert!(reloading.starts_with("RELOADING=1 MONOTONIC_USEC="), "{reloading}");
        assert_eq!(notification(&socket), "READY=1");
        socket
    });
    let socket = socket.await.unwrap();
    signal("-TERM");
    tokio::task::spawn_blocking(move || assert_eq!(notification(&socket), "STOPPING=1")).await.unwrap();
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test]
async fn core_dumps_are_disabled() {
    let sidecar = Sidecar::start("connections: []\n").await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", sidecar.pid())).expect("its limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a line for core files");
    assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["Max", "core", "file", "size", "0", "0", "bytes"]);
}

#[tokio::test]
async fn the_open_file_limit_is_raised_or_a_warning_is_logged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keybearer.yaml");
    std::fs::write(&path, "listeners: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}\n").unwrap();
    for (limits, expected) in [
        ("-S -n 256 && ulimit -H -n 4000", "lower than limits.downstream_connections"),
        ("-S -n 256", "open file limit"),
    ] {
        let script = format!("ulimit {limits}; exec \"$0\" run --config \"$1\" 2>&1");
        let mut command = tokio::process::Command::new("bash");
        command
            .args(["-c", &script, env!("CARGO_BIN_EXE_keybearer")])
            .env("STATE_DIRECTORY", unused_state())
            .arg(&path)
            .kill_on_drop(true)
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
        let found = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains(expected) {
                    return true;
                }
            }
            false
        };
        assert!(tokio::time::timeout(Duration::from_secs(15), found).await.expect("no timeout"), "{limits}");
    }
}
