/* oracle.h: what a store over a file in memory may hold after a crash, and the check of one state. */
#ifndef UM_ORACLE_H
#define UM_ORACLE_H

#include "states.h"

#define ORACLE_PAGE 4096u

typedef struct image {
  uint8_t *bytes;
  uint64_t size; /* bytes */
} image;

/* A store as its user sees it, and the file as a crash may leave it. */
typedef struct oracle {
  zmemory *memory;
  um_store *store;
  image now;            /* written */
  image flushed, tried; /* of the last flush that returned; of the one under way, or bytes is NULL */
  bool made;            /* the file's creation returned: before, it may be no file of ours */
  bool quiet;           /* crashes are not looked at */
  bool inner;           /* it mends what another's crash left; mending that again is not looked at */
  uint64_t fail_at;     /* so many writes from now on one fails, partly written; 0: none does */
  uint64_t seed;        /* of the crashes */
  uint64_t exhaustive;  /* where there are so many units at most, all subsets of them; else: */
  uint64_t samples;     /* random subsets at a sync */
  uint64_t deep;        /* of so many states one: crashes of what mends it are looked at, too; 0: none */
  uint64_t tool;        /* of so many states one is given to the tool zstd; 0: none */
  uint64_t count;       /* states checked so far */
  uint64_t failed;      /* writes and flushes that failed, and were done again */
  const um_zstd_file_ops *plain;
} oracle;

void oracle_create(oracle *o, uint64_t size);
void oracle_reopen(oracle *o, uint64_t size); /* for writing; larger than it was: it grows */
void oracle_write(oracle *o, uint64_t page, uint64_t pages, uint64_t seed); /* seed 0: zeros */
void oracle_flush(oracle *o); /* again, where it fails because a write did */
void oracle_check(oracle *o); /* every state a crash may leave now */
void oracle_end(oracle *o);
void oracle_pack(oracle *o); /* and every state that a crash may leave when the packed file gets its name */

#endif
