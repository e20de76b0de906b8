/* The life of a zstd store's file, each call to the system failing in turn, once or from then on, with EIO, ENOSPC or
 * half of what was asked for: reads, writes, syncs, lengths, holes, copies, names. What fails says so, with the
 * system's own error; what was flushed before is there afterwards; a failure that passes can be tried again. Packing
 * and adopting leave the old file or the new one, and nothing else in the folder. */
#define _GNU_SOURCE
#include "frail.h"
#include "zrig.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096u
#define PAGES 40u
#define GROWN 300u /* two levels */
#define SIZE(pages) ((pages) * (uint64_t)PAGE)
#define TRIES 4 /* of what fails; a lasting failure lasts longer */

static char folder[64], path[96], target[96];

typedef struct image {
  uint8_t bytes[SIZE(GROWN)];
  uint64_t size;
} image;

static image now, flushed, tried; /* tried: by a flush that failed since the last good one; else as flushed */
static um_store *store;
static bool given_up;

static void check_failure(int result, const um_error *error) {
  bool own = result == -frail.code && error->code == frail.code && error->text[0];
  if (!own)
    fprintf(stderr, "%s at call %" PRIu64 " became %d, code %d: %s\n", strerror(frail.code), frail.first, result,
            error->code, error->text);
  CHECK(own && frail.struck > 0);
}

static um_zstd_options make_options(bool writable, uint64_t size) {
  return (um_zstd_options){.path = path, .writable = writable, .lock = 1, .level = 1, .size = size};
}

static void open_again(uint64_t pages) {
  um_zstd_options options = make_options(true, SIZE(pages));
  if (given_up)
    return;
  memset(now.bytes + now.size, 0, SIZE(pages) - now.size);
  now.size = SIZE(pages);
  tried = now;
  for (int i = 0; i < TRIES; i++) {
    um_error error = {0};
    int result = um_zstd_store_open(&options, &store, &error);
    if (result == 0) {
      flushed = now;
      frail.sync_failed = false; /* of a store that was given up */
      return;
    }
    check_failure(result, &error);
  }
  given_up = true;
}

static void create(void) {
  um_zstd_options options = make_options(true, SIZE(PAGES));
  options.create = options.exclusive = 1;
  options.page_size = PAGE;
  memset(&now, 0, sizeof(now));
  now.size = SIZE(PAGES);
  flushed = tried = (image){.size = 0};
  for (int i = 0; i < TRIES; i++) {
    um_error error = {0};
    int result = um_zstd_store_open(&options, &store, &error);
    if (result == 0) {
      flushed = tried = now;
      frail.sync_failed = false;
      return;
    }
    check_failure(result, &error);
    CHECK(access(path, F_OK) < 0); /* half a file is none */
  }
  given_up = true;
}

static void shut(void) {
  if (store)
    CHECK_EQUAL(um_store_close(store, NULL), 0);
  store = NULL;
}

/* A write that failed has written some: it is done again, as the engine does, or nothing is flushed any more. */
static void write_bytes(uint64_t offset, uint64_t length, uint64_t seed) {
  if (given_up)
    return;
  zrig_fill(now.bytes + offset, length, seed);
  for (int i = 0; i < TRIES; i++) {
    um_error error = {0};
    int result = um_store_write(store, offset, now.bytes + offset, length, &error);
    if (result == 0)
      return;
    check_failure(result, &error);
  }
  given_up = true;
}

static void flush(void) {
  if (given_up)
    return;
  tried = now;
  for (int i = 0; i < TRIES; i++) {
    um_error error = {0};
    int result = um_store_flush(store, &error);
    if (result == 0) {
      CHECK(!frail.sync_failed); /* bytes are lost, and nobody can say which: no flush of this store is good again */
      flushed = now;
      return;
    }
    check_failure(result, &error);
  }
  given_up = true;
}

static void read_all(void) {
  static uint8_t got[SIZE(GROWN)];
  if (given_up)
    return;
  for (int i = 0; i < TRIES; i++) {
    um_error error = {0};
    int result = um_store_read(store, 0, got, now.size, &error);
    if (result == 0) {
      CHECK(memcmp(got, now.bytes, now.size) == 0);
      return;
    }
    check_failure(result, &error);
  }
  given_up = true;
}

static void live(void) {
  store = NULL;
  given_up = false;
  create();
  write_bytes(0, SIZE(PAGES), 1);
  flush();
  for (uint64_t turn = 0; turn < 8; turn++) { /* enough for holes and compaction */
    for (uint64_t page = turn % 3; page < PAGES; page += 3)
      write_bytes(SIZE(page), PAGE, 100 * turn + page);
    flush();
  }
  write_bytes(PAGE / 2, PAGE, 7); /* parts of pages */
  flush();
  shut();
  open_again(GROWN);
  read_all();
  write_bytes(SIZE(GROWN - 3), SIZE(3), 8);
  flush();
  read_all();
  if (given_up && store && !frail.sync_failed && frail.first % 2) { /* space was made, say: it goes on */
    frail.count = 0;
    given_up = false;
    write_bytes(0, now.size, 9);
    flush();
    CHECK(!given_up);
  }
  shut();
}

static bool is_held(const image *wanted, const uint8_t *got) {
  return um_store_size(store) == wanted->size && memcmp(got, wanted->bytes, wanted->size) == 0;
}

/* The file as somebody finds it later, who has no failures. */
static void check_after(void) {
  static uint8_t got[SIZE(GROWN)];
  um_error error = {0};
  if (access(path, F_OK) < 0) {
    CHECK_EQUAL(flushed.size, 0);
    return;
  }
  um_zstd_options options = make_options(true, UINT64_MAX);
  if (um_zstd_store_open(&options, &store, &error) < 0 ||
      um_store_read(store, 0, got, um_store_size(store), &error) < 0 ||
      um_zstd_store_verify_frames(store, &error) < 0) {
    fprintf(stderr, "after %s at call %" PRIu64 ": %s\n", strerror(frail.code), frail.first, error.text);
    abort();
  }
  CHECK(is_held(&flushed, got) || is_held(&tried, got));
  now = is_held(&flushed, got) ? flushed : tried;
  given_up = false;
  write_bytes(SIZE(2), PAGE, 77);
  flush();
  CHECK(!given_up);
  read_all();
  shut();
}

static unsigned count_names(void) {
  unsigned count = 0;
  DIR *names = opendir(folder);
  CHECK(names);
  for (struct dirent *name; (name = readdir(names));)
    count += name->d_name[0] != '.';
  closedir(names);
  return count;
}

static void test_a_life_with_failures_loses_nothing_that_was_flushed(int code, uint64_t count) {
  uint64_t calls = UINT64_MAX, runs = 0, failures = 0;
  for (uint64_t first = 0; first < calls; first++, runs++) {
    frail_set(first, count, code);
    live();
    calls = frail.struck ? UINT64_MAX : 0;
    failures += frail.struck;
    CHECK(code || !given_up);
    CHECK(count < TRIES && !frail.sync_failed ? !given_up : true); /* what passes can be tried again */
    frail_set(UINT64_MAX, 0, code);
    check_after();
    unlink(path);
    CHECK_EQUAL(count_names(), 0);
    if (code == 0)
      break; /* all calls were short */
  }
  fprintf(stderr, "life, %s: %" PRIu64 " runs, %" PRIu64 " failures\n", code ? strerror(code) : "short", runs,
          failures);
  CHECK(failures > 50);
}

/* A file for the others: some pages, some zeros. */
static void make_file(void) {
  frail_set(UINT64_MAX, 0, 0);
  given_up = false;
  create();
  write_bytes(0, SIZE(PAGES / 2), 3);
  flush();
}

static void check_holds(const char *name, const image *wanted) {
  static uint8_t got[SIZE(GROWN)];
  um_zstd_options options = {.path = name, .size = UINT64_MAX};
  um_error error = {0};
  um_store *reader;
  if (um_zstd_store_open(&options, &reader, &error) < 0) {
    fprintf(stderr, "%s\n", error.text);
    abort();
  }
  CHECK_EQUAL(um_store_size(reader), wanted->size);
  CHECK_EQUAL(um_store_read(reader, 0, got, wanted->size, &error), 0);
  CHECK(memcmp(got, wanted->bytes, wanted->size) == 0);
  CHECK_EQUAL(um_zstd_store_verify_frames(reader, &error), 0);
  CHECK_EQUAL(um_store_close(reader, NULL), 0);
}

static int pack(um_error *error) {
  um_zstd_pack_options options = {.path = target, .level = 1, .page_size = PAGE, .threads = 1};
  um_zstd_pack *p;
  int result = um_zstd_pack_open(&options, &p, error);
  if (result < 0)
    return result;
  result = um_zstd_pack_store(p, store, 0, now.size, error);
  if (result < 0) {
    um_zstd_pack_abort(p);
    return result;
  }
  return um_zstd_pack_finish(p, error);
}

static void test_a_pack_with_failures_is_whole_or_not_there(int code, uint64_t count) {
  make_file();
  bool struck = true;
  for (uint64_t first = 0; struck; first++) {
    um_error error = {0};
    frail_set(first, count, code);
    int result = pack(&error);
    struck = frail.struck > 0;
    if (result < 0)
      check_failure(result, &error);
    frail_set(UINT64_MAX, 0, code);
    if (access(target, F_OK) == 0)
      check_holds(target, &now);
    else
      CHECK(result < 0);
    unlink(target);
    CHECK_EQUAL(count_names(), 1);
  }
  shut();
  unlink(path);
}

static void test_an_adoption_with_failures_leaves_the_old_file_or_the_new(int code, uint64_t count) {
  make_file();
  um_error error = {0};
  um_zstd_pack_options options = {.level = 1, .page_size = PAGE, .threads = 1};
  options.descriptor = open(target, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  um_zstd_pack *p;
  CHECK_EQUAL(um_zstd_pack_open(&options, &p, &error), 0);
  CHECK_EQUAL(um_zstd_pack_store(p, store, 0, now.size, &error), 0);
  CHECK_EQUAL(um_zstd_pack_finish(p, &error), 0);
  shut();
  static uint8_t old[SIZE(GROWN)], found[SIZE(GROWN)];
  ssize_t length = pread(options.descriptor, old, sizeof(old), 0);
  CHECK(length > 0);
  close(options.descriptor);
  unlink(path);
  bool struck = true;
  for (uint64_t first = 0; struck; first++) {
    frail_set(first, count, code);
    int result = um_zstd_adopt(target, PAGE, &error);
    struck = frail.struck > 0;
    if (result < 0)
      check_failure(result, &error);
    frail_set(UINT64_MAX, 0, code);
    int descriptor = open(target, O_RDONLY | O_CLOEXEC);
    ssize_t count_found = pread(descriptor, found, sizeof(found), 0);
    close(descriptor);
    if (count_found != length || memcmp(found, old, (size_t)length) != 0)
      check_holds(target, &now);
    else
      CHECK(result < 0);
    CHECK_EQUAL(count_names(), 1);
    descriptor = open(target, O_WRONLY | O_TRUNC | O_CLOEXEC);
    CHECK_EQUAL(pwrite(descriptor, old, (size_t)length, 0), length);
    close(descriptor);
  }
  unlink(target);
}

int main(void) {
  static const struct {
    int code;
    uint64_t count;
  } ways[] = {{EIO, 1}, {ENOSPC, 1}, {ENOSPC, UINT64_MAX}, {0, UINT64_MAX}};
  snprintf(folder, sizeof(folder), "%s/um-frail-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
  CHECK(mkdtemp(folder));
  snprintf(path, sizeof(path), "%s/file.zst", folder);
  snprintf(target, sizeof(target), "%s/other.zst", folder);
  for (unsigned i = 0; i < sizeof(ways) / sizeof(*ways); i++) {
    test_a_life_with_failures_loses_nothing_that_was_flushed(ways[i].code, ways[i].count);
    if (ways[i].code) {
      test_a_pack_with_failures_is_whole_or_not_there(ways[i].code, ways[i].count);
      test_an_adoption_with_failures_leaves_the_old_file_or_the_new(ways[i].code, ways[i].count);
    }
  }
  CHECK_EQUAL(rmdir(folder), 0);
  return 0;
}
