// Calls URL with axios for SECONDS, PAUSE_MS apart; the proxy comes only from the environment.

import axios from 'axios';
import { run } from './loop.mjs';

await run(async (url) => {
  const response = await axios.get(url, { responseType: 'text', validateStatus: null });
  return { status: response.status, body: response.data };
});
