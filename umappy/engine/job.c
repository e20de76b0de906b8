/* job.c: work that a caller asks for and may wait for: flush and evict of a range, done by evictors (job_write.c), and
 * prefetch of a range or of a list of pages, done by fillers. Ranges are cut into spans, prefetch into runs; each
 * worker claims the next, so several work on a job at once. The caller waits with a deadline and may walk away; the job
 * goes on. A region cannot be closed while it has jobs. */
#include "blocks.h"
#include "page.h"

#include <limits.h>
#include <sched.h>

#define START_NS 1000000000u
#define BATCH_MIN 16            /* pages of a list from which on they are read as a batch */
#define BATCH_RUN (256u << 10)  /* bytes of a run from which on it is a read of its own */
#define BATCH_MAX 1024          /* pages a step */
#define BATCH_MAX_ALONE 64      /* where the only filler has faults to look after between steps */
#define LIST_WAIT_NS 100000000u /* for the memory of a list */

static um_job **list_of(um_pager *p, um_job_kind kind) {
  return kind == UM_JOB_PREFETCH ? &p->prefetch_jobs : &p->write_jobs;
}

static uint64_t list_bytes(const um_job *job) {
  return job->list_length * sizeof *job->list;
}

static void unref(um_job *job) { /* pager->lock held; let go inside when it was the last */
  um_pager *p = job->pager;
  if (--job->refs)
    return;
  pthread_mutex_unlock(&p->lock);
  if (job->list)
    um_budget_uncharge(p, list_bytes(job));
  free(job->list);
  free(job);
  pthread_mutex_lock(&p->lock);
}

/* Takes the job, whose range or list is set; NULL: the region is closed, and the job still the caller's. */
static um_job *start(um_region *r, um_job *job) {
  um_pager *p = r->pager;
  /* Race: close against a job being started. The gate is closed for an instant, or for good. */
  uint64_t deadline = um_now_ns() + START_NS;
  while (!um_gate_enter(r)) {
    if (um_now_ns() > deadline)
      return NULL;
    sched_yield();
  }
  pthread_mutex_lock(&p->lock);
  atomic_fetch_add(&r->jobs, 1);
  um_job **end = list_of(p, job->kind);
  while (*end)
    end = &(*end)->next;
  *end = job;
  if (job->kind == UM_JOB_PREFETCH)
    um_work_post(p);
  else
    pthread_cond_broadcast(&p->evict_work);
  pthread_mutex_unlock(&p->lock);
  um_gate_leave(r);
  return job;
}

static um_job *start_range(um_region *r, um_job_kind kind, uint64_t offset, uint64_t length, bool durable) {
  um_job *job = calloc(1, sizeof *job);
  if (!job)
    return NULL;
  offset = um_min(offset, r->size);
  length = um_min(length, r->size - offset);
  *job = (um_job){.region = r, .pager = r->pager, .kind = kind, .durable = durable, .refs = 2};
  job->cursor = offset >> r->page_shift;
  job->end = length == 0 ? job->cursor : ((offset + length - 1) >> r->page_shift) + 1;
  um_job *started = start(r, job);
  if (!started)
    free(job);
  return started;
}

um_job *um_region_flush_start(um_region *r, uint64_t offset, uint64_t length, int durable) {
  return start_range(r, UM_JOB_FLUSH, offset, length, durable);
}

um_job *um_region_evict_start(um_region *r, uint64_t offset, uint64_t length) {
  return start_range(r, UM_JOB_EVICT, offset, length, false);
}

um_job *um_region_prefetch_start(um_region *r, uint64_t offset, uint64_t length) {
  return start_range(r, UM_JOB_PREFETCH, offset, length, false);
}

static bool is_list(const um_region *r, const uint64_t *pages, uint64_t count) {
  for (uint64_t i = 0; i < count; i++)
    if (pages[i] >= r->page_count || (i > 0 && pages[i] <= pages[i - 1]))
      return false;
  return true;
}

/* The list counts, as far as it is used: more pages than the budget could hold are not looked at. A job that gets no
 * memory for it ends without having done anything, as other prefetch does. */
um_job *um_region_prefetch_pages_start(um_region *r, const uint64_t *pages, uint64_t count) {
  um_pager *p = r->pager;
  um_job *job = is_list(r, pages, count) ? calloc(1, sizeof *job) : NULL;
  if (!job)
    return NULL;
  *job = (um_job){.region = r, .pager = p, .kind = UM_JOB_PREFETCH, .refs = 2};
  job->list_length = job->end = um_min(count, p->memory >> r->page_shift);
  job->list = malloc(um_max(1, list_bytes(job)));
  if (!job->list) {
    free(job);
    return NULL;
  }
  if (um_memory_wait(p, list_bytes(job), atomic_load(&p->emergency), um_now_ns() + LIST_WAIT_NS))
    job->list_length = job->end = 0;
  atomic_fetch_add(&p->overhead, list_bytes(job));
  memcpy(job->list, pages, list_bytes(job));
  um_job *started = start(r, job);
  if (!started) {
    um_budget_uncharge(p, list_bytes(job));
    free(job->list);
    free(job);
  }
  return started;
}

void um_job_end(um_pager *p, um_job *job) {
  um_job **link = list_of(p, job->kind);
  while (*link != job)
    link = &(*link)->next;
  *link = job->next;
  job->done = true;
  atomic_fetch_sub(&job->region->jobs, 1);
  pthread_cond_broadcast(&p->progress);
  unref(job);
}

void um_region_prefetch_cancel(um_region *r) {
  pthread_mutex_lock(&r->pager->lock);
  for (um_job *job = r->pager->prefetch_jobs; job; job = job->next)
    if (job->region == r)
      job->cancelled = true;
  um_work_post(r->pager);
  pthread_mutex_unlock(&r->pager->lock);
}

int um_job_wait(um_job *job, uint32_t timeout_ms, um_error *error) {
  um_pager *p = job->pager;
  uint64_t deadline = um_now_ns() + timeout_ms * 1000000ull;
  pthread_mutex_lock(&p->lock);
  while (!job->done && um_wait_until(&p->progress, &p->lock, deadline) == 0)
    ;
  int code = job->done ? -job->error.code : -ETIMEDOUT;
  if (job->done)
    *error = job->error;
  pthread_mutex_unlock(&p->lock);
  return code;
}

uint64_t um_job_pages(um_job *job) {
  pthread_mutex_lock(&job->pager->lock);
  uint64_t pages = job->pages;
  pthread_mutex_unlock(&job->pager->lock);
  return pages;
}

void um_job_release(um_job *job) {
  um_pager *p = job->pager;
  pthread_mutex_lock(&p->lock);
  unref(job);
  pthread_mutex_unlock(&p->lock);
}

static bool has_runs(const um_job *job) { /* pager->lock held */
  return job->cursor < job->end && !job->cancelled;
}

static um_job *prefetch_job(um_pager *p) { /* the first that has a run to claim, or that nobody has ended yet */
  for (um_job *job = p->prefetch_jobs; job; job = job->next)
    if (has_runs(job) || !job->active)
      return job;
  return NULL;
}

bool um_job_prefetch_waits(um_pager *p) {
  return prefetch_job(p) != NULL;
}

/* pager->lock held. One at a time, so that faults, and who cancels, come between any two: eight at once were no faster
 * (20,000 scattered pages, 64 fillers). */
static void next_run(um_job *job, uint64_t limit, uint64_t *first, uint64_t *count) {
  uint64_t from = job->cursor, end = um_min(job->end, from + limit);
  *first = job->list ? job->list[from] : from;
  if (job->list)
    for (uint64_t at = from + 1; at < end; at++)
      if (job->list[at] != job->list[at - 1] + 1)
        end = at;
  *count = end - from;
  job->cursor = end;
}

/* pager->lock held. Short runs go many at once; a long one is a read of its own. */
static bool is_batch(const um_job *job) {
  um_region *r = job->region;
  uint64_t left = job->end - job->cursor, run = um_max(BATCH_MIN, BATCH_RUN >> r->page_shift);
  if (!job->list || !r->store->ops->read_batch || atomic_load(&r->no_batch) || left < BATCH_MIN)
    return false;
  return left < run || job->list[job->cursor + run - 1] != job->list[job->cursor] + run - 1;
}

bool um_job_prefetch_step(um_worker *w) {
  um_pager *p = w->pager;
  um_job *job = prefetch_job(p);
  if (!job)
    return false;
  if (has_runs(job)) {
    um_region *r = job->region;
    uint64_t first = 0, count, filled = 0, *batch = NULL;
    if (is_batch(job)) {
      batch = job->list + job->cursor;
      count = um_min(p->filler_count > 1 ? BATCH_MAX : BATCH_MAX_ALONE,
                     (job->end - job->cursor + 1) / 2); /* two at least share the end */
      job->cursor += count;
    } else {
      next_run(job, um_run_limit(r, w->staging_size), &first, &count);
    }
    job->active++;
    p->prefetching++;
    if (p->idle && um_work_may_prefetch(p) && prefetch_job(p))
      um_work_post(p); /* one wakes the next, until there are as many as there is work for */
    pthread_mutex_unlock(&p->lock);
    bool memory = batch ? um_prefetch_batch(w, r, batch, (uint32_t)count, &filled)
                        : um_prefetch_run(w, r, first, count, true, &filled);
    pthread_mutex_lock(&p->lock);
    p->prefetching--;
    job->active--;
    job->pages += filled;
    if (!memory)
      job->cancelled = true; /* what is dirty leaves too slowly for a hint to wait */
  }
  if (!has_runs(job) && !job->active)
    um_job_end(p, job);
  return true;
}
