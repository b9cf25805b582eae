//! One configuration text: a file, or a definition that was made over the API.

use std::path::{Path, PathBuf};

use super::document::{Document, Flaw, Limits};
use super::problem::{Problem, Sink};
use crate::model::connection::Revision;

/// Where a text comes from, which decides what it may refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// May refer to files, variables and stored secrets of this machine.
    File,
    /// Made over the API: literals and `{use: NAME}` only.
    Api(Revision),
}

#[derive(Debug)]
pub struct Source {
    pub kind: SourceKind,
    /// Paths in the text are relative to it; for a definition of the API, only a name for messages.
    pub path: PathBuf,
    pub document: Document,
}

impl Source {
    /// Parses the text of a file, and reports flaws to the sink. `None` if there is no tree.
    pub fn parse(text: &str, path: &Path, sink: &mut Sink) -> Option<Source> {
        Source::parse_as(SourceKind::File, text, path, sink)
    }

    /// As [`Source::parse`], with other limits.
    pub fn parse_within(limits: Limits, text: &str, path: &Path, sink: &mut Sink) -> Option<Source> {
        Source::from_document(SourceKind::File, Document::parse_within(text, limits), path, sink)
    }

    /// As [`Source::parse`], for a text of either kind.
    pub fn parse_as(kind: SourceKind, text: &str, path: &Path, sink: &mut Sink) -> Option<Source> {
        Source::from_document(kind, Document::parse(text), path, sink)
    }

    fn from_document(
        kind: SourceKind,
        parsed: Result<(Document, Vec<Flaw>), Flaw>,
        path: &Path,
        sink: &mut Sink,
    ) -> Option<Source> {
        let report = |flaw: Flaw, sink: &mut Sink| {
            let Flaw { line, column, path: yaml_path, message, hint } = flaw;
            let (file, hint) = (path.to_owned(), hint.to_owned());
            sink.problem(Problem { file, line, column, path: yaml_path, code: None, message, hint });
        };
        match parsed {
            Ok((document, flaws)) => {
                flaws.into_iter().for_each(|flaw| report(flaw, sink));
                Some(Source { kind, path: path.to_owned(), document })
            }
            Err(flaw) => {
                report(flaw, sink);
                None
            }
        }
    }

    /// Resolves a path relative to this file.
    pub fn resolve(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }
}
