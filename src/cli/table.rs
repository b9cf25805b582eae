//! Formats responses of a running instance for people.
//!
//! Invariant: untrusted text cannot move the cursor or end the line.

use serde_json::Value;

/// Aligns columns, each as wide as its widest cell.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let wide = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|at| wide(at).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| "-".to_owned(), clean)
}

pub fn connections(response: &Value) -> String {
    let items = response["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        return "no connections are configured".to_owned();
    }
    let mut rows = vec![["NAME", "STATE", "GRANT", "EXPIRES", "ROUTES", "LAST ERROR"].map(str::to_owned).to_vec()];
    for item in items {
        rows.push(connection(item));
        let profiles = item["profiles"].as_array().map(Vec::as_slice).unwrap_or_default();
        rows.extend(profiles.iter().map(profile));
    }
    aligned(&rows)
}

fn connection(item: &Value) -> Vec<String> {
    let routes = item["routes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut shown: Vec<_> = routes.iter().map(text).collect();
    let more = item["route_count"].as_u64().unwrap_or(0).saturating_sub(routes.len() as u64);
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    let routes = if shown.is_empty() { "-".to_owned() } else { shown.join(",") };
    let error = last_error(item);
    let grant = text(&item["grant"]);
    vec![text(&item["name"]), text(&item["state"]), grant, text(&item["expires_at"]), routes, error]
}

/// The row of one profile's token, below the row of its connection.
fn profile(token: &Value) -> Vec<String> {
    let (name, error) = (format!("  {}", text(&token["profile"])), last_error(token));
    vec![name, text(&token["state"]), text(&token["grant"]), text(&token["expires_at"]), String::new(), error]
}

/// The last error of a connection or a token; with its description if a person has to act.
fn last_error(item: &Value) -> String {
    let (state, attempt) = (&item["state"], &item["last_attempt"]);
    match attempt["description"].as_str().filter(|_| state == "reauthorize") {
        Some(description) => format!("{}: {}", text(&attempt["error"]), clean(description)),
        None => text(&attempt["error"]),
    }
}

pub fn refreshed(name: &str, token: &Value) -> String {
    let (profile, state, expires) = (text(&token["profile"]), text(&token["state"]), text(&token["expires_at"]));
    format!("{}/{profile}: {state}, expires {expires}", clean(name))
}

pub fn connected(response: &Value) -> String {
    let subject = response["subject"].as_str().map(|subject| format!(" for {}", clean(subject))).unwrap_or_default();
    format!("{}/{}{subject}: connected", text(&response["connection"]), text(&response["profile"]))
}

pub fn revoked(name: &str, response: &Value) -> String {
    let outcome = |token: &str| {
        let (result, reason) = (text(&response[token]["outcome"]), &response[token]["reason"]);
        let reason = if reason.is_null() { String::new() } else { format!(" ({})", text(reason)) };
        format!("{} {result}{reason}", token.replace('_', " "))
    };
    format!("{}: forgotten here; at the server: {}, {}", clean(name), outcome("refresh_token"), outcome("access_token"))
}

pub fn tested(response: &Value) -> String {
    let (method, url, token) = (text(&response["method"]), text(&response["url"]), text(&response["token"]));
    let profile = response["profile"].as_str().filter(|profile| *profile != "default");
    let token = profile.map_or(token.clone(), |profile| format!("{token}, profile {}", clean(profile)));
    format!("{method} {url}: {} in {} ms (token {token})", response["status"], response["duration_ms"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_aligned_and_control_characters_replaced() {
        let attempt = json!({"error": "bad\u{1b}[31m\nthing"});
        let crm = json!({"name": "crm", "state": "fresh", "grant": "client_credentials", "expires_at": null,
            "routes": ["api.test/v1", "/m"], "route_count": 5, "last_attempt": attempt});
        let response =
            json!({"items": [crm, {"name": "longer-name", "state": "inactive", "grant": "g", "routes": []}]});
        let expected = "\
NAME         STATE     GRANT               EXPIRES  ROUTES                     LAST ERROR
crm          fresh     client_credentials  -        api.test/v1,/m,and 3 more  bad?[31m?thing
longer-name  inactive  g                   -        -                          -";
        assert_eq!(connections(&response), expected);
    }

    #[test]
    fn a_required_action_is_described() {
        let attempt = json!({"error": "consent_required", "description": "needs consent again"});
        let shown = |state: &str| last_error(&json!({"state": state, "last_attempt": attempt}));
        assert_eq!(shown("reauthorize"), "consent_required: needs consent again");
        assert_eq!(shown("misconfigured"), "consent_required");
    }

    #[test]
    fn profiles_are_listed_below_their_connection() {
        let profiles = json!([{"profile": "default", "grant": "client_credentials", "state": "fresh", "expires_at": "soon",
            "last_attempt": {"error": null}}, {"profile": "all", "grant": "password", "state": "misconfigured",
            "expires_at": null, "last_attempt": {"error": "invalid_scope"}}]);
        let crm = json!({"name": "crm", "state": "misconfigured", "grant": "client_credentials", "expires_at": null,
            "routes": ["a.test"], "route_count": 1, "last_attempt": {"error": "invalid_scope"}, "profiles": profiles});
        let expected = "\
NAME       STATE          GRANT               EXPIRES  ROUTES  LAST ERROR
crm        misconfigured  client_credentials  -        a.test  invalid_scope
  default  fresh          client_credentials  soon             -
  all      misconfigured  password            -                invalid_scope";
        assert_eq!(connections(&json!({"items": [crm]})), expected);
    }
}
