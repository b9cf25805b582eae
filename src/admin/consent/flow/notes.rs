//! Authorizations as notes of the store: one note for each token.
//!
//! Holds: a writer that another one has overtaken reads again; a new authorization replaces the pending one.

use super::{Ended, Flow, FlowId, FlowKey, Outcome, REMEMBERED, id, same};
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::store::{Store, StoreError};

/// Writers that may be quicker.
const ROUNDS_MAX: usize = 16;

const UNREADABLE: StoreError = StoreError::Unsupported("an authorization under way is not readable");

/// The latest authorization of a token, and its version.
pub async fn latest(store: &dyn Store, key: &FlowKey) -> Result<Option<(Flow, u64)>, StoreError> {
    let Some(note) = store.note(&key.note()).await? else { return Ok(None) };
    let flow = serde_json::from_str(note.text.expose()).map_err(|_| UNREADABLE)?;
    Ok(Some((flow, note.version)))
}

/// This very authorization, unless a newer one has replaced it.
pub async fn load(store: &dyn Store, id: &FlowId) -> Result<Option<Flow>, StoreError> {
    Ok(latest(store, &id.key()).await?.map(|(flow, _)| flow).filter(|flow| flow.id == *id))
}

/// How an authorization stands at `wall`, whether or not a newer one has replaced it. `link`: its link has this digest.
pub async fn outcome(
    store: &dyn Store,
    id: &FlowId,
    link: Option<&str>,
    wall: WallTime,
) -> Result<Option<Outcome>, StoreError> {
    let Some((flow, _)) = latest(store, &id.key()).await? else { return Ok(None) };
    let last = Ended { id: flow.id.clone(), ends: flow.ends, link: flow.link.clone(), status: flow.status_at(wall) };
    let by = flow.user().filter(|_| flow.id == *id);
    let fits = |own: &Option<String>| match link {
        Some(link) => own.as_ref().is_some_and(|own| same(own, link)),
        None => true,
    };
    let mut all = flow.earlier.iter().cloned().chain([last]);
    let found = all.find(|one| one.id == *id && fits(&one.link)).zip(flow.key());
    Ok(found.map(|(Ended { status, ends, .. }, key)| Outcome { key, status, ends, by }))
}

/// In place of the version `over`, or of nothing; false: another writer was quicker.
pub async fn put(store: &dyn Store, flow: &Flow, over: Option<u64>) -> Result<bool, StoreError> {
    let text = Secret::new(serde_json::to_string(flow).map_err(|_| UNREADABLE)?);
    store.put_note(&flow.id.key().note(), text, WallTime::from_secs(flow.ends) + REMEMBERED, over).await
}

/// Keeps a new authorization, which replaces the pending one of the same token; false: that one is being exchanged.
pub async fn begin(store: &dyn Store, flow: &Flow, wall: WallTime) -> Result<bool, StoreError> {
    for _ in 0..ROUNDS_MAX {
        let (mut flow, mut over) = (flow.clone(), None);
        if let Some((before, version)) = latest(store, &flow.id.key()).await? {
            if before.is_exchanging(wall) {
                return Ok(false);
            }
            (flow.earlier, over) = (before.remembered(wall), Some(version));
        }
        if put(store, &flow, over).await? {
            return Ok(true);
        }
    }
    Err(too_many_writers())
}

/// Changes what is kept, in one step for everybody else; `None`: it is gone, or a newer one has replaced it. What `change`
/// refuses is not written.
pub async fn change<T, E>(
    store: &dyn Store,
    id: &FlowId,
    mut change: impl FnMut(&mut Flow) -> Result<T, E>,
) -> Result<Option<Result<T, E>>, StoreError> {
    for _ in 0..ROUNDS_MAX {
        let Some((mut flow, version)) = latest(store, &id.key()).await? else { return Ok(None) };
        if flow.id != *id {
            return Ok(None);
        }
        let value = match change(&mut flow) {
            Ok(value) => value,
            Err(refused) => return Ok(Some(Err(refused))),
        };
        if put(store, &flow, Some(version)).await? {
            return Ok(Some(Ok(value)));
        }
    }
    Err(too_many_writers())
}

fn too_many_writers() -> StoreError {
    StoreError::Unavailable("too many write the same authorization at once".to_owned())
}

/// The tokens for which device authorizations are kept.
pub async fn devices(store: &dyn Store) -> Result<Vec<FlowKey>, StoreError> {
    let names = store.note_names(&id::device_notes()).await?;
    Ok(names.iter().filter_map(|name| FlowKey::of_note(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, LIFE, Status};
    use super::*;
    use crate::model::connection::{Connection, ConsentFlow};
    use crate::model::token::TokenKey;
    use crate::store::MemoryStore;

    struct Room {
        store: MemoryStore,
        wall: WallTime,
        key: TokenKey,
        connection: Connection,
    }

    impl Room {
        fn new() -> Room {
            let connection = Connection::sample("crm");
            let key = TokenKey::of_connection(connection.name.clone());
            Room { store: MemoryStore::default(), wall: crate::clock::Clock::system().now().wall, key, connection }
        }

        async fn begin(&self, link: &str) -> Option<FlowId> {
            let flow_key = FlowKey::of(ConsentFlow::AuthorizationCode, &self.key);
            let id = FlowId::random(&flow_key).unwrap();
            let flow = Flow::new(id.clone(), &self.key, &self.connection, self.wall + LIFE, Kind::Code(None));
            begin(&self.store, &flow.opened_by(Some(link)), self.wall).await.unwrap().then_some(id)
        }

        async fn advance(&self, id: &FlowId, to: Status) -> Option<Result<(), Status>> {
            change(&self.store, id, |flow| flow.advance(to.clone(), self.wall)).await.unwrap()
        }

        async fn status(&self, id: &FlowId, link: Option<&str>) -> Option<Status> {
            let outcome = outcome(&self.store, id, link, self.wall).await.unwrap();
            outcome.map(|outcome| outcome.status)
        }
    }

    #[tokio::test]
    async fn a_new_authorization_replaces_the_pending_one_and_remembers_those_that_have_ended() {
        let room = Room::new();
        let first = room.begin("one").await.unwrap();
        assert_eq!(room.status(&first, Some("one")).await, Some(Status::Pending));
        assert_eq!(room.status(&first, Some("two")).await, None);
        let second = room.begin("two").await.unwrap();
        assert_eq!(room.status(&first, None).await, Some(Status::Replaced));
        assert_eq!(room.advance(&first, Status::Connected).await, None);
        assert!(load(&room.store, &first).await.unwrap().is_none());

        let exchanging = Status::Exchanging { until: (room.wall + LIFE).as_secs() };
        let claim = || room.advance(&second, exchanging.clone());
        assert_eq!(tokio::join!(claim(), claim()), (Some(Ok(())), Some(Err(exchanging.clone()))));
        assert_eq!(room.begin("three").await, None, "it is being exchanged");
        assert_eq!(room.advance(&second, Status::Connected).await, Some(Ok(())));
        let third = room.begin("three").await.unwrap();
        assert_eq!(room.status(&second, None).await, Some(Status::Connected));
        let flow = load(&room.store, &third).await.unwrap().unwrap();
        assert!(flow.was_connected_by("two") && !flow.was_connected_by("one") && !flow.was_connected_by("three"));
        for _ in 0..super::super::EARLIER_MAX {
            room.begin("more").await.unwrap();
        }
        assert_eq!((room.status(&second, None).await, room.status(&third, None).await), (None, Some(Status::Replaced)));
    }
}
