//! Graceful shutdown: requests in flight finish, no new ones are accepted, and the drain has a deadline.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::raw::{self, Conn};
use crate::rig::stage::{GET, Stage};
use crate::rig::tunnel_client::read_connect_head;

#[tokio::test]
async fn a_request_in_flight_finishes_and_new_connections_are_refused() {
    for name in ["TERM", "INT"] {
        let (mut stage, listener) = Stage::with_raw_good("").await;
        let mut idle = Conn::open(stage.sidecar.proxy()).await;
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        conn.write(GET).await;
        let (mut upstream, _) = listener.accept().await.expect("a connection");
        upstream.read_u8().await.expect("a request");
        stage.sidecar.signal(name);
        stage.sidecar.wait_for_log("\"draining\"").await;
        assert!(idle.is_closed().await, "{name}: an idle connection is closed");
        let refused = async { while TcpStream::connect(stage.sidecar.proxy()).await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(5), refused).await.expect("new connections are refused");
        assert_eq!(raw::get(stage.sidecar.admin(), "/readyz").await.status, 503, "{name}");
        assert_eq!(raw::get(stage.sidecar.admin(), "/livez").await.status, 200, "{name}");
        upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("write succeeds");
        let response = conn.read_response().await;
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{name}");
        assert_eq!(stage.sidecar.exit().await.code(), Some(0), "{name}");
    }
}

#[tokio::test]
async fn an_idle_process_exits_at_once() {
    let mut stage = Stage::start("").await;
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.write(GET).await;
    assert_eq!(conn.read_response().await.status, 200);
    let mut tunnel = Conn::open(stage.sidecar.proxy()).await;
    tunnel.write(b"CONNECT good.test:80 HTTP/1.1\r\nHost: good.test:80\r\n\r\n").await;
    let mut byte = [0; 64];
    assert!(tunnel.stream.read(&mut byte).await.expect("a response") > 0);
    let _unused = Conn::open(stage.sidecar.proxy()).await;
    let started = Instant::now();
    stage.sidecar.signal("TERM");
    assert_eq!(stage.sidecar.exit().await.code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(4), "after {:?}", started.elapsed());
}

/// The proxy cannot see inside a relay, so moving bytes count as an exchange in progress, and silence as an idle connection.
#[tokio::test]
async fn an_active_relay_outlasts_the_drain_idle_timeout_and_a_silent_one_does_not() {
    let (mut stage, listener) = Stage::with_raw_good("timeouts: {drain: 30s}\n").await;
    let tunnel = async || {
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        conn.write(b"CONNECT secure.test:443 HTTP/1.1\r\nHost: secure.test:443\r\n\r\n").await;
        let (server, _) = listener.accept().await.expect("a connection");
        assert!(read_connect_head(&mut conn).await.starts_with("HTTP/1.1 200"));
        conn.write(b"\x16\x03\x01hello").await;
        (conn, server)
    };
    let ((mut silent, _silent_server), (mut moving, mut server)) = (tunnel().await, tunnel().await);
    let mut hello = [0; 8];
    server.read_exact(&mut hello).await.expect("the bytes arrive");
    stage.sidecar.signal("TERM");
    let started = Instant::now();
    let transfer = async {
        for _ in 0..12 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            server.write_all(b"x").await.expect("the tunnel is open");
            moving.stream.read_u8().await.expect("the tunnel is open");
        }
    };
    let (ended, ()) = tokio::join!(silent.is_closed(), transfer);
    assert!(ended);
    assert_eq!(stage.sidecar.exit().await.code(), Some(0));
    let took = started.elapsed();
    assert!(took > Duration::from_millis(3600) && took < Duration::from_secs(12), "after {took:?}");
}

#[tokio::test]
async fn a_stuck_request_is_cut_off_at_the_drain_deadline() {
    let (mut stage, listener) = Stage::with_raw_good("timeouts: {drain: 1s}\n").await;
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.write(GET).await;
    let _held = listener.accept().await.expect("a connection");
    let started = Instant::now();
    stage.sidecar.signal("TERM");
    let status = stage.sidecar.exit().await;
    let took = started.elapsed();
    assert_eq!(status.code(), Some(0));
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(4), "after {took:?}");
    assert_eq!(conn.read_response().await.status, 0);
}

#[tokio::test]
async fn a_second_signal_exits_at_once() {
    let (mut stage, listener) = Stage::with_raw_good("timeouts: {drain: 30s}\n").await;
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.write(GET).await;
    let _held = listener.accept().await.expect("a connection");
    stage.sidecar.signal("TERM");
    stage.sidecar.wait_for_log("\"draining\"").await;
    let started = Instant::now();
    stage.sidecar.signal("INT");
    stage.sidecar.exit().await;
    assert!(started.elapsed() < Duration::from_secs(3), "after {:?}", started.elapsed());
}
