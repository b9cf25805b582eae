//! Enforces that the files of a folder do not import each other in a cycle, directly or indirectly.
//!
//! Not here: cycles between a file and its own folder; a parent may define types that its submodules use.

use std::collections::{BTreeMap, BTreeSet};

use super::{listed, sources, tokens};

/// Folders with an import cycle: which files, and why. Remove a folder together with its last cycle.
const CYCLES: [(&str, &[&str], &str); 2] = [
    (
        "proxy",
        &["dispatch", "downstream", "exchange", "report", "tunnel", "upgrade"],
        "the inside of a tunnel is served like a downstream connection, and an upgraded request becomes a relay",
    ),
    (
        "proxy/upstream",
        &["connections", "entry", "http2"],
        "an entry owns its connections, and each connection refers to its entry",
    ),
];

/// For each file (or folder) of a folder, its imports within the folder.
type Imports = BTreeMap<String, BTreeSet<String>>;

#[test]
fn the_files_of_a_folder_import_each_other_without_cycles() {
    let found = cycles(&sources("src"));
    let is_excused = |(folder, files): &&(String, Vec<String>)| {
        CYCLES.iter().any(|(excused, members, _)| excused == folder && members.iter().eq(files))
    };
    let (excused, new): (Vec<_>, Vec<_>) = found.iter().partition(is_excused);
    let hint = |(folder, files): &(String, Vec<String>)| {
        format!(
            "src/{folder}: {} import each other in a cycle; move what they share to a separate file",
            files.join(", ")
        )
    };
    let problems: Vec<_> = new.into_iter().map(hint).collect();
    assert!(problems.is_empty(), "{}", listed(&problems));
    assert_eq!(excused.len(), CYCLES.len(), "a folder in CYCLES no longer has a cycle; remove it from the list");
}

/// Each folder with a cycle, and the files in the cycle.
fn cycles(sources: &[(String, String)]) -> Vec<(String, Vec<String>)> {
    let modules: Vec<(Vec<&str>, &str)> = sources
        .iter()
        .map(|(file, source)| (file.trim_end_matches(".rs").split('/').collect::<Vec<_>>(), source.as_str()))
        .filter(|(module, _)| !module.contains(&"tests"))
        .collect();
    let mut folders: BTreeMap<String, Imports> = BTreeMap::new();
    for (module, source) in &modules {
        for (_, path) in tokens::paths(module, source) {
            let shared = module.iter().zip(&path).take_while(|(own, used)| own == used).count();
            let (Some(own), Some(used)) = (module.get(shared), path.get(shared)) else { continue };
            let sibling = |(other, _): &(Vec<&str>, &str)| {
                other.len() > shared && other[..shared] == module[..shared] && other[shared] == used
            };
            if shared > 0 && modules.iter().any(sibling) {
                let folder = folders.entry(module[..shared].join("/")).or_default();
                folder.entry((*own).to_owned()).or_default().insert(used.clone());
            }
        }
    }
    let cycle = |(folder, imports)| Some((folder, members(imports))).filter(|(_, members)| !members.is_empty());
    folders.into_iter().filter_map(cycle).collect()
}

/// The files that import themselves, directly or through others.
fn members(imports: Imports) -> Vec<String> {
    let reaches_itself = |start: &&String| {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&String> = imports[*start].iter().collect();
        while let Some(file) = next.pop() {
            if seen.insert(file) {
                next.extend(imports.get(file).into_iter().flatten());
            }
        }
        seen.contains(*start)
    };
    imports.keys().filter(reaches_itself).cloned().collect()
}

#[track_caller]
fn check(files: &[(&str, &str)], expected: &[(&str, &[&str])]) {
    let sources: Vec<_> = files.iter().map(|(file, source)| (file.to_string(), source.to_string())).collect();
    let found = cycles(&sources);
    let found: Vec<_> = found.iter().map(|(folder, files)| (folder.as_str(), files.as_slice())).collect();
    let expected: Vec<_> = expected
        .iter()
        .map(|(folder, files)| (*folder, files.iter().map(|file| file.to_string()).collect::<Vec<_>>()))
        .collect();
    assert_eq!(found, expected.iter().map(|(folder, files)| (*folder, files.as_slice())).collect::<Vec<_>>());
}

#[test]
fn a_cycle_of_any_length_is_found() {
    check(&[("a/x.rs", "use super::y::Y;"), ("a/y.rs", "use crate::a::x;")], &[("a", &["x", "y"])]);
    let long =
        [("a/x.rs", "use super::{y, z};"), ("a/y.rs", "use super::z::Z;"), ("a/z.rs", "fn f() { super::x::f() }")];
    check(&long, &[("a", &["x", "y", "z"])]);
    let folder = [("a/x.rs", "use super::y;"), ("a/y.rs", ""), ("a/y/deep.rs", "use crate::a::x::X;")];
    check(&folder, &[("a", &["x", "y"])]);
}

#[test]
fn acyclic_imports_are_accepted() {
    check(&[("a.rs", "use x::X;"), ("a/x.rs", "use super::{A, y::Y};"), ("a/y.rs", "use super::A;")], &[]);
    check(&[("a/x.rs", "use super::y; use crate::b::x;"), ("b/x.rs", ""), ("a/y.rs", "")], &[]);
    check(&[("a/x.rs", "use super::y;"), ("a/y/tests.rs", "use super::super::x;"), ("a/y.rs", "")], &[]);
}
