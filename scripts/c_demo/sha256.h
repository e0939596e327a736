// SHA-256 (FIPS 180-4), so that a model file can be checked without a library.

#ifndef TFF_PERFEDAVG_C_DEMO_SHA256_H_
#define TFF_PERFEDAVG_C_DEMO_SHA256_H_

#include <stdint.h>
#include <string.h>

static uint32_t sha256_rotate(uint32_t x, int count) {
  return x >> count | x << (32 - count);
}

static void sha256_block(uint32_t state[8], const uint8_t block[64]) {
  static const uint32_t constants[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
      0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
      0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
      0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
      0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
      0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
      0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
      0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
      0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
      0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
      0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
  uint32_t w[64];
  for (int i = 0; i < 16; ++i)
    w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
           (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
  for (int i = 16; i < 64; ++i) {
    const uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + w[i - 7] +
           (sha256_rotate(a, 7) ^ sha256_rotate(a, 18) ^ a >> 3) +
           (sha256_rotate(b, 17) ^ sha256_rotate(b, 19) ^ b >> 10);
  }
  uint32_t s[8];
  memcpy(s, state, sizeof(s));
  for (int i = 0; i < 64; ++i) {
    const uint32_t e = s[4], a = s[0];
    const uint32_t first =
        s[7] + (sha256_rotate(e, 6) ^ sha256_rotate(e, 11) ^ sha256_rotate(e, 25)) +
        ((e & s[5]) ^ (~e & s[6])) + constants[i] + w[i];
    const uint32_t second =
        (sha256_rotate(a, 2) ^ sha256_rotate(a, 13) ^ sha256_rotate(a, 22)) +
        ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
    memmove(s + 1, s, 7 * sizeof(*s));
    s[4] += first;
    s[0] = first + second;
  }
  for (int i = 0; i < 8; ++i) state[i] += s[i];
}

static void sha256(const uint8_t* content, size_t size, uint8_t digest[32]) {
  uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                       0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  size_t done = 0;
  for (; size - done >= 64; done += 64) sha256_block(state, content + done);
  // The rest, a bit of 1, zeros, and the number of bits.
  uint8_t last[128] = {0};
  const size_t rest = size - done, length = rest < 56 ? 64 : 128;
  if (rest) memcpy(last, content + done, rest);
  last[rest] = 0x80;
  const uint64_t bits = (uint64_t)size * 8;
  for (int i = 0; i < 8; ++i) last[length - 1 - i] = (uint8_t)(bits >> 8 * i);
  for (size_t i = 0; i < length; i += 64) sha256_block(state, last + i);
  for (int i = 0; i < 32; ++i)
    digest[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
}

#endif  // TFF_PERFEDAVG_C_DEMO_SHA256_H_
