/* page.h: the page word, and the only way to change it.
 *
 * One atomic 64-bit word a page: bits 0-3 the state, 4-10 flags, 11-19 the place of a page that waits, 32-63 the frame
 * descriptor, which the pages of a run share. An absent page's word is zero, so the bookkeeping of untouched pages is
 * untouched memory (words.c).
 *
 *                    fault, prefetch, overwrite                filled for a read, prefetched
 *        ABSENT --------------------------------> FILLING ------------------------------------> CLEAN
 *        ^ ^  ^   um_run_claim                    ^  |  | filled for a write, overwritten        |  ^
 *        | |  |   (fill.c prefetch.c overwrite.c) |  |  +------------------------------> DIRTY <-+  |
 *        | |  | prefetch failed, fill cancelled   |  |                     write fault   ^ | ^ (fault.c)
 *        | |  +----------------------------------(|)-+ store failed                      | | |      |
 *        | |    (prefetch.c, fill.c)              |  v                   um_writeback_    | | | redirtied or
 *        | |                           touched    | FAILED <--+            claim          | v | store failed
 *        | |                        (standby.c)   |  |        | dropped                 WRITING ----+
 *        | |  um_evict_drop                       |  |        | under us                  | store took it
 *        | +-------------------- EVICTING <-------(|)+        |                           |
 *        |                        |  ^            |           +- DIRTY, WRITING           |
 *        |   moved out (evict.c)  |  +--- CLEAN --(|)---------------- (evict.c) <---------+
 *        |                        v               |
 *        +--------------------- STANDBY ----------+<-- FILLING: read ahead (ahead.c)
 *          um_standby_reclaim     ^
 *                                 +-- LEAVING <-- DIRTY: moved out, then written (leave.c); a store that fails, a pin:
 *                                                 back to DIRTY
 *
 * CLEAN means protected, or of a region that is only read: the first write faults. DIRTY pages may be protected or
 * not. In WRITING the page is protected until a write fault, which sets REDIRTIED and unprotects at once: what is being
 * written is a copy. STANDBY: not mapped, but its bytes are in a chunk or a slot (pool.c); its run is owned by who
 * changes the word of the run's first page. */
#ifndef UM_PAGE_H
#define UM_PAGE_H

#include "internal.h"

enum um_state {
  UM_ABSENT = 0,
  UM_FILLING = 1, /* owned by a filler, or by the thread that overwrites or goes through */
  UM_CLEAN = 2,
  UM_DIRTY = 3,
  UM_WRITING = 4,  /* owned by an evictor; faults may set flags and unprotect */
  UM_EVICTING = 5, /* owned by who drops it */
  UM_FAILED = 6,   /* holds 0xFF in place of bytes that could not be had; never written back */
  UM_STANDBY = 7,  /* not mapped, bytes kept in the pool */
  UM_LEAVING = 8,  /* dirty, moved out of the mapping or about to be, being written; owned by an evictor */
};
#define UM_IN(state) (1u << (state)) /* sets of states */

#define UM_STATE_MASK 0xfu
#define UM_BUSY 0x10u      /* owned for an ioctl or two by who set it */
#define UM_WAITER 0x20u    /* a fault message came meanwhile: the owner wakes when it lets go */
#define UM_REDIRTIED 0x40u /* WRITING: written to again since it was protected */
#define UM_COPYING 0x80u   /* WRITING: the evictor is still copying it */
#define UM_OPEN 0x200u     /* FILLING: writable memory may be in place already, so it counts as dirty */
#define UM_LOST 0x100u     /* WRITING: dropped under us while it was being copied */
#define UM_SMALL 0x400u    /* STANDBY: of a run shorter than a chunk, in its slot; */
#define UM_PLACE_SHIFT 11  /* and which page of the run it is, in 9 bits */
#define UM_FRAME_SHIFT 32

static inline enum um_state um_word_state(um_word w) {
  return (enum um_state)(w & UM_STATE_MASK);
}
static inline um_frame_id um_word_frame(um_word w) {
  return (um_frame_id)(w >> UM_FRAME_SHIFT);
}
static inline um_word um_word_make(enum um_state state, um_word flags, um_frame_id frame) {
  return ((um_word)frame << UM_FRAME_SHIFT) | flags | (um_word)state;
}
static inline um_word um_page_load(const um_region *r, uint64_t page) {
  return atomic_load_explicit(&r->words[page], memory_order_acquire);
}

/* The word of a page that may well be ABSENT. Reading memory of words in which nothing is would map a page of zeros
 * there, which the first claim would have to replace: a fault more, and a flush of other processors' translations. */
#define UM_LIVE_DROPPING 0xffffffffu
static inline um_word um_page_look(const um_region *r, uint64_t page) {
  uint64_t block = page * sizeof *r->words >> __builtin_ctzll(um_host_page);
  uint32_t live = atomic_load_explicit(&r->block_live[block], memory_order_acquire);
  return live == 0 || live == UM_LIVE_DROPPING ? 0 : um_page_load(r, page);
}

/* Compare and swap; checks the edge and keeps the region's counts. On failure *expected is what is there. */
bool um_page_change(um_region *r, uint64_t page, um_word *expected, um_word desired);

/* A run, many pages at once; the counts are kept once for all. Inside the gate.
 *
 * claim: ABSENT -> FILLING, the caller's, of the leading pages that are absent; how many. What was reserved for
 *        bookkeeping (um_run_cost) and is not needed is given back, what was reserved for pages not claimed is not.
 * take:  leading pages whose state is one of `from`, not BUSY, of this frame -> an owned state; how many.
 * open:  FILLING pages whose memory is about to become writable: somebody may write to it before they are DIRTY, and a
 *        flush that comes after that write must not pass them by.
 * release: the owner lets go: the pages get `state`, keep their frame, lose every flag; the flags they had. Wakes
 * nobody. absent: the owner lets go of pages whose memory is gone: words zero, frame and bookkeeping given back,
 * waiters woken. */
uint64_t um_run_claim(um_region *r, uint64_t first, uint64_t count, um_frame_id frame);
uint64_t um_run_take(um_region *r, uint64_t first, uint64_t count, uint32_t from, um_frame_id frame, enum um_state to);
void um_run_open(um_region *r, uint64_t first, uint64_t count);
um_word um_run_release(um_region *r, uint64_t first, uint64_t count, enum um_state state);
void um_run_absent(um_region *r, uint64_t first, uint64_t count);
bool um_run_waiter(const um_region *r, uint64_t first, uint64_t count, uint64_t *page); /* the first with WAITER */

uint64_t um_run_cost(const um_region *r, uint64_t first, uint64_t count); /* bytes to reserve before um_run_claim */

/* um_run_release of one page; whoever waited is woken. Returns the word as it was. */
um_word um_page_release(um_region *r, uint64_t page, enum um_state state);

void um_page_wake(um_region *r, uint64_t first, uint64_t count);

/* words.c */
int um_words_create(um_region *r);
void um_words_destroy(um_region *r);
uint64_t um_words_enter(um_region *r, uint64_t first, uint64_t count); /* bytes of bookkeeping it made, now charged */
void um_words_leave(um_region *r, uint64_t first, uint64_t count);
uint64_t um_words_span(const um_region *r, uint64_t page);                  /* the span its first byte is in */
uint64_t um_words_span_page(const um_region *r, uint64_t span);             /* the first page that begins in it */
uint64_t um_words_cost(const um_region *r, uint64_t first, uint64_t count); /* the most um_words_enter may charge */
uint64_t um_words_cost_most(const um_region *r);                            /* the same, for any one page */

#endif
