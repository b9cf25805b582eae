//! Span export: OTLP over HTTP, in batches, from a bounded queue.
//!
//! Invariants: one request at a time, each with a timeout and without retries; the URL and the headers come from the
//! configuration only, never from `OTEL_*` variables. Spans that cannot be exported are lost, which is logged at most
//! once a minute.

use std::error::Error;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{Method, Request, Response};
use opentelemetry::KeyValue;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{ExporterBuildError, Protocol, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use super::{Inner, Message, Tracer};
use crate::sync::lock;
use crate::telemetry::Clean;

/// Capacity of the span queue.
const QUEUE_MAX: usize = 2048;
/// Maximum number of spans in one request.
const BATCH_MAX: usize = 512;
/// Maximum delay of a span that waits for its batch to fill.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// Timeout of one request to the collector.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit of a collector's response.
const RESPONSE_BYTES_MAX: usize = 64 * 1024;
/// Minimum interval between log lines about lost spans.
const LOSS_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The export task. It ends when the last tracer is dropped and the queue is empty.
pub struct Exporter {
    queue: mpsc::Receiver<Message>,
    spans: SpanExporter,
    collector: Collector,
    /// Spans dropped because the queue was full.
    dropped: Arc<AtomicU64>,
    /// Spans lost since the last log line.
    lost: u64,
    loss_logged: Option<Instant>,
}

/// Creates a tracer with the sampling ratio `sample`, and the task that exports its spans to `url`. `client` must not
/// follow redirects or use a proxy.
pub fn start(client: reqwest::Client, url: &Url, sample: f64) -> Result<(Tracer, Exporter), ExporterBuildError> {
    let collector = Collector { client, url: url.clone(), failure: Arc::default() };
    let mut spans = SpanExporter::builder()
        .with_http()
        .with_http_client(collector.clone())
        .with_retry_policy(RetryPolicy::disabled())
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(url.as_str())
        .with_timeout(EXPORT_TIMEOUT)
        .build()?;
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    spans.set_resource(&Resource::builder_empty().with_service_name("keybearer").with_attribute(version).build());
    let (sender, queue) = mpsc::channel(QUEUE_MAX);
    let dropped = Arc::<AtomicU64>::default();
    let tracer = Tracer(Some(Arc::new(Inner { queue: sender, dropped: dropped.clone(), sample })));
    Ok((tracer, Exporter { queue, spans, collector, dropped, lost: 0, loss_logged: None }))
}

impl Exporter {
    pub async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            let (mut batch, mut flushes) = (Vec::new(), Vec::new());
            let mut next = Some(first);
            let deadline = Instant::now() + BATCH_DELAY;
            while let Some(message) = next {
                match message {
                    Message::Span(span) => batch.push(*span),
                    Message::Flush(done) => flushes.push(done),
                }
                next = match flushes.is_empty() && batch.len() < BATCH_MAX {
                    true => timeout_at(deadline, self.queue.recv()).await.ok().flatten(),
                    false => None,
                };
            }
            if !batch.is_empty() {
                self.export(batch).await;
            }
        }
    }

    async fn export(&mut self, batch: Vec<SpanData>) {
        let count = batch.len() as u64;
        let failure = match timeout(EXPORT_TIMEOUT, self.spans.export(batch)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(self.collector.failure().unwrap_or_else(|| error.to_string())),
            Err(_) => Some(format!("timed out after {} s", EXPORT_TIMEOUT.as_secs())),
        };
        self.lost += self.dropped.swap(0, Ordering::Relaxed) + if failure.is_some() { count } else { 0 };
        if self.lost == 0 || self.loss_logged.is_some_and(|at| at.elapsed() < LOSS_LOG_INTERVAL) {
            return;
        }
        let error = failure.unwrap_or_else(|| "span queue full".to_owned());
        tracing::warn!(collector = %self.collector.url, spans_lost = self.lost, error = %Clean(&error),
            "spans lost; repeated at most once a minute");
        (self.lost, self.loss_logged) = (0, Some(Instant::now()));
    }
}

/// The HTTP client of the exporter.
#[derive(Debug, Clone)]
struct Collector {
    client: reqwest::Client,
    url: Url,
    /// Cause of the last failure, which the exporter does not pass on.
    failure: Arc<Mutex<Option<String>>>,
}

impl Collector {
    fn failure(&self) -> Option<String> {
        lock(&self.failure).take()
    }

    async fn post(&self, body: Bytes) -> Result<Response<Bytes>, String> {
        let mut request = reqwest::Request::new(Method::POST, self.url.clone());
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let agent = concat!("keybearer/", env!("CARGO_PKG_VERSION"));
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(agent));
        *request.body_mut() = Some(body.into());
        let mut response = self.client.execute(request).await.map_err(describe)?;
        if !response.status().is_success() {
            return Err(format!("the collector responded with {}", response.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(describe)? {
            body.extend_from_slice(&chunk);
            if body.len() > RESPONSE_BYTES_MAX {
                return Err("the collector's response is too long".to_owned());
            }
        }
        Ok(Response::new(body.into()))
    }
}

/// The text of an error with its causes.
fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let (mut text, mut source) = (error.to_string(), error.source());
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl HttpClient for Collector {
    /// Uses only the body of the exporter's request.
    fn send_bytes<'s, 'f>(
        &'s self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let response = self.post(request.into_body()).await;
            if let Err(error) = &response {
                *lock(&self.failure) = Some(error.clone());
            }
            Ok(response?)
        })
    }
}
