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

static bool live_enter(_Atomic uint32_t *live, uint32_t pages) { /* true: it was empty */
  uint32_t n = atomic_load(live);
  for (;;) {
    if (n == UM_LIVE_DROPPING) {
      sched_yield();
      n = atomic_load(live);
    } else if (atomic_compare_exchange_weak(live, &n, n + pages)) {
      return n == 0;
    }
  }
}

/* True: now empty, and the caller must drop, then store zero. */
static bool live_leave(_Atomic uint32_t *live, uint32_t pages) {
  uint32_t n = atomic_load(live);
  UM_ASSERT(n >= pages && n != UM_LIVE_DROPPING);
  while (!atomic_compare_exchange_weak(live, &n, n == pages ? UM_LIVE_DROPPING : n - pages))
    ;
  return n == pages;
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

uint64_t um_words_cost_most(const um_region *r) { /* a page may straddle two spans */
  return um_host_page + 2 * table_bytes(r);
}

uint64_t um_words_cost(const um_region *r, uint64_t first, uint64_t count) {
  uint64_t last = first + count - 1, blocks = last / words_a_block() - first / words_a_block() + 1;
  return blocks * um_host_page + (span_last(r, last) - span_first(r, first) + 1) * table_bytes(r);
}

/* How many of the pages touch the span: a page may straddle two. */
static uint32_t pages_in_span(const um_region *r, uint64_t span, uint64_t first, uint64_t count) {
  uintptr_t start = ((r->address >> r->span_shift) + span) << r->span_shift, end = start + (1ull << r->span_shift);
  uint64_t from = start <= r->address ? 0 : (start - r->address) >> r->page_shift;
  uint64_t to = (end - 1 - r->address) >> r->page_shift;
  from = um_max(from, first);
  to = um_min(to, first + count - 1);
  return (uint32_t)(to - from + 1);
}

static uint32_t pages_in_block(uint64_t block, uint64_t first, uint64_t count) {
  return (uint32_t)(um_min((block + 1) * words_a_block(), first + count) - um_max(block * words_a_block(), first));
}

uint64_t um_words_enter(um_region *r, uint64_t first, uint64_t count) {
  uint64_t bytes = 0, last = first + count - 1;
  for (uint64_t block = first / words_a_block(); block <= last / words_a_block(); block++)
    if (live_enter(&r->block_live[block], pages_in_block(block, first, count)))
      bytes += charge(r, um_host_page);
  for (uint64_t span = span_first(r, first); span <= span_last(r, last); span++)
    if (live_enter(&r->spans[span].live, pages_in_span(r, span, first, count)))
      bytes += charge(r, table_bytes(r));
  return bytes;
}

void um_words_leave(um_region *r, uint64_t first, uint64_t count) {
  uint64_t last = first + count - 1;
  for (uint64_t span = span_first(r, first); span <= span_last(r, last); span++)
    if (live_leave(&r->spans[span].live, pages_in_span(r, span, first, count))) {
      span_drop(r, span);
      atomic_store(&r->spans[span].live, 0);
      uncharge(r, table_bytes(r));
    }
  for (uint64_t block = first / words_a_block(); block <= last / words_a_block(); block++)
    if (live_leave(&r->block_live[block], pages_in_block(block, first, count))) {
      madvise((void *)((uintptr_t)r->words + block * um_host_page), um_host_page, MADV_DONTNEED);
      atomic_store(&r->block_live[block], 0);
      uncharge(r, um_host_page);
    }
}
