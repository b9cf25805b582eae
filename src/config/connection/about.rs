//! Keys that describe a connection to people, and the callers that may use it.

use std::time::Duration;

use url::Url;

use super::file::ConnectionFile;
use super::keywords::SameApplication;
use crate::clock::Clock;
use crate::config::caller::Callers;
use crate::config::reading::{Fault, NodeRef, Section, Sink, endpoint, reference, suggest, value};
use crate::model::Name;
use crate::model::time::{WallTime, parse_rfc3339, rfc3339};

/// How long before a client secret expires `check` warns.
const SECRET_EXPIRY_NOTICE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a connection states about itself.
pub struct About {
    pub comments: Option<String>,
    pub logo_url: Option<Url>,
    pub application: Option<String>,
    pub client_secret_expires_at: Option<WallTime>,
}

pub fn about(section: &Section<'_, ConnectionFile>, sink: &mut Sink) -> About {
    let keys = &section.keys;
    About {
        comments: section.get(keys.comments).and_then(|node| Some(reference::text(&node, sink)?.value)),
        logo_url: section.get(keys.logo_url).and_then(|node| node.parse_url(sink, endpoint::logo_url)),
        application: section.get(keys.application).and_then(|node| node.line(sink)),
        client_secret_expires_at: client_secret_expires_at(section, sink),
    }
}

fn client_secret_expires_at(section: &Section<'_, ConnectionFile>, sink: &mut Sink) -> Option<WallTime> {
    let node = section.get(section.keys.client_secret_expires_at)?;
    if section.get(section.keys.client_secret).is_none() {
        node.problem(sink, "there is no `client_secret` that could expire", "remove one of the two, or add the secret");
    }
    let at = node.parse(sink, timestamp)?;
    let now = Clock::system().now().wall;
    if at <= now {
        let hint = "ask the authorization server for a new secret, and write when that one expires";
        node.warning(sink, format!("the client secret expired on {}", rfc3339(at)), hint);
    } else if at <= now + SECRET_EXPIRY_NOTICE {
        let hint = "rotate it: `client_secret` may be a list of the new and the old one";
        node.warning(sink, format!("the client secret expires on {}", rfc3339(at)), hint);
    }
    Some(at)
}

fn timestamp(text: &str) -> Result<WallTime, Fault> {
    parse_rfc3339(text)
        .ok_or_else(|| Fault::new("is not a timestamp", "write it as in RFC 3339, such as 2027-05-01T00:00:00Z"))
}

/// The callers that may use the connection; `None`: all. `application` is that of the connection.
pub fn accessible_from(
    section: &Section<'_, ConnectionFile>,
    application: Option<&str>,
    callers: &Callers,
    sink: &mut Sink,
) -> Option<Vec<Name>> {
    let node = section.get(section.keys.accessible_from)?;
    if node.written().is_none() {
        return Some(listed(&node, callers, sink));
    }
    node.choice::<SameApplication>(sink)?;
    if section.get(section.keys.application).is_none() {
        let hint = "add `application`, or list the callers";
        node.problem(sink, "needs the connection's `application`, which is missing", hint);
    }
    let Some(application) = application else { return Some(Vec::new()) };
    let same = callers.iter().filter(|(_, of_caller)| of_caller.as_deref() == Some(application));
    let mut names: Vec<_> = same.map(|(name, _)| name.clone()).collect();
    names.sort_unstable();
    if names.is_empty() {
        node.warning(sink, "no caller has this `application`", "write it at a caller under `callers`");
    }
    Some(names)
}

fn listed(node: &NodeRef<'_>, callers: &Callers, sink: &mut Sink) -> Vec<Name> {
    let mut names = Vec::new();
    for item in node.items(sink).unwrap_or_default() {
        let Some(name) = item.parse(sink, value::name) else { continue };
        if !callers.contains_key(&name) {
            let hint = suggest(name.as_str(), callers.keys().map(Name::as_str), "add it under `callers` or remove it");
            item.problem(sink, format!("no caller is named `{name}`"), hint);
        } else if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
