/* zstd_index.c: from pages to what the file has of them.
 *
 * A leaf and everything said of it is under the lock of its stripe. On the way to it, nodes that are not in memory are
 * read without the lock; who comes back with one starts again from the root, and puts it there if it is still wanted.
 *
 * Leaves leave memory when they are many, those first that nobody looked at for a while: never one that a flush does
 * not have yet. Nobody has a leaf in hand then, since one is only had with its stripe's lock, or by a flush. */
#include "zstd_store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LIMIT (64u << 20) /* bytes of nodes: those of 4.6 million pages */

void um_zstd_index_init(um_zstd_index *index) {
  for (uint32_t i = 0; i < UM_ZSTD_STRIPES; i++)
    pthread_mutex_init(&index->stripes[i].lock, NULL);
  index->epoch = 1;
  index->limit = LIMIT;
  atomic_init(&index->patience, LIMIT);
}

void um_zstd_index_end(um_zstd_index *index) {
  um_zstd_node_free(index, index->root);
  for (uint32_t i = 0; i < UM_ZSTD_STRIPES; i++)
    pthread_mutex_destroy(&index->stripes[i].lock);
}

uint32_t um_zstd_levels(uint64_t pages) {
  uint32_t levels = 1;
  while (levels < UM_ZSTD_LEVELS_MAX && pages > UINT64_C(1) << (8 * levels))
    levels++;
  return levels;
}

bool um_zstd_same_entry(const um_zstd_entry *a, const um_zstd_entry *b) {
  return a->offset == b->offset && a->length == b->length && a->tag == b->tag && a->kind == b->kind;
}

static um_zstd_stripe *find_stripe(um_zstd_index *index, uint64_t page) {
  return &index->stripes[page / UM_ZSTD_FANOUT % UM_ZSTD_STRIPES];
}

/* A node that was read, and from where, on its way into the tree. */
typedef struct arrival {
  um_zstd_node *node; /* or NULL */
  um_zstd_entry entry;
} arrival;

/* Puts a node below `parent`: the one that arrived, or an empty one where there is nothing in the file. NULL: it must
 * be read first, or (made) there is no memory. */
static um_zstd_node *settle(um_zstd_index *index, um_zstd_node *parent, uint64_t page, const um_zstd_entry *entry,
                            arrival *a) {
  uint32_t level = parent->level - 1u;
  uint64_t number = page >> (8 * (level + 1));
  um_zstd_node *node = NULL, *expected = NULL;
  if (a->node && a->node->level == level && a->node->number == number && um_zstd_same_entry(&a->entry, entry)) {
    node = a->node;
    node->parent = parent;
    a->node = NULL;
  } else if (entry->kind == UM_ZSTD_ABSENT) {
    node = um_zstd_node_make(index, parent, level, number);
  }
  if (node && !atomic_compare_exchange_strong(&parent->children[number % UM_ZSTD_FANOUT], &expected, node)) {
    um_zstd_node_free(index, node); /* somebody of another stripe was faster */
    node = expected;
  }
  return node;
}

/* The stripe's lock is held at entry and at return. *leaf is NULL where there is none and none is to be made. */
static int find_leaf(um_zstd_store *store, uint64_t page, bool make, um_zstd_node **leaf, um_error *error) {
  um_zstd_index *index = &store->index;
  um_zstd_stripe *stripe = find_stripe(index, page);
  arrival a = {0};
  uint64_t seen = atomic_load(&store->generation);
  int result = 0, tries = 0;
  um_zstd_node *node = index->root;
  *leaf = NULL;
  while (result == 0 && node->level > 0) {
    uint32_t level = node->level - 1u, slot = page >> (8 * node->level) & 0xFF;
    um_zstd_node *child = atomic_load_explicit(&node->children[slot], memory_order_acquire);
    if (child) {
      node = child;
      continue;
    }
    um_zstd_entry entry = um_zstd_entry_get(&node->entries, slot);
    if (entry.kind == UM_ZSTD_ABSENT && !make)
      break;
    child = settle(index, node, page, &entry, &a);
    if (child) {
      node = child;
      continue;
    }
    um_zstd_node_free(index, a.node); /* read for nothing: the tree is another one now */
    a.node = NULL;
    if (entry.kind == UM_ZSTD_ABSENT) {
      result = -ENOMEM;
      break;
    }
    pthread_mutex_unlock(&stripe->lock);
    um_zstd_place place = {.offset = entry.offset, .length = entry.length, .checksum = entry.tag};
    a = (arrival){um_zstd_node_make(index, NULL, level, page >> (8 * (level + 1))), entry};
    result = a.node ? um_zstd_node_load(store, a.node, &place, error) : -ENOMEM;
    if (result == -UM_ECORRUPT && tries++ < 3) {
      um_zstd_node_free(index, a.node);
      a.node = NULL;
      if (um_zstd_store_reload(store, seen))
        result = 0;
    }
    pthread_mutex_lock(&stripe->lock);
    node = index->root;
    if (result == -UM_ECORRUPT) { /* Race: somebody read it, changed it, and a flush moved it meanwhile. */
      um_zstd_node *at = node;
      while (at && at->level > level)
        at = atomic_load_explicit(&at->children[page >> (8 * at->level) & 0xFF], memory_order_acquire);
      result = at ? 0 : result;
    }
  }
  um_zstd_node_free(index, a.node);
  if (result == -ENOMEM)
    um_error_set(error, ENOMEM, UM_OP_READ, page << store->page_shift, 0, "%s: no memory for the index",
                 store->file->path);
  if (result == 0 && node->level == 0) {
    *leaf = node;
    node->used = true;
  }
  return result;
}

int um_zstd_index_get(um_zstd_store *store, uint64_t page, uint32_t count, um_zstd_entry *entries, um_error *error) {
  um_zstd_stripe *stripe = find_stripe(&store->index, page);
  um_zstd_node *leaf;
  pthread_mutex_lock(&stripe->lock);
  int result = find_leaf(store, page, false, &leaf, error);
  for (uint32_t i = 0; result == 0 && i < count; i++)
    entries[i] = leaf ? um_zstd_entry_get(&leaf->entries, (page + i) % UM_ZSTD_FANOUT) : (um_zstd_entry){0};
  pthread_mutex_unlock(&stripe->lock);
  return result;
}

/* Makes the leaf one of the open epoch; its stripe's lock is held. */
static int touch(um_zstd_store *store, um_zstd_stripe *stripe, um_zstd_node *leaf, um_error *error) {
  if (leaf->epoch == store->index.epoch)
    return 0;
  if (leaf->saving && !leaf->frozen) {
    leaf->frozen = malloc(sizeof(*leaf->frozen));
    if (!leaf->frozen)
      return um_error_set(error, ENOMEM, UM_OP_WRITE, leaf->number * UM_ZSTD_FANOUT << store->page_shift, 0,
                          "%s: no memory for the index", store->file->path);
    *leaf->frozen = leaf->entries;
  }
  for (uint32_t i = 0; i < UM_ZSTD_FANOUT; i++)
    leaf->entries.halves[i] &= 0x7FFF; /* fresh no more */
  leaf->epoch = store->index.epoch;
  leaf->dirty_next = stripe->dirty;
  stripe->dirty = leaf;
  stripe->count++;
  return 0;
}

int um_zstd_index_set(um_zstd_store *store, uint64_t page, const um_zstd_entry *entry, const um_zstd_entry *expected,
                      um_error *error) {
  um_zstd_stripe *stripe = find_stripe(&store->index, page);
  um_zstd_node *leaf;
  pthread_mutex_lock(&stripe->lock);
  int result = find_leaf(store, page, entry->kind != UM_ZSTD_ABSENT, &leaf, error);
  if (result == 0 && leaf) {
    uint32_t slot = page % UM_ZSTD_FANOUT;
    um_zstd_entry old = um_zstd_entry_get(&leaf->entries, slot);
    if (expected && !um_zstd_same_entry(expected, &old))
      result = 1;
    else if (entry->kind != old.kind || !um_zstd_same_entry(entry, &old))
      result = touch(store, stripe, leaf, error);
    if (result == 0 && leaf->epoch == store->index.epoch) {
      old = um_zstd_entry_get(&leaf->entries, slot); /* touching may have ended its being fresh */
      um_zstd_entry fresh = *entry;
      fresh.fresh = entry->kind != UM_ZSTD_ABSENT;
      um_zstd_entry_set(&leaf->entries, slot, &fresh);
      if (old.length > 0)
        um_zstd_log_give(store, old.offset, old.length, old.fresh ? UM_ZSTD_NOW : UM_ZSTD_AT_FLUSH);
    }
  } else if (result == 0 && expected && expected->kind != UM_ZSTD_ABSENT) {
    result = 1;
  }
  pthread_mutex_unlock(&stripe->lock);
  return result;
}

int um_zstd_index_touch(um_zstd_store *store, uint64_t page, um_error *error) {
  um_zstd_stripe *stripe = find_stripe(&store->index, page);
  um_zstd_node *leaf;
  pthread_mutex_lock(&stripe->lock);
  int result = find_leaf(store, page, true, &leaf, error);
  if (result == 0)
    result = touch(store, stripe, leaf, error);
  pthread_mutex_unlock(&stripe->lock);
  return result;
}

int um_zstd_index_grow(um_zstd_store *store, uint32_t levels) {
  um_zstd_index *index = &store->index;
  while (index->root->level + 1u < levels) {
    um_zstd_node *old = index->root, *root = um_zstd_node_make(index, NULL, old->level + 1u, 0);
    if (!root)
      return -ENOMEM;
    if (old->offset) { /* its record stays where it is; the flush that follows writes the new one */
      um_zstd_entry entry = {
          .offset = old->offset, .length = old->length, .tag = (uint32_t)store->root.checksum, .kind = UM_ZSTD_CHILD};
      um_zstd_entry_set(&root->entries, 0, &entry);
    }
    old->parent = root;
    atomic_store(&root->children[0], old);
    index->root = root;
  }
  return 0;
}

static void lock_all(um_zstd_index *index) {
  for (uint32_t i = 0; i < UM_ZSTD_STRIPES; i++)
    pthread_mutex_lock(&index->stripes[i].lock);
}

static void unlock_all(um_zstd_index *index) {
  for (uint32_t i = UM_ZSTD_STRIPES; i-- > 0;)
    pthread_mutex_unlock(&index->stripes[i].lock);
}

int um_zstd_index_close(um_zstd_store *store, um_zstd_node ***leaves, uint64_t *count) {
  um_zstd_index *index = &store->index;
  uint64_t n = 0;
  *leaves = NULL;
  *count = 0;
  lock_all(index);
  for (uint32_t i = 0; i < UM_ZSTD_STRIPES; i++)
    n += index->stripes[i].count;
  um_zstd_node **list = n ? malloc(n * sizeof(*list)) : NULL;
  if (n && !list) {
    unlock_all(index);
    return -ENOMEM;
  }
  for (uint32_t i = 0; i < UM_ZSTD_STRIPES; i++) {
    um_zstd_stripe *stripe = &index->stripes[i];
    for (um_zstd_node *leaf = stripe->dirty; leaf; leaf = leaf->dirty_next) {
      leaf->saving = true;
      list[(*count)++] = leaf;
    }
    stripe->dirty = NULL;
    stripe->count = 0;
  }
  index->epoch++;
  um_zstd_log_close_epoch(&store->log); /* with the leaves: what they superseded is given up with them */
  unlock_all(index);
  *leaves = list;
  return 0;
}

void um_zstd_index_reopen(um_zstd_store *store, um_zstd_node **leaves, uint64_t count) {
  for (uint64_t i = 0; i < count; i++) {
    um_zstd_node *leaf = leaves[i];
    um_zstd_stripe *stripe = &store->index.stripes[leaf->number % UM_ZSTD_STRIPES];
    pthread_mutex_lock(&stripe->lock);
    leaf->saving = false;
    free(leaf->frozen);
    leaf->frozen = NULL;
    touch(store, stripe, leaf, NULL); /* needs no memory now */
    pthread_mutex_unlock(&stripe->lock);
  }
}

void um_zstd_index_replace(um_zstd_index *index, um_zstd_node *root) {
  lock_all(index);
  um_zstd_node *old = index->root;
  index->root = root;
  unlock_all(index);
  um_zstd_node_free(index, old); /* whoever looks at nodes holds a stripe */
}

/* With flush_lock, and so the parent's entry of each leaf that was ever written says where it is. */
static void shrink_below(um_zstd_store *store, um_zstd_node *node) {
  um_zstd_index *index = &store->index;
  for (uint32_t i = 0; i < UM_ZSTD_FANOUT && atomic_load(&index->bytes) > index->limit; i++) {
    um_zstd_node *child = atomic_load_explicit(&node->children[i], memory_order_acquire);
    if (!child)
      continue;
    if (child->level > 0) {
      shrink_below(store, child);
      continue;
    }
    um_zstd_stripe *stripe = &index->stripes[child->number % UM_ZSTD_STRIPES];
    pthread_mutex_lock(&stripe->lock);
    bool goes = !child->used && !child->saving && child->offset && child->epoch != index->epoch;
    child->used = false;
    if (goes)
      atomic_store(&node->children[i], NULL);
    pthread_mutex_unlock(&stripe->lock);
    if (goes)
      um_zstd_node_free(index, child);
  }
}

void um_zstd_index_shrink(um_zstd_store *store) {
  um_zstd_index *index = &store->index;
  if (atomic_load_explicit(&index->bytes, memory_order_relaxed) <=
          atomic_load_explicit(&index->patience, memory_order_relaxed) ||
      pthread_mutex_trylock(&store->flush_lock) != 0)
    return;
  for (int round = 0; round < 2 && index->root->level > 0; round++) /* the first may only find them all used */
    shrink_below(store, index->root);
  uint64_t bytes = atomic_load(&index->bytes);
  atomic_store(&index->patience, (bytes > index->limit ? bytes : index->limit) + index->limit / 8);
  pthread_mutex_unlock(&store->flush_lock);
}
