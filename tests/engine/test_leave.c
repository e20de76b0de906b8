/* Pages on their way out of a region, driven by another region that wants their memory: what devices, readers, writers,
 * flushes and failing stores find meanwhile. Where the kernel can move pages they leave by that, and the tests of pins
 * hold; where they are copied and dropped, pins cannot be seen. */
#define _GNU_SOURCE
#include "pin.h"
#include "rig.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define KIB 1024ull
#define MIB (1024ull << 10)

/* A region under test, and one that is read over and over for as long as `pressing`. */
typedef struct scene {
  um_pager *pager;
  rig a, b;
  pthread_t presser;
  bool pressing;
  _Atomic bool stop;
} scene;

static void *press(void *argument) {
  scene *s = argument;
  while (!atomic_load(&s->stop))
    for (uint64_t offset = 0; offset < s->b.size && !atomic_load(&s->stop); offset += s->b.region->page_size)
      rig_read(&s->b, offset);
  return NULL;
}

static void press_start(scene *s) {
  atomic_store(&s->stop, false);
  s->pressing = true;
  s->presser = rig_thread(press, s);
}

static void press_stop(scene *s) {
  if (!s->pressing)
    return;
  atomic_store(&s->stop, true);
  pthread_join(s->presser, NULL);
  s->pressing = false;
}

static void set(scene *s, const rig_options *options) {
  rig_options a = *options;
  *s = (scene){0};
  uint64_t page_size = a.page_size ? a.page_size : 4096;
  uint64_t memory = um_pager_memory_min(page_size, 3, 2) + (a.spare ? a.spare : 16) * page_size;
  s->pager = a.pager = rig_pager(memory, 3, 2, 10000);
  rig_open(&s->a, &a);
  rig_open(&s->b, &(rig_options){.size = um_max(8 * MIB, 4 * memory),
                                 .page_size = page_size,
                                 .sparse = true,
                                 .read_only = true,
                                 .pager = s->pager});
}

static void strike(scene *s) {
  press_stop(s);
  rig_close(&s->b);
  rig_end(&s->b);
  rig_close(&s->a);
  um_stats stats;
  um_pager_stats(s->pager, &stats);
  CHECK_EQUAL(stats.used, stats.overhead + stats.idle);
  CHECK(stats.peak_used <= stats.memory);
  CHECK_EQUAL(um_pager_destroy(s->pager), 0);
}

static bool moves(const scene *s) {
  return s->a.region->moves;
}

static void touch_while_leaving(uint64_t page_size, bool fails) {
  scene s;
  set(&s, &(rig_options){.size = 8 * page_size, .page_size = page_size, .latch = true, .faults = true});
  rig_write(&s.a, 8, 1);
  latch_arm(s.a.latch, UM_OP_WRITE);
  press_start(&s);
  latch_wait(s.a.latch);
  press_stop(&s);
  if (fails)
    rig_fail(&s.a, 1u << UM_OP_WRITE, ENOSPC, 1, 0);
  rig_touch reads = {.rig = &s.a, .offset = 8}, writes = {.rig = &s.a, .offset = page_size - 8, .value = 2};
  pthread_t reader = rig_thread(rig_touch_once, &reads), writer = rig_thread(rig_touch_once, &writes);
  if (moves(&s)) {
    sleep_ms(30);
    CHECK(!atomic_load(&reads.ended) && !atomic_load(&writes.ended));
    CHECK_EQUAL(rig_state(&s.a, 0), UM_PAGE_DIRTY);
  }
  latch_release(s.a.latch);
  pthread_join(reader, NULL);
  pthread_join(writer, NULL);
  CHECK_EQUAL(latch_changed(s.a.latch), 0);
  CHECK_EQUAL(reads.value, 1);
  CHECK_EQUAL(rig_read(&s.a, 8), 1);
  CHECK_EQUAL(rig_read(&s.a, page_size - 8), 2);
  AWAIT(rig_state(&s.a, 0) == UM_PAGE_DIRTY);
  AWAIT(rig_errors(&s.a) == fails);
  strike(&s);
  CHECK_EQUAL(rig_file_word(&s.a, 8), 1);
  CHECK_EQUAL(rig_file_word(&s.a, page_size - 8), 2);
  CHECK_EQUAL(rig_file_word(&s.a, 16), rig_word(16));
  rig_end(&s.a);
}

static void test_leave_reader_and_writer_of_a_page_being_written_wait_and_lose_nothing(void) {
  touch_while_leaving(4 * KIB, false);
  touch_while_leaving(64 * KIB, false);
  touch_while_leaving(256 * KIB, false);
}

static void test_leave_reader_and_writer_of_a_page_that_the_store_refuses_lose_nothing(void) {
  touch_while_leaving(4 * KIB, true);
  touch_while_leaving(64 * KIB, true);
  touch_while_leaving(256 * KIB, true);
}

/* Its memory was out, and came back without its protection: what is written now raises no fault. */
static void come_back_and_write(uint64_t page_size) {
  scene s;
  set(&s, &(rig_options){.size = 8 * page_size, .page_size = page_size, .faults = true});
  rig_write(&s.a, 8, 1);
  rig_fail(&s.a, 1u << UM_OP_WRITE, ENOSPC, UINT64_MAX, 0);
  press_start(&s);
  AWAIT(rig_stats(&s.a).write_errors > 0);
  press_stop(&s);
  AWAIT(atomic_load(&s.a.region->writing) == 0);
  CHECK_EQUAL(rig_state(&s.a, 0), UM_PAGE_DIRTY);
  for (uint64_t offset = 16; offset < page_size; offset += 4096)
    rig_write(&s.a, offset, offset);
  rig_heal(&s.a);
  CHECK_EQUAL(rig_flush(&s.a), 0);
  CHECK_EQUAL(rig_file_word(&s.a, 8), 1);
  for (uint64_t offset = 16; offset < page_size; offset += 4096)
    CHECK_EQUAL(rig_file_word(&s.a, offset), offset);
  rig_write(&s.a, page_size - 8, 5); /* protected again since */
  strike(&s);
  CHECK_EQUAL(rig_file_word(&s.a, page_size - 8), 5);
  rig_end(&s.a);
}

static void test_leave_page_that_came_back_from_a_failing_store_keeps_later_writes(void) {
  come_back_and_write(4 * KIB);
  come_back_and_write(128 * KIB);
  come_back_and_write(2 * MIB);
}

static void test_leave_flush_waits_for_a_page_that_is_leaving(void) {
  scene s;
  set(&s, &(rig_options){.size = 8 * 4 * KIB, .latch = true});
  rig_write(&s.a, 0, 1);
  latch_arm(s.a.latch, UM_OP_WRITE);
  press_start(&s);
  latch_wait(s.a.latch);
  press_stop(&s);
  um_error error;
  um_job *job = um_region_flush_start(s.a.region, 0, s.a.size, 1);
  CHECK_EQUAL(um_job_wait(job, 30, &error), -ETIMEDOUT);
  CHECK_EQUAL(rig_file_word(&s.a, 0), rig_word(0));
  CHECK_EQUAL(um_region_gate_close(s.a.region, 0, 10), -EAGAIN);
  CHECK_EQUAL(um_region_gate_close(s.a.region, 1, 10), -EAGAIN);
  latch_release(s.a.latch);
  CHECK_EQUAL(rig_run(job, &error), 0);
  CHECK_EQUAL(rig_file_word(&s.a, 0), 1);
  CHECK_EQUAL(latch_calls(s.a.latch, UM_OP_WRITE), 1);
  strike(&s);
  rig_end(&s.a);
}

static void test_leave_hole_in_a_dirty_run_loses_that_page_alone(void) {
  scene s;
  set(&s, &(rig_options){.size = 16 * 4 * KIB});
  for (uint64_t page = 0; page < 8; page++)
    rig_write(&s.a, page * 4096, 100 + page);
  rig_drop(&s.a, 3 * 4096, 4096);
  press_start(&s);
  AWAIT(rig_stats(&s.a).dirty == 0);
  press_stop(&s);
  um_error error;
  AWAIT(um_region_error_next(s.a.region, &error) == 1);
  CHECK_EQUAL(error.code, UM_EDROPPED);
  CHECK_EQUAL(rig_errors(&s.a), 1);
  CHECK(um_region_tainted(s.a.region));
  strike(&s);
  for (uint64_t page = 0; page < 8; page++)
    CHECK_EQUAL(rig_file_word(&s.a, page * 4096), page == 3 ? rig_word(page * 4096) : 100 + page);
  rig_end(&s.a);
}

/* Bytes that no page of the region had before. */
static int source(uint64_t size, uint64_t **words) {
  char path[] = "/var/tmp/umappy-test-XXXXXX";
  int fd = mkostemp(path, O_CLOEXEC | O_DIRECT);
  if (fd < 0)
    return -1; /* no O_DIRECT there */
  CHECK_EQUAL(unlink(path), 0);
  CHECK_EQUAL(posix_memalign((void **)words, 4096, size), 0);
  for (uint64_t i = 0; i < size / 8; i++)
    (*words)[i] = ~rig_word(8 * i);
  CHECK_EQUAL(pwrite(fd, *words, size, 0), size);
  return fd;
}

static bool pins(const scene *s, const char *test) {
  if (moves(s) && pin_allowed())
    return true;
  printf("  %s skipped: %s\n", test, moves(s) ? "no io_uring here" : "pages are not moved");
  return false;
}

static void pin_and_press(uint64_t page_size, unsigned rounds) {
  scene s;
  uint64_t *words = NULL, length = page_size;
  set(&s, &(rig_options){.size = 8 * page_size, .page_size = page_size});
  int fd = source(length, &words);
  if (fd >= 0 && pins(&s, __func__)) {
    for (unsigned round = 0; round < rounds; round++) {
      uint64_t offset = round % 6 * page_size + (round & 1 ? 4096 : 0), pinned = rig_stats(&s.a).pinned;
      pin *p = pin_open(s.a.bytes + offset, length);
      press_start(&s);
      AWAIT(rig_stats(&s.a).pinned > pinned);
      pin_read(p, fd, 0, 0, (uint32_t)length); /* into the very memory that nearly left */
      press_stop(&s);
      pin_close(p);
      CHECK_EQUAL(memcmp(s.a.bytes + offset, words, length), 0);
      words[round % (length / 8)]++;
      CHECK_EQUAL(pwrite(fd, words, length, 0), length);
    }
    press_start(&s);
    AWAIT(rig_stats(&s.a).resident == 0); /* nothing holds them any more */
    uint64_t last = rounds - 1;
    words[last % (length / 8)]--;
    CHECK_EQUAL(memcmp(s.a.bytes + last % 6 * page_size + (last & 1 ? 4096 : 0), words, length), 0);
  }
  strike(&s);
  rig_end(&s.a);
  free(words);
  if (fd >= 0)
    close(fd);
}

static void test_leave_pinned_pages_stay_and_keep_what_the_device_reads(void) {
  pin_and_press(4 * KIB, 30);
  pin_and_press(64 * KIB, 30);
  pin_and_press(128 * KIB, 10);
}

/* The pin is found in the middle of a page, or of a run: what was moved before it comes back unprotected. */
static void pin_a_part(uint64_t page_size, uint64_t offset) {
  scene s;
  set(&s, &(rig_options){.size = 8 * page_size, .page_size = page_size});
  if (pins(&s, __func__)) {
    for (uint64_t at = 0; at < s.a.size; at += page_size)
      rig_write(&s.a, at, 1 + at);
    pin *p = pin_open(s.a.bytes + offset, 4096);
    CHECK_EQUAL(rig_flush(&s.a), 0);
    CHECK_EQUAL(rig_state(&s.a, 0), UM_PAGE_CLEAN);
    press_start(&s);
    AWAIT(rig_stats(&s.a).pinned > 2);
    press_stop(&s);
    uint64_t page = offset / page_size;
    AWAIT(rig_state(&s.a, page) == UM_PAGE_CLEAN || rig_state(&s.a, page) == UM_PAGE_DIRTY);
    CHECK_EQUAL(rig_read(&s.a, page * page_size), 1 + page * page_size);
    for (uint64_t at = page * page_size + 16; at < (page + 1) * page_size; at += 4096)
      rig_write(&s.a, at, 7 + at);
    pin_close(p);
    press_start(&s);
    AWAIT(rig_stats(&s.a).resident == 0);
    for (uint64_t at = page * page_size + 16; at < (page + 1) * page_size; at += 4096)
      CHECK_EQUAL(rig_read(&s.a, at), 7 + at);
  }
  strike(&s);
  rig_end(&s.a);
}

static void test_leave_page_put_back_from_a_pin_is_protected_or_dirty(void) {
  pin_a_part(4 * KIB, 4 * KIB);
  pin_a_part(64 * KIB, 64 * KIB);
  pin_a_part(64 * KIB, 64 * KIB + 60 * KIB);
  pin_a_part(256 * KIB, 100 * KIB);
}

/* The pin is found behind a page that holds 0xFF in place of lost bytes, in one run: never the store's business, and no
 * CLEAN page either. */
static void test_leave_failed_page_before_a_pinned_one_is_not_written(void) {
  scene s;
  set(&s, &(rig_options){.size = 8 * 4 * KIB, .spare = 1000}); /* room for runs of four */
  if (pins(&s, __func__)) {
    CHECK_EQUAL(rig_prefetch(&s.a, 0, 4 * 4096), 0);
    rig_write(&s.a, 4096, 1);
    rig_drop(&s.a, 4096, 4096);
    CHECK_EQUAL(rig_read(&s.a, 4096), UINT64_MAX);
    CHECK_EQUAL(rig_state(&s.a, 1), UM_PAGE_FAILED);
    pin *p = pin_open(s.a.bytes + 2 * 4096, 4096);
    CHECK_EQUAL(rig_flush(&s.a), 0);
    press_start(&s);
    AWAIT(rig_stats(&s.a).pinned > 0);
    press_stop(&s);
    AWAIT(rig_state(&s.a, 1) == UM_PAGE_FAILED || rig_state(&s.a, 1) == UM_PAGE_ABSENT);
    CHECK_EQUAL(rig_flush(&s.a), 0);
    CHECK_EQUAL(rig_file_word(&s.a, 4096), rig_word(4096));
    pin_close(p);
  }
  strike(&s);
  rig_end(&s.a);
}

typedef struct device {
  rig *rig;
  int fd;
  const uint8_t *bytes; /* what the file holds */
  uint8_t *shadow;      /* what the region must hold */
  uint64_t first, end, random, rounds, most;
} device;

#define SOURCE (4 * MIB)

static void *read_directly(void *argument) {
  device *d = argument;
  for (uint64_t round = 0; round < d->rounds; round++) {
    uint64_t random = rig_random(&d->random), length = (1 + (random >> 8) % d->most) * 4096;
    uint64_t offset = d->first + (random >> 20) % ((d->end - d->first - length) / 4096) * 4096;
    uint64_t from = (random >> 40) % ((SOURCE - length) / 4096) * 4096;
    CHECK_EQUAL(pread(d->fd, d->rig->bytes + offset, length, (off_t)from), length);
    CHECK_EQUAL(memcmp(d->rig->bytes + offset, d->bytes + from, length), 0);
    memcpy(d->shadow + offset, d->bytes + from, length);
  }
  return NULL;
}

static void read_directly_while_evicting(uint64_t page_size, uint64_t rounds) {
  scene s;
  uint64_t *words = NULL;
  set(&s, &(rig_options){.size = 192 * um_max(page_size, 32 * KIB), .page_size = page_size, .spare = 96});
  int fd = source(SOURCE, &words);
  if (fd < 0 || !moves(&s)) {
    printf("  %s skipped: %s\n", __func__, fd < 0 ? "no O_DIRECT here" : "pages are not moved");
  } else {
    device d[3];
    pthread_t threads[3];
    uint8_t *shadow = malloc(s.a.size), *file = malloc(s.a.size);
    CHECK(shadow && file);
    CHECK_EQUAL(pread(s.a.fd, shadow, s.a.size, 0), s.a.size);
    press_start(&s);
    for (uint64_t i = 0; i < 3; i++) {
      d[i] = (device){.rig = &s.a,
                      .fd = fd,
                      .bytes = (uint8_t *)words,
                      .shadow = shadow,
                      .first = s.a.size / 3 / page_size * page_size * i,
                      .end = s.a.size / 3 / page_size * page_size * (i + 1),
                      .random = 5 + i,
                      .rounds = rounds,
                      .most = 48};
      threads[i] = rig_thread(read_directly, &d[i]);
    }
    for (int i = 0; i < 3; i++)
      pthread_join(threads[i], NULL);
    press_stop(&s);
    um_stats stats = rig_stats(&s.a);
    CHECK(stats.evictions > rounds / 4);
    CHECK_EQUAL(rig_errors(&s.a), 0);
    CHECK_EQUAL(memcmp(s.a.bytes, shadow, s.a.size), 0);
    CHECK_EQUAL(rig_flush(&s.a), 0);
    CHECK_EQUAL(pread(s.a.fd, file, s.a.size, 0), s.a.size);
    CHECK_EQUAL(memcmp(file, shadow, s.a.size), 0);
    printf("  %" PRIu64 " KiB pages, %" PRIu64 " direct reads: %" PRIu64 " evictions, %" PRIu64 " found a pin\n",
           page_size >> 10, 3 * rounds, stats.evictions, stats.pinned);
    free(shadow);
    free(file);
  }
  strike(&s);
  rig_end(&s.a);
  free(words);
  if (fd >= 0)
    close(fd);
}

static void test_leave_direct_reads_into_a_region_that_evicts_lose_nothing(void) {
  read_directly_while_evicting(4 * KIB, 300);
  read_directly_while_evicting(64 * KIB, 300);
  read_directly_while_evicting(128 * KIB, 200);
}

/* The kernel moves no memory between a locked mapping and one that is not. */
static void test_leave_pages_of_a_locked_region_leave_too(void) {
  scene s;
  if (SLOWER > 1) {
    printf("  %s skipped: under sanitizers munlock does nothing\n", __func__);
    return;
  }
  set(&s, &(rig_options){.size = 64 * 4 * KIB});
  CHECK_EQUAL(mlock2(s.a.bytes, s.a.size, MLOCK_ONFAULT), 0);
  for (uint64_t page = 0; page < 20; page++)
    rig_write(&s.a, page * 4096, 100 + page);
  press_start(&s);
  AWAIT(rig_stats(&s.a).resident == 0);
  press_stop(&s);
  CHECK_EQUAL(mlock2(s.a.bytes, s.a.size, MLOCK_ONFAULT), 0);
  for (uint64_t page = 0; page < 20; page++) {
    CHECK_EQUAL(rig_read(&s.a, page * 4096), 100 + page);
    rig_write(&s.a, page * 4096, 200 + page);
  }
  CHECK_EQUAL(rig_flush(&s.a), 0); /* clean, and were writable */
  press_start(&s);
  AWAIT(rig_stats(&s.a).resident == 0);
  strike(&s);
  for (uint64_t page = 0; page < 20; page++)
    CHECK_EQUAL(rig_file_word(&s.a, page * 4096), 200 + page);
  rig_end(&s.a);
}

/* Its memory is gone by the user's own hand; what is left of it counts until it leaves. */
static void test_leave_clean_page_with_a_hole_leaves_too(void) {
  scene s;
  set(&s, &(rig_options){.size = 8 * 64 * KIB, .page_size = 64 * KIB});
  rig_write(&s.a, 0, 1);
  CHECK_EQUAL(rig_flush(&s.a), 0);
  rig_drop(&s.a, 4096, 4096);
  press_start(&s);
  AWAIT(rig_stats(&s.a).resident == 0);
  press_stop(&s);
  CHECK_EQUAL(rig_errors(&s.a), 0);
  CHECK_EQUAL(rig_read(&s.a, 0), 1);
  CHECK_EQUAL(rig_read(&s.a, 4096), rig_word(4096));
  strike(&s);
  rig_end(&s.a);
}

/* Flushes, evictions and pressure at once, a store that fails now and then: every write is there in the end. */
static void test_leave_against_flushes_and_failing_writes_loses_nothing(void) {
  scene s;
  set(&s, &(rig_options){.size = 256 * 4 * KIB, .faults = true, .spare = 64});
  um_fault_options now_and_then = {.ops = 1u << UM_OP_WRITE, .code = ENOSPC, .count = UINT64_MAX, .every = 7};
  um_fault_store_set(s.a.faults, &now_and_then);
  press_start(&s);
  uint64_t last[256] = {0}, random = 3;
  uint64_t end = now_ns() + 400000000;
  for (uint64_t i = 1; now_ns() < end; i++) {
    uint64_t page = rig_random(&random) % 256, offset = page * 4096 + 8;
    CHECK_EQUAL(rig_read(&s.a, offset), last[page] ? last[page] : rig_word(offset));
    rig_write(&s.a, offset, last[page] = i);
    if (i % 64 == 0) {
      int code = rig_flush(&s.a);
      CHECK(code == 0 || code == -ENOSPC);
    }
  }
  press_stop(&s);
  rig_heal(&s.a);
  CHECK_EQUAL(um_region_tainted(s.a.region), 0);
  strike(&s);
  for (uint64_t page = 0; page < 256; page++)
    CHECK_EQUAL(rig_file_word(&s.a, page * 4096 + 8), last[page] ? last[page] : rig_word(page * 4096 + 8));
  rig_end(&s.a);
}

int main(void) {
  rig_policy = UM_POLICY_FIFO; /* who presses makes the pages of others leave */
  watchdog_start(20);
  RUN(test_leave_reader_and_writer_of_a_page_being_written_wait_and_lose_nothing);
  RUN(test_leave_reader_and_writer_of_a_page_that_the_store_refuses_lose_nothing);
  RUN(test_leave_page_that_came_back_from_a_failing_store_keeps_later_writes);
  RUN(test_leave_flush_waits_for_a_page_that_is_leaving);
  RUN(test_leave_hole_in_a_dirty_run_loses_that_page_alone);
  RUN(test_leave_pinned_pages_stay_and_keep_what_the_device_reads);
  RUN(test_leave_page_put_back_from_a_pin_is_protected_or_dirty);
  RUN(test_leave_failed_page_before_a_pinned_one_is_not_written);
  RUN(test_leave_direct_reads_into_a_region_that_evicts_lose_nothing);
  RUN(test_leave_pages_of_a_locked_region_leave_too);
  RUN(test_leave_clean_page_with_a_hole_leaves_too);
  RUN(test_leave_against_flushes_and_failing_writes_loses_nothing);
  watchdog_pet("the end");
  return 0;
}
