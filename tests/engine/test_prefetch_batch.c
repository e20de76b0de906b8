/* Prefetch of scattered pages by batches of reads: what goes into one, how many there are at once, and what becomes of
 * reads that fail. The file store's own read_batch is replaced by one that the test sees into. */
#include "rig.h"

#define PAGE 4096u
#define LISTED 600u

static um_store_ops ops;
static _Atomic uint32_t calls, reads, inside, most, longest;
static _Atomic uint64_t bad_offset; /* ends with bad_code; UINT64_MAX: none */
static int bad_code, refusal;

static int read_batch(um_store *store, um_batch *batch) {
  if (refusal)
    return refusal;
  atomic_fetch_add(&calls, 1);
  atomic_fetch_add(&reads, batch->count);
  uint32_t now = atomic_fetch_add(&inside, 1) + 1;
  if (now > atomic_load(&most))
    atomic_store(&most, now);
  if (batch->count > atomic_load(&longest))
    atomic_store(&longest, batch->count);
  sleep_ms(2);
  for (uint32_t i = batch->count; i-- > 0;) { /* they land in any order */
    um_read *read = &batch->reads[i];
    CHECK_EQUAL((uintptr_t)read->buffer % 4096, 0);
    if (read->offset == atomic_load(&bad_offset))
      read->code = bad_code;
    else
      read->code = um_store_read(store, read->offset, read->buffer, read->length, read->error);
    batch->ended(batch, read);
  }
  atomic_fetch_sub(&inside, 1);
  return 0;
}

static void open_region(rig *r, uint64_t pages, uint32_t fillers) {
  rig_open(r, &(rig_options){.size = pages * PAGE - 100, .memory = 64 << 20, .fillers = fillers});
  ops = *r->store->ops;
  ops.read_batch = read_batch;
  r->store->ops = &ops;
  calls = reads = inside = most = longest = 0;
  bad_offset = UINT64_MAX;
  bad_code = refusal = 0;
}

static void list(uint64_t *pages) { /* the last page of the region, which is not whole, is among them */
  for (uint64_t i = 0; i < LISTED; i++)
    pages[i] = 3 * i + i % 2;
}

static void check_filled(rig *r, const uint64_t *pages, uint64_t but) {
  for (uint64_t i = 0; i < LISTED; i++) {
    CHECK_EQUAL(rig_state(r, pages[i]), pages[i] == but ? UM_PAGE_ABSENT : UM_PAGE_CLEAN);
    CHECK_EQUAL(rig_read(r, pages[i] * PAGE), rig_word(pages[i] * PAGE));
  }
}

static void test_scattered_pages_go_by_batches_of_several_fillers(void) {
  rig r;
  uint64_t pages[LISTED];
  list(pages);
  open_region(&r, pages[LISTED - 1] + 1, 8);
  CHECK_EQUAL(rig_run(um_region_prefetch_pages_start(r.region, pages, LISTED), NULL), 0);
  CHECK_EQUAL(rig_stats(&r).prefetches, LISTED);
  CHECK_EQUAL(rig_stats(&r).store_reads, LISTED);
  CHECK(reads > LISTED - 32); /* the end of a list goes one by one */
  CHECK(most >= 2 && most < 8);
  CHECK(longest > 100 && calls < 20);
  check_filled(&r, pages, UINT64_MAX);
  CHECK_EQUAL(rig_stats(&r).read_faults, 0);
  rig_close(&r);
  rig_end(&r);
}

static void test_one_filler_reads_batches_too(void) {
  rig r;
  uint64_t pages[LISTED];
  list(pages);
  open_region(&r, pages[LISTED - 1] + 1, 1);
  CHECK_EQUAL(rig_run(um_region_prefetch_pages_start(r.region, pages, LISTED), NULL), 0);
  CHECK(longest > 16 && longest <= 64); /* faults are looked at in between */
  check_filled(&r, pages, UINT64_MAX);
  rig_close(&r);
  rig_end(&r);
}

static void test_long_runs_are_read_by_calls_of_their_own(void) {
  rig r;
  uint64_t pages[LISTED];
  for (uint64_t i = 0; i < LISTED; i++)
    pages[i] = i;
  open_region(&r, LISTED, 4);
  CHECK_EQUAL(rig_run(um_region_prefetch_pages_start(r.region, pages, LISTED), NULL), 0);
  CHECK_EQUAL(calls, 0);
  check_filled(&r, pages, UINT64_MAX);
  rig_close(&r);
  rig_end(&r);
}

static void test_store_that_refuses_batches_is_read_one_by_one(void) {
  rig r;
  uint64_t pages[LISTED];
  list(pages);
  open_region(&r, pages[LISTED - 1] + 1, 8);
  refusal = -EOPNOTSUPP;
  CHECK_EQUAL(rig_run(um_region_prefetch_pages_start(r.region, pages, LISTED), NULL), 0);
  CHECK_EQUAL(rig_stats(&r).prefetches, LISTED);
  check_filled(&r, pages, UINT64_MAX);
  rig_close(&r);
  rig_end(&r);
}

static void read_that_fails(int code, bool absent) {
  rig r;
  uint64_t pages[LISTED];
  list(pages);
  open_region(&r, pages[LISTED - 1] + 1, 3);
  bad_offset = pages[20] * PAGE;
  bad_code = code;
  CHECK_EQUAL(rig_run(um_region_prefetch_pages_start(r.region, pages, LISTED), NULL), 0);
  CHECK_EQUAL(rig_stats(&r).fill_errors, absent);
  check_filled(&r, pages, absent ? pages[20] : UINT64_MAX); /* a fault reads it */
  CHECK_EQUAL(rig_errors(&r), 0);
  rig_close(&r);
  rig_end(&r);
}

static void test_read_that_fails_is_tried_once_more_by_itself(void) {
  read_that_fails(-EIO, false);
}

static void test_read_that_never_lands_leaves_its_page_to_a_fault(void) {
  read_that_fails(-ETIMEDOUT, true);
}

static void test_batches_with_little_memory_stay_within_it(void) {
  for (uint32_t fillers = 1; fillers <= 3; fillers++) {
    rig r;
    uint64_t pages[LISTED];
    list(pages);
    rig_open(&r, &(rig_options){.size = (pages[LISTED - 1] + 1) * PAGE, .memory = 2 << 20, .fillers = fillers});
    CHECK_EQUAL(rig_run(um_region_prefetch_pages_start(r.region, pages, LISTED), NULL), 0);
    um_stats s = rig_stats(&r);
    CHECK(s.peak_used <= s.memory);
    CHECK(s.prefetches > 50);
    for (uint64_t i = 0; i < LISTED; i++)
      CHECK_EQUAL(rig_read(&r, pages[i] * PAGE), rig_word(pages[i] * PAGE));
    rig_close(&r);
    rig_end(&r);
  }
}

int main(void) {
  watchdog_start(20);
  RUN(test_scattered_pages_go_by_batches_of_several_fillers);
  RUN(test_one_filler_reads_batches_too);
  RUN(test_long_runs_are_read_by_calls_of_their_own);
  RUN(test_store_that_refuses_batches_is_read_one_by_one);
  RUN(test_read_that_fails_is_tried_once_more_by_itself);
  RUN(test_read_that_never_lands_leaves_its_page_to_a_fault);
  RUN(test_batches_with_little_memory_stay_within_it);
  watchdog_pet("the end");
  return 0;
}
