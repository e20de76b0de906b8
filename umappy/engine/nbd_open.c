/* nbd_open.c: from options to a store whose connections are up, and undoing it. */
#include "internal.h"
#include "nbd.h"

#include <inttypes.h>
#include <stdio.h>

#define LINKS_AUTO 4u /* docs/design.md */

static bool copy_string(char **to, const char *from) { /* false: no memory */
  *to = from ? strdup(from) : NULL;
  return *to || !from;
}

static bool copy_tls(um_nbd_target *target, const um_nbd_options *options) {
  if (!options->tls)
    return true;
  um_nbd_tls_options *tls = target->tls = calloc(1, sizeof *tls);
  if (!tls)
    return false;
  tls->verify = options->tls_verify;
  return copy_string(&tls->certificates, options->tls_certificates) &&
         copy_string(&tls->psk_file, options->tls_psk_file) && copy_string(&tls->username, options->tls_username) &&
         copy_string(&tls->hostname, options->tls_hostname);
}

static bool copy_target(um_nbd_target *target, const um_nbd_options *options) {
  target->timeout_ns = options->timeout_ns;
  target->retry_ns = options->retry_ns;
  return copy_string(&target->name, options->name) && copy_string(&target->host, options->host) &&
         copy_string(&target->port, options->port) && copy_string(&target->path, options->path) &&
         copy_string(&target->export_name, options->export_name) && copy_tls(target, options);
}

static void free_target(um_nbd_target *target) {
  if (target->tls) {
    free(target->tls->certificates);
    free(target->tls->psk_file);
    free(target->tls->username);
    free(target->tls->hostname);
    free(target->tls);
  }
  free(target->name);
  free(target->host);
  free(target->port);
  free(target->path);
  free(target->export_name);
}

void um_nbd_store_free(um_nbd_store *store) {
  for (uint32_t i = 0; i < store->link_count; i++)
    um_nbd_link_end(&store->links[i]);
  for (um_nbd_waiter *waiter = atomic_load(&store->waiters), *next; waiter; waiter = next) {
    next = waiter->all_next;
    um_nbd_waiter_free(waiter);
  }
  if (store->journal)
    um_nbd_journal_free(store->journal);
  free_target(&store->target);
  pthread_mutex_destroy(&store->lock);
  pthread_cond_destroy(&store->changed);
  pthread_mutex_destroy(&store->guard.lock);
  pthread_cond_destroy(&store->guard.left);
  pthread_mutex_destroy(&store->waiters_lock);
  free(store->links);
  free(store);
}

static um_nbd_store *make_store(const um_nbd_options *options) {
  um_nbd_store *store = calloc(1, sizeof *store);
  if (!store)
    return NULL;
  pthread_condattr_t monotonic;
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_mutex_init(&store->lock, NULL);
  pthread_cond_init(&store->changed, &monotonic);
  pthread_mutex_init(&store->guard.lock, NULL);
  pthread_cond_init(&store->guard.left, &monotonic);
  pthread_mutex_init(&store->waiters_lock, NULL);
  pthread_condattr_destroy(&monotonic);
  store->fork_generation = um_fork_generation();
  store->links = calloc(UM_NBD_LINKS, sizeof *store->links);
  if (store->links && copy_target(&store->target, options))
    return store;
  um_nbd_store_free(store);
  return NULL;
}

/* What of the export does not suit what was asked for. */
static int check_export(um_nbd_store *store, const um_nbd_options *options, um_error *error) {
  const um_nbd_export *e = &store->export_;
  if (options->writable && (e->flags & UM_NBD_FLAG_READ_ONLY))
    return um_nbd_fail(store, EACCES, UM_OP_OPEN, 0, 0, error,
                       "the export is read-only: open it with mode='r', or start the server for writing");
  if (e->size % e->block_min)
    return um_nbd_fail(store, EINVAL, UM_OP_OPEN, 0, 0, error,
                       "the export has %" PRIu64 " bytes, and its server takes only blocks of %" PRIu32
                       ": the last %" PRIu64 " bytes are out of reach; make the export a multiple of that, or let the "
                       "server take smaller blocks (nbdkit: --filter=blocksize-policy blocksize-minimum=1)",
                       e->size, e->block_min, e->size % e->block_min);
  if (options->connections > 1 && options->writable && !(e->flags & UM_NBD_FLAG_CAN_MULTI_CONN))
    return um_nbd_fail(store, EINVAL, UM_OP_OPEN, 0, 0, error,
                       "connections is %" PRIu32 ", but the server does not allow several for writing (multi-conn): "
                       "use connections='auto' or 1",
                       options->connections);
  return 0;
}

static bool is_same_export(const um_nbd_export *a, const um_nbd_export *b) {
  return a->size == b->size && a->flags == b->flags && a->block_min == b->block_min &&
         a->block_preferred == b->block_preferred && a->length_max == b->length_max && a->structured == b->structured;
}

/* Connects the next link. */
static int open_link(um_nbd_store *store, um_error *error) {
  char text[UM_NBD_TEXT] = "";
  um_nbd_export export_;
  um_nbd_transport *transport;
  um_nbd_link *link = &store->links[store->link_count];
  uint64_t deadline_ns = um_now_ns() + store->target.timeout_ns;
  int result = um_nbd_connect(&store->target, deadline_ns, &export_, &transport, text, sizeof text);
  if (result < 0)
    return um_nbd_fail(store, -result, UM_OP_OPEN, 0, 0, error, "%s", text);
  result = um_nbd_link_init(link, store, store->link_count);
  store->link_count++;
  if (result == 0 && store->link_count == 1)
    store->export_ = export_;
  else if (result == 0 && !is_same_export(&export_, &store->export_))
    result = -ESTALE;
  if (result == 0)
    result = um_nbd_link_open(link, transport, &export_, deadline_ns);
  if (result < 0)
    transport->ops->close(transport, false);
  if (result == -ESTALE)
    return um_nbd_fail(store, ESTALE, UM_OP_OPEN, 0, 0, error, "the export changed while it was opened: try again");
  return result < 0 ? um_nbd_fail(store, -result, UM_OP_OPEN, 0, 0, error, "%s", strerror(-result)) : 0;
}

static int open_links(um_nbd_store *store, const um_nbd_options *options, um_error *error) {
  int result = open_link(store, error);
  if (result == 0)
    result = check_export(store, options, error);
  uint32_t wanted = options->connections ? (uint32_t)um_min(options->connections, UM_NBD_LINKS)
                    : (store->export_.flags & UM_NBD_FLAG_CAN_MULTI_CONN) ? LINKS_AUTO
                                                                          : 1;
  while (result == 0 && store->link_count < wanted)
    result = open_link(store, error);
  return result;
}

static int finish(um_nbd_store *store, bool writable, um_error *error) {
  const um_nbd_export *e = &store->export_;
  store->store.ops = &um_nbd_store_ops;
  store->store.size = e->size;
  store->store.writable = store->keeps = writable;
  if (writable)
    store->journal = um_nbd_journal_make(UM_NBD_JOURNAL_DEFAULT, e->block_min, e->flags & UM_NBD_FLAG_SEND_FLUSH);
  int result = writable && !store->journal ? -ENOMEM : um_nbd_recover_start(store);
  return result < 0 ? um_nbd_fail(store, -result, UM_OP_OPEN, 0, 0, error, "%s", strerror(-result)) : 0;
}

int um_nbd_store_open(const um_nbd_options *options, um_store **store, um_error *error) {
  um_nbd_store *self = um_fork_entries_init() == 0 ? make_store(options) : NULL;
  if (!self)
    return um_error_set(error, ENOMEM, UM_OP_OPEN, 0, 0, "%s: %s", options->name, strerror(ENOMEM));
  int result = open_links(self, options, error);
  if (result == 0)
    result = finish(self, options->writable, error);
  if (result < 0) {
    um_nbd_store_free(self);
    return result;
  }
  um_fork_entry_add(&self->fork, &self->store);
  *store = &self->store;
  return 0;
}
