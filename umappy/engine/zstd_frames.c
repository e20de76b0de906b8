/* zstd_frames.c: the list of frames, and a frame's header (RFC 8878, 3.1.1.1). */
#include "zstd_frames.h"

#include "internal.h"

static uint64_t read_little(const unsigned char *bytes, unsigned count) {
  uint64_t value = 0;
  for (unsigned i = 0; i < count; i++)
    value |= (uint64_t)bytes[i] << (8 * i);
  return value;
}

static uint64_t read_window(unsigned char descriptor) {
  uint64_t base = UINT64_C(1) << (10 + (descriptor >> 3));
  return base + base / 8 * (descriptor & 7);
}

int um_zstd_header_parse(const unsigned char *bytes, uint64_t size, um_zstd_header *header) {
  static const uint8_t content_lengths[] = {0, 2, 4, 8}, dictionary_lengths[] = {0, 1, 2, 4};
  if (size >= 4 && read_little(bytes, 4) != UM_ZSTD_MAGIC)
    return -UM_ECORRUPT;
  if (size < 5)
    return -UM_ETRUNCATED;
  unsigned descriptor = bytes[4];
  bool single = descriptor >> 5 & 1;
  if (descriptor >> 3 & 1) /* reserved */
    return -UM_ECORRUPT;
  unsigned dictionary = dictionary_lengths[descriptor & 3];
  unsigned content = content_lengths[descriptor >> 6];
  if (content == 0 && single)
    content = 1;
  header->length = 5 + !single + dictionary + content;
  if (size < header->length)
    return -UM_ETRUNCATED;
  const unsigned char *rest = bytes + 5 + !single;
  header->checksum = descriptor >> 2 & 1;
  header->dictionary = (uint32_t)read_little(rest, dictionary);
  header->content = read_little(rest + dictionary, content) + (content == 2 ? 256 : 0);
  if (content == 0)
    header->content = UM_ZSTD_SIZE_UNKNOWN;
  header->window = single ? header->content : read_window(bytes[5]);
  return 0;
}

uint64_t um_zstd_frames_find(const um_zstd_frames *frames, uint64_t offset) {
  uint64_t low = 0, high = frames->count; /* the last frame that begins at or before offset lies in [low, high) */
  while (high - low > 1) {
    uint64_t middle = low + (high - low) / 2;
    if (frames->list[middle].offset <= offset)
      low = middle;
    else
      high = middle;
  }
  return low;
}

void um_zstd_frames_free(um_zstd_frames *frames) {
  free(frames->list);
  *frames = (um_zstd_frames){0};
}

int um_zstd_frames_add(um_zstd_frames *frames, uint64_t start, uint64_t length, uint64_t size) {
  if (frames->count + 2 > frames->capacity) {
    uint64_t capacity = um_max(16, frames->capacity + frames->capacity / 2);
    um_zstd_frame *list = realloc(frames->list, capacity * sizeof *list);
    if (!list)
      return -ENOMEM;
    if (frames->count == 0)
      list[0] = (um_zstd_frame){0};
    frames->list = list;
    frames->capacity = capacity;
  }
  um_zstd_frame *end = &frames->list[frames->count];
  if (size > (uint64_t)INT64_MAX - end->offset)
    return -EOVERFLOW;
  if (size > 0) {
    end->start = start;
    end->length = length;
    end[1].offset = end->offset + size;
    end[1].length = 0;
    frames->count++;
    frames->largest = um_max(frames->largest, size);
    frames->longest = um_max(frames->longest, length);
  }
  frames->list[frames->count].start = start + length;
  return 0;
}
