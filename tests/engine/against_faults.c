#include "against_faults.h"

#define PAGE 4096u

static void *read_on(void *argument) {
  user *u = argument;
  for (; !atomic_load(&u->stop); u->turns++) {
    uint64_t offset = rig_random(&u->random) % (u->rig->size / PAGE) * PAGE, word = rig_read(u->rig, offset);
    CHECK(word == rig_word(offset) || word == offset + 1);
    if (u->turns % 4 == 0)
      rig_write(u->rig, offset, offset + 1);
  }
  return NULL;
}

void against_faults(uint32_t fillers, uint64_t spare, void *(*prefetch_on)(void *user)) {
  rig r;
  pthread_t threads[4];
  user users[4];
  rig_open(&r, &(rig_options){.size = 256 * PAGE, .fillers = fillers, .spare = spare});
  for (int i = 0; i < 4; i++) {
    users[i] = (user){.rig = &r, .random = 1 + (uint64_t)i};
    threads[i] = rig_thread(i < 2 ? read_on : prefetch_on, &users[i]);
  }
  sleep_ms(300);
  for (int i = 0; i < 4; i++)
    atomic_store(&users[i].stop, true);
  for (int i = 0; i < 4; i++) {
    pthread_join(threads[i], NULL);
    CHECK(users[i].turns > 3);
  }
  CHECK(rig_stats(&r).prefetches > 100);
  CHECK_EQUAL(rig_errors(&r), 0);
  CHECK(rig_stats(&r).peak_used <= rig_stats(&r).memory);
  rig_close(&r);
  rig_end(&r);
}
