/* bytes.h: many bytes that tests write, and what of them reached the file. */
#ifndef UM_BYTES_H
#define UM_BYTES_H

#include "rig.h"

uint8_t *bytes_make(uint64_t length, uint64_t seed); /* aligned to 4096, every 8 of them different; free() them */
void bytes_check_file(const rig *r, uint64_t offset, const uint8_t *bytes, uint64_t length);

#endif
