/* ahead.c: reading ahead of a stream. The leader asks (readahead.c says what for), fillers that no demand keeps busy do
 * it.
 *
 * A run of a chunk's length is read straight into a chunk and left on standby: its first touch maps it, and asks for
 * what comes after. Shorter ones, and all where there are no chunks, are placed at once, as prefetch does. Reading
 * ahead is a guess: what cannot be had is left for the fault that wants it.
 *
 * Race: close against reading ahead. What is asked for counts in `asked`, so the gate cannot close before it is done or
 * dropped. */
#include "page.h"
#include "pool.h"
#include "readahead.h"

#define PATIENCE_MS 200

static void ask(um_region *r, uint64_t first, uint64_t count, bool write) { /* pager->lock held */
  um_pager *p = r->pager;
  if (p->ahead_count == UM_AHEAD_SLOTS)
    return;
  atomic_fetch_add(&r->asked, 1);
  p->ahead[(p->ahead_next + p->ahead_count++) % UM_AHEAD_SLOTS] =
      (um_ahead){.region = r, .first = first, .count = (uint32_t)count, .write = write};
  um_work_post(p);
}

void um_ahead_plan(um_region *r, const um_run_plan *plans, unsigned count) {
  if (count == 0)
    return;
  pthread_mutex_lock(&r->pager->lock);
  for (unsigned i = 0; i < count; i++)
    for (uint32_t k = 0; k < plans[i].repeat; k++)
      ask(r, (uint64_t)((int64_t)plans[i].first + k * plans[i].stride), plans[i].count, plans[i].write);
  pthread_mutex_unlock(&r->pager->lock);
}

/* A chunk that the budget has, or that something old can be given up for. Evictors make room ahead of need, so what is
 * not there now comes soon, as soon as dirty chunks are written: a stream's reader that arrives meanwhile waits for it,
 * as the run is claimed. Where nothing comes for a while the guess is dropped. */
static uint32_t find_chunk(um_pager *p, bool patient) {
  uint64_t deadline = um_now_ns() + PATIENCE_MS * 1000000ull;
  uint32_t chunk;
  while ((chunk = um_pool_take_full(p)) == 0 && !atomic_load(&p->stop)) {
    if (um_memory_make_chunk(p, patient))
      continue;
    if (!patient || p->filler_count < 3 || um_now_ns() >= deadline)
      break;
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->memory_waiters, 1);
    um_wait_until(&p->progress, &p->lock, um_now_ns() + 1000000);
    atomic_fetch_sub(&p->memory_waiters, 1);
    pthread_mutex_unlock(&p->lock);
  }
  return chunk;
}

static bool reserve(um_pager *p, uint64_t bytes) {
  while (!um_budget_try(p, bytes, atomic_load(&p->emergency)))
    if (!um_memory_make(p))
      return false;
  return true;
}

/* Claims a whole chunk's length of absent pages; UM_NIL: they are not all absent. */
static um_frame_id claim(um_region *r, uint64_t first, uint64_t count, bool write) {
  um_pager *p = r->pager;
  um_frame_id id = um_frame_take(p, r, first, count);
  if (id == UM_NIL) {
    um_budget_release(p, um_words_cost(r, first, count));
    return UM_NIL;
  }
  p->frames[id].write = write;
  atomic_store(&p->frames[id].ahead, true);
  um_gate_enter_wait(r);
  uint64_t n = um_run_claim(r, first, count, id);
  if (n == 0)
    um_frame_give(p, id);
  else if (n < count)
    um_run_absent(r, first, n);
  um_gate_leave(r);
  return n == count ? id : UM_NIL;
}

/* Reads a chunk. `touched`: somebody waits for that page, NULL: nobody. True: it is done, or dropped. */
bool um_ahead_read(um_worker *w, const um_ahead *a, const uint64_t *touched) {
  um_pager *p = w->pager;
  um_region *r = a->region;
  uint64_t first = a->first, count = a->count;
  if (!r->chunks || count != um_chunk_pages(r) || um_chunk_first(r, first) != first ||
      (count + first) << r->page_shift > r->mapped || um_page_look(r, first) != 0 ||
      um_page_look(r, first + count - 1) != 0)
    return false;
  um_frame_id id = reserve(p, um_words_cost(r, first, count)) ? claim(r, first, count, a->write) : UM_NIL;
  if (id == UM_NIL)
    return false;
  uint32_t chunk = find_chunk(p, touched == NULL);
  if (chunk == 0) {
    um_gate_enter_wait(r);
    um_run_absent(r, first, count);
    um_gate_leave(r);
    return touched == NULL; /* what is read ahead already is worth more than what would be */
  }
  um_error error;
  char *bytes = (char *)um_pool_address(p, chunk);
  uint64_t data = um_run_bytes(r, first, count);
  int code = um_fill_read(w, r, first << r->page_shift, bytes, data, 1, &error);
  if (code == 0)
    memset(bytes + data, 0, UM_CHUNK - data);
  um_gate_enter_wait(r);
  if (code) {
    um_run_absent(r, first, count);
    um_pool_put_full(p, chunk);
    um_memory_freed(p);
  } else {
    uint64_t page = first;
    bool wanted = um_run_waiter(r, first, count, &page) || touched;
    UM_COUNT(r, readahead, count);
    UM_COUNT(r, prefetches, count);
    um_frame_list_ahead(p, id);
    if (wanted)
      um_standby_pass(r, id, chunk, touched ? *touched : page, a->write || atomic_load(&p->frames[id].writer));
    else
      um_standby_keep(r, id, chunk);
  }
  um_gate_leave(r);
  return code == 0 || touched == NULL; /* who waits for a page gets that page's own failure */
}

bool um_ahead_step(um_worker *w) {
  um_pager *p = w->pager;
  if (p->ahead_count == 0)
    return false;
  um_ahead a = p->ahead[p->ahead_next];
  um_region *r = a.region;
  p->ahead_next = (p->ahead_next + 1) % UM_AHEAD_SLOTS;
  p->ahead_count--;
  p->prefetching++;
  pthread_mutex_unlock(&p->lock);

  uint64_t filled = 0;
  if (!um_ahead_read(w, &a, NULL) && !um_prefetch_run(w, r, a.first, a.count, false, &filled))
    um_evict_ask(p);
  UM_COUNT(r, readahead, filled);
  atomic_fetch_sub(&r->asked, 1);

  pthread_mutex_lock(&p->lock);
  p->prefetching--;
  return true;
}
