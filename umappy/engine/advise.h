/* advise.h: what a program said about how it will use ranges of a region. Advice changes speed, never bytes. */
#ifndef UM_ADVISE_H
#define UM_ADVISE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

struct um_region;

enum um_advice { /* UM_ADVISE_... of umappy.h */
                 UM_ADVICE_NORMAL = 0,
                 UM_ADVICE_SEQUENTIAL = 1, /* pages are used in rising order, once: read far ahead, evict behind */
                 UM_ADVICE_RANDOM = 2,     /* neighbours are no guess: do not read ahead */
                 UM_ADVICE_WILLWRITE = 3,  /* whole pages will be written: fill them writable and dirty */
};

#define UM_ADVICE_BOUNDS_MAX 8192u /* 64 KiB; two a range that lies alone */

/* The ranges of a region, as sorted bounds; see advise.c. */
typedef struct um_advice_table {
  pthread_mutex_t lock;               /* one writer; taken with none of the engine's locks held, and below them all */
  _Atomic uint32_t version;           /* odd while the bounds change */
  _Atomic uint32_t count;             /* bounds in use */
  _Atomic(_Atomic uint64_t *) bounds; /* NULL until there is advice; then constant */
  uint64_t charged;                   /* bytes in the budget; lock */
} um_advice_table;

void um_advise_init(struct um_region *r);
void um_advise_destroy(struct um_region *r); /* nobody else is inside the region any more */

/* What was said about a page: NORMAL also for an instant while somebody advises. Takes no lock, waits for nothing. */
enum um_advice um_advise_at(struct um_region *r, uint64_t page);

/* The same, and the pages [*first, *end) around it that have the same advice. */
enum um_advice um_advise_range(struct um_region *r, uint64_t page, uint64_t *first, uint64_t *end);

#endif
