"""State that the parts of the Authlib authorization server (al.py) share: settings, statistics, tokens, clients.

Not here: client authentication (al_auth.py), grants (al_grants.py), endpoints (al.py).
"""

import json
import os
import sys
import threading
import time

SETTINGS = {"tls": None, "leaf": "server", "port": 0, "mtls_port": 0, "control_port": 0, "lifetime": 3, "issuer": None}
SETTINGS.update(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})
if not SETTINGS["tls"]:
    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"  # read by Authlib at each request

from authlib.oauth2.rfc6749 import ClientMixin, TokenMixin  # noqa: E402
from authlib.oauth2.rfc6749.util import list_to_scope, scope_to_list  # noqa: E402
from flask import request  # noqa: E402

LOCK = threading.Lock()
STATS = {"token_requests": {}, "tokens_issued": 0, "introspections": 0, "token_requests_at_once": 0,
         "rotations": 0, "reused": 0, "revocations": 0, "grants": {}, "revoked": {}, "jti_reused": 0}
FAULT = {"delay_ms": 0, "status": None, "retry_after": None, "times": None,
         "lifetime": SETTINGS["lifetime"], "announce_lifetime": True}
TOKENS = {}
REFRESH = {}  # refresh token → (client_id, scope, subject)
SPENT = set()
JTIS = set()
PORTS = {}


def count(counts, client_id, kind):
    """Under LOCK. `grants`: client → grant type → tokens issued; `revoked`: client → access_token or refresh_token."""
    counts.setdefault(client_id, {}).setdefault(kind, 0)
    counts[client_id][kind] += 1


def first_use(issuer, jti):
    """True for the first JWT with this issuer and jti; a second use is counted."""
    with LOCK:
        if (issuer, jti) in JTIS:
            STATS["jti_reused"] += 1
            return False
        JTIS.add((issuer, jti))
        return True


def audiences():
    """Accepted audiences: issuer and token endpoint, with the requested port or the default one."""
    default = f"{'https' if SETTINGS['tls'] else 'http'}://127.0.0.1:{PORTS['port']}"
    issuers = [SETTINGS["issuer"] or default, request.host_url.rstrip("/")]
    return issuers + [f"{issuer}/token" for issuer in issuers]


class Client(ClientMixin):
    def __init__(self, client_id, secret, methods, grants=("client_credentials",), algorithm=None, certificate=None):
        """`algorithm` is that of its client assertions, `certificate` its TLS certificate in PEM."""
        self.client_id, self.secret, self.methods, self.grants = client_id, secret, methods, grants
        self.algorithm, self.certificate = algorithm, certificate

    def get_client_id(self):
        return self.client_id

    def get_allowed_scope(self, scope):
        return list_to_scope([s for s in scope_to_list(scope or "") if s in ("api.read", "api.write")])

    def check_client_secret(self, client_secret):
        return self.secret is not None and client_secret == self.secret

    def check_endpoint_auth_method(self, method, endpoint):
        return method in self.methods

    def check_grant_type(self, grant_type):
        return grant_type in self.grants


class Token(TokenMixin):
    """An access token, or a refresh token for introspection and revocation."""

    def __init__(self, value, client_id, scope, expires_at, subject=None, audience=None, kind="access_token"):
        self.value, self.client_id, self.scope, self.expires_at = value, client_id, scope, expires_at
        self.subject, self.audience, self.kind = subject, audience, kind

    def check_client(self, client):
        return client.client_id == self.client_id

    def get_scope(self):
        return self.scope

    def is_expired(self):
        return time.time() >= self.expires_at

    def is_revoked(self):
        return False


CLIENTS = {client.client_id: client for client in [
    Client("machine", "machine-secret", ["client_secret_post"]),
    Client("machine-basic", "a+b/c:d%e$f g", ["client_secret_basic"]),
    Client("owner", "owner-secret", ["client_secret_post"], ("password", "refresh_token")),
    Client("introspector", "introspector-secret", ["client_secret_basic", "client_secret_post"]),
]}


def refresh_token_of(value):
    """Under LOCK."""
    if value in REFRESH:
        client_id, scope, subject = REFRESH[value]
        return Token(value, client_id, scope, float("inf"), subject, kind="refresh_token")
    return None


def save_token(token, oauth_request):
    client_id, scope, subject = oauth_request.client.client_id, token.get("scope", ""), oauth_request.user
    audience = oauth_request.form.get("resource") or oauth_request.form.get("audience")
    with LOCK:
        now = time.time()
        for old in [key for key, value in TOKENS.items() if value.expires_at < now]:
            del TOKENS[old]
        value = token["access_token"]
        TOKENS[value] = Token(value, client_id, scope, now + FAULT["lifetime"], subject, audience)
        STATS["tokens_issued"] += 1
        count(STATS["grants"], client_id, oauth_request.form["grant_type"])
        if "refresh_token" in token:
            REFRESH[token["refresh_token"]] = (client_id, scope, subject)
    if not FAULT["announce_lifetime"]:
        token.pop("expires_in", None)
