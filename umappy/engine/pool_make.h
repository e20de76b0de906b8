/* pool_make.h: see pool_make.c. */
#ifndef UM_POOL_MAKE_H
#define UM_POOL_MAKE_H

#include "pool.h"

void um_pool_make_init(um_pool *pool);
int um_pool_make(um_pager *p, uint32_t chunk);  /* memory behind an EMPTY one; it is reserved already */
int um_pool_renew(um_pager *p, uint32_t chunk); /* FULL and the caller's; failed: EMPTY, its memory still reserved */

#endif
