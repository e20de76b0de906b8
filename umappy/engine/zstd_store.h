/* zstd_store.h: the zstd store inside. docs/format.md has the bytes of its files.
 *
 *   store_zstd.c       the store's face; closing, forks, errors
 *   zstd_read.c        pages out of records
 *   zstd_write.c       pages into records
 *   zstd_make.c        new files
 *   zstd_open.c        files as they are found; which superblock counts
 *   zstd_adopt.c       files of others: made ours, and their frames read
 *   zstd_index.c       the tree from pages to records: looking up, changing, what a flush takes
 *   zstd_node.c        its nodes: from the file, and into it
 *   zstd_log.c         segments: where records go, what is held
 *   zstd_space.c       what a flush gave up: used again, or given back to the disk
 *   zstd_compact.c     moving what lives out of the emptiest segments
 *   zstd_flush.c       the flush protocol, superblocks
 *   zstd_verify.c      reading everything
 *   zstd_pack.c        writing packed files
 *   zstd_codec.c, zstd_format.c, zstd_file.c   frames, bytes, the file
 *
 * Epochs. Changes belong to the open epoch. A flush closes it, while nobody is inside a change, and writes it out while
 * changes go on in the next: who changes a leaf that is not written yet leaves a copy behind (`frozen`). A flush that
 * fails gives its leaves back to the open epoch, so the next flush takes them in.
 *
 * Space. What a change supersedes is held until the flush of that change is durable, as is what a flush itself gave up:
 * the last durable image never loses a byte. What was written in the same epoch no flush knows of, and it is given up
 * at once.
 *
 * Readers hold nothing while they read: the space may be given to somebody else meanwhile. The record then does not
 * verify, and the index says something else: they look again.
 *
 * Lock order: a thread may take a lock only while it holds none that stands below it. None is held across I/O or
 * compression, but flush_lock, which only flushes want.
 *
 *     store->flush_lock     one flush, or compaction, at a time
 *     index->stripes[]      leaves, by number; a flush that closes the epoch takes all, in order
 *     log->lock             segments, what is pending
 *     guard.lock, codec.lock  leaves */
#ifndef UM_ZSTD_STORE_H
#define UM_ZSTD_STORE_H

#include "zstd_codec.h"
#include "zstd_file.h"
#include "zstd_format.h"

#include <pthread.h>
#include <stdatomic.h>

#define UM_ZSTD_STRIPES 32u
#define UM_ZSTD_BATCH (1u << 20) /* bytes of records that go in one write, about */
#define UM_ZSTD_WAIT_SECONDS 120 /* the deadline of all waits for another thread */
#define UM_ZSTD_NO_SEGMENT UINT32_MAX

typedef struct um_zstd_store um_zstd_store;

typedef struct um_zstd_node {
  struct um_zstd_node *parent;     /* NULL: the root; constant */
  struct um_zstd_node *dirty_next; /* of a leaf: the stripe's list; stripe */
  um_zstd_entries *frozen;         /* of a leaf: as the flush under way wants it; stripe */
  uint64_t number;                 /* in its level; constant */
  uint64_t epoch;                  /* of a leaf: that it was last changed in; stripe */
  uint64_t offset;                 /* of its record; 0: it has none; flush_lock, and so: */
  uint32_t length;
  uint8_t level;           /* constant */
  bool saving;             /* a leaf that the flush under way has not written yet; stripe */
  bool used;               /* a leaf somebody looked at since the last um_zstd_index_shrink; stripe */
  um_zstd_entries entries; /* of a leaf: stripe; else flush_lock, read where the child is not in memory */
  _Atomic(struct um_zstd_node *) children[]; /* of a node above the leaves; comes and goes under the child's stripe */
} um_zstd_node;

typedef struct um_zstd_stripe {
  pthread_mutex_t lock;
  um_zstd_node *dirty; /* leaves changed in the open epoch; lock */
  uint64_t count;      /* of them; lock */
} um_zstd_stripe;

typedef struct um_zstd_index {
  um_zstd_stripe stripes[UM_ZSTD_STRIPES];
  um_zstd_node *root;        /* all stripes */
  uint64_t epoch;            /* the open one; all stripes */
  _Atomic uint64_t bytes;    /* of all nodes */
  uint64_t limit;            /* of these: above it leaves nobody uses are given back; constant */
  _Atomic uint64_t patience; /* and are looked for when there are so many */
} um_zstd_index;

typedef struct um_zstd_segment {
  uint64_t offset; /* constant, and so size and fixed */
  uint32_t size;
  uint32_t held;       /* bytes that may not be used again; log->lock, and so the rest: */
  uint32_t pending[2]; /* bytes of these that go when the open epoch, and the one that is being flushed, are durable */
  uint32_t filled;     /* bytes from its start ever written */
  uint32_t punched;    /* bytes of these that were given back to the disk */
  uint32_t listed;     /* bytes of it in log->dead */
  uint64_t tried;      /* generation in which all that lives was to be moved out of it */
  uint32_t use;        /* how often it was begun anew */
  bool fixed;          /* never used again */
  bool busy;           /* somebody punches it, or moves what lives out of it: not to be begun anew */
} um_zstd_segment;

typedef struct um_zstd_extent {
  uint64_t offset;
  uint32_t length; /* bytes, aligned */
  uint32_t use;    /* of the segment, when it was given up */
} um_zstd_extent;

typedef struct um_zstd_extents {
  um_zstd_extent *list;
  uint64_t count, room;
} um_zstd_extents;

typedef struct um_zstd_log {
  pthread_mutex_t lock;
  pthread_cond_t grown;
  um_zstd_segment *segments; /* by offset; lock, and so all: */
  uint32_t count, room;
  uint32_t open;              /* the one records go to, or UM_ZSTD_NO_SEGMENT */
  uint32_t head;              /* bytes of it taken */
  uint64_t end;               /* of the file */
  bool growing;               /* somebody makes a segment */
  bool torn;                  /* behind the end there may be half a segment */
  um_zstd_extents pending[2]; /* given up in the open epoch, and in the one that is being flushed */
  um_zstd_extents dead;       /* nobody needs them; to be punched */
  uint64_t base_held;         /* bytes of the base the index refers to */
  uint64_t base_pending[2];
  uint64_t records, record_bytes; /* written; they tell how large records are */
  bool no_punch;                  /* the file cannot */
} um_zstd_log;

/* Who writes a part of a page; zstd_write.c. */
struct um_zstd_guest;

typedef struct um_zstd_guard {
  pthread_mutex_t lock;
  pthread_cond_t left;
  struct um_zstd_guest *guests; /* lock */
} um_zstd_guard;

struct um_zstd_store {
  um_store store;
  um_zstd_file *file; /* constant, and so: */
  uint64_t seed;
  uint64_t image;      /* bytes of the whole image; store.size may be less */
  uint64_t page_count; /* of the image */
  uint32_t page_shift;
  uint64_t base, base_end; /* bytes of the file */
  uint64_t packed_end, dictionary_size, dictionary_hash;
  uint8_t uuid[16];
  uint32_t damaged; /* superblocks that did not verify when it was opened */
  bool foreign;     /* absent pages are in frames of the base; then */
  um_store *frames; /* owned: reads them */
  uint64_t frame_count;
  um_zstd_codec codec;
  um_zstd_index index;
  um_zstd_log log;
  um_zstd_guard guard;
  pthread_mutex_t flush_lock;
  um_zstd_super super;         /* as the last flush left it, or as it is about to; flush_lock */
  bool super_good[2];          /* known to be whole in the file; flush_lock */
  um_zstd_place root, table;   /* where the records are now; flush_lock */
  int sync_code;               /* errno of the sync that failed: it fails for ever; flush_lock */
  _Atomic uint64_t generation; /* of the last flush; super.generation for who has no lock */
  uint64_t fork_generation;    /* it was opened in; constant */
  atomic_bool unsaved; /* a flush has something to do though no leaf says so: the last one failed, the image grew */
};

/* zstd_open.c. As um_zstd_store_open, on a file that is open already, and the store's where that returns 0. `empty`: it
 * is new. */
int um_zstd_store_open_on(um_zstd_file *file, bool empty, const um_zstd_options *options, um_store **store,
                          um_error *error);
um_zstd_store *um_zstd_store_make(um_zstd_file *file, bool writable); /* NULL: no memory */
void um_zstd_store_free(um_zstd_store *store);                        /* all but the file */
int um_zstd_store_take(um_zstd_store *store, const um_zstd_super *super, int32_t level,
                       um_error *error); /* what follows from the superblock alone */
um_zstd_node *um_zstd_root_load(um_zstd_store *store, const um_zstd_super *super, um_error *error); /* or NULL */
/* A record that a superblock refers to, to be freed, or NULL with error filled. */
uint8_t *um_zstd_record_read(um_zstd_store *store, const um_zstd_place *place, uint32_t kind, const char *what,
                             um_error *error);
/* Whether somebody else flushed since generation `seen`, and now we know; read-only stores. */
bool um_zstd_store_reload(um_zstd_store *store, uint64_t seen);

/* zstd_make.c: a new store, which may be filled before it is finished. begin fills in the uuid; *store is NULL, or to
 * be freed where it fails. */
int um_zstd_check_new(uint32_t page_size, uint64_t dictionary_size, um_error *error); /* may a new file have these? */
int um_zstd_store_new(um_zstd_file *file, const um_zstd_options *options, um_zstd_store **store, um_error *error);
int um_zstd_store_begin(um_zstd_file *file, um_zstd_super *super, um_zstd_store **store, um_error *error);
int um_zstd_store_finish(um_zstd_store *store, um_error *error);

/* zstd_adopt.c */
int um_zstd_foreign_load(um_zstd_store *store, um_error *error);
/* Bytes of the image that no page of ours holds. */
int um_zstd_foreign_read(um_zstd_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error);

/* zstd_index.c */
void um_zstd_index_init(um_zstd_index *index);
void um_zstd_index_end(um_zstd_index *index);
/* Entries of `count` pages from `page` on, all of one leaf. 0, or -errno with error filled. */
int um_zstd_index_get(um_zstd_store *store, uint64_t page, uint32_t count, um_zstd_entry *entries, um_error *error);
/* Page has `entry` from now on; the space of what it had is given up. 1: it had not `expected` (NULL: whatever), and
 * nothing was done. */
int um_zstd_index_set(um_zstd_store *store, uint64_t page, const um_zstd_entry *entry, const um_zstd_entry *expected,
                      um_error *error);
int um_zstd_index_touch(um_zstd_store *store, uint64_t page, um_error *error); /* its leaf is written again */
int um_zstd_index_grow(um_zstd_store *store, uint32_t levels);                 /* while the store is being opened */
uint32_t um_zstd_levels(uint64_t pages);
/* Closes the epoch. An array of the leaves that changed in it, to be freed, or NULL where there are none. */
int um_zstd_index_close(um_zstd_store *store, um_zstd_node ***leaves, uint64_t *count);
void um_zstd_index_reopen(um_zstd_store *store, um_zstd_node **leaves, uint64_t count); /* they were not written */
void um_zstd_index_shrink(um_zstd_store *store);                      /* if it is too large, and nobody flushes */
void um_zstd_index_replace(um_zstd_index *index, um_zstd_node *root); /* by another tree; the old one is freed */
bool um_zstd_same_entry(const um_zstd_entry *a, const um_zstd_entry *b);

/* zstd_node.c */
um_zstd_node *um_zstd_node_make(um_zstd_index *index, um_zstd_node *parent, uint32_t level, uint64_t number);
void um_zstd_node_free(um_zstd_index *index, um_zstd_node *node); /* and all below it */
int um_zstd_node_load(um_zstd_store *store, um_zstd_node *node, const um_zstd_place *place, um_error *error);
int um_zstd_nodes_write(um_zstd_store *store, um_zstd_node **leaves, uint64_t count, um_error *error);
/* Whether the node's record is at offset; flush_lock. Then `page` is one whose leaf is below it. */
int um_zstd_node_find(um_zstd_store *store, uint32_t level, uint64_t number, uint64_t offset, uint64_t *page,
                      um_error *error);

/* zstd_log.c */
void um_zstd_log_init(um_zstd_log *log);
void um_zstd_log_end(um_zstd_log *log);
/* Space for as many of the records, of `sizes` bytes, as follow one another there: *taken, from *offset on. */
int um_zstd_log_take(um_zstd_store *store, const uint32_t *sizes, uint32_t count, uint64_t *offset, uint32_t *taken,
                     um_error *error);
void um_zstd_log_undo(um_zstd_store *store, uint64_t offset, uint64_t length); /* nobody ever referred to it */
enum um_zstd_when { UM_ZSTD_AT_FLUSH, UM_ZSTD_IN_FLUSH, UM_ZSTD_NOW };
void um_zstd_log_give(um_zstd_store *store, uint64_t offset, uint64_t length, enum um_zstd_when when);
void um_zstd_log_close_epoch(um_zstd_log *log);
um_zstd_segment *um_zstd_log_find(um_zstd_log *log, uint64_t offset);  /* log->lock; NULL: none */
int um_zstd_log_add(um_zstd_log *log, const um_zstd_segment_row *row); /* at the end */
/* Writes sealed records that lie one behind the other at `bytes`, each aligned, and tells where: `placed` returns 0, or
 * 1 where the record is of no use any more, or an error, which ends it. */
int um_zstd_log_write(um_zstd_store *store, const uint8_t *bytes, const uint32_t *sizes, uint32_t count,
                      int (*placed)(void *context, uint32_t i, uint64_t offset), void *context, um_error *error);
/* One record, its payload behind room for its header. */
int um_zstd_log_append(um_zstd_store *store, uint8_t *record, uint32_t kind, uint32_t length, um_zstd_place *place,
                       um_error *error);

/* zstd_space.c */
void um_zstd_space_release(um_zstd_store *store); /* the flush is durable */
void um_zstd_space_trim(um_zstd_store *store);    /* gives back to the disk what is too much */
/* Nobody needs these bytes; log->lock. */
void um_zstd_space_die(um_zstd_log *log, um_zstd_segment *segment, uint64_t offset, uint32_t length);
void um_zstd_space_begin(um_zstd_log *log, um_zstd_segment *segment); /* anew; log->lock */
bool um_zstd_extents_add(um_zstd_extents *extents, uint64_t offset, uint32_t length, uint32_t use);

/* zstd_compact.c */
void um_zstd_compact(um_zstd_store *store); /* flush_lock; what it cannot do stays as it is */

/* zstd_flush.c */
int um_zstd_flush(um_store *store, um_error *error);
int um_zstd_commit(um_zstd_store *store, um_error *error);                 /* flush_lock */
int um_zstd_super_write(um_zstd_store *store, int which, um_error *error); /* and sync */

/* zstd_read.c */
int um_zstd_read(um_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error);
/* A page, into room for all of it, from the file and checked. */
int um_zstd_page_read(um_zstd_store *store, um_zstd_context *context, uint64_t page, uint8_t *to, bool deep,
                      um_error *error);
/* The stored bytes of a page, as its entry has them, in context->buffer, checked. 1: it has none, it is zeros. */
int um_zstd_stored_read(um_zstd_store *store, um_zstd_context *context, uint64_t page, um_zstd_entry *entry,
                        um_error *error);

/* zstd_write.c */
int um_zstd_write(um_store *store, uint64_t offset, const void *buffer, uint64_t length, um_error *error);

/* store_zstd.c */
extern const um_store_ops um_zstd_store_ops;
/* In a forked child the parent's locks may be taken for ever: nothing is begun there. */
int um_zstd_check_forked(um_zstd_store *store, int op, uint64_t offset, uint64_t length, um_error *error);
/* -code with the text's begin and the system's words, or ours, for what failed in the file. */
int um_zstd_fail(um_zstd_store *store, int result, int op, uint64_t offset, uint64_t length, const char *what,
                 um_error *error);
static inline uint64_t um_zstd_page_length(const um_zstd_store *store, uint64_t page) {
  uint64_t start = page << store->page_shift, rest = store->image - start;
  return rest < store->codec.page_size ? rest : store->codec.page_size;
}
/* zstd_codec.c: the segment of a dictionary, alone in it and fixed; to be freed, or NULL. */
uint8_t *um_zstd_dictionary_encode(const void *dictionary, uint64_t length, uint64_t offset, uint64_t seed,
                                   const um_zstd_codec *codec, um_zstd_segment_row *row, um_zstd_place *place);

/* zstd_pack.c; as um_zstd_pack_open, on an empty file that is the pack's where that returns 0. */
int um_zstd_pack_open_on(um_zstd_file *file, const um_zstd_pack_options *options, um_zstd_pack **pack, um_error *error);

#endif
