/* huge_pages.c: see huge_pages.h. */
#define _GNU_SOURCE
#include "huge_pages.h"

#include "check.h"
#include "internal.h"

#include <stdio.h>
#include <sys/mman.h>
#include <sys/utsname.h>

uint64_t huge_bytes(uintptr_t from, uintptr_t to) {
  FILE *file = fopen("/proc/self/smaps", "re");
  CHECK(file);
  char line[512];
  uint64_t start = 0, end = 0, kib, sum = 0;
  while (fgets(line, sizeof line, file)) {
    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &start, &end) == 2)
      continue;
    if (sscanf(line, "AnonHugePages: %" SCNu64, &kib) == 1 && start < to && end > from)
      sum += kib << 10;
  }
  fclose(file);
  return sum;
}

bool has_huge_pages(uint64_t bytes) {
  struct utsname name;
  int major = 0, minor = 0;
  uname(&name);
  sscanf(name.release, "%d.%d", &major, &minor);
  if (major < 6 || (major == 6 && minor < 14))
    return false;
  char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED);
  madvise(memory, bytes, MADV_HUGEPAGE);
  for (uint64_t i = 0; i < bytes; i += UM_CHUNK)
    memory[i] = 1;
  uint64_t huge = huge_bytes((uintptr_t)memory, (uintptr_t)memory + bytes);
  munmap(memory, bytes);
  return huge >= bytes - 4 * UM_CHUNK;
}
