/* blocks.c: the dirty blocks of a page; see blocks.h. */
#include "blocks.h"

#include "uffd.h"

#include "page.h"

static uint32_t block_shift(const um_region *r) {
  return r->page_shift > 16 + 6 ? r->page_shift - 6 : 16;
}

void um_blocks_open(um_region *r, um_frame *f, uint64_t page, uint64_t offset) {
  uintptr_t address = um_page_address(r, page);
  uint64_t length = um_page_memory(r, page);
  if (um_blocks_tracked(r)) {
    uint32_t shift = block_shift(r);
    uint64_t block = (offset & (r->page_size - 1)) >> shift;
    atomic_fetch_or(&f->blocks, 1ull << block);
    address += block << shift;
    length = um_min(1ull << shift, length - (block << shift));
  }
  if (um_uffd_unprotect(r->pager->uffd, address, length))
    um_page_wake(r, page, 1); /* the mapping is changing under us: it faults again */
}

bool um_blocks_next(const um_region *r, uint64_t page, uint64_t blocks, uint64_t *at, uint64_t *length) {
  uint64_t data = um_run_bytes(r, page, 1);
  if (!um_blocks_tracked(r)) {
    *length = data;
    return *at == 0;
  }
  uint32_t shift = block_shift(r);
  uint64_t block = (*at + (1ull << shift) - 1) >> shift;
  uint64_t left = block < 64 ? blocks >> block : 0;
  if (left == 0)
    return false;
  block += (uint64_t)__builtin_ctzll(left);
  *at = block << shift;
  if (*at >= data)
    return false;
  uint64_t end = block;
  while (end < 64 && (blocks >> end & 1))
    end++;
  *length = um_min(end << shift, data) - *at;
  return true;
}
