// A canvas that mouse, finger, stylus and keyboard draw on, in opaque white.

const LINE = 26;
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
  #onChange;
  #isDone = false;
  #pointer = null;
  #keys = {x: 140, y: 60, isDown: false};

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {HTMLElement} pen shows where the keyboard's pen is.
   * @param {{onChange: function(), onDigit: function(number)}} listeners told of
   *   changes of the drawing and of digits typed.
   */
  constructor(canvas, pen, {onChange, onDigit}) {
    this.#canvas = canvas;
    this.#pen = pen;
    this.#onChange = onChange;
    this.context = canvas.getContext('2d', {willReadFrequently: true});
    this.context.lineWidth = LINE;
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
    this.context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#isDone = false;
    this.#onChange();
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
    this.#line(this.#pointer, this.#pointer);
  }

  #drag(event) {
    if (!event.isPrimary || !this.#pointer) return;
    // A fast hand makes several moves a frame.
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) {
      const place = this.#place(each);
      this.#line(this.#pointer, place);
      this.#pointer = place;
    }
  }

  #place(event) {
    const box = this.#canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) * this.#canvas.width) / box.width,
      y: ((event.clientY - box.top) * this.#canvas.height) / box.height,
    };
  }

  #type(event, onDigit) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = this.#keys;
    if (event.key in ARROWS) {
      const [x, y] = ARROWS[event.key];
      const to = {x: inside(keys.x + x), y: inside(keys.y + y)};
      if (keys.isDown) this.#line(keys, to);
      Object.assign(keys, to);
    } else if (event.key === ' ') {
      keys.isDown = !keys.isDown;
      if (keys.isDown) this.#line(keys, keys);
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
    this.#pen.style.left = `${(100 * x) / this.#canvas.width}%`;
    this.#pen.style.top = `${(100 * y) / this.#canvas.height}%`;
  }

  #line(from, to) {
    if (this.#isDone) this.clear();
    this.context.beginPath();
    if (from.x === to.x && from.y === to.y) {
      // A line of no length leaves no ink.
      this.context.arc(to.x, to.y, LINE / 2, 0, 2 * Math.PI);
      this.context.fill();
    } else {
      this.context.moveTo(from.x, from.y);
      this.context.lineTo(to.x, to.y);
      this.context.stroke();
    }
    this.#onChange();
  }
}

function inside(place) {
  return Math.min(280 - LINE / 2, Math.max(LINE / 2, place));
}
