//! A definition over the API opens no address of this machine or its network, whatever URL or host it names.

use std::fmt::Write as _;
use std::net::TcpListener;

use serde_json::{Value, json};

use super::table::{Row, leaves, rows};
use super::{Fields, base};
use crate::rig::raw;
use crate::rig::scripted::Scripted;

/// Keys that name a destination and are no URL.
const HOSTS: [&str; 1] = ["routes[].host"];

/// Servers at addresses that no file opens.
struct Victims {
    v4: Scripted,
    /// `None` without IPv6.
    v6: Option<TcpListener>,
}

impl Victims {
    async fn start() -> Victims {
        let v6 = TcpListener::bind("[::1]:0").ok();
        v6.iter().for_each(|listener| listener.set_nonblocking(true).expect("a non-blocking listener"));
        Victims { v4: Scripted::upstream().await, v6 }
    }

    fn is_reached(&self, before: usize) -> bool {
        self.v4.count() > before || self.v6.as_ref().is_some_and(|listener| listener.accept().is_ok())
    }
}

/// Why the policy denies an address.
const DENIED: [&str; 3] = ["which is private", "which is link-local", "which is a listener of this proxy"];

/// Authorities inside the network.
fn targets(stage: &Fields, victims: &Victims) -> Vec<String> {
    let port = victims.v4.address.port();
    let local = ["127.0.0.1", "localhost", "127.1.2.3", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "0.0.0.0"];
    let mut targets: Vec<_> = local.iter().map(|host| format!("{host}:{port}")).collect();
    targets.extend(victims.v6.iter().map(|listener| listener.local_addr().expect("an address").to_string()));
    targets.extend(["169.254.169.254", "10.0.0.1", "[fd00:ec2::254]"].map(str::to_owned));
    targets.extend([stage.sidecar.admin(), stage.sidecar.proxy()].map(|own| own.to_string()));
    targets.push(format!("localhost:{}", stage.sidecar.admin().port()));
    targets
}

/// The definition that names a target at a key.
fn definition(row: &Row, target: &str) -> Value {
    let mut definition = base();
    let scheme = if row.path == "logo_url" { "https" } else { "http" };
    let value = match row.path {
        path if HOSTS.contains(&path) => target.to_owned(),
        path if path.starts_with("authorization_server.proxy") => format!("{scheme}://{target}"),
        _ => format!("{scheme}://{target}/private"),
    };
    row.set(&mut definition, value.into());
    definition
}

/// Runs every operation that sends requests. Returns the responses, and whether a server was reached.
async fn use_it(stage: &Fields, definition: &Value, target: &str) -> (String, bool) {
    let unsaved = json!({ "definition": definition });
    let mut shown = stage.call("POST", "/connections/own/preflight", &unsaved).await.text();
    let response = stage.create(definition).await;
    write!(shown, "\n{} {}", response.status, response.text()).expect("text");
    if response.status != 201 {
        assert_eq!(response.status, 422, "{}", response.text());
        return (shown, false);
    }
    shown += &stage.call("POST", "/connections/own/preflight", &json!({})).await.text();
    shown += &stage.exercise().await;
    shown += &stage.call("GET", "/connections/own/logo", &Value::Null).await.text();
    let tested = stage.call("POST", "/connections/own/test", &json!({})).await;
    let through = raw::get_through(stage.sidecar.proxy(), &format!("http://{target}/private"), "").await;
    let mounted = raw::get(stage.sidecar.proxy(), "/crm/private").await;
    write!(shown, "\n{}\n{} {}", tested.text(), through.status, mounted.text()).expect("text");
    stage.remove().await;
    let names_host = definition["routes"][0]["host"] == *target || definition["routes"][0]["mount"].is_string();
    let is_reached = names_host && tested.status == 200 || through.code().is_empty() || mounted.code().is_empty();
    (shown, is_reached)
}

/// Names each target at each key. Returns the number of definitions, and the faults.
async fn try_each(stage: &Fields, keys: &[Row]) -> (usize, Vec<String>) {
    let victims = Victims::start().await;
    let (mut tried, mut faults) = (0, Vec::new());
    for row in keys {
        for target in targets(stage, &victims) {
            let before = victims.v4.count();
            let (shown, is_reached) = use_it(stage, &definition(row, &target), &target).await;
            tried += 1;
            let is_denied = row.path != "token_url" || DENIED.iter().any(|why| shown.contains(why));
            if victims.is_reached(before) || is_reached || !is_denied {
                faults.push(format!("{} at {target}: {shown}", row.path));
            }
        }
    }
    (tried, faults)
}

#[tokio::test]
async fn a_definition_reaches_no_address_inside_the_network() {
    let stage = Fields::start("", &[]).await;
    let leaves = leaves().await;
    let is_destination = |row: &Row| leaves[row.path].is_url || HOSTS.contains(&row.path);
    let (tried, faults) = try_each(&stage, &rows().into_iter().filter(is_destination).collect::<Vec<_>>()).await;
    assert!(tried >= 100, "{tried}");
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

/// The victim can be reached: it is the policy that keeps it out of reach.
#[tokio::test]
async fn only_the_files_open_an_address_inside_the_network() {
    let stage = Fields::start("egress: {allow_private: [127.0.0.0/8]}\n", &[]).await;
    let keys = rows().into_iter().filter(|row| ["token_url", "routes[].host"].contains(&row.path)).collect::<Vec<_>>();
    let (_, faults) = try_each(&stage, &keys).await;
    for key in ["token_url at 127.0.0.1", "token_url at localhost", "routes[].host at 127.0.0.1"] {
        assert!(faults.iter().any(|fault| fault.starts_with(key)), "{key}: {}", faults.join("\n"));
    }
    // Never our own listeners.
    let own = [stage.sidecar.admin(), stage.sidecar.proxy()].map(|own| format!(" at {own}: "));
    assert!(!faults.iter().any(|fault| own.iter().any(|own| fault.contains(own))), "{}", faults.join("\n"));
}
