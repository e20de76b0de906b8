/* through.c: reading and writing a range past the region's memory. What is absent goes straight between the store and
 * the caller's buffer: nothing becomes resident, nothing is copied, placed or evicted. For who passes over much and
 * looks at each byte once, as a sort does. All else (resident pages, parts of blocks, buffers that do not lie as the
 * range does) goes through memory as any user's would. Runs on the caller's thread.
 *
 * The pages are claimed (ABSENT -> FILLING) for the time of the transfer and become ABSENT again, so the store has one
 * call a page under way, the region cannot be closed, and who faults on one meanwhile waits, then reads what the store
 * has. A write that fails is placed as dirty pages, which are kept until the store takes them.
 *
 * The bytes given to store->write are the caller's own (not invariant 7): no other thread may change them meanwhile.
 */
#include "page.h"

#define ALIGNMENT 4096u    /* of offsets and addresses: what every store takes without a copy */
#define CLAIMED (4u << 20) /* bytes that one call of the store moves at most, larger pages excepted */

static bool reserve(um_pager *p, uint64_t bytes) {
  while (!um_budget_try(p, bytes, atomic_load(&p->emergency)))
    if (!um_memory_make(p))
      return false;
  return true;
}

/* Inside the gate. Claims absent pages from `first` on; how many. */
static uint64_t claim(um_region *r, uint64_t first, uint64_t limit) {
  um_pager *p = r->pager;
  uint64_t count = 0;
  while (count < limit && um_page_look(r, first + count) == 0)
    count++;
  if (count == 0 || !reserve(p, um_words_cost(r, first, count)))
    return 0;
  um_frame_id id = um_frame_take(p, r, first, count);
  if (id == UM_NIL) {
    um_budget_release(p, um_words_cost(r, first, count));
    return 0;
  }
  uint64_t claimed = um_run_claim(r, first, count, id);
  p->frames[id].count = (uint32_t)claimed;
  if (claimed == 0)
    um_frame_give(p, id);
  return claimed;
}

static bool transfer(um_region *r, uint64_t at, char *buffer, uint64_t length, bool write) {
  um_worker self = {.pager = r->pager};
  um_error error;
  if (!write)
    return um_fill_read(&self, r, at, buffer, length, UM_TRIES, &error) ==
           0; /* the fault that comes then tells of the error */
  int code = um_writeback_piece(&self, r, at, buffer, length, &error);
  if (code || atomic_load(&r->write_backoff_ns))
    um_evict_note_write(r, code, &error);
  return code == 0;
}

/* Moves bytes of absent pages from `at` on; how many, maybe 0. -errno: the region is closed. */
static int64_t go_through(um_region *r, uint64_t at, char *buffer, uint64_t length, bool write) {
  uint64_t end = at + length == r->size ? r->size : (at + length) / ALIGNMENT * ALIGNMENT;
  if (end <= at || (write && um_now_ns() < atomic_load(&r->write_backoff_ns)))
    return 0;
  uint64_t first = at >> r->page_shift, last = (end - 1) >> r->page_shift;
  if (!um_gate_enter(r))
    return -EBADF;
  uint64_t count = claim(r, first, um_min(last - first + 1, um_max(1, CLAIMED >> r->page_shift)));
  um_gate_leave(r);
  if (count == 0)
    return 0;
  length = um_min(end, (first + count) << r->page_shift) - at;
  bool moved = transfer(r, at, buffer, length, write);
  um_gate_enter_wait(r);
  if (write && moved)
    UM_COUNT(r, writes, count);
  um_run_absent(r, first, count);
  um_gate_leave(r);
  return moved ? (int64_t)length : 0;
}

static int go_by_memory(um_region *r, uint64_t at, char *buffer, uint64_t length, bool write, uint32_t timeout_ms,
                        uint64_t *done) {
  uint64_t moved = 0;
  int code = 0;
  if (write) {
    code = um_region_overwrite(r, at, buffer, length, timeout_ms, &moved);
  } else {
    memmove(buffer, (const void *)(r->address + at), length);
    moved = length;
  }
  *done += moved;
  return code;
}

static int pass(um_region *r, uint64_t offset, char *buffer, uint64_t length, bool write, uint32_t timeout_ms,
                uint64_t *done) {
  if (um_pager_forked(r->pager))
    return -UM_EFORKED;
  if (write && !r->writable)
    return -EACCES;
  if (offset > r->size || length > r->size - offset)
    return -EINVAL;
  bool fits = ((uintptr_t)buffer - offset) % ALIGNMENT == 0 && !um_fork_overlaps((uintptr_t)buffer, length);
  while (*done < length) {
    uint64_t at = offset + *done, left = length - *done;
    int64_t moved = fits && at % ALIGNMENT == 0 ? go_through(r, at, buffer + *done, left, write) : 0;
    if (moved < 0)
      return (int)moved;
    *done += (uint64_t)moved;
    if (moved)
      continue;
    uint64_t step = r->page_size - at % r->page_size;
    if (fits && at % ALIGNMENT)
      step = ALIGNMENT - at % ALIGNMENT;
    int code = go_by_memory(r, at, buffer + *done, fits ? um_min(left, step) : left, write, timeout_ms, done);
    if (code)
      return code;
  }
  return 0;
}

int um_region_read_through(um_region *r, uint64_t offset, void *buffer, uint64_t length, uint64_t *done) {
  return pass(r, offset, buffer, length, false, 0, done);
}

int um_region_write_through(um_region *r, uint64_t offset, const void *buffer, uint64_t length, uint32_t timeout_ms,
                            uint64_t *done) {
  return pass(r, offset, (char *)buffer, length, true, timeout_ms, done);
}
