//! The documentation as text: every relative link and anchor resolves, each page has its contents list, and lines are
//! short.
//!
//! Not here: that its key tables are current (`keys`), that the paths it names exist (`paths`), that its examples,
//! commands and other tables are true (`config::examples`, `prometheus::series`).

mod keys;
mod paths;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use crate::rig::sidecar::root;

const README_LINES_MAX: usize = 200;
const COLUMNS_MAX: usize = 120;
/// Folders whose Markdown files are checked, with the folders below them.
const FOLDERS: [&str; 3] = ["docs", "benches", "config"];

/// One Markdown file, without its code blocks.
struct Page {
    /// Relative to the repository.
    path: PathBuf,
    text: String,
    /// Lines outside fenced code blocks, with their numbers.
    prose: Vec<(usize, String)>,
}

#[test]
fn every_relative_link_and_anchor_exists() {
    let pages: BTreeMap<_, _> = pages().into_iter().map(|page| (page.path.clone(), page)).collect();
    let mut dead = Vec::new();
    for page in pages.values() {
        for (number, link) in links(page).into_iter().filter(|(_, link)| is_relative(link)) {
            let (target, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let path = resolve(&page.path, target);
            let exists = root().join(&path).exists();
            let anchor_exists =
                anchor.is_empty() || pages.get(&path).is_some_and(|page| anchors(page).contains(anchor));
            if !exists || !anchor_exists {
                dead.push(format!("{}:{number}: {link}", page.path.display()));
            }
        }
    }
    assert!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
}

#[test]
fn every_page_of_the_docs_lists_its_contents() {
    for page in pages().iter().filter(|page| page.path.starts_with("docs")) {
        let sections =
            |level: &str| headings(page).filter(|line| line.starts_with(level)).map(anchor).collect::<Vec<_>>();
        let listed: Vec<_> = page
            .prose
            .iter()
            .take_while(|(_, line)| !line.starts_with("## "))
            .filter_map(|(_, line)| line.strip_prefix("- [")?.split_once("](#")?.1.strip_suffix(')'))
            .collect();
        assert_eq!(listed, sections("## "), "{}", page.path.display());
    }
}

#[test]
fn the_readme_is_short_and_lines_of_readme_and_docs_are_narrow() {
    let mut wide = Vec::new();
    for page in pages().iter().filter(|page| page.path.starts_with("docs") || page.path == Path::new("README.md")) {
        for (number, line) in page.text.lines().enumerate() {
            if line.chars().count() > COLUMNS_MAX {
                wide.push(format!("{}:{}", page.path.display(), number + 1));
            }
        }
    }
    assert!(wide.is_empty(), "wider than {COLUMNS_MAX} columns:\n{}", wide.join("\n"));
    let readme = Page::read("README.md".into());
    assert!(readme.text.lines().count() <= README_LINES_MAX, "README.md has more than {README_LINES_MAX} lines");
}

#[test]
fn anchors_follow_githubs_rule() {
    let check = |heading: &str, expected: &str| assert_eq!(anchor(heading), expected, "{heading}");
    check("## HTTP/2", "http2");
    check("## gRPC, streams and HTTP/1.0", "grpc-streams-and-http10");
    check("### `no_route`", "no_route");
    check("# For http:// URLs", "for-http-urls");
    check("## [Unreleased]", "unreleased");
    check("## What the server's errors mean", "what-the-servers-errors-mean");
    check("## A [link](b.md#c) in a heading", "a-link-in-a-heading");
}

impl Page {
    fn read(path: PathBuf) -> Page {
        let text = std::fs::read_to_string(root().join(&path)).expect("a readable file");
        let mut in_block = false;
        let prose = text.lines().enumerate().filter_map(|(number, line)| {
            let fence = line.trim_start().starts_with("```");
            in_block ^= fence;
            (!fence && !in_block).then(|| (number + 1, line.to_owned()))
        });
        let prose = prose.collect();
        Page { path, text, prose }
    }
}

/// The Markdown files of the root and of `FOLDERS`.
fn pages() -> Vec<Page> {
    let mut paths = markdown_files(Path::new(""), false);
    paths.extend(FOLDERS.iter().flat_map(|folder| markdown_files(Path::new(folder), true)));
    assert!(paths.len() >= 12, "{paths:?}");
    paths.into_iter().map(Page::read).collect()
}

fn markdown_files(folder: &Path, recursive: bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join(folder)).expect("a folder") {
        let path = folder.join(entry.expect("a readable directory entry").file_name());
        if root().join(&path).is_dir() {
            if recursive {
                found.extend(markdown_files(&path, true));
            }
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found
}

/// The targets of inline links and reference definitions, with their lines. Code spans hold no links.
fn links(page: &Page) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in &page.prose {
        if let Some((_, target)) = line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")) {
            found.push((*number, target.trim().to_owned()));
        }
        // Every other part is a code span.
        let line: String =
            line.split('`').enumerate().map(|(at, part)| if at % 2 == 0 { part } else { "code" }).collect();
        for rest in line.split("](").skip(1) {
            let (target, _) = rest.split_once(')').expect("a link ends on its line");
            found.push((*number, target.to_owned()));
        }
    }
    found
}

fn is_relative(link: &str) -> bool {
    !["http://", "https://", "mailto:"].iter().any(|scheme| link.starts_with(scheme))
}

/// The file that `target` of a link in `page` names, relative to the repository.
fn resolve(page: &Path, target: &str) -> PathBuf {
    if target.is_empty() {
        return page.to_owned();
    }
    let mut path = page.parent().map(Path::to_owned).unwrap_or_default();
    for component in Path::new(target).components() {
        match component {
            Component::ParentDir => assert!(path.pop(), "{target} leaves the repository"),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path
}

fn headings(page: &Page) -> impl Iterator<Item = &str> {
    page.prose.iter().map(|(_, line)| line.as_str()).filter(|line| {
        let marks = line.bytes().take_while(|byte| *byte == b'#').count();
        (1..=6).contains(&marks) && line[marks..].starts_with(' ')
    })
}

/// A second heading of the same text gets `-1`, a third `-2`.
fn anchors(page: &Page) -> BTreeSet<String> {
    let mut seen = BTreeMap::<String, usize>::new();
    let numbered = headings(page).map(|heading| {
        let anchor = anchor(heading);
        let before = seen.entry(anchor.clone()).or_default();
        *before += 1;
        if *before == 1 { anchor } else { format!("{anchor}-{}", *before - 1) }
    });
    numbered.collect()
}

/// GitHub's rule: the text in lower case, spaces as hyphens, punctuation dropped.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim();
    // A link contributes only its text.
    let text: String = text
        .split("](")
        .enumerate()
        .map(|(at, part)| match part.split_once(')') {
            Some((_, rest)) if at > 0 => rest,
            _ => part,
        })
        .collect();
    let kept =
        text.to_lowercase().chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c)).collect::<String>();
    kept.replace(' ', "-")
}
