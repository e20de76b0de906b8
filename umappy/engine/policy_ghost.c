/* policy_ghost.c: which pages left memory lately, in a table of fixed size.
 *
 * Buckets of one cache line; an entry is 15 bits of the page's hash and a stamp of the eviction clock. In a full bucket
 * the oldest entry gives way, so nothing is ever cleaned up: what is beyond the reach does not count. Two pages of one
 * bucket with the same tag are taken for each other, once in some thousand look-ups, and a stamp comes round after 64
 * times the memory was evicted; either costs one wrong guess. */
#include "policy_internal.h"

#define STEPS 1024u /* of the stamp while as much as the memory is evicted */

static uint32_t count_buckets(const um_policy_options *options) {
  return (uint32_t)um_max(1, options->memory / UM_PAGE_SIZE_MIN / UM_GHOST_WAYS);
}

uint64_t um_ghosts_memory(const um_policy_options *options) {
  return um_round_up(count_buckets(options) * sizeof(um_ghost_bucket), um_host_page);
}

int um_ghosts_create(um_ghosts *ghosts, const um_policy_options *options) {
  ghosts->bucket_count = count_buckets(options);
  ghosts->unit = um_max(1, options->memory / STEPS);
  ghosts->reach = options->ghost_share * STEPS / UM_POLICY_WHOLE;
  ghosts->buckets = um_memory_map(um_ghosts_memory(options));
  return ghosts->buckets ? 0 : -ENOMEM;
}

void um_ghosts_destroy(um_ghosts *ghosts) {
  um_memory_unmap(ghosts->buckets, um_round_up(ghosts->bucket_count * sizeof(um_ghost_bucket), um_host_page));
}

static uint16_t stamp(const um_ghosts *ghosts) {
  return (uint16_t)(ghosts->clock / ghosts->unit);
}

static uint16_t tag_of(uint64_t hash) {
  return (uint16_t)(hash | 1);
}

bool um_ghosts_take(um_ghosts *ghosts, const um_frame *f) {
  um_policy_keys keys = um_policy_keys_of(f);
  uint64_t hash, looked = 0, found = 0;
  uint16_t now = stamp(ghosts);
  for (; um_policy_keys_next(&keys, f, &hash); looked++) {
    um_ghost_bucket *b = &ghosts->buckets[um_policy_bucket(hash, ghosts->bucket_count)];
    for (uint32_t i = 0; i < UM_GHOST_WAYS; i++)
      if (b->tags[i] == tag_of(hash)) {
        found += (uint16_t)(now - b->stamps[i]) <= ghosts->reach;
        b->tags[i] = 0;
        break;
      }
  }
  return found * 2 > looked;
}

void um_ghosts_note(um_ghosts *ghosts, const um_frame *f) {
  um_policy_keys keys = um_policy_keys_of(f);
  uint64_t hash;
  uint16_t now = stamp(ghosts);
  while (um_policy_keys_next(&keys, f, &hash)) {
    um_ghost_bucket *b = &ghosts->buckets[um_policy_bucket(hash, ghosts->bucket_count)];
    uint32_t place = 0, oldest = 0;
    for (uint32_t i = 0; i < UM_GHOST_WAYS; i++) {
      uint32_t age = b->tags[i] ? 1u + (uint16_t)(now - b->stamps[i]) : UINT32_MAX;
      if (age > oldest) {
        oldest = age;
        place = i;
      }
    }
    b->tags[place] = tag_of(hash);
    b->stamps[place] = now;
  }
  ghosts->clock += um_frame_bytes(f);
}
