/* fuzz.c: bytes that nobody would write, guided by what they make the engine do.
 *
 * The engine's modules that read what others wrote are built with -fsanitize-coverage=trace-pc and the address and
 * undefined sanitizers. Inputs of the corpus are changed, and those that reach new edges of the code are kept. A child
 * process runs; what ends it, or takes more than 20 s, is saved beside the corpus and fails the run. What an input is
 * and what becomes of it: fuzz_one.c, files; fuzz_nbd.c, servers.
 *
 * fuzz SECONDS CORPUS NEW: reads CORPUS, and NEW where what is found goes. fuzz --make CORPUS: writes the corpus.
 * fuzz --run FILE: once. */
#define _GNU_SOURCE
#include "fuzz.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define INPUTS 4096u
#define EDGES (1u << 16)
#define HANG_SECONDS 20u

typedef struct input {
  uint8_t *bytes;
  uint64_t length;
} input;

/* Shared with the child that runs. */
typedef struct running {
  uint64_t length, runs;
  uint8_t bytes[FUZZ_LENGTH];
} running;

static running *now;
static input inputs[INPUTS];
static unsigned input_count;
static uint8_t edges[EDGES], ever[EDGES]; /* of this run; of all: how often, as a bit */
static uint64_t seed;
static const char *found_folder;

void __sanitizer_cov_trace_pc(void);
__attribute__((no_sanitize("address", "undefined"))) void __sanitizer_cov_trace_pc(void) {
  static __thread uint32_t before;
  uint32_t here = (uint32_t)((uintptr_t)__builtin_return_address(0) * 0x9E3779B1u >> 8);
  uint8_t *edge = &edges[(here ^ before) % EDGES];
  *edge += *edge < 255;
  before = here >> 1;
}

static uint64_t random_below(uint64_t limit) {
  return limit ? zrig_random(&seed) % limit : 0;
}

/* How often, roughly: 1, 2, 3, 4-7, 8-15, ... each is news. */
static uint8_t classify(uint8_t count) {
  return (uint8_t)(count == 0 ? 0 : count < 4 ? 1 << (count - 1) : count < 8 ? 8 : count < 32 ? 16 : 32);
}

static bool run_new(const uint8_t *bytes, uint64_t length) {
  bool is_new = false;
  now->length = length;
  memcpy(now->bytes, bytes, length);
  memset(edges, 0, sizeof(edges));
  alarm(HANG_SECONDS);
  fuzz_one(bytes, length);
  alarm(0);
  now->runs++;
  for (unsigned i = 0; i < EDGES; i++) {
    uint8_t class = classify(edges[i]);
    is_new |= (class & ~ever[i]) != 0;
    ever[i] |= class;
  }
  return is_new;
}

static void keep(const uint8_t *bytes, uint64_t length) {
  if (input_count == INPUTS)
    return;
  input *in = &inputs[input_count++];
  *in = (input){malloc(length + 1), length};
  CHECK(in->bytes);
  memcpy(in->bytes, bytes, length);
}

static void save(const char *kind, const uint8_t *bytes, uint64_t length) {
  char name[512];
  uint64_t hash = length;
  for (uint64_t i = 0; i < length; i++)
    hash = (hash ^ bytes[i]) * 0x100000001B3u;
  snprintf(name, sizeof(name), "%s/%s-%016" PRIx64, found_folder, kind, hash);
  int descriptor = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  CHECK(descriptor >= 0 && write(descriptor, bytes, length) == (ssize_t)length);
  close(descriptor);
  if (strcmp(kind, "input") != 0)
    fprintf(stderr, "saved %s\n", name);
}

static void load_folder(const char *folder) {
  DIR *names = opendir(folder);
  static uint8_t bytes[FUZZ_LENGTH];
  for (struct dirent *name; names && (name = readdir(names));) {
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", folder, name->d_name);
    int descriptor = name->d_name[0] == '.' || strncmp(name->d_name, "crash", 5) == 0 ? -1 : open(path, O_RDONLY);
    ssize_t length = descriptor < 0 ? -1 : read(descriptor, bytes, sizeof(bytes));
    if (length > 0)
      keep(bytes, (uint64_t)length);
    if (descriptor >= 0)
      close(descriptor);
  }
  if (names)
    closedir(names);
}

static const uint64_t interesting[] = {
    0,        1,          2,         7,        8,          32,        127,
    255,      256,        4095,      4096,     8192,       65535,     65536,
    1u << 20, UINT32_MAX, INT32_MAX, 1u << 31, UINT64_MAX, INT64_MAX, UINT64_C(1) << 48};

/* Places that a change is likelier to mean something: fields of superblocks, and what they refer to. */
static uint64_t choose_place(const uint8_t *bytes, uint64_t length) {
  uint64_t target = 0;
  switch (random_below(4)) {
  case 0:
    return random_below(length < 256 ? length : 256);
  case 1: /* near a record of the superblock */
    if (length >= 256)
      memcpy(&target, bytes + 104 + 24 * random_below(4), 8);
    return target < length ? (target + random_below(96)) % length : random_below(length);
  case 2: /* near the end, where records and seek tables are */
    return length - 1 - random_below(length < 600 ? length : 600);
  default:
    return random_below(length);
  }
}

static uint64_t change(uint8_t *bytes, uint64_t length) {
  uint64_t at = choose_place(bytes, length), word, width = UINT64_C(1) << random_below(4), count;
  width = at + width > length ? 1 : width;
  const input *other = &inputs[random_below(input_count)];
  switch (random_below(8)) {
  case 0:
    bytes[at] ^= (uint8_t)(1 << random_below(8));
    break;
  case 1:
    word = interesting[random_below(sizeof(interesting) / sizeof(*interesting))];
    memcpy(bytes + at, &word, width);
    break;
  case 2:
    word = 0;
    memcpy(&word, bytes + at, width);
    word += random_below(64) - 32;
    memcpy(bytes + at, &word, width);
    break;
  case 3:
    bytes[at] = (uint8_t)random_below(256);
    break;
  case 4: /* bytes of another place */
    count = random_below(length - at < 64 ? length - at : 64);
    memmove(bytes + at, bytes + random_below(length - count), count);
    break;
  case 5: /* of another input, at the same place */
    count = random_below(length - at < 256 ? length - at : 256);
    if (at + count <= other->length)
      memcpy(bytes + at, other->bytes + at, count);
    break;
  case 6: /* something is missing */
    count = 1 + random_below(length - at < 64 ? length - at : 64);
    if (at + count < length) {
      memmove(bytes + at, bytes + at + count, length - at - count);
      return length - count;
    }
    break;
  default: /* something is there twice, or it ends before */
    count = random_below(64);
    if (random_below(8) == 0)
      return at + 1;
    if (length + count <= FUZZ_LENGTH && at + count <= length) {
      memmove(bytes + at + count, bytes + at, length - at);
      return length + count;
    }
  }
  return length;
}

static void fuzz(uint64_t seconds) {
  static uint8_t bytes[FUZZ_LENGTH];
  time_t end = time(NULL) + (time_t)seconds;
  unsigned given = input_count;
  for (unsigned i = 0; i < given; i++)
    run_new(inputs[i].bytes, inputs[i].length);
  while (time(NULL) < end) {
    /* Newer ones half of the time: they are where nobody has looked. */
    unsigned recent = input_count < 32 ? input_count : 32;
    const input *in = &inputs[random_below(2) ? random_below(input_count) : input_count - 1 - random_below(recent)];
    uint64_t length = in->length;
    memcpy(bytes, in->bytes, length);
    for (uint64_t n = UINT64_C(1) << random_below(5); n > 0 && length > 0; n--)
      length = change(bytes, length);
    if (length > 0 && run_new(bytes, length)) {
      keep(bytes, length);
      save("input", bytes, length);
    }
  }
  unsigned reached = 0;
  for (unsigned i = 0; i < EDGES; i++)
    reached += ever[i] != 0;
  fprintf(stderr, "%" PRIu64 " runs, %u inputs, %u of them new, %u edges\n", now->runs, input_count,
          input_count - given, reached);
  CHECK(now->runs > 100 && reached > fuzz_edges_min);
}

static int run_file(const char *path) {
  static uint8_t bytes[FUZZ_LENGTH];
  int descriptor = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t length = descriptor < 0 ? -1 : read(descriptor, bytes, sizeof(bytes));
  CHECK(length >= 0);
  fuzz_one(bytes, (uint64_t)length);
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 3 && strcmp(argv[1], "--make") == 0)
    return fuzz_make(argv[2]);
  if (argc == 3 && strcmp(argv[1], "--run") == 0)
    return run_file(argv[2]);
  CHECK_EQUAL(argc, 4);
  now = mmap(NULL, sizeof(*now), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(now != MAP_FAILED);
  found_folder = argv[3];
  seed = (uint64_t)time(NULL) ^ (uint64_t)getpid() << 32;
  fprintf(stderr, "seed %" PRIu64 "\n", seed);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    load_folder(argv[2]);
    load_folder(argv[3]);
    CHECK(input_count > 0);
    fuzz(strtoull(argv[1], NULL, 0));
    exit(0); /* which looks for leaks */
  }
  int status;
  CHECK_EQUAL(waitpid(child, &status, 0), child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
    return 0;
  fprintf(stderr, "the run ended with wait status %#x\n", (unsigned)status);
  save("crash", now->bytes, now->length);
  return 1;
}
