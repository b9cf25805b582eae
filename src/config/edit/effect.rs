//! Which keys of a definition decide where its secrets are sent, and how.
//!
//! Invariant: a key that is not listed is assumed to decide it.

/// The requests with a kept secret that a changed key may send elsewhere, send in another way, or show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    None,
    /// Requests to the authorization server and to the hosts of routes.
    AllRequests,
    /// Requests to the authorization server.
    TokenRequests,
    /// As [`Effect::TokenRequests`], but a new value of a secret below the key has no effect.
    TokenRequestsUnlessSecret,
    /// As [`Effect::TokenRequests`], but only for the keys that are not in [`HARMLESS_IN_PROFILES`].
    Profiles,
}

const EFFECTS: [(Effect, &[&str]); 13] = [
    // The name never changes; the others are for people. The logo is fetched without any secret.
    (Effect::None, &["name", "comments", "application", "logo_url"]),
    // Whether and for which callers tokens are acquired and injected.
    (Effect::None, &["active", "accessible_from"]),
    // Forecasts, and when a token is refreshed: at the same servers.
    (Effect::None, &["client_secret_expires_at", "refresh_token_lifespan", "default_token_lifetime"]),
    (Effect::None, &["refresh_ahead", "usable_margin", "keep_warm", "token_rejected"]),
    // What the token is requested for.
    (Effect::None, &["scopes", "available_scopes", "audience", "resource"]),
    // A secret does not affect another one; how the client authenticates is in `send_credentials`.
    (Effect::None, &["client_secret", "password"]),
    // Requests that get a token. Each route has its own headers: `travel` compares them.
    (Effect::None, &["routes"]),
    // Permits http, also for the upstream of a mount.
    (Effect::AllRequests, &["allow_cleartext"]),
    // The servers, and the pages that browsers are sent to.
    (
        Effect::TokenRequests,
        &["token_url", "revocation_url", "authorization_url", "device_authorization_url", "redirect_url", "issuer"],
    ),
    // The parameters and the encoding of the requests that contain a secret. With `tokens: per_subject`, a signing key
    // vouches for other people.
    (
        Effect::TokenRequests,
        &[
            "client_id",
            "send_credentials",
            "basic_encoding",
            "grant",
            "grant_type",
            "username",
            "subject_token_type",
            "requested_token_type",
            "authorize_params",
            "token_params",
            "token_request",
            "pkce",
            "tokens",
        ],
    ),
    // Texts of the server's responses and of scripts are shown, and a member of a response becomes the token.
    (Effect::TokenRequests, &["token_response", "script", "variables"]),
    // Settings next to a secret of their own, which may be replaced alone.
    (
        Effect::TokenRequestsUnlessSecret,
        &["authorization_server", "mutual_tls", "client_assertion", "assertion", "subject_token", "actor_token"],
    ),
    // Each profile requests its own token, with the secrets of the connection.
    (Effect::Profiles, &["profiles"]),
];

/// Keys of a profile that affect no secret, except that a profile with other keys must keep its name.
pub const HARMLESS_IN_PROFILES: [&str; 3] = ["scopes", "audience", "resource"];

impl Effect {
    /// The effect of a changed `key` on a secret that is kept below the key `secret`.
    pub fn of(key: &str, secret: &str) -> Effect {
        match (listed(key).unwrap_or(Effect::AllRequests), secret) {
            // `upstream_tls.mutual_tls` of a route presents the certificate to the route's host.
            (Effect::None, "mutual_tls") if key == "routes" => Effect::AllRequests,
            (Effect::TokenRequests | Effect::TokenRequestsUnlessSecret | Effect::Profiles, "routes") => Effect::None,
            (effect, _) => effect,
        }
    }
}

fn listed(key: &str) -> Option<Effect> {
    EFFECTS.iter().find(|(_, keys)| keys.contains(&key)).map(|(effect, _)| *effect)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::schema;

    fn keys(definition: &str) -> BTreeSet<String> {
        schema()["$defs"][definition]["properties"].as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn every_key_of_a_connection_is_classified_once() {
        let all: Vec<_> = EFFECTS.iter().flat_map(|(_, keys)| keys.iter().map(|key| (*key).to_owned())).collect();
        assert_eq!(all.iter().cloned().collect::<BTreeSet<_>>(), keys("connection"), "classify each key in EFFECTS");
        assert_eq!(all.len(), keys("connection").len(), "a key is listed twice");
        for secret in ["client_secret", "routes"] {
            assert_eq!(Effect::of("unheard_of", secret), Effect::AllRequests);
        }
    }

    #[test]
    fn every_key_of_a_profile_is_considered() {
        let redirecting = ["name", "grant", "authorize_params", "token_params"];
        let all = redirecting.iter().chain(&HARMLESS_IN_PROFILES).map(|key| (*key).to_owned()).collect();
        assert_eq!(keys("profile"), all, "decide whether the key belongs to HARMLESS_IN_PROFILES");
    }
}
