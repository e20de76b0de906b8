/* error.c: filling a failure record. */
#include "store.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Texts are cut to the record; a cut inside a UTF-8 sequence would leave bytes nobody can decode. */
static void trim_sequence(char *text, size_t length) {
  size_t start = length;
  while (start > 0 && ((unsigned char)text[start - 1] & 0xC0) == 0x80)
    start--;
  if (start == 0)
    return;
  unsigned char lead = (unsigned char)text[start - 1];
  size_t want = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
  if (length - (start - 1) < want)
    text[start - 1] = '\0';
}

int um_error_set(um_error *error, int code, int op, uint64_t offset, uint64_t length, const char *format, ...) {
  if (!error)
    return -code;
  error->code = code;
  error->op = op;
  error->offset = offset;
  error->length = length;
  error->thread_id = 0;
  error->delivered = 0;
  va_list arguments;
  va_start(arguments, format);
  int wanted = vsnprintf(error->text, sizeof(error->text), format, arguments);
  va_end(arguments);
  if (wanted < 0)
    error->text[0] = '\0';
  else if ((size_t)wanted >= sizeof(error->text))
    trim_sequence(error->text, sizeof(error->text) - 1);
  return -code;
}
