/* TLS over a socket, against OpenSSL's own server with a shared key: bytes come back whole whatever is full in between,
 * two threads may use a stream at once, and what the other end does wrong is told. */
#define _GNU_SOURCE
#include "check.h"
#include "internal.h"
#include "nbd_tls.h"
#include "watchdog.h"

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define USER "alice"
#define KEY "00112233445566778899aabbccddeeff"
#define TLS_1_2 0x0303
#define TLS_1_3 0x0304
#define SET_VERSION_MAX 124
#define DEADLINE_NS (um_now_ns() + SLOWER * UINT64_C(10000000000))
#define TOTAL (6u << 20)

/* What only servers need of OpenSSL. */
static struct {
  const um_ssl_method *(*method)(void);
  int (*accept)(um_ssl *ssl);
  int (*set_descriptor)(um_ssl *ssl, int descriptor);
  int (*key_update)(um_ssl *ssl, int type);
  void (*set_psk)(um_ssl_context *context,
                  unsigned (*call)(um_ssl *ssl, const char *identity, unsigned char *key, unsigned room));
} served;

static const um_openssl *o;
static char key_file[64];

typedef struct server {
  int listening, descriptor;
  int version; /* TLS_1_2, ... */
  um_ssl *ssl; /* NULL: plain bytes */
  void (*serve)(struct server *server);
  struct sockaddr_un address;
  char path[64];
  pthread_t thread;
} server;

static unsigned tell_key(um_ssl *ssl, const char *identity, unsigned char *key, unsigned room) {
  (void)ssl;
  um_nbd_psk psk;
  char text[256];
  if (um_nbd_psk_read(key_file, USER, &psk, text, sizeof text) < 0 || strcmp(identity, USER) != 0 || room < psk.length)
    return 0;
  memcpy(key, psk.key, psk.length);
  return psk.length;
}

static void *serve(void *argument) {
  server *s = argument;
  s->descriptor = accept4(s->listening, NULL, NULL, SOCK_CLOEXEC);
  CHECK(s->descriptor >= 0);
  if (s->version) {
    um_ssl_context *context = o->context_new(served.method());
    served.set_psk(context, tell_key);
    CHECK_EQUAL(o->context_ciphers(context, "PSK"), 1);
    CHECK_EQUAL(o->context_control(context, SET_VERSION_MAX, s->version, NULL), 1);
    s->ssl = o->ssl_new(context);
    served.set_descriptor(s->ssl, s->descriptor);
    if (served.accept(s->ssl) == 1)
      s->serve(s);
    o->error_clear();
    o->ssl_free(s->ssl);
    o->context_free(context);
  } else {
    s->serve(s);
  }
  close(s->descriptor);
  return NULL;
}

static void start(server *s, int version, void (*what)(server *)) {
  static unsigned count;
  *s = (server){.version = version, .serve = what, .address.sun_family = AF_UNIX};
  snprintf(s->path, sizeof s->path, "@umappy-tls-%d-%u", getpid(), count++);
  size_t length = strlen(s->path);
  memcpy(s->address.sun_path + 1, s->path + 1, length - 1);
  s->listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
  CHECK_EQUAL(bind(s->listening, (struct sockaddr *)&s->address, size), 0);
  CHECK_EQUAL(listen(s->listening, 1), 0);
  CHECK_EQUAL(pthread_create(&s->thread, NULL, serve, s), 0);
}

static void stop(server *s) {
  CHECK_EQUAL(pthread_join(s->thread, NULL), 0);
  close(s->listening);
}

static um_nbd_transport *connect_plain(const server *s) {
  char text[256];
  um_nbd_transport *t;
  CHECK_EQUAL(um_nbd_socket_open(NULL, NULL, s->path, DEADLINE_NS, &t, text, sizeof text), 0);
  return t;
}

static int start_tls(um_nbd_transport **t, const char *user, uint64_t deadline_ns, char text[256]) {
  um_nbd_tls_options options = {.psk_file = key_file, .username = (char *)user, .verify = true};
  return um_nbd_tls_start(t, &options, deadline_ns, text, 256);
}

static um_nbd_transport *connect_tls(const server *s) {
  char text[256] = "";
  um_nbd_transport *t = connect_plain(s);
  int result = start_tls(&t, USER, DEADLINE_NS, text);
  if (result < 0)
    fprintf(stderr, "%s\n", text);
  CHECK_EQUAL(result, 0);
  return t;
}

static uint8_t byte_at(uint64_t place) {
  return (uint8_t)((place * UINT64_C(0x9E3779B97F4A7C15)) >> 56);
}

static void send_some(um_nbd_transport *t, uint64_t from, size_t length) {
  static __thread uint8_t bytes[100000];
  CHECK(length <= sizeof bytes);
  for (size_t i = 0; i < length; i++)
    bytes[i] = byte_at(from + i);
  CHECK_EQUAL(um_nbd_transport_send(t, bytes, length, DEADLINE_NS), 0);
}

/* What the servers do. */

static void echo(server *s) {
  static __thread uint8_t bytes[50000];
  size_t count, written;
  while (o->read(s->ssl, bytes, sizeof bytes, &count) == 1)
    CHECK_EQUAL(o->write(s->ssl, bytes, count, &written), 1);
}

/* As echo, and asks for new keys all the time. */
static void echo_and_rekey(server *s) {
  uint8_t bytes[5000];
  size_t count, written;
  while (o->read(s->ssl, bytes, sizeof bytes, &count) == 1) {
    CHECK_EQUAL(served.key_update(s->ssl, 1), 1);
    CHECK_EQUAL(o->write(s->ssl, bytes, count, &written), 1);
  }
}

static pthread_barrier_t now_read;

static void read_later(server *s) {
  pthread_barrier_wait(&now_read);
  echo(s);
}

static void send_garbage(server *s) {
  CHECK(send(s->descriptor, "\x17\x03\x03\x00\x20 this was never encrypted, was it?", 38, MSG_NOSIGNAL) == 38);
}

/* New keys and never any data. */
static void rekey_without_end(server *s) {
  while (served.key_update(s->ssl, 0) == 1 && o->handshake(s->ssl) == 1)
    ;
}

static void do_nothing(server *s) {
  (void)s;
}

static void say_bye(server *s) {
  o->shutdown(s->ssl);
}

static void wait_for_the_end(server *s) {
  uint8_t bytes[1000];
  while (read(s->descriptor, bytes, sizeof bytes) > 0)
    ;
}

static void speak_no_tls(server *s) {
  CHECK(send(s->descriptor, "HTTP/1.0 400 Bad Request\r\n\r\n", 28, MSG_NOSIGNAL) == 28);
  wait_for_the_end(s);
}

/* The tests. */

static void *send_all(void *transport) {
  uint64_t seed = 7;
  for (uint64_t at = 0; at < TOTAL;) {
    seed = seed * 6364136223846793005u + 1;
    uint64_t length = um_min(1 + (seed >> 33) % (seed >> 60 ? 3000 : 100000), TOTAL - at);
    send_some(transport, at, length);
    at += length;
  }
  return NULL;
}

static void check_echo(int version, void (*how)(server *)) {
  server s;
  start(&s, version, how);
  um_nbd_transport *t = connect_tls(&s);
  pthread_t sender;
  CHECK_EQUAL(pthread_create(&sender, NULL, send_all, t), 0);
  static uint8_t bytes[70000];
  for (uint64_t at = 0, turn = 0; at < TOTAL; turn++) {
    uint64_t length = um_min(turn % 3 == 0 ? 28 : sizeof bytes, TOTAL - at);
    struct iovec parts[2] = {{bytes, length / 3}, {bytes + length / 3, length - length / 3}};
    ssize_t count = t->ops->receive(t, parts, 2);
    if (count == -EAGAIN) {
      CHECK_EQUAL(um_nbd_transport_wait(t, t->receive_events, DEADLINE_NS), 0);
      continue;
    }
    CHECK(count > 0);
    for (ssize_t i = 0; i < count; i++)
      CHECK_EQUAL(bytes[i], byte_at(at + (uint64_t)i));
    at += (uint64_t)count;
  }
  CHECK_EQUAL(pthread_join(sender, NULL), 0);
  t->ops->close(t, false);
  stop(&s);
}

static void bytes_come_back_with_tls_1_2(void) {
  check_echo(TLS_1_2, echo);
}

static void bytes_come_back_with_tls_1_3(void) {
  check_echo(TLS_1_3, echo);
}

static void bytes_come_back_while_keys_change(void) {
  check_echo(TLS_1_3, echo_and_rekey);
}

/* Who is told to wait offers the same bytes again, in parts that begin where the last call ended. */
static void nothing_is_lost_or_sent_twice_when_the_socket_is_full(void) {
  server s;
  pthread_barrier_init(&now_read, NULL, 2);
  start(&s, TLS_1_3, read_later);
  um_nbd_transport *t = connect_tls(&s);
  static uint8_t bytes[TOTAL], back[TOTAL];
  for (uint64_t i = 0; i < TOTAL; i++)
    bytes[i] = byte_at(i);
  uint64_t at = 0;
  struct iovec parts[3];
  unsigned again = 0;
  while (again < 3) { /* full, and still full */
    parts[0] = (struct iovec){bytes + at, 28};
    parts[1] = (struct iovec){bytes + at + 28, 0};
    parts[2] = (struct iovec){bytes + at + 28, 200000};
    ssize_t count = t->ops->send(t, parts, 3);
    CHECK(count > 0 || count == -EAGAIN);
    again = count > 0 ? 0 : again + 1;
    at += count > 0 ? (uint64_t)count : 0;
    CHECK(at + 200028 <= TOTAL);
  }
  pthread_barrier_wait(&now_read);
  uint64_t end = at + 200028;
  CHECK_EQUAL(um_nbd_transport_send(t, bytes + at, end - at, DEADLINE_NS), 0);
  CHECK_EQUAL(um_nbd_transport_receive(t, back, end, DEADLINE_NS), 0);
  CHECK(memcmp(bytes, back, end) == 0);
  t->ops->close(t, false);
  stop(&s);
  pthread_barrier_destroy(&now_read);
}

static int receive_one(um_nbd_transport *t) {
  uint8_t byte;
  return um_nbd_transport_receive(t, &byte, 1, DEADLINE_NS);
}

static void garbage_in_between_ends_the_stream_with_words(void) {
  server s;
  start(&s, TLS_1_3, send_garbage);
  um_nbd_transport *t = connect_tls(&s);
  CHECK_EQUAL(receive_one(t), -EBADMSG);
  CHECK(strstr(um_nbd_transport_explain(t, -EBADMSG), "TLS"));
  CHECK_EQUAL(receive_one(t), -EBADMSG);
  CHECK_EQUAL(um_nbd_transport_send(t, "x", 1, DEADLINE_NS), -EBADMSG);
  t->ops->close(t, true);
  stop(&s);
}

/* A stream of bytes that were received before, and never seems to end. */
typedef struct hoard {
  um_nbd_transport transport, *real;
  uint8_t *bytes; /* NULL: those of the real one */
  size_t at, length;
} hoard;

static ssize_t hoard_send(um_nbd_transport *transport, const struct iovec *parts, int count) {
  um_nbd_transport *real = ((hoard *)transport)->real;
  return real->ops->send(real, parts, count);
}

static ssize_t hoard_receive(um_nbd_transport *transport, const struct iovec *parts, int count) {
  hoard *h = (hoard *)transport;
  if (!h->bytes)
    return h->real->ops->receive(h->real, parts, count);
  size_t length = um_min(parts->iov_len, h->length - h->at);
  memcpy(parts->iov_base, h->bytes + h->at, length);
  h->at += length;
  return (ssize_t)length;
}

static void hoard_close(um_nbd_transport *transport, bool reset) {
  hoard *h = (hoard *)transport;
  h->real->ops->close(h->real, reset);
}

static const um_nbd_transport_ops hoard_ops = {.send = hoard_send, .receive = hoard_receive, .close = hoard_close};

static void records_without_data_do_not_keep_a_receive_for_ever(void) {
  server s;
  start(&s, TLS_1_3, rekey_without_end);
  um_nbd_transport *real = connect_plain(&s), *t;
  hoard h = {.transport = {.ops = &hoard_ops, .descriptor = real->descriptor}, .real = real, .length = 1u << 20};
  char text[256];
  h.transport.receive_events = POLLIN;
  h.transport.send_events = POLLOUT;
  t = &h.transport;
  CHECK_EQUAL(start_tls(&t, USER, DEADLINE_NS, text), 0);
  uint8_t *bytes = malloc(h.length), byte;
  CHECK(bytes);
  CHECK_EQUAL(um_nbd_transport_receive(real, bytes, h.length, DEADLINE_NS), 0);
  h.bytes = bytes;
  struct iovec part = {&byte, 1};
  CHECK_EQUAL(t->ops->receive(t, &part, 1), -EAGAIN);
  CHECK(h.at > 0 && h.at < h.length);
  t->ops->close(t, true);
  stop(&s);
  free(bytes);
}

static void end_of_the_stream_with_and_without_goodbye_is_the_same(void) {
  void (*const ways[])(server *) = {do_nothing, say_bye};
  for (unsigned i = 0; i < 2; i++) {
    server s;
    start(&s, i == 0 ? TLS_1_2 : TLS_1_3, ways[i]);
    um_nbd_transport *t = connect_tls(&s);
    CHECK_EQUAL(receive_one(t), -ECONNRESET);
    CHECK_EQUAL(receive_one(t), -ECONNRESET);
    t->ops->close(t, false);
    stop(&s);
  }
}

static void shutdown_in_another_thread_ends_a_wait(void) {
  server s;
  start(&s, TLS_1_3, wait_for_the_end);
  um_nbd_transport *t = connect_tls(&s);
  t->ops->shutdown(t);
  CHECK(receive_one(t) < 0);
  t->ops->close(t, true);
  stop(&s);
}

static void handshake_that_cannot_be_leaves_the_socket(int version, void (*how)(server *), const char *user, int code,
                                                       const char *words) {
  server s;
  start(&s, version, how);
  um_nbd_transport *plain = connect_plain(&s), *t = plain;
  char text[256] = "";
  int got = start_tls(&t, user, how == wait_for_the_end ? um_now_ns() + 200000000 : DEADLINE_NS, text);
  if (!strstr(text, words))
    fprintf(stderr, "%s\n", text);
  CHECK_EQUAL(got, code);
  CHECK(strstr(text, words));
  CHECK(t == plain);
  t->ops->close(t, true);
  stop(&s);
}

static void handshakes_that_cannot_be_tell_why(void) {
  handshake_that_cannot_be_leaves_the_socket(0, wait_for_the_end, USER, -ETIMEDOUT, "in time");
  handshake_that_cannot_be_leaves_the_socket(0, speak_no_tls, USER, -EPROTO, "wrong version number");
  handshake_that_cannot_be_leaves_the_socket(0, do_nothing, USER, -ECONNRESET, "closed the connection");
  handshake_that_cannot_be_leaves_the_socket(0, wait_for_the_end, "nobody", -ENOKEY, "has no key of user nobody");
  handshake_that_cannot_be_leaves_the_socket(TLS_1_2, echo, "mallory", -EACCES, "tls-psk-file");
}

static void write_keys(const char *lines) {
  FILE *file = fopen(key_file, "w");
  CHECK(file && fputs(lines, file) >= 0 && fclose(file) == 0);
}

static void files_of_keys_are_read_line_by_line(void) {
  static const struct {
    const char *lines, *user;
    int code;
    const char *words;
  } cases[] = {
      {"alice:0aFf\n", "alice", 0, ""},
      {"alice:0aFf", "alice", 0, ""},
      {"bob:00\r\nalice:0aFf\r\n", "alice", 0, ""},
      {"ali:00\nalice2:00\nalice:0aFf\n", "alice", 0, ""},
      {"", "alice", -ENOKEY, "has no key of user alice"},
      {"bob:00\n", "alice", -ENOKEY, "alice:KEY"},
      {"alice:\n", "alice", -EINVAL, "hexadecimal"},
      {"alice:0\n", "alice", -EINVAL, "hexadecimal"},
      {"alice:0g\n", "alice", -EINVAL, "hexadecimal"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    um_nbd_psk psk;
    char text[256] = "";
    write_keys(cases[i].lines);
    CHECK_EQUAL(um_nbd_psk_read(key_file, cases[i].user, &psk, text, sizeof text), cases[i].code);
    CHECK(cases[i].code == 0 || strstr(text, cases[i].words));
    CHECK(cases[i].code < 0 || (psk.length == 2 && psk.key[0] == 0x0a && psk.key[1] == 0xff));
  }
  um_nbd_psk psk;
  char text[256], lines[3000] = "alice:", user[300];
  memset(lines + 6, '0', 2 * UM_NBD_PSK_MAX);
  write_keys(lines);
  CHECK_EQUAL(um_nbd_psk_read(key_file, "alice", &psk, text, sizeof text), 0);
  CHECK_EQUAL(psk.length, UM_NBD_PSK_MAX);
  memset(lines + 6, '0', 2 * UM_NBD_PSK_MAX + 2);
  write_keys(lines);
  CHECK_EQUAL(um_nbd_psk_read(key_file, "alice", &psk, text, sizeof text), -EINVAL);
  memset(user, 'u', sizeof user - 1);
  user[sizeof user - 1] = 0;
  CHECK_EQUAL(um_nbd_psk_read(key_file, user, &psk, text, sizeof text), -EINVAL);
  CHECK_EQUAL(um_nbd_psk_read("/nowhere", "alice", &psk, text, sizeof text), -ENOENT);
  CHECK(strstr(text, "/nowhere"));
}

static void find_server_functions(void) {
  void *library = dlopen(strstr(o->where, ".so.3") ? "libssl.so.3" : "libssl.so.1.1", RTLD_NOW | RTLD_LOCAL);
  CHECK(library);
  const struct {
    void *at;
    const char *name;
  } wanted[] = {{&served.method, "TLS_server_method"},
                {&served.accept, "SSL_accept"},
                {&served.set_descriptor, "SSL_set_fd"},
                {&served.key_update, "SSL_key_update"},
                {&served.set_psk, "SSL_CTX_set_psk_server_callback"}};
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
    void *address = dlsym(library, wanted[i].name);
    CHECK(address);
    memcpy(wanted[i].at, &address, sizeof address);
  }
}

int main(void) {
  um_error error;
  o = um_openssl_get(&error);
  CHECK(o);
  CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR); /* of the servers */
  find_server_functions();
  watchdog_start(30);
  snprintf(key_file, sizeof key_file, "/tmp/umappy-keys-%d", getpid());
  RUN(files_of_keys_are_read_line_by_line);
  write_keys("mallory:ff\n" USER ":" KEY "\n");
  RUN(bytes_come_back_with_tls_1_2);
  RUN(bytes_come_back_with_tls_1_3);
  RUN(bytes_come_back_while_keys_change);
  RUN(nothing_is_lost_or_sent_twice_when_the_socket_is_full);
  RUN(garbage_in_between_ends_the_stream_with_words);
  RUN(records_without_data_do_not_keep_a_receive_for_ever);
  RUN(end_of_the_stream_with_and_without_goodbye_is_the_same);
  RUN(shutdown_in_another_thread_ends_a_wait);
  RUN(handshakes_that_cannot_be_tell_why);
  unlink(key_file);
  return 0;
}
