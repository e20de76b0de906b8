/* page.c: changing the words of pages. See page.h for the diagram. */
#include "page.h"

#include "uffd.h"

#ifdef UM_DEBUG
/* What each state may become; every state may change its flags. */
static const uint32_t edges[] = {
    [UM_ABSENT] = UM_IN(UM_FILLING),
    [UM_FILLING] =
        UM_IN(UM_FILLING) | UM_IN(UM_CLEAN) | UM_IN(UM_DIRTY) | UM_IN(UM_FAILED) | UM_IN(UM_STANDBY) | UM_IN(UM_ABSENT),
    [UM_CLEAN] = UM_IN(UM_CLEAN) | UM_IN(UM_DIRTY) | UM_IN(UM_EVICTING),
    [UM_DIRTY] = UM_IN(UM_DIRTY) | UM_IN(UM_WRITING) | UM_IN(UM_LEAVING) | UM_IN(UM_FAILED),
    [UM_WRITING] = UM_IN(UM_WRITING) | UM_IN(UM_CLEAN) | UM_IN(UM_DIRTY) | UM_IN(UM_EVICTING) | UM_IN(UM_FAILED),
    [UM_EVICTING] = UM_IN(UM_EVICTING) | UM_IN(UM_STANDBY) | UM_IN(UM_CLEAN) | UM_IN(UM_DIRTY) | UM_IN(UM_ABSENT),
    [UM_FAILED] = UM_IN(UM_FAILED) | UM_IN(UM_EVICTING),
    [UM_STANDBY] = UM_IN(UM_FILLING) | UM_IN(UM_EVICTING),
    [UM_LEAVING] = UM_IN(UM_LEAVING) | UM_IN(UM_STANDBY) | UM_IN(UM_DIRTY) | UM_IN(UM_FAILED) | UM_IN(UM_ABSENT),
};

static void check(um_region *r, um_word from, um_word to) {
  uint32_t gate = atomic_load(&r->gate);
  UM_ASSERT(gate != 0 && !(gate & UM_GATE_CLOSED)); /* counts settle before the gate can close */
  UM_ASSERT(edges[um_word_state(from)] & UM_IN(um_word_state(to)));
  UM_ASSERT(um_word_state(to) != UM_ABSENT || to == 0);
  UM_ASSERT(from == 0 || to == 0 || um_word_frame(from) == um_word_frame(to));
}
#else
#define check(r, from, to) ((void)0)
#endif

static bool is_dirty(um_word w) {
  enum um_state s = um_word_state(w);
  return s == UM_DIRTY || s == UM_WRITING || s == UM_LEAVING || (s == UM_FILLING && (w & UM_OPEN));
}

static bool is_resident(enum um_state s) {
  return (UM_IN(s) & ~(UM_IN(UM_ABSENT) | UM_IN(UM_FILLING) | UM_IN(UM_STANDBY) | UM_IN(UM_LEAVING))) != 0;
}

static bool is_writing(enum um_state s) {
  return s == UM_WRITING || s == UM_LEAVING;
}

/* What changes of pages add up to; the region's counts are shared by all threads, so they are touched once a run. */
typedef struct tally {
  uint64_t first, pages; /* neighbours, told of in order, that changed alike and are not counted yet: */
  um_word before, after;
  uint64_t span, dirty, resident, standby; /* bytes; of either sign, modulo 2^64 */
  uint32_t span_dirty, filling, writing;   /* pages, likewise */
} tally;

static void settle_span(um_region *r, tally *t) {
  if (t->span_dirty)
    atomic_fetch_add(&r->spans[t->span].dirty, t->span_dirty);
  t->span_dirty = 0;
}

static void count_span_dirty(um_region *r, tally *t, uint32_t one) {
  for (uint64_t page = t->first; page < t->first + t->pages; page++) {
    uint64_t span = um_words_span(r, page);
    if (span != t->span)
      settle_span(r, t);
    t->span = span;
    t->span_dirty += one;
  }
}

static void count_alike(um_region *r, tally *t) {
  enum um_state from = um_word_state(t->before), to = um_word_state(t->after);
  uint64_t bytes = um_run_memory(r, t->first, t->pages);
  uint32_t pages = (uint32_t)t->pages;
  if (is_dirty(t->before) != is_dirty(t->after)) {
    count_span_dirty(r, t, is_dirty(t->after) ? 1u : -1u);
    t->dirty += is_dirty(t->after) ? bytes : -bytes;
  }
  if (is_resident(from) != is_resident(to))
    t->resident += is_resident(to) ? bytes : -bytes;
  if ((from == UM_STANDBY) != (to == UM_STANDBY))
    t->standby += to == UM_STANDBY ? bytes : -bytes;
  if ((from == UM_FILLING) != (to == UM_FILLING))
    t->filling += to == UM_FILLING ? pages : -pages;
  if (is_writing(from) != is_writing(to))
    t->writing += is_writing(to) ? pages : -pages;
  t->pages = 0;
}

static void count(um_region *r, uint64_t page, um_word before, um_word after, tally *t) {
  const um_word counted = UM_STATE_MASK | UM_OPEN;
  if (t->pages && (((before ^ t->before) | (after ^ t->after)) & counted) == 0) {
    t->pages++;
    return;
  }
  if (t->pages)
    count_alike(r, t);
  t->first = page;
  t->pages = 1;
  t->before = before;
  t->after = after;
}

static void settle(um_region *r, tally *t) {
  if (t->pages)
    count_alike(r, t);
  settle_span(r, t);
  if (t->dirty)
    atomic_fetch_add(&r->dirty, t->dirty);
  if (t->resident)
    atomic_fetch_add(&r->resident, t->resident);
  if (t->standby)
    atomic_fetch_add(&r->standby, t->standby);
  if (t->filling)
    atomic_fetch_add(&r->filling, t->filling);
  if (t->writing)
    atomic_fetch_add(&r->writing, t->writing);
}

static bool exchange(um_region *r, uint64_t page, um_word *expected, um_word desired) {
  check(r, *expected, desired);
  return atomic_compare_exchange_strong(&r->words[page], expected, desired);
}

bool um_page_change(um_region *r, uint64_t page, um_word *expected, um_word desired) {
  um_word from = *expected;
  tally t = {0};
  /* A page must be counted as dirty before anybody can see it so: a flush that finds the count zero skips the span. */
  bool early = !is_dirty(from) && is_dirty(desired);
  count(r, page, from, desired, &t);
  if (early)
    settle(r, &t);
  bool changed = exchange(r, page, expected, desired);
  if (changed && !early) {
    settle(r, &t);
  } else if (!changed && early) {
    tally undo = {0};
    count(r, page, desired, from, &undo);
    settle(r, &undo);
  }
  return changed;
}

uint64_t um_run_cost(const um_region *r, uint64_t first, uint64_t count_) {
  return um_run_memory(r, first, count_) + um_words_cost(r, first, count_);
}

/* Words are entered before the first claim of a page: the memory they lie in must not be dropped in between. */
uint64_t um_run_claim(um_region *r, uint64_t first, uint64_t count_, um_frame_id frame) {
  uint64_t unused = um_words_cost(r, first, count_) - um_words_enter(r, first, count_), claimed = 0;
  tally t = {0};
  for (; claimed < count_; claimed++) {
    um_word expected = 0, desired = um_word_make(UM_FILLING, 0, frame);
    if (!exchange(r, first + claimed, &expected, desired))
      break;
    count(r, first + claimed, 0, desired, &t);
  }
  atomic_fetch_add(&r->pager->frames[frame].live, (uint32_t)claimed);
  settle(r, &t);
  if (claimed < count_)
    um_words_leave(r, first + claimed, count_ - claimed);
  um_budget_release(r->pager, unused);
  return claimed;
}

uint64_t um_run_take(um_region *r, uint64_t first, uint64_t count_, uint32_t from, um_frame_id frame,
                     enum um_state to) {
  uint64_t taken = 0;
  tally t = {0};
  while (taken < count_) {
    um_word w = um_page_load(r, first + taken);
    if (!(UM_IN(um_word_state(w)) & from) || (w & UM_BUSY) || um_word_frame(w) != frame)
      break;
    um_word desired = um_word_make(to, to == UM_WRITING ? UM_COPYING : 0, frame);
    if (!exchange(r, first + taken, &w, desired))
      continue;
    count(r, first + taken, w, desired, &t);
    taken++;
  }
  if (taken)
    settle(r, &t);
  return taken;
}

void um_run_open(um_region *r, uint64_t first, uint64_t count_) {
  tally t = {0};
  for (uint64_t page = first; page < first + count_; page++) {
    um_word w = um_page_load(r, page);
    count(r, page, w, w | UM_OPEN, &t);
  }
  settle(r, &t); /* counted before it is seen */
  for (uint64_t page = first; page < first + count_; page++) {
    um_word w = um_page_load(r, page);
    while (!exchange(r, page, &w, w | UM_OPEN))
      ;
  }
}

um_word um_run_release(um_region *r, uint64_t first, uint64_t count_, enum um_state state) {
  um_word flags = 0;
  tally t = {0};
  for (uint64_t page = first; page < first + count_; page++) {
    um_word w = um_page_load(r, page), desired = um_word_make(state, 0, um_word_frame(w));
    UM_ASSERT(is_dirty(w) || !is_dirty(desired)); /* um_run_open came first */
    while (!exchange(r, page, &w, desired))
      ;
    count(r, page, w, desired, &t);
    flags |= w & ~(um_word)UM_STATE_MASK & 0xffffffffu;
  }
  settle(r, &t);
  return flags;
}

void um_run_absent(um_region *r, uint64_t first, uint64_t count_) {
  bool wake = false;
  tally t = {0};
  for (uint64_t page = first; page < first + count_;) {
    um_frame_id frame = um_word_frame(um_page_load(r, page));
    uint32_t gone = 0;
    for (; page < first + count_; page++, gone++) {
      um_word w = um_page_load(r, page);
      if (um_word_frame(w) != frame)
        break;
      while (!exchange(r, page, &w, 0))
        ;
      count(r, page, w, 0, &t);
      wake |= (w & UM_WAITER) || um_word_state(w) == UM_FILLING;
    }
    um_frame_drop(r->pager, frame, gone);
  }
  settle(r, &t);
  um_words_leave(r, first, count_);
  if (wake)
    um_page_wake(r, first, count_);
}

bool um_run_waiter(const um_region *r, uint64_t first, uint64_t count_, uint64_t *page) {
  for (*page = first; *page < first + count_; (*page)++)
    if (um_page_load(r, *page) & UM_WAITER)
      return true;
  return false;
}

um_word um_page_release(um_region *r, uint64_t page, enum um_state state) {
  um_word flags = um_run_release(r, page, 1, state);
  if (flags & UM_WAITER)
    um_page_wake(r, page, 1);
  return flags;
}

void um_page_wake(um_region *r, uint64_t first, uint64_t count_) {
  um_uffd_wake(r->pager->uffd, um_page_address(r, first), um_run_memory(r, first, count_));
}
