/* fill.c: a filler brings a page in for a fault, and with it the run of neighbours that read-ahead planned.
 *
 * The store reads into the worker's staging buffer; the mechanism places it. A page larger than the buffer is placed
 * piece by piece, protected, and opened at the end, so that nobody writes into a page that may still fail.
 *
 * Phases of a fill: reserve (memory and bookkeeping), claim (ABSENT -> FILLING), read, place. No filler waits long for
 * memory: a fill that finds none goes to the starved queue, and whoever frees memory moves it back (workers.c). One
 * that has waited `timeout` is given up: the page is placed as FAILED, in the memory kept for that, one after another.
 *
 * Race: fault against fault. Two threads fault on one absent page and two fills are queued; who claims second, or finds
 * the page not absent any more, only wakes. */
#include "blocks.h"
#include "mechanism.h"
#include "page.h"
#include "uffd.h"

static uint8_t failed_bytes[1 << 16] __attribute__((aligned(4096)));

__attribute__((constructor)) static void failed_bytes_init(void) {
  memset(failed_bytes, 0xff, sizeof failed_bytes);
}

/* What is there already stays: the copy steps over it. */
int um_fill_place_failed(um_region *r, uint64_t page, bool protect) {
  uint64_t length = um_page_memory(r, page);
  for (uint64_t done = 0; done < length; done += sizeof failed_bytes) {
    uint64_t n = um_min(length - done, sizeof failed_bytes);
    int code = um_mechanism_place(r, um_page_address(r, page) + done, failed_bytes, n, protect);
    if (code)
      return code;
  }
  return 0;
}

int um_fill_read(um_worker *w, um_region *r, uint64_t offset, void *buffer, uint64_t length, int tries,
                 um_error *error) {
  uint64_t deadline = um_now_ns() + w->pager->timeout_ns;
  for (int attempt = 1;; attempt++) {
    error->code = 0;
    if (r->store->ops->read_cached && r->store->ops->read_cached(r->store, offset, buffer, length) == 0) {
      UM_COUNT(r, bytes_read, length);
      return 0;
    }
    int code = r->store->ops->read(r->store, offset, buffer, length, error);
    UM_COUNT(r, store_reads, 1);
    if (code == 0) {
      UM_COUNT(r, bytes_read, length);
      return 0;
    }
    if (attempt >= tries || !um_error_passing(-code) || um_now_ns() >= deadline || atomic_load(&w->pager->stop))
      return code;
    UM_COUNT(r, retries, 1);
    struct timespec pause = {0, 10000000L << (2 * attempt)};
    nanosleep(&pause, NULL);
  }
}

/* Reads and places the pages [first, first + count), all FILLING and this thread's. */
int um_fill_pages(um_worker *w, um_region *r, uint64_t first, uint64_t count, bool protect, int tries,
                  um_error *error) {
  uint64_t memory = um_run_memory(r, first, count), start = first << r->page_shift;
  for (uint64_t done = 0; done < memory;) {
    uint64_t n = um_min(memory - done, w->staging_size);
    uint64_t data = um_min(n, r->size - start - done);
    int code = um_fill_read(w, r, start + done, w->staging, data, tries, error);
    if (code)
      return code;
    memset((char *)w->staging + data, 0, n - data);
    um_gate_enter_wait(r);
    if (!protect && done == 0)
      um_run_open(r, first, count);
    code = um_mechanism_place(r, r->address + start + done, w->staging, n, protect);
    um_gate_leave(r);
    if (code)
      return um_error_set(error, -code, UM_OP_MEMORY, start + done, n, "the kernel would not place the page");
    done += n;
  }
  return 0;
}

static void starve(um_pager *p, um_frame_id id, uint64_t cost) {
  pthread_mutex_lock(&p->lock);
  um_queue_push(p, &p->starved, id);
  atomic_fetch_add(&p->memory_waiters, 1);
  pthread_mutex_unlock(&p->lock);
  um_evict_ask(p);
  /* Race: memory freed between the failed reservation and the push saw no waiter. */
  if (um_budget_free(p) >= atomic_load(&p->emergency) + cost)
    um_memory_freed(p);
}

static bool reserve(um_pager *p, uint64_t bytes) {
  for (int attempt = 0; attempt < 4; attempt++) {
    if (um_budget_try(p, bytes, atomic_load(&p->emergency)))
      return true;
    if (!um_memory_make(p))
      return false;
  }
  return false;
}

/* The pages of earlier failures hold what was kept, for a grace period each. */
static bool reserve_kept(um_pager *p, uint64_t bytes) {
  const struct timespec pause = {0, 500000};
  for (int attempt = 0; attempt < 20; attempt++) {
    if (um_budget_try(p, bytes, 0))
      return true;
    if (!um_memory_make(p) && !um_standby_reclaim_oldest(p, UM_RECLAIM_FRESH_TOO))
      nanosleep(&pause, NULL);
  }
  return false;
}

static void place(um_pager *p, um_region *r, um_frame_id id, enum um_state state) {
  um_frame *f = &p->frames[id];
  uint64_t first = f->page, count = f->count;
  atomic_store(&f->born_ns, um_now_ns());
  um_fault_served(r, f);
  um_frame_list(p, id); /* before the release: afterwards the descriptor may be somebody else's */
  um_run_release(r, first, count, state);
  um_page_wake(r, first, count);
  um_gate_leave(r);
}

static void fail(um_pager *p, um_region *r, um_frame_id id, um_error *error) {
  um_frame *f = &p->frames[id];
  uint64_t page = f->page, length = um_page_memory(r, page);
  um_gate_enter_wait(r);
  UM_COUNT(r, fill_errors, 1);
  um_memory_drop(r, um_page_address(r, page), length);
  if (um_fill_place_failed(r, page, !f->write) == 0) {
    atomic_store(&r->tainted, true);
    um_error_record(r, error, f->thread_id);
    place(p, r, id, UM_FAILED);
    return;
  }
  /* The kernel has no memory for it either. Not a page we can answer for: the thread faults again. */
  um_memory_drop(r, um_page_address(r, page), length);
  um_run_absent(r, page, 1);
  um_gate_leave(r);
  um_budget_release(p, length);
}

/* The fill is not needed any more. */
static void dismiss(um_pager *p, um_region *r, um_frame_id id) {
  um_gate_enter_wait(r);
  um_page_wake(r, p->frames[id].touched, 1);
  um_frame_give(p, id);
  atomic_fetch_sub(&r->asked, 1);
  um_gate_leave(r);
}

/* The run as planned may hold pages that are not absent: what of it surrounds the page that was touched. */
static void trim(um_region *r, um_frame *f) {
  uint64_t first = f->touched, end = f->touched + 1;
  while (first > f->page && um_page_look(r, first - 1) == 0)
    first--;
  while (end < f->page + f->count && um_page_look(r, end) == 0)
    end++;
  f->page = first;
  f->count = (uint32_t)(end - first);
}

/* What fits so many bytes, the touched page first or last of it as it was in the run. */
static void shorten(um_region *r, um_frame *f, uint64_t bytes) {
  uint64_t most = um_run_limit(r, bytes), end = f->page + f->count;
  if (f->count <= most)
    return;
  if (f->touched + most <= end)
    f->page = f->touched;
  else if (f->touched >= f->page + most - 1)
    f->page = f->touched - (most - 1);
  f->count = (uint32_t)most;
}

static void alone(um_frame *f) {
  f->page = f->touched;
  f->count = 1;
}

/* Gives back claimed pages that will not be filled; the descriptor stays while another page names it. */
static void unclaim(um_region *r, uint64_t first, uint64_t count) {
  if (count == 0)
    return;
  um_memory_drop(r, um_page_address(r, first), um_run_memory(r, first, count));
  um_run_absent(r, first, count);
  um_budget_release(r->pager, um_run_memory(r, first, count));
}

/* Memory and bookkeeping of the run are reserved. False: the touched page is not absent any more, and the descriptor is
 * given back. */
static bool claim(um_pager *p, um_region *r, um_frame_id id) {
  um_frame *f = &p->frames[id];
  uint64_t first = f->page, count = f->count, touched = f->touched, memory = um_run_memory(r, first, count);
  um_gate_enter_wait(r);
  uint64_t n = um_run_claim(r, first, count, id);
  um_budget_release(p, memory - (n ? um_run_memory(r, first, n) : 0));
  bool claimed = first + n > touched;
  if (claimed) {
    f->count = (uint32_t)n;
  } else {
    um_page_wake(r, touched, 1); /* a run cut short by somebody's claim: who still wants the page faults again */
    if (n)
      unclaim(r, first, n);
    else
      um_frame_give(p, id);
  }
  atomic_fetch_sub(&r->asked, 1);
  um_gate_leave(r);
  return claimed;
}

static void give_up(um_pager *p, um_region *r, um_frame_id id) {
  um_frame *f = &p->frames[id];
  um_error error, write_error;
  alone(f);
  uint64_t page = f->page, cost = um_run_cost(r, page, 1);
  if (!reserve_kept(p, cost)) {
    starve(p, id, cost); /* the next tick gives it up again */
    return;
  }
  if (!claim(p, r, id))
    return;
  pthread_mutex_lock(&p->lock);
  write_error = p->write_error;
  pthread_mutex_unlock(&p->lock);
  um_error_set(&error, write_error.code ? write_error.code : ENOMEM, UM_OP_READ, page << r->page_shift,
               um_run_bytes(r, page, 1), "no memory came free for this page: %s",
               write_error.code ? write_error.text : "all of the budget is being written or too young to go");
  fail(p, r, id, &error);
}

static void finish(um_pager *p, um_region *r, um_frame_id id, bool protected) { /* inside the gate, which it leaves */
  um_frame *f = &p->frames[id];
  UM_COUNT(r, fills, f->count);
  if (f->write) {
    atomic_store(&f->opened, true);
    if (protected) {
      um_run_open(r, f->page, 1);
      um_blocks_open(r, f, f->page, f->offset);
    } else {
      atomic_store(&f->blocks, UM_BLOCKS_ALL);
    }
  }
  place(p, r, id, f->write ? UM_DIRTY : UM_CLEAN);
}

/* Race: a write-back of the page that ends between the look at the cached bytes and the claim. So the claim comes
 * first; if the bytes are not cached the claimed fill goes the usual way. */
bool um_fill_cached(um_worker *w, um_frame_id id) {
  um_pager *p = w->pager;
  um_frame *f = &p->frames[id];
  um_region *r = f->region;
  if (f->returns || !r->store->ops->read_cached || um_blocks_tracked(r) || um_page_look(r, f->touched) != 0 ||
      um_run_memory(r, f->page, f->count) > UM_BLOCK)
    return false;
  trim(r, f);
  uint64_t memory = um_run_memory(r, f->page, f->count), data = um_run_bytes(r, f->page, f->count);
  if (memory > w->staging_size || !um_budget_try(p, um_run_cost(r, f->page, f->count), 4 * atomic_load(&p->emergency)))
    return false;
  if (!claim(p, r, id))
    return true;
  f->claimed = true;
  memory = um_run_memory(r, f->page, f->count);
  data = um_run_bytes(r, f->page, f->count);
  if (r->store->ops->read_cached(r->store, f->page << r->page_shift, w->staging, data))
    return false;
  memset((char *)w->staging + data, 0, memory - data);
  UM_COUNT(r, bytes_read, data);
  um_gate_enter_wait(r);
  if (f->write)
    um_run_open(r, f->page, f->count);
  if (um_mechanism_place(r, um_page_address(r, f->page), w->staging, memory, !f->write)) {
    um_gate_leave(r);
    return false;
  }
  finish(p, r, id, false);
  return true;
}

/* A run is a guess: when memory is short, or a part of it cannot be read, the touched page is filled alone. A chunk and
 * a run are tried once each, without waiting; the page alone as often as UM_TRIES says. */
static bool prepare(um_worker *w, um_frame_id id) {
  um_pager *p = w->pager;
  um_frame *f = &p->frames[id];
  um_region *r = f->region;
  um_ahead run = {.region = r, .first = f->page, .count = f->count, .write = f->write};
  if (um_page_look(r, f->touched) != 0 || (f->count > 1 && um_ahead_read(w, &run, &f->touched))) {
    dismiss(p, r, id);
    return false;
  }
  shorten(r, f, w->staging_size);
  trim(r, f);
  if (f->count > 1 && um_budget_try(p, um_run_cost(r, f->page, f->count), 4 * atomic_load(&p->emergency)))
    return claim(p, r, id);
  alone(f);
  if (reserve(p, um_run_cost(r, f->page, 1)))
    return claim(p, r, id);
  if (f->give_up)
    give_up(p, r, id);
  else
    starve(p, id, um_run_cost(r, f->page, 1));
  return false;
}

void um_fill_demand(um_worker *w, um_frame_id id) {
  um_pager *p = w->pager;
  um_frame *f = &p->frames[id];
  um_region *r = f->region;
  um_error error = {0};
  if (f->returns) {
    um_gate_enter_wait(r);
    f->returns = false;
    um_standby_return(r, id, f->touched, f->write);
    um_gate_leave(r);
    return;
  }
  if (!f->claimed && !prepare(w, id))
    return;
  bool protect = !f->write || um_blocks_tracked(r) || um_run_memory(r, f->page, 1) > w->staging_size;
  if (um_fill_pages(w, r, f->page, f->count, protect, f->count > 1 ? 1 : UM_TRIES, &error)) {
    uint64_t first = f->page, end = first + f->count;
    bool again = f->count > 1;
    alone(f);
    um_gate_enter_wait(r);
    unclaim(r, first, f->touched - first);
    unclaim(r, f->touched + 1, end - f->touched - 1);
    um_gate_leave(r);
    if (!again || um_fill_pages(w, r, f->page, 1, protect, UM_TRIES, &error)) {
      fail(p, r, id, &error);
      return;
    }
  }
  um_gate_enter_wait(r);
  finish(p, r, id, protect);
}
