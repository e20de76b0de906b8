/* store_log.c: which calls reached a store, when, and how long they took.
 *
 * A ring of records: when nobody takes them the oldest are overwritten and counted as lost, so that logging can stay on
 * for ever. A record is written when its call ends, so records are in the order of ends. */
#define _GNU_SOURCE
#include "store_wrapper.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef struct log_store {
  um_wrapper wrapper;
  um_log_record *records; /* owned; the pages of it are touched at opening, as no store call may fail for memory */
  uint64_t capacity;      /* constant */
  pthread_mutex_t lock;   /* of everything below and of what records points to */
  uint64_t first;         /* count of records that were taken or lost */
  uint64_t next;          /* count of records that were written */
  uint64_t lost;          /* overwritten since the last take */
} log_store;

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int append(log_store *self, int op, uint64_t start_ns, uint64_t offset, uint64_t length, int result) {
  um_log_record record = {
      .start_ns = start_ns,
      .took_ns = now_ns() - start_ns,
      .offset = offset,
      .length = length,
      .op = op,
      .code = result < 0 ? -result : 0,
      .thread_id = (uint32_t)syscall(SYS_gettid),
  };
  pthread_mutex_lock(&self->lock);
  if (self->next - self->first == self->capacity) {
    self->first++;
    self->lost++;
  }
  self->records[self->next++ % self->capacity] = record;
  pthread_mutex_unlock(&self->lock);
  return result;
}

static int log_store_read(um_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error) {
  log_store *self = (log_store *)store;
  uint64_t start_ns = now_ns();
  int result = um_store_read(self->wrapper.inner, offset, buffer, length, error);
  return append(self, UM_OP_READ, start_ns, offset, length, result);
}

static int log_store_write(um_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error) {
  log_store *self = (log_store *)store;
  uint64_t start_ns = now_ns();
  int result = um_store_write(self->wrapper.inner, offset, buffer, length, error);
  return append(self, UM_OP_WRITE, start_ns, offset, length, result);
}

static int log_store_flush(um_store *store, um_error *error) {
  log_store *self = (log_store *)store;
  uint64_t start_ns = now_ns();
  int result = um_store_flush(self->wrapper.inner, error);
  return append(self, UM_OP_FLUSH, start_ns, 0, 0, result);
}

static const um_store_ops log_store_ops = {
    .name = "log",
    .read = log_store_read,
    .write = log_store_write,
    .flush = log_store_flush,
    .close = um_wrapper_close,
    .forked = um_wrapper_forked,
    .limit = um_wrapper_limit,
};

static void log_store_free(um_store *store) {
  log_store *self = (log_store *)store;
  pthread_mutex_destroy(&self->lock);
  free(self->records);
  free(self);
}

int um_log_store_open(um_store *inner, uint64_t capacity, um_store **store) {
  if (capacity == 0)
    return -EINVAL;
  log_store *self = calloc(1, sizeof(*self));
  if (!self || capacity > SIZE_MAX / sizeof(um_log_record) ||
      !(self->records = malloc(capacity * sizeof(um_log_record)))) {
    free(self);
    return -ENOMEM;
  }
  memset(self->records, 0xFF, capacity * sizeof(um_log_record));
  self->capacity = capacity;
  um_wrapper_init(&self->wrapper, &log_store_ops, inner, log_store_free);
  pthread_mutex_init(&self->lock, NULL);
  *store = &self->wrapper.store;
  return 0;
}

uint64_t um_log_store_take(um_store *store, um_log_record *records, uint64_t count, uint64_t *lost) {
  log_store *self = (log_store *)store;
  pthread_mutex_lock(&self->lock);
  uint64_t taken = self->next - self->first < count ? self->next - self->first : count;
  for (uint64_t i = 0; i < taken; i++)
    records[i] = self->records[(self->first + i) % self->capacity];
  self->first += taken;
  *lost = self->lost;
  self->lost = 0;
  pthread_mutex_unlock(&self->lock);
  return taken;
}
