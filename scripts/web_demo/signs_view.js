// What the page of signs shows: answers beside each sign, and the drawings taught.

import {append, find, replaceIn, setText, showImage} from './dom.js';
import {SIDE} from './strokes.js';

// Below this the answer names no sign alone.
const SURE = 0.5;

/**
 * Shows the answer for what is on the paper.
 * @param {Lesson} lesson
 * @param {?{initial: number[], before: ?number[], now: number[]}} answer by sign; null
 *   if nothing is drawn or there are no two signs to tell apart.
 * @param {boolean} isDrawn whether something is on the paper.
 */
export function showAnswer(lesson, answer, isDrawn) {
  setText(find('answer'), sentence(lesson, answer, isDrawn));
  const most = answer ? answer.now.indexOf(Math.max(...answer.now)) : -1;
  find('legend').hidden = !answer;
  [...find('signs').children].forEach((row, i) => {
    row.classList.toggle('most', i === most);
    const {initial, before, now} = answer ?? {};
    row.dataset.initial = initial?.[i] ?? '';
    row.dataset.before = before?.[i] ?? '';
    row.dataset.probability = now?.[i] ?? '';
    row.style.setProperty('--initial', initial?.[i] ?? 0);
    row.style.setProperty('--last', before?.[i] ?? 0);
    row.style.setProperty('--now', now?.[i] ?? 0);
    row.querySelector('.last').hidden = !before;
    row.querySelector('.value').textContent = answer
      ? `${percent(initial[i])} → ${percent(now[i])} %`
      : '';
  });
}

function sentence({signs}, answer, isDrawn) {
  if (!signs.length) return isDrawn ? 'What do you call it?' : 'Draw a sign, please.';
  if (signs.length === 1) {
    return isDrawn ? 'Draw and name a second sign.' : 'Draw a second sign.';
  }
  if (!answer) return 'Draw one of your signs.';
  const [[first, best], [second]] = signs
    .map(({name}, i) => [name, answer.now[i]])
    .sort(([, a], [, b]) => b - a);
  return best < SURE ? `${first}, or perhaps ${second}?` : `This is ${first}.`;
}

const percent = (probability) => Math.round(100 * probability);

/**
 * Shows a row for each sign, with a button that teaches what is on the paper. A row stays
 * the same element: it may be about to be pressed.
 * @param {Lesson} lesson
 * @param {function(number)} onTeach told the sign's label.
 */
export function showSigns(lesson, onTeach) {
  const known = new Map(
    [...find('signs').children].map((row) => [Number(row.dataset.label), row]),
  );
  for (const {name, label} of lesson.signs) {
    const row = known.get(label) ?? addRow(label, onTeach);
    known.delete(label);
    const count = lesson.examplesOf(label).length;
    const drawings = `${count} drawing${count === 1 ? '' : 's'}`;
    const button = row.querySelector('button');
    button.setAttribute('aria-label', `It is ${name}: learn it. Taught ${drawings}.`);
    button.title = `Learn what is drawn as ${name}`;
    setText(row.querySelector('.sign-name'), name);
    setText(row.querySelector('.sign-count'), String(count));
  }
  for (const row of known.values()) row.remove();
  find('invent').hidden = lesson.isFull;
}

function addRow(label, onTeach) {
  const row = append(find('signs'), 'li');
  row.dataset.label = label;
  const button = append(row, 'button', {type: 'button', className: 'teach-sign'});
  append(button, 'span', {className: 'sign-name'});
  append(button, 'span', {className: 'sign-count'});
  button.addEventListener('click', () => onTeach(label));
  const bars = append(row, 'div', {className: 'bars'});
  bars.setAttribute('aria-hidden', 'true');
  for (const part of ['initial', 'now', 'last']) {
    append(bars, 'div', {className: part});
  }
  append(row, 'span', {className: 'value'});
  return row;
}

/**
 * Shows the drawings of each sign, with what can be done with them.
 * @param {Lesson} lesson
 * @param {{onRename: function(number, string), onRemove: function(number),
 *   onRemoveSign: function(number)}} listeners told a sign's label or a drawing's index.
 */
export function showDrawings(lesson, {onRename, onRemove, onRemoveSign}) {
  const groups = lesson.signs.map(({name, label}) => {
    const group = document.createElement('li');
    const head = append(group, 'div', {className: 'sign-head'});
    const input = append(head, 'input', {value: name, maxLength: 24});
    input.setAttribute('aria-label', `Name of ${name}`);
    input.addEventListener('change', () => onRename(label, input.value));
    const remove = append(head, 'button', {type: 'button', textContent: 'Remove'});
    remove.setAttribute('aria-label', `Remove ${name} and its drawings`);
    remove.addEventListener('click', () => onRemoveSign(label));
    const list = append(group, 'ul', {className: 'taught'});
    let number = 0;
    lesson.examples.forEach((example, index) => {
      if (example.label !== label) return;
      number += 1;
      const button = append(append(list, 'li'), 'button', {type: 'button'});
      button.setAttribute('aria-label', `Take back drawing ${number} of ${name}`);
      button.title = 'Take this drawing back';
      showImage(append(button, 'canvas'), example.x, SIDE);
      button.addEventListener('click', () => onRemove(index));
    });
    return group;
  });
  replaceIn(find('drawings'), groups);
  find('none').hidden = lesson.examples.length > 0;
  setText(find('count'), String(lesson.examples.length));
}

/**
 * Tells what the guard made of the last change.
 * @param {Lesson} lesson
 * @param {?{steps: number, mostSteps: number, numHeldBack: number, losses: number[]}} result
 */
export function showLearned(lesson, result) {
  setText(find('learned'), learnedSentence(lesson, result));
  setText(find('kept-steps'), result?.steps ? `${result.steps} of ${result.mostSteps}` : '–');
  setText(find('loss'), result?.losses[result.steps]?.toFixed(4) ?? '–');
}

function learnedSentence({signs, examples}, result) {
  if (signs.length < 2 || !result) return '';
  const {steps, mostSteps, numHeldBack} = result;
  if (!numHeldBack) {
    return (
      `Learned in ${steps} steps. Draw each sign again: of every three drawings one is ` +
      'held back to check the others.'
    );
  }
  const check = numHeldBack === 1 ? 'the drawing' : `the ${numHeldBack} drawings`;
  if (!steps) return `Nothing was learned: every step would have hurt ${check} held back.`;
  if (steps < mostSteps) {
    return (
      `Kept after ${steps} of ${mostSteps} steps: a further step would have hurt ` +
      `${check} held back.`
    );
  }
  return (
    `Learned ${examples.length} drawings in ${steps} steps, which ${check} held back ` +
    'confirmed.'
  );
}
