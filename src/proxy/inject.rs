//! Injects the token at the route's injection point, and removes the caller's own value there. Pure.
//!
//! Invariants: `inject` is the only function that writes a token into a request, and it compares the origin that is
//! about to be dialled with the origins of the token. It runs last, so nothing that the caller sent can remove or
//! duplicate the token. A request never has the route's bearer token by one method of RFC 6750 and the caller's by
//! another.

use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;

use super::headers;
use crate::model::connection::{ACCESS_TOKEN, Existing, Inject, OtherBearer, Stripped};
use crate::model::origin::Origin;
use crate::model::query;
use crate::token::slot::InjectedToken;

/// The tokens of one request, in the order of its route's injection points. `None`: nothing is injected there, or the
/// caller's own value is kept.
pub type Tokens = Vec<Option<Arc<InjectedToken>>>;

/// What to do about the caller's own value at the injection point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injection {
    /// The token is injected.
    Free,
    /// The caller's own value is kept; the request needs no token.
    Kept,
    /// The request is refused.
    Refused,
}

/// Judges the credentials that the caller sent: at the injection point, and by the other bearer method.
pub fn judge_existing(
    headers: &HeaderMap,
    path: &PathAndQuery,
    (inject, other): (&Inject, Option<OtherBearer>),
    existing: Existing,
) -> Injection {
    if existing == Existing::Overwrite {
        return Injection::Free;
    }
    let at_point = match inject {
        Inject::Header { header, .. } => headers::values_of_all_spellings(headers, header).count(),
        Inject::Query { name } => query::count(path, |parameter| parameter == name),
        Inject::Nothing => 0,
    };
    let by_other_method = match other {
        Some(OtherBearer::Header) => {
            headers::values_of_all_spellings(headers, &AUTHORIZATION).filter(is_bearer).count()
        }
        Some(OtherBearer::Parameter) => query::count(path, |parameter| parameter == ACCESS_TOKEN),
        None => 0,
    };
    match (existing, at_point + by_other_method) {
        (_, 0) => Injection::Free,
        (Existing::Keep, 1) => Injection::Kept,
        _ => Injection::Refused,
    }
}

/// Removes the caller's bearer token sent by the other method, so that the request has only the route's.
pub fn clear_other(headers: &mut HeaderMap, path: &mut PathAndQuery, other: OtherBearer) {
    match other {
        OtherBearer::Header
            if headers::values_of_all_spellings(headers, &AUTHORIZATION).any(|value| is_bearer(&value)) =>
        {
            headers::remove_all_spellings(headers, &AUTHORIZATION);
        }
        OtherBearer::Header => {}
        OtherBearer::Parameter => drop(query::remove(path, |parameter| parameter == ACCESS_TOKEN)),
    }
}

fn is_bearer(value: &&[u8]) -> bool {
    let scheme = value.trim_ascii_start().split(|b| b.is_ascii_whitespace()).next();
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer"))
}

/// Removes the credentials that the route strips. Returns their number.
pub fn strip(headers: &mut HeaderMap, path: &mut PathAndQuery, stripped: &Stripped) -> usize {
    let unwanted: Vec<_> = headers.keys().filter(|name| stripped.has_header(name)).cloned().collect();
    let mut removed = query::remove(path, |name| stripped.has_parameter(name));
    for name in unwanted {
        removed += headers.get_all(&name).iter().count();
        headers.remove(name);
    }
    removed
}

/// Why the token was not injected.
#[derive(Debug, PartialEq, Eq)]
pub enum NotInjected {
    /// The token was not granted for this origin.
    WrongOrigin,
    /// With the token in its query the request target exceeds the maximum length.
    TooLong,
}

/// Writes the token into a request for `origin`, which then has it exactly once.
pub fn inject(
    headers: &mut HeaderMap,
    path: &mut PathAndQuery,
    origin: &Origin,
    inject: &Inject,
    token: &InjectedToken,
) -> Result<(), NotInjected> {
    match inject {
        Inject::Header { header, scheme } => {
            let value = token.header_for(origin, scheme).ok_or(NotInjected::WrongOrigin)?;
            headers::remove_all_spellings(headers, header);
            headers.insert(header, value);
        }
        Inject::Query { name } => {
            let text = token.text_for(origin).ok_or(NotInjected::WrongOrigin)?;
            query::remove(path, |parameter| parameter == name);
            *path = query::append(path, name, text).ok_or(NotInjected::TooLong)?;
        }
        Inject::Nothing => {}
    }
    Ok(())
}

/// Removes the caller's own value at the injection point: a request forwarded without a token has no credential there.
pub fn clear(headers: &mut HeaderMap, path: &mut PathAndQuery, inject: &Inject) {
    match inject {
        Inject::Header { header, .. } => headers::remove_all_spellings(headers, header),
        Inject::Query { name } => drop(query::remove(path, |parameter| parameter == name)),
        Inject::Nothing => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderName;

    use super::*;
    use crate::clock::Clock;
    use crate::model::connection::{self, Connection, HostPattern, PortRule, Route, UpstreamTls};
    use crate::model::origin::{Authority, Host, Scheme};
    use crate::model::token::AccessToken;
    use crate::token::deadlines::Deadlines;
    use crate::token::slot::Granted;

    fn path(text: &str) -> PathAndQuery {
        PathAndQuery::try_from(text).unwrap()
    }

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    fn header(name: &str) -> Inject {
        Inject::Header { header: name.parse().unwrap(), scheme: String::new() }
    }

    fn origin(scheme: Scheme, authority: &str) -> Origin {
        Origin::new(scheme, Authority::parse(authority).unwrap())
    }

    /// A token granted for `https://api.test`.
    fn api_token() -> InjectedToken {
        let pattern = HostPattern::Exact(Host::parse("api.test").unwrap());
        let route = Route {
            inject: header("authorization"),
            tls: UpstreamTls { upgrade: true, ..UpstreamTls::default() },
            ..Route::sample(connection::RouteMatch::Host { pattern, port: PortRule::Default })
        };
        let origins = Connection { routes: vec![route], ..Connection::sample("crm") }.origins();
        let now = Clock::simulated().now();
        let granted = Granted { obtained: now, scopes: Vec::new(), refresh_token_ends: None };
        let deadlines = Deadlines { usable_until: now, expires: now, refresh_at: now };
        InjectedToken::new(1, AccessToken::parse("secret").unwrap(), Arc::new(origins), granted, deadlines)
    }

    #[test]
    fn a_token_is_injected_only_for_an_origin_that_it_was_granted_for() {
        let token = api_token();
        let query = Inject::Query { name: "key".to_owned() };
        let bearer = Inject::Header { header: AUTHORIZATION, scheme: "Bearer".to_owned() };
        let elsewhere = [
            origin(Scheme::Https, "evil.test"),
            origin(Scheme::Https, "x.api.test"),
            origin(Scheme::Https, "api.test:8443"),
            origin(Scheme::Http, "api.test:443"),
        ];
        for point in [&bearer, &header("x-api-key"), &query] {
            for origin in &elsewhere {
                let (mut headers, mut target) = (map(&[("authorization", "mine")]), path("/x?key=mine"));
                let injected = inject(&mut headers, &mut target, origin, point, &token);
                assert_eq!(injected, Err(NotInjected::WrongOrigin), "{point:?} {origin:?}");
                let untouched = (map(&[("authorization", "mine")]), path("/x?key=mine"));
                assert_eq!((headers, target), untouched, "{point:?} {origin:?}");
            }
        }
    }

    #[test]
    fn a_token_replaces_the_callers_own_value_in_all_its_spellings() {
        #[track_caller]
        fn check(point: &Inject, expected: (&[(&str, &str)], &str)) {
            let fields = [("authorization", "a"), ("authorization", "b"), ("x-api-key", "c"), ("x_api_key", "d")];
            let (mut headers, mut target) = (map(&fields), path("/x?a=%20&k%65y=1&key=2"));
            let api = origin(Scheme::Https, "api.test");
            assert_eq!(inject(&mut headers, &mut target, &api, point, &api_token()), Ok(()), "{point:?}");
            assert_eq!((headers, target), (map(expected.0), path(expected.1)), "{point:?}");
        }
        let sent = "/x?a=%20&k%65y=1&key=2";
        let bearer = Inject::Header { header: AUTHORIZATION, scheme: "Bearer".to_owned() };
        check(&bearer, (&[("authorization", "Bearer secret"), ("x-api-key", "c"), ("x_api_key", "d")], sent));
        let key = header("x-api-key");
        check(&key, (&[("authorization", "a"), ("authorization", "b"), ("x-api-key", "secret")], sent));
        let query = Inject::Query { name: "key".to_owned() };
        let all = [("authorization", "a"), ("authorization", "b"), ("x-api-key", "c"), ("x_api_key", "d")];
        check(&query, (&all, "/x?a=%20&key=secret"));
        check(&Inject::Nothing, (&all, sent));
    }

    #[test]
    fn the_route_decides_what_happens_to_the_callers_own_value() {
        const BEARER: (&str, &str) = ("authorization", "bearer mine");
        #[track_caller]
        fn check(
            at: (&Inject, Option<OtherBearer>),
            fields: &[(&str, &str)],
            sent: &str,
            (keep, refuse): (Injection, Injection),
        ) {
            let judge = |existing| judge_existing(&map(fields), &path(sent), at, existing);
            let found = (judge(Existing::Overwrite), judge(Existing::Keep), judge(Existing::Refuse));
            assert_eq!(found, (Injection::Free, keep, refuse), "{at:?} {fields:?} {sent}");
        }
        let (none, one, two) = (
            (Injection::Free, Injection::Free),
            (Injection::Kept, Injection::Refused),
            (Injection::Refused, Injection::Refused),
        );
        let key = Inject::Query { name: "key".to_owned() };
        check((&key, None), &[], "/x", none);
        check((&key, None), &[], "/x?key=a", one);
        check((&key, None), &[], "/x?key=a&k%65y=b", two);
        check((&key, None), &[BEARER], "/x?access_token=a", none);
        let bearer = (&header("authorization"), Some(OtherBearer::Parameter));
        check(bearer, &[("authorization", "Basic eDp5")], "/x?key=a", one);
        check(bearer, &[("authorization_", "Basic eDp5")], "/x", one);
        check(bearer, &[], "/x?acc%65ss_token=a", one);
        check(bearer, &[BEARER], "/x?access_token=a", two);
        check(bearer, &[], "/x?access_token=a&access_token=b", two);
        let parameter = Inject::Query { name: ACCESS_TOKEN.to_owned() };
        let parameter = (&parameter, Some(OtherBearer::Header));
        check(parameter, &[BEARER], "/x", one);
        check(parameter, &[("authorization", "Basic eDp5")], "/x", none);
        check(parameter, &[BEARER], "/x?access_token=a", two);
    }

    #[test]
    fn only_bearer_tokens_of_the_other_method_are_removed() {
        let fields = [("authorization", "Basic eDp5"), ("authorization", "BEARER a"), ("x-api-key", "k")];
        let (mut headers, mut target) = (map(&fields), path("/x?access_token=a&b=%20&access_token="));
        clear_other(&mut headers, &mut target, OtherBearer::Parameter);
        assert_eq!((headers.clone(), &target), (map(&fields), &path("/x?b=%20")));
        clear_other(&mut headers, &mut target, OtherBearer::Header);
        assert_eq!((headers, target), (map(&fields[2..]), path("/x?b=%20")));
        let mut basic = map(&fields[..1]);
        clear_other(&mut basic, &mut path("/x"), OtherBearer::Header);
        assert_eq!(basic, map(&fields[..1]));
    }
}
