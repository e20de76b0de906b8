/* readahead_stream.h: what the files of the stream detector share; nobody else includes it. */
#ifndef UM_READAHEAD_STREAM_H
#define UM_READAHEAD_STREAM_H

#include "internal.h"
#include "readahead.h"

#define UM_STREAMS 128u
#define UM_STREAM_WORDS (UM_STREAMS / 64)
#define UM_THREAD_SETS 8u
#define UM_THREAD_WAYS 4u
#define UM_THREADS (UM_THREAD_SETS * UM_THREAD_WAYS)
#define UM_HISTORY_BITS 8
#define UM_HISTORY (1u << UM_HISTORY_BITS)
#define UM_RECENT 32u /* touches a thread; a walk of UM_LANES_MAX lanes needs three a lane */
#define UM_LANES_MAX 8u
#define UM_WRITERS 8u
#define UM_HINTS 16u
#define UM_CUTS 4u
#define UM_STOPS_MAX 64u    /* stops of a strided reader in flight: the depth at which devices are fast */
#define UM_STOPS_ACCEPTED 4 /* stops that may be missing in a row because their pages were there already, */
#define UM_RUNS_ACCEPTED 4  /* and runs */
#define UM_TRUST_PAGE 128   /* one page, in units of um_reader.trust */
#define UM_TRUST_LENGTH 64u /* pages in a row from which length earns trust */
#define UM_PROVEN_HITS 2u
#define UM_PROBE_RUNS 16u /* of a stream that writes, one of so many is mapped protected */
#define UM_PROBE_RUNS_FIRST 3u
#define UM_LENGTH_HINTED (1u << 20)

enum { UM_ANY, UM_UP, UM_DOWN };

typedef struct um_stream {
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
  uint64_t cuts[UM_CUTS]; /* ends of runs that are not at multiples of run_pages */
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
} um_stream;

typedef struct um_writer {
  uint64_t low, high; /* pages unprotected for it, [low, high); high 0: none */
  uint64_t used_at;   /* ra->now */
  uint32_t count;     /* of the last run */
  uint32_t direction; /* UM_ANY: one page so far */
} um_writer;

typedef struct um_reader {
  uint64_t used_at;                  /* ra->now; 0: free */
  uint64_t streams[UM_STREAM_WORDS]; /* bits: its streams */
  int64_t trust;                     /* in 1/UM_TRUST_PAGE pages */
  uint32_t id;
  uint32_t seq;               /* touches that no stream expected */
  uint64_t recent[UM_RECENT]; /* the last of those, and of touches of streams not proven */
  uint32_t recents;           /* ever put there, each at recents % UM_RECENT */
  um_writer writers[UM_WRITERS];
} um_reader;

typedef struct um_touched {
  uint64_t page;
  uint64_t length; /* pages touched in a row, up to and with this one; 0: free */
  uint32_t thread_id;
  uint32_t seq; /* the thread's */
  uint32_t direction;
  bool write;
} um_touched;

typedef struct um_hint_range {
  uint64_t first, last;
  um_hint hint;
} um_hint_range;

struct um_readahead {
  uint64_t zone_low[UM_STREAMS]; /* pages, not mirrored, outside of which a stream expects nothing */
  uint64_t zone_high[UM_STREAMS];
  um_stream streams[UM_STREAMS];
  um_reader threads[UM_THREADS];
  um_touched history[UM_HISTORY];
  um_hint_range hints[UM_HINTS]; /* disjoint; oldest first */
  uint32_t hint_count;
  um_readahead_limits limits;
  uint32_t align_down;  /* align_pages for mirrored pages */
  uint32_t history_age; /* touches of a thread after which a neighbour is chance */
  uint32_t idle_age;    /* touches of a thread after which a stream it left loses half its length */
  int64_t trust_max;    /* what a thread begins with, too */
  uint64_t now;         /* touches */
};

typedef struct um_answer {
  um_run_plan *plan;
  unsigned count, max;
} um_answer;

static inline uint64_t um_stream_mirror(const um_readahead *ra, bool down, uint64_t page) {
  return down ? ra->limits.page_count - 1 - page : page;
}

static inline uint64_t um_stream_boundary(const um_readahead *ra, const um_stream *s, uint64_t page) {
  uint32_t run = ra->limits.run_pages;
  return page + run - ((page + (s->down ? ra->align_down : ra->limits.align_pages)) & (run - 1));
}

/* Runs of a stream, in its own page numbers. False: no room. */
static inline bool um_answer_add(const um_readahead *ra, const um_stream *s, um_answer *a, uint64_t first,
                                 uint64_t count, uint64_t stride, uint64_t repeat, bool write) {
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

static inline double um_stream_mean_stride(const um_stream *s) {
  return (s->low + s->high) / 2;
}

/* The page of the nth stop after pos; where strides differ, it or the page after it. */
static inline uint64_t um_stream_nth_stop(const um_stream *s, uint64_t n) {
  if (s->exact)
    return s->pos + n * s->stride;
  return s->anchor + (uint64_t)((double)(s->index + n) * um_stream_mean_stride(s));
}

static inline uint32_t um_stream_stop_width(const um_stream *s) {
  return s->exact ? 1 : 2;
}

/* Which stop after pos the page is; 0: none. */
static inline uint64_t um_stream_find_stop(const um_stream *s, uint64_t page) {
  for (uint64_t n = 1; n <= UM_STOPS_ACCEPTED; n++) {
    uint64_t stop = um_stream_nth_stop(s, n);
    if (page + 1 >= stop && page <= stop + um_stream_stop_width(s))
      return n;
  }
  return 0;
}

/* readahead_hint.c */
um_hint um_hint_at(const um_readahead *ra, uint64_t page, uint64_t *last); /* `last` only if there is a hint */
uint64_t um_hint_end(const um_readahead *ra, const um_stream *s, uint64_t page, uint64_t end);

/* readahead_find.c */
um_reader *um_reader_find(um_readahead *ra, uint32_t id);
void um_reader_earn(const um_readahead *ra, um_reader *t, uint64_t units);
um_stream *um_stream_take(um_readahead *ra, um_reader *t, bool strong); /* NULL: all are too good to go */
void um_stream_set_zone(um_readahead *ra, const um_stream *s);          /* after every change of pos and end */
uint64_t um_stream_run_end(const um_readahead *ra, const um_stream *s, uint64_t page);
um_stream *um_stream_find_expecting(um_readahead *ra, const um_reader *t, uint64_t page);
um_stream *um_stream_find_others(um_readahead *ra, const um_reader *t, uint64_t page);
um_stream *um_stream_find_restarting(um_readahead *ra, const um_reader *t, uint64_t page);
um_stream *um_stream_find_reading(um_readahead *ra, const um_reader *t, uint64_t page);

/* readahead_begin.c: NULL: no stream, or none yet */
um_stream *um_stream_begin(um_readahead *ra, um_reader *t, uint64_t page, bool down, uint64_t length);
um_stream *um_stream_begin_sequential(um_readahead *ra, um_reader *t, uint64_t page, bool write, um_context context);
um_stream *um_stream_begin_strided(um_readahead *ra, um_reader *t, uint64_t page);

/* readahead_plan.c: `page` in the stream's numbers */
void um_stream_go_on(um_readahead *ra, um_reader *t, um_stream *s, uint64_t page, bool write, bool miss, um_answer *a);
void um_stream_walk_on(um_readahead *ra, um_reader *t, um_stream *s, uint64_t page, bool write, um_answer *a);

/* readahead_write.c */
bool um_stream_note_write(um_stream *s, bool write, bool moved, uint64_t count);

#endif
