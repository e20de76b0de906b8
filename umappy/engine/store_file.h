/* store_file.h: what the files of the file store share.
 *
 *   store_file.c         reading, writing, flushing, closing
 *   store_file_batch.c   many reads, or writes, in flight from one thread
 *   store_file_cached.c  reading what the page cache has already
 *   store_file_open.c    from options to open, checked, sized files; undoing it
 *   store_file_direct.c  may this file have O_DIRECT, and with which alignment
 *   store_file_lock.c    one writer a file */
#ifndef UM_STORE_FILE_H
#define UM_STORE_FILE_H

#include "store.h"
#include "store_fork.h"

#include <pthread.h>
#include <stdatomic.h>

#define UM_TO_END UINT64_MAX

/* One part: a stretch of one file. Constant once open unless said otherwise. */
typedef struct um_file {
  char *path;                   /* absolute; owned */
  int buffered;                 /* descriptor, holds the lock; -1: none, or we are a forked child */
  int direct;                   /* O_DIRECT descriptor of the same inode; -1: none */
  uint64_t base;                /* bytes from the start of the store to the part */
  uint64_t start;               /* bytes from the start of the file to the part */
  uint64_t size;                /* bytes of the part */
  uint32_t granule;             /* file offsets and lengths of direct I/O are multiples of it; a power of two */
  uint32_t memory_unit;         /* and addresses of this; a power of two */
  bool fixed;                   /* block device: can neither grow nor shrink */
  bool in_memory;               /* of a file system in memory: what is not swapped out is read without waiting */
  bool locked;                  /* we hold its writer's lock */
  atomic_bool direct_refused;   /* the kernel took the descriptor and refuses its calls: buffered from now on */
  atomic_bool written_direct;   /* not flushed yet; set when a write ends, cleared under flush_lock */
  atomic_bool written_buffered; /* likewise */
  int flush_code;               /* flush_lock: errno of the flush that failed; it fails for ever, see flush_file */
  atomic_int cached_skip;       /* read_cached: how many more calls not to ask the kernel; about 0: ask */
  atomic_int cached_misses;     /* read_cached: in a row */
  atomic_bool cached_refused;   /* read_cached: the kernel cannot tell for this file */
} um_file;

typedef struct um_file_store {
  um_store store;
  um_file *files;             /* in the order of their bases; owned, constant */
  uint32_t file_count;        /* constant */
  bool direct_only;           /* opened with direct 1: fail rather than go buffered; constant */
  atomic_bool forked;         /* we are a forked child: the descriptors are gone */
  pthread_mutex_t flush_lock; /* one flush at a time: the second must not return while the first still syncs */
  um_fork_entry fork;
} um_file_store;

extern const um_store_ops um_file_store_ops;

um_file *um_file_find(um_file_store *store, uint64_t offset); /* the one that holds the byte at offset */
int um_file_check_end(const um_file *file, uint64_t end); /* UM_IO_END where a write to there would make it longer */
int um_file_store_read_batch(um_store *store, um_batch *batch);
int um_file_store_write_batch(um_store *store, um_batch *batch);
int um_file_store_read_cached(um_store *store, uint64_t offset, void *buffer, uint64_t length);

bool um_file_is_cold(const um_file *file, uint64_t at, uint64_t length); /* nothing of it is in the page cache */

/* Opens file->direct and fills its alignment, or writes into `reason` why the file cannot have it and returns
 * -EOPNOTSUPP. Other errors are the system's. */
int um_file_direct_open(um_file *file, bool writable, char *reason, size_t reason_size);

int um_file_lock(um_file *file); /* -UM_ELOCKED: somebody else has it */
void um_file_unlock(um_file *file);

/* Closes what is open; the first error of close(2), as -errno. */
int um_file_close(um_file *file);

int um_file_sync_folder(const char *path); /* makes the names in the path's folder durable */

#endif
