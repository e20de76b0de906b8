/* store_file_fork.c: a forked child lets go of its parent's files.
 *
 * The child's descriptors share the parent's descriptions: while one is open anywhere, the writer's lock lives, even
 * after the parent was killed, and closing them the usual way would take the lock from the living parent. So the child
 * closes the bare descriptors before anything else runs in it, whether Python or C forked. */
#include "store_file.h"

#include <errno.h>

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER; /* leaf: held for list work and across fork */
static um_file_store *first;                                      /* registry_lock */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int install_code; /* errno; constant after once */

static void before_fork(void) {
  pthread_mutex_lock(&registry_lock);
}

static void after_fork_in_parent(void) {
  pthread_mutex_unlock(&registry_lock);
}

static void after_fork_in_child(void) {
  for (um_file_store *store = first; store; store = store->next)
    um_file_store_ops.forked(&store->store);
  pthread_mutex_unlock(&registry_lock);
}

static void install(void) {
  install_code = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

int um_file_registry_init(void) {
  pthread_once(&once, install);
  return -install_code;
}

void um_file_registry_add(um_file_store *store) {
  pthread_mutex_lock(&registry_lock);
  store->prev = NULL;
  store->next = first;
  if (first)
    first->prev = store;
  first = store;
  pthread_mutex_unlock(&registry_lock);
}

void um_file_registry_remove(um_file_store *store) {
  pthread_mutex_lock(&registry_lock);
  if (store->prev)
    store->prev->next = store->next;
  else
    first = store->next;
  if (store->next)
    store->next->prev = store->prev;
  pthread_mutex_unlock(&registry_lock);
}
