//! No secret is in log, metrics or API, even at log level `trace`.

use serde_json::{Value, json};

use super::{Fixture, secret_of, text};
use crate::rig::browser::Page;
use crate::rig::manager::MANAGER;
use crate::rig::raw;

/// Secret fields of token requests.
const FIELDS: [&str; 5] = ["code", "code_verifier", "device_code", "refresh_token", "client_secret"];
/// Shorter values may occur by chance.
const CHARS_MIN: usize = 20;

impl Fixture {
    /// Searches everything that the sidecar shows for the secrets of this test; `page` is one of the browser used.
    pub async fn check_no_secret_shown(&self, page: &Page) {
        let mut shown = self.sidecar.log() + &self.sidecar.stdout();
        shown += &raw::get(self.sidecar.admin(), "/metrics").await.text();
        for path in ["/connections", "/connections/crm", "/connections/crm/tokens"] {
            shown += &self.call("GET", path, json!({})).await.text();
        }
        for what in [self.client, "\"connection\":\"crm\"", "account connected", "keybearer_token_requests_total{"] {
            assert!(shown.contains(what), "the control text {what} is not found");
        }
        let secrets = self.secrets(page).await;
        for (kind, value) in &secrets {
            assert!(value.len() >= CHARS_MIN, "{kind} {value} is too short to look for");
            assert!(!shown.contains(value.as_str()), "{kind} {value} is shown");
        }
        for kind in ["cookie", "access token"] {
            assert!(secrets.iter().any(|(name, _)| name == kind), "no {kind} to look for");
        }
    }

    async fn secrets(&self, page: &Page) -> Vec<(String, String)> {
        let mut secrets = vec![("admin token".to_owned(), MANAGER.to_owned())];
        secrets.push(("client secret".to_owned(), secret_of(self.client)));
        let mut add = |kind: &str, value: &Value| {
            secrets.extend(value.as_str().map(|value| (kind.to_owned(), value.to_owned())));
        };
        for form in self.server.forms(self.client).await {
            FIELDS.iter().for_each(|name| add(name, &form[*name]));
        }
        for request in self.server.authorizations(self.client).await {
            add("state", &request["state"]);
            let secret = text(&request["state"]).rsplit('.').next().map(Value::from);
            add("state's secret", &secret.filter(|_| request["state"].is_string()).unwrap_or_default());
        }
        for record in self.upstream.records().await {
            let headers = record["headers"].as_array().cloned().unwrap_or_default();
            let tokens = headers.iter().filter_map(|value| value.as_str()?.strip_prefix("Bearer "));
            tokens.for_each(|token| add("access token", &json!(token)));
        }
        for one in page.documents().iter().filter(|one| self.is_sidecar(&one["url"])) {
            let set = text(&one["headers"]["set-cookie"]).lines().filter_map(|line| line.split(';').next());
            let values = set.filter_map(|pair| pair.split_once('=')).map(|(_, value)| value);
            values.filter(|value| !value.is_empty()).for_each(|value| add("cookie", &json!(value)));
            // Values invented by a test are short.
            let hidden = ["for", "flow", "code", "of"].map(|name| query(text(&one["url"]), name));
            let hidden = hidden.into_iter().flatten().filter(|value| value.len() >= CHARS_MIN);
            hidden.for_each(|value| add("parameter", &json!(value)));
        }
        secrets
    }
}

fn query(url: &str, name: &str) -> Option<String> {
    let pairs = url::Url::parse(url).ok()?;
    pairs.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}
