/* Files of others opened for writing: the image stays, the frames stay, and pages of any size over frames of any size
 * are read and written. */
#define _GNU_SOURCE
#include "zrig.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* A plain file of frames of `frame` bytes each, with a seek table. */
static void make_foreign(zrig *z, uint64_t size, uint32_t frame) {
  zrig_new(z, size, 65536);
  zrig_close(z);
  for (uint64_t at = 0; at < size; at += 3 * frame) /* and stretches of zeros */
    zrig_fill(z->image + at, size - at < frame ? size - at : frame, at + 1);
  int descriptor = open(z->path, O_WRONLY | O_TRUNC | O_CLOEXEC);
  um_zstd_pack_options options = {.descriptor = descriptor, .level = 1, .page_size = frame, .threads = 2};
  um_zstd_pack *pack;
  CHECK_EQUAL(um_zstd_pack_open(&options, &pack, NULL), 0);
  CHECK_EQUAL(um_zstd_pack_write(pack, z->image, size, NULL), 0);
  CHECK_EQUAL(um_zstd_pack_finish(pack, NULL), 0);
  close(descriptor);
}

static void test_adopted_file_keeps_its_image_and_takes_writes(void) {
  static const uint32_t frames[] = {4096, 65536, 1u << 20}, pages[] = {4096, 65536, 1u << 20};
  for (int f = 0; f < 3; f++)
    for (int p = 0; p < 3; p++) {
      zrig z;
      um_error error = {0};
      um_zstd_info info;
      make_foreign(&z, 5000001, frames[f]);
      uint8_t *before = malloc(z.size);
      memcpy(before, z.image, z.size);
      um_zstd_options options = {.path = z.path, .writable = 1, .lock = 1, .level = 3, .size = UINT64_MAX};
      CHECK_EQUAL(um_zstd_store_open(&options, &z.store, &error), -EMEDIUMTYPE);
      if (um_zstd_adopt(z.path, pages[p], &error) < 0) {
        fprintf(stderr, "%s\n", error.text);
        abort();
      }
      zrig_open(&z, true);
      um_zstd_store_info(z.store, &info);
      CHECK(info.foreign_frames > 0);
      zrig_check_image(&z);
      zrig_check_tool(&z);
      zrig_write(&z, 1000000, 12345, 1);
      zrig_write(&z, 4900000, 100001, 2);
      uint8_t *zeros = calloc(1, 2000000);
      memset(z.image + 2000000, 0, 2000000);
      CHECK_EQUAL(um_store_write(z.store, 2000000, zeros, 2000000, NULL), 0);
      zrig_flush(&z);
      zrig_check_image(&z);
      zrig_grow(&z, 7000000);
      zrig_check_image(&z);
      zrig_check_tool(&z);
      zrig_check_decoded(&z, before, 5000001);
      uint64_t page;
      CHECK_EQUAL(um_zstd_store_verify(z.store, 0, ((um_zstd_store *)z.store)->page_count, &page, &error), 0);
      CHECK_EQUAL(um_zstd_store_verify_frames(z.store, &error), 0);
      free(before);
      free(zeros);
      zrig_end(&z);
    }
}

static void test_file_of_one_large_frame_is_not_adopted_and_stays(void) {
  zrig z;
  um_error error = {0};
  char command[512];
  zrig_new(&z, 65u << 20, 65536);
  zrig_close(&z);
  snprintf(command, sizeof(command), "head -c %" PRIu64 " /dev/zero | zstd -q -f -o %s && cp %s %s.copy", z.size,
           z.path, z.path, z.path);
  int status = system(command);
  if (status == 0) {
    CHECK_EQUAL(um_zstd_adopt(z.path, 65536, &error), -EINVAL);
    CHECK(strstr(error.text, "umappy pack"));
    snprintf(command, sizeof(command), "cmp %s %s.copy && rm %s.copy", z.path, z.path, z.path);
    CHECK_EQUAL(system(command), 0);
  } else {
    fprintf(stderr, "skipped what needs the tool zstd: it is not installed\n");
  }
  zrig_end(&z);
}

static void test_damaged_file_is_not_adopted(void) {
  zrig z;
  um_error error = {0};
  make_foreign(&z, 1000000, 65536);
  CHECK_EQUAL(truncate(z.path, 70000), 0);
  CHECK(um_zstd_adopt(z.path, 65536, &error) < 0);
  zrig_end(&z);
}

int main(void) {
  test_adopted_file_keeps_its_image_and_takes_writes();
  test_file_of_one_large_frame_is_not_adopted_and_stays();
  test_damaged_file_is_not_adopted();
  return 0;
}
