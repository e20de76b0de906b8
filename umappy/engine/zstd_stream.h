/* zstd_stream.h: decoding frames of any size forward, from a file, with constant memory: a piece of input and the
 * frame's window. */
#ifndef UM_ZSTD_STREAM_H
#define UM_ZSTD_STREAM_H

#include "zstd_library.h"

#include <stdbool.h>

#define UM_ZSTD_WINDOW_LOG 27u /* the largest window that is decoded unless asked for more: as the zstd tool has it */

/* A file and what it takes to decode its frames. Constant. */
typedef struct um_zstd_source {
  const um_zstd *zstd;
  const um_zstd_ddict *dictionary; /* NULL: none */
  const char *path;                /* for errors; the owner's */
  uint64_t size;                   /* bytes of the file when it was opened */
  int descriptor;                  /* the owner's */
  uint32_t window_log;             /* frames that want a larger window are refused */
} um_zstd_source;

typedef struct um_zstd_stream {
  const um_zstd_source *source; /* constant, and so the three below */
  um_zstd_dctx *context;
  unsigned char *input;
  size_t input_size;
  um_zstd_in in;    /* what of the input the decoder has taken */
  uint64_t start;   /* of the frame, bytes from the start of the file */
  uint64_t next;    /* of the file: where the input goes on */
  uint64_t limit;   /* likewise: where it ends */
  uint64_t decoded; /* bytes of the frame that were given out */
  bool ended;       /* the frame did */
} um_zstd_stream;

/* -ENOMEM. */
int um_zstd_stream_open(um_zstd_stream *s, const um_zstd_source *source);
void um_zstd_stream_close(um_zstd_stream *s);                                 /* an all-zero one too */
void um_zstd_stream_begin(um_zstd_stream *s, uint64_t start, uint64_t limit); /* of a frame that lies before limit */
uint64_t um_zstd_stream_position(const um_zstd_stream *s);                    /* of the file; at its end: the frame's */
uint64_t um_zstd_stream_memory(const um_zstd_stream *s);                      /* bytes it holds now */
/* Fills `buffer`, or less where the frame ends before: then s->ended. */
int um_zstd_stream_read(um_zstd_stream *s, void *buffer, uint64_t room, uint64_t *got, um_error *error);

/* What a failed call of the library means: -code, with the frame and the remedy named. */
int um_zstd_source_fail(const um_zstd_source *source, uint64_t frame_start, size_t result, um_error *error);
/* Reads all of it; a file that ends before is -UM_ETRUNCATED. */
int um_zstd_source_read(const um_zstd_source *source, uint64_t offset, void *buffer, uint64_t length, um_error *error);
/* A decompressor for this source's frames; NULL: no memory. */
um_zstd_dctx *um_zstd_source_context(const um_zstd_source *source);

#endif
