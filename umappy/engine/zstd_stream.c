/* zstd_stream.c: decoding forward. Errors name the frame by where it starts in the file. */
#include "zstd_stream.h"

#include "internal.h"
#include "io.h"

#include <inttypes.h>

#define INPUT_SIZE (128u << 10)

int um_zstd_source_fail(const um_zstd_source *source, uint64_t frame_start, size_t result, um_error *error) {
  const um_zstd *z = source->zstd;
  switch (z->error_code(result)) {
  case UM_ZSTD_ERROR_MEMORY:
    return um_error_set(error, ENOMEM, UM_OP_READ, 0, 0, "%s: decoding the frame at byte %" PRIu64 " of the file: %s",
                        source->path, frame_start, strerror(ENOMEM));
  case UM_ZSTD_ERROR_WINDOW_TOO_LARGE:
    return um_error_set(error, EFBIG, UM_OP_READ, 0, 0,
                        "%s: decoding the frame at byte %" PRIu64
                        " of the file takes a window of more than %u MiB (zstd --long); "
                        "`umappy pack` makes a file of it that takes none",
                        source->path, frame_start, 1u << (source->window_log - 20));
  case UM_ZSTD_ERROR_DICTIONARY:
    return um_error_set(error, EINVAL, UM_OP_READ, 0, 0,
                        "%s: the frame at byte %" PRIu64
                        " of the file was compressed with a dictionary; pass that one as dictionary=",
                        source->path, frame_start);
  default:
    return um_error_set(error, UM_ECORRUPT, UM_OP_READ, 0, 0,
                        "%s: the frame at byte %" PRIu64 " of the file does not decode: %s", source->path, frame_start,
                        z->error_name(result));
  }
}

int um_zstd_source_read(const um_zstd_source *source, uint64_t offset, void *buffer, uint64_t length, um_error *error) {
  uint64_t done;
  int result = um_io_read(source->descriptor, offset, buffer, length, 1, &done);
  if (result == UM_IO_END)
    return um_error_set(error, UM_ETRUNCATED, UM_OP_READ, 0, 0, "%s: ends at byte %" PRIu64 ", inside a frame",
                        source->path, offset + done);
  if (result < 0)
    return um_error_set(error, -result, UM_OP_READ, 0, 0, "%s: at byte %" PRIu64 " of the file: %s", source->path,
                        offset + done, strerror(-result));
  return 0;
}

um_zstd_dctx *um_zstd_source_context(const um_zstd_source *source) {
  const um_zstd *z = source->zstd;
  um_zstd_dctx *context = z->dctx_create();
  if (!context)
    return NULL;
  if (!z->is_error(z->dctx_set(context, UM_ZSTD_D_WINDOW_LOG_MAX, (int)source->window_log)) &&
      (!source->dictionary || !z->is_error(z->dctx_use(context, source->dictionary))))
    return context;
  z->dctx_free(context);
  return NULL;
}

int um_zstd_stream_open(um_zstd_stream *s, const um_zstd_source *source) {
  *s = (um_zstd_stream){.source = source, .input_size = INPUT_SIZE, .ended = true};
  s->context = um_zstd_source_context(source);
  s->input = malloc(INPUT_SIZE);
  if (s->context && s->input)
    return 0;
  um_zstd_stream_close(s);
  return -ENOMEM;
}

void um_zstd_stream_close(um_zstd_stream *s) {
  if (s->context)
    s->source->zstd->dctx_free(s->context);
  free(s->input);
  *s = (um_zstd_stream){0};
}

void um_zstd_stream_begin(um_zstd_stream *s, uint64_t start, uint64_t limit) {
  s->source->zstd->dctx_reset(s->context, UM_ZSTD_RESET_SESSION);
  s->in = (um_zstd_in){.bytes = s->input};
  s->start = s->next = start;
  s->limit = limit;
  s->decoded = 0;
  s->ended = false;
}

uint64_t um_zstd_stream_position(const um_zstd_stream *s) {
  return s->next - (s->in.size - s->in.position);
}

uint64_t um_zstd_stream_memory(const um_zstd_stream *s) {
  return s->context ? s->input_size + s->source->zstd->dctx_sizeof(s->context) : 0;
}

static int refill(um_zstd_stream *s, um_error *error) {
  uint64_t length = um_min(s->input_size, s->limit - s->next);
  int result = um_zstd_source_read(s->source, s->next, s->input, length, error);
  if (result < 0)
    return result;
  s->next += length;
  s->in = (um_zstd_in){.bytes = s->input, .size = length};
  return 0;
}

int um_zstd_stream_read(um_zstd_stream *s, void *buffer, uint64_t room, uint64_t *got, um_error *error) {
  const um_zstd *z = s->source->zstd;
  um_zstd_out out = {.bytes = buffer, .size = room};
  *got = 0;
  while (out.position < out.size && !s->ended) {
    if (s->in.position == s->in.size && s->next < s->limit) {
      int result = refill(s, error);
      if (result < 0)
        return result;
    }
    size_t taken = s->in.position, given = out.position;
    size_t result = z->decompress_stream(s->context, &out, &s->in);
    if (z->is_error(result))
      return um_zstd_source_fail(s->source, s->start, result, error);
    s->ended = result == 0;
    if (!s->ended && s->in.position == taken && out.position == given && s->next == s->limit)
      return um_error_set(error, UM_ETRUNCATED, UM_OP_READ, 0, 0,
                          "%s: the frame at byte %" PRIu64 " of the file does not end before byte %" PRIu64,
                          s->source->path, s->start, s->limit);
  }
  s->decoded += out.position;
  *got = out.position;
  return 0;
}
