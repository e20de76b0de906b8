/* Sizes of every kind: ends that are no multiple of a page or of 4096, pages larger than the staging buffers, and a
 * region of 8 TiB. */
#include "rig.h"

#include <sys/mman.h>
#include <unistd.h>

static uint64_t file_size(const rig *r) {
  return (uint64_t)lseek(r->fd, 0, SEEK_END);
}

static uint8_t pattern_byte(uint64_t offset) {
  return (uint8_t)(rig_word(offset / 8 * 8) >> (8 * (offset % 8)));
}

static void check_size(uint64_t size, uint64_t page_size) {
  rig r;
  rig_open(&r, &(rig_options){.size = size, .page_size = page_size, .fillers = 2});
  volatile uint8_t *bytes = r.bytes;
  for (uint64_t offset = 0; offset < size; offset += 997)
    CHECK_EQUAL(bytes[offset], pattern_byte(offset));
  CHECK_EQUAL(bytes[size - 1], pattern_byte(size - 1));
  for (uint64_t offset = size; offset < r.mapped; offset++)
    CHECK_EQUAL(bytes[offset], 0);
  bytes[size - 1] = 42;
  bytes[0] = 43;
  if (r.mapped > size)
    bytes[size] = 44; /* past the end: nobody's, and never in the file */
  CHECK_EQUAL(rig_evict(&r, 0, size), 0);
  CHECK_EQUAL(bytes[size - 1], size > 1 ? 42 : 43);
  CHECK_EQUAL(rig_prefetch(&r, 0, size), 0);
  rig_close(&r);
  CHECK_EQUAL(file_size(&r), size);
  uint8_t last;
  CHECK_EQUAL(pread(r.fd, &last, 1, (off_t)size - 1), 1);
  CHECK_EQUAL(last, size > 1 ? 42 : 43);
  rig_end(&r);
}

static void test_odd_sizes_keep_every_byte_and_the_files_length(void) {
  static const uint64_t page_sizes[] = {4 << 10, 64 << 10, 2 << 20};
  for (int i = 0; i < 3; i++) {
    uint64_t page = page_sizes[i], sizes[] = {1, 4095, 4096, 4097, page - 1, page + 1, 3 * page + 12345};
    for (int k = 0; k < 7; k++)
      check_size(sizes[k], page);
  }
}

/* Staging buffers of 4 KiB, as the smallest budgets have. */
static void use_small_staging(um_pager *p) {
  pthread_mutex_lock(&p->lock);
  for (uint32_t i = 0; i < p->filler_count; i++)
    p->fillers[i].staging_size = 4096;
  for (uint32_t i = 0; i < p->evictor_count; i++)
    p->evictors[i].staging_size = 4096;
  pthread_mutex_unlock(&p->lock);
}

static void test_page_of_64_mib_is_moved_in_pieces_of_4_kib(void) {
  uint64_t page = 64 << 20, size = page + 4097 * 4096 + 123;
  um_pager *pager = rig_pager(um_pager_memory_min(page, 2, 1), 2, 1, 10000);
  use_small_staging(pager);
  rig r;
  rig_open(&r, &(rig_options){.size = size, .page_size = page, .pager = pager, .sparse = true});
  uint64_t word = 77, last = size / 8 * 8 - 8;
  for (uint64_t offset = 0; offset < size - 8; offset += 4 << 20)
    CHECK_EQUAL(pwrite(r.fd, &word, 8, (off_t)offset), 8);
  rig_write(&r, 8, 5);
  CHECK_EQUAL(rig_read(&r, 60 << 20), 77);
  rig_write(&r, last, 6);
  CHECK_EQUAL(rig_read(&r, last - 8), 0);
  CHECK_EQUAL(rig_read(&r, 64 << 20), 77);
  CHECK_EQUAL(rig_evict(&r, 0, size), 0);
  um_stats s = rig_stats(&r);
  CHECK_EQUAL(s.store_reads, 16384 + 4098);
  CHECK_EQUAL(s.store_writes, 256 + 2); /* the dirty blocks: 1 MiB, and what the last block holds of the file */
  CHECK_EQUAL(s.used, s.overhead + s.idle);
  CHECK_EQUAL(rig_read(&r, 8), 5);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, last), 6);
  CHECK_EQUAL(rig_file_word(&r, 56 << 20), 77);
  CHECK_EQUAL(file_size(&r), size);
  rig_end(&r);
  CHECK_EQUAL(um_pager_destroy(pager), 0);
}

typedef struct user {
  rig *rig;
  uint64_t word;
  bool write;
} user;

static void *touch(void *argument) {
  user *u = argument;
  if (u->write)
    rig_write(u->rig, 4096, 1);
  else
    u->word = rig_read(u->rig, 0);
  return NULL;
}

/* Pieces that are in place already can be touched before the page is whole. */
static void test_page_that_is_filling_in_pieces_can_be_used(void) {
  for (int write = 0; write < 2; write++) {
    uint64_t page = 64 << 10;
    um_pager *pager = rig_pager(um_pager_memory_min(page, 2, 1), 2, 1, 10000);
    use_small_staging(pager);
    rig r;
    rig_open(&r, &(rig_options){.size = 4 * page, .page_size = page, .pager = pager, .faults = true});
    um_fault_options slow = {
        .ops = 1 << UM_OP_READ, .delay_ns = 50000000, .count = 1, .offset = 32 << 10, .length = 4096};
    um_fault_store_set(r.faults, &slow);
    user first = {&r, 0, false}, second = {&r, 0, write};
    pthread_t one = rig_thread(touch, &first);
    sleep_ms(10);
    pthread_t two = rig_thread(touch, &second);
    pthread_join(one, NULL);
    pthread_join(two, NULL);
    CHECK_EQUAL(first.word, rig_word(0));
    CHECK_EQUAL(rig_read(&r, 60 << 10), rig_word(60 << 10));
    rig_close(&r);
    CHECK_EQUAL(rig_file_word(&r, 4096), write ? 1 : rig_word(4096));
    rig_end(&r);
    CHECK_EQUAL(um_pager_destroy(pager), 0);
  }
}

static void test_pieces_that_fail_leave_nothing_behind(void) {
  uint64_t page = 64 << 10;
  um_pager *pager = rig_pager(um_pager_memory_min(page, 1, 1), 1, 1, 10000);
  use_small_staging(pager);
  rig r;
  rig_open(&r, &(rig_options){.size = 4 * page, .page_size = page, .pager = pager, .faults = true});
  um_fault_options bad = {
      .ops = 1 << UM_OP_READ, .code = ENOENT, .count = UINT64_MAX, .offset = 60 << 10, .length = 4096};
  um_fault_store_set(r.faults, &bad);
  CHECK_EQUAL(rig_read(&r, 0), UINT64_MAX); /* a page is read whole or not at all */
  CHECK_EQUAL(rig_errors(&r), 1);
  rig_heal(&r);
  CHECK_EQUAL(um_region_retry(r.region), 1);
  CHECK_EQUAL(rig_read(&r, 0), rig_word(0));
  rig_close(&r);
  rig_end(&r);
  CHECK_EQUAL(um_pager_destroy(pager), 0);
}

static uint64_t status_kib(const char *name) {
  char line[200];
  uint64_t value = 0;
  FILE *status = fopen("/proc/self/status", "r");
  CHECK(status);
  while (fgets(line, sizeof line, status))
    if (strncmp(line, name, strlen(name)) == 0)
      value = strtoull(line + strlen(name) + 1, NULL, 10);
  fclose(status);
  return value;
}

#ifdef __SANITIZE_THREAD__
#define LARGE (256ull << 30) /* all the addresses it leaves to a program are 1.5 TiB */
#else
#define LARGE (8ull << 40)
#endif

static void test_region_of_8_tib_costs_what_is_touched(void) {
  rig r;
  uint64_t began = now_ns(), before = status_kib("VmRSS") + status_kib("VmPTE");
  rig_open(&r, &(rig_options){.size = LARGE, .sparse = true});
  CHECK(now_ns() - began < 100000000ull * SLOWER);
  uint64_t rss = status_kib("VmRSS") + status_kib("VmPTE");
  CHECK(rss < before + 4096 * SLOWER);
  static const uint64_t at[] = {0, LARGE / 2, LARGE - 8, LARGE / 3 / 8 * 8, 4096};
  for (int i = 0; i < 5; i++) {
    CHECK_EQUAL(rig_read(&r, at[i]), 0);
    rig_write(&r, at[i], at[i] + 1);
  }
  began = now_ns();
  CHECK_EQUAL(rig_flush(&r), 0); /* looks at spans, not at pages */
  CHECK(now_ns() - began < 1000000000ull * SLOWER);
  began = now_ns();
  rig_close(&r);
  CHECK(now_ns() - began < 1000000000ull * SLOWER);
  for (int i = 0; i < 5; i++)
    CHECK_EQUAL(rig_file_word(&r, at[i]), at[i] + 1);
  rig_end(&r);
}

int main(void) {
  watchdog_start(30);
  RUN(test_odd_sizes_keep_every_byte_and_the_files_length);
  RUN(test_page_of_64_mib_is_moved_in_pieces_of_4_kib);
  RUN(test_page_that_is_filling_in_pieces_can_be_used);
  RUN(test_pieces_that_fail_leave_nothing_behind);
  RUN(test_region_of_8_tib_costs_what_is_touched);
  watchdog_pet("the end");
  return 0;
}
