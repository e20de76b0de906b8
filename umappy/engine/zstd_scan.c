/* zstd_scan.c: walking a .zst from frame to frame, or taking its seek table's word where that may be right. */
#define _GNU_SOURCE
#include "zstd_scan.h"

#include "internal.h"

#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#define WINDOW_SIZE (64u << 10)
#define SCRATCH_SIZE (128u << 10)
#define CLOCK_EVERY 64u /* steps between two looks at the clock: each is a read of memory, or a piece decoded */
#define WINDOW_LOG_MIN 10u
#define WINDOW_LOG_MAX 31u

enum { BLOCK_RAW, BLOCK_RUN, BLOCK_COMPRESSED };

#define FAIL(code, ...) um_error_set(error, code, UM_OP_OPEN, 0, 0, __VA_ARGS__)

static int fail_memory(const um_zstd_scan *scan, um_error *error) {
  return FAIL(ENOMEM, "%s: %s", scan->path, strerror(ENOMEM));
}

/* Up to `length` bytes at scan->position; fewer only at the end of the file. */
static int peek(um_zstd_scan *scan, uint64_t length, const unsigned char **bytes, uint64_t *got, um_error *error) {
  uint64_t left = scan->source.size - scan->position;
  *got = um_min(length, left);
  if (scan->position < scan->window_start || scan->position + *got > scan->window_start + scan->window_length) {
    scan->window_length = 0;
    uint64_t count = um_min(WINDOW_SIZE, left);
    int result = um_zstd_source_read(&scan->source, scan->position, scan->window, count, error);
    if (result < 0)
      return result;
    scan->window_start = scan->position;
    scan->window_length = count;
  }
  *bytes = scan->window + (scan->position - scan->window_start);
  return 0;
}

static int fail_inside(const um_zstd_scan *scan, um_error *error) {
  return FAIL(UM_ETRUNCATED, "%s: ends at byte %" PRIu64 ", inside the frame that begins at byte %" PRIu64, scan->path,
              scan->source.size, scan->start);
}

static int add_frame(um_zstd_scan *scan, uint64_t size, um_error *error) {
  int result = um_zstd_frames_add(&scan->frames, scan->start, scan->position - scan->start, size);
  if (result == -EOVERFLOW)
    return FAIL(UM_ECORRUPT, "%s: the frame at byte %" PRIu64 " claims %" PRIu64 " bytes", scan->path, scan->start,
                size);
  if (result < 0)
    return fail_memory(scan, error);
  if (size == 0)
    scan->frames.skipped += scan->position - scan->start;
  scan->phase = UM_ZSTD_HEADER;
  return 0;
}

static int begin_decode(um_zstd_scan *scan, um_error *error) {
  if (!scan->stream.context && um_zstd_stream_open(&scan->stream, &scan->source) < 0)
    return fail_memory(scan, error);
  um_zstd_stream_begin(&scan->stream, scan->start, scan->source.size);
  scan->phase = UM_ZSTD_DECODE;
  return 0;
}

static int step_header(um_zstd_scan *scan, um_error *error) {
  const unsigned char *bytes;
  uint64_t got;
  scan->start = scan->position;
  if (scan->position == scan->source.size) {
    scan->phase = UM_ZSTD_DONE;
    return um_zstd_frames_add(&scan->frames, scan->position, 0, 0) < 0 ? fail_memory(scan, error) : 0;
  }
  int result = peek(scan, UM_ZSTD_HEADER_MAX, &bytes, &got, error);
  if (result < 0)
    return result;
  if (got >= 8 && (bytes[0] & 0xF0) == (UM_ZSTD_SKIPPABLE_MAGIC & 0xFF) && memcmp(bytes + 1, "\x2A\x4D\x18", 3) == 0) {
    uint64_t length = 8 + (bytes[4] | (uint64_t)bytes[5] << 8 | (uint64_t)bytes[6] << 16 | (uint64_t)bytes[7] << 24);
    if (length > scan->source.size - scan->position)
      return fail_inside(scan, error);
    scan->position += length;
    return add_frame(scan, 0, error);
  }
  result = um_zstd_header_parse(bytes, got, &scan->header);
  if (result == -UM_ETRUNCATED)
    return fail_inside(scan, error);
  if (result < 0)
    return FAIL(UM_ECORRUPT,
                scan->position == 0 ? "%s: is no zstd file (byte %" PRIu64
                                      "); FileStore(path) opens its bytes as they are"
                                    : "%s: no zstd frame begins at byte %" PRIu64 ", where the one before ends",
                scan->path, scan->position);
  scan->frames.window = um_max(scan->frames.window, scan->header.window);
  if (scan->header.content == UM_ZSTD_SIZE_UNKNOWN)
    return begin_decode(scan, error);
  scan->position += scan->header.length;
  scan->possible = 0;
  scan->phase = UM_ZSTD_BLOCKS;
  return 0;
}

static int step_block(um_zstd_scan *scan, um_error *error) {
  const unsigned char *bytes;
  uint64_t got;
  int result = peek(scan, 3, &bytes, &got, error);
  if (result < 0)
    return result;
  if (got < 3)
    return fail_inside(scan, error);
  uint32_t word = bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16;
  bool last = word & 1;
  unsigned type = word >> 1 & 3;
  uint32_t size = word >> 3;
  if (type > BLOCK_COMPRESSED || (size > UM_ZSTD_BLOCK_MAX))
    return FAIL(UM_ECORRUPT, "%s: the frame at byte %" PRIu64 " has a damaged block at byte %" PRIu64, scan->path,
                scan->start, scan->position);
  uint64_t rest = 3 + (type == BLOCK_RUN ? 1 : size) + (last && scan->header.checksum ? 4 : 0);
  if (rest > scan->source.size - scan->position)
    return fail_inside(scan, error);
  scan->position += rest;
  scan->possible += type == BLOCK_COMPRESSED ? UM_ZSTD_BLOCK_MAX : size;
  if (!last)
    return 0;
  if (scan->header.content > scan->possible)
    return FAIL(UM_ECORRUPT, "%s: the frame at byte %" PRIu64 " claims %" PRIu64 " bytes, its blocks hold fewer",
                scan->path, scan->start, scan->header.content);
  return add_frame(scan, scan->header.content, error);
}

static int step_decode(um_zstd_scan *scan, um_error *error) {
  unsigned char scratch[SCRATCH_SIZE];
  uint64_t got;
  int result = um_zstd_stream_read(&scan->stream, scratch, sizeof scratch, &got, error);
  if (result < 0)
    return result;
  scan->frames.decoded += got;
  scan->position = um_zstd_stream_position(&scan->stream);
  return scan->stream.ended ? add_frame(scan, scan->stream.decoded, error) : 0;
}

static int step_table(um_zstd_scan *scan, um_error *error) {
  int found = um_zstd_seek_table_read(&scan->source, &scan->frames, error);
  if (found < 0)
    return found;
  scan->phase = found ? UM_ZSTD_DONE : UM_ZSTD_HEADER;
  return 0;
}

static int step(um_zstd_scan *scan, um_error *error) {
  switch (scan->phase) {
  case UM_ZSTD_TABLE:
    return step_table(scan, error);
  case UM_ZSTD_HEADER:
    return step_header(scan, error);
  case UM_ZSTD_BLOCKS:
    return step_block(scan, error);
  case UM_ZSTD_DECODE:
    return step_decode(scan, error);
  case UM_ZSTD_DONE:
    break;
  }
  return 0;
}

int um_zstd_scan_step(um_zstd_scan *scan, uint32_t timeout_ms, um_error *error) {
  uint64_t deadline = um_now_ns() + (uint64_t)timeout_ms * 1000000;
  for (unsigned i = 1; scan->phase != UM_ZSTD_DONE; i++) {
    int result = step(scan, error);
    if (result < 0) {
      if (error)
        error->op = UM_OP_OPEN;
      return result;
    }
    if (i % CLOCK_EVERY == 0 && um_now_ns() >= deadline)
      return -EAGAIN;
  }
  return 0;
}

static int open_file(um_zstd_scan *scan, um_error *error) {
  scan->descriptor = open(scan->path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  if (scan->descriptor < 0)
    return FAIL(errno, "%s: %s", scan->path, strerror(errno));
  struct stat status;
  if (fstat(scan->descriptor, &status) < 0)
    return FAIL(errno, "%s: %s", scan->path, strerror(errno));
  if (!S_ISREG(status.st_mode))
    return FAIL(EINVAL, "%s: is no regular file; for a pipe, `umappy pack - OUT.zst` makes one of it", scan->path);
  if (status.st_size == 0)
    return FAIL(UM_ETRUNCATED, "%s: is empty, which no zstd file is", scan->path);
  scan->source.descriptor = scan->descriptor;
  scan->source.size = (uint64_t)status.st_size;
  return 0;
}

static int prepare(um_zstd_scan *scan, const um_zstd_scan_options *options, um_error *error) {
  scan->path = strdup(options->path);
  scan->window = malloc(WINDOW_SIZE);
  if (!scan->path || !scan->window)
    return FAIL(ENOMEM, "%s: %s", options->path, strerror(ENOMEM));
  scan->source.path = scan->path;
  scan->source.window_log = options->window_log ? options->window_log : UM_ZSTD_WINDOW_LOG;
  if (scan->source.window_log < WINDOW_LOG_MIN || scan->source.window_log > WINDOW_LOG_MAX)
    return FAIL(EINVAL, "window_log is %u: wants %u to %u", scan->source.window_log, WINDOW_LOG_MIN, WINDOW_LOG_MAX);
  scan->source.zstd = um_zstd_get(error);
  if (!scan->source.zstd)
    return -ELIBACC;
  if (options->dictionary_size > 0) {
    scan->dictionary = scan->source.zstd->ddict_create(options->dictionary, options->dictionary_size);
    if (!scan->dictionary)
      return FAIL(EINVAL, "%s: the %" PRIu64 " bytes given as dictionary are none", scan->path,
                  options->dictionary_size);
    scan->source.dictionary = scan->dictionary;
  }
  scan->phase = options->walk ? UM_ZSTD_HEADER : UM_ZSTD_TABLE;
  return open_file(scan, error);
}

int um_zstd_scan_open(const um_zstd_scan_options *options, um_zstd_scan **scan, um_error *error) {
  um_zstd_scan *opened = calloc(1, sizeof *opened);
  if (!opened)
    return um_error_set(error, ENOMEM, UM_OP_OPEN, 0, 0, "%s: %s", options->path, strerror(ENOMEM));
  opened->descriptor = -1;
  int result = prepare(opened, options, error);
  if (result < 0)
    um_zstd_scan_close(opened);
  else
    *scan = opened;
  return result;
}

void um_zstd_scan_close(um_zstd_scan *scan) {
  um_zstd_stream_close(&scan->stream);
  um_zstd_frames_free(&scan->frames);
  if (scan->dictionary)
    scan->source.zstd->ddict_free(scan->dictionary);
  if (scan->descriptor >= 0)
    close(scan->descriptor);
  free(scan->window);
  free(scan->path);
  free(scan);
}

void um_zstd_scan_look(const um_zstd_scan *scan, um_zstd_scan_info *info) {
  const um_zstd_frames *frames = &scan->frames;
  *info = (um_zstd_scan_info){
      .file_size = scan->source.size,
      .position = scan->phase == UM_ZSTD_DONE ? scan->source.size : scan->position,
      .size = frames->list ? um_zstd_frames_size(frames) : 0,
      .frames = frames->count,
      .largest = frames->largest,
      .skipped = frames->skipped,
      .decoded = frames->decoded,
      .table = frames->table,
      .table_wrong = frames->table_wrong,
      .decoding = scan->phase == UM_ZSTD_DECODE,
  };
}
