/* Random reads of a mapping whose faults are answered by the least that can: one thread that waits for a fault, reads
 * its page from the file past the page cache, and places it. No budget, no eviction, nothing to look up, nothing to
 * write: the limit of everybody who answers faults of one thread in user space. Built as a library, see bare_faults.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096u

typedef struct server {
  int uffd, file;
  uintptr_t start;
  _Atomic int stop;
} server;

static void *serve(void *argument) {
  server *s = argument;
  static __attribute__((aligned(PAGE))) char buffer[PAGE];
  struct pollfd fd = {s->uffd, POLLIN, 0};
  struct uffd_msg message;
  while (!atomic_load(&s->stop)) {
    if (poll(&fd, 1, 100) <= 0 || read(s->uffd, &message, sizeof message) != sizeof message)
      continue;
    uintptr_t page = message.arg.pagefault.address / PAGE * PAGE;
    struct uffdio_copy copy = {.dst = page, .src = (uintptr_t)buffer, .len = PAGE};
    if (pread(s->file, buffer, PAGE, (off_t)(page - s->start)) != PAGE || ioctl(s->uffd, UFFDIO_COPY, &copy))
      _exit(3); /* who faulted would wait for ever */
  }
  return NULL;
}

/* The sum of the float64 at `indices`, read one after another; 0 or an errno. The file is a multiple of a page. */
int bare_gather(const char *path, const int64_t *indices, uint64_t count, double *sum) {
  server s = {.uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), .file = open(path, O_RDONLY | O_DIRECT)};
  struct stat status;
  struct uffdio_api api = {.api = UFFD_API};
  if (s.uffd < 0 || s.file < 0 || fstat(s.file, &status) || ioctl(s.uffd, UFFDIO_API, &api))
    return errno;
  uint64_t size = (uint64_t)status.st_size;
  void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || madvise(memory, size, MADV_NOHUGEPAGE))
    return errno;
  s.start = (uintptr_t)memory;
  struct uffdio_register range = {.range = {s.start, size}, .mode = UFFDIO_REGISTER_MODE_MISSING};
  pthread_t thread;
  if (ioctl(s.uffd, UFFDIO_REGISTER, &range))
    return errno;
  int code = pthread_create(&thread, NULL, serve, &s);
  if (code)
    return code;
  const double *numbers = memory;
  for (uint64_t i = 0; i < count; i++)
    *sum += numbers[indices[i]];
  atomic_store(&s.stop, 1);
  pthread_join(thread, NULL);
  munmap(memory, size);
  close(s.uffd);
  close(s.file);
  return 0;
}
