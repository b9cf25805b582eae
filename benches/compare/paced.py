"""A load generator that sends a fixed number of evenly spaced requests per second over keep-alive connections.

wrk sends as fast as responses arrive; this shows a proxy at partial load. Prints the same line of JSON as `report.lua`.
"""

import argparse
import json
import select
import socket
import time


def exchange(sock, response_bytes):
    """Reads the available bytes; true once the response is complete."""
    data = sock.recv(65536)
    if not data:
        raise SystemExit("a connection was closed")
    sock_left[sock] -= len(data)
    if sock_left[sock] > 0:
        return False
    if sock_left[sock] < 0:
        raise SystemExit("a response was longer than the first one")
    sock_left[sock] = response_bytes
    return True


def measure_response(sock, request):
    """Sends one request and returns the length of its response, which all others must have."""
    sock.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(f"not 200: {head!r}")
    length = next(int(l.split(b":")[1]) for l in head.split(b"\r\n") if l.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += sock.recv(65536)
    return len(head) + 4 + length


sock_left = {}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--rate", type=int, default=3200)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    lines = [f"GET {options.path} HTTP/1.1", *options.header, "", ""]
    request = "\r\n".join(lines).encode()

    idle = [socket.create_connection(("127.0.0.1", options.port)) for _ in range(options.connections)]
    for sock in idle:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    response_bytes = measure_response(idle[0], request)
    sock_left.update((sock, response_bytes) for sock in idle)
    busy, times = {}, []
    start = time.monotonic()
    due, interval = start, 1.0 / options.rate
    end = start + options.seconds
    while True:
        now = time.monotonic()
        while due <= now and due < end and idle:
            sock = idle.pop(0)
            sock.sendall(request)
            busy[sock] = due
            due += interval
        if due >= end and not busy:
            break
        wait = max(0.0, due - now) if idle and due < end else 1.0
        for sock in select.select(list(busy), [], [], wait)[0]:
            if exchange(sock, response_bytes):
                times.append(time.monotonic() - busy.pop(sock))
                idle.append(sock)
        if now > end + 10:
            raise SystemExit("responses timed out")
    times.sort()
    at = lambda share: round(1000 * times[min(len(times) - 1, int(share * len(times)))], 3)
    print(json.dumps({
        "requests": len(times) + 1, "seconds": time.monotonic() - start, "bytes": len(times) * response_bytes,
        "errors": 0, "p50_ms": at(0.5), "p99_ms": at(0.99),
    }))


if __name__ == "__main__":
    main()
