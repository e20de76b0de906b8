/* record.c: failures the engine met on somebody's behalf, kept until they are told. A thread whose fill failed reads
 * 0xFF and goes on; the binding raises the record in it (um_region_error_fault) or at the next call that checks. */
#include "internal.h"

#include <stdio.h>

static pthread_mutex_t wait_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wait_condition;
static uint64_t recorded, waited_for;

/* Again in a forked child: a thread that waited here did not come along, nor did one that had the lock. */
__attribute__((constructor)) void um_error_wait_init(void) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(&wait_condition, &attributes);
  pthread_condattr_destroy(&attributes);
  pthread_mutex_init(&wait_lock, NULL);
}

bool um_error_passing(int code) {
  return code == EAGAIN || code == ETIMEDOUT || code == ECONNRESET || code == EIO || code == EINTR;
}

void um_error_record(um_region *r, um_error *error, uint32_t thread_id) {
  um_errors *e = &r->errors;
  error->thread_id = (int32_t)thread_id;
  error->delivered = 0;
  pthread_mutex_lock(&e->lock);
  um_error *slot = &e->kept[e->count % UM_ERRORS_KEPT];
  if (e->count < UM_ERRORS_KEPT || slot->delivered)
    atomic_fetch_add(&r->untold, 1);
  *slot = *error; /* of more than it can keep, the newest */
  e->count++;
  pthread_mutex_unlock(&e->lock);

  pthread_mutex_lock(&wait_lock);
  recorded++;
  pthread_cond_broadcast(&wait_condition);
  pthread_mutex_unlock(&wait_lock);
}

static int take(um_region *r, um_error *error, bool only_faults) {
  um_errors *e = &r->errors;
  int found = 0;
  if (atomic_load(&r->untold) == 0)
    return 0;
  pthread_mutex_lock(&e->lock);
  uint64_t first = e->count > UM_ERRORS_KEPT ? e->count - UM_ERRORS_KEPT : 0;
  for (uint64_t i = first; i < e->count && !found; i++) {
    um_error *slot = &e->kept[i % UM_ERRORS_KEPT];
    if (slot->delivered || (only_faults && slot->thread_id == 0))
      continue;
    *error = *slot;
    slot->delivered = 1;
    atomic_fetch_sub(&r->untold, 1);
    found = 1;
  }
  pthread_mutex_unlock(&e->lock);
  return found;
}

int um_region_error_next(um_region *r, um_error *error) {
  return take(r, error, false);
}

int um_region_error_fault(um_region *r, um_error *error) {
  return take(r, error, true);
}

int um_region_error_at(um_region *r, uint32_t index, um_error *error) {
  um_errors *e = &r->errors;
  pthread_mutex_lock(&e->lock);
  uint64_t kept = um_min(e->count, UM_ERRORS_KEPT);
  int found = index < kept;
  if (found)
    *error = e->kept[(e->count - kept + index) % UM_ERRORS_KEPT];
  pthread_mutex_unlock(&e->lock);
  return found;
}

int um_region_tainted(um_region *r) {
  return atomic_load(&r->tainted);
}

int um_pager_error_wait(uint32_t timeout_ms) {
  pthread_mutex_lock(&wait_lock);
  uint64_t deadline = um_now_ns() + timeout_ms * 1000000ull;
  while (recorded == waited_for && um_wait_until(&wait_condition, &wait_lock, deadline) == 0)
    ;
  int fresh = recorded != waited_for;
  waited_for = recorded;
  pthread_mutex_unlock(&wait_lock);
  return fresh;
}
