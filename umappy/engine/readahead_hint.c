/* readahead_hint.c: what the user said about ranges of pages. The ranges are kept apart: a new one cuts pieces out of
 * those it covers. */
#include "readahead_stream.h"

um_hint um_hint_at(const um_readahead *ra, uint64_t page, uint64_t *last) {
  for (uint32_t i = 0; i < ra->hint_count; i++)
    if (page >= ra->hints[i].first && page < ra->hints[i].last) {
      *last = ra->hints[i].last;
      return ra->hints[i].hint;
    }
  return UM_HINT_NORMAL;
}

/* The first page of [page, end), a stream's numbers, into which nobody may read ahead; or end. */
uint64_t um_hint_end(const um_readahead *ra, const um_stream *s, uint64_t page, uint64_t end) {
  end = um_min(end, s->stop);
  for (uint32_t i = 0; i < ra->hint_count; i++) {
    const um_hint_range *h = &ra->hints[i];
    if (h->hint != UM_HINT_RANDOM)
      continue;
    uint64_t low = s->down ? um_stream_mirror(ra, true, h->last - 1) : h->first;
    uint64_t high = s->down ? um_stream_mirror(ra, true, h->first) + 1 : h->last;
    if (low < end && high > page)
      end = um_max(low, page);
  }
  return end;
}

static void add_hint(um_readahead *ra, um_hint_range h) {
  if (h.first >= h.last)
    return;
  if (ra->hint_count == UM_HINTS)
    memmove(ra->hints, ra->hints + 1, --ra->hint_count * sizeof *ra->hints);
  ra->hints[ra->hint_count++] = h;
}

void um_readahead_hint(um_readahead *ra, uint64_t first, uint64_t last, um_hint hint) {
  last = um_min(last, ra->limits.page_count);
  if (first >= last)
    return;
  um_hint_range older[UM_HINTS];
  uint32_t count = ra->hint_count;
  memcpy(older, ra->hints, count * sizeof *older);
  ra->hint_count = 0;
  for (uint32_t i = 0; i < count; i++) { /* what the new one leaves of each */
    um_hint_range h = older[i];
    add_hint(ra, (um_hint_range){h.first, um_min(h.last, first), h.hint});
    add_hint(ra, (um_hint_range){um_max(h.first, last), h.last, h.hint});
  }
  if (hint != UM_HINT_NORMAL)
    add_hint(ra, (um_hint_range){first, last, hint});
}
