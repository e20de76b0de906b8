/* policy.h: which run of pages leaves memory next.
 *
 * The engine tells what happens to a run (a frame descriptor: adjacent pages that came together), the policy keeps runs
 * in queues and names victims. A hit in resident memory is seen by nobody, so there are two kinds of proof: a run that
 * was moved out to standby and touched there (um_policy_refault), and a miss on pages that left not long ago (a ghost).
 *
 * All calls happen under pager->frames_lock, take no lock, make no system call, allocate nothing and do a bounded
 * amount of work. Making room goes like this; a victim that is busy is passed over by um_policy_next(policy, id):
 *
 *     while (memory is short)
 *       if (um_policy_standby_full(policy, true))
 *         id = um_policy_standby_next(policy, 0), give up its memory, um_policy_evicted(policy, id);
 *       else if (id = um_policy_next(policy, 0), um_policy_keeps(policy, id))
 *         move it out, um_policy_standby(policy, id);
 *       else
 *         drop it, um_policy_evicted(policy, id);
 */
#ifndef UM_POLICY_H
#define UM_POLICY_H

#include "internal.h"

#define UM_POLICY_WHOLE 1024u /* shares are in parts of this */

typedef struct um_policy_options {
  uint32_t kind;          /* UM_POLICY_... */
  uint64_t memory;        /* bytes that runs can take, resident and standby together; need not be exact */
  uint32_t small_share;   /* s3fifo, auto: of memory, for runs that have proved nothing */
  uint32_t standby_share; /* of memory, for victims in standby; 0: the kernel cannot move pages out */
  uint64_t standby_run;   /* bytes: smaller runs cannot wait in standby, and are evicted directly */
  uint32_t ghost_share;   /* s3fifo, auto: as many bytes of evictions as this of memory are remembered */
} um_policy_options;

typedef struct um_policy um_policy;

typedef struct um_policy_bytes {
  uint64_t small, main, standby; /* bytes of runs; small only in s3fifo and auto */
  uint32_t winner;               /* auto: the rules in force: 1 s3fifo, 2 lfu, 3 second_chance */
} um_policy_bytes;

void um_policy_defaults(uint32_t kind, um_policy_options *options); /* the shares; memory is the caller's */
uint64_t um_policy_memory(const um_policy_options *options);        /* bytes of its own that um_policy_create takes */
int um_policy_create(const um_policy_options *options, um_frame *frames, um_policy **policy);
void um_policy_destroy(um_policy *policy);

/* Events. `id` is in no queue before insert, and in none after evicted and remove. While it is in a queue its region,
 * page and count stay. */

/* A miss was filled. Read ahead: nobody touched it yet, and it waits in standby, safe from the first eviction; its
 * first touch is a refault to the engine and proves nothing. */
void um_policy_insert(um_policy *policy, um_frame_id id, bool prefetched);
/* A standby run was touched and is resident again. */
void um_policy_refault(um_policy *policy, um_frame_id id);
/* A victim was moved out. */
void um_policy_standby(um_policy *policy, um_frame_id id);
/* Its memory is given up, from standby or directly. */
void um_policy_evicted(um_policy *policy, um_frame_id id);
/* It is gone for another reason: dropped, closed. Nothing where it is in no queue. */
void um_policy_remove(um_policy *policy, um_frame_id id);

/* Choices; 0 asks for the first, and is the answer after the last. Asking for the first may move runs between queues. A
 * walk visits each run, some twice; when the run handed in has been taken it begins anew. So: hand in 0 after taking
 * one, and the run itself after passing it over. */

/* Resident runs, in the order they should leave. */
um_frame_id um_policy_next(um_policy *policy, um_frame_id id);
/* Standby runs, in the order they should be given up. */
um_frame_id um_policy_standby_next(um_policy *policy, um_frame_id id);
/* Give up standby now, before more is moved out. `ahead`: what was read ahead may go, too. */
bool um_policy_standby_full(const um_policy *policy, bool ahead);
/* This victim should wait in standby; else, or where it cannot after all, it is evicted directly. */
bool um_policy_keeps(const um_policy *policy, um_frame_id id);
/* Resident, and nothing speaks for it yet. */
bool um_policy_is_new(const um_policy *policy, um_frame_id id);
/* Resident, and it was used again, on standby or as a ghost, since it came. */
bool um_policy_is_proven(const um_policy *policy, um_frame_id id);
bool um_policy_in_standby(const um_policy *policy, um_frame_id id);

void um_policy_measure(const um_policy *policy, um_policy_bytes *bytes);

#endif
