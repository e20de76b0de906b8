/* io_uring.c: a ring a thread, by bare system calls.
 *
 * The ring's descriptor is registered with its thread and closed at once: the ring is then reached by its index in a
 * table of the thread's own. So nobody can close it under us, a forked child inherits nothing to give back, and exec
 * neither. The rings' memory is not inherited either, and the child's one thread forgets that it had one.
 *
 * Completions are posted only while the thread asks for them (DEFER_TASKRUN): no interrupt in the middle of a copy. The
 * tails and heads are shared with the kernel: what is written before a release store is there after an acquire load.
 *
 * System calls and structures are written out here, as headers may be older than the kernel. */
#define _GNU_SOURCE
#include "io_uring.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CALL_SETUP 425
#define CALL_ENTER 426
#define CALL_REGISTER 427

#define SETUP_SUBMIT_ALL (1u << 7) /* one bad request does not hold up those behind it */
#define SETUP_SINGLE_ISSUER (1u << 12)
#define SETUP_DEFER_TASKRUN (1u << 13)
#define FEATURE_SINGLE_MMAP (1u << 0)
#define FEATURE_EXT_ARG (1u << 8)
#define ENTER_GETEVENTS (1u << 0)
#define ENTER_EXT_ARG (1u << 3)
#define ENTER_REGISTERED_RING (1u << 4)
#define REGISTER_RING_FDS 20
#define ANY_INDEX UINT32_MAX
#define MAP_RINGS 0
#define MAP_REQUESTS 0x10000000
#define OP_READ 22
#define OP_WRITE 23

/* As the kernel lays them out. */
struct setup {
  uint32_t submit_entries, complete_entries, flags, cpu, idle, features, parent, reserved[3];
  struct {
    uint32_t head, tail, mask, entries, flags, dropped, array, reserved;
    uint64_t address;
  } submit; /* offsets into the mapping */
  struct {
    uint32_t head, tail, mask, entries, overflow, completions, flags, reserved;
    uint64_t address;
  } complete;
};
_Static_assert(sizeof(struct setup) == 120, "struct io_uring_params");

typedef struct request {
  uint8_t op, flags;
  uint16_t priority;
  int32_t descriptor;
  uint64_t offset, address;
  uint32_t length, call_flags;
  uint64_t tag;
  uint64_t more[3];
} request;
_Static_assert(sizeof(request) == 64, "struct io_uring_sqe");

typedef struct completion {
  uint64_t tag;
  int32_t result;
  uint32_t flags;
} completion;

struct registration {
  uint32_t index, reserved;
  uint64_t descriptor;
};

struct wait_argument {
  uint64_t signals;
  uint32_t signals_size, more;
  uint64_t timeout; /* address of two int64: seconds, nanoseconds */
};

struct um_ring {
  uint32_t index;                  /* in the thread's table of rings */
  bool taken;                      /* a caller has it */
  void *rings;                     /* mapping of heads, tails and completions */
  size_t rings_size;               /* bytes */
  request *requests;               /* mapping; request i of the submission ring */
  size_t requests_size;            /* bytes */
  uint32_t request_mask;           /* count of requests - 1 */
  uint32_t completion_mask;        /* count of completions - 1 */
  _Atomic uint32_t *submit_head;   /* the kernel's */
  _Atomic uint32_t *submit_tail;   /* ours */
  _Atomic uint32_t *complete_head; /* ours */
  _Atomic uint32_t *complete_tail; /* the kernel's */
  completion *completions;         /* in rings */
};

static _Thread_local um_ring *own; /* this thread's */
static pthread_key_t key;          /* its destructor ends the ring with the thread */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int install_code;        /* errno; constant after once */
static atomic_int mode = -1;    /* of um_io_uring_set */
static atomic_int refused_code; /* errno of the refusal; not asked again until the mode is set */

static void ring_free(void *argument) {
  um_ring *ring = argument;
  if (ring->requests)
    munmap(ring->requests, ring->requests_size);
  if (ring->rings)
    munmap(ring->rings, ring->rings_size);
  free(ring);
}

static void forget_in_child(void) {
  own = NULL; /* its few bytes are lost: free is not async-signal-safe */
}

static void install(void) {
  install_code = pthread_key_create(&key, ring_free);
  if (install_code == 0)
    install_code = pthread_atfork(NULL, NULL, forget_in_child);
}

/* MADV_DONTFORK: the child must not push into the parent's ring. */
static void *map(int descriptor, size_t size, off_t what) {
  void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, descriptor, what);
  if (memory == MAP_FAILED)
    return NULL;
  if (madvise(memory, size, MADV_DONTFORK) == 0)
    return memory;
  munmap(memory, size);
  return NULL;
}

static int map_rings(um_ring *ring, int descriptor, const struct setup *s) {
  size_t submit_size = s->submit.array + s->submit_entries * sizeof(uint32_t);
  size_t complete_size = s->complete.completions + s->complete_entries * sizeof(completion);
  ring->rings_size = submit_size > complete_size ? submit_size : complete_size;
  ring->rings = map(descriptor, ring->rings_size, MAP_RINGS);
  ring->requests_size = s->submit_entries * sizeof(request);
  ring->requests = map(descriptor, ring->requests_size, MAP_REQUESTS);
  if (!ring->rings || !ring->requests)
    return -ENOMEM;
  char *base = ring->rings;
  ring->request_mask = s->submit_entries - 1;
  ring->completion_mask = s->complete_entries - 1;
  ring->submit_head = (void *)(base + s->submit.head);
  ring->submit_tail = (void *)(base + s->submit.tail);
  ring->complete_head = (void *)(base + s->complete.head);
  ring->complete_tail = (void *)(base + s->complete.tail);
  ring->completions = (void *)(base + s->complete.completions);
  uint32_t *array = (void *)(base + s->submit.array);
  for (uint32_t i = 0; i < s->submit_entries; i++)
    array[i] = i; /* request i always stands in place i */
  return 0;
}

static int ring_register(um_ring *ring, int descriptor) {
  struct registration registration = {.index = ANY_INDEX, .descriptor = (uint64_t)descriptor};
  if (syscall(CALL_REGISTER, descriptor, REGISTER_RING_FDS, &registration, 1) != 1)
    return errno ? -errno : -EINVAL;
  ring->index = registration.index;
  return 0;
}

static int ring_make(um_ring **made) {
  struct setup s = {.flags = SETUP_SUBMIT_ALL | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN};
  um_ring *ring = calloc(1, sizeof(*ring));
  if (!ring)
    return -ENOMEM;
  int descriptor = (int)syscall(CALL_SETUP, UM_RING_DEPTH, &s);
  int result = descriptor < 0 ? -errno : 0;
  const uint32_t needed = FEATURE_SINGLE_MMAP | FEATURE_EXT_ARG;
  if (result == 0 && (s.features & needed) != needed)
    result = -EOPNOTSUPP;
  if (result == 0)
    result = map_rings(ring, descriptor, &s);
  if (result == 0)
    result = ring_register(ring, descriptor);
  if (result == 0)
    result = -pthread_setspecific(key, ring);
  if (descriptor >= 0)
    close(descriptor);
  if (result < 0) {
    ring_free(ring);
    return result;
  }
  *made = ring;
  return 0;
}

static int ring_find(void) {
  if (atomic_load_explicit(&mode, memory_order_relaxed) == 0)
    return -ECANCELED;
  int refused = atomic_load_explicit(&refused_code, memory_order_relaxed);
  if (refused != 0)
    return -refused;
  if (own)
    return 0;
  pthread_once(&once, install);
  int result = install_code ? -install_code : ring_make(&own);
  if (result < 0 && result != -ENOMEM && result != -EMFILE && result != -ENFILE)
    atomic_store(&refused_code, -result);
  return result;
}

int um_io_uring_set(int wanted) {
  atomic_store(&mode, wanted);
  atomic_store(&refused_code, 0);
  return wanted > 0 ? ring_find() : 0;
}

int um_io_uring_probe(void) {
  return ring_find();
}

um_ring *um_ring_take(void) {
  if (ring_find() < 0 || own->taken)
    return NULL;
  own->taken = true;
  return own;
}

void um_ring_give(um_ring *ring) {
  ring->taken = false;
}

void um_ring_push(um_ring *ring, bool writing, int descriptor, uint64_t offset, void *buffer, uint32_t length,
                  uint64_t tag) {
  uint32_t tail = atomic_load_explicit(ring->submit_tail, memory_order_relaxed);
  ring->requests[tail & ring->request_mask] = (request){
      .op = writing ? OP_WRITE : OP_READ,
      .descriptor = descriptor,
      .offset = offset,
      .address = (uintptr_t)buffer,
      .length = length,
      .tag = tag,
  };
  atomic_store_explicit(ring->submit_tail, tail + 1, memory_order_release);
}

static bool has_completion(um_ring *ring) {
  return atomic_load_explicit(ring->complete_head, memory_order_relaxed) !=
         atomic_load_explicit(ring->complete_tail, memory_order_acquire);
}

static uint32_t count_pushed(um_ring *ring) {
  return atomic_load_explicit(ring->submit_tail, memory_order_relaxed) -
         atomic_load_explicit(ring->submit_head, memory_order_acquire);
}

int um_ring_enter(um_ring *ring, bool wait, uint64_t timeout_ns) {
  int64_t timeout[2] = {(int64_t)(timeout_ns / 1000000000u), (int64_t)(timeout_ns % 1000000000u)};
  struct wait_argument argument = {.timeout = (uintptr_t)timeout};
  uint32_t wanted = wait && !has_completion(ring);
  long result = syscall(CALL_ENTER, ring->index, count_pushed(ring), wanted,
                        ENTER_GETEVENTS | ENTER_EXT_ARG | ENTER_REGISTERED_RING, &argument, sizeof(argument));
  int code = result < 0 ? errno : 0;
  if (code == EPERM || code == EACCES || code == ENOSYS) /* a filter that came later */
    atomic_store(&refused_code, code);
  return -code;
}

bool um_ring_pop(um_ring *ring, uint64_t *tag, int32_t *result) {
  if (!has_completion(ring))
    return false;
  uint32_t head = atomic_load_explicit(ring->complete_head, memory_order_relaxed);
  const completion *c = &ring->completions[head & ring->completion_mask];
  *tag = c->tag;
  *result = c->result;
  atomic_store_explicit(ring->complete_head, head + 1, memory_order_release);
  return true;
}

bool um_ring_take_back(um_ring *ring, uint64_t *tag) {
  if (count_pushed(ring) == 0)
    return false;
  uint32_t tail = atomic_load_explicit(ring->submit_tail, memory_order_relaxed) - 1;
  *tag = ring->requests[tail & ring->request_mask].tag;
  atomic_store_explicit(ring->submit_tail, tail, memory_order_release);
  return true;
}
