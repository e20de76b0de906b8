/* random_read.h: what the two ways of reading at random share (device_limits.c, uring.c). */
#ifndef RANDOM_READ_H
#define RANDOM_READ_H

#include <stdint.h>

#define RANDOM_BLOCK 4096u

uint64_t now_ns(void);
uint64_t random_offset(uint64_t *state, uint64_t size); /* of a whole block; `state` is not 0 */
void *aligned_buffer(uint64_t size);                    /* fit for direct I/O; never NULL */
void die(const char *what, int error);

/* Reads random blocks of `fd` through one io_uring with `depth` requests in flight, for `ns`; returns reads a second,
 * or -errno where the kernel has no io_uring for us. */
double uring_random_rate(int fd, uint64_t size, unsigned depth, uint64_t ns);

#endif
