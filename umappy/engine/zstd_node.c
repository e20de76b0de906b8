/* zstd_node.c: nodes of the index, from the file and into it.
 *
 * A node in memory is never given back while the store is open for writing. Where it lies in the file its parent's
 * entry says; that entry is only written by a flush, while the node is in memory, and only read by who finds that it is
 * not: so they need no lock between them but the stripes, which order a node's coming before the flush that writes it.
 */
#include "zstd_store.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t node_bytes(uint32_t level) {
  return sizeof(um_zstd_node) + (level > 0 ? UM_ZSTD_FANOUT * sizeof(um_zstd_node *) : 0);
}

um_zstd_node *um_zstd_node_make(um_zstd_index *index, um_zstd_node *parent, uint32_t level, uint64_t number) {
  um_zstd_node *node = calloc(1, node_bytes(level));
  if (!node)
    return NULL;
  node->parent = parent;
  node->level = (uint8_t)level;
  node->number = number;
  atomic_fetch_add_explicit(&index->bytes, node_bytes(level), memory_order_relaxed);
  return node;
}

void um_zstd_node_free(um_zstd_index *index, um_zstd_node *node) {
  if (!node)
    return;
  for (uint32_t i = 0; node->level > 0 && i < UM_ZSTD_FANOUT; i++)
    um_zstd_node_free(index, atomic_load_explicit(&node->children[i], memory_order_relaxed));
  atomic_fetch_sub_explicit(&index->bytes, node_bytes(node->level), memory_order_relaxed);
  free(node->frozen);
  free(node);
}

/* Entries that a file may hold: leaves have pages, others nodes, all of them within the file. */
static bool is_sane(const um_zstd_store *store, const um_zstd_node *node) {
  uint64_t longest = um_zstd_bound(&store->codec, store->codec.page_size) + UM_ZSTD_RECORD_HEADER;
  for (uint32_t i = 0; i < UM_ZSTD_FANOUT; i++) {
    um_zstd_entry entry = um_zstd_entry_get(&node->entries, i);
    if (entry.kind == UM_ZSTD_ABSENT || entry.kind == UM_ZSTD_ZEROS) {
      if (entry.offset | entry.length | entry.tag)
        return false;
      continue;
    }
    uint64_t most = node->level > 0 ? UM_ZSTD_NODE_MAX : longest;
    if ((node->level > 0) != (entry.kind == UM_ZSTD_CHILD) || entry.offset < UM_ZSTD_DATA_START ||
        entry.length > most || entry.length == 0)
      return false;
  }
  return true;
}

/* Fills a new node from its record. The place's checksum may be its lower half alone: a tag. */
int um_zstd_node_load(um_zstd_store *store, um_zstd_node *node, const um_zstd_place *place, um_error *error) {
  uint8_t record[UM_ZSTD_NODE_MAX];
  um_zstd_record header = {0};
  int result = place->length > sizeof(record) ? -UM_ECORRUPT
                                              : um_zstd_file_read(store->file, place->offset, record, place->length);
  if (result == 0 &&
      (!um_zstd_record_verify(record, place->length, um_zstd_node_number(node->level, node->number), store->seed,
                              &header) ||
       header.kind != UM_ZSTD_NODE || (uint32_t)header.checksum != (uint32_t)place->checksum ||
       (place->checksum >> 32 && header.checksum != place->checksum) ||
       !um_zstd_node_decode(record + UM_ZSTD_RECORD_HEADER, header.length, &node->entries) || !is_sane(store, node)))
    result = -UM_ECORRUPT;
  if (result < 0) {
    uint64_t first = node->number << (8 * (node->level + 1));
    char what[128];
    snprintf(what, sizeof(what), "the index of pages %" PRIu64 " on, at byte %" PRIu64 " of the file", first,
             place->offset);
    return um_zstd_fail(store, result, UM_OP_READ, first << store->page_shift,
                        (uint64_t)store->codec.page_size << (8 * (node->level + 1)), what, error);
  }
  node->offset = place->offset;
  node->length = place->length;
  return 0;
}

/* Encodes it with room for a header before it; bytes of the payload. */
static uint32_t encode(um_zstd_store *store, um_zstd_node *node, uint8_t *record) {
  uint8_t *payload = record + UM_ZSTD_RECORD_HEADER;
  if (node->level > 0)
    return um_zstd_node_encode(&node->entries, payload);
  pthread_mutex_t *lock = &store->index.stripes[node->number % UM_ZSTD_STRIPES].lock;
  pthread_mutex_lock(lock);
  uint32_t length = um_zstd_node_encode(node->frozen ? node->frozen : &node->entries, payload);
  free(node->frozen);
  node->frozen = NULL;
  node->saving = false;
  pthread_mutex_unlock(lock);
  return length;
}

static void note_place(um_zstd_store *store, um_zstd_node *node, uint64_t offset, uint32_t length, uint64_t checksum) {
  if (node->offset)
    um_zstd_log_give(store, node->offset, node->length, UM_ZSTD_IN_FLUSH);
  node->offset = offset;
  node->length = length;
  if (node->parent) {
    um_zstd_entry entry = {.offset = offset, .length = length, .tag = (uint32_t)checksum, .kind = UM_ZSTD_CHILD};
    um_zstd_entry_set(&node->parent->entries, node->number % UM_ZSTD_FANOUT, &entry);
  } else {
    store->root = (um_zstd_place){offset, length, node->level + 1u, checksum};
  }
}

typedef struct batch {
  um_zstd_store *store;
  uint8_t *bytes;                                        /* records one behind the other, aligned */
  um_zstd_node *nodes[UM_ZSTD_BATCH / UM_ZSTD_NODE_MAX]; /* of each */
  uint32_t sizes[UM_ZSTD_BATCH / UM_ZSTD_NODE_MAX];
  uint64_t checksums[UM_ZSTD_BATCH / UM_ZSTD_NODE_MAX];
  uint32_t count;
  uint64_t used;
} batch;

static int note_written(void *context, uint32_t i, uint64_t offset) {
  batch *b = context;
  note_place(b->store, b->nodes[i], offset, b->sizes[i], b->checksums[i]);
  return 0;
}

static int write_batch(batch *b, um_error *error) {
  uint32_t count = b->count;
  b->count = 0;
  b->used = 0;
  return um_zstd_log_write(b->store, b->bytes, b->sizes, count, note_written, b, error);
}

static int write_level(um_zstd_store *store, um_zstd_node **nodes, uint64_t count, batch *b, um_error *error) {
  int result = 0;
  for (uint64_t i = 0; result == 0 && i < count; i++) {
    um_zstd_node *node = nodes[i];
    uint8_t *record = b->bytes + b->used;
    uint32_t length = encode(store, node, record), size = UM_ZSTD_RECORD_HEADER + length;
    b->checksums[b->count] =
        um_zstd_record_seal(record, UM_ZSTD_NODE, length, um_zstd_node_number(node->level, node->number),
                            atomic_load(&store->generation) + 1, store->seed);
    memset(record + size, 0, um_zstd_align(size) - size);
    b->nodes[b->count] = node;
    b->sizes[b->count++] = size;
    b->used += um_zstd_align(size);
    if (b->used + UM_ZSTD_NODE_MAX + UM_ZSTD_ALIGN > UM_ZSTD_BATCH ||
        b->count == sizeof(b->sizes) / sizeof(*b->sizes) || i + 1 == count)
      result = write_batch(b, error);
  }
  return result;
}

static int compare(const void *a, const void *b) {
  const um_zstd_node *left = *(um_zstd_node *const *)a, *right = *(um_zstd_node *const *)b;
  return left->number < right->number ? -1 : left->number > right->number;
}

/* The leaves, then what is above them, level by level up to the root. */
int um_zstd_nodes_write(um_zstd_store *store, um_zstd_node **leaves, uint64_t count, um_error *error) {
  batch *b = malloc(sizeof(*b));
  uint8_t *bytes = malloc(UM_ZSTD_BATCH);
  um_zstd_node **nodes = malloc((count + 1) * sizeof(*nodes));
  int result = 0;
  if (b && bytes && nodes) {
    *b = (batch){.store = store, .bytes = bytes};
    if (count > 0)
      memcpy(nodes, leaves, count * sizeof(*nodes));
    qsort(nodes, count, sizeof(*nodes), compare);
  } else {
    result = um_error_set(error, ENOMEM, UM_OP_FLUSH, 0, 0, "%s: no memory for a flush", store->file->path);
  }
  while (result == 0 && count > 0) {
    result = write_level(store, nodes, count, b, error);
    uint64_t above = 0;
    for (uint64_t i = 0; i < count; i++)
      if (nodes[i]->parent && (above == 0 || nodes[above - 1] != nodes[i]->parent))
        nodes[above++] = nodes[i]->parent;
    count = above;
  }
  free(nodes);
  free(bytes);
  free(b);
  return result;
}

/* The place of the node's record, as memory or the nodes above it say; length 0: it has none. */
static int find_place(um_zstd_store *store, uint32_t level, uint64_t number, um_zstd_entry *place, um_error *error) {
  *place = (um_zstd_entry){0};
  uint32_t levels = store->index.root->level + 1u;
  if (level >= levels || number >> (8 * (levels - 1 - level)) != 0)
    return 0;
  if (level + 1 < levels) { /* a look at any page below brings what is above it into memory */
    uint64_t page = number << (8 * (level + 1));
    um_zstd_entry ignored;
    if (page >= store->page_count)
      return 0;
    int result = um_zstd_index_get(store, page, 1, &ignored, error);
    if (result < 0)
      return result;
  }
  um_zstd_node *node = store->index.root;
  while (node && node->level > level)
    node = atomic_load(&node->children[number >> (8 * (node->level - 1 - level)) & 0xFF]);
  if (node)
    *place = (um_zstd_entry){.offset = node->offset, .length = node->length};
  return 0;
}

int um_zstd_node_find(um_zstd_store *store, uint32_t level, uint64_t number, uint64_t offset, uint64_t *page,
                      um_error *error) {
  um_zstd_entry place;
  int result = find_place(store, level, number, &place, error);
  if (result < 0)
    return result;
  if (place.length == 0 || place.offset != offset)
    return 0;
  *page = number << (8 * (level + 1));
  return 1;
}
