// What the Node peers share: options, the ready line, the lifetime rule, control endpoints, small HTTP helpers.
//
// Lifetime: a peer ends when its stdin closes, so none outlives the test process, however that ended.
// Control: a plain-http port on 127.0.0.1 takes `GET /__name` and `POST /__name`; the peer's own ports take them too.

import { readFileSync } from 'node:fs';
import http from 'node:http';

// `{}` or the JSON object in argv[2], over the given defaults.
export function options(defaults) {
  return { ...defaults, ...JSON.parse(process.argv[2] ?? '{}') };
}

// The leaf called `name` in a directory that certs.py wrote.
export function tlsFrom(directory, name = 'server') {
  return { cert: readFileSync(`${directory}/${name}.pem`), key: readFileSync(`${directory}/${name}.key`) };
}

export function listen(server, port = 0, host = '127.0.0.1') {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, host, () => resolve(server.address().port));
  });
}

export function endWithStdin() {
  process.stdin.on('end', () => process.exit(0));
  process.stdin.on('error', () => process.exit(0));
  process.stdin.resume();
}

export function ready(ports) {
  process.stdout.write(`${JSON.stringify({ listening: ports })}\n`);
}

export async function readAll(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks);
}

export function sendJson(response, status, value, headers = {}) {
  const body = JSON.stringify(value);
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body), ...headers });
  response.end(body);
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// `endpoints` maps "/__name" to a function of the posted JSON (undefined for GET). Resolves to whether it answered.
export async function control(endpoints, request, response) {
  const endpoint = endpoints[request.url.split('?')[0]];
  if (!endpoint) return false;
  try {
    const body = await readAll(request);
    sendJson(response, 200, (await endpoint(body.length ? JSON.parse(body) : undefined)) ?? {});
  } catch (error) {
    sendJson(response, 400, { error: String(error) });
  }
  return true;
}

export function controlServer(endpoints) {
  return http.createServer(async (request, response) => {
    if (!(await control(endpoints, request, response))) sendJson(response, 404, { error: 'no such control endpoint' });
  });
}
