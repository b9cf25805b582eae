//! Files and folders that the papers name exist.

use std::path::PathBuf;

use crate::rig::sidecar::root;

/// Where a name that begins like this is a path of the repository.
const TREES: [&str; 6] = ["src/", "tests/", "docs/", "benches/", "config/", ".ci/"];

#[test]
fn every_path_in_the_papers_exists() {
    let mut seen = 0;
    let mut missing = Vec::new();
    for paper in papers() {
        let text = std::fs::read_to_string(&paper).expect("a paper");
        for path in paths(&text) {
            seen += 1;
            // A module may be named without its extension.
            if !root().join(path).exists() && !root().join(format!("{path}.rs")).exists() {
                missing.push(format!("{}: {path}", paper.strip_prefix(root()).expect("a paper of ours").display()));
            }
        }
    }
    assert!(missing.is_empty(), "named, but not there:\n{}", missing.join("\n"));
    assert!(seen > 40, "only {seen} paths");
}

/// The Markdown files at the root, in `benches` and in `docs`.
fn papers() -> Vec<PathBuf> {
    let folders = [root().to_owned(), root().join("benches"), root().join("docs")];
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).expect("a folder"));
    let files = entries.map(|entry| entry.expect("an entry").path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// Code spans that are paths of the repository; patterns with `*` are skipped.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    let prose = text.split("```").step_by(2);
    let spans = prose.flat_map(|part| part.split('`').skip(1).step_by(2));
    let of_ours = |span: &&str| TREES.iter().any(|tree| span.starts_with(tree));
    spans.filter(of_ours).filter(|span| !span.contains(['*', ' ', '{', '\u{2026}']))
}
