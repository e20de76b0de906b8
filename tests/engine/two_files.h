/* two_files.h: a store of two files that the tests of batches read and write, and the calls of its rings seen. Byte o
 * of the store is two_files_byte(o). */
#ifndef UM_TWO_FILES_H
#define UM_TWO_FILES_H

#include "store.h"

#include <stdatomic.h>

#define BLOCK 4096u
#define FIRST_SIZE (512u * BLOCK)
#define SECOND_SIZE (1024u * BLOCK + 1000u)
#define SIZE (FIRST_SIZE + SECOND_SIZE)

extern char two_files_paths[2][64];
extern _Atomic uint64_t ring_entered; /* calls of io_uring_enter */
extern atomic_bool ring_hangs;        /* requests go to the device, and none comes back */
extern atomic_bool ring_refused;      /* by a filter that came later */

bool two_files_begin(void); /* false, and says so: there are no batches here */
int two_files_end(void);
void two_files_make(void); /* anew */
um_store *two_files_open(int direct, bool writable);
unsigned char two_files_byte(uint64_t offset);

#endif
