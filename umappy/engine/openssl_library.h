/* openssl_library.h: OpenSSL as a table of function pointers (library.h).
 *
 * The table is filled once a process, at first use, by dlopen of libssl 3, or 1.1 where there is none, and constant
 * from then on. Where Python's own ssl module uses the same file it is the same library. Any thread may call; one
 * `um_ssl` by one thread at a time. Types and numbers here are the library's binary interface. */
#ifndef UM_OPENSSL_LIBRARY_H
#define UM_OPENSSL_LIBRARY_H

#include "umappy.h"

#include <stddef.h>

#define UM_OPENSSL_VERSION_MIN 0x10101000ul /* 1.1.1: the first with TLS 1.3 */

typedef struct um_ssl um_ssl;
typedef struct um_ssl_context um_ssl_context;
typedef struct um_ssl_method um_ssl_method;
typedef struct um_ssl_verify um_ssl_verify;
typedef struct um_bio um_bio; /* where a `um_ssl` reads and writes its records */
typedef struct um_bio_method um_bio_method;

enum { /* of context_control and control */
       UM_SSL_SET_MODE = 33,
       UM_SSL_SET_CACHE_MODE = 44,
       UM_SSL_SET_HOST_NAME = 55,
       UM_SSL_SET_VERSION_MIN = 123,
};
#define UM_SSL_MODE_AUTO_RETRY 4l
#define UM_SSL_VERSION_1_2 0x0303l
#define UM_SSL_NO_COMPRESSION (UINT64_C(1) << 17)
#define UM_SSL_NO_RENEGOTIATION (UINT64_C(1) << 30)
#define UM_SSL_VERIFY_NONE 0
#define UM_SSL_VERIFY_PEER 1
#define UM_SSL_FILE_PEM 1
#define UM_SSL_CRL_CHECK 4ul
#define UM_SSL_INIT_NO_ATEXIT UINT64_C(0x00080000)
enum { /* of error_of */
       UM_SSL_ERROR_NONE = 0,
       UM_SSL_ERROR_SSL = 1,
       UM_SSL_ERROR_WANT_READ = 2,
       UM_SSL_ERROR_SYSCALL = 5,
       UM_SSL_ERROR_ZERO_RETURN = 6,
};
enum { /* reasons of errors: `& UM_SSL_REASON` */
       UM_SSL_REASON = 0xFFF,
       UM_SSL_UNEXPECTED_EOF = 294,
       UM_SSL_ALERT = 1000, /* and the number of the alert that the other end sent */
};
enum { /* of the other end's certificate */
       UM_SSL_VERIFY_OK = 0,
       UM_SSL_VERIFY_NOT_YET = 9,
       UM_SSL_VERIFY_EXPIRED = 10,
       UM_SSL_VERIFY_REVOKED = 23,
       UM_SSL_VERIFY_HOST_NAME = 62,
       UM_SSL_VERIFY_ADDRESS = 64,
};
enum { UM_BIO_PUSH = 6, UM_BIO_POP = 7, UM_BIO_FLUSH = 11 }; /* what control is asked */
#define UM_BIO_READ_LATER 0x09                               /* flags: there is nothing to read yet, */
#define UM_BIO_WRITE_LATER 0x0A                              /* nothing can be written, */
#define UM_BIO_LATER 0x0F                                    /* any of these */
#define UM_BIO_SOURCE_SINK 0x0400

/* Most return 1, or else left an error for this thread. */
typedef struct um_openssl {
  unsigned long (*version_number)(void);
  int (*init)(uint64_t options, const void *settings);
  unsigned long (*error_get)(void); /* the oldest of this thread, and forgets it; 0: none */
  void (*error_clear)(void);
  void (*error_text)(unsigned long error, char *text, size_t room);
  const char *(*error_reason)(unsigned long error); /* or NULL */

  const um_ssl_method *(*client_method)(void);
  um_ssl_context *(*context_new)(const um_ssl_method *method); /* NULL */
  void (*context_free)(um_ssl_context *context);
  long (*context_control)(um_ssl_context *context, int what, long number, void *pointer);
  uint64_t (*context_options)(um_ssl_context *context, uint64_t options);
  int (*context_ciphers)(um_ssl_context *context, const char *list); /* up to TLS 1.2 */
  int (*context_suites)(um_ssl_context *context, const char *list);  /* of TLS 1.3 */
  void (*context_verify)(um_ssl_context *context, int mode, void *call);
  int (*context_default_authorities)(um_ssl_context *context);
  int (*context_authorities)(um_ssl_context *context, const char *file, const char *folder);
  um_ssl_verify *(*context_verification)(um_ssl_context *context);
  int (*context_certificate)(um_ssl_context *context, const char *file);
  int (*context_key)(um_ssl_context *context, const char *file, int type);
  void (*context_password)(um_ssl_context *context, int (*call)(char *, int, int, void *));
  void (*context_psk)(um_ssl_context *context,
                      unsigned (*call)(um_ssl *ssl, const char *hint, char *identity, unsigned identity_room,
                                       unsigned char *key, unsigned key_room));

  um_ssl *(*ssl_new)(um_ssl_context *context); /* NULL; keeps the context alive */
  void (*ssl_free)(um_ssl *ssl);               /* and its um_bio */
  int (*set_data)(um_ssl *ssl, int index, void *data);
  void *(*data)(const um_ssl *ssl, int index);
  void (*set_bio)(um_ssl *ssl, um_bio *in, um_bio *out); /* takes them over */
  long (*control)(um_ssl *ssl, int what, long number, void *pointer);
  void (*connect_state)(um_ssl *ssl);
  int (*set_host)(um_ssl *ssl, const char *name);
  um_ssl_verify *(*verification)(um_ssl *ssl);
  int (*verify_address)(um_ssl_verify *verify, const char *address); /* 0: it is none */
  int (*verify_flags)(um_ssl_verify *verify, unsigned long flags);
  long (*verify_result)(const um_ssl *ssl);
  const char *(*verify_text)(long result);
  int (*handshake)(um_ssl *ssl);
  int (*read)(um_ssl *ssl, void *bytes, size_t room, size_t *count);
  int (*pending)(const um_ssl *ssl); /* bytes that are decrypted and were not read */
  int (*peek)(um_ssl *ssl, void *bytes, size_t room, size_t *count);
  int (*write)(um_ssl *ssl, const void *bytes, size_t length, size_t *count);
  int (*shutdown)(um_ssl *ssl);
  int (*error_of)(const um_ssl *ssl, int result); /* UM_SSL_ERROR_... of the last call, same thread */

  int (*bio_index)(void);
  um_bio_method *(*bio_method_new)(int type, const char *name);
  int (*bio_method_write)(um_bio_method *method, int (*call)(um_bio *bio, const char *bytes, int length));
  int (*bio_method_read)(um_bio_method *method, int (*call)(um_bio *bio, char *bytes, int room));
  int (*bio_method_control)(um_bio_method *method, long (*call)(um_bio *bio, int what, long number, void *pointer));
  um_bio *(*bio_new)(const um_bio_method *method);
  void (*bio_set_data)(um_bio *bio, void *data);
  void *(*bio_data)(um_bio *bio);
  void (*bio_set_init)(um_bio *bio, int init);
  void (*bio_set_flags)(um_bio *bio, int flags);
  void (*bio_clear_flags)(um_bio *bio, int flags);

  unsigned long version; /* version_number() */
  char where[256];       /* the file it came from, may be cut */
} um_openssl;

/* The table, or NULL with `error` filled (ELIBACC; the remedy in its text). May open files: call it where a store is
 * opened. */
const um_openssl *um_openssl_get(um_error *error);

#endif
