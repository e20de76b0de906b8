/* library.c: see library.h. */
#define _GNU_SOURCE
#include "library.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

typedef void (*function)(void);

typedef struct opened {
  void *library;
  const um_symbol *symbols;
} opened;

int um_library_fill(void *table, const um_symbol *symbols, uint32_t count, void *(*find)(void *context, uint32_t index),
                    void *context, char *reason, size_t room) {
  for (uint32_t i = 0; i < count; i++) {
    void *address = find(context, i);
    if (!address && !symbols[i].optional) {
      snprintf(reason, room, "it has no %s", symbols[i].name);
      return -ELIBACC;
    }
    memcpy((char *)table + symbols[i].offset, &address, sizeof(function));
  }
  return 0;
}

static void *find_symbol(void *context, uint32_t index) {
  const opened *o = context;
  return dlsym(o->library, o->symbols[index].name); /* in what it depends on, too */
}

void *um_library_open(const char *soname, void *table, const um_symbol *symbols, uint32_t count, char *where,
                      size_t where_room, char *reason, size_t room) {
  opened o = {dlopen(soname, RTLD_NOW | RTLD_LOCAL), symbols};
  if (!o.library) {
    const char *said = dlerror();
    snprintf(reason, room, "%s", said ? said : "not found");
    return NULL;
  }
  if (um_library_fill(table, symbols, count, find_symbol, &o, reason, room) < 0) {
    dlclose(o.library);
    return NULL;
  }
  Dl_info found;
  bool named = dladdr(find_symbol(&o, 0), &found) != 0 && found.dli_fname;
  snprintf(where, where_room, "%s", named ? found.dli_fname : soname);
  return o.library;
}
