/* Read-ahead at work: streams over budgets that allow chunks. What a reader sees, what reaches the file, and how many
 * calls of the store and faults that takes. */
#define _GNU_SOURCE
#include "pin.h"
#include "pool.h"
#include "readahead.h"
#include "rig.h"

#include <sys/mman.h>
#include <unistd.h>

#define KIB 1024ull
#define MIB (1024ull << 10)

static rig_options streaming(uint64_t size, uint64_t page_size, bool read_only) {
  return (rig_options){.size = size,
                       .page_size = page_size,
                       .memory = 160 * MIB,
                       .fillers = 4,
                       .evictors = 2,
                       .readahead = true,
                       .latch = true, /* it sees every read: wrappers have no cached ones */
                       .faults = true,
                       .skew = UM_CHUNK,
                       .read_only = read_only};
}

static uint64_t reads(const rig *r) {
  return latch_calls(r->latch, UM_OP_READ);
}

static void settle(const rig *r) {
  for (uint64_t patience = now_ns() + 10000000000ull * SLOWER; atomic_load(&r->region->asked); sleep_ms(1))
    CHECK(now_ns() < patience);
}

typedef struct piece {
  rig *rig;
  uint64_t first, end;
  bool down;
} piece;

static void *read_piece(void *piece_) {
  const piece *p = piece_;
  for (uint64_t done = 0; done < p->end - p->first; done += 4 * KIB) {
    uint64_t offset = p->down ? p->end - 4 * KIB - done : p->first + done;
    CHECK_EQUAL(rig_read(p->rig, offset), rig_word(offset));
  }
  return NULL;
}

/* The pages before a gap make no faults, so nobody has seen the thread come. */
static void read_over_gaps(bool down) {
  rig r;
  rig_options o = streaming(64 * MIB, 4 * KIB, true);
  rig_open(&r, &o);
  read_piece(&(piece){&r, 0, r.size, false});
  settle(&r);
  for (uint64_t gap = 8 * MIB; gap < r.size; gap += 16 * MIB)
    CHECK_EQUAL(rig_evict(&r, gap, MIB), 0);
  um_stats before = rig_stats(&r);
  for (uint64_t gap = 8 * MIB; gap < r.size; gap += 16 * MIB) {
    piece p = {&r, gap - MIB, gap + 2 * MIB, down};
    pthread_join(rig_thread(read_piece, &p), NULL);
  }
  settle(&r);
  um_stats s = rig_stats(&r);
  CHECK_EQUAL(s.bytes_read - before.bytes_read, 4 * MIB);
  /* Two a gap, and 20 in all without a context; some more where the reader comes before what was asked for. */
  CHECK(s.read_faults - before.read_faults <= 4 * 4);
  rig_close(&r);
  rig_end(&r);
}

static void test_ahead_gaps_between_resident_pages_take_few_faults(void) {
  read_over_gaps(false);
  read_over_gaps(true);
}

static void read_through(uint64_t page_size, bool read_only, bool down) {
  rig r;
  rig_options o = streaming(64 * MIB, page_size, read_only);
  rig_open(&r, &o);
  uint64_t count = r.region->page_count;
  for (uint64_t i = 0; i < count; i++) {
    uint64_t offset = (down ? count - 1 - i : i) * page_size;
    CHECK_EQUAL(rig_read(&r, offset + 8), rig_word(offset + 8));
    CHECK_EQUAL(rig_read(&r, offset + page_size - 8), rig_word(offset + page_size - 8));
  }
  settle(&r);
  um_stats s = rig_stats(&r);
  uint64_t chunks = r.size / UM_CHUNK;
  CHECK_EQUAL(s.bytes_read, r.size); /* nothing twice, nothing beyond */
  CHECK(reads(&r) <= chunks + 24);   /* the stream begins with smaller runs */
  CHECK(s.read_faults <= 32);
  CHECK_EQUAL(s.protect_faults + s.write_faults + s.fill_errors, 0);
  CHECK(s.readahead_used >= (chunks - 6) * um_chunk_pages(r.region));
  CHECK_EQUAL(s.readahead_wasted, 0);
  CHECK_EQUAL(rig_evict(&r, 0, r.size), 0);
  s = rig_stats(&r);
  CHECK_EQUAL(s.standby + s.resident + s.readahead_wasted, 0); /* all was used */
  rig_close(&r);
  rig_end(&r);
}

static void test_ahead_sequential_reader_costs_one_store_call_a_chunk(void) {
  read_through(4 * KIB, true, false);
  read_through(64 * KIB, true, false);
  read_through(64 * KIB, false, false);
  read_through(64 * KIB, true, true);
  read_through(16 * KIB, false, true);
}

static void test_ahead_reader_that_stops_wastes_what_is_counted(void) {
  rig r;
  rig_options o = streaming(64 * MIB, 64 * KIB, true);
  rig_open(&r, &o);
  for (uint64_t offset = 0; offset < 20 * MIB; offset += 64 * KIB)
    rig_read(&r, offset);
  settle(&r);
  um_stats s = rig_stats(&r);
  uint64_t standby = s.standby / (64 * KIB), used = s.readahead_used;
  CHECK(standby > 0);
  CHECK(s.readahead >= used + standby);
  CHECK_EQUAL(rig_evict(&r, 0, r.size), 0);
  s = rig_stats(&r);
  CHECK_EQUAL(s.readahead_used, used);
  CHECK_EQUAL(s.readahead_wasted, standby);
  rig_close(&r);
  rig_end(&r);
}

/* Every word of every page, by threads with a part each. */
typedef struct writer {
  rig *rig;
  uint64_t first, end, step;
} writer;

static void *write_through(void *argument) {
  writer *w = argument;
  for (uint64_t offset = w->first; offset < w->end; offset += w->step)
    rig_write(w->rig, offset, ~rig_word(offset));
  return NULL;
}

static void write_stream(uint64_t page_size, uint64_t memory, uint64_t step, int threads) {
  rig r;
  rig_options o = streaming(96 * MIB, page_size, false);
  o.memory = memory;
  rig_open(&r, &o);
  writer w[4];
  pthread_t ids[4];
  for (int i = 0; i < threads; i++) {
    w[i] = (writer){&r, r.size / 4 * (uint64_t)i, r.size / 4 * (uint64_t)(i + 1), step};
    if (threads == 1)
      w[i].end = r.size;
    ids[i] = rig_thread(write_through, &w[i]);
  }
  for (int i = 0; i < threads; i++)
    pthread_join(ids[i], NULL);
  um_stats s = rig_stats(&r);
  CHECK(s.protect_faults + s.write_faults < r.region->page_count / 3); /* most come writable, or in rows */
  CHECK(s.peak_used <= s.memory);
  rig_close(&r);
  static uint64_t words[1 << 16];
  for (uint64_t at = 0; at < r.size; at += sizeof words) {
    CHECK_EQUAL(pread(r.fd, words, sizeof words, (off_t)at), sizeof words);
    for (uint64_t i = 0; i < sizeof words / 8; i++)
      CHECK_EQUAL(words[i], (8 * i + at) % step ? rig_word(at + 8 * i) : ~rig_word(at + 8 * i));
  }
  rig_end(&r);
}

static void test_ahead_stream_of_writes_reaches_the_file(void) {
  write_stream(4 * KIB, 160 * MIB, 1024, 1);
  write_stream(64 * KIB, 160 * MIB, 1024, 1);
  write_stream(64 * KIB, 68 * MIB, 4096, 1); /* it evicts what it wrote */
  write_stream(64 * KIB, 68 * MIB, 4096, 4);
}

/* It reads, and writes a word now and then: in runs that were mapped whole, for its writing or not, none may be lost.
 */
static void write_now_and_then(uint64_t page_size, uint64_t memory) {
  rig r;
  rig_options o = streaming(96 * MIB, page_size, false);
  o.memory = memory;
  rig_open(&r, &o);
  uint64_t pages = r.region->page_count;
  for (uint64_t page = 0; page < pages; page++) {
    uint64_t offset = page * page_size;
    bool phase = page / (pages / 8) % 2; /* a stretch of writing, a stretch of reading */
    if (phase || page % 37 == 5)
      rig_write(&r, offset + 16, page + 1);
    else
      CHECK_EQUAL(rig_read(&r, offset + 16), rig_word(offset + 16));
    if (page % 501 == 500)
      CHECK_EQUAL(rig_flush(&r), 0);
  }
  rig_close(&r);
  for (uint64_t page = 0; page < pages; page++) {
    uint64_t offset = page * page_size + 16;
    bool written = page / (pages / 8) % 2 || page % 37 == 5;
    CHECK_EQUAL(rig_file_word(&r, offset), written ? page + 1 : rig_word(offset));
  }
  rig_end(&r);
}

static void test_ahead_stream_that_writes_now_and_then_loses_nothing(void) {
  write_now_and_then(64 * KIB, 160 * MIB);
  write_now_and_then(16 * KIB, 68 * MIB);
}

/* The store fails from some offset on: the reader finds exactly the page it touches FAILED, and does not wait for ever.
 */
static void read_into_failure(uint64_t page_size, bool down) {
  rig r;
  rig_options o = streaming(32 * MIB, page_size, true);
  rig_open(&r, &o);
  uint64_t good = down ? 20 * MIB : 12 * MIB;
  um_fault_options bad = {.ops = 1u << UM_OP_READ,
                          .code = ENXIO,
                          .count = UINT64_MAX,
                          .offset = down ? 0 : good,
                          .length = down ? good : r.size - good};
  um_fault_store_set(r.faults, &bad);
  uint64_t count = r.region->page_count;
  for (uint64_t i = 0;; i++) {
    uint64_t offset = (down ? count - 1 - i : i) * page_size;
    if (down ? offset < good : offset >= good) {
      CHECK_EQUAL(rig_errors(&r), 0);
      CHECK_EQUAL(um_region_tainted(r.region), 0);
      CHECK_EQUAL(rig_read(&r, offset), UINT64_MAX);
      settle(&r);
      while (rig_state(&r, offset / page_size) == UM_PAGE_BUSY) /* its bytes are there an instant before */
        sleep_ms(1);
      CHECK_EQUAL(rig_state(&r, offset / page_size), UM_PAGE_FAILED);
      break;
    }
    CHECK_EQUAL(rig_read(&r, offset), rig_word(offset));
  }
  CHECK_EQUAL(rig_errors(&r), 1);
  uint64_t failed = 0;
  for (uint64_t page = 0; page < count; page++)
    failed += rig_state(&r, page) == UM_PAGE_FAILED;
  CHECK_EQUAL(failed, 1);
  rig_heal(&r);
  CHECK_EQUAL(um_region_retry(r.region), 1);
  for (uint64_t offset = 0; offset < r.size; offset += page_size)
    CHECK_EQUAL(rig_read(&r, offset), rig_word(offset));
  CHECK_EQUAL(rig_errors(&r), 1);
  rig_close(&r);
  rig_end(&r);
}

static void test_ahead_of_a_reader_that_reaches_a_failure_only_its_page_fails(void) {
  read_into_failure(64 * KIB, false);
  read_into_failure(4 * KIB, false);
  read_into_failure(64 * KIB, true);
}

static uint64_t find_moved_run(const rig *r) { /* a chunk that is mapped whole and writable */
  for (uint64_t page = 0; page < r->region->page_count; page++) {
    um_word w = atomic_load(&r->region->words[page]);
    const um_frame *f = w ? &r->pager->frames[w >> 32] : NULL;
    if (f && f->count == um_chunk_pages(r->region) && atomic_load(&f->opened) && rig_state(r, page) == UM_PAGE_DIRTY)
      return f->page;
  }
  return UINT64_MAX;
}

static void test_ahead_dirty_page_dropped_in_a_moved_chunk_is_lost_alone(void) {
  rig r;
  rig_options o = streaming(64 * MIB, 64 * KIB, false);
  rig_open(&r, &o);
  for (uint64_t offset = 0; offset < r.size; offset += 8 * KIB)
    rig_write(&r, offset, offset + 1);
  settle(&r);
  uint64_t page = find_moved_run(&r);
  CHECK(page != UINT64_MAX);
  uint64_t at = (page + 11) * 64 * KIB;
  rig_drop(&r, at + 8 * KIB, 4 * KIB);
  CHECK_EQUAL(rig_read(&r, at + 8 * KIB), UINT64_MAX);
  um_error error;
  CHECK_EQUAL(um_region_error_next(r.region, &error), 1);
  CHECK_EQUAL(error.code, UM_EDROPPED);
  CHECK_EQUAL(error.offset, at);
  CHECK(um_region_tainted(r.region));
  CHECK_EQUAL(rig_state(&r, page + 11), UM_PAGE_FAILED);
  CHECK_EQUAL(rig_errors(&r), 1);
  rig_close(&r);
  for (uint64_t offset = 0; offset < r.size; offset += 8 * KIB)
    CHECK_EQUAL(rig_file_word(&r, offset), offset / (64 * KIB) == page + 11 ? rig_word(offset) : offset + 1);
  rig_end(&r);
}

typedef struct call {
  rig *rig;
  uint64_t end;
} call;

static void *read_to(void *argument) {
  call *c = argument;
  for (uint64_t offset = 0; offset < c->end; offset += c->rig->region->page_size)
    CHECK_EQUAL(rig_read(c->rig, offset), rig_word(offset));
  return NULL;
}

static void test_ahead_region_closed_in_the_middle_of_a_stream_is_given_back(void) {
  for (uint64_t turn = 1; turn <= 12; turn++) {
    rig r;
    rig_options o = streaming(64 * MIB, 64 * KIB, turn % 2);
    rig_open(&r, &o);
    call c = {&r, turn * 4 * MIB};
    pthread_t thread = rig_thread(read_to, &c);
    pthread_join(thread, NULL);
    rig_close(&r); /* what is read ahead is under way, on standby, or queued */
    rig_end(&r);
  }
}

static void test_ahead_region_is_not_closed_while_a_read_ahead_hangs(void) {
  rig r;
  rig_options o = streaming(64 * MIB, 64 * KIB, true);
  rig_open(&r, &o);
  call c = {&r, 24 * MIB};
  pthread_t thread = rig_thread(read_to, &c);
  pthread_join(thread, NULL);
  settle(&r);
  latch_arm(r.latch, UM_OP_READ);
  uint64_t offset = 24 * MIB;
  c.end = 40 * MIB;
  thread = rig_thread(read_to, &c);
  latch_wait(r.latch);
  CHECK_EQUAL(um_region_gate_close(r.region, 1, 20), -EAGAIN);
  CHECK_EQUAL(rig_read(&r, 0), rig_word(0));
  latch_release(r.latch);
  pthread_join(thread, NULL);
  CHECK_EQUAL(rig_read(&r, offset), rig_word(offset));
  rig_close(&r);
  rig_end(&r);
}

/* A move that stops in the middle of a chunk leaves pages that anybody may have written to. */
typedef struct racer {
  rig *rig;
  uint64_t at, delay_us;
  _Atomic bool *go;
} racer;

static void *write_soon(void *argument) {
  racer *x = argument;
  while (!atomic_load(x->go))
    ;
  for (uint64_t end = now_ns() + x->delay_us * 1000; now_ns() < end;)
    ;
  rig_write(x->rig, x->at, 1 + x->at);
  return NULL;
}

/* The filler is done with it; ThreadSanitizer does not see by what. */
__attribute__((noinline, no_sanitize("thread"))) static uint32_t chunk_of(const rig *r, uint64_t page) {
  return r->pager->frames[atomic_load(&r->region->words[page]) >> 32].chunk;
}

static void test_ahead_write_to_a_chunk_that_is_moved_in_part_is_kept(void) {
  rig r;
  rig_options o = streaming(64 * MIB, 4 * KIB, false);
  rig_open(&r, &o);
  if (!r.region->moves || !pin_allowed()) {
    printf("  %s skipped: %s\n", __func__, r.region->moves ? "no io_uring here" : "pages are not moved");
    rig_close(&r);
    rig_end(&r);
    return;
  }
  CHECK_EQUAL(um_region_advise(r.region, 0, r.size, UM_ADVISE_WILLWRITE), 0);
  /* Chunks of small pages: one that was pinned in part while it was a huge page would be refused whole. */
  for (uint64_t chunk = 1; chunk <= r.pager->pool.count; chunk++)
    CHECK_EQUAL(madvise((void *)um_pool_address(r.pager, (uint32_t)chunk), UM_CHUNK, MADV_NOHUGEPAGE), 0);
  madvise((void *)r.pager->pool.fresh, UM_CHUNK, MADV_NOHUGEPAGE);
  for (uint64_t turn = 0; turn < 12; turn++) {
    uint64_t first = (4 + turn) * um_chunk_pages(r.region), at = first * 4 * KIB;
    um_run_plan plan = {.first = first, .count = (uint32_t)um_chunk_pages(r.region), .repeat = 1, .stride = 1};
    CHECK(um_gate_enter(r.region));
    um_ahead_plan(r.region, &plan, 1);
    um_gate_leave(r.region);
    settle(&r);
    CHECK_EQUAL(rig_state(&r, first), UM_PAGE_STANDBY);
    uint32_t chunk = chunk_of(&r, first);
    pin *p = pin_open((void *)(um_pool_address(r.pager, chunk) + MIB), 4096);
    racer racers[3];
    pthread_t threads[3];
    _Atomic bool go = false;
    for (uint64_t i = 0; i < 3; i++) {
      racers[i] = (racer){&r, at + i * 64 * KIB, i * 200 + turn * 30, &go};
      threads[i] = rig_thread(write_soon, &racers[i]);
    }
    atomic_store(&go, true);
    for (int i = 0; i < 3; i++)
      pthread_join(threads[i], NULL);
    pin_close(p);
    CHECK_EQUAL(rig_flush(&r), 0);
    for (uint64_t i = 0; i < 3; i++)
      CHECK_EQUAL(rig_file_word(&r, racers[i].at), 1 + racers[i].at);
  }
  rig_close(&r);
  rig_end(&r);
}

int main(void) {
  watchdog_start(20);
  RUN(test_ahead_sequential_reader_costs_one_store_call_a_chunk);
  RUN(test_ahead_gaps_between_resident_pages_take_few_faults);
  RUN(test_ahead_reader_that_stops_wastes_what_is_counted);
  RUN(test_ahead_stream_of_writes_reaches_the_file);
  RUN(test_ahead_stream_that_writes_now_and_then_loses_nothing);
  RUN(test_ahead_of_a_reader_that_reaches_a_failure_only_its_page_fails);
  RUN(test_ahead_dirty_page_dropped_in_a_moved_chunk_is_lost_alone);
  RUN(test_ahead_region_closed_in_the_middle_of_a_stream_is_given_back);
  RUN(test_ahead_region_is_not_closed_while_a_read_ahead_hangs);
  RUN(test_ahead_write_to_a_chunk_that_is_moved_in_part_is_kept);
  watchdog_pet("the end");
  return 0;
}
