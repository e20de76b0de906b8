/* zstd_codec.h: pages to frames and back, with contexts and buffers that go round. */
#ifndef UM_ZSTD_CODEC_H
#define UM_ZSTD_CODEC_H

#include "zstd_library.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

/* What one call works with; its thread's alone from take to give. Plain malloc'ed memory, which never faults. */
typedef struct um_zstd_context {
  struct um_zstd_context *next; /* idle ones; codec->lock */
  um_zstd_cctx *cctx;           /* made when first wanted, and so the rest */
  um_zstd_dctx *dctx;
  bool lax;        /* dctx passes by the checksums in frames */
  uint8_t *buffer; /* for records; aligned to UM_ZSTD_UNIT */
  uint8_t *stored; /* in it: what was read last */
  uint64_t room;   /* bytes of it */
  bool huge;       /* it is of huge pages, where the kernel has any */
  uint8_t *page;   /* page_size bytes */
} um_zstd_context;

typedef struct um_zstd_codec {
  const um_zstd *library;    /* constant, and so the next four */
  um_zstd_cdict *compressor; /* of the dictionary; NULL: none */
  um_zstd_ddict *decompressor;
  int32_t level;
  uint32_t page_size;
  pthread_mutex_t lock; /* leaf; of the list */
  um_zstd_context *idle;
  uint32_t idle_count;
  uint32_t keep;     /* idle ones, at most */
  _Atomic bool huge; /* buffers may be of huge pages */
} um_zstd_codec;

int um_zstd_codec_init(um_zstd_codec *codec, int32_t level, uint32_t page_size, um_error *error);
int um_zstd_codec_dictionary(um_zstd_codec *codec, const void *bytes, uint64_t size); /* before the first page */
void um_zstd_codec_end(um_zstd_codec *codec);

/* Keeps no more idle contexts than fit, one at least; how many bytes they take. */
uint64_t um_zstd_codec_limit(um_zstd_codec *codec, uint64_t bytes);

um_zstd_context *um_zstd_context_take(um_zstd_codec *codec); /* NULL: no memory */
void um_zstd_context_give(um_zstd_codec *codec, um_zstd_context *context);
/* The buffer, that large at least, what was in it is gone; or NULL. `length`: bytes that will be read or written. */
uint8_t *um_zstd_context_room(um_zstd_codec *codec, um_zstd_context *context, uint64_t bytes, uint64_t length);
uint8_t *um_zstd_context_page(um_zstd_codec *codec, um_zstd_context *context); /* or NULL */

/* One frame; `deep`: its own checksum too, where it has one. `room` is enough where it is um_zstd_bound. Bytes, or
 * -errno. */
uint64_t um_zstd_bound(const um_zstd_codec *codec, uint64_t length);
int64_t um_zstd_compress(um_zstd_codec *codec, um_zstd_context *context, void *to, uint64_t room, const void *from,
                         uint64_t length);
int64_t um_zstd_decompress(um_zstd_codec *codec, um_zstd_context *context, void *to, uint64_t room, const void *from,
                           uint64_t length, bool deep);

bool um_zstd_is_zero(const void *bytes, uint64_t length);

#endif
