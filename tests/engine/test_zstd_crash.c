/* The zstd store over a file in memory that crashes: of what was written since the last sync any sectors survive. At
 * every call that changes the file, states a crash may leave are opened: each holds the image of the last flush that
 * returned, or of the one under way, and every byte of it in a frame once a writer opened it. */
#define _GNU_SOURCE
#include "zrig.h"

#include <errno.h>

#define PAGE 4096u
#define PAGES 520u
#define SECTOR 512u
#define ROOM (8u << 20)
#define STATES 3u /* crashes looked at a call: nothing survived, everything, and this many more */

typedef struct change {
  uint64_t offset, length; /* length UINT64_MAX: the file's length becomes offset */
  uint8_t *bytes;          /* NULL: zeros */
} change;

typedef struct memory {
  um_zstd_file file;
  uint8_t *bytes, *durable; /* as the store sees it; as of the last sync */
  uint64_t length, durable_length;
  change *changes; /* since */
  uint64_t count, room;
  void (*crash)(struct memory *); /* called before every change; NULL: never */
} memory;

static uint64_t seed = 1;

static void note(memory *m, uint64_t offset, const void *bytes, uint64_t length) {
  if (m->crash)
    m->crash(m);
  if (m->count == m->room) {
    m->room = m->room ? 2 * m->room : 64;
    m->changes = realloc(m->changes, m->room * sizeof(*m->changes));
    CHECK(m->changes);
  }
  change *c = &m->changes[m->count++];
  *c = (change){.offset = offset, .length = length};
  if (bytes && (c->bytes = malloc(length)))
    memcpy(c->bytes, bytes, length);
}

static int64_t memory_read(um_zstd_file *file, void *buffer, uint64_t length, uint64_t offset) {
  memory *m = (memory *)file;
  uint64_t left = offset < m->length ? m->length - offset : 0, count = length < left ? length : left;
  memcpy(buffer, m->bytes + offset, count);
  return (int64_t)count;
}

static int64_t memory_write(um_zstd_file *file, const void *buffer, uint64_t length, uint64_t offset) {
  memory *m = (memory *)file;
  CHECK(offset + length <= ROOM);
  note(m, offset, buffer, length);
  memcpy(m->bytes + offset, buffer, length);
  m->length = m->length < offset + length ? offset + length : m->length;
  return (int64_t)length;
}

static void forget(memory *m) {
  for (uint64_t i = 0; i < m->count; i++)
    free(m->changes[i].bytes);
  m->count = 0;
}

static int memory_sync(um_zstd_file *file) {
  memory *m = (memory *)file;
  if (m->crash)
    m->crash(m);
  forget(m);
  memcpy(m->durable, m->bytes, m->length > m->durable_length ? m->length : m->durable_length);
  m->durable_length = m->length;
  return 0;
}

static int memory_truncate(um_zstd_file *file, uint64_t length) {
  memory *m = (memory *)file;
  CHECK(length <= ROOM);
  note(m, length, NULL, UINT64_MAX);
  if (length < m->length)
    memset(m->bytes + length, 0, m->length - length);
  m->length = length;
  return 0;
}

static int memory_punch(um_zstd_file *file, uint64_t offset, uint64_t length) {
  memory *m = (memory *)file;
  note(m, offset, NULL, length);
  memset(m->bytes + offset, 0, length);
  return 0;
}

static int memory_measure(um_zstd_file *file, uint64_t *length, uint64_t *allocated) {
  *length = *allocated = ((memory *)file)->length;
  return 0;
}

static int memory_close(um_zstd_file *file) {
  memory *m = (memory *)file;
  forget(m);
  free(m->changes);
  free(m->bytes);
  free(m->durable);
  free(m);
  return 0;
}

static const um_zstd_file_ops memory_ops = {.read = memory_read,
                                            .write = memory_write,
                                            .sync = memory_sync,
                                            .truncate = memory_truncate,
                                            .punch = memory_punch,
                                            .measure = memory_measure,
                                            .close = memory_close};

static memory *make_memory(void) {
  memory *m = calloc(1, sizeof(*m));
  CHECK(m);
  m->file = (um_zstd_file){&memory_ops, "memory"};
  m->bytes = calloc(1, ROOM);
  m->durable = calloc(1, ROOM);
  CHECK(m->bytes && m->durable);
  return m;
}

/* Of the sectors of a change, those that survive: all, none or any, by `odds` of 256. */
static void apply(memory *to, const change *c, uint64_t odds) {
  if (c->length == UINT64_MAX) {
    if (zrig_random(&seed) % 256 < odds) {
      if (c->offset < to->length)
        memset(to->bytes + c->offset, 0, to->length - c->offset);
      to->length = c->offset;
    }
    return;
  }
  for (uint64_t at = c->offset, end = c->offset + c->length; at < end;) {
    uint64_t next = (at / SECTOR + 1) * SECTOR, count = (next < end ? next : end) - at;
    if (zrig_random(&seed) % 256 < odds) {
      if (c->bytes) {
        memcpy(to->bytes + at, c->bytes + (at - c->offset), count);
        to->length = to->length < at + count ? at + count : to->length;
      } else {
        memset(to->bytes + at, 0, count);
      }
    }
    at += count;
  }
}

static memory *make_crashed(const memory *m, uint64_t odds) {
  memory *crashed = make_memory();
  memcpy(crashed->bytes, m->durable, m->durable_length);
  crashed->length = m->durable_length;
  for (uint64_t i = 0; i < m->count; i++)
    apply(crashed, &m->changes[i], odds);
  memcpy(crashed->durable, crashed->bytes, crashed->length);
  crashed->durable_length = crashed->length;
  return crashed;
}

/* What a crash may leave: the image of the last flush, and while one is under way its. */
static uint8_t *flushed, *trying;
static uint64_t image_size, states;

static um_store *open_memory(memory *m, bool empty, bool recover) {
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

static void check_state(memory *crashed) {
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

static void crash(memory *m) {
  if (m->count == 0)
    return;
  check_state(make_crashed(m, 0));
  check_state(make_crashed(m, 256));
  for (unsigned i = 0; i < STATES; i++)
    check_state(make_crashed(m, i == 0 ? 128 : zrig_random(&seed) % 256));
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
  memory *m = make_memory();
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

int main(void) {
  test_every_crash_leaves_the_last_flush_or_the_one_under_way();
  return 0;
}
