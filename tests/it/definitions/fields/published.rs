//! A published secret reaches its own hosts alone, over TLS, wherever a definition names it and whatever else it says.

use serde_json::{Value, json};

use super::table::{Row, get, leaves, rows, set};
use super::{Fields, base, config, leak, server};
use crate::rig::front::{Front, SelfSigned};
use crate::rig::peers::Peers;
use crate::rig::scripted::Scripted;
use crate::rig::sidecar::Sidecar;

const PUBLISHED: &str = "published-secret-0123456789";
/// What a request contains that a published signing key has signed.
const SIGNED: &str = "assertion=";

/// `as.test` and `other.test` are behind TLS.
struct Published {
    fields: Fields,
    _fronts: [Front; 2],
}

impl Published {
    async fn start() -> Published {
        let (as_test, upstream, other) = (server("https").await, Scripted::upstream().await, server("https").await);
        let own = SelfSigned::for_names("DNS:as.test,DNS:other.test");
        let fronts = [Front::start(&own, as_test.address).await, Front::start(&own, other.address).await];
        let top = format!(
            "trust: [own.pem]\nsecrets:\n  text: {{env: PUBLISHED, hosts: [as.test]}}\n  \
             key: {{file: \"{}\", hosts: [as.test]}}\n",
            Peers::certs().leaf("client-rsa").1.display()
        );
        let text = config([fronts[0].address, upstream.address, fronts[1].address], &top);
        let text = text.replace("env: PUBLISHED", "file: published");
        let sidecar = Sidecar::start_with(&text, &[("own.pem", &own.certificate), ("published", PUBLISHED)]).await;
        Published { fields: Fields { sidecar, server: as_test, upstream, other }, _fronts: fronts }
    }
}

/// A definition that names the secret at a path.
struct Use {
    path: &'static str,
    definition: Value,
    needle: &'static str,
}

impl Use {
    fn new(row: &Row) -> Option<Use> {
        let is_key = row.value.as_ref()?.as_str().is_some_and(|text| text.contains("PRIVATE KEY"));
        let (name, needle) = if is_key { ("key", SIGNED) } else { ("text", PUBLISHED) };
        let mut definition = base();
        row.set(&mut definition, json!({ "use": name }));
        let mut definition = over_tls(&definition);
        definition.as_object_mut().expect("a map").remove("allow_cleartext");
        Some(Use { path: row.path, definition, needle })
    }

    /// One secret is tried with every key, the others with those that name a destination or run a script.
    fn is_tried_with(&self, row: &Row) -> bool {
        let is_redirecting = row.other.as_ref().is_some_and(|other| other.to_string().contains("other.test"));
        self.path == "client_secret" || is_redirecting || row.path.starts_with("script")
    }
}

/// The same with https in each URL at `as.test` and `other.test`.
fn over_tls(value: &Value) -> Value {
    let text = value.to_string().replace("http://as.test", "https://as.test");
    serde_json::from_str(&text.replace("http://other.test", "https://other.test")).expect("JSON")
}

async fn change_each(stage: &Fields, own: &Use, rows: &[Row]) -> Vec<String> {
    let before = [stage.server.count(), stage.other.count()];
    let made = stage.create(&own.definition).await;
    assert_eq!(made.status, 201, "{}: {}", own.path, made.text());
    let (mut faults, shown) = (Vec::new(), stage.exercise().await);
    if leak(&stage.server.received().split_off(before[0]), own.needle).is_none() {
        faults.push(format!("{} is not sent at all: {shown}", own.path));
    }
    'rows: for row in rows.iter().filter(|row| own.is_tried_with(row)) {
        let Some(other) = &row.other else { continue };
        let mut bodies = vec![own.definition.clone(); 3];
        row.set(&mut bodies[0], other.clone());
        bodies[0] = over_tls(&bodies[0]);
        set(&mut bodies[1], row.path, over_tls(other));
        set(&mut bodies[2], row.path, other.clone());
        bodies.dedup();
        let names_it = |body: &&Value| *get(body, own.path) == *get(&own.definition, own.path);
        for body in bodies.iter().filter(names_it) {
            let response = stage.replace(body).await;
            let what = format!("{} published, {}: {} {}", own.path, row.path, response.status, response.text());
            let mut shown = response.text();
            if response.status == 200 {
                shown += &stage.exercise().await;
            }
            let leaked = leak(&stage.other.received().split_off(before[1]), own.needle)
                .or_else(|| leak(&stage.upstream.received(), PUBLISHED))
                .or_else(|| Some(shown).filter(|shown| shown.contains(PUBLISHED)));
            match (leaked, response.status) {
                (Some(leaked), _) => {
                    faults.push(format!("{what}\n{leaked}"));
                    break 'rows;
                }
                (None, 200 | 422) => {}
                (None, _) => faults.push(what),
            }
        }
    }
    stage.remove().await;
    faults
}

#[tokio::test]
async fn a_published_secret_reaches_its_hosts_alone() {
    let Published { fields: stage, _fronts } = Published::start().await;
    let (leaves, rows) = (leaves().await, rows());
    let uses: Vec<_> = rows.iter().filter(|row| leaves[row.path].may_be_published).filter_map(Use::new).collect();
    assert_eq!(uses.len(), leaves.values().filter(|leaf| leaf.may_be_published).count() - 1, "all but mutual_tls.key");
    let mut faults = Vec::new();
    for own in &uses {
        faults.extend(change_each(&stage, own, &rows).await);
    }
    // Nowhere else may a published secret be named.
    for row in rows.iter().filter(|row| !leaves[row.path].may_be_published && row.path != "assertion.claims.free") {
        let mut definition = base();
        row.set(&mut definition, json!({ "use": "text" }));
        let response = stage.create(&definition).await;
        if response.status != 422 {
            faults.push(format!("{}: {} {}", row.path, response.status, response.text()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(!stage.sidecar.log().contains(PUBLISHED), "{}", stage.sidecar.log());
}

#[tokio::test]
async fn a_published_secret_is_never_sent_in_the_clear() {
    let Published { fields: stage, _fronts } = Published::start().await;
    let uses = rows().iter().filter_map(Use::new).collect::<Vec<_>>();
    let find = |path: &str| uses.iter().find(|own| own.path == path).expect("a row").definition.clone();
    for (path, url) in [
        ("client_secret", "token_url"),
        ("client_secret", "revocation_url"),
        ("authorization_server.proxy.password", "authorization_server.proxy.url"),
    ] {
        for allowed in [false, true] {
            let mut definition = find(path);
            set(&mut definition, url, "http://as.test/".into());
            definition["allow_cleartext"] = allowed.into();
            let response = stage.create(&definition).await;
            assert_eq!(response.status, 422, "{path} to {url}: {}", response.text());
        }
    }
}
