/* store_fork.c: a forked child lets go of its parent's files and sockets.
 *
 * The child's descriptors share the parent's descriptions: while one is open anywhere, a file's writer's lock and a
 * connection live, even after the parent was killed, and closing a file the usual way would take the lock from the
 * living parent. So the child closes the bare descriptors before anything else runs in it, whether Python or C forked.
 */
#include "store_fork.h"

#include "store.h"

#include <errno.h>
#include <pthread.h>
#include <stddef.h>

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER; /* leaf: held for list work and across fork */
static um_fork_entry *first;                                      /* registry_lock */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int install_code; /* errno; constant after once */

static void before_fork(void) {
  pthread_mutex_lock(&registry_lock);
}

static void after_fork_in_parent(void) {
  pthread_mutex_unlock(&registry_lock);
}

static void after_fork_in_child(void) {
  for (um_fork_entry *entry = first; entry; entry = entry->next)
    entry->store->ops->forked(entry->store);
  pthread_mutex_unlock(&registry_lock);
}

static void install(void) {
  install_code = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

int um_fork_entries_init(void) {
  pthread_once(&once, install);
  return -install_code;
}

void um_fork_entry_add(um_fork_entry *entry, um_store *store) {
  pthread_mutex_lock(&registry_lock);
  entry->store = store;
  entry->prev = NULL;
  entry->next = first;
  if (first)
    first->prev = entry;
  first = entry;
  pthread_mutex_unlock(&registry_lock);
}

void um_fork_entry_remove(um_fork_entry *entry) {
  pthread_mutex_lock(&registry_lock);
  if (entry->prev)
    entry->prev->next = entry->next;
  else
    first = entry->next;
  if (entry->next)
    entry->next->prev = entry->prev;
  pthread_mutex_unlock(&registry_lock);
}
