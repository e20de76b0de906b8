/* trace.h: a file of the faults of a pager; docs/trace.md describes it, umappy/trace.py reads it. */
#ifndef UM_TRACE_H
#define UM_TRACE_H

#include <stdint.h>

enum um_trace_kind {
  UM_TRACE_READ = 0,    /* a read of an absent page */
  UM_TRACE_WRITE = 1,   /* a write to an absent page */
  UM_TRACE_REFAULT = 2, /* a touch of a page in standby */
  UM_TRACE_PROTECT = 3, /* the first write to a clean page or block */
};

#define UM_TRACE_REGIONS_MAX (1u << 20)

typedef struct um_trace um_trace;

uint64_t um_trace_memory(void); /* bytes a trace takes */
int um_trace_open(const char *path, um_trace **trace);

/* Before the first fault of the region; waits for room, a second at most. */
int um_trace_region(um_trace *trace, uint32_t region, uint64_t page_size, uint64_t size);

/* From any thread; never waits, makes no system call but for the time. Faults that find no room are counted. */
void um_trace_fault(um_trace *trace, uint32_t region, uint64_t page, uint32_t thread_id, enum um_trace_kind kind);

/* Writes what is left. 0, -ETIMEDOUT (the disk hangs: some memory stays taken), or what first went wrong in writing. No
 * thread may be inside um_trace_fault any more. In a forked child it only lets go. */
int um_trace_close(um_trace *trace);

#endif
