/* nbd_journal.c: a ring of entries and a ring of their bytes, in one mapping. */
#include "nbd_journal.h"

#include "nbd_protocol.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define ENTRY_BYTES 4096u /* of the arena for each entry: smaller writes find no entry before they find no room */
#define ENTRIES_SPARE 256u
#define NOWHERE UINT64_MAX
#define WAIT_NS 1000000000u

struct um_nbd_journal {
  pthread_mutex_t lock;
  pthread_cond_t ended;
  uint32_t waiting;      /* lock: threads in um_nbd_journal_wait */
  uint32_t block;        /* constant */
  bool flushes;          /* constant: an acknowledged write is kept until a FLUSH */
  um_nbd_entry *entries; /* changes only while nothing is in it; so the next three; lock, so all below */
  uint32_t entry_count;
  uint8_t *arena;
  uint64_t arena_size;         /* bytes */
  uint64_t first, made;        /* sequences: of the oldest whose place is taken, and of the next to be made */
  uint64_t begin, end;         /* bytes of the arena in use, as counts that only rise */
  uint64_t mark;               /* of the next FLUSH */
  uint64_t doubted;            /* FLUSHes with a lower mark tell nothing; UINT64_MAX: none does */
  um_nbd_entry *open, *newest; /* FLYING, DUE, UNSURE */
  um_nbd_journal_counts counts;
};

static uint64_t entries_for(uint64_t arena) {
  return arena / ENTRY_BYTES + ENTRIES_SPARE;
}

/* Whole pages, a power of two of blocks a piece. */
static uint64_t round_arena(const um_nbd_journal *journal, uint64_t bytes) {
  uint64_t unit = UM_NBD_JOURNAL_PIECES * (uint64_t)(journal->block > ENTRY_BYTES ? journal->block : ENTRY_BYTES);
  uint64_t least = unit > UM_NBD_JOURNAL_MIN ? unit : UM_NBD_JOURNAL_MIN;
  bytes -= bytes % unit;
  return bytes < least ? least : bytes > UM_NBD_JOURNAL_MAX ? UM_NBD_JOURNAL_MAX - UM_NBD_JOURNAL_MAX % unit : bytes;
}

static uint64_t total(uint64_t arena) {
  return arena + entries_for(arena) * sizeof(um_nbd_entry);
}

static int map_memory(um_nbd_journal *journal, uint64_t arena_size) {
  void *memory = mmap(NULL, total(arena_size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    return -ENOMEM;
  if (journal->arena)
    munmap(journal->arena, total(journal->arena_size));
  journal->arena = memory;
  journal->arena_size = arena_size;
  journal->entries = (um_nbd_entry *)(journal->arena + arena_size);
  journal->entry_count = (uint32_t)entries_for(arena_size);
  journal->begin = journal->end = 0;
  return 0;
}

um_nbd_journal *um_nbd_journal_make(uint64_t bytes, uint32_t block, bool flushes) {
  um_nbd_journal *journal = calloc(1, sizeof *journal);
  if (!journal)
    return NULL;
  journal->block = block;
  journal->flushes = flushes;
  if (map_memory(journal, round_arena(journal, bytes)) < 0) {
    free(journal);
    return NULL;
  }
  pthread_mutex_init(&journal->lock, NULL);
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(&journal->ended, &attributes);
  pthread_condattr_destroy(&attributes);
  return journal;
}

void um_nbd_journal_free(um_nbd_journal *journal) {
  if (!journal)
    return;
  munmap(journal->arena, total(journal->arena_size));
  pthread_cond_destroy(&journal->ended);
  pthread_mutex_destroy(&journal->lock);
  free(journal);
}

uint64_t um_nbd_journal_resize(um_nbd_journal *journal, uint64_t bytes) {
  pthread_mutex_lock(&journal->lock);
  uint64_t arena = bytes / (ENTRY_BYTES + sizeof(um_nbd_entry)) * ENTRY_BYTES;
  arena = round_arena(journal,
                      arena > ENTRIES_SPARE * sizeof(um_nbd_entry) ? arena - ENTRIES_SPARE * sizeof(um_nbd_entry) : 0);
  if (journal->first == journal->made && arena != journal->arena_size)
    map_memory(journal, arena); /* without memory it stays as it is */
  uint64_t result = total(journal->arena_size);
  pthread_mutex_unlock(&journal->lock);
  return result;
}

uint32_t um_nbd_journal_capacity(um_nbd_journal *journal) {
  pthread_mutex_lock(&journal->lock);
  uint64_t piece = journal->arena_size / UM_NBD_JOURNAL_PIECES;
  pthread_mutex_unlock(&journal->lock);
  return (uint32_t)(piece - piece % journal->block);
}

static bool touches(const um_nbd_entry *entry, uint64_t offset, uint64_t length) {
  return entry->offset < offset + length && offset < entry->offset + entry->length;
}

static uint32_t *counter(um_nbd_journal *journal, enum um_nbd_entry_state state) {
  switch (state) {
  case UM_NBD_ENTRY_FLYING:
    return &journal->counts.flying;
  case UM_NBD_ENTRY_KEPT:
    return &journal->counts.kept;
  case UM_NBD_ENTRY_DUE:
    return &journal->counts.due;
  case UM_NBD_ENTRY_UNSURE:
    return &journal->counts.unsure;
  default:
    return NULL;
  }
}

static bool is_open(enum um_nbd_entry_state state) {
  return state != UM_NBD_ENTRY_GONE && state != UM_NBD_ENTRY_KEPT;
}

/* The caller keeps the list of open ones in order: what opens again is put into its place by sort_open. */
static void set_state(um_nbd_journal *journal, um_nbd_entry *entry, enum um_nbd_entry_state state) {
  uint32_t *from = counter(journal, entry->state), *to = counter(journal, state);
  if (from)
    --*from;
  if (to)
    ++*to;
  if (is_open(entry->state) && !is_open(state)) {
    *(entry->prev ? &entry->prev->next : &journal->open) = entry->next;
    *(entry->next ? &entry->next->prev : &journal->newest) = entry->prev;
    entry->prev = entry->next = NULL;
  }
  if (journal->waiting && !is_open(state))
    pthread_cond_broadcast(&journal->ended);
  entry->state = state;
}

static void append_open(um_nbd_journal *journal, um_nbd_entry *entry) {
  entry->prev = journal->newest;
  entry->next = NULL;
  *(journal->newest ? &journal->newest->next : &journal->open) = entry;
  journal->newest = entry;
}

/* Gives back the places of the oldest that are gone. */
static void release(um_nbd_journal *journal) {
  while (journal->first < journal->made) {
    um_nbd_entry *entry = &journal->entries[journal->first % journal->entry_count];
    if (entry->state != UM_NBD_ENTRY_GONE || entry->owned)
      return;
    journal->begin = entry->end;
    journal->first++;
    if (journal->waiting)
      pthread_cond_broadcast(&journal->ended);
  }
}

static bool overlaps(const um_nbd_journal *journal, uint64_t offset, uint64_t length, bool flying) {
  for (const um_nbd_entry *entry = journal->open; entry; entry = entry->next)
    if ((flying || entry->state != UM_NBD_ENTRY_FLYING) && touches(entry, offset, length))
      return true;
  return false;
}

/* Where a new entry's bytes would lie in one piece, as a count; NOWHERE: there is no room. */
static uint64_t find_room(const um_nbd_journal *journal, uint32_t length) {
  if (journal->made - journal->first == journal->entry_count)
    return NOWHERE;
  uint64_t start = journal->end, to_end = journal->arena_size - start % journal->arena_size;
  if (length > to_end)
    start += to_end;
  return start + length - journal->begin <= journal->arena_size ? start : NOWHERE;
}

int um_nbd_journal_add(um_nbd_journal *journal, uint16_t type, uint16_t flags, uint64_t offset, const void *bytes,
                       uint32_t length, um_nbd_entry **made) {
  uint32_t size = type == UM_NBD_CMD_WRITE ? length : 0;
  pthread_mutex_lock(&journal->lock);
  uint64_t start = find_room(journal, size);
  int result = overlaps(journal, offset, length, true) ? -EBUSY : start == NOWHERE ? -ENOBUFS : 0;
  if (result < 0) {
    pthread_mutex_unlock(&journal->lock);
    return result;
  }
  um_nbd_entry *entry = &journal->entries[journal->made % journal->entry_count];
  *entry = (um_nbd_entry){
      .offset = offset,
      .length = length,
      .type = type,
      .flags = flags,
      .bytes = size ? journal->arena + start % journal->arena_size : NULL,
      .sequence = journal->made++,
      .end = start + size,
  };
  journal->end = entry->end;
  set_state(journal, entry, UM_NBD_ENTRY_FLYING);
  append_open(journal, entry);
  pthread_mutex_unlock(&journal->lock);
  if (size)
    memcpy(entry->bytes, bytes, size);
  *made = entry;
  return 0;
}

void um_nbd_journal_wait(um_nbd_journal *journal, uint64_t offset, uint32_t length, uint64_t deadline_ns) {
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  uint64_t now = (uint64_t)until.tv_sec * 1000000000u + (uint64_t)until.tv_nsec;
  deadline_ns = deadline_ns < now + WAIT_NS ? deadline_ns : now + WAIT_NS;
  until = (struct timespec){(time_t)(deadline_ns / 1000000000u), (long)(deadline_ns % 1000000000u)};
  pthread_mutex_lock(&journal->lock);
  journal->waiting++;
  int result = 0;
  while (result == 0 && (overlaps(journal, offset, length, true) ||
                         (find_room(journal, length) == NOWHERE && journal->counts.flying > 0)))
    result = pthread_cond_timedwait(&journal->ended, &journal->lock, &until);
  journal->waiting--;
  pthread_mutex_unlock(&journal->lock);
}

static void keep(um_nbd_journal *journal, um_nbd_entry *entry) {
  entry->code = 0;
  entry->acknowledged = true;
  entry->mark = journal->mark;
  bool kept = journal->flushes && entry->type != UM_NBD_CMD_TRIM; /* nobody wants the bytes of a discard */
  set_state(journal, entry, kept ? UM_NBD_ENTRY_KEPT : UM_NBD_ENTRY_GONE);
  release(journal);
}

void um_nbd_journal_acknowledge(um_nbd_journal *journal, um_nbd_entry *entry) {
  pthread_mutex_lock(&journal->lock);
  keep(journal, entry);
  pthread_mutex_unlock(&journal->lock);
}

void um_nbd_journal_remove(um_nbd_journal *journal, um_nbd_entry *entry) {
  pthread_mutex_lock(&journal->lock);
  set_state(journal, entry, UM_NBD_ENTRY_GONE);
  release(journal);
  pthread_mutex_unlock(&journal->lock);
}

void um_nbd_journal_lose(um_nbd_journal *journal, um_nbd_entry *entry) {
  pthread_mutex_lock(&journal->lock);
  entry->owned = true;
  set_state(journal, entry, UM_NBD_ENTRY_UNSURE);
  pthread_mutex_unlock(&journal->lock);
}

int um_nbd_journal_settled(um_nbd_journal *journal, um_nbd_entry *entry, int *code) {
  pthread_mutex_lock(&journal->lock);
  bool settled = !is_open(entry->state);
  if (settled) {
    *code = entry->code;
    entry->owned = false;
    release(journal);
  }
  pthread_mutex_unlock(&journal->lock);
  return settled;
}

void um_nbd_journal_abandon(um_nbd_journal *journal, um_nbd_entry *entry) {
  pthread_mutex_lock(&journal->lock);
  entry->owned = false;
  release(journal);
  pthread_mutex_unlock(&journal->lock);
}

uint64_t um_nbd_journal_mark(um_nbd_journal *journal) {
  pthread_mutex_lock(&journal->lock);
  uint64_t mark = journal->mark++;
  pthread_mutex_unlock(&journal->lock);
  return mark;
}

bool um_nbd_journal_flushed(um_nbd_journal *journal, uint64_t mark) {
  pthread_mutex_lock(&journal->lock);
  bool trusted = mark >= journal->doubted;
  for (uint64_t i = journal->first; trusted && i < journal->made; i++) {
    um_nbd_entry *entry = &journal->entries[i % journal->entry_count];
    if (entry->state == UM_NBD_ENTRY_KEPT && entry->mark <= mark)
      set_state(journal, entry, UM_NBD_ENTRY_GONE);
  }
  release(journal);
  pthread_mutex_unlock(&journal->lock);
  return trusted;
}

/* Which of the DUE have to wait for the grace period: what an UNSURE one overlaps, and whatever is younger and overlaps
 * such a one, since older bytes must not be written over it. In practice few are UNSURE: those in flight. */
static void find_waiting(um_nbd_journal *journal) {
  for (um_nbd_entry *entry = journal->open; entry; entry = entry->next)
    entry->waits = false;
  for (um_nbd_entry *cause = journal->open; cause; cause = cause->next) {
    if (cause->state != UM_NBD_ENTRY_UNSURE)
      continue;
    for (um_nbd_entry *entry = journal->open; entry; entry = entry->next)
      entry->waits = entry->waits || (entry != cause && touches(entry, cause->offset, cause->length));
  }
  for (um_nbd_entry *cause = journal->open; cause; cause = cause->next)
    for (um_nbd_entry *entry = cause->waits ? cause->next : NULL; entry; entry = entry->next)
      entry->waits = entry->waits || touches(entry, cause->offset, cause->length);
}

void um_nbd_journal_distrust(um_nbd_journal *journal) {
  pthread_mutex_lock(&journal->lock);
  journal->doubted = UINT64_MAX;
  pthread_mutex_unlock(&journal->lock);
}

void um_nbd_journal_doubt(um_nbd_journal *journal) {
  pthread_mutex_lock(&journal->lock);
  journal->doubted = journal->mark;
  journal->open = journal->newest = NULL;
  for (uint64_t i = journal->first; i < journal->made; i++) {
    um_nbd_entry *entry = &journal->entries[i % journal->entry_count];
    if (entry->state == UM_NBD_ENTRY_KEPT)
      set_state(journal, entry, UM_NBD_ENTRY_DUE);
    if (is_open(entry->state))
      append_open(journal, entry);
  }
  find_waiting(journal);
  pthread_mutex_unlock(&journal->lock);
}

bool um_nbd_journal_overlaps(um_nbd_journal *journal, uint64_t offset, uint64_t length, bool flying) {
  pthread_mutex_lock(&journal->lock);
  bool result = overlaps(journal, offset, length, flying);
  pthread_mutex_unlock(&journal->lock);
  return result;
}

uint32_t um_nbd_journal_due(um_nbd_journal *journal, bool unsure, um_nbd_entry **entries, uint32_t count) {
  uint32_t found = 0;
  pthread_mutex_lock(&journal->lock);
  for (um_nbd_entry *entry = journal->open; entry && found < count; entry = entry->next) {
    if (entry->state != UM_NBD_ENTRY_DUE && !(unsure && entry->state == UM_NBD_ENTRY_UNSURE))
      continue;
    if (entry->waits && !unsure)
      continue;
    for (uint32_t i = 0; i < found; i++)
      if (touches(entries[i], entry->offset, entry->length))
        count = found; /* the next round's */
    if (found < count)
      entries[found++] = entry;
  }
  pthread_mutex_unlock(&journal->lock);
  return found;
}

void um_nbd_journal_mend(um_nbd_journal *journal, um_nbd_entry *entry) {
  um_nbd_journal_acknowledge(journal, entry);
}

void um_nbd_journal_unsure(um_nbd_journal *journal, um_nbd_entry *entry) {
  pthread_mutex_lock(&journal->lock);
  set_state(journal, entry, UM_NBD_ENTRY_UNSURE);
  pthread_mutex_unlock(&journal->lock);
}

bool um_nbd_journal_give_up(um_nbd_journal *journal, um_nbd_entry *entry, int code) {
  pthread_mutex_lock(&journal->lock);
  bool gone = !entry->acknowledged;
  if (gone) {
    entry->code = code;
    set_state(journal, entry, UM_NBD_ENTRY_GONE);
    release(journal);
  }
  pthread_mutex_unlock(&journal->lock);
  return gone;
}

void um_nbd_journal_count(um_nbd_journal *journal, um_nbd_journal_counts *counts) {
  pthread_mutex_lock(&journal->lock);
  *counts = journal->counts;
  counts->bytes = journal->end - journal->begin;
  for (const um_nbd_entry *entry = journal->open; entry; entry = entry->next)
    counts->promised += entry->acknowledged;
  pthread_mutex_unlock(&journal->lock);
}
