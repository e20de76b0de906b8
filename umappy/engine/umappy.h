/* umappy.h: everything the bindings see of the engine.
 *
 * Calls return 0 (or a count) or -errno; the codes above 4000 are umappy's own. Calls that may wait take a
 * timeout in milliseconds and return -ETIMEDOUT when it passes; they can be called again. All calls are
 * thread-safe and none needs the GIL. build.py hands the part between the two marks to cffi. */
#ifndef UMAPPY_H
#define UMAPPY_H

#include <stdbool.h>
#include <stdint.h>

/* cffi: begin */
#define UM_ETRUNCATED 4001 /* the store ended before its size */
#define UM_ECORRUPT 4002   /* the store's bytes are not what was written */
#define UM_ELOCKED 4003    /* somebody else writes the store */
#define UM_EDROPPED 4004   /* somebody dropped dirty memory under the engine */
#define UM_EFORKED 4005    /* called in a forked child */

#define UM_UFFD_AUTO 0
#define UM_UFFD_DEVICE 1
#define UM_UFFD_SYSCALL 2
#define UM_UFFD_USER_MODE_ONLY 3

#define UM_MECHANISM_AUTO 0
#define UM_MECHANISM_COPY 1
#define UM_MECHANISM_MOVE 2

#define UM_POLICY_AUTO 0
#define UM_POLICY_FIFO 1
#define UM_POLICY_SECOND_CHANCE 2
#define UM_POLICY_S3FIFO 3
#define UM_POLICY_MRU 4

#define UM_NUMBER_UNSIGNED 0
#define UM_NUMBER_SIGNED 1
#define UM_NUMBER_FLOAT 2 /* IEEE 754 */

#define UM_OP_READ 1
#define UM_OP_WRITE 2
#define UM_OP_FLUSH 3
#define UM_OP_OPEN 4
#define UM_OP_MEMORY 5

#define UM_HISTOGRAM_BUCKETS 32
#define UM_ERROR_TEXT 512

typedef struct um_pager um_pager;
typedef struct um_region um_region;
typedef struct um_store um_store;
typedef struct um_job um_job;

/* One failure: what was attempted, where, by whom. */
typedef struct um_error {
  int32_t code;             /* errno or UM_E..., positive; 0: none */
  int32_t op;               /* UM_OP_... */
  uint64_t offset;          /* bytes from the start of the store */
  uint64_t length;          /* bytes */
  int32_t thread_id;        /* kernel id of the thread whose fault failed; 0: no fault */
  int32_t delivered;        /* scratch for the bindings; the engine writes 0 */
  char text[UM_ERROR_TEXT]; /* the store's words: its path and what failed; UTF-8, may be cut */
} um_error;

/* Stores */
typedef struct um_file_part {
  const char *path;
  uint64_t size; /* bytes of this part; UINT64_MAX: to the end of its file */
} um_file_part;

typedef struct um_file_options {
  const um_file_part *parts;
  uint32_t part_count;
  int32_t writable;  /* mode r+, w+, x */
  int32_t create;    /* mode w+, x: make the file if it is missing */
  int32_t truncate;  /* mode w+: empty it (only after the lock is held) */
  int32_t exclusive; /* mode x: fail if it exists */
  int32_t direct;    /* -1 auto, 0 buffered, 1 direct or fail */
  int32_t lock;      /* take the writer's lock */
  uint64_t offset;   /* bytes before the first mapped byte of the first part */
  uint64_t size;     /* UINT64_MAX: what the file holds; larger than that and writable: extend */
} um_file_options;

int um_file_store_open(const um_file_options *options, um_store **store, um_error *error);
int um_file_store_is_direct(um_store *store); /* 1: whole aligned blocks of every part go past the page cache */
uint64_t um_file_store_part_size(um_store *store, uint32_t index);

/* The zstd store; docs/format.md. */
typedef struct um_zstd_options {
  const char *path;
  int32_t writable;         /* mode r+, w+, x */
  int32_t create;           /* mode w+, x: make the file if it is missing */
  int32_t truncate;         /* mode w+: empty it (only after the lock is held) */
  int32_t exclusive;        /* mode x: fail if it exists */
  int32_t lock;             /* take the writer's lock */
  int32_t recover;          /* go back one flush where the last does not verify: its data is lost */
  int32_t level;            /* of what is written from now on */
  uint32_t page_size;       /* bytes, of a new file; 0: the file's own; another than the file's is EINVAL */
  uint64_t size;            /* bytes; UINT64_MAX: what the file holds; larger than that and writable: extend */
  const void *dictionary;   /* of a new file, kept in it; a file's own otherwise */
  uint64_t dictionary_size; /* bytes; 0: none */
} um_zstd_options;

typedef struct um_zstd_info {
  uint64_t size;            /* bytes of the image */
  uint64_t generation;      /* flushes so far, and a few more */
  uint64_t length;          /* bytes of the file */
  uint64_t allocated;       /* what the disk spends on it */
  uint64_t base, base_live; /* bytes of the frames `zstd -d` decodes, of those still in use */
  uint64_t log, log_live;   /* bytes of the segments behind them, of records and index nodes in use */
  uint64_t index_memory;    /* bytes of the index in memory now */
  uint64_t dictionary_size; /* bytes */
  uint64_t foreign_frames;  /* frames of an adopted file */
  uint32_t page_size;
  uint32_t version;  /* of the format */
  uint32_t segments; /* of the log */
  uint32_t packed;   /* 1: zstd -d gives exactly the image, and readers of the seekable format read at random */
  uint32_t damaged;  /* superblocks that do not verify: 0 or 1 */
  int32_t level;     /* of what is written */
  uint8_t uuid[16];
} um_zstd_info;

/* A file that is no native one (its first bytes say so): -EMEDIUMTYPE; the foreign store, or um_zstd_adopt, takes it.
 */
int um_zstd_store_open(const um_zstd_options *options, um_store **store, um_error *error);
void um_zstd_store_info(um_store *store, um_zstd_info *info);
int um_zstd_store_dictionary(um_store *store, void *buffer, um_error *error); /* info's dictionary_size bytes */
/* Reads and checks what `count` pages from `first` on are stored in, past all caches. Stops at the first damage, with
 * error filled, and *page its page; go on behind it. Threads may share a store's pages. */
int um_zstd_store_verify(um_store *store, uint64_t first, uint64_t count, uint64_t *page, um_error *error);
/* Checks what belongs to no page: both superblocks, the chain of frames from the file's first byte to its last. */
int um_zstd_store_verify_frames(um_store *store, um_error *error);

/* A packed file, written front to back in constant memory, compressed on `threads` threads; it appears under its path,
 * durable, when it is finished. One thread calls. */
typedef struct um_zstd_pack um_zstd_pack;
typedef struct um_zstd_pack_options {
  const char *path;   /* NULL: to the descriptor */
  int32_t descriptor; /* a pipe, say; then without superblocks: a plain file of the seekable format */
  int32_t level;
  uint32_t page_size; /* bytes */
  uint32_t threads;   /* 0: one for each processor */
  const void *dictionary;
  uint64_t dictionary_size; /* bytes; 0: none */
} um_zstd_pack_options;

int um_zstd_pack_open(const um_zstd_pack_options *options, um_zstd_pack **pack, um_error *error);
int um_zstd_pack_write(um_zstd_pack *pack, const void *buffer, uint64_t length, um_error *error); /* the next bytes */
/* The next bytes are the store's, whole pages but at its end; frames go over as they are where the page size, the
 * dictionary and the level are the same. */
int um_zstd_pack_store(um_zstd_pack *pack, um_store *store, uint64_t offset, uint64_t length, um_error *error);
int um_zstd_pack_finish(um_zstd_pack *pack, um_error *error); /* frees, whatever it returns */
void um_zstd_pack_abort(um_zstd_pack *pack);                  /* frees; nothing appears */

/* Makes a native file of a seekable .zst, in its place, without compressing anything again: two superblocks before its
 * frames, which stay as they are. Needs the space of a second copy where the file system cannot share blocks. */
int um_zstd_adopt(const char *path, uint32_t page_size, um_error *error);

/* Faults for tests and for users who want to see what their program does then; each owns its inner store. */
typedef struct um_fault_options {
  uint32_t ops;            /* bits 1 << UM_OP_...: which calls it strikes */
  int32_t code;            /* errno or UM_E... to fail with; 0: only delay */
  uint64_t delay_ns;       /* slept before the inner call */
  uint64_t skip;           /* calls that pass before the first strike */
  uint64_t count;          /* strikes; UINT64_MAX: for ever */
  uint64_t every;          /* strike each Nth call after skip; 0 and 1: each */
  uint64_t offset, length; /* only calls that touch these bytes; length 0: all */
} um_fault_options;

int um_fault_store_open(um_store *inner, const um_fault_options *options, um_store **store);
void um_fault_store_set(um_store *store, const um_fault_options *options);
uint64_t um_fault_store_calls(um_store *store); /* calls that matched ops and bytes so far */

/* One call that a log store passed on. */
typedef struct um_log_record {
  uint64_t start_ns; /* CLOCK_MONOTONIC */
  uint64_t took_ns;
  uint64_t offset, length; /* bytes; 0 for a flush */
  int32_t op;              /* UM_OP_... */
  int32_t code;            /* errno or UM_E... it failed with; 0: it did not */
  uint32_t thread_id;      /* kernel id of the calling thread */
} um_log_record;

int um_log_store_open(um_store *inner, uint64_t capacity, um_store **store); /* keeps the newest `capacity` records */
uint64_t um_log_store_take(um_store *store, um_log_record *records, uint64_t count, uint64_t *lost); /* oldest first */

/* A fault or log store closes its inner store when it is closed, but its own calls above work until the last release.
 */
void um_wrapper_retain(um_store *store);
void um_wrapper_release(um_store *store);

/* A .zst that umappy did not write: finding its frames, then reading at random. */
typedef struct um_zstd_scan um_zstd_scan;

typedef struct um_zstd_scan_options {
  const char *path;
  const void *dictionary; /* NULL: none */
  uint64_t dictionary_size;
  uint32_t window_log; /* frames that want a larger window are refused; 0: 27, as the zstd tool has it */
  int32_t walk;        /* from frame to frame, whatever a seek table says */
} um_zstd_scan_options;

typedef struct um_zstd_scan_info {
  uint64_t file_size, position; /* bytes: of the file, and how far it was looked at */
  uint64_t size;                /* bytes of the image found so far */
  uint64_t frames, largest;     /* frames that hold some; bytes of image in the largest */
  uint64_t skipped;             /* bytes of the file in frames that hold nothing */
  uint64_t decoded;             /* bytes of image that were decoded only to find sizes */
  int32_t table, table_wrong;   /* a seek table told all that; there is one, but it cannot be right */
  int32_t decoding;             /* it decodes a frame whose header does not tell its size */
} um_zstd_scan_info;

int um_zstd_scan_open(const um_zstd_scan_options *options, um_zstd_scan **scan, um_error *error);
int um_zstd_scan_step(um_zstd_scan *scan, uint32_t timeout_ms, um_error *error); /* 0: all is known; -EAGAIN: go on */
void um_zstd_scan_look(const um_zstd_scan *scan, um_zstd_scan_info *info);
void um_zstd_scan_close(um_zstd_scan *scan);
/* Read-only; of a scan that is done, which it takes if it succeeds. `memory`: bytes for decoded frames, at most. */
int um_zstd_foreign_open(um_zstd_scan *scan, uint64_t memory, um_store **store, um_error *error);

/* The NBD store; nbd.h. The strings are copied. */
typedef struct um_nbd_options {
  const char *name;        /* for errors: the URI without secrets */
  const char *host, *port; /* NULL: the unix socket at `path` */
  const char *path;
  const char *export_name; /* UTF-8, maybe empty */
  int32_t writable;
  uint32_t connections; /* 0: as many as suit the server */
  uint64_t timeout_ns;  /* of a request, and of connecting with its handshake */
  uint64_t retry_ns;    /* how long a call waits for a server that is away */
  int32_t tls;          /* required; then */
  int32_t tls_verify;   /* the server's certificate */
  const char *tls_certificates, *tls_psk_file, *tls_username, *tls_hostname; /* nbd_tls.h; may be NULL */
} um_nbd_options;

typedef struct um_nbd_info {
  uint64_t size;                       /* bytes */
  uint32_t flags;                      /* of the export: bits of the protocol */
  uint32_t block_min, block_preferred; /* bytes */
  uint32_t length_max;                 /* bytes of one request */
  uint32_t connections, connections_up;
  int32_t structured;  /* structured replies are in use */
  uint64_t reconnects; /* connections made again after a loss */
  uint64_t unflushed;  /* bytes kept, to be written again if the server is lost */
} um_nbd_info;

int um_nbd_store_open(const um_nbd_options *options, um_store **store, um_error *error);
void um_nbd_store_info(um_store *store, um_nbd_info *info);
/* The server may forget these bytes: what they read as from now on is up to it. 0 also where it cannot. */
int um_nbd_store_discard(um_store *store, uint64_t offset, uint64_t length, um_error *error);
int um_nbd_store_write_zeroes(um_store *store, uint64_t offset, uint64_t length, um_error *error);

uint64_t um_store_size(um_store *store);
int um_store_is_writable(um_store *store);
int um_store_read(um_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error);
int um_store_write(um_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error);
int um_store_flush(um_store *store, um_error *error);
int um_store_close(um_store *store, um_error *error); /* frees the store, whatever it returns */

/* Pagers */
typedef struct um_pager_options {
  uint64_t memory;     /* the budget, bytes */
  uint64_t low_water;  /* bytes free below which the evictor starts; 0: chosen */
  uint64_t high_water; /* bytes free at which it stops; 0: chosen */
  uint32_t fillers;
  uint32_t evictors;
  uint32_t uffd;         /* UM_UFFD_... */
  uint32_t timeout_ms;   /* a failing store is retried, and a fault waits for memory, this long */
  uint32_t mechanism;    /* UM_MECHANISM_... */
  uint32_t policy;       /* UM_POLICY_... */
  int32_t policy_shares; /* the three below are given; else the policy's own */
  uint32_t small_share, standby_share, ghost_share; /* in parts of 1024; policy.h */
  const char *trace;                                /* a file for the faults, or NULL */
} um_pager_options;

typedef struct um_stats {
  uint64_t memory, used, peak_used; /* bytes: the budget, what of it is taken now, the most ever */
  uint64_t resident, dirty;         /* bytes in pages, in pages the store does not have yet */
  uint64_t overhead;                /* bytes of used that hold no page: buffers, tables, bookkeeping */
  uint64_t read_faults, write_faults, protect_faults, stale_faults;
  uint64_t fills, prefetches, evictions, writes;     /* pages */
  uint64_t store_reads, store_writes, store_flushes; /* calls */
  uint64_t bytes_read, bytes_written;
  uint64_t fill_errors, write_errors, retries;
  uint64_t readahead, readahead_used, readahead_wasted; /* pages */
  uint64_t standby_hits;                                /* pages taken back from standby */
  uint64_t pinned;                                      /* evictions that found a device's pin */
  uint64_t cleaned, cleaned_wasted;                     /* pages written ahead of need, and then written to again */
  uint64_t collapsed;                                   /* pages that became parts of a huge one, as they stay */
  uint64_t standby;                                     /* bytes not mapped, but still in memory */
  uint64_t idle;                                        /* bytes of used that are kept warm for the next fills */
  uint64_t fault_ns[UM_HISTOGRAM_BUCKETS];              /* faults whose service took [2^i, 2^(i+1)) ns */
  uint32_t fillers, evictors;                           /* threads running, which may be fewer than asked for */
  uint32_t uffd;                                        /* UM_UFFD_... in use */
  uint32_t regions;
  char mechanism[8];
} um_stats;

int um_uffd_probe(uint32_t uffd, uint64_t *features); /* can it be opened? features as the kernel tells them */
uint64_t um_pager_memory_min(uint64_t page_size, uint32_t fillers, uint32_t evictors);
int um_pager_create(const um_pager_options *options, um_pager **pager);
int um_pager_destroy(um_pager *pager); /* -EBUSY while regions live */
int um_pager_reserve(um_pager *pager, uint64_t bytes,
                     uint32_t timeout_ms); /* takes budget for the caller's own buffers */
void um_pager_release(um_pager *pager, uint64_t bytes);
void um_pager_stats(um_pager *pager, um_stats *stats);
int um_pager_error_wait(uint32_t timeout_ms); /* 1: an undelivered fault error may be waiting in some region */

/* Regions */
typedef struct um_region_options {
  uint64_t page_size;
  int32_t writable;
  int32_t readahead; /* find streams and read ahead of them */
} um_region_options;

int um_memory_locked(void); /* 1: mlockall(MCL_FUTURE) would populate a new mapping */
int um_memory_lock_on_fault(int on);
int um_region_create(um_pager *pager, um_store *store, void *address, uint64_t size, const um_region_options *options,
                     um_region **region);
int um_region_gate_close(um_region *region, int discard, uint32_t timeout_ms); /* -EAGAIN: pages are dirty or filling */
void um_region_gate_open(um_region *region);
void um_region_forget(um_region *region); /* after the unmap, under the gate; frees the region, not the store */
void um_region_prefetch_cancel(um_region *region);
void um_region_stats(um_region *region, um_stats *stats);
int um_region_residency(um_region *region, uint64_t first, uint64_t count, uint8_t *out); /* UM_PAGE_... a page */
int um_region_overwrite(um_region *region, uint64_t offset, const void *buffer, uint64_t length, uint32_t timeout_ms,
                        uint64_t *done);
/* For who passes over much once: absent pages stay absent, their bytes go straight between store and buffer. Without a
 * copy where offset and buffer are the same modulo 4096. A buffer that is written must not change meanwhile. */
int um_region_read_through(um_region *region, uint64_t offset, void *buffer, uint64_t length, uint64_t *done);
int um_region_write_through(um_region *region, uint64_t offset, const void *buffer, uint64_t length,
                            uint32_t timeout_ms, uint64_t *done);
/* Copies `count` items of `item_size` bytes (64 KiB at most), which begin at `offsets` (rising), to `out`, which has
 * room for `room` of them and lies in no region: one behind the other, or each to its place, counted in items. Absent
 * pages stay absent. *done: how many, from which it goes on when called again; 0 also when the time is over. -EAGAIN:
 * the store is being written, -EOPNOTSUPP: the store or the budget does not suit: read what is left through memory. */
int um_region_gather(um_region *region, const uint64_t *offsets, uint64_t count, uint64_t item_size, void *out,
                     const uint64_t *places, uint64_t room, uint32_t timeout_ms, uint64_t *done);
int um_region_error_next(um_region *region, um_error *error);  /* 1: took the oldest record; 0: none */
int um_region_error_fault(um_region *region, um_error *error); /* 1: took the oldest whose thread was not told */
int um_region_error_at(um_region *region, uint32_t index, um_error *error); /* 1: the index-th kept, oldest first */
int um_region_advise(um_region *region, uint64_t offset, uint64_t length,
                     int hint); /* -ENOSPC: too many separate ranges */
int um_region_tainted(um_region *region);
int um_region_retry(um_region *region); /* failed pages become absent again; how many */

#define UM_ADVISE_NORMAL 0
#define UM_ADVISE_SEQUENTIAL 1
#define UM_ADVISE_RANDOM 2
#define UM_ADVISE_WILLWRITE 3

#define UM_PAGE_ABSENT 0
#define UM_PAGE_CLEAN 1
#define UM_PAGE_DIRTY 2
#define UM_PAGE_BUSY 3
#define UM_PAGE_FAILED 4
#define UM_PAGE_STANDBY 5

um_job *um_region_flush_start(um_region *region, uint64_t offset, uint64_t length, int durable);
um_job *um_region_evict_start(um_region *region, uint64_t offset, uint64_t length);
um_job *um_region_prefetch_start(um_region *region, uint64_t offset, uint64_t length);
um_job *um_region_prefetch_pages_start(um_region *region, const uint64_t *pages,
                                       uint64_t count); /* rising page numbers; NULL also when they are not */
int um_job_wait(um_job *job, uint32_t timeout_ms, um_error *error); /* 0, -ETIMEDOUT, or -code with error filled */
uint64_t um_job_pages(um_job *job);
void um_job_release(um_job *job);

/* The process */
void um_exit_arm(uint32_t timeout_ms); /* flush what is left when the process exits, for so long at most */
void um_exit_flush(void);              /* now; once */
int um_io_uring_set(int mode); /* 0: never; -1: where it is allowed (default); 1: the same, but -errno of a refusal */
int um_io_uring_probe(void);   /* 0: many reads can be in flight from one thread; else -errno of the refusal */
int um_process_forked(void);   /* 1 in a child of the process that made the engine */

/* libzstd, found once a process; zstd_library.h */
const char *um_zstd_name(uint32_t index); /* the functions wanted, one by one; NULL: there are no more */
int um_zstd_offer(void *const *addresses, const char *where,
                  um_error *error); /* of them, in that order, NULL: lacking. 1: taken; 0: there is one already */
int um_zstd_find(const char **where, um_error *error); /* the version (10504 is 1.5.4); where: never freed */

/* OpenSSL, found once a process; openssl_library.h. The version (0x30000080 is 3.0.8), or -code; where: never freed */
int64_t um_openssl_find(const char **where, um_error *error);

/* Sorts `count` numbers of `size` bytes, 4 or 8, of a UM_NUMBER_ kind; NaN last, in no order. What `length` bytes of
 * scratch hold is lost; 512 KiB are best, none will do. -EINVAL: another size or kind, or memory that is not aligned.
 */
int um_sort_numbers(void *numbers, uint64_t count, uint32_t size, uint32_t kind, void *scratch, uint64_t length);
/* cffi: end */

#endif
