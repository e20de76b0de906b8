/* blocks.h: the dirty blocks of a page.
 *
 * Of a tracked page above 64 KiB a write makes only the block around it dirty: 64 KiB, or a 64th of the page where that
 * is more, so that one word of the frame descriptor holds them. The other blocks stay protected; only dirty ones are
 * written back. Such pages have a descriptor each. */
#ifndef UM_BLOCKS_H
#define UM_BLOCKS_H

#include "internal.h"

#define UM_BLOCK (64u << 10)
#define UM_BLOCKS_ALL UINT64_MAX

static inline bool um_blocks_tracked(const um_region *r) {
  return r->writable && r->page_size > UM_BLOCK;
}

/* Pages that a run of at most `bytes` may have. */
static inline uint64_t um_run_limit(const um_region *r, uint64_t bytes) {
  return um_blocks_tracked(r) ? 1 : um_max(1, bytes >> r->page_shift);
}

/* Makes the memory around `offset` (bytes from the start of the region) writable: its block, or the page. The page is
 * BUSY or FILLING, and the caller's. */
void um_blocks_open(um_region *r, um_frame *f, uint64_t page, uint64_t offset);

/* The next stretch of dirty blocks at or behind byte *at of the page: its start and length, cut to the page's data.
 * False: none. Pages that are not tracked are one stretch. */
bool um_blocks_next(const um_region *r, uint64_t page, uint64_t blocks, uint64_t *at, uint64_t *length);

#endif
