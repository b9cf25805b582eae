//! The program on a read-only root file system: it runs in its own mount namespace, in which nothing can be written.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::rig::raw;
use crate::rig::scripted::Scripted;
use crate::rig::sidecar::program;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Remounts every directory that a program may write to as read-only, proves it, and executes the program.
const SCRIPT: &str = r#"
set -e
mount --make-rprivate /
for path in / /tmp /var /var/lib /run /dev/shm "$HOME" "$WHERE"; do
    if mountpoint -q "$path"; then mount -o remount,ro,bind "$path"; fi
done
for path in / /tmp /var/lib "$HOME" "$WHERE"; do
    if [ -d "$path" ] && touch "$path/keybearer-probe" 2>/dev/null; then echo "$path is writable" >&2; exit 99; fi
done
exec "$@"
"#;

/// The program in such a namespace, in which `directory` is read-only too.
fn read_only(directory: &Path) -> Command {
    let command = |options: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(options).args(["sh", "-c", SCRIPT, "sh"]).env("WHERE", directory).kill_on_drop(true);
        command.env("HOME", directory).env_remove("STATE_DIRECTORY");
        command
    };
    for options in [&["--mount"][..], &["--mount", "--map-root-user"]] {
        let mut probe = command(options);
        let output = probe.arg("true").as_std_mut().output();
        if output.expect("unshare of util-linux is installed").status.success() {
            let mut command = command(options);
            command.arg(program().as_std().get_program());
            return command;
        }
    }
    panic!(
        "cannot create a mount namespace: run the tests as root with CAP_SYS_ADMIN, or as a user who may create user \
         namespaces (sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
    );
}

fn configuration(directory: &Path, server: &Scripted, upstream: &Scripted) -> String {
    let path = directory.join("keybearer.yaml");
    let text = format!(
        "listeners: {{proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}}\nhosts: {{api.test: \"{}\"}}\nconnections:\n\
         - {{name: crm, client_id: a, token_url: \"http://{}/t\", routes: [{{host: api.test, upstream_tls: false}}]}}\n",
        upstream.address, server.address
    );
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn a_request_gets_its_token_on_a_read_only_file_system() {
    let directory = tempfile::tempdir().unwrap();
    let (server, upstream) = (Scripted::tokens(600).await, Scripted::upstream().await);
    let file = configuration(directory.path(), &server, &upstream);
    let mut command = read_only(directory.path());
    let mut child = command.args(["run", "--config", &file]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (mut addresses, mut warned) = (HashMap::<String, SocketAddr>::new(), false);
    let started = async {
        let mut log = String::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if event["message"] == "listening" {
                let name = event["listener"].as_str().unwrap().to_owned();
                addresses.insert(name, event["address"].as_str().unwrap().parse().unwrap());
            }
            let text = line.to_lowercase();
            warned |=
                event["level"] == "WARN" && text.contains("admin-token") && text.contains("read-only file system");
            log += &(line + "\n");
            if event["message"] == "ready" {
                return;
            }
        }
        panic!("the program exited before it was ready:\n{log}");
    };
    timeout(TIMEOUT, started).await.expect("ready before the timeout");
    assert!(warned, "no warning about the state directory");
    assert_eq!(raw::get_through(addresses["proxy"], "http://api.test/", "").await.status, 200);
    assert_eq!(upstream.received()[0].values("authorization"), ["Bearer token-1"]);
    assert_eq!(raw::get(addresses["admin"], "/readyz").await.status, 200);
}

#[tokio::test]
async fn check_and_the_demo_work_on_a_read_only_file_system() {
    let directory = tempfile::tempdir().unwrap();
    let (server, upstream) = (Scripted::tokens(600).await, Scripted::upstream().await);
    let file = configuration(directory.path(), &server, &upstream);
    for (arguments, shown) in
        [(&["check", "--config", &file][..], "OK, 1 connection"), (&["demo", "--once"], "accepted it")]
    {
        let output =
            timeout(TIMEOUT, read_only(directory.path()).args(arguments).output()).await.expect("no timeout").unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && stdout.contains(shown), "{arguments:?}: {stdout}{stderr}");
    }
}
