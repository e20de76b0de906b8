/* pin.c: see pin.h. One request is in flight at a time. */
#define _GNU_SOURCE
#include "pin.h"

#include "check.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define ENTRIES 4

struct pin {
  int ring;
  uint8_t *address;
  struct io_uring_params params;
  void *rings; /* submissions and completions share one mapping */
  uint64_t rings_length;
  struct io_uring_sqe *requests;
};

static int setup(struct io_uring_params *params) {
  memset(params, 0, sizeof *params);
  return (int)syscall(SYS_io_uring_setup, ENTRIES, params);
}

bool pin_allowed(void) {
  struct io_uring_params params;
  int ring = setup(&params);
  if (ring < 0)
    return false;
  CHECK(params.features & IORING_FEAT_SINGLE_MMAP);
  CHECK_EQUAL(close(ring), 0);
  return true;
}

pin *pin_open(void *address, uint64_t length) {
  pin *p = calloc(1, sizeof *p);
  CHECK(p);
  p->address = address;
  p->ring = setup(&p->params);
  CHECK(p->ring >= 0);
  struct iovec buffer = {address, length};
  CHECK_EQUAL(syscall(SYS_io_uring_register, p->ring, IORING_REGISTER_BUFFERS, &buffer, 1), 0);
  uint64_t submissions = p->params.sq_off.array + p->params.sq_entries * sizeof(uint32_t);
  uint64_t completions = p->params.cq_off.cqes + p->params.cq_entries * sizeof(struct io_uring_cqe);
  p->rings_length = submissions > completions ? submissions : completions;
  p->rings = mmap(NULL, p->rings_length, PROT_READ | PROT_WRITE, MAP_SHARED, p->ring, IORING_OFF_SQ_RING);
  p->requests = mmap(NULL, ENTRIES * sizeof *p->requests, PROT_READ | PROT_WRITE, MAP_SHARED, p->ring, IORING_OFF_SQES);
  CHECK(p->rings != MAP_FAILED && p->requests != MAP_FAILED);
  return p;
}

static uint32_t *at(const pin *p, uint32_t offset) {
  return (uint32_t *)((char *)p->rings + offset);
}

void pin_read(pin *p, int fd, uint64_t offset, uint64_t behind, uint32_t length) {
  uint32_t tail = *at(p, p->params.sq_off.tail), slot = tail & *at(p, p->params.sq_off.ring_mask);
  p->requests[slot] = (struct io_uring_sqe){
      .opcode = IORING_OP_READ_FIXED, .fd = fd, .off = offset, .addr = (uintptr_t)p->address + behind, .len = length};
  at(p, p->params.sq_off.array)[slot] = slot;
  __atomic_store_n(at(p, p->params.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
  long entered = syscall(SYS_io_uring_enter, p->ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
  CHECK_EQUAL(entered, 1);
  uint32_t head = *at(p, p->params.cq_off.head);
  while (__atomic_load_n(at(p, p->params.cq_off.tail), __ATOMIC_ACQUIRE) == head)
    CHECK(syscall(SYS_io_uring_enter, p->ring, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 0 || errno == EINTR);
  struct io_uring_cqe *cqes = (struct io_uring_cqe *)((char *)p->rings + p->params.cq_off.cqes);
  CHECK_EQUAL(cqes[head & *at(p, p->params.cq_off.ring_mask)].res, length);
  __atomic_store_n(at(p, p->params.cq_off.head), head + 1, __ATOMIC_RELEASE);
}

void pin_close(pin *p) {
  CHECK_EQUAL(syscall(SYS_io_uring_register, p->ring, IORING_UNREGISTER_BUFFERS, NULL, 0), 0);
  munmap(p->rings, p->rings_length);
  munmap(p->requests, ENTRIES * sizeof *p->requests);
  CHECK_EQUAL(close(p->ring), 0);
  free(p);
}
