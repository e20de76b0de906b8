/* zstd_format.h: the bytes of a zstd store's file, to and from structures; docs/format.md has the tables. */
#ifndef UM_ZSTD_FORMAT_H
#define UM_ZSTD_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UM_ZSTD_VERSION 1u
#define UM_ZSTD_SUPER_SIZE 4096u      /* bytes of a superblock with its frame's header */
#define UM_ZSTD_DATA_START 8192u      /* behind both */
#define UM_ZSTD_SKIPPABLE 0x184D2A5Bu /* of superblocks and segments */
#define UM_ZSTD_SEEK_MAGIC 0x8F92EAB1u
#define UM_ZSTD_SEEK_FRAME 0x184D2A5Eu
#define UM_ZSTD_FRAME_HEADER 8u /* bytes of a skippable frame's */
#define UM_ZSTD_SEGMENT_HEADER 32u
#define UM_ZSTD_RECORD_HEADER 32u
#define UM_ZSTD_ALIGN 8u /* of records in a segment */
#define UM_ZSTD_PAGE_MIN 4096u
#define UM_ZSTD_PAGE_MAX (8u << 20)
#define UM_ZSTD_FANOUT 256u
#define UM_ZSTD_LEVELS_MAX 7u /* more pages than a file can have bytes */
#define UM_ZSTD_OFFSET_MAX (UINT64_C(1) << 48)
#define UM_ZSTD_NODE_MAX (UM_ZSTD_RECORD_HEADER + 8u + 14u * UM_ZSTD_FANOUT) /* bytes of a node's record */

#define UM_ZSTD_FRAMES_MAX (1u << 24) /* of an adopted file */

#define UM_ZSTD_FIXED 1u /* flag of a segment: never used again */

enum { /* kinds of records, as the file spells them */
       UM_ZSTD_PAGE_FRAME = 0x5A676170,
       UM_ZSTD_PAGE_RAW = 0x52676170,
       UM_ZSTD_NODE = 0x65646F6E,
       UM_ZSTD_SEGMENTS = 0x73676573,
       UM_ZSTD_DICTIONARY = 0x74636964,
       UM_ZSTD_FOREIGN = 0x736D7266,
};

enum { /* kinds of entries */
       UM_ZSTD_ABSENT = 0,
       UM_ZSTD_ZEROS = 1,
       UM_ZSTD_RECORD = 2,
       UM_ZSTD_BASE = 3,
       UM_ZSTD_CHILD = 4,
};

typedef struct um_zstd_place {
  uint64_t offset;   /* of the record; 0: there is none */
  uint32_t length;   /* bytes, with its header */
  uint32_t extra;    /* what it is depends on whose place it is */
  uint64_t checksum; /* of the record */
} um_zstd_place;

typedef struct um_zstd_super {
  uint8_t uuid[16];
  uint64_t generation;
  uint64_t size; /* bytes of the image */
  uint32_t page_size;
  int32_t level;
  uint64_t end; /* bytes of the file that count */
  uint64_t base, base_length, base_live;
  uint64_t packed_end; /* the file is packed while end is this; 0: never */
  um_zstd_place root, segments, dictionary, foreign;
} um_zstd_super;

typedef struct um_zstd_record {
  uint64_t checksum;
  uint32_t kind;
  uint32_t length; /* bytes of the payload */
  uint64_t number;
  uint64_t generation;
} um_zstd_record;

typedef struct um_zstd_entry {
  uint64_t offset;
  uint32_t length;
  uint32_t tag;
  uint8_t kind;
  bool fresh; /* in memory only: no flush has it yet; zstd_index.c */
} um_zstd_entry;

/* The entries of a node; 14 bytes each. */
typedef struct um_zstd_entries {
  uint64_t words[UM_ZSTD_FANOUT];
  uint32_t tags[UM_ZSTD_FANOUT];
  uint16_t halves[UM_ZSTD_FANOUT];
} um_zstd_entries;

typedef struct um_zstd_segment_row {
  uint64_t offset;
  uint32_t size, live, filled, punched, flags, zero;
} um_zstd_segment_row;
_Static_assert(sizeof(um_zstd_segment_row) == 32, "as in the file");

enum um_zstd_super_state {
  UM_ZSTD_SUPER_GOOD,
  UM_ZSTD_SUPER_BAD,   /* it is one, and does not verify */
  UM_ZSTD_SUPER_OTHER, /* something else is there */
  UM_ZSTD_SUPER_NEWER, /* of a version we do not know; it verifies */
};

void um_zstd_super_encode(const um_zstd_super *super, uint8_t bytes[UM_ZSTD_SUPER_SIZE]);
enum um_zstd_super_state um_zstd_super_decode(const uint8_t bytes[UM_ZSTD_SUPER_SIZE], um_zstd_super *super);
uint64_t um_zstd_seed(const um_zstd_super *super);

/* Writes the header before a payload that is there already; returns the checksum. */
uint64_t um_zstd_record_seal(uint8_t *record, uint32_t kind, uint32_t length, uint64_t number, uint64_t generation,
                             uint64_t seed);
void um_zstd_record_header(const uint8_t *record, um_zstd_record *out);
/* Whether `length` bytes at `record` are a whole record, of that number, that verifies. */
bool um_zstd_record_verify(const uint8_t *record, uint32_t length, uint64_t number, uint64_t seed, um_zstd_record *out);

void um_zstd_segment_header(uint8_t bytes[UM_ZSTD_SEGMENT_HEADER], uint64_t offset, uint32_t size, uint64_t seed);

uint32_t um_zstd_node_encode(const um_zstd_entries *entries, uint8_t *payload); /* bytes */
bool um_zstd_node_decode(const uint8_t *payload, uint32_t length, um_zstd_entries *entries);

static inline um_zstd_entry um_zstd_entry_get(const um_zstd_entries *e, uint32_t i) {
  uint16_t half = e->halves[i];
  um_zstd_entry entry = {.offset = e->words[i] & (UM_ZSTD_OFFSET_MAX - 1),
                         .length = (uint32_t)(e->words[i] >> 48) | (uint32_t)(half & 0xFF) << 16,
                         .tag = e->tags[i],
                         .kind = half >> 8 & 7,
                         .fresh = half >> 15};
  return entry;
}

static inline void um_zstd_entry_set(um_zstd_entries *e, uint32_t i, const um_zstd_entry *entry) {
  e->words[i] = entry->offset | (uint64_t)(entry->length & 0xFFFF) << 48;
  e->tags[i] = entry->tag;
  e->halves[i] = (uint16_t)(entry->length >> 16 | (uint32_t)entry->kind << 8 | (uint32_t)entry->fresh << 15);
}

static inline uint64_t um_zstd_align(uint64_t length) {
  return (length + UM_ZSTD_ALIGN - 1) & ~(uint64_t)(UM_ZSTD_ALIGN - 1);
}

static inline uint64_t um_zstd_node_number(uint32_t level, uint64_t index) {
  return (uint64_t)level << 56 | index;
}

#endif
