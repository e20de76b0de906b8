/* zstd_space.c: what becomes of space that nobody holds any more.
 *
 * A segment in which nothing is held is used again before the file is made longer. What the disk spends on the log
 * should stay near what is held: above a quarter more, empty segments are punched, then dead records inside of others,
 * many at once, as far as they cover whole blocks. What is left between living records is zstd_compact.c's.
 *
 * Race: a dead extent is punched while its segment is begun anew, and what was just written is gone. Each beginning
 * counts `use`, which the extents remember; and a segment that is being punched is `busy`, and not begun. */
#include "zstd_store.h"

#include <errno.h>
#include <stdlib.h>

#define BLOCK 4096u            /* of file systems; smaller holes give nothing back */
#define SLACK (32u << 10)      /* bytes too much that are not worth a call */
#define EXTENTS_MAX (1u << 20) /* dead ones remembered; more are left to compaction */

bool um_zstd_extents_add(um_zstd_extents *extents, uint64_t offset, uint32_t length, uint32_t use) {
  um_zstd_extent *last = extents->count ? &extents->list[extents->count - 1] : NULL;
  if (last && last->offset + last->length == offset && last->use == use && last->length < UINT32_MAX - length) {
    last->length += length; /* of one segment: between two there is a header */
    return true;
  }
  if (extents->count == extents->room) {
    uint64_t room = extents->room ? 2 * extents->room : 256;
    um_zstd_extent *list = realloc(extents->list, room * sizeof(*list));
    if (!list)
      return false;
    extents->list = list;
    extents->room = room;
  }
  extents->list[extents->count++] = (um_zstd_extent){offset, length, use};
  return true;
}

void um_zstd_space_die(um_zstd_log *log, um_zstd_segment *segment, uint64_t offset, uint32_t length) {
  segment->held -= length;
  if (log->dead.count < EXTENTS_MAX && um_zstd_extents_add(&log->dead, offset, length, segment->use))
    segment->listed += length;
}

void um_zstd_space_begin(um_zstd_log *log, um_zstd_segment *segment) {
  log->open = (uint32_t)(segment - log->segments);
  log->head = UM_ZSTD_SEGMENT_HEADER;
  if (segment->filled < log->head)
    segment->filled = log->head;
  segment->punched = segment->listed = 0;
  segment->tried = 0;
  segment->use++;
}

void um_zstd_space_release(um_zstd_store *store) {
  um_zstd_log *log = &store->log;
  um_zstd_extents *freed = &log->pending[UM_ZSTD_IN_FLUSH];
  pthread_mutex_lock(&log->lock);
  log->base_held -= log->base_pending[UM_ZSTD_IN_FLUSH];
  log->base_pending[UM_ZSTD_IN_FLUSH] = 0;
  for (um_zstd_extent *e = freed->list; e < freed->list + freed->count; e++) {
    um_zstd_segment *segment = um_zstd_log_find(log, e->offset);
    um_zstd_space_die(log, segment, e->offset, e->length);
  }
  freed->count = 0;
  for (um_zstd_segment *segment = log->segments; segment < log->segments + log->count; segment++)
    segment->pending[UM_ZSTD_IN_FLUSH] = 0;
  pthread_mutex_unlock(&log->lock);
}

/* Bytes the disk spends on the log above what it may; log->lock. */
static uint64_t find_excess(const um_zstd_log *log) {
  uint64_t spent = 0, held = 0;
  for (const um_zstd_segment *segment = log->segments; segment < log->segments + log->count; segment++) {
    spent += segment->filled - segment->punched;
    held += segment->held;
  }
  uint64_t allowed = held + held / 4 + SLACK;
  return spent > allowed ? spent - allowed : 0;
}

/* Bytes given back; 0 where there is no whole block, *result says whether it failed. */
static uint64_t punch(um_zstd_store *store, uint64_t offset, uint64_t length, int *result) {
  uint64_t first = (offset + BLOCK - 1) & ~(uint64_t)(BLOCK - 1), end = (offset + length) & ~(uint64_t)(BLOCK - 1);
  if (first >= end)
    return 0;
  *result = store->file->ops->punch(store->file, first, end - first);
  if (*result == -EOPNOTSUPP || *result == -ENOSYS) {
    pthread_mutex_lock(&store->log.lock);
    store->log.no_punch = true;
    pthread_mutex_unlock(&store->log.lock);
  }
  return *result == 0 ? end - first : 0;
}

/* Punches the last empty segment. False: there is none, or it cannot be. */
static bool punch_segment(um_zstd_store *store) {
  um_zstd_log *log = &store->log;
  um_zstd_segment *segment = NULL;
  pthread_mutex_lock(&log->lock);
  for (uint32_t i = log->count; i-- > 0 && !segment;) {
    um_zstd_segment *s = &log->segments[i];
    if (s->held == 0 && !s->fixed && !s->busy && i != log->open && s->filled - s->punched >= 3 * BLOCK)
      segment = s;
  }
  if (!segment || find_excess(log) == 0) {
    pthread_mutex_unlock(&log->lock);
    return false;
  }
  uint64_t offset = segment->offset, filled = segment->filled;
  segment->busy = true;
  pthread_mutex_unlock(&log->lock);
  int result = 0;
  punch(store, offset + UM_ZSTD_SEGMENT_HEADER, filled - UM_ZSTD_SEGMENT_HEADER, &result);
  pthread_mutex_lock(&log->lock);
  segment = um_zstd_log_find(log, offset); /* the array may have moved */
  segment->busy = false;
  if (result == 0) {
    segment->filled = 2 * BLOCK; /* its ends */
    segment->punched = segment->listed = 0;
    segment->use++;
  }
  pthread_mutex_unlock(&log->lock);
  return result == 0;
}

static int compare(const void *a, const void *b) {
  const um_zstd_extent *left = a, *right = b;
  return left->offset < right->offset ? -1 : left->offset > right->offset;
}

/* The extents from *at on that are of one segment's present use: punched together. False: the file cannot. */
static bool punch_extents(um_zstd_store *store, const um_zstd_extents *dead, uint64_t *at) {
  um_zstd_log *log = &store->log;
  const um_zstd_extent *e = &dead->list[*at];
  pthread_mutex_lock(&log->lock);
  um_zstd_segment *segment = um_zstd_log_find(log, e->offset);
  uint64_t start = segment->offset, end = segment->offset + segment->size;
  uint32_t use = segment->use;
  bool taken = segment->busy || segment->fixed;
  if (!taken)
    segment->busy = true;
  pthread_mutex_unlock(&log->lock);

  uint64_t given = 0;
  int result = 0;
  while (*at < dead->count && e->offset < end && result == 0) {
    uint64_t offset = e->offset, length = 0;
    for (; *at < dead->count && e->offset == offset + length && e->offset < end && e->use == use;
         e = &dead->list[++*at])
      length += e->length;
    if (length == 0)
      e = &dead->list[++*at]; /* of an earlier use */
    else if (!taken)
      given += punch(store, offset, length, &result);
  }
  pthread_mutex_lock(&log->lock);
  segment = um_zstd_log_find(log, start);
  if (!taken)
    segment->busy = false;
  uint32_t most = segment->filled - segment->punched;
  segment->punched += given < most ? (uint32_t)given : most;
  pthread_mutex_unlock(&log->lock);
  return result == 0;
}

void um_zstd_space_trim(um_zstd_store *store) {
  um_zstd_log *log = &store->log;
  while (punch_segment(store)) {
  }
  pthread_mutex_lock(&log->lock);
  um_zstd_extents dead = log->dead;
  bool enough = find_excess(log) == 0 || dead.count == 0;
  if (!enough) {
    log->dead = (um_zstd_extents){0};
    for (um_zstd_segment *segment = log->segments; segment < log->segments + log->count; segment++)
      segment->listed = 0;
  }
  pthread_mutex_unlock(&log->lock);
  if (enough)
    return;
  qsort(dead.list, dead.count, sizeof(*dead.list), compare);
  for (uint64_t at = 0; at < dead.count;)
    if (!punch_extents(store, &dead, &at))
      break; /* the file system cannot, or failed: compaction does what it can */
  free(dead.list);
}
