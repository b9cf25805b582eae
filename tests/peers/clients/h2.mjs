// Node's HTTP/2 client, all requests concurrently on one session. Argument: JSON {origin, ca, connect: "host:port" or null,
// requests: [{path, method, headers, body_bytes}]}. With `connect` the session is inside a tunnel that was requested over
// HTTP/2 (RFC 9113 §8.5) at `origin`. Prints a JSON array: {status, headers, trailers, body, ms: arrival time of each part}.
import { readFileSync } from 'node:fs';
import http2 from 'node:http2';

const { origin, ca, connect, requests } = JSON.parse(process.argv[2]);
const options = ca ? { ca: readFileSync(ca) } : {};
const outer = http2.connect(origin, options);
outer.on('error', (error) => console.error(error.message));
let session = outer;
if (connect) {
  const tunnel = outer.request({ ':method': 'CONNECT', ':authority': connect });
  await new Promise((resolve) => tunnel.once('response', resolve));
  session = http2.connect(`http://${connect}`, { createConnection: () => tunnel });
}

function one({ path, method = 'GET', headers = {}, body_bytes = 0 }) {
  return new Promise((resolve) => {
    const observed = { body: '', ms: [] };
    const start = performance.now();
    const target = method === 'CONNECT' ? {} : { ':path': path };
    const stream = session.request({ ...target, ':method': method, ...headers }, { endStream: body_bytes === 0 });
    stream.setEncoding('utf8');
    stream.on('response', (head) => Object.assign(observed, { status: head[':status'], headers: head }));
    stream.on('trailers', (trailers) => Object.assign(observed, { trailers }));
    stream.on('data', (chunk) => {
      observed.body += chunk;
      observed.ms.push(Math.round(performance.now() - start));
    });
    stream.on('error', (error) => Object.assign(observed, { error: error.message }));
    stream.on('close', () => resolve(observed));
    if (body_bytes) stream.end(Buffer.alloc(body_bytes, 'u'));
  });
}

console.log(JSON.stringify(await Promise.all(requests.map(one))));
session.close();
outer.close();
setTimeout(() => process.exit(0), 100).unref();
