/* zstd_file.h: the file under a zstd store, as a table of calls, so that a simulator of crashes and failures can take
 * its place.
 *
 * The calls are those of the system: `read`, `write` and `copy` may move fewer bytes than asked for (0 from read: the
 * end of the file), and a call that failed may have moved some. What was written is durable when a `sync` begun after
 * it returned 0; until then any subset of the 512-byte sectors written, and any of the lengths set, may survive a
 * crash. A name is durable when `publish` returned 0. All calls are thread-safe. Failures are -errno. */
#ifndef UM_ZSTD_FILE_H
#define UM_ZSTD_FILE_H

#include "store.h"

#define UM_ZSTD_UNIT 4096u

typedef struct um_zstd_file um_zstd_file;

typedef struct um_zstd_file_ops {
  int64_t (*read)(um_zstd_file *file, void *buffer, uint64_t length, uint64_t offset);
  /* The same past the page cache, as long as nothing of it is there; buffer, length and offset are multiples of
   * UM_ZSTD_UNIT. -EAGAIN: it cannot be, or not now. NULL: never. */
  int64_t (*read_direct)(um_zstd_file *file, void *buffer, uint64_t length, uint64_t offset);
  int64_t (*write)(um_zstd_file *file, const void *buffer, uint64_t length, uint64_t offset);
  int (*sync)(um_zstd_file *file);                                    /* bytes and length, as fdatasync */
  int (*truncate)(um_zstd_file *file, uint64_t length);               /* longer: with a hole */
  int (*punch)(um_zstd_file *file, uint64_t offset, uint64_t length); /* zeros without space; -EOPNOTSUPP: it cannot */
  int (*measure)(um_zstd_file *file, uint64_t *length, uint64_t *allocated); /* bytes; what the disk spends on it */
  int64_t (*copy)(um_zstd_file *file, uint64_t offset, um_zstd_file *from, uint64_t from_offset, uint64_t length);
  /* A new, empty file in the same folder, without a name that matters; locked if `file` is. publish puts it, synced
   * before, in the place of what it was made beside; a crash leaves the one or the other there. One that is closed
   * before it was published is gone. */
  int (*beside)(um_zstd_file *file, um_zstd_file **made);
  int (*publish)(um_zstd_file *file);
  void (*forked)(um_zstd_file *file); /* as of a store; afterwards all calls but close return -UM_EFORKED */
  int (*close)(um_zstd_file *file);   /* frees, whatever it returns */
} um_zstd_file_ops;

/* The first member of every such file. */
struct um_zstd_file {
  const um_zstd_file_ops *ops; /* constant */
  const char *path;            /* constant; absolute, for messages */
};

/* A real file, opened, and locked for its writer, as a file store does it. `made`: it was created or emptied, and a
 * caller that fails should remove it (um_zstd_file_discard). */
int um_zstd_file_open(const um_zstd_options *options, um_zstd_file **file, bool *made, um_error *error);
void um_zstd_file_discard(um_zstd_file *file); /* closes; an empty or half-made file loses its name */

/* A new file that publish puts at `path`, whatever is there. */
int um_zstd_file_temporary(const char *path, um_zstd_file **file, um_error *error);

/* All the bytes or an error: -UM_ETRUNCATED where the file ends before. */
int um_zstd_file_read(um_zstd_file *file, uint64_t offset, void *buffer, uint64_t length);
/* Likewise, somewhere into `buffer`, which is aligned to UM_ZSTD_UNIT and twice of it longer: *bytes tells where. Much
 * at a time goes past the page cache, little does not: there what is compressed is worth its memory. */
int um_zstd_file_fetch(um_zstd_file *file, uint64_t offset, uint8_t *buffer, uint64_t length, uint8_t **bytes);
int um_zstd_file_write(um_zstd_file *file, uint64_t offset, const void *buffer, uint64_t length);
int um_zstd_file_copy(um_zstd_file *file, uint64_t offset, um_zstd_file *from, uint64_t from_offset, uint64_t length);

#endif
