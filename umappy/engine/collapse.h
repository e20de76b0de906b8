/* collapse.h: huge pages for what stays in memory. */
#ifndef UM_COLLAPSE_H
#define UM_COLLAPSE_H

#include "internal.h"

void um_collapse_init(um_pager *p);
bool um_collapse_wanted(const um_region *r); /* of a region that is being made */
uint64_t um_collapse_step(um_worker *w);     /* as um_clean_step */

#endif
