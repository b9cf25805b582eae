"""A trace collector: OTLP over HTTP, decoded with the official protobuf definitions. `collector.py OPTIONS`

Control: GET /__spans: all spans so far, as JSON; GET /__raw: {"bytes": all received bodies in hexadecimal, "heads": […]};
POST /__control {"status": 503}: sets the status of its responses.
"""

import http.server
import json
import os
import sys
import threading

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

lock = threading.Lock()
spans, raw, heads = [], bytearray(), []
status = 200


def value(any_value):
    kind = any_value.WhichOneof("value")
    return getattr(any_value, kind) if kind else None


def attributes(pairs):
    return {pair.key: value(pair.value) for pair in pairs}


def read(body):
    request = ExportTraceServiceRequest.FromString(body)
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield {
                    "trace": span.trace_id.hex(), "id": span.span_id.hex(), "parent": span.parent_span_id.hex(),
                    "kind": MessageToDict(span)["kind"].removeprefix("SPAN_KIND_"), "name": span.name,
                    "start": span.start_time_unix_nano, "end": span.end_time_unix_nano, "flags": span.flags,
                    "error": span.status.code == 2, "attributes": attributes(span.attributes),
                    "resource": attributes(resource.resource.attributes), "scope": scope.scope.name,
                }


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def respond(self, code, body, content_type="application/json"):
        self.send_response(code)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        if 300 <= code < 400:
            self.send_header("location", "/elsewhere")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        with lock:
            shown = spans if self.path == "/__spans" else {"bytes": bytes(raw).hex(), "heads": heads}
            self.respond(200, json.dumps(shown).encode())

    def do_POST(self):
        global status
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/__control":
            status = json.loads(body)["status"]
            return self.respond(200, b"{}")
        with lock:
            raw.extend(body)
            heads.append({"line": self.requestline, "fields": dict(self.headers.items())})
            if status == 200 and self.path == "/v1/traces":
                spans.extend(read(body))
        self.respond(status, ExportTraceServiceResponse().SerializeToString(), "application/x-protobuf")


def listen():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


port = listen()
print(json.dumps({"listening": {"port": port, "control": port}}), flush=True)
sys.stdin.read()
os._exit(0)
