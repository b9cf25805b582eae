//! The command line: output, streams and exit codes of each command.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;

use crate::rig::sidecar::program;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A connection that `check` accepts; its server never receives a request.
const CONNECTIONS: &str = "connections:\n- {name: crm, client_id: a, client_secret: \"${env:SECRET}\", \
                           token_url: \"http://127.0.0.1:1/token\", routes: [{host: api.test}]}\n";
/// A configuration with two problems, on separate lines.
const BROKEN: &str = "egress: {unmatched: maybe}\nconnections:\n- name: crm\n  client_id: a\n  client_secrets: b\n  \
                      token_url: http://127.0.0.1:1/token\n  send_credentials: none\n";

#[tokio::test]
async fn demo_once_shows_an_accepted_token_and_no_secret() {
    let output = demo(&["--once"]).await;
    let shown = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{shown}\n{}", stderr(&output));
    assert!(shown.contains("GET /hello HTTP/1.1\n"), "what the API received is missing:\n{shown}");
    let (_, token) = shown.split_once("Authorization: Bearer ").expect("the API's view of the token");
    let digits = token.chars().take_while(char::is_ascii_hexdigit).count();
    assert!(digits == 6 && token.chars().nth(6) == Some('…'), "not six characters and an ellipsis:\n{shown}");
    assert_hides_secrets(&output);
}

#[tokio::test]
async fn demo_once_with_a_wrong_secret_fails_and_reports_the_error() {
    let output = demo(&["--once", "--client-secret", "wrong-and-never-shown"]).await;
    let shown = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(shown.contains("token_refused") && shown.contains("`invalid_client`"), "{shown}");
    let all = shown + &stderr(&output);
    assert!(!all.contains("Bearer") && !all.contains("wrong-and-never-shown"), "{all}");
    assert_hides_secrets(&output);
}

#[tokio::test]
async fn demo_keeps_its_token_fresh_until_it_is_interrupted() {
    occupy_default_ports();
    let mut child =
        program().arg("demo").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("keybearer starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let refreshed = async {
        let mut curl = false;
        while let Some(line) = lines.next_line().await.expect("text") {
            curl |= line.trim_start().starts_with("curl -x http://127.0.0.1:");
            if line.contains("token refreshed: ") {
                return curl;
            }
        }
        panic!("the demo ended before a refresh");
    };
    assert!(timeout(TIMEOUT, refreshed).await.expect("a refresh in time"), "no curl line to try");
    let pid = child.id().expect("a running child").to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().expect("kill is installed").success());
    let status = timeout(TIMEOUT, child.wait()).await.expect("exits before the timeout").expect("a status");
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn check_accepts_a_valid_file() {
    let file = Config::new(CONNECTIONS);
    let output = run(&["check", "--config", file.name()]).await;
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    let shown = stdout(&output);
    let rest = shown.strip_prefix(&format!("{}: OK, 1 connection\n", file.name()));
    assert!(
        rest.is_some_and(|rest| rest.starts_with("note: without `interception`") && rest.lines().count() == 1),
        "{shown}"
    );
    // There is no note if every request that can get a token gets one.
    for (from, to) in [("host: ", "inject: none, host: "), ("host: ", "upstream_tls: false, host: ")] {
        let file = Config::new(&CONNECTIONS.replace(from, to));
        let output = run(&["check", "--config", file.name()]).await;
        assert_eq!(stdout(&output), format!("{}: OK, 1 connection\n", file.name()), "{to}");
    }
}

#[tokio::test]
async fn check_reports_every_problem_with_its_location_and_a_hint() {
    let file = Config::new(BROKEN);
    let output = run(&["check", "--config", file.name()]).await;
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr(&output), format!("{}: 2 problems\n", file.name()));
    let text = stdout(&output);
    let mut lines = text.lines();
    for (location, path) in [(":1:21: ", "egress.unmatched: "), (":5:3: ", "connections[0].client_secrets: ")] {
        let line = lines.next().unwrap_or_default();
        let rest = line.strip_prefix(&format!("{}{location}{path}", file.name()));
        let (message, hint) = rest.and_then(|rest| rest.split_once("; ")).unwrap_or_default();
        assert!(!message.is_empty() && !hint.is_empty(), "not FILE{location}{path}message; hint:\n{text}");
    }
    assert_eq!(lines.next(), None, "{text}");
}

#[tokio::test]
async fn check_json_prints_one_object() {
    let valid = Config::new(CONNECTIONS);
    assert_eq!(check_json(&valid, 0).await["problems"], Value::Array(vec![]));
    let warned = Config::new(&CONNECTIONS.replace("${env:SECRET}", "text"));
    let report = check_json(&warned, 0).await;
    assert_eq!((&report["problems"], report["warnings"][0]["line"].as_u64()), (&Value::Array(vec![]), Some(2)));
    let broken = Config::new(BROKEN);
    let report = check_json(&broken, 2).await;
    let problems = report["problems"].as_array().expect("a list");
    assert_eq!(problems.len(), 2, "{report}");
    let keys: Vec<_> = problems[0].as_object().expect("a JSON object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["column", "file", "hint", "line", "message", "path"]);
    assert_eq!(problems[0]["path"], "egress.unmatched");
    assert_eq!((&problems[0]["line"], &problems[0]["column"]), (&Value::from(1), &Value::from(21)));
    assert_eq!(problems[0]["file"], broken.name());
}

#[tokio::test]
async fn a_missing_file_is_a_problem() {
    for command in ["check", "run"] {
        let output = run(&[command, "--config", "/nowhere/keybearer.yaml"]).await;
        assert_eq!(output.status.code(), Some(2), "{command}");
        let text = if command == "check" { stdout(&output) } else { stderr(&output) };
        assert!(text.starts_with("/nowhere/keybearer.yaml:1:1: cannot be read"), "{command}: {text}");
    }
}

#[tokio::test]
async fn the_environment_selects_the_configuration() {
    let file = Config::new(CONNECTIONS);
    let output = program().arg("check").env("KEYBEARER_CONFIG", file.path()).env("SECRET", "x").output().await;
    let output = output.expect("the command starts");
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[tokio::test]
async fn run_refuses_a_broken_configuration_at_once_and_opens_nothing() {
    // Both ports are in use: opening either would fail with exit code 1 and its address.
    let (proxy, admin) = (used_port(), used_port());
    let listeners = format!("listeners: {{proxy: \"{}\", admin: \"{}\"}}\n", proxy.1, admin.1);
    let file = Config::new(&(BROKEN.to_owned() + &listeners));
    let started = Instant::now();
    let output = run(&["run", "--config", file.name()]).await;
    let took = started.elapsed();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("egress.unmatched") && text.ends_with(": 2 problems\n"), "{text}");
    assert!(!text.contains("listening") && !text.contains("cannot be opened"), "{text}");
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn run_names_an_address_that_is_in_use() {
    let (_held, address) = used_port();
    let listeners = format!("listeners: {{proxy: \"{address}\", admin: \"127.0.0.1:0\"}}\n");
    let file = Config::new(&(listeners + CONNECTIONS));
    let output = run(&["run", "--config", file.name()]).await;
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("listener proxy cannot bind {address}")), "{text}");
}

#[tokio::test]
async fn wrong_arguments_are_refused() {
    for arguments in [&[][..], &["walk"], &["run", "--confg", "x"], &["check", "extra"], &["demo", "--client-secret"]] {
        let output = run(arguments).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains("--help"), "{arguments:?}: {}", stderr(&output));
    }
}

#[tokio::test]
async fn version_shows_revision_and_compiler() {
    let output = run(&["version"]).await;
    let line = stdout(&output);
    assert_eq!(output.status.code(), Some(0));
    let rest = line.strip_prefix(concat!("keybearer ", env!("CARGO_PKG_VERSION"), " (")).expect("name and version");
    let (revision, compiler) = rest.trim_end().strip_suffix(')').and_then(|r| r.split_once(", ")).expect("both");
    assert!(!revision.is_empty() && compiler.starts_with("rustc "), "{line}");
}

/// A configuration file in its own temporary directory.
struct Config(#[expect(dead_code, reason = "deleted on drop")] tempfile::TempDir, PathBuf);

impl Config {
    fn new(text: &str) -> Config {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("keybearer.yaml");
        std::fs::write(&path, text).expect("a file");
        Config(dir, path)
    }

    fn path(&self) -> &Path {
        &self.1
    }

    fn name(&self) -> &str {
        self.1.to_str().expect("a UTF-8 path")
    }
}

async fn check_json(file: &Config, exit: i32) -> Value {
    let output = run(&["check", "--json", "--config", file.name()]).await;
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(exit), ""));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let keys: Vec<_> = report.as_object().expect("a JSON object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["file", "notes", "problems", "warnings"]);
    assert_eq!(report["file"], file.name());
    report
}

async fn demo(arguments: &[&str]) -> Output {
    occupy_default_ports();
    run(&[&["demo"], arguments].concat()).await
}

async fn run(arguments: &[&str]) -> Output {
    let output = program().args(arguments).env("SECRET", "x").stdin(Stdio::null()).output();
    timeout(TIMEOUT, output)
        .await
        .unwrap_or_else(|_| panic!("{arguments:?} does not exit"))
        .expect("the command starts")
}

fn used_port() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound listener");
    (listener, address)
}

/// Occupies 8080 and 8081, which a demo uses if they are free, so that concurrent demos do not conflict.
fn occupy_default_ports() {
    static HELD: OnceLock<[std::io::Result<TcpListener>; 2]> = OnceLock::new();
    HELD.get_or_init(|| ["127.0.0.1:8080", "127.0.0.1:8081"].map(TcpListener::bind));
}

/// Asserts that the output has no token or secret of the demo: they are 32 hexadecimal digits.
#[track_caller]
fn assert_hides_secrets(output: &Output) {
    let all = stdout(output) + &stderr(output);
    let longest = all.split(|c: char| !c.is_ascii_hexdigit()).map(str::len).max();
    assert!(longest <= Some(20), "{all}");
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}
