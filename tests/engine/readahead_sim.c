/* readahead_sim.c: see readahead_sim.h. */
#include "readahead_sim.h"

static uint64_t random_state = 88172645463325252u;

static uint64_t sim_random(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state * 2685821657736338717u >> 11;
}

uint64_t sim_random_below(uint64_t n) {
  return sim_random() % n;
}

double sim_random_real(void) {
  return (double)(sim_random() & ((1ull << 52) - 1)) / (double)(1ull << 52);
}

um_readahead_limits sim_pages_of_64_kib(uint64_t page_count) { /* pages of 64 KiB, runs of 2 MiB */
  return (um_readahead_limits){.page_count = page_count,
                               .run_pages = 32,
                               .part_pages = 16,
                               .align_pages = 5,
                               .window_pages = 256,
                               .protect_pages = 16,
                               .context_pages = 8};
}

um_readahead_limits sim_pages_of_4_kib(uint64_t page_count) { /* 4 KiB */
  return (um_readahead_limits){.page_count = page_count,
                               .run_pages = 512,
                               .part_pages = 256,
                               .align_pages = 77,
                               .window_pages = 4096,
                               .protect_pages = 64,
                               .gap_pages = 4,
                               .context_pages = 64};
}

um_readahead *sim_make(const um_readahead_limits *limits) {
  size_t bytes = (um_readahead_bytes() + 63) / 64 * 64;
  void *memory = aligned_alloc(64, bytes);
  CHECK(memory);
  memset(memory, 0, bytes);
  return um_readahead_init(memory, limits);
}

void sim_open(sim *s, um_readahead_limits limits, uint64_t memory) {
  *s = (sim){.ra = sim_make(&limits), .limits = limits, .memory = memory ? memory : limits.page_count, .report = true};
  s->state = calloc(limits.page_count, 1);
  s->protected = calloc(limits.page_count, sizeof *s->protected);
  s->used = calloc(limits.page_count, sizeof *s->used);
  s->queue = calloc(s->memory, sizeof *s->queue);
  CHECK(s->state && s->protected && s->used && s->queue);
}

void sim_close(sim *s) {
  free(s->ra);
  free(s->state);
  free(s->protected);
  free(s->used);
  free(s->queue);
}

static void sim_evict(sim *s) {
  uint64_t page = s->queue[s->head];
  if (!s->used[page]) {
    s->unused++;
    if (s->report)
      um_readahead_wasted(s->ra, page, 1);
  }
  s->state[page] = ABSENT;
  s->resident--;
}

static void sim_fill(sim *s, uint64_t page, int state, bool writable) {
  if (s->resident == s->memory)
    sim_evict(s);
  s->queue[s->head] = page;
  s->head = (s->head + 1) % s->memory;
  s->resident++;
  s->pages++;
  s->state[page] = (uint8_t)state;
  s->protected[page] = !writable;
  s->used[page] = false;
}

void sim_read(sim *s, uint64_t first, uint32_t count, int state, bool writable) {
  bool any = false;
  for (uint64_t page = first; page < first + count; page++)
    if (s->state[page] == ABSENT) {
      sim_fill(s, page, state, writable);
      any = true;
    } else {
      s->repeated++;
    }
  s->calls += any;
}

/* What must hold of every answer. */
static void check_answer(const sim *s, uint64_t page, bool miss, const um_run_plan *plan, unsigned count) {
  const um_readahead_limits *l = &s->limits;
  CHECK(count >= 1 && count <= UM_READAHEAD_PLANS);
  CHECK(plan[0].repeat == 1 && plan[0].first <= page && page < plan[0].first + plan[0].count);
  uint64_t ahead = 0;
  for (unsigned i = 0; i < count; i++) {
    const um_run_plan *p = &plan[i];
    CHECK(p->count >= 1 && p->count <= l->run_pages && p->repeat >= 1 && p->stride != 0);
    CHECK((i == 0 && !miss) || p->count <= 2 || p->count <= l->part_pages || p->count == l->run_pages);
    CHECK(p->repeat == 1 || llabs(p->stride) >= p->count);
    for (uint32_t k = 0; k < p->repeat; k++) {
      uint64_t first = p->first + (uint64_t)(p->stride * (int64_t)k);
      CHECK(first < l->page_count && p->count <= l->page_count - first);
      CHECK_EQUAL((first + l->align_pages) / l->run_pages, (first + p->count - 1 + l->align_pages) / l->run_pages);
      for (unsigned j = 0; j < i; j++) /* nor does one run of an answer overlap another */
        for (uint32_t m = 0; m < plan[j].repeat; m++) {
          uint64_t other = plan[j].first + (uint64_t)(plan[j].stride * (int64_t)m);
          CHECK(first + p->count <= other || other + plan[j].count <= first);
        }
    }
    if (miss || i > 0)
      ahead += (uint64_t)p->count * p->repeat;
  }
  CHECK(ahead <= (l->window_pages > 1 ? l->window_pages : 1));
}

/* As context.c has it. */
static bool sim_edge(const sim *s, uint64_t page, int64_t step) {
  int64_t pages = s->limits.context_pages, first = (int64_t)page - pages * step, last = (int64_t)page + 4 * step;
  int64_t low = step > 0 ? first : last, high = step > 0 ? last : first;
  if (pages == 0 || low < 0 || high >= (int64_t)s->limits.page_count)
    return false;
  for (int64_t i = first; i != (int64_t)page; i += step)
    if (s->state[i] != MAPPED)
      return false;
  for (int64_t i = last; i != (int64_t)page; i -= step)
    if (s->state[i] != ABSENT)
      return false;
  return true;
}

static um_context sim_context(const sim *s, uint64_t page) {
  return sim_edge(s, page, 1) ? UM_CONTEXT_UP : sim_edge(s, page, -1) ? UM_CONTEXT_DOWN : UM_CONTEXT_NONE;
}

void sim_touch(sim *s, uint32_t thread_id, uint64_t page, bool write) {
  um_run_plan *plan = s->last;
  if (s->state[page] != MAPPED) {
    bool miss = s->state[page] == ABSENT;
    unsigned count =
        miss ? um_readahead_miss(s->ra, thread_id, page, write, sim_context(s, page), plan, UM_READAHEAD_PLANS)
             : um_readahead_trigger(s->ra, thread_id, page, write, plan, UM_READAHEAD_PLANS);
    s->last_count = count;
    check_answer(s, page, miss, plan, count);
    s->misses += miss;
    s->triggers += !miss;
    if (miss && s->no_chunks && plan[0].count > s->limits.part_pages) {
      bool down = page > plan[0].first; /* as shorten() in fill.c has it */
      plan[0].first = down ? page + 1 - s->limits.part_pages : page;
      plan[0].count = s->limits.part_pages;
    }
    if (miss)
      sim_read(s, plan[0].first, plan[0].count, MAPPED, plan[0].write);
    for (uint64_t p = plan[0].first; !miss && p < plan[0].first + plan[0].count; p++)
      if (s->state[p] == STANDBY) {
        s->state[p] = MAPPED;
        s->protected[p] = !plan[0].write;
      }
    if (write)
      s->protected[page] = false;
    for (unsigned i = 1; i < count && !s->drop_ahead; i++)
      for (uint32_t k = 0; k < plan[i].repeat; k++) {
        um_run_plan run = plan[i];
        run.first += (uint64_t)(run.stride * (int64_t)k);
        s->full_runs += run.count == s->limits.run_pages;
        if (s->late_after) {
          CHECK(s->late_count < 64);
          s->late[s->late_count++] = run;
        } else {
          sim_read(s, run.first, run.count, STANDBY, run.write);
        }
      }
  }
  if (write && s->protected[page]) {
    um_run_plan run = um_readahead_protect(s->ra, thread_id, page);
    CHECK(run.first <= page && page < run.first + run.count && run.count <= s->limits.protect_pages);
    CHECK(run.first < s->limits.page_count && run.count <= s->limits.page_count - run.first);
    s->protects++;
    for (uint64_t p = run.first; p < run.first + run.count; p++)
      s->protected[p] = s->protected[p] && s->state[p] != MAPPED;
  }
  s->used[page] = true;
  if (s->late_count && ++s->touches % s->late_after == 0)
    for (uint64_t calls = s->calls; s->late_count && s->calls == calls;) { /* what was read meanwhile takes no time */
      sim_read(s, s->late[0].first, s->late[0].count, STANDBY, s->late[0].write);
      memmove(s->late, s->late + 1, --s->late_count * sizeof *s->late);
    }
}

void sim_read_pages(sim *s, uint32_t thread_id, uint64_t from, uint64_t count, int64_t stride) {
  for (uint64_t i = 0; i < count; i++)
    sim_touch(s, thread_id, from + (uint64_t)((int64_t)i * stride), false);
}

uint64_t sim_unused(const sim *s) {
  uint64_t unused = s->unused;
  for (uint64_t page = 0; page < s->limits.page_count; page++)
    unused += s->state[page] != ABSENT && !s->used[page];
  return unused;
}

void sim_report(const char *what, const sim *s) {
  printf("  %-44s misses %7" PRIu64 " triggers %6" PRIu64 " calls %7" PRIu64 " pages %8" PRIu64 " unused %6" PRIu64
         "\n",
         what, s->misses, s->triggers, s->calls, s->pages, sim_unused(s));
}
