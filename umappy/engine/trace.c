/* trace.c: records faults, in a ring in memory, and writes them to a file by a thread of its own.
 *
 * Fillers append without a lock and never wait: each slot has a turn, which says whether it is free for this round (a
 * bounded queue after Dmitry Vyukov), and when the ring is full the fault is counted as lost. The writer looks every
 * ten milliseconds, codes what is there and writes it. A forked child has neither the thread nor the ring and writes
 * nothing; a process that ends without um_trace_close gets its end record from atexit. */
#define _GNU_SOURCE
#include "trace.h"

#include "internal.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#define SLOTS 65536u /* a power of two; 6 million faults a second fit between two looks of the writer */
#define BUFFER (64u << 10)
#define RECORD_MAX 64u    /* bytes a coded record can take, and more */
#define LOOK_NS 10000000u /* between two looks of the writer */
#define CLOSE_SECONDS 10
#define STACK (256u << 10)

#define VERSION 1u
#define WITH_TIME 1u
#define KIND_REGION 4u /* in the ring only: `page` is the region's size, `time_us` its page size */
#define TAG_REGION 0x04u
#define TAG_THREAD 0x08u
#define TAG_NEXT_PAGE 0x10u
#define TAG_DEFINE 0x80u
#define TAG_LOST 0x81u
#define TAG_END 0x82u

typedef struct slot {
  _Atomic uint64_t turn; /* position: free for the entry of that number; position + 1: holds it */
  uint64_t page, time_us;
  uint32_t region, thread_id, kind;
} slot;

struct um_trace {
  slot *slots;           /* constant */
  int fd;                /* constant until the end */
  uint32_t generation;   /* constant: of the process that opened it */
  uint64_t start_ns;     /* constant */
  _Atomic uint64_t tail; /* entries ever taken by appenders */
  _Atomic uint64_t lost; /* faults that found no room */
  _Atomic bool stop;     /* the writer ends when the ring is empty */
  pthread_t thread;
  um_trace *next;        /* registry */
  uint64_t head;         /* the writer's alone, and so all below */
  uint64_t faults, told; /* written; of those lost, told of */
  uint64_t last_time_us, *last_pages, pages_capacity;
  uint32_t last_region, last_thread;
  int error;       /* the first that went wrong, negative */
  uint32_t length; /* bytes in the buffer */
  uint8_t buffer[BUFFER];
};

static _Atomic uint32_t generation;
static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static um_trace *registry; /* open ones of this process */

static bool is_forked(const um_trace *t) {
  return t->generation != atomic_load_explicit(&generation, memory_order_relaxed);
}

static void write_out(um_trace *t) {
  for (uint32_t done = 0; done < t->length && t->error == 0;) {
    ssize_t n = write(t->fd, t->buffer + done, t->length - done);
    if (n > 0)
      done += (uint32_t)n;
    else if (n == 0 || errno != EINTR)
      t->error = n == 0 ? -EIO : -errno;
  }
  t->length = 0;
}

static void put_byte(um_trace *t, uint8_t byte) {
  t->buffer[t->length++] = byte;
}

static void put_number(um_trace *t, uint64_t number) {
  for (; number >= 0x80; number >>= 7)
    put_byte(t, (uint8_t)(number | 0x80));
  put_byte(t, (uint8_t)number);
}

static void put_fixed(um_trace *t, uint64_t number, uint32_t bytes) {
  for (uint32_t i = 0; i < bytes; i++)
    put_byte(t, (uint8_t)(number >> 8 * i));
}

static void put_header(um_trace *t) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  memcpy(t->buffer, "umtrace\n", 8);
  t->length = 8;
  put_fixed(t, VERSION, 2);
  put_fixed(t, WITH_TIME, 2);
  put_fixed(t, 0, 4);
  put_fixed(t, (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u, 8);
}

static bool make_room_for(um_trace *t, uint32_t region) {
  if (region < t->pages_capacity)
    return true;
  uint64_t capacity = um_max(2 * t->pages_capacity, region + 64u);
  uint64_t *pages = realloc(t->last_pages, capacity * sizeof *pages);
  if (!pages) {
    t->error = t->error ? t->error : -ENOMEM;
    return false;
  }
  memset(pages + t->pages_capacity, 0, (capacity - t->pages_capacity) * sizeof *pages);
  t->last_pages = pages;
  t->pages_capacity = capacity;
  return true;
}

static void put_region(um_trace *t, const slot *s) {
  put_byte(t, TAG_DEFINE);
  put_number(t, s->region);
  put_number(t, s->time_us);
  put_number(t, s->page);
  if (make_room_for(t, s->region))
    t->last_pages[s->region] = 0;
}

static void put_fault(um_trace *t, const slot *s) {
  if (!make_room_for(t, s->region))
    return;
  uint64_t last = t->last_pages[s->region];
  bool region = s->region != t->last_region, thread = s->thread_id != t->last_thread, next = s->page == last + 1;
  put_byte(t, (uint8_t)(s->kind | (region ? TAG_REGION : 0) | (thread ? TAG_THREAD : 0) | (next ? TAG_NEXT_PAGE : 0)));
  if (region)
    put_number(t, s->region);
  if (thread)
    put_number(t, s->thread_id);
  if (!next) { /* zigzag: small for small steps either way */
    int64_t step = (int64_t)(s->page - last);
    put_number(t, ((uint64_t)step << 1) ^ (uint64_t)(step >> 63));
  }
  /* Appenders may pass each other between the clock and the ring. */
  uint64_t time_us = um_max(s->time_us, t->last_time_us);
  put_number(t, time_us - t->last_time_us);
  t->last_time_us = time_us;
  t->last_pages[s->region] = s->page;
  t->last_region = s->region;
  t->last_thread = s->thread_id;
  t->faults++;
}

static void put_lost(um_trace *t) {
  uint64_t lost = atomic_load(&t->lost);
  if (lost == t->told)
    return;
  put_byte(t, TAG_LOST);
  put_number(t, lost - t->told);
  t->told = lost;
}

static void drain(um_trace *t) {
  for (;; t->head++) {
    if (t->length + RECORD_MAX > BUFFER)
      write_out(t);
    slot *s = &t->slots[t->head % SLOTS];
    if (atomic_load_explicit(&s->turn, memory_order_acquire) != t->head + 1)
      break;
    s->kind == KIND_REGION ? put_region(t, s) : put_fault(t, s);
    atomic_store_explicit(&s->turn, t->head + SLOTS, memory_order_release);
  }
  put_lost(t);
  write_out(t);
}

static void *writer(void *trace) {
  um_trace *t = trace;
  prctl(PR_SET_NAME, "um-trace");
  for (bool stop = false; !stop;) {
    stop = atomic_load(&t->stop);
    drain(t);
    if (!stop)
      nanosleep(&(struct timespec){0, LOOK_NS}, NULL);
  }
  put_byte(t, TAG_END);
  put_number(t, t->faults);
  put_number(t, t->told);
  write_out(t);
  return NULL;
}

/* What appenders may still bring after this is not written. */
static int stop_writer(um_trace *t) {
  struct timespec deadline;
  if (atomic_exchange(&t->stop, true))
    return 0;
  clock_gettime(CLOCK_REALTIME, &deadline);
  deadline.tv_sec += CLOSE_SECONDS;
  return -pthread_timedjoin_np(t->thread, NULL, &deadline);
}

static void forget_in_child(void) {
  atomic_fetch_add(&generation, 1);
  pthread_mutex_init(&registry_lock, NULL);
  registry = NULL;
}

static void stop_all(void) {
  pthread_mutex_lock(&registry_lock);
  for (um_trace *t = registry; t; t = t->next)
    stop_writer(t);
  pthread_mutex_unlock(&registry_lock);
}

static void init(void) {
  pthread_atfork(NULL, NULL, forget_in_child);
  atexit(stop_all);
}

uint64_t um_trace_memory(void) {
  return um_round_up(SLOTS * sizeof(slot), um_host_page) + um_round_up(sizeof(um_trace), um_host_page) + STACK;
}

static int start_writer(um_trace *t) {
  sigset_t all, before;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, STACK);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited */
  int code = pthread_create(&t->thread, &attributes, writer, t);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  return -code;
}

static void release(um_trace *t) {
  um_memory_unmap(t->slots, um_round_up(SLOTS * sizeof *t->slots, um_host_page));
  if (t->fd >= 0)
    close(t->fd);
  free(t->last_pages);
  free(t);
}

int um_trace_open(const char *path, um_trace **trace) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, init);
  um_trace *t = calloc(1, sizeof *t);
  if (!t)
    return -ENOMEM;
  int code = 0;
  t->generation = atomic_load(&generation);
  t->start_ns = um_now_ns();
  t->last_region = t->last_thread = UINT32_MAX;
  t->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (t->fd < 0)
    code = -errno;
  else if (!(t->slots = um_memory_map(um_round_up(SLOTS * sizeof *t->slots, um_host_page))))
    code = -ENOMEM;
  for (uint64_t i = 0; code == 0 && i < SLOTS; i++)
    atomic_init(&t->slots[i].turn, i);
  if (code == 0) {
    put_header(t);
    write_out(t);
    code = t->error ? t->error : start_writer(t);
  }
  if (code) {
    release(t);
    return code;
  }
  pthread_mutex_lock(&registry_lock);
  t->next = registry;
  registry = t;
  pthread_mutex_unlock(&registry_lock);
  *trace = t;
  return 0;
}

static bool append(um_trace *t, const slot *entry) {
  uint64_t position = atomic_load_explicit(&t->tail, memory_order_relaxed);
  for (;;) {
    slot *s = &t->slots[position % SLOTS];
    int64_t late = (int64_t)(atomic_load_explicit(&s->turn, memory_order_acquire) - position);
    if (late < 0)
      return false;
    if (late > 0) { /* somebody else took it */
      position = atomic_load_explicit(&t->tail, memory_order_relaxed);
      continue;
    }
    if (!atomic_compare_exchange_weak_explicit(&t->tail, &position, position + 1, memory_order_relaxed,
                                               memory_order_relaxed))
      continue;
    s->page = entry->page;
    s->time_us = entry->time_us;
    s->region = entry->region;
    s->thread_id = entry->thread_id;
    s->kind = entry->kind;
    atomic_store_explicit(&s->turn, position + 1, memory_order_release);
    return true;
  }
}

int um_trace_region(um_trace *t, uint32_t region, uint64_t page_size, uint64_t size) {
  if (region >= UM_TRACE_REGIONS_MAX)
    return -EINVAL;
  if (is_forked(t))
    return -UM_EFORKED;
  slot entry = {.page = size, .time_us = page_size, .region = region, .kind = KIND_REGION};
  for (int tries = 0; !append(t, &entry); tries++) {
    if (tries == 100)
      return -EAGAIN;
    nanosleep(&(struct timespec){0, LOOK_NS}, NULL);
  }
  return 0;
}

void um_trace_fault(um_trace *t, uint32_t region, uint64_t page, uint32_t thread_id, enum um_trace_kind kind) {
  if (is_forked(t))
    return;
  slot entry = {.page = page,
                .time_us = (um_now_ns() - t->start_ns) / 1000u,
                .region = region,
                .thread_id = thread_id,
                .kind = kind};
  if (!append(t, &entry))
    atomic_fetch_add_explicit(&t->lost, 1, memory_order_relaxed);
}

int um_trace_close(um_trace *t) {
  if (is_forked(t)) {
    t->slots = NULL; /* not inherited: somebody else's memory may be there */
    release(t);
    return 0;
  }
  pthread_mutex_lock(&registry_lock);
  for (um_trace **link = &registry; *link; link = &(*link)->next)
    if (*link == t) {
      *link = t->next;
      break;
    }
  pthread_mutex_unlock(&registry_lock);
  int code = stop_writer(t);
  if (code) /* the writer may still use it */
    return code;
  code = t->error;
  if (close(t->fd) && code == 0)
    code = -errno;
  t->fd = -1;
  release(t);
  return code;
}
