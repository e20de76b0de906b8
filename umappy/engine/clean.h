/* clean.h: writing dirty pages back ahead of need. */
#ifndef UM_CLEAN_H
#define UM_CLEAN_H

#include "internal.h"

#define UM_CLEAN_AGE_NS 5000000u /* who writes a page piece by piece has done so by then, mostly */
#define UM_CLEAN_REST_MS 200u
#define UM_CLEAN_YOUNG_MS 2u /* until those that are too young are looked at again */

enum um_cleaning {
  UM_CLEAN_NOTHING, /* nobody asked, or little is dirty */
  UM_CLEAN_REST,    /* what is dirty cannot be cleaned, or it is of no use: not for UM_CLEAN_REST_MS */
  UM_CLEAN_YOUNG,   /* what is dirty is too young */
  UM_CLEANED,
};

bool um_clean_wanted(const um_region *r);               /* of a region that is being made */
void um_clean_ask(um_region *r);                        /* a page of it becomes dirty; inside the gate */
void um_clean_written_again(um_region *r, um_frame *f); /* a run that is clean, or on standby */
enum um_cleaning um_clean_step(um_worker *w);           /* an evictor; pager->lock held; let go inside */

#endif
