// The checksum at the start of an exported file; tff_perfedavg/ondevice/seal.py has it
// in words.

const MARKER = new TextEncoder().encode('tff_perfedavg256');
const START = 8;
const DIGEST = START + MARKER.length;
const END = DIGEST + 32;

/**
 * Returns whether a file has a checksum; those of version 0.1.0 have none. Throws if its
 * content is not what was written.
 * @param {Uint8Array} content the file.
 */
export async function check(content) {
  // Half of the marker, so that a damaged one is not taken for none.
  const alike = MARKER.filter((byte, i) => content[START + i] === byte);
  if (2 * alike.length < MARKER.length) return false;
  const blank = content.slice();
  blank.fill(0, DIGEST, END);
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', blank));
  if (content.length < END || digest.some((byte, i) => content[DIGEST + i] !== byte)) {
    throw new Error(
      'The model file is damaged or was cut short: its checksum is not that of its ' +
        'content. Copy or export it again.',
    );
  }
  return true;
}
