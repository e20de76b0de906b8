/* nbd_recover.h: between the callers' side (nbd_recover.c) and the mending thread (nbd_mend.c). */
#ifndef UM_NBD_RECOVER_H
#define UM_NBD_RECOVER_H

#include "nbd.h"

#define UM_NBD_MEND_BATCH 32u         /* entries written again at once */
#define UM_NBD_MEND_LOOK (256u << 10) /* bytes read back at once; whole blocks of any server */

struct um_nbd_recover {
  pthread_t thread;
  int cancel;              /* eventfd: the thread's connecting is to end; constant */
  um_nbd_waiter *waiter;   /* the thread's */
  uint32_t inside;         /* store->lock, and so the next seven: callers between enter and leave */
  bool lost;               /* a connection went down since the thread began to make them */
  bool doubted;            /* a FLUSH was refused: everything kept is to be written again */
  int refused;             /* errno that the server gives for what it acknowledged before; 0: none */
  uint64_t grace_until_ns; /* until then the old connections' last writes may still be done */
  uint32_t grace_renewals; /* times it may still begin anew: a server that is always so slow is not waited for */
  uint64_t answered_ns;    /* when the server last answered the thread, or was back */
  bool stopping;           /* the store is being closed */
  uint64_t pause_ns;       /* the thread's, and so the rest: before the next try to connect */
  uint64_t up_ns;          /* when the connections last were up */
  um_nbd_entry *due[UM_NBD_MEND_BATCH];
  uint8_t look[UM_NBD_MEND_LOOK];
};

/* Lock held. Waits on store->changed, until the deadline at most: -ETIMEDOUT when that is past. */
int um_nbd_recover_sleep(um_nbd_store *store, uint64_t deadline_ns);
bool um_nbd_recover_is_whole(um_nbd_store *store); /* nothing is to be written again */
void *um_nbd_mend(void *store);                    /* the thread */

#endif
