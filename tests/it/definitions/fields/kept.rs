//! A kept secret goes nowhere else: each secret of a definition is kept while each other key changes.

use serde_json::{Value, json};

use super::table::{Row, get, leaves, rows, set};
use super::{Fields, base, leak};
use crate::rig::scripted::Scripted;

const KEPT: &str = "kept-secret-0123456789";
/// What a request contains that a kept signing key has signed.
const SIGNED: &str = "assertion=";

/// Keys that send no secret elsewhere.
const HARMLESS: [&str; 17] = [
    "accessible_from",
    "active",
    "application",
    "audience",
    "available_scopes",
    "client_secret_expires_at",
    "comments",
    "default_token_lifetime",
    "keep_warm",
    "logo_url",
    "name",
    "refresh_ahead",
    "refresh_token_lifespan",
    "resource",
    "scopes",
    "token_rejected",
    "usable_margin",
];

/// A secret of a definition that holds it.
struct Secret {
    path: &'static str,
    definition: Value,
    /// What the servers receive of it.
    needle: &'static str,
}

impl Secret {
    fn new(row: &Row, is_url: bool) -> Option<Secret> {
        let value = row.value.as_ref()?;
        let is_key = value.as_str().is_some_and(|text| text.contains("PRIVATE KEY"));
        let (value, needle) = match value.as_str() {
            Some(_) if is_key => (value.clone(), SIGNED),
            Some(url) if is_url => (format!("{url}?key={KEPT}").into(), KEPT),
            _ => (KEPT.into(), KEPT),
        };
        let mut definition = base();
        row.set(&mut definition, value);
        Some(Secret { path: row.path, definition, needle })
    }

    /// False for keys that are tried with `client_secret` alone: harmless ones, and routes with a secret of token requests.
    fn is_tried_with(&self, path: &str) -> bool {
        let top = |path: &str| path.split(['.', '[']).next().unwrap_or_default().to_owned();
        let is_separate = HARMLESS.contains(&top(path).as_str()) || top(path) == "routes" && top(self.path) != "routes";
        self.path == "client_secret" || !is_separate
    }

    fn is_kept_in(&self, body: &Value) -> bool {
        *get(body, self.path) == json!({ "set": true })
    }
}

/// Variants of a body with one key changed: another value, with and without the keys that it needs, and no value.
fn changes(body: &Value, row: &Row) -> Vec<Value> {
    let mut bodies = Vec::new();
    if let Some(other) = &row.other {
        bodies.extend([body.clone(), body.clone()]);
        row.set(&mut bodies[0], other.clone());
        set(&mut bodies[1], row.path, other.clone());
    }
    if !get(body, row.path).is_null() {
        let mut without = body.clone();
        set(&mut without, row.path, Value::Null);
        bodies.push(without);
    }
    bodies.retain(|changed| changed != body);
    bodies
}

/// Changes each key while `secret` is kept, and all others are entered again. Returns the faults.
async fn change_each(stage: &Fields, secret: &Secret, rows: &[Row]) -> Vec<String> {
    let before = [stage.server.count(), stage.upstream.count(), stage.other.count()];
    let received = |server: &Scripted, before: usize| server.received().split_off(before);
    let made = stage.create(&secret.definition).await;
    assert_eq!(made.status, 201, "{}: {}", secret.path, made.text());
    let mut faults = Vec::new();
    let shown = stage.exercise().await;
    // The secret is sent where it belongs.
    let sent = [received(&stage.server, before[0]), received(&stage.upstream, before[1])].concat();
    if leak(&sent, secret.needle).is_none() {
        faults.push(format!("{} is not sent at all: {shown}", secret.path));
    }
    let mut body = secret.definition.clone();
    set(&mut body, secret.path, json!({ "set": true }));
    'rows: for row in rows.iter().filter(|row| secret.is_tried_with(row.path)) {
        for changed in changes(&body, row).iter().filter(|changed| secret.is_kept_in(changed)) {
            let response = stage.replace(changed).await;
            let what = format!("{} kept, {}: {} {}", secret.path, row.path, response.status, response.text());
            let mut shown = response.text();
            if response.status == 200 {
                shown += &stage.exercise().await;
                let restored = stage.replace(&secret.definition).await;
                assert_eq!(restored.status, 200, "{}", restored.text());
            }
            let is_of_route = secret.path.starts_with("routes");
            let upstream = Some(received(&stage.upstream, before[1])).filter(|_| !is_of_route);
            let leaked = leak(&received(&stage.other, before[2]), secret.needle)
                .or_else(|| leak(&upstream?, KEPT))
                .or_else(|| Some(shown).filter(|shown| shown.contains(KEPT)));
            if let Some(leaked) = leaked {
                faults.push(format!("{what}\n{leaked}"));
                break 'rows;
            }
            if ![200, 422].contains(&response.status) {
                faults.push(what);
            }
        }
    }
    stage.remove().await;
    faults
}

/// Keeps each of the secrets that `is_chosen` selects by their paths.
async fn keep_each(is_chosen: impl Fn(&str) -> bool) {
    let stage = Fields::start("", &[]).await;
    let (leaves, rows) = (leaves().await, rows());
    let secrets = rows.iter().filter(|row| leaves[row.path].may_be_secret);
    let secrets: Vec<_> = secrets.filter_map(|row| Secret::new(row, leaves[row.path].is_url)).collect();
    assert_eq!(secrets.len(), leaves.values().filter(|leaf| leaf.may_be_secret).count() - 1, "all but mutual_tls.key");
    let mut faults = Vec::new();
    for secret in secrets.iter().filter(|secret| is_chosen(secret.path)) {
        faults.extend(change_each(&stage, secret, &rows).await);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(!stage.sidecar.log().contains(KEPT), "{}", stage.sidecar.log());
}

/// Secrets that are tried with every key.
const THOROUGH: [&str; 2] = ["client_secret", "routes[].set_headers.free"];

#[tokio::test]
async fn a_kept_secret_of_the_client_or_a_route_goes_nowhere_else() {
    keep_each(|path| THOROUGH.contains(&path)).await;
}

#[tokio::test]
async fn every_other_kept_secret_goes_nowhere_else() {
    keep_each(|path| !THOROUGH.contains(&path)).await;
}
