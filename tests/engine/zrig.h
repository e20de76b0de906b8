/* zrig.h: a zstd store over a temporary file, beside the image it should hold. */
#ifndef UM_ZRIG_H
#define UM_ZRIG_H

#include "check.h"
#include "zstd_store.h"

typedef struct zrig {
  um_store *store; /* NULL: closed */
  uint8_t *image;  /* NULL: sparse, the test keeps it */
  uint64_t size;
  char path[64];
} zrig;

void zrig_new(zrig *z, uint64_t size, uint32_t page_size);
void zrig_new_sparse(zrig *z, uint64_t size, uint32_t page_size); /* without an image */
void zrig_close(zrig *z);
void zrig_open(zrig *z, bool writable);
void zrig_reopen(zrig *z, bool writable);
void zrig_grow(zrig *z, uint64_t size); /* opens it again, larger */
void zrig_end(zrig *z);                 /* closes and removes it */

void zrig_fill(uint8_t *bytes, uint64_t length, uint64_t seed); /* compresses about 3x; never all zero */
uint64_t zrig_random(uint64_t *state);
void zrig_write(zrig *z, uint64_t offset, uint64_t length, uint64_t seed); /* image and store */
void zrig_write_page(zrig *z, uint64_t page, uint64_t seed);
void zrig_flush(zrig *z);
void zrig_check_image(zrig *z); /* the store has it */

/* `zstd -t` takes the file; false where there is no zstd. */
bool zrig_check_tool(const zrig *z);
/* What `zstd -d` makes of it is these bytes. */
bool zrig_check_decoded(const zrig *z, const uint8_t *bytes, uint64_t length);

#endif
