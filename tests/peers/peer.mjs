// Shared by the Node peers: options, the ready line, exit with stdin, control endpoints, HTTP helpers.
//
// A peer exits when its stdin closes, so that none outlives the test process, even after a crash.
// Control: a plain-http port on 127.0.0.1 serves `GET /__name` and `POST /__name`; so do the peer's other ports.

import { readFileSync } from 'node:fs';
import http from 'node:http';

// The JSON object in argv[2], if any, merged over the defaults.
export function options(defaults) {
  return { ...defaults, ...JSON.parse(process.argv[2] ?? '{}') };
}

// Certificate and key of the leaf `name` in a directory that certs.py wrote.
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

// `endpoints` maps "/__name" to a function of the posted JSON (undefined for GET). Resolves to true if it has responded.
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
