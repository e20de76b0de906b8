/* standby.c: runs that are not mapped but whose bytes are in a chunk. They were read ahead, and nobody has touched them
 * yet; or they were moved out of a region and not overwritten yet. Touching one takes it back without I/O, which proves
 * that it was guessed right, or evicted wrongly.
 *
 * A run on standby is a chunk long, and always whole. Who changes the word of its first page from STANDBY owns all of
 * it: to FILLING, to map it again; to EVICTING, to give its chunk to somebody else. The others follow, and the first
 * page's word is the last to become STANDBY and the last to become ABSENT.
 *
 * Race: fault against reclaim. Both want the first word; who comes second looks again: the page is then FILLING (a wake
 * comes) or ABSENT (it is read). Race: fault against the end of reading ahead: the page is FILLING, the fault leaves
 * WAITER, and the filler maps the run at once. */
#include "blocks.h"
#include "mechanism.h"
#include "page.h"
#include "pool.h"
#include "uffd.h"

#define PIECE (128u << 10) /* copied at a time, the touched one first: its reader goes on while the rest is copied */

/* `w` is the word of `page`, STANDBY. Makes all of its run `to` and the caller's; UM_NIL: look again. */
static um_frame_id own(um_region *r, uint64_t page, um_word w, enum um_state to) {
  um_frame_id id = um_word_frame(w);
  uint64_t first = um_chunk_first(r, page), count = um_chunk_pages(r);
  if (!um_run_take(r, first, 1, UM_IN(UM_STANDBY), id, to))
    return UM_NIL;
  uint64_t rest = um_run_take(r, first + 1, count - 1, UM_IN(UM_STANDBY), id, to);
  UM_ASSERT(rest == count - 1);
  (void)rest;
  atomic_fetch_sub(&r->pager->standby_bytes, UM_CHUNK);
  return id;
}

um_frame_id um_standby_own(um_region *r, uint64_t page, um_word w) {
  um_frame_id id = own(r, page, w, UM_FILLING);
  if (id != UM_NIL)
    um_frame_list(r->pager, id, UM_LIST_NONE); /* it may be queued next */
  return id;
}

void um_standby_keep(um_region *r, um_frame_id id, uint32_t chunk) {
  um_pager *p = r->pager;
  um_frame *f = &p->frames[id];
  uint64_t first = f->page, count = f->count;
  f->chunk = chunk;
  atomic_fetch_add(&p->standby_bytes, UM_CHUNK);
  um_frame_list(p, id, UM_LIST_STANDBY);
  um_run_release(r, first + 1, count - 1, UM_STANDBY);
  um_run_release(r, first, 1, UM_STANDBY);
}

/* The run is FILLING, the caller's, a chunk long; moved into place, writable where the region is. A move that stops in
 * the middle is undone, but somebody may have written to what was there: *exposed, and the run counts as dirty. */
static int move_in(um_region *r, um_frame_id id, bool *exposed) {
  um_pager *p = r->pager;
  um_frame *f = &p->frames[id];
  uint64_t first = f->page, count = f->count, moved;
  uint32_t chunk = f->chunk;
  if (r->writable) {
    um_run_open(r, first, count);
    atomic_store(&f->opened, true);
    atomic_store(&f->blocks, UM_BLOCKS_ALL);
  }
  int code = um_uffd_move(p->uffd, um_page_address(r, first), um_pool_address(p, chunk), UM_CHUNK, &moved);
  if (code) {
    if (moved && um_uffd_move(p->uffd, um_pool_address(p, chunk), um_page_address(r, first), moved, NULL))
      um_fatal("memory that was moved into a region could not be moved back");
    *exposed |= moved && r->writable;
    return code;
  }
  f->chunk = 0;
  um_pool_put_empty(p, chunk);
  um_frame_list(p, id, UM_LIST_RESIDENT);
  um_run_release(r, first, count, r->writable ? UM_DIRTY : UM_CLEAN);
  um_page_wake(r, first, count);
  return 0;
}

/* The run is FILLING and the caller's, memory for it is reserved; copied into place, protected. */
static void copy_in(um_region *r, um_frame_id id, uint64_t touched, enum um_state state) {
  um_pager *p = r->pager;
  um_frame *f = &p->frames[id];
  uint64_t first = f->page, count = f->count, step = um_max(1, PIECE >> r->page_shift);
  uint32_t chunk = f->chunk;
  f->chunk = 0;
  um_frame_list(p, id, UM_LIST_RESIDENT);
  for (uint64_t done = 0, at = (touched - first) / step * step; done < count; done += step, at = (at + step) % count) {
    int code = um_mechanism_place(r, um_page_address(r, first + at),
                                  (const void *)(um_pool_address(p, chunk) + (at << r->page_shift)),
                                  step << r->page_shift, r->writable);
    if (code == 0) {
      um_run_release(r, first + at, step, state);
      um_page_wake(r, first + at, step);
      continue;
    }
    um_memory_drop(r, um_page_address(r, first + at), step << r->page_shift);
    um_run_absent(r, first + at, step); /* read again, by who still wants it */
    um_budget_release(p, step << r->page_shift);
  }
  um_pool_put_full(p, chunk);
  um_memory_freed(p);
}

bool um_standby_moves(const um_region *r, bool write) {
  return r->moves && (!r->writable || write);
}

/* The run is the caller's (um_standby_own) and is mapped again. Where there is no memory to copy it to it is given up:
 * who wants a page of it faults again. */
void um_standby_return(um_region *r, um_frame_id id, uint64_t touched, bool write) {
  um_pager *p = r->pager;
  um_frame *f = &p->frames[id];
  uint64_t first = f->page, count = f->count;
  bool ahead = atomic_exchange(&f->ahead, false);
  atomic_store(&f->born_ns, um_now_ns());
  if (ahead)
    UM_COUNT(r, readahead_used, count);
  else
    UM_COUNT(r, standby_hits, count);
  bool exposed = false;
  if (um_standby_moves(r, write)) {
    if (move_in(r, id, &exposed) == 0)
      return;
    if (!exposed) {
      um_run_release(r, first, count, UM_FILLING); /* it is locked, say: not OPEN any more, and copied */
      atomic_store(&f->blocks, 0);
    }
  }
  while (!um_budget_try(p, UM_CHUNK, atomic_load(&p->emergency)))
    if (!um_memory_make(p)) {
      if (exposed && move_in(r, id, &exposed) == 0) /* only a read that just ended can have had it pinned */
        return;
      if (exposed)
        continue;
      uint32_t chunk = f->chunk;
      f->chunk = 0;
      um_run_absent(r, first, count);
      um_pool_put_full(p, chunk);
      um_memory_freed(p);
      return;
    }
  copy_in(r, id, touched, exposed ? UM_DIRTY : UM_CLEAN);
}

/* Gives the chunk of a run that is the caller's and EVICTING to who wants it. */
static void reclaim(um_region *r, um_frame_id id) {
  um_pager *p = r->pager;
  um_frame *f = &p->frames[id];
  uint64_t first = f->page, count = f->count;
  uint32_t chunk = f->chunk;
  if (atomic_load(&f->ahead)) {
    UM_COUNT(r, readahead_wasted, count);
    atomic_fetch_add(&r->wasted, 1);
    atomic_store(&r->wasted_page, first);
  }
  UM_COUNT(r, evictions, count);
  f->chunk = 0;
  um_run_absent(r, first + 1, count - 1);
  um_run_absent(r, first, 1);
  atomic_fetch_add(&p->freed, UM_CHUNK);
  um_pool_put_full(p, chunk);
  um_memory_freed(p);
}

bool um_standby_reclaim(um_region *r, uint64_t page) {
  um_word w = um_page_load(r, page);
  if (um_word_state(w) != UM_STANDBY)
    return false;
  um_frame_id id = own(r, page, w, UM_EVICTING);
  if (id != UM_NIL)
    reclaim(r, id);
  return true;
}

bool um_standby_reclaim_oldest(um_pager *p) {
  um_frame_id id, taken = UM_NIL;
  um_region *r = NULL;
  pthread_mutex_lock(&p->frames_lock);
  for (id = p->standby.head; id != UM_NIL && taken == UM_NIL; id = p->frames[id].next) {
    r = p->frames[id].region;
    if (!um_gate_enter(r))
      continue;
    um_word w = um_page_load(r, p->frames[id].page);
    if (um_word_state(w) == UM_STANDBY && um_word_frame(w) == id)
      taken = own(r, p->frames[id].page, w, UM_EVICTING);
    if (taken == UM_NIL)
      um_gate_leave(r);
  }
  pthread_mutex_unlock(&p->frames_lock);
  if (taken == UM_NIL)
    return false;
  reclaim(r, taken);
  um_gate_leave(r);
  return true;
}
