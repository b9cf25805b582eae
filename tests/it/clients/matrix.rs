//! Common HTTP libraries under `keybearer exec`: http:// URLs, intercepted https:// URLs, relayed https:// URLs.
//!
//! The table in `docs/clients.md` lists what each library needs; here it gets nothing else. Go and .NET run only in
//! `.ci/long`, because of their size.

use std::process::{Output, Stdio};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::timeout;

use crate::rig::interception::interception;
use crate::rig::peers::{AuthorizationServer, GitServer, Peers, Upstream, node, peers_path, python};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::{Sidecar, duration_factor, program};

const TIMEOUT: Duration = Duration::from_secs(60);
/// Concurrent processes: a JVM and a compiler are among them.
const AT_ONCE: usize = 4;

/// Commands by library; each prints the status of a GET of `THE_URL`.
fn clients() -> Vec<(&'static str, Vec<String>)> {
    let (python, node) = (python().display().to_string(), node().display().to_string());
    let java = peers_path("clients/Get.java").display().to_string();
    let own = |line: &[&str]| line.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let module = ["--input-type=module", "-e"];
    let mut clients = vec![
        ("curl", own(&["curl", "-q", "-sS", "-o", "/dev/null", "-w", "%{http_code}\n", "THE_URL"])),
        (
            "curl over HTTP/1.1",
            own(&["curl", "-q", "--http1.1", "-sS", "-o", "/dev/null", "-w", "%{http_code}\n", "THE_URL"]),
        ),
        ("wget", own(&["sh", "-c", "wget -q -S -O /dev/null \"$0\" 2>&1 | awk '/^  HTTP/ {print $2}'", "THE_URL"])),
        ("requests", own(&[&python, "-c", "import requests; print(requests.get('THE_URL').status_code)"])),
        ("httpx", own(&[&python, "-c", "import httpx; print(httpx.get('THE_URL').status_code)"])),
        (
            "aiohttp",
            own(&[
                &python,
                "-c",
                "import aiohttp, asyncio\nasync def main():\n async with aiohttp.ClientSession(trust_env=True) as s, s.get('THE_URL') as r: \
                 print(r.status)\nasyncio.run(main())",
            ]),
        ),
        (
            "urllib3",
            own(&[
                &python,
                "-c",
                "import urllib.request, urllib3; to = urllib.request.getproxies()['THE_URL'.split(':')[0]]\n\
                 print(urllib3.ProxyManager(to).request('GET', 'THE_URL').status)",
            ]),
        ),
        ("fetch", own(&[&node, "-e", "fetch('THE_URL').then((response) => console.log(response.status))"])),
        (
            "undici",
            own(&[
                &node,
                module[0],
                module[1],
                "import { EnvHttpProxyAgent, request } from 'undici'; \
                 console.log((await request('THE_URL', { dispatcher: new EnvHttpProxyAgent() })).statusCode); process.exit()",
            ]),
        ),
        (
            "axios",
            own(&[
                &node,
                module[0],
                module[1],
                "import axios from 'axios'; console.log((await axios.get('THE_URL', { validateStatus: null })).status)",
            ]),
        ),
        (
            "got",
            own(&[
                &node,
                module[0],
                module[1],
                "import got from 'got'; console.log((await got('THE_URL', { throwHttpErrors: false, retry: { limit: 0 } })).statusCode)",
            ]),
        ),
        ("Java HttpClient", own(&["java", &java, "THE_URL"])),
        ("Java URLConnection", own(&["java", &java, "THE_URL", "connection"])),
        ("Ruby", own(&["ruby", "-rnet/http", "-e", "puts Net::HTTP.get_response(URI('THE_URL')).code"])),
        (
            "PHP",
            own(&[
                "php",
                "-r",
                "$c = curl_init('THE_URL'); curl_setopt($c, CURLOPT_RETURNTRANSFER, 1); curl_exec($c); \
                 fwrite(STDERR, curl_error($c)); echo curl_getinfo($c, CURLINFO_RESPONSE_CODE), \"\\n\";",
            ]),
        ),
    ];
    if duration_factor() > 1 {
        clients.push(("Go", own(&["go", "run", &peers_path("clients/get.go").display().to_string(), "THE_URL"])));
        let [python, get, openssl] = [".dotnet/bin/python", "clients/dotnet.py", ".dotnet/openssl"].map(peers_path);
        let openssl = format!("LD_LIBRARY_PATH={}", openssl.display());
        clients.push((
            ".NET",
            own(&["env", &openssl, &python.display().to_string(), &get.display().to_string(), "THE_URL"]),
        ));
    }
    clients
}

/// Runs a command under `keybearer exec`, on a machine whose own roots are the rig's CA.
async fn exec(sidecar: &Sidecar, more: &[&str], line: &[String]) -> Output {
    let mut command = program();
    command.args(["exec", "--config"]).arg(sidecar.dir.path().join("keybearer.yaml"));
    command.args(["--proxy", &sidecar.proxy().to_string()]).args(more).arg("--").args(line);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", sidecar.dir.path());
    command.env("STATE_DIRECTORY", sidecar.dir.path().join("files")).env("SSL_CERT_FILE", &Peers::certs().ca);
    // By default Node uses its built-in roots instead of the machine's.
    command.env("NODE_OPTIONS", "--use-openssl-ca").env("PYTHONDONTWRITEBYTECODE", "1");
    command.current_dir(peers_path("")).stdin(Stdio::null()).kill_on_drop(true);
    timeout(TIMEOUT, command.output()).await.expect("exits before the timeout").expect("the command starts")
}

async fn check(url: &str, status: &str, verdict: &str) {
    let server = AuthorizationServer::al(json!({"lifetime": 300})).await;
    let upstream = Upstream::start(&server).await;
    let port = upstream.https_port();
    let config = format!(
        "trust: [\"{}\"]\nhosts: {{api.test: \"127.0.0.1:{port}\", pinned.api.test: \"127.0.0.1:{port}\"}}\n{}connections:\n\
         - {{name: crm, client_id: machine, client_secret: machine-secret, token_url: \"{}\", \
         routes: [{{host: api.test}}, {{host: pinned.api.test, intercept: false}}]}}\n",
        Peers::certs().ca.display(),
        interception(),
        server.token_url()
    );
    let sidecar = Sidecar::start(&config).await;
    let clients = clients();
    let mut failures = Vec::new();
    for some in clients.chunks(AT_ONCE) {
        let runs = some.iter().map(async |(client, line)| {
            let line: Vec<_> = line.iter().map(|word| word.replace("THE_URL", url)).collect();
            (client, exec(&sidecar, &[], &line).await)
        });
        for (client, output) in join_all(runs).await {
            if String::from_utf8_lossy(&output.stdout) != format!("{status}\n") {
                failures.push(format!("{client}: {output:?}"));
            }
        }
    }
    assert!(failures.is_empty(), "{url}\n{}\n{}", failures.join("\n"), sidecar.log());
    let records = upstream.records().await;
    assert_eq!(records.len(), clients.len(), "{records:?}");
    assert!(records.iter().all(|record| record["verdict"] == verdict && record["scheme"] == "https"), "{records:?}");
}

#[tokio::test]
async fn http_urls_get_the_token() {
    check("http://api.test/x", "200", "active").await;
}

#[tokio::test]
async fn intercepted_https_urls_get_the_token() {
    check("https://api.test/x", "200", "active").await;
}

#[tokio::test]
async fn relayed_https_urls_get_no_token() {
    check("https://pinned.api.test/x", "401", "missing_token").await;
}

/// git sends its credentials only after a 407, on the same connection.
#[tokio::test]
async fn git_clones_over_https_as_a_caller_with_a_secret() {
    let upstream = GitServer::start(json!({"token": "kb-git"})).await;
    let tokens = Scripted::start(|_, _| Reply::token("kb-git", 3600)).await;
    let config = format!(
        "trust: [\"{}\"]\nhosts: {{api.test: \"127.0.0.1:{}\"}}\n{}callers: [{{name: builder, secret: {{file: secret}}}}]\nconnections:\n\
         - {{name: code, client_id: a, client_secret: b, token_url: \"http://{}/token\", routes: [{{host: api.test}}]}}\n",
        Peers::certs().ca.display(),
        upstream.port(),
        interception(),
        tokens.address
    );
    let sidecar = Sidecar::start_with(&config, &[("secret", "s3cret")]).await;
    let to = sidecar.dir.path().join("clone");
    let line = ["git", "clone", "--quiet", "https://api.test/r.git", to.to_str().expect("UTF-8")].map(str::to_owned);
    let output = exec(&sidecar, &["--caller", "builder"], &line).await;
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), sidecar.log());
    assert_eq!(std::fs::read_to_string(to.join("a")).expect("a file"), "hello\n");
    let errors = sidecar.metric("keybearer_errors_total{connection=\"\",code=\"caller_unknown\"}").await;
    assert!(errors >= 1.0, "{errors} challenges with 407");
}
