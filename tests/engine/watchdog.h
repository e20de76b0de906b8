/* watchdog.h: a test that hangs says where. */
#ifndef UM_WATCHDOG_H
#define UM_WATCHDOG_H

#include "check.h"

#include <stdint.h>

/* Starts the program's watchdog: unless watchdog_pet comes every `seconds`, every thread's stack is printed and the
 * program aborts. Sanitizers stretch the time. */
void watchdog_start(unsigned seconds);
void watchdog_pet(const char *test); /* a new test begins, of this name */

/* In a forked child, which has no watchdog: it is killed after `seconds`. */
void watchdog_child(unsigned seconds);

uint64_t now_ns(void);
void sleep_ms(unsigned ms);

/* Runs a test under the watchdog and prints its name if it took long. */
#define RUN(test)                                                                                                      \
  do {                                                                                                                 \
    watchdog_pet(#test);                                                                                               \
    test();                                                                                                            \
  } while (0)

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SLOWER 10
#else
#define SLOWER 1
#endif

/* Looks every millisecond whether it is so by now; after ten seconds the test has failed. */
#define AWAIT(condition)                                                                                               \
  for (uint64_t patience_ = now_ns() + 10000000000ull * SLOWER; !(condition); sleep_ms(1))                             \
  CHECK(now_ns() < patience_ && #condition)

#endif
