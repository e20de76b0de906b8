/* oracle.c: see oracle.h. Crashes are looked at before each sync, when most is undecided, and wherever what a crash may
 * leave becomes another image. */
#define _GNU_SOURCE
#include "oracle.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define PARTLY 100u /* bytes that a failing write has written: a superblock of two halves does not verify */

static oracle *current; /* whose file the crash is of */

static um_zstd_options make_options(bool writable, uint64_t size) {
  return (um_zstd_options){.path = "memory", .level = 1, .size = size, .writable = writable};
}

static void copy_image(image *to, const image *from) {
  to->bytes = realloc(to->bytes, from->size);
  CHECK(to->bytes);
  memcpy(to->bytes, from->bytes, from->size);
  to->size = from->size;
}

static bool is_image(um_store *store, const uint8_t *got, const image *wanted) {
  return wanted->bytes && um_store_size(store) == wanted->size && memcmp(got, wanted->bytes, wanted->size) == 0;
}

/* All bytes, to be freed. */
static uint8_t *read_all(um_store *store) {
  um_error error = {0};
  uint8_t *got = malloc(um_store_size(store));
  CHECK(got);
  if (um_store_read(store, 0, got, um_store_size(store), &error) < 0) {
    fprintf(stderr, "reading: %s\n", error.text);
    abort();
  }
  return got;
}

static void check_tool(const zmemory *m) {
  zrig file = {.path = "/tmp/um-crash-XXXXXX"};
  int descriptor = mkostemp(file.path, O_CLOEXEC);
  CHECK(descriptor >= 0);
  CHECK_EQUAL(pwrite(descriptor, m->bytes, m->length, 0), m->length);
  close(descriptor);
  zrig_check_tool(&file);
  unlink(file.path);
}

/* Opens it; NULL where the file was never finished, and says so. */
static um_store *open_state(const oracle *o, zmemory *m, bool writable) {
  um_zstd_options options = make_options(writable, UINT64_MAX);
  um_error error = {0};
  um_store *store;
  int result = zmemory_try(m, &options, &store, &error);
  if (result == 0)
    return store;
  if (!o->made && (result == -UM_ECORRUPT || result == -EMEDIUMTYPE))
    return NULL;
  fprintf(stderr, "opening %s: %s\n", writable ? "for writing" : "for reading", error.text);
  abort();
}

static void check_subsets(oracle *o, bool mend);

static int sync_looking(um_zstd_file *file) {
  zmemory *m = (zmemory *)file;
  if (m->count > 0 && m == current->memory)
    check_subsets(current, !current->inner);
  return current->plain->sync(file);
}

static int64_t write_failing(um_zstd_file *file, const void *buffer, uint64_t length, uint64_t offset) {
  oracle *o = current;
  bool fails = (zmemory *)file == o->memory && o->fail_at > 0 && --o->fail_at == 0;
  int64_t count = o->plain->write(file, buffer, fails && length > PARTLY ? PARTLY : length, offset);
  return fails ? -EIO : count;
}

static int publish_looking(um_zstd_file *file) {
  (void)file;
  current->quiet = false;
  check_subsets(current, true);
  current->quiet = true;
  return 0;
}

/* The oracle's file is this from now on. */
static void watch(oracle *o, zmemory *m) {
  static um_zstd_file_ops ops;
  o->memory = m;
  if (m->file.ops->sync != sync_looking) {
    o->plain = m->file.ops;
    ops = *m->file.ops;
    ops.sync = sync_looking;
    ops.write = write_failing;
    ops.publish = publish_looking;
  }
  m->file.ops = &ops;
  current = o;
}

static void free_images(oracle *o) {
  free(o->now.bytes);
  free(o->flushed.bytes);
  free(o->tried.bytes);
}

/* What mends a file, and writes to it, may crash as well. Takes the file. */
static void check_repaired(oracle *outer, zmemory *m, const uint8_t *got, uint64_t size) {
  oracle o = {.memory = m, .made = true, .inner = true, .seed = outer->seed, .samples = 3};
  image before = {(uint8_t *)got, size};
  um_error error = {0};
  copy_image(&o.flushed, &before);
  copy_image(&o.now, &before);
  if (outer->deep && outer->count % outer->deep == 0)
    watch(&o, m);
  um_store *store = o.store = open_state(&o, m, true);
  uint8_t *again = read_all(store);
  CHECK(is_image(store, again, &before)); /* what a reader saw before anybody mended it */
  free(again);
  if (um_zstd_store_verify_frames(store, &error) < 0) {
    fprintf(stderr, "a byte in no frame after opening for writing: %s\n", error.text);
    abort();
  }
  if (outer->tool && outer->count % outer->tool == 0)
    check_tool(m);
  oracle_write(&o, outer->count % (size / ORACLE_PAGE), 1, outer->count + 1);
  oracle_write(&o, 0, size / ORACLE_PAGE < 3 ? 1 : 3, outer->count + 2);
  oracle_flush(&o);
  current = outer;
  zmemory *copy = zmemory_copy(m);
  CHECK_EQUAL(um_store_close(store, NULL), 0);
  store = open_state(&o, copy, false);
  again = read_all(store);
  CHECK(is_image(store, again, &o.now));
  CHECK_EQUAL(um_zstd_store_verify_frames(store, &error), 0);
  free(again);
  CHECK_EQUAL(um_store_close(store, NULL), 0);
  outer->seed = o.seed;
  outer->count += o.count;
  free_images(&o);
}

/* Takes the file. */
static void check_state(oracle *o, zmemory *m, bool mend) {
  zmemory *copy = mend ? zmemory_copy(m) : NULL;
  o->count++;
  um_store *store = open_state(o, m, false);
  if (store) {
    uint8_t *got = read_all(store);
    uint64_t size = um_store_size(store);
    CHECK(is_image(store, got, &o->flushed) || is_image(store, got, &o->tried));
    CHECK_EQUAL(um_store_close(store, NULL), 0);
    if (mend)
      check_repaired(o, copy, got, size);
    free(got);
  } else if (mend) {
    copy->file.ops->close(&copy->file);
  }
}

static void check_subsets(oracle *o, bool mend) {
  if (o->quiet)
    return;
  static const uint8_t odds[] = {128, 16, 240, 64, 192, 4, 252};
  const zmemory *m = o->memory;
  states s = {0};
  states_find(&s, m);
  uint8_t *survives = malloc(s.unit_count + 1);
  CHECK(survives);
  bool all = s.unit_count <= o->exhaustive;
  uint64_t subsets = all ? UINT64_C(1) << s.unit_count : 2 + o->samples;
  for (uint64_t subset = 0; subset < subsets; subset++) {
    for (uint64_t i = 0; i < s.unit_count; i++)
      survives[i] = all ? subset >> i & 1
                        : subset == 0 || (subset > 1 && zrig_random(&o->seed) % 256 < odds[subset % sizeof(odds)]);
    for (uint64_t i = 0; i < s.length_count; i++)
      if (all || subset < 2 || zrig_random(&o->seed) % s.length_count == 0)
        check_state(o, states_make(&s, survives, i), mend);
  }
  /* A superblock that is being written may be neither the old one nor the new: what the other is there for. */
  bool garbage = false;
  for (uint64_t i = 0; i < s.unit_count; i++) {
    bool super = states_offset(&s, i) < UM_ZSTD_DATA_START;
    survives[i] = super ? STATES_GARBAGE : STATES_SURVIVED;
    garbage |= super;
  }
  if (garbage)
    check_state(o, states_make(&s, survives, s.length_count - 1), mend);
  free(survives);
  states_free(&s);
}

void oracle_create(oracle *o, uint64_t size) {
  um_zstd_options options = make_options(true, size);
  options.page_size = ORACLE_PAGE;
  o->now = (image){calloc(1, size), size};
  copy_image(&o->tried, &o->now);
  watch(o, zmemory_make());
  CHECK_EQUAL(um_zstd_store_open_on(&o->memory->file, true, &options, &o->store, NULL), 0);
  copy_image(&o->flushed, &o->now);
  o->made = true;
}

void oracle_reopen(oracle *o, uint64_t size) {
  um_zstd_options options = make_options(true, size);
  oracle_check(o);
  zmemory *m = zmemory_copy(o->memory);
  CHECK_EQUAL(um_store_close(o->store, NULL), 0);
  watch(o, m);
  copy_image(&o->tried, &o->now);
  if (size != UINT64_MAX && size > o->now.size) {
    o->tried.bytes = realloc(o->tried.bytes, size);
    CHECK(o->tried.bytes);
    memset(o->tried.bytes + o->now.size, 0, size - o->now.size);
    o->tried.size = size;
  }
  CHECK_EQUAL(um_zstd_store_open_on(&m->file, false, &options, &o->store, NULL), 0);
  copy_image(&o->flushed, &o->tried);
  copy_image(&o->now, &o->tried);
}

void oracle_write(oracle *o, uint64_t page, uint64_t pages, uint64_t seed) {
  uint64_t offset = page * ORACLE_PAGE, length = pages * ORACLE_PAGE;
  if (offset + length > o->now.size)
    length = o->now.size - offset;
  if (seed)
    zrig_fill(o->now.bytes + offset, length, seed + page);
  else
    memset(o->now.bytes + offset, 0, length);
  if (um_store_write(o->store, offset, o->now.bytes + offset, length, NULL) < 0) {
    o->failed++;
    CHECK_EQUAL(um_store_write(o->store, offset, o->now.bytes + offset, length, NULL), 0);
  }
}

void oracle_flush(oracle *o) {
  copy_image(&o->tried, &o->now);
  if (um_store_flush(o->store, NULL) < 0) {
    o->failed++;
    CHECK_EQUAL(um_store_flush(o->store, NULL), 0);
  }
  copy_image(&o->flushed, &o->now);
}

void oracle_check(oracle *o) {
  check_subsets(o, !o->inner);
}

void oracle_end(oracle *o) {
  CHECK_EQUAL(um_store_close(o->store, NULL), 0);
  free_images(o);
}

void oracle_pack(oracle *o) {
  um_zstd_pack_options options = {.level = 1, .page_size = ORACLE_PAGE, .threads = 1};
  oracle packed = {.made = true, .seed = o->seed, .samples = 50, .quiet = true};
  um_zstd_pack *pack;
  copy_image(&packed.flushed, &o->now);
  watch(&packed, zmemory_make());
  CHECK_EQUAL(um_zstd_pack_open_on(&packed.memory->file, &options, &pack, NULL), 0);
  CHECK_EQUAL(um_zstd_pack_store(pack, o->store, 0, o->now.size, NULL), 0);
  CHECK_EQUAL(um_zstd_pack_finish(pack, NULL), 0);
  CHECK(packed.count > 0);
  o->count += packed.count;
  free_images(&packed);
  current = o;
}
