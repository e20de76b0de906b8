/* Closing a region against faults, fills, write-back and jobs. */
#include "rig.h"

#include <signal.h>
#include <sys/mman.h>

static void test_gate_does_not_close_over_dirty_or_filling_pages_or_jobs(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12, .latch = true});
  rig_write(&r, 0, 1);
  CHECK_EQUAL(um_region_gate_close(r.region, 0, 20), -EAGAIN);
  latch_arm(r.latch, UM_OP_WRITE);
  um_job *job = um_region_flush_start(r.region, 0, r.size, 0);
  latch_wait(r.latch);
  CHECK_EQUAL(um_region_gate_close(r.region, 0, 20), -EAGAIN);
  CHECK_EQUAL(um_region_gate_close(r.region, 1, 20), -EAGAIN); /* nor to discard what is being written */
  latch_release(r.latch);
  CHECK_EQUAL(rig_run(job, NULL), 0);
  latch_arm(r.latch, UM_OP_READ);
  job = um_region_prefetch_start(r.region, 4096, 4096);
  latch_wait(r.latch);
  CHECK_EQUAL(um_region_gate_close(r.region, 1, 20), -EAGAIN);
  latch_release(r.latch);
  CHECK_EQUAL(rig_run(job, NULL), 0);
  CHECK_EQUAL(rig_read(&r, 4096), rig_word(4096));
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 0), 1);
  rig_end(&r);
}

static void test_close_without_flush_discards(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12});
  rig_write(&r, 0, 1);
  CHECK_EQUAL(um_region_gate_close(r.region, 1, 1000), 0);
  um_region_gate_open(r.region);
  CHECK_EQUAL(rig_read(&r, 0), 1);
  rig_discard(&r);
  CHECK_EQUAL(rig_file_word(&r, 0), rig_word(0));
  rig_end(&r);
}

typedef struct reader {
  rig *rig;
  uint64_t offset;
  _Atomic uint64_t word;
  _Atomic bool ended, stop;
  _Atomic uint64_t turns;
  uint64_t random;
} reader;

static void *read_one(void *argument) {
  reader *x = argument;
  atomic_store(&x->word, rig_read(x->rig, x->offset));
  atomic_store(&x->ended, true);
  return NULL;
}

static void *write_one(void *argument) {
  reader *x = argument;
  rig_write(x->rig, x->offset, 4711);
  atomic_store(&x->ended, true);
  return NULL;
}

static void test_faults_at_a_closed_gate_go_on_when_it_opens(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12});
  rig_read(&r, 4096);
  reader reads = {.rig = &r, .offset = 0}, writes = {.rig = &r, .offset = 4096};
  CHECK_EQUAL(um_region_gate_close(r.region, 0, 1000), 0);
  pthread_t one = rig_thread(read_one, &reads), two = rig_thread(write_one, &writes);
  sleep_ms(30);
  CHECK(!atomic_load(&reads.ended) && !atomic_load(&writes.ended));
  um_region_gate_open(r.region);
  pthread_join(one, NULL);
  pthread_join(two, NULL);
  CHECK_EQUAL(atomic_load(&reads.word), rig_word(0));
  CHECK_EQUAL(rig_read(&r, 4096), 4711);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 4096), 4711);
  rig_end(&r);
}

static void *read_on(void *argument) {
  reader *x = argument;
  while (!atomic_load(&x->stop)) {
    uint64_t offset = rig_random(&x->random) % x->rig->size / 8 * 8;
    CHECK_EQUAL(rig_read(x->rig, offset), rig_word(offset));
    atomic_fetch_add(&x->turns, 1);
  }
  return NULL;
}

static void test_gate_opening_and_closing_loses_no_fault(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 256 << 12, .read_only = true, .fillers = 3});
  reader readers[4];
  pthread_t threads[4];
  for (int i = 0; i < 4; i++) {
    readers[i] = (reader){.rig = &r, .random = 99 + (uint64_t)i};
    threads[i] = rig_thread(read_on, &readers[i]);
  }
  uint64_t end = now_ns() + 500000000, closed = 0;
  while (now_ns() < end) {
    closed += um_region_gate_close(r.region, 0, 5) == 0;
    um_region_gate_open(r.region);
  }
  CHECK(closed > 10);
  for (int i = 0; i < 4; i++) {
    uint64_t turns = atomic_load(&readers[i].turns), patience = now_ns() + 5000000000;
    while (atomic_load(&readers[i].turns) == turns)
      CHECK(now_ns() < patience);
    atomic_store(&readers[i].stop, true);
    pthread_join(threads[i], NULL);
  }
  rig_close(&r);
  rig_end(&r);
}

static void forget_under_a_fault(void *unused) {
  (void)unused;
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12, .read_only = true});
  reader reads = {.rig = &r};
  CHECK_EQUAL(um_region_gate_close(r.region, 0, 1000), 0);
  rig_thread(read_one, &reads);
  sleep_ms(30);
  CHECK_EQUAL(munmap(r.bytes, r.mapped), 0);
  um_region_forget(r.region);
  sleep_ms(10000);
}

/* As with any mapping that is unmapped under somebody's feet; what it must not do is wait for ever. */
static void test_thread_that_faults_in_a_region_being_forgotten_is_killed(void) {
  rig_child(forget_under_a_fault, NULL, SIGSEGV);
}

static void *map_read_unmap(void *argument) {
  reader *x = argument;
  while (!atomic_load(&x->stop)) {
    rig r;
    rig_open(&r, &(rig_options){.size = 5 << 12, .pager = x->rig->pager});
    for (uint64_t page = 0; page < 5; page++)
      CHECK_EQUAL(rig_read(&r, page * 4096), rig_word(page * 4096));
    rig_write(&r, 4096, 8);
    rig_close(&r);
    CHECK_EQUAL(rig_file_word(&r, 4096), 8);
    rig_end(&r);
    atomic_fetch_add(&x->turns, 1);
  }
  return NULL;
}

/* Freed addresses are used again at once, while faults on other regions come. */
static void test_regions_come_and_go_beside_one_in_use(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 64 << 12, .fillers = 2, .spare = 30});
  reader x[4] = {{.rig = &r, .random = 5}, {.rig = &r, .random = 6}, {.rig = &r}, {.rig = &r}};
  pthread_t threads[4];
  for (int i = 0; i < 4; i++)
    threads[i] = rig_thread(i < 2 ? read_on : map_read_unmap, &x[i]);
  sleep_ms(500);
  for (int i = 0; i < 4; i++)
    atomic_store(&x[i].stop, true);
  for (int i = 0; i < 4; i++) {
    pthread_join(threads[i], NULL);
    CHECK(atomic_load(&x[i].turns) > 5);
  }
  CHECK_EQUAL(rig_errors(&r), 0);
  rig_close(&r);
  rig_end(&r);
}

int main(void) {
  watchdog_start(20);
  RUN(test_thread_that_faults_in_a_region_being_forgotten_is_killed);
  RUN(test_gate_does_not_close_over_dirty_or_filling_pages_or_jobs);
  RUN(test_close_without_flush_discards);
  RUN(test_faults_at_a_closed_gate_go_on_when_it_opens);
  RUN(test_gate_opening_and_closing_loses_no_fault);
  RUN(test_regions_come_and_go_beside_one_in_use);
  watchdog_pet("the end");
  return 0;
}
