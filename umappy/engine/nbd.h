/* nbd.h: the NBD store inside.
 *
 *   store_nbd.c       the store's face: the table of calls, forks, errors
 *   nbd_open.c        from options to a store whose connections are up
 *   nbd_read.c        reads and batches of them
 *   nbd_write.c       writes, flushes, zeroes, discards; the journal's entries
 *   nbd_blocks.c      requests that are not whole blocks of the server
 *   nbd_recover.c     what callers do about a lost server: wait, and begin again
 *   nbd_mend.c        the mending thread: connecting again, what may have been lost written again
 *   nbd_journal.c     bytes written that no FLUSH covers yet; memory only
 *   nbd_link.c        one connection: requests queued and in flight, deadlines, giving it up
 *   nbd_link_io.c     who sends on it, who receives
 *   nbd_wait.c        a thread that waits for its requests, on several connections
 *   nbd_reply.c       the parser of replies; no I/O
 *   nbd_handshake.c   from a connected stream to an export
 *   nbd_transport.c   sockets
 *   nbd_tls*.c        TLS over one: what is wanted of it, keys, the stream; openssl_library.c finds OpenSSL
 *
 * Nobody but the callers moves bytes. Of the threads that wait for replies of a link one *drives* it: polls, receives
 * for all, wakes the owners of what ended. When its own requests have ended it hands the driving to the owner of
 * another. Likewise one *sends*: who queues a request sends the queue at once, and keeps the role while the socket is
 * full. So nobody waits in a send while replies pile up, and a lone reader costs no wake at all.
 *
 * A request belongs to its caller from its making to the moment its owner collects it from um_nbd_wait, but for
 * `code`, `lost` and what the link needs in between. Memory of a request, its buffer included, must stay until then: a
 * link that is given up ends its requests only when nobody is inside its socket calls any more.
 *
 * Loss. A link that fails (closed, overdue, nonsense received) is shut down, its requests end `lost`, and
 * um_nbd_recover_lost is told. Links are never freed while the store is open: the mending thread gives the same link a
 * new transport. Reads that are lost are sent again by their callers, on whatever link is up. Writes are not: the
 * mending thread writes them again from the journal, in order.
 *
 * Lock order: a thread may take a lock only while it holds none that stands below it. None is held across I/O.
 *
 *     store->guard.lock   blocks that are read, changed and written back      nbd_blocks.c
 *     store->lock         state, gate of the writers                          nbd_recover.c
 *     journal->lock       entries                                             nbd_journal.c
 *     link->lock          requests in flight and queued, roles                nbd_link.c
 *     store->waiters_lock free waiters; taken with no other                   nbd_wait.c
 *     stream->lock        OpenSSL's object; around calls that do not wait     nbd_tls_stream.c */
#ifndef UM_NBD_H
#define UM_NBD_H

#include "nbd_protocol.h"
#include "nbd_journal.h"
#include "nbd_reply.h"
#include "nbd_tls.h"
#include "nbd_transport.h"
#include "store.h"
#include "store_fork.h"

#include <pthread.h>

#define UM_NBD_LINKS 16u   /* connections of a store at most */
#define UM_NBD_SLOTS 256u  /* requests a link has in flight at most */
#define UM_NBD_WINDOW 128u /* requests a thread has in flight at most */
#define UM_NBD_TEXT 256u
/* Bytes of a request at most: a chunk of the pager; parts of longer ones go at once. */
#define UM_NBD_PIECE (2u << 20)
#define UM_NBD_STAGING (64u << 10) /* bytes received at once that are copied afterwards */
#define UM_NBD_WAKES 32u           /* of waiters, put off to the end of what was received at once */

typedef struct um_nbd_store um_nbd_store;
typedef struct um_nbd_link um_nbd_link;
typedef struct um_nbd_waiter um_nbd_waiter;

/* Where the server is and how to speak to it. Constant, owned by the store with all strings. */
typedef struct um_nbd_target {
  char *name;              /* for errors: nbd://host:port/export, without secrets */
  char *host, *port;       /* NULL: a unix socket */
  char *path;              /* of the unix socket; NULL: TCP */
  char *export_name;       /* UTF-8, maybe empty */
  um_nbd_tls_options *tls; /* NULL: without; nbd_tls.h */
  uint64_t timeout_ns;     /* of a request, and of connecting with its handshake */
  uint64_t retry_ns;       /* how long a caller waits for a server that is away */
} um_nbd_target;

/* What the handshake told. */
typedef struct um_nbd_export {
  uint64_t size;                       /* bytes */
  uint32_t flags;                      /* UM_NBD_FLAG_... */
  uint32_t block_min, block_preferred; /* powers of two; 1 and 4096 where the server names none */
  uint32_t length_max;                 /* of a request's data: at most UM_NBD_LENGTH_MAX, whole blocks */
  bool structured;                     /* replies are structured */
} um_nbd_export;

enum um_nbd_state {
  UM_NBD_UP,      /* at least one link is; reads and writes go */
  UM_NBD_AWAY,    /* the mending thread is at work */
  UM_NBD_CHANGED, /* another export is there now: for ever */
  UM_NBD_CLOSED,  /* being closed: nobody shall wait */
};

struct um_nbd_link {
  um_nbd_store *store; /* constant */
  uint32_t index;      /* in store->links; constant */
  pthread_mutex_t lock;
  um_nbd_transport *transport; /* lock; NULL: never was connected, or closed after a loss */
  um_nbd_export export_;       /* of the connection; changes only while the link is down */
  _Atomic bool up;             /* requests are taken; lock to change, and so all down to `fail_text`: */
  bool receiving, sending;     /* a thread is inside the socket's call, or uses what it received */
  um_nbd_waiter *driver;       /* who receives; NULL: nobody */
  um_nbd_waiter *sender;       /* whose thread sends; NULL: nobody, and then the queue is empty or slots are short */
  um_nbd_request *queue_first, *queue_last;   /* not all sent yet, in order; the first maybe in part */
  um_nbd_request *flight_first, *flight_last; /* sent, not answered, in order of sending */
  uint32_t sent;                              /* bytes of queue_first that are out */
  uint32_t owed;                              /* requests in the two lists */
  uint64_t first_ns;                          /* when the first of both became that; deadlines begin there */
  um_nbd_request *slots[UM_NBD_SLOTS];        /* by cookie % UM_NBD_SLOTS; NULL: free */
  uint16_t free_slots[UM_NBD_SLOTS];          /* a stack */
  uint32_t free_count;
  uint64_t generation;                  /* of cookies; never begins anew */
  int fail_code;                        /* errno why it is down */
  char fail_text[UM_NBD_TEXT];          /* in words; "" while it is up */
  _Atomic uint64_t load;                /* bytes asked for and not there yet, about: to choose a link; no lock */
  um_nbd_reply reply;                   /* the parser; the driver's while receiving, and so the next: */
  uint8_t *staging;                     /* UM_NBD_STAGING bytes */
  um_nbd_waiter *to_wake[UM_NBD_WAKES]; /* whose requests have just ended */
  uint32_t to_wake_count;
  bool shutting; /* the server said that it is shutting down */
};

/* One thread inside a call of the store. */
struct um_nbd_waiter {
  um_nbd_store *store;                    /* constant */
  int wake;                               /* eventfd; constant */
  _Atomic bool asleep;                    /* in poll, or about to be: who has something for it writes to `wake` */
  um_nbd_request *_Atomic ended;          /* a stack of what ended and was not collected */
  uint32_t pending[UM_NBD_LINKS];         /* requests given to each link and not collected; its thread's */
  uint32_t pending_count;                 /* of all links; likewise */
  um_nbd_waiter *next;                    /* waiters_lock: the free ones */
  um_nbd_waiter *all_next;                /* constant: all, for a fork */
  um_nbd_request requests[UM_NBD_WINDOW]; /* for its thread to use */
};

struct um_nbd_guest; /* nbd_blocks.c */
typedef struct um_nbd_guard {
  pthread_mutex_t lock;
  pthread_cond_t left;
  struct um_nbd_guest *guests; /* lock: who changes a part of a block */
} um_nbd_guard;

typedef struct um_nbd_recover um_nbd_recover; /* nbd_recover.h */

struct um_nbd_store {
  um_store store;
  um_nbd_target target;     /* constant */
  um_nbd_export export_;    /* as it was when it was opened; constant: what every new connection must tell */
  um_nbd_link *links;       /* link_count of them; constant */
  uint32_t link_count;      /* constant */
  bool keeps;               /* writes go to the journal: it is writable; constant */
  uint64_t fork_generation; /* it was opened in; constant */
  pthread_mutex_t lock;
  pthread_cond_t changed;      /* state, gate, entries settled */
  enum um_nbd_state state;     /* lock */
  char why[UM_NBD_TEXT];       /* lock: what went wrong last */
  _Atomic uint64_t epoch;      /* losses so far; lock to change */
  _Atomic bool calm;           /* UP, and nothing is to be written again; lock to change */
  _Atomic uint64_t reconnects; /* times a connection came back */
  um_nbd_journal *journal;     /* constant; NULL where not `keeps` */
  um_nbd_recover *recover;     /* constant */
  um_nbd_guard guard;
  um_fork_entry fork;
  pthread_mutex_t waiters_lock;
  um_nbd_waiter *waiters_free;    /* waiters_lock */
  um_nbd_waiter *_Atomic waiters; /* all, by all_next */
};

extern const um_store_ops um_nbd_store_ops;

/* nbd_open.c. Frees all, once nobody uses it: sockets, too. */
void um_nbd_store_free(um_nbd_store *store);

/* store_nbd.c. Fills error with the server's name before the text; returns -code. */
int um_nbd_fail(const um_nbd_store *store, int code, int op, uint64_t offset, uint64_t length, um_error *error,
                const char *format, ...) __attribute__((format(printf, 7, 8)));

int um_nbd_check_forked(const um_nbd_store *store, int op, uint64_t offset, uint64_t length, um_error *error);

/* nbd_read.c, nbd_write.c, nbd_blocks.c: calls of the table; _whole: of whole blocks, of any length; _parts: of any
 * bytes. */
int um_nbd_read(um_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error);
int um_nbd_read_batch(um_store *store, um_batch *batch);
int um_nbd_write(um_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error);
int um_nbd_write_batch(um_store *store, um_batch *batch);
int um_nbd_flush(um_store *store, um_error *error);
int um_nbd_read_whole(um_nbd_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error);
int um_nbd_write_whole(um_nbd_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error);
int um_nbd_read_parts(um_nbd_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error);
int um_nbd_write_parts(um_nbd_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error);
uint64_t um_nbd_piece(const um_nbd_store *store); /* bytes of a request's data at most, whole blocks */

/* nbd_handshake.c: connects, with TLS where the target wants it. `deadline_ns` is for all of it. 0, or -errno with
 * words in `text`. */
int um_nbd_connect(const um_nbd_target *target, uint64_t deadline_ns, um_nbd_export *export_,
                   um_nbd_transport **transport, char *text, size_t room);
/* The export's side alone, on a connected stream; it stays the caller's where this fails, but for *transport, which TLS
 * may have wrapped. */
int um_nbd_handshake(const um_nbd_target *target, uint64_t deadline_ns, um_nbd_export *export_,
                     um_nbd_transport **transport, char *text, size_t room);

/* nbd_link.c */
int um_nbd_link_init(um_nbd_link *link, um_nbd_store *store, uint32_t index);
void um_nbd_link_end(um_nbd_link *link);
/* The link is up from now on, over this transport, which it owns. It is down, and everybody has let go of it: waits for
 * that until the deadline. */
int um_nbd_link_open(um_nbd_link *link, um_nbd_transport *transport, const um_nbd_export *export_,
                     uint64_t deadline_ns);
/* Gives the connection up: requests end `lost`; the socket is shut down. The first reason counts. Any thread, no locks
 * held; tells um_nbd_recover_lost, once for each time it was up. */
void um_nbd_link_fail(um_nbd_link *link, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* A link that is down: waits until nobody is inside its calls, closes the old transport. reset: see nbd_transport.h. */
int um_nbd_link_drop(um_nbd_link *link, bool reset, uint64_t deadline_ns);
/* Queues requests (a chain by `next`) and sends what it can. Where the link is down they end `lost` at once, and never
 * `sent`. */
void um_nbd_link_submit(um_nbd_link *link, um_nbd_waiter *waiter, um_nbd_request *first);

um_nbd_link *um_nbd_link_choose(um_nbd_store *store); /* that is up with the least to do, or NULL */
/* What a thread has to do on a link while it waits. */
typedef struct um_nbd_duty {
  short events;         /* to poll for: POLLIN, POLLOUT; 0: nothing */
  int descriptor;       /* the socket */
  uint64_t deadline_ns; /* when the link is overdue; 0: there is something to do at once */
  bool plain;           /* only to receive, by a call that waits; nothing of anybody's is to be sent */
} um_nbd_duty;
um_nbd_duty um_nbd_link_duty(um_nbd_link *link, um_nbd_waiter *waiter); /* takes roles that are free */
/* What there is, if it drives. patient: waits for a moment for something to come. */
void um_nbd_link_receive(um_nbd_link *link, um_nbd_waiter *waiter, bool patient);
void um_nbd_link_send(um_nbd_link *link, um_nbd_waiter *waiter);  /* what can go out, if it sends */
void um_nbd_link_leave(um_nbd_link *link, um_nbd_waiter *waiter); /* hands its roles to others that wait */
void um_nbd_link_check(um_nbd_link *link);                        /* gives it up where it is overdue */

/* Between nbd_link.c and nbd_link_io.c; lock held. */
void um_nbd_link_sweep(um_nbd_link *link); /* it is down: if nobody is inside, all its requests end lost */
void um_nbd_link_finish(um_nbd_link *link, um_nbd_request *request); /* its owner is told, but not woken */
void um_nbd_link_flew(um_nbd_link *link, um_nbd_request *request);   /* it went out: from the queue to the flight */

/* nbd_wait.c */
um_nbd_waiter *um_nbd_waiter_take(um_nbd_store *store); /* NULL: no memory, or no descriptors */
void um_nbd_waiter_free(um_nbd_waiter *waiter);         /* with the store */
void um_nbd_waiter_give(um_nbd_waiter *waiter);         /* nothing of it is pending */
/* Until at least one of the waiter's requests has ended: those that did, a chain by `next`, in no order. NULL: none is
 * pending, or `until_ns` came (UINT64_MAX: never): call again, for what is pending will end. */
um_nbd_request *um_nbd_wait(um_nbd_waiter *waiter, uint64_t until_ns);
void um_nbd_wake(um_nbd_waiter *waiter); /* if it sleeps */
/* Does requests on one link, up or down, and waits for all; for the mending thread. Each ends with its code and `lost`.
 */
void um_nbd_link_do(um_nbd_link *link, um_nbd_waiter *waiter, um_nbd_request *requests, uint32_t count);

/* nbd_recover.c
 *
 * A read:  do { await(.., &epoch) .. submit, wait .. } while (lost, or store->epoch is another now);
 *          the last is for who was held up between its await and its sending while the server was lost, came back, and
 *          had not been given again what it forgot.
 * A write: enter; add, submit, wait, then acknowledge, remove or lose each entry; leave; settle what was lost.
 *          add said -EBUSY or -ENOBUFS: end what is in flight of one's own, leave, then um_nbd_journal_wait, or a
 *          FLUSH; enter again. Nobody waits inside but for requests that it submitted, and nobody enters twice.
 * A FLUSH: enter; mark; submit, wait; where the server refused it: doubt; else flushed: where that says no, or the
 *          request was lost, again from the begin; leave. A store without FLUSH only enters and leaves.
 *
 * All connections of an epoch are made before any of its writes is sent. So where a server is restarted, no write that
 * one connection acknowledged is taken for flushed by a FLUSH of another: of an older server only connections are left
 * that are dead. */
int um_nbd_recover_start(um_nbd_store *store); /* at opening, the links up: the mending thread, all signals blocked */
/* At closing, nobody inside any call: ends the thread. Waits before, up to retry_ns, where the server lost what it had
 * acknowledged and nobody has flushed: -ETIMEDOUT where that stays so. */
int um_nbd_recover_stop(um_nbd_store *store, um_error *error);
void um_nbd_recover_forked(um_nbd_store *store);                      /* as um_store_ops.forked */
void um_nbd_recover_why(um_nbd_store *store, char text[UM_NBD_TEXT]); /* it was lost the last time */
void um_nbd_recover_lost(um_nbd_store *store, um_nbd_link *link);     /* it just went down; any thread, no locks held */
/* Until a read of these bytes can go: a link is up, and nothing that is still to be written again overlaps them. 0, or
 * -errno with error filled; -ETIMEDOUT at once, without words, where `deadline_ns` is 0. Costs next to nothing while
 * the store is calm. */
int um_nbd_recover_await(um_nbd_store *store, uint64_t offset, uint64_t length, uint64_t deadline_ns, uint64_t *epoch,
                         um_error *error);
/* Likewise for writes, zeroes, discards (UM_OP_WRITE) and FLUSH (UM_OP_FLUSH, which waits until nothing at all is to be
 * written again). While anybody is inside, nothing that is kept changes but by their hands. */
int um_nbd_recover_enter(um_nbd_store *store, int op, uint64_t offset, uint64_t length, uint64_t deadline_ns,
                         um_error *error);
void um_nbd_recover_leave(um_nbd_store *store);
/* Outside: waits until an entry that was lost has been written again; then, and where this fails, it is no longer the
 * caller's. -ETIMEDOUT: it will be written some day; nothing newer is, for these bytes, before that. */
int um_nbd_recover_settle(um_nbd_store *store, um_nbd_entry *entry, uint64_t deadline_ns, um_error *error);
/* The server refused a FLUSH: it may have thrown away what it was to make durable, and be silent about it at the next.
 * What is kept is written again before that. Inside. */
void um_nbd_recover_doubt(um_nbd_store *store, const char *why);

#endif
