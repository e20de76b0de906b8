/* nbd_handshake.c: from a connected stream to an export.
 *
 * Fixed newstyle only. OPT_GO is trusted alone: what it says of the export holds, and its refusal is the server's
 * answer; only a server that does not know it is asked by EXPORT_NAME. All of it has one deadline, every length is
 * bounded before it is used, and the replies to an option are counted: a server that talks for ever is cut off. */
#include "nbd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define REPLIES_MAX 64u       /* to one option */
#define REPLY_MAX (16u << 10) /* bytes of one: longer than any that means something to us */

typedef struct shaking {
  const um_nbd_target *target;
  um_nbd_transport **transport;
  um_nbd_export *export_;
  uint64_t deadline_ns;
  char *text; /* for errors */
  size_t room;
  bool no_zeroes;        /* agreed: nothing behind EXPORT_NAME's answer */
  bool sized, blocks;    /* the two came */
  uint32_t type, length; /* of the reply at hand */
  uint8_t reply[REPLY_MAX + 1];
} shaking;

__attribute__((format(printf, 3, 4))) static int refuse(shaking *s, int code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(s->text, s->room, format, arguments);
  va_end(arguments);
  return -code;
}

static int explain(shaking *s, int result, const char *what) {
  if ((*s->transport)->why)
    return refuse(s, -result, "%s: %s", what, (*s->transport)->why);
  if (result == -ETIMEDOUT)
    return refuse(s, ETIMEDOUT, "%s: the server says nothing", what);
  if (result == -ECONNRESET)
    return refuse(s, ECONNRESET, "%s: the server closed the connection", what);
  return refuse(s, -result, "%s: %s", what, strerror(-result));
}

static int receive(shaking *s, void *buffer, size_t length, const char *what) {
  int result = um_nbd_transport_receive(*s->transport, buffer, length, s->deadline_ns);
  return result < 0 ? explain(s, result, what) : 0;
}

static int send_bytes(shaking *s, const void *bytes, size_t length, const char *what) {
  int result = um_nbd_transport_send(*s->transport, bytes, length, s->deadline_ns);
  return result < 0 ? explain(s, result, what) : 0;
}

static int greet(shaking *s) {
  uint8_t greeting[18], flags[4];
  int result = receive(s, greeting, sizeof greeting, "the server's greeting");
  if (result < 0)
    return result;
  if (um_nbd_get64(greeting) != UM_NBD_MAGIC || um_nbd_get64(greeting + 8) != UM_NBD_OPTION_MAGIC)
    return refuse(s, EPROTO,
                  "this is no NBD server of the fixed newstyle protocol: it begins with %#" PRIx64 " %#" PRIx64,
                  um_nbd_get64(greeting), um_nbd_get64(greeting + 8));
  uint16_t offered = um_nbd_get16(greeting + 16);
  if (!(offered & UM_NBD_GREETING_FIXED_NEWSTYLE))
    return refuse(s, EPROTO, "the server speaks an old dialect (flags %#" PRIx16 "); wants fixed newstyle", offered);
  s->no_zeroes = offered & UM_NBD_GREETING_NO_ZEROES;
  um_nbd_put32(flags, UM_NBD_GREETING_FIXED_NEWSTYLE | (s->no_zeroes ? UM_NBD_GREETING_NO_ZEROES : 0));
  return send_bytes(s, flags, sizeof flags, "the client's greeting");
}

static int send_option(shaking *s, uint32_t option, const void *data, uint32_t length, const char *what) {
  uint8_t head[16];
  um_nbd_put64(head, UM_NBD_OPTION_MAGIC);
  um_nbd_put32(head + 8, option);
  um_nbd_put32(head + 12, length);
  int result = send_bytes(s, head, sizeof head, what);
  return result < 0 || length == 0 ? result : send_bytes(s, data, length, what);
}

/* The next reply to an option: type, length, data with a null behind it. */
static int receive_reply(shaking *s, uint32_t option, const char *what) {
  uint8_t head[20];
  int result = receive(s, head, sizeof head, what);
  if (result < 0)
    return result;
  if (um_nbd_get64(head) != UM_NBD_OPTION_REPLY_MAGIC || um_nbd_get32(head + 8) != option)
    return refuse(s, EPROTO, "%s: the answer begins with %#" PRIx64 " for option %" PRIu32, what, um_nbd_get64(head),
                  um_nbd_get32(head + 8));
  s->type = um_nbd_get32(head + 12);
  s->length = um_nbd_get32(head + 16);
  if (s->length > REPLY_MAX)
    return refuse(s, EPROTO, "%s: the answer has %" PRIu32 " bytes", what, s->length);
  s->reply[s->length] = '\0';
  return s->length ? receive(s, s->reply, s->length, what) : 0;
}

/* What the server said besides its error: printable, or nothing. */
static const char *read_message(const shaking *s) {
  for (uint32_t i = 0; i < s->length; i++)
    if (s->reply[i] < ' ' || s->reply[i] == 0x7f)
      return "";
  return (const char *)s->reply;
}

static int explain_refusal(shaking *s, const char *what) {
  static const struct {
    uint32_t type;
    int code;
    const char *words;
  } known[] = {
      {UM_NBD_REP_ERR_UNSUP, EOPNOTSUPP, "the server does not know it"},
      {UM_NBD_REP_ERR_POLICY, EACCES, "the server's policy forbids it"},
      {UM_NBD_REP_ERR_INVALID, EINVAL, "the server finds it invalid"},
      {UM_NBD_REP_ERR_PLATFORM, EOPNOTSUPP, "the server was built without it"},
      {UM_NBD_REP_ERR_TLS_REQD, EACCES, "the server wants TLS: use nbds:// or nbds+unix://"},
      {UM_NBD_REP_ERR_UNKNOWN, ENOENT, "the server has no export of that name"},
      {UM_NBD_REP_ERR_SHUTDOWN, ECONNREFUSED, "the server is shutting down"},
      {UM_NBD_REP_ERR_BLOCK_SIZE_REQD, EINVAL, "the server wants other block sizes"},
      {UM_NBD_REP_ERR_TOO_BIG, EINVAL, "the server finds it too long"},
  };
  const char *message = read_message(s), *mark = *message ? ": " : "";
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (known[i].type == s->type)
      return refuse(s, known[i].code, "%s: %s%s%.200s", what, known[i].words, mark, message);
  return refuse(s, EPROTO, "%s: the server answers with %#" PRIx32 "%s%.200s", what, s->type, mark, message);
}

/* An option that is answered by an acknowledgement or an error: 1 or 0. */
static int ask(shaking *s, uint32_t option, const char *what) {
  int result = send_option(s, option, NULL, 0, what);
  if (result == 0)
    result = receive_reply(s, option, what);
  if (result < 0)
    return result;
  if (s->type == UM_NBD_REP_ACK)
    return 1;
  return s->type & UM_NBD_REP_ERROR ? 0 : explain_refusal(s, what);
}

static int start_tls(shaking *s) {
  const um_nbd_tls_options *tls = s->target->tls;
  if (!tls)
    return 0;
  int result = ask(s, UM_NBD_OPT_STARTTLS, "asking for TLS");
  if (result < 0)
    return result;
  if (result == 0) {
    char words[UM_NBD_TEXT];
    result = explain_refusal(s, "asking for TLS");
    snprintf(words, sizeof words, "%s", s->text);
    return refuse(s, -result, "%s; the URI wants TLS (nbds), and nothing is sent without it", words);
  }
  return um_nbd_tls_start(s->transport, tls, s->deadline_ns, s->text, s->room);
}

static int read_info(shaking *s) {
  um_nbd_export *e = s->export_;
  if (s->length < 2)
    return refuse(s, EPROTO, "opening the export: a piece of information has %" PRIu32 " bytes", s->length);
  uint16_t kind = um_nbd_get16(s->reply);
  if (kind == UM_NBD_INFO_EXPORT) {
    if (s->length != 12)
      return refuse(s, EPROTO, "opening the export: its size came in %" PRIu32 " bytes", s->length);
    e->size = um_nbd_get64(s->reply + 2);
    e->flags = um_nbd_get16(s->reply + 10);
    s->sized = true;
  } else if (kind == UM_NBD_INFO_BLOCK_SIZE) {
    if (s->length != 14)
      return refuse(s, EPROTO, "opening the export: its block sizes came in %" PRIu32 " bytes", s->length);
    e->block_min = um_nbd_get32(s->reply + 2);
    e->block_preferred = um_nbd_get32(s->reply + 6);
    e->length_max = um_nbd_get32(s->reply + 10);
    s->blocks = true;
  }
  return 0;
}

/* 1: the export is open; 0: the server does not know the option. */
static int go(shaking *s) {
  const char *name = s->target->export_name;
  uint32_t length = (uint32_t)strlen(name), size = 4 + length + 2 + 2;
  uint8_t *data = malloc(size);
  if (!data)
    return refuse(s, ENOMEM, "%s", strerror(ENOMEM));
  um_nbd_put32(data, length);
  memcpy(data + 4, name, length);
  um_nbd_put16(data + 4 + length, 1);
  um_nbd_put16(data + 6 + length, UM_NBD_INFO_BLOCK_SIZE);
  int result = send_option(s, UM_NBD_OPT_GO, data, size, "opening the export");
  free(data);
  for (uint32_t count = 0; result == 0 && count < REPLIES_MAX; count++) {
    result = receive_reply(s, UM_NBD_OPT_GO, "opening the export");
    if (result < 0)
      return result;
    if (s->type == UM_NBD_REP_ACK)
      return s->sized ? 1 : refuse(s, EPROTO, "opening the export: the server did not tell its size");
    if (s->type == UM_NBD_REP_ERR_UNSUP)
      return 0;
    result = s->type == UM_NBD_REP_INFO ? read_info(s) : explain_refusal(s, "opening the export");
  }
  return result < 0 ? result : refuse(s, EPROTO, "opening the export: more than %u answers", REPLIES_MAX);
}

static int open_by_name(shaking *s) {
  uint8_t reply[10], zeroes[124];
  const char *name = s->target->export_name;
  int result = send_option(s, UM_NBD_OPT_EXPORT_NAME, name, (uint32_t)strlen(name), "opening the export by name");
  if (result == 0)
    result = receive(s, reply, sizeof reply, "opening the export by name");
  if (result == 0 && !s->no_zeroes)
    result = receive(s, zeroes, sizeof zeroes, "opening the export by name");
  s->export_->size = um_nbd_get64(reply);
  s->export_->flags = um_nbd_get16(reply + 8);
  return result;
}

static bool is_power(uint32_t value) {
  return value > 0 && (value & (value - 1)) == 0;
}

static int check_export(shaking *s) {
  um_nbd_export *e = s->export_;
  if (!s->blocks) {
    e->block_min = 1;
    e->block_preferred = 4096;
    e->length_max = UM_NBD_LENGTH_MAX;
  }
  if (!is_power(e->block_min) || e->block_min > 65536 || !is_power(e->block_preferred) ||
      e->block_preferred < e->block_min || e->length_max < e->block_min)
    return refuse(s, EPROTO,
                  "the export's block sizes make no sense: minimum %" PRIu32 ", preferred %" PRIu32
                  ", maximum %" PRIu32,
                  e->block_min, e->block_preferred, e->length_max);
  if (e->length_max > UM_NBD_LENGTH_MAX)
    e->length_max = UM_NBD_LENGTH_MAX;
  e->length_max -= e->length_max % e->block_min;
  if (e->size > INT64_MAX)
    return refuse(s, EPROTO, "the export has %" PRIu64 " bytes: more than any file can", e->size);
  if (!(e->flags & UM_NBD_FLAG_HAS_FLAGS))
    e->flags = 0;
  return 0;
}

int um_nbd_handshake(const um_nbd_target *target, uint64_t deadline_ns, um_nbd_export *export_,
                     um_nbd_transport **transport, char *text, size_t room) {
  shaking *s = calloc(1, sizeof *s);
  if (!s) {
    snprintf(text, room, "%s", strerror(ENOMEM));
    return -ENOMEM;
  }
  memset(export_, 0, sizeof *export_);
  s->target = target;
  s->transport = transport;
  s->export_ = export_;
  s->deadline_ns = deadline_ns;
  s->text = text;
  s->room = room;
  int result = greet(s);
  if (result == 0)
    result = start_tls(s);
  if (result == 0)
    result = ask(s, UM_NBD_OPT_STRUCTURED_REPLY, "asking for structured replies");
  if (result >= 0) {
    export_->structured = result == 1;
    result = go(s);
  }
  if (result == 0)
    result = open_by_name(s);
  if (result >= 0)
    result = check_export(s);
  free(s);
  return result;
}

int um_nbd_connect(const um_nbd_target *target, uint64_t deadline_ns, um_nbd_export *export_,
                   um_nbd_transport **transport, char *text, size_t room) {
  int result = um_nbd_socket_open(target->host, target->port, target->path, deadline_ns, transport, text, room);
  if (result < 0)
    return result;
  result = um_nbd_handshake(target, deadline_ns, export_, transport, text, room);
  if (result < 0) {
    (*transport)->ops->close(*transport, false);
    *transport = NULL;
  }
  return result;
}
