/* gather.c: scattered items, a few bytes of a page each, without making their pages resident. Of pages that are absent
 * the blocks of 4 KiB that hold items are read, as many reads in flight as the device wants, on the caller's thread:
 * into shelves (shelf.h), or through a small buffer. The items are copied from there. Blocks that are on a shelf
 * already are not read. Long items that are whole blocks are read straight to their place. Items in pages that are
 * there are read through memory, as any user reads, and so are those that the store fails to give: the fault that comes
 * then tells of the error. A device that hangs keeps the caller, as pread would.
 *
 * Soundness. Pages are not claimed: a page that was ABSENT at some moment of a round holds what the store had then. The
 * store's bytes are the same from the beginning of the round to its end if no write to it was under way then, and none
 * has begun since. Where one has, the round does not count, and the caller goes by memory. So a store that reads
 * batches may be asked for a page by a fault at the same time, or may be writing it; those bytes are thrown away.
 *
 * Race: close against gather. It counts as a job, so the gate cannot close. */
#include "io_uring.h"
#include "page.h"
#include "shelf.h"

#include <sched.h>

#define ITEMS 8192u   /* a round at most: reads in flight dwindle at the end of each */
#define BLOCKS 8192u  /* likewise */
#define HELD 1024u    /* items that are looked at while shelves are held */
#define GAP_BLOCKS 2u /* read along where that makes one read of two */
#define ROOMS (BLOCKS / (uint32_t)UM_SHELF_BLOCKS + 1)
#define ROOM_LEAST 64u  /* places of a shelf; fewer are left empty */
#define BATCH_LEAST 16u /* reads that prove, when they are refused, that the store reads no batches */
#define ITEM_MOST (64u << 10)
#define WHOLE_LEAST (16u << 10) /* bytes of an item that is worth a read of its own */
#define WHOLES 1024u            /* such items a round at most */
#define START_NS 1000000000u

/* Of the first reads each has a unit of the buffer, the others get that of one which ended. read_batch has no more
 * begun and not ended than fly, and as many that landed. */
_Static_assert(UM_SHELF_UNITS >= 2 * UM_RING_DEPTH, "a read that begins has a unit");

typedef struct gathering {
  um_region *region;
  const uint64_t *offsets;
  uint64_t item_size;
  char *out;
  const uint64_t *places;       /* of items in `out`, counted in items; NULL: one behind the other */
  bool whole;                   /* items may be whole blocks, and long: such are read straight to `out` */
  uint64_t writes;              /* of the store that had begun, all ended, at the start; 0: it takes none */
  uint64_t first, end;          /* items of the round */
  char *buffer;                 /* units, each for a read at a time */
  um_shelf_room rooms[ROOMS];   /* for the leading blocks; the others go through the buffer and are not kept */
  uint32_t room_count, kept;    /* rooms, and blocks that go there */
  uint32_t count, read_count;   /* blocks and reads */
  uint32_t next_read;           /* the first that has no unit yet */
  uint64_t blocks[BLOCKS];      /* that are read, rising; later UINT64_MAX: in vain */
  uint32_t items[BLOCKS];       /* the item, counted from the first, that asked for the block */
  uint32_t block_reads, wholes; /* of the reads, those of blocks; items that are read straight to `out` */
  um_read reads[BLOCKS + WHOLES];
  uint32_t starts[BLOCKS + WHOLES]; /* the first block of each read; its item where that is read straight */
  enum { COPIED, ABSENT, STRAIGHT, THERE } way[ITEMS];
} gathering;

static void copy(char *to, const char *from, uint64_t length) {
  if (length == 8)
    memcpy(to, from, 8);
  else if (length == 4)
    memcpy(to, from, 4);
  else
    memcpy(to, from, length);
}

/* From memory that its user may be writing: a word is never torn. */
static void copy_from_memory(char *to, uintptr_t from, uint64_t length) {
  if (length == 8 && from % 8 == 0) {
    uint64_t word = __atomic_load_n((const uint64_t *)from, __ATOMIC_RELAXED);
    memcpy(to, &word, 8);
  } else {
    memcpy(to, (const char *)from, length);
  }
}

static char *find_place(const gathering *k, uint64_t item) {
  return k->out + (k->places ? k->places[item] : item) * k->item_size;
}

/* False: a block of the item is on no shelf. */
static bool copy_from_shelves(const gathering *k, uint64_t item) {
  uint64_t at = k->offsets[item], end = at + k->item_size;
  char *to = find_place(k, item);
  while (at < end) {
    uint64_t inside = at % UM_SHELF_BLOCK, n = um_min(end - at, UM_SHELF_BLOCK - inside);
    const char *bytes = um_shelf_find(k->region, k->writes, at / UM_SHELF_BLOCK);
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
  for (; first <= last; first++) {
    k->items[k->count] = (uint32_t)(item - k->first);
    k->blocks[k->count++] = first;
  }
  return true;
}

static bool is_whole(const gathering *k, uint64_t item) {
  return k->whole && k->offsets[item] % UM_SHELF_BLOCK == 0;
}

/* False: no place for it. */
static bool note_whole(gathering *k, uint64_t item) {
  if (k->wholes == WHOLES)
    return false;
  k->way[item] = STRAIGHT;
  k->wholes++;
  return true;
}

/* Says of items where their bytes are; copies those that lie on shelves. False: bad offsets, or no place for more. */
static bool look(gathering *k, uint64_t end, int *code) {
  um_region *r = k->region;
  uint64_t known = UINT64_MAX;
  bool absent = false, going = true;
  um_shelves_hold(r->pager);
  for (; going && k->end < end; k->end += going) {
    uint64_t at = k->offsets[k->end], least = k->end ? k->offsets[k->end - 1] : 0;
    if (at < least || at > r->size - k->item_size) {
      *code = -EINVAL;
      break;
    }
    uint64_t first = at >> r->page_shift, last = (at + k->item_size - 1) >> r->page_shift;
    if (first != known)
      absent = um_page_look(r, known = first) == 0;
    bool all = absent;
    for (uint64_t page = first + 1; all && page <= last; page++)
      all = um_page_look(r, page) == 0;
    uint64_t item = k->end - k->first;
    if (!all)
      k->way[item] = THERE;
    else if (copy_from_shelves(k, k->end))
      k->way[item] = COPIED;
    else if (is_whole(k, k->end))
      going = note_whole(k, item);
    else if ((going = want(k, k->end)))
      k->way[item] = ABSENT;
  }
  um_shelves_let_go(r->pager);
  return going && *code == 0;
}

/* Rooms for as many blocks as there is memory to keep. */
static void take_rooms(gathering *k) {
  k->kept = 0;
  for (k->room_count = 0; k->kept < k->count && k->room_count < ROOMS; k->room_count++) {
    um_shelf_room *room = &k->rooms[k->room_count];
    uint32_t left = k->count - k->kept;
    if (!um_shelf_take(k->region, k->writes, (uint32_t)um_min(left, ROOM_LEAST), room))
      break;
    room->count = (uint32_t)um_min(room->count, left);
    k->kept += room->count;
  }
}

static void put_rooms(gathering *k, bool good) {
  uint64_t *blocks = k->blocks;
  for (um_shelf_room *room = k->rooms; room < k->rooms + k->room_count; blocks += room++->count)
    um_shelf_put(k->region, k->writes, room, blocks, good ? room->count : 0);
}

/* Reads of the blocks [i, end), which lie one behind the other at `to`, or in units where that is NULL. */
static uint32_t plan_reads(gathering *k, uint32_t i, uint32_t end, char *to, uint32_t unit) {
  uint64_t size = k->region->store->size;
  um_read *last = NULL;
  for (; i < end; i++) {
    uint64_t at = k->blocks[i] * UM_SHELF_BLOCK, n = um_min(UM_SHELF_BLOCK, size - at);
    if (last && last->offset + last->length == at && last->length < UM_SHELF_UNIT) {
      last->length += n;
    } else {
      last = &k->reads[k->read_count];
      *last = (um_read){.offset = at, .buffer = to, .length = n};
      if (!to && unit < UM_SHELF_UNITS)
        last->buffer = k->buffer + (uint64_t)unit++ * UM_SHELF_UNIT;
      k->starts[k->read_count++] = i;
      if (last->buffer)
        k->next_read = k->read_count;
    }
    to = to ? to + UM_SHELF_BLOCK : NULL;
  }
  return unit;
}

static void plan(gathering *k) {
  uint32_t i = 0;
  k->read_count = k->next_read = 0;
  for (uint32_t room = 0; room < k->room_count; i += k->rooms[room++].count)
    plan_reads(k, i, i + k->rooms[room].count, k->rooms[room].bytes, 0);
  plan_reads(k, i, k->count, NULL, 0);
  k->block_reads = k->read_count;
  for (uint64_t item = k->first; k->wholes > 0 && item < k->end; item++)
    if (k->way[item - k->first] == STRAIGHT) {
      k->starts[k->read_count] = (uint32_t)(item - k->first);
      k->reads[k->read_count++] =
          (um_read){.offset = k->offsets[item], .buffer = find_place(k, item), .length = k->item_size};
    }
}

static bool is_store_quiet(const gathering *k) {
  return atomic_load(&k->region->writes_begun) == k->writes;
}

/* Copies what a read holds of the items that asked for its blocks, or had asked for one of them before. */
static void copy_items(gathering *k, const um_read *read, uint32_t block) {
  uint64_t start = read->offset, end = start + read->length, item = k->first + k->items[block];
  while (item > k->first && k->offsets[item - 1] + k->item_size > start)
    item--;
  for (; item < k->end && k->offsets[item] < end; item++) {
    if (k->way[item - k->first] != ABSENT)
      continue;
    uint64_t at = k->offsets[item], from = um_max(at, start), to = um_min(at + k->item_size, end);
    if (read->code)
      k->way[item - k->first] = THERE;
    else if (from < to)
      copy(find_place(k, item) + (from - at), (const char *)read->buffer + (from - start), to - from);
  }
}

/* Its unit goes to a read that has none, as long as there are such. */
static void ended(um_batch *batch, um_read *read) {
  gathering *k = batch->context;
  uint32_t index = (uint32_t)(read - k->reads), first = k->starts[index];
  if (index >= k->block_reads) {
    k->way[first] = read->code ? THERE : COPIED;
    if (read->code == 0)
      UM_COUNT(k->region, bytes_read, read->length);
    return;
  }
  uint32_t end = index + 1 < k->block_reads ? k->starts[index + 1] : k->count;
  copy_items(k, read, first);
  if (read->code == 0)
    UM_COUNT(k->region, bytes_read, read->length);
  for (; read->code && first < end; first++)
    k->blocks[first] = UINT64_MAX;
  if (k->starts[index] >= k->kept && k->next_read < k->block_reads)
    k->reads[k->next_read++].buffer = read->buffer;
}

static int read_blocks(gathering *k) {
  um_region *r = k->region;
  um_batch batch = {
      .reads = k->reads, .count = k->read_count, .timeout_ns = r->pager->timeout_ns, .ended = ended, .context = k};
  int code = r->store->ops->read_batch(r->store, &batch);
  UM_COUNT(r, store_reads, k->read_count);
  if (code == 0 || k->read_count >= BATCH_LEAST) {
    atomic_store(&r->no_batch, code != 0);
    return code;
  }
  for (um_read *read = k->reads; read < k->reads + k->read_count; read++) { /* all at the ends of files, say */
    um_error error;
    read->code = um_store_read(r->store, read->offset, read->buffer, read->length, &error);
    ended(&batch, read);
  }
  return 0;
}

static int read_and_copy(gathering *k) {
  take_rooms(k);
  plan(k);
  uint64_t start = um_now_ns();
  int code = read_blocks(k);
  um_shelf_earn(k->region, k->blocks, k->count, um_now_ns() - start);
  put_rooms(k, code == 0 && is_store_quiet(k));
  return code;
}

static int do_round(gathering *k, uint64_t count) {
  um_region *r = k->region;
  uint64_t ended_ = atomic_load(&r->writes_ended), end = um_min(k->first + ITEMS, count);
  int code = 0;
  k->writes = atomic_load(&r->writes_begun);
  if (k->writes != ended_)
    return -EAGAIN;
  k->count = k->wholes = 0;
  k->end = k->first;
  while (k->end < end && look(k, um_min(k->end + HELD, end), &code))
    ;
  if (code == 0 && k->count + k->wholes)
    code = read_and_copy(k);
  if (code)
    return code;
  if (!is_store_quiet(k))
    return -EAGAIN;
  for (uint64_t item = k->first; item < k->end; item++)
    if (k->way[item - k->first] == THERE)
      copy_from_memory(find_place(k, item), r->address + k->offsets[item], k->item_size);
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

static int gather(gathering *k, uint64_t count, uint64_t deadline, uint64_t *done) {
  int code = begin(k->region);
  if (code)
    return code;
  do {
    k->first = *done;
    code = do_round(k, count);
    *done = code ? *done : k->end;
  } while (code == 0 && *done < count && um_now_ns() < deadline);
  atomic_fetch_sub(&k->region->jobs, 1);
  return code;
}

static bool are_places(const uint64_t *places, uint64_t count, uint64_t room) {
  for (uint64_t i = 0; places && i < count; i++)
    if (places[i] >= room)
      return false;
  return places || count <= room;
}

int um_region_gather(um_region *r, const uint64_t *offsets, uint64_t count, uint64_t item_size, void *out,
                     const uint64_t *places, uint64_t room, uint32_t timeout_ms, uint64_t *done) {
  um_pager *p = r->pager;
  uint64_t deadline = um_now_ns() + timeout_ms * 1000000ull;
  if (um_pager_forked(p))
    return -UM_EFORKED;
  if (item_size == 0 || item_size > ITEM_MOST || item_size > r->size || *done > count ||
      um_fork_overlaps((uintptr_t)out, room * item_size) || !are_places(places, count, room))
    return -EINVAL;
  if (!r->store->ops->read_batch || atomic_load(&r->no_batch) || p->memory < (uint64_t)UM_CHUNKS_READ * UM_CHUNK ||
      um_shelves_open(p) || um_memory_wait(p, sizeof(gathering), atomic_load(&p->emergency), 0))
    return -EOPNOTSUPP;
  gathering *k = malloc(sizeof *k);
  char *buffer = um_shelf_buffer_take(p);
  int code = -EOPNOTSUPP;
  if (k && buffer) {
    k->region = r;
    k->offsets = offsets;
    k->item_size = item_size;
    k->out = out;
    k->places = places;
    k->whole = item_size >= WHOLE_LEAST && item_size % UM_SHELF_BLOCK == 0 &&
               (r->store->ops->any_buffer || (uintptr_t)out % UM_SHELF_BLOCK == 0);
    k->buffer = buffer;
    code = gather(k, count, deadline, done);
  }
  um_shelf_buffer_put(p, buffer);
  free(k);
  um_budget_release(p, sizeof(gathering));
  return code;
}
