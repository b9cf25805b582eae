//! `traceparent` (W3C Trace Context): parsing, creation and serialization. Pure except for random ids.
//!
//! Invariant: an invalid, overlong or repeated header is ignored.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanId, TraceId};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// `00-<32>-<16>-<2>`
const LENGTH: usize = 55;
/// Maximum length with fields appended by future versions (§3.2.4).
const LENGTH_MAX: usize = 256;
const SAMPLED: u8 = 1;
/// The trace id is random (level 2); passed on, never set.
const RANDOM: u8 = 2;

/// A trace id and the id of the parent span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    pub trace: TraceId,
    pub span: SpanId,
    flags: u8,
    /// The span belongs to another process.
    pub remote: bool,
}

/// The context sent to the next hop.
#[derive(Debug, Clone)]
pub struct Propagation {
    traceparent: HeaderValue,
    /// The trace started here, so `tracestate` of another trace is removed (§3.4).
    new_trace: bool,
}

impl Context {
    /// A new trace.
    pub fn new(sampled: bool) -> Context {
        let trace = TraceId::from_bytes(fastrand::u128(1..).to_be_bytes());
        Context { trace, span: new_span(), flags: u8::from(sampled), remote: false }
    }

    /// The caller's context, if there is exactly one valid header.
    pub fn from_headers(headers: &HeaderMap) -> Option<Context> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let (value, None) = (values.next()?, values.next()) else { return None };
        Context::parse(value.to_str().ok()?)
    }

    fn parse(text: &str) -> Option<Context> {
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'));
        let field = |from: usize, to: usize| text.get(from..to).filter(|text| plain(text));
        let dash = |at: usize| text.as_bytes().get(at) == Some(&b'-');
        let (version, trace, span, flags) = (field(0, 2)?, field(3, 35)?, field(36, 52)?, field(53, 55)?);
        let length = match version {
            "ff" => false,
            "00" => text.len() == LENGTH,
            _ => text.len() == LENGTH || (dash(LENGTH) && text.len() <= LENGTH_MAX),
        };
        let trace = TraceId::from_hex(trace).ok().filter(|id| *id != TraceId::INVALID)?;
        let span = SpanId::from_hex(span).ok().filter(|id| *id != SpanId::INVALID)?;
        let flags = u8::from_str_radix(flags, 16).ok()? & (SAMPLED | RANDOM);
        (length && [2, 35, 52].into_iter().all(dash)).then_some(Context { trace, span, flags, remote: true })
    }

    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The same trace with a new local span.
    pub fn child(&self) -> Context {
        Context { span: new_span(), remote: false, ..*self }
    }

    pub fn propagation(&self, new_trace: bool) -> Propagation {
        let text = format!("00-{}-{}-{:02x}", self.trace, self.span, self.flags);
        // Hexadecimal digits and dashes are always a valid header value.
        let traceparent = HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""));
        Propagation { traceparent, new_trace }
    }
}

impl Propagation {
    /// Replaces the context in `headers`.
    pub fn apply(&self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT, self.traceparent.clone());
        if self.new_trace {
            headers.remove(TRACESTATE);
        }
    }
}

fn new_span() -> SpanId {
    SpanId::from_bytes(fastrand::u64(1..).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[track_caller]
    fn check(values: &[&str], expected: Option<bool>) {
        let field = |value: &&str| (TRACEPARENT, value.parse().unwrap());
        let headers: HeaderMap = values.iter().map(field).collect();
        assert_eq!(Context::from_headers(&headers).map(|context| context.is_sampled()), expected, "{values:?}");
    }

    #[test]
    fn only_a_single_valid_header_is_accepted() {
        check(&[GOOD], Some(true));
        check(&[&GOOD.replace("-01", "-00")], Some(false));
        check(&[&GOOD.replace("-01", "-ff")], Some(true));
        check(&[&GOOD.replacen("00", "cc", 1)], Some(true));
        check(&[&(GOOD.replacen("00", "cc", 1) + "-what-comes")], Some(true));
        check(&[], None);
        check(&[GOOD, GOOD], None);
        for bad in [
            String::new(),
            GOOD.to_owned() + "-x",
            GOOD.replacen("00", "ff", 1),
            GOOD.replacen("00", "cc", 1) + "x",
            format!("{}-{}", GOOD.replacen("00", "cc", 1), "x".repeat(300)),
            GOOD.replace("4bf9", "4BF9"),
            GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            GOOD.replace('-', "_"),
            GOOD[..54].to_owned(),
            GOOD.replace("4bf9", "4b\u{e9}"),
        ] {
            let headers: HeaderMap =
                [(TRACEPARENT, HeaderValue::from_bytes(bad.as_bytes()).unwrap())].into_iter().collect();
            assert_eq!(Context::from_headers(&headers), None, "{bad}");
        }
    }

    #[test]
    fn a_propagated_context_round_trips() {
        let context = Context::parse(GOOD).unwrap();
        let mut headers: HeaderMap =
            [(TRACEPARENT, "x".parse().unwrap()), (TRACESTATE, "a=b".parse().unwrap())].into_iter().collect();
        context.propagation(false).apply(&mut headers);
        assert_eq!((headers[TRACEPARENT].as_bytes(), headers.contains_key(TRACESTATE)), (GOOD.as_bytes(), true));
        Context::new(false).propagation(true).apply(&mut headers);
        assert_eq!(Context::from_headers(&headers).map(|context| context.is_sampled()), Some(false));
        assert!(!headers.contains_key(TRACESTATE));
    }
}
