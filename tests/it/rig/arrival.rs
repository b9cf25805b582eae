//! Where a request arrives: at *good* with the token, at *good* without it, at *evil*, or at neither.

use Arrival::*;

use super::stage::{Stage, TOKEN};

/// Where the request is to arrive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrival {
    Nowhere,
    /// To good, with the token.
    Good,
    /// To good, under a name or port without a route: no token.
    GoodWithoutToken,
    /// To evil.
    Evil,
}

/// Sends raw bytes and compares status, code and arrival.
pub async fn check(stage: &Stage, row: &str, bytes: &str, status: u16, code: &str, goes: Arrival) {
    let before = (stage.good.count(), stage.evil.count());
    let said = stage.exchange(bytes).await;
    assert_eq!((said.status(), said.code().as_str()), (status, code), "{row}: {}", said.text());
    let (good, evil) = (stage.good.received().split_off(before.0), stage.evil.received().split_off(before.1));
    let expected = match goes {
        Nowhere => (0, 0),
        Good | GoodWithoutToken => (1, 0),
        Evil => (0, 1),
    };
    assert_eq!((good.len(), evil.len()), expected, "{row}: good {good:?} evil {evil:?}");
    for request in &good {
        let carried = request.head.matches(TOKEN).count();
        assert_eq!(carried, usize::from(goes == Good), "{row}: {}", request.head);
    }
    stage.assert_invariants(row, &said).await;
}

/// `GET target` with a Host and further lines.
pub fn get(target: &str, host: &str, lines: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{lines}Connection: close\r\n\r\n")
}
