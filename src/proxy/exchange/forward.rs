//! The upstream request: its route, destination and path, and how it is built.
//!
//! Invariant: the token is injected last, and only by `inject::inject`.

use std::rc::Rc;
use std::sync::Arc;

use http::header::PROXY_AUTHORIZATION;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderName, Request, Uri, Version};

use crate::dial::Forwarding;
use crate::model::connection::RouteMatch;
use crate::model::origin::Origin;
use crate::proxy::body::{Progress, RequestBody, RequestSource};
use crate::proxy::error::{Fault, ProxyError};
use crate::proxy::headers;
use crate::proxy::inject::{self, NotInjected, Tokens};
use crate::proxy::peer::TunnelContext;
use crate::proxy::target::{self, Target};
use crate::proxy::upgrade;
use crate::proxy::upstream::{Checkout, Destination, Protocol};
use crate::router;
use crate::snapshot::BoundRoute;
use crate::telemetry::traces::Propagation;

const LONG_TOKEN: &str =
    "with the token in its query, the request target exceeds 65534 bytes; inject the token into a header instead";
pub const AMBIGUOUS_PATH: &str =
    "the upstream could read the path as one that this route does not match; write it without dot segments and escapes";

/// The destination of a request, the route that matched it, and its path there.
pub struct Forward<'a> {
    pub bound: Option<&'a BoundRoute>,
    pub destination: Destination,
    pub path: PathAndQuery,
    /// True if the caller accepts trailers.
    pub trailers: bool,
}

impl<'a> Forward<'a> {
    /// `rest` is the path after the mount's prefix.
    pub fn by_route(bound: &'a BoundRoute, target: &Target, rest: &str) -> Result<Forward<'a>, Fault> {
        let (origin, path) = match (&bound.route.matches, target) {
            (RouteMatch::Host { port, .. }, Target::Absolute(origin, path)) => {
                (bound.route.tls.upstream_origin(*port, origin), path.clone())
            }
            (RouteMatch::Mount { upstream, base, .. }, Target::Origin(_, path)) => {
                let slash = if rest.is_empty() && base.is_root() { "/" } else { "" };
                let (mark, query) = path.query().map_or(("", ""), |query| ("?", query));
                let mapped = PathAndQuery::try_from([base.as_str(), rest, slash, mark, query].concat());
                let mapped = mapped.map_err(|_| ProxyError::BadRequestTarget("the path is not valid"))?;
                if !router::stays_below(base, mapped.path()) {
                    return Err(ProxyError::BadRequestTarget(AMBIGUOUS_PATH).into());
                }
                (upstream.clone(), mapped)
            }
            _ => return Err(ProxyError::NoRoute.into()),
        };
        let (tls, server_name, dialer) = (bound.tls.clone(), bound.route.tls.server_name.clone(), bound.dialer.clone());
        let destination = Destination { origin, tls, server_name, protocol: Protocol::Any, dialer };
        Ok(Forward { bound: Some(bound), destination, path, trailers: false })
    }

    /// Fields that the caller's trailers must not contain.
    pub fn reserved(&self) -> Arc<[HeaderName]> {
        self.bound.map(|bound| bound.reserved.clone()).unwrap_or_default()
    }

    /// Builds the request that goes upstream. The token is injected last.
    pub fn request(
        &self,
        head: &Parts,
        checkout: &Checkout,
        tokens: &Tokens,
        source: &RequestSource,
        progress: Rc<Progress>,
        trace: Option<&Propagation>,
    ) -> Result<Request<RequestBody>, Fault> {
        if self.destination.protocol == Protocol::WebSocket && !checkout.supports_websocket() {
            return Err(ProxyError::UpstreamProtocol
                .because("the upstream speaks only HTTP/2, and does not accept WebSocket over it"));
        }
        let mut request = Request::new(source.body(progress));
        *request.method_mut() = head.method.clone();
        *request.version_mut() = checkout.version();
        *request.headers_mut() = head.headers.clone();
        let (headers, mut path) = (request.headers_mut(), self.path.clone());
        if let Some(trace) = trace {
            trace.apply(headers);
        }
        for (name, value) in self.bound.into_iter().flat_map(|bound| &bound.route.set_headers) {
            headers::remove_all_spellings(headers, name);
            headers.insert(name, value.clone());
        }
        let points = self.bound.into_iter().flat_map(|bound| &bound.tokens).zip(tokens);
        for (point, token) in points.filter_map(|(point, token)| Some((point, token.as_ref()?))) {
            let injected = inject::inject(headers, &mut path, &self.destination.origin, &point.inject, token);
            injected.map_err(|why| match why {
                NotInjected::WrongOrigin => ProxyError::EgressDenied("the token was not granted for this origin"),
                NotInjected::TooLong => ProxyError::TargetTooLong(LONG_TOKEN),
            })?;
        }
        if checkout.forwarding().is_none() && target::is_server_wide(head) && path == "/" {
            path = PathAndQuery::from_static("*");
        }
        let origin = &self.destination.origin;
        *request.uri_mut() = match checkout.forwarding() {
            _ if checkout.version() == Version::HTTP_2 => {
                if self.destination.protocol == Protocol::WebSocket {
                    upgrade::as_extended_connect(&mut request);
                }
                headers::for_http2(request.headers_mut(), origin, path, self.trailers)?
            }
            Some(Forwarding { authorization }) => {
                let credentials = authorization.iter().map(|value| (PROXY_AUTHORIZATION, value.clone()));
                request.headers_mut().extend(credentials);
                headers::absolute_uri(origin, path)?
            }
            None => Uri::from(path),
        };
        if checkout.version() != Version::HTTP_2 {
            headers::frame_body(&mut request);
        }
        Ok(request)
    }
}

/// The target of a request inside a tunnel, which must be that of the tunnel.
pub fn target_inside(tunnel: &TunnelContext, target: Target) -> Result<Target, Fault> {
    let origin = Origin { scheme: tunnel.scheme, host: tunnel.host.clone(), port: tunnel.port };
    match target {
        _ if tunnel.sni_mismatch => Err(ProxyError::AuthorityMismatch.into()),
        Target::Origin(Some(host), path) if Origin::new(tunnel.scheme, host.clone()) == origin => {
            Ok(Target::Absolute(origin, path))
        }
        Target::Absolute(requested, path) if requested == origin => Ok(Target::Absolute(origin, path)),
        Target::Connect(..) => Err(ProxyError::BadRequestTarget("a tunnel inside a tunnel").into()),
        _ => Err(ProxyError::AuthorityMismatch.into()),
    }
}
