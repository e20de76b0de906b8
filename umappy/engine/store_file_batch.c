/* store_file_batch.c: many reads, or many writes, in flight from one thread.
 *
 * Requests of whole granules, in one file, go through the thread's io_uring. The window is refilled before the caller
 * is told of what landed, so that the device works while the caller does. All others (the tail, ends that are not
 * aligned, requests over two parts, writes past the file's end), and every one that did not come back whole, take the
 * ordinary path, on this thread: short reads and writes, signals, the end of the file and errors thus have one
 * implementation and one wording.
 *
 * A read that never comes back. Its buffer belongs to the device: to hand it out again would let a late transfer change
 * somebody's bytes, and transfers cannot be called back. So when nothing has landed for the time-out, the caller is
 * told of ETIMEDOUT for all that is left, and can fail what waits for it; but the call returns only when the kernel has
 * given the last buffer back. A disk that hangs thus costs a thread, as it does with pread, and nobody's wait.
 *
 * A write that never comes back is not told of: done late, it would undo the next write of the same bytes. */
#include "store_file.h"

#include "io_uring.h"

#include <errno.h>
#include <inttypes.h>
#include <time.h>

#define LENGTH_MAX (UINT64_C(1) << 30) /* below what one request moves */
#define SECOND_NS UINT64_C(1000000000)

typedef struct flight {
  um_file_store *store;
  um_batch *batch;
  um_ring *ring;
  bool writing;
  uint32_t next;   /* of batch->reads: the first nobody has begun */
  uint32_t flying; /* pushed, and neither popped nor taken back */
  struct {
    um_read *read;
    int32_t result;        /* the kernel's */
  } landed[UM_RING_DEPTH]; /* popped, not told of yet */
  uint32_t landed_count;
  uint64_t idle_ns; /* since when nothing has landed; 0: something just did */
  bool overdue;     /* all that is left was told to have timed out */
  bool refused;     /* the kernel takes no more requests from us */
} flight;

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

/* The file, and the offset in it, of a request that a ring can do whole. */
static um_file *find_whole(um_file_store *self, const um_read *read, uint64_t *at) {
  if (read->length == 0 || read->length > LENGTH_MAX || read->offset > self->store.size)
    return NULL;
  um_file *file = um_file_find(self, read->offset);
  uint64_t inside = read->offset - file->base;
  *at = file->start + inside;
  bool fits = file->direct >= 0 && !atomic_load_explicit(&file->direct_refused, memory_order_relaxed) &&
              inside <= file->size && read->length <= file->size - inside &&
              (*at | read->length) % file->granule == 0 && (uintptr_t)read->buffer % file->memory_unit == 0;
  return fits ? file : NULL;
}

static bool has_whole(um_file_store *self, const um_batch *batch) {
  uint64_t at;
  for (uint32_t i = 0; i < batch->count; i++)
    if (find_whole(self, &batch->reads[i], &at))
      return true;
  return false;
}

static void end(flight *f, um_read *read, int code) {
  read->code = code;
  if (f->batch->ended)
    f->batch->ended(f->batch, read);
}

static void do_ordinary(flight *f, um_read *read) {
  um_store *store = &f->store->store;
  end(f, read,
      f->writing ? um_store_write(store, read->offset, read->buffer, read->length, read->error)
                 : um_store_read(store, read->offset, read->buffer, read->length, read->error));
  f->idle_ns = 0;
}

/* The next request nobody has begun, if it is one for the ring. */
static um_file *find_next(const flight *f, uint64_t *at) {
  if (f->refused || f->next == f->batch->count)
    return NULL;
  const um_read *read = &f->batch->reads[f->next];
  um_file *file = find_whole(f->store, read, at);
  return file && f->writing && um_file_check_end(file, *at + read->length) ? NULL : file;
}

static void push(flight *f) {
  uint64_t at;
  um_file *file;
  while (f->flying < UM_RING_DEPTH && (file = find_next(f, &at))) {
    const um_read *read = &f->batch->reads[f->next];
    um_ring_push(f->ring, f->writing, file->direct, at, read->buffer, (uint32_t)read->length, f->next++);
    f->flying++;
  }
}

/* Does the next request here if it is none for the ring; what the ring has goes on meanwhile. */
static void step(flight *f) {
  uint64_t at;
  if (f->next < f->batch->count && !find_next(f, &at))
    do_ordinary(f, &f->batch->reads[f->next++]);
}

static void take_back(flight *f) {
  uint64_t index;
  f->refused = true;
  while (um_ring_take_back(f->ring, &index)) {
    f->flying--;
    do_ordinary(f, &f->batch->reads[index]);
  }
}

/* Hands over what was pushed; sleeps where there is nothing else to do. */
static void enter(flight *f) {
  if (f->flying == 0)
    return;
  bool wait = f->landed_count == 0;
  uint64_t wait_ns = SECOND_NS, now = wait ? now_ns() : 0;
  if (wait && f->idle_ns == 0)
    f->idle_ns = now;
  if (f->batch->timeout_ns > 0 && !f->overdue) {
    uint64_t waited = wait ? now - f->idle_ns : 0;
    wait_ns = waited < f->batch->timeout_ns ? f->batch->timeout_ns - waited : 0;
  }
  int result = um_ring_enter(f->ring, wait, wait_ns);
  if (result == 0 || result == -EINTR || result == -ETIME)
    return;
  if (f->refused && f->flying > 0) { /* they still land, or this is how a device hangs */
    struct timespec pause = {0, 1000000};
    nanosleep(&pause, NULL);
  }
  take_back(f);
}

static void tell(flight *f) {
  for (uint32_t i = 0; i < f->landed_count; i++) {
    um_read *read = f->landed[i].read;
    if (f->writing && f->landed[i].result > 0)
      atomic_store(&um_file_find(f->store, read->offset)->written_direct, true);
    if (f->landed[i].result >= 0 && (uint64_t)f->landed[i].result == read->length)
      end(f, read, 0);
    else
      do_ordinary(f, read);
  }
  f->landed_count = 0;
}

static void collect(flight *f) {
  uint64_t index;
  int32_t result;
  while (um_ring_pop(f->ring, &index, &result)) {
    f->flying--;
    f->idle_ns = 0;
    if (f->overdue)
      continue;
    f->landed[f->landed_count].read = &f->batch->reads[index];
    f->landed[f->landed_count++].result = result;
  }
}

static void check_time(flight *f) {
  um_batch *batch = f->batch;
  if (f->overdue || batch->timeout_ns == 0 || f->idle_ns == 0 || now_ns() - f->idle_ns < batch->timeout_ns)
    return;
  f->overdue = true;
  f->next = batch->count;
  for (um_read *read = batch->reads; read < batch->reads + batch->count; read++)
    if (read->code == -EINPROGRESS) {
      int code = um_error_set(read->error, ETIMEDOUT, UM_OP_READ, read->offset, read->length,
                              "%s: no read came back for %" PRIu64 " ms", um_file_find(f->store, read->offset)->path,
                              batch->timeout_ns / 1000000);
      end(f, read, code);
    }
}

static int move_batch(um_store *store, um_batch *batch, bool writing) {
  flight f = {.store = (um_file_store *)store, .batch = batch, .writing = writing};
  if (!has_whole(f.store, batch) || !(f.ring = um_ring_take()))
    return -EOPNOTSUPP;
  for (uint32_t i = 0; i < batch->count; i++)
    batch->reads[i].code = -EINPROGRESS;
  while (f.next < batch->count || f.flying > 0 || f.landed_count > 0) {
    push(&f);
    enter(&f);
    tell(&f);
    step(&f);
    collect(&f);
    check_time(&f);
  }
  um_ring_give(f.ring);
  return 0;
}

int um_file_store_read_batch(um_store *store, um_batch *batch) {
  return move_batch(store, batch, false);
}

int um_file_store_write_batch(um_store *store, um_batch *batch) {
  batch->timeout_ns = 0;
  return move_batch(store, batch, true);
}
