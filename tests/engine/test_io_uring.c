/* Batches of reads of the file store: the right bytes, errors kept apart, and what happens where io_uring is refused,
 * in forked children, and when a device says nothing for long. */
#define _GNU_SOURCE
#include "check.h"
#include "io_uring.h"
#include "store.h"
#include "two_files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CALL_SETUP 425
#define CALL_ENTER 426
#define READS 700u

static atomic_bool device_let_go; /* before any batch returned */

static um_store *open_files(int direct) {
  return two_files_open(direct, false);
}

typedef struct plan {
  um_read reads[READS];
  um_error errors[READS];
  um_batch batch;
  uint32_t told[READS]; /* how often */
  pthread_t thread;     /* who asked */
  char *memory;
} plan;

static void note_end(um_batch *batch, um_read *read) {
  plan *p = batch->context;
  CHECK(pthread_equal(pthread_self(), p->thread));
  p->told[read - batch->reads]++;
}

static uint64_t random_next(uint64_t *state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return *state >> 33;
}

/* Whole pages for the most; among them pieces of a page, runs, and reads over the parts' border and of the tail. */
static plan *make_plan(uint64_t seed) {
  plan *p = calloc(1, sizeof(*p));
  CHECK_EQUAL(posix_memalign((void **)&p->memory, BLOCK, (uint64_t)READS * 8 * BLOCK), 0);
  memset(p->memory, 0xEE, (uint64_t)READS * 8 * BLOCK);
  for (uint32_t i = 0; i < READS; i++) {
    um_read *read = &p->reads[i];
    *read = (um_read){.offset = random_next(&seed) % (SIZE / BLOCK) * BLOCK,
                      .length = BLOCK,
                      .buffer = p->memory + (uint64_t)i * 8 * BLOCK,
                      .error = &p->errors[i]};
    if (i % 50 == 10) {
      read->offset += 100;
      read->length = 900;
    } else if (i % 50 == 20) {
      read->length = 8 * BLOCK;
      read->offset %= SIZE - 8 * BLOCK;
      read->offset -= read->offset % BLOCK;
    } else if (i % 50 == 30) {
      read->offset = FIRST_SIZE - BLOCK;
      read->length = 2 * BLOCK;
    } else if (i % 50 == 40) {
      read->offset = SIZE / BLOCK * BLOCK;
      read->length = SIZE % BLOCK;
    }
  }
  p->batch = (um_batch){.reads = p->reads, .count = READS, .timeout_ns = 10000000000u, .ended = note_end, .context = p};
  p->thread = pthread_self();
  return p;
}

static void free_plan(plan *p) {
  free(p->memory);
  free(p);
}

static bool is_right(const um_read *read) {
  const unsigned char *bytes = read->buffer;
  for (uint64_t i = 0; i < read->length; i++)
    if (bytes[i] != two_files_byte(read->offset + i))
      return false;
  return true;
}

static void check_plan(const plan *p) {
  for (uint32_t i = 0; i < READS; i++) {
    CHECK_EQUAL(p->told[i], 1);
    CHECK_EQUAL(p->reads[i].code, 0);
    CHECK(is_right(&p->reads[i]));
  }
}

static int run_batch(um_store *store, um_batch *batch) {
  return store->ops->read_batch(store, batch);
}

static void test_batch_of_many_reads_gives_each_its_bytes(void) {
  um_store *store = open_files(-1);
  for (uint64_t seed = 0; seed < 5; seed++) {
    plan *p = make_plan(seed);
    uint64_t before = atomic_load(&ring_entered);
    CHECK_EQUAL(run_batch(store, &p->batch), 0);
    CHECK(atomic_load(&ring_entered) > before);
    check_plan(p);
    free_plan(p);
  }
  um_store_close(store, NULL);
}

static void test_batch_without_callback_waits_for_all(void) {
  um_store *store = open_files(-1);
  plan *p = make_plan(9);
  p->batch.ended = NULL;
  p->batch.timeout_ns = 0;
  CHECK_EQUAL(run_batch(store, &p->batch), 0);
  for (uint32_t i = 0; i < READS; i++)
    CHECK(p->reads[i].code == 0 && is_right(&p->reads[i]));
  free_plan(p);
  um_store_close(store, NULL);
}

static void test_reads_that_fail_leave_the_others_alone_and_say_what_single_reads_say(void) {
  um_store *store = open_files(-1);
  plan *p = make_plan(3);
  uint64_t end = FIRST_SIZE + 300 * BLOCK + 500;
  p->reads[100].offset = SIZE; /* past the store, whoever reads it */
  CHECK_EQUAL(truncate(two_files_paths[1], (off_t)(end - FIRST_SIZE)), 0);
  CHECK_EQUAL(run_batch(store, &p->batch), 0);
  uint32_t failed = 0, hit = 0;
  for (uint32_t i = 0; i < READS; i++) {
    um_read *read = &p->reads[i];
    CHECK_EQUAL(p->told[i], 1);
    um_error error = {0};
    char *again = aligned_alloc(BLOCK, 8 * BLOCK);
    CHECK_EQUAL(read->code, um_store_read(store, read->offset, again, read->length, &error));
    CHECK_EQUAL(read->code, i == 100 ? -EINVAL : read->offset + read->length > end ? -UM_ETRUNCATED : 0);
    if (read->code == 0) {
      hit++;
      CHECK(is_right(read));
    } else {
      failed++;
      CHECK_EQUAL(p->errors[i].offset, error.offset);
      CHECK_EQUAL(p->errors[i].length, error.length);
      CHECK(strcmp(p->errors[i].text, error.text) == 0);
    }
    free(again);
  }
  CHECK(failed > 100 && hit > 100);
  free_plan(p);
  um_store_close(store, NULL);
  two_files_make();
}

static void test_store_that_reads_through_the_page_cache_takes_no_batch(void) {
  um_store *store = open_files(0);
  plan *p = make_plan(1);
  CHECK_EQUAL(run_batch(store, &p->batch), -EOPNOTSUPP);
  CHECK_EQUAL(p->told[0], 0);
  free_plan(p);
  um_store_close(store, NULL);
}

static void test_ring_switched_off_takes_no_batch(void) {
  um_store *store = open_files(-1);
  plan *p = make_plan(1);
  CHECK_EQUAL(um_io_uring_set(0), 0);
  CHECK_EQUAL(um_io_uring_probe(), -ECANCELED);
  CHECK_EQUAL(run_batch(store, &p->batch), -EOPNOTSUPP);
  for (uint32_t i = 0; i < READS; i++)
    CHECK_EQUAL(p->told[i], 0);
  CHECK_EQUAL(um_io_uring_set(-1), 0);
  CHECK_EQUAL(run_batch(store, &p->batch), 0);
  check_plan(p);
  free_plan(p);
  um_store_close(store, NULL);
}

static void refuse_call(uint32_t number) {
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof(filter) / sizeof(*filter), filter};
  CHECK_EQUAL(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  CHECK_EQUAL(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

static void run_in_child(void (*body)(void)) {
  pid_t child = fork();
  if (child == 0) {
    body();
    _exit(0);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK_EQUAL(status, 0);
}

static void set_up_where_setup_is_refused(void) {
  refuse_call(CALL_SETUP);
  CHECK_EQUAL(um_io_uring_set(-1), 0);
  um_store *store = open_files(-1);
  plan *p = make_plan(2);
  CHECK_EQUAL(run_batch(store, &p->batch), -EOPNOTSUPP);
  CHECK_EQUAL(p->told[0], 0);
  CHECK_EQUAL(um_io_uring_probe(), -EPERM);
  CHECK_EQUAL(um_io_uring_set(1), -EPERM);
}

static void test_container_that_refuses_a_ring_takes_no_batch(void) {
  run_in_child(set_up_where_setup_is_refused);
}

static void read_where_a_filter_comes_later(void) {
  um_store *store = open_files(-1);
  plan *p = make_plan(2);
  CHECK_EQUAL(um_io_uring_set(1), 0);
  refuse_call(CALL_ENTER);
  CHECK_EQUAL(run_batch(store, &p->batch), 0);
  check_plan(p);
  CHECK_EQUAL(run_batch(store, &p->batch), -EOPNOTSUPP);
}

static void test_filter_that_comes_later_sends_reads_the_ordinary_way(void) {
  run_in_child(read_where_a_filter_comes_later);
}

static um_store *inherited; /* opened in the parent */

static void read_in_a_child(void) {
  plan *p = make_plan(4);
  CHECK_EQUAL(run_batch(inherited, &p->batch), -EOPNOTSUPP);
  CHECK_EQUAL(um_store_read(inherited, 0, p->memory, BLOCK, NULL), -UM_EFORKED);
  um_store *own = open_files(-1);
  CHECK_EQUAL(run_batch(own, &p->batch), 0);
  check_plan(p);
  um_store_close(own, NULL);
  free_plan(p);
}

typedef struct reader {
  pthread_t thread;
  um_store *store;
  uint64_t seed;
  atomic_bool *stop;
} reader;

static void *read_until_told(void *argument) {
  reader *self = argument;
  do {
    plan *p = make_plan(self->seed++);
    CHECK_EQUAL(run_batch(self->store, &p->batch), 0);
    check_plan(p);
    free_plan(p);
  } while (self->stop && !atomic_load(self->stop));
  return NULL;
}

static void test_child_has_rings_of_its_own_and_disturbs_no_batch_of_its_parent(void) {
  inherited = open_files(-1);
  plan *p = make_plan(5);
  CHECK_EQUAL(run_batch(inherited, &p->batch), 0); /* this thread has a ring */
  free_plan(p);
#ifdef __SANITIZE_ADDRESS__ /* it cannot fork beside threads: their memory is locked in the child */
  run_in_child(read_in_a_child);
#else
  atomic_bool stop = false;
  reader readers[2];
  for (unsigned i = 0; i < 2; i++) {
    readers[i] = (reader){.store = inherited, .seed = 100 * i, .stop = &stop};
    CHECK_EQUAL(pthread_create(&readers[i].thread, NULL, read_until_told, &readers[i]), 0);
  }
  for (int i = 0; i < 5; i++)
    run_in_child(read_in_a_child);
  atomic_store(&stop, true);
  for (unsigned i = 0; i < 2; i++)
    pthread_join(readers[i].thread, NULL);
#endif
  um_store_close(inherited, NULL);
}

static unsigned count_rings(void) {
  FILE *maps = fopen("/proc/self/maps", "re");
  char line[512];
  unsigned count = 0;
  while (fgets(line, sizeof(line), maps))
    count += strstr(line, "[io_uring]") != NULL;
  fclose(maps);
  return count;
}

static void test_thread_takes_its_ring_along_and_leaves_no_descriptor(void) {
  um_store *store = open_files(-1);
  plan *p = make_plan(6);
  CHECK_EQUAL(run_batch(store, &p->batch), 0);
  free_plan(p);
  unsigned before = count_rings();
  CHECK(before > 0);
  for (int descriptor = 3; descriptor < 100; descriptor++) {
    char link[64], target[128];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, target, sizeof(target) - 1);
    target[length > 0 ? length : 0] = '\0';
    CHECK(!strstr(target, "io_uring"));
  }
  for (unsigned i = 0; i < 50; i++) {
    reader r = {.store = store, .seed = i};
    CHECK_EQUAL(pthread_create(&r.thread, NULL, read_until_told, &r), 0);
    pthread_join(r.thread, NULL);
  }
  CHECK_EQUAL(count_rings(), before);
  um_store_close(store, NULL);
}

static void ask_within(um_batch *batch, um_read *read) {
  plan *outer = batch->context;
  if (read == batch->reads) {
    plan *p = make_plan(8);
    CHECK_EQUAL(run_batch(inherited, &p->batch), -EOPNOTSUPP);
    free_plan(p);
  }
  note_end(&outer->batch, read);
}

static void test_batch_inside_a_batch_is_refused(void) {
  inherited = open_files(-1);
  plan *p = make_plan(7);
  p->batch.ended = ask_within;
  CHECK_EQUAL(run_batch(inherited, &p->batch), 0);
  check_plan(p);
  free_plan(p);
  um_store_close(inherited, NULL);
}

static void *let_go_later(void *argument) {
  plan *p = argument;
  struct timespec pause = {0, 10000000};
  while (atomic_load((_Atomic uint32_t *)&p->told[READS - 1]) == 0)
    nanosleep(&pause, NULL);
  nanosleep(&pause, NULL);
  nanosleep(&pause, NULL);
  atomic_store(&device_let_go, true);
  atomic_store(&ring_hangs, false);
  return NULL;
}

static void note_time_out(um_batch *batch, um_read *read) {
  plan *p = batch->context;
  CHECK(!atomic_load(&device_let_go));
  atomic_fetch_add((_Atomic uint32_t *)&p->told[read - batch->reads], 1);
}

static void test_device_that_hangs_is_told_of_in_time_but_keeps_the_buffers(void) {
  um_store *store = open_files(-1);
  plan *p = make_plan(11);
  uint32_t whole = 0;
  p->batch.timeout_ns = 50000000;
  p->batch.ended = note_time_out;
  for (uint32_t i = 0; i < READS; i++) { /* the ordinary path does not hang here */
    p->reads[i].offset = p->reads[i].offset / BLOCK * BLOCK;
    if (p->reads[i].offset + BLOCK > SIZE)
      p->reads[i].offset = 0;
    p->reads[i].length = BLOCK;
  }
  atomic_store(&ring_hangs, true);
  pthread_t helper;
  CHECK_EQUAL(pthread_create(&helper, NULL, let_go_later, p), 0);
  CHECK_EQUAL(run_batch(store, &p->batch), 0);
  CHECK(atomic_load(&device_let_go));
  pthread_join(helper, NULL);
  for (uint32_t i = 0; i < READS; i++) {
    CHECK_EQUAL(p->told[i], 1);
    CHECK_EQUAL(p->reads[i].code, -ETIMEDOUT);
    CHECK_EQUAL(p->errors[i].code, ETIMEDOUT);
    CHECK_EQUAL(p->errors[i].offset, p->reads[i].offset);
    whole += is_right(&p->reads[i]);
  }
  CHECK_EQUAL(whole, UM_RING_DEPTH); /* the late bytes came before the call returned; no other read was begun */
  p->batch.ended = note_end;
  memset(p->told, 0, sizeof(p->told));
  CHECK_EQUAL(run_batch(store, &p->batch), 0);
  check_plan(p);
  free_plan(p);
  um_store_close(store, NULL);
}

int main(void) {
  bool deep = two_files_begin();
  test_store_that_reads_through_the_page_cache_takes_no_batch();
  test_container_that_refuses_a_ring_takes_no_batch();
  if (deep) {
    test_batch_of_many_reads_gives_each_its_bytes();
    test_batch_without_callback_waits_for_all();
    test_reads_that_fail_leave_the_others_alone_and_say_what_single_reads_say();
    test_ring_switched_off_takes_no_batch();
    test_filter_that_comes_later_sends_reads_the_ordinary_way();
    test_child_has_rings_of_its_own_and_disturbs_no_batch_of_its_parent();
    test_thread_takes_its_ring_along_and_leaves_no_descriptor();
    test_batch_inside_a_batch_is_refused();
    test_device_that_hangs_is_told_of_in_time_but_keeps_the_buffers();
  }
  return two_files_end();
}
