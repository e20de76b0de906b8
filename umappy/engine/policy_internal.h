/* policy_internal.h: what the policies share.
 *
 * Runs live in groups, each with a share of the memory and four queues of its own; the group most above its share gives
 * the next victim. Rules say how runs go from queue to queue; auto has a group for each of the rules it tries, every
 * other policy has one group. */
#ifndef UM_POLICY_INTERNAL_H
#define UM_POLICY_INTERNAL_H

#include "policy.h"

/* The first two are resident, the others standby; what was read ahead and not touched yet waits in ahead. */
enum um_segment {
  UM_SEGMENT_SMALL,
  UM_SEGMENT_MAIN,
  UM_SEGMENT_AHEAD,
  UM_SEGMENT_TRIAL,
  UM_SEGMENT_STANDBY,
  UM_SEGMENTS,
};

#define UM_GROUPS 4u
#define UM_GROUP_SHARES 32u /* a group's share is in parts of this */

#define UM_TRAIL_GHOST 1u  /* its pages were a ghost when they were read ahead */
#define UM_TRAIL_MAIN 2u   /* it was in main before it went to standby */
#define UM_TRAIL_AHEAD 4u  /* it was read ahead */
#define UM_TRAIL_PROVEN 8u /* it was used again */
#define UM_TRAIL_LASTING (UM_TRAIL_AHEAD | UM_TRAIL_PROVEN)

typedef struct um_policy_rules um_policy_rules;

typedef struct um_policy_queue {
  um_frame_id head, tail; /* oldest, youngest */
  uint64_t bytes;
} um_policy_queue;

typedef struct um_policy_group {
  const um_policy_rules *rules;
  um_policy_queue queues[UM_SEGMENTS];
  uint64_t bytes;  /* of all queues */
  uint32_t share;  /* of UM_GROUP_SHARES; constant */
  uint32_t moved;  /* runs moved out since one was evicted */
  uint64_t direct; /* bytes evicted without standby since one was evicted from there */
  uint64_t room;   /* lfu: bytes that it may hold; 0: it has not looked yet */
} um_policy_group;

/* NULL: the plain rule, which alone is first in, first out. */
struct um_policy_rules {
  bool newest_first; /* victims are taken from the young end */
  enum um_segment (*enter)(um_policy *p, um_policy_group *g, um_frame *f, bool ghost);           /* main */
  enum um_segment (*again)(um_policy *p, um_policy_group *g, um_frame *f, enum um_segment from); /* main */
  enum um_segment (*leave)(enum um_segment from);                                                /* standby */
  enum um_segment (*choose)(um_policy *p, um_policy_group *g); /* resident victims: small, if there are, or main */
  enum um_segment (*choose_standby)(um_policy *p, um_policy_group *g); /* trial, if there are, or standby */
  bool (*standby_full)(const um_policy *p, const um_policy_group *g);  /* more bytes than the share */
};

/* Pages that left lately; policy_ghost.c */
#define UM_GHOST_WAYS 16u
typedef struct um_ghost_bucket {
  uint16_t tags[UM_GHOST_WAYS]; /* 0: free */
  uint16_t stamps[UM_GHOST_WAYS];
} um_ghost_bucket;

typedef struct um_ghosts {
  um_ghost_bucket *buckets; /* NULL: none are kept */
  uint32_t bucket_count;
  uint32_t reach; /* steps of a stamp for which a ghost counts */
  uint64_t unit;  /* bytes of evictions that make one step */
  uint64_t clock; /* bytes ever evicted */
} um_ghosts;

/* How often pages were asked for; policy_frequency.c */
#define UM_FREQUENCY_WAYS 32u
#define UM_FREQUENCY_MAX 15u
typedef struct um_frequencies {
  uint16_t (*buckets)[UM_FREQUENCY_WAYS]; /* NULL: nothing is counted */
  uint32_t bucket_count;
  uint32_t hand; /* the next bucket whose counts are halved */
  uint64_t pace; /* bytes that are counted while it moves one on */
  uint64_t owed; /* bytes counted since it moved */
} um_frequencies;

struct um_policy {
  um_policy_options options; /* constant, and so the next two */
  um_frame *frames;
  uint32_t group_count;
  um_policy_group groups[UM_GROUPS];
  um_ghosts ghosts;
  um_frequencies frequencies;
  uint32_t sweep, standby_sweep; /* um_policy_next: the queue of its round through all; 0: not there yet */
  uint64_t clock;                /* bytes ever evicted */
  uint64_t lag[UM_GROUPS];       /* auto: misses of a contender above those of the best, in small pages */
  uint64_t usual;                /* auto: pages of a usual miss, times USUAL_OVER */
  uint32_t winner;               /* auto: the contender whose rules all others follow */
};

/* policy.c */
static inline uint64_t um_frame_bytes(const um_frame *f) {
  return um_run_memory(f->region, f->page, um_max(f->count, 1));
}
/* A share of the group's memory, without what was read ahead. */
static inline uint64_t um_group_part(const um_policy_group *g, uint32_t share) {
  return (g->bytes - g->queues[UM_SEGMENT_AHEAD].bytes) / UM_POLICY_WHOLE * share;
}
void um_policy_move(um_policy *p, um_policy_group *g, um_frame_id id, enum um_segment segment); /* to its young end */

/* policy_key.c: a run in tables of fixed size */
typedef struct um_policy_keys {
  uint64_t next, end, step; /* pages */
} um_policy_keys;
um_policy_keys um_policy_keys_of(const um_frame *f);
bool um_policy_keys_next(um_policy_keys *keys, const um_frame *f, uint64_t *hash);
uint64_t um_policy_hash(uint64_t key);
uint64_t um_policy_page_key(const um_frame *f, uint64_t page); /* unique to the page in this process */
static inline uint32_t um_policy_bucket(uint64_t hash, uint32_t bucket_count) {
  return (uint32_t)((hash >> 32) * bucket_count >> 32);
}

/* policy_ghost.c */
uint64_t um_ghosts_memory(const um_policy_options *options);
int um_ghosts_create(um_ghosts *ghosts, const um_policy_options *options);
void um_ghosts_destroy(um_ghosts *ghosts);
bool um_ghosts_take(um_ghosts *ghosts, const um_frame *f); /* was it one? It is none any more */
void um_ghosts_note(um_ghosts *ghosts, const um_frame *f); /* evicted: it is one from now on */

/* policy_frequency.c */
uint64_t um_frequencies_memory(const um_policy_options *options);
int um_frequencies_create(um_frequencies *frequencies, const um_policy_options *options);
void um_frequencies_destroy(um_frequencies *frequencies);
void um_frequencies_count(um_frequencies *frequencies, const um_frame *f, uint32_t by);
uint32_t um_frequencies_look(const um_frequencies *frequencies, const um_frame *f);

/* policy_s3fifo.c, policy_lfu.c */
extern const um_policy_rules um_rules_s3fifo, um_rules_lfu;

/* policy_auto.c */
void um_auto_create(um_policy *p);
uint32_t um_auto_group(const um_frame *f);
void um_auto_missed(um_policy *p, uint32_t group, uint64_t bytes);

extern const um_policy_rules um_rules_plain; /* policy.c */

#endif
