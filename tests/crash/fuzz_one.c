/* fuzz_one.c: an input through everything that reads a compressed file: see fuzz.c.
 *
 * An input is a file without the zeros at its end. It is opened as a native file, for reading, verifying and writing,
 * and as somebody else's; then it is adopted. Hashes are all 0 here (um_xxh64 is wrapped), so that a changed file still
 * verifies and what is behind the checks is reached, too. */
#define _GNU_SOURCE
#include "fuzz.h"

#include "zstd_library.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define PAGE 4096u
#define LENGTH_MAX (1u << 20) /* bytes of a file; those behind an input are zeros */
#define READS 24u

const unsigned fuzz_edges_min = 300;

uint64_t __wrap_um_xxh64(const void *bytes, size_t length, uint64_t key);
uint64_t __wrap_um_xxh64(const void *bytes, size_t length, uint64_t key) {
  (void)bytes, (void)length, (void)key;
  return 0;
}

/* Some that a file takes for pages of terabytes; no more of memory than this. */
static uint8_t page[8u << 20];

static void read_some(um_store *store) {
  uint64_t size = um_store_size(store), seed = size;
  um_error error;
  for (unsigned i = 0; i < READS && size > 0; i++) {
    uint64_t offset = i < READS / 2 ? (uint64_t)i * PAGE : zrig_random(&seed) % size;
    if (offset >= size)
      continue;
    uint64_t length = size - offset < PAGE ? size - offset : PAGE;
    um_store_read(store, offset, page, length, &error);
  }
}

static void read_native(zmemory *m) {
  um_zstd_options options = {.path = "memory", .level = 1, .size = UINT64_MAX};
  um_store *store;
  um_error error;
  uint64_t wrong;
  if (zmemory_try(m, &options, &store, &error) < 0)
    return;
  um_zstd_info info;
  um_zstd_store_info(store, &info);
  read_some(store);
  um_zstd_store_verify(store, 0, 4, &wrong, &error);
  um_zstd_store_verify_frames(store, &error);
  um_store_close(store, NULL);
}

static void write_native(zmemory *m, bool recover) {
  um_zstd_options options = {.path = "memory", .level = 1, .size = UINT64_MAX, .writable = 1, .recover = recover};
  um_store *store;
  um_error error;
  if (zmemory_try(m, &options, &store, &error) < 0)
    return;
  uint64_t size = um_store_size(store), count = size < 3 * PAGE ? size : 3 * PAGE;
  for (unsigned turn = 0; turn < 3 && count > 0; turn++) {
    zrig_fill(page, count, turn);
    um_store_write(store, turn == 2 ? size - count : 0, page, count, &error);
    um_store_flush(store, &error);
  }
  read_some(store);
  um_store_close(store, NULL);
}

static void read_foreign(const char *path, bool walk) {
  um_zstd_scan_options options = {.path = path, .window_log = 20, .walk = walk};
  um_zstd_scan *scan;
  um_store *store;
  um_error error;
  if (um_zstd_scan_open(&options, &scan, &error) < 0)
    return;
  int result = um_zstd_scan_step(scan, 2000, &error);
  if (result == 0 && um_zstd_foreign_open(scan, 1u << 20, &store, &error) == 0) {
    read_some(store);
    um_store_close(store, NULL);
    return;
  }
  um_zstd_scan_close(scan);
}

static void adopt(const char *path) {
  um_zstd_options options = {.path = path, .level = 1, .size = UINT64_MAX, .writable = 1};
  um_store *store;
  um_error error;
  if (um_zstd_adopt(path, PAGE, &error) < 0 || um_zstd_store_open(&options, &store, &error) < 0)
    return;
  read_some(store);
  um_store_close(store, NULL);
}

static void put(const char *path, const uint8_t *bytes, uint64_t length) {
  int descriptor = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  CHECK(descriptor >= 0);
  CHECK_EQUAL(pwrite(descriptor, bytes, length, 0), length);
  close(descriptor);
}

static uint64_t find_length(const uint8_t *bytes, uint64_t length) {
  uint64_t end = 0;
  for (unsigned i = 0; i < 2 && (i + 1) * UM_ZSTD_SUPER_SIZE <= length; i++) {
    uint64_t one;
    memcpy(&one, bytes + i * UM_ZSTD_SUPER_SIZE + 64, sizeof(one));
    end = one > end && one <= LENGTH_MAX ? one : end;
  }
  return end > length ? end : length;
}

static zmemory *make_memory(const uint8_t *bytes, uint64_t length, const char *path) {
  zmemory *m = zmemory_make();
  memcpy(m->bytes, bytes, length);
  memcpy(m->durable, bytes, length);
  m->length = m->durable_length = find_length(bytes, length);
  m->file.path = path; /* frames of an adopted file are read there */
  return m;
}

void fuzz_one(const uint8_t *bytes, uint64_t length) {
  static char path[64];
  if (!path[0])
    snprintf(path, sizeof(path), "%s/um-fuzz-%d", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", getpid());
  put(path, bytes, length);
  read_native(make_memory(bytes, length, path));
  write_native(make_memory(bytes, length, path), false);
  write_native(make_memory(bytes, length, path), true);
  read_foreign(path, false);
  read_foreign(path, true);
  if (length < UM_ZSTD_DATA_START || memcmp(bytes + 8, "umappyZS", 8) != 0)
    adopt(path);
  unlink(path);
}

/* The corpus. */

static void put_input(const char *folder, const char *name, const uint8_t *bytes, uint64_t length) {
  char path[512];
  while (length > 0 && bytes[length - 1] == 0)
    length--;
  CHECK(length <= FUZZ_LENGTH);
  snprintf(path, sizeof(path), "%s/%s", folder, name);
  put(path, bytes, length);
}

static void put_file(const char *folder, const char *name, const char *path) {
  static uint8_t bytes[LENGTH_MAX];
  int descriptor = open(path, O_RDONLY | O_CLOEXEC);
  CHECK(descriptor >= 0);
  ssize_t length = pread(descriptor, bytes, sizeof(bytes), 0);
  CHECK(length > 0);
  close(descriptor);
  put_input(folder, name, bytes, (uint64_t)length);
}

static void make_pack(um_store *store, uint64_t size, const char *path, int descriptor) {
  um_zstd_pack_options options = {.path = path, .descriptor = descriptor, .level = 1, .page_size = PAGE, .threads = 1};
  um_zstd_pack *pack;
  CHECK_EQUAL(um_zstd_pack_open(&options, &pack, NULL), 0);
  CHECK_EQUAL(um_zstd_pack_store(pack, store, 0, size, NULL), 0);
  CHECK_EQUAL(um_zstd_pack_finish(pack, NULL), 0);
}

int fuzz_make(const char *folder) {
  zrig z;
  char path[96];
  zrig_new(&z, 300 * PAGE, PAGE); /* two levels */
  zrig_write_page(&z, 0, 1);
  zrig_write_page(&z, 299, 2);
  zrig_flush(&z);
  put_file(folder, "levels", z.path);
  zrig_end(&z);
  zrig_new(&z, 3 * PAGE - 100, PAGE);
  put_file(folder, "empty", z.path);
  zrig_write_page(&z, 0, 1);
  zrig_write_page(&z, 2, 2);
  zrig_flush(&z);
  put_file(folder, "written", z.path);
  snprintf(path, sizeof(path), "%s.packed", z.path);
  make_pack(z.store, z.size, path, -1);
  put_file(folder, "packed", path);
  int descriptor = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  CHECK(descriptor >= 0);
  make_pack(z.store, z.size, NULL, descriptor);
  close(descriptor);
  put_file(folder, "seekable", path);
  CHECK_EQUAL(um_zstd_adopt(path, PAGE, NULL), 0);
  put_file(folder, "adopted", path);
  unlink(path);
  zrig_end(&z);
  return 0;
}
