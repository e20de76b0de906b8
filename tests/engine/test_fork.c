/* Forked children: a region's memory is inaccessible there, never zeros, whatever the parent's threads were doing; and
 * a child may make pagers and regions of its own. */
#define _GNU_SOURCE
#include "rig.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* The sanitizers' own locks do not survive a fork of a process with threads, nor do ThreadSanitizer's threads. */
#define CHILD_MAY_ALLOCATE (SLOWER == 1)

typedef struct touching {
  rig *rig;
  uint64_t offset;
  bool write;
} touching;

static void touch(void *argument) {
  touching *t = argument;
  if (t->write)
    rig_write(t->rig, t->offset, 1);
  else
    rig_read(t->rig, t->offset);
}

static void test_child_that_touches_a_region_dies(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12});
  rig_write(&r, 0, 5);
  rig_read(&r, 4096);
  for (uint64_t page = 0; page < 3; page++) /* dirty, clean, absent */
    for (int write = 0; write < 2; write++)
      rig_child(touch, &(touching){&r, page * 4096, write}, SIGSEGV);
  rig_child(touch, &(touching){&r, r.size - 8, false}, SIGSEGV);
  CHECK_EQUAL(rig_read(&r, 0), 5);
  rig_write(&r, 8192, 6);
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 8192), 6);
  rig_end(&r);
}

static void call_everything(void *argument) {
  rig *r = argument;
  uint64_t done = 0;
  um_region *made;
  um_region_options options = {.page_size = 4096};
  CHECK(um_process_forked());
  CHECK_EQUAL(um_region_create(r->pager, r->store, r->bytes, r->size, &options, &made), -UM_EFORKED);
  CHECK_EQUAL(um_region_overwrite(r->region, 0, &done, 8, 100, &done), -UM_EFORKED);
  CHECK_EQUAL(um_pager_reserve(r->pager, 4096, 100), -UM_EFORKED);
  CHECK_EQUAL(um_pager_destroy(r->pager), -UM_EFORKED);
  um_region_forget(r->region); /* a destructor may */
}

static void test_child_is_refused_its_parents_pager(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12});
  CHECK(!um_process_forked());
  rig_child(call_everything, &r, 0);
  CHECK_EQUAL(rig_read(&r, 0), rig_word(0));
  rig_close(&r);
  rig_end(&r);
}

static void use_a_rig(void *unused) {
  (void)unused;
  rig r;
  rig_open(&r, &(rig_options){.size = 64 << 12, .fillers = 2});
  for (uint64_t offset = 0; offset < r.size; offset += 4096) {
    CHECK_EQUAL(rig_read(&r, offset), rig_word(offset));
    rig_write(&r, offset, offset);
  }
  rig_close(&r);
  CHECK_EQUAL(rig_file_word(&r, 4096), 4096);
  rig_end(&r);
}

static void use_a_rig_and_fork(void *unused) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12});
  rig_child(touch, &(touching){&r, 0, false}, SIGSEGV);
  use_a_rig(unused);
  rig_close(&r);
}

static void test_child_may_make_pagers_of_its_own(void) {
  rig r;
  rig_open(&r, &(rig_options){.size = 8 << 12});
  rig_write(&r, 0, 5);
  rig_child(use_a_rig, NULL, 0);
  rig_child(use_a_rig_and_fork, NULL, 0);
  CHECK_EQUAL(rig_read(&r, 0), 5);
  rig_close(&r);
  rig_end(&r);
}

typedef struct user {
  rig *rig;
  uint64_t random, turns;
  _Atomic bool *stop;
} user;

static void *fault_on(void *argument) {
  user *u = argument;
  for (; !atomic_load(u->stop); u->turns++) {
    uint64_t offset = rig_random(&u->random) % (u->rig->size / 4096) * 4096, word = rig_read(u->rig, offset);
    CHECK(word == rig_word(offset) || word == offset + 1);
    rig_write(u->rig, offset, offset + 1);
  }
  return NULL;
}

static void *flush_on(void *argument) {
  user *u = argument;
  for (; !atomic_load(u->stop); u->turns++) {
    CHECK_EQUAL(rig_flush(u->rig), 0);
    CHECK_EQUAL(rig_evict(u->rig, 0, u->rig->size / 2), 0);
    rig_prefetch(u->rig, 0, u->rig->size / 4);
  }
  return NULL;
}

static void *make_on(void *argument) {
  user *u = argument;
  for (; !atomic_load(u->stop); u->turns++) {
    rig r;
    rig_open(&r, &(rig_options){.size = 4 << 12, .pager = u->turns % 2 ? u->rig->pager : NULL});
    rig_write(&r, 0, 9);
    rig_close(&r);
    CHECK_EQUAL(rig_file_word(&r, 0), 9);
    rig_end(&r);
  }
  return NULL;
}

static void test_forks_while_all_goes_on_around_them(void) {
  rig r;
  uint64_t random = 11;
  _Atomic bool stop = false;
  user users[4];
  pthread_t threads[4];
  rig_open(&r, &(rig_options){.size = 256 << 12, .fillers = 2, .evictors = 2});
  for (int i = 0; i < 4; i++) {
    users[i] = (user){&r, 12 + (uint64_t)i, 0, &stop};
    threads[i] = rig_thread(i < 2 ? fault_on : i < 3 ? flush_on : make_on, &users[i]);
  }
  for (uint64_t i = 0; i < 100; i++) {
    rig_child(touch, &(touching){&r, rig_random(&random) % r.size / 8 * 8, i % 2}, SIGSEGV);
    if (i % 10 == 0 && CHILD_MAY_ALLOCATE)
      rig_child(use_a_rig, NULL, 0);
  }
  atomic_store(&stop, true);
  for (int i = 0; i < 4; i++) {
    pthread_join(threads[i], NULL);
    CHECK(users[i].turns > 0);
  }
  CHECK_EQUAL(rig_errors(&r), 0);
  rig_close(&r);
  rig_end(&r);
}

static void try_lock(void *argument) {
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  CHECK_EQUAL(fcntl(((rig *)argument)->fd, F_OFD_GETLK, &lock), 0);
  CHECK_EQUAL(lock.l_type, F_UNLCK);
}

/* A child that lives on must not keep the file locked after its parent has closed it. */
static void test_child_does_not_hold_the_stores_lock(void) {
  rig r;
  int pipe_ends[2];
  rig_open(&r, &(rig_options){.size = 8 << 12});
  CHECK_EQUAL(pipe(pipe_ends), 0);
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    watchdog_child(20);
    close(pipe_ends[1]);
    char byte;
    _exit((int)read(pipe_ends[0], &byte, 1));
  }
  rig_close(&r);
  try_lock(&r);
  close(pipe_ends[0]);
  close(pipe_ends[1]);
  int status;
  CHECK_EQUAL(waitpid(pid, &status, 0), pid);
  CHECK(rig_died(status, 0));
  rig_end(&r);
}

int main(void) {
  watchdog_start(30);
  RUN(test_child_that_touches_a_region_dies);
  RUN(test_child_is_refused_its_parents_pager);
  if (CHILD_MAY_ALLOCATE)
    RUN(test_child_may_make_pagers_of_its_own);
  RUN(test_child_does_not_hold_the_stores_lock);
  RUN(test_forks_while_all_goes_on_around_them);
  watchdog_pet("the end");
  return 0;
}
