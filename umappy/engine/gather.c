/* gather.c: scattered items, a few bytes of a page each, without making their pages resident. Of pages that are absent
 * the blocks of 4 KiB that hold items are read into shelves, as many reads in flight as the device wants, on the
 * caller's thread; the items are copied from there. Blocks that are on a shelf already are not read. Items in pages
 * that are there are read through memory, as any user reads, and so are those that the store fails to give: the fault
 * that comes then tells of the error.
 *
 * Soundness. Pages are not claimed: a page that was ABSENT at some moment of a round holds what the store had then. The
 * store's bytes are the same from the beginning of the round to its end if no write to it was under way then, and none
 * has begun since. Where one has, the round does not count, and the caller goes by memory. So a store that reads
 * batches may be asked for a page by a fault at the same time, or may be writing it; those bytes are thrown away.
 *
 * Race: close against gather. It counts as a job, so the gate cannot close. */
#include "page.h"
#include "shelf.h"

#include <sched.h>

#define ITEMS 2048u /* a round */
#define SHELVES 2u  /* a round fills at most: reads in flight dwindle at the end of each */
#define BLOCKS (SHELVES * (uint32_t)UM_SHELF_BLOCKS)
#define READ_BLOCKS 16u /* a read at most */
#define GAP_BLOCKS 2u   /* read along where that makes one read of two */
#define ROOM_LEAST 64u  /* places; fewer than that are left empty */
#define BATCH_LEAST 16u /* reads that prove, when they are refused, that the store reads no batches */
#define START_NS 1000000000u

typedef struct gathering {
  um_region *region;
  const uint64_t *offsets;
  uint64_t item_size;
  char *out;
  uint64_t writes; /* of the store that had begun, all ended, at the start; 0: it takes none */
  uint64_t first;  /* item; the next after the last: */
  uint64_t end;
  um_shelf_room rooms[SHELVES];
  uint32_t room_count;
  uint32_t count, read_count; /* blocks and reads */
  uint32_t cursor;            /* the first block of the item that is looked at */
  uint64_t blocks[BLOCKS];    /* that are read, rising; block i goes to place i of the rooms */
  bool failed[BLOCKS];
  um_read reads[BLOCKS];
  uint32_t starts[BLOCKS]; /* the first block of each read */
  enum { COPIED, ABSENT, THERE } way[ITEMS];
} gathering;

static bool is_absent(const um_region *r, uint64_t page) {
  uint32_t live = atomic_load(&r->spans[um_words_span(r, page)].live); /* words of an empty span are not touched */
  return live == 0 || live == UM_LIVE_DROPPING || um_page_load(r, page) == 0;
}

static void copy(char *to, const char *from, uint64_t length) {
  if (length == 8)
    memcpy(to, from, 8);
  else if (length == 4)
    memcpy(to, from, 4);
  else
    memcpy(to, from, length);
}

static char *place(const gathering *k, uint32_t i) {
  uint32_t first = k->rooms[0].count;
  return i < first ? k->rooms[0].bytes + (uint64_t)i * UM_SHELF_BLOCK
                   : k->rooms[1].bytes + (uint64_t)(i - first) * UM_SHELF_BLOCK;
}

static const char *find_on_shelf(const gathering *k, uint64_t block) {
  return um_shelf_find(k->region, k->writes, block);
}

/* The blocks of an item follow one another. */
static const char *find_read(const gathering *k, uint64_t block) {
  uint32_t i = k->cursor + (uint32_t)(block - k->blocks[k->cursor]);
  return k->failed[i] ? NULL : place(k, i);
}

/* Copies an item, block by block, from where `find` says they are. False: one is nowhere. */
static bool copy_by_blocks(const gathering *k, uint64_t item, const char *(*find)(const gathering *k, uint64_t block)) {
  uint64_t at = k->offsets[item], end = at + k->item_size;
  char *to = k->out + item * k->item_size;
  while (at < end) {
    uint64_t inside = at % UM_SHELF_BLOCK, n = um_min(end - at, UM_SHELF_BLOCK - inside);
    const char *bytes = find(k, at / UM_SHELF_BLOCK);
    if (!bytes)
      return false;
    copy(to, bytes + inside, n);
    at += n;
    to += n;
  }
  return true;
}

/* Notes the blocks of an item, and those of a small gap before it, for reading. False: no place for them. */
static bool want(gathering *k, uint64_t item) {
  uint64_t first = k->offsets[item] / UM_SHELF_BLOCK;
  uint64_t last = (k->offsets[item] + k->item_size - 1) / UM_SHELF_BLOCK;
  if (k->count) {
    uint64_t before = k->blocks[k->count - 1];
    if (last <= before)
      return true;
    if (first <= before + 1 + GAP_BLOCKS)
      first = before + 1;
  }
  if (last - first + 1 > BLOCKS - k->count)
    return false;
  while (first <= last)
    k->blocks[k->count++] = first++;
  return true;
}

/* Says of each item where its bytes are; copies those that lie on shelves. False: bad offsets. */
static bool look(gathering *k, uint64_t count) {
  um_region *r = k->region;
  uint64_t known = UINT64_MAX, end = um_min(k->first + ITEMS, count), least = k->first ? k->offsets[k->first - 1] : 0;
  bool absent = false, good = true;
  um_shelves_hold(r->pager);
  for (k->end = k->first; k->end < end; k->end++) {
    uint64_t at = k->offsets[k->end];
    good = at >= least && at <= r->size - k->item_size;
    if (!good)
      break;
    least = at;
    uint64_t first = at >> r->page_shift, last = (at + k->item_size - 1) >> r->page_shift;
    if (first != known)
      absent = is_absent(r, known = first);
    bool all = absent;
    for (uint64_t page = first + 1; all && page <= last; page++)
      all = is_absent(r, page);
    if (!all)
      k->way[k->end - k->first] = THERE;
    else if (copy_by_blocks(k, k->end, find_on_shelf))
      k->way[k->end - k->first] = COPIED;
    else if (want(k, k->end))
      k->way[k->end - k->first] = ABSENT;
    else
      break;
  }
  um_shelves_let_go(r->pager);
  return good;
}

/* Where there is room for a part of the blocks only, the round ends before the first item that has none. */
static int make_room(gathering *k) {
  uint32_t room = 0;
  for (k->room_count = 0; k->room_count < SHELVES && room < k->count; k->room_count++) {
    um_shelf_room *next = &k->rooms[k->room_count];
    if (!um_shelf_take(k->region, k->writes, (uint32_t)um_min(k->count, ROOM_LEAST), next))
      break;
    room += next->count;
  }
  if (room < READ_BLOCKS + 1 && room < k->count)
    return -EOPNOTSUPP;
  if (room < k->count) {
    uint64_t limit = (k->blocks[room - 1] + 1) * UM_SHELF_BLOCK;
    while (k->offsets[k->end - 1] + k->item_size > limit)
      k->end--;
    k->count = room;
  }
  return 0;
}

static void plan_reads(gathering *k) {
  uint64_t size = k->region->store->size;
  for (uint32_t i = 0; i < k->count; i++) {
    um_read *last = k->read_count ? &k->reads[k->read_count - 1] : NULL;
    uint64_t at = k->blocks[i] * UM_SHELF_BLOCK, n = um_min(UM_SHELF_BLOCK, size - at);
    k->failed[i] = false;
    if (last && last->offset + last->length == at && i != k->rooms[0].count &&
        last->length < READ_BLOCKS * UM_SHELF_BLOCK) {
      last->length += n;
    } else {
      k->starts[k->read_count] = i;
      k->reads[k->read_count++] = (um_read){.offset = at, .buffer = place(k, i), .length = n};
    }
  }
}

static int read_blocks(gathering *k) {
  um_region *r = k->region;
  uint64_t start = um_now_ns();
  plan_reads(k);
  um_batch batch = {.reads = k->reads, .count = k->read_count, .timeout_ns = r->pager->timeout_ns};
  int code = r->store->ops->read_batch(r->store, &batch);
  if (code == -EOPNOTSUPP && k->read_count >= BATCH_LEAST) {
    atomic_store(&r->no_batch, true);
    return code;
  }
  UM_COUNT(r, store_reads, k->read_count);
  for (uint32_t i = 0; i < k->read_count; i++) {
    um_read *read = &k->reads[i];
    um_error error;
    if (code) /* all of them at the ends of files, say */
      read->code = um_store_read(r->store, read->offset, read->buffer, read->length, &error);
    if (read->code == 0) {
      UM_COUNT(r, bytes_read, read->length);
      continue;
    }
    uint32_t end = i + 1 < k->read_count ? k->starts[i + 1] : k->count;
    memset(k->failed + k->starts[i], true, end - k->starts[i]);
  }
  um_shelf_earn(r, k->blocks, k->count, um_now_ns() - start);
  return 0;
}

static bool is_store_quiet(const gathering *k) {
  return atomic_load(&k->region->writes_begun) == k->writes;
}

/* On to shelves with what was read; `good`: it is what the store holds. */
static void put_away(gathering *k, bool good) {
  uint32_t done = 0;
  for (uint32_t i = 0; good && i < k->count; i++)
    if (k->failed[i])
      k->blocks[i] = UINT64_MAX;
  for (uint32_t i = 0; i < k->room_count; i++) {
    uint32_t n = good ? (uint32_t)um_min(k->count - done, k->rooms[i].count) : 0;
    um_shelf_put(k->region, k->writes, &k->rooms[i], k->blocks + done, n);
    done += n;
  }
}

static int read_and_copy(gathering *k) {
  int code = make_room(k);
  if (code == 0)
    code = read_blocks(k);
  bool good = code == 0 && is_store_quiet(k);
  k->cursor = 0;
  for (uint64_t item = k->first; good && item < k->end; item++) {
    if (k->way[item - k->first] != ABSENT)
      continue;
    while (k->blocks[k->cursor] < k->offsets[item] / UM_SHELF_BLOCK)
      k->cursor++;
    if (!copy_by_blocks(k, item, find_read))
      k->way[item - k->first] = THERE;
  }
  put_away(k, good);
  return code;
}

static int do_round(gathering *k, uint64_t count) {
  um_region *r = k->region;
  uint64_t ended = atomic_load(&r->writes_ended);
  k->writes = atomic_load(&r->writes_begun);
  if (k->writes != ended)
    return -EAGAIN;
  k->count = k->read_count = k->room_count = 0;
  if (!look(k, count))
    return -EINVAL;
  int code = k->count ? read_and_copy(k) : 0;
  if (code)
    return code;
  if (!is_store_quiet(k))
    return -EAGAIN;
  for (uint64_t item = k->first; item < k->end; item++)
    if (k->way[item - k->first] == THERE)
      copy(k->out + item * k->item_size, (const char *)r->address + k->offsets[item], k->item_size);
  return 0;
}

static int begin(um_region *r) {
  uint64_t deadline = um_now_ns() + START_NS;
  while (!um_gate_enter(r)) { /* closed for an instant, or for good */
    if (um_now_ns() > deadline)
      return -EBADF;
    sched_yield();
  }
  atomic_fetch_add(&r->jobs, 1);
  um_gate_leave(r);
  return 0;
}

int um_region_gather(um_region *r, const uint64_t *offsets, uint64_t count, uint64_t item_size, void *out,
                     uint32_t timeout_ms, uint64_t *done) {
  um_pager *p = r->pager;
  uint64_t deadline = um_now_ns() + timeout_ms * 1000000ull;
  if (um_pager_forked(p))
    return -UM_EFORKED;
  if (item_size == 0 || item_size > READ_BLOCKS * UM_SHELF_BLOCK || item_size > r->size || *done > count ||
      um_fork_overlaps((uintptr_t)out, count * item_size))
    return -EINVAL;
  if (!r->store->ops->read_batch || atomic_load(&r->no_batch) || p->memory < (uint64_t)UM_CHUNKS_READ * UM_CHUNK ||
      um_shelves_open(p) || um_memory_wait(p, sizeof(gathering), atomic_load(&p->emergency), 0))
    return -EOPNOTSUPP;
  gathering *k = malloc(sizeof *k);
  int code = k ? begin(r) : -EOPNOTSUPP;
  if (code == 0) {
    k->region = r;
    k->offsets = offsets;
    k->item_size = item_size;
    k->out = out;
    do {
      k->first = *done;
      code = do_round(k, count);
      *done = code ? *done : k->end;
    } while (code == 0 && *done < count && um_now_ns() < deadline);
    atomic_fetch_sub(&r->jobs, 1);
  }
  free(k);
  um_budget_release(p, sizeof(gathering));
  return code;
}
