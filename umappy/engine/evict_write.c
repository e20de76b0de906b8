/* evict_write.c: write-back for eviction where pages are not moved out: they are copied, written, and dropped if nobody
 * wrote to them meanwhile; and what becomes of a store that fails. */
#include "leave.h"
#include "page.h"
#include "writeback.h"

/* A store that fails is asked again after a pause, and reported once until it takes a write. */
void um_evict_note_write(um_region *r, int code, um_error *error) {
  um_pager *p = r->pager;
  if (code == -UM_EDROPPED) {
    um_error_record(r, error, 0);
    return;
  }
  bool first = code && atomic_exchange(&r->write_backoff_ns, um_now_ns() + UM_TICK_MS * 1000000ull) == 0;
  if (code == 0)
    atomic_store(&r->write_backoff_ns, 0);
  pthread_mutex_lock(&p->lock);
  p->writes_failed = code ? p->writes_failed + 1 : 0;
  if (code)
    p->write_error = *error;
  else
    p->write_error.code = 0;
  pthread_mutex_unlock(&p->lock);
  if (first)
    um_error_record(r, error, 0);
}

static void note_run(um_writeback *b, int code, um_error *error) {
  um_evict_note_write(b->region, code, error);
  b->stop = code && code != -UM_EDROPPED;
}

static void begin(um_writeback *b, um_worker *w, um_region *r) {
  um_writeback_begin(b, w, r, note_run, NULL);
  b->stop = um_now_ns() < atomic_load(&r->write_backoff_ns); /* a run before failed */
}

/* The pages are WRITING and the caller's; inside the gate. Dirty neighbours are taken along. */
static void add_with_neighbours(um_writeback *b, uint64_t first, uint64_t count) {
  um_region *r = b->region;
  uint64_t before = 0, end = first + count;
  if (um_writeback_room(b) < count)
    um_writeback_send(b);
  uint64_t room = um_writeback_room(b) - count;
  while (before < room && before < first && um_writeback_claim(r, first - before - 1, 1))
    before++;
  if (before)
    um_writeback_add(b, first - before, before, false);
  um_writeback_add(b, first, count, true);
  uint64_t after = um_writeback_claim(r, end, um_min(room - before, r->page_count - end));
  if (after)
    um_writeback_add(b, end, after, false);
}

uint64_t um_evict_in_place(um_worker *w, const um_leaving *v) {
  um_region *r = v->region;
  um_writeback b;
  if (!um_gate_enter(r))
    return 0;
  begin(&b, w, r);
  uint64_t n = um_writeback_claim(r, v->page, um_min(v->count, um_writeback_room(&b)));
  if (n)
    add_with_neighbours(&b, v->page, n);
  um_writeback_send(&b);
  um_gate_leave(r);
  return b.freed;
}

uint32_t um_evict_written(um_worker *w, const um_leaving *v, uint32_t count, uint64_t *freed) {
  um_region *r = v->region;
  um_writeback b;
  uint32_t n = 0;
  um_gate_enter_wait(r);
  begin(&b, w, r);
  for (; n < count && v[n].region == r; n++)
    add_with_neighbours(&b, v[n].page, v[n].count);
  um_writeback_send(&b);
  um_gate_leave(r);
  *freed += b.freed;
  return n;
}
