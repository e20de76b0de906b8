/* readahead.c: the stream detector; its parts are in readahead_*.c.
 *
 * A touch (miss or trigger) first looks for a stream of its thread that expects this very page: the start of one of the
 * next runs, or of a part that is read by one call, the end of all that was asked for, a strided reader's next stops
 * (readahead_find.c). A touch elsewhere in what a stream asked for, or shortly beyond it, is not believed until the
 * page after it is touched too: chance hits would drive on a stream that nobody reads. Next, proven streams that began
 * at this page: a loop. Everything else may begin a stream (readahead_begin.c):
 *  - the history, a hash table of single touches by thread and page, finds a neighbour touched not long ago, and with
 *    it how many pages were touched in a row, up or down;
 *  - pages that are there make no faults, so who reads through them into a gap leaves no history: that many before the
 *    gap are there stands for it;
 *  - the thread's last touches are tried as 1 to 8 interleaved walks of constant stride (to a page: rows need not be a
 *    whole number of pages), four touches each.
 * Downward streams are kept in mirrored page numbers, so that all code goes upwards.
 *
 * How much is asked ahead (readahead_plan.c) is a matter of length, the pages the reader came along, and of trust. Half
 * the length may always be asked: what that wastes is at most half of what was used. More, three times the length,
 * takes the thread's trust: an account that pays for each page asked beyond that half, gets it back with a quarter on
 * top when the reader comes, and grows by a page each 128 misses. A stream may grow while the account is not empty,
 * whatever the step costs. So good guesses are not held up, and bad ones cost a page each 128 misses in the long run,
 * by construction and not by tuning. Waste that the caller reports halves the stream's limit, use restores it.
 *
 * Runs do not cross multiples of the largest run; once a window is two such runs or more, only whole ones are asked
 * for. A stream that its thread left for many other touches loses its length: chance cannot start it again. */
#include "readahead_stream.h"

static unsigned alone(um_run_plan *plan, uint64_t page, bool write) {
  *plan = (um_run_plan){.first = page, .count = 1, .repeat = 1, .stride = 1, .write = write};
  return 1;
}

static unsigned touch(um_readahead *ra, uint32_t thread_id, uint64_t page, bool write, bool miss, um_context context,
                      um_run_plan *plan, unsigned max) {
  ra->now++;
  um_reader *t = um_reader_find(ra, thread_id);
  t->used_at = ra->now;
  if (miss)
    um_reader_earn(ra, t, 1);
  uint64_t last = 0;
  um_hint hint = um_hint_at(ra, page, &last);
  if (hint == UM_HINT_RANDOM)
    return alone(plan, page, write);
  um_stream *s = um_stream_find_expecting(ra, t, page);
  if (!s && !miss)
    s = um_stream_find_others(ra, t, page);
  if (!s) {
    t->seq++;
    s = um_stream_find_restarting(ra, t, page);
    if (!s && hint == UM_HINT_SEQUENTIAL && (s = um_stream_begin(ra, t, page, false, UM_LENGTH_HINTED))) {
      s->start = page;
      s->stop = last;
    }
    if (!s)
      s = um_stream_begin_sequential(ra, t, page, write, context);
    if (!s)
      s = um_stream_begin_strided(ra, t, page);
  }
  if (!s || s->hits < UM_PROVEN_HITS)
    t->recent[t->recents++ % UM_RECENT] = page;
  if (!s)
    return alone(plan, page, write);
  um_answer a = {.plan = plan, .max = max};
  um_reader *of = &ra->threads[s->thread];
  if (s->stride)
    um_stream_walk_on(ra, of, s, um_stream_mirror(ra, s->down, page), write, &a);
  else
    um_stream_go_on(ra, of, s, um_stream_mirror(ra, s->down, page), write, miss, &a);
  s->seq = of->seq;
  s->used_at = ra->now;
  um_stream_set_zone(ra, s);
  return a.count;
}

unsigned um_readahead_miss(um_readahead *ra, uint32_t thread_id, uint64_t page, bool write, um_context context,
                           um_run_plan *plan, unsigned max) {
  return touch(ra, thread_id, page, write, true, context, plan, max);
}

unsigned um_readahead_trigger(um_readahead *ra, uint32_t thread_id, uint64_t page, bool write, um_run_plan *plan,
                              unsigned max) {
  return touch(ra, thread_id, page, write, false, UM_CONTEXT_NONE, plan, max);
}

void um_readahead_wasted(um_readahead *ra, uint64_t page, uint64_t count) {
  for (um_reader *t = ra->threads; t < ra->threads + UM_THREADS; t++)
    for (uint32_t w = 0; w < UM_STREAM_WORDS; w++)
      for (uint64_t bits = t->streams[w]; bits; bits &= bits - 1) {
        um_stream *s = &ra->streams[w * 64 + (uint32_t)__builtin_ctzll(bits)];
        uint64_t at = um_stream_mirror(ra, s->down, s->down ? page + count - 1 : page);
        if (s->shrunk || at + count <= s->pos || at >= s->end)
          continue;
        uint64_t had = um_min(s->limit, um_max(s->granted, 1));
        s->limit = had / 2;
        s->shrunk = true;
      }
}

void um_readahead_window(um_readahead *ra, uint32_t window_pages) {
  ra->limits.window_pages = window_pages;
}

size_t um_readahead_bytes(void) {
  return sizeof(um_readahead);
}

um_readahead *um_readahead_init(void *memory, const um_readahead_limits *limits) {
  um_readahead *ra = memory;
  ra->limits = *limits;
  uint32_t run = limits->run_pages;
  ra->align_down = (uint32_t)(0 - (limits->page_count + limits->align_pages)) & (run - 1);
  ra->history_age = (uint32_t)um_max(8, um_min(limits->page_count / 32, 128));
  ra->idle_age = (uint32_t)um_max(64, um_min(limits->page_count / 16, UINT32_MAX / 16));
  ra->trust_max = UM_TRUST_PAGE * (int64_t)um_max(16, um_min(2 * (uint64_t)run, 128));
  return ra;
}
