/* Dirty blocks of large pages: a small write makes a block dirty, not a page, and nothing of it is lost while the page
 * is written, evicted, or cannot be written. */
#include "rig.h"

#include <sys/stat.h>
#include <unistd.h>

#define KIB 1024ull
#define MIB (1024ull << 10)

static uint64_t block_of(uint64_t page_size) {
  return um_max(64 * KIB, page_size / 64);
}

static uint64_t expected(uint64_t offset, uint64_t step, bool sparse) {
  return offset % step == 8 ? ~offset : sparse ? 0 : rig_word(offset);
}

/* Every word at 8 behind a multiple of `step` was written, and nothing else. */
static void check_file(const rig *r, uint64_t step, bool sparse) {
  static uint64_t words[1 << 15];
  for (uint64_t at = 0; at < r->size; at += sizeof words) {
    uint64_t n = um_min(sizeof words, r->size - at);
    CHECK_EQUAL(pread(r->fd, words, n, (off_t)at), n);
    for (uint64_t i = 0; i < n / 8; i++)
      CHECK_EQUAL(words[i], expected(at + 8 * i, step, sparse));
  }
}

static void write_scattered(uint64_t page_size, uint64_t pages, bool pressed, bool evict) {
  rig r;
  uint64_t block = block_of(page_size), step = 3 * block, writes = 0;
  bool sparse = page_size > 4 * MIB;
  rig_open(&r,
           &(rig_options){
               .size = pages * page_size, .page_size = page_size, .sparse = sparse, .memory = pressed ? 0 : 1u << 31});
  for (uint64_t turn = 0, slots = (r.size - 16) / step + 1; turn < slots; turn++, writes++) {
    uint64_t offset = turn * 7919 % slots * step + 8; /* no stream; 7919 is prime */
    rig_write(&r, offset, ~offset);
  }
  CHECK_EQUAL(evict ? rig_evict(&r, 0, r.size) : rig_flush(&r), 0);
  um_stats s = rig_stats(&r);
  /* An evictor may come between the fault of a write and the write itself, which then faults once more. */
  uint64_t twice = pressed ? writes / 8 : 0;
  CHECK(s.bytes_written >= writes * 4096 && s.bytes_written <= (writes + twice) * block);
  CHECK_EQUAL(s.dirty, 0);
  if (pressed)
    CHECK(s.evictions > pages / 2);
  check_file(&r, step, sparse);
  for (uint64_t offset = 8; offset + 8 <= r.size; offset += step / 3)
    CHECK_EQUAL(rig_read(&r, offset), expected(offset, step, sparse));
  rig_close(&r);
  rig_end(&r);
}

static void test_blocks_flushed_write_no_more_than_a_block_a_write(void) {
  write_scattered(128 * KIB, 64, false, false);
  write_scattered(256 * KIB, 32, false, false);
  write_scattered(1 * MIB, 16, false, false);
  write_scattered(2 * MIB, 8, false, false);
  write_scattered(4 * MIB, 4, false, false);
}

static void test_blocks_evicted_write_no_more_than_a_block_a_write(void) {
  write_scattered(128 * KIB, 64, false, true);
  write_scattered(2 * MIB, 8, false, true);
  write_scattered(4 * MIB, 4, false, true);
}

static void test_blocks_under_pressure_write_no_more_than_a_block_a_write(void) {
  write_scattered(128 * KIB, 256, true, false);
  write_scattered(512 * KIB, 100, true, true);
  write_scattered(2 * MIB, 30, true, false);
}

static void test_blocks_of_the_largest_pages_are_a_64th_of_them(void) {
  write_scattered(16 * MIB, 3, false, false);
  write_scattered(64 * MIB, 2, false, true);
}

/* They are counted after the writer was woken. */
static void check_protect_faults(const rig *r, uint64_t count) {
  for (uint64_t patience = now_ns() + 1000000000; rig_stats(r).protect_faults < count && now_ns() < patience;)
    sleep_ms(1);
  CHECK_EQUAL(rig_stats(r).protect_faults, count);
}

static void write_twice(uint64_t page_size) {
  rig r;
  uint64_t block = block_of(page_size);
  rig_open(&r, &(rig_options){.size = 3 * page_size, .page_size = page_size});
  rig_write(&r, 0, 1); /* absent: filled, and its block is open */
  CHECK_EQUAL(rig_stats(&r).write_faults, 1);
  rig_write(&r, block - 8, 2);
  check_protect_faults(&r, 0);
  rig_write(&r, block, 3);
  check_protect_faults(&r, 1);
  rig_write(&r, 2 * block - 8, 4);
  rig_write(&r, page_size - 8, 5);
  check_protect_faults(&r, page_size == 2 * block ? 1 : 2);
  rig_read(&r, page_size + block); /* CLEAN: every block is protected */
  uint64_t before = rig_stats(&r).protect_faults;
  rig_write(&r, page_size + block, 6);
  rig_write(&r, page_size, 7);
  rig_write(&r, page_size + 8, 8);
  check_protect_faults(&r, before + 2);
  CHECK_EQUAL(rig_flush(&r), 0);
  rig_write(&r, page_size + 8, 9); /* protected again */
  check_protect_faults(&r, before + 3);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, block), 3);
  CHECK_EQUAL(rig_file_word(&r, page_size - 8), 5);
  CHECK_EQUAL(rig_file_word(&r, page_size + 8), 9);
  rig_end(&r);
}

static void test_blocks_written_once_fault_no_more_and_others_do(void) {
  write_twice(128 * KIB);
  write_twice(1 * MIB);
  write_twice(2 * MIB);
  write_twice(8 * MIB);
}

typedef struct call {
  rig *rig;
  bool evict;
  int code;
} call;

static void *write_back(void *argument) {
  call *c = argument;
  c->code = c->evict ? rig_evict(c->rig, 0, c->rig->size) : rig_flush(c->rig);
  return NULL;
}

static void write_while_written(uint64_t page_size, bool evict) {
  rig r;
  uint64_t block = block_of(page_size), last = page_size - block;
  rig_open(&r, &(rig_options){.size = 2 * page_size, .page_size = page_size, .latch = true});
  evict = evict && !r.region->moves; /* a page that is out waits for the store: test_leave.c */
  rig_write(&r, 0, 1);
  latch_arm(r.latch, UM_OP_WRITE);
  call c = {.rig = &r, .evict = evict};
  pthread_t thread = rig_thread(write_back, &c);
  latch_wait(r.latch);
  rig_write(&r, 0, 2);    /* the block that is being written */
  rig_write(&r, last, 3); /* one that is not */
  latch_release(r.latch);
  pthread_join(thread, NULL);
  CHECK_EQUAL(c.code, 0);
  CHECK_EQUAL(latch_changed(r.latch), 0);
  CHECK_EQUAL(rig_file_word(&r, 0), 1);
  CHECK_EQUAL(rig_file_word(&r, last), rig_word(last));
  CHECK_EQUAL(rig_state(&r, 0), UM_PAGE_DIRTY);
  CHECK_EQUAL(rig_flush(&r), 0);
  CHECK_EQUAL(rig_file_word(&r, 0), 2);
  CHECK_EQUAL(rig_file_word(&r, last), 3);
  CHECK_EQUAL(rig_stats(&r).bytes_written, 3 * block);
  rig_close(&r);
  rig_end(&r);
}

static void test_blocks_written_to_while_the_store_has_them_are_written_again(void) {
  write_while_written(256 * KIB, false);
  write_while_written(256 * KIB, true);
  write_while_written(4 * MIB, false);
}

static void fail_to_write(uint64_t page_size, bool evict) {
  rig r;
  uint64_t block = block_of(page_size);
  rig_open(&r, &(rig_options){.size = 2 * page_size, .page_size = page_size, .faults = true});
  rig_write(&r, 0, 1);
  rig_write(&r, page_size - 8, 2);
  rig_fail(&r, 1u << UM_OP_WRITE, ENOSPC, UINT64_MAX, 0);
  CHECK_EQUAL(evict ? rig_evict(&r, 0, r.size) : rig_flush(&r), -ENOSPC);
  CHECK_EQUAL(rig_state(&r, 0), UM_PAGE_DIRTY);
  rig_write(&r, 8, 3);     /* a block that failed */
  rig_write(&r, block, 4); /* one that was clean */
  rig_heal(&r);
  CHECK_EQUAL(evict ? rig_evict(&r, 0, r.size) : rig_flush(&r), 0);
  CHECK_EQUAL(rig_file_word(&r, 0), 1);
  CHECK_EQUAL(rig_file_word(&r, 8), 3);
  CHECK_EQUAL(rig_file_word(&r, block), 4);
  CHECK_EQUAL(rig_file_word(&r, page_size - 8), 2);
  CHECK_EQUAL(rig_file_word(&r, 2 * block + 8), rig_word(2 * block + 8));
  bool exposed = evict && r.region->moves; /* put back without its protection: all of it counted as dirty */
  CHECK_EQUAL(rig_stats(&r).bytes_written, exposed ? page_size : page_size == 2 * block ? 2 * block : 3 * block);
  rig_close(&r);
  rig_end(&r);
}

static void test_blocks_that_a_store_refuses_stay_dirty(void) {
  fail_to_write(256 * KIB, false);
  fail_to_write(2 * MIB, false);
  fail_to_write(2 * MIB, true);
}

/* The first stretch is taken by the store, the second is not: neither may be forgotten. */
static void test_blocks_that_a_store_refuses_after_others_stay_dirty(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 2 * MIB, .page_size = 1 * MIB, .faults = true});
  rig_write(&r, 0, 1);
  rig_write(&r, 512 * KIB, 2);
  um_fault_options second = {.ops = 1u << UM_OP_WRITE, .code = ENOSPC, .count = 1, .skip = 1};
  um_fault_store_set(r.faults, &second);
  CHECK_EQUAL(rig_flush(&r), -ENOSPC);
  CHECK_EQUAL(rig_file_word(&r, 512 * KIB), rig_word(512 * KIB));
  CHECK_EQUAL(rig_flush(&r), 0);
  CHECK_EQUAL(rig_file_word(&r, 0), 1);
  CHECK_EQUAL(rig_file_word(&r, 512 * KIB), 2);
  rig_close(&r);
  rig_end(&r);
}

static void test_blocks_of_an_overwritten_page_are_all_written(void) {
  rig r;
  const uint64_t page_size = 512 * KIB, pages = 6;
  uint64_t *words = malloc(pages * page_size), done = 0;
  CHECK(words);
  for (uint64_t i = 0; i < pages * page_size / 8; i++)
    words[i] = ~rig_word(8 * i);
  rig_open(&r, &(rig_options){.size = pages * page_size, .page_size = page_size});
  rig_read(&r, page_size); /* written by the caller's hand, block by block */
  CHECK_EQUAL(um_region_overwrite(r.region, 0, words, r.size, 10000, &done), 0);
  CHECK_EQUAL(rig_stats(&r).store_reads, 1);
  CHECK_EQUAL(rig_flush(&r), 0);
  CHECK_EQUAL(rig_stats(&r).bytes_written, r.size);
  for (uint64_t offset = 0; offset < r.size; offset += 8)
    CHECK_EQUAL(rig_file_word(&r, offset), ~rig_word(offset));
  rig_write(&r, 0, 5); /* protected block by block since */
  CHECK_EQUAL(rig_flush(&r), 0);
  CHECK_EQUAL(rig_stats(&r).bytes_written, r.size + block_of(page_size));
  rig_close(&r);
  rig_end(&r);
  free(words);
}

static void end_in_a_block(uint64_t page_size, uint64_t tail) {
  rig r;
  struct stat st;
  uint64_t block = block_of(page_size), last = 2 * page_size;
  rig_open(&r, &(rig_options){.size = last + tail, .page_size = page_size});
  uint64_t end = (r.size - 8) / 8 * 8;
  rig_write(&r, end, 7);
  CHECK_EQUAL(rig_flush(&r), 0);
  CHECK(rig_stats(&r).bytes_written <= block);
  CHECK_EQUAL(rig_file_word(&r, end), 7);
  rig_write(&r, last, 8);
  rig_write(&r, end, 9);
  CHECK_EQUAL(rig_evict(&r, 0, r.size), 0);
  CHECK_EQUAL(rig_read(&r, last), 8);
  CHECK_EQUAL(rig_read(&r, end), 9);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, last), 8);
  CHECK_EQUAL(rig_file_word(&r, end), 9);
  CHECK_EQUAL(fstat(r.fd, &st), 0);
  CHECK_EQUAL(st.st_size, r.size);
  rig_end(&r);
}

static void test_blocks_of_a_last_page_end_with_the_data(void) {
  end_in_a_block(1 * MIB, 3 * 64 * KIB + 5000);
  end_in_a_block(1 * MIB, 64);
  end_in_a_block(128 * KIB, 64 * KIB);
  end_in_a_block(2 * MIB, 2 * MIB - 8);
  end_in_a_block(16 * MIB, 5 * MIB + 24);
}

/* The descriptor of the page that was evicted serves another: its blocks must not. */
static void test_blocks_of_a_page_filled_anew_are_clean(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 4 * MIB, .page_size = 1 * MIB});
  for (uint64_t block = 0; block < 16; block += 2)
    rig_write(&r, block * 64 * KIB, 1);
  CHECK_EQUAL(rig_evict(&r, 0, r.size), 0);
  uint64_t written = rig_stats(&r).bytes_written;
  rig_read(&r, 0);
  rig_write(&r, 5 * 64 * KIB, 2);
  rig_write(&r, 3 * MIB, 3);
  CHECK_EQUAL(rig_flush(&r), 0);
  CHECK_EQUAL(rig_stats(&r).bytes_written, written + 2 * 64 * KIB);
  rig_close(&r);
  rig_end(&r);
}

typedef struct writer {
  rig *rig;
  uint64_t first, random, page_size;
  uint64_t *last; /* what each of its words holds */
  _Atomic bool *stop;
  uint64_t turns;
} writer;

#define WRITERS 4

/* Its words are its own: the fourth, or so, of every block. */
static void *write_on(void *argument) {
  writer *w = argument;
  uint64_t blocks = w->rig->size / (64 * KIB);
  for (uint64_t i = 1; !atomic_load(w->stop); i++, w->turns++) {
    uint64_t block = rig_random(&w->random) % blocks, offset = block * 64 * KIB + 8 * w->first;
    CHECK_EQUAL(rig_read(w->rig, offset), w->last[block] ? w->last[block] : rig_word(offset));
    rig_write(w->rig, offset, i);
    w->last[block] = i;
  }
  return NULL;
}

static void write_from_all_sides(uint64_t page_size) {
  rig r;
  _Atomic bool stop = false;
  writer w[WRITERS];
  pthread_t threads[WRITERS];
  rig_open(&r, &(rig_options){.size = 60 * page_size, .page_size = page_size, .fillers = 2, .evictors = 2});
  uint64_t blocks = r.size / (64 * KIB);
  for (uint64_t i = 0; i < WRITERS; i++) {
    w[i] = (writer){&r, i, 11 + i, page_size, calloc(blocks, 8), &stop, 0};
    CHECK(w[i].last);
    threads[i] = rig_thread(write_on, &w[i]);
  }
  for (uint64_t end = now_ns() + 300000000; now_ns() < end;) {
    CHECK_EQUAL(rig_flush(&r), 0);
    CHECK_EQUAL(rig_evict(&r, 0, r.size / 4), 0);
  }
  atomic_store(&stop, true);
  for (int i = 0; i < WRITERS; i++)
    pthread_join(threads[i], NULL);
  rig_close(&r);
  for (uint64_t i = 0; i < WRITERS; i++) {
    CHECK(w[i].turns > 0);
    for (uint64_t block = 0; block < blocks; block++) {
      uint64_t offset = block * 64 * KIB + 8 * i;
      CHECK_EQUAL(rig_file_word(&r, offset), w[i].last[block] ? w[i].last[block] : rig_word(offset));
    }
    free(w[i].last);
  }
  rig_end(&r);
}

static void test_blocks_written_by_threads_while_flushed_and_evicted_keep_every_write(void) {
  write_from_all_sides(128 * KIB);
  write_from_all_sides(1 * MIB);
}

int main(void) {
  watchdog_start(20);
  RUN(test_blocks_flushed_write_no_more_than_a_block_a_write);
  RUN(test_blocks_evicted_write_no_more_than_a_block_a_write);
  RUN(test_blocks_under_pressure_write_no_more_than_a_block_a_write);
  RUN(test_blocks_of_the_largest_pages_are_a_64th_of_them);
  RUN(test_blocks_written_once_fault_no_more_and_others_do);
  RUN(test_blocks_written_to_while_the_store_has_them_are_written_again);
  RUN(test_blocks_that_a_store_refuses_stay_dirty);
  RUN(test_blocks_that_a_store_refuses_after_others_stay_dirty);
  RUN(test_blocks_of_an_overwritten_page_are_all_written);
  RUN(test_blocks_of_a_last_page_end_with_the_data);
  RUN(test_blocks_of_a_page_filled_anew_are_clean);
  RUN(test_blocks_written_by_threads_while_flushed_and_evicted_keep_every_write);
  watchdog_pet("the end");
  return 0;
}
