// From strokes to an image like those of Omniglot, whose characters were drawn with a thin
// pen as bitmaps of 105x105.
//
// The strokes' bounding box is scaled, its proportions kept, so that the longer side has
// the median length of Omniglot's drawings, and centred where theirs are. A dot of the
// bitmap is black if its centre is within half a pen's width of a stroke. Each of the
// 28x28 numbers is the share of its 3.75x3.75 dots that is black.

import {scaled} from './drawing.js';

const DOTS = 105;
/** The side of the images. */
export const SIDE = 28;
// Measured on the 4840 drawings of Omniglot's small background sets: width of the pen,
// median of the longer side of its path, and of its centre, in dots.
const PEN = 4.7;
const LENGTH = 63.3;
const CENTRE = 50.6;
// A drawing below this share of the paper is a dot, and stays small.
const SMALLEST = 0.08;

/**
 * Returns the image of strokes, 28x28 numbers in [0, 1], or null if there are none.
 * @param {number[][][]} strokes each a list of points [x, y], in sides of the paper.
 */
export function toSign(strokes) {
  const points = strokes.flat();
  if (!points.length) return null;
  const [x, y] = [0, 1].map((axis) => range(points, axis));
  const scale = LENGTH / Math.max(x.length, y.length, SMALLEST);
  const toDots = (point) => [
    CENTRE + (point[0] - x.centre) * scale,
    CENTRE + (point[1] - y.centre) * scale,
  ];
  const ink = new Float32Array(DOTS * DOTS);
  for (const stroke of strokes) {
    const path = stroke.map(toDots);
    path.forEach((point, i) => drawLine(ink, path[Math.max(0, i - 1)], point));
  }
  return scaled(ink, {left: 0, top: 0, side: DOTS}, SIDE);
}

function range(points, axis) {
  let [low, high] = [Infinity, -Infinity];
  for (const point of points) {
    low = Math.min(low, point[axis]);
    high = Math.max(high, point[axis]);
  }
  return {length: high - low, centre: (low + high) / 2};
}

function drawLine(ink, from, to) {
  const [across, down] = [0, 1].map((axis) => [
    Math.max(0, Math.floor(Math.min(from[axis], to[axis]) - PEN / 2)),
    Math.min(DOTS - 1, Math.ceil(Math.max(from[axis], to[axis]) + PEN / 2)),
  ]);
  for (let y = down[0]; y <= down[1]; y++) {
    for (let x = across[0]; x <= across[1]; x++) {
      const distance = squaredDistance([x + 0.5, y + 0.5], from, to);
      if (distance <= (PEN / 2) ** 2) ink[DOTS * y + x] = 1;
    }
  }
}

/** The squared distance of a point from a line between two points. */
function squaredDistance([x, y], [fromX, fromY], [toX, toY]) {
  const [wide, high] = [toX - fromX, toY - fromY];
  const squared = wide * wide + high * high;
  const along = squared && ((x - fromX) * wide + (y - fromY) * high) / squared;
  const part = Math.min(1, Math.max(0, along));
  return (x - fromX - part * wide) ** 2 + (y - fromY - part * high) ** 2;
}
