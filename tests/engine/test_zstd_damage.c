/* Damaged files of the zstd store: whatever byte is another, wherever the file ends, what is read is the newest flush
 * or an error, and never wrong or older bytes. */
#define _GNU_SOURCE
#include "zmemory.h"

#include <errno.h>

#define PAGE 4096u
#if defined(__SANITIZE_THREAD__)
#define STEP 13u /* many times slower, and there is one thread */
#elif defined(__SANITIZE_ADDRESS__)
#define STEP 7u
#else
#define STEP 1u
#endif

static const um_zstd_options reading = {.path = "memory", .level = 1, .size = UINT64_MAX};
static const um_zstd_options writing = {.path = "memory", .level = 1, .size = UINT64_MAX, .writable = 1};

/* Some flushes of a few pages: data, noise, zeros, an index of two levels. */
static zmemory *make_file(uint8_t **image, uint64_t *size) {
  um_store *store;
  uint64_t seed = 5;
  *size = 300 * PAGE;
  *image = calloc(1, *size);
  um_zstd_options options = writing;
  options.page_size = PAGE;
  options.size = *size;
  zmemory *m = zmemory_make();
  CHECK_EQUAL(um_zstd_store_open_on(&m->file, true, &options, &store, NULL), 0);
  for (uint64_t turn = 1; turn <= 3; turn++) {
    for (uint64_t page = turn; page < 300; page += 37 * turn) {
      uint8_t *at = *image + page * PAGE;
      zrig_fill(at, PAGE, page * turn);
      for (uint64_t i = 0; page == 75 && i < 600; i += 8) {
        uint64_t word = zrig_random(&seed);
        memcpy(at + i, &word, 8);
      }
      CHECK_EQUAL(um_store_write(store, page * PAGE, at, PAGE, NULL), 0);
    }
    CHECK_EQUAL(um_store_flush(store, NULL), 0);
  }
  zmemory *copy = zmemory_copy(m);
  CHECK_EQUAL(um_store_close(store, NULL), 0);
  return copy;
}

static bool is_refusal(int result) {
  return result == -UM_ECORRUPT || result == -EMEDIUMTYPE || result == -EPROTONOSUPPORT;
}

/* Whether every page could be read; takes the file. */
static bool check_file(zmemory *m, const um_zstd_options *options, const uint8_t *image, uint64_t size) {
  um_store *store;
  um_error error = {0};
  uint8_t got[PAGE];
  bool whole = true;
  int result = zmemory_try(m, options, &store, &error);
  if (result < 0) {
    CHECK(is_refusal(result) && error.code == -result && error.text[0]);
    return false;
  }
  for (uint64_t at = 0; at < size; at += PAGE) {
    result = um_store_read(store, at, got, PAGE, &error);
    CHECK(result == 0 || (result == -UM_ECORRUPT && error.code == UM_ECORRUPT && strstr(error.text, "byte")));
    CHECK(result < 0 || memcmp(got, image + at, PAGE) == 0);
    whole &= result == 0;
  }
  if (whole && options->writable) { /* mended, and fit for more */
    CHECK_EQUAL(um_store_write(store, 0, image, PAGE, NULL), 0);
    CHECK_EQUAL(um_store_flush(store, NULL), 0);
    CHECK_EQUAL(um_zstd_store_verify_frames(store, &error), 0);
  }
  CHECK_EQUAL(um_store_close(store, NULL), 0);
  return whole;
}

static void test_no_changed_byte_makes_a_wrong_or_an_older_image(void) {
  uint8_t *image;
  uint64_t size, seed = 1, whole = 0, damaged = 0;
  zmemory *m = make_file(&image, &size);
  CHECK(check_file(zmemory_copy(m), &reading, image, size));
  for (uint64_t at = 0; at < m->length; at += at < 20000 ? STEP : 97 * STEP) {
    zmemory *copy = zmemory_copy(m);
    copy->bytes[at] ^= (uint8_t)(1 + zrig_random(&seed) % 255);
    bool superblock = at < UM_ZSTD_DATA_START;
    bool good = check_file(copy, at % 2 && superblock ? &writing : &reading, image, size);
    CHECK(good || !superblock); /* the other superblock is the same */
    whole += good;
    damaged += !good;
  }
  fprintf(stderr, "%" PRIu64 " changes without harm, %" PRIu64 " seen\n", whole, damaged);
  CHECK(damaged > 3000 / STEP);
  free(image);
  m->file.ops->close(&m->file);
}

static void test_no_lost_end_makes_a_wrong_or_an_older_image(void) {
  uint8_t *image;
  uint64_t size;
  zmemory *m = make_file(&image, &size);
  for (uint64_t length = 0; length < m->length; length += (length < 20000 ? 13 : 997) * STEP) {
    zmemory *copy = zmemory_copy(m);
    copy->length = length;
    memset(copy->bytes + length, 0, m->length - length);
    CHECK(!check_file(copy, length % 2 ? &writing : &reading, image, size));
  }
  free(image);
  m->file.ops->close(&m->file);
}

/* As if the last flush had gone wrong without a word: its root is damaged, the other superblock is of the one before.
 */
static void test_going_back_a_flush_takes_asking(void) {
  um_store *store;
  um_error error = {0};
  uint8_t image[2 * PAGE], got[PAGE], older[UM_ZSTD_SUPER_SIZE];
  um_zstd_options options = writing;
  options.page_size = PAGE;
  options.size = 2 * PAGE;
  zmemory *m = zmemory_make();
  CHECK_EQUAL(um_zstd_store_open_on(&m->file, true, &options, &store, NULL), 0);
  for (uint64_t turn = 1; turn <= 2; turn++) {
    memcpy(older, m->bytes + UM_ZSTD_SUPER_SIZE, sizeof(older));
    zrig_fill(image, sizeof(image), turn);
    CHECK_EQUAL(um_store_write(store, 0, image, sizeof(image), NULL), 0);
    CHECK_EQUAL(um_store_flush(store, NULL), 0);
  }
  zmemory *copy = zmemory_copy(m);
  CHECK_EQUAL(um_store_close(store, NULL), 0);
  um_zstd_super super;
  CHECK_EQUAL(um_zstd_super_decode(copy->bytes, &super), UM_ZSTD_SUPER_GOOD);
  memcpy(copy->bytes + UM_ZSTD_SUPER_SIZE, older, sizeof(older));
  copy->bytes[super.root.offset + 40] ^= 1;
  CHECK_EQUAL(zmemory_try(zmemory_copy(copy), &reading, &store, &error), -UM_ECORRUPT);
  CHECK(strstr(error.text, "recover=True"));
  options = writing;
  CHECK_EQUAL(zmemory_try(zmemory_copy(copy), &options, &store, &error), -UM_ECORRUPT);
  options.recover = 1;
  CHECK_EQUAL(zmemory_try(copy, &options, &store, &error), 0);
  zrig_fill(image, sizeof(image), 1);
  CHECK_EQUAL(um_store_read(store, 0, got, PAGE, &error), 0);
  CHECK(memcmp(got, image, PAGE) == 0);
  CHECK_EQUAL(um_store_write(store, PAGE, got, PAGE, NULL), 0);
  CHECK_EQUAL(um_store_flush(store, NULL), 0);
  CHECK_EQUAL(um_zstd_store_verify_frames(store, &error), 0);
  CHECK_EQUAL(um_store_close(store, NULL), 0);
}

/* Anybody may write a file: nothing in one that verifies is believed where it could do harm. */
static void test_sealed_nonsense_is_refused(void) {
  uint8_t *image;
  uint64_t size, seed = 3;
  zmemory *m = make_file(&image, &size);
  um_zstd_super super, changed;
  CHECK_EQUAL(um_zstd_super_decode(m->bytes, &super), UM_ZSTD_SUPER_GOOD);
  for (unsigned i = 0; i < 3000 / STEP; i++) {
    zmemory *copy = zmemory_copy(m);
    changed = super;
    uint8_t *bytes = (uint8_t *)&changed;
    for (uint64_t n = zrig_random(&seed) % 3 + 1; n > 0; n--)
      bytes[sizeof(changed.uuid) + zrig_random(&seed) % (sizeof(changed) - sizeof(changed.uuid))] =
          (uint8_t)zrig_random(&seed);
    um_zstd_super_encode(&changed, copy->bytes);
    memcpy(copy->bytes + UM_ZSTD_SUPER_SIZE, copy->bytes, UM_ZSTD_SUPER_SIZE);
    um_store *store;
    um_error error = {0};
    uint8_t got[PAGE];
    if (zmemory_try(copy, &reading, &store, &error) == 0) {
      for (int p = 0; p < 50 && um_store_size(store) >= PAGE; p++)
        um_store_read(store, zrig_random(&seed) % (um_store_size(store) / PAGE) * PAGE, got, PAGE, &error);
      CHECK_EQUAL(um_store_close(store, NULL), 0);
    }
  }
  free(image);
  m->file.ops->close(&m->file);
}

/* Changes bytes of the record's payload and seals it again; its new checksum. */
static uint64_t reseal(zmemory *m, const um_zstd_place *place, uint64_t seed, uint64_t *random) {
  uint8_t *record = m->bytes + place->offset;
  um_zstd_record header;
  um_zstd_record_header(record, &header);
  for (uint64_t n = zrig_random(random) % 4 + 1; n > 0; n--)
    record[UM_ZSTD_RECORD_HEADER + zrig_random(random) % header.length] = (uint8_t)zrig_random(random);
  return um_zstd_record_seal(record, header.kind, header.length, header.number, header.generation, seed);
}

static void test_sealed_nonsense_in_index_and_segment_table_does_no_harm(void) {
  uint8_t *image, got[PAGE];
  uint64_t size, seed = 11, opened = 0;
  zmemory *m = make_file(&image, &size);
  um_zstd_super super;
  CHECK_EQUAL(um_zstd_super_decode(m->bytes, &super), UM_ZSTD_SUPER_GOOD);
  for (unsigned i = 0; i < 3000 / STEP; i++) {
    zmemory *copy = zmemory_copy(m);
    um_zstd_super changed = super;
    um_zstd_place *place = i % 2 ? &changed.root : &changed.segments;
    place->checksum = reseal(copy, place, um_zstd_seed(&super), &seed);
    um_zstd_super_encode(&changed, copy->bytes);
    memcpy(copy->bytes + UM_ZSTD_SUPER_SIZE, copy->bytes, UM_ZSTD_SUPER_SIZE);
    um_store *store;
    um_error error = {0};
    if (zmemory_try(copy, &writing, &store, &error) < 0)
      continue;
    opened++;
    for (int turn = 0; turn < 4; turn++) { /* any of it may fail, and nothing may go further */
      for (int n = 0; n < 20; n++) {
        um_store_read(store, zrig_random(&seed) % (size / PAGE) * PAGE, got, PAGE, &error);
        um_store_write(store, zrig_random(&seed) % (size / PAGE) * PAGE, image + PAGE, PAGE, &error);
      }
      um_store_flush(store, &error);
    }
    CHECK_EQUAL(um_store_close(store, NULL), 0);
  }
  fprintf(stderr, "%" PRIu64 " opened\n", opened);
  CHECK(opened > 100 / STEP);
  free(image);
  m->file.ops->close(&m->file);
}

int main(void) {
  test_sealed_nonsense_in_index_and_segment_table_does_no_harm();
  test_no_changed_byte_makes_a_wrong_or_an_older_image();
  test_no_lost_end_makes_a_wrong_or_an_older_image();
  test_going_back_a_flush_takes_asking();
  test_sealed_nonsense_is_refused();
  return 0;
}
