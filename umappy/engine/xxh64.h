/* xxh64.h: XXH64, the hash of zstd's own checksums. */
#ifndef UM_XXH64_H
#define UM_XXH64_H

#include <stddef.h>
#include <stdint.h>

uint64_t um_xxh64(const void *bytes, size_t length, uint64_t seed);

#endif
