/* nbd_read.c: reads, many in flight from one thread, on whatever connections are up.
 *
 * A read that is lost with its connection is sent again, by its own thread, once something is up: reading twice harms
 * nobody. It gives up when that takes longer than the store's patience, counted from the first loss since any of its
 * reads came back.
 *
 * Race: the server is lost and comes back while a read is on its way, and forgot what it had not flushed. What comes of
 * it may be older than what was written, so a read counts only if the store's epoch is the same after it as before.
 *
 * A server that hangs. A batch may have a time-out of its own, shorter than the request's; then its caller is told, but
 * the call returns only when the connection has been given up and nobody can write into the buffers. */
#include "nbd.h"

#include "internal.h"

#define PIECES 16u                 /* of one read, in flight at once */
#define PAUSE_NS UINT64_C(1000000) /* after which a link that was just lost is known to be */

typedef struct flight {
  um_nbd_store *store;
  um_nbd_waiter *waiter;
  um_batch *batch;
  uint32_t next;        /* of batch->reads: the first nobody has begun */
  um_nbd_request *idle; /* requests to use, by `next`, and those that were lost: */
  um_nbd_request *again;
  uint32_t flying;
  uint64_t give_up_ns; /* when lost reads are not sent again any more; 0: none was lost since one came back */
  uint64_t told_ns;    /* when the caller was last told of one */
  bool overdue;        /* it was told that all the rest timed out */
  uint64_t epochs[UM_NBD_WINDOW]; /* of the store when each request could go */
} flight;

static void end(flight *f, um_read *read, int code) {
  read->code = code;
  if (f->batch->ended)
    f->batch->ended(f->batch, read);
}

static uint64_t find_give_up(flight *f) {
  if (f->give_up_ns == 0)
    f->give_up_ns = um_now_ns() + f->store->target.retry_ns;
  return f->batch->timeout_ns ? um_min(f->give_up_ns, f->told_ns + f->batch->timeout_ns) : f->give_up_ns;
}

static void put_idle(flight *f, um_nbd_request *request) {
  request->next = f->idle;
  f->idle = request;
}

/* The next request to send, or NULL: there is none that can go now. */
static um_nbd_request *take_next(flight *f, bool wait) {
  for (;;) {
    um_nbd_request *request = f->again ? f->again : f->idle;
    if (!request || (!f->again && f->next == f->batch->count))
      return NULL;
    um_read *read = f->again ? request->context : &f->batch->reads[f->next];
    uint64_t *epoch = &f->epochs[request - f->waiter->requests];
    int code = um_nbd_recover_await(f->store, read->offset, read->length, 0, epoch, read->error);
    if (code == -ETIMEDOUT) {
      if (!wait)
        return NULL;
      code = um_nbd_recover_await(f->store, read->offset, read->length, find_give_up(f), epoch, read->error);
    }
    if (f->again) {
      f->again = request->next;
    } else {
      f->idle = request->next;
      f->next++;
    }
    if (code == 0) {
      request->type = UM_NBD_CMD_READ;
      request->flags = 0;
      request->offset = read->offset;
      request->length = (uint32_t)read->length;
      request->buffer = read->buffer;
      request->context = read;
      return request;
    }
    put_idle(f, request);
    end(f, read, code);
  }
}

/* Sends what the window has room for, a share of it to each connection. */
static void begin(flight *f) {
  uint32_t share = UM_NBD_WINDOW / f->store->link_count;
  for (;;) {
    um_nbd_request *chain = NULL, **last = &chain;
    uint32_t count = 0;
    while (count < share && (*last = take_next(f, f->flying + count == 0))) {
      last = &(*last)->next;
      count++;
    }
    *last = NULL;
    if (count == 0)
      return;
    um_nbd_link *link = um_nbd_link_choose(f->store);
    um_nbd_link_submit(link ? link : f->store->links, f->waiter, chain);
    f->flying += count;
  }
}

static void finish(flight *f, um_nbd_request *request) {
  um_read *read = request->context;
  bool stale = atomic_load(&f->store->epoch) != f->epochs[request - f->waiter->requests];
  f->flying--;
  if (f->overdue) {
    put_idle(f, request);
  } else if (!request->lost && (request->code < 0 || !stale)) {
    if (request->code == 0)
      f->give_up_ns = 0;
    put_idle(f, request);
    end(f, read,
        request->code == 0 ? 0
                           : um_nbd_fail(f->store, -request->code, UM_OP_READ, read->offset, read->length, read->error,
                                         "reading: %s", strerror(-request->code)));
  } else if (um_now_ns() < find_give_up(f)) {
    request->next = f->again;
    f->again = request;
  } else {
    char why[UM_NBD_TEXT];
    um_nbd_recover_why(f->store, why);
    put_idle(f, request);
    end(f, read,
        um_nbd_fail(f->store, ETIMEDOUT, UM_OP_READ, read->offset, read->length, read->error,
                    "reading, again and again: %s", why));
  }
}

/* The caller is told of what is left; none of it is sent again. */
static void give_up(flight *f) {
  um_batch *batch = f->batch;
  f->overdue = true;
  f->next = batch->count;
  while (f->again) {
    um_nbd_request *request = f->again;
    f->again = request->next;
    put_idle(f, request);
  }
  for (um_read *read = batch->reads; read < batch->reads + batch->count; read++)
    if (read->code == -EINPROGRESS)
      end(f, read,
          um_nbd_fail(f->store, ETIMEDOUT, UM_OP_READ, read->offset, read->length, read->error,
                      "no read came back for %g s", (double)batch->timeout_ns / 1e9));
}

/* Every read is of whole blocks, and fits a request. */
static void read_all(flight *f) {
  um_batch *batch = f->batch;
  for (uint32_t i = UM_NBD_WINDOW; i > 0; i--)
    put_idle(f, &f->waiter->requests[i - 1]);
  for (uint32_t i = 0; i < batch->count; i++)
    batch->reads[i].code = -EINPROGRESS;
  if (batch->timeout_ns)
    f->told_ns = um_now_ns();
  begin(f);
  while (f->flying > 0) {
    uint64_t until_ns = batch->timeout_ns && !f->overdue ? f->told_ns + batch->timeout_ns : UINT64_MAX;
    um_nbd_request *first = um_nbd_wait(f->waiter, until_ns);
    if (!first)
      give_up(f);
    bool lost = false;
    while (first) {
      um_nbd_request *request = first;
      first = first->next;
      lost |= request->lost;
      finish(f, request);
    }
    if (lost) { /* Race: the link is down, and the state does not say so yet. */
      struct timespec pause = {0, PAUSE_NS};
      nanosleep(&pause, NULL);
    } else if (batch->timeout_ns) {
      f->told_ns = um_now_ns();
    }
    begin(f);
  }
}

uint64_t um_nbd_piece(const um_nbd_store *store) {
  uint64_t most = um_min(store->export_.length_max, UM_NBD_PIECE);
  return most - most % store->export_.block_min;
}

int um_nbd_read_whole(um_nbd_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error) {
  flight f = {.store = store, .waiter = um_nbd_waiter_take(store)};
  if (!f.waiter)
    return um_nbd_fail(store, ENOMEM, UM_OP_READ, offset, length, error, "no memory or no descriptor to wait with");
  uint64_t piece = um_nbd_piece(store);
  int result = 0;
  while (length > 0 && result == 0) {
    um_read reads[PIECES];
    um_batch batch = {.reads = reads};
    for (; batch.count < PIECES && length > 0; batch.count++) {
      uint64_t n = um_min(length, piece);
      reads[batch.count] = (um_read){.offset = offset, .buffer = buffer, .length = n, .error = error};
      offset += n;
      length -= n;
      buffer = (char *)buffer + n;
    }
    f.batch = &batch;
    f.next = 0;
    f.idle = f.again = NULL;
    read_all(&f);
    for (uint32_t i = 0; i < batch.count && result == 0; i++)
      result = reads[i].code;
  }
  um_nbd_waiter_give(f.waiter);
  return result;
}

static int read_store(um_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error) {
  um_nbd_store *self = (um_nbd_store *)store;
  return (offset | length) % self->export_.block_min == 0 ? um_nbd_read_whole(self, offset, buffer, length, error)
                                                          : um_nbd_read_parts(self, offset, buffer, length, error);
}

int um_nbd_read(um_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error) {
  int result = um_nbd_check_forked((um_nbd_store *)store, UM_OP_READ, offset, length, error);
  return result < 0 ? result : read_store(store, offset, buffer, length, error);
}

int um_nbd_read_batch(um_store *store, um_batch *batch) {
  um_nbd_store *self = (um_nbd_store *)store;
  uint64_t piece = um_nbd_piece(self);
  if (um_nbd_check_forked(self, UM_OP_READ, 0, 0, NULL) < 0)
    return -EOPNOTSUPP;
  for (uint32_t i = 0; i < batch->count; i++) {
    const um_read *read = &batch->reads[i];
    if (read->length == 0 || read->length > piece || (read->offset | read->length) % self->export_.block_min ||
        read->offset > store->size || read->length > store->size - read->offset)
      return -EOPNOTSUPP;
  }
  flight f = {.store = self, .waiter = um_nbd_waiter_take(self), .batch = batch};
  if (!f.waiter)
    return -EOPNOTSUPP;
  read_all(&f);
  um_nbd_waiter_give(f.waiter);
  return 0;
}
