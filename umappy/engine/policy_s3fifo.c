/* policy_s3fifo.c: three queues, first in, first out: Yang, Zhang, Qiu, Yue and Rashmi, "FIFO queues are all you need
 * for cache eviction", SOSP 2023.
 *
 * New runs enter small, a tenth of the memory; most data is touched once and leaves from there. What proves a second
 * use goes to main, which only competes with itself. The paper counts touches in bits of the entry; here nobody sees
 * touches of resident memory, so the proofs are a touch in standby and a miss on a ghost. Each touch in standby gives a
 * run of main one more round before it is moved out again (heat): what is hot stops costing faults. */
#include "policy_internal.h"

#define HEAT_MAX 3u
#define TURNS 8u /* runs that get their round, at most, when a victim is looked for */

static enum um_segment enter(um_policy *p, um_policy_group *g, um_frame *f, bool ghost) {
  (void)p, (void)g, (void)f;
  return ghost ? UM_SEGMENT_MAIN : UM_SEGMENT_SMALL;
}

static enum um_segment again(um_policy *p, um_policy_group *g, um_frame *f, enum um_segment from) {
  (void)p, (void)g, (void)from;
  if (f->trail & UM_TRAIL_MAIN && f->heat < HEAT_MAX)
    f->heat++;
  return UM_SEGMENT_MAIN;
}

static enum um_segment choose(um_policy *p, um_policy_group *g) {
  um_policy_queue *main = &g->queues[UM_SEGMENT_MAIN];
  if (g->queues[UM_SEGMENT_SMALL].bytes > um_group_part(g, p->options.small_share) || main->head == UM_NIL)
    return UM_SEGMENT_SMALL;
  for (uint32_t i = 0; i < TURNS && p->frames[main->head].heat; i++) {
    p->frames[main->head].heat--;
    um_policy_move(p, g, main->head, UM_SEGMENT_MAIN);
  }
  return UM_SEGMENT_MAIN;
}

const um_policy_rules um_rules_s3fifo = {.enter = enter, .again = again, .choose = choose};
