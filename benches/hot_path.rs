//! Cost of the hot path of a request: match, slot, inject. `cargo bench --profile dist`.
//!
//! Times are multiples of one lookup in a `HashMap` of the same size in the same run, because absolute times are
//! meaningless on a shared machine. Each figure is the best of several interleaved slices.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use keybearer::bench::{
    AccessToken, Audit, Authority, Callers, Clock, Connection, Events, Label, MemoryStore, Metrics, Origin,
    RefreshToken, Revocation, RevocationFuture, Router, Scheme, Tasks, TokenCache, TokenFuture, TokenRequestContext,
    TokenSet, TokenSource, inject, load_text,
};

const ROUNDS: usize = 9;
const SLICE: u32 = 200_000;

/// A name and the work to time.
type Case<'a> = (&'a str, &'a dyn Fn());

struct Fixed;

impl TokenSource for Fixed {
    fn first_grant<'a>(&'a self, _: TokenRequestContext<'a>) -> TokenFuture<'a> {
        let access_token = AccessToken::parse(&"t".repeat(600)).expect("a token");
        let expires_in = Some(Duration::from_secs(3600));
        Box::pin(async move {
            Ok(TokenSet { access_token, expires_in, refresh_token: None, refresh_token_expires_in: None, scopes: None })
        })
    }

    fn refresh<'a>(&'a self, _: &'a RefreshToken, context: TokenRequestContext<'a>) -> TokenFuture<'a> {
        self.first_grant(context)
    }

    fn revoke<'a>(&'a self, _: &'a str, _: &'static str) -> RevocationFuture<'a> {
        Box::pin(async { Ok(Revocation::NoEndpoint) })
    }
}

fn main() {
    for routes in [10, 1_000, 10_000] {
        compare(routes);
    }
}

/// Times `routes` connections with one host each; requests go to the middle one.
fn compare(routes: usize) {
    let connections = connections(routes);
    let origin = |index: usize| {
        let authority = Authority::parse(&format!("h{index}.test")).expect("a host");
        Origin::new(Scheme::Http, authority)
    };
    let wanted = origin(routes / 2);
    let map: HashMap<Origin, usize> = (0..routes).map(|index| (origin(index), index)).collect();
    let label = |c: &Connection| Label { connection: c.name.clone(), profile: c.profile.clone(), bare: true };
    let entries = connections
        .iter()
        .flat_map(|c| c.routes.iter().map(move |route| (route.clone(), label(c), Callers::All, c.name.clone())));
    let router = Router::new(entries);

    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let clock = Clock::system();
    let metrics = Metrics::new().expect("metrics");
    let (store, tasks) = (Arc::new(MemoryStore::default()), Tasks::default());
    let slot = runtime.block_on(async {
        let cache = TokenCache::new(store, clock.clone(), tasks, metrics, Events::default(), Audit::default());
        let slots = cache.ensure(&connections[routes / 2], Box::new(Fixed));
        let slot = slots.shared().expect("a shared token").clone();
        slot.wait_for_attempts(1).await;
        slot
    });
    let target = Origin { scheme: Scheme::Https, port: 443, ..wanted.clone() };

    let rule = &connections[routes / 2].routes[0].inject;
    let headers = RefCell::new(head());
    let cases: [Case; 5] = [
        ("HashMap lookup", &|| {
            black_box(map.get(black_box(&wanted)));
        }),
        ("match", &|| {
            black_box(router.find(black_box(&wanted), "/v1/x", &Method::GET, None, None));
        }),
        ("slot", &|| {
            black_box(slot.fresh(clock.now()));
        }),
        ("slot and header value", &|| {
            let token = slot.fresh(clock.now()).expect("a token");
            black_box(token.header_for(black_box(&target), "Bearer"));
        }),
        ("slot and inject", &|| {
            let token = slot.fresh(clock.now()).expect("a token");
            let mut path = PathAndQuery::from_static("/v1/x");
            let injected = inject(&mut headers.borrow_mut(), &mut path, black_box(&target), rule, &token);
            assert!(black_box(injected).is_ok());
        }),
    ];
    let mut best = [Duration::MAX; 5];
    for _ in 0..ROUNDS {
        for (best, (_, case)) in best.iter_mut().zip(&cases) {
            let start = Instant::now();
            (0..SLICE).for_each(|_| case());
            *best = (*best).min(start.elapsed());
        }
    }
    println!("{routes} routes, in lookups:");
    for (best_of, (name, _)) in best.iter().zip(&cases) {
        println!("  {name:24}{:6.2}", best_of.as_secs_f64() / best[0].as_secs_f64());
    }
}

/// The header fields of a request, with a caller's credential at the injection point.
fn head() -> HeaderMap {
    let names = ["host", "user-agent", "accept", "accept-encoding", "x-request-id", "via", "authorization"];
    names.map(|name| (HeaderName::from_static(name), HeaderValue::from_static("value"))).into_iter().collect()
}

fn connections(count: usize) -> Vec<Arc<Connection>> {
    let mut text = "connections:\n".to_owned();
    for index in 0..count {
        text += &format!(
            "- {{name: c{index}, client_id: a, token_url: \"https://as.test/token\", routes: [{{host: h{index}.test}}]}}\n"
        );
    }
    load_text(&text, std::path::Path::new("bench.yaml")).expect("a configuration").model.connections
}
