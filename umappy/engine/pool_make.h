/* pool_make.h: see pool_make.c. */
#ifndef UM_POOL_MAKE_H
#define UM_POOL_MAKE_H

#include "pool.h"

void um_pool_make_init(um_pool *pool, uintptr_t fresh); /* UM_FRESH chunks, advised to be huge */
int um_pool_make(um_pager *p, uint32_t chunk);          /* memory behind an EMPTY one; it is reserved already */
void um_pool_save(um_pool *pool);                       /* a chunk was taken */
/* FULL, of small pages and the caller's. Returned: it is, of small pages or a huge one; 0: it is not any more. */
uint32_t um_pool_renew(um_pager *p, uint32_t chunk);
bool um_pool_renew_step(um_pager *p); /* pager->lock held, let go of inside; false: nothing to do */

#endif
