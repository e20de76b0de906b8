/* zstd_frames.h: which frames a .zst file is made of, and which bytes of its image each holds.
 *
 * The image is what `zstd -d` gives: the frames' bytes, one after the other. Where the frames lie is told by the seek
 * table of the seekable format at the end of the file, if there is one that may be right; else by walking: a frame's
 * header, then the headers of its blocks, without decoding. A frame whose header does not tell its size is decoded once
 * for it.
 *
 * Nothing in the file is believed: sizes are held against what so many bytes can decode to, a seek table against the
 * file's length and the headers of up to UM_ZSTD_LOOKS frames. What cannot be known without decoding, whoever decodes a
 * frame must see: that it has exactly `length` bytes in the file and gives exactly its bytes of the image. */
#ifndef UM_ZSTD_FRAMES_H
#define UM_ZSTD_FRAMES_H

#include "zstd_stream.h"

#define UM_ZSTD_LOOKS                                                                                                  \
  64u /* frames of a seek table that are held against their headers, the first and last among them */

typedef struct um_zstd_frame {
  uint64_t start;  /* bytes from the start of the file */
  uint64_t length; /* bytes in the file */
  uint64_t offset; /* of its first byte in the image; the next one's is its end */
} um_zstd_frame;

typedef struct um_zstd_frames {
  um_zstd_frame *list; /* rising; frames that hold nothing are left out. One more at the end, at the image's end */
  uint64_t count;      /* without that one */
  uint64_t capacity;
  uint64_t largest; /* bytes of image in one frame, at most */
  uint64_t longest; /* bytes of file in one frame, at most */
  uint64_t window;  /* of those whose header was looked at, the largest */
  uint64_t skipped; /* bytes of the file in skippable frames, a seek table among them */
  uint64_t decoded; /* bytes of image that were decoded to find sizes */
  bool table;       /* sizes are those of a seek table */
  bool table_wrong; /* there is one that cannot be right: it was not used */
} um_zstd_frames;

/* A frame's header. */
typedef struct um_zstd_header {
  uint64_t content;    /* bytes it decodes to, or UM_ZSTD_SIZE_UNKNOWN */
  uint64_t window;     /* bytes a streaming decoder needs */
  uint32_t dictionary; /* its number, or 0 */
  uint32_t length;     /* bytes of the header */
  bool checksum;       /* four bytes of it follow the last block */
} um_zstd_header;

#define UM_ZSTD_HEADER_MAX 18u

/* 0, -UM_ETRUNCATED: `size` bytes are too few, or -UM_ECORRUPT: no frame, or one of a kind nobody defined. */
int um_zstd_header_parse(const unsigned char *bytes, uint64_t size, um_zstd_header *header);

static inline uint64_t um_zstd_frames_size(const um_zstd_frames *frames) { /* bytes of the image */
  return frames->list[frames->count].offset;
}
uint64_t um_zstd_frames_find(const um_zstd_frames *frames, uint64_t offset); /* the frame that holds that byte */
void um_zstd_frames_free(um_zstd_frames *frames);

int um_zstd_frames_add(um_zstd_frames *frames, uint64_t start, uint64_t length,
                       uint64_t size); /* -ENOMEM, -EOVERFLOW */
/* 1: filled from a seek table; 0: there is none that can be used, table_wrong says whether one looked so. */
int um_zstd_seek_table_read(const um_zstd_source *source, um_zstd_frames *frames, um_error *error);

#endif
