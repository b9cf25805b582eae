//! The consent pages without a browser: reads their forms and submits them.

use std::net::SocketAddr;

use super::raw::{self, RawResponse};

/// Requests a page; `url` is absolute, `lines` are further header lines.
pub async fn visit(admin: SocketAddr, method: &str, url: &str, lines: &str, body: &str) -> RawResponse {
    let (_, rest) = url.split_once("://").expect("an absolute URL");
    let (host, path) = rest.split_once('/').expect("a path");
    let length = body.len();
    let form = if body.is_empty() { "" } else { "Content-Type: application/x-www-form-urlencoded\r\n" };
    let head = format!(
        "{method} /{path} HTTP/1.1\r\nHost: {host}\r\n{lines}{form}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    raw::send(admin, format!("{head}{body}").as_bytes()).await
}

/// The Origin header line of a form submitted from a page of `url`'s origin.
pub fn origin(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").expect("an absolute URL");
    format!("Origin: {scheme}://{}\r\n", rest.split('/').next().unwrap_or_default())
}

/// The first cookie that a response sets, as a Cookie header line.
pub fn cookie(response: &RawResponse) -> String {
    let set = response.header("set-cookie").unwrap_or_else(|| panic!("no cookie: {}", response.text()));
    format!("Cookie: {}\r\n", set.split(';').next().unwrap_or_default())
}

/// The confirmation token in a page's form.
pub fn confirmation(html: &str) -> String {
    let part = html.split("name=\"confirmation\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
    part.unwrap_or_else(|| panic!("no confirmation in {html}")).to_owned()
}

/// Opens a link and confirms it, like a browser with these header lines. Returns the redirecting page, and that
/// browser's Cookie line, including the cookie of `lines`.
pub async fn confirm(admin: SocketAddr, url: &str, lines: &str) -> (RawResponse, String) {
    let shown = visit(admin, "GET", url, lines, "").await;
    assert_eq!(shown.status, 200, "{}", shown.text());
    let own = cookie(&shown);
    let all = match lines.trim_end().strip_prefix("Cookie: ") {
        Some(_) if lines.contains(own.trim_start_matches("Cookie: ").trim_end()) => lines.to_owned(),
        Some(other) => format!("{}; {other}\r\n", own.trim_end()),
        None => format!("{own}{lines}"),
    };
    let body = format!("confirmation={}", confirmation(&shown.text()));
    (visit(admin, "POST", url, &format!("{all}{}", origin(url)), &body).await, all)
}

/// The target of a page's meta refresh.
pub fn redirect_target(response: &RawResponse) -> String {
    let html = response.text();
    let part = html.split("http-equiv=\"refresh\" content=\"0; url=").nth(1).and_then(|rest| rest.split('"').next());
    let target = part.unwrap_or_else(|| panic!("{} has no meta refresh: {html}", response.status));
    target.replace("&#39;", "'").replace("&quot;", "\"").replace("&amp;", "&")
}
