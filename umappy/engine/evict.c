/* evict.c: giving memory back.
 *
 * The policy (policy.h) says in which order runs leave, and whether they wait on standby first; one of which pages stay
 * (busy, written to while they were being written back, pinned) starts anew. Phases of a batch:
 *
 *   1. pick: in the policy's order, what has been on standby long enough, and runs past their grace; clean pages become
 *      EVICTING, dirty ones LEAVING where they can be moved out, else WRITING
 *   2. give up what was on standby: its memory comes free at once
 *   3. sort by address, and drop the clean ones, all by one call where the kernel can. Whole chunks are moved out and
 *      serve again as they are
 *   4. move out what was ever writable, and write what of it is dirty (leave.c)
 *   5. where that cannot be, write the dirty ones, taking dirty neighbours along, and drop those that stayed clean
 *   6. settle: runs that kept pages begin anew
 *
 * A run is marked as picked while an evictor works on it. The policy is told at once that it left, if all of it was
 * taken. */
#include "blocks.h"
#include "leave.h"
#include "mechanism.h"
#include "page.h"
#include "policy.h"
#include "pool.h"

#include <sys/uio.h>

#define BATCH 64 /* stretches of pages, clean and dirty each */
#define LOOK 256 /* runs looked at for a batch */
#define WORTH 32 /* one in so many short runs on standby is touched there, or only one in so many is kept */
#define WORTH_RUNS 1024
#define BURST 1024   /* of short clean runs a batch takes 1 / so much of the memory: on trial are a few hundredths */
#define CLAIM_RUNS 4 /* staging buffers claimed at once: nobody else may write what is */

typedef um_leaving victim;

typedef struct batch {
  victim clean[BATCH], moving[BATCH];  /* EVICTING, inside their gates: to be dropped, to be moved out */
  victim leaving[BATCH], dirty[BATCH]; /* LEAVING, WRITING: these keep their gates from closing */
  victim kept[BATCH];                  /* EVICTING, inside their gates: to standby */
  um_frame_id frames[LOOK];
  um_frame_id giving_up[UM_STANDBY_TAKEN]; /* EVICTING, inside their gates: from standby */
  uint32_t given_up;
  uint32_t cleans, movings, leavings, dirties, kepts, picked;
  uint64_t bytes, claimed; /* in all, and to be written */
  uint64_t now;
} batch;

void um_evict_ask(um_pager *p) {
  if (atomic_load(&p->evict_asked) || atomic_exchange(&p->evict_asked, true))
    return;
  pthread_mutex_lock(&p->lock);
  pthread_cond_broadcast(&p->evict_work);
  pthread_mutex_unlock(&p->lock);
}

/* The memory is gone, the pages are EVICTING and the caller's. */
static uint64_t let_go(um_region *r, uint64_t first, uint64_t count) {
  um_pager *p = r->pager;
  uint64_t memory = um_run_memory(r, first, count);
  um_run_absent(r, first, count);
  UM_COUNT(r, evictions, count);
  atomic_fetch_add(&p->freed, memory);
  um_budget_release(p, memory);
  return memory;
}

uint64_t um_evict_drop(um_region *r, uint64_t first, uint64_t count) {
  um_memory_drop(r, um_page_address(r, first), um_run_memory(r, first, count));
  return let_go(r, first, count);
}

static bool is_whole_chunk(const victim *v) {
  return v->region->moves && um_run_is_chunk(v->region, v->page, v->count);
}

/* Pages that were never writable are dropped, chunks excepted: they cannot hold what the store does not have. So are
 * FAILED ones: one that came back from a pin found behind it would have to be dirty. */
static bool must_move(const um_region *r, const um_frame *f) {
  return r->moves && atomic_load(&f->opened);
}

/* frames_lock held. Takes stretches of a run's pages that are in a state of `from`; how many. `most` stretches, of
 * `limit` pages. What becomes EVICTING stays inside its region's gate, once a stretch. */
static uint32_t take(um_pager *p, um_frame_id id, uint32_t from, enum um_state to, uint64_t limit, victim *out,
                     uint32_t most) {
  um_frame *f = &p->frames[id];
  um_region *r = f->region;
  uint32_t taken = 0;
  if (most == 0 || !um_gate_enter(r))
    return 0;
  for (uint64_t page = f->page, end = page + f->count; page < end && taken < most;) {
    if (!(UM_IN(um_word_state(um_page_load(r, page))) & from)) {
      page++;
      continue;
    }
    uint64_t n = um_run_take(r, page, um_min(limit, end - page), from, id, to);
    if (n && to == UM_EVICTING)
      (void)um_gate_enter(r); /* it cannot be closed: this thread is inside */
    if (n)
      out[taken++] = (victim){.region = r, .page = page, .count = n, .dirty = to != UM_EVICTING};
    page += um_max(n, 1);
  }
  um_gate_leave(r);
  return taken;
}

#define CLEAN_OR_FAILED (UM_IN(UM_CLEAN) | UM_IN(UM_FAILED))

/* A long run is of one kind from end to end, or nearly: its first page tells, and a filler has no time to look at all.
 */
static bool is_dirty_chunk(const um_frame *f) {
  return f->count > 16 && um_word_state(um_page_load(f->region, f->page)) == UM_DIRTY;
}

/* Inside the gate, which it leaves. */
static uint64_t drop_one(um_pager *p, victim *v, bool move) {
  um_region *r = v->region;
  uint64_t freed = move                ? um_leave_group(p, NULL, v, 1)
                   : is_whole_chunk(v) ? um_leave_chunk(r, v->page, v->frame)
                                       : um_evict_drop(r, v->page, v->count);
  um_gate_leave(r);
  return freed;
}

/* For a filler that found no memory: it does not wait behind write-back. */
static bool evict_one_clean(um_pager *p, bool only_new) {
  uint64_t now = um_now_ns();
  victim v;
  uint32_t taken = 0;
  bool move = false;
  pthread_mutex_lock(&p->frames_lock);
  um_frame_id id = um_policy_next(p->policy, 0), next, id_taken = UM_NIL;
  for (int looked = 0; id != UM_NIL && looked < BATCH && !taken; looked++, id = next) {
    um_frame *f = &p->frames[id];
    next = um_policy_next(p->policy, id);
    if (only_new && !um_policy_is_new(p->policy, id))
      break;
    if (f->picked || !um_frame_aged(p, f, now) || is_dirty_chunk(f))
      continue;
    move = must_move(f->region, f);
    taken = take(p, id, move ? UM_IN(UM_CLEAN) : CLEAN_OR_FAILED, UM_EVICTING, f->count, &v, 1);
    if (move && !taken) {
      move = false;
      taken = take(p, id, UM_IN(UM_FAILED), UM_EVICTING, f->count, &v, 1);
    }
    if (taken && v.count == atomic_load(&f->live))
      um_policy_evicted(p->policy, id);
    id_taken = id;
  }
  pthread_mutex_unlock(&p->frames_lock);
  if (!taken)
    return false;
  if (drop_one(p, &v, move) > 0)
    return true;
  pthread_mutex_lock(&p->frames_lock); /* pinned: it is still there, and of this descriptor */
  if (p->frames[id_taken].queue == 0 && p->frames[id_taken].region == v.region &&
      atomic_load(&p->frames[id_taken].live) > 0)
    um_frame_relist(p, id_taken);
  pthread_mutex_unlock(&p->frames_lock);
  return false;
}

/* Out of the order of the policy where evictors cannot keep up: what waits in standby may have proved more than what is
 * new, and less than other residents. What has proved more than that is worth more than a guess. */
bool um_memory_make_chunk(um_pager *p, bool guess) {
  return um_standby_reclaim_oldest(p, UM_RECLAIM_FULL) || evict_one_clean(p, true) ||
         (!guess && (um_standby_reclaim_oldest(p, UM_RECLAIM_SOME) || evict_one_clean(p, false)));
}

bool um_memory_make(um_pager *p) {
  return um_pool_trim(p) || um_memory_make_chunk(p, false);
}

/* frames_lock held. Moving out a short run costs as much as a few of copying one in, so where hardly any is
 * touched again on standby only some are kept, to notice when that changes. */
static bool is_worth_keeping(um_pager *p) {
  if (p->kept >= WORTH_RUNS) {
    p->kept /= 2;
    p->kept_hits /= 2;
  }
  bool worth = p->kept < WORTH_RUNS / 4 || p->kept_hits * WORTH >= p->kept;
  if (!worth && ++p->not_kept % WORTH)
    return false;
  p->kept++;
  return true;
}

/* frames_lock held. All of the run or nothing; it can be kept on standby. What should be, and does not fit the batch
 * any more, waits for the next one: *full. */
static bool take_whole(um_pager *p, um_frame_id id, batch *b, bool *full) {
  um_frame *f = &p->frames[id];
  um_region *r = f->region;
  uint32_t live = atomic_load(&f->live);
  if (!r->moves || live != f->count || !um_policy_keeps(p->policy, id))
    return false;
  victim whole = {.region = r, .page = f->page, .count = live, .frame = id};
  bool chunk = is_whole_chunk(&whole) && r->chunks;
  if (!chunk && !um_pool_slot(p, id, um_run_memory(r, f->page, live)))
    return false;
  *full = b->kepts == BATCH;
  if (*full || (!chunk && !is_worth_keeping(p)) || !um_gate_enter(r))
    return false;
  uint64_t n = um_run_take(r, f->page, live, UM_IN(UM_CLEAN), id, UM_EVICTING);
  if (n == live) {
    b->kept[b->kepts++] = whole;
  } else {
    if (n && (um_run_release(r, f->page, n, UM_CLEAN) & UM_WAITER))
      um_page_wake(r, f->page, n);
    um_gate_leave(r);
    return false;
  }
  um_policy_standby(p->policy, id);
  return true;
}

static bool has_dirty(um_pager *p, um_frame_id id) { /* frames_lock held */
  um_frame *f = &p->frames[id];
  for (uint64_t page = f->page; page < f->page + f->count; page++) {
    um_word w = um_page_load(f->region, page);
    if (um_word_state(w) == UM_DIRTY && um_word_frame(w) == id)
      return true;
  }
  return false;
}

/* Counts what was taken, in bytes. */
static uint64_t note(batch *b, const um_region *r, const victim *v, uint32_t *count, uint32_t taken) {
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < taken; i++)
    bytes += v[*count + i].count << r->page_shift;
  *count += taken;
  b->bytes += bytes;
  return bytes;
}

/* frames_lock held. What the policy wants gone before more is moved out. */
static bool pick_standby(um_pager *p, batch *b, bool *moving) {
  um_frame_id id = b->given_up < UM_STANDBY_TAKEN ? um_standby_take(p, UM_RECLAIM_FULL, moving) : UM_NIL;
  if (id == UM_NIL)
    return false;
  const um_frame *f = &p->frames[id];
  b->giving_up[b->given_up++] = id;
  b->bytes += um_run_memory(f->region, f->page, f->count);
  return true;
}

enum picked { PASSED, TAKEN, YOUNG, BATCH_FULL };

/* frames_lock held. A dirty run whose store is failing goes to the young end, or clean ones behind it would never be
 * looked at. TAKEN: the policy has moved it, and is to be asked anew. */
static enum picked pick_one(um_worker *w, batch *b, um_frame_id id) {
  um_pager *p = w->pager;
  um_frame *f = &p->frames[id];
  um_region *r = f->region;
  if (f->picked)
    return PASSED;
  if (!um_frame_aged(p, f, b->now))
    return YOUNG;
  bool move = must_move(r, f), writes = b->now >= atomic_load(&r->write_backoff_ns), full = false;
  uint64_t limit = um_run_limit(r, r->moves ? UM_CHUNK : w->staging_size), bytes = b->bytes;
  if (take_whole(p, id, b, &full)) {
    f->picked = true;
    b->frames[b->picked++] = id;
    return TAKEN;
  }
  if (full)
    return BATCH_FULL;
  if (move)
    note(b, r, b->moving, &b->movings,
         take(p, id, UM_IN(UM_CLEAN), UM_EVICTING, limit, b->moving + b->movings, BATCH - b->movings));
  note(b, r, b->clean, &b->cleans,
       take(p, id, move ? UM_IN(UM_FAILED) : CLEAN_OR_FAILED, UM_EVICTING, f->count, b->clean + b->cleans,
            BATCH - b->cleans));
  if (!writes && has_dirty(p, id)) {
    um_frame_relist(p, id);
    return TAKEN;
  }
  bool claims = writes && b->claimed < CLAIM_RUNS * w->staging_size;
  if (claims && r->moves)
    b->claimed += note(b, r, b->leaving, &b->leavings,
                       take(p, id, UM_IN(UM_DIRTY), UM_LEAVING, limit, b->leaving + b->leavings, BATCH - b->leavings));
  else if (claims)
    b->claimed += note(b, r, b->dirty, &b->dirties,
                       take(p, id, UM_IN(UM_DIRTY), UM_WRITING, limit, b->dirty + b->dirties, BATCH - b->dirties));
  if (b->bytes == bytes)
    return PASSED;
  f->picked = true;
  b->frames[b->picked++] = id;
  if (b->bytes - bytes < (uint64_t)atomic_load(&f->live) << r->page_shift)
    return PASSED;
  um_policy_evicted(p->policy, id);
  return TAKEN;
}

/* frames_lock held. The next resident in the policy's order. Those of a queue that are too young are soon old enough,
 * and what other queues have is worth more: of that a batch takes as little as gets it anything. */
static um_frame_id find_next(um_pager *p, const batch *b, um_frame_id id, enum picked picked, bool *young) {
  *young = picked != TAKEN && (*young || picked == YOUNG);
  uint8_t queue = picked == TAKEN ? 0 : p->frames[id].queue;
  um_frame_id next = um_policy_next(p->policy, picked == TAKEN ? UM_NIL : id);
  bool has_any = b->bytes > 0 || b->kepts > 0;
  return *young && has_any && p->frames[next].queue != queue ? UM_NIL : next;
}

/* Phase 1. */
static void pick(um_worker *w, batch *b) {
  um_pager *p = w->pager;
  uint64_t target = um_budget_short(p), scattered = 0, most = um_max(p->memory / BURST, UM_PAGE_SIZE_MIN);
  um_frame_id id = UM_NIL;
  enum picked picked = TAKEN;
  bool young = false, moving = false;
  pthread_mutex_lock(&p->frames_lock);
  for (int looked = 0; looked < LOOK && b->bytes < target && scattered < most && picked != BATCH_FULL; looked++) {
    uint64_t clean = b->bytes - b->claimed;
    if (!pick_standby(p, b, &moving)) {
      id = moving ? UM_NIL : find_next(p, b, id, picked, &young);
      if (id == UM_NIL)
        break;
      picked = pick_one(w, b, id);
    }
    clean = b->bytes - b->claimed - clean;
    scattered += clean < UM_CHUNK ? clean : 0;
  }
  pthread_mutex_unlock(&p->frames_lock);
}

/* frames_lock held. The policy was told that it waits on standby, but it could not be moved out. */
static bool is_put_back(const um_pager *p, um_frame_id id) {
  const um_frame *f = &p->frames[id];
  um_word w = um_page_load(f->region, f->page);
  return um_word_frame(w) == id && UM_IN(um_word_state(w)) & (UM_IN(UM_CLEAN) | UM_IN(UM_DIRTY) | UM_IN(UM_WRITING));
}

/* Phase 6. A descriptor may have been given back, and taken anew, since: then it is not marked any more. */
void um_evict_settle(um_pager *p, const um_frame_id *ids, uint32_t count) {
  pthread_mutex_lock(&p->frames_lock);
  for (uint32_t i = 0; i < count; i++) {
    um_frame *f = &p->frames[ids[i]];
    bool stays =
        f->picked && atomic_load(&f->live) > 0 && (!um_policy_in_standby(p->policy, ids[i]) || is_put_back(p, ids[i]));
    f->picked = false;
    if (stays)
      um_frame_relist(p, ids[i]);
  }
  pthread_mutex_unlock(&p->frames_lock);
}

static int by_address(const void *a, const void *b) {
  const victim *x = a, *y = b;
  uintptr_t left = um_page_address(x->region, x->page), right = um_page_address(y->region, y->page);
  return left < right ? -1 : left > right;
}

/* Makes one of neighbours, up to so many bytes each. */
static uint32_t merge(victim *v, uint32_t count, uint64_t bytes) {
  uint32_t kept = 0;
  for (uint32_t i = 0; i < count; i++) {
    victim *last = kept ? &v[kept - 1] : NULL;
    if (last && last->region == v[i].region && last->page + last->count == v[i].page &&
        last->count + v[i].count <= um_run_limit(v[i].region, bytes))
      last->count += v[i].count;
    else
      v[kept++] = v[i];
  }
  return kept;
}

/* Phase 3; all are inside their gates, and leave them. */
static uint64_t drop_clean(um_pager *p, victim *v, uint32_t count) {
  struct iovec ranges[BATCH];
  uint32_t scattered = 0;
  uint64_t freed = 0;
  for (uint32_t i = 0; i < count; i++) {
    if (is_whole_chunk(&v[i])) {
      freed += drop_one(p, &v[i], false);
      continue;
    }
    ranges[scattered].iov_base = (void *)um_page_address(v[i].region, v[i].page);
    ranges[scattered].iov_len = um_run_memory(v[i].region, v[i].page, v[i].count);
    v[scattered++] = v[i];
  }
  uint32_t done = scattered > 1 ? um_memory_drop_many(p, ranges, scattered) : 0;
  for (uint32_t i = 0; i < scattered; i++) {
    um_region *r = v[i].region;
    freed += i < done ? let_go(r, v[i].page, v[i].count) : um_evict_drop(r, v[i].page, v[i].count);
    um_gate_leave(r);
  }
  return freed;
}

/* Phase 4. Neighbours are one stretch, moved and written together. The clean ones are inside their gates, and leave. */
static uint64_t leave(um_worker *w, victim *v, uint32_t count) {
  uint64_t freed = 0;
  for (uint32_t i = 0, n; i < count; i += n) {
    uint64_t bytes = 0;
    for (n = 0; i + n < count && n < UM_LEAVING_MAX; n++) {
      uint64_t more = um_run_memory(v[i + n].region, v[i + n].page, v[i + n].count);
      if (bytes + more > UM_CHUNK)
        break;
      bytes += more;
    }
    freed += um_leave_group(w->pager, w, &v[i], n);
    for (uint32_t k = i; k < i + n; k++) { /* a pinned one is asked again later, one whose store fails too */
      if (v[k].dirty && v[k].failed && v[k].failed != -EBUSY && v[k].unmoved)
        freed += um_evict_in_place(w, &v[k]);
      if (!v[k].dirty)
        um_gate_leave(v[k].region);
    }
  }
  return freed;
}

/* Phase 4, of clean runs that are kept on standby. */
static uint64_t keep(um_worker *w, victim *v, uint32_t count) {
  uint64_t freed = 0;
  uint32_t others = 0;
  for (uint32_t i = 0; i < count; i++)
    if (is_whole_chunk(&v[i]) && !must_move(v[i].region, &w->pager->frames[v[i].frame]))
      freed += drop_one(w->pager, &v[i], false);
    else
      v[others++] = v[i];
  return freed + leave(w, v, others);
}

uint64_t um_evict_batch(um_worker *w) {
  um_pager *p = w->pager;
  batch b;
  uint64_t freed = 0;
  b.cleans = b.movings = b.leavings = b.dirties = b.kepts = b.picked = 0;
  b.bytes = b.claimed = 0;
  b.now = um_now_ns();
  b.given_up = 0;
  pick(w, &b);
  freed += um_standby_give_up(p, b.giving_up, b.given_up);
  qsort(b.clean, b.cleans, sizeof *b.clean, by_address);
  qsort(b.leaving, b.leavings, sizeof *b.leaving, by_address);
  qsort(b.dirty, b.dirties, sizeof *b.dirty, by_address);
  b.leavings = merge(b.leaving, b.leavings, UM_CHUNK);
  b.dirties = merge(b.dirty, b.dirties, w->staging_size);
  freed += drop_clean(p, b.clean, b.cleans);
  freed += keep(w, b.kept, b.kepts);
  for (uint32_t i = 0; i < b.movings; i++)
    freed += drop_one(p, &b.moving[i], true);
  freed += leave(w, b.leaving, b.leavings);
  for (uint32_t i = 0; i < b.dirties;)
    i += um_evict_written(w, &b.dirty[i], b.dirties - i, &freed);
  um_evict_settle(p, b.frames, b.picked);
  return freed;
}
