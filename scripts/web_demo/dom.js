// What the pages share: elements by id, errors, images, questions.

/** URL of the directory of LiteRT's wasm files, where the import map has LiteRT. */
export const RUNTIME = new URL('./wasm/', import.meta.resolve('@litertjs/core')).href;

export const find = (id) => document.getElementById(id);

/** Returns the content of the model file beside the scripts. */
export async function download(name) {
  if (!isSecureContext) {
    throw new Error(
      'This page checks the model file, for which browsers ask for HTTPS. Open its ' +
        'address with https:// in front.',
    );
  }
  const answer = await fetch(new URL(name, import.meta.url), {cache: 'no-store'});
  if (!answer.ok) throw new Error(`No model can be loaded (${answer.status}).`);
  return new Uint8Array(await answer.arrayBuffer());
}

/** Returns a new element with properties, appended to a parent. */
export function append(parent, tag, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  parent.append(element);
  return element;
}

/** Replaces what is in an element; the focus stays in its place. */
export function replaceIn(parent, children) {
  const focusable = () => [...parent.querySelectorAll('button, input')];
  const place = focusable().indexOf(document.activeElement);
  parent.replaceChildren(...children);
  if (place >= 0) (focusable()[place] ?? focusable().at(-1))?.focus();
}

/** Sets a text unless it is there: assigning it anew would have it read out anew. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Shows an error. */
export function report(error) {
  find('alert').textContent = error.message;
  find('alert').hidden = false;
}

/**
 * Shows an image of `side * side` numbers, or none.
 * @param {HTMLCanvasElement} canvas
 * @param {?Float32Array} image
 * @param {number} side
 * @param {number} scale the number that is white.
 */
export function showImage(canvas, image, side, scale = 1) {
  canvas.width = canvas.height = side;
  if (!image) return;
  const context = canvas.getContext('2d');
  const pixels = context.createImageData(side, side);
  image.forEach((value, i) => {
    const level = (255 * value) / scale;
    pixels.data.set([level, level, level, 255], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
}

/**
 * Asks before something is lost; resolves to whether the answer was yes.
 * @param {HTMLDialogElement} dialog with buttons of class `yes` and `no`.
 */
export function confirmed(dialog) {
  let answer = false;
  const close = (value) => () => {
    answer = value;
    dialog.close();
  };
  dialog.querySelector('.yes').onclick = close(true);
  dialog.querySelector('.no').onclick = close(false);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(answer), {once: true});
  });
}

/** Returns a function that runs tasks one after the other, when a promise is fulfilled. */
export function queueAfter(ready) {
  let last = Promise.resolve();
  return (task) => {
    const result = Promise.all([ready, last]).then(task);
    last = result.catch(() => {});
    return result;
  };
}
