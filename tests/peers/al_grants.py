"""The grants of al.py, for clients with any of al_auth.METHODS.

From Authlib: client_credentials (and its alias `account_credentials`), password (`ann`, `ann-password`), refresh_token
(each accepted once), JWT bearer (RFC 7523). Our own: SAML 2.0 bearer (RFC 7522), token exchange (RFC 8693).
password and JWT bearer issue refresh tokens, if the client may use them.
A JWT assertion is signed with a key of certs.py by the client itself (iss = its client_id) or by ISSUER; aud is the server's
issuer or token endpoint, it expires within ten minutes, its jti is accepted once. Without client authentication, its iss
names the client. A subject token is an active access token of this server, or a JWT by ISSUER for the same audiences, which
may be used again. A SAML assertion may be used again until it expires.
"""

import base64
import time
from pathlib import Path

from authlib.oauth2.rfc6749 import BaseGrant, InvalidGrantError, InvalidRequestError, TokenEndpointMixin, UnauthorizedClientError
from authlib.oauth2.rfc6749.grants import (
    ClientCredentialsGrant, RefreshTokenGrant, ResourceOwnerPasswordCredentialsGrant)
from authlib.oauth2.rfc7523 import JWTBearerGrant
from joserfc.errors import JoseError

import al_auth
from al_store import CLIENTS, LOCK, REFRESH, SETTINGS, SPENT, STATS, TOKENS, audiences, first_use, refresh_token_of

ISSUER = "https://issuer.test"
LIFETIME_MAX_S = 600
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
TOKEN_TYPES = (ACCESS_TOKEN, "urn:ietf:params:oauth:token-type:jwt", "urn:ietf:params:oauth:token-type:id_token")


class ClientCredentials(ClientCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = al_auth.METHODS


class AccountCredentials(ClientCredentials):
    GRANT_TYPE = "account_credentials"


class Password(ResourceOwnerPasswordCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = al_auth.METHODS

    def authenticate_user(self, username, password):
        return username if (username, password) == ("ann", "ann-password") else None


class Refresh(RefreshTokenGrant):
    """A refresh token is accepted once; a second use is counted and revokes all refresh tokens."""
    TOKEN_ENDPOINT_AUTH_METHODS = al_auth.METHODS
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token):
        with LOCK:
            if refresh_token in SPENT:
                STATS["reused"] += 1
                REFRESH.clear()
                return None
            return refresh_token_of(refresh_token)

    def authenticate_user(self, refresh_token):
        return refresh_token.subject

    def revoke_old_credential(self, refresh_token):
        with LOCK:
            REFRESH.pop(refresh_token.value, None)
            SPENT.add(refresh_token.value)
            STATS["rotations"] += 1


class Claims(JWTBearerGrant):
    """Grants below verify a JWT of the client itself or of ISSUER."""
    TOKEN_ENDPOINT_AUTH_METHODS = al_auth.METHODS
    LEEWAY = 5

    def get_audiences(self):
        return audiences()

    def claims_of(self, token, issuers):
        try:
            claims = al_auth.verified(token)
        except (JoseError, KeyError, ValueError) as error:
            raise InvalidGrantError(description=str(error)) from error
        self.verify_claims(claims)
        if claims["iss"] not in issuers or not claims.get("sub"):
            raise InvalidGrantError(description="iss is unknown, or sub is missing")
        return claims

    def client_for(self, grant_type):
        client = self.authenticate_token_endpoint_client()
        if not client.check_grant_type(grant_type):
            raise UnauthorizedClientError(f"The client is not authorized to use 'grant_type={grant_type}'")
        return client

    def issue(self, with_refresh_token, **more):
        token = self.generate_token(scope=self.request.payload.scope, user=self.request.user,
                                    include_refresh_token=with_refresh_token and self.client.check_grant_type("refresh_token"))
        token.update(more)
        self.save_token(token)
        return 200, token, self.TOKEN_RESPONSE_HEADER


class JwtBearer(Claims):
    def validate_token_request(self):
        form = self.request.form
        if "assertion" not in form:
            raise InvalidRequestError("Missing 'assertion' in request")
        if "client_id" in form or "client_assertion" in form or "Authorization" in self.request.headers:
            client = self.client_for(self.GRANT_TYPE)
        else:
            client = CLIENTS.get(al_auth.unverified(form["assertion"]).get("iss"))
            if not client or not client.check_grant_type(self.GRANT_TYPE):
                raise InvalidGrantError(description="iss is not a client of this grant")
        claims = self.claims_of(form["assertion"], (client.client_id, ISSUER))
        if claims["exp"] > time.time() + LIFETIME_MAX_S:
            raise InvalidGrantError(description="the assertion lives too long")
        if "jti" not in claims or not first_use(claims["iss"], claims["jti"]):
            raise InvalidGrantError(description="jti is missing, or the assertion was used before")
        self.request.client, self.request.user = client, claims["sub"]
        self.validate_requested_scope()

    def create_token_response(self):
        return self.issue(with_refresh_token=True)


class TokenExchange(Claims):
    GRANT_TYPE = al_auth.TOKEN_EXCHANGE

    def subject_of(self, name):
        form = self.request.form
        token, kind = form.get(name), form.get(f"{name}_type")
        if not token or kind not in TOKEN_TYPES:
            raise InvalidRequestError(f"{name} or {name}_type is missing or not supported")
        own = TOKENS.get(token) if kind == ACCESS_TOKEN else None
        if own and not own.is_expired():
            return own.subject or own.client_id
        return self.claims_of(token, (ISSUER,))["sub"]

    def validate_token_request(self):
        self.request.client = self.client_for(self.GRANT_TYPE)
        if self.request.form.get("requested_token_type", ACCESS_TOKEN) != ACCESS_TOKEN:
            raise InvalidRequestError("requested_token_type is not supported")
        if "actor_token" in self.request.form:
            self.subject_of("actor_token")
        self.request.user = self.subject_of("subject_token")
        self.validate_requested_scope()

    def create_token_response(self):
        return self.issue(with_refresh_token=False, issued_token_type=ACCESS_TOKEN)


class Saml2Bearer(Claims):
    GRANT_TYPE = al_auth.SAML2_BEARER

    def validate_token_request(self):
        import saml  # here, because loading it takes as long as all the rest

        self.request.client = self.client_for(self.GRANT_TYPE)
        try:
            value = self.request.form["assertion"]
            xml = base64.b64decode(value + "=" * (-len(value) % 4), altchars="-_", validate=True)
            certificate = Path(SETTINGS["tls"], "saml-idp.pem").read_text()
            recipients = [name for name in audiences() if name.endswith("/token")]
            self.request.user = saml.check(xml, certificate, audiences(), recipients)
        except (KeyError, ValueError) as error:
            raise InvalidGrantError(description=str(error)) from error
        self.validate_requested_scope()

    def create_token_response(self):
        return self.issue(with_refresh_token=False)


def register(server):
    for grant in [ClientCredentials, AccountCredentials, Password, Refresh, JwtBearer, TokenExchange, Saml2Bearer]:
        server.register_grant(grant)
