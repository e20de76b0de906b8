/* The zstd store over a file in memory that crashes: of what was written since the last sync any sectors survive. At
 * every call that changes the file, states a crash may leave are opened: each holds the image of the last flush that
 * returned, or of the one under way, and every byte of it in a frame once a writer opened it. */
#define _GNU_SOURCE
#include "zmemory.h"

#include <errno.h>

#define PAGE 4096u
#define PAGES 520u
#define STATES 3u /* crashes looked at a call: nothing survived, everything, and this many more */

static uint64_t seed = 1;

/* What a crash may leave: the image of the last flush, and while one is under way its. */
static uint8_t *flushed, *trying;
static uint64_t image_size, states;

static um_store *open_memory(zmemory *m, bool empty, bool recover) {
  um_zstd_options options = {.path = "memory",
                             .writable = 1,
                             .recover = recover,
                             .level = 1,
                             .page_size = PAGE,
                             .size = empty ? image_size : UINT64_MAX};
  um_store *store = NULL;
  um_error error = {0};
  if (um_zstd_store_open_on(&m->file, empty, &options, &store, &error) < 0) {
    fprintf(stderr, "%s\n", error.text);
    abort();
  }
  return store;
}

static void check_state(zmemory *crashed) {
  static uint8_t *got;
  um_error error = {0};
  if (!got)
    CHECK(got = malloc(image_size));
  um_store *store = open_memory(crashed, false, false);
  if (um_store_read(store, 0, got, image_size, &error) < 0) {
    fprintf(stderr, "%s\n", error.text);
    abort();
  }
  CHECK(memcmp(got, flushed, image_size) == 0 || (trying && memcmp(got, trying, image_size) == 0));
  CHECK_EQUAL(um_zstd_store_verify_frames(store, &error), 0);
  CHECK_EQUAL(um_store_close(store, NULL), 0);
  states++;
}

static void crash(zmemory *m) {
  if (m->count == 0)
    return;
  check_state(zmemory_crashed(m, 0, &seed));
  check_state(zmemory_crashed(m, 256, &seed));
  for (unsigned i = 0; i < STATES; i++)
    check_state(zmemory_crashed(m, i == 0 ? 128 : zrig_random(&seed) % 256, &seed));
}

static void change_some(um_store *store, uint8_t *image, uint64_t turn) {
  for (int i = 0; i < 40; i++) {
    uint64_t page = turn % 3 ? zrig_random(&seed) % PAGES : (turn * 40 + (uint64_t)i) % PAGES, at = page * PAGE;
    if (zrig_random(&seed) % 8 == 0)
      memset(image + at, 0, PAGE);
    else
      zrig_fill(image + at, PAGE, zrig_random(&seed));
    CHECK_EQUAL(um_store_write(store, at, image + at, PAGE, NULL), 0);
  }
}

static void flush(um_store *store, const uint8_t *image) {
  uint8_t *under_way = malloc(image_size);
  memcpy(under_way, image, image_size);
  trying = under_way;
  CHECK_EQUAL(um_store_flush(store, NULL), 0);
  memcpy(flushed, image, image_size);
  trying = NULL;
  free(under_way);
}

static void test_every_crash_leaves_the_last_flush_or_the_one_under_way(void) {
  image_size = PAGES * (uint64_t)PAGE;
  uint8_t *image = calloc(1, image_size);
  flushed = calloc(1, image_size);
  zmemory *m = zmemory_make();
  um_store *store = open_memory(m, true, false);
  m->crash = crash;
  for (uint64_t turn = 0; turn < 5; turn++) {
    change_some(store, image, turn);
    flush(store, image);
  }
  /* Full, so that compaction and punching have to do with it. */
  m->crash = NULL;
  for (uint64_t turn = 0; turn < 60; turn++) {
    change_some(store, image, turn);
    flush(store, image);
  }
  m->crash = crash;
  for (uint64_t turn = 0; turn < 5; turn++) {
    change_some(store, image, turn);
    flush(store, image);
  }
  um_zstd_info info;
  um_zstd_store_info(store, &info);
  fprintf(stderr, "%" PRIu64 " states, %" PRIu32 " segments\n", states, info.segments);
  CHECK(states > 500);
  CHECK_EQUAL(um_store_close(store, NULL), 0);
  free(image);
}

/* A file whose making was interrupted is none, or an empty one. */
static void crash_young(zmemory *m) {
  for (uint64_t odds = 0; odds <= 256; odds += 64) {
    um_zstd_options options = {.path = "memory", .writable = 1, .level = 1, .size = UINT64_MAX};
    um_store *store;
    um_error error = {0};
    uint8_t page[PAGE];
    int result = zmemory_try(zmemory_crashed(m, odds, &seed), &options, &store, &error);
    CHECK(result == 0 || result == -EMEDIUMTYPE || result == -UM_ECORRUPT);
    if (result < 0)
      continue;
    CHECK_EQUAL(um_store_read(store, image_size - PAGE, page, PAGE, &error), 0);
    CHECK(um_zstd_is_zero(page, PAGE));
    CHECK_EQUAL(um_zstd_store_verify_frames(store, &error), 0);
    CHECK_EQUAL(um_store_close(store, NULL), 0);
  }
  states++;
}

static void test_crash_while_a_file_is_made_leaves_none_or_an_empty_one(void) {
  image_size = PAGES * (uint64_t)PAGE;
  states = 0;
  zmemory *m = zmemory_make();
  m->crash = crash_young;
  CHECK_EQUAL(um_store_close(open_memory(m, true, false), NULL), 0);
  CHECK(states >= 4);
}

int main(void) {
  test_crash_while_a_file_is_made_leaves_none_or_an_empty_one();
  test_every_crash_leaves_the_last_flush_or_the_one_under_way();
  return 0;
}
