/* Connections used by many threads at once, against servers that answer in any order, in pieces, late, wrongly or not
 * at all. Data is a function of its place, so that every byte can be checked. */
#define _GNU_SOURCE
#include "check.h"
#include "internal.h"
#include "nbd.h"
#include "watchdog.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define THREADS 6
#define LINKS 2
#define HELD_MAX 24u
#define LENGTH_MAX 100000u
#define SECOND_NS UINT64_C(1000000000)

static uint8_t compute_byte(uint64_t offset) {
  return (uint8_t)(offset * 2654435761u >> 13);
}

/* splitmix64 */
static uint64_t draw(uint64_t *state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

/* The other end of a connection, as its thread is to be. */
typedef struct peer {
  pthread_t thread;
  int socket;
  bool structured;
  uint64_t chance;
  uint64_t limit; /* it closes after so many requests; 0: never */
  bool silent;    /* it reads, and answers nothing */
  bool passes;    /* it answers all but the first */
} peer;

static bool receive_all(int socket, void *buffer, size_t length) {
  while (length > 0) {
    ssize_t n = recv(socket, buffer, length, 0);
    if (n <= 0)
      return false;
    buffer = (char *)buffer + n;
    length -= (size_t)n;
  }
  return true;
}

/* In pieces of any size. */
static bool send_all(peer *p, const void *bytes, size_t length) {
  while (length > 0) {
    size_t piece = draw(&p->chance) % 3 ? length : 1 + draw(&p->chance) % length;
    ssize_t n = send(p->socket, bytes, piece, MSG_NOSIGNAL);
    if (n <= 0)
      return false;
    bytes = (const char *)bytes + n;
    length -= (size_t)n;
  }
  return true;
}

static bool send_chunk(peer *p, const uint8_t *request, uint16_t flags, uint32_t from, uint32_t length) {
  static _Thread_local uint8_t bytes[UM_NBD_CHUNK_SIZE + 8 + LENGTH_MAX];
  uint64_t offset = um_nbd_get64(request + 16) + from;
  um_nbd_put32(bytes, UM_NBD_CHUNK_MAGIC);
  um_nbd_put16(bytes + 4, flags);
  um_nbd_put16(bytes + 6, length ? UM_NBD_CHUNK_DATA : UM_NBD_CHUNK_NONE);
  memcpy(bytes + 8, request + 8, 8);
  um_nbd_put32(bytes + 16, length ? length + 8 : 0);
  um_nbd_put64(bytes + 20, offset);
  for (uint32_t i = 0; i < length; i++)
    bytes[28 + i] = compute_byte(offset + i);
  return send_all(p, bytes, length ? 28 + length : UM_NBD_CHUNK_SIZE);
}

static bool answer(peer *p, const uint8_t *request) {
  uint32_t length = um_nbd_get32(request + 24);
  bool reads = um_nbd_get16(request + 6) == UM_NBD_CMD_READ;
  if (p->structured && reads) {
    uint32_t cut = (uint32_t)(draw(&p->chance) % (length + 1));
    if (cut == 0 || cut == length)
      return send_chunk(p, request, UM_NBD_CHUNK_DONE, 0, length);
    bool second_first = draw(&p->chance) % 2;
    return (second_first ? send_chunk(p, request, 0, cut, length - cut) : send_chunk(p, request, 0, 0, cut)) &&
           (second_first ? send_chunk(p, request, 0, 0, cut) : send_chunk(p, request, 0, cut, length - cut)) &&
           send_chunk(p, request, UM_NBD_CHUNK_DONE, 0, 0);
  }
  static _Thread_local uint8_t bytes[UM_NBD_SIMPLE_SIZE + LENGTH_MAX];
  um_nbd_put32(bytes, UM_NBD_SIMPLE_MAGIC);
  um_nbd_put32(bytes + 4, 0);
  memcpy(bytes + 8, request + 8, 8);
  for (uint32_t i = 0; reads && i < length; i++)
    bytes[16 + i] = compute_byte(um_nbd_get64(request + 16) + i);
  return send_all(p, bytes, 16 + (reads ? length : 0));
}

static bool check_write(peer *p, const uint8_t *request) {
  static _Thread_local uint8_t bytes[LENGTH_MAX];
  uint32_t length = um_nbd_get32(request + 24);
  CHECK(length <= LENGTH_MAX);
  if (!receive_all(p->socket, bytes, length))
    return false;
  for (uint32_t i = 0; i < length; i++)
    CHECK_EQUAL(bytes[i], compute_byte(um_nbd_get64(request + 16) + i));
  return true;
}

/* Takes what comes, up to some, and answers it in any order. */
static void *serve(void *context) {
  peer *p = context;
  uint8_t held[HELD_MAX][UM_NBD_REQUEST_SIZE];
  uint32_t count = 0;
  for (uint64_t seen = 0; !p->limit || seen < p->limit;) {
    struct pollfd look = {.fd = p->socket, .events = POLLIN};
    bool take = count == 0 || (count < HELD_MAX && draw(&p->chance) % 4 && poll(&look, 1, 0) > 0);
    if (take) {
      if (!receive_all(p->socket, held[count], UM_NBD_REQUEST_SIZE))
        break;
      CHECK_EQUAL(um_nbd_get32(held[count]), UM_NBD_REQUEST_MAGIC);
      if (um_nbd_get16(held[count] + 6) == UM_NBD_CMD_WRITE && !check_write(p, held[count]))
        break;
      seen++;
      count += !p->silent && !(p->passes && seen == 1);
    } else {
      uint32_t which = (uint32_t)(draw(&p->chance) % count);
      if (!answer(p, held[which]))
        break;
      memcpy(held[which], held[--count], UM_NBD_REQUEST_SIZE);
    }
  }
  close(p->socket);
  return NULL;
}

typedef struct rig {
  um_nbd_store *store;
  char folder[64], path[96];
  int listener;
  peer peers[LINKS];
} rig;

static void connect_link(rig *r, uint32_t index, const peer *like) {
  um_nbd_transport *transport;
  um_nbd_export export_ = {.size = UINT64_C(1) << 40, .length_max = UM_NBD_LENGTH_MAX, .structured = like->structured};
  char text[UM_NBD_TEXT];
  CHECK_EQUAL(um_nbd_socket_open(NULL, NULL, r->path, um_now_ns() + SECOND_NS, &transport, text, sizeof text), 0);
  r->peers[index] = *like;
  r->peers[index].socket = accept(r->listener, NULL, NULL);
  CHECK(r->peers[index].socket >= 0);
  CHECK_EQUAL(um_nbd_link_open(&r->store->links[index], transport, &export_, um_now_ns() + SECOND_NS), 0);
  CHECK_EQUAL(pthread_create(&r->peers[index].thread, NULL, serve, &r->peers[index]), 0);
}

static void setup(rig *r, double timeout_seconds) {
  memset(r, 0, sizeof *r);
  snprintf(r->folder, sizeof r->folder, "/tmp/umappy-nbd-XXXXXX");
  CHECK(mkdtemp(r->folder));
  snprintf(r->path, sizeof r->path, "%s/socket", r->folder);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  memcpy(address.sun_path, r->path, strlen(r->path) + 1);
  r->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK_EQUAL(bind(r->listener, (struct sockaddr *)&address, sizeof address), 0);
  CHECK_EQUAL(listen(r->listener, LINKS), 0);
  um_nbd_store *store = r->store = calloc(1, sizeof *store);
  store->target.timeout_ns = (uint64_t)(timeout_seconds * 1e9);
  store->links = calloc(LINKS, sizeof *store->links);
  pthread_mutex_init(&store->lock, NULL);
  pthread_cond_init(&store->changed, NULL);
  pthread_mutex_init(&store->guard.lock, NULL);
  pthread_cond_init(&store->guard.left, NULL);
  pthread_mutex_init(&store->waiters_lock, NULL);
  for (; store->link_count < LINKS; store->link_count++)
    CHECK_EQUAL(um_nbd_link_init(&store->links[store->link_count], store, store->link_count), 0);
}

static void disconnect(rig *r, uint32_t index) {
  um_nbd_link_fail(&r->store->links[index], ECONNRESET, "the test gives it up");
  CHECK_EQUAL(um_nbd_link_drop(&r->store->links[index], true, um_now_ns() + SECOND_NS), 0);
  pthread_join(r->peers[index].thread, NULL);
}

static void teardown(rig *r) {
  um_nbd_store_free(r->store);
  close(r->listener);
  unlink(r->path);
  rmdir(r->folder);
}

typedef struct user {
  pthread_t thread;
  rig *rig;
  uint64_t chance;
  uint32_t rounds;
  uint64_t ended, lost;
} user;

static void prepare(user *u, um_nbd_request *request, uint8_t *buffer) {
  uint32_t most = draw(&u->chance) % 4 ? 8192 : LENGTH_MAX;
  *request = (um_nbd_request){.type = draw(&u->chance) % 3 ? UM_NBD_CMD_READ : UM_NBD_CMD_WRITE,
                              .offset = draw(&u->chance) >> 25,
                              .length = 1 + (uint32_t)(draw(&u->chance) % most),
                              .buffer = buffer};
  for (uint32_t i = 0; i < request->length; i++)
    buffer[i] = request->type == UM_NBD_CMD_WRITE ? compute_byte(request->offset + i) : 0xa5;
}

static void check_ended(user *u, const um_nbd_request *request) {
  u->ended++;
  u->lost += request->lost;
  if (request->lost)
    CHECK(request->code < 0);
  else
    CHECK_EQUAL(request->code, 0);
  const uint8_t *buffer = request->buffer;
  for (uint32_t i = 0; request->code == 0 && i < request->length; i++)
    CHECK_EQUAL(buffer[i], compute_byte(request->offset + i));
}

static void *use(void *context) {
  user *u = context;
  um_nbd_waiter *waiter = um_nbd_waiter_take(u->rig->store);
  uint8_t *buffers = malloc(20 * LENGTH_MAX);
  for (uint32_t round = 0; round < u->rounds; round++) {
    uint32_t count = draw(&u->chance) % 3 ? 1 : 1 + (uint32_t)(draw(&u->chance) % 20);
    for (uint32_t i = 0; i < count; i++) {
      prepare(u, &waiter->requests[i], buffers + i * LENGTH_MAX);
      um_nbd_link_submit(&u->rig->store->links[draw(&u->chance) % LINKS], waiter, &waiter->requests[i]);
    }
    while (count > 0) {
      uint64_t until = draw(&u->chance) % 4 ? UINT64_MAX : um_now_ns() + 100000;
      for (um_nbd_request *first = um_nbd_wait(waiter, until), *next; first; first = next, count--) {
        next = first->next;
        check_ended(u, first);
      }
    }
  }
  CHECK_EQUAL(waiter->pending_count, 0);
  free(buffers);
  um_nbd_waiter_give(waiter);
  return NULL;
}

static void start_users(rig *r, user *users, uint32_t rounds) {
  for (uint64_t i = 0; i < THREADS; i++) {
    users[i] = (user){.rig = r, .chance = 100 + i, .rounds = rounds};
    CHECK_EQUAL(pthread_create(&users[i].thread, NULL, use, &users[i]), 0);
  }
}

static uint64_t join_users(user *users) {
  uint64_t lost = 0;
  for (uint32_t i = 0; i < THREADS; i++) {
    pthread_join(users[i].thread, NULL);
    CHECK(users[i].ended >= users[i].rounds);
    lost += users[i].lost;
  }
  return lost;
}

static void share_connections(bool structured) {
  rig r;
  user users[THREADS];
  setup(&r, 30);
  for (uint32_t i = 0; i < LINKS; i++)
    connect_link(&r, i, &(peer){.structured = structured, .chance = i});
  start_users(&r, users, 150);
  CHECK_EQUAL(join_users(users), 0);
  for (uint32_t i = 0; i < LINKS; i++) {
    CHECK_EQUAL(r.store->links[i].owed, 0);
    CHECK(!r.store->links[i].driver && !r.store->links[i].sender);
    CHECK_EQUAL(r.store->links[i].load, 0);
    disconnect(&r, i);
  }
  teardown(&r);
}

static void test_connections_that_end_in_the_middle_lose_requests_and_nothing_else(void) {
  rig r;
  user users[THREADS];
  setup(&r, 30);
  for (uint32_t i = 0; i < LINKS; i++)
    connect_link(&r, i, &(peer){.structured = true, .chance = i, .limit = 40});
  start_users(&r, users, 400);
  for (uint32_t turn = 0; turn < 60; turn++) {
    struct timespec pause = {0, 3000000};
    nanosleep(&pause, NULL);
    disconnect(&r, turn % LINKS);
    connect_link(&r, turn % LINKS, &(peer){.structured = turn % 3, .chance = turn, .limit = 1 + turn * 2});
  }
  CHECK(join_users(users) > 0);
  for (uint32_t i = 0; i < LINKS; i++)
    disconnect(&r, i);
  teardown(&r);
}

static void test_silent_server_is_given_up_at_the_deadline(void) {
  rig r;
  setup(&r, 0.3);
  for (uint32_t i = 0; i < LINKS; i++)
    connect_link(&r, i, &(peer){.silent = true});
  um_nbd_waiter *waiter = um_nbd_waiter_take(r.store);
  uint8_t buffer[100];
  um_nbd_request request = {.type = UM_NBD_CMD_READ, .length = sizeof buffer, .buffer = buffer};
  uint64_t start = um_now_ns();
  um_nbd_link_do(&r.store->links[0], waiter, &request, 1);
  CHECK(request.lost && request.sent);
  CHECK_EQUAL(request.code, -ETIMEDOUT);
  CHECK(um_now_ns() - start >= 3 * SECOND_NS / 10 && um_now_ns() - start < 10 * SECOND_NS);
  um_nbd_link_do(&r.store->links[0], waiter, &request, 1);
  CHECK(request.lost && !request.sent);
  um_nbd_waiter_give(waiter);
  for (uint32_t i = 0; i < LINKS; i++)
    disconnect(&r, i);
  teardown(&r);
}

/* Its own thread goes on with others on the same connection, which are answered at once. */
static void test_request_that_is_passed_over_for_ever_ends_at_the_deadline(void) {
  rig r;
  setup(&r, 0.5);
  connect_link(&r, 0, &(peer){.passes = true});
  connect_link(&r, 1, &(peer){.passes = true});
  um_nbd_waiter *waiter = um_nbd_waiter_take(r.store);
  uint8_t buffer[200];
  um_nbd_request passed = {.type = UM_NBD_CMD_READ, .length = 100, .buffer = buffer}, elsewhere = passed;
  um_nbd_request other = {.type = UM_NBD_CMD_READ, .length = 100, .buffer = buffer + 100};
  uint64_t start = um_now_ns();
  um_nbd_link_submit(&r.store->links[1], waiter, &elsewhere); /* so it polls */
  um_nbd_link_submit(&r.store->links[0], waiter, &passed);
  for (other.lost = false; !other.lost;) {
    CHECK(um_now_ns() - start < 10 * SECOND_NS);
    um_nbd_link_submit(&r.store->links[0], waiter, &other);
    CHECK(um_nbd_wait(waiter, UINT64_MAX));
  }
  while (waiter->pending_count > 0)
    um_nbd_wait(waiter, UINT64_MAX);
  CHECK(passed.lost && elsewhere.lost);
  CHECK_EQUAL(passed.code, -ETIMEDOUT);
  um_nbd_waiter_give(waiter);
  for (uint32_t i = 0; i < LINKS; i++)
    disconnect(&r, i);
  teardown(&r);
}

static uint64_t thread_cpu_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

static void test_wake_that_comes_late_costs_one_turn(void) {
  rig r;
  setup(&r, 0.5);
  um_nbd_waiter *waiter = um_nbd_waiter_take(r.store);
  uint8_t buffer[200];
  um_nbd_request requests[LINKS]; /* of two connections, so that it polls */
  for (uint32_t i = 0; i < LINKS; i++) {
    connect_link(&r, i, &(peer){.silent = true});
    requests[i] = (um_nbd_request){.type = UM_NBD_CMD_READ, .length = 100, .buffer = buffer + 100 * i};
    um_nbd_link_submit(&r.store->links[i], waiter, &requests[i]);
  }
  uint64_t one = 1, before = thread_cpu_ns();
  CHECK_EQUAL(write(waiter->wake, &one, sizeof one), sizeof one);
  while (waiter->pending_count > 0)
    um_nbd_wait(waiter, UINT64_MAX);
  CHECK(thread_cpu_ns() - before < SECOND_NS / 10);
  um_nbd_waiter_give(waiter);
  for (uint32_t i = 0; i < LINKS; i++)
    disconnect(&r, i);
  teardown(&r);
}

static void test_answer_to_what_was_never_asked_ends_the_connection(void) {
  rig r;
  setup(&r, 30);
  connect_link(&r, 0, &(peer){.silent = true});
  connect_link(&r, 1, &(peer){.silent = true});
  uint8_t reply[UM_NBD_SIMPLE_SIZE] = {0}, buffer[100];
  um_nbd_put32(reply, UM_NBD_SIMPLE_MAGIC);
  um_nbd_put64(reply + 8, UM_NBD_SLOTS + 17);
  CHECK_EQUAL(send(r.peers[0].socket, reply, sizeof reply, 0), sizeof reply);
  um_nbd_waiter *waiter = um_nbd_waiter_take(r.store);
  um_nbd_request request = {.type = UM_NBD_CMD_READ, .length = sizeof buffer, .buffer = buffer};
  um_nbd_link_do(&r.store->links[0], waiter, &request, 1);
  CHECK(request.lost);
  CHECK_EQUAL(request.code, -EPROTO);
  um_nbd_waiter_give(waiter);
  for (uint32_t i = 0; i < LINKS; i++)
    disconnect(&r, i);
  teardown(&r);
}

static void test_more_requests_than_slots_all_end(void) {
  enum { COUNT = 4 * UM_NBD_SLOTS };
  rig r;
  setup(&r, 30);
  for (uint32_t i = 0; i < LINKS; i++)
    connect_link(&r, i, &(peer){.structured = true, .chance = i});
  um_nbd_waiter *waiter = um_nbd_waiter_take(r.store);
  um_nbd_request *requests = calloc(COUNT, sizeof *requests);
  uint8_t *buffer = malloc(COUNT * 64);
  for (uint32_t i = 0; i < COUNT; i++)
    requests[i] =
        (um_nbd_request){.type = UM_NBD_CMD_READ, .offset = 1000 * i, .length = 64, .buffer = buffer + 64 * (size_t)i};
  um_nbd_link_do(&r.store->links[0], waiter, requests, COUNT);
  for (uint32_t i = 0; i < COUNT; i++) {
    CHECK_EQUAL(requests[i].code, 0);
    CHECK_EQUAL(buffer[64 * i + 63], compute_byte(1000 * i + 63));
  }
  free(buffer);
  free(requests);
  um_nbd_waiter_give(waiter);
  for (uint32_t i = 0; i < LINKS; i++)
    disconnect(&r, i);
  teardown(&r);
}

/* The first thread sends for both, and its own write is answered, before it ever sleeps: what is half sent is not its
 * to send any more. */
static void test_thread_that_never_slept_leaves_no_sending_behind(void) {
  enum { LENGTH = 4 << 20 };
  rig r;
  setup(&r, 30);
  um_nbd_transport *transport;
  um_nbd_link *link = &r.store->links[0];
  um_nbd_export export_ = {.size = UINT64_C(1) << 40, .length_max = UM_NBD_LENGTH_MAX};
  char text[UM_NBD_TEXT];
  CHECK_EQUAL(um_nbd_socket_open(NULL, NULL, r.path, um_now_ns() + SECOND_NS, &transport, text, sizeof text), 0);
  int other = accept(r.listener, NULL, NULL);
  CHECK_EQUAL(um_nbd_link_open(link, transport, &export_, um_now_ns() + SECOND_NS), 0);
  um_nbd_waiter *first = um_nbd_waiter_take(r.store), *second = um_nbd_waiter_take(r.store);
  uint8_t *bytes = calloc(1, LENGTH), *sink = malloc(LENGTH), reply[UM_NBD_SIMPLE_SIZE] = {0};
  um_nbd_request requests[2];
  for (int i = 0; i < 2; i++)
    requests[i] = (um_nbd_request){.type = UM_NBD_CMD_WRITE, .length = LENGTH, .buffer = bytes};
  um_nbd_link_submit(link, first, &requests[0]);
  um_nbd_link_submit(link, second, &requests[1]);
  for (size_t left = UM_NBD_REQUEST_SIZE + LENGTH; left > 0;) {
    ssize_t n = recv(other, sink, left < LENGTH ? left : LENGTH, MSG_DONTWAIT);
    left -= n > 0 ? (size_t)n : 0;
    um_nbd_link_send(link, first);
  }
  CHECK(link->sender == first);
  um_nbd_put32(reply, UM_NBD_SIMPLE_MAGIC);
  um_nbd_put64(reply + 8, requests[0].cookie);
  CHECK_EQUAL(send(other, reply, sizeof reply, 0), sizeof reply);
  CHECK(um_nbd_link_duty(link, second).events & POLLIN);
  um_nbd_link_receive(link, second, false);
  CHECK(um_nbd_wait(first, UINT64_MAX) == &requests[0]);
  CHECK(um_nbd_link_duty(link, second).events & POLLOUT);
  close(other);
  while (second->pending_count > 0)
    um_nbd_wait(second, UINT64_MAX);
  CHECK(requests[1].lost);
  um_nbd_waiter_give(first);
  um_nbd_waiter_give(second);
  free(bytes);
  free(sink);
  teardown(&r);
}

static void test_threads_that_share_connections_get_structured_replies(void) {
  share_connections(true);
}

static void test_threads_that_share_connections_get_simple_replies(void) {
  share_connections(false);
}

int main(void) {
  watchdog_start(100);
  RUN(test_threads_that_share_connections_get_structured_replies);
  RUN(test_threads_that_share_connections_get_simple_replies);
  RUN(test_connections_that_end_in_the_middle_lose_requests_and_nothing_else);
  RUN(test_silent_server_is_given_up_at_the_deadline);
  RUN(test_request_that_is_passed_over_for_ever_ends_at_the_deadline);
  RUN(test_wake_that_comes_late_costs_one_turn);
  RUN(test_answer_to_what_was_never_asked_ends_the_connection);
  RUN(test_more_requests_than_slots_all_end);
  RUN(test_thread_that_never_slept_leaves_no_sending_behind);
  return 0;
}
