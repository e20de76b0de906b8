/* libnbd_client.c: what libnbd does with a server; rows/nbd_client.py builds it.
 *
 *   libnbd_client URI random|sequential|single CONNECTIONS DEPTH LENGTH COUNT SEED
 *
 * random, sequential: COUNT reads of LENGTH bytes by its asynchronous API, DEPTH in flight, shared among CONNECTIONS,
 * each with a thread, as nbdcopy does it. random: each to its own place, in memory that is there already. single: one synchronous read after another, on one connection.
 * Prints: seconds, the sum of the first 8 bytes of each read modulo 2^64 (big-endian, as nbdkit's pattern plugin has
 * them), and for `single` the median of a read's seconds. */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <libnbd.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct slot {
  struct worker *worker;
  char *buffer; /* of sequential reads */
  char *place;  /* of the read that is in flight */
} slot;

typedef struct worker {
  pthread_t thread;
  struct nbd_handle *nbd;
  const uint64_t *offsets; /* its reads */
  uint64_t count, next, ended;
  uint64_t length;
  uint32_t depth;
  slot *slots, **idle;
  uint32_t idle_count;
  uint64_t sum;
  char *result; /* of random reads: a place for each; else NULL */
} worker;

static _Noreturn void fail(const char *what) {
  const char *why = nbd_get_error();
  fprintf(stderr, "%s: %s\n", what, why ? why : strerror(errno));
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t take_first(const char *buffer) {
  uint64_t value;
  memcpy(&value, buffer, sizeof value);
  return be64toh(value);
}

static int ended(void *context, int *error) {
  slot *s = context;
  if (*error)
    fail("reading");
  s->worker->sum += take_first(s->place);
  s->worker->ended++;
  s->worker->idle[s->worker->idle_count++] = s;
  return 1;
}

static void *work(void *context) {
  worker *w = context;
  while (w->ended < w->count) {
    while (w->idle_count > 0 && w->next < w->count) {
      slot *s = w->idle[--w->idle_count];
      nbd_completion_callback done = {.callback = ended, .user_data = s};
      s->place = w->result ? w->result + w->next * w->length : s->buffer;
      if (nbd_aio_pread(w->nbd, s->place, w->length, w->offsets[w->next++], done, 0) < 0)
        fail("asking");
    }
    if (nbd_poll(w->nbd, -1) < 0)
      fail("waiting");
  }
  return NULL;
}

static struct nbd_handle *open_server(const char *uri) {
  struct nbd_handle *nbd = nbd_create();
  if (!nbd || nbd_connect_uri(nbd, uri) < 0)
    fail("connecting");
  return nbd;
}

static void prepare(worker *w, const char *uri, const uint64_t *offsets, uint64_t count, uint64_t length,
                    uint32_t depth, char *result) {
  *w = (worker){.nbd = open_server(uri),
                .offsets = offsets,
                .count = count,
                .length = length,
                .depth = depth,
                .result = result};
  w->slots = calloc(depth, sizeof *w->slots);
  w->idle = calloc(depth, sizeof *w->idle);
  for (uint32_t i = 0; i < depth; i++) {
    w->slots[i] = (slot){.worker = w, .buffer = aligned_alloc(4096, length)};
    memset(w->slots[i].buffer, 1, length);
    w->idle[w->idle_count++] = &w->slots[i];
  }
}

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void read_single(const char *uri, const uint64_t *offsets, uint64_t count, uint64_t length) {
  struct nbd_handle *nbd = open_server(uri);
  char *buffer = aligned_alloc(4096, length);
  double *took = calloc(count, sizeof *took), start = now();
  uint64_t sum = 0;
  for (uint64_t i = 0; i < count; i++) {
    double before = now();
    if (nbd_pread(nbd, buffer, length, offsets[i], 0) < 0)
      fail("reading");
    took[i] = now() - before;
    sum += take_first(buffer);
  }
  double all = now() - start;
  qsort(took, count, sizeof *took, compare);
  printf("%.9f %" PRIu64 " %.9f\n", all, sum, took[count / 2]);
}

/* splitmix64 */
static uint64_t draw(uint64_t *state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

int main(int argc, char **argv) {
  if (argc != 8)
    return 2;
  const char *uri = argv[1], *how = argv[2];
  uint32_t connections = (uint32_t)atoi(argv[3]), depth = (uint32_t)atoi(argv[4]);
  uint64_t length = strtoull(argv[5], NULL, 10), count = strtoull(argv[6], NULL, 10);
  uint64_t seed = strtoull(argv[7], NULL, 10);
  struct nbd_handle *first = open_server(uri);
  uint64_t pages = (uint64_t)nbd_get_size(first) / length;
  nbd_shutdown(first, 0);
  nbd_close(first);
  uint64_t *offsets = calloc(count, sizeof *offsets);
  for (uint64_t i = 0; i < count; i++)
    offsets[i] = length * (strcmp(how, "sequential") ? draw(&seed) % pages : i % pages);
  if (strcmp(how, "single") == 0) {
    read_single(uri, offsets, count, length);
    return 0;
  }
  worker *workers = calloc(connections, sizeof *workers);
  char *result = strcmp(how, "random") ? NULL : aligned_alloc(4096, count * length);
  if (result)
    memset(result, 1, count * length);
  for (uint32_t i = 0; i < connections; i++) {
    uint64_t from = count * i / connections, to = count * (i + 1) / connections;
    prepare(&workers[i], uri, offsets + from, to - from, length, (depth + connections - 1) / connections,
            result ? result + from * length : NULL);
  }
  double start = now();
  uint64_t sum = 0;
  for (uint32_t i = 0; i < connections; i++)
    pthread_create(&workers[i].thread, NULL, work, &workers[i]);
  for (uint32_t i = 0; i < connections; i++) {
    pthread_join(workers[i].thread, NULL);
    sum += workers[i].sum;
  }
  printf("%.9f %" PRIu64 " 0\n", now() - start, sum);
  return 0;
}
