/* zstd_pack.c: a packed file from front to back; zstd_pack.h. Its superblocks are written last, so that half a file is
 * none. */
#define _GNU_SOURCE
#include "zstd_pack.h"

#include "xxh64.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define THREADS_MAX 64u
#define ZEROS_ROOM 32u /* bytes of a frame of zeros besides its blocks, at most */

int um_zstd_pack_put(um_zstd_pack *pack, const void *bytes, uint64_t length) {
  const char *at = bytes;
  int result = 0;
  if (pack->file)
    result = um_zstd_file_write(pack->file, pack->at, bytes, length);
  for (uint64_t left = pack->file ? 0 : length; left > 0 && result == 0;) {
    ssize_t count = write(pack->descriptor, at, left);
    if (count > 0) {
      at += count;
      left -= (uint64_t)count;
    } else if (count == 0 || errno != EINTR) {
      result = count < 0 ? -errno : -EIO;
    }
  }
  pack->at += length;
  return result;
}

static int fail(um_zstd_pack *pack, int result, um_error *error) {
  if (result < 0 && pack->result == 0) {
    pack->result = result;
    if (pack->error.code == 0)
      um_error_set(&pack->error, -result, UM_OP_WRITE, pack->put, 0, "%s: writing: %s",
                   pack->file ? pack->file->path : "output", strerror(-result));
  }
  if (pack->result < 0 && error)
    *error = pack->error;
  return pack->result;
}

/* A frame of zeros by hand: blocks of one byte and how often. No library could be asked for 16 MiB of them as cheaply.
 */
static int put_zeros(um_zstd_pack *pack, uint64_t length) {
  uint64_t blocks = (length + UM_ZSTD_BLOCK_MAX - 1) / UM_ZSTD_BLOCK_MAX;
  uint8_t *frame = malloc(4 * blocks + ZEROS_ROOM), *at = frame, *zeros = calloc(1, length);
  int result = frame && zeros ? 0 : -ENOMEM;
  if (result == 0) {
    /* Magic number; a content size of 4 bytes, a checksum, a window of 128 KiB: the largest block. */
    const uint32_t magic = UM_ZSTD_MAGIC, size = (uint32_t)length;
    memcpy(at, &magic, 4);
    at[4] = 2 << 6 | 1 << 2;
    at[5] = 7 << 3;
    memcpy(at + 6, &size, 4);
    at += 10;
    for (uint64_t left = length; left > 0;) {
      uint64_t count = left < UM_ZSTD_BLOCK_MAX ? left : UM_ZSTD_BLOCK_MAX;
      left -= count;
      uint32_t header = (uint32_t)count << 3 | 1 << 1 | (left == 0);
      memcpy(at, &header, 3);
      at[3] = 0;
      at += 4;
    }
    uint32_t checksum = (uint32_t)um_xxh64(zeros, length, 0);
    memcpy(at, &checksum, 4);
    at += 4;
    result = um_zstd_pack_put(pack, frame, (uint64_t)(at - frame));
  }
  if (result == 0)
    result = um_zstd_pack_note_frame(pack, (uint64_t)(at - frame), length);
  pack->put += length;
  pack->zeros -= length;
  free(frame);
  free(zeros);
  return result;
}

/* The frames of a task; runs of them go into the file together. */
static int put_task(um_zstd_pack *pack, const um_zstd_task *task) {
  uint64_t page_size = pack->super.page_size;
  const uint8_t *frames = task->out;
  if (task->result < 0)
    pack->error = task->error;
  int result = task->result;
  for (uint64_t at = 0, i = 0; result == 0 && at < task->length;) {
    if (task->sizes[i] == 0) {
      pack->zeros += task->length - at < page_size ? task->length - at : page_size;
      at += page_size;
      i++;
      if (pack->zeros >= UM_ZSTD_STRETCH_MAX)
        result = put_zeros(pack, UM_ZSTD_STRETCH_MAX);
      continue;
    }
    if (pack->zeros > 0)
      result = put_zeros(pack, pack->zeros);
    uint64_t run = 0, n = i, offset = pack->at;
    for (uint64_t end = at; end < task->length && task->sizes[n] > 0; end += page_size)
      run += task->sizes[n++];
    if (result == 0)
      result = um_zstd_pack_put(pack, frames, run);
    for (; result == 0 && i < n; i++, at += page_size) {
      uint64_t length = task->length - at < page_size ? task->length - at : page_size, page = pack->put / page_size;
      um_zstd_entry entry = {.offset = offset, .length = task->sizes[i], .kind = UM_ZSTD_BASE};
      entry.tag = (uint32_t)um_xxh64(frames, task->sizes[i], pack->seed + page);
      result = um_zstd_pack_note_frame(pack, task->sizes[i], length);
      if (result == 0 && pack->file)
        result = um_zstd_pack_note_page(pack, page, &entry);
      pack->put += length;
      pack->live += task->sizes[i];
      offset += task->sizes[i];
      frames += task->sizes[i];
    }
  }
  return result;
}

static int take_back(um_zstd_pack *pack) {
  um_zstd_task *task = um_zstd_crew_oldest(&pack->crew);
  int result = pack->result < 0 ? pack->result : put_task(pack, task);
  um_zstd_crew_return(&pack->crew);
  return fail(pack, result, NULL);
}

static um_zstd_task *next_task(um_zstd_pack *pack) {
  um_zstd_task *task;
  while (!(task = um_zstd_crew_next(&pack->crew)) && take_back(pack) == 0) {
  }
  return task;
}

static void post(um_zstd_pack *pack, um_store *store, uint64_t offset, uint64_t length) {
  um_zstd_task *task = um_zstd_crew_next(&pack->crew);
  task->store = store;
  task->offset = offset;
  task->length = length;
  task->result = 0;
  task->error = (um_error){0};
  um_zstd_crew_post(&pack->crew);
}

/* The next bytes are in memory, or in a store and must be read here, since they do not begin where a page does. */
static int add(um_zstd_pack *pack, um_store *store, uint64_t offset, const uint8_t *bytes, uint64_t length) {
  while (length > 0 && pack->result == 0) {
    um_zstd_task *task = next_task(pack);
    if (!task)
      break;
    uint64_t room = pack->crew.task_size - pack->filled, count = length < room ? length : room;
    if (store) {
      int result = um_store_read(store, offset, task->in + pack->filled, count, &pack->error);
      if (result < 0)
        return fail(pack, result, NULL);
    } else {
      memcpy(task->in + pack->filled, bytes, count);
      bytes += count;
    }
    offset += count;
    length -= count;
    pack->filled += count;
    pack->taken += count;
    if (pack->filled == pack->crew.task_size) {
      post(pack, NULL, 0, pack->filled);
      pack->filled = 0;
    }
  }
  return pack->result;
}

int um_zstd_pack_write(um_zstd_pack *pack, const void *buffer, uint64_t length, um_error *error) {
  return add(pack, NULL, 0, buffer, length) < 0 ? fail(pack, pack->result, error) : 0;
}

int um_zstd_pack_store(um_zstd_pack *pack, um_store *store, uint64_t offset, uint64_t length, um_error *error) {
  uint64_t size = um_store_size(store);
  if (offset > size || length > size - offset)
    return um_error_set(error, EINVAL, UM_OP_READ, offset, length,
                        "%" PRIu64 " bytes at %" PRIu64 " pass the store's size, %" PRIu64, length, offset, size);
  while (length > 0 && pack->result == 0) {
    uint64_t count = length < pack->crew.task_size ? length : pack->crew.task_size;
    if (pack->filled > 0 || count % pack->super.page_size != 0) {
      uint64_t room = pack->crew.task_size - pack->filled;
      count = count < room ? count : room;
      add(pack, store, offset, NULL, count);
    } else if (next_task(pack)) {
      post(pack, store, offset, count);
      pack->taken += count;
    }
    offset += count;
    length -= count;
  }
  /* The caller may close the store, or the bytes may change, when this returns. */
  while (pack->crew.used > 0)
    take_back(pack);
  return fail(pack, pack->result, error);
}

static void free_pack(um_zstd_pack *pack) {
  um_zstd_crew_end(&pack->crew);
  um_zstd_codec_end(&pack->crew.codec);
  for (uint32_t i = 0; i < pack->levels; i++)
    free(pack->level[i]);
  free(pack->segment);
  free(pack->rows);
  free(pack->seek);
  if (pack->seek_file)
    fclose(pack->seek_file);
  if (pack->file)
    pack->file->ops->close(pack->file);
  free(pack);
}

void um_zstd_pack_abort(um_zstd_pack *pack) {
  free_pack(pack);
}

static int put_supers(um_zstd_pack *pack) {
  uint8_t *bytes = malloc(UM_ZSTD_SUPER_SIZE);
  if (!bytes)
    return -ENOMEM;
  pack->super.size = pack->taken;
  pack->super.base_live = pack->live;
  pack->super.end = pack->super.packed_end = pack->at;
  um_zstd_super_encode(&pack->super, bytes);
  int result = um_zstd_file_write(pack->file, 0, bytes, UM_ZSTD_SUPER_SIZE);
  if (result == 0)
    result = um_zstd_file_write(pack->file, UM_ZSTD_SUPER_SIZE, bytes, UM_ZSTD_SUPER_SIZE);
  free(bytes);
  if (result == 0)
    result = pack->file->ops->sync(pack->file);
  return result < 0 ? result : pack->file->ops->publish(pack->file);
}

static int finish(um_zstd_pack *pack) {
  int result = 0;
  if (pack->filled > 0)
    post(pack, NULL, 0, pack->filled);
  while (pack->crew.used > 0)
    take_back(pack);
  while (pack->result == 0 && result == 0 && pack->zeros > 0)
    result = put_zeros(pack, pack->zeros < UM_ZSTD_STRETCH_MAX ? pack->zeros : UM_ZSTD_STRETCH_MAX);
  if (pack->result < 0 || result < 0)
    return fail(pack, result, NULL);
  if (pack->file) {
    result = um_zstd_pack_end_index(pack);
    pack->super.base_length = pack->at - pack->super.base;
  }
  if (result == 0)
    result = um_zstd_pack_end_seek(pack);
  if (result == 0 && pack->file)
    result = put_supers(pack);
  return fail(pack, result, NULL);
}

int um_zstd_pack_finish(um_zstd_pack *pack, um_error *error) {
  finish(pack);
  int result = fail(pack, 0, error);
  free_pack(pack);
  return result;
}

static int put_dictionary(um_zstd_pack *pack, const um_zstd_pack_options *options) {
  um_zstd_segment_row row;
  uint8_t *bytes = um_zstd_dictionary_encode(options->dictionary, options->dictionary_size, pack->at, pack->seed,
                                             &pack->crew.codec, &row, &pack->super.dictionary);
  int result = bytes ? um_zstd_pack_add_row(pack, &row) : -ENOMEM;
  if (result == 0)
    result = um_zstd_pack_put(pack, bytes, row.size);
  free(bytes);
  return result < 0 ? result : um_zstd_pack_note_frame(pack, row.size, 0);
}

/* Superblocks are written last, but are in the seek table like other frames. */
static int put_head(um_zstd_pack *pack, const um_zstd_pack_options *options) {
  pack->at = UM_ZSTD_DATA_START;
  int result = um_zstd_pack_note_frame(pack, UM_ZSTD_SUPER_SIZE, 0);
  if (result == 0)
    result = um_zstd_pack_note_frame(pack, UM_ZSTD_SUPER_SIZE, 0);
  if (result == 0 && options->dictionary_size)
    result = put_dictionary(pack, options);
  pack->super.base = pack->at;
  return result;
}

static int start(um_zstd_pack *pack, const um_zstd_pack_options *options) {
  long processors = sysconf(_SC_NPROCESSORS_ONLN);
  uint32_t threads = options->threads ? options->threads : processors > 0 ? (uint32_t)processors : 1;
  int result = 0;
  if (getrandom(pack->super.uuid, sizeof(pack->super.uuid), 0) != sizeof(pack->super.uuid))
    result = -errno;
  pack->seed = um_zstd_seed(&pack->super);
  if (result == 0 && options->dictionary_size) {
    result = um_zstd_codec_dictionary(&pack->crew.codec, options->dictionary, options->dictionary_size);
    pack->crew.dictionary_hash = um_xxh64(options->dictionary, options->dictionary_size, 0);
  }
  if (result == 0 && pack->file)
    result = put_head(pack, options);
  return result < 0 ? result : um_zstd_crew_start(&pack->crew, threads < THREADS_MAX ? threads : THREADS_MAX);
}

int um_zstd_pack_open_on(um_zstd_file *file, const um_zstd_pack_options *options, um_zstd_pack **pack,
                         um_error *error) {
  int result = um_zstd_check_new(options->page_size, options->dictionary_size, error);
  if (result < 0)
    return result;
  um_zstd_pack *self = calloc(1, sizeof(*self));
  if (!self)
    return um_error_set(error, ENOMEM, UM_OP_OPEN, 0, 0, "packing: %s", strerror(ENOMEM));
  self->file = file;
  self->descriptor = options->descriptor;
  self->super = (um_zstd_super){.generation = 1, .page_size = options->page_size, .level = options->level};
  result = um_zstd_codec_init(&self->crew.codec, options->level, options->page_size, error);
  if (result < 0) {
    free(self);
    return result;
  }
  result = start(self, options);
  if (result < 0) {
    um_error_set(error, -result, UM_OP_OPEN, 0, 0, "packing: %s", strerror(-result));
    self->file = NULL; /* the caller's */
    free_pack(self);
    return result;
  }
  *pack = self;
  return 0;
}

int um_zstd_pack_open(const um_zstd_pack_options *options, um_zstd_pack **pack, um_error *error) {
  um_zstd_file *file = NULL;
  int result = options->path ? um_zstd_file_temporary(options->path, &file, error) : 0;
  if (result < 0)
    return result;
  result = um_zstd_pack_open_on(file, options, pack, error);
  if (result < 0 && file)
    file->ops->close(file);
  return result;
}
