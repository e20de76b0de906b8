/* Everything at once, after the pattern of the kernel's own uffd-stress: threads lock pages, which carry their lock and
 * their counter within them, while pages are evicted, flushed and prefetched as fast as the engine can. In the end
 * every counter must be what the threads counted beside the region, in memory and, after close, in the file.
 *
 * STRESS_SECONDS: how long in all; default 7. */
#define _GNU_SOURCE
#include "rig.h"

#include <sched.h>
#include <unistd.h>

#define THREADS 8

/* What a page holds at its beginning; its end holds a copy of `locked`. Every 4 KiB between hold the file's pattern. */
typedef struct cell {
  _Atomic uint32_t lock;
  uint32_t unused;
  _Atomic uint64_t free; /* counted without the lock */
  uint64_t locked;       /* counted under it */
  uint64_t page;         /* which page it is; never changes */
} cell;

typedef struct stress {
  rig rig;
  uint64_t page_size, pages;
  uint64_t *locked;       /* what `locked` of a page must be; under the page's lock */
  _Atomic uint64_t *free; /* what `free` of a page must be */
  _Atomic bool stop;
  _Atomic uint64_t turns;
} stress;

typedef struct worker {
  stress *s;
  uint64_t random;
} worker;

static cell *cell_of(stress *s, uint64_t page) {
  return (cell *)(s->rig.bytes + page * s->page_size);
}

static uint64_t *end_of(stress *s, uint64_t page) {
  return (uint64_t *)(s->rig.bytes + (page + 1) * s->page_size) - 1;
}

static void lock(cell *c) {
  while (atomic_exchange_explicit(&c->lock, 1, memory_order_acquire))
    sched_yield();
}

/* Half of the accesses go to an eighth of the pages. */
static uint64_t pick(worker *w) {
  uint64_t random = rig_random(&w->random);
  return random >> 8 & 1 ? (random >> 9) % (w->s->pages / 8) : (random >> 9) % w->s->pages;
}

static void check_middle(stress *s, uint64_t page, uint64_t random) {
  uint64_t offset = page * s->page_size + 512 + random % (s->page_size - 1024) / 8 * 8;
  CHECK_EQUAL(rig_read(&s->rig, offset), rig_word(offset));
}

static void *count(void *argument) {
  worker *w = argument;
  stress *s = w->s;
  uint64_t turns = 0;
  while (!atomic_load_explicit(&s->stop, memory_order_relaxed)) {
    uint64_t page = pick(w), random = rig_random(&w->random);
    cell *c = cell_of(s, page);
    CHECK_EQUAL(c->page, page);
    switch (random % 4) {
    case 0:
      check_middle(s, page, random >> 8);
      break;
    case 1:
      atomic_fetch_add(&s->free[page], 1);
      atomic_fetch_add(&c->free, 1);
      break;
    default:
      lock(c);
      CHECK_EQUAL(c->locked, s->locked[page]);
      CHECK_EQUAL(*end_of(s, page), c->locked);
      s->locked[page]++;
      c->locked++;
      *end_of(s, page) = c->locked;
      atomic_store_explicit(&c->lock, 0, memory_order_release);
    }
    turns++;
  }
  atomic_fetch_add(&s->turns, turns);
  return NULL;
}

/* Asks for what the engine must do to pages that are in use. */
static void *disturb(void *argument) {
  worker *w = argument;
  stress *s = w->s;
  while (!atomic_load(&s->stop)) {
    uint64_t random = rig_random(&w->random), pages = 1 + (random >> 32) % 32;
    uint64_t offset = pick(w) * s->page_size, length = pages * s->page_size;
    switch (random % 5) {
    case 0:
    case 1:
      CHECK_EQUAL(rig_evict(&s->rig, offset, length), 0);
      break;
    case 2:
      CHECK_EQUAL(rig_run(um_region_flush_start(s->rig.region, offset, length, random >> 8 & 1), NULL), 0);
      break;
    default:
      CHECK_EQUAL(rig_prefetch(&s->rig, offset, length), 0);
    }
  }
  return NULL;
}

static uint64_t file_word(stress *s, uint64_t page, uint64_t offset) {
  return rig_file_word(&s->rig, page * s->page_size + offset);
}

static void write_cells(stress *s) {
  for (uint64_t page = 0; page < s->pages; page++) {
    cell c = {.page = page};
    uint64_t zero = 0;
    CHECK_EQUAL(pwrite(s->rig.fd, &c, sizeof c, (off_t)(page * s->page_size)), sizeof c);
    CHECK_EQUAL(pwrite(s->rig.fd, &zero, 8, (off_t)((page + 1) * s->page_size - 8)), 8);
  }
}

static void run(uint64_t page_size, uint32_t fillers, uint32_t evictors, double seconds) {
  stress s = {.page_size = page_size};
  uint64_t budget = 16 + 2 * fillers;
  s.pages = (page_size >= 1 << 20 ? 3 : 16) * budget;
  rig_open(&s.rig, &(rig_options){.size = s.pages * page_size,
                                  .page_size = page_size,
                                  .spare = page_size >= 1 << 20 ? 0 : budget,
                                  .fillers = fillers,
                                  .evictors = evictors,
                                  .cached = evictors > 1,
                                  .computes = fillers > 1});
  write_cells(&s);
  CHECK((s.locked = calloc(s.pages, sizeof *s.locked)) && (s.free = calloc(s.pages, sizeof *s.free)));

  pthread_t threads[THREADS + 2];
  worker workers[THREADS + 2];
  uint64_t began = now_ns();
  for (int i = 0; i < THREADS + 2; i++) {
    workers[i] = (worker){&s, 88172645463325252u + 7919u * (uint64_t)i * i};
    threads[i] = rig_thread(i < THREADS ? count : disturb, &workers[i]);
  }
  sleep_ms((unsigned)(seconds * 1000));
  atomic_store(&s.stop, true);
  for (int i = 0; i < THREADS + 2; i++)
    pthread_join(threads[i], NULL);
  double took = (double)(now_ns() - began) / 1e9;

  um_stats stats = rig_stats(&s.rig);
  CHECK_EQUAL(rig_errors(&s.rig), 0);
  CHECK(stats.peak_used <= stats.memory);
  CHECK(stats.evictions > 0 && stats.writes > 0 && stats.protect_faults > 0);
  for (uint64_t page = 0; page < s.pages; page++) {
    CHECK_EQUAL(cell_of(&s, page)->locked, s.locked[page]);
    CHECK_EQUAL(atomic_load(&cell_of(&s, page)->free), atomic_load(&s.free[page]));
  }
  rig_close(&s.rig);
  for (uint64_t page = 0; page < s.pages; page++) {
    CHECK_EQUAL(file_word(&s, page, offsetof(cell, locked)), s.locked[page]);
    CHECK_EQUAL(file_word(&s, page, page_size - 8), s.locked[page]);
    CHECK_EQUAL(file_word(&s, page, offsetof(cell, free)), atomic_load(&s.free[page]));
    CHECK_EQUAL(file_word(&s, page, offsetof(cell, page)), page);
    CHECK_EQUAL(file_word(&s, page, 512), rig_word(page * page_size + 512));
  }
  rig_end(&s.rig);
  printf("  %4" PRIu64 " KiB pages, %u fillers, %u evictors: %7.0f turns/s, %6.0f faults/s, %6.0f evictions/s\n",
         page_size >> 10, fillers, evictors, (double)atomic_load(&s.turns) / took,
         (double)(stats.read_faults + stats.write_faults + stats.protect_faults) / took,
         (double)stats.evictions / took);
  free(s.locked);
  free(s.free);
}

int main(void) {
  static const uint64_t page_sizes[] = {4 << 10, 64 << 10, 2 << 20};
  static const uint32_t fillers[] = {1, 2, 8};
  const char *asked = getenv("STRESS_SECONDS");
  double seconds = asked ? atof(asked) : 7;
  CHECK(seconds > 0);
  watchdog_start(20 + (unsigned)seconds);
  for (int p = 0; p < 3; p++)
    for (int f = 0; f < 3; f++)
      for (uint32_t e = 1; e <= 2; e++) {
        watchdog_pet("stress");
        run(page_sizes[p], fillers[f], e, seconds / 18);
      }
  return 0;
}
