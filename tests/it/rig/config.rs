//! Configuration builder for most tests: connections, the hosts of their upstreams, and further top-level keys.
//!
//! Not here: listeners (`Sidecar` adds them, on free ports); documents whose text itself is under test.

use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;

use super::manager::MANAGER;
use super::peers::Peers;
use super::scripted::Scripted;

/// A YAML document. Every method adds to it; [`Display`] writes it.
#[derive(Clone, Default)]
pub struct Config {
    top: String,
    hosts: Vec<String>,
    connections: String,
}

impl Config {
    pub fn new() -> Config {
        Config::default()
    }

    /// Further top-level keys, as whole lines.
    pub fn top(mut self, lines: impl Display) -> Config {
        self.top += &lines.to_string();
        self
    }

    /// The admin user `ops`, a manager whose token is [`MANAGER`].
    pub fn manager(self) -> Config {
        self.top(format_args!("admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\n"))
    }

    /// Trusts the CA of the peers' certificates.
    pub fn trust_peers(self) -> Config {
        self.top(format_args!("trust: [\"{}\"]\n", Peers::certs().ca.display()))
    }

    /// A name that resolves to `address`.
    pub fn host(mut self, name: &str, address: SocketAddr) -> Config {
        self.hosts.push(format!("{name}: \"{address}\""));
        self
    }

    /// Names that all resolve to `address`.
    pub fn hosts<'a>(self, names: impl IntoIterator<Item = &'a str>, address: SocketAddr) -> Config {
        names.into_iter().fold(self, |config, name| config.host(name, address))
    }

    pub fn connection(mut self, connection: Connection) -> Config {
        self.connections += &connection.to_string();
        self
    }
}

impl Display for Config {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Config { top, hosts, connections } = self;
        write!(f, "{top}hosts: {{{}}}\nconnections:\n{connections}", hosts.join(", "))
    }
}

/// One item of `connections`: the client `a` with the secret `b`, unless `client` or `keys` override them.
#[derive(Clone)]
pub struct Connection {
    name: String,
    token_url: String,
    client: String,
    keys: String,
    routes: Vec<String>,
}

impl Connection {
    pub fn new(name: &str, token_url: impl Display) -> Connection {
        let client = "client_id: a, client_secret: b".to_owned();
        Connection {
            name: name.into(),
            token_url: token_url.to_string(),
            client,
            keys: String::new(),
            routes: Vec::new(),
        }
    }

    /// A connection whose token endpoint is `/token` of a scripted server.
    pub fn at(name: &str, server: &Scripted) -> Connection {
        Connection::new(name, format_args!("http://{}/token", server.address))
    }

    /// The client's keys, for instance `client_id: x, send_credentials: none`.
    pub fn client(mut self, keys: impl Display) -> Connection {
        self.client = keys.to_string();
        self
    }

    /// Further keys, separated by `, `.
    pub fn keys(mut self, keys: impl Display) -> Connection {
        let keys = keys.to_string();
        if !keys.is_empty() {
            self.keys += &format!("{keys}, ");
        }
        self
    }

    /// A route with these keys, for instance `mount: /x, upstream: "http://api.test"`.
    pub fn route(mut self, keys: impl Display) -> Connection {
        self.routes.push(format!("{{{keys}}}"));
        self
    }

    /// A route to a host whose upstream speaks plain HTTP.
    pub fn plain(self, host: &str) -> Connection {
        self.route(format_args!("host: {host}, upstream_tls: false"))
    }
}

impl Display for Connection {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Connection { name, token_url, client, keys, routes } = self;
        let routes = routes.join(", ");
        writeln!(f, "- {{name: {name}, token_url: \"{token_url}\", {client}, {keys}routes: [{routes}]}}")
    }
}

/// A loopback address with this port.
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}
