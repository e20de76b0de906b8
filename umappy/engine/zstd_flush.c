/* zstd_flush.c: making what was written durable, as one step.
 *
 * The epoch is closed, its leaves and what is above them are written to the log, then the segment table; sync. One
 * superblock, sync; the other, sync. Only then is the space free that the epoch gave up. At no moment is a superblock
 * written while the other is not known to be whole: after a failure the one that failed comes first.
 *
 * A failed write leaves everything as it was: leaves go back to the open epoch, space stays held, the next flush tries
 * again. A failed sync does not: the kernel has dropped bytes that it calls clean from then on, so every later flush
 * fails too, and the file keeps what the last good flush made of it. */
#include "zstd_store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SPARE_ROWS 8 /* segments that may be made while the table is being written */

static int sync_file(um_zstd_store *store, um_error *error) {
  int result = store->file->ops->sync(store->file);
  if (result < 0)
    store->sync_code = -result;
  return result < 0 ? um_zstd_fail(store, result, UM_OP_FLUSH, 0, store->image,
                                   "flush failed and what was written since the last good one may be lost; write it "
                                   "again through a store opened anew",
                                   error)
                    : 0;
}

int um_zstd_super_write(um_zstd_store *store, int which, um_error *error) {
  uint8_t *bytes = malloc(UM_ZSTD_SUPER_SIZE);
  if (!bytes)
    return um_error_set(error, ENOMEM, UM_OP_FLUSH, 0, 0, "%s: no memory for a flush", store->file->path);
  um_zstd_super_encode(&store->super, bytes);
  store->super_good[which] = false;
  int result = um_zstd_file_write(store->file, (uint64_t)which * UM_ZSTD_SUPER_SIZE, bytes, UM_ZSTD_SUPER_SIZE);
  free(bytes);
  if (result < 0)
    return um_zstd_fail(store, result, UM_OP_FLUSH, 0, store->image, "writing a superblock", error);
  result = sync_file(store, error);
  store->super_good[which] = result == 0;
  return result;
}

/* What the table says of the log, as it is when this flush is durable. log->lock is held. */
static void fill_rows(const um_zstd_log *log, um_zstd_segment_row *rows) {
  for (uint32_t i = 0; i < log->count; i++) {
    const um_zstd_segment *segment = &log->segments[i];
    rows[i] = (um_zstd_segment_row){.offset = segment->offset,
                                    .size = segment->size,
                                    .live = segment->held - segment->pending[UM_ZSTD_IN_FLUSH],
                                    .filled = segment->filled,
                                    .punched = segment->punched,
                                    .flags = segment->fixed ? UM_ZSTD_FIXED : 0};
  }
}

/* The table lies in the log it describes: space first, then the rows, in which that space counts. */
static int write_table(um_zstd_store *store, um_zstd_super *super, um_error *error) {
  um_zstd_log *log = &store->log;
  uint32_t rows, size, taken, length;
  uint64_t offset;
  pthread_mutex_lock(&log->lock);
  rows = log->count ? log->count + SPARE_ROWS : 0;
  super->end = log->end;
  pthread_mutex_unlock(&log->lock);
  if (rows == 0) /* a new file */
    return 0;
  size = UM_ZSTD_RECORD_HEADER + rows * (uint32_t)sizeof(um_zstd_segment_row);
  uint8_t *record = calloc(1, size);
  if (!record)
    return um_error_set(error, ENOMEM, UM_OP_FLUSH, 0, 0, "%s: no memory for a flush", store->file->path);
  int result = um_zstd_log_take(store, &size, 1, &offset, &taken, error);
  if (result < 0) {
    free(record);
    return result;
  }
  if (store->table.offset)
    um_zstd_log_give(store, store->table.offset, store->table.length, UM_ZSTD_IN_FLUSH);
  store->table = (um_zstd_place){0};
  pthread_mutex_lock(&log->lock);
  bool fits = log->count <= rows;
  if (fits) {
    rows = log->count;
    fill_rows(log, (um_zstd_segment_row *)(record + UM_ZSTD_RECORD_HEADER));
    super->end = log->end;
    super->base_live = log->base_held - log->base_pending[UM_ZSTD_IN_FLUSH];
  }
  pthread_mutex_unlock(&log->lock);
  length = size - UM_ZSTD_RECORD_HEADER; /* spare rows are zeros */
  uint64_t checksum = um_zstd_record_seal(record, UM_ZSTD_SEGMENTS, length, 0, super->generation, store->seed);
  result = fits ? um_zstd_file_write(store->file, offset, record, size) : -EAGAIN;
  free(record);
  if (result < 0) {
    um_zstd_log_undo(store, offset, size);
    return fits ? um_zstd_fail(store, result, UM_OP_FLUSH, 0, 0, "writing the segment table", error) : result;
  }
  store->table = super->segments = (um_zstd_place){offset, size, rows, checksum};
  return 0;
}

/* Half a segment behind the end would be bytes in no frame. */
static int mend_end(um_zstd_store *store, um_error *error) {
  um_zstd_log *log = &store->log;
  pthread_mutex_lock(&log->lock);
  bool torn = log->torn && !log->growing;
  uint64_t end = log->end;
  log->growing |= torn;
  pthread_mutex_unlock(&log->lock);
  if (!torn)
    return 0;
  int result = store->file->ops->truncate(store->file, end);
  pthread_mutex_lock(&log->lock);
  log->growing = false;
  log->torn = result < 0;
  pthread_cond_broadcast(&log->grown);
  pthread_mutex_unlock(&log->lock);
  return result < 0 ? um_zstd_fail(store, result, UM_OP_FLUSH, 0, 0, "cutting off half a segment", error) : 0;
}

static int write_out(um_zstd_store *store, um_zstd_node **leaves, uint64_t count, um_error *error) {
  um_zstd_super next = store->super;
  next.generation = store->super.generation + 1;
  next.size = store->image;
  next.level = store->codec.level;
  int result = mend_end(store, error);
  if (result == 0)
    result = um_zstd_nodes_write(store, leaves, count, error);
  next.root = store->root;
  for (int tries = 0; result == 0; tries++) {
    result = write_table(store, &next, error);
    if (result != -EAGAIN || tries == 100)
      break;
    result = 0; /* many segments came meanwhile */
  }
  if (result == 0)
    result = sync_file(store, error);
  if (result < 0)
    return result;
  store->super = next; /* a generation that was tried is never used for anything else */
  int first = store->super_good[1] ? 0 : 1;
  result = um_zstd_super_write(store, first, error);
  if (result == 0)
    result = um_zstd_super_write(store, !first, error);
  return result;
}

int um_zstd_commit(um_zstd_store *store, um_error *error) {
  um_zstd_node **leaves;
  uint64_t count;
  if (store->sync_code)
    return um_error_set(error, store->sync_code, UM_OP_FLUSH, 0, store->image,
                        "%s: an earlier flush failed and what was written since the last good one may be lost; write "
                        "it again through a store opened anew: %s",
                        store->file->path, strerror(store->sync_code));
  int result = um_zstd_index_close(store, &leaves, &count);
  if (result < 0)
    return um_error_set(error, -result, UM_OP_FLUSH, 0, 0, "%s: no memory for a flush", store->file->path);
  if (count == 0 && !atomic_load(&store->unsaved)) {
    free(leaves);
    return 0;
  }
  atomic_store(&store->unsaved, true);
  result = write_out(store, leaves, count, error);
  if (result == 0) {
    atomic_store(&store->unsaved, false);
    atomic_store(&store->generation, store->super.generation);
    um_zstd_space_release(store);
  } else {
    um_zstd_index_reopen(store, leaves, count);
  }
  free(leaves);
  return result;
}

static int lock_flush(um_zstd_store *store, um_error *error) {
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += UM_ZSTD_WAIT_SECONDS;
  if (pthread_mutex_timedlock(&store->flush_lock, &until) == 0)
    return 0;
  return um_error_set(error, ETIMEDOUT, UM_OP_FLUSH, 0, 0, "%s: another flush has not ended for %d s",
                      store->file->path, UM_ZSTD_WAIT_SECONDS);
}

int um_zstd_flush(um_store *store, um_error *error) {
  um_zstd_store *self = (um_zstd_store *)store;
  int result = um_zstd_check_forked(self, UM_OP_FLUSH, 0, 0, error);
  if (result == 0)
    result = lock_flush(self, error);
  if (result < 0)
    return result;
  uint64_t before = self->super.generation;
  um_zstd_compact(self);
  result = um_zstd_commit(self, error);
  if (result == 0 && self->super.generation != before)
    um_zstd_space_trim(self);
  pthread_mutex_unlock(&self->flush_lock);
  return result;
}
