/* nbd_tls_stream.c: a stream of TLS records over a stream of bytes.
 *
 * OpenSSL reads from `in` and writes to `out`, never from or to a socket. What send encrypts goes to `out` and from
 * there to the inner stream; if that takes no more, the bytes are not reported as sent before `out` is empty (`taken`),
 * so that the caller waits and comes again. What stays in `out` without anybody waiting is only TLS's own answers to
 * what was received; the next call takes them along. */
#define _GNU_SOURCE
#include "nbd_tls.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RECORD (16u << 10) /* bytes of data in a record at most */
#define RECORD_EXTRA 512u  /* bytes around them at most */
#define IN_SIZE (128u << 10)
#define REFILLS_MAX 2u       /* a record may lie in both */
#define OUT_FULL (64u << 10) /* bytes from which on no more is encrypted */
#define OUT_SIZE (OUT_FULL + 2 * (RECORD + RECORD_EXTRA))

/* Some servers say no more when they miss a certificate. */
#define CLOSED_AT_ONCE                                                                                                 \
  "the server closed the connection right after the TLS handshake; if it wants a certificate of ours: "                \
  "client-cert.pem "                                                                                                   \
  "and client-key.pem go into the folder that tls-certificates names"

typedef struct stream {
  um_nbd_transport transport;
  um_nbd_transport *inner; /* constant */
  const um_openssl *openssl;
  pthread_mutex_t lock;
  um_ssl *ssl; /* lock, and so all that follows but `taken` and `plain` */
  uint32_t in_start, in_end, out_start, out_end;
  uint32_t refills;      /* of `in`, since a call began: records without data would keep it inside for ever */
  bool closed, received; /* the other end sends no more; has sent something */
  int failed, unsent;    /* -errno for ever, of all and of sending; 0 */
  size_t taken;          /* bytes that were encrypted and not yet reported as sent; the sender's, and so the next */
  uint8_t plain[RECORD]; /* where small parts become one record */
  uint8_t in[IN_SIZE], out[OUT_SIZE];
  char why[192];
} stream;

static int fail(stream *s, int code) {
  if (s->failed == 0)
    s->failed = code;
  return s->failed;
}

/* `out` to the inner stream. 0; -EAGAIN: not all of it went; -errno. What the other end said before it went away can be
 * received still. */
static int flush(stream *s) {
  while (s->unsent == 0 && s->out_start < s->out_end) {
    struct iovec part = {s->out + s->out_start, s->out_end - s->out_start};
    ssize_t count = s->inner->ops->send(s->inner, &part, 1);
    if (count == -EAGAIN)
      return -EAGAIN;
    if (count < 0)
      s->unsent = (int)count;
    else
      s->out_start += (uint32_t)count;
  }
  s->out_start = s->out_end = 0;
  return s->failed ? s->failed : s->unsent;
}

/* What OpenSSL calls, inside its own calls; the lock is held. */

static int write_record(um_bio *bio, const char *bytes, int length) {
  const um_openssl *openssl = um_openssl_get(NULL);
  stream *s = openssl->bio_data(bio);
  openssl->bio_clear_flags(bio, UM_BIO_LATER);
  if ((uint32_t)length > OUT_SIZE - s->out_end)
    flush(s);
  if ((uint32_t)length <= OUT_SIZE - s->out_end) {
    memcpy(s->out + s->out_end, bytes, (size_t)length);
    s->out_end += (uint32_t)length;
    return length;
  }
  openssl->bio_set_flags(bio, UM_BIO_WRITE_LATER);
  return -1;
}

static int read_record(um_bio *bio, char *bytes, int room) {
  const um_openssl *openssl = um_openssl_get(NULL);
  stream *s = openssl->bio_data(bio);
  openssl->bio_clear_flags(bio, UM_BIO_LATER);
  if (s->in_start == s->in_end && !s->closed && s->failed == 0) {
    if (s->refills == REFILLS_MAX) {
      openssl->bio_set_flags(bio, UM_BIO_READ_LATER);
      return -1;
    }
    struct iovec part = {s->in, IN_SIZE};
    s->refills++;
    ssize_t count = s->inner->ops->receive(s->inner, &part, 1);
    s->in_start = 0;
    s->in_end = count > 0 ? (uint32_t)count : 0;
    s->closed = count == 0;
    if (count == -EAGAIN) {
      openssl->bio_set_flags(bio, UM_BIO_READ_LATER);
      return -1;
    }
    if (count < 0)
      fail(s, (int)count);
  }
  uint32_t held = s->in_end - s->in_start, count = held < (uint32_t)room ? held : (uint32_t)room;
  memcpy(bytes, s->in + s->in_start, count);
  s->in_start += count;
  return (int)count;
}

static long control_record(um_bio *bio, int what, long number, void *pointer) {
  (void)bio, (void)number, (void)pointer;
  return what == UM_BIO_FLUSH; /* the calls of the stream do */
}

/* Once a process; never freed. A second thread that came at the same time leaves its own behind. */
static um_bio_method *find_method(const um_openssl *openssl) {
  static _Atomic(um_bio_method *) found;
  um_bio_method *method = atomic_load(&found), *none = NULL;
  if (method)
    return method;
  method = openssl->bio_method_new(openssl->bio_index() | UM_BIO_SOURCE_SINK, "umappy stream");
  if (!method || openssl->bio_method_write(method, write_record) != 1 ||
      openssl->bio_method_read(method, read_record) != 1 || openssl->bio_method_control(method, control_record) != 1)
    return NULL;
  return atomic_compare_exchange_strong(&found, &none, method) ? method : none;
}

/* OpenSSL has failed, for ever; this thread's queue of errors holds why. 0: as the other end has closed; -errno. */
static int end(stream *s) {
  if (s->failed == 0 && !s->closed) {
    int reason = um_nbd_tls_explain(s->openssl, s->why, sizeof s->why);
    atomic_store(&s->transport.why, s->why);
    fail(s, reason >= UM_SSL_ALERT ? -EACCES : -EBADMSG);
  }
  return s->failed;
}

/* Nothing came, and nothing will. */
static void note_end(stream *s) {
  if (!s->received && !s->transport.why)
    atomic_store(&s->transport.why, CLOSED_AT_ONCE);
}

/* One record of the parts from `skip` on into `out`; bytes of data in it, 0: OpenSSL has failed. */
static size_t encrypt(stream *s, const struct iovec *parts, int count, size_t skip) {
  while (count > 0 && skip >= parts->iov_len) {
    skip -= parts->iov_len;
    parts++, count--;
  }
  const uint8_t *from = (const uint8_t *)parts->iov_base + skip;
  size_t length = parts->iov_len - skip, written = 0;
  if (length < RECORD && count > 1) {
    memcpy(s->plain, from, length);
    for (int i = 1; i < count && length < RECORD; i++) {
      size_t piece = parts[i].iov_len < RECORD - length ? parts[i].iov_len : RECORD - length;
      memcpy(s->plain + length, parts[i].iov_base, piece);
      length += piece;
    }
    from = s->plain;
  }
  s->openssl->error_clear();
  if (s->openssl->write(s->ssl, from, length < RECORD ? length : RECORD, &written) == 1)
    return written;
  if (end(s) == 0)
    fail(s, -ECONNRESET);
  return 0;
}

/* Sending has failed: maybe the other end said why before it closed. */
static int look_for_reason(stream *s) {
  uint8_t byte;
  size_t count;
  s->refills = 0;
  s->openssl->error_clear();
  int done = s->openssl->peek(s->ssl, &byte, 1, &count);
  if (done != 1 && s->openssl->error_of(s->ssl, done) == UM_SSL_ERROR_SSL)
    end(s);
  note_end(s);
  return s->failed ? s->failed : s->unsent;
}

static ssize_t stream_send(um_nbd_transport *transport, const struct iovec *parts, int count) {
  stream *s = (stream *)transport;
  size_t total = 0;
  for (int i = 0; i < count; i++)
    total += parts[i].iov_len;
  pthread_mutex_lock(&s->lock);
  ssize_t result = flush(s);
  if (result == 0 && s->taken == 0) {
    size_t written = 1;
    while (written > 0 && s->taken < total && s->out_end < OUT_FULL)
      s->taken += written = encrypt(s, parts, count, s->taken);
    result = flush(s);
  }
  if (result == 0) {
    result = (ssize_t)s->taken;
    s->taken = 0;
  } else if (result != -EAGAIN && s->failed == 0) {
    result = look_for_reason(s);
  }
  pthread_mutex_unlock(&s->lock);
  return result;
}

/* Bytes of one record; 0: the other end closed; -EAGAIN, -errno. */
static ssize_t receive_record(stream *s, void *buffer, size_t room) {
  size_t count = 0;
  pthread_mutex_lock(&s->lock);
  ssize_t result = s->failed;
  if (result == 0) {
    s->refills = 0;
    s->openssl->error_clear();
    int done = s->openssl->read(s->ssl, buffer, room, &count);
    int code = s->openssl->error_of(s->ssl, done);
    if (done == 1)
      result = (ssize_t)count;
    else if (code == UM_SSL_ERROR_WANT_READ)
      result = -EAGAIN;
    else if (code == UM_SSL_ERROR_ZERO_RETURN)
      s->closed = true;
    else
      result = end(s);
    s->received |= result > 0;
    if (result <= 0 && result != -EAGAIN)
      note_end(s);
    flush(s);
  }
  atomic_store(&s->transport.held, result > 0 && (s->in_start < s->in_end || s->openssl->pending(s->ssl) > 0));
  pthread_mutex_unlock(&s->lock);
  return result;
}

static ssize_t stream_receive(um_nbd_transport *transport, const struct iovec *parts, int count) {
  stream *s = (stream *)transport;
  ssize_t total = 0;
  for (int i = 0; i < count; i++) {
    for (size_t at = 0; at < parts[i].iov_len;) {
      ssize_t piece = receive_record(s, (uint8_t *)parts[i].iov_base + at, parts[i].iov_len - at);
      if (piece <= 0)
        return total > 0 ? total : piece;
      at += (size_t)piece;
      total += piece;
    }
  }
  return total;
}

static void stream_shutdown(um_nbd_transport *transport) {
  um_nbd_transport *inner = ((stream *)transport)->inner;
  inner->ops->shutdown(inner);
}

static void stream_close(um_nbd_transport *transport, bool reset) {
  stream *s = (stream *)transport;
  um_nbd_transport *inner = s->inner;
  if (!reset && s->failed == 0) {
    s->openssl->error_clear();
    s->openssl->shutdown(s->ssl);
    flush(s);
  }
  um_nbd_tls_stream_discard(transport);
  inner->ops->close(inner, reset);
}

static void stream_forked(um_nbd_transport *transport) {
  um_nbd_transport *inner = ((stream *)transport)->inner;
  inner->ops->forked(inner);
}

static const um_nbd_transport_ops stream_ops = {
    .send = stream_send,
    .receive = stream_receive,
    .shutdown = stream_shutdown,
    .close = stream_close,
    .forked = stream_forked,
};

um_nbd_transport *um_nbd_tls_stream_make(const um_openssl *openssl, um_ssl *ssl, um_nbd_transport *inner) {
  um_bio_method *method = find_method(openssl);
  um_bio *bio = method ? openssl->bio_new(method) : NULL;
  stream *s = bio ? calloc(1, sizeof *s) : NULL;
  if (bio) {
    openssl->bio_set_data(bio, s);
    openssl->bio_set_init(bio, 1);
    openssl->set_bio(ssl, bio, bio);
  }
  if (!s) {
    openssl->ssl_free(ssl);
    return NULL;
  }
  s->transport.ops = &stream_ops;
  s->transport.descriptor = inner->descriptor;
  s->transport.send_events = POLLOUT;
  s->transport.receive_events = POLLIN;
  s->inner = inner;
  s->openssl = openssl;
  s->ssl = ssl;
  pthread_mutex_init(&s->lock, NULL);
  return &s->transport;
}

int um_nbd_tls_stream_handshake(um_nbd_transport *transport, uint64_t deadline_ns) {
  stream *s = (stream *)transport;
  for (;;) {
    s->refills = 0;
    s->openssl->error_clear();
    int done = s->openssl->handshake(s->ssl), code = s->openssl->error_of(s->ssl, done);
    int flushed = flush(s);
    if (done != 1 && code != UM_SSL_ERROR_WANT_READ)
      return s->failed ? s->failed : s->closed ? -ECONNRESET : -EPROTO;
    if (done == 1 && flushed != -EAGAIN)
      return flushed == 0 ? 0 : look_for_reason(s);
    short events = flushed == -EAGAIN ? s->inner->send_events : s->inner->receive_events;
    int result = um_nbd_transport_wait(s->inner, events, deadline_ns);
    if (result < 0)
      return result;
  }
}

void um_nbd_tls_stream_discard(um_nbd_transport *transport) {
  stream *s = (stream *)transport;
  s->openssl->ssl_free(s->ssl);
  pthread_mutex_destroy(&s->lock);
  free(s);
}
