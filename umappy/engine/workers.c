/* workers.c: what the engine's threads do between pieces of work.
 *
 * Fillers are leader and followers. The leader waits in the uffd and serves what needs no I/O; when a fault needs the
 * store it hands the lead to an idle filler and reads the store itself, so a fault crosses no thread on its way; bytes
 * that the store has in memory are no I/O. When
 * nobody is idle the work is queued and the leader goes on reading: somebody always is, unless there is only one
 * filler. Demand before prefetch, always. Where fillers are few, prefetch leaves one of them free for demand; where
 * they are many, one is done so soon that a fault need not have its own.
 *
 * Evictors take turns between the steps of jobs (flush, evict) and keeping free memory between the water marks. */
#include "clean.h"
#include "collapse.h"
#include "mechanism.h"
#include "page.h"
#include "pool_make.h"
#include "uffd.h"

#include <poll.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>

#define MESSAGES 16

int um_wait_until(pthread_cond_t *condition, pthread_mutex_t *lock, uint64_t deadline_ns) {
  struct timespec at = {(time_t)(deadline_ns / 1000000000u), (long)(deadline_ns % 1000000000u)};
  return pthread_cond_timedwait(condition, lock, &at);
}

static void wait_ms(um_pager *p, pthread_cond_t *condition, uint64_t ms) {
  um_wait_until(condition, &p->lock, um_now_ns() + ms * 1000000u);
}

void um_work_post(um_pager *p) {
  if (p->idle)
    pthread_cond_signal(&p->work);
  else if (p->filler_count == 1)
    (void)!write(p->kick, &(uint64_t){1}, sizeof(uint64_t));
}

static void feed(um_pager *p, um_frame_id id) { /* pager->lock held */
  um_queue_push(p, &p->demand, id);
  atomic_fetch_sub(&p->memory_waiters, 1);
  um_work_post(p);
}

static void feed_all_that_fit(um_pager *p) { /* pager->lock held; one at least */
  uint64_t need = 0, unused = um_budget_free(p);
  while (p->starved.length && (need == 0 || need <= unused)) {
    um_frame_id id = um_queue_pop(p, &p->starved);
    need += p->frames[id].region->page_size;
    feed(p, id);
  }
}

void um_memory_freed(um_pager *p) {
  if (atomic_load(&p->memory_waiters) == 0)
    return;
  pthread_mutex_lock(&p->lock);
  feed_all_that_fit(p);
  pthread_cond_broadcast(&p->progress);
  pthread_mutex_unlock(&p->lock);
}

/* A fill is given up when it has waited for its time, and writes fail or nothing came free meanwhile; where memory
 * comes and goes, waiting for one's turn is no failure. */
void um_starved_check(um_pager *p) {
  uint64_t now = um_now_ns(), freed = atomic_load(&p->freed);
  if (p->starved.length == 0 || freed != p->starved_freed) {
    p->starved_freed = freed;
    p->starved_ns = now;
  }
  if (p->starved.length == 0)
    return;
  if (!um_budget_low(p)) {
    feed_all_that_fit(p);
    return;
  }
  if (p->writes_failed == 0 && now - p->starved_ns < p->timeout_ns)
    return;
  for (uint32_t left = p->starved.length; left > 0; left--) {
    um_frame_id id = um_queue_pop(p, &p->starved);
    um_frame *f = &p->frames[id];
    if (now >= f->fault_ns && now - f->fault_ns >= p->timeout_ns) {
      f->give_up = true;
      feed(p, id);
    } else {
      um_queue_push(p, &p->starved, id);
    }
  }
}

static int read_messages(um_pager *p, struct uffd_msg *messages, int timeout_ms) {
  struct pollfd fds[2] = {{p->uffd, POLLIN, 0}, {p->kick, POLLIN, 0}};
  int ready = poll(fds, 2, timeout_ms);
  if (atomic_load(&p->stop))
    return 0;
  um_keeper_check(p);
  if (ready <= 0)
    return 0;
  if (fds[1].revents & POLLIN)
    (void)!read(p->kick, &(uint64_t){0}, sizeof(uint64_t));
  if (!(fds[0].revents & POLLIN))
    return 0;
  int n = um_uffd_read(p->uffd, messages, MESSAGES);
  return n < 0 ? 0 : n; /* EAGAIN: woken meanwhile */
}

static bool prefetch_waits(um_pager *p) {
  return p->ahead_count || um_job_prefetch_waits(p);
}

/* pager->lock held; let go inside. Leads until there is a fill for this filler (returned) or a prefetch (nil). */
static um_frame_id lead(um_worker *w) {
  um_pager *p = w->pager;
  struct uffd_msg messages[MESSAGES];
  bool alone = p->filler_count == 1;
  p->leader = true;
  while (!atomic_load(&p->stop)) {
    bool work = alone && (p->demand.length || prefetch_waits(p));
    pthread_mutex_unlock(&p->lock);
    int n = read_messages(p, messages, work ? 0 : 10 * UM_TICK_MS);
    um_queue found = {0};
    for (int i = 0; i < n; i++)
      if (messages[i].event == UM_UFFD_EVENT_PAGEFAULT)
        um_fault_handle(p, &messages[i], &found);
    if (found.length == 1 && um_fill_cached(w, found.head))
      found = (um_queue){0};
    pthread_mutex_lock(&p->lock);
    um_starved_check(p);
    for (um_frame_id id; (id = um_queue_pop(p, &found)) != UM_NIL;)
      um_queue_push(p, &p->demand, id);
    if (p->demand.length && (p->idle || alone)) {
      uint32_t helpers = p->demand.length < p->idle ? p->demand.length : p->idle;
      for (uint32_t i = 0; i < helpers; i++) /* one to lead, others to fill */
        pthread_cond_signal(&p->work);
      p->leader = false;
      return um_queue_pop(p, &p->demand);
    }
    if (alone && prefetch_waits(p))
      break;
  }
  p->leader = false;
  return UM_NIL;
}

bool um_work_may_prefetch(const um_pager *p) {
  uint32_t spare = p->filler_count >= 3 && p->filler_count < UM_MANY_FILLERS, most = p->filler_count - 1 - spare;
  return p->prefetching < um_max(1, most) && p->demand.length == 0;
}

void *um_filler_main(void *worker) {
  um_worker *w = worker;
  um_pager *p = w->pager;
  prctl(PR_SET_NAME, "um-filler");
  pthread_mutex_lock(&p->lock);
  while (!atomic_load(&p->stop)) {
    um_frame_id id = p->leader ? um_queue_pop(p, &p->demand) : lead(w);
    if (id != UM_NIL) {
      pthread_mutex_unlock(&p->lock);
      um_fill_demand(w, id);
      pthread_mutex_lock(&p->lock);
    } else if (!um_work_may_prefetch(p) || !(um_ahead_step(w) || um_job_prefetch_step(w) || um_pool_renew_step(p))) {
      if (!p->leader || p->demand.length)
        continue;
      p->idle++;
      wait_ms(p, &p->work, 10 * UM_TICK_MS);
      p->idle--;
    }
  }
  if (!p->leader)
    pthread_cond_broadcast(&p->work);
  pthread_mutex_unlock(&p->lock);
  return NULL;
}

void *um_evictor_main(void *worker) {
  um_worker *w = worker;
  um_pager *p = w->pager;
  prctl(PR_SET_NAME, "um-evictor");
  pthread_mutex_lock(&p->lock);
  while (!atomic_load(&p->stop)) {
    bool worked = um_job_write_step(w);
    um_starved_check(p);
    if (um_budget_low(p)) { /* also between the steps of a long flush: faults must not wait for its end */
      pthread_mutex_unlock(&p->lock);
      uint64_t freed = um_evict_batch(w);
      pthread_mutex_lock(&p->lock);
      pthread_cond_broadcast(&p->progress); /* a flush may wait for pages that were leaving */
      if (freed == 0 && !worked)            /* everything is young, busy, or the store is failing */
        wait_ms(p, &p->evict_work, 1);
      continue;
    }
    if (worked)
      continue;
    /* Race: a job that is begun while the lock is let go of wakes nobody who is not waiting. So whoever lets go of it
     * looks for jobs again. */
    uint64_t cleaning = um_clean_step(w), collapsing = cleaning ? um_collapse_step(w) : 0;
    if (cleaning == 0 || collapsing == 0) {
      pthread_cond_broadcast(&p->progress); /* likewise */
      continue;
    }
    uint64_t pause = um_min(cleaning, collapsing) / 1000000u + 1;
    /* Race: asked again between the look and the wait. The flag falls first, then the look is repeated. */
    atomic_store(&p->evict_asked, false);
    if (!um_budget_low(p))
      wait_ms(p, &p->evict_work, um_min(pause, p->starved.length ? UM_TICK_MS : 10 * UM_TICK_MS));
  }
  pthread_mutex_unlock(&p->lock);
  return NULL;
}
