/* internal.h: the engine's own structures, its lock order and its invariants.
 *
 * Invariants; the code refers to them by number, debug builds (UM_DEBUG) check what can be checked:
 *
 *  1. Whoever moves a page out of a stable state, or sets its BUSY flag, owns it until it puts it back.
 *  2. Every fault message ends in at least one wake after the state is final. Who finds a page owned by somebody
 *     else sets WAITER and leaves the wake to the owner; a fill always wakes. A message for memory that the state
 *     says is there asks the kernel: present: wake; absent: repair, then wake. Never wake and hope.
 *  3. used <= memory at every moment; what a fill needs is reserved before it starts.
 *  4. A page leaves DIRTY and WRITING only when the store has accepted its bytes.
 *  5. Engine threads touch memory only in states they own. Only evictors read region memory (they copy it for
 *     writing), never a filler: a page somebody dropped under the engine faults, and a filler must be there to
 *     serve that fault.
 *  6. The lock order below; no lock and no gate is held across store I/O.
 *  7. The bytes given to store->write are a private copy: they do not change while it runs. A caller of
 *     um_region_write_through promises that of its own buffer.
 *
 * Lock order: a thread may take a lock only while it holds none that stands below it.
 *
 *     um_region_registry   the process's regions (exit)                      fork.c
 *     pager->regions_lock  the pager's sorted regions                        region.c
 *     region->gate         counts threads inside; not a mutex, see gate.c
 *     pager->lock          queues, jobs, idle fillers, waits for memory      workers.c, evict.c, job.c
 *     pager->frames_lock   descriptors and the eviction list                 frames.c
 *     region->errors.lock  failure records                                   error.c
 *     pool->fresh.lock     an address where new chunks are made              pool_make.c
 *     pool->lock           lists of chunks                                   pool.c
 *     shelves->lock        scattered blocks in chunks; taken with no other   shelf.c
 *     region->advice.lock  who advises; taken with no other                  advise.c
 */
#ifndef UM_INTERNAL_H
#define UM_INTERNAL_H

#include "advise.h"
#include "store.h"
#include "umappy.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define UM_PAGE_SIZE_MIN 4096u
#define UM_PAGE_SIZE_MAX (64u << 20)
#define UM_STAGING_MAX (1u << 20) /* bytes of a worker's buffer: the largest run that is copied */
#define UM_CHUNK (2u << 20)       /* bytes of a chunk: the largest run that is moved; a huge page where there are any */
#define UM_CHUNKS_READ 32u   /* chunks a budget must be worth before runs are read into them: few would be most of it */
#define UM_GRACE_NS 1000000u /* a page just placed stays this long ... */
#define UM_MANY_FILLERS 8u   /* fillers, of which one soon has nothing to do */
#define UM_TRIES 3           /* of a read that fails in passing; a guess has one */
#define UM_GRACE_TURNS 8u    /* ... or until its thread faulted so often again */
#define UM_TURN_SLOTS 1024u
#define UM_ERRORS_KEPT 16u
#define UM_TICK_MS 100u      /* no wait of an engine thread is longer than ten of these */
#define UM_FRAMES_PAID 1024u /* descriptors counted from the start: faults are noted when memory is short */
#define UM_SLACK (32u << 10) /* never reserved: descriptors of faults that wait are charged, and not refused */
#define UM_NIL 0u            /* frame 0 is never used */

typedef uint64_t um_word;
typedef uint32_t um_frame_id;

/* A frame descriptor: what the engine remembers of a run of pages that is filling, resident or on standby. The words of
 * its pages name it. It is given back with the last of them. */
typedef struct um_frame {
  um_region *region;     /* set by who took the descriptor; constant until it is given back */
  uint64_t page;         /* first of the run; its filler's until pages are claimed, then constant, and so these two: */
  uint32_t count;        /* pages of the run; some may have left since */
  _Atomic uint32_t live; /* pages whose words name it */
  uint64_t touched;      /* the page that faulted; the filler's, and so the five below: */
  uint64_t offset;       /* of the fault, bytes from the start of the region */
  uint64_t fault_ns;     /* when its fault was read, 0: prefetch */
  uint32_t thread_id;    /* whose fault */
  uint32_t thread_turn;  /* that thread's count of faults then; grace */
  _Atomic uint64_t born_ns; /* when it was placed or last seen used; written by the run's owner */
  _Atomic uint64_t blocks;  /* pages above 64 KiB that are tracked: the dirty blocks of the page; blocks.h */
  um_frame_id prev;         /* frames_lock: the policy's queues; */
  um_frame_id next;         /* likewise, and the free list */
  um_frame_id queued_next;  /* pager->lock: demand or starved queue */
  uint32_t chunk;           /* STANDBY, a chunk's length: where its bytes are; the run's owner's */
  uint8_t queue;            /* frames_lock, and so the next two: where the policy keeps it; 0: nowhere; policy.c */
  uint8_t heat;             /* proven hits it still has to its credit */
  uint8_t trail;            /* what the policy remembers of its way; UM_TRAIL_... */
  bool picked;              /* an evictor works on it; frames_lock */
  _Atomic bool collapsed;   /* it was looked at for a huge page; frames_lock; collapse.c */
  bool write;               /* to be filled writable; the filler's */
  bool give_up;             /* pager->lock: it waited for memory too long */
  _Atomic bool opened;      /* some page of it was writable, ever */
  _Atomic bool ahead;       /* read ahead and not touched yet */
  _Atomic uint32_t cleaned; /* when it was cleaned ahead of need, in flushes; 0: it was not; clean.c */
  _Atomic bool writer;      /* who waits for it while it is read ahead writes every page; the leader's */
  bool returns;             /* FILLING, to be taken back from standby; the filler's */
  bool claimed;             /* FILLING already; the filler's */
} um_frame;

typedef struct um_queue {
  um_frame_id head, tail;
  uint32_t length;
} um_queue;

typedef struct um_span {
  _Atomic uint32_t live;  /* pages not absent that touch it; UM_LIVE_DROPPING: its tables are being freed */
  _Atomic uint32_t dirty; /* pages DIRTY or WRITING that begin in it */
} um_span;

typedef struct um_errors {
  pthread_mutex_t lock;
  uint64_t count;                /* ever recorded; lock */
  um_error kept[UM_ERRORS_KEPT]; /* the newest, at count % UM_ERRORS_KEPT; lock */
} um_errors;

typedef struct um_counters {
  _Atomic uint64_t read_faults, write_faults, protect_faults, stale_faults;
  _Atomic uint64_t fills, prefetches, evictions, writes;
  _Atomic uint64_t store_reads, store_writes, store_flushes, bytes_read, bytes_written;
  _Atomic uint64_t fill_errors, write_errors, retries;
  _Atomic uint64_t readahead, readahead_used, readahead_wasted, standby_hits, pinned;
  _Atomic uint64_t cleaned, cleaned_wasted, collapsed;
  _Atomic uint64_t fault_ns[UM_HISTOGRAM_BUCKETS];
} um_counters;

struct um_region {
  um_pager *pager;    /* constant */
  um_store *store;    /* constant; the binding closes it after the region is forgotten */
  uintptr_t address;  /* constant */
  uint64_t size;      /* bytes of data; constant */
  uint64_t mapped;    /* size rounded up to host pages; constant */
  uint64_t page_size; /* constant, and so the three below */
  uint64_t page_count;
  uint32_t page_shift;
  uint32_t span_shift;            /* a span is the larger of 2 MiB and the page, aligned by absolute address */
  bool writable;                  /* constant */
  bool chunks;                    /* constant: a chunk's length of its pages can be read, kept and moved whole */
  bool moves;                     /* constant: and change places with a chunk's memory */
  bool collapses;                 /* constant: what stays of it becomes huge pages; collapse.c */
  bool cleans;                    /* constant: it is written back ahead of need; clean.c */
  _Atomic uint64_t clean_cursor;  /* the page to go on from; cleaners' */
  uint32_t skew;                  /* constant: bytes that those lengths lie behind multiples of a chunk; below a page */
  struct um_readahead *readahead; /* the leader's; NULL: none is wanted */
  uint32_t trace_id;              /* constant */
  uint64_t store_memory;          /* bytes reserved for the store's caches; constant */
  uint64_t hinted;                /* the leader's: the end of the range that was last advised to be read in order */
  _Atomic bool no_batch;          /* the store refused to read a batch */
  _Atomic uint64_t *words;        /* one word a page; touched as pages are; words.c */
  _Atomic uint32_t *block_live;   /* pages not absent a host page of words; words.c */
  um_span *spans;                 /* words.c */
  uint64_t words_mapped, blocks_mapped, spans_mapped, span_count;
  _Atomic uint32_t gate;             /* threads inside, or UM_GATE_CLOSED; gate.c */
  _Atomic uint32_t asked;            /* fills queued and not yet claimed */
  _Atomic uint32_t filling;          /* pages FILLING */
  _Atomic uint32_t writing;          /* pages WRITING */
  _Atomic uint64_t dirty;            /* bytes in pages DIRTY or WRITING */
  _Atomic uint64_t resident;         /* bytes in pages that are mapped */
  _Atomic uint64_t standby;          /* bytes in pages STANDBY */
  _Atomic uint32_t jobs;             /* jobs not yet finished */
  _Atomic uint64_t charged;          /* bytes of bookkeeping in the budget; words.c */
  _Atomic uint64_t write_backoff_ns; /* the store failed: no write-back for eviction before this; 0: it did not */
  _Atomic bool unflushed;            /* the store took writes since its last flush */
  _Atomic uint64_t writes_begun;     /* calls of the store's write, and so the next: writeback_send.c */
  _Atomic uint64_t writes_ended;
  uint32_t shelf;               /* the chunk of its newest shelf, or what was; shelves->lock */
  uint32_t flushing;            /* flushes of the store under way; pager->lock */
  _Atomic bool tainted;         /* a page FAILED, ever */
  _Atomic uint64_t wasted_page; /* a run that was read ahead and given up untouched, and */
  _Atomic uint32_t wasted;      /* how many since the leader looked */
  _Atomic uint64_t untold;      /* failure records nobody was told of */
  um_errors errors;
  um_advice_table advice;
  um_counters counters;
  void *fork_slot; /* fork.c */
};

typedef enum um_job_kind { UM_JOB_FLUSH, UM_JOB_EVICT, UM_JOB_PREFETCH } um_job_kind;

struct um_job {
  um_region *region; /* constant; valid until done */
  um_pager *pager;   /* constant; valid while the region's binding is */
  um_job_kind kind;  /* constant */
  bool durable;      /* flush the store at the end; constant */
  uint64_t *list;    /* prefetch of these pages; NULL: of a range. Constant, and list_length: for what it is counted */
  uint64_t list_length;
  uint64_t cursor; /* next page, or place in the list, to claim; pager->lock, and so all below */
  uint64_t end;    /* after the last */
  uint64_t pages;  /* written, evicted or filled */
  uint32_t refs, active, failures;
  bool cancelled, done;
  um_error error; /* the first; code 0: none */
  um_job *next;
};

typedef struct um_keeper um_keeper;

typedef struct um_worker {
  um_pager *pager; /* constant, and so all here */
  void *staging;   /* aligned to 4096; this worker's alone */
  uint64_t staging_size;
  pthread_t thread;
} um_worker;

/* A chunk's address that is not registered: new memory is made here, then moved; pool_make.c. */
typedef struct um_fresh {
  pthread_mutex_t lock; /* who makes a chunk there */
  uintptr_t address;    /* constant */
  bool huge;            /* lock: what it is advised to be */
} um_fresh;

#define UM_FRESH 4u /* chunks made at a time: most of it is the kernel's work, on as many processors */

/* pool.h */
typedef struct um_pool {
  pthread_mutex_t lock; /* the three lists; taken last of all locks */
  uintptr_t address;    /* constant, and so the two below */
  void *mapping, *fresh_mapping;
  uint64_t mapped;
  uintptr_t slots;                   /* constant: where runs shorter than a chunk wait; 0: nowhere */
  uint64_t slots_mapped, slots_each; /* constant: bytes, in all and of each kind */
  uint32_t count;                    /* chunks, numbered from 1 */
  uint32_t *next;                    /* lock: links of the lists */
  _Atomic uint32_t empty;            /* lock: heads of the lists; looked at without it */
  _Atomic uint32_t small, huge;      /* likewise: FULL, unused, of small pages and huge ones */
  _Atomic uint64_t idle;             /* bytes in FULL unused chunks: in the budget, and free for the asking */
  _Atomic uint64_t huge_ns;          /* what the last huge page took to make; 0: none was */
  _Atomic uint64_t saved_ns;         /* time that may be spent on dear ones; pool_make.c */
  _Atomic uint32_t left;      /* one of small pages, counted as idle, that an idle filler is to exchange; 0: none */
  _Atomic uint64_t none_ns;   /* until then no small pages are exchanged: the kernel had no huge one */
  _Atomic uint64_t dear_ns;   /* from here on a huge page is saved up for; tests change it */
  _Atomic uint64_t saving_ns; /* what each chunk taken saves; tests change it */
  um_fresh fresh[UM_FRESH];
  _Atomic uint32_t fresh_next; /* where the next chunk is made, if nobody else is at it */
} um_pool;

/* A run to read ahead. */
typedef struct um_ahead {
  um_region *region; /* counted in its `asked` */
  uint64_t first;    /* page */
  uint32_t count;    /* pages */
  bool write;        /* its reader writes every page */
} um_ahead;

#define UM_AHEAD_SLOTS 128u

struct um_pager {
  int uffd, kick, pagemap, self;                      /* constant; self: pidfd of this process, or -1 */
  uint64_t uffd_inode;                                /* constant: to see that somebody closed it under us */
  uint32_t uffd_mode;                                 /* constant */
  uint64_t generation;                                /* constant: which process made it; fork.c */
  const struct um_mechanism *mechanism;               /* constant */
  struct um_trace *trace;                             /* constant; NULL: faults are not recorded */
  uint64_t memory, low_water, high_water, timeout_ns; /* constant */

  _Atomic uint64_t used, overhead, peak_used; /* budget.c */
  um_pool pool;
  struct um_shelves *_Atomic shelves; /* NULL until something is gathered; shelf.c */
  _Atomic uint64_t standby_bytes;     /* in chunks of runs STANDBY; standby.c */
  _Atomic uint64_t reserved, wanted;  /* bytes callers took, and wait for; reserve.c */
  _Atomic uint64_t memory_min;        /* what the regions there are need; region.c */
  _Atomic uint64_t readahead_bytes;   /* what they remember of their readers, of `overhead`; region.c */
  _Atomic uint64_t emergency; /* the largest cost of a page of any region: kept free for one that holds a failure */
  _Atomic uint32_t memory_waiters; /* threads and starved pages that wait for `freed` to move */
  _Atomic uint64_t freed;          /* bytes of pages ever given back: progress, for who waits for memory */
  _Atomic bool clean_asked;        /* a region has much that is dirty; clean.c, and so the next: */
  _Atomic uint32_t clean_vain;     /* runs written to again before their flush, lately */
  _Atomic bool evict_asked;        /* the evictors were told that memory is short */

  pthread_mutex_t regions_lock;
  um_region **regions; /* sorted by address; regions_lock */
  uint32_t region_count, region_capacity;
  uint32_t regions_made; /* regions_lock */
  uint32_t clean_turn;   /* which region is cleaned next; regions_lock */
  um_counters retired;   /* of regions that are gone; regions_lock */

  pthread_mutex_t frames_lock;
  um_frame *frames;        /* frames_lock for lists; see um_frame */
  uint64_t frames_mapped;  /* constant */
  uint32_t frame_capacity; /* constant */
  uint32_t frames_made;    /* descriptors ever used; frames_lock */
  uint32_t kept,
      kept_hits; /* runs shorter than a chunk that went to standby, and that were touched there, lately; frames_lock */
  um_frame_id collapse_cursor; /* the descriptor looked at last; frames_lock */
  uint32_t clean_tried;        /* of so many that were cleaned; frames_lock */
  uint32_t not_kept;           /* and that left directly, as that is seldom; frames_lock */
  um_frame_id free_frames;     /* frames_lock */
  struct um_policy *policy;    /* frames_lock */

  pthread_mutex_t lock;
  pthread_cond_t work;            /* fillers wait here */
  pthread_cond_t evict_work;      /* evictors wait here */
  pthread_cond_t progress;        /* a job ended, a write ended, memory came free: everybody else waits here */
  um_queue demand, starved;       /* lock */
  um_ahead ahead[UM_AHEAD_SLOTS]; /* a ring: reading ahead that was asked for; lock, and so the two below */
  uint32_t ahead_next, ahead_count;
  uint64_t starved_freed; /* `freed` at the last look, and when it last moved; lock */
  uint64_t starved_ns;
  um_job *prefetch_jobs, *write_jobs; /* lock */
  uint32_t idle, prefetching;         /* fillers; lock */
  bool collapsing;                    /* an evictor makes a huge page; lock, and so the next: */
  uint64_t collapse_rest_ns;          /* none is made before this */
  uint64_t collapse_freed;            /* `freed` at the last look, and */
  uint64_t collapse_short_ns;         /* memory is short until then */
  uint64_t collapse_again_ns;         /* the last wait for an unused huge page; who is collapsing's */
  _Atomic uint64_t collapse_age_ns;   /* what has been there so long seems to stay; tests change it before */
  uint32_t cleaners;                  /* evictors that clean ahead of need; lock */
  uint64_t clean_rest_ns;             /* nothing is cleaned ahead before this; lock */
  bool leader;                        /* some filler leads; lock */
  _Atomic bool stop;                  /* set once, by destroy */
  uint32_t writes_failed;             /* in a row; lock */
  um_error write_error;               /* the last failed write-back for eviction; lock */

  um_keeper *keeper;                     /* constant after create; keeper.c */
  um_worker *fillers, *evictors;         /* constant */
  uint32_t filler_count, evictor_count;  /* constant after create */
  _Atomic uint32_t turns[UM_TURN_SLOTS]; /* faults a thread (by id, hashed) */
  um_pager *registry_next;               /* um_region_registry */
};

static inline uint64_t um_now_ns(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline uint64_t um_round_up(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

static inline uint64_t um_min(uint64_t a, uint64_t b) {
  return a < b ? a : b;
}

static inline uint64_t um_max(uint64_t a, uint64_t b) {
  return a > b ? a : b;
}

#define UM_COUNT(region, field, n) atomic_fetch_add_explicit(&(region)->counters.field, (n), memory_order_relaxed)

#ifdef UM_DEBUG
#define UM_ASSERT(condition) ((condition) ? (void)0 : um_assert_fail(#condition, __FILE__, __LINE__))
#else
#define UM_ASSERT(condition) ((void)0)
#endif
_Noreturn void um_assert_fail(const char *condition, const char *file, int line);
_Noreturn void um_fatal(const char *what);

/* memory.c: mappings of the engine's own */
extern uint64_t um_host_page;
void *um_memory_map(uint64_t length); /* lazy, zero, not inherited by a fork; NULL */
void um_memory_unmap(void *address, uint64_t length);
int um_memory_drop(um_region *r, uintptr_t address, uint64_t length); /* a part of the region */
/* Between the region and the pool. `moved` bytes stay moved where it fails; may be NULL. */
int um_memory_move(um_region *r, uintptr_t to, uintptr_t from, uint64_t length, uint64_t *moved);
void um_memory_clear_table(uintptr_t chunk); /* of an aligned chunk's length in which nothing is */
struct iovec;
uint32_t um_memory_drop_many(um_pager *p, const struct iovec *ranges, uint32_t count); /* how many, maybe none */

/* page geometry */
static inline uintptr_t um_page_address(const um_region *r, uint64_t page) {
  return r->address + (page << r->page_shift);
}
static inline uint64_t um_page_memory(const um_region *r, uint64_t page) { /* bytes of address range */
  return um_min(r->page_size, r->mapped - (page << r->page_shift));
}
static inline uint64_t um_run_memory(const um_region *r, uint64_t first, uint64_t count) {
  return um_min(count << r->page_shift, r->mapped - (first << r->page_shift));
}
static inline uint64_t um_run_bytes(const um_region *r, uint64_t first, uint64_t count) { /* bytes of data */
  return um_min(count << r->page_shift, r->size - (first << r->page_shift));
}

static inline uint64_t um_chunk_pages(const um_region *r) {
  return UM_CHUNK >> r->page_shift;
}
/* The first page of the chunk's length of address range that the page is in; where r->chunks. May lie before the
 * region. */
static inline uint64_t um_chunk_first(const um_region *r, uint64_t page) {
  uintptr_t start = (um_page_address(r, page) - r->skew) & ~(uintptr_t)(UM_CHUNK - 1);
  return (uint64_t)((int64_t)(start + r->skew - r->address) >> r->page_shift);
}

/* All of a chunk's length; the last page of a region may be shorter than its page size says. */
static inline bool um_run_is_chunk(const um_region *r, uint64_t first, uint64_t count) {
  return count == um_chunk_pages(r) && um_run_memory(r, first, count) == UM_CHUNK && um_chunk_first(r, first) == first;
}

/* budget.c */
bool um_budget_try(um_pager *p, uint64_t bytes, uint64_t keep); /* false: less than `keep` would be left free */
void um_budget_release(um_pager *p, uint64_t bytes);
void um_budget_charge(um_pager *p, uint64_t bytes); /* bookkeeping: counted, never refused */
void um_budget_uncharge(um_pager *p, uint64_t bytes);
uint64_t um_budget_free(um_pager *p);
bool um_budget_low(um_pager *p);       /* below the low water: evictors start */
uint64_t um_budget_short(um_pager *p); /* bytes below the high water: 0, and they stop */

/* reserve.c */
int um_memory_wait(um_pager *p, uint64_t bytes, uint64_t keep, uint64_t deadline_ns); /* 0: reserved */

/* frames.c */
um_frame_id um_frame_take(um_pager *p, um_region *r, uint64_t page, uint64_t count); /* UM_NIL: no descriptor left */
void um_frame_give(um_pager *p, um_frame_id id);                                     /* no word names it */
void um_frame_forget(um_pager *p, um_frame_id id); /* whatever names it; frames_lock held */
void um_frame_drop(um_pager *p, um_frame_id id,
                   uint32_t pages);                    /* so many words name it no more; gives it, at the last */
void um_frame_list(um_pager *p, um_frame_id id);       /* it became resident; before its pages are let go */
void um_frame_list_ahead(um_pager *p, um_frame_id id); /* it was read ahead, to standby; likewise */
void um_frame_refault(um_pager *p, um_frame_id id);    /* it was touched in standby */
void um_frame_relist(um_pager *p, um_frame_id id);     /* it stays, and begins anew; frames_lock held */
bool um_frame_aged(um_pager *p, const um_frame *f, uint64_t now);
void um_queue_push(um_pager *p, um_queue *q, um_frame_id id);
um_frame_id um_queue_pop(um_pager *p, um_queue *q);

/* gate.c */
#define UM_GATE_CLOSED 0x80000000u
bool um_gate_enter(um_region *r); /* false: closed */
void um_gate_enter_wait(
    um_region *r); /* only while a page of it is FILLING or WRITING or a job runs: the gate cannot stay closed */
void um_gate_leave(um_region *r);

/* region.c */
um_region *um_region_enter(um_pager *p, uintptr_t address); /* inside its gate, or NULL */
void um_counters_add(um_stats *stats, const um_counters *c);
void um_counters_merge(um_counters *to, const um_counters *from);

/* fault.c */
struct uffd_msg;
void um_fault_handle(um_pager *p, const struct uffd_msg *message, um_queue *demand);
void um_fault_served(um_region *r, const um_frame *f); /* histogram */

/* fill.c, prefetch.c */
void um_fill_demand(um_worker *w, um_frame_id id);
bool um_fill_cached(um_worker *w, um_frame_id id); /* while leading: needs no I/O, and is done. False: um_fill_demand */
int um_fill_read(um_worker *w, um_region *r, uint64_t offset, void *buffer, uint64_t length, int tries,
                 um_error *error);
int um_fill_pages(um_worker *w, um_region *r, uint64_t first, uint64_t count, bool protect, int tries, um_error *error);
int um_fill_place_failed(um_region *r, uint64_t page, bool protect);
bool um_prefetch_run(um_worker *w, um_region *r, uint64_t page, uint64_t run, bool patient,
                     uint64_t *filled); /* adds to *filled. False: no memory */
bool um_prefetch_batch(um_worker *w, um_region *r, const uint64_t *pages, uint32_t count,
                       uint64_t *filled); /* likewise */

/* ahead.c */
struct um_run_plan;
void um_ahead_plan(um_region *r, const struct um_run_plan *plans, unsigned count); /* the leader; inside the gate */
bool um_ahead_read(um_worker *w, const um_ahead *a, const uint64_t *touched);      /* false: not so */
bool um_ahead_step(um_worker *w); /* pager->lock held; let go inside. False: nothing to read ahead */

/* standby.c */
um_frame_id um_standby_own(um_region *r, uint64_t page, um_word w);
void um_standby_return(um_region *r, um_frame_id id, uint64_t touched, bool write);
bool um_standby_moves(const um_region *r, bool write);              /* taken back by a system call, not by copying */
void um_standby_keep(um_region *r, um_frame_id id, uint32_t chunk); /* the policy knows of it already */
/* The run was read ahead, FILLING and the caller's, and somebody waits for it already: mapped, without STANDBY. */
void um_standby_pass(um_region *r, um_frame_id id, uint32_t chunk, uint64_t touched, bool write);
void um_standby_forget(um_region *r, um_frame_id id); /* the region is being forgotten */
bool um_standby_reclaim(um_region *r, uint64_t page); /* the run of that page, now; false: not standby */
enum um_reclaim {
  UM_RECLAIM_FULL,      /* as much as the policy wants gone before more is moved out */
  UM_RECLAIM_SOME,      /* a few, whatever it wants */
  UM_RECLAIM_FRESH_TOO, /* and also what was read ahead a moment ago */
};
#define UM_STANDBY_TAKEN 64u
/* In the order of the policy; it is EVICTING then, inside its gate and to be given up. frames_lock held. UM_NIL: none,
 * or, UM_RECLAIM_FULL alone, *moving: what is next is being moved out. */
um_frame_id um_standby_take(um_pager *p, enum um_reclaim how, bool *moving);
uint64_t um_standby_give_up(um_pager *p, const um_frame_id *ids, uint32_t count); /* UM_STANDBY_TAKEN at most; bytes */
bool um_standby_reclaim_oldest(um_pager *p, enum um_reclaim how);                 /* false: there is none */

/* evict.c, evict_write.c, writeback_send.c */
bool um_memory_make(um_pager *p); /* gives something back, at once; false: there is nothing that could be */
/* For who wants a chunk, and would make a new one of what was given back: chunks stay. `guess`: only of what proved
 * nothing yet. */
bool um_memory_make_chunk(um_pager *p, bool guess);
void um_evict_note_write(um_region *r, int code, um_error *error);
uint64_t um_evict_batch(um_worker *w);                                     /* bytes given back */
void um_evict_settle(um_pager *p, const um_frame_id *ids, uint32_t count); /* picked runs: what stays begins anew */
uint64_t um_evict_drop(um_region *r, uint64_t first,
                       uint64_t count); /* all EVICTING and owned; inside the gate; bytes */
void um_evict_ask(um_pager *p);
int um_writeback_piece(um_worker *w, um_region *r, uint64_t offset, const void *buffer, uint64_t length,
                       um_error *error); /* tried again where that may help */

/* job.c, job_write.c */
void um_job_end(um_pager *p, um_job *job); /* pager->lock held; nobody works on it */
bool um_job_write_step(um_worker *w);      /* pager->lock held; let go inside. False: no job has work left to claim */
bool um_job_prefetch_step(um_worker *w);   /* likewise */
bool um_job_prefetch_waits(um_pager *p);   /* pager->lock held */

/* workers.c */
void *um_filler_main(void *worker);
void *um_evictor_main(void *worker);
void um_work_post(um_pager *p);               /* pager->lock held: something was added for fillers */
bool um_work_may_prefetch(const um_pager *p); /* pager->lock held */
void um_memory_freed(um_pager *p);            /* somebody may be waiting for it */
void um_starved_check(um_pager *p);           /* gives up fills that waited too long */
int um_wait_until(pthread_cond_t *condition, pthread_mutex_t *lock, uint64_t deadline_ns);

/* keeper.c: nobody closes the uffd unseen */
int um_keeper_start(um_pager *p); /* all signals blocked */
void um_keeper_stop(um_pager *p);
void um_keeper_check(um_pager *p); /* does not return when somebody did */

/* error.c */
void um_error_record(um_region *r, um_error *error, uint32_t thread_id);
bool um_error_passing(int code); /* worth another try */
void um_error_wait_init(void);

/* fork.c */
void um_fork_init(void);
uint64_t um_fork_generation(void);
int um_fork_publish(um_region *r);
void um_fork_withdraw(um_region *r);
void um_registry_add(um_pager *p);
void um_registry_remove(um_pager *p);
bool um_fork_overlaps(uintptr_t address, uint64_t length); /* with the memory of any region of this process */
void um_fork_poison(void);                                 /* no region can be read any more */
static inline bool um_pager_forked(const um_pager *p) {
  return p->generation != um_fork_generation();
}

#endif
