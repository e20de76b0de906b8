/* readahead.h: finds the streams in a region's faults, and says what to read beside what a fault needs.
 *
 * One object a region, called by one thread at a time (the leading filler; handing over the lead synchronises). No I/O,
 * no locks, no allocation: the caller gives the memory. The detector knows nothing of page states: the caller skips, in
 * every run it is given, pages that are not as the run wants them (absent to be read, standby to be mapped, CLEAN to
 * be unprotected), and may drop or cut a run that is to be read ahead. */
#ifndef UM_READAHEAD_H
#define UM_READAHEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UM_READAHEAD_PLANS                                                                                             \
  16u /* runs of one answer that serve every pattern at full speed; 4 do for all but some strides */

typedef struct um_readahead um_readahead;

typedef struct um_readahead_limits {
  uint64_t page_count;  /* of the region, at least 1 */
  uint32_t run_pages;   /* the largest run, a power of two */
  uint32_t part_pages;  /* of shorter runs, the most that the caller reads by one store call; at least 1 */
  uint32_t align_pages; /* runs do not cross a page p where (p + align_pages) % run_pages == 0 */
  uint32_t
      window_pages; /* a stream's asked pages from the last touched one on, and that included; 0: ask for nothing */
  uint32_t protect_pages; /* the most to unprotect together, at least 1 */
  uint32_t gap_pages; /* strides up to this are read whole, gaps and all: cheaper than a store call a stop; 0: none */
  uint32_t context_pages; /* as many in a row are resident where the caller tells of a context */
} um_readahead_limits;

/* Where a miss is among the pages that are there: those before it are, and those behind it are not. Most likely
 * somebody read through what is there, without a fault, and will read on. DOWN: the other way round. */
typedef enum um_context { UM_CONTEXT_NONE, UM_CONTEXT_UP, UM_CONTEXT_DOWN } um_context;

typedef struct um_run_plan {
  uint64_t first;  /* page */
  uint32_t count;  /* pages of a run, at least 1 */
  uint32_t repeat; /* runs, at least 1; in the order in which they will be needed */
  int64_t stride;  /* pages from the first of a run to the first of the next; negative: downwards */
  bool write;      /* the stream writes every page: make them writable and dirty at once */
} um_run_plan;

typedef enum um_hint { UM_HINT_NORMAL, UM_HINT_SEQUENTIAL, UM_HINT_RANDOM } um_hint;

/* `memory`: um_readahead_bytes() of it, zeroed, aligned to 64. It needs no end. */
size_t um_readahead_bytes(void);
um_readahead *um_readahead_init(void *memory, const um_readahead_limits *limits);

/* From now on; what was asked for before stays asked. Cheap: call it whenever memory gets short or plenty. */
void um_readahead_window(um_readahead *ra, uint32_t window_pages);

/* A fault on an ABSENT page. plan[0] is one run that holds the page and is to be read at once, by one store call; the
 * others are to be read ahead, each run by a store call of its own, and left unmapped (standby). Where plan[0].write
 * is false and the fault is a write, only its own page is written. Returns how many plans: 1 to max; max at least 1. */
unsigned um_readahead_miss(um_readahead *ra, uint32_t thread_id, uint64_t page, bool write, um_context context,
                           um_run_plan *plan, unsigned max);

/* A fault on a page that is in standby, or is just being read ahead (FILLING, for nobody yet). plan[0] is the run to
 * map at once, or as soon as it is there; the others as above. */
unsigned um_readahead_trigger(um_readahead *ra, uint32_t thread_id, uint64_t page, bool write, um_run_plan *plan,
                              unsigned max);

/* The first write to a protected page that is mapped: the run, which holds the page, to unprotect together. */
um_run_plan um_readahead_protect(um_readahead *ra, uint32_t thread_id, uint64_t page);

/* Pages that were read ahead were evicted before anyone touched them: their stream asks for less from now on. Like
 * all here it is for the one thread: evictors leave word with the leader. */
void um_readahead_wasted(um_readahead *ra, uint64_t page, uint64_t count);

/* For pages [first, last). RANDOM: every fault its own page, and nobody reads ahead into the range. SEQUENTIAL: the
 * first fault starts a forward stream with the whole window, which ends with the range unless the reader goes on. A
 * newer hint wins over an older; of more ranges than the table holds the oldest is forgotten. */
void um_readahead_hint(um_readahead *ra, uint64_t first, uint64_t last, um_hint hint);

#endif
