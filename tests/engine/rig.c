/* rig.c: see rig.h. Files lie in memory (/dev/shm) where that exists: races are tighter without a disk. */
#define _GNU_SOURCE
#include "rig.h"

#include "store_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __SANITIZE_THREAD__
/* Children of a process with threads are what the fork tests are about. */
const char *__tsan_default_options(void) {
  return "die_after_fork=0";
}
#endif

uint64_t rig_word(uint64_t offset) {
  return (offset / 8 + 1) * 0x9E3779B97F4A7C15u | 1u << 20;
}

uint64_t rig_random(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

int rig_file(uint64_t size, bool sparse, char path[64]) {
  struct stat st;
  bool memory = stat("/dev/shm", &st) == 0 && access("/dev/shm", W_OK) == 0;
  snprintf(path, 64, "%s/um-test-XXXXXX", memory ? "/dev/shm" : "/tmp");
  int fd = mkostemp(path, O_CLOEXEC);
  CHECK(fd >= 0);
  CHECK_EQUAL(ftruncate(fd, (off_t)size), 0);
  uint64_t words[1 << 10];
  for (uint64_t at = 0; !sparse && at < size; at += sizeof words) {
    uint64_t n = um_min(sizeof words, size - at);
    for (uint64_t i = 0; i < (n + 7) / 8; i++)
      words[i] = rig_word(at + 8 * i);
    CHECK_EQUAL(pwrite(fd, words, n, (off_t)at), n);
  }
  return fd;
}

uint8_t *rig_map(uint64_t size) {
  void *bytes = mmap(NULL, um_round_up(size, um_host_page), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(bytes != MAP_FAILED);
  return bytes;
}

uint32_t rig_policy = UM_POLICY_AUTO;

uint8_t *rig_map_at(uint64_t size, uint64_t skew) {
  uint64_t mapped = um_round_up(size, um_host_page), slack = 2ull * UM_CHUNK + skew;
  uint8_t *bytes = rig_map(mapped + slack);
  uint8_t *at = (uint8_t *)(um_round_up((uintptr_t)bytes, UM_CHUNK) + skew);
  CHECK_EQUAL(
      munmap(bytes, (size_t)(at - bytes)) | munmap(at + mapped, (size_t)(bytes + mapped + slack - (at + mapped))), 0);
  return at;
}

uint32_t rig_mechanism(void) {
  const char *wanted = getenv("UMAPPY_MECHANISM");
  return !wanted || !strcmp(wanted, "auto") ? UM_MECHANISM_AUTO
         : !strcmp(wanted, "copy")          ? UM_MECHANISM_COPY
                                            : UM_MECHANISM_MOVE;
}

um_pager *rig_pager(uint64_t memory, uint32_t fillers, uint32_t evictors, uint32_t timeout_ms) {
  um_pager_options options = {.memory = memory,
                              .fillers = fillers,
                              .evictors = evictors,
                              .timeout_ms = timeout_ms,
                              .mechanism = rig_mechanism(),
                              .policy = rig_policy};
  um_pager *pager;
  CHECK_EQUAL(um_pager_create(&options, &pager), 0);
  return pager;
}

static um_store_ops uncached_ops;

static void make_uncached_ops(void) {
  uncached_ops = um_file_store_ops;
  uncached_ops.read_cached = NULL;
}

static um_store *open_store(rig *r, const char *path, const rig_options *o) {
  um_file_part part = {path, UINT64_MAX};
  um_file_options options = {
      .parts = &part, .part_count = 1, .writable = !o->read_only, .direct = -1, .lock = 1, .size = UINT64_MAX};
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  um_error error = {0};
  um_store *store;
  CHECK_EQUAL(pthread_once(&once, make_uncached_ops), 0);
  if (um_file_store_open(&options, &store, &error)) {
    fprintf(stderr, "%s: %s\n", path, error.text);
    abort();
  }
  if (o->ops)
    store->ops = o->ops;
  else if (!o->cached)
    store->ops = &uncached_ops;
  store->computes = o->computes;
  if (o->faults) {
    um_fault_options none = {0};
    CHECK_EQUAL(um_fault_store_open(store, &none, &r->faults), 0);
    store = r->faults;
  }
  if (o->latch)
    store = r->latch = latch_open(store);
  return store;
}

void rig_open(rig *r, const rig_options *o) {
  char path[64];
  uint32_t fillers = o->fillers ? o->fillers : 1, evictors = o->evictors ? o->evictors : 1;
  uint64_t page_size = o->page_size ? o->page_size : 4096;
  *r = (rig){.size = o->size, .mapped = um_round_up(o->size, um_host_page), .pager = o->pager};
  if (!r->pager) {
    uint64_t memory = o->memory;
    if (!memory)
      memory = um_pager_memory_min(page_size, fillers, evictors) + o->spare * page_size;
    r->pager = rig_pager(memory, fillers, evictors, o->timeout_ms ? o->timeout_ms : 10000);
    r->own_pager = true;
  }
  r->fd = rig_file(o->size, o->sparse, path);
  r->store = open_store(r, path, o);
  CHECK_EQUAL(unlink(path), 0);
  r->bytes = o->skew ? rig_map_at(o->size, o->skew) : rig_map(o->size);
  um_region_options options = {.page_size = page_size, .writable = !o->read_only, .readahead = o->readahead};
  CHECK_EQUAL(um_region_create(r->pager, r->store, r->bytes, o->size, &options, &r->region), 0);
}

static void unmap_and_forget(rig *r) {
  um_error error;
  CHECK_EQUAL(munmap(r->bytes, r->mapped), 0);
  um_region_forget(r->region);
  CHECK_EQUAL(um_store_close(r->store, &error), 0);
  r->region = NULL;
  if (!r->own_pager)
    return;
  um_stats stats;
  um_pager_stats(r->pager, &stats);
  CHECK_EQUAL(stats.used, stats.overhead + stats.idle); /* no page stays counted */
  CHECK_EQUAL(um_pager_destroy(r->pager), 0);
  r->pager = NULL;
}

void rig_close(rig *r) {
  int code;
  um_region_prefetch_cancel(r->region);
  do {
    if (r->store->writable)
      CHECK_EQUAL(rig_flush(r), 0);
    code = um_region_gate_close(r->region, 0, 100);
    CHECK(code == 0 || code == -EAGAIN);
  } while (code);
  unmap_and_forget(r);
}

void rig_end(rig *r) {
  CHECK_EQUAL(close(r->fd), 0);
}

void rig_discard(rig *r) {
  um_region_prefetch_cancel(r->region);
  while (um_region_gate_close(r->region, 1, 100))
    ;
  unmap_and_forget(r);
}

__attribute__((noinline, no_sanitize("thread"))) uint64_t rig_peek(const rig *r, uint64_t offset) {
  return *(volatile uint64_t *)(r->bytes + offset);
}

uint64_t rig_file_word(const rig *r, uint64_t offset) {
  uint64_t word = 0;
  CHECK(pread(r->fd, &word, sizeof word, (off_t)offset) > 0);
  return word;
}

int rig_run(um_job *job, um_error *error) {
  um_error own;
  CHECK(job);
  int code = um_job_wait(job, 60000 * SLOWER, error ? error : &own);
  um_job_release(job);
  CHECK(code != -ETIMEDOUT);
  return code;
}

int rig_flush(const rig *r) {
  return rig_run(um_region_flush_start(r->region, 0, r->size, 1), NULL);
}

int rig_evict(const rig *r, uint64_t offset, uint64_t length) {
  return rig_run(um_region_evict_start(r->region, offset, length), NULL);
}

int rig_prefetch(const rig *r, uint64_t offset, uint64_t length) {
  return rig_run(um_region_prefetch_start(r->region, offset, length), NULL);
}

void rig_drop(const rig *r, uint64_t offset, uint64_t length) {
  CHECK_EQUAL(madvise(r->bytes + offset, length, MADV_DONTNEED), 0);
}

int rig_state(const rig *r, uint64_t page) {
  uint8_t state;
  CHECK_EQUAL(um_region_residency(r->region, page, 1, &state), 0);
  return state;
}

um_stats rig_stats(const rig *r) {
  um_stats stats;
  um_region_stats(r->region, &stats);
  return stats;
}

uint64_t rig_errors(const rig *r) {
  pthread_mutex_lock(&r->region->errors.lock);
  uint64_t count = r->region->errors.count;
  pthread_mutex_unlock(&r->region->errors.lock);
  return count;
}

void rig_fail(const rig *r, uint32_t ops, int code, uint64_t count, unsigned delay_ms) {
  um_fault_options options = {.ops = ops, .code = code, .count = count, .delay_ns = delay_ms * 1000000ull};
  um_fault_store_set(r->faults, &options);
}

void rig_heal(const rig *r) {
  rig_fail(r, 0, 0, 0, 0);
}

pthread_t rig_thread(void *(*run)(void *), void *argument) {
  pthread_t thread;
  CHECK_EQUAL(pthread_create(&thread, NULL, run, argument), 0);
  return thread;
}

void *rig_touch_once(void *argument) {
  rig_touch *t = argument;
  if (t->value)
    rig_write(t->rig, t->offset, t->value);
  else
    t->value = rig_read(t->rig, t->offset);
  atomic_store(&t->ended, true);
  return NULL;
}

bool rig_died(int status, int number) {
  if (number == 0)
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  return WIFSIGNALED(status) && WTERMSIG(status) == number;
}

void rig_child(void (*run)(void *), void *argument, int number) {
  fflush(stdout);
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    watchdog_child(20);
    if (number) { /* a sanitizer would turn it into an exit status, and print what is expected here */
      signal(number, SIG_DFL);
    }
    run(argument);
    _exit(0);
  }
  int status;
  while (waitpid(pid, &status, 0) < 0)
    CHECK_EQUAL(errno, EINTR);
  if (!rig_died(status, number)) {
    fprintf(stderr, "the child ended with wait status %#x instead of signal %d\n", (unsigned)status, number);
    abort();
  }
}
