//! Tests of damaged files: a file is refused, a record is reported as damaged, or it reads as written, never as a different
//! value.

use super::*;

const RECORDS: usize = 300;

/// Opens a store whose file holds `bytes` and counts intact, damaged and absent records. `None`: the file is refused.
async fn count_records(path: &Path, bytes: &[u8]) -> Option<(usize, usize, usize)> {
    std::fs::write(path, bytes).unwrap();
    let store = match open_at(path, ring(1, &[])) {
        Ok(store) => store,
        Err(error) => {
            assert!(error.to_string().contains("tokens.redb"), "{error}");
            assert!(std::fs::read(path).unwrap() == bytes, "a refused file is left unchanged");
            return None;
        }
    };
    let (mut intact, mut damaged, mut absent) = (0, 0, 0);
    for number in 0..RECORDS {
        match store.load(&key("crm", &number.to_string())).await {
            Ok(Some(found)) => {
                assert_eq!(found.access_token.expose(), format!("access-{number}"));
                assert_eq!(found.refresh, token(&number.to_string()).refresh);
                intact += 1;
            }
            Ok(None) => absent += 1,
            Err(_) => damaged += 1,
        }
    }
    // Neither operation stops the store's thread.
    let _ = store.list(&name("crm"), None, RECORDS).await;
    let _ = save(&store, &key("crm", "more"), token("more")).await;
    let ended = store.load(&key("crm", "0")).await;
    assert!(!matches!(&ended, Err(StoreError::Unavailable(why)) if why.contains(queue::ENDED)), "{ended:?}");
    Some((intact, damaged, absent))
}

fn filled() -> (TempDir, PathBuf, Vec<u8>) {
    let (dir, path, store) = store();
    let tokens: Vec<_> = (0..RECORDS).map(|n| (key("crm", &n.to_string()), token(&n.to_string()))).collect();
    store.fill(&tokens).unwrap();
    drop(store);
    let bytes = std::fs::read(&path).unwrap();
    (dir, path, bytes)
}

#[tokio::test]
async fn flipped_bytes_are_detected() {
    let (_dir, path, good) = filled();
    // Offsets of pages in use.
    let used: Vec<usize> = (0..good.len()).filter(|at| good[*at] != 0).collect();
    let mut random = fastrand::Rng::with_seed(7);
    let (mut refused, mut harmed, mut whole) = (0, 0, 0);
    for _ in 0..200 {
        let mut bytes = good.clone();
        bytes[used[random.usize(..used.len())]] ^= random.u8(1..);
        match count_records(&path, &bytes).await {
            None => refused += 1,
            Some((RECORDS, ..)) => whole += 1,
            Some((intact, ..)) => {
                assert!(intact > 0, "the other records are read");
                harmed += 1;
            }
        }
    }
    assert!(harmed > 20 && whole > 0, "{refused} refused, {harmed} harmed, {whole} whole");
}

#[tokio::test]
async fn zeroed_pages_are_detected() {
    let (_dir, path, good) = filled();
    let used: Vec<usize> =
        (0..good.len() / 4096).filter(|page| good[page * 4096..][..4096].iter().any(|b| *b != 0)).collect();
    let mut harmed = 0;
    for page in &used {
        let mut bytes = good.clone();
        bytes[page * 4096..][..4096].fill(0);
        harmed += usize::from(!matches!(count_records(&path, &bytes).await, Some((RECORDS, ..))));
    }
    assert!(harmed > 0 && used.len() > 10, "{harmed} of {}", used.len());
}

#[tokio::test]
async fn an_incomplete_or_foreign_file_is_refused() {
    let (_dir, path, good) = filled();
    for length in [1, 8, 9, 100, 320, 4095, 4096, 8192, good.len() / 2, good.len() - 4096, good.len() - 1] {
        assert_eq!(count_records(&path, &good[..length]).await, None, "{length} bytes");
    }
    assert_eq!(count_records(&path, &b"not a database at all\n".repeat(400)).await, None);
    assert_eq!(count_records(&path, &vec![0; good.len()]).await, None);
    assert_eq!(count_records(&path, b"").await, Some((0, 0, RECORDS)), "an empty file is a new store");
    let behind = [&good[..], &[0xa5; 5000]].concat();
    assert_ne!(count_records(&path, &behind).await.map_or(RECORDS, |(intact, ..)| intact), 0);
    assert_eq!(count_records(&path, &good).await, Some((RECORDS, 0, 0)));
}

#[tokio::test]
async fn a_record_moved_to_another_name_does_not_open() {
    let (_dir, _path, store) = store();
    store.fill(&[(key("crm", "a"), token("a")), (key("crm", "b"), token("b"))]).unwrap();
    store
        .write_blocking(|tx| {
            let mut table = tx.open_table(TOKENS)?;
            let (a, b) = (record::name_of(&key("crm", "a")), record::name_of(&key("crm", "b")));
            let sealed = table.get(a.as_slice())?.unwrap().value().to_vec();
            table.insert(b.as_slice(), sealed.as_slice())?;
            Ok(())
        })
        .unwrap();
    assert!(store.load(&key("crm", "a")).await.unwrap().is_some());
    assert!(matches!(store.load(&key("crm", "b")).await, Err(StoreError::Damaged { .. })));
    let listed = store.list(&name("crm"), None, 10).await.unwrap();
    assert_eq!(listed.iter().map(|(_, token)| token.is_ok()).collect::<Vec<_>>(), [true, false]);
    save(&store, &key("crm", "b"), token("b")).await.unwrap();
    assert!(store.load(&key("crm", "b")).await.unwrap().is_some(), "a new token replaces it");
}
