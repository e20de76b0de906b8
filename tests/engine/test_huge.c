/* Chunks are huge pages and stay so on their way into a region and out again, whatever faults meanwhile. */
#define _GNU_SOURCE
#include "huge_pages.h"
#include "pool.h"
#include "rig.h"
#include "uffd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB (1024ull << 10)
#define SIZE (96 * MIB)

static rig_options streaming(bool read_only, uint64_t memory) {
  return (rig_options){.size = SIZE,
                       .page_size = 64 << 10,
                       .memory = memory,
                       .fillers = 4,
                       .evictors = 2,
                       .readahead = true,
                       .skew = UM_CHUNK,
                       .read_only = read_only};
}

static void *read_all(void *rig_) {
  const rig *r = rig_;
  for (uint64_t at = 0; at < r->size; at += 4096)
    CHECK_EQUAL(rig_read(r, at), rig_word(at));
  return NULL;
}

static void test_huge_stream_that_reads_maps_huge_pages(void) {
  rig r;
  rig_options o = streaming(true, 2 * SIZE);
  rig_open(&r, &o);
  atomic_store(&r.pager->pool.dear_ns, UINT64_MAX); /* whatever they cost */
  if (r.region->moves && has_huge_pages(SIZE)) {
    read_all(&r);
    CHECK(huge_bytes((uintptr_t)r.bytes, (uintptr_t)r.bytes + r.size) >= r.size / 2); /* all but the stream's start */
  }
  rig_close(&r);
  rig_end(&r);
}

/* The region's mapping and the pool's may be one. */
static uint64_t huge_bytes_of(const rig *r) {
  uintptr_t region = (uintptr_t)r->bytes, pool = r->pager->pool.address;
  return huge_bytes(um_min(region, pool), um_max(region + r->size, pool + r->pager->pool.mapped));
}

/* Race: fault against the end of reading ahead. Woken before its run is in place a reader would fault again, and make a
 * table where the huge page was to go, which is cut up then. No huge page is made any more once the stream runs. */
static void test_huge_stream_whose_reader_waits_for_each_run_keeps_huge_pages(void) {
  rig r;
  rig_options o = streaming(true, SIZE);
  o.size = 4096 * MIB;
  o.sparse = true;
  rig_open(&r, &o);
  um_pool *pool = &r.pager->pool;
  atomic_store(&pool->dear_ns, UINT64_MAX);
  atomic_store(&r.pager->collapse_age_ns, UINT64_MAX / 2);
  if (r.region->moves && has_huge_pages(SIZE)) {
    for (uint64_t at = 0; at < r.size; at += 64 << 10) {
      CHECK_EQUAL(rig_read(&r, at), 0);
      if (at == 2 * SIZE) {
        CHECK(huge_bytes_of(&r) >= SIZE / 4 * 3);
        atomic_store(&pool->dear_ns, 0);
        atomic_store(&pool->saving_ns, 0);
        atomic_store(&pool->saved_ns, 0);
      }
    }
    CHECK(huge_bytes_of(&r) >= SIZE / 4 * 3);
  }
  rig_close(&r);
  rig_end(&r);
}

/* `fillers`: where they are many one that has nothing to do makes them. */
static void save_up(uint32_t fillers) {
  rig r;
  rig_options o = streaming(true, SIZE / 4 * 3);
  o.fillers = fillers;
  rig_policy = UM_POLICY_FIFO; /* all memory goes round */
  rig_open(&r, &o);
  atomic_store(&r.pager->pool.dear_ns, 0);
  atomic_store(&r.pager->collapse_age_ns, UINT64_MAX / 2); /* which would make some, too */
  if (r.region->moves && has_huge_pages(SIZE)) {
    atomic_store(&r.pager->pool.saving_ns, 100); /* less than any machine makes one for */
    read_all(&r);
    CHECK(huge_bytes_of(&r) <= SIZE / 8);
    atomic_store(&r.pager->pool.saving_ns, 1000000);
    for (uint64_t end = now_ns() + 20000000000ull; huge_bytes_of(&r) < SIZE / 4;) {
      CHECK(now_ns() < end);
      read_all(&r);
    }
  }
  rig_close(&r);
  rig_end(&r);
  rig_policy = UM_POLICY_AUTO;
}

static void test_huge_pages_that_are_dear_are_saved_up_for(void) {
  save_up(4);
  save_up(2 * UM_MANY_FILLERS);
}

static void test_huge_chunks_are_used_first_and_small_ones_given_back_first(void) {
  rig r;
  rig_options o = streaming(true, 2 * SIZE);
  rig_open(&r, &o);
  um_pager *p = r.pager;
  if (r.region->moves && has_huge_pages(SIZE)) {
    atomic_store(&p->pool.dear_ns, UINT64_MAX);
    uint32_t huge = um_pool_take_new(p);
    atomic_store(&p->pool.dear_ns, 0);
    atomic_store(&p->pool.saved_ns, 0);
    uint32_t small = um_pool_take_new(p), other = um_pool_take_new(p);
    CHECK(huge && small && other);
    CHECK(um_uffd_is_huge(p->pagemap, um_pool_address(p, huge)));
    CHECK(!um_uffd_is_huge(p->pagemap, um_pool_address(p, small)));
    um_pool_put_full(p, huge);
    um_pool_put_full(p, small);
    um_pool_put_full(p, other);
    CHECK_EQUAL(um_pool_take_idle(p), huge);
    um_pool_put_full(p, huge);
    CHECK(um_pool_trim(p));
    CHECK_EQUAL(um_pool_take_full(p), huge);
    CHECK_EQUAL(um_pool_take_idle(p), small);
    um_pool_put_full(p, huge);
    um_pool_put_full(p, small);
  }
  rig_close(&r);
  rig_end(&r);
}

/* Race: a chunk comes free when a filler has just found none. It is not given back to the kernel to make another. */
static void test_huge_chunk_that_came_free_stays_for_who_wants_one(void) {
  rig r;
  rig_options o = streaming(true, 2 * SIZE);
  rig_open(&r, &o);
  um_pager *p = r.pager;
  uint32_t chunk = um_pool_take_new(p);
  CHECK(chunk);
  um_pool_put_full(p, chunk);
  CHECK(!um_memory_make_chunk(p, true) && !um_memory_make_chunk(p, false)); /* nothing is resident */
  CHECK_EQUAL(atomic_load(&p->pool.idle), UM_CHUNK);
  CHECK(um_memory_make(p));
  CHECK_EQUAL(atomic_load(&p->pool.idle), 0);
  rig_close(&r);
  rig_end(&r);
}

/* A reader of `to`, and a thread that wakes it, so that it faults again and again. */
typedef struct fault_storm {
  int uffd;
  _Atomic(uint64_t *) to;
  _Atomic bool stop;
} fault_storm;

static void *read_always(void *storm_) {
  fault_storm *storm = storm_;
  while (!atomic_load(&storm->stop))
    CHECK_EQUAL(__atomic_load_n(atomic_load(&storm->to), __ATOMIC_RELAXED), 7);
  return NULL;
}

static void *wake_always(void *storm_) {
  fault_storm *storm = storm_;
  while (!atomic_load(&storm->stop))
    um_uffd_wake(storm->uffd, (uintptr_t)atomic_load(&storm->to), UM_CHUNK);
  return NULL;
}

static uint64_t *map_chunk(int uffd, bool huge) {
  char *memory = um_memory_map(2ull * UM_CHUNK);
  CHECK(memory);
  memory = (char *)um_round_up((uintptr_t)memory, UM_CHUNK);
  if (huge)
    madvise(memory, UM_CHUNK, MADV_HUGEPAGE);
  CHECK_EQUAL(um_uffd_register(uffd, (uintptr_t)memory, UM_CHUNK), 0);
  return (uint64_t *)memory;
}

/* New memory that begins with 7. */
static void make_chunk(int uffd, int pagemap, uint64_t *to) {
  uint64_t *fresh = um_memory_map(2ull * UM_CHUNK), *chunk = (uint64_t *)um_round_up((uintptr_t)fresh, UM_CHUNK);
  madvise(chunk, UM_CHUNK, MADV_HUGEPAGE);
  *chunk = 7;
  for (uint64_t at = 0; at < UM_CHUNK / 8; at += 512)
    chunk[at] = 7;
  um_memory_clear_table((uintptr_t)to);
  CHECK_EQUAL(um_uffd_move(uffd, pagemap, (uintptr_t)to, (uintptr_t)chunk, UM_CHUNK, NULL), 0);
  um_memory_unmap(fresh, 2ull * UM_CHUNK);
}

/* Race: a fault makes a table for a chunk that is being moved in. The kernel may say EEXIST of a move that it did;
 * taken for a failure, the chunk would be copied from where nothing is any more, for ever. */
static void test_huge_chunk_that_is_faulted_on_while_it_moves_arrives_once(void) {
  uint64_t features = 0;
  uint32_t used;
  int uffd = um_uffd_open(0, &used, &features);
  CHECK(uffd >= 0);
  if (!(features & UM_UFFD_FEATURE_MOVE)) {
    close(uffd);
    return;
  }
  uint64_t *chunk = map_chunk(uffd, true), *to = map_chunk(uffd, false);
  int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  CHECK(pagemap >= 0);
  fault_storm storm = {.uffd = uffd, .to = to};
  pthread_t reader = rig_thread(read_always, &storm), waker = rig_thread(wake_always, &storm);
  for (uint64_t end = now_ns() + 3000000000ull; now_ns() < end;) {
    make_chunk(uffd, pagemap, chunk);
    um_memory_clear_table((uintptr_t)to);
    CHECK_EQUAL(um_uffd_move(uffd, pagemap, (uintptr_t)to, (uintptr_t)chunk, UM_CHUNK, NULL), 0);
    um_uffd_wake(uffd, (uintptr_t)to, UM_CHUNK);
    madvise(to, UM_CHUNK, MADV_DONTNEED);
  }
  make_chunk(uffd, pagemap, to);
  atomic_store(&storm.stop, true);
  um_uffd_wake(uffd, (uintptr_t)to, UM_CHUNK);
  pthread_join(reader, NULL);
  pthread_join(waker, NULL);
  close(pagemap);
  close(uffd);
}

int main(void) {
  watchdog_start(60);
  RUN(test_huge_stream_that_reads_maps_huge_pages);
  RUN(test_huge_stream_whose_reader_waits_for_each_run_keeps_huge_pages);
  RUN(test_huge_pages_that_are_dear_are_saved_up_for);
  RUN(test_huge_chunks_are_used_first_and_small_ones_given_back_first);
  RUN(test_huge_chunk_that_came_free_stays_for_who_wants_one);
  RUN(test_huge_chunk_that_is_faulted_on_while_it_moves_arrives_once);
  return 0;
}
