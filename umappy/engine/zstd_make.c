/* zstd_make.c: new files. They are whole when their first flush is. */
#include "zstd_store.h"

#include "xxh64.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define PAGE_SIZE_DEFAULT (64u << 10)
#define REFUSE(code, ...) um_error_set(error, code, UM_OP_OPEN, 0, 0, __VA_ARGS__)

int um_zstd_check_new(uint32_t page_size, uint64_t dictionary_size, um_error *error) {
  if (page_size < UM_ZSTD_PAGE_MIN || page_size > UM_ZSTD_PAGE_MAX || (page_size & (page_size - 1)) != 0)
    return REFUSE(EINVAL, "page_size is %" PRIu32 "; wants a power of two from %u to %u", page_size, UM_ZSTD_PAGE_MIN,
                  UM_ZSTD_PAGE_MAX);
  if (dictionary_size > UM_ZSTD_PAGE_MAX)
    return REFUSE(EINVAL, "a dictionary of %" PRIu64 " bytes; at most %u are of use", dictionary_size,
                  UM_ZSTD_PAGE_MAX);
  return 0;
}

int um_zstd_store_begin(um_zstd_file *file, um_zstd_super *super, um_zstd_store **store, um_error *error) {
  *store = NULL;
  if (getrandom(super->uuid, sizeof(super->uuid), 0) != sizeof(super->uuid))
    return REFUSE(errno, "%s: no random bytes: %s", file->path, strerror(errno));
  *store = um_zstd_store_make(file, true);
  if (!*store)
    return REFUSE(ENOMEM, "%s: %s", file->path, strerror(ENOMEM));
  int result = um_zstd_store_take(*store, super, super->level, error);
  if (result == 0 && !((*store)->index.root = um_zstd_root_load(*store, super, error)))
    result = -ENOMEM;
  return result;
}

int um_zstd_store_finish(um_zstd_store *store, um_error *error) {
  atomic_store(&store->unsaved, true);
  return um_zstd_commit(store, error);
}

static int write_dictionary(um_zstd_store *self, const um_zstd_options *options, um_error *error) {
  um_zstd_segment_row row;
  uint8_t *bytes = um_zstd_dictionary_encode(options->dictionary, options->dictionary_size, self->log.end, self->seed,
                                             &self->codec, &row, &self->super.dictionary);
  int result = bytes ? um_zstd_codec_dictionary(&self->codec, options->dictionary, options->dictionary_size) : -ENOMEM;
  if (result == 0)
    result = um_zstd_file_write(self->file, row.offset, bytes, row.size);
  if (result == 0)
    result = um_zstd_log_add(&self->log, &row);
  free(bytes);
  self->log.end += row.size;
  self->dictionary_size = options->dictionary_size;
  self->dictionary_hash = um_xxh64(options->dictionary, options->dictionary_size, 0);
  return result < 0 ? um_zstd_fail(self, result, UM_OP_OPEN, 0, 0, "writing the dictionary", error) : 0;
}

int um_zstd_store_new(um_zstd_file *file, const um_zstd_options *given, um_zstd_store **store, um_error *error) {
  um_zstd_options options = *given;
  if (options.page_size == 0)
    options.page_size = PAGE_SIZE_DEFAULT;
  if (options.size == UINT64_MAX)
    return REFUSE(EINVAL, "%s: a new file needs a size", file->path);
  if (options.size > INT64_MAX)
    return REFUSE(EINVAL, "%s: size %" PRIu64 " passes the largest there can be", file->path, options.size);
  int result = um_zstd_check_new(options.page_size, options.dictionary_size, error);
  if (result < 0)
    return result;
  um_zstd_super super = {
      .size = options.size, .page_size = options.page_size, .level = options.level, .end = UM_ZSTD_DATA_START};
  super.base = UM_ZSTD_DATA_START;
  um_zstd_store *self;
  result = um_zstd_store_begin(file, &super, &self, error);
  if (result == 0 && options.dictionary_size)
    result = write_dictionary(self, &options, error);
  if (result == 0)
    result = um_zstd_store_finish(self, error);
  if (result == 0)
    *store = self;
  else if (self)
    um_zstd_store_free(self);
  return result;
}
