/* nbd_link_io.c: sending and receiving on a link, each by the one thread that has the role.
 *
 * What is queued goes out together: many requests, one system call. What comes in goes straight to the buffer it is for
 * once its head was read; what follows lands in a staging area, and is copied from there: much where replies are short
 * and many come at once, little where they are long. Where a thread waits for a single reply, its head and data are
 * received by one call, as the place of the data is known before. */
#include "nbd.h"

#include "internal.h"

#include <stdio.h>

#define PARTS 256            /* of a send: two for each write */
#define SEND_MAX (1u << 20)  /* bytes of a send, about */
#define SHORT (16u << 10)    /* replies up to this many bytes are received many at once */
#define AHEAD 4096u          /* bytes received behind a longer one */
#define GUESS_MAX (1u << 20) /* bytes of a single reply whose place is guessed */
#define TURNS 8              /* receives one after another */

static uint32_t count_bytes(const um_nbd_request *request) {
  return UM_NBD_REQUEST_SIZE + (request->type == UM_NBD_CMD_WRITE ? request->length : 0);
}

static bool take_slot(um_nbd_link *link, um_nbd_request *request) {
  if (request->cookie)
    return true;
  if (link->free_count == 0)
    return false;
  uint16_t slot = link->free_slots[--link->free_count];
  request->cookie = ++link->generation * UM_NBD_SLOTS + slot;
  request->sent = true;
  link->slots[slot] = request;
  um_nbd_request_write_header(request);
  return true;
}

static void add_part(struct iovec *parts, int *count, void *bytes, uint32_t length, uint32_t *skip) {
  if (*skip >= length) {
    *skip -= length;
    return;
  }
  parts[(*count)++] = (struct iovec){(char *)bytes + *skip, length - *skip};
  *skip = 0;
}

/* What is to go out now, of as many requests as there are slots for. */
static int plan_send(um_nbd_link *link, struct iovec *parts) {
  int count = 0;
  uint32_t skip = link->sent;
  uint64_t bytes = 0;
  for (um_nbd_request *request = link->queue_first; request; request = request->next) {
    if (count + 2 > PARTS || bytes >= SEND_MAX || !take_slot(link, request))
      break;
    bytes += count_bytes(request);
    add_part(parts, &count, request->header, UM_NBD_REQUEST_SIZE, &skip);
    if (request->type == UM_NBD_CMD_WRITE)
      add_part(parts, &count, request->buffer, request->length, &skip);
  }
  return count;
}

/* So many bytes went out. False: the server answered what it had not been sent. */
static bool note_sent(um_nbd_link *link, size_t bytes) {
  uint64_t out = link->sent + bytes;
  for (um_nbd_request *request; (request = link->queue_first) && out >= count_bytes(request);) {
    out -= count_bytes(request);
    um_nbd_link_flew(link, request);
    if (request->answered) {
      um_nbd_waiter *owner = request->owner;
      um_nbd_link_finish(link, request);
      um_nbd_wake(owner);
    }
  }
  link->sent = (uint32_t)out;
  return !link->queue_first || !link->queue_first->answered;
}

void um_nbd_link_send(um_nbd_link *link, um_nbd_waiter *waiter) {
  struct iovec parts[PARTS];
  char why[UM_NBD_TEXT];
  ssize_t n = 0;
  bool sane = true;
  pthread_mutex_lock(&link->lock);
  while (link->up && link->sender == waiter && sane && n >= 0) {
    int count = plan_send(link, parts);
    if (count == 0) {
      link->sender = NULL;
      break;
    }
    um_nbd_transport *transport = link->transport;
    link->sending = true;
    pthread_mutex_unlock(&link->lock);
    n = transport->ops->send(transport, parts, count);
    if (n < 0)
      snprintf(why, sizeof why, "%s", um_nbd_transport_explain(transport, (int)n));
    pthread_mutex_lock(&link->lock);
    link->sending = false;
    if (n > 0)
      sane = note_sent(link, (size_t)n);
  }
  um_nbd_link_sweep(link);
  pthread_mutex_unlock(&link->lock);
  if (!sane)
    um_nbd_link_fail(link, EPROTO, "the server answered a request that it had not been sent");
  else if (n < 0 && n != -EAGAIN)
    um_nbd_link_fail(link, (int)-n, "sending to the server: %s", why);
}

/* One receive: its parts, and what is known of them. */
typedef struct receiving {
  struct iovec parts[2];
  int count;
  size_t room;  /* bytes of the first part that is a reply's data; 0: none is */
  void *guess;  /* the second part is the place of a request's data, if that is what comes; NULL: it is not */
  size_t asked; /* bytes of all */
} receiving;

static void add_room(receiving *r, void *to, size_t length) {
  r->parts[r->count++] = (struct iovec){to, length};
  r->asked += length;
}

/* The rest of a reply that has begun: exactly that. False: how much it is is not known yet. */
static bool plan_rest(um_nbd_link *link, receiving *r) {
  void *to;
  size_t length = um_nbd_reply_room(&link->reply, &to);
  *r = (receiving){.room = length};
  if (length > 0) {
    add_room(r, to, length);
    return true;
  }
  uint32_t head = um_nbd_reply_ahead(&link->reply, &to, &length);
  if (head == 0)
    return false;
  add_room(r, link->staging, head);
  add_room(r, r->guess = to, length);
  return true;
}

static void plan_receive(um_nbd_link *link, um_nbd_waiter *waiter, receiving *r) {
  um_nbd_reply *reply = &link->reply;
  void *to;
  *r = (receiving){.room = um_nbd_reply_room(reply, &to)};
  if (r->room)
    add_room(r, to, r->room);
  pthread_mutex_lock(&link->lock);
  const um_nbd_request *first = link->flight_first;
  bool is_long = first && first->length > SHORT, is_alone = link->owed == 1 && first;
  uint32_t head = reply->structured ? UM_NBD_CHUNK_SIZE + 8 : UM_NBD_SIMPLE_SIZE;
  bool guess = is_alone && first->type == UM_NBD_CMD_READ && first->owner == waiter && first->length <= GUESS_MAX &&
               um_nbd_reply_is_between(reply) && first->covered == 0 && first->part_count == 0; /* nothing to lose */
  if (guess) {
    add_room(r, link->staging, head);
    add_room(r, r->guess = first->buffer, first->length);
  } else {
    add_room(r, link->staging, is_alone && r->room ? head : is_long ? AHEAD : UM_NBD_STAGING);
  }
  pthread_mutex_unlock(&link->lock);
}

/* Bytes that were received into a request's buffer, and may be something else: what parses them would overwrite them.
 */
static int feed_guess(um_nbd_reply *reply, const void *guess, size_t n) {
  void *to;
  if (um_nbd_reply_room(reply, &to) >= n && to == guess)
    return um_nbd_reply_filled(reply, n);
  uint8_t *copy = malloc(n);
  if (!copy)
    return -ENOMEM;
  memcpy(copy, guess, n);
  int result = um_nbd_reply_feed(reply, copy, n);
  free(copy);
  return result;
}

static int parse(um_nbd_link *link, const receiving *r, size_t n) {
  um_nbd_reply *reply = &link->reply;
  int result = 0;
  if (r->room) {
    size_t placed = um_min(n, r->room);
    n -= placed;
    result = um_nbd_reply_filled(reply, placed);
  }
  size_t ahead = n > 0 ? um_min(n, r->parts[r->room ? 1 : 0].iov_len) : 0;
  if (result == 0 && ahead)
    result = um_nbd_reply_feed(reply, link->staging, ahead);
  return result == 0 && n > ahead ? feed_guess(reply, r->guess, n - ahead) : result;
}

static void wake_all(um_nbd_link *link) {
  for (uint32_t i = 0; i < link->to_wake_count; i++)
    um_nbd_wake(link->to_wake[i]);
  link->to_wake_count = 0;
}

/* 0, or -errno of the connection's end. `patient`: the thread has nothing else to wait for. The rest of a reply is
 * waited for in any case: the server is at it. */
static int receive_turns(um_nbd_link *link, um_nbd_waiter *waiter, bool patient) {
  um_nbd_transport *transport = link->transport;
  bool rest = false;
  for (int turn = 0; turn < TURNS; turn++) {
    receiving r;
    rest = rest && plan_rest(link, &r);
    if (!rest)
      plan_receive(link, waiter, &r);
    ssize_t n = rest || patient ? transport->ops->await(transport, r.parts, r.count, rest)
                                : transport->ops->receive(transport, r.parts, r.count);
    if (n == -EAGAIN)
      return 0;
    if (n <= 0)
      return n == 0 ? -ENODATA : (int)n;
    int result = parse(link, &r, (size_t)n);
    wake_all(link);
    if (result < 0 || link->shutting)
      return result < 0 ? result : -ESHUTDOWN;
    bool drained = transport->drains && (size_t)n < r.asked;
    rest = drained && transport->ops->await && !um_nbd_reply_is_between(&link->reply);
    if ((drained && !rest) || atomic_load(&waiter->ended))
      return 0;
    patient = false;
  }
  return 0;
}

void um_nbd_link_receive(um_nbd_link *link, um_nbd_waiter *waiter, bool patient) {
  pthread_mutex_lock(&link->lock);
  bool mine = link->up && link->driver == waiter;
  link->receiving |= mine;
  pthread_mutex_unlock(&link->lock);
  if (!mine)
    return;
  char why[UM_NBD_TEXT];
  int result = receive_turns(link, waiter, patient);
  if (result < 0)
    snprintf(why, sizeof why, "%s", um_nbd_transport_explain(link->transport, result));
  pthread_mutex_lock(&link->lock);
  link->receiving = false;
  um_nbd_link_sweep(link);
  bool sends = link->up && !link->sender && link->queue_first && link->free_count > 0;
  if (sends)
    link->sender = waiter;
  pthread_mutex_unlock(&link->lock);
  if (result == -ENODATA)
    um_nbd_link_fail(link, ECONNRESET, "the server closed the connection");
  else if (result == -EPROTO)
    um_nbd_link_fail(link, EPROTO, "the server does not keep to the protocol: %s", link->reply.why);
  else if (result == -ESHUTDOWN)
    um_nbd_link_fail(link, ECONNRESET, "the server is shutting down");
  else if (result < 0)
    um_nbd_link_fail(link, -result, "receiving from the server: %s", why);
  else if (sends)
    um_nbd_link_send(link, waiter);
}
