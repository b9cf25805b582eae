"""The test bed: certificates, token endpoint, origin and proxies, and a check that they work."""

import grp
import http.client
import http.server
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import string
import subprocess
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

HERE = Path(__file__).parent
HOST = "api.bench.test"
START_SECONDS_MAX = 20
SIZES = {"1k": 1024, "64k": 64 * 1024}
# Headers that a service sends, in addition to Host.
HEADERS = {
    "User-Agent": "bench/1.0",
    "Accept": "application/json",
    "Accept-Encoding": "gzip, br",
    "Accept-Language": "en",
    "X-Request-Id": "6f1c1b2e-62a4-4a7e-9a3c-0f5a1d0c7b11",
    "Authorization": "Bearer the-callers-own",
}


class Template(string.Template):
    """Uses `@name`, because nginx uses the dollar sign."""

    delimiter = "@"


class Failed(Exception):
    """The comparison cannot continue, or a proxy misbehaved."""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


class TokenEndpoint:
    """Responds to the client credentials grant of the only client with the only token."""

    def __init__(self, token):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                wanted = {"grant_type": "client_credentials", "client_id": "bench", "client_secret": "bench-secret"}
                right = all(form.get(name) == [value] for name, value in wanted.items())
                response = {"access_token": token, "token_type": "Bearer", "expires_in": 86400}
                body = json.dumps(response if right else {"error": "invalid_client"}).encode()
                self.send_response(200 if right else 401)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Proxy:
    """A program in its own session, with all of its processes."""

    def __init__(self, name, process, port, log):
        self.name, self.process, self.port, self.log = name, process, port, log

    def pids(self):
        """All processes of the session: a master and its workers."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == self.process.pid:
                    found.append(int(entry.name))
        return found

    def output(self):
        return self.log.read_text(errors="replace")[-2000:]

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


class Stage:
    """All running programs; `with` stops them and removes their files."""

    def __init__(self, workers, proxy_cores, load_cores):
        self.dir = Path(tempfile.mkdtemp(prefix="keybearer-compare-"))
        self.proxy_cores, self.load_cores = proxy_cores, load_cores
        self.running = []
        self.token = secrets.token_urlsafe(450)
        plain, tls = free_ports(2)
        self.values = {
            "dir": self.dir, "workers": workers, "host": HOST, "token": self.token, "origin_plain": plain, "origin_tls": tls,
            "user": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name,
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # A second signal must not interrupt the cleanup.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for proxy in reversed(self.running):
            proxy.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def prepare(self):
        """Creates certificates and bodies; starts the token endpoint and the origin."""
        self.certificates()
        for prefix in ("plain", "tls"):
            folder = self.dir / "www" / prefix
            folder.mkdir(parents=True)
            for name, size in SIZES.items():
                (folder / name).write_bytes(b"x" * size)
        self.values["token_port"] = TokenEndpoint(self.token).port
        self.start("origin", "origin.conf", nginx_command, self.values["origin_plain"], self.load_cores)

    def certificates(self):
        def openssl(*arguments):
            subprocess.run(["openssl", *arguments], cwd=self.dir, check=True, capture_output=True)

        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        ca = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
        openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=bench CA", "-days", "2", *ca)
        openssl("req", *new_key, "-keyout", "origin.key", "-out", "origin.csr", "-subj", f"/CN={HOST}")
        (self.dir / "san").write_text(f"subjectAltName=DNS:{HOST}\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n")
        openssl("x509", "-req", "-in", "origin.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", "origin.pem", "-days", "2", "-extfile", "san")

    def start(self, name, template, command, port, cores, **more):
        """Starts a program with its filled template and waits until its port accepts connections."""
        # A separate directory, because Keybearer watches the directory of its configuration.
        path = self.dir / "config" / name / template
        path.parent.mkdir(parents=True)
        path.write_text(Template((HERE / template).read_text()).substitute(self.values, name=name, port=port, **more))
        log = self.dir / f"{name}.out"
        pin = ["taskset", "-c", cores] if cores else []
        with log.open("w") as out:
            process = subprocess.Popen(
                [*pin, *command(path)], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd=self.dir)
        proxy = Proxy(name, process, port, log)
        self.running.append(proxy)
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return proxy
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"{name} did not start: {proxy.output()}") from None
                time.sleep(0.02)

    def nginx(self):
        return self.start("nginx", "nginx.conf", nginx_command, free_ports(1)[0], self.proxy_cores)

    def haproxy(self):
        return self.start("haproxy", "haproxy.cfg", haproxy_command, free_ports(1)[0], self.proxy_cores)

    def keybearer(self, name, binary):
        port, admin = free_ports(2)
        command = lambda path: [str(binary), "run", "--config", str(path)]
        return self.start(name, "keybearer.yaml", command, port, self.proxy_cores, admin=admin)

    def absolute(self, path):
        return f"http://{HOST}:{self.values['origin_plain']}{path}"

    def host_of(self, target):
        """The Host header for this target."""
        return f"{HOST}:{self.values['origin_plain']}" if target.startswith("http:") else "localhost"

    def check(self, proxy):
        """Checks on every path through `proxy` that the token replaces the caller's credential and that bodies are complete."""
        paths = [("/plain/", ""), ("/tls/", ""), ("/plain/", self.absolute(""))]
        for prefix, base in paths:
            wanted = {"seen": f"Bearer {self.token}".encode(), **{name: b"x" * size for name, size in SIZES.items()}}
            for name, body in wanted.items():
                status, got = self.get(proxy.port, f"{base}{prefix}{name}")
                if (status, got) != (200, body):
                    what = f"status {status}, {len(got)} bytes for {len(body)}"
                    raise Failed(f"{proxy.name}: {base}{prefix}{name}: {what}; {proxy.output()}")
        status, _ = self.get(self.values["origin_plain"], "/plain/1k")
        if status != 401:
            raise Failed(f"the origin accepts a wrong token: {status}")

    def get(self, port, target):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.putrequest("GET", target, skip_host=True, skip_accept_encoding=True)
            for name, value in {"Host": self.host_of(target), **HEADERS}.items():
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def nginx_command(path):
    return [shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"), "-p", str(path.parent), "-e", "stderr", "-c", str(path)]


def haproxy_command(path):
    return [shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin"), "-db", "-f", str(path)]
