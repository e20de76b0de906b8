/* nbd_reply.c: replies, byte by byte if need be.
 *
 * Nothing that the server says is used before it is bounded by the request it is about. A read has ended only when
 * every byte of it arrived, once: what arrives in order moves a mark, what arrives ahead of it is noted as stretches.
 */
#include "nbd_reply.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define DATA_HEAD (UM_NBD_CHUNK_SIZE + 8)  /* and the offset */
#define HOLE_HEAD (UM_NBD_CHUNK_SIZE + 12) /* offset, length */
#define ERROR_HEAD (UM_NBD_CHUNK_SIZE + 6) /* error, length of the message */

void um_nbd_reply_init(um_nbd_reply *reply, bool structured, const um_nbd_reply_calls *calls, void *context) {
  memset(reply, 0, sizeof *reply);
  reply->structured = structured;
  reply->calls = calls;
  reply->context = context;
}

void um_nbd_request_forget(um_nbd_request *request) {
  free(request->parts);
  request->parts = NULL;
  request->part_count = 0;
}

void um_nbd_request_write_header(um_nbd_request *request) {
  uint8_t *at = request->header;
  um_nbd_put32(at, UM_NBD_REQUEST_MAGIC);
  um_nbd_put16(at + 4, request->flags);
  um_nbd_put16(at + 6, request->type);
  um_nbd_put64(at + 8, request->cookie);
  um_nbd_put64(at + 16, request->offset);
  um_nbd_put32(at + 24, request->length);
}

__attribute__((format(printf, 2, 3))) static int refuse(um_nbd_reply *reply, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(reply->why, sizeof reply->why, format, arguments);
  va_end(arguments);
  return -EPROTO;
}

static const char *name_type(const um_nbd_request *request) {
  switch (request->type) {
  case UM_NBD_CMD_READ:
    return "read";
  case UM_NBD_CMD_WRITE:
    return "write";
  case UM_NBD_CMD_FLUSH:
    return "flush";
  case UM_NBD_CMD_TRIM:
    return "trim";
  default:
    return "write of zeros";
  }
}

/* The protocol's errors have Linux' numbers; others it says to take for EINVAL. */
static int read_code(uint32_t error) {
  switch (error) {
  case 0:
  case EPERM:
  case EIO:
  case ENOMEM:
  case EINVAL:
  case ENOSPC:
  case EOVERFLOW:
  case EOPNOTSUPP:
  case ESHUTDOWN:
    return -(int)error;
  default:
    return -EINVAL;
  }
}

static int end(um_nbd_reply *reply, um_nbd_request *request) {
  reply->about = NULL;
  if (request->type == UM_NBD_CMD_READ && request->code == 0 && request->covered < request->length) {
    uint32_t end = request->part_count ? request->parts[0].start : request->length;
    return refuse(reply, "the reply to a read of %" PRIu32 " bytes at %" PRIu64 " lacks bytes %" PRIu32 " to %" PRIu32,
                  request->length, request->offset, request->covered, end);
  }
  um_nbd_request_forget(request);
  reply->calls->end(reply->context, request);
  return 0;
}

/* Room for one more stretch; they come in powers of two. */
static bool grow(um_nbd_request *request) {
  uint32_t count = request->part_count;
  if (count == UM_NBD_PARTS)
    return false;
  if (count > 0 && (count < 4 || (count & (count - 1))))
    return true;
  um_nbd_stretch *parts = realloc(request->parts, sizeof *parts * (count < 4 ? 4 : 2 * count));
  if (!parts)
    return false;
  request->parts = parts;
  return true;
}

static int cover(um_nbd_reply *reply, um_nbd_request *request, uint32_t start, uint32_t length) {
  uint32_t stop = start + length, at = 0, count = request->part_count;
  um_nbd_stretch *parts = request->parts;
  while (at < count && parts[at].end < start)
    at++; /* the first that ends where it starts, or behind that */
  bool before = at < count && parts[at].end == start;
  uint32_t next = at + before;
  if (start < request->covered || (next < count && parts[next].start < stop))
    return refuse(reply, "bytes %" PRIu32 " to %" PRIu32 " of a read at %" PRIu64 " came twice", start, stop,
                  request->offset);
  bool behind = next < count && parts[next].start == stop;
  if (start == request->covered) {
    request->covered = behind ? parts[next].end : stop;
    if (behind)
      memmove(parts, parts + 1, --request->part_count * sizeof *parts);
  } else if (before && behind) {
    parts[at].end = parts[next].end;
    memmove(parts + next, parts + next + 1, (--request->part_count - next) * sizeof *parts);
  } else if (before) {
    parts[at].end = stop;
  } else if (behind) {
    parts[next].start = start;
  } else {
    if (!grow(request))
      return refuse(reply, "a read of %" PRIu32 " bytes came in more than %" PRIu32 " stretches", request->length,
                    count);
    parts = request->parts;
    memmove(parts + at + 1, parts + at, (count - at) * sizeof *parts);
    parts[at] = (um_nbd_stretch){start, stop};
    request->part_count++;
  }
  return 0;
}

/* Data, or a hole, of `length` bytes at `offset` of the export. */
static int begin_content(um_nbd_reply *reply, um_nbd_request *request, const char *what, uint64_t offset,
                         uint64_t length) {
  if (request->type != UM_NBD_CMD_READ)
    return refuse(reply, "%s came in the reply to a %s", what, name_type(request));
  if (length == 0 || offset < request->offset || offset - request->offset > request->length ||
      length > request->length - (offset - request->offset))
    return refuse(reply,
                  "%s of %" PRIu64 " bytes at %" PRIu64 " came in the reply to a read of %" PRIu32 " at %" PRIu64, what,
                  length, offset, request->length, request->offset);
  return cover(reply, request, (uint32_t)(offset - request->offset), (uint32_t)length);
}

static int begin_simple(um_nbd_reply *reply) {
  uint32_t error = um_nbd_get32(reply->head + 4);
  uint64_t cookie = um_nbd_get64(reply->head + 8);
  um_nbd_request *request = reply->calls->find(reply->context, cookie);
  reply->held = 0;
  if (!request)
    return refuse(reply, "a reply has cookie %#" PRIx64 ", which no request has", cookie);
  bool reads = request->type == UM_NBD_CMD_READ;
  if (reads && reply->structured)
    return refuse(reply, "a simple reply came to a read, though structured ones were agreed on");
  if (error)
    request->code = read_code(error);
  if (error || !reads)
    return end(reply, request);
  reply->about = request;
  reply->last = true;
  reply->to = request->buffer;
  reply->left = request->covered = request->length;
  return 0;
}

/* The head of a chunk is whole, and what its type adds to it. */
static int begin_chunk(um_nbd_reply *reply) {
  const uint8_t *head = reply->head;
  uint16_t flags = um_nbd_get16(head + 4), type = um_nbd_get16(head + 6);
  uint64_t cookie = um_nbd_get64(head + 8);
  uint32_t length = um_nbd_get32(head + 16);
  um_nbd_request *request = reply->calls->find(reply->context, cookie);
  int result = 0;
  reply->held = 0;
  if (!request)
    return refuse(reply, "a chunk has cookie %#" PRIx64 ", which no request has", cookie);
  reply->last = flags & UM_NBD_CHUNK_DONE;
  reply->about = request;
  if (type == UM_NBD_CHUNK_DATA) {
    uint64_t offset = um_nbd_get64(head + UM_NBD_CHUNK_SIZE);
    result = begin_content(reply, request, "data", offset, length - 8);
    if (result == 0) {
      reply->to = (uint8_t *)request->buffer + (offset - request->offset);
      reply->left = length - 8;
    }
  } else if (type == UM_NBD_CHUNK_HOLE) {
    uint64_t offset = um_nbd_get64(head + UM_NBD_CHUNK_SIZE);
    uint32_t hole = um_nbd_get32(head + UM_NBD_CHUNK_SIZE + 8);
    result = begin_content(reply, request, "a hole", offset, hole);
    if (result == 0)
      memset((uint8_t *)request->buffer + (offset - request->offset), 0, hole);
  } else if (type & UM_NBD_CHUNK_ERROR) {
    uint32_t error = um_nbd_get32(head + UM_NBD_CHUNK_SIZE);
    uint32_t message = um_nbd_get16(head + UM_NBD_CHUNK_SIZE + 4);
    if (message + (type == UM_NBD_CHUNK_ERROR_OFFSET ? 8 : 0) > length - 6)
      return refuse(reply, "an error with a message of %" PRIu32 " bytes is longer than its chunk", message);
    if (request->code == 0)
      request->code = error ? read_code(error) : -EINVAL;
    reply->to = NULL;
    reply->left = length - 6;
  }
  if (result < 0 || reply->left > 0)
    return result;
  return reply->last ? end(reply, request) : 0;
}

/* Bytes of head wanted, by those there are; 0: the head makes no sense. */
static uint32_t find_need(um_nbd_reply *reply) {
  const uint8_t *head = reply->head;
  if (reply->held < 4)
    return 4;
  uint32_t magic = um_nbd_get32(head);
  if (magic == UM_NBD_SIMPLE_MAGIC)
    return UM_NBD_SIMPLE_SIZE;
  if (magic != UM_NBD_CHUNK_MAGIC || !reply->structured) {
    refuse(reply, "a reply begins with %#" PRIx32, magic);
    return 0;
  }
  if (reply->held < UM_NBD_CHUNK_SIZE)
    return UM_NBD_CHUNK_SIZE;
  uint16_t flags = um_nbd_get16(head + 4), type = um_nbd_get16(head + 6);
  uint32_t length = um_nbd_get32(head + 16);
  if (type == UM_NBD_CHUNK_DATA && length > 8)
    return DATA_HEAD;
  if (type == UM_NBD_CHUNK_HOLE && length == 12)
    return HOLE_HEAD;
  if (type == UM_NBD_CHUNK_NONE && length == 0 && (flags & UM_NBD_CHUNK_DONE))
    return UM_NBD_CHUNK_SIZE;
  if ((type & UM_NBD_CHUNK_ERROR) && length >= 6 && length <= UM_NBD_STRING_MAX + 64)
    return ERROR_HEAD;
  refuse(reply, "a chunk has type %#" PRIx16 ", flags %#" PRIx16 " and length %" PRIu32, type, flags, length);
  return 0;
}

static int feed_head(um_nbd_reply *reply, const uint8_t *bytes, size_t length, size_t *used) {
  uint32_t need;
  while ((need = find_need(reply)) > reply->held) {
    size_t n = need - reply->held;
    if (n > length - *used)
      n = length - *used;
    if (n == 0)
      return 0;
    memcpy(reply->head + reply->held, bytes + *used, n);
    reply->held += (uint32_t)n;
    *used += n;
  }
  if (need == 0)
    return -EPROTO;
  return need == UM_NBD_SIMPLE_SIZE ? begin_simple(reply) : begin_chunk(reply);
}

int um_nbd_reply_filled(um_nbd_reply *reply, size_t length) {
  reply->left -= (uint32_t)length;
  if (reply->to)
    reply->to += length;
  return reply->left == 0 && reply->last ? end(reply, reply->about) : 0;
}

size_t um_nbd_reply_room(const um_nbd_reply *reply, void **to) {
  *to = reply->to;
  return reply->left > 0 && reply->to ? reply->left : 0;
}

uint32_t um_nbd_reply_ahead(const um_nbd_reply *reply, void **to, size_t *length) {
  const uint8_t *head = reply->head;
  if (reply->left > 0 || reply->held < UM_NBD_CHUNK_SIZE || um_nbd_get32(head) != UM_NBD_CHUNK_MAGIC ||
      um_nbd_get16(head + 6) != UM_NBD_CHUNK_DATA)
    return 0;
  const um_nbd_request *request = reply->calls->find(reply->context, um_nbd_get64(head + 8));
  if (!request || request->type != UM_NBD_CMD_READ || um_nbd_get32(head + 16) != request->length + 8)
    return 0;
  *to = request->buffer;
  *length = request->length;
  return DATA_HEAD - reply->held;
}

bool um_nbd_reply_is_between(const um_nbd_reply *reply) {
  return reply->left == 0 && reply->held == 0;
}

int um_nbd_reply_feed(um_nbd_reply *reply, const uint8_t *bytes, size_t length) {
  size_t used = 0;
  int result = 0;
  while (used < length && result == 0) {
    if (reply->left > 0) {
      size_t n = length - used < reply->left ? length - used : reply->left;
      if (reply->to)
        memcpy(reply->to, bytes + used, n);
      used += n;
      result = um_nbd_reply_filled(reply, n);
    } else {
      result = feed_head(reply, bytes, length, &used);
    }
  }
  return result;
}
