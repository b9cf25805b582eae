"""A load generator that sends a fixed number of requests a second, evenly, over kept connections.

wrk sends as fast as answers come; this shows a proxy at part load. Prints the same line of JSON as `report.lua`.
"""

import argparse
import json
import select
import socket
import time


def exchange(sock, answer_bytes):
    """Reads what is there; true once the answer is whole."""
    data = sock.recv(65536)
    if not data:
        raise SystemExit("a connection was closed")
    sock_left[sock] -= len(data)
    if sock_left[sock] > 0:
        return False
    if sock_left[sock] < 0:
        raise SystemExit("an answer was longer than the first")
    sock_left[sock] = answer_bytes
    return True


def first_answer(sock, request):
    """Sends one request and tells the bytes of its answer, which all others must have."""
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
    answer_bytes = first_answer(idle[0], request)
    sock_left.update((sock, answer_bytes) for sock in idle)
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
            if exchange(sock, answer_bytes):
                times.append(time.monotonic() - busy.pop(sock))
                idle.append(sock)
        if now > end + 10:
            raise SystemExit("answers did not come")
    times.sort()
    at = lambda share: round(1000 * times[min(len(times) - 1, int(share * len(times)))], 3)
    print(json.dumps({
        "requests": len(times) + 1, "seconds": time.monotonic() - start, "bytes": len(times) * answer_bytes,
        "errors": 0, "p50_ms": at(0.5), "p99_ms": at(0.99),
    }))


if __name__ == "__main__":
    main()
