//! A YAML tree with the line and column of each key and value, built in one pass over the parser's events.
//!
//! Invariants: size, depth and number of nodes are bounded, with aliases counted as if expanded; nothing recurses; a
//! scalar keeps its text as written, and is wiped on drop. Duplicate keys and tags are flaws; a second document is an
//! error. Valid JSON is parsed as such (`json`).
//! Not here: the meaning of keys (`node`), references (`reference`).

mod json;
mod limits;

use std::collections::HashMap;
use std::ops::Range;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use zeroize::Zeroize as _;

pub use limits::{BYTES_MAX, DEPTH_MAX, Limits};

/// A document. Nodes and entries are referred to by index; an alias is the index of its anchor's node.
#[derive(Debug, Default)]
pub struct Document {
    nodes: Vec<Node>,
    entries: Vec<Entry>,
    root: Option<usize>,
}

#[derive(Debug)]
pub struct Node {
    pub line: usize,
    pub column: usize,
    pub kind: Kind,
    /// Number of nodes in this subtree, with aliases expanded.
    size: usize,
    /// Nesting depth of this subtree.
    height: usize,
}

#[derive(Debug)]
pub enum Kind {
    Scalar {
        text: String,
        plain: bool,
        /// No value is written, as in `key:`.
        absent: bool,
    },
    /// Indices of nodes.
    List(Vec<usize>),
    /// Indices of entries.
    Map(Range<usize>),
}

#[derive(Debug)]
pub struct Entry {
    pub key: String,
    pub line: usize,
    pub column: usize,
    pub value: usize,
}

/// A mistake in the YAML itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    pub line: usize,
    pub column: usize,
    pub path: String,
    pub message: String,
    pub hint: &'static str,
}

impl Document {
    /// Parses `text` into a tree and its flaws. The error is a flaw that made parsing impossible.
    pub fn parse(text: &str) -> Result<(Document, Vec<Flaw>), Flaw> {
        Document::parse_within(text, Limits::FILE)
    }

    /// As [`Document::parse`], with other limits.
    pub fn parse_within(text: &str, limits: Limits) -> Result<(Document, Vec<Flaw>), Flaw> {
        let mut builder = Builder::within(limits);
        if text.len() > limits.bytes {
            return Err(limits.too_big());
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if let Some(parsed) = json::parse(text, limits) {
            return parsed;
        }
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| {
                let mark = error.marker();
                builder.flaw(
                    (mark.line(), mark.col() + 1),
                    format!("is not valid YAML: {}", error.info()),
                    "fix the syntax",
                )
            })?;
            builder.event(event, span)?;
        }
        Ok((builder.document, builder.flaws))
    }

    /// `None` if the file has no content.
    pub fn root(&self) -> Option<usize> {
        self.root.filter(|root| !self.node(*root).is_null())
    }

    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number]
    }

    pub fn entry(&self, number: usize) -> &Entry {
        &self.entries[number]
    }
}

/// Wipes the texts, which may be secrets.
impl Drop for Document {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Kind::Scalar { text, .. } = &mut node.kind {
                text.zeroize();
            }
        }
    }
}

impl Node {
    pub fn is_null(&self) -> bool {
        let Kind::Scalar { text, plain, absent } = &self.kind else { return false };
        *absent || *plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }
}

/// The document that stands for a file without content: an empty map.
pub fn empty() -> Document {
    let node = Node { line: 1, column: 1, kind: Kind::Map(0..0), size: 1, height: 1 };
    Document { nodes: vec![node], entries: Vec::new(), root: Some(0) }
}

/// Appends `key` to `path`.
pub fn join(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    match (plain, path.is_empty()) {
        (true, true) => key.to_owned(),
        (true, false) => format!("{path}.{key}"),
        (false, _) => format!("{path}[{:?}]", key.chars().take(80).collect::<String>()),
    }
}

type Mark = (usize, usize);

#[derive(Default)]
struct Builder {
    document: Document,
    flaws: Vec<Flaw>,
    open: Vec<Open>,
    anchors: HashMap<usize, usize>,
    total: usize,
    nodes_max: usize,
    documents: usize,
}

/// A list or a map whose end event has not arrived yet.
struct Open {
    mark: Mark,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<usize>),
    Map { entries: Vec<Entry>, lines: HashMap<String, usize>, key: Option<(String, Mark)> },
}

impl Content {
    fn map() -> Content {
        Content::Map { entries: Vec::new(), lines: HashMap::new(), key: None }
    }
}

impl Builder {
    fn within(limits: Limits) -> Builder {
        Builder { nodes_max: limits.nodes, ..Builder::default() }
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Flaw> {
        let mark = (span.start.line(), span.start.col() + 1);
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(self.flaw(mark, "a second document begins here", "keep one document per file"));
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.tag(mark, tag.is_some());
                let plain = style == ScalarStyle::Plain;
                let absent = plain && span.is_empty();
                return self.scalar(mark, text.into_owned(), plain, absent, anchor);
            }
            Event::SequenceStart(anchor, tag) => {
                self.tag(mark, tag.is_some());
                return self.start(Open { mark, anchor, content: Content::List(Vec::new()) });
            }
            Event::MappingStart(anchor, tag) => {
                self.tag(mark, tag.is_some());
                return self.start(Open { mark, anchor, content: Content::map() });
            }
            Event::SequenceEnd | Event::MappingEnd => return self.end(mark),
            Event::Alias(anchor) => return self.alias(mark, anchor),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn tag(&mut self, mark: Mark, present: bool) {
        if present {
            let flaw = self.flaw(mark, "tags (`!…`) are not supported", "remove it, or quote the text");
            self.flaws.push(flaw);
        }
    }

    fn scalar(&mut self, mark: Mark, text: String, plain: bool, absent: bool, anchor: usize) -> Result<(), Flaw> {
        self.count(mark, 1)?;
        if let Some(Open { content: Content::Map { key: key @ None, .. }, .. }) = self.open.last_mut() {
            *key = Some((text, mark));
            return Ok(());
        }
        self.finish(mark, anchor, Kind::Scalar { text, plain, absent }, 1, 0)
    }

    fn start(&mut self, open: Open) -> Result<(), Flaw> {
        self.count(open.mark, 1)?;
        self.refuse_as_key(open.mark)?;
        if self.open.len() >= DEPTH_MAX {
            return Err(self.too_deep(open.mark));
        }
        self.open.push(open);
        Ok(())
    }

    fn end(&mut self, mark: Mark) -> Result<(), Flaw> {
        let Some(Open { mark, anchor, content }) = self.open.pop() else {
            return Err(self.flaw(mark, "is not valid YAML: an end without a start", "fix the syntax"));
        };
        let nodes = &self.document.nodes;
        let add_child = |(size, height): (usize, usize), node: &Node| (size + node.size, height.max(node.height + 1));
        match content {
            Content::List(items) => {
                let (size, height) = items.iter().map(|item| &nodes[*item]).fold((1, 1), add_child);
                self.finish(mark, anchor, Kind::List(items), size, height)
            }
            Content::Map { entries, .. } => {
                let (size, height) = entries.iter().map(|e| &nodes[e.value]).fold((1 + entries.len(), 1), add_child);
                let first = self.document.entries.len();
                self.document.entries.extend(entries);
                let range = first..self.document.entries.len();
                self.finish(mark, anchor, Kind::Map(range), size, height)
            }
        }
    }

    fn alias(&mut self, mark: Mark, anchor: usize) -> Result<(), Flaw> {
        self.refuse_as_key(mark)?;
        let Some(&number) = self.anchors.get(&anchor) else {
            return Err(self.flaw(mark, "an alias refers to a value that contains it", "write the value out"));
        };
        let Node { size, height, .. } = self.document.nodes[number];
        self.count(mark, size)?;
        if self.open.len() + height > DEPTH_MAX {
            return Err(self.too_deep(mark));
        }
        self.attach(number);
        Ok(())
    }

    fn count(&mut self, mark: Mark, nodes: usize) -> Result<(), Flaw> {
        self.total += nodes;
        if self.total <= self.nodes_max {
            return Ok(());
        }
        let message = format!("the document has more than {} values, with aliases expanded", self.nodes_max);
        Err(self.flaw(mark, message, "split it into files under `include`, and use fewer aliases"))
    }

    fn refuse_as_key(&self, mark: Mark) -> Result<(), Flaw> {
        match self.open.last() {
            Some(Open { content: Content::Map { key: None, .. }, .. }) => {
                Err(self.flaw(mark, "a key must be a string", "write the key as a plain word"))
            }
            _ => Ok(()),
        }
    }

    fn finish(&mut self, mark: Mark, anchor: usize, kind: Kind, size: usize, height: usize) -> Result<(), Flaw> {
        let number = self.document.nodes.len();
        self.document.nodes.push(Node { line: mark.0, column: mark.1, kind, size, height });
        if anchor > 0 {
            self.anchors.insert(anchor, number);
        }
        self.attach(number);
        Ok(())
    }

    /// Attaches a finished node to its parent. A duplicate key is dropped with a flaw.
    fn attach(&mut self, value: usize) {
        let (key, line, column, first) = match self.open.last_mut().map(|open| &mut open.content) {
            None => return self.document.root = Some(value),
            Some(Content::List(items)) => return items.push(value),
            Some(Content::Map { entries, lines, key }) => {
                let Some((key, (line, column))) = key.take() else { return };
                match lines.get(&key) {
                    Some(first) => (key, line, column, *first),
                    None => {
                        lines.insert(key.clone(), line);
                        return entries.push(Entry { key, line, column, value });
                    }
                }
            }
        };
        let message = format!("duplicate key (first on line {first})");
        self.flaws.push(Flaw { line, column, path: join(&self.path(), &key), message, hint: "remove one of the two" });
    }

    fn too_deep(&self, mark: Mark) -> Flaw {
        self.flaw(
            mark,
            format!("lists and maps are nested more than {DEPTH_MAX} deep"),
            "remove the extra levels: no setting is nested that deeply",
        )
    }

    fn flaw(&self, (line, column): Mark, message: impl Into<String>, hint: &'static str) -> Flaw {
        Flaw { line, column, path: self.path(), message: message.into(), hint }
    }

    /// The path of the value that is being read.
    fn path(&self) -> String {
        self.open.iter().fold(String::new(), |path, open| match &open.content {
            Content::List(items) => format!("{path}[{}]", items.len()),
            Content::Map { key: Some((key, _)), .. } => join(&path, key),
            Content::Map { key: None, .. } => path,
        })
    }
}

#[cfg(test)]
mod tests;
