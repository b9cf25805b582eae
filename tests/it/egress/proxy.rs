//! Egress through a forward proxy: Debian's tinyproxy, with stunnel in front of it if the proxy speaks TLS.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use crate::rig::interception::{interception, interception_ca};
use crate::rig::peers::{Http2Server, Peers};
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::Scripted;
use crate::rig::sidecar::Sidecar;

const APPLIED: &str = "keybearer_config_reloads_total{outcome=\"applied\"}";

/// A program that listens on its own port; killed on drop.
struct Program {
    _child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Program {
    /// Starts `name` with `arguments` and the path of a file with `config(port, directory)`.
    async fn start(name: &str, arguments: &[&str], config: impl Fn(u16, &str) -> String) -> Program {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = free.local_addr().expect("a bound listener").port();
        drop(free);
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config");
        std::fs::write(&path, config(port, &dir.path().to_string_lossy())).expect("a file");
        let mut command = Command::new(name);
        command.args(arguments).arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.kill_on_drop(true).spawn();
        let child = child.unwrap_or_else(|error| panic!("{name}: {error}; run tests/peers/install.sh"));
        for _ in 0..200 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Program { _child: child, port, dir };
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{name} does not listen");
    }

    async fn tinyproxy() -> Program {
        Program::start("tinyproxy", &["-d", "-c"], |port, dir| {
            format!("Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 50\nLogLevel Connect\nLogFile \"{dir}/log\"\nBasicAuth u s3cr-pw\n")
        })
        .await
    }

    async fn stunnel(before: u16) -> Program {
        let (certificate, key) = Peers::certs().leaf("server");
        let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
        Program::start("stunnel4", &[], |port, _| {
            format!("foreground = yes\npid =\n[proxy]\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{before}\ncert = {certificate}\nkey = {key}\n")
        })
        .await
    }

    /// tinyproxy's log, with the request lines that it has received.
    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn count(&self, line: &str) -> usize {
        self.log().matches(line).count()
    }
}

struct Stage {
    sidecar: Sidecar,
    secure: Http2Server,
    plain: Scripted,
    tokens: Scripted,
}

/// A sidecar with these egress settings, routes to `localhost` by both schemes, and a token endpoint there.
async fn start(egress: &str) -> Stage {
    start_with(egress, "").await
}

/// The same with further lines of configuration.
async fn start_with(egress: &str, top: &str) -> Stage {
    let (plain, tokens) = (Scripted::upstream().await, Scripted::tokens(3600).await);
    let secure = Http2Server::start(json!({})).await;
    let ca: PathBuf = Peers::certs().ca.clone();
    let config = format!(
        "workers: 1\ntrust: [{}]\nlog: {{level: trace}}\negress: {{{egress}}}\n{top}connections:\n- {{name: crm, client_id: a, client_secret: b, token_url: \
         \"http://localhost:{}/token\", routes: [{{host: \"localhost:{}\", upstream_tls: true}}, {{host: \"localhost:{}\"}}]}}\n",
        ca.display(),
        tokens.address.port(),
        secure.port(),
        plain.address.port()
    );
    let sidecar = Sidecar::start_with(&config, &[("pw", "s3cr-pw"), ("wrong", "guess-pw")]).await;
    Stage { sidecar, secure, plain, tokens }
}

impl Stage {
    async fn get(&self, url: String) -> (u16, String) {
        let response = raw::get_through(self.sidecar.proxy(), &url, "").await;
        (response.status, response.code().to_owned())
    }

    fn plain(&self) -> String {
        format!("localhost:{}", self.plain.address.port())
    }

    fn secure(&self) -> String {
        format!("localhost:{}", self.secure.port())
    }
}

#[tokio::test]
async fn all_requests_use_the_egress_proxy() {
    let proxy = Program::tinyproxy().await;
    let front = Program::stunnel(proxy.port).await;
    let free = Scripted::upstream().await;
    let credentials = "username: u, password: {file: pw}";
    let ca = Peers::certs().ca.display().to_string();
    for (row, url) in [
        ("http", format!("url: \"http://127.0.0.1:{}\"", proxy.port)),
        ("https", format!("url: \"https://localhost:{}\", trust: [{ca}]", front.port)),
    ] {
        let ports = free.address.port();
        let stage = start(&format!("proxy: {{{url}, {credentials}}}, connect_ports: [{ports}]")).await;
        assert_eq!(
            stage.get(format!("http://{}/x?q=1", stage.plain())).await,
            (200, String::new()),
            "{row}: {}",
            stage.sidecar.log()
        );
        assert_eq!(proxy.count(&format!("GET http://{}/x?q=1 ", stage.plain())), 1, "{row}: {}", proxy.log());
        let arrived = stage.plain.received().remove(0);
        assert_eq!(arrived.values("authorization"), ["Bearer token-1"], "{row}");
        assert!(arrived.values("proxy-authorization").is_empty(), "{row}");
        assert_eq!(arrived.values("host"), [stage.plain()], "{row}");

        assert_eq!(
            stage.get(format!("https://{}/echo", stage.secure())).await.0,
            200,
            "{row}: {}",
            stage.sidecar.log()
        );
        assert_eq!(proxy.count(&format!("CONNECT {} ", stage.secure())), 1, "{row}: {}", proxy.log());
        assert_eq!(stage.get(format!("https://{}/echo", stage.secure())).await.0, 200, "{row}");
        assert_eq!(
            proxy.count(&format!("CONNECT {} ", stage.secure())),
            1,
            "{row}: one connection, with HTTP/2 inside"
        );

        let token = format!("POST http://localhost:{}/token", stage.tokens.address.port());
        assert_eq!(proxy.count(&token), 1, "{row}: {}", proxy.log());

        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        let target = format!("localhost:{}", free.address.port());
        let before = proxy.count(&format!("CONNECT {target} "));
        conn.write(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes()).await;
        assert!(
            crate::rig::tunnel_client::read_connect_head(&mut conn).await.starts_with("HTTP/1.1 200"),
            "{row}: {}",
            stage.sidecar.log()
        );
        assert_eq!(proxy.count(&format!("CONNECT {target} ")), before + 1, "{row}");
        assert!(!stage.sidecar.log().contains("s3cr-pw") && !stage.sidecar.log().contains("dTpzM2NyLXB3"), "{row}");
    }
    assert!(!proxy.log().contains("token-1"), "the proxy sees no token inside TLS");
}

#[tokio::test]
async fn intercepted_requests_use_the_egress_proxy_too() {
    let proxy = Program::tinyproxy().await;
    let url = format!("proxy: {{url: \"http://127.0.0.1:{}\", username: u, password: {{file: pw}}}}", proxy.port);
    let stage = start_with(&url, &interception()).await;
    let mut curl = Command::new("curl");
    curl.args(["-q", "-sS", "-w", "%{http_code}", "--noproxy", "", "-x", &stage.sidecar.proxy_url(), "--cacert"]);
    curl.arg(&interception_ca().0).arg(format!("https://{}/echo", stage.secure()));
    let output = curl.env_clear().stdin(Stdio::null()).output().await.expect("curl is installed");
    let transcript = String::from_utf8_lossy(&output.stdout);
    assert!(
        transcript.ends_with("200") && transcript.contains("Bearer token-1"),
        "{transcript}\n{}",
        stage.sidecar.log()
    );
    assert_eq!(proxy.count(&format!("CONNECT {} ", stage.secure())), 1, "{}", proxy.log());
}

#[tokio::test]
async fn changed_roots_apply_to_a_proxy_that_speaks_tls() {
    let proxy = Program::tinyproxy().await;
    let front = Program::stunnel(proxy.port).await;
    let plain = Scripted::upstream().await;
    let certs = Peers::certs();
    let roots = |name: &str| std::fs::read_to_string(certs.dir.join(name)).expect("a file");
    let (known, unknown) = (roots("ca.pem"), roots("unknown-ca.pem"));
    let config = format!(
        "trust: [roots.pem]\negress: {{connect_ports: [{}], proxy: {{url: \"https://localhost:{}\", username: u, password: {{file: pw}}}}}}\nconnections:\n\
         - {{name: crm, active: false, client_id: a, client_secret: b, token_url: \"http://127.0.0.1:1/t\", \
         routes: [{{host: a.test}}]}}\n",
        plain.address.port(),
        front.port
    );
    let sidecar = Sidecar::start_with(&config, &[("pw", "s3cr-pw"), ("roots.pem", &known)]).await;
    let url = format!("http://localhost:{}/x", plain.address.port());
    for (row, file, status) in [("as started", None, 200), ("other", Some(&unknown), 502), ("back", Some(&known), 200)]
    {
        if let Some(file) = file {
            let before = sidecar.metric(APPLIED).await;
            let next = sidecar.dir.path().join("next");
            std::fs::write(&next, file).expect("a file");
            std::fs::rename(next, sidecar.dir.path().join("roots.pem")).expect("a file");
            sidecar.signal("HUP");
            sidecar.wait_for_metric(APPLIED, |applied| applied > before).await;
        }
        let response = raw::get_through(sidecar.proxy(), &url, "").await;
        assert_eq!(response.status, status, "{row}: {}\n{}", response.text(), sidecar.log());
    }
    assert_eq!(plain.count(), 2);
}

#[tokio::test]
async fn no_proxy_hosts_bypass_the_egress_proxy() {
    let proxy = Program::tinyproxy().await;
    let url = format!("proxy: {{url: \"http://127.0.0.1:{}\", username: u, password: {{file: pw}}}}", proxy.port);
    let stage = start(&format!("{url}, no_proxy: [.localhost, 10.0.0.0/8]")).await;
    assert_eq!(stage.get(format!("http://{}/x", stage.plain())).await.0, 200);
    assert_eq!(stage.get(format!("https://{}/echo", stage.secure())).await.0, 200);
    assert_eq!((proxy.count("localhost"), stage.tokens.count()), (0, 1), "{}", proxy.log());
    // A literal address is checked before the proxy is contacted.
    assert_eq!(stage.get("http://169.254.169.254/latest".to_owned()).await, (403, "egress_denied".to_owned()));
    assert_eq!(stage.get("http://192.168.77.1/".to_owned()).await, (403, "egress_denied".to_owned()));
    assert_eq!(proxy.count("169.254"), 0);
}

#[tokio::test]
async fn a_proxy_that_refuses_or_is_down_is_reported() {
    let proxy = Program::tinyproxy().await;
    let port = proxy.port;
    let url = format!("proxy: {{url: \"http://127.0.0.1:{port}\", username: u, password: {{file: wrong}}}}");
    let stage = start(&url).await;
    assert_eq!(stage.get(format!("https://{}/x", stage.secure())).await, (503, "token_unavailable".to_owned()));
    let stage = start_with_reachable_tokens(&url).await;
    let response = stage.get(format!("https://{}/echo", stage.secure())).await;
    assert_eq!(response, (502, "upstream_unreachable".to_owned()), "{}", stage.sidecar.log());
    // tinyproxy responds with 401 instead of 407.
    stage.sidecar.wait_for_log("responded with status 401").await;
    assert!(!stage.sidecar.log().contains("guess-pw"));

    let stage = start_with_reachable_tokens(&format!("proxy: \"http://127.0.0.1:{port}\"")).await;
    for url in [format!("http://{}/x", stage.plain()), format!("https://{}/echo", stage.secure())] {
        assert_eq!(stage.get(url).await, (502, "upstream_unreachable".to_owned()), "{}", stage.sidecar.log());
        stage.sidecar.wait_for_log("responded with status 407").await;
    }
    drop(proxy);
    for url in [format!("http://{}/x", stage.plain()), format!("https://{}/echo", stage.secure())] {
        assert_eq!(stage.get(url).await, (502, "upstream_unreachable".to_owned()));
    }
    assert_eq!(stage.plain.count(), 0);
}

/// The same with a token endpoint that is reached directly.
async fn start_with_reachable_tokens(egress: &str) -> Stage {
    let (plain, tokens) = (Scripted::upstream().await, Scripted::tokens(3600).await);
    let secure = Http2Server::start(json!({})).await;
    let config = format!(
        "trust: [{}]\negress: {{{egress}}}\nconnections:\n- {{name: crm, client_id: a, client_secret: b, token_url: \
         \"http://{}/token\", authorization_server: {{proxy: none}}, routes: [{{host: \"localhost:{}\", upstream_tls: true}}, {{host: \
         \"localhost:{}\"}}]}}\n",
        Peers::certs().ca.display(),
        tokens.address,
        secure.port(),
        plain.address.port()
    );
    let sidecar = Sidecar::start_with(&config, &[("wrong", "guess-pw")]).await;
    Stage { sidecar, secure, plain, tokens }
}
