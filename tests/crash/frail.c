/* frail.c: see frail.h. A call that fails to write has written half: that is what a full disk does. */
#include "frail.h"

#include "check.h"

#include <errno.h>

typedef struct frail_file {
  um_zstd_file file;
  um_zstd_file *inner;
  _Atomic uint64_t changes, synced; /* so far; of those, durable */
} frail_file;

frail_plan frail;

int __real_um_zstd_file_open(const um_zstd_options *options, um_zstd_file **file, bool *made, um_error *error);
int __wrap_um_zstd_file_open(const um_zstd_options *options, um_zstd_file **file, bool *made, um_error *error);
int __real_um_zstd_file_temporary(const char *path, um_zstd_file **file, um_error *error);
int __wrap_um_zstd_file_temporary(const char *path, um_zstd_file **file, um_error *error);
void __real_um_zstd_file_discard(um_zstd_file *file);
void __wrap_um_zstd_file_discard(um_zstd_file *file);

void frail_set(uint64_t first, uint64_t count, int code) {
  frail.first = first;
  frail.count = count;
  frail.code = code;
  atomic_store(&frail.calls, 0);
  atomic_store(&frail.struck, 0);
  atomic_store(&frail.sync_failed, false);
}

/* Whether this call fails; and *length is what it may move. */
static bool strikes(uint64_t *length) {
  uint64_t call = atomic_fetch_add(&frail.calls, 1);
  if (call < frail.first || call - frail.first >= frail.count)
    return false;
  atomic_fetch_add(&frail.struck, 1);
  if (length && *length > 1)
    *length /= 2;
  return frail.code != 0;
}

static um_zstd_file *inner_of(um_zstd_file *file) {
  return ((frail_file *)file)->inner;
}

static void note_change(um_zstd_file *file) {
  atomic_fetch_add(&((frail_file *)file)->changes, 1);
}

static int64_t frail_read(um_zstd_file *file, void *buffer, uint64_t length, uint64_t offset) {
  um_zstd_file *inner = inner_of(file);
  return strikes(&length) ? -frail.code : inner->ops->read(inner, buffer, length, offset);
}

static int64_t frail_write(um_zstd_file *file, const void *buffer, uint64_t length, uint64_t offset) {
  um_zstd_file *inner = inner_of(file);
  bool struck = strikes(&length);
  note_change(file);
  int64_t count = inner->ops->write(inner, buffer, length, offset);
  return struck ? -frail.code : count;
}

static int64_t frail_copy(um_zstd_file *file, uint64_t offset, um_zstd_file *from, uint64_t from_offset,
                          uint64_t length) {
  um_zstd_file *inner = inner_of(file);
  note_change(file);
  return strikes(&length) ? -frail.code : inner->ops->copy(inner, offset, inner_of(from), from_offset, length);
}

static int frail_sync(um_zstd_file *file) {
  um_zstd_file *inner = inner_of(file);
  frail_file *self = (frail_file *)file;
  uint64_t changes = atomic_load(&self->changes);
  bool struck = strikes(NULL);
  if (struck)
    atomic_store(&frail.sync_failed, true);
  int result = struck ? -frail.code : inner->ops->sync(inner);
  if (result == 0 && !struck)
    atomic_store(&self->synced, changes);
  return result;
}

static int frail_truncate(um_zstd_file *file, uint64_t length) {
  um_zstd_file *inner = inner_of(file);
  note_change(file);
  return strikes(NULL) ? -frail.code : inner->ops->truncate(inner, length);
}

static int frail_punch(um_zstd_file *file, uint64_t offset, uint64_t length) {
  um_zstd_file *inner = inner_of(file);
  return strikes(NULL) ? -frail.code : inner->ops->punch(inner, offset, length);
}

static int frail_measure(um_zstd_file *file, uint64_t *length, uint64_t *allocated) {
  um_zstd_file *inner = inner_of(file);
  return strikes(NULL) ? -frail.code : inner->ops->measure(inner, length, allocated);
}

static int wrap(um_zstd_file **file);

static int frail_beside(um_zstd_file *file, um_zstd_file **made) {
  um_zstd_file *inner = inner_of(file);
  if (strikes(NULL))
    return -frail.code;
  int result = inner->ops->beside(inner, made); /* itself calls what is wrapped: where it does, it is done */
  return result < 0 ? result : wrap(made);
}

/* A crash leaves the old name or the new one: behind the new one everything is durable by then. */
static int frail_publish(um_zstd_file *file) {
  um_zstd_file *inner = inner_of(file);
  frail_file *self = (frail_file *)file;
  CHECK_EQUAL(atomic_load(&self->synced), atomic_load(&self->changes));
  int result = strikes(NULL) ? -frail.code : inner->ops->publish(inner);
  file->path = inner->path;
  return result;
}

static void frail_forked(um_zstd_file *file) {
  inner_of(file)->ops->forked(inner_of(file));
}

static int frail_close(um_zstd_file *file) {
  um_zstd_file *inner = inner_of(file);
  free(file);
  return inner->ops->close(inner);
}

static const um_zstd_file_ops ops = {.read = frail_read,
                                     .write = frail_write,
                                     .sync = frail_sync,
                                     .truncate = frail_truncate,
                                     .punch = frail_punch,
                                     .measure = frail_measure,
                                     .copy = frail_copy,
                                     .beside = frail_beside,
                                     .publish = frail_publish,
                                     .forked = frail_forked,
                                     .close = frail_close};

static int wrap(um_zstd_file **file) {
  frail_file *self = malloc(sizeof(*self));
  CHECK(self);
  *self = (frail_file){.file = {&ops, (*file)->path}, .inner = *file};
  *file = &self->file;
  return 0;
}

int __wrap_um_zstd_file_open(const um_zstd_options *options, um_zstd_file **file, bool *made, um_error *error) {
  int result = __real_um_zstd_file_open(options, file, made, error);
  return result < 0 ? result : wrap(file);
}

int __wrap_um_zstd_file_temporary(const char *path, um_zstd_file **file, um_error *error) {
  int result = __real_um_zstd_file_temporary(path, file, error);
  return result < 0 ? result : wrap(file);
}

void __wrap_um_zstd_file_discard(um_zstd_file *file) {
  __real_um_zstd_file_discard(inner_of(file));
  free(file);
}
