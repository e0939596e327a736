// The page of signs: what is drawn, what the model makes of it, what it is taught.

import {
  confirmed,
  download,
  find,
  queueAfter,
  report,
  RUNTIME,
  setText,
  showImage,
} from './dom.js';
import {among, learn} from './guard.js';
import {Lesson} from './lesson.js';
import {PersonalModel} from './model.js';
import {keepOffline} from './offline.js';
import {Paper} from './paper.js';
import {showAnswer, showDrawings, showLearned, showSigns} from './signs_view.js';
import * as storage from './storage.js';
import {SIDE, toSign} from './strokes.js';
import {tryVersion, versionOf} from './versions.js';

// The width of a sign's line, of a paper of 280.
const LINE = 12;
// For cards that do not say how many steps the model was trained to take.
const DEFAULT_STEPS = 20;

// The same file three times: as it was exported, as it was before the last drawing, and
// as it is now.
let models;
let keys;
let how;
// With what a lesson is kept, for later versions of the model.
let version = {};
// What the user teaches, and what of it the model has learned.
let lesson;
let learned;
let changes = 0;
// What the guard made of the lesson, and whether there was another before.
let result = null;
let hasBefore = false;
// What is on the paper, as the model sees it.
let current = null;
let isReady = false;
// Whether the paper is about to be looked at, and the model to be asked.
let isReading = false;
let isAsked = false;

const paper = new Paper(find('paper'), find('pen'), {
  line: LINE,
  onChange: readPaperSoon,
  onDigit: (digit) => {
    const sign = lesson?.signs[digit - 1];
    if (sign) teachCurrent(sign.label);
  },
});
find('clear').addEventListener('click', () => paper.clear());
find('undo').addEventListener('click', () => undo().catch(report));
find('forget').addEventListener('click', () => askAndReset().catch(report));
find('invent').addEventListener('submit', (event) => {
  event.preventDefault();
  const name = find('name').value;
  // At once: the next sign's may be typed while this one is learned.
  if (teachCurrent(name)) find('name').value = '';
});
const ready = start();
const exclusive = queueAfter(ready);
const offline = ready.then(keepOffline);
ready.catch((error) => {
  setText(find('answer'), 'There is no model to ask.');
  report(error);
});
offline.then(
  (isKept) => {
    if (isKept) setText(find('offline'), 'This page works without a network now.');
  },
  (error) => console.warn(error.message),
);

/** What a script, a test above all, can do with the page. */
window.demo = {
  ready,
  offline,
  predict,
  teach,
  undo,
  remove,
  removeSign,
  rename,
  reset,
  weights,
  image: () => toSign(paper.strokes),
  lesson: () => lesson,
  result: () => result,
  keys: () => keys,
};

async function start() {
  showChoices();
  await use(await download('signs.tflite'));
  const {card} = models.now;
  lesson = learned = new Lesson(card.num_classes, card.batch_size);
  await restore();
  const own = models.now.card;
  const names = [own.model, own.dataset, own.family && `version ${own.version}`];
  setText(find('model'), names.filter(Boolean).join(', '));
  setText(find('rate'), String(how.rate));
  // Without this, the first time to answer shown would be that of a cold runtime.
  await models.now.infer(new Float32Array(SIDE * SIDE));
  showLesson();
  isReady = true;
  await readPaper();
}

/** Takes a file into use, with its initial weights. */
async function use(content) {
  const load = () => PersonalModel.load(content, RUNTIME);
  models = {now: await load(), before: await load(), initial: await load()};
  const {card} = models.now;
  if (!card.own_labels || card.input_shape.reduce((a, b) => a * b, 1) !== SIDE * SIDE) {
    throw new Error(
      `The file's model tells ${card.num_classes} classes from inputs of shape ` +
        `[${card.input_shape}]; this page needs one of labels of its user's own, 28x28.`,
    );
  }
  keys = await storage.keysOf(content, card);
  version = versionOf(content, card);
  how = {
    rate: card.inner_learning_rate ?? 0.1,
    mostSteps: Math.max(DEFAULT_STEPS, card.adaptation?.num_steps ?? 0),
  };
}

/** Returns, by sign, the probabilities of an image. */
async function predict(image) {
  return exclusive(() => answer(Float32Array.from(image)));
}

/**
 * Teaches an image.
 * @param {number[]} image
 * @param {string|number} sign the name of a new sign, or the label of one that is known.
 */
async function teach(image, sign) {
  await ready;
  const x = Float32Array.from(image);
  models.now.check(x, 0);
  return change((next) =>
    typeof sign === 'string' ? next.invent(sign, x) : next.add(x, sign),
  );
}

/** Takes back the last drawing. */
async function undo() {
  await change((next) => next.remove(next.examples.length - 1));
  // It can be taught as something else.
  paper.resume();
  showChoices();
}

/** Takes back a drawing. */
async function remove(index) {
  return change((next) => next.remove(index));
}

/** Takes back a sign and all its drawings. */
async function removeSign(label) {
  return change((next) => next.removeSign(label));
}

/** Gives a sign another name. */
async function rename(label, name) {
  await ready;
  lesson.rename(label, name);
  showLesson();
  return exclusive(async () => {
    await readPaper();
    // What is still being learned is kept when it is.
    if (lesson === learned) await keep();
  });
}

/** Goes back to the initial weights and forgets what this browser keeps. */
async function reset() {
  return exclusive(async () => {
    for (const model of Object.values(models)) await model.reset();
    lesson = learned = new Lesson(models.now.card.num_classes, models.now.card.batch_size);
    changes += 1;
    setBusy(false);
    [result, hasBefore] = [null, false];
    await storage.remove(keys);
    paper.clear();
    showLesson();
    await readPaper();
    setText(find('kept'), 'Forgotten: the model is as it was at first.');
  });
}

async function askAndReset() {
  if (await confirmed(find('ask'))) await reset();
}

/** Returns the weights, lists of numbers. */
async function weights() {
  return exclusive(async () =>
    (await models.now.weights()).map((weight) => [...weight]),
  );
}

/** Changes the lesson, at once, and learns it; if that fails, all stays as it was. */
async function change(alter) {
  const next = lesson.copy();
  alter(next);
  lesson = next;
  changes += 1;
  const own = changes;
  showLesson();
  setBusy(true);
  // What changes meanwhile is learned with this, not after it.
  return exclusive(() => learnLesson(next, () => own !== changes));
}

async function learnLesson(next, isStale) {
  if (isStale()) return null;
  const before = await models.now.weights();
  const begin = performance.now();
  let found;
  try {
    found = await learn(models.now, next, {...how, isStale});
  } catch (error) {
    await models.now.setWeights(before);
    if (!isStale()) setLesson(learned);
    throw error;
  }
  if (!found) {
    await models.now.setWeights(before);
    return null;
  }
  showTime('adapt-time', begin);
  await models.before.setWeights(before);
  hasBefore = learned.signs.length > 1;
  [learned, result] = [next, found];
  setBusy(false);
  find('alert').hidden = true;
  showLesson();
  await readPaper();
  await keep();
  return result;
}

function setLesson(next) {
  lesson = next;
  setBusy(false);
  showLesson();
  readPaperSoon();
}

/**
 * Teaches what is on the paper; the next stroke begins a new drawing.
 * @returns {boolean} whether there was something to teach.
 */
function teachCurrent(sign) {
  if (!current || paper.isDone) return false;
  paper.finish();
  showChoices();
  teach(current, sign).catch((error) => {
    paper.resume();
    showChoices();
    if (typeof sign === 'string') find('name').value ||= sign;
    report(error);
  });
  return true;
}

/** Answers for what is on the paper, once a frame at most. */
function readPaperSoon() {
  if (isReading) return;
  isReading = true;
  requestAnimationFrame(() => {
    isReading = false;
    // At once, so that it can be taught while the model is still learning.
    seePaper();
    if (!isAsked) {
      isAsked = true;
      exclusive(readPaper).catch(report);
    }
  });
}

function seePaper() {
  current = toSign(paper.strokes);
  showImage(find('seen'), current, SIDE);
  showChoices();
}

async function readPaper() {
  isAsked = false;
  seePaper();
  const isAnswered = current && lesson.signs.length > 1;
  showAnswer(lesson, isAnswered ? await answer(current) : null, current !== null);
}

/** Returns the probabilities by sign of an image: at first, before and now. */
async function answer(x) {
  const begin = performance.now();
  const now = among(lesson.labels, await models.now.infer(x));
  showTime('infer-time', begin);
  const initial = among(lesson.labels, await models.initial.infer(x));
  const before = hasBefore && among(lesson.labels, await models.before.infer(x));
  return {initial, before: before || null, now};
}

async function keep() {
  const {signs, examples} = lesson;
  const [now, before] = [await models.now.weights(), await models.before.weights()];
  try {
    const taught = {signs, examples, result, hasBefore};
    await storage.save(keys, {...taught, weights: now, before, ...version});
    setText(
      find('kept'),
      'Your signs, drawings and weights are kept in this browser, and only there.',
    );
  } catch (error) {
    setText(find('kept'), `This browser keeps nothing (${error.message}).`);
  }
}

async function restore() {
  let message = 'Nothing of you is kept in this browser yet.';
  try {
    const {kept, others} = await storage.load(keys);
    const earlier = kept ? undefined : await storage.loadEarlier(models.now.card);
    if (kept) {
      await takeUp(kept);
      message = 'Your signs, drawings and weights were kept in this browser.';
    } else if (earlier) {
      message = await takeOver(earlier);
    } else if (others) {
      message = 'What this browser keeps belongs to another model and is left alone.';
    }
  } catch (error) {
    message = `What this browser kept cannot be used and is ignored (${error.message}).`;
  }
  setText(find('kept'), message);
}

/** Goes on with what was kept for the model in use. */
async function takeUp(kept) {
  const restored = restoredLesson(kept);
  await models.before.setWeights(kept.before);
  await models.now.setWeights(kept.weights);
  lesson = learned = restored;
  ({result, hasBefore} = kept);
}

/** Teaches this version what the one before was taught, or goes on with that one. */
async function takeOver({key, kept}) {
  const taught = restoredLesson(kept);
  const found = await tryVersion(models.now, taught, kept.result, how);
  if (!found.isBetter) {
    await use(kept.model);
    await takeUp(kept);
    return (
      `Version ${kept.version} of the model stays in use for you: a newer one told the ` +
      'drawings held back apart less well. It is tried again at your next visit.'
    );
  }
  lesson = learned = taught;
  [result, hasBefore] = [found.result, false];
  await keep();
  await storage.remove([key]);
  return 'A new version of the model has learned your drawings; they are kept here.';
}

function restoredLesson(kept) {
  const restored = lesson.copy();
  restored.restore(kept, (x, label) => models.now.check(x, label));
  return restored;
}

function showLesson() {
  showSigns(lesson, teachCurrent);
  showDrawings(lesson, {
    onRename: (label, name) => rename(label, name).catch(reportAndShow),
    onRemove: (index) => remove(index).catch(report),
    onRemoveSign: (label) => removeSign(label).catch(report),
  });
  if (lesson === learned) showLearned(lesson, result);
}

function reportAndShow(error) {
  showLesson();
  readPaperSoon();
  report(error);
}

function setBusy(isBusy) {
  document.body.setAttribute('aria-busy', String(isBusy));
  if (isBusy && lesson.signs.length > 1) setText(find('learned'), 'Learning …');
}

/** Enables what can be done now. */
function showChoices() {
  const canTeach = isReady && current !== null && !paper.isDone;
  for (const button of document.querySelectorAll('.teach-sign, #add')) {
    button.disabled = !canTeach;
  }
  find('clear').disabled = !isReady || !paper.strokes.length;
  const isTaught = lesson?.examples.length > 0;
  for (const id of ['undo', 'forget']) find(id).disabled = !isReady || !isTaught;
}

function showTime(id, begin) {
  find(id).textContent = `${(performance.now() - begin).toFixed(1)} ms`;
}
