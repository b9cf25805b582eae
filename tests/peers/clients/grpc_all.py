"""All four kinds of gRPC calls (grpcio). Arguments: target, optionally `tls`. grpcio reads proxy and roots from the environment.

Prints JSON: {unary: bytes echoed, down: [ms of each message], both: [texts], fail: [code, details, trailing metadata]}.
"""

import json
import sys
import time

import grpc

secure = sys.argv[2:] == ["tls"]
channel = grpc.secure_channel(sys.argv[1], grpc.ssl_channel_credentials()) if secure else grpc.insecure_channel(sys.argv[1])
observed = {}


def call(name, make, then):
    started = time.monotonic()
    try:
        observed[name] = then(make(f"/kb.Echo/{name.capitalize()}"), started)
    except grpc.RpcError as error:
        observed[name] = [error.code().name, error.details(), dict(error.trailing_metadata() or ())]


big = b"x" * 3_000_000
call("unary", channel.unary_unary, lambda rpc, _: len(rpc(big, timeout=20)))
call("down", channel.unary_stream, lambda rpc, at: [round((time.monotonic() - at) * 1000) for _ in rpc(b"abcd", timeout=20)])


def talk(rpc, _):
    # Sends each message only after the echo of the previous one.
    got = []
    waiting = iter([b"one", b"two", b"three"])

    def questions():
        for question in waiting:
            yield question
            while len(got) < 3 and got[-1:] != [question.decode()]:
                time.sleep(0.01)

    for message in rpc(questions(), timeout=20):
        got.append(message.decode())
    return got


call("both", channel.stream_stream, talk)
call("fail", channel.unary_unary, lambda rpc, _: rpc(b"", timeout=20).decode())
print(json.dumps(observed))
