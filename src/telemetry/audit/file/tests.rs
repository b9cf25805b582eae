//! Tests of the audit file and its writer.

use std::os::unix::fs::PermissionsExt;

use super::*;

const AT: WallTime = WallTime::from_millis(1_709_210_096_007);

fn path(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("audit.jsonl")
}

/// Runs the writer on a closed queue and returns the file's content.
fn written(queue: Queue, writer: Writer) -> String {
    let path = queue.path.clone();
    queue.close();
    drop(queue);
    writer.run();
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn lines_that_do_not_fit_the_queue_are_counted_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, writer) = open_with(&path(&dir), 3).unwrap();
    for number in 0..10 {
        queue.push(AT, format!("{number}\n"));
    }
    let lost = "{\"time\":\"2024-02-29T12:34:56.007Z\",\"event\":\"lost\",\"count\":7}\n";
    assert_eq!(written(queue, writer), format!("0\n1\n2\n{lost}"));
}

#[test]
fn the_file_is_private_and_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    for expected in ["a\n", "a\na\n"] {
        let (queue, writer) = open(&path(&dir)).unwrap();
        queue.push(AT, "a\n".to_owned());
        assert_eq!(written(queue, writer), expected);
    }
    assert_eq!(std::fs::metadata(path(&dir)).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn links_pipes_and_directories_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (name, target) in [("dangling", "nowhere"), ("link", "there")] {
        std::os::unix::fs::symlink(at(target), at(name)).unwrap();
    }
    std::fs::write(at("there"), "").unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for (name, why) in [("dangling", "a symbolic link"), ("link", "a symbolic link"), ("pipe", "not a regular file")] {
        assert_eq!(check_can_open(&at(name)).unwrap_err().to_string(), why, "{name}");
        assert_eq!(open(&at(name)).unwrap_err().to_string(), why, "{name}");
    }
    assert!(check_can_open(dir.path()).is_err() && check_can_open(&at("none/audit")).is_err());
    assert!(check_can_open(&at("new")).is_ok() && !at("new").exists(), "the check creates nothing");
}

#[test]
fn a_line_is_never_split_across_two_files() {
    let dir = tempfile::tempdir().unwrap();
    let (_queue, mut writer) = open(&path(&dir)).unwrap();
    // As if the disk had become full in the middle of the second line.
    writer.batch = b"one\ntwo\nthree\n".to_vec();
    writer.written_bytes = 6;
    std::fs::rename(path(&dir), dir.path().join("old")).unwrap();
    writer.try_write().unwrap();
    assert_eq!(std::fs::read_to_string(path(&dir)).unwrap(), "two\nthree\n");
    // In the same file, writing resumes where it stopped.
    writer.batch = b"four\n".to_vec();
    writer.written_bytes = 2;
    writer.try_write().unwrap();
    assert_eq!(std::fs::read_to_string(path(&dir)).unwrap(), "two\nthree\nur\n");
}

#[test]
fn the_writer_ends_on_a_full_disk_once_the_queue_is_closed() {
    let (queue, writer) = open(Path::new("/dev/full")).unwrap();
    (0..1000).for_each(|_| queue.push(AT, "a\n".to_owned()));
    let started = Instant::now();
    let thread = std::thread::Builder::new().spawn(move || writer.run()).unwrap();
    queue.set_writer(thread.thread());
    queue.close();
    drop(queue);
    thread.join().unwrap();
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
}
