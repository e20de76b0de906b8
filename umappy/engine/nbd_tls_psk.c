/* nbd_tls_psk.c: files of keys that were shared beforehand, as psktool writes them. */
#define _GNU_SOURCE
#include "nbd_tls.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LINE_MAX_BYTES (3 * UM_NBD_PSK_MAX + 8) /* of a user, a colon and the digits of a key */

static int read_digit(char c) {
  if (c >= '0' && c <= '9')
    return c - '0';
  c |= 0x20;
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Bytes that the digits mean; 0: they are no key. */
static uint32_t read_key(const char *digits, uint8_t *key) {
  size_t length = strlen(digits);
  if (length % 2 != 0 || length / 2 > UM_NBD_PSK_MAX)
    return 0;
  for (size_t i = 0; i < length; i += 2) {
    int high = read_digit(digits[i]), low = read_digit(digits[i + 1]);
    if (high < 0 || low < 0)
      return 0;
    key[i / 2] = (uint8_t)(high << 4 | low);
  }
  return (uint32_t)(length / 2);
}

static int find_user(FILE *file, const char *path, um_nbd_psk *psk, char *text, size_t room) {
  char line[LINE_MAX_BYTES];
  size_t length = strlen(psk->user);
  int result = -ENOKEY;
  snprintf(text, room, "%s has no key of user %s: add a line %s:KEY, or name another user (user@host in the URI)", path,
           psk->user, psk->user);
  while (result == -ENOKEY && fgets(line, sizeof line, file)) {
    if (strncmp(line, psk->user, length) != 0 || line[length] != ':')
      continue;
    line[strcspn(line, "\r\n")] = 0;
    psk->length = read_key(line + length + 1, psk->key);
    result = psk->length ? 0 : -EINVAL;
  }
  if (ferror(file)) {
    result = -errno;
    snprintf(text, room, "%s: %s", path, strerror(-result));
  }
  if (result == -EINVAL)
    snprintf(text, room, "%s: the key of user %s is not of hexadecimal digits, two for each of at most %u bytes", path,
             psk->user, UM_NBD_PSK_MAX);
  explicit_bzero(line, sizeof line);
  return result;
}

int um_nbd_psk_read(const char *path, const char *user, um_nbd_psk *psk, char *text, size_t room) {
  if (strlen(user) >= sizeof psk->user) {
    snprintf(text, room, "the user's name has %zu bytes: wants less than %zu", strlen(user), sizeof psk->user);
    return -EINVAL;
  }
  strcpy(psk->user, user);
  FILE *file = fopen(path, "re");
  if (!file) {
    int code = -errno;
    snprintf(text, room, "%s: %s", path, strerror(-code));
    return code;
  }
  int result = find_user(file, path, psk, text, room);
  fclose(file);
  return result;
}
