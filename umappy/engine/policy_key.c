/* policy_key.c: how tables of fixed size know the pages of a run.
 *
 * A long run stands in them by up to eight of its pages, those whose numbers are multiples of its length's eighth
 * (rounded up to a power of two): a run that is cut differently next time still meets them, and no event takes more
 * than eight look-ups. */
#include "policy_internal.h"

#define KEYS 8u

uint64_t um_policy_hash(uint64_t key) {
  key *= 0x9e3779b97f4a7c15u;
  key ^= key >> 32;
  key *= 0xd6e8feb86659fd93u;
  return key ^ key >> 32;
}

uint64_t um_policy_page_key(const um_frame *f, uint64_t page) {
  return um_page_address(f->region, page) / UM_PAGE_SIZE_MIN;
}

um_policy_keys um_policy_keys_of(const um_frame *f) {
  uint64_t step = 1, count = um_max(f->count, 1);
  while (step * KEYS < count)
    step *= 2;
  return (um_policy_keys){um_round_up(f->page, step), f->page + count, step};
}

bool um_policy_keys_next(um_policy_keys *keys, const um_frame *f, uint64_t *hash) {
  if (keys->next >= keys->end)
    return false;
  *hash = um_policy_hash(um_policy_page_key(f, keys->next));
  keys->next += keys->step;
  return true;
}
