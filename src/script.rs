//! Scripts of connections: hooks that change requests to the authorization server and interpret its responses.
//!
//! Not here: when and on which thread a hook is called (a call may block for [`CALL_TIME_MAX`]).
//! Invariants: a script accesses nothing but its arguments; `sandbox` bounds its time, depth and memory; no failure or
//! `Debug` output shows data, except for a text that the script itself throws.

mod failure;
mod functions;
mod request;
mod response;
mod sandbox;
#[cfg(test)]
mod tests;
mod value;

use std::fmt;
use std::sync::Arc;

use rhai::{AST, Dynamic, Map};

pub use failure::{Failure, ScriptError};
pub use request::Request;
pub use response::{Response, ScriptedResponse, TEXT_BYTES_MAX};
pub use sandbox::CALL_TIME_MAX;

use crate::model::secret::Secret;
use crate::model::time::WallTime;
use sandbox::Sandbox;
use value::{entry, text};

/// Maximum size of a script's source.
pub const SOURCE_BYTES_MAX: usize = 64 * 1024;

const AUTHORIZATION_REQUEST: &str = "authorization_request";
const TOKEN_REQUEST: &str = "token_request";
const TOKEN_RESPONSE: &str = "token_response";

/// The hooks, and their number of parameters.
const HOOKS: [&str; 3] = [AUTHORIZATION_REQUEST, TOKEN_REQUEST, TOKEN_RESPONSE];
const HOOK_PARAMETERS: usize = 2;

/// A compiled script. Clones share it.
#[derive(Clone)]
pub struct Script {
    ast: Arc<AST>,
    sandbox: Sandbox,
}

/// The second argument of every hook.
#[derive(Debug, Clone, Default)]
pub struct Context {
    pub connection: String,
    pub profile: String,
    pub subject: Option<String>,
    pub grant: String,
    pub variables: Vec<(String, Secret)>,
    /// Returned by `now()`.
    pub now: WallTime,
}

impl Script {
    /// # Errors
    /// The first problem of `source`, with its position if known.
    pub fn compile(source: &str) -> Result<Script, ScriptError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(ScriptError::without_position(format!("is longer than {SOURCE_BYTES_MAX} bytes")));
        }
        let sandbox = Sandbox::new();
        let ast = sandbox.compile(source)?;
        for function in ast.iter_functions().filter(|function| HOOKS.contains(&function.name)) {
            let given = function.params.len();
            if given != HOOK_PARAMETERS {
                let name = function.name;
                let message =
                    format!("{name} takes {HOOK_PARAMETERS} parameters, (request or response, ctx), not {given}");
                return Err(ScriptError { line: line_of(source, name), column: None, message });
            }
        }
        let script = Script { ast: Arc::new(ast), sandbox };
        if !HOOKS.iter().any(|hook| script.has(hook)) {
            return Err(ScriptError::without_position(format!("defines none of the functions {}", HOOKS.join(", "))));
        }
        Ok(script)
    }

    pub fn has_authorization_request(&self) -> bool {
        self.has(AUTHORIZATION_REQUEST)
    }

    pub fn has_token_request(&self) -> bool {
        self.has(TOKEN_REQUEST)
    }

    pub fn has_token_response(&self) -> bool {
        self.has(TOKEN_RESPONSE)
    }

    /// Applies the authorization request hook; without one, returns the request unchanged.
    ///
    /// # Errors
    /// As [`Script::token_request`].
    pub fn authorization_request(&self, request: Request, context: &Context) -> Result<Request, Failure> {
        self.change_request(AUTHORIZATION_REQUEST, request, context)
    }

    /// Applies the token request hook; without one, returns the request unchanged.
    ///
    /// # Errors
    /// An exception of the script, an exceeded bound, or a result that is not a request.
    pub fn token_request(&self, request: Request, context: &Context) -> Result<Request, Failure> {
        self.change_request(TOKEN_REQUEST, request, context)
    }

    /// Applies the token response hook; without one, returns the response unchanged.
    ///
    /// # Errors
    /// As [`Script::token_request`].
    pub fn token_response(&self, response: Response, context: &Context) -> Result<ScriptedResponse, Failure> {
        if !self.has(TOKEN_RESPONSE) {
            return Ok(ScriptedResponse { status: response.status, body: response.text, is_short: false });
        }
        let given = response.to_map();
        let returned = self.call(TOKEN_RESPONSE, given.clone(), context)?;
        response::read(&response, &given, returned)
    }

    fn change_request(&self, hook: &str, request: Request, context: &Context) -> Result<Request, Failure> {
        if !self.has(hook) {
            return Ok(request);
        }
        let returned = self.call(hook, request.to_map(), context)?;
        request.changed(returned)
    }

    /// Calls `hook`, which must return a map.
    fn call(&self, hook: &str, first: Map, context: &Context) -> Result<Map, Failure> {
        let returned = self.sandbox.call(&self.ast, hook, (first, context.to_map()), context.now)?;
        let kind = value::kind(&returned);
        returned.try_cast::<Map>().ok_or_else(|| Failure::error(format!("{hook} returned {kind}, not a map")))
    }

    fn has(&self, hook: &str) -> bool {
        let is_hook = |name: &str, parameters: usize| name == hook && parameters == HOOK_PARAMETERS;
        self.ast.iter_functions().any(|function| is_hook(function.name, function.params.len()))
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hooks: Vec<_> = HOOKS.iter().filter(|hook| self.has(hook)).collect();
        f.debug_struct("Script").field("hooks", &hooks).finish_non_exhaustive()
    }
}

impl Context {
    fn to_map(&self) -> Map {
        let variables: Map = self.variables.iter().map(|(name, value)| entry(name, text(value.expose()))).collect();
        Map::from_iter([
            entry("connection", text(&self.connection)),
            entry("profile", text(&self.profile)),
            entry("subject", self.subject.as_deref().map_or(Dynamic::UNIT, text)),
            entry("grant", text(&self.grant)),
            entry("variables", variables.into()),
        ])
    }
}

/// The line (from 1) on which the function `name` starts.
fn line_of(source: &str, name: &str) -> Option<usize> {
    let defines = |line: &str| {
        let line = line.trim_start();
        let line = line.strip_prefix("private ").unwrap_or(line).trim_start();
        let rest = line.strip_prefix("fn ").and_then(|rest| rest.trim_start().strip_prefix(name));
        rest.is_some_and(|rest| rest.trim_start().starts_with('(') || rest.trim().is_empty())
    };
    source.lines().position(defines).map(|index| index + 1)
}
