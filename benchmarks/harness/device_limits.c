/* What a device gives at best, past the page cache: sequential bytes a second and random 4 KiB reads a second.
 *
 *     device_limits FILE SECONDS [MEMORY]
 *
 * Tries each depth for SECONDS, then the best one for three times as long: the maximum of several short, noisy trials
 * alone would be too high. "sequential" reads to a buffer a thread, which stays in the processor's cache; "wide" goes
 * round in MEMORY bytes of huge pages, made beforehand, as who keeps what he reads must. Prints a line a trial: kind,
 * way, block in bytes, depth, and bytes or reads a second; the last line of a kind, whose way ends in "-best", is the
 * result. */
#define _GNU_SOURCE
#include "random_read.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define THREADS_MAX 64u
#define HUGE (2ull << 20)

typedef struct trial {
  int fd;
  uint64_t size;         /* of the file, in bytes */
  uint64_t block;        /* bytes a read */
  uint64_t end_ns;       /* when to stop */
  _Atomic uint64_t next; /* block that the next sequential read takes */
  _Atomic uint64_t done; /* blocks read */
  int sequential;
  char *ring; /* where sequential reads go round; NULL: each thread has a buffer */
  uint64_t ring_size;
} trial;

typedef struct reader {
  trial *trial;
  uint64_t seed;
  pthread_t thread;
} reader;

uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t random_offset(uint64_t *state, uint64_t size) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state % (size / RANDOM_BLOCK) * RANDOM_BLOCK;
}

/* Large ones are of huge pages: a device is told of each page, and a virtual machine's reads small ones at half the
 * rate. */
void *aligned_buffer(uint64_t size) {
  bool huge = size >= HUGE / 2;
  void *buffer;
  if (huge)
    size = (size + HUGE - 1) / HUGE * HUGE;
  int error = posix_memalign(&buffer, huge ? HUGE : 4096, size);
  if (error)
    die("posix_memalign", error);
  if (huge)
    madvise(buffer, size, MADV_HUGEPAGE);
  memset(buffer, 1, size); /* its own memory, before the clock starts */
  return buffer;
}

void die(const char *what, int error) {
  fprintf(stderr, "%s: %s\n", what, strerror(error));
  exit(1);
}

static void *run_reader(void *argument) {
  reader *r = argument;
  trial *t = r->trial;
  void *buffer = aligned_buffer(t->block);
  uint64_t blocks = t->size / t->block;
  while (now_ns() < t->end_ns) {
    uint64_t at = t->sequential ? atomic_fetch_add(&t->next, 1) % blocks * t->block : random_offset(&r->seed, t->size);
    ssize_t got = pread(t->fd, t->ring ? t->ring + at % t->ring_size : buffer, t->block, (off_t)at);
    if (got != (ssize_t)t->block)
      die("pread", got < 0 ? errno : EIO);
    atomic_fetch_add(&t->done, 1);
  }
  free(buffer);
  return NULL;
}

/* Blocks a second of `threads` readers. Sequential trials go on where the last one ended: `*next`. */
static double measure(trial t, unsigned threads, uint64_t ns, uint64_t *next) {
  static uint64_t seed = 0x9E3779B97F4A7C15u;
  t.sequential = next != NULL;
  atomic_store(&t.next, next ? *next / t.block : 0);
  uint64_t start = now_ns();
  t.end_ns = start + ns;
  reader readers[THREADS_MAX];
  for (unsigned i = 0; i < threads; i++) {
    readers[i] = (reader){&t, seed += 0x9E3779B97F4A7C15u, 0};
    int error = pthread_create(&readers[i].thread, NULL, run_reader, &readers[i]);
    if (error)
      die("pthread_create", error);
  }
  for (unsigned i = 0; i < threads; i++)
    pthread_join(readers[i].thread, NULL);
  if (next)
    *next = atomic_load(&t.next) * t.block % t.size;
  return (double)atomic_load(&t.done) / ((double)(now_ns() - start) / 1e9);
}

/* `memory`: of the ring; 0: none. */
static void measure_sequential(int fd, uint64_t size, uint64_t memory, uint64_t ns) {
  static const unsigned depths[] = {1, 2, 4, 8};
  const char *kind = memory ? "wide" : "sequential";
  trial t = {.fd = fd, .size = size, .ring = memory ? aligned_buffer(memory) : NULL, .ring_size = memory};
  uint64_t next = 0, best_block = 0;
  unsigned best_depth = 1;
  double best = 0;
  for (t.block = 1 << 20; t.block <= HUGE && t.block <= size; t.block *= 2)
    for (unsigned i = 0; i < sizeof depths / sizeof *depths; i++) {
      double rate = measure(t, depths[i], ns, &next) * (double)t.block;
      printf("%s threads %lu %u %.0f\n", kind, (unsigned long)t.block, depths[i], rate);
      if (rate > best)
        best = rate, best_block = t.block, best_depth = depths[i];
    }
  if (!best_block)
    die("the file is smaller than 1 MiB", EINVAL);
  t.block = best_block;
  double rate = measure(t, best_depth, 3 * ns, &next) * (double)best_block;
  printf("%s threads-best %lu %u %.0f\n", kind, (unsigned long)best_block, best_depth, rate);
  free(t.ring);
}

static double measure_random(int fd, uint64_t size, int uring, unsigned depth, uint64_t ns) {
  return uring ? uring_random_rate(fd, size, depth, ns)
               : measure((trial){.fd = fd, .size = size, .block = RANDOM_BLOCK}, depth, ns, NULL);
}

static void measure_randoms(int fd, uint64_t size, uint64_t ns) {
  static const char *const ways[] = {"threads", "io_uring"};
  double best = 0;
  int best_way = 0;
  unsigned best_depth = 1;
  for (int way = 0; way < 2; way++)
    for (unsigned depth = 1; depth <= (way ? 128 : THREADS_MAX); depth *= way ? 2 : 4) {
      double rate = measure_random(fd, size, way, depth, ns);
      if (rate < 0) {
        fprintf(stderr, "no io_uring: %s\n", strerror((int)-rate));
        break;
      }
      printf("random %s %u %u %.0f\n", ways[way], RANDOM_BLOCK, depth, rate);
      if (rate > best)
        best = rate, best_way = way, best_depth = depth;
    }
  double rate = measure_random(fd, size, best_way, best_depth, 3 * ns);
  printf("random %s-best %u %u %.0f\n", ways[best_way], RANDOM_BLOCK, best_depth, rate);
}

int main(int count, char **arguments) {
  uint64_t memory = count == 4 ? strtoull(arguments[3], NULL, 10) / HUGE * HUGE : 0;
  if (count < 3 || count > 4 || (count == 4 && memory == 0)) {
    fprintf(stderr, "usage: %s FILE SECONDS [MEMORY, at least 2 MiB]\n", arguments[0]);
    return 2;
  }
  uint64_t ns = (uint64_t)(atof(arguments[2]) * 1e9);
  int fd = open(arguments[1], O_RDONLY | O_DIRECT | O_CLOEXEC);
  struct stat st;
  if (fd < 0 || fstat(fd, &st))
    die(arguments[1], errno);
  measure_sequential(fd, (uint64_t)st.st_size, 0, ns);
  if (memory)
    measure_sequential(fd, (uint64_t)st.st_size, memory, ns);
  measure_randoms(fd, (uint64_t)st.st_size, ns);
  return 0;
}
