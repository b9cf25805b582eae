//! Traces: which requests are recorded, their spans, and what the next hop is told.
//!
//! Not here: the header's form (`context`), the way to the collector (`export`), which span says what (`proxy::report::spans`, `oauth`).
//! Holds: a request that is not sampled makes no span; ending a span never waits: where the queue is full, it is lost and
//! counted. A span holds names and numbers: never a header's value, a query string or a token.

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
pub use export::{Exporter, start};
pub use opentelemetry_otlp::ExporterBuildError as BuildError;

/// Decides which requests are recorded, and takes their spans; cloned freely. The default is off.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

struct Inner {
    queue: mpsc::Sender<Message>,
    /// Spans for which there was no place in the queue.
    lost: Arc<AtomicU64>,
    /// Of the traces that begin here, the part that is recorded: 0 to 1.
    sample: f64,
}

enum Message {
    Span(Box<SpanData>),
    /// Dropped once everything before it is exported or lost.
    Flush(oneshot::Sender<()>),
}

/// What one request does about traces.
#[derive(Default)]
pub enum Part {
    /// Nothing: what came goes on as it came.
    #[default]
    Pass,
    /// A trace begins here and is not recorded, which the next hop is told.
    Unsampled(Propagation),
    Recorded(Box<Span>),
}

impl Tracer {
    /// The part of a request that came with `headers`: the caller's decision if it made one (W3C Trace Context §3.2), else
    /// the ratio. `wall` is read only where a span begins.
    pub fn join(&self, headers: &HeaderMap, method: &Method, wall: impl FnOnce() -> WallTime) -> Part {
        let Some(inner) = &self.0 else { return Part::Pass };
        match Context::read(headers) {
            Some(context) if !context.sampled() => Part::Pass,
            None if fastrand::f64() >= inner.sample => Part::Unsampled(Context::new(false).propagation(true)),
            parent => {
                let context = parent.unwrap_or_else(|| Context::new(true));
                Part::Recorded(Box::new(Span::new(inner.clone(), context, parent, SpanKind::Server, method, wall())))
            }
        }
    }

    /// The span of a request that we make by ourselves, if it is recorded.
    pub fn root(&self, method: &Method, wall: impl FnOnce() -> WallTime) -> Option<Span> {
        let inner = self.0.as_ref().filter(|inner| fastrand::f64() < inner.sample)?;
        Some(Span::new(inner.clone(), Context::new(true), None, SpanKind::Client, method, wall()))
    }

    /// Waits until what has ended so far is exported or lost, but not longer than `patience`.
    pub async fn flush(&self, patience: Duration) {
        let Some(inner) = &self.0 else { return };
        let (done, flushed) = oneshot::channel();
        let flush = async {
            if inner.queue.send(Message::Flush(done)).await.is_ok() {
                let _ = flushed.await;
            }
        };
        let _ = tokio::time::timeout(patience, flush).await;
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Tracer(on)" } else { "Tracer(off)" })
    }
}

/// A span under way; it is exported when it ends, and never if it is dropped.
pub struct Span {
    inner: Arc<Inner>,
    /// Its trace and its own id.
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
    /// `context` gives the trace; the id is a new one. `parent` is another program's span.
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
        let known = known(method);
        let attributes = vec![KeyValue::new("http.request.method", known.unwrap_or("_OTHER"))];
        let name = known.unwrap_or("HTTP");
        Span { inner, context, parent, kind, name, started, began: Instant::now(), attributes, failed: false }
    }

    /// The span of a request that this one leads to.
    pub fn child(&self, method: &Method) -> Span {
        let started = self.started + self.began.elapsed();
        let parent = Some(self.context);
        Span::begin(self.inner.clone(), self.context.child(), parent, SpanKind::Client, method, started)
    }

    /// What the next hop gets, so that its span becomes a child of this one. `fresh`: the trace began in this program.
    pub fn propagation(&self, fresh: bool) -> Propagation {
        self.context.propagation(fresh)
    }

    /// It has no parent in another program.
    pub fn is_root(&self) -> bool {
        self.parent.is_none()
    }

    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.attributes.push(KeyValue::new(key, value));
    }

    /// `kind` is a word from a closed list.
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
            self.inner.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The methods that may be named (OpenTelemetry's conventions for HTTP); others could be anything.
fn known(method: &Method) -> Option<&'static str> {
    const KNOWN: [&str; 9] = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE"];
    KNOWN.into_iter().find(|known| *known == method.as_str())
}
