// An OpenID provider (npm oidc-provider) over HTTPS, one of the two real authorization servers.
//
//   node op.mjs '{"tls": DIR, "port": 0, "lifetime": 3, "leaf": "server", "issuer": null, "clients": [], "groups": {"ann": ["ops"]}}' < held-open-pipe
//
// Clients: `machine` (client_secret_post), `machine-basic` (client_secret_basic, a secret full of special characters),
// `person` (client_secret_post; refresh tokens rotate, and a second use of one revokes the whole grant),
// `introspector` (may introspect every token), one `m-…` for each client authentication method (op_clients.mjs), and `p-…`,
// whose grants need a person and a browser (op_people.mjs).
// Endpoints: /auth, /request (pushed), /device/auth, /token, /token/introspection, /token/revocation,
// /.well-known/openid-configuration and /.well-known/oauth-authorization-server; the same on a second port, `mtls`, which
// requests a client certificate and is announced as `mtls_endpoint_aliases`. `clients` adds oidc-provider client metadata; `groups`: account → its
// groups, in the claim `groups` of ID tokens; with `pushed_only` the server requires pushed authorization requests, and its metadata announces that.
// Grants: authorization_code, device_code, client_credentials, refresh_token, and those of op_grants.mjs.
// Control: GET /__stats; POST /__control {lifetime, delay_ms, status, retry_after, times, revoke_all, hold}: see `apply`;
// POST /__refresh_token {account}: issues a refresh token of `person` without a browser;
// POST /__end_grants {account, client}: the account withdraws its consent (to all clients, if none is named).

import { readFileSync } from 'node:fs';
import https from 'node:https';
import { unescape } from 'node:querystring';
import { decodeJwt } from 'jose';
import { errors, Provider } from 'oidc-provider';
import { AUTH_METHODS, clientKeys, endpointAliases, JWT_BEARER, methodClients, mutualTls } from './op_clients.mjs';
import { registerGrants, USED_BEFORE } from './op_grants.mjs';
import {
  count, countPerson, countReuse, countToken, endGrants, interaction, lifetimeOf, peopleClients, peopleFeatures, peopleStats,
  registerPeople,
} from './op_people.mjs';
import { control, controlServer, endWithStdin, listen, options, readAll, ready, sendJson, sleep, tlsFrom } from './peer.mjs';

const settings = options({ tls: null, leaf: 'server', port: 0, mtls_port: 0, control_port: 0, lifetime: 3, issuer: null,
  clients: [], pushed_only: false, groups: {} });
const stats = { token_requests: {}, tokens_issued: 0, introspections: 0, revocations: 0, token_requests_at_once: 0,
  rotations: 0, refused: 0, grants_revoked: 0, held: 0, grants: {}, revoked: {}, jti_reused: 0,
  ...peopleStats() };
const fault = { device_lifetime: 600, delay_ms: 0, status: null, retry_after: null, times: null, hold: false };
let lifetime = settings.lifetime;
let concurrent = 0;

const machine = (client_id, client_secret, token_endpoint_auth_method) => ({
  client_id,
  client_secret,
  token_endpoint_auth_method,
  grant_types: ['client_credentials'],
  response_types: [],
  redirect_uris: [],
  scope: 'api.read api.write',
});

// The provider's own store keeps only 1000 entries, and cannot revoke everything at once.
const store = new Map();
class Adapter {
  constructor(model) {
    this.model = model;
  }

  async upsert(id, payload, expiresIn) {
    store.set(`${this.model}:${id}`, { payload, until: expiresIn ? Date.now() + expiresIn * 1000 : Infinity });
  }

  async find(id) {
    const entry = store.get(`${this.model}:${id}`);
    return entry && entry.until > Date.now() ? entry.payload : undefined;
  }

  async consume(id) {
    const payload = await this.find(id);
    if (payload) payload.consumed = Math.floor(Date.now() / 1000);
  }

  async destroy(id) {
    store.delete(`${this.model}:${id}`);
  }

  async findByUid(uid) {
    return this.findBy('uid', uid);
  }

  async findByUserCode(userCode) {
    return this.findBy('userCode', userCode);
  }

  async findBy(field, value) {
    const own = ([key, { payload, until }]) => key.startsWith(`${this.model}:`) && payload[field] === value && until > Date.now();
    return [...store].find(own)?.[1].payload;
  }

  async revokeByGrantId(grantId) {
    for (const [key, { payload }] of store) if (payload.grantId === grantId) store.delete(key);
  }
}
setInterval(() => {
  for (const [key, { until }] of store) if (until <= Date.now()) store.delete(key);
}, 5000).unref();

function makeProvider(issuer, mtlsPort) {
  const provider = new Provider(issuer, {
    adapter: Adapter,
    clients: [
      machine('machine', 'machine-secret', 'client_secret_post'),
      machine('machine-basic', 'a+b/c:d%e$f g', 'client_secret_basic'),
      {
        ...machine('person', 'person-secret', 'client_secret_post'),
        grant_types: ['authorization_code', 'refresh_token'],
        response_types: ['code'],
        redirect_uris: ['http://localhost/oauth/callback'],
        scope: 'openid offline_access api.read api.write',
      },
      machine('introspector', 'introspector-secret', 'client_secret_basic'),
      ...methodClients(settings.tls),
      ...peopleClients,
      ...settings.clients,
    ],
    discovery: { mtls_endpoint_aliases: endpointAliases(issuer, mtlsPort) },
    scopes: ['openid', 'offline_access', 'api.read', 'api.write'],
    ttl: {
      ClientCredentials: () => lifetime,
      AccessToken: (_ctx, _token, client) => lifetimeOf(client, lifetime),
      RefreshToken: () => 3600,
      Grant: () => 3600,
      DeviceCode: () => fault.device_lifetime,
    },
    interactions: { url: (_ctx, { uid }) => `/interaction/${uid}` },
    rotateRefreshToken: true,
    claims: { openid: ['sub', 'groups'] },
    conformIdTokenClaims: false, // ID tokens carry the groups even though a code is requested
    findAccount: (_ctx, id) => ({ accountId: id, claims: () => ({ sub: id, groups: settings.groups[id] }) }),
    clientAuthMethods: AUTH_METHODS,
    issueRefreshToken: (ctx, client, source) => client.grantTypeAllowed('refresh_token')
      && (source.scopes.has('offline_access') || ['password', JWT_BEARER].includes(ctx.oidc.params.grant_type)),
    features: {
      devInteractions: { enabled: false },
      ...peopleFeatures,
      pushedAuthorizationRequests: { enabled: true, requirePushedAuthorizationRequests: settings.pushed_only },
      clientCredentials: { enabled: true },
      mTLS: mutualTls,
      revocation: { enabled: true, allowedPolicy: mayRevoke },
      introspection: {
        enabled: true,
        allowedPolicy: (_ctx, client, token) => client.clientId === 'introspector' || client.clientId === token.clientId,
      },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_ctx, resource, client) => ({
          scope: 'api.read api.write',
          audience: resource,
          accessTokenTTL: lifetimeOf(client, lifetime),
          accessTokenFormat: 'opaque',
        }),
      },
    },
  });
  provider.on('client_credentials.saved', () => {
    stats.tokens_issued += 1;
  });
  provider.on('access_token.saved', () => {
    stats.tokens_issued += 1;
  });
  provider.on('refresh_token.consumed', () => {
    stats.rotations += 1;
  });
  provider.on('grant.success', ({ oidc }) => count(stats.grants, oidc.client.clientId, oidc.params.grant_type));
  provider.on('grant.error', () => {
    stats.refused += 1;
  });
  provider.on('grant.error', (ctx, error) => countReuse(stats, ctx, error));
  for (const event of ['grant.error', 'revocation.error', 'introspection.error']) {
    provider.on(event, (_ctx, { error_detail, error_description }) => {
      if (error_detail === ASSERTION_REUSED || error_description === USED_BEFORE) stats.jti_reused += 1;
    });
  }
  provider.on('grant.revoked', () => {
    stats.grants_revoked += 1;
  });
  provider.on('server_error', (_ctx, error) => console.error(error));
  registerGrants(provider, clientKeys(settings.tls));
  registerPeople(provider);
  return provider;
}

// oidc-provider's error text for the second use of a client assertion.
const ASSERTION_REUSED = 'client assertion tokens must only be used once';

// The same rule as oidc-provider's default; counts revocations, too.
function mayRevoke(_ctx, client, token) {
  if (token.clientId !== client.clientId) {
    if (client.clientAuthMethod === 'none') return false;
    throw new errors.InvalidRequest('client is not authorized to revoke the presented token');
  }
  count(stats.revoked, client.clientId, token.kind === 'RefreshToken' ? 'refresh_token' : 'access_token');
  return true;
}

// The client ID, whatever the authentication method; only for statistics.
function clientOf(request, body) {
  const [, basic] = /^basic (.+)$/i.exec(request.headers.authorization ?? '') ?? [];
  if (basic) return unescape(Buffer.from(basic, 'base64').toString().split(':')[0]);
  const fields = new URLSearchParams(body.toString());
  return fields.get('client_id') ?? subjectOf(fields.get('client_assertion')) ?? '(none)';
}

function subjectOf(assertion) {
  try {
    return decodeJwt(assertion).sub;
  } catch {
    return undefined;
  }
}

// Issues a refresh token of the client `person` without a browser.
async function refreshToken({ account = 'ann' }) {
  const client = await provider.Client.find('person');
  const grant = new provider.Grant({ accountId: account, clientId: 'person' });
  grant.addOIDCScope('openid offline_access api.read api.write');
  const token = new provider.RefreshToken({
    accountId: account,
    client,
    grantId: await grant.save(),
    gty: 'authorization_code',
    scope: 'openid offline_access api.read api.write',
    rotations: 0,
    iiat: Math.floor(Date.now() / 1000),
  });
  return { refresh_token: await token.save() };
}

// Holds back the last byte of a response until `hold` is false: the server has committed, and the client does not know.
function holdBack(response) {
  const end = response.end.bind(response);
  response.end = (chunk, ...rest) => {
    const whole = Buffer.from(chunk ?? '');
    if (!fault.hold || whole.length < 2 || response.statusCode !== 200) return end(chunk, ...rest);
    response.write(whole.subarray(0, -1));
    stats.held += 1;
    const timer = setInterval(() => {
      if (fault.hold && !response.destroyed) return;
      clearInterval(timer);
      end(whole.subarray(-1));
    }, 5);
    return response;
  };
}

// Absent fields keep their values; `times` limits `status` to that many responses; `status: null` ends it.
function apply(change) {
  for (const field of ['delay_ms', 'device_lifetime', 'status', 'retry_after', 'times', 'hold']) if (field in change) fault[field] = change[field];
  if ('lifetime' in change) lifetime = change.lifetime;
  if (change.revoke_all) for (const key of store.keys()) if (/^(ClientCredentials|AccessToken):/.test(key)) store.delete(key);
  return { ...fault, lifetime };
}

// Resolves to true if it has responded.
async function failOnPurpose(response) {
  const { status, retry_after } = fault;
  if (fault.delay_ms) await sleep(fault.delay_ms);
  if (!status || fault.times === 0) return false;
  if (fault.times) fault.times -= 1;
  sendJson(response, status, { error: status < 500 ? 'invalid_client' : 'temporarily_unavailable' }, retry_after === null ? {} : { 'retry-after': retry_after });
  return true;
}

async function token(request, response) {
  request.body = await readAll(request); // the provider uses a body that has been read already
  const client = clientOf(request, request.body);
  stats.token_requests[client] = (stats.token_requests[client] ?? 0) + 1;
  countToken(stats, client, request.body);
  concurrent += 1;
  stats.token_requests_at_once = Math.max(stats.token_requests_at_once, concurrent);
  response.once('close', () => {
    concurrent -= 1;
  });
  if (await failOnPurpose(response)) return;
  holdBack(response);
  serve(request, response);
}

// Serves browsers, and the requests that prepare for one; not the token endpoint.
async function forPeople(path, request, response) {
  if (path.startsWith('/interaction/')) return interaction(provider, request, response);
  request.body = await readAll(request);
  const client = path === '/auth' ? new URL(request.url, provider.issuer).searchParams.get('client_id') : clientOf(request, request.body);
  countPerson(stats, client, path, request);
  return serve(request, response);
}

const endpoints = { '/__stats': () => stats, '/__control': apply, '/__refresh_token': refreshToken,
  '/__end_grants': (selected) => endGrants(store, selected) };
let provider;
let serve;
async function handle(request, response) {
  const path = request.url.split('?')[0];
  const own = path === '/token' ? token(request, response)
    : /^\/(auth|request|device\/auth|interaction\/.*)$/.test(path) && forPeople(path, request, response);
  if (own) {
    await own.catch((error) => {
      console.error(error);
      response.destroy();
    });
    return;
  }
  if (path === '/token/introspection') stats.introspections += 1;
  if (path === '/token/revocation') stats.revocations += 1;
  if (!(await control(endpoints, request, response))) serve(request, response);
}

console.info = console.error; // stdout is not read after the line with the ports
endWithStdin();
const tls = tlsFrom(settings.tls, settings.leaf);
const requestCertificate = { requestCert: true, rejectUnauthorized: false, ca: readFileSync(`${settings.tls}/ca.pem`) };
const port = await listen(https.createServer(tls, handle), settings.port);
const mtls = await listen(https.createServer({ ...tls, ...requestCertificate }, handle), settings.mtls_port);
provider = makeProvider(settings.issuer ?? `https://127.0.0.1:${port}`, mtls);
serve = provider.callback();
ready({ port, mtls, control: await listen(controlServer(endpoints), settings.control_port) });
