//! Reports reloads and changes of definitions: log, events, audit.

use std::collections::HashSet;

use super::{Cause, Differences, Outcome, Parts, Reloader};
use crate::admin::Changed;
use crate::config::SetAside;
use crate::model::Name;
use crate::telemetry::audit::{Change, Person};
use crate::telemetry::events::Event;

impl Reloader {
    pub(super) fn publish_event(&self, outcome: &Outcome) {
        let event = match outcome {
            Outcome::Applied { restart_required, .. } => {
                Event::ConfigurationReloaded { restart_required: restart_required.clone() }
            }
            Outcome::Unchanged => return,
            Outcome::Refused(problems) => Event::ConfigurationRefused { problems: problems.problems.len() },
            Outcome::Failed(_) => Event::ConfigurationRefused { problems: 1 },
        };
        self.wiring.parts.events.publish(self.wiring.parts.clock.now().wall, event);
    }

    /// Records the reload in the current audit, and in the new one if it differs, so that switching audits leaves a
    /// trace.
    pub(super) fn record(&mut self, outcome: &Outcome, cause: &Cause) {
        let none = Differences::default();
        let (word, differences, keys, problems) = match outcome {
            Outcome::Applied { restart_required, differences } => ("applied", differences, &restart_required[..], None),
            Outcome::Unchanged => return,
            Outcome::Refused(problems) => ("refused", &none, &[][..], Some(problems.problems.len())),
            Outcome::Failed(_) => ("failed", &none, &[][..], None),
        };
        let (cause, person) = match cause {
            Cause::Signal => ("signal", None),
            Cause::File => ("file", None),
            Cause::Store => ("store", None),
            Cause::Person(request) => ("api", Some(&request.by)),
        };
        let change = Change { restart_required: keys, problems, ..change(word, cause, person, differences) };
        self.write(&change);
    }

    /// Records a change of definitions by a user, with the keys that differ. Of the `differences` that it has put in
    /// force, those that the user did not make came from a file or from another replica.
    pub(super) fn record_change(
        &mut self,
        by: &Person,
        (changed, fields): (&Changed, &[String]),
        mut differences: Differences,
    ) {
        let Differences { added, changed: edited, removed } = &mut differences;
        let texts = |names: &[Name]| names.iter().map(Name::to_string).collect::<Vec<_>>();
        let own = Differences {
            added: texts(&changed.created),
            changed: texts(&changed.changed),
            removed: texts(&changed.removed),
        };
        let names: HashSet<&String> = own.added.iter().chain(&own.changed).chain(&own.removed).collect();
        [added, edited, removed].into_iter().for_each(|others| others.retain(|name| !names.contains(name)));
        self.write(&Change { fields, ..change("applied", "api", Some(by), &own) });
        if [&differences.added, &differences.changed, &differences.removed].iter().any(|others| !others.is_empty()) {
            self.write(&change("applied", "store", None, &differences));
        }
    }

    fn write(&mut self, change: &Change<'_>) {
        let Parts { audit, clock, .. } = &self.wiring.parts;
        let at = clock.now().wall;
        audit.now().change(at, change);
        if self.audit.take().is_some_and(|next| audit.apply(next)) {
            // The records in memory have it once.
            audit.now().target.change(at, change);
        }
    }
}

fn change<'a>(outcome: &'a str, cause: &'a str, by: Option<&'a Person>, differences: &'a Differences) -> Change<'a> {
    Change {
        outcome,
        cause,
        user: by.and_then(|person| person.user.as_ref()).map(|user| user.as_str()),
        from: by.and_then(|person| person.from),
        added: &differences.added,
        changed: &differences.changed,
        removed: &differences.removed,
        fields: &[],
        restart_required: &[],
        problems: None,
    }
}

pub fn log_outcome(outcome: &Outcome) {
    match outcome {
        Outcome::Applied { restart_required, .. } if restart_required.is_empty() => {
            tracing::info!("configuration reloaded");
        }
        Outcome::Applied { restart_required, .. } => {
            let keys = restart_required.join(" ");
            tracing::warn!(restart_required = keys, "configuration reloaded; some changes need a restart");
        }
        Outcome::Unchanged => tracing::debug!("configuration unchanged"),
        Outcome::Refused(problems) => {
            for problem in &problems.problems {
                tracing::error!(%problem, "configuration refused");
            }
            let count = problems.problems.len();
            tracing::error!(problems = count, "configuration refused; keeping the previous one");
        }
        Outcome::Failed(error) => tracing::error!(%error, "configuration refused; keeping the previous one"),
    }
}

/// Logs each definition that is newly set aside, or set aside for other reasons than `before`.
pub fn log_set_aside(before: &[SetAside], now: &[SetAside]) {
    for aside in now.iter().filter(|aside| !before.contains(aside)) {
        for problem in &aside.problems {
            tracing::warn!(connection = %aside.name, %problem, "definition in the store set aside");
        }
    }
}
