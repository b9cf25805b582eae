//! What a failure of a script shows.

use super::*;
use crate::model::connection::{Grant, ScriptSource, SubjectToken, TokenExchange};

/// A script can spell a token in a way that no redactor recognizes.
#[tokio::test]
async fn a_script_of_the_api_shows_no_text_if_the_request_carries_a_token_or_a_code() {
    let subject_token_type = "urn:ietf:params:oauth:token-type:access_token".to_owned();
    let exchange = TokenExchange {
        subject_token: SubjectToken::FromCaller,
        subject_token_type,
        requested_token_type: None,
        actor: None,
    };
    let (api, secret) = (DefinedIn::Api(Revision::random()), Secret::new("spelt-out"));
    let code =
        ConsentGrant::Code { code: secret.clone(), verifier: None, redirect_uri: "https://kb.test/cb".to_owned() };
    let spell = |field: &str| {
        let letters: Vec<_> = (0..5).map(|at| format!("request.form.{field}.sub_string({at}, 1)")).collect();
        format!("throw {}", letters.join(" + \" \" + "))
    };
    let (shown, threw) = ("the script threw: s p e l t", "the script threw at line 2");
    for (defined_in, grant, field, expected) in [
        (None, Grant::AuthorizationCode, "refresh_token", shown),
        (Some(&api), Grant::AuthorizationCode, "refresh_token", threw),
        (Some(&api), Grant::ClientCredentials, "refresh_token", threw),
        (Some(&api), Grant::AuthorizationCode, "code", threw),
        (Some(&api), Grant::TokenExchange(exchange), "subject_token", threw),
        (Some(&api), Grant::ClientCredentials, "grant_type", "the script threw: c l i e n"),
    ] {
        let mut definition = connection("http://idp.test:1/token", body_auth(), None);
        let text = format!("fn token_request(request, ctx) {{\n{}\n}}", spell(field));
        definition.script = Some(ScriptSource { location: "s".to_owned(), text });
        definition.grant = grant;
        if let Some(defined_in) = defined_in {
            let (defined_in, json) = (defined_in.clone(), "{}".to_owned());
            definition.written = Arc::new(WrittenDefinition { defined_in, json, lines: Vec::new() });
        }
        let endpoint = TokenEndpoint::new(Arc::new(definition), &clients()).unwrap();
        let context = TokenRequestContext {
            consent_grant: Some(&code),
            caller_token: Some(&secret),
            ..TokenRequestContext::default()
        };
        let outcome = match field {
            "refresh_token" => endpoint.refresh(&RefreshToken::parse(secret.expose()).unwrap(), context).await,
            _ => endpoint.first_grant(context).await,
        };
        let Err(Failure::Script { message, .. }) = outcome else { panic!("{field}: {outcome:?}") };
        assert_eq!(message, expected, "{field}");
    }
}
