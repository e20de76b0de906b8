/* xxh64.c: XXH64 as its specification has it (xxHash, doc/xxhash_spec.md), for little-endian machines. */
#include "xxh64.h"

#include <string.h>

#define PRIME_1 UINT64_C(0x9E3779B185EBCA87)
#define PRIME_2 UINT64_C(0xC2B2AE3D27D4EB4F)
#define PRIME_3 UINT64_C(0x165667B19E3779F9)
#define PRIME_4 UINT64_C(0x85EBCA77C2B2AE63)
#define PRIME_5 UINT64_C(0x27D4EB2F165667C5)
#define STRIPE 32

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are read as they lie in memory");

static uint64_t rotate(uint64_t x, int bits) {
  return x << bits | x >> (64 - bits);
}

static uint64_t word(const uint8_t *at) {
  uint64_t value;
  memcpy(&value, at, sizeof(value));
  return value;
}

static uint32_t half(const uint8_t *at) {
  uint32_t value;
  memcpy(&value, at, sizeof(value));
  return value;
}

static uint64_t mix(uint64_t lane, uint64_t input) {
  return rotate(lane + input * PRIME_2, 31) * PRIME_1;
}

static uint64_t merge(uint64_t hash, uint64_t lane) {
  return (hash ^ mix(0, lane)) * PRIME_1 + PRIME_4;
}

uint64_t um_xxh64(const void *bytes, size_t length, uint64_t seed) {
  const uint8_t *at = bytes, *end = at + length;
  uint64_t hash = seed + PRIME_5;
  if (length >= STRIPE) {
    uint64_t a = seed + PRIME_1 + PRIME_2, b = seed + PRIME_2, c = seed, d = seed - PRIME_1;
    for (; end - at >= STRIPE; at += STRIPE) {
      a = mix(a, word(at));
      b = mix(b, word(at + 8));
      c = mix(c, word(at + 16));
      d = mix(d, word(at + 24));
    }
    hash = merge(merge(merge(merge(rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18), a), b), c), d);
  }
  hash += length;
  for (; end - at >= 8; at += 8)
    hash = rotate(hash ^ mix(0, word(at)), 27) * PRIME_1 + PRIME_4;
  if (end - at >= 4) {
    hash = rotate(hash ^ half(at) * PRIME_1, 23) * PRIME_2 + PRIME_3;
    at += 4;
  }
  for (; at < end; at++)
    hash = rotate(hash ^ *at * PRIME_5, 11) * PRIME_1;
  hash = (hash ^ hash >> 33) * PRIME_2;
  hash = (hash ^ hash >> 29) * PRIME_3;
  return hash ^ hash >> 32;
}
