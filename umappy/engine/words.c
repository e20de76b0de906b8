/* words.c: the bookkeeping of a region, allocated as it is touched and given back.
 *
 * The page words of a region are one sparse mapping: untouched ones cost nothing and read as zero, which means ABSENT.
 * A *block* is the pages whose words share a host page: when its last page becomes absent that host page is dropped,
 * which leaves the same zeros. A *span* is 2 MiB of address range (or a page, if that is larger), what one page table
 * serves: when its last page leaves, the whole span is dropped by one MADV_DONTNEED, after which kernels from 6.14 on
 * free the table.
 *
 * Race: leave against enter. Both counts go 1 -> DROPPING -> 0 around the drop; who enters meanwhile waits for it (two
 * system calls at most). So no page can become FILLING in memory that is being dropped. */
#include "page.h"

#include <sched.h>
#include <sys/mman.h>

#define TABLE_SPAN_SHIFT 21 /* address range one page table serves */

static uint64_t words_a_block(void) {
  return um_host_page / sizeof(um_word);
}

int um_words_create(um_region *r) {
  r->span_shift = r->page_shift > TABLE_SPAN_SHIFT ? r->page_shift : TABLE_SPAN_SHIFT;
  r->span_count = ((r->address + r->mapped - 1) >> r->span_shift) - (r->address >> r->span_shift) + 1;
  r->words_mapped = um_round_up(r->page_count * sizeof *r->words, um_host_page);
  r->blocks_mapped = um_round_up(r->words_mapped / um_host_page * sizeof *r->block_live, um_host_page);
  r->spans_mapped = um_round_up(r->span_count * sizeof *r->spans, um_host_page);
  r->words = um_memory_map(r->words_mapped);
  r->block_live = um_memory_map(r->blocks_mapped);
  r->spans = um_memory_map(r->spans_mapped);
  if (r->words && r->block_live && r->spans)
    return 0;
  um_words_destroy(r);
  return -ENOMEM;
}

void um_words_destroy(um_region *r) {
  um_memory_unmap((void *)r->words, r->words_mapped);
  um_memory_unmap((void *)r->block_live, r->blocks_mapped);
  um_memory_unmap(r->spans, r->spans_mapped);
}

static uint64_t table_bytes(const um_region *r) {
  return um_host_page << (r->span_shift - TABLE_SPAN_SHIFT);
}

static uint64_t span_first(const um_region *r, uint64_t page) {
  return (um_page_address(r, page) >> r->span_shift) - (r->address >> r->span_shift);
}

static uint64_t span_last(const um_region *r, uint64_t page) {
  return ((um_page_address(r, page) + um_page_memory(r, page) - 1) >> r->span_shift) - (r->address >> r->span_shift);
}

uint64_t um_words_span(const um_region *r, uint64_t page) {
  return span_first(r, page);
}

uint64_t um_words_span_page(const um_region *r, uint64_t span) {
  uintptr_t start = ((r->address >> r->span_shift) + span) << r->span_shift;
  return start <= r->address ? 0 : (start - r->address + r->page_size - 1) >> r->page_shift;
}

static bool live_enter(_Atomic uint32_t *live) { /* true: it was empty */
  uint32_t n = atomic_load(live);
  for (;;) {
    if (n == UM_LIVE_DROPPING) {
      sched_yield();
      n = atomic_load(live);
    } else if (atomic_compare_exchange_weak(live, &n, n + 1)) {
      return n == 0;
    }
  }
}

static bool live_leave(_Atomic uint32_t *live) { /* true: now empty, and the caller must drop, then store zero */
  uint32_t n = atomic_load(live);
  UM_ASSERT(n != 0 && n != UM_LIVE_DROPPING);
  while (!atomic_compare_exchange_weak(live, &n, n == 1 ? UM_LIVE_DROPPING : n - 1))
    ;
  return n == 1;
}

static void span_drop(um_region *r, uint64_t span) {
  uintptr_t start = ((r->address >> r->span_shift) + span) << r->span_shift;
  uintptr_t end = start + (1ull << r->span_shift);
  start = um_max(start, r->address);
  end = um_min(end, r->address + r->mapped);
  um_memory_drop(r, start, end - start);
}

/* Reserved already, by who claims the page. */
static uint64_t charge(um_region *r, uint64_t bytes) {
  atomic_fetch_add(&r->charged, bytes);
  atomic_fetch_add(&r->pager->overhead, bytes);
  return bytes;
}

static void uncharge(um_region *r, uint64_t bytes) {
  atomic_fetch_sub(&r->charged, bytes);
  um_budget_uncharge(r->pager, bytes);
}

/* A page may straddle two spans. */
uint64_t um_words_cost(const um_region *r) {
  return um_host_page + 2 * table_bytes(r);
}

uint64_t um_words_enter(um_region *r, uint64_t page) {
  uint64_t bytes = 0;
  if (live_enter(&r->block_live[page / words_a_block()]))
    bytes += charge(r, um_host_page);
  for (uint64_t span = span_first(r, page); span <= span_last(r, page); span++)
    if (live_enter(&r->spans[span].live))
      bytes += charge(r, table_bytes(r));
  return bytes;
}

void um_words_leave(um_region *r, uint64_t page) {
  for (uint64_t span = span_first(r, page); span <= span_last(r, page); span++)
    if (live_leave(&r->spans[span].live)) {
      span_drop(r, span);
      atomic_store(&r->spans[span].live, 0);
      uncharge(r, table_bytes(r));
    }
  uint64_t block = page / words_a_block();
  if (live_leave(&r->block_live[block])) {
    madvise((void *)((uintptr_t)r->words + block * um_host_page), um_host_page, MADV_DONTNEED);
    atomic_store(&r->block_live[block], 0);
    uncharge(r, um_host_page);
  }
}
