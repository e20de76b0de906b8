/* zstd_foreign.c: the read-only store over the frames of a .zst that umappy did not write.
 *
 * A frame of ordinary size is decoded whole: into the reader's buffer where he wants all of it, else into a piece that
 * is kept for the next. A large one can only be decoded from its start: a few streams move forward through such frames,
 * leaving the pieces they pass in the table, so that readers a little before or behind each other do not begin anew.
 * Whoever decodes checks that a frame ends where the list says and gives as many bytes, see zstd_frames.h.
 *
 * The deadline of a read is that of waiting for others, 30 s without any progress; decoding itself goes on as long as
 * there is a frame to decode. */
#include "internal.h"
#include "zstd_pieces.h"
#include "zstd_scan.h"

#include <inttypes.h>

#define PIECE_SIZE (256u << 10) /* of large frames */
#define WHOLE_MAX (8u << 20)    /* frames up to this, and a quarter of the memory, are decoded whole */
#define INPUT_SLACK (64u << 10) /* bytes of file that a whole frame may have above its own size */
#define INPUT_KEPT (1u << 20)   /* a decoder that needed a larger buffer lets go of it */
#define STREAMS 4u
#define STREAM_OVERHEAD (512u << 10) /* bytes of a stream besides its window */

/* Decodes whole frames; one thread's at a time. */
typedef struct decoder {
  um_zstd_dctx *context;
  unsigned char *input; /* owned */
  uint64_t room;
  struct decoder *next; /* lock: those nobody uses */
} decoder;

typedef struct stream {
  um_zstd_stream stream; /* the user's; decoded is looked at by others only while it has none */
  uint64_t frame;        /* lock, and so all here */
  uint64_t target;       /* piece it is on its way to */
  uint64_t used;
  bool busy, open;
} stream;

typedef struct um_foreign_store {
  um_store store;
  um_zstd_scan *scan; /* owned, constant */
  um_zstd_pieces pieces;
  decoder *decoders; /* pieces.lock, and so the streams */
  stream streams[STREAMS];
  uint32_t stream_count; /* constant once it is read from, and so the next */
  uint64_t whole_max;
  uint64_t most; /* bytes to hold, at most; constant */
  atomic_bool forked;
} um_foreign_store;

/* A part of one frame that somebody reads. */
typedef struct part {
  const um_zstd_frame *frame;
  uint64_t index; /* of the frame */
  uint64_t size;  /* bytes of it, decoded */
  uint64_t inside, length;
  unsigned char *to;
} part;

static int fail_memory(const um_foreign_store *self, um_error *error) {
  return um_error_set(error, ENOMEM, UM_OP_READ, 0, 0, "%s: no memory to decode with", self->scan->path);
}

static int fail_size(const um_foreign_store *self, const part *p, um_error *error) {
  return um_error_set(error, UM_ECORRUPT, UM_OP_READ, 0, 0,
                      "%s: the frame at byte %" PRIu64 " of the file does not decode to the %" PRIu64
                      " bytes that its header or the seek table claims",
                      self->scan->path, p->frame->start, p->size);
}

static void free_decoder(const um_foreign_store *self, decoder *d) {
  if (d->context)
    self->scan->source.zstd->dctx_free(d->context);
  free(d->input);
  free(d);
}

static decoder *take_decoder(um_foreign_store *self, uint64_t room) {
  pthread_mutex_lock(&self->pieces.lock);
  decoder *d = self->decoders;
  if (d)
    self->decoders = d->next;
  pthread_mutex_unlock(&self->pieces.lock);
  if (!d && (d = calloc(1, sizeof *d)))
    d->context = um_zstd_source_context(&self->scan->source);
  if (d && d->context && d->room < room) {
    free(d->input);
    d->input = malloc(room);
    d->room = d->input ? room : 0;
  }
  if (!d || (d->context && d->room >= room))
    return d;
  free_decoder(self, d);
  return NULL;
}

static void give_decoder(um_foreign_store *self, decoder *d) {
  if (d->room > INPUT_KEPT) {
    free(d->input);
    d->input = NULL;
    d->room = 0;
  }
  pthread_mutex_lock(&self->pieces.lock);
  d->next = self->decoders;
  self->decoders = d;
  pthread_mutex_unlock(&self->pieces.lock);
}

static int decode_whole(um_foreign_store *self, const part *p, unsigned char *to, um_error *error) {
  const um_zstd_source *source = &self->scan->source;
  decoder *d = take_decoder(self, p->frame->length);
  if (!d)
    return fail_memory(self, error);
  int result = um_zstd_source_read(source, p->frame->start, d->input, p->frame->length, error);
  if (result == 0) {
    size_t got = source->zstd->decompress(d->context, to, p->size, d->input, p->frame->length);
    if (source->zstd->is_error(got) && source->zstd->error_code(got) != UM_ZSTD_ERROR_DESTINATION_TOO_SMALL)
      result = um_zstd_source_fail(source, p->frame->start, got, error);
    else if (got != p->size)
      result = fail_size(self, p, error);
  }
  give_decoder(self, d);
  return result;
}

static int fail_wait(const um_foreign_store *self, um_error *error) {
  return um_error_set(error, ETIMEDOUT, UM_OP_READ, 0, 0, "%s: waiting for another thread to decode", self->scan->path);
}

/* What the reader wants of the piece that starts there. */
static void copy_wanted(const part *p, const unsigned char *bytes, uint64_t start, uint64_t size) {
  uint64_t first = um_max(p->inside, start), last = um_min(p->inside + p->length, start + size);
  memcpy(p->to + (first - p->inside), bytes + (first - start), last - first);
}

/* Copies from a ready piece; the lock is held, and let go meanwhile. */
static void copy(um_foreign_store *self, um_zstd_piece *piece, const part *p, uint64_t piece_start) {
  um_zstd_piece_take(&self->pieces, piece);
  pthread_mutex_unlock(&self->pieces.lock);
  copy_wanted(p, piece->bytes, piece_start, piece->room);
  pthread_mutex_lock(&self->pieces.lock);
  um_zstd_piece_give(&self->pieces, piece, true);
}

/* Lock held; let go inside. */
static int fill_whole(um_foreign_store *self, const part *p, um_zstd_piece *piece, um_error *error) {
  pthread_mutex_unlock(&self->pieces.lock);
  int result = decode_whole(self, p, piece->bytes, error);
  if (result == 0)
    memcpy(p->to, piece->bytes + p->inside, p->length);
  pthread_mutex_lock(&self->pieces.lock);
  um_zstd_piece_give(&self->pieces, piece, result == 0);
  return result;
}

static int read_whole(um_foreign_store *self, const part *p, um_error *error) {
  int result = 0;
  bool done = false;
  pthread_mutex_lock(&self->pieces.lock);
  while (!done && result == 0) {
    um_zstd_piece *piece = um_zstd_piece_find(&self->pieces, p->index, 0);
    bool full = false;
    if (piece && piece->ready) {
      copy(self, piece, p, 0);
      done = true;
    } else if (piece) {
      result = um_zstd_pieces_wait(&self->pieces) < 0 ? fail_wait(self, error) : 0;
    } else if (p->length == p->size) {
      pthread_mutex_unlock(&self->pieces.lock);
      return decode_whole(self, p, p->to, error);
    } else if ((piece = um_zstd_piece_claim(&self->pieces, p->index, 0, p->size, &full))) {
      result = fill_whole(self, p, piece, error);
      done = true;
    } else if (full) {
      result = um_zstd_pieces_wait(&self->pieces) < 0 ? fail_wait(self, error) : 0;
    } else {
      result = fail_memory(self, error);
    }
  }
  pthread_mutex_unlock(&self->pieces.lock);
  return result;
}

static uint64_t count_pieces(uint64_t size) {
  return (size + PIECE_SIZE - 1) / PIECE_SIZE;
}

static uint64_t next_piece(const stream *s) { /* at the frame's end: one that it does not have */
  return count_pieces(s->stream.decoded);
}

/* The last piece must be followed by the frame's end: what the decoder checks there is the checksum. */
static int finish_stream(um_foreign_store *self, um_zstd_stream *s, const part *p, um_error *error) {
  unsigned char more;
  uint64_t got = 0, end = p->frame->start + p->frame->length;
  int result = 0;
  if (!s->ended)
    result = um_zstd_stream_read(s, &more, 1, &got, error);
  if (result == 0 && (got > 0 || um_zstd_stream_position(s) != end))
    result = fail_size(self, p, error);
  return result;
}

/* Decodes the stream's next piece, and copies from it if it is the one it is on its way to; lock held, let go inside.
 * Where none can be claimed its bytes are not kept. */
static int advance(um_foreign_store *self, stream *s, const part *p, unsigned char *scratch, um_error *error) {
  uint64_t number = next_piece(s);
  uint64_t size = um_min(PIECE_SIZE, p->size - number * PIECE_SIZE), got = 0;
  bool full;
  um_zstd_piece *piece = um_zstd_piece_find(&self->pieces, p->index, number);
  piece = piece ? NULL : um_zstd_piece_claim(&self->pieces, p->index, number, size, &full);
  pthread_mutex_unlock(&self->pieces.lock);
  unsigned char *bytes = piece ? piece->bytes : scratch;
  int result = um_zstd_stream_read(&s->stream, bytes, size, &got, error);
  if (result == 0 && got < size)
    result = fail_size(self, p, error);
  if (result == 0 && number + 1 == count_pieces(p->size))
    result = finish_stream(self, &s->stream, p, error);
  if (result == 0 && number == s->target)
    copy_wanted(p, bytes, number * PIECE_SIZE, size);
  pthread_mutex_lock(&self->pieces.lock);
  if (piece)
    um_zstd_piece_give(&self->pieces, piece, result == 0);
  else
    um_zstd_pieces_change(&self->pieces);
  return result;
}

static bool is_before(const stream *s, uint64_t frame, uint64_t number) {
  return s->open && s->frame == frame && next_piece(s) <= number;
}

/* Who can get to the piece: an idle stream in front of it, nearest first; else `busy` where one moves towards it; else
 * the idle stream that was used longest ago, to begin anew. NULL: all are busy. */
static stream *choose_stream(um_foreign_store *self, uint64_t frame, uint64_t number, bool *busy) {
  stream *nearest = NULL, *oldest = NULL;
  *busy = false;
  for (uint32_t i = 0; i < self->stream_count; i++) {
    stream *s = &self->streams[i];
    if (s->busy) {
      *busy |= s->frame == frame && s->target <= number;
      continue;
    }
    if (is_before(s, frame, number) && (!nearest || s->stream.decoded > nearest->stream.decoded))
      nearest = s;
    if (!oldest || s->used < oldest->used)
      oldest = s;
  }
  return nearest ? nearest : *busy ? NULL : oldest;
}

/* Moves a stream up to the piece and over it, which gives the reader his bytes; lock held, let go inside. */
static int run_stream(um_foreign_store *self, stream *s, const part *p, uint64_t number, um_error *error) {
  int result = 0;
  bool fresh = !is_before(s, p->index, number);
  unsigned char *scratch = malloc(PIECE_SIZE);
  s->busy = true;
  s->frame = p->index;
  s->target = number;
  s->used = ++self->pieces.turn;
  if (!scratch || (!s->stream.context && um_zstd_stream_open(&s->stream, &self->scan->source) < 0)) {
    result = fail_memory(self, error);
  } else {
    s->open = true;
    if (fresh)
      um_zstd_stream_begin(&s->stream, p->frame->start, p->frame->start + p->frame->length);
    while (result == 0 && next_piece(s) <= number)
      result = advance(self, s, p, scratch, error);
  }
  s->open = result == 0;
  s->busy = false;
  free(scratch);
  um_zstd_pieces_change(&self->pieces);
  return result;
}

static int read_piece(um_foreign_store *self, const part *p, uint64_t number, um_error *error) {
  int result = 0;
  pthread_mutex_lock(&self->pieces.lock);
  while (result == 0) {
    bool busy;
    um_zstd_piece *piece = um_zstd_piece_find(&self->pieces, p->index, number);
    if (piece && piece->ready) {
      copy(self, piece, p, number * PIECE_SIZE);
      break;
    }
    stream *s = piece ? NULL : choose_stream(self, p->index, number, &busy);
    if (s) {
      result = run_stream(self, s, p, number, error);
      break;
    }
    result = um_zstd_pieces_wait(&self->pieces) < 0 ? fail_wait(self, error) : 0;
  }
  pthread_mutex_unlock(&self->pieces.lock);
  return result;
}

static int read_large(um_foreign_store *self, const part *p, um_error *error) {
  int result = 0;
  uint64_t last = (p->inside + p->length - 1) / PIECE_SIZE;
  for (uint64_t number = p->inside / PIECE_SIZE; number <= last && result == 0; number++)
    result = read_piece(self, p, number, error);
  return result;
}

static int foreign_read(um_store *store, uint64_t offset, void *buffer, uint64_t length, um_error *error) {
  um_foreign_store *self = (um_foreign_store *)store;
  const um_zstd_frames *frames = &self->scan->frames;
  unsigned char *to = buffer;
  if (atomic_load_explicit(&self->forked, memory_order_relaxed))
    return um_error_set(error, UM_EFORKED, UM_OP_READ, offset, length,
                        "%s: opened before the fork; open it again in the child", self->scan->path);
  for (uint64_t i = um_zstd_frames_find(frames, offset); length > 0; i++) {
    const um_zstd_frame *frame = &frames->list[i];
    uint64_t inside = offset - frame->offset, size = frame[1].offset - frame->offset;
    part p = {frame, i, size, inside, um_min(length, size - inside), to};
    bool whole = size <= self->whole_max && frame->length <= 2 * size + INPUT_SLACK;
    int result = whole ? read_whole(self, &p, error) : read_large(self, &p, error);
    if (result < 0) {
      if (error) {
        error->op = UM_OP_READ;
        error->offset = offset;
        error->length = p.length;
      }
      return result;
    }
    offset += p.length;
    to += p.length;
    length -= p.length;
  }
  return 0;
}

static int foreign_close(um_store *store, um_error *error) {
  (void)error;
  um_foreign_store *self = (um_foreign_store *)store;
  while (self->decoders) {
    decoder *d = self->decoders;
    self->decoders = d->next;
    free_decoder(self, d);
  }
  for (uint32_t i = 0; i < STREAMS; i++)
    um_zstd_stream_close(&self->streams[i].stream);
  um_zstd_pieces_free(&self->pieces);
  um_zstd_scan_close(self->scan);
  free(self);
  return 0;
}

static void foreign_forked(um_store *store) {
  atomic_store(&((um_foreign_store *)store)->forked, true);
}

/* One stream there must be, whatever its window takes. */
static uint64_t foreign_limit(um_store *store, uint64_t bytes) {
  um_foreign_store *self = (um_foreign_store *)store;
  uint64_t window = um_max(1, self->scan->frames.window) + STREAM_OVERHEAD;
  uint64_t cache = um_min(self->most, bytes);
  pthread_mutex_lock(&self->pieces.lock);
  self->whole_max = um_min(WHOLE_MAX, cache / 4);
  bool streams = self->scan->frames.largest > self->whole_max;
  self->stream_count = streams ? (uint32_t)um_max(1, um_min(STREAMS, cache / 2 / window)) : 1;
  uint64_t windows = streams ? self->stream_count * window : 0;
  self->pieces.memory = um_max(cache / 4, cache > windows ? cache - windows : 0);
  pthread_mutex_unlock(&self->pieces.lock);
  return self->pieces.memory + windows;
}

static const um_store_ops foreign_ops = {
    .name = "zstd", .read = foreign_read, .close = foreign_close, .forked = foreign_forked, .limit = foreign_limit};

int um_zstd_foreign_open(um_zstd_scan *scan, uint64_t memory, um_store **store, um_error *error) {
  if (scan->phase != UM_ZSTD_DONE)
    return um_error_set(error, EINVAL, UM_OP_OPEN, 0, 0, "%s: its frames are not all known yet", scan->path);
  um_foreign_store *self = calloc(1, sizeof *self);
  if (!self || um_zstd_pieces_init(&self->pieces, memory) < 0) {
    free(self);
    return um_error_set(error, ENOMEM, UM_OP_OPEN, 0, 0, "%s: %s", scan->path, strerror(ENOMEM));
  }
  um_zstd_stream_close(&scan->stream);
  free(scan->window);
  scan->window = NULL;
  self->store = (um_store){.ops = &foreign_ops, .size = um_zstd_frames_size(&scan->frames)};
  self->scan = scan;
  self->most = memory;
  foreign_limit(&self->store, memory);
  *store = &self->store;
  return 0;
}
