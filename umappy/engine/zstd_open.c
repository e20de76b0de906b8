/* zstd_open.c: files as they are found.
 *
 * Of two superblocks the newer one counts. What it refers to at once (root, segment table, dictionary) must verify,
 * else the file is damaged: the older one, and with it the loss of a flush, is taken only where the caller asks for it.
 * A writer then makes the file whole: what is behind the end is cut off, and the other superblock made the same. */
#include "zstd_store.h"

#include "internal.h"
#include "xxh64.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define REFUSE(code, ...) um_error_set(error, code, UM_OP_OPEN, 0, 0, __VA_ARGS__)

typedef struct found {
  enum um_zstd_super_state states[2];
  um_zstd_super supers[2];
} found;

um_zstd_store *um_zstd_store_make(um_zstd_file *file, bool writable) {
  um_zstd_store *self = calloc(1, sizeof(*self));
  if (!self)
    return NULL;
  self->store.ops = &um_zstd_store_ops;
  self->store.writable = writable;
  self->store.computes = true;
  self->file = file;
  um_fork_init();
  self->fork_generation = um_fork_generation();
  um_zstd_index_init(&self->index);
  um_zstd_log_init(&self->log);
  pthread_mutex_init(&self->guard.lock, NULL);
  pthread_cond_init(&self->guard.left, NULL);
  pthread_mutex_init(&self->flush_lock, NULL);
  return self;
}

void um_zstd_store_free(um_zstd_store *self) {
  if (self->frames)
    um_store_close(self->frames, NULL);
  um_zstd_codec_end(&self->codec);
  um_zstd_index_end(&self->index);
  um_zstd_log_end(&self->log);
  pthread_mutex_destroy(&self->guard.lock);
  pthread_cond_destroy(&self->guard.left);
  pthread_mutex_destroy(&self->flush_lock);
  free(self);
}

/* What of the store follows from its superblock alone. */
int um_zstd_store_take(um_zstd_store *self, const um_zstd_super *super, int32_t level, um_error *error) {
  self->super = *super;
  self->seed = um_zstd_seed(super);
  self->image = self->store.size = super->size;
  self->page_shift = (uint32_t)__builtin_ctz(super->page_size);
  self->page_count = (super->size + super->page_size - 1) >> self->page_shift;
  self->base = super->base;
  self->base_end = super->base + super->base_length;
  self->packed_end = super->packed_end;
  self->foreign = super->foreign.offset != 0;
  memcpy(self->uuid, super->uuid, sizeof(self->uuid));
  self->root = super->root;
  self->table = super->segments;
  self->log.end = super->end;
  self->log.base_held = super->base_live;
  atomic_store(&self->generation, super->generation);
  /* What is only read keeps its level: who packs it need not compress it again. */
  return um_zstd_codec_init(&self->codec, self->store.writable ? level : super->level, super->page_size, error);
}

/* A record that a superblock refers to, to be freed, or NULL with error filled. */
uint8_t *um_zstd_record_read(um_zstd_store *self, const um_zstd_place *place, uint32_t kind, const char *what,
                             um_error *error) {
  um_zstd_record header;
  uint8_t *record = malloc(place->length);
  int result = record ? um_zstd_file_read(self->file, place->offset, record, place->length) : -ENOMEM;
  if (result == 0 && (!um_zstd_record_verify(record, place->length, 0, self->seed, &header) || header.kind != kind ||
                      header.checksum != place->checksum))
    result = -UM_ECORRUPT;
  if (result == 0)
    return record;
  free(record);
  um_zstd_fail(self, result, UM_OP_OPEN, 0, 0, what, error);
  return NULL;
}

static bool is_row_sane(const um_zstd_segment_row *row, uint64_t before, uint64_t end) {
  return row->offset >= before && row->offset <= end && row->size <= end - row->offset &&
         row->size > UM_ZSTD_SEGMENT_HEADER && row->live <= row->size && row->filled <= row->size &&
         row->punched <= row->filled;
}

static int load_segments(um_zstd_store *self, um_error *error) {
  const um_zstd_place *place = &self->super.segments;
  if (place->offset == 0)
    return 0;
  static const char what[] = "the segment table";
  uint8_t *record = um_zstd_record_read(self, place, UM_ZSTD_SEGMENTS, what, error);
  if (!record)
    return -(error ? error->code : UM_ECORRUPT);
  uint64_t before = UM_ZSTD_DATA_START;
  int result = place->extra <= (place->length - UM_ZSTD_RECORD_HEADER) / sizeof(um_zstd_segment_row) ? 0 : -UM_ECORRUPT;
  for (uint32_t i = 0; result == 0 && i < place->extra; i++) {
    um_zstd_segment_row row;
    memcpy(&row, record + UM_ZSTD_RECORD_HEADER + i * sizeof(row), sizeof(row));
    result = is_row_sane(&row, before, self->super.end) ? um_zstd_log_add(&self->log, &row) : -UM_ECORRUPT;
    before = row.offset + row.size;
  }
  free(record);
  return result < 0 ? um_zstd_fail(self, result, UM_OP_OPEN, 0, 0, what, error) : 0;
}

static int load_dictionary(um_zstd_store *self, um_error *error) {
  const um_zstd_place *place = &self->super.dictionary;
  if (place->offset == 0)
    return 0;
  uint8_t *record = um_zstd_record_read(self, place, UM_ZSTD_DICTIONARY, "the dictionary", error);
  if (!record)
    return -(error ? error->code : UM_ECORRUPT);
  self->dictionary_size = place->length - UM_ZSTD_RECORD_HEADER;
  self->dictionary_hash = um_xxh64(record + UM_ZSTD_RECORD_HEADER, self->dictionary_size, 0);
  int result = um_zstd_codec_dictionary(&self->codec, record + UM_ZSTD_RECORD_HEADER, self->dictionary_size);
  free(record);
  return result < 0 ? um_zstd_fail(self, result, UM_OP_OPEN, 0, 0, "the dictionary", error) : 0;
}

um_zstd_node *um_zstd_root_load(um_zstd_store *self, const um_zstd_super *super, um_error *error) {
  const um_zstd_place *place = &super->root;
  uint32_t levels = um_zstd_levels((super->size + super->page_size - 1) / super->page_size);
  um_zstd_node *root = um_zstd_node_make(&self->index, NULL, levels - 1, 0);
  int result = root ? 0 : -ENOMEM;
  if (result == 0 && place->offset != 0)
    result = place->extra == levels ? um_zstd_node_load(self, root, place, error) : -UM_ECORRUPT;
  if (result == 0)
    return root;
  if (!root || place->extra != levels)
    um_zstd_fail(self, result, UM_OP_OPEN, 0, 0, "the root of the index", error);
  um_zstd_node_free(&self->index, root);
  return NULL;
}

static int load(um_zstd_store *self, const um_zstd_super *super, int32_t level, uint64_t length, um_error *error) {
  int result = um_zstd_store_take(self, super, level, error);
  if (result < 0)
    return result;
  if (length < super->end)
    return REFUSE(UM_ECORRUPT, "%s: the file has %" PRIu64 " bytes of %" PRIu64 ": somebody made it shorter",
                  self->file->path, length, super->end);
  result = load_segments(self, error);
  if (result == 0)
    result = load_dictionary(self, error);
  if (result == 0 && self->foreign)
    result = um_zstd_foreign_load(self, error);
  if (result == 0 && !(self->index.root = um_zstd_root_load(self, super, error)))
    result = -(error ? error->code : UM_ECORRUPT);
  return result;
}

static int find_supers(um_zstd_file *file, found *f, um_error *error) {
  uint8_t *bytes = calloc(2, UM_ZSTD_SUPER_SIZE);
  int result = bytes ? 0 : -ENOMEM;
  for (uint64_t at = 0; result == 0 && at < UM_ZSTD_DATA_START;) {
    int64_t count = file->ops->read(file, bytes + at, UM_ZSTD_DATA_START - at, at);
    if (count == 0)
      break; /* shorter than two superblocks: the rest is as if it were something else */
    if (count > 0)
      at += (uint64_t)count;
    else if (count != -EINTR)
      result = (int)count;
  }
  for (int i = 0; result == 0 && i < 2; i++)
    f->states[i] = um_zstd_super_decode(bytes + (size_t)i * UM_ZSTD_SUPER_SIZE, &f->supers[i]);
  free(bytes);
  return result < 0 ? REFUSE(-result, "%s: reading its superblocks: %s", file->path, strerror(-result)) : 0;
}

/* Which superblock counts, or -errno. */
static int choose(um_zstd_file *file, const found *f, um_error *error) {
  bool good[2] = {f->states[0] == UM_ZSTD_SUPER_GOOD, f->states[1] == UM_ZSTD_SUPER_GOOD};
  if (f->states[0] == UM_ZSTD_SUPER_NEWER || f->states[1] == UM_ZSTD_SUPER_NEWER)
    return REFUSE(EPROTONOSUPPORT, "%s: was written by a later umappy, in a later format than %u", file->path,
                  UM_ZSTD_VERSION);
  if (good[0] || good[1])
    return !good[0] || (good[1] && f->supers[1].generation > f->supers[0].generation);
  if (f->states[0] == UM_ZSTD_SUPER_OTHER && f->states[1] == UM_ZSTD_SUPER_OTHER)
    return REFUSE(EMEDIUMTYPE, "%s: is no file of a ZstdStore", file->path);
  return REFUSE(UM_ECORRUPT, "%s: neither superblock verifies: the file is damaged", file->path);
}

/* The store of the superblock that counts; *which it is. */
static int load_best(um_zstd_file *file, const um_zstd_options *options, const found *f, uint64_t length, int *which,
                     um_zstd_store **store, um_error *error) {
  *which = choose(file, f, error);
  if (*which < 0)
    return *which;
  int other = !*which;
  bool older = f->states[other] == UM_ZSTD_SUPER_GOOD && f->supers[other].generation != f->supers[*which].generation;
  um_error reason = {0};
  for (int i = 0;; i++) {
    um_zstd_store *self = um_zstd_store_make(file, options->writable);
    if (!self)
      return REFUSE(ENOMEM, "%s: %s", file->path, strerror(ENOMEM));
    int result = load(self, &f->supers[*which], options->level, length, &reason);
    if (result == 0) {
      *store = self;
      return 0;
    }
    um_zstd_store_free(self);
    if (result != -UM_ECORRUPT || i > 0 || !older)
      return REFUSE(-result, "%s", reason.text);
    if (!options->recover)
      return REFUSE(UM_ECORRUPT, "%s; recover=True goes back to the flush before it, and loses the last", reason.text);
    *which = other;
  }
}

/* A writer's file is whole before it is written to. */
static int mend(um_zstd_store *self, const found *f, int which, uint64_t length, um_error *error) {
  int result = 0;
  if (length > self->super.end) {
    result = self->file->ops->truncate(self->file, self->super.end);
    if (result == 0)
      result = self->file->ops->sync(self->file);
    if (result < 0)
      return um_zstd_fail(self, result, UM_OP_OPEN, 0, 0, "cutting off what a crash left", error);
  }
  self->super_good[which] = true;
  const um_zstd_super *other = &f->supers[!which];
  if (f->states[!which] == UM_ZSTD_SUPER_GOOD && other->generation == self->super.generation) {
    self->super_good[!which] = true;
    return 0;
  }
  return um_zstd_super_write(self, !which, error);
}

static int check_options(um_zstd_store *self, const um_zstd_options *options, um_error *error) {
  const char *path = self->file->path;
  if (options->page_size && options->page_size != self->codec.page_size)
    return REFUSE(EINVAL, "%s: page_size is %" PRIu32 ", but the file has pages of %" PRIu32 " bytes", path,
                  options->page_size, self->codec.page_size);
  if (options->dictionary_size && um_xxh64(options->dictionary, options->dictionary_size, 0) != self->dictionary_hash)
    return REFUSE(EINVAL, "%s: was made with %s dictionary; it keeps its own, leave it out", path,
                  self->dictionary_size ? "another" : "no");
  if (options->size == UINT64_MAX || options->size <= self->image)
    return 0;
  if (!options->writable)
    return REFUSE(EINVAL,
                  "%s: has %" PRIu64 " bytes, fewer than the %" PRIu64 " asked for; mode 'r+' would make it "
                  "longer",
                  path, self->image, options->size);
  return options->size > INT64_MAX
             ? REFUSE(EINVAL, "%s: size %" PRIu64 " passes the largest there can be", path, options->size)
             : 0;
}

static int set_size(um_zstd_store *self, uint64_t size, um_error *error) {
  if (size == UINT64_MAX)
    return 0;
  self->store.size = size;
  if (size <= self->image)
    return 0;
  self->image = size;
  self->page_count = (size + self->codec.page_size - 1) >> self->page_shift;
  uint32_t levels = um_zstd_levels(self->page_count);
  int result = 0;
  if (levels > self->index.root->level + 1u) {
    result = um_zstd_index_grow(self, levels);
    if (result == 0 && self->root.offset)
      result = um_zstd_index_touch(self, 0, error); /* so that the new root is written */
    if (result == -ENOMEM)
      REFUSE(ENOMEM, "%s: %s", self->file->path, strerror(ENOMEM));
  }
  atomic_store(&self->unsaved, true);
  return result < 0 ? result : um_zstd_commit(self, error); /* a length is lost in a power cut as bytes are */
}

static int open_found(um_zstd_file *file, const um_zstd_options *options, um_zstd_store **store, um_error *error) {
  uint64_t length = 0, allocated;
  found f;
  int which = 0, result = file->ops->measure(file, &length, &allocated);
  if (result < 0)
    return REFUSE(-result, "%s: looking at it: %s", file->path, strerror(-result));
  result = find_supers(file, &f, error);
  if (result == 0)
    result = load_best(file, options, &f, length, &which, store, error);
  if (result < 0)
    return result;
  um_zstd_store *self = *store;
  self->damaged = (f.states[0] != UM_ZSTD_SUPER_GOOD) + (f.states[1] != UM_ZSTD_SUPER_GOOD);
  result = check_options(self, options, error);
  if (result == 0 && options->writable)
    result = mend(self, &f, which, length, error);
  if (result == 0)
    result = set_size(self, options->size, error);
  if (result < 0)
    um_zstd_store_free(self);
  return result;
}

int um_zstd_store_open_on(um_zstd_file *file, bool empty, const um_zstd_options *options, um_store **store,
                          um_error *error) {
  um_error ignored;
  um_zstd_store *self = NULL;
  int result = (empty ? um_zstd_store_new : open_found)(file, options, &self, error ? error : &ignored);
  if (result == 0)
    *store = &self->store;
  return result;
}

int um_zstd_store_open(const um_zstd_options *options, um_store **store, um_error *error) {
  um_zstd_file *file;
  bool made;
  int result = um_zstd_file_open(options, &file, &made, error);
  if (result < 0)
    return result;
  result = um_zstd_store_open_on(file, options->truncate || options->exclusive, options, store, error);
  if (result < 0 && made)
    um_zstd_file_discard(file);
  else if (result < 0)
    file->ops->close(file);
  return result;
}

bool um_zstd_store_reload(um_zstd_store *self, uint64_t seen) {
  um_error error;
  found f;
  if (self->store.writable)
    return false;
  pthread_mutex_lock(&self->flush_lock);
  bool changed = atomic_load(&self->generation) != seen;
  if (!changed && find_supers(self->file, &f, &error) == 0) {
    int which = choose(self->file, &f, &error);
    const um_zstd_super *super = which < 0 ? NULL : &f.supers[which];
    if (super && super->generation > seen && memcmp(super->uuid, self->uuid, sizeof(self->uuid)) == 0) {
      um_zstd_node *root = um_zstd_root_load(self, super, &error);
      if (root) {
        um_zstd_index_replace(&self->index, root);
        atomic_store(&self->generation, super->generation);
        changed = true;
      }
    }
  }
  pthread_mutex_unlock(&self->flush_lock);
  return changed;
}
