//! Parses text into values: durations, sizes, counts, networks, addresses.
//!
//! Invariant: a [`Fault`] never quotes the text, which may be the value of a reference and a secret.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::node::NodeRef;
use super::problem::{Sink, suggest};
use super::reference;
use super::shape::Keyword;
use crate::model::egress::Bypass;
use crate::model::origin::{Authority, Host};
use crate::model::token::Subject;
use crate::model::{Name, SubjectPattern};

/// Upper limit of every duration.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What is wrong with a text: a predicate whose subject is the text, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub message: String,
    pub hint: String,
}

impl Fault {
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Fault {
        Fault { message: message.into(), hint: hint.into() }
    }
}

impl NodeRef<'_> {
    /// Parses the resolved text. A problem quotes the text as written.
    pub fn parse<T>(&self, sink: &mut Sink, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
        let text = reference::text(self, sink)?;
        match parse(&text.value) {
            Ok(value) => Some(value),
            Err(fault) => {
                let written: String = text.written.chars().take(100).collect();
                self.problem(sink, format!("`{written}` {}", fault.message), fault.hint);
                None
            }
        }
    }

    /// Parses a URL. A problem does not quote it, since it may contain credentials.
    pub fn parse_url<T>(&self, sink: &mut Sink, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
        let text = reference::text(self, sink)?.value;
        if !self.check_placeholders(&text, sink) {
            return None;
        }
        let fault = match parse(&text) {
            Ok(value) => return Some(value),
            Err(fault) => fault,
        };
        self.problem(sink, format!("the URL {}", fault.message), fault.hint);
        None
    }

    /// Reads one of a fixed set of keywords.
    pub fn choice<W: Keyword>(&self, sink: &mut Sink) -> Option<W> {
        let keywords = W::keywords();
        self.parse(sink, |text| match keywords.iter().find(|(keyword, _)| *keyword == text) {
            Some((_, value)) => Ok(value.clone()),
            None => {
                let names: Vec<_> = keywords.iter().map(|(keyword, _)| *keyword).collect();
                let all = format!("write one of {}", names.join(", "));
                Err(Fault::new("is not a valid value", suggest(text, names, &all)))
            }
        })
    }

    pub fn boolean(&self, sink: &mut Sink) -> Option<bool> {
        self.parse(sink, |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(Fault::new("is neither true nor false", "write true or false")),
        })
    }

    /// Reads a non-empty text without control characters. A problem does not quote it.
    pub fn line(&self, sink: &mut Sink) -> Option<String> {
        let text = reference::text(self, sink)?.value;
        if text.is_empty() {
            self.problem(sink, "is empty", "write a value or remove the key");
            return None;
        }
        self.without_controls(text, sink)
    }

    /// `text`, unless it contains a control character.
    pub fn without_controls(&self, text: String, sink: &mut Sink) -> Option<String> {
        if !text.chars().any(char::is_control) {
            return Some(text);
        }
        self.problem(sink, "contains a control character, such as a line break or a tab", "write it on one line");
        None
    }

    /// Reads a path, which is relative to the file that contains it.
    pub fn file(&self, sink: &mut Sink) -> Option<std::path::PathBuf> {
        if reference::is_refused(self, "a path", sink) {
            return None;
        }
        let path = self.line(sink)?;
        Some(self.resolve(&path))
    }

    /// Resolves a path relative to the file of this node.
    pub fn resolve(&self, path: &str) -> std::path::PathBuf {
        self.source.resolve(path)
    }
}

pub fn name(text: &str) -> Result<Name, Fault> {
    Name::parse(text).ok_or_else(|| {
        Fault::new(
            "is not a valid name",
            "use 1 to 63 lower-case letters, digits, `-` and `_`, starting with a letter or a digit",
        )
    })
}

/// Integers with units, in any combination: `1h30m`.
pub fn duration(text: &str) -> Result<Duration, Fault> {
    let units = "write integers with units (ms, s, m, h, d), such as 500ms, 30s or 1h30m";
    let fault = |message: &str| Fault::new(message, units);
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(fault("has no unit"));
    }
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60 * 1000,
            "h" => 3600 * 1000,
            "d" => 24 * 3600 * 1000,
            _ => return Err(fault("is not a duration")),
        };
        if number.is_empty() {
            return Err(fault("is not a duration"));
        }
        let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms));
        let sum = part.and_then(|part| total.checked_add(Duration::from_millis(part)));
        total = sum.filter(|sum| *sum <= DURATION_MAX).ok_or_else(|| fault("is longer than ten years"))?;
        rest = tail;
    }
    if text.is_empty() { Err(fault("is not a duration")) } else { Ok(total) }
}

/// A duration that must not be zero.
pub fn positive_duration(text: &str) -> Result<Duration, Fault> {
    match duration(text)? {
        Duration::ZERO => Err(Fault::new("is zero", "write a duration above zero, such as 30s")),
        duration => Ok(duration),
    }
}

/// Bytes: an integer with `B`, `KiB`, `MiB` or `GiB`.
pub fn size(text: &str, range: std::ops::RangeInclusive<usize>) -> Result<usize, Fault> {
    let fault = |message: &str| Fault::new(message, "write an integer with B, KiB, MiB or GiB, such as 64KiB");
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit_bytes: usize = match unit.trim_start_matches(' ') {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "" if !number.is_empty() => return Err(fault("has no unit")),
        _ => return Err(fault("is not a size")),
    };
    if number.is_empty() {
        return Err(fault("is not a size"));
    }
    let bytes = number.parse::<usize>().ok().and_then(|number| number.checked_mul(unit_bytes));
    bytes.filter(|bytes| range.contains(bytes)).ok_or_else(|| {
        Fault::new("is out of range", format!("write a size from {} to {}", show(*range.start()), show(*range.end())))
    })
}

fn show(bytes: usize) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        bytes => format!("{bytes}B"),
    }
}

/// Decimal digits only.
pub fn integer(text: &str, range: std::ops::RangeInclusive<usize>) -> Result<usize, Fault> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|number| digits && range.contains(number)).ok_or_else(|| {
        Fault::new(
            format!("is not an integer from {} to {}", range.start(), range.end()),
            format!("write an integer from {} to {}", range.start(), range.end()),
        )
    })
}

pub fn port(text: &str) -> Result<u16, Fault> {
    let refused = || Fault::new("is not a port", "write a number from 1 to 65535");
    let number = integer(text, 1..=usize::from(u16::MAX)).map_err(|_| refused())?;
    u16::try_from(number).map_err(|_| refused())
}

/// A subject, or a prefix with `*`: `ann`, `team-*`.
pub fn subjects(text: &str) -> Result<SubjectPattern, Fault> {
    let (start, is_prefix) = text.strip_suffix('*').map_or((text, false), |start| (start, true));
    let pattern = match (is_prefix, Subject::parse(start)) {
        (true, None) if start.is_empty() => Some(SubjectPattern::Prefix(String::new())),
        (true, subject) => subject.map(|_| SubjectPattern::Prefix(start.to_owned())),
        (false, subject) => subject.map(SubjectPattern::Exact),
    };
    let hint = "use 1 to 128 letters, digits and `._@:+-`; a `*` at the end makes it a prefix";
    pattern.ok_or_else(|| Fault::new("is not a subject", hint))
}

/// A fraction from 0 to 1.
pub fn fraction(text: &str) -> Result<f64, Fault> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    text.parse()
        .ok()
        .filter(|part| plain && (0.0..=1.0).contains(part))
        .ok_or_else(|| Fault::new("is not a number from 0 to 1", "write a fraction, such as 0.01 for one in a hundred"))
}

pub fn network(text: &str) -> Result<IpNet, Fault> {
    let hint = "write an address with a prefix length, such as 10.0.0.0/8 or fd00::/8";
    let network: IpNet = text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(_) => Fault::new("has no prefix length", "add /32 to an IPv4 address, or /128 to an IPv6 address"),
        Err(_) => Fault::new("is not a network", hint),
    })?;
    if network != network.trunc() {
        return Err(Fault::new("has host bits set", "clear them, or use a longer prefix"));
    }
    Ok(network)
}

/// Reads a list of networks.
pub fn networks(node: &NodeRef<'_>, sink: &mut Sink) -> Vec<IpNet> {
    let items = node.items(sink).unwrap_or_default();
    items.iter().filter_map(|item| item.parse(sink, network)).collect()
}

/// The address of a listener.
pub fn listen_address(text: &str) -> Result<SocketAddr, Fault> {
    if text.starts_with("unix:") {
        return Err(Fault::new(
            "is a Unix socket, which only a proxy listener can use",
            "write IP:PORT, such as 127.0.0.1:8080",
        ));
    }
    text.parse().map_err(|_| Fault::new("is not an address with a port", "write IP:PORT, such as 127.0.0.1:8080"))
}

/// `*`, a name and its subdomains (with or without a leading dot), an address or a network; a port is optional.
pub fn bypass(text: &str) -> Result<Bypass, Fault> {
    let invalid = || {
        Fault::new("is not a host", "write a name such as .internal, an address, a network such as 10.0.0.0/8, or *")
    };
    if text == "*" {
        return Ok(Bypass::All);
    }
    if text.contains('/') {
        return network(text).map(|network| Bypass::Network(network, None));
    }
    let text = text.strip_prefix("*.").or_else(|| text.strip_prefix('.')).unwrap_or(text);
    let authority = match text.parse::<IpAddr>() {
        Ok(address) => Authority { host: Host::Ip(address), port: None },
        Err(_) => Authority::parse(text).map_err(|_| invalid())?,
    };
    Ok(match authority.host {
        Host::Ip(address) => Bypass::Network(address.to_canonical().into(), authority.port),
        Host::Name(name) => Bypass::Name(name.to_string(), authority.port),
    })
}

/// The mode of a Unix socket, in octal.
pub fn mode(text: &str) -> Result<u32, Fault> {
    let digits = (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| digits && *mode <= 0o777);
    mode.ok_or_else(|| Fault::new("is not a file mode", "write it in octal and quoted, such as \"0660\""))
}

/// `IP[:PORT]`, the address at which a name in `hosts` is dialled.
pub fn dial_address(text: &str) -> Result<(IpAddr, Option<u16>), Fault> {
    if let Ok(address) = text.parse::<SocketAddr>()
        && address.port() != 0
    {
        return Ok((address.ip(), Some(address.port())));
    }
    let inside = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let bracketed = inside.and_then(|text| text.parse::<std::net::Ipv6Addr>().ok()).map(IpAddr::from);
    let address = bracketed.or_else(|| text.parse().ok());
    address
        .map(|address| (address, None))
        .ok_or_else(|| Fault::new("is not an address", "write IP or IP:PORT, such as \"127.0.0.1:9443\""))
}

#[cfg(test)]
mod tests;
