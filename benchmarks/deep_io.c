/* deep_io.c: what a device gives at a depth, and what each way of asking costs. deep_io.py builds it and makes the
 * tables.
 *
 *   deep_io rate FILE WAY THREADS DEPTH BLOCK random|sequential SECONDS WORK_NS
 *   deep_io single FILE direct-pread|direct-ring|... COUNT
 *
 * rate: THREADS threads keep DEPTH requests in flight together for SECONDS; after each read a thread works for WORK_NS,
 * as a filler does when it puts a page into place. Prints: reads, seconds, CPU seconds of the process (its io_uring
 * workers included; the kernel's own threads, as a loop device's, are not).
 * single: one call after another; prints: calls, seconds, CPU seconds.
 *
 * Ways: pread (a thread holds one request), aio (io_submit), ring (io_uring), ring-batch (the same, but a thread waits
 * for all of its requests before it works on the first), ring-fixed (io_uring with the file and the buffers
 * registered). System calls and structures are our own: headers may be older than the kernel. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define CALL_RING_SETUP 425
#define CALL_RING_ENTER 426
#define CALL_RING_REGISTER 427
#define CALL_CACHESTAT 451

#define RING_SINGLE_ISSUER (1u << 12)
#define RING_DEFER_TASKRUN (1u << 13)
#define ENTER_GETEVENTS 1u
#define OP_READ_FIXED 4
#define OP_READ 22
#define SUBMIT_FIXED_FILE 1u
#define NOWAIT 8 /* RWF_NOWAIT */

#define DEPTH_MAX 1024

#define DIE(...)                                                                                                       \
  do {                                                                                                                 \
    fprintf(stderr, "deep_io: " __VA_ARGS__);                                                                          \
    fprintf(stderr, ": %s\n", strerror(errno));                                                                        \
    exit(1);                                                                                                           \
  } while (0)

/* As the kernel lays them out. */
typedef struct ring_params {
  uint32_t submit_entries, complete_entries, flags, cpu, idle, features, parent, reserved[3];
  struct {
    uint32_t head, tail, mask, entries, flags, dropped, array, reserved;
    uint64_t address;
  } submit;
  struct {
    uint32_t head, tail, mask, entries, overflow, entries_at, flags, reserved;
    uint64_t address;
  } complete;
} ring_params;

typedef struct submission {
  uint8_t op, flags;
  uint16_t priority;
  int32_t descriptor;
  uint64_t offset, address;
  uint32_t length, call_flags;
  uint64_t user;
  uint16_t buffer, personality;
  uint32_t splice;
  uint64_t pad[2];
} submission;

typedef struct completion {
  uint64_t user;
  int32_t result;
  uint32_t flags;
} completion;

typedef struct aio_request {
  uint64_t user;
  uint32_t key, call_flags;
  uint16_t op;
  int16_t priority;
  uint32_t descriptor;
  uint64_t address, length;
  int64_t offset;
  uint64_t reserved;
  uint32_t flags, event_descriptor;
} aio_request;

typedef struct aio_event {
  uint64_t user, request;
  int64_t result, result2;
} aio_event;

typedef struct cache_range {
  uint64_t offset, length;
} cache_range;

typedef struct cache_counts {
  uint64_t cached, dirty, writeback, evicted, recently_evicted;
} cache_counts;

/* One measurement; constant while it runs, but for the last three. */
typedef struct trial {
  const char *way;
  int descriptor;
  uint64_t file_size, block;
  bool random;
  uint64_t work_ns;
  uint32_t depth; /* of one thread */
  pthread_barrier_t barrier;
  atomic_bool stop;
  _Atomic uint64_t next; /* sequential: the block after the last one asked for */
} trial;

typedef struct worker {
  pthread_t thread;
  trial *trial;
  uint64_t seed;
  uint64_t reads; /* ended */
  char *memory;   /* a block a request */
} worker;

static double now(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static double cpu_seconds(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static uint64_t random_next(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

static uint64_t offset_next(worker *self) {
  trial *t = self->trial;
  uint64_t blocks = t->file_size / t->block;
  uint64_t index = t->random ? random_next(&self->seed) : atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed);
  return index % blocks * t->block;
}

static void work(uint64_t duration_ns) {
  if (duration_ns == 0)
    return;
  double end = now(CLOCK_THREAD_CPUTIME_ID) + (double)duration_ns * 1e-9;
  while (now(CLOCK_THREAD_CPUTIME_ID) < end) {
  }
}

static void count_read(worker *self, int64_t result) {
  if (result != (int64_t)self->trial->block) {
    errno = result < 0 ? (int)-result : EIO;
    DIE("a read of %zu bytes", (size_t)self->trial->block);
  }
  self->reads++;
  work(self->trial->work_ns);
}

static bool is_over(worker *self) {
  return atomic_load_explicit(&self->trial->stop, memory_order_relaxed);
}

static void run_pread(worker *self) {
  trial *t = self->trial;
  pthread_barrier_wait(&t->barrier);
  while (!is_over(self)) {
    ssize_t count = pread(t->descriptor, self->memory, t->block, (off_t)offset_next(self));
    count_read(self, count < 0 ? -errno : count);
  }
}

static void run_aio(worker *self) {
  trial *t = self->trial;
  uint64_t context = 0;
  if (syscall(SYS_io_setup, t->depth, &context) < 0)
    DIE("io_setup");
  aio_request requests[DEPTH_MAX], *ready[DEPTH_MAX];
  aio_event events[DEPTH_MAX];
  uint32_t idle[DEPTH_MAX], idle_count = t->depth, flying = 0;
  for (uint32_t i = 0; i < t->depth; i++)
    idle[i] = i;
  pthread_barrier_wait(&t->barrier);
  while (!is_over(self) || flying > 0) {
    if (!is_over(self) && idle_count > 0) {
      for (uint32_t i = 0; i < idle_count; i++) {
        ready[i] = &requests[idle[i]];
        *ready[i] = (aio_request){.user = idle[i],
                                  .descriptor = (uint32_t)t->descriptor,
                                  .address = (uintptr_t)(self->memory + idle[i] * t->block),
                                  .length = t->block,
                                  .offset = (int64_t)offset_next(self)};
      }
      long count = syscall(SYS_io_submit, context, (long)idle_count, ready);
      if (count != (long)idle_count)
        DIE("io_submit");
      flying += idle_count;
      idle_count = 0;
    }
    long count = syscall(SYS_io_getevents, context, 1L, (long)flying, events, NULL);
    if (count < 0)
      DIE("io_getevents");
    for (long i = 0; i < count; i++) {
      count_read(self, events[i].result);
      idle[idle_count++] = (uint32_t)events[i].user;
    }
    flying -= (uint32_t)count;
  }
  syscall(SYS_io_destroy, context);
}

typedef struct ring {
  int descriptor;
  _Atomic uint32_t *submit_tail, *complete_head, *complete_tail;
  uint32_t *submit_array;
  uint32_t submit_mask, complete_mask;
  submission *submissions;
  completion *completions;
} ring;

static void *ring_map(int descriptor, size_t size, off_t what) {
  void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, descriptor, what);
  if (memory == MAP_FAILED)
    DIE("mapping a ring");
  return memory;
}

static void ring_open(ring *r, uint32_t entries) {
  ring_params p = {.flags = RING_SINGLE_ISSUER | RING_DEFER_TASKRUN};
  r->descriptor = (int)syscall(CALL_RING_SETUP, entries, &p);
  if (r->descriptor < 0 && errno == EINVAL) { /* before 6.1 */
    p = (ring_params){0};
    r->descriptor = (int)syscall(CALL_RING_SETUP, entries, &p);
  }
  if (r->descriptor < 0)
    DIE("io_uring_setup");
  char *submit = ring_map(r->descriptor, p.submit.array + p.submit_entries * sizeof(uint32_t), 0);
  char *complete = ring_map(r->descriptor, p.complete.entries_at + p.complete_entries * sizeof(completion), 0x8000000);
  r->submissions = ring_map(r->descriptor, p.submit_entries * sizeof(submission), 0x10000000);
  r->submit_tail = (void *)(submit + p.submit.tail);
  r->submit_array = (void *)(submit + p.submit.array);
  r->submit_mask = *(uint32_t *)(void *)(submit + p.submit.mask);
  r->complete_head = (void *)(complete + p.complete.head);
  r->complete_tail = (void *)(complete + p.complete.tail);
  r->complete_mask = *(uint32_t *)(void *)(complete + p.complete.mask);
  r->completions = (void *)(complete + p.complete.entries_at);
}

static void ring_register(ring *r, worker *self) {
  struct iovec buffers = {self->memory, self->trial->depth * self->trial->block};
  if (syscall(CALL_RING_REGISTER, r->descriptor, 0, &buffers, 1) < 0)
    DIE("registering the buffers");
  if (syscall(CALL_RING_REGISTER, r->descriptor, 2, &self->trial->descriptor, 1) < 0)
    DIE("registering the file");
}

static void ring_push(ring *r, worker *self, uint32_t index, bool fixed) {
  trial *t = self->trial;
  uint32_t tail = atomic_load_explicit(r->submit_tail, memory_order_relaxed);
  uint32_t slot = tail & r->submit_mask;
  r->submissions[slot] = (submission){.op = fixed ? OP_READ_FIXED : OP_READ,
                                      .flags = fixed ? SUBMIT_FIXED_FILE : 0,
                                      .descriptor = fixed ? 0 : t->descriptor,
                                      .offset = offset_next(self),
                                      .address = (uintptr_t)(self->memory + index * t->block),
                                      .length = (uint32_t)t->block,
                                      .user = index};
  r->submit_array[slot] = slot;
  atomic_store_explicit(r->submit_tail, tail + 1, memory_order_release);
}

static void run_ring(worker *self) {
  trial *t = self->trial;
  bool fixed = strcmp(t->way, "ring-fixed") == 0, batch = strcmp(t->way, "ring-batch") == 0;
  ring r;
  ring_open(&r, t->depth);
  if (fixed)
    ring_register(&r, self);
  uint32_t idle[DEPTH_MAX], idle_count = t->depth, flying = 0;
  for (uint32_t i = 0; i < t->depth; i++)
    idle[i] = i;
  pthread_barrier_wait(&t->barrier);
  while (!is_over(self) || flying > 0) {
    uint32_t fresh = is_over(self) ? 0 : idle_count;
    for (uint32_t i = 0; i < fresh; i++)
      ring_push(&r, self, idle[i], fixed);
    if (fresh > 0)
      idle_count = 0;
    flying += fresh;
    uint32_t wanted = batch ? flying : flying > 0;
    if (syscall(CALL_RING_ENTER, r.descriptor, fresh, wanted, ENTER_GETEVENTS, NULL, 0) != (long)fresh)
      DIE("io_uring_enter");
    uint32_t head = atomic_load_explicit(r.complete_head, memory_order_relaxed);
    while (head != atomic_load_explicit(r.complete_tail, memory_order_acquire)) {
      completion *c = &r.completions[head++ & r.complete_mask];
      int64_t result = c->result;
      idle[idle_count++] = (uint32_t)c->user;
      flying--;
      atomic_store_explicit(r.complete_head, head, memory_order_release);
      count_read(self, result);
    }
  }
  close(r.descriptor);
}

static void *run(void *argument) {
  worker *self = argument;
  const char *way = self->trial->way;
  if (strcmp(way, "pread") == 0)
    run_pread(self);
  else if (strcmp(way, "aio") == 0)
    run_aio(self);
  else
    run_ring(self);
  return NULL;
}

static uint64_t size_of(int descriptor) {
  struct stat status;
  if (fstat(descriptor, &status) < 0)
    DIE("fstat");
  return (uint64_t)status.st_size;
}

static char *make_memory(size_t size) {
  char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    DIE("memory");
  memset(memory, 1, size);
  return memory;
}

static int measure_rate(char **arguments) {
  trial t = {.way = arguments[1], .work_ns = strtoull(arguments[7], NULL, 10)};
  uint32_t threads = (uint32_t)atoi(arguments[2]);
  t.depth = (uint32_t)atoi(arguments[3]) / threads;
  t.block = strtoull(arguments[4], NULL, 10);
  t.random = strcmp(arguments[5], "random") == 0;
  if (t.depth == 0 || t.depth > DEPTH_MAX || (strcmp(t.way, "pread") == 0 && t.depth != 1)) {
    errno = EINVAL;
    DIE("depth");
  }
  t.descriptor = open(arguments[0], O_RDONLY | O_DIRECT);
  if (t.descriptor < 0)
    DIE("%s", arguments[0]);
  t.file_size = size_of(t.descriptor);
  atomic_init(&t.next, (uint64_t)time(NULL) * 7919);
  pthread_barrier_init(&t.barrier, NULL, threads + 1);
  worker *workers = calloc(threads, sizeof(worker));
  for (uint32_t i = 0; i < threads; i++) {
    workers[i] = (worker){.trial = &t,
                          .seed = (uint64_t)(now(CLOCK_REALTIME) * 1e6) * 2654435761u + i * 40503u + 1,
                          .memory = make_memory(t.depth * t.block)};
    if (pthread_create(&workers[i].thread, NULL, run, &workers[i]) != 0)
      DIE("a thread");
  }
  double start_cpu = cpu_seconds();
  pthread_barrier_wait(&t.barrier);
  double start = now(CLOCK_MONOTONIC), duration = atof(arguments[6]);
  usleep((useconds_t)(duration * 1e6));
  atomic_store(&t.stop, true);
  uint64_t reads = 0;
  for (uint32_t i = 0; i < threads; i++) {
    pthread_join(workers[i].thread, NULL);
    reads += workers[i].reads;
  }
  printf("%llu %.6f %.6f\n", (unsigned long long)reads, now(CLOCK_MONOTONIC) - start, cpu_seconds() - start_cpu);
  return 0;
}

/* One call on 4 KiB (or on 2 MiB) at `offset`. */
static void call_once(const char *what, int direct, int buffered, ring *r, worker *self, uint64_t offset) {
  long result = 0, wanted = 4096;
  struct iovec vector = {self->memory, 4096};
  cache_counts counts;
  if (strcmp(what, "direct-pread") == 0) {
    result = pread(direct, self->memory, 4096, (off_t)offset);
  } else if (strcmp(what, "direct-ring") == 0) {
    ring_push(r, self, 0, false);
    wanted = 1;
    result = syscall(CALL_RING_ENTER, r->descriptor, 1, 1, ENTER_GETEVENTS, NULL, 0);
    atomic_fetch_add(r->complete_head, 1);
  } else if (strncmp(what, "cachestat", 9) == 0) {
    cache_range range = {offset, strstr(what, "2M") ? 2u << 20 : 4096};
    wanted = 0;
    result = syscall(CALL_CACHESTAT, buffered, &range, &counts, 0);
  } else if (strcmp(what, "nowait-hit") == 0) {
    result = syscall(SYS_preadv2, buffered, &vector, 1, offset, 0, NOWAIT);
  } else if (strncmp(what, "nowait-miss", 11) == 0) {
    result = syscall(SYS_preadv2, buffered, &vector, 1, offset, 0, NOWAIT);
    wanted = result < 0 && errno == EAGAIN ? result : 4096; /* a fast device's read-in may be there already */
  } else if (strcmp(what, "pread-hit") == 0) {
    result = pread(buffered, self->memory, 4096, (off_t)offset);
  } else {
    errno = EINVAL;
    DIE("%s", what);
  }
  if (result != wanted)
    DIE("%s at %zu: %ld", what, (size_t)offset, result);
}

static int measure_single(char **arguments) {
  const char *what = arguments[1];
  uint64_t count = strtoull(arguments[2], NULL, 10);
  int direct = open(arguments[0], O_RDONLY | O_DIRECT), buffered = open(arguments[0], O_RDONLY);
  if (direct < 0 || buffered < 0)
    DIE("%s", arguments[0]);
  uint64_t size = size_of(direct), seed = (uint64_t)(now(CLOCK_REALTIME) * 1e6);
  trial t = {.descriptor = direct, .file_size = size, .block = 4096, .random = true, .depth = 1};
  worker self = {.trial = &t, .seed = seed, .memory = make_memory(4096)};
  ring r = {0};
  if (strcmp(what, "direct-ring") == 0)
    ring_open(&r, 1);
  bool hit = strstr(what, "hit");
  uint64_t span = hit ? 64u << 20 : size, stride = 0;
  if (posix_fadvise(buffered, 0, 0, POSIX_FADV_DONTNEED) != 0)
    DIE("fadvise");
  if (hit) {
    char *memory = make_memory(1 << 20);
    for (uint64_t offset = 0; offset < span; offset += 1 << 20)
      if (pread(buffered, memory, 1 << 20, (off_t)offset) != 1 << 20)
        DIE("reading in");
  }
  if (strstr(what, "miss"))
    stride = size / count & ~(uint64_t)4095;
  if (strstr(what, "no-read-ahead"))
    posix_fadvise(buffered, 0, 0, POSIX_FADV_RANDOM);
  uint64_t slots = (span - (2 << 20)) / 4096;
  double start_cpu = cpu_seconds(), start = now(CLOCK_MONOTONIC);
  for (uint64_t i = 0; i < count; i++)
    call_once(what, direct, buffered, &r, &self, stride ? i * stride : random_next(&seed) % slots * 4096);
  printf("%llu %.6f %.6f\n", (unsigned long long)count, now(CLOCK_MONOTONIC) - start, cpu_seconds() - start_cpu);
  return 0;
}

int main(int count, char **arguments) {
  if (count == 10 && strcmp(arguments[1], "rate") == 0)
    return measure_rate(arguments + 2);
  if (count == 5 && strcmp(arguments[1], "single") == 0)
    return measure_single(arguments + 2);
  fprintf(stderr, "deep_io: see the top of deep_io.c\n");
  return 2;
}
