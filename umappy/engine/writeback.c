/* writeback.c: sending dirty pages to the store, many at a time.
 *
 * Phases of a batch, whose pages fit the worker's buffer:
 *   claim    DIRTY -> WRITING|COPYING, page by page; neighbours are one run, and one write
 *   protect  one ioctl for runs near each other, BUSY meanwhile; from here a write faults, is let through at once, and
 *            sets REDIRTIED
 *   copy     into the worker's buffer; COPYING ends. A page that somebody drops meanwhile is LOST
 *   write    from the buffer, outside the gate, all runs in flight at once where the store can (writeback_send.c)
 *   finish   a run as its write ends: WRITING -> CLEAN, or DIRTY when it was written to meanwhile or the store failed,
 *            or FAILED when LOST; the evictor takes the pages it wants to EVICTING instead of CLEAN
 * A page of which blocks are tracked, or larger than the buffer, is a batch of its own: its dirty blocks are copied and
 * written a buffer at a time.
 *
 * A write that lands between protect and copy is in the copy and also makes the page dirty again: it is written twice,
 * never lost. Race: flush against evict: a page is WRITING for one of them only; the other waits, having sent what it
 * claimed itself, or passes by.
 *
 * Race: protect against the pages between two runs, which are nobody's or somebody else's. To protect can only cost
 * them a fault: what is absent stays absent and what is CLEAN was protected; one that is filled for a write, or was
 * made writable a moment ago, counts as dirty, and its next write is let through as that of any dirty page. */
#include "writeback.h"

#include "blocks.h"
#include "mechanism.h"
#include "page.h"
#include "uffd.h"

#include <sched.h>

/* What protecting costs (m): a call, and a host page between two runs that it does for nothing. */
#define CALL_NS 900u
#define ABSENT_NS 10u
#define PRESENT_NS 60u

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

/* Protects pages of which some are this thread's, from a run's first to a run's last. */
static int protect(um_writeback *b, uint32_t from, uint32_t to) {
  um_region *r = b->region;
  for (uint32_t i = from; i < to; i++)
    for (uint64_t page = b->runs[i].first; page < b->runs[i].first + b->runs[i].count; page++)
      set_busy(r, page);
  uint64_t first = b->runs[from].first, end = b->runs[to - 1].first + b->runs[to - 1].count;
  return um_uffd_protect(r->pager->uffd, um_page_address(r, first), um_run_memory(r, first, end - first));
}

static void unbusy(um_region *r, const struct um_writeback_run *run) {
  for (uint64_t page = run->first; page < run->first + run->count; page++)
    clear(r, page, UM_BUSY);
}

/* COPYING ends. True: somebody dropped a page before it was copied. */
static bool end_copying(um_region *r, const struct um_writeback_run *run) {
  bool lost = false;
  for (uint64_t page = run->first; page < run->first + run->count; page++)
    lost |= (clear(r, page, UM_COPYING) & UM_LOST) != 0;
  return lost;
}

/* What a page becomes whose write ended with `code`; `evict`: it is to be dropped if it may be. Returns the state it
 * was put in. */
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

static void finish_run(um_writeback *b, uint32_t index, int code, um_error *error) { /* inside the gate */
  um_region *r = b->region;
  const struct um_writeback_run *run = &b->runs[index];
  const bool *evict = b->evict + (((char *)b->writes[index].buffer - (char *)b->worker->staging) >> r->page_shift);
  uint64_t dropping = 0;
  for (uint64_t i = 0; i <= run->count; i++) {
    if (i < run->count && finish(r, run->first + i, code, evict[i]) == UM_EVICTING) {
      dropping++;
      continue;
    }
    if (dropping)
      b->freed += um_evict_drop(r, run->first + i - dropping, dropping);
    dropping = 0;
  }
  if (code == 0) {
    UM_COUNT(r, writes, run->count);
    b->pages += run->count;
  }
  if (code != -ECANCELED)
    b->ended(b, code, error);
}

static void tell_progress(um_pager *p) {
  pthread_mutex_lock(&p->lock);
  pthread_cond_broadcast(&p->progress);
  pthread_mutex_unlock(&p->lock);
}

static int fail_memory(const um_region *r, const struct um_writeback_run *run, int code, um_error *error) {
  uint64_t start = run->first << r->page_shift, data = um_run_bytes(r, run->first, run->count);
  return um_error_set(error, code, UM_OP_MEMORY, start, data, "%s",
                      code == UM_EDROPPED ? "unwritten bytes were dropped by somebody's madvise or munmap"
                                          : "the kernel would not protect the page");
}

/* One page, a buffer at a time. Its dirty blocks, where there are such, are taken while nobody can add to them. */
static int write_page(um_writeback *b, um_error *error) {
  um_worker *w = b->worker;
  um_region *r = b->region;
  const struct um_writeback_run *run = &b->runs[0];
  uint64_t page = run->first, start = page << r->page_shift, at = 0, length = 0;
  um_frame *f = &r->pager->frames[um_word_frame(um_page_load(r, page))];
  int code = protect(b, 0, 1);
  uint64_t blocks = code || !um_blocks_tracked(r) ? UM_BLOCKS_ALL : atomic_exchange(&f->blocks, 0);
  UM_ASSERT(blocks != 0);
  unbusy(r, run);
  if (code)
    return fail_memory(r, run, -code, error);

  bool lost = false, more = um_blocks_next(r, page, blocks, &at, &length);
  while (more && code == 0 && !lost) {
    uint64_t n = um_min(length, w->staging_size), from = at;
    copy_out(w->staging, (const void *)(r->address + start + from), n);
    at += n;
    length -= n;
    more = length || um_blocks_next(r, page, blocks, &at, &length);
    lost = more ? (um_page_load(r, page) & UM_LOST) != 0 : end_copying(r, run);
    if (lost)
      break;
    um_gate_leave(r);
    code = um_writeback_piece(w, r, start + from, w->staging, n, error);
    um_gate_enter_wait(r);
  }
  if (um_blocks_tracked(r) && (code || lost))
    atomic_fetch_or(&f->blocks, blocks);
  return lost ? fail_memory(r, run, UM_EDROPPED, error) : code;
}

/* To protect what lies between two runs, too, costs less than another call. Not FAILED pages: a write to one asks the
 * store again. */
static bool is_near(const um_region *r, const struct um_writeback_run *run, const struct um_writeback_run *next) {
  uint64_t page = run->first + run->count, host_pages = r->page_size / um_host_page, ns = 0;
  if (next->first < page)
    return false;
  for (; page < next->first; page++) {
    enum um_state state = um_word_state(um_page_load(r, page));
    ns += host_pages * (state == UM_ABSENT ? ABSENT_NS : PRESENT_NS);
    if (state == UM_FAILED || ns > CALL_NS)
      return false;
  }
  return true;
}

/* Protects and copies; runs of which that failed end here. */
static void copy_all(um_writeback *b) {
  um_region *r = b->region;
  uint32_t kept = 0;
  for (uint32_t from = 0, to; from < b->count; from = to) {
    for (to = from + 1; to < b->count && is_near(r, &b->runs[to - 1], &b->runs[to]); to++)
      ;
    int failed = protect(b, from, to);
    for (uint32_t i = from; i < to; i++)
      unbusy(r, &b->runs[i]);
    for (uint32_t i = from; i < to; i++) {
      um_error error;
      struct um_writeback_run run = b->runs[i];
      um_write write = b->writes[i];
      int code = failed;
      if (!code) {
        copy_out(write.buffer, (const void *)um_page_address(r, run.first), write.length);
        code = end_copying(r, &run) ? -UM_EDROPPED : 0;
      }
      b->runs[kept] = run;
      b->writes[kept] = write;
      if (code)
        finish_run(b, kept, fail_memory(r, &run, -code, &error), &error);
      else
        kept++;
    }
  }
  b->count = kept;
}

static bool run_ended(void *context, um_write *write, um_error *error) {
  um_writeback *b = context;
  um_region *r = b->region;
  um_gate_enter_wait(r);
  finish_run(b, (uint32_t)(write - b->writes), write->code, error);
  if (++b->done == b->count) /* nothing else may keep region and store from being closed under this thread */
    return true;
  um_gate_leave(r);
  if (error) /* one by one, which takes its time */
    tell_progress(r->pager);
  return !b->stop;
}

static bool is_paged(const um_writeback *b) { /* a page is a batch of its own */
  return um_blocks_tracked(b->region) || b->region->page_size > b->worker->staging_size;
}

void um_writeback_begin(um_writeback *b, um_worker *w, um_region *r, void (*ended)(um_writeback *, int, um_error *),
                        void *context) {
  b->worker = w;
  b->region = r;
  b->ended = ended;
  b->context = context;
  b->stop = false;
  b->pages = b->freed = b->used = b->count = 0;
}

uint64_t um_writeback_room(const um_writeback *b) {
  if (is_paged(b))
    return b->count == 0;
  return (b->worker->staging_size - b->used) >> b->region->page_shift;
}

void um_writeback_add(um_writeback *b, uint64_t first, uint64_t count, bool evict) {
  um_region *r = b->region;
  struct um_writeback_run *last = b->count ? &b->runs[b->count - 1] : NULL;
  uint64_t at = is_paged(b) ? 0 : b->used >> r->page_shift;
  memset(b->evict + at, evict, count);
  if (last && last->first + last->count == first) {
    last->count += count;
  } else {
    last = &b->runs[b->count];
    *last = (struct um_writeback_run){first, count};
    b->writes[b->count++] =
        (um_write){.offset = first << r->page_shift, .buffer = (char *)b->worker->staging + b->used};
  }
  b->writes[b->count - 1].length = um_run_bytes(r, last->first, last->count);
  b->used += count << r->page_shift;
}

void um_writeback_send(um_writeback *b) {
  um_region *r = b->region;
  um_error error;
  if (b->count == 0)
    return;
  if (b->stop) {
    for (uint32_t i = 0; i < b->count; i++)
      finish_run(b, i, -ECANCELED, NULL);
  } else if (is_paged(b)) {
    finish_run(b, 0, write_page(b, &error), &error);
  } else {
    copy_all(b);
    if (b->count) {
      b->done = 0;
      um_gate_leave(r);
      um_writeback_many(b->worker, r, b->writes, b->count, run_ended, b);
    }
  }
  b->count = 0;
  b->used = 0;
  tell_progress(r->pager);
}
