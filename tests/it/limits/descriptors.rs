//! File descriptor budget: no caller, and no number of origins, tunnels or targets, starves the others.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::rig::config::{Config, Connection};
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;
use crate::rig::stage::{GET, s, wait_until};

/// A third is reserved; downstream and upstream connections get half of the rest each.
pub const OPEN_FILES: usize = 600;
pub const DOWNSTREAM_MAX: usize = 200;
pub const UPSTREAM_MAX: usize = 200;
/// One caller's maximum share of connections, and of tunnels.
pub const ONE_CALLER_MAX: usize = 188;
const ONE_CALLER_TUNNELS_MAX: usize = 94;

/// An upstream on one port of all loopback addresses that keeps its connections alive.
pub struct Everywhere {
    pub port: u16,
    accepted: Arc<AtomicUsize>,
    /// Maximum number of concurrent connections.
    peak: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Everywhere {
    /// Responds to every request.
    async fn responding() -> Everywhere {
        Everywhere::start(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await
    }

    /// Accepts connections and never responds.
    pub async fn silent() -> Everywhere {
        Everywhere::start(b"").await
    }

    /// Responds to every request, over HTTP/2 with prior knowledge.
    async fn over_http2() -> Everywhere {
        Everywhere::serving(|stream| async move {
            let respond = service_fn(async |_| {
                Ok::<_, Infallible>(
                    Response::builder().header("grpc-status", "0").body(Empty::<Bytes>::new()).expect("one"),
                )
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), respond).await;
        })
        .await
    }

    async fn start(response: &'static [u8]) -> Everywhere {
        Everywhere::serving(move |mut stream| async move {
            let mut read = vec![0; 4096];
            while let Ok(1..) = stream.read(&mut read).await {
                if stream.write_all(response).await.is_err() {
                    return;
                }
            }
        })
        .await
    }

    async fn serving<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Everywhere
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port");
        let port = listener.local_addr().expect("a bound listener").port();
        let (accepted, peak, open) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default(), Arc::new(()));
        let (count, most) = (accepted.clone(), peak.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let open = open.clone();
                most.fetch_max(Arc::strong_count(&open) - 1, Ordering::SeqCst);
                let serving = serve(stream);
                connections.spawn(async move {
                    let _open = open;
                    serving.await;
                });
            }
        });
        Everywhere { port, accepted, peak, task }
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// One of its many origins.
    pub fn origin(&self, number: usize) -> String {
        let [_, a, b, c] = u32::try_from(number).expect("few").to_be_bytes();
        format!("127.{}.{b}.{c}:{}", a + 1, self.port)
    }
}

impl Drop for Everywhere {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Polls `/livez` until it is dropped; every response must be 200 and prompt.
struct Watchdog {
    failed: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Watchdog {
    fn of(sidecar: &Sidecar) -> Watchdog {
        let (admin, failed) = (sidecar.admin(), Arc::<AtomicBool>::default());
        let any_failed = failed.clone();
        let task = tokio::spawn(async move {
            loop {
                let alive = timeout(s(5.0), raw::get(admin, "/livez")).await;
                any_failed.fetch_or(!alive.is_ok_and(|response| response.status == 200), Ordering::SeqCst);
                sleep(Duration::from_millis(20)).await;
            }
        });
        Watchdog { failed, task }
    }

    #[track_caller]
    fn assert_alive(&self) {
        assert!(!self.failed.load(Ordering::SeqCst), "/livez failed");
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_many_origins_does_not_starve_others() {
    const ORIGINS: usize = 3_000;
    let (many, other) = (Everywhere::responding().await, Scripted::upstream().await);
    let config = format!(
        "workers: 2\nhosts: {{other.test: \"{}\"}}\negress: {{allow_private: [127.0.0.0/8], connect_ports: [80, {}]}}\n",
        other.address, many.port
    );
    let sidecar = Sidecar::start_with_open_files(&config, OPEN_FILES).await;
    let (proxy, watchdog) = (sidecar.proxy(), Watchdog::of(&sidecar));
    let served = Arc::<AtomicUsize>::default();
    let greedy = (0..8).map(|part| {
        let (origins, served) = ((0..ORIGINS).skip(part).step_by(8).map(|n| many.origin(n)), served.clone());
        async move {
            let mut conn = Conn::open(proxy).await;
            for origin in origins {
                conn.write(format!("GET http://{origin}/ HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
                let response = conn.read_response().await;
                assert_eq!(response.status, 200, "{origin}: {}", response.text());
                served.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let others = async {
        let mut open_files_peak = 0;
        while served.load(Ordering::SeqCst) < ORIGINS {
            let response = raw::get_through(proxy, "http://other.test/", "").await;
            assert_eq!(response.status, 200, "{}", response.text());
            open_files_peak = open_files_peak.max(sidecar.open_files());
        }
        open_files_peak
    };
    let (_, open_files_peak) = tokio::join!(join_all(greedy), others);
    watchdog.assert_alive();
    assert!(open_files_peak < OPEN_FILES * 2 / 3, "{open_files_peak} open files");
    assert_eq!(many.accepted(), ORIGINS, "each origin was dialed once");
    let idle = sidecar.metric("keybearer_upstream_connections{state=\"idle\"}").await;
    assert!((UPSTREAM_MAX as f64 / 4.0..=UPSTREAM_MAX as f64 / 2.0 + 8.0).contains(&idle), "{idle} idle");
    // The most recently used connection is still pooled; the least recently used was evicted.
    let mut conn = Conn::open(proxy).await;
    for (origin, dials) in [(ORIGINS, 1), (ORIGINS, 1), (0, 2)] {
        conn.write(format!("GET http://{}/ HTTP/1.1\r\nHost: x\r\n\r\n", many.origin(origin)).as_bytes()).await;
        assert_eq!((conn.read_response().await.status, many.accepted()), (200, ORIGINS + dials), "origin {origin}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_http2_connections_are_evicted_for_others() {
    const ORIGINS: usize = 400;
    let many = Everywhere::over_http2().await;
    let config = format!("workers: 2\negress: {{allow_private: [127.0.0.0/8], connect_ports: [{}]}}\n", many.port);
    let sidecar = Sidecar::start_with_open_files(&config, OPEN_FILES).await;
    let watchdog = Watchdog::of(&sidecar);
    for number in 0..ORIGINS {
        let response = grpc(sidecar.proxy(), &many.origin(number)).await;
        assert_eq!((response.status, response.code()), (200, ""), "{number}: {response:?}");
    }
    watchdog.assert_alive();
    assert!(many.peak.load(Ordering::SeqCst) < UPSTREAM_MAX, "{} at once", many.peak.load(Ordering::SeqCst));
    let idle = sidecar.metric("keybearer_upstream_connections{state=\"idle\"}").await;
    assert!((UPSTREAM_MAX as f64 / 4.0..=UPSTREAM_MAX as f64 / 2.0 + 8.0).contains(&idle), "{idle} idle");
}

#[tokio::test]
async fn connections_that_an_upstream_closes_leave_the_pool_at_once() {
    let closing =
        Scripted::start(|_, _| Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec())).await;
    // The periodic sweep runs after half of this.
    let config = format!("hosts: {{good.test: \"{}\"}}\ntimeouts: {{keep_alive: 5m}}\n", closing.address);
    let sidecar = Sidecar::start(&config).await;
    for _ in 0..20 {
        assert_eq!(raw::send(sidecar.proxy(), GET).await.status, 200);
    }
    sidecar.wait_for_metric("keybearer_upstream_connections{state=\"idle\"}", |idle| idle == 0.0).await;
}

#[tokio::test]
async fn callers_beyond_the_open_file_limit_get_503_and_others_are_served() {
    // Late responses keep the connections busy; idle ones would be evicted.
    let upstream = Scripted::start(|_, _| Reply::ok().delayed(s(8.0))).await;
    let config = format!("hosts: {{good.test: \"{}\"}}\n", upstream.address);
    let sidecar = Sidecar::start_with_open_files(&config, OPEN_FILES).await;
    let watchdog = Watchdog::of(&sidecar);
    sidecar.wait_for_log("open file limit is lower").await;
    let mut held = Vec::new();
    for _ in 0..ONE_CALLER_MAX {
        let mut conn = Conn::open(sidecar.proxy()).await;
        conn.write(GET).await;
        held.push(conn);
    }
    sidecar.wait_for_metric("keybearer_requests_in_flight", |count| count == ONE_CALLER_MAX as f64).await;
    // The number of concurrent refusals is bounded: some get a response, the others are closed without one.
    let mut beyond = Vec::new();
    for _ in 0..300 {
        beyond.push(Conn::open(sidecar.proxy()).await);
    }
    let mut refused = 0;
    for conn in &mut beyond {
        let response = conn.read_response().await;
        assert!(matches!((response.status, response.code()), (0, "") | (503, "overloaded")), "{response:?}");
        refused += usize::from(response.status == 503);
    }
    assert!(refused >= 20, "only {refused} got a response");
    for conn in &mut held {
        assert_eq!(conn.read_response().await.status, 200);
    }
    watchdog.assert_alive();
    assert!(sidecar.open_files() < OPEN_FILES);
}

#[tokio::test]
async fn tunnels_leave_descriptors_for_requests() {
    let (silent, other) = (Everywhere::silent().await, Scripted::upstream().await);
    let port = silent.port;
    let config = format!(
        "hosts: {{other.test: \"{}\"}}\negress: {{allow_private: [127.0.0.0/8], connect_ports: [80, {port}]}}\n",
        other.address
    );
    let sidecar = Sidecar::start_with_open_files(&config, OPEN_FILES).await;
    let watchdog = Watchdog::of(&sidecar);
    let (mut held, mut refused) = (Vec::new(), 0);
    for number in 0..130 {
        let mut conn = Conn::open(sidecar.proxy()).await;
        let authority = silent.origin(number);
        conn.write(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes()).await;
        let mut status = [0; 12];
        conn.stream.read_exact(&mut status).await.expect("a response");
        match &status {
            b"HTTP/1.1 200" => held.push(conn),
            b"HTTP/1.1 503" => refused += 1,
            other => panic!("{}", String::from_utf8_lossy(other)),
        }
    }
    assert_eq!((held.len(), refused), (ONE_CALLER_TUNNELS_MAX, 130 - ONE_CALLER_TUNNELS_MAX));
    assert_eq!(raw::get_through(sidecar.proxy(), "http://other.test/", "").await.status, 200);
    watchdog.assert_alive();
}

/// HTTP/2, so that few connections have many requests in flight.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_free_descriptor_gets_503() {
    const REQUESTS: usize = 400;
    let silent = Everywhere::silent().await;
    let route = format!("mount: /crm, upstream: \"http://127.0.0.1:{}\", inject: none", silent.port);
    let config = Config::new()
        .top("timeouts: {connect: 1s, response_head: 40s}\nreadiness: {wait_for_tokens: 0s}\n")
        .connection(Connection::new("crm", "http://127.0.0.1:1/").route(route));
    let sidecar = Sidecar::start_with_open_files(config, OPEN_FILES).await;
    let watchdog = Watchdog::of(&sidecar);
    let refused = Arc::<AtomicUsize>::default();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..REQUESTS / 100 {
        let stream = TcpStream::connect(sidecar.proxy()).await.expect("a connection");
        let (sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
        tasks.spawn(async move {
            let _ = driver.await;
        });
        for _ in 0..100 {
            let (mut sender, refused, proxy) = (sender.clone(), refused.clone(), sidecar.proxy());
            tasks.spawn(async move {
                let request = Request::get(format!("http://{proxy}/crm/x")).body(Empty::<Bytes>::new());
                let response = sender.send_request(request.expect("a request")).await.expect("a response");
                assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
                let problem = response.into_body().collect().await.expect("a body").to_bytes();
                assert!(String::from_utf8_lossy(&problem).contains("overloaded"), "{problem:?}");
                refused.fetch_add(1, Ordering::SeqCst);
            });
        }
    }
    wait_until("the others are refused", || refused.load(Ordering::SeqCst) == REQUESTS - ONE_CALLER_MAX).await;
    assert_eq!(silent.accepted(), ONE_CALLER_MAX);
    watchdog.assert_alive();
    drop(tasks);
    // The callers have disconnected, so the descriptors are released.
    sidecar.wait_for_metric("keybearer_upstream_connections{state=\"active\"}", |active| active == 0.0).await;
}

/// Requests private addresses, one per target, on one connection, and asserts that all are refused.
async fn assert_all_refused(proxy: SocketAddr, targets: std::ops::Range<u32>) {
    const AT_ONCE: usize = 100;
    const REFUSAL: &[u8] = b"HTTP/1.1 403 Forbidden\r\n";
    let mut stream = TcpStream::connect(proxy).await.expect("a connection");
    let targets: Vec<u32> = targets.collect();
    let (mut read, mut block) = (Vec::new(), vec![0; 64 * 1024]);
    for batch in targets.chunks(AT_ONCE) {
        let mut requests = String::new();
        for target in batch {
            let [_, a, b, c] = target.to_be_bytes();
            requests.push_str(&format!("GET http://10.{a}.{b}.{c}/ HTTP/1.1\r\nHost: x\r\n\r\n"));
        }
        stream.write_all(requests.as_bytes()).await.expect("write succeeds");
        let mut responses = 0;
        while responses < batch.len() {
            let count = stream.read(&mut block).await.expect("a response");
            assert!(count > 0, "the connection stays open");
            read.extend_from_slice(&block[..count]);
            responses += read.windows(REFUSAL.len()).filter(|window| *window == REFUSAL).count();
            // The rest may contain the start of the next match.
            read.drain(..(read.len() + 1).saturating_sub(REFUSAL.len()));
        }
        assert_eq!(responses, batch.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_targets_leak_no_memory() {
    const EACH: u32 = 10_000;
    let sidecar = Sidecar::start("audit: {to: off}\nlog: {requests: off}\nworkers: 2\n").await;
    let flood = async |parts: std::ops::Range<u32>| {
        join_all(parts.map(|part| assert_all_refused(sidecar.proxy(), part * EACH..(part + 1) * EACH))).await;
    };
    flood(0..2).await;
    let before = sidecar.resident_kib();
    flood(2..10).await;
    let grown = sidecar.resident_kib().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB for {} targets", 8 * EACH);
}

/// Sends a gRPC request to `host`; it reaches a cleartext server over HTTP/2.
async fn grpc(proxy: SocketAddr, host: &str) -> raw::RawResponse {
    let head = format!("POST http://{host}/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/grpc\r\n");
    raw::send(proxy, format!("{head}Content-Length: 0\r\nConnection: close\r\n\r\n").as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_handshakes_with_silent_servers_use_no_cpu_time() {
    const DIALS: usize = 500;
    const INTERVAL: Duration = Duration::from_secs(3);
    let silent = Everywhere::silent().await;
    let port = silent.port;
    let config =
        format!("egress: {{allow_private: [127.0.0.0/8], connect_ports: [{port}]}}\ntimeouts: {{connect: 20s}}\n");
    let sidecar = Sidecar::start(&config).await;
    let calls: Vec<_> = (0..DIALS)
        .map(|number| {
            let (proxy, origin) = (sidecar.proxy(), silent.origin(number));
            tokio::spawn(async move { grpc(proxy, &origin).await })
        })
        .collect();
    wait_until("all are dialed", || silent.accepted() == DIALS).await;
    let before = sidecar.cpu();
    sleep(INTERVAL).await;
    let used = sidecar.cpu() - before;
    assert!(used < INTERVAL / 20, "{used:?} of CPU time in {INTERVAL:?}");
    calls.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_http2_dials_to_one_server_are_limited() {
    const REQUESTS: usize = 200;
    const WORKERS: usize = 2;
    let silent = Everywhere::silent().await;
    let port = silent.port;
    let egress = format!("egress: {{allow_private: [127.0.0.0/8], connect_ports: [{port}]}}\n");
    let sidecar = Sidecar::start(&format!("workers: 2\n{egress}timeouts: {{connect: 2s}}\n")).await;
    let (proxy, origin) = (sidecar.proxy(), silent.origin(0));
    let first = [grpc(proxy, &origin), grpc(proxy, &origin)];
    let others = async {
        wait_until("the first dial", || silent.accepted() > 0).await;
        // Start the others during the first dial, so that its failure leaves them time.
        sleep(s(1.0)).await;
        let started = Instant::now();
        let responses = join_all((0..REQUESTS).map(|_| grpc(proxy, &origin))).await;
        (responses, started.elapsed())
    };
    let (_, (responses, took)) = tokio::join!(join_all(first), others);
    for response in responses {
        assert_eq!(response.code(), "upstream_unreachable", "{response:?}");
    }
    assert!(took < s(10.0), "all are refused in time: {took:?}");
    // Some slack, since the server may see the close of one connection after the start of the next.
    let peak = silent.peak.load(Ordering::SeqCst);
    assert!(peak <= WORKERS * 4 * 2, "{peak} of {} dials at once", silent.accepted());
}
