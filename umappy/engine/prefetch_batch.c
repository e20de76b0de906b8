/* prefetch_batch.c: many scattered pages that a caller asked for, as many reads in flight as the device wants, from one
 * thread (store->read_batch). Each page is placed as its read ends, while the others go on. */
#include "blocks.h"
#include "mechanism.h"
#include "page.h"
#include "pool.h"

#define UNITS 256 /* runs a batch */

typedef struct unit {
  um_frame_id frame;
  uint32_t count; /* pages */
  uint64_t first;
} unit;

typedef struct work {
  um_region *region;
  um_read reads[UNITS];
  unit units[UNITS];
  uint32_t count;
  uint64_t filled;
} work;

static void give_back(um_region *r, const unit *u) {
  um_memory_drop(r, um_page_address(r, u->first), um_run_memory(r, u->first, u->count));
  um_run_absent(r, u->first, u->count);
  um_budget_release(r->pager, um_run_memory(r, u->first, u->count));
}

static void ended(um_batch *batch, um_read *read) {
  work *k = batch->context;
  um_region *r = k->region;
  um_pager *p = r->pager;
  const unit *u = &k->units[read - k->reads];
  uint64_t memory = um_run_memory(r, u->first, u->count);
  um_gate_enter_wait(r);
  if (read->code == 0) {
    memset((char *)read->buffer + read->length, 0, memory - read->length);
    read->code = um_mechanism_place(r, um_page_address(r, u->first), read->buffer, memory, true);
  }
  if (read->code == 0) {
    atomic_store(&p->frames[u->frame].born_ns, um_now_ns());
    um_frame_list(p, u->frame);
    if (um_run_release(r, u->first, u->count, UM_CLEAN) & UM_WAITER)
      um_page_wake(r, u->first, u->count);
    k->filled += u->count;
  } else {
    give_back(r, u);
  }
  um_gate_leave(r);
}

/* Claims the absent pages at the start of `pages` that are neighbours and fit the buffer. False: no memory. */
static bool claim(um_worker *w, work *k, const uint64_t *pages, uint32_t count, uint64_t *used, uint32_t *taken) {
  um_region *r = k->region;
  um_pager *p = r->pager;
  uint64_t first = pages[0], limit = um_min(count, um_run_limit(r, w->staging_size - *used));
  uint32_t n = 0;
  *taken = 1;
  while (n < limit && pages[n] == first + n && um_page_look(r, first + n) == 0)
    n++;
  if (n == 0)
    return true;
  while (!um_budget_try(p, um_run_cost(r, first, n), atomic_load(&p->emergency)))
    if (!um_memory_make(p))
      return false;
  um_frame_id id = um_frame_take(p, r, first, n);
  um_gate_enter_wait(r);
  uint64_t claimed = id == UM_NIL ? 0 : um_run_claim(r, first, n, id);
  if (id == UM_NIL)
    um_budget_release(p, um_run_cost(r, first, n));
  else
    um_budget_release(p, um_run_memory(r, first, n) - (claimed ? um_run_memory(r, first, claimed) : 0));
  if (id != UM_NIL && claimed == 0)
    um_frame_give(p, id);
  um_gate_leave(r);
  if (claimed == 0)
    return id != UM_NIL;
  p->frames[id].count = (uint32_t)claimed;
  k->units[k->count] = (unit){id, (uint32_t)claimed, first};
  k->reads[k->count++] = (um_read){.offset = first << r->page_shift,
                                   .buffer = (char *)w->staging + *used,
                                   .length = um_run_bytes(r, first, claimed)};
  *used += claimed << r->page_shift;
  *taken = (uint32_t)claimed;
  return true;
}

bool um_prefetch_batch(um_worker *w, um_region *r, const uint64_t *pages, uint32_t count, uint64_t *filled) {
  work k = {.region = r};
  bool memory = true;
  for (uint32_t at = 0, taken; at < count && memory;) {
    uint64_t used = 0;
    k.count = 0;
    while (at < count && k.count < UNITS && used + r->page_size <= w->staging_size &&
           (memory = claim(w, &k, pages + at, count - at, &used, &taken)))
      at += taken;
    if (k.count == 0) {
      if (at < count) /* no memory just now, or a page larger than the buffer: by itself, which may wait */
        memory = um_prefetch_run(w, r, pages[at++], 1, true, filled);
      continue;
    }
    memory = true; /* the rest is for the next round: nobody waits for memory while claimed pages do */
    um_batch batch = {
        .reads = k.reads, .count = k.count, .timeout_ns = w->pager->timeout_ns, .ended = ended, .context = &k};
    if (atomic_load(&r->no_batch) || r->store->ops->read_batch(r->store, &batch) == -EOPNOTSUPP) {
      um_error error;
      atomic_store(&r->no_batch, true);
      for (uint32_t i = 0; i < k.count; i++) {
        k.reads[i].code = um_fill_read(w, r, k.reads[i].offset, k.reads[i].buffer, k.reads[i].length, UM_TRIES, &error);
        ended(&batch, &k.reads[i]);
      }
    } else {
      UM_COUNT(r, store_reads, k.count);
    }
    for (uint32_t i = 0; i < k.count; i++)
      if (k.reads[i].code == 0)
        UM_COUNT(r, bytes_read, k.reads[i].length);
      else if (k.reads[i].code == -ETIMEDOUT)
        UM_COUNT(r, fill_errors, 1);
      else /* once more, by itself: part of it may be good */
        um_prefetch_run(w, r, k.units[i].first, k.units[i].count, true, filled);
  }
  UM_COUNT(r, prefetches, k.filled);
  *filled += k.filled;
  return memory;
}
