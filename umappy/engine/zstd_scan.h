/* zstd_scan.h: what stands between opening a .zst and knowing its frames. The call in umappy.h does it in steps, so
 * that who waits can be told, and can give up. */
#ifndef UM_ZSTD_SCAN_H
#define UM_ZSTD_SCAN_H

#include "zstd_frames.h"

enum um_zstd_phase { UM_ZSTD_TABLE, UM_ZSTD_HEADER, UM_ZSTD_BLOCKS, UM_ZSTD_DECODE, UM_ZSTD_DONE };

struct um_zstd_scan {
  um_zstd_source source; /* constant after open */
  char *path;            /* absolute; owned, and so the two below */
  um_zstd_ddict *dictionary;
  int descriptor;
  um_zstd_frames frames; /* complete when phase is UM_ZSTD_DONE */
  enum um_zstd_phase phase;
  uint64_t position;                    /* of the file: what is looked at next */
  uint64_t start;                       /* of the frame that position lies in */
  um_zstd_header header;                /* its */
  uint64_t possible;                    /* bytes of image its blocks so far can hold, at most */
  um_zstd_stream stream;                /* open when a frame had to be decoded */
  unsigned char *window;                /* owned: bytes of the file, */
  uint64_t window_start, window_length; /* these */
};

#endif
