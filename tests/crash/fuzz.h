/* fuzz.h: what the fuzzer runs on each input. */
#ifndef UM_FUZZ_H
#define UM_FUZZ_H

#include "zmemory.h"

#define FUZZ_LENGTH (32u << 10) /* bytes of an input, at most */

extern const unsigned fuzz_edges_min; /* of the code that a run must reach: fewer, and it tests nothing */

void fuzz_one(const uint8_t *bytes, uint64_t length);
int fuzz_make(const char *folder); /* inputs to begin with */

#endif
