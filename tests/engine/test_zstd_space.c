/* What the zstd store spends on its log: rewriting everything again and again stays near what lives, in the order of
 * pages or in none, with records larger and smaller than the blocks of the file system. */
#define _GNU_SOURCE
#include "zrig.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#define ROUNDS 10u

typedef struct workload {
  const char *name;
  uint64_t size;
  uint32_t page_size;
  uint64_t run;   /* bytes of a write */
  uint64_t flush; /* bytes between flushes; 0: one a round */
  bool random;
} workload;

static uint64_t find_spent(const zrig *z, um_zstd_info *info) {
  um_zstd_store_info(z->store, info);
  return info->allocated;
}

/* As one pass over a new store leaves it: near enough to packed. */
static uint64_t find_packed(const workload *w) {
  zrig z;
  um_zstd_info info;
  zrig_new(&z, w->size, w->page_size);
  for (uint64_t at = 0; at < w->size; at += w->run)
    zrig_write(&z, at, w->run, 1);
  zrig_flush(&z);
  um_zstd_store_info(z.store, &info);
  zrig_end(&z);
  return info.log_live + 8192;
}

static void rewrite_everything(zrig *z, const workload *w, uint64_t round, uint64_t *seed) {
  uint64_t unflushed = 0;
  for (uint64_t at = 0; at < w->size; at += w->run) {
    uint64_t offset = w->random ? zrig_random(seed) % (w->size / w->run) * w->run : at;
    zrig_write(z, offset, w->run, round);
    unflushed += w->run;
    if (w->flush && unflushed >= w->flush) {
      zrig_flush(z);
      unflushed = 0;
    }
  }
}

static void check_workload(const workload *w) {
  zrig z;
  um_zstd_info info;
  uint64_t packed = find_packed(w), seed = 1;
  zrig_new(&z, w->size, w->page_size);
  for (uint64_t at = 0; at < w->size; at += w->run)
    zrig_write(&z, at, w->run, 1);
  for (uint64_t round = 0; round < ROUNDS; round++)
    rewrite_everything(&z, w, round, &seed);
  zrig_flush(&z);
  uint64_t spent = find_spent(&z, &info);
  fprintf(stderr, "%s: packed %" PRIu64 " KiB, spent %.2f of it, length %.2f, live %.2f, %" PRIu32 " segments\n",
          w->name, packed >> 10, (double)spent / (double)packed, (double)info.length / (double)packed,
          (double)info.log_live / (double)packed, info.segments);
  CHECK(spent <= packed + packed / 2);
  CHECK(info.length <= 6 * packed + (4u << 20)); /* with what was punched out */
  zrig_check_image(&z);
  zrig_check_tool(&z);
  zrig_reopen(&z, true);
  zrig_check_image(&z);
  zrig_end(&z);
}

static void test_ten_rewrites_of_everything_stay_within_half_more(void) {
  workload workloads[] = {
      {"64 KiB pages in order", 32u << 20, 65536, 1u << 20, 0, false},
      {"64 KiB pages in order, many flushes", 32u << 20, 65536, 1u << 20, 8u << 20, false},
      {"64 KiB pages in no order", 32u << 20, 65536, 65536, 4u << 20, true},
      {"64 KiB pages in no order, one flush a round", 32u << 20, 65536, 65536, 0, true},
      {"4 KiB pages in no order", 8u << 20, 4096, 4096, 1u << 20, true},
      {"4 KiB pages in order", 8u << 20, 4096, 65536, 1u << 20, false},
      {"few pages", 1u << 20, 65536, 65536, 65536, true},
  };
  for (size_t i = 0; i < sizeof(workloads) / sizeof(*workloads); i++)
    check_workload(&workloads[i]);
}

/* No flush, no durable image that needs the space. */
static void test_what_no_flush_has_seen_is_used_again_at_once(void) {
  zrig z;
  um_zstd_info info;
  zrig_new(&z, 16u << 20, 65536);
  for (uint64_t round = 0; round < ROUNDS; round++)
    zrig_write(&z, 0, z.size, round);
  um_zstd_store_info(z.store, &info);
  CHECK(info.length <= 2 * info.log_live + (4u << 20));
  zrig_flush(&z);
  zrig_check_image(&z);
  zrig_end(&z);
}

typedef struct reader {
  zrig *z;
  atomic_bool *stop;
} reader;

static void *read_all_the_time(void *argument) {
  reader *r = argument;
  uint8_t *got = malloc(r->z->size / 2);
  while (!atomic_load(r->stop)) { /* the half that is only moved */
    CHECK_EQUAL(um_store_read(r->z->store, r->z->size / 2, got, r->z->size / 2, NULL), 0);
    CHECK(memcmp(got, r->z->image + r->z->size / 2, r->z->size / 2) == 0);
  }
  free(got);
  return NULL;
}

static void test_readers_see_the_right_bytes_while_records_move(void) {
  zrig z;
  reader r;
  pthread_t threads[2];
  atomic_bool stop = false;
  uint64_t seed = 3;
  zrig_new(&z, 8u << 20, 4096);
  for (uint64_t page = 0; page < z.size / 4096; page++) /* neighbours in the log are of both halves */
    zrig_write(&z, page % 2 ? z.size / 2 + page / 2 * 4096 : page / 2 * 4096, 4096, 1);
  r = (reader){&z, &stop};
  for (int i = 0; i < 2; i++)
    CHECK_EQUAL(pthread_create(&threads[i], NULL, read_all_the_time, &r), 0);
  for (int turn = 0; turn < 3000; turn++) {
    zrig_write(&z, zrig_random(&seed) % (z.size / 8192) * 4096, 4096, (uint64_t)turn);
    if (turn % 100 == 0)
      zrig_flush(&z);
  }
  atomic_store(&stop, true);
  for (int i = 0; i < 2; i++)
    pthread_join(threads[i], NULL);
  zrig_check_image(&z);
  zrig_end(&z);
}

int main(void) {
  test_ten_rewrites_of_everything_stay_within_half_more();
  test_what_no_flush_has_seen_is_used_again_at_once();
  test_readers_see_the_right_bytes_while_records_move();
  return 0;
}
