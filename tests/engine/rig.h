/* rig.h: a region over a temporary file, as the binding would make it, and what tests do with one.
 *
 * The file is full of a pattern: every aligned 8 bytes at offset o hold rig_word(o), which is never 0 and never -1, so
 * zeros, 0xFF and bytes of another page are told apart. */
#ifndef UM_RIG_H
#define UM_RIG_H

#include "check.h"
#include "internal.h"
#include "latch.h"
#include "watchdog.h"

typedef struct rig_options {
  uint64_t size;       /* bytes of the file and of the region */
  uint64_t page_size;  /* 0: 4096 */
  uint64_t memory;     /* budget of the pager; 0: the smallest allowed and this much: */
  uint64_t spare;      /* pages */
  uint32_t fillers;    /* 0: 1 */
  uint32_t evictors;   /* 0: 1 */
  uint32_t timeout_ms; /* 0: 10 s */
  uint64_t skew;       /* bytes that the region's address lies behind a multiple of 2 MiB; 0: wherever it falls */
  bool read_only;
  bool readahead;
  bool sparse;   /* no pattern: the file is a hole */
  bool cached;   /* what the page cache has is read by the leader; else every read is a call that is counted */
  bool computes; /* the store says that its writes do */
  bool faults;   /* a fault store lies before the file store */
  bool latch;    /* a latch lies before that */
  const um_store_ops *ops; /* in place of the file store's; NULL: its own */
  um_pager *pager;         /* not the rig's own; memory and threads are its */
} rig_options;

typedef struct rig {
  um_pager *pager;
  um_store *faults; /* or NULL */
  um_store *latch;  /* or NULL */
  um_store *store;  /* the outermost */
  um_region *region;
  uint8_t *bytes; /* the region's memory */
  uint64_t size, mapped;
  int fd; /* the file, buffered, beside the store */
  bool own_pager;
} rig;

uint64_t rig_word(uint64_t offset);
void rig_open(rig *r, const rig_options *options);

/* As the binding closes: flush, close the gate, unmap, forget, close the store; checks that no memory stays counted.
 * The file stays open until rig_end. */
void rig_close(rig *r);
void rig_end(rig *r);
void rig_discard(rig *r); /* close without flush; the file stays open likewise */

extern uint32_t rig_policy;   /* of the pagers made from now on; auto */
uint32_t rig_mechanism(void); /* UMAPPY_MECHANISM in the environment: auto, copy, move */
um_pager *rig_pager(uint64_t memory, uint32_t fillers, uint32_t evictors, uint32_t timeout_ms);
int rig_file(uint64_t size, bool sparse, char path[64]); /* unlink it once it is open */
uint8_t *rig_map(uint64_t size);
uint8_t *rig_map_at(uint64_t size, uint64_t skew); /* so many bytes behind a multiple of 2 MiB */

/* Single accesses the compiler leaves alone */
static inline uint64_t rig_read(const rig *r, uint64_t offset) {
  return __atomic_load_n((uint64_t *)(r->bytes + offset), __ATOMIC_RELAXED);
}
uint64_t rig_peek(const rig *r, uint64_t offset); /* races with a memcpy on purpose; ThreadSanitizer looks away */
static inline void rig_write(const rig *r, uint64_t offset, uint64_t value) {
  __atomic_store_n((uint64_t *)(r->bytes + offset), value, __ATOMIC_RELAXED);
}
uint64_t rig_file_word(const rig *r, uint64_t offset); /* what the file holds */

int rig_run(um_job *job, um_error *error); /* waits for it, releases it */
int rig_flush(const rig *r);
int rig_evict(const rig *r, uint64_t offset, uint64_t length);
int rig_prefetch(const rig *r, uint64_t offset, uint64_t length);
void rig_drop(const rig *r, uint64_t offset, uint64_t length); /* the user's own MADV_DONTNEED */
int rig_state(const rig *r, uint64_t page);                    /* UM_PAGE_... */
um_stats rig_stats(const rig *r);
uint64_t rig_errors(const rig *r); /* ever recorded */

/* Makes the calls in `ops` (bits 1 << UM_OP_...) fail with `code` after `delay_ms`, `count` of them. */
void rig_fail(const rig *r, uint32_t ops, int code, uint64_t count, unsigned delay_ms);
void rig_heal(const rig *r);

/* Threads */
pthread_t rig_thread(void *(*run)(void *), void *argument);
typedef struct rig_touch {
  rig *rig;
  uint64_t offset, value; /* value 0: it is read */
  _Atomic bool ended;
} rig_touch;
void *rig_touch_once(void *touch); /* for rig_thread */
uint64_t rig_random(uint64_t *state);

/* A child process that runs `run` and must end by `signal` (0: exit status 0). */
void rig_child(void (*run)(void *), void *argument, int signal);
bool rig_died(int status, int signal); /* by it, or by what a sanitizer makes of it */

#endif
