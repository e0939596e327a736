// Guarded adaptation: a step that hurts the drawings held back is undone.

// A step hurts if the loss of the drawings held back is above so many times its best: they
// are few, and so is what a small difference says. (Measured: docs/on_device.md.)
const SLACK = 1.25;

/**
 * Adapts a model to a lesson, from its initial weights, so that the weights depend on
 * the drawings alone and not on what was taught and taken back before.
 *
 * Learns from the drawings that are not held back, step by step, and looks for the last
 * step that does not hurt those held back. Then takes as many steps, none perhaps, on all
 * of them. Without drawings held back all steps are taken.
 *
 * @param {PersonalModel} model
 * @param {Lesson} lesson
 * @param {{rate: number, mostSteps: number, isStale: function(): boolean}} how learning
 *   ends, with weights of no use, once it is stale.
 * @returns {Promise<?{steps: number, mostSteps: number, numHeldBack: number,
 *   losses: number[]}>} the steps kept, and the losses of the drawings held back after
 *   each step, from none on; null if it became stale.
 */
export async function learn(model, lesson, {rate, mostSteps, isStale}) {
  const {learned, heldBack} = lesson.split();
  let steps = lesson.signs.length > 1 ? mostSteps : 0;
  const losses = [];
  if (heldBack.length && steps) {
    const check = async () => losses.push(await lossOf(model, heldBack, lesson.labels));
    await model.reset();
    await check();
    await takeSteps(model, learned, mostSteps, {rate, isStale, afterEach: check});
    steps = losses.findLastIndex((loss) => loss <= SLACK * Math.min(...losses));
  }
  await model.reset();
  await takeSteps(model, [...learned, ...heldBack], steps, {rate, isStale});
  if (isStale()) return null;
  return {steps, mostSteps, numHeldBack: heldBack.length, losses};
}

async function takeSteps(model, examples, count, {rate, isStale, afterEach}) {
  for (let step = 0; step < count && !isStale(); step++) {
    await model.adapt(examples, rate, 1);
    await afterEach?.();
    // The page can be drawn on meanwhile.
    await new Promise((resolve) => setTimeout(resolve));
  }
}

/** Returns the mean cross-entropy of examples, of the labels that are a sign's. */
async function lossOf(model, examples, labels) {
  let sum = 0;
  for (const {x, label} of examples) {
    const probabilities = among(labels, await model.infer(x));
    sum -= Math.log(Math.max(probabilities[labels.indexOf(label)], Number.MIN_VALUE));
  }
  return sum / examples.length;
}

/** Returns the probabilities of some labels, which then add up to 1. */
export function among(labels, probabilities) {
  const some = labels.map((label) => probabilities[label]);
  const sum = some.reduce((a, b) => a + b, 0);
  return some.map((each) => (sum > 0 ? each / sum : 1 / labels.length));
}
