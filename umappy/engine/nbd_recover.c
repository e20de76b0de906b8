/* nbd_recover.c: what callers see of a lost server: they wait, for a while, and nothing that was acknowledged is gone.
 *
 * The races, each with a test (L: tests/stores/nbd_loss/, C: tests/engine/test_nbd_recover.c):
 *
 * 1. A write is acknowledged on one connection while another is lost. The acknowledgement may be of a server that is
 *    dead by now. The entry becomes KEPT by the hands of a caller inside the gate; the mending thread waits for the
 *    last of them, then takes everything KEPT for lost. [C write_acknowledged_while_another_connection_is_lost]
 * 2. A FLUSH is in flight when a connection is lost. Its caller gets `lost`, leaves, and begins anew: it waits until
 *    what was lost has been written again. If it was answered before, what it covers is durable, and gone before the
 *    mending thread looks, as its caller was inside. [L flush_under_way]
 * 3. A FLUSH is answered while another was refused: it may cover nothing. The journal trusts none from the refusal to
 *    the moment when all is to be written again; nobody enters in between. [C flush_beside_one_that_fails]
 * 4. A read was let through before the loss and is sent after the return, before its bytes were written again: it
 *    would bring what the restarted server has. Each loss begins an epoch; a read counts if none began since it was
 *    let through. [C read_that_was_held_up]
 * 5. A write's caller runs into its deadline while the mending thread writes those bytes. The bytes are the journal's
 *    own copy, and the entry stays: the caller lets go of it under the journal's lock, at any moment. Newer bytes for
 *    the same place wait until it was written. [L caller_gives_up]
 * 6. A second loss in the middle of writing again. What was in flight then is UNSURE, whatever it was before; the walk
 *    begins anew, in the old order. [L second_loss, late_second_try]
 * 7. A write of the old connection is done after it was lost, even after a new connection is up: by a server that had
 *    hung, or a thread of it that had. Nothing newer is sent for its place, and no FLUSH ends, for one request
 *    deadline from the moment when the server answered again (not from the loss: a stopped server finds the old bytes
 *    in its socket when it goes on), in which it answers all the time: where it stands still the deadline begins anew.
 *    What comes later than that, NBD has no means against. [L late_write, stands_still_in_the_grace_period]
 * 8. Close while the server is away waits for acknowledged bytes only, and not longer than any call. [L close]
 * 9. Fork: the child has no mending thread, and these locks may be held by nobody that lives. Callers ask for the fork
 *    before they come here. [L fork] */
#include "nbd_recover.h"

#include "internal.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

int um_nbd_recover_sleep(um_nbd_store *store, uint64_t deadline_ns) {
  if (deadline_ns == UINT64_MAX)
    return -pthread_cond_wait(&store->changed, &store->lock);
  struct timespec until = {(time_t)(deadline_ns / 1000000000u), (long)(deadline_ns % 1000000000u)};
  return -pthread_cond_timedwait(&store->changed, &store->lock, &until);
}

bool um_nbd_recover_is_whole(um_nbd_store *store) {
  if (!store->journal)
    return true;
  um_nbd_journal_counts counts;
  um_nbd_journal_count(store->journal, &counts);
  return counts.due + counts.unsure == 0;
}

void um_nbd_recover_why(um_nbd_store *store, char text[UM_NBD_TEXT]) {
  pthread_mutex_lock(&store->lock);
  memcpy(text, store->why, UM_NBD_TEXT);
  pthread_mutex_unlock(&store->lock);
}

void um_nbd_recover_lost(um_nbd_store *store, um_nbd_link *link) {
  char why[UM_NBD_TEXT];
  pthread_mutex_lock(&link->lock);
  memcpy(why, link->fail_text, sizeof why);
  pthread_mutex_unlock(&link->lock);
  pthread_mutex_lock(&store->lock);
  bool news = !atomic_load(&link->up); /* else another told of it, and it has been connected since */
  if (store->recover && news)
    store->recover->lost = true;
  if (store->state == UM_NBD_UP && news) {
    store->state = UM_NBD_AWAY;
    atomic_store(&store->calm, false);
    atomic_fetch_add(&store->epoch, 1);
    memcpy(store->why, why, sizeof why);
    pthread_cond_broadcast(&store->changed);
  }
  pthread_mutex_unlock(&store->lock);
}

void um_nbd_recover_doubt(um_nbd_store *store, const char *why) {
  if (!store->journal)
    return;
  pthread_mutex_lock(&store->lock);
  um_nbd_journal_distrust(store->journal);
  store->recover->doubted = true;
  atomic_store(&store->calm, false);
  atomic_fetch_add(&store->epoch, 1);
  snprintf(store->why, sizeof store->why, "%s", why);
  pthread_cond_broadcast(&store->changed);
  pthread_mutex_unlock(&store->lock);
}

/* Why nobody may wait any more; 0: wait. */
static int refuse(um_nbd_store *store, bool overdue, int op, uint64_t offset, uint64_t length, um_error *error) {
  int refused = store->recover->refused;
  if (store->state == UM_NBD_CHANGED)
    return um_nbd_fail(store, ESTALE, op, offset, length, error, "another export is there now: %s", store->why);
  if (store->state == UM_NBD_CLOSED)
    return um_nbd_fail(store, ESHUTDOWN, op, offset, length, error, "the store is being closed");
  if (!overdue)
    return 0;
  double retry = (double)store->target.retry_ns / 1e9;
  if (store->state == UM_NBD_AWAY)
    return um_nbd_fail(store, ETIMEDOUT, op, offset, length, error, "the server is away, not back within %g s: %s",
                       retry, store->why);
  if (refused)
    return um_nbd_fail(store, refused, op, offset, length, error,
                       "the server lost what it had acknowledged, and does not take it again within %g s: %s", retry,
                       store->why);
  return um_nbd_fail(store, ETIMEDOUT, op, offset, length, error,
                     "the server was lost, and what it may have lost not written again within %g s: %s", retry,
                     store->why);
}

static bool is_ready(um_nbd_store *store, int op, uint64_t offset, uint64_t length) {
  if (store->state != UM_NBD_UP || store->recover->doubted)
    return false;
  if (atomic_load(&store->calm))
    return true;
  return op != UM_OP_FLUSH && !(store->journal && um_nbd_journal_overlaps(store->journal, offset, length, false));
}

/* Lock held. */
static int wait_ready(um_nbd_store *store, int op, uint64_t offset, uint64_t length, uint64_t deadline_ns,
                      um_error *error) {
  bool overdue = false;
  while (!is_ready(store, op, offset, length)) {
    int result = refuse(store, overdue, op, offset, length, error);
    if (result == 0 && deadline_ns == 0)
      result = -ETIMEDOUT;
    if (result < 0)
      return result;
    overdue = um_nbd_recover_sleep(store, deadline_ns) == -ETIMEDOUT;
  }
  return 0;
}

int um_nbd_recover_await(um_nbd_store *store, uint64_t offset, uint64_t length, uint64_t deadline_ns, uint64_t *epoch,
                         um_error *error) {
  *epoch = atomic_load(&store->epoch); /* before `calm`: a loss clears that first, then begins the next */
  if (atomic_load(&store->calm))
    return 0;
  pthread_mutex_lock(&store->lock);
  int result = wait_ready(store, UM_OP_READ, offset, length, deadline_ns, error);
  *epoch = atomic_load(&store->epoch);
  pthread_mutex_unlock(&store->lock);
  return result;
}

int um_nbd_recover_enter(um_nbd_store *store, int op, uint64_t offset, uint64_t length, uint64_t deadline_ns,
                         um_error *error) {
  pthread_mutex_lock(&store->lock);
  int result = wait_ready(store, op, offset, length, deadline_ns, error);
  if (result == 0)
    store->recover->inside++;
  pthread_mutex_unlock(&store->lock);
  return result;
}

void um_nbd_recover_leave(um_nbd_store *store) {
  pthread_mutex_lock(&store->lock);
  UM_ASSERT(store->recover->inside > 0);
  if (--store->recover->inside == 0 && (store->state != UM_NBD_UP || store->recover->doubted))
    pthread_cond_broadcast(&store->changed);
  pthread_mutex_unlock(&store->lock);
}

int um_nbd_recover_settle(um_nbd_store *store, um_nbd_entry *entry, uint64_t deadline_ns, um_error *error) {
  uint64_t offset = entry->offset, length = entry->length;
  int code = 0, result = 0;
  bool overdue = false;
  pthread_mutex_lock(&store->lock);
  while (!um_nbd_journal_settled(store->journal, entry, &code)) {
    result = refuse(store, overdue, UM_OP_WRITE, offset, length, error);
    if (result < 0) {
      um_nbd_journal_abandon(store->journal, entry);
      break;
    }
    overdue = um_nbd_recover_sleep(store, deadline_ns) == -ETIMEDOUT;
  }
  if (code < 0)
    result = um_nbd_fail(store, -code, UM_OP_WRITE, offset, length, error,
                         "the connection was lost, and the write refused when it was made again: %s", strerror(-code));
  pthread_mutex_unlock(&store->lock);
  return result;
}

static void end(um_nbd_store *store, um_nbd_recover *self) {
  if (self->waiter)
    um_nbd_waiter_give(self->waiter);
  if (self->cancel >= 0)
    close(self->cancel);
  free(self);
  store->recover = NULL;
}

int um_nbd_recover_start(um_nbd_store *store) {
  um_nbd_recover *self = calloc(1, sizeof *self);
  if (!self)
    return -ENOMEM;
  self->cancel = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  self->waiter = self->cancel < 0 ? NULL : um_nbd_waiter_take(store);
  if (!self->waiter) {
    end(store, self);
    return -ENOMEM;
  }
  self->up_ns = um_now_ns();
  store->recover = self;
  store->state = UM_NBD_UP;
  atomic_store(&store->calm, true);
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited */
  int code = pthread_create(&self->thread, NULL, um_nbd_mend, store);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (code)
    end(store, self);
  return -code;
}

void um_nbd_recover_forked(um_nbd_store *store) {
  close(store->recover->cancel);
}

static uint64_t count_promised(um_nbd_store *store) {
  um_nbd_journal_counts counts = {0};
  if (store->journal)
    um_nbd_journal_count(store->journal, &counts);
  return counts.promised;
}

int um_nbd_recover_stop(um_nbd_store *store, um_error *error) {
  um_nbd_recover *self = store->recover;
  uint64_t deadline_ns = um_now_ns() + store->target.retry_ns, left;
  pthread_mutex_lock(&store->lock);
  bool overdue = false;
  while ((left = count_promised(store)) > 0 && store->state != UM_NBD_CHANGED && !overdue)
    overdue = um_nbd_recover_sleep(store, deadline_ns) == -ETIMEDOUT;
  int result =
      left == 0 ? 0
                : um_nbd_fail(store, store->state == UM_NBD_CHANGED ? ESTALE : ETIMEDOUT, UM_OP_FLUSH, 0, 0, error,
                              "closed while %" PRIu64 " writes that were never flushed are lost: %s", left, store->why);
  self->stopping = true;
  store->state = UM_NBD_CLOSED;
  bool busy = !atomic_load(&store->calm);
  pthread_cond_broadcast(&store->changed);
  pthread_mutex_unlock(&store->lock);
  for (uint32_t i = 0; i < store->link_count && busy; i++) /* it may wait for a request of its own */
    um_nbd_link_fail(&store->links[i], ESHUTDOWN, "the store is being closed");
  (void)!write(self->cancel, &(uint64_t){1}, sizeof(uint64_t));
  pthread_join(self->thread, NULL);
  end(store, self);
  return result;
}
