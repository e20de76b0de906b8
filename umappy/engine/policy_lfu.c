/* policy_lfu.c: holds on to what was asked for most often; one of the rules that auto tries.
 *
 * What is held is resident in main for a while and then waits in standby, most of it, where touches are seen and
 * counted and bring it back to main. What is new passes through small and then through trial, both short. When memory
 * is wanted the oldest of trial and the oldest of standby meet: the new one gets the place only if it was asked for
 * more than twice as often, and twice, as the held one. So chance does not make the two change places, and in a loop
 * over more than fits, where all are asked for equally often, what is held stays. Of runs that cannot be moved
 * out, the oldest of small and of main meet. Who is touched again and again while it passes through trial is wanted
 * more often than anything held could show, and is held without a contest.
 *
 * What may be held is what there lately was room for at every moment. What is read ahead, and what evictors keep free,
 * comes and goes: were each ebb filled with new runs, each flood would drive out held ones, and a stream would go round
 * in all of the memory instead of in the few chunks that it needs.
 *
 * The contest is TinyLFU's (policy_frequency.c); touches in standby count twice, since a run that is held was out of
 * sight for a while; but not of what was read ahead, which is missed without anybody's waiting. */
#include "policy_internal.h"

#define SMALL_SHARE 20u /* of UM_POLICY_WHOLE, and so the other two */
#define TRIAL_SHARE 40u
#define MAIN_SHARE 500u
#define RISE 16u
#define PROOFS 3u /* touches in trial, one soon after the other, that need no contest */

/* Falls at once, and rises again while RISE times as much comes new as the group has. */
static void measure_room(const um_policy *p, um_policy_group *g, uint64_t new_bytes) {
  uint32_t rest = SMALL_SHARE + (p->options.standby_share ? TRIAL_SHARE : 0);
  uint64_t room = um_group_part(g, UM_POLICY_WHOLE - rest);
  if (g->room == 0 || room < g->room)
    g->room = room;
  else if (new_bytes)
    g->room += (room - g->room) / (RISE * g->bytes / new_bytes + 1);
}

static enum um_segment enter(um_policy *p, um_policy_group *g, um_frame *f, bool ghost) {
  (void)ghost;
  if (p->clock == 0) /* nothing had to leave yet */
    return UM_SEGMENT_MAIN;
  measure_room(p, g, um_frame_bytes(f));
  uint64_t held = g->queues[UM_SEGMENT_MAIN].bytes + g->queues[UM_SEGMENT_STANDBY].bytes;
  return held <= g->room ? UM_SEGMENT_MAIN : UM_SEGMENT_SMALL;
}

static enum um_segment again(um_policy *p, um_policy_group *g, um_frame *f, enum um_segment from) {
  (void)p, (void)g;
  if (from == UM_SEGMENT_TRIAL && ++f->heat < PROOFS)
    return UM_SEGMENT_SMALL;
  f->heat = 0;
  return UM_SEGMENT_MAIN;
}

static enum um_segment leave(enum um_segment from) {
  return from == UM_SEGMENT_MAIN ? UM_SEGMENT_STANDBY : UM_SEGMENT_TRIAL;
}

/* The queue whose oldest run is to go. Who wins is young again among those held. */
static enum um_segment meet(um_policy *p, um_policy_group *g, enum um_segment trial, enum um_segment held) {
  um_frame_id new = g->queues[trial].head, old = g->queues[held].head;
  measure_room(p, g, 0);
  if (new == UM_NIL || old == UM_NIL)
    return new == UM_NIL ? held : trial;
  uint32_t new_count = um_frequencies_look(&p->frequencies, &p->frames[new]);
  uint32_t old_count = um_frequencies_look(&p->frequencies, &p->frames[old]);
  bool wins = new_count > 2 * old_count + 2;
  um_policy_move(p, g, wins ? new : old, held);
  return wins ? held : trial;
}

/* Runs that cannot wait in standby meet where they are. While nobody is on trial the next to leave would be the oldest
 * of those held. */
static enum um_segment choose(um_policy *p, um_policy_group *g) {
  um_frame_id new = g->queues[UM_SEGMENT_SMALL].head, old = g->queues[UM_SEGMENT_MAIN].head;
  bool small = g->queues[UM_SEGMENT_SMALL].bytes > um_group_part(g, SMALL_SHARE) || old == UM_NIL ||
               (new != UM_NIL && g->queues[UM_SEGMENT_TRIAL].head == UM_NIL && um_policy_keeps(p, new));
  if (new != UM_NIL && old != UM_NIL && !um_policy_keeps(p, small ? new : old))
    return meet(p, g, UM_SEGMENT_SMALL, UM_SEGMENT_MAIN);
  return small ? UM_SEGMENT_SMALL : UM_SEGMENT_MAIN;
}

static enum um_segment choose_standby(um_policy *p, um_policy_group *g) {
  return meet(p, g, UM_SEGMENT_TRIAL, UM_SEGMENT_STANDBY);
}

static bool standby_full(const um_policy *p, const um_policy_group *g) {
  (void)p;
  if (g->queues[UM_SEGMENT_TRIAL].head == UM_NIL && g->queues[UM_SEGMENT_SMALL].head)
    return false; /* there is somebody for the trial */
  return g->queues[UM_SEGMENT_SMALL].bytes <= um_group_part(g, SMALL_SHARE) &&
         g->queues[UM_SEGMENT_MAIN].bytes <= um_group_part(g, MAIN_SHARE);
}

const um_policy_rules um_rules_lfu = {
    .enter = enter,
    .again = again,
    .leave = leave,
    .choose = choose,
    .choose_standby = choose_standby,
    .standby_full = standby_full,
};
