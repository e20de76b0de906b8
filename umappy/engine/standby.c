/* standby.c: runs that are not mapped but whose bytes are in a chunk. They were read ahead, and nobody has touched them
 * yet; or they were moved out of a region and their memory is not needed yet. Touching one takes it back without I/O,
 * which proves that it was guessed right, or evicted wrongly: the access bit of the policies.
 *
 * A run on standby is whole: a chunk long and in a chunk, or shorter (UM_SMALL) and in its slot. Who changes the
 * word of its first page from STANDBY owns all of it: to FILLING, to map it again; to EVICTING, to give its memory to
 * somebody else. The others follow, and the first page's word is the last to become STANDBY and the last to become
 * ABSENT.
 *
 * Race: fault against reclaim. Both want the first word; who comes second looks again: the page is then FILLING (a wake
 * comes) or ABSENT (it is read). Race: fault against the end of reading ahead. The page is FILLING, the fault leaves
 * WAITER, and the filler maps the run at once (um_standby_pass); or it comes a moment too late for that, and is woken
 * to come back for what is STANDBY now. Nobody is woken before the run is in place: who faults again makes a table of
 * small pages there, and what was to be moved in as a huge page would be cut up. */
#include "blocks.h"
#include "mechanism.h"
#include "page.h"
#include "policy.h"
#include "pool.h"
#include "uffd.h"

#include <sys/mman.h>
#include <sys/uio.h>

#define PIECE (128u << 10) /* copied at a time, the touched one first: its reader goes on while the rest is copied */
#define RECLAIMED (128u << 10) /* bytes given up together, at least: one flush of other processors' translations */
#define FRESH_NS 500000000u
#define LOOK 64
#define PLACE_MASK 0x1ffu
_Static_assert(UM_CHUNK / UM_PAGE_SIZE_MIN <= PLACE_MASK + 1, "a place for every page of a run");

/* `w` is the word of `page`, STANDBY. Makes all of its run `to` and the caller's; UM_NIL: look again. */
static um_frame_id own(um_region *r, uint64_t page, um_word w, enum um_state to) {
  um_frame_id id = um_word_frame(w);
  uint64_t first = w & UM_SMALL ? page - (w >> UM_PLACE_SHIFT & PLACE_MASK) : um_chunk_first(r, page);
  if (!um_run_take(r, first, 1, UM_IN(UM_STANDBY), id, to))
    return UM_NIL;
  uint64_t count = r->pager->frames[id].count;
  uint64_t rest = count > 1 ? um_run_take(r, first + 1, count - 1, UM_IN(UM_STANDBY), id, to) : 0;
  UM_ASSERT(rest == count - 1);
  (void)rest;
  atomic_fetch_sub(&r->pager->standby_bytes, um_run_memory(r, first, count));
  return id;
}

um_frame_id um_standby_own(um_region *r, uint64_t page, um_word w) {
  um_frame_id id = own(r, page, w, UM_FILLING);
  if (id != UM_NIL)
    um_frame_refault(r->pager, id);
  return id;
}

static bool is_small(const um_region *r, const um_frame *f) {
  return um_run_memory(r, f->page, f->count) != UM_CHUNK;
}

static uintptr_t bytes_of(const um_region *r, um_frame_id id) {
  const um_pager *p = r->pager;
  const um_frame *f = &p->frames[id];
  return f->chunk ? um_pool_address(p, f->chunk) : um_pool_slot(p, id, um_run_memory(r, f->page, f->count));
}

/* The run's memory is not in its chunk any more. */
static void leave_chunk(um_pager *p, um_frame *f) {
  if (f->chunk)
    um_pool_put_empty(p, f->chunk);
  f->chunk = 0;
}

/* The run's bytes are not needed any more: a chunk serves again, the memory of a slot goes back to the
 * kernel; the budget is the caller's to tell. */
static void drop_bytes(um_region *r, uint32_t chunk, uintptr_t slot, uint64_t memory) {
  if (chunk)
    um_pool_put_full(r->pager, chunk);
  else
    um_pool_drop(r->pager, slot, memory);
}

void um_standby_keep(um_region *r, um_frame_id id, uint32_t chunk) {
  um_pager *p = r->pager;
  um_frame *f = &p->frames[id];
  uint64_t first = f->page, count = f->count;
  f->chunk = chunk;
  atomic_store(&f->born_ns, um_now_ns());
  atomic_fetch_add(&p->standby_bytes, um_run_memory(r, first, count));
  if (is_small(r, f)) {
    um_word flags = 0;
    for (uint64_t place = count; place-- > 0;) {
      um_word w = um_page_load(r, first + place);
      while (!um_page_change(r, first + place, &w, um_word_make(UM_STANDBY, UM_SMALL | place << UM_PLACE_SHIFT, id)))
        ;
      flags |= w;
    }
    if (flags & UM_WAITER)
      um_page_wake(r, first, count);
    return;
  }
  um_word flags = count > 1 ? um_run_release(r, first + 1, count - 1, UM_STANDBY) : 0;
  if ((flags | um_run_release(r, first, 1, UM_STANDBY)) & UM_WAITER)
    um_page_wake(r, first, count);
}

/* The run is FILLING and the caller's; moved into place, writable where the region is. A move that stops in the middle
 * is undone, but somebody may have written to what was there: *exposed, and the run counts as dirty. */
static int move_in(um_region *r, um_frame_id id, bool *exposed) {
  um_pager *p = r->pager;
  um_frame *f = &p->frames[id];
  uint64_t first = f->page, count = f->count, memory = um_run_memory(r, first, count), moved;
  uintptr_t from = bytes_of(r, id);
  if (r->writable) {
    um_run_open(r, first, count);
    atomic_store(&f->opened, true);
    atomic_store(&f->blocks, UM_BLOCKS_ALL);
  }
  int code = um_memory_move(r, um_page_address(r, first), from, memory, &moved);
  if (code) {
    if (moved && um_memory_move(r, from, um_page_address(r, first), moved, NULL))
      um_fatal("memory that was moved into a region could not be moved back");
    *exposed |= moved && r->writable;
    return code;
  }
  leave_chunk(p, f);
  um_run_release(r, first, count, r->writable ? UM_DIRTY : UM_CLEAN);
  um_page_wake(r, first, count);
  return 0;
}

/* The run is FILLING and the caller's, memory for it is reserved; copied into place, protected. */
static void copy_in(um_region *r, um_frame_id id, uint64_t touched, enum um_state state) {
  um_pager *p = r->pager;
  um_frame *f = &p->frames[id]; /* with its pages let go it may be somebody else's, and its slot with it */
  uint64_t first = f->page, count = f->count, step = um_min(count, um_max(1, PIECE >> r->page_shift));
  uintptr_t from = bytes_of(r, id);
  uint32_t chunk = f->chunk;
  f->chunk = 0;
  uint64_t pieces = (count + step - 1) / step, piece = (touched - first) / step;
  for (uint64_t done = 0; done < pieces; done++, piece = (piece + 1) % pieces) {
    uint64_t at = piece * step, page = first + at, n = um_min(step, count - at), memory = um_run_memory(r, page, n);
    const void *bytes = (const void *)(from + (at << r->page_shift));
    bool placed = um_mechanism_place(r, um_page_address(r, page), bytes, memory, true) == 0;
    if (!chunk)
      um_pool_drop(p, (uintptr_t)bytes, memory);
    if (placed) {
      um_run_release(r, page, n, state);
      um_page_wake(r, page, n);
    } else {
      um_memory_drop(r, um_page_address(r, page), memory);
      um_run_absent(r, page, n); /* read again, by who still wants it */
    }
    if (!placed || !chunk)
      um_budget_release(p, placed || chunk ? memory : 2 * memory);
  }
  if (chunk) {
    um_pool_put_full(p, chunk);
    um_memory_freed(p);
  }
}

bool um_standby_moves(const um_region *r, bool write) {
  return r->moves && (!r->writable || write);
}

/* The pages are the caller's; their bytes are given up. */
static void give_up(um_region *r, um_frame_id id) {
  um_pager *p = r->pager;
  um_frame *f = &p->frames[id];
  uint64_t first = f->page, count = f->count, memory = um_run_memory(r, first, count);
  bool small = is_small(r, f);
  drop_bytes(r, f->chunk, bytes_of(r, id), memory);
  f->chunk = 0;
  if (count > 1)
    um_run_absent(r, first + 1, count - 1);
  um_run_absent(r, first, 1);
  atomic_fetch_add(&p->freed, memory);
  if (small)
    um_budget_release(p, memory);
  else
    um_memory_freed(p);
}

/* False: it cannot be, it is locked, say; then it is FILLING as before. */
static bool try_move_in(um_region *r, um_frame_id id, uint64_t first, uint64_t count, bool *exposed) {
  if (move_in(r, id, exposed) == 0)
    return true;
  if (!*exposed) {
    um_run_release(r, first, count, UM_FILLING); /* not OPEN any more */
    atomic_store(&r->pager->frames[id].blocks, 0);
  }
  return false;
}

/* The run is the caller's (um_standby_own) and is mapped again. Where there is no memory to copy it to it is moved,
 * though all of it counts as dirty then; where it cannot be moved it is given up: who wants a page of it faults again.
 */
void um_standby_return(um_region *r, um_frame_id id, uint64_t touched, bool write) {
  um_pager *p = r->pager;
  um_frame *f = &p->frames[id];
  uint64_t first = f->page, count = f->count, memory = um_run_memory(r, first, count);
  atomic_store(&f->born_ns, um_now_ns());
  if (atomic_exchange(&f->ahead, false))
    UM_COUNT(r, readahead_used, count);
  else
    UM_COUNT(r, standby_hits, count);
  bool exposed = false;
  if (um_standby_moves(r, write) && try_move_in(r, id, first, count, &exposed))
    return;
  while (!um_budget_try(p, memory, atomic_load(&p->emergency)))
    if (!um_memory_make(p)) {
      if (r->moves && try_move_in(r, id, first, count, &exposed))
        return;
      if (exposed) { /* nobody else has what was written: a device's read that just ended can have stopped the move */
        nanosleep(&(struct timespec){0, 500000}, NULL);
        continue;
      }
      give_up(r, id);
      return;
    }
  copy_in(r, id, touched, exposed ? UM_DIRTY : UM_CLEAN);
}

void um_standby_pass(um_region *r, um_frame_id id, uint32_t chunk, uint64_t touched, bool write) {
  r->pager->frames[id].chunk = chunk;
  um_frame_refault(r->pager, id);
  um_standby_return(r, id, touched, write);
}

/* Counts a run, EVICTING, that will be given up. */
static void note_waste(um_region *r, const um_frame *f) {
  UM_COUNT(r, evictions, f->count);
  if (!atomic_load(&f->ahead))
    return;
  UM_COUNT(r, readahead_wasted, f->count);
  atomic_fetch_add(&r->wasted, 1);
  atomic_store(&r->wasted_page, f->page);
}

bool um_standby_reclaim(um_region *r, uint64_t page) {
  um_word w = um_page_load(r, page);
  if (um_word_state(w) != UM_STANDBY)
    return false;
  um_frame_id id = own(r, page, w, UM_EVICTING);
  if (id != UM_NIL) {
    note_waste(r, &r->pager->frames[id]);
    give_up(r, id);
  }
  return true;
}

/* What was read ahead a moment ago is about to be used: dirty pages that are being written give memory back sooner than
 * reading it again would.
 *
 * Race: the policy knows that a run is on standby as soon as it is picked, an evictor moves it out a moment later. Who
 * passed it by and took what comes after would evict what the policy wants to keep. */
um_frame_id um_standby_take(um_pager *p, enum um_reclaim how, bool *moving) {
  uint64_t now = um_now_ns();
  um_frame_id id = UM_NIL;
  *moving = false;
  if (how == UM_RECLAIM_FULL && !um_policy_standby_full(p->policy, true))
    return UM_NIL;
  for (int looked = 0; looked < LOOK && (id = um_policy_standby_next(p->policy, id)) != UM_NIL; looked++) {
    um_frame *f = &p->frames[id];
    um_region *r = f->region;
    bool ahead = atomic_load(&f->ahead);
    if (ahead && how != UM_RECLAIM_FRESH_TOO && now - um_min(now, atomic_load(&f->born_ns)) < FRESH_NS) {
      if (how == UM_RECLAIM_FULL && !um_policy_standby_full(p->policy, false))
        return UM_NIL; /* only that was to go */
      continue;
    }
    if (!um_gate_enter(r))
      continue;
    um_word w = um_page_load(r, f->page);
    if (how == UM_RECLAIM_FULL && um_word_state(w) == UM_EVICTING && um_word_frame(w) == id) {
      um_gate_leave(r);
      *moving = true;
      return UM_NIL;
    }
    if (um_word_state(w) != UM_STANDBY || um_word_frame(w) != id || own(r, f->page, w, UM_EVICTING) != id) {
      um_gate_leave(r);
      continue;
    }
    note_waste(r, f);
    if (ahead)
      um_policy_remove(p->policy, id); /* nobody wanted it: its return would prove nothing */
    else
      um_policy_evicted(p->policy, id);
    return id;
  }
  return UM_NIL;
}

uint64_t um_standby_give_up(um_pager *p, const um_frame_id *ids, uint32_t count) {
  struct iovec ranges[UM_STANDBY_TAKEN];
  uint32_t slots = 0;
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < count; i++) {
    const um_frame *f = &p->frames[ids[i]];
    uint64_t memory = um_run_memory(f->region, f->page, f->count);
    if (f->chunk == 0)
      ranges[slots++] = (struct iovec){(void *)bytes_of(f->region, ids[i]), memory};
    bytes += memory;
  }
  if (slots > 1)
    um_memory_drop_many(p, ranges, slots); /* each is dropped again below, which then costs next to nothing */
  for (uint32_t i = 0; i < count; i++) {
    um_region *r = p->frames[ids[i]].region;
    give_up(r, ids[i]);
    um_gate_leave(r);
  }
  return bytes;
}

bool um_standby_reclaim_oldest(um_pager *p, enum um_reclaim how) {
  um_frame_id ids[UM_STANDBY_TAKEN];
  uint32_t count = 0;
  uint64_t bytes = 0;
  bool moving;
  pthread_mutex_lock(&p->frames_lock);
  while (count < UM_STANDBY_TAKEN && bytes < RECLAIMED && (ids[count] = um_standby_take(p, how, &moving)) != UM_NIL) {
    const um_frame *f = &p->frames[ids[count++]];
    bytes += um_run_memory(f->region, f->page, f->count);
  }
  pthread_mutex_unlock(&p->frames_lock);
  return um_standby_give_up(p, ids, count) > 0;
}

void um_standby_forget(um_region *r, um_frame_id id) {
  um_pager *p = r->pager;
  um_frame *f = &p->frames[id];
  uint64_t memory = um_run_memory(r, f->page, f->count);
  atomic_fetch_sub(&p->standby_bytes, memory);
  bool small = is_small(r, f);
  drop_bytes(r, f->chunk, bytes_of(r, id), memory);
  f->chunk = 0;
  if (small)
    atomic_fetch_sub(&p->used, memory);
}
