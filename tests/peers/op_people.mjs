// Clients of op.mjs that act for people, the pages on which people decide, and their statistics.
//
// Clients, with secrets by `secretOf` of op_clients.mjs. A redirect URI may be any http(s) URL of this machine (or of a name
// under .test) with the path /oauth/callback, whatever its port:
//   p-web         client_secret_basic (a secret in the body is accepted), authorization code and refresh tokens
//   p-short       the same, with access tokens that expire after 3 s
//   p-public      no secret; PKCE is required
//   p-par         as p-web, but only with pushed authorization requests
//   p-device      device code, no secret
//   p-device-web  device code, client_secret_basic
// Pages: any account name signs in (`input[name=account]`), and a cookie remembers it; each page has `#go` and `#deny`.
// Refresh tokens are issued with the scope offline_access, which needs prompt=consent, or for a device code; they rotate.
// Not here: the accounts' tokens (op.mjs), the same for Authlib (al_people.py).

import { errors } from 'oidc-provider';
import { secretOf } from './op_clients.mjs';
import { readAll } from './peer.mjs';

const DEVICE_CODE = 'urn:ietf:params:oauth:grant-type:device_code';
const SHORT_S = 3;
const CALLBACK = /^https?:\/\/(localhost|127\.0\.0\.1|\[::1\]|[a-z0-9.-]+\.test)(:\d+)?\/(oauth|sign-in)\/callback$/;

function person(client_id, method, more = {}) {
  return {
    client_id,
    token_endpoint_auth_method: method,
    ...(method === 'none' ? {} : { client_secret: secretOf(client_id) }),
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    redirect_uris: ['http://localhost/oauth/callback'],
    scope: 'openid offline_access api.read api.write',
    ...more,
  };
}

const onDevice = { grant_types: [DEVICE_CODE, 'refresh_token'], response_types: [], redirect_uris: [] };

export const peopleClients = [
  person('p-web', 'client_secret_basic'),
  person('p-short', 'client_secret_basic'),
  person('p-public', 'none'),
  person('p-par', 'client_secret_basic', { require_pushed_authorization_requests: true }),
  person('p-device', 'none', onDevice),
  person('p-device-web', 'client_secret_basic', onDevice),
];

export const lifetimeOf = (client, fallback) => (client?.clientId === 'p-short' ? SHORT_S : fallback);

// --- pages -------------------------------------------------------------------------------------------------------------
const ESCAPES = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' };
const escape = (text) => String(text).replace(/[&<>"']/g, (char) => ESCAPES[char]);
const page = (title, body) => `<!doctype html><html lang="en"><head><meta charset="utf-8"><title>${title}</title>
<link rel="icon" href="data:,"></head><body><h1>${title}</h1>${body}</body></html>`;
const buttons = `<button id="go" name="answer" value="go">Continue</button>
<button id="deny" name="answer" value="deny" formnovalidate>Deny</button>`;

function question({ prompt, params, session }) {
  if (prompt.name === 'login') {
    return page('Sign in', `<form method="post"><input name="account" required autofocus>${buttons}</form>`);
  }
  const text = `${session.accountId}, may ${params.client_id} have ${params.scope ?? 'nothing'}?`;
  return page('Consent', `<p>${escape(text)}</p><form method="post">${buttons}</form>`);
}

async function decide(provider, details, form) {
  const { prompt, params, session, grantId } = details;
  if (form.get('answer') === 'deny') return { error: 'access_denied', error_description: 'the person declined' };
  if (prompt.name === 'login') return { login: { accountId: form.get('account') } };
  const grant = (grantId && (await provider.Grant.find(grantId)))
    || new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  const { missingOIDCScope, missingOIDCClaims, missingResourceScopes } = prompt.details;
  if (missingOIDCScope) grant.addOIDCScope(missingOIDCScope.join(' '));
  if (missingOIDCClaims) grant.addOIDCClaims(missingOIDCClaims);
  for (const [resource, scopes] of Object.entries(missingResourceScopes ?? {})) grant.addResourceScope(resource, scopes.join(' '));
  return { consent: { grantId: await grant.save() } };
}

// Serves `/interaction/…`: shows a question, or handles its form.
export async function interaction(provider, request, response) {
  try {
    const details = await provider.interactionDetails(request, response);
    if (request.method === 'POST') {
      const form = new URLSearchParams((await readAll(request)).toString());
      const result = await decide(provider, details, form);
      await provider.interactionFinished(request, response, result, { mergeWithLastSubmission: !('login' in result) });
      return;
    }
    response.writeHead(200, { 'content-type': 'text/html; charset=utf-8', 'cache-control': 'no-store' }).end(question(details));
  } catch (error) {
    if (!(error instanceof errors.OIDCProviderError)) throw error;
    response.writeHead(400, { 'content-type': 'text/plain' }).end(`${error.error}: ${error.error_description}`);
  }
}

const inForm = (form, more) => form.replace('</form>', `${more}</form>`);

export const peopleFeatures = {
  deviceFlow: {
    enabled: true,
    userCodeInputSource: (ctx, form, _out, error) => {
      const message = error ? `<p id="error">${escape(error.name)}: ${escape(error.message)}</p>` : '';
      ctx.body = page('Enter the code', message + inForm(form, '<button id="go">Continue</button>'));
    },
    userCodeConfirmSource: (ctx, form, client, _info, code) => {
      const deny = '<button id="deny" name="abort" value="yes">Deny</button>';
      const text = `<p>Does ${escape(client.clientId)} show <code>${escape(code)}</code>?</p>`;
      ctx.body = page('Confirm the code', text + inForm(form, `<button id="go">Continue</button>${deny}`));
    },
    successSource: (ctx) => {
      ctx.body = page('Device connected', '<p>Go back to your device.</p>');
    },
  },
};

export function registerPeople(provider) {
  const registered = provider.Client.prototype.redirectUriAllowed;
  provider.Client.prototype.redirectUriAllowed = function allowed(uri) {
    return this.clientId.startsWith('p-') ? CALLBACK.test(uri) : registered.call(this, uri);
  };
}

// --- statistics by client ----------------------------------------------------------------------------------------------
// `requests_by_grant`: number of token requests by grant type, refused ones included. `authorizations` and `pushed`: parameters of each
// authorization request and of each pushed one. `device_authorizations`: their number. `polls`: time of each, in ms. `forms`:
// fields of each token request. `second_uses`: of an authorization code or a refresh token, by grant type.
export const peopleStats = () => ({ requests_by_grant: {}, authorizations: {}, pushed: {}, device_authorizations: {}, polls: {}, forms: {}, second_uses: {} });

// stats.grants: client → grant type → tokens issued; stats.revoked: client → access_token or refresh_token → revoked.
export function count(counts, client, kind) {
  counts[client] ??= {};
  counts[client][kind] = (counts[client][kind] ?? 0) + 1;
}

const keep = (lists, client, value) => {
  lists[client] ??= [];
  lists[client].push(value);
};

export function countToken(stats, client, body) {
  const fields = Object.fromEntries(new URLSearchParams(body.toString()));
  const grantType = fields.grant_type ?? '(none)';
  count(stats.requests_by_grant, client, grantType);
  if (client.startsWith('p-')) keep(stats.forms, client, fields);
  if (grantType === DEVICE_CODE) keep(stats.polls, client, Date.now());
}

// `request.body` has been read already, if there is one.
export function countPerson(stats, client, path, request) {
  const body = () => Object.fromEntries(new URLSearchParams(request.body.toString()));
  if (path === '/auth') keep(stats.authorizations, client, Object.fromEntries(new URL(request.url, 'http://op.invalid').searchParams));
  if (path === '/request') keep(stats.pushed, client, body());
  if (path === '/device/auth') stats.device_authorizations[client] = (stats.device_authorizations[client] ?? 0) + 1;
}

export function countReuse(stats, { oidc }, error) {
  if (/already (used|consumed)/.test(error.error_detail ?? '')) count(stats.second_uses, oidc.client.clientId, oidc.params.grant_type);
}

// --- withdrawn consent -------------------------------------------------------------------------------------------------
// Ends the grants of an account (to one client, or all) and deletes their tokens; returns the number of grants.
export function endGrants(store, { account, client }) {
  const matches = ([key, { payload }]) => key.startsWith('Grant:') && payload.accountId === account
    && (!client || payload.clientId === client);
  const ended = new Set([...store].filter(matches).map(([key]) => key.slice('Grant:'.length)));
  for (const [key, { payload }] of store) {
    if (ended.has(payload.grantId) || (key.startsWith('Grant:') && ended.has(key.slice('Grant:'.length)))) store.delete(key);
  }
  return { ended: ended.size };
}
