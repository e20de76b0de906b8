/* store_file_open.c: from options to open, checked, sized files.
 *
 * All files are opened, locked, measured and given their descriptors before the first of them is changed, so that a
 * wrong option or a second writer changes nothing. When something still fails then, what can be undone is: files we
 * made are removed, files we made longer get their old length back. */
#define _GNU_SOURCE
#include "store_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define OPEN_TRIES 8 /* the file may come, go, or be replaced while we open it */

/* What is known of a file only while it is being opened. */
typedef struct candidate {
  dev_t device;
  ino_t inode;
  uint64_t length; /* bytes the file holds once emptied if it is to be */
  bool created;    /* we made it, and nobody else has taken it since */
  bool grown;      /* we made it longer than length */
} candidate;

typedef struct opening {
  const um_file_options *options;
  um_file_store *store;
  candidate *candidates; /* beside store->files */
  um_error *error;
} opening;

#define REFUSE(o, code, ...) um_error_set((o)->error, code, UM_OP_OPEN, 0, 0, __VA_ARGS__)

/* `doing` is what failed, with ": " at its end; empty for the opening itself. */
static int refuse_errno(opening *o, const char *path, int result, const char *doing) {
  const char *remedy = result == -EMFILE ? "; ulimit -n raises the limit" : "";
  return REFUSE(o, -result, "%s: %s%s%s", path, doing, strerror(-result), remedy);
}

static char *make_absolute(const char *path) {
  if (path[0] == '/')
    return strdup(path);
  char *folder = getcwd(NULL, 0);
  if (!folder)
    return NULL;
  size_t size = strlen(folder) + 1 + strlen(path) + 1;
  char *absolute = malloc(size);
  if (absolute) {
    strcpy(absolute, folder);
    if (strcmp(folder, "/") != 0)
      strcat(absolute, "/");
    strcat(absolute, path);
  }
  free(folder);
  return absolute;
}

static const char *describe_type(mode_t mode) {
  return S_ISDIR(mode)    ? "a folder"
         : S_ISFIFO(mode) ? "a pipe"
         : S_ISSOCK(mode) ? "a socket"
         : S_ISCHR(mode)  ? "a character device"
                          : "no regular file";
}

/* A descriptor, or -errno. `created` is exact, except that a dangling link is filled without being counted. */
static int open_or_create(const um_file_options *options, const char *path, bool *created) {
  /* O_NONBLOCK: opening a pipe would wait for its other end. It means nothing to files and disks. */
  int flags = (options->writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  int descriptor = -1;
  *created = false;
  if (options->exclusive) {
    descriptor = open(path, flags | O_CREAT | O_EXCL, 0666);
    *created = descriptor >= 0;
    return descriptor < 0 ? -errno : descriptor;
  }
  for (int i = 0; i < OPEN_TRIES; i++) {
    descriptor = open(path, flags);
    if (descriptor >= 0 || errno != ENOENT || !options->create)
      break;
    descriptor = open(path, flags | O_CREAT | O_EXCL, 0666);
    if (descriptor >= 0) {
      *created = true;
      break;
    }
    struct stat status;
    if (errno == EEXIST && lstat(path, &status) == 0 && S_ISLNK(status.st_mode))
      descriptor = open(path, flags | O_CREAT, 0666);
    else if (errno == EEXIST)
      continue;
    break;
  }
  return descriptor < 0 ? -errno : descriptor;
}

static int measure(opening *o, um_file *file, candidate *c) {
  struct stat status;
  if (fstat(file->buffered, &status) < 0)
    return refuse_errno(o, file->path, -errno, "looking at it: ");
  c->device = status.st_dev;
  c->inode = status.st_ino;
  c->length = (uint64_t)status.st_size;
  struct statfs system;
  file->in_memory =
      fstatfs(file->buffered, &system) == 0 && (system.f_type == TMPFS_MAGIC || system.f_type == RAMFS_MAGIC);
  if (S_ISREG(status.st_mode))
    return 0;
  if (S_ISDIR(status.st_mode))
    return REFUSE(o, EISDIR, "%s: is a folder; a file store needs a file", file->path);
  if (!S_ISBLK(status.st_mode))
    return REFUSE(o, EINVAL, "%s: is %s; a file store needs a regular file or a block device", file->path,
                  describe_type(status.st_mode));
  file->fixed = true;
  if (ioctl(file->buffered, BLKGETSIZE64, &c->length) < 0)
    return refuse_errno(o, file->path, -errno, "asking for the size of the device: ");
  if (o->options->truncate)
    return REFUSE(o, EINVAL, "%s: is a block device, which cannot be emptied; open it with mode 'r+'", file->path);
  return 0;
}

/* Whether the path still leads to the file we hold. A writer that lost it would write into a file without a name. */
static bool is_still_there(const um_file *file, const candidate *c) {
  struct stat status;
  return stat(file->path, &status) == 0 && status.st_dev == c->device && status.st_ino == c->inode;
}

/* Before the lock, which would call our own earlier part somebody else. */
static int check_twice(opening *o, const um_file *file, const candidate *c) {
  for (const candidate *other = o->candidates; other < c; other++)
    if (other->device == c->device && other->inode == c->inode)
      return REFUSE(o, EINVAL, "%s: is given twice (as %s too); the parts of a writable store must differ", file->path,
                    o->store->files[other - o->candidates].path);
  return 0;
}

static int lock_file(opening *o, um_file *file, candidate *c) {
  int result = um_file_lock(file);
  if (result == 0)
    return 0;
  if (result == -UM_ELOCKED) {
    c->created = false; /* whoever was faster has it now */
    return REFUSE(o, UM_ELOCKED, "%s", file->path);
  }
  return REFUSE(o, -result, "%s: taking the writer's lock: %s; pass lock=False if nobody else writes it", file->path,
                strerror(-result));
}

static int open_file(opening *o, um_file *file, candidate *c, const char *path) {
  const um_file_options *options = o->options;
  if (!path || !*path)
    return REFUSE(o, ENOENT, "the path is empty");
  file->path = make_absolute(path);
  if (!file->path)
    return refuse_errno(o, path, -errno, "finding its folder: ");
  for (int i = 0; i < OPEN_TRIES; i++) {
    int descriptor = open_or_create(options, file->path, &c->created);
    if (descriptor == -EISDIR)
      return REFUSE(o, EISDIR, "%s: is a folder; a file store needs a file", file->path);
    if (descriptor < 0)
      return refuse_errno(o, file->path, descriptor, "");
    file->buffered = descriptor;
    fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) & ~O_NONBLOCK);
    int result = measure(o, file, c);
    if (result == 0 && options->writable)
      result = check_twice(o, file, c);
    if (result == 0 && options->writable && options->lock)
      result = lock_file(o, file, c);
    if (result < 0)
      return result;
    if (!options->writable)
      return 0;
    if (is_still_there(file, c)) {
      result = measure(o, file, c); /* again: who had the lock until now may have changed its length */
      if (options->truncate)
        c->length = 0;
      return result;
    }
    um_file_close(file);
  }
  return REFUSE(o, ESTALE, "%s: it is replaced again and again", file->path);
}

static int open_files(opening *o) {
  int result = 0;
  for (uint32_t i = 0; result == 0 && i < o->store->file_count; i++)
    result = open_file(o, &o->store->files[i], &o->candidates[i], o->options->parts[i].path);
  return result;
}

/* How many bytes part `index` has, given those before it. */
static int find_size(opening *o, uint32_t index, uint64_t before, uint64_t *size) {
  const um_file_options *options = o->options;
  um_file *file = &o->store->files[index];
  candidate *c = &o->candidates[index];
  bool last = index + 1 == o->store->file_count;
  *size = options->parts[index].size;
  if (last && options->size != UM_TO_END) {
    if (options->size < before || (*size != UM_TO_END && *size != options->size - before))
      return REFUSE(o, EINVAL, "size is %" PRIu64 ", but the parts have %" PRIu64 " bytes", options->size,
                    before + (*size == UM_TO_END ? 0 : *size));
    *size = options->size - before;
  }
  if (*size != UM_TO_END)
    return 0;
  if (c->created || options->truncate)
    return REFUSE(o, EINVAL, "%s: a new file needs a size", file->path);
  if (file->start > c->length)
    return REFUSE(o, EINVAL, "%s: offset %" PRIu64 " passes its end, %" PRIu64, file->path, file->start, c->length);
  *size = c->length - file->start;
  return 0;
}

static int check_length(opening *o, const um_file *file, const candidate *c) {
  if (file->size > INT64_MAX - file->start || file->base + file->size > INT64_MAX)
    return REFUSE(o, EINVAL, "%s: offset %" PRIu64 " and size %" PRIu64 " pass the largest file there can be",
                  file->path, file->start, file->size);
  uint64_t end = file->start + file->size;
  if (end <= c->length)
    return 0;
  if (file->fixed)
    return REFUSE(o, EINVAL, "%s: the device has %" PRIu64 " bytes, fewer than the %" PRIu64 " asked for", file->path,
                  c->length, end);
  if (!o->options->writable)
    return REFUSE(o, EINVAL,
                  "%s: has %" PRIu64 " bytes, fewer than the %" PRIu64 " asked for; mode 'r+' would make it longer",
                  file->path, c->length, end);
  return 0;
}

static int lay_out(opening *o) {
  uint64_t base = 0;
  for (uint32_t i = 0; i < o->store->file_count; i++) {
    um_file *file = &o->store->files[i];
    file->base = base;
    file->start = i == 0 ? o->options->offset : 0;
    if (file->start > INT64_MAX)
      return REFUSE(o, EINVAL, "%s: offset %" PRIu64 " passes the largest file there can be", file->path, file->start);
    int result = find_size(o, i, base, &file->size);
    if (result == 0)
      result = check_length(o, file, &o->candidates[i]);
    if (result < 0)
      return result;
    base += file->size;
  }
  o->store->store.size = base;
  return 0;
}

static int open_direct(opening *o) {
  if (o->options->direct == 0)
    return 0;
  o->store->direct_only = o->options->direct == 1;
  for (uint32_t i = 0; i < o->store->file_count; i++) {
    um_file *file = &o->store->files[i];
    char reason[128];
    if (file->size == 0)
      continue;
    int result = um_file_direct_open(file, o->options->writable, reason, sizeof(reason));
    if (result == -EOPNOTSUPP && o->options->direct == 1)
      return REFUSE(o, EOPNOTSUPP, "%s: no direct I/O: %s; direct='auto' goes without", file->path, reason);
    if (result < 0 && result != -EOPNOTSUPP)
      return refuse_errno(o, file->path, result, "opening it for direct I/O: ");
  }
  return 0;
}

/* The name of a new file is durable only when its folder is. */
int um_file_sync_folder(const char *path) {
  char *real = realpath(path, NULL);
  if (!real)
    return -errno;
  char *slash = strrchr(real, '/');
  slash[slash == real ? 1 : 0] = '\0';
  int folder = open(real, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  int result = folder < 0 ? -errno : 0;
  if (result == 0 && fsync(folder) < 0 && errno != EINVAL) /* EINVAL: this file system has no such thing */
    result = -errno;
  if (folder >= 0)
    close(folder);
  free(real);
  return result == -EACCES ? 0 : result; /* a folder one may write in but not read: nothing more can be done */
}

static int change_files(opening *o) {
  for (uint32_t i = 0; i < o->store->file_count; i++) {
    um_file *file = &o->store->files[i];
    candidate *c = &o->candidates[i];
    uint64_t end = file->start + file->size;
    if (o->options->truncate && ftruncate(file->buffered, 0) < 0)
      return refuse_errno(o, file->path, -errno, "emptying it: ");
    if (end > c->length) {
      c->grown = true;
      if (ftruncate(file->buffered, (off_t)end) < 0)
        return refuse_errno(o, file->path, -errno, "making it longer: ");
    }
    /* A length is lost in a power cut as bytes are, and nobody flushes a store that was not written. */
    if ((c->grown || o->options->truncate) && fdatasync(file->buffered) < 0)
      return refuse_errno(o, file->path, -errno, "making its length durable: ");
    int result = c->created ? um_file_sync_folder(file->path) : 0;
    if (result < 0)
      return refuse_errno(o, file->path, result, "making its name durable: ");
  }
  return 0;
}

static void undo(opening *o) {
  for (uint32_t i = 0; i < o->store->file_count; i++) {
    um_file *file = &o->store->files[i];
    candidate *c = &o->candidates[i];
    struct stat status;
    if (c->grown && !c->created && ftruncate(file->buffered, (off_t)c->length) < 0) {
      /* It stays longer, with zeros at its end; the error that is under way matters more. */
    }
    if (c->created && file->buffered >= 0 && lstat(file->path, &status) == 0 && status.st_dev == c->device &&
        status.st_ino == c->inode)
      unlink(file->path);
    um_file_close(file); /* last: while we hold the lock nobody else takes the file for theirs */
    free(file->path);
  }
  free(o->store->files);
  free(o->store);
}

static int check_options(const um_file_options *options, um_error *error) {
  if (options->part_count == 0)
    return um_error_set(error, EINVAL, UM_OP_OPEN, 0, 0, "no path is given");
  if (!options->writable && (options->create || options->truncate || options->exclusive))
    return um_error_set(error, EINVAL, UM_OP_OPEN, 0, 0, "a file cannot be created or emptied for reading only");
  return 0;
}

static um_file_store *make_store(const um_file_options *options) {
  um_file_store *self = calloc(1, sizeof(*self));
  um_file *files = calloc(options->part_count, sizeof(*files));
  if (!self || !files) {
    free(self);
    free(files);
    return NULL;
  }
  for (uint32_t i = 0; i < options->part_count; i++)
    files[i].buffered = files[i].direct = -1;
  self->store.ops = &um_file_store_ops;
  self->store.writable = options->writable;
  self->files = files;
  self->file_count = options->part_count;
  return self;
}

int um_file_store_open(const um_file_options *options, um_store **store, um_error *error) {
  int result = check_options(options, error);
  if (result < 0)
    return result;
  opening o = {.options = options, .error = error};
  o.candidates = calloc(options->part_count, sizeof(*o.candidates));
  o.store = o.candidates && um_fork_entries_init() == 0 ? make_store(options) : NULL;
  if (!o.store) {
    free(o.candidates);
    return REFUSE(&o, ENOMEM, "%s: %s", options->parts[0].path, strerror(ENOMEM));
  }
  result = open_files(&o);
  if (result == 0)
    result = lay_out(&o);
  if (result == 0)
    result = open_direct(&o);
  if (result == 0)
    result = change_files(&o);
  if (result == 0) {
    pthread_mutex_init(&o.store->flush_lock, NULL);
    um_fork_entry_add(&o.store->fork, &o.store->store);
    *store = &o.store->store;
  } else {
    undo(&o);
  }
  free(o.candidates);
  return result;
}
