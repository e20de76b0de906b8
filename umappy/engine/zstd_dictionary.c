/* zstd_dictionary.c: the dictionary a file keeps, for who makes another file with it. */
#include "xxh64.h"
#include "zstd_store.h"

int um_zstd_store_dictionary(um_store *store, void *buffer, um_error *error) {
  um_zstd_store *self = (um_zstd_store *)store;
  pthread_mutex_lock(&self->flush_lock);
  um_zstd_place place = self->super.dictionary;
  pthread_mutex_unlock(&self->flush_lock);
  if (self->dictionary_size == 0)
    return 0;
  int result = um_zstd_file_read(self->file, place.offset + UM_ZSTD_RECORD_HEADER, buffer, self->dictionary_size);
  if (result == 0 && um_xxh64(buffer, self->dictionary_size, 0) != self->dictionary_hash)
    result = -UM_ECORRUPT;
  return result < 0 ? um_zstd_fail(self, result, UM_OP_READ, 0, 0, "the dictionary", error) : 0;
}
