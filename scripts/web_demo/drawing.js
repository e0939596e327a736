// From a drawing to what a model was trained on.
//
// 8x8, as the UCI digits that scikit-learn has: the drawing's bounding square is
// scaled to a bitmap of 32x32, a dot being black if ink covers at least half of it;
// each of the 8x8 numbers is the share of black dots, of 16, in its 4x4 block.
//
// 28x28, as MNIST: the bounding square is scaled to 20x20 grey levels, the share of
// a pixel that ink covers, and put into the image so that its centre of mass is the
// image's, to the nearest pixel.

const INK = 0.5;

/** The images a drawing can become, by side. */
export const IMAGES = {8: toDigits, 28: toMnist};

/**
 * Returns the ink of a canvas, the opacity of each pixel in [0, 1], row by row.
 * @param {CanvasRenderingContext2D} context
 */
export function inkOf(context) {
  const {width, height} = context.canvas;
  const rgba = context.getImageData(0, 0, width, height).data;
  return Float32Array.from({length: width * height}, (_, i) => rgba[4 * i + 3] / 255);
}

/**
 * Returns the image of a drawing, `side * side` numbers in [0, 1], or null if there is
 * no drawing.
 * @param {Float32Array} ink of a square canvas.
 * @param {number} side one of those in `IMAGES`.
 */
export function toImage(ink, side) {
  const square = boundingSquare(ink, Math.sqrt(ink.length));
  return square && IMAGES[side](ink, square);
}

function toDigits(ink, square) {
  const dots = scaled(ink, square, 32);
  const image = new Float32Array(64);
  dots.forEach((dot, i) => {
    const row = Math.floor(i / 128);
    const column = Math.floor((i % 32) / 4);
    if (dot >= INK) image[8 * row + column] += 1 / 16;
  });
  return image;
}

function toMnist(ink, square) {
  const grey = scaled(ink, square, 20);
  let mass = 0;
  let x = 0;
  let y = 0;
  grey.forEach((value, i) => {
    mass += value;
    x += value * ((i % 20) + 0.5);
    y += value * (Math.floor(i / 20) + 0.5);
  });
  // All of the drawing stays inside, were its mass at an edge of it.
  const offset = (centre) => Math.min(8, Math.max(0, Math.round(14 - centre / mass)));
  const [left, top] = [offset(x), offset(y)];
  const image = new Float32Array(28 * 28);
  grey.forEach((value, i) => {
    image[28 * (top + Math.floor(i / 20)) + left + (i % 20)] = value;
  });
  return image;
}

/** The smallest square around all ink, its centre that of the ink's bounding box. */
function boundingSquare(ink, width) {
  let [left, right, top, bottom] = [width, -1, width, -1];
  ink.forEach((value, i) => {
    if (value < INK) return;
    const [x, y] = [i % width, Math.floor(i / width)];
    left = Math.min(left, x);
    right = Math.max(right, x);
    top = Math.min(top, y);
    bottom = Math.max(bottom, y);
  });
  if (right < 0) return null;
  const side = Math.max(right - left, bottom - top) + 1;
  return {
    left: (left + right + 1 - side) / 2,
    top: (top + bottom + 1 - side) / 2,
    side,
  };
}

/**
 * Returns the mean ink of each of `size * size` equal parts of a square; none is outside.
 * @param {Float32Array} ink of a square canvas.
 * @param {{left: number, top: number, side: number}} square in pixels.
 * @param {number} size
 */
export function scaled(ink, square, size) {
  const width = Math.sqrt(ink.length);
  const columns = overlaps(square.left, square.side, size, width);
  const rows = overlaps(square.top, square.side, size, width);
  const area = (square.side / size) ** 2;
  const image = new Float32Array(size * size);
  rows.forEach((row, r) => {
    columns.forEach((column, c) => {
      let sum = 0;
      for (const [y, high] of row) {
        for (const [x, wide] of column) sum += high * wide * ink[y * width + x];
      }
      image[r * size + c] = sum / area;
    });
  });
  return image;
}

/** For each of `count` equal parts of a stretch: the pixels in it, and how much. */
function overlaps(start, length, count, limit) {
  return Array.from({length: count}, (_, part) => {
    const from = Math.max(0, start + (part * length) / count);
    const to = Math.min(limit, start + ((part + 1) * length) / count);
    const pixels = [];
    for (let pixel = Math.floor(from); pixel < to; pixel++) {
      pixels.push([pixel, Math.min(to, pixel + 1) - Math.max(from, pixel)]);
    }
    return pixels;
  });
}
