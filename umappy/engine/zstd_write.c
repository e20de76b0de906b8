/* zstd_write.c: pages into records.
 *
 * Pages are compressed one by one, on the caller's thread and without any lock, into one buffer; what is in it goes to
 * the log in one write, and only then the index says so. A call that fails has changed some of its pages or none.
 *
 * A part of a page is written by reading the page first. Others may write other parts of the same page meanwhile: each
 * is a guest of the page, and there is one guest a page at a time. */
#include "zstd_store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAGES 256u /* in one write, at most */

struct um_zstd_guest {
  uint64_t page;
  struct um_zstd_guest *next;
};

typedef struct writing {
  um_zstd_store *store;
  um_zstd_context *context;
  um_error *error;
  uint32_t count;        /* pages that wait for their write */
  uint64_t used;         /* bytes of the buffer */
  uint64_t pages[PAGES]; /* which */
  uint32_t sizes[PAGES]; /* of their records */
  uint32_t tags[PAGES];
} writing;

static struct um_zstd_guest *find_guest(um_zstd_guard *guard, uint64_t page) {
  struct um_zstd_guest *guest = guard->guests;
  while (guest && guest->page != page)
    guest = guest->next;
  return guest;
}

static int enter(um_zstd_store *store, struct um_zstd_guest *guest) {
  um_zstd_guard *guard = &store->guard;
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += UM_ZSTD_WAIT_SECONDS;
  int code = 0;
  pthread_mutex_lock(&guard->lock);
  while (code == 0 && find_guest(guard, guest->page))
    code = pthread_cond_timedwait(&guard->left, &guard->lock, &until);
  if (code == 0) {
    guest->next = guard->guests;
    guard->guests = guest;
  }
  pthread_mutex_unlock(&guard->lock);
  return -code;
}

static void leave(um_zstd_store *store, struct um_zstd_guest *guest) {
  um_zstd_guard *guard = &store->guard;
  pthread_mutex_lock(&guard->lock);
  struct um_zstd_guest **at = &guard->guests;
  while (*at != guest)
    at = &(*at)->next;
  *at = guest->next;
  pthread_cond_broadcast(&guard->left);
  pthread_mutex_unlock(&guard->lock);
}

static int fail(const writing *w, uint64_t page, int result, const char *what) {
  return um_zstd_fail(w->store, result, UM_OP_WRITE, page << w->store->page_shift, um_zstd_page_length(w->store, page),
                      what, w->error);
}

static int set_entry(void *context, uint32_t i, uint64_t offset) {
  writing *w = context;
  um_zstd_entry entry = {.offset = offset, .length = w->sizes[i], .tag = w->tags[i], .kind = UM_ZSTD_RECORD};
  return um_zstd_index_set(w->store, w->pages[i], &entry, NULL, w->error);
}

static int send(writing *w) {
  uint32_t count = w->count;
  w->count = 0;
  w->used = 0;
  int result = um_zstd_log_write(w->store, w->context->buffer, w->sizes, count, set_entry, w, w->error);
  if (result < 0 && w->error && w->error->length == 0) { /* it was the log, which knows of no pages */
    w->error->offset = w->pages[0] << w->store->page_shift;
    w->error->length = um_zstd_page_length(w->store, w->pages[0]);
  }
  return result;
}

/* Raw where a frame would save less than this share of the page. */
static bool is_worth(uint64_t frame, uint64_t length) {
  return frame < length - length / 32;
}

static int add_record(writing *w, uint64_t page, const uint8_t *bytes, uint64_t length) {
  um_zstd_store *store = w->store;
  uint64_t bound = um_zstd_bound(&store->codec, length);
  uint8_t *record = w->context->buffer + w->used;
  int64_t size = um_zstd_compress(&store->codec, w->context, record + UM_ZSTD_RECORD_HEADER, bound, bytes, length);
  if (size < 0)
    return fail(w, page, (int)size, "compressing");
  uint32_t kind = UM_ZSTD_PAGE_FRAME;
  if (!is_worth((uint64_t)size, length)) {
    kind = UM_ZSTD_PAGE_RAW;
    size = (int64_t)length;
    memcpy(record + UM_ZSTD_RECORD_HEADER, bytes, length);
  }
  w->pages[w->count] = page;
  w->sizes[w->count] = UM_ZSTD_RECORD_HEADER + (uint32_t)size;
  w->tags[w->count] = (uint32_t)um_zstd_record_seal(record, kind, (uint32_t)size, page,
                                                    atomic_load(&store->generation) + 1, store->seed);
  uint64_t end = um_zstd_align(w->sizes[w->count]);
  memset(record + w->sizes[w->count], 0, end - w->sizes[w->count]);
  w->used += end;
  w->count++;
  if (w->count < PAGES && w->used + bound + 2 * UM_ZSTD_RECORD_HEADER <= w->context->room && w->used < UM_ZSTD_BATCH)
    return 0;
  return send(w);
}

/* A page's bytes are these from now on, all of them. */
static int add_page(writing *w, uint64_t page, const uint8_t *bytes) {
  uint64_t length = um_zstd_page_length(w->store, page);
  if (!um_zstd_is_zero(bytes, length))
    return add_record(w, page, bytes, length);
  um_zstd_entry entry = {.kind = w->store->foreign ? UM_ZSTD_ZEROS : UM_ZSTD_ABSENT};
  return um_zstd_index_set(w->store, page, &entry, NULL, w->error);
}

static int add_part(writing *w, uint64_t page, uint64_t skip, const uint8_t *bytes, uint64_t length) {
  int result = send(w); /* reading needs the buffer */
  if (result < 0)
    return result;
  struct um_zstd_guest guest = {.page = page};
  result = enter(w->store, &guest);
  if (result < 0)
    return fail(w, page, result, "waiting for another write to the same page");
  uint8_t *whole = malloc(w->store->codec.page_size);
  result =
      whole ? um_zstd_page_read(w->store, w->context, page, whole, false, w->error) : fail(w, page, -ENOMEM, "writing");
  if (result == 0) {
    memcpy(whole + skip, bytes, length);
    result = add_page(w, page, whole);
  }
  if (result == 0)
    result = send(w);
  free(whole);
  leave(w->store, &guest);
  return result;
}

static int write_all(writing *w, uint64_t offset, const uint8_t *bytes, uint64_t length) {
  um_zstd_store *store = w->store;
  int result = 0;
  while (result == 0 && length > 0) {
    uint64_t page = offset >> store->page_shift, skip = offset - (page << store->page_shift);
    uint64_t whole = um_zstd_page_length(store, page), count = whole - skip < length ? whole - skip : length;
    result = count == whole ? add_page(w, page, bytes) : add_part(w, page, skip, bytes, count);
    offset += count;
    bytes += count;
    length -= count;
  }
  return result < 0 ? result : send(w);
}

int um_zstd_write(um_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error) {
  um_zstd_store *self = (um_zstd_store *)store;
  int result = um_zstd_check_forked(self, UM_OP_WRITE, offset, length, error);
  if (result < 0)
    return result;
  writing *w = malloc(sizeof(*w));
  um_zstd_context *context = w ? um_zstd_context_take(&self->codec) : NULL;
  uint64_t room = UM_ZSTD_BATCH + um_zstd_bound(&self->codec, self->codec.page_size) + 2 * UM_ZSTD_RECORD_HEADER;
  result = -ENOMEM;
  if (context && um_zstd_context_room(&self->codec, context, room, length)) {
    w->store = self;
    w->context = context;
    w->error = error;
    w->count = 0;
    w->used = 0;
    result = write_all(w, offset, buffer, length);
  } else {
    um_zstd_fail(self, -ENOMEM, UM_OP_WRITE, offset, length, "writing", error);
  }
  if (context)
    um_zstd_context_give(&self->codec, context);
  um_zstd_index_shrink(self);
  free(w);
  return result;
}
