"""Sends requests through the program while its name server never responds, in separate namespaces.

Runs under `unshare --map-root-user --mount --net`: /etc/resolv.conf and /etc/hosts are replaced, port 53 is ours, and no packet
leaves the machine. Prints one JSON object: the status and duration of a request to a name in /etc/hosts, sent while hundreds
wait for names of the silent server, and the number of the program's threads after several such waves.

Usage: silent_dns.py PROGRAM DIRECTORY
"""

import fcntl
import http.server
import json
import pathlib
import socket
import struct
import subprocess
import sys
import threading
import time

WAVES = 4
SILENT_NAMES = 200
SIOCSIFFLAGS, IFF_UP = 0x8914, 1

program, directory = sys.argv[1], pathlib.Path(sys.argv[2])


def lo_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", IFF_UP, b""))


def replace(path, text):
    own = directory / path.replace("/", "_")
    own.write_text(text)
    subprocess.run(["mount", "--bind", own, path], check=True)


class Upstream(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def send_request(host):
    conn = socket.create_connection(("127.0.0.1", 8080))
    conn.sendall(f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    return conn


def status(conn):
    return int(conn.makefile("rb").readline().split()[1])


def ready():
    for _ in range(600):
        try:
            with socket.create_connection(("127.0.0.1", 8081)) as conn:
                conn.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                if status(conn) == 200:
                    return
        except OSError:
            pass
        time.sleep(0.05)
    sys.exit("the program is not ready")


lo_up()
replace("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:30 attempts:1\n")
replace("/etc/hosts", "127.0.0.1 localhost quick.test\n")
silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
silent.bind(("127.0.0.1", 53))
upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 80), Upstream)
threading.Thread(target=upstream.serve_forever, daemon=True).start()
config = directory / "keybearer.yaml"
config.write_text(
    "listeners: {proxy: 127.0.0.1:8080, admin: 127.0.0.1:8081}\n"
    "egress: {allow_private: true}\ntimeouts: {connect: 1s, drain: 1s}\nstore: {memory: {}}\n"
)
keybearer = subprocess.Popen([program, "run", "--config", config], env={"STATE_DIRECTORY": str(directory / "state")})
try:
    ready()
    for wave in range(WAVES):
        waiting = [send_request(f"h{n}.wave{wave}.silent.test") for n in range(SILENT_NAMES)]
        started = time.monotonic()
        quick = status(send_request("quick.test"))
        seconds = time.monotonic() - started
        if quick != 204:
            break
        for conn in waiting:
            status(conn)
    lines = pathlib.Path(f"/proc/{keybearer.pid}/status").read_text().splitlines()
    threads = next(int(line.split()[1]) for line in lines if line.startswith("Threads:"))
    print(json.dumps({"status": quick, "seconds": seconds, "threads": threads}))
finally:
    keybearer.terminate()
    keybearer.wait()
