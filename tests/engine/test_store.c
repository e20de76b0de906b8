/* What every store refuses, failure texts that are too long, and who frees a wrapper. */
#include "check.h"
#include "store.h"

#include <errno.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>

/* A store in memory that counts what reaches it. */
typedef struct memory_store {
  um_store store;
  char bytes[100];
  int calls, closes, forks;
} memory_store;

static int memory_read(um_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error) {
  (void)error;
  memory_store *self = (memory_store *)store;
  self->calls++;
  memcpy(buffer, self->bytes + offset, length);
  return 0;
}

static int memory_write(um_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error) {
  (void)error;
  memory_store *self = (memory_store *)store;
  self->calls++;
  memcpy(self->bytes + offset, buffer, length);
  return 0;
}

static int memory_flush(um_store *store, um_error *error) {
  (void)error;
  ((memory_store *)store)->calls++;
  return 0;
}

static int memory_close(um_store *store, um_error *error) {
  ((memory_store *)store)->closes++;
  return um_error_set(error, EIO, UM_OP_FLUSH, 0, 0, "memory: cannot close");
}

static void memory_forked(um_store *store) {
  ((memory_store *)store)->forks++;
}

static const um_store_ops memory_ops = {
    .name = "memory",
    .read = memory_read,
    .write = memory_write,
    .flush = memory_flush,
    .close = memory_close,
    .forked = memory_forked,
};

#define MEMORY_STORE(is_writable)                                                                                      \
  {                                                                                                                    \
    .store = {.ops = &memory_ops, .size = 100, .writable = (is_writable)}                                              \
  }

static void test_calls_past_the_end_are_refused(void) {
  memory_store inner = MEMORY_STORE(true);
  um_error error;
  char buffer[200];
  static const struct {
    uint64_t offset, length;
  } bad[] = {{0, 101}, {100, 1}, {99, 2}, {101, 0}, {UINT64_MAX, 1}, {1, UINT64_MAX}, {UINT64_MAX, UINT64_MAX}};
  for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
    CHECK_EQUAL(um_store_read(&inner.store, bad[i].offset, buffer, bad[i].length, &error), -EINVAL);
    CHECK_EQUAL(error.op, UM_OP_READ);
    CHECK_EQUAL(um_store_write(&inner.store, bad[i].offset, buffer, bad[i].length, &error), -EINVAL);
    CHECK_EQUAL(error.op, UM_OP_WRITE);
    CHECK(strstr(error.text, "100"));
  }
  CHECK_EQUAL(inner.calls, 0);
  CHECK_EQUAL(um_store_read(&inner.store, 0, buffer, 100, &error), 0);
  CHECK_EQUAL(inner.calls, 1);
}

static void test_empty_calls_do_not_reach_the_store(void) {
  memory_store inner = MEMORY_STORE(true);
  CHECK_EQUAL(um_store_read(&inner.store, 100, NULL, 0, NULL), 0);
  CHECK_EQUAL(um_store_write(&inner.store, 0, NULL, 0, NULL), 0);
  CHECK_EQUAL(inner.calls, 0);
}

static void test_write_to_a_read_only_store_is_refused(void) {
  memory_store inner = MEMORY_STORE(false);
  um_error error;
  CHECK_EQUAL(um_store_write(&inner.store, 0, "a", 1, &error), -EBADF);
  CHECK_EQUAL(error.code, EBADF);
  CHECK_EQUAL(um_store_flush(&inner.store, &error), 0);
  CHECK_EQUAL(inner.calls, 0);
}

static void test_error_text_is_cut_before_a_split_character(void) {
  static const char *const characters[] = {"x", "\xC3\xA4", "\xE2\x82\xAC", "\xF0\x9F\x98\x80"};
  for (size_t i = 0; i < 4; i++) {
    size_t width = strlen(characters[i]);
    for (size_t before = 0; before < 4; before++) {
      char text[2 * UM_ERROR_TEXT] = "";
      memset(text, '.', before);
      while (strlen(text) + width < sizeof(text))
        strcat(text, characters[i]);
      um_error error;
      CHECK_EQUAL(um_error_set(&error, EIO, UM_OP_READ, 1, 2, "%s", text), -EIO);
      size_t length = strlen(error.text), room = UM_ERROR_TEXT - 1 - before;
      CHECK_EQUAL(length, before + room - room % width);
      CHECK(memcmp(error.text, text, length) == 0);
    }
  }
}

static void test_error_without_a_record_returns_the_code(void) {
  CHECK_EQUAL(um_error_set(NULL, ENOSPC, UM_OP_WRITE, 0, 0, "nobody looks"), -ENOSPC);
}

static void test_wrapper_closes_the_inner_store_once_and_outlives_it(void) {
  memory_store inner = MEMORY_STORE(true);
  um_store *store = NULL;
  um_error error;
  um_fault_options options = {.ops = 1u << UM_OP_READ, .count = UINT64_MAX, .code = EIO};
  CHECK_EQUAL(um_fault_store_open(&inner.store, &options, &store), 0);
  um_wrapper_retain(store);
  char byte = 0;
  CHECK_EQUAL(um_store_read(store, 0, &byte, 1, &error), -EIO);
  CHECK_EQUAL(um_store_write(store, 0, &byte, 1, &error), 0);
  store->ops->forked(store);
  CHECK_EQUAL(inner.forks, 1);
  CHECK_EQUAL(um_store_close(store, &error), -EIO); /* the inner store's answer */
  CHECK_EQUAL(inner.closes, 1);
  um_fault_store_set(store, &options);
  CHECK_EQUAL(um_fault_store_calls(store), 1);
  um_wrapper_release(store); /* under AddressSanitizer: nothing leaks, nothing is used after this */
  CHECK_EQUAL(inner.calls, 1);
}

static void on_alarm(int number) {
  (void)number;
}

static void test_delay_is_not_cut_short_by_signals(void) {
  struct sigaction action = {.sa_handler = on_alarm}; /* without SA_RESTART: sleeps end with EINTR */
  sigaction(SIGALRM, &action, NULL);
  struct itimerval often = {.it_interval = {.tv_usec = 5000}, .it_value = {.tv_usec = 5000}}, never = {0};
  memory_store inner = MEMORY_STORE(true);
  um_store *store = NULL;
  um_fault_options options = {.ops = 1u << UM_OP_READ, .count = 1, .delay_ns = 100000000};
  CHECK_EQUAL(um_fault_store_open(&inner.store, &options, &store), 0);
  struct timespec begin, end;
  char byte = 0;
  setitimer(ITIMER_REAL, &often, NULL);
  clock_gettime(CLOCK_MONOTONIC, &begin);
  CHECK_EQUAL(um_store_read(store, 0, &byte, 1, NULL), 0);
  clock_gettime(CLOCK_MONOTONIC, &end);
  setitimer(ITIMER_REAL, &never, NULL);
  CHECK((end.tv_sec - begin.tv_sec) * 1000000000 + end.tv_nsec - begin.tv_nsec >= 100000000);
  um_store_close(store, NULL);
}

int main(void) {
  test_calls_past_the_end_are_refused();
  test_empty_calls_do_not_reach_the_store();
  test_write_to_a_read_only_store_is_refused();
  test_error_text_is_cut_before_a_split_character();
  test_error_without_a_record_returns_the_code();
  test_wrapper_closes_the_inner_store_once_and_outlives_it();
  test_delay_is_not_cut_short_by_signals();
  return 0;
}
