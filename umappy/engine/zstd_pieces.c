/* zstd_pieces.c: a table small enough to be searched from end to end: decoding one piece takes longer than that. */
#include "zstd_pieces.h"

#include "internal.h"

#define WAIT_SECONDS 30u /* that nothing at all changes: decoding a piece takes milliseconds, a disk may sleep */

int um_zstd_pieces_init(um_zstd_pieces *p, uint64_t memory) {
  pthread_condattr_t attributes;
  *p = (um_zstd_pieces){.memory = memory};
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(&p->changed, &attributes);
  pthread_condattr_destroy(&attributes);
  return -pthread_mutex_init(&p->lock, NULL);
}

void um_zstd_pieces_free(um_zstd_pieces *p) {
  for (unsigned i = 0; i < UM_ZSTD_PIECES; i++)
    free(p->pieces[i].bytes);
  pthread_cond_destroy(&p->changed);
  pthread_mutex_destroy(&p->lock);
}

um_zstd_piece *um_zstd_piece_find(um_zstd_pieces *p, uint64_t frame, uint64_t number) {
  for (unsigned i = 0; i < UM_ZSTD_PIECES; i++) {
    um_zstd_piece *piece = &p->pieces[i];
    if (piece->bytes && piece->frame == frame && piece->number == number)
      return piece;
  }
  return NULL;
}

void um_zstd_piece_take(um_zstd_pieces *p, um_zstd_piece *piece) {
  UM_ASSERT(piece->ready);
  piece->users++;
  piece->used = ++p->turn;
}

static void drop(um_zstd_pieces *p, um_zstd_piece *piece) {
  p->held -= piece->room;
  free(piece->bytes);
  *piece = (um_zstd_piece){0};
}

static um_zstd_piece *find_empty(um_zstd_pieces *p) {
  for (unsigned i = 0; i < UM_ZSTD_PIECES; i++)
    if (!p->pieces[i].bytes)
      return &p->pieces[i];
  return NULL;
}

static um_zstd_piece *find_oldest(um_zstd_pieces *p) {
  um_zstd_piece *oldest = NULL;
  for (unsigned i = 0; i < UM_ZSTD_PIECES; i++) {
    um_zstd_piece *piece = &p->pieces[i];
    if (piece->bytes && piece->users == 0 && (!oldest || piece->used < oldest->used))
      oldest = piece;
  }
  return oldest;
}

um_zstd_piece *um_zstd_piece_claim(um_zstd_pieces *p, uint64_t frame, uint64_t number, uint64_t size, bool *full) {
  um_zstd_piece *piece = find_empty(p);
  *full = false;
  while (!piece || p->held + size > p->memory) {
    um_zstd_piece *oldest = find_oldest(p);
    if (!oldest) {
      *full = true;
      return NULL;
    }
    drop(p, oldest);
    piece = find_empty(p);
  }
  unsigned char *bytes = malloc(size);
  if (!bytes)
    return NULL;
  p->held += size;
  *piece =
      (um_zstd_piece){.frame = frame, .number = number, .bytes = bytes, .room = size, .used = ++p->turn, .users = 1};
  return piece;
}

void um_zstd_piece_give(um_zstd_pieces *p, um_zstd_piece *piece, bool good) {
  piece->users--;
  if (!good)
    drop(p, piece);
  else
    piece->ready = true;
  um_zstd_pieces_change(p);
}

void um_zstd_pieces_change(um_zstd_pieces *p) {
  p->changes++;
  pthread_cond_broadcast(&p->changed);
}

int um_zstd_pieces_wait(um_zstd_pieces *p) {
  uint64_t seen = p->changes, deadline = um_now_ns() + WAIT_SECONDS * UINT64_C(1000000000);
  while (p->changes == seen)
    if (um_wait_until(&p->changed, &p->lock, deadline) == ETIMEDOUT)
      return p->changes == seen ? -ETIMEDOUT : 0;
  return 0;
}
