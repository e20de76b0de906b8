/* leave.c: eviction by moving pages out of a region into a chunk (UFFDIO_MOVE).
 *
 * Moving steals a page atomically and keeps its bytes: a dirty one is written from the chunk, by nobody else's hand any
 * more; and it fails where a device has the page pinned (O_DIRECT readinto, io_uring), whose bytes a drop would lose.
 * So every page that was ever writable leaves this way. Phases of a group, the pages that fit one chunk: 1  move each
 * stretch behind the other; a pinned one goes back to where it was, one with a hole is left to writeback.c, which knows
 * how to lose bytes properly 2  write   the dirty ones, outside every gate; LEAVING keeps them from closing 3  let go
 * what the store took becomes ABSENT; what it did not is moved back and DIRTY
 *
 * A fault on a page that is LEAVING or EVICTING waits for its end. Race: a write against the move. It came before, and
 * is in the bytes that were moved; or it faults. */
#include "leave.h"

#include "blocks.h"
#include "mechanism.h"
#include "page.h"
#include "pool.h"
#include "uffd.h"

#include <sys/mman.h>

/* Pages of a region whose memory is gone to a chunk. */
static void let_go(um_region *r, uint64_t first, uint64_t count) {
  um_run_absent(r, first, count);
  UM_COUNT(r, evictions, count);
  atomic_fetch_add(&r->pager->freed, um_run_memory(r, first, count));
}

uint64_t um_leave_chunk(um_region *r, uint64_t first) {
  um_pager *p = r->pager;
  uint64_t count = um_chunk_pages(r);
  uint32_t chunk = um_pool_take_empty(p);
  if (!chunk)
    return um_evict_drop(r, first, count);
  if (um_uffd_move(p->uffd, um_pool_address(p, chunk), um_page_address(r, first), UM_CHUNK, NULL)) {
    um_pool_clear(p, chunk); /* clean, and never written to: nothing is lost */
    return um_evict_drop(r, first, count);
  }
  let_go(r, first, count);
  um_pool_put_full(p, chunk);
  um_memory_freed(p);
  return UM_CHUNK;
}

/* Back as it was, after a move of its first `moved` bytes. What was moved has lost its protection: it counts as dirty,
 * and of a page with dirty blocks every block, since a write to another one raises no fault any more. */
static void put_back(const um_leaving *v, uint64_t moved) {
  um_region *r = v->region;
  um_pager *p = r->pager;
  if (moved && um_uffd_move(p->uffd, um_page_address(r, v->page), v->at, moved, NULL))
    um_fatal("memory that was moved out of a region could not be moved back");
  for (uint64_t page = v->page; page < v->page + v->count; page++) {
    um_word w = um_page_load(r, page);
    bool exposed = (page - v->page) << r->page_shift < moved, dirty = v->dirty || exposed;
    if (exposed)
      atomic_store(&p->frames[um_word_frame(w)].blocks, UM_BLOCKS_ALL);
    while (!um_page_change(r, page, &w, um_word_make(dirty ? UM_DIRTY : UM_CLEAN, 0, um_word_frame(w))))
      ;
    if (w & UM_WAITER)
      um_page_wake(r, page, 1);
  }
}

enum outcome { MOVED, DROPPED, STAYED };

/* Inside the gate. Clean pages that cannot be moved for another reason than a pin (they have a hole, or lie in several
 * mappings) are dropped: the store has them. */
static enum outcome move_out(um_leaving *v, uintptr_t to) {
  um_region *r = v->region;
  uint64_t moved = 0, length = um_run_memory(r, v->page, v->count);
  uintptr_t from = um_page_address(r, v->page);
  v->at = to;
  int code = um_uffd_move(r->pager->uffd, to, from, length, &moved);
  if (code == -EINVAL && moved == 0 && munlock((void *)r->address, r->mapped) == 0) /* as um_memory_drop does */
    code = um_uffd_move(r->pager->uffd, to, from, length, &moved);
  if (code == 0)
    return MOVED;
  if (!v->dirty && code != -EBUSY && um_memory_drop(r, from, length) == 0)
    return DROPPED;
  put_back(v, moved);
  v->failed = code;
  v->unmoved = true;
  UM_COUNT(r, pinned, code == -EBUSY);
  return STAYED;
}

/* The blocks of a page that are dirty; nobody adds to them while it is LEAVING. */
static int write(um_worker *w, const um_leaving *v, um_error *error) {
  um_region *r = v->region;
  um_frame *f = &r->pager->frames[um_word_frame(um_page_load(r, v->page))];
  uint64_t start = v->page << r->page_shift, at = 0, length = um_run_bytes(r, v->page, v->count);
  if (!um_blocks_tracked(r))
    return um_writeback_piece(w, r, start, (const void *)v->at, length, error);
  int code = 0;
  for (uint64_t blocks = atomic_load(&f->blocks); code == 0 && um_blocks_next(r, v->page, blocks, &at, &length);
       at += length)
    code = um_writeback_piece(w, r, start + at, (const void *)(v->at + at), length, error);
  return code;
}

uint64_t um_leave_group(um_pager *p, um_worker *w, um_leaving *v, uint32_t count) {
  uint32_t chunk = um_pool_take_empty(p);
  uint64_t used = 0, freed = 0;
  bool whole = true; /* no hole in the chunk */
  for (uint32_t i = 0; i < count; i++) {
    um_region *r = v[i].region;
    if (v[i].dirty)
      um_gate_enter_wait(r);
    if (!chunk) {
      v[i].failed = -ENOBUFS;
      v[i].unmoved = true;
      put_back(&v[i], 0);
    } else {
      enum outcome outcome = move_out(&v[i], um_pool_address(p, chunk) + used);
      whole &= outcome != DROPPED;
      if (outcome != STAYED) {
        used += um_run_memory(r, v[i].page, v[i].count);
        if (!v[i].dirty)
          let_go(r, v[i].page, v[i].count);
      }
    }
    if (v[i].dirty)
      um_gate_leave(r);
  }
  for (uint32_t i = 0; i < count; i++) {
    um_region *r = v[i].region;
    uint64_t memory = um_run_memory(r, v[i].page, v[i].count);
    if (v[i].failed)
      continue;
    freed += memory;
    if (!v[i].dirty)
      continue;
    um_error error;
    int code = um_now_ns() < atomic_load(&r->write_backoff_ns) ? -ECANCELED : write(w, &v[i], &error);
    um_gate_enter_wait(r);
    if (code == 0) {
      UM_COUNT(r, writes, v[i].count);
      let_go(r, v[i].page, v[i].count);
    } else {
      put_back(&v[i], memory);
      v[i].failed = code;
      freed -= memory;
    }
    if (code != -ECANCELED)
      um_evict_note_write(r, code, &error);
    um_gate_leave(r);
  }
  if (chunk && whole && freed == UM_CHUNK) {
    um_pool_put_full(p, chunk);
    um_memory_freed(p);
  } else if (chunk) {
    um_pool_clear(p, chunk);
    um_budget_release(p, freed);
  }
  return freed;
}
