// Guarded adaptation: a step that hurts the drawings held back is undone.

/**
 * Adapts a model to a lesson, from its initial weights, so that the weights depend on
 * the drawings alone and not on what was taught and taken back before.
 *
 * Learns from the drawings that are not held back, step by step, and looks for the number
 * of steps after which those held back are told best, no step included. Then takes as
 * many on all of them. Without drawings held back all steps are taken.
 *
 * @param {PersonalModel} model
 * @param {Lesson} lesson
 * @param {{rate: number, mostSteps: number}} how
 * @returns {Promise<{steps: number, mostSteps: number, numHeldBack: number,
 *   loss: ?number}>} the steps kept, and the loss of the drawings held back there.
 */
export async function learn(model, lesson, {rate, mostSteps}) {
  const {learned, heldBack} = lesson.split();
  await model.reset();
  let [steps, loss] = [lesson.signs.length > 1 ? mostSteps : 0, null];
  if (heldBack.length && steps) {
    const losses = [await lossOf(model, heldBack, lesson.labels)];
    for (let step = 1; step <= mostSteps; step++) {
      await model.adapt(learned, rate, 1);
      losses.push(await lossOf(model, heldBack, lesson.labels));
    }
    loss = Math.min(...losses);
    steps = losses.indexOf(loss);
    await model.reset();
  }
  if (steps) await model.adapt([...learned, ...heldBack], rate, steps);
  return {steps, mostSteps, numHeldBack: heldBack.length, loss};
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
