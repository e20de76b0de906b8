/* store_fork.h: stores whose descriptors a forked child must let go of, mapped or not. */
#ifndef UM_STORE_FORK_H
#define UM_STORE_FORK_H

#include "umappy.h"

/* A member of such a store; its ops have `forked`. */
typedef struct um_fork_entry {
  um_store *store;                   /* constant */
  struct um_fork_entry *prev, *next; /* under the lock of store_fork.c */
} um_fork_entry;

int um_fork_entries_init(void); /* before the first add; may be called again */
void um_fork_entry_add(um_fork_entry *entry, um_store *store);
void um_fork_entry_remove(um_fork_entry *entry);

#endif
