//! Profiles, names of scopes, and conflicts between routes that are chosen by name.

use super::*;
use crate::model::Name;
use crate::model::connection::{Connection, Grant};

/// The keys that may differ between the definitions of a connection, one line per definition.
fn definition_lines(connection: &Arc<Connection>) -> Vec<String> {
    let line = |own: &Arc<Connection>| {
        let Connection { name, profile, grant, grant_type, scopes, audience, resource, token_params, .. } = &**own;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let (grant_type, audience, resource) = (text(grant_type), text(audience), text(resource));
        let params: Vec<_> = token_params.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let (scopes, params) = (scopes.join(","), params.join(","));
        format!("{name}/{profile} {} {grant_type} [{scopes}] {audience} {resource} [{params}]", grant.as_str())
    };
    connection.definitions().map(line).collect()
}

#[test]
fn a_profile_inherits_the_keys_that_it_does_not_override() {
    let text = format!(
        "connections:
- {{{GOOD}, grant_type: machine, scopes: a, audience: aud, resource: res, token_params: {{x: \"1\"}}, username: u,
   password: p, profiles: [
    {{name: same}},
    {{name: read, scopes: [b, c], audience: other}},
    {{name: person, grant: password, scopes: [], resource: r2, token_params: {{}}}}],
   routes: [{{host: a.test, profile: read}}, {{host: b.test, profile: default, only_when_named: true}}, {{host: c.test}}]}}
"
    );
    let model = accept(&text).model;
    let expected = [
        "crm/default client_credentials machine [a] aud res [x=1]",
        "crm/same client_credentials machine [a] aud res [x=1]",
        "crm/read client_credentials machine [b,c] other res [x=1]",
        "crm/person password  [] aud r2 []",
    ];
    assert_eq!(definition_lines(&model.connections[0]), expected);
    let Grant::Password { username, .. } = &model.connections[0].profiles[2].grant else { panic!("another grant") };
    assert_eq!(username, "u");
    let routes = &model.connections[0].routes;
    let stated: Vec<_> =
        routes.iter().map(|route| (route.profile.as_ref().map(Name::as_str), route.only_when_named)).collect();
    assert_eq!(stated, [(Some("read"), false), (Some("default"), true), (None, false)]);
}

#[test]
fn each_mistake_in_a_profile_is_reported() {
    let text = "\
connections:
  - name: crm
    client_id: id
    token_url: https://login.acme.test/token
    username: u
    subject_token: {from: caller}
    profiles:
      - name: read
        grant: password
      - name: read
        grants: x
      - name: default
      - grant: jwt_berer
      - {name: last, scopes: {a: b}, token_params: {scope: x}, authorize_params: {state: x}}
";
    let expected = [
        "10:15: connections[0].profiles[1].name: another profile is named `read` (a.yaml:8); give each profile its own name",
        "11:9: connections[0].profiles[1].grants: unknown key `grants`; did you mean `grant`?",
        "12:15: connections[0].profiles[2].name: `default` is reserved for the connection itself; give the profile another name",
        "13:9: connections[0].profiles[3].name: `name` is missing; give the profile a name",
        "13:16: connections[0].profiles[3].grant: `jwt_berer` is not a valid value; did you mean `jwt_bearer`?",
        "14:30: connections[0].profiles[4].scopes: must be a single value",
        "14:53: connections[0].profiles[4].token_params.scope: the grant sets `scope` itself",
        "14:83: connections[0].profiles[4].authorize_params.state: the grant sets `state` itself",
    ];
    // Missing keys of a grant are reported at the connection, unused ones only if all grants are valid.
    check_some(text, &expected, &["2:5: connections[0].password: `password` is missing"]);
}

/// Like [`check`], in any order, with `more` problems.
#[track_caller]
fn check_some(text: &str, expected: &[&str], more: &[&str]) {
    let Err(problems) = load_text(text, Path::new("a.yaml")) else { panic!("accepted:\n{text}") };
    let got = problems.to_string();
    for expected in expected.iter().chain(more) {
        assert!(got.lines().any(|line| line.starts_with(&format!("a.yaml:{expected}"))), "{expected} is not in\n{got}");
    }
    assert_eq!(got.lines().count(), expected.len() + more.len(), "{got}");
}

#[test]
fn keys_of_a_grant_belong_to_the_connection_even_for_a_profile() {
    let with = |keys: &str| {
        let text = format!("connections:\n- {{{GOOD},\n   {keys}}}\n");
        load_text(&text, Path::new("a.yaml")).map(|_| ()).map_err(|problems| problems.to_string())
    };
    let own = "username: u, password: p";
    assert_eq!(with(&format!("{own}, profiles: [{{name: x, grant: password}}]")), Ok(()));
    let unused = with(&format!("{own}, profiles: [{{name: x}}]")).unwrap_err();
    assert!(unused.contains("connections[0].username: applies only to `grant: password`"), "{unused}");
    let missing = with("profiles: [{name: x, grant: token_exchange}, {name: y, grant: token_exchange}]").unwrap_err();
    assert_eq!(missing.matches("connections[0].subject_token: `subject_token` is missing").count(), 1, "{missing}");
    let from_caller = "subject_token: {from: caller}, keep_warm: 1h, profiles: [{name: x, grant: token_exchange}]";
    assert_eq!(with(&format!("{from_caller}, routes: [{{host: a.test, existing: keep}}]")), Ok(()));
    let kept = with(&format!("{from_caller}, routes: [{{host: a.test, profile: x, existing: keep}}]")).unwrap_err();
    assert!(kept.contains("`existing` contradicts"), "{kept}");
}

#[test]
fn a_route_must_name_an_existing_profile() {
    let route = |keys: &str| {
        let text = format!(
            "connections:\n- {{{GOOD}, profiles: [{{name: read-only}}], routes: [{{host: a.test, {keys}}}]}}\n"
        );
        load_text(&text, Path::new("a.yaml")).map(|_| ()).map_err(|problems| problems.to_string())
    };
    assert_eq!(route("profile: read-only"), Ok(()));
    for (keys, expected) in [
        (
            "profile: read_only",
            "routes[0].profile: the connection has no profile `read_only`; did you mean `read-only`?",
        ),
        ("profile: write", "the connection has no profile `write`; add it under `profiles` of the connection"),
        ("profile: Read", "routes[0].profile: `Read` is not a valid name"),
        ("only_when_named: yes", "routes[0].only_when_named: `yes` is neither true nor false"),
    ] {
        let problems = route(keys).unwrap_err();
        assert!(problems.contains(expected), "{problems}");
    }
}

#[test]
fn scopes_must_be_among_available_scopes() {
    let keys = "available_scopes: {Read: api.read, Write all: [\"api write\", api.all], Both: \"api.read, api.x\"},";
    let text = format!(
        "connections:\n- {{{GOOD}, {keys} scopes: \"Read,Both\", profiles: [{{name: w, scopes: [Write all]}}, {{name: n}}]}}\n"
    );
    let connection = &accept(&text).model.connections[0];
    let scopes: Vec<_> = connection.definitions().map(|own| own.scopes.join("|")).collect();
    assert_eq!(scopes, ["api.read|api.x", "api write|api.all", "api.read|api.x"]);
    assert_eq!(connection.available_scopes.len(), 3);
    let text = "\
connections:
  - name: crm
    client_id: id
    token_url: https://login.acme.test/token
    available_scopes: {Read: api.read, Write: }
    scopes: [Raed, api.read]
    profiles: [{name: a, scopes: \"Write Other\"}]
";
    let expected = [
        "5:40: connections[0].available_scopes.Write: stands for no scope",
        "6:14: connections[0].scopes[0]: `Raed` is not in `available_scopes`; did you mean `Read`?",
        "6:20: connections[0].scopes[1]: `api.read` is not in `available_scopes`; use its name: Read",
        "7:34: connections[0].profiles[0].scopes: `Other` is not in `available_scopes`; add it",
    ];
    check(text, &expected);
}

#[test]
fn only_when_named_routes_conflict_only_within_a_connection_and_profile() {
    /// Two routes of one connection, then one of another, for the same host.
    #[track_caller]
    fn conflicts(routes: [&str; 3]) -> Vec<String> {
        let [one, two, other] = routes.map(|keys| format!("{{host: a.test{keys}}}"));
        let text = format!(
            "connections:\n- {{{GOOD}, profiles: [{{name: p}}, {{name: q}}], routes: [\n{one},\n{two}]}}\n- {{{}, routes: [\n{other}]}}\n",
            GOOD.replace("crm", "erp"),
        );
        let Err(problems) = load_text(&text, Path::new("a.yaml")) else { return Vec::new() };
        problems.problems.iter().map(|problem| format!("{} {}", problem.path, problem.message)).collect()
    }
    let none: [String; 0] = [];
    let named = ", only_when_named: true";
    assert_eq!(conflicts(["", named, named]), none);
    assert_eq!(conflicts([", only_when_named: true, profile: p", ", only_when_named: true, profile: q", ""]), none);
    let conflict =
        |at: &str, with: &str, line: u32| format!("{at} matches the same requests as {with} (a.yaml:{line})");
    let (first, second) = ("connections[0].routes[0]", "connections[0].routes[1]");
    for stated in
        [[named, named], [", only_when_named: true, profile: p", named], [named, ", only_when_named: true, profile: p"]]
    {
        assert_eq!(conflicts([stated[0], stated[1], ""]), [conflict(second, first, 3)], "{stated:?}");
    }
    // Routes without `only_when_named` conflict whatever their profiles are.
    let plain = [conflict(second, first, 3), conflict("connections[1].routes[0]", first, 3)];
    assert_eq!(conflicts([", profile: p", ", profile: q", ""]), plain);
}
