/* states.h: the states a crash may leave of a file in memory (zmemory.h).
 *
 * Since the last sync a number of changes were made: of those that wrote bytes, or punched them out, each sector
 * survives or not, whatever becomes of the others, or is garbage where the device tears sectors; of the lengths the
 * file had, any may be the one that is left, and what is behind it is gone. A sector that was written twice has any of
 * its versions. */
#ifndef UM_STATES_H
#define UM_STATES_H

#include "zmemory.h"

typedef struct states {
  const zmemory *memory;
  uint64_t *units; /* of each: change << 32 | sector of it */
  uint64_t unit_count, unit_room;
  uint64_t *lengths; /* the file may have; the last is what it has */
  uint64_t length_count, length_room;
} states;

void states_find(states *s, const zmemory *memory); /* again and again with the same s, zero at first */
void states_free(states *s);
uint64_t states_offset(const states *s, uint64_t unit); /* in the file */

enum { STATES_LOST, STATES_SURVIVED, STATES_GARBAGE };

/* The state in which survives[i] became of unit i, and the length is lengths[length]. */
zmemory *states_make(const states *s, const uint8_t *survives, uint64_t length);

#endif
