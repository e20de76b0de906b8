/* fuzz_nbd.c: what a server might send, through the handshake and the parser of replies: see fuzz.c.
 *
 * An input is a byte that says how, and then all that the server sends. Each is run twice, byte by byte and in pieces
 * of some size, into buffers that held different bytes before: what comes out must be the same, or the size of the
 * pieces mattered, or a read ended whose bytes had not all come. Buffers are exactly as long as their requests, for the
 * address sanitizer to see. */
#define _GNU_SOURCE
#include "fuzz.h"
#include "internal.h"
#include "nbd.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

const unsigned fuzz_edges_min = 150;

enum {                     /* of the first byte */
       HOW_REPLIES = 1,    /* no handshake, only replies */
       HOW_STRUCTURED = 2, /* then these are structured */
       HOW_DIRECT = 4,     /* data goes straight to the buffers where it may */
       HOW_PIECE = 3,      /* >> 3: the size of pieces */
};
static const size_t pieces[] = {2, 3, 7, 16, 20, 28, 64, 513, 4096, FUZZ_LENGTH};
#define PIECES (sizeof pieces / sizeof *pieces)

static const struct {
  uint16_t type;
  uint32_t length;
  uint64_t offset;
} wanted[] = {
    {UM_NBD_CMD_READ, 512, 0},
    {UM_NBD_CMD_READ, 4096, 4096},
    {UM_NBD_CMD_READ, 1, 7},
    {UM_NBD_CMD_READ, 64, UINT64_C(1) << 40},
    {UM_NBD_CMD_READ, 64, UINT64_MAX - 64},
    {UM_NBD_CMD_WRITE, 512, 512},
    {UM_NBD_CMD_FLUSH, 0, 0},
    {UM_NBD_CMD_TRIM, 4096, 8192},
    {UM_NBD_CMD_WRITE_ZEROES, 4096, 8192},
};
#define REQUESTS (sizeof wanted / sizeof *wanted)

/* One run, and what came of it. */
typedef struct run {
  um_nbd_transport transport;
  const uint8_t *bytes;
  size_t length, at, piece;
  bool direct;
  um_nbd_request requests[REQUESTS];
  bool ended[REQUESTS];
  uint32_t order[REQUESTS], count; /* in which they ended */
  int shaken, parsed;              /* results */
  um_nbd_export export_;
  char text[UM_NBD_TEXT], why[UM_NBD_WHY];
} run;

static ssize_t take_all(um_nbd_transport *transport, const struct iovec *parts, int count) {
  (void)transport;
  size_t length = 0;
  for (int i = 0; i < count; i++)
    length += parts[i].iov_len;
  return (ssize_t)length;
}

static ssize_t give_piece(um_nbd_transport *transport, const struct iovec *parts, int count) {
  run *r = (run *)transport;
  (void)count;
  size_t length = um_min(um_min(parts->iov_len, r->piece), r->length - r->at);
  memcpy(parts->iov_base, r->bytes + r->at, length);
  r->at += length;
  return (ssize_t)length;
}

static const um_nbd_transport_ops transport_ops = {.send = take_all, .receive = give_piece};

static um_nbd_request *find(void *context, uint64_t cookie) {
  run *r = context;
  return cookie < REQUESTS && !r->ended[cookie] ? &r->requests[cookie] : NULL;
}

static void end(void *context, um_nbd_request *request) {
  run *r = context;
  uint32_t index = (uint32_t)(request - r->requests);
  CHECK(!r->ended[index]);
  CHECK(request->parts == NULL);
  r->ended[index] = true;
  r->order[r->count++] = index;
}

static const um_nbd_reply_calls reply_calls = {.find = find, .end = end};

/* The end of a head, and data in the place where it is believed to belong, as the link receives them by one call; bytes
 * taken. */
static size_t parse_ahead(run *r, um_nbd_reply *reply, size_t head, void *to, size_t length) {
  const uint8_t *bytes = r->bytes + r->at;
  size_t there = r->length - r->at;
  void *place;
  head = um_min(head, there);
  length = um_min(length, there - head);
  memcpy(to, bytes + head, length);
  r->parsed = um_nbd_reply_feed(reply, bytes, head);
  if (r->parsed == 0 && length > 0) {
    if (um_nbd_reply_room(reply, &place) >= length && place == to)
      r->parsed = um_nbd_reply_filled(reply, length);
    else
      r->parsed = um_nbd_reply_feed(reply, bytes + head, length);
  }
  return head + length;
}

static void parse(run *r, bool structured) {
  um_nbd_reply reply;
  um_nbd_reply_init(&reply, structured, &reply_calls, r);
  while (r->parsed == 0 && r->at < r->length) {
    void *to;
    size_t room = r->direct ? um_nbd_reply_room(&reply, &to) : 0, data;
    size_t length = um_min(r->piece, r->length - r->at);
    size_t head = r->direct && room == 0 ? um_nbd_reply_ahead(&reply, &to, &data) : 0;
    if (head > 0) {
      length = parse_ahead(r, &reply, head, to, data);
    } else if (room > 0) {
      length = um_min(length, room);
      memcpy(to, r->bytes + r->at, length);
      r->parsed = um_nbd_reply_filled(&reply, length);
    } else {
      r->parsed = um_nbd_reply_feed(&reply, r->bytes + r->at, length);
    }
    r->at += length;
  }
  if (r->parsed < 0) {
    CHECK_EQUAL(r->parsed, -EPROTO);
    CHECK(reply.why[0]);
    memcpy(r->why, reply.why, strlen(reply.why));
  }
}

static void run_once(run *r, uint8_t how, const uint8_t *bytes, size_t length, size_t piece, bool direct, int before) {
  static const um_nbd_target target = {.name = "fuzz", .export_name = "disk"};
  um_nbd_transport *transport = &r->transport;
  *r = (run){.transport.ops = &transport_ops, .bytes = bytes, .length = length, .piece = piece, .direct = direct};
  for (size_t i = 0; i < REQUESTS; i++) {
    um_nbd_request *request = &r->requests[i];
    *request = (um_nbd_request){.type = wanted[i].type, .length = wanted[i].length, .offset = wanted[i].offset};
    request->buffer = malloc(request->length);
    CHECK(request->buffer || request->length == 0);
    memset(request->buffer, before, request->length);
  }
  bool structured = how & HOW_STRUCTURED;
  if (!(how & HOW_REPLIES)) {
    r->shaken = um_nbd_handshake(&target, UINT64_MAX, &r->export_, &transport, r->text, sizeof r->text);
    structured = r->export_.structured;
    CHECK(r->shaken == 0 || r->shaken == 1 || (r->shaken < 0 && r->text[0]));
    CHECK(r->shaken < 0 || (r->export_.length_max >= r->export_.block_min && r->export_.size <= INT64_MAX));
    CHECK(r->shaken < 0 || r->export_.length_max <= UM_NBD_LENGTH_MAX);
  }
  if (r->shaken >= 0)
    parse(r, structured);
}

static void check_same(const run *a, const run *b) {
  CHECK_EQUAL(a->shaken, b->shaken);
  CHECK(memcmp(a->text, b->text, sizeof a->text) == 0 || a->shaken >= 0);
  CHECK(memcmp(&a->export_, &b->export_, sizeof a->export_) == 0);
  CHECK_EQUAL(a->parsed, b->parsed);
  CHECK(memcmp(a->why, b->why, sizeof a->why) == 0);
  CHECK_EQUAL(a->count, b->count);
  for (uint32_t i = 0; i < a->count; i++) {
    const um_nbd_request *one = &a->requests[a->order[i]], *other = &b->requests[b->order[i]];
    CHECK_EQUAL(a->order[i], b->order[i]);
    CHECK_EQUAL(one->code, other->code);
    CHECK(one->code != 0 || one->type != UM_NBD_CMD_READ || memcmp(one->buffer, other->buffer, one->length) == 0);
  }
}

static void clear(run *r) {
  for (size_t i = 0; i < REQUESTS; i++) {
    um_nbd_request_forget(&r->requests[i]);
    free(r->requests[i].buffer);
  }
}

void fuzz_one(const uint8_t *bytes, uint64_t length) {
  static run a, b;
  if (length == 0)
    return;
  uint8_t how = bytes[0];
  run_once(&a, how, bytes + 1, length - 1, 1, false, 0x00);
  run_once(&b, how, bytes + 1, length - 1, pieces[(how >> HOW_PIECE) % PIECES], how & HOW_DIRECT, 0xFF);
  check_same(&a, &b);
  clear(&a);
  clear(&b);
}

/* The corpus: what servers send that keep to the protocol, and some that nearly do. */

typedef struct stream {
  uint64_t length;
  uint8_t bytes[FUZZ_LENGTH];
} stream;

static void put(stream *s, uint64_t value, unsigned size) {
  uint8_t big[8];
  um_nbd_put64(big, value);
  memcpy(s->bytes + s->length, big + 8 - size, size);
  s->length += size;
}

static void put_filler(stream *s, uint32_t length) {
  for (uint32_t i = 0; i < length; i++)
    put(s, 'a' + i % 26, 1);
}

static void put_option_reply(stream *s, uint32_t option, uint32_t type, uint32_t length) {
  put(s, UM_NBD_OPTION_REPLY_MAGIC, 8);
  put(s, option, 4);
  put(s, type, 4);
  put(s, length, 4);
}

static void put_greeting(stream *s, uint16_t flags, bool structured) {
  put(s, UM_NBD_MAGIC, 8);
  put(s, UM_NBD_OPTION_MAGIC, 8);
  put(s, flags, 2);
  put_option_reply(s, UM_NBD_OPT_STRUCTURED_REPLY, structured ? UM_NBD_REP_ACK : UM_NBD_REP_ERR_UNSUP, 0);
}

static void put_handshake(stream *s, bool structured) {
  put_greeting(s, 3, structured);
  put_option_reply(s, UM_NBD_OPT_GO, UM_NBD_REP_INFO, 12);
  put(s, UM_NBD_INFO_EXPORT, 2);
  put(s, 1u << 20, 8);
  put(s, UM_NBD_FLAG_HAS_FLAGS | UM_NBD_FLAG_SEND_FLUSH, 2);
  put_option_reply(s, UM_NBD_OPT_GO, UM_NBD_REP_INFO, 14);
  put(s, UM_NBD_INFO_BLOCK_SIZE, 2);
  put(s, 512, 4);
  put(s, 4096, 4);
  put(s, 1u << 20, 4);
  put_option_reply(s, UM_NBD_OPT_GO, UM_NBD_REP_ACK, 0);
}

static void put_simple(stream *s, uint32_t request, uint32_t error) {
  put(s, UM_NBD_SIMPLE_MAGIC, 4);
  put(s, error, 4);
  put(s, request, 8);
  if (error == 0 && wanted[request].type == UM_NBD_CMD_READ)
    put_filler(s, wanted[request].length);
}

static void put_chunk(stream *s, uint32_t request, uint16_t type, bool done, uint32_t length) {
  put(s, UM_NBD_CHUNK_MAGIC, 4);
  put(s, done ? UM_NBD_CHUNK_DONE : 0, 2);
  put(s, type, 2);
  put(s, request, 8);
  put(s, length, 4);
}

static void put_data(stream *s, uint32_t request, uint32_t start, uint32_t length, bool done) {
  put_chunk(s, request, UM_NBD_CHUNK_DATA, done, length + 8);
  put(s, wanted[request].offset + start, 8);
  put_filler(s, length);
}

static void put_hole(stream *s, uint32_t request, uint32_t start, uint32_t length, bool done) {
  put_chunk(s, request, UM_NBD_CHUNK_HOLE, done, 12);
  put(s, wanted[request].offset + start, 8);
  put(s, length, 4);
}

static void put_error(stream *s, uint32_t request, uint16_t type, bool done, uint32_t message) {
  put_chunk(s, request, type, done, 6 + message + (type == UM_NBD_CHUNK_ERROR_OFFSET ? 8 : 0));
  put(s, EIO, 4);
  put(s, message, 2);
  put_filler(s, message);
  if (type == UM_NBD_CHUNK_ERROR_OFFSET)
    put(s, wanted[request].offset, 8);
}

static void put_simple_replies(stream *s) {
  for (uint32_t i = 0; i < REQUESTS; i++)
    put_simple(s, (uint32_t)(REQUESTS - 1 - i), i % 4 == 3 ? EIO : 0);
}

static void put_structured_replies(stream *s) {
  for (uint32_t place = 3584; place > 0; place -= 512) /* from behind */
    put_data(s, 1, place, 512, false);
  put_data(s, 0, 0, 100, false);
  put_hole(s, 0, 100, 312, false);
  put_data(s, 0, 412, 100, true);
  put_hole(s, 1, 0, 512, false);
  put_chunk(s, 1, UM_NBD_CHUNK_NONE, true, 0);
  put_data(s, 2, 0, 1, true);
  put_error(s, 3, UM_NBD_CHUNK_ERROR_OFFSET, false, 5);
  put_data(s, 3, 0, 64, true);
  put_hole(s, 4, 0, 64, true);
  put_error(s, 5, UM_NBD_CHUNK_ERROR_PLAIN, true, 0);
  put_simple(s, 6, 0);
  put_chunk(s, 7, UM_NBD_CHUNK_NONE, true, 0);
  put_simple(s, 8, ENOSPC);
}

/* So many requests end when it is run. */
static void save(const char *folder, const char *name, stream *s, uint32_t ended) {
  static run r;
  char path[512];
  CHECK(s->length <= FUZZ_LENGTH);
  run_once(&r, s->bytes[0], s->bytes + 1, s->length - 1, 1, false, 0);
  CHECK_EQUAL(r.parsed, 0);
  CHECK_EQUAL(r.count, ended);
  clear(&r);
  snprintf(path, sizeof path, "%s/%s", folder, name);
  int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  CHECK(descriptor >= 0 && write(descriptor, s->bytes, s->length) == (ssize_t)s->length);
  close(descriptor);
  memset(s, 0, sizeof *s);
}

int fuzz_make(const char *folder) {
  static stream s;
  put(&s, 9 << HOW_PIECE | HOW_REPLIES, 1);
  put_simple_replies(&s);
  save(folder, "simple", &s, REQUESTS);
  put(&s, 9 << HOW_PIECE | HOW_REPLIES | HOW_STRUCTURED | HOW_DIRECT, 1);
  put_structured_replies(&s);
  save(folder, "structured", &s, REQUESTS);
  put(&s, 5 << HOW_PIECE | HOW_DIRECT, 1);
  put_handshake(&s, true);
  put_structured_replies(&s);
  save(folder, "go", &s, REQUESTS);
  put(&s, 5 << HOW_PIECE, 1);
  put_greeting(&s, 1, false);
  put_option_reply(&s, UM_NBD_OPT_GO, UM_NBD_REP_ERR_UNSUP, 0);
  put(&s, 1u << 20, 8);
  put(&s, UM_NBD_FLAG_HAS_FLAGS, 2);
  s.length += 124; /* the zeros behind an old answer */
  put_simple_replies(&s);
  save(folder, "by-name", &s, REQUESTS);
  put(&s, 3 << HOW_PIECE, 1);
  put_greeting(&s, 3, true);
  put_option_reply(&s, UM_NBD_OPT_GO, UM_NBD_REP_ERR_UNKNOWN, 12);
  put_filler(&s, 12);
  save(folder, "refused", &s, 0);
  return 0;
}
