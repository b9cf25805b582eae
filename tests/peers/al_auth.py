"""Client authentication of al.py, and one client for each method.

Clients, each allowed every grant of `GRANTS`, with secrets `<client>-secret-0123…`: `m-body`, `m-basic`, `m-csjwt`
(client_secret_jwt, HS256), `m-pkjwt-rs256`, `-ps256`, `-es256`, `-eddsa` (private_key_jwt with client-rsa.key,
client-ec.key, client-ed.key of certs.py), `m-tls-ca` and `m-tls-self` (the certificate mtls-ca-issued or mtls-self-signed,
presented at the port `mtls`), `m-none` (only the grants that need no client authentication). Clients with a key need `tls`.
A client assertion has iss = sub = client_id, aud = issuer or token endpoint, and a jti that is accepted once.
Authlib has no mutual TLS: here the certificate must equal the client's, byte for byte.
"""

import json
import ssl
from pathlib import Path

from authlib.oauth2.rfc6749 import InvalidClientError
from authlib.oauth2.rfc7523 import JWTBearerClientAssertion
from flask import request
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from al_store import CLIENTS, SETTINGS, Client, audiences, first_use

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
SAML2_BEARER = "urn:ietf:params:oauth:grant-type:saml2-bearer"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
WITH_OWN_PROOF = ("password", JWT_BEARER, SAML2_BEARER, TOKEN_EXCHANGE, "refresh_token")
GRANTS = ("client_credentials", "account_credentials") + WITH_OWN_PROOF
METHODS = ["client_secret_basic", "client_secret_post", "client_secret_jwt", "private_key_jwt", "tls_client_auth",
           "self_signed_tls_client_auth", "none"]
KEYS = {}  # algorithm → (kid, key)


def verified(token, keys=KEYS):
    """The claims of a JWT signed with one of the keys; a `kid` in its header must be that of the key."""
    def key_of(signed):
        kid, key = keys[signed.headers()["alg"]]
        if signed.headers().get("kid", kid) != kid:
            raise ValueError("unknown kid")
        return key

    return jwt.decode(token, key_of, algorithms=list(keys)).claims


def unverified(token):
    """The claims of a JWT before verification, to find the key."""
    try:
        claims = json.loads(jws.extract_compact(token.encode()).payload)
    except (JoseError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}


class ClientAssertion(JWTBearerClientAssertion):
    def __init__(self, method):
        super().__init__()
        self.CLIENT_AUTH_METHOD = method

    def __call__(self, query_client, oauth_request):
        client = query_client(unverified(oauth_request.form.get("client_assertion", "")).get("sub"))
        if client and self.CLIENT_AUTH_METHOD in client.methods:  # else it belongs to another method, or is absent
            return super().__call__(query_client, oauth_request)
        return None

    def resolve_client_public_key(self, client):
        secret = self.CLIENT_AUTH_METHOD == "client_secret_jwt"
        return client.algorithm, (None, OctKey.import_key(client.secret)) if secret else KEYS[client.algorithm]

    def process_assertion_claims(self, assertion, algorithm_and_key):
        try:
            claims = verified(assertion, dict([algorithm_and_key]))
        except (JoseError, KeyError, ValueError) as error:
            raise InvalidClientError(description=str(error)) from error
        self.verify_claims(claims)
        return claims

    def get_audiences(self):
        return audiences()

    def validate_jti(self, claims, jti):
        return first_use(claims["iss"], jti)


def by_certificate(query_client, oauth_request):
    shown, client = request.environ.get("SSL_CLIENT_CERT"), query_client(oauth_request.form.get("client_id"))
    if shown and client and client.certificate:
        return client if ssl.PEM_cert_to_DER_cert(shown) == ssl.PEM_cert_to_DER_cert(client.certificate) else None
    return None


def add_clients(directory):
    def add(client_id, method, **more):
        secret = f"{client_id}-secret-0123456789abcdef0123456789abcdef" if method.startswith("client_secret") else None
        CLIENTS[client_id] = Client(client_id, secret, [method], WITH_OWN_PROOF if method == "none" else GRANTS, **more)

    add("m-body", "client_secret_post")
    add("m-basic", "client_secret_basic")
    add("m-csjwt", "client_secret_jwt", algorithm="HS256")
    add("m-none", "none")
    if not directory:
        return
    for algorithm, kid, kind in [("RS256", "client-rsa", RSAKey), ("PS256", "client-rsa", RSAKey),
                                 ("ES256", "client-ec", ECKey), ("EdDSA", "client-ed", OKPKey)]:
        KEYS[algorithm] = (kid, kind.import_key(Path(directory, f"{kid}.key").read_bytes()))
        add(f"m-pkjwt-{algorithm.lower()}", "private_key_jwt", algorithm=algorithm)
    for client_id, method, name in [("m-tls-ca", "tls_client_auth", "mtls-ca-issued"),
                                    ("m-tls-self", "self_signed_tls_client_auth", "mtls-self-signed")]:
        add(client_id, method, certificate=Path(directory, f"{name}.pem").read_text())


def register(server):
    add_clients(SETTINGS["tls"])
    for method in ["client_secret_jwt", "private_key_jwt"]:
        server.register_client_auth_method(method, ClientAssertion(method))
    for method in ["tls_client_auth", "self_signed_tls_client_auth"]:
        server.register_client_auth_method(method, by_certificate)
