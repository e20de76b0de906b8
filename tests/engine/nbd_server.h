/* nbd_server.h: a server in this process, on a socket in a folder of its own, that forgets, holds and refuses as a test
 * says. It has an image, which clients see, and what of it survives a crash, which FLUSH brings up to date. */
#ifndef NBD_SERVER_H
#define NBD_SERVER_H

#include "store.h"

typedef struct nbd_server nbd_server;

nbd_server *nbd_server_start(uint64_t size, uint16_t flags);
void nbd_server_stop(nbd_server *server);
/* A writable store of it, over that many connections. */
um_store *nbd_server_open(nbd_server *server, uint32_t connections, double timeout_seconds, double retry_seconds);
void nbd_server_crash(nbd_server *server); /* closes all connections and forgets what no FLUSH covered */
/* Requests of this UM_NBD_CMD_... wait, before they are done, until `release`. What a crash finds waiting is not done.
 */
void nbd_server_hold(nbd_server *server, uint16_t type);
void nbd_server_wait_held(nbd_server *server); /* until one waits */
void nbd_server_release(nbd_server *server);
/* The next request of this type is answered with the error number, and everything not flushed is forgotten. */
void nbd_server_refuse(nbd_server *server, uint16_t type, uint32_t code);
uint8_t nbd_server_byte(nbd_server *server, uint64_t offset); /* what clients see */
uint8_t nbd_server_durable(nbd_server *server, uint64_t offset);
uint32_t nbd_server_connections(nbd_server *server); /* that were made so far */

#endif
