/* Numbers of every kind and shape come out as qsort puts them, whatever the scratch. */
#include "check.h"
#include "internal.h"

#include <math.h>

#define COUNT_MAX 300000u

typedef struct shape {
  const char *name;
  uint64_t (*make)(uint64_t i, uint64_t random);
} shape;

static uint64_t make_random(uint64_t i, uint64_t random) {
  (void)i;
  return random;
}

static uint64_t make_rising(uint64_t i, uint64_t random) {
  (void)random;
  return i << 32 | i;
}

static uint64_t make_falling(uint64_t i, uint64_t random) {
  return ~make_rising(i, random);
}

static uint64_t make_equal(uint64_t i, uint64_t random) {
  (void)i, (void)random;
  return 0x4045000040450000; /* as a float, too */
}

static uint64_t make_few(uint64_t i, uint64_t random) {
  (void)i;
  return (random % 7) * 0x9e3779b97f4a7c15;
}

/* Most have their highest bits in common, more of them the more there are. */
static uint64_t make_clumps(uint64_t i, uint64_t random) {
  (void)i;
  return (random & 0xffffffff00000000) >> random % 32 | (random & 0xffffffff) >> random / 32 % 32;
}

static uint64_t make_low_bits(uint64_t i, uint64_t random) {
  (void)i;
  return random % 300 << 32 | random / 300 % 300;
}

static const shape SHAPES[] = {{"random", make_random},    {"rising", make_rising}, {"falling", make_falling},
                               {"equal", make_equal},      {"few", make_few},       {"clumps", make_clumps},
                               {"low bits", make_low_bits}};

#define COMPARE(name, type)                                                                                            \
  static int name(const void *a, const void *b) {                                                                      \
    type x, y;                                                                                                         \
    memcpy(&x, a, sizeof x);                                                                                           \
    memcpy(&y, b, sizeof y);                                                                                           \
    return x < y ? -1 : x > y;                                                                                         \
  }
COMPARE(by_uint64, uint64_t)
COMPARE(by_int64, int64_t)
COMPARE(by_uint32, uint32_t)
COMPARE(by_int32, int32_t)

/* NaN last; the bits tell them apart. */
#define COMPARE_FLOATS(name, type, bits)                                                                               \
  static int name(const void *a, const void *b) {                                                                      \
    type x, y;                                                                                                         \
    memcpy(&x, a, sizeof x);                                                                                           \
    memcpy(&y, b, sizeof y);                                                                                           \
    if (isnan(x) || isnan(y))                                                                                          \
      return isnan(x) && isnan(y) ? by_u##bits(a, b) : isnan(x) ? 1 : -1;                                              \
    return x < y ? -1 : x > y ? 1 : by_##bits(a, b); /* zeros: the negative one first */                               \
  }
COMPARE_FLOATS(by_double, double, int64)
COMPARE_FLOATS(by_float, float, int32)

typedef struct kind {
  uint32_t size, kind;
  int (*compare)(const void *a, const void *b);
} kind;

static const kind KINDS[] = {{8, UM_NUMBER_UNSIGNED, by_uint64}, {8, UM_NUMBER_SIGNED, by_int64},
                             {8, UM_NUMBER_FLOAT, by_double},    {4, UM_NUMBER_UNSIGNED, by_uint32},
                             {4, UM_NUMBER_SIGNED, by_int32},    {4, UM_NUMBER_FLOAT, by_float}};

static bool is_nan(const kind *k, const uint8_t *number) {
  double d = 0;
  float f = 0;
  memcpy(k->size == 8 ? (void *)&d : (void *)&f, number, k->size);
  return k->kind == UM_NUMBER_FLOAT && (isnan(d) || isnan(f));
}

static void check(const kind *k, const shape *s, uint64_t count, uint64_t length) {
  uint8_t *numbers = malloc(count * k->size + 1), *wanted = malloc(count * k->size + 1);
  uint8_t *scratch = malloc(length + 1); /* its end is the end of what may be touched */
  CHECK(numbers && wanted && scratch);
  uint64_t random = 88172645463325252u + count;
  for (uint64_t i = 0; i < count; i++) {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    uint64_t made = s->make(i, random);
    memcpy(numbers + i * k->size, &made, k->size);
  }
  memcpy(wanted, numbers, count * k->size);
  qsort(wanted, count, k->size, k->compare);
  CHECK_EQUAL(um_sort_numbers(numbers, count, k->size, k->kind, scratch, length), 0);
  uint64_t known = count;
  while (known > 0 && is_nan(k, wanted + (known - 1) * k->size))
    known--;
  qsort(numbers + known * k->size, count - known, k->size, k->compare); /* NaN come in no order */
  if (memcmp(numbers, wanted, count * k->size)) {
    fprintf(stderr, "%s, %u bytes, kind %u, %" PRIu64 " numbers, %" PRIu64 " bytes of scratch\n", s->name, k->size,
            k->kind, count, length);
    abort();
  }
  free(numbers);
  free(wanted);
  free(scratch);
}

static void test_sort_numbers_of_every_kind_and_shape_are_in_order(void) {
  static const uint64_t counts[] = {0, 1, 2, 24, 25, 1000, 70000, COUNT_MAX}, lengths[] = {0, 4096, 512 << 10, 8 << 20};
  for (unsigned k = 0; k < sizeof KINDS / sizeof *KINDS; k++)
    for (unsigned s = 0; s < sizeof SHAPES / sizeof *SHAPES; s++)
      for (unsigned c = 0; c < sizeof counts / sizeof *counts; c++)
        for (unsigned l = 0; l < sizeof lengths / sizeof *lengths; l++)
          check(&KINDS[k], &SHAPES[s], counts[c], lengths[l]);
}

static void test_sort_numbers_that_cannot_be_sorted_are_refused(void) {
  uint64_t numbers[4] = {3, 2, 1, 0}, scratch[4];
  char *bytes = (char *)numbers;
  CHECK_EQUAL(um_sort_numbers(numbers, 4, 2, UM_NUMBER_SIGNED, scratch, sizeof scratch), -EINVAL);
  CHECK_EQUAL(um_sort_numbers(numbers, 4, 0, UM_NUMBER_SIGNED, scratch, sizeof scratch), -EINVAL);
  CHECK_EQUAL(um_sort_numbers(numbers, 4, 8, UM_NUMBER_FLOAT + 1, scratch, sizeof scratch), -EINVAL);
  CHECK_EQUAL(um_sort_numbers(bytes + 4, 3, 8, UM_NUMBER_SIGNED, scratch, sizeof scratch), -EINVAL);
  CHECK_EQUAL(um_sort_numbers(numbers, 4, 8, UM_NUMBER_SIGNED, bytes + 4, 8), -EINVAL);
  CHECK(numbers[0] == 3 && numbers[3] == 0);
}

int main(void) {
  test_sort_numbers_of_every_kind_and_shape_are_in_order();
  test_sort_numbers_that_cannot_be_sorted_are_refused();
  return 0;
}
