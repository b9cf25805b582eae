//! Egress settings: the hosts that may be reached, and the egress proxy.

use ipnet::IpNet;

use super::connection::ForwardProxy;
use super::origin::Host;

#[derive(Debug, Clone)]
pub struct Egress {
    pub unmatched: Unmatched,
    /// Private networks that any name may resolve to.
    pub allow_private: Vec<IpNet>,
    /// Permitted ports of hosts that no route names, with or without a tunnel.
    pub connect_ports: Vec<u16>,
    /// Egress proxy for upstreams, tunnels and token endpoints.
    pub proxy: Option<ForwardProxy>,
    /// Hosts that bypass the proxy.
    pub no_proxy: Vec<Bypass>,
}

impl Default for Egress {
    fn default() -> Self {
        Egress {
            unmatched: Unmatched::default(),
            allow_private: Vec::new(),
            connect_ports: vec![443, 80],
            proxy: None,
            no_proxy: Vec::new(),
        }
    }
}

impl Egress {
    /// Checks that a host without a route may be reached on `port`.
    ///
    /// # Errors
    /// The reason, with the setting that decides.
    pub fn permit_unmatched(&self, port: u16) -> Result<(), &'static str> {
        match self.unmatched {
            Unmatched::Deny => Err("no route names the host, and egress.unmatched is deny"),
            Unmatched::Forward if !self.connect_ports.contains(&port) => {
                Err("no route names host and port, and egress.connect_ports does not list the port")
            }
            Unmatched::Forward => Ok(()),
        }
    }
}

/// What happens to a request to a host that no route names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unmatched {
    #[default]
    Forward,
    Deny,
}

/// An entry of `no_proxy`; with a port, it matches only that port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bypass {
    All,
    /// The name and its subdomains.
    Name(String, Option<u16>),
    /// Literal addresses in a URL; names are not resolved to check this.
    Network(IpNet, Option<u16>),
}

impl Bypass {
    pub fn matches(&self, host: &Host, port: u16) -> bool {
        let at = |wanted: &Option<u16>| wanted.is_none_or(|wanted| wanted == port);
        match (self, host) {
            (Bypass::All, _) => true,
            (Bypass::Name(name, wanted), Host::Name(host_name)) => {
                let below =
                    host_name.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
                below && at(wanted)
            }
            (Bypass::Network(network, wanted), Host::Ip(ip)) => network.contains(&ip.to_canonical()) && at(wanted),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmatched_hosts_are_permitted_only_on_connect_ports() {
        let open = |egress: &Egress| {
            let ports = [80, 81, 443, 444, 8080, 8443];
            ports.into_iter().filter(|port| egress.permit_unmatched(*port).is_ok()).collect::<Vec<_>>()
        };
        assert_eq!(open(&Egress::default()), [80, 443]);
        assert_eq!(open(&Egress { connect_ports: vec![8443, 81], ..Egress::default() }), [81, 8443]);
        assert!(open(&Egress { connect_ports: Vec::new(), ..Egress::default() }).is_empty());
        assert!(open(&Egress { unmatched: Unmatched::Deny, ..Egress::default() }).is_empty());
    }

    #[test]
    fn a_name_bypasses_its_subdomains_and_a_network_bypasses_literal_addresses() {
        #[track_caller]
        fn check(entry: &Bypass, host: &str, port: u16, expected: bool) {
            assert_eq!(entry.matches(&Host::parse(host).unwrap(), port), expected, "{entry:?} {host}:{port}");
        }
        let name = Bypass::Name("corp.test".to_owned(), None);
        check(&name, "corp.test", 1, true);
        check(&name, "a.b.corp.test", 443, true);
        check(&name, "xcorp.test", 443, false);
        check(&name, "corp.test.evil", 443, false);
        check(&Bypass::Name("corp.test".to_owned(), Some(80)), "corp.test", 443, false);
        let network = Bypass::Network("10.0.0.0/8".parse().unwrap(), None);
        check(&network, "10.1.2.3", 443, true);
        check(&network, "11.1.2.3", 443, false);
        check(&network, "ten.test", 443, false);
        check(&Bypass::All, "any.test", 1, true);
    }
}
