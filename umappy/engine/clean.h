/* clean.h: writing dirty pages back ahead of need. */
#ifndef UM_CLEAN_H
#define UM_CLEAN_H

#include "internal.h"

#define UM_CLEAN_AGE_NS 5000000u /* who writes a page piece by piece has done so by then, mostly */

bool um_clean_wanted(const um_region *r);               /* of a region that is being made */
void um_clean_ask(um_region *r);                        /* a page of it becomes dirty; inside the gate */
void um_clean_written_again(um_region *r, um_frame *f); /* a run that is clean, or on standby */
/* An evictor's; pager->lock held. 0: something was done, and the lock let go of meanwhile: look at everything again.
 * Else nanoseconds until there may be something to do. */
uint64_t um_clean_step(um_worker *w);

#endif
