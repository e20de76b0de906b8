/* Packed files: what goes in is what `zstd -d` gives and what a store over the file holds, whichever way it came; and
 * they stay that after they are written to. */
#define _GNU_SOURCE
#include "zrig.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#define PAGE 65536u

static um_zstd_pack *open_pack(const zrig *z, uint32_t page_size) {
  um_zstd_pack_options options = {.path = z->path, .level = 3, .page_size = page_size};
  um_zstd_pack *pack;
  um_error error = {0};
  if (um_zstd_pack_open(&options, &pack, &error) < 0) {
    fprintf(stderr, "%s\n", error.text);
    abort();
  }
  return pack;
}

static void check_verified(zrig *z) {
  um_error error = {0};
  uint64_t page = 0;
  int result = um_zstd_store_verify(z->store, 0, ((um_zstd_store *)z->store)->page_count, &page, &error);
  if (result == 0)
    result = um_zstd_store_verify_frames(z->store, &error);
  if (result < 0)
    fprintf(stderr, "page %" PRIu64 ": %s\n", page, error.text);
  CHECK_EQUAL(result, 0);
}

static bool is_packed(const zrig *z) {
  um_zstd_info info;
  um_zstd_store_info(z->store, &info);
  return info.packed;
}

static void check_packed(zrig *z) {
  zrig_open(z, false);
  CHECK(is_packed(z));
  zrig_check_image(z);
  check_verified(z);
  zrig_check_tool(z);
  zrig_check_decoded(z, z->image, z->size);
}

/* Data and stretches of zeros, some longer than one frame of them. */
static void make_image(zrig *z, uint64_t size, uint64_t seed) {
  zrig_new(z, size, PAGE);
  zrig_close(z);
  for (uint64_t at = 0; at < size;) {
    uint64_t length = zrig_random(&seed) % 3000000,
             zeros = zrig_random(&seed) % (zrig_random(&seed) % 8 ? 300000 : 20000000);
    length = length < size - at ? length : size - at;
    zrig_fill(z->image + at, length, seed);
    at += length + zeros;
  }
}

static void pack_image(zrig *z, uint32_t page_size, uint64_t seed) {
  um_zstd_pack *pack = open_pack(z, page_size);
  for (uint64_t at = 0; at < z->size;) {
    uint64_t length = zrig_random(&seed) % 5000000;
    length = length < z->size - at ? length : z->size - at;
    CHECK_EQUAL(um_zstd_pack_write(pack, z->image + at, length, NULL), 0);
    at += length;
  }
  CHECK_EQUAL(um_zstd_pack_finish(pack, NULL), 0);
}

static void test_packed_file_is_the_image_for_the_store_and_for_the_tool(void) {
  static const uint64_t sizes[] = {0, 1, 4096, 65536, 65537, 5000000, 100000001};
  static const uint32_t pages[] = {4096, PAGE, 1u << 20, 8u << 20};
  for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
    for (size_t p = 0; p < sizeof(pages) / sizeof(*pages); p++) {
      zrig z;
      make_image(&z, sizes[i], i + 1);
      pack_image(&z, pages[p], p);
      check_packed(&z);
      zrig_end(&z);
    }
}

static void test_index_of_three_levels_is_read_back(void) {
  zrig z;
  zrig_new(&z, 300u << 20, 4096);
  zrig_close(&z);
  uint64_t seed = 1;
  for (int i = 0; i < 20000; i++) { /* leaves full, leaves far apart, none at all */
    uint64_t at = zrig_random(&seed) % (i % 2 ? z.size - 4096 : 8u << 20);
    z.image[at] = (uint8_t)i;
  }
  pack_image(&z, 4096, 1);
  check_packed(&z);
  zrig_end(&z);
}

static void test_writing_to_a_packed_file_keeps_what_zstd_decodes(void) {
  zrig z;
  make_image(&z, 20000000, 5);
  pack_image(&z, PAGE, 5);
  uint8_t *before = malloc(z.size);
  memcpy(before, z.image, z.size);
  zrig_open(&z, true);
  for (int turn = 0; turn < 5; turn++) {
    zrig_write(&z, 0, z.size / 2, (uint64_t)turn);
    zrig_write(&z, z.size - 100001, 100001, (uint64_t)turn);
    zrig_flush(&z);
    CHECK(!is_packed(&z));
    check_verified(&z);
    zrig_check_tool(&z);
    zrig_check_decoded(&z, before, z.size);
  }
  zrig_reopen(&z, true);
  zrig_check_image(&z);

  um_zstd_pack *pack = open_pack(&z, PAGE); /* in its own place */
  CHECK_EQUAL(um_zstd_pack_store(pack, z.store, 0, z.size, NULL), 0);
  CHECK_EQUAL(um_zstd_pack_finish(pack, NULL), 0);
  zrig_close(&z);
  check_packed(&z);
  free(before);
  zrig_end(&z);
}

static void test_packing_a_store_at_another_page_size_gives_the_same_image(void) {
  zrig z;
  make_image(&z, 10000001, 6);
  pack_image(&z, PAGE, 6);
  zrig_open(&z, false);
  um_zstd_pack *pack = open_pack(&z, 4096);
  CHECK_EQUAL(um_zstd_pack_write(pack, z.image, 5000, NULL), 0); /* what follows begins inside a page */
  CHECK_EQUAL(um_zstd_pack_store(pack, z.store, 5000, z.size - 5000, NULL), 0);
  CHECK_EQUAL(um_zstd_pack_finish(pack, NULL), 0);
  zrig_close(&z);
  check_packed(&z);
  zrig_end(&z);
}

static void test_incompressible_pages_survive_the_log_and_packing(void) {
  zrig z;
  uint64_t seed = 9;
  zrig_new(&z, 40 * PAGE, PAGE);
  for (uint64_t at = 0; at < z.size; at += 8) {
    uint64_t word = zrig_random(&seed);
    memcpy(z.image + at, &word, 8);
  }
  CHECK_EQUAL(um_store_write(z.store, 0, z.image, z.size, NULL), 0);
  zrig_flush(&z);
  zrig_reopen(&z, true);
  zrig_check_image(&z);
  um_zstd_pack *pack = open_pack(&z, PAGE);
  CHECK_EQUAL(um_zstd_pack_store(pack, z.store, 0, z.size, NULL), 0);
  CHECK_EQUAL(um_zstd_pack_finish(pack, NULL), 0);
  zrig_close(&z);
  check_packed(&z);
  zrig_end(&z);
}

static void test_output_to_a_descriptor_is_a_plain_file_of_frames(void) {
  zrig z;
  make_image(&z, 5000000, 7);
  int descriptor = open(z.path, O_WRONLY | O_TRUNC | O_CLOEXEC);
  um_zstd_pack_options options = {.descriptor = descriptor, .level = 3, .page_size = PAGE, .threads = 2};
  um_zstd_pack *pack;
  CHECK_EQUAL(um_zstd_pack_open(&options, &pack, NULL), 0);
  CHECK_EQUAL(um_zstd_pack_write(pack, z.image, z.size, NULL), 0);
  CHECK_EQUAL(um_zstd_pack_finish(pack, NULL), 0);
  close(descriptor);
  zrig_check_tool(&z);
  zrig_check_decoded(&z, z.image, z.size);
  zrig_end(&z);
}

static void test_abandoned_pack_leaves_the_old_file(void) {
  zrig z;
  make_image(&z, 5000000, 8);
  pack_image(&z, PAGE, 8);
  um_zstd_pack *pack = open_pack(&z, PAGE);
  CHECK_EQUAL(um_zstd_pack_write(pack, z.image, 3000000, NULL), 0);
  um_zstd_pack_abort(pack);
  check_packed(&z);
  char command[128];
  snprintf(command, sizeof(command), "test -z \"$(ls %s.umappy-* 2>/dev/null)\"", z.path);
  CHECK_EQUAL(system(command), 0);
  zrig_end(&z);
}

static void test_dictionary_is_kept_with_the_file(void) {
  zrig z;
  uint8_t dictionary[3000];
  zrig_new(&z, 50 * 4096, 4096);
  zrig_close(&z);
  zrig_fill(dictionary, sizeof(dictionary), 4);
  um_zstd_options options = {.path = z.path,
                             .writable = 1,
                             .create = 1,
                             .truncate = 1,
                             .lock = 1,
                             .level = 3,
                             .page_size = 4096,
                             .size = z.size,
                             .dictionary = dictionary,
                             .dictionary_size = sizeof(dictionary)};
  CHECK_EQUAL(um_zstd_store_open(&options, &z.store, NULL), 0);
  zrig_check_tool(&z);
  for (uint64_t at = 0; at < z.size; at += 4096) {
    memcpy(z.image + at, dictionary, sizeof(dictionary));
    zrig_fill(z.image + at + 3000, 100, at);
  }
  CHECK_EQUAL(um_store_write(z.store, 0, z.image, z.size, NULL), 0);
  zrig_flush(&z);
  um_zstd_info info;
  um_zstd_store_info(z.store, &info);
  CHECK(info.log_live < 50 * 400);
  zrig_reopen(&z, true);
  zrig_check_image(&z);
  um_zstd_pack_options pack_options = {
      .path = z.path, .level = 3, .page_size = 4096, .dictionary = dictionary, .dictionary_size = sizeof(dictionary)};
  um_zstd_pack *pack;
  CHECK_EQUAL(um_zstd_pack_open(&pack_options, &pack, NULL), 0);
  CHECK_EQUAL(um_zstd_pack_store(pack, z.store, 0, z.size, NULL), 0);
  CHECK_EQUAL(um_zstd_pack_finish(pack, NULL), 0);
  zrig_reopen(&z, true);
  CHECK(is_packed(&z));
  zrig_check_image(&z);
  check_verified(&z);
  zrig_write(&z, 0, z.size, 99);
  zrig_flush(&z);
  zrig_reopen(&z, false);
  zrig_check_image(&z);
  zrig_end(&z);
}

int main(void) {
  test_packed_file_is_the_image_for_the_store_and_for_the_tool();
  test_index_of_three_levels_is_read_back();
  test_writing_to_a_packed_file_keeps_what_zstd_decodes();
  test_packing_a_store_at_another_page_size_gives_the_same_image();
  test_incompressible_pages_survive_the_log_and_packing();
  test_output_to_a_descriptor_is_a_plain_file_of_frames();
  test_abandoned_pack_leaves_the_old_file();
  test_dictionary_is_kept_with_the_file();
  return 0;
}
