/* nbd_link.c: one connection: what is queued and in flight on it, who sends and who receives, and its end.
 *
 * Deadlines. The oldest request must end within the time-out, counted from its submission or from when it became the
 * oldest: a deep queue on a slow line is no hang, and a request that is passed over for ever becomes the oldest soon.
 *
 * Race: giving up against the socket's calls. Another thread may be inside a receive into a request's buffer, or inside
 * a send from one. So giving up only marks the link and shuts the socket down; requests end when the last thread has
 * come out. */
#include "nbd.h"

#include "internal.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>

#define PAUSE_NS 200000 /* between looks whether threads have come out of a link that is down */

int um_nbd_link_init(um_nbd_link *link, um_nbd_store *store, uint32_t index) {
  memset(link, 0, sizeof *link);
  link->store = store;
  link->index = index;
  link->staging = malloc(UM_NBD_STAGING);
  pthread_mutex_init(&link->lock, NULL);
  snprintf(link->fail_text, sizeof link->fail_text, "not connected yet");
  return link->staging ? 0 : -ENOMEM;
}

/* Nobody is inside. A server that is told is not surprised; one that does not listen is not waited for. */
void um_nbd_link_end(um_nbd_link *link) {
  um_nbd_request goodbye = {.type = UM_NBD_CMD_DISC};
  struct iovec part = {goodbye.header, sizeof goodbye.header};
  um_nbd_request_write_header(&goodbye);
  if (atomic_load(&link->up))
    link->transport->ops->send(link->transport, &part, 1);
  if (link->transport)
    link->transport->ops->close(link->transport, false);
  pthread_mutex_destroy(&link->lock);
  free(link->staging);
}

static void push(um_nbd_waiter *waiter, um_nbd_request *request) {
  request->next = atomic_load(&waiter->ended);
  while (!atomic_compare_exchange_weak(&waiter->ended, &request->next, request))
    ;
}

static void unlink_request(um_nbd_link *link, um_nbd_request *request) {
  um_nbd_request **first = request->queued ? &link->queue_first : &link->flight_first;
  um_nbd_request **last = request->queued ? &link->queue_last : &link->flight_last;
  *(request->prev ? &request->prev->next : first) = request->next;
  *(request->next ? &request->next->prev : last) = request->prev;
}

void um_nbd_link_finish(um_nbd_link *link, um_nbd_request *request) {
  if (request == (link->flight_first ? link->flight_first : link->queue_first))
    link->first_ns = um_now_ns();
  unlink_request(link, request);
  if (request->cookie) {
    uint16_t slot = request->cookie % UM_NBD_SLOTS;
    link->slots[slot] = NULL;
    link->free_slots[link->free_count++] = slot;
  }
  link->owed--;
  atomic_fetch_sub_explicit(&link->load, request->length, memory_order_relaxed);
  push(request->owner, request);
}

static void lose(um_nbd_link *link, um_nbd_request *request) {
  um_nbd_waiter *owner = request->owner;
  um_nbd_request_forget(request);
  request->lost = true;
  request->code = -link->fail_code;
  um_nbd_link_finish(link, request);
  um_nbd_wake(owner);
}

void um_nbd_link_sweep(um_nbd_link *link) {
  if (link->up || link->receiving || link->sending)
    return;
  while (link->flight_first)
    lose(link, link->flight_first);
  while (link->queue_first)
    lose(link, link->queue_first);
  link->driver = link->sender = NULL;
}

void um_nbd_link_fail(um_nbd_link *link, int code, const char *format, ...) {
  pthread_mutex_lock(&link->lock);
  bool was_up = link->up;
  if (was_up) {
    link->fail_code = code;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(link->fail_text, sizeof link->fail_text, format, arguments);
    va_end(arguments);
    atomic_store(&link->up, false);
    link->transport->ops->shutdown(link->transport);
    um_nbd_link_sweep(link);
  }
  pthread_mutex_unlock(&link->lock);
  if (was_up)
    um_nbd_recover_lost(link->store, link);
}

static int wait_empty(um_nbd_link *link, uint64_t deadline_ns) { /* lock held, let go inside */
  const struct timespec pause = {0, PAUSE_NS};
  while (link->receiving || link->sending) {
    pthread_mutex_unlock(&link->lock);
    nanosleep(&pause, NULL);
    pthread_mutex_lock(&link->lock);
    if (um_now_ns() >= deadline_ns && (link->receiving || link->sending))
      return -ETIMEDOUT;
  }
  return 0;
}

int um_nbd_link_drop(um_nbd_link *link, bool reset, uint64_t deadline_ns) {
  pthread_mutex_lock(&link->lock);
  int result = link->up ? -EBUSY : wait_empty(link, deadline_ns);
  um_nbd_transport *transport = result == 0 ? link->transport : NULL;
  if (transport)
    link->transport = NULL;
  pthread_mutex_unlock(&link->lock);
  if (transport)
    transport->ops->close(transport, reset);
  return result;
}

static um_nbd_request *find(void *context, uint64_t cookie) {
  um_nbd_link *link = context;
  pthread_mutex_lock(&link->lock);
  um_nbd_request *request = link->slots[cookie % UM_NBD_SLOTS];
  /* Race: the server answers what a send has just given it, before its thread could note that. */
  bool known = request && request->cookie == cookie && !request->answered && (!request->queued || link->sending);
  pthread_mutex_unlock(&link->lock);
  return known ? request : NULL;
}

static void end(void *context, um_nbd_request *request) {
  um_nbd_link *link = context;
  um_nbd_waiter *owner = request->owner;
  if (request->code == -ESHUTDOWN) { /* nothing was done; it ends lost, with the connection */
    link->shutting = true;
    return;
  }
  pthread_mutex_lock(&link->lock);
  bool told = !request->queued;
  if (told)
    um_nbd_link_finish(link, request);
  else
    request->answered = true;
  pthread_mutex_unlock(&link->lock);
  if (!told || owner == link->driver)
    return;
  if (link->to_wake_count == UM_NBD_WAKES)
    um_nbd_wake(owner);
  else if (link->to_wake_count == 0 || link->to_wake[link->to_wake_count - 1] != owner)
    link->to_wake[link->to_wake_count++] = owner;
}

static const um_nbd_reply_calls reply_calls = {.find = find, .end = end};

int um_nbd_link_open(um_nbd_link *link, um_nbd_transport *transport, const um_nbd_export *export_,
                     uint64_t deadline_ns) {
  int result = um_nbd_link_drop(link, true, deadline_ns);
  if (result < 0)
    return result;
  pthread_mutex_lock(&link->lock);
  link->transport = transport;
  link->export_ = *export_;
  link->sent = 0;
  link->to_wake_count = 0;
  link->shutting = false;
  um_nbd_reply_init(&link->reply, export_->structured, &reply_calls, link);
  for (link->free_count = 0; link->free_count < UM_NBD_SLOTS; link->free_count++)
    link->free_slots[link->free_count] = (uint16_t)(UM_NBD_SLOTS - 1 - link->free_count);
  link->fail_code = 0;
  link->fail_text[0] = '\0';
  atomic_store(&link->up, true);
  pthread_mutex_unlock(&link->lock);
  return 0;
}

um_nbd_link *um_nbd_link_choose(um_nbd_store *store) {
  um_nbd_link *best = NULL;
  uint64_t least = UINT64_MAX;
  for (um_nbd_link *link = store->links; link < store->links + store->link_count; link++) {
    uint64_t load = atomic_load_explicit(&link->load, memory_order_relaxed);
    if (load < least && atomic_load(&link->up)) {
      best = link;
      least = load;
    }
  }
  return best;
}

static void append(um_nbd_request **first, um_nbd_request **last, um_nbd_request *request) {
  request->prev = *last;
  request->next = NULL;
  *(*last ? &(*last)->next : first) = request;
  *last = request;
}

void um_nbd_link_flew(um_nbd_link *link, um_nbd_request *request) {
  unlink_request(link, request);
  request->queued = false;
  append(&link->flight_first, &link->flight_last, request);
}

void um_nbd_link_submit(um_nbd_link *link, um_nbd_waiter *waiter, um_nbd_request *first) {
  pthread_mutex_lock(&link->lock);
  if (link->owed == 0)
    link->first_ns = um_now_ns();
  while (first) {
    um_nbd_request *request = first;
    first = first->next;
    request->code = 0;
    request->lost = request->sent = request->answered = false;
    request->queued = true;
    request->owner = waiter;
    request->link = link;
    request->cookie = 0;
    request->covered = request->part_count = 0;
    request->parts = NULL;
    append(&link->queue_first, &link->queue_last, request);
    link->owed++;
    waiter->pending[link->index]++;
    waiter->pending_count++;
    atomic_fetch_add_explicit(&link->load, request->length, memory_order_relaxed);
  }
  bool sends = link->up && !link->sender;
  if (sends)
    link->sender = waiter;
  um_nbd_link_sweep(link);
  pthread_mutex_unlock(&link->lock);
  if (sends)
    um_nbd_link_send(link, waiter);
}

um_nbd_duty um_nbd_link_duty(um_nbd_link *link, um_nbd_waiter *waiter) {
  um_nbd_duty duty = {.descriptor = -1, .deadline_ns = UINT64_MAX};
  pthread_mutex_lock(&link->lock);
  if (link->up && link->owed > 0) {
    um_nbd_transport *transport = link->transport;
    if (!link->driver)
      link->driver = waiter;
    if (!link->sender && link->queue_first && (link->free_count > 0 || link->queue_first->cookie))
      link->sender = waiter;
    if (link->driver == waiter)
      duty.events |= atomic_load(&transport->receive_events);
    if (link->sender == waiter)
      duty.events |= atomic_load(&transport->send_events);
    duty.descriptor = transport->descriptor;
    duty.deadline_ns = link->first_ns + link->store->target.timeout_ns;
    if (link->driver == waiter && atomic_load(&transport->held))
      duty.deadline_ns = 0;
    duty.plain = transport->ops->await && link->driver == waiter && !link->queue_first && !link->sending;
  }
  pthread_mutex_unlock(&link->lock);
  return duty;
}

void um_nbd_link_check(um_nbd_link *link) {
  uint64_t timeout_ns = link->store->target.timeout_ns;
  pthread_mutex_lock(&link->lock);
  bool overdue = link->up && link->owed > 0 && um_now_ns() >= link->first_ns + timeout_ns;
  pthread_mutex_unlock(&link->lock);
  if (overdue)
    um_nbd_link_fail(link, ETIMEDOUT, "the server did not answer for %g s", (double)timeout_ns / 1e9);
}

/* Another that sleeps and has a request in the list. Race: who is about to sleep says so before it looks at the roles,
 * under the lock; so either it is seen here, or it sees that the role is free. */
static um_nbd_waiter *find_sleeper(um_nbd_request *request, const um_nbd_waiter *waiter) {
  for (; request; request = request->next)
    if (request->owner != waiter && atomic_load(&request->owner->asleep))
      return request->owner;
  return NULL;
}

void um_nbd_link_leave(um_nbd_link *link, um_nbd_waiter *waiter) {
  um_nbd_waiter *driver = NULL, *sender = NULL;
  pthread_mutex_lock(&link->lock);
  if (link->driver == waiter && !link->receiving) {
    if (link->owed > waiter->pending[link->index]) {
      driver = find_sleeper(link->flight_first, waiter);
      if (!driver)
        driver = find_sleeper(link->queue_first, waiter);
    }
    link->driver = driver;
  }
  if (link->sender == waiter && !link->sending)
    link->sender = sender = find_sleeper(link->queue_first, waiter);
  pthread_mutex_unlock(&link->lock);
  if (driver)
    um_nbd_wake(driver);
  if (sender && sender != driver)
    um_nbd_wake(sender);
}
