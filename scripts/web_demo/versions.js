// A new version of the model, and what was taught to the one before.

import {learn} from './guard.js';

/** Returns what a lesson is kept with, so that a later version can take it over. */
export function versionOf(content, card) {
  if (!card.family) return {};
  return {family: card.family, version: card.version, model: content};
}

/**
 * Teaches a model the drawings that were kept for an earlier version of it. What decides
 * is the loss of those held back, with each version after the steps that its guard kept
 * on the others.
 *
 * @param {PersonalModel} model the new version, with its initial weights.
 * @param {Lesson} lesson the drawings.
 * @param {?{steps: number, losses: number[]}} before what the guard of the earlier version
 *   made of them.
 * @param {object} how as for `learn`.
 * @returns {Promise<{isBetter: boolean, result: object}>} whether it tells them apart at
 *   least as well, and what its guard made of them.
 */
export async function tryVersion(model, lesson, before, how) {
  const result = await learn(model, lesson, {...how, isStale: () => false});
  const [now, then] = [result, before].map((each) => each?.losses[each.steps]);
  return {isBetter: now === undefined || then === undefined || now <= then, result};
}
