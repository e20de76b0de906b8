/* context.h: what the pages around a miss tell; see context.c. */
#ifndef UM_CONTEXT_H
#define UM_CONTEXT_H

#include "internal.h"
#include "readahead.h"

uint64_t um_context_pages(const um_region *r); /* so many in a row make a context */
um_context um_context_at(const um_region *r, uint64_t page);

#endif
