/* zmemory.h: a file in memory under a zstd store, which remembers what a crash could take from it. */
#ifndef UM_ZMEMORY_H
#define UM_ZMEMORY_H

#include "zrig.h"

#define ZMEMORY_ROOM (3u << 20) /* bytes it can hold */
#define ZMEMORY_LENGTH UINT64_MAX

typedef struct zchange {
  uint64_t offset, length; /* ZMEMORY_LENGTH: the file's length became `offset` */
  uint8_t *bytes;          /* NULL: zeros */
} zchange;

typedef struct zmemory {
  um_zstd_file file;
  uint8_t *bytes, *durable; /* as the store sees it; as of the last sync */
  uint64_t length, durable_length;
  uint64_t reach;   /* the longest it was */
  zchange *changes; /* since */
  uint64_t count, room;
  void (*crash)(struct zmemory *); /* called before every change and sync; NULL: never */
} zmemory;

zmemory *zmemory_make(void);             /* empty; closing it frees it */
zmemory *zmemory_copy(const zmemory *m); /* as it is now */
/* As a crash may leave it: each sector written since the last sync survives with odds of 256. */
zmemory *zmemory_crashed(const zmemory *m, uint64_t odds, uint64_t *seed);
int zmemory_try(zmemory *m, const um_zstd_options *options, um_store **store,
                um_error *error); /* opens it; or frees it */

#endif
