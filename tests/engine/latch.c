/* latch.c: see latch.h. */
#include "latch.h"

#include "check.h"

#include <pthread.h>

struct latch {
  um_store store;
  um_store *inner;      /* owned */
  pthread_mutex_t lock; /* of everything below */
  pthread_cond_t moved;
  int op;       /* armed for this; 0: not armed */
  bool stopped; /* a call is waiting */
  uint64_t changed, calls[8];
};

static uint64_t hash(const void *bytes, uint64_t length) {
  uint64_t h = 1469598103934665603u;
  for (uint64_t i = 0; i < length; i++)
    h = (h ^ ((const uint8_t *)bytes)[i]) * 1099511628211u;
  return h;
}

static void stop(latch *self, int op, const void *bytes, uint64_t length) {
  pthread_mutex_lock(&self->lock);
  self->calls[op]++;
  if (self->op == op && !self->stopped) {
    uint64_t before = hash(bytes, length);
    self->stopped = true;
    pthread_cond_broadcast(&self->moved);
    while (self->stopped)
      pthread_cond_wait(&self->moved, &self->lock);
    self->changed += hash(bytes, length) != before;
  }
  pthread_mutex_unlock(&self->lock);
}

static int latch_read(um_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error) {
  latch *self = (latch *)store;
  stop(self, UM_OP_READ, NULL, 0);
  return um_store_read(self->inner, offset, buffer, length, error);
}

static int latch_write(um_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error) {
  latch *self = (latch *)store;
  stop(self, UM_OP_WRITE, buffer, length);
  return um_store_write(self->inner, offset, buffer, length, error);
}

static int latch_flush(um_store *store, um_error *error) {
  latch *self = (latch *)store;
  stop(self, UM_OP_FLUSH, NULL, 0);
  return um_store_flush(self->inner, error);
}

static int latch_close(um_store *store, um_error *error) {
  latch *self = (latch *)store;
  CHECK(!self->stopped);
  int code = um_store_close(self->inner, error);
  pthread_mutex_destroy(&self->lock);
  pthread_cond_destroy(&self->moved);
  free(self);
  return code;
}

static void latch_forked(um_store *store) {
  um_store *inner = ((latch *)store)->inner;
  inner->ops->forked(inner);
}

static const um_store_ops latch_ops = {
    .name = "latch",
    .read = latch_read,
    .write = latch_write,
    .flush = latch_flush,
    .close = latch_close,
    .forked = latch_forked,
};

um_store *latch_open(um_store *inner) {
  latch *self = calloc(1, sizeof *self);
  CHECK(self);
  self->store =
      (um_store){.ops = &latch_ops, .size = inner->size, .writable = inner->writable, .computes = inner->computes};
  self->inner = inner;
  pthread_mutex_init(&self->lock, NULL);
  pthread_cond_init(&self->moved, NULL);
  return &self->store;
}

void latch_arm(um_store *store, int op) {
  latch *self = (latch *)store;
  pthread_mutex_lock(&self->lock);
  CHECK(self->op == 0 && !self->stopped);
  self->op = op;
  pthread_mutex_unlock(&self->lock);
}

void latch_wait(um_store *store) {
  latch *self = (latch *)store;
  pthread_mutex_lock(&self->lock);
  while (!self->stopped)
    pthread_cond_wait(&self->moved, &self->lock);
  pthread_mutex_unlock(&self->lock);
}

void latch_release(um_store *store) {
  latch *self = (latch *)store;
  pthread_mutex_lock(&self->lock);
  CHECK(self->stopped);
  self->op = 0;
  self->stopped = false;
  pthread_cond_broadcast(&self->moved);
  pthread_mutex_unlock(&self->lock);
}

uint64_t latch_changed(um_store *store) {
  latch *self = (latch *)store;
  pthread_mutex_lock(&self->lock);
  uint64_t changed = self->changed;
  pthread_mutex_unlock(&self->lock);
  return changed;
}

uint64_t latch_calls(um_store *store, int op) {
  latch *self = (latch *)store;
  pthread_mutex_lock(&self->lock);
  uint64_t calls = self->calls[op];
  pthread_mutex_unlock(&self->lock);
  return calls;
}
