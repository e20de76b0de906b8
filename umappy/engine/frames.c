/* frames.c: descriptors of runs that are filling, resident or on standby, and what the policy is told of them. The
 * array is address space; a descriptor costs memory when it is first used. */
#include "policy.h"

#include <stdio.h>

um_frame_id um_frame_take(um_pager *p, um_region *r, uint64_t page, uint64_t count) {
  bool made = false;
  pthread_mutex_lock(&p->frames_lock);
  um_frame_id id = p->free_frames;
  if (id != UM_NIL) {
    p->free_frames = p->frames[id].next;
  } else if (p->frames_made + 1 < p->frame_capacity) {
    id = ++p->frames_made;
    made = true;
  }
  if (id != UM_NIL) {
    um_frame *f = &p->frames[id];
    f->region = r;
    f->page = f->touched = page;
    f->count = (uint32_t)count;
    f->offset = f->fault_ns = 0;
    f->thread_id = f->thread_turn = f->chunk = 0;
    atomic_store(&f->collapsed, false);
    f->write = f->give_up = f->returns = f->claimed = false;
    atomic_store(&f->live, 0);
    atomic_store(&f->born_ns, 0);
    atomic_store(&f->blocks, 0);
    atomic_store(&f->opened, false);
    atomic_store(&f->writer, false);
    atomic_store(&f->cleaned, 0);
    atomic_store(&f->ahead, false); /* the leader may be looking, through a word that named it a moment ago */
  }
  pthread_mutex_unlock(&p->frames_lock);
  if (made && id > UM_FRAMES_PAID)
    um_budget_charge(p, sizeof(um_frame));
  return id;
}

void um_frame_forget(um_pager *p, um_frame_id id) {
  um_frame *f = &p->frames[id];
  um_policy_remove(p->policy, id);
  f->region = NULL;
  f->picked = false;
  f->next = p->free_frames;
  p->free_frames = id;
}

void um_frame_give(um_pager *p, um_frame_id id) {
  pthread_mutex_lock(&p->frames_lock);
  UM_ASSERT(atomic_load(&p->frames[id].live) == 0);
  um_frame_forget(p, id);
  pthread_mutex_unlock(&p->frames_lock);
}

void um_frame_drop(um_pager *p, um_frame_id id, uint32_t pages) {
  uint32_t live = atomic_fetch_sub(&p->frames[id].live, pages);
  UM_ASSERT(live >= pages);
  if (live == pages)
    um_frame_give(p, id);
}

void um_frame_list(um_pager *p, um_frame_id id) {
  pthread_mutex_lock(&p->frames_lock);
  if (p->frames[id].queue == 0) /* other pages of its run may have become resident before */
    um_policy_insert(p->policy, id, false);
  pthread_mutex_unlock(&p->frames_lock);
}

void um_frame_list_ahead(um_pager *p, um_frame_id id) {
  pthread_mutex_lock(&p->frames_lock);
  um_policy_insert(p->policy, id, true);
  pthread_mutex_unlock(&p->frames_lock);
}

void um_frame_refault(um_pager *p, um_frame_id id) {
  pthread_mutex_lock(&p->frames_lock);
  p->kept_hits += !atomic_load(&p->frames[id].ahead);
  um_policy_refault(p->policy, id);
  pthread_mutex_unlock(&p->frames_lock);
}

void um_frame_relist(um_pager *p, um_frame_id id) {
  um_policy_remove(p->policy, id);
  um_policy_insert(p->policy, id, false);
}

/* One instruction may need several pages at once, so a page just placed must outlive the placing of the others: it
 * stays until it is older than the grace period, or until its thread has faulted so often again that the instruction
 * it was for must have moved on. Without this, threads that outnumber the pages of a small budget evict each other's
 * pages for ever. */
bool um_frame_aged(um_pager *p, const um_frame *f, uint64_t now) {
  uint64_t born = atomic_load_explicit(&f->born_ns, memory_order_relaxed);
  if (now >= born && now - born >= UM_GRACE_NS) /* it may have been placed since the caller looked at the clock */
    return true;
  if (f->thread_id == 0)
    return false;
  uint32_t turn = atomic_load_explicit(&p->turns[f->thread_id % UM_TURN_SLOTS], memory_order_relaxed);
  return turn - f->thread_turn >= UM_GRACE_TURNS;
}

void um_queue_push(um_pager *p, um_queue *q, um_frame_id id) {
  p->frames[id].queued_next = UM_NIL;
  *(q->tail ? &p->frames[q->tail].queued_next : &q->head) = id;
  q->tail = id;
  q->length++;
}

um_frame_id um_queue_pop(um_pager *p, um_queue *q) {
  um_frame_id id = q->head;
  if (id == UM_NIL)
    return UM_NIL;
  q->head = p->frames[id].queued_next;
  if (q->head == UM_NIL)
    q->tail = UM_NIL;
  q->length--;
  return id;
}

_Noreturn void um_assert_fail(const char *condition, const char *file, int line) {
  fprintf(stderr, "umappy: %s:%d: invariant broken: %s\n", file, line, condition);
  abort();
}
