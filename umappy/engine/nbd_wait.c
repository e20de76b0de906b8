/* nbd_wait.c: a thread inside a call of the store, and its waiting for requests on any of the connections.
 *
 * It sleeps in poll, on an eventfd of its own and on the sockets of the links where it has a role. Waiters are made as
 * threads come, and live as long as the store: whoever holds one that is not in use any more may wake it in vain. */
#define _GNU_SOURCE
#include "nbd.h"

#include "internal.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

um_nbd_waiter *um_nbd_waiter_take(um_nbd_store *store) {
  pthread_mutex_lock(&store->waiters_lock);
  um_nbd_waiter *waiter = store->waiters_free;
  if (waiter)
    store->waiters_free = waiter->next;
  pthread_mutex_unlock(&store->waiters_lock);
  if (waiter)
    return waiter;
  waiter = calloc(1, sizeof *waiter);
  if (!waiter || (waiter->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0) {
    free(waiter);
    return NULL;
  }
  waiter->store = store;
  waiter->all_next = atomic_load(&store->waiters);
  while (!atomic_compare_exchange_weak(&store->waiters, &waiter->all_next, waiter))
    ;
  return waiter;
}

void um_nbd_waiter_give(um_nbd_waiter *waiter) {
  um_nbd_store *store = waiter->store;
  UM_ASSERT(waiter->pending_count == 0);
  pthread_mutex_lock(&store->waiters_lock);
  waiter->next = store->waiters_free;
  store->waiters_free = waiter;
  pthread_mutex_unlock(&store->waiters_lock);
}

void um_nbd_waiter_free(um_nbd_waiter *waiter) {
  close(waiter->wake);
  free(waiter);
}

void um_nbd_wake(um_nbd_waiter *waiter) {
  uint64_t one = 1;
  if (atomic_exchange(&waiter->asleep, false))
    while (write(waiter->wake, &one, sizeof one) < 0 && errno == EINTR)
      ;
}

static um_nbd_request *collect(um_nbd_waiter *waiter) {
  um_nbd_request *first = atomic_exchange(&waiter->ended, NULL);
  for (um_nbd_request *request = first; request; request = request->next) {
    waiter->pending[request->link->index]--;
    waiter->pending_count--;
  }
  return first;
}

/* Who goes away leaves no role behind. Race: its requests may have ended before it ever slept, while it was sending
 * those of others: it still has to send the rest of one. */
static void leave(um_nbd_waiter *waiter, const um_nbd_request *first) {
  um_nbd_store *store = waiter->store;
  bool had[UM_NBD_LINKS] = {false};
  for (; first; first = first->next)
    had[first->link->index] = true;
  for (uint32_t i = 0; i < store->link_count; i++)
    if (had[i] || waiter->pending[i] > 0)
      um_nbd_link_leave(&store->links[i], waiter);
}

typedef struct watch {
  struct pollfd look[1 + UM_NBD_LINKS];
  um_nbd_link *links[1 + UM_NBD_LINKS];
  nfds_t count;
  uint64_t until_ns;
  bool plain; /* of the last link */
} watch;

/* `asleep` is set: who ends a request from now on, or hands a role over, wakes. */
static void prepare(um_nbd_waiter *waiter, watch *w) {
  um_nbd_store *store = waiter->store;
  w->look[0] = (struct pollfd){.fd = waiter->wake, .events = POLLIN};
  w->count = 1;
  for (uint32_t i = 0; i < store->link_count; i++) {
    if (waiter->pending[i] == 0)
      continue;
    um_nbd_duty duty = um_nbd_link_duty(&store->links[i], waiter);
    w->until_ns = um_min(w->until_ns, duty.deadline_ns);
    w->plain = duty.plain;
    w->look[w->count] = (struct pollfd){.fd = duty.events ? duty.descriptor : -1, .events = duty.events};
    w->links[w->count++] = &store->links[i];
  }
}

static void sleep_until(watch *w) {
  uint64_t now = um_now_ns(), left = w->until_ns > now ? w->until_ns - now : 0;
  struct timespec most = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
  if (ppoll(w->look, w->count, w->until_ns == UINT64_MAX ? NULL : &most, NULL) <= 0)
    for (nfds_t i = 0; i < w->count; i++)
      w->look[i].revents = w->until_ns == 0 && w->look[i].fd >= 0 ? POLLIN : 0;
}

/* Who waits for one connection only, and drives it, waits in the receive itself, which saves a system call. Whoever
 * ends its requests otherwise has shut the socket down before: nothing else could wake it. */
static bool receive_patiently(um_nbd_waiter *waiter, const watch *w) {
  if (w->count != 2 || !w->plain || w->until_ns < um_now_ns() + UM_NBD_AWAIT_MS * UINT64_C(1000000))
    return false;
  um_nbd_link_receive(w->links[1], waiter, true);
  return true;
}

static void work(um_nbd_waiter *waiter, const watch *w) {
  uint64_t count;
  atomic_store(&waiter->asleep, false);
  /* Race: who wakes it may come to write only after it went on for another reason; that ends the next sleep. */
  if (w->look[0].revents)
    while (read(waiter->wake, &count, sizeof count) < 0 && errno == EINTR)
      ;
  for (nfds_t i = 1; i < w->count; i++)
    if (w->look[i].revents) {
      um_nbd_link_send(w->links[i], waiter);
      um_nbd_link_receive(w->links[i], waiter, false);
    }
  if (um_now_ns() >= w->until_ns) /* also where replies, or nonsense, come without end */
    for (nfds_t i = 1; i < w->count; i++)
      um_nbd_link_check(w->links[i]);
}

um_nbd_request *um_nbd_wait(um_nbd_waiter *waiter, uint64_t until_ns) {
  um_nbd_request *first = collect(waiter);
  bool polled = false;
  while (!first && waiter->pending_count > 0) {
    watch w = {.until_ns = until_ns};
    if (polled && until_ns != UINT64_MAX && um_now_ns() >= until_ns)
      break;
    atomic_store(&waiter->asleep, true);
    prepare(waiter, &w);
    if (atomic_load(&waiter->ended))
      w.until_ns = 0;
    polled = true;
    if (!receive_patiently(waiter, &w))
      sleep_until(&w);
    work(waiter, &w);
    first = collect(waiter);
  }
  leave(waiter, first);
  return first;
}

void um_nbd_link_do(um_nbd_link *link, um_nbd_waiter *waiter, um_nbd_request *requests, uint32_t count) {
  for (uint32_t i = 0; i < count; i++)
    requests[i].next = i + 1 < count ? &requests[i + 1] : NULL;
  if (count > 0)
    um_nbd_link_submit(link, waiter, requests);
  while (waiter->pending_count > 0)
    um_nbd_wait(waiter, UINT64_MAX);
}
