/* readahead_write.c: readers that write. Runs of a stream that writes all it reads are mapped writable at once; where
 * protect faults come in a row, runs that grow are unprotected together. */
#include "readahead_stream.h"

/* Whether to map the run of `count` pages that was reached writable: the reader writes what it reads. Its touches say
 * so, but they are first pages of runs only; or protect faults did, but no fault tells when it stops. So now and then a
 * run is mapped protected, and a protect fault must come in it. */
bool um_stream_note_write(um_stream *s, bool write, bool moved, uint64_t count) {
  s->writes = write ? s->writes + (s->writes < UINT32_MAX) : 0;
  if (s->writer && s->by_touch && !write)
    s->writer = s->probing = false;
  if (!s->writer && s->writes >= 2u << um_min(2 * s->failed_probes, 20)) {
    s->writer = s->by_touch = true;
    s->probe_in = UM_PROBE_RUNS_FIRST;
  }
  if (!s->writer)
    return false;
  if (s->probing && moved) {
    s->writer = s->probing = false;
    s->writes = 0;
    s->failed_probes++;
  } else if (count > 1 && moved && --s->probe_in == 0) {
    s->probing = true;
    s->probe_in = UM_PROBE_RUNS;
  }
  return s->writer && !s->probing;
}

static void note_writer(um_stream *s) {
  s->by_touch = s->by_touch && s->writer;
  s->writer = true;
  s->probing = false;
  s->probe_in = UM_PROBE_RUNS;
}

um_run_plan um_readahead_protect(um_readahead *ra, uint32_t thread_id, uint64_t page) {
  ra->now++;
  um_reader *t = um_reader_find(ra, thread_id);
  t->used_at = ra->now;
  um_writer *w = t->writers;
  uint32_t direction = UM_ANY;
  for (um_writer *each = t->writers; each < t->writers + UM_WRITERS && direction == UM_ANY; each++) {
    if (each->high && each->high == page && each->direction != UM_DOWN)
      direction = UM_UP;
    else if (each->high && each->low == page + 1 && each->direction != UM_UP)
      direction = UM_DOWN;
    if (direction != UM_ANY || each->used_at < w->used_at)
      w = each;
  }
  uint64_t count = 1;
  if (direction != UM_ANY)
    count = um_min(w->count == 1 ? 2 : 4 * (uint64_t)w->count, ra->limits.protect_pages);
  um_stream *s = direction != UM_ANY && w->count > 1 ? um_stream_find_reading(ra, t, page) : NULL;
  if (s) {
    note_writer(s);
  } else if (direction == UM_ANY && (s = um_stream_find_reading(ra, t, page)) && s->writer) { /* it still writes */
    note_writer(s);
    direction = s->down ? UM_DOWN : UM_UP;
    count = ra->limits.protect_pages;
  }
  uint64_t room = direction == UM_DOWN ? page + 1 : ra->limits.page_count - page;
  count = um_min(count, room);
  uint64_t first = direction == UM_DOWN ? page + 1 - count : page;
  *w = (um_writer){
      .low = first, .high = first + count, .used_at = ra->now, .count = (uint32_t)count, .direction = direction};
  return (um_run_plan){.first = first, .count = (uint32_t)count, .repeat = 1, .stride = 1, .write = true};
}
