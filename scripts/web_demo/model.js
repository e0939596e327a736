// An exported model and one user's weights, run by LiteRT in the browser.

import {loadAndCompile, loadLiteRt, Tensor} from '@litertjs/core';

const UNUSED = {unused: new Float32Array(1)};
const TYPES = {float32: Float32Array, int32: Int32Array};

export class PersonalModel {
  #compiled;

  /**
   * Loads a file that `export_tflite` wrote; starts from its initial weights.
   * @param {Uint8Array} content the file.
   * @param {string} runtime URL of the directory of LiteRT's wasm files.
   */
  static async load(content, runtime) {
    const model = new PersonalModel();
    await loadLiteRt(runtime);
    // The CPU: its arithmetic is that of the other platforms, and a GPU has no
    // variables.
    model.#compiled = await loadAndCompile(content, {accelerator: 'wasm'});
    if (!('describe' in model.#compiled.signatures)) {
      throw new Error('This file was not exported by tff_perfedavg.');
    }
    const {card} = await model.#call('describe', UNUSED);
    /** What the file says of itself. */
    model.card = JSON.parse(new TextDecoder().decode(card));
    return model;
  }

  /**
   * Returns the probability of each class.
   * @param {Float32Array} x one example, flat.
   */
  async infer(x) {
    const {infer_batch_size: rows, num_classes: classes} = this.card;
    const {probabilities} = await this.#call('infer', {x: this.#batch([x], rows)});
    return probabilities.slice(0, classes);
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
   * Takes gradient steps on a batch; returns its loss before the first.
   * @param {{x: Float32Array, label: number}[]} examples at most `batch_size`.
   * @param {number} learningRate
   * @param {number} numSteps
   */
  async adapt(examples, learningRate, numSteps) {
    const rows = this.card.batch_size;
    // A row whose label is -1 counts for nothing.
    const y = new Int32Array(rows).fill(-1);
    examples.forEach(({x, label}, i) => {
      this.check(x, label);
      y[i] = label;
    });
    const {loss, applied} = await this.#call('adapt_steps', {
      x: this.#batch(examples.map(({x}) => x), rows),
      y,
      learning_rate: Float32Array.of(positive('Learning rate', learningRate)),
      num_steps: Int32Array.of(wholePositive('Steps', numSteps)),
    });
    if (!applied[0]) {
      throw new Error(
        `Steps of ${learningRate} led to weights that are not finite; ` +
          'the weights are as before.',
      );
    }
    return loss[0];
  }

  /** Puts the file's initial weights back. */
  async reset() {
    await this.#call('reset', UNUSED);
  }

  /** Returns the weights in their order, each flat. */
  async weights() {
    const byName = await this.#call('get_weights', UNUSED);
    return Object.keys(byName).map((_, i) => byName[`weight_${i}`]);
  }

  /**
   * Replaces the weights.
   * @param {Float32Array[]} weights as `weights` returned them.
   */
  async setWeights(weights) {
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

function wholePositive(name, value) {
  if (!Number.isInteger(value) || value < 1) {
    throw new Error(`${name}: ${value} is not a whole number of at least 1.`);
  }
  return value;
}
