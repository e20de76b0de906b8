/* nbd_blocks.c: requests that are not whole blocks of the server: their ends go through a buffer of a block.
 *
 * Race: two writes of parts of one block. Each reads the block, changes its part and writes it back, so the second
 * waits for the first. A write of whole blocks beside them would be one of the same page, which no caller makes. */
#include "nbd.h"

#include "internal.h"

#include <inttypes.h>

struct um_nbd_guest {
  struct um_nbd_guest *next;
  uint64_t block;
};

/* A part of one block. */
typedef struct part {
  uint64_t block, offset, length;
} part;

static part cut_part(const um_nbd_store *store, uint64_t offset, uint64_t length) {
  uint64_t unit = store->export_.block_min, start = offset - offset % unit;
  return (part){.block = start, .offset = offset, .length = um_min(length, start + unit - offset)};
}

static void enter(um_nbd_guard *guard, struct um_nbd_guest *guest) {
  pthread_mutex_lock(&guard->lock);
  for (struct um_nbd_guest *at = guard->guests; at;) {
    if (at->block == guest->block) { /* it leaves within the deadlines of its reading and writing */
      pthread_cond_wait(&guard->left, &guard->lock);
      at = guard->guests;
    } else {
      at = at->next;
    }
  }
  guest->next = guard->guests;
  guard->guests = guest;
  pthread_mutex_unlock(&guard->lock);
}

static void leave(um_nbd_guard *guard, struct um_nbd_guest *guest) {
  pthread_mutex_lock(&guard->lock);
  struct um_nbd_guest **at = &guard->guests;
  while (*at != guest)
    at = &(*at)->next;
  *at = guest->next;
  pthread_cond_broadcast(&guard->left);
  pthread_mutex_unlock(&guard->lock);
}

static int read_part(um_nbd_store *store, const part *p, char *block, void *buffer, um_error *error) {
  int result = um_nbd_read_whole(store, p->block, block, store->export_.block_min, error);
  if (result == 0)
    memcpy(buffer, block + (p->offset - p->block), p->length);
  return result;
}

static int write_part(um_nbd_store *store, const part *p, char *block, const void *buffer, um_error *error) {
  struct um_nbd_guest guest = {.block = p->block};
  enter(&store->guard, &guest);
  int result = um_nbd_read_whole(store, p->block, block, store->export_.block_min, error);
  if (result == 0) {
    memcpy(block + (p->offset - p->block), buffer, p->length);
    result = um_nbd_write_whole(store, p->block, block, store->export_.block_min, error);
  }
  leave(&store->guard, &guest);
  return result;
}

static char *make_block(um_nbd_store *store, int op, uint64_t offset, uint64_t length, um_error *error) {
  char *block = malloc(store->export_.block_min);
  if (!block)
    um_nbd_fail(store, ENOMEM, op, offset, length, error, "no memory for a block of %" PRIu32 " bytes",
                store->export_.block_min);
  return block;
}

/* Bytes of whole blocks at the begin of a stretch. */
static uint64_t find_middle(const um_nbd_store *store, uint64_t offset, uint64_t length) {
  uint64_t unit = store->export_.block_min;
  return offset % unit ? 0 : length - length % unit;
}

int um_nbd_read_parts(um_nbd_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error) {
  char *block = make_block(store, UM_OP_READ, offset, length, error);
  int result = block ? 0 : -ENOMEM;
  while (length > 0 && result == 0) {
    uint64_t n = find_middle(store, offset, length);
    if (n > 0) {
      result = um_nbd_read_whole(store, offset, buffer, n, error);
    } else {
      part p = cut_part(store, offset, length);
      n = p.length;
      result = read_part(store, &p, block, buffer, error);
    }
    offset += n;
    length -= n;
    buffer = (char *)buffer + n;
  }
  free(block);
  return result;
}

int um_nbd_write_parts(um_nbd_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error) {
  char *block = make_block(store, UM_OP_WRITE, offset, length, error);
  int result = block ? 0 : -ENOMEM;
  while (length > 0 && result == 0) {
    uint64_t n = find_middle(store, offset, length);
    if (n > 0) {
      result = um_nbd_write_whole(store, offset, buffer, n, error);
    } else {
      part p = cut_part(store, offset, length);
      n = p.length;
      result = write_part(store, &p, block, buffer, error);
    }
    offset += n;
    length -= n;
    buffer = (const char *)buffer + n;
  }
  free(block);
  return result;
}
