/* The parser of replies, fed bytes as a server might send them, in pieces of every size. */
#include "check.h"
#include "nbd_reply.h"

#include <errno.h>

#define LENGTH 1024u
#define OFFSET (UINT64_C(1) << 40)
#define COOKIE UINT64_C(0x1122334455667788)

typedef struct bench {
  um_nbd_reply reply;
  um_nbd_request request;
  uint8_t buffer[LENGTH + 1];
  uint8_t bytes[8192]; /* to be fed */
  size_t length;
  uint32_t ended;
} bench;

static um_nbd_request *find(void *context, uint64_t cookie) {
  bench *b = context;
  return cookie == COOKIE && b->ended == 0 ? &b->request : NULL;
}

static void end(void *context, um_nbd_request *request) {
  bench *b = context;
  CHECK(request == &b->request);
  b->ended++;
}

static const um_nbd_reply_calls calls = {.find = find, .end = end};

static void start(bench *b, bool structured, uint16_t type) {
  memset(b, 0, sizeof *b);
  memset(b->buffer, 0xee, sizeof b->buffer);
  b->request = (um_nbd_request){
      .type = type, .offset = OFFSET, .length = type == UM_NBD_CMD_FLUSH ? 0 : LENGTH, .buffer = b->buffer};
  um_nbd_reply_init(&b->reply, structured, &calls, b);
}

static void put(bench *b, const void *bytes, size_t length) {
  CHECK(b->length + length <= sizeof b->bytes);
  memcpy(b->bytes + b->length, bytes, length);
  b->length += length;
}

static void put16(bench *b, uint16_t value) {
  uint8_t bytes[2];
  um_nbd_put16(bytes, value);
  put(b, bytes, sizeof bytes);
}

static void put32(bench *b, uint32_t value) {
  uint8_t bytes[4];
  um_nbd_put32(bytes, value);
  put(b, bytes, sizeof bytes);
}

static void put64(bench *b, uint64_t value) {
  uint8_t bytes[8];
  um_nbd_put64(bytes, value);
  put(b, bytes, sizeof bytes);
}

static void put_simple(bench *b, uint32_t error) {
  put32(b, UM_NBD_SIMPLE_MAGIC);
  put32(b, error);
  put64(b, COOKIE);
}

static void put_chunk(bench *b, uint16_t flags, uint16_t type, uint32_t length) {
  put32(b, UM_NBD_CHUNK_MAGIC);
  put16(b, flags);
  put16(b, type);
  put64(b, COOKIE);
  put32(b, length);
}

static void put_data(bench *b, uint16_t flags, uint32_t from, uint32_t length) {
  uint8_t bytes[LENGTH];
  for (uint32_t i = 0; i < length; i++)
    bytes[i] = (uint8_t)((from + i) * 7);
  put_chunk(b, flags, UM_NBD_CHUNK_DATA, length + 8);
  put64(b, OFFSET + from);
  put(b, bytes, length);
}

static void put_hole(bench *b, uint16_t flags, uint32_t from, uint32_t length) {
  put_chunk(b, flags, UM_NBD_CHUNK_HOLE, 12);
  put64(b, OFFSET + from);
  put32(b, length);
}

static int feed(bench *b, size_t piece) {
  int result = 0;
  for (size_t at = 0; at < b->length && result == 0; at += piece)
    result = um_nbd_reply_feed(&b->reply, b->bytes + at, b->length - at < piece ? b->length - at : piece);
  return result;
}

static void check_data(const bench *b, uint32_t from, uint32_t length) {
  for (uint32_t i = from; i < from + length; i++)
    CHECK_EQUAL(b->buffer[i], (uint8_t)(i * 7));
}

static void check_refused(bench *b, const char *words) {
  CHECK_EQUAL(feed(b, SIZE_MAX / 2), -EPROTO);
  CHECK(strstr(b->reply.why, words));
  CHECK_EQUAL(b->ended, 0);
  um_nbd_request_forget(&b->request);
}

static void test_simple_reply_in_pieces_of_any_size_fills_the_buffer(void) {
  for (size_t piece = 1; piece < 1200; piece += 7) {
    bench b;
    uint8_t data[LENGTH];
    start(&b, false, UM_NBD_CMD_READ);
    put_simple(&b, 0);
    for (uint32_t i = 0; i < LENGTH; i++)
      data[i] = (uint8_t)(i * 7);
    put(&b, data, LENGTH);
    CHECK_EQUAL(feed(&b, piece), 0);
    CHECK_EQUAL(b.ended, 1);
    CHECK_EQUAL(b.request.code, 0);
    check_data(&b, 0, LENGTH);
    CHECK_EQUAL(b.buffer[LENGTH], 0xee);
  }
}

static void test_chunks_in_any_order_and_pieces_of_any_size_fill_the_buffer(void) {
  static const uint32_t orders[][4] = {{0, 1, 2, 3}, {3, 2, 1, 0}, {2, 0, 3, 1}, {1, 3, 0, 2}, {3, 0, 2, 1}};
  for (size_t k = 0; k < sizeof orders / sizeof *orders; k++)
    for (size_t piece = 1; piece < 1200; piece += 11) {
      bench b;
      start(&b, true, UM_NBD_CMD_READ);
      for (uint32_t i = 0; i < 4; i++)
        if (orders[k][i] == 2)
          put_hole(&b, i == 3 ? UM_NBD_CHUNK_DONE : 0, 512, 256);
        else
          put_data(&b, i == 3 ? UM_NBD_CHUNK_DONE : 0, 256 * orders[k][i], 256);
      CHECK_EQUAL(feed(&b, piece), 0);
      CHECK_EQUAL(b.ended, 1);
      check_data(&b, 0, 512);
      check_data(&b, 768, 256);
      for (uint32_t i = 512; i < 768; i++)
        CHECK_EQUAL(b.buffer[i], 0);
      CHECK(!b.request.parts);
    }
}

static void test_many_stretches_apart_are_put_together(void) {
  bench b;
  start(&b, true, UM_NBD_CMD_READ);
  for (uint32_t at = 1; at < LENGTH; at += 64)
    put_hole(&b, 0, at, 63);
  for (uint32_t at = 0; at < LENGTH; at += 64)
    put_hole(&b, 0, LENGTH - 64 - at, 1);
  put_chunk(&b, UM_NBD_CHUNK_DONE, UM_NBD_CHUNK_NONE, 0);
  CHECK_EQUAL(feed(&b, 13), 0);
  CHECK_EQUAL(b.ended, 1);
  CHECK_EQUAL(b.request.covered, LENGTH);
}

static void test_data_received_in_place_counts(void) {
  bench b;
  void *to;
  start(&b, true, UM_NBD_CMD_READ);
  put_data(&b, UM_NBD_CHUNK_DONE, 0, LENGTH);
  CHECK_EQUAL(um_nbd_reply_feed(&b.reply, b.bytes, 28), 0);
  CHECK_EQUAL(um_nbd_reply_room(&b.reply, &to), LENGTH);
  memcpy(to, b.bytes + 28, LENGTH);
  CHECK_EQUAL(um_nbd_reply_filled(&b.reply, 1000), 0);
  CHECK_EQUAL(b.ended, 0);
  CHECK_EQUAL(um_nbd_reply_filled(&b.reply, 24), 0);
  CHECK_EQUAL(b.ended, 1);
  check_data(&b, 0, LENGTH);
}

static void test_head_tells_of_its_data_before_it_is_whole(void) {
  bench b;
  void *to = NULL;
  size_t length = 0;
  start(&b, true, UM_NBD_CMD_READ);
  put_data(&b, UM_NBD_CHUNK_DONE, 0, LENGTH);
  CHECK_EQUAL(um_nbd_reply_feed(&b.reply, b.bytes, 19), 0);
  CHECK_EQUAL(um_nbd_reply_ahead(&b.reply, &to, &length), 0);
  CHECK_EQUAL(um_nbd_reply_feed(&b.reply, b.bytes + 19, 2), 0);
  CHECK_EQUAL(um_nbd_reply_ahead(&b.reply, &to, &length), 7);
  CHECK(to == b.buffer && length == LENGTH);
  start(&b, true, UM_NBD_CMD_READ);
  put_data(&b, UM_NBD_CHUNK_DONE, 0, LENGTH - 1);
  CHECK_EQUAL(um_nbd_reply_feed(&b.reply, b.bytes, 21), 0);
  CHECK_EQUAL(um_nbd_reply_ahead(&b.reply, &to, &length), 0);
}

static void test_errors_become_codes(void) {
  static const struct {
    uint32_t sent;
    int code;
  } known[] = {{EIO, -EIO}, {ENOSPC, -ENOSPC}, {EPERM, -EPERM}, {12345, -EINVAL}, {ESHUTDOWN, -ESHUTDOWN}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    for (int structured = 0; structured < 2; structured++) {
      bench b;
      start(&b, structured, UM_NBD_CMD_READ);
      if (structured) {
        put_chunk(&b, 0, UM_NBD_CHUNK_ERROR_OFFSET, 6 + 4 + 8);
        put32(&b, known[i].sent);
        put16(&b, 4);
        put(&b, "oops", 4);
        put64(&b, OFFSET);
        put_chunk(&b, UM_NBD_CHUNK_DONE, UM_NBD_CHUNK_NONE, 0);
      } else {
        put_simple(&b, known[i].sent);
      }
      CHECK_EQUAL(feed(&b, 5), 0);
      CHECK_EQUAL(b.ended, 1);
      CHECK_EQUAL(b.request.code, known[i].code);
    }
}

static void test_read_with_a_gap_is_refused(void) {
  bench b;
  start(&b, true, UM_NBD_CMD_READ);
  put_data(&b, 0, 0, 256);
  put_data(&b, UM_NBD_CHUNK_DONE, 257, LENGTH - 257);
  check_refused(&b, "lacks bytes 256 to 257");
}

static void test_bytes_that_come_twice_are_refused(void) {
  static const uint32_t second[][2] = {{0, 1}, {255, 2}, {511, 100}, {600, 1}, {500, 600 - 500 + 200}};
  for (size_t i = 0; i < sizeof second / sizeof *second; i++) {
    bench b;
    start(&b, true, UM_NBD_CMD_READ);
    put_data(&b, 0, 0, 256);
    put_data(&b, 0, 512, 256);
    put_hole(&b, 0, second[i][0], second[i][1]);
    check_refused(&b, "came twice");
  }
}

static void test_chunks_outside_the_request_are_refused(void) {
  for (int i = 0; i < 4; i++) {
    bench b;
    start(&b, true, UM_NBD_CMD_READ);
    put_chunk(&b, 0, UM_NBD_CHUNK_HOLE, 12);
    put64(&b, i == 0 ? OFFSET - 1 : i == 1 ? OFFSET + LENGTH : OFFSET + LENGTH - 10);
    put32(&b, i == 2 ? 11 : i == 3 ? UINT32_MAX : 1);
    check_refused(&b, "came in the reply to a read");
  }
}

static void test_heads_that_make_no_sense_are_refused(void) {
  static const struct {
    uint16_t flags, type;
    uint32_t length;
  } heads[] = {
      {0, UM_NBD_CHUNK_NONE, 0},
      {1, UM_NBD_CHUNK_NONE, 1},
      {1, UM_NBD_CHUNK_DATA, 8},
      {1, UM_NBD_CHUNK_HOLE, 13},
      {1, UM_NBD_CHUNK_ERROR_PLAIN, 5},
      {1, UM_NBD_CHUNK_ERROR_PLAIN, UINT32_MAX},
      {1, 77, 0},
      {1, 5, 100},
      {1, UM_NBD_CHUNK_DATA, UINT32_MAX},
  };
  for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
    bench b;
    start(&b, true, UM_NBD_CMD_READ);
    put_chunk(&b, heads[i].flags, heads[i].type, heads[i].length);
    put64(&b, OFFSET);
    check_refused(&b, i == sizeof heads / sizeof *heads - 1 ? "came in the reply" : "a chunk has type");
  }
}

static void test_unknown_cookies_and_magics_are_refused(void) {
  bench b;
  start(&b, false, UM_NBD_CMD_READ);
  put32(&b, UM_NBD_SIMPLE_MAGIC);
  put32(&b, 0);
  put64(&b, COOKIE + 1);
  check_refused(&b, "which no request has");
  start(&b, false, UM_NBD_CMD_READ);
  put_chunk(&b, 1, UM_NBD_CHUNK_NONE, 0);
  check_refused(&b, "a reply begins with");
  start(&b, true, UM_NBD_CMD_READ);
  put64(&b, 0);
  check_refused(&b, "a reply begins with");
}

static void test_second_reply_to_a_request_is_refused(void) {
  bench b;
  start(&b, false, UM_NBD_CMD_WRITE);
  put_simple(&b, 0);
  put_simple(&b, 0);
  CHECK_EQUAL(feed(&b, 8192), -EPROTO);
  CHECK_EQUAL(b.ended, 1);
}

static void test_data_for_what_is_no_read_is_refused(void) {
  static const uint16_t types[] = {UM_NBD_CMD_WRITE, UM_NBD_CMD_FLUSH, UM_NBD_CMD_TRIM, UM_NBD_CMD_WRITE_ZEROES};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    bench b;
    start(&b, true, types[i]);
    put_data(&b, UM_NBD_CHUNK_DONE, 0, 10);
    check_refused(&b, "data came in the reply to a");
  }
}

static void test_simple_reply_to_a_read_where_structured_ones_were_agreed_on_is_refused(void) {
  bench b;
  start(&b, true, UM_NBD_CMD_READ);
  put_simple(&b, 0);
  check_refused(&b, "a simple reply came to a read");
}

static void test_writes_end_by_either_kind_of_reply(void) {
  for (int structured = 0; structured < 2; structured++) {
    bench b;
    start(&b, true, UM_NBD_CMD_WRITE);
    if (structured)
      put_chunk(&b, UM_NBD_CHUNK_DONE, UM_NBD_CHUNK_NONE, 0);
    else
      put_simple(&b, 0);
    CHECK_EQUAL(feed(&b, 3), 0);
    CHECK_EQUAL(b.ended, 1);
    CHECK_EQUAL(b.request.code, 0);
  }
}

int main(void) {
  test_simple_reply_in_pieces_of_any_size_fills_the_buffer();
  test_chunks_in_any_order_and_pieces_of_any_size_fill_the_buffer();
  test_many_stretches_apart_are_put_together();
  test_data_received_in_place_counts();
  test_head_tells_of_its_data_before_it_is_whole();
  test_errors_become_codes();
  test_read_with_a_gap_is_refused();
  test_bytes_that_come_twice_are_refused();
  test_chunks_outside_the_request_are_refused();
  test_heads_that_make_no_sense_are_refused();
  test_unknown_cookies_and_magics_are_refused();
  test_second_reply_to_a_request_is_refused();
  test_data_for_what_is_no_read_is_refused();
  test_simple_reply_to_a_read_where_structured_ones_were_agreed_on_is_refused();
  test_writes_end_by_either_kind_of_reply();
  return 0;
}
