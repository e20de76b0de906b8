/* openssl_library.c: finding OpenSSL. No lock, as zstd_library.c says. */
#define _GNU_SOURCE
#include "openssl_library.h"

#include "library.h"
#include "store.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REMEDY                                                                                                         \
  "install OpenSSL 3, or 1.1.1 (Debian and Ubuntu: apt-get install libssl3; Fedora: dnf install openssl-libs)"

static const char *const sonames[] = {"libssl.so.3", "libssl.so.1.1"};

static const um_symbol wanted[] = {
#define FUNCTION(field, symbol) {symbol, offsetof(um_openssl, field), false}
    FUNCTION(handshake, "SSL_do_handshake"), /* the first names the file: of libssl */
    FUNCTION(version_number, "OpenSSL_version_num"),
    FUNCTION(init, "OPENSSL_init_ssl"),
    FUNCTION(error_get, "ERR_get_error"),
    FUNCTION(error_clear, "ERR_clear_error"),
    FUNCTION(error_text, "ERR_error_string_n"),
    FUNCTION(error_reason, "ERR_reason_error_string"),
    FUNCTION(client_method, "TLS_client_method"),
    FUNCTION(context_new, "SSL_CTX_new"),
    FUNCTION(context_free, "SSL_CTX_free"),
    FUNCTION(context_control, "SSL_CTX_ctrl"),
    FUNCTION(context_options, "SSL_CTX_set_options"),
    FUNCTION(context_ciphers, "SSL_CTX_set_cipher_list"),
    FUNCTION(context_suites, "SSL_CTX_set_ciphersuites"),
    FUNCTION(context_verify, "SSL_CTX_set_verify"),
    FUNCTION(context_default_authorities, "SSL_CTX_set_default_verify_paths"),
    FUNCTION(context_authorities, "SSL_CTX_load_verify_locations"),
    FUNCTION(context_verification, "SSL_CTX_get0_param"),
    FUNCTION(context_certificate, "SSL_CTX_use_certificate_chain_file"),
    FUNCTION(context_key, "SSL_CTX_use_PrivateKey_file"),
    FUNCTION(context_password, "SSL_CTX_set_default_passwd_cb"),
    FUNCTION(context_psk, "SSL_CTX_set_psk_client_callback"),
    FUNCTION(ssl_new, "SSL_new"),
    FUNCTION(ssl_free, "SSL_free"),
    FUNCTION(set_data, "SSL_set_ex_data"),
    FUNCTION(data, "SSL_get_ex_data"),
    FUNCTION(set_bio, "SSL_set_bio"),
    FUNCTION(control, "SSL_ctrl"),
    FUNCTION(connect_state, "SSL_set_connect_state"),
    FUNCTION(set_host, "SSL_set1_host"),
    FUNCTION(verification, "SSL_get0_param"),
    FUNCTION(verify_address, "X509_VERIFY_PARAM_set1_ip_asc"),
    FUNCTION(verify_flags, "X509_VERIFY_PARAM_set_flags"),
    FUNCTION(verify_result, "SSL_get_verify_result"),
    FUNCTION(verify_text, "X509_verify_cert_error_string"),
    FUNCTION(read, "SSL_read_ex"),
    FUNCTION(pending, "SSL_pending"),
    FUNCTION(peek, "SSL_peek_ex"),
    FUNCTION(write, "SSL_write_ex"),
    FUNCTION(shutdown, "SSL_shutdown"),
    FUNCTION(error_of, "SSL_get_error"),
    FUNCTION(bio_index, "BIO_get_new_index"),
    FUNCTION(bio_method_new, "BIO_meth_new"),
    FUNCTION(bio_method_write, "BIO_meth_set_write"),
    FUNCTION(bio_method_read, "BIO_meth_set_read"),
    FUNCTION(bio_method_control, "BIO_meth_set_ctrl"),
    FUNCTION(bio_new, "BIO_new"),
    FUNCTION(bio_set_data, "BIO_set_data"),
    FUNCTION(bio_data, "BIO_get_data"),
    FUNCTION(bio_set_init, "BIO_set_init"),
    FUNCTION(bio_set_flags, "BIO_set_flags"),
    FUNCTION(bio_clear_flags, "BIO_clear_flags"),
#undef FUNCTION
};

static _Atomic(const um_openssl *) table;

static int set_up(um_openssl *openssl, char *reason, size_t room) {
  openssl->version = openssl->version_number();
  if (openssl->version < UM_OPENSSL_VERSION_MIN) {
    snprintf(reason, room, "its version is %#lx", openssl->version);
    return -ELIBACC;
  }
  /* Connections live in threads that the end of the process does not wait for: nothing may be freed under them. */
  if (openssl->init(UM_SSL_INIT_NO_ATEXIT, NULL) == 1)
    return 0;
  snprintf(reason, room, "it cannot be initialized");
  return -ELIBACC;
}

/* The table of the first library that does; NULL with the reason of the first. The library stays open for ever: the
 * threads that used it leave things behind for it to free. */
static um_openssl *open_any(char *reason, size_t room) {
  char another[256];
  for (size_t i = 0; i < sizeof sonames / sizeof sonames[0]; i++) {
    um_openssl *openssl = calloc(1, sizeof *openssl);
    if (!openssl) {
      snprintf(reason, room, "%s", strerror(ENOMEM));
      return NULL;
    }
    char *why = i == 0 ? reason : another;
    size_t why_room = i == 0 ? room : sizeof another;
    if (um_library_open(sonames[i], openssl, wanted, UM_SYMBOL_COUNT(wanted), openssl->where, sizeof openssl->where,
                        why, why_room) &&
        set_up(openssl, why, why_room) == 0)
      return openssl;
    free(openssl);
  }
  return NULL;
}

const um_openssl *um_openssl_get(um_error *error) {
  const um_openssl *known = atomic_load_explicit(&table, memory_order_acquire), *none = NULL;
  if (known)
    return known;
  char reason[256];
  um_openssl *openssl = open_any(reason, sizeof reason);
  if (!openssl) {
    um_error_set(error, ELIBACC, UM_OP_OPEN, 0, 0, "TLS needs OpenSSL, and %s cannot be used: %s; %s", sonames[0],
                 reason, REMEDY);
    return NULL;
  }
  if (atomic_compare_exchange_strong(&table, &none, openssl))
    return openssl;
  free(openssl);
  return none;
}

int64_t um_openssl_find(const char **where, um_error *error) {
  const um_openssl *openssl = um_openssl_get(error);
  if (!openssl)
    return -ELIBACC;
  *where = openssl->where;
  return (int64_t)openssl->version;
}
