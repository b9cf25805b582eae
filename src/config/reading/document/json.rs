//! JSON into a document, with the position of each key and value.
//!
//! YAML reads most JSON, but no tabs between values, no surrogate pairs, and no colon on a line of its own.
//! Invariant: the text is valid JSON; only its escapes are checked here.

use serde::de::IgnoredAny;

use super::{Builder, Content, Document, Flaw, Limits, Mark, Open};

/// Parses a list or a map in JSON. `None` if `text` is anything else.
pub fn parse(text: &str, limits: Limits) -> Option<Result<(Document, Vec<Flaw>), Flaw>> {
    let is_json = text.trim_start().starts_with(['{', '[']) && serde_json::from_str::<IgnoredAny>(text).is_ok();
    is_json.then(|| build(text, limits))
}

fn build(text: &str, limits: Limits) -> Result<(Document, Vec<Flaw>), Flaw> {
    let (mut builder, mut cursor) = (Builder::within(limits), Cursor { rest: text, mark: (1, 1) });
    while let Some(first) = cursor.rest.chars().next() {
        let mark = cursor.mark;
        let token = cursor.advance(length(first, cursor.rest));
        match first {
            ' ' | '\t' | '\r' | '\n' | ',' | ':' => {}
            '[' => builder.start(Open { mark, anchor: 0, content: Content::List(Vec::new()) })?,
            '{' => builder.start(Open { mark, anchor: 0, content: Content::map() })?,
            ']' | '}' => builder.end(mark)?,
            '"' => {
                let text = serde_json::from_str(token).map_err(|_| {
                    let message = "is not valid JSON: half of a surrogate pair is not a character";
                    builder.flaw(mark, message, "write both halves, or the character itself")
                })?;
                builder.scalar(mark, text, false, false, 0)?;
            }
            _ => builder.scalar(mark, token.to_owned(), true, false, 0)?,
        }
    }
    Ok((builder.document, builder.flaws))
}

/// The bytes of the token at the start of `rest`.
fn length(first: char, rest: &str) -> usize {
    match first {
        '"' => {
            let mut is_escaped = true;
            let end = rest.bytes().position(|byte| {
                let is_end = byte == b'"' && !is_escaped;
                is_escaped = byte == b'\\' && !is_escaped;
                is_end
            });
            end.map_or(rest.len(), |end| end + 1)
        }
        ' ' | '\t' | '\r' | '\n' | ',' | ':' | '[' | ']' | '{' | '}' => 1,
        _ => rest.find([' ', '\t', '\r', '\n', ',', ']', '}']).unwrap_or(rest.len()),
    }
}

struct Cursor<'t> {
    rest: &'t str,
    mark: Mark,
}

impl<'t> Cursor<'t> {
    fn advance(&mut self, bytes: usize) -> &'t str {
        let (token, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        for c in token.chars() {
            self.mark = if c == '\n' { (self.mark.0 + 1, 1) } else { (self.mark.0, self.mark.1 + 1) };
        }
        token
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::Kind;
    use super::*;

    fn parse(text: &str) -> Option<Result<(Document, Vec<Flaw>), Flaw>> {
        super::parse(text, Limits::FILE)
    }

    /// The value of a node, with each scalar that is not a string as it was written.
    fn value(document: &Document, number: usize) -> Value {
        match &document.node(number).kind {
            Kind::Scalar { text, plain: false, .. } => text.as_str().into(),
            Kind::Scalar { text, .. } => serde_json::from_str(text).unwrap(),
            Kind::List(items) => items.iter().map(|item| value(document, *item)).collect(),
            Kind::Map(range) => {
                let entries = range.clone().map(|entry| document.entry(entry));
                entries.map(|entry| (entry.key.clone(), value(document, entry.value))).collect()
            }
        }
    }

    #[track_caller]
    fn check(text: &str, expected: Value) {
        let (document, flaws) = parse(text).unwrap().unwrap();
        assert_eq!((value(&document, document.root().unwrap()), flaws), (expected, vec![]), "{text}");
    }

    #[test]
    fn json_that_is_not_yaml_is_read() {
        check("{\t\"a\"\n:\n1,\r\n\t\"b\": [\ttrue ,null]}", json!({ "a": 1, "b": [true, null] }));
        check(
            r#"{"a": "\ud83d\ude00 \u00e9 \/ \"\\", "b": "{\"c\": [1]}"}"#,
            json!({ "a": "😀 é / \"\\", "b": "{\"c\": [1]}" }),
        );
        let key = "k".repeat(5000);
        check(&format!("{{\"{key}\": 1}}"), json!({ key: 1 }));
        check("{}", json!({}));
    }

    #[test]
    fn positions_and_duplicates_are_those_of_the_text() {
        let text = "{\"é\": \"\\ud83d\\ude00\", \"b\": {\"x\": 1,\n\t\"x\": 2}}";
        let (document, flaws) = parse(text).unwrap().unwrap();
        let Kind::Map(range) = &document.node(document.root().unwrap()).kind else { panic!("not a map") };
        let entries: Vec<_> = range.clone().map(|entry| document.entry(entry)).collect();
        let marks: Vec<_> =
            entries.iter().map(|entry| (entry.line, entry.column, document.node(entry.value).column)).collect();
        assert_eq!(marks, [(1, 2, 7), (1, 23, 28)]);
        let flaw = &flaws[0];
        assert_eq!((flaw.line, flaw.column, flaw.path.as_str(), flaws.len()), (2, 2, "b.x", 1));
        assert_eq!(flaw.message, "duplicate key (first on line 1)");
    }

    #[test]
    fn other_texts_are_left_to_yaml() {
        for text in ["", "a: 1", "{a: 1}", "[1,]", "{\"a\": 1} # b", "7", "\"a\"", "{\"a\": \"\t\"}", "[1"] {
            assert!(parse(text).is_none(), "{text}");
        }
        let flaw = parse(r#"{"a": {"b": "\ud83d"}}"#).unwrap().unwrap_err();
        assert_eq!((flaw.line, flaw.column, flaw.path.as_str()), (1, 13, "a.b"));
        let flaw = parse(&format!("{}{}", "[".repeat(10_000), "]".repeat(10_000))).unwrap().unwrap_err();
        assert!(flaw.message.contains("nested more than"), "{}", flaw.message);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z:,{}\\[\\]\"\\\\ \t\n\u{7f}\u{2028}é😀#-]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z\"\\\\: é😀]{0,4}", inner, 0..4)
                    .prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        #[test]
        fn json_is_read_as_its_own_parser_reads_it(expected in any_json(), is_pretty in any::<bool>()) {
            let expected = json!([expected]);
            let text = if is_pretty { serde_json::to_string_pretty(&expected).unwrap() } else { expected.to_string() };
            check(&text, expected);
        }
    }
}
