"""An authorization server on Authlib (Flask), one of the two real ones.

  python al.py '{"tls": DIR or null, "port": 0, "lifetime": 3, "leaf": "server", "issuer": null}' < held-open-pipe

Clients: `machine` (client_secret_post), `machine-basic` (client_secret_basic, a secret full of special characters),
`owner` (client_secret_post; the password grant of `ann` with `ann-password`, refresh tokens that rotate),
`introspector` (may introspect every token), one `m-…` for each client authentication method (al_auth.py), and `p-…`, whose
grants need a person and a browser (al_people.py). Grants: al_grants.py and al_people.py. Endpoints: /authorize, /device,
/device/auth, /token, /introspect, /revoke (only the token sent), /.well-known/oauth-authorization-server
and /.well-known/openid-configuration; the same on a second port, `mtls`, which requests a client certificate (the handshake
fails for one that is neither issued by the test CA nor mtls-self-signed) and is announced as `mtls_endpoint_aliases`.
Without `tls` it serves plain http and has no `mtls` port. Unlike op.mjs, it %-decodes Basic credentials but keeps `+`.
Control, also on a plain-http port: GET /__stats; POST /__control {lifetime, announce_lifetime, delay_ms, status, retry_after,
times, revoke_all, interval, slow_downs, device_lifetime}: see `apply`; POST /__device and /__end_grants: see al_people.py.
The peer exits when its stdin closes.
"""

import base64
import json
import os
import ssl
import sys
import threading
import time
from urllib.parse import unquote, urlsplit

from al_store import (  # first: it reads the settings and configures Authlib
    CLIENTS, FAULT, LOCK, PORTS, REFRESH, SETTINGS, STATS, TOKENS, count, refresh_token_of, save_token)

from authlib.common.security import generate_token
from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from flask import Flask, jsonify, request
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

import al_auth
import al_grants
import al_people

CONCURRENT = [0]


class Introspection(IntrospectionEndpoint):
    """Finds refresh tokens only with `token_type_hint=refresh_token`: a resource server must not accept them."""
    CLIENT_AUTH_METHODS = al_auth.METHODS

    def query_token(self, token_string, token_type_hint):
        with LOCK:
            return refresh_token_of(token_string) if token_type_hint == "refresh_token" else TOKENS.get(token_string)

    def check_permission(self, token, client, request):
        return client.client_id in ("introspector", token.client_id)

    def introspect_token(self, token):
        claims = {"active": True, "client_id": token.client_id, "scope": token.scope}
        if token.kind == "access_token":
            claims |= {"token_type": "Bearer", "exp": int(token.expires_at)}
        return claims | {name: value for name, value in [("sub", token.subject), ("aud", token.audience)] if value}


class Revocation(RevocationEndpoint):
    CLIENT_AUTH_METHODS = al_auth.METHODS

    def query_token(self, token_string, token_type_hint):
        with LOCK:
            return TOKENS.get(token_string) or refresh_token_of(token_string)

    def revoke_token(self, token, request):
        with LOCK:
            (TOKENS if token.kind == "access_token" else REFRESH).pop(token.value, None)
            count(STATS["revoked"], token.client_id, token.kind)


app = Flask(__name__)
server = AuthorizationServer(app, query_client=CLIENTS.get, save_token=save_token)
server.register_token_generator("default", BearerTokenGenerator(
    lambda **_: generate_token(42), refresh_token_generator=lambda **_: generate_token(48),
    expires_generator=lambda client, grant: FAULT["lifetime"]))
al_auth.register(server)
al_grants.register(server)
al_people.register(app, server)
server.register_endpoint(Introspection)
server.register_endpoint(Revocation)


# --- endpoints ---------------------------------------------------------------------------------------------------------
def client_of(req):
    """The client ID, whatever the authentication method; only for statistics."""
    kind, _, value = req.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "basic":
        form = req.form
        return form.get("client_id") or al_auth.unverified(form.get("client_assertion", "")).get("sub", "(none)")
    try:
        return unquote(base64.b64decode(value).decode("latin-1").split(":")[0])
    except ValueError:
        return "(unreadable)"


def fail_on_purpose():
    time.sleep(FAULT["delay_ms"] / 1000)
    with LOCK:
        status, after, times = FAULT["status"], FAULT["retry_after"], FAULT["times"]
        if not status or times == 0:
            return None
        if times:
            FAULT["times"] = times - 1
    response = jsonify(error="invalid_client" if status < 500 else "temporarily_unavailable")
    response.status_code = status
    if after is not None:
        response.headers["Retry-After"] = str(after)
    return response


@app.post("/token")
def token():
    client = client_of(request)
    with LOCK:
        STATS["token_requests"][client] = STATS["token_requests"].get(client, 0) + 1
        al_people.count_token(client, request.form)
        CONCURRENT[0] += 1
        STATS["token_requests_at_once"] = max(STATS["token_requests_at_once"], CONCURRENT[0])
    try:
        return fail_on_purpose() or server.create_token_response()
    finally:
        with LOCK:
            CONCURRENT[0] -= 1


@app.post("/introspect")
def introspect():
    with LOCK:
        STATS["introspections"] += 1
    return server.create_endpoint_response(Introspection.ENDPOINT_NAME)


@app.post("/revoke")
def revoke():
    with LOCK:
        STATS["revocations"] += 1
    return server.create_endpoint_response(Revocation.ENDPOINT_NAME)


def endpoints_at(base):
    return {"token_endpoint": f"{base}/token", "introspection_endpoint": f"{base}/introspect",
            "revocation_endpoint": f"{base}/revoke"}


@app.get("/.well-known/oauth-authorization-server")
@app.get("/.well-known/openid-configuration")
def metadata():
    issuer = SETTINGS["issuer"] or request.host_url.rstrip("/")
    members = {"issuer": issuer, **endpoints_at(issuer), **al_people.metadata_at(issuer),
               "token_endpoint_auth_methods_supported": al_auth.METHODS,
               "token_endpoint_auth_signing_alg_values_supported": ["HS256", *al_auth.KEYS]}
    if "mtls" in PORTS:
        members["mtls_endpoint_aliases"] = endpoints_at(f"https://{urlsplit(issuer).hostname}:{PORTS['mtls']}")
    return jsonify(members)


@app.get("/__stats")
def stats():
    with LOCK:
        return jsonify(STATS)


@app.post("/__control")
def apply():
    """Absent fields keep their values; `times` limits `status` to that many responses; `status: null` ends it."""
    change = request.get_json(force=True)
    with LOCK:
        FAULT.update({key: value for key, value in change.items() if key in FAULT})
        if change.get("forget_refresh_tokens"):
            REFRESH.clear()
        if change.get("revoke_all"):
            TOKENS.clear()
        return jsonify(FAULT)


# --- serving -----------------------------------------------------------------------------------------------------------
class Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive, as a production server would
    timeout = 10

    def log(self, *_):
        pass


class Server(ThreadedWSGIServer):
    daemon_threads = True
    request_queue_size = 128
    context = None

    def get_request(self):
        connection, address = super().get_request()
        if self.context:  # the handshake runs in the thread of the connection, so that a silent client blocks no other
            connection = self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, *_):
        if not isinstance(sys.exc_info()[1], OSError):  # refused handshakes and disconnected clients are not logged
            super().handle_error(*_)


def serve(port, tls=None, request_certificate=False):
    server = Server("127.0.0.1", port, app, Handler)
    if tls:
        server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.context.load_cert_chain(f"{tls}/{SETTINGS['leaf']}.pem", f"{tls}/{SETTINGS['leaf']}.key")
        server.ssl_context = server.context  # Flask then sees wsgi.url_scheme = https
    if request_certificate:
        server.context.verify_mode = ssl.CERT_OPTIONAL
        for trusted in ["ca", "mtls-self-signed"]:
            server.context.load_verify_locations(f"{tls}/{trusted}.pem")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


PORTS["port"] = serve(SETTINGS["port"], SETTINGS["tls"])
if SETTINGS["tls"]:
    PORTS["mtls"] = serve(SETTINGS["mtls_port"], SETTINGS["tls"], request_certificate=True)
print(json.dumps({"listening": {**PORTS, "control": serve(SETTINGS["control_port"])}}), flush=True)
sys.stdin.read()
os._exit(0)
