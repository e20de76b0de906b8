/* store_wrapper.h: a store before another store, which it owns.
 *
 * Closing a wrapper closes the inner store. Its own memory lives until the last reference is gone: whoever holds one
 * may still change its options or read its counts while a region uses, or has closed, the store. */
#ifndef UM_STORE_WRAPPER_H
#define UM_STORE_WRAPPER_H

#include "store.h"

#include <stdatomic.h>

/* The first member of every wrapper. */
typedef struct um_wrapper {
  um_store store;
  um_store *inner;             /* owned; gone after close */
  void (*free)(um_store *);    /* of the whole wrapper; constant */
  _Atomic uint32_t references; /* one of the open store, one for each retain */
} um_wrapper;

void um_wrapper_init(um_wrapper *wrapper, const um_store_ops *ops, um_store *inner, void (*free)(um_store *));
int um_wrapper_close(um_store *store, um_error *error);     /* for the table of calls */
void um_wrapper_forked(um_store *store);                    /* likewise */
uint64_t um_wrapper_limit(um_store *store, uint64_t bytes); /* likewise */

#endif
