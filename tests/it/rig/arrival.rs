//! Checks where a request arrives: at *good* with or without the token, at *evil*, or nowhere.

use Arrival::*;

use super::stage::{Stage, TOKEN};

/// Expected destination of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrival {
    Nowhere,
    /// At *good*, with the token.
    Good,
    /// At *good*, without the token, because no route matches the name or port.
    GoodWithoutToken,
    /// At *evil*.
    Evil,
}

/// Sends raw bytes and compares status, code and arrival.
pub async fn check(stage: &Stage, row: &str, bytes: &str, status: u16, code: &str, arrival: Arrival) {
    let before = (stage.good.count(), stage.evil.count());
    let transcript = stage.exchange(bytes).await;
    assert_eq!((transcript.status(), transcript.code().as_str()), (status, code), "{row}: {}", transcript.text());
    let (good, evil) = (stage.good.received().split_off(before.0), stage.evil.received().split_off(before.1));
    let expected = match arrival {
        Nowhere => (0, 0),
        Good | GoodWithoutToken => (1, 0),
        Evil => (0, 1),
    };
    assert_eq!((good.len(), evil.len()), expected, "{row}: good {good:?} evil {evil:?}");
    for request in &good {
        let carried = request.head.matches(TOKEN).count();
        assert_eq!(carried, usize::from(arrival == Good), "{row}: {}", request.head);
    }
    stage.assert_invariants(row, &transcript).await;
}

/// The bytes of `GET target` with this Host and further lines.
pub fn get(target: &str, host: &str, lines: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{lines}Connection: close\r\n\r\n")
}
