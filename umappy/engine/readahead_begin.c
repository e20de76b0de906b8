/* readahead_begin.c: new streams, from touches that no stream expected: neighbours of earlier touches, and walks of
 * constant stride. A stream is made when there is something to ask for; until then the history keeps the evidence. */
#include "readahead_stream.h"

um_stream *um_stream_begin(um_readahead *ra, um_reader *t, uint64_t page, bool down, uint64_t length) {
  um_stream *s = um_stream_take(ra, t, length >= 3);
  if (!s)
    return NULL;
  s->down = down;
  s->pos = s->end = um_stream_mirror(ra, down, page);
  s->start = s->pos - um_min(length, s->pos);
  s->length = length;
  return s;
}

/* Who reads again what a proven stream of its thread has read before may expect its window. */
static void inherit(const um_readahead *ra, const um_reader *t, um_stream *s) {
  for (uint32_t w = 0; w < UM_STREAM_WORDS; w++)
    for (uint64_t bits = t->streams[w]; bits; bits &= bits - 1) {
      const um_stream *old = &ra->streams[w * 64 + (uint32_t)__builtin_ctzll(bits)];
      if (old != s && old->hits >= UM_PROVEN_HITS && old->down == s->down && !old->stride && s->pos >= old->start &&
          s->pos <= old->end)
        s->boost = um_max(s->boost, old->length);
    }
}

static bool may_ask(const um_reader *t, uint64_t length) {
  return t->trust > 0 || length >= 2;
}

static um_touched *history_slot(um_readahead *ra, uint32_t thread_id, uint64_t page) {
  uint64_t key = (page ^ (uint64_t)thread_id << 40) * 0x9e3779b97f4a7c15ull;
  return &ra->history[key >> (64 - UM_HISTORY_BITS)];
}

static const um_touched *find_touched(um_readahead *ra, const um_reader *t, uint64_t page, uint32_t direction) {
  const um_touched *h = history_slot(ra, t->id, page);
  bool found = h->length && h->page == page && h->thread_id == t->id && t->seq - h->seq <= ra->history_age &&
               (h->direction == UM_ANY || h->direction == direction);
  return found ? h : NULL;
}

/* Touches in a row, or a context: a stream, or, with too little evidence, a longer entry of the history. */
um_stream *um_stream_begin_sequential(um_readahead *ra, um_reader *t, uint64_t page, bool write, um_context context) {
  const um_touched *below = find_touched(ra, t, page - 1, UM_UP), *above = find_touched(ra, t, page + 1, UM_DOWN);
  bool down = above && (!below || above->length > below->length);
  const um_touched *before = down ? above : below;
  uint64_t length = before ? before->length : 0;
  bool wrote = before && before->write;
  if (!before && page == 0 && t->seq == 1)
    length = 1; /* the first page, first of all: most likely the beginning of more */
  if (!before && context != UM_CONTEXT_NONE) {
    length = ra->limits.context_pages;
    down = context == UM_CONTEXT_DOWN;
  }
  um_stream *s = length && may_ask(t, length) ? um_stream_begin(ra, t, page, down, length) : NULL;
  if (s) {
    inherit(ra, t, s);
    s->writes = wrote;
    return s;
  }
  *history_slot(ra, t->id, page) = (um_touched){
      .page = page,
      .length = length + 1,
      .thread_id = t->id,
      .seq = t->seq,
      .direction = !before ? UM_ANY
                   : down  ? UM_DOWN
                           : UM_UP,
      .write = write,
  };
  return NULL;
}

static uint64_t distance(int64_t a, int64_t b) {
  return a > b ? (uint64_t)a - (uint64_t)b : (uint64_t)b - (uint64_t)a;
}

static um_stream *begin_walk(um_readahead *ra, um_reader *t, uint64_t page, int64_t stride, int64_t span, bool exact) {
  bool down = stride < 0;
  uint64_t pages = (uint64_t)llabs(stride), length = (uint64_t)llabs(span);
  bool whole = pages <= ra->limits.gap_pages || (!exact && length < 9);
  um_stream *s = may_ask(t, 3) ? um_stream_begin(ra, t, page, down, whole ? length : 3) : NULL;
  if (!s)
    return NULL;
  s->start = s->pos - length;
  if (whole) {
    s->gap = pages + !exact;
    return s;
  }
  s->stride = pages;
  s->exact = exact;
  s->same = exact ? 3 : 0;
  s->patience = 16;
  s->anchor = s->start;
  s->index = 3;
  s->low = (double)(length - 1) / 3;
  s->high = (double)(length + 1) / 3;
  return s;
}

/* Equal strides in any lane before nearly equal ones in another: those may be of two readers. */
um_stream *um_stream_begin_strided(um_readahead *ra, um_reader *t, uint64_t page) {
  int64_t jitter_stride = 0, jitter_span = 0;
  uint32_t lanes_max = (uint32_t)um_min(UM_LANES_MAX, t->recents / 3);
  for (uint32_t lanes = 1; lanes <= lanes_max; lanes++) {
    uint64_t one = t->recent[(t->recents - lanes) % UM_RECENT], two = t->recent[(t->recents - 2 * lanes) % UM_RECENT];
    int64_t last = (int64_t)(page - one), middle = (int64_t)(one - two);
    if (distance(last, middle) > 1)
      continue;
    int64_t first = (int64_t)(two - t->recent[(t->recents - 3 * lanes) % UM_RECENT]), span = first + middle + last;
    bool one_way = (first > 0 && middle > 0 && last > 0) || (first < 0 && middle < 0 && last < 0);
    if (!one_way || distance(first, middle) > 1 || distance(first, last) > 1 || llabs(span) <= 3)
      continue; /* and neighbours are the history's business */
    if (first == middle && middle == last)
      return begin_walk(ra, t, page, last, span, true);
    if (!jitter_span) {
      jitter_stride = last;
      jitter_span = span;
    }
  }
  return jitter_span ? begin_walk(ra, t, page, jitter_stride, jitter_span, false) : NULL;
}
