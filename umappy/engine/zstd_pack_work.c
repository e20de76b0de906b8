/* zstd_pack_work.c: tasks of an image to frames, on many threads; zstd_pack.h. */
#include "zstd_pack.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* The page's frame as the store has it, where it may go over as it is. Its size; 0: a page of zeros; -EAGAIN: it must
 * be compressed. */
static int64_t copy_frame(um_zstd_crew *crew, um_zstd_context *context, um_zstd_store *store, uint64_t page,
                          uint64_t length, uint8_t *to, um_error *error) {
  um_zstd_entry entry;
  int result = um_zstd_stored_read(store, context, page, &entry, error);
  if (result != 0)
    return result < 0 ? result : 0;
  const uint8_t *frame = context->stored;
  uint64_t size = entry.length;
  if (entry.kind == UM_ZSTD_RECORD) {
    um_zstd_record header;
    um_zstd_record_header(frame, &header);
    if (header.kind != UM_ZSTD_PAGE_FRAME)
      return -EAGAIN;
    frame += UM_ZSTD_RECORD_HEADER;
    size = header.length;
  }
  if (crew->codec.library->frame_content_size(frame, size) != length) /* older than the image is long */
    return -EAGAIN;
  memcpy(to, frame, size);
  return (int64_t)size;
}

static bool may_copy(const um_zstd_crew *crew, const um_zstd_task *task) {
  if (!task->store || task->store->ops != &um_zstd_store_ops)
    return false;
  const um_zstd_store *store = (const um_zstd_store *)task->store;
  return store->codec.page_size == crew->codec.page_size && store->codec.level == crew->codec.level &&
         store->dictionary_hash == crew->dictionary_hash && !store->foreign &&
         task->offset % crew->codec.page_size == 0 && store->store.size == store->image;
}

static int64_t make_frame(um_zstd_crew *crew, um_zstd_context *context, um_zstd_task *task, uint64_t at,
                          uint64_t length, uint8_t *to, bool copy) {
  const uint8_t *bytes = task->in + at;
  int64_t size = -EAGAIN;
  if (copy)
    size = copy_frame(crew, context, (um_zstd_store *)task->store, (task->offset + at) / crew->codec.page_size, length,
                      to, &task->error);
  if (size != -EAGAIN)
    return size;
  if (task->store && copy) {
    int result = um_store_read(task->store, task->offset + at, task->in + at, length, &task->error);
    if (result < 0)
      return result;
  }
  if (um_zstd_is_zero(bytes, length))
    return 0;
  size = um_zstd_compress(&crew->codec, context, to, um_zstd_bound(&crew->codec, length), bytes, length);
  return size < 0 ? um_error_set(&task->error, (int)-size, UM_OP_WRITE, 0, 0, "compressing: %s", strerror((int)-size))
                  : size;
}

static int work(um_zstd_crew *crew, um_zstd_context *context, um_zstd_task *task) {
  uint64_t page_size = crew->codec.page_size;
  bool copy = may_copy(crew, task);
  uint8_t *to = task->out;
  int result = 0;
  if (task->store && !copy)
    result = um_store_read(task->store, task->offset, task->in, task->length, &task->error);
  for (uint64_t at = 0, i = 0; result == 0 && at < task->length; at += page_size, i++) {
    uint64_t length = task->length - at < page_size ? task->length - at : page_size;
    int64_t size = make_frame(crew, context, task, at, length, to, copy);
    if (size < 0)
      return (int)size;
    task->sizes[i] = (uint32_t)size;
    to += size;
  }
  return result;
}

static void *run(void *argument) {
  um_zstd_crew *crew = argument;
  um_zstd_context *context = um_zstd_context_take(&crew->codec);
  pthread_mutex_lock(&crew->lock);
  while (!crew->stop) {
    um_zstd_task *task = &crew->tasks[crew->next];
    if (task->state != UM_ZSTD_TASK_WAITS) {
      pthread_cond_wait(&crew->posted, &crew->lock);
      continue;
    }
    crew->next = (crew->next + 1) % crew->count;
    task->state = UM_ZSTD_TASK_WORKED;
    pthread_mutex_unlock(&crew->lock);
    task->result = context ? work(crew, context, task)
                           : um_error_set(&task->error, ENOMEM, UM_OP_WRITE, 0, 0, "compressing: no memory");
    pthread_mutex_lock(&crew->lock);
    task->state = UM_ZSTD_TASK_DONE;
    pthread_cond_broadcast(&crew->done);
  }
  pthread_mutex_unlock(&crew->lock);
  if (context)
    um_zstd_context_give(&crew->codec, context);
  return NULL;
}

static int make_tasks(um_zstd_crew *crew) {
  uint64_t pages = crew->task_size / crew->codec.page_size;
  crew->tasks = calloc(crew->count, sizeof(*crew->tasks));
  for (uint32_t i = 0; crew->tasks && i < crew->count; i++) {
    crew->tasks[i].in = malloc(crew->task_size);
    crew->tasks[i].out = malloc(pages * um_zstd_bound(&crew->codec, crew->codec.page_size));
    if (!crew->tasks[i].in || !crew->tasks[i].out)
      return -ENOMEM;
  }
  return crew->tasks ? 0 : -ENOMEM;
}

int um_zstd_crew_start(um_zstd_crew *crew, uint32_t threads) {
  pthread_mutex_init(&crew->lock, NULL);
  pthread_cond_init(&crew->posted, NULL);
  pthread_cond_init(&crew->done, NULL);
  crew->task_size = crew->codec.page_size > UM_ZSTD_TASK ? crew->codec.page_size : UM_ZSTD_TASK;
  crew->count = 2 * threads + 1;
  crew->threads = calloc(threads, sizeof(*crew->threads));
  int result = crew->threads ? make_tasks(crew) : -ENOMEM;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (result == 0 && crew->thread_count < threads) {
    result = -pthread_create(&crew->threads[crew->thread_count], NULL, run, crew);
    crew->thread_count += result == 0;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return crew->thread_count > 0 && crew->tasks && result != -ENOMEM ? 0 : result; /* fewer threads do, too */
}

void um_zstd_crew_end(um_zstd_crew *crew) {
  pthread_mutex_lock(&crew->lock);
  crew->stop = true;
  pthread_cond_broadcast(&crew->posted);
  pthread_mutex_unlock(&crew->lock);
  for (uint32_t i = 0; i < crew->thread_count; i++)
    pthread_join(crew->threads[i], NULL);
  for (uint32_t i = 0; crew->tasks && i < crew->count; i++) {
    free(crew->tasks[i].in);
    free(crew->tasks[i].out);
  }
  free(crew->tasks);
  free(crew->threads);
  pthread_cond_destroy(&crew->posted);
  pthread_cond_destroy(&crew->done);
  pthread_mutex_destroy(&crew->lock);
}

um_zstd_task *um_zstd_crew_next(um_zstd_crew *crew) {
  return crew->used == crew->count ? NULL : &crew->tasks[(crew->first + crew->used) % crew->count];
}

void um_zstd_crew_post(um_zstd_crew *crew) {
  um_zstd_task *task = um_zstd_crew_next(crew);
  crew->used++;
  pthread_mutex_lock(&crew->lock);
  task->state = UM_ZSTD_TASK_WAITS;
  pthread_cond_signal(&crew->posted);
  pthread_mutex_unlock(&crew->lock);
}

/* As long as the store that is read, or the compressor, needs. */
um_zstd_task *um_zstd_crew_oldest(um_zstd_crew *crew) {
  if (crew->used == 0)
    return NULL;
  um_zstd_task *task = &crew->tasks[crew->first];
  pthread_mutex_lock(&crew->lock);
  while (task->state != UM_ZSTD_TASK_DONE)
    pthread_cond_wait(&crew->done, &crew->lock);
  pthread_mutex_unlock(&crew->lock);
  return task;
}

void um_zstd_crew_return(um_zstd_crew *crew) {
  pthread_mutex_lock(&crew->lock);
  crew->tasks[crew->first].state = UM_ZSTD_TASK_IDLE;
  pthread_mutex_unlock(&crew->lock);
  crew->first = (crew->first + 1) % crew->count;
  crew->used--;
}
