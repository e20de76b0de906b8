/* shelf.h: what was gathered and may be asked for again. A shelf is a chunk that holds scattered blocks of one region,
 * read straight from the store and not mapped. It is memory of the pool's that nobody uses (pool->idle): whoever needs
 * a chunk or budget takes the oldest.
 *
 * A block on a shelf is what the store held while `writes` writes to it had begun and none was under way. So it is what
 * the page holds as long as the page is ABSENT and no write has begun since: um_region->writes_begun tells.
 *
 * New memory can be dear: on a virtual machine whose host takes free memory back, a huge page costs as much as reading
 * 1,000 blocks and more. So new shelves may cost a sixteenth of the time spent on reading, and as much again as the
 * reading of blocks that were read before. What has no place on a shelf goes through a buffer and is not kept. */
#ifndef UM_SHELF_H
#define UM_SHELF_H

#include "internal.h"

#define UM_SHELF_BLOCK 4096u
#define UM_SHELF_BLOCKS (UM_CHUNK / UM_SHELF_BLOCK)

#define UM_SHELF_UNIT (4 * UM_SHELF_BLOCK)
#define UM_SHELF_UNITS 256u

/* Free places of a shelf; the taker's alone until it puts the shelf back. */
typedef struct um_shelf_room {
  uint32_t chunk;
  uint32_t filled; /* places before the first free one */
  uint32_t count;  /* free ones */
  char *bytes;     /* of the first */
} um_shelf_room;

int um_shelves_open(um_pager *p); /* 0: there are shelves from now on; -ENOMEM: no memory for them */
void um_shelves_destroy(um_pager *p);

/* Room for `least` blocks and more. False: there is none that costs no more than was earned. */
bool um_shelf_take(um_region *r, uint64_t writes, uint32_t least, um_shelf_room *room);
/* `blocks`: what the first places hold now, UINT64_MAX: nothing. */
void um_shelf_put(um_region *r, uint64_t writes, const um_shelf_room *room, const uint64_t *blocks, uint32_t count);

/* UM_SHELF_UNITS units of memory that keep nothing; NULL: no memory. */
void *um_shelf_buffer_take(um_pager *p);
void um_shelf_buffer_put(um_pager *p, void *buffer);

/* These blocks were read, in so long: what new shelves may cost. */
void um_shelf_earn(um_region *r, const uint64_t *blocks, uint32_t count, uint64_t ns);
uint32_t um_shelf_take_oldest(um_pager *p); /* its chunk, FULL and the caller's; 0: there is none */

/* Blocks that are found stay until the shelves are let go. No other lock, and no memory that may fault, meanwhile. */
void um_shelves_hold(um_pager *p);
void um_shelves_let_go(um_pager *p);
const char *um_shelf_find(const um_region *r, uint64_t writes, uint64_t block); /* held; NULL: it is on none */

#endif
