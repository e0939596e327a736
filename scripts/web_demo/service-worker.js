// A service worker: the app's files are kept in the browser, so that it works offline.
//
// build_web_app writes three constants before this: VERSION, a hash of all content; FILES,
// kept at the first visit; OPTIONAL, LiteRT's builds, of which a browser loads one.
//
// Directories are named by the hash of their content. What is kept of them is right for
// ever, and answered first. Pages are asked of the host first, so that an update is there
// at once and never mixed with files of another version; of the cache if there is no
// network, or one that does not answer in time.

const CACHE = `tff_perfedavg ${registration.scope}`;
const PATIENCE_MS = 3000;
const HOME = new URL('./', registration.scope).href;

const address = (name) => (name === 'index.html' ? HOME : new URL(name, HOME).href);
const isFixed = (name) => /^(page|litert)-[0-9a-f]+\//.test(name);
const optional = new Set(OPTIONAL.map(address));

self.addEventListener('install', (event) => event.waitUntil(install()));
self.addEventListener('activate', (event) => event.waitUntil(activate()));
self.addEventListener('fetch', (event) => {
  const {request} = event;
  if (request.method !== 'GET' || !request.url.startsWith(HOME)) return;
  event.respondWith(request.mode === 'navigate' ? page(request) : file(request));
});

/** Keeps all files, or fails and leaves the version before. */
async function install() {
  const cache = await caches.open(CACHE);
  const missing = [];
  for (const name of FILES) {
    if (!isFixed(name) || !(await cache.match(address(name)))) missing.push(name);
  }
  const answers = await Promise.all(missing.map((name) => download(address(name))));
  await Promise.all(missing.map((name, i) => cache.put(address(name), answers[i])));
  await self.skipWaiting();
}

/** Removes files of other versions. */
async function activate() {
  const wanted = new Set([...FILES, ...OPTIONAL].map(address));
  const cache = await caches.open(CACHE);
  for (const {url} of await cache.keys()) {
    if (!wanted.has(url)) await cache.delete(url);
  }
  await self.clients.claim();
}

async function download(url) {
  const answer = await fetch(url, {cache: 'no-cache'});
  if (!answer.ok) throw new Error(`${url} cannot be loaded (${answer.status}).`);
  // Hosts may lead from `digits.html` to `digits`; a page cannot be shown from an answer
  // that was led elsewhere.
  return new Response(await answer.blob(), {headers: answer.headers});
}

async function page(request) {
  try {
    const answer = await fetch(request, {signal: AbortSignal.timeout(PATIENCE_MS)});
    if (answer.type === 'opaqueredirect') return answer;
    // Whole, as patience may end in the midst of it.
    const {status, statusText, headers} = answer;
    return new Response(await answer.blob(), {status, statusText, headers});
  } catch (error) {
    const cache = await caches.open(CACHE);
    const url = new URL(request.url);
    for (const path of [url.pathname, `${url.pathname}.html`, HOME]) {
      const kept = await cache.match(new URL(path, url.origin));
      if (kept) return kept;
    }
    throw error;
  }
}

async function file(request) {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(request, {ignoreSearch: true});
  if (kept) return kept;
  const answer = await fetch(request);
  if (answer.ok && optional.has(request.url)) await cache.put(request, answer.clone());
  return answer;
}
