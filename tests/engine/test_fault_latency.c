/* What a fault costs above the least it can: a bare uffd loop that answers each fault from memory, against the engine
 * filling the same 4 KiB pages from a file in memory. Prints both, and percentiles (p100 is the largest); fails only
 * when the engine is out of all proportion.
 *
 *     test_fault_latency [FAULTING SERVING]
 *
 * keeps the thread that faults on one core and those that serve it on another, or on the same: else it is the scheduler
 * that makes most of the difference, and not the same one each time. */
#define _GNU_SOURCE
#include "rig.h"
#include "uffd.h"

#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGES 4096u

static int faulting_core = -1, serving_core = -1; /* -1: any */

static void move_to(int core) {
  if (core < 0)
    return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET((unsigned)core, &set);
  CHECK_EQUAL(sched_setaffinity(0, sizeof set, &set), 0);
}

static int by_value(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return x < y ? -1 : x > y;
}

/* Median ns of touching one absent page, in an order without pattern. */
static uint64_t measure(const char *who, const uint8_t *bytes) {
  static const double percents[] = {1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100};
  static uint64_t took[PAGES];
  for (uint64_t i = 0; i < PAGES; i++) {
    uint64_t began = now_ns();
    *(const volatile uint8_t *)(bytes + i * 1597 % PAGES * 4096);
    took[i] = now_ns() - began;
  }
  qsort(took, PAGES, sizeof *took, by_value);
  printf("  %s, us:", who);
  for (unsigned i = 0; i < sizeof percents / sizeof *percents; i++)
    printf(" p%g %.2f", percents[i], (double)took[(unsigned)(percents[i] * (PAGES - 1) / 100)] / 1e3);
  printf("\n");
  return took[PAGES / 2];
}

typedef struct bare {
  int uffd;
  _Atomic bool stop;
} bare;

static void *answer(void *argument) {
  bare *b = argument;
  static uint8_t page[4096] __attribute__((aligned(4096)));
  struct uffd_msg message;
  struct pollfd fd = {b->uffd, POLLIN, 0};
  while (!atomic_load(&b->stop))
    if (poll(&fd, 1, 100) > 0 && um_uffd_read(b->uffd, &message, 1) == 1) {
      CHECK_EQUAL(um_uffd_copy(b->uffd, message.address & ~4095ull, page, 4096, true), 0);
      CHECK_EQUAL(um_uffd_wake(b->uffd, message.address & ~4095ull, 4096), 0);
    }
  return NULL;
}

static uint64_t measure_bare(void) {
  uint32_t mode;
  uint64_t features;
  bare b = {.uffd = um_uffd_open(UM_UFFD_AUTO, &mode, &features)};
  CHECK(b.uffd >= 0);
  uint8_t *bytes = rig_map(PAGES * 4096);
  CHECK_EQUAL(madvise(bytes, PAGES * 4096, MADV_NOHUGEPAGE), 0);
  CHECK_EQUAL(um_uffd_register(b.uffd, (uintptr_t)bytes, PAGES * 4096), 0);
  move_to(serving_core); /* threads begin where their maker is */
  pthread_t thread = rig_thread(answer, &b);
  move_to(faulting_core);
  uint64_t median = measure("bare uffd loop", bytes);
  atomic_store(&b.stop, true);
  pthread_join(thread, NULL);
  CHECK_EQUAL(munmap(bytes, PAGES * 4096) | close(b.uffd), 0);
  return median;
}

static uint64_t measure_engine(uint64_t memory) {
  rig r;
  move_to(serving_core);
  rig_open(&r, &(rig_options){.size = PAGES * 4096, .memory = memory, .fillers = 3, .read_only = true, .cached = true});
  move_to(faulting_core);
  uint64_t median = measure("engine", r.bytes);
  um_stats s = rig_stats(&r);
  CHECK_EQUAL(s.read_faults, PAGES);
  CHECK((s.evictions > 0) == (memory < 2 * PAGES * 4096));
  rig_close(&r);
  rig_end(&r);
  return median;
}

static void test_fault_costs_little_more_than_a_bare_loop(void) {
  uint64_t loop = measure_bare();
  uint64_t roomy = measure_engine(4 * PAGES * 4096), tight = measure_engine(PAGES * 4096 / 8);
  printf("  4 KiB fault, median: bare uffd loop %.1f us, engine %.1f us, engine with eviction %.1f us\n",
         (double)loop / 1e3, (double)roomy / 1e3, (double)tight / 1e3);
  CHECK(roomy < 20 * loop + 200000 * SLOWER);
  CHECK(tight < 20 * loop + 400000 * SLOWER);
}

int main(int count, char **arguments) {
  if (count == 3)
    faulting_core = atoi(arguments[1]), serving_core = atoi(arguments[2]);
  watchdog_start(20);
  RUN(test_fault_costs_little_more_than_a_bare_loop);
  watchdog_pet("the end");
  return 0;
}
