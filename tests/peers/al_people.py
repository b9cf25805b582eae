"""Clients of al.py that act for people, the pages on which people decide, and their statistics.

Clients, with secrets `<client>-secret-0123…`. A redirect URI may be any http(s) URL of this machine (or of a name under
.test) with the path /oauth/callback, whatever its port:
  p-web         client_secret_basic or a secret in the body; PKCE is optional
  p-plain       the same; it must use PKCE with the method `plain`
  p-none        the same; an authorization request with a code challenge is refused, as by servers that do not know PKCE
  p-public      no secret; PKCE with S256 is required
  p-device      device code, no secret
  p-device-web  device code, with a secret
  p-device-bare as p-device; the device authorization response has neither `interval` nor `verification_uri_complete`
All get refresh tokens, which rotate. Callbacks carry no `iss`. Pages: any account name signs in (`input[name=account]`), and
a cookie remembers the account; each page has `#go` and `#deny`; consent is requested every time.
A poll before the end of the interval gets `slow_down`, and the interval grows by 5 s; control `slow_downs` does the same to
that many next polls.
Not here: refresh tokens and revocation (al_grants.py, al.py), the same for oidc-provider (op_people.mjs).
"""

import re
import time

from authlib.common.security import generate_token
from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc6749 import AuthorizationCodeMixin, InvalidRequestError
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc8628 import DeviceAuthorizationEndpoint, DeviceCodeGrant, DeviceCredentialDict
from flask import Response, jsonify, make_response, request
from markupsafe import escape

import al_auth
from al_store import CLIENTS, FAULT, LOCK, REFRESH, STATS, TOKENS, Client, count

DEVICE_CODE = DeviceCodeGrant.GRANT_TYPE
CALLBACK = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\]|[a-z0-9.-]+\.test)(:\d+)?/oauth/callback")
EARLY_TOLERANCE_S = 0.1  # a poll may be this much early
CODES = {}
USED_CODES = set()
SIGNED_IN = {}  # cookie → account
DEVICES = {}  # device code → DeviceCredentialDict
DECISIONS = {}  # user code → (account, whether it approves)


class Person(Client):
    """`challenge`: the PKCE method that its authorization requests must use: a method, "none", or "any"."""

    def __init__(self, client_id, methods, grant="authorization_code", challenge="any"):
        secret = None if methods == ["none"] else f"{client_id}-secret-0123456789abcdef0123456789abcdef"
        super().__init__(client_id, secret, methods, (grant, "refresh_token"))
        self.challenge = challenge

    def get_default_redirect_uri(self):
        return None

    def check_redirect_uri(self, redirect_uri):
        return CALLBACK.fullmatch(redirect_uri) is not None

    def check_response_type(self, response_type):
        return response_type == "code" and self.check_grant_type("authorization_code")


class Code(AuthorizationCodeMixin):
    def __init__(self, code, oauth_request):
        fields = oauth_request.payload.data
        self.code, self.client_id, self.account = code, oauth_request.client.client_id, oauth_request.user
        self.redirect_uri, self.scope = oauth_request.payload.redirect_uri, oauth_request.scope
        self.code_challenge, self.code_challenge_method = fields.get("code_challenge"), fields.get("code_challenge_method")
        self.resource = fields.get("resource")

    def get_redirect_uri(self):
        return self.redirect_uri

    def get_scope(self):
        return self.scope


class ByCode(AuthorizationCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = al_auth.METHODS

    def validate_authorization_request(self):
        redirect_uri = super().validate_authorization_request()
        fields, wanted = self.request.payload.data, self.request.client.challenge
        method = fields.get("code_challenge_method", "plain") if "code_challenge" in fields else "none"
        if wanted not in ("any", method):
            raise InvalidRequestError(f"the code challenge must be {wanted}, not {method}", redirect_uri=redirect_uri)
        return redirect_uri

    def save_authorization_code(self, code, request):
        with LOCK:
            CODES[code] = Code(code, request)

    def query_authorization_code(self, code, client):
        with LOCK:
            if code in USED_CODES:
                count(STATS["second_uses"], client.client_id, self.GRANT_TYPE)
            found = CODES.get(code)
        return found if found and found.client_id == client.client_id else None

    def delete_authorization_code(self, authorization_code):
        with LOCK:
            CODES.pop(authorization_code.code, None)
            USED_CODES.add(authorization_code.code)

    def authenticate_user(self, authorization_code):
        return authorization_code.account


class ByDevice(DeviceCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = al_auth.METHODS

    def query_device_credential(self, device_code):
        return DEVICES.get(device_code)

    def query_user_grant(self, user_code):
        return DECISIONS.get(user_code)

    def should_slow_down(self, credential):
        with LOCK:
            now = time.time()
            early = now < credential["next_at"] - EARLY_TOLERANCE_S or FAULT["slow_downs"] > 0
            if early:
                FAULT["slow_downs"] = max(0, FAULT["slow_downs"] - 1)
                STATS["slowed_down"] += 1
                credential["interval"] += 5
            credential["next_at"] = now + credential["interval"]
            return early


class DeviceAuthorization(DeviceAuthorizationEndpoint):
    def get_verification_uri(self):
        return f"{request.host_url}device"

    def create_endpoint_response(self, oauth_request):
        self.EXPIRES_IN, self.INTERVAL = FAULT["device_lifetime"], FAULT["interval"]
        status, members, headers = super().create_endpoint_response(oauth_request)
        if oauth_request.client.client_id == "p-device-bare":
            omitted = ("interval", "verification_uri_complete")
            members = {name: value for name, value in members.items() if name not in omitted}
        return status, members, headers

    def save_device_credential(self, client_id, scope, data):
        now = time.time()
        interval = 5 if client_id == "p-device-bare" else data["interval"]
        with LOCK:
            STATS["device_authorizations"][client_id] = STATS["device_authorizations"].get(client_id, 0) + 1
            DEVICES[data["device_code"]] = DeviceCredentialDict(
                client_id=client_id, scope=scope, user_code=data["user_code"], expires_at=now + data["expires_in"],
                interval=interval, next_at=now)


# --- pages -------------------------------------------------------------------------------------------------------------
BUTTONS = ('<button id="go" name="answer" value="go">Continue</button>'
           '<button id="deny" name="answer" value="deny" formnovalidate>Deny</button>')
ACCOUNT = '<input name="account" required autofocus>'


def page(title, body, status=200):
    return Response(f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><link rel="icon" '
                    f'href="data:,"></head><body><h1>{title}</h1>{body}</body></html>', status, {"Cache-Control": "no-store"})


def form(fields):
    return f'<form method="post">{fields}{BUTTONS}</form>'


def account_of(req):
    return SIGNED_IN.get(req.cookies.get("al_account"))


def signed_in(response, account):
    cookie = generate_token(30)
    SIGNED_IN[cookie] = account
    response = make_response(response)
    response.set_cookie("al_account", cookie, httponly=True, samesite="Lax", secure=request.is_secure)
    return response


def question(account, request_text):
    if not account:
        return page("Sign in", form(ACCOUNT))
    return page("Consent", f"<p>{escape(account)}, may {escape(request_text)}?</p>{form('')}")


def add_pages(app, server):
    @app.get("/authorize")
    @app.post("/authorize")
    def authorize():
        account = account_of(request)
        if request.method == "GET":
            with LOCK:
                STATS["authorizations"].setdefault(request.args.get("client_id", "(none)"), []).append(request.args.to_dict())
        try:
            grant = server.get_consent_grant(end_user=account)
        except OAuth2Error as error:
            return server.handle_error_response(server.create_oauth2_request(None), error)
        answer, arriving = request.form.get("answer"), request.form.get("account")
        if answer == "deny":
            return server.create_authorization_response(grant_user=None, grant=grant)
        request_text = f"{grant.request.client.client_id} have {grant.request.scope or 'nothing'}"
        if arriving:
            return signed_in(question(arriving, request_text), arriving)
        if answer and account:
            return server.create_authorization_response(grant_user=account, grant=grant)
        return question(account, request_text)

    @app.post("/device/auth")
    def device_authorization():
        return server.create_endpoint_response(DeviceAuthorization.ENDPOINT_NAME)

    @app.get("/device")
    @app.post("/device")
    def device():
        account, answer = account_of(request), request.form.get("answer")
        code = request.values.get("user_code", "").strip().upper()
        arriving = request.form.get("account")
        if arriving:
            return signed_in(device_question(arriving, code), arriving)
        if account and answer and code:
            DECISIONS[code] = (account, answer == "go")
            return page("Device connected" if answer == "go" else "Device refused", "<p>Go back to your device.</p>")
        return device_question(account, code)

    @app.post("/__device")
    def decide():
        """Control: {user_code, account, approve} without a browser."""
        decision = request.get_json(force=True)
        DECISIONS[decision["user_code"]] = (decision.get("account", "ann"), decision.get("approve", True))
        return jsonify({})

    @app.post("/__end_grants")
    def end_grants():
        """Control: {account, client}: the account withdraws its consent (to all clients, if none is named)."""
        selected = request.get_json(force=True)

        def matches(client_id, subject):
            return subject == selected["account"] and selected.get("client") in (None, client_id)

        with LOCK:
            ended = [value for value, (client_id, _, subject) in REFRESH.items() if matches(client_id, subject)]
            for value in ended:
                del REFRESH[value]
            for value in [value for value, token in TOKENS.items() if matches(token.client_id, token.subject)]:
                del TOKENS[value]
        return jsonify(ended=len(ended))


def device_question(account, code):
    if not account:
        return page("Sign in", form(f'{ACCOUNT}<input type="hidden" name="user_code" value="{escape(code)}">'))
    if not any(device["user_code"] == code for device in DEVICES.values()):
        unknown = f'<p id="error">Unknown code: {escape(code)}</p>' if code else ""
        return page("Enter the code", f'{unknown}<form method="post"><input name="user_code" required autofocus>'
                                      '<button id="go">Continue</button></form>')
    return page("Confirm the code", f"<p>{escape(account)}, does your device show <code>{escape(code)}</code>?</p>"
                                    + form(f'<input type="hidden" name="user_code" value="{escape(code)}">'))


# --- statistics by client, as in op_people.mjs --------------------------------------------------------------------------
STATS.update({"requests_by_grant": {}, "authorizations": {}, "device_authorizations": {}, "polls": {}, "forms": {},
              "second_uses": {}, "slowed_down": 0})
FAULT.update({"interval": 1, "device_lifetime": 600, "slow_downs": 0})


def count_token(client_id, fields):
    """Under LOCK."""
    grant_type = fields.get("grant_type", "(none)")
    count(STATS["requests_by_grant"], client_id, grant_type)
    if client_id.startswith("p-"):
        STATS["forms"].setdefault(client_id, []).append(fields.to_dict())
    if grant_type == DEVICE_CODE:
        STATS["polls"].setdefault(client_id, []).append(int(time.time() * 1000))


def metadata_at(base):
    return {"authorization_endpoint": f"{base}/authorize", "device_authorization_endpoint": f"{base}/device/auth",
            "response_types_supported": ["code"], "code_challenge_methods_supported": ["S256", "plain"],
            "grant_types_supported": [*al_auth.GRANTS, "authorization_code", DEVICE_CODE]}


def register(app, server):
    with_secret = ["client_secret_basic", "client_secret_post"]
    for client in [Person("p-web", with_secret), Person("p-plain", with_secret, challenge="plain"),
                   Person("p-none", with_secret, challenge="none"), Person("p-public", ["none"], challenge="S256"),
                   Person("p-device", ["none"], DEVICE_CODE), Person("p-device-web", with_secret, DEVICE_CODE),
                   Person("p-device-bare", ["none"], DEVICE_CODE)]:
        CLIENTS[client.client_id] = client
    server.register_grant(ByCode, [CodeChallenge(required=False)])
    server.register_grant(ByDevice)
    server.register_endpoint(DeviceAuthorization)
    add_pages(app, server)
