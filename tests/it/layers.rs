//! Enforces the layers: a top-level module of `src/` uses only lower layers; a test file uses `rig` and its own folder.
//! Also enforces the length of files.
//!
//! Not here: import cycles within a module (`cycles`), finding paths in the source (`tokens`). Not detected: what a
//! macro of another crate expands to. Tests (`#[cfg(test)]`, `tests.rs`) may use any module.

mod cycles;
mod tokens;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// From the lowest up. Modules of one layer never use each other.
const LAYERS: [&[&str]; 13] = [
    &["model", "sync"],
    &["clock", "telemetry", "tasks", "private_file", "gate"],
    &["tls", "router", "script", "jwt"],
    &["dial", "store", "config"],
    &["oauth"],
    &["token"],
    &["snapshot"],
    &["proxy", "admin"],
    &["reload"],
    &["app"],
    &["demo"],
    &["cli"],
    &["main", "lib"],
];

const SRC_LINES_MAX: usize = 350;
const TESTS_LINES_MAX: usize = 500;

#[test]
fn every_module_uses_only_lower_layers() {
    let mut problems = Vec::new();
    for (file, source) in sources("src") {
        problems.extend(violations(&file, &source));
    }
    assert!(problems.is_empty(), "{}", listed(&problems));
}

#[test]
fn every_file_has_a_header_and_is_short() {
    let mut problems = Vec::new();
    for (root, most) in [("src", SRC_LINES_MAX), ("tests/it", TESTS_LINES_MAX)] {
        for (file, source) in sources(root) {
            let lines = source.lines().count();
            if lines > most {
                problems.push(format!("{root}/{file}: {lines} lines, at most {most}; split it by responsibility"));
            }
            if !source.starts_with("//!") {
                problems.push(format!(
                    "{root}/{file}: has no `//!` header; describe its purpose, what is not here, its invariants"
                ));
            }
            if file.ends_with("mod.rs") {
                problems
                    .push(format!("{root}/{file}: name the file after its folder and put it next to it, not mod.rs"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", listed(&problems));
}

#[test]
fn every_test_file_uses_only_the_rig_and_its_own_folder() {
    let mut problems = Vec::new();
    for (file, source) in sources("tests/it") {
        problems.extend(foreign_topics(&file, &source));
    }
    assert!(problems.is_empty(), "{}", listed(&problems));
}

/// The paths of a test file that refer to another topic's tests.
fn foreign_topics(file: &str, source: &str) -> Vec<String> {
    let mut module: Vec<&str> = file.trim_end_matches(".rs").split('/').collect();
    let topic = module[0];
    if module == ["main"] {
        module.clear();
    }
    let foreign = |(line, path): (usize, Vec<String>)| {
        let used = path.first()?;
        let problem = || format!("tests/it/{file}:{line}: `{}`: move shared helpers to tests/it/rig", path.join("::"));
        (used != topic && used != "rig").then(problem)
    };
    tokens::paths(&module, source).into_iter().filter_map(foreign).collect()
}

#[test]
fn a_test_file_that_uses_another_topic_is_found() {
    assert_eq!(foreign_topics("fleet.rs", "use crate::rig::raw; use crate::fleet::x;"), [""; 0]);
    assert_eq!(foreign_topics("fleet/outages.rs", "use super::x; use super::super::rig::raw;"), [""; 0]);
    for source in ["use crate::store::run;", "use super::super::store;", "fn f() { crate::store::run() }"] {
        assert_eq!(foreign_topics("fleet/outages.rs", source).len(), 1, "{source}");
    }
}

fn listed(problems: &[impl fmt::Display]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// Every Rust file below `root`: its relative path, with `/`, and its text.
fn sources(root: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
    let mut folders: Vec<PathBuf> = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder can be listed") {
            let path = entry.expect("an entry can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let below = path.strip_prefix(&root).expect("a path below the root").to_str().expect("UTF-8");
                let source = fs::read_to_string(&path).expect("a source file can be read");
                found.push((below.replace('\\', "/"), source));
            }
        }
    }
    let crate_roots = ["lib.rs", "main.rs"];
    assert!(found.iter().any(|(file, _)| crate_roots.contains(&&**file)), "no crate below {}", root.display());
    found.sort();
    found
}

#[derive(Debug)]
struct Violation {
    file: String,
    line: usize,
    what: String,
    /// The used module; empty if the path names none.
    used: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file, self.line, self.what)
    }
}

/// The forbidden uses of one file.
fn violations(file: &str, source: &str) -> Vec<Violation> {
    let mut module: Vec<&str> = file.trim_end_matches(".rs").split('/').collect();
    let top_module = module[0];
    if module == ["main"] || module == ["lib"] {
        module.clear();
    }
    let violation = |line, used: &str, what| Violation { file: file.into(), line, what, used: used.into() };
    if module.last() == Some(&"tests") {
        return Vec::new();
    }
    let Some(own) = layer(top_module) else {
        return vec![violation(1, top_module, unknown(top_module))];
    };
    let mut found = Vec::new();
    for (line, path) in tokens::paths(&module, source) {
        let Some(used) = path.first().filter(|first| *first != "*") else {
            let what = "imports the whole crate, which hides the modules it uses; name them".into();
            found.push(violation(line, "", what));
            continue;
        };
        let text = path.join("::");
        match layer(used) {
            _ if used == top_module => {}
            None => found.push(violation(line, used, format!("`{text}`: {}", unknown(used)))),
            Some(theirs) if theirs >= own => {
                let what = format!(
                    "`{top_module}` (layer {own}) uses `{text}` of `{used}` (layer {theirs}), but may use lower layers only; \
                     pass the value in, or move it down"
                );
                found.push(violation(line, used, what));
            }
            Some(_) => {}
        }
    }
    found
}

fn layer(top_module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&top_module))
}

fn unknown(top_module: &str) -> String {
    format!("`{top_module}` has no layer; add a new module to LAYERS (tests/it/layers.rs) and to ARCHITECTURE.md")
}

/// Checks which modules `source`, as the file `file`, uses although it must not.
#[track_caller]
fn check(file: &str, source: &str, expected: &[&str]) {
    let found: Vec<_> = violations(file, source).into_iter().map(|violation| violation.used).collect();
    assert_eq!(found, expected, "in {file}: {source}");
}

#[test]
fn a_module_may_use_lower_layers_and_itself() {
    check("token.rs", "use crate::oauth::TokenEndpoint; use crate::model;", &[]);
    check("token/slot.rs", "use super::schedule; use super::super::clock::Now; use self::inner::X;", &[]);
    check("proxy/lane/head.rs", "fn f() { super::super::headers::strip(); crate::proxy::target::parse() }", &[]);
    check("main.rs", "use keybearer::{cli, app::App}; fn main() { keybearer::cli::run() }", &[]);
    check("lib.rs", "pub mod token; pub(crate) mod proxy; pub use self::model::Name;", &[]);
    check("model.rs", "use std::fmt; use http::Method; pub(super) struct A; pub(crate) fn f(self) {}", &[]);
}

#[test]
fn a_use_of_a_higher_layer_is_found_in_every_notation() {
    check("model.rs", "use crate::token::TokenCache;", &["token"]);
    check("model/origin.rs", "use super::super::dial::Dialer;", &["dial"]);
    check("tls.rs", "use super::{oauth, model::Name};", &["oauth"]);
    check("tls.rs", "use self::super::oauth;", &["oauth"]);
    check("tls.rs", "use crate::{model::{self, Roots}, proxy::{self, a::*}, clock as time};", &["proxy", "proxy"]);
    check("tls.rs", "fn f(x: &crate::app::App) -> Vec<crate::cli::Args> { Vec::new() }", &["app", "cli"]);
    check("tls.rs", "use ::crate::token;", &["token"]);
    check("tls.rs", "macro_rules! m { () => { $crate::token::f() } }", &["token"]);
    check("tls.rs", "#[serde(with = \"crate::reload::twin\")] struct A;", &["reload"]);
    check("tls.rs", "mod inner { use super::super::token; use super::Anchors; }", &["token"]);
    check("tls.rs", "mod inner { } use super::token;", &["token"]);
    check("tls.rs", "fn f<'a>(c: char) -> bool { c == '\"' || c == '\\'' || crate::token::x::<'a>('{') }", &["token"]);
    check("tls.rs", "pub(in crate::token) fn f() -> impl Sized + use<'_> { crate::r#proxy::f() }", &["token", "proxy"]);
}

#[test]
fn a_use_of_the_same_layer_is_found() {
    check("proxy/exchange.rs", "use crate::admin::Page;", &["admin"]);
    check("admin/api.rs", "use crate::proxy;", &["proxy"]);
    check("store/redis.rs", "use crate::dial::connect;", &["dial"]);
    check("clock.rs", "use crate::tasks::Tasks;", &["tasks"]);
}

#[test]
fn a_module_without_a_layer_is_found() {
    check("utils/strings.rs", "", &["utils"]);
    check("proxy.rs", "use crate::common::X;", &["common"]);
    check("main.rs", "use keybearer::helpers;", &["helpers"]);
    let hint = violations("utils.rs", "")[0].to_string();
    assert!(hint.contains("LAYERS") && hint.starts_with("src/utils.rs:1:"), "{hint}");
}

#[test]
fn an_import_of_the_whole_crate_is_found() {
    check("tls.rs", "use crate as all;", &[""]);
    check("tls.rs", "use super::*;", &[""]);
    check("tls/authority.rs", "use super::*; use crate::{self as all};", &[""]);
}

#[test]
fn comments_strings_and_tests_are_ignored() {
    check("tls.rs", "//! [`crate::token`]\n/* crate::token /* super::token */ crate::token */ fn f() {}", &[]);
    check("tls.rs", "const A: &str = \"see crate::token::slot\"; const B: &str = r#\"\"crate::token::x\"#;", &[]);
    check("tls.rs", "#[cfg(test)]\nmod tests {\n use crate::token::X; fn f() { if a { b } }\n}\nfn g() {}", &[]);
    check("tls.rs", "#[cfg(test)] #[allow(dead_code)] pub(crate) fn f() { crate::token::x() } fn g() {}", &[]);
    check("tls.rs", "struct A { #[cfg(test)] a: crate::token::X, b: crate::proxy::Y }", &["proxy"]);
    check("tls.rs", "#[cfg(test)] mod tests; #[cfg(test)] use crate::token::X; use crate::proxy::Y;", &["proxy"]);
    check("tls.rs", "#[cfg(not(test))] use crate::token::X;", &["token"]);
    check("token/tests.rs", "use crate::proxy;", &[]);
}

#[test]
fn a_violation_names_its_line() {
    let source = "//! Of two\n//! lines.\n\nconst A: &str = \"a\n b\";\nuse crate::{\n    model,\n    proxy,\n};\n";
    let found = violations("tls.rs", source);
    assert_eq!(found.iter().map(|violation| violation.line).collect::<Vec<_>>(), [8]);
}
