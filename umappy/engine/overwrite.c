/* overwrite.c: writing whole pages without reading them first. Absent pages that lie wholly inside are placed dirty
 * from the caller's buffer, a run by one ioctl; everything else is written as any user of the memory would. Runs on the
 * caller's thread, which may fault like any other. */
#include "blocks.h"
#include "clean.h"
#include "mechanism.h"
#include "page.h"

#define RUN_BYTES (1u << 20)

/* A page that holds a failure holds nothing that the new bytes need. */
static bool drop_failed(um_region *r, uint64_t page) {
  um_word w = um_page_load(r, page);
  if (um_word_state(w) != UM_FAILED || (w & UM_BUSY) ||
      !um_page_change(r, page, &w, um_word_make(UM_EVICTING, 0, um_word_frame(w))))
    return false;
  um_evict_drop(r, page, 1);
  return true;
}

/* Inside the gate. Claims absent pages from `page` on that lie wholly in [page, last), memory reserved; how many. */
static uint64_t claim_run(um_region *r, uint64_t page, uint64_t last) {
  um_pager *p = r->pager;
  uint64_t limit = um_min(um_run_limit(r, um_min(RUN_BYTES, p->memory / 8)), last - page), count = 0;
  while (count < limit && (um_page_look(r, page + count) == 0 || drop_failed(r, page + count)))
    count++;
  for (; count > 0; count /= 2) {
    while (!um_budget_try(p, um_run_cost(r, page, count), atomic_load(&p->emergency)))
      if (!um_memory_make(p))
        goto smaller;
    break;
  smaller:;
  }
  if (count == 0)
    return 0;
  um_frame_id id = um_frame_take(p, r, page, count);
  if (id == UM_NIL) {
    um_budget_release(p, um_run_cost(r, page, count));
    return 0;
  }
  uint64_t claimed = um_run_claim(r, page, count, id);
  um_budget_release(p, um_run_memory(r, page, count) - (claimed ? um_run_memory(r, page, claimed) : 0));
  p->frames[id].count = (uint32_t)claimed;
  if (claimed == 0)
    um_frame_give(p, id);
  return claimed;
}

static int place_run(um_region *r, uint64_t first, uint64_t count, const void *from) {
  um_pager *p = r->pager;
  uint64_t memory = um_run_memory(r, first, count), data = um_run_bytes(r, first, count);
  uint64_t whole = data / um_host_page * um_host_page; /* the rest of a last host page is written after */
  um_run_open(r, first, count);
  int code = whole ? um_mechanism_place(r, um_page_address(r, first), from, whole, false) : 0;
  if (code == 0 && whole < memory) {
    char tail[1 << 16] = {0}; /* host pages are at most that */
    memcpy(tail, (const char *)from + whole, data - whole);
    code = um_mechanism_place(r, um_page_address(r, first) + whole, tail, memory - whole, false);
  }
  if (code) {
    um_memory_drop(r, um_page_address(r, first), memory);
    um_run_absent(r, first, count);
    um_budget_release(p, memory);
    return code;
  }
  um_frame_id id = um_word_frame(um_page_load(r, first));
  atomic_store(&p->frames[id].born_ns, 0); /* its bytes are in: no grace needed */
  atomic_store(&p->frames[id].opened, true);
  atomic_store(&p->frames[id].blocks, UM_BLOCKS_ALL);
  um_frame_list(p, id);
  um_run_release(r, first, count, UM_DIRTY);
  um_page_wake(r, first, count);
  return 0;
}

int um_region_overwrite(um_region *r, uint64_t offset, const void *buffer, uint64_t length, uint32_t timeout_ms,
                        uint64_t *done) {
  um_pager *p = r->pager;
  uintptr_t from = (uintptr_t)buffer;
  uint64_t deadline = um_now_ns() + timeout_ms * 1000000ull;
  if (um_pager_forked(p))
    return -UM_EFORKED;
  if (!r->writable)
    return -EACCES;
  if (offset > r->size || length > r->size - offset)
    return -EINVAL;
  /* Bytes that must be faulted in themselves cannot be placed: the pages claimed for them may be all the memory there
   * is. They are written as any user would. */
  bool plain = um_fork_overlaps(from, length);
  uint64_t at = offset + *done, end = offset + length;
  if (plain) {
    memmove((void *)(r->address + offset), buffer, length);
    *done = length;
    return 0;
  }
  while (at < end) {
    const char *source = (const char *)buffer + (at - offset);
    uint64_t page = at >> r->page_shift, start = page << r->page_shift;
    uint64_t last = end == r->size ? r->page_count : end >> r->page_shift; /* the page after the last whole one */
    uint64_t n = um_min(end - at, r->page_size - (at - start));
    if (at == start && page < last) {
      if (!um_gate_enter(r))
        return -EBADF;
      uint64_t count = claim_run(r, page, last);
      int code = count ? place_run(r, page, count, source) : 0;
      bool is_absent = um_page_load(r, page) == 0;
      um_clean_ask(r);
      um_gate_leave(r);
      if (code)
        return code;
      if (count) {
        at += um_run_bytes(r, page, count);
        *done = at - offset;
        continue;
      }
      if (is_absent) { /* no memory: wait for a page's worth of it, then claim again */
        uint64_t memory = um_run_cost(r, page, 1);
        code = um_memory_wait(p, memory, atomic_load(&p->emergency), deadline);
        if (code)
          return code;
        um_budget_release(p, memory);
        continue;
      }
    }
    memcpy((void *)(r->address + at), source, n);
    at += n;
    *done = at - offset;
  }
  return 0;
}
