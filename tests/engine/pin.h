/* pin.h: what a device does to a region's memory: it pins pages, and puts bytes into them later, past the processor.
 * The buffers registered with an io_uring are pinned for as long as the ring lives. */
#ifndef UM_PIN_H
#define UM_PIN_H

#include <stdbool.h>
#include <stdint.h>

typedef struct pin pin;

bool pin_allowed(void);                        /* io_uring may be switched off */
pin *pin_open(void *address, uint64_t length); /* faults the pages in as writes would, and pins them */
void pin_close(pin *p);                        /* the pins are gone when this returns */

/* The device reads `length` bytes at `offset` of the file, opened with O_DIRECT, to `at` bytes behind the address. */
void pin_read(pin *p, int fd, uint64_t offset, uint64_t at, uint32_t length);

#endif
