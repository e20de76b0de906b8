#define _GNU_SOURCE
#include "nbd_server.h"

#include "check.h"
#include "nbd_protocol.h"

#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define CONNECTIONS 64

struct nbd_server {
  char folder[32], path[48];
  uint64_t size;
  uint16_t flags;
  int listener;
  pthread_t acceptor, threads[CONNECTIONS];
  pthread_mutex_t lock;
  pthread_cond_t changed;
  uint8_t *image, *durable; /* lock; so all below */
  int sockets[CONNECTIONS];
  uint32_t count, crashes, held;
  int hold_type, refuse_type; /* -1: none */
  uint32_t refuse_code;
};

typedef struct connection {
  nbd_server *server;
  int socket;
} connection;

static bool receive_all(int descriptor, void *buffer, size_t length) {
  return length == 0 || recv(descriptor, buffer, length, MSG_WAITALL) == (ssize_t)length;
}

static bool send_all(int descriptor, const void *bytes, size_t length) {
  for (ssize_t n; length > 0; bytes = (const char *)bytes + n, length -= (size_t)n)
    if ((n = send(descriptor, bytes, length, MSG_NOSIGNAL)) <= 0)
      return false;
  return true;
}

static bool answer_option(int descriptor, uint32_t option, uint32_t type, const void *data, uint32_t length) {
  uint8_t head[20];
  um_nbd_put64(head, UM_NBD_OPTION_REPLY_MAGIC);
  um_nbd_put32(head + 8, option);
  um_nbd_put32(head + 12, type);
  um_nbd_put32(head + 16, length);
  return send_all(descriptor, head, sizeof head) && send_all(descriptor, data, length);
}

static bool greet(nbd_server *server, int descriptor) {
  uint8_t greeting[18], option[16], data[4096], information[12];
  um_nbd_put64(greeting, UM_NBD_MAGIC);
  um_nbd_put64(greeting + 8, UM_NBD_OPTION_MAGIC);
  um_nbd_put16(greeting + 16, UM_NBD_GREETING_FIXED_NEWSTYLE | UM_NBD_GREETING_NO_ZEROES);
  if (!send_all(descriptor, greeting, sizeof greeting) || !receive_all(descriptor, data, 4))
    return false;
  for (;;) {
    if (!receive_all(descriptor, option, sizeof option))
      return false;
    uint32_t code = um_nbd_get32(option + 8), length = um_nbd_get32(option + 12);
    if (length > sizeof data || !receive_all(descriptor, data, length))
      return false;
    if (code == UM_NBD_OPT_GO)
      break;
    if (!answer_option(descriptor, code, UM_NBD_REP_ERR_UNSUP, NULL, 0))
      return false;
  }
  um_nbd_put16(information, UM_NBD_INFO_EXPORT);
  um_nbd_put64(information + 2, server->size);
  um_nbd_put16(information + 10, server->flags);
  return answer_option(descriptor, UM_NBD_OPT_GO, UM_NBD_REP_INFO, information, sizeof information) &&
         answer_option(descriptor, UM_NBD_OPT_GO, UM_NBD_REP_ACK, NULL, 0);
}

/* Lock held. */
static void do_request(nbd_server *server, uint16_t type, uint64_t offset, uint32_t length, uint8_t *data) {
  if (type == UM_NBD_CMD_READ)
    memcpy(data, server->image + offset, length);
  else if (type == UM_NBD_CMD_WRITE)
    memcpy(server->image + offset, data, length);
  else if (type == UM_NBD_CMD_FLUSH)
    memcpy(server->durable, server->image, server->size);
  else
    memset(server->image + offset, 0, length);
}

/* False: the server crashed meanwhile. *code: what to answer. */
static bool serve(nbd_server *server, uint16_t type, uint64_t offset, uint32_t length, uint8_t *data, uint32_t *code) {
  pthread_mutex_lock(&server->lock);
  uint32_t crashes = server->crashes;
  *code = 0;
  if (server->hold_type == type) {
    server->held++;
    pthread_cond_broadcast(&server->changed);
    while (server->hold_type == type && server->crashes == crashes)
      pthread_cond_wait(&server->changed, &server->lock);
    server->held--;
  }
  bool lives = server->crashes == crashes;
  if (lives && server->refuse_type == type) {
    server->refuse_type = -1;
    *code = server->refuse_code;
    memcpy(server->image, server->durable, server->size);
  } else if (lives) {
    do_request(server, type, offset, length, data);
  }
  pthread_mutex_unlock(&server->lock);
  return lives;
}

static void *serve_connection(void *context) {
  connection self = *(connection *)context;
  uint8_t *data = malloc(self.server->size);
  free(context);
  for (bool goes_on = greet(self.server, self.socket); goes_on;) {
    uint8_t request[UM_NBD_REQUEST_SIZE], reply[UM_NBD_SIMPLE_SIZE];
    uint32_t code;
    if (!receive_all(self.socket, request, sizeof request))
      break;
    uint16_t type = um_nbd_get16(request + 6);
    uint32_t length = um_nbd_get32(request + 24);
    if (type == UM_NBD_CMD_DISC || (type == UM_NBD_CMD_WRITE && !receive_all(self.socket, data, length)) ||
        !serve(self.server, type, um_nbd_get64(request + 16), length, data, &code))
      break;
    um_nbd_put32(reply, UM_NBD_SIMPLE_MAGIC);
    um_nbd_put32(reply + 4, code);
    memcpy(reply + 8, request + 8, 8);
    goes_on = send_all(self.socket, reply, sizeof reply) &&
              (type != UM_NBD_CMD_READ || code || send_all(self.socket, data, length));
  }
  shutdown(self.socket, SHUT_RDWR); /* closed when the server stops: its number is not used again before */
  free(data);
  return NULL;
}

static void *accept_all(void *context) {
  nbd_server *server = context;
  for (;;) {
    int descriptor = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC);
    if (descriptor < 0)
      return NULL;
    connection *made = malloc(sizeof *made);
    *made = (connection){server, descriptor};
    pthread_mutex_lock(&server->lock);
    CHECK(server->count < CONNECTIONS);
    server->sockets[server->count] = descriptor;
    CHECK_EQUAL(pthread_create(&server->threads[server->count], NULL, serve_connection, made), 0);
    server->count++;
    pthread_mutex_unlock(&server->lock);
  }
}

nbd_server *nbd_server_start(uint64_t size, uint16_t flags) {
  nbd_server *server = calloc(1, sizeof *server);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strcpy(server->folder, "/tmp/umappy-nbd-XXXXXX");
  CHECK(mkdtemp(server->folder));
  snprintf(server->path, sizeof server->path, "%s/socket", server->folder);
  strcpy(address.sun_path, server->path);
  server->size = size;
  server->flags = UM_NBD_FLAG_HAS_FLAGS | flags;
  server->hold_type = server->refuse_type = -1;
  server->image = calloc(1, size);
  server->durable = calloc(1, size);
  pthread_mutex_init(&server->lock, NULL);
  pthread_cond_init(&server->changed, NULL);
  server->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK_EQUAL(bind(server->listener, (struct sockaddr *)&address, sizeof address), 0);
  CHECK_EQUAL(listen(server->listener, CONNECTIONS), 0);
  CHECK_EQUAL(pthread_create(&server->acceptor, NULL, accept_all, server), 0);
  return server;
}

um_store *nbd_server_open(nbd_server *server, uint32_t connections, double timeout_seconds, double retry_seconds) {
  um_nbd_options options = {.name = "nbd+unix:///",
                            .path = server->path,
                            .export_name = "",
                            .writable = 1,
                            .connections = connections,
                            .timeout_ns = (uint64_t)(timeout_seconds * 1e9),
                            .retry_ns = (uint64_t)(retry_seconds * 1e9)};
  um_store *store;
  um_error error;
  int result = um_nbd_store_open(&options, &store, &error);
  if (result < 0)
    fprintf(stderr, "%s\n", error.text);
  CHECK_EQUAL(result, 0);
  return store;
}

void nbd_server_crash(nbd_server *server) {
  pthread_mutex_lock(&server->lock);
  server->crashes++;
  memcpy(server->image, server->durable, server->size);
  for (uint32_t i = 0; i < server->count; i++)
    shutdown(server->sockets[i], SHUT_RDWR);
  pthread_cond_broadcast(&server->changed);
  pthread_mutex_unlock(&server->lock);
}

void nbd_server_stop(nbd_server *server) {
  shutdown(server->listener, SHUT_RDWR);
  pthread_join(server->acceptor, NULL);
  nbd_server_crash(server);
  for (uint32_t i = 0; i < server->count; i++) {
    pthread_join(server->threads[i], NULL);
    close(server->sockets[i]);
  }
  close(server->listener);
  unlink(server->path);
  rmdir(server->folder);
  pthread_mutex_destroy(&server->lock);
  pthread_cond_destroy(&server->changed);
  free(server->image);
  free(server->durable);
  free(server);
}

void nbd_server_hold(nbd_server *server, uint16_t type) {
  pthread_mutex_lock(&server->lock);
  server->hold_type = type;
  pthread_mutex_unlock(&server->lock);
}

void nbd_server_wait_held(nbd_server *server) {
  pthread_mutex_lock(&server->lock);
  while (server->held == 0)
    pthread_cond_wait(&server->changed, &server->lock);
  pthread_mutex_unlock(&server->lock);
}

void nbd_server_release(nbd_server *server) {
  pthread_mutex_lock(&server->lock);
  server->hold_type = -1;
  pthread_cond_broadcast(&server->changed);
  pthread_mutex_unlock(&server->lock);
}

void nbd_server_refuse(nbd_server *server, uint16_t type, uint32_t code) {
  pthread_mutex_lock(&server->lock);
  server->refuse_type = type;
  server->refuse_code = code;
  pthread_mutex_unlock(&server->lock);
}

static uint8_t look(nbd_server *server, const uint8_t *bytes, uint64_t offset) {
  pthread_mutex_lock(&server->lock);
  uint8_t byte = bytes[offset];
  pthread_mutex_unlock(&server->lock);
  return byte;
}

uint8_t nbd_server_byte(nbd_server *server, uint64_t offset) {
  return look(server, server->image, offset);
}

uint8_t nbd_server_durable(nbd_server *server, uint64_t offset) {
  return look(server, server->durable, offset);
}

uint32_t nbd_server_connections(nbd_server *server) {
  pthread_mutex_lock(&server->lock);
  uint32_t count = server->count;
  pthread_mutex_unlock(&server->lock);
  return count;
}
