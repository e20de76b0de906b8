/* Runs on standby: taken back by a fault, given up for others' memory, in both ways of mapping them. What is read ahead
 * is asked for here by hand; test_ahead.c lets readers ask. */
#define _GNU_SOURCE
#include "leave.h"
#include "page.h"
#include "policy.h"
#include "pool.h"
#include "readahead.h"
#include "rig.h"

#include <sys/mman.h>

#define KIB 1024ull
#define MIB (1024ull << 10)
#define MEMORY (72 * MIB)

static uint64_t pages_of(const rig *r) {
  return um_chunk_pages(r->region);
}

/* As the leader does. `first` is the first page of a chunk. */
static void ask(const rig *r, uint64_t first, uint64_t count, bool write) {
  um_run_plan plan = {.first = first, .count = (uint32_t)count, .repeat = 1, .stride = 1, .write = write};
  while (!um_gate_enter(r->region))
    ;
  um_ahead_plan(r->region, &plan, 1);
  um_gate_leave(r->region);
}

static void wait_asked(const rig *r) {
  for (uint64_t patience = now_ns() + 10000000000ull * SLOWER; atomic_load(&r->region->asked); sleep_ms(1))
    CHECK(now_ns() < patience);
}

static uint64_t first_chunk(const rig *r) { /* the first whole one of the region */
  uint64_t first = um_chunk_first(r->region, 0);
  return first == 0 ? 0 : first + pages_of(r);
}

static void ask_and_wait(const rig *r, uint64_t first) {
  ask(r, first, pages_of(r), false);
  wait_asked(r);
  CHECK_EQUAL(rig_state(r, first), UM_PAGE_STANDBY);
  CHECK_EQUAL(rig_state(r, first + pages_of(r) - 1), UM_PAGE_STANDBY);
}

static void open_rig_at(rig *r, uint64_t page_size, bool read_only, uint64_t skew) {
  rig_open(r, &(rig_options){.size = 16 * MIB,
                             .page_size = page_size,
                             .memory = MEMORY,
                             .fillers = 3,
                             .evictors = 2,
                             .faults = true,
                             .latch = true,
                             .skew = skew,
                             .read_only = read_only});
  CHECK(r->region->chunks);
}

static void open_rig(rig *r, uint64_t page_size, bool read_only) {
  open_rig_at(r, page_size, read_only, UM_CHUNK); /* aligned */
}

static void check_chunk(const rig *r, uint64_t first) {
  for (uint64_t at = first * r->region->page_size, end = at + UM_CHUNK; at < end; at += 8)
    CHECK_EQUAL(rig_read(r, at), rig_word(at));
}

static void take_back_to_read(uint64_t page_size) {
  rig r;
  open_rig(&r, page_size, true);
  uint64_t first = first_chunk(&r), middle = first + pages_of(&r) / 2;
  ask_and_wait(&r, first);
  CHECK_EQUAL(rig_stats(&r).standby, UM_CHUNK);
  CHECK_EQUAL(latch_calls(r.latch, UM_OP_READ), 1);
  CHECK_EQUAL(rig_read(&r, middle * page_size), rig_word(middle * page_size));
  check_chunk(&r, first);
  um_stats s = rig_stats(&r);
  CHECK_EQUAL(latch_calls(r.latch, UM_OP_READ), 1);
  CHECK_EQUAL(s.readahead, pages_of(&r));
  CHECK_EQUAL(s.readahead_used, pages_of(&r));
  CHECK_EQUAL(s.readahead_wasted + s.standby + s.read_faults, 0);
  CHECK_EQUAL(s.resident, UM_CHUNK);
  CHECK_EQUAL(rig_state(&r, first), UM_PAGE_CLEAN);
  rig_close(&r);
  rig_end(&r);
}

static void test_standby_touched_in_a_region_that_is_only_read_needs_no_store(void) {
  take_back_to_read(4 * KIB);
  take_back_to_read(64 * KIB);
  take_back_to_read(2 * MIB);
}

/* Where the kernel maps a file whose size is no multiple of 2 MiB: at any 4 KiB. */
static void test_standby_where_pages_begin_anywhere_is_taken_back_whole(void) {
  for (int read_only = 0; read_only < 2; read_only++) {
    rig r;
    open_rig_at(&r, 64 * KIB, read_only, 28 * KIB);
    uint64_t first = first_chunk(&r);
    ask_and_wait(&r, first);
    CHECK_EQUAL(rig_read(&r, (first + 5) * 64 * KIB), rig_word((first + 5) * 64 * KIB));
    check_chunk(&r, first);
    CHECK_EQUAL(latch_calls(r.latch, UM_OP_READ), 1);
    if (!read_only) {
      rig_write(&r, first * 64 * KIB, 1);
      CHECK_EQUAL(rig_flush(&r), 0);
      CHECK_EQUAL(rig_file_word(&r, first * 64 * KIB), 1);
    }
    CHECK_EQUAL(rig_evict(&r, 0, r.size), 0);
    CHECK_EQUAL(rig_read(&r, first * 64 * KIB + 8), rig_word(first * 64 * KIB + 8));
    rig_close(&r);
    rig_end(&r);
  }
}

static void take_back_to_write(uint64_t page_size, bool write_first) {
  rig r;
  open_rig(&r, page_size, false);
  uint64_t first = first_chunk(&r), at = first * page_size + UM_CHUNK / 2;
  ask_and_wait(&r, first);
  if (write_first)
    rig_write(&r, at, 1);
  else
    CHECK_EQUAL(rig_read(&r, at), rig_word(at));
  rig_write(&r, at, 1);
  for (uint64_t offset = 16; offset < UM_CHUNK; offset += 128 * KIB)
    rig_write(&r, first * page_size + offset, offset);
  CHECK_EQUAL(latch_calls(r.latch, UM_OP_READ), 1);
  CHECK_EQUAL(rig_flush(&r), 0);
  CHECK(rig_stats(&r).bytes_written <= UM_CHUNK);
  for (uint64_t offset = 8; offset < UM_CHUNK; offset += 8) { /* 0: never written */
    uint64_t word = offset % (128 * KIB) == 16 ? offset : rig_word(first * page_size + offset);
    if (offset != UM_CHUNK / 2)
      CHECK_EQUAL(rig_file_word(&r, first * page_size + offset), word);
  }
  CHECK_EQUAL(rig_file_word(&r, at), 1);
  rig_write(&r, at, 2); /* protected again */
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, at), 2);
  rig_end(&r);
}

static void test_standby_touched_in_a_region_that_is_written_sees_every_write(void) {
  take_back_to_write(4 * KIB, false);
  take_back_to_write(4 * KIB, true);
  take_back_to_write(64 * KIB, false);
  take_back_to_write(2 * MIB, false);
  take_back_to_write(2 * MIB, true);
}

static void evict_standby(bool read_only) {
  rig r;
  open_rig(&r, 64 * KIB, read_only);
  uint64_t first = first_chunk(&r), n = pages_of(&r);
  ask_and_wait(&r, first);
  ask_and_wait(&r, first + n);
  CHECK_EQUAL(rig_evict(&r, first * 64 * KIB + 5, 10), 0); /* a page of it takes all of it along */
  CHECK_EQUAL(rig_state(&r, first), UM_PAGE_ABSENT);
  CHECK_EQUAL(rig_state(&r, first + n - 1), UM_PAGE_ABSENT);
  CHECK_EQUAL(rig_state(&r, first + n), UM_PAGE_STANDBY);
  CHECK_EQUAL(rig_evict(&r, 0, r.size), 0);
  um_stats s = rig_stats(&r);
  CHECK_EQUAL(s.standby, 0);
  CHECK_EQUAL(s.readahead, 2 * n);
  CHECK_EQUAL(s.readahead_wasted, 2 * n);
  CHECK_EQUAL(s.readahead_used, 0);
  check_chunk(&r, first);
  rig_close(&r);
  rig_end(&r);
}

static void test_standby_evicted_by_its_owner_is_read_again(void) {
  evict_standby(true);
  evict_standby(false);
}

static void test_standby_left_at_close_is_given_back(void) {
  rig r;
  open_rig(&r, 64 * KIB, true);
  for (uint64_t first = first_chunk(&r), i = 0; i < 5; i++)
    ask_and_wait(&r, first + i * pages_of(&r));
  rig_close(&r); /* checks what is counted */
  rig_end(&r);
  open_rig(&r, 4 * KIB, false);
  ask_and_wait(&r, first_chunk(&r));
  rig_write(&r, 15 * MIB, 1);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 15 * MIB), 1);
  rig_end(&r);
}

static void test_standby_does_not_let_the_gate_close_while_it_is_being_read(void) {
  rig r;
  open_rig(&r, 64 * KIB, true);
  uint64_t first = first_chunk(&r);
  latch_arm(r.latch, UM_OP_READ);
  ask(&r, first, pages_of(&r), false);
  latch_wait(r.latch);
  for (uint64_t i = 1; i < 5; i++)
    ask(&r, first + i * pages_of(&r), pages_of(&r), false);
  CHECK_EQUAL(um_region_gate_close(r.region, 0, 20), -EAGAIN);
  CHECK_EQUAL(um_region_gate_close(r.region, 1, 20), -EAGAIN);
  latch_release(r.latch);
  rig_close(&r);
  rig_end(&r);
}

static void fault_while_read(uint64_t page_size, bool read_only, int code) {
  rig r;
  open_rig(&r, page_size, read_only);
  uint64_t first = first_chunk(&r), at = first * page_size;
  rig_touch t[3] = {{.rig = &r, .offset = at + UM_CHUNK / 2},
                    {.rig = &r, .offset = at + 8, .value = read_only ? 0 : 5},
                    {.rig = &r, .offset = at + UM_CHUNK - 8}};
  pthread_t threads[3];
  latch_arm(r.latch, UM_OP_READ);
  ask(&r, first, pages_of(&r), false);
  latch_wait(r.latch);
  for (int i = 0; i < 3; i++)
    threads[i] = rig_thread(rig_touch_once, &t[i]);
  sleep_ms(20);
  for (int i = 0; i < 3; i++)
    CHECK(!atomic_load(&t[i].ended));
  if (code) /* for nobody's fault: they ask themselves */
    rig_fail(&r, 1u << UM_OP_READ, code, 1, 0);
  latch_release(r.latch);
  for (int i = 0; i < 3; i++)
    pthread_join(threads[i], NULL);
  CHECK_EQUAL(t[0].value, rig_word(t[0].offset));
  CHECK_EQUAL(t[2].value, rig_word(t[2].offset));
  CHECK_EQUAL(rig_read(&r, at + 8), read_only ? rig_word(at + 8) : 5);
  if (!code)
    CHECK_EQUAL(latch_calls(r.latch, UM_OP_READ), 1);
  CHECK_EQUAL(rig_errors(&r), 0);
  rig_close(&r);
  if (!read_only)
    CHECK_EQUAL(rig_file_word(&r, at + 8), 5);
  rig_end(&r);
}

static void test_standby_faults_that_come_while_it_is_being_read_are_served(void) {
  fault_while_read(4 * KIB, true, 0);
  fault_while_read(64 * KIB, true, 0);
  fault_while_read(64 * KIB, false, 0);
  fault_while_read(2 * MIB, false, 0);
}

static void test_standby_faults_that_come_while_a_read_fails_ask_the_store_themselves(void) {
  fault_while_read(64 * KIB, true, ENXIO);
  fault_while_read(4 * KIB, false, ENXIO);
}

static void test_standby_that_the_store_refuses_raises_nothing_until_it_is_touched(void) {
  rig r;
  open_rig(&r, 64 * KIB, true);
  uint64_t first = first_chunk(&r), n = pages_of(&r);
  rig_fail(&r, 1u << UM_OP_READ, ENXIO, UINT64_MAX, 0);
  ask(&r, first, n, false);
  wait_asked(&r);
  CHECK_EQUAL(rig_state(&r, first), UM_PAGE_ABSENT);
  CHECK_EQUAL(rig_errors(&r), 0);
  CHECK_EQUAL(um_region_tainted(r.region), 0);
  CHECK_EQUAL(rig_stats(&r).fill_errors, 0);
  CHECK_EQUAL(rig_read(&r, (first + 3) * 64 * KIB), UINT64_MAX);
  CHECK_EQUAL(rig_errors(&r), 1);
  for (uint64_t page = first; page < first + n; page++)
    CHECK_EQUAL(rig_state(&r, page), page == first + 3 ? UM_PAGE_FAILED : UM_PAGE_ABSENT);
  rig_heal(&r);
  ask(&r, first, n, false); /* not all absent: what is, is placed */
  wait_asked(&r);
  CHECK_EQUAL(um_region_retry(r.region), 1);
  check_chunk(&r, first);
  rig_close(&r);
  rig_end(&r);
}

/* At both ends of a region runs are shorter than a chunk: they are placed at once. */
static void read_ends(uint64_t skew, uint64_t page_size, bool read_only) {
  rig r;
  rig_open(&r, &(rig_options){.size = 6 * MIB + 300 * KIB + 24,
                              .page_size = page_size,
                              .memory = MEMORY,
                              .fillers = 3,
                              .skew = skew,
                              .read_only = read_only});
  uint64_t count = r.region->page_count, n = pages_of(&r);
  for (uint64_t page = 0; page < count;) {
    int64_t start = r.region->chunks ? (int64_t)um_chunk_first(r.region, page) : (int64_t)page;
    uint64_t end = um_min((uint64_t)(start + (int64_t)n), count);
    ask(&r, page, end - page, false);
    page = end;
  }
  wait_asked(&r);
  uint64_t whole = 0;
  for (uint64_t page = 0; page < count; page++) {
    int state = rig_state(&r, page);
    CHECK(state == UM_PAGE_STANDBY || state == UM_PAGE_CLEAN);
    whole += state == UM_PAGE_STANDBY;
  }
  CHECK_EQUAL(whole % n, 0);
  uint64_t before = (UM_CHUNK - skew / page_size * page_size) % UM_CHUNK; /* in pages, wherever these begin */
  CHECK_EQUAL(whole * page_size, r.region->chunks ? (r.mapped - before) / UM_CHUNK * UM_CHUNK : 0);
  for (uint64_t offset = 0; offset + 8 <= r.size; offset += 8)
    CHECK_EQUAL(rig_read(&r, offset), rig_word(offset));
  if (!read_only)
    for (uint64_t offset = 0; offset + 8 <= r.size; offset += 8 * KIB)
      rig_write(&r, offset, 3 + offset);
  rig_close(&r);
  if (!read_only)
    for (uint64_t offset = 0; offset + 8 <= r.size; offset += 8 * KIB)
      CHECK_EQUAL(rig_file_word(&r, offset), 3 + offset);
  rig_end(&r);
}

static void test_standby_ends_of_a_region_that_is_not_aligned_are_right(void) {
  read_ends(UM_CHUNK, 64 * KIB, true);
  read_ends(64 * KIB, 64 * KIB, true);
  read_ends(4 * KIB, 4 * KIB, true);
  read_ends(1 * MIB, 64 * KIB, false);
  read_ends(UM_CHUNK - 4 * KIB, 4 * KIB, false);
  read_ends(12 * KIB, 64 * KIB, false); /* pages across the kernel's huge pages */
}

static void test_standby_dropped_in_part_by_its_user_comes_back(void) {
  rig r;
  open_rig(&r, 64 * KIB, true);
  uint64_t first = first_chunk(&r), at = first * 64 * KIB;
  ask_and_wait(&r, first);
  rig_drop(&r, at, UM_CHUNK); /* nothing is mapped: nothing happens */
  rig_read(&r, at);
  rig_drop(&r, at + 5 * 64 * KIB, 64 * KIB);
  rig_drop(&r, at + 9 * 64 * KIB + 4 * KIB, 8 * KIB); /* a part of a page */
  check_chunk(&r, first);
  rig_drop(&r, at, UM_CHUNK);
  CHECK_EQUAL(rig_evict(&r, 0, r.size), 0);
  check_chunk(&r, first);
  CHECK_EQUAL(rig_errors(&r), 0);
  rig_close(&r);
  rig_end(&r);
}

/* The kernel moves nothing between a locked mapping and one that is not: it is copied, and unlocked to be evicted. */
static void lock_and_read(bool read_only, bool part) {
  rig r;
  open_rig(&r, 64 * KIB, read_only);
  uint64_t first = first_chunk(&r), at = first * 64 * KIB;
  ask_and_wait(&r, first);
  CHECK_EQUAL(mlock2(r.bytes + (part ? at + MIB : 0), part ? 64 * KIB : r.size, MLOCK_ONFAULT), 0);
  check_chunk(&r, first);
  CHECK(latch_calls(r.latch, UM_OP_READ) <= (part ? 3 : 1)); /* a copy cannot cross two mappings either */
  if (!read_only)
    rig_write(&r, at + MIB, 1);
  CHECK_EQUAL(rig_evict(&r, 0, r.size), 0);
  CHECK_EQUAL(rig_stats(&r).resident, 0);
  CHECK_EQUAL(rig_read(&r, at + MIB), read_only ? rig_word(at + MIB) : 1);
  rig_close(&r);
  rig_end(&r);
}

static void test_standby_of_a_locked_region_is_copied(void) {
  if (SLOWER > 1) {
    printf("  %s skipped: under sanitizers munlock does nothing\n", __func__);
    return;
  }
  lock_and_read(true, false);
  lock_and_read(false, false);
  lock_and_read(true, true);
}

typedef struct crowd {
  rig *a, *b;
  _Atomic bool stop;
  _Atomic uint64_t turns;
} crowd;

static void *touch_on(void *argument) {
  crowd *c = argument;
  uint64_t random = 1 + (uint64_t)(uintptr_t)pthread_self() % 1000003;
  while (!atomic_load(&c->stop)) {
    uint64_t offset = rig_random(&random) % c->a->size / 8 * 8;
    CHECK_EQUAL(rig_read(c->a, offset), rig_word(offset));
    atomic_fetch_add(&c->turns, 1);
  }
  return NULL;
}

static void *press_on(void *argument) {
  crowd *c = argument;
  while (!atomic_load(&c->stop))
    for (uint64_t offset = 0; offset < c->b->size && !atomic_load(&c->stop); offset += 64 * KIB)
      rig_read(c->b, offset);
  return NULL;
}

static void *evict_on(void *argument) {
  crowd *c = argument;
  uint64_t random = 7;
  while (!atomic_load(&c->stop)) {
    CHECK_EQUAL(rig_evict(c->a, rig_random(&random) % c->a->size / UM_CHUNK * UM_CHUNK, 3 * UM_CHUNK), 0);
    sleep_ms(1);
  }
  return NULL;
}

/* Reading ahead, touching what it read, evicting it and giving its memory to another region, all at once. */
static void reclaim_against_fault(uint64_t page_size, bool read_only) {
  rig a, b;
  um_pager *pager = rig_pager(MEMORY, 4, 2, 10000);
  rig_open(&a, &(rig_options){
                   .size = 64 * MIB, .page_size = page_size, .skew = UM_CHUNK, .read_only = read_only, .pager = pager});
  rig_open(&b,
           &(rig_options){.size = 96 * MIB, .page_size = 64 * KIB, .sparse = true, .read_only = true, .pager = pager});
  crowd c = {.a = &a, .b = &b};
  pthread_t threads[5];
  void *(*runs[])(void *) = {touch_on, touch_on, touch_on, press_on, evict_on};
  for (int i = 0; i < 5; i++)
    threads[i] = rig_thread(runs[i], &c);
  uint64_t random = 99;
  for (uint64_t end = now_ns() + 500000000; now_ns() < end; sleep_ms(1))
    ask(&a, first_chunk(&a) + rig_random(&random) % (a.size / UM_CHUNK - 1) * pages_of(&a), pages_of(&a), false);
  atomic_store(&c.stop, true);
  for (int i = 0; i < 5; i++)
    pthread_join(threads[i], NULL);
  wait_asked(&a);
  CHECK_EQUAL(rig_evict(&a, 0, a.size), 0);
  um_stats s = rig_stats(&a);
  CHECK(atomic_load(&c.turns) > 100 && s.readahead_used > 0);
  CHECK(s.readahead >= s.readahead_used + s.readahead_wasted); /* those placed at once are neither */
  CHECK(s.peak_used <= s.memory);
  CHECK_EQUAL(rig_errors(&a), 0);
  rig_close(&a);
  rig_end(&a);
  rig_close(&b);
  rig_end(&b);
  CHECK_EQUAL(um_pager_destroy(pager), 0);
}

static void test_standby_reclaimed_against_faults_shows_the_stores_bytes(void) {
  reclaim_against_fault(64 * KIB, true);
  reclaim_against_fault(4 * KIB, true);
  reclaim_against_fault(64 * KIB, false);
  reclaim_against_fault(2 * MIB, true);
}

/* As an evictor does that picks a run to wait; inside the gate from here on. */
static um_frame_id pick(const rig *r, uint64_t first) {
  CHECK(um_gate_enter(r->region));
  um_frame_id id = um_word_frame(um_page_load(r->region, first));
  CHECK_EQUAL(um_run_take(r->region, first, pages_of(r), UM_IN(UM_CLEAN), id, UM_EVICTING), pages_of(r));
  pthread_mutex_lock(&r->pager->frames_lock);
  um_policy_standby(r->pager->policy, id);
  pthread_mutex_unlock(&r->pager->frames_lock);
  return id;
}

static void move_out(const rig *r, uint64_t first, um_frame_id id) {
  um_leave_chunk(r->region, first, id);
  um_gate_leave(r->region);
  CHECK_EQUAL(rig_state(r, first), UM_PAGE_STANDBY);
}

static um_frame_id take_standby(const rig *r, bool *moving) {
  pthread_mutex_lock(&r->pager->frames_lock);
  um_frame_id id = um_standby_take(r->pager, UM_RECLAIM_FULL, moving);
  pthread_mutex_unlock(&r->pager->frames_lock);
  return id;
}

/* Race: making room against moving out. Two evictors, and the one is not done with the run that is to leave first. */
static void test_standby_that_comes_after_one_being_moved_out_is_not_taken_in_its_place(void) {
  rig r;
  bool moving;
  rig_policy = UM_POLICY_SECOND_CHANCE;
  open_rig(&r, 64 * KIB, true);
  if (r.region->moves) {
    uint64_t first = first_chunk(&r), second = first + pages_of(&r), third = second + pages_of(&r);
    for (uint64_t chunk = first; chunk <= third; chunk += pages_of(&r)) {
      ask_and_wait(&r, chunk);
      check_chunk(&r, chunk);
    }
    um_frame_id one = pick(&r, first), two = pick(&r, second);
    move_out(&r, second, two);
    CHECK_EQUAL(take_standby(&r, &moving), UM_NIL);
    CHECK(moving);
    move_out(&r, first, one);
    CHECK_EQUAL(take_standby(&r, &moving), one);
    CHECK(!moving);
    CHECK_EQUAL(um_standby_give_up(r.pager, &one, 1), UM_CHUNK);
    CHECK_EQUAL(rig_state(&r, first), UM_PAGE_ABSENT);
    check_chunk(&r, first);
    check_chunk(&r, second);
  }
  rig_close(&r);
  rig_end(&r);
  rig_policy = UM_POLICY_AUTO;
}

int main(void) {
  watchdog_start(20);
  RUN(test_standby_touched_in_a_region_that_is_only_read_needs_no_store);
  RUN(test_standby_touched_in_a_region_that_is_written_sees_every_write);
  RUN(test_standby_where_pages_begin_anywhere_is_taken_back_whole);
  RUN(test_standby_evicted_by_its_owner_is_read_again);
  RUN(test_standby_left_at_close_is_given_back);
  RUN(test_standby_does_not_let_the_gate_close_while_it_is_being_read);
  RUN(test_standby_faults_that_come_while_it_is_being_read_are_served);
  RUN(test_standby_faults_that_come_while_a_read_fails_ask_the_store_themselves);
  RUN(test_standby_that_the_store_refuses_raises_nothing_until_it_is_touched);
  RUN(test_standby_ends_of_a_region_that_is_not_aligned_are_right);
  RUN(test_standby_dropped_in_part_by_its_user_comes_back);
  RUN(test_standby_of_a_locked_region_is_copied);
  RUN(test_standby_that_comes_after_one_being_moved_out_is_not_taken_in_its_place);
  RUN(test_standby_reclaimed_against_faults_shows_the_stores_bytes);
  watchdog_pet("the end");
  return 0;
}
