/* Random reads through io_uring by raw system calls, so that nothing needs installing. Each round hands in a read for
 * every one that came back, and waits for at least one. */
#define _GNU_SOURCE
#include "random_read.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct ring {
  int fd;
  unsigned depth;
  struct io_uring_params params;
  char *queues; /* both rings, in one mapping */
  size_t queues_size;
  struct io_uring_sqe *entries;
} ring;

static unsigned *field(const ring *r, unsigned offset) {
  return (unsigned *)(r->queues + offset);
}

static int ring_open(ring *r, unsigned depth) {
  *r = (ring){.depth = depth};
  r->fd = (int)syscall(SYS_io_uring_setup, depth, &r->params);
  if (r->fd < 0)
    return -errno;
  if (!(r->params.features & IORING_FEAT_SINGLE_MMAP)) {
    close(r->fd);
    return -ENOSYS;
  }
  size_t submit = r->params.sq_off.array + r->params.sq_entries * sizeof(unsigned);
  size_t complete = r->params.cq_off.cqes + r->params.cq_entries * sizeof(struct io_uring_cqe);
  r->queues_size = submit > complete ? submit : complete;
  int flags = MAP_SHARED | MAP_POPULATE, prot = PROT_READ | PROT_WRITE;
  r->queues = mmap(NULL, r->queues_size, prot, flags, r->fd, IORING_OFF_SQ_RING);
  r->entries = mmap(NULL, r->params.sq_entries * sizeof *r->entries, prot, flags, r->fd, IORING_OFF_SQES);
  if (r->queues == MAP_FAILED || r->entries == MAP_FAILED)
    die("mmap of the ring", errno);
  return 0;
}

static void ring_close(ring *r) {
  munmap(r->entries, r->params.sq_entries * sizeof *r->entries);
  munmap(r->queues, r->queues_size);
  close(r->fd);
}

static void put_read(ring *r, unsigned tail, int fd, void *buffer, uint64_t offset, uint64_t tag) {
  unsigned slot = tail & *field(r, r->params.sq_off.ring_mask);
  r->entries[slot] = (struct io_uring_sqe){.opcode = IORING_OP_READ,
                                           .fd = fd,
                                           .addr = (uintptr_t)buffer,
                                           .len = RANDOM_BLOCK,
                                           .off = offset,
                                           .user_data = tag};
  field(r, r->params.sq_off.array)[slot] = slot;
}

double uring_random_rate(int fd, uint64_t size, unsigned depth, uint64_t ns) {
  ring r;
  int error = ring_open(&r, depth);
  if (error)
    return error;
  char *buffers = aligned_buffer((uint64_t)depth * RANDOM_BLOCK);
  unsigned *free_slots = calloc(depth, sizeof *free_slots), free_count = depth;
  if (!free_slots)
    die("calloc", ENOMEM);
  for (unsigned i = 0; i < depth; i++)
    free_slots[i] = i;
  unsigned tail = *field(&r, r.params.sq_off.tail), head = *field(&r, r.params.cq_off.head);
  const struct io_uring_cqe *results = (const struct io_uring_cqe *)(r.queues + r.params.cq_off.cqes);
  uint64_t state = 0x2545F4914F6CDD1Du + depth, done = 0, start = now_ns();
  while (free_count < depth || now_ns() - start < ns) {
    unsigned submit = 0;
    while (free_count && now_ns() - start < ns) {
      unsigned slot = free_slots[--free_count];
      put_read(&r, tail + submit, fd, buffers + (size_t)slot * RANDOM_BLOCK, random_offset(&state, size), slot);
      submit++;
    }
    tail += submit;
    __atomic_store_n(field(&r, r.params.sq_off.tail), tail, __ATOMIC_RELEASE);
    if (free_count < depth && syscall(SYS_io_uring_enter, r.fd, submit, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
      die("io_uring_enter", errno);
    for (; head != __atomic_load_n(field(&r, r.params.cq_off.tail), __ATOMIC_ACQUIRE); head++, done++) {
      const struct io_uring_cqe *result = &results[head & *field(&r, r.params.cq_off.ring_mask)];
      if (result->res != (int)RANDOM_BLOCK)
        die("read through io_uring", result->res < 0 ? -result->res : EIO);
      free_slots[free_count++] = (unsigned)result->user_data;
    }
    __atomic_store_n(field(&r, r.params.cq_off.head), head, __ATOMIC_RELEASE);
  }
  double seconds = (double)(now_ns() - start) / 1e9;
  ring_close(&r);
  free(free_slots);
  free(buffers);
  return (double)done / seconds;
}
