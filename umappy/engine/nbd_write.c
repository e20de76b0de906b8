/* nbd_write.c: writes, zeroing, trims and flushes.
 *
 * Each write is copied to the journal, sent from there, and stays there until a FLUSH covers it. One that is lost with
 * its connection is the mending thread's to write again; its caller only waits until that is done (settled). Writes are
 * made, sent and ended inside the gate of nbd_recover.c, so nobody sends anything while old writes are replayed.
 *
 * Where the journal has no room a writer flushes, and takes what that frees. */
#include "nbd.h"

#include "internal.h"

#include <inttypes.h>

#define PIECES 16u                     /* of one write, in flight at once */
#define ZEROES_MAX (UINT64_C(1) << 30) /* bytes of a zeroing or a trim */

typedef struct flight {
  um_nbd_store *store;
  um_nbd_waiter *waiter;
  um_batch *batch;
  uint16_t type; /* UM_NBD_CMD_WRITE, or what is done instead, without data */
  uint32_t next; /* of batch->reads: the first nobody has begun */
  uint32_t flying;
  uint32_t idle[UM_NBD_WINDOW]; /* numbers of requests of the waiter: a stack */
  uint32_t idle_count;
  um_nbd_entry *entries[UM_NBD_WINDOW]; /* of each request */
  um_write *writes[UM_NBD_WINDOW];
  uint32_t lost[UM_NBD_WINDOW]; /* numbers of those that were lost, and are to be settled */
  uint32_t lost_count;
  um_write *again[UM_NBD_WINDOW]; /* those that nobody saw before their connection was lost */
  uint32_t again_count;
  uint64_t give_up_ns; /* when to stop waiting for the server; 0: nobody waits */
} flight;

static uint64_t find_give_up(flight *f) {
  if (f->give_up_ns == 0)
    f->give_up_ns = um_now_ns() + f->store->target.retry_ns;
  return f->give_up_ns;
}

static void end(flight *f, um_write *write, int code) {
  write->code = code;
  if (f->batch->ended)
    f->batch->ended(f->batch, write);
}

static bool is_zero(const void *bytes, uint64_t length) {
  static const char zeros[64];
  const char *at = bytes;
  return length >= sizeof zeros && memcmp(at, zeros, sizeof zeros) == 0 &&
         memcmp(at, at + sizeof zeros, length - sizeof zeros) == 0;
}

/* A server that has no FLUSH may have FUA: then each write is durable when it is acknowledged. */
static uint16_t find_flags(const um_nbd_export *e) {
  bool fua = !(e->flags & UM_NBD_FLAG_SEND_FLUSH) && e->flags & UM_NBD_FLAG_SEND_FUA;
  return fua ? UM_NBD_CMD_FLAG_FUA : 0;
}

/* Makes the entry of the next write. 0, or -EBUSY, -ENOBUFS. */
static int add(flight *f, um_write *write, um_nbd_request *request, um_nbd_entry **entry) {
  um_nbd_store *store = f->store;
  request->type = f->type;
  request->flags = find_flags(&store->export_);
  if (f->type == UM_NBD_CMD_WRITE && (store->export_.flags & UM_NBD_FLAG_SEND_WRITE_ZEROES) &&
      is_zero(write->buffer, write->length))
    request->type = UM_NBD_CMD_WRITE_ZEROES;
  request->offset = write->offset;
  request->length = (uint32_t)write->length;
  int code = um_nbd_journal_add(store->journal, request->type, request->flags, write->offset,
                                request->type == UM_NBD_CMD_WRITE ? write->buffer : NULL, request->length, entry);
  if (code == 0)
    request->buffer = request->type == UM_NBD_CMD_WRITE ? (*entry)->bytes : NULL;
  return code;
}

static um_write *find_next(const flight *f) {
  if (f->again_count > 0)
    return f->again[f->again_count - 1];
  return f->next < f->batch->count ? &f->batch->reads[f->next] : NULL;
}

static void take_next(flight *f) {
  if (f->again_count > 0)
    f->again_count--;
  else
    f->next++;
}

/* Sends what the window and the journal have room for. 0, or why the next one cannot go. */
static int begin(flight *f) {
  uint32_t share = UM_NBD_WINDOW / f->store->link_count;
  um_write *write;
  int code = 0;
  while (code == 0 && f->idle_count > 0 && find_next(f)) {
    um_nbd_request *chain = NULL, **last = &chain;
    for (uint32_t count = 0; count < share && f->idle_count > 0 && (write = find_next(f)); count++) {
      uint32_t number = f->idle[f->idle_count - 1];
      um_nbd_request *request = &f->waiter->requests[number];
      code = add(f, write, request, &f->entries[number]);
      if (code < 0)
        break;
      take_next(f);
      f->idle_count--;
      f->flying++;
      f->writes[number] = write;
      *last = request;
      last = &request->next;
    }
    *last = NULL;
    um_nbd_link *link = um_nbd_link_choose(f->store);
    if (chain)
      um_nbd_link_submit(link ? link : f->store->links, f->waiter, chain);
  }
  return code;
}

static void finish(flight *f, um_nbd_request *request) {
  um_nbd_store *store = f->store;
  uint32_t number = (uint32_t)(request - f->waiter->requests);
  um_write *write = f->writes[number];
  um_nbd_entry *entry = f->entries[number];
  f->flying--;
  if (request->lost && request->sent) {
    um_nbd_journal_lose(store->journal, entry);
    f->lost[f->lost_count++] = number;
    return;
  }
  f->idle[f->idle_count++] = number;
  if (request->code == 0) {
    um_nbd_journal_acknowledge(store->journal, entry);
    f->give_up_ns = 0;
    end(f, write, 0);
    return;
  }
  um_nbd_journal_remove(store->journal, entry);
  if (request->lost)
    f->again[f->again_count++] = write;
  else
    end(f, write,
        um_nbd_fail(store, -request->code, UM_OP_WRITE, write->offset, write->length, write->error, "writing: %s",
                    strerror(-request->code)));
}

/* Waits for some of what is in flight. False: something was lost. */
static bool collect(flight *f) {
  bool good = true;
  for (um_nbd_request *first = um_nbd_wait(f->waiter, UINT64_MAX), *next; first; first = next) {
    next = first->next;
    good &= !first->lost;
    finish(f, first);
  }
  return good;
}

/* One stay inside the gate: as much as goes. 0: all is done; -EBUSY, -ENOBUFS: the next one cannot go; -EAGAIN:
 * something was lost. */
static int stay(flight *f) {
  int code = 0;
  while (code != -EAGAIN && find_next(f)) {
    code = begin(f);
    if (f->flying == 0)
      return code;
    if (!collect(f))
      code = -EAGAIN;
  }
  while (f->flying > 0)
    if (!collect(f))
      code = -EAGAIN;
  return find_next(f) ? code : 0;
}

/* Outside the gate: what was lost is written by the mending thread. */
static void settle(flight *f) {
  while (f->lost_count > 0) {
    uint32_t number = f->lost[--f->lost_count];
    um_write *write = f->writes[number];
    int code = um_nbd_recover_settle(f->store, f->entries[number], find_give_up(f), write->error);
    if (code == 0)
      f->give_up_ns = 0;
    f->idle[f->idle_count++] = number;
    end(f, write, code);
  }
}

/* FLUSH, once. 0; -EAGAIN: it was lost, or something was doubted meanwhile, so it says nothing; else error is filled.
 */
static int flush_once(um_nbd_store *store, um_nbd_waiter *waiter, uint64_t deadline_ns, um_error *error) {
  um_nbd_request request = {.type = UM_NBD_CMD_FLUSH};
  int code = um_nbd_recover_enter(store, UM_OP_FLUSH, 0, 0, deadline_ns, error);
  if (code < 0)
    return code;
  uint64_t mark = um_nbd_journal_mark(store->journal);
  um_nbd_link *link = um_nbd_link_choose(store);
  um_nbd_link_do(link ? link : store->links, waiter, &request, 1);
  if (request.lost)
    code = -EAGAIN;
  else if (request.code < 0)
    um_nbd_recover_doubt(store, strerror(-request.code));
  else if (!um_nbd_journal_flushed(store->journal, mark))
    code = -EAGAIN;
  um_nbd_recover_leave(store);
  if (code == 0 && request.code < 0)
    code = um_nbd_fail(store, -request.code, UM_OP_FLUSH, 0, store->store.size, error,
                       "flushing: %s; what was written since the last good flush is kept, and is written again",
                       strerror(-request.code));
  return code;
}

static int fail_again(um_nbd_store *store, int op, uint64_t offset, uint64_t length, um_error *error,
                      const char *what) {
  char why[UM_NBD_TEXT];
  um_nbd_recover_why(store, why);
  return um_nbd_fail(store, ETIMEDOUT, op, offset, length, error, "%s, again and again: %s", what, why);
}

static int flush(um_nbd_store *store, um_nbd_waiter *waiter, um_error *error) {
  uint64_t deadline_ns = um_now_ns() + store->target.retry_ns;
  int code;
  while ((code = flush_once(store, waiter, deadline_ns, error)) == -EAGAIN)
    if (um_now_ns() >= deadline_ns)
      return fail_again(store, UM_OP_FLUSH, 0, store->store.size, error, "flushing");
  return code;
}

static int make_room(flight *f, const um_write *write, int why, um_error *error) {
  um_nbd_store *store = f->store;
  um_nbd_journal_counts counts;
  if (um_now_ns() >= find_give_up(f))
    return um_nbd_fail(store, ETIMEDOUT, UM_OP_WRITE, write->offset, write->length, error,
                       "writing: what is not flushed yet, or is to be written again, leaves no room");
  um_nbd_journal_count(store->journal, &counts);
  if (why == -ENOBUFS && counts.kept > 0 && counts.flying == 0)
    return flush(store, f->waiter, error);
  um_nbd_journal_wait(store->journal, write->offset, (uint32_t)write->length, f->give_up_ns);
  return 0;
}

static void fail_rest(flight *f, int code, const um_error *error) {
  for (um_write *write; (write = find_next(f));) {
    take_next(f);
    if (write->error)
      *write->error = *error;
    end(f, write, code);
  }
}

/* Every write is of whole blocks, and fits a request and an entry. */
static void write_all(flight *f) {
  um_error error;
  for (f->idle_count = 0; f->idle_count < UM_NBD_WINDOW; f->idle_count++)
    f->idle[f->idle_count] = f->idle_count;
  for (um_write *write; (write = find_next(f));) {
    uint64_t until_ns = f->give_up_ns ? f->give_up_ns : um_now_ns() + f->store->target.retry_ns;
    int code = um_nbd_recover_enter(f->store, UM_OP_WRITE, write->offset, write->length, until_ns, &error);
    if (code == 0) {
      int why = stay(f);
      um_nbd_recover_leave(f->store);
      settle(f);
      if (why == -EAGAIN && um_now_ns() >= find_give_up(f))
        code = fail_again(f->store, UM_OP_WRITE, write->offset, write->length, &error, "writing");
      else if ((why == -ENOBUFS || why == -EBUSY) && (write = find_next(f)))
        code = make_room(f, write, why, &error);
    }
    if (code < 0)
      fail_rest(f, code, &error);
  }
}

/* A stretch, in pieces of `most` bytes. `buffer` is NULL where `type` has no data. */
static int write_pieces(um_nbd_store *store, uint16_t type, uint64_t offset, const void *buffer, uint64_t length,
                        uint64_t most, um_error *error) {
  flight f = {.store = store, .type = type, .waiter = um_nbd_waiter_take(store)};
  if (!f.waiter)
    return um_nbd_fail(store, ENOMEM, UM_OP_WRITE, offset, length, error, "no memory or no descriptor to wait with");
  int result = 0;
  while (length > 0 && result == 0) {
    um_write writes[PIECES];
    um_batch batch = {.reads = writes};
    for (; batch.count < PIECES && length > 0; batch.count++) {
      uint64_t n = um_min(length, most);
      writes[batch.count] = (um_write){.offset = offset, .buffer = (void *)buffer, .length = n, .error = error};
      offset += n;
      length -= n;
      buffer = buffer ? (const char *)buffer + n : NULL;
    }
    f.batch = &batch;
    f.next = 0;
    write_all(&f);
    for (uint32_t i = 0; i < batch.count && result == 0; i++)
      result = writes[i].code;
  }
  um_nbd_waiter_give(f.waiter);
  return result;
}

static uint64_t find_piece(const um_nbd_store *store) {
  return um_min(um_nbd_piece(store), um_nbd_journal_capacity(store->journal));
}

int um_nbd_write_whole(um_nbd_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error) {
  return write_pieces(store, UM_NBD_CMD_WRITE, offset, buffer, length, find_piece(store), error);
}

int um_nbd_write(um_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error) {
  um_nbd_store *self = (um_nbd_store *)store;
  int result = um_nbd_check_forked(self, UM_OP_WRITE, offset, length, error);
  if (result < 0)
    return result;
  return (offset | length) % self->export_.block_min == 0 ? um_nbd_write_whole(self, offset, buffer, length, error)
                                                          : um_nbd_write_parts(self, offset, buffer, length, error);
}

int um_nbd_write_batch(um_store *store, um_batch *batch) {
  um_nbd_store *self = (um_nbd_store *)store;
  uint64_t piece = find_piece(self);
  if (um_nbd_check_forked(self, UM_OP_WRITE, 0, 0, NULL) < 0)
    return -EOPNOTSUPP;
  for (uint32_t i = 0; i < batch->count; i++) {
    const um_write *write = &batch->reads[i];
    if (write->length == 0 || write->length > piece || (write->offset | write->length) % self->export_.block_min ||
        write->offset > store->size || write->length > store->size - write->offset)
      return -EOPNOTSUPP;
  }
  flight f = {.store = self, .type = UM_NBD_CMD_WRITE, .batch = batch, .waiter = um_nbd_waiter_take(self)};
  if (!f.waiter)
    return -EOPNOTSUPP;
  write_all(&f);
  um_nbd_waiter_give(f.waiter);
  return 0;
}

int um_nbd_flush(um_store *store, um_error *error) {
  um_nbd_store *self = (um_nbd_store *)store;
  int result = um_nbd_check_forked(self, UM_OP_FLUSH, 0, 0, error);
  if (result < 0)
    return result;
  if (!(self->export_.flags & UM_NBD_FLAG_SEND_FLUSH)) { /* what it acknowledged is as durable as it gets */
    result = um_nbd_recover_enter(self, UM_OP_FLUSH, 0, 0, um_now_ns() + self->target.retry_ns, error);
    if (result == 0)
      um_nbd_recover_leave(self);
    return result;
  }
  um_nbd_waiter *waiter = um_nbd_waiter_take(self);
  if (!waiter)
    return um_nbd_fail(self, ENOMEM, UM_OP_FLUSH, 0, store->size, error, "no memory or no descriptor to wait with");
  result = flush(self, waiter, error);
  um_nbd_waiter_give(waiter);
  return result;
}

static int check_stretch(um_nbd_store *self, uint64_t offset, uint64_t length, const char *what, um_error *error) {
  int result = um_nbd_check_forked(self, UM_OP_WRITE, offset, length, error);
  if (result < 0)
    return result;
  if (!self->store.writable)
    return um_nbd_fail(self, EBADF, UM_OP_WRITE, offset, length, error, "%s: open for reading only", what);
  if (offset > self->store.size || length > self->store.size - offset)
    return um_nbd_fail(self, EINVAL, UM_OP_WRITE, offset, length, error,
                       "%s: %" PRIu64 " bytes at offset %" PRIu64 " pass its size, %" PRIu64, what, length, offset,
                       self->store.size);
  return 0;
}

int um_nbd_store_discard(um_store *store, uint64_t offset, uint64_t length, um_error *error) {
  um_nbd_store *self = (um_nbd_store *)store;
  int result = check_stretch(self, offset, length, "discarding", error);
  uint64_t unit = self->export_.block_min, first = um_round_up(offset, unit), end = offset + length;
  end -= end % unit;
  if (result < 0 || first >= end || !(self->export_.flags & UM_NBD_FLAG_SEND_TRIM))
    return result;
  return write_pieces(self, UM_NBD_CMD_TRIM, first, NULL, end - first, ZEROES_MAX, error);
}

/* Zeros by writing them. */
static int write_zeros(um_nbd_store *self, uint64_t offset, uint64_t length, um_error *error) {
  static const char zeros[64 << 10] __attribute__((aligned(4096)));
  int result = 0;
  while (length > 0 && result == 0) {
    uint64_t n = um_min(length, sizeof zeros - offset % sizeof zeros);
    result = um_nbd_write(&self->store, offset, zeros, n, error);
    offset += n;
    length -= n;
  }
  return result;
}

int um_nbd_store_write_zeroes(um_store *store, uint64_t offset, uint64_t length, um_error *error) {
  um_nbd_store *self = (um_nbd_store *)store;
  int result = check_stretch(self, offset, length, "writing zeros", error);
  uint64_t unit = self->export_.block_min, first = um_round_up(offset, unit), end = offset + length;
  if (result < 0)
    return result;
  if (!(self->export_.flags & UM_NBD_FLAG_SEND_WRITE_ZEROES) || first >= end - end % unit)
    return write_zeros(self, offset, length, error);
  uint64_t middle = end - end % unit - first;
  result = write_zeros(self, offset, first - offset, error);
  if (result == 0)
    result = write_pieces(self, UM_NBD_CMD_WRITE_ZEROES, first, NULL, middle, ZEROES_MAX, error);
  return result == 0 ? write_zeros(self, first + middle, end - first - middle, error) : result;
}
