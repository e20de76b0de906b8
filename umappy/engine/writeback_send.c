/* writeback_send.c: bytes to the store, one stretch or many at once (store->write_batch).
 *
 * What a batch did not take is written once more by itself: so trying again, its pauses, and the words of an error are
 * those of a single write. */
#include "writeback.h"

static int write_piece(um_worker *w, um_region *r, uint64_t offset, const void *buffer, uint64_t length,
                       um_error *error) {
  uint64_t deadline = um_now_ns() + w->pager->timeout_ns;
  for (int attempt = 1;; attempt++) {
    error->code = 0;
    int code = r->store->ops->write(r->store, offset, buffer, length, error);
    UM_COUNT(r, store_writes, 1);
    if (code == 0) {
      UM_COUNT(r, bytes_written, length);
      atomic_store(&r->unflushed, true);
      return 0;
    }
    UM_COUNT(r, write_errors, 1);
    if (attempt == 3 || !um_error_passing(-code) || um_now_ns() >= deadline)
      return code;
    UM_COUNT(r, retries, 1);
    struct timespec pause = {0, 10000000L << (2 * attempt)};
    nanosleep(&pause, NULL);
  }
}

int um_writeback_piece(um_worker *w, um_region *r, uint64_t offset, const void *buffer, uint64_t length,
                       um_error *error) {
  atomic_fetch_add(&r->writes_begun, 1); /* what was read beside it is not trusted; gather.c */
  int code = write_piece(w, r, offset, buffer, length, error);
  atomic_fetch_add(&r->writes_ended, 1);
  return code;
}

typedef struct sending {
  um_region *region;
  um_writeback_ended *ended;
  void *context; /* the caller's */
  bool stop;
} sending;

/* Race: flush against write-back. A flush that finds the page clean must find the store unflushed. */
static void took(um_batch *batch, um_write *write) {
  sending *s = batch->context;
  if (write->code)
    return;
  UM_COUNT(s->region, bytes_written, write->length);
  atomic_store(&s->region->unflushed, true);
  s->stop |= !s->ended(s->context, write, NULL);
}

void um_writeback_many(um_worker *w, um_region *r, um_write *writes, uint32_t count, um_writeback_ended *ended,
                       void *context) {
  sending s = {.region = r, .ended = ended, .context = context};
  um_batch batch = {.reads = writes, .count = count, .ended = took, .context = &s};
  const um_store_ops *ops = r->store->ops;
  atomic_fetch_add(&r->writes_begun, 1);
  bool deep = count > 1 && ops->write_batch && ops->write_batch(r->store, &batch) == 0;
  atomic_fetch_add(&r->writes_ended, 1);
  if (deep)
    UM_COUNT(r, store_writes, count);
  for (um_write *write = writes; write < writes + count; write++) {
    um_error error = {0};
    if (deep && write->code == 0)
      continue;
    write->code = s.stop ? -ECANCELED : um_writeback_piece(w, r, write->offset, write->buffer, write->length, &error);
    s.stop |= !ended(context, write, &error);
  }
}
