//! `strip`: the caller's own credentials that a route removes, since they could make the request act for another
//! account.

use std::collections::HashSet;

use http::HeaderName;

use super::Route;
use super::inject::{ACCESS_TOKEN, Inject, OtherBearer, canonical_header};

/// The keyword for the two lists below.
pub const KNOWN: &str = "known";

/// Headers that `known` stands for; `docs/routing.md` lists them.
pub const KNOWN_HEADERS: [&str; 36] = [
    "access-token",
    "api-key",
    "apikey",
    "auth-token",
    "authorization",
    "circle-token",
    "cookie",
    "dd-api-key",
    "dd-application-key",
    "deploy-token",
    "job-token",
    "ocp-apim-subscription-key",
    "private-token",
    "x-access-token",
    "x-amz-security-token",
    "x-api-key",
    "x-api-token",
    "x-apikey",
    "x-auth-key",
    "x-auth-token",
    "x-consul-token",
    "x-figma-token",
    "x-forwarded-access-token",
    "x-functions-key",
    "x-goog-api-key",
    "x-goog-iam-authorization-token",
    "x-ms-authorization-auxiliary",
    "x-rapidapi-key",
    "x-redmine-api-key",
    "x-serverless-authorization",
    "x-session-token",
    "x-shopify-access-token",
    "x-shopify-storefront-access-token",
    "x-token",
    "x-user-token",
    "x-vault-token",
];

/// Query parameters that `known` stands for. Not `key` and `token`, which mean other things to many APIs.
pub const KNOWN_PARAMETERS: [&str; 13] = [
    ACCESS_TOKEN,
    "api-key",
    "apiKey",
    "api_key",
    "api_token",
    "apikey",
    "auth_token",
    "job_token",
    "oauth_token",
    "private_token",
    "session_token",
    "subscription-key",
    "x-api-key",
];

/// The `strip` key as written; by default nothing is removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Strip {
    pub known: bool,
    pub names: Vec<StripName>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StripName {
    /// `name`: the header and the query parameter.
    HeaderOrParameter(HeaderName, String),
    /// `?name`: only the query parameter.
    Parameter(String),
}

/// The names that a route removes from each request. Its injection points are excluded, since `existing` decides there.
#[derive(Debug, PartialEq, Eq)]
pub struct Stripped {
    /// Canonical names ([`canonical_header`]).
    headers: HashSet<String>,
    parameters: HashSet<String>,
}

impl Stripped {
    /// `None` if the route removes nothing.
    pub fn of(route: &Route) -> Option<Stripped> {
        let Strip { known, names } = &route.strip;
        if !known && names.is_empty() {
            return None;
        }
        let (mut headers, mut parameters) = (HashSet::new(), HashSet::new());
        if *known {
            headers.extend(KNOWN_HEADERS.map(str::to_owned));
            parameters.extend(KNOWN_PARAMETERS.map(str::to_owned));
        }
        for inject in route.injection_points() {
            match inject {
                Inject::Header { header, .. } => headers.remove(&*canonical_header(header.as_str())),
                Inject::Query { name } => parameters.remove(name),
                Inject::Nothing => false,
            };
        }
        if route.other_bearer() == Some(OtherBearer::Parameter) {
            parameters.remove(ACCESS_TOKEN);
        }
        for name in names {
            match name {
                StripName::HeaderOrParameter(header, parameter) => {
                    headers.insert(canonical_header(header.as_str()).into_owned());
                    parameters.insert(parameter.clone());
                }
                StripName::Parameter(parameter) => drop(parameters.insert(parameter.clone())),
            }
        }
        Some(Stripped { headers, parameters })
    }

    pub fn has_header(&self, name: &HeaderName) -> bool {
        self.headers.contains(&*canonical_header(name.as_str()))
    }

    pub fn has_parameter(&self, name: &str) -> bool {
        self.parameters.contains(name)
    }

    pub fn headers(&self) -> impl Iterator<Item = HeaderName> {
        self.headers.iter().filter_map(|name| HeaderName::try_from(name).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;
    use crate::model::connection::{HostPattern, OtherToken, PortRule, RouteMatch};
    use crate::model::origin::Host;

    fn route(inject: Inject, others: Vec<Inject>, strip: Strip) -> Route {
        let other = |inject| OtherToken { connection: Name::parse("maps").unwrap(), inject };
        let pattern = HostPattern::Exact(Host::parse("a.test").unwrap());
        let sample = Route::sample(RouteMatch::Host { pattern, port: PortRule::Default });
        Route { inject, others: others.into_iter().map(other).collect(), strip, ..sample }
    }

    fn header(name: &str) -> Inject {
        Inject::Header { header: name.parse().unwrap(), scheme: String::new() }
    }

    fn query(name: &str) -> Inject {
        Inject::Query { name: name.to_owned() }
    }

    fn known() -> Strip {
        Strip { known: true, names: Vec::new() }
    }

    #[test]
    fn nothing_is_stripped_by_default() {
        assert_eq!(Stripped::of(&route(header("authorization"), Vec::new(), Strip::default())), None);
    }

    #[test]
    fn injection_points_are_not_stripped() {
        #[track_caller]
        fn check(inject: Inject, others: Vec<Inject>, headers: [bool; 3], parameters: [bool; 3]) {
            let stripped = Stripped::of(&route(inject, others, known())).unwrap();
            let has = |name: &str| stripped.has_header(&name.parse().unwrap());
            assert_eq!(["authorization", "cookie", "x-api-key"].map(has), headers);
            assert_eq!(["access_token", "api_key", "key"].map(|name| stripped.has_parameter(name)), parameters);
        }
        check(header("authorization"), vec![], [false, true, true], [false, true, false]);
        check(header("x-api-key"), vec![], [true, true, false], [false, true, false]);
        check(header("x_api_key"), vec![], [true, true, false], [false, true, false]);
        check(header("authorization"), vec![header("x-api-key")], [false, true, false], [false, true, false]);
        check(query("access_token"), vec![], [true, true, true], [false, true, false]);
        check(query("api_key"), vec![], [true, true, true], [false, false, false]);
        check(Inject::Nothing, vec![], [true, true, true], [true, true, false]);
    }

    #[test]
    fn names_are_compared_like_lenient_servers_do() {
        let names = vec![
            StripName::HeaderOrParameter("x-own".parse().unwrap(), "X-Own".to_owned()),
            StripName::Parameter("sig".to_owned()),
        ];
        let stripped = Stripped::of(&route(header("authorization"), vec![], Strip { known: false, names })).unwrap();
        for (name, expected) in [("X-OWN", true), ("x_own", true), ("x-own_", true), ("x-owner", false), ("sig", false)]
        {
            assert_eq!(stripped.has_header(&name.parse().unwrap()), expected, "{name}");
        }
        for (name, expected) in [("X-Own", true), ("sig", true), ("x-own", false), ("Sig", false), ("api_key", false)] {
            assert_eq!(stripped.has_parameter(name), expected, "{name}");
        }
    }

    #[test]
    fn the_docs_list_what_is_known() {
        let page = include_str!("../../../docs/routing.md");
        let (_, rest) = page.split_once("`strip: known` removes these headers").expect("a paragraph about it");
        let paragraph = rest.split("\n\n").next().unwrap_or_default().to_ascii_lowercase();
        for name in KNOWN_HEADERS {
            assert!(paragraph.contains(&format!("`{name}`")), "{name}");
        }
        for name in KNOWN_PARAMETERS {
            assert!(paragraph.contains(&format!("`?{}`", name.to_ascii_lowercase())), "{name}");
        }
    }
}
