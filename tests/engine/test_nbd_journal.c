/* The journal of the NBD store: what is kept, until when, in which order it comes back, and how much of it there is. */
#include "check.h"
#include "nbd_journal.h"
#include "nbd_protocol.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

#define BLOCK 4096u
#define ARENA (64u << 10)
#define PIECE (ARENA / UM_NBD_JOURNAL_PIECES)

static um_nbd_journal *make(void) {
  um_nbd_journal *journal = um_nbd_journal_make(ARENA, BLOCK, true);
  CHECK(journal);
  return journal;
}

static um_nbd_journal_counts count(um_nbd_journal *journal) {
  um_nbd_journal_counts counts;
  um_nbd_journal_count(journal, &counts);
  return counts;
}

static int try_add(um_nbd_journal *journal, uint64_t offset, uint32_t length, int value, um_nbd_entry **entry) {
  uint8_t bytes[PIECE];
  memset(bytes, value, length);
  return um_nbd_journal_add(journal, UM_NBD_CMD_WRITE, 0, offset, bytes, length, entry);
}

static um_nbd_entry *add(um_nbd_journal *journal, uint64_t offset, uint32_t length, int value) {
  um_nbd_entry *entry = NULL;
  CHECK_EQUAL(try_add(journal, offset, length, value, &entry), 0);
  return entry;
}

static um_nbd_entry *keep(um_nbd_journal *journal, uint64_t offset, uint32_t length, int value) {
  um_nbd_entry *entry = add(journal, offset, length, value);
  um_nbd_journal_acknowledge(journal, entry);
  return entry;
}

static void flush(um_nbd_journal *journal) {
  CHECK(um_nbd_journal_flushed(journal, um_nbd_journal_mark(journal)));
}

static void test_flush_lets_go_of_what_was_acknowledged_before_it(void) {
  um_nbd_journal *journal = make();
  keep(journal, 0, BLOCK, 1);
  um_nbd_entry *flying = add(journal, BLOCK, BLOCK, 2);
  uint64_t mark = um_nbd_journal_mark(journal);
  um_nbd_journal_acknowledge(journal, flying); /* after the FLUSH was sent: it need not cover this */
  CHECK_EQUAL(count(journal).kept, 2);
  CHECK(um_nbd_journal_flushed(journal, mark));
  CHECK_EQUAL(count(journal).kept, 1);
  CHECK_EQUAL(count(journal).bytes, BLOCK);
  CHECK_EQUAL(flying->state, UM_NBD_ENTRY_KEPT);
  flush(journal);
  CHECK_EQUAL(count(journal).bytes, 0);
  um_nbd_journal_free(journal);
}

static void test_room_comes_back_in_order_and_bytes_stay_whole(void) {
  um_nbd_journal *journal = make();
  CHECK_EQUAL(um_nbd_journal_capacity(journal), PIECE);
  um_nbd_entry *first = add(journal, 0, PIECE, 1), *entry;
  for (uint32_t i = 1; i < 4; i++)
    keep(journal, i * PIECE, PIECE, (int)i + 1);
  CHECK_EQUAL(try_add(journal, 9 * PIECE, BLOCK, 9, &entry), -ENOBUFS);
  flush(journal); /* the oldest still flies: what is behind it cannot be used yet */
  CHECK_EQUAL(try_add(journal, 9 * PIECE, BLOCK, 9, &entry), -ENOBUFS);
  CHECK_EQUAL(first->bytes[PIECE - 1], 1);
  um_nbd_journal_acknowledge(journal, first);
  flush(journal);
  CHECK_EQUAL(count(journal).bytes, 0);
  /* Round and round, by a length that never fits the arena's end. */
  uint8_t wanted[3 * BLOCK];
  for (int turn = 0; turn < 100; turn++) {
    entry = add(journal, 0, sizeof wanted, turn);
    memset(wanted, turn, sizeof wanted);
    CHECK(memcmp(entry->bytes, wanted, sizeof wanted) == 0);
    um_nbd_journal_acknowledge(journal, entry);
    flush(journal);
  }
  um_nbd_journal_free(journal);
}

static void test_small_writes_find_no_entry_before_they_overrun_the_ring(void) {
  um_nbd_journal *journal = um_nbd_journal_make(ARENA, 512, true);
  um_nbd_entry *entry;
  uint32_t added = 0;
  while (try_add(journal, added * 16, 16, 1, &entry) == 0) {
    um_nbd_journal_acknowledge(journal, entry);
    added++;
  }
  CHECK(added >= ARENA / 4096 && added < ARENA / 16);
  flush(journal);
  keep(journal, 0, 16, 1);
  um_nbd_journal_free(journal);
}

static void test_overlap_of_what_has_not_ended_is_refused(void) {
  um_nbd_journal *journal = make();
  um_nbd_entry *entry, *flying = add(journal, BLOCK, BLOCK, 1);
  CHECK_EQUAL(try_add(journal, 0, 2 * BLOCK, 2, &entry), -EBUSY);
  CHECK_EQUAL(try_add(journal, 2 * BLOCK - 1, 1, 2, &entry), -EBUSY);
  um_nbd_journal_remove(journal, add(journal, 0, BLOCK, 2));
  um_nbd_journal_remove(journal, add(journal, 2 * BLOCK, BLOCK, 2));
  um_nbd_journal_acknowledge(journal, flying);
  CHECK(!um_nbd_journal_overlaps(journal, 0, 3 * BLOCK, true));
  um_nbd_entry *second = add(journal, BLOCK, BLOCK, 2);
  CHECK(um_nbd_journal_overlaps(journal, BLOCK, 1, true));
  CHECK(!um_nbd_journal_overlaps(journal, BLOCK, 1, false)); /* whoever reads does not mind */
  um_nbd_journal_lose(journal, second);
  um_nbd_journal_doubt(journal);
  CHECK(um_nbd_journal_overlaps(journal, BLOCK, 1, false));
  CHECK_EQUAL(try_add(journal, BLOCK, 1, 2, &entry), -EBUSY);
  um_nbd_journal_abandon(journal, second);
  um_nbd_journal_free(journal);
}

static void test_doubt_gives_everything_kept_in_the_order_of_making(void) {
  um_nbd_journal *journal = make();
  for (int i = 0; i < 5; i++)
    keep(journal, (uint64_t)(i % 3) * BLOCK, BLOCK, i);
  um_nbd_journal_doubt(journal);
  CHECK_EQUAL(count(journal).due, 5);
  um_nbd_entry *due[8];
  CHECK_EQUAL(um_nbd_journal_due(journal, false, due, 8), 3); /* the fourth overlaps the first */
  for (int i = 0; i < 3; i++) {
    CHECK_EQUAL(due[i]->bytes[0], i);
    um_nbd_journal_mend(journal, due[i]);
  }
  CHECK_EQUAL(um_nbd_journal_due(journal, false, due, 8), 2);
  CHECK_EQUAL(due[0]->bytes[0], 3);
  CHECK_EQUAL(due[1]->bytes[0], 4);
  um_nbd_journal_free(journal);
}

/* 0 and 1 were acknowledged, U then lost in flight over a part of 1, 2 is elsewhere. Younger bytes must not come before
 * older ones that wait for the grace period. */
static void test_what_an_unsure_one_overlaps_waits_with_it(void) {
  um_nbd_journal *journal = make();
  keep(journal, 0, BLOCK, 0);
  keep(journal, BLOCK, 2 * BLOCK, 1);
  keep(journal, 2 * BLOCK, 2 * BLOCK, 2);
  um_nbd_entry *lost = add(journal, BLOCK, BLOCK, 3);
  keep(journal, 8 * BLOCK, BLOCK, 4);
  um_nbd_journal_lose(journal, lost);
  um_nbd_journal_doubt(journal);
  um_nbd_entry *due[8];
  CHECK_EQUAL(um_nbd_journal_due(journal, false, due, 8), 2);
  CHECK_EQUAL(due[0]->bytes[0], 0);
  CHECK_EQUAL(due[1]->bytes[0], 4);
  um_nbd_journal_mend(journal, due[0]);
  um_nbd_journal_mend(journal, due[1]);
  CHECK_EQUAL(um_nbd_journal_due(journal, false, due, 8), 0);
  CHECK_EQUAL(um_nbd_journal_due(journal, true, due, 8), 1);
  CHECK_EQUAL(due[0]->bytes[0], 1);
  um_nbd_journal_mend(journal, due[0]);
  CHECK_EQUAL(um_nbd_journal_due(journal, true, due, 8), 2); /* both overlapped that one, not each other */
  CHECK(due[0]->bytes[0] == 2 && due[1] == lost);
  um_nbd_journal_mend(journal, due[0]);
  um_nbd_journal_mend(journal, due[1]);
  int code = 1;
  CHECK_EQUAL(um_nbd_journal_settled(journal, lost, &code), 1);
  CHECK_EQUAL(code, 0);
  flush(journal);
  CHECK_EQUAL(count(journal).bytes, 0);
  um_nbd_journal_free(journal);
}

static void test_flush_that_was_under_way_when_one_failed_tells_nothing(void) {
  um_nbd_journal *journal = make();
  keep(journal, 0, BLOCK, 0);
  uint64_t before = um_nbd_journal_mark(journal);
  um_nbd_journal_distrust(journal);
  CHECK(!um_nbd_journal_flushed(journal, before));
  CHECK(!um_nbd_journal_flushed(journal, um_nbd_journal_mark(journal))); /* nor one that began before the doubt */
  um_nbd_journal_doubt(journal);
  CHECK_EQUAL(count(journal).due, 1);
  CHECK(um_nbd_journal_flushed(journal, um_nbd_journal_mark(journal))); /* covers nothing: it is still to be written */
  um_nbd_entry *due[1];
  CHECK_EQUAL(um_nbd_journal_due(journal, false, due, 1), 1);
  uint64_t early = um_nbd_journal_mark(journal);
  um_nbd_journal_mend(journal, due[0]);
  CHECK(um_nbd_journal_flushed(journal, early));
  CHECK_EQUAL(count(journal).kept, 1);
  flush(journal);
  CHECK_EQUAL(count(journal).kept, 0);
  um_nbd_journal_free(journal);
}

static void test_lost_write_keeps_its_place_until_its_caller_knows(void) {
  um_nbd_journal *journal = make();
  um_nbd_entry *lost = add(journal, 0, BLOCK, 1);
  um_nbd_journal_lose(journal, lost);
  um_nbd_journal_doubt(journal);
  int code = 1;
  CHECK_EQUAL(um_nbd_journal_settled(journal, lost, &code), 0);
  um_nbd_journal_mend(journal, lost);
  flush(journal);
  CHECK_EQUAL(lost->state, UM_NBD_ENTRY_GONE);
  CHECK_EQUAL(count(journal).bytes, BLOCK);
  CHECK_EQUAL(um_nbd_journal_settled(journal, lost, &code), 1);
  CHECK_EQUAL(code, 0);
  CHECK_EQUAL(count(journal).bytes, 0);
  um_nbd_journal_free(journal);
}

static void test_abandoned_write_is_still_written_again(void) {
  um_nbd_journal *journal = make();
  um_nbd_entry *lost = add(journal, 0, BLOCK, 1), *due[1];
  um_nbd_journal_lose(journal, lost);
  um_nbd_journal_abandon(journal, lost);
  um_nbd_journal_doubt(journal);
  CHECK_EQUAL(um_nbd_journal_due(journal, true, due, 1), 1);
  CHECK(due[0] == lost);
  um_nbd_journal_mend(journal, lost);
  flush(journal);
  CHECK_EQUAL(count(journal).bytes, 0);
  um_nbd_journal_free(journal);
}

static void test_refusal_ends_only_what_nobody_was_promised(void) {
  um_nbd_journal *journal = make();
  um_nbd_entry *kept = keep(journal, 0, BLOCK, 1), *lost = add(journal, BLOCK, BLOCK, 2);
  um_nbd_journal_lose(journal, lost);
  um_nbd_journal_doubt(journal);
  CHECK(!um_nbd_journal_give_up(journal, kept, -ENOSPC));
  CHECK(um_nbd_journal_give_up(journal, lost, -ENOSPC));
  int code = 0;
  CHECK_EQUAL(um_nbd_journal_settled(journal, lost, &code), 1);
  CHECK_EQUAL(code, -ENOSPC);
  um_nbd_journal_unsure(journal, kept); /* lost while it was being written again: no less promised */
  CHECK(!um_nbd_journal_give_up(journal, kept, -ENOSPC));
  um_nbd_journal_free(journal);
}

static void test_server_without_flush_is_believed_at_once(void) {
  um_nbd_journal *journal = um_nbd_journal_make(ARENA, BLOCK, false);
  keep(journal, 0, BLOCK, 1);
  CHECK_EQUAL(count(journal).bytes, 0);
  um_nbd_entry *lost = add(journal, 0, BLOCK, 2), *due[1];
  um_nbd_journal_lose(journal, lost);
  um_nbd_journal_doubt(journal);
  CHECK_EQUAL(um_nbd_journal_due(journal, true, due, 1), 1);
  um_nbd_journal_mend(journal, lost);
  int code;
  CHECK_EQUAL(um_nbd_journal_settled(journal, lost, &code), 1);
  CHECK_EQUAL(count(journal).bytes, 0);
  um_nbd_journal_free(journal);
}

static void test_zeroes_take_no_room_and_discards_are_not_kept(void) {
  um_nbd_journal *journal = make();
  um_nbd_entry *zeroes, *trim;
  CHECK_EQUAL(um_nbd_journal_add(journal, UM_NBD_CMD_WRITE_ZEROES, UM_NBD_CMD_FLAG_NO_HOLE, 0, NULL, 1u << 31, &zeroes),
              0);
  CHECK_EQUAL(um_nbd_journal_add(journal, UM_NBD_CMD_TRIM, 0, 1ull << 40, NULL, BLOCK, &trim), 0);
  CHECK_EQUAL(count(journal).bytes, 0);
  um_nbd_journal_acknowledge(journal, zeroes);
  um_nbd_journal_acknowledge(journal, trim);
  CHECK_EQUAL(count(journal).kept, 1);
  um_nbd_journal_doubt(journal);
  um_nbd_entry *due[2];
  CHECK_EQUAL(um_nbd_journal_due(journal, true, due, 2), 1);
  CHECK_EQUAL(due[0]->flags, UM_NBD_CMD_FLAG_NO_HOLE);
  um_nbd_journal_free(journal);
}

static void test_resize_tells_all_memory_and_waits_for_an_empty_journal(void) {
  um_nbd_journal *journal = um_nbd_journal_make(UM_NBD_JOURNAL_DEFAULT, BLOCK, true);
  CHECK_EQUAL(um_nbd_journal_capacity(journal), UM_NBD_JOURNAL_DEFAULT / 4);
  for (uint64_t bytes = 1 << 20; bytes <= 64 << 20; bytes += 12345678)
    CHECK(um_nbd_journal_resize(journal, bytes) <= bytes && um_nbd_journal_resize(journal, bytes) > bytes * 9 / 10);
  CHECK(um_nbd_journal_resize(journal, UINT64_MAX) < UM_NBD_JOURNAL_MAX * 11ull / 10);
  uint64_t least = um_nbd_journal_resize(journal, 0);
  CHECK(least >= UM_NBD_JOURNAL_MIN && least < 2 * UM_NBD_JOURNAL_MIN);
  keep(journal, 0, BLOCK, 1);
  CHECK_EQUAL(um_nbd_journal_resize(journal, 1 << 20), least);
  flush(journal);
  CHECK(um_nbd_journal_resize(journal, 1 << 20) > least);
  um_nbd_journal_free(journal);
  journal = um_nbd_journal_make(0, 64 << 10, true);
  CHECK_EQUAL(um_nbd_journal_capacity(journal), 64 << 10);
  um_nbd_journal_free(journal);
}

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void *acknowledge_later(void *context) {
  nanosleep(&(struct timespec){0, 50000000}, NULL);
  void **pair = context;
  um_nbd_journal_acknowledge(pair[0], pair[1]);
  return NULL;
}

static void test_wait_ends_when_what_is_in_the_way_ended(void) {
  um_nbd_journal *journal = make();
  um_nbd_entry *flying = add(journal, 0, BLOCK, 1);
  uint64_t start = now_ns();
  um_nbd_journal_wait(journal, 0, BLOCK, start + 20000000); /* its deadline, while it flies */
  CHECK(now_ns() >= start + 20000000);
  pthread_t thread;
  pthread_create(&thread, NULL, acknowledge_later, (void *[]){journal, flying});
  start = now_ns();
  um_nbd_journal_wait(journal, 0, BLOCK, UINT64_MAX);
  CHECK(!um_nbd_journal_overlaps(journal, 0, BLOCK, true)); /* and not after its second */
  pthread_join(thread, NULL);
  um_nbd_journal_free(journal);
}

static void test_wait_for_room_ends_where_only_a_flush_makes_some(void) {
  um_nbd_journal *journal = make();
  um_nbd_entry *flying = add(journal, 0, PIECE, 1);
  for (uint32_t i = 1; i < 4; i++)
    keep(journal, i * PIECE, PIECE, 1);
  pthread_t thread;
  pthread_create(&thread, NULL, acknowledge_later, (void *[]){journal, flying});
  uint64_t start = now_ns();
  um_nbd_journal_wait(journal, 9 * PIECE, PIECE, UINT64_MAX);
  CHECK_EQUAL(count(journal).flying, 0);
  CHECK(now_ns() < start + 900000000);
  pthread_join(thread, NULL);
  um_nbd_journal_free(journal);
}

/* A server with a cache: writes reach `cache`, FLUSH copies that to `disk`. It dies and keeps any part of its cache,
 * and a write in flight may reach it, or its successor within the grace period. Against what the callers were told. */
#define MODEL_BLOCKS 24u
#define MODEL_FLYING 4u

typedef struct model {
  uint8_t cache[MODEL_BLOCKS], disk[MODEL_BLOCKS]; /* a byte a block */
  uint8_t wanted[MODEL_BLOCKS];                    /* acknowledged, or written again later */
  um_nbd_entry *flying[MODEL_FLYING];
  unsigned seed;
} model;

static uint32_t chance(model *m, uint32_t below) {
  m->seed = m->seed * 1103515245u + 12345u;
  return (m->seed >> 8) % below;
}

static void serve(uint8_t *image, const um_nbd_entry *entry) {
  for (uint64_t i = 0; i < entry->length / BLOCK; i++)
    image[entry->offset / BLOCK + i] = entry->type == UM_NBD_CMD_WRITE ? entry->bytes[i * BLOCK] : 0;
}

static void crash(model *m, um_nbd_journal *journal) {
  um_nbd_entry *late[MODEL_FLYING] = {0}, *lost[MODEL_FLYING] = {0};
  for (uint32_t i = 0; i < MODEL_BLOCKS; i++) /* what it had not flushed survives or not, each block by itself */
    m->cache[i] = chance(m, 2) ? m->disk[i] : m->cache[i];
  for (uint32_t i = 0; i < MODEL_FLYING; i++) {
    um_nbd_entry *entry = m->flying[i];
    m->flying[i] = NULL;
    if (!entry)
      continue;
    if (chance(m, 2))
      serve(m->cache, entry);
    else if (chance(m, 2))
      late[i] = entry;
    um_nbd_journal_lose(journal, entry);
    lost[i] = entry;
    if (chance(m, 3) == 0) { /* its caller's deadline passes */
      um_nbd_journal_abandon(journal, entry);
      lost[i] = NULL;
    }
  }
  memcpy(m->disk, m->cache, sizeof m->disk);
  um_nbd_journal_doubt(journal);
  um_nbd_entry *due[3];
  uint32_t found;
  while ((found = um_nbd_journal_due(journal, false, due, 3)) > 0)
    for (uint32_t i = 0; i < found; i++) {
      serve(m->cache, due[i]);
      um_nbd_journal_mend(journal, due[i]);
    }
  for (uint32_t i = 0; i < MODEL_FLYING; i++)
    if (late[i])
      serve(m->cache, late[i]); /* the last moment of the grace period */
  while ((found = um_nbd_journal_due(journal, true, due, 3)) > 0)
    for (uint32_t i = 0; i < found; i++) {
      if (due[i]->state == UM_NBD_ENTRY_UNSURE && !due[i]->owned)
        serve(m->wanted, due[i]);
      serve(m->cache, due[i]);
      um_nbd_journal_mend(journal, due[i]);
    }
  for (uint32_t i = 0; i < MODEL_FLYING; i++) {
    int code = 1;
    if (!lost[i])
      continue;
    serve(m->wanted, lost[i]);
    CHECK_EQUAL(um_nbd_journal_settled(journal, lost[i], &code), 1);
    CHECK_EQUAL(code, 0);
  }
  CHECK_EQUAL(count(journal).due + count(journal).unsure, 0);
}

static void flush_model(model *m, um_nbd_journal *journal) {
  uint64_t mark = um_nbd_journal_mark(journal);
  memcpy(m->disk, m->cache, sizeof m->disk);
  CHECK(um_nbd_journal_flushed(journal, mark));
}

static void test_random_crashes_lose_nothing_acknowledged(void) {
  for (unsigned seed = 1; seed <= 300; seed++) {
    model m = {.seed = seed};
    um_nbd_journal *journal = make();
    for (int step = 0; step < 200; step++) {
      uint32_t slot = chance(&m, MODEL_FLYING), what = chance(&m, 20);
      um_nbd_entry *entry = m.flying[slot];
      if (what == 0) {
        crash(&m, journal);
      } else if (what < 3) {
        flush_model(&m, journal);
      } else if (entry) {
        serve(m.cache, entry);
        serve(m.wanted, entry);
        um_nbd_journal_acknowledge(journal, entry);
        m.flying[slot] = NULL;
      } else {
        uint32_t first = chance(&m, MODEL_BLOCKS - 3), length = (1 + chance(&m, 3)) * BLOCK;
        if (chance(&m, 8) == 0)
          (void)um_nbd_journal_add(journal, UM_NBD_CMD_WRITE_ZEROES, 0, first * BLOCK, NULL, length, &m.flying[slot]);
        else
          (void)try_add(journal, first * BLOCK, length, 1 + (int)chance(&m, 255), &m.flying[slot]);
      }
    }
    crash(&m, journal);
    for (uint32_t i = 0; i < MODEL_BLOCKS; i++)
      CHECK(m.cache[i] == m.wanted[i]);
    flush_model(&m, journal);
    CHECK_EQUAL(count(journal).bytes, 0);
    um_nbd_journal_free(journal);
  }
}

#define THREADS 4u
#define TURNS 3000u

static void *write_and_flush(void *context) {
  um_nbd_journal *journal = context;
  for (uint32_t turn = 0; turn < TURNS; turn++) {
    uint64_t offset = (uint64_t)(turn % 7) * BLOCK; /* the same for all threads: they are in each other's way */
    um_nbd_entry *entry;
    int result = try_add(journal, offset, BLOCK, (int)turn, &entry);
    if (result == -EBUSY) {
      um_nbd_journal_wait(journal, offset, BLOCK, UINT64_MAX);
    } else if (result == -ENOBUFS) {
      flush(journal);
    } else {
      CHECK_EQUAL(entry->bytes[BLOCK - 1], (uint8_t)turn);
      um_nbd_journal_acknowledge(journal, entry);
    }
  }
  return NULL;
}

static void test_threads_share_a_journal(void) {
  um_nbd_journal *journal = make();
  pthread_t threads[THREADS];
  for (uint32_t i = 0; i < THREADS; i++)
    CHECK_EQUAL(pthread_create(&threads[i], NULL, write_and_flush, journal), 0);
  for (uint32_t i = 0; i < THREADS; i++)
    pthread_join(threads[i], NULL);
  flush(journal);
  CHECK_EQUAL(count(journal).bytes, 0);
  CHECK_EQUAL(count(journal).flying, 0);
  um_nbd_journal_free(journal);
}

int main(void) {
  test_flush_lets_go_of_what_was_acknowledged_before_it();
  test_room_comes_back_in_order_and_bytes_stay_whole();
  test_small_writes_find_no_entry_before_they_overrun_the_ring();
  test_overlap_of_what_has_not_ended_is_refused();
  test_doubt_gives_everything_kept_in_the_order_of_making();
  test_what_an_unsure_one_overlaps_waits_with_it();
  test_flush_that_was_under_way_when_one_failed_tells_nothing();
  test_lost_write_keeps_its_place_until_its_caller_knows();
  test_abandoned_write_is_still_written_again();
  test_refusal_ends_only_what_nobody_was_promised();
  test_server_without_flush_is_believed_at_once();
  test_zeroes_take_no_room_and_discards_are_not_kept();
  test_resize_tells_all_memory_and_waits_for_an_empty_journal();
  test_wait_ends_when_what_is_in_the_way_ended();
  test_wait_for_room_ends_where_only_a_flush_makes_some();
  test_random_crashes_lose_nothing_acknowledged();
  test_threads_share_a_journal();
  return 0;
}
