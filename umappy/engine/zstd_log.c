/* zstd_log.c: segments, and which bytes of them are held.
 *
 * Records go to one open segment, front to back; when the next does not fit, to a segment nobody holds anything in, or
 * to a new one. Space is counted the moment it is taken, so a segment somebody still writes into is never free. Who
 * makes a segment does so without the lock; who needs one meanwhile waits. */
#include "zstd_store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SEGMENT_MIN (256u << 10)
#define SEGMENT_MAX (64u << 20)
#define SEGMENT_PAGES 16u  /* of the store's page size fit in one, at least */
#define SEGMENT_SHARE 64u  /* of the file, at most: there are few hundred */
#define SEGMENT_UNIT 4096u /* segments end at multiples of it */

void um_zstd_log_init(um_zstd_log *log) {
  pthread_mutex_init(&log->lock, NULL);
  pthread_cond_init(&log->grown, NULL);
  log->open = UM_ZSTD_NO_SEGMENT;
}

void um_zstd_log_end(um_zstd_log *log) {
  free(log->segments);
  free(log->pending[0].list);
  free(log->pending[1].list);
  free(log->dead.list);
  pthread_cond_destroy(&log->grown);
  pthread_mutex_destroy(&log->lock);
}

static int make_room(um_zstd_log *log) {
  if (log->count < log->room)
    return 0;
  uint32_t room = log->room ? 2 * log->room : 64;
  um_zstd_segment *segments = realloc(log->segments, room * sizeof(*segments));
  if (!segments)
    return -ENOMEM;
  log->segments = segments;
  log->room = room;
  return 0;
}

int um_zstd_log_add(um_zstd_log *log, const um_zstd_segment_row *row) {
  int result = make_room(log);
  if (result < 0)
    return result;
  log->segments[log->count++] = (um_zstd_segment){.offset = row->offset,
                                                  .size = row->size,
                                                  .held = row->live,
                                                  .filled = row->filled,
                                                  .punched = row->punched,
                                                  .fixed = row->flags & UM_ZSTD_FIXED};
  return 0;
}

um_zstd_segment *um_zstd_log_find(um_zstd_log *log, uint64_t offset) {
  uint32_t low = 0, high = log->count;
  while (low < high) {
    uint32_t middle = low + (high - low) / 2;
    um_zstd_segment *segment = &log->segments[middle];
    if (offset < segment->offset)
      high = middle;
    else if (offset - segment->offset >= segment->size)
      low = middle + 1;
    else
      return segment;
  }
  return NULL;
}

static uint64_t choose_size(const um_zstd_store *store, uint64_t end, uint64_t record) {
  uint64_t least = (uint64_t)SEGMENT_PAGES * store->codec.page_size, size = SEGMENT_MIN;
  while (size < SEGMENT_MAX && size * 2 * SEGMENT_SHARE <= end)
    size *= 2;
  if (size < least)
    size = least;
  if (size < record + UM_ZSTD_SEGMENT_HEADER)
    size = record + UM_ZSTD_SEGMENT_HEADER;
  return size + (SEGMENT_UNIT - (end + size) % SEGMENT_UNIT) % SEGMENT_UNIT;
}

/* The frame's header first: with the length alone there would be bytes in no frame. */
static int make_segment(um_zstd_store *store, uint64_t offset, uint64_t size) {
  uint8_t header[UM_ZSTD_SEGMENT_HEADER];
  um_zstd_segment_header(header, offset, (uint32_t)size, store->seed);
  int result = um_zstd_file_write(store->file, offset, header, sizeof(header));
  return result < 0 ? result : store->file->ops->truncate(store->file, offset + size);
}

/* log->lock is held at entry and at return. */
static int grow(um_zstd_store *store, uint64_t record) {
  um_zstd_log *log = &store->log;
  uint64_t offset = log->end, size = choose_size(store, offset, record);
  int result = offset + size > UM_ZSTD_OFFSET_MAX ? -EFBIG : make_room(log);
  if (result < 0)
    return result;
  log->growing = true;
  pthread_mutex_unlock(&log->lock);
  result = make_segment(store, offset, size);
  bool torn = result < 0 && store->file->ops->truncate(store->file, offset) < 0;
  pthread_mutex_lock(&log->lock);
  log->growing = false;
  log->torn = torn;
  if (result == 0) {
    log->segments[log->count] = (um_zstd_segment){.offset = offset, .size = (uint32_t)size};
    um_zstd_space_begin(log, &log->segments[log->count++]);
    log->end = offset + size;
  }
  pthread_cond_broadcast(&log->grown);
  return result;
}

static int wait_grown(um_zstd_log *log) {
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += UM_ZSTD_WAIT_SECONDS;
  while (log->growing)
    if (pthread_cond_timedwait(&log->grown, &log->lock, &until) == ETIMEDOUT)
      return -ETIMEDOUT;
  return 0;
}

static int next_segment(um_zstd_store *store, uint64_t record) {
  um_zstd_log *log = &store->log;
  if (log->growing)
    return wait_grown(log);
  for (um_zstd_segment *segment = log->segments; segment < log->segments + log->count; segment++)
    if (segment->held == 0 && !segment->fixed && !segment->busy && segment->size - UM_ZSTD_SEGMENT_HEADER >= record) {
      um_zstd_space_begin(log, segment);
      return 0;
    }
  return grow(store, record);
}

int um_zstd_log_take(um_zstd_store *store, const uint32_t *sizes, uint32_t count, uint64_t *offset, uint32_t *taken,
                     um_error *error) {
  um_zstd_log *log = &store->log;
  int result = 0;
  uint64_t length = 0;
  uint32_t n = 0;
  pthread_mutex_lock(&log->lock);
  while (result == 0) {
    um_zstd_segment *open = log->open == UM_ZSTD_NO_SEGMENT ? NULL : &log->segments[log->open];
    while (open && n < count && um_zstd_align(sizes[n]) <= open->size - log->head - length)
      length += um_zstd_align(sizes[n++]);
    if (n > 0) {
      *offset = open->offset + log->head;
      *taken = n;
      log->head += (uint32_t)length;
      open->held += (uint32_t)length;
      if (open->filled < log->head)
        open->filled = log->head;
      log->records += n;
      log->record_bytes += length;
      break;
    }
    result = next_segment(store, um_zstd_align(sizes[0]));
  }
  pthread_mutex_unlock(&log->lock);
  return result < 0 ? um_zstd_fail(store, result, UM_OP_WRITE, 0, 0, "finding space for records", error) : 0;
}

void um_zstd_log_give(um_zstd_store *store, uint64_t offset, uint64_t length, enum um_zstd_when when) {
  um_zstd_log *log = &store->log;
  pthread_mutex_lock(&log->lock);
  um_zstd_segment *segment = um_zstd_log_find(log, offset);
  if (!segment && offset >= store->base && offset < store->base_end) {
    log->base_pending[when] += length; /* in the base nothing is of this epoch */
  } else {
    uint32_t bytes = (uint32_t)um_zstd_align(length);
    if (!segment || segment->held - segment->pending[0] - segment->pending[1] < bytes) {
      /* The segment table counted too little, which reading it checks; never make more of it. */
    } else if (when == UM_ZSTD_NOW) {
      um_zstd_space_die(log, segment, offset, bytes);
    } else if (um_zstd_extents_add(&log->pending[when], offset, bytes, segment->use)) {
      segment->pending[when] += bytes;
    } /* else no memory: it stays held, until the file is packed */
  }
  pthread_mutex_unlock(&log->lock);
}

void um_zstd_log_undo(um_zstd_store *store, uint64_t offset, uint64_t length) {
  um_zstd_log_give(store, offset, length, UM_ZSTD_NOW);
}

/* Without memory for the longer list all of it stays behind, and is given up one flush later. */
void um_zstd_log_close_epoch(um_zstd_log *log) {
  um_zstd_extents *from = &log->pending[UM_ZSTD_AT_FLUSH], *to = &log->pending[UM_ZSTD_IN_FLUSH];
  pthread_mutex_lock(&log->lock);
  log->base_pending[UM_ZSTD_IN_FLUSH] += log->base_pending[UM_ZSTD_AT_FLUSH];
  log->base_pending[UM_ZSTD_AT_FLUSH] = 0;
  if (to->count == 0) {
    um_zstd_extents empty = *to;
    *to = *from;
    *from = empty;
  } else if (from->count > 0) {
    um_zstd_extent *list = realloc(to->list, (to->count + from->count) * sizeof(*list));
    if (!list) {
      pthread_mutex_unlock(&log->lock);
      return;
    }
    memcpy(list + to->count, from->list, from->count * sizeof(*list));
    to->list = list;
    to->count = to->room = to->count + from->count;
    from->count = 0;
  }
  for (um_zstd_segment *segment = log->segments; segment < log->segments + log->count; segment++) {
    segment->pending[UM_ZSTD_IN_FLUSH] += segment->pending[UM_ZSTD_AT_FLUSH];
    segment->pending[UM_ZSTD_AT_FLUSH] = 0;
  }
  pthread_mutex_unlock(&log->lock);
}

int um_zstd_log_write(um_zstd_store *store, const uint8_t *bytes, const uint32_t *sizes, uint32_t count,
                      int (*placed)(void *context, uint32_t i, uint64_t offset), void *context, um_error *error) {
  for (uint32_t i = 0, taken; i < count; i += taken) {
    uint64_t offset, length = 0;
    int result = um_zstd_log_take(store, sizes + i, count - i, &offset, &taken, error);
    if (result < 0)
      return result;
    for (uint32_t n = i; n < i + taken; n++)
      length += um_zstd_align(sizes[n]);
    result = um_zstd_file_write(store->file, offset, bytes, length);
    if (result < 0) {
      um_zstd_log_undo(store, offset, length);
      return um_zstd_fail(store, result, UM_OP_WRITE, 0, 0, "writing to the log", error);
    }
    uint64_t at = offset, end = offset + length;
    for (uint32_t n = i; n < i + taken; n++) {
      result = placed(context, n, at);
      if (result < 0) {
        um_zstd_log_undo(store, at, end - at);
        return result;
      }
      if (result > 0)
        um_zstd_log_undo(store, at, sizes[n]);
      at += um_zstd_align(sizes[n]);
    }
    bytes += length;
  }
  return 0;
}

int um_zstd_log_append(um_zstd_store *store, uint8_t *record, uint32_t kind, uint32_t length, um_zstd_place *place,
                       um_error *error) {
  uint32_t size = UM_ZSTD_RECORD_HEADER + length, taken;
  uint64_t offset;
  int result = um_zstd_log_take(store, &size, 1, &offset, &taken, error);
  if (result < 0)
    return result;
  uint64_t checksum = um_zstd_record_seal(record, kind, length, 0, atomic_load(&store->generation) + 1, store->seed);
  result = um_zstd_file_write(store->file, offset, record, size);
  if (result < 0) {
    um_zstd_log_undo(store, offset, size);
    return um_zstd_fail(store, result, UM_OP_FLUSH, 0, 0, "writing to the log", error);
  }
  *place = (um_zstd_place){.offset = offset, .length = size, .checksum = checksum};
  return 0;
}
