/* The zstd store over a file that fails: each call in turn, once or from then on, with EIO, ENOSPC or half of what it
 * was asked for. Whatever failed, the file then holds the image of the last flush that returned, or of one that did
 * not, and a store that is not told to give up goes on where the failure passes. */
#define _GNU_SOURCE
#include "zrig.h"

#include <errno.h>
#include <unistd.h>

#define PAGE 4096u
#define PAGES 700u /* three leaves, two levels */
#define TURNS 4u
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define STEP 7u /* many times slower */
#else
#define STEP 1u
#endif

typedef struct frail {
  um_zstd_file file;
  um_zstd_file *inner;
  uint64_t calls, fail_at, fail_count; /* calls that change the file; which fail */
  int code;                            /* 0: short writes */
  bool sync_failed;
  bool fail_reads;
} frail;

static bool strikes(frail *f) {
  uint64_t n = f->calls++;
  return n >= f->fail_at && n - f->fail_at < f->fail_count;
}

static int64_t frail_read(um_zstd_file *file, void *buffer, uint64_t length, uint64_t offset) {
  frail *f = (frail *)file;
  if (f->fail_reads)
    return -EIO;
  return f->inner->ops->read(f->inner, buffer, length > 1 && f->code == 0 ? length / 2 : length, offset);
}

static int64_t frail_write(um_zstd_file *file, const void *buffer, uint64_t length, uint64_t offset) {
  frail *f = (frail *)file;
  bool struck = strikes(f);
  if (struck && f->code)
    return length > 100 && f->inner->ops->write(f->inner, buffer, length / 2, offset) < 0 ? -EIO : -f->code;
  return f->inner->ops->write(f->inner, buffer, struck && length > 1 ? length / 2 : length, offset);
}

static int frail_sync(um_zstd_file *file) {
  frail *f = (frail *)file;
  bool struck = strikes(f) && f->code;
  f->sync_failed |= struck;
  return struck ? -f->code : f->inner->ops->sync(f->inner);
}

static int frail_truncate(um_zstd_file *file, uint64_t length) {
  frail *f = (frail *)file;
  return strikes(f) && f->code ? -f->code : f->inner->ops->truncate(f->inner, length);
}

static int frail_punch(um_zstd_file *file, uint64_t offset, uint64_t length) {
  frail *f = (frail *)file;
  return strikes(f) && f->code ? -f->code : f->inner->ops->punch(f->inner, offset, length);
}

static int frail_measure(um_zstd_file *file, uint64_t *length, uint64_t *allocated) {
  frail *f = (frail *)file;
  return f->inner->ops->measure(f->inner, length, allocated);
}

static int frail_publish(um_zstd_file *file) {
  frail *f = (frail *)file;
  return strikes(f) && f->code ? -f->code : f->inner->ops->publish(f->inner);
}

static int frail_close(um_zstd_file *file) {
  frail *f = (frail *)file;
  return f->inner->ops->close(f->inner);
}

static const um_zstd_file_ops frail_ops = {.read = frail_read,
                                           .write = frail_write,
                                           .sync = frail_sync,
                                           .truncate = frail_truncate,
                                           .punch = frail_punch,
                                           .measure = frail_measure,
                                           .publish = frail_publish,
                                           .close = frail_close};

static um_zstd_options options_of(const zrig *z) {
  return (um_zstd_options){.path = z->path, .writable = 1, .lock = 1, .level = 1, .size = UINT64_MAX};
}

/* The store of z over the frail file; 0, or what opening it failed with. */
static int open_frail(zrig *z, frail *f) {
  um_zstd_options options = options_of(z);
  um_error error;
  bool made;
  CHECK_EQUAL(um_zstd_file_open(&options, &f->inner, &made, &error), 0);
  f->file = (um_zstd_file){&frail_ops, f->inner->path};
  f->calls = 0;
  int result = um_zstd_store_open_on(&f->file, false, &options, &z->store, &error);
  if (result < 0)
    f->inner->ops->close(f->inner);
  return result;
}

static void check_same(zrig *z, const uint8_t *one, const uint8_t *other, const char *when) {
  uint8_t *got = malloc(z->size);
  um_error error = {0};
  if (um_store_read(z->store, 0, got, z->size, &error) < 0) {
    fprintf(stderr, "%s: %s\n", when, error.text);
    abort();
  }
  bool same = memcmp(got, one, z->size) == 0 || (other && memcmp(got, other, z->size) == 0);
  if (!same)
    fprintf(stderr, "%s: neither image\n", when);
  CHECK(same);
  free(got);
}

/* Writes the whole image, as the engine does with what is dirty still. */
static int write_all(zrig *z) {
  int result = 0;
  for (uint64_t at = 0; result == 0 && at < z->size; at += 64 * PAGE)
    result = um_store_write(z->store, at, z->image + at, z->size - at < 64 * PAGE ? z->size - at : 64 * PAGE, NULL);
  return result;
}

typedef struct outcome {
  bool ended; /* no call was struck any more */
  uint64_t failures;
} outcome;

/* Turns of writes and a flush, each repeated where it fails, with the calls from fail_at on failing. */
static outcome run(zrig *z, uint64_t fail_at, uint64_t fail_count, int code, const uint8_t *start) {
  frail f = {.fail_at = fail_at, .fail_count = fail_count, .code = code};
  outcome o = {0};
  char when[128];
  snprintf(when, sizeof(when), "%s at call %" PRIu64 ", %" PRIu64 " of them", code ? strerror(code) : "short", fail_at,
           fail_count);
  memcpy(z->image, start, z->size);
  uint8_t *flushed = malloc(z->size), *tried = malloc(z->size);
  memcpy(flushed, start, z->size);
  memcpy(tried, start, z->size);
  if (open_frail(z, &f) == 0) {
    for (uint64_t turn = 1; turn <= TURNS; turn++) {
      uint64_t seed = turn;
      int dirty = 0;
      for (int i = 0; i < 60; i++) {
        uint64_t page = zrig_random(&seed) % PAGES, at = page * PAGE, length = (zrig_random(&seed) % 4 + 1) * PAGE;
        length = at + length > z->size ? z->size - at : length;
        zrig_fill(z->image + at, length, turn * 1000 + (uint64_t)i);
        if (um_store_write(z->store, at, z->image + at, length, NULL) < 0) {
          dirty = -1;
          o.failures++;
        }
      }
      memcpy(tried, z->image, z->size);
      int result = -1;
      for (int tries = 0; result < 0 && tries < 3; tries++) {
        if (dirty < 0)
          dirty = write_all(z);
        result = dirty < 0 ? dirty : um_store_flush(z->store, NULL);
        o.failures += result < 0;
      }
      if (result < 0)
        break;
      CHECK(!f.sync_failed); /* a flush after one that lost bytes never says that all is well */
      memcpy(flushed, z->image, z->size);
    }
    o.ended = f.calls <= fail_at;
    CHECK_EQUAL(um_store_close(z->store, NULL), 0);
  }
  z->store = NULL;
  zrig_open(z, true);
  check_same(z, flushed, tried, when);
  uint64_t page;
  um_error error;
  CHECK_EQUAL(um_zstd_store_verify(z->store, 0, PAGES, &page, &error), 0);
  CHECK_EQUAL(um_zstd_store_verify_frames(z->store, &error), 0);
  zrig_close(z);
  free(flushed);
  free(tried);
  return o;
}

static void check_calls(int code, uint64_t fail_count, uint64_t step) {
  zrig z;
  zrig_new(&z, PAGES * (uint64_t)PAGE, PAGE);
  zrig_write(&z, 0, z.size, 1);
  zrig_flush(&z);
  zrig_close(&z);
  uint8_t *start = malloc(z.size);
  memcpy(start, z.image, z.size);
  char command[256];
  snprintf(command, sizeof(command), "cp --sparse=always %s %s.start", z.path, z.path);
  CHECK_EQUAL(system(command), 0);
  snprintf(command, sizeof(command), "cp --sparse=always %s.start %s", z.path, z.path);
  uint64_t failures = 0, n = 0;
  for (outcome o = {0}; !o.ended; n += step) {
    CHECK_EQUAL(system(command), 0);
    o = run(&z, n, fail_count, code, start);
    failures += o.failures;
  }
  fprintf(stderr, "%s: %" PRIu64 " calls, %" PRIu64 " failures seen\n", code ? strerror(code) : "short", n, failures);
  CHECK(code == 0 ? failures == 0 : failures > 0);
  snprintf(command, sizeof(command), "%s.start", z.path);
  unlink(command);
  free(start);
  zrig_end(&z);
}

static void test_one_failing_call_loses_nothing_that_was_flushed(void) {
  check_calls(EIO, 1, STEP);
}

static void test_failures_that_last_lose_nothing_that_was_flushed(void) {
  check_calls(ENOSPC, UINT64_MAX, 3 * STEP);
}

static void test_failures_that_pass_leave_the_store_usable(void) {
  check_calls(ENOSPC, 5, 3 * STEP);
}

static void test_short_writes_and_reads_are_not_noticed(void) {
  check_calls(0, UINT64_MAX, 100);
}

/* Of the index, and of pages. What could not be read can be when the disk is well again. */
static void test_failing_reads_name_the_page_and_pass(void) {
  zrig z;
  frail f = {.fail_at = UINT64_MAX};
  um_error error = {0};
  uint8_t got[PAGE];
  zrig_new(&z, PAGES * (uint64_t)PAGE, PAGE);
  zrig_write(&z, 0, z.size, 1);
  zrig_flush(&z);
  zrig_close(&z);
  CHECK_EQUAL(open_frail(&z, &f), 0);
  for (uint64_t page = 0; page < PAGES; page += 100) {
    for (int i = 0; i < 2; i++) { /* first its leaf, then itself */
      f.fail_reads = true;
      CHECK_EQUAL(um_store_read(z.store, page * PAGE, got, PAGE, &error), -EIO);
      CHECK(error.code == EIO && error.offset <= page * PAGE && strstr(error.text, z.path));
      CHECK_EQUAL(um_store_write(z.store, page * PAGE + 1, got, 1, &error), -EIO); /* needs the rest of the page */
      f.fail_reads = false;
      CHECK_EQUAL(um_store_read(z.store, page * PAGE, got, PAGE, &error), 0);
      CHECK(memcmp(got, z.image + page * PAGE, PAGE) == 0);
    }
  }
  zrig_check_image(&z);
  zrig_end(&z);
}

/* Returns whether it was packed before a call was struck. */
static bool try_pack(zrig *z, frail *f) {
  um_error error = {0};
  um_zstd_pack_options options = {.path = z->path, .level = 1, .page_size = PAGE, .threads = 2};
  um_zstd_pack *pack;
  CHECK_EQUAL(um_zstd_file_temporary(z->path, &f->inner, &error), 0);
  f->file = (um_zstd_file){&frail_ops, f->inner->path};
  int result = um_zstd_pack_open_on(&f->file, &options, &pack, &error);
  if (result < 0) {
    f->inner->ops->close(f->inner);
    return false;
  }
  for (uint64_t at = 0; result == 0 && at < z->size; at += 64 * PAGE)
    result = um_zstd_pack_write(pack, z->image + at, z->size - at < 64 * PAGE ? z->size - at : 64 * PAGE, &error);
  if (result == 0)
    result = um_zstd_pack_finish(pack, &error);
  else
    um_zstd_pack_abort(pack);
  CHECK(result == 0 || (result == -f->code && error.code == f->code && error.text[0]));
  return result == 0;
}

static void test_failing_calls_while_packing_leave_the_old_file(void) {
  zrig z;
  char command[256];
  zrig_new(&z, PAGES * (uint64_t)PAGE, PAGE);
  zrig_write(&z, 0, z.size, 1);
  zrig_flush(&z);
  zrig_close(&z);
  snprintf(command, sizeof(command), "test -z \"$(ls %s.umappy-* 2>/dev/null)\"", z.path);
  uint64_t n = 0;
  for (bool packed = false; !packed; n++) {
    frail f = {.fail_at = n, .fail_count = 1, .code = ENOSPC};
    packed = try_pack(&z, &f);
    um_zstd_info info;
    zrig_open(&z, false);
    um_zstd_store_info(z.store, &info);
    CHECK_EQUAL(info.packed, packed);
    zrig_check_image(&z);
    zrig_close(&z);
    CHECK_EQUAL(system(command), 0);
  }
  CHECK(n > 5);
  zrig_end(&z);
}

int main(void) {
  test_failing_calls_while_packing_leave_the_old_file();
  test_failing_reads_name_the_page_and_pass();
  test_one_failing_call_loses_nothing_that_was_flushed();
  test_failures_that_last_lose_nothing_that_was_flushed();
  test_failures_that_pass_leave_the_store_usable();
  test_short_writes_and_reads_are_not_noticed();
  return 0;
}
