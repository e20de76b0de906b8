/* policy_auto.c: whichever of several rules has the fewest misses here and now.
 *
 * Each contender always rules over a 32nd of the pages, chosen by a hash of their address, within a 32nd of the memory;
 * all other pages follow the one whose pages missed least. So nothing has to be guessed from the order of faults, which
 * threads and read-ahead disturb: that a loop goes on, or that it ended, shows in misses, and misses are what a pager
 * sees. Qureshi, Jaleel, Patt, Steely and Emer, "Adaptive insertion policies for high performance caching", ISCA 2007
 * (set dueling).
 *
 * The contenders: s3fifo, quick to adapt and safe from scans; lfu, which holds on to what is asked for most, and in
 * loops to what it has; second_chance, for what moves on slowly. lfu begins, and its misses count seven for eight:
 * where the others are better they are much better, and where it is, chance in who got which pages may hide it. */
#include "policy_internal.h"

static const um_policy_rules *const contenders[] = {&um_rules_s3fifo, &um_rules_lfu, &um_rules_plain};
static const uint32_t weights[] = {8, 7, 8}; /* of a miss */
#define WEIGHT_MAX 8u
#define CONTENDERS (sizeof contenders / sizeof *contenders)
#define FIRST 2u /* contender number 2 */
_Static_assert(CONTENDERS + 1 == UM_GROUPS, "a group for each, and one for the others");

static void follow(um_policy *p, uint32_t contender) {
  p->winner = contender;
  p->groups[0].rules = contenders[contender - 1];
}

void um_auto_create(um_policy *p) {
  p->group_count = UM_GROUPS;
  for (uint32_t i = 0; i < UM_GROUPS; i++) {
    p->groups[i].share = i ? 1 : UM_GROUP_SHARES - CONTENDERS;
    p->groups[i].rules = i ? contenders[i - 1] : NULL;
  }
  follow(p, FIRST);
}

uint32_t um_auto_group(const um_frame *f) {
  uint64_t slot = um_policy_hash(um_policy_page_key(f, f->page)) >> 59;
  return slot < CONTENDERS ? (uint32_t)slot + 1 : 0;
}

/* The best contender's lag is zero, and none is counted beyond half of what a contender holds: a lead of long ago does
 * not stand in the way. */
void um_auto_missed(um_policy *p, uint32_t group, uint64_t bytes) {
  if (group == 0)
    return;
  uint64_t pages = um_max(2, p->options.memory / UM_PAGE_SIZE_MIN / UM_GROUP_SHARES);
  uint64_t limit = pages / 2 * WEIGHT_MAX, least = UINT64_MAX;
  p->lag[group] += bytes / UM_PAGE_SIZE_MIN * weights[group - 1];
  for (uint32_t i = 1; i < UM_GROUPS; i++)
    least = um_min(least, p->lag[i]);
  uint32_t best = p->winner;
  for (uint32_t i = 1; i < UM_GROUPS; i++) {
    p->lag[i] = um_min(p->lag[i] - least, limit);
    if (p->lag[i] < p->lag[best])
      best = i;
  }
  if (p->lag[p->winner] > limit / 2)
    follow(p, best);
}
