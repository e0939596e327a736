// What one user taught a model, kept in this browser under the model file's hash.

const [DATABASE, STORE] = ['tff_perfedavg_web_demo', 'personal'];

/**
 * Returns the key of a model file.
 * @param {Uint8Array} content
 */
export async function keyOf(content) {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', content));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/**
 * Returns what is kept under a key, or undefined, and for how many other models
 * something is.
 * @param {string} key
 */
export async function load(key) {
  const kept = await transact('readonly', (store) => store.get(key));
  const keys = await transact('readonly', (store) => store.getAllKeys());
  return {kept, others: keys.filter((other) => other !== key).length};
}

/** Keeps a value under a key. */
export async function save(key, value) {
  await transact('readwrite', (store) => store.put(value, key));
}

/** Forgets what is kept under a key. */
export async function remove(key) {
  await transact('readwrite', (store) => store.delete(key));
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
