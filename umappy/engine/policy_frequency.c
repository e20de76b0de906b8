/* policy_frequency.c: how often pages were asked for, in a table of fixed size.
 *
 * Buckets of one cache line; an entry is 12 bits of the page's hash and a count up to 15. In a full bucket the page
 * counted least gives way, of those the one that was counted longest ago. While 16 times the memory is counted a hand
 * goes once through all buckets and halves them, so that what was in demand once is forgotten. The idea is TinyLFU's
 * (Einziger, Friedman and Manes, "TinyLFU: a highly efficient cache admission policy", ACM Transactions on Storage,
 * 2017); with its counters, which have no tags, lfu missed 4 % more in the same memory (zipf over ten times the
 * memory). */
#include "policy_internal.h"

#define WINDOW 16u /* times the memory */
#define ENTRIES_PER_PAGE 2u

static uint32_t count_buckets(const um_policy_options *options) {
  return (uint32_t)um_max(1, options->memory / UM_PAGE_SIZE_MIN * ENTRIES_PER_PAGE / UM_FREQUENCY_WAYS);
}

static uint64_t table_memory(uint32_t bucket_count) {
  return um_round_up((uint64_t)bucket_count * UM_FREQUENCY_WAYS * sizeof(uint16_t), um_host_page);
}

uint64_t um_frequencies_memory(const um_policy_options *options) {
  return table_memory(count_buckets(options));
}

int um_frequencies_create(um_frequencies *q, const um_policy_options *options) {
  q->bucket_count = count_buckets(options);
  q->pace = um_max(1, options->memory * WINDOW / q->bucket_count);
  q->buckets = um_memory_map(table_memory(q->bucket_count));
  return q->buckets ? 0 : -ENOMEM;
}

void um_frequencies_destroy(um_frequencies *q) {
  um_memory_unmap(q->buckets, table_memory(q->bucket_count));
}

static uint16_t count_in(uint16_t entry) {
  return entry & UM_FREQUENCY_MAX;
}

/* Where the page is in its bucket; UM_FREQUENCY_WAYS: it is not. */
static uint32_t find(const uint16_t *bucket, uint64_t hash) {
  uint32_t i = 0;
  while (i < UM_FREQUENCY_WAYS && (bucket[i] >> 4 != (hash & 0xfff) || !count_in(bucket[i])))
    i++;
  return i;
}

static void count_page(uint16_t *bucket, uint64_t hash, uint32_t by) {
  uint32_t i = find(bucket, hash), count = by;
  if (i < UM_FREQUENCY_WAYS) {
    count += count_in(bucket[i]);
  } else {
    i = 0;
    for (uint32_t k = 1; k < UM_FREQUENCY_WAYS; k++)
      if (count_in(bucket[k]) <= count_in(bucket[i]))
        i = k;
  }
  memmove(bucket + 1, bucket, i * sizeof *bucket); /* the last counted stands first */
  bucket[0] = (uint16_t)((hash & 0xfff) << 4 | um_min(count, UM_FREQUENCY_MAX));
}

void um_frequencies_count(um_frequencies *q, const um_frame *f, uint32_t by) {
  um_policy_keys keys = um_policy_keys_of(f);
  uint64_t hash;
  while (um_policy_keys_next(&keys, f, &hash))
    count_page(q->buckets[um_policy_bucket(hash, q->bucket_count)], hash, by);
  for (q->owed += um_frame_bytes(f); q->owed >= q->pace; q->owed -= q->pace) {
    uint16_t *bucket = q->buckets[q->hand];
    for (uint32_t i = 0; i < UM_FREQUENCY_WAYS; i++)
      bucket[i] = (uint16_t)((bucket[i] & ~UM_FREQUENCY_MAX) | count_in(bucket[i]) >> 1);
    q->hand = q->hand + 1 < q->bucket_count ? q->hand + 1 : 0;
  }
}

uint32_t um_frequencies_look(const um_frequencies *q, const um_frame *f) {
  um_policy_keys keys = um_policy_keys_of(f);
  uint64_t hash;
  uint32_t looked = 0, sum = 0;
  for (; um_policy_keys_next(&keys, f, &hash); looked++) {
    const uint16_t *bucket = q->buckets[um_policy_bucket(hash, q->bucket_count)];
    uint32_t i = find(bucket, hash);
    sum += i < UM_FREQUENCY_WAYS ? count_in(bucket[i]) : 0;
  }
  return looked ? sum / looked : 0;
}
