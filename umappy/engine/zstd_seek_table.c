/* zstd_seek_table.c: the seek table of zstd's seekable format: a skippable frame at the end of the file, with for each
 * frame its length in the file, its size decoded and perhaps a checksum of that, then how many there are, a descriptor
 * and a magic number. A table that does not fit the file is not used: the frames themselves tell the same. */
#include "zstd_frames.h"

#include "internal.h"

#include <inttypes.h>

#define TABLE_MAGIC (UM_ZSTD_SKIPPABLE_MAGIC + 0xE)
#define FOOTER_MAGIC 0x8F92EAB1u
#define FOOTER_SIZE 9u
#define HEADER_SIZE 8u
#define CHECKSUM_BIT 0x80u
#define RESERVED_BITS 0x7Cu
#define PIECE_ENTRIES 8192u
#define BLOCK_LEAST                                                                                                    \
  4u /* bytes of file of a block that decodes to UM_ZSTD_BLOCK_MAX: a header and the byte it repeats */

static uint32_t read_u32(const unsigned char *bytes) {
  return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

typedef struct table {
  uint64_t start; /* of its first entry, bytes from the start of the file */
  uint64_t count;
  uint32_t entry; /* bytes */
} table;

/* 1: there is one; 0: not. */
static int find_table(const um_zstd_source *source, table *t, um_error *error) {
  unsigned char footer[FOOTER_SIZE], header[HEADER_SIZE];
  if (source->size < HEADER_SIZE + FOOTER_SIZE)
    return 0;
  int result = um_zstd_source_read(source, source->size - FOOTER_SIZE, footer, FOOTER_SIZE, error);
  if (result < 0)
    return result;
  if (read_u32(footer + 5) != FOOTER_MAGIC || footer[4] & RESERVED_BITS)
    return 0;
  t->count = read_u32(footer);
  t->entry = footer[4] & CHECKSUM_BIT ? 12 : 8;
  uint64_t length = t->count * t->entry + FOOTER_SIZE;
  if (length > UINT32_MAX || length + HEADER_SIZE > source->size)
    return 0;
  t->start = source->size - length;
  result = um_zstd_source_read(source, t->start - HEADER_SIZE, header, HEADER_SIZE, error);
  if (result < 0)
    return result;
  return read_u32(header) == TABLE_MAGIC && read_u32(header + 4) == length;
}

/* Could so many bytes of file decode to so many of image? */
static bool is_possible(uint64_t length, uint64_t size) {
  return size <= (length / BLOCK_LEAST + 1) * UM_ZSTD_BLOCK_MAX;
}

static int read_entries(const um_zstd_source *source, const table *t, um_zstd_frames *frames, um_error *error) {
  unsigned char *piece = malloc((size_t)PIECE_ENTRIES * t->entry);
  if (!piece)
    return um_error_set(error, ENOMEM, UM_OP_OPEN, 0, 0, "%s: reading its seek table", source->path);
  uint64_t start = 0;
  int result = 0;
  for (uint64_t i = 0; i < t->count && result == 0; i += PIECE_ENTRIES) {
    uint64_t count = um_min(PIECE_ENTRIES, t->count - i);
    result = um_zstd_source_read(source, t->start + i * t->entry, piece, count * t->entry, error);
    for (uint64_t k = 0; k < count && result == 0; k++) {
      uint32_t length = read_u32(piece + k * t->entry), size = read_u32(piece + k * t->entry + 4);
      if (!is_possible(length, size))
        result = -UM_ECORRUPT;
      else if (um_zstd_frames_add(frames, start, length, size) < 0)
        result = um_error_set(error, ENOMEM, UM_OP_OPEN, 0, 0, "%s: reading its seek table", source->path);
      start += length;
      frames->skipped += size == 0 ? length : 0;
    }
  }
  free(piece);
  if (result == 0 && start != t->start - HEADER_SIZE)
    result = -UM_ECORRUPT;
  return result;
}

/* -UM_ECORRUPT: no frame begins there, or one of another size. */
static int look_at(const um_zstd_source *source, um_zstd_frames *frames, uint64_t which, um_error *error) {
  const um_zstd_frame *frame = &frames->list[which];
  unsigned char bytes[UM_ZSTD_HEADER_MAX];
  um_zstd_header header;
  uint64_t length = um_min(sizeof bytes, frame->length);
  int result = um_zstd_source_read(source, frame->start, bytes, length, error);
  if (result < 0)
    return result;
  if (um_zstd_header_parse(bytes, length, &header) < 0)
    return -UM_ECORRUPT;
  frames->window = um_max(frames->window, header.window);
  bool fits = header.content == UM_ZSTD_SIZE_UNKNOWN || header.content == frame[1].offset - frame->offset;
  return fits ? 0 : -UM_ECORRUPT;
}

static int look_at_some(const um_zstd_source *source, um_zstd_frames *frames, um_error *error) {
  uint64_t looks = um_min(UM_ZSTD_LOOKS, frames->count);
  for (uint64_t i = 0; i < looks; i++) {
    uint64_t which = looks == 1 ? 0 : (frames->count - 1) * i / (looks - 1);
    int result = look_at(source, frames, which, error);
    if (result < 0)
      return result;
  }
  return 0;
}

int um_zstd_seek_table_read(const um_zstd_source *source, um_zstd_frames *frames, um_error *error) {
  table t;
  int result = find_table(source, &t, error);
  if (result <= 0)
    return result;
  result = um_zstd_frames_add(frames, 0, 0, 0) < 0
               ? um_error_set(error, ENOMEM, UM_OP_OPEN, 0, 0, "%s: reading its seek table", source->path)
               : read_entries(source, &t, frames, error);
  if (result == 0)
    result = look_at_some(source, frames, error);
  if (result == 0) {
    frames->table = true;
    frames->skipped += source->size - (t.start - HEADER_SIZE);
    return 1;
  }
  um_zstd_frames_free(frames);
  frames->table_wrong = result == -UM_ECORRUPT;
  return frames->table_wrong ? 0 : result;
}
