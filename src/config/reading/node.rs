//! A value in a configuration file with its path and position, to which problems refer.
//!
//! A map is read as a [`Section`]: the entries of its keys in a serde twin. Each key is first looked up in the twin's
//! field list, so every unknown key of a section is reported at its line, and serde never sees one.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, Visitor, value};

use super::document::{self, Kind, Node};
use super::problem::{Problem, Sink, suggest};
use super::source::Source;

impl Source {
    pub fn root(&self) -> Option<NodeRef<'_>> {
        let number = self.document.root()?;
        let Node { line, column, .. } = self.document.node(number);
        Some(NodeRef { source: self, number, line: *line, column: *column, path: String::new() })
    }
}

/// A reference to a value, with its path and position.
#[derive(Debug, Clone)]
pub struct NodeRef<'a> {
    pub source: &'a Source,
    pub(super) number: usize,
    pub line: usize,
    pub column: usize,
    pub path: String,
}

impl<'a> NodeRef<'a> {
    fn child(&self, number: usize, path: String) -> NodeRef<'a> {
        let Node { line, column, .. } = self.source.document.node(number);
        NodeRef { source: self.source, number, line: *line, column: *column, path }
    }

    pub fn kind(&self) -> &'a Kind {
        &self.source.document.node(self.number).kind
    }

    pub fn is_null(&self) -> bool {
        self.source.document.node(self.number).is_null()
    }

    pub fn is_list(&self) -> bool {
        matches!(self.kind(), Kind::List(_))
    }

    /// A list with at least one item.
    pub fn has_items(&self) -> bool {
        matches!(self.kind(), Kind::List(items) if !items.is_empty())
    }

    pub fn is_map(&self) -> bool {
        matches!(self.kind(), Kind::Map(_))
    }

    /// The text as written, with references unresolved; `None` for lists and maps.
    pub fn written(&self) -> Option<&'a str> {
        match self.kind() {
            Kind::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    pub fn to_problem(&self, message: impl Into<String>, hint: impl Into<String>) -> Problem {
        let NodeRef { line, column, ref path, .. } = *self;
        let file = self.source.path.clone();
        let (message, hint) = (message.into(), hint.into());
        Problem { file, line, column, path: path.clone(), code: None, message, hint }
    }

    pub fn problem(&self, sink: &mut Sink, message: impl Into<String>, hint: impl Into<String>) {
        sink.problem(self.to_problem(message, hint));
    }

    pub fn warning(&self, sink: &mut Sink, message: impl Into<String>, hint: impl Into<String>) {
        sink.warning(self.to_problem(message, hint));
    }

    /// `FILE:LINE`, for a message at another position.
    pub fn location(&self) -> String {
        format!("{}:{}", self.source.path.display(), self.line)
    }

    /// The items of a list; a null item is a problem.
    pub fn items(&self, sink: &mut Sink) -> Option<Vec<NodeRef<'a>>> {
        let Kind::List(numbers) = self.kind() else {
            self.problem(sink, "must be a list", "write the items in brackets: [a, b]");
            return None;
        };
        let item = |(index, number): (usize, &usize)| self.child(*number, format!("{}[{index}]", self.path));
        let (empty, items): (Vec<_>, Vec<_>) = numbers.iter().enumerate().map(item).partition(NodeRef::is_null);
        empty.iter().for_each(|item| item.problem(sink, "the item is empty", "write a value or remove the item"));
        Some(items)
    }

    /// The entries of a map with free keys: each key, its node, and its value unless that is null.
    pub fn pairs(&self, sink: &mut Sink) -> Vec<(&'a str, NodeRef<'a>, Option<NodeRef<'a>>)> {
        let Kind::Map(range) = self.kind() else {
            self.problem(sink, "must be a map", "write it as `key: value` lines");
            return Vec::new();
        };
        range.clone().map(|entry| self.pair(entry)).collect()
    }

    /// The value of one key of a map; `None` if it is absent or null, or this is not a map.
    pub fn value_of(&self, key: &str) -> Option<NodeRef<'a>> {
        let Kind::Map(range) = self.kind() else { return None };
        let entry = range.clone().find(|entry| self.source.document.entry(*entry).key == key)?;
        self.pair(entry).2
    }

    /// The value at `path` with its key, or the innermost value that contains it. An item of a list, and the whole text,
    /// is its own key.
    pub fn closest(&self, path: &str) -> (NodeRef<'a>, NodeRef<'a>) {
        let mut found = (self.clone(), self.clone());
        let mut rest = path.strip_prefix(self.path.as_str()).unwrap_or_default();
        while let Some((key, value, tail)) = found.1.child_at(rest) {
            (found, rest) = ((key, value), tail);
        }
        found
    }

    /// The key and the value at the start of a relative path, and the rest of the path.
    fn child_at<'p>(&self, path: &'p str) -> Option<(NodeRef<'a>, NodeRef<'a>, &'p str)> {
        match self.kind() {
            Kind::List(numbers) => {
                let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
                let number = numbers.get(index.parse::<usize>().ok()?)?;
                let item = self.child(*number, format!("{}[{index}]", self.path));
                Some((item.clone(), item, rest))
            }
            Kind::Map(range) if !path.is_empty() => {
                let path = path.strip_prefix('.').unwrap_or(path);
                range.clone().find_map(|entry| {
                    let name = self.source.document.entry(entry).key.as_str();
                    let rest = match path.starts_with('[') {
                        true => path.strip_prefix(document::join("", name).as_str())?,
                        false => path.strip_prefix(name)?,
                    };
                    let (_, key, value) = self.pair(entry);
                    let is_whole = rest.is_empty() || rest.starts_with(['.', '[']);
                    is_whole.then(|| (key.clone(), value.unwrap_or(key), rest))
                })
            }
            Kind::Map(_) | Kind::Scalar { .. } => None,
        }
    }

    fn pair(&self, entry: usize) -> (&'a str, NodeRef<'a>, Option<NodeRef<'a>>) {
        let entry = self.source.document.entry(entry);
        let value = self.child(entry.value, document::join(&self.path, &entry.key));
        let key = NodeRef { line: entry.line, column: entry.column, ..value.clone() };
        (&entry.key, key, Some(value).filter(|value| !value.is_null()))
    }

    /// Reads a map as a section. Every unknown key is a problem.
    pub fn section<T: Keys>(&self, sink: &mut Sink) -> Option<Section<'a, T>> {
        let Kind::Map(range) = self.kind() else {
            self.problem(sink, "must be a map", "write it as `key: value` lines");
            return None;
        };
        let known = field_names::<T>();
        let mut entries = serde_yaml::Mapping::new();
        for entry in range.clone() {
            let (key, node, _) = self.pair(entry);
            if known.contains(&key) {
                entries.insert(key.into(), entry.into());
            } else if T::NOT_BUILT.contains(&key) {
                node.problem(sink, format!("`{key}` is not built yet"), "remove it");
            } else if T::SECRET {
                self.problem(sink, "contains an unknown key", format!("use one of {}", known.join(", ")));
            } else {
                let all = known.iter().chain(T::NOT_BUILT).copied();
                let hint = suggest(key, all, "remove it");
                node.problem(sink, format!("unknown key `{}`", key.chars().take(80).collect::<String>()), hint);
            }
        }
        match serde_yaml::from_value(serde_yaml::Value::Mapping(entries)) {
            Ok(keys) => Some(Section { keys, node: self.clone() }),
            Err(error) => {
                self.problem(sink, format!("cannot be read: {error}"), "");
                None
            }
        }
    }
}

/// The index of a key's entry. `T` is the shape of its value in the schema.
pub struct Mark<T>(usize, PhantomData<fn() -> T>);

/// A key of a twin: `Some` if it is present, even with a null value.
pub type Field<T> = Option<Mark<T>>;

impl<T> Clone for Mark<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Mark<T> {}

impl<T> fmt::Debug for Mark<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de, T> Deserialize<'de> for Mark<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        usize::deserialize(deserializer).map(|entry| Mark(entry, PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Mark<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }
}

/// A serde twin: a struct of [`Field`]s with the names of a map's keys.
pub trait Keys: DeserializeOwned {
    /// Planned keys, which this version rejects by name.
    const NOT_BUILT: &'static [&'static str] = &[];
    /// True if an unknown key might be the secret itself, and must not be quoted.
    const SECRET: bool = false;
}

/// A map whose keys have been looked up in a twin.
#[derive(Debug)]
pub struct Section<'a, T> {
    pub keys: T,
    pub node: NodeRef<'a>,
}

impl<'a, T: Keys> Section<'a, T> {
    /// True if the twin has `key`.
    pub fn knows(&self, key: &str) -> bool {
        field_names::<T>().contains(&key)
    }

    /// The value of a key; `None` if it is absent or null.
    pub fn get<S>(&self, field: Field<S>) -> Option<NodeRef<'a>> {
        self.node.pair(field?.0).2
    }

    /// The value of a key; a problem if it is absent or null.
    pub fn require<S>(&self, field: Field<S>, key: &str, hint: &str, sink: &mut Sink) -> Option<NodeRef<'a>> {
        let found = self.get(field);
        if found.is_none() {
            let at = field.map_or_else(|| self.at(key), |mark| self.node.pair(mark.0).1);
            at.problem(sink, format!("`{key}` is missing"), hint);
        }
        found
    }

    /// The position of the section, with the path of an absent key.
    pub fn at(&self, key: &str) -> NodeRef<'a> {
        NodeRef { path: document::join(&self.node.path, key), ..self.node.clone() }
    }
}

/// The field names of a twin, from its derived `Deserialize`.
fn field_names<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Names<'n>(&'n mut &'static [&'static str]);
    impl<'de> Deserializer<'de> for Names<'_> {
        type Error = value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, value::Error> {
            Err(de::Error::custom("not a struct"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, value::Error> {
            *self.0 = fields;
            Err(de::Error::custom("only the names are wanted"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut names: &'static [&'static str] = &[];
    let _ = T::deserialize(Names(&mut names));
    names
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Pet {
        name: Field<()>,
        legs: Field<()>,
    }

    impl Keys for Pet {
        const NOT_BUILT: &'static [&'static str] = &["wings"];
    }

    #[test]
    fn every_unknown_and_missing_key_of_a_section_is_reported() {
        assert_eq!(field_names::<Pet>(), ["name", "legs"]);
        let mut sink = Sink::default();
        let text = "pet:\n  nmae: a\n  wings: 2\n  legs:\n  colour: red\n";
        let source = Source::parse(text, Path::new("a.yaml"), &mut sink).unwrap();
        let pet = source.root().unwrap().pairs(&mut sink).remove(0).2.unwrap();
        let section = pet.section::<Pet>(&mut sink).unwrap();
        assert!(section.keys.name.is_none() && section.keys.legs.is_some() && section.get(section.keys.legs).is_none());
        section.require(section.keys.legs, "legs", "count them", &mut sink);
        section.require(section.keys.name, "name", "call it", &mut sink);
        let lines: Vec<_> =
            sink.finish(Path::new("a.yaml")).unwrap_err().problems.iter().map(|p| p.to_string()).collect();
        let expected = [
            "a.yaml:2:3: pet.nmae: unknown key `nmae`; did you mean `name`?",
            "a.yaml:2:3: pet.name: `name` is missing; call it",
            "a.yaml:3:3: pet.wings: `wings` is not built yet; remove it",
            "a.yaml:4:3: pet.legs: `legs` is missing; count them",
            "a.yaml:5:3: pet.colour: unknown key `colour`; remove it",
        ];
        assert_eq!(lines, expected);
    }
}
