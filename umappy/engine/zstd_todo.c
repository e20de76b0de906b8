#include "zstd_store.h"
#include <errno.h>
int um_zstd_store_verify(um_store *store, uint64_t first, uint64_t count, uint64_t *page, um_error *error) {
  (void)store;
  (void)first;
  (void)count;
  (void)page;
  (void)error;
  return -ENOSYS;
}
int um_zstd_store_verify_frames(um_store *store, um_error *error) {
  (void)store;
  (void)error;
  return -ENOSYS;
}
int um_zstd_pack_open(const um_zstd_pack_options *options, um_zstd_pack **pack, um_error *error) {
  (void)pack;
  (void)options;
  (void)error;
  return -ENOSYS;
}
int um_zstd_pack_write(um_zstd_pack *pack, const void *buffer, uint64_t length, um_error *error) {
  (void)pack;
  (void)buffer;
  (void)length;
  (void)error;
  return -ENOSYS;
}
int um_zstd_pack_store(um_zstd_pack *pack, um_store *store, uint64_t offset, uint64_t length, um_error *error) {
  (void)pack;
  (void)store;
  (void)offset;
  (void)length;
  (void)error;
  return -ENOSYS;
}
int um_zstd_pack_finish(um_zstd_pack *pack, um_error *error) {
  (void)pack;
  (void)error;
  return -ENOSYS;
}
void um_zstd_pack_abort(um_zstd_pack *pack) {
  (void)pack;
}
int um_zstd_adopt(const char *path, uint32_t page_size, um_error *error) {
  (void)path;
  (void)page_size;
  (void)error;
  return -ENOSYS;
}
