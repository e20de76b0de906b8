/* zstd_codec.c: see zstd_codec.h. There are as many contexts as threads were ever inside at once.
 *
 * A device is told of each page of memory that it reads to, and a virtual machine's takes twice as long for small ones.
 * So buffers become huge pages where long reads and writes come, and the budget is worth that. */
#include "zstd_codec.h"

#include "zstd_store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define KEEP_MAX 64u
#define HUGE (2u << 20)
#define HUGE_KEEP 8u             /* contexts that fit, at least */
#define HUGE_LENGTH (256u << 10) /* of a read or write that is worth it */
#define IGNORE_CHECKSUM 1002     /* ZSTD_d_forceIgnoreChecksum, since 1.4.9 */
#define CONTEXT_GUESS (2u << 20) /* bytes of a compressor and a decompressor, where the library does not tell */

int um_zstd_codec_init(um_zstd_codec *codec, int32_t level, uint32_t page_size, um_error *error) {
  memset(codec, 0, sizeof(*codec));
  codec->library = um_zstd_get(error);
  if (!codec->library)
    return -ELIBACC;
  int low = codec->library->level_min(), high = codec->library->level_max();
  if (level < low || level > high)
    return um_error_set(error, EINVAL, UM_OP_OPEN, 0, 0, "level is %d; libzstd %s has %d to %d", (int)level,
                        codec->library->where, low, high);
  codec->level = level;
  codec->page_size = page_size;
  codec->keep = KEEP_MAX;
  pthread_mutex_init(&codec->lock, NULL);
  return 0;
}

int um_zstd_codec_dictionary(um_zstd_codec *codec, const void *bytes, uint64_t size) {
  codec->compressor = codec->library->cdict_create(bytes, size, codec->level);
  codec->decompressor = codec->library->ddict_create(bytes, size);
  return codec->compressor && codec->decompressor ? 0 : -ENOMEM;
}

static void free_context(um_zstd_codec *codec, um_zstd_context *context) {
  if (context->cctx)
    codec->library->cctx_free(context->cctx);
  if (context->dctx)
    codec->library->dctx_free(context->dctx);
  free(context->buffer);
  free(context->page);
  free(context);
}

void um_zstd_codec_end(um_zstd_codec *codec) {
  if (!codec->library)
    return;
  while (codec->idle) {
    um_zstd_context *context = codec->idle;
    codec->idle = context->next;
    free_context(codec, context);
  }
  if (codec->compressor)
    codec->library->cdict_free(codec->compressor);
  if (codec->decompressor)
    codec->library->ddict_free(codec->decompressor);
  pthread_mutex_destroy(&codec->lock);
}

um_zstd_context *um_zstd_context_take(um_zstd_codec *codec) {
  pthread_mutex_lock(&codec->lock);
  um_zstd_context *context = codec->idle;
  if (context) {
    codec->idle = context->next;
    codec->idle_count--;
  }
  pthread_mutex_unlock(&codec->lock);
  return context ? context : calloc(1, sizeof(*context));
}

void um_zstd_context_give(um_zstd_codec *codec, um_zstd_context *context) {
  pthread_mutex_lock(&codec->lock);
  bool keep = codec->idle_count < codec->keep;
  if (keep) {
    context->next = codec->idle;
    codec->idle = context;
    codec->idle_count++;
  }
  pthread_mutex_unlock(&codec->lock);
  if (!keep)
    free_context(codec, context);
}

uint64_t um_zstd_codec_limit(um_zstd_codec *codec, uint64_t bytes) {
  const um_zstd *z = codec->library;
  uint64_t each =
      z->cctx_estimate && z->dctx_estimate ? z->cctx_estimate(codec->level) + z->dctx_estimate() : CONTEXT_GUESS;
  uint64_t buffer = UM_ZSTD_BATCH + 2 * UM_ZSTD_UNIT + z->compress_bound(codec->page_size);
  uint64_t huge = (buffer + HUGE - 1) / HUGE * HUGE;
  each += codec->page_size;
  bool is_huge = bytes / (each + huge) >= HUGE_KEEP;
  each += is_huge ? huge : buffer;
  uint64_t count = bytes / each;
  count = count < 1 ? 1 : count > KEEP_MAX ? KEEP_MAX : count;
  pthread_mutex_lock(&codec->lock);
  codec->keep = (uint32_t)count;
  atomic_store(&codec->huge, is_huge);
  pthread_mutex_unlock(&codec->lock);
  return count * each;
}

/* It never shrinks: who writes reads parts of pages meanwhile. */
uint8_t *um_zstd_context_room(um_zstd_codec *codec, um_zstd_context *context, uint64_t bytes, uint64_t length) {
  bool huge = context->huge || (atomic_load(&codec->huge) && length >= HUGE_LENGTH);
  if (context->room < bytes || huge != context->huge) {
    uint64_t unit = huge ? HUGE : UM_ZSTD_UNIT, most = bytes > context->room ? bytes : context->room;
    uint64_t room = (most + unit - 1) / unit * unit;
    free(context->buffer);
    context->buffer = aligned_alloc(unit, room);
    context->room = context->buffer ? room : 0;
    context->huge = huge;
    if (huge && context->buffer)
      madvise(context->buffer, room, MADV_HUGEPAGE);
  }
  return context->buffer;
}

uint8_t *um_zstd_context_page(um_zstd_codec *codec, um_zstd_context *context) {
  if (!context->page)
    context->page = malloc(codec->page_size);
  return context->page;
}

uint64_t um_zstd_bound(const um_zstd_codec *codec, uint64_t length) {
  return codec->library->compress_bound(length);
}

static um_zstd_cctx *make_cctx(um_zstd_codec *codec) {
  const um_zstd *z = codec->library;
  um_zstd_cctx *cctx = z->cctx_create();
  if (cctx && (z->is_error(z->cctx_set(cctx, UM_ZSTD_C_LEVEL, codec->level)) ||
               z->is_error(z->cctx_set(cctx, UM_ZSTD_C_CHECKSUM, 1)) ||
               (codec->compressor && z->is_error(z->cctx_use(cctx, codec->compressor))))) {
    z->cctx_free(cctx);
    cctx = NULL;
  }
  return cctx;
}

int64_t um_zstd_compress(um_zstd_codec *codec, um_zstd_context *context, void *to, uint64_t room, const void *from,
                         uint64_t length) {
  if (!context->cctx && !(context->cctx = make_cctx(codec)))
    return -ENOMEM;
  size_t result = codec->library->compress(context->cctx, to, room, from, length);
  return codec->library->is_error(result) ? -ENOMEM : (int64_t)result; /* with room enough nothing else can fail */
}

static um_zstd_dctx *make_dctx(um_zstd_codec *codec) {
  const um_zstd *z = codec->library;
  um_zstd_dctx *dctx = z->dctx_create();
  if (dctx && codec->decompressor && z->is_error(z->dctx_use(dctx, codec->decompressor))) {
    z->dctx_free(dctx);
    dctx = NULL;
  }
  return dctx;
}

int64_t um_zstd_decompress(um_zstd_codec *codec, um_zstd_context *context, void *to, uint64_t room, const void *from,
                           uint64_t length, bool deep) {
  if (!context->dctx && !(context->dctx = make_dctx(codec)))
    return -ENOMEM;
  if (context->lax == deep) { /* libraries that do not know it check always */
    codec->library->dctx_set(context->dctx, IGNORE_CHECKSUM, !deep);
    context->lax = !deep;
  }
  size_t result = codec->library->decompress(context->dctx, to, room, from, length);
  if (!codec->library->is_error(result))
    return (int64_t)result;
  return codec->library->error_code(result) == UM_ZSTD_ERROR_MEMORY ? -ENOMEM : -UM_ECORRUPT;
}

bool um_zstd_is_zero(const void *bytes, uint64_t length) {
  const uint8_t *at = bytes;
  return length == 0 || (at[0] == 0 && memcmp(at, at + 1, length - 1) == 0);
}

uint8_t *um_zstd_dictionary_encode(const void *dictionary, uint64_t length, uint64_t offset, uint64_t seed,
                                   const um_zstd_codec *codec, um_zstd_segment_row *row, um_zstd_place *place) {
  uint32_t record = UM_ZSTD_RECORD_HEADER + (uint32_t)length;
  uint32_t size = (uint32_t)um_zstd_align(UM_ZSTD_SEGMENT_HEADER + (uint64_t)record);
  *row = (um_zstd_segment_row){.offset = offset, .size = size, .live = size, .filled = size, .flags = UM_ZSTD_FIXED};
  uint8_t *bytes = calloc(1, size);
  if (!bytes)
    return NULL;
  um_zstd_segment_header(bytes, offset, size, seed);
  uint8_t *at = bytes + UM_ZSTD_SEGMENT_HEADER;
  memcpy(at + UM_ZSTD_RECORD_HEADER, dictionary, length);
  uint64_t checksum = um_zstd_record_seal(at, UM_ZSTD_DICTIONARY, (uint32_t)length, 0, 1, seed);
  uint32_t id = codec->library->dictionary_id(dictionary, length);
  *place = (um_zstd_place){offset + UM_ZSTD_SEGMENT_HEADER, record, id, checksum};
  return bytes;
}
