/* zstd_library.c: finding libzstd. No lock: who fills a table publishes it with one exchange, and who comes second
 * throws his own away; so a fork in the middle leaves nothing locked. */
#define _GNU_SOURCE
#include "zstd_library.h"

#include "library.h"
#include "store.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SONAME "libzstd.so.1"
#define REMEDY "install libzstd 1.4.0 or later (Debian and Ubuntu: apt-get install libzstd1), or pip install zstandard"

static const um_symbol wanted[] = {
#define FUNCTION(field, symbol) {symbol, offsetof(um_zstd, field), false}
#define OPTIONAL(field, symbol) {symbol, offsetof(um_zstd, field), true}
    FUNCTION(version_number, "ZSTD_versionNumber"),
    FUNCTION(is_error, "ZSTD_isError"),
    FUNCTION(error_name, "ZSTD_getErrorName"),
    FUNCTION(error_code, "ZSTD_getErrorCode"),
    FUNCTION(level_min, "ZSTD_minCLevel"),
    FUNCTION(level_max, "ZSTD_maxCLevel"),
    FUNCTION(cctx_bounds, "ZSTD_cParam_getBounds"),
    FUNCTION(compress_bound, "ZSTD_compressBound"),
    FUNCTION(cctx_create, "ZSTD_createCCtx"),
    FUNCTION(cctx_free, "ZSTD_freeCCtx"),
    FUNCTION(cctx_set, "ZSTD_CCtx_setParameter"),
    FUNCTION(cctx_reset, "ZSTD_CCtx_reset"),
    FUNCTION(cctx_use, "ZSTD_CCtx_refCDict"),
    FUNCTION(cctx_sizeof, "ZSTD_sizeof_CCtx"),
    FUNCTION(compress, "ZSTD_compress2"),
    FUNCTION(compress_stream, "ZSTD_compressStream2"),
    FUNCTION(dctx_create, "ZSTD_createDCtx"),
    FUNCTION(dctx_free, "ZSTD_freeDCtx"),
    FUNCTION(dctx_set, "ZSTD_DCtx_setParameter"),
    FUNCTION(dctx_reset, "ZSTD_DCtx_reset"),
    FUNCTION(dctx_use, "ZSTD_DCtx_refDDict"),
    FUNCTION(dctx_sizeof, "ZSTD_sizeof_DCtx"),
    FUNCTION(decompress, "ZSTD_decompressDCtx"),
    FUNCTION(decompress_stream, "ZSTD_decompressStream"),
    FUNCTION(cdict_create, "ZSTD_createCDict"),
    FUNCTION(cdict_free, "ZSTD_freeCDict"),
    FUNCTION(cdict_sizeof, "ZSTD_sizeof_CDict"),
    FUNCTION(ddict_create, "ZSTD_createDDict"),
    FUNCTION(ddict_free, "ZSTD_freeDDict"),
    FUNCTION(ddict_sizeof, "ZSTD_sizeof_DDict"),
    FUNCTION(dictionary_id, "ZSTD_getDictID_fromDict"),
    FUNCTION(frame_dictionary_id, "ZSTD_getDictID_fromFrame"),
    FUNCTION(frame_content_size, "ZSTD_getFrameContentSize"),
    FUNCTION(frame_compressed_size, "ZSTD_findFrameCompressedSize"),
    OPTIONAL(cctx_estimate, "ZSTD_estimateCCtxSize"),
    OPTIONAL(dctx_estimate, "ZSTD_estimateDCtxSize"),
#undef FUNCTION
#undef OPTIONAL
};
#define WANTED UM_SYMBOL_COUNT(wanted)

static _Atomic(const um_zstd *) table;

const char *um_zstd_name(uint32_t index) {
  return index < WANTED ? wanted[index].name : NULL;
}

/* 0, or -code with the reason. */
static int check_version(um_zstd *zstd, char *reason, size_t room) {
  zstd->version = zstd->version_number();
  if (zstd->version >= UM_ZSTD_VERSION_MIN)
    return 0;
  snprintf(reason, room, "its version is %u.%u.%u", zstd->version / 10000, zstd->version / 100 % 100,
           zstd->version % 100);
  return -ELIBACC;
}

static bool publish(const um_zstd *zstd) {
  const um_zstd *none = NULL;
  return atomic_compare_exchange_strong(&table, &none, zstd);
}

/* The table of the system's library; NULL with the reason. */
static um_zstd *open_system(void **library, char *reason, size_t room) {
  um_zstd *zstd = calloc(1, sizeof *zstd);
  if (!zstd) {
    snprintf(reason, room, "%s", strerror(ENOMEM));
    return NULL;
  }
  *library = um_library_open(SONAME, zstd, wanted, WANTED, zstd->where, sizeof zstd->where, reason, room);
  if (*library && check_version(zstd, reason, room) == 0)
    return zstd;
  if (*library)
    dlclose(*library);
  free(zstd);
  return NULL;
}

const um_zstd *um_zstd_get(um_error *error) {
  const um_zstd *known = atomic_load_explicit(&table, memory_order_acquire);
  if (known)
    return known;
  void *library;
  char reason[256];
  um_zstd *zstd = open_system(&library, reason, sizeof reason);
  if (zstd && publish(zstd))
    return zstd;
  if (zstd) {
    free(zstd);
    dlclose(library);
  }
  known = atomic_load_explicit(&table, memory_order_acquire);
  if (!known)
    um_error_set(error, ELIBACC, UM_OP_OPEN, 0, 0, "%s cannot be used: %s; %s", SONAME, reason, REMEDY);
  return known;
}

static void *find_offered(void *addresses, uint32_t index) {
  return ((void *const *)addresses)[index];
}

int um_zstd_offer(void *const *addresses, const char *where, um_error *error) {
  if (atomic_load_explicit(&table, memory_order_acquire))
    return 0;
  um_zstd *zstd = calloc(1, sizeof *zstd);
  if (!zstd)
    return um_error_set(error, ENOMEM, UM_OP_OPEN, 0, 0, "libzstd of %s", where);
  char reason[128];
  int result = um_library_fill(zstd, wanted, WANTED, find_offered, (void *)addresses, reason, sizeof reason);
  if (result == 0)
    result = check_version(zstd, reason, sizeof reason);
  if (result < 0) {
    free(zstd);
    return um_error_set(error, -result, UM_OP_OPEN, 0, 0, "libzstd of %s cannot be used: %s; %s", where, reason,
                        REMEDY);
  }
  snprintf(zstd->where, sizeof zstd->where, "%s", where);
  if (publish(zstd))
    return 1;
  free(zstd);
  return 0;
}

int um_zstd_find(const char **where, um_error *error) {
  const um_zstd *zstd = um_zstd_get(error);
  if (!zstd)
    return -ELIBACC;
  *where = zstd->where;
  return (int)zstd->version;
}
