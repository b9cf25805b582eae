//! The commands that ask a running instance: `connections`, `refresh`, `revoke`, `test`, `healthcheck`.
//!
//! Not here: `connect`, which waits for a person (`connect`); what a response holds (`admin`), how it is printed (`table`).
//! Holds: what comes from elsewhere is printed without control characters; the admin token is never printed; when no
//! instance answers, one sentence names the address and the way out.

use std::io::{Read as _, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::{Value, json};
use url::Url;
use zeroize::Zeroizing;

use super::{ConfigArguments, table};
use crate::config::{self, InstanceLocation};
use crate::model::secret::Secret;
use crate::tls::Trust;

/// Longer than anything that is asked for may take.
const PATIENCE: Duration = Duration::from_secs(45);
const HEALTH_PATIENCE: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
const TOKEN_BYTES_MAX: usize = 4 * 1024;
const SECRET_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, Args)]
pub struct AskArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// The instance's admin listener [default: from the configuration]
    #[arg(long, value_name = "URL", env = "KEYBEARER_ADMIN_URL")]
    admin: Option<String>,
    /// A file with the admin token [default: $KEYBEARER_ADMIN_TOKEN, else <state_dir>/admin-token]
    #[arg(long, value_name = "PATH")]
    admin_token_file: Option<PathBuf>,
    /// The answer as JSON on standard output, for programs
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct RefreshArguments {
    /// The connection
    name: String,
    /// Its profile [default: default]
    #[arg(long)]
    profile: Option<String>,
    /// Whose token is meant, of a connection with one for each subject
    #[arg(long)]
    subject: Option<String>,
    #[command(flatten)]
    ask: AskArguments,
}

#[derive(Debug, Args)]
pub struct TestArguments {
    /// The connection
    name: String,
    /// What to send the request to [default: the connection's first route]
    url: Option<String>,
    /// GET or HEAD
    #[arg(long, default_value = "GET")]
    method: String,
    /// Its profile [default: default]
    #[arg(long)]
    profile: Option<String>,
    /// Whose token is meant, of a connection with one for each subject
    #[arg(long)]
    subject: Option<String>,
    #[command(flatten)]
    ask: AskArguments,
}

/// Why there is nothing to show.
pub enum Failed {
    /// A sentence for people.
    Said(String),
    /// The instance's own refusal.
    Answered(Value),
}

pub fn connections(arguments: &AskArguments) -> ExitCode {
    finish(arguments, arguments.ask(Method::GET, &["connections"], None), table::connections)
}

pub fn refresh(arguments: &RefreshArguments) -> ExitCode {
    let body = given([("profile", &arguments.profile), ("subject", &arguments.subject)]);
    let answer = arguments.ask.ask(Method::POST, &["connections", &arguments.name, "refresh"], Some(body));
    finish(&arguments.ask, answer, |token| table::refreshed(&arguments.name, token))
}

/// Revokes a token at the server and forgets it; what the server did not do is a failure, though it is forgotten.
pub fn revoke(arguments: &RefreshArguments) -> ExitCode {
    let body = given([("profile", &arguments.profile), ("subject", &arguments.subject)]);
    let answer = arguments.ask.ask(Method::POST, &["connections", &arguments.name, "revoke"], Some(body));
    let failed = answer.as_ref().is_ok_and(|answer| {
        ["refresh_token", "access_token"].iter().any(|token| answer[*token]["outcome"] == "failed")
    });
    let name = with_profile(&arguments.name, arguments.profile.as_deref());
    let code = finish(&arguments.ask, answer, |answer| table::revoked(&name, answer));
    if failed { ExitCode::from(1) } else { code }
}

/// A connection as it is called in sentences.
fn with_profile(name: &str, profile: Option<&str>) -> String {
    profile.map_or_else(|| name.to_owned(), |profile| format!("{name}/{profile}"))
}

/// One value from standard input, less its last line break.
pub fn read_secret(what: &str) -> Result<Secret, String> {
    let mut text = Zeroizing::new(String::new());
    let read = std::io::stdin().take(SECRET_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| format!("{what} cannot be read from standard input: {error}"))?;
    match text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line)) {
        "" => Err(format!("{what} is empty; write it to standard input")),
        value => Ok(Secret::new(value)),
    }
}

/// The members that were given.
pub fn given<const N: usize>(members: [(&str, &Option<String>); N]) -> Value {
    let given = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.as_deref()?.into())));
    Value::Object(given.collect())
}

pub fn test(arguments: &TestArguments) -> ExitCode {
    let mut body = given([("url", &arguments.url), ("profile", &arguments.profile), ("subject", &arguments.subject)]);
    body["method"] = arguments.method.as_str().into();
    let answer = arguments.ask.ask(Method::POST, &["connections", &arguments.name, "test"], Some(body));
    finish(&arguments.ask, answer, table::tested)
}

/// 0 when the instance is ready.
pub fn healthcheck(arguments: &AskArguments) -> ExitCode {
    let found = arguments.location();
    let base = arguments.base(found.health);
    let answer = base.and_then(|base| {
        let request = reqwest::Request::new(Method::GET, join(&base, &["readyz"])?);
        let (status, _) = send(&base, request, HEALTH_PATIENCE)?;
        Ok((status == 200, base))
    });
    match answer {
        Ok((ready, base)) => {
            let word = if ready { "ready" } else { "not ready" };
            say(&if arguments.json { json!({ "ready": ready }).to_string() } else { format!("{base} is {word}") });
            ExitCode::from(u8::from(!ready))
        }
        Err(failed) => fail(arguments, failed),
    }
}

pub fn finish(
    arguments: &AskArguments,
    answer: Result<Value, Failed>,
    show: impl FnOnce(&Value) -> String,
) -> ExitCode {
    match answer {
        Ok(answer) => {
            say(&if arguments.json { answer.to_string() } else { show(&answer) });
            ExitCode::SUCCESS
        }
        Err(failed) => fail(arguments, failed),
    }
}

pub fn fail(arguments: &AskArguments, failed: Failed) -> ExitCode {
    match failed {
        Failed::Answered(problem) if arguments.json => say(&problem.to_string()),
        Failed::Answered(problem) => {
            let text = |name: &str| table::clean(problem[name].as_str().unwrap_or("the instance refused"));
            eprintln!("{}: {}", text("code"), text("detail"));
        }
        Failed::Said(text) if arguments.json => say(&json!({ "code": "no_answer", "detail": text }).to_string()),
        Failed::Said(text) => eprintln!("{text}"),
    }
    ExitCode::FAILURE
}

/// Prints a line; a closed pipe is no reason to fail.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

impl AskArguments {
    /// Is an instance meant by its address, rather than by the configuration?
    pub fn names_instance(&self) -> bool {
        self.admin.is_some()
    }

    pub fn config_path(&self) -> PathBuf {
        self.config.path()
    }

    fn location(&self) -> InstanceLocation {
        config::locate_instance(&self.config.path())
    }

    /// The listener's URL; `address` is the configuration's.
    fn base(&self, address: std::net::SocketAddr) -> Result<Url, Failed> {
        let said = |text: String| Failed::Said(text);
        let Some(text) = &self.admin else {
            if address.port() == 0 {
                let text =
                    "the configuration leaves the port to the system; give --admin with the URL that the log names";
                return Err(said(text.to_owned()));
            }
            return Url::parse(&format!("http://{address}")).map_err(|error| said(format!("{address}: {error}")));
        };
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let url = url.filter(|url| url.username().is_empty() && url.password().is_none());
        url.ok_or_else(|| said("--admin is no URL of a listener; write one such as http://127.0.0.1:8081".to_owned()))
    }

    fn token(&self, found: &InstanceLocation) -> Result<Secret, Failed> {
        let path = match (&self.admin_token_file, config::presented_token()) {
            (Some(path), _) => path.clone(),
            (None, Some(token)) => return Ok(token),
            (None, None) => found.state_dir.join("admin-token"),
        };
        let text = config::read_token(&path, TOKEN_BYTES_MAX);
        text.map_err(|why| {
            let way_out = "give --admin-token-file or KEYBEARER_ADMIN_TOKEN, or run this as the instance's user";
            Failed::Said(format!("the admin token {} cannot be read ({why}); {way_out}", path.display()))
        })
    }

    /// One call of the API; `Err` also where the instance refuses.
    pub fn ask(&self, method: Method, path: &[&str], body: Option<Value>) -> Result<Value, Failed> {
        let found = self.location();
        let base = self.base(found.admin)?;
        let token = self.token(&found)?;
        let path = [&["api", "v1"], path].concat();
        let mut request = reqwest::Request::new(method, join(&base, &path)?);
        let value = http::HeaderValue::try_from(format!("Bearer {}", token.expose()));
        let mut value = value.map_err(|_| Failed::Said("the admin token holds what no header can hold".to_owned()))?;
        value.set_sensitive(true);
        request.headers_mut().insert(http::header::AUTHORIZATION, value);
        if let Some(body) = body {
            let json = http::HeaderValue::from_static("application/json");
            request.headers_mut().insert(http::header::CONTENT_TYPE, json);
            *request.body_mut() = Some(body.to_string().into());
        }
        let (status, bytes) = send(&base, request, PATIENCE)?;
        let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        match (200..300).contains(&status) {
            true if answer.is_object() => Ok(answer),
            false if answer["code"].is_string() => Err(Failed::Answered(answer)),
            _ => {
                let text = format!("{base} answers, but not as Keybearer does (status {status}); give another --admin");
                Err(Failed::Said(text))
            }
        }
    }
}

fn join(base: &Url, path: &[&str]) -> Result<Url, Failed> {
    let mut url = base.clone();
    let no_base = || Failed::Said("--admin is no URL of a listener".to_owned());
    url.path_segments_mut().map_err(|()| no_base())?.pop_if_empty().extend(path);
    Ok(url)
}

/// The status and the body of one answer.
fn send(base: &Url, request: reqwest::Request, patience: Duration) -> Result<(u16, Vec<u8>), Failed> {
    let failed = |error: &dyn std::fmt::Display| Failed::Said(format!("the request cannot be made: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
    let mut builder =
        reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).timeout(patience);
    if base.scheme() == "https" {
        let tls = Trust::new(&[].into()).client_config(None, None);
        builder = builder.tls_backend_preconfigured(std::sync::Arc::unwrap_or_clone(tls));
    }
    let client = builder.build().map_err(|error| failed(&error))?;
    let answer = runtime.block_on(async {
        let mut response = client.execute(request).await?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES_MAX {
                break;
            }
        }
        Ok::<_, reqwest::Error>((response.status().as_u16(), body))
    });
    answer.map_err(|error| {
        let why = if error.is_timeout() { "in time " } else { "" };
        let way_out = "start one with `keybearer run`, or give its address with --admin or KEYBEARER_ADMIN_URL";
        Failed::Said(format!("no instance answers {why}at {base}; {way_out}"))
    })
}
