/* nbd_tls.c: what a connection wants of TLS, told to OpenSSL, and what OpenSSL says, told to people. */
#define _GNU_SOURCE
#include "nbd_tls.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* With a shared key: suites whose hash is that of the key's, which is SHA-256 where nobody says otherwise. */
#define PSK_CIPHERS "kECDHEPSK+CHACHA20:kDHEPSK+AESGCM:kDHEPSK+CHACHA20:kECDHEPSK+AES:kDHEPSK+AES:!eNULL"
#define PSK_SUITES "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256"
#define AUTHORITIES "ca-cert.pem"
#define REVOKED "ca-crl.pem"
#define CERTIFICATE "client-cert.pem"
#define KEY "client-key.pem"
#define DATA_PSK 0

typedef struct making {
  const um_openssl *openssl;
  const um_nbd_tls_options *options;
  um_ssl_context *context;
  um_nbd_psk psk; /* where the options name a file of keys */
  char *text;
  size_t room;
} making;

static int refuse(making *m, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
static int refuse(making *m, int code, const char *format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(m->text, m->room, format, values);
  va_end(values);
  return -code;
}

static const char *find_remedy(int alert) {
  switch (alert) {
  case 40: /* handshake failure */
    return "it takes none of our ciphers: does it want a shared key (tls-psk-file) where we have certificates, or the "
           "other way round?";
  case 42: /* bad, unsupported, revoked, expired, unknown certificate; unknown authority; access; none given */
  case 43:
  case 44:
  case 45:
  case 46:
  case 48:
  case 49:
  case 116:
    return "it wants a certificate of ours that it knows: " CERTIFICATE " and " KEY
           " in the folder that tls-certificates names";
  case 51:  /* decrypt error: of a binder, which needs the key */
  case 20:  /* bad record: TLS 1.2's way to say so */
  case 115: /* unknown identity */
    return "a shared key must be the same in its file and ours (tls-psk-file), for the same user";
  case 70: /* version */
    return "it has no TLS 1.2 and no later one";
  default:
    return "its log may tell why";
  }
}

int um_nbd_tls_explain(const um_openssl *openssl, char *text, size_t room) {
  unsigned long error = openssl->error_get();
  int reason = (int)(error & UM_SSL_REASON);
  const char *words = error ? openssl->error_reason(error) : NULL;
  if (reason >= UM_SSL_ALERT && reason < UM_SSL_ALERT + 256)
    snprintf(text, room, "the server refused us (%s): %s", words ? words : "alert", find_remedy(reason - UM_SSL_ALERT));
  else
    snprintf(text, room, "TLS failed: %s", words ? words : "no reason is known");
  return reason;
}

/* A file of the options' folder; false: it is not there, or not ours to see. */
static bool find_file(const making *m, const char *name, char *path) {
  snprintf(path, PATH_MAX, "%s/%s", m->options->certificates, name);
  return access(path, F_OK) == 0;
}

static int refuse_file(making *m, const char *path, const char *what) {
  if (access(path, R_OK) < 0)
    return refuse(m, errno, "%s: %s", path, strerror(errno));
  unsigned long error = m->openssl->error_get();
  const char *words = error ? m->openssl->error_reason(error) : NULL;
  return refuse(m, EINVAL, "%s holds no %s that can be used: %s", path, what, words ? words : "no reason is known");
}

/* Keys that are encrypted would have OpenSSL ask on the terminal. */
static int give_no_password(char *buffer, int room, int writing, void *data) {
  (void)buffer, (void)room, (void)writing, (void)data;
  return -1;
}

static int load_folder(making *m) {
  const um_openssl *o = m->openssl;
  char path[PATH_MAX], key[PATH_MAX];
  if (access(m->options->certificates, X_OK) < 0)
    return refuse(m, errno, "tls-certificates=%s: %s", m->options->certificates, strerror(errno));
  bool authorities = find_file(m, AUTHORITIES, path);
  if (authorities && o->context_authorities(m->context, path, NULL) != 1)
    return refuse_file(m, path, "certificate");
  if (find_file(m, REVOKED, path)) {
    if (o->context_authorities(m->context, path, NULL) != 1)
      return refuse_file(m, path, "list of revoked certificates");
    o->verify_flags(o->context_verification(m->context), UM_SSL_CRL_CHECK);
  }
  bool certificate = find_file(m, CERTIFICATE, path);
  if (certificate != find_file(m, KEY, key))
    return refuse(m, EINVAL, "%s is there, but %s is not: both or none", certificate ? path : key,
                  certificate ? key : path);
  if (certificate && o->context_certificate(m->context, path) != 1)
    return refuse_file(m, path, "certificate");
  if (certificate && o->context_key(m->context, key, UM_SSL_FILE_PEM) != 1)
    return refuse_file(m, key, "key without a password, of the certificate beside it,");
  if (!authorities && !certificate)
    return refuse(m, ENOENT, "tls-certificates=%s: neither " AUTHORITIES " nor " CERTIFICATE " is there",
                  m->options->certificates);
  if (!authorities && o->context_default_authorities(m->context) != 1)
    return refuse(m, EINVAL, "the system's authorities cannot be read; tls-certificates=FOLDER names others");
  return 0;
}

static unsigned give_psk(um_ssl *ssl, const char *hint, char *identity, unsigned identity_room, unsigned char *key,
                         unsigned key_room) {
  (void)hint;
  const um_nbd_psk *psk = um_openssl_get(NULL)->data(ssl, DATA_PSK);
  if (!psk || strlen(psk->user) >= identity_room || psk->length > key_room)
    return 0;
  strcpy(identity, psk->user);
  memcpy(key, psk->key, psk->length);
  return psk->length;
}

/* A server that shows a certificate instead of knowing the key fails: there are no authorities to know it by. */
static int set_psk(making *m) {
  const um_openssl *o = m->openssl;
  const char *user = m->options->username;
  int result = um_nbd_psk_read(m->options->psk_file, user, &m->psk, m->text, m->room);
  if (result < 0)
    return result;
  if (o->context_ciphers(m->context, PSK_CIPHERS) != 1 || o->context_suites(m->context, PSK_SUITES) != 1)
    return refuse(m, ELIBACC, "%s has no ciphers for keys that are shared beforehand", o->where);
  o->context_verify(m->context, UM_SSL_VERIFY_PEER, NULL);
  o->context_psk(m->context, give_psk);
  return 0;
}

static int set_certificates(making *m) {
  const um_openssl *o = m->openssl;
  o->context_verify(m->context, m->options->verify ? UM_SSL_VERIFY_PEER : UM_SSL_VERIFY_NONE, NULL);
  o->context_password(m->context, give_no_password);
  if (m->options->certificates)
    return load_folder(m);
  if (o->context_default_authorities(m->context) != 1)
    return refuse(m, EINVAL, "the system's authorities cannot be read; tls-certificates=FOLDER names others");
  return 0;
}

static int make_context(making *m) {
  const um_openssl *o = m->openssl;
  m->context = o->context_new(o->client_method());
  if (!m->context)
    return refuse(m, ENOMEM, "%s", strerror(ENOMEM));
  o->context_options(m->context, UM_SSL_NO_COMPRESSION | UM_SSL_NO_RENEGOTIATION);
  o->context_control(m->context, UM_SSL_SET_MODE, UM_SSL_MODE_AUTO_RETRY, NULL);
  o->context_control(m->context, UM_SSL_SET_CACHE_MODE, 0, NULL);
  if (o->context_control(m->context, UM_SSL_SET_VERSION_MIN, UM_SSL_VERSION_1_2, NULL) != 1)
    return refuse(m, ELIBACC, "%s cannot leave out what is older than TLS 1.2", o->where);
  return m->options->psk_file ? set_psk(m) : set_certificates(m);
}

/* Whom the certificate must name. Addresses are named in a field of their own, and never asked for by name. */
static int set_host(making *m, um_ssl *ssl) {
  const um_openssl *o = m->openssl;
  const char *host = m->options->hostname;
  if (!host || m->options->psk_file)
    return 0;
  bool is_address = o->verify_address(o->verification(ssl), host) == 1;
  bool set = is_address ||
             (o->set_host(ssl, host) == 1 && o->control(ssl, UM_SSL_SET_HOST_NAME, 0, (void *)(uintptr_t)host) == 1);
  o->error_clear();
  return set ? 0 : refuse(m, EINVAL, "%s is no name of a host that a certificate could hold", host);
}

static int explain_failure(making *m, um_ssl *ssl, const um_nbd_transport *outer, int code) {
  const um_openssl *o = m->openssl;
  if (outer->why)
    return refuse(m, -code, "%s", outer->why);
  if (code == -ETIMEDOUT)
    return refuse(m, ETIMEDOUT, "the server did not finish the TLS handshake in time");
  if (code == -ECONNRESET || code == -EPIPE)
    return refuse(m, ECONNRESET, "the server closed the connection in the TLS handshake; its log may tell why%s",
                  m->options->psk_file ? " (a shared key that it does not know?)" : "");
  if (code != -EPROTO)
    return refuse(m, -code, "%s in the TLS handshake", strerror(-code));
  long verified = o->verify_result(ssl);
  if (verified == UM_SSL_VERIFY_OK || !m->options->verify)
    return um_nbd_tls_explain(o, m->text, m->room) >= UM_SSL_ALERT ? -EACCES : -EPROTO;
  const char *words = o->verify_text(verified), *host = m->options->hostname;
  if (m->options->psk_file)
    return refuse(m, EKEYREJECTED, "the server shows a certificate instead of knowing the shared key of user %s",
                  m->psk.user);
  if (verified == UM_SSL_VERIFY_HOST_NAME || verified == UM_SSL_VERIFY_ADDRESS)
    return refuse(m, EKEYREJECTED,
                  "the server's certificate is not of %s (%s): connect by a name that it holds, or tell whom it must "
                  "name with tls-hostname=NAME",
                  host, words);
  if (verified == UM_SSL_VERIFY_EXPIRED || verified == UM_SSL_VERIFY_NOT_YET || verified == UM_SSL_VERIFY_REVOKED)
    return refuse(m, EKEYREJECTED, "the server's certificate is not valid: %s; it needs another%s", words,
                  verified == UM_SSL_VERIFY_REVOKED ? "" : ", or a clock is wrong");
  return refuse(
      m, EKEYREJECTED,
      "the server's certificate cannot be verified: %s; put the certificate of its authority into " AUTHORITIES
      " of the folder that tls-certificates names",
      words);
}

static int connect_over(making *m, um_nbd_transport **transport, uint64_t deadline_ns) {
  const um_openssl *o = m->openssl;
  um_ssl *ssl = o->ssl_new(m->context);
  if (!ssl)
    return refuse(m, ENOMEM, "%s", strerror(ENOMEM));
  int result = set_host(m, ssl);
  if (result < 0) {
    o->ssl_free(ssl);
    return result;
  }
  o->set_data(ssl, DATA_PSK, m->options->psk_file ? &m->psk : NULL);
  o->connect_state(ssl);
  um_nbd_transport *outer = um_nbd_tls_stream_make(o, ssl, *transport);
  if (!outer)
    return refuse(m, ENOMEM, "%s", strerror(ENOMEM));
  result = um_nbd_tls_stream_handshake(outer, deadline_ns);
  if (result == 0) {
    o->set_data(ssl, DATA_PSK, NULL);
    *transport = outer;
    return 0;
  }
  result = explain_failure(m, ssl, outer, result);
  um_nbd_tls_stream_discard(outer);
  return result;
}

int um_nbd_tls_start(um_nbd_transport **transport, const um_nbd_tls_options *options, uint64_t deadline_ns, char *text,
                     size_t room) {
  um_error error;
  making m = {.openssl = um_openssl_get(&error), .options = options, .text = text, .room = room};
  if (!m.openssl)
    return refuse(&m, error.code, "%s", error.text);
  m.openssl->error_clear();
  int result = make_context(&m);
  if (result == 0)
    result = connect_over(&m, transport, deadline_ns);
  m.openssl->context_free(m.context); /* the connection keeps what it needs of it */
  explicit_bzero(&m.psk, sizeof m.psk);
  m.openssl->error_clear();
  return result;
}
