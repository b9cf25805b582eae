//! The way out through a forward proxy: Debian's tinyproxy, with stunnel before it where the proxy itself speaks TLS.

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

/// A program that listens at a port of its own while this lives.
struct Program {
    _child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Program {
    /// `config` is made from a free port and a directory, and `arguments` from its path.
    async fn start(name: &str, arguments: &[&str], config: impl Fn(u16, &str) -> String) -> Program {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = free.local_addr().expect("an address").port();
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

    /// The request lines that tinyproxy has seen, and whatever else it says.
    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn saw(&self, line: &str) -> usize {
        self.log().matches(line).count()
    }
}

struct Stage {
    sidecar: Sidecar,
    secure: Http2Server,
    plain: Scripted,
    tokens: Scripted,
}

/// Routes to `localhost` by both schemes, and a token endpoint there, by this way out.
async fn start(egress: &str) -> Stage {
    start_with(egress, "").await
}

/// The same with further configuration, whole lines.
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
    async fn ask(&self, url: String) -> (u16, String) {
        let answer = raw::get_through(self.sidecar.proxy(), &url, "").await;
        (answer.status, answer.code().to_owned())
    }

    fn plain(&self) -> String {
        format!("localhost:{}", self.plain.address.port())
    }

    fn secure(&self) -> String {
        format!("localhost:{}", self.secure.port())
    }
}

#[tokio::test]
async fn everything_leaves_through_the_proxy() {
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
            stage.ask(format!("http://{}/x?q=1", stage.plain())).await,
            (200, String::new()),
            "{row}: {}",
            stage.sidecar.log()
        );
        assert_eq!(proxy.saw(&format!("GET http://{}/x?q=1 ", stage.plain())), 1, "{row}: {}", proxy.log());
        let arrived = stage.plain.received().remove(0);
        assert_eq!(arrived.values("authorization"), ["Bearer token-1"], "{row}");
        assert!(arrived.values("proxy-authorization").is_empty(), "{row}");
        assert_eq!(arrived.values("host"), [stage.plain()], "{row}");

        assert_eq!(
            stage.ask(format!("https://{}/echo", stage.secure())).await.0,
            200,
            "{row}: {}",
            stage.sidecar.log()
        );
        assert_eq!(proxy.saw(&format!("CONNECT {} ", stage.secure())), 1, "{row}: {}", proxy.log());
        assert_eq!(stage.ask(format!("https://{}/echo", stage.secure())).await.0, 200, "{row}");
        assert_eq!(proxy.saw(&format!("CONNECT {} ", stage.secure())), 1, "{row}: one connection, and HTTP/2 inside");

        let token = format!("POST http://localhost:{}/token", stage.tokens.address.port());
        assert_eq!(proxy.saw(&token), 1, "{row}: {}", proxy.log());

        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        let place = format!("localhost:{}", free.address.port());
        let before = proxy.saw(&format!("CONNECT {place} "));
        conn.write(format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n").as_bytes()).await;
        assert!(
            crate::rig::tunnel_client::read_connect_head(&mut conn).await.starts_with("HTTP/1.1 200"),
            "{row}: {}",
            stage.sidecar.log()
        );
        assert_eq!(proxy.saw(&format!("CONNECT {place} ")), before + 1, "{row}");
        assert!(!stage.sidecar.log().contains("s3cr-pw") && !stage.sidecar.log().contains("dTpzM2NyLXB3"), "{row}");
    }
    assert!(!proxy.log().contains("token-1"), "what goes over TLS is unread");
}

#[tokio::test]
async fn what_is_opened_inside_a_tunnel_leaves_through_it_too() {
    let proxy = Program::tinyproxy().await;
    let url = format!("proxy: {{url: \"http://127.0.0.1:{}\", username: u, password: {{file: pw}}}}", proxy.port);
    let stage = start_with(&url, &interception()).await;
    let mut curl = Command::new("curl");
    curl.args(["-q", "-sS", "-w", "%{http_code}", "--noproxy", "", "-x", &stage.sidecar.proxy_url(), "--cacert"]);
    curl.arg(&interception_ca().0).arg(format!("https://{}/echo", stage.secure()));
    let output = curl.env_clear().stdin(Stdio::null()).output().await.expect("curl runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.ends_with("200") && said.contains("Bearer token-1"), "{said}\n{}", stage.sidecar.log());
    assert_eq!(proxy.saw(&format!("CONNECT {} ", stage.secure())), 1, "{}", proxy.log());
}

#[tokio::test]
async fn changed_roots_count_for_a_proxy_that_speaks_tls() {
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
            sidecar.until_metric(APPLIED, |applied| applied > before).await;
        }
        let answer = raw::get_through(sidecar.proxy(), &url, "").await;
        assert_eq!(answer.status, status, "{row}: {}\n{}", answer.text(), sidecar.log());
    }
    assert_eq!(plain.count(), 2);
}

#[tokio::test]
async fn what_is_listed_goes_around_it() {
    let proxy = Program::tinyproxy().await;
    let url = format!("proxy: {{url: \"http://127.0.0.1:{}\", username: u, password: {{file: pw}}}}", proxy.port);
    let stage = start(&format!("{url}, no_proxy: [.localhost, 10.0.0.0/8]")).await;
    assert_eq!(stage.ask(format!("http://{}/x", stage.plain())).await.0, 200);
    assert_eq!(stage.ask(format!("https://{}/echo", stage.secure())).await.0, 200);
    assert_eq!((proxy.saw("localhost"), stage.tokens.count()), (0, 1), "{}", proxy.log());
    // An address in a URL is judged here, before the proxy hears of it.
    assert_eq!(stage.ask("http://169.254.169.254/latest".to_owned()).await, (403, "egress_denied".to_owned()));
    assert_eq!(stage.ask("http://192.168.77.1/".to_owned()).await, (403, "egress_denied".to_owned()));
    assert_eq!(proxy.saw("169.254"), 0);
}

#[tokio::test]
async fn a_proxy_that_refuses_or_is_away_is_named() {
    let proxy = Program::tinyproxy().await;
    let port = proxy.port;
    let url = format!("proxy: {{url: \"http://127.0.0.1:{port}\", username: u, password: {{file: wrong}}}}");
    let stage = start(&url).await;
    assert_eq!(stage.ask(format!("https://{}/x", stage.secure())).await, (503, "token_unavailable".to_owned()));
    let stage = start_with_reachable_tokens(&url).await;
    let answer = stage.ask(format!("https://{}/echo", stage.secure())).await;
    assert_eq!(answer, (502, "upstream_unreachable".to_owned()), "{}", stage.sidecar.log());
    // tinyproxy says 401 where others say 407.
    stage.sidecar.logged("responded with status 401").await;
    assert!(!stage.sidecar.log().contains("guess-pw"));

    let stage = start_with_reachable_tokens(&format!("proxy: \"http://127.0.0.1:{port}\"")).await;
    for url in [format!("http://{}/x", stage.plain()), format!("https://{}/echo", stage.secure())] {
        assert_eq!(stage.ask(url).await, (502, "upstream_unreachable".to_owned()), "{}", stage.sidecar.log());
        stage.sidecar.logged("responded with status 407").await;
    }
    drop(proxy);
    for url in [format!("http://{}/x", stage.plain()), format!("https://{}/echo", stage.secure())] {
        assert_eq!(stage.ask(url).await, (502, "upstream_unreachable".to_owned()));
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
