/* store_nbd.c: the face of the NBD store; nbd.h tells what is where. */
#include "internal.h"
#include "nbd.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

int um_nbd_fail(const um_nbd_store *store, int code, int op, uint64_t offset, uint64_t length, um_error *error,
                const char *format, ...) {
  char text[UM_ERROR_TEXT];
  if (!error)
    return -code;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return um_error_set(error, code, op, offset, length, "%s: %s", store->target.name, text);
}

int um_nbd_check_forked(const um_nbd_store *store, int op, uint64_t offset, uint64_t length, um_error *error) {
  return store->fork_generation == um_fork_generation()
             ? 0
             : um_nbd_fail(store, UM_EFORKED, op, offset, length, error, "opened before the fork; open it again");
}

static int nbd_close(um_store *store, um_error *error) {
  um_nbd_store *self = (um_nbd_store *)store;
  um_fork_entry_remove(&self->fork);
  int result = um_nbd_recover_stop(self, error);
  um_nbd_store_free(self);
  return result;
}

/* Nothing is freed and no lock is taken: they are the parent's. */
static void nbd_forked(um_store *store) {
  um_nbd_store *self = (um_nbd_store *)store;
  for (uint32_t i = 0; i < self->link_count; i++)
    if (self->links[i].transport)
      self->links[i].transport->ops->forked(self->links[i].transport);
  for (um_nbd_waiter *waiter = atomic_load(&self->waiters); waiter; waiter = waiter->all_next)
    close(waiter->wake);
  um_nbd_recover_forked(self);
}

static uint64_t nbd_limit(um_store *store, uint64_t bytes) {
  um_nbd_store *self = (um_nbd_store *)store;
  uint64_t own = (uint64_t)self->link_count * UM_NBD_STAGING;
  return self->journal ? um_nbd_journal_resize(self->journal, bytes > own ? bytes - own : 0) + own : own;
}

const um_store_ops um_nbd_store_ops = {
    .name = "nbd",
    .read = um_nbd_read,
    .write = um_nbd_write,
    .flush = um_nbd_flush,
    .close = nbd_close,
    .forked = nbd_forked,
    .read_batch = um_nbd_read_batch,
    .write_batch = um_nbd_write_batch,
    .any_buffer = true,
    .limit = nbd_limit,
};

void um_nbd_store_info(um_store *store, um_nbd_info *info) {
  um_nbd_store *self = (um_nbd_store *)store;
  memset(info, 0, sizeof *info);
  if (store->ops != &um_nbd_store_ops)
    return;
  const um_nbd_export *e = &self->export_;
  *info = (um_nbd_info){.size = e->size,
                        .flags = e->flags,
                        .block_min = e->block_min,
                        .block_preferred = e->block_preferred,
                        .length_max = e->length_max,
                        .connections = self->link_count,
                        .structured = e->structured,
                        .reconnects = atomic_load(&self->reconnects)};
  for (uint32_t i = 0; i < self->link_count; i++)
    info->connections_up += atomic_load(&self->links[i].up);
  if (self->journal) {
    um_nbd_journal_counts counts;
    um_nbd_journal_count(self->journal, &counts);
    info->unflushed = counts.bytes;
  }
}
