/* kill -9, again and again, of a child that writes to one file through a zstd store: by itself, or through a region
 * whose memory is too small for it. Memory shared with the parent says what was written, and what flushes promised.
 *
 * A child that only flushes between its writes leaves exactly the image of a flush; one whose threads flush while
 * others write leaves in every word a version that was written, none older than the flush that returned.
 *
 * test_kill [KILLS [SEED]] */
#define _GNU_SOURCE
#include "rig.h"
#include "zrig.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096u
#define WORDS (PAGE / 8)
#define PAGES 1200u /* five leaves; more than the region's memory holds */
#define SIZE (PAGES * (uint64_t)PAGE)
#define PARALLEL 2 /* threads that write in a child whose flushes do not wait for them */

/* Shared with the children. A page's version 0 is zeros. */
typedef struct shared {
  _Atomic uint32_t written[PAGES]; /* the version that is on its way into the page, */
  _Atomic uint32_t done[PAGES];    /* and the one that is there */
  _Atomic uint32_t tried[PAGES];   /* of a flush that began; */
  _Atomic uint32_t flushed[PAGES]; /* and of the last that returned */
  _Atomic uint64_t flushes;
} shared;

static shared *s;
static char path[64];

/* Some words compress, some do not; each tells its page and its version. */
static uint64_t make_word(uint64_t page, uint64_t word, uint32_t version) {
  uint64_t noise = (word * 8 + page + version) * 0x9E3779B97F4A7C15u >> 48;
  return version == 0 ? 0 : (uint64_t)version << 32 | page << 16 | (word % 3 ? word : noise);
}

/* Versions that a word of the page can be of: -1, or whichever. */
static int64_t find_version(uint64_t page, uint64_t word, uint64_t got) {
  uint32_t version = (uint32_t)(got >> 32);
  return got == make_word(page, word, version) ? (int64_t)version : -1;
}

static um_store *open_store(bool writable, bool create) {
  um_zstd_options options = {.path = path,
                             .writable = writable,
                             .create = create,
                             .truncate = create,
                             .lock = 1,
                             .level = 1,
                             .page_size = create ? PAGE : 0,
                             .size = create ? SIZE : UINT64_MAX};
  um_store *store;
  um_error error = {0};
  if (um_zstd_store_open(&options, &store, &error) < 0) {
    fprintf(stderr, "%s\n", error.text);
    abort();
  }
  return store;
}

/* In the child: how it writes and flushes. */
static um_store *store;
static um_region *region; /* NULL: it writes to the store itself */
static uint64_t *memory;

static void write_page(uint64_t page) {
  uint32_t version = atomic_load(&s->written[page]) + 1;
  uint64_t words[WORDS], *to = region ? memory + page * WORDS : words;
  atomic_store(&s->written[page], version);
  for (uint64_t i = 0; i < WORDS; i++)
    to[i] = make_word(page, i, version);
  if (!region)
    CHECK_EQUAL(um_store_write(store, page * PAGE, words, PAGE, NULL), 0);
  atomic_store(&s->done[page], version);
}

static void flush(void) {
  um_error error = {0};
  for (uint64_t page = 0; page < PAGES; page++)
    atomic_store(&s->tried[page], atomic_load(&s->done[page]));
  atomic_fetch_add(&s->flushes, 1); /* odd: under way */
  int result = region ? rig_run(um_region_flush_start(region, 0, SIZE, 1), &error) : um_store_flush(store, &error);
  if (result < 0) {
    fprintf(stderr, "flush: %s\n", error.text);
    _exit(1);
  }
  for (uint64_t page = 0; page < PAGES; page++)
    atomic_store(&s->flushed[page], atomic_load(&s->tried[page]));
  atomic_fetch_add(&s->flushes, 1);
}

static void open_region(void) {
  memory = (uint64_t *)rig_map(SIZE);
  um_pager *pager = rig_pager(um_pager_memory_min(PAGE, 2, 1) + PAGES / 4 * PAGE, 2, 1, 10000);
  um_region_options options = {.page_size = PAGE, .writable = 1};
  CHECK_EQUAL(um_region_create(pager, store, memory, SIZE, &options, &region), 0);
}

/* In turns: writes, then a flush. */
static void write_and_flush(uint64_t seed) {
  for (;;) {
    for (uint64_t i = 1 + zrig_random(&seed) % 60; i > 0; i--)
      write_page(zrig_random(&seed) % PAGES);
    flush();
  }
}

static void *write_on(void *argument) {
  uint64_t first = (uintptr_t)argument, seed = first;
  for (;;)
    write_page(zrig_random(&seed) % (PAGES / PARALLEL) * PARALLEL + first);
  return NULL;
}

static void run_child(bool with_region, bool parallel, uint64_t seed) {
  store = open_store(true, false);
  if (with_region)
    open_region();
  for (uintptr_t i = 0; parallel && i < PARALLEL; i++)
    rig_thread(write_on, (void *)i);
  if (!parallel)
    write_and_flush(seed);
  for (;;)
    flush();
}

typedef struct tally {
  uint64_t page[2]; /* that a word is not of the last flush, and not of the one under way */
  bool wrong[2];
  uint64_t flushed, tried; /* pages of which version alone */
} tally;

/* What the file holds; the next child goes on from there. */
static void check_file(bool parallel) {
  static uint64_t words[PAGES * WORDS];
  tally t = {0};
  um_error error = {0};
  um_store *reader = open_store(false, false);
  if (um_store_read(reader, 0, words, SIZE, &error) < 0) {
    fprintf(stderr, "%s\n", error.text);
    abort();
  }
  CHECK_EQUAL(um_store_close(reader, NULL), 0);
  bool under_way = atomic_load(&s->flushes) % 2;
  for (uint64_t page = 0; page < PAGES; page++) {
    uint32_t flushed = atomic_load(&s->flushed[page]), tried = under_way ? atomic_load(&s->tried[page]) : flushed;
    uint32_t written = atomic_load(&s->written[page]), highest = 0;
    for (uint64_t i = 0; i < WORDS; i++) {
      int64_t version = find_version(page, i, words[page * WORDS + i]);
      if (version < flushed || version > written) {
        fprintf(stderr, "page %" PRIu64 ", word %" PRIu64 ": %#" PRIx64 ", version %" PRId64 ", not from %u to %u\n",
                page, i, words[page * WORDS + i], version, flushed, written);
        abort();
      }
      t.wrong[0] |= version != flushed;
      t.wrong[1] |= version != tried;
      highest = version > highest ? (uint32_t)version : highest;
    }
    t.flushed += flushed != tried;
    atomic_store(&s->written[page], parallel ? written : highest); /* versions are not used twice */
    atomic_store(&s->done[page], parallel ? flushed : highest);
    atomic_store(&s->flushed[page], parallel ? flushed : highest);
  }
  if (!parallel && t.wrong[0] && t.wrong[1]) {
    fprintf(stderr, "a mixture of two flushes; %" PRIu64 " pages are different in them\n", t.flushed);
    abort();
  }
  atomic_store(&s->flushes, 0);
}

static void kill_one(bool with_region, bool parallel, uint64_t *seed) {
  uint64_t wait = 1000 + zrig_random(seed) % 30000, child_seed = zrig_random(seed); /* microseconds */
  uint64_t before = atomic_load(&s->flushes);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0)
    run_child(with_region, parallel, child_seed);
  for (int i = 0; i < 2000 && atomic_load(&s->flushes) == before; i++) /* until it is at work */
    usleep(1000);
  usleep((useconds_t)wait);
  CHECK_EQUAL(kill(child, SIGKILL), 0);
  int status;
  CHECK_EQUAL(waitpid(child, &status, 0), child);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void test_what_is_killed_leaves_a_flush(uint64_t kills, uint64_t seed) {
  zrig file = {.size = SIZE};
  uint64_t flushes = 0;
  int descriptor = rig_file(0, true, path);
  close(descriptor);
  snprintf(file.path, sizeof(file.path), "%s", path);
  CHECK_EQUAL(um_store_close(open_store(true, true), NULL), 0);
  for (uint64_t i = 0; i < kills; i++) {
    bool with_region = i % 2, parallel = i % 10 >= 6;
    if (i % 10 == 0 && i > 0) { /* words of several versions are in its pages: begin with the image of a flush */
      memset((void *)s, 0, sizeof(*s));
      CHECK_EQUAL(um_store_close(open_store(true, true), NULL), 0);
    }
    kill_one(with_region, parallel, &seed);
    flushes += atomic_load(&s->flushes) / 2;
    check_file(parallel);
    if (i % 25 == 24) {
      CHECK_EQUAL(um_store_close(open_store(true, false), NULL), 0);
      zrig_check_tool(&file);
    }
  }
  fprintf(stderr, "%" PRIu64 " kills, %" PRIu64 " flushes returned before them\n", kills, flushes);
  CHECK(flushes > kills);
  unlink(path);
}

int main(int argc, char **argv) {
  uint64_t kills = argc > 1 ? strtoull(argv[1], NULL, 0) : 200, seed = argc > 2 ? strtoull(argv[2], NULL, 0) : now_ns();
  fprintf(stderr, "seed %" PRIu64 "\n", seed);
  s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(s != MAP_FAILED);
  test_what_is_killed_leaves_a_flush(kills, seed);
  return 0;
}
