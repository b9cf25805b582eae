//! `keybearer exec` and `env`: HTTP libraries configured only by these commands.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::json;
use tokio::process::Command;
use tokio::time::timeout;

use crate::rig::interception::{interception, interception_ca};
use crate::rig::peers::{AuthorizationServer, Peers, Upstream, node, peers_path, python};
use crate::rig::sidecar::{Sidecar, program};

const TIMEOUT: Duration = Duration::from_secs(40);
/// A secret with characters that must be encoded in a URL.
const SECRET: &str = "p@ss/w:rd%41 x";

struct Stage {
    sidecar: Sidecar,
    upstream: Upstream,
    _server: AuthorizationServer,
}

impl Stage {
    async fn start(top: &str) -> Stage {
        let server = AuthorizationServer::al(json!({"lifetime": 300})).await;
        let upstream = Upstream::start(&server).await;
        let config = format!(
            "trust: [\"{}\"]\nhosts: {{api.test: \"127.0.0.1:{}\"}}\n{top}connections:\n- {{name: crm, client_id: machine, \
             client_secret: machine-secret, token_url: \"{}\", routes: [{{host: api.test}}]}}\n",
            Peers::certs().ca.display(),
            upstream.https_port(),
            server.token_url()
        );
        Stage { sidecar: Sidecar::start_with(&config, &[("secret", SECRET)]).await, upstream, _server: server }
    }

    fn config(&self) -> PathBuf {
        self.sidecar.dir.path().join("keybearer.yaml")
    }

    /// `keybearer COMMAND` with the proxy's actual address, and its own files in `files`.
    fn command(&self, command: &str, arguments: &[&str]) -> Command {
        let mut program = program();
        program.args([command, "--config"]).arg(self.config()).args(["--proxy", &self.sidecar.proxy().to_string()]);
        program.args(arguments).env("STATE_DIRECTORY", self.files());
        for name in [
            "NO_PROXY",
            "no_proxy",
            "JAVA_TOOL_OPTIONS",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
            "PHP_INI_SCAN_DIR",
            "SYSTEM_WGETRC",
        ] {
            program.env_remove(name);
        }
        program
    }

    fn files(&self) -> PathBuf {
        self.sidecar.dir.path().join("files")
    }

    /// The variables that `exec` adds to those of the test process.
    async fn variables(&self, arguments: &[&str]) -> HashMap<String, String> {
        let arguments = [arguments, &["--", "env"]].concat();
        let output = output_of(self.command("exec", &arguments)).await;
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let own: HashMap<String, String> = std::env::vars().collect();
        let pairs = text(&output.stdout);
        let pairs = pairs.lines().filter_map(|line| line.split_once('='));
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        pairs.filter(|(name, value)| own.get(name) != Some(value) && name != "STATE_DIRECTORY").collect()
    }
}

async fn output_of(mut command: Command) -> Output {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    timeout(TIMEOUT, output).await.expect("exits before the timeout").expect("the command starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn clients_under_exec_call_https_urls_with_the_token() {
    let stage = Stage::start(&interception()).await;
    let (python, node) = (python().display().to_string(), node().display().to_string());
    let script = |name: &str| peers_path(&format!("clients/{name}")).display().to_string();
    let java = script("Get.java");
    let requests = "import sys, requests; print(requests.get(sys.argv[1]).status_code)";
    let httpx = "import sys, httpx; print(httpx.get(sys.argv[1]).status_code)";
    let urllib = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).status)";
    let fetch = "fetch(process.argv[1]).then((response) => console.log(response.status))";
    let url = "https://api.test/x";
    let clients: [(&str, &[&str]); 8] = [
        ("curl", &["curl", "-q", "-sS", "-o", "/dev/null", "-w", "%{http_code}\n", url]),
        ("requests", &[&python, "-c", requests, url]),
        ("httpx", &[&python, "-c", httpx, url]),
        ("urllib", &[&python, "-c", urllib, url]),
        ("fetch", &[&node, "-e", fetch, url]),
        ("wget", &["sh", "-c", "wget -q -S -O /dev/null \"$0\" 2>&1 | awk '/^  HTTP/ {print $2}'", url]),
        ("java HttpClient", &["java", &java, url]),
        ("java URLConnection", &["java", &java, url, "connection"]),
    ];
    for (client, line) in clients {
        let output = output_of(stage.command("exec", &[&["--"], line].concat())).await;
        let stdout = text(&output.stdout);
        assert_eq!(stdout, "200\n", "{client}: {}\n{}", text(&output.stderr), stage.sidecar.log());
    }
    let records = stage.upstream.records().await;
    assert_eq!(records.len(), clients.len());
    assert!(records.iter().all(|record| record["verdict"] == "active"), "{records:?}");
    // The system's roots are in the trust store of each kind, in addition to the interception CA.
    let listed = Command::new("keytool")
        .args(["-list", "-storepass", "changeit", "-keystore"])
        .arg(stage.files().join("interception-bundle.jks"))
        .output();
    let listed = text(&listed.await.expect("keytool").stdout);
    let bundle = std::fs::read_to_string(stage.files().join("interception-bundle.pem")).expect("a bundle");
    let count = bundle.matches("BEGIN CERTIFICATE").count();
    assert!(count > 50 && listed.contains(&format!("contains {count} entries")), "{count}: {listed}");
}

#[tokio::test]
async fn exec_exits_like_its_command() {
    let stage = Stage::start("").await;
    let exit_status = async |line: &[&str]| output_of(stage.command("exec", &[&["--"], line].concat())).await.status;
    assert_eq!(exit_status(&["sh", "-c", "exit 7"]).await.code(), Some(7));
    assert_eq!(exit_status(&["sh", "-c", "kill -TERM $$"]).await.signal(), Some(15));
    assert_eq!(exit_status(&["no-such-command"]).await.code(), Some(127));
    assert_eq!(exit_status(&["/"]).await.code(), Some(126));
    assert_eq!(output_of(stage.command("exec", &[])).await.status.code(), Some(2), "no command");
}

#[tokio::test]
async fn exec_sets_only_the_needed_variables() {
    let stage = Stage::start("").await;
    let plain = stage.variables(&[]).await;
    let url = stage.sidecar.proxy_url();
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"] {
        assert_eq!(plain.get(name), Some(&url), "{name}");
    }
    for name in ["NO_PROXY", "no_proxy"] {
        assert_eq!(plain[name], "localhost,127.0.0.1,::1", "{name}");
    }
    let mut names: Vec<_> = plain.keys().map(String::as_str).filter(|name| name.to_uppercase() != "NO_PROXY").collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["HTTPS_PROXY", "HTTP_PROXY", "JAVA_TOOL_OPTIONS", "NODE_USE_ENV_PROXY", "http_proxy", "https_proxy"]
    );
    assert!(!plain["JAVA_TOOL_OPTIONS"].contains("trustStore") && !stage.files().exists());
    let mut command = stage.command("exec", &["--", "sh", "-c", "echo \"$NO_PROXY\"; echo \"$JAVA_TOOL_OPTIONS\""]);
    command.env("NO_PROXY", ".corp, localhost").env("no_proxy", ".small,.corp").env("JAVA_TOOL_OPTIONS", "-Xmx64m");
    let stdout = text(&output_of(command).await.stdout);
    assert!(
        stdout.starts_with(".corp,localhost,.small,127.0.0.1,::1\n-Xmx64m -Dhttp.proxyHost=127.0.0.1 "),
        "{stdout}"
    );
    let mut command = stage.command("exec", &["--no-proxy", "a.test", "--", "sh", "-c", "echo \"$no_proxy\""]);
    command.env("no_proxy", ".small");
    assert_eq!(text(&output_of(command).await.stdout), "a.test,localhost,127.0.0.1,::1\n");
    let stage = Stage::start(&interception()).await;
    let mut command = stage.command("exec", &["--", "sh", "-c", "echo \"$PHP_INI_SCAN_DIR\""]);
    command.env("PHP_INI_SCAN_DIR", "/mine").env("SYSTEM_WGETRC", "/etc/mine");
    let output = output_of(command).await;
    let files = stage.files().display().to_string();
    assert_eq!(text(&output.stdout), format!("/mine:{files}/interception-php\n"));
    let replaced = format!("{files}/interception-wgetrc replaces /etc/mine");
    assert!(text(&output.stderr).contains(&replaced), "{}", text(&output.stderr));
    let trusting = stage.variables(&[]).await;
    let own = std::fs::read_to_string(&interception_ca().0).expect("a certificate");
    for (name, alone) in [
        ("SSL_CERT_FILE", false),
        ("REQUESTS_CA_BUNDLE", false),
        ("CURL_CA_BUNDLE", false),
        ("GIT_SSL_CAINFO", false),
        ("AWS_CA_BUNDLE", false),
        ("CARGO_HTTP_CAINFO", false),
        ("NODE_EXTRA_CA_CERTS", true),
        ("DENO_CERT", true),
    ] {
        let file = std::fs::read_to_string(&trusting[name]).expect("a file");
        assert!(file.starts_with(&own) && (file == own) == alone, "{name}");
    }
}

#[tokio::test]
async fn a_callers_secret_is_in_the_proxy_url_if_it_is_readable() {
    let digest = "sha256: ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let callers = format!(
        "callers: [{{name: billing, secret: {{file: secret}}}}, {{name: sealed, secret: {{{digest}}}}}, {{name: home, cidr: [10.0.0.0/8]}}]\n"
    );
    let stage = Stage::start(&(callers + &interception())).await;
    let curl = ["curl", "-q", "-s", "-o", "/dev/null", "-w", "%{http_code} %{http_connect}", "https://api.test/x"];
    let run = async |arguments: &[&str]| output_of(stage.command("exec", &[arguments, &["--"], &curl].concat())).await;
    assert_eq!(text(&run(&["--caller", "billing"]).await.stdout), "200 200");
    assert_eq!(text(&run(&[]).await.stdout), "000 407");
    assert_eq!(text(&run(&["--caller", "home"]).await.stdout), "000 407", "it has no secret to send");
    let output = run(&["--caller", "sealed"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("callers[1].secret.sha256: this secret is sent, so a digest is not enough"),
        "{}",
        text(&output.stderr)
    );
    let output = run(&["--caller", "absent"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no caller is named `absent`"), "{}", text(&output.stderr));
    let url = &stage.variables(&["--caller", "billing"]).await["HTTPS_PROXY"];
    assert_eq!(*url, format!("http://billing:p%40ss%2Fw%3Ard%2541%20x@{}", stage.sidecar.proxy()));
}

#[tokio::test]
async fn env_prints_for_shells_and_containers() {
    let stage = Stage::start(&interception()).await;
    let expected = stage.variables(&[]).await;
    let print = async |shell: &str| {
        let output = output_of(stage.command("env", &["--shell", shell])).await;
        assert_eq!(output.status.code(), Some(0), "{shell}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let sh = print("sh").await;
    let output = output_of({
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{sh}\nenv")]).env_clear().env("PATH", "/usr/bin:/bin");
        command
    });
    let set = text(&output.await.stdout);
    for (name, value) in &expected {
        assert!(set.lines().any(|line| line == format!("{name}={value}")), "sh {name}: {set}");
    }
    let docker = print("docker").await;
    assert_eq!(docker.lines().filter_map(|line| line.split_once('=')).count(), expected.len(), "{docker}");
    assert!(
        docker.lines().all(|line| line.split_once('=').is_some_and(|(name, value)| expected[name] == value)),
        "{docker}"
    );
    let k8s: Vec<HashMap<String, String>> = serde_yaml::from_str(&print("k8s").await).expect("YAML");
    assert!(k8s.len() == expected.len() && k8s.iter().all(|item| expected[&item["name"]] == item["value"]));
    assert!(print("fish").await.contains("set -gx HTTPS_PROXY 'http://127.0.0.1:"));
    assert!(print("powershell").await.contains("$env:HTTPS_PROXY = 'http://127.0.0.1:"));
    // The configured port is 0 here, so the address must be given.
    let output = output_of({
        let mut command = program();
        command.args(["env", "--config"]).arg(stage.config());
        command
    });
    let stderr = text(&output.await.stderr);
    assert!(stderr.contains("--proxy HOST:PORT"), "{stderr}");
}

#[tokio::test]
async fn env_uses_the_configured_address() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("keybearer.yaml");
    for (listeners, caller, expected) in [
        ("", "", "127.0.0.1:8080"),
        ("listeners: {proxy: {address: \"0.0.0.0:3128\", open: true}}", "", "127.0.0.1:3128"),
        ("listeners: {proxy: {address: \"[::]:3128\", open: true}}", "", "[::1]:3128"),
        (
            "listeners: {proxy: [{name: a, address: \"unix:/tmp/a.sock\"}, 127.0.0.1:2000, {name: b, address: 127.0.0.1:3000}]}\n\
          callers: [{name: b, listener: b}]",
            "",
            "127.0.0.1:2000",
        ),
        (
            "listeners: {proxy: [{name: a, address: \"unix:/tmp/a.sock\"}, 127.0.0.1:2000, {name: b, address: 127.0.0.1:3000}]}\n\
          callers: [{name: b, listener: b}]",
            "b",
            "127.0.0.1:3000",
        ),
    ] {
        std::fs::write(&path, format!("{listeners}\nconnections: []\n")).expect("a file");
        let mut command = program();
        command.args(["env", "--config"]).arg(&path);
        if !caller.is_empty() {
            command.args(["--caller", caller]);
        }
        let output = output_of(command).await;
        let stdout = text(&output.stdout);
        assert!(
            stdout.contains(&format!("export HTTP_PROXY='http://{expected}'\n")),
            "{listeners}: {stdout}{}",
            text(&output.stderr)
        );
    }
}
