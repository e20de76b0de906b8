/* zstd_format.c: see zstd_format.h. Lengths and counts come from a file that anybody may have written: each is checked
 * before it is used. */
#include "zstd_format.h"

#include "xxh64.h"

#include <string.h>

#define SUPER_COVERED 504u    /* bytes under its checksum: the first sector */
#define TABLE_MAX (64u << 20) /* bytes of a segment table */

static const char super_magic[8] = "umappyZS", segment_magic[8] = "umappyZL";

static uint8_t *put(uint8_t *at, const void *value, size_t size) {
  memcpy(at, value, size); /* little-endian machines only; xxh64.c asserts it */
  return at + size;
}

static uint8_t *put_32(uint8_t *at, uint32_t value) {
  return put(at, &value, sizeof(value));
}

static uint8_t *put_64(uint8_t *at, uint64_t value) {
  return put(at, &value, sizeof(value));
}

static uint8_t *put_place(uint8_t *at, const um_zstd_place *place) {
  at = put_64(at, place->offset);
  at = put_32(at, place->length);
  at = put_32(at, place->extra);
  return put_64(at, place->checksum);
}

static uint32_t get_32(const uint8_t **at) {
  uint32_t value;
  memcpy(&value, *at, sizeof(value));
  *at += sizeof(value);
  return value;
}

static uint64_t get_64(const uint8_t **at) {
  uint64_t value;
  memcpy(&value, *at, sizeof(value));
  *at += sizeof(value);
  return value;
}

static um_zstd_place get_place(const uint8_t **at) {
  um_zstd_place place = {.offset = get_64(at)};
  place.length = get_32(at);
  place.extra = get_32(at);
  place.checksum = get_64(at);
  return place;
}

void um_zstd_super_encode(const um_zstd_super *super, uint8_t bytes[UM_ZSTD_SUPER_SIZE]) {
  memset(bytes, 0, UM_ZSTD_SUPER_SIZE);
  uint8_t *at = put_32(bytes, UM_ZSTD_SKIPPABLE);
  at = put_32(at, UM_ZSTD_SUPER_SIZE - UM_ZSTD_FRAME_HEADER);
  at = put(at, super_magic, sizeof(super_magic));
  at = put_32(at, UM_ZSTD_VERSION);
  at = put_32(at, 0);
  at = put(at, super->uuid, sizeof(super->uuid));
  at = put_64(at, super->generation);
  at = put_64(at, super->size);
  at = put_32(at, super->page_size);
  at = put_32(at, (uint32_t)super->level);
  at = put_64(at, super->end);
  at = put_64(at, super->base);
  at = put_64(at, super->base_length);
  at = put_64(at, super->base_live);
  at = put_64(at, super->packed_end);
  at = put_place(at, &super->root);
  at = put_place(at, &super->segments);
  at = put_place(at, &super->dictionary);
  put_place(at, &super->foreign);
  put_64(bytes + SUPER_COVERED, um_xxh64(bytes, SUPER_COVERED, 0));
}

static bool is_zero(const uint8_t *bytes, size_t length) {
  return bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0;
}

/* `most`: what memory is taken for, at the word of a file. */
static bool is_place_sane(const um_zstd_place *place, uint64_t end, uint64_t most) {
  return place->offset == 0 ||
         (place->offset >= UM_ZSTD_DATA_START && place->offset < end && place->length <= end - place->offset &&
          place->length >= UM_ZSTD_RECORD_HEADER && place->length <= most + UM_ZSTD_RECORD_HEADER);
}

static bool is_super_sane(const um_zstd_super *s) {
  return s->page_size >= UM_ZSTD_PAGE_MIN && s->page_size <= UM_ZSTD_PAGE_MAX &&
         (s->page_size & (s->page_size - 1)) == 0 && s->size <= INT64_MAX && s->end >= UM_ZSTD_DATA_START &&
         s->end <= UM_ZSTD_OFFSET_MAX && s->base <= s->end && s->base_length <= s->end - s->base &&
         is_place_sane(&s->root, s->end, UM_ZSTD_NODE_MAX) && is_place_sane(&s->segments, s->end, TABLE_MAX) &&
         is_place_sane(&s->dictionary, s->end, UM_ZSTD_PAGE_MAX) &&
         is_place_sane(&s->foreign, s->end, UM_ZSTD_FRAMES_MAX * UINT64_C(24)) && s->root.extra <= UM_ZSTD_LEVELS_MAX;
}

enum um_zstd_super_state um_zstd_super_decode(const uint8_t bytes[UM_ZSTD_SUPER_SIZE], um_zstd_super *super) {
  const uint8_t *at = bytes + 8;
  if (memcmp(at, super_magic, sizeof(super_magic)) != 0)
    return UM_ZSTD_SUPER_OTHER;
  const uint8_t *covered = bytes + SUPER_COVERED;
  if (um_xxh64(bytes, SUPER_COVERED, 0) != get_64(&covered) ||
      !is_zero(covered, (size_t)(bytes + UM_ZSTD_SUPER_SIZE - covered)))
    return UM_ZSTD_SUPER_BAD;
  at += sizeof(super_magic);
  if (get_32(&at) != UM_ZSTD_VERSION)
    return UM_ZSTD_SUPER_NEWER;
  at += 4;
  memcpy(super->uuid, at, sizeof(super->uuid));
  at += sizeof(super->uuid);
  super->generation = get_64(&at);
  super->size = get_64(&at);
  super->page_size = get_32(&at);
  super->level = (int32_t)get_32(&at);
  super->end = get_64(&at);
  super->base = get_64(&at);
  super->base_length = get_64(&at);
  super->base_live = get_64(&at);
  super->packed_end = get_64(&at);
  super->root = get_place(&at);
  super->segments = get_place(&at);
  super->dictionary = get_place(&at);
  super->foreign = get_place(&at);
  return is_super_sane(super) ? UM_ZSTD_SUPER_GOOD : UM_ZSTD_SUPER_BAD;
}

uint64_t um_zstd_seed(const um_zstd_super *super) {
  const uint8_t *at = super->uuid;
  return get_64(&at);
}

uint64_t um_zstd_record_seal(uint8_t *record, uint32_t kind, uint32_t length, uint64_t number, uint64_t generation,
                             uint64_t seed) {
  uint8_t *at = put_32(record + 8, kind);
  at = put_32(at, length);
  at = put_64(at, number);
  put_64(at, generation);
  uint64_t checksum = um_xxh64(record + 8, UM_ZSTD_RECORD_HEADER - 8 + (size_t)length, seed);
  put_64(record, checksum);
  return checksum;
}

void um_zstd_record_header(const uint8_t *record, um_zstd_record *out) {
  out->checksum = get_64(&record);
  out->kind = get_32(&record);
  out->length = get_32(&record);
  out->number = get_64(&record);
  out->generation = get_64(&record);
}

bool um_zstd_record_verify(const uint8_t *record, uint32_t length, uint64_t number, uint64_t seed,
                           um_zstd_record *out) {
  if (length < UM_ZSTD_RECORD_HEADER)
    return false;
  um_zstd_record_header(record, out);
  return out->length == length - UM_ZSTD_RECORD_HEADER && out->number == number &&
         um_xxh64(record + 8, length - 8, seed) == out->checksum;
}

void um_zstd_segment_header(uint8_t bytes[UM_ZSTD_SEGMENT_HEADER], uint64_t offset, uint32_t size, uint64_t seed) {
  uint8_t *at = put_32(bytes, UM_ZSTD_SKIPPABLE);
  at = put_32(at, size - UM_ZSTD_FRAME_HEADER);
  at = put(at, segment_magic, sizeof(segment_magic));
  at = put_64(at, offset);
  put_64(at, um_xxh64(bytes, 24, seed));
}

uint32_t um_zstd_node_encode(const um_zstd_entries *entries, uint8_t *payload) {
  uint32_t first = 0, end = UM_ZSTD_FANOUT;
  while (end > 0 && entries->halves[end - 1] == 0)
    end--;
  while (first < end && entries->halves[first] == 0)
    first++;
  uint32_t count = end - first;
  uint8_t *at = put_32(payload, first | count << 16);
  at = put_32(at, 0);
  at = put(at, entries->words + first, 8 * (size_t)count);
  at = put(at, entries->tags + first, 4 * (size_t)count);
  for (uint32_t i = first; i < end; i++) {
    uint16_t half = entries->halves[i] & 0x7FFF;
    at = put(at, &half, sizeof(half));
  }
  return (uint32_t)(at - payload);
}

bool um_zstd_node_decode(const uint8_t *payload, uint32_t length, um_zstd_entries *entries) {
  if (length < 8)
    return false;
  uint32_t range = get_32(&payload), first = range & 0xFFFF, count = range >> 16;
  payload += 4;
  if (first + count > UM_ZSTD_FANOUT || length != 8 + 14 * count)
    return false;
  memset(entries, 0, sizeof(*entries));
  memcpy(entries->words + first, payload, 8 * (size_t)count);
  memcpy(entries->tags + first, payload + 8 * (size_t)count, 4 * (size_t)count);
  memcpy(entries->halves + first, payload + 12 * (size_t)count, 2 * (size_t)count);
  for (uint32_t i = first; i < first + count; i++)
    if (entries->halves[i] >> 15 || (entries->halves[i] >> 8 & 7) > UM_ZSTD_CHILD)
      return false;
  return true;
}
