/* store_zstd.c: the face of the zstd store; zstd_store.h tells what is where. */
#include "internal.h"
#include "zstd_store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int um_zstd_fail(um_zstd_store *store, int result, int op, uint64_t offset, uint64_t length, const char *what,
                 um_error *error) {
  const char *why = result == -UM_ECORRUPT     ? "does not verify: the file is damaged"
                    : result == -UM_ETRUNCATED ? "the file ends before it"
                    : result == -UM_EFORKED    ? "opened before the fork; open it again in the child"
                    : result == -ETIMEDOUT     ? "timed out"
                                               : strerror(-result);
  int code = result == -UM_ETRUNCATED ? UM_ECORRUPT : -result;
  return um_error_set(error, code, op, offset, length, "%s: %s: %s", store->file->path, what, why);
}

int um_zstd_check_forked(um_zstd_store *store, int op, uint64_t offset, uint64_t length, um_error *error) {
  return store->fork_generation == um_fork_generation()
             ? 0
             : um_zstd_fail(store, -UM_EFORKED, op, offset, length, "the store", error);
}

static int zstd_store_close(um_store *store, um_error *error) {
  um_zstd_store *self = (um_zstd_store *)store;
  int result = self->file->ops->close(self->file);
  if (result < 0)
    um_error_set(error, -result, UM_OP_FLUSH, 0, store->size, "closing it: %s", strerror(-result));
  um_zstd_store_free(self);
  return result;
}

/* Nothing is freed and no lock is taken: they are the parent's. */
static void zstd_store_forked(um_store *store) {
  um_zstd_file *file = ((um_zstd_store *)store)->file;
  file->ops->forked(file);
  um_store *frames = ((um_zstd_store *)store)->frames;
  if (frames)
    frames->ops->forked(frames);
}

static uint64_t zstd_store_limit(um_store *store, uint64_t bytes) {
  um_zstd_store *self = (um_zstd_store *)store;
  uint64_t frames = self->frames ? self->frames->ops->limit(self->frames, bytes / 2) : 0;
  return frames + um_zstd_codec_limit(&self->codec, bytes > frames ? bytes - frames : 0);
}

const um_store_ops um_zstd_store_ops = {
    .name = "zstd",
    .read = um_zstd_read,
    .write = um_zstd_write,
    .flush = um_zstd_flush,
    .close = zstd_store_close,
    .forked = zstd_store_forked,
    .limit = zstd_store_limit,
};

void um_zstd_store_info(um_store *store, um_zstd_info *info) {
  um_zstd_store *self = (um_zstd_store *)store;
  memset(info, 0, sizeof(*info));
  if (store->ops != &um_zstd_store_ops)
    return;
  um_zstd_log *log = &self->log;
  pthread_mutex_lock(&log->lock);
  for (const um_zstd_segment *segment = log->segments; segment < log->segments + log->count; segment++) {
    info->log += segment->size;
    info->log_live += segment->held - segment->pending[UM_ZSTD_AT_FLUSH] - segment->pending[UM_ZSTD_IN_FLUSH];
  }
  info->segments = log->count;
  info->base = self->base_end - self->base;
  info->base_live = log->base_held - log->base_pending[UM_ZSTD_AT_FLUSH] - log->base_pending[UM_ZSTD_IN_FLUSH];
  uint64_t end = log->end;
  pthread_mutex_unlock(&log->lock);
  info->size = self->image;
  info->generation = atomic_load(&self->generation);
  info->index_memory = atomic_load(&self->index.bytes);
  info->dictionary_size = self->dictionary_size;
  info->foreign_frames = self->frame_count;
  info->page_size = self->codec.page_size;
  info->version = UM_ZSTD_VERSION;
  info->packed = self->packed_end != 0 && self->packed_end == end;
  info->damaged = self->damaged;
  info->level = self->codec.level;
  memcpy(info->uuid, self->uuid, sizeof(info->uuid));
  self->file->ops->measure(self->file, &info->length, &info->allocated);
}
