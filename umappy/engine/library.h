/* library.h: shared libraries of the system as tables of function pointers, so that building needs none of their
 * headers and an installation none of their packages. */
#ifndef UM_LIBRARY_H
#define UM_LIBRARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct um_symbol {
  const char *name;
  size_t offset; /* of its pointer in the table */
  bool optional; /* the pointer is NULL where the library has none */
} um_symbol;

#define UM_SYMBOL_COUNT(symbols) ((uint32_t)(sizeof(symbols) / sizeof((symbols)[0])))

/* `find` returns the address of a symbol, or NULL. 0, or -ELIBACC with the reason. */
int um_library_fill(void *table, const um_symbol *symbols, uint32_t count, void *(*find)(void *context, uint32_t index),
                    void *context, char *reason, size_t room);

/* Opens the library, fills the table and writes the library's file to `where` (may be cut). Returns the library, for
 * dlclose; NULL with the reason. */
void *um_library_open(const char *soname, void *table, const um_symbol *symbols, uint32_t count, char *where,
                      size_t where_room, char *reason, size_t room);

#endif
