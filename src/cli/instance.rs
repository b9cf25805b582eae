//! Commands that call the API of a running instance: `connections`, `refresh`, `revoke`, `test`, `healthcheck`.
//!
//! Not here: `connect`, which waits for a person (`connect`); `apply` and `export`, which send and print definitions; the
//! API (`api`) and the request itself (`endpoint`); the contents of a response (`admin`), its formatting (`table`).
//! Invariants: untrusted text is printed without control characters; the admin token is never printed; if no instance
//! responds, the error names the address and the remedy.

mod api;
mod endpoint;

use std::io::{Read as _, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{ConfigArguments, table};
use crate::config::{self, InstanceLocation, ListenerLocation};
use crate::model::Roots;
use crate::model::secret::Secret;
pub use api::{Call, Instance};
use endpoint::Endpoint;

const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest page that the instance sends.
const CONNECTIONS_PER_PAGE: &str = "200";
/// Ends the walk through the pages of a peer that never sends the last one.
const PAGES_MAX: usize = 5000;
const TOKEN_BYTES_MAX: usize = 4 * 1024;
const SECRET_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, Args)]
pub struct InstanceArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// URL of the instance's admin listener [default: from the configuration]
    #[arg(long, value_name = "URL", env = "KEYBEARER_ADMIN_URL")]
    admin: Option<String>,
    /// File with the admin token [default: $KEYBEARER_ADMIN_TOKEN, else <state_dir>/admin-token]
    #[arg(long, value_name = "PATH")]
    admin_token_file: Option<PathBuf>,
    /// Print the response as JSON, for programs
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct RefreshArguments {
    /// The connection
    name: String,
    /// Profile of the connection [default: default]
    #[arg(long)]
    profile: Option<String>,
    /// Subject of the token, for a per-subject connection
    #[arg(long)]
    subject: Option<String>,
    #[command(flatten)]
    instance: InstanceArguments,
}

#[derive(Debug, Args)]
pub struct TestArguments {
    /// The connection
    name: String,
    /// Target of the request [default: the connection's first route]
    url: Option<String>,
    /// Method: GET or HEAD
    #[arg(long, default_value = "GET")]
    method: String,
    /// Profile of the connection [default: default]
    #[arg(long)]
    profile: Option<String>,
    /// Subject of the token, for a per-subject connection
    #[arg(long)]
    subject: Option<String>,
    #[command(flatten)]
    instance: InstanceArguments,
}

/// Why a call failed.
pub enum CallError {
    /// It failed in this process, with a message for people.
    Local(String),
    /// The instance refused it, with a problem document.
    Refused(Value),
}

pub fn connections(arguments: &InstanceArguments) -> ExitCode {
    finish(arguments, all_connections(arguments), table::connections)
}

/// Reads every page of the list.
fn all_connections(arguments: &InstanceArguments) -> Result<Value, CallError> {
    let instance = arguments.instance()?;
    let (mut items, mut cursor) = (Vec::new(), None);
    for _ in 0..PAGES_MAX {
        let mut query = vec![("limit", CONNECTIONS_PER_PAGE)];
        query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let mut page = instance.call(Method::GET, &["connections"], &query, None)?;
        if let Value::Array(more) = page["items"].take() {
            items.extend(more);
        }
        match page["cursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => return Ok(json!({ "items": items })),
        }
    }
    Err(CallError::Local(format!("the instance's list of connections has more than {PAGES_MAX} pages")))
}

pub fn refresh(arguments: &RefreshArguments) -> ExitCode {
    let body = given([("profile", &arguments.profile), ("subject", &arguments.subject)]);
    let response = arguments.instance.call(Method::POST, &["connections", &arguments.name, "refresh"], Some(body));
    finish(&arguments.instance, response, |token| table::refreshed(&arguments.name, token))
}

/// Revokes a token at the server and forgets it. A token that the server did not revoke is forgotten too, but fails the
/// command.
pub fn revoke(arguments: &RefreshArguments) -> ExitCode {
    let body = given([("profile", &arguments.profile), ("subject", &arguments.subject)]);
    let response = arguments.instance.call(Method::POST, &["connections", &arguments.name, "revoke"], Some(body));
    let failed = response.as_ref().is_ok_and(|response| {
        ["refresh_token", "access_token"].iter().any(|token| response[*token]["outcome"] == "failed")
    });
    let name = with_profile(&arguments.name, arguments.profile.as_deref());
    let code = finish(&arguments.instance, response, |response| table::revoked(&name, response));
    if failed { ExitCode::from(1) } else { code }
}

/// Name of a connection in messages.
fn with_profile(name: &str, profile: Option<&str>) -> String {
    profile.map_or_else(|| name.to_owned(), |profile| format!("{name}/{profile}"))
}

/// Reads a secret from standard input, without its last line break.
pub fn read_secret(what: &str) -> Result<Secret, String> {
    let mut text = Zeroizing::new(String::new());
    let read = std::io::stdin().take(SECRET_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| format!("{what} cannot be read from standard input: {error}"))?;
    match text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line)) {
        "" => Err(format!("{what} is empty; write it to standard input")),
        value => Ok(Secret::new(value)),
    }
}

/// A JSON object of the given members.
pub fn given<const N: usize>(members: [(&str, &Option<String>); N]) -> Value {
    let given = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.as_deref()?.into())));
    Value::Object(given.collect())
}

pub fn test(arguments: &TestArguments) -> ExitCode {
    let mut body = given([("url", &arguments.url), ("profile", &arguments.profile), ("subject", &arguments.subject)]);
    body["method"] = arguments.method.as_str().into();
    let response = arguments.instance.call(Method::POST, &["connections", &arguments.name, "test"], Some(body));
    finish(&arguments.instance, response, table::tested)
}

/// Exits 0 if the instance is ready.
pub fn healthcheck(arguments: &InstanceArguments) -> ExitCode {
    let found = arguments.location();
    let endpoint = arguments.endpoint(found.health, found.trust);
    let response = endpoint.and_then(|endpoint| {
        let request = reqwest::Request::new(Method::GET, endpoint.url(&["readyz"])?);
        let response = endpoint.send(request, HEALTH_TIMEOUT)?;
        Ok((response.status == 200, endpoint.base().clone()))
    });
    match response {
        Ok((ready, base)) => {
            let word = if ready { "ready" } else { "not ready" };
            print_line(&if arguments.json {
                json!({ "ready": ready }).to_string()
            } else {
                format!("{base} is {word}")
            });
            ExitCode::from(u8::from(!ready))
        }
        Err(failed) => fail(arguments, failed),
    }
}

pub fn finish(
    arguments: &InstanceArguments,
    response: Result<Value, CallError>,
    show: impl FnOnce(&Value) -> String,
) -> ExitCode {
    match response {
        Ok(response) => {
            print_line(&if arguments.json { response.to_string() } else { show(&response) });
            ExitCode::SUCCESS
        }
        Err(failed) => fail(arguments, failed),
    }
}

pub fn fail(arguments: &InstanceArguments, failed: CallError) -> ExitCode {
    match failed {
        CallError::Refused(problem) if arguments.json => print_line(&problem.to_string()),
        CallError::Refused(problem) => {
            let text = |name: &str| table::clean(problem[name].as_str().unwrap_or("the instance refused"));
            eprintln!("{}: {}", text("code"), text("detail"));
        }
        CallError::Local(text) if arguments.json => {
            print_line(&json!({ "code": "no_answer", "detail": text }).to_string())
        }
        CallError::Local(text) => eprintln!("{text}"),
    }
    ExitCode::FAILURE
}

/// Prints a line and ignores a closed pipe.
pub fn print_line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

impl InstanceArguments {
    /// True if the instance is given by its address rather than by the configuration.
    pub fn has_address(&self) -> bool {
        self.admin.is_some()
    }

    pub fn config_path(&self) -> PathBuf {
        self.config.path()
    }

    fn location(&self) -> InstanceLocation {
        config::locate_instance(&self.config.path())
    }

    /// The listener given by its address, else `configured`.
    fn endpoint(&self, configured: ListenerLocation, trust: Roots) -> Result<Endpoint, CallError> {
        match &self.admin {
            Some(text) => Endpoint::given(text, trust),
            None => Endpoint::configured(configured, trust),
        }
    }

    fn token(&self, found: &InstanceLocation) -> Result<Secret, CallError> {
        let path = match (&self.admin_token_file, config::presented_token()) {
            (Some(path), _) => path.clone(),
            (None, Some(token)) => return Ok(token),
            (None, None) => found.state_dir.join("admin-token"),
        };
        let text = config::read_token(&path, TOKEN_BYTES_MAX);
        text.map_err(|why| {
            let remedy = "set --admin-token-file or KEYBEARER_ADMIN_TOKEN, or run this as the instance's user";
            CallError::Local(format!("the admin token {} cannot be read ({why}); {remedy}", path.display()))
        })
    }

    pub fn instance(&self) -> Result<Instance, CallError> {
        let found = self.location();
        let token = self.token(&found);
        // A wrong address is reported before a missing token.
        Ok(Instance::new(self.endpoint(found.admin, found.trust)?, token?))
    }

    /// Calls the API once; `Err` also if the instance refuses.
    pub fn call(&self, method: Method, path: &[&str], body: Option<Value>) -> Result<Value, CallError> {
        self.instance()?.call(method, path, &[], body)
    }
}
