//! A place in a configuration file: its value, its path, and where a problem with it points.
//!
//! A map becomes a [`Unit`]: its marks in a serde twin. Before that, every key is looked up in the twin's own
//! field list, so all bad keys of a unit are reported, each at its line, and serde never meets one.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, Visitor, value};

use super::document::{self, Document, Flaw, Kind, Node};
use super::problem::{Problem, Sink, suggest};

/// One file: its tree, and the directory that its paths are relative to.
#[derive(Debug)]
pub struct Source {
    pub path: PathBuf,
    pub document: Document,
}

impl Source {
    /// Parses `text`; flaws go to the sink, and without a tree there is no source.
    pub fn parse(text: &str, path: &Path, sink: &mut Sink) -> Option<Source> {
        let report = |flaw: Flaw, sink: &mut Sink| {
            let Flaw { line, column, path: within, message, hint } = flaw;
            sink.problem(Problem { file: path.to_owned(), line, column, path: within, message, hint: hint.to_owned() });
        };
        match Document::parse(text) {
            Ok((document, flaws)) => {
                flaws.into_iter().for_each(|flaw| report(flaw, sink));
                Some(Source { path: path.to_owned(), document })
            }
            Err(flaw) => {
                report(flaw, sink);
                None
            }
        }
    }

    pub fn root(&self) -> Option<Spot<'_>> {
        let number = self.document.root()?;
        let Node { line, column, .. } = self.document.node(number);
        Some(Spot { source: self, number, line: *line, column: *column, path: String::new() })
    }

    /// A path as written in this file.
    pub fn resolve(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }
}

/// A value with its address.
#[derive(Debug, Clone)]
pub struct Spot<'a> {
    pub source: &'a Source,
    number: usize,
    pub line: usize,
    pub column: usize,
    pub path: String,
}

impl<'a> Spot<'a> {
    fn child(&self, number: usize, path: String) -> Spot<'a> {
        let Node { line, column, .. } = self.source.document.node(number);
        Spot { source: self.source, number, line: *line, column: *column, path }
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

    /// The text as written, references unfilled; `None` for lists and maps.
    pub fn written(&self) -> Option<&'a str> {
        match self.kind() {
            Kind::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    fn report(&self, message: impl Into<String>, hint: impl Into<String>) -> Problem {
        let Spot { line, column, ref path, .. } = *self;
        let file = self.source.path.clone();
        Problem { file, line, column, path: path.clone(), message: message.into(), hint: hint.into() }
    }

    pub fn problem(&self, sink: &mut Sink, message: impl Into<String>, hint: impl Into<String>) {
        sink.problem(self.report(message, hint));
    }

    pub fn warning(&self, sink: &mut Sink, message: impl Into<String>, hint: impl Into<String>) {
        sink.warning(self.report(message, hint));
    }

    /// `FILE:LINE`, for a message about another place.
    pub fn place(&self) -> String {
        format!("{}:{}", self.source.path.display(), self.line)
    }

    /// The items of a list, which must not be empty places.
    pub fn items(&self, sink: &mut Sink) -> Option<Vec<Spot<'a>>> {
        let Kind::List(numbers) = self.kind() else {
            self.problem(sink, "must be a list", "write the items in brackets: [a, b]");
            return None;
        };
        let item = |(index, number): (usize, &usize)| self.child(*number, format!("{}[{index}]", self.path));
        let (empty, items): (Vec<_>, Vec<_>) = numbers.iter().enumerate().map(item).partition(Spot::is_null);
        empty.iter().for_each(|item| item.problem(sink, "the item is empty", "write a value or remove the item"));
        Some(items)
    }

    /// The keys of a map whose names are the user's own: each key, its place, and the value unless it is null.
    pub fn pairs(&self, sink: &mut Sink) -> Vec<(&'a str, Spot<'a>, Option<Spot<'a>>)> {
        let Kind::Map(range) = self.kind() else {
            self.problem(sink, "must be a map", "write it as `key: value` lines");
            return Vec::new();
        };
        range.clone().map(|entry| self.pair(entry)).collect()
    }

    /// The value of one key of a map that was looked through before; `None` where it is absent or null.
    pub fn value_of(&self, key: &str) -> Option<Spot<'a>> {
        let Kind::Map(range) = self.kind() else { return None };
        let entry = range.clone().find(|entry| self.source.document.entry(*entry).key == key)?;
        self.pair(entry).2
    }

    fn pair(&self, entry: usize) -> (&'a str, Spot<'a>, Option<Spot<'a>>) {
        let entry = self.source.document.entry(entry);
        let value = self.child(entry.value, document::join(&self.path, &entry.key));
        let key = Spot { line: entry.line, column: entry.column, ..value.clone() };
        (&entry.key, key, Some(value).filter(|value| !value.is_null()))
    }

    /// The map as a unit; every key that does not belong there is a problem.
    pub fn unit<T: Keys>(&self, sink: &mut Sink) -> Option<Unit<'a, T>> {
        let Kind::Map(range) = self.kind() else {
            self.problem(sink, "must be a map", "write it as `key: value` lines");
            return None;
        };
        let known = field_names::<T>();
        let mut marks = serde_yaml::Mapping::new();
        for entry in range.clone() {
            let (key, spot, _) = self.pair(entry);
            if known.contains(&key) {
                marks.insert(key.into(), entry.into());
            } else if T::NOT_BUILT.contains(&key) {
                spot.problem(sink, format!("`{key}` is not built yet"), "remove it");
            } else if T::SECRET {
                self.problem(sink, "holds an unknown key", format!("a secret has one of {}", known.join(", ")));
            } else {
                let all = known.iter().chain(T::NOT_BUILT).copied();
                let hint = suggest(key, all, "remove it");
                spot.problem(sink, format!("unknown key `{}`", key.chars().take(80).collect::<String>()), hint);
            }
        }
        match serde_yaml::from_value(serde_yaml::Value::Mapping(marks)) {
            Ok(keys) => Some(Unit { keys, spot: self.clone() }),
            Err(error) => {
                self.problem(sink, format!("cannot be read: {error}"), "");
                None
            }
        }
    }
}

/// Where a key of a twin is: the number of its entry. `T` is the shape that its value has in the schema.
pub struct Mark<T>(usize, PhantomData<fn() -> T>);

/// A key of a twin: present (perhaps null) or not.
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

/// A serde twin: a struct of [`Field`]s named as the keys of a map.
pub trait Keys: DeserializeOwned {
    /// Keys of the contract that this version refuses by name.
    const NOT_BUILT: &'static [&'static str] = &[];
    /// An unknown key might be the secret itself, so it is not repeated.
    const SECRET: bool = false;
}

/// A map whose keys have been looked up.
#[derive(Debug)]
pub struct Unit<'a, T> {
    pub keys: T,
    pub spot: Spot<'a>,
}

impl<'a, T: Keys> Unit<'a, T> {
    /// Whether `key` is one of the twin's.
    pub fn knows(&self, key: &str) -> bool {
        field_names::<T>().contains(&key)
    }

    /// The key's value; `None` where it is absent or null.
    pub fn get<S>(&self, field: Field<S>) -> Option<Spot<'a>> {
        self.spot.pair(field?.0).2
    }

    /// The same with a problem instead of `None`.
    pub fn require<S>(&self, field: Field<S>, key: &str, hint: &str, sink: &mut Sink) -> Option<Spot<'a>> {
        let found = self.get(field);
        if found.is_none() {
            let place = field.map_or_else(|| self.at(key), |mark| self.spot.pair(mark.0).1);
            place.problem(sink, format!("`{key}` is missing"), hint);
        }
        found
    }

    /// The unit's own place under the path of a key that it lacks.
    pub fn at(&self, key: &str) -> Spot<'a> {
        Spot { path: document::join(&self.spot.path, key), ..self.spot.clone() }
    }
}

/// The field names of a twin, as its derived `Deserialize` lists them.
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
    fn a_twin_tells_its_keys_and_every_bad_key_is_reported() {
        assert_eq!(field_names::<Pet>(), ["name", "legs"]);
        let mut sink = Sink::default();
        let text = "pet:\n  nmae: a\n  wings: 2\n  legs:\n  colour: red\n";
        let source = Source::parse(text, Path::new("a.yaml"), &mut sink).unwrap();
        let pet = source.root().unwrap().pairs(&mut sink).remove(0).2.unwrap();
        let unit = pet.unit::<Pet>(&mut sink).unwrap();
        assert!(unit.keys.name.is_none() && unit.keys.legs.is_some() && unit.get(unit.keys.legs).is_none());
        unit.require(unit.keys.legs, "legs", "count them", &mut sink);
        unit.require(unit.keys.name, "name", "call it", &mut sink);
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
