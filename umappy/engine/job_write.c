/* job_write.c: flush and evict of a range on a caller's behalf: what evictors do of a job.
 *
 * A step is a span, or of a flush as many as have a buffer full of dirty pages: scattered pages are claimed one by one
 * and written many at once (writeback.c). Nobody waits for a page of somebody else's while pages are claimed: two
 * flushes could wait for each other. */
#include "blocks.h"
#include "leave.h"
#include "page.h"
#include "writeback.h"

#include <sched.h>

#define SPANS_LOOKED_AT 65536 /* a step, under pager->lock */
#define FAILURES_MAX 16       /* runs that may fail before a flush stops trying the rest */

static void note(um_job *job, int code, const um_error *error) { /* pager->lock held */
  if (code == 0)
    return;
  if (job->error.code == 0)
    job->error = *error;
  if (++job->failures >= FAILURES_MAX)
    job->cancelled = true;
}

/* A page of ours is WRITING for somebody else, which ends within the store's deadline, or about to become DIRTY. */
static void wait_for_owner(um_region *r, uint64_t page) {
  um_pager *p = r->pager;
  um_gate_leave(r);
  pthread_mutex_lock(&p->lock);
  enum um_state state = um_word_state(um_page_load(r, page));
  bool writing = state == UM_WRITING || state == UM_LEAVING;
  if (writing || state == UM_FILLING) /* nobody tells the end of a fill */
    um_wait_until(&p->progress, &p->lock, um_now_ns() + (writing ? 5000000 : 100000));
  pthread_mutex_unlock(&p->lock);
  if (state == UM_EVICTING)
    sched_yield(); /* a system call of somebody's */
  um_gate_enter_wait(r);
}

/* Takes CLEAN and FAILED neighbours from page on and drops them; how many. */
static uint64_t drop_clean(um_region *r, uint64_t page, uint64_t last) {
  uint64_t count = 0;
  while (page + count < last) {
    um_word w = um_page_load(r, page + count);
    enum um_state state = um_word_state(w);
    if ((state != UM_CLEAN && state != UM_FAILED) || (w & UM_BUSY) ||
        !um_page_change(r, page + count, &w, um_word_make(UM_EVICTING, 0, um_word_frame(w))))
      break;
    count++;
  }
  if (count)
    um_evict_drop(r, page, count);
  return count;
}

/* True: the job is cancelled. */
static bool note_in_gate(um_job *job, int code, const um_error *error) {
  pthread_mutex_lock(&job->pager->lock);
  note(job, code, error);
  bool cancelled = job->cancelled;
  pthread_mutex_unlock(&job->pager->lock);
  return cancelled;
}

/* Claims pages from `page` on; how many to go on from. */
static uint64_t write(um_writeback *b, uint64_t page, uint64_t count, bool evict) {
  if (um_writeback_room(b) == 0)
    um_writeback_send(b);
  uint64_t n = um_writeback_claim(b->region, page, um_min(count, um_writeback_room(b)));
  if (n)
    um_writeback_add(b, page, n, evict);
  return n;
}

static void note_run(um_writeback *b, int code, um_error *error) {
  if (code == 0)
    atomic_store(&b->region->write_backoff_ns, 0);
  else
    b->stop = note_in_gate(b->context, code, error);
}

/* Takes pages of one run from `page` on, which were writable once, and moves them out, so that a device's bytes are not
 * lost; dirty ones are written. How many to go on from. */
static uint64_t move_out(um_writeback *b, uint64_t page, uint64_t last, um_word word) {
  um_region *r = b->region;
  bool dirty = um_word_state(word) == UM_DIRTY;
  uint64_t limit = um_min(last - page, um_run_limit(r, UM_CHUNK));
  uint64_t n =
      um_run_take(r, page, limit, UM_IN(um_word_state(word)), um_word_frame(word), dirty ? UM_LEAVING : UM_EVICTING);
  if (n == 0) {
    sched_yield();
    return 0;
  }
  um_error error;
  um_leaving v = {.region = r, .page = page, .count = n, .dirty = dirty, .error = &error};
  um_leave_group(r->pager, b->worker, &v, 1);
  if (v.failed == -EBUSY) /* pinned: it stays */
    return n;
  if (v.failed && v.unmoved && dirty) /* it has a hole, or is locked, and is DIRTY again */
    return write(b, page, n, true);
  if (v.failed && !v.unmoved)
    b->stop = note_in_gate(b->context, v.failed, &error);
  else
    b->pages += n;
  return n;
}

/* A page somebody else owns for a while, so that this thread may wait for it. */
static bool is_owned(um_job_kind kind, um_word word) {
  enum um_state state = um_word_state(word);
  if (state == UM_FILLING) /* Race: flush or evict against fill. It is open: a write that came before may be in it. */
    return word & UM_OPEN;
  return state == UM_WRITING || state == UM_LEAVING || (kind == UM_JOB_EVICT && state == UM_EVICTING);
}

/* One page or several from `page` on, that nobody else owns; how many to go on from. */
static uint64_t evict(um_writeback *b, uint64_t page, uint64_t last, um_word word) {
  um_region *r = b->region;
  enum um_state state = um_word_state(word);
  if (state == UM_STANDBY)
    return um_standby_reclaim(r, page) ? 0 : 1; /* 0: gone, or somebody else's for a moment */
  if (state != UM_DIRTY && state != UM_CLEAN && state != UM_FAILED)
    return 1;
  bool opened = state != UM_FAILED && atomic_load(&r->pager->frames[um_word_frame(word)].opened);
  if (r->moves && (state == UM_DIRTY || opened))
    return move_out(b, page, last, word);
  if (state == UM_DIRTY)
    return write(b, page, last - page, true);
  uint64_t n = drop_clean(r, page, last);
  b->pages += n;
  if (n == 0)
    sched_yield(); /* BUSY, or no longer what it was: look again */
  return n;
}

/* The first page at or behind this one that is dirty or about to be; `last`: none. */
static uint64_t find_dirty(const um_region *r, uint64_t page, uint64_t last) {
  const uint32_t found = UM_IN(UM_DIRTY) | UM_IN(UM_WRITING) | UM_IN(UM_LEAVING) | UM_IN(UM_FILLING);
  while (page < last) {
    uint64_t span = um_words_span(r, page), end = um_min(last, um_max(um_words_span_page(r, span + 1), page + 1));
    if (atomic_load(&r->spans[span].dirty) == 0)
      page = end;
    for (; page < end; page++)
      if (UM_IN(um_word_state(um_page_look(r, page))) & found)
        return page;
  }
  return last;
}

static void work_on_pages(um_worker *w, um_job *job, uint64_t page, uint64_t last) {
  um_region *r = job->region;
  um_writeback b;
  um_writeback_begin(&b, w, r, note_run, job);
  um_gate_enter_wait(r);
  while (page < last && !b.stop) {
    um_word word = um_page_look(r, page);
    if (is_owned(job->kind, word)) {
      um_writeback_send(&b);
      wait_for_owner(r, page);
    } else if (job->kind == UM_JOB_EVICT) {
      page += evict(&b, page, last, word);
    } else if (um_word_state(word) == UM_DIRTY) {
      page += write(&b, page, last - page, false);
    } else {
      page = find_dirty(r, page + 1, last);
    }
  }
  um_writeback_send(&b);
  um_gate_leave(r);
  pthread_mutex_lock(&w->pager->lock);
  job->pages += b.pages;
}

/* pager->lock held. The next spans with work in them: one, or of a flush as many as have `most` dirty pages. False:
 * none left. *last == *first: look again later. */
static bool claim_spans(um_job *job, uint64_t most, uint64_t *first, uint64_t *last) {
  um_region *r = job->region;
  uint64_t found = 0;
  *first = *last = job->cursor;
  for (int looked = 0; job->cursor < job->end && !job->cancelled && found < most; looked++) {
    uint64_t span = um_words_span(r, job->cursor);
    um_span *s = &r->spans[span];
    uint64_t work = atomic_load(job->kind == UM_JOB_FLUSH ? &s->dirty : &s->live);
    if (work && !found)
      *first = job->cursor;
    job->cursor = um_min(job->end, um_max(um_words_span_page(r, span + 1), job->cursor + 1));
    if (work)
      *last = job->cursor;
    found += work;
    if (looked == SPANS_LOOKED_AT)
      return true;
  }
  return found;
}

/* Where the store takes many at once; else spans are shared out, as each write of them takes its time. */
static uint64_t step_pages(const um_worker *w, const um_job *job) {
  um_region *r = job->region;
  return job->kind == UM_JOB_FLUSH && r->store->ops->write_batch ? um_run_limit(r, w->staging_size) : 1;
}

/* Race: flush against flush. Who finds nothing unflushed may rely on a flush that returned, not on one under way. */
static void flush_store(um_worker *w, um_job *job) { /* pager->lock held; let go inside */
  um_region *r = job->region;
  um_error error;
  if (!atomic_exchange(&r->unflushed, false) && r->flushing == 0)
    return;
  r->flushing++;
  pthread_mutex_unlock(&w->pager->lock);
  int code = r->store->ops->flush(r->store, &error);
  UM_COUNT(r, store_flushes, 1);
  if (code)
    atomic_store(&r->unflushed, true);
  pthread_mutex_lock(&w->pager->lock);
  r->flushing--;
  note(job, code, &error);
}

bool um_job_write_step(um_worker *w) {
  um_pager *p = w->pager;
  for (um_job *job = p->write_jobs; job; job = job->next) {
    uint64_t first, last;
    if (claim_spans(job, step_pages(w, job), &first, &last)) {
      if (first == last)
        return true;
      job->active++;
      pthread_mutex_unlock(&p->lock);
      work_on_pages(w, job, first, last);
      job->active--;
      return true;
    }
    if (job->active)
      continue; /* others still work on it; the last ends it */
    if (job->durable) {
      job->durable = false;
      job->active++;
      flush_store(w, job);
      job->active--;
    }
    um_job_end(p, job);
    return true;
  }
  return false;
}
