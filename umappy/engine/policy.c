/* policy.c: the queues that all policies share, the events, and the order of victims.
 *
 * Three policies need no more than this. fifo: what came first leaves first, and victims do not wait in standby, as
 * nothing is learned there. second_chance: victims wait, and what is touched meanwhile goes to the young end; the
 * segmented FIFO of VMS (Turner and Levy, "Segmented FIFO page replacement", SIGMETRICS 1981). mru: what came last
 * leaves first, for scans that come round again over more than fits: what is kept from the first round is hit in every
 * other (Chou and DeWitt, "An evaluation of buffer management strategies for relational database systems", VLDB 1985);
 * it never lets go of what it holds, so it suits nothing else. */
#include "policy_internal.h"

#define AHEAD_PART 8u   /* what was read ahead may take 1 / so much of the memory ... */
#define AHEAD_STEPS 16u /* ... while 1 / so much of the memory is evicted, ... */
#define AHEAD_AGE 4u    /* ... so many times */
#define MOVES 2u        /* runs that are moved out for one that is evicted: the queues change shape gradually */

const um_policy_rules um_rules_plain;
static const um_policy_rules newest_first = {.newest_first = true};

typedef struct policy_kind {
  const um_policy_rules *rules; /* NULL: auto */
  bool ghosts, frequencies;
  uint32_t small_share, standby_share, ghost_share; /* defaults */
} policy_kind;

static const policy_kind kinds[] = {
    [UM_POLICY_AUTO] = {NULL, true, true, 102, 192, 1024},
    [UM_POLICY_FIFO] = {&um_rules_plain, false, false, 0, 0, 0},
    [UM_POLICY_SECOND_CHANCE] = {&um_rules_plain, false, false, 0, 256, 0},
    [UM_POLICY_S3FIFO] = {&um_rules_s3fifo, true, false, 102, 192, 1024},
    [UM_POLICY_MRU] = {&newest_first, false, false, 0, 0, 0},
};
#define KINDS (sizeof kinds / sizeof *kinds)

void um_policy_defaults(uint32_t kind, um_policy_options *options) {
  options->kind = kind;
  options->standby_run = 0;
  options->small_share = kinds[kind].small_share;
  options->standby_share = kinds[kind].standby_share;
  options->ghost_share = kinds[kind].ghost_share;
}

static bool is_valid(const um_policy_options *o) {
  return o->kind < KINDS && o->memory >= UM_PAGE_SIZE_MIN && o->memory / UM_PAGE_SIZE_MIN <= UINT32_MAX &&
         o->small_share < UM_POLICY_WHOLE && o->standby_share < UM_POLICY_WHOLE &&
         o->small_share + o->standby_share < UM_POLICY_WHOLE && o->ghost_share <= 16 * UM_POLICY_WHOLE;
}

uint64_t um_policy_memory(const um_policy_options *options) {
  const policy_kind *kind = &kinds[options->kind];
  return um_round_up(sizeof(um_policy), um_host_page) + (kind->ghosts ? um_ghosts_memory(options) : 0) +
         (kind->frequencies ? um_frequencies_memory(options) : 0);
}

int um_policy_create(const um_policy_options *options, um_frame *frames, um_policy **policy) {
  if (!is_valid(options))
    return -EINVAL;
  const policy_kind *kind = &kinds[options->kind];
  um_policy *p = calloc(1, sizeof *p);
  if (!p)
    return -ENOMEM;
  p->options = *options;
  p->frames = frames;
  p->group_count = 1;
  p->groups[0].share = UM_GROUP_SHARES;
  p->groups[0].rules = kind->rules;
  if (!kind->rules)
    um_auto_create(p);
  int code = kind->ghosts ? um_ghosts_create(&p->ghosts, options) : 0;
  if (code == 0 && kind->frequencies)
    code = um_frequencies_create(&p->frequencies, options);
  if (code) {
    um_policy_destroy(p);
    return code;
  }
  *policy = p;
  return 0;
}

void um_policy_destroy(um_policy *p) {
  um_ghosts_destroy(&p->ghosts);
  um_frequencies_destroy(&p->frequencies);
  free(p);
}

/* A frame's `queue`: 0, or 1 + group * segments + segment. */
static um_policy_group *group_at(um_policy *p, uint32_t at) {
  return &p->groups[(at - 1) / UM_SEGMENTS];
}
static enum um_segment segment_at(uint32_t at) {
  return (at - 1) % UM_SEGMENTS;
}
static um_policy_queue *queue_at(um_policy *p, uint32_t at) {
  return &group_at(p, at)->queues[segment_at(at)];
}
static bool is_resident(uint32_t at) {
  return at && segment_at(at) < UM_SEGMENT_AHEAD;
}
static bool is_standby(uint32_t at) {
  return at && !is_resident(at);
}

static void unlink_run(um_policy *p, um_frame_id id) {
  um_frame *f = &p->frames[id];
  um_policy_queue *q = queue_at(p, f->queue);
  uint64_t bytes = um_frame_bytes(f);
  *(f->prev ? &p->frames[f->prev].next : &q->head) = f->next;
  *(f->next ? &p->frames[f->next].prev : &q->tail) = f->prev;
  UM_ASSERT(q->bytes >= bytes);
  q->bytes -= bytes;
  group_at(p, f->queue)->bytes -= bytes;
  f->prev = f->next = UM_NIL;
  f->queue = 0;
}

static void link_run(um_policy *p, um_policy_group *g, um_frame_id id, enum um_segment segment) {
  um_frame *f = &p->frames[id];
  um_policy_queue *q = &g->queues[segment];
  uint64_t bytes = um_frame_bytes(f);
  f->prev = q->tail;
  f->next = UM_NIL;
  *(q->tail ? &p->frames[q->tail].next : &q->head) = id;
  q->tail = id;
  q->bytes += bytes;
  g->bytes += bytes;
  f->queue = (uint8_t)(1 + (g - p->groups) * UM_SEGMENTS + segment);
}

void um_policy_move(um_policy *p, um_policy_group *g, um_frame_id id, enum um_segment segment) {
  unlink_run(p, id);
  link_run(p, g, id, segment);
}

static enum um_segment enter(um_policy *p, um_policy_group *g, um_frame *f, bool ghost) {
  return g->rules->enter ? g->rules->enter(p, g, f, ghost) : UM_SEGMENT_MAIN;
}

/* When it was read ahead, in steps of eviction; it comes round, but the oldest is looked at all the time. */
static uint8_t ahead_step(const um_policy *p) {
  return (uint8_t)(p->clock / (p->options.memory / AHEAD_STEPS + 1));
}

static enum um_segment leave(const um_policy_group *g, enum um_segment from) {
  return g->rules->leave ? g->rules->leave(from) : UM_SEGMENT_STANDBY;
}

static um_policy_group *find_group(um_policy *p, const um_frame *f) {
  return &p->groups[p->group_count > 1 ? um_auto_group(f) : 0];
}

void um_policy_insert(um_policy *p, um_frame_id id, bool prefetched) {
  um_frame *f = &p->frames[id];
  UM_ASSERT(f->queue == 0);
  um_policy_group *g = find_group(p, f);
  bool ghost = p->ghosts.buckets && um_ghosts_take(&p->ghosts, f);
  if (p->frequencies.buckets)
    um_frequencies_count(&p->frequencies, f, 1);
  um_auto_missed(p, (uint32_t)(g - p->groups), um_frame_bytes(f));
  f->heat = prefetched ? ahead_step(p) : 0;
  uint8_t proof = !ghost ? 0 : prefetched ? UM_TRAIL_GHOST : UM_TRAIL_PROVEN;
  f->trail = prefetched ? UM_TRAIL_AHEAD | proof : proof;
  if (prefetched) /* in one place, as a window may be larger than what a contender has */
    link_run(p, &p->groups[0], id, UM_SEGMENT_AHEAD);
  else
    link_run(p, g, id, enter(p, g, f, ghost));
}

void um_policy_refault(um_policy *p, um_frame_id id) {
  um_frame *f = &p->frames[id];
  UM_ASSERT(is_standby(f->queue));
  um_policy_group *g = group_at(p, f->queue);
  enum um_segment from = segment_at(f->queue), to = UM_SEGMENT_MAIN;
  if (from == UM_SEGMENT_AHEAD) {
    f->heat = 0;
    g = find_group(p, f);
    to = enter(p, g, f, f->trail & UM_TRAIL_GHOST);
  } else {
    if (p->frequencies.buckets)
      um_frequencies_count(&p->frequencies, f, f->trail & UM_TRAIL_AHEAD ? 1 : 2);
    if (g->rules->again)
      to = g->rules->again(p, g, f, from);
  }
  bool proves = from != UM_SEGMENT_AHEAD || f->trail & UM_TRAIL_GHOST;
  f->trail = (uint8_t)((f->trail & UM_TRAIL_LASTING) | (proves ? UM_TRAIL_PROVEN : 0));
  um_policy_move(p, g, id, to);
}

void um_policy_standby(um_policy *p, um_frame_id id) {
  um_frame *f = &p->frames[id];
  UM_ASSERT(is_resident(f->queue));
  um_policy_group *g = group_at(p, f->queue);
  enum um_segment from = segment_at(f->queue);
  f->trail = (uint8_t)((f->trail & UM_TRAIL_LASTING) | (from == UM_SEGMENT_MAIN ? UM_TRAIL_MAIN : 0));
  g->moved++;
  um_policy_move(p, g, id, leave(g, from));
}

void um_policy_evicted(um_policy *p, um_frame_id id) {
  um_frame *f = &p->frames[id];
  UM_ASSERT(f->queue);
  um_policy_group *g = group_at(p, f->queue);
  g->moved = 0;
  g->direct = is_resident(f->queue) ? g->direct + um_frame_bytes(f) : 0;
  p->clock += um_frame_bytes(f);
  if (p->ghosts.buckets && segment_at(f->queue) != UM_SEGMENT_AHEAD)
    um_ghosts_note(&p->ghosts, f);
  unlink_run(p, id);
}

void um_policy_remove(um_policy *p, um_frame_id id) {
  if (p->frames[id].queue)
    unlink_run(p, id);
}

static bool has_resident(const um_policy_group *g) {
  return g->queues[UM_SEGMENT_SMALL].head || g->queues[UM_SEGMENT_MAIN].head;
}
static bool has_standby(const um_policy_group *g) {
  return g->queues[UM_SEGMENT_AHEAD].head || g->queues[UM_SEGMENT_TRIAL].head || g->queues[UM_SEGMENT_STANDBY].head;
}

/* The group most above its share, of those that have any; NULL: none has. */
static um_policy_group *fullest(const um_policy *p, bool (*has)(const um_policy_group *)) {
  const um_policy_group *most = NULL;
  for (const um_policy_group *g = p->groups; g < p->groups + p->group_count; g++)
    if (has(g) && (!most || g->bytes * most->share > most->bytes * g->share))
      most = g;
  return (um_policy_group *)most;
}

bool um_policy_keeps(const um_policy *p, um_frame_id id) {
  return p->options.standby_share > 0 && um_frame_bytes(&p->frames[id]) >= p->options.standby_run;
}

bool um_policy_in_standby(const um_policy *p, um_frame_id id) {
  return is_standby(p->frames[id].queue);
}

bool um_policy_is_new(const um_policy *p, um_frame_id id) {
  uint32_t at = p->frames[id].queue;
  return at && segment_at(at) == UM_SEGMENT_SMALL;
}

bool um_policy_is_proven(const um_policy *p, um_frame_id id) {
  const um_frame *f = &p->frames[id];
  return is_resident(f->queue) && f->trail & UM_TRAIL_PROVEN;
}

/* What was read ahead goes when it is too much, or nobody came for long. */
static bool is_ahead_stale(const um_policy *p, const um_policy_group *g) {
  const um_policy_queue *ahead = &g->queues[UM_SEGMENT_AHEAD];
  if (!ahead->head)
    return false;
  return ahead->bytes > g->bytes / AHEAD_PART || (uint8_t)(ahead_step(p) - p->frames[ahead->head].heat) >= AHEAD_AGE;
}

/* Where some runs cannot wait, those that do still leave at the same rate. */
static bool is_turn_of_standby(const um_policy *p, const um_policy_group *g) {
  const um_policy_queue *q = g->queues, *waits = &q[q[UM_SEGMENT_STANDBY].head ? UM_SEGMENT_STANDBY : UM_SEGMENT_TRIAL];
  uint64_t page = UM_PAGE_SIZE_MIN, waiting = q[UM_SEGMENT_TRIAL].bytes + q[UM_SEGMENT_STANDBY].bytes;
  uint64_t resident = q[UM_SEGMENT_SMALL].bytes + q[UM_SEGMENT_MAIN].bytes;
  return g->direct &&
         g->direct / page * (waiting / page) >= resident / page * (um_frame_bytes(&p->frames[waits->head]) / page);
}

static bool is_standby_full(const um_policy *p, const um_policy_group *g, bool ahead) {
  if (!has_standby(g))
    return false;
  if (!has_resident(g) || (ahead && is_ahead_stale(p, g)))
    return true;
  uint64_t bytes = g->queues[UM_SEGMENT_TRIAL].bytes + g->queues[UM_SEGMENT_STANDBY].bytes;
  if (bytes == 0)
    return false;
  if (g->moved >= MOVES || is_turn_of_standby(p, g) || p->options.standby_share == 0)
    return true;
  return g->rules->standby_full ? g->rules->standby_full(p, g) : bytes >= um_group_part(g, p->options.standby_share);
}

/* The group from which something is to leave, one way or the other. */
static um_policy_group *leaving(const um_policy *p) {
  um_policy_group *resident = fullest(p, has_resident), *standby = fullest(p, has_standby);
  if (!resident || !standby)
    return resident ? resident : standby;
  return standby->bytes * resident->share >= resident->bytes * standby->share ? standby : resident;
}

bool um_policy_standby_full(const um_policy *p, bool ahead) {
  const um_policy_group *g = leaving(p);
  return g && is_standby_full(p, g, ahead);
}

static um_frame_id first_of(const um_policy_group *g, enum um_segment segment) {
  return g->rules->newest_first ? g->queues[segment].tail : g->queues[segment].head;
}

static enum um_segment choose(um_policy *p, um_policy_group *g) {
  if (g->rules->choose)
    return g->rules->choose(p, g);
  return g->queues[UM_SEGMENT_SMALL].head ? UM_SEGMENT_SMALL : UM_SEGMENT_MAIN;
}

um_frame_id um_policy_next(um_policy *p, um_frame_id id) {
  uint32_t at = p->frames[id].queue;
  if (id == UM_NIL || !is_resident(at)) {
    um_policy_group *g = fullest(p, has_resident);
    p->sweep = 0;
    return g ? first_of(g, choose(p, g)) : UM_NIL;
  }
  um_frame_id next = group_at(p, at)->rules->newest_first ? p->frames[id].prev : p->frames[id].next;
  while (next == UM_NIL && p->sweep < p->group_count * UM_SEGMENTS)
    if (is_resident(++p->sweep))
      next = first_of(group_at(p, p->sweep), segment_at(p->sweep));
  return next;
}

static bool has_victims(const um_policy_group *g) {
  return g->queues[UM_SEGMENT_TRIAL].head || g->queues[UM_SEGMENT_STANDBY].head;
}

static enum um_segment choose_victims(um_policy *p, um_policy_group *g) {
  if (g->rules->choose_standby)
    return g->rules->choose_standby(p, g);
  return g->queues[UM_SEGMENT_TRIAL].head ? UM_SEGMENT_TRIAL : UM_SEGMENT_STANDBY;
}

static enum um_segment choose_standby(um_policy *p, um_policy_group *g) {
  return !has_victims(g) || is_ahead_stale(p, g) ? UM_SEGMENT_AHEAD : choose_victims(p, g);
}

um_frame_id um_policy_standby_next(um_policy *p, um_frame_id id) {
  uint32_t at = p->frames[id].queue;
  if (id == UM_NIL || !is_standby(at)) {
    um_policy_group *g = fullest(p, has_standby);
    p->standby_sweep = 0;
    return g ? g->queues[choose_standby(p, g)].head : UM_NIL;
  }
  um_policy_group *g = group_at(p, at);
  if (segment_at(at) == UM_SEGMENT_AHEAD && p->standby_sweep == 0 && has_victims(g))
    return g->queues[choose_victims(p, g)].head; /* what else was read ahead is younger */
  um_frame_id next = p->frames[id].next;
  while (next == UM_NIL && p->standby_sweep < p->group_count * UM_SEGMENTS)
    if (is_standby(++p->standby_sweep))
      next = queue_at(p, p->standby_sweep)->head;
  return next;
}

void um_policy_measure(const um_policy *p, um_policy_bytes *bytes) {
  *bytes = (um_policy_bytes){.winner = p->winner};
  for (uint32_t i = 0; i < p->group_count; i++) {
    const um_policy_queue *q = p->groups[i].queues;
    bytes->small += q[UM_SEGMENT_SMALL].bytes;
    bytes->main += q[UM_SEGMENT_MAIN].bytes;
    bytes->standby += q[UM_SEGMENT_AHEAD].bytes + q[UM_SEGMENT_TRIAL].bytes + q[UM_SEGMENT_STANDBY].bytes;
  }
}
