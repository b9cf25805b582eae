//! Tests of the sweep.

use super::*;

fn aged(text: &str, refresh: Refresh) -> StoredToken {
    let now = Clock::system().now();
    let age = Duration::from_secs(120);
    let obtained = crate::clock::Now { boot: now.boot - age, wall: now.wall - age };
    StoredToken { obtained, refresh, ..token(text) }
}

async fn swept(store: &EmbeddedStore) -> usize {
    let (mut after, mut removed) = (None, 0);
    loop {
        let (last, of_page) = store.sweep_page(after).await.unwrap();
        removed += of_page;
        match last {
            Some(last) => after = Some(last),
            None => return removed,
        }
    }
}

#[tokio::test]
async fn a_sweep_removes_expired_access_tokens_and_nothing_else() {
    let (_dir, _path, store) = store();
    let mut all: Vec<_> = (0..600).map(|n| (key("crm", &n.to_string()), aged("old", Refresh::None))).collect();
    let forecast = crate::store::RefreshLife {
        since: Some(crate::model::time::WallTime::from_secs(1_000_000)),
        stated: Some(Duration::from_secs(1)),
    };
    let refreshable = StoredToken { refresh_life: forecast, ..aged("refreshable", token("x").refresh) };
    let refused = aged("refused", Refresh::Refused { error: "invalid_grant".to_owned() });
    let lasting = StoredToken { refresh: Refresh::None, ..token("lasting") };
    let kept = [("refreshable", refreshable), ("refused", refused), ("lasting", lasting)];
    all.extend(kept.map(|(subject, token)| (key("erp", subject), token)));
    store.fill(&all).unwrap();
    assert_eq!(swept(&store).await, 600);
    assert!(store.list(&name("crm"), None, 10).await.unwrap().is_empty());
    let left = store.list(&name("erp"), None, 10).await.unwrap();
    let left: Vec<_> = left.into_iter().map(|(_, record)| record.unwrap().access_token).collect();
    assert_eq!(left, ["lasting", "refreshable", "refused"].map(|text| token(text).access_token));
    assert_eq!(swept(&store).await, 0);
}

#[tokio::test]
async fn a_token_is_disposable_only_when_expired_on_both_clocks() {
    let now = Clock::system().now();
    let token = StoredToken { refresh: Refresh::None, obtained: now, ..token("t") };
    let end = now.plus(token.lifetime);
    assert!(token.is_disposable(end));
    assert!(!token.is_disposable(crate::clock::Now { boot: now.boot, ..end }));
    assert!(!token.is_disposable(crate::clock::Now { wall: now.wall, ..end }));
}
