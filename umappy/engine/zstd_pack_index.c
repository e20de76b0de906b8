/* zstd_pack_index.c: the index of a packed file, bottom up, and its seek table; zstd_pack.h.
 *
 * Pages come in order. Of each level one node is being filled; when the next page, or node, is another node's, it is
 * full and goes into the segment buffer. Where its record is in the file is known when the buffer is written; so the
 * buffer is written before a node of a higher level is encoded. */
#include "zstd_pack.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SEGMENT_ROOM (UM_ZSTD_SEGMENT_HEADER + (UM_ZSTD_FANOUT + 1) * (UM_ZSTD_NODE_MAX + UM_ZSTD_ALIGN))
#define SEEK_KEPT (1u << 16) /* numbers in memory before they go to the temporary file */

int um_zstd_pack_note_frame(um_zstd_pack *pack, uint64_t size, uint64_t decoded) {
  if (!pack->seek && !(pack->seek = malloc(SEEK_KEPT * sizeof(*pack->seek))))
    return -ENOMEM;
  if (pack->seek_count == SEEK_KEPT) {
    if (!pack->seek_file && !(pack->seek_file = tmpfile()))
      return -errno;
    if (fwrite(pack->seek, sizeof(*pack->seek), pack->seek_count, pack->seek_file) != pack->seek_count)
      return -EIO;
    pack->seek_count = 0;
  }
  pack->seek[pack->seek_count++] = (uint32_t)size;
  pack->seek[pack->seek_count++] = (uint32_t)decoded;
  pack->frames++;
  return 0;
}

static int put_seek_file(um_zstd_pack *pack) {
  uint32_t *numbers = malloc(SEEK_KEPT * sizeof(*numbers));
  int result = !numbers ? -ENOMEM : fseek(pack->seek_file, 0, SEEK_SET) < 0 ? -errno : 0;
  for (uint64_t left = pack->frames * 2 - pack->seek_count; result == 0 && left > 0; left -= SEEK_KEPT) {
    if (fread(numbers, sizeof(*numbers), SEEK_KEPT, pack->seek_file) != SEEK_KEPT)
      result = -EIO;
    else
      result = um_zstd_pack_put(pack, numbers, SEEK_KEPT * sizeof(*numbers));
  }
  free(numbers);
  return result;
}

int um_zstd_pack_end_seek(um_zstd_pack *pack) {
  uint64_t length = pack->frames * 8 + 9;
  if (pack->frames > 0x8000000u) /* more than the format knows: the file is one without random access */
    return 0;
  uint32_t head[2] = {UM_ZSTD_SEEK_FRAME, (uint32_t)length};
  int result = um_zstd_pack_put(pack, head, sizeof(head));
  if (result == 0 && pack->seek_file)
    result = put_seek_file(pack);
  if (result == 0 && pack->seek_count)
    result = um_zstd_pack_put(pack, pack->seek, pack->seek_count * sizeof(*pack->seek));
  uint8_t foot[9];
  uint32_t frames = (uint32_t)pack->frames, magic = UM_ZSTD_SEEK_MAGIC;
  memcpy(foot, &frames, 4);
  foot[4] = 0; /* no checksums */
  memcpy(foot + 5, &magic, 4);
  return result < 0 ? result : um_zstd_pack_put(pack, foot, sizeof(foot));
}

static int begin_level(um_zstd_pack *pack) {
  if (!(pack->level[pack->levels] = calloc(1, sizeof(um_zstd_level))))
    return -ENOMEM;
  pack->levels++;
  return 0;
}

static int end_node(um_zstd_pack *pack, uint32_t level);

/* Entry `i` of the level's nodes. */
static int note(um_zstd_pack *pack, uint32_t level, uint64_t i, const um_zstd_entry *entry) {
  int result = level < pack->levels ? 0 : begin_level(pack);
  um_zstd_level *l = pack->level[level];
  if (result == 0 && l->some && l->number != i / UM_ZSTD_FANOUT)
    result = end_node(pack, level);
  if (result < 0)
    return result;
  l->number = i / UM_ZSTD_FANOUT;
  l->some = true;
  um_zstd_entry_set(&l->entries, i % UM_ZSTD_FANOUT, entry);
  return 0;
}

int um_zstd_pack_add_row(um_zstd_pack *pack, const um_zstd_segment_row *row) {
  if (pack->row_count == pack->row_room) {
    uint32_t room = pack->row_room ? 2 * pack->row_room : 16;
    um_zstd_segment_row *rows = realloc(pack->rows, room * sizeof(*rows));
    if (!rows)
      return -ENOMEM;
    pack->rows = rows;
    pack->row_room = room;
  }
  pack->rows[pack->row_count++] = *row;
  return 0;
}

/* Writes the segment, `extra` bytes behind its nodes, and tells the levels above where the nodes are. */
static int put_segment(um_zstd_pack *pack, uint32_t extra) {
  uint32_t size = pack->segment_used + extra;
  uint64_t offset = pack->at;
  um_zstd_segment_header(pack->segment, offset, size, pack->seed);
  um_zstd_segment_row row = {.offset = offset, .size = size, .live = size - UM_ZSTD_SEGMENT_HEADER, .filled = size};
  int result = um_zstd_pack_add_row(pack, &row);
  if (result == 0)
    result = um_zstd_pack_put(pack, pack->segment, pack->segment_used);
  if (result == 0)
    result = um_zstd_pack_note_frame(pack, size, 0);
  um_zstd_waiting waiting[UM_ZSTD_FANOUT]; /* a copy: what is noted above may end nodes there, and they wait next */
  uint32_t count = pack->waiting_count;
  memcpy(waiting, pack->waiting, count * sizeof(*waiting));
  pack->waiting_count = 0;
  pack->segment_used = UM_ZSTD_SEGMENT_HEADER;
  for (const um_zstd_waiting *w = waiting; result == 0 && w < waiting + count; w++) {
    um_zstd_entry entry = {
        .offset = offset + w->at, .length = w->size, .tag = (uint32_t)w->checksum, .kind = UM_ZSTD_CHILD};
    pack->super.root = (um_zstd_place){entry.offset, w->size, w->level + 1, w->checksum}; /* the last one is */
    result = note(pack, w->level + 1, w->number, &entry);
  }
  return result;
}

/* The level's node is full: to the buffer. */
static int end_node(um_zstd_pack *pack, uint32_t level) {
  um_zstd_level *l = pack->level[level];
  if (pack->waiting_count > 0 && (level > 0 || pack->waiting_count == UM_ZSTD_FANOUT)) {
    int result = put_segment(pack, 0); /* may be the one that fills this level's next node: not before it is ended */
    if (result < 0)
      return result;
  }
  uint8_t *record = pack->segment + pack->segment_used;
  uint32_t length = um_zstd_node_encode(&l->entries, record + UM_ZSTD_RECORD_HEADER);
  um_zstd_waiting *w = &pack->waiting[pack->waiting_count++];
  *w = (um_zstd_waiting){
      .level = level, .at = pack->segment_used, .size = UM_ZSTD_RECORD_HEADER + length, .number = l->number};
  w->checksum = um_zstd_record_seal(record, UM_ZSTD_NODE, length, um_zstd_node_number(level, l->number), 1, pack->seed);
  uint64_t end = um_zstd_align(w->size);
  memset(record + w->size, 0, end - w->size);
  pack->segment_used += (uint32_t)end;
  memset(&l->entries, 0, sizeof(l->entries));
  l->some = false;
  return 0;
}

int um_zstd_pack_note_page(um_zstd_pack *pack, uint64_t page, const um_zstd_entry *entry) {
  if (!pack->segment) {
    if (!(pack->segment = malloc(SEGMENT_ROOM)))
      return -ENOMEM;
    pack->segment_used = UM_ZSTD_SEGMENT_HEADER;
  }
  return note(pack, 0, page, entry);
}

/* The last segment holds the table that names it. */
static int put_table(um_zstd_pack *pack) {
  uint32_t rows = pack->row_count + 1, length = rows * (uint32_t)sizeof(um_zstd_segment_row);
  uint32_t size = UM_ZSTD_RECORD_HEADER + length;
  uint8_t *record = malloc(size);
  if (!record)
    return -ENOMEM;
  uint64_t offset = pack->at + UM_ZSTD_SEGMENT_HEADER;
  um_zstd_segment_row row = {.offset = pack->at, .size = UM_ZSTD_SEGMENT_HEADER + size, .live = size};
  row.filled = row.size;
  memcpy(record + UM_ZSTD_RECORD_HEADER, pack->rows, pack->row_count * sizeof(row));
  memcpy(record + UM_ZSTD_RECORD_HEADER + pack->row_count * sizeof(row), &row, sizeof(row));
  uint64_t checksum = um_zstd_record_seal(record, UM_ZSTD_SEGMENTS, length, 0, 1, pack->seed);
  pack->super.segments = (um_zstd_place){offset, size, rows, checksum};
  int result = put_segment(pack, size);
  if (result == 0)
    result = um_zstd_pack_put(pack, record, size);
  free(record);
  return result;
}

int um_zstd_pack_end_index(um_zstd_pack *pack) {
  if (!pack->segment) /* all zeros */
    return 0;
  uint32_t levels = um_zstd_levels((pack->taken + pack->super.page_size - 1) / pack->super.page_size);
  int result = 0;
  for (uint32_t level = 0; result == 0 && level < levels; level++) {
    if (level < pack->levels && pack->level[level]->some)
      result = end_node(pack, level);
    if (result == 0 && pack->waiting_count > 0)
      result = put_segment(pack, 0);
  }
  return result < 0 ? result : put_table(pack);
}
