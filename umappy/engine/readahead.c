/* readahead.c: the stream detector.
 *
 * A touch (miss or trigger) first looks for a stream of its thread that expects this very page: the start of the next
 * run, the end of all that was asked, a strided reader's next stops. A touch elsewhere in what a stream asked for, or
 * shortly beyond it, is not believed until the page after it is touched too: chance hits would drive a stream on
 * that nobody reads. Next, proven streams that began at this page: a loop. Everything else is new:
 *  - the history, a hash table of single touches by thread and page, finds a neighbour touched not long ago, and with
 *    it how many pages were touched in a row, up or down;
 *  - the thread's last touches are tried as 1 to 8 interleaved walks of constant stride (to a page: rows need not be
 *    a whole number of pages), four touches each.
 * Downward streams are kept in mirrored page numbers, so that all code below goes upwards.
 *
 * How much is asked ahead is a matter of length (pages the reader came along) and of trust. Half the length may
 * always be asked, so what is wasted is never more than half of what was read. More, three times the length, takes
 * the thread's trust: an account that pays for each page asked beyond that half, gets it back with a quarter on top
 * when the reader comes, and grows by a page each 128 misses. A stream is let grow while the account is not empty,
 * whatever the step costs; so good guesses are never held up, and bad ones cost at most a page each 128 misses in the
 * long run, by construction and not by tuning. Waste that the caller reports halves the stream's limit, use restores
 * it.
 *
 * Runs do not cross multiples of the largest run; once a window is two such runs or more, only whole ones are asked.
 * A stream that its thread left for many other touches loses its length: it can be started by chance no more. */
#include "readahead.h"

#include <stdlib.h>
#include <string.h>

#define STREAMS 128u
#define STREAM_WORDS (STREAMS / 64)
#define THREAD_SETS 8u
#define THREAD_WAYS 4u
#define THREADS (THREAD_SETS * THREAD_WAYS)
#define HISTORY_BITS 8
#define HISTORY (1u << HISTORY_BITS)
#define RECENT 32u /* touches a thread; a walk of LANES_MAX lanes needs three a lane */
#define LANES_MAX 8u
#define WRITERS 8u
#define HINTS 16u
#define CUTS 4u
#define STOPS_MAX 64u    /* stops of a strided reader in flight: the depth at which devices are fast */
#define STOPS_ACCEPTED 4 /* stops that may be missing in a row because their pages were there already, */
#define RUNS_ACCEPTED 4  /* and runs */
#define TRUST_PAGE 128   /* one page, in units of thread.trust */
#define TRUST_LENGTH 64u /* pages in a row from which length earns trust */
#define PROVEN_HITS 2u
#define PROBE_RUNS 16u /* of a stream that writes, one of so many is mapped protected */
#define PROBE_RUNS_FIRST 3u
#define LENGTH_HINTED (1u << 20)

enum { ANY, UP, DOWN };

typedef struct stream {
  uint64_t start;         /* where it began; this and all pages here mirrored if `down` */
  uint64_t pos;           /* the page last touched in order */
  uint64_t end;           /* sequential: [pos, end) was asked for; strided: the end of the last run asked for */
  uint64_t length;        /* pages, or stops, that the reader has come along */
  uint64_t boost;         /* the length of the pass before, or of the stream whose pages it reads again */
  uint64_t granted;       /* what it may ask, as long as its reader keeps coming */
  uint64_t bet;           /* pages asked for that trust has paid for */
  uint64_t limit;         /* of pages asked; waste lowers it */
  uint64_t doubted;       /* the page after one touched in or near its pages, but not where expected; 0: none */
  uint64_t stop;          /* nothing is asked from this page on: the end of a hinted range; UINT64_MAX: none */
  uint64_t cuts[CUTS];    /* ends of runs that are not at multiples of run_pages */
  uint64_t stride;        /* of the last two stops; 0: sequential */
  uint64_t gap;           /* sequential: pages the reader may skip at the end of what was asked */
  uint64_t anchor, index; /* strided: a stop, and the last touched one counted from there */
  double low, high;       /* strided: bounds of the true stride, from all stops since the anchor */
  uint64_t asked;         /* strided: stops asked for after pos */
  uint64_t used_at;       /* ra->now of the last touch */
  uint32_t seq;           /* its thread's at the last touch */
  uint32_t thread;        /* index */
  uint32_t hits;          /* touches where expected, saturating */
  uint32_t cut;           /* the next cut to overwrite */
  uint32_t writes;        /* touches in a row that were writes, saturating */
  uint32_t probe_in;      /* writer: runs until one is mapped protected, to see whether it still writes */
  uint32_t failed_probes; /* each makes it harder to be taken for a writer by touches again */
  uint64_t same;          /* strided: strides in a row that were the same */
  uint64_t patience;      /* strided: how many of those make it exact again */
  bool exact;             /* strided: no stride differs, stops are single pages */
  bool down;              /* mirrored */
  bool shrunk;            /* since the last touch in order */
  bool writer;            /* it writes all it reads */
  bool by_touch;          /* its touches said so; protect faults otherwise */
  bool probing;           /* the run being read was mapped protected, and no protect fault came yet */
} stream;

typedef struct writer {
  uint64_t low, high; /* pages unprotected for it, [low, high); high 0: none */
  uint64_t used_at;   /* ra->now */
  uint32_t count;     /* of the last run */
  uint32_t direction; /* ANY: one page so far */
} writer;

typedef struct thread {
  uint64_t used_at;               /* ra->now; 0: free */
  uint64_t streams[STREAM_WORDS]; /* bits: its streams */
  int64_t trust;                  /* in 1/TRUST_PAGE pages */
  uint32_t id;
  uint32_t seq;            /* touches that no stream expected */
  uint64_t recent[RECENT]; /* the last of those, at seq % RECENT */
  uint32_t recents;        /* ever put there */
  writer writers[WRITERS];
} thread;

typedef struct touched {
  uint64_t page;
  uint64_t length; /* pages touched in a row, up to and with this one; 0: free */
  uint32_t thread_id;
  uint32_t seq; /* the thread's */
  uint32_t direction;
  bool write;
} touched;

typedef struct range {
  uint64_t first, last;
  um_hint hint;
} range;

struct um_readahead {
  uint64_t zone_low[STREAMS]; /* pages, not mirrored, outside of which a stream expects nothing */
  uint64_t zone_high[STREAMS];
  stream streams[STREAMS];
  thread threads[THREADS];
  touched history[HISTORY];
  range hints[HINTS]; /* disjoint; oldest first */
  uint32_t hint_count;
  um_readahead_limits limits;
  uint32_t align_down;  /* align_pages for mirrored pages */
  uint32_t history_age; /* touches of a thread after which a neighbour is chance */
  uint32_t idle_age;    /* touches of a thread after which a stream it left loses half its length */
  int64_t trust_max;    /* what a thread begins with, too */
  uint64_t now;         /* touches */
};

typedef struct answer {
  um_run_plan *plan;
  unsigned count, max;
} answer;

static uint64_t least(uint64_t a, uint64_t b) {
  return a < b ? a : b;
}

static uint64_t most(uint64_t a, uint64_t b) {
  return a > b ? a : b;
}

static uint64_t mirror(const um_readahead *ra, bool down, uint64_t page) {
  return down ? ra->limits.page_count - 1 - page : page;
}

static uint64_t next_boundary(const um_readahead *ra, const stream *s, uint64_t page) {
  uint32_t run = ra->limits.run_pages;
  return page + run - ((page + (s->down ? ra->align_down : ra->limits.align_pages)) & (run - 1));
}

/* Runs of a stream, in its own page numbers. False: no room. */
static bool add_runs(const um_readahead *ra, const stream *s, answer *a, uint64_t first, uint64_t count,
                     uint64_t stride, uint64_t repeat, bool write) {
  if (a->count == a->max)
    return false;
  a->plan[a->count++] = (um_run_plan){
      .first = s->down ? ra->limits.page_count - first - count : first,
      .count = (uint32_t)count,
      .repeat = (uint32_t)repeat,
      .stride = s->down ? -(int64_t)stride : (int64_t)stride,
      .write = write,
  };
  return true;
}

static unsigned alone(um_run_plan *plan, uint64_t page, bool write) {
  *plan = (um_run_plan){.first = page, .count = 1, .repeat = 1, .stride = 1, .write = write};
  return 1;
}

/* ---- hints */

static um_hint hint_at(const um_readahead *ra, uint64_t page, uint64_t *last) {
  for (uint32_t i = 0; i < ra->hint_count; i++)
    if (page >= ra->hints[i].first && page < ra->hints[i].last) {
      *last = ra->hints[i].last;
      return ra->hints[i].hint;
    }
  return UM_HINT_NORMAL;
}

/* The first page of [page, end), a stream's numbers, into which nobody may read ahead; or end. */
static uint64_t allowed_end(const um_readahead *ra, const stream *s, uint64_t page, uint64_t end) {
  end = least(end, s->stop);
  for (uint32_t i = 0; i < ra->hint_count; i++) {
    const range *h = &ra->hints[i];
    if (h->hint != UM_HINT_RANDOM)
      continue;
    uint64_t low = s->down ? mirror(ra, true, h->last - 1) : h->first;
    uint64_t high = s->down ? mirror(ra, true, h->first) + 1 : h->last;
    if (low < end && high > page)
      end = most(low, page);
  }
  return end;
}

/* ---- threads */

static thread *find_thread(um_readahead *ra, uint32_t id) {
  thread *set = &ra->threads[(id * 2654435761u >> 16) % THREAD_SETS * THREAD_WAYS], *victim = set;
  for (thread *t = set; t < set + THREAD_WAYS; t++) {
    if (t->id == id && t->used_at)
      return t;
    if (t->used_at < victim->used_at)
      victim = t;
  }
  *victim =
      (thread){.id = id, .trust = victim->used_at ? victim->trust : ra->trust_max}; /* many threads, no more waste */
  return victim;
}

static void earn(const um_readahead *ra, thread *t, uint64_t units) {
  t->trust += (int64_t)units;
  if (t->trust > ra->trust_max)
    t->trust = ra->trust_max;
}

/* ---- the stream table */

static uint32_t index_of(const um_readahead *ra, const stream *s) {
  return (uint32_t)(s - ra->streams);
}

static void drop_stream(um_readahead *ra, stream *s) {
  ra->threads[s->thread].streams[index_of(ra, s) / 64] &= ~(1ull << index_of(ra, s) % 64);
  s->used_at = 0;
}

static bool owned(const um_readahead *ra, const stream *s) {
  return s->used_at && ra->threads[s->thread].streams[index_of(ra, s) / 64] >> index_of(ra, s) % 64 & 1;
}

/* A stream not proven gives way to any new one, a proven one only to a strong one. */
static stream *take_stream(um_readahead *ra, thread *t, bool strong) {
  stream *victim = NULL;
  for (uint32_t i = 0; i < STREAMS; i++) {
    stream *s = &ra->streams[i];
    if (!owned(ra, s)) {
      victim = s;
      break;
    }
    bool proven = s->hits >= PROVEN_HITS, victim_proven = victim && victim->hits >= PROVEN_HITS;
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
  *victim = (stream){.limit = UINT64_MAX, .stop = UINT64_MAX, .used_at = ra->now};
  victim->thread = (uint32_t)(t - ra->threads);
  victim->seq = t->seq;
  t->streams[i / 64] |= 1ull << i % 64;
  return victim;
}

/* What its thread touched elsewhere since makes a stream shorter, and in the end unproven. */
static void age_stream(const um_readahead *ra, const thread *t, stream *s) {
  uint32_t halvings = (t->seq - s->seq) / ra->idle_age;
  if (!halvings)
    return;
  s->length = halvings < 64 ? s->length >> halvings : 0;
  s->granted = halvings < 64 ? s->granted >> halvings : 0;
  if (halvings >= 8)
    s->hits = 0;
}

static void set_zone(um_readahead *ra, const stream *s) {
  uint64_t high = s->stride ? s->pos + (STOPS_ACCEPTED + 1) * s->stride
                            : s->end + most(s->gap, least(s->length / 8, ra->limits.run_pages)) + 1;
  uint64_t last = ra->limits.page_count - 1;
  high = least(high, last);
  uint32_t i = index_of(ra, s);
  ra->zone_low[i] = s->down ? last - high : s->pos;
  ra->zone_high[i] = s->down ? last - s->pos : high;
}

/* ---- where a stream expects its reader */

/* The end of the run that holds `page`, which was asked for. */
static uint64_t run_end(const um_readahead *ra, const stream *s, uint64_t page) {
  uint64_t end = least(next_boundary(ra, s, page), s->end);
  for (uint32_t i = 0; i < CUTS; i++)
    if (s->cuts[i] > page && s->cuts[i] < end)
      end = s->cuts[i];
  return end;
}

static void note_cut(const um_readahead *ra, stream *s, uint64_t end) {
  if (next_boundary(ra, s, end - 1) != end)
    s->cuts[s->cut++ % CUTS] = end;
}

static double mean_stride(const stream *s) {
  return (s->low + s->high) / 2;
}

/* The page of the nth stop after pos; where strides differ, it or the page after it. */
static uint64_t nth_stop(const stream *s, uint64_t n) {
  if (s->exact)
    return s->pos + n * s->stride;
  return s->anchor + (uint64_t)((double)(s->index + n) * mean_stride(s));
}

static uint32_t stop_width(const stream *s) {
  return s->exact ? 1 : 2;
}

/* Which stop after pos the page is; 0: none. */
static uint64_t find_stop(const stream *s, uint64_t page) {
  for (uint64_t n = 1; n <= STOPS_ACCEPTED; n++) {
    uint64_t stop = nth_stop(s, n);
    if (page + 1 >= stop && page <= stop + stop_width(s))
      return n;
  }
  return 0;
}

static bool expects(const um_readahead *ra, stream *s, uint64_t page) {
  if (s->stride)
    return page == s->pos || find_stop(s, page);
  if (page == s->pos || page - s->end <= s->gap || (s->doubted && page - s->doubted <= s->gap))
    return true;
  uint64_t start = s->pos;
  for (int i = 0; i < RUNS_ACCEPTED && start < s->end; i++) {
    start = run_end(ra, s, start);
    if (page - start <= s->gap)
      return true;
  }
  s->doubted = page + 1;
  return false;
}

static stream *find_expecting(um_readahead *ra, const thread *t, uint64_t page) {
  for (uint32_t w = 0; w < STREAM_WORDS; w++)
    for (uint64_t bits = t->streams[w]; bits; bits &= bits - 1) {
      uint32_t i = w * 64 + (uint32_t)__builtin_ctzll(bits);
      if (page < ra->zone_low[i] || page > ra->zone_high[i])
        continue;
      stream *s = &ra->streams[i];
      age_stream(ra, t, s);
      if (s->hits < PROVEN_HITS && t->seq - s->seq > ra->history_age)
        drop_stream(ra, s);
      else if (expects(ra, s, mirror(ra, s->down, page)))
        return s;
    }
  return NULL;
}

/* A thread may go on with what another one's stream asked for: pools hand out pieces of one sequence. */
static stream *find_expecting_of_others(um_readahead *ra, const thread *t, uint64_t page) {
  for (thread *other = ra->threads; other < ra->threads + THREADS; other++) {
    stream *s = other != t && other->used_at ? find_expecting(ra, other, page) : NULL;
    if (s && s->hits >= PROVEN_HITS)
      return s;
  }
  return NULL;
}

/* A proven reader is back where it began: it keeps its window, on trust. */
static stream *find_restarting(um_readahead *ra, const thread *t, uint64_t page) {
  for (uint32_t w = 0; w < STREAM_WORDS; w++)
    for (uint64_t bits = t->streams[w]; bits; bits &= bits - 1) {
      stream *s = &ra->streams[w * 64 + (uint32_t)__builtin_ctzll(bits)];
      uint64_t at = mirror(ra, s->down, page);
      if (s->hits < PROVEN_HITS || (s->stride ? at + 1 < s->start || at > s->start + 1 : at != s->start))
        continue;
      age_stream(ra, t, s);
      s->boost = most(s->length, s->granted);
      s->pos = s->anchor = s->start = s->end = at;
      s->length = s->granted = s->bet = s->index = s->asked = s->doubted = 0;
      memset(s->cuts, 0, sizeof s->cuts);
      return s;
    }
  return NULL;
}

/* ---- new streams */

static stream *begin_stream(um_readahead *ra, thread *t, uint64_t page, bool down, uint64_t length) {
  stream *s = take_stream(ra, t, length >= 3);
  if (!s)
    return NULL;
  s->down = down;
  s->pos = s->end = mirror(ra, down, page);
  s->start = s->pos - least(length, s->pos);
  s->length = length;
  return s;
}

/* Who reads again what a proven stream of its thread has read before may expect its window. */
static void inherit(const um_readahead *ra, const thread *t, stream *s) {
  for (uint32_t w = 0; w < STREAM_WORDS; w++)
    for (uint64_t bits = t->streams[w]; bits; bits &= bits - 1) {
      const stream *old = &ra->streams[w * 64 + (uint32_t)__builtin_ctzll(bits)];
      if (old != s && old->hits >= PROVEN_HITS && old->down == s->down && !old->stride && s->pos >= old->start &&
          s->pos <= old->end)
        s->boost = most(s->boost, old->length);
    }
}

static bool may_ask(const thread *t, uint64_t length) {
  return t->trust > 0 || length >= 2;
}

static touched *history_slot(um_readahead *ra, uint32_t thread_id, uint64_t page) {
  uint64_t key = (page ^ (uint64_t)thread_id << 40) * 0x9e3779b97f4a7c15ull;
  return &ra->history[key >> (64 - HISTORY_BITS)];
}

static const touched *find_touched(um_readahead *ra, const thread *t, uint64_t page, uint32_t direction) {
  const touched *h = history_slot(ra, t->id, page);
  bool found = h->length && h->page == page && h->thread_id == t->id && t->seq - h->seq <= ra->history_age &&
               (h->direction == ANY || h->direction == direction);
  return found ? h : NULL;
}

/* Touches in a row: a stream, or, with too little evidence, a longer entry of the history. */
static stream *begin_sequential(um_readahead *ra, thread *t, uint64_t page, bool write) {
  const touched *below = find_touched(ra, t, page - 1, UP), *above = find_touched(ra, t, page + 1, DOWN);
  bool down = above && (!below || above->length > below->length);
  const touched *before = down ? above : below;
  uint64_t length = before ? before->length : 0;
  bool wrote = before && before->write;
  if (!before && page == 0 && t->seq == 1)
    length = 1; /* the first page, first of all: most likely the beginning of more */
  stream *s = length && may_ask(t, length) ? begin_stream(ra, t, page, down, length) : NULL;
  if (s) {
    if (before)
      inherit(ra, t, s);
    s->writes = wrote;
    return s;
  }
  *history_slot(ra, t->id, page) = (touched){
      .page = page,
      .length = length + 1,
      .thread_id = t->id,
      .seq = t->seq,
      .direction = !before ? ANY
                   : down  ? DOWN
                           : UP,
      .write = write,
  };
  return NULL;
}

static uint64_t distance(int64_t a, int64_t b) {
  return a > b ? (uint64_t)a - (uint64_t)b : (uint64_t)b - (uint64_t)a;
}

static stream *begin_walk(um_readahead *ra, thread *t, uint64_t page, int64_t stride, int64_t span, bool exact) {
  bool down = stride < 0;
  uint64_t pages = (uint64_t)llabs(stride), length = (uint64_t)llabs(span);
  bool whole = pages <= ra->limits.gap_pages || (!exact && length < 9);
  stream *s = may_ask(t, 3) ? begin_stream(ra, t, page, down, whole ? length : 3) : NULL;
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
static stream *begin_strided(um_readahead *ra, thread *t, uint64_t page) {
  int64_t jitter_stride = 0, jitter_span = 0;
  uint32_t lanes_max = (uint32_t)least(LANES_MAX, t->recents / 3);
  for (uint32_t lanes = 1; lanes <= lanes_max; lanes++) {
    uint64_t one = t->recent[(t->recents - lanes) % RECENT], two = t->recent[(t->recents - 2 * lanes) % RECENT];
    int64_t last = (int64_t)(page - one), middle = (int64_t)(one - two);
    if (distance(last, middle) > 1)
      continue;
    int64_t first = (int64_t)(two - t->recent[(t->recents - 3 * lanes) % RECENT]), span = first + middle + last;
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

/* ---- going on */

static uint64_t allowance(const stream *s, const thread *t) {
  uint64_t pages = most(s->length / 2, s->granted);
  if (t->trust > 0)
    pages = most(pages, most(3 * s->length, s->boost));
  return least(pages, s->limit);
}

static void come_along(const um_readahead *ra, thread *t, stream *s, uint64_t pages) {
  if (!pages)
    return;
  s->length += pages;
  s->hits += s->hits < PROVEN_HITS;
  s->shrunk = false;
  s->doubted = 0;
  s->limit = s->limit > UINT64_MAX / 2 ? UINT64_MAX : s->limit + (pages + 3) / 4;
  uint64_t won = least(pages, s->bet);
  s->bet -= won;
  earn(ra, t, won * TRUST_PAGE * 5 / 4 + (s->length >= TRUST_LENGTH ? pages * TRUST_PAGE / 8 : 0));
}

/* `ahead`: pages asked for and not yet come to. */
static void pay(thread *t, stream *s, uint64_t ahead) {
  uint64_t beyond = ahead > s->length / 2 ? ahead - s->length / 2 : 0;
  if (beyond > s->bet) {
    t->trust -= (int64_t)(beyond - s->bet) * TRUST_PAGE;
    s->bet = beyond;
  }
}

/* Whether to map the run of `count` pages that was reached writable: the reader writes what it reads. Its touches say
 * so, but they are first pages of runs only; or protect faults did, but no fault tells when it stops. So now and then a
 * run is mapped protected, and a protect fault must come in it. */
static bool note_write(stream *s, bool write, bool moved, uint64_t count) {
  s->writes = write ? s->writes + (s->writes < UINT32_MAX) : 0;
  if (s->writer && s->by_touch && !write)
    s->writer = s->probing = false;
  if (!s->writer && s->writes >= 2u << least(2 * s->failed_probes, 20)) {
    s->writer = s->by_touch = true;
    s->probe_in = PROBE_RUNS_FIRST;
  }
  if (!s->writer)
    return false;
  if (s->probing && moved) {
    s->writer = s->probing = false;
    s->writes = 0;
    s->failed_probes++;
  } else if (count > 1 && moved && --s->probe_in == 0) {
    s->probing = true;
    s->probe_in = PROBE_RUNS;
  }
  return s->writer && !s->probing;
}

static void note_writer(stream *s) {
  s->by_touch = s->by_touch && s->writer;
  s->writer = true;
  s->probing = false;
  s->probe_in = PROBE_RUNS;
}

/* Asks for [s->end, target) in runs, or as much of it as makes good ones. */
static void ask_ahead(const um_readahead *ra, stream *s, answer *a, uint64_t target, uint64_t allowed, bool write) {
  uint64_t run = ra->limits.run_pages, from = s->end;
  uint64_t last = allowed_end(ra, s, from, least(target, ra->limits.page_count));
  bool closed = last < target; /* nothing can be asked beyond */
  bool whole_only = allowed + 1 >= 2 * run && !closed;
  if (last <= from || (!whole_only && !closed && last - from < most(1, allowed / 4)))
    return;
  uint64_t boundary = next_boundary(ra, s, from);
  if (boundary - from < run && boundary <= last) {
    if (!add_runs(ra, s, a, from, boundary - from, boundary - from, 1, write))
      return;
    s->end = from = boundary;
  }
  if (last - from >= run && boundary <= last) {
    uint64_t runs = (last - from) / run;
    if (!add_runs(ra, s, a, from, run, run, runs, write))
      return;
    s->end = from += runs * run;
  }
  if (last > from && !whole_only && add_runs(ra, s, a, from, last - from, last - from, 1, write)) {
    s->end = last;
    note_cut(ra, s, s->end);
  }
}

static void go_on(um_readahead *ra, thread *t, stream *s, uint64_t page, bool write, bool miss, answer *a) {
  uint64_t run = ra->limits.run_pages, window = ra->limits.window_pages;
  uint64_t passed = page - s->pos;
  come_along(ra, t, s, passed);
  s->pos = page;
  s->end = most(s->end, page);
  if (page >= s->stop)
    s->stop = UINT64_MAX;
  uint64_t allowed = least(allowance(s, t), window ? window - 1 : 0);
  uint64_t end;
  if (page < s->end) {
    end = run_end(ra, s, page);
    if (miss && end > page + most(window, 1)) { /* asked for when the window was larger, and never read */
      end = page + most(window, 1);
      note_cut(ra, s, end);
    }
  } else {
    uint64_t count = allowed + 1 >= 2 * run ? run : allowed + 1 < 8 ? allowed + 1 : (allowed + 1) / 2;
    end = allowed_end(ra, s, page + 1, least(page + count, ra->limits.page_count));
    s->end = end = least(end, next_boundary(ra, s, page));
    note_cut(ra, s, end);
  }
  bool writes = note_write(s, write, passed > 0, end - page);
  add_runs(ra, s, a, page, end - page, end - page, 1, writes || (write && end - page == 1));
  if (window)
    ask_ahead(ra, s, a, page + 1 + allowed, allowed, s->writer);
  s->granted = allowed;
  pay(t, s, s->end - page - 1);
}

static void ask_stops(const um_readahead *ra, stream *s, answer *a, uint64_t allowed, bool write) {
  uint32_t width = stop_width(s);
  if (allowed <= s->asked || allowed - s->asked < most(1, allowed / 4))
    return;
  if (s->exact) {
    uint64_t first = nth_stop(s, s->asked + 1), runs = 0, stop = first;
    while (s->asked + runs < allowed && stop < ra->limits.page_count && allowed_end(ra, s, stop, stop + 1) > stop) {
      runs++;
      stop += s->stride;
    }
    if (runs && add_runs(ra, s, a, first, 1, s->stride, runs, write)) {
      s->asked += runs;
      s->end = first + (runs - 1) * s->stride + 1;
    }
    return;
  }
  for (; s->asked < allowed; s->asked++) {
    uint64_t stop = nth_stop(s, s->asked + 1), first = most(stop, s->end);
    uint64_t end = allowed_end(ra, s, first, least(stop + width, ra->limits.page_count));
    if (end <= first)
      return;
    uint64_t count = next_boundary(ra, s, first) < end ? 1 : end - first;
    if (!add_runs(ra, s, a, first, count, count, (end - first) / count, write))
      return;
    s->end = end;
  }
}

static void walk_on(um_readahead *ra, thread *t, stream *s, uint64_t page, bool write, answer *a) {
  uint64_t stops = page == s->pos ? 0 : find_stop(s, page);
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
    double moved = (double)(page - s->anchor), mean = mean_stride(s);
    s->low = (moved - 1) / (double)s->index > s->low ? (moved - 1) / (double)s->index : s->low;
    s->high = (moved + 1) / (double)s->index < s->high ? (moved + 1) / (double)s->index : s->high;
    if (s->low >= s->high) { /* not one stride: begin again with about this one */
      s->anchor = page;
      s->index = 0;
      s->low = mean - 0.5;
      s->high = mean + 0.5;
    }
    s->pos = page;
    s->asked -= least(s->asked, stops);
    come_along(ra, t, s, stops);
  }
  s->end = most(s->end, page + 1);
  bool writes = note_write(s, write, stops > 0, 1);
  uint32_t width = stop_width(s);
  uint64_t window = ra->limits.window_pages;
  uint64_t allowed = least(allowance(s, t), least(STOPS_MAX, window ? (window - 1) / width : 0));
  add_runs(ra, s, a, page, 1, 1, 1, writes || write);
  ask_stops(ra, s, a, allowed, writes);
  s->granted = allowed;
  pay(t, s, s->asked * width);
}

/* ---- the face */

static unsigned touch(um_readahead *ra, uint32_t thread_id, uint64_t page, bool write, bool miss, um_run_plan *plan,
                      unsigned max) {
  ra->now++;
  thread *t = find_thread(ra, thread_id);
  t->used_at = ra->now;
  if (miss)
    earn(ra, t, 1);
  uint64_t last = 0;
  um_hint hint = hint_at(ra, page, &last);
  if (hint == UM_HINT_RANDOM)
    return alone(plan, page, write);
  stream *s = find_expecting(ra, t, page);
  if (!s && !miss)
    s = find_expecting_of_others(ra, t, page);
  if (!s) {
    t->seq++;
    s = find_restarting(ra, t, page);
    if (!s && hint == UM_HINT_SEQUENTIAL && (s = begin_stream(ra, t, page, false, LENGTH_HINTED))) {
      s->start = page;
      s->stop = last;
    }
    if (!s)
      s = begin_sequential(ra, t, page, write);
    if (!s)
      s = begin_strided(ra, t, page);
  }
  if (!s || s->hits < PROVEN_HITS)
    t->recent[t->recents++ % RECENT] = page;
  if (!s)
    return alone(plan, page, write);
  answer a = {.plan = plan, .max = max};
  thread *of = &ra->threads[s->thread];
  if (s->stride)
    walk_on(ra, of, s, mirror(ra, s->down, page), write, &a);
  else
    go_on(ra, of, s, mirror(ra, s->down, page), write, miss, &a);
  s->seq = of->seq;
  s->used_at = ra->now;
  set_zone(ra, s);
  return a.count;
}

unsigned um_readahead_miss(um_readahead *ra, uint32_t thread_id, uint64_t page, bool write, um_run_plan *plan,
                           unsigned max) {
  return touch(ra, thread_id, page, write, true, plan, max);
}

unsigned um_readahead_trigger(um_readahead *ra, uint32_t thread_id, uint64_t page, bool write, um_run_plan *plan,
                              unsigned max) {
  return touch(ra, thread_id, page, write, false, plan, max);
}

/* The stream of this thread in whose current run the page lies. */
static stream *find_reading(um_readahead *ra, const thread *t, uint64_t page) {
  for (uint32_t w = 0; w < STREAM_WORDS; w++)
    for (uint64_t bits = t->streams[w]; bits; bits &= bits - 1) {
      stream *s = &ra->streams[w * 64 + (uint32_t)__builtin_ctzll(bits)];
      uint64_t at = mirror(ra, s->down, page);
      if (!s->stride && at >= s->pos && at < s->end && at < run_end(ra, s, s->pos))
        return s;
    }
  return NULL;
}

um_run_plan um_readahead_protect(um_readahead *ra, uint32_t thread_id, uint64_t page) {
  ra->now++;
  thread *t = find_thread(ra, thread_id);
  t->used_at = ra->now;
  writer *w = t->writers;
  uint32_t direction = ANY;
  for (writer *each = t->writers; each < t->writers + WRITERS && direction == ANY; each++) {
    if (each->high && each->high == page && each->direction != DOWN)
      direction = UP;
    else if (each->high && each->low == page + 1 && each->direction != UP)
      direction = DOWN;
    if (direction != ANY || each->used_at < w->used_at)
      w = each;
  }
  uint64_t count = 1;
  if (direction != ANY)
    count = least(w->count == 1 ? 2 : 4 * (uint64_t)w->count, ra->limits.protect_pages);
  stream *s = direction != ANY && w->count > 1 ? find_reading(ra, t, page) : NULL;
  if (s) {
    note_writer(s);
  } else if (direction == ANY && (s = find_reading(ra, t, page)) && s->writer) { /* it still writes */
    note_writer(s);
    direction = s->down ? DOWN : UP;
    count = ra->limits.protect_pages;
  }
  uint64_t room = direction == DOWN ? page + 1 : ra->limits.page_count - page;
  count = least(count, room);
  uint64_t first = direction == DOWN ? page + 1 - count : page;
  *w = (writer){
      .low = first, .high = first + count, .used_at = ra->now, .count = (uint32_t)count, .direction = direction};
  return (um_run_plan){.first = first, .count = (uint32_t)count, .repeat = 1, .stride = 1, .write = true};
}

void um_readahead_wasted(um_readahead *ra, uint64_t page, uint64_t count) {
  for (thread *t = ra->threads; t < ra->threads + THREADS; t++)
    for (uint32_t w = 0; w < STREAM_WORDS; w++)
      for (uint64_t bits = t->streams[w]; bits; bits &= bits - 1) {
        stream *s = &ra->streams[w * 64 + (uint32_t)__builtin_ctzll(bits)];
        uint64_t at = mirror(ra, s->down, s->down ? page + count - 1 : page);
        if (s->shrunk || at + count <= s->pos || at >= s->end)
          continue;
        uint64_t had = least(s->limit, most(s->granted, 1));
        s->limit = had / 2;
        s->shrunk = true;
      }
}

void um_readahead_window(um_readahead *ra, uint32_t window_pages) {
  ra->limits.window_pages = window_pages;
}

static void add_hint(um_readahead *ra, range h) {
  if (h.first >= h.last)
    return;
  if (ra->hint_count == HINTS)
    memmove(ra->hints, ra->hints + 1, --ra->hint_count * sizeof *ra->hints);
  ra->hints[ra->hint_count++] = h;
}

void um_readahead_hint(um_readahead *ra, uint64_t first, uint64_t last, um_hint hint) {
  last = least(last, ra->limits.page_count);
  if (first >= last)
    return;
  range older[HINTS];
  uint32_t count = ra->hint_count;
  memcpy(older, ra->hints, count * sizeof *older);
  ra->hint_count = 0;
  for (uint32_t i = 0; i < count; i++) { /* what the new one leaves of each */
    range h = older[i];
    add_hint(ra, (range){h.first, least(h.last, first), h.hint});
    add_hint(ra, (range){most(h.first, last), h.last, h.hint});
  }
  if (hint != UM_HINT_NORMAL)
    add_hint(ra, (range){first, last, hint});
}

size_t um_readahead_bytes(void) {
  return sizeof(um_readahead);
}

um_readahead *um_readahead_init(void *memory, const um_readahead_limits *limits) {
  um_readahead *ra = memory;
  ra->limits = *limits;
  uint32_t run = limits->run_pages;
  ra->align_down = (uint32_t)(0 - (limits->page_count + limits->align_pages)) & (run - 1);
  ra->history_age = (uint32_t)most(8, least(limits->page_count / 32, 128));
  ra->idle_age = (uint32_t)most(64, least(limits->page_count / 16, UINT32_MAX / 16));
  ra->trust_max = TRUST_PAGE * (int64_t)most(16, least(2 * (uint64_t)run, 128));
  return ra;
}
