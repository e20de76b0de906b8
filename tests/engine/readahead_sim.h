/* readahead_sim.h: a region and its engine, simulated for the stream detector. It keeps every page's state, does what
 * the engine would do with each answer (reads what is absent, maps what is in standby), and evicts the oldest pages
 * when memory is short. It checks what must hold of every answer. */
#ifndef UM_READAHEAD_SIM_H
#define UM_READAHEAD_SIM_H

#include "check.h"
#include "readahead.h"

enum { ABSENT, STANDBY, MAPPED };

typedef struct sim {
  um_readahead *ra;
  um_readahead_limits limits;
  uint8_t *state;
  bool *protected;
  bool *used;      /* touched since it was read */
  uint64_t *queue; /* pages in the order they were read; a ring of `memory` entries */
  uint64_t memory, head, resident;
  um_run_plan late[64];            /* plans not yet carried out, oldest first */
  unsigned late_count, late_after; /* a run is carried out after so many touches; 0: at once */
  bool drop_ahead;                 /* the engine has no memory to read ahead: it ignores all but plan[0] */
  bool no_chunks;                  /* nor any to read a whole run at once: plan[0] is read in part */
  bool report;                     /* waste is reported */
  uint64_t touches, misses, triggers, protects, calls, pages, repeated, unused, full_runs;
  um_run_plan last[UM_READAHEAD_PLANS];
  unsigned last_count;
} sim;

uint64_t sim_random_below(uint64_t n);
double sim_random_real(void);
um_readahead_limits sim_pages_of_64_kib(uint64_t page_count);
um_readahead_limits sim_pages_of_4_kib(uint64_t page_count);
um_readahead *sim_make(const um_readahead_limits *limits);
void sim_open(sim *s, um_readahead_limits limits, uint64_t memory);
void sim_close(sim *s);
void sim_read(sim *s, uint64_t first, uint32_t count, int state, bool writable);
void sim_touch(sim *s, uint32_t thread_id, uint64_t page, bool write);
void sim_read_pages(sim *s, uint32_t thread_id, uint64_t from, uint64_t count, int64_t stride);
uint64_t sim_unused(const sim *s);
void sim_report(const char *what, const sim *s);

#endif
