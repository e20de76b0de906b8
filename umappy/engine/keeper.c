/* keeper.c: what happens when somebody closes the uffd under the engine (os.closerange, daemons).
 *
 * With the last reference to its file gone the kernel unregisters every region, and absent pages read as zeros without
 * a word. A thread inside poll() holds a reference that closing the descriptor does not take; so one thread of each
 * pager, the keeper, sits in poll() and waits for nothing. While it does, whoever touches an absent page goes on
 * waiting, until the leader, which looks at the descriptor after each wait of its own, ends the process: no zeros, and
 * one line. The leader's own poll() is not enough: leaving it to read a message drops the last reference, and the
 * thread that sent the message is the first to see zeros. */
#include "internal.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define STACK (256u << 10) /* the thread-local data of every library loaded comes out of it */

struct um_keeper {
  pthread_t thread; /* constant, and so all here */
  int uffd;
  int stop; /* eventfd */
};

static void *keep(void *argument) {
  um_keeper *k = argument;
  prctl(PR_SET_NAME, "um-keeper");
  /* No events are asked for, so only the end of the file or of the descriptor could be told. */
  struct pollfd fds[2] = {{k->uffd, 0, 0}, {k->stop, POLLIN, 0}};
  while (poll(fds, 2, -1) <= 0)
    ;
  if (fds[1].revents == POLLIN)
    return NULL;
  /* Stopped and continued (a debugger, a freezer) after somebody had closed it: the reference is lost. */
  um_fork_poison();
  um_fatal("somebody closed the engine's userfaultfd; mapped regions would read as zeros");
}

int um_keeper_start(um_pager *p) {
  um_keeper *k = calloc(1, sizeof *k);
  if (!k)
    return -ENOMEM;
  k->uffd = p->uffd;
  k->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  int code = k->stop < 0 ? errno : 0;
  if (code == 0) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    code = pthread_create(&k->thread, &attributes, keep, k);
    pthread_attr_destroy(&attributes);
  }
  if (code) {
    if (k->stop >= 0)
      close(k->stop);
    free(k);
    return -code;
  }
  p->keeper = k;
  return 0;
}

void um_keeper_stop(um_pager *p) {
  um_keeper *k = p->keeper;
  if (!k)
    return;
  (void)!write(k->stop, &(uint64_t){1}, sizeof(uint64_t));
  pthread_join(k->thread, NULL);
  close(k->stop);
  free(k);
}

void um_keeper_check(um_pager *p) {
  struct stat st;
  if (fstat(p->uffd, &st) == 0 && (uint64_t)st.st_ino == p->uffd_inode)
    return;
  um_fatal("somebody closed the engine's userfaultfd; mapped regions would read as zeros");
}
