//! Texts that are values: durations, sizes, counts, networks, addresses. Pure.
//!
//! Holds: a [`Fault`] never repeats the text, which may come from a reference and be a secret.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::problem::{Sink, suggest};
use super::reference;
use super::shape::Words;
use super::spot::Spot;
use crate::model::egress::Bypass;
use crate::model::origin::{Authority, Host};
use crate::model::token::Subject;
use crate::model::{Name, SubjectPattern};

/// No setting is longer.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What is wrong with a text, as the end of a sentence that begins with it, and the way out.
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

impl Spot<'_> {
    /// The filled text, parsed; a fault becomes a problem that quotes what was written.
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

    /// The same for a text that might hold credentials, such as a URL: the problem does not repeat it.
    pub fn secretive<T>(&self, sink: &mut Sink, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
        let text = reference::text(self, sink)?.value;
        if !self.is_filled_in(&text, sink) {
            return None;
        }
        let fault = match parse(&text) {
            Ok(value) => return Some(value),
            Err(fault) => fault,
        };
        self.problem(sink, format!("the URL {}", fault.message), fault.hint);
        None
    }

    /// One of a few words.
    pub fn choice<W: Words>(&self, sink: &mut Sink) -> Option<W> {
        let words = W::words();
        self.parse(sink, |text| match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(value.clone()),
            None => {
                let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                let all = format!("write one of {}", names.join(", "));
                Err(Fault::new("is not known here", suggest(text, names, &all)))
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

    /// A text without control characters that is not empty. The problem does not repeat it.
    pub fn line(&self, sink: &mut Sink) -> Option<String> {
        let text = reference::text(self, sink)?.value;
        if text.is_empty() {
            self.problem(sink, "is empty", "write a value or remove the key");
            return None;
        }
        self.without_controls(text, sink)
    }

    pub fn without_controls(&self, text: String, sink: &mut Sink) -> Option<String> {
        if !text.chars().any(char::is_control) {
            return Some(text);
        }
        self.problem(sink, "holds a control character (a line break, a tab or the like)", "write it on one line");
        None
    }

    /// A path, relative to the file that holds it.
    pub fn file(&self, sink: &mut Sink) -> Option<std::path::PathBuf> {
        let path = self.line(sink)?;
        Some(self.beside(&path))
    }

    /// A path relative to the file that this is in.
    pub fn beside(&self, path: &str) -> std::path::PathBuf {
        self.source.resolve(path)
    }
}

pub fn name(text: &str) -> Result<Name, Fault> {
    Name::parse(text).ok_or_else(|| {
        Fault::new(
            "is not a name",
            "use 1 to 63 lower-case letters, digits, `-` and `_`, and begin with a letter or a digit",
        )
    })
}

/// Integers with units, joined at will: `1h30m`.
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

/// The same, where zero would mean that nothing ever works.
pub fn wait(text: &str) -> Result<Duration, Fault> {
    match duration(text)? {
        Duration::ZERO => Err(Fault::new("is zero", "write a duration above zero, such as 30s")),
        wait => Ok(wait),
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

/// Decimal digits alone.
pub fn integer(text: &str, range: std::ops::RangeInclusive<usize>) -> Result<usize, Fault> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|number| digits && range.contains(number)).ok_or_else(|| {
        Fault::new(
            format!("is not an integer from {} to {}", range.start(), range.end()),
            format!("write one from {} to {}", range.start(), range.end()),
        )
    })
}

pub fn port(text: &str) -> Result<u16, Fault> {
    let refused = || Fault::new("is not a port", "write a number from 1 to 65535");
    let number = integer(text, 1..=usize::from(u16::MAX)).map_err(|_| refused())?;
    u16::try_from(number).map_err(|_| refused())
}

/// `ann`, or all that begin alike: `team-*`.
pub fn subjects(text: &str) -> Result<SubjectPattern, Fault> {
    let (start, every) = text.strip_suffix('*').map_or((text, false), |start| (start, true));
    let pattern = match (every, Subject::parse(start)) {
        (true, None) if start.is_empty() => Some(SubjectPattern::Prefix(String::new())),
        (true, subject) => subject.map(|_| SubjectPattern::Prefix(start.to_owned())),
        (false, subject) => subject.map(SubjectPattern::Exact),
    };
    let hint = "use 1 to 128 letters, digits and `._@:+-`, with a `*` at the end for all that begin so";
    pattern.ok_or_else(|| Fault::new("is not a subject", hint))
}

/// A part of the whole, from 0 to 1.
pub fn fraction(text: &str) -> Result<f64, Fault> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    text.parse().ok().filter(|part| plain && (0.0..=1.0).contains(part)).ok_or_else(|| {
        Fault::new("is not a number from 0 to 1", "write a part of the whole, such as 0.01 for one in a hundred")
    })
}

pub fn network(text: &str) -> Result<IpNet, Fault> {
    let hint = "write an address and the length of its prefix, such as 10.0.0.0/8 or fd00::/8";
    let network: IpNet = text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(_) => Fault::new("has no prefix length", "add /32 to an IPv4 address, /128 to an IPv6 one"),
        Err(_) => Fault::new("is not a network", hint),
    })?;
    if network != network.trunc() {
        return Err(Fault::new("has bits beyond its prefix", "clear them, or write a longer prefix"));
    }
    Ok(network)
}

/// A list of networks.
pub fn networks(spot: &Spot<'_>, sink: &mut Sink) -> Vec<IpNet> {
    let items = spot.items(sink).unwrap_or_default();
    items.iter().filter_map(|item| item.parse(sink, network)).collect()
}

/// The address of a listener.
pub fn listen_address(text: &str) -> Result<SocketAddr, Fault> {
    if text.starts_with("unix:") {
        return Err(Fault::new(
            "is a Unix socket, which only a proxy listener may be",
            "write IP:PORT, such as 127.0.0.1:8080",
        ));
    }
    text.parse().map_err(|_| Fault::new("is not an address with a port", "write IP:PORT, such as 127.0.0.1:8080"))
}

/// `*`, a name with all below it (with or without a dot before it), an address or a network; perhaps with a port.
pub fn bypass(text: &str) -> Result<Bypass, Fault> {
    let bad =
        || Fault::new("is no host", "write a name such as .internal, an address, a network such as 10.0.0.0/8, or *");
    if text == "*" {
        return Ok(Bypass::All);
    }
    if text.contains('/') {
        return network(text).map(|network| Bypass::Network(network, None));
    }
    let text = text.strip_prefix("*.").or_else(|| text.strip_prefix('.')).unwrap_or(text);
    let authority = match text.parse::<IpAddr>() {
        Ok(address) => Authority { host: Host::Ip(address), port: None },
        Err(_) => Authority::parse(text).map_err(|_| bad())?,
    };
    Ok(match authority.host {
        Host::Ip(address) => Bypass::Network(address.to_canonical().into(), authority.port),
        Host::Name(name) => Bypass::Name(name.to_string(), authority.port),
    })
}

/// The mode of a socket in the file system: who may open it.
pub fn mode(text: &str) -> Result<u32, Fault> {
    let digits = (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| digits && *mode <= 0o777);
    mode.ok_or_else(|| Fault::new("is not a mode", "write it in octal between quotes, such as \"0660\""))
}

/// `ip[:port]`, where a name of `hosts` is dialled.
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
