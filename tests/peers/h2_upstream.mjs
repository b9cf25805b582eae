// Node's HTTP/2 server: over TLS without HTTP/1.1, or in cleartext with prior knowledge.
//
//   node h2_upstream.mjs '{"tls": DIR or null, "leaf": "server", "max_streams": 100, "websocket": false}' < held-open-pipe
//
// With `websocket` it accepts extended CONNECT (RFC 8441): the first message holds the request's fields, all others are
// echoed; after "close" the server closes with code 4001.
// Every response is JSON {session, headers, body_bytes} unless noted. Paths: /echo /slow?ms= /trailers /bytes?n= /events
// /refused (refuses the first stream, RFC 9113 §8.7) /goaway (the session accepts no stream after this one)
// /reset (after the request was read) /cut?n= (closes the first session's connection without GOAWAY at the n-th request)
// /refuse-token (401 for the first request).
// Control: GET /__stats {sessions, open, paths, most: maximum of concurrent streams on one session}.

import http2 from 'node:http2';
import WebSocket from 'ws';
import { controlServer, endWithStdin, listen, options, ready, sleep, tlsFrom } from './peer.mjs';

const settings = options({ tls: null, leaf: 'server', max_streams: 100, websocket: false });
const sockets = new Set();
const stats = { sessions: 0, open: 0, most: 0, paths: {} };

function serveWebSocket(stream, headers) {
  stream.respond({ ':status': 200 });
  const socket = new WebSocket(null, undefined, { autoPong: true });
  socket.setSocket(stream, Buffer.alloc(0), { maxPayload: 1 << 24, allowSynchronousEvents: true });
  socket.on('error', () => {});
  socket.on('message', (data, isBinary) => {
    if (!isBinary && data.toString() === 'close') return socket.close(4001);
    socket.send(data, { binary: isBinary });
  });
  socket.send(JSON.stringify({ headers }));
}

async function serve(session, number, stream, headers) {
  const url = new URL(headers[':path'], 'http://any');
  const before = stats.paths[url.pathname] ?? 0;
  stats.paths[url.pathname] = before + 1;
  if (headers[':protocol'] === 'websocket') return serveWebSocket(stream, headers);
  if (url.pathname === '/refused' && before === 0) return stream.close(http2.constants.NGHTTP2_REFUSED_STREAM);
  if (url.pathname === '/cut' && number === 1) {
    if (before + 1 === Number(url.searchParams.get('n'))) for (const socket of sockets) socket.destroy();
    return;
  }
  if (url.pathname === '/bytes') {
    stream.respond({ ':status': 200, 'content-type': 'application/octet-stream' });
    let left = Number(url.searchParams.get('n'));
    const chunk = Buffer.alloc(65536, 'k');
    stream.on('error', () => {});
    while (left > 0 && !stream.destroyed) {
      const part = chunk.subarray(0, Math.min(left, chunk.length));
      left -= part.length;
      if (!stream.write(part)) await new Promise((resolve) => stream.once('drain', resolve).once('close', resolve));
    }
    return stream.end();
  }
  let bodyBytes = 0;
  for await (const chunk of stream) bodyBytes += chunk.length;
  if (url.pathname === '/reset') return stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR);
  if (url.pathname === '/slow') await sleep(Number(url.searchParams.get('ms')));
  if (stream.destroyed) return;
  const body = JSON.stringify({ session: number, headers, body_bytes: bodyBytes });
  const head = { ':status': 200, 'content-type': 'application/json' };
  if (url.pathname === '/refuse-token' && before === 0) head[':status'] = 401;
  if (url.pathname === '/goaway') session.close();
  if (url.pathname === '/events') {
    stream.respond({ ...head, 'content-type': 'text/event-stream' });
    for (let at = 0; at < 4; at++) {
      stream.write(`data: ${at}\n\n`);
      await sleep(200);
    }
    return stream.end();
  }
  if (url.pathname !== '/trailers') {
    stream.respond(head);
    return stream.end(body);
  }
  stream.respond({ ...head, trailer: 'x-sum' }, { waitForTrailers: true });
  stream.on('wantTrailers', () => stream.sendTrailers({ 'x-sum': '42' }));
  stream.end(body);
}

function onSession(session) {
  const number = ++stats.sessions;
  stats.open++;
  let streams = 0;
  session.on('close', () => stats.open--);
  session.on('error', () => {});
  session.on('stream', (stream, headers) => {
    stats.most = Math.max(stats.most, ++streams);
    stream.on('close', () => streams--);
    stream.on('error', () => {});
    serve(session, number, stream, headers).catch((error) => console.error(error));
  });
}

const http2Settings = { settings: { maxConcurrentStreams: settings.max_streams, enableConnectProtocol: settings.websocket } };
const server = settings.tls
  ? http2.createSecureServer({ ...http2Settings, ...tlsFrom(settings.tls, settings.leaf) })
  : http2.createServer(http2Settings);
server.on('session', onSession);
server.on('connection', (socket) => sockets.add(socket));
endWithStdin();
ready({ control: await listen(controlServer({ '/__stats': () => stats })), h2: await listen(server) });
