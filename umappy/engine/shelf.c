/* shelf.c: which block is where; see shelf.h.
 *
 * A table of buckets leads from a block to its place. Its entries are hints, checked against what the place holds: so
 * nothing has to be taken out when a shelf goes, and an entry that finds its bucket full of others costs one of them a
 * read. */
#include "shelf.h"

#include "pool.h"

#include <sys/mman.h>

#define WAYS 8u         /* entries a bucket */
#define SHARE 16u       /* of the time of reading that new memory may cost, one in so many */
#define COST_NS 3000000 /* of a new shelf, before one was made: what makes it worth while to find out */
#define BUFFER ((uint64_t)UM_SHELF_UNITS * UM_SHELF_UNIT)
#define CREDIT_MOST 64 /* shelves that can be saved up for */
#define NONE UINT64_MAX

typedef struct shelf {
  uint64_t region; /* number of the region and one; 0: the chunk is no shelf */
  uint64_t writes; /* to the region that had begun when its blocks were read */
  uint32_t filled; /* places that may hold a block */
  uint32_t newer;  /* chunk of the next shelf */
  bool taken;      /* somebody fills it: it cannot go */
} shelf;

typedef struct um_shelves {
  pthread_rwlock_t lock;   /* for all below, and what the shelves hold; taken with no other */
  shelf *shelves;          /* by chunk */
  uint64_t *blocks;        /* by place: the block of its region */
  uint32_t *table;         /* buckets of places and one; 0: free */
  uint32_t shift;          /* of a hash, to the number of its bucket */
  uint32_t oldest, newest; /* chunks; 0: there are none */
  uint16_t *seen;          /* by hash: a sign of the last block that was read; races cost a wrong guess */
  void *_Atomic buffer;    /* that nobody uses, or NULL */
  uint64_t shelves_mapped, blocks_mapped, table_mapped, seen_mapped; /* constant */
  _Atomic int64_t credit_ns; /* that new shelves may cost; below zero: they cost more than was thought */
  _Atomic int64_t cost_ns;   /* of the last one */
} um_shelves;

static void unmap(um_shelves *s) {
  pthread_rwlock_destroy(&s->lock);
  um_memory_unmap(s->shelves, s->shelves_mapped);
  um_memory_unmap(s->blocks, s->blocks_mapped);
  um_memory_unmap(s->table, s->table_mapped);
  um_memory_unmap(s->seen, s->seen_mapped);
  um_memory_unmap(atomic_load(&s->buffer), BUFFER);
  free(s);
}

static uint64_t bytes_of(const um_shelves *s) {
  return s->shelves_mapped + s->blocks_mapped + s->table_mapped + s->seen_mapped;
}

static um_shelves *make(um_pager *p) {
  um_shelves *s = calloc(1, sizeof *s);
  if (!s)
    return NULL;
  uint64_t places = (uint64_t)p->pool.count * UM_SHELF_BLOCKS, buckets = 2;
  s->shift = 63;
  while (buckets * WAYS < places * 3 / 2) {
    buckets *= 2;
    s->shift--;
  }
  s->shelves_mapped = um_round_up((p->pool.count + 1) * sizeof *s->shelves, um_host_page);
  s->blocks_mapped = um_round_up(places * sizeof *s->blocks, um_host_page);
  s->table_mapped = um_round_up(buckets * WAYS * sizeof *s->table, um_host_page);
  s->seen_mapped = um_round_up(buckets * WAYS * sizeof *s->seen, um_host_page);
  if (um_memory_wait(p, bytes_of(s), atomic_load(&p->emergency), 0)) {
    free(s);
    return NULL;
  }
  s->shelves = um_memory_map(s->shelves_mapped);
  s->blocks = um_memory_map(s->blocks_mapped);
  s->table = um_memory_map(s->table_mapped);
  s->seen = um_memory_map(s->seen_mapped);
  pthread_rwlockattr_t attributes;
  pthread_rwlockattr_init(&attributes);
  pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
  pthread_rwlock_init(&s->lock, &attributes);
  pthread_rwlockattr_destroy(&attributes);
  if (s->shelves && s->blocks && s->table && s->seen) {
    s->cost_ns = COST_NS;
    return s;
  }
  um_budget_release(p, bytes_of(s));
  unmap(s);
  return NULL;
}

int um_shelves_open(um_pager *p) {
  if (atomic_load(&p->shelves))
    return 0;
  um_shelves *s = make(p), *nobody = NULL;
  if (!s)
    return -ENOMEM;
  if (atomic_compare_exchange_strong(&p->shelves, &nobody, s)) {
    atomic_fetch_add(&p->overhead, bytes_of(s));
  } else {
    um_budget_release(p, bytes_of(s));
    unmap(s);
  }
  return 0;
}

void um_shelves_destroy(um_pager *p) {
  um_shelves *s = atomic_load(&p->shelves);
  if (s)
    unmap(s);
}

void um_shelves_hold(um_pager *p) {
  pthread_rwlock_rdlock(&atomic_load(&p->shelves)->lock);
}

void um_shelves_let_go(um_pager *p) {
  pthread_rwlock_unlock(&atomic_load(&p->shelves)->lock);
}

/* Of small pages: a huge one costs its whole length at the first touch. */
void *um_shelf_buffer_take(um_pager *p) {
  void *buffer = atomic_exchange(&atomic_load(&p->shelves)->buffer, NULL);
  if (buffer || um_memory_wait(p, BUFFER, atomic_load(&p->emergency), 0))
    return buffer;
  buffer = um_memory_map(BUFFER);
  if (!buffer) {
    um_budget_release(p, BUFFER);
    return NULL;
  }
  madvise(buffer, BUFFER, MADV_NOHUGEPAGE);
  atomic_fetch_add(&p->overhead, BUFFER);
  return buffer;
}

void um_shelf_buffer_put(um_pager *p, void *buffer) {
  if (!buffer || !(buffer = atomic_exchange(&atomic_load(&p->shelves)->buffer, buffer)))
    return;
  um_memory_unmap(buffer, BUFFER);
  um_budget_uncharge(p, BUFFER);
}

static uint64_t number_of(const um_region *r) {
  return (uint64_t)r->trace_id + 1;
}

static uint64_t hash_of(const um_region *r, uint64_t block) {
  return (block ^ number_of(r) << 44) * 0x9E3779B97F4A7C15u;
}

static uint32_t *bucket_of(const um_shelves *s, const um_region *r, uint64_t block) {
  return s->table + (hash_of(r, block) >> s->shift) * WAYS;
}

void um_shelf_earn(um_region *r, const uint64_t *blocks, uint32_t count, uint64_t ns) {
  um_shelves *s = atomic_load(&r->pager->shelves);
  uint32_t again = 0;
  for (uint32_t i = 0; i < count; i++) {
    uint64_t hash = hash_of(r, blocks[i]); /* one that was read in vain does no harm */
    uint16_t sign = (uint16_t)hash | 1, *seen = &s->seen[(hash >> s->shift) * WAYS + (hash >> 16) % WAYS];
    again += __atomic_exchange_n(seen, sign, __ATOMIC_RELAXED) == sign;
  }
  int64_t earned = (int64_t)(ns / SHARE + ns * again / um_max(1, count));
  if (atomic_load(&s->credit_ns) < CREDIT_MOST * atomic_load(&s->cost_ns))
    atomic_fetch_add(&s->credit_ns, earned);
}

static const shelf *shelf_of(const um_shelves *s, uint64_t place) {
  return &s->shelves[place / UM_SHELF_BLOCKS + 1];
}

/* Behind `filled` stands what the chunk held when it was a shelf before, or what its taker is reading. */
static bool is_dead(const um_shelves *s, uint64_t place) {
  const shelf *of = shelf_of(s, place);
  return of->region == 0 || place % UM_SHELF_BLOCKS >= of->filled || s->blocks[place] == NONE;
}

static bool holds(const um_shelves *s, uint64_t place, const um_region *r, uint64_t block) {
  return s->blocks[place] == block && shelf_of(s, place)->region == number_of(r) && !is_dead(s, place);
}

const char *um_shelf_find(const um_region *r, uint64_t writes, uint64_t block) {
  const um_pager *p = r->pager;
  const um_shelves *s = atomic_load_explicit(&p->shelves, memory_order_relaxed);
  const uint32_t *bucket = bucket_of(s, r, block);
  for (uint32_t i = 0; i < WAYS; i++) {
    uint64_t place = bucket[i] - 1u;
    if (bucket[i] && holds(s, place, r, block) && shelf_of(s, place)->writes == writes)
      return (const char *)p->pool.address + place * UM_SHELF_BLOCK;
  }
  return NULL;
}

/* Its own earlier entry, a free one, one that leads nowhere, or somebody else's. */
static void note(um_shelves *s, const um_region *r, uint64_t block, uint64_t place) {
  uint32_t *bucket = bucket_of(s, r, block), *best = &bucket[place % WAYS];
  bool spare = false;
  for (uint32_t i = 0; i < WAYS; i++) {
    uint64_t other = bucket[i] - 1u;
    if (bucket[i] && holds(s, other, r, block)) {
      s->blocks[other] = NONE;
      best = &bucket[i];
      break;
    }
    if (!spare && (bucket[i] == 0 || is_dead(s, other))) {
      spare = true;
      best = &bucket[i];
    }
  }
  *best = (uint32_t)place + 1;
  s->blocks[place] = block;
}

static void append(um_shelves *s, uint32_t chunk) {
  s->shelves[chunk].newer = 0;
  *(s->newest ? &s->shelves[s->newest].newer : &s->oldest) = chunk;
  s->newest = chunk;
}

static bool remove_after(um_shelves *s, uint32_t before, uint32_t chunk) {
  if (s->shelves[chunk].taken)
    return false;
  *(before ? &s->shelves[before].newer : &s->oldest) = s->shelves[chunk].newer;
  if (s->newest == chunk)
    s->newest = before;
  return true;
}

uint32_t um_shelf_take_oldest(um_pager *p) {
  um_shelves *s = atomic_load(&p->shelves);
  if (!s)
    return 0;
  uint32_t before = 0;
  pthread_rwlock_wrlock(&s->lock);
  uint32_t chunk = s->oldest;
  for (; chunk && !remove_after(s, before, chunk); chunk = s->shelves[chunk].newer)
    before = chunk;
  if (chunk)
    s->shelves[chunk].region = 0;
  pthread_rwlock_unlock(&s->lock);
  if (chunk)
    atomic_fetch_sub(&p->pool.idle, UM_CHUNK);
  return chunk;
}

/* The region's newest shelf, if it has room and its blocks are still what they were. */
static uint32_t take_open(um_shelves *s, um_region *r, uint64_t writes, uint32_t least) {
  uint32_t chunk = r->shelf;
  shelf *open = &s->shelves[chunk];
  if (chunk == 0 || open->region != number_of(r) || open->writes != writes || open->taken ||
      UM_SHELF_BLOCKS - open->filled < least)
    return 0;
  open->taken = true;
  return chunk;
}

/* Memory is made where there is credit for it; where the budget has none, the oldest shelf goes. */
static uint32_t take_chunk(um_pager *p, um_shelves *s) {
  uint32_t chunk = um_pool_take_idle(p);
  bool credit = atomic_load(&s->credit_ns) >= atomic_load(&s->cost_ns);
  if (chunk || (!credit && um_budget_free(p) >= UM_CHUNK + atomic_load(&p->pool.idle)))
    return chunk;
  int64_t start = (int64_t)um_now_ns();
  if ((chunk = um_pool_take_new(p)) == 0)
    return um_shelf_take_oldest(p);
  int64_t cost = (int64_t)um_now_ns() - start;
  atomic_store(&s->cost_ns, cost);
  atomic_fetch_sub(&s->credit_ns, cost);
  return chunk;
}

bool um_shelf_take(um_region *r, uint64_t writes, uint32_t least, um_shelf_room *room) {
  um_pager *p = r->pager;
  um_shelves *s = atomic_load(&p->shelves);
  room->filled = 0;
  pthread_rwlock_wrlock(&s->lock);
  room->chunk = take_open(s, r, writes, least);
  if (room->chunk)
    room->filled = s->shelves[room->chunk].filled;
  pthread_rwlock_unlock(&s->lock);
  if (room->chunk)
    atomic_fetch_sub(&p->pool.idle, UM_CHUNK);
  else
    room->chunk = take_chunk(p, s);
  room->count = (uint32_t)UM_SHELF_BLOCKS - room->filled;
  if (room->chunk)
    room->bytes = (char *)um_pool_address(p, room->chunk) + (uint64_t)room->filled * UM_SHELF_BLOCK;
  return room->chunk;
}

void um_shelf_put(um_region *r, uint64_t writes, const um_shelf_room *room, const uint64_t *blocks, uint32_t count) {
  um_pager *p = r->pager;
  um_shelves *s = atomic_load(&p->shelves);
  shelf *to = &s->shelves[room->chunk];
  pthread_rwlock_wrlock(&s->lock);
  if (!to->taken) /* it was none */
    append(s, room->chunk);
  to->region = number_of(r);
  to->writes = writes;
  to->taken = false;
  to->filled = room->filled + count;
  uint64_t place = (uint64_t)(room->chunk - 1) * UM_SHELF_BLOCKS + room->filled;
  for (uint32_t i = 0; i < count; i++, place++) {
    s->blocks[place] = NONE;
    if (blocks[i] != NONE)
      note(s, r, blocks[i], place);
  }
  r->shelf = room->chunk;
  pthread_rwlock_unlock(&s->lock);
  atomic_fetch_add(&p->pool.idle, UM_CHUNK);
  um_memory_freed(p);
}
