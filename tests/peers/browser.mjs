// A real browser, headless Chromium, driven by JSON lines: one command on stdin, one result on stdout.
//
//   node browser.mjs '{"directory": DIR, "executable": "/usr/bin/chromium"}' < held-open-pipe
//
// Commands name a `context` (separate cookies and storage) and a `tab` of it; both are created on first use.
//   open {url}                  navigates and waits for the page; a refused navigation is a result, too
//   fill {selector, text}       click {selector, wait}: with `wait`, waits for the page that follows
//   back, reload, close         (close: that tab)
//   until {url, text, within_ms}   waits until the page's URL and text contain these
//   hold {part}                 from now on this tab loads no page whose URL contains `part`; `state.held` lists them
//   state                       {url, status, headers, title, text, html, cookies, documents, held, requests, problems}
// Every command except `close` returns {ok: {…state}} or {error: text}. `status`, `headers`: of the current page, names in
// lower case. `cookies`: all of the context. `documents`: {url, status, headers} of each page response, redirects included, in
// order. `requests`: {url, failed} of everything loaded. `problems`: console errors and warnings (CSP violations included),
// uncaught exceptions, and failed requests except held ones; all since the tab was created.
// Certificates are not verified: the peers use a test CA, and the browser is not under test. Only local names are resolved;
// names under .test are 127.0.0.1.

import readline from 'node:readline';
import puppeteer from 'puppeteer-core';
import { options } from './peer.mjs';

const settings = options({ directory: null, executable: '/usr/bin/chromium', within_ms: 10000 });
const contexts = new Map(); // name → {context, tabs: name → tab}

const browser = await puppeteer.launch({
  executablePath: settings.executable,
  headless: true,
  pipe: true, // the browser exits with this process, even after a crash
  acceptInsecureCerts: true,
  timeout: 60000,
  userDataDir: settings.directory ?? undefined,
  args: ['--no-sandbox', '--headless=new', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-default-apps',
    '--ignore-certificate-errors', '--no-proxy-server', '--lang=en-US',
    '--host-resolver-rules=MAP *.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1, EXCLUDE [::1]'],
});

async function tabOf({ context = 'a', tab = '1' }) {
  if (!contexts.has(context)) contexts.set(context, { context: await browser.createBrowserContext(), tabs: new Map() });
  const { context: own, tabs } = contexts.get(context);
  if (!tabs.has(tab)) tabs.set(tab, await watch(await own.newPage()));
  return { ...tabs.get(tab), context: own, tabs, name: tab };
}

async function watch(page) {
  const seen = { documents: [], held: [], hold: null, requests: [], problems: [], document: null };
  const ofPage = (request) => request.isNavigationRequest() && request.frame() === page.mainFrame();
  page.setDefaultTimeout(settings.within_ms);
  page.on('console', (message) => {
    if (['error', 'warn', 'assert'].includes(message.type())) seen.problems.push(`console: ${message.text()}`);
  });
  page.on('pageerror', (error) => seen.problems.push(`exception: ${error}`));
  page.on('request', (request) => {
    const url = request.url();
    const held = seen.hold !== null && ofPage(request) && url.includes(seen.hold);
    if (held) seen.held.push(url);
    else seen.requests.push({ url, failed: null });
    if (seen.hold !== null) (held ? request.abort('aborted') : request.continue()).catch(() => {});
  });
  page.on('requestfailed', (request) => {
    const url = request.url();
    if (seen.held.includes(url)) return;
    const failed = request.failure()?.errorText ?? 'failed';
    Object.assign(seen.requests.findLast((one) => one.url === url) ?? {}, { failed });
    seen.problems.push(`not loaded: ${url}: ${failed}`);
  });
  page.on('response', (response) => {
    if (!ofPage(response.request())) return;
    const [status, headers] = [response.status(), response.headers()];
    seen.documents.push({ url: response.url(), status, headers });
    if (status < 300 || status >= 400) seen.document = response;
  });
  return { page, seen };
}

async function state({ page, seen, context }) {
  const inPage = (what) => page.evaluate(what).catch(() => null); // null during a navigation
  const { documents, held, requests, problems, document: shown } = seen;
  return {
    url: page.url(),
    status: shown?.status() ?? null,
    headers: shown?.headers() ?? {},
    title: await inPage('document.title'),
    text: await inPage('document.body?.innerText ?? ""'),
    html: await inPage('document.documentElement.outerHTML'),
    cookies: await context.cookies(),
    documents, held, requests, problems,
  };
}

// A navigation without a page (held, refused, or past the start of the history) is visible in the state.
const gone = (error) => {
  if (!/net::ERR_|Navigation timeout|History entry/.test(String(error))) throw error;
};

const commands = {
  open: ({ page }, { url }) => page.goto(url, { waitUntil: 'load' }).catch(gone),
  fill: ({ page }, { selector, text }) => page.locator(selector).fill(text),
  click: async ({ page, seen }, { selector, wait = false }) => {
    await page.bringToFront(); // a background tab is not painted and receives no click
    await page.waitForSelector(selector);
    const before = seen.held.length;
    const there = wait && page.waitForNavigation({ waitUntil: 'load' }).catch(gone);
    const held = wait && seen.hold !== null && poll(() => seen.held.length > before, settings.within_ms);
    await page.click(selector);
    await Promise.race([there, held].filter(Boolean));
  },
  back: ({ page }) => page.goBack({ waitUntil: 'load' }).catch(gone),
  reload: ({ page }) => page.reload({ waitUntil: 'load' }).catch(gone),
  until: async (tab, { url = '', text = '', within_ms = settings.within_ms }) => {
    let now;
    const there = await poll(async () => {
      now = await state(tab);
      return now.url.includes(url) && now.text?.includes(text);
    }, within_ms);
    if (!there) throw new Error(`${JSON.stringify({ url, text })} did not appear; the page is ${JSON.stringify(now)}`);
  },
  hold: async ({ page, seen }, { part }) => {
    seen.hold = part;
    await page.setRequestInterception(true);
  },
  state: () => {},
  close: ({ page, tabs, name }) => {
    tabs.delete(name);
    return page.close();
  },
};

async function poll(condition, within_ms) {
  for (const end = Date.now() + within_ms; Date.now() < end;) {
    if (await condition()) return true;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return false;
}

async function run(command) {
  const tab = await tabOf(command);
  await commands[command.cmd](tab, command);
  return command.cmd === 'close' ? {} : state(tab);
}

const print = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
print({ listening: {} });
for await (const line of readline.createInterface({ input: process.stdin })) {
  const result = await run(JSON.parse(line)).then((ok) => ({ ok }), (error) => ({ error: String(error) }));
  print(result);
}
await browser.close();
process.exit(0);
