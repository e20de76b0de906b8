/* replay.h: an idealised pager: one thread, no time passes, memory that is either full or not. It runs a file of
 * references through a policy; tests/test_eviction.py holds the simulator in Python against it. */
#ifndef UM_REPLAY_H
#define UM_REPLAY_H

#include "policy.h"

typedef struct um_replay_counts {
  uint64_t references;  /* touches, without read-ahead */
  uint64_t misses;      /* pages that came in by them */
  uint64_t late_misses; /* those of the second half */
  uint64_t refaults;    /* touches of standby runs */
  uint64_t prefetched;  /* pages that were read ahead */
  uint64_t digest;      /* of what was evicted, in its order */
} um_replay_counts;

void um_replay(const char *path, const um_policy_options *options, uint32_t page_shift, um_replay_counts *counts);

#endif
