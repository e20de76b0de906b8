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

/* One read of a batch, or one write. */
typedef struct um_read {
  uint64_t offset; /* bytes from the start of the store */
  void *buffer;    /* a write's is only read */
  uint64_t length; /* bytes */
  int code;        /* out: 0 or -code, as read or write returns it */
  um_error *error; /* out where code is not 0; may be NULL */
} um_read;
typedef um_read um_write;

typedef struct um_batch {
  um_read *reads;
  uint32_t count;
  uint64_t timeout_ns; /* reads: when none ends for so long, those left end with -ETIMEDOUT; 0: wait for ever */
  void (*ended)(struct um_batch *batch, um_read *read); /* once each, as they end, on the calling thread; or NULL */
  void *context;                                        /* the caller's */
} um_batch;

typedef struct um_store_ops {
  const char *name;
  int (*read)(um_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error);
  int (*write)(um_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error);
  int (*flush)(um_store *store, um_error *error);
  int (*close)(um_store *store, um_error *error); /* frees */
  void (*forked)(um_store *store); /* in a forked child: let go of what the parent's lock hangs on; async-signal-safe */

  /* The rest may be missing (NULL); wrappers have no reads and writes of it, so that they see every one. */

  /* As many reads in flight as the device wants, from this one thread. 0: all ended, each with its code; -EOPNOTSUPP:
   * nothing was done, the caller reads one by one, on as many threads as it has. A buffer holds its bytes once the read
   * ended with 0; after -ETIMEDOUT the device may still write into it, until read_batch returns: it does not before the
   * device has let go of them all. `ended` must not call read_batch; it may set the buffers of reads that have not
   * begun. It may be called for what another call reads, or writes: then the buffer may hold anything (gather.c). */
  int (*read_batch)(um_store *store, um_batch *batch);
  /* The same for writes, no two of which overlap. It has no time-out: a write that was told to have failed while the
   * device may still do it would undo the next write of those bytes. */
  int (*write_batch)(um_store *store, um_batch *batch);
  bool any_buffer; /* buffers of a batch need not be aligned */
  /* 0: the bytes were in memory already and are in `buffer`. Else it did not wait for any, `buffer` may hold anything,
   * and read is to be called: -EAGAIN; -EOPNOTSUPP: this store will never have any. Costs next to nothing where it is
   * of no use. Errors are left to read. */
  int (*read_cached)(um_store *store, uint64_t offset, void *buffer, uint64_t length);
  /* A region is being made of it whose pager can spare so many bytes: keep caches within them; returns how many bytes
   * will be held at most, which the region takes out of the budget. Once, or again with less, before any read. */
  uint64_t (*limit)(um_store *store, uint64_t bytes);
} um_store_ops;

/* The first member of every store. */
struct um_store {
  const um_store_ops *ops; /* constant */
  uint64_t size;           /* bytes; constant once open */
  bool writable;           /* constant */
  bool computes; /* constant: writes take this machine's processors; idle threads do them ahead of need (clean.c) */
};

/* Writes code, op, offset and length, and the text from a printf format; returns -code. */
int um_error_set(um_error *error, int code, int op, uint64_t offset, uint64_t length, const char *format, ...)
    __attribute__((format(printf, 6, 7)));

#endif
