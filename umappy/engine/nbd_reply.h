/* nbd_reply.h: requests, and the parser of the replies to them. No I/O and no locks: whoever has the bytes feeds it. */
#ifndef UM_NBD_REPLY_H
#define UM_NBD_REPLY_H

#include "nbd_protocol.h"

#include <stdbool.h>
#include <stddef.h>

#define UM_NBD_WHY 160u    /* bytes of the parser's words on what was wrong */
#define UM_NBD_PARTS 1024u /* separate stretches of a read, arrived out of order, that are put up with */

typedef struct um_nbd_stretch {
  uint32_t start, end; /* bytes from the start of the request */
} um_nbd_stretch;

typedef struct um_nbd_request um_nbd_request;
struct um_nbd_request {
  /* The caller's, constant from submitting to collecting: */
  uint16_t type, flags; /* UM_NBD_CMD_..., UM_NBD_CMD_FLAG_... */
  uint32_t length;      /* bytes; 0 for FLUSH */
  uint64_t offset;
  void *buffer;  /* READ: to fill; WRITE: only read, and does not change */
  void *context; /* the caller's own */
  /* Out, when it has ended: */
  int code;  /* 0, or -errno as the server told it; lost: -ECONNRESET or -ETIMEDOUT */
  bool lost; /* the connection ended first */
  bool sent; /* some byte of it may have reached the server: what is lost may be done later */
  /* The link's: */
  bool queued;                         /* not all of it is sent */
  bool answered;                       /* while it was being sent */
  struct um_nbd_waiter *owner;         /* who collects it */
  struct um_nbd_link *link;            /* that it was submitted to */
  um_nbd_request *next, *prev;         /* of the list it is in */
  uint64_t cookie;                     /* 0: no byte of it was sent */
  uint8_t header[UM_NBD_REQUEST_SIZE]; /* as it is sent */
  /* The parser's: */
  uint32_t covered;      /* bytes from its start that arrived */
  um_nbd_stretch *parts; /* what arrived behind that, rising, apart; NULL: nothing */
  uint32_t part_count;
};

/* What the parser asks of whoever has the table of requests. */
typedef struct um_nbd_reply_calls {
  um_nbd_request *(*find)(void *context, uint64_t cookie); /* NULL: nobody waits for that */
  void (*end)(void *context, um_nbd_request *request);     /* the reply is whole, code is set; forget it */
} um_nbd_reply_calls;

typedef struct um_nbd_reply {
  const um_nbd_reply_calls *calls; /* constant, and so context */
  void *context;
  bool structured;       /* constant for a connection */
  um_nbd_request *about; /* whose reply is being read; NULL: between two */
  uint8_t head[64];      /* the begin of a reply that is not whole yet */
  uint32_t held;         /* bytes in it */
  bool last;             /* the chunk is the last of its reply */
  uint8_t *to;           /* where data goes, while left > 0; NULL: nowhere */
  uint32_t left;         /* bytes of data still to come */
  char why[UM_NBD_WHY];  /* of -EPROTO */
} um_nbd_reply;

void um_nbd_reply_init(um_nbd_reply *reply, bool structured, const um_nbd_reply_calls *calls, void *context);
/* Parses bytes. 0, or -EPROTO with `why`; then it can only be thrown away. */
int um_nbd_reply_feed(um_nbd_reply *reply, const uint8_t *bytes, size_t length);
/* Where the next bytes of data belong, so that they need no copy; how many, 0: feed it. */
size_t um_nbd_reply_room(const um_nbd_reply *reply, void **to);
/* A chunk's head is there, but for the end of it, and it holds all the data of a read: where that belongs, and how many
 * bytes of head come before it; 0: it is not so. */
uint32_t um_nbd_reply_ahead(const um_nbd_reply *reply, void **to, size_t *length);
bool um_nbd_reply_is_between(const um_nbd_reply *reply);     /* two replies */
int um_nbd_reply_filled(um_nbd_reply *reply, size_t length); /* so many were put there */
void um_nbd_request_write_header(um_nbd_request *request);   /* as it is sent */
/* A request leaves, whatever the parser knew of it: lost. */
void um_nbd_request_forget(um_nbd_request *request);

#endif
