/* zstd_read.c: pages out of records.
 *
 * Records that lie one behind the other, as pages written together do, are one read of the file. Whole pages are
 * decompressed straight to where they are wanted.
 *
 * Race: between looking up and reading, the page, or its record's place, may become another's: a flush compacts, a
 * neighbouring part of the page is written. What was read does not verify then, and the entry is no longer the same:
 * look again. An entry that stayed the same is damage.
 *
 * What was verified as it is stored is not held against zstd's own checksum, which costs 8 to 30 % of decompressing;
 * only umappy verify does that. */
#include "zstd_store.h"

#include "xxh64.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RUN 64u      /* pages looked up together */
#define TRIES 10000u /* of a page that is moved again and again */

/* What is asked for. */
typedef struct reading {
  um_zstd_store *store;
  um_zstd_context *context;
  uint64_t offset, length; /* bytes of the image */
  uint8_t *to;
  um_error *error;
  bool deep; /* zstd's checksums too */
} reading;

static bool is_stored(const um_zstd_entry *entry) {
  return entry->kind == UM_ZSTD_RECORD || entry->kind == UM_ZSTD_BASE;
}

static bool verify(const um_zstd_store *store, uint64_t page, const um_zstd_entry *entry, const uint8_t *stored,
                   um_zstd_record *header) {
  if (entry->kind == UM_ZSTD_BASE)
    return (uint32_t)um_xxh64(stored, entry->length, store->seed + page) == entry->tag;
  return um_zstd_record_verify(stored, entry->length, page, store->seed, header) &&
         (uint32_t)header->checksum == entry->tag &&
         (header->kind == UM_ZSTD_PAGE_FRAME || header->kind == UM_ZSTD_PAGE_RAW);
}

/* Stored bytes, verified, and zeros behind them. */
static int decode(reading *r, uint64_t page, const um_zstd_entry *entry, const uint8_t *stored, uint8_t *to,
                  uint64_t room) {
  um_zstd_record header = {.kind = UM_ZSTD_PAGE_FRAME, .length = entry->length};
  if (!verify(r->store, page, entry, stored, &header))
    return -UM_ECORRUPT;
  if (entry->kind == UM_ZSTD_RECORD)
    stored += UM_ZSTD_RECORD_HEADER;
  int64_t count = header.length;
  if (header.kind == UM_ZSTD_PAGE_FRAME)
    count = um_zstd_decompress(&r->store->codec, r->context, to, room, stored, header.length, r->deep);
  else if (header.length <= room)
    memcpy(to, stored, header.length);
  if (count < 0 || (uint64_t)count > room)
    return count < 0 ? (int)count : -UM_ECORRUPT;
  memset(to + count, 0, room - (uint64_t)count);
  return 0;
}

/* Where the page's bytes are wanted: all of them, or a part. */
static uint8_t *find_part(const reading *r, uint64_t page, uint64_t *skip, uint64_t *count) {
  uint64_t start = page << r->store->page_shift, end = start + um_zstd_page_length(r->store, page);
  uint64_t from = start > r->offset ? start : r->offset;
  uint64_t to = end < r->offset + r->length ? end : r->offset + r->length;
  *skip = from - start;
  *count = to - from;
  return r->to + (from - r->offset);
}

static int put(reading *r, uint64_t page, const um_zstd_entry *entry, const uint8_t *stored) {
  uint64_t skip, count;
  uint8_t *to = find_part(r, page, &skip, &count);
  if (entry->kind == UM_ZSTD_ABSENT && r->store->foreign)
    return um_zstd_foreign_read(r->store, (page << r->store->page_shift) + skip, to, count, r->error);
  if (!is_stored(entry)) {
    memset(to, 0, count);
    return 0;
  }
  uint32_t size = r->store->codec.page_size;
  /* For a reader the last page may have become longer meanwhile. */
  if (count == size || (count == um_zstd_page_length(r->store, page) && r->store->store.writable))
    return decode(r, page, entry, stored, to, count);
  uint8_t *whole = um_zstd_context_page(&r->store->codec, r->context);
  int result = whole ? decode(r, page, entry, stored, whole, size) : -ENOMEM;
  if (result == 0)
    memcpy(to, whole + skip, count);
  return result;
}

static int fail(reading *r, uint64_t page, const um_zstd_entry *entry, int result) {
  char what[128];
  snprintf(what, sizeof(what), "page %" PRIu64 ", %" PRIu32 " bytes at byte %" PRIu64 " of the file", page,
           entry->length, entry->offset);
  return um_zstd_fail(r->store, result, UM_OP_READ, page << r->store->page_shift, um_zstd_page_length(r->store, page),
                      what, r->error);
}

static int fetch(reading *r, const um_zstd_entry *entry, uint64_t length) {
  uint64_t room = (length > UM_ZSTD_BATCH ? length : UM_ZSTD_BATCH) + 2 * UM_ZSTD_UNIT;
  uint8_t *buffer = um_zstd_context_room(&r->store->codec, r->context, room, length);
  int result =
      buffer ? um_zstd_file_fetch(r->store->file, entry->offset, buffer, length, &r->context->stored) : -ENOMEM;
  return result == -UM_ETRUNCATED ? -UM_ECORRUPT : result;
}

/* After *entry did not verify: 1 when there is another one now, and 0 when there is not. */
static int look_again(reading *r, uint64_t page, um_zstd_entry *entry) {
  um_zstd_entry now = {0};
  uint64_t seen = atomic_load(&r->store->generation);
  int result = um_zstd_index_get(r->store, page, 1, &now, r->error);
  if (result == 0 && um_zstd_same_entry(&now, entry)) {
    if (!um_zstd_store_reload(r->store, seen))
      return 0;
    result = um_zstd_index_get(r->store, page, 1, &now, r->error);
  }
  *entry = now;
  return result < 0 ? result : 1;
}

static int read_one(reading *r, uint64_t page, um_zstd_entry *entry) {
  int result = -UM_ECORRUPT;
  for (unsigned i = 0; result == -UM_ECORRUPT && i < TRIES; i++) {
    int changed = look_again(r, page, entry);
    if (changed < 0)
      return changed;
    if (changed == 0)
      break;
    result = is_stored(entry) ? fetch(r, entry, entry->length) : 0;
    if (result == 0)
      result = put(r, page, entry, r->context->stored);
  }
  return result < 0 ? fail(r, page, entry, result) : 0;
}

/* Pages from `page` on whose stored bytes lie one behind the other. */
static int read_run(reading *r, uint64_t page, um_zstd_entry *entries, uint32_t count) {
  uint64_t start = entries[0].offset;
  int result = fetch(r, &entries[0], entries[count - 1].offset + entries[count - 1].length - start);
  if (result < 0 && result != -UM_ECORRUPT)
    return fail(r, page, &entries[0], result);
  if (result < 0 && count > 1) { /* the file ends before some of them */
    for (uint32_t i = 0; i < count; i++)
      if ((result = read_run(r, page + i, &entries[i], 1)) < 0)
        return result;
    return 0;
  }
  for (uint32_t i = 0; i < count; i++) {
    if (result == 0)
      result = put(r, page + i, &entries[i], r->context->stored + (entries[i].offset - start));
    if (result == -UM_ECORRUPT) {
      result = read_one(r, page + i, &entries[i]);
      if (result == 0 && i + 1 < count)
        return read_run(r, page + i + 1, entries + i + 1, count - i - 1); /* the buffer is used up */
    } else if (result < 0) {
      result = fail(r, page + i, &entries[i], result);
    }
    if (result < 0)
      return result;
  }
  return 0;
}

static bool follows(const um_zstd_entry *before, const um_zstd_entry *entry) {
  uint64_t end = before->offset + before->length;
  if (before->kind == UM_ZSTD_RECORD)
    end = um_zstd_align(end);
  return is_stored(entry) && entry->kind == before->kind && entry->offset - end < UM_ZSTD_ALIGN;
}

static uint64_t extent(const um_zstd_entry *entries, uint32_t count) {
  return entries[count - 1].offset + entries[count - 1].length - entries[0].offset;
}

/* How many of these to read at once, the first of which is stored: those that lie one behind the other, in parts of
 * about one length, as a short rest would go through the page cache. */
static uint32_t choose(const um_zstd_entry *entries, uint32_t count) {
  uint32_t n = 1;
  while (n < count && follows(&entries[n - 1], &entries[n]))
    n++;
  uint32_t parts = (uint32_t)((extent(entries, n) + UM_ZSTD_BATCH - 1) / UM_ZSTD_BATCH);
  n = (n + parts - 1) / parts;
  while (n > 1 && extent(entries, n) > UM_ZSTD_BATCH)
    n--;
  return n;
}

static int read_pages(reading *r, uint64_t page, uint32_t count) {
  um_zstd_entry entries[RUN];
  int result = um_zstd_index_get(r->store, page, count, entries, r->error);
  for (uint32_t i = 0, n; result == 0 && i < count; i += n) {
    n = is_stored(&entries[i]) ? choose(entries + i, count - i) : 1;
    result = is_stored(&entries[i]) ? read_run(r, page + i, entries + i, n) : put(r, page + i, &entries[i], NULL);
  }
  return result;
}

int um_zstd_read(um_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error) {
  um_zstd_store *self = (um_zstd_store *)store;
  reading r = {.store = self, .offset = offset, .length = length, .to = buffer, .error = error};
  int result = um_zstd_check_forked(self, UM_OP_READ, offset, length, error);
  if (result < 0)
    return result;
  r.context = um_zstd_context_take(&self->codec);
  if (!r.context)
    return um_zstd_fail(self, -ENOMEM, UM_OP_READ, offset, length, "reading", error);
  uint64_t page = offset >> self->page_shift, end = ((offset + length - 1) >> self->page_shift) + 1;
  while (result == 0 && page < end) {
    uint64_t count = UM_ZSTD_FANOUT - page % UM_ZSTD_FANOUT; /* of one leaf */
    count = count < RUN ? count : RUN;
    count = count < end - page ? count : end - page;
    result = read_pages(&r, page, (uint32_t)count);
    page += count;
  }
  um_zstd_context_give(&self->codec, r.context);
  um_zstd_index_shrink(self);
  return result;
}

int um_zstd_page_read(um_zstd_store *store, um_zstd_context *context, uint64_t page, uint8_t *to, bool deep,
                      um_error *error) {
  reading r = {.store = store,
               .context = context,
               .offset = page << store->page_shift,
               .length = um_zstd_page_length(store, page),
               .to = to,
               .error = error,
               .deep = deep};
  return read_pages(&r, page, 1);
}

int um_zstd_stored_read(um_zstd_store *store, um_zstd_context *context, uint64_t page, um_zstd_entry *entry,
                        um_error *error) {
  reading r = {.store = store, .context = context, .error = error};
  int result = um_zstd_index_get(store, page, 1, entry, error);
  for (unsigned i = 0; result == 0 && is_stored(entry) && i < TRIES; i++) {
    um_zstd_record header;
    result = fetch(&r, entry, entry->length);
    if (result == 0 && verify(store, page, entry, context->stored, &header))
      return 0;
    if (result < 0 && result != -UM_ECORRUPT)
      return fail(&r, page, entry, result);
    result = look_again(&r, page, entry);
    if (result <= 0)
      return result < 0 ? result : fail(&r, page, entry, -UM_ECORRUPT);
    result = 0;
  }
  return result < 0 ? result : 1;
}
