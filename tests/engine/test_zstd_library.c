/* libzstd is found, by any number of threads at once, and works through the table. */
#include "check.h"
#include "internal.h"
#include "zstd_library.h"

#define THREADS 8
#define SIZE (64u << 10)

static pthread_barrier_t together;

static void *get(void *unused) {
  (void)unused;
  pthread_barrier_wait(&together);
  return (void *)um_zstd_get(NULL);
}

static void threads_all_get_the_same_table(void) {
  pthread_t threads[THREADS];
  pthread_barrier_init(&together, NULL, THREADS);
  for (int i = 0; i < THREADS; i++)
    CHECK_EQUAL(pthread_create(&threads[i], NULL, get, NULL), 0);
  for (int i = 0; i < THREADS; i++) {
    void *got;
    CHECK_EQUAL(pthread_join(threads[i], &got), 0);
    CHECK(got && got == um_zstd_get(NULL));
  }
  pthread_barrier_destroy(&together);
}

static void frame_with_a_dictionary_comes_back(const um_zstd *z) {
  static unsigned char data[SIZE], back[SIZE], frame[2 * SIZE];
  for (uint32_t i = 0; i < SIZE; i++)
    data[i] = (unsigned char)(i * i >> 7);
  um_zstd_cctx *c = z->cctx_create();
  um_zstd_dctx *d = z->dctx_create();
  um_zstd_cdict *cd = z->cdict_create(data, 4096, 3);
  um_zstd_ddict *dd = z->ddict_create(data, 4096);
  CHECK(c && d && cd && dd);
  CHECK(!z->is_error(z->cctx_set(c, UM_ZSTD_C_LEVEL, 3)));
  CHECK(!z->is_error(z->cctx_set(c, UM_ZSTD_C_CHECKSUM, 1)));
  CHECK(!z->is_error(z->cctx_use(c, cd)));
  CHECK(z->compress_bound(SIZE) <= sizeof frame);
  size_t length = z->compress(c, frame, sizeof frame, data, SIZE);
  CHECK(!z->is_error(length));
  CHECK_EQUAL(z->frame_content_size(frame, length), SIZE);
  CHECK_EQUAL(z->frame_compressed_size(frame, sizeof frame), length);
  CHECK(!z->is_error(z->dctx_use(d, dd)));
  CHECK_EQUAL(z->decompress(d, back, SIZE, frame, length), SIZE);
  CHECK(memcmp(data, back, SIZE) == 0);
  frame[length - 1] ^= 1;
  CHECK_EQUAL(z->error_code(z->decompress(d, back, SIZE, frame, length)), UM_ZSTD_ERROR_CHECKSUM);
  z->cctx_free(c);
  z->dctx_free(d);
  z->cdict_free(cd);
  z->ddict_free(dd);
}

static void offer_after_the_first_use_is_not_taken(void) {
  const um_zstd *before = um_zstd_get(NULL);
  void *none[64] = {0};
  um_error error;
  CHECK_EQUAL(um_zstd_offer(none, "nowhere", &error), 0);
  CHECK(um_zstd_get(NULL) == before);
}

int main(void) {
  um_error error;
  void *none[64] = {0};
  CHECK_EQUAL(um_zstd_offer(none, "nowhere", &error), -ELIBACC);
  CHECK(strstr(error.text, "nowhere") && strstr(error.text, "ZSTD_versionNumber"));
  threads_all_get_the_same_table();
  const um_zstd *z = um_zstd_get(&error);
  CHECK(z->version >= UM_ZSTD_VERSION_MIN && strstr(z->where, "libzstd"));
  frame_with_a_dictionary_comes_back(z);
  offer_after_the_first_use_is_not_taken();
  return 0;
}
