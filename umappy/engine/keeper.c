/* keeper.c: what happens when somebody closes the uffd under the engine (os.closerange, daemons).
 *
 * With the last reference to its file gone the kernel unregisters every region, and absent pages read as zeros without
 * a word. So one thread of each pager, the keeper, has a table of descriptors of its own, with the uffd in it, which
 * nobody else can close. Whoever touches an absent page then goes on waiting, until the leader, which looks at the
 * descriptor after each wait of its own, ends the process: no zeros, and one line.
 *
 * Kernels before 5.9 cannot make that table without a copy of every descriptor there is. There the keeper's poll()
 * holds the reference, which is almost as good: a process that was stopped and continued meanwhile loses it. */
#define _GNU_SOURCE
#include "internal.h"

#include <limits.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#define CLOSE_UNSHARED 2u /* CLOSE_RANGE_UNSHARE */

#define STACK (256u << 10) /* the thread-local data of every library loaded comes out of it */

struct um_keeper {
  pthread_t thread; /* constant, and so all here */
  int uffd;
  int stop;    /* eventfd */
  sem_t holds; /* posted once, when it has its reference */
};

/* From here on this thread's descriptors are its own: the two it needs. */
static void take_descriptors(const um_keeper *k) {
  unsigned low = (unsigned)(k->uffd < k->stop ? k->uffd : k->stop);
  unsigned high = (unsigned)(k->uffd < k->stop ? k->stop : k->uffd);
  if (syscall(SYS_close_range, high + 1, UINT_MAX, CLOSE_UNSHARED))
    return;
  if (high > low + 1)
    syscall(SYS_close_range, low + 1, high - 1, 0);
  if (low > 0)
    syscall(SYS_close_range, 0, low - 1, 0);
}

static void *keep(void *argument) {
  um_keeper *k = argument;
  prctl(PR_SET_NAME, "um-keeper");
  take_descriptors(k);
  sem_post(&k->holds);
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
  sem_init(&k->holds, 0, 0);
  k->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  int code = k->stop < 0 ? errno : 0;
  if (code == 0) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    code = pthread_create(&k->thread, &attributes, keep, k);
    pthread_attr_destroy(&attributes);
  }
  while (code == 0 && sem_wait(&k->holds))
    ;
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
