//! The way of ended spans to the collector: OTLP over HTTP, in batches, from a bounded queue.
//!
//! Holds: one request at a time, each with a deadline, sent once; the URL and the headers are ours alone, whatever the
//! environment says (`OTEL_*`). What cannot be exported is lost, and told at most once a minute.

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

/// Spans that wait for the collector; one more is lost.
const QUEUE_MAX: usize = 2048;
const BATCH_MAX: usize = 512;
/// How long the first span of a batch waits for others.
const BATCH_WAIT: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest answer of a collector that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The task between the queue and the collector. It ends when the last tracer is gone and the queue is empty.
pub struct Exporter {
    queue: mpsc::Receiver<Message>,
    spans: SpanExporter,
    collector: Collector,
    /// For want of a place in the queue.
    dropped: Arc<AtomicU64>,
    /// Since it was last told.
    lost: u64,
    told: Option<Instant>,
}

/// A tracer that records the part `sample` of the traces that begin here, and the task that takes its spans to `url`.
/// `client` follows no redirect and asks no proxy.
pub fn start(client: reqwest::Client, url: &Url, sample: f64) -> Result<(Tracer, Exporter), ExporterBuildError> {
    let collector = Collector { client, url: url.clone(), failure: Arc::default() };
    let mut spans = SpanExporter::builder()
        .with_http()
        .with_http_client(collector.clone())
        .with_retry_policy(RetryPolicy::disabled())
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(url.as_str())
        .with_timeout(DEADLINE)
        .build()?;
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    spans.set_resource(&Resource::builder_empty().with_service_name("keybearer").with_attribute(version).build());
    let (sender, queue) = mpsc::channel(QUEUE_MAX);
    let dropped = Arc::<AtomicU64>::default();
    let tracer = Tracer(Some(Arc::new(Inner { queue: sender, lost: dropped.clone(), sample })));
    Ok((tracer, Exporter { queue, spans, collector, dropped, lost: 0, told: None }))
}

impl Exporter {
    pub async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            let (mut batch, mut flushes) = (Vec::new(), Vec::new());
            let mut next = Some(first);
            let deadline = Instant::now() + BATCH_WAIT;
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
        let failure = match timeout(DEADLINE, self.spans.export(batch)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(self.collector.failure().unwrap_or_else(|| error.to_string())),
            Err(_) => Some(format!("no answer within {} s", DEADLINE.as_secs())),
        };
        self.lost += self.dropped.swap(0, Ordering::Relaxed) + if failure.is_some() { count } else { 0 };
        if self.lost == 0 || self.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return;
        }
        let error = failure.unwrap_or_else(|| "there were more than could be sent".to_owned());
        tracing::warn!(collector = %self.collector.url, spans_lost = self.lost, error = %Clean(&error),
            "traces are lost on the way to the collector; this is told at most once a minute");
        (self.lost, self.told) = (0, Some(Instant::now()));
    }
}

/// The collector's client as the exporter sees it.
#[derive(Debug, Clone)]
struct Collector {
    client: reqwest::Client,
    url: Url,
    /// Why the last request failed; the exporter does not hand that on.
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
        let mut answer = self.client.execute(request).await.map_err(described)?;
        if !answer.status().is_success() {
            return Err(format!("the collector answered {}", answer.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(described)? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES_MAX {
                return Err("the collector's answer is too long".to_owned());
            }
        }
        Ok(Response::new(body.into()))
    }
}

/// An error with its causes.
fn described(error: reqwest::Error) -> String {
    let error = error.without_url();
    let (mut text, mut source) = (error.to_string(), error.source());
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl HttpClient for Collector {
    /// Only the body is the exporter's.
    fn send_bytes<'s, 'f>(
        &'s self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let answer = self.post(request.into_body()).await;
            if let Err(error) = &answer {
                *lock(&self.failure) = Some(error.clone());
            }
            Ok(answer?)
        })
    }
}
