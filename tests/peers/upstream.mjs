// A resource server that introspects the bearer token of every request at the authorization server, without a cache.
//
//   node upstream.mjs '{"tls": DIR, "introspect": URL, "client_id": "introspector", "client_secret": "…"}' < held-open-pipe
//
// Serves http and https. Active token: 200 {method, url, headers, authorization_count, active, client_id, sub, body_bytes};
// otherwise 401 invalid_token; authorization server unreachable: 503 (or by `unreachable`, see `apply`).
// Paths: /status/NNN /redirect?to= /sse /slow?ms= /echo /bytes?n= /drop /half; each needs an active token too.
// Control: GET /__records (returns and clears), GET /__summary (since the start), POST /__control {unreachable, reset}.

import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { Readable } from 'node:stream';
import { control, controlServer, endWithStdin, listen, options, readAll, ready, sendJson, sleep, tlsFrom } from './peer.mjs';

const settings = options({
  tls: null, leaf: 'server', http_port: 0, https_port: 0, introspect: null, client_id: 'introspector',
  client_secret: 'introspector-secret', introspect_timeout_ms: 2000, unreachable: 'refuse',
});
const MISSING = 'missing_token';
const ACTIVE = 'active';
const INACTIVE = 'inactive';
const UNREACHABLE = 'unreachable';

const zero = () => ({ total: 0, [ACTIVE]: 0, [MISSING]: 0, [INACTIVE]: 0, [UNREACHABLE]: 0, double: 0, aborted: 0 });
let records = [];
let summary = zero();

// `unreachable`: "refuse" responds 503 if the authorization server does not respond; "accept" serves the request and records
// the verdict "unreachable", for tests that stop the authorization server.
function apply(change) {
  if ('unreachable' in change) settings.unreachable = change.unreachable;
  if (change.reset) [records, summary] = [[], zero()];
  return { unreachable: settings.unreachable };
}

const endpoints = {
  '/__records': () => records.splice(0),
  '/__summary': () => summary,
  '/__control': apply,
};

// --- introspection (RFC 7662) ------------------------------------------------------------------------------------------
const plain = settings.introspect.startsWith('http:');
const agent = plain ? new http.Agent({ keepAlive: true }) : new https.Agent({ keepAlive: true, ca: readFileSync(`${settings.tls}/ca.pem`) });
const form = (value) => encodeURIComponent(value);
const credentials = Buffer.from(`${form(settings.client_id)}:${form(settings.client_secret)}`).toString('base64');

function introspectOnce(token) {
  return new Promise((resolve, reject) => {
    const request = (plain ? http : https).request(settings.introspect, {
      method: 'POST',
      agent,
      timeout: settings.introspect_timeout_ms,
      headers: { authorization: `Basic ${credentials}`, accept: 'application/json', 'content-type': 'application/x-www-form-urlencoded' },
    });
    request.on('timeout', () => request.destroy(new Error('introspection timed out')));
    request.on('error', (error) => reject(Object.assign(error, { reused: request.reusedSocket })));
    request.on('response', async (response) => {
      try {
        const body = await readAll(response);
        if (response.statusCode !== 200) throw new Error(`introspection returned ${response.statusCode}: ${body}`);
        resolve(JSON.parse(body));
      } catch (error) {
        reject(error);
      }
    });
    request.end(`token=${form(token)}&token_type_hint=access_token`);
  });
}

function thumbprint(request) {
  const certificate = request.socket.getPeerCertificate?.();
  return certificate?.raw ? createHash('sha256').update(certificate.raw).digest('base64url') : null;
}

async function judge(request) {
  const [, token] = /^bearer +(\S+)$/i.exec(request.headers.authorization ?? '') ?? [];
  if (!token) return { verdict: MISSING };
  try {
    // A pooled connection may have been closed while idle: retry on a new one.
    const claims = await introspectOnce(token).catch((error) => (error.reused ? introspectOnce(token) : Promise.reject(error)));
    // RFC 8705 §3.1: a bound token is valid only with its certificate.
    const bound = claims.cnf?.['x5t#S256'];
    const held = !bound || bound === thumbprint(request);
    return { verdict: claims.active && held ? ACTIVE : INACTIVE, client_id: claims.client_id ?? null, sub: claims.sub ?? null, scope: claims.scope ?? null, audience: claims.aud ?? null };
  } catch (error) {
    return { verdict: UNREACHABLE, detail: String(error) };
  }
}

// --- responses ---------------------------------------------------------------------------------------------------------
function refuse(response, verdict) {
  if (verdict === UNREACHABLE) sendJson(response, 503, { error: 'introspection_unreachable' });
  else sendJson(response, 401, { error: 'invalid_token', verdict }, { 'www-authenticate': 'Bearer error="invalid_token"' });
}

function describe(record) {
  const { method, url, headers, authorization_count, client_id, sub, body_bytes } = record;
  return { method, url, headers, authorization_count, active: record.verdict === ACTIVE, client_id, sub, body_bytes };
}

function sendStatus(response, record, status) {
  const headers = status === 401 ? { 'www-authenticate': 'Bearer error="invalid_token"' } : {};
  if (status === 204 || status === 304) response.writeHead(status, headers).end();
  else sendJson(response, status, describe(record), headers);
}

async function sendEvents(response) {
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
  for (let event = 0; event < 5; event += 1) {
    if (event) await sleep(150);
    response.write(`id: ${event}\ndata: {"event":${event}}\n\n`);
  }
  response.end();
}

function sendBytes(response, count) {
  const block = Buffer.alloc(65536, 'keybearer.');
  const blocks = function* cut() {
    for (let left = count; left > 0; left -= block.length) yield left < block.length ? block.subarray(0, left) : block;
  };
  response.writeHead(200, { 'content-type': 'application/octet-stream', 'content-length': count });
  Readable.from(blocks(), { objectMode: false }).pipe(response);
}

function sendHalf(response) {
  response.writeHead(200, { 'content-type': 'text/plain', 'content-length': 100 });
  response.write('x'.repeat(50), () => setTimeout(() => response.destroy(), 20));
}

async function respond(request, response, record, url) {
  const [, first, second] = url.pathname.split('/');
  if (first === 'status') return sendStatus(response, record, Number(second));
  if (first === 'redirect') return sendJson(response, 302, describe(record), { location: url.searchParams.get('to') ?? '/' });
  if (first === 'sse') return sendEvents(response);
  if (first === 'slow') await sleep(Number(url.searchParams.get('ms') ?? 1000));
  if (first === 'bytes') return sendBytes(response, Number(url.searchParams.get('n') ?? 1024));
  if (first === 'drop') return request.socket.destroy();
  if (first === 'half') return sendHalf(response);
  return sendJson(response, 200, describe(record));
}

// --- handling a request ------------------------------------------------------------------------------------------------
async function readBody(request, record, each = () => {}) {
  const hash = createHash('sha256');
  try {
    for await (const chunk of request) {
      record.body_bytes += chunk.length;
      hash.update(chunk);
      await each(chunk);
    }
  } catch {
    record.aborted = true;
    summary.aborted += 1;
  }
  record.body_sha256 = hash.digest('hex');
}

// Resolves when the response accepts more data, or is closed.
function writeTo(response, chunk) {
  if (response.destroyed || response.write(chunk)) return undefined;
  return new Promise((resolve) => {
    response.once('drain', resolve);
    response.once('close', resolve);
  });
}

async function echo(request, response, record) {
  const type = request.headers['content-type'] ?? 'application/octet-stream';
  response.writeHead(200, { 'content-type': type });
  response.flushHeaders();
  await readBody(request, record, (chunk) => writeTo(response, chunk));
  response.end();
}

async function handle(scheme, request, response) {
  if (await control(endpoints, request, response)) return;
  const authorizations = request.rawHeaders.filter((name, index) => index % 2 === 0 && name.toLowerCase() === 'authorization').length;
  const record = {
    at_ms: Date.now(), scheme, method: request.method, url: request.url, http_version: request.httpVersion,
    headers: request.rawHeaders, authorization_count: authorizations, body_bytes: 0, body_sha256: null,
    verdict: null, client_id: null, aborted: false,
  };
  const url = new URL(request.url, 'http://upstream.invalid');
  const streams = url.pathname === '/echo';
  const body = streams ? null : readBody(request, record);
  Object.assign(record, await judge(request));
  await body;
  records.push(record); // the body fields of an /echo record are filled while the body streams
  summary.total += 1;
  summary[record.verdict] += 1;
  if (authorizations > 1) summary.double += 1;

  const served = record.verdict === ACTIVE || (record.verdict === UNREACHABLE && settings.unreachable === 'accept');
  if (served) await (streams ? echo(request, response, record) : respond(request, response, record, url));
  else refuse(response, record.verdict);
}

const on = (scheme) => (request, response) => handle(scheme, request, response).catch((error) => {
  console.error(error);
  response.destroy();
});

endWithStdin();
ready({
  http: await listen(http.createServer(on('http')), settings.http_port),
  https: await listen(https.createServer({ ...tlsFrom(settings.tls, settings.leaf), requestCert: true, rejectUnauthorized: false }, on('https')), settings.https_port),
  control: await listen(controlServer(endpoints)),
});
