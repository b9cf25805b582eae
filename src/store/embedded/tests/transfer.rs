//! Tests of export, import and reseal, and that no file shows a secret.

use super::*;
use crate::store::transfer::{Tally, TransferError, export, import, reseal};

fn no_progress(_: u64, _: u64) {}

/// A store with 600 subjects and a secret, sealed under key 1.
async fn filled() -> (TempDir, PathBuf, EmbeddedStore) {
    let (dir, path, store) = store();
    let tokens: Vec<_> = (0..600).map(|n| (key("crm", &n.to_string()), token(&n.to_string()))).collect();
    store.fill(&tokens).unwrap();
    store.put_secret("vault", Secret::new("canary-secret")).await.unwrap();
    (dir, path, store)
}

async fn assert_holds_all(store: &EmbeddedStore) {
    for number in 0..600 {
        let found = store.load(&key("crm", &number.to_string())).await.unwrap().unwrap();
        assert_eq!(found.access_token.expose(), format!("access-{number}"));
    }
    assert_eq!(store.secret("vault").await, Ok(Some(Secret::new("canary-secret"))));
}

#[tokio::test]
async fn an_export_is_imported_under_another_first_key() {
    let (dir, _path, store) = filled().await;
    let file = dir.path().join("export");
    let mut seen = Vec::new();
    assert_eq!(export(&store, &file, &mut |done, total| seen.push((done, total))).unwrap(), 601);
    assert_eq!(seen, [(256, 601), (512, 601), (601, 601)]);
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file is left");
    let other = dir.path().join("other.redb");
    let unopened = open_at(&other, ring(3, &[])).unwrap();
    assert!(matches!(import(&unopened, &file, false, &mut no_progress), Err(TransferError::WrongKey { .. })));
    assert!(unopened.secret_names().await.unwrap().is_empty());
    drop(unopened);
    std::fs::remove_file(&other).unwrap();
    let imported = open_at(&other, ring(2, &[1])).unwrap();
    let all = Tally { written: 601, ..Tally::default() };
    assert_eq!(import(&imported, &file, false, &mut no_progress).unwrap(), all);
    assert_eq!(import(&imported, &file, false, &mut no_progress).unwrap(), Tally { kept: 601, ..Tally::default() });
    drop(imported);
    assert_holds_all(&open_at(&other, ring(2, &[])).unwrap()).await;
}

#[tokio::test]
async fn an_import_keeps_a_newer_record_unless_overwrite_is_set() {
    let (dir, _path, store) = filled().await;
    let (early, late) = (dir.path().join("early"), dir.path().join("late"));
    export(&store, &early, &mut no_progress).unwrap();
    save(&store, &key("crm", "7"), token("later")).await.unwrap();
    export(&store, &late, &mut no_progress).unwrap();
    let held = async |store: &EmbeddedStore| store.load(&key("crm", "7")).await.unwrap().unwrap().access_token;
    let later = token("later").access_token;
    assert_eq!(import(&store, &early, false, &mut no_progress).unwrap().written, 0);
    assert_eq!(held(&store).await, later);
    assert_eq!(import(&store, &early, true, &mut no_progress).unwrap().written, 601);
    assert_eq!(held(&store).await, token("7").access_token);
    assert_eq!(import(&store, &late, false, &mut no_progress).unwrap(), Tally { written: 1, kept: 600, unopened: 0 });
    assert_eq!(held(&store).await, later);
}

#[tokio::test]
async fn an_incomplete_export_is_refused_before_anything_is_written() {
    let (dir, _path, store) = filled().await;
    let (file, bad) = (dir.path().join("export"), dir.path().join("bad"));
    export(&store, &file, &mut no_progress).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let empty = open_at(&dir.path().join("other.redb"), ring(1, &[])).unwrap();
    let without = |from: usize, to: usize| [&lines[..from], &lines[to..]].concat().join("\n") + "\n";
    for (what, text) in [
        ("cut in a line", text[..text.len() - 10].to_owned()),
        ("cut between lines", without(500, 601)),
        ("one record left out", without(5, 6)),
        ("no header", without(0, 1)),
        ("empty", String::new()),
        ("not JSON", "nothing\n".to_owned()),
        ("newer", text.replacen("\"keybearer_store\":1", "\"keybearer_store\":2", 1)),
        ("an unknown table", text.replacen("\"tokens\"", "\"meta\"", 1)),
    ] {
        std::fs::write(&bad, text).unwrap();
        assert!(import(&empty, &bad, true, &mut no_progress).is_err(), "{what}");
        assert!(empty.list(&name("crm"), None, 1).await.unwrap().is_empty(), "{what}");
    }
    // A record moved to another name does not open.
    let moved =
        text.replacen(lines[2].split("\"record\"").nth(1).unwrap(), lines[3].split("\"record\"").nth(1).unwrap(), 1);
    std::fs::write(&bad, moved).unwrap();
    let Err(TransferError::Unopened(done)) = import(&empty, &bad, false, &mut no_progress) else {
        panic!("the import succeeded")
    };
    assert_eq!(done, Tally { written: 600, kept: 0, unopened: 1 });
}

#[tokio::test]
async fn after_a_reseal_the_old_key_is_not_needed() {
    let (_dir, path, store) = filled().await;
    drop(store);
    let store = open_at(&path, ring(2, &[1])).unwrap();
    save(&store, &key("crm", "7"), token("7")).await.unwrap();
    let mut seen = Vec::new();
    let done = reseal(&store, &mut |done, total| seen.push((done, total))).unwrap();
    assert_eq!(done, Tally { written: 600, kept: 1, unopened: 0 });
    assert_eq!(seen, [(256, 601), (512, 601), (600, 601), (601, 601)]);
    drop(store);
    assert!(matches!(open_at(&path, ring(1, &[])), Err(OpenError::WrongKey { .. })));
    assert_holds_all(&open_at(&path, ring(2, &[])).unwrap()).await;
}

#[tokio::test]
async fn no_file_shows_a_secret() {
    let (dir, _path, store) = filled().await;
    export(&store, &dir.path().join("state/export"), &mut no_progress).unwrap();
    // Control: the same search finds a canary in plaintext.
    std::fs::write(dir.path().join("state/control"), b"\0\x01access-7\xff").unwrap();
    let mut found = Vec::new();
    for file in std::fs::read_dir(dir.path().join("state")).unwrap() {
        let file = file.unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        let decoded = String::from_utf8_lossy(&bytes)
            .split(|c: char| !(c.is_ascii_alphanumeric() || "+/=".contains(c)))
            .filter_map(|part| base64::Engine::decode(&base64::prelude::BASE64_STANDARD, part).ok())
            .flatten()
            .collect::<Vec<_>>();
        for text in ["access-7", "refresh-7", "canary-secret", "https://as.test/token"] {
            let clear = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text.as_bytes());
            if clear(&bytes) || clear(&decoded) {
                found.push((file.file_name().into_string().unwrap(), text));
            }
        }
    }
    assert_eq!(found, [("control".to_owned(), "access-7")]);
}
