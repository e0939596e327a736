// What one user teaches: signs by name, each an output of the model, and drawings of them.

/** One in so many drawings of a sign is held back, for the guard to check with. */
const HELD_BACK = 3;

export class Lesson {
  /** @type {{name: string, label: number}[]} in the order in which they were invented. */
  signs = [];
  /** @type {{x: Float32Array, label: number}[]} the oldest first. */
  examples = [];
  #outputs;
  #most;

  /**
   * @param {number} outputs how many signs a model tells apart.
   * @param {number} most how many drawings are kept.
   */
  constructor(outputs, most) {
    this.#outputs = outputs;
    this.#most = most;
  }

  /** Returns a copy, which changes apart from this. */
  copy() {
    const copy = new Lesson(this.#outputs, this.#most);
    copy.signs = this.signs.map((sign) => ({...sign}));
    copy.examples = [...this.examples];
    return copy;
  }

  /**
   * Takes what was kept of a lesson. Throws if that is none, which then is of no use.
   * @param {{signs: object[], examples: object[]}} kept
   * @param {function(Float32Array, number)} check throws unless these are an example.
   */
  restore({signs, examples}, check) {
    for (const {name, label} of signs) {
      if (typeof name !== 'string' || !name) throw new Error('A sign has no name.');
      if (!examples.some((example) => example.label === label)) {
        throw new Error(`There is no drawing of "${name}".`);
      }
    }
    this.signs = signs;
    if (new Set(this.labels).size !== signs.length) throw new Error('Two signs are one.');
    if (examples.length > this.#most) throw new Error('There are too many drawings.');
    for (const {x, label} of examples) {
      check(x, label);
      this.#sign(label);
    }
    this.examples = examples;
  }

  get isFull() {
    return this.signs.length >= this.#outputs;
  }

  /** The outputs that are a sign's, in the order of the signs. */
  get labels() {
    return this.signs.map(({label}) => label);
  }

  /** Returns a sign's drawings. */
  examplesOf(label) {
    return this.examples.filter((example) => example.label === label);
  }

  /**
   * Adds a sign with its first drawing; returns the sign's label.
   * @param {string} name '' for the first of "Sign 1", "Sign 2" ... that is free.
   * @param {Float32Array} x
   */
  invent(name, x) {
    if (this.isFull) {
      throw new Error(`The model tells ${this.#outputs} signs apart; remove one first.`);
    }
    const taken = new Set(this.labels);
    const label = [...Array(this.#outputs).keys()].find((each) => !taken.has(each));
    this.signs.push({name: this.#freeName(name), label});
    this.add(x, label);
    return label;
  }

  rename(label, name) {
    const sign = this.#sign(label);
    sign.name = this.#freeName(name, sign);
  }

  /** Adds a drawing of a sign. If there are too many, one of the most drawn sign goes. */
  add(x, label) {
    this.#sign(label);
    this.examples.push({x, label});
    if (this.examples.length <= this.#most) return;
    const counts = this.labels.map((each) => this.examplesOf(each).length);
    const most = this.labels[counts.indexOf(Math.max(...counts))];
    this.examples.splice(
      this.examples.findIndex((example) => example.label === most),
      1,
    );
  }

  /** Takes a drawing back, and its sign if there is no other of it. */
  remove(index) {
    const [removed] = this.examples.splice(index, 1);
    if (!removed) throw new Error('There is no such drawing.');
    if (!this.examplesOf(removed.label).length) this.removeSign(removed.label);
  }

  removeSign(label) {
    this.signs = this.signs.filter((sign) => sign !== this.#sign(label));
    this.examples = this.examples.filter((example) => example.label !== label);
  }

  /**
   * Returns the drawings in two parts, to learn from and held back: of each sign that has
   * two or more, one in three. The order in which signs were drawn does not matter.
   */
  split() {
    const [learned, heldBack] = [[], []];
    for (const label of [...this.labels].sort()) {
      const examples = this.examplesOf(label);
      examples.forEach((example, i) => {
        const isHeldBack = examples.length > 1 && i % HELD_BACK === 1;
        (isHeldBack ? heldBack : learned).push(example);
      });
    }
    return {learned, heldBack};
  }

  #sign(label) {
    const found = this.signs.find((sign) => sign.label === label);
    if (!found) throw new Error(`${label} is no sign's label.`);
    return found;
  }

  #freeName(wanted, own = null) {
    const names = this.signs.filter((sign) => sign !== own).map(({name}) => name);
    const name = wanted.trim();
    if (names.includes(name)) throw new Error(`There is a sign "${name}" already.`);
    for (let i = 1; !name; i++) {
      if (!names.includes(`Sign ${i}`)) return `Sign ${i}`;
    }
    return name;
  }
}
