//! Invalid configurations: each problem with its position, in the same words from `check`, `run` and a reload.
//!
//! `corpus/*.yaml` start with comments: `# LINE:COLUMN: …`, the beginning of each problem, and `# schema: good` if the
//! schema cannot detect the problem.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::rig::sidecar::{Sidecar, program, root};
use crate::rig::{peers, raw};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Ten problems of different kinds.
const MAIN: &str = "\
listeners: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}
workers: 0
readiness: {wait_for_tokens: 5}
include: [more]
trust: extra.pem
hosts: {a.test: localhost}
egress: {unmatched: drop}
callers:
  - name: billing
limits: {head: 1GiB}
log: {colour: red}
log: {}
require_header: {}
connections:
  - name: crm
    client_id: a
    client_secret: {env: SECRET}
    token_url: https://login.test/token
";
/// Five more problems, the first three in one connection.
const MORE: &str = "\
connections:
  - name: Maps
    client_secret: {file: nowhere}
    token_url: https://login.test/token
  - name: crm
    client_id: b
    client_secret: {env: SECRET}
    token_url: http://login.test/token
";

#[tokio::test]
async fn each_problem_is_one_line_with_its_position_and_hint() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (main, more) = (dir.path().join("keybearer.yaml"), dir.path().join("more/one.yaml"));
    std::fs::create_dir(dir.path().join("more")).expect("a directory");
    std::fs::write(&main, MAIN).expect("a file");
    std::fs::write(&more, MORE).expect("a file");
    let expected = [
        (&main, 2, 10, "workers", "`0` is not an integer from 1 to 64"),
        (&main, 3, 30, "readiness.wait_for_tokens", "`5` has no unit"),
        (&main, 5, 8, "trust", "must be a list"),
        (&main, 6, 17, "hosts[\"a.test\"]", "`localhost` is not an address"),
        (&main, 7, 21, "egress.unmatched", "`drop` is not a valid value"),
        (&main, 9, 5, "callers[0]", "the caller has no condition"),
        (&main, 10, 16, "limits.head", "`1GiB` is out of range"),
        (&main, 11, 7, "log.colour", "unknown key `colour`"),
        (&main, 12, 1, "log", "duplicate key (first on line 11)"),
        (&main, 13, 1, "require_header", "`require_header` is not built yet"),
        (&more, 2, 5, "connections[0].client_id", "`client_id` is missing"),
        (&more, 2, 11, "connections[0].name", "`Maps` is not a valid name"),
        (&more, 3, 27, "connections[0].client_secret.file", "cannot be read (no such file)"),
        (&more, 5, 11, "connections[1].name", "another connection is named `crm`"),
        (&more, 8, 16, "connections[1].token_url", "would send the client secret in the clear"),
    ];
    let output = check(&main, &[]).await;
    let lines = lines(&output.stdout);
    assert_eq!((output.status.code(), lines.len()), (Some(2), 15), "{lines:#?}");
    assert_eq!(text(&output.stderr), format!("{}: 15 problems\n", main.display()));
    let output = check(&main, &["--json"]).await;
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(15), "{report:#}");
    for (index, (file, line, column, path, message)) in expected.into_iter().enumerate() {
        let (shown, problem) = (&lines[index], &report["problems"][index]);
        let position = format!("{}:{line}:{column}: {path}: ", file.display());
        let text = shown.strip_prefix(&position).unwrap_or_else(|| panic!("{shown}\n  is not at {position}"));
        assert!(text.contains(message), "{shown}\n  does not contain {message}");
        let field = |key: &str| problem[key].as_str().unwrap_or_default();
        assert_eq!((problem["line"].as_u64(), problem["column"].as_u64()), (Some(line), Some(column)), "{problem}");
        assert_eq!((Path::new(field("file")), field("path")), (file.as_path(), path), "{problem}");
        assert_eq!(text, format!("{}; {}", field("message"), field("hint")));
        assert!(!field("hint").is_empty(), "{shown} has no hint");
    }
}

/// Common mistakes in pasted keys and certificates.
#[tokio::test]
async fn an_unreadable_key_or_certificate_is_reported_with_cause_and_remedy() {
    const KEY: &str = include_str!("../../../src/jwt/tests/rsa-pkcs8.pem");
    const VERSION_1: &str = include_str!("../../../src/config/tests/version-1.pem");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let escaped = KEY.trim_end().replace('\n', "\\n");
    let json = format!("{{\n  \"type\": \"service_account\",\n  \"private_key\": \"{escaped}\\n\"\n}}\n");
    let certificate = VERSION_1.replace('\n', "\\n");
    for (name, text) in
        [("key", KEY), ("v1", VERSION_1), ("escaped", &escaped), ("json", &json), ("flat", &certificate)]
    {
        std::fs::write(dir.path().join(name), text).expect("a file");
    }
    let signed = |key: &str| format!("send_credentials: private_key_jwt, client_assertion: {{key: {key}}}");
    let presented =
        |certificate: &str, key: &str| format!("mutual_tls: {{certificate: {certificate}, key: {{file: {key}}}}}");
    let no_line_breaks =
        "the key has the two characters `\\n` instead of line breaks; restore them, for example with `printf '%b'";
    for (keys, path, expected) in [
        (signed("{env: SIGNING_KEY}"), "client_assertion.key", no_line_breaks),
        (signed("{file: json}"), "client_assertion.key", "the key is JSON with the PEM in a member; extract the PEM"),
        ("grant: jwt_bearer, assertion: {key: {file: escaped}}".to_owned(), "assertion.key", no_line_breaks),
        (presented("v1", "escaped"), "mutual_tls.key", no_line_breaks),
        (
            presented("flat", "key"),
            "mutual_tls.certificate",
            "flat has the two characters `\\n` instead of line breaks",
        ),
        (
            presented("v1", "key"),
            "mutual_tls.certificate",
            "v1 holds a certificate of X.509 version 1, which cannot be presented over TLS",
        ),
        (presented("v1", "key"), "mutual_tls.certificate", "; reissue it as version 3"),
        ("authorization_server: {trust: [flat]}".to_owned(), "authorization_server.trust[0]", "instead of line breaks"),
    ] {
        let file = dir.path().join("keybearer.yaml");
        let text =
            format!("connections:\n- {{name: crm, client_id: a, token_url: \"https://as.test/t\",\n   {keys}}}\n");
        std::fs::write(&file, text).expect("a file");
        let mut command = program();
        command.args(["check", "--config"]).arg(&file).env("SIGNING_KEY", &escaped);
        let output = run_to_end(command).await;
        let lines = lines(&output.stdout);
        assert_eq!((output.status.code(), lines.len()), (Some(2), 1), "{keys}: {lines:#?}");
        assert!(lines[0].contains(&format!(": connections[0].{path}: ")) && lines[0].contains(expected), "{lines:#?}");
        assert!(!lines[0].contains("PRIVATE KEY"), "{lines:#?}");
    }
    // A root may be of version 1.
    let file = dir.path().join("keybearer.yaml");
    std::fs::write(&file, "trust: [v1]\nconnections: []\n").expect("a file");
    assert_eq!(check(&file, &[]).await.status.code(), Some(0));
}

#[tokio::test]
async fn a_terminal_shows_the_line_with_carets() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("keybearer.yaml");
    let broken = "egress: {unmatched: drop}\nconnections:\n  - {name: crm, client_id: a, client_secret: hunter2, colour: \
                  red,\n     token_url: \"https://u:hunter2@login.test/token\"}\n";
    std::fs::write(&file, broken).expect("a file");
    let plain = lines(&check(&file, &[]).await.stdout);
    let [unmatched, colour, url] = &plain[..] else { panic!("{plain:#?}") };
    let script = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let mut command = Command::new(peers::python());
    command.args(["-c", script, env!("CARGO_BIN_EXE_keybearer"), "check", "--config"]).arg(&file);
    let output = run_to_end(command).await;
    let shown = text(&output.stdout).replace("\r\n", "\n");
    assert_eq!(output.status.code(), Some(2), "{shown}\n{}", text(&output.stderr));
    let expected = [
        unmatched,
        "  1 | egress: {unmatched: drop …",
        "    |                     ^^^^",
        colour,
        "  3 |   - {name: …, client_id: …, client_secret: …, colour: …",
        "    |                                               ^^^^^^",
        url,
        "  4 |      token_url: …",
        "    |                 ^",
    ];
    assert!(shown.contains(&(expected.join("\n") + "\n")), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[tokio::test]
async fn check_run_and_reload_report_the_same_problems() {
    let good = "connections:\n- {name: crm, active: false, client_id: a, token_url: \"http://127.0.0.1:1/token\", \
                routes: [{host: api.test}]}\n";
    let sidecar = Sidecar::start(good).await;
    let file = sidecar.dir.path().join("keybearer.yaml");
    let good = std::fs::read(&file).expect("a readable file");
    for (name, broken, expected) in corpus() {
        let log_lines_before = sidecar.log().lines().count();
        std::fs::write(&file, &broken).expect("a file");
        sidecar.signal("HUP");
        let output = bounded("check", &file).await;
        let problems = lines(&output.stdout);
        assert_eq!(output.status.code(), Some(2), "{name}: {problems:#?}\n{}", text(&output.stderr));
        assert_eq!(problems.len(), expected.len(), "{name}: {problems:#?}");
        for (problem, expected) in problems.iter().zip(&expected) {
            let expected = format!("{}:{expected}", file.display());
            assert!(problem.starts_with(&expected), "{name}: {problem}\n  is not {expected}");
        }
        assert!(!problems.concat().contains("hunter2}"), "{name}: {problems:#?}");

        let output = bounded("run", &file).await;
        let stderr = lines(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}: {stderr:#?}");
        let (_, before) = stderr.split_last().expect("the number of problems");
        let refused: Vec<_> = before.iter().filter(|line| !line.starts_with("warning: ")).collect();
        assert_eq!(refused, problems.iter().collect::<Vec<_>>(), "{name}");
        assert!(!stderr.concat().contains("listening"), "{name}: {stderr:#?}");

        let refused = async {
            while !refusals(&sidecar, log_lines_before).contains(&problems) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let logged = timeout(TIMEOUT, refused).await;
        assert!(logged.is_ok(), "{name}: the log does not contain\n{problems:#?}\nbut\n{}", sidecar.log());
        assert_eq!(sidecar.metric("keybearer_config_last_reload_successful").await, 0.0, "{name}");
        let response = raw::get_through(sidecar.proxy(), "http://api.test/", "").await;
        assert_eq!(response.code(), "connection_inactive", "{name}: the previous configuration is not in force");
    }
    std::fs::write(&file, good).expect("a file");
    sidecar.wait_for_metric("keybearer_config_last_reload_successful", |value| value == 1.0).await;
}

/// Name, content, and the beginning of each problem: the files of `corpus`, and generated ones.
fn corpus() -> Vec<(String, Vec<u8>, Vec<String>)> {
    let mut all = Vec::new();
    for (name, text) in files() {
        let notes = text.lines().map_while(|line| line.strip_prefix("# "));
        let begins = |note: &&str| note.starts_with(|c: char| c.is_ascii_digit());
        let expected: Vec<_> = notes.filter(begins).map(str::to_owned).collect();
        assert!(!expected.is_empty(), "{name} has no expected problem");
        all.push((name, text.into_bytes(), expected));
    }
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..20 {
        bomb += &format!("a{level}: &a{level} [{}]\n", format!("*a{}, ", level - 1).repeat(9));
    }
    let generated = [
        ("an alias bomb", bomb.into_bytes(), "6:40: a5[6]: the document has more than"),
        ("10,000 deep", b"[".repeat(10_000), "1:256: is not valid YAML: recursion limit exceeded"),
        ("10,000 maps deep", b"{a: ".repeat(10_000), "1:1021: is not valid YAML: recursion limit exceeded"),
        ("a large file", b"# x\n".repeat(1 << 20 | 1), "1:1: cannot be read (larger than"),
        ("not UTF-8", b"workers: 2\nlog: \xff\n".to_vec(), "2:6: is not UTF-8"),
    ];
    all.extend(generated.map(|(name, text, expected)| (name.to_owned(), text, vec![expected.to_owned()])));
    all
}

/// The files of `corpus`, sorted by name.
pub fn files() -> Vec<(String, String)> {
    let mut files: Vec<_> = std::fs::read_dir(root().join("tests/it/corpus")).expect("the corpus").collect();
    assert!(files.len() >= 15, "{files:?}");
    files.sort_by_key(|entry| entry.as_ref().map(std::fs::DirEntry::path).ok());
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.expect("a readable directory entry");
        (entry.file_name().into_string().expect("a name"), std::fs::read_to_string(entry.path()).expect("a text"))
    };
    files.into_iter().map(read).collect()
}

/// The problems of each refused reload after the first `skip` lines of the log.
fn refusals(sidecar: &Sidecar, skip: usize) -> Vec<Vec<String>> {
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    for line in sidecar.log().lines().skip(skip) {
        let event: Value = serde_json::from_str(line).unwrap_or_default();
        match &event["problem"] {
            Value::String(problem) => problems.push(problem.clone()),
            _ if event["problems"].is_u64() => all.push(std::mem::take(&mut problems)),
            _ => {}
        }
    }
    all
}

async fn check(file: &Path, more: &[&str]) -> Output {
    let mut command = program();
    command.args(["check", "--config"]).arg(file).args(more).env("SECRET", "x");
    run_to_end(command).await
}

/// Runs the program with at most one second of CPU time and 512 MiB of address space.
async fn bounded(command: &str, file: &Path) -> Output {
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -t 1; ulimit -v 524288; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_keybearer"), command]);
    shell.arg("--config").arg(file).env_remove("KEYBEARER_CONFIG");
    run_to_end(shell).await
}

async fn run_to_end(mut command: Command) -> Output {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    timeout(TIMEOUT, output).await.expect("exits before the timeout").expect("the command starts")
}

fn lines(bytes: &[u8]) -> Vec<String> {
    text(bytes).lines().map(str::to_owned).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}
