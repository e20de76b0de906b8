/* writeback.c: sending dirty pages to the store, a run of neighbours at a time.
 *
 * Phases of a run:
 *   claim    DIRTY -> WRITING|COPYING, page by page, neighbours while they are dirty and the buffer lasts
 *   protect  one ioctl for the run, BUSY meanwhile; from here a write faults, is let through at once, and sets
 *            REDIRTIED
 *   copy     into the worker's buffer, of a large page its dirty blocks; COPYING ends. A page that somebody drops
 *            meanwhile is LOST
 *   write    from the buffer, outside the gate
 *   finish   WRITING -> CLEAN, or DIRTY when it was written to meanwhile or the store failed, or FAILED when LOST; the
 *            evictor takes the pages it wants to EVICTING instead of CLEAN
 *
 * A write that lands between protect and copy is in the copy and also makes the page dirty again: it is written twice,
 * never lost. Race: flush against evict: a page is WRITING for one of them only; the other waits or passes by. */
#include "blocks.h"
#include "mechanism.h"
#include "page.h"
#include "uffd.h"

#include <sched.h>

uint64_t um_writeback_claim(um_region *r, uint64_t page, uint64_t limit) {
  uint64_t count = 0;
  while (count < limit) {
    um_word w = um_page_load(r, page + count);
    if (um_word_state(w) != UM_DIRTY)
      break;
    if (w & UM_BUSY) {
      sched_yield(); /* an ioctl of the leader */
      continue;
    }
    if (um_page_change(r, page + count, &w, um_word_make(UM_WRITING, UM_COPYING, um_word_frame(w))))
      count++;
  }
  return count;
}

/* REDIRTIED starts anew: what was written before the protect is in the copy that follows it. */
static void set_busy(um_region *r, uint64_t page) {
  um_word w = um_page_load(r, page);
  for (;;) {
    if (w & UM_BUSY) {
      sched_yield(); /* an ioctl of the leader */
      w = um_page_load(r, page);
    } else if (um_page_change(r, page, &w, (w | UM_BUSY) & ~(um_word)UM_REDIRTIED)) {
      return;
    }
  }
}

/* Clears flags of a page that stays WRITING; who waited on them is woken. Returns the word as it was. */
static um_word clear(um_region *r, uint64_t page, um_word flags) {
  um_word w = um_page_load(r, page);
  while (!um_page_change(r, page, &w, w & ~(flags | UM_WAITER)))
    ;
  if (w & UM_WAITER)
    um_page_wake(r, page, 1);
  return w;
}

static int write_piece(um_worker *w, um_region *r, uint64_t offset, const void *buffer, uint64_t length,
                       um_error *error) {
  uint64_t deadline = um_now_ns() + w->pager->timeout_ns;
  for (int attempt = 1;; attempt++) {
    error->code = 0;
    int code = r->store->ops->write(r->store, offset, buffer, length, error);
    UM_COUNT(r, store_writes, 1);
    if (code == 0) {
      UM_COUNT(r, bytes_written, length);
      atomic_store(&r->unflushed, true);
      return 0;
    }
    UM_COUNT(r, write_errors, 1);
    if (attempt == 3 || !um_error_passing(-code) || um_now_ns() >= deadline)
      return code;
    UM_COUNT(r, retries, 1);
    struct timespec pause = {0, 10000000L << (2 * attempt)};
    nanosleep(&pause, NULL);
  }
}

int um_writeback_piece(um_worker *w, um_region *r, uint64_t offset, const void *buffer, uint64_t length,
                       um_error *error) {
  atomic_fetch_add(&r->writes_begun, 1); /* what was read beside it is not trusted; gather.c */
  int code = write_piece(w, r, offset, buffer, length, error);
  atomic_fetch_add(&r->writes_ended, 1);
  return code;
}

/* Users of the region may write to it meanwhile, which is why the page was protected first. */
#ifdef __SANITIZE_THREAD__
__attribute__((no_sanitize("thread"))) static void copy_out(void *to, const void *from, uint64_t length) {
  for (uint64_t i = 0; i < length; i++) /* memcpy is always looked at */
    ((volatile char *)to)[i] = ((const volatile char *)from)[i];
}
#else
static void copy_out(void *to, const void *from, uint64_t length) {
  memcpy(to, from, length);
}
#endif

/* Protects the run; the dirty blocks of its page, where there are such, are taken while nobody can add to them. */
static int protect(um_region *r, uint64_t first, uint64_t count, um_frame *f, uint64_t *blocks) {
  for (uint64_t page = first; page < first + count; page++)
    set_busy(r, page);
  int code = um_uffd_protect(r->pager->uffd, um_page_address(r, first), um_run_memory(r, first, count));
  *blocks = code || !um_blocks_tracked(r) ? UM_BLOCKS_ALL : atomic_exchange(&f->blocks, 0);
  UM_ASSERT(*blocks != 0);
  for (uint64_t page = first; page < first + count; page++)
    clear(r, page, UM_BUSY);
  return code;
}

/* The stretch to write at or behind byte *at of the run. */
static bool next_stretch(const um_region *r, uint64_t first, uint64_t count, uint64_t blocks, uint64_t *at,
                         uint64_t *length) {
  if (count == 1)
    return um_blocks_next(r, first, blocks, at, length);
  *length = um_run_bytes(r, first, count);
  return *at == 0;
}

/* COPYING ends. True: somebody dropped a page before it was copied. */
static bool end_copying(um_region *r, uint64_t first, uint64_t count) {
  bool lost = false;
  for (uint64_t page = first; page < first + count; page++)
    lost |= (clear(r, page, UM_COPYING) & UM_LOST) != 0;
  return lost;
}

/* Inside the gate at entry and at return; left during the write. The pages stay WRITING. */
int um_writeback_run(um_worker *w, um_region *r, uint64_t first, uint64_t count, um_error *error) {
  uint64_t start = first << r->page_shift, data = um_run_bytes(r, first, count), blocks, at = 0, length = 0;
  um_frame *f = &r->pager->frames[um_word_frame(um_page_load(r, first))];
  UM_ASSERT(count == 1 || (um_run_memory(r, first, count) <= w->staging_size && !um_blocks_tracked(r)));
  int code = protect(r, first, count, f, &blocks);
  if (code)
    return um_error_set(error, -code, UM_OP_MEMORY, start, data, "the kernel would not protect the page");

  bool lost = false, more = next_stretch(r, first, count, blocks, &at, &length);
  while (more && code == 0) {
    uint64_t n = um_min(length, w->staging_size), from = at;
    copy_out(w->staging, (const void *)(r->address + start + from), n);
    at += n;
    length -= n;
    more = length || next_stretch(r, first, count, blocks, &at, &length);
    lost = more ? (um_page_load(r, first) & UM_LOST) != 0 : end_copying(r, first, count);
    if (lost)
      break;
    um_gate_leave(r);
    code = um_writeback_piece(w, r, start + from, w->staging, n, error);
    um_gate_enter_wait(r);
  }
  if (um_blocks_tracked(r) && (code || lost))
    atomic_fetch_or(&f->blocks, blocks);
  if (lost) { /* the others of the run are tried again */
    um_error_set(error, UM_EDROPPED, UM_OP_MEMORY, start, data,
                 "unwritten bytes were dropped by somebody's madvise or munmap");
    return -UM_EDROPPED;
  }
  if (code == 0)
    UM_COUNT(r, writes, count);
  return code;
}

/* What a page becomes that comes out of um_writeback_run with `code`; `evict`: it is to be dropped if it may be.
 * Returns the state it was put in. */
static enum um_state finish(um_region *r, uint64_t page, int code, bool evict) {
  um_word w = um_page_load(r, page);
  for (;;) {
    enum um_state state = (code || (w & UM_REDIRTIED)) ? UM_DIRTY : evict ? UM_EVICTING : UM_CLEAN;
    if (w & UM_BUSY) { /* the leader is unprotecting it */
      sched_yield();
      w = um_page_load(r, page);
      continue;
    }
    if (w & UM_LOST) {
      if (!um_page_change(r, page, &w, w | UM_BUSY))
        continue;
      um_uffd_protect(r->pager->uffd, um_page_address(r, page), um_page_memory(r, page));
      atomic_store(&r->tainted, true);
      um_page_release(r, page, UM_FAILED);
      return UM_FAILED;
    }
    if (!um_page_change(r, page, &w, um_word_make(state, state == UM_EVICTING ? w & UM_WAITER : 0, um_word_frame(w))))
      continue;
    if ((w & UM_WAITER) && state != UM_EVICTING)
      um_page_wake(r, page, 1);
    return state;
  }
}

uint64_t um_writeback_finish(um_region *r, uint64_t first, uint64_t count, int code, const bool *evict) {
  uint64_t dropping = 0, freed = 0;
  for (uint64_t i = 0; i < count; i++) {
    uint64_t page = first + i;
    if (finish(r, page, code, evict && evict[i]) == UM_EVICTING) {
      dropping++;
      continue;
    }
    if (dropping)
      freed += um_evict_drop(r, page - dropping, dropping);
    dropping = 0;
  }
  if (dropping)
    freed += um_evict_drop(r, first + count - dropping, dropping);
  pthread_mutex_lock(&r->pager->lock);
  pthread_cond_broadcast(&r->pager->progress);
  pthread_mutex_unlock(&r->pager->lock);
  return freed;
}
