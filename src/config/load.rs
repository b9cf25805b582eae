//! The files of a configuration: the main one, and every file of the directories under `include`.

use std::path::{Path, PathBuf};

use super::reading::{BYTES_MAX, Problem, Sink, Source, Spot, Unit, reference};
use super::top::TopFile;

/// More files than any directory of connections should hold.
const INCLUDED_FILES_MAX: usize = 4096;

/// The tree of one file; `None` after a problem that leaves none.
pub fn read(path: &Path, sink: &mut Sink) -> Option<Source> {
    sink.file(path);
    let problem = |sink: &mut Sink, line: usize, column: usize, message: String, hint: &str| {
        let (file, path, hint) = (path.to_owned(), String::new(), hint.to_owned());
        sink.problem(Problem { file, line, column, path, message, hint });
    };
    let bytes = match reference::read_bounded(path, BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(reason) => {
            problem(sink, 1, 1, format!("cannot be read ({reason})"), "give another path, or divide a large file");
            return None;
        }
    };
    sink.content(&bytes);
    if bytes.trim_ascii().is_empty() {
        // An editor that writes in place truncates the file first; read at that moment, it would remove every connection.
        let hint = "if it is not just being written, write `connections: []` for none, or remove it";
        problem(sink, 1, 1, "is empty".to_owned(), hint);
        return None;
    }
    match String::from_utf8(bytes) {
        Ok(text) => Source::parse(&text, path, sink),
        Err(error) => {
            let good = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned();
            let line = good.rsplit('\n').next().unwrap_or_default();
            problem(
                sink,
                good.matches('\n').count() + 1,
                line.chars().count() + 1,
                "is not UTF-8".to_owned(),
                "save it as UTF-8",
            );
            None
        }
    }
}

/// Every `*.yaml` in the directories of `include`, in the order of the list and of names.
pub fn included(top: &Unit<'_, TopFile>, sink: &mut Sink) -> Vec<Source> {
    let directories = top.get(top.keys.include).and_then(|list| list.items(sink)).unwrap_or_default();
    let mut paths: Vec<PathBuf> = Vec::new();
    for item in directories {
        let Some(directory) = item.file(sink) else { continue };
        sink.directory(&directory);
        match included_files(&directory) {
            Ok(files) => paths.extend(files),
            Err(error) => {
                let message = format!("{} cannot be read ({})", directory.display(), error.kind());
                item.problem(sink, message, "make the directory or remove it from the list");
            }
        }
        if paths.len() > INCLUDED_FILES_MAX {
            item.problem(sink, format!("more than {INCLUDED_FILES_MAX} files are included"), "put more into each file");
            return Vec::new();
        }
    }
    paths.iter().filter_map(|path| read(path, sink)).collect()
}

/// The files that a directory under `include` brings, in order; hidden ones are editors' and Kubernetes' own.
pub fn included_files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|end| end == "yaml") && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// An included file holds `connections:` alone.
pub fn included_unit<'a>(source: &'a Source, sink: &mut Sink) -> Option<Unit<'a, TopFile>> {
    let root: Spot<'a> = source.root()?;
    let unit = root.unit::<TopFile>(sink)?;
    for (key, place, _) in root.pairs(sink) {
        if key != "connections" && unit.knows(key) {
            place.problem(sink, format!("`{key}` cannot stand in an included file"), "move it to the main file");
        }
    }
    Some(unit)
}
