/* check.h: assertions of the C tests, which hold in every build. */
#ifndef UM_CHECK_H
#define UM_CHECK_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                               \
  do {                                                                                                                 \
    if (!(condition)) {                                                                                                \
      fprintf(stderr, "%s:%d: %s: not so: %s\n", __FILE__, __LINE__, __func__, #condition);                            \
      abort();                                                                                                         \
    }                                                                                                                  \
  } while (0)

#define CHECK_EQUAL(got, wanted)                                                                                       \
  do {                                                                                                                 \
    int64_t got_ = (int64_t)(got), wanted_ = (int64_t)(wanted);                                                        \
    if (got_ != wanted_) {                                                                                             \
      fprintf(stderr, "%s:%d: %s: %s is %" PRId64 ", not %" PRId64 "\n", __FILE__, __LINE__, __func__, #got, got_,     \
              wanted_);                                                                                                \
      abort();                                                                                                         \
    }                                                                                                                  \
  } while (0)

#endif
