// An exported model and one user's weights, run by LiteRT in the browser.

import {loadAndCompile, loadLiteRt, Tensor} from '@litertjs/core';

import * as seal from './seal.js';

const UNUSED = {unused: new Float32Array(1)};
const TYPES = {float32: Float32Array, int32: Int32Array};
const MAX_INT32 = 2 ** 31 - 1;
// The first format of files whose `applied` says that the model can answer afterwards.
const CHECKED_FORMAT = 2;

let loading;

/** Its methods may be called at any time; calls wait for each other. */
export class PersonalModel {
  #compiled;
  #isChecked;
  #last = Promise.resolve();
  // Rows that the initial model answers: where it does not any more, the personal
  // weights are to blame.
  #probes = [];

  /**
   * Loads a file that `export_tflite` wrote; starts from its initial weights. Throws if
   * the file is damaged.
   * @param {Uint8Array} content the file.
   * @param {string} runtime URL of the directory of LiteRT's wasm files.
   */
  static async load(content, runtime) {
    const model = new PersonalModel();
    const hasChecksum = await seal.check(content);
    // Once a page: a second call throws.
    await (loading ??= loadLiteRt(runtime));
    // The CPU: its arithmetic is that of the other platforms, and a GPU has no
    // variables.
    model.#compiled = await loadAndCompile(content, {accelerator: 'wasm'});
    if (!('describe' in model.#compiled.signatures)) {
      throw new Error('This file was not exported by tff_perfedavg.');
    }
    const {card} = await model.#call('describe', UNUSED);
    /** What the file says of itself. */
    model.card = JSON.parse(new TextDecoder().decode(card));
    model.#isChecked = model.card.format_version >= CHECKED_FORMAT;
    if (model.#isChecked && !hasChecksum) {
      throw new Error('The model file is damaged: its checksum is missing.');
    }
    for (const valueOf of [() => 0, () => 1, (i) => (0.618 * i) % 1]) {
      const probe = Float32Array.from({length: model.#rowSize}, (_, i) => valueOf(i));
      if (await model.#answers([probe])) model.#probes.push(probe);
    }
    return model;
  }

  /**
   * Returns the probability of each class. Throws if one is not finite.
   * @param {Float32Array} x one example, flat.
   */
  async infer(x) {
    return this.#exclusive(async () => {
      const probabilities = await this.#infer(x);
      if (!probabilities.every(Number.isFinite)) {
        throw new Error(
          'The answer is not finite: the example or the personal weights are too ' +
            'large. Go back to the initial weights.',
        );
      }
      return probabilities;
    });
  }

  /** Throws unless this is an example the model could learn from. */
  check(x, label) {
    if (!(x instanceof Float32Array) || x.length !== this.#rowSize) {
      throw new Error(`An example is ${this.#rowSize} numbers; this has ${x?.length}.`);
    }
    const classes = this.card.num_classes;
    if (!Number.isInteger(label) || label < 0 || label >= classes) {
      throw new Error(`${label} is no class; they are 0 to ${classes - 1}.`);
    }
  }

  /**
   * Takes gradient steps on a batch; returns its loss before the first. Throws, and
   * leaves the weights, if they or the answers for the batch would not be finite.
   * @param {{x: Float32Array, label: number}[]} examples at most `batch_size`.
   * @param {number} learningRate
   * @param {number} numSteps at most the card's `max_adapt_steps`.
   */
  async adapt(examples, learningRate, numSteps) {
    return this.#exclusive(() => this.#adapt(examples, learningRate, numSteps));
  }

  async #adapt(examples, learningRate, numSteps) {
    const rows = this.card.batch_size;
    // A row whose label is -1 counts for nothing.
    const y = new Int32Array(rows).fill(-1);
    examples.forEach(({x, label}, i) => {
      this.check(x, label);
      y[i] = label;
    });
    const before = this.#isChecked ? null : await this.#weights();
    const {loss, applied} = await this.#call('adapt_steps', {
      x: this.#batch(examples.map(({x}) => x), rows),
      y,
      learning_rate: Float32Array.of(positive('Learning rate', learningRate)),
      num_steps: Int32Array.of(
        wholePositive('Steps', numSteps, this.card.max_adapt_steps ?? MAX_INT32),
      ),
    });
    let isApplied = applied[0] === 1;
    if (isApplied && !this.#isChecked) {
      // A file of version 0.1.0 looks at the weights alone.
      isApplied = await this.#answers(examples.map(({x}) => x));
      if (!isApplied) await this.#setWeights(before);
    }
    if (!isApplied) {
      throw new Error(
        `Steps of ${learningRate} led to weights or answers that are not finite; ` +
          'the weights are as before.',
      );
    }
    return loss[0];
  }

  /** Puts the file's initial weights back. */
  async reset() {
    await this.#exclusive(() => this.#call('reset', UNUSED));
  }

  /** Returns the weights in their order, each flat. */
  async weights() {
    return this.#exclusive(() => this.#weights());
  }

  /**
   * Replaces the weights. Throws, and leaves them, if the model would not answer.
   * @param {Float32Array[]} weights as `weights` returned them.
   */
  async setWeights(weights) {
    await this.#exclusive(async () => {
      const before = await this.#weights();
      await this.#setWeights(weights);
      if (!(await this.#answers(this.#probes))) {
        await this.#setWeights(before);
        throw new Error('The weights are so large that answers are not finite.');
      }
    });
  }

  /** Runs a task when those before it have ended: the model has one state. */
  #exclusive(task) {
    const result = this.#last.then(task);
    this.#last = result.catch(() => {});
    return result;
  }

  async #infer(x) {
    const {infer_batch_size: rows, num_classes: classes} = this.card;
    const answer = await this.#call('infer', {x: this.#batch([x], rows)});
    return Object.values(answer)[0].slice(0, classes ?? undefined);
  }

  /** Returns whether all answers for examples are finite. */
  async #answers(examples) {
    for (const x of examples) {
      if (!(await this.#infer(x)).every(Number.isFinite)) return false;
    }
    return true;
  }

  async #weights() {
    const byName = await this.#call('get_weights', UNUSED);
    return Object.keys(byName).map((_, i) => byName[`weight_${i}`]);
  }

  async #setWeights(weights) {
    const count = this.#compiled.signatures.set_weights.getInputDetails().length;
    if (!Array.isArray(weights) || weights.length !== count) {
      throw new Error(`The model has ${count} weights.`);
    }
    const named = weights.map((weight, i) => [`weight_${i}`, weight]);
    await this.#call('set_weights', Object.fromEntries(named));
  }

  get #rowSize() {
    return this.card.input_shape.reduce((a, b) => a * b, 1);
  }

  #batch(examples, rows) {
    if (examples.length < 1 || examples.length > rows) {
      throw new Error(`${examples.length} examples were given; 1 to ${rows} fit.`);
    }
    const batch = new Float32Array(rows * this.#rowSize);
    examples.forEach((x, i) => {
      this.check(x, 0);
      batch.set(x, i * this.#rowSize);
    });
    return batch;
  }

  /** Runs a signature on flat arrays, checked, and returns flat arrays. */
  async #call(name, inputs) {
    const signature = this.#compiled.signatures[name];
    const tensors = {};
    let answer = {};
    try {
      for (const {name: key, dtype, shape} of signature.getInputDetails()) {
        const data = inputs[key];
        const length = shape.reduce((a, b) => a * b, 1);
        if (!(data instanceof TYPES[dtype]) || data.length !== length) {
          throw new Error(`${name}: ${key} must be ${length} numbers, ${dtype}.`);
        }
        if (!data.every(Number.isFinite)) {
          throw new Error(`${name}: ${key} has a number that is not finite.`);
        }
        tensors[key] = new Tensor(data, shape);
      }
      answer = await signature.run(tensors);
      const copies = {};
      for (const [key, tensor] of Object.entries(answer)) {
        copies[key] = await tensor.data();
      }
      return copies;
    } finally {
      // They are memory of the runtime, which nothing else frees.
      for (const tensor of [...Object.values(tensors), ...Object.values(answer)]) {
        tensor.delete();
      }
    }
  }
}

function positive(name, value) {
  if (!Number.isFinite(value) || value <= 0) {
    throw new Error(`${name} is ${value}; it must be a number above 0.`);
  }
  return value;
}

function wholePositive(name, value, most) {
  if (!Number.isInteger(value) || value < 1 || value > most) {
    throw new Error(`${name}: ${value} is not a whole number from 1 to ${most}.`);
  }
  return value;
}
