/* fault.c: what becomes of a fault message. The leading filler calls um_fault_handle for each; it does system calls but
 * never I/O. Only a page that must be read goes to the demand queue.
 *
 * Races, by the state a message finds:
 *  - fill against fault: FILLING. The filler's wake, after the state is final, is still to come.
 *  - reclaim against fault: STANDBY. Whoever changes the word of the run's first page first has all of it (standby.c).
 *  - evict against fault: EVICTING, LEAVING. WAITER; the wake after ABSENT sends the thread back for a fill.
 *  - evict against write: CLEAN and a write. Who changes the word first wins: either the page becomes DIRTY and the
 *    evictor's exchange fails, or EVICTING and the writer waits. No write can fall between the two, the page is
 *    protected until the word says DIRTY.
 *  - flush against write: WRITING and a write. The page is unprotected at once and REDIRTIED; what is being written is
 *    a copy. BUSY keeps the unprotect and the evictor's protect apart: a late unprotect of a page that has become
 *    CLEAN again would lose every later write.
 *  - the user's own madvise against everything: a missing page where the state says there is one. The kernel is asked,
 *    and what is gone is repaired: read again if the store has it, else FAILED. */
#include "advise.h"
#include "blocks.h"
#include "clean.h"
#include "context.h"
#include "mechanism.h"
#include "page.h"
#include "pool.h"
#include "trace.h"
#include "uffd.h"

#include <sched.h>

/* Lets go of a page that was BUSY; `also` are flags to leave behind. */
static void unbusy(um_region *r, uint64_t page, um_word also) {
  um_word w = um_page_load(r, page);
  while (!um_page_change(r, page, &w, (w & ~(um_word)(UM_BUSY | UM_WAITER)) | also))
    ;
  if (w & UM_WAITER)
    um_page_wake(r, page, 1);
}

/* CLEAN, DIRTY or WRITING and a write: the word first (it is final before the wake), then the memory. */
static bool unprotect(um_region *r, uint64_t page, uint64_t offset, um_word w) {
  enum um_state state = um_word_state(w) == UM_WRITING ? UM_WRITING : UM_DIRTY;
  um_word flags = (w & (UM_COPYING | UM_LOST | UM_WAITER)) | (state == UM_WRITING ? UM_REDIRTIED : 0);
  um_pager *p = r->pager;
  um_frame_id id = um_word_frame(w);
  if (!um_page_change(r, page, &w, um_word_make(state, flags | UM_BUSY, id)))
    return false;
  um_frame *f = &p->frames[id];
  if (um_word_state(w) == UM_CLEAN)
    um_clean_written_again(r, f);
  atomic_store(&f->born_ns, um_now_ns());
  atomic_store(&f->opened, true);
  um_blocks_open(r, f, page, offset);
  unbusy(r, page, 0);
  return true;
}

/* A stream that writes page after page: its neighbours that are CLEAN too, by one call. The page itself is done by its
 * own message. */
static void unprotect_neighbours(um_region *r, uint64_t first, uint64_t count) {
  um_pager *p = r->pager;
  uint64_t taken = 0;
  while (taken < count) {
    um_word w = um_page_load(r, first + taken);
    um_frame_id id = um_word_frame(w);
    if (um_word_state(w) != UM_CLEAN || (w & UM_BUSY))
      break;
    if (um_page_change(r, first + taken, &w, um_word_make(UM_DIRTY, UM_BUSY | (w & UM_WAITER), id))) {
      atomic_store(&p->frames[id].opened, true);
      taken++;
    }
  }
  if (taken == 0)
    return;
  if (um_uffd_unprotect(p->uffd, um_page_address(r, first), um_run_memory(r, first, taken)))
    um_page_wake(r, first, taken);
  for (uint64_t page = first; page < first + taken; page++)
    unbusy(r, page, 0);
}

static void record_dropped(um_region *r, uint64_t page, uint32_t thread_id) {
  um_error error;
  um_error_set(&error, UM_EDROPPED, UM_OP_MEMORY, page << r->page_shift, um_run_bytes(r, page, 1),
               "unwritten bytes were dropped by somebody's madvise or munmap");
  atomic_store(&r->tainted, true);
  um_error_record(r, &error, thread_id);
}

/* FAILED or CLEAN: drop all of the page; whoever still wants it faults again. */
static bool drop(um_region *r, uint64_t page, um_word w) {
  um_frame_id id = um_word_frame(w);
  if (!um_page_change(r, page, &w, um_word_make(UM_EVICTING, w & UM_WAITER, id)))
    return false;
  um_evict_drop(r, page, 1);
  return true;
}

enum outcome { DONE, AGAIN, WAKE, FILL };

static enum outcome wait_for_owner(um_region *r, uint64_t page, um_word w) {
  return um_page_change(r, page, &w, w | UM_WAITER) ? DONE : AGAIN;
}

/* What evictors found to be wasted, for the detector, which is the leader's. */
static void note_waste(um_region *r) {
  if (atomic_load_explicit(&r->wasted, memory_order_relaxed) && atomic_exchange(&r->wasted, 0))
    um_readahead_wasted(r->readahead, atomic_load(&r->wasted_page), um_chunk_pages(r));
}

/* What a fault on an absent page should fetch; 0 plans: the page alone. */
static unsigned plan(um_region *r, uint64_t page, bool write, uint32_t thread_id, um_run_plan *plans) {
  uint64_t first, end;
  enum um_advice advice = um_advise_range(r, page, &first, &end);
  bool willwrite = r->writable && advice == UM_ADVICE_WILLWRITE;
  plans[0] = (um_run_plan){.first = page, .count = 1, .write = willwrite};
  if (!r->readahead || advice == UM_ADVICE_RANDOM)
    return willwrite;
  note_waste(r);
  if (advice == UM_ADVICE_SEQUENTIAL && end != r->hinted) {
    um_readahead_hint(r->readahead, first, end, UM_HINT_SEQUENTIAL);
    r->hinted = end;
  }
  unsigned planned =
      um_readahead_miss(r->readahead, thread_id, page, write, um_context_at(r, page), plans, UM_READAHEAD_PLANS);
  for (unsigned i = 0; i < planned && willwrite; i++)
    plans[i].write = true;
  if (um_blocks_tracked(r) && plans[0].count > 1) {
    plans[0].first = page;
    plans[0].count = 1;
  }
  return planned;
}

/* The page is not claimed here: its memory and its bookkeeping are reserved first, by the filler (fill.c). Threads that
 * fault on one page meanwhile each queue a fill; all but one find it done. */
static void record(um_region *r, uint64_t page, uint32_t thread_id, enum um_trace_kind kind) {
  if (r->pager->trace)
    um_trace_fault(r->pager->trace, r->trace_id, page, thread_id, kind);
}

static enum outcome ask(um_region *r, uint64_t page, bool write, const struct uffd_msg *m, um_frame_id *id) {
  um_pager *p = r->pager;
  *id = um_frame_take(p, r, page, 1);
  if (*id == UM_NIL)
    return WAKE; /* more faults under way than there can be pages: it tries again */
  um_frame *f = &p->frames[*id];
  record(r, page, m->thread_id, write ? UM_TRACE_WRITE : UM_TRACE_READ);
  um_run_plan plans[UM_READAHEAD_PLANS];
  unsigned planned = plan(r, page, write, m->thread_id, plans);
  if (planned && (!write || plans[0].write)) {
    f->page = plans[0].first;
    f->count = plans[0].count;
    write = r->writable && plans[0].write;
  }
  f->touched = page;
  f->offset = m->address - r->address;
  f->write = write;
  f->fault_ns = um_now_ns();
  f->thread_id = m->thread_id;
  f->thread_turn = atomic_fetch_add_explicit(&p->turns[m->thread_id % UM_TURN_SLOTS], 1, memory_order_relaxed);
  if (write)
    UM_COUNT(r, write_faults, 1);
  else
    UM_COUNT(r, read_faults, 1);
  atomic_fetch_add(&r->asked, 1);
  if (planned > 1)
    um_ahead_plan(r, plans + 1, planned - 1);
  return FILL;
}

/* A run that was read ahead is reached: what comes after it is asked for. True: its reader writes every page. */
static bool trigger(um_region *r, uint64_t page, bool write, uint32_t thread_id) {
  um_run_plan plans[UM_READAHEAD_PLANS];
  plans[0].write = false;
  if (!r->readahead)
    return false;
  note_waste(r);
  unsigned planned = um_readahead_trigger(r->readahead, thread_id, page, write, plans, UM_READAHEAD_PLANS);
  if (planned > 1)
    um_ahead_plan(r, plans + 1, planned - 1);
  return r->writable && (plans[0].write || um_advise_at(r, page) == UM_ADVICE_WILLWRITE);
}

/* Taken back at once where that is a system call; where it is a copy, by whoever fills. */
static enum outcome take_back(um_region *r, uint64_t page, um_word w, bool write, const struct uffd_msg *m,
                              um_frame_id *id) {
  um_pager *p = r->pager;
  um_frame_id own = um_standby_own(r, page, w);
  if (own == UM_NIL) {
    sched_yield(); /* somebody else's, for less than a system call */
    return AGAIN;
  }
  um_frame *f = &p->frames[own];
  record(r, page, m->thread_id, UM_TRACE_REFAULT);
  if (write)
    um_clean_written_again(r, f);
  f->write = trigger(r, page, write, m->thread_id);
  if (um_standby_moves(r, f->write)) {
    um_standby_return(r, own, page, f->write);
    return DONE;
  }
  f->touched = page;
  f->returns = true;
  *id = own;
  return FILL;
}

/* Race: fault against fill. The filler's wake, after the state is final, is still to come. */
static enum outcome wait_for_fill(um_region *r, uint64_t page, um_word w, bool write, const struct uffd_msg *m) {
  if (w & UM_WAITER)
    return DONE;
  if (!um_page_change(r, page, &w, w | UM_WAITER))
    return AGAIN;
  um_frame *f = &r->pager->frames[um_word_frame(w)];
  if (atomic_load(&f->ahead) && trigger(r, page, write, m->thread_id))
    atomic_store(&f->writer, true);
  return DONE;
}

static enum outcome write_to_protected(um_region *r, uint64_t page, uint64_t offset, uint32_t thread_id, um_word w) {
  switch (um_word_state(w)) {
  case UM_CLEAN:
  case UM_DIRTY:
  case UM_WRITING:
    if (w & UM_BUSY)
      return wait_for_owner(r, page, w);
    if (!unprotect(r, page, offset, w))
      return AGAIN;
    UM_COUNT(r, protect_faults, 1);
    record(r, page, thread_id, UM_TRACE_PROTECT);
    if (r->readahead && um_word_state(w) == UM_CLEAN && !um_blocks_tracked(r)) {
      um_run_plan run = um_readahead_protect(r->readahead, thread_id, page);
      if (run.first <= page)
        unprotect_neighbours(r, page + 1, run.first + run.count - (page + 1));
    }
    return DONE;
  case UM_FAILED: /* fetch it once more, for the write; if that fails too it is FAILED and writable */
    if (w & UM_BUSY)
      return wait_for_owner(r, page, w);
    drop(r, page, w);
    return AGAIN;
  default:
    return DONE;
  }
}

/* BUSY, and some of its dirty bytes are gone: nobody has them. */
static void fail_dropped(um_region *r, uint64_t page, uint32_t thread_id) {
  um_fill_place_failed(r, page, true);
  um_uffd_protect(r->pager->uffd, um_page_address(r, page), um_page_memory(r, page));
  record_dropped(r, page, thread_id);
  um_page_release(r, page, UM_FAILED);
}

/* BUSY first and then the look: else the page could be somebody else's, or gone, when what was seen is acted upon. */
static enum outcome missing_but_there(um_region *r, uint64_t page, um_word w, const struct uffd_msg *m) {
  if (w & UM_BUSY)
    return wait_for_owner(r, page, w);
  if (!um_page_change(r, page, &w, w | UM_BUSY))
    return AGAIN;
  w |= UM_BUSY;
  if (um_uffd_present(r->pager->pagemap, m->address)) {
    UM_COUNT(r, stale_faults, 1);
    unbusy(r, page, 0);
    return WAKE;
  }
  switch (um_word_state(w)) {
  case UM_CLEAN:
    while (!drop(r, page, w))
      w = um_page_load(r, page);
    return AGAIN;
  case UM_DIRTY:
    fail_dropped(r, page, m->thread_id);
    return WAKE;
  case UM_WRITING:
    w = um_page_load(r, page);
    if (!(w & UM_COPYING)) { /* the copy is whole: when the store has it the page is read again */
      unbusy(r, page, UM_WAITER);
      return DONE;
    }
    /* The thread that waits may be the evictor itself, in the middle of its copy. */
    while (!um_page_change(r, page, &w, w | UM_LOST))
      ;
    um_fill_place_failed(r, page, true);
    unbusy(r, page, 0);
    return WAKE;
  default: /* FAILED */
    um_fill_place_failed(r, page, true);
    unbusy(r, page, 0);
    return WAKE;
  }
}

void um_fault_handle(um_pager *p, const struct uffd_msg *m, um_queue *demand) {
  if (um_pool_fault(p, (uintptr_t)m->address))
    return;
  um_region *r = um_region_enter(p, (uintptr_t)m->address);
  if (!r)
    return; /* its gate is closed or it is gone: the wake of gate_open or forget is still to come */
  uint64_t page = (m->address - r->address) >> r->page_shift;
  bool protected = m->flags & UM_FAULT_PROTECT;
  /* A write to a region that is only read, by a stray pointer, is let through and dropped with the page. */
  bool write = r->writable && (protected || (m->flags & UM_FAULT_WRITE));
  um_frame_id id = UM_NIL;
  enum outcome outcome;
  do {
    um_word w = um_page_look(r, page);
    switch (um_word_state(w)) {
    case UM_ABSENT:
      outcome = ask(r, page, write, m, &id);
      break;
    case UM_FILLING:
      outcome = wait_for_fill(r, page, w, write, m);
      break;
    case UM_STANDBY:
      outcome = take_back(r, page, w, write, m, &id);
      break;
    case UM_LEAVING:
    case UM_EVICTING:
      outcome = wait_for_owner(r, page, w);
      break;
    default:
      outcome = protected ? write_to_protected(r, page, m->address - r->address, m->thread_id, w)
                          : missing_but_there(r, page, w, m);
    }
  } while (outcome == AGAIN);
  if (outcome == FILL)
    um_queue_push(p, demand, id);
  else if (outcome == WAKE)
    um_page_wake(r, page, 1);
  if (write)
    um_clean_ask(r);
  um_gate_leave(r);
}

void um_fault_served(um_region *r, const um_frame *f) {
  if (f->fault_ns == 0)
    return;
  uint64_t ns = um_now_ns() - f->fault_ns;
  unsigned bucket = ns < 2 ? 0 : 63u - (unsigned)__builtin_clzll(ns);
  UM_COUNT(r, fault_ns[bucket < UM_HISTOGRAM_BUCKETS ? bucket : UM_HISTOGRAM_BUCKETS - 1], 1);
}
