//! The sealed store of the built program: what it survives, what it refuses, and what it never shows.
//!
//! Not here: crashes under rotation (`crash`), the store by itself (`src/store`).

mod crash;
mod files;
mod read_only;
mod restart;
mod secrets;
mod transfer;

use std::path::PathBuf;

use serde_json::json;

use crate::rig::config::{Config, Connection};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

const OLD_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const NEW_KEY: &str = "Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";

/// A scripted server that issues tokens for two connections (`crm`, and `erp` without a refresh token), and an upstream.
struct StoreFixture {
    server: Scripted,
    upstream: Scripted,
}

impl StoreFixture {
    async fn start() -> StoreFixture {
        let server = Scripted::start(|request, number| {
            let erp = request.request_line().contains("/erp");
            let access = format!("canary-access-{}-{number}", if erp { "erp" } else { "crm" });
            let mut response = json!({ "access_token": access, "expires_in": 3600 });
            if !erp {
                response["refresh_token"] = format!("canary-refresh-{number}").into();
            }
            Reply::json(200, &response)
        })
        .await;
        StoreFixture { server, upstream: Scripted::upstream().await }
    }

    fn config(&self, top: &str) -> String {
        let connection = |name: &str, host: &str| {
            let keys = "grant: password, username: ann, password: canary-password";
            let connection = Connection::new(name, format_args!("http://{}/{name}", self.server.address));
            connection.client("client_id: a, client_secret: canary-client-secret").keys(keys).plain(host)
        };
        let config = Config::new().top(top).manager().hosts(["api.test", "erp.test"], self.upstream.address);
        config.connection(connection("crm", "api.test")).connection(connection("erp", "erp.test")).to_string()
    }

    fn token_requests(&self) -> usize {
        self.server.received().len()
    }
}

fn state(sidecar: &Sidecar) -> PathBuf {
    sidecar.dir.path().join("state")
}
