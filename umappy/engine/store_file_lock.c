/* store_file_lock.c: one writer a file.
 *
 * Open file description locks: unlike POSIX ones they hold between two stores of one process and do not vanish when
 * another descriptor of the file is closed; unlike flock they reach over NFS. The lock belongs to the description, so
 * it lives until every copy of the descriptor is closed, in forked children too: it is given back by name, never by
 * closing alone. Only writers take it; a reader never waits and never stops anybody. */
#define _GNU_SOURCE
#include "store_file.h"

#include <errno.h>
#include <fcntl.h>

static int set_lock(int descriptor, short type) {
  struct flock lock = {.l_type = type, .l_whence = SEEK_SET}; /* from 0 to whatever the end becomes */
  while (fcntl(descriptor, F_OFD_SETLK, &lock) < 0)
    if (errno != EINTR)
      return -errno;
  return 0;
}

int um_file_lock(um_file *file) {
  int result = set_lock(file->buffered, F_WRLCK);
  if (result == -EAGAIN || result == -EACCES)
    return -UM_ELOCKED;
  file->locked = result == 0;
  return result;
}

void um_file_unlock(um_file *file) {
  if (file->locked && file->buffered >= 0)
    set_lock(file->buffered, F_UNLCK);
  file->locked = false;
}
