/* frames.c: descriptors of pages that are filling or resident, and the eviction list that links the resident ones,
 * oldest first. The array is address space; a descriptor costs memory when it is first used. */
#include "internal.h"

#include <stdio.h>

um_frame_id um_frame_take(um_pager *p, um_region *r, uint64_t page) {
  bool made = false;
  pthread_mutex_lock(&p->frames_lock);
  um_frame_id id = p->free_frames;
  if (id != UM_NIL) {
    p->free_frames = p->frames[id].next;
  } else if (p->frames_made + 1 < p->frame_capacity) {
    id = ++p->frames_made;
    made = true;
  }
  pthread_mutex_unlock(&p->frames_lock);
  if (id == UM_NIL)
    return UM_NIL;
  if (made && id > UM_FRAMES_PAID)
    um_budget_charge(p, sizeof(um_frame));
  um_frame *f = &p->frames[id];
  memset(f, 0, sizeof *f);
  f->region = r;
  f->page = page;
  return id;
}

void um_frame_give(um_pager *p, um_frame_id id) {
  pthread_mutex_lock(&p->frames_lock);
  UM_ASSERT(!p->frames[id].listed);
  p->frames[id].region = NULL;
  p->frames[id].next = p->free_frames;
  p->free_frames = id;
  pthread_mutex_unlock(&p->frames_lock);
}

void um_frame_unlink(um_pager *p, um_frame_id id) {
  um_frame *f = &p->frames[id];
  if (!f->listed)
    return;
  *(f->prev ? &p->frames[f->prev].next : &p->list_head) = f->next;
  *(f->next ? &p->frames[f->next].prev : &p->list_tail) = f->prev;
  f->prev = f->next = UM_NIL;
  f->listed = false;
  p->list_length--;
}

void um_frame_unlist(um_pager *p, um_frame_id id) {
  pthread_mutex_lock(&p->frames_lock);
  um_frame_unlink(p, id);
  pthread_mutex_unlock(&p->frames_lock);
}

void um_frame_relist(um_pager *p, um_frame_id id) {
  um_frame *f = &p->frames[id];
  um_frame_unlink(p, id);
  f->prev = p->list_tail;
  f->next = UM_NIL;
  *(p->list_tail ? &p->frames[p->list_tail].next : &p->list_head) = id;
  p->list_tail = id;
  f->listed = true;
  p->list_length++;
}

void um_frame_list(um_pager *p, um_frame_id id) {
  pthread_mutex_lock(&p->frames_lock);
  um_frame_relist(p, id);
  pthread_mutex_unlock(&p->frames_lock);
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
  p->frames[id].next = UM_NIL;
  *(q->tail ? &p->frames[q->tail].next : &q->head) = id;
  q->tail = id;
  q->length++;
}

um_frame_id um_queue_pop(um_pager *p, um_queue *q) {
  um_frame_id id = q->head;
  if (id == UM_NIL)
    return UM_NIL;
  q->head = p->frames[id].next;
  if (q->head == UM_NIL)
    q->tail = UM_NIL;
  q->length--;
  return id;
}

_Noreturn void um_assert_fail(const char *condition, const char *file, int line) {
  fprintf(stderr, "umappy: %s:%d: invariant broken: %s\n", file, line, condition);
  abort();
}
