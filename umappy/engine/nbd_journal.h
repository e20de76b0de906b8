/* nbd_journal.h: what was written to the server and may still be lost: the bytes of writes that no FLUSH covers.
 *
 * A write is copied in before it is sent (add), so its bytes do not change under the socket, and leaves when a FLUSH
 * that was sent after its acknowledgement succeeded. In between the server may die and forget it; then it is written
 * again from here. Entries are a ring in the order of their making, and so are their bytes: what overlaps is never in
 * flight at once (add refuses), so that order is the server's.
 *
 *     FLYING --acknowledged--> KEPT --FLUSH--> gone              a server without FLUSH: acknowledged is gone
 *       |                      |  ^
 *       |   a connection lost, |  | written again
 *       |       a FLUSH failed v  |
 *       |                      DUE --connection lost meanwhile--> UNSURE
 *       |--lost, maybe sent-----------------------------------> UNSURE --written again after grace--> KEPT
 *       '--refused, or never sent--> gone: its caller knows, and has the bytes
 *
 * A lost entry also waits for its caller to be told how it ended (settled).
 *
 * Memory only, no I/O; every call takes the lock, and only `wait` waits. The mending thread alone moves DUE and UNSURE
 * on, and loses and doubts only while no caller is between making and ending an entry (the gate of nbd_recover.c), so
 * nothing here need tell an acknowledgement of the old server from one of the new. */
#ifndef UM_NBD_JOURNAL_H
#define UM_NBD_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UM_NBD_JOURNAL_DEFAULT (8u << 20) /* of a store that no region has given a limit */
#define UM_NBD_JOURNAL_MAX (64u << 20)    /* more would not make FLUSHes any cheaper */
#define UM_NBD_JOURNAL_MIN (64u << 10)
#define UM_NBD_JOURNAL_PIECES 4u /* an entry is at most that part of all: several are in flight at once */

enum um_nbd_entry_state {
  UM_NBD_ENTRY_GONE,
  UM_NBD_ENTRY_FLYING,
  UM_NBD_ENTRY_KEPT,
  UM_NBD_ENTRY_DUE,
  UM_NBD_ENTRY_UNSURE,
};

typedef struct um_nbd_journal um_nbd_journal;
typedef struct um_nbd_entry um_nbd_entry;
struct um_nbd_entry {
  uint64_t offset;               /* bytes; constant while it is not GONE, and so the next four */
  uint32_t length;               /* bytes */
  uint16_t type, flags;          /* UM_NBD_CMD_WRITE, _WRITE_ZEROES or _TRIM, UM_NBD_CMD_FLAG_... */
  uint8_t *bytes;                /* what was written; in the arena. NULL: no WRITE */
  uint64_t sequence;             /* rising as they are made */
  enum um_nbd_entry_state state; /* journal->lock; so all below */
  bool acknowledged;             /* its caller was told that it is written: nobody else has these bytes any more */
  bool owned;                    /* its caller waits for um_nbd_journal_settled; its place is not taken before */
  bool waits;                    /* DUE: to be written only after an UNSURE one that it overlaps, or such a one */
  int code;                      /* of an owned one that is GONE or KEPT: 0, or -errno as the server told it */
  uint64_t mark;                 /* KEPT: FLUSHes with this mark or a later one cover it */
  uint64_t end;                  /* of the arena's bytes behind it, as a count from its begin */
  um_nbd_entry *prev, *next;     /* FLYING, DUE, UNSURE: the open ones, in order of making */
};

typedef struct um_nbd_journal_counts {
  uint32_t flying, kept, due, unsure;
  uint32_t promised; /* of `due` and `unsure`: acknowledged, so that nobody else has the bytes */
  uint64_t bytes;    /* of the arena in use, its gaps included */
} um_nbd_journal_counts;

/* `block`: bytes of the server's smallest block. `flushes`: the server has FLUSH. NULL: no memory. */
um_nbd_journal *um_nbd_journal_make(uint64_t bytes, uint32_t block, bool flushes);
void um_nbd_journal_free(um_nbd_journal *journal); /* forgets what it holds; NULL: nothing */
/* As um_store_ops.limit: all its memory, in bytes; never less than what it needs, and as before where it is not empty.
 */
uint64_t um_nbd_journal_resize(um_nbd_journal *journal, uint64_t bytes);
/* Bytes of a write's data at most, whole blocks. */
uint32_t um_nbd_journal_capacity(um_nbd_journal *journal);

/* A new FLYING entry, with a copy of the bytes. -EBUSY: what it overlaps has not ended; -ENOBUFS: no room before
 * something ended, or a FLUSH. */
int um_nbd_journal_add(um_nbd_journal *journal, uint16_t type, uint16_t flags, uint64_t offset, const void *bytes,
                       uint32_t length, um_nbd_entry **entry);
/* After -EBUSY or -ENOBUFS, with nothing of one's own in flight, outside the gate: until it is worth another try: what
 * was in the way has ended, there is room, or nothing flies any more, so that a FLUSH makes room; for a second at most,
 * as there are other reasons to look up. `deadline_ns` by CLOCK_MONOTONIC. */
void um_nbd_journal_wait(um_nbd_journal *journal, uint64_t offset, uint32_t length, uint64_t deadline_ns);
/* The request of a FLYING entry ended: exactly one of these. */
void um_nbd_journal_acknowledge(um_nbd_journal *journal, um_nbd_entry *entry); /* the server took it */
void um_nbd_journal_remove(um_nbd_journal *journal, um_nbd_entry *entry); /* refused by the server, or never sent */
/* Sent, and its connection was lost. It is the caller's until `settled` returned 1, or `abandon`. */
void um_nbd_journal_lose(um_nbd_journal *journal, um_nbd_entry *entry);
/* 1: it has been written after all, or refused, *code tells which, and the entry is no longer the caller's; 0: not yet.
 */
int um_nbd_journal_settled(um_nbd_journal *journal, um_nbd_entry *entry, int *code);
void um_nbd_journal_abandon(um_nbd_journal *journal, um_nbd_entry *entry); /* the caller does not wait; it stays */

/* Before a FLUSH is sent: a mark that covers what is KEPT now. */
uint64_t um_nbd_journal_mark(um_nbd_journal *journal);
/* It succeeded: what it covers is gone. false: since its begin something was doubted, and nothing is: flush again. */
bool um_nbd_journal_flushed(um_nbd_journal *journal, uint64_t mark);
/* A FLUSH failed: none that is under way tells anything, nor one that begins before `doubt`. Any thread. */
void um_nbd_journal_distrust(um_nbd_journal *journal);
/* The server may not have what is KEPT: it is DUE. Nobody is between making and ending an entry. */
void um_nbd_journal_doubt(um_nbd_journal *journal);

/* Do these bytes overlap any that are DUE or UNSURE (`flying`: or FLYING)? */
bool um_nbd_journal_overlaps(um_nbd_journal *journal, uint64_t offset, uint64_t length, bool flying);
/* For the mending thread: up to `count` entries to write again, in order of making, none of which overlap, those at the
 * begin of what is left. Without `unsure`: only what is DUE and overlaps nothing UNSURE, so that it need not wait for
 * the grace period. Returns how many. */
uint32_t um_nbd_journal_due(um_nbd_journal *journal, bool unsure, um_nbd_entry **entries, uint32_t count);
/* It has been written again, and read back if it was UNSURE: KEPT, or gone where the server has no FLUSH. */
void um_nbd_journal_mend(um_nbd_journal *journal, um_nbd_entry *entry);
/* The connection was lost while it was being written again. */
void um_nbd_journal_unsure(um_nbd_journal *journal, um_nbd_entry *entry);
/* The server refuses it. An unacknowledged one is gone, with this code for its caller: true. Others stay: false. */
bool um_nbd_journal_give_up(um_nbd_journal *journal, um_nbd_entry *entry, int code);

void um_nbd_journal_count(um_nbd_journal *journal, um_nbd_journal_counts *counts);

#endif
