/* watchdog.c: see watchdog.h. gdb prints the stacks where it is installed; where it is not, the kernel says at least
 * what each thread waits in. */
#define _GNU_SOURCE
#include "watchdog.h"

#include "check.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <spawn.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t deadline_ns; /* lock */
static const char *running;  /* lock */
static unsigned patience;
static sem_t started;

uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void sleep_ms(unsigned ms) {
  struct timespec left = {ms / 1000, (long)(ms % 1000) * 1000000};
  while (nanosleep(&left, &left) && errno == EINTR)
    ;
}

static void print_file(const char *task, const char *name) {
  char path[300], text[400];
  snprintf(path, sizeof path, "/proc/self/task/%s/%s", task, name);
  FILE *file = fopen(path, "r");
  size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;
  if (file)
    fclose(file);
  while (n && text[n - 1] == '\n')
    n--;
  fprintf(stderr, "  %s: %.*s\n", name, (int)n, text);
}

static void print_tasks(void) {
  DIR *tasks = opendir("/proc/self/task");
  for (struct dirent *entry; tasks && (entry = readdir(tasks));)
    if (entry->d_name[0] != '.') {
      fprintf(stderr, "thread %s\n", entry->d_name);
      print_file(entry->d_name, "comm");
      print_file(entry->d_name, "wchan");
      print_file(entry->d_name, "syscall");
    }
  if (tasks)
    closedir(tasks);
}

static void print_stacks(void) {
  char pid[20];
  snprintf(pid, sizeof pid, "%d", (int)getpid());
  char *arguments[] = {"gdb", "-p", pid, "-batch", "-ex", "set width 160", "-ex", "thread apply all bt 12", NULL};
  pid_t gdb;
  int status = 1;
  if (posix_spawnp(&gdb, "gdb", NULL, NULL, arguments, environ) == 0) /* no fork: no handlers run */
    waitpid(gdb, &status, 0);
  if (status)
    print_tasks();
}

static void *watch(void *unused) {
  (void)unused;
  sem_post(&started);
  for (;;) {
    sleep_ms(100);
    pthread_mutex_lock(&lock);
    const char *test = now_ns() > deadline_ns ? running : NULL;
    pthread_mutex_unlock(&lock);
    if (!test)
      continue;
    fprintf(stderr, "%s hangs\n", test);
    print_stacks();
    abort();
  }
  return NULL;
}

void watchdog_start(unsigned seconds) {
  pthread_t thread;
  patience = seconds * SLOWER;
  watchdog_pet("the start");
  sem_init(&started, 0, 0);
  CHECK_EQUAL(pthread_create(&thread, NULL, watch, NULL), 0);
  pthread_detach(thread);
  while (sem_wait(&started)) /* a test that forks now must not fork a thread that AddressSanitizer is still making */
    ;
}

void watchdog_pet(const char *test) {
  static uint64_t began_ns;
  pthread_mutex_lock(&lock);
  if (running && now_ns() - began_ns > 1000000000)
    printf("  %s: %.1f s\n", running, (double)(now_ns() - began_ns) / 1e9);
  began_ns = now_ns();
  deadline_ns = began_ns + patience * 1000000000ull;
  running = test;
  pthread_mutex_unlock(&lock);
}

void watchdog_child(unsigned seconds) {
  alarm(seconds * SLOWER);
}
