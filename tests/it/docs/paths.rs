//! Files and folders that the documentation names exist.

use super::pages;
use crate::rig::sidecar::root;

/// A code span that starts like this is a path of the repository.
const TREES: [&str; 6] = ["src/", "tests/", "docs/", "benches/", "config/", ".ci/"];

#[test]
fn every_path_in_a_code_span_exists() {
    let mut checked = 0;
    let mut missing = Vec::new();
    for page in pages() {
        for (number, path) in page.prose.iter().flat_map(|(number, line)| paths(line).map(move |path| (number, path))) {
            checked += 1;
            // A module may be named without its extension.
            if !root().join(path).exists() && !root().join(format!("{path}.rs")).exists() {
                missing.push(format!("{}:{number}: {path}", page.path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "named, but not there:\n{}", missing.join("\n"));
    assert!(checked > 40, "only {checked} paths");
}

/// The paths in a line; patterns with `*` are skipped.
fn paths(line: &str) -> impl Iterator<Item = &str> {
    let spans = line.split('`').skip(1).step_by(2);
    let of_ours = |span: &&str| TREES.iter().any(|tree| span.starts_with(tree));
    spans.filter(of_ours).filter(|span| !span.contains(['*', ' ', '{', '\u{2026}']))
}
