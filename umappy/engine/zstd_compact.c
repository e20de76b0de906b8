/* zstd_compact.c: moving what lives out of the emptiest segments, so that they can be used again.
 *
 * Before a flush writes anything, it looks at what the log will be after it. If too much of it were dead, and out of
 * reach of hole punching (records smaller than a block), or if there were too many segments for what lives in them, the
 * segment with the least in it is emptied, until there are enough. The moves are changes like others: the flush takes
 * them in, and the segments are free when it is durable.
 *
 * What lives in a segment is found by looking for records and asking the index of each whether it lies there. So
 * nothing between records matters, and a record that looks like one and is not is passed by. Only the index moves a
 * record, byte by byte as it is, and only if nobody wrote the page meanwhile. */
#include "zstd_store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SLACK (32u << 10)   /* bytes not worth it */
#define BLOCK 4096u         /* of file systems: what punching a record leaves, about */
#define RECORD_GUESS 16384u /* bytes of a record, before the first is written */
#define PATIENCE 64u        /* generations until a segment that would not become empty is tried again */
#define MOVES 256u
#define SEGMENTS_MANY 4u /* more than this are not too many */

typedef struct state {
  um_zstd_store *store;
  uint64_t live, spent, size; /* bytes of the log after the flush */
  uint32_t victim;            /* the segment with the smallest share of living bytes */
  uint64_t share;             /* of it, in parts of 1024 of what it costs */
} state;

/* Live, and what the disk spends, of a segment after the flush that is to come; log->lock. */
static void foresee(const um_zstd_log *log, const um_zstd_segment *segment, uint64_t *live, uint64_t *spent) {
  uint64_t record = log->records ? log->record_bytes / log->records : RECORD_GUESS;
  uint64_t going = segment->pending[UM_ZSTD_AT_FLUSH] + segment->pending[UM_ZSTD_IN_FLUSH];
  uint64_t punched = segment->listed + going;
  punched = log->no_punch || record <= BLOCK ? 0 : punched - punched * BLOCK / record;
  *live = segment->held - going;
  *spent = segment->filled - segment->punched;
  *spent -= punched < *spent - *live ? punched : *spent > *live ? *spent - *live : 0;
}

/* log->lock */
static void survey(state *s, bool by_size) {
  um_zstd_log *log = &s->store->log;
  s->live = s->spent = s->size = 0;
  s->victim = UM_ZSTD_NO_SEGMENT;
  s->share = 1024 * 7 / 8; /* fuller ones are not worth it */
  for (uint32_t i = 0; i < log->count; i++) {
    const um_zstd_segment *segment = &log->segments[i];
    uint64_t live, spent, share;
    foresee(log, segment, &live, &spent);
    if (segment->fixed || live == 0)
      continue;
    s->live += live;
    s->spent += spent;
    s->size += i == log->open ? log->head : segment->size;
    share = live * 1024 / (by_size ? segment->size : spent + 1);
    bool rests = segment->tried != 0 && segment->tried + PATIENCE > s->store->super.generation;
    if (share < s->share && i != log->open && !segment->busy && !rests) {
      s->share = share;
      s->victim = i;
    }
  }
}

/* Moving goes on below what started it. */
static bool choose(state *s, bool moving) {
  survey(s, false);
  uint64_t allowed = s->live + s->live / 8 * (moving ? 2 : 3) + SLACK;
  if (s->spent > allowed && s->victim != UM_ZSTD_NO_SEGMENT)
    return true;
  uint64_t many = s->live / 4 * (moving ? 7 : 8);
  uint64_t few = SEGMENTS_MANY * (s->store->log.count ? s->store->log.segments[s->store->log.count - 1].size : 0);
  if (s->size <= many + few)
    return false;
  survey(s, true);
  return s->victim != UM_ZSTD_NO_SEGMENT;
}

typedef struct move {
  um_zstd_store *store;
  uint8_t *window;                     /* bytes of the segment */
  uint64_t window_size, window_offset; /* of the file */
  uint64_t window_length;
  uint8_t *out; /* records that wait for their write */
  uint64_t used;
  uint32_t count;
  uint32_t sizes[MOVES];
  uint64_t pages[MOVES];
  um_zstd_entry entries[MOVES]; /* where they are */
  um_error error;
} move;

static int note_moved(void *context, uint32_t i, uint64_t offset) {
  move *m = context;
  um_zstd_entry entry = m->entries[i];
  entry.offset = offset;
  return um_zstd_index_set(m->store, m->pages[i], &entry, &m->entries[i], &m->error);
}

static int send(move *m) {
  uint32_t count = m->count;
  m->count = 0;
  m->used = 0;
  return um_zstd_log_write(m->store, m->out, m->sizes, count, note_moved, m, &m->error);
}

/* Bytes of the file from offset on, `length` of them, or NULL: there are fewer, or none can be read. */
static const uint8_t *look(move *m, uint64_t offset, uint64_t length, uint64_t end) {
  if (length > end - offset || length > m->window_size)
    return NULL;
  if (offset < m->window_offset || offset + length > m->window_offset + m->window_length) {
    uint64_t most = end - offset < m->window_size ? end - offset : m->window_size;
    m->window_length = 0;
    if (um_zstd_file_read(m->store->file, offset, m->window, most) < 0)
      return NULL;
    m->window_offset = offset;
    m->window_length = most;
  }
  return m->window + (offset - m->window_offset);
}

/* The page's record, if it lives at offset: bytes to go on behind, 0: it does not, or -errno. */
static int64_t move_page(move *m, const um_zstd_record *header, uint64_t offset, uint64_t end) {
  um_zstd_store *store = m->store;
  uint32_t size = UM_ZSTD_RECORD_HEADER + header->length;
  um_zstd_entry entry;
  um_zstd_record again;
  if (header->number >= store->page_count || header->length > m->window_size)
    return 0;
  int result = um_zstd_index_get(store, header->number, 1, &entry, &m->error);
  if (result < 0)
    return result;
  if (entry.kind != UM_ZSTD_RECORD || entry.offset != offset || entry.length != size)
    return 0;
  const uint8_t *record = look(m, offset, size, end);
  if (!record || !um_zstd_record_verify(record, size, header->number, store->seed, &again) ||
      (uint32_t)again.checksum != entry.tag)
    return 0; /* damaged, or superseded since the look at the index: it stays, for whoever reads it to see */
  memcpy(m->out + m->used, record, size);
  memset(m->out + m->used + size, 0, um_zstd_align(size) - size);
  m->pages[m->count] = header->number;
  m->entries[m->count] = entry;
  m->sizes[m->count++] = size;
  m->used += um_zstd_align(size);
  result = m->used >= UM_ZSTD_BATCH || m->count == MOVES ? send(m) : 0;
  return result < 0 ? result : (int64_t)um_zstd_align(size);
}

static int64_t move_node(move *m, const um_zstd_record *header, uint64_t offset) {
  uint64_t page, mask = (UINT64_C(1) << 56) - 1;
  uint32_t level = (uint32_t)(header->number >> 56);
  int result = um_zstd_node_find(m->store, level, header->number & mask, offset, &page, &m->error);
  if (result > 0)
    result = um_zstd_index_touch(m->store, page, &m->error);
  return result < 0 ? result : 0;
}

static int move_all(move *m, uint64_t start, uint64_t end) {
  for (uint64_t at = start + UM_ZSTD_SEGMENT_HEADER; at + UM_ZSTD_RECORD_HEADER <= end;) {
    const uint8_t *bytes = look(m, at, UM_ZSTD_RECORD_HEADER, end);
    if (!bytes)
      return -EIO;
    um_zstd_record header;
    um_zstd_record_header(bytes, &header);
    int64_t behind = 0;
    if (header.kind == UM_ZSTD_PAGE_FRAME || header.kind == UM_ZSTD_PAGE_RAW)
      behind = move_page(m, &header, at, end);
    else if (header.kind == UM_ZSTD_NODE)
      behind = move_node(m, &header, at);
    if (behind < 0)
      return (int)behind;
    at += behind > 0 ? (uint64_t)behind : UM_ZSTD_ALIGN;
  }
  return send(m);
}

static int empty(um_zstd_store *store, uint32_t victim) {
  um_zstd_log *log = &store->log;
  uint64_t longest = um_zstd_align(um_zstd_bound(&store->codec, store->codec.page_size) + UM_ZSTD_RECORD_HEADER);
  move *m = calloc(1, sizeof(*m));
  int result = -ENOMEM;
  if (m) {
    m->store = store;
    m->window_size = UM_ZSTD_BATCH + 2 * longest;
    m->window = malloc(m->window_size);
    m->out = malloc(UM_ZSTD_BATCH + longest);
  }
  pthread_mutex_lock(&log->lock);
  um_zstd_segment *segment = &log->segments[victim]; /* they are only ever added at the end */
  uint64_t start = segment->offset, end = start + segment->filled;
  segment->tried = store->super.generation + 1;
  segment->busy = true;
  pthread_mutex_unlock(&log->lock);
  if (m && m->window && m->out)
    result = move_all(m, start, end);
  pthread_mutex_lock(&log->lock);
  log->segments[victim].busy = false;
  pthread_mutex_unlock(&log->lock);
  if (m) {
    free(m->window);
    free(m->out);
  }
  free(m);
  return result;
}

void um_zstd_compact(um_zstd_store *store) {
  state s = {.store = store};
  for (bool moving = false; store->sync_code == 0; moving = true) {
    pthread_mutex_lock(&store->log.lock);
    bool go_on = choose(&s, moving);
    pthread_mutex_unlock(&store->log.lock);
    if (!go_on || empty(store, s.victim) < 0)
      return;
  }
}
