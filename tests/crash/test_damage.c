/* Files of every kind with one bit another, and cut off anywhere: what is read of them, by a reader or a writer, is the
 * newest flush or UM_ECORRUPT, byte by byte; never wrong or older bytes, never a crash. Files: written, packed,
 * adopted, with a dictionary, and one whose last flush a crash ended between its superblocks. */
#define _GNU_SOURCE
#include "zrig.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096u
#define PAGES 6u
#define SIZE (PAGES * PAGE - 1000)

typedef struct file {
  zrig z;
  int descriptor;
  uint8_t *bytes;
  uint64_t length, used; /* behind `used` there are zeros */
  uint8_t image[SIZE], older[SIZE];
  bool interrupted; /* superblock A alone is of the last flush */
  uint64_t step;    /* bytes from one that is changed to the next, behind the superblocks; 0: 1 */
  uint64_t seen, harmless;
} file;

static uint8_t dictionary[3000];

static um_zstd_options make_options(const file *f, bool writable) {
  return (um_zstd_options){.path = f->z.path, .writable = writable, .level = 1, .size = UINT64_MAX};
}

static void load(file *f) {
  struct stat status;
  f->descriptor = open(f->z.path, O_RDWR | O_CLOEXEC);
  CHECK(f->descriptor >= 0 && fstat(f->descriptor, &status) == 0);
  f->length = (uint64_t)status.st_size;
  f->bytes = malloc(f->length);
  CHECK(f->bytes);
  CHECK_EQUAL(pread(f->descriptor, f->bytes, f->length, 0), f->length);
  for (f->used = f->length; f->used > 0 && f->bytes[f->used - 1] == 0;)
    f->used--;
}

static void restore(file *f) {
  CHECK_EQUAL(ftruncate(f->descriptor, (off_t)f->used), 0);
  CHECK_EQUAL(pwrite(f->descriptor, f->bytes, f->used, 0), f->used);
  CHECK_EQUAL(ftruncate(f->descriptor, (off_t)f->length), 0);
}

/* Text, noise, zeros, a part of a page; in two flushes. */
static void make_written(file *f, bool with_dictionary) {
  memset(f, 0, sizeof(*f));
  zrig_new(&f->z, SIZE, PAGE);
  if (with_dictionary) {
    zrig_close(&f->z);
    zrig_fill(dictionary, sizeof(dictionary), 4);
    um_zstd_options options = make_options(f, true);
    options.truncate = 1;
    options.size = SIZE;
    options.page_size = PAGE;
    options.dictionary = dictionary;
    options.dictionary_size = sizeof(dictionary);
    CHECK_EQUAL(um_zstd_store_open(&options, &f->z.store, NULL), 0);
  }
  uint64_t seed = 3;
  zrig_write(&f->z, 0, SIZE - 2 * PAGE, 1);
  zrig_flush(&f->z);
  memcpy(f->older, f->z.image, SIZE);
  for (uint64_t i = 0; i < 800; i++)
    f->z.image[2 * PAGE + i] = (uint8_t)zrig_random(&seed);
  memset(f->z.image + PAGE, 0, PAGE);
  CHECK_EQUAL(um_store_write(f->z.store, PAGE, f->z.image + PAGE, 2 * PAGE, NULL), 0);
  zrig_write(&f->z, SIZE - 700, 700, 2);
  zrig_flush(&f->z);
  memcpy(f->image, f->z.image, SIZE);
}

static void make_interrupted(file *f) {
  uint8_t super[UM_ZSTD_SUPER_SIZE];
  make_written(f, false);
  int descriptor = open(f->z.path, O_RDWR | O_CLOEXEC);
  CHECK_EQUAL(pread(descriptor, super, sizeof(super), UM_ZSTD_SUPER_SIZE), sizeof(super));
  memcpy(f->older, f->image, SIZE);
  zrig_write(&f->z, 0, PAGE, 9);
  zrig_flush(&f->z);
  memcpy(f->image, f->z.image, SIZE);
  CHECK_EQUAL(pwrite(descriptor, super, sizeof(super), UM_ZSTD_SUPER_SIZE), sizeof(super));
  close(descriptor);
  f->interrupted = true;
}

static void pack(file *f, int descriptor) {
  um_zstd_pack_options options = {.descriptor = descriptor, .level = 1, .page_size = PAGE, .threads = 1};
  um_zstd_pack *p;
  if (descriptor < 0)
    options.path = f->z.path;
  CHECK_EQUAL(um_zstd_pack_open(&options, &p, NULL), 0);
  CHECK_EQUAL(um_zstd_pack_store(p, f->z.store, 0, SIZE, NULL), 0);
  CHECK_EQUAL(um_zstd_pack_finish(p, NULL), 0);
}

static void make_packed(file *f) {
  make_written(f, false);
  pack(f, -1);
}

static void make_adopted(file *f) {
  char path[sizeof(f->z.path)];
  make_written(f, false);
  snprintf(path, sizeof(path), "%.*sXXXXXX", (int)strlen(f->z.path) - 6, f->z.path); /* beside it */
  int descriptor = mkostemp(path, O_CLOEXEC);
  CHECK(descriptor >= 0);
  pack(f, descriptor);
  close(descriptor);
  zrig_close(&f->z);
  unlink(f->z.path);
  memcpy(f->z.path, path, sizeof(path));
  CHECK_EQUAL(um_zstd_adopt(path, PAGE, NULL), 0);
  zrig_open(&f->z, true);
  f->step = 5;                           /* opening it takes long */
  zrig_write(&f->z, 3 * PAGE, PAGE, 11); /* some pages ours, some of the frames */
  zrig_flush(&f->z);
  memcpy(f->image, f->z.image, SIZE);
}

static void fail(const file *f, uint64_t at, const char *what, const um_error *error) {
  fprintf(stderr, "%s: byte %" PRIu64 " (%#x) another: %s: %d %s\n", f->z.path, at, f->bytes[at], what, error->code,
          error->text);
  abort();
}

/* Whether all that is in the file was good, as far as anybody says. */
static bool check(const file *f, uint64_t at, bool writable) {
  um_zstd_options options = make_options(f, writable);
  um_error error = {0};
  um_store *store;
  uint8_t got[PAGE];
  bool whole = true, may_be_older = f->interrupted && at < UM_ZSTD_SUPER_SIZE;
  int result = um_zstd_store_open(&options, &store, &error);
  if (result < 0) {
    if (result != -UM_ECORRUPT || error.code != UM_ECORRUPT || !error.text[0])
      fail(f, at, "opening it", &error);
    return false;
  }
  bool newer = true, older = may_be_older;
  for (uint64_t page = 0; page < PAGES; page++) {
    uint64_t offset = page * PAGE, length = SIZE - offset < PAGE ? SIZE - offset : PAGE, wrong;
    result = um_store_read(store, offset, got, length, &error);
    int verified = um_zstd_store_verify(store, page, 1, &wrong, &error);
    if ((result < 0 && result != -UM_ECORRUPT) || verified != result)
      fail(f, at, "reading a page", &error);
    newer &= result < 0 || memcmp(got, f->image + offset, length) == 0;
    older &= result < 0 || memcmp(got, f->older + offset, length) == 0;
    if (!newer && !older)
      fail(f, at, "wrong or older bytes", &error);
    whole &= result == 0;
  }
  whole &= um_zstd_store_verify_frames(store, &error) == 0;
  if (whole && writable) {
    CHECK_EQUAL(um_store_write(store, 0, f->image, PAGE, &error), 0);
    CHECK_EQUAL(um_store_flush(store, &error), 0);
    CHECK_EQUAL(um_zstd_store_verify_frames(store, &error), 0);
  }
  CHECK_EQUAL(um_store_close(store, NULL), 0);
  return whole;
}

/* The next byte worth it: of long stretches of zeros, which are what nobody wrote yet, few are. */
static uint64_t find_next(const file *f, uint64_t at) {
  static const uint8_t zeros[64];
  uint64_t step = at < UM_ZSTD_DATA_START || !f->step ? 1 : f->step;
  bool empty = at + 2 * sizeof(zeros) < f->used && memcmp(f->bytes + at, zeros, sizeof(zeros)) == 0;
  return at + (empty ? sizeof(zeros) : step);
}

static void flip(file *f, uint64_t at, uint8_t bits, bool writable) {
  uint8_t byte = f->bytes[at] ^ bits;
  CHECK_EQUAL(pwrite(f->descriptor, &byte, 1, (off_t)at), 1);
  bool whole = check(f, at, writable);
  f->seen += !whole;
  f->harmless += whole;
  if (writable)
    restore(f);
  else
    CHECK_EQUAL(pwrite(f->descriptor, &f->bytes[at], 1, (off_t)at), 1);
}

static void test_no_flipped_bit_makes_wrong_or_older_bytes(file *f) {
  uint64_t seed = 1;
  for (uint64_t at = 0; at < f->used; at = find_next(f, at)) {
    flip(f, at, (uint8_t)(1 << zrig_random(&seed) % 8), false);
    flip(f, at, (uint8_t)(1 + zrig_random(&seed) % 255), at % 2);
    for (unsigned bit = 0; bit < 8 && at % 8 == 0; bit++)
      flip(f, at, (uint8_t)(1u << bit), false);
  }
  CHECK(f->seen > 1000);
}

static void test_no_lost_end_makes_wrong_or_older_bytes(file *f) {
  for (uint64_t length = 0; length < f->length; length += length < f->used ? (f->step ? 97 : 7) : 509) {
    um_error error = {0};
    um_store *store;
    CHECK_EQUAL(ftruncate(f->descriptor, (off_t)length), 0);
    um_zstd_options options = make_options(f, length % 2);
    int result = um_zstd_store_open(&options, &store, &error);
    bool empty = length < 16 && result == -EMEDIUMTYPE; /* nothing says whose it was */
    if (result != -UM_ECORRUPT && !empty)
      fail(f, length ? length - 1 : 0, "cut off behind it", &error);
    restore(f);
  }
}

typedef struct old_record {
  uint64_t at, page;
  uint8_t bytes[UM_ZSTD_RECORD_HEADER + PAGE];
} old_record;

/* A disk that says it wrote, and did not: an older record is there, of the same page, and whole. */
static void test_no_lost_write_makes_older_bytes(file *f) {
  enum { TURNS = 80, MOST = TURNS * PAGES };
  old_record *records = malloc(MOST * sizeof(*records));
  uint64_t seed = 1, count = 0, seen = 0, size = sizeof(records->bytes);
  CHECK(records);
  for (unsigned turn = 0; turn < TURNS; turn++) { /* noise is stored as it is: records of one length */
    for (uint64_t i = 0; i < SIZE; i++)
      f->image[i] = (uint8_t)zrig_random(&seed);
    CHECK_EQUAL(um_store_write(f->z.store, 0, f->image, SIZE, NULL), 0);
    zrig_flush(&f->z);
    load(f);
    for (uint64_t i = 0; i < count; i++) {
      const old_record *r = &records[i];
      um_zstd_record header;
      if (!um_zstd_record_verify(f->bytes + r->at, (uint32_t)size, r->page, ((um_zstd_store *)f->z.store)->seed,
                                 &header) ||
          memcmp(f->bytes + r->at, r->bytes, size) == 0)
        continue;
      CHECK_EQUAL(pwrite(f->descriptor, r->bytes, size, (off_t)r->at), size);
      seen += !check(f, r->at, false);
      CHECK_EQUAL(pwrite(f->descriptor, f->bytes + r->at, size, (off_t)r->at), size);
    }
    for (uint64_t page = 0; page < PAGES - 1; page++) {
      um_zstd_entry entry;
      CHECK_EQUAL(um_zstd_index_get((um_zstd_store *)f->z.store, page, 1, &entry, NULL), 0);
      CHECK_EQUAL(entry.length, size);
      old_record *r = &records[count++];
      r->at = entry.offset;
      r->page = page;
      memcpy(r->bytes, f->bytes + r->at, size);
    }
    free(f->bytes);
    close(f->descriptor);
  }
  free(records);
  fprintf(stderr, "%" PRIu64 " older records seen\n", seen);
  CHECK(seen > 0);
  zrig_end(&f->z);
}

static void test_damage(const char *name, file *f) {
  zrig_close(&f->z);
  load(f);
  CHECK(check(f, 0, false) || f->interrupted);
  test_no_flipped_bit_makes_wrong_or_older_bytes(f);
  test_no_lost_end_makes_wrong_or_older_bytes(f);
  fprintf(stderr, "%s, %" PRIu64 " bytes: %" PRIu64 " bits seen, %" PRIu64 " harmless\n", name, f->used, f->seen,
          f->harmless);
  free(f->bytes);
  close(f->descriptor);
  zrig_end(&f->z);
}

int main(void) {
  static file f;
  make_written(&f, false);
  test_damage("written", &f);
  make_written(&f, true);
  test_damage("with a dictionary", &f);
  make_packed(&f);
  test_damage("packed", &f);
  make_adopted(&f);
  test_damage("adopted", &f);
  make_written(&f, false);
  test_no_lost_write_makes_older_bytes(&f);
  make_interrupted(&f);
  test_damage("interrupted", &f);
  return 0;
}
