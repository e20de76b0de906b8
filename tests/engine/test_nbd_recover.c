/* The races of nbd_recover.c that no server can bring about: a thread of ours is held up at one place while a server is
 * lost. The Makefile has the linker put our own functions before the three that are held up. */
#define _GNU_SOURCE
#include "check.h"
#include "nbd.h"
#include "nbd_server.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>

#define PAGE 4096u
#define SIZE (64u * PAGE)
#define FLAGS (UM_NBD_FLAG_SEND_FLUSH | UM_NBD_FLAG_CAN_MULTI_CONN)
#define TIMEOUT 0.5
#define RETRY 20.0

/* The thread that armed it stops once at its place, before or behind the real function. */
enum place { NOWHERE, AWAIT, ACKNOWLEDGE, FLUSHED };
static _Thread_local enum place armed;
static sem_t stopped, go_on;

static void stop_at(enum place place) {
  if (armed != place)
    return;
  armed = NOWHERE;
  sem_post(&stopped);
  while (sem_wait(&go_on))
    ;
}

static void wait_stopped(void) {
  while (sem_wait(&stopped))
    ;
}

int __real_um_nbd_recover_await(um_nbd_store *store, uint64_t offset, uint64_t length, uint64_t deadline_ns,
                                uint64_t *epoch, um_error *error);
int __wrap_um_nbd_recover_await(um_nbd_store *store, uint64_t offset, uint64_t length, uint64_t deadline_ns,
                                uint64_t *epoch, um_error *error) {
  int result = __real_um_nbd_recover_await(store, offset, length, deadline_ns, epoch, error);
  stop_at(AWAIT);
  return result;
}

void __real_um_nbd_journal_acknowledge(um_nbd_journal *journal, um_nbd_entry *entry);
void __wrap_um_nbd_journal_acknowledge(um_nbd_journal *journal, um_nbd_entry *entry) {
  stop_at(ACKNOWLEDGE);
  __real_um_nbd_journal_acknowledge(journal, entry);
}

bool __real_um_nbd_journal_flushed(um_nbd_journal *journal, uint64_t mark);
bool __wrap_um_nbd_journal_flushed(um_nbd_journal *journal, uint64_t mark) {
  stop_at(FLUSHED);
  return __real_um_nbd_journal_flushed(journal, mark);
}

typedef struct call {
  um_store *store;
  enum place place; /* to stop at */
  int op;
  uint64_t offset;
  uint8_t byte; /* of a whole page: to write, or what was read */
  int result;
  um_error error;
} call;

static int do_call(call *c) {
  uint8_t page[PAGE] __attribute__((aligned(PAGE)));
  armed = c->place;
  memset(page, c->byte, sizeof page);
  if (c->op == UM_OP_READ)
    c->result = um_store_read(c->store, c->offset, page, PAGE, &c->error);
  else if (c->op == UM_OP_WRITE)
    c->result = um_store_write(c->store, c->offset, page, PAGE, &c->error);
  else
    c->result = um_store_flush(c->store, &c->error);
  c->byte = page[PAGE - 1];
  armed = NOWHERE;
  return c->result;
}

static void *run(void *context) {
  do_call(context);
  return NULL;
}

static pthread_t begin(call *c) {
  pthread_t thread;
  CHECK_EQUAL(pthread_create(&thread, NULL, run, c), 0);
  return thread;
}

static uint8_t must(call c) {
  if (do_call(&c) < 0)
    fprintf(stderr, "%s\n", c.error.text);
  CHECK_EQUAL(c.result, 0);
  return c.byte;
}

static void write_page(um_store *store, uint64_t offset, uint8_t byte) {
  must((call){.store = store, .op = UM_OP_WRITE, .offset = offset, .byte = byte});
}

static uint8_t read_page(um_store *store, uint64_t offset) {
  return must((call){.store = store, .op = UM_OP_READ, .offset = offset});
}

static void flush(um_store *store) {
  must((call){.store = store, .op = UM_OP_FLUSH});
}

static void close_all(um_store *store, nbd_server *server) {
  um_error error;
  CHECK_EQUAL(um_store_close(store, &error), 0);
  nbd_server_stop(server);
}

/* Race 4. The read finds a connection, and behind it a server that does not have what was written yet. */
static void test_read_that_was_held_up_gets_no_older_bytes(void) {
  nbd_server *server = nbd_server_start(SIZE, FLAGS);
  um_store *store = nbd_server_open(server, 1, TIMEOUT, RETRY);
  write_page(store, 0, 'A');
  call reading = {.store = store, .place = AWAIT, .op = UM_OP_READ};
  pthread_t thread = begin(&reading);
  wait_stopped();
  nbd_server_hold(server, UM_NBD_CMD_WRITE);
  nbd_server_crash(server);
  CHECK_EQUAL(read_page(store, PAGE), 0); /* it is back, */
  nbd_server_wait_held(server);           /* and about to be given the page again */
  CHECK_EQUAL(nbd_server_byte(server, 0), 0);
  sem_post(&go_on);
  nanosleep(&(struct timespec){0, 100000000}, NULL); /* the read reaches the server */
  nbd_server_release(server);
  pthread_join(thread, NULL);
  CHECK_EQUAL(reading.result, 0);
  CHECK_EQUAL(reading.byte, 'A');
  close_all(store, server);
}

/* Race 1. The acknowledgement of a server that is dead is taken for good after the loss was noticed. */
static void test_write_acknowledged_while_another_connection_is_lost_is_written_again(void) {
  nbd_server *server = nbd_server_start(SIZE, FLAGS);
  um_store *store = nbd_server_open(server, 2, TIMEOUT, RETRY);
  call writing = {.store = store, .place = ACKNOWLEDGE, .op = UM_OP_WRITE, .byte = 'A'};
  pthread_t thread = begin(&writing);
  wait_stopped();
  nbd_server_crash(server);
  call reading = {.store = store, .op = UM_OP_READ, .offset = PAGE};
  pthread_t other = begin(&reading); /* notices the loss; nobody comes back before the writer has left */
  nanosleep(&(struct timespec){0, 300000000}, NULL);
  CHECK_EQUAL(nbd_server_connections(server), 2);
  sem_post(&go_on);
  pthread_join(thread, NULL);
  pthread_join(other, NULL);
  CHECK_EQUAL(writing.result, 0);
  CHECK_EQUAL(reading.result, 0);
  CHECK_EQUAL(read_page(store, 0), 'A');
  flush(store);
  CHECK_EQUAL(nbd_server_durable(server, 0), 'A');
  close_all(store, server);
}

/* Race 3. Two FLUSHes; the server answers the first well, refuses the second, and throws away what it had. Had the
 * first been sent a moment before the write was acknowledged, it would cover nothing. */
static void test_flush_beside_one_that_fails_does_not_let_go(void) {
  nbd_server *server = nbd_server_start(SIZE, FLAGS);
  um_store *store = nbd_server_open(server, 2, TIMEOUT, RETRY);
  call flushing = {.store = store, .place = FLUSHED, .op = UM_OP_FLUSH};
  write_page(store, 0, 'A');
  pthread_t thread = begin(&flushing);
  wait_stopped();
  write_page(store, PAGE, 'B');
  nbd_server_refuse(server, UM_NBD_CMD_FLUSH, 5);
  CHECK_EQUAL(do_call(&(call){.store = store, .op = UM_OP_FLUSH}), -EIO);
  CHECK_EQUAL(nbd_server_byte(server, PAGE), 0);
  sem_post(&go_on);
  pthread_join(thread, NULL);
  CHECK_EQUAL(flushing.result, 0);
  CHECK_EQUAL(nbd_server_durable(server, PAGE), 'B'); /* it began anew, and what was kept was written before */
  CHECK_EQUAL(read_page(store, 0), 'A');
  close_all(store, server);
}

/* Threads that write their own pages, and a server that crashes under them, for the sanitizers. */
#define WRITERS 4u
#define TURNS 40u

typedef struct writer {
  um_store *store;
  uint32_t number;
} writer;

static void *write_and_read(void *context) {
  writer *self = context;
  for (uint32_t turn = 1; turn <= TURNS; turn++)
    for (uint32_t page = self->number; page < SIZE / PAGE; page += 4 * WRITERS) {
      write_page(self->store, (uint64_t)page * PAGE, (uint8_t)turn);
      CHECK_EQUAL(read_page(self->store, (uint64_t)page * PAGE), turn);
      if (page % 7 == 0)
        flush(self->store);
    }
  return NULL;
}

static void test_crashes_under_many_threads_lose_nothing(uint32_t connections) {
  nbd_server *server = nbd_server_start(SIZE, FLAGS);
  um_store *store = nbd_server_open(server, connections, 0.4, RETRY);
  pthread_t threads[WRITERS];
  writer writers[WRITERS];
  for (uint32_t i = 0; i < WRITERS; i++) {
    writers[i] = (writer){store, i};
    CHECK_EQUAL(pthread_create(&threads[i], NULL, write_and_read, &writers[i]), 0);
  }
  for (uint32_t i = 0; i < 8; i++) {
    nanosleep(&(struct timespec){0, 30000000}, NULL);
    nbd_server_crash(server);
  }
  for (uint32_t i = 0; i < WRITERS; i++)
    pthread_join(threads[i], NULL);
  flush(store);
  for (uint32_t page = 0; page < SIZE / PAGE; page++)
    CHECK_EQUAL(nbd_server_durable(server, (uint64_t)page * PAGE), page % (4 * WRITERS) < WRITERS ? TURNS : 0);
  close_all(store, server);
}

int main(void) {
  sem_init(&stopped, 0, 0);
  sem_init(&go_on, 0, 0);
  test_read_that_was_held_up_gets_no_older_bytes();
  test_write_acknowledged_while_another_connection_is_lost_is_written_again();
  test_flush_beside_one_that_fails_does_not_let_go();
  test_crashes_under_many_threads_lose_nothing(1);
  test_crashes_under_many_threads_lose_nothing(4);
  return 0;
}
