/* nbd_journal.h: what was written and no FLUSH covers yet: copies, to be written again. Memory only, no I/O.
 *
 * (First version by the core, to build against; the journal's owner changes it.) */
#ifndef UM_NBD_JOURNAL_H
#define UM_NBD_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#define UM_NBD_JOURNAL_DEFAULT (8u << 20) /* bytes, of a store that no region limits */

typedef struct um_nbd_journal um_nbd_journal;
typedef struct um_nbd_entry {
  uint64_t offset; /* constant, and so the next three: */
  uint32_t length;
  uint16_t type;     /* UM_NBD_CMD_WRITE, _WRITE_ZEROES, _TRIM */
  const void *bytes; /* of a WRITE: the journal's copy, at an address that is aligned as the offset is in its page */
} um_nbd_entry;

um_nbd_journal *um_nbd_journal_make(uint64_t capacity); /* NULL: no memory. Its memory is allocated as it is used */
void um_nbd_journal_free(um_nbd_journal *journal);
uint64_t um_nbd_journal_resize(um_nbd_journal *journal,
                               uint64_t capacity);         /* what it is then; never below what is held */
uint64_t um_nbd_journal_capacity(um_nbd_journal *journal); /* the longest WRITE that can ever find room */
/* Copies the bytes. NULL: no room now: a FLUSH makes some. */
um_nbd_entry *um_nbd_journal_add(um_nbd_journal *journal, uint16_t type, uint64_t offset, const void *bytes,
                                 uint32_t length);
void um_nbd_journal_acknowledge(um_nbd_journal *journal, um_nbd_entry *entry); /* the server took it */
void um_nbd_journal_remove(um_nbd_journal *journal, um_nbd_entry *entry); /* refused by the server, or never sent */
void um_nbd_journal_lose(um_nbd_journal *journal, um_nbd_entry *entry);   /* sent, and its connection was lost */
/* A FLUSH that is sent after this covers what was acknowledged before it; when it succeeded that is let go. */
uint64_t um_nbd_journal_mark(um_nbd_journal *journal);
void um_nbd_journal_flushed(um_nbd_journal *journal, uint64_t mark);
bool um_nbd_journal_is_empty(um_nbd_journal *journal);

#endif
