//! JSON of stored definitions that are not in force, and of the problems of definitions.

use schemars::JsonSchema;
use serde::Serialize;

use crate::config::{self, SetAside};
use crate::model::Name;

/// A problem of a definition that was sent over the API.
#[derive(Serialize, JsonSchema)]
pub struct DefinitionProblem {
    /// The name of the connection.
    connection: String,
    /// Such as `routes[2].host`; empty for the whole definition.
    path: String,
    /// In the body that was sent, from 1.
    line: usize,
    column: usize,
    /// For programs; null if the message says it all.
    code: Option<&'static str>,
    message: String,
    /// What to do; may be empty.
    hint: String,
}

impl DefinitionProblem {
    fn new(connection: &Name, problem: &config::Problem) -> DefinitionProblem {
        let config::Problem { line, column, path, code, message, hint, .. } = problem.clone();
        DefinitionProblem { connection: connection.to_string(), path, line, column, code, message, hint }
    }
}

/// Problems of definitions, each with the name of its connection.
pub fn problems_of_definitions(problems: &[(Name, config::Problem)]) -> Vec<DefinitionProblem> {
    problems.iter().map(|(name, problem)| DefinitionProblem::new(name, problem)).collect()
}

/// A stored definition whose name a file has taken.
#[derive(Serialize, JsonSchema)]
pub struct Shadowed {
    /// To be sent as `If-Match`.
    etag: String,
    /// Why it is not in force.
    problems: Vec<DefinitionProblem>,
}

/// A definition that was made over the API and is not in force. Its keys are as written, and may be invalid.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MisconfiguredConnection")]
pub struct SetAsideState {
    name: String,
    #[schemars(extend("const" = "misconfigured"))]
    state: &'static str,
    #[schemars(extend("const" = "api"))]
    source: &'static str,
    /// Why it is not in force.
    problems: Vec<DefinitionProblem>,
}

impl SetAsideState {
    /// The names of its members.
    pub const MEMBERS: [&str; 4] = ["name", "state", "source", "problems"];

    pub fn of(aside: &SetAside) -> SetAsideState {
        let (name, problems) = (aside.name.to_string(), problems(aside));
        SetAsideState { name, state: "misconfigured", source: "api", problems }
    }
}

pub fn shadowed(aside: &SetAside) -> Shadowed {
    Shadowed { etag: format!("\"{}\"", aside.revision), problems: problems(aside) }
}

fn problems(aside: &SetAside) -> Vec<DefinitionProblem> {
    aside.problems.iter().map(|problem| DefinitionProblem::new(&aside.name, problem)).collect()
}
