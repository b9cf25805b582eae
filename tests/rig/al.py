"""An Authlib authorization server (Flask): the second of the rig's two real authorization servers.

  python al.py '{"tls": DIR or null, "port": 0, "lifetime": 3, "leaf": "server", "issuer": null}' < held-open-pipe

Clients: `machine` (client_secret_post), `machine-basic` (client_secret_basic, a secret full of special characters),
`owner` (client_secret_post; the password grant of `ann` with `ann-password`, refresh tokens that rotate),
`introspector` (may introspect every token). Endpoints: /token, /introspect, /.well-known/oauth-authorization-server.
Without `tls` it serves plain http. It differs from op: Basic credentials are %-decoded but `+` stays `+`.
Control, also on a plain-http port: GET /__stats; POST /__control {lifetime, announce_lifetime, delay_ms, status,
retry_after, times, revoke_all}: see `apply`. The peer ends when its stdin closes.
"""

import base64
import json
import os
import ssl
import sys
import threading
import time
from urllib.parse import unquote

SETTINGS = {"tls": None, "leaf": "server", "port": 0, "control_port": 0, "lifetime": 3, "issuer": None}
SETTINGS.update(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})
if not SETTINGS["tls"]:
    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"  # read by Authlib at each request

from authlib.integrations.flask_oauth2 import AuthorizationServer  # noqa: E402
from authlib.oauth2.rfc6749 import ClientMixin, TokenMixin  # noqa: E402
from authlib.oauth2.rfc6749.grants import (  # noqa: E402
    ClientCredentialsGrant, RefreshTokenGrant, ResourceOwnerPasswordCredentialsGrant)
from authlib.oauth2.rfc6749.util import list_to_scope, scope_to_list  # noqa: E402
from authlib.oauth2.rfc6750 import BearerTokenGenerator  # noqa: E402
from authlib.common.security import generate_token  # noqa: E402
from authlib.oauth2.rfc7662 import IntrospectionEndpoint  # noqa: E402
from flask import Flask, jsonify, request  # noqa: E402
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler  # noqa: E402

LOCK = threading.Lock()
STATS = {"token_requests": {}, "tokens_issued": 0, "introspections": 0, "token_requests_at_once": 0,
         "rotations": 0, "reused": 0}
FAULT = {"delay_ms": 0, "status": None, "retry_after": None, "times": None,
         "lifetime": SETTINGS["lifetime"], "announce_lifetime": True}
TOKENS = {}
REFRESH = {}  # refresh token → (client_id, scope)
SPENT = set()
AT_ONCE = [0]


# --- clients and tokens ------------------------------------------------------------------------------------------------
class Client(ClientMixin):
    def __init__(self, client_id, secret, methods):
        self.client_id, self.secret, self.methods = client_id, secret, methods

    def get_client_id(self):
        return self.client_id

    def get_allowed_scope(self, scope):
        return list_to_scope([s for s in scope_to_list(scope or "") if s in ("api.read", "api.write")])

    def check_client_secret(self, client_secret):
        return client_secret == self.secret

    def check_endpoint_auth_method(self, method, endpoint):
        return method in self.methods

    def check_grant_type(self, grant_type):
        owner = self.client_id == "owner"
        return grant_type in (("password", "refresh_token") if owner else ("client_credentials",))


class Token(TokenMixin):
    def __init__(self, client_id, scope, expires_at):
        self.client_id, self.scope, self.expires_at = client_id, scope, expires_at

    def is_expired(self):
        return time.time() >= self.expires_at

    def is_revoked(self):
        return False


CLIENTS = {client.client_id: client for client in [
    Client("machine", "machine-secret", ["client_secret_post"]),
    Client("machine-basic", "a+b/c:d%e$f g", ["client_secret_basic"]),
    Client("owner", "owner-secret", ["client_secret_post"]),
    Client("introspector", "introspector-secret", ["client_secret_basic", "client_secret_post"]),
]}


def save_token(token, oauth_request):
    with LOCK:
        now = time.time()
        for old in [key for key, value in TOKENS.items() if value.expires_at < now]:
            del TOKENS[old]
        TOKENS[token["access_token"]] = Token(oauth_request.client.client_id, token.get("scope", ""),
                                              now + FAULT["lifetime"])
        STATS["tokens_issued"] += 1
        if "refresh_token" in token:
            REFRESH[token["refresh_token"]] = (oauth_request.client.client_id, token.get("scope", ""))
    if not FAULT["announce_lifetime"]:
        token.pop("expires_in", None)


class Grant(ClientCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ["client_secret_basic", "client_secret_post"]


class Password(ResourceOwnerPasswordCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ["client_secret_post"]

    def authenticate_user(self, username, password):
        return username if (username, password) == ("ann", "ann-password") else None


class Spendable:
    def __init__(self, value, client_id, scope):
        self.value, self.client_id, self.scope = value, client_id, scope

    def check_client(self, client):
        return client.client_id == self.client_id

    def get_scope(self):
        return self.scope


class Refresh(RefreshTokenGrant):
    """Each refresh token is good once; a second use is counted and takes away what came of the first."""
    TOKEN_ENDPOINT_AUTH_METHODS = ["client_secret_post"]
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token):
        with LOCK:
            if refresh_token in SPENT:
                STATS["reused"] += 1
                REFRESH.clear()
                return None
            kept = REFRESH.get(refresh_token)
            return Spendable(refresh_token, *kept) if kept else None

    def authenticate_user(self, refresh_token):
        return "ann"

    def revoke_old_credential(self, refresh_token):
        with LOCK:
            REFRESH.pop(refresh_token.value, None)
            SPENT.add(refresh_token.value)
            STATS["rotations"] += 1


class Introspection(IntrospectionEndpoint):
    CLIENT_AUTH_METHODS = ["client_secret_basic", "client_secret_post"]

    def query_token(self, token_string, token_type_hint):
        return TOKENS.get(token_string)

    def check_permission(self, token, client, request):
        return client.client_id in ("introspector", token.client_id)

    def introspect_token(self, token):
        return {"active": True, "client_id": token.client_id, "token_type": "Bearer", "scope": token.scope,
                "exp": int(token.expires_at)}


app = Flask(__name__)
server = AuthorizationServer(app, query_client=CLIENTS.get, save_token=save_token)
server.register_token_generator("default", BearerTokenGenerator(
    lambda **_: generate_token(42), refresh_token_generator=lambda **_: generate_token(48), expires_generator=lambda client, grant: FAULT["lifetime"]))
server.register_grant(Grant)
server.register_grant(Password)
server.register_grant(Refresh)
server.register_endpoint(Introspection)


# --- endpoints ---------------------------------------------------------------------------------------------------------
def client_of(req):
    """The client's name, whichever way it authenticates; only for counting."""
    kind, _, value = req.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "basic":
        return req.form.get("client_id", "(none)")
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
    answer = jsonify(error="invalid_client" if status < 500 else "temporarily_unavailable")
    answer.status_code = status
    if after is not None:
        answer.headers["Retry-After"] = str(after)
    return answer


@app.post("/token")
def token():
    client = client_of(request)
    with LOCK:
        STATS["token_requests"][client] = STATS["token_requests"].get(client, 0) + 1
        AT_ONCE[0] += 1
        STATS["token_requests_at_once"] = max(STATS["token_requests_at_once"], AT_ONCE[0])
    try:
        return fail_on_purpose() or server.create_token_response()
    finally:
        with LOCK:
            AT_ONCE[0] -= 1


@app.post("/introspect")
def introspect():
    with LOCK:
        STATS["introspections"] += 1
    return server.create_endpoint_response(Introspection.ENDPOINT_NAME)


@app.get("/.well-known/oauth-authorization-server")
def metadata():
    issuer = SETTINGS["issuer"] or request.host_url.rstrip("/")
    return jsonify(issuer=issuer, token_endpoint=f"{issuer}/token", introspection_endpoint=f"{issuer}/introspect",
                   grant_types_supported=["client_credentials"], response_types_supported=[],
                   token_endpoint_auth_methods_supported=["client_secret_basic", "client_secret_post"])


@app.get("/__stats")
def stats():
    with LOCK:
        return jsonify(STATS)


@app.post("/__control")
def apply():
    """Fields left out stay as they are; `times` limits `status` to that many answers; `status: null` ends it."""
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
        if self.context:  # the handshake happens in the connection's own thread, so that a silent client stops nobody
            connection = self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, *_):
        if not isinstance(sys.exc_info()[1], OSError):  # refused handshakes and clients that went away say nothing
            super().handle_error(*_)


def serve(port, tls):
    server = Server("127.0.0.1", port, app, Handler)
    if tls:
        server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.context.load_cert_chain(f"{tls}/{SETTINGS['leaf']}.pem", f"{tls}/{SETTINGS['leaf']}.key")
        server.ssl_context = server.context  # Flask then sees wsgi.url_scheme = https
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


ports = {"port": serve(SETTINGS["port"], SETTINGS["tls"]), "control": serve(SETTINGS["control_port"], None)}
print(json.dumps({"listening": ports}), flush=True)
sys.stdin.read()
os._exit(0)
