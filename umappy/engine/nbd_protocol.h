/* nbd_protocol.h: the numbers of the NBD protocol that this client uses, and its byte order. */
#ifndef UM_NBD_PROTOCOL_H
#define UM_NBD_PROTOCOL_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define UM_NBD_MAGIC UINT64_C(0x4e42444d41474943)        /* "NBDMAGIC" */
#define UM_NBD_OPTION_MAGIC UINT64_C(0x49484156454f5054) /* "IHAVEOPT": also of the fixed newstyle greeting */
#define UM_NBD_OPTION_REPLY_MAGIC UINT64_C(0x0003e889045565a9)

#define UM_NBD_GREETING_FIXED_NEWSTYLE 1u /* handshake flags of the server, and of the client */
#define UM_NBD_GREETING_NO_ZEROES 2u

#define UM_NBD_OPT_EXPORT_NAME 1u
#define UM_NBD_OPT_ABORT 2u
#define UM_NBD_OPT_STARTTLS 5u
#define UM_NBD_OPT_GO 7u
#define UM_NBD_OPT_STRUCTURED_REPLY 8u

#define UM_NBD_REP_ACK 1u
#define UM_NBD_REP_INFO 3u
#define UM_NBD_REP_ERROR 0x80000000u /* the bit of all errors */
#define UM_NBD_REP_ERR_UNSUP 0x80000001u
#define UM_NBD_REP_ERR_POLICY 0x80000002u
#define UM_NBD_REP_ERR_INVALID 0x80000003u
#define UM_NBD_REP_ERR_PLATFORM 0x80000004u
#define UM_NBD_REP_ERR_TLS_REQD 0x80000005u
#define UM_NBD_REP_ERR_UNKNOWN 0x80000006u
#define UM_NBD_REP_ERR_SHUTDOWN 0x80000007u
#define UM_NBD_REP_ERR_BLOCK_SIZE_REQD 0x80000008u
#define UM_NBD_REP_ERR_TOO_BIG 0x80000009u

#define UM_NBD_INFO_EXPORT 0u
#define UM_NBD_INFO_BLOCK_SIZE 3u

#define UM_NBD_FLAG_HAS_FLAGS (1u << 0) /* transmission flags of an export */
#define UM_NBD_FLAG_READ_ONLY (1u << 1)
#define UM_NBD_FLAG_SEND_FLUSH (1u << 2)
#define UM_NBD_FLAG_SEND_FUA (1u << 3)
#define UM_NBD_FLAG_SEND_TRIM (1u << 5)
#define UM_NBD_FLAG_SEND_WRITE_ZEROES (1u << 6)
#define UM_NBD_FLAG_CAN_MULTI_CONN (1u << 8)

#define UM_NBD_CMD_READ 0u
#define UM_NBD_CMD_WRITE 1u
#define UM_NBD_CMD_DISC 2u
#define UM_NBD_CMD_FLUSH 3u
#define UM_NBD_CMD_TRIM 4u
#define UM_NBD_CMD_WRITE_ZEROES 6u
#define UM_NBD_CMD_FLAG_FUA (1u << 0)
#define UM_NBD_CMD_FLAG_NO_HOLE (1u << 1)

#define UM_NBD_REQUEST_MAGIC 0x25609513u
#define UM_NBD_SIMPLE_MAGIC 0x67446698u
#define UM_NBD_CHUNK_MAGIC 0x668e33efu
#define UM_NBD_REQUEST_SIZE 28u /* bytes of a request without its data */
#define UM_NBD_SIMPLE_SIZE 16u  /* of a simple reply */
#define UM_NBD_CHUNK_SIZE 20u   /* of the head of a chunk */

#define UM_NBD_CHUNK_DONE 1u /* flag: the last chunk of the reply */
#define UM_NBD_CHUNK_NONE 0u
#define UM_NBD_CHUNK_DATA 1u
#define UM_NBD_CHUNK_HOLE 2u
#define UM_NBD_CHUNK_ERROR 0x8000u /* the bit of all errors */
#define UM_NBD_CHUNK_ERROR_PLAIN 0x8001u
#define UM_NBD_CHUNK_ERROR_OFFSET 0x8002u

#define UM_NBD_STRING_MAX 4096u       /* bytes of any string of the protocol */
#define UM_NBD_LENGTH_MAX (32u << 20) /* of a request, where the server names no maximum */

static inline void um_nbd_put16(void *at, uint16_t value) {
  value = htobe16(value);
  memcpy(at, &value, sizeof value);
}
static inline void um_nbd_put32(void *at, uint32_t value) {
  value = htobe32(value);
  memcpy(at, &value, sizeof value);
}
static inline void um_nbd_put64(void *at, uint64_t value) {
  value = htobe64(value);
  memcpy(at, &value, sizeof value);
}
static inline uint16_t um_nbd_get16(const void *at) {
  uint16_t value;
  memcpy(&value, at, sizeof value);
  return be16toh(value);
}
static inline uint32_t um_nbd_get32(const void *at) {
  uint32_t value;
  memcpy(&value, at, sizeof value);
  return be32toh(value);
}
static inline uint64_t um_nbd_get64(const void *at) {
  uint64_t value;
  memcpy(&value, at, sizeof value);
  return be64toh(value);
}

#endif
