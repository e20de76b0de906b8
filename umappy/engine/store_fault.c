/* store_fault.c: calls that are late, or fail, on purpose.
 *
 * A call that fails does not reach the inner store. Decisions are taken under a lock, so the counts are exact with any
 * number of threads; the delay and the inner call run outside of it. */
#include "store_wrapper.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct fault_store {
  um_wrapper wrapper;
  pthread_mutex_t lock;     /* of everything below */
  um_fault_options options; /* in force */
  uint64_t calls;           /* matched since the store was made */
  uint64_t seen;            /* matched since the options were set */
  uint64_t strikes;         /* of these options */
} fault_store;

static bool matches(const um_fault_options *options, int op, uint64_t offset, uint64_t length) {
  if (!(options->ops & (1u << op)))
    return false;
  if (options->length == 0 || op == UM_OP_FLUSH) /* a flush concerns every byte */
    return true;
  return offset < options->offset ? options->offset - offset < length : offset - options->offset < options->length;
}

/* Counts the call; true: it is struck, with what is in `options`. */
static bool strike(fault_store *self, int op, uint64_t offset, uint64_t length, um_fault_options *options) {
  pthread_mutex_lock(&self->lock);
  *options = self->options;
  bool struck = false;
  if (matches(options, op, offset, length)) {
    self->calls++;
    uint64_t index = self->seen++;
    uint64_t every = options->every > 1 ? options->every : 1;
    struck = index >= options->skip && (index - options->skip) % every == 0 && self->strikes < options->count;
    self->strikes += struck;
  }
  pthread_mutex_unlock(&self->lock);
  return struck;
}

static void sleep_ns(uint64_t duration_ns) {
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_sec += (time_t)(duration_ns / 1000000000u);
  until.tv_nsec += (long)(duration_ns % 1000000000u);
  if (until.tv_nsec >= 1000000000) {
    until.tv_sec++;
    until.tv_nsec -= 1000000000;
  }
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {
  }
}

static int apply(fault_store *self, int op, uint64_t offset, uint64_t length, um_error *error) {
  um_fault_options options;
  if (!strike(self, op, offset, length, &options))
    return 0;
  if (options.delay_ns > 0)
    sleep_ns(options.delay_ns);
  if (options.code == 0)
    return 0;
  return um_error_set(error, options.code, op, offset, length, "fault store: made to fail before the %s store",
                      self->wrapper.inner->ops->name);
}

static int fault_store_read(um_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error) {
  fault_store *self = (fault_store *)store;
  int result = apply(self, UM_OP_READ, offset, length, error);
  return result < 0 ? result : um_store_read(self->wrapper.inner, offset, buffer, length, error);
}

static int fault_store_write(um_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error) {
  fault_store *self = (fault_store *)store;
  int result = apply(self, UM_OP_WRITE, offset, length, error);
  return result < 0 ? result : um_store_write(self->wrapper.inner, offset, buffer, length, error);
}

static int fault_store_flush(um_store *store, um_error *error) {
  fault_store *self = (fault_store *)store;
  int result = apply(self, UM_OP_FLUSH, 0, 0, error);
  return result < 0 ? result : um_store_flush(self->wrapper.inner, error);
}

static const um_store_ops fault_store_ops = {
    .name = "fault",
    .read = fault_store_read,
    .write = fault_store_write,
    .flush = fault_store_flush,
    .close = um_wrapper_close,
    .forked = um_wrapper_forked,
    .limit = um_wrapper_limit,
};

static void fault_store_free(um_store *store) {
  pthread_mutex_destroy(&((fault_store *)store)->lock);
  free(store);
}

int um_fault_store_open(um_store *inner, const um_fault_options *options, um_store **store) {
  fault_store *self = calloc(1, sizeof(*self));
  if (!self)
    return -ENOMEM;
  um_wrapper_init(&self->wrapper, &fault_store_ops, inner, fault_store_free);
  pthread_mutex_init(&self->lock, NULL);
  self->options = *options;
  *store = &self->wrapper.store;
  return 0;
}

void um_fault_store_set(um_store *store, const um_fault_options *options) {
  fault_store *self = (fault_store *)store;
  pthread_mutex_lock(&self->lock);
  self->options = *options;
  self->seen = self->strikes = 0;
  pthread_mutex_unlock(&self->lock);
}

uint64_t um_fault_store_calls(um_store *store) {
  fault_store *self = (fault_store *)store;
  pthread_mutex_lock(&self->lock);
  uint64_t calls = self->calls;
  pthread_mutex_unlock(&self->lock);
  return calls;
}
