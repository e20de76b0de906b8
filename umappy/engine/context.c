/* context.c: where a miss is among the pages that are there. Who reads through resident pages makes no faults, so the
 * stream detector knows nothing of him when he comes to a gap; that all pages before it are there, and those behind it
 * are not, tells as much. Linux' read-ahead looks into the page cache for the same reason (mm/readahead.c). */
#include "context.h"

#include "page.h"

/* Where pages come and go one by one, chance hardly ever makes such an edge. */
#define EDGE_BYTES (256u << 10)
#define EDGE_PAGES 8u
#define EDGE_GONE 4

uint64_t um_context_pages(const um_region *r) {
  return um_max(EDGE_PAGES, EDGE_BYTES >> r->page_shift);
}

static bool is_resident(const um_region *r, uint64_t page) {
  return UM_IN(um_word_state(um_page_look(r, page))) & (UM_IN(UM_CLEAN) | UM_IN(UM_DIRTY) | UM_IN(UM_WRITING));
}

/* `step` is where the reader goes, 1 or -1. */
static bool is_edge(const um_region *r, uint64_t page, int64_t step) {
  int64_t there = (int64_t)um_context_pages(r), at = (int64_t)page, count = (int64_t)r->page_count;
  int64_t first = at - there * step, last = at + EDGE_GONE * step;
  if (first < 0 || first >= count || last < 0 || last >= count)
    return false;
  for (int64_t i = at - step; i != first - step; i -= step)
    if (!is_resident(r, (uint64_t)i))
      return false;
  for (int64_t i = at + step; i != last + step; i += step)
    if (um_word_state(um_page_look(r, (uint64_t)i)) != UM_ABSENT)
      return false;
  return true;
}

um_context um_context_at(const um_region *r, uint64_t page) {
  return is_edge(r, page, 1) ? UM_CONTEXT_UP : is_edge(r, page, -1) ? UM_CONTEXT_DOWN : UM_CONTEXT_NONE;
}
