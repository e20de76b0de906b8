/* zstd_pack.h: writing packed files.
 *
 *   zstd_pack.c        the calls; frames into the file, in order; the end of it
 *   zstd_pack_work.c   threads that compress; what goes in in order comes out in order
 *   zstd_pack_index.c  the index of the base, its segments, the seek table
 *
 * One thread calls and writes the file. It hands tasks of the image to the workers, round a ring, and takes them back
 * in the same order. Nodes of the index are written in small segments between the frames as they become full, so that
 * memory does not grow with the image; seek table entries, 8 bytes a frame, go to a temporary file when they are many.
 */
#ifndef UM_ZSTD_PACK_H
#define UM_ZSTD_PACK_H

#include "zstd_store.h"

#include <stdio.h>

#define UM_ZSTD_TASK (1u << 20)         /* bytes of the image a worker takes at once, about */
#define UM_ZSTD_STRETCH_MAX (16u << 20) /* zeros in one frame */
#define UM_ZSTD_TASK_PAGES (UM_ZSTD_TASK / UM_ZSTD_PAGE_MIN)

typedef struct um_zstd_task {
  uint8_t *in, *out;                  /* owned */
  uint64_t length;                    /* bytes of the image */
  um_store *store;                    /* where they are; NULL: they are in `in` */
  uint64_t offset;                    /* in it */
  uint32_t sizes[UM_ZSTD_TASK_PAGES]; /* of the frames in `out`; 0: a page of zeros */
  int result;
  um_error error;
  enum { UM_ZSTD_TASK_IDLE, UM_ZSTD_TASK_WAITS, UM_ZSTD_TASK_WORKED, UM_ZSTD_TASK_DONE } state; /* crew->lock */
} um_zstd_task;

typedef struct um_zstd_crew {
  um_zstd_codec codec;
  uint64_t task_size; /* bytes of the image */
  pthread_mutex_t lock;
  pthread_cond_t posted, done;
  um_zstd_task *tasks; /* a ring */
  uint32_t count;
  uint32_t first, used; /* the caller's: the oldest that is out, how many are */
  uint32_t next;        /* lock: whose turn it is */
  bool stop;            /* lock */
  pthread_t *threads;
  uint32_t thread_count;
  uint64_t dictionary_hash; /* of frames that may go over as they are */
} um_zstd_crew;

int um_zstd_crew_start(um_zstd_crew *crew, uint32_t threads);
void um_zstd_crew_end(um_zstd_crew *crew);
um_zstd_task *um_zstd_crew_next(um_zstd_crew *crew);   /* the next to fill; NULL: take one back first */
void um_zstd_crew_post(um_zstd_crew *crew);            /* the one that was filled */
um_zstd_task *um_zstd_crew_oldest(um_zstd_crew *crew); /* waits for it; NULL: none is out */
void um_zstd_crew_return(um_zstd_crew *crew);          /* the oldest was used */

typedef struct um_zstd_level {
  um_zstd_entries entries;
  uint64_t number; /* of the node */
  bool some;       /* it has an entry */
} um_zstd_level;

/* A node that waits in the segment buffer. */
typedef struct um_zstd_waiting {
  uint32_t level, at, size; /* of its record, from the start of the segment */
  uint64_t number, checksum;
} um_zstd_waiting;

struct um_zstd_pack {
  um_zstd_file *file; /* NULL: to the descriptor, without superblocks and index */
  int descriptor;
  um_zstd_crew crew;
  um_zstd_super super;
  uint64_t seed;
  uint64_t at;     /* bytes of the file so far */
  uint64_t taken;  /* bytes of the image handed in, */
  uint64_t put;    /* and of those whose frames are in the file */
  uint64_t zeros;  /* bytes of zeros behind `put` that have no frame yet */
  uint64_t filled; /* bytes in the task that is being filled */
  uint64_t live;   /* bytes of the base that have entries */
  int result;      /* of the first failure: everything after fails alike */
  um_error error;

  uint32_t levels; /* that have begun */
  um_zstd_level *level[UM_ZSTD_LEVELS_MAX + 1];
  uint8_t *segment; /* room for nodes, behind a header */
  uint32_t segment_used;
  um_zstd_waiting waiting[UM_ZSTD_FANOUT];
  uint32_t waiting_count;
  um_zstd_segment_row *rows;
  uint32_t row_count, row_room;

  uint64_t frames;     /* in the seek table */
  uint32_t *seek;      /* pairs that are not in the temporary file yet */
  uint32_t seek_count; /* numbers */
  FILE *seek_file;
};

int um_zstd_pack_put(um_zstd_pack *pack, const void *bytes, uint64_t length); /* at the end of the file */
int um_zstd_pack_add_row(um_zstd_pack *pack, const um_zstd_segment_row *row); /* a segment */
int um_zstd_pack_note_frame(um_zstd_pack *pack, uint64_t size, uint64_t decoded);
int um_zstd_pack_note_page(um_zstd_pack *pack, uint64_t page, const um_zstd_entry *entry); /* rising */
int um_zstd_pack_end_index(um_zstd_pack *pack);                                            /* root and segment table */
int um_zstd_pack_end_seek(um_zstd_pack *pack);

#endif
