// The page of digits: what is drawn, what the model makes of it, what it is told.

import {
  append,
  confirmed,
  download,
  find,
  queueAfter,
  report,
  RUNTIME,
  setText,
  showImage,
} from './dom.js';
import {IMAGES, inkOf, toImage} from './drawing.js';
import {PersonalModel} from './model.js';
import {keepOffline} from './offline.js';
import {Paper} from './paper.js';
import * as storage from './storage.js';

const DIGITS = [...'0123456789'].map(Number);
// The width of a digit's line, of a paper of 280.
const LINE = 26;

let model;
let keys;
let side;
let scale;
let rate;
let isReady = false;
let current = null;
// Those the next correction trains on, the oldest first.
let examples = [];
let adaptations = 0;

const paper = new Paper(find('paper'), find('pen'), {
  line: LINE,
  onChange: readPaperSoon,
  onDigit: (digit) => told(digit),
});
const bars = DIGITS.map(addBar);
const labels = DIGITS.map(addLabel);
find('clear').addEventListener('click', () => paper.clear());
find('forget').addEventListener('click', () => askAndReset().catch(report));
setReady(false);
const ready = start();
const exclusive = queueAfter(ready);
const offline = ready.then(keepOffline);
offline.catch((error) => console.warn(error.message));
ready.catch((error) => {
  find('prediction').textContent = 'There is no model to ask.';
  report(error);
});

/** What a script, a test above all, can do with the page. */
window.demo = {ready, offline, predict, correct, reset, weights, keys: () => keys};

async function start() {
  const content = await download('digits.tflite');
  model = await PersonalModel.load(content, RUNTIME);
  const {card} = model;
  keys = await storage.keysOf(content, card);
  side = Math.sqrt(card.input_shape.reduce((a, b) => a * b, 1));
  if (!(side in IMAGES) || card.num_classes !== DIGITS.length) {
    throw new Error(
      `The file's model tells ${card.num_classes} classes from inputs of shape ` +
        `[${card.input_shape}]; this page draws the ten digits in 8x8 or 28x28.`,
    );
  }
  scale = card.input_max ?? 1;
  rate = card.inner_learning_rate ?? 0.05;
  find('name').textContent = [card.model, card.dataset].filter(Boolean).join(', ');
  find('rate').textContent = rate;
  await restore();
  showExamples();
  // Without this, the first time to predict shown would be that of a cold runtime.
  await model.infer(new Float32Array(side * side));
  await show(imageOnPaper());
  setReady(true);
}

/** Returns, and shows, the probabilities of an image of `side * side` numbers. */
async function predict(image) {
  return exclusive(async () => [...(await show(Float32Array.from(image)))]);
}

/** Adapts to an image being a digit; returns its loss before and its probabilities. */
async function correct(image, label) {
  return exclusive(async () => {
    const example = {x: Float32Array.from(image), label};
    const batch = [...examples, example].slice(-model.card.batch_size);
    const before = await infer(example.x);
    const begin = performance.now();
    const loss = await model.adapt(batch, rate, stepsWanted());
    showTime('adapt-time', begin);
    current = example.x;
    examples = batch;
    adaptations += 1;
    const probabilities = await infer(current);
    find('loss').textContent = loss.toFixed(4);
    showImage(find('seen'), current, side, scale);
    showPrediction(probabilities, before);
    showExamples();
    await keep();
    return {loss, probabilities: [...probabilities]};
  });
}

async function askAndReset() {
  if (await confirmed(find('ask'))) await reset();
}

/** Goes back to the initial weights and forgets what this browser keeps. */
async function reset() {
  return exclusive(async () => {
    await model.reset();
    examples = [];
    adaptations = 0;
    find('loss').textContent = '–';
    showExamples();
    await storage.remove(keys);
    find('kept').textContent = 'Forgotten: the model is as it was at first.';
    if (current) showPrediction(await infer(current));
  });
}

/** Returns the weights, lists of numbers. */
async function weights() {
  return exclusive(async () => (await model.weights()).map((weight) => [...weight]));
}

function stepsWanted() {
  const {validity, valueAsNumber, max} = find('steps');
  if (!validity.valid || !Number.isInteger(valueAsNumber)) {
    throw new Error(`Gradient steps must be a whole number from 1 to ${max}.`);
  }
  return valueAsNumber;
}

async function infer(image) {
  const begin = performance.now();
  const probabilities = await model.infer(image);
  showTime('infer-time', begin);
  return probabilities;
}

let isReading = false;

/** Predicts what is on the paper, once a frame at most. */
function readPaperSoon() {
  if (isReading || !isReady) return;
  isReading = true;
  requestAnimationFrame(() => {
    isReading = false;
    exclusive(() => show(imageOnPaper())).catch(report);
  });
}

function imageOnPaper() {
  const image = toImage(inkOf(paper.context), side);
  return image && image.map((value) => value * scale);
}

/** Shows an image, or none, as the model sees it; returns its probabilities. */
async function show(image) {
  const probabilities = image && (await infer(image));
  current = image;
  showImage(find('seen'), image, side, scale);
  showPrediction(probabilities);
  return probabilities;
}

function told(digit) {
  if (!current) return;
  paper.finish();
  correct(current, digit).then(() => showChosen(digit), report);
}

async function keep() {
  const personal = {weights: await model.weights(), examples, adaptations};
  try {
    await storage.save(keys, personal);
    find('kept').textContent =
      'Your corrections and weights are kept in this browser, and only there.';
  } catch (error) {
    find('kept').textContent = `This browser keeps nothing (${error.message}).`;
  }
}

async function restore() {
  let message = 'Nothing of you is kept in this browser yet.';
  try {
    const {kept, others} = await storage.load(keys);
    if (kept) {
      kept.examples.forEach(({x, label}) => model.check(x, label));
      await model.setWeights(kept.weights);
      ({examples, adaptations} = kept);
      message = 'Your corrections and weights were kept in this browser.';
    } else if (others) {
      message = 'What this browser keeps belongs to another model and is left alone.';
    }
  } catch (error) {
    message =
      'What this browser kept cannot be used and is ignored ' + `(${error.message}).`;
  }
  find('kept').textContent = message;
}

function setReady(now) {
  isReady = now;
  for (const button of [...labels, find('clear'), find('forget')]) {
    button.disabled = !isReady;
  }
}

function addBar(digit) {
  const row = append(find('bars'), 'li');
  const [name, bar, value] = ['span', 'div', 'span'].map((tag) => append(row, tag));
  name.textContent = digit;
  value.className = 'value';
  bar.className = 'bar';
  bar.setAttribute('aria-hidden', 'true');
  for (const part of ['share', 'before']) {
    append(bar, 'div', {className: part});
  }
  return row;
}

function addLabel(digit) {
  const properties = {type: 'button', textContent: digit};
  const button = append(find('labels'), 'button', properties);
  button.addEventListener('click', () => told(digit));
  return button;
}

function showChosen(digit) {
  labels.forEach((button, i) => button.classList.toggle('chosen', i === digit));
}

/** Shows probabilities, and beside them those from before a correction, or none. */
function showPrediction(probabilities, before = null) {
  find('alert').hidden = true;
  showChosen(null);
  const most = probabilities?.indexOf(Math.max(...probabilities));
  const text = probabilities ? `I read a ${most}.` : 'Draw a digit, please.';
  setText(find('prediction'), text);
  bars.forEach((row, digit) => {
    const now = probabilities?.[digit];
    row.classList.toggle('most', digit === most);
    row.dataset.probability = now ?? '';
    row.style.setProperty('--now', now ?? 0);
    row.style.setProperty('--before', before?.[digit] ?? 0);
    row.querySelector('.before').hidden = !before;
    row.querySelector('.value').textContent =
      now === undefined ? '–' : `${(100 * now).toFixed(1)} %`;
  });
}

function showExamples() {
  find('adaptations').textContent = adaptations;
  find('corrections').replaceChildren(
    ...examples.map(({x, label}) => {
      const item = document.createElement('li');
      const image = append(item, 'canvas');
      image.setAttribute('aria-hidden', 'true');
      showImage(image, x, side, scale);
      item.append(label);
      return item;
    }),
  );
}

function showTime(id, begin) {
  find(id).textContent = `${(performance.now() - begin).toFixed(1)} ms`;
}
