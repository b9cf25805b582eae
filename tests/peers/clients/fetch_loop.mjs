// Calls URL with Node's own fetch for SECONDS, PAUSE_MS apart. Node 24 reads the proxy variables only when
// NODE_USE_ENV_PROXY=1 is set at its start, and then sends CONNECT for http:// URLs too.

import { run } from './loop.mjs';

if (process.env.NODE_USE_ENV_PROXY !== '1') throw new Error('NODE_USE_ENV_PROXY=1 is not set: fetch would bypass the proxy');

await run(async (url) => {
  const response = await fetch(url);
  return { status: response.status, body: await response.text() };
});
