//! Definitions that were made over the API and are kept in the store: read by the validator of the files' connections.
//!
//! Invariants: a stored definition is never a problem of the files; one that does not validate or that collides with a
//! file's is set aside; it holds literals and `{use: NAME}` only, and its routes inject tokens of stored definitions
//! only.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::connection::{Context, Draft, FileRoutes, Registry, check_injected, connection, written};
use super::reading::{NodeRef, Problem, Problems, Sink, Source, SourceKind};
use crate::model::Name;
use crate::model::connection::{Revision, Route, WrittenDefinition};
use crate::model::secret::Secret;

/// One definition as the store holds it.
#[derive(Debug, Clone)]
pub struct StoredDefinition {
    pub name: Name,
    pub revision: Revision,
    /// YAML or JSON, which may contain secrets; or why the store cannot read it.
    pub text: Result<Secret, String>,
}

/// A stored definition that is not in force, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    pub name: Name,
    pub revision: Revision,
    /// `None`: the text does not parse.
    pub written: Option<WrittenDefinition>,
    /// The valid ones: their hosts are not treated as unmatched.
    pub routes: Vec<Route>,
    /// Never empty.
    pub problems: Vec<Problem>,
}

/// A stored definition whose text was parsed.
pub struct Parsed {
    name: Name,
    revision: Revision,
    source: Option<Source>,
    problems: Vec<Problem>,
}

/// A definition that is valid by itself.
pub struct Candidate<'a> {
    pub draft: Draft<'a>,
    /// In case it collides; without problems.
    aside: SetAside,
    warnings: Vec<Problem>,
}

/// The outcome for all stored definitions.
pub struct Settled<'a> {
    pub drafts: Vec<Draft<'a>>,
    pub warnings: Vec<Problem>,
    pub set_aside: Vec<SetAside>,
}

/// Names a definition in problems; there is no such file.
pub fn path(name: &Name) -> PathBuf {
    PathBuf::from(format!("api:{name}"))
}

pub fn parse(stored: &[StoredDefinition]) -> Vec<Parsed> {
    let parse = |StoredDefinition { name, revision, text }: &StoredDefinition| {
        let mut sink = Sink::default();
        let path = path(name);
        let source = match text {
            Ok(text) => Source::parse_as(SourceKind::Api(*revision), text.expose(), &path, &mut sink),
            Err(why) => {
                let hint = "restore the store's key, or replace the definition".to_owned();
                let message = format!("cannot be read from the store: {why}");
                sink.problem(Problem {
                    file: path,
                    line: 1,
                    column: 1,
                    path: String::new(),
                    code: None,
                    message,
                    hint,
                });
                None
            }
        };
        Parsed { name: name.clone(), revision: *revision, source, problems: outcome(sink).0 }
    };
    stored.iter().map(parse).collect()
}

/// Reads each definition by itself. `sink` has what all connections refer to.
pub fn read<'a>(parsed: &'a [Parsed], context: &Context, sink: &Sink) -> (Vec<Candidate<'a>>, Vec<SetAside>) {
    let (mut candidates, mut set_aside) = (Vec::new(), Vec::new());
    for Parsed { name, revision, source, problems } in parsed {
        let mut fork = sink.fork();
        problems.iter().cloned().for_each(|problem| fork.problem(problem));
        let draft = source.as_ref().and_then(|source| draft(source, name, context, &mut fork));
        let (problems, warnings) = outcome(fork);
        let root = source.as_ref().and_then(Source::root);
        let written = root.map(|root| written(&root, &context.shapes));
        let routes = draft.iter().flat_map(|draft| &draft.routes).map(|(_, route)| route.clone()).collect();
        let aside = SetAside { name: name.clone(), revision: *revision, written, routes, problems };
        match draft.filter(|draft| aside.problems.is_empty() && draft.connection.is_some()) {
            Some(draft) => candidates.push(Candidate { draft, aside, warnings }),
            None => set_aside.push(aside),
        }
    }
    (candidates, set_aside)
}

/// Compares the definitions with the connections of `files`, which are in `registry` and win, and with each other, where
/// the first wins. Returns the problems of each.
pub fn compare<'d>(
    candidates: &'d [Candidate<'_>],
    files: &[Draft<'_>],
    registry: &mut Registry<'d>,
    sink: &Sink,
) -> Vec<Vec<Problem>> {
    let routes = FileRoutes::new(files);
    let compared = candidates.iter().map(|candidate| {
        let mut fork = sink.fork();
        registry.add(&candidate.draft, &mut fork);
        routes.check(&candidate.draft, &mut fork);
        let (problems, _) = outcome(fork);
        if !problems.is_empty() {
            registry.remove(&candidate.draft);
        }
        problems
    });
    let mut problems: Vec<_> = compared.collect();
    check_references(candidates, &mut problems, sink);
    problems
}

/// Finds the routes that inject a token of a definition that is not in force, or of a file's connection: its tokens go
/// where the file sends them, and nowhere else.
fn check_references(candidates: &[Candidate<'_>], problems: &mut [Vec<Problem>], sink: &Sink) {
    let mut in_force: HashSet<&Name> = HashSet::new();
    let mut users: HashMap<&Name, Vec<usize>> = HashMap::new();
    for (index, candidate) in candidates.iter().enumerate().filter(|(index, _)| problems[*index].is_empty()) {
        in_force.insert(&candidate.aside.name);
        for other in candidate.draft.routes.iter().flat_map(|(_, route)| &route.others) {
            users.entry(&other.connection).or_default().push(index);
        }
    }
    let mut pending: Vec<usize> = users.values().flatten().copied().collect();
    while let Some(index) = pending.pop() {
        if !problems[index].is_empty() {
            continue;
        }
        let mut fork = sink.fork();
        check_injected(&candidates[index].draft, |name| in_force.contains(name), &mut fork);
        problems[index] = outcome(fork).0;
        if !problems[index].is_empty() {
            in_force.remove(&candidates[index].aside.name);
            pending.extend(users.get(&candidates[index].aside.name).into_iter().flatten());
        }
    }
}

/// Separates the definitions in force from those that are set aside.
pub fn settle<'a>(candidates: Vec<Candidate<'a>>, problems: Vec<Vec<Problem>>, aside: Vec<SetAside>) -> Settled<'a> {
    let mut settled = Settled { drafts: Vec::new(), warnings: Vec::new(), set_aside: aside };
    for (Candidate { draft, aside, warnings }, problems) in candidates.into_iter().zip(problems) {
        if problems.is_empty() {
            settled.drafts.push(draft);
            settled.warnings.extend(warnings);
        } else {
            settled.set_aside.push(SetAside { problems, ..aside });
        }
    }
    settled
}

/// The problems and the warnings of a sink.
fn outcome(sink: Sink) -> (Vec<Problem>, Vec<Problem>) {
    match sink.finish(Path::new("")) {
        Ok((warnings, _)) => (Vec::new(), warnings),
        Err(Problems { problems, warnings, .. }) => (problems, warnings),
    }
}

fn draft<'a>(source: &'a Source, name: &Name, context: &Context, sink: &mut Sink) -> Option<Draft<'a>> {
    let root = root(source, sink)?;
    let draft = connection(&root, context, sink)?;
    if let Some((other, at)) = &draft.name {
        check_name(at, other, name, sink);
    }
    Some(draft)
}

/// The whole text; a problem if it is empty.
pub fn root<'a>(source: &'a Source, sink: &mut Sink) -> Option<NodeRef<'a>> {
    let root = source.root();
    if root.is_none() {
        let (file, path, hint) = (source.path.clone(), String::new(), "write the keys of a connection".to_owned());
        sink.problem(Problem { file, line: 1, column: 1, path, code: None, message: "is empty".to_owned(), hint });
    }
    root
}

/// Rejects a definition that is written under another name than the one it is stored as.
pub fn check_name(at: &NodeRef<'_>, written: &Name, name: &Name, sink: &mut Sink) {
    if written != name {
        at.problem(sink, format!("is `{written}`, but the definition is stored as `{name}`"), "use the same name");
    }
}
