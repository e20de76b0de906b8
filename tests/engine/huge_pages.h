/* huge_pages.h: what of this process's memory is huge pages. */
#ifndef UM_HUGE_PAGES_H
#define UM_HUGE_PAGES_H

#include <stdbool.h>
#include <stdint.h>

uint64_t huge_bytes(uintptr_t from, uintptr_t to); /* in the mappings between two addresses */
bool has_huge_pages(uint64_t bytes); /* this kernel gives empty tables back, and this machine has so many just now */

#endif
