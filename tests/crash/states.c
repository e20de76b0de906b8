/* states.c: see states.h. */
#include "states.h"

#define SECTOR 512u

static void add(uint64_t **list, uint64_t *count, uint64_t *room, uint64_t value) {
  if (*count == *room) {
    *room = *room ? 2 * *room : 64;
    *list = realloc(*list, *room * sizeof(**list));
    CHECK(*list);
  }
  (*list)[(*count)++] = value;
}

static void add_length(states *s, uint64_t length) {
  for (uint64_t i = 0; i < s->length_count; i++)
    if (s->lengths[i] == length) { /* the last stays the last */
      s->lengths[i] = s->lengths[s->length_count - 1];
      s->lengths[s->length_count - 1] = length;
      return;
    }
  add(&s->lengths, &s->length_count, &s->length_room, length);
}

void states_find(states *s, const zmemory *m) {
  s->memory = m;
  s->unit_count = s->length_count = 0;
  uint64_t length = m->durable_length;
  add_length(s, length);
  for (uint64_t i = 0; i < m->count; i++) {
    const zchange *c = &m->changes[i];
    uint64_t start = c->offset, end = c->offset + c->length;
    if (c->length == ZMEMORY_LENGTH) { /* shorter, and what is read behind it later is zeros: it may be cut or not */
      end = length;
      length = c->offset;
    } else if (c->bytes && length < end) {
      length = end;
    }
    add_length(s, length);
    for (uint64_t at = start; at < end; at = (at / SECTOR + 1) * SECTOR)
      add(&s->units, &s->unit_count, &s->unit_room, i << 32 | (at / SECTOR - start / SECTOR));
  }
}

void states_free(states *s) {
  free(s->units);
  free(s->lengths);
}

uint64_t states_offset(const states *s, uint64_t unit) {
  uint64_t start = s->memory->changes[s->units[unit] >> 32].offset;
  return (start / SECTOR + (s->units[unit] & UINT32_MAX)) * SECTOR;
}

zmemory *states_make(const states *s, const uint8_t *survives, uint64_t length) {
  const zmemory *m = s->memory;
  zmemory *made = zmemory_make();
  memcpy(made->bytes, m->durable, m->durable_length);
  for (uint64_t i = 0; i < s->unit_count; i++) {
    if (!survives[i])
      continue;
    const zchange *c = &m->changes[s->units[i] >> 32];
    uint64_t sector = c->offset / SECTOR + (s->units[i] & UINT32_MAX), end = (sector + 1) * SECTOR;
    uint64_t start = sector * SECTOR > c->offset ? sector * SECTOR : c->offset;
    if (c->length != ZMEMORY_LENGTH && end > c->offset + c->length)
      end = c->offset + c->length;
    if (survives[i] == STATES_GARBAGE)
      memset(made->bytes + start, 0xA5, end - start);
    else if (c->bytes)
      memcpy(made->bytes + start, c->bytes + (start - c->offset), end - start);
    else
      memset(made->bytes + start, 0, end - start);
  }
  made->length = s->lengths[length];
  for (uint64_t i = 0; i < s->length_count; i++)
    if (s->lengths[i] > made->length)
      memset(made->bytes + made->length, 0, s->lengths[i] - made->length);
  memcpy(made->durable, made->bytes, made->length);
  made->durable_length = made->length;
  return made;
}
