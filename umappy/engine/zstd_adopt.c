/* zstd_adopt.c: a .zst of others becomes ours.
 *
 * A new file beside it gets superblocks, the old file as its base, byte for byte (shared blocks, where the file system
 * can), and a list of the frames; then it takes the old one's place. Nothing is compressed again: a page that nobody
 * wrote yet has no entry in the index, and is read out of the frames it lies in, by the store for foreign files. */
#include "zstd_scan.h"
#include "zstd_store.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define FRAME_MAX (64u << 20) /* bytes of image in one frame: more would be decoded again and again */
#define CACHE (32u << 20)     /* bytes of decoded frames, unless a region's budget says less */
#define STEP_MS 60000u
#define HEADER_MAX 18u /* bytes of a frame's header */
#define REFUSE(code, ...) um_error_set(error, code, UM_OP_OPEN, 0, 0, __VA_ARGS__)

typedef struct row {
  uint64_t start, offset; /* in the file, in the image */
  uint32_t length, size;  /* bytes in the file, in the image */
} row;
_Static_assert(sizeof(row) == 24, "as in the file");

static int find_frames(const char *path, um_zstd_scan **scan, um_error *error) {
  um_zstd_scan_options options = {.path = path};
  int result = um_zstd_scan_open(&options, scan, error);
  if (result < 0)
    return result;
  do
    result = um_zstd_scan_step(*scan, STEP_MS, error);
  while (result == -EAGAIN);
  const um_zstd_frames *frames = &(*scan)->frames;
  if (result == 0 && frames->largest > FRAME_MAX)
    result = REFUSE(EINVAL,
                    "%s: has a frame of %" PRIu64 " bytes: writing needs frames of %u at most; `umappy pack %s "
                    "OUT.zst` makes such a file",
                    path, frames->largest, FRAME_MAX, path);
  else if (result == 0 && (frames->count > UM_ZSTD_FRAMES_MAX || frames->longest > UINT32_MAX))
    result = REFUSE(EINVAL,
                    "%s: %" PRIu64 " frames, the longest of %" PRIu64 " bytes, are too many or too long; "
                    "`umappy pack %s OUT.zst` makes a file that can be written",
                    path, frames->count, frames->longest, path);
  if (result < 0) {
    um_zstd_scan_close(*scan);
    *scan = NULL;
  }
  return result;
}

/* A frame that wants a dictionary, say, is found out before anything is changed. */
static int try_first(const char *path, um_error *error) {
  um_zstd_scan *scan;
  um_store *store;
  char byte;
  int result = find_frames(path, &scan, error);
  if (result < 0)
    return result;
  result = um_zstd_foreign_open(scan, CACHE, &store, error);
  if (result < 0) {
    um_zstd_scan_close(scan);
    return result;
  }
  result = um_store_size(store) ? um_store_read(store, 0, &byte, 1, error) : 0;
  um_store_close(store, NULL);
  return result;
}

/* The first frame was tried; others may want one that it does not. */
static int refuse_dictionaries(const um_zstd_scan *scan, const char *path, um_error *error) {
  for (uint64_t i = 0; i < scan->frames.count; i++) {
    const um_zstd_frame *frame = &scan->frames.list[i];
    unsigned char bytes[HEADER_MAX];
    uint64_t size = frame->length < sizeof(bytes) ? frame->length : sizeof(bytes);
    um_zstd_header header = {0};
    int result = um_zstd_source_read(&scan->source, frame->start, bytes, size, error);
    if (result < 0)
      return result;
    if (um_zstd_header_parse(bytes, size, &header) == 0 && header.dictionary)
      return REFUSE(EINVAL,
                    "%s: the frame at byte %" PRIu64 " was compressed with a dictionary, and such frames cannot be "
                    "written beside; `umappy pack --dictionary DICTIONARY %s OUT.zst` makes a file that can be written",
                    path, frame->start, path);
  }
  return 0;
}

/* The list of frames, alone in a fixed segment behind the base. */
static int write_frames(um_zstd_store *self, const um_zstd_frames *frames, um_error *error) {
  uint32_t length = (uint32_t)(frames->count * sizeof(row)), record = UM_ZSTD_RECORD_HEADER + length;
  uint32_t size = (uint32_t)um_zstd_align(UM_ZSTD_SEGMENT_HEADER + (uint64_t)record);
  uint8_t *bytes = calloc(1, size), *at = bytes + UM_ZSTD_SEGMENT_HEADER;
  um_zstd_segment_row segment = {
      .offset = self->log.end, .size = size, .live = size, .filled = size, .flags = UM_ZSTD_FIXED};
  int result = bytes ? um_zstd_log_add(&self->log, &segment) : -ENOMEM;
  if (result == 0) {
    um_zstd_segment_header(bytes, segment.offset, size, self->seed);
    for (uint64_t i = 0; i < frames->count; i++) {
      const um_zstd_frame *frame = &frames->list[i];
      row r = {UM_ZSTD_DATA_START + frame->start, frame->offset, (uint32_t)frame->length,
               (uint32_t)(frame[1].offset - frame->offset)};
      memcpy(at + UM_ZSTD_RECORD_HEADER + i * sizeof(r), &r, sizeof(r));
    }
    uint64_t checksum = um_zstd_record_seal(at, UM_ZSTD_FOREIGN, length, 0, 1, self->seed);
    self->super.foreign = (um_zstd_place){segment.offset + UM_ZSTD_SEGMENT_HEADER, record, 0, checksum};
    self->log.end += size;
    result = um_zstd_file_write(self->file, segment.offset, bytes, size);
  }
  free(bytes);
  return result < 0 ? um_zstd_fail(self, result, UM_OP_OPEN, 0, 0, "writing the list of frames", error) : 0;
}

static int fill(um_zstd_file *made, um_zstd_file *old, const um_zstd_scan *scan, uint32_t page_size, um_error *error) {
  uint64_t length, allocated;
  int result = old->ops->measure(old, &length, &allocated);
  if (result == 0 && length != scan->source.size)
    return REFUSE(ESTALE, "%s: it changed while it was looked at", old->path);
  if (result == 0)
    result = um_zstd_file_copy(made, UM_ZSTD_DATA_START, old, 0, length);
  if (result < 0)
    return REFUSE(-result, "%s: copying it to a file beside it: %s", old->path, strerror(-result));
  um_zstd_super super = {.size = um_zstd_frames_size(&scan->frames),
                         .page_size = page_size,
                         .level = 3,
                         .end = UM_ZSTD_DATA_START + length,
                         .base = UM_ZSTD_DATA_START,
                         .base_length = length,
                         .base_live = length};
  um_zstd_store *self;
  result = um_zstd_store_begin(made, &super, &self, error);
  if (result == 0)
    result = write_frames(self, &scan->frames, error);
  if (result == 0)
    result = um_zstd_store_finish(self, error);
  if (self)
    um_zstd_store_free(self);
  return result;
}

int um_zstd_adopt(const char *path, uint32_t page_size, um_error *error) {
  um_zstd_options options = {.path = path, .writable = 1, .lock = 1};
  um_zstd_file *old = NULL, *made = NULL;
  um_zstd_scan *scan = NULL;
  bool ignored;
  int result = um_zstd_check_new(page_size, 0, error);
  if (result == 0)
    result = um_zstd_file_open(&options, &old, &ignored, error);
  if (result < 0)
    return result;
  result = try_first(path, error);
  if (result == 0)
    result = find_frames(path, &scan, error);
  if (result == 0)
    result = refuse_dictionaries(scan, path, error);
  if (result == 0 && (result = old->ops->beside(old, &made)) < 0)
    REFUSE(-result, "%s: making a file beside it: %s", path, strerror(-result));
  if (result == 0)
    result = fill(made, old, scan, page_size, error);
  if (result == 0 && (result = made->ops->publish(made)) < 0)
    REFUSE(-result, "%s: putting the new file in its place: %s", path, strerror(-result));
  if (scan)
    um_zstd_scan_close(scan);
  if (made)
    made->ops->close(made);
  old->ops->close(old);
  return result;
}

static int take_rows(um_zstd_store *self, const uint8_t *rows, uint64_t count, um_zstd_scan *scan) {
  um_zstd_frames *frames = &scan->frames;
  uint64_t offset = 0;
  int result = 0;
  for (uint64_t i = 0; result == 0 && i < count; i++) {
    row r;
    memcpy(&r, rows + i * sizeof(r), sizeof(r));
    if (r.start < self->base || r.start > self->base_end || r.length > self->base_end - r.start || r.offset != offset ||
        r.size == 0 || r.size > FRAME_MAX)
      return -UM_ECORRUPT;
    result = um_zstd_frames_add(frames, r.start, r.length, r.size);
    offset += r.size;
  }
  if (result == 0)
    result = um_zstd_frames_add(frames, self->base_end, 0, 0);
  scan->phase = UM_ZSTD_DONE;
  return result;
}

int um_zstd_foreign_load(um_zstd_store *self, um_error *error) {
  static const char what[] = "the list of frames";
  const um_zstd_place *place = &self->super.foreign;
  um_zstd_scan_options options = {.path = self->file->path};
  um_zstd_scan *scan = NULL;
  uint8_t *record = um_zstd_record_read(self, place, UM_ZSTD_FOREIGN, what, error);
  if (!record)
    return -(error ? error->code : UM_ECORRUPT);
  self->frame_count = (place->length - UM_ZSTD_RECORD_HEADER) / sizeof(row);
  int result = um_zstd_scan_open(&options, &scan, error);
  if (result == 0 && (result = take_rows(self, record + UM_ZSTD_RECORD_HEADER, self->frame_count, scan)) < 0)
    um_zstd_fail(self, result, UM_OP_OPEN, 0, 0, what, error);
  free(record);
  if (result == 0)
    result = um_zstd_foreign_open(scan, CACHE, &self->frames, error);
  if (result < 0 && scan)
    um_zstd_scan_close(scan);
  return result;
}

int um_zstd_foreign_read(um_zstd_store *self, uint64_t offset, void *buffer, uint64_t length, um_error *error) {
  uint64_t size = um_store_size(self->frames), held = offset < size ? size - offset : 0;
  if (held > length)
    held = length;
  memset((char *)buffer + held, 0, length - held);
  int result = held ? um_store_read(self->frames, offset, buffer, held, error) : 0;
  if (result == -EINVAL ||
      result == -EFBIG) /* it asks for a dictionary, or for more memory: when it was adopted it did not */
    return um_zstd_fail(self, -UM_ECORRUPT, UM_OP_READ, offset, held, "the header of a frame", error);
  return result;
}
