#include "bytes.h"

uint8_t *bytes_make(uint64_t length, uint64_t seed) {
  uint64_t *words = aligned_alloc(4096, um_round_up(length, 4096));
  CHECK(words);
  for (uint64_t i = 0; i < um_round_up(length, 4096) / 8; i++)
    words[i] = (seed << 32 | 1) + i;
  return (uint8_t *)words;
}

void bytes_check_file(const rig *r, uint64_t offset, const uint8_t *bytes, uint64_t length) {
  for (uint64_t at = 0; at + 8 <= length; at += 8)
    CHECK(rig_file_word(r, offset + at) == *(const uint64_t *)(bytes + at));
}
