/* A file of references: 16 bytes each, little-endian: uint64 page, uint32 count, uint16 region, uint16 flags
 * (1: read ahead). A reference touches `page`; when it is absent, the absent pages from it on, `count` at most, come in
 * as one run. */
#include "replay.h"

#include "check.h"

#define REGIONS 16u
#define RUN_MAX 512u

typedef struct reference {
  uint64_t page;
  uint32_t count;
  uint16_t region, flags;
} reference;

typedef struct replay {
  um_policy *policy;
  um_frame *frames;
  um_frame_id *owner[REGIONS]; /* the run a page is in; UM_NIL: absent */
  um_frame_id free;
  uint64_t pages[REGIONS], used, memory;
  um_region regions[REGIONS];
  um_replay_counts *counts;
  bool late; /* in the second half */
} replay;

static void give_up(replay *r, um_frame_id id) {
  um_frame *f = &r->frames[id];
  uint64_t region = (uint64_t)(f->region - r->regions);
  for (uint64_t i = 0; i < f->count; i++)
    r->owner[region][f->page + i] = UM_NIL;
  r->used -= um_run_memory(f->region, f->page, f->count);
  r->counts->digest = (r->counts->digest ^ (region << 48 ^ f->page)) * 0x100000001b3u;
  um_policy_evicted(r->policy, id);
  f->next = r->free;
  r->free = id;
}

static void make_room(replay *r, uint64_t bytes) {
  while (r->used + bytes > r->memory) {
    if (um_policy_standby_full(r->policy, true)) {
      give_up(r, um_policy_standby_next(r->policy, 0));
      continue;
    }
    um_frame_id id = um_policy_next(r->policy, 0);
    CHECK(id != UM_NIL);
    if (um_policy_keeps(r->policy, id))
      um_policy_standby(r->policy, id);
    else
      give_up(r, id);
  }
}

static void touch(replay *r, const reference *ref) {
  bool ahead = ref->flags & 1;
  um_region *region = &r->regions[ref->region];
  um_frame_id *owner = r->owner[ref->region];
  if (!ahead)
    r->counts->references++;
  if (owner[ref->page]) {
    if (!ahead && um_policy_in_standby(r->policy, owner[ref->page])) {
      r->counts->refaults++;
      um_policy_refault(r->policy, owner[ref->page]);
    }
    return;
  }
  uint64_t count = 1;
  while (count < ref->count && ref->page + count < r->pages[ref->region] && !owner[ref->page + count])
    count++;
  uint64_t bytes = um_run_memory(region, ref->page, count);
  make_room(r, bytes);
  um_frame_id id = r->free;
  CHECK(id != UM_NIL);
  r->free = r->frames[id].next;
  r->frames[id] = (um_frame){.region = region, .page = ref->page, .count = (uint32_t)count};
  for (uint64_t i = 0; i < count; i++)
    owner[ref->page + i] = id;
  r->used += bytes;
  um_policy_insert(r->policy, id, ahead);
  *(ahead ? &r->counts->prefetched : &r->counts->misses) += count;
  if (!ahead && r->late)
    r->counts->late_misses += count;
}

static reference *load(const char *path, uint64_t *count) {
  FILE *file = fopen(path, "rb");
  CHECK(file);
  CHECK(fseek(file, 0, SEEK_END) == 0);
  *count = (uint64_t)ftell(file) / sizeof(reference);
  rewind(file);
  reference *references = malloc(*count * sizeof *references + 1);
  CHECK(references && fread(references, sizeof *references, *count, file) == *count);
  fclose(file);
  return references;
}

void um_replay(const char *path, const um_policy_options *options, uint32_t page_shift, um_replay_counts *counts) {
  uint64_t count;
  reference *references = load(path, &count);
  replay r = {.memory = options->memory, .counts = counts};
  memset(counts, 0, sizeof *counts);
  for (uint64_t i = 0; i < count; i++) {
    CHECK(references[i].region < REGIONS && references[i].count && references[i].count <= RUN_MAX);
    r.pages[references[i].region] = um_max(r.pages[references[i].region], references[i].page + 1);
  }
  for (uint64_t i = 0; i < REGIONS; i++) {
    r.regions[i].address = (uintptr_t)(i + 1) << 42;
    r.regions[i].page_shift = page_shift;
    r.regions[i].size = r.regions[i].mapped = r.pages[i] << page_shift;
    r.owner[i] = calloc(r.pages[i] + 1, sizeof *r.owner[i]);
  }
  uint32_t frame_count = (uint32_t)(options->memory >> page_shift) + 2;
  r.frames = calloc(frame_count, sizeof *r.frames);
  CHECK(r.frames);
  for (uint32_t id = 1; id + 1 < frame_count; id++)
    r.frames[id].next = id + 1;
  r.free = 1;
  CHECK_EQUAL(um_policy_create(options, r.frames, &r.policy), 0);
  for (uint64_t i = 0; i < count; i++) {
    r.late = i >= count / 2;
    touch(&r, &references[i]);
  }
  um_policy_destroy(r.policy);
  for (uint64_t i = 0; i < REGIONS; i++)
    free(r.owner[i]);
  free(r.frames);
  free(references);
}
