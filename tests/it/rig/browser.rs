//! A real browser: Chromium through `tests/peers/browser.mjs`, which names the commands and what a page's state tells.
//!
//! Not here: what the pages of the authorization servers ask (`Tab::sign_in`, `agree` and `deny` know their buttons).
//! Holds: the browser dies with its handle; each `context` is a browser of its own, with its own cookies.

#![allow(dead_code, reason = "a rig offers more than the tests of the day use")]

use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::peers::{Peers, node, peers_path};

const START: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(30);

pub struct Browser {
    pipes: Mutex<(ChildStdin, Lines<BufReader<ChildStdout>>)>,
    _child: Child,
}

/// One tab of one browser; made when it is first used.
#[derive(Clone, Copy)]
pub struct Tab<'a> {
    browser: &'a Browser,
    context: &'a str,
    name: &'a str,
}

/// A page as it is shown, and what the tab has seen so far.
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
        let ready = timeout(START, lines.next_line()).await;
        let said = || std::fs::read_to_string(at(".log")).unwrap_or_default();
        assert!(matches!(ready, Ok(Ok(Some(_)))), "no browser in {START:?}; try tests/peers/install.sh:\n{}", said());
        Self { pipes: Mutex::new((stdin, lines)), _child: child }
    }

    pub fn tab<'a>(&'a self, context: &'a str, name: &'a str) -> Tab<'a> {
        Tab { browser: self, context, name }
    }

    async fn send(&self, command: Value) -> Result<Value, String> {
        let mut pipes = self.pipes.lock().await;
        pipes.0.write_all(format!("{command}\n").as_bytes()).await.map_err(|error| error.to_string())?;
        let line = timeout(ANSWER, pipes.1.next_line()).await.map_err(|_| format!("no answer in {ANSWER:?}"))?;
        let line = line.map_err(|error| error.to_string())?.ok_or("the browser has ended")?;
        let answer: Value = serde_json::from_str(&line).map_err(|error| format!("{error}: {line}"))?;
        answer["error"].as_str().map_or_else(|| Ok(answer["ok"].clone()), |error| Err(error.to_owned()))
    }
}

impl Tab<'_> {
    async fn run(&self, mut command: Value) -> Page {
        command["context"] = json!(self.context);
        command["tab"] = json!(self.name);
        let told = self.browser.send(command.clone()).await;
        Page(told.unwrap_or_else(|error| panic!("{command}: {error}")))
    }

    pub async fn open(&self, url: &str) -> Page {
        self.run(json!({"cmd": "open", "url": url})).await
    }

    pub async fn fill(&self, selector: &str, text: &str) -> Page {
        self.run(json!({"cmd": "fill", "selector": selector, "text": text})).await
    }

    /// Clicks, and waits for the page that it leads to.
    pub async fn click(&self, selector: &str) -> Page {
        self.run(json!({"cmd": "click", "selector": selector, "wait": true})).await
    }

    /// Waits until the address holds `url` and the page `text`.
    pub async fn until(&self, url: &str, text: &str) -> Page {
        self.run(json!({"cmd": "until", "url": url, "text": text, "within_ms": 20_000})).await
    }

    /// From now on no page is loaded whose address holds `part`; `Page::held` has them.
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

    /// On the page of the sidecar that asks whether that shall be connected.
    pub async fn confirm(&self) -> Page {
        self.until("/connect/", "Connect an account?").await;
        self.click("#confirm").await
    }

    /// Answers an authorization server's question who it is.
    pub async fn sign_in(&self, account: &str) -> Page {
        self.fill("input[name=account]", account).await;
        self.click("#go").await
    }

    /// The button that goes on, on any page of an authorization server.
    pub async fn agree(&self) -> Page {
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

    /// What a person reads.
    pub fn text(&self) -> &str {
        self.0["text"].as_str().unwrap_or_default()
    }

    pub fn html(&self) -> &str {
        self.0["html"].as_str().unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> &str {
        self.0["headers"][name].as_str().unwrap_or_default()
    }

    /// `url`, `status` and `headers` of every page that was answered, redirects included, in order.
    pub fn documents(&self) -> Vec<Value> {
        self.0["documents"].as_array().cloned().unwrap_or_default()
    }

    pub fn held(&self) -> Vec<String> {
        self.texts("held")
    }

    /// What the console, exceptions and failed requests told.
    pub fn problems(&self) -> Vec<String> {
        self.texts("problems")
    }

    /// The address of everything that was loaded or tried.
    pub fn requests(&self) -> Vec<String> {
        let requests = self.0["requests"].as_array().into_iter().flatten();
        requests.map(|request| request["url"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// The context's cookies, as the browser knows them: `name`, `value`, `domain`, `httpOnly`, `sameSite`, `secure`, ….
    pub fn cookies(&self) -> Vec<Value> {
        self.0["cookies"].as_array().cloned().unwrap_or_default()
    }
}
