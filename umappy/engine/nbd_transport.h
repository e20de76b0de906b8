/* nbd_transport.h: a connected stream of bytes: a socket, or TLS over one.
 *
 * send and receive never wait. A stream has one thread in send and one in receive at a time, which may be two threads
 * at once; shutdown comes from any. */
#ifndef UM_NBD_TRANSPORT_H
#define UM_NBD_TRANSPORT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>

#define UM_NBD_AWAIT_MS 100u

typedef struct um_nbd_transport um_nbd_transport;

typedef struct um_nbd_transport_ops {
  /* Bytes that went out, at least one; -EAGAIN: none can, wait for `send_events`, then offer the same bytes again, and
   * maybe more behind them; else -errno, for ever. */
  ssize_t (*send)(um_nbd_transport *transport, const struct iovec *parts, int count);
  /* Bytes that came in; 0: the other end closed; -EAGAIN: there are none, neither in the kernel nor kept back: wait for
   * `receive_events`; else -errno. */
  ssize_t (*receive)(um_nbd_transport *transport, const struct iovec *parts, int count);
  /* The same, but waits: for the first byte, or for `all`; -EAGAIN after UM_NBD_AWAIT_MS without any. NULL: there is no
   * such call. */
  ssize_t (*await)(um_nbd_transport *transport, const struct iovec *parts, int count, bool all);
  void (*shutdown)(um_nbd_transport *transport); /* all calls fail from now on, and poll returns; does not wait */
  /* Frees. Nobody is inside a call. reset: nothing that is still on its way shall reach the server (SO_LINGER 0). */
  void (*close)(um_nbd_transport *transport, bool reset);
  void (*forked)(um_nbd_transport *transport); /* in a forked child: closes the descriptor, touches nothing else */
} um_nbd_transport_ops;

struct um_nbd_transport {
  const um_nbd_transport_ops *ops;
  bool drains;       /* a receive that gave less than it could took all there was: poll tells of more; constant */
  _Atomic bool held; /* bytes that came in are kept back: receive them, poll does not tell of them */
  int descriptor;    /* to poll; constant */
  _Atomic short send_events;    /* what a send that returned -EAGAIN waits for: POLLOUT, but for TLS */
  _Atomic short receive_events; /* and a receive: POLLIN, but for TLS */
  const char *_Atomic why;      /* words on a call's -errno, from that failure on; NULL: the number says it all */
};

/* Connected within the deadline, or -errno and `text` says what failed. `host` NULL: the unix socket at `path`. */
int um_nbd_socket_open(const char *host, const char *port, const char *path, uint64_t deadline_ns,
                       um_nbd_transport **transport, char *text, size_t room);
/* All the bytes, waiting until the deadline; -ETIMEDOUT, -ECONNRESET where the other end closed, or -errno. For
 * handshakes. */
int um_nbd_transport_send(um_nbd_transport *transport, const void *bytes, size_t length, uint64_t deadline_ns);
int um_nbd_transport_receive(um_nbd_transport *transport, void *buffer, size_t length, uint64_t deadline_ns);
/* What such a call's -errno means. */
static inline const char *um_nbd_transport_explain(const um_nbd_transport *transport, int code) {
  const char *why = atomic_load(&transport->why);
  return why ? why : strerror(code < 0 ? -code : code);
}
/* Waits for events on the descriptor; 0, or -ETIMEDOUT, or -ECANCELED. */
int um_nbd_transport_wait(const um_nbd_transport *transport, short events, uint64_t deadline_ns);

/* The calling thread's: an eventfd. Once it is readable, all waits of this thread that are declared here end with
 * -ECANCELED. -1: none. */
extern _Thread_local int um_nbd_cancel;

#endif
