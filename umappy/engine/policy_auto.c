/* policy_auto.c: whichever of several rules has the fewest misses here and now.
 *
 * Each contender always rules over a 32nd of the pages, drawn by lot, within a 32nd of the memory;
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
#define USUAL_OVER 16u /* misses, about, over which their usual size is taken */
#define RUNS_MIN 32u
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

/* Of 32 neighbours each contender has one, and which is chance: contenders rule over as many pages of any data, and of
 * any pattern in it. Neighbours are runs of about the same length. */
uint32_t um_auto_group(const um_frame *f) {
  uint32_t bits = f->count > 1 ? 32u - (uint32_t)__builtin_clz(f->count - 1) : 0;
  uint64_t index = f->page >> bits, base = um_policy_page_key(f, 0);
  uint64_t slot = (index + um_policy_hash(base + index / UM_GROUP_SHARES)) % UM_GROUP_SHARES;
  return slot < CONTENDERS ? (uint32_t)slot + 1 : 0;
}

/* The best contender's lag is zero, and none is counted beyond half of what a contender holds: a lead of long ago does
 * not stand in the way. Where that is only a few runs it is as many as tell skill from luck. */
void um_auto_missed(um_policy *p, uint32_t group, uint64_t bytes) {
  if (group == 0)
    return;
  uint64_t units = um_max(1, bytes / UM_PAGE_SIZE_MIN), least = UINT64_MAX;
  p->usual = p->usual - p->usual / USUAL_OVER + units;
  uint64_t held = p->options.memory / UM_PAGE_SIZE_MIN / UM_GROUP_SHARES;
  uint64_t limit = um_max(held / 2, p->usual * RUNS_MIN / USUAL_OVER) * WEIGHT_MAX;
  p->lag[group] += units * weights[group - 1];
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
