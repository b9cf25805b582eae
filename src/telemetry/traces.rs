//! Tracing: sampling, spans, and context propagation.
//!
//! Not here: the header format (`context`), export to the collector (`export`), span contents (`proxy::report::spans`,
//! `oauth`).
//! Invariants: an unsampled request creates no span; ending a span never blocks: if the queue is full, the span is
//! dropped and counted. A span contains names and numbers, never a header value, a query string or a token.

mod context;
mod export;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::model::time::WallTime;
use context::Context;
pub use context::Propagation;
pub use export::start;
pub use opentelemetry_otlp::ExporterBuildError as BuildError;

/// Samples requests and queues their spans; cheap to clone. Off by default.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

struct Inner {
    queue: mpsc::Sender<Message>,
    /// Spans dropped because the queue was full.
    dropped: Arc<AtomicU64>,
    /// Ratio of the traces started here that are sampled, from 0 to 1.
    sample: f64,
}

enum Message {
    Span(Box<SpanData>),
    /// Its sender is dropped once every earlier span is exported or lost.
    Flush(oneshot::Sender<()>),
}

/// Tracing decision for one request.
#[derive(Default)]
pub enum Sampling {
    /// Not recorded; the caller's context is passed on unchanged.
    #[default]
    PassThrough,
    /// A trace starts here unsampled; the next hop receives that decision.
    Unsampled(Propagation),
    Recorded(Box<Span>),
}

impl Tracer {
    /// Decides for a request with `headers`: the caller's decision if it made one (W3C Trace Context §3.2), else by the
    /// sampling ratio. `wall` is called only if a span starts.
    pub fn join(&self, headers: &HeaderMap, method: &Method, wall: impl FnOnce() -> WallTime) -> Sampling {
        let Some(inner) = &self.0 else { return Sampling::PassThrough };
        match Context::from_headers(headers) {
            Some(context) if !context.is_sampled() => Sampling::PassThrough,
            None if fastrand::f64() >= inner.sample => Sampling::Unsampled(Context::new(false).propagation(true)),
            parent => {
                let context = parent.unwrap_or_else(|| Context::new(true));
                Sampling::Recorded(Box::new(Span::new(
                    inner.clone(),
                    context,
                    parent,
                    SpanKind::Server,
                    method,
                    wall(),
                )))
            }
        }
    }

    /// A root span for a request that the proxy initiates, if it is sampled.
    pub fn root(&self, method: &Method, wall: impl FnOnce() -> WallTime) -> Option<Span> {
        let inner = self.0.as_ref().filter(|inner| fastrand::f64() < inner.sample)?;
        Some(Span::new(inner.clone(), Context::new(true), None, SpanKind::Client, method, wall()))
    }

    /// Waits until all ended spans are exported or lost, for at most `limit`.
    pub async fn flush(&self, limit: Duration) {
        let Some(inner) = &self.0 else { return };
        let (done, flushed) = oneshot::channel();
        let flush = async {
            if inner.queue.send(Message::Flush(done)).await.is_ok() {
                let _ = flushed.await;
            }
        };
        let _ = tokio::time::timeout(limit, flush).await;
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Tracer(on)" } else { "Tracer(off)" })
    }
}

/// A span in progress. It is exported by [`Span::end`], and discarded if dropped.
pub struct Span {
    inner: Arc<Inner>,
    /// Trace id, and this span's id.
    context: Context,
    parent: Option<Context>,
    kind: SpanKind,
    name: &'static str,
    started: SystemTime,
    began: Instant,
    attributes: Vec<KeyValue>,
    failed: bool,
}

impl Span {
    /// A span with a new id in the trace of `context`. `parent` is a remote span.
    fn new(
        inner: Arc<Inner>,
        context: Context,
        parent: Option<Context>,
        kind: SpanKind,
        method: &Method,
        wall: WallTime,
    ) -> Span {
        Span::begin(inner, context.child(), parent, kind, method, wall.to_system())
    }

    fn begin(
        inner: Arc<Inner>,
        context: Context,
        parent: Option<Context>,
        kind: SpanKind,
        method: &Method,
        started: SystemTime,
    ) -> Span {
        let known = known_method(method);
        let attributes = vec![KeyValue::new("http.request.method", known.unwrap_or("_OTHER"))];
        let name = known.unwrap_or("HTTP");
        Span { inner, context, parent, kind, name, started, began: Instant::now(), attributes, failed: false }
    }

    /// A span for an outgoing request made on behalf of this one.
    pub fn child(&self, method: &Method) -> Span {
        let started = self.started + self.began.elapsed();
        let parent = Some(self.context);
        Span::begin(self.inner.clone(), self.context.child(), parent, SpanKind::Client, method, started)
    }

    /// The context for the next hop, whose span becomes a child of this one. `new_trace`: the trace started here.
    pub fn propagation(&self, new_trace: bool) -> Propagation {
        self.context.propagation(new_trace)
    }

    /// True if the span has no remote parent.
    pub fn is_root(&self) -> bool {
        self.parent.is_none()
    }

    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.attributes.push(KeyValue::new(key, value));
    }

    /// Marks the span as failed. `kind` is from a closed list.
    pub fn fail(&mut self, kind: impl Into<Value>) {
        self.set("error.type", kind);
        self.failed = true;
    }

    pub fn end(self) {
        let ended = self.started + self.began.elapsed();
        let Context { trace, span, .. } = self.context;
        let data = SpanData {
            span_context: SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::NONE),
            parent_span_id: self.parent.map_or(SpanId::INVALID, |parent| parent.span),
            parent_span_is_remote: self.parent.is_some_and(|parent| parent.remote),
            span_kind: self.kind,
            name: self.name.into(),
            start_time: self.started,
            end_time: ended,
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: if self.failed { Status::error("") } else { Status::Unset },
            instrumentation_scope: InstrumentationScope::builder("keybearer").build(),
        };
        if self.inner.queue.try_send(Message::Span(Box::new(data))).is_err() {
            self.inner.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Well-known methods (OpenTelemetry semantic conventions for HTTP); any other method is untrusted text.
fn known_method(method: &Method) -> Option<&'static str> {
    const KNOWN: [&str; 9] = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE"];
    KNOWN.into_iter().find(|known| *known == method.as_str())
}
