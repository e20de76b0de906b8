/* nbd_tls.h: TLS over a stream.
 *
 * (First version by the core, to build against; its owner changes it.) */
#ifndef UM_NBD_TLS_H
#define UM_NBD_TLS_H

#include "nbd_transport.h"

/* Constant, owned by the target with all strings. */
typedef struct um_nbd_tls_options {
  char *certificates; /* folder with ca-cert.pem, and maybe client-cert.pem and client-key.pem; NULL: the system's */
  char *psk_file;     /* lines of user:key; NULL: certificates */
  char *username;     /* for psk_file; NULL: the user's */
  char *hostname;     /* that the certificate must be of; NULL: not checked */
  bool verify;        /* the certificate */
} um_nbd_tls_options;

/* The TLS handshake on a stream whose STARTTLS was acknowledged. 0: *transport is replaced by one that owns it; or
 * -errno with words in `text`, and *transport is as it was. */
int um_nbd_tls_start(um_nbd_transport **transport, const um_nbd_tls_options *options, uint64_t deadline_ns, char *text,
                     size_t room);

#endif
