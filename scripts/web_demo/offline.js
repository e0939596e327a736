// Registers the service worker, by which the app works without a network.

/**
 * Resolves to true once all that this page needs is kept; to false where the browser has
 * no service workers, or not on a page like this (they need HTTPS, or this machine).
 */
export async function keepOffline() {
  const workers = navigator.serviceWorker;
  if (!workers) return false;
  await workers.register(new URL('../service-worker.js', import.meta.url));
  await workers.ready;
  if (!workers.controller) {
    await new Promise((resolve) =>
      workers.addEventListener('controllerchange', resolve, {once: true}),
    );
  }
  // What was loaded before there was a worker to keep it: LiteRT's build for this browser.
  for (const {name} of performance.getEntriesByType('resource')) {
    if (name.includes('/wasm/')) await (await fetch(name)).body?.cancel();
  }
  return true;
}
