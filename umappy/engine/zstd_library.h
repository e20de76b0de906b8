/* zstd_library.h: libzstd as a table of function pointers, so that building needs none of its headers and an
 * installation none of its packages.
 *
 * The table is filled once a process, at first use, by dlopen("libzstd.so.1"), whose SONAME promises these functions
 * since 1.4.0; or by whoever first offers the addresses of another copy (um_zstd_offer; stores/_zstd_library.py offers
 * the one inside the package zstandard). From then on it is constant. Its functions need no GIL and may be called from
 * any thread, on one context by one thread at a time. Types and numbers here are the library's binary interface. */
#ifndef UM_ZSTD_LIBRARY_H
#define UM_ZSTD_LIBRARY_H

#include "umappy.h"

#include <stddef.h>

#define UM_ZSTD_VERSION_MIN 10400u
#define UM_ZSTD_MAGIC 0xFD2FB528u           /* begins a frame, little-endian */
#define UM_ZSTD_SKIPPABLE_MAGIC 0x184D2A50u /* and the 15 numbers after it: begin a skippable frame */
#define UM_ZSTD_SIZE_UNKNOWN UINT64_MAX     /* of getFrameContentSize: its header does not say */
#define UM_ZSTD_SIZE_ERROR (UINT64_MAX - 1) /* no frame, or too little of one */
#define UM_ZSTD_BLOCK_MAX (128u << 10)      /* bytes a block of a frame decodes to, at most */

typedef struct um_zstd_cctx um_zstd_cctx;   /* a compressor's context, */
typedef struct um_zstd_dctx um_zstd_dctx;   /* a decompressor's, */
typedef struct um_zstd_cdict um_zstd_cdict; /* and digested dictionaries for the two: constant, any number of threads */
typedef struct um_zstd_ddict um_zstd_ddict;

typedef struct um_zstd_in {
  const void *bytes;
  size_t size, position;
} um_zstd_in;

typedef struct um_zstd_out {
  void *bytes;
  size_t size, position;
} um_zstd_out;

typedef struct um_zstd_bounds {
  size_t error;
  int low, high;
} um_zstd_bounds;

enum { /* parameters of cctx_set */
       UM_ZSTD_C_LEVEL = 100,
       UM_ZSTD_C_WINDOW_LOG = 101,
       UM_ZSTD_C_CONTENT_SIZE = 200,
       UM_ZSTD_C_CHECKSUM = 201,
       UM_ZSTD_C_DICT_ID = 202,
};
enum { UM_ZSTD_D_WINDOW_LOG_MAX = 100 }; /* of dctx_set */
enum { UM_ZSTD_RESET_SESSION = 1, UM_ZSTD_RESET_PARAMETERS = 2, UM_ZSTD_RESET_BOTH = 3 };
enum { UM_ZSTD_CONTINUE = 0, UM_ZSTD_FLUSH = 1, UM_ZSTD_END = 2 }; /* of compress_stream */
enum {                                                             /* of error_code */
       UM_ZSTD_ERROR_WINDOW_TOO_LARGE = 16,
       UM_ZSTD_ERROR_CHECKSUM = 22,
       UM_ZSTD_ERROR_DICTIONARY = 32,
       UM_ZSTD_ERROR_MEMORY = 64,
       UM_ZSTD_ERROR_DESTINATION_TOO_SMALL = 70,
       UM_ZSTD_ERROR_SOURCE_SIZE = 72,
};

/* Every call that returns size_t returns what is_error knows for a failure. Parameters of contexts last until they are
 * reset; so do the dictionaries they refer to, which must outlive them. */
typedef struct um_zstd {
  unsigned (*version_number)(void); /* 10504 is 1.5.4 */
  unsigned (*is_error)(size_t result);
  const char *(*error_name)(size_t result);
  int (*error_code)(size_t result);
  int (*level_min)(void);
  int (*level_max)(void);
  um_zstd_bounds (*cctx_bounds)(int parameter);
  size_t (*compress_bound)(size_t size);

  um_zstd_cctx *(*cctx_create)(void); /* NULL: no memory */
  size_t (*cctx_free)(um_zstd_cctx *context);
  size_t (*cctx_set)(um_zstd_cctx *context, int parameter, int value);
  size_t (*cctx_reset)(um_zstd_cctx *context, int what);
  size_t (*cctx_use)(um_zstd_cctx *context, const um_zstd_cdict *dictionary); /* NULL: none any more */
  size_t (*cctx_sizeof)(const um_zstd_cctx *context);                         /* bytes it holds now */
  size_t (*compress)(um_zstd_cctx *context, void *to, size_t room, const void *from, size_t size); /* one frame */
  size_t (*compress_stream)(um_zstd_cctx *context, um_zstd_out *to, um_zstd_in *from, int directive);

  um_zstd_dctx *(*dctx_create)(void);
  size_t (*dctx_free)(um_zstd_dctx *context);
  size_t (*dctx_set)(um_zstd_dctx *context, int parameter, int value);
  size_t (*dctx_reset)(um_zstd_dctx *context, int what);
  size_t (*dctx_use)(um_zstd_dctx *context, const um_zstd_ddict *dictionary);
  size_t (*dctx_sizeof)(const um_zstd_dctx *context);
  size_t (*decompress)(um_zstd_dctx *context, void *to, size_t room, const void *from, size_t size); /* whole frames */
  size_t (*decompress_stream)(um_zstd_dctx *context, um_zstd_out *to, um_zstd_in *from); /* 0: a frame ended */

  um_zstd_cdict *(*cdict_create)(const void *bytes, size_t size, int level); /* copies; NULL */
  size_t (*cdict_free)(um_zstd_cdict *dictionary);
  size_t (*cdict_sizeof)(const um_zstd_cdict *dictionary);
  um_zstd_ddict *(*ddict_create)(const void *bytes, size_t size); /* likewise */
  size_t (*ddict_free)(um_zstd_ddict *dictionary);
  size_t (*ddict_sizeof)(const um_zstd_ddict *dictionary);
  unsigned (*dictionary_id)(const void *bytes, size_t size);       /* 0: raw content, no dictionary of zstd's format */
  unsigned (*frame_dictionary_id)(const void *frame, size_t size); /* 0: none, or not told */

  unsigned long long (*frame_content_size)(const void *frame, size_t size); /* or UM_ZSTD_SIZE_... */
  size_t (*frame_compressed_size)(const void *frame, size_t size);          /* skippable frames too */

  /* Not promised by the SONAME: NULL where the library hides them. Bytes for one context at this level, at most. */
  size_t (*cctx_estimate)(int level);
  size_t (*dctx_estimate)(void);

  unsigned version; /* version_number() */
  char where[256];  /* the file it came from, may be cut */
} um_zstd;

/* The table, or NULL with `error` filled (ELIBACC; the remedy in its text). Never NULL after it was there once. May
 * open files: call it where a store is opened, not where a page is waited for. */
const um_zstd *um_zstd_get(um_error *error);

#endif
