/* nbd_transport.c: sockets, and waiting on them until a deadline, for handshakes. */
#define _GNU_SOURCE
#include "nbd_transport.h"

#include "internal.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define BUSY_PAUSE_NS 5000000 /* between tries where a server's queue of connections is full */

static ssize_t socket_send(um_nbd_transport *transport, const struct iovec *parts, int count) {
  struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = (size_t)count};
  ssize_t n;
  do
    n = sendmsg(transport->descriptor, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  while (n < 0 && errno == EINTR);
  return n < 0 ? -errno : n;
}

static ssize_t receive(um_nbd_transport *transport, const struct iovec *parts, int count, int flags) {
  struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = (size_t)count};
  ssize_t n;
  do
    n = recvmsg(transport->descriptor, &message, flags);
  while (n < 0 && errno == EINTR);
  return n < 0 ? -errno : n;
}

static ssize_t socket_receive(um_nbd_transport *transport, const struct iovec *parts, int count) {
  return receive(transport, parts, count, MSG_DONTWAIT);
}

static ssize_t socket_await(um_nbd_transport *transport, const struct iovec *parts, int count, bool all) {
  return receive(transport, parts, count, all ? MSG_WAITALL : 0);
}

static void socket_shutdown(um_nbd_transport *transport) {
  shutdown(transport->descriptor, SHUT_RDWR);
}

static void socket_close(um_nbd_transport *transport, bool reset) {
  struct linger now = {1, 0};
  if (reset)
    setsockopt(transport->descriptor, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  close(transport->descriptor);
  free(transport);
}

static void socket_forked(um_nbd_transport *transport) {
  close(transport->descriptor);
}

static const um_nbd_transport_ops socket_ops = {
    .send = socket_send,
    .receive = socket_receive,
    .await = socket_await,
    .shutdown = socket_shutdown,
    .close = socket_close,
    .forked = socket_forked,
};

_Thread_local int um_nbd_cancel = -1;

/* Without a descriptor (-1) it sleeps. */
static int wait_descriptor(int descriptor, short events, uint64_t deadline_ns) {
  for (;;) {
    uint64_t now = um_now_ns();
    if (now >= deadline_ns)
      return -ETIMEDOUT;
    uint64_t left = deadline_ns - now;
    struct timespec most = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
    struct pollfd look[2] = {{.fd = descriptor, .events = events}, {.fd = um_nbd_cancel, .events = POLLIN}};
    int n = ppoll(look, 2, &most, NULL);
    if (n > 0)
      return look[1].revents ? -ECANCELED : 0;
    if (n < 0 && errno != EINTR)
      return -errno;
  }
}

int um_nbd_transport_wait(const um_nbd_transport *transport, short events, uint64_t deadline_ns) {
  return wait_descriptor(transport->descriptor, events, deadline_ns);
}

int um_nbd_transport_send(um_nbd_transport *transport, const void *bytes, size_t length, uint64_t deadline_ns) {
  while (length > 0) {
    struct iovec part = {(void *)bytes, length};
    ssize_t n = transport->ops->send(transport, &part, 1);
    if (n == -EAGAIN)
      n = um_nbd_transport_wait(transport, transport->send_events, deadline_ns);
    if (n < 0)
      return (int)n;
    bytes = (const char *)bytes + n;
    length -= (size_t)n;
  }
  return 0;
}

int um_nbd_transport_receive(um_nbd_transport *transport, void *buffer, size_t length, uint64_t deadline_ns) {
  while (length > 0) {
    struct iovec part = {buffer, length};
    ssize_t n = transport->ops->receive(transport, &part, 1);
    if (n == 0)
      return -ECONNRESET;
    if (n == -EAGAIN)
      n = um_nbd_transport_wait(transport, transport->receive_events, deadline_ns);
    if (n < 0)
      return (int)n;
    buffer = (char *)buffer + n;
    length -= (size_t)n;
  }
  return 0;
}

/* A descriptor, connected, or -errno. */
static int connect_one(int family, int protocol, const struct sockaddr *address, socklen_t length,
                       uint64_t deadline_ns) {
  int descriptor = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol);
  if (descriptor < 0)
    return -errno;
  int code, on = 1;
  socklen_t size = sizeof code;
  while ((code = connect(descriptor, address, length) < 0 ? errno : 0) == EINTR || (code == EAGAIN)) {
    int waited = wait_descriptor(-1, 0, um_now_ns() + BUSY_PAUSE_NS);
    if (waited == -ECANCELED || um_now_ns() >= deadline_ns) {
      code = -waited;
      break;
    }
  }
  if (code == EINPROGRESS || code == EALREADY) {
    code = -wait_descriptor(descriptor, POLLOUT, deadline_ns);
    if (code == 0 && getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &code, &size) < 0)
      code = errno;
  }
  if (code == 0 || code == EISCONN) {
    struct timeval patience = {.tv_usec = UM_NBD_AWAIT_MS * 1000};
    setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) & ~O_NONBLOCK); /* calls say for themselves */
    if (family != AF_UNIX) {
      setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      setsockopt(descriptor, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    }
    return descriptor;
  }
  close(descriptor);
  return -code;
}

static int connect_unix(const char *path, uint64_t deadline_ns, char *text, size_t room) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  size_t length = strlen(path);
  if (length == 0 || length >= sizeof address.sun_path) {
    snprintf(text, room, "socket path of %zu bytes: wants 1 to %zu", length, sizeof address.sun_path - 1);
    return -EINVAL;
  }
  memcpy(address.sun_path, path, length);
  if (path[0] == '@')
    address.sun_path[0] = '\0';
  socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + (path[0] != '@'));
  int descriptor = connect_one(AF_UNIX, 0, (struct sockaddr *)&address, size, deadline_ns);
  if (descriptor < 0)
    snprintf(text, room, "connecting to the socket %s: %s", path, strerror(-descriptor));
  return descriptor;
}

/* Each address in turn has its share of the time. */
static int connect_host(const char *host, const char *port, uint64_t deadline_ns, char *text, size_t room) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG}, *found = NULL;
  int code = getaddrinfo(host, port, &hints, &found);
  if (code == EAI_NONAME || code == EAI_ADDRFAMILY) { /* loopback alone has no configured address */
    hints.ai_flags = 0;
    code = getaddrinfo(host, port, &hints, &found);
  }
  if (code) {
    snprintf(text, room, "looking up %s: %s", host, code == EAI_SYSTEM ? strerror(errno) : gai_strerror(code));
    return -EHOSTUNREACH;
  }
  unsigned left = 0;
  for (struct addrinfo *at = found; at; at = at->ai_next)
    left++;
  int descriptor = -EHOSTUNREACH;
  for (struct addrinfo *at = found; at && descriptor < 0; at = at->ai_next, left--) {
    uint64_t now = um_now_ns(), rest = deadline_ns > now ? deadline_ns - now : 0;
    descriptor = connect_one(at->ai_family, at->ai_protocol, at->ai_addr, at->ai_addrlen, now + rest / left);
  }
  freeaddrinfo(found);
  if (descriptor < 0)
    snprintf(text, room, "connecting to %s port %s: %s", host, port, strerror(-descriptor));
  return descriptor;
}

int um_nbd_socket_open(const char *host, const char *port, const char *path, uint64_t deadline_ns,
                       um_nbd_transport **transport, char *text, size_t room) {
  um_nbd_transport *made = calloc(1, sizeof *made);
  if (!made) {
    snprintf(text, room, "%s", strerror(ENOMEM));
    return -ENOMEM;
  }
  int descriptor =
      host ? connect_host(host, port, deadline_ns, text, room) : connect_unix(path, deadline_ns, text, room);
  if (descriptor < 0) {
    free(made);
    return descriptor;
  }
  made->ops = &socket_ops;
  made->drains = true;
  made->descriptor = descriptor;
  atomic_init(&made->send_events, POLLOUT);
  atomic_init(&made->receive_events, POLLIN);
  *transport = made;
  return 0;
}
