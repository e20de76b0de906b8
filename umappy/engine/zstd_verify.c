/* zstd_verify.c: reading everything there is, to say what is damaged. */
#include "zstd_frames.h"
#include "zstd_store.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int um_zstd_store_verify(um_store *store, uint64_t first, uint64_t count, uint64_t *page, um_error *error) {
  um_zstd_store *self = (um_zstd_store *)store;
  uint64_t end = first + count;
  if (first > self->page_count || count > self->page_count - first)
    return um_error_set(error, EINVAL, UM_OP_READ, 0, 0, "%" PRIu64 " pages from %" PRIu64 " pass the last, %" PRIu64,
                        count, first, self->page_count);
  um_zstd_context *context = um_zstd_context_take(&self->codec);
  uint8_t *to = malloc(self->codec.page_size);
  int result = to && context ? 0 : um_zstd_fail(self, -ENOMEM, UM_OP_READ, 0, 0, "verifying", error);
  for (*page = first; result == 0 && *page < end;) {
    result = um_zstd_page_read(self, context, *page, to, true, error);
    *page += result == 0;
  }
  if (context)
    um_zstd_context_give(&self->codec, context);
  free(to);
  return result;
}

static int fail(um_zstd_store *store, uint64_t offset, int result, const char *what, um_error *error) {
  char text[128];
  snprintf(text, sizeof(text), "%s at byte %" PRIu64 " of the file", what, offset);
  return um_zstd_fail(store, result, UM_OP_READ, 0, 0, text, error);
}

/* The end of the zstd frame at `at`. */
static int pass_frame(um_zstd_store *store, uint64_t at, uint64_t limit, uint64_t *end, um_error *error) {
  uint8_t bytes[UM_ZSTD_HEADER_MAX];
  uint64_t start = at, count = limit - at < sizeof(bytes) ? limit - at : sizeof(bytes);
  um_zstd_header header = {0};
  int result = um_zstd_file_read(store->file, at, bytes, count);
  if (result == 0)
    result = um_zstd_header_parse(bytes, count, &header);
  at += header.length;
  for (bool last = false; result == 0 && !last;) {
    result = limit - at < 3 ? -UM_ETRUNCATED : um_zstd_file_read(store->file, at, bytes, 3);
    uint32_t block = bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16;
    uint32_t type = block >> 1 & 3, size = type == 1 ? 1 : block >> 3; /* type 1 repeats one byte */
    last = block & 1;
    at += 3;
    if (result == 0 && (type == 3 || size > limit - at))
      result = type == 3 ? -UM_ECORRUPT : -UM_ETRUNCATED;
    at += size;
  }
  *end = at + (header.checksum ? 4 : 0);
  if (result == 0 && *end > limit)
    result = -UM_ETRUNCATED;
  return result < 0 ? fail(store, start, result, "the frame", error) : 0;
}

/* The end of the skippable frame at `at`; segments must be those of the table. */
static int pass_skippable(um_zstd_store *store, uint64_t at, uint64_t limit, uint64_t *end, um_error *error) {
  uint8_t bytes[UM_ZSTD_SEGMENT_HEADER], wanted[UM_ZSTD_SEGMENT_HEADER];
  uint32_t size;
  uint64_t count = limit - at < sizeof(bytes) ? limit - at : sizeof(bytes);
  int result = um_zstd_file_read(store->file, at, bytes, count);
  memcpy(&size, bytes + 4, sizeof(size));
  if (result == 0 && size > limit - at - UM_ZSTD_FRAME_HEADER)
    result = -UM_ETRUNCATED;
  *end = at + UM_ZSTD_FRAME_HEADER + size;
  pthread_mutex_lock(&store->log.lock);
  um_zstd_segment *segment = um_zstd_log_find(&store->log, at);
  bool is_one = segment && segment->offset == at;
  uint32_t segment_size = is_one ? segment->size : 0;
  pthread_mutex_unlock(&store->log.lock);
  if (result == 0 && is_one) {
    um_zstd_segment_header(wanted, at, segment_size, store->seed);
    if (memcmp(bytes, wanted, sizeof(wanted)) != 0)
      result = -UM_ECORRUPT;
  } else if (result == 0 && segment) {
    result = -UM_ECORRUPT;
  }
  return result < 0 ? fail(store, at, result, is_one ? "the segment" : "the skippable frame", error) : 0;
}

static int check_supers(um_zstd_store *store, um_error *error) {
  uint8_t bytes[UM_ZSTD_SUPER_SIZE];
  um_zstd_super super = {0};
  for (int i = 0; i < 2; i++) {
    uint64_t offset = (uint64_t)i * UM_ZSTD_SUPER_SIZE;
    int result = um_zstd_file_read(store->file, offset, bytes, sizeof(bytes));
    if (result == 0 && um_zstd_super_decode(bytes, &super) != UM_ZSTD_SUPER_GOOD)
      result = -UM_ECORRUPT;
    if (result < 0)
      return fail(store, offset, result, i == 0 ? "superblock A" : "superblock B", error);
  }
  return 0;
}

int um_zstd_store_verify_frames(um_store *store, um_error *error) {
  um_zstd_store *self = (um_zstd_store *)store;
  uint64_t length, allocated;
  int result = check_supers(self, error);
  if (result < 0)
    return result;
  result = self->file->ops->measure(self->file, &length, &allocated);
  if (result < 0)
    return um_zstd_fail(self, result, UM_OP_READ, 0, 0, "looking at it", error);
  for (uint64_t at = UM_ZSTD_DATA_START; result == 0 && at < length;) {
    uint32_t magic = 0;
    if (length - at < UM_ZSTD_FRAME_HEADER)
      return fail(self, at, -UM_ETRUNCATED, "the frame", error);
    result = um_zstd_file_read(self->file, at, &magic, sizeof(magic));
    if (result < 0)
      return fail(self, at, result, "the frame", error);
    if (magic == UM_ZSTD_MAGIC)
      result = pass_frame(self, at, length, &at, error);
    else if ((magic & ~15u) == UM_ZSTD_SKIPPABLE_MAGIC)
      result = pass_skippable(self, at, length, &at, error);
    else
      return fail(self, at, -UM_ECORRUPT, "no frame begins", error);
  }
  return result;
}
