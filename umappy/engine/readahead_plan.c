/* readahead_plan.c: the reader came to where its stream expected it: how much may be asked for, and in which runs. */
#include "readahead_stream.h"

static void note_cut(const um_readahead *ra, um_stream *s, uint64_t end) {
  if (um_stream_boundary(ra, s, end - 1) != end)
    s->cuts[s->cut++ % UM_CUTS] = end;
}

static uint64_t allowance(const um_stream *s, const um_reader *t) {
  uint64_t pages = um_max(s->length / 2, s->granted);
  if (t->trust > 0)
    pages = um_max(pages, um_max(3 * s->length, s->boost));
  return um_min(pages, s->limit);
}

static void come_along(const um_readahead *ra, um_reader *t, um_stream *s, uint64_t pages) {
  if (!pages)
    return;
  s->length += pages;
  s->hits += s->hits < UM_PROVEN_HITS;
  s->shrunk = false;
  s->doubted = 0;
  s->limit = s->limit > UINT64_MAX / 2 ? UINT64_MAX : s->limit + (pages + 3) / 4;
  uint64_t won = um_min(pages, s->bet);
  s->bet -= won;
  um_reader_earn(ra, t, won * UM_TRUST_PAGE * 5 / 4 + (s->length >= UM_TRUST_LENGTH ? pages * UM_TRUST_PAGE / 8 : 0));
}

/* `ahead`: pages asked for and not yet come to. */
static void pay(um_reader *t, um_stream *s, uint64_t ahead) {
  uint64_t beyond = ahead > s->length / 2 ? ahead - s->length / 2 : 0;
  if (beyond > s->bet) {
    t->trust -= (int64_t)(beyond - s->bet) * UM_TRUST_PAGE;
    s->bet = beyond;
  }
}

static uint64_t cut_short(const um_readahead *ra, uint64_t page, uint64_t end) {
  return end - page < ra->limits.run_pages ? um_min(end, page + ra->limits.part_pages) : end;
}

/* What is no whole run is asked for as it is read, part by part in the order of need: who comes to the next part before
 * it was read is where he is expected. Returns the end of what was asked for. */
static uint64_t ask_parts(const um_readahead *ra, um_stream *s, um_answer *a, uint64_t from, uint64_t end, bool write) {
  while (from < end) {
    uint64_t part = um_min(ra->limits.part_pages, end - from), parts = (end - from) / part;
    if (!um_answer_add(ra, s, a, from, part, part, parts, write))
      break;
    from += parts * part;
  }
  note_cut(ra, s, from);
  return from;
}

/* Asks for [s->end, target) in runs, or as much of it as makes good ones. */
static void ask_ahead(const um_readahead *ra, um_stream *s, um_answer *a, uint64_t target, uint64_t allowed,
                      bool write) {
  uint64_t run = ra->limits.run_pages, from = s->end;
  uint64_t last = um_hint_end(ra, s, from, um_min(target, ra->limits.page_count));
  bool closed = last < target; /* nothing can be asked beyond */
  bool whole_only = allowed + 1 >= 2 * run && !closed;
  if (last <= from || (!whole_only && !closed && last - from < um_max(1, allowed / 4)))
    return;
  uint64_t boundary = um_stream_boundary(ra, s, from);
  if (boundary - from < run && boundary <= last) {
    s->end = from = ask_parts(ra, s, a, from, boundary, write);
    if (from < boundary)
      return;
  }
  if (last - from >= run && boundary <= last) {
    uint64_t runs = (last - from) / run;
    if (!um_answer_add(ra, s, a, from, run, run, runs, write))
      return;
    s->end = from += runs * run;
  }
  if (last > from && !whole_only)
    s->end = ask_parts(ra, s, a, from, last, write);
}

void um_stream_go_on(um_readahead *ra, um_reader *t, um_stream *s, uint64_t page, bool write, bool miss, um_answer *a) {
  uint64_t run = ra->limits.run_pages, window = ra->limits.window_pages;
  uint64_t passed = page - s->pos;
  come_along(ra, t, s, passed);
  s->pos = page;
  s->end = um_max(s->end, page);
  if (page >= s->stop)
    s->stop = UINT64_MAX;
  uint64_t allowed = um_min(allowance(s, t), window ? window - 1 : 0);
  uint64_t end;
  if (page < s->end) {
    end = um_stream_run_end(ra, s, page);
    if (miss && end > page + um_max(window, 1)) { /* asked for when the window was larger, and never read */
      end = page + um_max(window, 1);
      note_cut(ra, s, end);
    }
    if (miss)
      end = cut_short(ra, page, end);
  } else {
    uint64_t count = allowed + 1 >= 2 * run ? run : allowed + 1 < 8 ? allowed + 1 : (allowed + 1) / 2;
    end = um_hint_end(ra, s, page + 1, um_min(page + count, ra->limits.page_count));
    s->end = end = cut_short(ra, page, um_min(end, um_stream_boundary(ra, s, page)));
    note_cut(ra, s, end);
  }
  bool writes = um_stream_note_write(s, write, passed > 0, end - page);
  um_answer_add(ra, s, a, page, end - page, end - page, 1, writes || (write && end - page == 1));
  if (window)
    ask_ahead(ra, s, a, page + 1 + allowed, allowed, s->writer);
  s->granted = allowed;
  pay(t, s, s->end - page - 1);
}

static void ask_stops(const um_readahead *ra, um_stream *s, um_answer *a, uint64_t allowed, bool write) {
  uint32_t width = um_stream_stop_width(s);
  if (allowed <= s->asked || allowed - s->asked < um_max(1, allowed / 4))
    return;
  if (s->exact) {
    uint64_t first = um_stream_nth_stop(s, s->asked + 1), runs = 0, stop = first;
    while (s->asked + runs < allowed && stop < ra->limits.page_count && um_hint_end(ra, s, stop, stop + 1) > stop) {
      runs++;
      stop += s->stride;
    }
    if (runs && um_answer_add(ra, s, a, first, 1, s->stride, runs, write)) {
      s->asked += runs;
      s->end = first + (runs - 1) * s->stride + 1;
    }
    return;
  }
  for (; s->asked < allowed; s->asked++) {
    uint64_t stop = um_stream_nth_stop(s, s->asked + 1), first = um_max(stop, s->end);
    uint64_t end = um_hint_end(ra, s, first, um_min(stop + width, ra->limits.page_count));
    if (end <= first)
      return;
    uint64_t count = um_stream_boundary(ra, s, first) < end ? 1 : end - first;
    if (!um_answer_add(ra, s, a, first, count, count, (end - first) / count, write))
      return;
    s->end = end;
  }
}

void um_stream_walk_on(um_readahead *ra, um_reader *t, um_stream *s, uint64_t page, bool write, um_answer *a) {
  uint64_t stops = page == s->pos ? 0 : um_stream_find_stop(s, page);
  if (stops) {
    if (page == s->pos + stops * s->stride) {
      s->same += stops;
      s->exact = s->exact || s->same >= s->patience;
    } else {
      s->stride = (page - s->pos + stops / 2) / stops;
      s->patience *= s->exact ? 4 : 1;
      s->same = 0;
      s->exact = false;
    }
    s->index += stops;
    double moved = (double)(page - s->anchor), mean = um_stream_mean_stride(s);
    s->low = (moved - 1) / (double)s->index > s->low ? (moved - 1) / (double)s->index : s->low;
    s->high = (moved + 1) / (double)s->index < s->high ? (moved + 1) / (double)s->index : s->high;
    if (s->low >= s->high) { /* not one stride: begin again with about this one */
      s->anchor = page;
      s->index = 0;
      s->low = mean - 0.5;
      s->high = mean + 0.5;
    }
    s->pos = page;
    s->asked -= um_min(s->asked, stops);
    come_along(ra, t, s, stops);
  }
  s->end = um_max(s->end, page + 1);
  bool writes = um_stream_note_write(s, write, stops > 0, 1);
  uint32_t width = um_stream_stop_width(s);
  uint64_t window = ra->limits.window_pages;
  uint64_t allowed = um_min(allowance(s, t), um_min(UM_STOPS_MAX, window ? (window - 1) / width : 0));
  um_answer_add(ra, s, a, page, 1, 1, 1, writes || write);
  ask_stops(ra, s, a, allowed, writes);
  s->granted = allowed;
  pay(t, s, s->asked * width);
}
