/* gate.c: who is inside a region.
 *
 * Every engine thread that changes a page's state or touches a region's address range is inside its gate, and stays
 * only for system calls and copies, never for store I/O; so closing waits for those alone. A thread that finds the
 * gate closed drops the fault message it came with: opening, and forgetting, wake the whole region, and who still
 * needs a page faults again.
 *
 * Race: close against fault. The closer holds the GIL; a thread that faults with the gate closed cannot be holding it.
 * If arrays still live, mmap.close raises BufferError, the gate opens again, and the wake sends the fault anew. */
#include "internal.h"

#include "page.h"
#include "uffd.h"

#include <sched.h>

bool um_gate_enter(um_region *r) {
  uint32_t inside = atomic_load(&r->gate);
  do {
    if (inside & UM_GATE_CLOSED)
      return false;
  } while (!atomic_compare_exchange_weak(&r->gate, &inside, inside + 1));
  return true;
}

void um_gate_enter_wait(um_region *r) {
  UM_ASSERT(atomic_load(&r->asked) || atomic_load(&r->filling) || atomic_load(&r->writing) || atomic_load(&r->jobs));
  while (!um_gate_enter(r))
    sched_yield(); /* the closer is just looking; it finds our page or job and opens again */
}

void um_gate_leave(um_region *r) {
  uint32_t before = atomic_fetch_sub(&r->gate, 1);
  UM_ASSERT(before != 0 && before != UM_GATE_CLOSED);
  (void)before;
}

static bool is_quiet(um_region *r, bool discard) {
  return !atomic_load(&r->asked) && !atomic_load(&r->filling) && !atomic_load(&r->writing) && !atomic_load(&r->jobs) &&
         (discard || !atomic_load(&r->dirty));
}

int um_region_gate_close(um_region *r, int discard, uint32_t timeout_ms) {
  const struct timespec pause = {0, 20000};
  uint64_t deadline = um_now_ns() + timeout_ms * 1000000ull;
  for (;;) {
    uint32_t nobody = 0;
    if (is_quiet(r, discard) && atomic_compare_exchange_strong(&r->gate, &nobody, UM_GATE_CLOSED)) {
      if (is_quiet(r, discard))
        return 0;
      um_region_gate_open(r);
      return -EAGAIN;
    }
    if (um_now_ns() >= deadline)
      return -EAGAIN;
    nanosleep(&pause, NULL);
  }
}

void um_region_gate_open(um_region *r) {
  uint32_t closed = UM_GATE_CLOSED;
  if (atomic_compare_exchange_strong(&r->gate, &closed,
                                     0)) /* no-op when it is open: a binding calls it on every way out */
    um_uffd_wake(r->pager->uffd, r->address, r->mapped);
}
