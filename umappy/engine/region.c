/* region.c: making, finding and forgetting regions. The mapping itself is the binding's (Python's mmap object makes and
 * unmaps it); the region is what the engine knows of it. */
#include "blocks.h"
#include "clean.h"
#include "collapse.h"
#include "context.h"
#include "mechanism.h"
#include "page.h"
#include "pool.h"
#include "trace.h"
#include "uffd.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#define WINDOW_MAX (16u << 20) /* bytes read ahead of one stream */
#define PROTECT_MAX (1u << 20) /* unprotected together where a stream writes */
#define GAP_MAX (16u << 10)    /* strides up to this are read whole */
#define READAHEAD_WAIT_NS 100000000u
#define READAHEAD_SHARE 4 /* all regions' together take 1 / so much of the memory */
#define STORE_SHARE 8u    /* a store's caches have one such part of the budget, at most */
#define STORE_WAIT_MS 100u

static uint32_t position(const um_pager *p, uintptr_t address) { /* of the first region above address */
  uint32_t low = 0, high = p->region_count;
  while (low < high) {
    uint32_t middle = (low + high) / 2;
    if (p->regions[middle]->address <= address)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

um_region *um_region_enter(um_pager *p, uintptr_t address) {
  um_region *found = NULL;
  pthread_mutex_lock(&p->regions_lock);
  /* A region under close may share its range with its successor: whoever is not closed is meant. */
  for (uint32_t i = position(p, address); i-- > 0 && !found;) {
    um_region *r = p->regions[i];
    if (address - r->address < r->mapped && um_gate_enter(r))
      found = r;
    else if (!(atomic_load(&r->gate) & UM_GATE_CLOSED))
      break;
  }
  pthread_mutex_unlock(&p->regions_lock);
  return found;
}

static void set_needs(um_pager *p) { /* regions_lock held */
  uint64_t cost = 0, memory = 0;
  for (uint32_t i = 0; i < p->region_count; i++) {
    cost = um_max(cost, p->regions[i]->page_size + um_words_cost_most(p->regions[i]));
    memory = um_max(memory, um_pager_memory_min(p->regions[i]->page_size, p->filler_count, p->evictor_count));
  }
  atomic_store(&p->emergency, cost);
  atomic_store(&p->memory_min, memory);
}

static int insert(um_pager *p, um_region *r) {
  int code = 0;
  pthread_mutex_lock(&p->regions_lock);
  if (p->region_count == p->region_capacity) {
    uint32_t capacity = p->region_capacity ? 2 * p->region_capacity : 8;
    um_region **grown = realloc(p->regions, capacity * sizeof *grown);
    if (grown) {
      p->regions = grown;
      p->region_capacity = capacity;
    } else {
      code = -ENOMEM;
    }
  }
  if (code == 0) {
    uint32_t at = position(p, r->address);
    memmove(&p->regions[at + 1], &p->regions[at], (p->region_count - at) * sizeof *p->regions);
    p->regions[at] = r;
    p->region_count++;
    r->trace_id = p->regions_made++;
    set_needs(p);
  }
  pthread_mutex_unlock(&p->regions_lock);
  return code;
}

static void remove_region(um_pager *p, um_region *r) {
  pthread_mutex_lock(&p->regions_lock);
  for (uint32_t i = 0; i < p->region_count; i++)
    if (p->regions[i] == r) {
      p->region_count--;
      memmove(&p->regions[i], &p->regions[i + 1], (p->region_count - i) * sizeof *p->regions);
      break;
    }
  set_needs(p);
  um_counters_merge(&p->retired, &r->counters);
  pthread_mutex_unlock(&p->regions_lock);
}

/* A fault where nothing is makes a page table, which a huge page that comes there has to be rid of first, with a flush
 * of the other processors' translations (um_memory_clear_table). Where the kernel can map its huge page of zeros a
 * fault that reads makes none. Without that page the kernel would get a huge page of its own for each such fault; and
 * whether there is one, and of a chunk's size, only a try tells. */
static bool has_huge_zeros(const um_pager *p) {
  int file = open("/sys/kernel/mm/transparent_hugepage/use_zero_page", O_RDONLY | O_CLOEXEC);
  char answer = '0';
  bool has = file >= 0 && read(file, &answer, 1) == 1 && answer == '1';
  if (file >= 0)
    close(file);
  char *memory = has ? um_memory_map(2 * UM_CHUNK) : NULL;
  if (!memory)
    return false;
  uintptr_t address = um_round_up((uintptr_t)memory, UM_CHUNK);
  has = madvise((void *)address, UM_CHUNK, MADV_HUGEPAGE) == 0 && *(volatile char *)address == 0 &&
        um_uffd_is_huge(p->pagemap, address);
  um_memory_unmap(memory, 2 * UM_CHUNK);
  return has;
}

static int prepare_memory(um_region *r) {
  void *address = (void *)r->address;
  munlock(address, r->mapped); /* mlockall(MCL_FUTURE) may have locked it, and filled it */
  if (madvise(address, r->mapped, MADV_DONTNEED) || madvise(address, r->mapped, MADV_DONTFORK))
    return -errno;
  if (!r->collapses)
    madvise(address, r->mapped, MADV_NOHUGEPAGE); /* tracking is by small pages; kernels without huge pages refuse */
  else if (has_huge_zeros(r->pager))
    madvise(address, r->mapped, MADV_HUGEPAGE);
  return 0;
}

/* Which of this region's runs may go through chunks. Read-only is read-only to whom the binding hands the memory: pages
 * can only be moved between writable mappings. */
static void choose_ways(um_region *r) {
  um_pager *p = r->pager;
  r->chunks = p->memory >= UM_CHUNKS_READ * (uint64_t)UM_CHUNK && r->page_size <= UM_CHUNK &&
              (!um_blocks_tracked(r) || r->page_size == UM_CHUNK);
  r->skew = (uint32_t)(r->address % r->page_size);
  r->moves = p->mechanism->moves && r->page_size <= UM_CHUNK;
  if (r->moves && !r->writable && mprotect((void *)r->address, r->mapped, PROT_READ | PROT_WRITE))
    r->moves = false;
}

static int make_readahead(um_region *r) {
  um_pager *p = r->pager;
  uint64_t run = r->chunks ? UM_CHUNK : p->fillers[0].staging_size, window = um_min(WINDOW_MAX, p->memory / 8);
  um_readahead_limits limits = {
      .page_count = r->page_count,
      .run_pages = (uint32_t)um_max(1, run >> r->page_shift),
      .part_pages = (uint32_t)um_max(1, p->fillers[0].staging_size >> r->page_shift),
      .align_pages = (uint32_t)(((r->address - r->skew) & (run - 1)) >> r->page_shift),
      .window_pages = (uint32_t)(window >> r->page_shift),
      .protect_pages = (uint32_t)um_max(1, PROTECT_MAX >> r->page_shift),
      .gap_pages = (uint32_t)(GAP_MAX >> r->page_shift),
      .context_pages = (uint32_t)um_context_pages(r),
  };
  uint64_t bytes = um_round_up(um_readahead_bytes(), um_host_page), others = atomic_load(&p->readahead_bytes);
  if (others > 0 && others + bytes > p->memory / READAHEAD_SHARE)
    return 0; /* of so many regions these do without: pages need the memory more */
  if (um_memory_wait(p, bytes, atomic_load(&p->emergency), um_now_ns() + READAHEAD_WAIT_NS))
    return 0; /* no memory for it: the region does without */
  void *memory = um_memory_map(bytes);
  if (!memory) {
    um_budget_release(p, bytes);
    return -ENOMEM;
  }
  atomic_fetch_add(&p->overhead, bytes);
  atomic_fetch_add(&p->readahead_bytes, bytes);
  r->readahead = um_readahead_init(memory, &limits);
  return 0;
}

static void end_readahead(um_region *r) {
  if (!r->readahead)
    return;
  uint64_t bytes = um_round_up(um_readahead_bytes(), um_host_page);
  um_memory_unmap(r->readahead, um_readahead_bytes());
  atomic_fetch_sub(&r->pager->readahead_bytes, bytes);
  um_budget_uncharge(r->pager, bytes);
}

/* A share for what the store caches, if it is there for the taking; else it does with its least, uncounted. */
static void reserve_for_store(um_region *r) {
  um_pager *p = r->pager;
  if (!r->store->ops->limit)
    return;
  uint64_t taken = um_pager_memory_min(r->page_size, p->filler_count, p->evictor_count) + atomic_load(&p->reserved);
  uint64_t spare = taken < p->memory ? (p->memory - taken) / 2 : 0;
  uint64_t bytes = r->store->ops->limit(r->store, um_min(spare, p->memory / STORE_SHARE));
  if (bytes > 0 && bytes <= spare && um_pager_reserve(p, bytes, STORE_WAIT_MS) == 0)
    r->store_memory = bytes;
  else
    r->store->ops->limit(r->store, 0);
}

static void release_of_store(um_region *r) {
  if (r->store_memory)
    um_pager_release(r->pager, r->store_memory);
}

int um_region_create(um_pager *p, um_store *store, void *address, uint64_t size, const um_region_options *options,
                     um_region **region) {
  uint64_t page_size = options->page_size;
  if (um_pager_forked(p))
    return -UM_EFORKED;
  if (!size || (uintptr_t)address % um_host_page || page_size < um_max(UM_PAGE_SIZE_MIN, um_host_page) ||
      page_size > UM_PAGE_SIZE_MAX || (page_size & (page_size - 1)))
    return -EINVAL;
  if (size > store->size)
    return -EFBIG;
  if (options->writable && !store->writable)
    return -EACCES;
  if (um_pager_memory_min(page_size, p->filler_count, p->evictor_count) + atomic_load(&p->reserved) > p->memory)
    return -ENOBUFS;
  um_region *r = calloc(1, sizeof *r);
  if (!r)
    return -ENOMEM;
  r->pager = p;
  r->store = store;
  r->address = (uintptr_t)address;
  r->size = size;
  r->mapped = um_round_up(size, um_host_page);
  r->page_size = page_size;
  r->page_shift = (uint32_t)__builtin_ctzll(page_size);
  r->page_count = (size + page_size - 1) >> r->page_shift;
  r->writable = options->writable;
  pthread_mutex_init(&r->errors.lock, NULL);
  um_advise_init(r);
  int code = um_words_create(r);
  if (code) {
    free(r);
    return code;
  }
  choose_ways(r);
  r->cleans = um_clean_wanted(r);
  r->collapses = um_collapse_wanted(r);
  if (options->readahead && (code = make_readahead(r))) {
    um_words_destroy(r);
    free(r);
    return code;
  }
  reserve_for_store(r);
  if ((code = prepare_memory(r)) == 0 && (code = um_fork_publish(r)) == 0) {
    if ((code = insert(p, r)) == 0) {
      code = p->trace ? um_trace_region(p->trace, r->trace_id, r->page_size, r->size) : 0;
      if (code == 0)
        code = um_uffd_register(p->uffd, r->address, r->mapped);
      if (code == 0) {
        *region = r;
        return 0;
      }
      remove_region(p, r);
    }
  }
  um_fork_withdraw(r);
  release_of_store(r);
  end_readahead(r);
  um_words_destroy(r);
  free(r);
  return code;
}

/* The range is unmapped already and may be somebody else's: only descriptors and counts are given back. */
static void give_back(um_pager *p, um_region *r) {
  pthread_mutex_lock(&p->frames_lock);
  for (um_frame_id id = 1; id <= p->frames_made; id++) {
    if (p->frames[id].region != r)
      continue;
    um_word w = um_page_load(r, p->frames[id].page);
    if (um_word_state(w) == UM_STANDBY && um_word_frame(w) == id)
      um_standby_forget(r, id);
    um_frame_forget(p, id);
  }
  pthread_mutex_unlock(&p->frames_lock);
  um_budget_release(p, atomic_load(&r->resident)); /* and tells of the chunks, too */
  um_budget_uncharge(p, atomic_load(&r->charged));
}

void um_region_forget(um_region *r) {
  um_pager *p = r->pager;
  if (um_pager_forked(p))
    return; /* a child owns nothing of it */
  UM_ASSERT(atomic_load(&r->gate) == UM_GATE_CLOSED);
  um_fork_withdraw(r);
  remove_region(p, r);
  give_back(p, r);
  um_uffd_wake(p->uffd, r->address, r->mapped); /* who still waits there finds the mapping gone */
  release_of_store(r);
  end_readahead(r);
  um_words_destroy(r);
  um_advise_destroy(r);
  pthread_mutex_destroy(&r->errors.lock);
  free(r);
}

int um_region_residency(um_region *r, uint64_t first, uint64_t count, uint8_t *out) {
  static const uint8_t face[] = {
      [UM_ABSENT] = UM_PAGE_ABSENT, [UM_FILLING] = UM_PAGE_BUSY,    [UM_CLEAN] = UM_PAGE_CLEAN,
      [UM_DIRTY] = UM_PAGE_DIRTY,   [UM_WRITING] = UM_PAGE_DIRTY,   [UM_EVICTING] = UM_PAGE_BUSY,
      [UM_FAILED] = UM_PAGE_FAILED, [UM_STANDBY] = UM_PAGE_STANDBY, [UM_LEAVING] = UM_PAGE_DIRTY,
  };
  if (first > r->page_count || count > r->page_count - first)
    return -EINVAL;
  memset(out, UM_PAGE_ABSENT, count);
  for (uint64_t page = first; page < first + count;) {
    uint64_t span = um_words_span(r, page);
    uint64_t last = um_min(first + count, um_max(um_words_span_page(r, span + 1), page + 1));
    if (atomic_load(&r->spans[span].live)) /* words of an empty span are not touched: reading would allocate them */
      for (uint64_t i = page; i < last; i++)
        out[i - first] = face[um_word_state(um_page_load(r, i))];
    page = last;
  }
  return 0;
}

/* frames_lock held. A failed page of the run becomes EVICTING and the caller's.
 *
 * Race: retry against a late message for the page: the leader is asking the kernel whether it is there, *busy. */
static bool take_failed(um_region *r, um_frame_id id, uint64_t *page, bool *busy) {
  const um_frame *f = &r->pager->frames[id];
  for (*page = f->page; *page < f->page + f->count; (*page)++) {
    um_word w = um_page_load(r, *page);
    if (um_word_state(w) != UM_FAILED || um_word_frame(w) != id)
      continue;
    if (um_run_take(r, *page, 1, UM_IN(UM_FAILED), id, UM_EVICTING))
      return true;
    *busy = true;
  }
  return false;
}

int um_region_retry(um_region *r) {
  um_pager *p = r->pager;
  int count = 0;
  uint64_t deadline = um_now_ns() + p->timeout_ns;
  for (;;) {
    um_frame_id id;
    uint64_t page = 0;
    bool busy = false;
    if (!um_gate_enter(r))
      return count;
    pthread_mutex_lock(&p->frames_lock);
    for (id = p->frames_made; id != UM_NIL; id--)
      if (p->frames[id].region == r && take_failed(r, id, &page, &busy))
        break;
    pthread_mutex_unlock(&p->frames_lock);
    if (id != UM_NIL) {
      um_evict_drop(r, page, 1);
      count++;
    }
    um_gate_leave(r);
    if (id == UM_NIL && (!busy || um_now_ns() >= deadline))
      return count;
    if (id == UM_NIL)
      sched_yield(); /* a system call of the leader's */
  }
}
