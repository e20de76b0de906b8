/* Streams of every kind over several regions of one pager, whose budget allows chunks and is smaller than the regions:
 * threads read and write forward, backward, in strides and at random, and change their minds, while their pages are
 * read ahead, taken back from standby, moved out, flushed, evicted and prefetched. Each thread's words are its own:
 * each read must find what was written last, and so must the file in the end.
 *
 * STRESS_SECONDS: how long in all; default 3. */
#define _GNU_SOURCE
#include "rig.h"

#include <unistd.h>

#define KIB 1024ull
#define MIB (1024ull << 10)
#define REGIONS 4
#define THREADS 8
#define SIZE (32 * MIB)
#define SLOTS (SIZE / 4096) /* of each region; one word a thread, at 8 times its number */

typedef struct stress {
  um_pager *pager;
  rig rigs[REGIONS];
  _Atomic bool stop;
} stress;

typedef struct worker {
  stress *s;
  uint64_t id, random, turns;
  uint32_t *last[REGIONS]; /* what its word of each slot holds; 0: the pattern */
} worker;

enum { FORWARD, BACKWARD, STRIDED, RANDOM };

static const uint8_t ways[] = {FORWARD, FORWARD, FORWARD, BACKWARD, BACKWARD, STRIDED, STRIDED, RANDOM};

static void access_slot(worker *w, uint64_t region, uint64_t slot, bool write) {
  const rig *r = &w->s->rigs[region];
  uint64_t offset = slot * 4096 + 8 * w->id, other = slot * 4096 + 1024 + w->random % 376 * 8;
  uint32_t *last = &w->last[region][slot];
  CHECK_EQUAL(rig_read(r, offset), *last ? *last : rig_word(offset));
  CHECK_EQUAL(rig_read(r, other), rig_word(other)); /* nobody writes there */
  if (write)
    rig_write(r, offset, ++*last);
  w->turns++;
}

static void *work(void *argument) {
  worker *w = argument;
  while (!atomic_load(&w->s->stop)) {
    uint64_t random = rig_random(&w->random), region = random % REGIONS, way = ways[(random >> 8) % sizeof ways];
    uint64_t slot = (random >> 16) % SLOTS, stride = way == STRIDED ? 2 + (random >> 40) % 60 : 1;
    uint64_t length = 64 + (random >> 48) % 4096;
    bool write = !w->s->rigs[region].region->writable ? false : (random >> 12) % 2;
    for (uint64_t i = 0; i < length && !atomic_load_explicit(&w->s->stop, memory_order_relaxed); i++) {
      access_slot(w, region, slot, write);
      if (way == RANDOM)
        slot = rig_random(&w->random) % SLOTS;
      else
        slot = (slot + (way == BACKWARD ? SLOTS - 1 : stride)) % SLOTS;
    }
  }
  return NULL;
}

static void *disturb(void *argument) {
  worker *w = argument;
  while (!atomic_load(&w->s->stop)) {
    uint64_t random = rig_random(&w->random), offset = (random >> 8) % SIZE, length = (random >> 40) % (4 * MIB);
    const rig *r = &w->s->rigs[random % REGIONS];
    length = um_min(length, SIZE - offset);
    sleep_ms(1); /* or nothing would stay long enough to be used */
    switch ((random >> 4) % 5) {
    case 0:
    case 1:
      CHECK_EQUAL(rig_evict(r, offset, length), 0);
      break;
    case 2:
      CHECK_EQUAL(rig_run(um_region_flush_start(r->region, offset, length, 0), NULL), 0);
      break;
    case 3:
      CHECK_EQUAL(um_region_advise(r->region, offset, length, (int)((random >> 20) % 3)), 0);
      break;
    default:
      CHECK_EQUAL(rig_prefetch(r, offset, length), 0);
    }
    w->turns++;
  }
  return NULL;
}

static void check_files(stress *s, const worker *workers) {
  static uint64_t words[512];
  for (uint64_t region = 0; region < REGIONS; region++)
    for (uint64_t slot = 0; slot < SLOTS; slot++) {
      CHECK_EQUAL(pread(s->rigs[region].fd, words, 4096, (off_t)(slot * 4096)), 4096);
      for (uint64_t i = 0; i < 512; i++) {
        uint32_t last = i < THREADS ? workers[i].last[region][slot] : 0;
        CHECK_EQUAL(words[i], last ? last : rig_word(slot * 4096 + 8 * i));
      }
    }
}

static void run(uint32_t fillers, uint32_t evictors, double seconds) {
  static const rig_options options[REGIONS] = {
      {.size = SIZE, .page_size = 64 * KIB, .read_only = true, .readahead = true, .skew = UM_CHUNK},
      {.size = SIZE, .page_size = 64 * KIB, .readahead = true, .skew = 320 * KIB},
      {.size = SIZE, .page_size = 4 * KIB, .readahead = true, .skew = UM_CHUNK},
      {.size = SIZE, .page_size = 2 * MIB, .readahead = true, .skew = UM_CHUNK},
  };
  stress s = {.pager = rig_pager(68 * MIB, fillers, evictors, 10000)};
  worker workers[THREADS + 1];
  pthread_t threads[THREADS + 1];
  for (uint64_t i = 0; i < REGIONS; i++) {
    rig_options o = options[i];
    o.pager = s.pager;
    rig_open(&s.rigs[i], &o);
    CHECK(s.rigs[i].region->chunks);
  }
  for (uint64_t i = 0; i <= THREADS; i++) {
    workers[i] = (worker){.s = &s, .id = i, .random = 88172645463325252u + 7919u * i};
    for (uint64_t k = 0; k < REGIONS; k++)
      CHECK(workers[i].last[k] = calloc(SLOTS, sizeof(uint32_t)));
    threads[i] = rig_thread(i < THREADS ? work : disturb, &workers[i]);
  }
  sleep_ms((unsigned)(seconds * 1000));
  atomic_store(&s.stop, true);
  uint64_t turns = 0;
  for (int i = 0; i <= THREADS; i++) {
    pthread_join(threads[i], NULL);
    CHECK(workers[i].turns > 0);
    turns += i < THREADS ? workers[i].turns : 0;
  }
  um_stats stats;
  um_pager_stats(s.pager, &stats);
  CHECK(stats.peak_used <= stats.memory);
  CHECK(stats.evictions > 0 && stats.writes > 0 && stats.readahead_used > 0);
  printf("  %u fillers, %u evictors: %7.0f turns/s, %6.0f pages evicted/s, of %" PRIu64 " read ahead %" PRIu64
         " used, %" PRIu64 " wasted; %" PRIu64 " taken back\n",
         fillers, evictors, (double)turns / seconds, (double)stats.evictions / seconds, stats.readahead,
         stats.readahead_used, stats.readahead_wasted, stats.standby_hits);
  for (int i = 0; i < REGIONS; i++) {
    CHECK_EQUAL(rig_errors(&s.rigs[i]), 0);
    rig_close(&s.rigs[i]);
  }
  um_pager_stats(s.pager, &stats);
  CHECK_EQUAL(stats.used, stats.overhead + stats.idle);
  CHECK_EQUAL(um_pager_destroy(s.pager), 0);
  check_files(&s, workers);
  for (int i = 0; i < REGIONS; i++)
    rig_end(&s.rigs[i]);
  for (int i = 0; i <= THREADS; i++)
    for (int k = 0; k < REGIONS; k++)
      free(workers[i].last[k]);
}

int main(void) {
  const char *asked = getenv("STRESS_SECONDS");
  double seconds = asked ? atof(asked) : 3;
  CHECK(seconds > 0);
  watchdog_start(20 + (unsigned)seconds);
  static const uint32_t fillers[] = {1, 2, 4};
  for (int f = 0; f < 3; f++) {
    watchdog_pet("streams");
    run(fillers[f], 1 + f % 2, seconds / 3);
  }
  return 0;
}
