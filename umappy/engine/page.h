/* page.h: the page word, and the only way to change it.
 *
 * One atomic 64-bit word a page: bits 0-3 the state, 4-9 flags, 32-63 the frame descriptor. An absent page's word
 * is zero, so the bookkeeping of untouched pages is untouched memory (words.c).
 *
 *                    fault, prefetch, overwrite                filled for a read, prefetched
 *        ABSENT --------------------------------> FILLING ------------------------------------> CLEAN
 *          ^  ^   um_page_claim                      |  | filled for a write, overwritten        |  ^
 *          |  |   (fill.c prefetch.c overwrite.c)    |  +------------------------------> DIRTY <-+  |
 *          |  | prefetch failed, fill cancelled      |                     write fault     |  ^ (fault.c)
 *          |  +--------------------------------------+ store failed                        |  |     |
 *          |    (prefetch.c, fill.c)                 v                    um_writeback_    |  | redirtied or
 *          |                                      FAILED <--+             claim            v  | store failed
 *          |  um_evict_drop                          |      | dropped                  WRITING ----+
 *          +---------------------- EVICTING <--------+      | under us                     | store took it
 *                                    ^  (evict.c, fault.c: write fault, um_region_retry)   |
 *                                    +----- CLEAN (evict.c)  ^ <---------------------------+
 *                                                            +--- DIRTY, WRITING (fault.c, writeback.c)
 *
 * CLEAN means protected: the first write faults. DIRTY pages may be protected or not. In WRITING the page is
 * protected until a write fault, which sets REDIRTIED and unprotects at once: what is being written is a copy. */
#ifndef UM_PAGE_H
#define UM_PAGE_H

#include "internal.h"

enum um_state {
  UM_ABSENT = 0,
  UM_FILLING = 1, /* owned by a filler, or by the thread that overwrites */
  UM_CLEAN = 2,
  UM_DIRTY = 3,
  UM_WRITING = 4,  /* owned by an evictor; faults may set flags and unprotect */
  UM_EVICTING = 5, /* owned by who drops it */
  UM_FAILED = 6,   /* holds 0xFF in place of bytes that could not be had; never written back */
};

#define UM_STATE_MASK 0xfu
#define UM_BUSY 0x10u      /* owned for an ioctl or two by who set it */
#define UM_WAITER 0x20u    /* a fault message came meanwhile: the owner wakes when it lets go */
#define UM_REDIRTIED 0x40u /* WRITING: written to again since it was protected */
#define UM_COPYING 0x80u   /* WRITING: the evictor is still copying it */
#define UM_OPEN 0x200u     /* FILLING: writable memory may be in place already, so it counts as dirty */
#define UM_LOST 0x100u     /* WRITING: dropped under us while it was being copied */
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

/* Compare and swap; checks the edge and keeps the region's counts. On failure *expected is what is there. */
bool um_page_change(um_region *r, uint64_t page, um_word *expected, um_word desired);

/* words.c */
#define UM_LIVE_DROPPING 0xffffffffu
int um_words_create(um_region *r);
void um_words_destroy(um_region *r);
uint64_t um_words_enter(um_region *r, uint64_t page); /* bytes of bookkeeping that it made, now charged */
void um_words_leave(um_region *r, uint64_t page);
uint64_t um_words_span(const um_region *r, uint64_t page);      /* the span its first byte is in */
uint64_t um_words_span_page(const um_region *r, uint64_t span); /* the first page that begins in it */
uint64_t um_words_cost(const um_region *r);                     /* the most that um_words_enter may charge */

/* What must be reserved before a page is claimed: its memory, and the bookkeeping it may need. */
static inline uint64_t um_page_cost(const um_region *r, uint64_t page) {
  return um_page_memory(r, page) + um_words_cost(r);
}

/* ABSENT -> FILLING with this descriptor; inside the gate, um_page_cost reserved. Gives back what of the bookkeeping
 * was not needed. False: somebody was first; the page's memory is still reserved, and the descriptor the caller's. */
bool um_page_claim(um_region *r, uint64_t page, um_frame_id frame);

/* The same with a descriptor of its own; false: nothing is reserved any more. */
bool um_page_take(um_region *r, uint64_t page);

/* FILLING pages whose memory is about to become writable: somebody may write to it before they are DIRTY, and a flush
 * that comes after that write must not pass them by. */
void um_page_open(um_region *r, uint64_t first, uint64_t count);

/* The owner lets go: the page gets `state`, keeps its frame, loses every flag; whoever waited is woken. Returns the
 * word as it was. For every state but ABSENT (that is um_page_absent). */
um_word um_page_release(um_region *r, uint64_t page, enum um_state state);

/* The owner lets go of a page whose memory is gone: word zero, frame and bookkeeping given back, waiters woken. */
void um_page_absent(um_region *r, uint64_t page);

void um_page_wake(um_region *r, uint64_t first, uint64_t count);

#endif
