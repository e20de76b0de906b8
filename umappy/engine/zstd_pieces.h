/* zstd_pieces.h: the last decoded pieces of a .zst that umappy did not write, in bounded memory.
 *
 * A piece is a whole frame, or a part of a large one. Who finds none claims it, decodes it and says so; who finds one
 * being decoded waits for it. A thread that has a piece never waits for another, so nobody waits in a circle. */
#ifndef UM_ZSTD_PIECES_H
#define UM_ZSTD_PIECES_H

#include "umappy.h"

#include <pthread.h>

#define UM_ZSTD_PIECES 64u

typedef struct um_zstd_piece {
  uint64_t frame, number; /* which; constant while it has users, and so the next two */
  unsigned char *bytes;   /* owned; NULL: none, and nothing of the rest means anything */
  uint64_t room;          /* bytes behind it */
  uint64_t used;          /* when somebody last took it, in turns; lock, and so the two below */
  uint32_t users;
  bool ready; /* false: its only user decodes it */
} um_zstd_piece;

typedef struct um_zstd_pieces {
  pthread_mutex_t lock;
  pthread_cond_t changed;               /* a piece became ready, or free */
  uint64_t memory;                      /* bytes, at most; constant once there are pieces */
  uint64_t held, turn, changes;         /* lock */
  um_zstd_piece pieces[UM_ZSTD_PIECES]; /* lock; see there */
} um_zstd_pieces;

int um_zstd_pieces_init(um_zstd_pieces *p, uint64_t memory);
void um_zstd_pieces_free(um_zstd_pieces *p);

/* All with the lock held. */
um_zstd_piece *um_zstd_piece_find(um_zstd_pieces *p, uint64_t frame, uint64_t number); /* ready or not, or NULL */
void um_zstd_piece_take(um_zstd_pieces *p, um_zstd_piece *piece);                      /* a ready one */
/* One to decode into, claimed; NULL: there is no room now (`full`), or no memory. */
um_zstd_piece *um_zstd_piece_claim(um_zstd_pieces *p, uint64_t frame, uint64_t number, uint64_t size, bool *full);
void um_zstd_piece_give(um_zstd_pieces *p, um_zstd_piece *piece, bool good); /* not good: it is forgotten */
/* Until something changes. -ETIMEDOUT when nothing did for the store's deadline. */
int um_zstd_pieces_wait(um_zstd_pieces *p);
void um_zstd_pieces_change(um_zstd_pieces *p);

#endif
