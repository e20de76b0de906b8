/* io_uring.h: many reads or writes in flight from one thread.
 *
 * A ring belongs to the thread that takes it: made at the first call, gone with the thread. Linux 6.1; where the
 * kernel, its settings or a container refuse, there is none, and callers do without. */
#ifndef UM_IO_URING_H
#define UM_IO_URING_H

#include "umappy.h"

#define UM_RING_DEPTH 128 /* requests a ring has in flight at most */

typedef struct um_ring um_ring;

um_ring *um_ring_take(void); /* NULL: there is none, or this thread has taken it already */
void um_ring_give(um_ring *ring);

/* At most UM_RING_DEPTH requests may be pushed and not yet popped. */
void um_ring_push(um_ring *ring, bool writing, int descriptor, uint64_t offset, void *buffer, uint32_t length,
                  uint64_t tag);
/* Hands over what was pushed, and with `wait` sleeps until something can be popped. 0, -ETIME, or -errno. */
int um_ring_enter(um_ring *ring, bool wait, uint64_t timeout_ns);
/* True: `tag` ended, with the result of pread or pwrite as the kernel tells it (a count or -errno). */
bool um_ring_pop(um_ring *ring, uint64_t *tag, int32_t *result);
/* Takes back the request pushed last, while the kernel has not accepted it; false: it has all. */
bool um_ring_take_back(um_ring *ring, uint64_t *tag);

#endif
