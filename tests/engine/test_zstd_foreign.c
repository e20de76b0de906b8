/* .zst files of others: found frame by frame, read at random by many threads at once, and every kind of damage to them.
 */
#define _GNU_SOURCE
#include "check.h"
#include "internal.h"
#include "zstd_scan.h"

#include <sys/mman.h>
#include <unistd.h>

#define SIZE (3u << 20)
#define FILE_ROOM (8u << 20)
#define THREADS 6
#define READS 400
#define MEMORY (1u << 20)

static const um_zstd *z;
static unsigned char image[SIZE], file[FILE_ROOM];
static uint64_t file_length, image_length;
static unsigned char table[1 << 16];
static uint32_t table_count;
static char path[64];

static uint64_t chance = 88172645463325252u;

static uint64_t draw(uint64_t below) {
  chance ^= chance << 13;
  chance ^= chance >> 7;
  chance ^= chance << 17;
  return chance % below;
}

static void make_image(void) { /* halves that compress, halves that do not */
  for (uint32_t i = 0; i < SIZE; i++)
    image[i] = (unsigned char)(i >> 16 & 1 ? draw(256) : i / 37 + i % 11);
}

static void put_u32(unsigned char *to, uint32_t value) {
  for (int i = 0; i < 4; i++)
    to[i] = (unsigned char)(value >> 8 * i);
}

static void begin_file(void) {
  file_length = image_length = 0;
  table_count = 0;
}

static void note_entry(uint32_t length, uint32_t size) {
  put_u32(table + 8 * table_count, length);
  put_u32(table + 8 * table_count + 4, size);
  table_count++;
}

static void add_skippable(uint32_t length) {
  put_u32(file + file_length, UM_ZSTD_SKIPPABLE_MAGIC + 3);
  put_u32(file + file_length + 4, length);
  memset(file + file_length + 8, 0x28, length);
  file_length += 8 + length;
  note_entry(8 + length, 0);
}

/* The image's next bytes as a frame; `told`: its header has their count. */
static void add_frame(uint64_t size, bool told, bool checksum) {
  um_zstd_cctx *c = z->cctx_create();
  z->cctx_set(c, UM_ZSTD_C_CHECKSUM, checksum);
  z->cctx_set(c, UM_ZSTD_C_CONTENT_SIZE, told);
  size_t length = z->compress(c, file + file_length, FILE_ROOM - file_length, image + image_length, size);
  CHECK(!z->is_error(length));
  z->cctx_free(c);
  file_length += length;
  image_length += size;
  note_entry((uint32_t)length, (uint32_t)size);
}

static void add_table(void) {
  put_u32(file + file_length, UM_ZSTD_SKIPPABLE_MAGIC + 0xE);
  put_u32(file + file_length + 4, 8 * table_count + 9);
  memcpy(file + file_length + 8, table, 8 * table_count);
  file_length += 8 + 8 * table_count;
  put_u32(file + file_length, table_count);
  file[file_length + 4] = 0;
  put_u32(file + file_length + 5, 0x8F92EAB1u);
  file_length += 9;
}

static int place_file(void) {
  int descriptor = memfd_create("zst", 0);
  CHECK(descriptor >= 0);
  CHECK_EQUAL(write(descriptor, file, file_length), file_length);
  snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
  return descriptor;
}

static int scan_file(um_zstd_scan_options options, um_zstd_scan **scan, um_zstd_scan_info *info, um_error *error) {
  options.path = path;
  int result = um_zstd_scan_open(&options, scan, error);
  if (result < 0)
    return result;
  while ((result = um_zstd_scan_step(*scan, 0, error)) == -EAGAIN)
    ;
  um_zstd_scan_look(*scan, info);
  if (result < 0)
    um_zstd_scan_close(*scan);
  return result;
}

static um_store *open_file_with(um_zstd_scan_options options, um_zstd_scan_info *info) {
  um_zstd_scan *scan;
  um_store *store;
  um_error error = {0};
  int descriptor = place_file(), result = scan_file(options, &scan, info, &error);
  if (result < 0)
    fprintf(stderr, "%s\n", error.text);
  CHECK_EQUAL(result, 0);
  CHECK_EQUAL(um_zstd_foreign_open(scan, MEMORY, &store, &error), 0);
  close(descriptor);
  return store;
}

static void *read_at_random(void *argument) {
  um_store *store = argument;
  static _Atomic uint64_t seeds = 7;
  uint64_t seed = atomic_fetch_add(&seeds, 1) * 2654435761u;
  unsigned char *buffer = malloc(SIZE);
  for (int i = 0; i < READS; i++) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    uint64_t offset = (seed >> 20) % store->size, most = um_min(store->size - offset, i % 50 == 0 ? SIZE : 70000);
    uint64_t length = 1 + (seed >> 40) % most;
    um_error error = {0};
    int result = um_store_read(store, offset, buffer, length, &error);
    if (result < 0)
      fprintf(stderr, "%s\n", error.text);
    CHECK_EQUAL(result, 0);
    CHECK(memcmp(buffer, image + offset, length) == 0);
  }
  free(buffer);
  return NULL;
}

static void check_reads(um_store *store) {
  pthread_t threads[THREADS];
  CHECK_EQUAL(store->size, image_length);
  for (int i = 0; i < THREADS; i++)
    CHECK_EQUAL(pthread_create(&threads[i], NULL, read_at_random, store), 0);
  for (int i = 0; i < THREADS; i++)
    pthread_join(threads[i], NULL);
  CHECK_EQUAL(um_store_close(store, NULL), 0);
}

static void make_many_frames(bool told) {
  begin_file();
  while (image_length < SIZE) {
    if (draw(8) == 0)
      add_skippable((uint32_t)draw(5000));
    if (draw(8) == 0)
      add_frame(0, told, draw(2));
    add_frame(um_min(SIZE - image_length, 1 + draw(draw(4) ? 9000 : 300000)), told, draw(2));
  }
}

static void frames_with_sizes_are_found_without_decoding(void) {
  um_zstd_scan_info info;
  make_many_frames(true);
  um_store *store = open_file_with((um_zstd_scan_options){0}, &info);
  CHECK_EQUAL(info.decoded, 0);
  CHECK_EQUAL(info.size, SIZE);
  CHECK(!info.table);
  check_reads(store);
}

static void frames_without_sizes_are_decoded_once(void) {
  um_zstd_scan_info info;
  make_many_frames(false);
  um_store *store = open_file_with((um_zstd_scan_options){0}, &info);
  CHECK_EQUAL(info.decoded, SIZE);
  check_reads(store);
}

static void seek_table_is_used(void) {
  um_zstd_scan_info info;
  make_many_frames(false);
  add_table();
  um_store *store = open_file_with((um_zstd_scan_options){0}, &info);
  CHECK(info.table && info.decoded == 0);
  check_reads(store);
  store = open_file_with((um_zstd_scan_options){.walk = 1}, &info);
  CHECK(!info.table && info.size == SIZE);
  check_reads(store);
}

static void one_large_frame_is_read_by_streams(void) {
  um_zstd_scan_info info;
  for (int told = 0; told < 2; told++) {
    begin_file();
    add_frame(SIZE, told, true);
    um_store *store = open_file_with((um_zstd_scan_options){0}, &info);
    CHECK_EQUAL(info.frames, 1);
    check_reads(store);
  }
}

static void table_that_cannot_be_right_is_not_used(void) {
  um_zstd_scan_info info;
  make_many_frames(true);
  note_entry(0, 1000); /* too much for no bytes of file: 128 KiB would not be */
  put_u32(table + 8 * (table_count - 1) + 4, 1 << 20);
  add_table();
  um_store *store = open_file_with((um_zstd_scan_options){0}, &info);
  CHECK(!info.table && info.table_wrong);
  check_reads(store);
}

/* Sizes that are right in sum but not each: at the latest who decodes such a frame sees it. */
static void table_that_lies_about_a_frame_gives_errors_and_no_wrong_bytes(void) {
  begin_file();
  for (int i = 0; i < 300; i++)
    add_frame(5000, false, false);
  put_u32(table + 8 * 150 + 4, 5001);
  put_u32(table + 8 * 151 + 4, 4999);
  add_table();
  um_zstd_scan_info info;
  um_store *store = open_file_with((um_zstd_scan_options){0}, &info);
  static unsigned char buffer[6000];
  um_error error = {0};
  CHECK(info.table);
  CHECK_EQUAL(um_store_read(store, 150 * 5000, buffer, 5001, &error), -UM_ECORRUPT);
  CHECK_EQUAL(um_store_read(store, 151 * 5000 + 10, buffer, 100, &error), -UM_ECORRUPT);
  CHECK_EQUAL(error.offset, 151 * 5000 + 10);
  CHECK_EQUAL(um_store_read(store, 152 * 5000, buffer, 5000, &error), 0);
  CHECK(memcmp(buffer, image + 152 * 5000, 5000) == 0);
  um_store_close(store, NULL);
}

static void dictionary_is_wanted_by_name(void) {
  um_zstd_scan_info info;
  um_zstd_cctx *c = z->cctx_create();
  um_zstd_cdict *d = z->cdict_create(image, 10000, 3);
  z->cctx_use(c, d);
  begin_file();
  file_length = z->compress(c, file, FILE_ROOM, image, SIZE / 2);
  image_length = SIZE / 2;
  z->cctx_free(c);
  z->cdict_free(d);
  check_reads(open_file_with((um_zstd_scan_options){.dictionary = image, .dictionary_size = 10000}, &info));
}

/* Whatever is done to a file, it opens or not, and what it gives is what the whole of it decodes to. */
static uint64_t decode_all(unsigned char *to, uint64_t room) {
  um_zstd_dctx *d = z->dctx_create();
  size_t got = z->decompress(d, to, room, file, file_length);
  z->dctx_free(d);
  return z->is_error(got) ? UINT64_MAX : got;
}

static void read_damaged(void) {
  static unsigned char wanted[1 << 20], got[1 << 20];
  um_zstd_scan *scan;
  um_zstd_scan_info info;
  um_store *store;
  um_error error = {0};
  int descriptor = place_file();
  uint64_t size = decode_all(wanted, sizeof wanted);
  if (scan_file((um_zstd_scan_options){.walk = draw(2)}, &scan, &info, &error) == 0) {
    CHECK_EQUAL(um_zstd_foreign_open(scan, MEMORY, &store, &error), 0);
    bool readable = store->size <= sizeof got && um_store_read(store, 0, got, store->size, &error) == 0;
    if (readable && size != UINT64_MAX)
      CHECK(store->size == size && memcmp(got, wanted, size) == 0);
    for (int i = 0; i < 4 && store->size > 0; i++) {
      uint64_t offset = draw(store->size);
      um_store_read(store, offset, got, um_min(store->size - offset, 1 + draw(3000)), &error);
    }
    um_store_close(store, NULL);
  } else {
    CHECK(error.code != 0 && error.text[0]);
    CHECK_EQUAL(error.op, UM_OP_OPEN);
  }
  close(descriptor);
}

static void damage_is_an_error_or_nothing(int turns) {
  static unsigned char good[1 << 20];
  for (int turn = 0; turn < turns; turn++) {
    if (turn % 50 == 0) {
      image_length = draw(SIZE / 2);
      uint64_t begin = image_length;
      file_length = 0;
      table_count = 0;
      for (int i = (int)draw(6); i >= 0; i--) {
        if (draw(3) == 0)
          add_skippable((uint32_t)draw(30));
        add_frame(draw(3000), draw(2), draw(2));
      }
      if (draw(2))
        add_table();
      CHECK(image_length - begin <= 1 << 20);
      memcpy(good, file, file_length);
    }
    uint64_t length = file_length;
    for (int i = (int)draw(4); i >= 0; i--)
      switch (draw(4)) {
      case 0:
        file_length = draw(file_length + 1);
        break;
      case 1:
        file[draw(length)] = (unsigned char)draw(256);
        break;
      case 2:
        file[length - 1 - draw(um_min(length, 40))] ^= (unsigned char)(1 << draw(8));
        break;
      default:
        file[draw(um_min(length, 24))] ^= (unsigned char)(1 << draw(8));
      }
    read_damaged();
    file_length = length;
    memcpy(file, good, length);
  }
}

int main(void) {
  z = um_zstd_get(NULL);
  CHECK(z);
  make_image();
  const char *turns = getenv("FUZZ_TURNS");
  frames_with_sizes_are_found_without_decoding();
  frames_without_sizes_are_decoded_once();
  seek_table_is_used();
  one_large_frame_is_read_by_streams();
  table_that_cannot_be_right_is_not_used();
  table_that_lies_about_a_frame_gives_errors_and_no_wrong_bytes();
  dictionary_is_wanted_by_name();
  damage_is_an_error_or_nothing(turns ? atoi(turns) : 3000);
  return 0;
}
