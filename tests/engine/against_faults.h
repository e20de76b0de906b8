/* against_faults.h: two threads read and write single words while two others prefetch. */
#ifndef UM_AGAINST_FAULTS_H
#define UM_AGAINST_FAULTS_H

#include "rig.h"

typedef struct user {
  rig *rig;
  uint64_t random, turns;
  _Atomic bool stop;
} user;

/* `prefetch_on` is given a user, and counts its turns until it is to stop. The budget has room for so many pages more
 * than it must. */
void against_faults(uint32_t fillers, uint64_t spare, void *(*prefetch_on)(void *user));

#endif
