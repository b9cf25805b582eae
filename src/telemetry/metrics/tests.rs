//! Tests of a scrape.

use super::*;

#[test]
fn all_metrics_register_and_render() {
    let metrics = Metrics::new().unwrap();
    metrics.request_counters("crm", "default", "").count(true, http::StatusCode::NOT_FOUND);
    let text = String::from_utf8(metrics.render().unwrap()).unwrap();
    let line = "keybearer_requests_total{caller=\"\",connection=\"crm\",origin=\"upstream\",profile=\"default\",status_class=\"4xx\"} 1";
    assert!(text.contains(line), "{text}");
    assert!(text.contains("process_open_fds"));
}
