//! A real browser: Chromium, driven by `tests/peers/browser.mjs`, which documents the commands and a page's state.
//!
//! Not here: the authorization servers' pages (`Tab::sign_in`, `approve` and `deny` only know their buttons).
//! Invariants: the browser is killed with its handle; each `context` has its own cookies.

#![allow(dead_code, reason = "the rig offers more than the current tests use")]

use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::peers::{Peers, node, peers_path};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

pub struct Browser {
    pipes: Mutex<(ChildStdin, Lines<BufReader<ChildStdout>>)>,
    _child: Child,
}

/// One tab of one browser context, created on first use.
#[derive(Clone, Copy)]
pub struct Tab<'a> {
    browser: &'a Browser,
    context: &'a str,
    name: &'a str,
}

/// The current page, and everything the tab has recorded so far.
pub struct Page(pub Value);

impl Browser {
    pub async fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let at = |what: &str| Peers::certs().dir.join(format!("browser-{number}{what}"));
        let mut child = Command::new(node())
            .arg(peers_path("browser.mjs"))
            .arg(json!({"directory": at("")}).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(at(".log")).expect("browser log is created"))
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("the browser does not start ({error}); run tests/peers/install.sh"));
        let stdin = child.stdin.take().expect("stdin is piped");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let ready = timeout(START_TIMEOUT, lines.next_line()).await;
        let log = || std::fs::read_to_string(at(".log")).unwrap_or_default();
        assert!(
            matches!(ready, Ok(Ok(Some(_)))),
            "no browser in {START_TIMEOUT:?}; try tests/peers/install.sh:\n{}",
            log()
        );
        Self { pipes: Mutex::new((stdin, lines)), _child: child }
    }

    pub fn tab<'a>(&'a self, context: &'a str, name: &'a str) -> Tab<'a> {
        Tab { browser: self, context, name }
    }

    async fn send(&self, command: Value) -> Result<Value, String> {
        let mut pipes = self.pipes.lock().await;
        pipes.0.write_all(format!("{command}\n").as_bytes()).await.map_err(|error| error.to_string())?;
        let line = timeout(COMMAND_TIMEOUT, pipes.1.next_line())
            .await
            .map_err(|_| format!("no response in {COMMAND_TIMEOUT:?}"))?;
        let line = line.map_err(|error| error.to_string())?.ok_or("the browser has exited")?;
        let response: Value = serde_json::from_str(&line).map_err(|error| format!("{error}: {line}"))?;
        response["error"].as_str().map_or_else(|| Ok(response["ok"].clone()), |error| Err(error.to_owned()))
    }
}

impl Tab<'_> {
    async fn run(&self, mut command: Value) -> Page {
        command["context"] = json!(self.context);
        command["tab"] = json!(self.name);
        let state = self.browser.send(command.clone()).await;
        Page(state.unwrap_or_else(|error| panic!("{command}: {error}")))
    }

    pub async fn open(&self, url: &str) -> Page {
        self.run(json!({"cmd": "open", "url": url})).await
    }

    pub async fn fill(&self, selector: &str, text: &str) -> Page {
        self.run(json!({"cmd": "fill", "selector": selector, "text": text})).await
    }

    /// Clicks, and waits for the resulting page.
    pub async fn click(&self, selector: &str) -> Page {
        self.run(json!({"cmd": "click", "selector": selector, "wait": true})).await
    }

    /// Waits until the address contains `url` and the page contains `text`.
    pub async fn wait_until(&self, url: &str, text: &str) -> Page {
        self.run(json!({"cmd": "until", "url": url, "text": text, "within_ms": 20_000})).await
    }

    /// From now on blocks pages whose address contains `part`; `Page::held` lists them.
    pub async fn hold(&self, part: &str) -> Page {
        self.run(json!({"cmd": "hold", "part": part})).await
    }

    pub async fn back(&self) -> Page {
        self.run(json!({"cmd": "back"})).await
    }

    pub async fn reload(&self) -> Page {
        self.run(json!({"cmd": "reload"})).await
    }

    pub async fn page(&self) -> Page {
        self.run(json!({"cmd": "state"})).await
    }

    /// Confirms on the sidecar's confirmation page.
    pub async fn confirm(&self) -> Page {
        self.wait_until("/connect/", "Connect an account?").await;
        self.click("#confirm").await
    }

    /// Signs in on an authorization server's login page.
    pub async fn sign_in(&self, account: &str) -> Page {
        self.fill("input[name=account]", account).await;
        self.click("#go").await
    }

    /// Clicks the continue button on any page of an authorization server.
    pub async fn approve(&self) -> Page {
        self.click("#go").await
    }

    pub async fn deny(&self) -> Page {
        self.click("#deny").await
    }
}

impl Page {
    fn texts(&self, list: &str) -> Vec<String> {
        let items = self.0[list].as_array().into_iter().flatten();
        items.map(|item| item.as_str().unwrap_or_default().to_owned()).collect()
    }

    pub fn url(&self) -> &str {
        self.0["url"].as_str().unwrap_or_default()
    }

    pub fn status(&self) -> u64 {
        self.0["status"].as_u64().unwrap_or(0)
    }

    pub fn title(&self) -> &str {
        self.0["title"].as_str().unwrap_or_default()
    }

    /// The visible text.
    pub fn text(&self) -> &str {
        self.0["text"].as_str().unwrap_or_default()
    }

    pub fn html(&self) -> &str {
        self.0["html"].as_str().unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> &str {
        self.0["headers"][name].as_str().unwrap_or_default()
    }

    /// `url`, `status` and `headers` of every page response, redirects included, in order.
    pub fn documents(&self) -> Vec<Value> {
        self.0["documents"].as_array().cloned().unwrap_or_default()
    }

    pub fn held(&self) -> Vec<String> {
        self.texts("held")
    }

    /// Console errors, exceptions and failed requests.
    pub fn problems(&self) -> Vec<String> {
        self.texts("problems")
    }

    /// The URL of every request, successful or not.
    pub fn requests(&self) -> Vec<String> {
        let requests = self.0["requests"].as_array().into_iter().flatten();
        requests.map(|request| request["url"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// The context's cookies, as the browser knows them: `name`, `value`, `domain`, `httpOnly`, `sameSite`, `secure`,
    /// ….
    pub fn cookies(&self) -> Vec<Value> {
        self.0["cookies"].as_array().cloned().unwrap_or_default()
    }
}
