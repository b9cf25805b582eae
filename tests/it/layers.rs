//! Holds the layers: a room (top-level module) of `src/` uses only the floors below its own.
//!
//! Reads the source as tokens and resolves every path that starts with `crate`, `super`, `self` or, in `main.rs`,
//! `keybearer`. Not seen: what a macro of another crate expands to. Tests (`#[cfg(test)]`, `tests.rs`) may use any room.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// From the ground up. Rooms on one floor never use each other.
const FLOORS: [&[&str]; 13] = [
    &["model"],
    &["clock", "telemetry", "tasks"],
    &["tls", "router", "provider", "script"],
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

const LINES_MAX: usize = 400;

#[test]
fn every_room_uses_only_the_floors_below() {
    let mut problems = Vec::new();
    for (file, source) in sources() {
        problems.extend(violations(&file, &source));
    }
    assert!(problems.is_empty(), "{}", listed(&problems));
}

#[test]
fn every_file_says_what_it_is_and_stays_short() {
    let mut problems = Vec::new();
    for (file, source) in sources() {
        let lines = source.lines().count();
        if lines > LINES_MAX {
            problems.push(format!("src/{file}: {lines} lines, at most {LINES_MAX}; split it by what it decides"));
        }
        if !source.starts_with("//!") {
            problems.push(format!("src/{file}: opens without `//!`; say what it is, what is not here, what it holds"));
        }
        if file.ends_with("mod.rs") {
            problems.push(format!("src/{file}: a folder has a file of its own name beside it, never a mod.rs"));
        }
    }
    assert!(problems.is_empty(), "{}", listed(&problems));
}

fn listed(problems: &[impl fmt::Display]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// Every file below `src/`: its path from there, with `/`, and its text.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders: Vec<PathBuf> = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of src can be listed") {
            let path = entry.expect("an entry of src can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let below = path.strip_prefix(&root).expect("it lies below src").to_str().expect("names are text");
                let source = fs::read_to_string(&path).expect("a source file can be read");
                found.push((below.replace('\\', "/"), source));
            }
        }
    }
    assert!(found.iter().any(|(file, _)| file == "lib.rs"), "no lib.rs below {}", root.display());
    found.sort();
    found
}

#[derive(Debug)]
struct Violation {
    file: String,
    line: usize,
    what: String,
    /// The room that is used; empty where the path names no room.
    used: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file, self.line, self.what)
    }
}

/// What one file uses and may not.
fn violations(file: &str, source: &str) -> Vec<Violation> {
    let mut module: Vec<&str> = file.trim_end_matches(".rs").split('/').collect();
    let room = module[0];
    if module == ["main"] || module == ["lib"] {
        module.clear();
    }
    let violation = |line, used: &str, what| Violation { file: file.into(), line, what, used: used.into() };
    if module.last() == Some(&"tests") {
        return Vec::new();
    }
    let Some(own) = floor(room) else {
        return vec![violation(1, room, unknown(room))];
    };
    let mut found = Vec::new();
    for (line, path) in paths(&module, &without_tests(tokens(source))) {
        let Some(used) = path.first().filter(|first| *first != "*") else {
            let what = "takes the whole crate under one name, which hides the rooms it uses; name them".into();
            found.push(violation(line, "", what));
            continue;
        };
        let text = path.join("::");
        match floor(used) {
            _ if used == room => {}
            None => found.push(violation(line, used, format!("`{text}`: {}", unknown(used)))),
            Some(theirs) if theirs >= own => {
                let what = format!(
                    "`{room}` (floor {own}) uses `{text}` of `{used}` (floor {theirs}), and may use lower floors only; \
                     hand the value in, or move it down"
                );
                found.push(violation(line, used, what));
            }
            Some(_) => {}
        }
    }
    found
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

fn unknown(room: &str) -> String {
    format!("`{room}` is no room; a new one gets its floor in FLOORS (tests/it/layers.rs) and in ARCHITECTURE.md")
}

/// A word, `::`, or one sign. Comments and literals are gone, lifetimes too.
type Token = (usize, String);

fn tokens(source: &str) -> Vec<Token> {
    let text: Vec<char> = source.chars().collect();
    let at = |i: usize| text.get(i).copied().unwrap_or('\0');
    let word = |c: char| c == '_' || c.is_alphanumeric();
    let mut found: Vec<Token> = Vec::new();
    let (mut i, mut line) = (0, 1);
    while i < text.len() {
        let start = i;
        let first_line = line;
        match at(i) {
            '/' if at(i + 1) == '/' => i = end_of(&text, i, |c| c == '\n'),
            '/' if at(i + 1) == '*' => i = block_comment(&text, i),
            '"' => {
                i = quoted(&text, i, '"');
                // `#[serde(with = "crate::config::…")]` is a path all the same.
                let inside: String = text[start + 1..i.saturating_sub(1).max(start + 1)].iter().collect();
                let rooted = ["crate::", "super::", "self::"].iter().any(|root| inside.starts_with(root));
                if rooted && inside.chars().all(|c| word(c) || c == ':') {
                    found.extend(tokens(&inside).into_iter().map(|(_, token)| (first_line, token)));
                }
            }
            // A character, or the tick of a lifetime or label.
            '\'' if at(i + 1) == '\\' || at(i + 2) == '\'' => i = quoted(&text, i, '\''),
            '\'' => i = end_of(&text, i + 1, |c| !word(c)),
            c if word(c) => {
                i = end_of(&text, i, |c| !word(c));
                let hashes = text[i..].iter().take_while(|c| **c == '#').count();
                let text_of: String = text[start..i].iter().collect();
                if matches!(&*text_of, "r" | "br" | "cr") && at(i + hashes) == '"' {
                    i = raw_string(&text, i + hashes + 1, hashes);
                } else if text_of == "r" && hashes == 1 && word(at(i + 1)) {
                    i += 1; // `r#type`: the name follows
                } else {
                    found.push((line, text_of));
                }
            }
            ':' if at(i + 1) == ':' => {
                found.push((line, "::".into()));
                i += 2;
            }
            c => {
                if !c.is_whitespace() {
                    found.push((line, c.into()));
                }
                i += 1;
            }
        }
        line += text[start..i.min(text.len())].iter().filter(|c| **c == '\n').count();
    }
    found
}

fn end_of(text: &[char], from: usize, stop: impl Fn(char) -> bool) -> usize {
    text.iter().skip(from).position(|c| stop(*c)).map_or(text.len(), |length| from + length)
}

fn block_comment(text: &[char], from: usize) -> usize {
    let (mut i, mut depth) = (from, 0);
    while i < text.len() {
        match text.get(i..i + 2) {
            Some(['/', '*']) => (i, depth) = (i + 2, depth + 1),
            Some(['*', '/']) => (i, depth) = (i + 2, depth - 1),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

fn quoted(text: &[char], from: usize, quote: char) -> usize {
    let mut i = from + 1;
    while i < text.len() && text[i] != quote {
        i += if text[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(text.len())
}

fn raw_string(text: &[char], from: usize, hashes: usize) -> usize {
    let ends = |i: &usize| text[*i] == '"' && text[i + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
    (from..text.len()).find(ends).map_or(text.len(), |i| i + 1 + hashes)
}

/// Without the items, statements and fields that carry `#[cfg(test)]`.
fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let mut kept = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        if is(&tokens, i, &["#", "[", "cfg", "(", "test", ")", "]"]) {
            i = end_of_item(&tokens, i + 7);
        } else {
            kept.push(tokens[i].clone());
            i += 1;
        }
    }
    kept
}

fn is(tokens: &[Token], from: usize, expected: &[&str]) -> bool {
    expected.iter().enumerate().all(|(i, text)| tokens.get(from + i).is_some_and(|token| token.1 == *text))
}

/// Past the `;` or the closing brace of the item at `from`; at a comma or a foreign brace where it is a field or a variant.
fn end_of_item(tokens: &[Token], from: usize) -> usize {
    const ITEMS: [&str; 13] =
        ["mod", "fn", "impl", "use", "struct", "enum", "trait", "const", "static", "type", "async", "unsafe", "extern"];
    let mut item = false;
    let mut depth = 0usize;
    for (i, (_, token)) in tokens.iter().enumerate().skip(from) {
        item |= depth == 0 && ITEMS.contains(&token.as_str());
        match token.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" if depth == 0 => return i,
            "}" if depth == 1 => return i + 1,
            ")" | "]" | "}" => depth -= 1,
            ";" if depth == 0 => return i + 1,
            "," if depth == 0 && !item => return i + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// Every path of these tokens that starts at the crate, with its line, from the crate's root on.
fn paths(module: &[&str], tokens: &[Token]) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut here: Vec<String> = module.iter().map(|name| name.to_string()).collect();
    let mut inline = Vec::new(); // the depth of each `mod name {` that is open
    let (mut i, mut depth) = (0, 0usize);
    while i < tokens.len() {
        let (line, token) = &tokens[i];
        match token.as_str() {
            "mod" if is(tokens, i + 2, &["{"]) => {
                here.push(tokens[i + 1].1.clone());
                inline.push(depth);
                depth += 1;
                i += 2;
            }
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                if inline.last() == Some(&depth) {
                    inline.pop();
                    here.pop();
                }
            }
            // `impl Trait + use<'a>` imports nothing.
            "use" if !is(tokens, i + 1, &["<"]) => {
                i += 1;
                let mut trees = Vec::new();
                use_tree(tokens, &mut i, &[], &mut trees);
                found.extend(trees.into_iter().filter_map(|(line, path)| Some((line, resolve(&here, &path)?))));
                continue;
            }
            _ if is(tokens, i + 1, &["::"]) && (i == 0 || tokens[i - 1].1 != "::" || token == "keybearer") => {
                let mut path = vec![token.clone()];
                while is(tokens, i + 1, &["::"]) && tokens.get(i + 2).is_some_and(|next| is_name(&next.1)) {
                    path.push(tokens[i + 2].1.clone());
                    i += 2;
                }
                let resolved = resolve(&here, &path).filter(|path| !path.is_empty());
                found.extend(resolved.map(|path| (*line, path)));
            }
            _ => {}
        }
        i += 1;
    }
    found
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c == '_' || c.is_alphabetic())
}

/// The leaves of the `use` tree at `i`, which moves past it.
fn use_tree(tokens: &[Token], i: &mut usize, prefix: &[String], found: &mut Vec<(usize, Vec<String>)>) {
    let mut path = prefix.to_vec();
    while let Some((line, token)) = tokens.get(*i) {
        match token.as_str() {
            "::" => *i += 1,
            "{" => {
                *i += 1;
                while *i < tokens.len() && !is(tokens, *i, &["}"]) {
                    let before = *i;
                    use_tree(tokens, i, &path, found);
                    if is(tokens, *i, &[","]) || *i == before {
                        *i += 1;
                    }
                }
                *i += 1;
                return;
            }
            name => {
                path.push(name.into());
                *i += 1;
                if is(tokens, *i, &["::"]) {
                    continue;
                }
                found.push((*line, path));
                if is(tokens, *i, &["as"]) {
                    *i += 2;
                }
                return;
            }
        }
    }
}

/// From the crate's root on; `None` for a path of another crate or of a child. Empty: the root itself.
fn resolve(here: &[String], path: &[String]) -> Option<Vec<String>> {
    let mut resolved = match path.first()?.as_str() {
        "crate" => Vec::new(),
        // Only `main.rs` meets the library under its own name.
        "keybearer" if here.is_empty() => Vec::new(),
        "self" => here.to_vec(),
        "super" => here[..here.len().saturating_sub(1)].to_vec(),
        _ => return None,
    };
    for segment in &path[1..] {
        match segment.as_str() {
            "self" => {}
            "super" => drop(resolved.pop()),
            name => resolved.push(name.into()),
        }
    }
    Some(resolved)
}

/// The rooms that `source`, as the file `file`, uses and may not.
#[track_caller]
fn check(file: &str, source: &str, expected: &[&str]) {
    let found: Vec<_> = violations(file, source).into_iter().map(|violation| violation.used).collect();
    assert_eq!(found, expected, "in {file}: {source}");
}

#[test]
fn a_room_may_use_lower_floors_and_itself() {
    check("token.rs", "use crate::oauth::TokenEndpoint; use crate::model;", &[]);
    check("token/slot.rs", "use super::schedule; use super::super::clock::Now; use self::inner::X;", &[]);
    check("proxy/lane/head.rs", "fn f() { super::super::headers::strip(); crate::proxy::target::parse() }", &[]);
    check("main.rs", "use keybearer::{cli, app::App}; fn main() { keybearer::cli::run() }", &[]);
    check("lib.rs", "pub mod token; pub(crate) mod proxy; pub use self::model::Name;", &[]);
    check("model.rs", "use std::fmt; use http::Method; pub(super) struct A; pub(crate) fn f(self) {}", &[]);
}

#[test]
fn a_higher_floor_is_found_however_it_is_written() {
    check("model.rs", "use crate::token::TokenCache;", &["token"]);
    check("model/origin.rs", "use super::super::dial::Dialer;", &["dial"]);
    check("tls.rs", "use super::{oauth, model::Name};", &["oauth"]);
    check("tls.rs", "use self::super::oauth;", &["oauth"]);
    check("tls.rs", "use crate::{model::{self, Roots}, proxy::{self, a::*}, clock as time};", &["proxy", "proxy"]);
    check("tls.rs", "fn f(x: &crate::app::App) -> Vec<crate::cli::Args> { todo!() }", &["app", "cli"]);
    check("tls.rs", "use ::crate::token;", &["token"]);
    check("tls.rs", "macro_rules! m { () => { $crate::token::f() } }", &["token"]);
    check("tls.rs", "#[serde(with = \"crate::reload::twin\")] struct A;", &["reload"]);
    check("tls.rs", "mod inner { use super::super::token; use super::Anchors; }", &["token"]);
    check("tls.rs", "mod inner { } use super::token;", &["token"]);
    check("tls.rs", "fn f<'a>(c: char) -> bool { c == '\"' || c == '\\'' || crate::token::x::<'a>('{') }", &["token"]);
    check("tls.rs", "pub(in crate::token) fn f() -> impl Sized + use<'_> { crate::r#proxy::f() }", &["token", "proxy"]);
}

#[test]
fn the_same_floor_is_found() {
    check("proxy/exchange.rs", "use crate::admin::Page;", &["admin"]);
    check("admin/api.rs", "use crate::proxy;", &["proxy"]);
    check("store/redis.rs", "use crate::dial::connect;", &["dial"]);
    check("clock.rs", "use crate::tasks::Tasks;", &["tasks"]);
}

#[test]
fn a_room_without_a_floor_is_found() {
    check("utils/strings.rs", "", &["utils"]);
    check("proxy.rs", "use crate::common::X;", &["common"]);
    check("main.rs", "use keybearer::helpers;", &["helpers"]);
    let hint = violations("utils.rs", "")[0].to_string();
    assert!(hint.contains("FLOORS") && hint.starts_with("src/utils.rs:1:"), "{hint}");
}

#[test]
fn the_crate_under_one_name_is_found() {
    check("tls.rs", "use crate as house;", &[""]);
    check("tls.rs", "use super::*;", &[""]);
    check("tls/authority.rs", "use super::*; use crate::{self as house};", &[""]);
}

#[test]
fn comments_strings_and_tests_use_what_they_like() {
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
