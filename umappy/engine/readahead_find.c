/* readahead_find.c: whose touch is it? The threads, the table of their streams, and where each stream expects its
 * reader. Zones sort out most streams by two comparisons; a random touch seldom looks further. */
#include "readahead_stream.h"

um_reader *um_reader_find(um_readahead *ra, uint32_t id) {
  um_reader *set = &ra->threads[(id * 2654435761u >> 16) % UM_THREAD_SETS * UM_THREAD_WAYS], *victim = set;
  for (um_reader *t = set; t < set + UM_THREAD_WAYS; t++) {
    if (t->id == id && t->used_at)
      return t;
    if (t->used_at < victim->used_at)
      victim = t;
  }
  *victim =
      (um_reader){.id = id, .trust = victim->used_at ? victim->trust : ra->trust_max}; /* many threads, no more waste */
  return victim;
}

void um_reader_earn(const um_readahead *ra, um_reader *t, uint64_t units) {
  t->trust += (int64_t)units;
  if (t->trust > ra->trust_max)
    t->trust = ra->trust_max;
}

static uint32_t index_of(const um_readahead *ra, const um_stream *s) {
  return (uint32_t)(s - ra->streams);
}

static void drop_stream(um_readahead *ra, um_stream *s) {
  ra->threads[s->thread].streams[index_of(ra, s) / 64] &= ~(1ull << index_of(ra, s) % 64);
  s->used_at = 0;
}

static bool owned(const um_readahead *ra, const um_stream *s) {
  return s->used_at && ra->threads[s->thread].streams[index_of(ra, s) / 64] >> index_of(ra, s) % 64 & 1;
}

/* A stream not proven gives way to any new one, a proven one only to a strong one. */
um_stream *um_stream_take(um_readahead *ra, um_reader *t, bool strong) {
  um_stream *victim = NULL;
  for (uint32_t i = 0; i < UM_STREAMS; i++) {
    um_stream *s = &ra->streams[i];
    if (!owned(ra, s)) {
      victim = s;
      break;
    }
    bool proven = s->hits >= UM_PROVEN_HITS, victim_proven = victim && victim->hits >= UM_PROVEN_HITS;
    if (proven && !strong)
      continue;
    if (!victim || (victim_proven && !proven) || (victim_proven == proven && s->used_at < victim->used_at))
      victim = s;
  }
  if (!victim)
    return NULL;
  if (owned(ra, victim))
    drop_stream(ra, victim);
  uint32_t i = index_of(ra, victim);
  *victim = (um_stream){.limit = UINT64_MAX, .stop = UINT64_MAX, .used_at = ra->now};
  victim->thread = (uint32_t)(t - ra->threads);
  victim->seq = t->seq;
  t->streams[i / 64] |= 1ull << i % 64;
  return victim;
}

/* What its thread touched elsewhere since makes a stream shorter, and in the end unproven. */
static void age_stream(const um_readahead *ra, const um_reader *t, um_stream *s) {
  uint32_t halvings = (t->seq - s->seq) / ra->idle_age;
  if (!halvings)
    return;
  s->length = halvings < 64 ? s->length >> halvings : 0;
  s->granted = halvings < 64 ? s->granted >> halvings : 0;
  if (halvings >= 8)
    s->hits = 0;
}

void um_stream_set_zone(um_readahead *ra, const um_stream *s) {
  uint64_t high = s->stride ? s->pos + (UM_STOPS_ACCEPTED + 1) * s->stride
                            : s->end + um_max(s->gap, um_min(s->length / 8, ra->limits.run_pages)) + 1;
  uint64_t last = ra->limits.page_count - 1;
  high = um_min(high, last);
  uint32_t i = index_of(ra, s);
  ra->zone_low[i] = s->down ? last - high : s->pos;
  ra->zone_high[i] = s->down ? last - s->pos : high;
}

/* The end of the run that holds `page`, which was asked for. */
uint64_t um_stream_run_end(const um_readahead *ra, const um_stream *s, uint64_t page) {
  uint64_t end = um_min(um_stream_boundary(ra, s, page), s->end);
  for (uint32_t i = 0; i < UM_CUTS; i++)
    if (s->cuts[i] > page && s->cuts[i] < end)
      end = s->cuts[i];
  return end;
}

static bool expects(const um_readahead *ra, um_stream *s, uint64_t page) {
  if (s->stride)
    return page == s->pos || um_stream_find_stop(s, page);
  if (page == s->pos || page - s->end <= s->gap || (s->doubted && page - s->doubted <= s->gap))
    return true;
  uint64_t start = s->pos;
  for (int i = 0; i < UM_RUNS_ACCEPTED && start < s->end; i++) {
    uint64_t end = um_stream_run_end(ra, s, start), part = ra->limits.part_pages;
    if (part > s->gap + 1 && page >= start + part && page < end && (page - start) % part <= s->gap)
      return true;
    start = end;
    if (page - start <= s->gap)
      return true;
  }
  s->doubted = page + 1;
  return false;
}

um_stream *um_stream_find_expecting(um_readahead *ra, const um_reader *t, uint64_t page) {
  for (uint32_t w = 0; w < UM_STREAM_WORDS; w++)
    for (uint64_t bits = t->streams[w]; bits; bits &= bits - 1) {
      uint32_t i = w * 64 + (uint32_t)__builtin_ctzll(bits);
      if (page < ra->zone_low[i] || page > ra->zone_high[i])
        continue;
      um_stream *s = &ra->streams[i];
      if (s->hits < UM_PROVEN_HITS && t->seq - s->seq > ra->history_age) {
        drop_stream(ra, s);
      } else if (expects(ra, s, um_stream_mirror(ra, s->down, page))) {
        age_stream(ra, t, s);
        return s;
      }
    }
  return NULL;
}

/* A thread may go on with what another one's stream asked for: pools hand out pieces of one sequence. */
um_stream *um_stream_find_others(um_readahead *ra, const um_reader *t, uint64_t page) {
  for (um_reader *other = ra->threads; other < ra->threads + UM_THREADS; other++) {
    um_stream *s = other != t && other->used_at ? um_stream_find_expecting(ra, other, page) : NULL;
    if (s && s->hits >= UM_PROVEN_HITS)
      return s;
  }
  return NULL;
}

/* A proven reader is back where it began: it keeps its window, on trust. */
um_stream *um_stream_find_restarting(um_readahead *ra, const um_reader *t, uint64_t page) {
  for (uint32_t w = 0; w < UM_STREAM_WORDS; w++)
    for (uint64_t bits = t->streams[w]; bits; bits &= bits - 1) {
      um_stream *s = &ra->streams[w * 64 + (uint32_t)__builtin_ctzll(bits)];
      uint64_t at = um_stream_mirror(ra, s->down, page);
      if (s->hits < UM_PROVEN_HITS || (s->stride ? at + 1 < s->start || at > s->start + 1 : at != s->start))
        continue;
      age_stream(ra, t, s);
      s->boost = um_max(s->length, s->granted);
      s->pos = s->anchor = s->start = s->end = at;
      s->length = s->granted = s->bet = s->index = s->asked = s->doubted = 0;
      memset(s->cuts, 0, sizeof s->cuts);
      return s;
    }
  return NULL;
}

/* The stream of this thread in whose current run the page lies. */
um_stream *um_stream_find_reading(um_readahead *ra, const um_reader *t, uint64_t page) {
  for (uint32_t w = 0; w < UM_STREAM_WORDS; w++)
    for (uint64_t bits = t->streams[w]; bits; bits &= bits - 1) {
      um_stream *s = &ra->streams[w * 64 + (uint32_t)__builtin_ctzll(bits)];
      uint64_t at = um_stream_mirror(ra, s->down, page);
      if (!s->stride && at >= s->pos && at < s->end && at < um_stream_run_end(ra, s, s->pos))
        return s;
    }
  return NULL;
}
