// Calls URL with undici's EnvHttpProxyAgent for SECONDS, PAUSE_MS apart; it sends CONNECT for http:// URLs too.

import { EnvHttpProxyAgent, request, setGlobalDispatcher } from 'undici';
import { run } from './loop.mjs';

setGlobalDispatcher(new EnvHttpProxyAgent());

await run(async (url) => {
  const { statusCode, body } = await request(url);
  return { status: statusCode, body: await body.text() };
});
