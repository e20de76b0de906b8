/* zmemory.c: see zmemory.h. */
#include "zmemory.h"

#include <errno.h>

#define SECTOR 512u
#define SPARES 16u

/* Buffers of files that were closed, zero again: fresh memory costs more than all else a test does with a file. */
static uint8_t *spares[SPARES];
static unsigned spare_count;

static uint8_t *take_buffer(void) {
  uint8_t *buffer = spare_count ? spares[--spare_count] : calloc(1, ZMEMORY_ROOM);
  CHECK(buffer);
  return buffer;
}

static void give_buffer(uint8_t *buffer, uint64_t used) {
  if (spare_count == SPARES) {
    free(buffer);
    return;
  }
  memset(buffer, 0, used);
  spares[spare_count++] = buffer;
}

static void note(zmemory *m, uint64_t offset, const void *bytes, uint64_t length) {
  if (m->crash)
    m->crash(m);
  if (m->count == m->room) {
    m->room = m->room ? 2 * m->room : 64;
    m->changes = realloc(m->changes, m->room * sizeof(*m->changes));
    CHECK(m->changes);
  }
  zchange *c = &m->changes[m->count++];
  *c = (zchange){.offset = offset, .length = length};
  if (bytes && (c->bytes = malloc(length)))
    memcpy(c->bytes, bytes, length);
}

static int64_t memory_read(um_zstd_file *file, void *buffer, uint64_t length, uint64_t offset) {
  zmemory *m = (zmemory *)file;
  uint64_t left = offset < m->length ? m->length - offset : 0, count = length < left ? length : left;
  memcpy(buffer, m->bytes + offset, count);
  return (int64_t)count;
}

static int64_t memory_write(um_zstd_file *file, const void *buffer, uint64_t length, uint64_t offset) {
  zmemory *m = (zmemory *)file;
  if (length > ZMEMORY_ROOM || offset > ZMEMORY_ROOM - length)
    return -EFBIG;
  note(m, offset, buffer, length);
  memcpy(m->bytes + offset, buffer, length);
  m->length = m->length < offset + length ? offset + length : m->length;
  m->reach = m->reach < m->length ? m->length : m->reach;
  return (int64_t)length;
}

static void forget(zmemory *m) {
  for (uint64_t i = 0; i < m->count; i++)
    free(m->changes[i].bytes);
  m->count = 0;
}

static int memory_sync(um_zstd_file *file) {
  zmemory *m = (zmemory *)file;
  if (m->crash)
    m->crash(m);
  forget(m);
  memcpy(m->durable, m->bytes, m->length > m->durable_length ? m->length : m->durable_length);
  m->durable_length = m->length;
  return 0;
}

static int memory_truncate(um_zstd_file *file, uint64_t length) {
  zmemory *m = (zmemory *)file;
  if (length > ZMEMORY_ROOM)
    return -EFBIG;
  note(m, length, NULL, ZMEMORY_LENGTH);
  if (length < m->length)
    memset(m->bytes + length, 0, m->length - length);
  m->length = length;
  m->reach = m->reach < length ? length : m->reach;
  return 0;
}

static int memory_punch(um_zstd_file *file, uint64_t offset, uint64_t length) {
  zmemory *m = (zmemory *)file;
  if (length > ZMEMORY_ROOM || offset > ZMEMORY_ROOM - length)
    return -EFBIG;
  note(m, offset, NULL, length);
  memset(m->bytes + offset, 0, length);
  return 0;
}

static int memory_measure(um_zstd_file *file, uint64_t *length, uint64_t *allocated) {
  *length = *allocated = ((zmemory *)file)->length;
  return 0;
}

static int memory_close(um_zstd_file *file) {
  zmemory *m = (zmemory *)file;
  forget(m);
  free(m->changes);
  uint64_t used = m->length < m->durable_length ? m->durable_length : m->length;
  used = used < m->reach ? m->reach : used;
  give_buffer(m->bytes, used);
  give_buffer(m->durable, used);
  free(m);
  return 0;
}

static const um_zstd_file_ops memory_ops = {.read = memory_read,
                                            .write = memory_write,
                                            .sync = memory_sync,
                                            .truncate = memory_truncate,
                                            .punch = memory_punch,
                                            .measure = memory_measure,
                                            .close = memory_close};

zmemory *zmemory_make(void) {
  zmemory *m = calloc(1, sizeof(*m));
  CHECK(m);
  m->file = (um_zstd_file){&memory_ops, "memory"};
  m->bytes = take_buffer();
  m->durable = take_buffer();
  return m;
}

/* Of the sectors of a change, those that survive: all, none or any, by `odds` of 256. */
static void apply(zmemory *to, const zchange *c, uint64_t odds, uint64_t *seed) {
  if (c->length == ZMEMORY_LENGTH) {
    if (zrig_random(seed) % 256 < odds) {
      if (c->offset < to->length)
        memset(to->bytes + c->offset, 0, to->length - c->offset);
      to->length = c->offset;
    }
    return;
  }
  for (uint64_t at = c->offset, end = c->offset + c->length; at < end;) {
    uint64_t next = (at / SECTOR + 1) * SECTOR, count = (next < end ? next : end) - at;
    if (zrig_random(seed) % 256 < odds) {
      if (c->bytes) {
        memcpy(to->bytes + at, c->bytes + (at - c->offset), count);
        to->length = to->length < at + count ? at + count : to->length;
      } else {
        memset(to->bytes + at, 0, count);
      }
    }
    at += count;
  }
}

zmemory *zmemory_crashed(const zmemory *m, uint64_t odds, uint64_t *seed) {
  zmemory *crashed = zmemory_make();
  memcpy(crashed->bytes, m->durable, m->durable_length);
  crashed->length = m->durable_length;
  for (uint64_t i = 0; i < m->count; i++)
    apply(crashed, &m->changes[i], odds, seed);
  memcpy(crashed->durable, crashed->bytes, crashed->length);
  crashed->durable_length = crashed->length;
  return crashed;
}

zmemory *zmemory_copy(const zmemory *m) {
  zmemory *copy = zmemory_make();
  memcpy(copy->bytes, m->bytes, m->length);
  memcpy(copy->durable, m->bytes, m->length);
  copy->length = copy->durable_length = m->length;
  return copy;
}

int zmemory_try(zmemory *m, const um_zstd_options *options, um_store **store, um_error *error) {
  int result = um_zstd_store_open_on(&m->file, false, options, store, error);
  if (result < 0)
    m->file.ops->close(&m->file);
  return result;
}
