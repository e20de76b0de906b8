/* The smoke test that write-protection by userfaultfd was merged into Linux on: a parallel quicksort by 128 threads,
 * served by 80 fillers, of a file several times the budget. Every page is read, written, evicted and read again many
 * times over, by whichever thread has its stretch; the file is compared with what another sort makes of its words.
 *
 * QUICKSORT_MIB: how much is sorted, default 16; the budget stays at its smallest, 2.6 MiB. */
#include "rig.h"

#define SORTERS 128
#define FILLERS 80
#define EVICTORS 2

/* Words, and how many threads are to sort them. */
typedef struct stretch {
  uint64_t *first;
  uint64_t count;
  unsigned threads;
} stretch;

static pthread_barrier_t together; /* from here on all of them sort at once */

static void swap(uint64_t *a, uint64_t *b) {
  uint64_t kept = *a;
  *a = *b;
  *b = kept;
}

static uint64_t median(uint64_t a, uint64_t b, uint64_t c) {
  return a < b ? (b < c ? b : um_max(a, c)) : (a < c ? a : um_max(b, c));
}

/* Hoare's: afterwards no word before the returned place is larger than any from there on; both parts have words. */
static uint64_t partition(uint64_t *words, uint64_t count) {
  uint64_t pivot = median(words[0], words[count / 2], words[count - 1]);
  uint64_t *low = words, *high = words + count - 1;
  for (;; low++, high--) {
    while (*low < pivot)
      low++;
    while (*high > pivot)
      high--;
    if (low >= high)
      break;
    swap(low, high);
  }
  uint64_t place = (uint64_t)(high - words) + 1;
  return place == count ? count - 1 : place;
}

static void insertion_sort(uint64_t *words, uint64_t count) {
  for (uint64_t i = 1; i < count; i++) {
    uint64_t word = words[i], at = i;
    for (; at > 0 && words[at - 1] > word; at--)
      words[at] = words[at - 1];
    words[at] = word;
  }
}

static void sort_alone(uint64_t *words, uint64_t count) {
  while (count > 16) { /* the shorter part first: the stack stays small */
    uint64_t place = partition(words, count), rest = count - place;
    if (place < rest) {
      sort_alone(words, place);
      words += place;
      count = rest;
    } else {
      sort_alone(words + place, rest);
      count = place;
    }
  }
  insertion_sort(words, count);
}

/* Splits the stretch until each thread has one of its own. */
static void *sort(void *argument) {
  stretch s = *(stretch *)argument;
  if (s.threads == 1) {
    pthread_barrier_wait(&together);
    sort_alone(s.first, s.count);
    return NULL;
  }
  uint64_t place = partition(s.first, s.count);
  unsigned threads = (unsigned)um_max(1, um_min(s.threads - 1, s.threads * place / s.count));
  stretch left = {s.first, place, threads}, right = {s.first + place, s.count - place, s.threads - threads};
  pthread_t other = rig_thread(sort, &left);
  sort(&right);
  CHECK_EQUAL(pthread_join(other, NULL), 0);
  return NULL;
}

static int by_value(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return x < y ? -1 : x > y;
}

static void check_file(const rig *r, uint64_t count) {
  uint64_t *wanted = malloc(count * sizeof *wanted);
  CHECK(wanted);
  for (uint64_t i = 0; i < count; i++)
    wanted[i] = rig_word(8 * i);
  qsort(wanted, count, sizeof *wanted, by_value);
  for (uint64_t i = 0; i < count; i++)
    CHECK_EQUAL(rig_file_word(r, 8 * i), wanted[i]);
  free(wanted);
}

static void run(uint64_t size) {
  rig r;
  rig_open(&r, &(rig_options){.size = size, .fillers = FILLERS, .evictors = EVICTORS});
  um_stats stats = rig_stats(&r);
  CHECK_EQUAL(stats.fillers, FILLERS);
  CHECK(size >= 4 * stats.memory);
  uint64_t count = size / 8, start = now_ns();
  CHECK_EQUAL(pthread_barrier_init(&together, NULL, SORTERS), 0);
  sort(&(stretch){(uint64_t *)r.bytes, count, SORTERS});
  double took = (double)(now_ns() - start) / 1e9;
  stats = rig_stats(&r);
  CHECK(stats.peak_used <= stats.memory);
  CHECK_EQUAL(rig_errors(&r), 0);
  rig_close(&r);
  check_file(&r, count);
  rig_end(&r);
  printf("  %" PRIu64 " MiB, %.1f times the budget, in %.1f s: %.0f faults/s, %.0f evictions/s\n", size >> 20,
         (double)size / (double)stats.memory, took,
         (double)(stats.read_faults + stats.write_faults + stats.protect_faults) / took,
         (double)stats.evictions / took);
}

int main(void) {
  const char *asked = getenv("QUICKSORT_MIB");
  uint64_t mib = asked ? strtoull(asked, NULL, 10) : 16;
  CHECK(mib >= 16);
  watchdog_start(60 + 2 * (unsigned)mib);
  watchdog_pet("quicksort");
  run(mib << 20);
  return 0;
}
