//! Compares a connection with what its issuer announces (RFC 8414 §2). Pure.
//!
//! Invariant: a list that the issuer does not announce proves nothing; what is missing from an announced list is a
//! warning, because servers may support more than they announce.

use super::Check;
use crate::model::connection::{ClientAuth, Connection, ConsentFlow, Pkce};
use crate::oauth::discovery::{self, Announced, Metadata};
use crate::oauth::redact::printable;

const ITEMS_SHOWN: usize = 12;
const ITEM_CHARS_MAX: usize = 80;
const NOT_ANNOUNCED: &str = "the issuer announces no such list";

/// The token endpoint that the metadata names, against the configured one.
pub fn endpoints(connection: &Connection, metadata: &Metadata) -> Check {
    const NAME: &str = "metadata";
    let configured = connection.endpoints.token.as_ref();
    match (metadata.endpoint(discovery::TOKEN), configured) {
        (Ok(Some(url)), Some(own)) if url != *own => {
            let detail = format!("the issuer names the token endpoint {}, the connection another", shown(url.as_str()));
            Check::warning(NAME, detail, "remove `token_url`, unless the difference is intended")
        }
        (Ok(Some(url)), _) => Check::ok(NAME, format!("the issuer names the token endpoint {}", shown(url.as_str()))),
        (Ok(None), Some(_)) => Check::ok(NAME, "the issuer names no token endpoint; the connection's own is used"),
        (Ok(None), None) => Check::failed(NAME, "the issuer names no token endpoint", "set `token_url`"),
        (Err(failure), _) => Check::failed(NAME, super::described(&failure), "set `token_url`"),
    }
}

/// Grants, client authentication, PKCE and scopes.
pub fn checks(connection: &Connection, announced: &Announced) -> Vec<Check> {
    vec![
        grants(connection, announced),
        authentication(connection, announced),
        pkce(connection, announced),
        scopes(connection, announced),
    ]
}

fn grants(connection: &Connection, announced: &Announced) -> Check {
    const NAME: &str = "grant";
    let Some(list) = &announced.grants else { return Check::skipped(NAME, NOT_ANNOUNCED) };
    let own_name = |own: &Connection| own.grant_type.clone().unwrap_or_else(|| own.grant.kind().wire_name().to_owned());
    let profiles = connection.profiles.iter().map(|own| own_name(own));
    let missing: Vec<_> =
        std::iter::once(own_name(connection)).chain(profiles).filter(|grant| !list.contains(grant)).collect();
    if missing.is_empty() {
        return Check::ok(NAME, format!("the issuer announces `{}`", own_name(connection)));
    }
    let detail = format!("the issuer announces {}, and not {}", listed(list), listed(&missing));
    Check::warning(NAME, detail, "set `grant` to one of these, or have the server permit it")
}

fn authentication(connection: &Connection, announced: &Announced) -> Check {
    const NAME: &str = "authentication_method";
    let Some(list) = &announced.authentication_methods else { return Check::skipped(NAME, NOT_ANNOUNCED) };
    let own: &[&str] = match &connection.client_auth {
        ClientAuth::Body(_) => &["client_secret_post"],
        ClientAuth::Basic(..) => &["client_secret_basic"],
        ClientAuth::PrivateKeyJwt(..) => &["private_key_jwt"],
        ClientAuth::ClientSecretJwt(..) => &["client_secret_jwt"],
        ClientAuth::Tls => &["tls_client_auth", "self_signed_tls_client_auth"],
        ClientAuth::None => &["none"],
    };
    if list.iter().any(|method| own.contains(&method.as_str())) {
        return Check::ok(NAME, format!("the issuer announces `{}`", own.join("` or `")));
    }
    let name = connection.client_auth.as_str();
    let detail = format!("the issuer announces {}, and not {} (`{name}`)", listed(list), own.join(" or "));
    Check::warning(NAME, detail, "set `send_credentials` to a method that the server accepts")
}

fn pkce(connection: &Connection, announced: &Announced) -> Check {
    const NAME: &str = "pkce";
    if connection.grant.consent_flow() != Some(ConsentFlow::AuthorizationCode) {
        return Check::skipped(NAME, "the grant sends no code challenge");
    }
    let own = connection.authorization.pkce;
    match (&announced.code_challenge_methods, own) {
        (None, _) => Check::skipped(NAME, NOT_ANNOUNCED),
        (Some(list), Pkce::None) if !list.is_empty() => {
            let detail = format!("the issuer announces {}, and the connection sends no code challenge", listed(list));
            Check::warning(NAME, detail, "remove `pkce: {method: none}`")
        }
        (Some(_), Pkce::None) => Check::ok(NAME, "neither the issuer nor the connection uses PKCE"),
        (Some(list), own) if list.iter().any(|method| method == own.as_str()) => {
            Check::ok(NAME, format!("the issuer announces `{}`", own.as_str()))
        }
        (Some(list), own) => {
            let detail = format!("the issuer announces {}, and not {}", listed(list), own.as_str());
            Check::warning(NAME, detail, "set `pkce.method` to a method that the server accepts")
        }
    }
}

fn scopes(connection: &Connection, announced: &Announced) -> Check {
    const NAME: &str = "scopes";
    let mut own: Vec<String> = connection.scopes.clone();
    own.extend(connection.profiles.iter().flat_map(|profile| profile.scopes.iter().cloned()));
    own.sort_unstable();
    own.dedup();
    match &announced.scopes {
        _ if own.is_empty() => Check::skipped(NAME, "the connection requests no scope"),
        None => Check::skipped(NAME, NOT_ANNOUNCED),
        Some(list) => {
            own.retain(|scope| !list.contains(scope));
            if own.is_empty() {
                return Check::ok(NAME, "the issuer announces every scope of the connection");
            }
            let detail = format!("the issuer does not announce {}", listed(&own));
            Check::warning(NAME, detail, "correct `scopes`, unless the server is known to accept them")
        }
    }
}

/// Names from a server or a configuration, bounded and printable.
fn listed(items: &[String]) -> String {
    let mut text = items.iter().take(ITEMS_SHOWN).map(|item| shown(item)).collect::<Vec<_>>().join(", ");
    if items.is_empty() {
        text.push_str("an empty list");
    } else if items.len() > ITEMS_SHOWN {
        text.push_str(&format!(" and {} more", items.len() - ITEMS_SHOWN));
    }
    text
}

fn shown(text: &str) -> String {
    text.chars().map(printable).take(ITEM_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::super::CheckOutcome;
    use super::*;
    use crate::model::connection::{Authorization, Grant};
    use crate::model::secret::Secret;

    fn list(items: &[&str]) -> Option<Vec<String>> {
        Some(items.iter().map(|item| (*item).to_owned()).collect())
    }

    #[test]
    fn what_an_issuer_does_not_announce_is_a_warning_and_silence_proves_nothing() {
        let own = Connection {
            grant: Grant::AuthorizationCode,
            client_auth: ClientAuth::Body(vec![Secret::new("s")]),
            authorization: Authorization::default(),
            scopes: vec!["read".to_owned(), "write".to_owned()],
            ..Connection::sample("crm")
        };
        let outcomes =
            |announced: &Announced| checks(&own, announced).iter().map(|check| check.outcome).collect::<Vec<_>>();
        assert_eq!(outcomes(&Announced::default()), [CheckOutcome::Skipped; 4]);
        let all = Announced {
            grants: list(&["authorization_code", "implicit"]),
            authentication_methods: list(&["client_secret_post"]),
            code_challenge_methods: list(&["plain", "S256"]),
            scopes: list(&["read", "write", "admin"]),
        };
        assert_eq!(outcomes(&all), [CheckOutcome::Ok; 4]);
        let others = Announced {
            grants: list(&["implicit"]),
            authentication_methods: list(&["client_secret_basic"]),
            code_challenge_methods: list(&["plain"]),
            scopes: list(&["read"]),
        };
        assert_eq!(outcomes(&others), [CheckOutcome::Warning; 4]);
        let checks = checks(&own, &others);
        assert!(checks[1].detail.contains("client_secret_basic, and not client_secret_post (`body`)"), "{checks:?}");
        assert!(checks[3].detail.ends_with("does not announce write"), "{checks:?}");
    }
}
