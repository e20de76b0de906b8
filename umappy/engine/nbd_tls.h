/* nbd_tls.h: TLS 1.2 or 1.3 over a stream.
 *
 * A context of OpenSSL is made for each connection, so that files which were replaced meanwhile are read again. A
 * stream's records are made and taken apart in memory, under a lock of its own that no wait is under: OpenSSL's objects
 * are one thread's at a time, while a stream has a thread that sends and one that receives. */
#ifndef UM_NBD_TLS_H
#define UM_NBD_TLS_H

#include "nbd_transport.h"
#include "openssl_library.h"

/* Constant, owned by the target with all strings. */
typedef struct um_nbd_tls_options {
  char *certificates; /* folder with ca-cert.pem, and where they are wanted client-cert.pem and client-key.pem, and
                         ca-crl.pem; NULL: the system's authorities */
  char *psk_file;     /* lines of user:key in hexadecimal; NULL: certificates */
  char *username;     /* whose key in psk_file; NULL without one */
  char *hostname;     /* that the certificate must be of, also an address; NULL: not checked */
  bool verify;        /* the certificate */
} um_nbd_tls_options;

/* The TLS handshake on a stream whose STARTTLS was acknowledged. 0: *transport is replaced by one that owns it; or
 * -errno with words in `text`, and *transport is as it was. -EINVAL: the options cannot be right. */
int um_nbd_tls_start(um_nbd_transport **transport, const um_nbd_tls_options *options, uint64_t deadline_ns, char *text,
                     size_t room);

/* nbd_tls_psk.c */
#define UM_NBD_PSK_MAX 256u /* bytes of a key, and of a user's name */
typedef struct um_nbd_psk {
  uint32_t length; /* of the key */
  uint8_t key[UM_NBD_PSK_MAX];
  char user[UM_NBD_PSK_MAX]; /* ends with a zero */
} um_nbd_psk;
/* The key of the user in the file; -errno with words in `text`. */
int um_nbd_psk_read(const char *path, const char *user, um_nbd_psk *psk, char *text, size_t room);

/* nbd_tls_stream.c */
/* Over `inner`, which it owns once the handshake succeeded; takes `ssl` over in any case. NULL: no memory. */
um_nbd_transport *um_nbd_tls_stream_make(const um_openssl *openssl, um_ssl *ssl, um_nbd_transport *inner);
int um_nbd_tls_stream_handshake(um_nbd_transport *transport, uint64_t deadline_ns); /* 0, -errno */
void um_nbd_tls_stream_discard(um_nbd_transport *transport);                        /* leaves `inner` alone */
/* What the error at the head of this thread's queue means, with the remedy; its reason (0: there is none). */
int um_nbd_tls_explain(const um_openssl *openssl, char *text, size_t room);

#endif
