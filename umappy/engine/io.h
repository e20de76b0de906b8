/* io.h: moving all the bytes between memory and a descriptor. */
#ifndef UM_IO_H
#define UM_IO_H

#include <stdint.h>

#define UM_IO_END 1   /* the file ended */
#define UM_IO_SHORT 2 /* the kernel stopped inside a unit: go on elsewhere */

/* Reads or writes `length` bytes at `offset` of the file. After a short call both go on only where a multiple of
 * `unit` is left (1: anywhere), as an O_DIRECT descriptor takes nothing else. Returns 0, UM_IO_..., or -errno;
 * `done` is the count of bytes moved in every case. */
int um_io_read(int descriptor, uint64_t offset, void *buffer, uint64_t length, uint64_t unit, uint64_t *done);
int um_io_write(int descriptor, uint64_t offset, const void *buffer, uint64_t length, uint64_t unit, uint64_t *done);

#endif
