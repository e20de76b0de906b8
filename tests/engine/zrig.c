/* zrig.c: see zrig.h. */
#define _GNU_SOURCE
#include "zrig.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static um_store *open_store(const um_zstd_options *options) {
  um_store *store;
  um_error error = {0};
  if (um_zstd_store_open(options, &store, &error) < 0) {
    fprintf(stderr, "%s\n", error.text);
    abort();
  }
  return store;
}

void zrig_new_sparse(zrig *z, uint64_t size, uint32_t page_size) {
  *z = (zrig){.size = size};
  snprintf(z->path, sizeof(z->path), "%s/um-zstd-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
  int descriptor = mkostemp(z->path, O_CLOEXEC);
  CHECK(descriptor >= 0);
  close(descriptor);
  um_zstd_options options = {.path = z->path,
                             .writable = 1,
                             .create = 1,
                             .truncate = 1,
                             .lock = 1,
                             .level = 3,
                             .page_size = page_size,
                             .size = size};
  z->store = open_store(&options);
}

void zrig_new(zrig *z, uint64_t size, uint32_t page_size) {
  zrig_new_sparse(z, size, page_size);
  z->image = calloc(1, size);
  CHECK(z->image);
}

void zrig_close(zrig *z) {
  if (z->store)
    CHECK_EQUAL(um_store_close(z->store, NULL), 0);
  z->store = NULL;
}

void zrig_open(zrig *z, bool writable) {
  um_zstd_options options = {.path = z->path, .writable = writable, .lock = 1, .level = 3, .size = UINT64_MAX};
  z->store = open_store(&options);
  CHECK_EQUAL(um_store_size(z->store), z->size);
}

void zrig_reopen(zrig *z, bool writable) {
  zrig_close(z);
  zrig_open(z, writable);
}

void zrig_grow(zrig *z, uint64_t size) {
  zrig_close(z);
  um_zstd_options options = {.path = z->path, .writable = 1, .lock = 1, .level = 3, .size = size};
  z->store = open_store(&options);
  z->image = realloc(z->image, size);
  CHECK(z->image);
  memset(z->image + z->size, 0, size - z->size);
  z->size = size;
}

void zrig_end(zrig *z) {
  zrig_close(z);
  free(z->image);
  CHECK_EQUAL(unlink(z->path), 0);
}

uint64_t zrig_random(uint64_t *state) {
  uint64_t x = *state += 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

/* Of 64 bytes 20 are random. */
void zrig_fill(uint8_t *bytes, uint64_t length, uint64_t seed) {
  uint64_t state = seed, word = 0;
  for (uint64_t i = 0; i < length; i++) {
    if (i % 8 == 0)
      word = zrig_random(&state);
    bytes[i] = i % 64 < 20 ? (uint8_t)(word >> 8 * (i % 8)) : (uint8_t)(1 + i % 64);
  }
}

void zrig_write(zrig *z, uint64_t offset, uint64_t length, uint64_t seed) {
  um_error error = {0};
  zrig_fill(z->image + offset, length, seed + offset);
  if (um_store_write(z->store, offset, z->image + offset, length, &error) < 0) {
    fprintf(stderr, "%s\n", error.text);
    abort();
  }
}

void zrig_write_page(zrig *z, uint64_t page, uint64_t seed) {
  uint64_t size = ((um_zstd_store *)z->store)->codec.page_size;
  zrig_write(z, page * size, z->size - page * size < size ? z->size - page * size : size, seed);
}

void zrig_flush(zrig *z) {
  um_error error = {0};
  if (um_store_flush(z->store, &error) < 0) {
    fprintf(stderr, "%s\n", error.text);
    abort();
  }
}

void zrig_check_image(zrig *z) {
  uint64_t piece = 3u << 20;
  uint8_t *got = malloc(piece);
  CHECK(got);
  for (uint64_t at = 0; at < z->size; at += piece) {
    uint64_t length = z->size - at < piece ? z->size - at : piece;
    um_error error = {0};
    if (um_store_read(z->store, at, got, length, &error) < 0) {
      fprintf(stderr, "%s\n", error.text);
      abort();
    }
    for (uint64_t i = 0; i < length && memcmp(got, z->image + at, length) != 0; i++)
      CHECK_EQUAL(got[i] == z->image[at + i] ? -1 : (int64_t)(at + i), -1); /* names the first wrong byte */
  }
  free(got);
}

/* Runs it with its output to a file; its exit status. */
static int run(const char *option, const char *path, int output) {
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    dup2(output, STDOUT_FILENO);
    execlp("zstd", "zstd", option, "-q", "-c", path, (char *)NULL);
    _exit(127);
  }
  int status;
  CHECK_EQUAL(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool missing(int status) {
  if (status == 127)
    fprintf(stderr, "skipped what needs the tool zstd: it is not installed\n");
  return status == 127;
}

bool zrig_check_tool(const zrig *z) {
  int status = run("-t", z->path, STDERR_FILENO);
  if (missing(status))
    return false;
  CHECK_EQUAL(status, 0);
  return true;
}

bool zrig_check_decoded(const zrig *z, const uint8_t *bytes, uint64_t length) {
  int output = memfd_create("decoded", MFD_CLOEXEC);
  CHECK(output >= 0);
  int status = run("-d", z->path, output);
  bool there = !missing(status);
  if (there) {
    CHECK_EQUAL(status, 0);
    CHECK_EQUAL(lseek(output, 0, SEEK_END), length);
    uint8_t *got = length ? mmap(NULL, length, PROT_READ, MAP_SHARED, output, 0) : NULL;
    CHECK(got != MAP_FAILED && (length == 0 || memcmp(got, bytes, length) == 0));
    if (length)
      munmap(got, length);
  }
  close(output);
  return there;
}
