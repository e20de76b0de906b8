/* nbd_mend.c: the mending thread: connects again, and writes again what the server may have lost.
 *
 * After a loss it gives up all connections, not only the one that failed: the server may be another one now, and what
 * the others still answer would be of the old. It waits until the last writer has left the gate, so that the journal
 * stands still; takes all that is kept for lost; connects; then writes again, in the order of the first time. What was
 * acknowledged goes at once, what was in flight, and whatever overlaps that, after the grace period, and is read back.
 * Meanwhile reads and writes of other bytes go on.
 *
 * The grace period is time in which the server runs: it is asked for a block again and again, and where it is long
 * silent the period begins anew. Race: a server that is stopped again before it came to what it had not done. */
#include "nbd_recover.h"

#include "internal.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#define PAUSE_MIN_NS 10000000u  /* between tries to connect, or to write again what was refused: doubling */
#define PAUSE_MAX_NS 500000000u /* up to this */
#define STEADY_NS 200000000u    /* connections that were up for so long begin with the shortest pause again */
#define STILL_PART 4u           /* of the request deadline: a server silent for longer stood still */
#define RENEWALS 8u             /* of the grace period, after one return */
#define LET_GO_NS 1000000000u   /* until threads have come out of the old connections, before another look */

__attribute__((format(printf, 2, 3))) static void say(um_nbd_store *store, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  pthread_mutex_lock(&store->lock);
  vsnprintf(store->why, sizeof store->why, format, arguments);
  pthread_mutex_unlock(&store->lock);
  va_end(arguments);
}

static bool is_state(um_nbd_store *store, enum um_nbd_state state) {
  pthread_mutex_lock(&store->lock);
  bool result = store->state == state;
  pthread_mutex_unlock(&store->lock);
  return result;
}

/* Sleeps the pause, while the store is in that state, and makes the next one longer. */
static void pause_in(um_nbd_store *store, enum um_nbd_state state) {
  um_nbd_recover *self = store->recover;
  self->pause_ns = self->pause_ns ? um_min(2 * self->pause_ns, PAUSE_MAX_NS) : PAUSE_MIN_NS;
  uint64_t until = um_now_ns() + self->pause_ns;
  pthread_mutex_lock(&store->lock);
  while (store->state == state && um_nbd_recover_sleep(store, until) != -ETIMEDOUT)
    ;
  pthread_mutex_unlock(&store->lock);
}

/* What of the export is not as it was when the store was opened, in words. */
static bool find_change(const um_nbd_store *store, const um_nbd_export *now, char *words, size_t room) {
  const um_nbd_export *was = &store->export_;
  uint32_t needed = 0;
  if (store->store.writable)
    needed = UM_NBD_FLAG_SEND_FLUSH | UM_NBD_FLAG_SEND_TRIM | UM_NBD_FLAG_SEND_WRITE_ZEROES |
             (store->link_count > 1 ? UM_NBD_FLAG_CAN_MULTI_CONN : 0) |
             (was->flags & UM_NBD_FLAG_SEND_FLUSH ? 0 : UM_NBD_FLAG_SEND_FUA);
  if (now->size != was->size)
    snprintf(words, room, "it has %" PRIu64 " bytes, and had %" PRIu64 " when it was opened", now->size, was->size);
  else if (store->store.writable && now->flags & UM_NBD_FLAG_READ_ONLY)
    snprintf(words, room, "it is read-only now");
  else if (was->flags & needed & ~now->flags)
    snprintf(words, room, "it can do less than when it was opened: transmission flags %#" PRIx32 ", were %#" PRIx32,
             now->flags, was->flags);
  else if (now->block_min > was->block_min || now->length_max < was->length_max)
    snprintf(words, room, "it takes requests of %" PRIu32 " to %" PRIu32 " bytes, and took %" PRIu32 " to %" PRIu32,
             now->block_min, now->length_max, was->block_min, was->length_max);
  else
    return false;
  return true;
}

static void set_changed(um_nbd_store *store, const char *words) {
  pthread_mutex_lock(&store->lock);
  if (store->state == UM_NBD_AWAY) {
    store->state = UM_NBD_CHANGED;
    snprintf(store->why, sizeof store->why, "%s", words);
    pthread_cond_broadcast(&store->changed);
  }
  pthread_mutex_unlock(&store->lock);
}

static bool connect_one(um_nbd_store *store, um_nbd_link *link) {
  char words[UM_NBD_TEXT];
  um_nbd_export now;
  um_nbd_transport *transport = NULL;
  uint64_t deadline_ns = um_now_ns() + store->target.timeout_ns;
  if (um_nbd_connect(&store->target, deadline_ns, &now, &transport, words, sizeof words) < 0) {
    say(store, "%s", words);
    return false;
  }
  bool changed = find_change(store, &now, words, sizeof words);
  if (changed)
    set_changed(store, words);
  if (!changed && um_nbd_link_open(link, transport, &now, deadline_ns) == 0)
    return true;
  transport->ops->close(transport, true);
  return false;
}

/* All of them, before anybody may use one: see nbd.h. A server that takes fewer than it did gets on with those. */
static bool connect_all(um_nbd_store *store) {
  uint32_t made = 0;
  for (uint32_t i = 0; i < store->link_count; i++)
    if (um_nbd_link_drop(&store->links[i], true, um_now_ns() + LET_GO_NS) < 0)
      return false;
  pthread_mutex_lock(&store->lock);
  store->recover->lost = false;
  pthread_mutex_unlock(&store->lock);
  while (made < store->link_count && is_state(store, UM_NBD_AWAY) && connect_one(store, &store->links[made]))
    made++;
  return made > 0;
}

static void give_up_all(um_nbd_store *store) {
  for (uint32_t i = 0; i < store->link_count; i++)
    um_nbd_link_fail(&store->links[i], ECONNRESET, "given up, as another connection to the server was lost");
}

/* Lock held. The last of the callers leaves, since their requests end. */
static void wait_empty(um_nbd_store *store) {
  while (store->recover->inside > 0)
    um_nbd_recover_sleep(store, UINT64_MAX);
}

/* Lock held, nobody inside. */
static void take_for_lost(um_nbd_store *store) {
  if (store->journal)
    um_nbd_journal_doubt(store->journal);
  store->recover->doubted = false;
  pthread_cond_broadcast(&store->changed);
}

static void come_back(um_nbd_store *store) {
  um_nbd_recover *self = store->recover;
  bool is_back = false;
  give_up_all(store);
  pthread_mutex_lock(&store->lock);
  wait_empty(store);
  take_for_lost(store);
  pthread_mutex_unlock(&store->lock);
  if (um_now_ns() > self->up_ns + STEADY_NS)
    self->pause_ns = 0;
  else
    pause_in(store, UM_NBD_AWAY);
  while (!is_back && is_state(store, UM_NBD_AWAY)) {
    is_back = connect_all(store);
    pthread_mutex_lock(&store->lock);
    is_back = is_back && !self->lost && store->state == UM_NBD_AWAY;
    if (is_back) {
      store->state = UM_NBD_UP;
      self->up_ns = um_now_ns();
      self->answered_ns = self->up_ns;
      self->grace_renewals = RENEWALS;
      self->grace_until_ns = self->up_ns + store->target.timeout_ns;
      self->refused = 0;
      atomic_store(&store->calm, um_nbd_recover_is_whole(store));
      atomic_fetch_add(&store->reconnects, 1);
      pthread_cond_broadcast(&store->changed);
    }
    pthread_mutex_unlock(&store->lock);
    if (!is_back) {
      give_up_all(store);
      pause_in(store, UM_NBD_AWAY);
    }
  }
}

static uint64_t still_ns(const um_nbd_store *store) {
  return store->target.timeout_ns / STILL_PART;
}

static void note_answer(um_nbd_store *store) {
  um_nbd_recover *self = store->recover;
  uint64_t now = um_now_ns();
  pthread_mutex_lock(&store->lock);
  if (self->answered_ns < self->grace_until_ns && now - self->answered_ns > still_ns(store) && self->grace_renewals) {
    self->grace_renewals--;
    self->grace_until_ns = now + store->target.timeout_ns;
  }
  self->answered_ns = now;
  pthread_mutex_unlock(&store->lock);
}

/* The last block: its bytes do not matter. */
static void ask(um_nbd_store *store, um_nbd_link *link) {
  um_nbd_recover *self = store->recover;
  um_nbd_request *request = self->waiter->requests;
  uint32_t length = store->export_.block_min;
  *request = (um_nbd_request){
      .type = UM_NBD_CMD_READ, .offset = store->export_.size - length, .length = length, .buffer = self->look};
  um_nbd_link_do(link, self->waiter, request, 1);
  if (!request->lost)
    note_answer(store);
}

/* The server answers, and does not take what it is to have: it is tried again, and callers are told. */
static void note_refusal(um_nbd_store *store, const um_nbd_entry *entry, int code, const char *what) {
  say(store, "%s %" PRIu32 " bytes at offset %" PRIu64 ": %s", what, entry->length, entry->offset, strerror(code));
  pthread_mutex_lock(&store->lock);
  store->recover->refused = code;
  pthread_mutex_unlock(&store->lock);
}

static bool is_like(const um_nbd_entry *entry, uint32_t from, const uint8_t *bytes, uint32_t length) {
  if (entry->bytes)
    return memcmp(entry->bytes + from, bytes, length) == 0;
  return bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0;
}

/* 0: the server has it; 1: it has something else; -errno: it cannot be asked. Nothing can be asked of a discard. */
static int look_back(um_nbd_store *store, um_nbd_link *link, const um_nbd_entry *entry) {
  um_nbd_recover *self = store->recover;
  uint32_t length;
  for (uint32_t from = 0; from < entry->length && entry->type != UM_NBD_CMD_TRIM; from += length) {
    length = (uint32_t)um_min(entry->length - from, um_min(UM_NBD_MEND_LOOK, store->export_.length_max));
    um_nbd_request *request = self->waiter->requests;
    *request = (um_nbd_request){
        .type = UM_NBD_CMD_READ, .offset = entry->offset + from, .length = length, .buffer = self->look};
    um_nbd_link_do(link, self->waiter, request, 1);
    if (request->code < 0)
      return request->code;
    if (!is_like(entry, from, self->look, length))
      return 1;
  }
  return 0;
}

/* One entry's request has ended. False: there is something to wait for before the next try. */
static bool conclude(um_nbd_store *store, um_nbd_link *link, um_nbd_entry *entry, const um_nbd_request *request) {
  if (request->lost) {
    if (request->sent)
      um_nbd_journal_unsure(store->journal, entry);
    return true; /* the next turn finds the server lost */
  }
  if (request->code < 0) {
    if (um_nbd_journal_give_up(store->journal, entry, request->code))
      return true;
    note_refusal(store, entry, -request->code, "writing again");
    return false;
  }
  int looked = entry->state == UM_NBD_ENTRY_UNSURE ? look_back(store, link, entry) : 0;
  if (looked == 0)
    um_nbd_journal_mend(store->journal, entry);
  else if (looked > 0)
    say(store, "%" PRIu32 " bytes at offset %" PRIu64 " are not what was just written: does somebody else write there?",
        entry->length, entry->offset);
  else if (is_state(store, UM_NBD_UP) && atomic_load(&link->up))
    note_refusal(store, entry, -looked, "reading back");
  return looked == 0;
}

/* False: there is something to wait for before the next try. */
static bool write_batch(um_nbd_store *store, um_nbd_link *link, uint32_t count) {
  um_nbd_recover *self = store->recover;
  um_nbd_request *requests = self->waiter->requests, done[UM_NBD_MEND_BATCH];
  bool goes_on = true;
  for (uint32_t i = 0; i < count; i++) {
    const um_nbd_entry *entry = self->due[i];
    requests[i] = (um_nbd_request){.type = entry->type,
                                   .flags = entry->flags,
                                   .offset = entry->offset,
                                   .length = entry->length,
                                   .buffer = entry->bytes};
  }
  um_nbd_link_do(link, self->waiter, requests, count);
  if (!requests[0].lost)
    note_answer(store);
  memcpy(done, requests, count * sizeof *done); /* reading back needs the first again */
  for (uint32_t i = 0; i < count; i++)
    goes_on &= conclude(store, link, self->due[i], &done[i]);
  pthread_mutex_lock(&store->lock);
  if (goes_on)
    self->refused = 0;
  pthread_cond_broadcast(&store->changed);
  pthread_mutex_unlock(&store->lock);
  return goes_on;
}

/* One turn of writing again. */
static void write_again(um_nbd_store *store) {
  um_nbd_recover *self = store->recover;
  um_nbd_link *link = um_nbd_link_choose(store);
  uint64_t silent_ns = um_now_ns() - self->answered_ns;
  if (link && self->answered_ns < self->grace_until_ns && silent_ns >= still_ns(store) / 2)
    ask(store, link);
  bool grace = self->answered_ns < self->grace_until_ns;
  uint32_t count = um_nbd_journal_due(store->journal, !grace, self->due, UM_NBD_MEND_BATCH);
  if (count > 0 && link) {
    if (write_batch(store, link, count))
      self->pause_ns = 0;
    else
      pause_in(store, UM_NBD_UP);
    return;
  }
  pthread_mutex_lock(&store->lock);
  bool whole = um_nbd_recover_is_whole(store);
  if (store->state != UM_NBD_UP || self->doubted) {
    /* somebody was quicker */
  } else if (whole) {
    atomic_store(&store->calm, true);
    pthread_cond_broadcast(&store->changed);
  } else {
    /* The grace period, or a link is down and um_nbd_recover_lost on its way. */
    um_nbd_recover_sleep(store, link ? self->answered_ns + still_ns(store) / 2 : um_now_ns() + PAUSE_MIN_NS);
  }
  pthread_mutex_unlock(&store->lock);
}

void *um_nbd_mend(void *context) {
  um_nbd_store *store = context;
  um_nbd_cancel = store->recover->cancel;
  pthread_mutex_lock(&store->lock);
  while (!store->recover->stopping) {
    bool up = store->state == UM_NBD_UP;
    if (up && store->recover->doubted) {
      wait_empty(store);
      if (store->state == UM_NBD_UP)
        take_for_lost(store);
      continue;
    }
    if (store->state == UM_NBD_AWAY || (up && !atomic_load(&store->calm))) {
      pthread_mutex_unlock(&store->lock);
      (up ? write_again : come_back)(store);
      pthread_mutex_lock(&store->lock);
      continue;
    }
    um_nbd_recover_sleep(store, UINT64_MAX);
  }
  pthread_mutex_unlock(&store->lock);
  return NULL;
}
