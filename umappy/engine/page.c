/* page.c: changing a page's word. See page.h for the diagram. */
#include "page.h"

#include "uffd.h"

#define TO(state) (1u << (state))
#ifdef UM_DEBUG
/* What each state may become; every state may change its flags. */
static const uint32_t edges[] = {
    [UM_ABSENT] = TO(UM_FILLING),
    [UM_FILLING] = TO(UM_FILLING) | TO(UM_CLEAN) | TO(UM_DIRTY) | TO(UM_FAILED) | TO(UM_ABSENT),
    [UM_CLEAN] = TO(UM_CLEAN) | TO(UM_DIRTY) | TO(UM_EVICTING),
    [UM_DIRTY] = TO(UM_DIRTY) | TO(UM_WRITING) | TO(UM_FAILED),
    [UM_WRITING] = TO(UM_WRITING) | TO(UM_CLEAN) | TO(UM_DIRTY) | TO(UM_EVICTING) | TO(UM_FAILED),
    [UM_EVICTING] = TO(UM_EVICTING) | TO(UM_ABSENT),
    [UM_FAILED] = TO(UM_FAILED) | TO(UM_EVICTING),
};

static void check(um_region *r, um_word from, um_word to) {
  uint32_t gate = atomic_load(&r->gate);
  UM_ASSERT(gate != 0 && !(gate & UM_GATE_CLOSED)); /* counts settle before the gate can close */
  UM_ASSERT(edges[um_word_state(from)] & TO(um_word_state(to)));
  UM_ASSERT(um_word_state(to) != UM_ABSENT || to == 0);
  UM_ASSERT(from == 0 || to == 0 || um_word_frame(from) == um_word_frame(to));
}
#else
#define check(r, from, to) ((void)0)
#endif

static bool is_dirty(um_word w) {
  enum um_state s = um_word_state(w);
  return s == UM_DIRTY || s == UM_WRITING || (s == UM_FILLING && (w & UM_OPEN));
}

static bool is_resident(enum um_state s) {
  return s != UM_ABSENT && s != UM_FILLING;
}

static void count(um_region *r, uint64_t page, um_word before, um_word after) {
  enum um_state from = um_word_state(before), to = um_word_state(after);
  uint64_t bytes = um_page_memory(r, page);
  if (is_dirty(before) != is_dirty(after)) {
    _Atomic uint32_t *dirty = &r->spans[um_words_span(r, page)].dirty;
    if (is_dirty(after)) {
      atomic_fetch_add(&r->dirty, bytes);
      atomic_fetch_add(dirty, 1);
    } else {
      atomic_fetch_sub(&r->dirty, bytes);
      atomic_fetch_sub(dirty, 1);
    }
  }
  if (is_resident(from) != is_resident(to))
    atomic_fetch_add(&r->resident, is_resident(to) ? bytes : -bytes);
  if ((from == UM_FILLING) != (to == UM_FILLING))
    atomic_fetch_add(&r->filling, to == UM_FILLING ? 1 : (uint32_t)-1);
  if ((from == UM_WRITING) != (to == UM_WRITING))
    atomic_fetch_add(&r->writing, to == UM_WRITING ? 1 : (uint32_t)-1);
}

bool um_page_change(um_region *r, uint64_t page, um_word *expected, um_word desired) {
  check(r, *expected, desired);
  um_word from = *expected;
  /* A page must be counted as dirty before anybody can see it so: a flush that finds the count zero skips the span. */
  bool early = !is_dirty(from) && is_dirty(desired);
  if (early)
    count(r, page, from, desired);
  bool changed = atomic_compare_exchange_strong(&r->words[page], expected, desired);
  if (changed && !early)
    count(r, page, from, desired);
  else if (!changed && early)
    count(r, page, desired, from);
  return changed;
}

bool um_page_claim(um_region *r, uint64_t page, um_frame_id frame) {
  um_word expected = 0;
  uint64_t unused = um_words_cost(r) - um_words_enter(r, page);
  bool claimed = um_page_change(r, page, &expected, um_word_make(UM_FILLING, 0, frame));
  if (!claimed)
    um_words_leave(r, page);
  um_budget_release(r->pager, unused);
  return claimed;
}

bool um_page_take(um_region *r, uint64_t page) {
  um_pager *p = r->pager;
  um_frame_id frame = um_frame_take(p, r, page);
  if (frame == UM_NIL) {
    um_budget_release(p, um_page_cost(r, page));
    return false;
  }
  if (um_page_claim(r, page, frame))
    return true;
  um_frame_give(p, frame);
  um_budget_release(p, um_page_memory(r, page));
  return false;
}

void um_page_wake(um_region *r, uint64_t first, uint64_t count_) {
  um_uffd_wake(r->pager->uffd, um_page_address(r, first), um_run_memory(r, first, count_));
}

void um_page_open(um_region *r, uint64_t first, uint64_t count_) {
  for (uint64_t page = first; page < first + count_; page++) {
    um_word w = um_page_load(r, page);
    while (!um_page_change(r, page, &w, w | UM_OPEN))
      ;
  }
}

um_word um_page_release(um_region *r, uint64_t page, enum um_state state) {
  um_word w = um_page_load(r, page);
  while (!um_page_change(r, page, &w, um_word_make(state, 0, um_word_frame(w))))
    ;
  if (w & UM_WAITER)
    um_page_wake(r, page, 1);
  return w;
}

void um_page_absent(um_region *r, uint64_t page) {
  um_word w = um_page_load(r, page);
  while (!um_page_change(r, page, &w, 0))
    ;
  um_frame_give(r->pager, um_word_frame(w));
  um_words_leave(r, page);
  if ((w & UM_WAITER) || um_word_state(w) == UM_FILLING)
    um_page_wake(r, page, 1);
}
