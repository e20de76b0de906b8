/* pool.h: chunks, 2 MiB of memory each, huge pages where the kernel gives them. A store reads straight into one; where
 * the kernel can (UFFDIO_MOVE) that very memory is then moved into a region, and out of it into a chunk again, so that
 * a stream goes round with the same warm memory, without a copy.
 *
 * A chunk is EMPTY (an address, nothing behind it), FULL and unused, or FULL and somebody's: only its owner touches it.
 * EMPTY ones are never touched: they are registered with the uffd as regions are, and would fault.
 *
 * Beside the chunks there are slots, addresses for shorter runs that wait on standby: one for each descriptor and
 * power of two of bytes, so that none is ever searched for. */
#ifndef UM_POOL_H
#define UM_POOL_H

#include "internal.h"

int um_pool_create(um_pager *p);
void um_pool_destroy(um_pager *p);
uintptr_t um_pool_address(const um_pager *p, uint32_t chunk);

uint32_t um_pool_take_idle(um_pager *p);             /* unused, a huge page if there is one; 0: none */
uint32_t um_pool_take_huge(um_pager *p);             /* unused and a huge page; 0: none */
uint32_t um_pool_take_new(um_pager *p);              /* new memory where the budget has it; 0: it has not */
uint32_t um_pool_take_full(um_pager *p);             /* either, or the oldest shelf (shelf.h); 0: none */
uint32_t um_pool_take_empty(um_pager *p);            /* 0: none */
void um_pool_put_full(um_pager *p, uint32_t chunk);  /* um_memory_freed is the caller's to call, without locks */
void um_pool_list(um_pager *p, uint32_t chunk);      /* the same of one that is counted as idle already */
void um_pool_put_empty(um_pager *p, uint32_t chunk); /* its memory was moved away */
void um_pool_clear(um_pager *p, uint32_t chunk); /* FULL, or in part: its memory goes back to the kernel, then EMPTY */
void um_pool_drop(um_pager *p, uintptr_t address, uint64_t length);        /* a part of a chunk, likewise */
uintptr_t um_pool_slot(const um_pager *p, um_frame_id id, uint64_t bytes); /* 0: there is none */
void um_pool_unlock(um_pager *p);
bool um_pool_fault(um_pager *p, uintptr_t address); /* of somebody who touches all memory; false: it is not ours */
bool um_pool_trim(um_pager *p); /* an unused chunk's memory back to the budget; false: there is none */

#endif
