//! The HTML of the pages: what happened, and what to do next.
//!
//! Invariants: every text that is not a literal of ours is escaped; a page loads no resource, runs no script, is not
//! cached and sends no Referer to other sites. Our own site gets the Referer: without it Chromium sends `Origin: null`
//! with a form.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::model::secret::SecretDigest;
use crate::model::token::TokenKey;

const STYLE: &str = "body{font:1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:4rem auto;padding:0 1rem;\
color:#1c1c1c;background:#fff}h1{font-size:1.4rem}code{font-size:1.5rem;letter-spacing:.1em}\
input,button{font:inherit;padding:.4rem .6rem}.note{color:#555}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.35rem 1.25rem;padding:.9rem 1.1rem;margin:1rem 0;\
border:1px solid #ccc;border-radius:.5rem}dt{color:#555}dd{margin:0;font-weight:600;overflow-wrap:anywhere}\
.go{padding:.55rem 1.1rem;border:0;border-radius:.4rem;font-weight:600;color:#fff;background:#1d5fc4;cursor:pointer}\
@media(prefers-color-scheme:dark){body{color:#eee;background:#181818}.note,dt{color:#aaa}dl{border-color:#444}\
a{color:#8ab4f8}}";

/// A page under construction.
pub struct Page {
    status: StatusCode,
    title: String,
    body: String,
    /// The URL that the browser loads automatically, and the delay in seconds.
    next: Option<(u32, String)>,
}

impl Page {
    pub fn new(status: StatusCode, title: &str) -> Page {
        Page { status, title: title.to_owned(), body: String::new(), next: None }
    }

    pub fn refused(title: &str) -> Page {
        Page::new(StatusCode::BAD_REQUEST, title)
    }

    /// A paragraph of plain text.
    pub fn text(mut self, text: &str) -> Page {
        self.body.push_str(&format!("<p>{}</p>\n", escaped(text)));
        self
    }

    /// A paragraph in a muted color.
    pub fn note(mut self, text: &str) -> Page {
        self.body.push_str(&format!("<p class=\"note\">{}</p>\n", escaped(text)));
        self
    }

    /// A name and its value; consecutive ones form one list.
    pub fn fact(mut self, name: &str, value: &str) -> Page {
        const END: &str = "</dl>\n";
        match self.body.strip_suffix(END) {
            Some(begun) => self.body.truncate(begun.len()),
            None => self.body.push_str("<dl>\n"),
        }
        self.body.push_str(&format!("<dt>{}</dt><dd>{}</dd>\n{END}", escaped(name), escaped(value)));
        self
    }

    /// A button that posts `confirmation` to the page's own URL.
    pub fn confirm_button(mut self, confirmation: &str, text: &str) -> Page {
        let (confirmation, text) = (escaped(confirmation), escaped(text));
        self.body.push_str(&format!(
            "<form method=\"post\">\n<input type=\"hidden\" name=\"confirmation\" value=\"{confirmation}\">\n\
             <p><button class=\"go\" id=\"confirm\" type=\"submit\">{text}</button></p>\n</form>\n"
        ));
        self
    }

    pub fn code(mut self, text: &str) -> Page {
        self.body.push_str(&format!("<p><code>{}</code></p>\n", escaped(text)));
        self
    }

    /// `url` is http, https or relative.
    pub fn link(mut self, url: &str, text: &str) -> Page {
        let (url, text) = (escaped(url), escaped(text));
        self.body.push_str(&format!("<p><a rel=\"noreferrer\" href=\"{url}\">{text}</a></p>\n"));
        self
    }

    /// A form that posts a user's token to the page's own URL.
    pub fn token_form(mut self) -> Page {
        self.body.push_str(
            "<form method=\"post\">\n<p><label for=\"token\">Admin token</label><br>\n\
             <input id=\"token\" name=\"token\" type=\"password\" autocomplete=\"current-password\" required autofocus>\n\
             <button class=\"go\" type=\"submit\">Sign in</button></p>\n</form>\n",
        );
        self
    }

    /// Too many attempts; `wait` is how long to wait.
    pub fn too_many(wait: Duration, text: &str) -> Page {
        let wait_s = wait.as_secs() + 1;
        let page = Page::new(StatusCode::TOO_MANY_REQUESTS, "Too many attempts").text(text);
        page.note(&format!("Try again in {wait_s} seconds."))
    }

    /// Loads `url` after a delay; an empty one reloads the page.
    pub fn refresh(mut self, after_s: u32, url: &str) -> Page {
        self.next = Some((after_s, url.to_owned()));
        self
    }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let (title, body) = (escaped(&self.title), self.body);
        let next = self
            .next
            .map(|(after, url)| format!("<meta http-equiv=\"refresh\" content=\"{after}; url={}\">\n", escaped(&url)));
        let text = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n{}\
             <title>{title} · Keybearer</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n\
             {body}</main>\n</body>\n</html>\n",
            next.unwrap_or_default()
        );
        (self.status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response()
    }
}

/// Adds the security headers of every page.
pub fn with_security_headers(mut response: Response) -> Response {
    let style = BASE64_STANDARD.encode(SecretDigest::of(STYLE.as_bytes()).as_bytes());
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{style}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    );
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::try_from(policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    const HEADERS: [(HeaderName, &str); 6] = [
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Name of a token for people.
pub fn display_name(key: &TokenKey) -> String {
    let profile = if key.profile.as_str() == "default" { String::new() } else { format!(" ({})", key.profile) };
    let subject = key.subject.as_ref().map(|subject| format!(" for {subject}")).unwrap_or_default();
    format!("{}{profile}{subject}", key.connection)
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untrusted_text_is_escaped() {
        assert_eq!(escaped("<b a='1'>\"&\r\n\u{7f}é"), "&lt;b a=&#39;1&#39;&gt;&quot;&amp;   é");
        let page = Page::refused("<t>").text("<p>").note("<n>").code("<c>").link("https://a.test/?a=1&b='", "<l>");
        let page = page.refresh(1, "https://a.test/\"><script>");
        let shown = format!("{}{}", page.body, page.title);
        let page = page.fact("<n>", "<v>").fact("x", "y").confirm_button("\"><", "<b>");
        let list = "<dl>\n<dt>&lt;n&gt;</dt><dd>&lt;v&gt;</dd>\n<dt>x</dt><dd>y</dd>\n</dl>\n";
        assert!(page.body.contains(list) && page.body.contains("value=\"&quot;&gt;&lt;\">"), "{}", page.body);
        for part in ["<p>&lt;p&gt;</p>", "&lt;n&gt;", "&lt;c&gt;", "&amp;b=&#39;", "&lt;l&gt;", "<t>"] {
            assert!(shown.contains(part), "{part}");
        }
    }
}
