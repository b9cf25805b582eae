//! Changes of definitions over the API: read the store anew, plan, load files and definitions, write, put in force.
//!
//! Invariants: what is written has passed the validator together with the files and all other definitions; the write is
//! a compare-and-set of the catalog, and a change that loses to another replica starts over; a refused change writes
//! nothing.
//! Not here: what a change does to the definitions (`plan`), the text of a changed definition (`config::edit`), the write (`store::definitions`).

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Differences, Outcome, Reloader};
use crate::admin::{Change, ChangeRequest, Changed, NotChanged};
use crate::config::{self, Loaded, StoredDefinition};
use crate::model::connection::DefinedIn;
use crate::model::{Name, StoreKind};
use crate::store::{Catalog, StoreError};
use crate::telemetry::events::Event;
use plan::Plan;
pub use plan::{in_force, stored};

/// Attempts to change a catalog that other replicas keep replacing.
const CHANGE_ATTEMPTS: usize = 5;
/// Bound of all definitions in a store, which every change validates.
const TOTAL_BYTES_MAX: usize = 64 << 20;

impl Reloader {
    /// Makes a change and replies.
    pub(super) async fn change(&mut self, request: ChangeRequest) {
        // A client that has stopped waiting may have read that nothing changed.
        if request.reply.is_closed() {
            return;
        }
        let outcome = self.try_change(&request).await;
        if let Err(error) = &outcome {
            let names = request.change.names().len();
            tracing::info!(
                user = request.by.user.as_ref().map(Name::as_str),
                names,
                reason = error.word(),
                "definitions not changed"
            );
        }
        // The client may have disconnected.
        let _ = request.reply.send(outcome);
    }

    async fn try_change(&mut self, request: &ChangeRequest) -> Result<Changed, NotChanged> {
        if !request.change.keeps_nothing() {
            self.check_writable(&request.change)?;
        }
        for _ in 0..CHANGE_ATTEMPTS {
            self.definitions.update(&**self.wiring.parts.cache.store()).await.map_err(NotChanged::Store)?;
            let (plan, loaded) = self.plan(&request.change).await?;
            let changed = plan.changed(&request.change, &self.definitions.catalog, &loaded);
            if request.dry_run || plan.changes_nothing() {
                return Ok(changed);
            }
            let store = self.wiring.parts.cache.store().clone();
            let written = store.change_definitions(&self.definitions.catalog, plan.catalog_change()).await;
            let catalog = match written {
                Ok(Some(catalog)) => catalog,
                Ok(None) => continue,
                Err(StoreError::Unsupported(why)) => return Err(NotChanged::TooLarge(why)),
                Err(error) => self.after_error(&plan, error).await?,
            };
            self.definitions.replace(catalog, plan.catalog_change());
            self.put_in_force(request, loaded, (&changed, &plan.audited_fields()))?;
            return Ok(changed);
        }
        Err(NotChanged::Contended)
    }

    /// The catalog in force if the change was made although the store reported an error, such as a lost response.
    async fn after_error(&self, plan: &Plan, error: StoreError) -> Result<Catalog, NotChanged> {
        match self.wiring.parts.cache.store().catalog().await {
            Ok(catalog) if plan.is_in(&catalog) => Ok(catalog),
            Ok(_) => Err(NotChanged::Store(error)),
            Err(_) => Err(NotChanged::Unclear(error)),
        }
    }

    /// Refuses names that a file defines, and every change if editing is off or the store keeps no definitions.
    fn check_writable(&self, change: &Change) -> Result<(), NotChanged> {
        let access = self.wiring.parts.access.current();
        if !access.editing {
            return Err(NotChanged::ReadOnly { name: None, path: "admin.editing".to_owned() });
        }
        let snapshot = self.wiring.snapshot.load();
        let files: BTreeMap<&Name, &DefinedIn> = snapshot
            .connections
            .iter()
            .map(|bound| (&bound.connection.name, &bound.connection.written.defined_in))
            .collect();
        for name in change.names() {
            // A stored definition that a file has shadowed may be removed.
            let removes =
                matches!(change, Change::Remove { .. }) && self.definitions.catalog.entries.contains_key(name);
            if let (Some(DefinedIn::File(path)), false) = (files.get(name), removes) {
                return Err(NotChanged::ReadOnly { name: Some(name.clone()), path: path.display().to_string() });
            }
        }
        match self.fixed.store.kind {
            StoreKind::Memory => Err(NotChanged::NotKept),
            StoreKind::Embedded { .. } | StoreKind::Redis(_) => Ok(()),
        }
    }

    /// Plans a change and loads the configuration that it leads to.
    async fn plan(&mut self, change: &Arc<Change>) -> Result<(Plan, Loaded), NotChanged> {
        let (path, vault, editor, change) =
            (self.path.clone(), self.vault.clone(), self.editor.clone(), change.clone());
        let (present, in_force) = (self.definitions.clone(), in_force(&self.wiring.snapshot.load()));
        self.watch.record_stamps();
        let planned = self.wiring.parts.tasks.blocking(move || {
            let plan = Plan::new(&change, &present, &editor)?;
            let load = |stored: &[StoredDefinition]| {
                let files = |problems: config::Problems| NotChanged::Files(problems.problems);
                config::load(&path, vault.clone(), stored).map_err(files)
            };
            let after = plan.after(&present, &in_force);
            let bytes = |definition: &StoredDefinition| definition.text.as_ref().map_or(0, |text| text.expose().len());
            if after.iter().map(bytes).sum::<usize>() > TOTAL_BYTES_MAX {
                return Err(NotChanged::TooLarge("the definitions in a store have at most 64 MiB together"));
            }
            let loaded = load(&after)?;
            plan.check(&loaded, || load(&stored(&present, &in_force)))?;
            Ok((plan, loaded))
        });
        planned.await.unwrap_or_else(|| {
            Err(NotChanged::Failed("checking the change panicked; this is a bug, please report it".to_owned()))
        })
    }

    fn put_in_force(
        &mut self,
        request: &ChangeRequest,
        loaded: Loaded,
        (changed, fields): (&Changed, &[String]),
    ) -> Result<(), NotChanged> {
        let (differences, restart_required) = match self.apply(loaded) {
            Outcome::Applied { differences, restart_required } => (differences, restart_required),
            Outcome::Unchanged => (Differences::default(), Vec::new()),
            // `apply` does not validate, so it returns no `Refused`.
            Outcome::Refused(problems) => return Err(NotChanged::Files(problems.problems)),
            Outcome::Failed(error) => return Err(NotChanged::Failed(error.to_string())),
        };
        let user = request.by.user.as_ref().map(Name::as_str);
        let [created, edited, removed] = [&changed.created, &changed.changed, &changed.removed].map(Vec::len);
        tracing::info!(user, created, changed = edited, removed, "definitions changed");
        let parts = &self.wiring.parts;
        parts.events.publish(parts.clock.now().wall, Event::ConfigurationReloaded { restart_required });
        self.record_change(&request.by, (changed, fields), differences);
        Ok(())
    }
}
