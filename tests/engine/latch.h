/* latch.h: a store before another store that stops at a call until the test lets it go on, so that a race can be put
 * together step by step. */
#ifndef UM_LATCH_H
#define UM_LATCH_H

#include "store.h"

typedef struct latch latch;

/* Owns `inner`; closing it closes both. */
um_store *latch_open(um_store *inner);

void latch_arm(um_store *store, int op); /* the next call of this UM_OP_... stops before it reaches the inner store */
void latch_wait(um_store *store);        /* until a call has stopped */
void latch_release(um_store *store);     /* it goes on; the latch is disarmed */
uint64_t latch_changed(um_store *store); /* writes whose bytes changed while they were stopped */
uint64_t latch_calls(um_store *store, int op); /* calls that reached the latch */

#endif
