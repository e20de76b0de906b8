/* store.c: the calls of a store, with what every store would have to check itself. */
#include "store.h"

#include <errno.h>
#include <inttypes.h>

uint64_t um_store_size(um_store *store) {
  return store->size;
}

int um_store_is_writable(um_store *store) {
  return store->writable;
}

static int check_range(um_store *store, int op, uint64_t offset, uint64_t length, um_error *error) {
  if (offset <= store->size && length <= store->size - offset)
    return 0;
  return um_error_set(error, EINVAL, op, offset, length,
                      "%s store: %" PRIu64 " bytes at offset %" PRIu64 " pass its size, %" PRIu64, store->ops->name,
                      length, offset, store->size);
}

int um_store_read(um_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error) {
  int result = check_range(store, UM_OP_READ, offset, length, error);
  if (result < 0 || length == 0)
    return result;
  return store->ops->read(store, offset, buffer, length, error);
}

int um_store_write(um_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error) {
  if (!store->writable)
    return um_error_set(error, EBADF, UM_OP_WRITE, offset, length, "%s store: open for reading only", store->ops->name);
  int result = check_range(store, UM_OP_WRITE, offset, length, error);
  if (result < 0 || length == 0)
    return result;
  return store->ops->write(store, offset, buffer, length, error);
}

int um_store_flush(um_store *store, um_error *error) {
  return store->writable ? store->ops->flush(store, error) : 0;
}

int um_store_close(um_store *store, um_error *error) {
  return store->ops->close(store, error);
}
