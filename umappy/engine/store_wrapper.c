/* store_wrapper.c: what the wrappers share. */
#include "store_wrapper.h"

void um_wrapper_init(um_wrapper *wrapper, const um_store_ops *ops, um_store *inner, void (*free)(um_store *)) {
  wrapper->store.ops = ops;
  wrapper->store.size = inner->size;
  wrapper->store.writable = inner->writable;
  wrapper->store.computes = inner->computes;
  wrapper->inner = inner;
  wrapper->free = free;
  atomic_init(&wrapper->references, 1);
}

void um_wrapper_retain(um_store *store) {
  atomic_fetch_add(&((um_wrapper *)store)->references, 1);
}

void um_wrapper_release(um_store *store) {
  um_wrapper *wrapper = (um_wrapper *)store;
  if (atomic_fetch_sub(&wrapper->references, 1) == 1)
    wrapper->free(store);
}

int um_wrapper_close(um_store *store, um_error *error) {
  int result = um_store_close(((um_wrapper *)store)->inner, error);
  um_wrapper_release(store);
  return result;
}

void um_wrapper_forked(um_store *store) {
  um_store *inner = ((um_wrapper *)store)->inner;
  if (inner->ops->forked)
    inner->ops->forked(inner);
}

uint64_t um_wrapper_limit(um_store *store, uint64_t bytes) {
  um_store *inner = ((um_wrapper *)store)->inner;
  return inner->ops->limit ? inner->ops->limit(inner, bytes) : 0;
}
