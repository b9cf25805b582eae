//! Reads the files of a configuration: the main file, and every file of the directories under `include`.

use std::path::{Path, PathBuf};

use super::reading::{Limits, NodeRef, Problem, Section, Sink, Source, reference};
use super::top::TopFile;

/// Far more files than a sensible configuration includes.
const INCLUDED_FILES_MAX: usize = 4096;

/// Reads and parses one file; `None` if there is no tree, after a problem.
pub fn read(path: &Path, sink: &mut Sink) -> Option<Source> {
    read_within(Limits::FILE, path, sink)
}

/// As [`read`], with other limits.
pub fn read_within(limits: Limits, path: &Path, sink: &mut Sink) -> Option<Source> {
    sink.file(path);
    let problem = |sink: &mut Sink, line: usize, column: usize, message: String, hint: &str| {
        let (file, path, hint) = (path.to_owned(), String::new(), hint.to_owned());
        sink.problem(Problem { file, line, column, path, code: None, message, hint });
    };
    let bytes = match reference::read_bounded(path, limits.bytes) {
        Ok(bytes) => bytes,
        Err(reason) => {
            problem(
                sink,
                1,
                1,
                format!("cannot be read ({reason})"),
                "correct the path, or split a file that is too large",
            );
            return None;
        }
    };
    sink.content(&bytes);
    if bytes.trim_ascii().is_empty() {
        // An editor that writes in place truncates the file first. Reading it at that moment would remove every
        // connection.
        let hint = "write `connections: []` for none, or remove the file, unless an editor is still saving it";
        problem(sink, 1, 1, "is empty".to_owned(), hint);
        return None;
    }
    match String::from_utf8(bytes) {
        Ok(text) => Source::parse_within(limits, &text, path, sink),
        Err(error) => {
            let valid = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned();
            let line = valid.rsplit('\n').next().unwrap_or_default();
            problem(
                sink,
                valid.matches('\n').count() + 1,
                line.chars().count() + 1,
                "is not UTF-8".to_owned(),
                "save it as UTF-8",
            );
            None
        }
    }
}

/// Reads every `*.yaml` in the directories under `include`, in list order, then by file name.
pub fn included(top: &Section<'_, TopFile>, sink: &mut Sink) -> Vec<Source> {
    let directories = top.get(top.keys.include).and_then(|list| list.items(sink)).unwrap_or_default();
    let mut paths: Vec<PathBuf> = Vec::new();
    for item in directories {
        let Some(directory) = item.file(sink) else { continue };
        sink.directory(&directory);
        match included_files(&directory) {
            Ok(files) => paths.extend(files),
            Err(error) => {
                let message = format!("{} cannot be read ({})", directory.display(), error.kind());
                item.problem(sink, message, "create the directory, or remove it from the list");
            }
        }
        if paths.len() > INCLUDED_FILES_MAX {
            item.problem(
                sink,
                format!("more than {INCLUDED_FILES_MAX} files are included"),
                "put more connections into each file",
            );
            return Vec::new();
        }
    }
    paths.iter().filter_map(|path| read(path, sink)).collect()
}

/// The `*.yaml` files of a directory under `include`, sorted; skips hidden ones, which belong to editors and
/// Kubernetes.
pub fn included_files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "yaml") && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Looks up the keys of an included file, which may contain `connections:` only.
pub fn included_section<'a>(source: &'a Source, sink: &mut Sink) -> Option<Section<'a, TopFile>> {
    let root: NodeRef<'a> = source.root()?;
    let section = root.section::<TopFile>(sink)?;
    for (key, key_node, _) in root.pairs(sink) {
        if key != "connections" && section.knows(key) {
            key_node.problem(sink, format!("`{key}` is not allowed in an included file"), "move it to the main file");
        }
    }
    Some(section)
}
