"""A gRPC server (grpcio) with messages of bytes: /kb.Echo/{Unary,Down,Both,Fail}.

Argument: JSON, {"token": the accepted bearer token, "tls": DIR of certs.py for TLS, absent for cleartext}. Prints
{"listening": {"grpc": port}}. Unary echoes; Down sends the request's bytes one by one, 100 ms apart; Both echoes each message
as it arrives; Fail fails with RESOURCE_EXHAUSTED and trailing metadata. Any other token is UNAUTHENTICATED. Exits when its
stdin closes.
"""

import json
import sys
import time
from concurrent import futures

import grpc

options = json.loads(sys.argv[1])


class Authenticate(grpc.ServerInterceptor):
    def intercept_service(self, proceed, call):
        if ("authorization", "Bearer " + options["token"]) in [(pair.key, pair.value) for pair in call.invocation_metadata]:
            return proceed(call)
        refuse = lambda _, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such token")
        return grpc.unary_unary_rpc_method_handler(refuse)


def down(request, context):
    for byte in request:
        yield bytes([byte])
        time.sleep(0.1)


def fail(request, context):
    context.set_trailing_metadata((("x-left", "7"),))
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the café is full")


handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(lambda request, _: request),
    "Down": grpc.unary_stream_rpc_method_handler(down),
    "Both": grpc.stream_stream_rpc_method_handler(lambda requests, _: requests),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
}
server = grpc.server(futures.ThreadPoolExecutor(8), interceptors=(Authenticate(),))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("kb.Echo", handlers),))
if options.get("tls"):
    pair = tuple(open(f"{options['tls']}/server.{kind}", "rb").read() for kind in ("key", "pem"))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
else:
    port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(json.dumps({"listening": {"grpc": port}}), flush=True)
sys.stdin.read()
server.stop(None)
