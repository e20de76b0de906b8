/* zstd_store.h: the zstd store inside; docs/format.md has the bytes. */
#ifndef UM_ZSTD_STORE_H
#define UM_ZSTD_STORE_H

#include "zstd_file.h"

/* As um_zstd_store_open and um_zstd_pack_open, on a file that is open already, and theirs from then on where they
 * return 0. `empty`: the file is new, make the store; options->path is for messages. */
int um_zstd_store_open_on(um_zstd_file *file, bool empty, const um_zstd_options *options, um_store **store,
                          um_error *error);
int um_zstd_pack_open_on(um_zstd_file *file, const um_zstd_pack_options *options, um_zstd_pack **pack, um_error *error);

#endif
