//! Accepted and rejected documents.

use std::time::Duration;

use proptest::prelude::*;

use super::limits::NODES_MAX;
use super::*;
use crate::config::tests::cpu_time;

/// The flaws as `LINE:COLUMN: PATH: MESSAGE`, the fatal one last.
fn flaws(text: &str) -> Vec<String> {
    let flaws = Document::parse(text).map_or_else(|flaw| vec![flaw], |(_, flaws)| flaws);
    flaws.iter().map(|f| format!("{}:{}: {}: {}", f.line, f.column, f.path, f.message)).collect()
}

#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let got = flaws(text);
    assert_eq!(got.len(), expected.len(), "{got:?}");
    for (got, expected) in got.iter().zip(expected) {
        assert!(got.starts_with(expected), "{got} is not {expected}");
    }
}

#[test]
fn duplicate_keys_are_flaws_with_their_position() {
    check(
        "a: 1\nb:\n  - x: 1\n    y: 2\n    x: 3\n\"a\": 4\n",
        &["5:5: b[0].x: duplicate key (first on line 3)", "6:1: a: duplicate key"],
    );
    check("a: {b: 1, 'b': 2}", &["1:11: a.b: duplicate key"]);
}

#[test]
fn only_one_document_without_tags_or_complex_keys_is_accepted() {
    check("a: 1\n---\nb: 2\n", &["2:1: : a second document"]);
    check("---\na: 1\n...\n", &[]);
    check("", &[]);
    check("a: !secret x", &["1:12: a: tags"]);
    check("a: !!str x", &["1:10: a: tags"]);
    check("? [a]\n: b", &["1:3: : a key must be a string"]);
    check("a: &x [*x]", &["1:8: a[0]: an alias refers to a value that contains it"]);
    check("a: *x", &["1:4: a: is not valid YAML"]);
    check("a: [1", &["2:1: "]);
    check("a: b: c", &["1:5: : is not valid YAML"]);
    check("a:\n\tb: c", &["2:2: "]);
}

#[test]
fn aliases_count_towards_the_limits_as_if_expanded() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..20 {
        let before = format!("*a{}, ", level - 1).repeat(9);
        bomb += &format!("a{level}: &a{level} [{before}]\n");
    }
    let start = cpu_time();
    check(&bomb, &["6:40: a5[6]: the document has more than 500000 values"]);
    let deep: String = (1..40).map(|level| format!("a{level}: &a{level} [*a{}]\n", level - 1)).collect();
    check(&format!("a0: &a0 x\n{deep}"), &["33:12: a32[0]: lists and maps are nested more than 32 deep"]);
    assert!(cpu_time() - start < Duration::from_secs(1));
}

#[test]
fn an_alias_resolves_to_the_node_of_its_anchor() {
    let (document, flaws) = Document::parse("a: &x {k: v}\nb: *x\n").unwrap();
    let Kind::Map(range) = &document.node(document.root().unwrap()).kind else { panic!("not a map") };
    let values: Vec<_> = range.clone().map(|entry| document.entry(entry).value).collect();
    assert_eq!((values[0], flaws), (values[1], vec![]));
}

#[test]
fn depth_and_size_are_bounded() {
    let start = cpu_time();
    let flow = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    check(&flow, &["1:"]);
    check(&"- ".repeat(10_000), &["1:65: [0][0]"]);
    let block: String = (0..1900).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    check(&block, &["33:33: a.a"]);
    check(&"x".repeat(BYTES_MAX + 1), &["1:1: : is larger than 4 MiB"]);
    check(&"- a\n".repeat(NODES_MAX), &["500000:3: [499999]: the document has more"]);
    check(&"[,".repeat(BYTES_MAX / 2), &["1:"]);
    check(&"a".repeat(BYTES_MAX), &[]);
    check(&"# \n".repeat(BYTES_MAX / 3), &[]);
    assert!(cpu_time() - start < Duration::from_secs(3));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn no_text_makes_the_parser_panic(text in "[-a:\\[\\]{}&*x!|>?%#'\" \n\t,.~\\\\é]{0,60}") {
        let _ = Document::parse(&text);
    }
}
