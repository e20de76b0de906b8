/* leave.c: eviction by moving pages out of a region into a chunk (UFFDIO_MOVE).
 *
 * Moving steals a page atomically and keeps its bytes: a dirty one is written from the chunk, by nobody else's hand any
 * more; and it fails where a device has the page pinned (O_DIRECT readinto, io_uring), whose bytes a drop would lose.
 * So every page that was ever writable leaves this way. Phases of a group, the pages that fit one chunk:
 *   move    each stretch behind the other; a pinned one goes back to where it was, one with a hole is left to
 *           writeback.c, which knows how to lose bytes properly
 *   write   the dirty ones, all in flight at once where the store can, outside every gate; LEAVING keeps them from
 *           closing
 *   let go  as each write ends: what the store took becomes ABSENT; what it did not is moved back and DIRTY
 *
 * A fault on a page that is LEAVING or EVICTING waits for its end. Race: a write against the move. It came before, and
 * is in the bytes that were moved; or it faults. */
#include "leave.h"

#include "blocks.h"
#include "mechanism.h"
#include "page.h"
#include "pool.h"
#include "uffd.h"
#include "writeback.h"

#include <sys/mman.h>

/* Pages of a region whose memory is gone to a chunk. */
static void let_go(um_region *r, uint64_t first, uint64_t count) {
  um_run_absent(r, first, count);
  UM_COUNT(r, evictions, count);
  atomic_fetch_add(&r->pager->freed, um_run_memory(r, first, count));
}

uint64_t um_leave_chunk(um_region *r, uint64_t first, um_frame_id keep) {
  um_pager *p = r->pager;
  uint64_t count = um_chunk_pages(r);
  uint32_t chunk = um_pool_take_empty(p);
  if (!chunk)
    return um_evict_drop(r, first, count);
  if (um_memory_move(r, um_pool_address(p, chunk), um_page_address(r, first), UM_CHUNK, NULL)) {
    um_pool_clear(p, chunk); /* clean, and never written to: nothing is lost */
    return um_evict_drop(r, first, count);
  }
  if (keep != UM_NIL) {
    um_standby_keep(r, keep, chunk);
    return UM_CHUNK;
  }
  let_go(r, first, count);
  um_pool_put_full(p, chunk);
  um_memory_freed(p);
  return UM_CHUNK;
}

/* Back as it was, after a move of its first `moved` bytes. What was moved has lost its protection: it counts as dirty.
 */
static void put_back(const um_leaving *v, uint64_t moved) {
  um_region *r = v->region;
  um_pager *p = r->pager;
  if (moved && um_memory_move(r, um_page_address(r, v->page), v->at, moved, NULL))
    um_fatal("memory that was moved out of a region could not be moved back");
  for (uint64_t page = v->page; page < v->page + v->count; page++) {
    um_word w = um_page_load(r, page);
    bool exposed = r->writable && (page - v->page) << r->page_shift < moved, dirty = v->dirty || exposed;
    if (exposed)
      atomic_store(&p->frames[um_word_frame(w)].blocks, UM_BLOCKS_ALL);
    while (!um_page_change(r, page, &w, um_word_make(dirty ? UM_DIRTY : UM_CLEAN, 0, um_word_frame(w))))
      ;
    if (w & UM_WAITER)
      um_page_wake(r, page, 1);
  }
}

/* Inside the gate. */
static bool move_out(um_leaving *v, uintptr_t to) {
  um_region *r = v->region;
  uint64_t moved = 0, length = um_run_memory(r, v->page, v->count);
  uintptr_t from = um_page_address(r, v->page);
  v->at = to;
  int code = um_memory_move(r, to, from, length, &moved);
  if (code == 0)
    return true;
  v->failed = code;
  v->unmoved = true;
  if (!v->dirty && code != -EBUSY) { /* it has a hole, or lies in several mappings; the store has it */
    um_pool_drop(r->pager, to, um_round_up(moved, um_host_page));
    um_evict_drop(r, v->page, v->count);
    return false;
  }
  put_back(v, moved);
  UM_COUNT(r, pinned, code == -EBUSY);
  return false;
}

/* How many bytes are out then. */
static uint64_t move_all_out(um_pager *p, um_leaving *v, uint32_t count, uint32_t chunk) {
  uint64_t used = 0;
  for (uint32_t i = 0; i < count; i++) {
    um_region *r = v[i].region;
    if (v[i].dirty)
      um_gate_enter_wait(r);
    uintptr_t to =
        chunk ? um_pool_address(p, chunk) + used : um_pool_slot(p, v[i].frame, um_run_memory(r, v[i].page, v[i].count));
    if (!to) {
      v[i].failed = -ENOBUFS;
      v[i].unmoved = true;
      put_back(&v[i], 0);
    } else if (move_out(&v[i], to)) {
      used += um_run_memory(r, v[i].page, v[i].count);
    }
    if (v[i].dirty)
      um_gate_leave(r);
  }
  return used;
}

/* Inside the gate. */
static void settle(um_leaving *v, uint32_t chunk) {
  if (v->frame == UM_NIL)
    let_go(v->region, v->page, v->count);
  else
    um_standby_keep(v->region, v->frame, chunk);
}

/* A group on its way to the store. */
typedef struct leaving_group {
  um_pager *pager;
  um_leaving *leaving[UM_LEAVING_MAX]; /* the dirty ones of one region, and */
  um_write writes[UM_LEAVING_MAX];     /* their writes */
  uint32_t count, done;
  uint32_t chunk;
  um_region *inside; /* its gate is still held; NULL: none */
  uint64_t gone;     /* bytes */
} leaving_group;

/* Inside the gate. */
static void end_one(leaving_group *g, um_leaving *v, int code, um_error *error) {
  um_region *r = v->region;
  uint64_t memory = um_run_memory(r, v->page, v->count);
  if (code == 0) {
    if (v->dirty) {
      UM_COUNT(r, writes, v->count);
      UM_COUNT(r, cleaned, v->frame == UM_NIL ? 0 : v->count);
      atomic_store(&g->pager->frames[um_word_frame(um_page_load(r, v->page))].blocks, 0);
    }
    settle(v, g->chunk);
    g->gone += memory;
  } else {
    put_back(v, memory);
    v->failed = code;
  }
  if (code && v->error)
    *v->error = *error;
  else if (v->dirty && !v->error && code != -ECANCELED)
    um_evict_note_write(r, code, error);
}

static bool write_ended(void *context, um_write *write, um_error *error) {
  leaving_group *g = context;
  um_leaving *v = g->leaving[write - g->writes];
  bool told = v->error != NULL;
  um_gate_enter_wait(v->region);
  end_one(g, v, write->code, error);
  if (++g->done < g->count)
    um_gate_leave(v->region);
  return write->code == 0 || told;
}

/* The dirty blocks of a page; nobody adds to them while it is LEAVING. */
static void write_blocks(leaving_group *g, um_worker *w, um_leaving *v) {
  um_region *r = v->region;
  um_frame *f = &g->pager->frames[um_word_frame(um_page_load(r, v->page))];
  uint64_t start = v->page << r->page_shift, at = 0, length = 0;
  um_error error = {0};
  int code = 0;
  for (uint64_t blocks = atomic_load(&f->blocks); code == 0 && um_blocks_next(r, v->page, blocks, &at, &length);
       at += length)
    code = um_writeback_piece(w, r, start + at, (const void *)(v->at + at), length, &error);
  um_gate_enter_wait(r);
  end_one(g, v, code, &error);
  um_gate_leave(r);
}

static bool is_failing(const um_leaving *v) { /* a run before failed; who asked for it by name is told each time */
  return !v->error && um_now_ns() < atomic_load(&v->region->write_backoff_ns);
}

/* Race: close against the end of a batch. The last write keeps the gate until this thread has come back from the store,
 * and of the last region until the memory is counted as free. */
static void come_out(leaving_group *g) {
  if (g->inside)
    um_gate_leave(g->inside);
  g->inside = NULL;
}

/* The first stretch, and all that follow in its region. How many to go on from. */
static uint32_t write_out(leaving_group *g, um_worker *w, um_leaving *v, uint32_t count) {
  um_region *r = v->region;
  uint32_t n = 0;
  come_out(g);
  g->count = g->done = 0;
  for (; n < count && v[n].region == r; n++) {
    um_leaving *one = &v[n];
    if (one->failed || !one->dirty)
      continue;
    if (is_failing(one)) {
      um_gate_enter_wait(r);
      end_one(g, one, -ECANCELED, NULL);
      um_gate_leave(r);
    } else if (um_blocks_tracked(r)) {
      write_blocks(g, w, one);
    } else {
      g->leaving[g->count] = one;
      g->writes[g->count++] = (um_write){.offset = one->page << r->page_shift,
                                         .buffer = (void *)one->at,
                                         .length = um_run_bytes(r, one->page, one->count)};
    }
  }
  if (g->count) {
    um_writeback_many(w, r, g->writes, g->count, write_ended, g);
    g->inside = r;
  }
  return n;
}

uint64_t um_leave_group(um_pager *p, um_worker *w, um_leaving *v, uint32_t count) {
  bool keep = v[0].frame != UM_NIL, slots = keep && um_run_memory(v[0].region, v[0].page, v[0].count) < UM_CHUNK;
  uint32_t chunk = slots ? 0 : um_pool_take_empty(p);
  uint64_t out = move_all_out(p, v, count, chunk);
  leaving_group g;
  g.pager = p;
  g.chunk = chunk;
  g.gone = 0;
  g.inside = NULL;
  for (uint32_t i = 0; i < count; i++)
    if (!v[i].failed && !v[i].dirty)
      end_one(&g, &v[i], 0, NULL);
  for (uint32_t i = 0; i < count;)
    i += write_out(&g, w, &v[i], count - i);
  if (slots || (keep && g.gone)) {
    /* on standby */
  } else if (!chunk) {
    return 0;
  } else if (g.gone == UM_CHUNK) {
    um_pool_put_full(p, chunk);
    um_memory_freed(p);
  } else {
    if (out)
      um_pool_clear(p, chunk);
    else
      um_pool_put_empty(p, chunk);
    um_budget_release(p, g.gone);
  }
  come_out(&g);
  return g.gone;
}
