//! Flows as notes in the store: one note for each token.
//!
//! Invariants: writes are compare-and-swap, and a writer that lost the race reads again; a new flow replaces the
//! pending one.

use super::{Ended, Flow, FlowId, FlowKey, FlowSummary, OUTCOME_RETENTION, constant_time_eq, id};
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::store::{Store, StoreError};

/// Attempts of a write that loses the race against other writers.
const WRITE_ATTEMPTS_MAX: usize = 16;

const UNREADABLE: StoreError = StoreError::Unsupported("a pending authorization is not readable");

/// The latest flow of a token, and its version.
pub async fn latest(store: &dyn Store, key: &FlowKey) -> Result<Option<(Flow, u64)>, StoreError> {
    let Some(note) = store.note(&key.note()).await? else { return Ok(None) };
    let flow = serde_json::from_str(note.text.expose()).map_err(|_| UNREADABLE)?;
    Ok(Some((flow, note.version)))
}

/// The flow with this ID, unless a newer one has replaced it.
pub async fn load(store: &dyn Store, id: &FlowId) -> Result<Option<Flow>, StoreError> {
    Ok(latest(store, &id.key()).await?.map(|(flow, _)| flow).filter(|flow| flow.id == *id))
}

/// The state of a flow at `wall`, even if a newer one has replaced it. `link`: the digest that its link must have.
pub async fn summary(
    store: &dyn Store,
    id: &FlowId,
    link: Option<&str>,
    wall: WallTime,
) -> Result<Option<FlowSummary>, StoreError> {
    let Some((flow, _)) = latest(store, &id.key()).await? else { return Ok(None) };
    let last = Ended { id: flow.id.clone(), ends: flow.ends, link: flow.link.clone(), status: flow.status_at(wall) };
    let by = flow.user().filter(|_| flow.id == *id);
    let link_matches = |digest: &Option<String>| match link {
        Some(link) => digest.as_ref().is_some_and(|digest| constant_time_eq(digest, link)),
        None => true,
    };
    let mut all = flow.earlier.iter().cloned().chain([last]);
    let found = all.find(|one| one.id == *id && link_matches(&one.link)).zip(flow.key());
    Ok(found.map(|(Ended { status, ends, .. }, key)| FlowSummary { key, status, ends, by }))
}

/// Writes the flow if the note still has the version `expected`, or is absent; `false`: another writer was first.
pub async fn put(store: &dyn Store, flow: &Flow, expected: Option<u64>) -> Result<bool, StoreError> {
    let text = Secret::new(serde_json::to_string(flow).map_err(|_| UNREADABLE)?);
    store.put_note(&flow.id.key().note(), text, WallTime::from_secs(flow.ends) + OUTCOME_RETENTION, expected).await
}

/// Stores a new flow, which replaces the pending one of the same token; `false`: that one is being exchanged.
pub async fn begin(store: &dyn Store, flow: &Flow, wall: WallTime) -> Result<bool, StoreError> {
    for _ in 0..WRITE_ATTEMPTS_MAX {
        let (mut flow, mut expected) = (flow.clone(), None);
        if let Some((previous, version)) = latest(store, &flow.id.key()).await? {
            if previous.is_exchanging(wall) {
                return Ok(false);
            }
            (flow.earlier, expected) = (previous.remembered(wall), Some(version));
        }
        if put(store, &flow, expected).await? {
            return Ok(true);
        }
    }
    Err(too_many_writers())
}

/// Changes a stored flow atomically. `None`: it no longer exists, or a newer one has replaced it. If `change` fails,
/// nothing is written.
pub async fn change<T, E>(
    store: &dyn Store,
    id: &FlowId,
    mut change: impl FnMut(&mut Flow) -> Result<T, E>,
) -> Result<Option<Result<T, E>>, StoreError> {
    for _ in 0..WRITE_ATTEMPTS_MAX {
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
    StoreError::Unavailable("too many concurrent writes of the same authorization".to_owned())
}

/// The keys of all device authorizations in the store.
pub async fn devices(store: &dyn Store) -> Result<Vec<FlowKey>, StoreError> {
    let names = store.note_names(&id::device_notes()).await?;
    Ok(names.iter().filter_map(|name| FlowKey::of_note(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::{FLOW_LIFETIME, Kind, Status};
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
            let flow = Flow::new(id.clone(), &self.key, &self.connection, self.wall + FLOW_LIFETIME, Kind::Code(None));
            begin(&self.store, &flow.opened_by(Some(link)), self.wall).await.unwrap().then_some(id)
        }

        async fn advance(&self, id: &FlowId, to: Status) -> Option<Result<(), Status>> {
            change(&self.store, id, |flow| flow.advance(to.clone(), self.wall)).await.unwrap()
        }

        async fn status(&self, id: &FlowId, link: Option<&str>) -> Option<Status> {
            let summary = summary(&self.store, id, link, self.wall).await.unwrap();
            summary.map(|summary| summary.status)
        }
    }

    #[tokio::test]
    async fn a_new_flow_replaces_the_pending_one_and_remembers_the_ended_ones() {
        let room = Room::new();
        let first = room.begin("one").await.unwrap();
        assert_eq!(room.status(&first, Some("one")).await, Some(Status::Pending));
        assert_eq!(room.status(&first, Some("two")).await, None);
        let second = room.begin("two").await.unwrap();
        assert_eq!(room.status(&first, None).await, Some(Status::Replaced));
        assert_eq!(room.advance(&first, Status::Connected).await, None);
        assert!(load(&room.store, &first).await.unwrap().is_none());

        let exchanging = Status::Exchanging { until: (room.wall + FLOW_LIFETIME).as_secs() };
        let claim = || room.advance(&second, exchanging.clone());
        assert_eq!(tokio::join!(claim(), claim()), (Some(Ok(())), Some(Err(exchanging.clone()))));
        assert_eq!(room.begin("three").await, None, "the code is being exchanged");
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
