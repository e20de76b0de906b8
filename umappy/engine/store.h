/* store.h: where bytes live, as the engine sees it.
 *
 * A store is a table of calls and a size. Calls are thread-safe and may run in parallel, but the engine never
 * has two under way for the same page. read and write move all the bytes or fail; write may buffer; flush
 * returns when everything written before it survives a power cut; every call ends within the store's own
 * deadline. Buffers the engine hands out are aligned to 4096 bytes. A failing call returns -code and fills
 * `error` (code, op, offset, length, text); nothing else in the store changes. */
#ifndef UM_STORE_H
#define UM_STORE_H

#include "umappy.h"

#include <stdatomic.h>

typedef struct um_store_ops {
  const char *name;
  int (*read)(um_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error);
  int (*write)(um_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error);
  int (*flush)(um_store *store, um_error *error);
  int (*close)(um_store *store, um_error *error); /* frees */
  void (*forked)(um_store *store); /* in a forked child: let go of what the parent's lock hangs on; async-signal-safe */
} um_store_ops;

/* The first member of every store. */
struct um_store {
  const um_store_ops *ops; /* constant */
  uint64_t size;           /* bytes; constant once open */
  bool writable;           /* constant */
};

/* Writes code, op, offset and length, and the text from a printf format; returns -code. */
int um_error_set(um_error *error, int code, int op, uint64_t offset, uint64_t length, const char *format, ...)
    __attribute__((format(printf, 6, 7)));

#endif
