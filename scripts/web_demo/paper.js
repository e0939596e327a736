// A canvas that mouse, finger, stylus and keyboard draw on, in opaque white.

// A paper's side; its canvas may have more pixels.
const SIDE = 280;
const STEP = 10;
const ARROWS = {
  ArrowLeft: [-STEP, 0],
  ArrowRight: [STEP, 0],
  ArrowUp: [0, -STEP],
  ArrowDown: [0, STEP],
};

export class Paper {
  #canvas;
  #pen;
  #line;
  #onChange;
  #isDone = false;
  #pointer = null;
  #keys = {x: 140, y: 60, isDown: false};

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {HTMLElement} pen shows where the keyboard's pen is.
   * @param {{line: number, onChange: function(), onDigit: function(number)}} options
   *   the width of a line, of a paper of 280; and who is told of changes of the drawing
   *   and of digits typed.
   */
  constructor(canvas, pen, {line, onChange, onDigit}) {
    this.#canvas = canvas;
    this.#pen = pen;
    this.#line = line;
    this.#onChange = onChange;
    /** The drawing's strokes, each a list of points [x, y] in sides of the paper. */
    this.strokes = [];
    this.context = canvas.getContext('2d', {willReadFrequently: true});
    this.context.scale(canvas.width / SIDE, canvas.height / SIDE);
    this.context.lineWidth = line;
    this.context.lineCap = this.context.lineJoin = 'round';
    this.context.strokeStyle = this.context.fillStyle = '#fff';
    canvas.addEventListener('pointerdown', (event) => this.#press(event));
    canvas.addEventListener('pointermove', (event) => this.#drag(event));
    for (const type of ['pointerup', 'pointercancel']) {
      canvas.addEventListener(type, () => (this.#pointer = null));
    }
    canvas.addEventListener('keydown', (event) => this.#type(event, onDigit));
    canvas.addEventListener('blur', () => {
      this.#keys.isDown = false;
      pen.hidden = true;
    });
  }

  /** Removes the drawing. */
  clear() {
    this.context.clearRect(0, 0, SIDE, SIDE);
    this.strokes = [];
    this.#isDone = false;
    this.#onChange();
  }

  /** Whether the next stroke begins a new drawing. */
  get isDone() {
    return this.#isDone;
  }

  /** Goes on with the drawing that was left. */
  resume() {
    this.#isDone = false;
  }

  /** Leaves the drawing until the next stroke, which begins a new one. */
  finish() {
    this.#isDone = true;
    this.#pointer = null;
    this.#keys.isDown = false;
    this.#showPen();
  }

  #press(event) {
    if (!event.isPrimary || event.button !== 0) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#pen.hidden = true;
    this.#pointer = this.#place(event);
    this.#begin(this.#pointer);
  }

  #drag(event) {
    if (!event.isPrimary || !this.#pointer) return;
    // A fast hand makes several moves a frame.
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) {
      const place = this.#place(each);
      this.#draw(this.#pointer, place);
      this.#pointer = place;
    }
  }

  #place(event) {
    const box = this.#canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) * SIDE) / box.width,
      y: ((event.clientY - box.top) * SIDE) / box.height,
    };
  }

  #type(event, onDigit) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = this.#keys;
    if (event.key in ARROWS) {
      const [x, y] = ARROWS[event.key];
      const to = {x: this.#inside(keys.x + x), y: this.#inside(keys.y + y)};
      if (keys.isDown) this.#draw(keys, to);
      Object.assign(keys, to);
    } else if (event.key === ' ') {
      keys.isDown = !keys.isDown;
      if (keys.isDown) this.#begin(keys);
    } else if (event.key === 'Delete' || event.key === 'Backspace') {
      this.clear();
    } else if (/^[0-9]$/.test(event.key)) {
      onDigit(Number(event.key));
    } else {
      return;
    }
    event.preventDefault();
    this.#showPen();
  }

  #showPen() {
    const {x, y, isDown} = this.#keys;
    this.#pen.hidden = !this.#canvas.matches(':focus-visible');
    this.#pen.classList.toggle('down', isDown);
    this.#pen.style.left = `${(100 * x) / SIDE}%`;
    this.#pen.style.top = `${(100 * y) / SIDE}%`;
  }

  #begin(place) {
    if (this.#isDone) this.clear();
    this.strokes.push([]);
    this.#draw(place, place);
  }

  #draw(from, to) {
    // The drawing was finished or cleared while the pen was down.
    if (this.#isDone || !this.strokes.length) {
      this.#begin(to);
      return;
    }
    this.strokes.at(-1).push([to.x / SIDE, to.y / SIDE]);
    this.context.beginPath();
    if (from.x === to.x && from.y === to.y) {
      // A line of no length leaves no ink.
      this.context.arc(to.x, to.y, this.#line / 2, 0, 2 * Math.PI);
      this.context.fill();
    } else {
      this.context.moveTo(from.x, from.y);
      this.context.lineTo(to.x, to.y);
      this.context.stroke();
    }
    this.#onChange();
  }

  #inside(place) {
    return Math.min(SIDE - this.#line / 2, Math.max(this.#line / 2, place));
  }
}
