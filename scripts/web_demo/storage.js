// What one user taught a model, kept in this browser under the model's identity.
//
// A model is looked for under several keys. The first is that under which it is kept, the
// others are those of earlier versions.

const [DATABASE, STORE] = ['tff_perfedavg_web_demo', 'personal'];

/**
 * Returns the keys of a model: its identity, and the hash of its file, which was the key
 * in version 0.1.0, whose files have no identity.
 * @param {Uint8Array} content the file.
 * @param {{model_id: ?string}} card what it says of itself.
 */
export async function keysOf(content, card) {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', content));
  const hash = Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return card.model_id ? [card.model_id, hash] : [hash];
}

/**
 * Returns what is kept for a model, or undefined, and for how many others something is.
 * @param {string[]} keys
 */
export async function load(keys) {
  let kept;
  for (const key of keys) {
    kept ??= await transact('readonly', (store) => store.get(key));
  }
  const all = await transact('readonly', (store) => store.getAllKeys());
  return {kept, others: all.filter((other) => !keys.includes(other)).length};
}

/**
 * Returns what is kept for the latest of earlier versions of a model, with its key; or
 * undefined.
 * @param {{family: ?string, version: ?number}} card what the model says of itself.
 */
export async function loadEarlier({family, version}) {
  if (!family) return undefined;
  const keys = await transact('readonly', (store) => store.getAllKeys());
  const found = [];
  for (const key of keys) {
    const kept = await transact('readonly', (store) => store.get(key));
    if (kept?.family === family && kept.version <= version) found.push({key, kept});
  }
  return found.sort((a, b) => a.kept.version - b.kept.version).at(-1);
}

/**
 * Keeps a value for a model, in the place of what was kept.
 * @param {string[]} keys
 */
export async function save([key, ...earlier], value) {
  await transact('readwrite', (store) => {
    earlier.forEach((old) => store.delete(old));
    return store.put(value, key);
  });
}

/**
 * Forgets what is kept for a model.
 * @param {string[]} keys
 */
export async function remove(keys) {
  await transact('readwrite', (store) => {
    const requests = keys.map((key) => store.delete(key));
    return requests.at(-1);
  });
}

async function transact(mode, operation) {
  const database = await open();
  try {
    const transaction = database.transaction(STORE, mode);
    const request = operation(transaction.objectStore(STORE));
    // Written is what the transaction completed, not what the request was told.
    await new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
    });
    return request.result;
  } finally {
    database.close();
  }
}

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
